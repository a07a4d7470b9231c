//! Reading a run: what a checkpoint scores, and what it holds.

use std::path::Path;

use burn::module::Module;
use burn::tensor::Device;
use lowbit_data::Locations;
use lowbit_models::Plan;
use serde::Serialize;

use crate::checkpoint::{CheckpointError, Progress};
use crate::error::TrainError;
use crate::metrics::Scores;
use crate::recipe::Recipe;
use crate::run_dir::{RunDir, RunInfo};
use crate::state;
use crate::trainer::{build, evaluate as evaluate_network, test_loader};

/// What the evaluation of a checkpoint yields.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Name of the recipe.
    pub recipe: String,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// Steps done at the checkpoint.
    pub step: u64,
    /// Scores on the test images.
    #[serde(flatten)]
    pub scores: Scores,
    /// Scores that the run reported at this checkpoint, if it evaluated there.
    pub reported: Option<Scores>,
}

/// Evaluates the checkpoint `checkpoint` of the run in `path`, or its newest, on its test images.
///
/// # Errors
/// [`TrainError`] if the run, its checkpoint or its data cannot be read.
pub fn evaluate(
    path: &Path,
    checkpoint: Option<&str>,
    device: &Device,
    locations: &Locations,
) -> Result<Evaluation, TrainError> {
    let run = RunDir::open(path)?;
    let recipe = run.recipe()?;
    let name = newest(&run, checkpoint)?;
    let loaded = run.checkpoints().load(&name)?;
    let loader = test_loader(&recipe.data, locations)?;
    let network = build(&recipe, device)?.network.valid();
    let other_model = |source| CheckpointError::OtherModel { path: run.checkpoints().path(&name), source };
    let network = state::load(network, loaded.average.unwrap_or(loaded.model)).map_err(other_model)?;
    let Progress { step, test, test_step, .. } = loaded.progress;
    Ok(Evaluation {
        recipe: recipe.name,
        scores: evaluate_network(&network, &loader, device),
        reported: test.filter(|_| test_step == Some(step)),
        checkpoint: name,
        step,
    })
}

/// What a run directory holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The resolved recipe.
    pub recipe: Recipe,
    /// Where and by what it was made.
    pub info: RunInfo,
    /// The precision of every layer.
    pub plan: Plan,
    /// Names of its checkpoints, oldest first.
    pub checkpoints: Vec<String>,
    /// Name of the checkpoint with the highest test accuracy.
    pub best: Option<String>,
    /// The newest checkpoint, or the one that was named.
    pub checkpoint: Option<CheckpointInspection>,
}

/// What a checkpoint holds.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointInspection {
    /// Its name.
    pub name: String,
    /// Where the training stood.
    pub progress: Progress,
    /// Digest over all parameters, quantizer, optimizer and BatchNorm state.
    pub state_sha256: String,
}

/// Reads the run in `path` and verifies its checkpoint `checkpoint`, or its newest.
///
/// # Errors
/// [`TrainError`] if the run or the checkpoint cannot be read.
pub fn inspect(path: &Path, checkpoint: Option<&str>) -> Result<Inspection, TrainError> {
    let run = RunDir::open(path)?;
    let checkpoints = run.checkpoints();
    let inspection = match checkpoints.choose(checkpoint)? {
        Some(name) => {
            let loaded = checkpoints.load(&name)?;
            let state_sha256 = loaded.state_sha256(&checkpoints.path(&name))?;
            Some(CheckpointInspection { name, progress: loaded.progress, state_sha256 })
        }
        None => None,
    };
    Ok(Inspection {
        recipe: run.recipe()?,
        info: run.info()?,
        plan: run.plan()?,
        checkpoints: checkpoints.names()?,
        best: checkpoints.best()?,
        checkpoint: inspection,
    })
}

fn newest(run: &RunDir, checkpoint: Option<&str>) -> Result<String, TrainError> {
    let chosen = run.checkpoints().choose(checkpoint)?;
    Ok(chosen.ok_or_else(|| CheckpointError::None { path: run.path().into() })?)
}

/// The precision of every layer of a recipe's network, without training it.
///
/// # Errors
/// [`TrainError`] if the network cannot be built.
pub fn plan(recipe: &Recipe, device: &Device) -> Result<Plan, TrainError> {
    Ok(build(recipe, device)?.plan)
}
