//! `[phases]`: into which phases a training is divided, and what they change.

use std::collections::BTreeMap;

use serde::Serialize;

use super::reader::{NumberRange, Section};
use super::{Recipe, ScheduleRecipe, TrainRecipe, read_schedule};
use crate::strategy::{
    OptimizerState, Phase, QuantizerState, Strategy, StrategyError, compose_phases, phase_name,
};

/// `[phases.NAME]`: what a phase changes of `[train]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PhaseRecipe {
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<ScheduleRecipe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_epochs: Option<f64>,
    optimizer_state: OptimizerState,
    quantizer_state: QuantizerState,
}

impl PhaseRecipe {
    /// Changes all settings but the epochs, to which those of `phase` are scaled already.
    fn apply(&self, phase: &mut Phase) {
        let Self { learning_rate, weight_decay, schedule, warmup_epochs, .. } = self.clone();
        let train = &mut phase.train;
        train.learning_rate = learning_rate.unwrap_or(train.learning_rate);
        train.weight_decay = weight_decay.unwrap_or(train.weight_decay);
        train.schedule = schedule.unwrap_or_else(|| train.schedule.clone());
        train.warmup_epochs = warmup_epochs.unwrap_or(train.warmup_epochs);
        phase.optimizer_state = self.optimizer_state;
        phase.quantizer_state = self.quantizer_state;
    }
}

impl Recipe {
    /// The phases of the training with the recipe's own strategies.
    pub fn phases(&self) -> Vec<Phase> {
        self.phases_with(&self.strategies())
            .expect("invariant: the phases of a recipe are checked when it is read")
    }

    /// The phases of the training with `strategies`, with the settings of `[train]` and `[phases]`.
    ///
    /// The epochs of `[train]` are those of the whole training: the last phase, which has the precision asked for, gets
    /// half of them and the others share the rest (decision of this project: methods are compared at equal cost).
    /// Milestones and warm-up shrink, or grow, with the epochs of the phase. A strategy that gives any phase epochs of its
    /// own decides those of all phases, with their milestones and warm-up. `[phases]` has the last word.
    ///
    /// # Errors
    /// [`PhasesError`] if two phases have the same name, one has no epoch, there is none, or `[phases]` names one that there is not.
    pub fn phases_with(&self, strategies: &[Box<dyn Strategy>]) -> Result<Vec<Phase>, PhasesError> {
        let mut phases = self.composed_phases(strategies)?;
        let names: Vec<String> = phases.iter().map(|phase| phase.name.clone()).collect();
        // Those of the recipe were checked when it was read; a caller's strategies may have made others of them.
        if let Some(name) = self.phases.keys().find(|name| !names.contains(name)) {
            return Err(PhasesError::Unknown { name: name.clone(), phases: names });
        }
        let too_few = || PhasesError::TooFewEpochs { epochs: self.train.epochs, phases: names.clone() };
        let are_own = phases.iter().any(|phase| phase.train.epochs != self.train.epochs);
        let named = |phase: &Phase| self.phases.get(&phase.name).and_then(|change| change.epochs);
        let of_phase = |phase: &Phase| named(phase).unwrap_or(phase.train.epochs);
        let given: u64 = phases.iter().map(of_phase).sum();
        if are_own && given != self.train.epochs && !phases.iter().all(|phase| named(phase).is_some()) {
            let of_phases = phases.iter().map(|phase| format!("{} of {}", of_phase(phase), phase.name));
            let phases = of_phases.collect::<Vec<_>>().join(", ");
            return Err(PhasesError::OtherEpochs { epochs: self.train.epochs, given, phases });
        }
        let shares = divided_epochs(self.train.epochs, phases.len() as u64);
        for (i, phase) in phases.iter_mut().enumerate() {
            let change = self.phases.get(&phase.name);
            match change.and_then(|change| change.epochs) {
                Some(epochs) => resize(&mut phase.train, epochs),
                None if are_own && phase.train.epochs == 0 => {
                    return Err(PhasesError::NoEpochs { name: phase.name.clone() });
                }
                None if are_own => {}
                None => resize(&mut phase.train, shares.as_ref().ok_or_else(too_few)?[i]),
            }
            if let Some(change) = change {
                change.apply(phase);
            }
            self.scale_learning_rate(&mut phase.train);
        }
        Ok(phases)
    }

