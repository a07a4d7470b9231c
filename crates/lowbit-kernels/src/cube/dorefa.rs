//! DoReFa's weights: their hyperbolic tangents, the largest of these and the formula in two launches, and so their gradient.
//!
//! The weights of a convolution are laid out as burn's convolutions read them, with the channels of the input innermost.

use burn::backend::TensorMetadata;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc_shape, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};
use lowbit_cpu::program::Program;
use lowbit_cpu::weights::MaxGradient;

use super::sum::{THREADS, largest_of_cube, sum_of_lane};
use super::{elem_type, empty, empty_like, empty_of, run};

/// Weights for each thread that looks for the largest, unless there are fewer.
const WEIGHTS_OF_THREAD: usize = 8;

/// The lowest of the places of a cube's threads. All threads have to come here.
#[cube]
fn lowest_of_cube(place: u32) -> u32 {
    let unit = UNIT_POS as usize;
    let mut places = Shared::<[u32]>::new_slice(THREADS);
    places[unit] = place;
    sync_cube();
    #[unroll]
    for i in 0..comptime!(THREADS.ilog2()) {
        let half = comptime!(THREADS >> (i + 1));
        if unit < half {
            let other = places[unit + half];
            if other < places[unit] {
                places[unit] = other;
            }
        }
        sync_cube();
    }
    let lowest = places[0];
    sync_cube();
    lowest
}

/// The largest magnitude of the hyperbolic tangents that a cube has seen.
#[cube(launch, address_type = "dynamic")]
fn largest_of_parts<F: Float>(
    w: LinearView<'_, F>,
    mut largest: LinearViewMut<'_, F>,
    n: usize,
    n_parts: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut max = F::new(0.0);
    let mut i = ABSOLUTE_POS;
    while i < n {
        let magnitude = w.read(i).tanh().abs();
        if magnitude > max {
            max = magnitude;
        }
        i += n_parts * THREADS;
    }
    let max = largest_of_cube::<F>(max);
    if UNIT_POS == 0 {
        largest.write(CUBE_POS, max);
    }
}

/// Twice the largest of the parts, of which each thread has one; 1 if it is zero, which puts every code in the middle of its grid.
#[cube]
fn double_max<F: Float>(largest: &LinearView<'_, F>, n_parts: usize) -> F {
    let mut max = F::new(0.0);
    if (UNIT_POS as usize) < n_parts {
        max = largest.read(UNIT_POS as usize);
    }
    let max = largest_of_cube::<F>(max);
    select(max == F::new(0.0), F::new(1.0), max * F::new(2.0))
}

#[cube(launch, address_type = "dynamic")]
fn forward_of_parts<F: Float>(
    w: LinearView<'_, F>,
    largest: LinearView<'_, F>,
    mut y: LinearViewMut<'_, F>,
    n: usize,
    n_parts: usize,
    #[comptime] program: Program,
    #[define(F)] _dtype: ElemType,
) {
    let double_max = double_max::<F>(&largest, n_parts);
    if ABSOLUTE_POS < n {
        let squashed = Vector::<F, Const<1>>::new(w.read(ABSOLUTE_POS).tanh());
        let mut parameters = Sequence::<Vector<F, Const<1>>>::new();
        parameters.push(Vector::new(double_max));
        let result = comptime!(program.outputs[0]);
        let values = run::<F, Const<1>>(squashed, squashed, &parameters, program);
        y.write(ABSOLUTE_POS, values.index(result).extract(0usize));
    }
}

/// Of what a cube has seen: the largest magnitude of the tangents, the first place of it, and the sum of the tangents times their
/// gradients.
#[cube(launch, address_type = "dynamic")]
fn gradient_of_parts<F: Float>(
    w: LinearView<'_, F>,
    gradient: LinearView<'_, F>,
    mut largest: LinearViewMut<'_, F>,
    mut sums: LinearViewMut<'_, F>,
    mut places: LinearViewMut<'_, u32>,
    n: usize,
    n_parts: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut max = F::new(0.0);
    let mut place = u32::MAX.runtime();
    let mut sum = F::new(0.0);
    let mut i = ABSOLUTE_POS;
    while i < n {
        let squashed = w.read(i).tanh();
        sum += gradient.read(i) * squashed;
        let magnitude = squashed.abs();
        if magnitude > max {
            max = magnitude;
            place = i as u32;
        }
        i += n_parts * THREADS;
    }
    let sum = sum_of_lane::<F, Const<1>>(Vector::new(sum), 1usize);
    let max_of_cube = largest_of_cube::<F>(max);
    let place = lowest_of_cube(select(max == max_of_cube, place, u32::MAX.runtime()));
    if UNIT_POS == 0 {
        largest.write(CUBE_POS, max_of_cube);
        sums.write(CUBE_POS, sum.extract(0usize));
        places.write(CUBE_POS, place);
    }
}

