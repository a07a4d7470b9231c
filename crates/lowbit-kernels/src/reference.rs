//! The operations of an extended backend made of burn's own: what the kernels have to compute, and what runs where there is
//! none.

use burn::backend::tensor::{BoolTensor, FloatTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{IndexingUpdateOp, Slice};
use lowbit_cpu::fake_quantize::Grid;
use lowbit_cpu::weights::MaxGradient;

use crate::backend::{ActivationKind, KernelBackend};
use crate::reduce::{place_of_max, reduce_rows, sum_of_each};

pub(crate) fn conv2d<B: KernelBackend>(
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    B::conv2d(input, weight, None, options)
}

pub(crate) fn conv2d_input_gradient<B: KernelBackend>(
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    B::conv2d_x_backward(input, weight, gradient, options)
}

pub(crate) fn conv2d_weight_gradient<B: KernelBackend>(
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    options: ConvOptions<2>,
) -> FloatTensor<B> {
    B::conv2d_weight_backward(input, weight, gradient, options)
}

pub(crate) fn batch_statistics<B: KernelBackend>(input: FloatTensor<B>) -> FloatTensor<B> {
    let [batch, channels, height, width] = input.shape().dims();
    let n = batch * height * width;
    if n == 0 {
        return B::float_zeros([2 * channels].into(), &input.device(), input.dtype().into());
    }
    let rows = B::float_reshape(B::float_swap_dims(input, 0, 1), [channels, n].into());
    // The mean of means of equal parts.
    let mean_of = |rows| reduce_rows::<B>(rows, B::float_mean_dim);
    let mean = mean_of(rows.clone());
    let distance = B::float_sub(rows, B::float_reshape(mean.clone(), [channels, 1].into()));
    let variance = mean_of(B::float_mul(distance.clone(), distance));
    B::float_cat(vec![mean, variance], 0)
}

pub(crate) fn batch_norm<B: KernelBackend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    statistics: FloatTensor<B>,
    parameter: FloatTensor<B>,
    epsilon: f32,
    activation: ActivationKind,
) -> FloatTensor<B> {
    let before = normalized::<B>(input, gamma, beta, statistics, epsilon);
    match activation {
        ActivationKind::Identity => before,
        ActivationKind::Relu => B::float_clamp_min(before, 0.0.into()),
        ActivationKind::Unit { n } => B::lowbit_fake_quantize_unit(before, n),
        ActivationKind::Learned(grid) => B::lowbit_fake_quantize(before, parameter, grid),
    }
}

#[allow(clippy::too_many_arguments, reason = "what the forward pass had, and the gradient")]
pub(crate) fn batch_norm_gradients<B: KernelBackend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    statistics: FloatTensor<B>,
    parameter: FloatTensor<B>,
    gradient: FloatTensor<B>,
    epsilon: f32,
    activation: ActivationKind,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let [batch, channels, height, width] = input.shape().dims();
    let n = (batch * height * width) as f32;
    let before = || normalized::<B>(input.clone(), gamma.clone(), beta.clone(), statistics.clone(), epsilon);
    let none = || B::float_mul_scalar(beta.clone(), 0.0.into());
    let (gradient, parameter_gradient) = match activation {
        ActivationKind::Identity => (gradient, none()),
        ActivationKind::Relu => {
            let before = before();
            let bool_dtype = get_or_init_device_settings::<B>(&before.device()).bool_dtype;
            let blocked = B::float_lower_equal_elem(before, 0.0.into(), bool_dtype);
            (B::float_mask_fill(gradient, blocked, 0.0.into()), none())
        }
        ActivationKind::Unit { .. } => (B::lowbit_fake_quantize_unit_gradient(before(), gradient), none()),
        ActivationKind::Learned(grid) => {
            B::lowbit_fake_quantize_gradients(before(), parameter, gradient, grid)
        }
    };
    let (mean, deviation) = split_statistics::<B>(statistics, epsilon);
    let normal = B::float_div(B::float_sub(input, by_channel::<B>(mean)), by_channel::<B>(deviation.clone()));
    let sum = |tensor: FloatTensor<B>| {
        let rows =
            B::float_reshape(B::float_swap_dims(tensor, 0, 1), [channels, batch * height * width].into());
        reduce_rows::<B>(rows, B::float_sum_dim)
    };
    let beta_gradient = sum(gradient.clone());
    let gamma_gradient = sum(B::float_mul(gradient.clone(), normal.clone()));
    let mean_part = B::float_div_scalar(beta_gradient.clone(), n.into());
    let normal_part = B::float_div_scalar(gamma_gradient.clone(), n.into());
    let centered = B::float_sub(
        B::float_sub(gradient, by_channel::<B>(mean_part)),
        B::float_mul(normal, by_channel::<B>(normal_part)),
    );
    let factor = by_channel::<B>(B::float_div(gamma, deviation));
    (B::float_mul(centered, factor), gamma_gradient, beta_gradient, parameter_gradient)
}

