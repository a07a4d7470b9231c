//! Convolution by all products on Intel's matrix unit, AMX (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1,
//! chapter 18): a tile of 16 pixels by up to 16 words, times a tile of as many words of weights by 16 channels of the output.
//!
//! The words of a pixel lie side by side, and so do those of the pixels that a row of the kernel reads: tiles are read from the image as
//! it is.

use std::arch::asm;
use std::cell::RefCell;

use rayon::prelude::*;

use super::output::Output;
use crate::amx::{Amx, Sizes};
use crate::conv::ConvShape;
use crate::instructions::Avx2;
use crate::output::Slot;
use crate::tile::BLOCK;
use crate::transpose::transpose8;
use crate::words::WORD;

/// Most words of a tile, and pixels of one.
const SIDE: usize = 16;

/// Tiles of pixels that are multiplied together.
const TOGETHER: usize = 4;

/// Most pixels of an output.
const MOST_PIXELS: usize = 1 << 16;

/// Words of a line of the cache.
const LINE: usize = 16;

/// A word of the weights of a block of channels.
type Row = [u32; BLOCK];

/// Sums of tiles of pixels, as the unit writes them.
type Sums = [[[i32; BLOCK]; SIDE]; TOGETHER];

/// The same for each channel.
type Rows = [[i32; TOGETHER * SIDE]; BLOCK];

/// The proof that the process may use the unit, and the one that what is written by AVX2 may be.
#[derive(Clone, Copy, Debug)]
struct Proof(Avx2);

impl Proof {
    fn detect() -> Option<Self> {
        Amx::detect()?;
        Avx2::detect().map(Self)
    }
}

/// Whether the process has a matrix unit.
pub fn is_there() -> bool {
    Proof::detect().is_some()
}

/// Pixels of the output that lie side by side, in a group of tiles.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// The first one's place among the sums.
    lane: usize,
    /// Its place in the output.
    target: usize,
    len: usize,
}

/// Tiles of pixels that are computed together.
#[derive(Clone, Debug)]
struct Group {
    /// Where the words of each tile's first pixel begin, in an image.
    starts: Vec<usize>,
    segments: Vec<Segment>,
}

/// A convolution with its weights in tiles.
#[derive(Clone, Debug)]
pub struct Matrix {
    proof: Proof,
    /// For each block of channels, row of the kernel and part of the row, its words.
    weights: Vec<Row>,
    /// Words of a tile.
    in_tile: usize,
    /// Parts of a row of the kernel.
    n_parts: usize,
    groups: Vec<Group>,
    n_words: usize,
    out_channels: usize,
    plane: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    /// Height and width of an image with what is around it.
    size: [usize; 2],
}

thread_local! {
    static SUMS: RefCell<Box<(Sums, Rows)>> =
        RefCell::new(Box::new(([[[0; BLOCK]; SIDE]; TOGETHER], [[0; TOGETHER * SIDE]; BLOCK])));
}

impl Matrix {
    /// Whether tiles are filled well enough, and there are not far more than images of networks have: each is in a table.
    pub fn pays(shape: &ConvShape) -> bool {
        is_there()
            && (SIDE..=MOST_PIXELS).contains(&shape.out_plane())
            && shape.in_channels * shape.kernel[1] >= 16
    }

    /// Those of codes in two's complement. `None` if the process has no matrix unit.
    pub fn new(shape: &ConvShape, weight: &[u8]) -> Option<Self> {
        let proof = Proof::detect()?;
        let [height, width] = shape.kernel;
        let (n_words, taps) = (shape.in_channels.div_ceil(WORD), shape.taps());
        let n_parts = (width * n_words).div_ceil(SIDE);
        let in_tile = (width * n_words).div_ceil(n_parts);
        let (in_row, in_block) = (n_parts * in_tile, height * n_parts * in_tile);
        let mut weights = vec![[0u32; BLOCK]; shape.out_channels.div_ceil(BLOCK) * in_block];
        let blocks =
            weights.par_chunks_mut(in_block).zip(weight.par_chunks(BLOCK * shape.in_channels * taps));
        blocks.for_each(|(rows, weight)| {
            for (channel, kernels) in weight.chunks_exact(shape.in_channels * taps).enumerate() {
                for (c, kernel) in kernels.chunks_exact(taps).enumerate() {
                    for (tap, code) in kernel.iter().enumerate() {
                        let row = tap / width * in_row + tap % width * n_words + c / WORD;
                        rows[row][channel] |= u32::from(*code) << (8 * (c % WORD));
                    }
                }
            }
        });
        let [out_height, out_width] = shape.out_size();
        let reached = |i: usize| (shape.out_size()[i] - 1) * shape.stride[i] + shape.kernel[i];
        let size = std::array::from_fn(|i| reached(i).max(shape.size[i] + shape.padding[i]));
        let mut matrix = Self {
            proof,
            weights,
            in_tile,
            n_parts,
            groups: Vec::new(),
            n_words,
            out_channels: shape.out_channels,
            plane: out_height * out_width,
            kernel: shape.kernel,
            stride: shape.stride,
            padding: shape.padding,
            size,
        };
        let tiles = matrix.tiles([out_height, out_width]);
        matrix.groups = tiles.chunks(TOGETHER).map(group).collect();
        Some(matrix)
    }

