//! BatchNorm with the activation that follows it, by fused operations.

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::BatchNorm;
use burn::tensor::Tensor;
use lowbit_kernels::{
    Activation, MovedBatchNorm, Quantized, RunningStatistics, batch_norm, batch_norm_fixed, batch_norm_moving,
};
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
    if x.shape().num_elements() == 0 {
        return batch_norm(x, parameters, norm.epsilon, activation).output;
    }
    let running =
        RunningStatistics { mean: norm.running_mean.value_sync(), variance: norm.running_var.value_sync() };
    let MovedBatchNorm { output, running } =
        batch_norm_moving(x, parameters, running, norm.momentum, norm.epsilon, activation);
    for (state, moved) in [(&norm.running_mean, running.mean), (&norm.running_var, running.variance)] {
        // Not by its `update`, which divides by the number of threads that have one: a launch of its own.
        let _is_shared_with_the_clone = state.clone().map(&mut Moved(moved));
    }
    output
}

/// Puts a value in the place of a running one.
struct Moved(Tensor<1>);

impl ModuleMapper for Moved {
    fn map_float<const D: usize>(&mut self, running: Param<Tensor<D>>) -> Param<Tensor<D>> {
        running.map(|running| self.0.clone().reshape(running.shape()))
    }
}
