//! Operations on GPUs, through CubeCL: fake quantization, one kernel forward and one backward, and the gradient of a
//! convolution's weights.
//!
//! The formulas are those of [`lowbit_cpu::activation`], operation by operation, and codes are those of the CPU: a quotient that
//! is rounded is the float nearest to the exact one, which Vulkan and WebGPU do not promise. (A GPU may take subnormal numbers for
//! zero, and its tanh may differ in the last digit.) Values may be an ulp off where a driver contracts a product and a difference.
//! The sum of a parameter's gradient is burn's.

mod weight_gradient;

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn::tensor::ops::ConvOptions;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, cubecl};
use cubecl::calculate_cube_count_elemwise;
use cubecl::client::Client;
use cubecl::ir::{ElemType, FloatKind};
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};
use lowbit_cpu::fake_quantize::Grid;
use lowbit_cpu::weights::MaxGradient;

use self::weight_gradient::weight_gradient;
use crate::backend::{KeepCodes, KernelBackend};
use crate::reduce::sum_of_each;
use crate::reference;

/// `clip(x, low, high)`; `NaN` stays.
#[cube]
fn clip<F: Float, N: Size>(x: Vector<F, N>, low: Vector<F, N>, high: Vector<F, N>) -> Vector<F, N> {
    let x = select_many(x.less_than(&low), low, x);
    select_many(x.greater_than(&high), high, x)
}

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

/// Whether `low <= x <= high`.
#[cube]
fn is_within<F: Float, N: Size>(x: Vector<F, N>, low: Vector<F, N>, high: Vector<F, N>) -> Vector<bool, N> {
    x.greater_equal(&low).vec_and(x.less_equal(&high))
}

/// Whether `low < x < high`.
#[cube]
fn is_between<F: Float, N: Size>(x: Vector<F, N>, low: Vector<F, N>, high: Vector<F, N>) -> Vector<bool, N> {
    x.greater_than(&low).vec_and(x.less_than(&high))
}

#[cube(launch, address_type = "dynamic")]
fn unit<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    n_steps: InputScalar,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let n = Vector::new(n_steps.get::<F>());
    let (zero, one) = (Vector::new(F::new(0.0)), Vector::new(F::new(1.0)));
    let clipped = clip(x.read(ABSOLUTE_POS), zero, one);
    y.write(ABSOLUTE_POS, Vector::round(clipped * n) / n);
}

#[cube(launch, address_type = "dynamic")]
fn unit_gradient<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (zero, one) = (Vector::new(F::new(0.0)), Vector::new(F::new(1.0)));
    let passes = is_within(x.read(ABSOLUTE_POS), zero, one);
    dx.write(ABSOLUTE_POS, select_many(passes, gradient.read(ABSOLUTE_POS), zero));
}

/// `parameters` has one value for each `row` vectors of `x`.
#[cube(launch, address_type = "dynamic")]
fn step<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    row: usize,
    q_min: InputScalar,
    q_max: InputScalar,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let step_size = Vector::new(parameters.read(ABSOLUTE_POS / row));
    let (q_min, q_max) = (Vector::new(q_min.get::<F>()), Vector::new(q_max.get::<F>()));
    let clipped = clip(quotient(x.read(ABSOLUTE_POS), step_size), q_min, q_max);
    y.write(ABSOLUTE_POS, Vector::round(clipped) * step_size);
}

/// Writes the gradient of `x`, and of the parameter what is to be added up.
#[cube(launch, address_type = "dynamic")]
fn step_gradients<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    mut parts: LinearViewMut<'_, Vector<F, N>>,
    row: usize,
    q_min: InputScalar,
    q_max: InputScalar,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let step_size = Vector::new(parameters.read(ABSOLUTE_POS / row));
    let (q_min, q_max) = (Vector::new(q_min.get::<F>()), Vector::new(q_max.get::<F>()));
    let (v, gradient) = (quotient(x.read(ABSOLUTE_POS), step_size), gradient.read(ABSOLUTE_POS));
    let zero = Vector::new(F::new(0.0));
    let passes = is_between(v, q_min, q_max);
    let slope = Vector::round(clip(v, q_min, q_max)) - select_many(passes, v, zero);
    dx.write(ABSOLUTE_POS, select_many(passes, gradient, zero));
    parts.write(ABSOLUTE_POS, gradient * slope);
}

#[cube(launch, address_type = "dynamic")]
fn clip_value<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    row: usize,
    n_steps: InputScalar,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let bound = Vector::new(parameters.read(ABSOLUTE_POS / row));
    let n = Vector::new(n_steps.get::<F>());
    let clipped = clip(x.read(ABSOLUTE_POS), Vector::new(F::new(0.0)), bound);
    y.write(ABSOLUTE_POS, Vector::round(quotient(clipped, bound) * n) / n * bound);
}

