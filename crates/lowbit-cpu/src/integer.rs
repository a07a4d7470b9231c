//! Exact convolution of codes.
//!
//! Four channels of the input are one 32-bit word, and a step of the sum multiplies such a word by those of 16 output
//! channels. Processors with an instruction for the dot product of two words sum up in 32 bits; for AVX2 products are summed
//! up in 16 bits as long as they provably fit, then in 32.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::conv::{ConvShape, tables};
#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Avx512Vnni};
use crate::instructions::{Baseline, Instructions, multiversion};
use crate::output::{Slot, collect};
use crate::task_items;
use crate::tile::{BLOCK, store_transposed};
use crate::words::WORD;

/// Pixels of a task's share that are computed for one block of channels before the next.
const PIXELS: usize = 264;

/// A step of a panel: [`WORD`] weights for each of [`BLOCK`] channels.
type Row = [i8; WORD * BLOCK];

/// Codes that an operand may have, as far as they matter: the largest magnitudes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeBounds {
    /// Largest code of the activations.
    pub activation: u8,
    /// Largest magnitude of the codes of the weights.
    pub weight: u8,
}

impl CodeBounds {
    /// Steps after which sums of 16 bits may overflow: each step adds two products to a sum. 0 if one step may.
    fn steps(self) -> usize {
        let pair = 2 * usize::from(self.activation) * usize::from(self.weight);
        (i16::MAX as usize).checked_div(pair).unwrap_or(usize::MAX)
    }
}

/// Fewest steps summed up in 16 bits for which the kernel runs. With fewer, widening the sums costs as much as the products.
/// Measured: it pays at 1820 and 72 steps (2 and 4 bits).
#[cfg(target_arch = "x86_64")]
const FEWEST_STEPS: usize = 4;

/// What computes the tiles.
#[derive(Clone, Copy, Debug)]
enum Tiles {
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
    /// Products of four channels summed up in 32 bits, both operands signed.
    #[cfg(target_arch = "aarch64")]
    Dotprod(Dotprod),
}

impl Tiles {
    /// What this processor has and multiplies such codes, from the slowest to the fastest.
    fn serving(bounds: CodeBounds) -> impl Iterator<Item = Self> {
        let serving = [
            Some(Self::Plain),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Self::Avx2Wide),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().filter(|_| bounds.steps() >= FEWEST_STEPS).map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            Avx512Vnni::detect().map(Self::Avx512Vnni),
            #[cfg(target_arch = "aarch64")]
            Dotprod::detect().filter(|_| bounds.activation <= i8::MAX as u8).map(Self::Dotprod),
        ];
        serving.into_iter().flatten()
    }

    /// Whether they are faster than the convolution in single precision.
    fn pay(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if matches!(self, Self::Avx2Wide(_)) {
            return false;
        }
        !matches!(self, Self::Plain)
    }

    /// The fastest for such codes on this processor.
    fn best(bounds: CodeBounds) -> Self {
        Self::serving(bounds).last().expect("the plain ones serve always")
    }
}

/// Dot products of four bytes, which the processor has.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug)]
struct Dotprod(());

#[cfg(target_arch = "aarch64")]
impl Dotprod {
    fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("dotprod").then_some(Self(()))
    }
}

/// A convolution with its weights packed.
#[derive(Clone, Debug)]
pub struct IntegerConv {
    shape: ConvShape,
    tables: tables::Tables,
    /// Where each pixel is in a channel of words, image after image.
    word_targets: Vec<u32>,
    /// For each block of output channels, a row for each step.
    panels: Vec<Row>,
    /// Scale of the weights, for each output channel.
    scales: Vec<f32>,
    bounds: CodeBounds,
    tiles: Tiles,
    /// The code that is worth zero.
    zero_point: u8,
    /// What the sums have too much by it, for each output channel.
    offsets: Vec<i32>,
}

