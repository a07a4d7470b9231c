//! The trait of all strategies, and what the training loop tells them and hears from them.

use std::fmt;

use burn::tensor::Tensor;
use lowbit_quantizers::Selection;

use crate::fingerprint::Settings;
use crate::network::{NetworkSpec, Output, Outputs};
use crate::phase::Phase;

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