/// The gradient of the weights. At the first of the largest it has what comes through the maximum that divides all.
#[cube(launch, address_type = "dynamic")]
fn gradient_of_all<F: Float>(
    w: LinearView<'_, F>,
    gradient: LinearView<'_, F>,
    largest: LinearView<'_, F>,
    sums: LinearView<'_, F>,
    places: LinearView<'_, u32>,
    mut dw: LinearViewMut<'_, F>,
    n: usize,
    n_parts: usize,
    #[comptime] is_differentiated: bool,
    #[define(F)] _dtype: ElemType,
) {
    let double_max = double_max::<F>(&largest, n_parts);
    let mut through = F::new(0.0);
    let mut place = u32::MAX.runtime();
    if comptime!(is_differentiated) {
        let mut part_sum = F::new(0.0);
        let mut part_place = u32::MAX.runtime();
        if (UNIT_POS as usize) < n_parts {
            part_sum = sums.read(UNIT_POS as usize);
            if largest.read(UNIT_POS as usize) * F::new(2.0) == double_max {
                part_place = places.read(UNIT_POS as usize);
            }
        }
        let sum = sum_of_lane::<F, Const<1>>(Vector::new(part_sum), 1usize).extract(0usize);
        // Not by its square, which vanishes for the smallest weights.
        through = sum * F::new(-4.0) / double_max / double_max;
        place = lowest_of_cube(part_place);
    }
    if ABSOLUTE_POS < n {
        let squashed = w.read(ABSOLUTE_POS).tanh();
        let slope = F::new(1.0) - squashed * squashed;
        let mut result = gradient.read(ABSOLUTE_POS) * F::new(2.0) / double_max * slope;
        if ABSOLUTE_POS as u32 == place {
            result += select(squashed < F::new(0.0), F::new(0.0) - through, through) * slope;
        }
        dw.write(ABSOLUTE_POS, result);
    }
}

/// How many cubes look for the largest of `n` weights: every thread of another cube has one of them.
fn parts(n: usize) -> usize {
    n.div_ceil(THREADS * WEIGHTS_OF_THREAD).min(THREADS)
}

/// The formula of weights that are not none.
pub(super) fn forward(w: CubeTensor, program: Program) -> CubeTensor {
    let w = into_contiguous(w);
    let n = w.shape().num_elements();
    let n_parts = parts(n);
    let largest = empty(&w, [n_parts]);
    let threads = CubeDim::new_1d(THREADS as u32);
    largest_of_parts::launch(
        &w.client,
        CubeCount::Static(n_parts as u32, 1, 1),
        threads,
        w.required_address_type(),
        w.clone().into_linear_view(),
        largest.clone().into_linear_view(),
        n,
        n_parts,
        elem_type(w.dtype),
    );
    let y = match w.shape().num_dims() {
        4 => permute_nhwc_to_nchw(empty_of(&w, permute_nchw_to_nhwc_shape(w.shape()))),
        _ => empty_like(&w),
    };
    forward_of_parts::launch(
        &w.client,
        calculate_cube_count_elemwise(&w.client, n, threads),
        threads,
        w.required_address_type(),
        w.clone().into_linear_view(),
        largest.into_linear_view(),
        y.clone().into_linear_view(),
        n,
        n_parts,
        program,
        elem_type(w.dtype),
    );
    y
}

/// The gradient of weights that are not none.
pub(super) fn gradient(w: CubeTensor, gradient: CubeTensor, max_gradient: MaxGradient) -> CubeTensor {
    let w = into_contiguous(w);
    let n = w.shape().num_elements();
    let n_parts = parts(n);
    let largest = empty(&w, [n_parts]);
    let threads = CubeDim::new_1d(THREADS as u32);
    let count = CubeCount::Static(n_parts as u32, 1, 1);
    let is_differentiated = max_gradient == MaxGradient::Differentiated;
    let [mut sums, mut places] = [largest.clone(), largest.clone()];
    match max_gradient {
        // Nothing is read in the place of the others.
        MaxGradient::Detached => largest_of_parts::launch(
            &w.client,
            count,
            threads,
            w.required_address_type(),
            w.clone().into_linear_view(),
            largest.clone().into_linear_view(),
            n,
            n_parts,
            elem_type(w.dtype),
        ),
        MaxGradient::Differentiated => {
            sums = empty(&w, [n_parts]);
            places = super::places(&w, n_parts);
            gradient_of_parts::launch(
                &w.client,
                count,
                threads,
                w.required_address_type(),
                w.clone().into_linear_view(),
                gradient.clone().into_linear_view(),
                largest.clone().into_linear_view(),
                sums.clone().into_linear_view(),
                places.clone().into_linear_view(),
                n,
                n_parts,
                elem_type(w.dtype),
            );
        }
    }
    let dw = empty_like(&w);
    gradient_of_all::launch(
        &w.client,
        calculate_cube_count_elemwise(&w.client, n, threads),
        threads,
        w.required_address_type(),
        w.clone().into_linear_view(),
        gradient.into_linear_view(),
        largest.into_linear_view(),
        sums.into_linear_view(),
        places.into_linear_view(),
        dw.clone().into_linear_view(),
        n,
        n_parts,
        is_differentiated,
        elem_type(w.dtype),
    );
    dw
}
