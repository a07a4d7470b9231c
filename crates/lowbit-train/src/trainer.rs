//! The training loop: from images to loss to update to checkpoint, and back from a checkpoint to the very next step.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::{Device, Tensor, Transaction};
use lowbit_data::{Batch, DataError, Loader};
use lowbit_models::{Network, Plan};
use lowbit_quantizers::QuantizedNetwork;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, CheckpointError, Checkpoints, Scored, sha256};
use crate::data::{Data, tensor};
use crate::disk::{may_pass, with_retries};
use crate::error::{Divergence, TrainError};
use crate::layout::RESULT;
use crate::learner::Trainee;
use crate::metrics::{EpochMetrics, EpochTiming, NetworkMetrics, Scores, Tally};
use crate::networks::{PlacedSpec, network_specs, networks_of_recipe};
use crate::observer::{PhaseReport, StartReport, StepReport};
use crate::origin::{RunProcess, utc_now};
use crate::progress::{Pending, Progress};
use crate::recipe::{Recipe, TrainRecipe};
use crate::result::{BestCheckpoint, RunResult};
use crate::run_dir::{
    NewRun, RunDir, RunInfo, RunRecipe, Starts, absolute, expect_text, with_absolute_paths,
};
use crate::schedule::learning_rate;
use crate::session::{Outcome, Session};
use crate::set_aside::{self, GoingBack};
use crate::state;
use crate::strategy::{
    Fingerprint, Loss, Moment, Output, Outputs, Phase, Role, Strategy, TOTAL, compose_loss,
    compose_selections,
};
use crate::warning::{Warning, WarningKind, Warnings};
use lowbit_strategies::loss::{cross_entropy, target_probabilities};

/// The checkpoint that a training goes on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResumeFrom<'a> {
    /// The newest. If it is damaged, that is an error.
    #[default]
    Newest,
    /// The newest that can be gone on from: intact, of the run's recipe and of its networks. Those after it are set aside.
    NewestIntact,
    /// The one of this name. What came after it is set aside.
    Named(&'a str),
}

/// Trains `recipe` in the new run directory `out`.
///
/// # Errors
/// [`TrainError`]; a run directory is left behind only if the training had begun.
pub fn train<'a>(
    recipe: &Recipe,
    out: impl Into<NewRun<'a>>,
    session: Session<'_>,
) -> Result<Outcome, TrainError> {
    let out = out.into();
    expect_text(out.path())?;
    let recipe = &with_absolute_paths(recipe)?;
    let data_dir = session.images.data_dir().map(absolute).transpose()?;
    data_dir.as_deref().map_or(Ok(()), expect_text)?;
    let data = Data::read(recipe, &session.images, session.stop)?;
    let run_recipe = RunRecipe { recipe: recipe.clone(), sha256: sha256(recipe.to_toml().as_bytes()) };
    let mut trainer = Trainer::new(run_recipe, data, session)?;
    trainer.build(0)?;
    trainer.load_initial_weights()?;
    let Session { origin, device_name, .. } = &trainer.session;
    let info = RunInfo {
        data_dir,
        n_parameters: trainer.n_parameters()?,
        ..RunInfo::new(
            origin.clone(),
            device_name.clone(),
            trainer.data.info(),
            fingerprints(&trainer.strategies),
        )
    };
    if trainer.is_stopped() {
        return Err(TrainError::Stopped);
    }
    let run = RunDir::create(out, recipe, &plan(recipe)?, &info)?;
    trainer.run(run)
}

/// Goes on with the training in the run directory `path`. Nothing that the run wrote is lost: what came after the
/// checkpoint is set aside in the run before anything is cut.
///
/// # Errors
/// [`TrainError`] if the directory holds no run, its checkpoint is damaged or gone, or the training fails.
pub fn resume(path: &Path, from: ResumeFrom<'_>, session: Session<'_>) -> Result<Outcome, TrainError> {
    let mut run = RunDir::open_for_training(path)?;
    let checkpoints = run.checkpoints();
    checkpoints.recover()?;
    let recipe = run.recipe_with_digest()?;
    let info = run.info()?;
    info.expect_same_meaning(&recipe.recipe, path)?;
    let [of_recipe, own] = [&recipe.recipe.strategies(), &session.strategies].map(|all| fingerprints(all));
    info.expect_strategies(&of_recipe, &own)?;
    let mut candidates = Candidates::new(&checkpoints, from)?;
    let mut loaded = candidates.load_next(path, &recipe.sha256)?;
    if loaded.is_none() {
        run.expect_nothing_recorded()?;
    }
    let images = session.images.with_run_dir(info.data_dir.as_deref());
    let data = Data::read(&recipe.recipe, &images, session.stop)?;
    if let Some(expected) = info.data {
        data.expect(expected)?;
    }
    let mut trainer = Trainer::new(recipe, data, session)?;
    let name = loop {
        let Some((name, checkpoint)) = loaded else { break None };
        match trainer.restore(&mut run, &name, checkpoint) {
            Ok(()) => break Some(name),
            Err(error) => candidates.pass_over(name, error)?,
        }
        loaded = candidates.load_next(path, &trainer.recipe_sha256)?;
    };
    if name.is_none() {
        // It was killed before its first checkpoint.
        trainer.build(0)?;
        trainer.load_initial_weights()?;
    }
    let is_newest = candidates.passed.is_empty() && !matches!(from, ResumeFrom::Named(_));
    let Progress { metrics_bytes, .. } = trainer.progress;
    if is_newest && trainer.is_done() && run.is_left_complete(metrics_bytes, trainer.schedule.epochs())? {
        // Nothing is written of a process that has nothing to do, but what a kill has left is tidied up.
        for warning in run.take_warnings() {
            trainer.session.observer.warning(&warning);
        }
        for warning in &trainer.data.warnings {
            trainer.session.observer.warning(&warning.to_string());
        }
        let tidied = [
            set_aside::remove_leftovers(path).err().map(|error| error.to_string()),
            checkpoints.remove_leftovers().err().map(|error| error.to_string()),
        ];
        for error in tidied.iter().flatten() {
            trainer.session.observer.warning(error);
        }
        return trainer.finish(&run);
    }
    // All is known to fit: from here on, the disk is changed.
    run.probe()?;
    if let Err(error) = set_aside::remove_leftovers(path) {
        run.warn(error.to_string());
    }
    if let Some(name) = name {
        for (passed, error) in candidates.passed {
            let problem = match error {
                TrainError::Checkpoint(error) => error.without_offer(),
                other => format!("checkpoint {passed} cannot be gone on from: {other}"),
            };
            run.warn(format!("{problem}; the run goes on from {name}"));
        }
        trainer.go_back(&run, name)?;
    }
    if let Err(error) = checkpoints.remove_leftovers() {
        run.warn(error.to_string());
    }
    trainer.run(run)
}

