//! Exact convolution of codes.
//!
//! Four channels of the input are one 32-bit word. There are four ways to the same sums: all products, for channels or for pixels of the
//! output side by side or by a matrix unit, and fewer products of what tiles and kernels are transformed to.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod amx;
mod depthwise;
mod direct;
mod layout;
mod multiply;
mod output;
mod rows;
mod winograd;

use std::cell::RefCell;

use rayon::prelude::*;

use crate::conv::ConvShape;
use crate::instructions::multiversion;
use crate::output::{Slot, collect_into};
use crate::words::WORD;

#[cfg(target_arch = "x86_64")]
use amx::Matrix;
use depthwise::Depthwise;
use direct::{Direct, Tiles};
pub use output::Levels;
use output::{Coded, Output, Values};
use rows::Rows;
use winograd::Winograd;

/// Codes that an operand may have, as far as they matter: the largest magnitudes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeBounds {
    /// Largest code of the activations.
    pub activation: u8,
    /// Largest magnitude of the codes of the weights.
    pub weight: u8,
}

impl CodeBounds {
    /// Steps after which sums of 16 bits may overflow: each step adds two products to a sum. 0 if one step may.
    fn steps(self) -> usize {
        let pair = 2 * usize::from(self.activation) * usize::from(self.weight);
        (i16::MAX as usize).checked_div(pair).unwrap_or(usize::MAX)
    }

    /// Whether the activations are the same as signed bytes, which processors of aarch64 multiply.
    #[cfg(target_arch = "aarch64")]
    fn are_signed(self) -> bool {
        self.activation <= i8::MAX as u8
    }
}

/// A convolution with its weights packed.
#[derive(Clone, Debug)]
pub struct IntegerConv {
    shape: ConvShape,
    way: Way,
    /// Scale of the weights, for each output channel.
    scales: Vec<f32>,
    bounds: CodeBounds,
    /// The code that is worth zero.
    zero_point: u8,
    /// Sum of the weights, for each output channel.
    weight_sums: Vec<i32>,
    /// What the sums of products have too much by the zero point, for each output channel.
    offsets: Vec<i32>,
}

/// How sums are computed.
#[derive(Clone, Debug)]
enum Way {
    Depthwise(Depthwise),
    Direct(Direct),
    Rows(Rows),
    Winograd(Winograd),
    #[cfg(target_arch = "x86_64")]
    Matrix(Matrix),
}

/// Does the same with any way.
macro_rules! with_way {
    ($self:expr, $way:ident => $work:expr) => {
        match $self {
            Way::Depthwise($way) => $work,
            Way::Direct($way) => $work,
            Way::Rows($way) => $work,
            Way::Winograd($way) => $work,
            #[cfg(target_arch = "x86_64")]
            Way::Matrix($way) => $work,
        }
    };
}

impl Way {
    /// The one that takes the least time on this processor.
    fn new(shape: &ConvShape, weight: &[u8], bounds: CodeBounds) -> Self {
        if Depthwise::serves(shape) {
            return Self::Depthwise(Depthwise::new(shape, weight));
        }
        #[cfg(target_arch = "x86_64")]
        if Matrix::pays(shape)
            && let Some(matrix) = Matrix::new(shape, weight)
        {
            return Self::Matrix(matrix);
        }
        if Winograd::serves(shape, bounds)
            && Winograd::pays(shape)
            && let Some(winograd) = Winograd::new(shape, weight, bounds).filter(Winograd::is_fast)
        {
            return Self::Winograd(winograd);
        }
        match Rows::pays(shape, bounds) {
            true => Self::Rows(Rows::new(shape, weight, bounds)),
            false => Self::Direct(Direct::new(shape, weight, bounds)),
        }
    }
}

