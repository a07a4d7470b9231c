//! What the construction of every network shares: layers named by their path, drawn from one stream of weights.

use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor};
use lowbit_core::{Purpose, stream};
use lowbit_quantizers::{
    LayerRole, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantLinearConfig, QuantizationPolicy,
};
use rand::Rng;

use crate::ModelError;

/// Builds layers in forward order; the order decides which initial weights a layer draws.
pub(crate) struct Builder<'a, R> {
    policy: &'a QuantizationPolicy,
    device: &'a Device,
    rng: R,
}

/// A builder whose weights are a function of `seed` alone: they do not depend on the policy, so that networks of
/// different precision start equal.
pub(crate) fn builder<'a>(
    policy: &'a QuantizationPolicy,
    device: &'a Device,
    seed: u64,
) -> Builder<'a, impl Rng> {
    Builder { policy, device, rng: stream(seed, Purpose::InitialWeights, 0, 0) }
}

impl<R: Rng> Builder<'_, R> {
    pub(crate) fn conv(
        &mut self,
        path: &str,
        role: LayerRole,
        config: QuantConv2dConfig,
    ) -> Result<QuantConv2d, ModelError> {
        config
            .with_quantization(self.policy.resolve(path, role))
            .init(self.device, &mut self.rng)
            .map_err(|source| ModelError::Quantizer { layer: path.into(), source })
    }

    pub(crate) fn linear(
        &mut self,
        path: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<QuantLinear, ModelError> {
        QuantLinearConfig::new(in_features, out_features)
            .with_quantization(self.policy.resolve(path, LayerRole::Last))
            .init(self.device, &mut self.rng)
            .map_err(|source| ModelError::Quantizer { layer: path.into(), source })
    }

    pub(crate) fn norm(&self, channels: usize) -> BatchNorm {
        BatchNormConfig::new(channels).init(self.device)
    }
}

/// Mean over height and width. Shapes `[batch, channels, height, width]` to `[batch, channels]`.
pub(crate) fn global_average_pool(x: Tensor<4>) -> Tensor<2> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height * width]).mean_dim(2).reshape([batch, channels])
}

/// `channels * width`, at least 1.
pub(crate) fn scaled(channels: usize, width: f64) -> usize {
    ((channels as f64 * width).round_ties_even() as usize).max(1)
}
