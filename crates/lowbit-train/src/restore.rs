//! Taking over the state of a checkpoint, after it is known to fit.

use std::path::Path;

use crate::checkpoint::{Checkpoint, CheckpointError, Checkpoints};
use crate::clock::Clock;
use crate::error::TrainError;
use crate::experiment::Timeline;
use crate::fit::Fit;
use crate::progress::{Pending, Progress};
use crate::run_dir::RunDir;
use crate::set_aside::{self, GoingBack};
use crate::strategy::TOTAL;

impl Fit<'_> {
    /// Takes over the state of a checkpoint.
    pub(crate) fn restore(
        &mut self,
        run: &mut RunDir,
        name: &str,
        checkpoint: Checkpoint,
    ) -> Result<(), TrainError> {
        let checkpoints = run.checkpoints();
        let path = checkpoints.path(name);
        // Said after what the networks say, who name the entry.
        let has_its_state = checkpoint.expect_state(&path);
        let progress = checkpoint.progress.clone();
        self.take_networks(checkpoint, &path)?;
        has_its_state.map_err(|error| checkpoints.with_previous(error, name))?;
        self.expect_steps(&progress)?;
        self.expect_consistent(&progress).map_err(|problem| {
            let problem = format!("manifest.json: {problem}");
            checkpoints.with_previous(Checkpoints::damaged(&path, problem), name)
        })?;
        for warning in run.expect_records(&progress)? {
            run.warn(warning);
        }
        self.clock = Clock::new(progress.step, progress.seconds);
        self.saved = Some((progress.step, progress.pending));
        self.progress = progress;
        Ok(())
    }

    fn take_networks(&mut self, checkpoint: Checkpoint, path: &Path) -> Result<(), TrainError> {
        let Checkpoint { progress, deployed, others, .. } = checkpoint;
        self.build(progress.phase)?;
        let mut states = std::iter::once(deployed).chain(others);
        for trainee in &mut self.trainees {
            let name = trainee.spec.name.clone();
            let state = states.next().filter(|state| state.name == name);
            let state =
                state.ok_or_else(|| CheckpointError::NoNetwork { path: path.into(), network: name })?;
            let phase = &self.experiment.phases[self.phase];
            trainee.restore(&self.experiment, phase, &progress, state, path)?;
        }
        Ok(())
    }

    /// Takes over the state of another process, which has looked at it.
    pub(crate) fn take(&mut self, checkpoint: Checkpoint, from: &Path) -> Result<(), TrainError> {
        let progress = checkpoint.progress.clone();
        self.take_networks(checkpoint, from)?;
        self.clock = Clock::new(progress.step, progress.seconds);
        self.progress = progress;
        Ok(())
    }

    /// Sets aside what the run wrote after the state that was restored, of the checkpoint `name`.
    pub(crate) fn go_back(&mut self, run: &RunDir, name: String) -> Result<(), TrainError> {
        let Progress { step, pending, metrics_bytes, .. } = self.progress;
        let epochs = step / self.timeline.steps_per_epoch - u64::from(pending == Some(Pending::Evaluation));
        let back = GoingBack {
            name,
            later: run.checkpoints().after(step)?,
            metrics_bytes,
            timing_bytes: run.timing_bytes(epochs)?,
            removes_result: !self.is_done(),
        };
        if let Some(path) = set_aside::set_aside(run.path(), &back)? {
            self.session.observer.set_aside(&path);
        }
        Ok(())
    }

    /// Refuses the progress of a training whose epochs had another number of steps, as far as it shows. A run that knows
    /// its images never gets here with others.
    fn expect_steps(&self, progress: &Progress) -> Result<(), TrainError> {
        let Progress { step, phase, train, test_step, pending, .. } = *progress;
        let Some(before) = step.checked_sub(1) else { return Ok(()) };
        let Timeline { steps_per_epoch, .. } = self.timeline;
        let is_in_phase = (self.timeline.start(phase)..self.timeline.start(phase + 1)).contains(&before);
        let n_images = (before % steps_per_epoch + 1) * self.experiment.recipe.data.batch_size as u64;
        let is_evaluated =
            step < self.steps() || test_step == Some(step) || pending == Some(Pending::Evaluation);
        match is_in_phase && train.n_images == n_images && is_evaluated {
            true => Ok(()),
            false => {
                Err(TrainError::OtherSteps { step, n_images: self.data.train.n_samples(), steps_per_epoch })
            }
        }
    }

    /// Refuses a progress whose parts contradict each other.
    fn expect_consistent(&self, progress: &Progress) -> Result<(), String> {
        let Progress { step, pending, train, test_step, losses, n_images, .. } = progress;
        let ends_an_epoch = *step > 0 && step.is_multiple_of(self.timeline.steps_per_epoch);
        match pending {
            Some(Pending::Calibration) if *step > 0 => {
                return Err(format!("no calibration can be pending after {step} steps"));
            }
            Some(Pending::Evaluation) if !ends_an_epoch => {
                return Err(format!("no evaluation can be pending after {step} steps"));
            }
            _ => {}
        }
        if progress.stopped_early.is_some() && !(ends_an_epoch && progress.test.is_some()) {
            return Err(format!(
                "it has stopped early after {step} steps, which end no epoch with test images"
            ));
        }
        let is_evaluated = progress.chosen_by().is_some();
        if is_evaluated != test_step.is_some() || test_step.is_some_and(|test_step| test_step > *step) {
            return Err("its evaluation contradicts the step of the evaluation".into());
        }
        let is_counted = train.n_top1 <= train.n_top5 && train.n_top5 <= train.n_images;
        if !is_counted || *n_images > step.saturating_mul(self.experiment.recipe.data.batch_size as u64) {
            return Err("it counts more images than there were".into());
        }
        let is_known = |name: &str| self.trainees.iter().any(|trainee| trainee.spec.name == name);
        match losses.iter().find(|(name, parts)| !is_known(name) || !parts.contains_key(TOTAL)) {
            Some((name, _)) => Err(format!("its losses of network {name:?} are none, or have no {TOTAL:?}")),
            None => Ok(()),
        }
    }
}