thread_local! {
    static WORDS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// The largest magnitude of a weight's code: that of -128.
const LARGEST_WEIGHT: u8 = i8::MIN.unsigned_abs();

/// The largest magnitude of a sum of codes within the bounds.
fn largest_sum(shape: &ConvShape, bounds: CodeBounds) -> u128 {
    (shape.in_channels / shape.groups * shape.taps()) as u128
        * u128::from(bounds.activation)
        * u128::from(bounds.weight)
}

impl IntegerConv {
    /// Whether such codes can be convolved on any processor: without groups or with one for each channel, of weights with 8 bits and their
    /// sign, and if no sum is beyond 32 bits.
    pub fn serves(shape: &ConvShape, bounds: CodeBounds) -> bool {
        (shape.groups == 1 || Depthwise::serves(shape))
            && bounds.weight <= LARGEST_WEIGHT
            && largest_sum(shape, bounds) <= i32::MAX as u128
    }

    /// Whether this is faster than the convolution in single precision, on this processor. It is not where most of the input,
    /// all of which becomes codes, is not read.
    pub fn pays(shape: &ConvShape, bounds: CodeBounds) -> bool {
        let skips = shape.taps() == 1 && shape.stride.iter().any(|&stride| stride > 1);
        let is_small = bounds.weight <= i8::MAX as u8;
        shape.groups == 1 && !skips && is_small && Self::serves(shape, bounds) && Tiles::best(bounds).pay()
    }

    /// Packs the codes of the weights, in two's complement and of the shape of [`ConvShape`]'s weight. A code is worth its
    /// scale: there is one for all or one for each output channel. `None` if a sum could be beyond 32 bits.
    ///
    /// # Panics
    /// If there are groups of several channels, a length does not fit the shape, the shape has a size of 0 but for the padding and the batch, or a code is
    /// beyond the bounds.
    pub fn new(shape: ConvShape, weight: &[u8], scales: &[f32], bounds: CodeBounds) -> Option<Self> {
        assert!(shape.groups == 1 || Depthwise::serves(&shape), "groups of one channel, or none");
        shape.check_sizes();
        shape.check(shape.batch * shape.in_image(), weight.len());
        if largest_sum(&shape, bounds) > i32::MAX as u128 {
            return None;
        }
        let scales = match scales {
            [scale] => vec![*scale; shape.out_channels],
            _ => scales.to_vec(),
        };
        assert_eq!(scales.len(), shape.out_channels, "one scale, or one for each output channel");
        let largest = bounds.weight.min(LARGEST_WEIGHT);
        assert!(magnitude(weight) <= largest, "a code of the weights is beyond {largest}");
        let channels = weight.par_chunks_exact(shape.in_channels / shape.groups * shape.taps());
        let weight_sums =
            channels.map(|codes| codes.iter().map(|code| i32::from(*code as i8)).sum()).collect();
        let offsets = vec![0; shape.out_channels];
        let way = Way::new(&shape, weight, bounds);
        Some(Self { shape, way, scales, bounds, zero_point: 0, weight_sums, offsets })
    }

    /// The same for codes of the input of which another than 0 is worth zero: sums are of distances from it, and it is what lies around
    /// the images.
    ///
    /// # Panics
    /// If it is beyond the bounds.
    pub fn with_zero_point(mut self, zero_point: u8) -> Self {
        assert!(zero_point <= self.bounds.activation, "a zero point beyond the codes");
        // As many as fit a sum with the largest code.
        self.offsets = self.weight_sums.iter().map(|sum| i32::from(zero_point) * sum).collect();
        self.zero_point = zero_point;
        self
    }

    /// The convolution of the codes `input`, each worth the scale, of any number of images.
    ///
    /// The sum over codes is exact in 32 bits; its value in single precision is exact up to `2^24`.
    ///
    /// # Panics
    /// If the length does not fit the shape, or a code is beyond the bounds.
    pub fn forward(&self, input: &[u8], scale: f32) -> Vec<f32> {
        let mut out = Vec::new();
        self.values(Codes::Planes(input), &self.worths(scale), &mut out);
        out
    }

    /// The same of words, see [`words`](crate::words), into `out`. `worths` says what one of the sums is worth, for each output channel.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), or if there are more or fewer worths.
    pub fn forward_words(&self, input: &[[u8; WORD]], worths: &[f32], out: &mut Vec<f32>) {
        assert_eq!(worths.len(), self.shape.out_channels, "one for each output channel");
        self.values(Codes::Words(input), worths, out);
    }

    fn values(&self, input: Codes<'_>, scales: &[f32], out: &mut Vec<f32>) {
        let output = Values { plane: self.shape.out_plane(), offsets: &self.offsets, scales };
        let n_images = self.n_images(input);
        let n = n_images * self.shape.out_image();
        // SAFETY: `run` writes all pixels, and `Values` all of a block's channels.
        unsafe { collect_into(out, n, |out| self.run(input, n_images, &output, out)) }
    }

    /// The codes of the levels of the sums of words, into `out`: a convolution, a normalization and a quantizer without a number in single
    /// precision between them.
    ///
    /// # Panics
    /// As [`forward`](Self::forward), or if the levels are of another number of channels.
    pub fn levels(&self, input: &[[u8; WORD]], levels: &Levels, out: &mut Vec<[u8; WORD]>) {
        assert_eq!(levels.n_channels(), self.shape.out_channels, "channels of the levels");
        let plane = self.shape.out_plane();
        let output = Coded { plane, offsets: &self.offsets, levels };
        let input = Codes::Words(input);
        let n_images = self.n_images(input);
        let n_words = n_images * self.shape.out_channels.div_ceil(WORD) * plane;
        // SAFETY: `run` writes all pixels, and `Coded` all words of a block's channels.
        unsafe { collect_into(out, n_words, |out| self.run(input, n_images, &output, out)) }
    }

    /// What one of the sums is worth, for each output channel, if a code of the input is worth `scale`.
    pub fn worths(&self, scale: f32) -> Vec<f32> {
        self.scales.iter().map(|weight| weight * scale).collect()
    }

    /// The largest magnitude that a sum can have.
    pub fn largest_sum(&self) -> i32 {
        i32::try_from(largest_sum(&self.shape, self.bounds)).expect("invariant: sums fit 32 bits")
    }

    /// How many of `input` an image has.
    fn in_image(&self, input: Codes<'_>) -> usize {
        match input {
            Codes::Planes(_) => self.shape.in_image(),
            Codes::Words(_) => self.shape.in_channels.div_ceil(WORD) * self.shape.in_plane(),
        }
    }

    fn n_images(&self, input: Codes<'_>) -> usize {
        let in_image = self.in_image(input);
        assert!(input.len().is_multiple_of(in_image), "length of the input");
        input.len() / in_image
    }

    /// Writes what becomes of the sums of all images.
    fn run<O: Output>(&self, input: Codes<'_>, n_images: usize, output: &O, out: &mut [Slot<O::Item>]) {
        let (in_image, plane) = (self.in_image(input), self.shape.out_plane());
        let out_image = self.shape.out_channels.div_ceil(O::CHANNELS) * plane;
        let n_threads = rayon::current_num_threads();
        if n_images < n_threads {
            // Images have fewer parts than threads: their channels are shared.
            for (out, image) in out.chunks_mut(out_image).zip(0..) {
                let mut words = WORDS.take();
                self.load(input.part(image * in_image..(image + 1) * in_image), &mut words);
                with_way!(&self.way, way => way.run_shared(&words, output, out));
                WORDS.set(words);
            }
            return;
        }
        let together = with_way!(&self.way, way => way.images()).min(n_images / (2 * n_threads)).max(1);
        out.par_chunks_mut(together * out_image).enumerate().for_each(|(part, out)| {
            WORDS.with_borrow_mut(|words| {
                let first = part * together * in_image;
                let input = input.part(first..(first + together * in_image).min(input.len()));
                self.load(input, words);
                with_way!(&self.way, way => way.run(words, input.len() / in_image, output, out));
            });
        });
    }

    /// Copies the codes of images into words, with zeros around them.
    fn load(&self, input: Codes<'_>, words: &mut Vec<u32>) {
        let largest = self.bounds.activation;
        assert!(
            largest == u8::MAX || maximum(input.bytes()) <= largest,
            "a code of the input is beyond {largest}"
        );
        let (plane, width) = (self.shape.in_plane(), self.shape.size[1]);
        let in_image = self.in_image(input);
        let n_images = input.len() / in_image;
        let zeros = u32::from_le_bytes([self.zero_point; WORD]);
        words.clear();
        let layout = match &self.way {
            Way::Depthwise(depthwise) => depthwise.layout(n_images),
            Way::Direct(direct) => direct.layout(n_images),
            Way::Rows(rows) => rows.layout(n_images),
            Way::Winograd(winograd) => winograd.layout(n_images),
            #[cfg(target_arch = "x86_64")]
            Way::Matrix(matrix) => {
                words.resize(matrix.len(n_images), zeros);
                let mut joined = Vec::new();
                for image in 0..n_images {
                    let pixels = match input.part(image * in_image..(image + 1) * in_image) {
                        Codes::Planes(codes) => {
                            crate::words::join(codes, 1, self.shape.in_channels, plane, &mut joined);
                            &joined
                        }
                        Codes::Words(words) => words,
                    };
                    matrix.load(words, image, width, pixels);
                }
                return;
            }
        };
        words.resize(layout.len, zeros);
        match input {
            Codes::Planes(codes) => {
                let mut joined = vec![0; plane];
                for (image, input) in codes.chunks_exact(in_image).enumerate() {
                    for (word, channels) in input.chunks(WORD * plane).enumerate() {
                        match layout.place(image, word) {
                            Some(place) => {
                                join(channels, plane, width, layout.row_len(), &mut words[place..]);
                            }
                            None => {
                                join(channels, plane, width, width, &mut joined);
                                layout.load(&joined, width, image, word, words);
                            }
                        }
                    }
                }
            }
            Codes::Words(codes) => {
                for (image, input) in codes.chunks_exact(in_image).enumerate() {
                    for (word, codes) in input.chunks_exact(plane).enumerate() {
                        layout.load(codes, width, image, word, words);
                    }
                }
            }
        }
    }
}

/// Codes of images.
#[derive(Clone, Copy)]
enum Codes<'a> {
    /// Channel after channel.
    Planes(&'a [u8]),
    /// Four channels together.
    Words(&'a [[u8; WORD]]),
}

impl Codes<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Planes(codes) => codes.len(),
            Self::Words(words) => words.len(),
        }
    }

    fn part(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::Planes(codes) => Self::Planes(&codes[range]),
            Self::Words(words) => Self::Words(&words[range]),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Planes(codes) => codes,
            Self::Words(words) => words.as_flattened(),
        }
    }
}