/// The checkpoints that a run may go on from, newest first.
struct Candidates<'a> {
    checkpoints: &'a Checkpoints,
    from: ResumeFrom<'a>,
    names: std::vec::IntoIter<String>,
    n: usize,
    /// Those that cannot be gone on from, by name, and what is wrong with them.
    passed: Vec<(String, TrainError)>,
}

impl<'a> Candidates<'a> {
    fn new(checkpoints: &'a Checkpoints, from: ResumeFrom<'a>) -> Result<Self, TrainError> {
        let names: Vec<String> = match from {
            ResumeFrom::Newest => checkpoints.choose(None)?.into_iter().collect(),
            ResumeFrom::NewestIntact => checkpoints.names()?.into_iter().rev().collect(),
            ResumeFrom::Named(name) => checkpoints.choose(Some(name))?.into_iter().collect(),
        };
        Ok(Self { checkpoints, from, n: names.len(), names: names.into_iter(), passed: Vec::new() })
    }

    /// The next one that can be read and is of the recipe with this digest; `None` if the run, in `path`, has none at all.
    fn load_next(
        &mut self,
        path: &Path,
        recipe_sha256: &str,
    ) -> Result<Option<(String, Checkpoint)>, TrainError> {
        while let Some(name) = self.names.next() {
            match self.load(&name, recipe_sha256) {
                Ok(checkpoint) => return Ok(Some((name, checkpoint))),
                Err(error) => self.pass_over(name, error)?,
            }
        }
        match std::mem::take(&mut self.passed).into_iter().next() {
            None => Ok(None),
            Some((_, newest)) => {
                let newest = Box::new(newest);
                Err(TrainError::NoneUsable { path: path.into(), n_checkpoints: self.n, newest })
            }
        }
    }

    fn load(&self, name: &str, recipe_sha256: &str) -> Result<Checkpoint, TrainError> {
        let loaded = match self.from {
            ResumeFrom::NewestIntact => Some((name.into(), self.checkpoints.read_whole(name)?)),
            ResumeFrom::Newest | ResumeFrom::Named(_) => self.checkpoints.load(Some(name))?,
        };
        let (_, checkpoint): (String, _) = loaded.expect("invariant: a checkpoint that is named is read");
        checkpoint.expect_recipe(recipe_sha256, &self.checkpoints.path(name))?;
        Ok(checkpoint)
    }

    /// Remembers what is wrong with a checkpoint, if another may be taken for it; other errors end the attempt.
    fn pass_over(&mut self, name: String, error: TrainError) -> Result<(), TrainError> {
        match is_of_one_checkpoint(&error) && self.from == ResumeFrom::NewestIntact {
            true => {
                self.passed.push((name, error));
                Ok(())
            }
            false => Err(error),
        }
    }
}

/// Whether what is wrong may be right with an earlier checkpoint. That a file cannot be read is no word on what it holds.
fn is_of_one_checkpoint(error: &TrainError) -> bool {
    match error {
        TrainError::Checkpoint(error) => error.is_of_content(),
        // A file that was only appended to may be what it was when an earlier checkpoint was made.
        TrainError::NoPhase { .. } | TrainError::DamagedFile { .. } => true,
        _ => false,
    }
}

/// What tells `strategies` from others.
fn fingerprints(strategies: &[Box<dyn Strategy>]) -> Vec<Fingerprint> {
    strategies.iter().map(|strategy| Fingerprint::of(strategy.as_ref())).collect()
}

/// The precision of every layer of a recipe's network, without building it.
///
/// # Errors
/// [`TrainError`] if the network is not defined.
pub fn plan(recipe: &Recipe) -> Result<Plan, TrainError> {
    let phases = recipe.phases();
    let last = phases.last().expect("invariant: a training has a phase");
    networks_of_recipe(recipe)[0].plan(recipe, last)
}

struct Trainer<'a> {
    recipe: Recipe,
    recipe_sha256: String,
    session: Session<'a>,
    /// The session's device with autodiff.
    device: Device,
    data: Data,
    strategies: Vec<Box<dyn Strategy>>,
    specs: Vec<PlacedSpec>,
    schedule: Schedule,
    /// The phase that the networks are in.
    phase: usize,
    /// The deployed network, further students, the teacher.
    trainees: Vec<Trainee>,
    progress: Progress,
    /// Whether the evaluation after the last step is the best so far.
    is_new_best: bool,
    /// The state that the newest checkpoint is of.
    saved: Option<(u64, Option<Pending>)>,
    /// When it was saved, or the training began.
    saved_at: Instant,
    /// Whether something was said of old checkpoints that cannot be removed.
    has_warned_of_housekeeping: bool,
    /// Whether something was said of checkpoints that were written at a further try.
    has_warned_of_retries: bool,
    /// Scores of networks that are not trained, which stay.
    frozen_scores: BTreeMap<String, Scores>,
    warnings: Warnings,
    /// What the files held that are only appended to, when the newest checkpoint was saved.
    starts: Starts,
    clock: Clock,
}

/// The loss of one network in a step.
struct StepLoss {
    loss: Loss,
    total: Tensor<1>,
}

impl StepLoss {
    fn of(loss: Loss) -> Self {
        Self { total: loss.total(), loss }
    }

    /// The parts, and their sum.
    fn tensors(&self) -> Vec<Tensor<1>> {
        let parts = self.loss.parts().iter().map(|part| part.value.clone());
        parts.chain([self.total.clone()]).collect()
    }

    /// The values of [`tensors`](Self::tensors), which `next` gives one after the other, by name.
    fn values(&self, next: &mut impl FnMut() -> f64) -> BTreeMap<String, f64> {
        let names = self.loss.parts().iter().map(|part| part.name).chain([TOTAL]);
        names.map(|name| (name.into(), next())).collect()
    }
}

/// A path in a network without the name of the network in what is trained.
fn without_module(path: &str) -> &str {
    path.strip_prefix("network.").unwrap_or(path)
}

/// The phases of a training on its line of steps.
struct Schedule {
    phases: Vec<Phase>,
    /// The settings of a network that trains through all phases as in one.
    whole: TrainRecipe,
    steps_per_epoch: u64,
}