    /// For each tile where it begins in an image, and the pixels that it has.
    fn tiles(&self, [height, width]: [usize; 2]) -> Vec<(usize, Vec<Segment>)> {
        let [[stride_y, stride_x], row_len] = [self.stride, [self.size[1]; 2]];
        let row_len = row_len[0];
        let mut tiles = Vec::new();
        if [stride_y, stride_x] == [1, 1] {
            // Rows follow each other, with the pixels between them, which nothing reads.
            let n_pixels = (height - 1) * row_len + width;
            for first in (0..n_pixels).step_by(SIDE) {
                let rows = first / row_len..=(first + SIDE - 1).min(n_pixels - 1) / row_len;
                let segments = rows.filter_map(|y| {
                    let start = (y * row_len).max(first);
                    let end = (y * row_len + width).min(first + SIDE);
                    let target = y * width + start.saturating_sub(y * row_len);
                    (start < end).then(|| Segment { lane: start - first, target, len: end - start })
                });
                tiles.push((first * self.n_words, segments.collect()));
            }
            return tiles;
        }
        for y in 0..height {
            for x in (0..width).step_by(SIDE) {
                let segment = Segment { lane: 0, target: y * width + x, len: (width - x).min(SIDE) };
                let start = (y * stride_y * row_len + x * stride_x) * self.n_words;
                tiles.push((start, vec![segment]));
            }
        }
        tiles
    }

    /// Words of an image.
    fn image_len(&self) -> usize {
        self.size[0] * self.size[1] * self.n_words
    }

    /// Words that images are loaded into.
    pub fn len(&self, n_images: usize) -> usize {
        // The last tile of a group may be of no pixels that there are.
        let behind = (TOGETHER * SIDE * self.stride[1] + self.kernel[1]) * self.n_words + SIDE;
        LINE + n_images * self.image_len() + self.kernel[0] * self.size[1] * self.n_words + behind
    }

    /// Where the first image begins: at a line of the cache.
    fn first(words: &[u32]) -> usize {
        words.as_ptr().align_offset(LINE * WORD).min(LINE)
    }

    /// Writes an image to its place: the pixels of each word, `width` in a row.
    pub fn load(&self, words: &mut [u32], image: usize, width: usize, pixels: &[[u8; WORD]]) {
        // SAFETY: the processor has AVX2, as the proof says.
        unsafe { self.load_avx2(words, image, width, pixels) };
    }

    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn load_avx2(&self, words: &mut [u32], image: usize, width: usize, pixels: &[[u8; WORD]]) {
        let Proof(proof) = self.proof;
        let ([top, left], n_words) = (self.padding, self.n_words);
        let start = Self::first(words) + image * self.image_len() + (top * self.size[1] + left) * n_words;
        let rows = words[start..].chunks_mut(self.size[1] * n_words);
        let plane = pixels.len() / n_words;
        for (y, row) in rows.enumerate().take(plane / width) {
            // A few pixels at a time: those of all words are in the nearest cache.
            for first in (0..width).step_by(8) {
                let n = (width - first).min(8);
                let at = |word: usize| word * plane + y * width + first;
                let out = &mut row[first * n_words..][..n * n_words];
                let n_eights = if n == 8 { n_words / 8 } else { 0 };
                for part in 0..n_eights {
                    let mut square = [[0.0; 8]; 8];
                    for (i, row) in square.iter_mut().enumerate() {
                        let pixels = &pixels[at(8 * part + i)..][..8];
                        // SAFETY: eight words, and any bits are a number.
                        *row = unsafe { pixels.as_ptr().cast::<[f32; 8]>().read_unaligned() };
                    }
                    for (out, column) in out.chunks_exact_mut(n_words).zip(transpose8(proof, square)) {
                        let out = &mut out[8 * part..][..8];
                        // SAFETY: as above.
                        unsafe { out.as_mut_ptr().cast::<[f32; 8]>().write_unaligned(column) };
                    }
                }
                for word in 8 * n_eights..n_words {
                    for (out, pixel) in out.chunks_exact_mut(n_words).zip(&pixels[at(word)..][..n]) {
                        out[word] = u32::from_le_bytes(*pixel);
                    }
                }
            }
        }
    }

