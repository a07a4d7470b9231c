//! Convolution by all products, for 16 pixels of the output side by side.
//!
//! The pixels that a position of the kernel reads for neighbors in the output are neighbors too, if the rows and columns of the input
//! are dealt out to as many images as there are steps of the stride. Their rows are as long as needed for the last position of the kernel,
//! and the output is computed as if its rows were as long: between the rows are sums that nothing reads.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::CodeBounds;
use super::layout::Layout;
use super::multiply::{CHANNELS, LANES, Multiply, Operands, Row, Sums, VECTORS, groups};
use super::output::Output;
use crate::conv::ConvShape;
#[cfg(target_arch = "x86_64")]
use crate::instructions::Avx2;
use crate::instructions::{Baseline, Instructions};
use crate::output::Slot;
use crate::words::WORD;

/// Bytes of the input that the nearer caches hold beside the weights of a block.
const CACHED: usize = 256 << 10;

/// Words after which the addresses of the nearest cache repeat.
const CACHE_PERIOD: usize = 256;

/// Words that may be read behind the last image.
const SLACK: usize = VECTORS * LANES;

/// A convolution with its weights packed.
#[derive(Clone, Debug)]
pub struct Rows {
    /// For each block of channels, tap and word.
    weights: Vec<Row>,
    out_channels: usize,
    out_size: [usize; 2],
    n_words: usize,
    stride: [usize; 2],
    padding: [usize; 2],
    /// Which parts of the stride the kernel reads, of rows and of columns.
    parts: [usize; 2],
    /// Height and width of a part of an image.
    size: [usize; 2],
    kernel: [usize; 2],
    multiply: Multiply,
}

thread_local! {
    static TAPS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
    static SUMS: RefCell<Box<Sums>> = RefCell::new(Box::new([[0; VECTORS * LANES]; CHANNELS]));
}

/// Pixels side by side in an image.
struct Segment {
    image: usize,
    y: usize,
    x: usize,
    len: usize,
    /// The first one's place in the group.
    lane: usize,
}

impl Rows {
    /// Whether an image fills registers of pixels, and the processor multiplies these fast.
    pub fn pays(shape: &ConvShape, bounds: CodeBounds) -> bool {
        shape.out_plane() >= LANES / 2 && !matches!(Multiply::best(bounds), Multiply::Plain)
    }

    /// Packs the codes of the weights, in two's complement.
    pub fn new(shape: &ConvShape, weight: &[u8], bounds: CodeBounds) -> Self {
        let (taps, n_words) = (shape.taps(), shape.in_channels.div_ceil(WORD));
        let in_block = taps * n_words;
        let mut weights = vec![[0; WORD * CHANNELS]; shape.out_channels.div_ceil(CHANNELS) * in_block];
        let blocks = weights.par_chunks_mut(in_block);
        let blocks = blocks.zip(weight.par_chunks(CHANNELS * shape.in_channels * taps));
        blocks.for_each(|(rows, weight)| {
            for (channel, kernels) in weight.chunks_exact(shape.in_channels * taps).enumerate() {
                for (c, kernel) in kernels.chunks_exact(taps).enumerate() {
                    for (tap, code) in kernel.iter().enumerate() {
                        rows[tap * n_words + c / WORD][channel * WORD + c % WORD] = *code;
                    }
                }
            }
        });
        let out_size = shape.out_size();
        let reach = |i: usize| (shape.kernel[i] - 1) / shape.stride[i];
        Self {
            weights,
            out_channels: shape.out_channels,
            out_size,
            n_words,
            stride: shape.stride,
            padding: shape.padding,
            parts: std::array::from_fn(|i| shape.stride[i].min(shape.kernel[i])),
            size: std::array::from_fn(|i| out_size[i] + reach(i)),
            kernel: shape.kernel,
            multiply: Multiply::best(bounds),
        }
    }

    /// The same by all instructions that this processor has.
    #[cfg(test)]
    pub fn with_each_instructions(&self, bounds: CodeBounds) -> impl Iterator<Item = (String, Self)> {
        let variant = |multiply| (format!("rows, {multiply:?}"), Self { multiply, ..self.clone() });
        Multiply::serving(bounds).map(variant)
    }

