//! Fused operations of low-bit training: convolution, batch normalization and fake quantization, forward and backward.
//!
//! Each operation has a reference made of burn's own operations; the CPU backends have kernels instead, GPUs some. A backend
//! is an extended one if this crate's feature of its name is on, together with burn's; on others the operations panic and say
//! so. Which implementation runs is decided here and nowhere else: callers see functions of tensors.
//!
//! What a quantizer computes is a [`Formula`], which belongs to its method. A [`Scheme`] is a formula with its parameters; what it
//! yields, [`Quantized`], has its values and, on CPUs, their codes, which a convolution of two such multiplies.
//!
//! What it does not do: no layers, no quantizers, no state.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use lowbit_kernels::{AnyFormula, Formula, Number, Scheme};
//!
//! /// `round(3 clip(x, 0, 1)) / 3`, whose gradient passes within the bounds.
//! #[derive(Clone, Copy, Debug, PartialEq)]
//! struct Thirds;
//!
//! impl Formula<0> for Thirds {
//!     #[inline(always)]
//!     fn position<N: Number>(self, x: N, []: [N; 0]) -> N {
//!         x.clip(N::from(0.0), N::from(1.0)) * N::from(3.0)
//!     }
//!
//!     fn unit(self) -> Option<usize> {
//!         None
//!     }
//!
//!     fn parts(self) -> f32 {
//!         3.0
//!     }
//!
//!     #[inline(always)]
//!     fn gradient<N: Number>(self, x: N, []: [N; 0], _code: N, g: N) -> (N, [N; 0]) {
//!         (x.if_within(N::from(0.0), N::from(1.0), g), [])
//!     }
//! }
//!
//! let device = Device::flex().autodiff();
//! let x = Tensor::<1>::from_floats([-0.2, 0.3, 0.6, 1.4], &device).require_grad();
//! let scheme = Scheme::new(AnyFormula::new(Thirds), Vec::new(), 0..=3);
//! let y = scheme.quantize(x.clone()).into_values();
//! assert_eq!(y.clone().into_data().to_vec::<f32>().unwrap(), [0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0]);
//!
//! let gradient = x.grad(&y.sum().backward()).unwrap();
//! assert_eq!(gradient.into_data().to_vec::<f32>().unwrap(), [0.0, 1.0, 1.0, 0.0]);
//! ```

mod autodiff;
#[allow(deprecated, reason = "burn has deprecated ndarray, which this project keeps")]
mod backend;
mod choice;
#[cfg(feature = "cube")]
mod cube;
#[cfg(any(feature = "flex", feature = "ndarray"))]
mod host;
#[cfg(feature = "cube")]
mod launches;
mod reduce;
mod reference;
mod scheme;
mod sgd;
#[doc(hidden)]
pub mod testing;
mod times;

use std::ops::RangeInclusive;

use burn::backend::Dispatch;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, TensorData};
pub use lowbit_core::Compute;
pub use lowbit_cpu::formula::{AnyFormula, Formula, Mode, Number, Rectified};
pub use lowbit_cpu::gradient::GradientQuantizer;
pub use lowbit_cpu::integer::CodeBounds;
pub use lowbit_cpu::weights::MaxGradient;

pub use backend::{
    ActivationKind, CodeWorth, CodedTensor, ConvCompute, ConvOperands, ConvSizes, KeepCodes, KeptInput,
    KeptPlaces, KeptWeights, KernelBackend, MaxPool, SgdStep, SumOverRanks, WeightCodes,
};
use choice::demand_extension;
pub use choice::{evaluates_exactly, trains_in_bf16, trains_with_quantized_gradients};
pub use reduce::reduce_in_parts;
pub use scheme::{Codes, Quantized, Scheme};
use scheme::{constant, quantized};
pub use sgd::{Sgd, Velocity};

/// What a training step computes otherwise than an evaluation. Of a [`Compute`] alone, gradients are not quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepArithmetic {
    /// How products are computed.
    pub compute: Compute,
    /// What quantizes the gradient of the output before it is multiplied; `None` leaves it as it is.
    pub gradient: Option<GradientQuantizer>,
}

impl From<Compute> for StepArithmetic {
    fn from(compute: Compute) -> Self {
        Self { compute, gradient: None }
    }
}