impl Schedule {
    /// First step of phase `phase`; of one past the last, the number of all steps.
    fn start(&self, phase: usize) -> u64 {
        self.phases[..phase].iter().map(|phase| phase.train.epochs * self.steps_per_epoch).sum()
    }

    fn steps(&self) -> u64 {
        self.start(self.phases.len())
    }

    /// A warning for each phase that is shorter than its moving average is long.
    fn long_averages(&self) -> Vec<String> {
        let warning = |phase: &Phase| {
            let decay = phase.train.ema_decay?;
            let (length, steps) = (1.0 / (1.0 - decay), phase.train.epochs * self.steps_per_epoch);
            let effect = match phase.train.ema_warmup {
                Some(true) => "its warm-up shortens it",
                _ => "it still holds the weights that the phase began with: take ema_warmup=true",
            };
            (length > steps as f64).then(|| {
                format!(
                    "train.ema_decay={decay} averages over {length:.0} steps, but phase {} has {steps}: {effect}, or take a \
                     smaller ema_decay",
                    phase.name
                )
            })
        };
        self.phases.iter().filter_map(warning).collect()
    }

    fn epochs(&self) -> u64 {
        self.phases.iter().map(|phase| phase.train.epochs).sum()
    }
}

/// Time of this process.
struct Clock {
    started: Instant,
    /// Seconds of earlier processes.
    earlier_seconds: f64,
    first_step: u64,
    /// Seconds spent in steps.
    step_seconds: f64,
    n_images: u64,
}

impl Clock {
    fn new(first_step: u64, earlier_seconds: f64) -> Self {
        Self { started: Instant::now(), earlier_seconds, first_step, step_seconds: 0.0, n_images: 0 }
    }

    fn seconds(&self) -> f64 {
        self.earlier_seconds + self.started.elapsed().as_secs_f64()
    }

    fn images_per_second(&self) -> f64 {
        match self.n_images {
            0 => 0.0,
            n => n as f64 / self.step_seconds,
        }
    }

    fn eta_seconds(&self, step: u64, steps: u64) -> f64 {
        let done = step.saturating_sub(self.first_step).max(1);
        self.started.elapsed().as_secs_f64() / done as f64 * steps.saturating_sub(step) as f64
    }
}

impl<'a> Trainer<'a> {
    /// A training without its networks, which are [built](Self::build) in one of its phases.
    fn new(recipe: RunRecipe, data: Data, mut session: Session<'a>) -> Result<Self, TrainError> {
        let RunRecipe { recipe, sha256: recipe_sha256 } = recipe;
        let device = session.device.clone().autodiff();
        let mut strategies = recipe.strategies();
        strategies.append(&mut session.strategies);
        let mut specs = network_specs(&recipe, &strategies)?;
        specs.iter_mut().try_for_each(PlacedSpec::place_init)?;
        let phases = recipe.phases_with(&strategies)?;
        let whole = recipe.train_over(phases.iter().map(|phase| phase.train.epochs).sum());
        Ok(Self {
            recipe,
            recipe_sha256,
            device,
            session,
            strategies,
            specs,
            schedule: Schedule { phases, whole, steps_per_epoch: data.train.steps_per_epoch() },
            phase: 0,
            data,
            trainees: Vec::new(),
            progress: Progress { pending: Some(Pending::Calibration), ..Progress::default() },
            is_new_best: false,
            saved: None,
            saved_at: Instant::now(),
            has_warned_of_housekeeping: false,
            has_warned_of_retries: false,
            frozen_scores: BTreeMap::new(),
            warnings: Warnings::default(),
            starts: Starts::default(),
            clock: Clock::new(0, 0.0),
        })
    }

    /// Builds the networks as they are in phase `phase`.
    fn build(&mut self, phase: usize) -> Result<(), TrainError> {
        let phases = &self.schedule.phases;
        let no_phase = || TrainError::NoPhase { phase: phase + 1, n_phases: phases.len() };
        let settings = phases.get(phase).ok_or_else(no_phase)?;
        let new = |spec| Trainee::new(spec, &self.recipe, settings, &self.device);
        self.trainees = self.specs.iter().cloned().map(new).collect::<Result<_, _>>()?;
        self.phase = phase;
        Ok(())
    }

    /// Parameters of the largest network.
    fn n_parameters(&self) -> Result<Option<usize>, TrainError> {
        let sizes = self.specs.iter().map(|spec| spec.n_parameters(&self.recipe));
        Ok(sizes.collect::<Result<Vec<_>, _>>()?.into_iter().max())
    }

    fn current(&self) -> &Phase {
        &self.schedule.phases[self.phase]
    }

    fn steps(&self) -> u64 {
        self.schedule.steps()
    }

