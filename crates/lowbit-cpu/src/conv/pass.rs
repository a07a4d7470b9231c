//! One convolution over images, and how it is divided among threads.

use std::ops::Range;

use rayon::prelude::*;

use super::source::{Source, grow, table_index, with_scratch};
use crate::instructions::Instructions;
use crate::output::Slot;
use crate::task_items;
use crate::tile::{self, BLOCK, Operands, Sink, store_transposed};

/// Pixels for which a part of a panel is used before the next part is: their sums stay in the nearest cache.
const PIXELS: usize = 264;

/// A multiple of the pixels of a tile on any processor.
const TILE: usize = 24;

/// Rows of a panel that are used together: half of a nearest cache of 32 KiB.
const PANEL_ROWS: usize = 320;

/// Length of equal parts of at most `limit` (about: their sizes differ by less than one part's rounding).
pub fn even_parts(len: usize, limit: usize) -> usize {
    len.div_ceil(len.div_ceil(limit).max(1)).max(1)
}

/// Images that are computed together, so that small ones fill [`PIXELS`].
pub fn images_together(plane: usize) -> usize {
    (PIXELS / plane.max(1)).max(1)
}

/// Places of a channel's pixels in the output, image after image.
pub fn targets(plane: usize, out_image: usize, images: usize) -> Vec<u32> {
    (0..images)
        .flat_map(|image| (0..plane).map(move |pixel| table_index(image * out_image + pixel)))
        .collect()
}

/// Rows of up to [`BLOCK`] channels: the number of values in the block that begins at channel `first`.
fn lanes(first: usize, channels: usize) -> usize {
    if channels - first > BLOCK / 2 { BLOCK } else { BLOCK / 2 }
}

/// A block of channels: the first one and the number of values of a panel's row.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    pub first: usize,
    pub lanes: usize,
}

/// The blocks of `channels`.
pub fn blocks(channels: usize) -> impl Iterator<Item = Block> {
    (0..channels).step_by(BLOCK).map(move |first| Block { first, lanes: lanes(first, channels) })
}

/// Writes sums to `out[channel][targets[start]]`.
struct Store<'a> {
    out: &'a mut [Slot],
    plane: usize,
    channels: usize,
    targets: &'a [u32],
    /// Sums of earlier steps, a row of lanes for each start; or empty.
    earlier: &'a [f32],
}

impl Sink for Store<'_> {
    #[inline(always)]
    fn take<const P: usize, const L: usize>(
        &mut self,
        instructions: impl Instructions,
        first: usize,
        sums: &[[f32; L]; P],
    ) {
        let mut sums = *sums;
        if !self.earlier.is_empty() {
            let rows = self.earlier[first * L..].as_chunks::<L>().0;
            for (sums, row) in sums.iter_mut().zip(rows) {
                for v in 0..L {
                    sums[v] += row[v];
                }
            }
        }
        let targets = &self.targets[first..(first + P).min(self.targets.len())];
        let start = targets[0] as usize;
        if targets.len() == P && targets[P - 1] as usize == start + P - 1 {
            return store_transposed(instructions, &sums, &mut self.out[start..], self.plane, self.channels);
        }
        for (sums, &target) in sums.iter().zip(targets) {
            for (v, &sum) in sums.iter().enumerate().take(self.channels) {
                self.out[v * self.plane + target as usize].write(sum);
            }
        }
    }
}

/// Adds sums to `out[start][channel]`, rows of lanes.
pub struct Add<'a> {
    pub out: &'a mut [f32],
}

impl Sink for Add<'_> {
    #[inline(always)]
    fn take<const P: usize, const L: usize>(
        &mut self,
        _: impl Instructions,
        first: usize,
        sums: &[[f32; L]; P],
    ) {
        let rows = self.out[first * L..].as_chunks_mut::<L>().0;
        for (row, sums) in rows.iter_mut().zip(sums) {
            for v in 0..L {
                row[v] += sums[v];
            }
        }
    }
}

/// A convolution of stride 1 in the sense of the tables: targets that ascend, all with the same steps.
pub struct Pass {
    /// For each value of a channel, image after image.
    pub starts: Vec<u32>,
    /// Where it goes, from the first image's channel on; strictly ascending.
    pub targets: Vec<u32>,
    pub steps: Vec<u32>,
    /// For each block of channels, a row for each step.
    pub panels: Vec<f32>,
}

impl Pass {
    /// Allocates the panels and has `pack` write each of them.
    pub fn pack_panels(n_steps: usize, channels: usize, pack: impl Fn(Block, &mut [f32]) + Sync) -> Vec<f32> {
        let len = blocks(channels).map(|block| block.lanes * n_steps).sum();
        let mut panels = vec![0.0; len];
        let blocks: Vec<Block> = blocks(channels).collect();
        if n_steps > 0 {
            let parts = panels.par_chunks_mut(BLOCK * n_steps);
            let parts = parts.zip(&blocks).with_min_len(task_items(BLOCK * n_steps));
            parts.for_each(|(panel, &block)| pack(block, panel));
        }
        panels
    }

