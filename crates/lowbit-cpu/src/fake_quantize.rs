//! Fake quantization by any formula, forward and backward in one pass each.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use crate::activation::{Coding, Pointwise, write_coded};
use crate::codes::Coded;
use crate::instructions::multiversion;
use crate::output::{Slot, collect, collect_coded};
use crate::task_items;

/// Values that one thread takes at a time. Sums are added up by these chunks, whatever the number of threads.
const CHUNK: usize = 1 << 14;

/// Parallel sums of a chunk.
const LANES: usize = 16;

multiversion! {
    fn forward_chunk<A: Pointwise<P>, const P: usize>(x: &[f32], activation: A, p: [f32; P], y: &mut [Slot]) {
        for (y, &x) in y.iter_mut().zip(x) {
            y.write(activation.value(x, p));
        }
    }
}

multiversion! {
    /// Returns whether all are codes within the bounds.
    fn coded_chunk<A: Coding<P>, const P: usize>(
        x: &[f32], activation: A, p: [f32; P], bounds: [f32; 2], y: &mut [Slot], codes: &mut [Slot<u8>],
    ) -> bool {
        write_coded(activation, p, bounds, |x| x, x, y, codes)
    }
}

multiversion! {
    /// Writes `dx` and returns the gradients of the parameters.
    fn gradient_chunk<A: Pointwise<P>, const P: usize>(
        x: &[f32], g: &[f32], activation: A, p: [f32; P], dx: &mut [Slot],
    ) -> [f32; P] {
        let mut sums = [[0.0; LANES]; P];
        let mut at = |i: usize, x: f32, g: f32, dx: &mut Slot| {
            let (of_x, of_p) = activation.gradient(x, p, g);
            for (sums, of_p) in sums.iter_mut().zip(of_p) {
                sums[i] += of_p;
            }
            dx.write(of_x);
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
        sums.map(|sums| sums.iter().sum())
    }
}

/// Length of the rows of `x`, all of the same length, each with a number for each of `P` parameters, and how many rows there are.
fn rows<const P: usize>(x: &[f32], parameters: &[f32]) -> (usize, usize) {
    let n_rows = parameters.len().checked_div(P).unwrap_or(1);
    let fits = n_rows > 0 && (P == 0 || parameters.len() == n_rows * P) && x.len().is_multiple_of(n_rows);
    assert!(fits, "{} numbers for {P} parameters of {} values in rows", parameters.len(), x.len());
    (x.len() / n_rows, n_rows)
}

/// The parameters of a row.
fn row_parameters<const P: usize>(parameters: &[f32], n_rows: usize, row: usize) -> [f32; P] {
    std::array::from_fn(|i| parameters[i * n_rows + row])
}

/// The result for each of `x`, whose rows have parameters each.
pub(crate) fn forward<A: Pointwise<P>, const P: usize>(
    activation: A,
    x: &[f32],
    parameters: &[f32],
) -> Vec<f32> {
    let (row, n_rows) = rows::<P>(x, parameters);
    let write = |y: &mut [Slot]| {
        let rows = y.par_chunks_mut(row.max(1)).zip(x.par_chunks(row.max(1))).enumerate();
        rows.with_min_len(task_items(row)).for_each(|(i, (y, x))| {
            let p = row_parameters(parameters, n_rows, i);
            let chunks = y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK));
            chunks.with_min_len(task_items(CHUNK)).for_each(|(y, x)| forward_chunk(x, activation, p, y));
        });
    };
    // SAFETY: the result has rows and chunks like those of `x`, and each chunk is written.
    unsafe { collect(x.len(), write) }
}

