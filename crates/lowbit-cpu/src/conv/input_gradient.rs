//! The gradient of the input.

use super::direct;
use super::pass::{Job, Pass, images_together};
use super::shape::ConvShape;
use super::source::{Source, table_index};
use crate::output::collect;

/// Output coordinates that an input coordinate meets through the kernel, along one axis.
#[derive(Clone, Copy)]
struct Axis {
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    /// Zeros before the output's gradient.
    before: usize,
    /// Its length with zeros on both sides.
    padded: usize,
}

impl Axis {
    fn new(shape: &ConvShape, i: usize) -> Self {
        let [size, kernel, stride, padding] =
            [shape.size[i], shape.kernel[i], shape.stride[i], shape.padding[i]];
        let out = shape.out_size()[i];
        let mut axis = Self { size, kernel, stride, padding, before: 0, padded: out };
        let met = (0..stride.min(size))
            .filter_map(|z| axis.most_back(axis.phase(z)).map(|back| (axis.top(z), back)));
        axis.before = met.map(|(top, back)| back.saturating_sub(top)).max().unwrap_or(0);
        axis.padded = axis.before + out.max(axis.top(size - 1) + 1);
        axis
    }

    fn phase(&self, z: usize) -> usize {
        (z + self.padding) % self.stride
    }

    /// The output whose window starts last of those that may contain `z`.
    fn top(&self, z: usize) -> usize {
        (z + self.padding) / self.stride
    }

    /// How many outputs before that one also may, or none if the phase meets no position of the kernel.
    fn most_back(&self, phase: usize) -> Option<usize> {
        (phase < self.kernel).then(|| (self.kernel - 1 - phase) / self.stride)
    }

    /// Input coordinates of a phase with the first output that they meet, counted with the zeros before.
    fn coordinates(&self, phase: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let back = self.most_back(phase).unwrap_or(0);
        (0..self.size)
            .filter(move |&z| self.phase(z) == phase)
            .map(move |z| (z, self.before + self.top(z) - back))
    }

    /// Positions of the kernel that a phase meets, last first, with the distance from the first output.
    fn positions(&self, phase: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let n = self.most_back(phase).map_or(0, |back| back + 1);
        (0..n).map(move |step| (phase + (n - 1 - step) * self.stride, step))
    }
}

/// Gradient of the input from the gradient of the output.
///
/// # Shapes
/// Those of [`ConvShape`].
///
/// # Equation
/// `gradient[b][c][y s + i - p][x s + j - p] += out_gradient[b][o][y][x] weight[o][c][i][j]`
///
/// # Panics
/// If a length does not fit the shape, or the shape has a size of 0 but for the padding and the batch.
pub fn input_gradient(shape: &ConvShape, weight: &[f32], out_gradient: &[f32]) -> Vec<f32> {
    shape.check_sizes();
    let len = shape.batch * shape.in_image();
    shape.check(len, weight.len());
    shape.check_output(out_gradient.len());
    if shape.batch == 0 {
        return Vec::new();
    }
    if shape.has_tiny_groups() {
        return direct::input_gradient(shape, weight, out_gradient);
    }
    let axes = [Axis::new(shape, 0), Axis::new(shape, 1)];
    let source = Source::new(
        shape.group_out(),
        shape.out_size(),
        axes.map(|axis| axis.before),
        axes.map(|axis| axis.padded),
        shape.out_image(),
    );
    // The phases that the kernel meets: from a stride beyond its size on, pixels of the other ones are in no window.
    let met: [usize; 2] = std::array::from_fn(|i| shape.stride[i].min(shape.kernel[i]));
    let passes = |weight: &[f32]| -> Vec<Pass> {
        let phases = (0..met[0]).flat_map(|y| (0..met[1]).map(move |x| [y, x]));
        phases.map(|phase| phase_pass(shape, &source, &axes, weight, phase)).collect()
    };
    let job = Job {
        batch: shape.batch,
        groups: weight.chunks_exact(shape.group_weight()).map(passes).collect(),
        source,
        input: out_gradient,
        input_len: [shape.out_image(), shape.group_out() * shape.out_plane()],
        channels: shape.group_in(),
        plane: shape.in_plane(),
        has_gaps: met != shape.stride,
    };
    // SAFETY: each pixel has one phase. Those whose phase meets the kernel are targets of its pass, the others are gaps, which
    // are filled. All groups and blocks of channels have all passes.
    unsafe { collect(len, |gradient| job.run(gradient)) }
}

/// The input pixels whose coordinates plus padding are `phase` modulo the stride.
fn phase_pass(
    shape: &ConvShape,
    source: &Source,
    axes: &[Axis; 2],
    weight: &[f32],
    phase: [usize; 2],
) -> Pass {
    let mut starts = Vec::new();
    let mut targets = Vec::new();
    for image in 0..images_together(shape.in_plane()) {
        for (y, out_y) in axes[0].coordinates(phase[0]) {
            for (x, out_x) in axes[1].coordinates(phase[1]) {
                starts.push(source.index(image, 0, out_y, out_x));
                targets.push(table_index(image * shape.in_image() + y * shape.size[1] + x));
            }
        }
    }
    let mut steps = Vec::new();
    // Positions of the kernel of one output channel, in the order of the steps.
    let mut positions = Vec::new();
    for channel in 0..shape.group_out() {
        for (ky, step_y) in axes[0].positions(phase[0]) {
            for (kx, step_x) in axes[1].positions(phase[1]) {
                steps.push(source.index(0, channel, step_y, step_x));
                if channel == 0 {
                    positions.push(ky * shape.kernel[1] + kx);
                }
            }
        }
    }
    let (channels, taps) = (shape.group_in(), shape.taps());
    let panels = Pass::pack_panels(steps.len(), channels, |block, panel| {
        let n = (channels - block.first).min(block.lanes);
        let kernels = weight.chunks_exact(channels * taps);
        for (rows, kernel) in panel.chunks_exact_mut(positions.len() * block.lanes).zip(kernels) {
            let kernel = &kernel[block.first * taps..][..n * taps];
            for (row, &position) in rows.chunks_exact_mut(block.lanes).zip(&positions) {
                for (value, kernel) in row.iter_mut().zip(kernel.chunks_exact(taps)) {
                    *value = kernel[position];
                }
            }
        }
    });
    Pass { starts, targets, steps, panels }
}
