//! Fake quantization, forward and backward in one pass each.

use rayon::prelude::*;

use crate::activation::{AffineGrid, ClipGrid, Pointwise, SignGrid, StepGrid, UnitGrid};
use crate::instructions::multiversion;
use crate::output::{Slot, collect};
use crate::task_items;

/// Values that one thread takes at a time. Sums are added up by these chunks, whatever the number of threads.
const CHUNK: usize = 1 << 14;

/// Which grid a learned parameter belongs to, and what its gradient is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Grid {
    /// `round(clip(x / s, q_min, q_max)) s` with a step `s` (LSQ; without bounds min-max): [`StepGrid`].
    Step {
        /// Smallest code.
        q_min: f32,
        /// Largest code.
        q_max: f32,
    },
    /// `round(clip(x, 0, a) / a n) / n a` with a clip value `a` (PACT): [`ClipGrid`].
    Clip {
        /// Steps of the grid.
        n: f32,
    },
    /// `sign(x) s` with a scale `s` and `sign(0) = 1`, weights of one bit: [`SignGrid`].
    Sign {
        /// Whether the gradient passes only where `|x / s| < 1` (LSQ), or everywhere (DoReFa, Zhou16 Eq. 7).
        is_bounded: bool,
    },
}

multiversion! {
    fn forward_chunk<A: Pointwise>(x: &[f32], activation: A, y: &mut [Slot]) {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write(activation.value(x));
        }
    }
}

/// Parallel sums of a chunk.
const LANES: usize = 16;

multiversion! {
    /// Writes `dx` and returns the gradient of the parameter.
    fn gradient_chunk<A: Pointwise>(x: &[f32], g: &[f32], activation: A, dx: &mut [Slot]) -> f32 {
        let mut sums = [0.0; LANES];
        let mut at = |i: usize, x: f32, g: f32, dx: &mut Slot| {
            sums[i] += g * activation.slope(x);
            dx.write(if activation.passes(x) { g } else { 0.0 });
        };
        let ((xs, x_rest), (gs, g_rest)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>());
        let (dxs, dx_rest) = dx.as_chunks_mut::<LANES>();
        for ((x, g), dx) in xs.iter().zip(gs).zip(dxs) {
            for i in 0..LANES {
                at(i, x[i], g[i], &mut dx[i]);
            }
        }
        for ((x, g), dx) in x_rest.iter().zip(g_rest).zip(dx_rest) {
            at(0, *x, *g, dx);
        }
        sums.iter().sum()
    }
}

/// Writes a value for each of as many values of `x`.
fn forward<A: Pointwise>(x: &[f32], activation: A, y: &mut [Slot]) {
    assert_eq!(x.len(), y.len(), "length of the result");
    let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
    chunks.with_min_len(task_items(CHUNK)).for_each(|(y, x)| forward_chunk(x, activation, y));
}

/// Writes a gradient for each of as many values of `x` and `g`; returns that of the parameter.
fn gradient<A: Pointwise>(x: &[f32], activation: A, g: &[f32], dx: &mut [Slot]) -> f32 {
    assert!(x.len() == g.len() && x.len() == dx.len(), "length of the gradients");
    let inputs = x.par_chunks(CHUNK).zip(g.par_chunks(CHUNK));
    let chunks = dx.par_chunks_mut(CHUNK).zip(inputs);
    let sums: Vec<f32> = chunks
        .with_min_len(task_items(CHUNK))
        .map(|(dx, (x, g))| gradient_chunk(x, g, activation, dx))
        .collect();
    sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() as f32
}

fn values<A: Pointwise>(x: &[f32], activation: A) -> Vec<f32> {
    // SAFETY: `forward` writes a value for each of `x`.
    unsafe { collect(x.len(), |y| forward(x, activation, y)) }
}