    /// The values `targets` of the channels of `range` (numbers of blocks); `out` begins at the first of these.
    fn run(
        &self,
        image: &[f32],
        values: usize,
        range: Range<usize>,
        job: &Job<'_>,
        sums: &mut Vec<f32>,
        out: &mut [Slot],
    ) {
        let n_steps = self.steps.len();
        let rows = even_parts(n_steps, PANEL_ROWS);
        let plane = job.plane;
        let first_channel = range.start * BLOCK;
        let together = even_parts(values.div_ceil(TILE), PIXELS / TILE) * TILE;
        for first in (0..values).step_by(together) {
            let pixels = first..(first + together).min(values);
            let (starts, targets) = (&self.starts[pixels.clone()], &self.targets[pixels]);
            for block in blocks(job.channels).skip(range.start).take(range.len()) {
                let lanes = block.lanes;
                let out = &mut out[(block.first - first_channel) * plane..];
                let channels = job.channels - block.first;
                let panel = &self.panels[block.first * n_steps..][..lanes * n_steps];
                if rows < n_steps {
                    grow(sums, PIXELS * BLOCK);
                    sums[..starts.len() * lanes].fill(0.0);
                }
                for row in (0..n_steps).step_by(rows) {
                    let steps = &self.steps[row..(row + rows).min(n_steps)];
                    let operands = Operands { image, starts, steps, panel: &panel[row * lanes..] };
                    if row + rows < n_steps {
                        tile::run(operands, lanes, &mut Add { out: &mut sums[..starts.len() * lanes] });
                        continue;
                    }
                    let earlier = if row > 0 { &sums[..starts.len() * lanes] } else { &[] };
                    tile::run(operands, lanes, &mut Store { out, plane, channels, targets, earlier });
                }
            }
        }
    }
}

/// All convolutions that make up a result.
pub struct Job<'a> {
    pub batch: usize,
    /// For each group of channels, its passes, whose tables are for [`images_together`] images or the batch.
    pub groups: Vec<Vec<Pass>>,
    pub source: Source,
    pub input: &'a [f32],
    /// Values of an image of the input, and of a group of channels in it.
    pub input_len: [usize; 2],
    /// Channels of a group of the result, and values of each.
    pub channels: usize,
    pub plane: usize,
    /// Whether the passes leave values out, which are zero.
    pub has_gaps: bool,
}

impl Job<'_> {
    /// Writes the result, of the targets of all passes, and of the gaps if there are any.
    ///
    /// Every value is one sum in a fixed order, so the division of the work may depend on the number of threads.
    pub fn run(&self, out: &mut [Slot]) {
        let out_image = self.groups.len() * self.channels * self.plane;
        if self.batch == 0 || out_image == 0 {
            return;
        }
        let tasks = 2 * rayon::current_num_threads();
        if self.batch < tasks {
            let n_blocks = self.channels.div_ceil(BLOCK);
            let per_task = n_blocks.div_ceil(tasks.div_ceil(self.batch));
            out.par_chunks_mut(self.channels * self.plane).enumerate().for_each(|(part, out)| {
                let (image, group) = (part / self.groups.len(), part % self.groups.len());
                let parts = out.par_chunks_mut(per_task * BLOCK * self.plane);
                parts.enumerate().for_each(|(i, out)| {
                    let range = i * per_task..((i + 1) * per_task).min(n_blocks);
                    self.run_part(image, 1, group, range, out);
                });
            });
            return;
        }
        let together = images_together(self.plane).min(self.batch / tasks).max(1);
        out.par_chunks_mut(together * out_image).enumerate().for_each(|(i, out)| {
            let n = out.len() / out_image;
            for group in 0..self.groups.len() {
                let out = &mut out[group * self.channels * self.plane..];
                self.run_part(i * together, n, group, 0..self.channels.div_ceil(BLOCK), out);
            }
        });
    }

    fn run_part(&self, first: usize, n: usize, group: usize, range: Range<usize>, out: &mut [Slot]) {
        let input = &self.input[first * self.input_len[0] + group * self.input_len[1]..];
        with_scratch(|[padded, sums, _]| {
            let image = self.source.load(input, n, padded);
            if self.has_gaps {
                let out_image = self.groups.len() * self.channels * self.plane;
                let channels = (range.len() * BLOCK).min(self.channels - range.start * BLOCK);
                out.chunks_mut(out_image).for_each(|out| out[..channels * self.plane].fill(Slot::new(0.0)));
            }
            for pass in &self.groups[group] {
                let values = pass.starts.len() / images_together(self.plane) * n;
                pass.run(image, values, range.clone(), self, sums, out);
            }
        });
    }
}