thread_local! {
    static WORDS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// What a tile is computed from.
#[derive(Clone, Copy)]
struct Operands<'a> {
    words: &'a [u32],
    starts: &'a [u32],
    steps: &'a [u32],
    panel: &'a [Row],
    /// Steps whose products can be summed up in 16 bits.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "other processors sum in 32 bits"))]
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

/// What becomes of sums.
trait Output: Sync {
    /// What the results are made of.
    type Item: Send;

    /// Channels that one result has.
    const CHANNELS: usize;

    /// Writes what becomes of the sums of `P` pixels and a block of channels. `out` begins with the first of these channels; `targets`
    /// are the places of the pixels in a channel, the last sums may be of none.
    fn write<I: Instructions, const P: usize>(
        &self,
        instructions: I,
        block: usize,
        sums: &[[i32; BLOCK]; P],
        targets: &[u32],
        out: &mut [Slot<Self::Item>],
    );
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

/// What the sums are worth.
struct Values<'a> {
    plane: usize,
    /// For each output channel.
    offsets: &'a [i32],
    /// For each output channel.
    scales: &'a [f32],
}

impl Output for Values<'_> {
    type Item = f32;
    const CHANNELS: usize = 1;

    #[inline(always)]
    fn write<I: Instructions, const P: usize>(
        &self,
        instructions: I,
        block: usize,
        sums: &[[i32; BLOCK]; P],
        targets: &[u32],
        out: &mut [Slot],
    ) {
        let (scales, n) = of_block(self.scales, block);
        let (offsets, _) = of_block(self.offsets, block);
        let mut values = [[0.0; BLOCK]; P];
        for (values, sums) in values.iter_mut().zip(sums) {
            for v in 0..BLOCK {
                values[v] = sums[v].wrapping_sub(offsets[v]) as f32 * scales[v];
            }
        }
        let start = targets[0] as usize;
        if targets.len() == P && targets[P - 1] as usize == start + P - 1 {
            return store_transposed(instructions, &values, &mut out[start..], self.plane, n);
        }
        for v in 0..n {
            for (values, &target) in values.iter().zip(targets) {
                out[v * self.plane + target as usize].write(values[v]);
            }
        }
    }
}

/// The numbers of a block of channels, zeros where there are fewer channels, and how many channels there are.
#[inline(always)]
fn of_block<T: Copy + Default>(numbers: &[T], block: usize) -> ([T; BLOCK], usize) {
    let numbers = &numbers[block * BLOCK..];
    let n = numbers.len().min(BLOCK);
    let mut result = [T::default(); BLOCK];
    result[..n].copy_from_slice(&numbers[..n]);
    (result, n)
}

/// At which of the levels of a quantizer a sum is, for each output channel.
///
/// The level of a sum is how many thresholds of its channel it has reached; a channel may count downwards, as one whose normalization
/// has a negative factor: there it is how many thresholds the sum with the other sign has reached.
#[derive(Clone, Debug)]
pub struct Levels {
    n_channels: usize,
    /// Thresholds of a channel.
    n_thresholds: usize,
    /// For each block of channels, -1 where a channel counts downwards, else 1.
    signs: Vec<[i32; BLOCK]>,
    /// For each block of channels, its thresholds in ascending order.
    thresholds: Vec<[i32; BLOCK]>,
    /// The code of each level; `None` if that is its number.
    codes: Option<Vec<u8>>,
}

impl Levels {
    /// For each channel whether it counts downwards, and its thresholds, ascending. [`i32::MAX`] is never reached. `codes` has the code of
    /// each level.
    ///
    /// # Panics
    /// If a channel has not one threshold fewer than there are codes, they do not ascend, or there are more than 256 codes.
    pub fn new(channels: &[(bool, Vec<i32>)], codes: Vec<u8>) -> Self {
        assert!((1..=256).contains(&codes.len()), "{} levels of codes with 8 bits", codes.len());
        let (n_channels, n_thresholds) = (channels.len(), codes.len() - 1);
        let (mut signs, mut all) = (Vec::new(), Vec::new());
        for block in channels.chunks(BLOCK) {
            let mut of_block = vec![[i32::MAX; BLOCK]; n_thresholds];
            let mut signs_of_block = [1; BLOCK];
            for (v, (downwards, thresholds)) in block.iter().enumerate() {
                assert_eq!(thresholds.len(), n_thresholds, "thresholds of a channel");
                assert!(thresholds.is_sorted(), "thresholds ascend");
                signs_of_block[v] = if *downwards { -1 } else { 1 };
                of_block.iter_mut().zip(thresholds).for_each(|(row, &threshold)| row[v] = threshold);
            }
            signs.push(signs_of_block);
            all.append(&mut of_block);
        }
        let are_numbers = codes.iter().enumerate().all(|(level, code)| usize::from(*code) == level);
        Self { n_channels, n_thresholds, signs, thresholds: all, codes: (!are_numbers).then_some(codes) }
    }
}

