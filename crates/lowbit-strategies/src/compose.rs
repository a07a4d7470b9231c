//! What all strategies of a training answer together: each starts from the answer of the one before. Answers that no
//! training can go by are refused in the name of the strategy that gave them.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use lowbit_quantizers::Selection;

use crate::network::{NetworkSpec, Output, Outputs, Role, STUDENT};
use crate::phase::Phase;
use crate::strategy::{Loss, Moment, QuantizedLayer, Strategy};
use crate::weights::Notes;

/// An answer of a strategy that no training can go by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("strategy {strategy:?} {problem}")]
pub struct StrategyError {
    /// Name of the strategy.
    pub strategy: String,
    /// What is wrong.
    pub problem: StrategyProblem,
}

/// What is wrong with the answer of a strategy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StrategyProblem {
    /// Two phases have the same name, by which settings and metrics tell them apart.
    #[error("makes two phases named {name:?}: each needs a name of its own")]
    RepeatedPhase {
        /// The name.
        name: String,
    },
    /// There is no phase.
    #[error("leaves no phase to train in")]
    NoPhase,
    /// The first network is not the one that is deployed.
    #[error(
        "moves the network {STUDENT:?}, which the training is for: it must stay the first, and a student"
    )]
    NoStudent,
    /// Two networks have the same name.
    #[error("makes two networks named {name:?}: each needs a name of its own")]
    RepeatedNetwork {
        /// The name.
        name: String,
    },
    /// A network cannot have this name, which files get.
    #[error("names a network {name:?}: expected lowercase letters, digits, '-' and '_'")]
    NetworkName {
        /// The name.
        name: String,
    },
    /// A student does not go by the phases.
    #[error("lets network {name:?} train throughout, which only a teacher can: a student goes by the phases")]
    ThroughoutStudent {
        /// Name of the network.
        name: String,
    },
    /// Feature maps are adapted to a network that there is not.
    #[error("adapts the feature maps of network {name:?} to {to:?}, which is no network of the training")]
    AdaptsToNothing {
        /// Name of the network.
        name: String,
        /// Whose channels it was to have.
        to: String,
    },
    /// A selection is not of the layers.
    #[error(
        "selects parts of {got} layers, but {expected} are quantized: give each a selection, in their order"
    )]
    Selections {
        /// Selections.
        got: usize,
        /// Layers.
        expected: usize,
    },
    /// A layer's channels are in no groups.
    #[error("selects from no group of channels of layer {layer}: give at least one")]
    NoGroup {
        /// Path of the layer.
        layer: String,
    },
}

/// Phases of a training with all of `strategies`, from a single one.
///
/// # Errors
/// [`StrategyError`] if a strategy makes two of the same name, or leaves none.
pub fn compose_phases(strategies: &[Box<dyn Strategy>], single: Phase) -> Result<Vec<Phase>, StrategyError> {
    compose(strategies, vec![single], |strategy, phases| {
        let phases = strategy.phases(phases);
        let name = repeated(phases.iter().map(|phase| &phase.name));
        match name {
            Some(name) => Err(StrategyProblem::RepeatedPhase { name }),
            None if phases.is_empty() => Err(StrategyProblem::NoPhase),
            None => Ok(phases),
        }
    })
}

/// Networks of a training with all of `strategies`, from the one that it is for.
///
/// # Errors
/// [`StrategyError`] if they cannot train together.
pub fn compose_networks(
    strategies: &[Box<dyn Strategy>],
    student: NetworkSpec,
) -> Result<Vec<NetworkSpec>, StrategyError> {
    compose(strategies, vec![student], |strategy, networks| {
        let networks = strategy.networks(networks);
        match problem_of(&networks) {
            Some(problem) => Err(problem),
            None => Ok(networks),
        }
    })
}

