//! Batch normalization with the activation that follows it, Ioffe and Szegedy 2015 (arXiv 1502.03167).
//!
//! All tensors are `[batch, channels, plane]`. The forward pass writes only the activation's result, and its codes; the backward pass
//! computes the rest again from the input, in the same operations, so that both agree on every rounding.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use crate::activation::{Coding, Identity, Pointwise, Relu, write_coded};
use crate::codes::Coded;
use crate::formula::AnyFormula;
use crate::instructions::multiversion;
use crate::output::{Slot, collect, collect_coded};
use crate::task_items;

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
    fn image(&self) -> usize {
        self.channels * self.plane
    }

    fn len(&self) -> usize {
        let image = self.channels.checked_mul(self.plane);
        image.and_then(|image| image.checked_mul(self.batch)).expect("the values can be counted")
    }

    /// Channels of a task, at least.
    fn task_channels(&self) -> usize {
        task_items(self.batch * self.plane)
    }

    /// Where the plane of a channel lies.
    #[inline(always)]
    fn range(&self, image: usize, channel: usize) -> std::ops::Range<usize> {
        let start = (image * self.channels + channel) * self.plane;
        start..start + self.plane
    }

    /// Images whose planes of a channel are summed up together in single precision: about as many values as the sums of
    /// [`LANES`] lanes take without losing digits, and few enough to stay in the nearest cache for a second pass.
    fn together(&self) -> usize {
        2048usize.div_ceil(self.plane.max(1))
    }
}

/// Parallel sums.
const LANES: usize = 16;

/// Adds a value of `f` for every value of `x`, the `i`-th to lane `i` modulo [`LANES`].
#[inline(always)]
fn add_lanes(x: &[f32], sums: &mut [f32; LANES], f: impl Fn(f32) -> f32) {
    let (rows, rest) = x.as_chunks::<LANES>();
    for row in rows {
        for v in 0..LANES {
            sums[v] += f(row[v]);
        }
    }
    for (sum, &x) in sums.iter_mut().zip(rest) {
        *sum += f(x);
    }
}

fn total(sums: &[f32; LANES]) -> f64 {
    sums.iter().map(|&sum| f64::from(sum)).sum()
}

multiversion! {
    /// Mean and biased variance of a channel; zeros without values.
    fn moments(shape: NormShape, x: &[f32], channel: usize) -> [f64; 2] {
        let (mut n, mut mean, mut squares) = (0.0, 0.0, 0.0);
        for first in (0..shape.batch).step_by(shape.together()) {
            let images = first..(first + shape.together()).min(shape.batch);
            let part_n = (images.len() * shape.plane) as f64;
            if part_n == 0.0 {
                continue;
            }
            let mut sums = [0.0; LANES];
            for image in images.clone() {
                add_lanes(&x[shape.range(image, channel)], &mut sums, |x| x);
            }
            let part_mean = total(&sums) / part_n;
            let center = part_mean as f32;
            let mut sums = [0.0; LANES];
            for image in images {
                add_lanes(&x[shape.range(image, channel)], &mut sums, |x| (x - center) * (x - center));
            }
            // The parts are merged by the formula of Chan et al. 1979, which does not cancel.
            let distance = part_mean - mean;
            squares += total(&sums) + distance * distance * n * part_n / (n + part_n);
            mean += distance * part_n / (n + part_n);
            n += part_n;
        }
        [mean, if n > 0.0 { squares / n } else { 0.0 }]
    }
}

/// Mean and biased variance of every channel: `channels` means, then `channels` variances.
///
/// # Panics
/// If `x` is not of the shape.
pub fn statistics(shape: NormShape, x: &[f32]) -> Vec<f32> {
    assert_eq!(x.len(), shape.len(), "length of the input");
    let of_channel = |channel| {
        let [mean, variance] = moments(shape, x, channel);
        (mean as f32, variance as f32)
    };
    let (mut means, variances): (Vec<f32>, Vec<f32>) =
        (0..shape.channels).into_par_iter().with_min_len(shape.task_channels()).map(of_channel).unzip();
    means.extend(variances);
    means
}

