//! Convolution by all products.
//!
//! A step of the sum multiplies a word of four channels of the input by those of 16 output channels. Processors with an instruction
//! for the dot product of two words sum up in 32 bits; for AVX2 and NEON products are summed up in 16 bits as long as they provably fit,
//! then in 32.

#[cfg(target_arch = "aarch64")]
mod aarch64;

use std::ops::Range;

use rayon::prelude::*;

use super::CodeBounds;
#[cfg(target_arch = "aarch64")]
use super::aarch64::Dotprod;
use super::layout::Layout;
use super::output::Output;
use crate::conv::{ConvShape, tables};
#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Avx512Vnni};
use crate::instructions::{Baseline, Instructions};
use crate::output::Slot;
use crate::task_items;
use crate::tile::BLOCK;
use crate::words::WORD;

/// Pixels of a task's share that are computed for one block of channels before the next.
const PIXELS: usize = 264;

/// A step of a panel: [`WORD`] weights for each of [`BLOCK`] channels.
pub type Row = [i8; WORD * BLOCK];

/// Fewest steps summed up in 16 bits for which the kernel runs. With fewer, widening the sums costs as much as the products.
/// Measured with AVX2: it pays at 1820 and 72 steps (2 and 4 bits).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const FEWEST_STEPS: usize = 4;

/// What computes the tiles.
#[derive(Clone, Copy, Debug)]
pub enum Tiles {
    /// Whatever the compiler makes of loops; slower than single precision.
    Plain,
    /// Products of two channels in 16 bits each, summed up in 32: as fast as single precision.
    #[cfg(target_arch = "x86_64")]
    Avx2Wide(Avx2),
    /// Products of two channels summed up in 16 bits.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// Products of four channels summed up in 32 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    /// Products of single channels summed up in 16 bits, both operands signed: half the instructions of single precision.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Products of four channels summed up in 32 bits, both operands signed: a quarter of the instructions.
    #[cfg(target_arch = "aarch64")]
    Dotprod(Dotprod),
    /// The same for activations beyond 127.
    #[cfg(target_arch = "aarch64")]
    DotprodWide(Dotprod),
}

impl Tiles {
    /// What this processor has and multiplies such codes, from the slowest to the fastest.
    fn serving(bounds: CodeBounds) -> impl Iterator<Item = Self> {
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = bounds;
        let serving = [
            Some(Self::Plain),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Self::Avx2Wide),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().filter(|_| bounds.steps() >= FEWEST_STEPS).map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512Vnni::detect().map(Self::Avx512Vnni),
            #[cfg(target_arch = "aarch64")]
            (bounds.are_signed() && bounds.steps() >= FEWEST_STEPS).then_some(Self::Neon),
            #[cfg(target_arch = "aarch64")]
            Dotprod::detect().map(if bounds.are_signed() { Self::Dotprod } else { Self::DotprodWide }),
        ];
        serving.into_iter().flatten()
    }

    /// Whether they are faster than the convolution in single precision.
    pub fn pay(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if matches!(self, Self::Avx2Wide(_)) {
            return false;
        }
        !matches!(self, Self::Plain)
    }

    /// The fastest for such codes on this processor.
    pub fn best(bounds: CodeBounds) -> Self {
        Self::serving(bounds).last().expect("the plain ones serve always")
    }
}

/// A convolution with its weights packed.
#[derive(Clone, Debug)]
pub struct Direct {
    tables: tables::Tables,
    padding: [usize; 2],
    /// Where each pixel is in a channel of words, image after image.
    word_targets: Vec<u32>,
    /// For each block of output channels, a row for each step.
    panels: Vec<Row>,
    out_channels: usize,
    plane: usize,
    narrow_steps: usize,
    tiles: Tiles,
}

