//! Convolutions of stride 1 over planes, and how they are divided among threads.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{
    BEYOND, Factor, MOST_ROWS, OCTET, Pixels, Products, TOGETHER, products, width_in_octets,
};
use super::operand::Gradient;
use super::planes::{Images, Planes, Position};
use super::source::grow;
use crate::instructions::multiversion;
use crate::output::Slot;
use crate::task_items;

/// Pixels that are summed up together: what they read, and their sums, stay in the nearest caches.
const PIXELS: usize = 1024;

/// Steps whose part of a panel is used for all pixels before the next part is: with 8 rows, half of a nearest cache of 32 KiB.
const STEPS: usize = 512;

/// Length of equal parts of at most `limit` (about: their sizes differ by less than one part's rounding).
pub fn even_parts(len: usize, limit: usize) -> usize {
    len.div_ceil(len.div_ceil(limit).max(1)).max(1)
}

/// Whether so many rows or cells are taken together in parts of the same size.
pub fn are_even(len: usize) -> bool {
    len.is_multiple_of(even_parts(len, TOGETHER))
}

/// Images that are computed together, so that small ones fill [`PIXELS`].
pub fn images_together(plane: usize) -> usize {
    (PIXELS / plane.max(1)).max(1)
}

/// Along one axis, which of the places of a plane are results, and where they go.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// Places before the first result.
    pub skip: usize,
    /// Results.
    pub n: usize,
    /// Coordinate of the first result.
    pub first: usize,
    /// From result to result.
    pub step: usize,
}

/// The order in which a sum takes the cells of a pixel at each position of the kernel: some cells at all positions, then the next
/// ones. Those at one position lie equally far from each other.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// Cells of a pixel.
    cells: usize,
    /// Positions of the kernel.
    taps: usize,
    /// Cells that are taken together.
    pub together: usize,
}

impl Order {
    /// As many cells together as loops take at most, of one term each of so many.
    pub fn new(cells: usize, taps: usize, terms: usize) -> Self {
        Self { cells: terms * cells, taps, together: even_parts(cells, TOGETHER) }
    }

    /// Each cell and position, in order.
    pub fn iter(self) -> impl Iterator<Item = (usize, usize)> {
        let groups = (0..self.cells).step_by(self.together).flat_map(move |first| {
            (0..self.taps).map(move |tap| (first..(first + self.together).min(self.cells), tap))
        });
        groups.flat_map(|(cells, tap)| cells.map(move |cell| (cell, tap)))
    }
}

/// Results that are summed up by the same steps.
pub struct Part<C> {
    /// For each block of [`Factor::ROWS`] channels, a row of factors for each step.
    panels: Vec<C>,
    /// What is read in each step.
    positions: Vec<Position>,
    /// Steps that are equally far from each other.
    together: usize,
    /// Rows and columns.
    pub spread: [Spread; 2],
}

impl<C: Factor> Part<C> {
    /// Of the steps in `order`, each of which reads at `position` of a cell and of the number of a position of the kernel, and has
    /// a `factor` for each channel: of the cell, that number, and then the channel.
    pub fn new<F: Fn(usize) -> C>(
        order: Order,
        spread: [Spread; 2],
        channels: usize,
        position: impl Fn(usize, usize) -> Position,
        factor: impl Fn(usize, usize) -> F + Sync,
    ) -> Self {
        let positions: Vec<Position> = order.iter().map(|(cell, tap)| position(cell, tap)).collect();
        let len = C::ROWS * positions.len();
        let mut panels = vec![C::of(0.0, 0.0); channels.div_ceil(C::ROWS) * len];
        let blocks = panels.par_chunks_mut(len.max(1)).enumerate().with_min_len(task_items(len));
        blocks.for_each(|(block, panel)| {
            let channels = block * C::ROWS..((block + 1) * C::ROWS).min(channels);
            let mut steps = 0;
            for first in (0..order.cells).step_by(order.together) {
                let n = order.together.min(order.cells - first);
                for tap in 0..order.taps {
                    let panel = &mut panel[steps * C::ROWS..][..n * C::ROWS];
                    for i in 0..n {
                        let factor = factor(first + i, tap);
                        for (row, channel) in channels.clone().enumerate() {
                            panel[C::place(row, i, n)] = factor(channel);
                        }
                    }
                    steps += n;
                }
            }
        });
        Self { panels, positions, together: order.together, spread }
    }
}

/// All that makes up a result.
pub struct Correlation<'a, C> {
    pub batch: usize,
    pub planes: Planes<C>,
    /// For each group of channels.
    pub groups: Vec<Vec<Part<C>>>,
    pub input: Gradient<'a>,
    /// What results of each image are multiplied with, if with anything.
    pub image_scales: Option<Vec<f32>>,
    /// What the values of each channel of the input are multiplied with, of all groups, if with anything.
    pub input_scales: Option<&'a [f32]>,
    /// What results are multiplied with: for all, or for each channel of all groups.
    pub scales: &'a [f32],
    /// Values of an image of the input, and of a group of channels in it.
    pub input_len: [usize; 2],
    /// Channels of a group of the result.
    pub channels: usize,
    /// Height and width of the result.
    pub size: [usize; 2],
    /// Whether the parts leave values out, which are zero.
    pub has_gaps: bool,
}

