//! A run, as its files tell of it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use lowbit_models::{LayerPlan, Plan};
use lowbit_train::{
    EpochMetrics, EpochTiming, Recipe, RunDir, RunInfo, RunProcess, RunResult, Scores, TrainError, Warning,
};
use serde::Serialize;

use crate::images::{ImageReport, Operand};
use crate::summary::{Files, Summary, result_of, strategies};

/// What a network costs, for one image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Parameters.
    pub n_parameters: usize,
    /// Bytes of its packed weights, their scales and biases, and the normalizations.
    pub packed_bytes: u64,
    /// Bytes in full precision.
    pub fp32_bytes: u64,
    /// Multiply-accumulates x weight bits x activation bits, full precision as 32.
    pub bit_operations: u64,
    /// Multiply-accumulates.
    pub macs: u64,
}

impl Cost {
    fn of(plan: &Plan) -> Self {
        Self {
            n_parameters: plan.n_parameters(),
            packed_bytes: plan.packed_bytes(),
            fp32_bytes: (plan.n_parameters() as u64).saturating_mul(4),
            bit_operations: plan.bit_operations(),
            macs: plan.macs(),
        }
    }
}

/// Epochs of one phase, as they were trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PhaseSpan {
    /// Its name, as in "w4a32".
    pub name: String,
    /// Its first epoch, from 1.
    pub first_epoch: u64,
    /// Its last epoch so far.
    pub last_epoch: u64,
}

/// How much the accuracy of a network depends on the precision of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Accuracy with this layer alone quantized, if it was tried.
    pub top1_only: Option<f64>,
    /// Accuracy with all layers quantized but this one, if it was tried.
    pub top1_without: Option<f64>,
}

/// A layer of the deployed network.
#[derive(Clone, Debug, Serialize)]
pub struct LayerReport {
    /// Its shape, precision and cost.
    #[serde(flatten)]
    pub plan: LayerPlan,
    /// What depends on its precision, where that was measured.
    pub sensitivity: Option<Sensitivity>,
    /// Its weights, if a checkpoint could be read.
    pub weights: Option<Operand>,
    /// Its input on some test images, if there are any.
    pub input: Option<Operand>,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// The run in a line.
    #[serde(flatten)]
    pub summary: Summary,
    /// Its recipe.
    #[serde(rename = "resolved_recipe")]
    pub recipe: Recipe,
    /// Where and by what it was made.
    pub info: RunInfo,
    /// The processes that trained in it, oldest first.
    pub processes: Vec<RunProcess>,
    /// What its network costs.
    pub cost: Cost,
    /// The layers of the deployed network, at the precision of the end.
    pub layers: Vec<LayerReport>,
    /// Scores on the test images of networks that train alongside, by name.
    pub networks: BTreeMap<String, Scores>,
    /// What the recipe compares it with.
    pub reference: Option<String>,
    /// The phases so far.
    pub phases: Vec<PhaseSpan>,
    /// What the epochs did, oldest first.
    pub metrics: Vec<EpochMetrics>,
    /// How long they took.
    pub timing: Vec<EpochTiming>,
    /// What was wrong without ending the training.
    pub warnings: Vec<Warning>,
    /// What the network makes of the test images, if they were looked at.
    pub images: Option<ImageReport>,
    /// The images that the sensitivity of the layers was measured on, as in "287 validation images".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sensitivity_images: Option<String>,
    /// What is not here, and why.
    pub notes: Vec<String>,
    /// The plan that the layers are from.
    #[serde(skip)]
    pub(crate) plan: Plan,
}

impl RunReport {
    /// What the files of the run in `path` say; no checkpoint is read, and no image. The run may be in training. Of curves, times and an outcome
    /// that are missing, [`notes`](Self::notes) say so.
    ///
    /// # Errors
    /// [`TrainError`] if it is no run, or its recipe, its plan or another file cannot be read.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let run = RunDir::open(path)?;
        let (recipe, info, plan) = (run.recipe()?, run.info()?, run.plan()?);
        let mut notes = Vec::new();
        let result = match result_of(&run) {
            Err(error @ TrainError::DamagedFile { .. }) => {
                notes.push(error.to_string());
                None
            }
            result => result?,
        };
        let metrics = match run.metrics() {
            Err(TrainError::Io { path, source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                notes.push(format!("{} is missing: there are no curves", path.display()));
                Vec::new()
            }
            metrics => metrics?,
        };
        let recorded = metrics.last().map_or(0, |epoch| epoch.epoch);
        if let Some(result) = result.as_ref().filter(|result| recorded > 0 && recorded < result.epochs) {
            let path = run.path().join("metrics.jsonl");
            let epochs = result.epochs;
            notes.push(format!(
                "{} ends after epoch {recorded} of {epochs}: the curves lack the rest",
                path.display()
            ));
        }
        let timing = run.timing()?;
        let is_training = run.is_training()?;
        let files = Files {
            recipe: &recipe,
            plan: &plan,
            started: info.started.as_ref(),
            strategies: strategies(&info, &recipe),
            result: result.as_ref(),
            metrics: &metrics,
            timing: &timing,
            is_training,
        };
        let layers = plan.layers.iter().map(|layer| LayerReport {
            plan: layer.clone(),
            sensitivity: None,
            weights: None,
            input: None,
        });
        Ok(Self {
            summary: Summary::of(path, &files),
            cost: Cost::of(&plan),
            layers: layers.collect(),
            networks: networks(result.as_ref(), &metrics),
            // A run on other images has the reference in its recipe, but not in its result.
            reference: match &result {
                Some(result) => result.reference.clone(),
                None => recipe.reference.clone(),
            },
            phases: phases(&metrics),
            processes: run.processes()?,
            warnings: run.warnings()?,
            images: None,
            sensitivity_images: None,
            notes,
            recipe,
            info,
            metrics,
            timing,
            plan,
        })
    }
}

fn networks(result: Option<&RunResult>, metrics: &[EpochMetrics]) -> BTreeMap<String, Scores> {
    match (result, metrics.last()) {
        (Some(result), _) => result.networks.clone(),
        (None, Some(epoch)) => {
            let scores = epoch.networks.iter().map(|(name, network)| Some((name.clone(), network.test?)));
            scores.flatten().collect()
        }
        (None, None) => BTreeMap::new(),
    }
}

fn phases(metrics: &[EpochMetrics]) -> Vec<PhaseSpan> {
    let mut phases: Vec<PhaseSpan> = Vec::new();
    for EpochMetrics { epoch, phase, .. } in metrics {
        match phases.last_mut().filter(|last| last.name == *phase) {
            Some(last) => last.last_epoch = *epoch,
            None => {
                let (name, first_epoch) = (phase.clone(), *epoch);
                phases.push(PhaseSpan { name, first_epoch, last_epoch: first_epoch });
            }
        }
    }
    phases
}
