//! The operations as a burn backend extension.

use std::ops::RangeInclusive;
use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, ExtensionType, backend_extension};
use burn::tensor::ops::ConvOptions;
use lowbit_core::Compute;
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::gradient::GradientQuantizer;
use lowbit_cpu::integer::CodeBounds;
use lowbit_cpu::packed::PackedImages;
use lowbit_cpu::pool::Pool;
use lowbit_cpu::weights::MaxGradient;

use crate::reference;

/// Adds values up over all processes that train together, which have as many.
#[derive(Clone)]
pub struct SumOverRanks(Arc<dyn Fn(Vec<f32>) -> Vec<f32> + Send + Sync>);

impl SumOverRanks {
    /// By this function.
    pub fn new(sum: impl Fn(Vec<f32>) -> Vec<f32> + Send + Sync + 'static) -> Self {
        Self(Arc::new(sum))
    }

    /// The sum of `values` and those of the others.
    pub fn of(&self, values: Vec<f32>) -> Vec<f32> {
        (self.0)(values)
    }
}

impl std::fmt::Debug for SumOverRanks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SumOverRanks")
    }
}

/// What follows a normalization, apart from its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum ActivationKind {
    /// Nothing.
    Identity,
    /// `max(y, 0)`.
    Relu,
    /// A quantizer, and its smallest and largest code if codes are asked for.
    Formula(AnyFormula, Option<RangeInclusive<i32>>),
}

/// Values, with their codes where the backend has made them.
#[derive(Clone, Debug, ExtensionType)]
pub enum CodedTensor<B: Backend> {
    /// Values alone.
    Values(FloatTensor<B>),
    /// Values and their codes: integers of 8 bits (`U8`) of the same shape, negative ones in two's complement.
    Codes(FloatTensor<B>, IntTensor<B>),
}

impl<B: Backend> CodedTensor<B> {
    /// Values, and their codes if there are some.
    pub fn of((values, codes): (FloatTensor<B>, Option<IntTensor<B>>)) -> Self {
        match codes {
            Some(codes) => Self::Codes(values, codes),
            None => Self::Values(values),
        }
    }

    /// The values, and their codes if there are some.
    pub fn split(self) -> (FloatTensor<B>, Option<IntTensor<B>>) {
        match self {
            Self::Values(values) => (values, None),
            Self::Codes(values, codes) => (values, Some(codes)),
        }
    }

    /// The values alone.
    pub fn values(self) -> FloatTensor<B> {
        self.split().0
    }
}

/// What codes of the operands of a convolution are worth, apart from their units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeWorth {
    /// What the units are divided into, of the input and of the weights.
    pub parts: [f32; 2],
    /// Whether the operands have a unit, one of the input and one or one for each output channel of the weights; 1 else.
    pub have_unit: [bool; 2],
    /// Largest magnitudes of the codes; those of the input are not negative, that of what has no codes is 0.
    pub bounds: CodeBounds,
    /// The code of the input that is worth zero: 0 on a device with autodiff.
    pub zero_point: u8,
    /// Whether their products are summed up exactly wherever that can be, not only where it is faster.
    pub is_exact: bool,
}

/// The arithmetic of a convolution in a training step. In an evaluation, which has no gradients, it is always single precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConvCompute {
    /// How products are computed.
    pub compute: Compute,
    /// Whether the operands, input and weights, are worth codes: these are never rounded.
    pub have_codes: [bool; 2],
    /// What quantizes the gradient of the output before it is multiplied; what it yields is worth codes, too.
    pub gradient: Option<GradientQuantizer>,
}

impl ConvCompute {
    /// Whether the gradient of the output is rounded to bf16.
    pub fn rounds_gradient(self) -> bool {
        self.compute == Compute::Bf16 && self.gradient.is_none()
    }

    /// Which of the operands, input and weights, are rounded to bf16.
    pub fn rounds(self) -> [bool; 2] {
        self.have_codes.map(|has_codes| self.compute == Compute::Bf16 && !has_codes)
    }
}

