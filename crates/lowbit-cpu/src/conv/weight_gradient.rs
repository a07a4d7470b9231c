//! The gradient of the weights.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::cell::{Bf16, Rounded};
use super::correlation::{are_even, even_parts, images_together};
use super::direct;
use super::forward::{input_planes, window};
use super::kernel::{BEYOND, DOTS, Dots, OCTET, Pixels, Summand, dots, width_in_octets};
use super::operand::{Gradient, Input, Precision};
use super::planes::{Axis, Images, Planes, Position};
use super::shape::ConvShape;
#[cfg(target_arch = "x86_64")]
use super::tiles::TiledSums;
use super::way::Way;
#[cfg(target_arch = "x86_64")]
use crate::bf16;
#[cfg(target_arch = "x86_64")]
use crate::output::collect;
use crate::task_items;

/// Pixels that are summed up before the sums are added to those of other pixels: the order of the sum is nearer to pairwise, and
/// their rows stay in the nearest cache.
const PIXELS: usize = 2048;

/// Values that the sums of all shares of the batch take at most.
const PARTIAL_LEN: usize = 1 << 19;

/// Shares of the batch at most.
const SHARES: usize = 64;

/// Buffers of shares of the batch that have ended, for the next ones. Not of a thread: it may begin another share while it waits in one.
static BUFFERS: Mutex<Vec<[Vec<f32>; 2]>> = Mutex::new(Vec::new());

/// Gradient of the weights from the gradient of the output.
///
/// # Shapes
/// Those of [`ConvShape`].
///
/// # Equation
/// `gradient[o][c][i][j] = sum over b, y, x of input[b][c][y s + i - p][x s + j - p] out_gradient[b][o][y][x]`
///
/// Where a window wraps round the end of a row, the gradient is taken for zero: what is not finite in the input spreads to all
/// positions of the kernel.
///
/// # Panics
/// If a length does not fit the shape, there is not one maximum of codes for each image, or the shape has a size of 0 but for the padding
/// and the batch.
pub fn weight_gradient(
    shape: &ConvShape,
    input: Input<'_>,
    out_gradient: Gradient<'_>,
    precision: Precision,
) -> Vec<f32> {
    shape.check_sizes();
    let len = shape.groups * shape.group_weight();
    shape.check(input.len(), len);
    shape.check_output(out_gradient.len(shape));
    if shape.batch == 0 {
        return vec![0.0; len];
    }
    if let Input::Codes(codes) = input {
        assert_eq!(codes.image_len(), shape.in_image(), "length of an image");
    }
    if shape.has_tiny_groups() {
        let out_gradient = out_gradient.values(precision);
        return direct::weight_gradient(shape, &input.values(precision), &out_gradient);
    }
    // Tiles have no sums of single images.
    let channels = Some(shape.group_in()).filter(|channels| !out_gradient.are_codes() && are_even(*channels));
    let of_group = match Way::new(precision, [input.are_codes(), out_gradient.are_codes()], channels) {
        Way::Floats => group_gradient::<f32>,
        Way::Rounded => group_gradient::<Rounded>,
        Way::Bf16 => group_gradient::<Bf16>,
        #[cfg(target_arch = "x86_64")]
        Way::Tiles => tiled_gradient::<1>,
        #[cfg(target_arch = "x86_64")]
        Way::TilesOfTerms => tiled_gradient::<{ bf16::TERMS }>,
    };
    let mut groups = (0..shape.groups).map(|group| of_group(shape, input, out_gradient, group));
    let mut gradient = groups.next().expect("invariant: there is a group");
    groups.for_each(|group| gradient.extend(group));
    gradient
}

/// The gradient of one group.
fn group_gradient<C: Summand>(
    shape: &ConvShape,
    input: Input<'_>,
    out_gradient: Gradient<'_>,
    group: usize,
) -> Vec<f32> {
    let shape = &shape.with_plain_planes();
    let job = Job::<C>::new(shape, input, out_gradient, group);
    let mut sums = sum_of_shares(&job, |images| job.partial(images));
    // In place, block by block: of each step there are the sums of all rows, and rows are asked for.
    let (scale, row) = (input.scale(), job.positions.len());
    let blocks = sums.par_chunks_mut(DOTS * row).with_min_len(task_items(DOTS * row));
    blocks.for_each(|block| {
        let of_steps = block.to_vec();
        for (a, row) in block.chunks_exact_mut(row).enumerate() {
            row.iter_mut().zip(of_steps.as_chunks::<DOTS>().0).for_each(|(sum, sums)| *sum = scale * sums[a]);
        }
    });
    sums.truncate(shape.group_weight());
    sums
}

