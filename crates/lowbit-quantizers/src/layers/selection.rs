//! Which part of a layer is quantized in a forward pass.

use burn::tensor::{Device, Tensor, TensorData};

use lowbit_core::{Purpose, stream};
use lowbit_kernels::Quantized;
use rand::RngExt;

use crate::{ActivationQuantizer, WeightQuantizer};

/// The part of a layer that is quantized; the rest runs through the same quantizers without their rounding, so that
/// both parts see the same range of values. Not part of a layer's state: a layer that is loaded is quantized whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Selection {
    /// Weights and input.
    #[default]
    All,
    /// Neither.
    None,
    /// One flag for each group of channels: the first group is the first share of the output channels of the weights
    /// and of the channels of the input, and so on. With more groups than channels some groups have none; without groups nothing
    /// is quantized.
    ChannelGroups(Vec<bool>),
    /// The input, and each weight by itself with this probability, drawn from the key.
    Weights {
        /// What the draws are a function of.
        key: u64,
        /// That a weight is quantized.
        probability: f64,
    },
    /// The input; the weights are on their way to their codes ([`WeightQuantizer::soft`]).
    SoftWeights {
        /// Slope between two levels: 1 rounds nothing.
        slope: f64,
    },
}

impl Selection {
    /// The weights as the layer uses them; output channels are their first dimension.
    pub(super) fn weight<const D: usize>(
        &self,
        quantizer: &Option<WeightQuantizer>,
        weight: Tensor<D>,
    ) -> Quantized<D> {
        let Some(quantizer) = quantizer else { return weight.into() };
        match self {
            Self::All => quantizer.quantize(weight),
            Self::None => quantizer.unrounded(weight).into(),
            Self::ChannelGroups(groups) => {
                let mask = channel_mask(groups, weight.dims(), 0, &weight.device());
                blend(quantizer.fake_quantize(weight.clone()), quantizer.unrounded(weight), mask).into()
            }
            Self::Weights { key, probability } => {
                let mask = weight_mask(*key, *probability, weight.dims(), &weight.device());
                blend(quantizer.fake_quantize(weight.clone()), quantizer.unrounded(weight), mask).into()
            }
            Self::SoftWeights { slope } => quantizer.soft(weight, *slope).into(),
        }
    }

    /// Whether the whole input is quantized.
    pub(super) fn is_all_of_input(&self) -> bool {
        match self {
            Self::All | Self::Weights { .. } | Self::SoftWeights { .. } => true,
            Self::None | Self::ChannelGroups(_) => false,
        }
    }

    /// The input as the layer uses it; channels or features are its second dimension.
    pub(super) fn input<const D: usize>(
        &self,
        quantizer: &Option<ActivationQuantizer>,
        input: Tensor<D>,
    ) -> Quantized<D> {
        let Some(quantizer) = quantizer else { return input.into() };
        quantizer.observe(&input);
        match self {
            Self::All | Self::Weights { .. } | Self::SoftWeights { .. } => quantizer.quantize(input),
            Self::None => quantizer.unrounded(input).into(),
            Self::ChannelGroups(groups) => {
                let mask = channel_mask(groups, input.dims(), 1, &input.device());
                blend(quantizer.fake_quantize(input.clone()), quantizer.unrounded(input), mask).into()
            }
        }
    }

    /// Whether anything is quantized.
    pub fn is_any(&self) -> bool {
        match self {
            Self::All | Self::Weights { .. } | Self::SoftWeights { .. } => true,
            Self::None => false,
            Self::ChannelGroups(groups) => groups.contains(&true),
        }
    }

    /// The share of `channels` channels that is quantized; without channels, 0. Of single weights it is the expected one, of weights on
    /// their way to their codes that between two levels which is rounded: `1 - 1 / slope`.
    pub fn share(&self, channels: usize) -> f64 {
        match self {
            Self::All => 1.0,
            Self::None => 0.0,
            Self::Weights { probability, .. } => *probability,
            Self::SoftWeights { slope } => 1.0 - 1.0 / slope,
            Self::ChannelGroups(groups) => {
                let quantized = (0..channels).filter(|&channel| is_quantized(groups, channel, channels));
                quantized.count() as f64 / channels.max(1) as f64
            }
        }
    }
}

/// Whether the group of channel `channel` of `channels` is set.
fn is_quantized(groups: &[bool], channel: usize, channels: usize) -> bool {
    groups.get(channel * groups.len() / channels).copied().unwrap_or(false)
}

/// `rounded` where the mask is 1, `exact` where it is 0.
fn blend<const D: usize>(rounded: Tensor<D>, exact: Tensor<D>, mask: Tensor<D>) -> Tensor<D> {
    let rest = mask.ones_like() - mask.clone();
    rounded * mask + exact * rest
}

/// 1 in the channels of the groups that are set, 0 elsewhere; every dimension of length 1 but `channel_dim`.
fn channel_mask<const D: usize>(
    groups: &[bool],
    dims: [usize; D],
    channel_dim: usize,
    device: &Device,
) -> Tensor<D> {
    let channels = dims[channel_dim];
    let mut shape = [1; D];
    shape[channel_dim] = channels;
    let flag = |channel| f32::from(u8::from(is_quantized(groups, channel, channels)));
    let values: Vec<f32> = (0..channels).map(flag).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// 1 for each weight that is drawn with this probability, 0 elsewhere.
fn weight_mask<const D: usize>(key: u64, probability: f64, dims: [usize; D], device: &Device) -> Tensor<D> {
    let mut rng = stream(key, Purpose::StochasticPrecision, 1, 0);
    let n = dims.iter().product();
    let values: Vec<f32> =
        (0..n).map(|_| f32::from(u8::from(f64::from(rng.random::<f32>()) < probability))).collect();
    Tensor::from_data(TensorData::new(values, dims), device)
}

#[cfg(test)]
mod tests;