fn input_gradient<A: Pointwise>(x: &[f32], activation: A, g: &[f32]) -> Vec<f32> {
    assert_eq!(x.len(), g.len(), "length of the gradient");
    let write = |dx: &mut [Slot]| _ = gradient(x, activation, g, dx);
    // SAFETY: `gradient` writes a value for each of `x` and `g`, which are as long as each other.
    unsafe { collect(x.len(), write) }
}

/// `y = round(clip(x, 0, 1) n) / n`, the activations of DoReFa.
pub fn unit(x: &[f32], n: f32) -> Vec<f32> {
    values(x, UnitGrid { n })
}

/// `dx = g` where `0 <= x <= 1`, else 0.
///
/// # Panics
/// If the lengths differ.
pub fn unit_gradient(x: &[f32], g: &[f32]) -> Vec<f32> {
    input_gradient(x, UnitGrid { n: 1.0 }, g)
}

multiversion! {
    /// Smallest and largest of the values and 0; `NaN` if there is one.
    fn range_chunk(x: &[f32]) -> [f32; 2] {
        let (mut min, mut max, mut is_nan) = ([0.0f32; LANES], [0.0f32; LANES], [false; LANES]);
        let mut at = |i: usize, x: f32| {
            min[i] = if x < min[i] { x } else { min[i] };
            max[i] = if x > max[i] { x } else { max[i] };
            is_nan[i] |= x.is_nan();
        };
        let (blocks, rest) = x.as_chunks::<LANES>();
        for block in blocks {
            block.iter().enumerate().for_each(|(i, &x)| at(i, x));
        }
        rest.iter().for_each(|&x| at(0, x));
        match is_nan.contains(&true) {
            true => [f32::NAN; 2],
            false => [min.into_iter().fold(0.0, f32::min), max.into_iter().fold(0.0, f32::max)],
        }
    }
}

/// Smallest and largest of the values and 0: the range of min-max activations. `NaN` if there is one among them.
pub fn range(x: &[f32]) -> [f32; 2] {
    let chunks = x.par_chunks(CHUNK).with_min_len(task_items(CHUNK)).map(range_chunk);
    chunks.reduce(
        || [0.0; 2],
        |a, b| match a[0].is_nan() || b[0].is_nan() {
            true => [f32::NAN; 2],
            false => [a[0].min(b[0]), a[1].max(b[1])],
        },
    )
}

/// `y = (clip(round(x / s) + z, 0, n) - z) s`, min-max activations.
pub fn affine(x: &[f32], grid: AffineGrid) -> Vec<f32> {
    values(x, grid)
}

/// `dx = g` where the code was not clipped, else 0.
///
/// # Panics
/// If the lengths differ.
pub fn affine_gradient(x: &[f32], grid: AffineGrid, g: &[f32]) -> Vec<f32> {
    input_gradient(x, grid, g)
}

impl Grid {
    fn step(q_min: f32, q_max: f32, step_size: f32) -> StepGrid {
        assert!(q_min <= q_max, "bounds of the codes");
        StepGrid { step_size, q_min, q_max }
    }
}

/// Length of the rows of `x`, all of the same length, each with a parameter.
fn row(x: &[f32], parameters: &[f32]) -> usize {
    assert!(!parameters.is_empty() && x.len().is_multiple_of(parameters.len()), "rows of equal length");
    x.len() / parameters.len()
}

/// Fake quantization of `x`, whose rows of equal length have a parameter each.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn learned(x: &[f32], parameters: &[f32], grid: Grid) -> Vec<f32> {
    let row = row(x, parameters);
    let write = |y: &mut [Slot]| {
        let rows = y.par_chunks_mut(row.max(1)).zip(x.par_chunks(row.max(1))).zip(parameters);
        rows.with_min_len(task_items(row)).for_each(|((y, x), &parameter)| match grid {
            Grid::Step { q_min, q_max } => forward(x, Grid::step(q_min, q_max, parameter), y),
            Grid::Clip { n } => forward(x, ClipGrid { clip_value: parameter, n }, y),
            Grid::Sign { is_bounded } => forward(x, SignGrid { scale: parameter, is_bounded }, y),
        });
    };
    // SAFETY: there are as many rows of `row` values as parameters, of the result as of `x`, and `forward` writes a row.
    unsafe { collect(x.len(), write) }
}