    /// Words of a part of an image.
    fn part(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Words of one word of all images and parts. Words at a power of two would evict each other from the cache.
    fn in_word(&self, n_images: usize) -> usize {
        let n = self.parts[0] * self.parts[1] * n_images * self.part();
        if n.is_multiple_of(CACHE_PERIOD) { n + LANES } else { n }
    }

    /// Where the words of images lie.
    pub fn layout(&self, n_images: usize) -> Layout {
        let in_word = self.in_word(n_images);
        Layout {
            len: self.n_words * in_word + SLACK,
            padding: self.padding,
            stride: self.stride,
            parts: self.parts,
            size: self.size,
            steps: [n_images * self.part(), self.part(), in_word],
        }
    }

    /// Where the words begin that the positions of the kernel read.
    fn taps(&self, n_images: usize) -> impl Iterator<Item = usize> {
        let [[stride_y, stride_x], [height, width]] = [self.stride, self.kernel];
        (0..height * width).map(move |tap| {
            let (y, x) = (tap / width, tap % width);
            let part = y % stride_y * self.parts[1] + x % stride_x;
            part * n_images * self.part() + y / stride_y * self.size[1] + x / stride_x
        })
    }

    /// Images that are computed together.
    pub fn images(&self) -> usize {
        (self.together() / self.part()).max(1)
    }

    /// Pixels whose input is in the nearer caches together.
    fn together(&self) -> usize {
        let of_register = self.n_words * self.parts[0] * self.parts[1] * LANES * size_of::<u32>();
        // Whole groups.
        (CACHED / of_register / (VECTORS - 1)).max(1) * (VECTORS - 1) * LANES
    }

    fn plane(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    /// Computes images by one thread.
    pub fn run<O: Output>(&self, words: &[u32], n_images: usize, output: &O, out: &mut [Slot<O::Item>]) {
        for all in groups(0..self.pixels(n_images), self.together()) {
            for block in 0..self.out_channels.div_ceil(CHANNELS) {
                let out = &mut out[block * CHANNELS / O::CHANNELS * self.plane()..];
                self.run_block(words, n_images, all.clone(), block, output, out);
            }
        }
    }

    /// Computes one image by all threads.
    pub fn run_shared<O: Output>(&self, words: &[u32], output: &O, out: &mut [Slot<O::Item>]) {
        let blocks = out.par_chunks_mut(CHANNELS / O::CHANNELS * self.plane()).enumerate();
        blocks.for_each(|(block, out)| self.run_block(words, 1, 0..self.pixels(1), block, output, out));
    }

    /// Pixels up to the last one, with those between the rows.
    fn pixels(&self, n_images: usize) -> usize {
        n_images * self.part() - (self.part() - (self.out_size[0] - 1) * self.size[1] - self.out_size[1])
    }

    /// Pixels of the output that lie side by side, of a range.
    fn segments(&self, range: Range<usize>) -> impl Iterator<Item = Segment> {
        let ([rows, row_len], [height, width]) = (self.size, self.out_size);
        let first = range.start;
        let mut next = range.start;
        std::iter::from_fn(move || {
            loop {
                if next >= range.end {
                    return None;
                }
                let (row, x) = (next / row_len, next % row_len);
                let (image, y) = (row / rows, row % rows);
                let lane = next - first;
                if y >= height {
                    next = (image + 1) * rows * row_len;
                } else if x >= width {
                    next = (row + 1) * row_len;
                } else {
                    let len = (width - x).min(range.end - next);
                    next += len;
                    return Some(Segment { image, y, x, len, lane });
                }
            }
        })
    }

    /// Computes a block of channels of pixels. `out` begins with the block's first channel of the first image.
    fn run_block<O: Output>(
        &self,
        words: &[u32],
        n_images: usize,
        all: Range<usize>,
        block: usize,
        output: &O,
        out: &mut [Slot<O::Item>],
    ) {
        let in_block = self.kernel[0] * self.kernel[1] * self.n_words;
        let weights = &self.weights[block * in_block..][..in_block];
        let stride = self.in_word(n_images);
        let mut taps = TAPS.take();
        taps.clear();
        taps.extend(self.taps(n_images));
        SUMS.with_borrow_mut(|sums| {
            for group in groups(all, (VECTORS - 1) * LANES) {
                let (words, vectors) = (&words[group.start..], group.len().div_ceil(LANES));
                let operands = Operands { words, taps: &taps, stride, weights, starts: &[0; CHANNELS] };
                self.multiply.run(operands, vectors, sums);
                #[cfg(target_arch = "x86_64")]
                if let Some(proof) = Avx2::detect() {
                    // SAFETY: the processor has the instructions.
                    unsafe { self.finish_avx2(proof, sums, group, block, output, out) };
                    continue;
                }
                self.finish(Baseline, sums, group, block, output, out);
            }
        });
        TAPS.set(taps);
    }

    /// # Safety
    /// The processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn finish_avx2<O: Output>(
        &self,
        proof: Avx2,
        sums: &Sums,
        group: Range<usize>,
        block: usize,
        output: &O,
        out: &mut [Slot<O::Item>],
    ) {
        self.finish(proof, sums, group, block, output, out);
    }

    /// Writes what becomes of sums.
    #[inline(always)]
    fn finish<O: Output>(
        &self,
        instructions: impl Instructions,
        sums: &Sums,
        group: Range<usize>,
        block: usize,
        output: &O,
        out: &mut [Slot<O::Item>],
    ) {
        let (plane, width) = (self.plane(), self.out_size[1]);
        let out_image = self.out_channels.div_ceil(O::CHANNELS) * plane;
        for Segment { image, y, x, len, lane } in self.segments(group) {
            let firsts = (block * CHANNELS..self.out_channels).step_by(WORD);
            for (part, first) in firsts.take(CHANNELS / WORD).enumerate() {
                let rows = std::array::from_fn(|c| &sums[part * WORD + c][lane..][..len]);
                let out = &mut out[part * WORD / O::CHANNELS * plane..];
                output.write_rows(instructions, first, rows, image * out_image + y * width + x, out);
            }
        }
    }
}
