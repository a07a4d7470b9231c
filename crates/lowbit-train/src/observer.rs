//! What is told of a training while it runs.

use std::path::Path;

use lowbit_models::Plan;

use crate::metrics::{EpochMetrics, EpochTiming, Scores, TimeParts};
use crate::recipe::Recipe;
use crate::strategy::Phase;

/// Follows a training. Every method does nothing unless it is overridden.
pub trait Observer {
    /// So many of the `n_images` validation and test images have been read: all are read once, before the training begins.
    fn reading(&mut self, _n_read: usize, _n_images: usize) {}
    /// The training is about to begin, or to go on.
    fn started(&mut self, _report: &StartReport<'_>) {}
    /// A phase begins, or the training goes on in it.
    fn phase(&mut self, _report: &PhaseReport<'_>) {}
    /// A step is done.
    fn step(&mut self, _report: &StepReport) {}
    /// An epoch is done.
    fn epoch(&mut self, _metrics: &EpochMetrics, _timing: &EpochTiming) {}
    /// The training ends, complete or stopped: what this process spent of its `seconds`.
    fn times(&mut self, _parts: &TimeParts, _seconds: f64) {}
    /// A checkpoint is complete.
    fn checkpoint(&mut self, _path: &Path) {}
    /// What the run wrote after the checkpoint that it goes on from was set aside in this directory.
    fn set_aside(&mut self, _path: &Path) {}
    /// Something is wrong that does not end the training. Each message comes once in a process; the run records it once.
    fn warning(&mut self, _message: &str) {}
}

/// Does nothing.
impl Observer for () {}

/// A training that is about to begin or to go on.
#[derive(Clone, Copy, Debug)]
pub struct StartReport<'a> {
    /// The run directory.
    pub run: &'a Path,
    /// What is trained.
    pub recipe: &'a Recipe,
    /// The precision of every layer at the end of the training.
    pub plan: &'a Plan,
    /// Steps done.
    pub step: u64,
    /// Training images.
    pub n_train: usize,
    /// Validation images; 0 if there are none.
    pub n_validation: usize,
    /// Test images.
    pub n_test: usize,
}

/// A phase that begins or goes on.
#[derive(Clone, Copy, Debug)]
pub struct PhaseReport<'a> {
    /// Its number, from 1.
    pub number: usize,
    /// Phases in all.
    pub n_phases: usize,
    /// Its precision and settings.
    pub phase: &'a Phase,
    /// Networks that train alongside, by name, with their plans.
    pub others: &'a [(&'a str, &'a Plan)],
}

/// Where a training stands after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Epochs in all.
    pub epochs: u64,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Loss of the step's batch.
    pub loss: f64,
    /// Scores of the epoch so far.
    pub train: Scores,
    /// Training images per second of this process so far.
    pub images_per_second: f64,
    /// Seconds left, as far as known.
    pub eta_seconds: f64,
}
