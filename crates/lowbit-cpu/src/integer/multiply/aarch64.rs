//! Sums of products for aarch64: of half a register of pixels at a time, whose words are two registers here.

use std::arch::aarch64::*;

use super::super::aarch64::{sdot, sdot_by, usmmla};
use super::{CHANNELS, LANES, Operands, Row, Sums};
use crate::words::WORD;

/// Registers of words, and of sums, of half of the pixels.
const QUADS: usize = 2;

/// The words of pixels, one after the other.
struct Words<'a> {
    operands: Operands<'a>,
    /// Taps that follow.
    taps: std::slice::Iter<'a, usize>,
    /// The next word, and how many are left of this tap.
    next: *const u32,
    left: usize,
    half: usize,
}

impl<'a> Words<'a> {
    #[inline(always)]
    fn new(operands: Operands<'a>, half: usize) -> Self {
        Self { operands, taps: operands.taps.iter(), next: std::ptr::null(), left: 0, half }
    }

    /// # Safety
    /// All words of these pixels are there.
    #[inline(always)]
    unsafe fn next(&mut self) -> [uint8x16_t; QUADS] {
        if self.left == 0 {
            let tap = self.taps.next().expect("invariant: each tap has its words");
            self.next = self.operands.words.as_ptr().wrapping_add(tap + self.half * LANES / 2);
            self.left = self.operands.n_words();
        }
        // SAFETY: the caller promises that they are there; two registers are eight words.
        let words = unsafe { self.next.cast::<[uint8x16_t; QUADS]>().read_unaligned() };
        self.next = self.next.wrapping_add(self.operands.stride);
        self.left -= 1;
        words
    }
}

/// The weights of a word, of four channels each.
#[inline(always)]
fn registers(row: &Row) -> [int8x16_t; CHANNELS / 4] {
    // SAFETY: both are 32 bytes.
    unsafe { std::mem::transmute(*row) }
}

/// Stores the sums of a channel.
#[inline(always)]
fn store(sums: &mut Sums, channel: usize, half: usize, quads: [int32x4_t; QUADS]) {
    // SAFETY: both are eight integers of 32 bits.
    sums[channel].as_chunks_mut().0[half] =
        unsafe { std::mem::transmute::<[int32x4_t; QUADS], [i32; LANES / 2]>(quads) };
}

/// Products of single channels are summed up in 16 bits, of so many words, then in 32.
///
/// # Safety
/// All words of these pixels are there, no code is beyond 127, and `steps` products fit 16 bits.
#[target_feature(enable = "neon")]
pub unsafe fn neon(operands: Operands<'_>, steps: usize, half: usize, sums: &mut Sums) {
    // As many channels as have their narrow sums in registers.
    const TOGETHER: usize = 4;
    for first in (0..CHANNELS).step_by(TOGETHER) {
        let mut wide = [[vdupq_n_s32(0); QUADS]; TOGETHER];
        for (wide, start) in wide.iter_mut().zip(&operands.starts[first..]) {
            *wide = [vdupq_n_s32(*start); QUADS];
        }
        let mut words = Words::new(operands, half);
        for weights in operands.weights.chunks(steps) {
            let mut narrow = [[[vdupq_n_s16(0); 2]; QUADS]; TOGETHER];
            for weights in weights {
                // SAFETY: the caller promises that they are there.
                let codes = unsafe { words.next() };
                let weights = &weights.as_chunks::<WORD>().0[first..];
                for (narrow, weights) in narrow.iter_mut().zip(weights) {
                    let weights = vreinterpret_s8_s32(vdup_n_s32(i32::from_le_bytes(*weights)));
                    for (narrow, codes) in narrow.iter_mut().zip(codes) {
                        let codes = vreinterpretq_s8_u8(codes);
                        narrow[0] = vmlal_s8(narrow[0], vget_low_s8(codes), weights);
                        narrow[1] = vmlal_s8(narrow[1], vget_high_s8(codes), weights);
                    }
                }
            }
            for (wide, narrow) in wide.as_flattened_mut().iter_mut().zip(narrow.as_flattened()) {
                let sums = vpaddq_s32(vpaddlq_s16(narrow[0]), vpaddlq_s16(narrow[1]));
                *wide = vaddq_s32(*wide, sums);
            }
        }
        for (channel, quads) in (first..).zip(wide) {
            store(sums, channel, half, quads);
        }
    }
}

