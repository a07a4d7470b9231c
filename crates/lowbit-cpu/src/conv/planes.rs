//! Images laid out for the loops of convolutions: planes with zeros around them, whose pixels and steps are plain distances.
//!
//! A window that moves over a plane reads each of its values at a fixed distance from where it begins. So a convolution is a sum,
//! for each step of the kernel, of one long row shifted and multiplied by a factor. What is computed where a window wraps round the
//! end of a row is left out, or multiplied by zero. The zeros behind a row are those before the next one, and those below an image
//! those above the next. Where rows of results are of whole octets, only these are computed ([`Planes::octets`]).
//!
//! With a stride, a plane is made for each of its phases: then neighboring windows are neighbors in each plane too.

use std::cell::RefCell;
use std::marker::PhantomData;

use rayon::prelude::*;

use super::cell::{Cell, cells, convert};
use super::kernel::{BEYOND, MOST_LANES, OCTET};
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

/// A cell of a plane: where a summand is read.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// That of a cell: one for each [`Cell::CHANNELS`] of the images.
    channel: u32,
    phase: u32,
    place: [u32; 2],
}

impl Position {
    pub fn new(channel: usize, phase: usize, place: [usize; 2]) -> Self {
        Self { channel: table_index(channel), phase: table_index(phase), place: place.map(table_index) }
    }
}

/// Planes of the channels of some images: for each cell of channels and each phase, the plane of each image.
#[derive(Clone, Debug)]
pub struct Planes<C> {
    cells: PhantomData<C>,
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
    /// What the length of an image's plane is a multiple of.
    image_multiple: usize,
    /// Terms of bf16 that values are split into, each in cells of its own, the last term first.
    terms: usize,
    /// Values from row to row.
    pub row: usize,
    /// Rows of an image.
    pub rows: usize,
}

impl<C: Cell> Planes<C> {
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
        Self {
            cells: PhantomData,
            channels,
            size,
            input_image,
            phases,
            reach,
            zeros_behind,
            multiple: 1,
            image_multiple: 1,
            terms: 1,
            row,
            rows,
        }
    }

    /// The same with zeros behind each plane up to a multiple of [`BEYOND`]: what [`dots`](super::kernel::dots) asks of its rows.
    pub fn with_padded_rows(self) -> Self {
        Self { multiple: BEYOND, ..self }
    }

    /// The same with zeros behind each image up to a multiple of what a vector has: sums over pixels are of one image.
    pub fn with_separate_images(self) -> Self {
        Self { image_multiple: MOST_LANES, ..self }
    }

    /// The same with the cells of so many terms of the values.
    pub fn with_terms(self, terms: usize) -> Self {
        Self { terms, ..self }
    }

    /// Cells of a pixel, of one term.
    fn cells_of_term(&self) -> usize {
        self.channels.div_ceil(C::CHANNELS)
    }

    /// Cells of a pixel.
    fn n_cells(&self) -> usize {
        self.terms * self.cells_of_term()
    }

    /// Cells of a plane.
    pub fn plane(&self) -> usize {
        (self.row * self.rows).next_multiple_of(self.image_multiple)
    }

    /// Cells from plane to plane of `n` images: not a multiple of what a cache repeats its places after.
    pub fn stride(&self, n: usize) -> usize {
        let len = (n * self.plane() + self.zeros_behind).next_multiple_of(self.multiple);
        let repeats = (len * size_of::<C>()).is_multiple_of(1024);
        if repeats { len + 64 / size_of::<C>() } else { len }
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

    /// Where each octet of pixels is, in planes of `n` images: of so many rows and columns from a first one on, image by image. Behind
    /// the last one follow first ones, for as many pixels as loops reach beyond.
    pub fn octets(
        &self,
        n: usize,
        [[first_y, rows], [first_x, columns]]: [[usize; 2]; 2],
        octets: &mut Vec<u32>,
    ) {
        octets.clear();
        for image in 0..n {
            for row in 0..rows {
                let at = image * self.plane() + (first_y + row) * self.row + first_x;
                octets.extend((0..columns).step_by(OCTET).map(|column| table_index(at + column)));
            }
        }
        let first = octets.first().copied().unwrap_or(0);
        octets.resize(octets.len() + BEYOND / OCTET, first);
    }

    /// Cells of the planes of `n` images, with the zeros behind them.
    pub fn len(&self, n: usize) -> usize {
        let [y, x] = self.reach;
        // Pixels that are no results read further than the last one.
        self.n_cells() * self.phases.len() * self.stride(n) + y * self.row + x + 2 * BEYOND
    }

    /// The planes of `n` images, made by one thread.
    pub fn pack<'a>(&self, images: Images<'_>, n: usize, buffer: &'a mut Vec<f32>) -> &'a [C] {
        let (buffer, stride) = self.prepare(n, buffer);
        let all = buffer.chunks_exact_mut(self.phases.len() * stride).take(self.n_cells());
        all.enumerate().for_each(|(cell, planes)| pack_cells(self, images, cell, n, planes));
        buffer
    }

    /// The same by all threads.
    pub fn pack_shared<'a>(&self, images: Images<'_>, n: usize, buffer: &'a mut Vec<f32>) -> &'a [C] {
        let (buffer, stride) = self.prepare(n, buffer);
        let len = self.phases.len() * stride;
        let all = buffer[..self.n_cells() * len].par_chunks_exact_mut(len).with_min_len(task_items(len));
        all.enumerate().for_each(|(cell, planes)| pack_cells(self, images, cell, n, planes));
        buffer
    }

    /// A buffer for the planes of `n` images with the zeros behind them, and the cells from plane to plane.
    fn prepare<'a>(&self, n: usize, buffer: &'a mut Vec<f32>) -> (&'a mut [C], usize) {
        let (len, stride) = (self.len(n), self.stride(n));
        let buffer = cells(buffer, len);
        set_all_zero(&mut buffer[self.n_cells() * self.phases.len() * stride..]);
        (buffer, stride)
    }
}

