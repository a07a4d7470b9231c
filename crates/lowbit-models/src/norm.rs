//! BatchNorm with the activation that follows it, by fused operations.

use burn::nn::BatchNorm;
use burn::tensor::Tensor;
use lowbit_kernels::{Activation, batch_norm, batch_norm_fixed};
use lowbit_quantizers::QuantConv2d;

/// `conv(relu(norm(x)))`, with the layer's quantization of its input in one operation with the normalization where that
/// can be.
pub(crate) fn norm_relu_conv(norm: &BatchNorm, x: Tensor<4>, conv: &QuantConv2d) -> Tensor<4> {
    match conv.input_activation(x.dims()) {
        Some(activation) => conv.forward_quantized(norm_then(norm, x, activation)),
        None => conv.forward(norm_then(norm, x, Activation::Relu)),
    }
}

/// The same for two layers.
pub(crate) fn norm_relu_convs(norm: &BatchNorm, x: Tensor<4>, convs: [&QuantConv2d; 2]) -> [Tensor<4>; 2] {
    let shared = convs[0].input_activation(x.dims()).filter(|_| convs[0].quantizes_input_like(convs[1]));
    match shared {
        Some(activation) => {
            let input = norm_then(norm, x, activation);
            convs.map(|conv| conv.forward_quantized(input.clone()))
        }
        None => {
            let input = norm_then(norm, x, Activation::Relu);
            convs.map(|conv| conv.forward(input.clone()))
        }
    }
}

/// `activation(norm(x))`, `[batch, channels, height, width]`.
///
/// As burn's `BatchNorm`: on a device with autodiff it normalizes by the batch and moves its running statistics towards
/// those of the batch, elsewhere it normalizes by the running ones. An empty batch, which has no statistics, moves nothing.
pub(crate) fn norm_then(norm: &BatchNorm, x: Tensor<4>, activation: Activation) -> Tensor<4> {
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
