//! BatchNorm with the activation that follows it, by fused operations.

use burn::nn::BatchNorm;
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use lowbit_kernels::{Activation, batch_norm, batch_norm_fixed};

/// `activation(norm(x))`, `[batch, channels, height, width]`.
///
/// As burn's `BatchNorm`: on a device with autodiff it normalizes by the batch and moves its running statistics towards
/// those of the batch, elsewhere it normalizes by the running ones.
pub(crate) fn norm_then(norm: &BatchNorm, x: Tensor<4>, activation: Activation) -> Tensor<4> {
    if x.device().is_autodiff() && !norm.training.is_enabled() {
        // Frozen in a network that trains: burn's own operations have the gradient.
        let y = norm.forward(x);
        return match activation {
            Activation::Identity => y,
            Activation::Relu => relu(y),
        };
    }
    let parameters = [norm.gamma.val(), norm.beta.val()];
    if !x.device().is_autodiff() {
        let running = [norm.running_mean.value(), norm.running_var.value()];
        return batch_norm_fixed(x, parameters, running, norm.epsilon, activation);
    }
    let result = batch_norm(x, parameters, norm.epsilon, activation);
    let moved =
        |running: Tensor<1>, batch: Tensor<1>| running * (1.0 - norm.momentum) + batch * norm.momentum;
    norm.running_mean.update(moved(norm.running_mean.value_sync(), result.mean));
    norm.running_var.update(moved(norm.running_var.value_sync(), result.variance));
    result.output
}