    /// Images that are computed together.
    pub fn images(&self) -> usize {
        ((256 << 10) / (self.image_len() * WORD)).max(1)
    }

    /// Computes images by one thread.
    pub fn run<O: Output>(&self, words: &[u32], n_images: usize, output: &O, out: &mut [Slot<O::Item>]) {
        for block in 0..self.out_channels.div_ceil(BLOCK) {
            let out = &mut out[block * BLOCK / O::CHANNELS * self.plane..];
            self.run_block(words, n_images, block, output, out);
        }
    }

    /// Computes one image by all threads.
    pub fn run_shared<O: Output>(&self, words: &[u32], output: &O, out: &mut [Slot<O::Item>]) {
        let blocks = out.par_chunks_mut(BLOCK / O::CHANNELS * self.plane).enumerate();
        blocks.for_each(|(block, out)| self.run_block(words, 1, block, output, out));
    }

    /// Computes a block of channels. `out` begins with the block's first channel of the first image.
    fn run_block<O: Output>(
        &self,
        words: &[u32],
        n_images: usize,
        block: usize,
        output: &O,
        out: &mut [Slot<O::Item>],
    ) {
        let in_block = self.kernel[0] * self.n_parts * self.in_tile;
        let weights = &self.weights[block * in_block..][..in_block];
        assert!(words.len() >= self.len(n_images), "words that there are");
        let words = &words[Self::first(words)..];
        SUMS.with_borrow_mut(|sums| {
            // SAFETY: the process has the unit.
            unsafe { self.begin() };
            let (sums, rows) = &mut **sums;
            for image in 0..n_images {
                for group in &self.groups {
                    // SAFETY: the sizes of tiles are set, and all words that a group reads are there.
                    unsafe {
                        self.multiply(&words[image * self.image_len()..], &group.starts, weights, sums)
                    };
                    // SAFETY: the processor has AVX2, as the proof says.
                    unsafe { self.finish(group, image, block, sums, rows, output, out) };
                }
            }
            // SAFETY: the process has the unit.
            unsafe { Sizes::release() };
        });
    }

    /// Sets the sizes of the tiles: 0 to 3 are sums, 4 is of weights, 5 to 7 are of pixels.
    ///
    /// # Safety
    /// The process has the unit.
    unsafe fn begin(&self) {
        let sizes = Sizes::of(std::array::from_fn(|tile| match tile {
            0..4 => [SIDE, BLOCK * WORD],
            4 => [self.in_tile, BLOCK * WORD],
            _ => [SIDE, self.in_tile * WORD],
        }));
        // SAFETY: as the caller promises.
        unsafe { sizes.set() };
    }

