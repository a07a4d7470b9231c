//! Operations on GPUs, through CubeCL: fake quantization by any formula, one kernel forward and one backward, DoReFa's weights, the
//! normalization with its activation, the gradient of a convolution's weights, and what the optimizer does to a tensor. A step is few
//! launches: each takes the host as long as a small kernel takes the device.
//!
//! All sums here are in a fixed order: the same card computes the same bits in every run. burn's sum of a whole tensor, which is not, is left
//! where only a report reads it: the loss of a distillation.
//!
//! A formula's [`Program`] is written into the kernel operation by operation, and codes are those of the CPU: a quotient is the
//! float nearest to the exact one, which Vulkan and WebGPU do not promise. (A GPU may take subnormal numbers for zero, and its tanh
//! may differ in the last digit.) Values may be an ulp off where a driver contracts a product and a difference. The sum of a
//! parameter's gradient is burn's.

#![allow(clippy::needless_range_loop, reason = "loops of a kernel are over numbers")]

mod dorefa;
mod elementwise;
mod layout;
mod loss;
mod norm;
mod sum;
mod weight_gradient;

use std::ops::RangeInclusive;

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, cubecl};
use cubecl::calculate_cube_count_elemwise;
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::program::{Op, Program};
use lowbit_cpu::weights::MaxGradient;

use self::layout::Layout;
use self::norm::{Normalization, Running};
use self::weight_gradient::weight_gradient;
use crate::backend::{ActivationKind, CodedTensor, KeepCodes, KernelBackend, SgdStep};
use crate::reduce::sum_of_each;
use crate::reference;

/// The significand of a normal number as an integer of 24 bits.
#[cube]
fn significand<N: Size>(bits: Vector<u32, N>) -> Vector<u32, N> {
    (bits & Vector::new(0x007f_ffff)) | Vector::new(0x0080_0000)
}

/// The exponent of a number as it is stored: 0 of zero and subnormal numbers, 255 of infinity and `NaN`.
#[cube]
fn exponent<N: Size>(bits: Vector<u32, N>) -> Vector<u32, N> {
    (bits >> Vector::new(23)) & Vector::new(0xff)
}

/// 1 where `a > b`, else 0.
#[cube]
fn is_above<N: Size>(a: Vector<u32, N>, b: Vector<u32, N>) -> Vector<u32, N> {
    select_many(a.greater_than(&b), Vector::new(1u32), Vector::new(0u32))
}

/// The bits of the float nearest to `x / s` from those of one, `q`, that is a few ulp off: it is moved by as many ulp as the
/// remainder says, beyond a power of two by too few or too many: a second time puts that right. All in integers, as compilers
/// rearrange floats.
#[cube]
fn nearer<N: Size>(x: Vector<u32, N>, q: Vector<u32, N>, s: Vector<u32, N>) -> Vector<u32, N> {
    let (x_exponent, q_exponent, s_exponent) = (exponent(x), exponent(q), exponent(s));
    // In units of the last places of the quotient and of `s`, modulo 2^32, the remainder is `x 2^shift - q s`. It lies between
    // -4 and 6 times `s`: beyond a power of two an ulp counts twice. Four are added so that it is positive.
    let unit = significand(s);
    let shift = x_exponent + Vector::new(150) - q_exponent - s_exponent;
    let x_aligned = significand(x) << (shift & Vector::new(31));
    let remainder = x_aligned - significand(q) * unit + unit * Vector::new(4);
    let twice = remainder * Vector::new(2);
    let up = is_above(twice, unit * Vector::new(9))
        + is_above(twice, unit * Vector::new(11))
        + is_above(twice, unit * Vector::new(13))
        + is_above(twice, unit * Vector::new(15))
        + is_above(twice, unit * Vector::new(17));
    // Below a power of two, floats are half as far apart.
    let none = Vector::new(0u32);
    let is_power = (q & Vector::new(0x007f_ffff)).equal(&none);
    let down_by_one = select_many(
        is_power,
        is_above(unit * Vector::new(15), twice * Vector::new(2)),
        is_above(unit * Vector::new(7), twice),
    );
    let down = down_by_one + is_above(unit * Vector::new(5), twice) + is_above(unit * Vector::new(3), twice);
    let is_normal = x_exponent
        .greater_than(&none)
        .vec_and(q_exponent.greater_than(&none))
        .vec_and(s_exponent.greater_than(&none))
        .vec_and(q_exponent.less_than(&Vector::new(255)));
    let is_near = shift.less_than(&Vector::new(32)).vec_and(remainder.less_equal(&(unit * Vector::new(10))));
    select_many(is_normal.vec_and(is_near), q + up - down, q)
}