/// Convolution without bias; as `burn::tensor::module::conv2d`. Operands with codes, those of the input not negative, of one unit
/// and of at most 8 bits, are multiplied as integers by backends that have a kernel for it: their sums are exact.
///
/// Where there is a gradient, [`Compute::Bf16`] rounds to bf16 what is multiplied in all three passes and has no codes: input,
/// weights and the gradient of the output, unless that is quantized. Sums are in single precision. A [`GradientQuantizer`]
/// quantizes the gradient of the output, sample by sample, before it is multiplied for the gradients of the input and of the
/// weights.
///
/// # Shapes
/// - input: `[batch, in_channels, height, width]`
/// - weight: `[out_channels, in_channels / groups, kernel height, kernel width]`
///
/// # Panics
/// If it has a gradient and a device does not train so: see [`trains_in_bf16`] and [`trains_with_quantized_gradients`].
pub fn conv2d(
    input: impl Into<Quantized<4>>,
    weight: impl Into<Quantized<4>>,
    options: ConvOptions<2>,
    arithmetic: impl Into<StepArithmetic>,
) -> Tensor<4> {
    let ((input, of_input), (weight, of_weight)) = (input.into().split(), weight.into().split());
    let StepArithmetic { compute, gradient } = arithmetic.into();
    demand_extension(&input);
    let compute = ConvCompute { compute, have_codes: [of_input.is_some(), of_weight.is_some()], gradient };
    // What is evaluated is in single precision.
    let compute = if input.device().is_autodiff() { compute } else { ConvCompute::default() };
    let of_input = of_input.and_then(Codes::of_an_input);
    let of_input = of_input.and_then(|(codes, largest)| Some((codes.zero_point()?, codes, largest)));
    let of_weight = of_weight.and_then(Codes::of_weights);
    let codes = CodeWorth {
        parts: [
            of_input.as_ref().map_or(1.0, |(_, codes, _)| codes.parts),
            of_weight.as_ref().map_or(1.0, |codes| codes.parts),
        ],
        have_unit: [
            of_input.as_ref().is_some_and(|(_, codes, _)| codes.unit.is_some()),
            of_weight.as_ref().is_some_and(|codes| codes.unit.is_some()),
        ],
        bounds: CodeBounds {
            activation: of_input.as_ref().map_or(0, |(_, _, largest)| *largest),
            weight: of_weight.as_ref().map_or(0, Codes::magnitude),
        },
        zero_point: of_input.as_ref().map_or(0, |(zero_point, _, _)| *zero_point),
        is_exact: evaluates_exactly(&input.device()),
    };
    // An operation has a fixed number of tensors; any does where there is no unit.
    let stand_in = constant(weight.clone()).into_dispatch();
    let unit = |unit: Option<Tensor<1>>| unit.map_or_else(|| stand_in.clone(), Tensor::into_dispatch);
    let (input_codes, input_unit) =
        of_input.map(|(_, codes, _)| (codes.bytes.into_dispatch(), codes.unit)).unzip();
    let (weight_codes, weight_unit) =
        of_weight.map(|codes| (codes.bytes.into_dispatch(), codes.unit)).unzip();
    let output = Dispatch::lowbit_conv2d(
        CodedTensor::of((input.into_dispatch(), input_codes)),
        CodedTensor::of((weight.into_dispatch(), weight_codes)),
        unit(input_unit.flatten()),
        unit(weight_unit.flatten()),
        codes,
        options,
        compute,
    );
    Tensor::from_dispatch(output)
}

/// `x` itself, whose gradient is quantized before it goes on, sample by sample; the first dimension of `x` is that of the samples.
///
/// # Panics
/// If it has a gradient on a device that does not train so: see [`trains_with_quantized_gradients`].
pub fn with_quantized_gradient<const D: usize>(x: Tensor<D>, quantizer: GradientQuantizer) -> Tensor<D> {
    demand_extension(&x);
    Tensor::from_dispatch(Dispatch::lowbit_with_quantized_gradient(x.into_dispatch(), quantizer))
}

/// `max(x, 0)`; `NaN` stays. The backward pass keeps the result alone.
pub fn relu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    demand_extension(&x);
    Tensor::from_dispatch(Dispatch::lowbit_relu(x.into_dispatch()))
}