impl Direct {
    /// Packs the codes of the weights, in two's complement.
    pub fn new(shape: &ConvShape, weight: &[u8], bounds: CodeBounds) -> Self {
        let taps = shape.taps();
        let n_words = shape.in_channels.div_ceil(WORD);
        let n_steps = n_words * taps;
        let mut panels = vec![[0; WORD * BLOCK]; shape.out_channels.div_ceil(BLOCK) * n_steps];
        let blocks = panels.par_chunks_mut(n_steps).zip(weight.par_chunks(BLOCK * shape.in_channels * taps));
        blocks.with_min_len(task_items(BLOCK * shape.in_channels * taps)).for_each(|(panel, weight)| {
            for (channel, codes) in weight.chunks_exact(shape.in_channels * taps).enumerate() {
                for (c, codes) in codes.chunks_exact(taps).enumerate() {
                    let rows = &mut panel[c / WORD * taps..][..taps];
                    for (row, &code) in rows.iter_mut().zip(codes) {
                        row[channel * WORD + c % WORD] = code as i8;
                    }
                }
            }
        });
        let tables = tables::Tables::new(&ConvShape { in_channels: n_words, ..*shape }, PIXELS);
        let plane = shape.out_plane();
        let out_words = shape.out_channels.div_ceil(WORD) * plane;
        let word_targets = tables::targets(plane, out_words, tables.images);
        let (out_channels, narrow_steps, tiles) = (shape.out_channels, bounds.steps(), Tiles::best(bounds));
        let padding = shape.padding;
        Self { tables, padding, word_targets, panels, out_channels, plane, narrow_steps, tiles }
    }

    /// The same by all instructions that this processor has.
    #[cfg(test)]
    pub fn with_each_instructions(&self, bounds: CodeBounds) -> impl Iterator<Item = (String, Self)> {
        Tiles::serving(bounds).map(|tiles| (format!("{tiles:?}"), Self { tiles, ..self.clone() }))
    }

    /// Where the words of images lie.
    pub fn layout(&self, n_images: usize) -> Layout {
        Layout::of(&self.tables.source, self.padding, n_images, 0)
    }

    /// Images that are computed together.
    pub fn images(&self) -> usize {
        self.tables.images
    }

    /// Computes images by one thread.
    pub fn run<O: Output>(&self, words: &[u32], n_images: usize, output: &O, out: &mut [Slot<O::Item>]) {
        let values = n_images * self.plane;
        for first in (0..values).step_by(PIXELS) {
            let pixels = first..(first + PIXELS).min(values);
            for block in 0..self.out_channels.div_ceil(BLOCK) {
                let out = &mut out[block * BLOCK / O::CHANNELS * self.plane..];
                self.run_block(words, block, pixels.clone(), output, out);
            }
        }
    }

    /// Computes one image by all threads.
    pub fn run_shared<O: Output>(&self, words: &[u32], output: &O, out: &mut [Slot<O::Item>]) {
        let blocks = out.par_chunks_mut(BLOCK / O::CHANNELS * self.plane).enumerate();
        blocks.for_each(|(block, out)| self.run_block(words, block, 0..self.plane, output, out));
    }

    /// Writes these pixels of a block of channels, with which `out` begins.
    fn run_block<O: Output>(
        &self,
        words: &[u32],
        block: usize,
        pixels: Range<usize>,
        output: &O,
        out: &mut [Slot<O::Item>],
    ) {
        let n_steps = self.tables.steps.len();
        let operands = Operands {
            words,
            starts: &self.tables.starts[pixels.clone()],
            steps: &self.tables.steps,
            panel: &self.panels[block * n_steps..][..n_steps],
            narrow_steps: self.narrow_steps,
        };
        let all = if O::CHANNELS == 1 { &self.tables.targets } else { &self.word_targets };
        let targets = &all[pixels];
        run(self.tiles, operands, &mut Store { output, block, targets, out });
    }
}

/// What a tile is computed from.
#[derive(Clone, Copy)]
struct Operands<'a> {
    words: &'a [u32],
    starts: &'a [u32],
    steps: &'a [u32],
    panel: &'a [Row],
    /// Steps whose products can be summed up in 16 bits.
    #[cfg_attr(
        not(any(target_arch = "x86_64", target_arch = "aarch64")),
        expect(dead_code, reason = "other processors sum in 32 bits")
    )]
    narrow_steps: usize,
}

impl Operands<'_> {
    /// Where the sums of `P` pixels start, the last pixel repeated where there are fewer.
    #[inline(always)]
    fn windows<const P: usize>(&self, first: usize) -> [*const u32; P] {
        std::array::from_fn(|p| {
            let start = self.starts[(first + p).min(self.starts.len() - 1)];
            self.words.as_ptr().wrapping_add(start as usize)
        })
    }
}

