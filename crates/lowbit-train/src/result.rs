//! The outcome of a complete training.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lowbit_data::Split;
use serde::{Deserialize, Serialize};

use crate::image_set::RunData;
use crate::metrics::{Scores, or_nan};
use crate::origin::Origin;
use crate::progress::StoppedEarly;

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
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// Scores on the validation images after the last epoch, if there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    /// The checkpoint of the highest accuracy of all that are kept, on the validation images if there are some. It is chosen by
    /// those images: its accuracy on them is no result.
    pub best: Option<BestCheckpoint>,
    /// Epochs.
    pub epochs: u64,
    /// Why these are fewer than the recipe has, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_early: Option<StoppedEarly>,
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
    /// Names of the classes, if they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
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
    /// Its accuracy on the images by which it was chosen.
    pub top1: f64,
    /// The images by which it was chosen: "validation", or "test" where there are no validation images.
    #[serde(default = "test_images")]
    pub images: Split,
}

/// What an earlier lowbit chose by.
fn test_images() -> Split {
    Split::Test
}
