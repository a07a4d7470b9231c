//! Sums of products of codes by Intel's matrix unit, AMX (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1,
//! chapter 18): a tile of weights, 8 channels of the output by up to 16 words, times a tile of words of 16 pixels.
//!
//! Rust has no stable functions for it yet. The operating system gives the unit to a process that asks for it.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::multiply::{CHANNELS, LANES, Row, Sums, VECTORS};
use crate::words::WORD;

/// Most words of a tile.
const MOST_WORDS: usize = 16;

/// The proof that the process may use the unit.
#[derive(Clone, Copy, Debug)]
pub struct Proof(());

impl Proof {
    /// Asks the processor and the operating system, once.
    fn detect() -> Option<Self> {
        static DETECTED: OnceLock<bool> = OnceLock::new();
        DETECTED.get_or_init(|| has_tiles() && is_permitted()).then_some(Self(()))
    }
}

/// Whether the process has a matrix unit.
pub fn is_there() -> bool {
    Proof::detect().is_some()
}

/// Whether the processor has tiles and multiplies bytes, and the operating system saves them.
fn has_tiles() -> bool {
    const TILES_AND_BYTES: u32 = 1 << 24 | 1 << 25;
    const SAVED: u64 = 1 << 17 | 1 << 18;
    let saves_state = __cpuid(1).ecx & 1 << 27 != 0;
    let has_leaf = __cpuid(0).eax >= 7;
    has_leaf
        && saves_state
        && __cpuid_count(7, 0).edx & TILES_AND_BYTES == TILES_AND_BYTES
        // SAFETY: the processor has the instruction, as the operating system has switched it on.
        && unsafe { xcr0() } & SAVED == SAVED
}

/// # Safety
/// The processor has `xgetbv`, and the operating system has switched it on.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: as the caller promises.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tiles, for all threads of the process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that writes no memory of the process; the kernel changes these registers only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Sizes of the eight tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Sizes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Weights in tiles.
#[derive(Clone, Debug)]
pub struct Tiles {
    proof: Proof,
    /// For each block of channels, tap and part of the words, for each channel, its words.
    weights: Vec<u32>,
    /// Words of a tile.
    in_tile: usize,
    /// Parts of the words.
    n_parts: usize,
}

impl Tiles {
    /// Those of rows of weights, for each block, tap and word. `None` if the process has no matrix unit.
    pub fn new(rows: &[Row], n_words: usize) -> Option<Self> {
        let proof = Proof::detect()?;
        let n_parts = n_words.div_ceil(MOST_WORDS);
        let in_tile = n_words.div_ceil(n_parts);
        let mut weights = vec![0; rows.len() / n_words * n_parts * CHANNELS * in_tile];
        let taps = rows.chunks_exact(n_words).zip(weights.chunks_exact_mut(n_parts * CHANNELS * in_tile));
        for (rows, tiles) in taps {
            for (word, row) in rows.iter().enumerate() {
                let tile = &mut tiles[word / in_tile * CHANNELS * in_tile..];
                for (channel, weights) in row.as_chunks::<WORD>().0.iter().enumerate() {
                    tile[channel * in_tile + word % in_tile] = u32::from_le_bytes(*weights);
                }
            }
        }
        Some(Self { proof, weights, in_tile, n_parts })
    }

    /// Words of a pixel that are read: those that fill the last tile weigh nothing.
    pub fn n_words(&self) -> usize {
        self.n_parts * self.in_tile
    }

    /// Computes the sums of a block of channels, of so many registers of pixels. `taps` says where the words of the first pixel begin, and
    /// `stride` how far the next word is.
    ///
    /// # Panics
    /// If there are more than [`VECTORS`], or a word is beyond the words.
    pub fn run(
        &self,
        words: &[u32],
        taps: &[usize],
        stride: usize,
        block: usize,
        vectors: usize,
        sums: &mut Sums,
    ) {
        let last = taps.iter().copied().max().expect("a kernel has a position");
        let last = last + (self.n_words() - 1) * stride + vectors * LANES;
        assert!((1..=VECTORS).contains(&vectors) && last <= words.len(), "words that there are");
        let in_block = taps.len() * self.n_parts * CHANNELS * self.in_tile;
        let weights = &self.weights[block * in_block..][..in_block];
        let Proof(()) = self.proof;
        // SAFETY: the process has the unit, and all words are there.
        unsafe { self.multiply(words, taps, stride, weights, vectors, sums) }
    }

