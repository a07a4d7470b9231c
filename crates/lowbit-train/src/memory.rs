//! What memory a training takes, estimated from its recipe before anything is built or read.

use lowbit_models::Kept;

use crate::data::{EVAL_BATCH_SIZE, n_prepared};
use crate::error::TrainError;
use crate::experiment::Experiment;
use crate::recipe::{DatasetChoice, OptimizerRecipe, Recipe};

/// Bytes of a number.
const FLOAT: u64 = 4;

/// Bytes of the program itself, with its threads: measured with the binary on Linux.
const PROGRAM: u64 = 60 << 20;

/// Copies of all parameters that a step has at its end, apart from those of the optimizer and of the moving average: before
/// and after the update, as they are quantized, and their gradients.
const COPIES: u64 = 4;

/// An estimate of the memory that a training takes at its peak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Bytes of the program and the images of the data set, whatever the batch.
    pub program: u64,
    /// Bytes of all parameters, their gradients, and what the optimizer keeps of them.
    pub parameters: u64,
    /// Bytes for each image of a batch: activations that are kept for the backward pass, and gradients.
    pub per_image: u64,
    /// Bytes of an image of a batch on the host.
    pub input_per_image: u64,
    /// Bytes of the largest tensor for each image of a batch.
    pub largest_per_image: u64,
    /// Bytes of an evaluation, whose batches are of a size of their own.
    pub evaluation: u64,
    /// Images of a batch of an evaluation.
    pub evaluation_batch: u64,
    /// Images of a batch.
    pub batch_size: u64,
    /// Parts of a batch that are computed one after the other.
    pub accumulate: u64,
}

impl MemoryEstimate {
    /// The estimate for the training of `recipe`, with the strategies of its own. The inputs of convolutions are kept as
    /// `inputs` where whole layers are quantized.
    ///
    /// # Errors
    /// [`TrainError`] if its networks are not defined.
    pub fn new(recipe: &Recipe, inputs: Kept) -> Result<Self, TrainError> {
        let Experiment { networks, phases, .. } = Experiment::of_recipe(recipe)?;
        let (input, n_classes) = (recipe.data.input_shape(), recipe.data.n_classes());
        let pixels: u64 = input.dims().iter().map(|side| *side as u64).product();
        let is_partial = recipe.strategy.stochastic_precision.is_some();
        let inputs = if is_partial { Kept::Floats } else { inputs };
        let mut estimate = Self {
            // Reading them leaves half of it to be used again, in pieces: measured on CIFAR.
            program: PROGRAM + held(recipe) * 3 / 2,
            parameters: 0,
            per_image: 0,
            input_per_image: pixels * FLOAT,
            largest_per_image: 0,
            evaluation: 0,
            evaluation_batch: n_test(recipe).unwrap_or(u64::MAX).min(EVAL_BATCH_SIZE as u64),
            batch_size: recipe.data.batch_size as u64,
            accumulate: recipe.train.accumulate as u64,
        };
        for phase in phases {
            let (mut kept, mut working, mut parameters, mut forward) = (0, 0, 0, 0);
            for spec in &networks {
                let policy = spec.policy(recipe, &phase);
                let footprint = spec.model.footprint(input, n_classes, &policy, inputs)?;
                // All networks look at a batch before any of them is updated.
                match spec.is_trained {
                    true => kept += footprint.kept,
                    false => working = working.max(footprint.forward),
                }
                working = working.max(if spec.is_trained { footprint.working } else { 0 });
                let copies = if spec.is_trained { COPIES + of_training(recipe) } else { 1 };
                parameters += footprint.n_parameters * FLOAT * copies;
                forward = forward.max(footprint.forward);
                estimate.largest_per_image = estimate.largest_per_image.max(footprint.largest);
            }
            estimate.per_image = estimate.per_image.max(kept + working);
            estimate.parameters = estimate.parameters.max(parameters);
            estimate.evaluation = estimate.evaluation.max(forward * estimate.evaluation_batch);
        }
        Ok(estimate)
    }

    /// Bytes on the device at the peak of the training with batches of `batch_size`, which is that of the recipe or another.
    pub fn device(&self, batch_size: u64) -> u64 {
        let step = batch_size.div_ceil(self.accumulate).saturating_mul(self.per_image);
        self.parameters.saturating_add(step.max(self.evaluation))
    }

    /// Bytes of the program, the data set and the batches that are prepared, in the memory of the host.
    pub fn host(&self, batch_size: u64) -> u64 {
        let batch = batch_size.saturating_mul(self.input_per_image);
        self.program.saturating_add(n_prepared(batch).saturating_mul(batch))
    }

    /// Both, as on a CPU.
    pub fn total(&self, batch_size: u64) -> u64 {
        self.host(batch_size).saturating_add(self.device(batch_size))
    }

    /// Bytes of the largest tensor.
    pub fn largest(&self, batch_size: u64) -> u64 {
        batch_size.div_ceil(self.accumulate).max(self.evaluation_batch).saturating_mul(self.largest_per_image)
    }

    /// The largest batch that `fits`, of the present one halved again and again. `None` if none does, down to an image for each part.
    pub fn fitting_batch(&self, fits: impl Fn(u64) -> bool) -> Option<u64> {
        let least = self.accumulate.max(1);
        let halves =
            std::iter::successors(Some(self.batch_size), |size| (size / 2 >= least).then_some(size / 2));
        halves.into_iter().find(|size| fits(*size))
    }
}