/// The values of `x` on the grid, whose rows have parameters each, and their codes if all lie within the bounds; without bounds there are
/// none.
pub(crate) fn coded<A: Coding<P>, const P: usize>(
    activation: A,
    x: &[f32],
    parameters: &[f32],
    bounds: Option<[f32; 2]>,
) -> Coded {
    let Some(bounds) = bounds else {
        return Coded { values: forward(activation, x, parameters), codes: None };
    };
    let (row, n_rows) = rows::<P>(x, parameters);
    let write = |y: &mut [Slot], codes: &mut [Slot<u8>]| {
        let are_codes = AtomicBool::new(true);
        let results = y.par_chunks_mut(row.max(1)).zip(codes.par_chunks_mut(row.max(1)));
        let rows = results.zip(x.par_chunks(row.max(1))).enumerate();
        rows.with_min_len(task_items(row)).for_each(|(i, ((y, codes), x))| {
            let p = row_parameters(parameters, n_rows, i);
            let chunks = y.par_chunks_mut(CHUNK).zip(codes.par_chunks_mut(CHUNK)).zip(x.par_chunks(CHUNK));
            chunks.with_min_len(task_items(CHUNK)).for_each(|((y, codes), x)| {
                if !coded_chunk(x, activation, p, bounds, y, codes) {
                    are_codes.store(false, Ordering::Relaxed);
                }
            });
        });
        are_codes.into_inner()
    };
    // SAFETY: both results have rows and chunks like those of `x`, and each chunk is written.
    unsafe { collect_coded(x.len(), write) }
}

/// The gradients of a fake quantization.
#[derive(Debug)]
pub struct Gradients {
    /// Of the input.
    pub input: Vec<f32>,
    /// Of the parameters, in their order.
    pub parameters: Vec<f32>,
}

/// The gradients of `x` and of the parameters from the gradient `g` of the result.
pub(crate) fn gradients<A: Pointwise<P>, const P: usize>(
    activation: A,
    x: &[f32],
    parameters: &[f32],
    g: &[f32],
) -> Gradients {
    assert_eq!(x.len(), g.len(), "length of the gradient");
    let (row, n_rows) = rows::<P>(x, parameters);
    let mut of_rows = vec![[0.0; P]; n_rows];
    let write = |dx: &mut [Slot]| {
        let [xs, gs] = [x, g].map(|values| values.par_chunks(row.max(1)));
        let rows = dx.par_chunks_mut(row.max(1)).zip(xs.zip(gs)).zip(&mut of_rows).enumerate();
        rows.with_min_len(task_items(row)).for_each(|(i, ((dx, (x, g)), of_row))| {
            *of_row = row_gradients(activation, x, row_parameters(parameters, n_rows, i), g, dx);
        });
    };
    // SAFETY: the result has rows and chunks like those of `x` and `g`, and each chunk is written.
    let input = unsafe { collect(x.len(), write) };
    let parameters = (0..P).flat_map(|i| of_rows.iter().map(move |of_row| of_row[i])).collect();
    Gradients { input, parameters }
}