/// `max(one + other, 0)`; `NaN` stays. The backward pass keeps the result alone. On CPUs it takes the memory of `one` if nothing
/// else has it.
///
/// # Panics
/// If the shapes differ.
pub fn relu_of_sum<const D: usize>(one: Tensor<D>, other: Tensor<D>) -> Tensor<D> {
    assert_eq!(one.dims(), other.dims(), "operands of a sum");
    demand_extension(&one);
    Tensor::from_dispatch(Dispatch::lowbit_relu_of_sum(one.into_dispatch(), other.into_dispatch()))
}

/// The largest value of each window of each channel, `NaN` where there is one; as `burn::tensor::module::max_pool2d`. On CPUs the backward
/// pass keeps a byte for each value of the result, and nothing of the input. Of equal values the first one takes the gradient.
///
/// # Shapes
/// `[batch, channels, height, width]` to the same with `(side + 2 padding - kernel) / stride + 1` for each side, rounded down.
///
/// # Panics
/// If the padding is not smaller than the kernel.
pub fn max_pool2d(input: Tensor<4>, options: MaxPool) -> Tensor<4> {
    assert!(options.padding < options.kernel, "a window lies in the padding");
    demand_extension(&input);
    Tensor::from_dispatch(Dispatch::lowbit_max_pool2d(input.into_dispatch(), options))
}

/// The mean of each channel of each image, without gradient. Shapes `[batch, channels, height, width]` to `[batch, channels]`.
pub fn channel_means(x: Tensor<4>) -> Tensor<2> {
    let [batch, channels, height, width] = x.dims();
    if batch == 0 {
        return Tensor::zeros([0, channels], &x.device());
    }
    // The statistics of a batch of one image whose channels are all channels of all images.
    let planes = x.reshape([1, batch * channels, height, width]).into_dispatch();
    let statistics = Tensor::<1>::from_dispatch(Dispatch::lowbit_batch_statistics(planes)).detach();
    statistics.narrow(0, 0, batch * channels).reshape([batch, channels])
}

/// What follows a normalization.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "it is made once for each layer and step, and not kept")]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(y, 0)`.
    Relu,
    /// A quantizer with one number for each of its parameters.
    Quantize(Scheme),
}

impl Activation {
    /// The activation of `x` alone, without a normalization.
    pub fn apply<const D: usize>(self, x: Tensor<D>) -> Quantized<D> {
        match self {
            Self::Identity => x.into(),
            Self::Relu => relu(x).into(),
            Self::Quantize(scheme) => scheme.quantize(x),
        }
    }
}