/// Both operands are signed. Codes beyond 127 are `WIDE`: they are less by 128 when they are multiplied, and the sums begin with
/// [what that takes away](taken).
///
/// # Safety
/// All words of these pixels are there.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn dotprod<const WIDE: bool>(operands: Operands<'_>, half: usize, sums: &mut Sums) {
    let mut all = [[vdupq_n_s32(0); QUADS]; CHANNELS];
    for (all, start) in all.iter_mut().zip(operands.starts) {
        *all = [vdupq_n_s32(*start); QUADS];
    }
    let mut words = Words::new(operands, half);
    for weights in operands.weights {
        // SAFETY: the caller promises that they are there.
        let codes = unsafe { words.next() };
        for (all, weights) in all.as_chunks_mut::<4>().0.iter_mut().zip(registers(weights)) {
            for (v, codes) in codes.into_iter().enumerate() {
                let codes = if WIDE { veorq_u8(codes, vdupq_n_u8(128)) } else { codes };
                let codes = vreinterpretq_s8_u8(codes);
                all[0][v] = sdot_by::<0>(all[0][v], codes, weights);
                all[1][v] = sdot_by::<1>(all[1][v], codes, weights);
                all[2][v] = sdot_by::<2>(all[2][v], codes, weights);
                all[3][v] = sdot_by::<3>(all[3][v], codes, weights);
            }
        }
    }
    for (channel, quads) in all.into_iter().enumerate() {
        store(sums, channel, half, quads);
    }
}

/// What sums begin with whose codes are less by 128.
#[target_feature(enable = "neon,dotprod")]
pub fn taken(operands: Operands<'_>) -> [i32; CHANNELS] {
    let mut of_weights = [vdupq_n_s32(0); CHANNELS / 4];
    for weights in operands.weights {
        for (sum, weights) in of_weights.iter_mut().zip(registers(weights)) {
            *sum = sdot(*sum, weights, vdupq_n_s8(1));
        }
    }
    // SAFETY: both are eight integers of 32 bits.
    let of_weights: [i32; CHANNELS] = unsafe { std::mem::transmute(of_weights) };
    std::array::from_fn(|c| operands.starts[c].wrapping_add(of_weights[c].wrapping_mul(128)))
}

/// Two words at a time, of two pixels and two channels.
///
/// # Safety
/// All words of these pixels are there.
#[target_feature(enable = "neon,i8mm")]
pub unsafe fn i8mm(operands: Operands<'_>, half: usize, sums: &mut Sums) {
    // For each pair of pixels and of channels.
    let mut all = [[vdupq_n_s32(0); CHANNELS / 2]; LANES / 4];
    let mut words = Words::new(operands, half);
    let (pairs, rest) = operands.weights.as_chunks::<2>();
    for [first, second] in pairs {
        // SAFETY: the caller promises that they are there.
        let codes = unsafe { [words.next(), words.next()] };
        add_pairs(&mut all, codes, [registers(first), registers(second)]);
    }
    for first in rest {
        // SAFETY: as above.
        let codes = unsafe { words.next() };
        // Beside it is one that weighs nothing.
        add_pairs(&mut all, [codes, codes], [registers(first), [vdupq_n_s8(0); CHANNELS / 4]]);
    }
    // The sums of a pixel are those of the even channel, then of the odd one.
    for pair in 0..CHANNELS / 2 {
        let start = [operands.starts[2 * pair], operands.starts[2 * pair + 1]];
        let (mut even, mut odd) = ([vdupq_n_s32(start[0]); QUADS], [vdupq_n_s32(start[1]); QUADS]);
        for (quad, pixels) in all.as_chunks::<2>().0.iter().enumerate() {
            even[quad] = vaddq_s32(even[quad], vuzp1q_s32(pixels[0][pair], pixels[1][pair]));
            odd[quad] = vaddq_s32(odd[quad], vuzp2q_s32(pixels[0][pair], pixels[1][pair]));
        }
        store(sums, 2 * pair, half, even);
        store(sums, 2 * pair + 1, half, odd);
    }
}

/// Adds the products of two words.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn add_pairs(
    all: &mut [[int32x4_t; CHANNELS / 2]; LANES / 4],
    codes: [[uint8x16_t; QUADS]; 2],
    weights: [[int8x16_t; CHANNELS / 4]; 2],
) {
    // Of each pixel, and of each channel, the words come side by side.
    let mut of_channels = [vdupq_n_s8(0); CHANNELS / 2];
    for (v, pairs) in of_channels.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let (a, b) = (vreinterpretq_s32_s8(weights[0][v]), vreinterpretq_s32_s8(weights[1][v]));
        *pairs = [vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))];
    }
    for (v, all) in all.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let (a, b) = (vreinterpretq_u32_u8(codes[0][v]), vreinterpretq_u32_u8(codes[1][v]));
        let of_pixels = [vreinterpretq_u8_u32(vzip1q_u32(a, b)), vreinterpretq_u8_u32(vzip2q_u32(a, b))];
        for (all, pixels) in all.iter_mut().zip(of_pixels) {
            for (sums, channels) in all.iter_mut().zip(of_channels) {
                *sums = usmmla(*sums, pixels, channels);
            }
        }
    }
}