/// The means of [`statistics`], into `out`.
///
/// # Panics
/// As [`statistics`].
pub fn means(shape: NormShape, x: &[f32], out: &mut Vec<f32>) {
    assert_eq!(x.len(), shape.len(), "length of the input");
    out.resize(shape.channels, 0.0);
    let means = out.par_iter_mut().enumerate().with_min_len(shape.task_channels());
    means.for_each(|(channel, mean)| *mean = moments(shape, x, channel)[0] as f32);
}

/// What follows a normalization.
#[derive(Clone, Copy, Debug)]
pub enum Activation<'a> {
    /// `x`.
    Identity,
    /// `max(x, 0)`; the gradient passes where `x > 0`.
    Relu,
    /// A quantizer, with a number for each of its parameters, and its smallest and largest code if codes are asked for.
    Formula(&'a AnyFormula, &'a [f32], Option<&'a RangeInclusive<i32>>),
}

/// What a normalization applies.
#[derive(Clone, Copy, Debug)]
pub struct NormParameters<'a> {
    /// Learned factors, one for each channel.
    pub gamma: &'a [f32],
    /// Learned offsets.
    pub beta: &'a [f32],
    /// Means, then variances: of the batch, or fixed ones for evaluation.
    pub statistics: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

impl NormParameters<'_> {
    fn affines(&self, shape: NormShape) -> Vec<Affine> {
        let channels = shape.channels;
        assert!(
            self.gamma.len() == channels && self.beta.len() == channels,
            "a factor and an offset per channel"
        );
        assert_eq!(self.statistics.len(), 2 * channels, "a mean and a variance per channel");
        (0..channels).map(|channel| self.affine(channel)).collect()
    }

    /// The normalization of one channel.
    ///
    /// # Panics
    /// If there is no such channel.
    pub fn affine(&self, channel: usize) -> Affine {
        let deviation = (self.statistics[self.gamma.len() + channel] + self.epsilon).sqrt();
        let factor = self.gamma[channel] / deviation;
        Affine { mean: self.statistics[channel], deviation, factor, offset: self.beta[channel] }
    }
}

/// The normalization of one channel.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    mean: f32,
    deviation: f32,
    /// What the distance from the mean is multiplied by.
    pub factor: f32,
    offset: f32,
}

impl Affine {
    /// `(x - mean) * factor + offset`, of what was divided by its deviation before.
    pub fn new(mean: f32, factor: f32, offset: f32) -> Self {
        Self { mean, deviation: 1.0, factor, offset }
    }

    /// The normalized value, by the operations of [`apply`].
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        (x - self.mean) * self.factor + self.offset
    }
}

multiversion! {
    fn apply_image<A: Pointwise<P>, const P: usize>(
        x: &[f32], affines: &[Affine], activation: A, p: [f32; P], y: &mut [Slot],
    ) {
        let plane = x.len() / affines.len();
        for ((x, y), &affine) in x.chunks_exact(plane).zip(y.chunks_exact_mut(plane)).zip(affines) {
            for (y, &x) in y.iter_mut().zip(x) {
                y.write(activation.value(affine.apply(x), p));
            }
        }
    }
}

multiversion! {
    /// Returns whether all are codes within the bounds.
    fn coded_image<A: Coding<P>, const P: usize>(
        x: &[f32], affines: &[Affine], activation: A, p: [f32; P], bounds: [f32; 2], y: &mut [Slot], codes: &mut [Slot<u8>],
    ) -> bool {
        let plane = x.len() / affines.len();
        let mut are_codes = true;
        let planes = y.chunks_exact_mut(plane).zip(codes.chunks_exact_mut(plane)).zip(x.chunks_exact(plane));
        for (((y, codes), x), &affine) in planes.zip(affines) {
            are_codes &= write_coded(activation, p, bounds, |x| affine.apply(x), x, y, codes);
        }
        are_codes
    }
}

