//! Sums of products of codes, for 16 pixels side by side in a register and eight channels of the output.
//!
//! A word of four channels of a pixel is multiplied by a word of weights, and the four products are added to a sum of 32 bits.

#[cfg(target_arch = "aarch64")]
mod aarch64;

use std::ops::Range;

use super::CodeBounds;
#[cfg(target_arch = "aarch64")]
use super::aarch64::{Dotprod, I8mm};
#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Avx512Vnni};
use crate::words::WORD;

/// Output channels that are computed together.
pub const CHANNELS: usize = 8;

/// Pixels in a register.
pub const LANES: usize = 16;

/// Registers of pixels that are computed together, at most.
pub const VECTORS: usize = 4;

/// A word of weights of each channel of a block.
pub type Row = [u8; WORD * CHANNELS];

/// Sums of pixels, for each channel.
pub type Sums = [[i32; VECTORS * LANES]; CHANNELS];

/// What the sums of a block of channels are computed from.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// Words of the pixels.
    pub words: &'a [u32],
    /// Where the words of the first pixel are that the sums begin with: one for each position of the kernel.
    pub taps: &'a [usize],
    /// From a word of a pixel to the next.
    pub stride: usize,
    /// For each tap, for each word.
    pub weights: &'a [Row],
    /// What the sums begin with.
    pub starts: &'a [i32; CHANNELS],
}

impl Operands<'_> {
    /// Words of a pixel.
    #[inline(always)]
    fn n_words(&self) -> usize {
        self.weights.len() / self.taps.len()
    }
}

/// What multiplies.
#[derive(Clone, Copy, Debug)]
pub enum Multiply {
    /// Whatever the compiler makes of loops; slower than single precision.
    Plain,
    /// Products of two channels in 16 bits each, summed up in 32.
    #[cfg(target_arch = "x86_64")]
    Avx2Wide(Avx2),
    /// Products of two channels summed up in 16 bits, of so many words, then in 32.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2, usize),
    /// Products of four channels summed up in 32 bits.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni(Avx512Vnni),
    /// Products of single channels summed up in 16 bits, of so many words, then in 32; both operands signed.
    #[cfg(target_arch = "aarch64")]
    Neon(usize),
    /// Products of four channels summed up in 32 bits, both operands signed.
    #[cfg(target_arch = "aarch64")]
    Dotprod(Dotprod),
    /// The same for activations beyond 127.
    #[cfg(target_arch = "aarch64")]
    DotprodWide(Dotprod),
    /// Products of eight channels summed up in 32 bits, of two pixels and two channels.
    #[cfg(target_arch = "aarch64")]
    I8mm(I8mm),
}

/// Fewest words summed up in 16 bits. With fewer, widening the sums costs as much as the products.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const FEWEST_STEPS: usize = 3;

impl Multiply {
    /// What this processor has and multiplies such codes, from the slowest to the fastest.
    pub fn serving(bounds: CodeBounds) -> impl Iterator<Item = Self> {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        let steps = bounds.steps();
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = bounds;
        let serving = [
            Some(Self::Plain),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().map(Self::Avx2Wide),
            #[cfg(target_arch = "x86_64")]
            Avx2::detect().filter(|_| steps >= FEWEST_STEPS).map(|proof| Self::Avx2(proof, steps)),
            #[cfg(target_arch = "x86_64")]
            Avx512Vnni::detect().map(Self::Avx512Vnni),
            // A sum has one product of a word, where it has two with AVX2.
            #[cfg(target_arch = "aarch64")]
            (bounds.are_signed() && steps >= FEWEST_STEPS).then_some(Self::Neon(steps.saturating_mul(2))),
            #[cfg(target_arch = "aarch64")]
            Dotprod::detect().map(if bounds.are_signed() { Self::Dotprod } else { Self::DotprodWide }),
            #[cfg(target_arch = "aarch64")]
            I8mm::detect().map(Self::I8mm),
        ];
        serving.into_iter().flatten()
    }

    /// The fastest for such codes on this processor.
    pub fn best(bounds: CodeBounds) -> Self {
        Self::serving(bounds).last().expect("the plain one serves always")
    }

    /// Whether it is faster than single precision.
    pub fn pays(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if matches!(self, Self::Avx2Wide(_)) {
            return false;
        }
        !matches!(self, Self::Plain)
    }