/// Images that are laid out.
#[derive(Clone, Copy)]
pub enum Images<'a> {
    /// Values, of which the first image's begin here, and what those of each channel are multiplied with, if with anything.
    Values(&'a [f32], Option<&'a [f32]>),
    /// The same of codes of gradients, the largest of which is given: twice the code less the largest.
    Gradient(&'a [u8], u8, Option<&'a [f32]>),
    /// Packed codes, from an image and a channel on.
    Codes(&'a PackedImages, [usize; 2]),
}

thread_local! {
    /// The values of codes, and cells: of a plane of each channel of a cell.
    static PLANES: RefCell<[Vec<f32>; 2]> = RefCell::default();
}

/// The planes of the channels of one cell.
fn pack_cells<C: Cell>(layout: &Planes<C>, images: Images<'_>, cell: usize, n: usize, planes: &mut [C]) {
    let (plane_len, plane_values) = (layout.plane(), layout.size[0] * layout.size[1]);
    for plane in planes.chunks_exact_mut(layout.stride(n)) {
        set_all_zero(&mut plane[n * plane_len..]);
    }
    let term = layout.terms - 1 - cell / layout.cells_of_term();
    let first = cell % layout.cells_of_term() * C::CHANNELS;
    let channels = first..(first + C::CHANNELS).min(layout.channels);
    PLANES.with_borrow_mut(|[unpacked, converted]| {
        let len = channels.len() * plane_values;
        let scales = match images {
            Images::Values(_, scales) | Images::Gradient(_, _, scales) => scales,
            Images::Codes(..) => None,
        };
        let scale = |i: usize| scales.and_then(|scales| scales.get(first + i)).copied();
        let scales = scale(0).map(|first| [first, scale(1).unwrap_or(0.0)]);
        for image in 0..n {
            let at = image * layout.input_image + first * plane_values;
            let values = match images {
                Images::Values(values, _) => &values[at..][..len],
                Images::Gradient(codes, largest, _) => {
                    grow(unpacked, len);
                    steps_of_gradient(&codes[at..][..len], largest, &mut unpacked[..len]);
                    &unpacked[..len]
                }
                Images::Codes(codes, [first_image, first_channel]) => {
                    grow(unpacked, len);
                    let at = (first_channel + first) * plane_values;
                    codes.unpack(first_image + image, at, &mut unpacked[..len]);
                    &unpacked[..len]
                }
            };
            let plane = match C::of_values(values).filter(|_| scales.is_none() && term == 0) {
                Some(plane) => plane,
                None => {
                    let plane = cells(converted, plane_values);
                    let (first, second) = values.split_at(plane_values);
                    convert(first, second, scales, term, plane);
                    plane
                }
            };
            pack_plane(layout, plane, image, n, planes);
        }
    });
}

