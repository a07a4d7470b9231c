//! Loops for groups of very few channels, as in depthwise convolution.
//!
//! A padded image is read as one long row, whose windows are sums of products of single weights with pieces of it. What lies
//! between the windows, at the ends of rows and where the stride is above 1, is computed too and left out.

use rayon::prelude::*;

use super::shape::ConvShape;
use super::source::{Source, grow, table_index, with_scratch};
use super::tables::{padded_input, window_steps};
use crate::instructions::multiversion;
use crate::output::{Slot, collect};
use crate::task_items;

/// Sums that are taken together, in registers.
const SUMS: usize = 64;

/// Writes `L` sums at a time as long as there are so many; returns how many.
#[inline(always)]
fn correlate_by<const L: usize>(image: &[f32], steps: &[u32], weights: &[f32], out: &mut [f32]) -> usize {
    let (blocks, _) = out.as_chunks_mut::<L>();
    let n = blocks.len() * L;
    for (i, out) in blocks.iter_mut().enumerate() {
        let mut sums = [0.0; L];
        for (&step, &weight) in steps.iter().zip(weights) {
            let window: &[f32; L] =
                image[i * L + step as usize..].first_chunk().expect("a window is in the image");
            for v in 0..L {
                sums[v] += window[v] * weight;
            }
        }
        *out = sums;
    }
    n
}

multiversion! {
    /// `out[i] = sum over k of image[i + steps[k]] * weights[k]`, in the order of `k`.
    fn correlate(image: &[f32], steps: &[u32], weights: &[f32], out: &mut [f32]) {
        let mut first = correlate_by::<SUMS>(image, steps, weights, out);
        first += correlate_by::<8>(&image[first..], steps, weights, &mut out[first..]);
        correlate_by::<1>(&image[first..], steps, weights, &mut out[first..]);
    }
}

/// Windows of a padded image whose rows have `row_len` values.
struct Windows {
    row_len: usize,
    /// How many rows and columns of them.
    size: [usize; 2],
    stride: [usize; 2],
}

impl Windows {
    /// Writes the [`correlate`]d windows, row after row; `image` begins at the first of them.
    fn correlate(
        &self,
        image: &[f32],
        steps: &[u32],
        weights: &[f32],
        buffer: &mut Vec<f32>,
        out: &mut [Slot],
    ) {
        let [[height, width], [stride_y, stride_x]] = [self.size, self.stride];
        let row = (width - 1) * stride_x + 1;
        // Rows that follow each other are one, with what is between them.
        let together = if stride_y == 1 { height } else { 1 };
        let len = (together - 1) * self.row_len + row;
        grow(buffer, len);
        for (i, out) in out.chunks_mut(together * width).enumerate() {
            let sums = &mut buffer[..len];
            correlate(&image[i * stride_y * self.row_len..], steps, weights, sums);
            for (sums, out) in sums.chunks(self.row_len).zip(out.chunks_exact_mut(width)) {
                match stride_x {
                    1 => drop(out.write_copy_of_slice(&sums[..width])),
                    _ => out.iter_mut().zip(sums.iter().step_by(stride_x)).for_each(|(out, sum)| {
                        out.write(*sum);
                    }),
                }
            }
        }
    }
}

/// Products that are summed up in single precision, in [`LANES`] sums, before these are in double.
const PRODUCTS: usize = 4096;
const LANES: usize = 32;

