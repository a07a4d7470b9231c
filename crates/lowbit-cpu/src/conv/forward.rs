//! The forward pass.

use super::direct;
use super::pass::{Job, Pass, images_together, targets};
use super::shape::ConvShape;
use super::source::Source;
use crate::transpose::to_panel;

/// The images that the forward pass and the gradient of the weights read, and the step between windows in them.
pub(super) fn padded_input(shape: &ConvShape) -> (Source, [usize; 2]) {
    if shape.kernel == [1, 1] && shape.padding == [0, 0] && shape.stride != [1, 1] {
        return (Source::sampled(shape.group_in(), shape.size, shape.stride, shape.in_image()), [1, 1]);
    }
    (Source::with_zeros(shape), shape.stride)
}

/// Where the window of every output pixel starts, image after image.
pub(super) fn windows(shape: &ConvShape, source: &Source, stride: [usize; 2], images: usize) -> Vec<u32> {
    let [height, width] = shape.out_size();
    let [stride_y, stride_x] = stride;
    let mut starts = Vec::with_capacity(images * height * width);
    for image in 0..images {
        for y in 0..height {
            starts.extend((0..width).map(|x| source.index(image, 0, y * stride_y, x * stride_x)));
        }
    }
    starts
}

/// Positions of a window: every channel at every position of the kernel, in the order of the weights.
pub(super) fn window_steps(shape: &ConvShape, source: &Source) -> Vec<u32> {
    let [kernel_height, kernel_width] = shape.kernel;
    let mut steps = Vec::with_capacity(shape.group_in() * shape.taps());
    for channel in 0..shape.group_in() {
        for y in 0..kernel_height {
            steps.extend((0..kernel_width).map(|x| source.index(0, channel, y, x)));
        }
    }
    steps
}

/// Convolution without bias.
///
/// # Shapes
/// Those of [`ConvShape`]; every value of `out` is written.
///
/// # Equation
/// `out[b][o][y][x] = sum over c, i, j of input[b][c][y s + i - p][x s + j - p] weight[o][c][i][j]`, `c` in the group of
/// `o`
///
/// # Panics
/// If a length does not fit the shape.
pub fn forward(shape: &ConvShape, input: &[f32], weight: &[f32], out: &mut [f32]) {
    shape.check(input.len(), weight.len(), out.len());
    if shape.has_tiny_groups() {
        return direct::forward(shape, input, weight, out);
    }
    let ((source, stride), plane) = (padded_input(shape), shape.out_plane());
    let images = images_together(plane);
    let (starts, steps) = (windows(shape, &source, stride, images), window_steps(shape, &source));
    let targets = targets(plane, shape.out_image(), images);
    let (n_steps, channels) = (steps.len(), shape.group_out());
    let pass = |weight: &[f32]| Pass {
        starts: starts.clone(),
        targets: targets.clone(),
        steps: steps.clone(),
        panels: Pass::pack_panels(n_steps, channels, |block, panel| {
            let n_rows = (channels - block.first).min(block.lanes);
            to_panel(&weight[block.first * n_steps..], n_steps, n_rows, n_steps, block.lanes, panel);
        }),
    };
    let groups = weight.chunks_exact(shape.group_weight()).map(|weight| vec![pass(weight)]).collect();
    let job = Job {
        batch: shape.batch,
        groups,
        source,
        input,
        input_len: [shape.in_image(), shape.group_in() * shape.in_plane()],
        channels,
        plane,
        has_gaps: false,
    };
    job.run(out);
}
