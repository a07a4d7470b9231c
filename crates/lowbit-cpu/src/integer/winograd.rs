//! 3x3 convolutions of stride 1 with 2.25 times fewer products: Winograd's minimal filtering F(2x2, 3x3), as Lavin and Gray (2016)
//! describe it for networks.
//!
//! A tile of 4x4 codes and a kernel are both transformed to 16 numbers, whose products, summed over the channels and transformed back,
//! are the 2x2 pixels of the output. In floats this rounds. Here it is exact: the transforms of small codes are small integers, that of
//! the weights after a multiplication by 4, which is undone in the sums.
//!
//! ```text
//! V = B' d B      d: 4x4 codes    B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1]
//! U = G g G'      g: 3x3 weights  G  = [2 0 0; 1 1 1; 1 -1 1; 0 0 2]      (twice the usual)
//! Y = A' (sum over channels of U * V) A / 4                  A' = [1 1 1 0; 0 1 -1 -1]
//! ```
//!
//! Sixteen tiles lie side by side in a register, and four channels of a tile are a word. The weights are kept as codes and transformed
//! when they are used: transformed, they would be 16 numbers for each 9 codes.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::layout::Layout;
use super::multiply::{CHANNELS, LANES, Multiply, Operands, Row, Sums, VECTORS, groups};
use super::output::Output;
use super::{CodeBounds, largest_sum};
use crate::conv::ConvShape;
use crate::conv::source::Source;
#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Avx512Bw};
use crate::instructions::{Baseline, Instructions, multiversion};
use crate::output::Slot;
use crate::task_items;
use crate::words::WORD;

/// Numbers of a transformed tile.
const POSITIONS: usize = 16;

/// Bytes of transformed tiles that the nearer caches hold beside the weights.
const CACHED: usize = 256 << 10;

/// Bytes of transformed tiles that all threads compute together.
const SHARED: usize = 16 << 20;

/// Most channels of the input.
const MOST_CHANNELS: usize = 1 << 15;

/// Positions of a kernel.
const TAPS: usize = 9;

/// Words of a row that the transform of [`LANES`] tiles reads.
const ROW: usize = 2 * LANES + 2;

/// Words that may be read behind the last image.
const SLACK: usize = ROW;

/// Sums of each position. Between the positions is a line of the cache: 16 places at a power of two would evict each other.
type AllSums = [(Sums, [i32; LANES]); POSITIONS];

/// Two rows of pixels of a group of tiles, for four channels.
type Rows = [[[i32; 2 * VECTORS * LANES]; WORD]; 2];

/// A convolution with its weights transformed.
#[derive(Clone, Debug)]
pub struct Winograd {
    source: Source,
    padding: [usize; 2],
    n_words: usize,
    out_channels: usize,
    out_size: [usize; 2],
    /// Tiles in a column and in a row of an image.
    tiles: [usize; 2],
    weights: Packed,
    /// Where the sums of each block of channels and position begin: less by what [`Self::offset`] adds.
    starts: Vec<[i32; CHANNELS]>,
    /// What is added to transformed codes that may be negative.
    offset: u8,
    multiply: Multiply,
}

/// Tiles side by side in an image.
struct Segment {
    image: usize,
    y: usize,
    x: usize,
    len: usize,
    /// The first one's place in the group.
    lane: usize,
}

#[derive(Default)]
struct Scratch {
    transformed: Vec<u32>,
    /// Transformed weights of a block.
    weights: Vec<Row>,
    sums: Option<Box<(AllSums, Rows)>>,
}

/// Codes of weights, as many to a byte as fit.
#[derive(Clone, Debug)]
struct Packed {
    /// For each block of channels and word, the taps, some of them in the same bytes.
    rows: Vec<Row>,
    /// Bits of a code: 2, 4 or 8.
    bits: u32,
    /// What codes are less than their bits.
    bias: u8,
}

