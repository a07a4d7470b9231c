//! Operations of one value at a time that burn has in several launches.

use std::cell::RefCell;

use burn::backend::TensorMetadata;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewLaunch, LinearViewMut};

use super::layout::Layout;
use super::sum::THREADS;
use super::{Launch, elem_type, empty_like};
use crate::backend::SgdStep;

#[cube(launch, address_type = "dynamic")]
fn relu_of_sum_kernel<F: Float, N: Size>(
    one: LinearView<'_, Vector<F, N>>,
    other: LinearView<'_, Vector<F, N>>,
    mut y: LinearViewMut<'_, Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    if !y.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let zero = Vector::<F, N>::new(F::new(0.0));
    let sum = one.read(ABSOLUTE_POS) + other.read(ABSOLUTE_POS);
    y.write(ABSOLUTE_POS, select_many(sum.less_equal(&zero), zero, sum));
}

#[cube(launch, address_type = "dynamic")]
fn relu_gradient_kernel<F: Float, N: Size>(
    output: LinearView<'_, Vector<F, N>>,
    gradient: LinearView<'_, Vector<F, N>>,
    mut dx: LinearViewMut<'_, Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    if !dx.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let zero = Vector::<F, N>::new(F::new(0.0));
    let is_blocked = output.read(ABSOLUTE_POS).less_equal(&zero);
    dx.write(ABSOLUTE_POS, select_many(is_blocked, zero, gradient.read(ABSOLUTE_POS)));
}

/// A step of stochastic gradient descent for each of some tensors, in the order of burn's operations. Cubes with the same Y have a
/// tensor together.
#[cube(launch, address_type = "dynamic")]
fn sgd_of_some<F: Float>(
    weights: Sequence<LinearView<'_, F>>,
    gradients: Sequence<LinearView<'_, F>>,
    velocities: Sequence<LinearView<'_, F>>,
    mut new_weights: Sequence<LinearViewMut<'_, F>>,
    mut new_velocities: Sequence<LinearViewMut<'_, F>>,
    rate: f32,
    momentum: f32,
    weight_decay: f32,
    #[comptime] n_tensors: usize,
    #[comptime] decays: bool,
    #[comptime] is_first: bool,
    #[comptime] has_momentum: bool,
    #[comptime] is_nesterov: bool,
    #[define(F)] _dtype: ElemType,
) {
    let momentum = F::cast_from(momentum);
    let start = CUBE_POS_X as usize * THREADS + UNIT_POS as usize;
    let stride = CUBE_COUNT_X as usize * THREADS;
    #[unroll]
    for tensor in 0..n_tensors {
        if CUBE_POS_Y as usize == tensor {
            let n = weights.index(tensor).shape();
            let mut i = start;
            while i < n {
                let old = weights.index(tensor).read(i);
                let mut gradient = gradients.index(tensor).read(i);
                if comptime!(decays) {
                    gradient += old * F::cast_from(weight_decay);
                }
                let mut step = gradient;
                if comptime!(has_momentum) {
                    if comptime!(!is_first) {
                        step = gradient + velocities.index(tensor).read(i) * momentum;
                    }
                    new_velocities.index_mut(tensor).write(i, step);
                    if comptime!(is_nesterov) {
                        step = step * momentum + gradient;
                    }
                }
                new_weights.index_mut(tensor).write(i, old - step * F::cast_from(rate));
                i += stride;
            }
        }
    }
}

/// `max(one + other, 0)`, in the layout of the first.
pub(super) fn relu_of_sum(one: CubeTensor, other: CubeTensor) -> CubeTensor {
    let layout = Layout::of(&one);
    let [one, other] = [one, other].map(|x| layout.open(x));
    let y = empty_like(&one);
    let Launch { client, count, dim, address, vector, dtype, .. } = Launch::new(&one, 1);
    relu_of_sum_kernel::launch(
        &client,
        count,
        dim,
        address,
        vector,
        one.into_linear_view(),
        other.into_linear_view(),
        y.clone().into_linear_view(),
        dtype,
    );
    layout.close(y)
}

/// The gradient of what a ReLU takes, from its result, in the layout of that.
pub(super) fn relu_gradient(output: CubeTensor, gradient: CubeTensor) -> CubeTensor {
    let layout = Layout::of(&output);
    let [output, gradient] = [output, gradient].map(|x| layout.open(x));
    let dx = empty_like(&output);
    let Launch { client, count, dim, address, vector, dtype, .. } = Launch::new(&output, 1);
    relu_gradient_kernel::launch(
        &client,
        count,
        dim,
        address,
        vector,
        output.into_linear_view(),
        gradient.into_linear_view(),
        dx.clone().into_linear_view(),
        dtype,
    );
    layout.close(dx)
}

