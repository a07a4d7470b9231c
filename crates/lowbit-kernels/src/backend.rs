//! The operations as a burn backend extension.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};
use burn::tensor::ops::ConvOptions;
use lowbit_cpu::conv::ConvShape;
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::integer::CodeBounds;
use lowbit_cpu::packed::PackedImages;
use lowbit_cpu::weights::MaxGradient;

use crate::reference;

/// What follows a normalization, apart from its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum ActivationKind {
    /// Nothing.
    Identity,
    /// `max(y, 0)`.
    Relu,
    /// A quantizer.
    Formula(AnyFormula),
}

/// How the values of the operands of a convolution follow from codes, apart from their units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeKinds {
    /// What the units are divided into, of the input and of the weights.
    pub parts: [f32; 2],
    /// Whether the operands have a unit, one of the input and one or one for each output channel of the weights; 1 else.
    pub have_unit: [bool; 2],
    /// Largest magnitudes of the codes; those of the input are not negative.
    pub bounds: CodeBounds,
}

/// What the backward pass keeps of a quantized input of a convolution.
#[derive(Clone, Debug)]
pub struct KeptCodes {
    /// The input.
    pub input: PackedImages,
    /// Sizes of the convolution.
    pub shape: ConvShape,
}

/// What a backend may do between the passes of an operation, apart from the operations.
pub trait KeepCodes: Backend {
    /// The input of a convolution as packed codes, if the backend reads these in its backward pass and the values are codes.
    fn lowbit_keep_codes(
        _input: &FloatTensor<Self>,
        _weight: &FloatTensor<Self>,
        _input_parameter: &FloatTensor<Self>,
        _codes: CodeKinds,
        _options: &ConvOptions<2>,
    ) -> Option<KeptCodes> {
        None
    }

    /// Gradients of the input and of the weights, those that are `wanted`.
    ///
    /// # Panics
    /// On a backend that keeps no codes.
    fn lowbit_gradients_of_codes(
        _kept: &KeptCodes,
        _weight: FloatTensor<Self>,
        _gradient: FloatTensor<Self>,
        _wanted: [bool; 2],
    ) -> [Option<FloatTensor<Self>>; 2] {
        unreachable!("this backend keeps no codes")
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
    /// Convolution without bias.
    fn lowbit_conv2d(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        reference::conv2d::<Self>(input, weight, options)
    }

    /// Convolution without bias of operands that are multiples of scales.
    fn lowbit_conv2d_codes(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        _input_parameter: FloatTensor<Self>,
        _weight_parameter: FloatTensor<Self>,
        _codes: CodeKinds,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        Self::lowbit_conv2d(input, weight, options)
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

    /// Mean and biased variance of every channel of `[batch, channels, height, width]`: `[2 channels]`, without gradient.
    fn lowbit_batch_statistics(input: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::batch_statistics::<Self>(input)
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
    ) -> FloatTensor<Self> {
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

    /// Fake quantization of the weights of DoReFa: see [`lowbit_cpu::weights`].
    fn lowbit_dorefa_weights(w: FloatTensor<Self>, n: f32, _max_gradient: MaxGradient) -> FloatTensor<Self> {
        Self::lowbit_dorefa_grid(Self::lowbit_tanh(w), n)
    }

    /// `tanh(w)`.
    fn lowbit_tanh(w: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::tanh::<Self>(w)
    }

    /// The weights on the grid from their hyperbolic tangents.
    fn lowbit_dorefa_grid(squashed: FloatTensor<Self>, n: f32) -> FloatTensor<Self> {
        reference::dorefa_grid::<Self>(squashed, n)
    }

    /// Gradient of the weights from their hyperbolic tangents and the gradient of those on the grid.
    fn lowbit_dorefa_gradient(
        squashed: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        max_gradient: MaxGradient,
    ) -> FloatTensor<Self> {
        reference::dorefa_gradient::<Self>(squashed, gradient, max_gradient)
    }

    /// The results of a formula. `parameters` are the first parameter of every row of `x`, then the second of every row, and so on;
    /// without effect if it has none.
    fn lowbit_fake_quantize(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        formula: AnyFormula,
    ) -> FloatTensor<Self> {
        reference::fake_quantize::<Self>(x, parameters, &formula)
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