/// Normalization and activation; codes where the activation is a quantizer.
///
/// # Equation
/// `y = activation((x - mean) gamma / sqrt(variance + epsilon) + beta)`
///
/// # Panics
/// If a length does not fit the shape.
pub fn apply(
    shape: NormShape,
    x: &[f32],
    parameters: NormParameters<'_>,
    activation: Activation<'_>,
) -> Coded {
    let of_values = |values| Coded { values, codes: None };
    match activation {
        Activation::Identity => of_values(apply_with(Identity, [], shape, x, parameters)),
        Activation::Relu => of_values(apply_with(Relu, [], shape, x, parameters)),
        Activation::Formula(formula, p, codes) => formula.normalized(shape, x, parameters, p, codes),
    }
}

/// [`apply`] of a quantizer, with codes if all lie within the bounds.
pub(crate) fn coded_with<A: Coding<P>, const P: usize>(
    activation: A,
    p: [f32; P],
    shape: NormShape,
    x: &[f32],
    parameters: NormParameters<'_>,
    bounds: Option<[f32; 2]>,
) -> Coded {
    let bounds = match bounds {
        Some(bounds) if !x.is_empty() => bounds,
        _ => return Coded { values: apply_with(activation, p, shape, x, parameters), codes: None },
    };
    assert_eq!(x.len(), shape.len(), "length of the input");
    let affines = parameters.affines(shape);
    let write = |y: &mut [Slot], codes: &mut [Slot<u8>]| {
        let are_codes = AtomicBool::new(true);
        let results = y.par_chunks_mut(shape.image()).zip(codes.par_chunks_mut(shape.image()));
        let images = results.zip(x.par_chunks(shape.image())).with_min_len(task_items(shape.image()));
        images.for_each(|((y, codes), x)| {
            if !coded_image(x, &affines, activation, p, bounds, y, codes) {
                are_codes.store(false, Ordering::Relaxed);
            }
        });
        are_codes.into_inner()
    };
    // SAFETY: `x` is as long, and each of its images has as many planes as there are channels.
    unsafe { collect_coded(x.len(), write) }
}

/// [`apply`] of one kind of activation.
pub(crate) fn apply_with<A: Pointwise<P>, const P: usize>(
    activation: A,
    p: [f32; P],
    shape: NormShape,
    x: &[f32],
    parameters: NormParameters<'_>,
) -> Vec<f32> {
    assert_eq!(x.len(), shape.len(), "length of the input");
    let affines = parameters.affines(shape);
    if x.is_empty() {
        return Vec::new();
    }
    let write = |y: &mut [Slot]| {
        let images = y.par_chunks_mut(shape.image()).zip(x.par_chunks(shape.image()));
        let images = images.with_min_len(task_items(shape.image()));
        images.for_each(|(y, x)| apply_image(x, &affines, activation, p, y));
    };
    // SAFETY: `x` is as long, and each of its images has as many planes as there are channels.
    unsafe { collect(x.len(), write) }
}

/// Sums over a channel that its gradients are made of; `g'` is the gradient before the activation.
#[derive(Clone, Copy)]
struct Sums<const P: usize> {
    /// Of `g'`.
    g: f64,
    /// Of `g' (x - mean)`.
    gx: f64,
    /// Of the gradients of the activation's parameters.
    parameters: [f64; P],
}