/// Writes the gradients of a row and returns those of its parameters.
fn row_gradients<A: Pointwise<P>, const P: usize>(
    activation: A,
    x: &[f32],
    p: [f32; P],
    g: &[f32],
    dx: &mut [Slot],
) -> [f32; P] {
    let inputs = x.par_chunks(CHUNK).zip(g.par_chunks(CHUNK));
    let chunks = dx.par_chunks_mut(CHUNK).zip(inputs);
    let sums: Vec<[f32; P]> = chunks
        .with_min_len(task_items(CHUNK))
        .map(|(dx, (x, g))| gradient_chunk(x, g, activation, p, dx))
        .collect();
    std::array::from_fn(|i| sums.iter().map(|sums| f64::from(sums[i])).sum::<f64>() as f32)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula::samples::{Interval, Step};
    use crate::formula::{AnyFormula, Mode};

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
    fn a_formula_is_computed_operation_by_operation() {
        for (q_min, q_max) in [(0.0, 1.0), (0.0, 3.0), (-2.0, 1.0), (-128.0, 127.0), (0.0, 255.0)] {
            for s in [0.1, 1.0, 0.37, 3e-3] {
                let x = values(s);
                let formula = AnyFormula::new(Step { q_min, q_max });
                let y = formula.forward(&x, &[s]);
                assert_same_bits(&y, x.iter().map(|x| (x / s).clamp(q_min, q_max).round_ties_even() * s));
                let g: Vec<f32> = x.iter().rev().map(|x| (x / s).clamp(-2.0, 2.0)).collect();
                let Gradients { input: dx, parameters: ds } = formula.gradients(&x, &[s], &g);
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

    /// Those of `forward` and of `Mode::Codes`, over rows and chunks.
    #[test]
    fn codes_are_those_of_the_values() {
        let x = values(0.1);
        let x = &x[..x.len() / 2 * 2];
        for (q_min, q_max) in [(0.0, 1.0), (0.0, 3.0), (-2.0, 1.0), (-128.0, 127.0), (0.0, 255.0)] {
            let formula = AnyFormula::new(Step { q_min, q_max });
            let range = q_min as i32..=q_max as i32;
            for steps in [&[0.1][..], &[0.1, 0.37]] {
                let coded = formula.coded(x, steps, Some(&range));
                assert_eq!(coded.values, formula.forward(x, steps));
                let codes = formula.with_mode(Mode::Codes).forward(x, steps);
                let codes: Vec<u8> = codes.iter().map(|code| *code as i32 as u8).collect();
                assert_eq!(coded.codes.expect("all are numbers"), codes);
                assert_eq!(formula.coded(x, steps, None).codes, None);
            }
        }
    }

    #[test]
    fn what_has_no_code_is_told() {
        let formula = AnyFormula::new(Step { q_min: 0.0, q_max: 3.0 });
        for place in [0, 1, CHUNK - 1, CHUNK, 2 * CHUNK + 4] {
            let mut x = vec![1.0; 2 * CHUNK + 5];
            assert!(formula.coded(&x, &[1.0], Some(&(0..=3))).codes.is_some());
            x[place] = f32::NAN;
            let coded = formula.coded(&x, &[1.0], Some(&(0..=3)));
            assert!(coded.codes.is_none() && coded.values[place].is_nan(), "NaN at {place}");
            // A grid that the formula does not keep to.
            x[place] = 3.0;
            assert!(formula.coded(&x, &[1.0], Some(&(0..=2))).codes.is_none(), "3 at {place}");
        }
        assert!(formula.coded(&[1.0], &[f32::NAN], Some(&(0..=3))).codes.is_none());
        assert!(formula.coded(&[1.0], &[1.0], Some(&(-255..=255))).codes.is_none());
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
        let (x, parameters) = (values(0.1), [0.1, 0.2, 0.7, 0.0, 0.05, -0.1]);
        let row = x.len() / 3;
        let x = &x[..3 * row];
        let g: Vec<f32> = x.iter().map(|x| x.clamp(-1.0, 1.0)).collect();
        let step = AnyFormula::new(Step { q_min: -4.0, q_max: 3.0 });
        for (formula, n) in [(step, 1), (AnyFormula::new(Interval { n: 3.0 }), 2)] {
            let all_parameters = &parameters[..3 * n];
            let y = formula.forward(x, all_parameters);
            let all = formula.gradients(x, all_parameters, &g);
            for i in 0..3 {
                let part = i * row..(i + 1) * row;
                let p: Vec<f32> = (0..n).map(|k| all_parameters[3 * k + i]).collect();
                let of_row = formula.gradients(&x[part.clone()], &p, &g[part.clone()]);
                assert_eq!(y[part.clone()], formula.forward(&x[part.clone()], &p));
                assert_eq!(all.input[part], of_row.input);
                let of_all: Vec<f32> = (0..n).map(|k| all.parameters[3 * k + i]).collect();
                assert_eq!(of_all, of_row.parameters, "{formula:?}, row {i}");
            }
            assert!(formula.forward(&[], all_parameters).is_empty());
            assert_eq!(formula.gradients(&[], all_parameters, &[]).parameters, vec![0.0; 3 * n]);
        }
    }

    #[test]
    #[should_panic(expected = "3 numbers for 2 parameters")]
    fn parameters_are_counted() {
        AnyFormula::new(Interval { n: 3.0 }).forward(&[1.0, 2.0, 3.0], &[1.0; 3]);
    }
}