/// The float nearest to `x / s`, where a device's own quotient may be 2.5 ulp off, as Vulkan and WebGPU allow. Quotients of or
/// by what is zero, subnormal, infinite or `NaN` are left as they are, and those of 16 bits.
#[cube]
fn quotient<F: Float, N: Size>(x: Vector<F, N>, s: Vector<F, N>) -> Vector<F, N> {
    let near = x / s;
    let size = F::size_bits().comptime();
    if comptime!(size == 32) {
        let (x, s) = (Vector::<u32, N>::reinterpret(x), Vector::<u32, N>::reinterpret(s));
        let q = Vector::<u32, N>::reinterpret(near);
        Vector::<F, N>::reinterpret(nearer(x, nearer(x, q, s), s))
    } else {
        near
    }
}

/// How many parameters a program reads, but for those behind the last of them.
fn n_parameters(program: &Program) -> usize {
    let places = program.ops.iter().map(|op| if let Op::Parameter(i) = op { i + 1 } else { 0 });
    places.max().unwrap_or(0)
}

/// The parameters of a row: there are the first parameter of every row, then the second of every row, and so on.
#[cube]
fn parameters_of<F: Float, N: Size>(
    parameters: &LinearView<'_, F>,
    row: usize,
    n_rows: usize,
    #[comptime] program: Program,
) -> Sequence<Vector<F, N>> {
    let mut values = Sequence::<Vector<F, N>>::new();
    let n = comptime!(n_parameters(&program));
    #[unroll]
    for i in 0..n {
        values.push(Vector::new(parameters.read(i * n_rows + row)));
    }
    values
}

/// Runs a program on a vector of values. The results are those of all operations, in order.
#[cube]
fn run<F: Float, N: Size>(
    x: Vector<F, N>,
    gradient: Vector<F, N>,
    parameters: &Sequence<Vector<F, N>>,
    #[comptime] program: Program,
) -> Sequence<Vector<F, N>> {
    let mut values = Sequence::<Vector<F, N>>::new();
    #[unroll]
    for place in 0..program.ops.len() {
        let op = program.ops[place];
        match op {
            Op::Input => values.push(x),
            Op::Gradient => values.push(gradient),
            Op::Parameter(i) => values.push(*parameters.index(i)),
            Op::Constant(bits) => values.push(Vector::new(F::new(comptime!(f32::from_bits(bits))))),
            Op::Add(places) => {
                let sum = *values.index(places[0]) + *values.index(places[1]);
                values.push(sum);
            }
            Op::Subtract(places) => {
                let difference = *values.index(places[0]) - *values.index(places[1]);
                values.push(difference);
            }
            Op::Multiply(places) => {
                let product = *values.index(places[0]) * *values.index(places[1]);
                values.push(product);
            }
            Op::Divide(places) => {
                let ratio = quotient(*values.index(places[0]), *values.index(places[1]));
                values.push(ratio);
            }
            Op::Round(place) => {
                let rounded = Vector::round(*values.index(place));
                values.push(rounded);
            }
            Op::IfLower(places) => {
                let is_lower = values.index(places[0]).less_than(values.index(places[1]));
                let chosen = select_many(is_lower, *values.index(places[2]), *values.index(places[3]));
                values.push(chosen);
            }
            Op::IfAtMost(places) => {
                let is_at_most = values.index(places[0]).less_equal(values.index(places[1]));
                let chosen = select_many(is_at_most, *values.index(places[2]), *values.index(places[3]));
                values.push(chosen);
            }
        }
    }
    values
}