/// Thresholds up to which all are compared with; of more a half is left out each time.
const FEW: usize = 15;

/// How many thresholds each sum has reached, of at most [`FEW`].
#[inline(always)]
fn count_reached<I: Instructions>(sums: &[i32; BLOCK], rows: &[[i32; BLOCK]]) -> [u8; BLOCK] {
    #[cfg(target_arch = "x86_64")]
    if I::AVX2 {
        // SAFETY: the caller has a proof of instructions with AVX2 among them.
        return unsafe { count_reached_avx2(sums, rows) };
    }
    let mut levels = [0; BLOCK];
    for row in rows {
        for v in 0..BLOCK {
            levels[v] += u8::from(sums[v] >= row[v]);
        }
    }
    levels
}

/// The compiler makes no vector instructions of the loops of [`count_reached`] where they are inlined.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn count_reached_avx2(sums: &[i32; BLOCK], rows: &[[i32; BLOCK]]) -> [u8; BLOCK] {
    use std::arch::x86_64::*;
    // SAFETY: both are 16 integers of 32 bits.
    let sums: [__m256i; 2] = unsafe { std::mem::transmute(*sums) };
    let mut levels = [_mm256_set1_epi32(rows.len() as i32); 2];
    for row in rows {
        // SAFETY: both are 16 integers of 32 bits.
        let row: [__m256i; 2] = unsafe { std::mem::transmute(*row) };
        for v in 0..2 {
            // -1 for a threshold that is not reached.
            levels[v] = _mm256_add_epi32(levels[v], _mm256_cmpgt_epi32(row[v], sums[v]));
        }
    }
    // Halves of registers are packed side by side: the quarters are put in order.
    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(levels[0], levels[1]));
    let bytes = _mm_packus_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
    // SAFETY: both are 16 bytes.
    unsafe { std::mem::transmute(bytes) }
}

/// The codes of the levels of sums.
struct Coded<'a> {
    plane: usize,
    /// For each output channel.
    offsets: &'a [i32],
    levels: &'a Levels,
}

