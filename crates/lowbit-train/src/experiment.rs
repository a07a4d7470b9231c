//! What a recipe makes of a training: its networks, its phases, its line of steps. No network is built here.

use lowbit_core::Compute;
use lowbit_models::Plan;

use crate::error::TrainError;
use crate::networks::{PlacedSpec, network_specs};
use crate::recipe::{Recipe, TrainRecipe};
use crate::strategy::{Fingerprint, Phase, Strategy};

/// A recipe with all strategies, those of a caller among them, and what they make of it. Training, going on, evaluating and
/// inspecting have this from one place.
pub(crate) struct Experiment {
    pub(crate) recipe: Recipe,
    /// Those of the recipe, then the caller's own.
    pub(crate) strategies: Vec<Box<dyn Strategy>>,
    /// The networks, the deployed one first.
    pub(crate) networks: Vec<PlacedSpec>,
    pub(crate) phases: Vec<Phase>,
    /// The settings of a network that trains through all phases as in one.
    pub(crate) whole: TrainRecipe,
}

impl Experiment {
    /// A training of `recipe` with strategies of its own and the caller's.
    ///
    /// # Errors
    /// [`TrainError`] if a strategy gives an answer that no training can go by.
    pub(crate) fn new(recipe: Recipe, mut own: Vec<Box<dyn Strategy>>) -> Result<Self, TrainError> {
        let mut strategies = recipe.strategies();
        strategies.append(&mut own);
        let mut networks = network_specs(&recipe, &strategies)?;
        networks.iter_mut().try_for_each(PlacedSpec::place_init)?;
        let phases = recipe.phases_with(&strategies)?;
        let whole = recipe.train_over(phases.iter().map(|phase| phase.train.epochs).sum());
        Ok(Self { recipe, strategies, networks, phases, whole })
    }

    /// What a run that is read trains. Strategies of a caller's own are not known here.
    ///
    /// # Errors
    /// [`TrainError`] if a network is not defined.
    pub(crate) fn of_recipe(recipe: &Recipe) -> Result<Self, TrainError> {
        Self::new(recipe.clone(), Vec::new())
    }

    /// The phase of this number, from 0.
    ///
    /// # Errors
    /// [`TrainError::NoPhase`].
    pub(crate) fn phase(&self, phase: usize) -> Result<&Phase, TrainError> {
        let n_phases = self.phases.len();
        self.phases.get(phase).ok_or(TrainError::NoPhase { phase: phase + 1, n_phases })
    }

    /// The number of the last phase, which has the precision that is asked for.
    pub(crate) fn last_phase(&self) -> usize {
        self.phases.len() - 1
    }

    /// The precision of every layer of the deployed network at the end.
    pub(crate) fn plan(&self) -> Result<Plan, TrainError> {
        self.networks[0].plan(&self.recipe, &self.phases[self.last_phase()])
    }

    /// Parameters of the largest network.
    pub(crate) fn n_parameters(&self) -> Result<Option<usize>, TrainError> {
        let sizes = self.networks.iter().map(|spec| spec.n_parameters(&self.recipe));
        Ok(sizes.collect::<Result<Vec<_>, _>>()?.into_iter().max())
    }

    /// Epochs of all phases.
    pub(crate) fn epochs(&self) -> u64 {
        self.phases.iter().map(|phase| phase.train.epochs).sum()
    }

    /// Refuses more processes than there are images in a batch for, or so many that BatchNorm has nothing to go by.
    ///
    /// # Errors
    /// [`TrainError::TooManyRanks`], [`TrainError::OneImageEach`].
    pub(crate) fn expect_images_for(&self, ranks: usize) -> Result<(), TrainError> {
        if ranks == 1 {
            return Ok(());
        }
        let batch_size = self.recipe.data.batch_size;
        for train in self.phases.iter().map(|phase| &phase.train) {
            let accumulate = train.accumulate;
            if batch_size < ranks * accumulate {
                return Err(TrainError::TooManyRanks { ranks, batch_size, accumulate });
            }
            if batch_size / (ranks * accumulate) > 1 {
                continue;
            }
            for spec in &self.networks {
                let graph = spec.model.graph(self.recipe.data.input_shape(), self.recipe.data.n_classes())?;
                if graph.fewest_values_per_norm() == Some(1) {
                    let network = spec.name.clone();
                    return Err(TrainError::OneImageEach { ranks, accumulate, network });
                }
            }
        }
        Ok(())
    }

    /// Whether any network computes in bf16 in any phase.
    pub(crate) fn computes_in_bf16(&self) -> bool {
        let of_phases = self.phases.iter().map(|phase| phase.train.compute);
        of_phases.chain([self.recipe.train.compute]).any(|compute| compute == Compute::Bf16)
    }

    /// What tells its strategies from others.
    pub(crate) fn fingerprints(&self) -> Vec<Fingerprint> {
        fingerprints(&self.strategies)
    }

    /// The phases on the line of steps, with so many an epoch.
    pub(crate) fn timeline(&self, steps_per_epoch: u64) -> Timeline {
        let ends = self.phases.iter().scan(0, |step, phase| {
            *step += phase.train.epochs * steps_per_epoch;
            Some(*step)
        });
        Timeline { starts: std::iter::once(0).chain(ends).collect(), steps_per_epoch }
    }

    /// A warning for each phase that is shorter than its moving average is long.
    pub(crate) fn long_averages(&self, timeline: &Timeline) -> Vec<String> {
        let warning = |phase: &Phase| {
            let decay = phase.train.ema_decay?;
            let (length, steps) = (1.0 / (1.0 - decay), phase.train.epochs * timeline.steps_per_epoch);
            let effect = match phase.train.ema_warmup {
                Some(true) => "its warm-up shortens it",
                _ => "it still holds the weights that the phase began with: take ema_warmup=true",
            };
            (length > steps as f64).then(|| {
                format!(
                    "train.ema_decay={decay} averages over {length:.0} steps, but phase {} has {steps}: {effect}, or take a \
                     smaller ema_decay",
                    phase.name
                )
            })
        };
        self.phases.iter().filter_map(warning).collect()
    }
}

/// What tells `strategies` from others.
pub(crate) fn fingerprints(strategies: &[Box<dyn Strategy>]) -> Vec<Fingerprint> {
    strategies.iter().map(|strategy| Fingerprint::of(strategy.as_ref())).collect()
}

/// The precision of every layer of a recipe's network, without building it.
///
/// # Errors
/// [`TrainError`] if the network is not defined.
pub fn plan(recipe: &Recipe) -> Result<Plan, TrainError> {
    Experiment::of_recipe(recipe)?.plan()
}

/// The phases of a training on its line of steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Timeline {
    /// First step of each phase, and the number of all steps.
    starts: Vec<u64>,
    pub(crate) steps_per_epoch: u64,
}

impl Timeline {
    /// First step of phase `phase`; of one past the last, the number of all steps.
    pub(crate) fn start(&self, phase: usize) -> u64 {
        self.starts[phase]
    }

    /// Number of all steps.
    pub(crate) fn steps(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }
}
