//! Normalization by the batch with the activation that follows it, in images whose channels are innermost: a few launches, and each
//! value of a map is read as often as its pass needs.
//!
//! Cubes take parts of the rows, one for each pixel, and a second launch adds up what they found, both in a fixed order.

use burn::backend::TensorMetadata;
use burn_cubecl::ops::permute_nhwc_to_nchw;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, cubecl};
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::{AddressType, ElemType};
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};
use lowbit_cpu::program::{Op, Program};

use super::layout::channels_last;
use super::sum::{THREADS, sum_of_lane};
use super::{elem_type, empty, empty_like, parameters_of, run};
use crate::backend::ActivationKind;
use crate::reduce::sum_of_each;

/// Parts of the rows: enough to fill a GPU, few enough to be added up by one cube.
const MOST_PARTS: usize = 512;

/// Rows for each thread of a part, unless there are fewer.
const ROWS_OF_THREAD: usize = 16;

/// Vectors of a row that a cube takes.
const MOST_LANES: usize = 32;

/// Numbers in a vector.
const MOST_IN_VECTOR: usize = 4;

/// How cubes divide rows `[rows, channels]` among each other.
#[derive(Clone, Copy)]
struct Parts {
    rows: usize,
    channels: usize,
    /// Numbers in a vector; divides the channels.
    vector: usize,
    /// Threads side by side in a row, each with one vector.
    lanes: usize,
    rows_of_part: usize,
}

impl Parts {
    fn of(x: &CubeTensor) -> Self {
        let [batch, height, width, channels] = x.shape().dims();
        let rows = batch * height * width;
        let mut sizes = x.client.io_optimized_vector_sizes(x.dtype.size());
        let vector =
            sizes.find(|size| *size <= MOST_IN_VECTOR && channels.is_multiple_of(*size)).unwrap_or(1);
        let lanes = (channels / vector).next_power_of_two().min(MOST_LANES);
        let depth = THREADS / lanes;
        let rows_of_part = depth * rows.div_ceil(depth * MOST_PARTS).max(ROWS_OF_THREAD);
        Self { rows, channels, vector, lanes, rows_of_part }
    }

    fn n_parts(self) -> usize {
        self.rows.div_ceil(self.rows_of_part)
    }

    /// Vectors in a row.
    fn columns(self) -> usize {
        self.channels / self.vector
    }

    /// Cubes for the parts of all lanes.
    fn count(self) -> CubeCount {
        CubeCount::Static(self.n_parts() as u32, self.columns().div_ceil(self.lanes) as u32, 1)
    }
}

/// Means of the parts, then their sums of squared distances from these: `[2, parts, columns]`.
#[cube(launch, address_type = "dynamic")]
fn statistics_of_parts<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    mut parts: LinearViewMut<'_, Vector<F, N>>,
    rows: usize,
    columns: usize,
    rows_of_part: usize,
    n_parts: usize,
    #[comptime] lanes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let (lane, place) = (UNIT_POS as usize % lanes, UNIT_POS as usize / lanes);
    let depth = comptime!(THREADS / lanes);
    let part = CUBE_POS_X as usize;
    let column = CUBE_POS_Y as usize * lanes + lane;
    let first = part * rows_of_part;
    let end = clamp_max(first + rows_of_part, rows);
    let mut sum = Vector::<F, N>::new(F::new(0.0));
    if column < columns {
        let mut row = first + place;
        while row < end {
            sum += x.read(row * columns + column);
            row += depth;
        }
    }
    let n = Vector::<F, N>::new(F::cast_from((end - first) as u32));
    let mean = sum_of_lane::<F, N>(sum, lanes) / n;
    let mut squares = Vector::<F, N>::new(F::new(0.0));
    if column < columns {
        let mut row = first + place;
        while row < end {
            let distance = x.read(row * columns + column) - mean;
            squares += distance * distance;
            row += depth;
        }
    }
    let squares = sum_of_lane::<F, N>(squares, lanes);
    if column < columns && place == 0 {
        parts.write(part * columns + column, mean);
        parts.write((n_parts + part) * columns + column, squares);
    }
}