/// As [`step_gradients`].
#[cube(launch, address_type = "dynamic")]
fn clip_value_gradients<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    mut parts: LinearViewMut<'_, Vector<F, N>>,
    row: usize,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let bound = Vector::new(parameters.read(ABSOLUTE_POS / row));
    let (x, gradient) = (x.read(ABSOLUTE_POS), gradient.read(ABSOLUTE_POS));
    let zero = Vector::new(F::new(0.0));
    let passes = x.greater_equal(&zero).vec_and(x.less_than(&bound));
    dx.write(ABSOLUTE_POS, select_many(passes, gradient, zero));
    parts.write(ABSOLUTE_POS, select_many(x.greater_equal(&bound), gradient, zero));
}

#[cube(launch, address_type = "dynamic")]
fn sign<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    row: usize,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let scale = Vector::new(parameters.read(ABSOLUTE_POS / row));
    let x = x.read(ABSOLUTE_POS);
    let zero = Vector::new(F::new(0.0));
    let value = select_many(x.less_than(&zero), zero - scale, scale);
    // NaN, which does not equal itself, stays.
    y.write(ABSOLUTE_POS, select_many(x.equal(&x), value, x));
}

/// As [`step_gradients`].
#[cube(launch, address_type = "dynamic")]
fn sign_gradients<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    mut parts: LinearViewMut<'_, Vector<F, N>>,
    row: usize,
    #[comptime] is_bounded: bool,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (x, gradient) = (x.read(ABSOLUTE_POS), gradient.read(ABSOLUTE_POS));
    let (zero, one) = (Vector::new(F::new(0.0)), Vector::new(F::new(1.0)));
    let sign = select_many(x.less_than(&zero), zero - one, one);
    if comptime!(is_bounded) {
        let v = quotient(x, Vector::new(parameters.read(ABSOLUTE_POS / row)));
        let passes = is_between(v, zero - one, one);
        dx.write(ABSOLUTE_POS, select_many(passes, gradient, zero));
        parts.write(ABSOLUTE_POS, gradient * (sign - select_many(passes, v, zero)));
    } else {
        dx.write(ABSOLUTE_POS, gradient);
        parts.write(ABSOLUTE_POS, gradient * sign);
    }
}

#[cube(launch, address_type = "dynamic")]
fn affine<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    scale: LinearView<'_, F>,
    zero_point: LinearView<'_, F>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    n_steps: InputScalar,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (scale, zero_point) = (Vector::new(scale.read(0)), Vector::new(zero_point.read(0)));
    let code = Vector::round(quotient(x.read(ABSOLUTE_POS), scale)) + zero_point;
    let clipped = clip(code, Vector::new(F::new(0.0)), Vector::new(n_steps.get::<F>()));
    y.write(ABSOLUTE_POS, (clipped - zero_point) * scale);
}

#[cube(launch, address_type = "dynamic")]
fn affine_gradient<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    scale: LinearView<'_, F>,
    zero_point: LinearView<'_, F>,
    gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    n_steps: InputScalar,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (scale, zero_point) = (Vector::new(scale.read(0)), Vector::new(zero_point.read(0)));
    let code = Vector::round(quotient(x.read(ABSOLUTE_POS), scale)) + zero_point;
    let zero = Vector::new(F::new(0.0));
    let passes = is_within(code, zero, Vector::new(n_steps.get::<F>()));
    dx.write(ABSOLUTE_POS, select_many(passes, gradient.read(ABSOLUTE_POS), zero));
}

/// The weights of DoReFa from their hyperbolic tangents; `double_max` is twice the largest of these.
#[cube(launch, address_type = "dynamic")]
fn dorefa_grid<F: Float, N: Size>(
    squashed: LinearView<'_, Vector<F, N>>,
    double_max: LinearView<'_, F>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    n_steps: InputScalar,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (double_max, n) = (Vector::new(double_max.read(0)), Vector::new(n_steps.get::<F>()));
    let z = quotient(squashed.read(ABSOLUTE_POS), double_max) + Vector::new(F::new(0.5));
    let code = Vector::round(z * n);
    y.write(ABSOLUTE_POS, (code * Vector::new(F::new(2.0)) - n) / n);
}