/// The same by the matrix unit, of so many terms of the output's gradient.
#[cfg(target_arch = "x86_64")]
pub(super) fn tiled_gradient<const TERMS: usize>(
    shape: &ConvShape,
    input: Input<'_>,
    out_gradient: Gradient<'_>,
    group: usize,
) -> Vec<f32> {
    let shape = &shape.with_plain_planes();
    let job = Job::<Bf16>::new(shape, input, out_gradient, group).with_terms(TERMS);
    let tiled = TiledSums::new(shape);
    let sums = sum_of_shares(&job, |images| {
        let mut sums = vec![0.0; tiled.len()];
        tiled.add(&job, images, TERMS, &mut sums);
        sums
    });
    // SAFETY: the sums of all weights are written.
    unsafe { collect(shape.group_weight(), |gradient| tiled.write(&sums, input.scale(), gradient)) }
}

/// The sums over all images, share by share.
fn sum_of_shares<C: Summand>(
    job: &Job<'_, C>,
    partial: impl Fn(Range<usize>) -> Vec<f32> + Send + Sync,
) -> Vec<f32> {
    let shares: Vec<Range<usize>> = job.shares().collect();
    let partials: Vec<Vec<f32>> = shares.into_par_iter().map(partial).collect();
    let mut partials = partials.into_iter();
    let mut sums = partials.next().expect("invariant: there is a share");
    let others: Vec<Vec<f32>> = partials.collect();
    let len = task_items(1 + others.len());
    sums.par_chunks_mut(len).enumerate().for_each(|(i, sums)| {
        for other in &others {
            sums.iter_mut().zip(&other[i * len..]).for_each(|(sum, value)| *sum += value);
        }
    });
    sums
}

/// What is computed for a group of channels: each row of the weights, an output channel, is made of sums over the pixels of this
/// channel's gradient and of the input at all positions of a window.
pub(super) struct Job<'a, C> {
    shape: &'a ConvShape,
    input: Input<'a>,
    out_gradient: Gradient<'a>,
    /// What it is worth in each image.
    units: Option<Vec<f32>>,
    /// The first channels of the group, of the input and of the output.
    channels: [usize; 2],
    /// The input.
    planes: Planes<C>,
    /// The gradient of the output, at the same distances.
    gradients: Planes<C>,
    /// What is read at each position of a window.
    positions: Vec<Position>,
    /// Images that are summed up together.
    images: usize,
    /// Whether only pixels of the output are summed up, each octet of which has a place of its own in the input.
    in_octets: bool,
}

impl<'a, C: Summand> Job<'a, C> {
    fn new(shape: &'a ConvShape, input: Input<'a>, out_gradient: Gradient<'a>, group: usize) -> Self {
        let channels = [group * shape.group_in(), group * shape.group_out()];
        let units = out_gradient.units();
        let separate = |planes: Planes<C>| match units {
            Some(_) => planes.with_separate_images(),
            None => planes,
        };
        let planes = separate(input_planes::<C>(shape));
        let out = shape.out_size();
        let axis = |n| vec![Axis { lead: 0, len: n, first: 0, step: 1, reads: n }];
        let width = width_in_octets(out, planes.plane()).filter(|_| C::IN_OCTETS && units.is_none());
        let pitch = width.map_or([planes.rows, planes.row], |width| [out[0], width]);
        let gradients =
            Planes::new(shape.group_out(), out, shape.out_image(), out.map(axis), pitch).with_padded_rows();
        let gradients = separate(gradients);
        let images = images_together(planes.plane());
        let taps = window(shape);
        let positions = (0..shape.group_in())
            .flat_map(|channel| taps.iter().map(move |&(phase, place)| Position::new(channel, phase, place)))
            .collect();
        Self {
            shape,
            input,
            out_gradient,
            units,
            channels,
            planes,
            gradients,
            positions,
            images,
            in_octets: width.is_some(),
        }
    }

