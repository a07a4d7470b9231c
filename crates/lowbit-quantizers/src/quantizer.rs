//! The closed set of quantizers that a layer can hold, and how one is asked for.

use std::fmt;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, Granularity, GridError, IntegerGrid, Precision};
use lowbit_kernels::{Activation, Scale};
use serde::{Deserialize, Serialize};

use crate::QuantizerError;
use crate::methods::dorefa::{DoReFaActivations, DoReFaWeights};
use crate::methods::lsq::{LsqActivations, LsqWeights};
use crate::methods::minmax::{MinMaxActivations, MinMaxWeights};
use crate::methods::pact::PactActivations;
use crate::parameter::constant;

/// A quantization method, by the name of its paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// DoReFa-Net (Zhou16), the base quantizer of Zhuang et al. 2021.
    #[serde(rename = "dorefa")]
    DoReFa,
    /// PACT (Choi18): DoReFa weights, activations with a learned clip value.
    Pact,
    /// LSQ (Esser20): learned step sizes.
    Lsq,
    /// Uniform quantization of the observed range.
    #[serde(rename = "minmax")]
    MinMax,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Method::DoReFa => "dorefa",
            Method::Pact => "pact",
            Method::Lsq => "lsq",
            Method::MinMax => "minmax",
        })
    }
}

/// What a quantizer quantizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The weights of a layer.
    Weights,
    /// The input activations of a layer.
    Activations,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Operand::Weights => "weights",
            Operand::Activations => "activations",
        })
    }
}

/// How one layer is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerQuantization {
    /// Method of both operands.
    pub method: Method,
    /// Precision of the weights.
    pub weight_bits: Precision,
    /// Precision of the input activations.
    pub act_bits: Precision,
    /// Whether all weights share a scale or each output channel has its own.
    pub weight_granularity: Granularity,
}

impl LayerQuantization {
    /// Nothing quantized.
    pub const FULL_PRECISION: Self = Self {
        method: Method::DoReFa,
        weight_bits: Precision::FullPrecision,
        act_bits: Precision::FullPrecision,
        weight_granularity: Granularity::PerTensor,
    };

    /// Both operands quantized by `method`, weights per tensor.
    pub fn new(method: Method, weight_bits: Precision, act_bits: Precision) -> Self {
        Self { method, weight_bits, act_bits, weight_granularity: Granularity::PerTensor }
    }

    /// Whether weights or activations are.
    pub fn is_quantized(&self) -> bool {
        [self.weight_bits, self.act_bits] != [Precision::FullPrecision; 2]
    }

    /// Whether the method defines these bit widths and this granularity. Activations of 1 to 8 bits are defined by all.
    ///
    /// # Errors
    /// [`QuantizerError`], naming what the method takes.
    pub fn check(&self) -> Result<(), QuantizerError> {
        let Self { method, weight_bits, act_bits: _, weight_granularity } = *self;
        if method == Method::MinMax && weight_bits.bit_width().is_some_and(|bits| bits.get() < 2) {
            let (operand, allowed) = (Operand::Weights, "2 to 8 bits");
            return Err(QuantizerError::Bits { method, operand, got: weight_bits, allowed });
        }
        let allows_per_channel = matches!(method, Method::Lsq | Method::MinMax);
        if weight_granularity == Granularity::PerChannel && !allows_per_channel {
            return Err(QuantizerError::Granularity {
                method,
                operand: Operand::Weights,
                got: weight_granularity,
                allowed: Granularity::PerTensor,
            });
        }
        Ok(())
    }
}

/// The quantizer of a layer's weights.
#[derive(Module, Debug)]
pub enum WeightQuantizer {
    /// DoReFa, also the weights of PACT.
    DoReFa(DoReFaWeights),
    /// LSQ.
    Lsq(LsqWeights),
    /// Min-max.
    MinMax(MinMaxWeights),
}