/// Bytes of the images that are trained on and evaluated, in the size in which they are held here. Of data of the user's own under
/// the name of a data set, there may be others; what a program gives it holds itself.
fn held(recipe: &Recipe) -> u64 {
    let DatasetChoice::Named(name) = recipe.data.dataset else { return 0 };
    let info = name.info();
    let n_train = recipe.data.train_limit.map_or(info.n_train, |limit| limit.min(info.n_train));
    (n_train as u64 + n_test(recipe).unwrap_or(0)) * info.shape.n_values() as u64
}

/// Images that are evaluated; `None` of a program's own without a limit, whose number is not known here.
fn n_test(recipe: &Recipe) -> Option<u64> {
    let published = match recipe.data.dataset {
        DatasetChoice::Named(name) => Some(name.info().n_test),
        DatasetChoice::Own { .. } | DatasetChoice::Folder { .. } => None,
    };
    [published, recipe.data.test_limit].into_iter().flatten().min().map(|n| n as u64)
}

/// Further copies of all parameters that the optimizer and the moving average keep.
fn of_training(recipe: &Recipe) -> u64 {
    let optimizer = match recipe.train.optimizer {
        OptimizerRecipe::Sgd { momentum: 0.0, .. } => 0,
        OptimizerRecipe::Sgd { .. } => 1,
        OptimizerRecipe::Adam { .. } | OptimizerRecipe::AdamW { .. } => 2,
    };
    optimizer + if recipe.train.ema_decay.is_some() { 2 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimate(recipe: &str, overrides: &[&str]) -> MemoryEstimate {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        let recipe = Recipe::embedded(recipe, &overrides).unwrap();
        MemoryEstimate::new(&recipe, Kept::Codes).unwrap()
    }

    /// A batch counts for every network that is trained, and the phase in which most is kept.
    #[test]
    fn all_networks_and_phases_count() {
        let alone = estimate("digits-preresnet8-w2a2", &[]);
        let joint = estimate("digits-preresnet8-w2a2-joint", &[]);
        let full = estimate("digits-preresnet8-fp32", &[]);
        assert!(alone.per_image < full.per_image, "{alone:?} {full:?}");
        let two = alone.per_image + full.per_image;
        // What one operation takes beside is counted once.
        assert!(joint.per_image > two * 3 / 4 && joint.per_image < two, "{joint:?}");
        assert_eq!(joint.parameters, alone.parameters + full.parameters);
        let two_stage = estimate("digits-preresnet8-w2a2", &["strategy.two_stage=true"]);
        assert_eq!(two_stage.per_image, full.per_image);
        let partial = estimate("digits-preresnet8-w2a2", &["strategy.stochastic_precision={unit='layer'}"]);
        assert!(partial.per_image >= full.per_image, "{partial:?} {full:?}");
        let averaged = estimate("digits-preresnet8-w2a2", &["train.ema_decay=0.9"]);
        assert_eq!(averaged.parameters * 5, alone.parameters * 7);
    }

    #[test]
    fn an_evaluation_is_more_than_small_batches() {
        let of = estimate("digits-preresnet8-w2a2", &["data.batch_size=2"]);
        assert_eq!(of.device(2), of.parameters + of.evaluation);
        assert_eq!(of.device(1024), of.parameters + 1024 * of.per_image);
        assert_eq!(of.largest(2), of.largest(256));
        // There is no batch of more images than are evaluated.
        let few = estimate("digits-preresnet8-w2a2", &["data.batch_size=2", "data.test_limit=64"]);
        assert_eq!(few.evaluation * 4, of.evaluation);
        assert_eq!(few.largest(2), few.largest(64));
        let many = estimate("digits-preresnet8-w2a2", &["data.batch_size=2", "data.test_limit=300"]);
        assert_eq!(many.evaluation, of.evaluation);
        assert_eq!(of.total(2), of.host(2) + of.device(2));
        // More images than can be counted are no overflow.
        assert_eq!(of.total(u64::MAX), u64::MAX);
    }

    /// Images are held in their own size, and in the network's only in the batches that are prepared: of large ones fewer.
    #[test]
    fn images_that_are_resized_are_held_as_they_are() {
        let of = estimate("digits-preresnet8-w2a2", &[]);
        let resized = estimate("digits-preresnet8-w2a2", &["data.size=64"]);
        assert_eq!(resized.program, of.program);
        assert_eq!(resized.input_per_image, 64 * of.input_per_image);
        assert_eq!(of.host(100) - of.program, 6 * 100 * 64 * 4);
        assert_eq!(resized.host(100_000) - resized.program, 3 * 100_000 * 64 * 64 * 4);
    }

    /// Of a batch in parts, one is on the device; the host prepares all of it.
    #[test]
    fn parts_of_a_batch_count_one_by_one() {
        let whole = estimate("digits-preresnet8-w2a2", &["data.batch_size=1000"]);
        let parts = estimate("digits-preresnet8-w2a2", &["data.batch_size=1000", "train.accumulate=3"]);
        assert_eq!(parts.device(1000), whole.device(334));
        assert_eq!(parts.host(1000), whole.host(1000));
        assert_eq!(parts.largest(1000), whole.largest(334));
    }

    #[test]
    fn a_batch_that_fits_is_found_by_halves() {
        let of = estimate("digits-preresnet8-w2a2", &["data.batch_size=48"]);
        assert_eq!(of.fitting_batch(|size| size <= 13), Some(12));
        assert_eq!(of.fitting_batch(|size| size <= 48), Some(48));
        assert_eq!(of.fitting_batch(|_| false), None);
    }
}