impl Packed {
    /// Packs codes in two's complement, none of them larger than the bound.
    fn new(weight: &[u8], in_channels: usize, n_words: usize, n_blocks: usize) -> Self {
        let [smallest, largest] = extremes(weight);
        let bits =
            [2, 4].into_iter().find(|&bits| smallest >= -(1 << (bits - 1)) && largest < 1 << (bits - 1));
        let bits = bits.unwrap_or(8u32);
        let bias = 1u8 << (bits - 1);
        let in_byte = 8 / bits as usize;
        let n_rows = TAPS.div_ceil(in_byte);
        // Channels that there are not weigh nothing.
        let nothing: u32 = (0..in_byte).map(|i| u32::from(bias) << (i as u32 * bits)).sum();
        let mut rows = vec![[nothing as u8; WORD * CHANNELS]; n_blocks * n_words * n_rows];
        let blocks =
            rows.par_chunks_mut(n_words * n_rows).zip(weight.par_chunks(CHANNELS * in_channels * TAPS));
        let pack = match bits {
            2 => Self::pack_block::<2, 3>,
            4 => Self::pack_block::<4, 5>,
            _ => Self::pack_block::<8, 9>,
        };
        blocks.for_each(|(rows, weight)| pack(rows, weight, in_channels));
        Self { rows, bits, bias }
    }

    /// Packs the codes of a block of output channels, of so many bits, in so many rows of a word.
    fn pack_block<const BITS: usize, const ROWS: usize>(rows: &mut [Row], weight: &[u8], in_channels: usize) {
        let mask = ((1u32 << BITS) - 1) as u8;
        let code = |kernel: &[u8; TAPS], tap: usize| {
            // Behind the last tap is nothing.
            kernel.get(tap).copied().unwrap_or_default().wrapping_add(1 << (BITS - 1)) & mask
        };
        for (channel, kernels) in weight.chunks_exact(in_channels * TAPS).enumerate() {
            let words = kernels.as_chunks::<TAPS>().0.chunks(WORD);
            for (rows, kernels) in rows.as_chunks_mut::<ROWS>().0.iter_mut().zip(words) {
                for (c, kernel) in kernels.iter().enumerate() {
                    let bytes: [u8; ROWS] = std::array::from_fn(|row| {
                        let in_byte = 8 / BITS;
                        let codes = (0..in_byte).map(|i| code(kernel, row * in_byte + i) << (i * BITS));
                        codes.fold(0, |byte, code| byte | code)
                    });
                    for (row, byte) in rows.iter_mut().zip(bytes) {
                        row[channel * WORD + c] = byte;
                    }
                }
            }
        }
    }

    /// Rows of a word.
    fn n_rows(&self) -> usize {
        TAPS.div_ceil(8 / self.bits as usize)
    }
}

multiversion! {
    /// The smallest and the largest of codes in two's complement.
    fn extremes(codes: &[u8]) -> [i32; 2] {
        let (mut smallest, mut largest) = (0i8, 0i8);
        for &code in codes {
            smallest = smallest.min(code as i8);
            largest = largest.max(code as i8);
        }
        [smallest, largest].map(i32::from)
    }
}

/// Kernels whose codes are summed up side by side.
const TOGETHER: usize = 16;

