//! Convolutions in bf16 on Intel's matrix unit: a tile has 16 rows of 16 words, and a word two numbers.
//!
//! In a sum for many pixels, 16 channels of the result are multiplied with the words of 16 cells at 16 pixels, which are read from
//! the planes as they are: the rows of a tile lie as far apart as planes do. In a sum over pixels, rows of an image are multiplied
//! with the gradient, of which two pixels make a word.

use std::arch::asm;
use std::ops::Range;

use rayon::prelude::*;

use super::cell::{Bf16, Bf16Pair, Cell, cells};
use super::correlation::{are_even, even_parts};
use super::kernel::{BEYOND, Factor, Products};
use super::shape::ConvShape;
use super::weight_gradient::Job;
use crate::amx::{Amx, Sizes};
use crate::output::Slot;

/// Rows of a tile, and words of a row.
const SIDE: usize = 16;

/// Bytes of a row.
const ROW: usize = 64;

/// Pixels of a sum that four tiles have.
const PIXELS: usize = 4 * SIDE;

/// Channels that fill a quarter of a tile or half of it: of fewer, most products of a tile would be of nothing.
const FEWEST_CHANNELS: usize = 8;

/// Whether the process has a unit that multiplies bf16.
fn is_there() -> bool {
    Amx::detect().is_some_and(Amx::multiplies_bf16)
}

/// Whether tiles serve sums over these channels: they have all of the same size.
pub fn pays(channels: usize) -> bool {
    is_there() && channels >= FEWEST_CHANNELS && are_even(channels.div_ceil(Bf16Pair::CHANNELS))
}

/// Panics if the process must not use the unit. (Tests emulate it.)
fn demand() {
    assert!(cfg!(test) || is_there(), "there is no matrix unit for bf16");
}

/// Two numbers of bf16, as [`Bf16Pair`], for the matrix unit.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct TilePair(Bf16Pair);

// SAFETY: as for the pair.
unsafe impl Cell for TilePair {
    const CHANNELS: usize = Bf16Pair::CHANNELS;

    #[inline(always)]
    fn of(first: f32, second: f32) -> Self {
        Self(Bf16Pair::of(first, second))
    }
}

impl Factor for TilePair {
    const IN_OCTETS: bool = false;
    const ROWS: usize = SIDE;

    #[inline(always)]
    fn place(row: usize, i: usize, n: usize) -> usize {
        row * n + i
    }

    unsafe fn products(operands: Products<'_, Self>, out: &mut [f32], stride: usize) {
        let Products { image, steps, together, panel, n, adds, .. } = operands;
        demand();
        assert!(steps.len().is_multiple_of(together) && together <= SIDE, "tiles of one size");
        let are_even = |steps: &[u32]| {
            steps.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] - pair[0] == steps[1] - steps[0])
        };
        assert!(
            steps.chunks_exact(together).all(are_even),
            "steps of a tile are equally far from each other"
        );
        const { assert!(PIXELS <= BEYOND) };
        // 0 to 3 are sums, 4 is of factors, 5 to 7 are of pixels.
        let sizes = Sizes::of(std::array::from_fn(|tile| match tile {
            0..4 => [SIDE, ROW],
            4 => [SIDE, together * size_of::<Self>()],
            _ => [together, ROW],
        }));
        // SAFETY: the process has the unit, as is checked, and the sizes are valid. Tiles of pixels begin before `n` and are not
        // longer than `BEYOND`: with the steps they are in the image, and there is room for the sums. The panel has a tile for all
        // steps that are taken together. The instructions change tiles and the sums.
        unsafe {
            sizes.set();
            for first in (0..n).step_by(PIXELS) {
                let sums = out.as_mut_ptr().add(first);
                let sums_row = stride * size_of::<f32>();
                if adds {
                    asm!(
                        "tileloadd tmm0, [{sums} + {row}]",
                        "tileloadd tmm1, [{sums} + {row} + 64]",
                        "tileloadd tmm2, [{sums} + {row} + 128]",
                        "tileloadd tmm3, [{sums} + {row} + 192]",
                        sums = in(reg) sums, row = in(reg) sums_row, options(nostack, readonly, preserves_flags),
                    );
                } else {
                    asm!(
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        options(nostack, nomem, preserves_flags),
                    );
                }
                for (i, steps) in steps.chunks_exact(together).enumerate() {
                    let factors = panel.as_ptr().add(i * together * SIDE);
                    let pixels = image.as_ptr().add(first + steps[0] as usize);
                    let distance = steps.get(1).map_or(0, |second| (second - steps[0]) as usize);
                    asm!(
                        "tileloadd tmm4, [{factors} + {row}]",
                        "tileloadd tmm5, [{pixels} + {distance}]",
                        "tdpbf16ps tmm0, tmm4, tmm5",
                        "tileloadd tmm6, [{pixels} + {distance} + 64]",
                        "tdpbf16ps tmm1, tmm4, tmm6",
                        "tileloadd tmm7, [{pixels} + {distance} + 128]",
                        "tdpbf16ps tmm2, tmm4, tmm7",
                        "tileloadd tmm5, [{pixels} + {distance} + 192]",
                        "tdpbf16ps tmm3, tmm4, tmm5",
                        factors = in(reg) factors, row = in(reg) together * size_of::<Self>(),
                        pixels = in(reg) pixels, distance = in(reg) distance * size_of::<Self>(),
                        options(nostack, readonly, preserves_flags),
                    );
                }
                asm!(
                    "tilestored [{sums} + {row}], tmm0",
                    "tilestored [{sums} + {row} + 64], tmm1",
                    "tilestored [{sums} + {row} + 128], tmm2",
                    "tilestored [{sums} + {row} + 192], tmm3",
                    sums = in(reg) sums, row = in(reg) sums_row, options(nostack, preserves_flags),
                );
            }
            Sizes::release();
        }
    }
}