impl WeightQuantizer {
    /// The weight quantizer that `quantization` asks for, its parameters set from the weights `w`; `None` in full
    /// precision.
    ///
    /// # Errors
    /// [`QuantizerError`] if the method does not define what is asked for.
    pub fn new<const D: usize>(
        quantization: &LayerQuantization,
        w: Tensor<D>,
    ) -> Result<Option<Self>, QuantizerError> {
        quantization.check()?;
        let granularity = quantization.weight_granularity;
        let Some(bits) = quantization.weight_bits.bit_width() else { return Ok(None) };
        Ok(Some(match quantization.method {
            Method::DoReFa | Method::Pact => Self::DoReFa(DoReFaWeights::new(bits, &w.device())),
            Method::Lsq => Self::Lsq(LsqWeights::new(bits, granularity, w)),
            Method::MinMax => Self::MinMax(MinMaxWeights::new(bits, granularity, &w.device())?),
        }))
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        match self {
            Self::DoReFa(quantizer) => quantizer.bits(),
            Self::Lsq(quantizer) => quantizer.bits(),
            Self::MinMax(quantizer) => quantizer.bits(),
        }
    }

    /// The integer codes of the weights `w`, of `w`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, w: Tensor<D>) -> Tensor<D, Int> {
        match self {
            Self::DoReFa(quantizer) => quantizer.codes(w),
            Self::Lsq(quantizer) => quantizer.codes(w),
            Self::MinMax(quantizer) => quantizer.codes(w),
        }
    }

    /// The real values of the codes of `w`, of `w`'s shape, with the method's gradient.
    pub fn fake_quantize<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        match self {
            Self::DoReFa(quantizer) => quantizer.fake_quantize(w),
            Self::Lsq(quantizer) => quantizer.fake_quantize(w),
            Self::MinMax(quantizer) => quantizer.fake_quantize(w),
        }
    }

    /// What [`fake_quantize`](Self::fake_quantize) yields if nothing is rounded, of `w`'s shape: the weights transformed
    /// and clipped as the method does it.
    pub fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        match self {
            Self::DoReFa(quantizer) => quantizer.unrounded(w),
            Self::Lsq(quantizer) => quantizer.unrounded(w),
            Self::MinMax(quantizer) => quantizer.unrounded(w),
        }
    }

    /// The grid of the weights `w`: its codes are those of [`codes`](Self::codes), and their real values what
    /// [`fake_quantize`](Self::fake_quantize) yields. Reads from the device what the method learns or measures, once.
    ///
    /// # Errors
    /// [`GridError`] if that is not finite.
    pub fn grid<const D: usize>(&self, w: Tensor<D>) -> Result<IntegerGrid, GridError> {
        match self {
            Self::DoReFa(quantizer) => quantizer.grid(w),
            Self::Lsq(quantizer) => quantizer.grid(),
            Self::MinMax(quantizer) => quantizer.grid(w),
        }
    }

    /// What [`fake_quantize`](Self::fake_quantize) of the weights `w` yields integer multiples of, and the largest
    /// magnitude of these; `None` if it is not told.
    pub(crate) fn scale<const D: usize>(&self, w: Tensor<D>) -> Option<(Scale, u8)> {
        match self {
            Self::DoReFa(quantizer) => Some(quantizer.scale(w)),
            Self::Lsq(quantizer) => Some(quantizer.scale()),
            Self::MinMax(_) => None,
        }
    }

    /// The learned parameter to watch over a training, the step size: its values in force, at least the floor.
    pub fn watched(&self) -> Option<(&'static str, Tensor<1>)> {
        match self {
            Self::Lsq(quantizer) => Some(("weight_step_size", quantizer.step_in_force())),
            Self::DoReFa(_) | Self::MinMax(_) => None,
        }
    }

    /// How many values of the learned parameter are held at their floor, `[1]`; `None` without a learned parameter. A layer with
    /// such a value has collapsed: all its weights have the codes of the clip edges.
    pub fn n_at_floor(&self) -> Option<Tensor<1, Int>> {
        match self {
            Self::Lsq(quantizer) => Some(quantizer.n_at_floor()),
            Self::DoReFa(_) | Self::MinMax(_) => None,
        }
    }

    /// Changes learned parameters that were learned at `from` bits so that they span as much at these bits: the distance between the
    /// outermost levels stays.
    pub fn rescale(&mut self, from: BitWidth) {
        match self {
            Self::Lsq(quantizer) => quantizer.rescale(from),
            Self::DoReFa(_) | Self::MinMax(_) => {}
        }
    }

    /// Sets learned parameters from the weights `w`, as when the quantizer was made: for weights that were loaded.
    pub fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        match self {
            Self::Lsq(quantizer) => quantizer.calibrate(w),
            Self::DoReFa(_) | Self::MinMax(_) => {}
        }
    }
}

