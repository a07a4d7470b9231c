//! What the weights of DoReFa-Net, Zhou et al. 2016 (arXiv 1606.06160), Eq. 9, need beside a formula: the hyperbolic tangent and its
//! largest magnitude, by which all weights are divided, with the gradient through both.

use rayon::prelude::*;

use crate::instructions::multiversion;
use crate::output::{Slot, collect};
use crate::task_items;

/// Values that one thread takes at a time; sums are added up by these chunks, whatever the number of threads.
const CHUNK: usize = 1 << 12;

/// `max|tanh(w)|` and the first place of it, which takes the maximum's gradient. Made by [`squashed_max`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SquashedMax {
    /// The maximum.
    value: f32,
    /// Its first place.
    index: usize,
}

impl SquashedMax {
    /// `2 max`, or 1 if all weights are zero, which puts every code in the middle of the grid.
    pub fn divisor(self) -> f32 {
        if self.value == 0.0 { 1.0 } else { self.value * 2.0 }
    }
}

/// Whether the gradient flows through the maximum that normalizes the weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MaxGradient {
    /// Differentiated as written, as the code of Zhuang et al. does.
    #[default]
    Differentiated,
    /// The maximum is a constant of the backward pass.
    Detached,
}

/// `tanh(x)`, at most 1.3 units in the last place from the exact value, in operations that become vector instructions and
/// round alike in all of them. Polynomials (fitted to the least relative error): of `tanh(x)` below 0.625, of `exp` above.
#[inline(always)]
fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let small = {
        let z = a * a;
        let p = ((((-0.005_717_044_5 * z + 0.020_650_587) * z - 0.053_743_497) * z + 0.133_314_91) * z)
            - 0.333_332_84;
        a + a * z * p
    };
    let large = {
        // 1 - 2 / (exp(2 a) + 1); exp(y) = 2^n exp(r). Above 20 / 2 the result is 1. The comparison passes NaN on.
        let y = if a > 10.0 { 20.0 } else { a + a };
        // Added, 1.5 * 2^23 rounds to an integer, which is in the lowest bits.
        let shifted = y * std::f32::consts::LOG2_E + 12_582_912.0;
        let n = shifted - 12_582_912.0;
        let r = y - n * 0.693_359_4 - n * -2.121_944_4e-4;
        let p = (((0.001_395_047_9 * r + 0.008_368_882) * r + 0.041_666_206) * r + 0.166_665_2) * r + 0.5;
        let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
        1.0 - 2.0 / ((p * r * r + r + 1.0) * power + 1.0)
    };
    (if a < 0.625 { small } else { large }).copysign(x)
}

multiversion! {
    fn tanh_chunk(w: &[f32], squashed: &mut [Slot]) {
        for (t, &w) in squashed.iter_mut().zip(w) {
            t.write(tanh(w));
        }
    }
}

/// `tanh(w)`.
pub fn squash(w: &[f32]) -> Vec<f32> {
    let write = |squashed: &mut [Slot]| {
        let chunks = squashed.par_chunks_mut(CHUNK).zip(w.par_chunks(CHUNK));
        chunks.with_min_len(task_items(CHUNK)).for_each(|(squashed, w)| tanh_chunk(w, squashed));
    };
    // SAFETY: there is a weight for each value, chunk by chunk.
    unsafe { collect(w.len(), write) }
}

/// The largest magnitude of [`squash`]ed weights.
pub fn squashed_max(squashed: &[f32]) -> SquashedMax {
    let of_chunk = |(chunk, squashed): (usize, &[f32])| {
        let mut max = SquashedMax { value: 0.0, index: chunk * CHUNK };
        for (i, t) in squashed.iter().enumerate() {
            // NaN wins, as in burn, and stays.
            if t.abs() > max.value || (t.is_nan() && !max.value.is_nan()) {
                max = SquashedMax { value: t.abs(), index: chunk * CHUNK + i };
            }
        }
        max
    };
    let maxima: Vec<SquashedMax> =
        squashed.par_chunks(CHUNK).enumerate().with_min_len(task_items(CHUNK)).map(of_chunk).collect();
    let first = SquashedMax { value: 0.0, index: 0 };
    maxima.into_iter().fold(first, |best, max| {
        let is_better = max.value > best.value || (max.value.is_nan() && !best.value.is_nan());
        if is_better { max } else { best }
    })
}

/// Parallel sums of a chunk.
const LANES: usize = 16;

multiversion! {
    /// Writes `dw` without the part through the maximum and returns `sum g t`.
    fn gradient_chunk(squashed: &[f32], g: &[f32], divisor: f32, dw: &mut [Slot]) -> f32 {
        let mut sums = [0.0; LANES];
        let mut at = |i: usize, t: f32, g: f32, dw: &mut Slot| {
            sums[i] += g * t;
            dw.write(g * 2.0 / divisor * (1.0 - t * t));
        };
        let ((ts, t_rest), (gs, g_rest)) = (squashed.as_chunks::<LANES>(), g.as_chunks::<LANES>());
        let (dws, dw_rest) = dw.as_chunks_mut::<LANES>();
        for ((t, g), dw) in ts.iter().zip(gs).zip(dws) {
            for i in 0..LANES {
                at(i, t[i], g[i], &mut dw[i]);
            }
        }
        for ((t, g), dw) in t_rest.iter().zip(g_rest).zip(dw_rest) {
            at(0, *t, *g, dw);
        }
        sums.iter().sum()
    }
}

