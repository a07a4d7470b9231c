//! Images laid out for the loops of convolutions: planes with zeros around them, whose pixels and steps are plain distances.
//!
//! A window that moves over a plane reads each of its values at a fixed distance from where it begins. So a convolution is a sum, for
//! each step of the kernel, of one long row shifted and multiplied by a factor. What is computed where a window wraps round the
//! end of a row is left out. The zeros behind a row are those before the next one, and those below an image those above the next.
//!
//! With a stride, a plane is made for each of its phases: then neighboring windows are neighbors in each plane too.

use std::cell::RefCell;

use rayon::prelude::*;

use super::kernel::BEYOND;
use super::source::{copy, grow, set_zero};
use crate::instructions::multiversion;
use crate::packed::PackedImages;
use crate::task_items;

/// How values of an image come to lie along one axis of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Zeros before the first value.
    pub lead: usize,
    /// Values.
    pub len: usize,
    /// The image's coordinate of the first value.
    pub first: usize,
    /// From value to value in the image.
    pub step: usize,
    /// One more than the last place that is read.
    pub reads: usize,
}

impl Axis {
    /// The phases of an axis that a window of a convolution reads: `size` values, padded, in steps of `stride`.
    pub fn phases(size: usize, out: usize, kernel: usize, stride: usize, padding: usize) -> Vec<Self> {
        let phase = |phase: usize| {
            // Place `i` of the plane is the coordinate `i * stride + phase - padding`.
            let lead = padding.saturating_sub(phase).div_ceil(stride);
            let reads = out + (kernel - 1 - phase) / stride;
            let first = lead * stride + phase - padding;
            let len = if first < size { (size - first).div_ceil(stride) } else { 0 };
            // What is never read is left out, as behind the last window of a stride.
            Self { lead, len: len.min(reads.saturating_sub(lead)), first, step: stride, reads }
        };
        (0..stride.min(kernel)).map(phase).collect()
    }

    /// The smallest distance from row to row with which what is read behind a row's end is zero.
    fn pitch(&self) -> usize {
        (self.lead + self.len).max(self.reads.saturating_sub(self.lead))
    }
}

/// A value of a plane: where a summand is read.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    pub channel: usize,
    pub phase: usize,
    pub place: [usize; 2],
}

/// Planes of the channels of some images: for each channel and phase, the plane of each image.
#[derive(Clone, Debug)]
pub struct Planes {
    channels: usize,
    /// Height and width of an image.
    size: [usize; 2],
    /// Values from image to image of the input.
    input_image: usize,
    /// The axes of each plane of a channel.
    phases: Vec<[Axis; 2]>,
    /// Values from row to row.
    pub row: usize,
    /// Rows of an image.
    pub rows: usize,
}

impl Planes {
    /// `channels` of images of `size`, which lie `input_image` values apart: a plane for each pair of phases, wide enough for `outputs`
    /// rows and columns of results.
    pub fn new(
        channels: usize,
        size: [usize; 2],
        input_image: usize,
        [y, x]: [Vec<Axis>; 2],
        outputs: [usize; 2],
    ) -> Self {
        let pitch = |axes: &[Axis], outputs: usize| {
            axes.iter().map(Axis::pitch).max().unwrap_or(0).max(outputs).max(1)
        };
        let (rows, row) = (pitch(&y, outputs[0]), pitch(&x, outputs[1]));
        let phases = y.iter().flat_map(|y| x.iter().map(|x| [*y, *x])).collect();
        Self { channels, size, input_image, phases, row, rows }
    }

    /// Values of a plane.
    pub fn plane(&self) -> usize {
        self.row * self.rows
    }

    /// How far behind the last image is read: as if another one followed, of whose first rows zeros are read.
    fn zeros_behind(&self) -> usize {
        let lead = |axis: usize| self.phases.iter().map(|phase| phase[axis].lead).max().unwrap_or(0);
        lead(0) * self.row + lead(1)
    }

    /// Values from plane to plane of `n` images, with zeros for a vector that begins in it: not a multiple of what a cache repeats its
    /// places after.
    pub fn stride(&self, n: usize) -> usize {
        let len = (n * self.plane() + self.zeros_behind()).next_multiple_of(BEYOND);
        if len.is_multiple_of(256) { len + 16 } else { len }
    }

    /// Where the value at `place` of a channel's phase is, in planes of `n` images.
    fn index(&self, n: usize, channel: usize, phase: usize, place: [usize; 2]) -> usize {
        (channel * self.phases.len() + phase) * self.stride(n) + place[0] * self.row + place[1]
    }

    /// Where values are, in planes of `n` images.
    ///
    /// # Panics
    /// If they are beyond what 32 bits can count.
    pub fn places(&self, n: usize, positions: &[Position], places: &mut Vec<u32>) {
        places.clear();
        places.extend(positions.iter().map(|&Position { channel, phase, place }| {
            let place = self.index(n, channel, phase, place);
            u32::try_from(place).expect("planes of less than 2^32 values")
        }));
    }