/// `parameters` has values for each `row` vectors of `x`.
#[cube(launch, address_type = "dynamic")]
fn formula_forward<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    row: usize,
    n_rows: usize,
    #[comptime] program: Program,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let x = x.read(ABSOLUTE_POS);
    let result = comptime!(program.outputs[0]);
    let parameters = parameters_of::<F, N>(&parameters, ABSOLUTE_POS / row, n_rows, program.clone());
    let values = run::<F, N>(x, x, &parameters, program);
    y.write(ABSOLUTE_POS, *values.index(result));
}

/// Writes the gradient of `x`, and of each parameter what is to be added up: `n` vectors of the first, then as many of the second,
/// and so on.
#[cube(launch, address_type = "dynamic")]
fn formula_gradients<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    mut parts: LinearViewMut<'_, Vector<F, N>>,
    row: usize,
    n_rows: usize,
    #[comptime] program: Program,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (x, gradient) = (x.read(ABSOLUTE_POS), gradient.read(ABSOLUTE_POS));
    let outputs = comptime!(program.outputs.clone());
    let parameters = parameters_of::<F, N>(&parameters, ABSOLUTE_POS / row, n_rows, program.clone());
    let values = run::<F, N>(x, gradient, &parameters, program);
    dx.write(ABSOLUTE_POS, *values.index(outputs[0]));
    #[unroll]
    for i in 1..outputs.len() {
        let place = (i - 1) * n_rows * row + ABSOLUTE_POS;
        parts.write(place, *values.index(outputs[i]));
    }
}

#[cube(launch, address_type = "dynamic")]
fn quotients<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    s: LinearView<'_, Vector<F, N>>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    y.write(ABSOLUTE_POS, quotient(x.read(ABSOLUTE_POS), s.read(ABSOLUTE_POS)));
}

/// How a kernel is launched on a contiguous tensor whose rows of equal length have a parameter each.
struct Launch {
    client: Client,
    count: CubeCount,
    dim: CubeDim,
    address: AddressType,
    /// Elements in a vector; divides a row.
    vector: VectorSize,
    /// Vectors in a row.
    row: usize,
    dtype: ElemType,
}

impl Launch {
    fn new(x: &CubeTensor, n_parameters: usize) -> Self {
        let (n, client) = (x.shape().num_elements(), &x.client);
        assert!(
            n_parameters > 0 && n.is_multiple_of(n_parameters),
            "{n_parameters} parameters for {n} values"
        );
        let row = n / n_parameters;
        let vector = client.io_optimized_vector_sizes(x.dtype.size()).find(|size| row.is_multiple_of(*size));
        let vector = vector.unwrap_or(1);
        let dim = CubeDim::new(client, n / vector);
        Self {
            count: calculate_cube_count_elemwise(client, n / vector, dim),
            client: client.clone(),
            dim,
            address: x.required_address_type(),
            vector,
            row: row / vector,
            dtype: elem_type(x.dtype),
        }
    }
}

/// Launches a kernel on contiguous tensors, the first of which, unless it is empty, says how: `launch!(kernel[inputs and outputs],
/// other arguments)`; with `per_row(n_parameters)` before the other arguments the kernel takes the vectors in a row first.
macro_rules! launch {
    ($kernel:ident[$first:ident $(, $tensor:ident)*], per_row($n_parameters:expr) $(, $argument:expr)*) => {
        if $first.shape().num_elements() > 0 {
            let Launch { client, count, dim, address, vector, row, dtype } = Launch::new(&$first, $n_parameters);
            $kernel::launch(
                &client, count, dim, address, vector, $first.clone().into_linear_view(),
                $($tensor.clone().into_linear_view(),)* row, $($argument,)* dtype,
            );
        }
    };
    ($kernel:ident[$first:ident $(, $tensor:ident)*] $(, $argument:expr)*) => {
        if $first.shape().num_elements() > 0 {
            let Launch { client, count, dim, address, vector, dtype, .. } = Launch::new(&$first, 1);
            $kernel::launch(
                &client, count, dim, address, vector, $first.clone().into_linear_view(),
                $($tensor.clone().into_linear_view(),)* $($argument,)* dtype,
            );
        }
    };
}