/// Buffers of a thread.
#[derive(Default)]
struct Scratch {
    planes: Vec<f32>,
    sums: Vec<f32>,
    steps: Vec<u32>,
    octets: Vec<u32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<C: Factor> Correlation<'_, C> {
    /// Writes the result.
    ///
    /// Every value is one sum in a fixed order, so the division of the work may depend on the number of threads.
    pub fn run(&self, out: &mut [Slot]) {
        let plane = self.size[0] * self.size[1];
        let out_image = self.groups.len() * self.channels * plane;
        if self.batch == 0 || out_image == 0 {
            return;
        }
        let threads = rayon::current_num_threads();
        let tasks = if threads == 1 { 1 } else { 2 * threads };
        let n_blocks = self.channels.div_ceil(C::ROWS);
        if self.batch < tasks {
            let per_task = n_blocks.div_ceil(tasks.div_ceil(self.batch));
            out.par_chunks_mut(self.channels * plane).enumerate().for_each(|(part, out)| {
                let (image, group) = (part / self.groups.len(), part % self.groups.len());
                // Taken from the thread, as it may begin another image while it waits for the blocks of this one.
                let mut planes = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.planes));
                let packed = self.planes.pack_shared(self.images(image, group), 1, &mut planes);
                out.par_chunks_mut(per_task * C::ROWS * plane).enumerate().for_each(|(i, out)| {
                    let blocks = i * per_task..((i + 1) * per_task).min(n_blocks);
                    self.sum_up(packed, [image, 1], group, blocks, out);
                });
                SCRATCH.with_borrow_mut(|scratch| scratch.planes = planes);
            });
            return;
        }
        let together = images_together(self.planes.plane()).min(self.batch / tasks).max(1);
        out.par_chunks_mut(together * out_image).enumerate().for_each(|(i, out)| {
            let n = out.len() / out_image;
            for group in 0..self.groups.len() {
                let out = &mut out[group * self.channels * plane..];
                let mut planes = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.planes));
                let packed = self.planes.pack(self.images(i * together, group), n, &mut planes);
                self.sum_up(packed, [i * together, n], group, 0..n_blocks, out);
                SCRATCH.with_borrow_mut(|scratch| scratch.planes = planes);
            }
        });
    }

    /// A group of the images from number `first` on.
    fn images(&self, first: usize, group: usize) -> Images<'_> {
        let channels = self.input_scales.map(|scales| {
            let n = scales.len() / self.groups.len();
            &scales[group * n..][..n]
        });
        self.input.images(first * self.input_len[0] + group * self.input_len[1], channels)
    }

    /// What the results of some channels of a group are multiplied with, if with anything.
    fn scales_of(&self, group: usize, channels: Range<usize>) -> Option<[f32; MOST_ROWS]> {
        let mut of_channels = [1.0; MOST_ROWS];
        match self.scales {
            [scale] => of_channels = [*scale; MOST_ROWS],
            scales => {
                let scales = &scales[group * self.channels..][channels];
                of_channels[..scales.len()].copy_from_slice(scales);
            }
        }
        of_channels.iter().any(|scale| *scale != 1.0).then_some(of_channels)
    }

    /// Writes the channels of some blocks of a group of `n` images from a first one on, which are `packed`; `out` begins with the
    /// first of them.
    fn sum_up(
        &self,
        packed: &[C],
        [first_image, n]: [usize; 2],
        group: usize,
        blocks: Range<usize>,
        out: &mut [Slot],
    ) {
        let plane = self.size[0] * self.size[1];
        let out_image = self.groups.len() * self.channels * plane;
        if self.has_gaps {
            let channels = (blocks.len() * C::ROWS).min(self.channels - blocks.start * C::ROWS);
            out.chunks_mut(out_image).for_each(|out| out[..channels * plane].fill(Slot::new(0.0)));
        }
        SCRATCH.with_borrow_mut(|Scratch { sums, steps, octets, .. }| {
            for part in &self.groups[group] {
                let [y, x] = part.spread;
                // Pixels that are summed up: the results, if each octet of these has a place of its own; all, if not.
                let width = width_in_octets([y.n, x.n], self.planes.plane()).filter(|_| C::IN_OCTETS);
                let in_octets = width.is_some();
                let (row, rows, spread) = match width {
                    Some(width) => (width, y.n, [y, x].map(|axis| Spread { skip: 0, ..axis })),
                    None => (self.planes.row, self.planes.rows, part.spread),
                };
                // All results of an image are as one row, if they have no others between them.
                let is_whole = in_octets && row == x.n && [y.n, x.n] == self.size;
                let (stored_row, stored_rows, spread) = match is_whole {
                    true => (plane, 1, [1, plane].map(|n| Spread { skip: 0, n, first: 0, step: 1 })),
                    false => (row, rows, spread),
                };
                if in_octets {
                    self.planes.octets(n, [[y.skip, y.n], [x.skip, row]], octets);
                }
                let n_pixels = if in_octets { n * row * rows } else { n * self.planes.plane() };
                // Whole rows, if they are short.
                let together =
                    if row < PIXELS { even_parts(n_pixels / row, PIXELS / row) * row } else { PIXELS };
                let stride = (together + BEYOND).next_multiple_of(BEYOND) + 16;
                grow(sums, C::ROWS * stride);
                self.planes.places(n, &part.positions, steps);
                let groups = steps.len().div_ceil(part.together);
                let steps_together = even_parts(groups, STEPS / part.together) * part.together;
                for first in (0..n_pixels).step_by(together) {
                    let pixels = first..(first + together).min(n_pixels);
                    let (image, places) = match in_octets {
                        true => (packed, Pixels::of_rows(row, &octets[first / OCTET..])),
                        false => (&packed[first..], Pixels::SideBySide),
                    };
                    for block in blocks.clone() {
                        let panel = &part.panels[block * C::ROWS * steps.len()..][..C::ROWS * steps.len()];
                        for (i, steps) in steps.chunks(steps_together).enumerate() {
                            let panel = &panel[i * steps_together * C::ROWS..][..steps.len() * C::ROWS];
                            let (n, together) = (pixels.len(), part.together);
                            let adds = i > 0;
                            let operands =
                                Products { image, steps, together, panel, pixels: places, n, adds };
                            products(operands, sums, stride);
                        }
                        let channels = block * C::ROWS..((block + 1) * C::ROWS).min(self.channels);
                        let results = Store {
                            scales: self.scales_of(group, channels.clone()),
                            image_scales: self.image_scales.as_ref().map(|scales| &scales[first_image..]),
                            spread,
                            pixels: pixels.clone(),
                            image_rows: stored_rows,
                            strides: [stored_row, stride],
                            sums,
                            channels: channels.len(),
                            size: self.size,
                            out_image,
                        };
                        store(&results, &mut out[(block - blocks.start) * C::ROWS * plane..]);
                    }
                }
            }
        });
    }
}

