//! The networks of a training: which there are, and what each is in a phase. None is built here.

use std::ops::Deref;

use lowbit_core::Precision;
use lowbit_models::{ModelConfig, Plan};
use lowbit_quantizers::QuantizationPolicy;

use crate::error::{IoContext, TrainError};
use crate::recipe::{Recipe, TrainRecipe};
use crate::strategy::{Init, NetworkSpec, Phase, Role, STUDENT, Strategy, compose_networks};

/// One network of a training, with what follows from its place among the others.
#[derive(Clone, Debug)]
pub(crate) struct PlacedSpec {
    pub(crate) spec: NetworkSpec,
    /// Initial weights are drawn from this.
    pub(crate) seed: u64,
    /// Channels of each feature map and those of the network that it is adapted to, where they differ.
    pub(crate) adapted_channels: Vec<Option<[usize; 2]>>,
}

impl Deref for PlacedSpec {
    type Target = NetworkSpec;

    fn deref(&self) -> &NetworkSpec {
        &self.spec
    }
}

/// The networks of a training of `recipe` with `strategies`, the deployed one first.
///
/// # Errors
/// [`TrainError`] if a strategy makes networks that cannot train together or are not defined.
pub(crate) fn network_specs(
    recipe: &Recipe,
    strategies: &[Box<dyn Strategy>],
) -> Result<Vec<PlacedSpec>, TrainError> {
    let init = recipe.init.clone().map(|path| Init { path, key: "init" });
    let student = NetworkSpec::student(STUDENT, recipe.model.clone(), recipe.quantization.policy.clone());
    let specs = compose_networks(strategies, NetworkSpec { init, ..student })?;
    let place = |(index, spec): (usize, &NetworkSpec)| {
        Ok(PlacedSpec {
            // Networks beside the first begin elsewhere. The constant spreads the indices over all seeds.
            seed: recipe.seed.wrapping_add((index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            adapted_channels: adapted_channels(recipe, spec, &specs)?,
            spec: spec.clone(),
        })
    };
    specs.iter().enumerate().map(place).collect()
}

fn adapted_channels(
    recipe: &Recipe,
    spec: &NetworkSpec,
    all: &[NetworkSpec],
) -> Result<Vec<Option<[usize; 2]>>, TrainError> {
    let target = spec.adapts_to.as_ref().and_then(|to| all.iter().find(|other| other.name == *to));
    let Some(target) = target else { return Ok(Vec::new()) };
    let shapes = |model: &ModelConfig| model.tap_shapes(recipe.data.input_shape());
    let pairs = shapes(&spec.model)?.into_iter().zip(shapes(&target.model)?);
    Ok(pairs.map(|([own, ..], [target, ..])| (own != target).then_some([own, target])).collect())
}

impl PlacedSpec {
    /// Makes the path of what it begins with one that is found from anywhere, as those of a recipe are.
    pub(crate) fn place_init(&mut self) -> Result<(), TrainError> {
        if let Some(init) = &mut self.spec.init {
            init.path = std::path::absolute(&init.path).context("find", &init.path)?;
        }
        Ok(())
    }

    /// The precision of its layers in `phase`.
    pub(crate) fn policy(&self, recipe: &Recipe, phase: &Phase) -> QuantizationPolicy {
        match self.role {
            // The floor is made for the target of the deployed network, also where it holds back another student.
            Role::Student => self.spec.policy.with_floor(recipe.quantization.held_floor(phase.floor)),
            Role::Teacher => self.spec.policy.clone(),
        }
    }

    /// How it is trained in `phase`.
    pub(crate) fn train<'a>(&self, recipe: &'a Recipe, phase: &'a Phase) -> &'a TrainRecipe {
        if self.trains_throughout { &recipe.train } else { &phase.train }
    }

    /// The precision of its activations in `phase`, where no key of `[quantization]` sets another.
    pub(crate) fn act_bits(&self, recipe: &Recipe, phase: &Phase) -> Precision {
        let policy = self.policy(recipe, phase);
        policy.base.act_bits.max(policy.floor.act_bits)
    }

    /// Parameters of the network, whatever its precision.
    pub(crate) fn n_parameters(&self, recipe: &Recipe) -> Result<usize, TrainError> {
        let (input, n_classes) = (recipe.data.input_shape(), recipe.data.n_classes());
        let plan = self.model.plan(input, n_classes, &QuantizationPolicy::full_precision())?;
        Ok(plan.n_parameters())
    }

    /// The precision of every layer in `phase`.
    pub(crate) fn plan(&self, recipe: &Recipe, phase: &Phase) -> Result<Plan, TrainError> {
        let (input, n_classes) = (recipe.data.input_shape(), recipe.data.n_classes());
        Ok(self.model.plan(input, n_classes, &self.policy(recipe, phase))?)
    }
}