impl Output for Coded<'_> {
    type Item = [u8; WORD];
    const CHANNELS: usize = WORD;

    #[inline(always)]
    fn write<I: Instructions, const P: usize>(
        &self,
        _: I,
        block: usize,
        sums: &[[i32; BLOCK]; P],
        targets: &[u32],
        out: &mut [Slot<[u8; WORD]>],
    ) {
        let Levels { n_thresholds, signs, thresholds, codes, .. } = self.levels;
        let (offsets, n) = of_block(self.offsets, block);
        let (signs, rows) = (&signs[block], &thresholds[block * n_thresholds..][..*n_thresholds]);
        let mut bytes = [[0u8; BLOCK]; P];
        for (bytes, sums) in bytes.iter_mut().zip(sums) {
            let signed: [i32; BLOCK] = std::array::from_fn(|v| sums[v].wrapping_sub(offsets[v]) * signs[v]);
            *bytes = if *n_thresholds <= FEW {
                count_reached::<I>(&signed, rows)
            } else {
                std::array::from_fn(|v| rows.partition_point(|row| row[v] <= signed[v]) as u8)
            };
            if let Some(codes) = codes {
                bytes.iter_mut().for_each(|byte| *byte = codes[usize::from(*byte)]);
            }
        }
        for word in 0..n.div_ceil(WORD) {
            let plane = &mut out[word * self.plane..];
            for (bytes, &target) in bytes.iter().zip(targets) {
                plane[target as usize].write(bytes.as_chunks().0[word]);
            }
        }
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

/// The instruction has no stable intrinsic.
///
/// # Safety
/// `start + step < words.len()` for every start and step.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon,dotprod")]
unsafe fn tiles_dotprod(operands: Operands<'_>, store: &mut Store<'_, impl Output>) {
    use std::arch::aarch64::*;
    const TILE: usize = 6;
    const PARTS: usize = 4;
    for first in (0..operands.starts.len()).step_by(TILE) {
        let windows = operands.windows::<TILE>(first);
        let mut sums = [[vdupq_n_s32(0); PARTS]; TILE];
        for (&step, row) in operands.steps.iter().zip(operands.panel) {
            // SAFETY: a row has the size of four registers.
            let weights: [int8x16_t; PARTS] = unsafe { std::mem::transmute(*row) };
            for p in 0..TILE {
                // SAFETY: `start + step < words.len()`, which the caller promises.
                let codes = vdupq_n_u32(unsafe { *windows[p].add(step as usize) });
                for v in 0..PARTS {
                    // SAFETY: the instruction reads and writes these registers only, and the processor has it.
                    unsafe {
                        std::arch::asm!(
                            "sdot {sums:v}.4s, {weights:v}.16b, {codes:v}.16b",
                            sums = inout(vreg) sums[p][v],
                            weights = in(vreg) weights[v],
                            codes = in(vreg) codes,
                            options(pure, nomem, nostack, preserves_flags),
                        );
                    }
                }
            }
        }
        // SAFETY: both are 16 integers of 32 bits for each pixel.
        let sums: [[i32; BLOCK]; TILE] = unsafe { std::mem::transmute(sums) };
        store.take(Baseline, first, &sums);
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
            Tiles::Dotprod(_) => tiles_dotprod(operands, store),
        }
    }
}

/// The largest magnitude of a weight's code: that of -128.
const LARGEST_WEIGHT: u8 = i8::MIN.unsigned_abs();

/// The largest magnitude of a sum of codes within the bounds.
fn largest_sum(shape: &ConvShape, bounds: CodeBounds) -> u128 {
    (shape.in_channels * shape.taps()) as u128 * u128::from(bounds.activation) * u128::from(bounds.weight)
}

impl IntegerConv {
    /// Whether such codes can be convolved on any processor: without groups, of weights with 8 bits and their sign, and if no sum is
    /// beyond 32 bits.
    pub fn serves(shape: &ConvShape, bounds: CodeBounds) -> bool {
        shape.groups == 1 && bounds.weight <= LARGEST_WEIGHT && largest_sum(shape, bounds) <= i32::MAX as u128
    }

    /// Whether this is faster than the convolution in single precision, on this processor. It is not where most of the input,
    /// all of which becomes codes, is not read.
    pub fn pays(shape: &ConvShape, bounds: CodeBounds) -> bool {
        let skips = shape.taps() == 1 && shape.stride.iter().any(|&stride| stride > 1);
        let is_small = bounds.weight <= i8::MAX as u8;
        !skips && is_small && Self::serves(shape, bounds) && Tiles::best(bounds).pay()
    }

