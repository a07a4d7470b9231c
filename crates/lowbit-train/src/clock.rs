//! How long a training takes.

use std::time::Instant;

use crate::metrics::TimeParts;

/// Time of this process.
pub(crate) struct Clock {
    pub(crate) started: Instant,
    /// Seconds of earlier processes.
    earlier_seconds: f64,
    first_step: u64,
    /// Seconds spent in steps.
    pub(crate) step_seconds: f64,
    /// Seconds by what they were spent on.
    pub(crate) parts: TimeParts,
    /// Those since the line of the last epoch.
    parts_of_epoch: TimeParts,
    pub(crate) n_images: u64,
}

impl Clock {
    pub(crate) fn new(first_step: u64, earlier_seconds: f64) -> Self {
        Self {
            started: Instant::now(),
            earlier_seconds,
            first_step,
            step_seconds: 0.0,
            parts: TimeParts::default(),
            parts_of_epoch: TimeParts::default(),
            n_images: 0,
        }
    }

    pub(crate) fn seconds(&self) -> f64 {
        self.earlier_seconds + self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn images_per_second(&self) -> f64 {
        match self.n_images {
            0 => 0.0,
            n => n as f64 / self.step_seconds,
        }
    }

    /// Share of the time of training that was spent waiting for images.
    pub(crate) fn waiting_fraction(&self) -> f64 {
        match self.n_images {
            0 => 0.0,
            _ => self.parts.data / (self.parts.data + self.step_seconds),
        }
    }

    /// Counts time that was spent.
    pub(crate) fn spend(&mut self, parts: TimeParts) {
        self.parts += parts;
        self.parts_of_epoch += parts;
    }

    /// What was spent since this was asked for last.
    pub(crate) fn take_parts(&mut self) -> TimeParts {
        std::mem::take(&mut self.parts_of_epoch)
    }

    /// Seconds of this process.
    pub(crate) fn seconds_of_process(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn eta_seconds(&self, step: u64, steps: u64) -> f64 {
        let done = step.saturating_sub(self.first_step).max(1);
        self.started.elapsed().as_secs_f64() / done as f64 * steps.saturating_sub(step) as f64
    }
}
