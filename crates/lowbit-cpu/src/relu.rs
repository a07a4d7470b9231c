//! ReLU alone and of the sum of two maps, in place, and its gradient. `NaN` stays.

use rayon::prelude::*;

use crate::instructions::multiversion;
use crate::task_items;

/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 12;

/// `max(x, 0)`, never `-0`.
#[inline(always)]
fn above_zero(x: f32) -> f32 {
    if x > 0.0 || x.is_nan() { x } else { 0.0 }
}

multiversion! {
    fn relu_chunk(x: &mut [f32]) {
        for x in x {
            *x = above_zero(*x);
        }
    }
}

multiversion! {
    fn sum_chunk(x: &mut [f32], other: &[f32]) {
        for (x, other) in x.iter_mut().zip(other) {
            *x = above_zero(*x + *other);
        }
    }
}

multiversion! {
    fn gradient_chunk(y: &[f32], g: &mut [f32]) {
        for (g, y) in g.iter_mut().zip(y) {
            *g = if *y <= 0.0 { 0.0 } else { *g };
        }
    }
}

/// `max(x, 0)` in the place of `x`.
pub fn relu(x: &mut [f32]) {
    x.par_chunks_mut(CHUNK).with_min_len(task_items(CHUNK)).for_each(relu_chunk);
}

/// `max(x + other, 0)` in the place of `x`.
///
/// # Panics
/// If the lengths differ.
pub fn relu_of_sum(x: &mut [f32], other: &[f32]) {
    assert_eq!(x.len(), other.len(), "length of the other operand");
    let chunks = x.par_chunks_mut(CHUNK).zip(other.par_chunks(CHUNK));
    chunks.with_min_len(task_items(CHUNK)).for_each(|(x, other)| sum_chunk(x, other));
}

/// The gradient of the operands from the results `y` and the gradient `g` of these, in its place: zero where nothing came through.
///
/// # Panics
/// If the lengths differ.
pub fn gradient(y: &[f32], g: &mut [f32]) {
    assert_eq!(y.len(), g.len(), "length of the gradient");
    let chunks = g.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK));
    chunks.with_min_len(task_items(CHUNK)).for_each(|(g, y)| gradient_chunk(y, g));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_sums_are_zero_and_have_no_gradient() {
        let x = [1.0, -1.0, 0.0, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 2.5];
        let other = [-3.0, 2.0, 0.0, -0.0, 1.0, 1.0, 1.0, -2.5];
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for n in [8, 8 * 1000] {
            let repeated = |x: &[f32]| x.iter().copied().cycle().take(n).collect::<Vec<f32>>();
            let mut y = repeated(&x);
            relu(&mut y);
            let expected = [1.0, 0.0, 0.0, 0.0, f32::NAN, f32::INFINITY, 0.0, 2.5];
            assert_eq!(bits(&y), bits(&repeated(&expected)));
            let mut y = repeated(&x);
            relu_of_sum(&mut y, &repeated(&other));
            let expected = [0.0, 1.0, 0.0, 0.0, f32::NAN, f32::INFINITY, 0.0, 0.0];
            assert_eq!(bits(&y), bits(&repeated(&expected)));
            let mut g = vec![-7.0; n];
            gradient(&y, &mut g);
            assert_eq!(g, repeated(&[0.0, -7.0, 0.0, 0.0, -7.0, -7.0, 0.0, 0.0]));
        }
    }
}
