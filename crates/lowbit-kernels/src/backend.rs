//! The operations as a burn backend extension. The bodies here are the reference.

use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Backend, TensorMetadata, backend_extension, get_or_init_device_settings};
use burn::tensor::Slice;
use burn::tensor::ops::ConvOptions;

use crate::cpu::fake_quantize::Grid;

/// What follows a normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    Identity,
    /// `max(y, 0)`.
    Relu,
}

impl Activation {
    /// The same in the terms of the kernels.
    #[cfg(any(feature = "flex", feature = "ndarray"))]
    pub(crate) fn kernel(self) -> crate::cpu::activation::Activation {
        match self {
            Self::Identity => crate::cpu::activation::Activation::Identity,
            Self::Relu => crate::cpu::activation::Activation::Relu,
        }
    }
}

/// A backend with the fused operations.
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
        Self::conv2d(input, weight, None, options)
    }

    /// Gradient of a convolution's input.
    fn lowbit_conv2d_input_gradient(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        Self::conv2d_x_backward(input, weight, gradient, options)
    }

    /// Gradient of a convolution's weights.
    fn lowbit_conv2d_weight_gradient(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        Self::conv2d_weight_backward(input, weight, gradient, options)
    }

    /// Mean and biased variance of every channel of `[batch, channels, height, width]`: `[2 channels]`, without gradient.
    fn lowbit_batch_statistics(input: FloatTensor<Self>) -> FloatTensor<Self> {
        let [batch, channels, height, width] = input.shape().dims();
        let n = batch * height * width;
        let rows = Self::float_reshape(Self::float_swap_dims(input, 0, 1), [channels, n].into());
        let mean = Self::float_mean_dim(rows.clone(), 1);
        let distance = Self::float_sub(rows, mean.clone());
        let variance = Self::float_mean_dim(Self::float_mul(distance.clone(), distance), 1);
        let flat = |tensor| Self::float_reshape(tensor, [channels].into());
        Self::float_cat(vec![flat(mean), flat(variance)], 0)
    }

    /// Normalization by `statistics`, which are those of the batch, and the activation.
    fn lowbit_batch_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        epsilon: f32,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let before = normalized::<Self>(input, gamma, beta, statistics, epsilon);
        match activation {
            Activation::Identity => before,
            Activation::Relu => Self::float_clamp_min(before, 0.0.into()),
        }
    }

    /// Gradients of the input, of `gamma` and of `beta`.
    fn lowbit_batch_norm_gradients(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        epsilon: f32,
        activation: Activation,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [batch, channels, height, width] = input.shape().dims();
        let n = (batch * height * width) as f32;
        let gradient = match activation {
            Activation::Identity => gradient,
            Activation::Relu => {
                let before =
                    normalized::<Self>(input.clone(), gamma.clone(), beta, statistics.clone(), epsilon);
                let bool_dtype = get_or_init_device_settings::<Self>(&before.device()).bool_dtype;
                let blocked = Self::float_lower_equal_elem(before, 0.0.into(), bool_dtype);
                Self::float_mask_fill(gradient, blocked, 0.0.into())
            }
        };
        let (mean, deviation) = split_statistics::<Self>(statistics, epsilon);
        let normal = Self::float_div(
            Self::float_sub(input, by_channel::<Self>(mean)),
            by_channel::<Self>(deviation.clone()),
        );
        let sum = |tensor: FloatTensor<Self>| {
            let rows = Self::float_reshape(
                Self::float_swap_dims(tensor, 0, 1),
                [channels, batch * height * width].into(),
            );
            Self::float_reshape(Self::float_sum_dim(rows, 1), [channels].into())
        };
        let beta_gradient = sum(gradient.clone());
        let gamma_gradient = sum(Self::float_mul(gradient.clone(), normal.clone()));
        let mean_part = Self::float_div_scalar(beta_gradient.clone(), n.into());
        let normal_part = Self::float_div_scalar(gamma_gradient.clone(), n.into());
        let centered = Self::float_sub(
            Self::float_sub(gradient, by_channel::<Self>(mean_part)),
            Self::float_mul(normal, by_channel::<Self>(normal_part)),
        );
        let factor = by_channel::<Self>(Self::float_div(gamma, deviation));
        (Self::float_mul(centered, factor), gamma_gradient, beta_gradient)
    }

    /// `round(clip(x, 0, 1) n) / n`.
    fn lowbit_fake_quantize_unit(x: FloatTensor<Self>, n: f32) -> FloatTensor<Self> {
        let grid = Self::float_mul_scalar(Self::float_clamp(x, 0.0.into(), 1.0.into()), n.into());
        Self::float_div_scalar(Self::float_round(grid), n.into())
    }

    /// The gradient where `0 <= x <= 1`, else 0.
    fn lowbit_fake_quantize_unit_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let clipped = Self::float_clamp(x.clone(), 0.0.into(), 1.0.into());
        let outside = differs::<Self>(x, clipped);
        Self::float_mask_fill(gradient, outside, 0.0.into())
    }

    /// Fake quantization with a learned parameter.
    fn lowbit_fake_quantize(
        x: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        grid: Grid,
    ) -> FloatTensor<Self> {
        let parameter = along_first_axis::<Self>(parameter, x.shape().num_dims());
        match grid {
            Grid::Step { q_min, q_max } => {
                let clipped =
                    Self::float_clamp(Self::float_div(x, parameter.clone()), q_min.into(), q_max.into());
                Self::float_mul(Self::float_round(clipped), parameter)
            }
            Grid::Clip { n } => {
                let clipped = clipped_above::<Self>(x, parameter.clone());
                let scaled =
                    Self::float_mul_scalar(Self::float_div(clipped.clone(), parameter.clone()), n.into());
                let rounded = Self::float_div_scalar(Self::float_round(scaled), n.into());
                let value = Self::float_mul(rounded, parameter);
                Self::float_add(clipped.clone(), Self::float_sub(value, clipped))
            }
        }
    }

    /// Gradients of the input and of the parameter, the latter of the parameter's shape.
    fn lowbit_fake_quantize_gradients(
        x: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        grid: Grid,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let n_parameters = parameter.shape().num_elements();
        let wide = along_first_axis::<Self>(parameter, x.shape().num_dims());
        let (outside, slope) = match grid {
            Grid::Step { q_min, q_max } => {
                let v = Self::float_div(x, wide);
                let clipped = Self::float_clamp(v.clone(), q_min.into(), q_max.into());
                let outside = differs::<Self>(v.clone(), clipped.clone());
                let inner = Self::float_mask_fill(v, outside.clone(), 0.0.into());
                (outside, Self::float_sub(Self::float_round(clipped), inner))
            }
            Grid::Clip { .. } => {
                let settings = get_or_init_device_settings::<Self>(&x.device());
                let shape = x.shape();
                let above = Self::float_greater_equal(
                    x.clone(),
                    Self::float_expand(wide, shape),
                    settings.bool_dtype,
                );
                let zeros = Self::float_mul_scalar(x.clone(), 0.0.into());
                let below = Self::float_lower_elem(x, 0.0.into(), settings.bool_dtype);
                let slope = Self::float_mask_fill(zeros, above.clone(), 1.0.into());
                (Self::bool_or(above, below), slope)
            }
        };
        let products = Self::float_mul(gradient.clone(), slope);
        let n = products.shape().num_elements() / n_parameters;
        let rows = Self::float_reshape(products, [n_parameters, n].into());
        let parameter_gradient = Self::float_reshape(Self::float_sum_dim(rows, 1), [n_parameters].into());
        (Self::float_mask_fill(gradient, outside, 0.0.into()), parameter_gradient)
    }
}