/// Mean and variance of all parts, a cube for each vector of channels, and running ones moved towards them.
#[cube(launch, address_type = "dynamic")]
fn statistics_of_all<F: Float, N: Size>(
    parts: LinearView<'_, Vector<F, N>>,
    running_mean: LinearView<'_, Vector<F, N>>,
    running_variance: LinearView<'_, Vector<F, N>>,
    mut statistics: LinearViewMut<'_, Vector<F, N>>,
    mut moved_mean: LinearViewMut<'_, Vector<F, N>>,
    mut moved_variance: LinearViewMut<'_, Vector<F, N>>,
    rows: usize,
    columns: usize,
    rows_of_part: usize,
    n_parts: usize,
    kept: f32,
    taken: f32,
    #[comptime] moves: bool,
    #[define(F)] _dtype: ElemType,
) {
    let column = CUBE_POS_X as usize;
    let n = Vector::<F, N>::new(F::cast_from(rows as u32));
    let mut sum = Vector::<F, N>::new(F::new(0.0));
    let mut part = UNIT_POS as usize;
    while part < n_parts {
        let first = part * rows_of_part;
        let n_rows = clamp_max(first + rows_of_part, rows) - first;
        sum += parts.read(part * columns + column) * Vector::new(F::cast_from(n_rows as u32));
        part += THREADS;
    }
    let mean = sum_of_lane::<F, N>(sum, 1usize) / n;
    let mut squares = Vector::<F, N>::new(F::new(0.0));
    let mut part = UNIT_POS as usize;
    while part < n_parts {
        let first = part * rows_of_part;
        let n_rows = clamp_max(first + rows_of_part, rows) - first;
        let distance = parts.read(part * columns + column) - mean;
        squares += parts.read((n_parts + part) * columns + column)
            + distance * distance * Vector::new(F::cast_from(n_rows as u32));
        part += THREADS;
    }
    let variance = sum_of_lane::<F, N>(squares, 1usize) / n;
    if UNIT_POS == 0 {
        statistics.write(column, mean);
        statistics.write(columns + column, variance);
        if comptime!(moves) {
            let kept = Vector::<F, N>::new(F::cast_from(kept));
            let taken = Vector::<F, N>::new(F::cast_from(taken));
            moved_mean.write(column, running_mean.read(column) * kept + mean * taken);
            moved_variance.write(column, running_variance.read(column) * kept + variance * taken);
        }
    }
}

/// What a channel is normalized by, and where that stands.
#[cube]
fn deviation_of<F: Float, N: Size>(
    statistics: &LinearView<'_, Vector<F, N>>,
    column: usize,
    columns: usize,
    epsilon: f32,
) -> Vector<F, N> {
    Vector::sqrt(statistics.read(columns + column) + Vector::new(F::cast_from(epsilon)))
}

#[cube(launch, address_type = "dynamic")]
fn normalize<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    gamma: LinearView<'_, Vector<F, N>>,
    beta: LinearView<'_, Vector<F, N>>,
    statistics: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    columns: usize,
    epsilon: f32,
    #[comptime] program: Program,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let column = ABSOLUTE_POS % columns;
    let deviation = deviation_of::<F, N>(&statistics, column, columns, epsilon);
    let centered = x.read(ABSOLUTE_POS) - statistics.read(column);
    let before = centered * (gamma.read(column) / deviation) + beta.read(column);
    let result = comptime!(program.outputs[0]);
    let parameters = parameters_of::<F, N>(&parameters, 0usize, 1usize, program.clone());
    let values = run::<F, N>(before, before, &parameters, program);
    y.write(ABSOLUTE_POS, *values.index(result));
}

