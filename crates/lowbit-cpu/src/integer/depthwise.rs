//! Depthwise convolution: each channel by a kernel of its own.
//!
//! The four channels of a word are taken apart, and a row of the output of each is summed up tap by tap. There are too few products for each
//! word to be worth more.

use std::cell::RefCell;

use rayon::prelude::*;

use super::layout::Layout;
use super::output::Output;
use crate::conv::ConvShape;
use crate::conv::source::Source;
#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Instructions};
use crate::instructions::{Baseline, multiversion};
use crate::output::Slot;
use crate::words::WORD;

/// A convolution with its weights.
#[derive(Clone, Debug)]
pub struct Depthwise {
    source: Source,
    padding: [usize; 2],
    /// For each channel, its taps.
    weights: Vec<i8>,
    channels: usize,
    out_size: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
}

thread_local! {
    /// A row of each channel of a word.
    static ROWS: RefCell<[Vec<i32>; WORD]> = const { RefCell::new([const { Vec::new() }; WORD]) };
}

impl Depthwise {
    /// Whether the convolution is one of these.
    pub fn serves(shape: &ConvShape) -> bool {
        shape.groups > 1 && shape.groups == shape.in_channels && shape.groups == shape.out_channels
    }

    /// Takes the codes of the weights, in two's complement.
    pub fn new(shape: &ConvShape, weight: &[u8]) -> Self {
        let channels = shape.in_channels;
        let of_words =
            ConvShape { in_channels: channels.div_ceil(WORD), out_channels: 1, groups: 1, ..*shape };
        Self {
            source: Source::with_zeros(&of_words),
            padding: shape.padding,
            weights: weight.iter().map(|code| *code as i8).collect(),
            channels,
            out_size: shape.out_size(),
            kernel: shape.kernel,
            stride: shape.stride,
        }
    }

    /// Where the words of images lie.
    pub fn layout(&self, n_images: usize) -> Layout {
        Layout::of(&self.source, self.padding, n_images, 0)
    }

    /// Images that are computed together.
    pub fn images(&self) -> usize {
        1
    }

    fn plane(&self) -> usize {
        self.out_size[0] * self.out_size[1]
    }

    /// Computes images by one thread.
    pub fn run<O: Output>(&self, words: &[u32], n_images: usize, output: &O, out: &mut [Slot<O::Item>]) {
        let out_image = self.channels.div_ceil(O::CHANNELS) * self.plane();
        for (image, out) in out.chunks_mut(out_image).enumerate().take(n_images) {
            let parts = out.chunks_mut(WORD / O::CHANNELS * self.plane()).enumerate();
            parts.for_each(|(word, out)| self.run_word(words, image, word, output, out));
        }
    }

    /// Computes one image by all threads.
    pub fn run_shared<O: Output>(&self, words: &[u32], output: &O, out: &mut [Slot<O::Item>]) {
        let parts = out.par_chunks_mut(WORD / O::CHANNELS * self.plane()).enumerate();
        parts.for_each(|(word, out)| self.run_word(words, 0, word, output, out));
    }

    /// Computes the channels of a word, with which `out` begins.
    fn run_word<O: Output>(
        &self,
        words: &[u32],
        image: usize,
        word: usize,
        output: &O,
        out: &mut [Slot<O::Item>],
    ) {
        let ([height, width], taps) = (self.out_size, self.kernel[0] * self.kernel[1]);
        ROWS.with_borrow_mut(|rows| {
            for y in 0..height {
                for (c, row) in rows.iter_mut().enumerate() {
                    row.clear();
                    row.resize(width, 0);
                    let Some(weights) = self.weights.chunks_exact(taps).nth(WORD * word + c) else {
                        continue;
                    };
                    for (tap, weight) in weights.iter().enumerate() {
                        let [tap_y, tap_x] = [tap / self.kernel[1], tap % self.kernel[1]];
                        let at = self.source.index(image, word, y * self.stride[0] + tap_y, tap_x);
                        add_products(
                            &words[at as usize..],
                            self.stride[1],
                            c as u32 * 8,
                            i32::from(*weight),
                            row,
                        );
                    }
                }
                let rows = std::array::from_fn(|c| &rows[c][..]);
                #[cfg(target_arch = "x86_64")]
                if let Some(proof) = Avx2::detect() {
                    // SAFETY: the processor has the instructions.
                    unsafe { write_avx2(proof, output, WORD * word, rows, y * width, out) };
                    continue;
                }
                output.write_rows(Baseline, WORD * word, rows, y * width, out);
            }
        });
    }
}

/// # Safety
/// The processor has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn write_avx2<O: Output>(
    instructions: impl Instructions,
    output: &O,
    first: usize,
    rows: [&[i32]; WORD],
    place: usize,
    out: &mut [Slot<O::Item>],
) {
    output.write_rows(instructions, first, rows, place, out);
}

multiversion! {
    /// Adds the products of a row of codes, the byte of each word after so many bits, with a weight.
    fn add_products(words: &[u32], stride: usize, bits: u32, weight: i32, sums: &mut [i32]) {
        let code = |word: u32| (word >> bits & 0xff) as i32;
        match stride {
            // The common ones, so that the compiler can make vectors of them.
            1 => sums.iter_mut().zip(words).for_each(|(sum, word)| *sum += code(*word) * weight),
            2 => sums.iter_mut().zip(words.chunks(2)).for_each(|(sum, pair)| *sum += code(pair[0]) * weight),
            _ => {
                let words = words.iter().step_by(stride);
                sums.iter_mut().zip(words).for_each(|(sum, word)| *sum += code(*word) * weight);
            }
        }
    }
}
