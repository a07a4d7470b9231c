//! A run in a line.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lowbit_core::Precision;
use lowbit_core::graph::LayerRole;
use lowbit_data::Split;
use lowbit_models::{LayerPlan, ModelConfig, Plan};
use lowbit_train::{EpochMetrics, EpochTiming, Recipe, RunDir, RunResult, Scores, TrainError};
use serde::Serialize;

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// A process trains in it now.
    Training,
    /// It is not complete, and no process trains in it.
    Stopped,
    /// All its epochs are done.
    Finished,
    /// Its files cannot be read.
    Damaged,
}

impl State {
    /// Its name in a table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Stopped => "stopped",
            Self::Finished => "finished",
            Self::Damaged => "damaged",
        }
    }
}

/// The highest accuracy of a run. It is chosen by the images that it is on: it is no result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Best {
    /// Fraction of the images whose label has the highest score.
    pub top1: f64,
    /// The images by which it was chosen.
    pub images: Split,
}

/// A run in a line: what it trains, how far it is and what it scores. Of a damaged run, what could be read.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Name of its directory; in a list, the path below the directory that is listed.
    pub name: String,
    /// The directory.
    pub run_dir: PathBuf,
    /// How far it is.
    pub state: State,
    /// Why it cannot be read, if it is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Name of its recipe.
    pub recipe: Option<String>,
    /// Its network, as in "preresnet-20".
    pub network: Option<String>,
    /// The precision of its hidden layers, as in "W2A2", or "W2-8A4" where layers differ.
    pub bits: Option<String>,
    /// Its quantization methods; "-" in full precision.
    pub method: Option<String>,
    /// Names of its strategies, in the order in which they are composed.
    pub strategies: Vec<String>,
    /// Its seed.
    pub seed: Option<u64>,
    /// Epochs done.
    pub epochs_done: u64,
    /// Epochs of the whole training.
    pub epochs: Option<u64>,
    /// Scores on the test images at the last evaluation on them; of a finished run, after the last epoch.
    pub test: Option<Scores>,
    /// The same on the validation images, if there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    /// The highest accuracy of its last phase: of checkpoints that are kept, or, until it is finished, of all epochs.
    pub best: Option<Best>,
    /// Seconds of training so far.
    pub seconds: Option<f64>,
    /// When it was made, in UTC.
    pub started: Option<String>,
}

/// What the files of a run say, as far as a line needs it.
pub(crate) struct Files<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) plan: &'a Plan,
    pub(crate) started: Option<&'a String>,
    pub(crate) strategies: Vec<String>,
    pub(crate) result: Option<&'a RunResult>,
    /// May be left out with a result.
    pub(crate) metrics: &'a [EpochMetrics],
    pub(crate) timing: &'a [EpochTiming],
    pub(crate) is_training: bool,
}

impl Summary {
    /// What the run in `path` says of itself. Checkpoints are not read, and metrics only until it is finished.
    ///
    /// # Errors
    /// [`TrainError`] if it is no run, or a file of it cannot be read.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let run = RunDir::open(path)?;
        let (recipe, info, plan, result) = (run.recipe()?, run.info()?, run.plan()?, result_of(&run)?);
        let (metrics, timing) = match &result {
            Some(_) => (Vec::new(), Vec::new()),
            None => (run.metrics()?, run.timing()?),
        };
        let strategies = strategies(&info, &recipe);
        let is_training = run.is_training()?;
        let files = Files {
            recipe: &recipe,
            plan: &plan,
            started: info.started.as_ref(),
            strategies,
            result: result.as_ref(),
            metrics: &metrics,
            timing: &timing,
            is_training,
        };
        Ok(Self::of(path, &files))
    }

    /// The same, or what is wrong with it.
    pub fn read_or_damaged(path: &Path) -> Self {
        Self::read(path).unwrap_or_else(|error| Self {
            name: name_of(path),
            run_dir: path.into(),
            state: State::Damaged,
            problem: Some(error.to_string()),
            recipe: None,
            network: None,
            bits: None,
            method: None,
            strategies: Vec::new(),
            seed: None,
            epochs_done: 0,
            epochs: None,
            test: None,
            validation: None,
            best: None,
            seconds: None,
            started: None,
        })
    }

    pub(crate) fn of(path: &Path, files: &Files<'_>) -> Self {
        let Files { recipe, plan, started, strategies, result, metrics, timing, is_training } = files;
        let state = match (is_training, result) {
            (true, _) => State::Training,
            (false, Some(_)) => State::Finished,
            (false, None) => State::Stopped,
        };
        let (test, validation) = match result {
            Some(result) => {
                let RunResult { top1, top5, loss, .. } = **result;
                (Some(Scores { loss, top1, top5 }), result.validation)
            }
            None => (
                metrics.iter().rev().find_map(|epoch| epoch.test),
                metrics.iter().rev().find_map(|epoch| epoch.validation),
            ),
        };
        let best = match result {
            Some(result) => result.best.as_ref().map(|best| Best { top1: best.top1, images: best.images }),
            None => best_epoch(metrics, recipe),
        };
        let base = &recipe.quantization.policy.base;
        let methods: Vec<&str> = base.methods().into_iter().map(|method| method.name()).collect();
        Self {
            name: name_of(path),
            run_dir: path.into(),
            state,
            problem: None,
            recipe: Some(recipe.name.clone()),
            network: Some(network(&recipe.model)),
            bits: Some(bits(plan)),
            method: Some(if methods.is_empty() { "-".into() } else { methods.join("+") }),
            strategies: strategies.clone(),
            seed: Some(recipe.seed),
            epochs_done: match result {
                Some(result) => result.epochs,
                None => metrics.last().map_or(0, |epoch| epoch.epoch),
            },
            epochs: Some(recipe.total_epochs()),
            test,
            validation,
            best,
            seconds: match result {
                Some(result) => Some(result.seconds),
                None => timing.last().map(|timing| timing.seconds),
            },
            started: started.cloned(),
        }
    }
}