/// `[channels]` to `[1, channels, 1, 1]`.
fn by_channel<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let channels = tensor.shape().num_elements();
    B::float_reshape(tensor, [1, channels, 1, 1].into())
}

/// Means, and deviations with `epsilon` added to the variance.
fn split_statistics<B: Backend>(
    statistics: FloatTensor<B>,
    epsilon: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let channels = statistics.shape().num_elements() / 2;
    let part = |first: usize| B::float_slice(statistics.clone(), &[Slice::from(first..first + channels)]);
    let deviation = B::float_sqrt(B::float_add_scalar(part(channels), epsilon.into()));
    (part(0), deviation)
}

fn normalized<B: Backend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    statistics: FloatTensor<B>,
    epsilon: f32,
) -> FloatTensor<B> {
    let (mean, deviation) = split_statistics::<B>(statistics, epsilon);
    let centered = B::float_sub(input, by_channel::<B>(mean));
    let scaled = B::float_mul(centered, by_channel::<B>(B::float_div(gamma, deviation)));
    B::float_add(scaled, by_channel::<B>(beta))
}

/// `[n]` to `[n, 1, ..., 1]` of `rank` dimensions.
fn along_first_axis<B: Backend>(parameter: FloatTensor<B>, rank: usize) -> FloatTensor<B> {
    let mut shape = vec![1; rank];
    shape[0] = parameter.shape().num_elements();
    B::float_reshape(parameter, shape.into())
}

fn differs<B: Backend>(a: FloatTensor<B>, b: FloatTensor<B>) -> BoolTensor<B> {
    // Backends store booleans differently: the device says how.
    let bool_dtype = get_or_init_device_settings::<B>(&a.device()).bool_dtype;
    B::float_not_equal(a, b, bool_dtype)
}

/// `clip(x, 0, a)`, exactly `a` where `x >= a`.
fn clipped_above<B: Backend>(x: FloatTensor<B>, clip_value: FloatTensor<B>) -> FloatTensor<B> {
    let bool_dtype = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
    let shape = x.shape();
    let wide = B::float_expand(clip_value, shape);
    let above = B::float_greater_equal(x.clone(), wide.clone(), bool_dtype);
    B::float_mask_where(B::float_clamp_min(x, 0.0.into()), above, wide)
}