/// The quantizer of a layer's input activations, which are expected to come from a ReLU.
#[derive(Module, Debug)]
pub enum ActivationQuantizer {
    /// DoReFa.
    DoReFa(DoReFaActivations),
    /// PACT.
    Pact(PactActivations),
    /// LSQ.
    Lsq(LsqActivations),
    /// Min-max.
    MinMax(MinMaxActivations),
}

impl ActivationQuantizer {
    /// The activation quantizer that `quantization` asks for; `None` in full precision.
    ///
    /// # Errors
    /// [`QuantizerError`] if the method does not define what is asked for.
    pub fn new(quantization: &LayerQuantization, device: &Device) -> Result<Option<Self>, QuantizerError> {
        quantization.check()?;
        Ok(quantization.act_bits.bit_width().map(|bits| match quantization.method {
            Method::DoReFa => Self::DoReFa(DoReFaActivations::new(bits, device)),
            Method::Pact => Self::Pact(PactActivations::new(bits, device)),
            Method::Lsq => Self::Lsq(LsqActivations::new(bits, device)),
            Method::MinMax => Self::MinMax(MinMaxActivations::new(bits, device)),
        }))
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        match self {
            Self::DoReFa(quantizer) => quantizer.bits(),
            Self::Pact(quantizer) => quantizer.bits(),
            Self::Lsq(quantizer) => quantizer.bits(),
            Self::MinMax(quantizer) => quantizer.bits(),
        }
    }

