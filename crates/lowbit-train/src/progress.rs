//! Where a training stands.

use std::collections::{BTreeMap, BTreeSet};

use lowbit_data::Split;
use serde::{Deserialize, Serialize};

use crate::metrics::{Scores, Tally};
use crate::origin::Origin;

/// What of a step is still to be done where a training stands: it was stopped meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pending {
    /// The networks have their initial weights, but their quantizers are not calibrated.
    Calibration,
    /// The epoch that ended with the last step is not evaluated and not recorded.
    Evaluation,
}

/// The accuracy of an epoch, on the validation images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochTop1 {
    /// The epoch, from 1.
    pub epoch: u64,
    /// Its accuracy.
    pub top1: f64,
}

/// A training that ended before its epochs were over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoppedEarly {
    /// Its last epoch, from 1.
    pub epoch: u64,
    /// Epochs of the recipe.
    pub epochs: u64,
    /// The epoch after which none was better.
    pub best: EpochTop1,
}

/// Where a training stands. With the recipe it decides every later step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Phase of the last step, from 0.
    pub phase: usize,
    /// What is to be done before the next step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// Layers, by network, whose input's range comes with the initial weights, until the others are calibrated.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calibrated: BTreeMap<String, BTreeSet<String>>,
    /// Counts of the current epoch's training batches.
    pub train: Tally,
    /// Sums over the images of the current epoch of the parts of each network's loss and of their `total`, by its name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub losses: BTreeMap<String, BTreeMap<String, f64>>,
    /// Learned parameters of the quantizers as the phase began, by network, layer and name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub learned: BTreeMap<String, f32>,
    /// Sum over the steps of the current epoch of the share of layers that was quantized, if a strategy decides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized_sum: Option<f64>,
    /// What strategies have measured of the deployed network in the last step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, f64>,
    /// Length of `metrics.jsonl` in bytes: later lines belong to steps that are not done.
    pub metrics_bytes: u64,
    /// The files of the run that are only appended to, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub records: BTreeMap<String, Record>,
    /// Scores of the newest evaluation on the validation images, if there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    /// The same of further networks, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validations: BTreeMap<String, Scores>,
    /// Scores of the newest evaluation on the test images. Where there are validation images, that is the one after the last step.
    pub test: Option<Scores>,
    /// The same of further networks, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tests: BTreeMap<String, Scores>,
    /// Steps done when it was evaluated.
    pub test_step: Option<u64>,
    /// Device on which it was evaluated. Not part of the state.
    pub test_device: Option<String>,
    /// The program and the machine that evaluated it. Not part of the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_origin: Option<Origin>,
    /// Highest `top1` of the last phase's evaluations so far: on the validation images, if there are some.
    pub best_top1: Option<f64>,
    /// The epoch of the last phase after which none was better so far, where a training may stop early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsurpassed: Option<EpochTop1>,
    /// Why nothing is left to train before the last epoch, if that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_early: Option<StoppedEarly>,
    /// Seconds of training so far, evaluation included. Not part of the state.
    pub seconds: f64,
    /// Seconds spent in steps so far, evaluation excluded. Not part of the state.
    #[serde(default)]
    pub step_seconds: f64,
    /// Images of the steps in which those were spent.
    #[serde(default)]
    pub n_images: u64,
}

/// What a file of a run held that is only appended to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Bytes.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: String,
}

impl Progress {
    /// The scores by which a checkpoint is chosen: those on the validation images, if there are some.
    pub(crate) fn chosen_by(&self) -> Option<(Split, Scores)> {
        let validation = self.validation.map(|scores| (Split::Validation, scores));
        validation.or_else(|| self.test.map(|scores| (Split::Test, scores)))
    }

    /// Training images per second so far, evaluation excluded; 0 if an earlier lowbit did not count.
    pub(crate) fn images_per_second(&self) -> f64 {
        match self.n_images {
            0 => 0.0,
            n => n as f64 / self.step_seconds,
        }
    }
}