multiversion! {
    /// The largest code.
    fn maximum(codes: &[u8]) -> u8 {
        codes.iter().fold(0, |largest, &code| largest.max(code))
    }
}

multiversion! {
    /// The largest magnitude of codes in two's complement.
    fn magnitude(codes: &[u8]) -> u8 {
        codes.iter().fold(0, |largest, &code| largest.max((code as i8).unsigned_abs()))
    }
}

multiversion! {
    /// Joins up to [`WORD`] planes to words, whose rows lie `stride` words apart.
    fn join(channels: &[u8], plane: usize, width: usize, stride: usize, out: &mut [u32]) {
        if let Some((all, _)) = channels.split_at_checked(WORD * plane) {
            let (ab, cd) = all.split_at(2 * plane);
            let ((a, b), (c, d)) = (ab.split_at(plane), cd.split_at(plane));
            for (y, out) in out.chunks_mut(stride).enumerate().take(plane / width) {
                let row = y * width..(y + 1) * width;
                let (ab, cd) = (a[row.clone()].iter().zip(&b[row.clone()]), c[row.clone()].iter().zip(&d[row]));
                for (word, ((&a, &b), (&c, &d))) in out.iter_mut().zip(ab.zip(cd)) {
                    *word = u32::from_le_bytes([a, b, c, d]);
                }
            }
            return;
        }
        for (c, channel) in channels.chunks_exact(plane).enumerate() {
            for (row, out) in channel.chunks_exact(width).zip(out.chunks_mut(stride)) {
                for (word, &code) in out.iter_mut().zip(row) {
                    *word = *word & !(0xff << (8 * c)) | u32::from(code) << (8 * c);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