/// Where the sums of tiles go.
struct Store<'a, O: Output> {
    output: &'a O,
    block: usize,
    targets: &'a [u32],
    out: &'a mut [Slot<O::Item>],
}

impl<O: Output> Store<'_, O> {
    /// Takes the sums of `P` pixels from number `first` on.
    #[inline(always)]
    fn take<const P: usize>(
        &mut self,
        instructions: impl Instructions,
        first: usize,
        sums: &[[i32; BLOCK]; P],
    ) {
        let targets = &self.targets[first..(first + P).min(self.targets.len())];
        self.output.write(instructions, self.block, sums, targets, self.out);
    }
}

/// # Safety
/// `start + step < words.len()` for every start and step.
unsafe fn tiles_plain(operands: Operands<'_>, store: &mut Store<'_, impl Output>) {
    const TILE: usize = 6;
    for first in (0..operands.starts.len()).step_by(TILE) {
        let windows = operands.windows::<TILE>(first);
        let mut sums = [[0i32; BLOCK]; TILE];
        for (&step, row) in operands.steps.iter().zip(operands.panel) {
            for (sums, window) in sums.iter_mut().zip(windows) {
                // SAFETY: `start + step < words.len()`, which the caller promises.
                let codes = unsafe { *window.add(step as usize) }.to_le_bytes();
                for (sum, weights) in sums.iter_mut().zip(row.as_chunks::<WORD>().0) {
                    for (code, weight) in codes.iter().zip(weights) {
                        *sum += i32::from(*code) * i32::from(*weight);
                    }
                }
            }
        }
        store.take(Baseline, first, &sums);
    }
}

/// Two products of 8 bits become a sum of 16 in one instruction, which the compiler does not find from a loop.
///
/// # Safety
/// `start + step < words.len()` for every start and step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tiles_avx2(proof: Avx2, operands: Operands<'_>, store: &mut Store<'_, impl Output>) {
    use std::arch::x86_64::*;
    const TILE: usize = 6;
    let ones = _mm256_set1_epi16(1);
    for first in (0..operands.starts.len()).step_by(TILE) {
        let windows = operands.windows::<TILE>(first);
        let mut sums = [[_mm256_setzero_si256(); 2]; TILE];
        let parts = operands.steps.chunks(operands.narrow_steps);
        for (steps, rows) in parts.zip(operands.panel.chunks(operands.narrow_steps)) {
            let mut narrow = [[_mm256_setzero_si256(); 2]; TILE];
            for (&step, row) in steps.iter().zip(rows) {
                // SAFETY: a row has the size of two registers.
                let weights: [__m256i; 2] = unsafe { std::mem::transmute(*row) };
                for p in 0..TILE {
                    // SAFETY: `start + step < words.len()`, which the caller promises.
                    let codes = _mm256_set1_epi32(unsafe { *windows[p].add(step as usize) } as i32);
                    for v in 0..2 {
                        // At most `narrow_steps` of these fit 16 bits, see `CodeBounds::steps`.
                        let products = _mm256_maddubs_epi16(codes, weights[v]);
                        narrow[p][v] = _mm256_add_epi16(narrow[p][v], products);
                    }
                }
            }
            for (sums, narrow) in sums.iter_mut().zip(narrow) {
                for v in 0..2 {
                    sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(narrow[v], ones));
                }
            }
        }
        // SAFETY: both are 16 integers of 32 bits for each pixel.
        let sums: [[i32; BLOCK]; TILE] = unsafe { std::mem::transmute(sums) };
        store.take(proof, first, &sums);
    }
}