/// Sums over the rows of a part: of the gradient, of its products with the normalized values, and of the gradient of each parameter.
/// `[sums, parts, columns]`
#[cube(launch, address_type = "dynamic")]
fn gradients_of_parts<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    gradient: LinearView<'_, Vector<F, N>>,
    gamma: LinearView<'_, Vector<F, N>>,
    beta: LinearView<'_, Vector<F, N>>,
    statistics: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    mut parts: LinearViewMut<'_, Vector<F, N>>,
    rows: usize,
    columns: usize,
    rows_of_part: usize,
    n_parts: usize,
    epsilon: f32,
    #[comptime] lanes: usize,
    #[comptime] program: Program,
    #[define(F)] _dtype: ElemType,
) {
    let (lane, place) = (UNIT_POS as usize % lanes, UNIT_POS as usize / lanes);
    let depth = comptime!(THREADS / lanes);
    let part = CUBE_POS_X as usize;
    let column = CUBE_POS_Y as usize * lanes + lane;
    let first = part * rows_of_part;
    let end = clamp_max(first + rows_of_part, rows);
    let n_sums = comptime!(program.outputs.len() + 1);
    let outputs = comptime!(program.outputs.clone());
    let mut sums = Array::<Vector<F, N>>::new(n_sums);
    #[unroll]
    for i in 0..n_sums {
        sums[i] = Vector::new(F::new(0.0));
    }
    if column < columns {
        let deviation = deviation_of::<F, N>(&statistics, column, columns, epsilon);
        let mean = statistics.read(column);
        let scale = gamma.read(column) / deviation;
        let beta = beta.read(column);
        let parameters = parameters_of::<F, N>(&parameters, 0usize, 1usize, program.clone());
        let mut row = first + place;
        while row < end {
            let centered = x.read(row * columns + column) - mean;
            let before = centered * scale + beta;
            let values =
                run::<F, N>(before, gradient.read(row * columns + column), &parameters, program.clone());
            let inner = *values.index(comptime!(outputs[0]));
            sums[0] += inner;
            sums[1] += inner * (centered / deviation);
            #[unroll]
            for i in 1..outputs.len() {
                sums[i + 1] += *values.index(comptime!(outputs[i]));
            }
            row += depth;
        }
    }
    #[unroll]
    for i in 0..n_sums {
        let sum = sum_of_lane::<F, N>(sums[i], lanes);
        if column < columns && place == 0 {
            parts.write((i * n_parts + part) * columns + column, sum);
        }
    }
}

/// Sums over the parts, a cube for each vector of channels: the gradients of beta, of gamma, and of the parameters, the last channel
/// by channel.
#[cube(launch, address_type = "dynamic")]
fn gradients_of_all<F: Float, N: Size>(
    parts: LinearView<'_, Vector<F, N>>,
    mut beta: LinearViewMut<'_, Vector<F, N>>,
    mut gamma: LinearViewMut<'_, Vector<F, N>>,
    mut parameters: LinearViewMut<'_, Vector<F, N>>,
    columns: usize,
    n_parts: usize,
    #[comptime] n_parameters: usize,
    #[define(F)] _dtype: ElemType,
) {
    let column = CUBE_POS_X as usize;
    #[unroll]
    for i in 0..comptime!(n_parameters + 2) {
        let mut sum = Vector::<F, N>::new(F::new(0.0));
        let mut part = UNIT_POS as usize;
        while part < n_parts {
            sum += parts.read((i * n_parts + part) * columns + column);
            part += THREADS;
        }
        let sum = sum_of_lane::<F, N>(sum, 1usize);
        if UNIT_POS == 0 {
            if comptime!(i == 0) {
                beta.write(column, sum);
            } else if comptime!(i == 1) {
                gamma.write(column, sum);
            } else {
                parameters.write((i - 2) * columns + column, sum);
            }
        }
    }
}

#[cube(launch, address_type = "dynamic")]
fn input_gradient<F: Float, N: Size>(
    x: LinearView<'_, Vector<F, N>>,
    gradient: LinearView<'_, Vector<F, N>>,
    gamma: LinearView<'_, Vector<F, N>>,
    beta: LinearView<'_, Vector<F, N>>,
    statistics: LinearView<'_, Vector<F, N>>,
    parameters: LinearView<'_, F>,
    beta_gradient: LinearView<'_, Vector<F, N>>,
    gamma_gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    rows: usize,
    columns: usize,
    epsilon: f32,
    #[comptime] program: Program,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let column = ABSOLUTE_POS % columns;
    let n = Vector::<F, N>::new(F::cast_from(rows as u32));
    let deviation = deviation_of::<F, N>(&statistics, column, columns, epsilon);
    let scale = gamma.read(column) / deviation;
    let centered = x.read(ABSOLUTE_POS) - statistics.read(column);
    let result = comptime!(program.outputs[0]);
    let parameters = parameters_of::<F, N>(&parameters, 0usize, 1usize, program.clone());
    let before = centered * scale + beta.read(column);
    let values = run::<F, N>(before, gradient.read(ABSOLUTE_POS), &parameters, program);
    let inner = *values.index(result) - beta_gradient.read(column) / n;
    dx.write(ABSOLUTE_POS, (inner - centered / deviation * (gamma_gradient.read(column) / n)) * scale);
}

