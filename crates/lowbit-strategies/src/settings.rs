//! How a phase is trained, as far as a strategy may decide it: epochs, optimizer, learning rate over time.

use lowbit_core::Compute;
use serde::Serialize;

/// `[train]`: the optimization.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainRecipe {
    /// Passes over the training images.
    pub epochs: u64,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Images of a batch that the learning rate of the recipe is for: with another `data.batch_size`, it is that in proportion. In a phase,
    /// where it has been scaled, it is kept for the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate_batch: Option<u64>,
    /// Optimizer.
    pub optimizer: OptimizerRecipe,
    /// L2 decay of all parameters but the quantizers' (decoupled for AdamW).
    pub weight_decay: f64,
    /// Learned parameters of the quantizers.
    pub quantizers: QuantizerGroup,
    /// Learning rate over time.
    pub schedule: ScheduleRecipe,
    /// Epochs over which the learning rate rises linearly, as a factor on the schedule's course, which counts from the
    /// first epoch.
    pub warmup_epochs: f64,
    /// Largest norm of all gradients together; larger ones are scaled down to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_clip: Option<f64>,
    /// Parts of a batch that are computed one after the other; their gradients are added up for one update.
    #[serde(skip_serializing_if = "is_one")]
    pub accumulate: usize,
    /// Whether BatchNorm goes by the images of all processes that train together, instead of those of each.
    #[serde(skip_serializing_if = "is_off")]
    pub sync_norms: bool,
    /// Share of the target probability spread evenly over all classes.
    pub label_smoothing: f64,
    /// Decay per step of the exponential moving average of the weights, which is then what is evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// Whether that decay rises to `ema_decay` from the phase's first step on, so that the average does not hold the initial
    /// weights for longer than a phase may last; set where `ema_decay` is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_warmup: Option<bool>,
    /// Training batches over which BatchNorm's statistics are estimated anew before each evaluation; 0 keeps the
    /// running ones.
    pub norm_reestimation_batches: usize,
    /// Training batches that set the ranges of the activation quantizers before the first step.
    pub calibration_batches: usize,
    /// Epochs between evaluations; the last epoch is always evaluated.
    pub eval_every: u64,
    /// How the products of convolutions are computed in a step.
    pub compute: Compute,
}

/// Whether it is not asked for, which is not written down either.
fn is_off(is_on: &bool) -> bool {
    !is_on
}

/// Whether a batch is computed as a whole, which is not written down: a recipe of an earlier lowbit says nothing of it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(accumulate: &usize) -> bool {
    *accumulate == 1
}

impl TrainRecipe {
    /// Decay of the moving average at its update `t` of the phase, from 0: with a warm-up, at most `(1 + t) / (10 + t)`.
    pub fn ema_decay_at(&self, t: u64) -> Option<f64> {
        let decay = self.ema_decay?;
        let t = t as f64;
        Some(if self.ema_warmup == Some(true) { decay.min((1.0 + t) / (10.0 + t)) } else { decay })
    }
}

/// `[train.optimizer]`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum OptimizerRecipe {
    /// Stochastic gradient descent.
    Sgd {
        /// Momentum.
        momentum: f64,
        /// Nesterov's form of it.
        nesterov: bool,
    },
    /// Adam, decay added to the gradient.
    Adam {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        epsilon: f64,
    },
    /// Adam with decoupled decay.
    #[serde(rename = "adamw")]
    AdamW {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        epsilon: f64,
    },
}

/// `[train.quantizers]`: learned step sizes and clip values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct QuantizerGroup {
    /// Their learning rate as a multiple of the others'.
    pub learning_rate_scale: f64,
    /// Their own decay.
    pub weight_decay: f64,
}

/// `[train.schedule]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ScheduleRecipe {
    /// The learning rate stays.
    Constant,
    /// It falls to zero over all steps along half a cosine.
    Cosine,
    /// It is multiplied by `gamma` after each of the epochs in `milestones`.
    MultiStep {
        /// Epochs after which it falls, ascending.
        milestones: Vec<u64>,
        /// Factor of each fall.
        gamma: f64,
    },
}