/// The sums of tiles: for each block of channels of the output and of the input, and each position of the kernel, a tile with a row
/// for each channel of the input and a column for each one of the output.
pub struct TiledSums {
    out_channels: usize,
    in_channels: usize,
    taps: usize,
    /// Channels of the input in a tile.
    rows: usize,
}

impl TiledSums {
    pub fn new(shape: &ConvShape) -> Self {
        let in_channels = shape.group_in();
        let rows = even_parts(in_channels, SIDE);
        assert!(in_channels.is_multiple_of(rows), "tiles of one size");
        Self { out_channels: shape.group_out(), in_channels, taps: shape.taps(), rows }
    }

    /// Values of all tiles.
    pub fn len(&self) -> usize {
        self.out_channels.div_ceil(SIDE) * self.block_len()
    }

    /// Values of the tiles of a block of channels of the output.
    fn block_len(&self) -> usize {
        self.in_channels * self.taps * SIDE
    }

    /// Writes the sums in the order of the weights, each times `scale`.
    pub fn write(&self, sums: &[f32], scale: f32, gradient: &mut [Slot]) {
        let row_len = self.in_channels * self.taps;
        gradient.par_chunks_exact_mut(row_len).enumerate().for_each(|(channel, gradient)| {
            let block = &sums[channel / SIDE * self.block_len()..][..self.block_len()];
            for (i, value) in gradient.iter_mut().enumerate() {
                let (c, tap) = (i / self.taps, i % self.taps);
                let tile = c / self.rows * self.taps + tap;
                value.write(block[(tile * self.rows + c % self.rows) * SIDE + channel % SIDE] * scale);
            }
        });
    }

    /// Adds the sums over the pixels of some images, with rows of so many terms of the gradients.
    pub fn add(&self, job: &Job<'_, Bf16>, range: Range<usize>, terms: usize, sums: &mut [f32]) {
        demand();
        let mut words = Vec::new();
        job.for_each_group(range, |_, image, steps, rows, stride, n_pixels| {
            // The steps of a channel follow each other.
            let distance = steps.get(self.taps).map_or(0, |next| (next - steps[0]) as usize);
            let n_blocks = n_pixels.div_ceil(2 * SIDE);
            let per_block = n_blocks * SIDE * SIDE;
            let all_blocks = self.out_channels.div_ceil(SIDE);
            let words = &mut *cells::<Bf16Pair>(&mut words, all_blocks * terms * per_block);
            words.par_chunks_exact_mut(per_block).enumerate().for_each(|(i, words)| {
                let (block, term) = (i / terms, i % terms);
                let channels = block * SIDE..((block + 1) * SIDE).min(self.out_channels);
                let row = term * self.out_channels + channels.start;
                interleave(&rows[row * stride..], stride, channels.len(), words);
            });
            let reach = steps.iter().copied().max().unwrap_or(0) as usize;
            assert!(reach + n_blocks * 2 * SIDE <= image.len(), "a step is outside of the image");
            let blocks =
                sums.par_chunks_exact_mut(self.block_len()).zip(words.par_chunks_exact(terms * per_block));
            blocks.for_each(|(sums, words)| {
                // SAFETY: the process has the unit, as is checked, and the rows of a tile are not more than it has.
                unsafe {
                    // 0 to 3 are sums, 4 is of gradients, 5 to 7 are of the image.
                    let sizes = Sizes::of(std::array::from_fn(|tile| match tile {
                        4 => [SIDE, ROW],
                        _ => [self.rows, ROW],
                    }));
                    sizes.set();
                }
                let tiles = sums.chunks_exact_mut(self.taps * self.rows * SIDE).enumerate();
                for (part, sums) in tiles {
                    let steps = &steps[part * self.rows * self.taps..][..self.taps];
                    let mut tap = 0;
                    while tap < self.taps {
                        let n = match self.taps - tap {
                            rest if rest.is_multiple_of(3) => 3,
                            4.. => 4,
                            _ => 1,
                        };
                        let tile = self.rows * SIDE;
                        let sums = &mut sums[tap * tile..][..n * tile];
                        for words in words.chunks_exact(per_block) {
                            let steps = &steps[tap..];
                            // SAFETY: the sizes are set; the pixels of all blocks plus the steps are in the image, as is checked
                            // for the last one: the rows of a tile are channels that there are. There are words of each block.
                            unsafe {
                                match n {
                                    4 => sums_of_four(image, steps, distance, words, n_blocks, sums),
                                    3 => sums_of_three(image, steps, distance, words, n_blocks, sums),
                                    _ => sums_of_one(image, steps, distance, words, n_blocks, sums),
                                }
                            }
                        }
                        tap += n;
                    }
                }
                // SAFETY: the process has the unit.
                unsafe { Sizes::release() };
            });
        });
    }
}