    /// # Safety
    /// The process has the unit and has set the sizes of tiles. For each start, all words of 16 pixels are there, for each row of
    /// the kernel.
    unsafe fn multiply(&self, words: &[u32], starts: &[usize], weights: &[Row], sums: &mut Sums) {
        // Those of tiles that there are not are computed of others, and nothing reads them.
        let pixels: [*const u32; TOGETHER] =
            std::array::from_fn(|i| words.as_ptr().wrapping_add(starts[i.min(starts.len() - 1)]));
        let pixel_step = self.stride[1] * self.n_words * WORD;
        let mut weights = weights.as_ptr();
        // SAFETY: the instruction changes tiles only.
        unsafe {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
        }
        for y in 0..self.kernel[0] {
            for part in 0..self.n_parts {
                let at = y * self.size[1] * self.n_words + part * self.in_tile;
                let [a, b, c, d] = pixels.map(|pixels| pixels.wrapping_add(at));
                // SAFETY: the weights of a tile are `in_tile` rows; the words of pixels are there, as the caller promises. The
                // instructions change tiles only.
                unsafe {
                    asm!(
                        "tileloadd tmm4, [{weights} + {row}]",
                        "tileloadd tmm5, [{a} + {step}]",
                        "tdpbusd tmm0, tmm5, tmm4",
                        "tileloadd tmm6, [{b} + {step}]",
                        "tdpbusd tmm1, tmm6, tmm4",
                        "tileloadd tmm7, [{c} + {step}]",
                        "tdpbusd tmm2, tmm7, tmm4",
                        "tileloadd tmm5, [{d} + {step}]",
                        "tdpbusd tmm3, tmm5, tmm4",
                        weights = in(reg) weights, row = in(reg) BLOCK * WORD,
                        a = in(reg) a, b = in(reg) b, c = in(reg) c, d = in(reg) d, step = in(reg) pixel_step,
                        options(nostack, readonly, preserves_flags),
                    );
                }
                weights = weights.wrapping_add(self.in_tile);
            }
        }
        // SAFETY: a tile of sums is as large as an array of them.
        unsafe {
            asm!(
                "tilestored [{a} + {row}], tmm0", "tilestored [{b} + {row}], tmm1",
                "tilestored [{c} + {row}], tmm2", "tilestored [{d} + {row}], tmm3",
                a = in(reg) sums[0].as_mut_ptr(), b = in(reg) sums[1].as_mut_ptr(),
                c = in(reg) sums[2].as_mut_ptr(), d = in(reg) sums[3].as_mut_ptr(),
                row = in(reg) BLOCK * WORD, options(nostack, preserves_flags),
            );
        }
    }

    /// Writes what becomes of the sums of a group.
    ///
    /// # Safety
    /// The processor has AVX2.
    #[target_feature(enable = "avx2,fma")]
    #[expect(clippy::too_many_arguments, reason = "the buffers, one by one")]
    unsafe fn finish<O: Output>(
        &self,
        group: &Group,
        image: usize,
        block: usize,
        sums: &Sums,
        rows: &mut Rows,
        output: &O,
        out: &mut [Slot<O::Item>],
    ) {
        let Proof(proof) = self.proof;
        for (tile, sums) in sums.iter().enumerate().take(group.starts.len()) {
            for [pixel, channel] in [[0, 0], [0, 8], [8, 0], [8, 8]] {
                let mut square = [[0.0; 8]; 8];
                for (row, sums) in square.iter_mut().zip(&sums[pixel..]) {
                    // SAFETY: eight of 16 sums, and any bits are a number.
                    *row = unsafe { sums.as_ptr().add(channel).cast::<[f32; 8]>().read() };
                }
                let columns = transpose8(proof, square);
                for (row, column) in rows[channel..].iter_mut().zip(columns) {
                    // SAFETY: eight of the lanes of a tile.
                    unsafe { row.as_mut_ptr().add(tile * SIDE + pixel).cast::<[f32; 8]>().write(column) };
                }
            }
        }
        let out_image = self.out_channels.div_ceil(O::CHANNELS) * self.plane;
        for (part, first) in (block * BLOCK..self.out_channels).step_by(WORD).take(BLOCK / WORD).enumerate() {
            let out = &mut out[part * WORD / O::CHANNELS * self.plane..];
            for Segment { lane, target, len } in &group.segments {
                let row = std::array::from_fn(|c| &rows[part * WORD + c][*lane..][..*len]);
                output.write_rows(proof, first, row, image * out_image + target, out);
            }
        }
    }
}

/// Tiles as a group; pixels that lie side by side in two of them are one segment.
fn group(tiles: &[(usize, Vec<Segment>)]) -> Group {
    let mut segments: Vec<Segment> = Vec::new();
    for (tile, (_, of_tile)) in tiles.iter().enumerate() {
        for segment in of_tile {
            let segment = Segment { lane: tile * SIDE + segment.lane, ..*segment };
            match segments.last_mut() {
                Some(last)
                    if last.lane + last.len == segment.lane && last.target + last.len == segment.target =>
                {
                    last.len += segment.len;
                }
                _ => segments.push(segment),
            }
        }
    }
    Group { starts: tiles.iter().map(|(start, _)| *start).collect(), segments }
}
