//! BatchNorm with the activation that follows it, by fused operations.

use std::cell::RefCell;

use burn::module::{Module, ModuleMapper, Param};
use burn::nn::BatchNorm;
use burn::tensor::Tensor;
use lowbit_kernels::{
    Activation, MovedBatchNorm, Quantized, RunningStatistics, SumOverRanks, batch_norm, batch_norm_fixed,
    batch_norm_moving, batch_norm_over_ranks,
};
use lowbit_quantizers::QuantConv2d;

thread_local! {
    /// What adds statistics up over processes, while a step is made that has them synchronized.
    static SUM: RefCell<Option<SumOverRanks>> = const { RefCell::new(None) };
}

/// Does `work`, in which normalizations that are trained go by the statistics of all processes that train together, if there is a `sum`.
pub fn with_norms_over_ranks<R>(sum: Option<SumOverRanks>, work: impl FnOnce() -> R) -> R {
    /// Takes it back, also after a panic.
    struct Restore(Option<SumOverRanks>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SUM.set(self.0.take());
        }
    }
    let _restore = Restore(SUM.replace(sum));
    work()
}

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
    if x.shape().num_elements() == 0 && SUM.with_borrow(Option::is_none) {
        return batch_norm(x, parameters, norm.epsilon, activation).output;
    }
    let running =
        RunningStatistics { mean: norm.running_mean.value_sync(), variance: norm.running_var.value_sync() };
    let (momentum, epsilon) = (norm.momentum, norm.epsilon);
    let MovedBatchNorm { output, running } = match SUM.with_borrow(Clone::clone) {
        Some(sum) => batch_norm_over_ranks(x, parameters, running, momentum, epsilon, activation, &sum),
        None => batch_norm_moving(x, parameters, running, momentum, epsilon, activation),
    };
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
