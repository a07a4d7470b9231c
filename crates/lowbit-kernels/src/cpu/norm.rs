//! Batch normalization in training with the ReLU that follows it, Ioffe and Szegedy 2015 (arXiv 1502.03167).
//!
//! All tensors are `[batch, channels, plane]`. A plane fits the nearest cache, so that two passes over it read memory
//! once.

use rayon::prelude::*;

use super::simd::{keep_if, multiversion};

/// What follows the normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(y, 0)`.
    Relu,
}

/// Sizes of a normalization.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// Images.
    pub batch: usize,
    /// Channels.
    pub channels: usize,
    /// Positions of a channel.
    pub plane: usize,
}

impl NormShape {
    /// The planes of one channel of `x`.
    fn planes<'a>(&self, x: &'a [f32], channel: usize) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        x.chunks_exact(self.plane).skip(channel).step_by(self.channels)
    }
}

/// Parallel sums of a plane.
const LANES: usize = 16;

multiversion! {
    fn sum(x: &[f32]) -> f32 {
        let (rows, rest) = x.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for row in rows {
            for v in 0..LANES {
                sums[v] += row[v];
            }
        }
        sums.iter().sum::<f32>() + rest.iter().sum::<f32>()
    }
}

multiversion! {
    fn squared_distance(x: &[f32], mean: f32) -> f32 {
        let (rows, rest) = x.as_chunks::<LANES>();
        let mut sums = [0.0; LANES];
        for row in rows {
            for v in 0..LANES {
                sums[v] += (row[v] - mean) * (row[v] - mean);
            }
        }
        sums.iter().sum::<f32>() + rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>()
    }
}

/// Mean and biased variance of every channel: `channels` means, then `channels` variances.
///
/// Planes are merged in double precision by the formula of Chan et al. 1979, which does not cancel.
pub fn statistics(shape: NormShape, x: &[f32]) -> Vec<f32> {
    let of_channel = |channel: usize| {
        let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for plane in shape.planes(x, channel) {
            let plane_n = plane.len() as f64;
            let plane_mean = f64::from(sum(plane)) / plane_n;
            let distance = plane_mean - mean;
            squares += f64::from(squared_distance(plane, plane_mean as f32))
                + distance * distance * n * plane_n / (n + plane_n);
            mean += distance * plane_n / (n + plane_n);
            n += plane_n;
        }
        (mean as f32, (squares / n) as f32)
    };
    let (mut means, variances): (Vec<f32>, Vec<f32>) =
        (0..shape.channels).into_par_iter().map(of_channel).unzip();
    means.extend(variances);
    means
}

/// The normalization as `y = x factor + offset` of one channel.
#[derive(Clone, Copy)]
struct Affine {
    factor: f32,
    offset: f32,
}

impl Affine {
    fn new(parameters: &NormParameters<'_>, channel: usize) -> Self {
        let channels = parameters.gamma.len();
        let (mean, variance) = (parameters.statistics[channel], parameters.statistics[channels + channel]);
        let factor = parameters.gamma[channel] / (variance + parameters.epsilon).sqrt();
        Self { factor, offset: parameters.beta[channel] - mean * factor }
    }
}

/// What a normalization applies.
#[derive(Clone, Copy)]
pub struct NormParameters<'a> {
    /// Learned factors, one for each channel.
    pub gamma: &'a [f32],
    /// Learned offsets.
    pub beta: &'a [f32],
    /// Means, then variances.
    pub statistics: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
    /// What follows.
    pub activation: Activation,
}

multiversion! {
    fn apply_plane(x: &[f32], affine: Affine, floor: f32, y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = (x * affine.factor + affine.offset).max(floor);
        }
    }
}

/// `y = activation((x - mean) / sqrt(variance + epsilon) gamma + beta)`.
pub fn apply(shape: NormShape, x: &[f32], parameters: NormParameters<'_>, y: &mut [f32]) {
    let floor = match parameters.activation {
        Activation::Identity => f32::NEG_INFINITY,
        Activation::Relu => 0.0,
    };
    let image = shape.channels * shape.plane;
    y.par_chunks_mut(image).zip(x.par_chunks(image)).for_each(|(y, x)| {
        let planes = y.chunks_exact_mut(shape.plane).zip(x.chunks_exact(shape.plane));
        for (channel, (y, x)) in planes.enumerate() {
            apply_plane(x, Affine::new(&parameters, channel), floor, y);
        }
    });
}

