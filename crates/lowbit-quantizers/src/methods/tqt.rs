//! TQT, Jain et al. 2020 (arXiv 1903.08066): the logarithm of the clipping threshold is learned, and the step is a power of two, so
//! that a product with it is a shift. One threshold for a tensor, or one for each output channel of the weights.

use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeRange, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Rectified, Scheme};

use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, recorded_bits, replace};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// Thresholds lie between the powers of two of these exponents.
const EXPONENTS: RangeInclusive<i32> = -24..=24;

/// `round(clip(x / s, q_min, q_max))`, Jain20 Eq. 4. The gradient passes where the rounded value was not clipped; the derivative by `s`
/// is `round(v) - v` there and the bound elsewhere, with `v = x / s`: Eq. 6 and 7.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThresholdStep {
    /// Smallest code.
    pub q_min: f32,
    /// Largest code.
    pub q_max: f32,
}

impl Formula<1> for ThresholdStep {
    #[inline(always)]
    fn position<N: Number>(self, x: N, [s]: [N; 1]) -> N {
        (x / s).clip(N::from(self.q_min), N::from(self.q_max))
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, [s]: [N; 1], code: N, g: N) -> (N, [N; 1]) {
        let v = x / s;
        let rounded = v.round();
        let within = |then: N| rounded.if_within(N::from(self.q_min), N::from(self.q_max), then);
        (within(g), [g * (code - within(v))])
    }
}

/// TQT weights. Codes are signed, `-2^(bits-1)..=2^(bits-1) - 1`, from 2 bits.
///
/// # Equation
/// ```text
/// s = 2^ceil(t) / 2^(bits-1)                  Jain20 Eq. 3, `t` the binary logarithm of the threshold
/// c = round(clip(w / s, q_min, q_max))        Eq. 4, ties to even
/// y = c s
/// dy/dt = s ln 2 (c - w/s) where the code was not clipped, s ln 2 c elsewhere        Eq. 7: straight through the ceiling
/// ```
/// The threshold begins where LSQ's grid would end, at `2^(bits-1) 2 mean|w| / sqrt(q_max)` (ours; the paper takes three standard
/// deviations, at 8 bits).
#[derive(Module, Debug)]
pub struct TqtWeights {
    /// `t`, shape `[1]`, or `[out_channels]` per channel.
    pub log2_threshold: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    granularity: Granularity,
}

impl Quantizer for TqtWeights {
    const STATE: &'static [&'static str] = &["log2_threshold"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.signed_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![Learned { name: "log2_threshold", parameter: &self.log2_threshold, floor: None }]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.log2_threshold]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![("weight_log2_threshold", constant(self.log2_threshold.val()))]
    }
}

impl QuantizesWeights for TqtWeights {
    const HOLDS_LEVELS: bool = true;
    const BITS: RangeInclusive<u32> = 2..=8;
    const PER_CHANNEL: bool = true;

    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "tqt has weights of 2 to 8 bits, not {bits}");
        let recorded_bits = recorded_bits(bits, &w.device());
        let log2_threshold = Param::from_tensor(initial_threshold(bits, granularity, w));
        Self { log2_threshold, recorded_bits, bits, granularity }
    }

    fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        let threshold = initial_threshold(self.bits, self.granularity, w);
        self.log2_threshold = self.log2_threshold.clone().map(|old| replace(old, threshold));
    }

    fn scheme<const D: usize>(&self, _: &Tensor<D>) -> Scheme {
        scheme(self.log2_threshold.val(), self.bits.signed_range(), self.bits.get() - 1, Rectified::of_value)
    }
}

/// TQT activations after a ReLU. Codes are unsigned, `0..=2^bits - 1`, and `s = 2^ceil(t) / 2^bits`; the rest is as of
/// [`TqtWeights`].
///
/// A calibration sets the threshold where LSQ's grid would end, at `2^bits 2 mean|x| / sqrt(q_max)`; until then it is 1.
#[derive(Module, Debug)]
pub struct TqtActivations {
    /// `t`, shape `[1]`.
    pub log2_threshold: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl TqtActivations {
    /// `t` in force: during a calibration, that of what is recorded so far.
    fn threshold(&self) -> Tensor<1> {
        match self.calibration.mean() {
            Some(mean_abs) => threshold_from_mean(mean_abs, self.bits.unsigned_range(), self.bits.get()),
            None => self.log2_threshold.val(),
        }
    }
}

impl Quantizer for TqtActivations {
    const STATE: &'static [&'static str] = &["log2_threshold"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![Learned { name: "log2_threshold", parameter: &self.log2_threshold, floor: None }]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.log2_threshold]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![("act_log2_threshold", constant(self.threshold()))]
    }
}

