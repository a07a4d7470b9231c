//! Rounding to bf16, whose numbers are those of single precision with 8 significant bits: their lower 16 bits are zero.

use rayon::prelude::*;

use crate::instructions::multiversion;
use crate::output::{Slot, collect};
use crate::task_items;

/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 12;

/// The nearest number of bf16, in operations that become vector instructions.
#[inline(always)]
pub(crate) fn round(x: f32) -> f32 {
    let bits = x.to_bits();
    // A half of the last place, less one where that place is even: of a tie, only an odd one is carried up. From the largest numbers
    // the carry makes infinity, as rounding to nearest does.
    let up = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // The bit of a quiet NaN: one whose other bits are all in the lower half would become infinity.
    let quiet = bits | 0x0040_0000;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    f32::from_bits((if is_nan { quiet } else { up }) & 0xffff_0000)
}

/// Terms that are a float.
#[cfg(target_arch = "x86_64")]
pub(crate) const TERMS: usize = 3;

/// What is left of a value behind its first `n` terms: each is the number of bf16 nearest to what the ones before it leave. Three
/// terms are all 24 significant bits of a float, but for what is subnormal, and what is beyond the largest number of bf16 and
/// becomes infinite.
#[inline(always)]
pub(crate) fn rest(x: f32, n: usize) -> f32 {
    let mut rest = x;
    for _ in 0..n {
        let term = round(rest);
        // Nothing is left of what is beyond the numbers of bf16.
        rest = if term.is_infinite() { 0.0 } else { rest - term };
    }
    rest
}

multiversion! {
    fn round_chunk(values: &[f32], rounded: &mut [Slot]) {
        for (rounded, &value) in rounded.iter_mut().zip(values) {
            rounded.write(round(value));
        }
    }
}

/// The numbers of bf16 nearest to `values`, of two that are equally near the one whose last bit is 0. Infinities stay, as does `NaN`, and
/// numbers beyond the largest of bf16 become infinite. Products of two such numbers are exact in single precision, unless they are beyond
/// its range or subnormal.
pub fn rounded(values: &[f32]) -> Vec<f32> {
    let write = |rounded: &mut [Slot]| {
        let chunks = rounded.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK));
        chunks.with_min_len(task_items(CHUNK)).for_each(|(rounded, values)| round_chunk(values, rounded));
    };
    // SAFETY: there is a value for each result, chunk by chunk.
    unsafe { collect(values.len(), write) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: of the two numbers of bf16 around `x`, the nearer one, by distances that are exact in double precision.
    fn nearest(x: f32) -> f32 {
        if x.is_infinite() {
            return x;
        }
        let upper = x.to_bits() & 0xffff_0000;
        let below = f64::from(f32::from_bits(upper));
        // Behind the largest number follows the power of two that stands for infinity.
        let next = f32::from_bits(upper + 0x1_0000);
        let above = if next.is_infinite() { 2f64.powi(128).copysign(f64::from(x)) } else { f64::from(next) };
        let (to_below, to_above) = ((f64::from(x) - below).abs(), (above - f64::from(x)).abs());
        let is_even = (upper >> 16).is_multiple_of(2);
        if to_below < to_above || (to_below == to_above && is_even) { f32::from_bits(upper) } else { next }
    }

    #[test]
    fn every_number_goes_to_the_nearest() {
        let lower = [0, 1, 0x1234, 0x7fff, 0x8000, 0x8001, 0xedcb, 0xffff];
        let values: Vec<f32> = (0..=0xffffu32)
            .flat_map(|upper| lower.map(|lower| f32::from_bits(upper << 16 | lower)))
            .collect();
        let got = rounded(&values);
        assert_eq!(got.len(), values.len());
        let mut n_nan = 0;
        for (&x, &got) in values.iter().zip(&got) {
            if x.is_nan() {
                n_nan += 1;
                assert!(got.is_nan() && got.is_sign_positive() == x.is_sign_positive(), "{:#x}", x.to_bits());
            } else {
                assert_eq!(got.to_bits(), nearest(x).to_bits(), "{:#x}", x.to_bits());
            }
            assert_eq!(got.to_bits() & 0xffff, 0, "{:#x}", x.to_bits());
        }
        // 128 upper halves of either sign have the exponent of NaN; of one, the number without lower bits is infinite.
        assert_eq!(n_nan, 2 * (128 * lower.len() - 1));
        assert_eq!(rounded(&got).len(), got.len());
        let again = rounded(&got);
        assert!(again.iter().zip(&got).all(|(again, got)| again.to_bits() == got.to_bits()));
    }

    #[test]
    fn three_terms_are_the_number() {
        for i in 0..1000 {
            let x = (i as f32 * 0.25 - 126.0).exp2() * if i % 2 == 0 { 1.1 } else { -0.7 };
            let terms = [0, 1, 2].map(|n| round(rest(x, n)));
            // Below, the last term is subnormal in bf16, whose numbers are further apart.
            let is_exact = x.abs() > 2f32.powi(-110);
            assert!(terms[0] + (terms[1] + terms[2]) == x || !is_exact, "{x}: {terms:?}");
        }
    }

    #[test]
    fn single_numbers() {
        let ulp = 2f32.powi(-7);
        let cases = [
            (0.0, 0.0),
            (-0.0, -0.0),
            (1.0 + ulp / 2.0, 1.0),
            (1.0 + 1.5 * ulp, 1.0 + 2.0 * ulp),
            (-1.0 - 0.5001 * ulp, -1.0 - ulp),
            (f32::MAX, f32::INFINITY),
            (f32::NEG_INFINITY, f32::NEG_INFINITY),
            // Half of the smallest number of bf16, and a little more.
            (f32::from_bits(0x8000), 0.0),
            (f32::from_bits(0x8001), f32::from_bits(0x1_0000)),
        ];
        for (x, expected) in cases {
            assert_eq!(rounded(&[x])[0].to_bits(), f32::to_bits(expected), "{x}");
        }
        assert_eq!(rounded(&[]), []);
    }
}
