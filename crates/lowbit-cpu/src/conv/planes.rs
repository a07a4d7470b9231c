//! Images laid out for the loops of convolutions: planes with zeros around them, whose pixels and steps are plain distances.
//!
//! A window that moves over a plane reads each of its values at a fixed distance from where it begins. So a convolution is a sum, for
//! each step of the kernel, of one long row shifted and multiplied by a factor. What is computed where a window wraps round the
//! end of a row is left out, or multiplied by zero. The zeros behind a row are those before the next one, and those below an image those above the next.
//!
//! With a stride, a plane is made for each of its phases: then neighboring windows are neighbors in each plane too.

use std::cell::RefCell;

use rayon::prelude::*;

use super::kernel::BEYOND;
use super::source::{copy, grow, set_zero, table_index};
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
    channel: u32,
    phase: u32,
    place: [u32; 2],
}

impl Position {
    pub fn new(channel: usize, phase: usize, place: [usize; 2]) -> Self {
        Self { channel: table_index(channel), phase: table_index(phase), place: place.map(table_index) }
    }
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
    /// How far below and right of a pixel is read.
    reach: [usize; 2],
    /// Zeros behind the last image: as if another one followed, of whose first rows zeros are read.
    zeros_behind: usize,
    /// What the length of a plane is a multiple of.
    multiple: usize,
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
        let most = |axes: &[Axis], of: fn(&Axis) -> usize| axes.iter().map(of).max().unwrap_or(0);
        let reach = [&y, &x].map(|axes| most(axes, |axis| axis.reads));
        let reach = [0, 1].map(|i| reach[i].saturating_sub(outputs[i]));
        let zeros_behind = most(&y, |axis| axis.lead) * row + most(&x, |axis| axis.lead);
        let phases = y.iter().flat_map(|y| x.iter().map(|x| [*y, *x])).collect();
        Self { channels, size, input_image, phases, reach, zeros_behind, multiple: 1, row, rows }
    }

    /// The same with zeros behind each plane up to a multiple of [`BEYOND`]: what [`dots`](super::kernel::dots) asks of its rows.
    pub fn with_padded_rows(self) -> Self {
        Self { multiple: BEYOND, ..self }
    }

    /// Values of a plane.
    pub fn plane(&self) -> usize {
        self.row * self.rows
    }

    /// Values from plane to plane of `n` images: not a multiple of what a cache repeats its places after.
    pub fn stride(&self, n: usize) -> usize {
        let len = (n * self.plane() + self.zeros_behind).next_multiple_of(self.multiple);
        if len.is_multiple_of(256) { len + 16 } else { len }
    }

    /// Where values are, in planes of `n` images.
    ///
    /// # Panics
    /// If they are beyond what 32 bits can count.
    pub fn places(&self, n: usize, positions: &[Position], places: &mut Vec<u32>) {
        let (stride, phases) = (self.stride(n), self.phases.len());
        places.clear();
        places.extend(positions.iter().map(|&Position { channel, phase, place: [y, x] }| {
            let plane = channel as usize * phases + phase as usize;
            table_index(plane * stride + y as usize * self.row + x as usize)
        }));
    }

    /// Values of the planes of `n` images, with the zeros behind them.
    pub fn len(&self, n: usize) -> usize {
        let [y, x] = self.reach;
        // Pixels that are no results read further than the last one.
        self.channels * self.phases.len() * self.stride(n) + y * self.row + x + 2 * BEYOND
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