    /// Packs the codes of the weights, in two's complement and of the shape of [`ConvShape`]'s weight. A code is worth its
    /// scale: there is one for all or one for each output channel. `None` if a sum could be beyond 32 bits.
    ///
    /// # Panics
    /// If there are groups, a length does not fit the shape, the shape has a size of 0 but for the padding and the batch, or a code is
    /// beyond the bounds.
    pub fn new(shape: ConvShape, weight: &[u8], scales: &[f32], bounds: CodeBounds) -> Option<Self> {
        assert_eq!(shape.groups, 1, "codes are convolved without groups");
        shape.check_sizes();
        shape.check(shape.batch * shape.in_image(), weight.len());
        let taps = shape.taps();
        if largest_sum(&shape, bounds) > i32::MAX as u128 {
            return None;
        }
        let scales = match scales {
            [scale] => vec![*scale; shape.out_channels],
            _ => scales.to_vec(),
        };
        assert_eq!(scales.len(), shape.out_channels, "one scale, or one for each output channel");
        let largest = bounds.weight.min(LARGEST_WEIGHT);
        let is_within = |codes: &[u8]| magnitude(codes) <= largest;
        let n_words = shape.in_channels.div_ceil(WORD);
        let n_steps = n_words * taps;
        let mut panels = vec![[0; WORD * BLOCK]; shape.out_channels.div_ceil(BLOCK) * n_steps];
        let blocks = panels.par_chunks_mut(n_steps).zip(weight.par_chunks(BLOCK * shape.in_channels * taps));
        blocks.with_min_len(task_items(BLOCK * shape.in_channels * taps)).for_each(|(panel, weight)| {
            assert!(is_within(weight), "a code of the weights is beyond {largest}");
            for (channel, codes) in weight.chunks_exact(shape.in_channels * taps).enumerate() {
                for (c, codes) in codes.chunks_exact(taps).enumerate() {
                    let rows = &mut panel[c / WORD * taps..][..taps];
                    for (row, &code) in rows.iter_mut().zip(codes) {
                        row[channel * WORD + c % WORD] = code as i8;
                    }
                }
            }
        });
        let tables = tables::Tables::new(&ConvShape { in_channels: n_words, ..shape }, PIXELS);
        let out_words = shape.out_channels.div_ceil(WORD) * shape.out_plane();
        let word_targets = tables::targets(shape.out_plane(), out_words, tables.images);
        let tiles = Tiles::best(bounds);
        let offsets = vec![0; shape.out_channels];
        Some(Self { shape, tables, word_targets, panels, scales, bounds, tiles, zero_point: 0, offsets })
    }

    /// The same for codes of the input of which another than 0 is worth zero: sums are of distances from it, and it is what lies around
    /// the images.
    ///
    /// # Panics
    /// If it is beyond the bounds.
    pub fn with_zero_point(mut self, zero_point: u8) -> Self {
        assert!(zero_point <= self.bounds.activation, "a zero point beyond the codes");
        let n_steps = self.tables.steps.len();
        for (panel, offsets) in self.panels.chunks_exact(n_steps).zip(self.offsets.chunks_mut(BLOCK)) {
            for (channel, offset) in offsets.iter_mut().enumerate() {
                let weights = panel.iter().flat_map(|row| &row[channel * WORD..][..WORD]);
                // As many as fit a sum with the largest code.
                *offset = i32::from(zero_point) * weights.map(|weight| i32::from(*weight)).sum::<i32>();
            }
        }
        self.zero_point = zero_point;
        self
    }

    /// The convolution of the codes `input`, each worth the scale, of any number of images.
    ///
    /// The sum over codes is exact in 32 bits; its value in single precision is exact up to `2^24`.
    ///
    /// # Panics
    /// If the length does not fit the shape, or a code is beyond the bounds.
    pub fn forward(&self, input: &[u8], scale: f32) -> Vec<f32> {
        let scales: Vec<f32> = self.scales.iter().map(|weight| weight * scale).collect();
        self.values(Codes::Planes(input), &scales)
    }

