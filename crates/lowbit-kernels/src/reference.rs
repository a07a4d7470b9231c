//! The operations of an extended backend made of burn's own: what the kernels have to compute, and what runs where there is
//! none.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{IndexingUpdateOp, Slice};
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::program::{Op, Program};
use lowbit_cpu::weights::MaxGradient;

use crate::backend::{ActivationKind, CodedTensor, KernelBackend, MaxPool, SgdStep};
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

pub(crate) fn relu<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    B::relu(x)
}

pub(crate) fn relu_of_sum<B: Backend>(one: FloatTensor<B>, other: FloatTensor<B>) -> FloatTensor<B> {
    B::relu(B::float_add(one, other))
}

pub(crate) fn relu_gradient<B: Backend>(output: FloatTensor<B>, gradient: FloatTensor<B>) -> FloatTensor<B> {
    B::relu_backward(output, gradient)
}

pub(crate) fn max_pool2d<B: Backend>(input: FloatTensor<B>, options: MaxPool) -> FloatTensor<B> {
    let MaxPool { kernel, stride, padding } = options;
    B::max_pool2d(input, [kernel; 2], [stride; 2], [padding; 2], [1; 2], false)
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

pub(crate) fn moving_statistics<B: KernelBackend>(
    input: FloatTensor<B>,
    mean: FloatTensor<B>,
    variance: FloatTensor<B>,
    momentum: f64,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let channels = mean.shape().num_elements();
    let statistics = B::lowbit_batch_statistics(input);
    let moved = |running: FloatTensor<B>, first: usize| {
        let of_batch = B::float_slice(statistics.clone(), &[Slice::from(first..first + channels)]);
        let kept = B::float_mul_scalar(running, (1.0 - momentum).into());
        B::float_add(kept, B::float_mul_scalar(of_batch, momentum.into()))
    };
    let (mean, variance) = (moved(mean, 0), moved(variance, channels));
    (statistics, mean, variance)
}

pub(crate) fn batch_norm<B: KernelBackend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    statistics: FloatTensor<B>,
    parameters: FloatTensor<B>,
    epsilon: f32,
    activation: ActivationKind,
) -> CodedTensor<B> {
    let before = normalized::<B>(input, gamma, beta, statistics, epsilon);
    match activation {
        ActivationKind::Identity => CodedTensor::Values(before),
        ActivationKind::Relu => CodedTensor::Values(B::float_clamp_min(before, 0.0.into())),
        ActivationKind::Formula(formula, codes) => {
            B::lowbit_fake_quantize(before, parameters, formula, codes)
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "what the forward pass had, and the gradient")]
pub(crate) fn batch_norm_gradients<B: KernelBackend>(
    input: FloatTensor<B>,
    gamma: FloatTensor<B>,
    beta: FloatTensor<B>,
    statistics: FloatTensor<B>,
    parameters: FloatTensor<B>,
    gradient: FloatTensor<B>,
    epsilon: f32,
    activation: ActivationKind,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let [batch, channels, height, width] = input.shape().dims();
    let n = (batch * height * width) as f32;
    let before = || normalized::<B>(input.clone(), gamma.clone(), beta.clone(), statistics.clone(), epsilon);
    let none = || parameters.clone();
    let (gradient, parameters_gradient) = match activation {
        ActivationKind::Identity => (gradient, none()),
        ActivationKind::Relu => {
            let before = before();
            let bool_dtype = get_or_init_device_settings::<B>(&before.device()).bool_dtype;
            let blocked = B::float_lower_equal_elem(before, 0.0.into(), bool_dtype);
            (B::float_mask_fill(gradient, blocked, 0.0.into()), none())
        }
        ActivationKind::Formula(formula, _) => {
            B::lowbit_fake_quantize_gradients(before(), parameters, gradient, formula, true)
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
    (B::float_mul(centered, factor), gamma_gradient, beta_gradient, parameters_gradient)
}

pub(crate) fn cross_entropy<B: Backend>(logits: FloatTensor<B>, targets: FloatTensor<B>) -> FloatTensor<B> {
    let [batch, _] = logits.shape().dims();
    let product = B::float_mul(targets, B::log_softmax(logits, 1));
    B::float_div_scalar(B::float_sum(product), (-(batch as f64)).into())
}

pub(crate) fn sgd<B: Backend>(
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    velocity: FloatTensor<B>,
    step: SgdStep,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let gradient = match step.weight_decay {
        Some(decay) => B::float_add(B::float_mul_scalar(weight.clone(), decay.into()), gradient),
        None => gradient,
    };
    let (change, velocity) = match step.momentum {
        None => (gradient, velocity),
        Some(momentum) => {
            let velocity = match step.is_first {
                true => gradient.clone(),
                false => B::float_add(gradient.clone(), B::float_mul_scalar(velocity, momentum.into())),
            };
            let change = match step.is_nesterov {
                true => B::float_add(B::float_mul_scalar(velocity.clone(), momentum.into()), gradient),
                false => velocity.clone(),
            };
            (change, velocity)
        }
    };
    (B::float_sub(weight, B::float_mul_scalar(change, step.learning_rate.into())), velocity)
}

pub(crate) fn tanh<B: KernelBackend>(w: FloatTensor<B>) -> FloatTensor<B> {
    B::float_tanh(w)
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

pub(crate) fn fake_quantize<B: KernelBackend>(
    x: FloatTensor<B>,
    parameters: FloatTensor<B>,
    formula: &AnyFormula,
) -> FloatTensor<B> {
    // There is no gradient in a forward program.
    let mut results = run::<B>(&formula.forward_program(), formula, x.clone(), parameters, x);
    results.pop().expect("invariant: a program has a result")
}

pub(crate) fn fake_quantize_gradients<B: KernelBackend>(
    x: FloatTensor<B>,
    parameters: FloatTensor<B>,
    gradient: FloatTensor<B>,
    formula: &AnyFormula,
    wanted: bool,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let rows = formula.rows(parameters.shape().num_elements());
    let program = match wanted {
        true => formula.gradient_program(),
        false => formula.gradient_program().only_first(),
    };
    let mut results = run::<B>(&program, formula, x, parameters.clone(), gradient).into_iter();
    let of_x = results.next().expect("invariant: a gradient of the input");
    let of_parameters: Vec<_> = results.map(|part| sum_of_each::<B>(part, rows)).collect();
    match of_parameters.is_empty() {
        // Nobody asks for it.
        true => (of_x, parameters),
        false => (of_x, B::float_cat(of_parameters, 0)),
    }
}

/// Zeros of the shape of a tensor.
#[cfg(feature = "cube")]
pub(crate) fn zeros_like<B: Backend>(tensor: &FloatTensor<B>) -> FloatTensor<B> {
    B::float_zeros(tensor.shape(), &tensor.device(), tensor.dtype().into())
}

/// A number of a program: for all values, or one for each.
#[derive(Clone)]
enum Value<T> {
    Constant(f32),
    Tensor(T),
}

/// Runs a program by a backend's own operations; the results have the shape of `x`.
fn run<B: KernelBackend>(
    program: &Program,
    formula: &AnyFormula,
    x: FloatTensor<B>,
    parameters: FloatTensor<B>,
    gradient: FloatTensor<B>,
) -> Vec<FloatTensor<B>> {
    let shape = x.shape();
    let bool_dtype = get_or_init_device_settings::<B>(&x.device()).bool_dtype;
    let full = |value: &Value<FloatTensor<B>>| match value {
        Value::Tensor(tensor) => tensor.clone(),
        Value::Constant(constant) => {
            B::float_full(shape.clone(), (*constant).into(), &x.device(), x.dtype().into())
        }
    };
    let parameter = |i: usize| {
        let n_rows = formula.rows(parameters.shape().num_elements());
        let of_rows = B::float_slice(parameters.clone(), &[Slice::from(i * n_rows..(i + 1) * n_rows)]);
        B::float_expand(along_first_axis::<B>(of_rows, shape.num_dims()), shape.clone())
    };
    let mut values: Vec<Value<FloatTensor<B>>> = Vec::with_capacity(program.ops.len());
    for op in &program.ops {
        let at = |place: usize| &values[place];
        let value = match *op {
            Op::Input => Value::Tensor(x.clone()),
            Op::Gradient => Value::Tensor(gradient.clone()),
            Op::Parameter(i) => Value::Tensor(parameter(i)),
            Op::Constant(bits) => Value::Constant(f32::from_bits(bits)),
            Op::Add([a, b]) => Value::Tensor(match (at(a), at(b)) {
                (Value::Tensor(a), Value::Constant(b)) => B::float_add_scalar(a.clone(), (*b).into()),
                (a, b) => B::float_add(full(a), full(b)),
            }),
            Op::Subtract([a, b]) => Value::Tensor(match (at(a), at(b)) {
                (Value::Tensor(a), Value::Constant(b)) => B::float_sub_scalar(a.clone(), (*b).into()),
                (a, b) => B::float_sub(full(a), full(b)),
            }),
            Op::Multiply([a, b]) => Value::Tensor(match (at(a), at(b)) {
                (Value::Tensor(a), Value::Constant(b)) => B::float_mul_scalar(a.clone(), (*b).into()),
                (a, b) => B::float_mul(full(a), full(b)),
            }),
            Op::Divide([a, b]) => Value::Tensor(match (at(a), at(b)) {
                (Value::Tensor(a), Value::Constant(b)) => B::float_div_scalar(a.clone(), (*b).into()),
                (a, b) => B::float_div(full(a), full(b)),
            }),
            Op::Round(a) => Value::Tensor(B::float_round(full(at(a)))),
            Op::IfLower([a, b, then, otherwise]) | Op::IfAtMost([a, b, then, otherwise]) => {
                let is_strict = matches!(op, Op::IfLower(_));
                let condition = match (at(a), at(b)) {
                    (Value::Tensor(a), Value::Constant(b)) if is_strict => {
                        B::float_lower_elem(a.clone(), (*b).into(), bool_dtype)
                    }
                    (Value::Tensor(a), Value::Constant(b)) => {
                        B::float_lower_equal_elem(a.clone(), (*b).into(), bool_dtype)
                    }
                    (Value::Constant(a), Value::Tensor(b)) if is_strict => {
                        B::float_greater_elem(b.clone(), (*a).into(), bool_dtype)
                    }
                    (Value::Constant(a), Value::Tensor(b)) => {
                        B::float_greater_equal_elem(b.clone(), (*a).into(), bool_dtype)
                    }
                    (a, b) if is_strict => B::float_lower(full(a), full(b), bool_dtype),
                    (a, b) => B::float_lower_equal(full(a), full(b), bool_dtype),
                };
                Value::Tensor(match (at(then), at(otherwise)) {
                    (Value::Constant(then), otherwise) => {
                        B::float_mask_fill(full(otherwise), condition, (*then).into())
                    }
                    (then, otherwise) => B::float_mask_where(full(otherwise), condition, full(then)),
                })
            }
        };
        values.push(value);
    }
    program.outputs.iter().map(|&place| full(&values[place])).collect()
}

pub(crate) fn value_range<B: KernelBackend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let n = x.shape().num_elements();
    let row = B::float_reshape(x, [1, n].into());
    let min = B::float_clamp_max(reduce_rows::<B>(row.clone(), B::float_min_dim), 0.0.into());
    let max = B::float_clamp_min(reduce_rows::<B>(row, B::float_max_dim), 0.0.into());
    B::float_cat(vec![min, max], 0)
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

/// `2 max|t|`, `[1]`; 1 if all are zero, which puts every code of DoReFa in the middle of its grid.
pub(crate) fn double_max<B: Backend>(squashed: FloatTensor<B>) -> FloatTensor<B> {
    let n = squashed.shape().num_elements();
    if n == 0 {
        return B::float_ones([1].into(), &squashed.device(), squashed.dtype().into());
    }
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