    /// Computes the sums of so many registers of pixels.
    ///
    /// # Panics
    /// If there are more than [`VECTORS`], or a word is beyond the words.
    pub fn run(self, operands: Operands<'_>, vectors: usize, sums: &mut Sums) {
        let last = operands.taps.iter().copied().max().expect("a kernel has a position");
        let last = last + (operands.n_words() - 1) * operands.stride + vectors * LANES;
        assert!(vectors <= VECTORS && last <= operands.words.len(), "words that there are");
        // SAFETY: all words are there, and each variant has the proof of its instructions.
        unsafe {
            match self {
                Self::Plain => plain(operands, vectors, sums),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2Wide(_) => {
                    for (sums, channel) in sums.iter_mut().zip(0..) {
                        (0..vectors).for_each(|vector| avx2_wide(operands, channel, vector, sums));
                    }
                }
                #[cfg(target_arch = "x86_64")]
                Self::Avx2(_, steps) => {
                    for (part, first) in sums.as_chunks_mut::<4>().0.iter_mut().zip([0, 4]) {
                        (0..vectors).for_each(|vector| avx2(operands, steps, first, vector, part));
                    }
                }
                #[cfg(target_arch = "x86_64")]
                Self::Avx512Vnni(_) => match vectors {
                    1 => avx512_vnni::<8, 1>(operands, 0, sums),
                    2 => avx512_vnni::<8, 2>(operands, 0, sums),
                    3 => avx512_vnni::<8, 3>(operands, 0, sums),
                    _ => {
                        for (half, first) in sums.as_chunks_mut::<4>().0.iter_mut().zip([0, 4]) {
                            avx512_vnni::<4, 4>(operands, first, half);
                        }
                    }
                },
                #[cfg(target_arch = "aarch64")]
                Self::Neon(steps) => {
                    (0..2 * vectors).for_each(|half| aarch64::neon(operands, steps, half, sums));
                }
                #[cfg(target_arch = "aarch64")]
                Self::Dotprod(_) => {
                    (0..2 * vectors).for_each(|half| aarch64::dotprod::<false>(operands, half, sums));
                }
                #[cfg(target_arch = "aarch64")]
                Self::DotprodWide(_) => {
                    let operands = Operands { starts: &aarch64::taken(operands), ..operands };
                    (0..2 * vectors).for_each(|half| aarch64::dotprod::<true>(operands, half, sums));
                }
                #[cfg(target_arch = "aarch64")]
                Self::I8mm(_) => (0..2 * vectors).for_each(|half| aarch64::i8mm(operands, half, sums)),
            }
        }
    }
}

/// A word of a channel's weights.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn word_of(row: &Row, channel: usize) -> i32 {
    i32::from_le_bytes(row.as_chunks::<WORD>().0[channel])
}

/// # Safety
/// All words of so many registers are there.
unsafe fn plain(operands: Operands<'_>, vectors: usize, sums: &mut Sums) {
    let n_words = operands.n_words();
    for vector in 0..vectors {
        let mut part: [[i32; LANES]; CHANNELS] = std::array::from_fn(|c| [operands.starts[c]; LANES]);
        for (tap, weights) in operands.taps.iter().zip(operands.weights.chunks_exact(n_words)) {
            for (word, weights) in weights.iter().enumerate() {
                let codes = &operands.words[tap + word * operands.stride + vector * LANES..][..LANES];
                for (sums, weights) in part.iter_mut().zip(weights.as_chunks::<WORD>().0) {
                    for (sum, codes) in sums.iter_mut().zip(codes) {
                        for (code, weight) in codes.to_le_bytes().iter().zip(weights) {
                            *sum += i32::from(*code) * i32::from(*weight as i8);
                        }
                    }
                }
            }
        }
        for (sums, part) in sums.iter_mut().zip(part) {
            sums[vector * LANES..][..LANES].copy_from_slice(&part);
        }
    }
}

/// Four channels from `first` on, of one register of pixels.
///
/// # Safety
/// All words of so many registers are there, and `steps` words of products fit 16 bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2(
    operands: Operands<'_>,
    steps: usize,
    first: usize,
    vector: usize,
    sums: &mut [[i32; VECTORS * LANES]; 4],
) {
    use std::arch::x86_64::*;
    let ones = _mm256_set1_epi16(1);
    let mut wide = [[_mm256_setzero_si256(); 2]; 4];
    for (wide, channel) in wide.iter_mut().zip(first..) {
        *wide = [_mm256_set1_epi32(operands.starts[channel]); 2];
    }
    let n_words = operands.n_words();
    for (tap, weights) in operands.taps.iter().zip(operands.weights.chunks_exact(n_words)) {
        let mut pixels = operands.words.as_ptr().wrapping_add(tap + vector * LANES);
        for weights in weights.chunks(steps) {
            let mut narrow = [[_mm256_setzero_si256(); 2]; 4];
            for weights in weights {
                // SAFETY: the caller promises that they are there; two registers are 16 words.
                let codes: [__m256i; 2] = unsafe { pixels.cast::<[__m256i; 2]>().read_unaligned() };
                pixels = pixels.wrapping_add(operands.stride);
                for (narrow, channel) in narrow.iter_mut().zip(first..) {
                    let weights = _mm256_set1_epi32(word_of(weights, channel));
                    for v in 0..2 {
                        narrow[v] = _mm256_add_epi16(narrow[v], _mm256_maddubs_epi16(codes[v], weights));
                    }
                }
            }
            for (wide, narrow) in wide.iter_mut().zip(narrow) {
                for v in 0..2 {
                    wide[v] = _mm256_add_epi32(wide[v], _mm256_madd_epi16(narrow[v], ones));
                }
            }
        }
    }
    for (sums, wide) in sums.iter_mut().zip(wide) {
        // SAFETY: two registers are 16 integers of 32 bits.
        let wide: [i32; LANES] = unsafe { std::mem::transmute(wide) };
        sums[vector * LANES..][..LANES].copy_from_slice(&wide);
    }
}