/// The gradients of [`learned`].
pub struct LearnedGradients {
    /// Of the input.
    pub input: Vec<f32>,
    /// Of the parameters.
    pub parameters: Vec<f32>,
}

/// The gradients of `x` and of the parameters from the gradient `g` of [`learned`]'s result.
///
/// With `v = x / s`: `dx = g` where `q_min < v < q_max`, else 0; `ds = sum g (round(v) - v)` there and `sum g q` with
/// the bound `q` elsewhere (Esser20, Eq. 3 and 5). For a clip value: `dx = g` where `0 <= x < a`; `da = sum g` where `x >= a`
/// (Choi18, Eq. 3). For a sign that is bounded, `ds = sum g (sign(x) - v)` where `|v| < 1` and `sum g sign(x)` elsewhere, as for
/// the other steps; for one that is not, `dx = g` and `ds = sum g sign(x)`.
///
/// # Panics
/// If the lengths do not fit each other.
pub fn learned_gradients(x: &[f32], parameters: &[f32], grid: Grid, g: &[f32]) -> LearnedGradients {
    assert_eq!(x.len(), g.len(), "length of the gradient");
    let row = row(x, parameters);
    let mut of_parameters = vec![0.0; parameters.len()];
    let write = |dx: &mut [Slot]| {
        let [xs, gs] = [x, g].map(|values| values.par_chunks(row.max(1)));
        let rows = dx.par_chunks_mut(row.max(1)).zip(xs.zip(gs)).zip(parameters).zip(&mut of_parameters);
        rows.with_min_len(task_items(row)).for_each(|(((dx, (x, g)), &parameter), sum)| {
            *sum = match grid {
                Grid::Step { q_min, q_max } => gradient(x, Grid::step(q_min, q_max, parameter), g, dx),
                Grid::Clip { n } => gradient(x, ClipGrid { clip_value: parameter, n }, g, dx),
                Grid::Sign { is_bounded } => gradient(x, SignGrid { scale: parameter, is_bounded }, g, dx),
            };
        });
    };
    // SAFETY: there are as many rows of `row` values as parameters, of the result as of `x` and `g`, and `gradient` writes
    // a row.
    let input = unsafe { collect(x.len(), write) };
    LearnedGradients { input, parameters: of_parameters }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values around all ties and bounds of `scale`, the special ones, and random ones, of an odd number.
    fn values(scale: f32) -> Vec<f32> {
        let mut values = vec![0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, -1e-40, 1e30];
        for half in -300..=600 {
            let tie = half as f32 * 0.5 * scale;
            values.extend([tie, tie.next_up(), tie.next_down()]);
        }
        let mut state = 7u64;
        for _ in 0..2 * CHUNK + 5 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            values.push(((state >> 40) as f32 / (1 << 24) as f32 * 6.0 - 2.0) * scale * 3.0);
        }
        values
    }

    fn assert_same_bits(got: &[f32], expected: impl Iterator<Item = f32>) {
        let expected: Vec<f32> = expected.collect();
        assert_eq!(got.len(), expected.len(), "number of values");
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert_eq!(got.to_bits(), expected.to_bits(), "{i}: {got} {expected}");
        }
    }

    #[test]
    fn unit_grid_is_the_formula() {
        for n in [1.0, 3.0, 7.0, 15.0, 255.0] {
            let x = values(1.0 / n);
            let y = unit(&x, n);
            assert_same_bits(&y, x.iter().map(|x| (x.clamp(0.0, 1.0) * n).round_ties_even() / n));
            let g: Vec<f32> = x.iter().rev().map(|x| x.clamp(-2.0, 2.0)).collect();
            let dx = unit_gradient(&x, &g);
            let expected = x.iter().zip(&g).map(|(x, g)| if (0.0..=1.0).contains(x) { *g } else { 0.0 });
            assert_same_bits(&dx, expected);
        }
    }

    #[test]
    fn step_grid_is_the_formula() {
        for (q_min, q_max) in [(0.0, 1.0), (0.0, 3.0), (-2.0, 1.0), (-128.0, 127.0), (0.0, 255.0)] {
            for s in [0.1, 1.0, 0.37, 3e-3] {
                let x = values(s);
                let grid = Grid::Step { q_min, q_max };
                let y = learned(&x, &[s], grid);
                assert_same_bits(&y, x.iter().map(|x| (x / s).clamp(q_min, q_max).round_ties_even() * s));
                let g: Vec<f32> = x.iter().rev().map(|x| (x / s).clamp(-2.0, 2.0)).collect();
                let LearnedGradients { input: dx, parameters: ds } = learned_gradients(&x, &[s], grid, &g);
                let inside = |x: f32| x / s > q_min && x / s < q_max;
                assert_same_bits(&dx, x.iter().zip(&g).map(|(x, g)| if inside(*x) { *g } else { 0.0 }));
                let (mut sum, mut size) = (0.0, 0.0);
                for (&x, &g) in x.iter().zip(&g) {
                    let v = x / s;
                    let slope = v.clamp(q_min, q_max).round_ties_even() - if inside(x) { v } else { 0.0 };
                    sum += f64::from(slope) * f64::from(g);
                    size += (f64::from(slope) * f64::from(g)).abs();
                }
                // 1024 values for each lane of a chunk.
                assert!((f64::from(ds[0]) - sum).abs() <= 1e-5 * size, "{} {sum}", ds[0]);
            }
        }
    }

    #[test]
    fn clip_grid_is_the_formula() {
        for (a, n) in [(1.0, 1.0), (8.0, 3.0), (0.3, 15.0), (6.1, 255.0)] {
            let x = values(a / n);
            let y = learned(&x, &[a], Grid::Clip { n });
            // -0 stays, as in a comparison.
            let clipped = |x: f32| if x < 0.0 { 0.0 } else { x.min(a) };
            let value = |x: f32| (clipped(x) / a * n).round_ties_even() / n * a;
            assert_same_bits(&y, x.iter().map(|&x| value(x)));
            let g: Vec<f32> = x.iter().rev().map(|x| x.clamp(-2.0, 2.0)).collect();
            let LearnedGradients { input: dx, parameters: da } =
                learned_gradients(&x, &[a], Grid::Clip { n }, &g);
            assert_same_bits(&dx, x.iter().zip(&g).map(|(&x, &g)| if x >= 0.0 && x < a { g } else { 0.0 }));
            let above: f64 = x.iter().zip(&g).filter(|(x, _)| **x >= a).map(|(_, g)| f64::from(*g)).sum();
            assert!((f64::from(da[0]) - above).abs() <= 1e-2 * above.abs().max(1.0));
        }
    }

    #[test]
    fn sign_grid_is_the_formula() {
        for (s, is_bounded) in [(0.1, true), (0.1, false), (3.0, true), (0.37, false)] {
            let x = values(s);
            let grid = Grid::Sign { is_bounded };
            let y = learned(&x, &[s], grid);
            let sign = |x: f32| if x < 0.0 { -1.0 } else { 1.0 };
            assert_same_bits(&y, x.iter().map(|&x| sign(x) * s));
            let g: Vec<f32> = x.iter().rev().map(|x| (x / s).clamp(-2.0, 2.0)).collect();
            let LearnedGradients { input: dx, parameters: ds } = learned_gradients(&x, &[s], grid, &g);
            let inside = |x: f32| x / s > -1.0 && x / s < 1.0;
            let passes = |x: f32| !is_bounded || inside(x);
            assert_same_bits(&dx, x.iter().zip(&g).map(|(x, g)| if passes(*x) { *g } else { 0.0 }));
            let slope = |x: f32| sign(x) - if is_bounded && inside(x) { x / s } else { 0.0 };
            let products: Vec<f64> =
                x.iter().zip(&g).map(|(&x, &g)| f64::from(slope(x)) * f64::from(g)).collect();
            let size: f64 = products.iter().map(|product| product.abs()).sum();
            let sum: f64 = products.iter().sum();
            assert!((f64::from(ds[0]) - sum).abs() <= 1e-5 * size, "{} {sum}", ds[0]);
        }
        let unbounded = Grid::Sign { is_bounded: false };
        let y = learned(&[0.0, -0.0, f32::NAN], &[0.0], unbounded);
        let dx = learned_gradients(&[0.0, -0.0, 0.0], &[0.0], unbounded, &[1.0, 2.0, 3.0]).input;
        assert!(y[0] == 0.0 && y[1] == 0.0 && y[2].is_nan(), "{y:?}");
        assert_eq!(dx, [1.0, 2.0, 3.0], "the gradient of weights that are all zero");
    }

    #[test]
    fn affine_grid_is_the_formula() {
        for (scale, zero_point, n) in
            [(0.1, 0.0, 3.0), (0.37, 1.0, 1.0), (3e-3, 128.0, 255.0), (1.0, 15.0, 15.0)]
        {
            let grid = AffineGrid { scale, zero_point, n };
            let x = values(scale);
            let y = affine(&x, grid);
            let free = |x: f32| (x / scale).round_ties_even() + zero_point;
            assert_same_bits(&y, x.iter().map(|&x| (free(x).clamp(0.0, n) - zero_point) * scale));
            let g: Vec<f32> = x.iter().rev().map(|x| x.clamp(-2.0, 2.0)).collect();
            let dx = affine_gradient(&x, grid, &g);
            let expected =
                x.iter().zip(&g).map(|(&x, &g)| if (0.0..=n).contains(&free(x)) { g } else { 0.0 });
            assert_same_bits(&dx, expected);
        }
    }

    #[test]
    fn range_is_that_of_all_values_and_zero() {
        for n in [0, 1, 15, 16, 17, CHUNK, 5 * CHUNK + 3] {
            for place in [0, n / 2, n.saturating_sub(1)] {
                let mut x = vec![0.25; n];
                if n > 0 {
                    x[place] = -3.0;
                    x[n - 1 - place] = 7.0;
                }
                let expected = [0.0f32, 1.0].map(|i| {
                    let values = x.iter().copied().chain([0.0]);
                    if i == 0.0 { values.reduce(f32::min) } else { values.reduce(f32::max) }.expect("a zero")
                });
                assert_eq!(range(&x), expected, "{n} values, the smallest at {place}");
                if n > 0 {
                    x[place] = f32::NAN;
                    assert!(range(&x).iter().all(|bound| bound.is_nan()));
                }
            }
        }
        assert_eq!(range(&[2.0, 3.0]), [0.0, 3.0]);
        assert_eq!(range(&[-2.0, -3.0]), [-3.0, 0.0]);
    }

    #[test]
    fn rows_are_separate_tensors() {
        let (x, steps) = (values(0.1), [0.1, 0.2, 0.7]);
        let row = x.len() / 3;
        let x = &x[..3 * row];
        let g: Vec<f32> = x.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let grid = Grid::Step { q_min: -4.0, q_max: 3.0 };
        let y = learned(x, &steps, grid);
        let all = learned_gradients(x, &steps, grid, &g);
        for (i, &step) in steps.iter().enumerate() {
            let part = i * row..(i + 1) * row;
            let of_row = learned_gradients(&x[part.clone()], &[step], grid, &g[part.clone()]);
            assert_eq!(y[part.clone()], learned(&x[part.clone()], &[step], grid));
            assert_eq!(all.input[part], of_row.input);
            assert_eq!(all.parameters[i], of_row.parameters[0]);
        }
        assert!(learned(&[], &steps, grid).is_empty());
        assert_eq!(learned_gradients(&[], &steps, grid, &[]).parameters, [0.0; 3]);
    }
}