/// The outcome, if there is one.
pub(crate) fn result_of(run: &RunDir) -> Result<Option<RunResult>, TrainError> {
    match run.result() {
        Ok(result) => Ok(Some(result)),
        Err(TrainError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Names of the strategies of a run, those of a library's caller too.
pub(crate) fn strategies(info: &lowbit_train::RunInfo, recipe: &Recipe) -> Vec<String> {
    let names = match &info.strategies {
        Some(strategies) => strategies.iter().map(|strategy| strategy.name.clone()).collect(),
        // What an earlier lowbit did not write down is in the recipe.
        None => recipe.strategies().iter().map(|strategy| strategy.name().to_string()).collect::<Vec<_>>(),
    };
    names.into_iter().chain(info.unnamed_strategies.iter().cloned()).collect()
}

/// The last part of a path, also of one such as "..".
fn name_of(path: &Path) -> String {
    let whole = fs::canonicalize(path).unwrap_or_else(|_| path.into());
    whole.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The epoch of the last phase with the highest accuracy.
fn best_epoch(metrics: &[EpochMetrics], recipe: &Recipe) -> Option<Best> {
    let last_phase = recipe.phases().last().map(|phase| phase.name.clone());
    let of_last = metrics.iter().filter(|epoch| Some(&epoch.phase) == last_phase.as_ref());
    let validation = metrics.iter().any(|epoch| epoch.validation.is_some());
    let scores = of_last.filter_map(|epoch| if validation { epoch.validation } else { epoch.test });
    let top1 = scores.map(|scores| scores.top1).max_by(f64::total_cmp)?;
    Some(Best { top1, images: if validation { Split::Validation } else { Split::Test } })
}

/// A network in a word.
fn network(model: &ModelConfig) -> String {
    let depth = model.depth.map(|depth| format!("-{depth}")).unwrap_or_default();
    let width = if model.width == 1.0 { String::new() } else { format!(" x{}", model.width) };
    format!("{}{depth}{width}", model.family)
}

/// The precision of the hidden layers of a network, or of all if it has none.
fn bits(plan: &Plan) -> String {
    let hidden: Vec<&LayerPlan> =
        plan.layers.iter().filter(|layer| layer.role == LayerRole::Hidden).collect();
    let layers = if hidden.is_empty() { plan.layers.iter().collect() } else { hidden };
    let range = |of: fn(&LayerPlan) -> Precision| {
        let bits = layers.iter().map(|layer| of(layer).stored_bits());
        match (bits.clone().min().unwrap_or(32), bits.max().unwrap_or(32)) {
            (low, high) if low == high => low.to_string(),
            (low, high) => format!("{low}-{high}"),
        }
    };
    match (range(|layer| layer.weight_bits), range(|layer| layer.act_bits)) {
        (weight, act) if weight == "32" && act == "32" => "fp32".into(),
        (weight, act) => format!("W{weight}A{act}"),
    }
}