pub(crate) fn tanh<B: KernelBackend>(w: FloatTensor<B>) -> FloatTensor<B> {
    B::float_tanh(w)
}

pub(crate) fn dorefa_grid<B: KernelBackend>(squashed: FloatTensor<B>, n: f32) -> FloatTensor<B> {
    let rank = squashed.shape().num_dims();
    let double_max = B::float_reshape(double_max::<B>(squashed.clone()), vec![1; rank].into());
    let z = B::float_add_scalar(B::float_div(squashed, double_max), 0.5.into());
    let code = B::float_round(B::float_mul_scalar(z, n.into()));
    let odd = B::float_sub_scalar(B::float_mul_scalar(code, 2.0.into()), n.into());
    B::float_div_scalar(odd, n.into())
}

pub(crate) fn dorefa_gradient<B: KernelBackend>(
    squashed: FloatTensor<B>,
    gradient: FloatTensor<B>,
    max_gradient: MaxGradient,
) -> FloatTensor<B> {
    let double_max = double_max::<B>(squashed.clone());
    let wide = B::float_reshape(double_max.clone(), vec![1; squashed.shape().num_dims()].into());
    let inner = B::float_div(B::float_mul_scalar(gradient.clone(), 2.0.into()), wide);
    let result = B::float_mul(inner, slope_of_tanh::<B>(squashed.clone()));
    match max_gradient {
        MaxGradient::Detached => result,
        MaxGradient::Differentiated => add_gradient_of_max::<B>(result, squashed, double_max, gradient),
    }
}

/// Adds to the gradient of the weights, at the first of the largest, what comes through the maximum that divides all.
pub(crate) fn add_gradient_of_max<B: KernelBackend>(
    result: FloatTensor<B>,
    squashed: FloatTensor<B>,
    double_max: FloatTensor<B>,
    gradient: FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = squashed.shape();
    let flat = |tensor: FloatTensor<B>| {
        let n = tensor.shape().num_elements();
        B::float_reshape(tensor, [n].into())
    };
    let [result, squashed, gradient] = [result, squashed, gradient].map(flat);
    let place = place_of_max::<B>(B::float_abs(squashed.clone()));
    let largest = B::float_gather(0, squashed.clone(), place.clone());
    let sum = sum_of_each::<B>(B::float_mul(gradient, squashed), 1);
    // Not by its square, which vanishes for the smallest weights.
    let through = B::float_div(B::float_mul_scalar(sum, (-4.0).into()), double_max.clone());
    let through = B::float_div(through, double_max);
    let through = B::float_mul(through, B::float_sign(largest.clone()));
    let through = B::float_mul(through, slope_of_tanh::<B>(largest));
    B::float_reshape(B::float_scatter(0, result, place, through, IndexingUpdateOp::Add), shape)
}