    /// Values of the planes of `n` images, with the zeros behind them.
    pub fn len(&self, n: usize) -> usize {
        let reads = |axis: usize| self.phases.iter().map(|phase| phase[axis].reads).max().unwrap_or(0);
        // Pixels that are no results read further than the last one.
        self.channels * self.phases.len() * self.stride(n) + reads(0) * self.row + reads(1) + 2 * BEYOND
    }

    /// The planes of `n` images, made by one thread.
    pub fn pack<'a>(&self, images: Images<'_>, n: usize, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        let (buffer, stride) = self.prepare(n, buffer);
        let channels = buffer.chunks_exact_mut(self.phases.len() * stride).take(self.channels);
        channels.enumerate().for_each(|(channel, planes)| pack_channel(self, images, channel, n, planes));
        buffer
    }

    /// The same by all threads.
    pub fn pack_shared<'a>(&self, images: Images<'_>, n: usize, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        let (buffer, stride) = self.prepare(n, buffer);
        let len = self.phases.len() * stride;
        let channels = buffer[..self.channels * len].par_chunks_exact_mut(len).with_min_len(task_items(len));
        channels.enumerate().for_each(|(channel, planes)| pack_channel(self, images, channel, n, planes));
        buffer
    }

    /// A buffer for the planes of `n` images with the zeros behind them, and the values from plane to plane.
    fn prepare<'a>(&self, n: usize, buffer: &'a mut Vec<f32>) -> (&'a mut [f32], usize) {
        let (len, stride) = (self.len(n), self.stride(n));
        grow(buffer, len);
        let buffer = &mut buffer[..len];
        buffer[self.channels * self.phases.len() * stride..].fill(0.0);
        (buffer, stride)
    }
}

/// Images that are laid out.
#[derive(Clone, Copy)]
pub enum Images<'a> {
    /// Values, of which the first image's begin here.
    Values(&'a [f32]),
    /// Packed codes, from this image on.
    Codes(&'a PackedImages, usize),
}

thread_local! {
    /// The values of a plane of codes.
    static UNPACKED: RefCell<Vec<f32>> = RefCell::default();
}

/// The planes of one channel.
fn pack_channel(layout: &Planes, images: Images<'_>, channel: usize, n: usize, planes: &mut [f32]) {
    let (plane_len, plane_values) = (layout.plane(), layout.size[0] * layout.size[1]);
    for plane in planes.chunks_exact_mut(layout.stride(n)) {
        plane[n * plane_len..].fill(0.0);
    }
    for image in 0..n {
        match images {
            Images::Values(values) => {
                let values = &values[image * layout.input_image + channel * plane_values..][..plane_values];
                pack_plane(layout, values, image, n, planes);
            }
            Images::Codes(codes, first) => UNPACKED.with_borrow_mut(|values| {
                grow(values, plane_values);
                let values = &mut values[..plane_values];
                codes.unpack(first + image, channel * plane_values, values);
                pack_plane(layout, values, image, n, planes);
            }),
        }
    }
}

multiversion! {
    /// The planes of one channel of an image, for each phase.
    fn pack_plane(layout: &Planes, values: &[f32], image: usize, n: usize, planes: &mut [f32]) {
        let (plane_len, width) = (layout.plane(), layout.size[1]);
        for (plane, [y, x]) in planes.chunks_exact_mut(layout.stride(n)).zip(&layout.phases) {
            let plane = &mut plane[image * plane_len..][..plane_len];
            let (above, plane) = plane.split_at_mut(y.lead * layout.row);
            above.fill(0.0);
            let (inner, below) = plane.split_at_mut(y.len * layout.row);
            below.fill(0.0);
            let rows = values[(y.first * width).min(values.len())..].chunks(y.step * width);
            for (row, out) in rows.zip(inner.chunks_exact_mut(layout.row)) {
                pack_row(row, x, out);
            }
        }
    }
}

/// A row of a plane.
#[inline(always)]
fn pack_row(row: &[f32], axis: &Axis, out: &mut [f32]) {
    let (before, out) = out.split_at_mut(axis.lead);
    set_zero(before);
    let (values, behind) = out.split_at_mut(axis.len);
    set_zero(behind);
    if axis.len == 0 {
        return;
    }
    if axis.step == 1 {
        copy(&row[axis.first..][..axis.len], values);
    } else if axis.step == 2 {
        let (pairs, rest) = row[axis.first..].as_chunks::<2>();
        for (out, [x, _]) in values.iter_mut().zip(pairs) {
            *out = *x;
        }
        if let (Some(out), Some(x)) = (values.get_mut(pairs.len()), rest.first()) {
            *out = *x;
        }
    } else {
        values.iter_mut().zip(row[axis.first..].iter().step_by(axis.step)).for_each(|(out, x)| *out = *x);
    }
}
