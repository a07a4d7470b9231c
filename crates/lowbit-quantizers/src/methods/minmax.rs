//! Plain uniform quantization of the observed range: for the 8-bit first and last layers of low-bit networks, where
//! rounding hardly matters and nothing needs to be learned.

use std::ops::RangeInclusive;

use burn::module::{Flag, Module, Param, RunningState};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeRange, CodeSet, Granularity, Precision};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme, quotient, value_range};

use super::lsq::Step;
use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, recorded_bits};
use crate::quantizer::{Quantizer, QuantizesActivations, QuantizesWeights, code_range};
use crate::{LayerQuantization, Method, QuantizerError};

/// `clip(round(x / s) + z, 0, n)` with a scale `s` and a zero point `z`.
///
/// The gradient passes where the code was not clipped. The derivative by `s` is `c - z - x / s` there and `c - z` elsewhere, that
/// by `z` is 0 there and `-s` elsewhere: those of `(c - z) s` with straight-through rounding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affine {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl Formula<2> for Affine {
    #[inline(always)]
    fn position<N: Number>(self, x: N, [s, z]: [N; 2]) -> N {
        (x / s + z).clip(N::from(0.0), N::from(self.n))
    }

    #[inline(always)]
    fn code<N: Number>(self, x: N, [s, z]: [N; 2]) -> N {
        ((x / s).round() + z).clip(N::from(0.0), N::from(self.n))
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn zero(self) -> Option<usize> {
        Some(1)
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, [s, z]: [N; 2], code: N, g: N) -> (N, [N; 2]) {
        let (zero, n) = (N::from(0.0), N::from(self.n));
        let v = x / s;
        let free = v.round() + z;
        let within = |then: N| free.if_within(zero, n, then);
        (within(g), [g * (code - z - within(v)), -(g * s) + within(g * s)])
    }
}

/// Share of the newest batch in the running range, as in batch normalization.
const MOMENTUM: f64 = 0.1;

/// Min-max weights: symmetric, signed, narrow range `-(2^(bits-1) - 1)..=2^(bits-1) - 1`, from 2 bits.
///
/// # Equation
/// ```text
/// scale = max|w| / q_max                      per tensor or per output channel; a constant of the backward pass
/// c = round(w / scale)                        ties to even; the scale keeps it within the range
/// y = c scale
/// ```
#[derive(Module, Debug)]
pub struct MinMaxWeights {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    granularity: Granularity,
}

impl MinMaxWeights {
    /// A quantizer to `bits` bits, at least 2.
    ///
    /// # Errors
    /// [`QuantizerError::Bits`] if `bits` is 1, which leaves no level but zero.
    pub fn new(bits: BitWidth, granularity: Granularity, device: &Device) -> Result<Self, QuantizerError> {
        let (weight_bits, fp32) = (Precision::Bits(bits), Precision::FullPrecision);
        LayerQuantization::new(Method::MinMax, weight_bits, fp32).check()?;
        Ok(Self { recorded_bits: recorded_bits(bits, device), bits, granularity })
    }

    /// The granularity.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    fn range(&self) -> CodeRange {
        let q_max = self.bits.signed_range().q_max;
        CodeRange { q_min: -q_max, q_max }
    }

    fn scale<const D: usize>(&self, w: Tensor<D>) -> Tensor<1> {
        if w.shape().num_elements() == 0 {
            return Tensor::ones([1], &w.device());
        }
        let max = reduce(constant(w).abs(), self.granularity, |rows| rows.max_dim(1));
        usable(quotient(max.clone(), max.full_like(self.range().q_max as f32)))
    }
}

impl Quantizer for MinMaxWeights {
    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.range().into()
    }
}

impl QuantizesWeights for MinMaxWeights {
    const BITS: RangeInclusive<u32> = 2..=8;
    const PER_CHANNEL: bool = true;

    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        Self { recorded_bits: recorded_bits(bits, &w.device()), bits, granularity }
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        // The largest weight may be a rounding beyond its code: no bound of the grid is to stop its gradient.
        let beyond = self.range().q_max as f32 + 0.25;
        let formula = AnyFormula::new(Step { q_min: -beyond, q_max: beyond });
        Scheme::new(formula, vec![self.scale(w.clone())], code_range(&self.code_set()))
    }

    /// The weights as they are, which all lie in the range.
    fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        w
    }
}