/// A step whose results are not computed yet.
struct Pending {
    step: SgdStep,
    weight: CubeTensor,
    gradient: CubeTensor,
    velocity: CubeTensor,
    new_weight: CubeTensor,
    new_velocity: CubeTensor,
}

impl Pending {
    /// Whether both are of one launch.
    fn is_like(&self, other: &Self) -> bool {
        let of = |pending: &Self| (pending.weight.dtype, pending.weight.device.clone());
        self.step == other.step && of(self) == of(other)
    }
}

thread_local! {
    /// Steps of this thread that are computed together; `None` if each is computed at once.
    static TOGETHER: RefCell<Option<Vec<Pending>>> = const { RefCell::new(None) };
}

/// Tensors of a launch, if the device has as many bindings.
const MOST_TOGETHER: usize = 12;

/// Bindings of a tensor.
const BINDINGS: usize = 5;

/// Cubes for a tensor: a thread of a larger one has several of its values.
const MOST_CUBES: usize = 1024;

/// Puts back what was collected before, also if what it waits for panics.
struct Outer(Option<Option<Vec<Pending>>>);

impl Outer {
    /// What was collected since.
    fn put_back(&mut self) -> Vec<Pending> {
        self.0.take().and_then(|outer| TOGETHER.replace(outer)).unwrap_or_default()
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        self.put_back();
    }
}

/// See [`crate::sgd_together`]. If `steps` panics, nothing launches the steps before that, whose results nobody has then.
pub(crate) fn sgd_together<T>(steps: impl FnOnce() -> T) -> T {
    let mut outer = Outer(Some(TOGETHER.replace(Some(Vec::new()))));
    let result = steps();
    let mut pending = outer.put_back();
    while let Some(first) = pending.pop() {
        let (mut alike, others): (Vec<Pending>, Vec<Pending>) =
            pending.into_iter().partition(|other| first.is_like(other));
        alike.push(first);
        launch_steps(alike);
        pending = others;
    }
    result
}

/// One tensor of each step.
fn views<V>(steps: &[Pending], tensor: fn(&Pending) -> &CubeTensor) -> SequenceArg<V>
where
    V: LaunchArg<RuntimeArg = LinearViewLaunch>,
{
    steps.iter().map(|step| tensor(step).clone().into_linear_view()).collect()
}

/// Launches steps that are alike.
fn launch_steps(mut steps: Vec<Pending>) {
    let Some(Pending { weight, step, .. }) = steps.first() else { return };
    let (client, dtype, step) = (weight.client.clone(), elem_type(weight.dtype), *step);
    let bindings = client.properties().hardware.max_bindings as usize;
    // Some are for the shapes.
    let together = (bindings.saturating_sub(BINDINGS - 1) / BINDINGS).clamp(1, MOST_TOGETHER);
    // Tensors of about one size waste no threads on each other.
    steps.sort_by_key(|step| std::cmp::Reverse(step.weight.shape().num_elements()));
    for some in steps.chunks(together) {
        let largest = some.iter().map(|step| step.weight.shape().num_elements()).max().unwrap_or(0);
        let tensors = some.iter().flat_map(|step| [&step.weight, &step.gradient, &step.velocity]);
        let address = tensors.map(CubeTensor::required_address_type).max().unwrap_or_default();
        let SgdStep { learning_rate, weight_decay, momentum, is_nesterov, is_first } = step;
        sgd_of_some::launch(
            &client,
            CubeCount::Static(largest.div_ceil(THREADS).min(MOST_CUBES) as u32, some.len() as u32, 1),
            CubeDim::new_1d(THREADS as u32),
            address,
            views(some, |step| &step.weight),
            views(some, |step| &step.gradient),
            views(some, |step| &step.velocity),
            views(some, |step| &step.new_weight),
            views(some, |step| &step.new_velocity),
            learning_rate as f32,
            momentum.unwrap_or(0.0),
            weight_decay.unwrap_or(0.0),
            some.len(),
            weight_decay.is_some(),
            is_first,
            momentum.is_some(),
            is_nesterov,
            dtype,
        );
    }
}

/// The weights after a step, and their velocity, which is any tensor without momentum.
pub(super) fn sgd(
    weight: CubeTensor,
    gradient: CubeTensor,
    velocity: CubeTensor,
    step: SgdStep,
) -> (CubeTensor, CubeTensor) {
    let [new_weight, new_velocity] = [&weight, &weight].map(empty_like);
    let results = (new_weight.clone(), new_velocity.clone());
    let pending = Pending { step, weight, gradient, velocity, new_weight, new_velocity };
    let alone = TOGETHER.with_borrow_mut(|together| match together {
        Some(together) => {
            together.push(pending);
            None
        }
        None => Some(pending),
    });
    launch_steps(alone.into_iter().collect());
    results
}
