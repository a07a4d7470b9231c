//! The forward pass.

use std::borrow::Cow;

use super::cell::{Bf16Pair, Cell, Rounded};
use super::correlation::{Correlation, Part, Spread};
use super::direct;
use super::kernel::{Factor, ROWS, multiplies_bf16};
use super::operand::{Precision, Weights, rounded};
use super::planes::{Axis, Planes, Position};
use super::shape::ConvShape;
use crate::output::{Slot, collect_into};

/// Convolution without bias.
///
/// # Shapes
/// Those of [`ConvShape`].
///
/// # Equation
/// `out[b][o][y][x] = sum over c, i, j of input[b][c][y s + i - p][x s + j - p] weight[o][c][i][j]`, `c` in the group of
/// `o`
///
/// # Panics
/// If a length does not fit the shape, or the shape has a size of 0 but for the padding and the batch.
pub fn forward(shape: &ConvShape, input: &[f32], weight: Weights<'_>, precision: Precision) -> Vec<f32> {
    let mut out = Vec::new();
    forward_into(shape, input, weight, precision, &mut out);
    out
}

/// [`forward`] into `out`.
///
/// # Panics
/// As [`forward`].
pub fn forward_into(
    shape: &ConvShape,
    input: &[f32],
    weight: Weights<'_>,
    precision: Precision,
    out: &mut Vec<f32>,
) {
    shape.check(input.len(), weight.len());
    if shape.batch == 0 {
        return out.clear();
    }
    if shape.has_tiny_groups() {
        let input = rounded(Cow::Borrowed(input), precision);
        *out = direct::forward(shape, &input, &weight.values(shape, precision));
        return;
    }
    let run = match precision {
        Precision::Single => run::<f32>,
        Precision::Bf16 if multiplies_bf16() => run::<Bf16Pair>,
        Precision::Bf16 => run::<Rounded>,
    };
    let shape = &shape.with_plain_planes();
    // SAFETY: all values are written.
    unsafe { collect_into(out, shape.batch * shape.out_image(), |out| run(shape, input, weight, out)) }
}

/// Writes all values of the result.
fn run<C: Factor>(shape: &ConvShape, input: &[f32], weight: Weights<'_>, out: &mut [Slot]) {
    let size = shape.out_size();
    let positions = window_positions::<C>(shape);
    let spread = size.map(|n| Spread { skip: 0, n, first: 0, step: 1 });
    let (factors, scales) = weight.factors(shape);
    let part = |factors: &[f32]| {
        Part::new(positions.clone(), spread, shape.group_out(), |channels, panel| {
            let kernels = factors.chunks_exact(shape.group_in() * shape.taps());
            for (row, kernel) in kernels.skip(channels.start).take(channels.len()).enumerate() {
                for (cell, panel) in panel.chunks_exact_mut(ROWS * shape.taps()).enumerate() {
                    let kernel = &kernel[cell * C::CHANNELS * shape.taps()..];
                    for (tap, panel) in panel.chunks_exact_mut(ROWS).enumerate() {
                        let second = kernel.get(shape.taps() + tap).copied().unwrap_or(0.0);
                        panel[row] = C::of(kernel[tap], second);
                    }
                }
            }
        })
    };
    // One part has all pixels as results, and all groups and blocks of channels have it.
    let correlation = Correlation {
        batch: shape.batch,
        planes: input_planes(shape),
        groups: factors.chunks_exact(shape.group_weight()).map(|factors| vec![part(factors)]).collect(),
        input,
        input_scales: None,
        scales,
        input_len: [shape.in_image(), shape.group_in() * shape.in_plane()],
        channels: shape.group_out(),
        size,
        has_gaps: false,
    };
    correlation.run(out);
}

/// The planes of the input of a group, whose places are those of the output.
pub fn input_planes<C: Cell>(shape: &ConvShape) -> Planes<C> {
    let out = shape.out_size();
    let axes = [0, 1]
        .map(|i| Axis::phases(shape.size[i], out[i], shape.kernel[i], shape.stride[i], shape.padding[i]));
    Planes::new(shape.group_in(), shape.size, shape.in_image(), axes, out)
}

/// Positions of a window: every cell of channels at every position of the kernel, in the order of the weights.
pub fn window_positions<C: Cell>(shape: &ConvShape) -> Vec<Position> {
    let [stride_y, stride_x] = shape.stride;
    let phases_x = stride_x.min(shape.kernel[1]);
    let n_cells = shape.group_in().div_ceil(C::CHANNELS);
    let mut positions = Vec::with_capacity(n_cells * shape.taps());
    for channel in 0..n_cells {
        for y in 0..shape.kernel[0] {
            for x in 0..shape.kernel[1] {
                let phase = y % stride_y * phases_x + x % stride_x;
                positions.push(Position::new(channel, phase, [y / stride_y, x / stride_x]));
            }
        }
    }
    positions
}
