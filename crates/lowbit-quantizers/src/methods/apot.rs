//! APoT, Li et al. 2020 (arXiv 1909.13144): levels that are sums of powers of two, dense near zero, with a learned clip value.

use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme, value_range};

use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, positive_parameter, recorded_bits, replace};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// The clip value never falls below this.
const MIN_CLIP_VALUE: f32 = 1e-3;

/// Clip values to begin with, Li20 section 4.1: of weights, which are normalized, and of activations until a calibration.
const INITIAL_CLIP_VALUES: [f32; 2] = [3.0, 6.0];

/// The levels of 2, 3 and 4 unsigned bits as integers, Li20 Eq. 5 with terms of two bits: each level is a sum with one summand of each
/// row, times a power of two that makes it an integer.
///
/// | bits | summands |
/// |---|---|
/// | 2 | 0, 1/2, 1/4, 1/8 |
/// | 3 | 0, 1/2, 1/4, 1/16 and 0, 1/8 |
/// | 4 | 0, 1/2, 1/8, 1/32 and 0, 1/4, 1/16, 1/64 |
const LEVELS: [&[i32]; 3] =
    [&[0, 1, 2, 4], &[0, 1, 2, 3, 4, 6, 8, 10], &[0, 1, 2, 3, 4, 6, 8, 9, 12, 16, 18, 24, 32, 33, 36, 48]];

/// The level nearest to `x / a`, clipped to 0 and 1 or, with signs, to -1 and 1; of two as near the one nearer to zero. With `v = x / a`
/// the gradient passes where `v` was not clipped; the derivative by `a` is `level - v` there and the bound elsewhere: Li20 Eq. 7.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    /// The magnitudes of the codes, ascending from 0; the last one is worth `a`.
    pub magnitudes: &'static [i32],
    /// Whether there are negative ones.
    pub is_signed: bool,
}

impl Levels {
    fn low(self) -> f32 {
        if self.is_signed { -1.0 } else { 0.0 }
    }
}

impl Formula<1> for Levels {
    #[inline(always)]
    fn position<N: Number>(self, x: N, [a]: [N; 1]) -> N {
        (x / a).clip(N::from(self.low()), N::from(1.0)) * N::from(self.parts())
    }

    #[inline(always)]
    fn code<N: Number>(self, x: N, p: [N; 1]) -> N {
        let zero = N::from(0.0);
        let position = self.position(x, p);
        let size = position.if_lower(zero, -position, position);
        let mut magnitude = zero;
        for pair in self.magnitudes.windows(2) {
            let (step, middle) = ((pair[1] - pair[0]) as f32, 0.5 * (pair[0] + pair[1]) as f32);
            magnitude = magnitude + N::from(middle).if_lower(size, N::from(step), zero);
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
        self.magnitudes[self.magnitudes.len() - 1] as f32
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, [a]: [N; 1], code: N, g: N) -> (N, [N; 1]) {
        let (low, high) = (N::from(self.low()), N::from(1.0));
        let v = x / a;
        (v.if_within(low, high, g), [g * (code / N::from(self.parts()) - v.if_within(low, high, v))])
    }
}

/// APoT weights of 3 to 5 bits, one of which is the sign: `2^bits - 1` codes.
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

impl ApotWeights {
    fn levels(&self) -> Levels {
        Levels { magnitudes: LEVELS[self.bits.get() as usize - 3], is_signed: true }
    }
}

impl Quantizer for ApotWeights {
    const STATE: &'static [&'static str] = &["clip_value"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        code_set(self.levels())
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![learned(&self.clip_value)]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.clip_value]
    }

    fn watched(&self) -> Option<(&'static str, Tensor<1>)> {
        Some(("weight_clip_value", constant(self.clip_value.val()).clamp_min(MIN_CLIP_VALUE)))
    }
}

impl QuantizesWeights for ApotWeights {
    const BITS: RangeInclusive<u32> = 3..=5;

    fn new<const D: usize>(bits: BitWidth, _: Granularity, w: Tensor<D>) -> Self {
        let clip_value = Tensor::full([1], INITIAL_CLIP_VALUES[0], &w.device());
        let (clip_value, recorded_bits) = (Param::from_tensor(clip_value), recorded_bits(bits, &w.device()));
        Self { clip_value, recorded_bits, bits }
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
        scheme(self.levels(), positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, 1.0))
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
    fn levels(&self) -> Levels {
        Levels { magnitudes: LEVELS[self.bits.get() as usize - 2], is_signed: false }
    }

    /// The clip value for the activations that are recorded so far; `None` without any.
    fn calibrated(&self) -> Option<Tensor<1>> {
        let (square, (_, max)) = (self.calibration.mean()?, self.calibration.range()?);
        let all_zero = max.clone().equal_scalar(0.0);
        let clip_value = (square.sqrt() * 3.0).min_pair(max).clamp_min(MIN_CLIP_VALUE);
        Some(clip_value.mask_fill(all_zero, INITIAL_CLIP_VALUES[1]))
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
        code_set(self.levels())
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![learned(&self.clip_value)]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.clip_value]
    }

    fn watched(&self) -> Option<(&'static str, Tensor<1>)> {
        Some(("clip_value", constant(self.clip())))
    }
}

impl QuantizesActivations for ApotActivations {
    const BITS: RangeInclusive<u32> = 2..=4;

    fn new(bits: BitWidth, device: &Device) -> Self {
        let clip_value = Param::from_tensor(Tensor::full([1], INITIAL_CLIP_VALUES[1], device));
        let (recorded_bits, calibration) = (recorded_bits(bits, device), Calibration::default());
        Self { clip_value, recorded_bits, bits, calibration }
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        scheme(self.levels(), self.clip())
    }

    fn observes(&self) -> bool {
        self.calibration.is_recording()
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        if self.calibration.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone()).clamp_min(0.0);
            let range = value_range(x.clone());
            let [min, max] = [0, 1].map(|i| range.clone().narrow(0, i, 1));
            self.calibration.record_range(min, max);
            self.calibration.record_mean(reduce(x.square(), Granularity::PerTensor, |rows| rows.mean_dim(1)));
        }
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

fn code_set(levels: Levels) -> CodeSet {
    let negative = levels.magnitudes[1..].iter().rev().map(|magnitude| -magnitude);
    let negative = negative.filter(|_| levels.is_signed);
    CodeSet::Table(negative.chain(levels.magnitudes.iter().copied()).collect())
}

fn scheme(levels: Levels, clip_value: Tensor<1>) -> Scheme {
    Scheme::new(AnyFormula::new(levels), vec![clip_value], code_range(&code_set(levels)))
}