    /// The integer codes of `x`, of `x`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        match self {
            Self::DoReFa(quantizer) => quantizer.codes(x),
            Self::Pact(quantizer) => quantizer.codes(x),
            Self::Lsq(quantizer) => quantizer.codes(x),
            Self::MinMax(quantizer) => quantizer.codes(x),
        }
    }

    /// The real values of the codes of `x`, of `x`'s shape, with the method's gradient.
    pub fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::DoReFa(quantizer) => quantizer.fake_quantize(x),
            Self::Pact(quantizer) => quantizer.fake_quantize(x),
            Self::Lsq(quantizer) => quantizer.fake_quantize(x),
            Self::MinMax(quantizer) => quantizer.fake_quantize(x),
        }
    }

    /// What [`fake_quantize`](Self::fake_quantize) yields if nothing is rounded, of `x`'s shape: `x` clipped to the range
    /// of the codes.
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::DoReFa(quantizer) => quantizer.unrounded(x),
            Self::Pact(quantizer) => quantizer.unrounded(x),
            Self::Lsq(quantizer) => quantizer.unrounded(x),
            Self::MinMax(quantizer) => quantizer.unrounded(x),
        }
    }

    /// Takes in a batch that is about to be quantized: a calibration records it, and in training (on a device with autodiff, unless
    /// the module is frozen) a running range moves towards it. Layers call this in their forward pass; who uses a quantizer
    /// without a layer calls it once a step. No other method changes the quantizer: `codes`, `fake_quantize`, `unrounded` and
    /// `grid` all answer for the same grid until the next call.
    pub fn observe<const D: usize>(&self, x: &Tensor<D>) {
        match self {
            Self::DoReFa(_) => {}
            Self::Pact(quantizer) => quantizer.observe(x),
            Self::Lsq(quantizer) => quantizer.observe(x),
            Self::MinMax(quantizer) => quantizer.observe(x),
        }
    }

    /// A ReLU and [`fake_quantize`](Self::fake_quantize) of values of shape `dims` in one operation; `None` if the
    /// quantizer has to see the ReLU's result.
    pub(crate) fn activation<const D: usize>(&self, dims: [usize; D]) -> Option<Activation> {
        match self {
            Self::DoReFa(quantizer) => Some(quantizer.activation()),
            Self::Pact(quantizer) => quantizer.activation(),
            Self::Lsq(quantizer) => quantizer.activation(dims),
            Self::MinMax(_) => None,
        }
    }

    /// What [`fake_quantize`](Self::fake_quantize) yields integer multiples of, and the largest of these; `None` if it is
    /// not told.
    pub(crate) fn scale(&self) -> Option<(Scale, u8)> {
        match self {
            Self::DoReFa(quantizer) => Some(quantizer.scale()),
            Self::Pact(quantizer) => quantizer.scale(),
            Self::Lsq(quantizer) => quantizer.scale(),
            Self::MinMax(_) => None,
        }
    }

    /// The grid in force: its codes are those of [`codes`](Self::codes), and their real values what
    /// [`fake_quantize`](Self::fake_quantize) yields. Reads from the device what the method learns or measures, once.
    ///
    /// # Errors
    /// [`GridError`] if that is not finite.
    pub fn grid(&self) -> Result<IntegerGrid, GridError> {
        match self {
            Self::DoReFa(quantizer) => Ok(quantizer.grid()),
            Self::Pact(quantizer) => quantizer.grid(),
            Self::Lsq(quantizer) => quantizer.grid(),
            Self::MinMax(quantizer) => quantizer.grid(),
        }
    }

    /// Changes learned parameters that were learned at `from` bits so that they span the same range at these bits. A
    /// clip value and a running range do as they are.
    pub fn rescale(&mut self, from: BitWidth) {
        match self {
            Self::Lsq(quantizer) => quantizer.rescale(from),
            Self::DoReFa(_) | Self::Pact(_) | Self::MinMax(_) => {}
        }
    }

    /// Begins a calibration: until [`finish_calibration`](Self::finish_calibration), [`observe`](Self::observe) records the range of
    /// what it is given, as the forward passes of layers do.
    pub fn start_calibration(&mut self) {
        match self {
            Self::Pact(quantizer) => quantizer.calibration.start(),
            Self::Lsq(quantizer) => quantizer.calibration.start(),
            Self::MinMax(quantizer) => quantizer.calibration.start(),
            Self::DoReFa(_) => {}
        }
    }

    /// Ends a calibration and sets the parameters from what was recorded; without a forward pass since its start,
    /// they stay as they are. PACT's clip value and LSQ's step size are set from the mean of the batches, a min-max range to the
    /// smallest and largest value.
    pub fn finish_calibration(&mut self) {
        match self {
            Self::Pact(quantizer) => quantizer.finish_calibration(),
            Self::Lsq(quantizer) => quantizer.finish_calibration(),
            Self::MinMax(quantizer) => quantizer.finish_calibration(),
            Self::DoReFa(_) => {}
        }
    }

    /// How many values of the learned parameter are held at their floor, `[1]`; `None` without a learned parameter. A layer with
    /// such a value has collapsed: next to nothing of its input passes.
    pub fn n_at_floor(&self) -> Option<Tensor<1, Int>> {
        match self {
            Self::Pact(quantizer) => Some(quantizer.n_at_floor()),
            Self::Lsq(quantizer) => Some(quantizer.n_at_floor()),
            Self::DoReFa(_) | Self::MinMax(_) => None,
        }
    }

    /// The learned or running parameter to watch over a training: step size, clip value or running maximum. Its value in force,
    /// at least the floor.
    pub fn watched(&self) -> Option<(&'static str, Tensor<1>)> {
        match self {
            Self::DoReFa(_) => None,
            Self::Pact(quantizer) => Some(("clip_value", constant(quantizer.clip()))),
            Self::Lsq(quantizer) => Some(("act_step_size", quantizer.step_in_force())),
            Self::MinMax(quantizer) => Some(("running_max", quantizer.running_max.value_sync())),
        }
    }
}
