//! APoT, Li et al. 2020 (arXiv 1909.13144): levels that are sums of powers of two, dense near zero, with a learned clip value.

use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme};

use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, positive_parameter, recorded_bits, replace};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// The clip value never falls below this.
const MIN_CLIP_VALUE: f32 = 1e-3;

/// Clip values to begin with, Li20 section 4.1: of weights, which are normalized, and of activations until a calibration.
const INITIAL_CLIP_VALUES: [f32; 2] = [3.0, 6.0];

/// The levels above 0 of 1 to 4 unsigned bits as integers, Li20 Eq. 5 with terms of two bits: each level is a sum with one summand of
/// each row, times a power of two that makes it an integer.
///
/// | bits | summands |
/// |---|---|
/// | 1 | 0, 1 |
/// | 2 | 0, 1/2, 1/4, 1/8 |
/// | 3 | 0, 1/2, 1/4, 1/16 and 0, 1/8 |
/// | 4 | 0, 1/2, 1/8, 1/32 and 0, 1/4, 1/16, 1/64 |
const OF_ONE_BIT: [f32; 1] = [1.0];
const OF_TWO_BITS: [f32; 3] = [1.0, 2.0, 4.0];
const OF_THREE_BITS: [f32; 7] = [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0];
const OF_FOUR_BITS: [f32; 15] =
    [1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0, 12.0, 16.0, 18.0, 24.0, 32.0, 33.0, 36.0, 48.0];

/// The level nearest to `x / a`, clipped to 0 and 1 or, with signs, to -1 and 1; of two as near the one nearer to zero. With `v = x / a`
/// the gradient passes where `v` was not clipped; the derivative by `a` is `level - v` there and the bound elsewhere: Li20 Eq. 7.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels<const N: usize> {
    /// The codes above 0, ascending; the last one is worth `a`.
    pub codes: [f32; N],
    /// Whether each has a negative one.
    pub is_signed: bool,
}

impl<const N: usize> Levels<N> {
    fn code_set(self) -> CodeSet {
        let positive = self.codes.map(|code| code as i32);
        let negative = positive.iter().rev().filter(|_| self.is_signed).map(|code| -code);
        CodeSet::Table(negative.chain([0]).chain(positive).collect())
    }
}

impl<const N: usize> Levels<N> {
    #[inline(always)]
    fn low(self) -> f32 {
        if self.is_signed { -1.0 } else { 0.0 }
    }
}

impl<const N: usize> Formula<1> for Levels<N> {
    #[inline(always)]
    fn position<T: Number>(self, x: T, [a]: [T; 1]) -> T {
        (x / a).clip(T::from(self.low()), T::from(1.0)) * T::from(self.parts())
    }

    #[inline(always)]
    fn code<T: Number>(self, x: T, p: [T; 1]) -> T {
        let zero = T::from(0.0);
        let position = self.position(x, p);
        let size = position.if_lower(zero, -position, position);
        let (mut magnitude, mut before) = (zero, 0.0);
        for code in self.codes {
            let middle = T::from(0.5 * (before + code));
            magnitude = magnitude + middle.if_lower(size, T::from(code - before), zero);
            before = code;
        }
        let code = position.if_lower(zero, -magnitude, magnitude);
        // `NaN`, which is not as large as itself, stays.
        position.if_at_most(position, code, position)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.codes[N - 1]
    }

    #[inline(always)]
    fn gradient<T: Number>(self, x: T, [a]: [T; 1], code: T, g: T) -> (T, [T; 1]) {
        let (low, high) = (T::from(self.low()), T::from(1.0));
        let v = x / a;
        (v.if_within(low, high, g), [g * (code / T::from(self.parts()) - v.if_within(low, high, v))])
    }
}

/// APoT weights of 2 to 5 bits, one of which is the sign: `2^bits - 1` codes. Those of 2 bits are -1, 0 and 1.
///
/// # Equation
/// ```text
/// v = (w - mean) / sigma                      Li20 section 3.3, mean and standard deviation of the tensor, constants of the backward pass
/// c = the level nearest to clip(v / a, -1, 1) Eq. 6 and 8; the levels are those of Eq. 5 with bits - 1 bits
/// y = c / c_max a
/// ```
/// The gradients are those of [`Levels`]; the clip value `a` begins at 3.
#[derive(Module, Debug)]
pub struct ApotWeights {
    /// The learned clip value `a` of the normalized weights, `[1]`.
    pub clip_value: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
}

impl Quantizer for ApotWeights {
    const STATE: &'static [&'static str] = &["clip_value"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        levels(self.bits.get() - 1, true).1
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![learned(&self.clip_value)]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.clip_value]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![("weight_clip_value", constant(self.clip_value.val()).clamp_min(MIN_CLIP_VALUE))]
    }
}

