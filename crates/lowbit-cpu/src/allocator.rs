//! The memory allocator for programs that train on the CPU.
//!
//! Every operation of a step makes its result anew. This allocator hands the same memory out again, and
//! [`keep_memory`] has it keep what is free: else it gives large blocks back to the system and gets them again page by
//! page, which costs more than a quarter of a step. What is kept in large blocks is in a heap of its own (`large`): mimalloc puts them
//! in pieces of 32 MiB, of which tensors leave much unused.
//!
//! ```
//! #[global_allocator]
//! static ALLOCATOR: lowbit_cpu::allocator::Allocator = lowbit_cpu::allocator::Allocator;
//!
//! // First in `main`:
//! lowbit_cpu::allocator::keep_memory();
//! ```

mod large;

use std::alloc::{GlobalAlloc, Layout};
use std::io::Write;
use std::sync::OnceLock;

use mimalloc::MiMalloc;

/// The allocator. Where there is no more memory it says so in a line and ends the process with code 1, as what trains can do
/// nothing without: the standard library would abort, with a trace that names none of it.
pub struct Allocator;

// SAFETY: all memory is that of `MiMalloc`, directly or in blocks of the heap, which are apart from each other; a null pointer is never
// returned.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(block) = large::allocate(layout) {
            return block;
        }
        // SAFETY: the caller keeps the rules of this very function.
        there(unsafe { MiMalloc.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if let Some(block) = large::allocate(layout) {
            // SAFETY: the block has this many bytes.
            unsafe { block.write_bytes(0, layout.size()) };
            return block;
        }
        // SAFETY: as above.
        there(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if large::is_large(layout) || large::is_large_size(new_size) {
            let Ok(new_layout) = Layout::from_size_align(new_size, layout.align()) else {
                return there(std::ptr::null_mut(), new_size);
            };
            // SAFETY: the caller keeps the rules of this very function: the size is not zero.
            let new = unsafe { self.alloc(new_layout) };
            // SAFETY: both have this many bytes, and a new block lies apart from those in use.
            unsafe { new.copy_from_nonoverlapping(memory, layout.size().min(new_size)) };
            // SAFETY: the memory is of this layout, and is not used any more.
            unsafe { self.dealloc(memory, layout) };
            return new;
        }
        // SAFETY: as above; `memory` came from `MiMalloc`.
        there(unsafe { MiMalloc.realloc(memory, layout, new_size) }, new_size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if !large::free(memory, layout) {
            // SAFETY: as above; `memory` came from `MiMalloc`.
            unsafe { MiMalloc.dealloc(memory, layout) }
        }
    }
}

/// What the program says besides where memory runs out.
static ADVICE: OnceLock<&str> = OnceLock::new();

/// Adds to the message of a program that runs out of memory what its user can do, once; later calls change nothing.
pub fn advise(advice: &'static str) {
    let _ = ADVICE.set(advice);
}

/// Memory that is there.
#[inline]
fn there(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() {
        out_of_memory(size);
    }
    memory
}

#[cold]
fn out_of_memory(size: usize) -> ! {
    // Formatted without memory, into a stream without a buffer. Nobody is left to tell if stderr is closed.
    let advice = ADVICE.get().map_or(("", ""), |advice| ("; ", *advice));
    let _ = writeln!(
        std::io::stderr(),
        "error: out of memory: {size} bytes more are unavailable; free memory or raise the limit (ulimit -v){}{}",
        advice.0,
        advice.1
    );
    std::process::exit(1)
}

/// `mi_option_purge_delay` of mimalloc's C interface, which its Rust one does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Keeps memory that is free for the program, which then holds as much as it ever needed at once.
pub fn keep_memory() {
    large::keep();
    // SAFETY: sets an integer; -1 is the documented value for never.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number means what it did when it was written: 1,000 ms is the default of this option in mimalloc 3, and of no other
    /// near it.
    #[test]
    fn the_delay_is_the_option_that_is_set() {
        // SAFETY: reads an integer.
        let delay = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(delay(), 1000);
        keep_memory();
        assert_eq!(delay(), -1);
    }
}