/// Results of a block of channels.
struct Store<'a> {
    /// What those of each channel are multiplied with, if with anything.
    scales: Option<[f32; MOST_ROWS]>,
    /// And those of each image.
    image_scales: Option<&'a [f32]>,
    spread: [Spread; 2],
    /// Pixels of the planes that were summed up, of images of so many rows each.
    pixels: Range<usize>,
    image_rows: usize,
    /// Values from row to row of the planes, and from channel to channel of the sums.
    strides: [usize; 2],
    sums: &'a [f32],
    channels: usize,
    /// Height and width of the result, and values of an image of it.
    size: [usize; 2],
    out_image: usize,
}

multiversion! {
    /// Writes the results among the sums of some pixels of the planes.
    fn store(results: &Store<'_>, out: &mut [Slot]) {
        let Store { spread: [y, x], strides: [row_len, stride], size: [height, width], sums, .. } = *results;
        let (plane, pixels) = (height * width, &results.pixels);
        for row in pixels.start / row_len..pixels.end.div_ceil(row_len) {
            let (image, place) = (row / results.image_rows, row % results.image_rows);
            // Of a row of more than all pixels, there is a part.
            let start = row * row_len;
            let columns = pixels.start.saturating_sub(start).max(x.skip)..(pixels.end - start).min(x.skip + x.n);
            if !(y.skip..y.skip + y.n).contains(&place) || columns.is_empty() {
                continue;
            }
            let from = start + columns.start - pixels.start;
            let to = (y.first + (place - y.skip) * y.step) * width + x.first + (columns.start - x.skip) * x.step;
            let to = image * results.out_image + to;
            for channel in 0..results.channels {
                let from = &sums[channel * stride + from..][..columns.len()];
                let to = &mut out[channel * plane + to..];
                let scale = match (results.scales, results.image_scales) {
                    (None, None) => None,
                    (Some(scales), None) => Some(scales[channel]),
                    (scales, Some(images)) => Some(scales.map_or(1.0, |scales| scales[channel]) * images[image]),
                };
                match (x.step, scale) {
                    (1, None) => store_row(from, 1.0, &mut to[..columns.len()]),
                    (1, Some(scale)) => store_row(from, scale, &mut to[..columns.len()]),
                    _ => to.iter_mut().step_by(x.step).zip(from).for_each(|(to, from)| {
                        to.write(*from * scale.unwrap_or(1.0));
                    }),
                }
            }
        }
    }
}

/// Writes a row to what has no values yet, in pieces of fixed length.
#[inline(always)]
fn store_row(from: &[f32], scale: f32, to: &mut [Slot]) {
    let ((wide, from), (wide_out, to)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (from, to) in wide.iter().zip(wide_out) {
        *to = from.map(|value| Slot::new(value * scale));
    }
    for (from, to) in from.iter().zip(to) {
        to.write(*from * scale);
    }
}