/// The activation as a program and as that of its gradients.
fn programs(activation: &ActivationKind) -> [Program; 2] {
    let of = |ops: &[Op]| Program { ops: ops.to_vec(), outputs: vec![ops.len() - 1] };
    match activation {
        ActivationKind::Identity => [of(&[Op::Input]), of(&[Op::Gradient])],
        ActivationKind::Relu => [
            of(&[Op::Input, Op::Constant(0), Op::IfAtMost([0, 1, 1, 0])]),
            of(&[Op::Input, Op::Gradient, Op::Constant(0), Op::IfAtMost([0, 2, 2, 1])]),
        ],
        ActivationKind::Formula(formula, _) => [formula.forward_program(), formula.gradient_program()],
    }
}

/// Large enough for any address among these.
fn address(tensors: &[&CubeTensor]) -> AddressType {
    let addresses = tensors.iter().map(|tensor| tensor.required_address_type());
    addresses.max().unwrap_or_default()
}

/// Running statistics, which move towards those of a batch.
pub(super) struct Running {
    pub(super) mean: CubeTensor,
    pub(super) variance: CubeTensor,
    /// The share of the batch.
    pub(super) momentum: f64,
}

/// Mean and biased variance of every channel of images that are not empty, `[2 channels]`, and the running ones moved, if there are some.
pub(super) fn statistics(input: CubeTensor, running: Option<&Running>) -> (CubeTensor, [CubeTensor; 2]) {
    let x = channels_last(input);
    let parts @ Parts { rows, channels, vector, rows_of_part, lanes, .. } = Parts::of(&x);
    let (n_parts, columns) = (parts.n_parts(), parts.columns());
    let of_parts = empty(&x, [2 * n_parts * channels]);
    let dim = CubeDim::new_1d(THREADS as u32);
    statistics_of_parts::launch(
        &x.client,
        parts.count(),
        dim,
        address(&[&x, &of_parts]),
        vector,
        x.clone().into_linear_view(),
        of_parts.clone().into_linear_view(),
        rows,
        columns,
        rows_of_part,
        n_parts,
        lanes,
        elem_type(x.dtype),
    );
    let statistics = empty(&x, [2 * channels]);
    let moved = [empty(&x, [channels]), empty(&x, [channels])];
    // Without running ones nothing is read in their place.
    let [mean, variance] =
        running.map_or([&of_parts, &of_parts], |running| [&running.mean, &running.variance]);
    let momentum = running.map_or(0.0, |running| running.momentum);
    statistics_of_all::launch(
        &x.client,
        CubeCount::Static(columns as u32, 1, 1),
        dim,
        address(&[&of_parts]),
        vector,
        of_parts.clone().into_linear_view(),
        mean.clone().into_linear_view(),
        variance.clone().into_linear_view(),
        statistics.clone().into_linear_view(),
        moved[0].clone().into_linear_view(),
        moved[1].clone().into_linear_view(),
        rows,
        columns,
        rows_of_part,
        n_parts,
        (1.0 - momentum) as f32,
        momentum as f32,
        running.is_some(),
        elem_type(x.dtype),
    );
    (statistics, moved)
}

/// What both passes of a normalization take.
pub(super) struct Normalization {
    pub(super) input: CubeTensor,
    pub(super) gamma: CubeTensor,
    pub(super) beta: CubeTensor,
    pub(super) statistics: CubeTensor,
    pub(super) parameters: CubeTensor,
    pub(super) epsilon: f32,
    pub(super) activation: ActivationKind,
}

