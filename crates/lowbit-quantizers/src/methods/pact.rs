//! PACT, Choi et al. 2018 (arXiv 1805.06085): activations with a learned clip value. Its weights are DoReFa's.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme, value_range};

use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, positive_parameter, recorded_bits, replace};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, code_range};

/// `round(clip(x, 0, a) / a n)`, Choi18 Eq. 1 to 3. The gradient passes where `0 <= x < a`; the derivative by `a` is 1 where
/// `x >= a`, else 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl Formula<1> for Clip {
    #[inline(always)]
    fn position<N: Number>(self, x: N, [a]: [N; 1]) -> N {
        x.clip(N::from(0.0), a) / a * N::from(self.n)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.n
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, [a]: [N; 1], _: N, g: N) -> (N, [N; 1]) {
        let zero = N::from(0.0);
        (zero.if_at_most(x, x.if_lower(a, g, zero), zero), [a.if_at_most(x, g, zero)])
    }
}

/// Clip value until a calibration: within the range that the paper finds insensitive (Choi18, section 3: 8 to 20 are equal) for
/// a clip value that decays. It is far beyond what follows a normalization.
const INITIAL_CLIP_VALUE: f32 = 8.0;

/// The clip value of the least squared error at 1 to 8 bits for the positive half of a normal distribution, whose mean square is
/// 1.2533 times its mean: as multiples of that ratio, which does not depend on how many of the values are zero.
const CLIP_PER_RATIO: [f64; 8] = [0.977, 1.557, 1.974, 2.314, 2.610, 2.878, 3.128, 3.364];

/// A calibrated clip value is at most this share of the largest activation. At 8 bits, the largest one then loses a quarter of
/// half a step.
const LARGEST_SHARE: f64 = 1.0 - 1.0 / 2048.0;

/// The clip value never falls below this, so that the scale stays positive.
const MIN_CLIP_VALUE: f32 = 1e-3;

/// PACT activations, Choi18 Eq. 1 to 3. Codes are unsigned, `0..=2^bits - 1`.
///
/// # Equation
/// ```text
/// c = round(clip(x, 0, a) / a * n)            ties to even, n = 2^bits - 1, a the clip value
/// y = c / n * a
/// dy/dx = 1 where 0 <= x < a, else 0          dy/da = 1 where x >= a, else 0
/// ```
/// The clip value has its own L2 decay in the paper: it is in the parameter group `quantizers`.
///
/// A calibration (ours; see [`crate::Calibration`]) sets `a = min(k mean(x^2) / mean(x), (1 - 2^-11) max(x))`, where `k` has
/// the least squared error for normalized activations. From there the clip value learns both ways: some values reach it.
/// From the paper's 8, which no normalized activation reaches, its gradient is zero and only the decay moves it.
#[derive(Module, Debug)]
pub struct PactActivations {
    /// The learned clip value `a`, shape `[1]`, in the units of the activations.
    pub clip_value: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl PactActivations {
    /// A quantizer to `bits` bits. Until it is calibrated its clip value is 8.
    pub fn new(bits: BitWidth, device: &Device) -> Self {
        let clip_value = Param::from_tensor(Tensor::full([1], INITIAL_CLIP_VALUE, device));
        let recorded_bits = recorded_bits(bits, device);
        Self { clip_value, recorded_bits, bits, calibration: Calibration::default() }
    }

    /// The clip value in force, `[1]`: during a calibration, that of what is recorded so far.
    fn clip(&self) -> Tensor<1> {
        match self.calibrated_clip() {
            Some(clip) => clip,
            None => positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, 1.0),
        }
    }

    /// The clip value for the activations that are recorded so far: 8 if they are all zero; `None` without any.
    fn calibrated_clip(&self) -> Option<Tensor<1>> {
        let (moments, (_, max)) = (self.calibration.mean()?, self.calibration.range()?);
        let [mean, square] = [0, 1].map(|i| moments.clone().narrow(0, i, 1));
        let all_zero = square.clone().equal_scalar(0.0);
        // No value reaches a clip value beyond the largest one. At the largest one itself, a rounding error decides whether that
        // value reaches it: whether the gradient goes to the clip value or to the activation.
        let largest = max * LARGEST_SHARE;
        let clip = (square / mean * CLIP_PER_RATIO[self.bits.get() as usize - 1]).min_pair(largest);
        Some(clip.mask_fill(all_zero, INITIAL_CLIP_VALUE).clamp_min(MIN_CLIP_VALUE))
    }
}

impl Quantizer for PactActivations {
    const STATE: &'static [&'static str] = &["clip_value"];
    const DECAYS: bool = true;

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![Learned { name: "clip_value", parameter: &self.clip_value, floor: Some(MIN_CLIP_VALUE) }]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.clip_value]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![("clip_value", constant(self.clip()))]
    }
}

impl QuantizesActivations for PactActivations {
    fn new(bits: BitWidth, device: &Device) -> Self {
        Self::new(bits, device)
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        let formula = AnyFormula::new(Clip { n: (self.bits.levels() - 1) as f32 });
        Scheme::new(formula, vec![self.clip()], code_range(&self.code_set()))
    }

    fn observes(&self) -> bool {
        self.calibration.is_recording()
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        if self.calibration.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone()).clamp_min(0.0);
            let mean = |x: Tensor<D>| reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1));
            let range = value_range(x.clone());
            let [min, max] = [0, 1].map(|i| range.clone().narrow(0, i, 1));
            self.calibration.record_range(min, max);
            self.calibration.record_mean(Tensor::cat(vec![mean(x.clone()), mean(x.square())], 0));
        }
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    fn finish_calibration(&mut self) {
        let clip = self.calibrated_clip();
        self.calibration.finish_mean();
        if let Some(clip) = clip {
            self.clip_value = self.clip_value.clone().map(|old| replace(old, clip));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quantiles of the positive half of a normal distribution, by the midpoint rule: values with their density.
    fn half_normal() -> Vec<[f64; 2]> {
        let value = |i: i32| (f64::from(i) + 0.5) * 6.0 / 3000.0;
        (0..3000).map(value).map(|x| [x, (-x * x / 2.0).exp()]).collect()
    }

    fn mean(f: impl Fn(f64) -> f64) -> f64 {
        let values = half_normal();
        let weight: f64 = values.iter().map(|[_, density]| density).sum();
        values.iter().map(|[x, density]| f(*x) * density).sum::<f64>() / weight
    }

    #[test]
    fn calibrated_clip_values_have_the_least_squared_error() {
        let ratio = mean(|x| x * x) / mean(|x| x);
        for bits in BitWidth::ALL {
            let n = f64::from(bits.levels() - 1);
            let error =
                |clip: f64| mean(|x| ((x.min(clip) / clip * n).round_ties_even() / n * clip - x).powi(2));
            let clip = CLIP_PER_RATIO[bits.get() as usize - 1] * ratio;
            let [least, below, above] = [1.0, 0.97, 1.03].map(|factor| error(clip * factor));
            assert!(least < below && least < above, "{bits} bits: {below} {least} {above}");
        }
    }
}