/// Input of a convolution in its backward pass.
#[derive(Clone, Debug)]
pub enum KeptInput<B: Backend> {
    /// Its values.
    Values(FloatTensor<B>),
    /// Its codes.
    Codes(PackedImages),
}

/// Weights of a convolution in its backward pass.
#[derive(Clone, Debug)]
pub enum KeptWeights<B: Backend> {
    /// Their values.
    Values(FloatTensor<B>),
    /// Their codes.
    Codes(WeightCodes<B>),
}

/// Codes of weights: bytes in two's complement, of the weights' shape.
#[derive(Clone, Debug)]
pub struct WeightCodes<B: Backend> {
    /// The codes.
    pub codes: IntTensor<B>,
    /// What one is worth: for all, or for each channel of the output.
    pub scales: Vec<f32>,
}

/// A step of stochastic gradient descent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdStep {
    /// What the step is multiplied with.
    pub learning_rate: f64,
    /// The share of the weights that is added to their gradient.
    pub weight_decay: Option<f32>,
    /// The share of the velocity that stays.
    pub momentum: Option<f32>,
    /// Whether the step is one ahead of the velocity.
    pub is_nesterov: bool,
    /// Whether there is no velocity yet: it begins as the gradient.
    pub is_first: bool,
}

/// Sizes of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct ConvSizes<'a> {
    /// Shapes of the input and of the weights.
    pub dims: [[usize; 4]; 2],
    /// Stride, padding, dilation and groups.
    pub options: &'a ConvOptions<2>,
}

/// What the gradient of a convolution is multiplied with.
#[derive(Clone, Debug)]
pub struct ConvOperands<B: Backend> {
    /// For the gradient of the weights.
    pub input: KeptInput<B>,
    /// For the gradient of the input.
    pub weight: KeptWeights<B>,
    /// Shapes of the input and of the weights.
    pub dims: [[usize; 4]; 2],
    /// Those of the forward pass.
    pub options: ConvOptions<2>,
    /// That of the forward pass.
    pub compute: ConvCompute,
}

/// A pooling by the maximum of square windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool {
    /// Side of a window.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Places around an image, of which none wins: fewer than the side of a window.
    pub padding: usize,
}

/// What the backward pass keeps of a pooling: nothing of its input.
#[derive(Clone, Debug)]
pub struct KeptPlaces {
    /// Where in each window the largest value is.
    pub places: Arc<Vec<u8>>,
    /// Its sizes.
    pub pool: Pool,
}

/// What a backend may do between the passes of an operation and in the backward pass, apart from the operations.
pub trait KeepCodes: KernelBackend {
    /// Whether operands can be rounded to bf16, and gradients quantized.
    const ROUNDS: bool = false;

    /// The codes of a convolution's input packed, if the backend reads these in its backward pass.
    fn lowbit_keep_input(
        _codes: &IntTensor<Self>,
        _unit: &FloatTensor<Self>,
        _worth: CodeWorth,
        _conv: ConvSizes<'_>,
    ) -> Option<PackedImages> {
        None
    }

    /// The codes of a convolution's weights, if the backend reads these in its backward pass.
    fn lowbit_keep_weights(
        _codes: &IntTensor<Self>,
        _unit: &FloatTensor<Self>,
        _worth: CodeWorth,
        _conv: ConvSizes<'_>,
    ) -> Option<WeightCodes<Self>> {
        None
    }

    /// Gradients of a convolution's input and of its weights, those that are `wanted`.
    ///
    /// # Panics
    /// If the backend keeps no codes, or does not round, and is asked to.
    fn lowbit_conv2d_gradients(
        operands: ConvOperands<Self>,
        gradient: FloatTensor<Self>,
        [input_wanted, weight_wanted]: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        let ConvOperands { input: KeptInput::Values(input), weight: KeptWeights::Values(weight), .. } =
            operands
        else {
            unreachable!("this backend keeps no codes")
        };
        let options = operands.options;
        let of_input = input_wanted.then(|| {
            let (input, weight, gradient) = (input.clone(), weight.clone(), gradient.clone());
            Self::lowbit_conv2d_input_gradient(input, weight, gradient, options.clone())
        });
        let of_weight =
            weight_wanted.then(|| Self::lowbit_conv2d_weight_gradient(input, weight, gradient, options));
        [of_input, of_weight]
    }