/// Codes of 8 bits, whose products do not fit sums of 16.
///
/// # Safety
/// `start + step < words.len()` for every start and step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tiles_avx2_wide(proof: Avx2, operands: Operands<'_>, store: &mut Store<'_, impl Output>) {
    use std::arch::x86_64::*;
    // As many as have their sums in registers beside the weights.
    const TILE: usize = 4;
    let low = _mm256_set1_epi16(0xff);
    for first in (0..operands.starts.len()).step_by(TILE) {
        let windows = operands.windows::<TILE>(first);
        let mut sums = [[_mm256_setzero_si256(); 2]; TILE];
        for (&step, row) in operands.steps.iter().zip(operands.panel) {
            // SAFETY: a row has the size of two registers.
            let weights: [__m256i; 2] = unsafe { std::mem::transmute(*row) };
            // Of the four channels of a word the first and the third, then the others, with their signs.
            let even = weights.map(|weights| _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(weights)));
            let odd = weights.map(|weights| _mm256_srai_epi16::<8>(weights));
            for p in 0..TILE {
                // SAFETY: `start + step < words.len()`, which the caller promises.
                let codes = _mm256_set1_epi32(unsafe { *windows[p].add(step as usize) } as i32);
                let (even_codes, odd_codes) = (_mm256_and_si256(codes, low), _mm256_srli_epi16::<8>(codes));
                for v in 0..2 {
                    let products = _mm256_add_epi32(
                        _mm256_madd_epi16(even_codes, even[v]),
                        _mm256_madd_epi16(odd_codes, odd[v]),
                    );
                    sums[p][v] = _mm256_add_epi32(sums[p][v], products);
                }
            }
        }
        // SAFETY: both are 16 integers of 32 bits for each pixel.
        let sums: [[i32; BLOCK]; TILE] = unsafe { std::mem::transmute(sums) };
        store.take(proof, first, &sums);
    }
}

/// A row is one register.
///
/// # Safety
/// `start + step < words.len()` for every start and step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni,avx2,fma")]
unsafe fn tiles_avx512_vnni(proof: Avx512Vnni, operands: Operands<'_>, store: &mut Store<'_, impl Output>) {
    use std::arch::x86_64::*;
    // As many as have their windows in registers too.
    const TILE: usize = 8;
    for first in (0..operands.starts.len()).step_by(TILE) {
        let windows = operands.windows::<TILE>(first);
        let mut sums = [_mm512_setzero_si512(); TILE];
        for (&step, row) in operands.steps.iter().zip(operands.panel) {
            // SAFETY: a row has the size of a register.
            let weights: __m512i = unsafe { std::mem::transmute(*row) };
            for p in 0..TILE {
                // SAFETY: `start + step < words.len()`, which the caller promises.
                let codes = _mm512_set1_epi32(unsafe { *windows[p].add(step as usize) } as i32);
                sums[p] = _mm512_dpbusd_epi32(sums[p], codes, weights);
            }
        }
        // SAFETY: both are 16 integers of 32 bits for each pixel.
        let sums: [[i32; BLOCK]; TILE] = unsafe { std::mem::transmute(sums) };
        store.take(proof, first, &sums);
    }
}

/// Computes the tiles of all starts and hands them to `store`.
///
/// # Panics
/// If a start plus a step is beyond the words.
fn run(tiles: Tiles, operands: Operands<'_>, store: &mut Store<'_, impl Output>) {
    let reach = |indices: &[u32]| indices.iter().copied().max().expect("a sum has summands") as usize;
    let last = reach(operands.starts) + reach(operands.steps);
    assert!(last < operands.words.len(), "a tap is outside of the image");
    // SAFETY: the bounds are checked above, and each variant has the proof of its instructions.
    unsafe {
        match tiles {
            Tiles::Plain => tiles_plain(operands, store),
            #[cfg(target_arch = "x86_64")]
            Tiles::Avx2Wide(proof) => tiles_avx2_wide(proof, operands, store),
            #[cfg(target_arch = "x86_64")]
            Tiles::Avx2(proof) => tiles_avx2(proof, operands, store),
            #[cfg(target_arch = "x86_64")]
            Tiles::Avx512Vnni(proof) => tiles_avx512_vnni(proof, operands, store),
            #[cfg(target_arch = "aarch64")]
            Tiles::Neon => aarch64::tiles_neon(operands, store),
            #[cfg(target_arch = "aarch64")]
            Tiles::Dotprod(_) => aarch64::tiles_dotprod::<false>(operands, store),
            #[cfg(target_arch = "aarch64")]
            Tiles::DotprodWide(_) => aarch64::tiles_dotprod::<true>(operands, store),
        }
    }
}
