//! The gradient of the input.

use super::cell::{Bf16Pair, Rounded};
use super::correlation::{Correlation, Order, Part, Spread};
use super::direct;
use super::kernel::Factor;
use super::operand::{Factors, Gradient, Precision, Weights};
use super::planes::{Axis, Planes, Position};
use super::shape::ConvShape;
#[cfg(target_arch = "x86_64")]
use super::tiles::TilePair;
use super::way::Way;
#[cfg(target_arch = "x86_64")]
use crate::bf16;
use crate::output::{Slot, collect};

/// Along one axis, how the gradient of the input is a convolution of the gradient of the output. A coordinate of the input, with the
/// padding before it, is `a * stride + phase`; it meets the outputs `a`, `a - 1`, ... at the positions `phase`, `phase + stride`,
/// ... of the kernel.
#[derive(Clone, Copy)]
struct Meetings {
    size: usize,
    out: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Meetings {
    fn new(shape: &ConvShape, i: usize) -> Self {
        Self {
            size: shape.size[i],
            out: shape.out_size()[i],
            kernel: shape.kernel[i],
            stride: shape.stride[i],
            padding: shape.padding[i],
        }
    }

    /// The phases that the kernel meets: from a stride beyond its size on, inputs of the other ones are in no window.
    fn phases(&self) -> std::ops::Range<usize> {
        0..self.stride.min(self.kernel)
    }

    /// First and last `a` of a phase, if the input has one.
    fn ends(&self, phase: usize) -> Option<[usize; 2]> {
        let first = self.padding.saturating_sub(phase).div_ceil(self.stride);
        let last = (self.size - 1 + self.padding).checked_sub(phase)? / self.stride;
        (first <= last).then_some([first, last])
    }

    /// The smallest and the largest `a` of any phase.
    fn all_ends(&self) -> [usize; 2] {
        let ends = || self.phases().filter_map(|phase| self.ends(phase));
        [ends().map(|[first, _]| first).min().unwrap_or(0), ends().map(|[_, last]| last).max().unwrap_or(0)]
    }

    /// Zeros before the output's gradient: as many outputs before the first one are asked for.
    fn lead(&self) -> usize {
        ((self.kernel - 1) / self.stride).saturating_sub(self.all_ends()[0])
    }

    /// How the gradient of the output lies, and how many places have results.
    fn axis(&self) -> (Axis, usize) {
        let ([first, last], lead) = (self.all_ends(), self.lead());
        let reads = last + lead + 1;
        (Axis { lead, len: self.out.min(reads - lead), first: 0, step: 1, reads }, last - first + 1)
    }

    fn spread(&self, phase: usize) -> Option<Spread> {
        let [first, last] = self.ends(phase)?;
        Some(Spread {
            skip: first - self.all_ends()[0],
            n: last - first + 1,
            first: first * self.stride + phase - self.padding,
            step: self.stride,
        })
    }

    /// Positions of the kernel that a phase meets, last first, each with the place that it reads for the first `a`.
    fn positions(&self, phase: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let first = self.all_ends()[0] + self.lead();
        let most_back = (self.kernel - 1 - phase) / self.stride;
        (0..=most_back).rev().map(move |back| (phase + back * self.stride, first - back))
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
/// Where codes of weights are worth something else in each channel of the output, its gradient is multiplied with that before it is
/// rounded.
///
/// # Panics
/// If a length does not fit the shape, there is not one maximum of codes for each image, or the shape has a size of 0 but for the
/// padding and the batch.
pub fn input_gradient(
    shape: &ConvShape,
    weight: Weights<'_>,
    out_gradient: Gradient<'_>,
    precision: Precision,
) -> Vec<f32> {
    shape.check_sizes();
    let len = shape.batch * shape.in_image();
    shape.check(len, weight.len());
    shape.check_output(out_gradient.len(shape));
    if shape.batch == 0 {
        return Vec::new();
    }
    if shape.has_tiny_groups() {
        let out_gradient = out_gradient.values(precision);
        return direct::input_gradient(shape, &weight.values(shape, precision), &out_gradient);
    }
    // Codes of gradients are not rounded either: of those that are multiplied with a scale of their channel, floats are.
    let (codes, has_one_scale) =
        (out_gradient.are_codes(), matches!(weight, Weights::Codes { scales: [_], .. }));
    let precision = if codes && weight.are_codes() { Precision::Single } else { precision };
    let is_exact = codes && has_one_scale;
    let run = match Way::new(precision, [weight.are_codes(), is_exact], Some(shape.group_out())) {
        Way::Floats => run::<f32, 1>,
        Way::Rounded => run::<Rounded, 1>,
        Way::Bf16 => run::<Bf16Pair, 1>,
        #[cfg(target_arch = "x86_64")]
        Way::Tiles => run::<TilePair, 1>,
        #[cfg(target_arch = "x86_64")]
        Way::TilesOfTerms => run::<TilePair, { bf16::TERMS }>,
    };
    let shape = &shape.with_plain_planes();
    // SAFETY: all values are written.
    unsafe { collect(len, |gradient| run(shape, weight, out_gradient, gradient)) }
}

/// Writes all values of the gradient, of so many terms of the output's gradient.
pub(super) fn run<C: Factor, const TERMS: usize>(
    shape: &ConvShape,
    weight: Weights<'_>,
    out_gradient: Gradient<'_>,
    gradient: &mut [Slot],
) {
    let meetings = [0, 1].map(|i| Meetings::new(shape, i));
    let [(y, rows), (x, columns)] = meetings.map(|meetings| meetings.axis());
    let (axes, outputs) = ([vec![y], vec![x]], [rows, columns]);
    let planes =
        Planes::new(shape.group_out(), shape.out_size(), shape.out_image(), axes, outputs).with_terms(TERMS);
    let ((factors, scales), len) = (weight.factors(shape), shape.group_weight());
    let parts = |group: usize| -> Vec<Part<C>> {
        let factors = factors.part(group * len, len);
        let phases = meetings[0].phases().flat_map(|y| meetings[1].phases().map(move |x| [y, x]));
        phases.filter_map(|phase| part(shape, &meetings, factors, phase, TERMS)).collect()
    };
    let (input_scales, scales) = match scales {
        [_] => (None, scales),
        _ => (Some(scales), &[1.0][..]),
    };
    // Each pixel has one phase. Those whose phase meets the kernel are results of its part, the others are gaps, which are filled. All
    // groups and blocks of channels have all parts.
    let correlation = Correlation {
        batch: shape.batch,
        planes,
        groups: (0..shape.groups).map(parts).collect(),
        input: out_gradient,
        image_scales: out_gradient.units(),
        input_scales,
        scales,
        input_len: [shape.out_image(), shape.group_out() * shape.out_plane()],
        channels: shape.group_in(),
        size: shape.size,
        has_gaps: (0..2).any(|i| shape.stride[i] > shape.kernel[i]),
    };
    correlation.run(gradient);
}

/// The input pixels of a phase of the stride, if there are any.
fn part<C: Factor>(
    shape: &ConvShape,
    meetings: &[Meetings; 2],
    weight: Factors<'_>,
    [y, x]: [usize; 2],
    terms: usize,
) -> Option<Part<C>> {
    let spread = [meetings[0].spread(y)?, meetings[1].spread(x)?];
    // Positions of the kernel, each with the place that it reads.
    let mut taps = Vec::new();
    for (ky, place_y) in meetings[0].positions(y) {
        for (kx, place_x) in meetings[1].positions(x) {
            taps.push((ky * shape.kernel[1] + kx, [place_y, place_x]));
        }
    }
    let n_cells = shape.group_out().div_ceil(C::CHANNELS);
    let order = Order::new(n_cells, taps.len(), terms);
    let position = |cell, tap: usize| Position::new(cell, 0, taps[tap].1);
    let (n_taps, len) = (shape.taps(), shape.group_in() * shape.taps());
    Some(Part::new(order, spread, shape.group_in(), position, |cell, tap| {
        // The kernels of the output channels of the cell.
        let output = cell % n_cells * C::CHANNELS;
        let first = output * len + taps[tap].0;
        let has_second = C::CHANNELS == 2 && output + 1 < shape.group_out();
        move |channel| {
            let at = first + channel * n_taps;
            let second = if has_second { weight.at(at + len) } else { 0.0 };
            C::of(weight.at(at), second)
        }
    }))
}