    /// The largest values of windows with what their gradient needs, if the backend has a kernel for it.
    fn lowbit_max_pool2d_kept(
        _input: &FloatTensor<Self>,
        _options: MaxPool,
    ) -> Option<(FloatTensor<Self>, KeptPlaces)> {
        None
    }

    /// Gradient of the input of a pooling.
    ///
    /// # Panics
    /// On a backend that has no kernel for it.
    fn lowbit_max_pool2d_gradient(_kept: &KeptPlaces, _gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        unreachable!("this backend keeps no places")
    }

    /// The mean cross entropy with its gradient by the logits, if the backend has a kernel for it.
    fn lowbit_cross_entropy_kept(
        _logits: &FloatTensor<Self>,
        _targets: &FloatTensor<Self>,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>)> {
        None
    }

    /// The values of the codes of a gradient, whose first dimension is that of the samples.
    ///
    /// # Panics
    /// On a backend that does not compute by the kernels of the CPU.
    fn lowbit_quantized_gradient(
        _gradient: FloatTensor<Self>,
        _quantizer: GradientQuantizer,
    ) -> FloatTensor<Self> {
        panic!("gradients are quantized on CPUs alone: leave them in fp32 here")
    }
}

/// A backend with the fused operations; those it has no kernel for are made of its own.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait KernelBackend: Backend {
    /// Convolution without bias; the operands may have codes. How it computes is for training: else it is in single precision.
    fn lowbit_conv2d(
        #[extension_type] input: CodedTensor<Self>,
        #[extension_type] weight: CodedTensor<Self>,
        _input_unit: FloatTensor<Self>,
        _weight_unit: FloatTensor<Self>,
        _codes: CodeWorth,
        options: ConvOptions<2>,
        _compute: ConvCompute,
    ) -> FloatTensor<Self> {
        reference::conv2d::<Self>(input.values(), weight.values(), options)
    }

    /// The same values. On backends with autodiff their gradient, whose first dimension is that of the samples, is quantized.
    fn lowbit_with_quantized_gradient(
        x: FloatTensor<Self>,
        _quantizer: GradientQuantizer,
    ) -> FloatTensor<Self> {
        x
    }

    /// The same values. On backends with autodiff their gradient is the sum of those of all processes.
    fn lowbit_with_summed_gradient(x: FloatTensor<Self>, _sum: SumOverRanks) -> FloatTensor<Self> {
        x
    }

    /// Gradient of a convolution's input.
    fn lowbit_conv2d_input_gradient(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        reference::conv2d_input_gradient::<Self>(input, weight, gradient, options)
    }

    /// Gradient of a convolution's weights.
    fn lowbit_conv2d_weight_gradient(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        reference::conv2d_weight_gradient::<Self>(input, weight, gradient, options)
    }

    /// `max(x, 0)`.
    fn lowbit_relu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::relu::<Self>(x)
    }

    /// `max(one + other, 0)` of tensors of one shape.
    fn lowbit_relu_of_sum(one: FloatTensor<Self>, other: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::relu_of_sum::<Self>(one, other)
    }

    /// The gradient of what the two above take, from their result and its gradient.
    fn lowbit_relu_gradient(output: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::relu_gradient::<Self>(output, gradient)
    }

    /// The largest value of each window of each channel; `NaN` where there is one.
    fn lowbit_max_pool2d(input: FloatTensor<Self>, options: MaxPool) -> FloatTensor<Self> {
        reference::max_pool2d::<Self>(input, options)
    }

    /// Mean and biased variance of every channel of `[batch, channels, height, width]`: `[2 channels]`, without gradient.
    fn lowbit_batch_statistics(input: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::batch_statistics::<Self>(input)
    }

    /// The same statistics, and running means and variances `[channels]` moved towards them by the share `momentum`. An empty batch moves
    /// them towards zeros.
    fn lowbit_moving_statistics(
        input: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        momentum: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        reference::moving_statistics::<Self>(input, mean, variance, momentum)
    }

    /// Normalization by `statistics`, which are those of the batch, and the activation. `parameters` are those of the
    /// activation; without effect if it has none.
    fn lowbit_batch_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        epsilon: f32,
        activation: ActivationKind,
    ) -> CodedTensor<Self> {
        reference::batch_norm::<Self>(input, gamma, beta, statistics, parameters, epsilon, activation)
    }

    /// Gradients of the input, of `gamma`, of `beta` and of `parameters`; the last is any tensor if the activation has none.
    #[allow(clippy::too_many_arguments, reason = "what the forward pass had, and the gradient")]
    fn lowbit_batch_norm_gradients(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
        activation: ActivationKind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        reference::batch_norm_gradients::<Self>(
            input, gamma, beta, statistics, parameters, gradient, epsilon, activation,
        )
    }

    /// Fake quantization of the weights of DoReFa: `formula` of their hyperbolic tangents, with twice the largest magnitude of these as
    /// its parameter.
    fn lowbit_dorefa_weights(
        w: FloatTensor<Self>,
        formula: AnyFormula,
        codes: Option<RangeInclusive<i32>>,
        _max_gradient: MaxGradient,
    ) -> CodedTensor<Self> {
        let squashed = Self::lowbit_tanh(w);
        let double_max = Self::lowbit_double_max(squashed.clone());
        Self::lowbit_fake_quantize(squashed, double_max, formula, codes)
    }

    /// `tanh(w)`, without gradient.
    fn lowbit_tanh(w: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::tanh::<Self>(w)
    }

    /// Twice the largest magnitude, `[1]`, without gradient; 1 if all are zero.
    fn lowbit_double_max(squashed: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::double_max::<Self>(squashed)
    }

    /// Gradient of the weights from their hyperbolic tangents and the gradient of those on the grid.
    fn lowbit_dorefa_gradient(
        squashed: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        max_gradient: MaxGradient,
    ) -> FloatTensor<Self> {
        reference::dorefa_gradient::<Self>(squashed, gradient, max_gradient)
    }

    /// Gradient of the weights from themselves and the gradient of those on the grid.
    fn lowbit_dorefa_weights_gradient(
        w: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        max_gradient: MaxGradient,
    ) -> FloatTensor<Self> {
        Self::lowbit_dorefa_gradient(Self::lowbit_tanh(w), gradient, max_gradient)
    }

    /// The weights after a step of the optimizer, and their velocity, which is any tensor without momentum and is not read in the first
    /// step; without gradient.
    fn lowbit_sgd(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        step: SgdStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::sgd::<Self>(weight, gradient, velocity, step)
    }

    /// Mean over the batch of the cross entropy between `targets` and the softmax of `logits`, both `[batch, classes]`: `[1]`.
    fn lowbit_cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::cross_entropy::<Self>(logits, targets)
    }

    /// The results of a formula, and their codes if they are asked for by telling the smallest and the largest, and if the backend has
    /// a use for them. `parameters` are the first parameter of
    /// every row of `x`, then the second of every row, and so on; without effect if it has none.
    fn lowbit_fake_quantize(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        formula: AnyFormula,
        _codes: Option<RangeInclusive<i32>>,
    ) -> CodedTensor<Self> {
        CodedTensor::Values(reference::fake_quantize::<Self>(x, parameters, &formula))
    }

    /// Gradients of the input and of the parameters. The latter are any tensor if the formula has none, or if they are not `wanted`.
    fn lowbit_fake_quantize_gradients(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        formula: AnyFormula,
        wanted: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::fake_quantize_gradients::<Self>(x, parameters, gradient, &formula, wanted)
    }

    /// The floats nearest to `x / s`, both of the same shape, without gradient.
    fn lowbit_quotient(x: FloatTensor<Self>, s: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_div(x, s)
    }

    /// Smallest and largest of the values and 0, `[2]`, without gradient.
    fn lowbit_value_range(x: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::value_range::<Self>(x)
    }
}
