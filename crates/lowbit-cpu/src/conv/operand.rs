//! What a convolution and its gradients multiply.

use std::borrow::Cow;

use super::planes::Images;
use super::shape::ConvShape;
use crate::gradient::GradientCodes;
use crate::packed::PackedImages;

/// The numbers that products are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Single precision. Where there is a matrix unit, a gradient that codes are multiplied with is split into three numbers of
    /// bf16, whose products are exact: no less precise, but that what is subnormal is taken for zero, and what is beyond the
    /// largest number of bf16 (3.39e38) for infinite.
    #[default]
    Single,
    /// Values are rounded to bf16 before; codes are exact. The sums are in single precision. Processors that multiply bf16 take
    /// products and sums that are subnormal for zero.
    Bf16,
}

/// Weights of a convolution, in the order of [`ConvShape`].
#[derive(Clone, Copy, Debug)]
pub enum Weights<'a> {
    /// Their values.
    Values(&'a [f32]),
    /// Codes in two's complement.
    Codes {
        /// The codes.
        codes: &'a [u8],
        /// What one is worth: for all, or for each channel of the output.
        scales: &'a [f32],
    },
}

impl<'a> Weights<'a> {
    /// How many there are.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Codes { codes, .. } => codes.len(),
        }
    }

    /// Whether they are codes.
    pub(super) fn are_codes(self) -> bool {
        matches!(self, Self::Codes { .. })
    }

    /// The factors of products, and what one is worth: for all, or for each channel of the output.
    ///
    /// # Panics
    /// If there are scales neither for all nor for each channel of `shape`.
    pub(super) fn factors(self, shape: &ConvShape) -> (Factors<'a>, &'a [f32]) {
        match self {
            Self::Values(values) => (Factors::Values(values), &[1.0]),
            Self::Codes { codes, scales } => {
                let n = scales.len();
                assert!(n == 1 || n == shape.out_channels, "{n} scales of {} channels", shape.out_channels);
                (Factors::Codes(codes), scales)
            }
        }
    }

    /// The values that are multiplied in a precision.
    ///
    /// # Panics
    /// As [`factors`](Self::factors).
    pub(super) fn values(self, shape: &ConvShape, precision: Precision) -> Cow<'a, [f32]> {
        match self.factors(shape) {
            (Factors::Values(values), _) => rounded(Cow::Borrowed(values), precision),
            (factors, scales) => {
                let row = shape.group_in() * shape.taps();
                Cow::Owned((0..self.len()).map(|i| factors.at(i) * scales[i / row % scales.len()]).collect())
            }
        }
    }
}

/// What weights are as factors of products: values, or codes in two's complement.
#[derive(Clone, Copy, Debug)]
pub enum Factors<'a> {
    Values(&'a [f32]),
    Codes(&'a [u8]),
}

impl Factors<'_> {
    /// The factor at a place.
    #[inline(always)]
    pub fn at(self, place: usize) -> f32 {
        match self {
            Self::Values(values) => values[place],
            Self::Codes(codes) => f32::from(codes[place].cast_signed()),
        }
    }

    /// `len` of them, from number `first` on.
    pub fn part(self, first: usize, len: usize) -> Self {
        match self {
            Self::Values(values) => Self::Values(&values[first..][..len]),
            Self::Codes(codes) => Self::Codes(&codes[first..][..len]),
        }
    }
}

/// Input of a convolution for the gradient of its weights.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Its values.
    Values(&'a [f32]),
    /// Codes.
    Codes(&'a PackedImages),
}

impl<'a> Input<'a> {
    /// How many values there are.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Codes(codes) => codes.n_images() * codes.image_len(),
        }
    }

    /// Whether they are codes.
    pub(super) fn are_codes(self) -> bool {
        matches!(self, Self::Codes(_))
    }

    /// What a factor of products is worth.
    pub(super) fn scale(self) -> f32 {
        match self {
            Self::Values(_) => 1.0,
            Self::Codes(codes) => codes.scale(),
        }
    }

    /// The values that are multiplied in a precision.
    pub(super) fn values(self, precision: Precision) -> Cow<'a, [f32]> {
        match self {
            Self::Values(values) => rounded(Cow::Borrowed(values), precision),
            Self::Codes(codes) => Cow::Owned(codes.values()),
        }
    }
}

/// Gradient of a convolution's output.
#[derive(Clone, Copy, Debug)]
pub enum Gradient<'a> {
    /// Its values.
    Values(&'a [f32]),
    /// Codes. Where the other operand has some, too, sums of products are exact up to 2^24.
    Codes(&'a GradientCodes),
}

impl<'a> Gradient<'a> {
    /// How many values there are.
    ///
    /// # Panics
    /// If codes have not a maximum for each image.
    pub(super) fn len(self, shape: &ConvShape) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Codes(codes) => {
                assert_eq!(codes.maxima.len(), shape.batch, "maxima of the images");
                codes.codes.len()
            }
        }
    }

    /// Whether they are codes.
    pub(super) fn are_codes(self) -> bool {
        matches!(self, Self::Codes(_))
    }

    /// The values that are multiplied in a precision.
    pub(super) fn values(self, precision: Precision) -> Cow<'a, [f32]> {
        match self {
            Self::Values(values) => rounded(Cow::Borrowed(values), precision),
            Self::Codes(codes) => Cow::Owned(codes.values()),
        }
    }

    /// What a factor of products is worth in each sample, if that is not its value.
    pub(super) fn units(self) -> Option<Vec<f32>> {
        match self {
            Self::Values(_) => None,
            Self::Codes(codes) => Some(codes.units()),
        }
    }

    /// The images from value number `first` on, with what those of each channel are multiplied with.
    pub(super) fn images(self, first: usize, scales: Option<&'a [f32]>) -> Images<'a> {
        match self {
            Self::Values(values) => Images::Values(&values[first..], scales),
            Self::Codes(codes) => Images::Gradient(&codes.codes[first..], codes.largest, scales),
        }
    }
}

/// Values as they are multiplied.
pub(super) fn rounded(values: Cow<'_, [f32]>, precision: Precision) -> Cow<'_, [f32]> {
    match precision {
        Precision::Single => values,
        Precision::Bf16 => Cow::Owned(crate::bf16::rounded(&values)),
    }
}