    /// Scales a learning rate to the size of the batches, if the recipe asks for that: the linear rule of Goyal et al. 2017 (arXiv
    /// 1706.02677, section 2.1).
    fn scale_learning_rate(&self, train: &mut TrainRecipe) {
        if let Some(batch) = self.train.learning_rate_batch {
            train.learning_rate *= self.data.batch_size as f64 / batch as f64;
        }
    }

    /// The settings of `[train]` for a training of `epochs`.
    pub(crate) fn train_over(&self, epochs: u64) -> TrainRecipe {
        let mut train = self.train.clone();
        resize(&mut train, epochs);
        self.scale_learning_rate(&mut train);
        train
    }

    /// The phases as `strategies` make them, each with the settings of `[train]`.
    fn composed_phases(&self, strategies: &[Box<dyn Strategy>]) -> Result<Vec<Phase>, StrategyError> {
        let floor = self.quantization.target();
        let single = Phase {
            name: phase_name(floor.weight_bits, floor.act_bits),
            floor,
            train: self.train.clone(),
            optimizer_state: OptimizerState::default(),
            quantizer_state: QuantizerState::default(),
        };
        compose_phases(strategies, single)
    }

    /// Epochs of all phases together.
    pub fn total_epochs(&self) -> u64 {
        self.phases().iter().map(|phase| phase.train.epochs).sum()
    }
}

/// Phases that no training can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhasesError {
    /// There are more phases than epochs.
    #[error("train.epochs={epochs} is too few for {} phases ({}): at least {}, or give [phases.NAME] epochs of their own, or drop a part of [strategy]", .phases.len(), .phases.join(", "), .phases.len())]
    TooFewEpochs {
        /// Epochs of the training.
        epochs: u64,
        /// Names of the phases.
        phases: Vec<String>,
    },
    /// Strategies give phases epochs of their own, which with those of `[phases]` are not as many as the training has.
    #[error(
        "train.epochs={epochs}, but the phases have {given} epochs together, as the strategies give them ({phases}): set train.epochs={given}, or give each of [phases.NAME] its epochs"
    )]
    OtherEpochs {
        /// Epochs of the training.
        epochs: u64,
        /// Those of all phases.
        given: u64,
        /// The epochs of each phase by name.
        phases: String,
    },
    /// A strategy makes phases that cannot be told apart, or none.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// `[phases]` changes a phase that there is not.
    #[error("phases.{name}: the strategies make no such phase; the phases are {}", .phases.join(", "))]
    Unknown {
        /// Its name.
        name: String,
        /// Names of the phases.
        phases: Vec<String>,
    },
    /// A strategy gives a phase no epoch.
    #[error("the strategies give phase {name:?} no epoch")]
    NoEpochs {
        /// Its name.
        name: String,
    },
}

/// The epochs of each of `n_phases` phases of a training of `epochs`: half for the last, equal shares for the others, of
/// which each has at least one. `None` if there are more phases than epochs.
fn divided_epochs(epochs: u64, n_phases: u64) -> Option<Vec<u64>> {
    let n_early = n_phases - 1;
    let early = if n_early == 0 { 0 } else { (epochs / 2).max(n_early) };
    let last = epochs.checked_sub(early).filter(|&last| last > 0)?;
    let share = |phase: u64| early * (phase + 1) / n_early - early * phase / n_early;
    Some((0..n_early).map(share).chain([last]).collect())
}

