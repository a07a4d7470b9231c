//! PACT, Choi et al. 2018 (arXiv 1805.06085): activations with a learned clip value. Its weights are DoReFa's.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, Granularity, GridError, IntegerGrid};
use lowbit_kernels::{Activation, Grid, Scale, fake_quantize_learned, value_range};

use crate::calibration::Calibration;
use crate::codes::{codes_of, per_channel, read, reduce, zero_if_nan};
use crate::parameter::{constant, n_at_floor, positive_parameter, recorded_bits, replace};

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
    pub(crate) calibration: Calibration,
}

impl PactActivations {
    /// A quantizer to `bits` bits. Until it is calibrated its clip value is 8.
    pub fn new(bits: BitWidth, device: &Device) -> Self {
        let clip_value = Param::from_tensor(Tensor::full([1], INITIAL_CLIP_VALUE, device));
        let recorded_bits = recorded_bits(bits, device);
        Self { clip_value, recorded_bits, bits, calibration: Calibration::default() }
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    fn steps(&self) -> f32 {
        (self.bits.levels() - 1) as f32
    }

    /// The clip value in force, `[1]`: during a calibration, that of what is recorded so far.
    pub(crate) fn clip(&self) -> Tensor<1> {
        match self.calibrated_clip() {
            Some(clip) => clip,
            None => positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, 1.0),
        }
    }

    /// Takes in a batch, in a calibration.
    pub(crate) fn observe<const D: usize>(&self, x: &Tensor<D>) {
        if self.calibration.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone()).clamp_min(0.0);
            let mean = |x: Tensor<D>| reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1));
            let range = value_range(x.clone());
            let [min, max] = [0, 1].map(|i| range.clone().narrow(0, i, 1));
            self.calibration.record_range(min, max);
            self.calibration.record_mean(Tensor::cat(vec![mean(x.clone()), mean(x.square())], 0));
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

    /// Ends a calibration: sets the clip value from what was recorded.
    pub(crate) fn finish_calibration(&mut self) {
        let clip = self.calibrated_clip();
        self.calibration.finish_mean();
        if let Some(clip) = clip {
            self.clip_value = self.clip_value.clone().map(|old| replace(old, clip));
        }
    }

    /// How many clip values are held at their floor, `[1]`: 0 or 1.
    pub(crate) fn n_at_floor(&self) -> Tensor<1, Int> {
        n_at_floor(self.clip_value.val(), MIN_CLIP_VALUE)
    }

    /// `clip(x, 0, a)` with the gradient of Choi18 Eq. 3.
    fn clipped<const D: usize>(&self, x: Tensor<D>, clip: Tensor<D>) -> Tensor<D> {
        let above = constant(x.clone()).greater_equal(constant(clip.clone()));
        let shape = x.shape();
        x.clamp_min(0.0).mask_where(above, clip.expand(shape))
    }

    /// Codes in `0..=2^bits - 1`, of `x`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        let clip = self.clip();
        codes_of(fake_quantize_learned(zero_if_nan(x), clip.clone(), self.clip_grid()) * self.steps(), clip)
    }

    /// `x` on the grid's real values, of `x`'s shape, with the gradients of Choi18 Eq. 3.
    pub fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        fake_quantize_learned(x, self.clip(), self.clip_grid())
    }

    /// The formula of the kernels.
    fn clip_grid(&self) -> Grid {
        Grid::Clip { n: self.steps() }
    }

    /// A ReLU and the quantizer in one; `None` during calibration, which sees the values.
    pub(crate) fn activation(&self) -> Option<Activation> {
        let is_fixed = !self.calibration.is_recording();
        is_fixed.then(|| Activation::Learned { parameter: self.clip(), grid: self.clip_grid() })
    }

    /// What the quantized values are multiples of, and the largest multiple; `None` during calibration.
    pub(crate) fn scale(&self) -> Option<(Scale, u8)> {
        let scale = || Scale::Learned { parameter: self.clip(), parts: self.steps() };
        (!self.calibration.is_recording()).then(|| (scale(), (self.bits.levels() - 1) as u8))
    }

    /// [`fake_quantize`](Self::fake_quantize) without the rounding: `clip(x, 0, a)`.
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let clip = per_channel::<D>(self.clip());
        self.clipped(x, clip)
    }

    /// The grid: its unit, which is divided by `n`, is the clip value in force.
    ///
    /// # Errors
    /// [`GridError`] if the clip value is not finite.
    pub fn grid(&self) -> Result<IntegerGrid, GridError> {
        IntegerGrid::new(self.bits.unsigned_range(), read(self.clip()), self.bits.levels() - 1)
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