/// Values that a gradient is computed for at a time, on the stack.
const BLOCK: usize = 256;

multiversion! {
    /// Sums of `g'` and of `g' (x - mean)`, where `g'` is `g` that has passed the activation.
    fn gradient_sums(x: &[f32], g: &[f32], affine: Affine, floor: f32, mean: f32) -> [f32; 2] {
        let (mut sums, mut products) = ([0.0; LANES], [0.0; LANES]);
        // Zeros behind the last value add nothing.
        let (mut passed, mut distances) = ([0.0; BLOCK], [0.0; BLOCK]);
        for (x, g) in x.chunks(BLOCK).zip(g.chunks(BLOCK)) {
            for (((passed, distance), &x), &g) in passed.iter_mut().zip(&mut distances).zip(x).zip(g) {
                *passed = keep_if(x * affine.factor + affine.offset > floor, g);
                *distance = x - mean;
            }
            passed[x.len()..].fill(0.0);
            let (passed, _) = passed.as_chunks::<LANES>();
            let (distances, _) = distances.as_chunks::<LANES>();
            for (passed, distances) in passed.iter().zip(distances) {
                for v in 0..LANES {
                    sums[v] += passed[v];
                    products[v] += passed[v] * distances[v];
                }
            }
        }
        [sums.iter().sum(), products.iter().sum()]
    }
}

multiversion! {
    fn gradient_plane(x: &[f32], g: &[f32], affine: Affine, floor: f32, line: [f32; 2], dx: &mut [f32]) {
        let [slope, constant] = line;
        for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
            let passed = keep_if(x * affine.factor + affine.offset > floor, g);
            *dx = affine.factor * passed + (slope * x + constant);
        }
    }
}

/// The gradients of [`apply`] with the statistics of the batch.
pub struct NormGradients {
    /// Of `x`.
    pub x: Vec<f32>,
    /// Of `gamma`.
    pub gamma: Vec<f32>,
    /// Of `beta`.
    pub beta: Vec<f32>,
}