/// `1 - t^2`, the derivative of `t = tanh(w)`.
fn slope_of_tanh<B: Backend>(squashed: FloatTensor<B>) -> FloatTensor<B> {
    let square = B::float_mul(squashed.clone(), squashed);
    B::float_add_scalar(B::float_neg(square), 1.0.into())
}

pub(crate) fn fake_quantize_unit<B: KernelBackend>(x: FloatTensor<B>, n: f32) -> FloatTensor<B> {
    let grid = B::float_mul_scalar(B::float_clamp(x, 0.0.into(), 1.0.into()), n.into());
    B::float_div_scalar(B::float_round(grid), n.into())
}

pub(crate) fn fake_quantize_unit_gradient<B: KernelBackend>(
    x: FloatTensor<B>,
    gradient: FloatTensor<B>,
) -> FloatTensor<B> {
    let clipped = B::float_clamp(x.clone(), 0.0.into(), 1.0.into());
    let outside = differs::<B>(x, clipped);
    B::float_mask_fill(gradient, outside, 0.0.into())
}

pub(crate) fn fake_quantize<B: KernelBackend>(
    x: FloatTensor<B>,
    parameter: FloatTensor<B>,
    grid: Grid,
) -> FloatTensor<B> {
    let parameter = along_first_axis::<B>(parameter, x.shape().num_dims());
    match grid {
        Grid::Step { q_min, q_max } => {
            let clipped = B::float_clamp(B::float_div(x, parameter.clone()), q_min.into(), q_max.into());
            B::float_mul(B::float_round(clipped), parameter)
        }
        Grid::Clip { n } => {
            let clipped = clipped_above::<B>(x, parameter.clone());
            let scaled = B::float_mul_scalar(B::float_div(clipped, parameter.clone()), n.into());
            let rounded = B::float_div_scalar(B::float_round(scaled), n.into());
            B::float_mul(rounded, parameter)
        }
        Grid::Sign { .. } => {
            let bool_dtype = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
            let is_nan = B::float_is_nan(x.clone(), bool_dtype);
            B::float_mask_where(B::float_mul(sign::<B>(x.clone()), parameter), is_nan, x)
        }
    }
}

pub(crate) fn fake_quantize_gradients<B: KernelBackend>(
    x: FloatTensor<B>,
    parameter: FloatTensor<B>,
    gradient: FloatTensor<B>,
    grid: Grid,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let n_parameters = parameter.shape().num_elements();
    let wide = along_first_axis::<B>(parameter, x.shape().num_dims());
    let (outside, slope) = match grid {
        Grid::Step { q_min, q_max } => {
            let v = B::float_div(x, wide);
            let clipped = B::float_clamp(v.clone(), q_min.into(), q_max.into());
            let outside = is_not_between::<B>(v.clone(), q_min, q_max);
            let inner = B::float_mask_fill(v, outside.clone(), 0.0.into());
            (outside, B::float_sub(B::float_round(clipped), inner))
        }
        Grid::Clip { .. } => {
            let settings = get_or_init_device_settings::<B>(&x.device());
            let shape = x.shape();
            let above = B::float_greater_equal(x.clone(), B::float_expand(wide, shape), settings.bool_dtype);
            let zeros = B::float_zeros(x.shape(), &x.device(), x.dtype().into());
            let below = B::float_lower_elem(x, 0.0.into(), settings.bool_dtype);
            let slope = B::float_mask_fill(zeros, above.clone(), 1.0.into());
            (B::bool_or(above, below), slope)
        }
        Grid::Sign { is_bounded: false } => {
            let sign = sign::<B>(x);
            (differs::<B>(sign.clone(), sign.clone()), sign)
        }
        Grid::Sign { is_bounded: true } => {
            let v = B::float_div(x.clone(), wide);
            let outside = is_not_between::<B>(v.clone(), -1.0, 1.0);
            let inner = B::float_mask_fill(v, outside.clone(), 0.0.into());
            (outside, B::float_sub(sign::<B>(x), inner))
        }
    };
    let parameter_gradient = sum_of_each::<B>(B::float_mul(gradient.clone(), slope), n_parameters);
    (B::float_mask_fill(gradient, outside, 0.0.into()), parameter_gradient)
}