/// Words of two pixels, for each block of 32 pixels 16 rows with a word of each of 16 channels, from rows of pixels; of channels
/// that there are not, zeros.
fn interleave(rows: &[Bf16], stride: usize, n_rows: usize, words: &mut [Bf16Pair]) {
    for (block, words) in words.chunks_exact_mut(SIDE * SIDE).enumerate() {
        for channel in 0..SIDE {
            if channel >= n_rows {
                words.iter_mut().skip(channel).step_by(SIDE).for_each(|word| *word = Bf16Pair(0));
                continue;
            }
            let pixels = &rows[channel * stride + block * 2 * SIDE..][..2 * SIDE];
            for (pair, words) in pixels.as_chunks::<2>().0.iter().zip(words.chunks_exact_mut(SIDE)) {
                words[channel] = Bf16Pair(u32::from(pair[0].0) | u32::from(pair[1].0) << 16);
            }
        }
    }
}

/// Defines the function that adds the sums over all blocks of pixels for some positions of the kernel.
macro_rules! sums_over_pixels {
    ($name:ident, $n:literal: $(($i:literal, $sum:literal, $image:literal)),+) => {
        /// # Safety
        /// The process has the unit and has set the sizes of tiles. The pixels of all blocks plus the steps are in the image for as
        /// many rows, `distance` apart, as a tile has; there are the words of as many blocks, and the sums of as many tiles as
        /// positions.
        unsafe fn $name(
            image: &[Bf16],
            steps: &[u32],
            distance: usize,
            words: &[Bf16Pair],
            n_blocks: usize,
            sums: &mut [f32],
        ) {
            let (first, len) = (sums.as_mut_ptr(), sums.len() / $n);
            let sums: [*mut f32; $n] = std::array::from_fn(|i| first.wrapping_add(i * len));
            let mut images: [*const Bf16; $n] =
                std::array::from_fn(|i| image.as_ptr().wrapping_add(steps[i] as usize));
            let mut words = words.as_ptr();
            let distance = distance * size_of::<Bf16>();
            // SAFETY: as the caller promises. The instructions change tiles and the sums. Tiles go from block to block, so none can
            // say that it changes them; nothing else in the program uses any.
            unsafe {
                $(asm!(
                    concat!("tileloadd ", $sum, ", [{sums} + {row}]"),
                    sums = in(reg) sums[$i], row = in(reg) ROW, options(nostack, readonly, preserves_flags),
                );)+
                for _ in 0..n_blocks {
                    asm!(
                        "tileloadd tmm4, [{words} + {row}]",
                        words = in(reg) words, row = in(reg) ROW, options(nostack, readonly, preserves_flags),
                    );
                    $(asm!(
                        concat!("tileloadd ", $image, ", [{image} + {distance}]"),
                        concat!("tdpbf16ps ", $sum, ", ", $image, ", tmm4"),
                        image = in(reg) images[$i], distance = in(reg) distance,
                        options(nostack, readonly, preserves_flags),
                    );)+
                    words = words.wrapping_add(SIDE * SIDE);
                    images = images.map(|image| image.wrapping_add(2 * SIDE));
                }
                $(asm!(
                    concat!("tilestored [{sums} + {row}], ", $sum),
                    sums = in(reg) sums[$i], row = in(reg) ROW, options(nostack, preserves_flags),
                );)+
            }
        }
    };
}

sums_over_pixels!(sums_of_one, 1: (0, "tmm0", "tmm5"));
sums_over_pixels!(sums_of_three, 3: (0, "tmm0", "tmm5"), (1, "tmm1", "tmm6"), (2, "tmm2", "tmm7"));
sums_over_pixels!(
    sums_of_four, 4: (0, "tmm0", "tmm5"), (1, "tmm1", "tmm6"), (2, "tmm2", "tmm7"), (3, "tmm3", "tmm5")
);
