//! Fused operations of low-bit training: convolution, batch normalization and fake quantization, forward and backward.
//!
//! Each operation has a reference made of burn's own operations; the CPU backends have kernels instead, GPUs some. A backend
//! is an extended one if this crate's feature of its name is on, together with burn's; on others the operations are composed of
//! burn's functions of tensors. Which one runs is decided here and nowhere else: callers see functions of tensors.
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
mod choice;
mod composed;
#[cfg(feature = "cube")]
mod cube;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;
mod reduce;
mod reference;
#[doc(hidden)]
pub mod testing;
mod times;

use burn::backend::Dispatch;
use burn::tensor::Tensor;
use burn::tensor::activation::relu;
use burn::tensor::module;
use burn::tensor::ops::ConvOptions;
pub use lowbit_cpu::fake_quantize::Grid;
pub use lowbit_cpu::integer::CodeBounds;
pub use lowbit_cpu::weights::MaxGradient;

pub use backend::{ActivationKind, CodeKinds, KeepCodes, KeptCodes, KernelBackend, ScaleKind};
use choice::is_composed;
pub use reduce::reduce_in_parts;

/// Convolution without bias; as `burn::tensor::module::conv2d`.
///
/// # Shapes
/// - input: `[batch, in_channels, height, width]`
/// - weight: `[out_channels, in_channels / groups, kernel height, kernel width]`
pub fn conv2d(input: Tensor<4>, weight: Tensor<4>, options: ConvOptions<2>) -> Tensor<4> {
    if is_composed(&input) {
        return module::conv2d(input, weight, None, options);
    }
    let output = Dispatch::lowbit_conv2d(input.into_dispatch(), weight.into_dispatch(), options);
    Tensor::from_dispatch(output)
}

/// What the values of a tensor are integer multiples of.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "it is made once for each layer and step, and not kept")]
pub enum Scale {
    /// One constant.
    Constant(f32),
    /// A learned parameter divided by a constant.
    Learned {
        /// The parameter, `[1]`, or `[out_channels]` for weights.
        parameter: Tensor<1>,
        /// The constant.
        parts: f32,
    },
}

impl Scale {
    fn split(self) -> (ScaleKind, Option<Tensor<1>>) {
        match self {
            Self::Constant(scale) => (ScaleKind::Constant(scale), None),
            Self::Learned { parameter, parts } => (ScaleKind::Learned { parts }, Some(parameter.detach())),
        }
    }
}

/// [`conv2d`] of fake-quantized operands: an input of `scale` times an integer from 0 to the bound, weights of their scale
/// times an integer of at most the bound. Backends that have a kernel for it sum up the integers, without rounding.
///
/// # Panics
/// If the input has more than one scale.
pub fn conv2d_codes(
    input: Tensor<4>,
    weight: Tensor<4>,
    [input_scale, weight_scale]: [Scale; 2],
    bounds: CodeBounds,
    options: ConvOptions<2>,
) -> Tensor<4> {
    if is_composed(&input) {
        return conv2d(input, weight, options);
    }
    let (input_kind, input_parameter) = input_scale.split();
    let (weight_kind, weight_parameter) = weight_scale.split();
    let n_scales = input_parameter.as_ref().map_or(1, |parameter| parameter.dims()[0]);
    assert_eq!(n_scales, 1, "one scale for the input");
    // An operation has a fixed number of tensors; any does where there is no parameter.
    let stand_in = || weight.clone().detach().into_dispatch();
    let output = Dispatch::lowbit_conv2d_codes(
        input.into_dispatch(),
        weight.clone().into_dispatch(),
        input_parameter.map_or_else(stand_in, Tensor::into_dispatch),
        weight_parameter.map_or_else(stand_in, Tensor::into_dispatch),
        CodeKinds { input: input_kind, weight: weight_kind, bounds },
        options,
    );
    Tensor::from_dispatch(output)
}

/// What follows a normalization.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "it is made once for each layer and step, and not kept")]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(y, 0)`.
    Relu,
    /// [`fake_quantize_unit`].
    Unit {
        /// Steps of the grid.
        n: f32,
    },
    /// [`fake_quantize_learned`] with one parameter for all values.
    Learned {
        /// The parameter, `[1]`.
        parameter: Tensor<1>,
        /// What it means.
        grid: Grid,
    },
}

impl Activation {
    /// The activation of `x` alone, without a normalization.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Identity => x,
            Self::Relu => relu(x),
            Self::Unit { n } => fake_quantize_unit(x, n),
            Self::Learned { parameter, grid } => fake_quantize_learned(x, parameter, grid),
        }
    }

    fn split(self) -> (ActivationKind, Option<Tensor<1>>) {
        match self {
            Self::Identity => (ActivationKind::Identity, None),
            Self::Relu => (ActivationKind::Relu, None),
            Self::Unit { n } => (ActivationKind::Unit { n }, None),
            Self::Learned { parameter, grid } => (ActivationKind::Learned(grid), Some(parameter)),
        }
    }
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