/// The gradient `dw` of the weights from the gradient `g` of the values on the grid, straight through the rounding.
///
/// # Equation
/// With `t = tanh(w)` and `m = max|t|`, reached first at `i`:
/// ```text
/// dw = g / m (1 - t^2)
/// dw[i] -= sign(t[i]) (1 - t[i]^2) / m^2 sum g t       if the maximum is differentiated
/// ```
///
/// # Panics
/// If the lengths differ, or if `max` is that of more weights.
pub fn dorefa_gradient(squashed: &[f32], max: SquashedMax, through_max: MaxGradient, g: &[f32]) -> Vec<f32> {
    assert_eq!(squashed.len(), g.len(), "length of the gradient");
    let divisor = max.divisor();
    let mut sums = Vec::new();
    let write = |dw: &mut [Slot]| {
        let inputs = squashed.par_chunks(CHUNK).zip(g.par_chunks(CHUNK));
        let chunks = dw.par_chunks_mut(CHUNK).zip(inputs).with_min_len(task_items(CHUNK));
        sums = chunks.map(|(dw, (t, g))| gradient_chunk(t, g, divisor, dw)).collect();
    };
    // SAFETY: there is a squashed weight and a gradient for each value, chunk by chunk.
    let mut dw = unsafe { collect(squashed.len(), write) };
    if through_max == MaxGradient::Detached || max.value == 0.0 || dw.is_empty() {
        return dw;
    }
    let sum: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
    let (t, m) = (f64::from(squashed[max.index]), f64::from(max.value));
    dw[max.index] -= (t.signum() * (1.0 - t * t) / (m * m) * sum) as f32;
    dw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(mut state: u64, n: usize) -> Vec<f32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 * 4.0 - 2.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn equals_the_equation_of_the_gradient() {
        for len in [1, 2, 17, CHUNK + 3, 3 * CHUNK, 1000] {
            for seed in 0..5 {
                let (w, g) = (random(seed, len), random(seed + 100, len));
                let squashed = squash(&w);
                let max = squashed_max(&squashed);
                let expected_max = squashed.iter().map(|t| t.abs()).fold(0.0, f32::max);
                assert_eq!(max.value, expected_max);
                assert_eq!(Some(max.index), squashed.iter().position(|t| t.abs() == expected_max));
                for through_max in [MaxGradient::Differentiated, MaxGradient::Detached] {
                    let dw = dorefa_gradient(&squashed, max, through_max, &g);
                    assert_eq!(dw.len(), len);
                    let t: Vec<f64> = w.iter().map(|w| f64::from(*w).tanh()).collect();
                    let m = t[max.index].abs();
                    let sum: f64 = t.iter().zip(&g).map(|(t, g)| t * f64::from(*g)).sum();
                    for i in 0..len {
                        let mut expected = f64::from(g[i]) / m * (1.0 - t[i] * t[i]);
                        if i == max.index && through_max == MaxGradient::Differentiated {
                            expected -= t[i].signum() * (1.0 - t[i] * t[i]) / (m * m) * sum;
                        }
                        // 1 - t^2 loses digits where |t| is near 1; the sum has errors of its terms' size.
                        let tolerance = 4e-6 * (1.0 + (len as f64).sqrt() * f64::from(i == max.index));
                        assert!((f64::from(dw[i]) - expected).abs() <= tolerance / m, "{} {expected}", dw[i]);
                    }
                }
            }
        }
    }

    #[test]
    fn tanh_is_within_two_units_in_the_last_place() {
        let grid = (-120_000..=120_000).map(|i| i as f32 * 1e-4);
        let extremes =
            [0.0, -0.0, f32::MIN_POSITIVE, 1e-40, 0.625, 9.01, 10.0, 20.0, 88.0, f32::MAX, f32::INFINITY];
        for x in grid.chain(extremes).chain(extremes.map(|x: f32| -x)) {
            let expected = f64::from(x).tanh();
            let unit = f64::from((expected.abs() as f32).next_up()) - f64::from(expected.abs() as f32);
            let error = (f64::from(tanh(x)) - expected).abs();
            assert!(error <= 1.5 * unit, "tanh({x}) = {}, not {expected}", tanh(x));
            assert_eq!(tanh(x).is_sign_negative(), x.is_sign_negative());
        }
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn weights_of_zero_are_divided_by_one() {
        let squashed = squash(&[0.0; 3]);
        let max = squashed_max(&squashed);
        assert_eq!(max.divisor(), 1.0);
        let dw = dorefa_gradient(&squashed, max, MaxGradient::Differentiated, &[1.0; 3]);
        assert_eq!(dw, [2.0; 3]);
        assert_eq!(squashed_max(&[]).value, 0.0);
    }

    /// Central differences of the surrogate, which leaves out the rounding.
    #[test]
    fn gradient_is_that_of_the_surrogate() {
        let (w, g) = (random(5, 20), random(6, 20));
        let surrogate = |w: &[f64]| -> f64 {
            let m = w.iter().map(|w| w.tanh().abs()).fold(0.0, f64::max);
            w.iter().zip(&g).map(|(w, g)| w.tanh() / m * f64::from(*g)).sum()
        };
        let squashed = squash(&w);
        let max = squashed_max(&squashed);
        let dw = dorefa_gradient(&squashed, max, MaxGradient::Differentiated, &g);
        let w: Vec<f64> = w.iter().map(|w| f64::from(*w)).collect();
        for i in 0..20 {
            let at = |h: f64| {
                let mut w = w.clone();
                w[i] += h;
                surrogate(&w)
            };
            let expected = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((f64::from(dw[i]) - expected).abs() < 1e-5, "{i}: {} {expected}", dw[i]);
        }
    }
}
