//! Stochastic gradient descent as an optimizer of burn, one operation for each tensor.

use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource, join_path};
use burn::tensor::{Device, Tensor};

use crate::{SgdStep, SgdStepped, sgd_step};

/// Stochastic gradient descent with momentum and weight decay as burn's and PyTorch's, without dampening. Its records are those of burn's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sgd {
    /// The share of the velocity that stays; `None` without momentum.
    pub momentum: Option<f32>,
    /// Whether a step is one ahead of the velocity.
    pub is_nesterov: bool,
    /// The share of the weights that is added to their gradient.
    pub weight_decay: Option<f32>,
}

/// Velocity of a parameter: what its gradients have added up to.
#[derive(Clone, Debug)]
pub struct Velocity<const D: usize>(Option<Tensor<D>>);

impl<const D: usize> RecordState for Velocity<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        if let Some(velocity) = &self.0 {
            out.push_tensor(&join_path(prefix, "momentum"), "velocity", velocity.clone().into_data());
        }
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        let velocity = src.take_tensor(&join_path(prefix, "momentum"), "velocity");
        Some(Self(velocity.map(|velocity| Tensor::from_data(velocity, device))))
    }
}

impl Optimizer for Sgd {
    type State<const D: usize> = Velocity<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: LearningRate,
        weight: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let Self { momentum, is_nesterov, weight_decay } = *self;
        let velocity = state.and_then(|Velocity(velocity)| velocity);
        let is_first = velocity.is_none();
        let step = SgdStep { learning_rate, weight_decay, momentum, is_nesterov, is_first };
        let SgdStepped { weight, velocity } = sgd_step(weight, gradient, velocity, step);
        (weight, Some(Velocity(velocity)))
    }

    fn to_device<const D: usize>(Velocity(velocity): Self::State<D>, device: &Device) -> Self::State<D> {
        Velocity(velocity.map(|velocity| velocity.to_device(device)))
    }
}
