//! Fake quantization, forward and backward in one pass each.
//!
//! The forward pass computes what the formulas say operation by operation in single precision, so its codes are those of
//! any other implementation of them.

use rayon::prelude::*;

use super::simd::{keep_if, multiversion};

/// Values that one thread takes at a time. Sums are added up by these chunks, whatever the number of threads.
const CHUNK: usize = 1 << 14;

/// Which grid, and what its gradient is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Grid {
    /// `round(clip(x / s, q_min, q_max)) s` with a step `s` (LSQ; without bounds min-max).
    Step {
        /// Smallest code.
        q_min: f32,
        /// Largest code.
        q_max: f32,
    },
    /// `round(clip(x, 0, a) / a n) / n a` with a clip value `a` (PACT).
    Clip {
        /// Steps of the grid.
        n: f32,
    },
}

multiversion! {
    fn unit_chunk(x: &[f32], n: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x.clamp(0.0, 1.0) * n).round_ties_even() / n;
        }
    }
}

multiversion! {
    fn unit_gradient_chunk(x: &[f32], g: &[f32], dx: &mut [f32]) {
        for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
            *dx = keep_if((0.0..=1.0).contains(&x), g);
        }
    }
}

/// `y = round(clip(x, 0, 1) n) / n`, the activations of DoReFa.
pub fn unit(x: &[f32], n: f32, y: &mut [f32]) {
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| unit_chunk(x, n, y));
}

/// `dx = g` where `0 <= x <= 1`, else 0.
pub fn unit_gradient(x: &[f32], g: &[f32], dx: &mut [f32]) {
    let inputs = x.par_chunks(CHUNK).zip(g.par_chunks(CHUNK));
    dx.par_chunks_mut(CHUNK).zip(inputs).for_each(|(dx, (x, g))| unit_gradient_chunk(x, g, dx));
}

multiversion! {
    fn step_chunk(x: &[f32], s: f32, q_min: f32, q_max: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x / s).clamp(q_min, q_max).round_ties_even() * s;
        }
    }
}

multiversion! {
    fn clip_chunk(x: &[f32], a: f32, n: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let clipped = if x >= a { a } else { x.max(0.0) };
            let value = (clipped / a * n).round_ties_even() / n * a;
            // As the straight-through estimator computes it.
            *y = clipped + (value - clipped);
        }
    }
}

/// Parallel sums of a chunk.
const LANES: usize = 16;

multiversion! {
    /// Writes `dx` and returns the gradient of `s`.
    fn step_gradient_chunk(x: &[f32], g: &[f32], s: f32, q_min: f32, q_max: f32, dx: &mut [f32]) -> f32 {
        let mut sums = [0.0; LANES];
        let mut at = |i: usize, v: f32, g: f32, dx: &mut f32| {
            let inside = (q_min..=q_max).contains(&v);
            let clipped = v.clamp(q_min, q_max);
            let slope = clipped.round_ties_even() - keep_if(inside, v);
            sums[i] += g * slope;
            *dx = keep_if(inside, g);
        };
        let ((xs, x_rest), (gs, g_rest)) = (x.as_chunks::<LANES>(), g.as_chunks::<LANES>());
        let (dxs, dx_rest) = dx.as_chunks_mut::<LANES>();
        for ((x, g), dx) in xs.iter().zip(gs).zip(dxs) {
            for i in 0..LANES {
                at(i, x[i] / s, g[i], &mut dx[i]);
            }
        }
        for ((x, g), dx) in x_rest.iter().zip(g_rest).zip(dx_rest) {
            at(0, x / s, *g, dx);
        }
        sums.iter().sum()
    }
}

multiversion! {
    /// Writes `dx` and returns the gradient of `a`.
    fn clip_gradient_chunk(x: &[f32], g: &[f32], a: f32, dx: &mut [f32]) -> f32 {
        let mut sums = [0.0; LANES];
        let mut at = |i: usize, x: f32, g: f32, dx: &mut f32| {
            sums[i] += keep_if(x >= a, g);
            *dx = keep_if((0.0..a).contains(&x), g);
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

/// Fake quantization of `x`, whose rows of equal length have a parameter each.
pub fn learned(x: &[f32], parameters: &[f32], grid: Grid, y: &mut [f32]) {
    if x.is_empty() {
        return;
    }
    let row = x.len() / parameters.len();
    for ((x, y), &parameter) in x.chunks_exact(row).zip(y.chunks_exact_mut(row)).zip(parameters) {
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| match grid {
            Grid::Step { q_min, q_max } => step_chunk(x, parameter, q_min, q_max, y),
            Grid::Clip { n } => clip_chunk(x, parameter, n, y),
        });
    }
}

/// Writes the gradient of `x` and returns those of the parameters.
///
/// With `v = x / s`: `dx = g` where `q_min <= v <= q_max`, else 0; `ds = sum g (round(v) - v)` inside and `sum g q` with
/// the bound `q` outside (Esser20, Eq. 3). For a clip value: `dx = g` where `0 <= x < a`; `da = sum g` where `x >= a`
/// (Choi18, Eq. 3).
pub fn learned_gradient(x: &[f32], parameters: &[f32], grid: Grid, g: &[f32], dx: &mut [f32]) -> Vec<f32> {
    if x.is_empty() {
        return vec![0.0; parameters.len()];
    }
    let row = x.len() / parameters.len();
    let rows = x.chunks_exact(row).zip(g.chunks_exact(row)).zip(dx.chunks_exact_mut(row));
    rows.zip(parameters)
        .map(|(((x, g), dx), &parameter)| {
            let inputs = x.par_chunks(CHUNK).zip(g.par_chunks(CHUNK));
            let sums: Vec<f32> = dx
                .par_chunks_mut(CHUNK)
                .zip(inputs)
                .map(|(dx, (x, g))| match grid {
                    Grid::Step { q_min, q_max } => step_gradient_chunk(x, g, parameter, q_min, q_max, dx),
                    Grid::Clip { .. } => clip_gradient_chunk(x, g, parameter, dx),
                })
                .collect();
            sums.iter().map(|&sum| f64::from(sum)).sum::<f64>() as f32
        })
        .collect()
}