/// Gives `train` other epochs; what it counts in epochs changes in proportion.
fn resize(train: &mut TrainRecipe, epochs: u64) {
    let scale = epochs as f64 / train.epochs as f64;
    train.epochs = epochs;
    train.warmup_epochs = (train.warmup_epochs * scale).min(epochs as f64);
    if let ScheduleRecipe::MultiStep { milestones, .. } = &mut train.schedule {
        for milestone in milestones.iter_mut() {
            *milestone = ((*milestone as f64 * scale).round_ties_even() as u64).max(1);
        }
        milestones.dedup();
    }
}

/// `[phases]`, checked against the phases that there are.
pub(super) fn read_phases(root: &Section<'_>, recipe: &mut Recipe) {
    if let Some(section) = root.optional_section("phases") {
        read_changes(section, recipe);
    }
    // With mistakes in what makes them, the phases are not those that are meant.
    if !root.any_in(&MAKES_PHASES)
        && !root.any_in(&["train", "phases"])
        && let Err(error) = recipe.phases_with(&recipe.strategies())
    {
        root.problem("strategy", error.to_string());
    }
}

/// The keys that decide which phases there are, and their names.
const MAKES_PHASES: [&str; 4] = ["data.dataset", "model", "quantization", "strategy"];

fn read_changes(section: Section<'_>, recipe: &mut Recipe) {
    let has_mistakes = section.any_in(&MAKES_PHASES);
    // What is wrong with the phases themselves is said once all is read.
    let Ok(mut phases) = recipe.composed_phases(&recipe.strategies()) else { return };
    let n_phases = phases.len() as u64;
    // Where there are too few, the phases may have epochs of their own.
    let shares = divided_epochs(recipe.train.epochs, n_phases).unwrap_or_else(|| vec![1; phases.len()]);
    for (phase, share) in phases.iter_mut().zip(shares) {
        resize(&mut phase.train, share);
    }
    let names: Vec<String> = phases.iter().map(|phase| phase.name.clone()).collect();
    let mut changes = BTreeMap::new();
    for (name, table) in section.subsections() {
        match phases.iter().find(|phase| phase.name == name) {
            Some(phase) => {
                changes.insert(name, read_phase(table, phase.train.clone()));
            }
            // Of a precision that is not the one that is meant, the phases have other names.
            None if has_mistakes => drop(read_phase(table, recipe.train.clone())),
            None => section.problem(&name, format!("no such phase; the phases are {}", names.join(", "))),
        }
    }
    recipe.phases = changes;
    section.finish();
}

fn read_phase(section: Section<'_>, mut train: TrainRecipe) -> PhaseRecipe {
    let epochs = section.optional_integer("epochs", 1..=100_000);
    let n_epochs = epochs.unwrap_or(train.epochs);
    resize(&mut train, n_epochs);
    let schedule = section.optional_section("schedule").map(|schedule| read_schedule(Some(schedule)));
    let optimizer = [("fresh", OptimizerState::Fresh), ("kept", OptimizerState::Kept)];
    let quantizers = [("recalibrated", QuantizerState::Recalibrated), ("rescaled", QuantizerState::Rescaled)];
    let phase = PhaseRecipe {
        epochs,
        learning_rate: section.optional_number("learning_rate", &NumberRange::POSITIVE),
        weight_decay: section.optional_number("weight_decay", &NumberRange::NOT_NEGATIVE),
        warmup_epochs: section.optional_number("warmup_epochs", &NumberRange::NOT_NEGATIVE),
        optimizer_state: section.optional_choice("optimizer_state", &optimizer).unwrap_or_default(),
        quantizer_state: section.optional_choice("quantizer_state", &quantizers).unwrap_or_default(),
        schedule,
    };
    let warmup_epochs = phase.warmup_epochs.unwrap_or(train.warmup_epochs);
    if warmup_epochs > n_epochs as f64 {
        section.problem("warmup_epochs", format!("{warmup_epochs} is more than all {n_epochs} epochs"));
    }
    section.finish();
    phase
}