    /// Takes over the state of a checkpoint.
    fn restore(&mut self, run: &mut RunDir, name: &str, checkpoint: Checkpoint) -> Result<(), TrainError> {
        let checkpoints = run.checkpoints();
        let path = checkpoints.path(name);
        // Said after what the networks say, who name the entry.
        let has_its_state = checkpoint.expect_state(&path);
        let Checkpoint { progress, deployed, others, .. } = checkpoint;
        self.build(progress.phase)?;
        let mut states = std::iter::once(deployed).chain(others);
        for trainee in &mut self.trainees {
            let name = trainee.spec.name.clone();
            let state = states.next().filter(|state| state.name == name);
            let state =
                state.ok_or_else(|| CheckpointError::NoNetwork { path: path.clone(), network: name })?;
            let phase = &self.schedule.phases[self.phase];
            trainee.restore(&self.recipe, phase, &progress, state, &path)?;
        }
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

    /// Sets aside what the run wrote after the state that was restored, of the checkpoint `name`.
    fn go_back(&mut self, run: &RunDir, name: String) -> Result<(), TrainError> {
        let Progress { step, pending, metrics_bytes, .. } = self.progress;
        let epochs = step / self.schedule.steps_per_epoch - u64::from(pending == Some(Pending::Evaluation));
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
        let Schedule { steps_per_epoch, .. } = self.schedule;
        let is_in_phase = (self.schedule.start(phase)..self.schedule.start(phase + 1)).contains(&before);
        let n_images = (before % steps_per_epoch + 1) * self.recipe.data.batch_size as u64;
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
        let Progress { step, pending, train, test, test_step, losses, n_images, .. } = progress;
        let ends_an_epoch = *step > 0 && step.is_multiple_of(self.schedule.steps_per_epoch);
        match pending {
            Some(Pending::Calibration) if *step > 0 => {
                return Err(format!("no calibration can be pending after {step} steps"));
            }
            Some(Pending::Evaluation) if !ends_an_epoch => {
                return Err(format!("no evaluation can be pending after {step} steps"));
            }
            _ => {}
        }
        if test.is_some() != test_step.is_some() || test_step.is_some_and(|test_step| test_step > *step) {
            return Err("its evaluation contradicts the step of the evaluation".into());
        }
        let is_counted = train.n_top1 <= train.n_top5 && train.n_top5 <= train.n_images;
        if !is_counted || *n_images > step.saturating_mul(self.recipe.data.batch_size as u64) {
            return Err("it counts more images than there were".into());
        }
        let is_known = |name: &str| self.trainees.iter().any(|trainee| trainee.spec.name == name);
        match losses.iter().find(|(name, parts)| !is_known(name) || !parts.contains_key(TOTAL)) {
            Some((name, _)) => Err(format!("its losses of network {name:?} are none, or have no {TOTAL:?}")),
            None => Ok(()),
        }
    }

    fn run(self, mut run: RunDir) -> Result<Outcome, TrainError> {
        let checkpoints = run.checkpoints();
        self.run_in(&mut run).map_err(|error| error.in_training(|| checkpoints.last_intact()))
    }

    fn run_in(mut self, run: &mut RunDir) -> Result<Outcome, TrainError> {
        let plan = plan(&self.recipe)?;
        self.session.observer.started(&StartReport {
            run: run.path(),
            recipe: &self.recipe,
            plan: &plan,
            step: self.progress.step,
            n_train: self.data.train.n_samples(),
            n_test: self.data.test.n_samples(),
        });
        self.warnings.attach(run.path(), self.session.observer);
        for warning in run.take_warnings() {
            self.warn(WarningKind::Storage, warning);
        }
        let overruled = self.recipe.overruled_epochs(&self.strategies)?;
        let warnings = self.recipe.warnings().into_iter().chain(overruled);
        for message in warnings.chain(self.schedule.long_averages()) {
            self.warn(WarningKind::Recipe, message);
        }
        for warning in std::mem::take(&mut self.data.warnings) {
            self.warn(WarningKind::Data, warning.to_string());
        }
        self.record_process(run)?;
        self.clock.started = Instant::now();
        self.saved_at = Instant::now();
        if self.progress.pending != Some(Pending::Calibration) {
            self.report_phase();
        } else if self.saved.is_none() && self.specs.iter().any(|spec| spec.init.is_some()) {
            // The weights of other runs are read once, though the calibration be killed.
            self.save_checkpoint(run)?;
        }
        while !self.is_done() {
            if self.is_stopped() {
                return self.interrupt(run);
            }
            match self.progress.pending {
                Some(Pending::Calibration) => self.begin(run)?,
                Some(Pending::Evaluation) => self.finish_epoch(run)?,
                None if self.progress.step == self.schedule.start(self.phase + 1) => {
                    self.enter_next_phase()?
                }
                None => self.run_epoch(run)?,
            }
        }
        self.finish(run)
    }

    /// Whether nothing is left to train.
    fn is_done(&self) -> bool {
        self.progress.step == self.steps() && self.progress.pending.is_none()
    }

    /// Whether the training is to end with a checkpoint.
    fn is_stopped(&self) -> bool {
        self.session.stop.load(Ordering::Relaxed)
    }

    /// Ends the training where it stands.
    fn interrupt(mut self, run: &RunDir) -> Result<Outcome, TrainError> {
        if self.saved != Some((self.progress.step, self.progress.pending)) {
            self.save_checkpoint(run)?;
        }
        Ok(Outcome::Interrupted { run_dir: run.path().into(), step: self.progress.step, steps: self.steps() })
    }

    /// Makes the steps that are left of an epoch, until a stop.
    fn run_epoch(&mut self, run: &RunDir) -> Result<(), TrainError> {
        let steps_per_epoch = self.schedule.steps_per_epoch;
        let (epoch, first) = (self.progress.step / steps_per_epoch, self.progress.step % steps_per_epoch);
        for batch in self.data.train.epoch(epoch, first) {
            self.step(batch?)?;
            if self.progress.step.is_multiple_of(steps_per_epoch) {
                self.progress.pending = Some(Pending::Evaluation);
            } else if self.is_stopped() {
                break;
            } else if self.checkpoint_is_due(false) {
                self.save_checkpoint(run)?;
            }
        }
        Ok(())
    }

    /// Shows something wrong that does not end the training, and records it in the run. A message counts once: it must not
    /// hold what differs from step to step. Before the run begins, it waits.
    fn warn(&mut self, kind: WarningKind, message: impl Into<String>) {
        let warning = Warning { step: self.progress.step, kind, message: message.into() };
        self.warnings.add(warning, self.session.observer);
    }

    /// Writes down who trains from here on. That another build, kind of processor or device goes on is said: its bits may
    /// differ.
    fn record_process(&mut self, run: &RunDir) -> Result<(), TrainError> {
        if self.is_done() {
            return Ok(());
        }
        let step = self.progress.step;
        let Session { origin, device_name, .. } = &self.session;
        let (origin, device) = (origin.clone(), device_name.clone());
        let (then, then_device) = match run.processes()?.pop() {
            Some(last) => (last.origin, last.device),
            None => run.info().map(|info| (info.origin, info.device))?,
        };
        if let Some(difference) = origin.difference_on(&device, &then, &then_device) {
            let message = format!(
                "this run goes on with other arithmetic, so that its bits may differ from those of an uninterrupted one: \
                 {difference}"
            );
            self.warn(WarningKind::Provenance, message);
        }
        run.append_process(&RunProcess { started: utc_now(), step, device, origin })
    }

    /// Loads the weights that the networks begin with.
    fn load_initial_weights(&mut self) -> Result<(), TrainError> {
        let data = self.data.info();
        let mut warnings = Vec::new();
        for trainee in &mut self.trainees {
            let phase = &self.schedule.phases[self.phase];
            let loaded = trainee.load_initial_weights(&self.recipe, phase, &data)?;
            self.progress.calibrated.insert(trainee.spec.name.clone(), loaded.calibrated);
            warnings.extend(loaded.warnings);
        }
        warnings.into_iter().for_each(|warning| self.warn(WarningKind::Recipe, warning));
        Ok(())
    }

    /// Prepares all networks for their first step, and saves them, so that what they began with is read once.
    fn begin(&mut self, run: &RunDir) -> Result<(), TrainError> {
        let before = self.trainees.clone();
        let calibration =
            Calibration::of(&self.data, &self.device, &self.current().train, 0, self.session.stop);
        for trainee in &mut self.trainees {
            let calibrated = self.progress.calibrated.get(&trainee.spec.name);
            let is_new = |path: &str| calibrated.is_none_or(|layers| !layers.contains(path));
            trainee.begin(is_new, |network| calibration.run(network));
        }
        calibration.finish()?;
        if self.is_stopped() {
            self.trainees = before;
            return Ok(());
        }
        self.progress.calibrated.clear();
        self.progress.pending = None;
        self.progress.learned =
            self.learned().map(|(parameter, learned)| (parameter, learned.mean)).collect();
        self.save_checkpoint(run)?;
        self.report_phase();
        Ok(())
    }

    /// Goes on to the next phase, unless it is stopped while quantizers are calibrated.
    fn enter_next_phase(&mut self) -> Result<(), TrainError> {
        let before = self.trainees.clone();
        let phase = self.schedule.phases[self.phase + 1].clone();
        let epoch = self.progress.step / self.schedule.steps_per_epoch;
        let calibration = Calibration::of(&self.data, &self.device, &phase.train, epoch, self.session.stop);
        for trainee in &mut self.trainees {
            trainee.enter(&self.recipe, &phase, &self.device, |network| calibration.run(network))?;
        }
        calibration.finish()?;
        if self.is_stopped() {
            self.trainees = before;
            return Ok(());
        }
        self.phase += 1;
        self.progress.phase = self.phase;
        self.progress.learned =
            self.learned().map(|(parameter, learned)| (parameter, learned.mean)).collect();
        self.report_phase();
        Ok(())
    }

    fn report_phase(&mut self) {
        let others: Vec<(&str, &Plan)> =
            self.trainees[1..].iter().map(|trainee| (trainee.spec.name.as_str(), &trainee.plan)).collect();
        self.session.observer.phase(&PhaseReport {
            number: self.phase + 1,
            n_phases: self.schedule.phases.len(),
            phase: &self.schedule.phases[self.phase],
            others: &others,
        });
    }

    /// Lets the strategies decide which part of each student is quantized in this step. Returns the share of the deployed
    /// network's layers that is, if any strategy decided.
    fn select(&mut self) -> Result<Option<f64>, TrainError> {
        let start = self.schedule.start(self.phase);
        let moment = Moment {
            seed: self.recipe.seed,
            step: self.progress.step,
            phase_step: self.progress.step - start,
            phase_steps: self.schedule.start(self.phase + 1) - start,
        };
        let with_errors = self.strategies.iter().any(|strategy| strategy.needs_errors());
        let mut deployed_share = None;
        for (index, trainee) in self.trainees.iter_mut().enumerate() {
            if trainee.spec.role != Role::Student {
                continue;
            }
            let layers = trainee.quantized_layers(with_errors);
            let selections = compose_selections(&self.strategies, &moment, &layers)?;
            let is_decided = selections.is_some();
            let share = trainee.select(selections);
            if index == 0 && is_decided {
                deployed_share = Some(share);
            }
        }
        Ok(deployed_share)
    }

    fn step(&mut self, mut batch: Batch) -> Result<(), TrainError> {
        let started = Instant::now();
        let train = self.current().train.clone();
        let (step, steps_per_epoch) = (self.progress.step, self.schedule.steps_per_epoch);
        let n_images = batch.labels.len() as u64;
        let targets =
            target_probabilities(&batch.labels, self.data.n_classes, train.label_smoothing, &self.device);
        let quantized_share = self.select()?;
        let (losses, logits) = self.losses(tensor(&mut batch, &self.device), &targets);
        let phase_step = step - self.schedule.start(self.phase);
        let mut updates = Vec::new();
        for (trainee, loss) in self.trainees.iter_mut().zip(&losses) {
            let (train, step) = match trainee.spec.trains_throughout {
                true => (&self.schedule.whole, step),
                false => (&train, phase_step),
            };
            let rate = learning_rate(train, steps_per_epoch, step);
            let update = |loss: &StepLoss| trainee.update(rate, train.ema_decay_at(step), loss.total.clone());
            updates.push(loss.as_ref().map(update));
            trainee.select(None);
        }
        // The one read from the device in a step.
        let norms = updates.iter().flatten().filter_map(|update| update.norm.as_ref());
        let scalars = losses.iter().flatten().flat_map(StepLoss::tensors);
        // Gradients are without autodiff, and a read is of one kind.
        let read = scalars.chain(norms.map(|norm| Tensor::from_inner(norm.norm.clone())));
        let read = read.fold(Transaction::default().register(logits), Transaction::register);
        let mut read = read.execute().into_iter();
        let logits = read.next().expect("invariant: the logits were registered");
        let mut next =
            || read.next().and_then(|value| value.iter::<f32>().next()).map_or(f64::NAN, f64::from);
        let values: Vec<Option<BTreeMap<String, f64>>> =
            losses.iter().map(|loss| loss.as_ref().map(|loss| loss.values(&mut next))).collect();
        for (network, (values, update)) in values.iter().zip(&updates).enumerate() {
            let (Some(values), Some(update)) = (values, update) else { continue };
            let loss = values[TOTAL];
            if !loss.is_finite() {
                let place = state::first_non_finite(&update.network_before());
                return Err(self.non_finite(Divergence::Loss(loss), step + 1, network, place));
            }
        }
        for (network, update) in updates.iter().enumerate() {
            let Some(norm) = update.as_ref().and_then(|update| update.norm.as_ref()) else { continue };
            let value = next();
            if !value.is_finite() {
                let place = norm.culprit().map(|path| format!("the gradient of {}", without_module(&path)));
                return Err(self.non_finite(Divergence::GradientNorm(value), step + 1, network, place));
            }
        }
        let loss = values[0].as_ref().map_or(f64::NAN, |values| values[TOTAL]);
        self.count(&batch.labels, &logits.iter::<f32>().collect::<Vec<_>>(), values, quantized_share);
        let seconds = started.elapsed().as_secs_f64();
        self.clock.step_seconds += seconds;
        self.clock.n_images += n_images;
        self.progress.step_seconds += seconds;
        self.progress.n_images += n_images;
        self.session.observer.step(&StepReport {
            epoch: step / steps_per_epoch + 1,
            epochs: self.schedule.epochs(),
            step: self.progress.step,
            steps: self.steps(),
            loss,
            train: self.progress.train.scores(),
            images_per_second: self.clock.images_per_second(),
            eta_seconds: self.clock.eta_seconds(self.progress.step, self.steps()),
        });
        Ok(())
    }

    /// The loss of each network for a batch, `None` if it is not trained, and the logits of the deployed one.
    fn losses(&self, images: Tensor<4>, targets: &Tensor<2>) -> (Vec<Option<StepLoss>>, Tensor<2>) {
        let networks: Vec<Output> =
            self.trainees.iter().map(|trainee| trainee.output(images.clone())).collect();
        let outputs = Outputs { networks: &networks };
        let labels = match self.current().train.label_smoothing {
            0.0 => "labels",
            _ => "smoothed_labels",
        };
        let loss = |(trainee, output): (&Trainee, &Output)| {
            let own = || Loss::new(labels, cross_entropy(output.features.logits.clone(), targets.clone()));
            let compose = || StepLoss::of(compose_loss(&self.strategies, output, &outputs, own()));
            trainee.spec.is_trained.then(compose)
        };
        let losses = self.trainees.iter().zip(&networks).map(loss).collect();
        (losses, networks[0].features.logits.clone())
    }

    /// Counts a step that is done.
    fn count(
        &mut self,
        labels: &[i64],
        logits: &[f32],
        losses: Vec<Option<BTreeMap<String, f64>>>,
        quantized_share: Option<f64>,
    ) {
        let progress = &mut self.progress;
        if progress.step.is_multiple_of(self.schedule.steps_per_epoch) {
            progress.train = Tally::default();
            progress.losses.clear();
            progress.quantized_sum = None;
        }
        progress.train.add(logits, labels, mean_cross_entropy(logits, labels));
        for (trainee, parts) in self.trainees.iter().zip(losses) {
            let Some(parts) = parts else { continue };
            let sums = progress.losses.entry(trainee.spec.name.clone()).or_default();
            for (name, value) in parts {
                *sums.entry(name).or_default() += value * labels.len() as f64;
            }
        }
        if let Some(share) = quantized_share {
            *progress.quantized_sum.get_or_insert(0.0) += share;
        }
        progress.step += 1;
    }

    /// The error of a network that is not finite in the tensor `place`, or in what it makes of the images.
    fn non_finite(&self, what: Divergence, step: u64, network: usize, place: Option<String>) -> TrainError {
        let name = &self.trainees[network].spec.name;
        let prefix = if self.trainees.len() > 1 { format!("{name} ") } else { String::new() };
        TrainError::NonFinite {
            what,
            step,
            epoch: (step - 1) / self.schedule.steps_per_epoch + 1,
            place: format!("{prefix}{}", place.as_deref().unwrap_or("the logits")),
            last_checkpoint: None,
        }
    }

    /// Evaluates and records the epoch that ended with the last step, unless it is stopped meanwhile.
    fn finish_epoch(&mut self, run: &RunDir) -> Result<(), TrainError> {
        let train = self.current().train.clone();
        let steps_per_epoch = self.schedule.steps_per_epoch;
        let phase_step = self.progress.step - self.schedule.start(self.phase);
        let phase_epoch = phase_step / steps_per_epoch;
        let evaluated = phase_epoch.is_multiple_of(train.eval_every) || phase_epoch == train.epochs;
        if evaluated {
            let before = (self.trainees.clone(), self.progress.clone());
            if !self.evaluate(train.norm_reestimation_batches)? {
                (self.trainees, self.progress) = before;
                return Ok(());
            }
            self.watch_learned();
        }
        self.progress.pending = None;
        let n_images = self.progress.train.n_images as f64;
        let means = |sums: &BTreeMap<String, f64>| {
            sums.iter().map(|(name, sum)| (name.clone(), sum / n_images)).collect()
        };
        let losses: BTreeMap<String, BTreeMap<String, f64>> =
            self.progress.losses.iter().map(|(name, sums)| (name.clone(), means(sums))).collect();
        let others = self.trainees[1..].iter().map(|trainee| {
            let name = trainee.spec.name.clone();
            let train_loss = losses.get(&name).map(|parts| parts[TOTAL]);
            let test = self.progress.tests.get(&name).copied().filter(|_| evaluated);
            (name, NetworkMetrics { train_loss, test })
        });
        let metrics = EpochMetrics {
            epoch: self.progress.step / steps_per_epoch,
            step: self.progress.step,
            phase: self.current().name.clone(),
            learning_rate: learning_rate(&train, steps_per_epoch, phase_step - 1),
            train: self.progress.train.scores(),
            networks: others.collect(),
            losses,
            test: self.progress.test.filter(|_| evaluated),
            quantized_fraction: self.progress.quantized_sum.map(|sum| sum / steps_per_epoch as f64),
            quantizers: watched(&self.trainees[0].valid()),
        };
        let timing = EpochTiming {
            epoch: metrics.epoch,
            seconds: self.clock.seconds(),
            images_per_second: self.clock.images_per_second(),
        };
        self.progress.metrics_bytes = run.append_metrics(&to_json(&metrics), self.progress.metrics_bytes)?;
        run.append_timing(&to_json(&timing))?;
        self.session.observer.epoch(&metrics, &timing);
        let is_new_best = std::mem::take(&mut self.is_new_best);
        if self.checkpoint_is_due(true) || is_new_best {
            self.save_checkpoint(run)?;
        }
        Ok(())
    }

    /// Scores all networks on the test images, after estimating BatchNorm's statistics anew over `n_batches` batches of
    /// this epoch. Returns whether it came to an end: after a stop, what it leaves is of no use.
    fn evaluate(&mut self, n_batches: usize) -> Result<bool, TrainError> {
        let epoch = (self.progress.step - 1) / self.schedule.steps_per_epoch;
        self.progress.tests.clear();
        for (i, trainee) in self.trainees.iter_mut().enumerate() {
            if n_batches > 0 && trainee.spec.is_trained {
                let stop = self.session.stop;
                let batches = self.data.batches(epoch, n_batches);
                let batches = batches.take_while(|_| !stop.load(Ordering::Relaxed));
                trainee.reestimate_norms(batches.map(|batch| Ok(tensor(&mut batch?, &self.device))))?;
            }
            if let Some(scores) = self.frozen_scores.get(&trainee.spec.name) {
                self.progress.tests.insert(trainee.spec.name.clone(), *scores);
                continue;
            }
            let network = trainee.evaluated_network();
            let scores = evaluate(&network, &self.data.test, &self.session.device, self.session.stop)?;
            let Some(scores) = scores else { return Ok(false) };
            if !trainee.spec.is_trained {
                self.frozen_scores.insert(trainee.spec.name.clone(), scores);
            }
            if !scores.loss.is_finite() {
                let loss = Divergence::TestLoss(scores.loss);
                return Err(self.non_finite(loss, self.progress.step, i, state::first_non_finite(&network)));
            }
            match i {
                0 => self.progress.test = Some(scores),
                _ => drop(self.progress.tests.insert(trainee.spec.name.clone(), scores)),
            }
        }
        // Only the last phase has the precision asked for.
        if let (Some(test), true) = (self.progress.test, self.phase + 1 == self.schedule.phases.len()) {
            self.is_new_best = self.progress.best_top1.is_none_or(|best| test.top1 > best);
            if self.is_new_best {
                self.progress.best_top1 = Some(test.top1);
            }
        }
        self.progress.test_step = Some(self.progress.step);
        self.progress.test_device = Some(self.session.device_name.clone());
        self.progress.test_origin = Some(self.session.origin.clone());
        Ok(true)
    }

    /// The learned parameters of the quantizers of all networks, by name.
    fn learned(&self) -> impl Iterator<Item = (String, Learned)> {
        let n_networks = self.trainees.len();
        self.trainees.iter().flat_map(move |trainee| {
            let network = match n_networks {
                1 => String::new(),
                _ => format!("{}: ", trainee.spec.name),
            };
            let named =
                move |learned: Learned| (format!("{network}{}.{}", learned.path, learned.name), learned);
            learned_parameters(&trainee.valid()).into_iter().map(named)
        })
    }

    /// Warns of learned parameters of quantizers that have not moved since the evaluation before in this phase, or since it began,
    /// or that are held at their floor.
    fn watch_learned(&mut self) {
        let is_trained = self.current().train.quantizers.learning_rate_scale > 0.0;
        let mut warnings = Vec::new();
        let mut means = BTreeMap::new();
        for (parameter, Learned { mean, is_at_floor, .. }) in self.learned() {
            if is_at_floor {
                warnings.push(format!(
                    "{parameter} is held at its floor: the quantizer has collapsed; lower train.quantizers.weight_decay or \
                     train.quantizers.learning_rate_scale"
                ));
            } else if is_trained && self.progress.learned.get(&parameter) == Some(&mean) {
                warnings.push(format!(
                    "{parameter} did not move up to an evaluation: nothing that passes through the layer reaches it, or its \
                     learning rate is too small"
                ));
            }
            means.insert(parameter, mean);
        }
        self.progress.learned = means;
        warnings.into_iter().for_each(|warning| self.warn(WarningKind::Training, warning));
    }

    fn checkpoint_is_due(&self, epoch_done: bool) -> bool {
        let step = self.progress.step;
        // The last of a phase, the last phase included: the next phase begins from there when it is stopped early.
        if step == self.schedule.start(self.phase + 1) {
            return true;
        }
        let recipe = &self.recipe.checkpoint;
        let epoch = step / self.schedule.steps_per_epoch;
        let by_step = recipe.every_steps.is_some_and(|every| step.is_multiple_of(every));
        let seconds = 60.0 * recipe.every_minutes;
        let by_time = seconds > 0.0 && self.saved_at.elapsed().as_secs_f64() >= seconds;
        by_step || by_time || epoch_done && epoch.is_multiple_of(recipe.every_epochs)
    }

    /// Saves a checkpoint. A state that is not finite, from which nothing could go on, ends the training instead.
    fn save_checkpoint(&mut self, run: &RunDir) -> Result<(), TrainError> {
        let checkpoints = run.checkpoints();
        self.progress.seconds = self.clock.seconds();
        self.progress.records = run.records(&mut self.starts, self.progress.metrics_bytes)?;
        let checkpoint = Checkpoint {
            recipe_sha256: self.recipe_sha256.clone(),
            state_sha256: None,
            progress: self.progress.clone(),
            deployed: self.trainees[0].state(),
            others: self.trainees[1..].iter().map(Trainee::state).collect(),
        };
        let networks = std::iter::once(&checkpoint.deployed).chain(&checkpoint.others);
        for (network, state) in networks.enumerate() {
            if let Some(place) = state.first_non_finite() {
                let step = self.progress.step;
                return Err(self.non_finite(Divergence::State, step, network, Some(place)));
            }
        }
        let mut failures = Vec::new();
        let path = with_retries(
            || checkpoints.save(&checkpoint),
            |error| matches!(error, CheckpointError::Io { source, .. } if may_pass(source)),
            |error| failures.push(format!("{error}; it was tried again")),
        )?;
        // Once: the next names another checkpoint.
        if let Some(failure) = failures.into_iter().next()
            && !std::mem::replace(&mut self.has_warned_of_retries, true)
        {
            self.warn(WarningKind::Storage, failure);
        }
        self.saved = Some((self.progress.step, self.progress.pending));
        self.saved_at = Instant::now();
        self.session.observer.checkpoint(&path);
        // What is saved is saved: that older ones stay ends no training.
        let last_phase = self.schedule.phases.len() - 1;
        if let Err(error) = checkpoints.prune(self.recipe.checkpoint.keep_last, last_phase) {
            self.warn_of_housekeeping(&error);
        }
        Ok(())
    }

    /// Says once that an old checkpoint stays; it is tried again with every new one.
    fn warn_of_housekeeping(&mut self, error: &CheckpointError) {
        if !std::mem::replace(&mut self.has_warned_of_housekeeping, true) {
            let message =
                format!("{error}; the training goes on, and it is tried again after each checkpoint");
            self.warn(WarningKind::Storage, message);
        }
    }

    fn finish(mut self, run: &RunDir) -> Result<Outcome, TrainError> {
        let test = self.progress.test.expect("invariant: the last epoch is evaluated");
        match run.result() {
            // Resumed when nothing was left to do: the result stands, wherever the run has been moved.
            Ok(result) if (result.loss, result.top1) == (test.loss, test.top1) => {
                let result = RunResult { run_dir: run.path().into(), ..result };
                return Ok(Outcome::Complete(Box::new(result)));
            }
            Ok(_) => {
                let message =
                    "its scores are not those of the newest checkpoint; move it away to have it made again";
                return Err(TrainError::DamagedFile {
                    path: run.path().join(RESULT),
                    message: message.into(),
                });
            }
            Err(TrainError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (best, warnings) = run.checkpoints().best_intact(self.schedule.phases.len() - 1);
        for warning in warnings {
            self.warn(WarningKind::Storage, warning);
        }
        let Session { origin, device_name, .. } = self.session;
        // Those of the last evaluation: this process may have found nothing left to do but the result.
        let origin = self.progress.test_origin.clone().unwrap_or(origin);
        let device = self.progress.test_device.clone().unwrap_or(device_name);
        let is_alike =
            |process: &RunProcess| origin.difference_on(&device, &process.origin, &process.device).is_none();
        let same_origin = run.processes()?.iter().all(is_alike);
        let result = RunResult {
            recipe: self.recipe.name.clone(),
            top1: test.top1,
            top5: test.top5,
            loss: test.loss,
            best: best.map(|Scored { name, top1 }| BestCheckpoint { checkpoint: name, top1 }),
            epochs: self.schedule.epochs(),
            seconds: self.progress.seconds,
            images_per_second: self.progress.images_per_second(),
            device,
            seed: self.recipe.seed,
            networks: self.progress.tests.clone(),
            // A figure of the published images says nothing of others.
            reference: self.recipe.reference.clone().filter(|_| self.data.are_published),
            warnings: self.warnings.messages(),
            started: run.info()?.started,
            data: Some(self.data.info()),
            origin: Some(origin),
            same_origin: Some(same_origin),
            run_dir: run.path().into(),
        };
        run.write(RESULT, to_json(&result).as_bytes())?;
        Ok(Outcome::Complete(Box::new(result)))
    }
}

/// The batches that set the ranges of activation quantizers at the start of a phase. BatchNorm normalizes by batch, as in
/// the steps to come.
struct Calibration<'a> {
    data: &'a Data,
    device: &'a Device,
    epoch: u64,
    n_batches: usize,
    stop: &'a AtomicBool,
    /// Why a batch could not be had.
    failure: RefCell<Option<DataError>>,
}

impl<'a> Calibration<'a> {
    fn of(data: &'a Data, device: &'a Device, train: &TrainRecipe, epoch: u64, stop: &'a AtomicBool) -> Self {
        Self { data, device, epoch, n_batches: train.calibration_batches, stop, failure: RefCell::default() }
    }

    /// Runs the batches, or, after a stop or a failure, only the first: what comes of it is then dropped.
    fn run(&self, network: &Network) {
        for batch in self.data.batches(self.epoch, self.n_batches) {
            match batch {
                Ok(mut batch) => drop(network.forward(tensor(&mut batch, self.device))),
                Err(error) => {
                    self.failure.replace(Some(error));
                    break;
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }

    /// # Errors
    /// If not all batches could be had.
    fn finish(self) -> Result<(), DataError> {
        self.failure.into_inner().map_or(Ok(()), Err)
    }
}

/// Scores of `network`, which is in validation mode, on all images of `loader`; `None` after a stop.
///
/// # Errors
/// If an image cannot be had.
pub(crate) fn evaluate(
    network: &Network,
    loader: &Loader,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Option<Scores>, DataError> {
    let mut tally = Tally::default();
    for batch in loader.epoch(0, 0) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut batch = batch?;
        let logits = network.forward(tensor(&mut batch, device)).into_data();
        let logits: Vec<f32> = logits.iter::<f32>().collect();
        tally.add(&logits, &batch.labels, mean_cross_entropy(&logits, &batch.labels));
    }
    Ok(Some(tally.scores()))
}

/// Mean over the rows of `logits` of the cross entropy with `labels`, in double precision.
fn mean_cross_entropy(logits: &[f32], labels: &[i64]) -> f64 {
    let n_classes = logits.len() / labels.len();
    let losses = logits.chunks_exact(n_classes).zip(labels).map(|(row, &label)| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        sum.ln() - f64::from(row[label as usize] - max)
    });
    losses.sum::<f64>() / labels.len() as f64
}

/// A learned parameter of a quantizer.
struct Learned {
    path: String,
    name: &'static str,
    mean: f32,
    is_at_floor: bool,
}

/// The learned parameters of all quantizers, by layer.
fn learned_parameters(network: &Network) -> Vec<Learned> {
    let mut learned = Vec::new();
    for (path, layer) in network.layers() {
        let weight =
            layer.weight_quantizer().and_then(|quantizer| quantizer.watched().zip(quantizer.n_at_floor()));
        let input =
            layer.input_quantizer().and_then(|quantizer| quantizer.watched().zip(quantizer.n_at_floor()));
        for ((name, value), n_at_floor) in weight.into_iter().chain(input) {
            learned.push(Learned {
                path: path.into(),
                name,
                mean: value.mean().into_scalar::<f32>(),
                is_at_floor: n_at_floor.into_scalar::<i64>() > 0,
            });
        }
    }
    learned
}

/// Means of the learned and running parameters of all quantizers, by layer path and name.
fn watched(network: &Network) -> BTreeMap<String, f32> {
    let mut values = BTreeMap::new();
    for (path, layer) in network.layers() {
        let weight = layer.weight_quantizer().and_then(|quantizer| quantizer.watched());
        let input = layer.input_quantizer().and_then(|quantizer| quantizer.watched());
        for (name, value) in weight.into_iter().chain(input) {
            values.insert(format!("{path}.{name}"), value.mean().into_scalar::<f32>());
        }
    }
    values
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("invariant: metrics are plain data")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// What cannot be read now may be read the next time: no checkpoint is given up for it.
    #[test]
    fn a_read_error_is_no_damage() {
        let path = PathBuf::from("run/checkpoints/step-00000008");
        let source = io::Error::from_raw_os_error(5);
        let unread = CheckpointError::Io { action: "read", path: path.clone(), source };
        assert!(!is_of_one_checkpoint(&unread.into()));
        let damaged = Checkpoints::damaged(&path, "manifest.json: no such file or directory".into());
        assert!(is_of_one_checkpoint(&damaged.into()));
        let no_network = CheckpointError::NoNetwork { path, network: "teacher".into() };
        assert!(is_of_one_checkpoint(&no_network.into()));
        assert!(is_of_one_checkpoint(&TrainError::NoPhase { phase: 3, n_phases: 2 }));
        assert!(!is_of_one_checkpoint(&TrainError::Stopped));
    }
}
