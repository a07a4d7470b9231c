//! The gradient of the weights.

use std::ops::Range;

use rayon::prelude::*;

use super::direct;
use super::pass::{Add, Block, blocks, even_parts, images_together};
use super::shape::ConvShape;
use super::source::{Source, grow, with_scratch};
use super::tables::{padded_input, window_steps, windows};
use crate::output::{Slot, collect};
use crate::packed::PackedImages;
use crate::task_items;
use crate::tile::{self, BLOCK, Operands};
use crate::transpose::{from_panel, to_panel};

/// Pixels that are summed up before the sums are added to those of other pixels: their panel takes half of a nearest
/// cache of 32 KiB, and the order of the sum is nearer to pairwise.
const PIXELS: usize = 256;

/// Values of a partial gradient that one task holds: half of a second cache of 512 KiB.
const PARTIAL_LEN: usize = 1 << 16;

/// Tasks that the work is divided into, at least, if the batch allows.
const TASKS: usize = 16;

/// How the work is divided, which depends on the shape only: the order of the sums must not depend on the threads.
struct Partition {
    /// Blocks of output channels of a task.
    blocks: usize,
    /// Images of a task.
    images: usize,
}

impl Partition {
    fn new(shape: &ConvShape, n_starts: usize) -> Self {
        let n_blocks = shape.group_out().div_ceil(BLOCK);
        let blocks = (PARTIAL_LEN / (BLOCK * n_starts)).clamp(1, n_blocks);
        let blocks = even_parts(n_blocks, blocks);
        let shares = TASKS.div_ceil(n_blocks.div_ceil(blocks)).min(shape.batch);
        Self { blocks, images: shape.batch.div_ceil(shares) }
    }
}

/// Gradient of the weights from the gradient of the output.
///
/// # Shapes
/// Those of [`ConvShape`].
///
/// # Equation
/// `gradient[o][c][i][j] = sum over b, y, x of input[b][c][y s + i - p][x s + j - p] out_gradient[b][o][y][x]`
///
/// # Panics
/// If a length does not fit the shape, or the shape has a size of 0 but for the padding and the batch.
pub fn weight_gradient(shape: &ConvShape, input: &[f32], out_gradient: &[f32]) -> Vec<f32> {
    shape.check_sizes();
    let len = shape.groups * shape.group_weight();
    shape.check(input.len(), len);
    shape.check_output(out_gradient.len());
    if shape.batch == 0 {
        return vec![0.0; len];
    }
    if shape.has_tiny_groups() {
        return direct::weight_gradient(shape, input, out_gradient);
    }
    let write = |gradient: &mut [Slot]| {
        for (group, gradient) in gradient.chunks_exact_mut(shape.group_weight()).enumerate() {
            let input = Images::Values(&input[group * shape.group_in() * shape.in_plane()..]);
            let out_gradient = &out_gradient[group * shape.group_out() * shape.out_plane()..];
            group_gradient(shape, input, out_gradient, gradient);
        }
    };
    // SAFETY: the groups are all of the weights, and each is written.
    unsafe { collect(len, write) }
}

/// [`weight_gradient`] of an input whose codes were packed, for a convolution without groups.
///
/// # Panics
/// If there are groups, a length does not fit the shape, or the shape has a size of 0 but for the padding and the batch.
pub fn weight_gradient_of_codes(shape: &ConvShape, input: &PackedImages, out_gradient: &[f32]) -> Vec<f32> {
    assert_eq!(shape.groups, 1, "codes are convolved without groups");
    assert_eq!(input.image_len(), shape.in_image(), "length of an image");
    shape.check_sizes();
    let len = shape.group_weight();
    shape.check(input.n_images() * input.image_len(), len);
    shape.check_output(out_gradient.len());
    if shape.batch == 0 {
        return vec![0.0; len];
    }
    // SAFETY: one group is all of the weights.
    unsafe { collect(len, |gradient| group_gradient(shape, Images::Codes(input), out_gradient, gradient)) }
}