impl QuantizesActivations for TqtActivations {
    fn new(bits: BitWidth, device: &Device) -> Self {
        let log2_threshold = Param::from_tensor(Tensor::zeros([1], device));
        let (recorded_bits, calibration) = (recorded_bits(bits, device), Calibration::default());
        Self { log2_threshold, recorded_bits, bits, calibration }
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        scheme(self.threshold(), self.bits.unsigned_range(), self.bits.get(), Rectified::of_value)
    }

    /// The gradient passes from half a step below zero on, where a ReLU blocks it.
    fn scheme_of_relu(&self, _: &[usize]) -> Scheme {
        scheme(self.threshold(), self.bits.unsigned_range(), self.bits.get(), Rectified::of_relu)
    }

    fn observes(&self) -> bool {
        self.calibration.is_recording()
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        if self.calibration.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone()).abs();
            self.calibration.record_mean(reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1)));
        }
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    fn finish_calibration(&mut self) {
        let threshold = constant(self.threshold());
        if self.calibration.finish_mean().is_some() {
            self.log2_threshold = self.log2_threshold.clone().map(|old| replace(old, threshold));
        }
    }
}

/// The scheme of thresholds `2^t` that span `2^log2_steps` steps, of values or of what a ReLU makes of them.
fn scheme(
    t: Tensor<1>,
    range: CodeRange,
    log2_steps: u32,
    of: fn(ThresholdStep) -> Rectified<ThresholdStep>,
) -> Scheme {
    let (low, high) = (*EXPONENTS.start(), *EXPONENTS.end());
    let value = constant(t.clone());
    let is_nan = value.clone().is_nan();
    // A threshold of `NaN` makes all values `NaN` below, by its path.
    let exponent =
        value.mask_fill(is_nan, 0.0).ceil().clamp(f64::from(low), f64::from(high)) - f64::from(log2_steps);
    // Exact powers of two, which no device's exponential function promises.
    let first = low - 8;
    let powers: Vec<f32> = (first..=high).map(|exponent| 2f32.powi(exponent)).collect();
    let powers = Tensor::<1>::from_floats(powers.as_slice(), &t.device().without_autodiff());
    let powers = if t.device().is_autodiff() { Tensor::from_inner(powers) } else { powers };
    let step_size = powers.select(0, (exponent - f64::from(first)).int());
    // Straight through the ceiling: ds/dt = s ln 2.
    let path = t * (constant(step_size.clone()) * std::f64::consts::LN_2);
    let step_size = constant(step_size) + (path.clone() - constant(path));
    let CodeRange { q_min, q_max } = range;
    let formula = AnyFormula::new(of(ThresholdStep { q_min: q_min as f32, q_max: q_max as f32 }));
    Scheme::new(formula, vec![step_size], code_range(&range.into()))
}

/// The binary logarithm of where LSQ's grid would end.
fn threshold_from_mean(mean_abs: Tensor<1>, range: CodeRange, log2_steps: u32) -> Tensor<1> {
    let factor = f64::from(1u32 << log2_steps) * 2.0 / f64::from(range.q_max).sqrt();
    let all_zero = mean_abs.clone().equal_scalar(0.0);
    ((mean_abs * factor).log() / std::f64::consts::LN_2).mask_fill(all_zero, 0.0)
}

fn initial_threshold<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Tensor<1> {
    if w.shape().num_elements() == 0 {
        return Tensor::zeros([1], &w.device());
    }
    let mean_abs = reduce(constant(w).abs(), granularity, |rows| rows.mean_dim(1));
    threshold_from_mean(mean_abs, bits.signed_range(), bits.get() - 1)
}