multiversion! {
    /// `sum over i of a[i] * b[i]`, over the shorter length.
    fn dot(a: &[f32], b: &[f32]) -> f64 {
        let mut sum = 0.0;
        for (a, b) in a.chunks(PRODUCTS).zip(b.chunks(PRODUCTS)) {
            let n = a.len().min(b.len());
            let ((a, a_rest), (b, b_rest)) = (a[..n].as_chunks::<LANES>(), b[..n].as_chunks::<LANES>());
            let mut lanes = [0.0; LANES];
            for (a, b) in a.iter().zip(b) {
                for v in 0..LANES {
                    lanes[v] += a[v] * b[v];
                }
            }
            for (lane, (a, b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
                *lane += a * b;
            }
            sum += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>();
        }
        sum
    }
}

fn taps_of(shape: &ConvShape) -> impl Iterator<Item = (usize, [usize; 2])> {
    let width = shape.kernel[1];
    (0..shape.taps()).map(move |tap| (tap, [tap / width, tap % width]))
}

/// See [`super::forward()`].
pub fn forward(shape: &ConvShape, input: &[f32], weight: &[f32]) -> Vec<f32> {
    let (source, stride) = padded_input(shape);
    let steps = window_steps(shape, &source);
    let windows = Windows { row_len: source.row_len(), size: shape.out_size(), stride };
    let (in_len, out_len) = (shape.group_in() * shape.in_plane(), shape.group_out() * shape.out_plane());
    let write = |out: &mut [Slot]| {
        let groups = out.par_chunks_mut(out_len).enumerate();
        groups.with_min_len(task_items(out_len * steps.len())).for_each(|(part, out)| {
            let weight = &weight[part % shape.groups * shape.group_weight()..];
            with_scratch(|[padded, sums, _]| {
                let image = source.load(&input[part * in_len..], 1, padded);
                let channels = out.chunks_exact_mut(shape.out_plane()).zip(weight.chunks_exact(steps.len()));
                channels.for_each(|(out, weight)| windows.correlate(image, &steps, weight, sums, out));
            });
        });
    };
    // SAFETY: every group has as many kernels as planes of the output, and every plane as many values as windows.
    unsafe { collect(shape.batch * shape.out_image(), write) }
}

/// Along one axis, how the gradient of the input is a convolution of the gradient of the output: spread over the places that
/// the windows begin at, by the stride, behind zeros, and convolved by the kernel turned round.
struct Spread {
    stride: usize,
    /// Zeros before the first value.
    before: usize,
    /// Values of the output that any input meets, from the first on.
    n: usize,
    /// Length with zeros.
    len: usize,
}

impl Spread {
    fn new(shape: &ConvShape, i: usize) -> Self {
        let (stride, before) = (shape.stride[i], shape.kernel[i] - 1);
        let len = shape.padding[i] + shape.size[i] + before;
        // Windows that begin behind the input meet none of it.
        let n = shape.out_size()[i].min((shape.padding[i] + shape.size[i]).div_ceil(stride));
        Self { stride, before, n, len }
    }
}

/// See [`super::input_gradient()`].
pub fn input_gradient(shape: &ConvShape, weight: &[f32], out_gradient: &[f32]) -> Vec<f32> {
    let axes = [0, 1].map(|i| Spread::new(shape, i));
    let [rows, columns] = &axes;
    let (out_plane, taps, [_, out_width]) = (shape.out_plane(), shape.taps(), shape.out_size());
    let plane = rows.len * columns.len;
    let steps: Vec<u32> = (0..shape.group_out())
        .flat_map(|o| taps_of(shape).map(move |(_, [i, j])| table_index(o * plane + i * columns.len + j)))
        .collect();
    // For each channel of the input, the weights of the group in the order of the steps.
    let turned: Vec<f32> = weight
        .chunks_exact(shape.group_weight())
        .flat_map(|group| {
            (0..shape.group_in()).flat_map(move |c| {
                let kernels = group.chunks_exact(taps).skip(c).step_by(shape.group_in());
                kernels.flat_map(|kernel| kernel.iter().rev().copied())
            })
        })
        .collect();
    let windows = Windows { row_len: columns.len, size: shape.size, stride: [1, 1] };
    let first = shape.padding[0] * columns.len + shape.padding[1];
    let (in_len, out_len) = (shape.group_in() * shape.in_plane(), shape.group_out() * out_plane);
    let write = |gradient: &mut [Slot]| {
        let groups = gradient.par_chunks_mut(in_len).enumerate();
        groups.with_min_len(task_items(in_len * steps.len())).for_each(|(part, gradient)| {
            let weights = turned[part % shape.groups * shape.group_weight()..].chunks_exact(steps.len());
            with_scratch(|[spread, sums, _]| {
                grow(spread, shape.group_out() * plane);
                let spread = &mut spread[..shape.group_out() * plane];
                let planes = out_gradient[part * out_len..].chunks_exact(out_plane);
                for (spread, out_gradient) in spread.chunks_exact_mut(plane).zip(planes) {
                    spread.fill(0.0);
                    let places = spread.chunks_exact_mut(columns.len).skip(rows.before).step_by(rows.stride);
                    for (place, g) in places.zip(out_gradient.chunks_exact(out_width)).take(rows.n) {
                        let place = &mut place[columns.before..];
                        match columns.stride {
                            1 => place[..columns.n].copy_from_slice(&g[..columns.n]),
                            stride => place
                                .iter_mut()
                                .step_by(stride)
                                .zip(&g[..columns.n])
                                .for_each(|(p, g)| *p = *g),
                        }
                    }
                }
                for (gradient, weights) in gradient.chunks_exact_mut(shape.in_plane()).zip(weights) {
                    windows.correlate(&spread[first..], &steps, weights, sums, gradient);
                }
            });
        });
    };
    // SAFETY: every group has the weights of each of its planes, and every plane as many values as windows.
    unsafe { collect(shape.batch * shape.in_image(), write) }
}

/// See [`super::weight_gradient()`].
///
/// The gradient of the output is spread over the places of the padded input at which windows begin. Then each position of
/// the kernel has one long sum of products, most of them with zeros where the stride is above 1: what is not finite spreads
/// to all positions.
pub fn weight_gradient(shape: &ConvShape, input: &[f32], out_gradient: &[f32]) -> Vec<f32> {
    let (in_plane, out_plane, [_, out_width]) = (shape.in_plane(), shape.out_plane(), shape.out_size());
    let source = Source::with_zeros(&ConvShape { in_channels: 1, groups: 1, ..*shape });
    let row = shape.stride[0] * source.row_len();
    // Few values, which cost nothing to set to zero first.
    let mut gradient = vec![0.0; shape.out_channels * shape.group_in() * shape.taps()];
    gradient.par_chunks_mut(shape.taps()).enumerate().for_each(|(part, gradient)| {
        let (o, c) = (part / shape.group_in(), part % shape.group_in());
        let channel = o / shape.group_out() * shape.group_in() + c;
        let mut sums = vec![0.0; shape.taps()];
        with_scratch(|[padded, spread, _]| {
            let len = (out_plane / out_width - 1) * row + (out_width - 1) * shape.stride[1] + 1;
            spread.clear();
            spread.resize(len, 0.0);
            for image in 0..shape.batch {
                let input = &input[(image * shape.in_channels + channel) * in_plane..][..in_plane];
                let input = source.load(input, 1, padded);
                let g = &out_gradient[(image * shape.out_channels + o) * out_plane..][..out_plane];
                for (g, spread) in g.chunks_exact(out_width).zip(spread.chunks_mut(row)) {
                    spread.iter_mut().step_by(shape.stride[1]).zip(g).for_each(|(place, g)| *place = *g);
                }
                for (tap, [i, j]) in taps_of(shape) {
                    sums[tap] += dot(spread, &input[source.index(0, 0, i, j) as usize..]);
                }
            }
        });
        gradient.iter_mut().zip(sums).for_each(|(gradient, sum)| *gradient = sum as f32);
    });
    gradient
}