/// Input of the gradient.
#[derive(Clone, Copy)]
enum Images<'a> {
    Values(&'a [f32]),
    Codes(&'a PackedImages),
}

impl<'a> Images<'a> {
    /// The values of `n` images, images of `image_len` values; codes are unpacked to the buffer.
    fn values(self, first: usize, n: usize, image_len: usize, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        match self {
            Self::Values(values) => &values[first * image_len..],
            Self::Codes(codes) => {
                grow(buffer, n * image_len);
                codes.unpack(first, &mut buffer[..n * image_len]);
                &buffer[..n * image_len]
            }
        }
    }
}

/// Writes the gradient of one group, whose channels begin at the start of the slices.
fn group_gradient(shape: &ConvShape, input: Images<'_>, out_gradient: &[f32], gradient: &mut [Slot]) {
    let (source, stride) = padded_input(shape);
    let images = images_together(shape.out_plane());
    let (starts, steps) = (window_steps(shape, &source), windows(shape, &source, stride, images));
    let tables = Tables { starts, steps, source, images };
    let n_starts = tables.starts.len();
    let partition = Partition::new(shape, n_starts);
    let all_blocks: Vec<Block> = blocks(shape.group_out()).collect();
    let shares: Vec<usize> = (0..shape.batch).step_by(partition.images).collect();
    let tasks: Vec<(&[Block], usize)> = all_blocks
        .chunks(partition.blocks)
        .flat_map(|blocks| shares.iter().map(move |&first| (blocks, first)))
        .collect();
    let partials: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|&(blocks, first)| {
            let images = first..(first + partition.images).min(shape.batch);
            tables.partial(shape, blocks, images, input, out_gradient)
        })
        .collect();
    let parts = gradient.par_chunks_mut(partition.blocks * BLOCK * n_starts);
    let work = parts.zip(all_blocks.par_chunks(partition.blocks)).zip(partials.par_chunks(shares.len()));
    let task_len = partition.blocks * BLOCK * n_starts * shares.len();
    work.with_min_len(task_items(task_len)).for_each(|((gradient, blocks), partials)| {
        let mut sum = partials[0].clone();
        for partial in &partials[1..] {
            sum.iter_mut().zip(partial).for_each(|(sum, value)| *sum += value);
        }
        for (i, block) in blocks.iter().enumerate() {
            let rows = &mut gradient[i * BLOCK * n_starts..];
            let n_rows = (shape.group_out() - block.first).min(block.lanes);
            from_panel(&sum[i * BLOCK * n_starts..], block.lanes, n_starts, n_rows, rows);
        }
    });
}

struct Tables {
    source: Source,
    /// Positions of the kernel.
    starts: Vec<u32>,
    /// Pixels of `images` images.
    steps: Vec<u32>,
    images: usize,
}

impl Tables {
    /// The gradient by some images of the channels of `blocks`: for each block, a row for each start.
    fn partial(
        &self,
        shape: &ConvShape,
        blocks: &[Block],
        range: Range<usize>,
        input: Images<'_>,
        out_gradient: &[f32],
    ) -> Vec<f32> {
        let (n_starts, plane) = (self.starts.len(), shape.out_plane());
        let mut partial = vec![0.0; blocks.iter().map(|block| block.lanes * n_starts).sum()];
        with_scratch(|[padded, panel, unpacked]| {
            for first in range.clone().step_by(self.images) {
                let images = self.images.min(range.end - first);
                let input = input.values(first, images, shape.in_image(), unpacked);
                let image = self.source.load(input, images, padded);
                let parts = partial.chunks_mut(BLOCK * n_starts);
                for (out, block) in parts.zip(blocks) {
                    grow(panel, images * plane * block.lanes);
                    let n_rows = (shape.group_out() - block.first).min(block.lanes);
                    for (i, panel) in panel.chunks_exact_mut(plane * block.lanes).take(images).enumerate() {
                        let rows = &out_gradient[(first + i) * shape.out_image() + block.first * plane..];
                        to_panel(rows, plane, n_rows, plane, block.lanes, panel);
                    }
                    let steps = &self.steps[..images * plane];
                    let len = even_parts(steps.len(), PIXELS);
                    for (steps, panel) in steps.chunks(len).zip(panel.chunks(len * block.lanes)) {
                        let operands = Operands { image, starts: &self.starts, steps, panel };
                        tile::run(operands, block.lanes, &mut Add { out });
                    }
                }
            }
        });
        partial
    }
}