pub(crate) fn value_range<B: KernelBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let n = x.shape().num_elements();
    let row = B::float_reshape(x, [1, n].into());
    let min = B::float_clamp_max(reduce_rows::<B>(row.clone(), B::float_min_dim), 0.0.into());
    let max = B::float_clamp_min(reduce_rows::<B>(row, B::float_max_dim), 0.0.into());
    B::float_cat(vec![min, max], 0)
}

pub(crate) fn fake_quantize_affine<B: KernelBackend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    zero_point: FloatTensor<B>,
    n: f32,
) -> FloatTensor<B> {
    let [scale, zero_point] = [scale, zero_point].map(|p| along_first_axis::<B>(p, x.shape().num_dims()));
    let free = B::float_add(B::float_round(B::float_div(x, scale.clone())), zero_point.clone());
    let code = B::float_clamp(free, 0.0.into(), n.into());
    B::float_mul(B::float_sub(code, zero_point), scale)
}

pub(crate) fn fake_quantize_affine_gradient<B: KernelBackend>(
    x: FloatTensor<B>,
    scale: FloatTensor<B>,
    zero_point: FloatTensor<B>,
    gradient: FloatTensor<B>,
    n: f32,
) -> FloatTensor<B> {
    let [scale, zero_point] = [scale, zero_point].map(|p| along_first_axis::<B>(p, x.shape().num_dims()));
    let free = B::float_add(B::float_round(B::float_div(x, scale)), zero_point);
    let code = B::float_clamp(free.clone(), 0.0.into(), n.into());
    B::float_mask_fill(gradient, differs::<B>(free, code), 0.0.into())
}

/// -1 or 1; 1 at zero.
fn sign<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let bool_dtype = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
    let is_negative = B::float_lower_elem(x.clone(), 0.0.into(), bool_dtype);
    let ones = B::float_ones(x.shape(), &x.device(), x.dtype().into());
    B::float_mask_fill(ones, is_negative, (-1.0).into())
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

/// `2 max|t|`, `[1]`; 1 if all are zero, which puts every code in the middle of the grid.
pub(crate) fn double_max<B: Backend>(squashed: FloatTensor<B>) -> FloatTensor<B> {
    let n = squashed.shape().num_elements();
    let row = B::float_reshape(B::float_abs(squashed), [1, n].into());
    let max = reduce_rows::<B>(row, B::float_max_dim);
    let bool_dtype = get_or_init_device_settings::<B>(&max.device()).bool_dtype;
    let all_zero = B::float_equal_elem(max.clone(), 0.0.into(), bool_dtype);
    B::float_mask_fill(B::float_mul_scalar(max, 2.0.into()), all_zero, 1.0.into())
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

/// Whether not `low < x < high`; `NaN` is not.
fn is_not_between<B: Backend>(x: FloatTensor<B>, low: f32, high: f32) -> BoolTensor<B> {
    let bool_dtype = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
    let above = B::float_greater_elem(x.clone(), low.into(), bool_dtype);
    let below = B::float_lower_elem(x, high.into(), bool_dtype);
    B::bool_not(B::bool_and(above, below))
}

/// `clip(x, 0, a)`, exactly `a` where `x >= a`.
fn clipped_above<B: Backend>(x: FloatTensor<B>, clip_value: FloatTensor<B>) -> FloatTensor<B> {
    let bool_dtype = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
    let shape = x.shape();
    let wide = B::float_expand(clip_value, shape);
    let above = B::float_greater_equal(x.clone(), wide.clone(), bool_dtype);
    B::float_mask_where(B::float_clamp_min(x, 0.0.into()), above, wide)
}
