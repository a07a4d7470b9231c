//! BatchNorm with the activation that follows it, by fused operations.

use burn::nn::BatchNorm;
use burn::tensor::Tensor;
use lowbit_kernels::{Activation, Quantized, batch_norm, batch_norm_fixed};
use lowbit_quantizers::QuantConv2d;

/// `conv(relu(norm(x)))` for each of `convs`, with the quantization of their input in one operation with the normalization where
/// that can be.
pub(crate) fn norm_relu_convs(norm: &BatchNorm, x: Tensor<4>, convs: &[&QuantConv2d]) -> Vec<Tensor<4>> {
    let Some((first, others)) = convs.split_first() else { return Vec::new() };
    let are_alike = others.iter().all(|conv| first.quantizes_input_like(conv));
    match first.input_activation(x.dims()).filter(|_| are_alike) {
        Some(activation) => QuantConv2d::forward_all_quantized(convs, norm_then(norm, x, activation)),
        None => QuantConv2d::forward_all(convs, norm_then(norm, x, Activation::Relu).into_values()),
    }
}

/// `activation(norm(x))`, `[batch, channels, height, width]`.
///
/// As burn's `BatchNorm`: on a device with autodiff it normalizes by the batch and moves its running statistics towards
/// those of the batch, elsewhere it normalizes by the running ones. An empty batch, which has no statistics, moves nothing.
pub(crate) fn norm_then(norm: &BatchNorm, x: Tensor<4>, activation: Activation) -> Quantized<4> {
    if x.device().is_autodiff() && !norm.training.is_enabled() {
        // Frozen in a network that trains: burn's own operations have the gradient.
        return activation.apply(norm.forward(x));
    }
    let parameters = [norm.gamma.val(), norm.beta.val()];
    if !x.device().is_autodiff() {
        let running = [norm.running_mean.value(), norm.running_var.value()];
        return batch_norm_fixed(x, parameters, running, norm.epsilon, activation);
    }
    let is_empty = x.shape().num_elements() == 0;
    let result = batch_norm(x, parameters, norm.epsilon, activation);
    if is_empty {
        return result.output;
    }
    let moved =
        |running: Tensor<1>, batch: Tensor<1>| running * (1.0 - norm.momentum) + batch * norm.momentum;
    norm.running_mean.update(moved(norm.running_mean.value_sync(), result.mean));
    norm.running_var.update(moved(norm.running_var.value_sync(), result.variance));
    result.output
}