    /// The same of words, see [`words`](crate::words), each code worth `scale`.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_words(&self, input: &[[u8; WORD]], scale: f32) -> Vec<f32> {
        let scales: Vec<f32> = self.scales.iter().map(|weight| weight * scale).collect();
        self.values(Codes::Words(input), &scales)
    }

    fn values(&self, input: Codes<'_>, scales: &[f32]) -> Vec<f32> {
        let output = Values { plane: self.shape.out_plane(), offsets: &self.offsets, scales };
        let n_images = self.n_images(input);
        // SAFETY: `run` writes all pixels, and `Values` all of a block's channels.
        unsafe { collect(n_images * self.shape.out_image(), |out| self.run(input, n_images, &output, out)) }
    }

    /// The codes of the levels of the sums of words: a convolution, a normalization and a quantizer without a number in single
    /// precision between them.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), or if the levels are of another number of channels.
    pub fn levels(&self, input: &[[u8; WORD]], levels: &Levels) -> Vec<[u8; WORD]> {
        assert_eq!(levels.n_channels, self.shape.out_channels, "channels of the levels");
        let plane = self.shape.out_plane();
        let output = Coded { plane, offsets: &self.offsets, levels };
        let input = Codes::Words(input);
        let n_images = self.n_images(input);
        let n_words = n_images * self.shape.out_channels.div_ceil(WORD) * plane;
        // SAFETY: `run` writes all pixels, and `Coded` all words of a block's channels.
        unsafe { collect(n_words, |out| self.run(input, n_images, &output, out)) }
    }

    /// What a code of the weights is worth, for each output channel.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The largest magnitude that a sum can have.
    pub fn largest_sum(&self) -> i32 {
        i32::try_from(largest_sum(&self.shape, self.bounds)).expect("invariant: sums fit 32 bits")
    }

    /// How many of `input` an image has.
    fn in_image(&self, input: Codes<'_>) -> usize {
        match input {
            Codes::Planes(_) => self.shape.in_image(),
            Codes::Words(_) => self.shape.in_channels.div_ceil(WORD) * self.shape.in_plane(),
        }
    }

    fn n_images(&self, input: Codes<'_>) -> usize {
        let in_image = self.in_image(input);
        assert!(input.len().is_multiple_of(in_image), "length of the input");
        input.len() / in_image
    }

    /// Writes what becomes of the sums of all images.
    fn run<O: Output>(&self, input: Codes<'_>, n_images: usize, output: &O, out: &mut [Slot<O::Item>]) {
        let (in_image, plane) = (self.in_image(input), self.shape.out_plane());
        let out_image = self.shape.out_channels.div_ceil(O::CHANNELS) * plane;
        let n_threads = rayon::current_num_threads();
        if n_images < n_threads && self.panels.len() > self.tables.steps.len() {
            // Images have fewer parts than threads: their channels are shared.
            for (out, image) in out.chunks_mut(out_image).zip(0..) {
                let mut words = WORDS.take();
                self.load(input.part(image * in_image..(image + 1) * in_image), &mut words);
                let blocks = out.par_chunks_mut(BLOCK / O::CHANNELS * plane).enumerate();
                blocks.for_each(|(block, out)| self.run_block(&words, block, 0..plane, output, out));
                WORDS.set(words);
            }
            return;
        }
        let together = self.tables.images.min(n_images / (2 * n_threads)).max(1);
        out.par_chunks_mut(together * out_image).enumerate().for_each(|(part, out)| {
            WORDS.with_borrow_mut(|words| {
                let first = part * together * in_image;
                let input = input.part(first..(first + together * in_image).min(input.len()));
                self.load(input, words);
                let values = input.len() / in_image * plane;
                for first in (0..values).step_by(PIXELS) {
                    let pixels = first..(first + PIXELS).min(values);
                    for block in 0..self.shape.out_channels.div_ceil(BLOCK) {
                        let out = &mut out[block * BLOCK / O::CHANNELS * plane..];
                        self.run_block(words, block, pixels.clone(), output, out);
                    }
                }
            });
        });
    }

    /// Writes these pixels of a block of channels, with which `out` begins.
    fn run_block<O: Output>(
        &self,
        words: &[u32],
        block: usize,
        pixels: std::ops::Range<usize>,
        output: &O,
        out: &mut [Slot<O::Item>],
    ) {
        let n_steps = self.tables.steps.len();
        let operands = Operands {
            words,
            starts: &self.tables.starts[pixels.clone()],
            steps: &self.tables.steps,
            panel: &self.panels[block * n_steps..][..n_steps],
            narrow_steps: self.bounds.steps(),
        };
        let all = if O::CHANNELS == 1 { &self.tables.targets } else { &self.word_targets };
        let targets = &all[pixels];
        run(self.tiles, operands, &mut Store { output, block, targets, out });
    }

    /// Copies the codes of images into words, with zeros around them and for the channels that fill the last word.
    fn load(&self, input: Codes<'_>, words: &mut Vec<u32>) {
        let largest = self.bounds.activation;
        assert!(
            largest == u8::MAX || maximum(input.bytes()) <= largest,
            "a code of the input is beyond {largest}"
        );
        let shape = &self.shape;
        let (plane, source) = (shape.in_plane(), &self.tables.source);
        let (in_image, width) = (self.in_image(input), shape.size[1]);
        words.clear();
        let zeros = u32::from_le_bytes([self.zero_point; WORD]);
        words.resize(input.len() / in_image * source.image_len(), zeros);
        let place = |image: usize, word: usize| {
            source.index(image, word, shape.padding[0], shape.padding[1]) as usize
        };
        match input {
            Codes::Planes(codes) => {
                for (image, input) in codes.chunks_exact(in_image).enumerate() {
                    for (word, channels) in input.chunks(WORD * plane).enumerate() {
                        join(channels, plane, width, source.row_len(), &mut words[place(image, word)..]);
                    }
                }
            }
            Codes::Words(codes) => {
                for (image, input) in codes.chunks_exact(in_image).enumerate() {
                    for (word, codes) in input.chunks_exact(plane).enumerate() {
                        let out = &mut words[place(image, word)..];
                        for (row, out) in codes.chunks_exact(width).zip(out.chunks_mut(source.row_len())) {
                            for (word, codes) in out.iter_mut().zip(row) {
                                *word = u32::from_le_bytes(*codes);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Codes of images.
#[derive(Clone, Copy)]
enum Codes<'a> {
    /// Channel after channel.
    Planes(&'a [u8]),
    /// Four channels together.
    Words(&'a [[u8; WORD]]),
}

impl Codes<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Planes(codes) => codes.len(),
            Self::Words(words) => words.len(),
        }
    }

    fn part(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::Planes(codes) => Self::Planes(&codes[range]),
            Self::Words(words) => Self::Words(&words[range]),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Planes(codes) => codes,
            Self::Words(words) => words.as_flattened(),
        }
    }
}

multiversion! {
    /// The largest code.
    fn maximum(codes: &[u8]) -> u8 {
        codes.iter().fold(0, |largest, &code| largest.max(code))
    }
}

multiversion! {
    /// The largest magnitude of codes in two's complement.
    fn magnitude(codes: &[u8]) -> u8 {
        codes.iter().fold(0, |largest, &code| largest.max((code as i8).unsigned_abs()))
    }
}

multiversion! {
    /// Joins up to [`WORD`] planes to words, whose rows lie `stride` words apart.
    fn join(channels: &[u8], plane: usize, width: usize, stride: usize, out: &mut [u32]) {
        if let Some((all, _)) = channels.split_at_checked(WORD * plane) {
            let (ab, cd) = all.split_at(2 * plane);
            let ((a, b), (c, d)) = (ab.split_at(plane), cd.split_at(plane));
            for (y, out) in out.chunks_mut(stride).enumerate().take(plane / width) {
                let row = y * width..(y + 1) * width;
                let (ab, cd) = (a[row.clone()].iter().zip(&b[row.clone()]), c[row.clone()].iter().zip(&d[row]));
                for (word, ((&a, &b), (&c, &d))) in out.iter_mut().zip(ab.zip(cd)) {
                    *word = u32::from_le_bytes([a, b, c, d]);
                }
            }
            return;
        }
        for (c, channel) in channels.chunks_exact(plane).enumerate() {
            for (row, out) in channel.chunks_exact(width).zip(out.chunks_mut(stride)) {
                for (word, &code) in out.iter_mut().zip(row) {
                    *word = *word & !(0xff << (8 * c)) | u32::from(code) << (8 * c);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
