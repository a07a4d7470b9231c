//! Blocks of 64 KiB and more: the smallest free one that is large enough, joined with its neighbors when it is free again. Steps of
//! ResNet-18 with W2A2 held 419 MiB so, with the first one that is large enough 469; 375 were in use.
//!
//! Memory comes from mimalloc in regions that are never given back. Of a region that is new nothing is touched before it is handed out,
//! so that the system counts only what has been in use.

use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mimalloc::MiMalloc;

/// Bytes of the smallest blocks.
const LEAST: usize = 1 << 16;

/// What sizes and addresses are multiples of: a page of most systems.
const GRAIN: usize = 1 << 12;

/// Bytes of the first region; the next ones are as large as all before together.
const FIRST_REGION: usize = 512 << 20;

/// Whether blocks are kept.
static KEEPS: AtomicBool = AtomicBool::new(false);

static HEAP: Mutex<Heap> = Mutex::new(Heap::new());

/// Has large blocks come from the heap from now on.
pub(super) fn keep() {
    KEEPS.store(true, Ordering::Relaxed);
}

pub(super) fn is_large_size(size: usize) -> bool {
    size >= LEAST
}

/// Whether the memory of this layout may be the heap's.
pub(super) fn is_large(layout: Layout) -> bool {
    is_large_size(layout.size()) && layout.align() <= GRAIN
}

fn heap() -> MutexGuard<'static, Heap> {
    HEAP.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block, if it is a large one and there is room for it in the regions, or for another region.
pub(super) fn allocate(layout: Layout) -> Option<*mut u8> {
    if !is_large(layout) || !KEEPS.load(Ordering::Relaxed) {
        return None;
    }
    let size = layout.size().checked_next_multiple_of(GRAIN)?;
    let address = heap().take(size, |size| {
        let layout = Layout::from_size_align(size, GRAIN).ok()?;
        // SAFETY: the size is not zero.
        let region = unsafe { MiMalloc.alloc(layout) };
        (!region.is_null()).then(|| region.expose_provenance())
    })?;
    Some(std::ptr::with_exposed_provenance_mut(address))
}

/// Takes back a block of this layout, if it is the heap's.
pub(super) fn free(memory: *mut u8, layout: Layout) -> bool {
    is_large(layout) && KEEPS.load(Ordering::Relaxed) && heap().put(memory.addr(), layout.size())
}

/// Which memory is free, by addresses.
struct Heap {
    /// Free blocks and their sizes; none touches another one.
    free: BTreeMap<usize, usize>,
    /// The regions and their sizes.
    regions: BTreeMap<usize, usize>,
    /// The part of the newest region that was never handed out: where it begins, and its size.
    untouched: (usize, usize),
    /// Whether there was no room for a region: none is asked for again, so that others have what is left.
    is_full: bool,
}

impl Heap {
    const fn new() -> Self {
        Self { free: BTreeMap::new(), regions: BTreeMap::new(), untouched: (0, 0), is_full: false }
    }

    /// A block of `size` bytes, which is a multiple of [`GRAIN`]; `region` makes more memory of a size, if there is any.
    fn take(&mut self, size: usize, region: impl Fn(usize) -> Option<usize>) -> Option<usize> {
        let fit = self.free.iter().filter(|(_, found)| **found >= size);
        if let Some((&address, &found)) = fit.min_by_key(|(_, found)| **found) {
            self.free.remove(&address);
            if found > size {
                self.free.insert(address + size, found - size);
            }
            return Some(address);
        }
        if self.untouched.1 < size {
            self.grow(size, region)?;
        }
        // What is free just before what is untouched is used up first.
        let (mut address, rest) = self.untouched;
        let mut needed = size;
        if let Some((before, free)) = self.before(address) {
            self.free.remove(&before);
            (address, needed) = (before, size - free);
        }
        self.untouched = (self.untouched.0 + needed, rest - needed);
        Some(address)
    }

    /// The free block that ends where another one begins, of the same region.
    fn before(&self, address: usize) -> Option<(usize, usize)> {
        let (&before, &size) = self.free.range(..address).next_back()?;
        (before + size == address && !self.regions.contains_key(&address)).then_some((before, size))
    }

    fn grow(&mut self, size: usize, region: impl Fn(usize) -> Option<usize>) -> Option<()> {
        let all: usize = self.regions.values().sum();
        let wanted = size.max(all).max(FIRST_REGION);
        let Some(address) = (!self.is_full).then(|| region(wanted)).flatten() else {
            self.is_full = true;
            return None;
        };
        let (old, rest) = std::mem::replace(&mut self.untouched, (address, wanted));
        if rest > 0 {
            self.join(old, rest);
        }
        self.regions.insert(address, wanted);
        Some(())
    }

    /// Makes the block of so many bytes at an address free; whether it is one of the heap's.
    fn put(&mut self, address: usize, size: usize) -> bool {
        let is_own =
            self.regions.range(..=address).next_back().is_some_and(|(start, size)| address - start < *size);
        if is_own {
            self.join(address, size.next_multiple_of(GRAIN));
        }
        is_own
    }

