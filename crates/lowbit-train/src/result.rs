//! The outcome of a complete training.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image_set::RunData;
use crate::metrics::Scores;
use crate::origin::Origin;

/// The result of a complete training; `result.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// Name of the recipe.
    pub recipe: String,
    /// Fraction of test images classified correctly after the last epoch.
    pub top1: f64,
    /// Fraction of test images whose label is among the five highest scores, after the last epoch.
    pub top5: f64,
    /// Mean test loss after the last epoch.
    pub loss: f64,
    /// Highest `top1` of all checkpoints that are kept, and where it is.
    pub best: Option<BestCheckpoint>,
    /// Epochs.
    pub epochs: u64,
    /// Seconds of training, evaluation included, over all processes that took part, each up to its last checkpoint.
    pub seconds: f64,
    /// Training images per second over the same time, evaluation excluded.
    pub images_per_second: f64,
    /// Device of the evaluation after the last epoch.
    pub device: String,
    /// Seed.
    pub seed: u64,
    /// Scores on the test images of networks that trained alongside, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, Scores>,
    /// What the recipe compares it with; absent with images other than the published ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Messages of all warnings of the run.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// When the run was made, in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// The images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<RunData>,
    /// The program and the machine of the evaluation after the last epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Whether all processes that took part were of one build, on one kind of processor and on one device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_origin: Option<bool>,
    /// The run directory.
    pub run_dir: PathBuf,
}

/// The best checkpoint that is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BestCheckpoint {
    /// Its name.
    pub checkpoint: String,
    /// Its accuracy on the test images.
    pub top1: f64,
}