multiversion! {
    fn channel_sums<A: Pointwise<P>, const P: usize>(
        shape: NormShape, x: &[f32], g: &[f32], channel: usize, affine: Affine, activation: A, p: [f32; P],
    ) -> Sums<P> {
        let mut result = Sums { g: 0.0, gx: 0.0, parameters: [0.0; P] };
        for first in (0..shape.batch).step_by(shape.together()) {
            let (mut sums, mut of_parameters) = ([[0.0; LANES]; 2], [[0.0; LANES]; P]);
            let mut at = |lane: usize, x: f32, g: f32| {
                let (passed, of_p) = activation.gradient(affine.apply(x), p, g);
                sums[0][lane] += passed;
                sums[1][lane] += passed * (x - affine.mean);
                for (sums, of_p) in of_parameters.iter_mut().zip(of_p) {
                    sums[lane] += of_p;
                }
            };
            for image in first..(first + shape.together()).min(shape.batch) {
                let range = shape.range(image, channel);
                let ((xs, x_rest), (gs, g_rest)) =
                    (x[range.clone()].as_chunks::<LANES>(), g[range].as_chunks::<LANES>());
                for (x, g) in xs.iter().zip(gs) {
                    for v in 0..LANES {
                        at(v, x[v], g[v]);
                    }
                }
                for (v, (&x, &g)) in x_rest.iter().zip(g_rest).enumerate() {
                    at(v, x, g);
                }
            }
            result.g += total(&sums[0]);
            result.gx += total(&sums[1]);
            for (result, sums) in result.parameters.iter_mut().zip(&of_parameters) {
                *result += total(sums);
            }
        }
        result
    }
}

/// `dx = factor g' + slope (x - mean) + constant` of one channel.
#[derive(Clone, Copy)]
struct Line {
    slope: f32,
    constant: f32,
}

/// The gradient of one value of the input.
#[inline(always)]
fn input_gradient<A: Pointwise<P>, const P: usize>(
    affine: Affine,
    line: Line,
    activation: A,
    p: [f32; P],
    [x, g]: [f32; 2],
) -> f32 {
    let (passed, _) = activation.gradient(affine.apply(x), p, g);
    affine.factor * passed + (line.slope * (x - affine.mean) + line.constant)
}

multiversion! {
    fn gradient_image<A: Pointwise<P>, const P: usize>(
        x: &[f32], g: &[f32], affines: &[Affine], lines: &[Line], activation: A, p: [f32; P], dx: &mut [Slot],
    ) {
        let plane = x.len() / affines.len();
        let planes = dx.chunks_exact_mut(plane).zip(x.chunks_exact(plane).zip(g.chunks_exact(plane)));
        for ((dx, (x, g)), (&affine, &line)) in planes.zip(affines.iter().zip(lines)) {
            for ((dx, &x), &g) in dx.iter_mut().zip(x).zip(g) {
                dx.write(input_gradient(affine, line, activation, p, [x, g]));
            }
        }
    }
}

multiversion! {
    fn gradient_image_in_place<A: Pointwise<P>, const P: usize>(
        x: &[f32], affines: &[Affine], lines: &[Line], activation: A, p: [f32; P], g: &mut [f32],
    ) {
        let plane = x.len() / affines.len();
        let planes = g.chunks_exact_mut(plane).zip(x.chunks_exact(plane));
        for ((g, x), (&affine, &line)) in planes.zip(affines.iter().zip(lines)) {
            for (g, &x) in g.iter_mut().zip(x) {
                *g = input_gradient(affine, line, activation, p, [x, *g]);
            }
        }
    }
}

/// The gradient of the output.
pub(crate) enum Incoming<'a> {
    /// To be read alone.
    Shared(&'a [f32]),
    /// In whose place that of the input is written.
    Own(&'a mut [f32]),
}

impl Incoming<'_> {
    fn values(&self) -> &[f32] {
        match self {
            Self::Shared(g) => g,
            Self::Own(g) => g,
        }
    }
}

/// The gradients of [`apply`] with the statistics of the batch.
pub struct NormGradients {
    /// Of the input; empty from [`gradients_in_place`].
    pub input: Vec<f32>,
    /// Of `gamma`.
    pub gamma: Vec<f32>,
    /// Of `beta`.
    pub beta: Vec<f32>,
    /// Of the activation's parameters.
    pub parameters: Vec<f32>,
}

/// The gradients of `x` and of the parameters from the gradient `g` of the output.
///
/// # Equation
/// With `x^ = (x - mean) / sqrt(variance + epsilon)`, `g'` the gradient before the activation and `n` the values of a
/// channel (Ioffe15, section 3):
/// ```text
/// dbeta = sum g'      dgamma = sum g' x^      dx = gamma / sqrt(variance + epsilon) (g' - dbeta / n - x^ dgamma / n)
/// ```
///
/// # Panics
/// If a length does not fit the shape.
pub fn gradients(
    shape: NormShape,
    x: &[f32],
    g: &[f32],
    parameters: NormParameters<'_>,
    activation: Activation<'_>,
) -> NormGradients {
    gradients_of(shape, x, Incoming::Shared(g), parameters, activation)
}