multiversion! {
    /// What codes of gradients stand for, in steps.
    fn steps_of_gradient(codes: &[u8], largest: u8, steps: &mut [f32]) {
        let largest = i32::from(largest);
        for (step, code) in steps.iter_mut().zip(codes) {
            *step = (2 * i32::from(*code) - largest) as f32;
        }
    }
}

multiversion! {
    /// The planes of the channels of one cell of an image, for each phase.
    fn pack_plane<C: Cell>(layout: &Planes<C>, cells: &[C], image: usize, n: usize, planes: &mut [C]) {
        let (plane_len, width) = (layout.plane(), layout.size[1]);
        for (plane, [y, x]) in planes.chunks_exact_mut(layout.stride(n)).zip(&layout.phases) {
            let plane = &mut plane[image * plane_len..][..plane_len];
            let (above, plane) = plane.split_at_mut(y.lead * layout.row);
            let (inner, below) = plane.split_at_mut(y.len * layout.row);
            let cells = &cells[(y.first * width).min(cells.len())..];
            set_zero(above, C::of(0.0, 0.0));
            match (x.step, x.len) {
                // Without zeros, an image is as it was.
                (1, len) if len == layout.row && len == width && y.step == 1 => {
                    inner.copy_from_slice(&cells[..inner.len()]);
                }
                (1, 8) => pack_rows::<C, 8>(cells, y.step * width, x, inner, layout.row),
                (1, 16) => pack_rows::<C, 16>(cells, y.step * width, x, inner, layout.row),
                (1, 32) => pack_rows::<C, 32>(cells, y.step * width, x, inner, layout.row),
                _ => {
                    let rows = cells.chunks(y.step * width);
                    for (row, out) in rows.zip(inner.chunks_exact_mut(layout.row)) {
                        pack_row(row, x, out);
                    }
                }
            }
            set_zero(below, C::of(0.0, 0.0));
        }
    }
}

/// Rows of `LEN` values each, `stride` cells apart, to rows of a plane.
#[inline(always)]
fn pack_rows<C: Cell, const LEN: usize>(
    cells: &[C],
    stride: usize,
    axis: &Axis,
    out: &mut [C],
    row_len: usize,
) {
    let (mut from, mut to) = (axis.first, 0);
    while to < out.len() {
        let row = &mut out[to..to + row_len];
        let (before, row) = row.split_at_mut(axis.lead);
        let (inner, behind) = row.split_at_mut(LEN);
        set_zero(before, C::of(0.0, 0.0));
        let row: &[C; LEN] = cells[from..from + LEN].try_into().expect("invariant: as long");
        inner.copy_from_slice(row);
        set_zero(behind, C::of(0.0, 0.0));
        (from, to) = (from + stride, to + row_len);
    }
}

/// A row of a plane.
#[inline(always)]
fn pack_row<C: Cell>(row: &[C], axis: &Axis, out: &mut [C]) {
    let (before, out) = out.split_at_mut(axis.lead);
    set_zero(before, C::of(0.0, 0.0));
    let (cells, behind) = out.split_at_mut(axis.len);
    set_zero(behind, C::of(0.0, 0.0));
    if axis.len == 0 {
        return;
    }
    if axis.step == 1 {
        copy(&row[axis.first..][..axis.len], cells);
    } else if axis.step == 2 {
        let (pairs, rest) = row[axis.first..].as_chunks::<2>();
        for (out, [x, _]) in cells.iter_mut().zip(pairs) {
            *out = *x;
        }
        if let (Some(out), Some(x)) = (cells.get_mut(pairs.len()), rest.first()) {
            *out = *x;
        }
    } else {
        cells.iter_mut().zip(row[axis.first..].iter().step_by(axis.step)).for_each(|(out, x)| *out = *x);
    }
}

/// Zeros for many cells.
#[inline(always)]
fn set_all_zero<C: Cell>(out: &mut [C]) {
    out.fill(C::of(0.0, 0.0));
}
