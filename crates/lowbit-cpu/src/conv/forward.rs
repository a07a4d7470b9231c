//! The forward pass.

use std::borrow::Cow;

use super::cell::{Bf16Pair, Cell, Rounded};
use super::correlation::{Correlation, Order, Part, Spread};
use super::direct;
use super::kernel::Factor;
use super::operand::{Factors, Gradient, Precision, Weights, rounded};
use super::planes::{Axis, Planes, Position};
use super::shape::ConvShape;
#[cfg(target_arch = "x86_64")]
use super::tiles::TilePair;
use super::way::Way;
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
    let run = match Way::new(precision, [false; 2], Some(shape.group_in())) {
        Way::Floats => run::<f32>,
        Way::Rounded => run::<Rounded>,
        Way::Bf16 => run::<Bf16Pair>,
        #[cfg(target_arch = "x86_64")]
        Way::Tiles | Way::TilesOfTerms => run::<TilePair>,
    };
    let shape = &shape.with_plain_planes();
    // SAFETY: all values are written.
    unsafe { collect_into(out, shape.batch * shape.out_image(), |out| run(shape, input, weight, out)) }
}

/// Writes all values of the result.
pub(super) fn run<C: Factor>(shape: &ConvShape, input: &[f32], weight: Weights<'_>, out: &mut [Slot]) {
    let size = shape.out_size();
    let spread = size.map(|n| Spread { skip: 0, n, first: 0, step: 1 });
    let ((factors, scales), len) = (weight.factors(shape), shape.group_weight());
    let (taps, n_taps) = (window(shape), shape.taps());
    let order = Order::new(shape.group_in().div_ceil(C::CHANNELS), n_taps, 1);
    let part = |factors: Factors<'_>| {
        let position = |cell, tap: usize| Position::new(cell, taps[tap].0, taps[tap].1);
        Part::new(order, spread, shape.group_out(), position, |cell, tap| {
            let input = cell * C::CHANNELS;
            let has_second = C::CHANNELS == 2 && input + 1 < shape.group_in();
            move |channel| {
                let at = (channel * shape.group_in() + input) * n_taps + tap;
                let second = if has_second { factors.at(at + n_taps) } else { 0.0 };
                C::of(factors.at(at), second)
            }
        })
    };
    // One part has all pixels as results, and all groups and blocks of channels have it.
    let correlation = Correlation {
        batch: shape.batch,
        planes: input_planes(shape),
        groups: (0..shape.groups).map(|group| vec![part(factors.part(group * len, len))]).collect(),
        input: Gradient::Values(input),
        image_scales: None,
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

/// Positions of a window, each by the number of its phase and the place in its plane, in the order of the weights.
pub fn window(shape: &ConvShape) -> Vec<(usize, [usize; 2])> {
    let [stride_y, stride_x] = shape.stride;
    let phases_x = stride_x.min(shape.kernel[1]);
    let taps = (0..shape.kernel[0]).flat_map(|y| (0..shape.kernel[1]).map(move |x| [y, x]));
    taps.map(|[y, x]| (y % stride_y * phases_x + x % stride_x, [y / stride_y, x / stride_x])).collect()
}