fn elem_type(dtype: DType) -> ElemType {
    ElemType::Float(match dtype {
        DType::F16 => FloatKind::F16,
        DType::BF16 => FloatKind::BF16,
        DType::F32 => FloatKind::F32,
        other => panic!("kernels take floats of 16 or 32 bits, got {other:?}"),
    })
}

/// An uninitialized contiguous tensor of the shape of `x`.
fn empty_like(x: &CubeTensor) -> CubeTensor {
    empty_of(x, x.shape())
}

/// An uninitialized contiguous tensor beside `x`.
fn empty<const D: usize>(x: &CubeTensor, shape: [usize; D]) -> CubeTensor {
    empty_of(x, shape.into())
}

fn empty_of(x: &CubeTensor, shape: Shape) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), shape, x.dtype)
}

/// Room for `n` places in a tensor beside `x`.
fn places(x: &CubeTensor, n: usize) -> CubeTensor {
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), [n].into(), DType::U32)
}

/// The layout in which a formula can go over `x`: with parameters for each row, that of the rows.
fn layout_for(x: &CubeTensor, parameters: &CubeTensor, formula: &AnyFormula) -> Layout {
    match formula.n_parameters() > 0 && formula.rows(parameters.shape().num_elements()) > 1 {
        true => Layout::Rows,
        false => Layout::of(x),
    }
}

/// The parameters of a formula, or `x` in their place if it has none, and how many rows there are.
fn parameters_or(parameters: CubeTensor, x: &CubeTensor, formula: &AnyFormula) -> (CubeTensor, usize) {
    match formula.n_parameters() {
        0 => (x.clone(), 1),
        _ => {
            let parameters = into_contiguous(parameters);
            let n_rows = formula.rows(parameters.shape().num_elements());
            (parameters, n_rows)
        }
    }
}

impl KeepCodes for CubeBackend {
    fn lowbit_cross_entropy_kept(
        logits: &FloatTensor<Self>,
        targets: &FloatTensor<Self>,
    ) -> Option<(FloatTensor<Self>, FloatTensor<Self>)> {
        let [batch, classes] = logits.shape().dims();
        let fits = classes > 0 && (1..=loss::MOST_IMAGES).contains(&batch);
        fits.then(|| loss::cross_entropy(logits.clone(), targets.clone()))
    }
}

pub(crate) use elementwise::sgd_together;

impl KernelBackend for CubeBackend {
    fn lowbit_conv2d_weight_gradient(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        let is_empty = gradient.shape().num_elements() == 0;
        if options.groups > 1 || options.dilation != [1, 1] || is_empty {
            return reference::conv2d_weight_gradient::<Self>(input, weight, gradient, options);
        }
        weight_gradient(input, &weight, gradient, &options)
    }

    fn lowbit_relu_of_sum(one: FloatTensor<Self>, other: FloatTensor<Self>) -> FloatTensor<Self> {
        match one.shape().num_elements() {
            0 => one,
            _ => elementwise::relu_of_sum(one, other),
        }
    }

    fn lowbit_relu_gradient(output: FloatTensor<Self>, gradient: FloatTensor<Self>) -> FloatTensor<Self> {
        match output.shape().num_elements() {
            0 => gradient,
            _ => elementwise::relu_gradient(output, gradient),
        }
    }

    fn lowbit_batch_statistics(input: FloatTensor<Self>) -> FloatTensor<Self> {
        if input.shape().num_elements() == 0 {
            return reference::batch_statistics::<Self>(input);
        }
        norm::statistics(input, None).0
    }

    fn lowbit_moving_statistics(
        input: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        momentum: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if input.shape().num_elements() == 0 {
            return reference::moving_statistics::<Self>(input, mean, variance, momentum);
        }
        let [mean, variance] = [mean, variance].map(into_contiguous);
        let (statistics, [mean, variance]) =
            norm::statistics(input, Some(&Running { mean, variance, momentum }));
        (statistics, mean, variance)
    }