/// Result of [`batch_norm`].
pub struct BatchNormOutput {
    /// The normalized input after the activation, of its shape.
    pub output: Quantized<4>,
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
    demand_extension(&input);
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

/// Running statistics of a normalization.
#[derive(Clone, Debug)]
pub struct RunningStatistics {
    /// Mean of every channel, `[channels]`.
    pub mean: Tensor<1>,
    /// Variance of every channel, `[channels]`.
    pub variance: Tensor<1>,
}

/// Result of [`batch_norm_moving`].
pub struct MovedBatchNorm {
    /// The normalized input after the activation, of its shape.
    pub output: Quantized<4>,
    /// The running statistics after the step, without gradient.
    pub running: RunningStatistics,
}

/// [`batch_norm`], which moves running statistics towards those of the batch: by the share `momentum`.
pub fn batch_norm_moving(
    input: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    running: RunningStatistics,
    momentum: f64,
    epsilon: f64,
    activation: Activation,
) -> MovedBatchNorm {
    demand_extension(&input);
    let RunningStatistics { mean, variance } = running;
    let (statistics, mean, variance) = Dispatch::lowbit_moving_statistics(
        input.clone().into_dispatch(),
        mean.into_dispatch(),
        variance.into_dispatch(),
        momentum,
    );
    let [statistics, mean, variance] =
        [statistics, mean, variance].map(|tensor| Tensor::<1>::from_dispatch(tensor).detach());
    let output = normalize(input, [gamma, beta, statistics], epsilon, activation);
    MovedBatchNorm { output, running: RunningStatistics { mean, variance } }
}

/// The sum of `x` over all processes that train together, and of its gradients too. All of them compute it, in the same order.
pub fn sum_over_ranks(x: Tensor<1>, sum: &SumOverRanks) -> Tensor<1> {
    demand_extension(&x);
    let (device, n) = (x.device(), x.dims()[0]);
    let values = x.clone().detach().into_data().iter::<f32>().collect();
    let values = Tensor::<1>::from_data(TensorData::new(sum.of(values), [n]), &device);
    let x = Tensor::<1>::from_dispatch(Dispatch::lowbit_with_summed_gradient(x.into_dispatch(), sum.clone()));
    // Exactly the values, with the gradient of x.
    x.clone() - x.detach() + values
}

/// [`batch_norm_moving`] by the statistics of the batches of all processes that train together, which is not fused. A process may have
/// no value of its own.
pub fn batch_norm_over_ranks(
    input: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    running: RunningStatistics,
    momentum: f64,
    epsilon: f64,
    activation: Activation,
    sum: &SumOverRanks,
) -> MovedBatchNorm {
    let [batch, channels, height, width] = input.dims();
    let of_channels = |x: Tensor<4>| x.sum_dim(0).sum_dim(2).sum_dim(3).reshape([channels]);
    let as_channels = |x: Tensor<1>| x.reshape([1, channels, 1, 1]);
    let n_own = Tensor::<1>::full([1], (batch * height * width) as f64, &input.device());
    let sums = sum_over_ranks(Tensor::cat(vec![of_channels(input.clone()), n_own], 0), sum);
    let n = sums.clone().narrow(0, channels, 1).detach();
    let mean = sums.narrow(0, 0, channels) / n.clone();
    let distance = input - as_channels(mean.clone());
    let variance = sum_over_ranks(of_channels(distance.clone() * distance.clone()), sum) / n;
    let deviation = (variance.clone() + epsilon).sqrt();
    let output = distance / as_channels(deviation) * as_channels(gamma) + as_channels(beta);
    let moved =
        |running: Tensor<1>, of_batch: Tensor<1>| running * (1.0 - momentum) + of_batch.detach() * momentum;
    let running =
        RunningStatistics { mean: moved(running.mean, mean), variance: moved(running.variance, variance) };
    MovedBatchNorm { output: activation.apply(output), running }
}

/// Mean over the batch of the cross entropy between `targets` and the softmax of `logits`, both `[batch, n_classes]`. Shape `[1]`.
///
/// # Panics
/// If the shapes differ.
pub fn cross_entropy(logits: Tensor<2>, targets: Tensor<2>) -> Tensor<1> {
    assert_eq!(logits.dims(), targets.dims(), "logits and targets");
    demand_extension(&logits);
    Tensor::from_dispatch(Dispatch::lowbit_cross_entropy(logits.into_dispatch(), targets.into_dispatch()))
}

/// What a step of the optimizer makes.
pub struct SgdStepped<const D: usize> {
    /// The weights after the step.
    pub weight: Tensor<D>,
    /// Their velocity, with momentum.
    pub velocity: Option<Tensor<D>>,
}

/// A step of stochastic gradient descent as PyTorch and burn make it, with weight decay added to the gradient: without gradient, of one
/// shape. It is the first step of these weights if there is no velocity.
///
/// # Panics
/// If the shapes differ.
pub fn sgd_step<const D: usize>(
    weight: Tensor<D>,
    gradient: Tensor<D>,
    velocity: Option<Tensor<D>>,
    step: SgdStep,
) -> SgdStepped<D> {
    demand_extension(&weight);
    let is_alike = |other: &Tensor<D>| other.dims() == weight.dims();
    assert!(
        is_alike(&gradient) && velocity.as_ref().is_none_or(is_alike),
        "a step is of tensors of one shape"
    );
    let step = SgdStep { is_first: velocity.is_none(), ..step };
    // An operation has a fixed number of tensors; any does where there is no velocity.
    let velocity = velocity.unwrap_or_else(|| gradient.clone());
    let (weight, velocity) = Dispatch::lowbit_sgd(
        weight.into_dispatch(),
        gradient.into_dispatch(),
        velocity.into_dispatch(),
        step,
    );
    let velocity = step.momentum.is_some().then(|| Tensor::from_dispatch(velocity));
    SgdStepped { weight: Tensor::from_dispatch(weight), velocity }
}

/// Runs what makes many steps of [`sgd_step`] and reads no result of them: on a GPU they are then few launches.
pub fn sgd_together<T>(steps: impl FnOnce() -> T) -> T {
    #[cfg(feature = "cube")]
    return cube::sgd_together(steps);
    #[cfg(not(feature = "cube"))]
    steps()
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
) -> Quantized<4> {
    assert!(!input.device().is_autodiff(), "fixed statistics are for evaluation");
    demand_extension(&input);
    normalize(input, [gamma, beta, Tensor::cat(vec![mean, variance], 0)], epsilon, activation)
}

fn normalize(
    input: Tensor<4>,
    [gamma, beta, statistics]: [Tensor<1>; 3],
    epsilon: f64,
    activation: Activation,
) -> Quantized<4> {
    if let Activation::Quantize(scheme) = &activation {
        // The first axis is that of the batch.
        let is_one = scheme.parameters().iter().all(|parameter| parameter.dims() == [1]);
        assert!(is_one, "an activation has one number for each parameter");
    }
    let (kind, scheme) = match activation {
        Activation::Identity => (ActivationKind::Identity, None),
        Activation::Relu => (ActivationKind::Relu, None),
        Activation::Quantize(scheme) => {
            (ActivationKind::Formula(scheme.formula().clone(), scheme.wanted_codes(&input)), Some(scheme))
        }
    };
    // As for `conv2d`.
    let parameters = scheme.as_ref().and_then(Scheme::stacked).unwrap_or_else(|| constant(beta.clone()));
    let output = Dispatch::lowbit_batch_norm(
        input.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        statistics.into_dispatch(),
        parameters.into_dispatch(),
        epsilon as f32,
        kind,
    );
    match scheme {
        Some(scheme) => scheme.made(output),
        None => Tensor::from_dispatch(output.values()).into(),
    }
}

/// Fake quantization of weights by DoReFa-Net, Zhou16 Eq. 9: `formula` of `tanh(w)`, whose one parameter is `2 max|tanh(w)|`, with codes in
/// the range `codes`. What the codes are worth is to depend on no parameter. The gradient is straight through the formula, but for the
/// quotient of the two, and differentiates the rest: see [`lowbit_cpu::weights`].
///
/// # Panics
/// If the formula has other parameters.
pub fn dorefa_weights<const D: usize>(
    w: Tensor<D>,
    formula: AnyFormula,
    codes: RangeInclusive<i32>,
    max_gradient: MaxGradient,
) -> Quantized<D> {
    demand_extension(&w);
    let is_of_one = formula.n_parameters() == 1 && formula.unit().is_none() && formula.zero().is_none();
    assert!(is_of_one, "{formula:?} has other parameters than the divisor of DoReFa's weights");
    let wanted = Some(codes.clone());
    let output = Dispatch::lowbit_dorefa_weights(w.into_dispatch(), formula.clone(), wanted, max_gradient);
    quantized(output, [None, None], formula.parts(), codes)
}

/// `tanh(w)` and `2 max|tanh(w)|`, `[1]`, without gradient: what [`dorefa_weights`] applies its formula to. The latter is 1 if all weights
/// are zero.
pub fn squashed<const D: usize>(w: Tensor<D>) -> (Tensor<D>, Tensor<1>) {
    let w = constant(w);
    demand_extension(&w);
    let squashed = Dispatch::lowbit_tanh(w.into_dispatch());
    let double_max = Tensor::from_dispatch(Dispatch::lowbit_double_max(squashed.clone()));
    (Tensor::from_dispatch(squashed), double_max)
}

/// `x / s` for any shape, without gradient: the floats nearest to the exact quotients, which a GPU's own division does not promise
/// to be. (On a GPU of subnormal numbers, and of floats of 16 bits, it is the device's own.)
///
/// # Panics
/// If the shapes differ.
pub fn quotient<const D: usize>(x: Tensor<D>, s: Tensor<D>) -> Tensor<D> {
    assert_eq!(x.dims(), s.dims(), "operands of a quotient");
    let (x, s) = (x.detach(), s.detach());
    demand_extension(&x);
    Tensor::from_dispatch(Dispatch::lowbit_quotient(x.into_dispatch(), s.into_dispatch()))
}

/// Smallest and largest of the values and 0, `[2]`, without gradient.
pub fn value_range<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    let x = x.detach();
    demand_extension(&x);
    Tensor::from_dispatch(Dispatch::lowbit_value_range(x.into_dispatch()))
}

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
