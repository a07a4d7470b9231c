//! The cross entropy with its gradient in two launches, in a fixed order: burn's sum of a whole tensor is not.

use burn::backend::TensorMetadata;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::sum::{THREADS, largest_of_cube, sum_of_lane};
use super::{elem_type, empty, empty_like};

/// The loss of each image, and the gradients of its logits. A cube has an image.
#[cube(launch, address_type = "dynamic")]
fn losses_of_images<F: Float>(
    logits: LinearView<'_, F>,
    targets: LinearView<'_, F>,
    mut losses: LinearViewMut<'_, F>,
    mut gradients: LinearViewMut<'_, F>,
    batch: usize,
    classes: usize,
    #[define(F)] _dtype: ElemType,
) {
    let first = CUBE_POS * classes;
    let unit = UNIT_POS as usize;
    // Those without a class of their own repeat the first.
    let mut largest = logits.read(first);
    let mut class = unit;
    while class < classes {
        let logit = logits.read(first + class);
        if logit > largest {
            largest = logit;
        }
        class += THREADS;
    }
    let largest = largest_of_cube::<F>(largest);
    let mut sum = F::new(0.0);
    let mut of_targets = F::new(0.0);
    let mut class = unit;
    while class < classes {
        sum += (logits.read(first + class) - largest).exp();
        of_targets += targets.read(first + class);
        class += THREADS;
    }
    let sum = sum_of_lane::<F, Const<1>>(Vector::new(sum), 1usize).extract(0usize);
    let of_targets = sum_of_lane::<F, Const<1>>(Vector::new(of_targets), 1usize).extract(0usize);
    let log_sum = sum.ln();
    let mut loss = F::new(0.0);
    let n = F::cast_from(batch as u32);
    let mut class = unit;
    while class < classes {
        let log_probability = logits.read(first + class) - largest - log_sum;
        let target = targets.read(first + class);
        loss += target * log_probability;
        gradients.write(first + class, (log_probability.exp() * of_targets - target) / n);
        class += THREADS;
    }
    let loss = sum_of_lane::<F, Const<1>>(Vector::new(loss), 1usize).extract(0usize);
    if UNIT_POS == 0 {
        losses.write(CUBE_POS, loss);
    }
}

/// Their mean, with its sign.
#[cube(launch, address_type = "dynamic")]
fn mean_of_losses<F: Float>(
    losses: LinearView<'_, F>,
    mut mean: LinearViewMut<'_, F>,
    batch: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut sum = F::new(0.0);
    let mut image = UNIT_POS as usize;
    while image < batch {
        sum += losses.read(image);
        image += THREADS;
    }
    let sum = sum_of_lane::<F, Const<1>>(Vector::new(sum), 1usize).extract(0usize);
    if UNIT_POS == 0 {
        mean.write(0usize, F::new(0.0) - sum / F::cast_from(batch as u32));
    }
}

/// Images of a batch: a cube each, and WebGPU promises so many side by side.
pub(super) const MOST_IMAGES: usize = 65_535;

/// The mean cross entropy of logits that are not none, `[1]`, and its gradient.
pub(super) fn cross_entropy(logits: CubeTensor, targets: CubeTensor) -> (CubeTensor, CubeTensor) {
    let [logits, targets] = [logits, targets].map(into_contiguous);
    let [batch, classes] = logits.shape().dims();
    let (losses, gradients) = (empty(&logits, [batch]), empty_like(&logits));
    let threads = CubeDim::new_1d(THREADS as u32);
    losses_of_images::launch(
        &logits.client,
        CubeCount::Static(batch as u32, 1, 1),
        threads,
        logits.required_address_type(),
        logits.clone().into_linear_view(),
        targets.into_linear_view(),
        losses.clone().into_linear_view(),
        gradients.clone().into_linear_view(),
        batch,
        classes,
        elem_type(logits.dtype),
    );
    let mean = empty(&logits, [1]);
    mean_of_losses::launch(
        &logits.client,
        CubeCount::Static(1, 1, 1),
        threads,
        logits.required_address_type(),
        losses.into_linear_view(),
        mean.clone().into_linear_view(),
        batch,
        elem_type(logits.dtype),
    );
    (mean, gradients)
}