    /// The same with rows of so many terms of the gradients.
    #[cfg(target_arch = "x86_64")]
    fn with_terms(self, terms: usize) -> Self {
        Self { gradients: self.gradients.with_terms(terms), ..self }
    }

    /// Images of the batch that are summed up one after the other. They depend on the shape only: the order of the sums must not
    /// depend on the threads.
    fn shares(&self) -> impl Iterator<Item = Range<usize>> {
        let batch = self.shape.batch;
        let n_groups = batch.div_ceil(self.images);
        let n_shares = (PARTIAL_LEN / self.shape.group_weight()).clamp(1, SHARES).min(n_groups);
        let share = n_groups.div_ceil(n_shares) * self.images;
        (0..batch).step_by(share).map(move |first| first..(first + share).min(batch))
    }

    /// Calls `work` with what is laid out of some images together, for all of a range: the number of the first; the image and where
    /// it is read; the rows of gradients and the cells from row to row; and the number of pixels.
    pub(super) fn for_each_group(
        &self,
        range: Range<usize>,
        mut work: impl FnMut(usize, &[C], &[u32], &[C], usize, usize),
    ) {
        let shape = self.shape;
        let mut steps = Vec::new();
        let buffers = || BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
        let [mut image, mut rows] = buffers().pop().unwrap_or_default();
        for first in range.clone().step_by(self.images) {
            let n = self.images.min(range.end - first);
            let input = match self.input {
                Input::Values(values) => {
                    let at = first * shape.in_image() + self.channels[0] * shape.in_plane();
                    Images::Values(&values[at..], None)
                }
                Input::Codes(codes) => Images::Codes(codes, [first, self.channels[0]]),
            };
            let image = self.planes.pack_shared(input, n, &mut image);
            self.planes.places(n, &self.positions, &mut steps);
            let at = first * shape.out_image() + self.channels[1] * shape.out_plane();
            let out_gradient = self.out_gradient.images(at, None);
            let rows = self.gradients.pack_shared(out_gradient, n, &mut rows);
            work(first, image, &steps, rows, self.gradients.stride(n), n * self.gradients.plane());
        }
        buffers().push([image, rows]);
    }

    /// The gradient by some images: for each block of rows and each position of a window, the sums of all rows.
    fn partial(&self, range: Range<usize>) -> Vec<f32> {
        let mut partial = vec![0.0; self.shape.group_out().next_multiple_of(DOTS) * self.positions.len()];
        let mut octets = Vec::new();
        self.for_each_group(range, |first, image, steps, rows, stride, n_pixels| {
            let plane = self.gradients.plane();
            if self.in_octets {
                self.planes.octets(
                    n_pixels / plane,
                    [[0, self.gradients.rows], [0, self.gradients.row]],
                    &mut octets,
                );
            }
            // Of images that have units, as many pixels as are summed up before they are multiplied with them.
            let mut together = even_parts(n_pixels, PIXELS).next_multiple_of(BEYOND);
            let units = self.units.as_ref().map(|units| {
                if n_pixels > plane {
                    together = n_pixels;
                }
                (&units[first..], plane.min(together))
            });
            let len = DOTS * steps.len();
            let blocks = partial.par_chunks_mut(len).enumerate();
            blocks.with_min_len(task_items(len * n_pixels)).for_each(|(block, partial)| {
                let n_rows = DOTS.min(self.shape.group_out() - block * DOTS);
                for pixel in (0..n_pixels).step_by(together) {
                    let rows = &rows[block * DOTS * stride + pixel..];
                    let n = together.min(n_pixels - pixel);
                    let (image, pixels) = match self.in_octets {
                        true => (image, Pixels::of_rows(self.gradients.row, &octets[pixel / OCTET..])),
                        false => (&image[pixel..], Pixels::SideBySide),
                    };
                    dots(Dots { image, steps, rows, stride, n_rows, pixels, n, units }, partial);
                }
            });
        });
        partial
    }
}