impl QuantizesWeights for ApotWeights {
    const HAS_EQUAL_STEPS: bool = false;
    const BITS: RangeInclusive<u32> = 2..=5;

    fn new<const D: usize>(bits: BitWidth, _: Granularity, w: Tensor<D>) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "apot has weights of 2 to 5 bits, not {bits}");
        let clip_value = Tensor::full([1], INITIAL_CLIP_VALUES[0], &w.device());
        let (clip_value, recorded_bits) = (Param::from_tensor(clip_value), recorded_bits(bits, &w.device()));
        Self { clip_value, recorded_bits, bits }
    }

    fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        let clip_value = Tensor::full([1], INITIAL_CLIP_VALUES[0], &w.device());
        self.clip_value = self.clip_value.clone().map(|old| replace(old, clip_value));
    }

    fn transform<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        let n = w.shape().num_elements();
        if n == 0 {
            return w;
        }
        let of_all =
            |x: Tensor<D>| reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1)).reshape([1; D]);
        let mean: Tensor<D> = of_all(constant(w.clone()));
        let square: Tensor<D> = of_all((constant(w.clone()) - mean.clone()).square());
        // The estimate of the deviation that PyTorch's `std` is; one weight, or equal ones, have none.
        let deviation = (square * (n as f64 / (n as f64 - 1.0).max(1.0))).sqrt();
        let none = deviation.clone().lower_scalar(f32::MIN_POSITIVE);
        (w - mean) / deviation.mask_fill(none, 1.0)
    }

    fn scheme<const D: usize>(&self, _: &Tensor<D>) -> Scheme {
        scheme(self.bits.get() - 1, true, positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, 1.0))
    }
}

/// APoT activations of 2 to 4 bits after a ReLU: `2^bits` codes, the levels of Li20 Eq. 5 as they are.
///
/// A calibration (ours) sets `a = min(max(x), 3 sqrt(mean(x^2)))`: three deviations of the normal distribution that the ReLU cut.
#[derive(Module, Debug)]
pub struct ApotActivations {
    /// The learned clip value `a`, `[1]`.
    pub clip_value: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl ApotActivations {
    /// The clip value for the activations that are recorded so far; `None` without any.
    fn calibrated(&self) -> Option<Tensor<1>> {
        self.calibration.half_normal_end(INITIAL_CLIP_VALUES[1]).map(|end| end.clamp_min(MIN_CLIP_VALUE))
    }

    fn clip(&self) -> Tensor<1> {
        self.calibrated().unwrap_or_else(|| positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, 1.0))
    }
}

impl Quantizer for ApotActivations {
    const STATE: &'static [&'static str] = &["clip_value"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        levels(self.bits.get(), false).1
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![learned(&self.clip_value)]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.clip_value]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![("clip_value", constant(self.clip()))]
    }
}

impl QuantizesActivations for ApotActivations {
    const BITS: RangeInclusive<u32> = 2..=4;

    fn new(bits: BitWidth, device: &Device) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "apot has activations of 2 to 4 bits, not {bits}");
        let clip_value = Param::from_tensor(Tensor::full([1], INITIAL_CLIP_VALUES[1], device));
        let (recorded_bits, calibration) = (recorded_bits(bits, device), Calibration::default());
        Self { clip_value, recorded_bits, bits, calibration }
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        scheme(self.bits.get(), false, self.clip())
    }

    fn observes(&self) -> bool {
        self.calibration.is_recording()
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        self.calibration.record_half_normal(x);
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    fn finish_calibration(&mut self) {
        let clip_value = self.calibrated();
        self.calibration.finish_mean();
        if let Some(clip_value) = clip_value {
            self.clip_value = self.clip_value.clone().map(|old| replace(old, clip_value));
        }
    }
}

/// A clip value as a learned parameter.
fn learned(clip_value: &Param<Tensor<1>>) -> Learned<'_> {
    Learned { name: "clip_value", parameter: clip_value, floor: Some(MIN_CLIP_VALUE) }
}

/// The formula and the codes of so many bits without sign.
fn levels(bits: u32, is_signed: bool) -> (AnyFormula, CodeSet) {
    fn of<const N: usize>(codes: [f32; N], is_signed: bool) -> (AnyFormula, CodeSet) {
        let levels = Levels { codes, is_signed };
        (AnyFormula::new(levels), levels.code_set())
    }
    match bits {
        1 => of(OF_ONE_BIT, is_signed),
        2 => of(OF_TWO_BITS, is_signed),
        3 => of(OF_THREE_BITS, is_signed),
        4 => of(OF_FOUR_BITS, is_signed),
        _ => unreachable!("invariant: the bits are those of BITS"),
    }
}

fn scheme(bits: u32, is_signed: bool, clip_value: Tensor<1>) -> Scheme {
    let (formula, codes) = levels(bits, is_signed);
    Scheme::new(formula, vec![clip_value], code_range(&codes))
}
