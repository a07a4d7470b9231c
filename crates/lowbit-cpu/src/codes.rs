//! From values of a grid to its integers.

/// How far from an integer a value divided by its scale may be. A fake quantizer's roundings are below 1e-4 at 8 bits.
const OFF_GRID: f32 = 1e-2;

/// 1.5 * 2^23: sums with it are rounded to integers, to even in a tie, whose lowest bits are at the end of the significand.
const INTEGERS: f32 = 12_582_912.0;

/// The integer from `least` to `largest` that `code` is, but for roundings; `fit` turns to 0 if it is none.
#[inline(always)]
pub fn integer(code: f32, least: f32, largest: f32, fit: &mut u32) -> f32 {
    let nearest = (code + INTEGERS) - INTEGERS;
    let bounded = if nearest > least { nearest } else { least };
    let bounded = if bounded < largest { bounded } else { largest };
    // Also false for what is beyond the bounds, or no number.
    *fit &= u32::from((code - bounded).abs() < OFF_GRID);
    bounded
}

/// The low byte of an integer from -128 to 255: its code in 8 bits, signed or not. Nothing is undefined for others.
#[inline(always)]
pub fn low_byte(integer: f32) -> u8 {
    (integer + INTEGERS).to_bits() as u8
}

/// An integer from 0 to 65535 as one of 16 bits. Nothing is undefined for others.
#[inline(always)]
pub fn low_half(integer: f32) -> u16 {
    (integer + INTEGERS).to_bits() as u16
}