    /// # Safety
    /// The process has the unit. All words of so many registers are there, and all weights.
    unsafe fn multiply(
        &self,
        words: &[u32],
        taps: &[usize],
        stride: usize,
        weights: &[u32],
        vectors: usize,
        sums: &mut Sums,
    ) {
        const REGISTER: u16 = (LANES * WORD) as u16;
        let mut sizes =
            Sizes { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        // Tiles 0 to 3 are sums, 4 is of weights, 5 to 7 are of pixels.
        for tile in 0..8 {
            let (row_bytes, rows) = match tile {
                0..4 => (REGISTER, CHANNELS),
                4 => ((self.in_tile * WORD) as u16, CHANNELS),
                _ => (REGISTER, self.in_tile),
            };
            (sizes.row_bytes[tile], sizes.rows[tile]) = (row_bytes, rows as u8);
        }
        // SAFETY: the sizes are valid ones, and outlive the instruction. Nothing else in the program uses tiles.
        unsafe {
            asm!("ldtilecfg [{sizes}]", sizes = in(reg) &sizes, options(nostack, readonly, preserves_flags));
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        let weight_step = self.in_tile * WORD;
        let pixel_step = stride * WORD;
        let mut weights = weights.as_ptr();
        for tap in taps {
            for part in 0..self.n_parts {
                let pixels = words.as_ptr().wrapping_add(tap + part * self.in_tile * stride);
                // SAFETY: the weights of a tile are `CHANNELS` rows of `in_tile` words; each register of pixels is there, for as many words.
                // The instructions change tiles only.
                unsafe {
                    asm!("tileloadd tmm4, [{at} + {step}]", at = in(reg) weights, step = in(reg) weight_step,
                        options(nostack, readonly, preserves_flags));
                    asm!("tileloadd tmm5, [{at} + {step}]", "tdpbsud tmm0, tmm4, tmm5",
                        at = in(reg) pixels, step = in(reg) pixel_step, options(nostack, readonly, preserves_flags));
                    if vectors > 1 {
                        asm!("tileloadd tmm6, [{at} + {step}]", "tdpbsud tmm1, tmm4, tmm6",
                            at = in(reg) pixels.wrapping_add(LANES), step = in(reg) pixel_step,
                            options(nostack, readonly, preserves_flags));
                    }
                    if vectors > 2 {
                        asm!("tileloadd tmm7, [{at} + {step}]", "tdpbsud tmm2, tmm4, tmm7",
                            at = in(reg) pixels.wrapping_add(2 * LANES), step = in(reg) pixel_step,
                            options(nostack, readonly, preserves_flags));
                    }
                    if vectors > 3 {
                        asm!("tileloadd tmm5, [{at} + {step}]", "tdpbsud tmm3, tmm4, tmm5",
                            at = in(reg) pixels.wrapping_add(3 * LANES), step = in(reg) pixel_step,
                            options(nostack, readonly, preserves_flags));
                    }
                }
                weights = weights.wrapping_add(CHANNELS * self.in_tile);
            }
        }
        let (out, out_step) = (sums.as_mut_ptr().cast::<i32>(), VECTORS * LANES * size_of::<i32>());
        // SAFETY: a tile of sums is `CHANNELS` rows of a register, which have their places in the sums of all registers. At last the
        // tiles are given back, so that the system need not save them.
        unsafe {
            asm!(
                "tilestored [{a} + {step}], tmm0", "tilestored [{b} + {step}], tmm1",
                "tilestored [{c} + {step}], tmm2", "tilestored [{d} + {step}], tmm3", "tilerelease",
                a = in(reg) out, b = in(reg) out.add(LANES), c = in(reg) out.add(2 * LANES), d = in(reg) out.add(3 * LANES),
                step = in(reg) out_step, options(nostack, preserves_flags),
            );
        }
    }
}