/// One channel of one register of pixels: codes of 8 bits, whose products do not fit sums of 16.
///
/// # Safety
/// All words of so many registers are there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2_wide(
    operands: Operands<'_>,
    channel: usize,
    vector: usize,
    sums: &mut [i32; VECTORS * LANES],
) {
    use std::arch::x86_64::*;
    let low = _mm256_set1_epi16(0xff);
    let mut all = [_mm256_set1_epi32(operands.starts[channel]); 2];
    let n_words = operands.n_words();
    for (tap, weights) in operands.taps.iter().zip(operands.weights.chunks_exact(n_words)) {
        let mut pixels = operands.words.as_ptr().wrapping_add(tap + vector * LANES);
        for weights in weights {
            // SAFETY: the caller promises that they are there; two registers are 16 words.
            let codes: [__m256i; 2] = unsafe { pixels.cast::<[__m256i; 2]>().read_unaligned() };
            pixels = pixels.wrapping_add(operands.stride);
            let weights = _mm256_set1_epi32(word_of(weights, channel));
            // Of the four channels of a word the first and the third, then the others, with their signs.
            let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(weights));
            let odd = _mm256_srai_epi16::<8>(weights);
            for v in 0..2 {
                let products = _mm256_add_epi32(
                    _mm256_madd_epi16(_mm256_and_si256(codes[v], low), even),
                    _mm256_madd_epi16(_mm256_srli_epi16::<8>(codes[v]), odd),
                );
                all[v] = _mm256_add_epi32(all[v], products);
            }
        }
    }
    // SAFETY: two registers are 16 integers of 32 bits.
    let all: [i32; LANES] = unsafe { std::mem::transmute(all) };
    sums[vector * LANES..][..LANES].copy_from_slice(&all);
}

/// `C` channels from `first` on, of `V` registers of pixels.
///
/// # Safety
/// All words of so many registers are there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn avx512_vnni<const C: usize, const V: usize>(
    operands: Operands<'_>,
    first: usize,
    sums: &mut [[i32; VECTORS * LANES]; C],
) {
    use std::arch::x86_64::*;
    let mut all = [[_mm512_setzero_si512(); V]; C];
    for (all, channel) in all.iter_mut().zip(first..) {
        *all = [_mm512_set1_epi32(operands.starts[channel]); V];
    }
    let n_words = operands.n_words();
    for (tap, weights) in operands.taps.iter().zip(operands.weights.chunks_exact(n_words)) {
        let mut pixels = operands.words.as_ptr().wrapping_add(*tap);
        for weights in weights {
            // SAFETY: the caller promises that they are there; a register is 16 words.
            let codes: [__m512i; V] =
                std::array::from_fn(|v| unsafe { _mm512_loadu_si512(pixels.add(v * LANES).cast()) });
            pixels = pixels.wrapping_add(operands.stride);
            for (all, channel) in all.iter_mut().zip(first..) {
                let weights = _mm512_set1_epi32(word_of(weights, channel));
                for v in 0..V {
                    all[v] = _mm512_dpbusd_epi32(all[v], codes[v], weights);
                }
            }
        }
    }
    for (sums, all) in sums.iter_mut().zip(all) {
        for (sums, all) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(all) {
            // SAFETY: a register is 16 integers of 32 bits.
            *sums = unsafe { std::mem::transmute::<__m512i, [i32; LANES]>(all) };
        }
    }
}

/// Parts of a range of so many, and one register more where the last one would be that alone.
pub fn groups(range: Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut next = range.start;
    std::iter::from_fn(move || {
        let left = range.end - next;
        let len = if left <= len + LANES { left } else { len };
        let group = next..next + len;
        next = group.end;
        (!group.is_empty()).then_some(group)
    })
}
