//! The forward pass.

use super::correlation::{Correlation, Part, Spread};
use super::direct;
use super::kernel::ROWS;
use super::planes::{Axis, Planes, Position};
use super::shape::ConvShape;
use crate::output::collect_into;
use crate::transpose::to_panel;

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
pub fn forward(shape: &ConvShape, input: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    forward_into(shape, input, weight, &mut out);
    out
}

/// [`forward`] into `out`.
///
/// # Panics
/// As [`forward`].
pub fn forward_into(shape: &ConvShape, input: &[f32], weight: &[f32], out: &mut Vec<f32>) {
    shape.check(input.len(), weight.len());
    if shape.batch == 0 {
        return out.clear();
    }
    if shape.has_tiny_groups() {
        *out = direct::forward(shape, input, weight);
        return;
    }
    let shape = &shape.with_plain_planes();
    let size = shape.out_size();
    let positions = window_positions(shape);
    let n_steps = positions.len();
    let spread = size.map(|n| Spread { skip: 0, n, first: 0, step: 1 });
    let part = |weight: &[f32]| {
        Part::new(positions.clone(), spread, shape.group_out(), |channels, panel| {
            to_panel(&weight[channels.start * n_steps..], n_steps, channels.len(), n_steps, ROWS, panel);
        })
    };
    let correlation = Correlation {
        batch: shape.batch,
        planes: input_planes(shape),
        groups: weight.chunks_exact(shape.group_weight()).map(|weight| vec![part(weight)]).collect(),
        input,
        input_len: [shape.in_image(), shape.group_in() * shape.in_plane()],
        channels: shape.group_out(),
        size,
        has_gaps: false,
    };
    // SAFETY: one part has all pixels as results, and all groups and blocks of channels have it.
    unsafe { collect_into(out, shape.batch * shape.out_image(), |out| correlation.run(out)) }
}

/// The planes of the input of a group, whose places are those of the output.
pub fn input_planes(shape: &ConvShape) -> Planes {
    let out = shape.out_size();
    let axes = [0, 1]
        .map(|i| Axis::phases(shape.size[i], out[i], shape.kernel[i], shape.stride[i], shape.padding[i]));
    Planes::new(shape.group_in(), shape.size, shape.in_image(), axes, out)
}

/// Positions of a window: every channel at every position of the kernel, in the order of the weights.
pub fn window_positions(shape: &ConvShape) -> Vec<Position> {
    let [stride_y, stride_x] = shape.stride;
    let phases_x = stride_x.min(shape.kernel[1]);
    let mut positions = Vec::with_capacity(shape.group_in() * shape.taps());
    for channel in 0..shape.group_in() {
        for y in 0..shape.kernel[0] {
            for x in 0..shape.kernel[1] {
                let phase = y % stride_y * phases_x + x % stride_x;
                positions.push(Position::new(channel, phase, [y / stride_y, x / stride_x]));
            }
        }
    }
    positions
}