multiversion! {
    /// The sum of each tap of kernels, in two's complement.
    fn tap_sums(kernels: &[[u8; TAPS]]) -> [i32; TAPS] {
        let mut sums = [0; TAPS];
        // So many numbers of 8 bits that a sum of them has 16.
        for kernels in kernels.chunks(TOGETHER << 8) {
            let mut of_groups = [0i16; TAPS * TOGETHER];
            let (groups, rest) = kernels.as_flattened().as_chunks::<{ TAPS * TOGETHER }>();
            for group in groups {
                for (sum, &code) in of_groups.iter_mut().zip(group) {
                    *sum += i16::from(code as i8);
                }
            }
            for of_kernel in of_groups.as_chunks::<TAPS>().0 {
                sums.iter_mut().zip(of_kernel).for_each(|(sum, tap)| *sum += i32::from(*tap));
            }
            for kernel in rest.as_chunks::<TAPS>().0 {
                sums.iter_mut().zip(kernel).for_each(|(sum, code)| *sum += i32::from(*code as i8));
            }
        }
        sums
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Scratch {
    fn parts(&mut self) -> (&mut Vec<u32>, &mut Vec<Row>, &mut (AllSums, Rows)) {
        let Self { transformed, weights, sums } = self;
        let zeros = || {
            Box::new((
                [([[0; VECTORS * LANES]; CHANNELS], [0; LANES]); POSITIONS],
                [[[0; 2 * VECTORS * LANES]; WORD]; 2],
            ))
        };
        (transformed, weights, sums.get_or_insert_with(zeros))
    }
}

/// `G g G'`, all of it doubled twice.
fn transform_kernel(g: [i32; TAPS]) -> [i32; POSITIONS] {
    let apply = |a: i32, b: i32, c: i32| [2 * a, a + b + c, a - b + c, 2 * c];
    let columns: [[i32; 4]; 3] = std::array::from_fn(|x| apply(g[x], g[3 + x], g[6 + x]));
    std::array::from_fn(|position| {
        let y = position / 4;
        apply(columns[0][y], columns[1][y], columns[2][y])[position % 4]
    })
}

impl Winograd {
    /// Whether the convolution is one of these, and the transforms of such activations fit 8 bits.
    pub fn serves(shape: &ConvShape, bounds: CodeBounds) -> bool {
        let is_3x3 = shape.kernel == [3, 3] && shape.stride == [1, 1] && shape.groups == 1;
        is_3x3 && bounds.activation <= 63 && 4 * largest_sum(shape, bounds) <= i32::MAX as u128
    }

    /// Whether it takes less time than all products would. With few channels the transforms take longer than the products that they save.
    /// With far more than networks have, a block's transformed weights and a register's tiles would take much memory.
    pub fn pays(shape: &ConvShape) -> bool {
        (16..=MOST_CHANNELS).contains(&shape.in_channels)
            && shape.out_channels >= 16
            && shape.out_plane() >= 4
    }

    /// Transforms the codes of the weights, in two's complement. `None` if one becomes larger than 8 bits, or a sum larger than 32.
    pub fn new(shape: &ConvShape, weight: &[u8], bounds: CodeBounds) -> Option<Self> {
        let n_words = shape.in_channels.div_ceil(WORD);
        let n_blocks = shape.out_channels.div_ceil(CHANNELS);
        let transformed = transformed_bounds(weight, bounds)?;
        let product = u64::from(transformed.activation) * u64::from(transformed.weight);
        let sum = product * shape.in_channels as u64;
        if sum > i32::MAX as u64 / 2 {
            return None;
        }
        let offset = 2 * bounds.activation;
        // The transform of a sum is the sum of the transforms.
        let mut starts = vec![[0; CHANNELS]; n_blocks * POSITIONS];
        for (channel, kernels) in weight.chunks_exact(shape.in_channels * TAPS).enumerate() {
            let sums = tap_sums(kernels.as_chunks::<TAPS>().0);
            for (position, sum) in transform_kernel(sums).into_iter().enumerate() {
                let start = &mut starts[channel / CHANNELS * POSITIONS + position][channel % CHANNELS];
                *start = -i32::from(offset_at(position, offset)) * sum;
            }
        }
        let weights = Packed::new(weight, shape.in_channels, n_words, n_blocks);
        let multiply = Multiply::best(transformed);
        let out_size = shape.out_size();
        let tiles = out_size.map(|n| n.div_ceil(2));
        let padded = std::array::from_fn(|i| (2 * tiles[i] + 2).max(shape.size[i] + shape.padding[i]));
        let source = Source::new(n_words, shape.size, shape.padding, padded, n_words * shape.in_plane());
        let out_channels = shape.out_channels;
        Some(Self {
            source,
            padding: shape.padding,
            n_words,
            out_channels,
            out_size,
            tiles,
            weights,
            starts,
            offset,
            multiply,
        })
    }

    /// Whether it is faster than the convolution in single precision.
    pub fn is_fast(&self) -> bool {
        self.multiply.pays()
    }

    /// The same by all instructions that this processor has.
    #[cfg(test)]
    pub fn with_each_instructions(
        &self,
        weight: &[u8],
        bounds: CodeBounds,
    ) -> impl Iterator<Item = (String, Self)> {
        let variant = |multiply| (format!("transformed, {multiply:?}"), Self { multiply, ..self.clone() });
        let transformed = transformed_bounds(weight, bounds).expect("transforms that fit");
        Multiply::serving(transformed).map(variant)
    }

    /// Where the words of images lie.
    pub fn layout(&self, n_images: usize) -> Layout {
        Layout::of(&self.source, self.padding, n_images, SLACK)
    }

    /// Images that are computed together.
    pub fn images(&self) -> usize {
        (self.together() / self.in_image()).max(1)
    }

    /// Tiles that are transformed together.
    fn together(&self) -> usize {
        self.fitting(CACHED)
    }

    /// Tiles whose transforms have so many bytes; a group of registers at least.
    fn fitting(&self, bytes: usize) -> usize {
        let of_vector = self.n_words * POSITIONS * LANES * size_of::<u32>();
        // Whole groups.
        (bytes / of_vector / (VECTORS - 1)).max(1) * (VECTORS - 1) * LANES
    }

    /// Tiles of an image.
    fn in_image(&self) -> usize {
        self.tiles[0] * self.tiles[1]
    }

    fn plane(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    fn n_blocks(&self) -> usize {
        self.out_channels.div_ceil(CHANNELS)
    }

    /// Computes images by one thread.
    pub fn run<O: Output>(&self, words: &[u32], n_images: usize, output: &O, out: &mut [Slot<O::Item>]) {
        let n_tiles = n_images * self.in_image();
        SCRATCH.with_borrow_mut(|scratch| {
            let (buffer, weights, scratch) = scratch.parts();
            for all in groups(0..n_tiles, self.together()) {
                let pitch = (all.len().div_ceil(LANES) + 1) * LANES;
                grow(buffer, self.n_words * POSITIONS * pitch);
                for (word, out) in buffer.chunks_exact_mut(POSITIONS * pitch).take(self.n_words).enumerate() {
                    self.transform(words, word, all.clone(), out, pitch);
                }
                for block in 0..self.n_blocks() {
                    let out = &mut out[block * CHANNELS / O::CHANNELS * self.plane()..];
                    self.run_block(buffer, pitch, all.clone(), block, output, weights, scratch, out);
                }
            }
        });
    }

    /// Computes one image by all threads.
    pub fn run_shared<O: Output>(&self, words: &[u32], output: &O, out: &mut [Slot<O::Item>]) {
        let mut buffer = SCRATCH.with_borrow_mut(|scratch| std::mem::take(&mut scratch.transformed));
        for all in groups(0..self.in_image(), self.fitting(SHARED)) {
            let pitch = (all.len().div_ceil(LANES) + 1) * LANES;
            grow(&mut buffer, self.n_words * POSITIONS * pitch);
            let parts = buffer.par_chunks_exact_mut(POSITIONS * pitch).take(self.n_words).enumerate();
            parts.for_each(|(word, out)| self.transform(words, word, all.clone(), out, pitch));
            let blocks = out.par_chunks_mut(CHANNELS / O::CHANNELS * self.plane()).enumerate();
            blocks.for_each(|(block, out)| {
                SCRATCH.with_borrow_mut(|scratch| {
                    let (_, weights, scratch) = scratch.parts();
                    self.run_block(&buffer, pitch, all.clone(), block, output, weights, scratch, out);
                });
            });
        }
        SCRATCH.with_borrow_mut(|scratch| scratch.transformed = buffer);
    }

    /// Tiles that lie side by side, of a range of those of all images.
    fn segments(&self, range: Range<usize>) -> impl Iterator<Item = Segment> {
        let [rows, columns] = self.tiles;
        let first = range.start;
        let mut next = range.start;
        std::iter::from_fn(move || {
            (next < range.end).then(|| {
                let (row, x) = (next / columns, next % columns);
                let len = (columns - x).min(range.end - next);
                let segment = Segment { image: row / rows, y: row % rows, x, len, lane: next - first };
                next += len;
                segment
            })
        })
    }

    /// Transforms one word of a group of tiles.
    fn transform(&self, words: &[u32], word: usize, group: Range<usize>, out: &mut [u32], pitch: usize) {
        for Segment { image, y, x, len, lane } in self.segments(group) {
            let start = self.source.index(image, word, 2 * y, 2 * x) as usize;
            let (words, stride, out, pitch) =
                (&words[start..], self.source.row_len(), &mut out[lane..], pitch);
            #[cfg(target_arch = "x86_64")]
            if Avx512Bw::detect().is_some() {
                // SAFETY: the processor has the instructions.
                unsafe { transform_row_avx512(words, stride, len, self.offset, out, pitch) };
                continue;
            }
            transform_row(words, stride, len, self.offset, out, pitch);
        }
    }

    /// Computes a block of channels of tiles, which `transformed` has the transforms of. `out` begins with the block's first channel of the
    /// first image.
    #[expect(clippy::too_many_arguments, reason = "the buffers, one by one")]
    fn run_block<O: Output>(
        &self,
        transformed: &[u32],
        pitch: usize,
        all: Range<usize>,
        block: usize,
        output: &O,
        weights: &mut Vec<Row>,
        (sums, rows): &mut (AllSums, Rows),
        out: &mut [Slot<O::Item>],
    ) {
        let weight_pitch = weight_pitch(self.n_words);
        weights.resize(POSITIONS * weight_pitch, [0; WORD * CHANNELS]);
        let Packed { rows: packed, bits, bias } = &self.weights;
        let in_block = self.n_words * self.weights.n_rows();
        transform_weights(&packed[block * in_block..][..in_block], *bits, *bias, weights, weight_pitch);
        let starts = &self.starts[block * POSITIONS..][..POSITIONS];
        for group in groups(all.clone(), (VECTORS - 1) * LANES) {
            let tiles = &transformed[group.start - all.start..];
            let vectors = group.len().div_ceil(LANES);
            for (position, weights) in weights.chunks_exact(weight_pitch).enumerate() {
                let weights = &weights[..self.n_words];
                let (taps, starts) = (&[position * pitch], &starts[position]);
                let operands = Operands { words: tiles, taps, stride: POSITIONS * pitch, weights, starts };
                self.multiply.run(operands, vectors, &mut sums[position].0);
            }
            #[cfg(target_arch = "x86_64")]
            if let Some(proof) = Avx2::detect() {
                // SAFETY: the processor has the instructions.
                unsafe { self.finish_avx2(proof, sums, group, block, output, rows, out) };
                continue;
            }
            self.finish(Baseline, sums, group, block, output, rows, out);
        }
    }

    /// # Safety
    /// The processor has AVX2.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    #[expect(clippy::too_many_arguments, reason = "those of the function that it compiles for AVX2")]
    unsafe fn finish_avx2<O: Output>(
        &self,
        proof: Avx2,
        sums: &AllSums,
        group: Range<usize>,
        block: usize,
        output: &O,
        rows: &mut Rows,
        out: &mut [Slot<O::Item>],
    ) {
        self.finish(proof, sums, group, block, output, rows, out);
    }

    /// Transforms sums to those of pixels, and writes what becomes of them.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "called from two places")]
    fn finish<O: Output>(
        &self,
        instructions: impl Instructions,
        sums: &AllSums,
        group: Range<usize>,
        block: usize,
        output: &O,
        rows: &mut Rows,
        out: &mut [Slot<O::Item>],
    ) {
        let (plane, [height, width]) = (self.plane(), self.out_size);
        let out_image = self.out_channels.div_ceil(O::CHANNELS) * plane;
        for (part, first) in
            (block * CHANNELS..self.out_channels).step_by(WORD).take(CHANNELS / WORD).enumerate()
        {
            let [upper, lower] = rows;
            for (c, (upper, lower)) in upper.iter_mut().zip(lower).enumerate() {
                transform_sums(sums, part * WORD + c, group.len(), upper, lower);
            }
            let out = &mut out[part * WORD / O::CHANNELS * plane..];
            for Segment { image, y, x, len, lane } in self.segments(group.clone()) {
                let n = (2 * len).min(width - 2 * x);
                for (row, y) in rows.iter().zip((2 * y..height).take(2)) {
                    let row = std::array::from_fn(|c| &row[c][2 * lane..][..n]);
                    output.write_rows(instructions, first, row, image * out_image + y * width + 2 * x, out);
                }
            }
        }
    }
}

/// What is added at a position: nothing where no transformed code is negative.
fn offset_at(position: usize, offset: u8) -> u8 {
    if position == 5 { 0 } else { offset }
}

fn grow(buffer: &mut Vec<u32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
}

/// The bounds of what is multiplied: transformed codes of the activations, which [`Winograd::serves`], and of these weights. `None` if one of
/// the weights is beyond 8 bits.
fn transformed_bounds(weight: &[u8], bounds: CodeBounds) -> Option<CodeBounds> {
    let largest = largest_transformed(weight).filter(|&largest| largest <= i8::MAX as u32)?;
    Some(CodeBounds { activation: 4 * bounds.activation, weight: largest as u8 })
}

/// The largest magnitude of a transformed weight.
fn largest_transformed(weight: &[u8]) -> Option<u32> {
    let [smallest, largest] = extremes(weight);
    let most = TAPS as u32 * smallest.unsigned_abs().max(largest.unsigned_abs());
    if most <= i8::MAX as u32 {
        return Some(most);
    }
    let kernels = weight.as_chunks::<TAPS>().0.par_iter();
    let of_kernel = |kernel: &[u8; TAPS]| {
        let transformed = transform_kernel(kernel.map(|code| i32::from(code as i8)));
        transformed.iter().map(|u| u.unsigned_abs()).max().unwrap_or_default()
    };
    kernels.with_min_len(task_items(TAPS)).map(of_kernel).max()
}

/// From position to position of transformed weights. At a power of two they would evict each other from the cache.
fn weight_pitch(n_words: usize) -> usize {
    n_words + 2
}

/// Transforms the weights of a block: for each word its taps, to the positions, which lie `pitch` rows apart, and for each its words.
fn transform_weights(packed: &[Row], bits: u32, bias: u8, out: &mut [Row], pitch: usize) {
    #[cfg(target_arch = "x86_64")]
    if Avx2::detect().is_some() {
        // SAFETY: the processor has the instructions.
        return unsafe {
            match bits {
                2 => transform_weights_avx2::<2, 3>(packed, bias, out, pitch),
                4 => transform_weights_avx2::<4, 5>(packed, bias, out, pitch),
                _ => transform_weights_avx2::<8, 9>(packed, bias, out, pitch),
            }
        };
    }
    transform_weights_plain(packed, bits, bias, out, pitch);
}

/// `(2 a, a + b + c, a - b + c, 2 c)`. What is beyond 8 bits meanwhile is not in the end.
#[inline(always)]
fn transform_taps([a, b, c]: [&Row; 3]) -> [Row; 4] {
    let ends = add(a, c);
    [add(a, a), add(&ends, b), subtract(&ends, b), add(c, c)]
}

fn transform_weights_plain(packed: &[Row], bits: u32, bias: u8, out: &mut [Row], pitch: usize) {
    let in_byte = 8 / bits as usize;
    let mask = ((1u32 << bits) - 1) as u8;
    for (word, rows) in packed.chunks_exact(TAPS.div_ceil(in_byte)).enumerate() {
        let mut taps = [[0; WORD * CHANNELS]; TAPS];
        for (tap, codes) in taps.iter_mut().enumerate() {
            let shift = (tap % in_byte) as u32 * bits;
            for (code, byte) in codes.iter_mut().zip(&rows[tap / in_byte]) {
                *code = (byte >> shift & mask).wrapping_sub(bias);
            }
        }
        let mut columns = [[[0; WORD * CHANNELS]; 4]; 3];
        for (x, column) in columns.iter_mut().enumerate() {
            *column = transform_taps([&taps[x], &taps[3 + x], &taps[6 + x]]);
        }
        for y in 0..4 {
            let row = transform_taps([&columns[0][y], &columns[1][y], &columns[2][y]]);
            for (x, transformed) in row.into_iter().enumerate() {
                out[(4 * y + x) * pitch + word] = transformed;
            }
        }
    }
}

/// The same for codes of so many bits, in so many rows of a word: the transforms of a row are computed side by side.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn transform_weights_avx2<const BITS: usize, const ROWS: usize>(
    packed: &[Row],
    bias: u8,
    out: &mut [Row],
    pitch: usize,
) {
    use std::arch::x86_64::*;
    let in_byte = 8 / BITS;
    let mask = _mm256_set1_epi8(((1u32 << BITS) - 1) as u8 as i8);
    let bias = _mm256_set1_epi8(bias as i8);
    // `(2 a, a + b + c, a - b + c, 2 c)`
    let transform = |[a, b, c]: [__m256i; 3]| {
        let ends = _mm256_add_epi8(a, c);
        [_mm256_add_epi8(a, a), _mm256_add_epi8(ends, b), _mm256_sub_epi8(ends, b), _mm256_add_epi8(c, c)]
    };
    for (word, rows) in packed.as_chunks::<ROWS>().0.iter().enumerate() {
        let mut taps = [_mm256_setzero_si256(); TAPS];
        for (tap, codes) in taps.iter_mut().enumerate() {
            // SAFETY: both are 32 bytes.
            let row: __m256i = unsafe { std::mem::transmute(rows[tap / in_byte]) };
            // What comes from the next byte is not in the mask.
            let shifted = _mm256_srl_epi16(row, _mm_cvtsi32_si128((tap % in_byte * BITS) as i32));
            *codes = _mm256_sub_epi8(_mm256_and_si256(shifted, mask), bias);
        }
        let mut columns = [[_mm256_setzero_si256(); 4]; 3];
        for x in 0..3 {
            columns[x] = transform([taps[x], taps[3 + x], taps[6 + x]]);
        }
        for y in 0..4 {
            let row = transform([columns[0][y], columns[1][y], columns[2][y]]);
            for (x, u) in row.into_iter().enumerate() {
                // SAFETY: both are 32 bytes.
                out[(4 * y + x) * pitch + word] = unsafe { std::mem::transmute::<__m256i, Row>(u) };
            }
        }
    }
}

/// Bytes of [`LANES`] words.
type Bytes = [u8; WORD * LANES];

#[inline(always)]
fn add<const N: usize>(a: &[u8; N], b: &[u8; N]) -> [u8; N] {
    let mut sums = *a;
    sums.iter_mut().zip(b).for_each(|(a, b)| *a = a.wrapping_add(*b));
    sums
}

#[inline(always)]
fn subtract<const N: usize>(a: &[u8; N], b: &[u8; N]) -> [u8; N] {
    let mut differences = *a;
    differences.iter_mut().zip(b).for_each(|(a, b)| *a = a.wrapping_sub(*b));
    differences
}

/// `(a - c, b + c, c - b, b - d)`.
#[inline(always)]
fn transform([a, b, c, d]: [&Bytes; 4]) -> [Bytes; 4] {
    [subtract(a, c), add(b, c), subtract(c, b), subtract(b, d)]
}

multiversion! {
    /// Transforms a row of tiles: of four rows of words, which lie `stride` apart, to the positions, which lie `pitch` apart. Behind the
    /// last tile up to 15 more are written.
    fn transform_row(words: &[u32], stride: usize, n_tiles: usize, offset: u8, out: &mut [u32], pitch: usize) {
        for first in (0..n_tiles).step_by(LANES) {
            let mut rows = [[[0; WORD * LANES]; 4]; 4];
            for (y, transformed) in rows.iter_mut().enumerate() {
                let row = &words[y * stride + 2 * first..];
                let row: &[u32; ROW] = row.first_chunk().expect("invariant: words follow the last image");
                let mut columns = [[0; WORD * LANES]; 4];
                for (x, column) in columns.iter_mut().enumerate() {
                    for (lane, bytes) in column.as_chunks_mut::<WORD>().0.iter_mut().enumerate() {
                        *bytes = row[x + 2 * lane].to_le_bytes();
                    }
                }
                *transformed = transform(columns.each_ref());
            }
            let [upper, second, third, lower] = &rows;
            for (x, (((a, b), c), d)) in upper.iter().zip(second).zip(third).zip(lower).enumerate() {
                let column = transform([a, b, c, d]);
                for (y, bytes) in column.iter().enumerate() {
                    let position = 4 * y + x;
                    let bytes = add(bytes, &[offset_at(position, offset); WORD * LANES]);
                    let out = &mut out[position * pitch + first..][..LANES];
                    for (word, bytes) in out.iter_mut().zip(bytes.as_chunks::<WORD>().0) {
                        *word = u32::from_le_bytes(*bytes);
                    }
                }
            }
        }
    }
}

/// The same, a register for the words of all tiles at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn transform_row_avx512(
    words: &[u32],
    stride: usize,
    n_tiles: usize,
    offset: u8,
    out: &mut [u32],
    pitch: usize,
) {
    use std::arch::x86_64::*;
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    let (zero, offset) = (_mm512_setzero_si512(), _mm512_set1_epi8(offset as i8));
    for first in (0..n_tiles).step_by(LANES) {
        let mut rows = [[zero; 4]; 4];
        for (y, row) in rows.iter_mut().enumerate() {
            let words = &words[y * stride + 2 * first..];
            let words: &[u32; ROW] = words.first_chunk().expect("invariant: words follow the last image");
            // SAFETY: the last of these is of the words from 18 to 34.
            let parts = [0, LANES, 2, LANES + 2].map(|at| unsafe { words.as_ptr().add(at) });
            // SAFETY: as above.
            let [a, b, c, d] = unsafe {
                [
                    _mm512_loadu_si512(parts[0].cast()),
                    _mm512_loadu_si512(parts[1].cast()),
                    _mm512_loadu_si512(parts[2].cast()),
                    _mm512_loadu_si512(parts[3].cast()),
                ]
            };
            // The columns of the tiles.
            let columns = [
                _mm512_permutex2var_epi32(a, even, b),
                _mm512_permutex2var_epi32(a, odd, b),
                _mm512_permutex2var_epi32(c, even, d),
                _mm512_permutex2var_epi32(c, odd, d),
            ];
            *row = [
                _mm512_sub_epi8(columns[0], columns[2]),
                _mm512_add_epi8(columns[1], columns[2]),
                _mm512_sub_epi8(columns[2], columns[1]),
                _mm512_sub_epi8(columns[1], columns[3]),
            ];
        }
        let [upper, second, third, lower] = rows;
        for (x, (((a, b), c), d)) in upper.into_iter().zip(second).zip(third).zip(lower).enumerate() {
            let column =
                [_mm512_sub_epi8(a, c), _mm512_add_epi8(b, c), _mm512_sub_epi8(c, b), _mm512_sub_epi8(b, d)];
            for (y, bytes) in column.into_iter().enumerate() {
                let position = 4 * y + x;
                let bytes = if position == 5 { bytes } else { _mm512_add_epi8(bytes, offset) };
                let out: &mut [u32; LANES] =
                    out[position * pitch + first..].first_chunk_mut().expect("invariant: a register follows");
                // SAFETY: these are 64 bytes.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), bytes) };
            }
        }
    }
}

/// `A' sums A / 4` of a channel, as two rows of pixels.
#[inline(always)]
fn transform_sums(
    sums: &AllSums,
    channel: usize,
    n_tiles: usize,
    upper: &mut [i32; 2 * VECTORS * LANES],
    lower: &mut [i32; 2 * VECTORS * LANES],
) {
    let n = n_tiles.min(VECTORS * LANES);
    let pairs = upper.as_chunks_mut::<2>().0.iter_mut().zip(lower.as_chunks_mut::<2>().0);
    for (tile, (upper, lower)) in pairs.enumerate().take(n) {
        let m = |position: usize| sums[position].0[channel][tile];
        let pair = |t: [i32; 4]| {
            [t[0].wrapping_add(t[1]).wrapping_add(t[2]) >> 2, t[1].wrapping_sub(t[2]).wrapping_sub(t[3]) >> 2]
        };
        *upper = pair(std::array::from_fn(|x| m(x).wrapping_add(m(4 + x)).wrapping_add(m(8 + x))));
        *lower = pair(std::array::from_fn(|x| m(4 + x).wrapping_sub(m(8 + x)).wrapping_sub(m(12 + x))));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More kernels than sums of 16 bits take, of the smallest code.
    #[test]
    fn sums_of_taps_are_exact() {
        for n in [0, 1, 15, 16, 17, (TOGETHER << 8) + 3, 3 * (TOGETHER << 8)] {
            let kernels: Vec<[u8; TAPS]> = (0..n)
                .map(|i| std::array::from_fn(|tap| if tap == 4 { 0x80 } else { (i * 9 + tap) as u8 }))
                .collect();
            let expected: [i32; TAPS] =
                std::array::from_fn(|tap| kernels.iter().map(|kernel| i32::from(kernel[tap] as i8)).sum());
            assert_eq!(tap_sums(&kernels), expected, "{n} kernels");
        }
    }

    #[test]
    fn extremes_are_signed() {
        assert_eq!(extremes(&[]), [0, 0]);
        assert_eq!(extremes(&[1, 0xff, 3, 0x80, 2]), [-128, 3]);
        let codes: Vec<u8> = (0..100).map(|i| if i == 77 { 0x7f } else { 5 }).collect();
        assert_eq!(extremes(&codes), [0, 127]);
    }
}