fn problem_of(networks: &[NetworkSpec]) -> Option<StrategyProblem> {
    let is_deployed = |first: &NetworkSpec| first.name == STUDENT && first.role == Role::Student;
    if !networks.first().is_some_and(is_deployed) {
        return Some(StrategyProblem::NoStudent);
    }
    if let Some(name) = repeated(networks.iter().map(|network| &network.name)) {
        return Some(StrategyProblem::RepeatedNetwork { name });
    }
    networks.iter().find_map(|network| {
        let name = network.name.clone();
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if name.is_empty() || !name.chars().all(is_plain) {
            return Some(StrategyProblem::NetworkName { name });
        }
        if network.role == Role::Student && network.trains_throughout {
            return Some(StrategyProblem::ThroughoutStudent { name });
        }
        let to = network.adapts_to.clone()?;
        let is_known = networks.iter().any(|other| other.name == to);
        (!is_known).then_some(StrategyProblem::AdaptsToNothing { name, to })
    })
}

/// Which part of each of `layers` is quantized with all of `strategies`; `None` if none of them decides.
///
/// # Errors
/// [`StrategyError`] if the answer is not of these layers.
pub fn compose_selections(
    strategies: &[Box<dyn Strategy>],
    moment: &Moment,
    layers: &[QuantizedLayer],
) -> Result<Option<Vec<Selection>>, StrategyError> {
    let answers = strategies.iter().rev().map(|strategy| (strategy, strategy.select(moment, layers)));
    let decided = answers.into_iter().find_map(|(strategy, selections)| Some((strategy, selections?)));
    let Some((strategy, selections)) = decided else { return Ok(None) };
    let has_no_group =
        |selection: &Selection| matches!(selection, Selection::ChannelGroups(groups) if groups.is_empty());
    let problem = match selections.iter().position(has_no_group) {
        _ if selections.len() != layers.len() => {
            StrategyProblem::Selections { got: selections.len(), expected: layers.len() }
        }
        Some(layer) => StrategyProblem::NoGroup { layer: layers[layer].path.clone() },
        None => return Ok(Some(selections)),
    };
    Err(StrategyError { strategy: strategy.name().into(), problem })
}

/// Loss of one network with all of `strategies`, from that of the labels.
pub fn compose_loss(
    strategies: &[Box<dyn Strategy>],
    network: &Output,
    outputs: &Outputs<'_>,
    labels: Loss,
) -> Loss {
    strategies.iter().fold(labels, |loss, strategy| strategy.loss(network, outputs, loss))
}

/// The learning rate of a student's quantized weights in a step with all of `strategies`, each with its notes by name; `None` if it
/// is that of the schedule.
pub fn compose_weight_rate(
    strategies: &[Box<dyn Strategy>],
    moment: &Moment,
    notes: &BTreeMap<String, Notes>,
) -> Option<f64> {
    let readers = strategies.iter().rev().filter(|strategy| strategy.reads_weights());
    readers.filter_map(|strategy| strategy.weight_rate(moment, notes.get(strategy.name())?)).next()
}

/// What is added to a student's quantized weights where its gradients are taken; `None` if that is nothing.
pub fn compose_perturbation(
    strategies: &[Box<dyn Strategy>],
    gradients: &[Tensor<2>],
) -> Option<Vec<Tensor<2>>> {
    strategies.iter().rev().find_map(|strategy| strategy.perturbation(gradients))
}

fn compose<T>(
    strategies: &[Box<dyn Strategy>],
    first: T,
    answer: impl Fn(&dyn Strategy, T) -> Result<T, StrategyProblem>,
) -> Result<T, StrategyError> {
    strategies.iter().try_fold(first, |before, strategy| {
        let named = |problem| StrategyError { strategy: strategy.name().into(), problem };
        answer(strategy.as_ref(), before).map_err(named)
    })
}

/// The first name that comes twice.
fn repeated<'a>(names: impl Iterator<Item = &'a String>) -> Option<String> {
    let mut seen = Vec::new();
    for name in names {
        if seen.contains(&name) {
            return Some(name.clone());
        }
        seen.push(name);
    }
    None
}
