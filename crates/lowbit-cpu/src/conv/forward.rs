//! The forward pass.

use super::direct;
use super::pass::{Job, Pass, images_together, targets};
use super::shape::ConvShape;
use super::tables::{padded_input, window_steps, windows};
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
    // SAFETY: one pass has all pixels as targets, and all groups and blocks of channels have it.
    unsafe { collect_into(out, shape.batch * shape.out_image(), |out| job.run(out)) }
}
