//! Losses of a batch.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};

/// Target probabilities of `labels`: one minus `smoothing` on the label, `smoothing` spread evenly over all classes
/// (Szegedy et al. 2016). Shape `[batch, n_classes]`.
///
/// # Panics
/// If a label is not below `n_classes`; data sets are checked when they are read.
pub fn target_probabilities(labels: &[i64], n_classes: usize, smoothing: f64, device: &Device) -> Tensor<2> {
    let rest = (smoothing / n_classes as f64) as f32;
    let on_label = (1.0 - smoothing + smoothing / n_classes as f64) as f32;
    let mut targets = vec![rest; labels.len() * n_classes];
    for (row, &label) in targets.chunks_exact_mut(n_classes).zip(labels) {
        row[usize::try_from(label).expect("invariant: labels are not negative")] = on_label;
    }
    Tensor::from_data(TensorData::new(targets, [labels.len(), n_classes]), device)
}

/// Mean over the batch of the cross entropy between `targets` and the softmax of `logits`, both
/// `[batch, n_classes]`. Shape `[1]`.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<1> {
    lowbit_kernels::cross_entropy(logits, targets)
}

/// `temperature^2 KL(softmax(target / temperature) || softmax(logits / temperature))`, the mean over the batch (Hinton et
/// al. 2015, with the factor that keeps gradients at their size). Both `[batch, n_classes]`; shape `[1]`.
///
/// A gradient reaches whichever of the two is not detached.
pub fn kl_divergence(target: Tensor<2>, logits: Tensor<2>, temperature: f64) -> Tensor<1> {
    let batch = logits.dims()[0] as f64;
    let log_target = log_softmax(target / temperature, 1);
    let log_probabilities = log_softmax(logits / temperature, 1);
    let divergence = (log_target.clone().exp() * (log_target - log_probabilities)).sum();
    divergence * (temperature * temperature / batch)
}

/// Mean of the squares of all elements. Shape `[1]`.
pub fn mean_square<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let n = x.shape().num_elements();
    sum_of_squares(x) / n as f64
}

/// Sum of the squares of all elements, in a fixed order: burn's sum of a whole tensor depends on the threads when it is large.
/// Shape `[1]`.
pub fn sum_of_squares<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let n = x.shape().num_elements();
    x.square().reshape([1, n]).sum_dim(1).reshape([1])
}