/// [`gradients`] with that of the input, the same bits, in the place of `g`.
///
/// # Panics
/// If a length does not fit the shape.
pub fn gradients_in_place(
    shape: NormShape,
    x: &[f32],
    g: &mut [f32],
    parameters: NormParameters<'_>,
    activation: Activation<'_>,
) -> NormGradients {
    gradients_of(shape, x, Incoming::Own(g), parameters, activation)
}

fn gradients_of(
    shape: NormShape,
    x: &[f32],
    g: Incoming<'_>,
    parameters: NormParameters<'_>,
    activation: Activation<'_>,
) -> NormGradients {
    match activation {
        Activation::Identity => gradients_with(Identity, [], shape, x, g, parameters),
        Activation::Relu => gradients_with(Relu, [], shape, x, g, parameters),
        Activation::Formula(formula, p, _) => formula.normalized_gradients(shape, x, g, parameters, p),
    }
}

/// [`gradients`] of one kind of activation.
pub(crate) fn gradients_with<A: Pointwise<P>, const P: usize>(
    activation: A,
    p: [f32; P],
    shape: NormShape,
    x: &[f32],
    incoming: Incoming<'_>,
    parameters: NormParameters<'_>,
) -> NormGradients {
    let g = incoming.values();
    assert!(x.len() == shape.len() && g.len() == shape.len(), "length of the input and the gradient");
    let affines = parameters.affines(shape);
    let sums: Vec<Sums<P>> = affines
        .par_iter()
        .enumerate()
        .with_min_len(shape.task_channels())
        .map(|(channel, &affine)| channel_sums(shape, x, g, channel, affine, activation, p))
        .collect();
    let lines: Vec<Line> =
        affines.iter().zip(&sums).map(|(affine, sums)| line(shape, affine, sums.g, sums.gx)).collect();
    let input = match incoming {
        _ if x.is_empty() => Vec::new(),
        Incoming::Shared(g) => {
            let write = |dx: &mut [Slot]| {
                let inputs = x.par_chunks(shape.image()).zip(g.par_chunks(shape.image()));
                let images = dx.par_chunks_mut(shape.image()).zip(inputs);
                images.with_min_len(task_items(shape.image())).for_each(|(dx, (x, g))| {
                    gradient_image(x, g, &affines, &lines, activation, p, dx);
                });
            };
            // SAFETY: `x` and `g` are as long, and each of their images has as many planes as there are channels.
            unsafe { collect(x.len(), write) }
        }
        Incoming::Own(g) => {
            let images = g.par_chunks_mut(shape.image()).zip(x.par_chunks(shape.image()));
            images.with_min_len(task_items(shape.image())).for_each(|(g, x)| {
                gradient_image_in_place(x, &affines, &lines, activation, p, g);
            });
            Vec::new()
        }
    };
    let gamma =
        affines.iter().zip(&sums).map(|(affine, sums)| (sums.gx / f64::from(affine.deviation)) as f32);
    NormGradients {
        input,
        gamma: gamma.collect(),
        beta: sums.iter().map(|sums| sums.g as f32).collect(),
        parameters: (0..P).map(|i| sums.iter().map(|sums| sums.parameters[i]).sum::<f64>() as f32).collect(),
    }
}

/// The line of a channel from the sums of `g'` and of `g' (x - mean)`.
fn line(shape: NormShape, affine: &Affine, g: f64, gx: f64) -> Line {
    let n = (shape.batch * shape.plane) as f64;
    let (factor, deviation) = (f64::from(affine.factor), f64::from(affine.deviation));
    Line { slope: (-factor * gx / (deviation * deviation) / n) as f32, constant: (-factor * g / n) as f32 }
}

#[cfg(test)]
mod tests;