    /// Makes a block free, as one with those beside it.
    fn join(&mut self, mut address: usize, mut size: usize) {
        if let Some((before, free)) = self.before(address) {
            self.free.remove(&before);
            (address, size) = (before, size + free);
        }
        let end = address + size;
        if let Some(&free) = self.free.get(&end).filter(|_| !self.regions.contains_key(&end)) {
            self.free.remove(&end);
            size += free;
        }
        self.free.insert(address, size);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MIB: usize = 1 << 20;

    /// Any order of blocks: they never overlap, lie in regions, and all that is free again is one block of each region.
    #[test]
    fn blocks_are_apart_and_come_together_again() {
        let mut heap = Heap::new();
        // Regions that touch each other, and such that do not.
        let (next, n_regions) = (Cell::new(GRAIN), Cell::new(0));
        let region = |size: usize| {
            let address = next.get();
            n_regions.set(n_regions.get() + 1);
            next.set(address + size + if n_regions.get() % 2 == 0 { GRAIN } else { 0 });
            Some(address)
        };
        let mut state = 1u64;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut blocks: Vec<(usize, usize)> = Vec::new();
        for _ in 0..5000 {
            if draw(5) < 3 || blocks.is_empty() {
                let size = MIB + draw(20 * MIB);
                let address = heap.take(size.next_multiple_of(GRAIN), region).unwrap();
                let end = address + size.next_multiple_of(GRAIN);
                for (other, other_size) in &blocks {
                    assert!(end <= *other || other + other_size.next_multiple_of(GRAIN) <= address);
                }
                let (start, region_size) = heap.regions.range(..=address).next_back().unwrap();
                assert!(end <= start + region_size);
                blocks.push((address, size));
            } else {
                let (address, size) = blocks.swap_remove(draw(blocks.len()));
                assert!(heap.put(address, size));
            }
            if blocks.len() > 600 {
                blocks.drain(..300).for_each(|(address, size)| assert!(heap.put(address, size)));
            }
        }
        assert!(heap.regions.len() > 2, "{:?}", heap.regions);
        blocks.into_iter().for_each(|(address, size)| assert!(heap.put(address, size)));
        assert!(!heap.put(0, MIB) && !heap.put(next.get() + MIB, MIB));
        let untouched = heap.untouched;
        for (start, size) in &heap.regions {
            let size = if start + size == untouched.0 + untouched.1 { size - untouched.1 } else { *size };
            assert_eq!(heap.free.get(start), Some(&size).filter(|size| **size > 0));
        }
        assert!(heap.free.len() <= heap.regions.len());
    }

    #[test]
    fn the_smallest_that_is_large_enough_is_taken() {
        let mut heap = Heap::new();
        let region = |_| Some(GRAIN);
        let sizes = [3, 1, 2, 1, 4, 1].map(|size| size * MIB);
        let blocks = sizes.map(|size| heap.take(size, region).unwrap());
        for i in [0, 2, 4] {
            assert!(heap.put(blocks[i], sizes[i]));
        }
        assert_eq!(heap.take(2 * MIB, region), Some(blocks[2]));
        assert_eq!(heap.take(2 * MIB, region), Some(blocks[0]));
        assert_eq!(heap.take(MIB, region), Some(blocks[0] + 2 * MIB));
        assert_eq!(heap.take(4 * MIB, region), Some(blocks[4]));
        // None is left, and the last one in use is followed by what was never touched.
        assert_eq!(heap.take(MIB, region), Some(blocks[5] + MIB));
    }

    #[test]
    fn what_is_free_at_the_end_is_extended() {
        let mut heap = Heap::new();
        let first = heap.take(4 * MIB, |_| Some(GRAIN)).unwrap();
        let last = heap.take(2 * MIB, |_| None).unwrap();
        assert!(heap.put(last, 2 * MIB));
        assert_eq!(heap.take(3 * MIB, |_| None), Some(last));
        assert_eq!(heap.untouched.0, last + 3 * MIB);
        assert!(heap.put(first, 4 * MIB) && heap.put(last, 3 * MIB));
        assert_eq!(heap.free, BTreeMap::from([(first, 7 * MIB)]));
    }

    /// Where the system has no room for a region, blocks are those of mimalloc, but for what the regions hold.
    #[test]
    fn no_region_is_asked_for_in_vain_twice() {
        let mut heap = Heap::new();
        assert_eq!(heap.take(FIRST_REGION - 2 * MIB, |_| Some(GRAIN)), Some(GRAIN));
        assert_eq!(heap.take(4 * MIB, |_| None), None);
        assert_eq!(heap.take(4 * MIB, |_| panic!("it is asked for again")), None);
        assert_eq!(heap.take(2 * MIB, |_| None), Some(GRAIN + FIRST_REGION - 2 * MIB));
        assert!(heap.put(GRAIN, FIRST_REGION - 2 * MIB));
        assert_eq!(heap.take(4 * MIB, |_| None), Some(GRAIN));
    }
}
