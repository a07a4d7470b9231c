//! Fused operations of low-bit training: convolution, batch normalization and fake quantization, forward and backward.
//!
//! Each operation has a reference made of burn's own operations, which serves every backend; the CPU backends have
//! kernels instead. Which one runs is decided here and nowhere else: callers see functions of tensors.
//!
//! What it does not do: no layers, no quantizers, no state.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//!
//! let device = Device::flex().autodiff();
//! let x = Tensor::<1>::from_floats([-0.2, 0.3, 0.6, 1.4], &device).require_grad();
//! let y = lowbit_kernels::fake_quantize_unit(x.clone(), 3.0);
//! assert_eq!(y.clone().into_data().to_vec::<f32>().unwrap(), [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0]);
//!
//! let gradient = x.grad(&y.sum().backward()).unwrap();
//! assert_eq!(gradient.into_data().to_vec::<f32>().unwrap(), [0.0, 1.0, 1.0, 0.0]);
//! ```

mod autodiff;
#[allow(deprecated, reason = "burn has deprecated ndarray, which this project keeps")]
mod backend;
pub mod cpu;
#[cfg(feature = "cube")]
mod cube;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use burn::tensor::ops::ConvOptions;

pub use backend::{Activation, KernelBackend};
pub use cpu::fake_quantize::Grid;

/// Convolution without bias; as `burn::tensor::module::conv2d`.
///
/// # Shapes
/// - input: `[batch, in_channels, height, width]`
/// - weight: `[out_channels, in_channels / groups, kernel height, kernel width]`
pub fn conv2d(input: Tensor<4>, weight: Tensor<4>, options: ConvOptions<2>) -> Tensor<4> {
    let output = Dispatch::lowbit_conv2d(input.into_dispatch(), weight.into_dispatch(), options);
    Tensor::from_dispatch(output)
}

/// Result of [`batch_norm`].
pub struct BatchNormOutput {
    /// The normalized input, of its shape.
    pub output: Tensor<4>,
    /// Mean of every channel, `[channels]`, without gradient.
    pub mean: Tensor<1>,
    /// Biased variance of every channel, `[channels]`, without gradient.
    pub variance: Tensor<1>,
}

/// Normalization by the statistics of the batch, and the activation that follows it.
///
/// # Shapes
/// - input: `[batch, channels, height, width]`
/// - gamma, beta: `[channels]`
pub fn batch_norm(
    input: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    epsilon: f64,
    activation: Activation,
) -> BatchNormOutput {
    let channels = input.dims()[1];
    let input = input.into_dispatch();
    let statistics = Dispatch::lowbit_batch_statistics(input.clone());
    let output = Dispatch::lowbit_batch_norm(
        input,
        gamma.into_dispatch(),
        beta.into_dispatch(),
        statistics.clone(),
        epsilon as f32,
        activation,
    );
    let statistics = Tensor::<1>::from_dispatch(statistics).detach();
    BatchNormOutput {
        output: Tensor::from_dispatch(output),
        mean: statistics.clone().narrow(0, 0, channels),
        variance: statistics.narrow(0, channels, channels),
    }
}

/// Normalization by fixed statistics, means and variances `[channels]`, on a device without autodiff; shapes as for
/// [`batch_norm`].
///
/// # Panics
/// On a device with autodiff, where its gradient would be that of [`batch_norm`].
pub fn batch_norm_fixed(
    input: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    [mean, variance]: [Tensor<1>; 2],
    epsilon: f64,
    activation: Activation,
) -> Tensor<4> {
    assert!(!input.device().is_autodiff(), "fixed statistics are for evaluation");
    let output = Dispatch::lowbit_batch_norm(
        input.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        Tensor::cat(vec![mean, variance], 0).into_dispatch(),
        epsilon as f32,
        activation,
    );
    Tensor::from_dispatch(output)
}

/// `round(clip(x, 0, 1) n) / n`, ties to even. The gradient passes where `0 <= x <= 1`.
pub fn fake_quantize_unit<const D: usize>(x: Tensor<D>, n: f32) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::lowbit_fake_quantize_unit(x.into_dispatch(), n))
}

/// Fake quantization with a learned parameter, positive: one for all, shape `[1]`, or one for each slice along the first
/// axis. See [`Grid`] for the formulas; gradients are those of [`cpu::fake_quantize::learned_gradient`].
pub fn fake_quantize_learned<const D: usize>(x: Tensor<D>, parameter: Tensor<1>, grid: Grid) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::lowbit_fake_quantize(x.into_dispatch(), parameter.into_dispatch(), grid))
}
