//! Plain uniform quantization of the observed range: for the 8-bit first and last layers of low-bit networks, where
//! rounding hardly matters and nothing needs to be learned.

use burn::module::{Flag, Module, Param, RunningState};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeRange, Granularity, GridError, IntegerGrid, Precision};
use lowbit_kernels::{Grid, fake_quantize_affine, fake_quantize_learned, quotient, value_range};

use crate::calibration::Calibration;
use crate::codes::{codes_of, per_channel, read, reduce, zero_if_nan};
use crate::parameter::{constant, recorded_bits};
use crate::{Method, Operand, QuantizerError};

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
        if bits.get() < 2 {
            return Err(QuantizerError::Bits {
                method: Method::MinMax,
                operand: Operand::Weights,
                got: Precision::Bits(bits),
                allowed: "2 to 8 bits",
            });
        }
        Ok(Self { recorded_bits: recorded_bits(bits, device), bits, granularity })
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        self.bits
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

    /// Codes in the narrow signed range, of `w`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, w: Tensor<D>) -> Tensor<D, Int> {
        let w = zero_if_nan(w);
        let scale = self.scale(w.clone());
        codes_of(self.on_grid(w, scale.clone()), scale)
    }

    /// The weights on the grid's real values, of `w`'s shape, with a straight-through gradient.
    pub fn fake_quantize<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        let scale = self.scale(w.clone());
        self.on_grid(w, scale)
    }

    fn on_grid<const D: usize>(&self, w: Tensor<D>, scale: Tensor<1>) -> Tensor<D> {
        // The largest weight may be a rounding beyond its code: no bound of the grid is to stop its gradient.
        let beyond = self.range().q_max as f32 + 0.25;
        fake_quantize_learned(w, scale, Grid::Step { q_min: -beyond, q_max: beyond })
    }

    /// [`fake_quantize`](Self::fake_quantize) without the rounding: the weights as they are, which all lie in the range.
    pub fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        w
    }

    /// The grid of the weights `w`: its unit is their scale.
    ///
    /// # Errors
    /// [`GridError`] if a scale is not finite.
    pub fn grid<const D: usize>(&self, w: Tensor<D>) -> Result<IntegerGrid, GridError> {
        IntegerGrid::new(self.range(), read(self.scale(w)), 1)
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
    pub(crate) calibration: Calibration,
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

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    fn steps(&self) -> f32 {
        (self.bits.levels() - 1) as f32
    }

    /// The range in force: during a calibration, what is recorded so far.
    fn range(&self) -> (Tensor<1>, Tensor<1>) {
        let running = || (self.running_min.value_sync(), self.running_max.value_sync());
        self.calibration.range().unwrap_or_else(running)
    }

    /// Takes in a batch: in a calibration, or else in training, where the range follows the batches.
    pub(crate) fn observe<const D: usize>(&self, x: &Tensor<D>) {
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

    /// Ends a calibration: the range becomes the smallest and largest value that was recorded.
    pub(crate) fn finish_calibration(&mut self) {
        if let Some((min, max)) = self.calibration.finish_range() {
            let device = self.running_min.value().device();
            self.running_min = RunningState::new(Tensor::from_data(min.into_data(), &device));
            self.running_max = RunningState::new(Tensor::from_data(max.into_data(), &device));
        }
    }

    /// Scale and zero point of the range in force.
    fn parameters(&self) -> [Tensor<1>; 2] {
        let ((min, max), n) = (self.range(), self.steps());
        let range = max - min.clone();
        let scale = usable(quotient(range.clone(), range.full_like(n)));
        let zero_point = quotient(min.neg(), scale.clone()).round().clamp(0.0, n);
        [scale, zero_point]
    }

    /// Codes in `0..=2^bits - 1`, of `x`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        let parameters = self.parameters();
        let [scale, zero_point] = parameters.clone();
        codes_of(self.rounded(zero_if_nan(x), parameters), scale) + per_channel(zero_if_nan(zero_point)).int()
    }

    /// `x` on the grid's real values, of `x`'s shape, with a straight-through gradient.
    pub fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.rounded(x, self.parameters())
    }

    /// [`fake_quantize`](Self::fake_quantize) without the rounding: `x` clipped to the range of the codes.
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let [scale, zero_point] = self.parameters().map(per_channel::<D>);
        ((x / scale.clone() + zero_point.clone()).clamp(0.0, self.steps()) - zero_point) * scale
    }

    fn rounded<const D: usize>(&self, x: Tensor<D>, [scale, zero_point]: [Tensor<1>; 2]) -> Tensor<D> {
        fake_quantize_affine(x, scale, zero_point, self.steps())
    }

    /// The grid over the range in force.
    ///
    /// # Errors
    /// [`GridError`] if the range is not finite.
    pub fn grid(&self) -> Result<IntegerGrid, GridError> {
        // Both in one read.
        let mut units = read(Tensor::cat(self.parameters().to_vec(), 0));
        let zero_point = units.pop().expect("invariant: a scale and a zero point");
        let grid = IntegerGrid::new(self.bits.unsigned_range(), units, 1)?;
        // An integer from 0 to n, as the scale is finite.
        grid.with_zero_point(zero_point as i32)
    }
}

/// `scale`, or 1 where it is zero or so small that its reciprocal overflows: all-zero weights, and a running range that
/// has decayed behind a layer whose ReLU lets nothing through. All codes are then those of zero.
fn usable(scale: Tensor<1>) -> Tensor<1> {
    let vanishing = scale.clone().lower_scalar(f32::MIN_POSITIVE);
    scale.mask_fill(vanishing, 1.0)
}