    fn lowbit_batch_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        epsilon: f32,
        activation: ActivationKind,
    ) -> CodedTensor<Self> {
        if input.shape().num_elements() == 0 {
            return CodedTensor::Values(input);
        }
        let [gamma, beta, statistics, parameters] =
            [gamma, beta, statistics, parameters].map(into_contiguous);
        let normalization = Normalization { input, gamma, beta, statistics, parameters, epsilon, activation };
        CodedTensor::Values(normalization.forward())
    }

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
        if input.shape().num_elements() == 0 {
            return reference::batch_norm_gradients::<Self>(
                input, gamma, beta, statistics, parameters, gradient, epsilon, activation,
            );
        }
        let [gamma, beta, statistics, parameters] =
            [gamma, beta, statistics, parameters].map(into_contiguous);
        let normalization = Normalization { input, gamma, beta, statistics, parameters, epsilon, activation };
        normalization.gradients(gradient)
    }

    fn lowbit_sgd(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        step: SgdStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        match weight.shape().num_elements() {
            0 => (weight, velocity),
            _ => elementwise::sgd(weight, gradient, velocity, step),
        }
    }

    fn lowbit_quotient(x: FloatTensor<Self>, s: FloatTensor<Self>) -> FloatTensor<Self> {
        let [x, s] = [x, s].map(into_contiguous);
        let y = empty_like(&x);
        launch!(quotients[x, s, y]);
        y
    }

    fn lowbit_dorefa_weights(
        w: FloatTensor<Self>,
        formula: AnyFormula,
        _: Option<RangeInclusive<i32>>,
        _: MaxGradient,
    ) -> CodedTensor<Self> {
        CodedTensor::Values(match w.shape().num_elements() {
            0 => w,
            _ => dorefa::forward(w, formula.forward_program()),
        })
    }

    fn lowbit_dorefa_weights_gradient(
        w: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        max_gradient: MaxGradient,
    ) -> FloatTensor<Self> {
        match w.shape().num_elements() {
            0 => gradient,
            _ => dorefa::gradient(w, gradient, max_gradient),
        }
    }

    fn lowbit_fake_quantize(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        formula: AnyFormula,
        _: Option<RangeInclusive<i32>>,
    ) -> CodedTensor<Self> {
        let layout = layout_for(&x, &parameters, &formula);
        let x = layout.open(x);
        let (parameters, n_rows) = parameters_or(parameters, &x, &formula);
        let y = empty_like(&x);
        launch!(formula_forward[x, parameters, y], per_row(n_rows), n_rows, formula.forward_program());
        CodedTensor::Values(layout.close(y))
    }

    fn lowbit_fake_quantize_gradients(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        formula: AnyFormula,
        wanted: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let layout = layout_for(&x, &parameters, &formula);
        let [x, gradient] = [x, gradient].map(|x| layout.open(x));
        let (parameters, n_rows) = parameters_or(parameters, &x, &formula);
        let n_parameters = if wanted { formula.n_parameters() } else { 0 };
        let dx = empty_like(&x);
        // Without parameters that are asked for nothing is written to it, but it has to hold a vector.
        let n_parts = match n_parameters {
            0 => 64,
            _ => n_parameters * x.shape().num_elements(),
        };
        let parts =
            empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), [n_parts].into(), x.dtype);
        let program = match n_parameters {
            0 => formula.gradient_program().only_first(),
            _ => formula.gradient_program(),
        };
        launch!(formula_gradients[x, parameters, gradient, dx, parts], per_row(n_rows), n_rows, program);
        let dx = layout.close(dx);
        match n_parameters {
            // Nobody asks for it.
            0 => (dx, parameters),
            _ if dx.shape().num_elements() == 0 => (dx, reference::zeros_like::<Self>(&parameters)),
            _ => (dx, sum_of_each::<Self>(parts, n_parameters * n_rows)),
        }
    }
}