/// Min-max activations: affine, unsigned codes `0..=2^bits - 1`, over a running range that always contains zero.
///
/// # Equation
/// ```text
/// scale = (max - min) / n                     n = 2^bits - 1
/// zero_point = clip(round(-min / scale), 0, n)
/// c = clip(round(x / scale) + zero_point, 0, n)
/// y = (c - zero_point) scale
/// ```
/// Round, then clamp: the gradient passes where the code was not clamped. The range is a constant of the backward
/// pass. It follows the batches that [`ActivationQuantizer::observe`](crate::ActivationQuantizer::observe) is given, as those of a
/// quantized layer's forward pass, in training, with momentum 0.1 as batch normalization's statistics do, until the module is
/// frozen. Nothing else moves it.
#[derive(Module, Debug)]
pub struct MinMaxActivations {
    /// Running minimum, shape `[1]`, at most 0.
    pub running_min: RunningState<Tensor<1>>,
    /// Running maximum, shape `[1]`, at least 0.
    pub running_max: RunningState<Tensor<1>>,
    /// Whether the range follows the batches of a training.
    pub training: Param<Flag>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl MinMaxActivations {
    /// A quantizer to `bits` bits. Until it is calibrated its range is [0, 1].
    pub fn new(bits: BitWidth, device: &Device) -> Self {
        Self::with_range(bits, 0.0, 1.0, device)
    }

    /// A quantizer to `bits` bits over the range from `min` to `max`, extended to contain zero.
    pub fn with_range(bits: BitWidth, min: f32, max: f32, device: &Device) -> Self {
        Self {
            running_min: RunningState::new(Tensor::full([1], min.min(0.0), device)),
            running_max: RunningState::new(Tensor::full([1], max.max(0.0), device)),
            training: Param::from_bool(true),
            recorded_bits: recorded_bits(bits, device),
            bits,
            calibration: Calibration::default(),
        }
    }

    fn steps(&self) -> f32 {
        (self.bits.levels() - 1) as f32
    }

    /// The range in force: during a calibration, what is recorded so far.
    fn range(&self) -> (Tensor<1>, Tensor<1>) {
        let running = || (self.running_min.value_sync(), self.running_max.value_sync());
        self.calibration.range().unwrap_or_else(running)
    }

    /// Scale and zero point of the range in force.
    fn parameters(&self) -> [Tensor<1>; 2] {
        let ((min, max), n) = (self.range(), self.steps());
        let range = max - min.clone();
        let scale = usable(quotient(range.clone(), range.full_like(n)));
        let zero_point = quotient(min.neg(), scale.clone()).round().clamp(0.0, n);
        [scale, zero_point]
    }
}

impl Quantizer for MinMaxActivations {
    const STATE: &'static [&'static str] = &["running_min", "running_max"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![("running_max", self.running_max.value_sync())]
    }
}

impl QuantizesActivations for MinMaxActivations {
    const TAKES_NEGATIVE: bool = true;
    const HAS_ZERO_POINT: bool = true;
    /// The range may move with any batch.
    const SEES_EVERY_BATCH: bool = true;

    fn new(bits: BitWidth, device: &Device) -> Self {
        Self::new(bits, device)
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        let formula = AnyFormula::new(Affine { n: self.steps() });
        Scheme::new(formula, self.parameters().map(constant).to_vec(), code_range(&self.code_set()))
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        let is_recording = self.calibration.is_recording();
        let follows = x.device().is_autodiff() && self.training.is_enabled();
        if !(is_recording || follows) || x.shape().num_elements() == 0 {
            return;
        }
        let range = value_range(constant(x.clone()));
        let [batch_min, batch_max] = [0, 1].map(|i| range.clone().narrow(0, i, 1));
        if is_recording {
            return self.calibration.record_range(batch_min, batch_max);
        }
        let (min, max) = self.range();
        self.running_min.update(min * (1.0 - MOMENTUM) + batch_min * MOMENTUM);
        self.running_max.update(max * (1.0 - MOMENTUM) + batch_max * MOMENTUM);
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    /// The range becomes the smallest and largest value that was recorded.
    fn finish_calibration(&mut self) {
        if let Some((min, max)) = self.calibration.finish_range() {
            let device = self.running_min.value().device();
            self.running_min = RunningState::new(Tensor::from_data(min.into_data(), &device));
            self.running_max = RunningState::new(Tensor::from_data(max.into_data(), &device));
        }
    }
}

/// `scale`, or 1 where it is zero or so small that its reciprocal overflows: all-zero weights, and a running range that
/// has decayed behind a layer whose ReLU lets nothing through. All codes are then those of zero.
fn usable(scale: Tensor<1>) -> Tensor<1> {
    let vanishing = scale.clone().lower_scalar(f32::MIN_POSITIVE);
    scale.mask_fill(vanishing, 1.0)
}