/// Normalization by the statistics of the batch, and the activation that follows it. A batch without values has zeros as
/// statistics.
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
    if is_composed(&input) {
        let [mean, variance] = composed::batch_statistics(input.clone());
        let statistics = [mean.clone(), variance.clone()];
        let output = composed::normalize(input, [gamma, beta], statistics, epsilon as f32, activation);
        return BatchNormOutput { output, mean: mean.detach(), variance: variance.detach() };
    }
    let channels = input.dims()[1];
    let statistics = Dispatch::lowbit_batch_statistics(input.clone().into_dispatch());
    let statistics = Tensor::<1>::from_dispatch(statistics).detach();
    let output = normalize(input, [gamma, beta, statistics.clone()], epsilon, activation);
    BatchNormOutput {
        output,
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
    if is_composed(&input) {
        return composed::normalize(input, [gamma, beta], [mean, variance], epsilon as f32, activation);
    }
    normalize(input, [gamma, beta, Tensor::cat(vec![mean, variance], 0)], epsilon, activation)
}

fn normalize(
    input: Tensor<4>,
    [gamma, beta, statistics]: [Tensor<1>; 3],
    epsilon: f64,
    activation: Activation,
) -> Tensor<4> {
    let (kind, parameter) = activation.split();
    // As for `conv2d_codes`.
    let parameter = parameter.unwrap_or_else(|| beta.clone().detach());
    Tensor::from_dispatch(Dispatch::lowbit_batch_norm(
        input.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        statistics.into_dispatch(),
        parameter.into_dispatch(),
        epsilon as f32,
        kind,
    ))
}

/// Fake quantization of weights by DoReFa-Net, Zhou16 Eq. 9, with `n` steps; see [`lowbit_cpu::weights`].
///
/// # Equation
/// `(2 c - n) / n` with `c = round(n (tanh(w) / (2 max|tanh(w)|) + 1/2))`, ties to even. The gradient is straight through
/// the rounding.
pub fn dorefa_weights<const D: usize>(w: Tensor<D>, n: f32, max_gradient: MaxGradient) -> Tensor<D> {
    if is_composed(&w) {
        return composed::dorefa_weights(w, n, max_gradient);
    }
    Tensor::from_dispatch(Dispatch::lowbit_dorefa_weights(w.into_dispatch(), n, max_gradient))
}

/// `round(clip(x, 0, 1) n) / n`, ties to even. The gradient passes where `0 <= x <= 1`.
pub fn fake_quantize_unit<const D: usize>(x: Tensor<D>, n: f32) -> Tensor<D> {
    if is_composed(&x) {
        return composed::fake_quantize_unit(x, n);
    }
    Tensor::from_dispatch(Dispatch::lowbit_fake_quantize_unit(x.into_dispatch(), n))
}

/// Fake quantization with a learned parameter, positive: one for all, shape `[1]`, or one for each slice along the first
/// axis. See [`Grid`] for the formulas; gradients are those of [`lowbit_cpu::fake_quantize::learned_gradients`].
///
/// # Panics
/// If there is another number of parameters.
pub fn fake_quantize_learned<const D: usize>(x: Tensor<D>, parameter: Tensor<1>, grid: Grid) -> Tensor<D> {
    let n_parameters = parameter.dims()[0];
    assert!(n_parameters == 1 || n_parameters == x.dims()[0], "one parameter, or one for each slice");
    if is_composed(&x) {
        return composed::fake_quantize_learned(x, parameter, grid);
    }
    Tensor::from_dispatch(Dispatch::lowbit_fake_quantize(x.into_dispatch(), parameter.into_dispatch(), grid))
}

/// `x / s` for any shape, without gradient: the floats nearest to the exact quotients, which a GPU's own division does not promise
/// to be. (On a GPU of subnormal numbers, of floats of 16 bits, and on backends without kernels, it is the device's own.)
///
/// # Panics
/// If the shapes differ.
pub fn quotient<const D: usize>(x: Tensor<D>, s: Tensor<D>) -> Tensor<D> {
    assert_eq!(x.dims(), s.dims(), "operands of a quotient");
    let (x, s) = (x.detach(), s.detach());
    if is_composed(&x) {
        return x / s;
    }
    Tensor::from_dispatch(Dispatch::lowbit_quotient(x.into_dispatch(), s.into_dispatch()))
}

/// Smallest and largest of the values and 0, `[2]`, without gradient.
pub fn value_range<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let x = x.detach();
    if is_composed(&x) {
        return composed::value_range(x);
    }
    Tensor::from_dispatch(Dispatch::lowbit_value_range(x.into_dispatch()))
}

/// Fake quantization to an affine grid of `n` steps, whose scale and zero point, `[1]`, are constants of the backward pass.
///
/// # Equation
/// `(c - z) s` with `c = clip(round(x / s) + z, 0, n)`, ties to even. The gradient passes where `c` was not clipped.
///
/// # Panics
/// If there is another number of scales or zero points than one.
pub fn fake_quantize_affine<const D: usize>(
    x: Tensor<D>,
    scale: Tensor<1>,
    zero_point: Tensor<1>,
    n: f32,
) -> Tensor<D> {
    assert_eq!([scale.dims(), zero_point.dims()], [[1], [1]], "one scale and one zero point");
    if is_composed(&x) {
        return composed::fake_quantize_affine(x, scale, zero_point, n);
    }
    let [scale, zero_point] = [scale, zero_point].map(|parameter| parameter.detach().into_dispatch());
    Tensor::from_dispatch(Dispatch::lowbit_fake_quantize_affine(x.into_dispatch(), scale, zero_point, n))
}

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
