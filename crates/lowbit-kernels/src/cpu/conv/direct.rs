//! Loops for groups of very few channels, as in depthwise convolution: rows times single weights.

use std::ops::Range;

use rayon::prelude::*;

use super::shape::ConvShape;
use super::source::{Source, with_scratch};
use crate::cpu::simd::multiversion;

multiversion! {
    /// `out[i] += input[i * in_step] * weight`, `i` counted in steps of `out_step`.
    fn add_row(out: &mut [f32], out_step: usize, input: &[f32], in_step: usize, weight: f32) {
        if out_step == 1 && in_step == 1 {
            out.iter_mut().zip(input).for_each(|(out, x)| *out += x * weight);
            return;
        }
        let out = out.iter_mut().step_by(out_step);
        out.zip(input.iter().step_by(in_step)).for_each(|(out, x)| *out += x * weight);
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

/// Outputs along axis `i` whose window has its position `k` inside the input.
fn outputs(shape: &ConvShape, i: usize, k: usize) -> Range<usize> {
    let (stride, padding) = (shape.stride[i], shape.padding[i]);
    let first = padding.saturating_sub(k).div_ceil(stride);
    let end = (shape.size[i] + padding).saturating_sub(k).div_ceil(stride).min(shape.out_size()[i]);
    first..end.max(first)
}

/// Calls `row(output offset, input offset, length)` for all rows that meet at position `[i, j]` of the kernel.
fn rows(shape: &ConvShape, [i, j]: [usize; 2], mut row: impl FnMut(usize, usize, usize)) {
    let (xs, out_width) = (outputs(shape, 1, j), shape.out_size()[1]);
    if xs.is_empty() {
        return;
    }
    for y in outputs(shape, 0, i) {
        let in_y = y * shape.stride[0] + i - shape.padding[0];
        let in_x = xs.start * shape.stride[1] + j - shape.padding[1];
        row(y * out_width + xs.start, in_y * shape.size[1] + in_x, xs.len());
    }
}

fn taps(shape: &ConvShape) -> impl Iterator<Item = (usize, [usize; 2])> {
    let width = shape.kernel[1];
    (0..shape.taps()).map(move |tap| (tap, [tap / width, tap % width]))
}

/// See [`super::forward()`].
pub fn forward(shape: &ConvShape, input: &[f32], weight: &[f32], out: &mut [f32]) {
    let (in_plane, stride) = (shape.in_plane(), shape.stride[1]);
    out.par_chunks_mut(shape.out_plane()).enumerate().for_each(|(part, out)| {
        let (image, o) = (part / shape.out_channels, part % shape.out_channels);
        let group = o / shape.group_out();
        out.fill(0.0);
        for c in 0..shape.group_in() {
            let channel = image * shape.in_channels + group * shape.group_in() + c;
            let input = &input[channel * in_plane..][..in_plane];
            let weight = &weight[(o * shape.group_in() + c) * shape.taps()..];
            for (tap, position) in taps(shape) {
                rows(shape, position, |to, from, len| {
                    add_row(&mut out[to..to + len], 1, &input[from..], stride, weight[tap]);
                });
            }
        }
    });
}

/// See [`super::input_gradient()`].
pub fn input_gradient(shape: &ConvShape, weight: &[f32], out_gradient: &[f32], gradient: &mut [f32]) {
    let (out_plane, stride) = (shape.out_plane(), shape.stride[1]);
    gradient.par_chunks_mut(shape.in_plane()).enumerate().for_each(|(part, gradient)| {
        let (image, channel) = (part / shape.in_channels, part % shape.in_channels);
        let (group, c) = (channel / shape.group_in(), channel % shape.group_in());
        gradient.fill(0.0);
        for o in group * shape.group_out()..(group + 1) * shape.group_out() {
            let out_gradient = &out_gradient[(image * shape.out_channels + o) * out_plane..][..out_plane];
            let weight = &weight[(o * shape.group_in() + c) * shape.taps()..];
            for (tap, position) in taps(shape) {
                rows(shape, position, |from, to, len| {
                    add_row(&mut gradient[to..], stride, &out_gradient[from..from + len], 1, weight[tap]);
                });
            }
        }
    });
}

/// See [`super::weight_gradient()`].
///
/// The gradient of the output is spread over the places of the padded input at which windows begin. Then each position of
/// the kernel has one long sum of products, most of them with zeros where the stride is above 1: what is not finite spreads
/// to all positions.
pub fn weight_gradient(shape: &ConvShape, input: &[f32], out_gradient: &[f32], gradient: &mut [f32]) {
    let (in_plane, out_plane, [_, out_width]) = (shape.in_plane(), shape.out_plane(), shape.out_size());
    let source = Source::with_zeros(&ConvShape { in_channels: 1, groups: 1, ..*shape });
    let row = shape.stride[0] * source.row_len();
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
                for (tap, [i, j]) in taps(shape) {
                    sums[tap] += dot(spread, &input[source.index(0, 0, i, j) as usize..]);
                }
            }
        });
        gradient.iter_mut().zip(sums).for_each(|(gradient, sum)| *gradient = sum as f32);
    });
}