impl Normalization {
    /// The normalized input after the activation.
    pub(super) fn forward(self) -> CubeTensor {
        let Self { input, gamma, beta, statistics, parameters, epsilon, activation } = self;
        let x = channels_last(input);
        let parts @ Parts { vector, .. } = Parts::of(&x);
        let y = empty_like(&x);
        let n = x.shape().num_elements() / vector;
        let dim = CubeDim::new(&x.client, n);
        let [program, _] = programs(&activation);
        normalize::launch(
            &x.client,
            calculate_cube_count_elemwise(&x.client, n, dim),
            dim,
            address(&[&x]),
            vector,
            x.clone().into_linear_view(),
            gamma.into_linear_view(),
            beta.into_linear_view(),
            statistics.into_linear_view(),
            parameters.into_linear_view(),
            y.clone().into_linear_view(),
            parts.columns(),
            epsilon,
            program,
            elem_type(x.dtype),
        );
        permute_nhwc_to_nchw(y)
    }

    /// Gradients of the input, of gamma, of beta and of the parameters.
    pub(super) fn gradients(self, gradient: CubeTensor) -> (CubeTensor, CubeTensor, CubeTensor, CubeTensor) {
        let Self { input, gamma, beta, statistics, parameters, epsilon, activation } = self;
        let [x, gradient] = [input, gradient].map(channels_last);
        let parts @ Parts { rows, channels, vector, rows_of_part, lanes, .. } = Parts::of(&x);
        let (n_parts, columns) = (parts.n_parts(), parts.columns());
        let [_, program] = programs(&activation);
        let n_parameters = program.outputs.len() - 1;
        let of_parts = empty(&x, [(n_parameters + 2) * n_parts * channels]);
        let threads = CubeDim::new_1d(THREADS as u32);
        gradients_of_parts::launch(
            &x.client,
            parts.count(),
            threads,
            address(&[&x, &of_parts]),
            vector,
            x.clone().into_linear_view(),
            gradient.clone().into_linear_view(),
            gamma.clone().into_linear_view(),
            beta.clone().into_linear_view(),
            statistics.clone().into_linear_view(),
            parameters.clone().into_linear_view(),
            of_parts.clone().into_linear_view(),
            rows,
            columns,
            rows_of_part,
            n_parts,
            epsilon,
            lanes,
            program.clone(),
            elem_type(x.dtype),
        );
        let [of_beta, of_gamma] = [channels; 2].map(|n| empty(&x, [n]));
        // Without parameters nothing is written to it, but it has to hold a vector.
        let of_parameters = empty(&x, [n_parameters.max(1) * channels]);
        gradients_of_all::launch(
            &x.client,
            CubeCount::Static(columns as u32, 1, 1),
            threads,
            address(&[&of_parts]),
            vector,
            of_parts.into_linear_view(),
            of_beta.clone().into_linear_view(),
            of_gamma.clone().into_linear_view(),
            of_parameters.clone().into_linear_view(),
            columns,
            n_parts,
            n_parameters,
            elem_type(x.dtype),
        );
        let dx = empty_like(&x);
        let n = x.shape().num_elements() / vector;
        let dim = CubeDim::new(&x.client, n);
        input_gradient::launch(
            &x.client,
            calculate_cube_count_elemwise(&x.client, n, dim),
            dim,
            address(&[&x]),
            vector,
            x.clone().into_linear_view(),
            gradient.into_linear_view(),
            gamma.into_linear_view(),
            beta.into_linear_view(),
            statistics.into_linear_view(),
            parameters.clone().into_linear_view(),
            of_beta.clone().into_linear_view(),
            of_gamma.clone().into_linear_view(),
            dx.clone().into_linear_view(),
            rows,
            columns,
            epsilon,
            program.only_first(),
            elem_type(x.dtype),
        );
        let of_parameters = match n_parameters {
            0 => parameters,
            n => sum_of_each::<CubeBackend>(of_parameters, n),
        };
        (permute_nhwc_to_nchw(dx), of_gamma, of_beta, of_parameters)
    }
}
