//! Which part of a layer is quantized in a forward pass.

use burn::tensor::{Device, Tensor, TensorData};

use lowbit_kernels::Quantized;

use crate::{ActivationQuantizer, WeightQuantizer};

/// The part of a layer that is quantized; the rest runs through the same quantizers without their rounding, so that
/// both parts see the same range of values. Not part of a layer's state: a layer that is loaded is quantized whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
            Self::All => quantizer.quantize(input),
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
            Self::All => true,
            Self::None => false,
            Self::ChannelGroups(groups) => groups.contains(&true),
        }
    }

    /// The share of `channels` channels that is quantized; without channels, 0.
    pub fn share(&self, channels: usize) -> f64 {
        match self {
            Self::All => 1.0,
            Self::None => 0.0,
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

#[cfg(test)]
mod tests;
