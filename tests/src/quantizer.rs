//! Weight and activation quantizers under one name, built from what describes them.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeRange, Granularity, IntegerGrid};
use lowbit_quantizers::methods::dorefa::{DoReFaActivations, DoReFaWeights, MaxGradient};
use lowbit_quantizers::methods::lsq::{LsqActivations, LsqWeights};
use lowbit_quantizers::methods::minmax::{MinMaxActivations, MinMaxWeights};
use lowbit_quantizers::methods::pact::PactActivations;
use lowbit_quantizers::{ActivationQuantizer, WeightQuantizer};

/// A quantizer with its learned parameters, as data of a test case.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// DoReFa weights that differentiate their maximum, also PACT's.
    DoReFaWeights,
    /// DoReFa weights with a detached maximum.
    DoReFaWeightsDetachedMax,
    /// DoReFa activations.
    DoReFaActivations,
    /// PACT activations.
    PactActivations {
        /// The clip value.
        clip_value: f32,
    },
    /// LSQ weights; several step sizes are per channel.
    LsqWeights {
        /// The step sizes.
        step_size: Vec<f32>,
        /// Granularity.
        granularity: Granularity,
    },
    /// LSQ activations.
    LsqActivations {
        /// The step size.
        step_size: f32,
    },
    /// Min-max weights.
    MinMaxWeights {
        /// Granularity.
        granularity: Granularity,
    },
    /// Min-max activations over a range that does not move.
    MinMaxActivations {
        /// Smallest value.
        min: f32,
        /// Largest value.
        max: f32,
    },
}

/// A quantizer of either operand.
#[derive(Clone, Debug)]
pub enum Quantizer {
    /// Of weights.
    Weights(WeightQuantizer),
    /// Of activations.
    Activations(ActivationQuantizer),
}

impl Spec {
    /// The quantizer on `device`.
    pub fn build(&self, bits: BitWidth, device: &Device) -> Quantizer {
        let parameter = |values: &[f32]| Param::from_tensor(Tensor::from_floats(values, device));
        match self {
            Self::DoReFaWeights => WeightQuantizer::DoReFa(DoReFaWeights::new(bits, device)).into(),
            Self::DoReFaWeightsDetachedMax => {
                let quantizer = DoReFaWeights::new(bits, device).with_max_gradient(MaxGradient::Detached);
                WeightQuantizer::DoReFa(quantizer).into()
            }
            Self::DoReFaActivations => {
                ActivationQuantizer::DoReFa(DoReFaActivations::new(bits, device)).into()
            }
            Self::PactActivations { clip_value } => {
                let mut quantizer = PactActivations::new(bits, device);
                quantizer.clip_value = parameter(&[*clip_value]);
                ActivationQuantizer::Pact(quantizer).into()
            }
            Self::LsqWeights { step_size, granularity } => {
                let any = Tensor::<2>::ones([step_size.len(), 1], device);
                let mut quantizer = LsqWeights::new(bits, *granularity, any);
                quantizer.step_size = parameter(step_size);
                WeightQuantizer::Lsq(quantizer).into()
            }
            Self::LsqActivations { step_size } => {
                let mut quantizer = LsqActivations::new(bits, device);
                quantizer.step_size = parameter(&[*step_size]);
                ActivationQuantizer::Lsq(quantizer).into()
            }
            Self::MinMaxWeights { granularity } => {
                let quantizer = MinMaxWeights::new(bits, *granularity, device);
                WeightQuantizer::MinMax(quantizer.expect("invariant: cases have 2 bits or more")).into()
            }
            Self::MinMaxActivations { min, max } => {
                // Frozen, so that the range does not follow the batches on an autodiff device.
                let quantizer = MinMaxActivations::with_range(bits, *min, *max, device).freeze();
                ActivationQuantizer::MinMax(quantizer).into()
            }
        }
    }

    /// Whether it quantizes weights.
    pub fn is_weights(&self) -> bool {
        matches!(
            self,
            Self::DoReFaWeights
                | Self::DoReFaWeightsDetachedMax
                | Self::LsqWeights { .. }
                | Self::MinMaxWeights { .. }
        )
    }

    /// Whether all codes at `bits` bits are odd.
    pub fn has_odd_codes(&self, bits: BitWidth) -> bool {
        match self {
            Self::DoReFaWeights | Self::DoReFaWeightsDetachedMax => true,
            Self::LsqWeights { .. } => bits.get() == 1,
            _ => false,
        }
    }

    /// The bounds of the codes at `bits` bits, written down here once more.
    pub fn code_range(&self, bits: BitWidth) -> CodeRange {
        let half = 1 << (bits.get() - 1);
        match self {
            Self::LsqWeights { .. } if bits.get() == 1 => CodeRange { q_min: -1, q_max: 1 },
            Self::LsqWeights { .. } => CodeRange { q_min: -half, q_max: half - 1 },
            Self::MinMaxWeights { .. } => CodeRange { q_min: 1 - half, q_max: half - 1 },
            Self::DoReFaWeights | Self::DoReFaWeightsDetachedMax => {
                CodeRange { q_min: 1 - 2 * half, q_max: 2 * half - 1 }
            }
            _ => CodeRange { q_min: 0, q_max: 2 * half - 1 },
        }
    }
}

impl From<WeightQuantizer> for Quantizer {
    fn from(quantizer: WeightQuantizer) -> Self {
        Self::Weights(quantizer)
    }
}

impl From<ActivationQuantizer> for Quantizer {
    fn from(quantizer: ActivationQuantizer) -> Self {
        Self::Activations(quantizer)
    }
}

impl Quantizer {
    /// The codes of `x`.
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        match self {
            Self::Weights(quantizer) => quantizer.codes(x),
            Self::Activations(quantizer) => quantizer.codes(x),
        }
    }

    /// The real values of the codes of `x`.
    pub fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Weights(quantizer) => quantizer.fake_quantize(x),
            Self::Activations(quantizer) => quantizer.fake_quantize(x),
        }
    }

    /// The grid for `x`.
    ///
    /// # Panics
    /// If there is none, as of parameters that are not finite.
    pub fn grid<const D: usize>(&self, x: Tensor<D>) -> IntegerGrid {
        let grid = match self {
            Self::Weights(quantizer) => quantizer.grid(x),
            Self::Activations(quantizer) => quantizer.grid(),
        };
        grid.unwrap_or_else(|error| panic!("{self:?}: {error}"))
    }

    /// The learned parameter and its name.
    pub fn learned(&self) -> Option<(&'static str, Tensor<1>)> {
        match self {
            Self::Weights(WeightQuantizer::Lsq(lsq)) => Some(("step_size", lsq.step_size.val())),
            Self::Activations(ActivationQuantizer::Lsq(lsq)) => Some(("step_size", lsq.step_size.val())),
            Self::Activations(ActivationQuantizer::Pact(pact)) => Some(("clip_value", pact.clip_value.val())),
            _ => None,
        }
    }
}
