//! Weight and activation quantizers under one name, built from what describes them.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeRange, CodeSet, Granularity, IntegerGrid, Precision};
use lowbit_quantizers::methods::dorefa::{DoReFaActivations, DoReFaWeights, MaxGradient};
use lowbit_quantizers::methods::lsq::{LsqActivations, LsqWeights};
use lowbit_quantizers::methods::minmax::{MinMaxActivations, MinMaxWeights};
use lowbit_quantizers::methods::pact::PactActivations;
use lowbit_quantizers::{ActivationQuantizer, LayerQuantization, Method, Operand, WeightQuantizer};

use crate::default_device;

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
    /// Any method, its learned parameters set by name.
    Learned {
        /// The method.
        method: Method,
        /// Weights or activations.
        operand: Operand,
        /// Granularity of weights.
        granularity: Granularity,
        /// The parameters.
        parameters: BTreeMap<String, Vec<f32>>,
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
    /// Every method that has no variant of its own, for weights of `channels` output channels and for activations, in each granularity
    /// that it has, with ordinary parameters.
    pub fn learned(channels: usize) -> Vec<Self> {
        let own = [Method::DoReFa, Method::Pact, Method::Lsq, Method::MinMax];
        let mut specs = Vec::new();
        for &method in Method::ALL.iter().filter(|method| !own.contains(method)) {
            for operand in [Operand::Weights, Operand::Activations] {
                let both = [(Granularity::PerTensor, 1), (Granularity::PerChannel, channels)];
                let n = if operand == Operand::Weights && method.is_per_channel() { 2 } else { 1 };
                specs.extend(both[..n].iter().map(|&(granularity, n)| {
                    let bits =
                        BitWidth::new(*method.bits(operand).start()).expect("invariant: methods take bits");
                    let empty = BTreeMap::new();
                    let unset = Self::Learned { method, operand, granularity, parameters: empty };
                    let learned = unset.unset(bits, &default_device()).learned();
                    let names = learned.into_iter().map(|(name, _)| name);
                    let parameters = names.map(|name| (name.to_string(), ordinary(name, n))).collect();
                    Self::Learned { method, operand, granularity, parameters }
                }));
            }
        }
        specs
    }

    /// The bit widths that the method defines.
    pub fn bits(&self) -> RangeInclusive<u32> {
        match self {
            Self::MinMaxWeights { .. } => 2..=8,
            Self::Learned { method, operand, .. } => method.bits(*operand),
            _ => 1..=8,
        }
    }

    /// A quantizer of [`Spec::Learned`] with the parameters that it begins with.
    fn unset(&self, bits: BitWidth, device: &Device) -> Quantizer {
        let Self::Learned { method, operand, granularity, parameters } = self else {
            unreachable!("invariant: it has a variant of its own")
        };
        let (bits, fp32) = (Precision::Bits(bits), Precision::FullPrecision);
        let of = |weight_bits, act_bits| LayerQuantization::new(*method, weight_bits, act_bits);
        match operand {
            Operand::Weights => {
                let channels = parameters.values().map(Vec::len).max().unwrap_or(1);
                let quantization = LayerQuantization { weight_granularity: *granularity, ..of(bits, fp32) };
                let quantizer = WeightQuantizer::new(&quantization, Tensor::<2>::ones([channels, 1], device));
                quantizer.expect("the method defines this").expect("weights are quantized").into()
            }
            Operand::Activations => {
                let quantizer = ActivationQuantizer::new(&of(fp32, bits), device);
                quantizer.expect("the method defines this").expect("activations are quantized").into()
            }
        }
    }

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
            Self::Learned { method, operand, parameters, .. } => {
                let mut quantizer = self.unset(bits, device);
                let names: Vec<&str> = quantizer.learned().into_iter().map(|(name, _)| name).collect();
                assert_eq!(names.len(), parameters.len(), "{method} {operand} learns {names:?}");
                let places = match &mut quantizer {
                    Quantizer::Weights(quantizer) => quantizer.learned_mut(),
                    Quantizer::Activations(quantizer) => quantizer.learned_mut(),
                };
                for (name, place) in names.into_iter().zip(places) {
                    // One number of each parameter is given, or as many as there are: N2UQ has as many widths as codes above 0.
                    let (given, n) = (&parameters[name], place.val().dims()[0]);
                    let numbers = (0..n).map(|i| given[i % given.len()] + 0.05 * (i / given.len()) as f32);
                    *place = parameter(&numbers.collect::<Vec<_>>());
                }
                quantizer
            }
        }
    }

    /// Whether integers of a grid stand for its levels.
    pub fn has_grid(&self) -> bool {
        match self {
            Self::Learned { method, operand, .. } => method.has_grid(*operand),
            _ => true,
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
                | Self::Learned { operand: Operand::Weights, .. }
        )
    }

    /// Whether all codes at `bits` bits are odd.
    pub fn has_odd_codes(&self, bits: BitWidth) -> bool {
        match self {
            Self::DoReFaWeights | Self::DoReFaWeightsDetachedMax => true,
            Self::LsqWeights { .. } => bits.get() == 1,
            Self::Learned { .. } => matches!(self.code_set(bits), CodeSet::Uniform { stride: 2, .. }),
            _ => false,
        }
    }

    /// The codes that the quantizer itself says.
    fn code_set(&self, bits: BitWidth) -> CodeSet {
        match self.build(bits, &default_device()) {
            Quantizer::Weights(quantizer) => quantizer.code_set(),
            Quantizer::Activations(quantizer) => quantizer.code_set(),
        }
    }

    /// The bounds of the codes at `bits` bits, written down here once more but for [`Spec::Learned`].
    pub fn code_range(&self, bits: BitWidth) -> CodeRange {
        let half = 1 << (bits.get() - 1);
        match self {
            Self::LsqWeights { .. } if bits.get() == 1 => CodeRange { q_min: -1, q_max: 1 },
            Self::LsqWeights { .. } => CodeRange { q_min: -half, q_max: half - 1 },
            Self::MinMaxWeights { .. } => CodeRange { q_min: 1 - half, q_max: half - 1 },
            Self::DoReFaWeights | Self::DoReFaWeightsDetachedMax => {
                CodeRange { q_min: 1 - 2 * half, q_max: 2 * half - 1 }
            }
            Self::Learned { .. } => match self.code_set(bits) {
                CodeSet::Uniform { q_min, q_max, .. } => CodeRange { q_min, q_max },
                CodeSet::Table(codes) => CodeRange { q_min: codes[0], q_max: codes[codes.len() - 1] },
            },
            _ => CodeRange { q_min: 0, q_max: 2 * half - 1 },
        }
    }
}

/// Ordinary numbers for a parameter of this name.
fn ordinary(name: &str, n: usize) -> Vec<f32> {
    let first = match name {
        "step_size" => 0.23,
        "step_offset" => -0.4,
        "clip_value" => 1.7,
        "interval_lower" => -0.6,
        "interval_upper" => 1.1,
        "output_scale" => 0.8,
        "log2_threshold" => -0.3,
        "interval_start" => -0.2,
        "interval_widths" => 0.31,
        "interval_center" => 0.6,
        "interval_distance" => 0.55,
        "interval_exponent" => 1.3,
        "staircase_alpha" => 0.27,
        _ => panic!("{name} has no example: add one here"),
    };
    (0..n).map(|channel| first + 0.07 * channel as f32).collect()
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

    /// The learned parameters and their names.
    pub fn learned(&self) -> Vec<(&'static str, Tensor<1>)> {
        let learned = match self {
            Self::Weights(quantizer) => quantizer.learned(),
            Self::Activations(quantizer) => quantizer.learned(),
        };
        learned.into_iter().map(|learned| (learned.name, learned.parameter.val())).collect()
    }
}
