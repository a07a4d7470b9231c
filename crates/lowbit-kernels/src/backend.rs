//! The operations as a burn backend extension.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};
use burn::tensor::ops::ConvOptions;
use lowbit_cpu::conv::ConvShape;
use lowbit_cpu::fake_quantize::Grid;
use lowbit_cpu::integer::CodeBounds;
use lowbit_cpu::packed::PackedImages;
use lowbit_cpu::weights::MaxGradient;

use crate::reference;

/// What follows a normalization, apart from its learned parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ActivationKind {
    /// Nothing.
    Identity,
    /// `max(y, 0)`.
    Relu,
    /// [`fake_quantize_unit`](crate::fake_quantize_unit).
    Unit {
        /// Steps of the grid.
        n: f32,
    },
    /// [`fake_quantize_learned`](crate::fake_quantize_learned) with one parameter for all values.
    Learned(Grid),
}

/// What the values of an operand of a convolution are integer multiples of, apart from its learned parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ScaleKind {
    /// One constant.
    Constant(f32),
    /// The learned parameter (one for all, or one for each output channel of weights) divided by a constant.
    Learned {
        /// The constant.
        parts: f32,
    },
}

/// The integers that the operands of a convolution are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeKinds {
    /// Scale of the input.
    pub input: ScaleKind,
    /// Scale of the weights.
    pub weight: ScaleKind,
    /// Largest magnitudes of the integers; those of the input are not negative.
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

    /// Normalization by `statistics`, which are those of the batch, and the activation. `parameter` is that of the
    /// activation; without effect if it has none.
    fn lowbit_batch_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        epsilon: f32,
        activation: ActivationKind,
    ) -> FloatTensor<Self> {
        reference::batch_norm::<Self>(input, gamma, beta, statistics, parameter, epsilon, activation)
    }

    /// Gradients of the input, of `gamma`, of `beta` and of `parameter`; the last is zero if the activation has none.
    #[allow(clippy::too_many_arguments, reason = "what the forward pass had, and the gradient")]
    fn lowbit_batch_norm_gradients(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
        activation: ActivationKind,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        reference::batch_norm_gradients::<Self>(
            input, gamma, beta, statistics, parameter, gradient, epsilon, activation,
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

    /// `round(clip(x, 0, 1) n) / n`.
    fn lowbit_fake_quantize_unit(x: FloatTensor<Self>, n: f32) -> FloatTensor<Self> {
        reference::fake_quantize_unit::<Self>(x, n)
    }

    /// The gradient where `0 <= x <= 1`, else 0.
    fn lowbit_fake_quantize_unit_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        reference::fake_quantize_unit_gradient::<Self>(x, gradient)
    }

    /// Fake quantization with a learned parameter.
    fn lowbit_fake_quantize(
        x: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        grid: Grid,
    ) -> FloatTensor<Self> {
        reference::fake_quantize::<Self>(x, parameter, grid)
    }

    /// Gradients of the input and of the parameter, the latter of the parameter's shape.
    fn lowbit_fake_quantize_gradients(
        x: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        grid: Grid,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        reference::fake_quantize_gradients::<Self>(x, parameter, gradient, grid)
    }

    /// The floats nearest to `x / s`, both of the same shape, without gradient.
    fn lowbit_quotient(x: FloatTensor<Self>, s: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_div(x, s)
    }

    /// Smallest and largest of the values and 0, `[2]`, without gradient.
    fn lowbit_value_range(x: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::value_range::<Self>(x)
    }

    /// `(clip(round(x / scale) + zero_point, 0, n) - zero_point) scale`.
    fn lowbit_fake_quantize_affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        zero_point: FloatTensor<Self>,
        n: f32,
    ) -> FloatTensor<Self> {
        reference::fake_quantize_affine::<Self>(x, scale, zero_point, n)
    }

    /// The gradient where the code was not clipped, else 0.
    fn lowbit_fake_quantize_affine_gradient(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        zero_point: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        n: f32,
    ) -> FloatTensor<Self> {
        reference::fake_quantize_affine_gradient::<Self>(x, scale, zero_point, gradient, n)
    }
}
