//! The trait of all strategies, and what the training loop tells them and hears from them.

use std::fmt;

use burn::tensor::Tensor;
use lowbit_quantizers::Selection;

use crate::fingerprint::Settings;
use crate::network::{NetworkSpec, Output, Outputs};
use crate::phase::Phase;
use crate::weights::{LayerWeights, Measure, Notes, UpdatedLayer};

/// One way to train a low-bit network. See the [crate].
pub trait Strategy: fmt::Debug + Send + Sync {
    /// Its name, as in "joint": runs record it, and errors name it.
    fn name(&self) -> &str;

    /// All that decides its answers, besides their arguments: runs record it, and go on only with the same. It is to be the same in
    /// every process: [`Settings::of`] says what is not.
    fn settings(&self) -> Settings;

    /// The networks of the training, made from the `networks` of the strategies before; they begin as the single one that is
    /// deployed, which stays the first. What a network begins with depends on its place, so that new ones belong to the end.
    fn networks(&self, networks: Vec<NetworkSpec>) -> Vec<NetworkSpec> {
        networks
    }

    /// The phases of the training, made from the `phases` of the strategies before; they begin as a single one at the
    /// precision of the recipe.
    fn phases(&self, phases: Vec<Phase>) -> Vec<Phase> {
        phases
    }

    /// Which part of each of the quantized `layers` is quantized in a step, in their order. `None` leaves the choice to
    /// the strategies before; without any, everything is. A function of its arguments alone.
    fn select(&self, _moment: &Moment, _layers: &[QuantizedLayer]) -> Option<Vec<Selection>> {
        None
    }

    /// Whether [`select`](Self::select) reads [`QuantizedLayer::error`], which costs a read from the device per step.
    fn needs_errors(&self) -> bool {
        false
    }

    /// The loss of a network that makes `network` of the batch, one of the `outputs`; made from the `loss` of the strategies
    /// before, which begins as the cross entropy with the labels. What is not to be trained through must be detached.
    fn loss(&self, _network: &Output, _outputs: &Outputs<'_>, loss: Loss) -> Loss {
        loss
    }

    /// Whether it looks at the quantized weights of students: if so, it is asked for [`begin`](Self::begin),
    /// [`weight_rate`](Self::weight_rate), [`update`](Self::update) and [`penalty`](Self::penalty).
    fn reads_weights(&self) -> bool {
        false
    }

    /// What it keeps of a student, as a phase with this learning rate begins with the quantized `layers`. A checkpoint holds it, and
    /// what it is made of may change in no step.
    fn begin(&self, _learning_rate: f64, _layers: &[LayerWeights]) -> Notes {
        Notes::default()
    }

    /// The learning rate of a student's quantized weights in a step. `None` leaves it to the strategies before; without any, it is that
    /// of the schedule.
    fn weight_rate(&self, _moment: &Moment, _notes: &Notes) -> Option<f64> {
        None
    }

    /// Whether [`weight_rate`](Self::weight_rate) ever does. What the quantizers of these weights learn is then not trained.
    fn sets_weight_rate(&self) -> bool {
        false
    }

    /// What becomes of the quantized weights of a student after an update by the optimizer, and what was measured.
    fn update(&self, _moment: &Moment, _layers: &mut [UpdatedLayer], _notes: &mut Notes) -> Vec<Measure> {
        Vec::new()
    }

    /// What the quantized weights of a student add to its loss.
    fn penalty(&self, _moment: &Moment, _layers: &[LayerWeights]) -> Option<LossPart> {
        None
    }

    /// What is added to a student's quantized weights where its gradients are taken, from the `gradients` by these weights, layer
    /// by layer. `None` leaves it to the strategies before.
    fn perturbation(&self, _gradients: &[Tensor<2>]) -> Option<Vec<Tensor<2>>> {
        None
    }

    /// Whether [`perturbation`](Self::perturbation) ever does, which takes a second pass.
    fn looks_beside(&self) -> bool {
        false
    }
}

/// Name of the sum of a loss's parts.
pub const TOTAL: &str = "total";

/// The loss of one network: a sum of named parts, which are logged apart, beside their sum, `total`.
#[derive(Clone, Debug)]
pub struct Loss {
    parts: Vec<LossPart>,
}

/// A part of a [`Loss`].
#[derive(Clone, Debug)]
pub struct LossPart {
    /// Its name in `metrics.jsonl`, as in "labels".
    pub name: &'static str,
    /// What it adds to the loss, its weight included. Shape `[1]`.
    pub value: Tensor<1>,
}

impl Loss {
    /// A loss of one part, whose `value` has shape `[1]`.
    ///
    /// # Panics
    /// If the name is "total", which is that of the sum.
    pub fn new(name: &'static str, value: Tensor<1>) -> Self {
        Self { parts: Vec::new() }.plus(name, value)
    }

    /// The loss with every part times `weight`.
    pub fn scaled(self, weight: f64) -> Self {
        let scale = |LossPart { name, value }| LossPart { name, value: value * weight };
        Self { parts: self.parts.into_iter().map(scale).collect() }
    }

    /// The loss with a part more, whose `value` has shape `[1]`; with the name of an earlier part, that part grows.
    ///
    /// # Panics
    /// If the name is "total", which is that of the sum.
    pub fn plus(mut self, name: &'static str, value: Tensor<1>) -> Self {
        assert_ne!(name, TOTAL, "name of a loss's part: that of the sum is taken");
        match self.parts.iter_mut().find(|part| part.name == name) {
            Some(part) => part.value = part.value.clone() + value,
            None => self.parts.push(LossPart { name, value }),
        }
        self
    }

    /// The parts, in the order in which they are added.
    pub fn parts(&self) -> &[LossPart] {
        &self.parts
    }

    /// The sum of all parts, shape `[1]`.
    pub fn total(&self) -> Tensor<1> {
        let sum = self.parts.iter().map(|part| part.value.clone()).reduce(|sum, part| sum + part);
        sum.expect("invariant: a loss begins with a part")
    }
}

/// A point in a training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seed of the run.
    pub seed: u64,
    /// Step of the training, from 0.
    pub step: u64,
    /// Step of the phase, from 0.
    pub phase_step: u64,
    /// Steps of the phase in all.
    pub phase_steps: u64,
}

/// A layer with quantized weights or input.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedLayer {
    /// Path in the network.
    pub path: String,
    /// Relative error of quantizing the weights, `sum|q - w| / sum|w|`; `None` where they are in full precision, and
    /// unless a strategy [needs it](Strategy::needs_errors).
    pub error: Option<f64>,
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn a_part_is_not_named_as_the_sum() {
        let named = |name| {
            std::panic::catch_unwind(move || {
                let value = || Tensor::ones([1], &Device::default());
                Loss::new("labels", value()).plus(name, value()).total().into_scalar::<f32>()
            })
        };
        assert_eq!(named("own").ok(), Some(2.0));
        assert!(named("total").is_err());
    }
}