/// Gradients from the gradient `g` of the output.
///
/// With `x^ = (x - mean) / sqrt(variance + epsilon)`, `g'` the gradient before the activation and `n` the values of a
/// channel (Ioffe15, section 3):
/// ```text
/// dbeta = sum g'      dgamma = sum g' x^      dx = gamma / sqrt(variance + epsilon) (g' - dbeta / n - x^ dgamma / n)
/// ```
pub fn gradients(shape: NormShape, x: &[f32], g: &[f32], parameters: NormParameters<'_>) -> NormGradients {
    let floor = match parameters.activation {
        Activation::Identity => f32::NEG_INFINITY,
        Activation::Relu => 0.0,
    };
    let mean = |channel: usize| parameters.statistics[channel];
    let inverse_deviation =
        |channel: usize| 1.0 / (parameters.statistics[shape.channels + channel] + parameters.epsilon).sqrt();
    let of_channel = |channel: usize| {
        let affine = Affine::new(&parameters, channel);
        let mut sums = [0.0f64; 2];
        for (x, g) in shape.planes(x, channel).zip(shape.planes(g, channel)) {
            let plane = gradient_sums(x, g, affine, floor, mean(channel));
            sums.iter_mut().zip(plane).for_each(|(sum, value)| *sum += f64::from(value));
        }
        ((sums[1] * f64::from(inverse_deviation(channel))) as f32, sums[0] as f32)
    };
    let (gamma, beta): (Vec<f32>, Vec<f32>) = (0..shape.channels).into_par_iter().map(of_channel).unzip();
    let n = (shape.batch * shape.plane) as f32;
    // dx = factor g' + slope x + constant
    let line = |channel: usize| {
        let affine = Affine::new(&parameters, channel);
        let slope = -affine.factor * gamma[channel] / n * inverse_deviation(channel);
        [slope, -affine.factor * beta[channel] / n - slope * mean(channel)]
    };
    let lines: Vec<[f32; 2]> = (0..shape.channels).map(line).collect();
    let mut dx = vec![0.0; x.len()];
    let image = shape.channels * shape.plane;
    dx.par_chunks_mut(image).zip(x.par_chunks(image)).zip(g.par_chunks(image)).for_each(|((dx, x), g)| {
        let planes = dx.chunks_exact_mut(shape.plane).zip(x.chunks_exact(shape.plane));
        for (channel, ((dx, x), g)) in planes.zip(g.chunks_exact(shape.plane)).enumerate() {
            gradient_plane(x, g, Affine::new(&parameters, channel), floor, lines[channel], dx);
        }
    });
    NormGradients { x: dx, gamma, beta }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: u64, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 * 2.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Forward and gradients in double precision, by the definition.
    fn check(shape: NormShape, activation: Activation, seed: u64, shift: f32) {
        let n = shape.batch * shape.channels * shape.plane;
        let x: Vec<f32> = random(seed, n).into_iter().map(|x| x + shift).collect();
        let g = random(seed + 1, n);
        let (gamma, beta) = (random(seed + 2, shape.channels), random(seed + 3, shape.channels));
        let statistics = statistics(shape, &x);
        let parameters =
            NormParameters { gamma: &gamma, beta: &beta, statistics: &statistics, epsilon: 1e-5, activation };
        let mut y = vec![f32::NAN; n];
        apply(shape, &x, parameters, &mut y);
        let got = gradients(shape, &x, &g, parameters);
        let index = |b: usize, c: usize, p: usize| (b * shape.channels + c) * shape.plane + p;
        for c in 0..shape.channels {
            let all: Vec<usize> =
                (0..shape.batch).flat_map(|b| (0..shape.plane).map(move |p| index(b, c, p))).collect();
            let count = all.len() as f64;
            let at = |v: &[f32], i: usize| f64::from(v[i]);
            let mean = all.iter().map(|&i| at(&x, i)).sum::<f64>() / count;
            let variance = all.iter().map(|&i| (at(&x, i) - mean).powi(2)).sum::<f64>() / count;
            let deviation = (variance + 1e-5).sqrt();
            let close = |what: &str, got: f32, expected: f64, scale: f64| {
                let error = (f64::from(got) - expected).abs();
                // The mean is kept in single precision: its error grows with the distance from zero.
                assert!(
                    error <= 1e-5 * (1.0 + f64::from(shift.abs())) * scale.max(1.0),
                    "{what} {shape:?} {activation:?}: {got} {expected}"
                );
            };
            close("mean", statistics[c], mean, 1.0);
            close("variance", statistics[shape.channels + c], variance, 1.0);
            let normal = |i: usize| (at(&x, i) - mean) / deviation;
            let before = |i: usize| normal(i) * f64::from(gamma[c]) + f64::from(beta[c]);
            let passes = |i: usize| activation == Activation::Identity || before(i) > 0.0;
            let near_kink = |i: usize| activation == Activation::Relu && before(i).abs() < 1e-4;
            assert!(!all.iter().any(|&i| near_kink(i)), "choose another seed");
            let passed = |i: usize| if passes(i) { at(&g, i) } else { 0.0 };
            let dbeta: f64 = all.iter().map(|&i| passed(i)).sum();
            let dgamma: f64 = all.iter().map(|&i| passed(i) * normal(i)).sum();
            close("dbeta", got.beta[c], dbeta, count.sqrt());
            close("dgamma", got.gamma[c], dgamma, count.sqrt());
            for &i in &all {
                close("y", y[i], if passes(i) { before(i) } else { 0.0 }, 1.0 / deviation);
                let dx = f64::from(gamma[c]) / deviation
                    * (passed(i) - dbeta / count - normal(i) * dgamma / count);
                close("dx", got.x[i], dx, 1.0 / deviation);
            }
        }
    }

    #[test]
    fn equals_the_definition() {
        let shapes = [[1, 1, 2], [2, 3, 1], [3, 2, 17], [2, 5, 49], [4, 1, 64], [1, 2, 100]];
        for (i, [batch, channels, plane]) in shapes.into_iter().enumerate() {
            let shape = NormShape { batch, channels, plane };
            for seed in 0..4 {
                check(shape, Activation::Identity, 40 * i as u64 + 10 * seed, 0.0);
            }
            check(shape, Activation::Relu, 1000 + i as u64, 0.0);
            check(shape, Activation::Identity, 2000 + i as u64, 50.0);
        }
    }
}