/// The gradient of the weights, but for what comes through the maximum.
#[cube(launch, address_type = "dynamic")]
fn dorefa_gradient<F: Float, N: Size>(
    squashed: LinearView<'_, Vector<F, N>>,
    double_max: LinearView<'_, F>,
    gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (one, two) = (Vector::new(F::new(1.0)), Vector::new(F::new(2.0)));
    let t = squashed.read(ABSOLUTE_POS);
    let inner = gradient.read(ABSOLUTE_POS) * two / Vector::new(double_max.read(0));
    dx.write(ABSOLUTE_POS, inner * (one - t * t));
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

fn scalar(value: f32, like: &CubeTensor) -> InputScalar {
    InputScalar::new(value, elem_type(like.dtype))
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
    empty_device_contiguous_dtype(x.client.clone(), x.device.clone(), x.shape(), x.dtype)
}

impl KeepCodes for CubeBackend {}

impl KernelBackend for CubeBackend {
    fn lowbit_conv2d_weight_gradient(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        options: ConvOptions<2>,
    ) -> FloatTensor<Self> {
        let is_empty = gradient.shape().num_elements() == 0;
        let is_fit = weight_gradient::fits(&input, &weight, &gradient);
        if options.groups > 1 || options.dilation != [1, 1] || is_empty || !is_fit {
            return reference::conv2d_weight_gradient::<Self>(input, weight, gradient, options);
        }
        weight_gradient(input, &weight, gradient, &options)
    }

    fn lowbit_quotient(x: FloatTensor<Self>, s: FloatTensor<Self>) -> FloatTensor<Self> {
        let [x, s] = [x, s].map(into_contiguous);
        let y = empty_like(&x);
        launch!(quotients[x, s, y]);
        y
    }

    fn lowbit_dorefa_grid(squashed: FloatTensor<Self>, n: f32) -> FloatTensor<Self> {
        if squashed.shape().num_elements() == 0 {
            return squashed;
        }
        let squashed = into_contiguous(squashed);
        let double_max = reference::double_max::<Self>(squashed.clone());
        let y = empty_like(&squashed);
        launch!(dorefa_grid[squashed, double_max, y], scalar(n, &squashed));
        y
    }

    fn lowbit_dorefa_gradient(
        squashed: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        max_gradient: MaxGradient,
    ) -> FloatTensor<Self> {
        if squashed.shape().num_elements() == 0 {
            return gradient;
        }
        let [squashed, gradient] = [squashed, gradient].map(into_contiguous);
        let double_max = reference::double_max::<Self>(squashed.clone());
        let dx = empty_like(&squashed);
        launch!(dorefa_gradient[squashed, double_max, gradient, dx]);
        match max_gradient {
            MaxGradient::Detached => dx,
            MaxGradient::Differentiated => {
                reference::add_gradient_of_max::<Self>(dx, squashed, double_max, gradient)
            }
        }
    }

    fn lowbit_fake_quantize_unit(x: FloatTensor<Self>, n: f32) -> FloatTensor<Self> {
        let x = into_contiguous(x);
        let y = empty_like(&x);
        launch!(unit[x, y], scalar(n, &x));
        y
    }

    fn lowbit_fake_quantize_unit_gradient(
        x: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [x, gradient] = [x, gradient].map(into_contiguous);
        let dx = empty_like(&x);
        launch!(unit_gradient[x, gradient, dx]);
        dx
    }

    fn lowbit_fake_quantize(
        x: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        grid: Grid,
    ) -> FloatTensor<Self> {
        let [x, parameter] = [x, parameter].map(into_contiguous);
        let n_parameters = parameter.shape().num_elements();
        let y = empty_like(&x);
        match grid {
            Grid::Step { q_min, q_max } => {
                let [q_min, q_max] = [q_min, q_max].map(|bound| scalar(bound, &x));
                launch!(step[x, parameter, y], per_row(n_parameters), q_min, q_max);
            }
            Grid::Clip { n } => launch!(clip_value[x, parameter, y], per_row(n_parameters), scalar(n, &x)),
            Grid::Sign { .. } => launch!(sign[x, parameter, y], per_row(n_parameters)),
        }
        y
    }

    fn lowbit_fake_quantize_gradients(
        x: FloatTensor<Self>,
        parameter: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        grid: Grid,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [x, parameter, gradient] = [x, parameter, gradient].map(into_contiguous);
        let n_parameters = parameter.shape().num_elements();
        let (dx, parts) = (empty_like(&x), empty_like(&x));
        match grid {
            Grid::Step { q_min, q_max } => {
                let [q_min, q_max] = [q_min, q_max].map(|bound| scalar(bound, &x));
                launch!(step_gradients[x, parameter, gradient, dx, parts], per_row(n_parameters), q_min, q_max);
            }
            Grid::Clip { .. } => {
                launch!(clip_value_gradients[x, parameter, gradient, dx, parts], per_row(n_parameters));
            }
            Grid::Sign { is_bounded } => {
                launch!(sign_gradients[x, parameter, gradient, dx, parts], per_row(n_parameters), is_bounded);
            }
        }
        (dx, sum_of_each::<Self>(parts, n_parameters))
    }

    fn lowbit_fake_quantize_affine(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        zero_point: FloatTensor<Self>,
        n: f32,
    ) -> FloatTensor<Self> {
        let [x, scale, zero_point] = [x, scale, zero_point].map(into_contiguous);
        let y = empty_like(&x);
        launch!(affine[x, scale, zero_point, y], scalar(n, &x));
        y
    }

    fn lowbit_fake_quantize_affine_gradient(
        x: FloatTensor<Self>,
        scale: FloatTensor<Self>,
        zero_point: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        n: f32,
    ) -> FloatTensor<Self> {
        let [x, scale, zero_point, gradient] = [x, scale, zero_point, gradient].map(into_contiguous);
        let dx = empty_like(&x);
        launch!(affine_gradient[x, scale, zero_point, gradient, dx], scalar(n, &x));
        dx
    }
}
