//! The loop of a training: phases, epochs, evaluations, and when something is saved.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::tensor::Device;
use lowbit_data::{Batch, Loader, Split};
use lowbit_kernels::SumOverRanks;
use lowbit_models::{Plan, with_norms_over_ranks};
use lowbit_quantizers::{trains_in_bf16, trains_with_quantized_gradients};
use serde::Serialize;

use crate::calibration::Calibration;
use crate::checkpoint::{Checkpoint, CheckpointError, Scored, from_safetensors, to_safetensors};
use crate::clock::Clock;
use crate::data::{Data, tensor};
use crate::disk::{may_pass, with_retries};
use crate::error::{Divergence, TrainError};
use crate::evaluation::evaluate;
use crate::experiment::{Experiment, Timeline};
use crate::image_set::RunData;
use crate::layout::RESULT;
use crate::learner::Trainee;
use crate::metrics::{EpochMetrics, EpochTiming, NetworkMetrics, Scores, Tally, TimeParts};
use crate::observer::{PhaseReport, StartReport, StepReport};
use crate::origin::{Origin, RunProcess, utc_now};
use crate::progress::{EpochTop1, Pending, Progress, StoppedEarly};
use crate::result::{BestCheckpoint, RunResult};
use crate::run_dir::{RunDir, RunRecipe, Starts};
use crate::schedule::learning_rate;
use crate::session::{Outcome, Session};
use crate::state;
use crate::step::{NotFinite, Step, Stepped};
use crate::strategy::{Phase, TOTAL};
use crate::warning::{Warning, WarningKind, Warnings};
use crate::watch::{Learned, learned_parameters, watched};
use crate::weights::InitialWeights;
use crate::world::{Ranks, Wire};

/// A training as it stands.
pub(crate) struct Fit<'a> {
    pub(crate) experiment: Experiment,
    /// Digest of the recipe as the run has it.
    pub(crate) recipe_sha256: String,
    pub(crate) session: Session<'a>,
    /// The session's device with autodiff.
    pub(crate) device: Device,
    pub(crate) data: Data,
    /// The training images, of each batch the part of this process.
    own: Loader,
    /// Whether all processes have agreed to stop, if there are several.
    is_stopped_together: bool,
    pub(crate) timeline: Timeline,
    /// The phase that the networks are in.
    pub(crate) phase: usize,
    /// The deployed network, further students, the teacher.
    pub(crate) trainees: Vec<Trainee>,
    pub(crate) progress: Progress,
    /// Whether the evaluation after the last step is the best so far.
    pub(crate) is_new_best: bool,
    /// The state that the newest checkpoint is of.
    pub(crate) saved: Option<(u64, Option<Pending>)>,
    /// When it was saved, or the training began.
    pub(crate) saved_at: Instant,
    /// Whether something was said of old checkpoints that cannot be removed.
    pub(crate) has_warned_of_housekeeping: bool,
    /// Whether something was said of checkpoints that were written at a further try.
    pub(crate) has_warned_of_retries: bool,
    /// Scores of networks that are not trained, which stay: on the validation images, and on the test images.
    pub(crate) frozen_scores: [BTreeMap<String, Scores>; 2],
    pub(crate) warnings: Warnings,
    /// What the files held that are only appended to, when the newest checkpoint was saved.
    pub(crate) starts: Starts,
    pub(crate) clock: Clock,
}

impl<'a> Fit<'a> {
    /// A training without its networks, which are [built](Self::build) in one of its phases.
    pub(crate) fn new(recipe: RunRecipe, data: Data, mut session: Session<'a>) -> Result<Self, TrainError> {
        let RunRecipe { recipe, sha256: recipe_sha256 } = recipe;
        let experiment = Experiment::new(recipe, std::mem::take(&mut session.strategies))?;
        experiment.expect_images_for(session.world.size())?;
        if experiment.computes_in_bf16() && !trains_in_bf16(&session.device) {
            return Err(TrainError::Compute { device: session.device_name.clone() });
        }
        if let Some(bits) = experiment.recipe.quantization.grad_bits.bit_width()
            && !trains_with_quantized_gradients(&session.device)
        {
            return Err(TrainError::GradBits { bits, device: session.device_name.clone() });
        }
        Ok(Self {
            recipe_sha256,
            device: session.device.clone().autodiff(),
            timeline: experiment.timeline(data.train.steps_per_epoch()),
            experiment,
            phase: 0,
            own: data.train.part(session.world.rank(), session.world.size()),
            data,
            session,
            is_stopped_together: false,
            trainees: Vec::new(),
            progress: Progress { pending: Some(Pending::Calibration), ..Progress::default() },
            is_new_best: false,
            saved: None,
            saved_at: Instant::now(),
            has_warned_of_housekeeping: false,
            has_warned_of_retries: false,
            frozen_scores: Default::default(),
            warnings: Warnings::default(),
            starts: Starts::default(),
            clock: Clock::new(0, 0.0),
        })
    }

    /// Builds the networks as they are in phase `phase`.
    pub(crate) fn build(&mut self, phase: usize) -> Result<(), TrainError> {
        let settings = self.experiment.phase(phase)?;
        let new = |spec| Trainee::new(spec, &self.experiment.recipe, settings, &self.device);
        self.trainees = self.experiment.networks.iter().cloned().map(new).collect::<Result<_, _>>()?;
        self.phase = phase;
        Ok(())
    }

    fn current(&self) -> &Phase {
        &self.experiment.phases[self.phase]
    }

    pub(crate) fn steps(&self) -> u64 {
        self.timeline.steps()
    }

    pub(crate) fn run(mut self, mut run: RunDir) -> Result<Outcome, TrainError> {
        let (checkpoints, world) = (run.checkpoints(), self.session.world.clone());
        let outcome = self.run_in(&mut run).and_then(|end| match end {
            End::Complete => self.finish(&run),
            End::Interrupted => self.interrupt(&run),
        });
        let outcome = outcome.map_err(|error| error.in_training(|| checkpoints.last_intact()))?;
        // All end together: one that ends before the others may take them with it.
        world.barrier()?;
        Ok(outcome)
    }

    /// Trains along with the process that has the run.
    pub(crate) fn run_along(mut self) -> Result<(), TrainError> {
        self.run_steps(None)?;
        Ok(self.session.world.barrier()?)
    }

    fn run_in(&mut self, run: &mut RunDir) -> Result<End, TrainError> {
        let plan = self.experiment.plan()?;
        self.session.observer.started(&StartReport {
            run: run.path(),
            recipe: &self.experiment.recipe,
            plan: &plan,
            step: self.progress.step,
            n_train: self.data.train.n_samples(),
            n_validation: self.data.validation.as_ref().map_or(0, Loader::n_samples),
            n_test: self.data.test.n_samples(),
        });
        self.warnings.attach(run.path(), self.session.observer);
        for warning in run.take_warnings() {
            self.warn(WarningKind::Storage, warning);
        }
        let warnings = self.experiment.recipe.warnings().into_iter();
        for message in warnings.chain(self.experiment.long_averages(&self.timeline)) {
            self.warn(WarningKind::Recipe, message);
        }
        for warning in std::mem::take(&mut self.data.warnings) {
            self.warn(WarningKind::Data, warning.to_string());
        }
        if let Some(skipped) = self.data.skipped.take() {
            self.warn(WarningKind::Data, skipped.to_string());
        }
        self.record_process(run)?;
        if self.progress.pending != Some(Pending::Calibration) {
            self.report_phase();
        } else if self.saved.is_none() && self.experiment.networks.iter().any(|spec| spec.init.is_some()) {
            // The weights of other runs are read once, though the calibration be killed.
            self.save_checkpoint(Some(run))?;
        }
        self.run_steps(Some(run))
    }

    /// Does all that is left, until a stop. What is written goes to the run, which one process has.
    fn run_steps(&mut self, run: Option<&RunDir>) -> Result<End, TrainError> {
        self.clock.started = Instant::now();
        self.saved_at = Instant::now();
        while !self.is_done() {
            self.agree_to_stop()?;
            if self.is_stopped() {
                return Ok(End::Interrupted);
            }
            match self.progress.pending {
                Some(Pending::Calibration) => self.begin(run)?,
                Some(Pending::Evaluation) => self.finish_epoch(run)?,
                None if self.progress.step == self.timeline.start(self.phase + 1) => {
                    self.enter_next_phase()?
                }
                None => self.run_epoch(run)?,
            }
        }
        self.report_times();
        Ok(End::Complete)
    }

    /// Has all processes know whether one of them is to stop.
    fn agree_to_stop(&mut self) -> Result<(), TrainError> {
        let world = &self.session.world;
        if !world.is_alone() {
            let own = f64::from(u8::from(self.session.stop.load(Ordering::Relaxed)));
            self.is_stopped_together |= world.gather_numbers(&[own])?.iter().any(|stop| stop[0] > 0.0);
        }
        Ok(())
    }

    /// Whether nothing is left to train.
    pub(crate) fn is_done(&self) -> bool {
        let is_over = self.progress.step == self.steps() || self.progress.stopped_early.is_some();
        is_over && self.progress.pending.is_none()
    }

    /// Whether the training is to end with a checkpoint.
    pub(crate) fn is_stopped(&self) -> bool {
        match self.session.world.is_alone() {
            true => self.session.stop.load(Ordering::Relaxed),
            false => self.is_stopped_together,
        }
    }

    /// Ends the training where it stands.
    fn interrupt(mut self, run: &RunDir) -> Result<Outcome, TrainError> {
        if self.saved != Some((self.progress.step, self.progress.pending)) {
            self.save_checkpoint(Some(run))?;
        }
        self.report_times();
        Ok(Outcome::Interrupted { run_dir: run.path().into(), step: self.progress.step, steps: self.steps() })
    }

    /// Makes the steps that are left of an epoch, until a stop.
    fn run_epoch(&mut self, run: Option<&RunDir>) -> Result<(), TrainError> {
        let steps_per_epoch = self.timeline.steps_per_epoch;
        let (epoch, first) = (self.progress.step / steps_per_epoch, self.progress.step % steps_per_epoch);
        let mut batches = self.own.epoch(epoch, first);
        loop {
            let asked = Instant::now();
            let Some(batch) = batches.next() else { break };
            self.clock.spend(TimeParts { data: asked.elapsed().as_secs_f64(), ..TimeParts::default() });
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
        if !self.session.world.is_root() {
            return;
        }
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
        let Session { origin, device_name, world, .. } = &self.session;
        let (origin, device, ranks) = (origin.clone(), device_name.clone(), world.ranks());
        let (then, then_device, then_ranks) = match run.processes()?.pop() {
            Some(last) => (last.origin, last.device, last.ranks),
            None => run.info().map(|info| (info.origin, info.device, ranks.clone()))?,
        };
        let difference = origin.difference_on(&device, &then, &then_device);
        if let Some(difference) = difference.or_else(|| difference_of_ranks(&ranks, &then_ranks)) {
            let message = format!(
                "this run goes on with other arithmetic, so that its bits may differ from those of an uninterrupted one: \
                 {difference}"
            );
            self.warn(WarningKind::Provenance, message);
        }
        run.append_process(&RunProcess { started: utc_now(), step, device, origin, ranks })
    }

    /// Loads the weights that the networks begin with. Returns the files that no run wrote.
    pub(crate) fn load_initial_weights(&mut self) -> Result<Vec<InitialWeights>, TrainError> {
        let data = self.data.info();
        let (mut warnings, mut files) = (Vec::new(), Vec::new());
        for trainee in &mut self.trainees {
            let phase = &self.experiment.phases[self.phase];
            let loaded = trainee.load_initial_weights(&self.experiment.recipe, phase, &data)?;
            self.progress.calibrated.insert(trainee.spec.name.clone(), loaded.calibrated);
            warnings.extend(loaded.warnings);
            files.extend(loaded.file);
        }
        warnings.into_iter().for_each(|warning| self.warn(WarningKind::Recipe, warning));
        Ok(files)
    }

    /// Prepares all networks for their first step, and saves them, so that what they began with is read once.
    fn begin(&mut self, run: Option<&RunDir>) -> Result<(), TrainError> {
        let (before, started) = (self.trainees.clone(), Instant::now());
        let calibration =
            Calibration::of(&self.data, &self.device, &self.current().train, 0, self.session.stop)
                .on(&self.session.world);
        for trainee in &mut self.trainees {
            let calibrated = self.progress.calibrated.get(&trainee.spec.name);
            let is_new = |path: &str| calibrated.is_none_or(|layers| !layers.contains(path));
            trainee.begin(is_new, |network| calibration.run(network));
        }
        calibration.finish()?;
        self.share_networks()?;
        self.spend_on_evaluation(started);
        self.agree_to_stop()?;
        if self.is_stopped() {
            self.trainees = before;
            return Ok(());
        }
        self.begin_notes();
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
        let (before, started) = (self.trainees.clone(), Instant::now());
        let phase = self.experiment.phases[self.phase + 1].clone();
        let epoch = self.progress.step / self.timeline.steps_per_epoch;
        let calibration = Calibration::of(&self.data, &self.device, &phase.train, epoch, self.session.stop)
            .on(&self.session.world);
        for trainee in &mut self.trainees {
            trainee
                .enter(&self.experiment.recipe, &phase, &self.device, |network| calibration.run(network))?;
        }
        calibration.finish()?;
        self.share_networks()?;
        self.spend_on_evaluation(started);
        self.agree_to_stop()?;
        if self.is_stopped() {
            self.trainees = before;
            return Ok(());
        }
        self.phase += 1;
        self.progress.phase = self.phase;
        self.begin_notes();
        self.progress.learned =
            self.learned().map(|(parameter, learned)| (parameter, learned.mean)).collect();
        self.report_phase();
        Ok(())
    }

    /// Gives all processes the networks of the first, which alone has calibrated them, or estimated their statistics.
    fn share_networks(&mut self) -> Result<(), TrainError> {
        let world = &self.session.world;
        if world.is_alone() {
            return Ok(());
        }
        for trainee in &mut self.trainees {
            let own = if world.is_root() { to_safetensors(&trainee.shared_tensors()) } else { Vec::new() };
            let told = world.broadcast(own)?;
            if !world.is_root() {
                let tensors = from_safetensors(&told).expect("invariant: the first process wrote them");
                trainee.take_tensors(&tensors).expect("invariant: all processes build the same networks");
            }
        }
        Ok(())
    }

    /// Refuses processes that are of another program than the first, or that see other images.
    pub(crate) fn expect_same_ranks(&self) -> Result<(), TrainError> {
        let world = &self.session.world;
        let own = (self.session.origin.clone(), self.data.info());
        let own = serde_json::to_vec(&own).expect("invariant: what is recorded is plain data");
        let read = |told: &Vec<u8>| -> (Origin, RunData) {
            serde_json::from_slice(told).expect("invariant: another process wrote it")
        };
        let all: Vec<(Origin, RunData)> = world.gather(&own)?.iter().map(read).collect();
        let (first_origin, first_data) = &all[0];
        let named = |differs: &dyn Fn(&(Origin, RunData)) -> bool| -> Vec<String> {
            let ranks = (1..all.len()).filter(|&rank| differs(&all[rank]));
            ranks.map(|rank| world.name_of(rank)).collect()
        };
        let ranks = named(&|(_, data)| data != first_data);
        if !ranks.is_empty() {
            return Err(TrainError::OtherImagesOfRanks { ranks });
        }
        let difference = all.iter().find_map(|(origin, _)| origin.difference(first_origin));
        match difference {
            Some(difference) => Err(TrainError::OtherProgramOfRanks {
                ranks: named(&|(origin, _)| origin.difference(first_origin).is_some()),
                difference,
            }),
            None => Ok(()),
        }
    }

    /// Refuses to go on if the processes do not have the same state.
    fn expect_same_state(&self) -> Result<(), TrainError> {
        let world = &self.session.world;
        if world.is_alone() {
            return Ok(());
        }
        let digests = world.gather(&self.state_digest())?;
        let differ = (1..world.size()).filter(|&rank| digests[rank] != digests[0]);
        let ranks: Vec<String> = differ.map(|rank| world.name_of(rank)).collect();
        match ranks.is_empty() {
            true => Ok(()),
            false => Err(TrainError::RanksDiffer {
                ranks,
                epoch: self.progress.step / self.timeline.steps_per_epoch,
            }),
        }
    }

    /// Digest of all networks, their optimizers, and what strategies keep of them.
    fn state_digest(&self) -> Vec<u8> {
        self.checkpoint().state_digest().expect("invariant: it was serialized a moment ago").into_bytes()
    }

    /// All state, where the training stands.
    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            recipe_sha256: self.recipe_sha256.clone(),
            state_sha256: None,
            progress: self.progress.clone(),
            deployed: self.trainees[0].state(),
            others: self.trainees[1..].iter().map(Trainee::state).collect(),
        }
    }

    /// Tells all processes where the training stands, before its first step here.
    pub(crate) fn share_state(&mut self) -> Result<(), TrainError> {
        let world = &self.session.world;
        if !world.is_alone() {
            world.broadcast(self.checkpoint().to_bytes())?;
        }
        Ok(())
    }

    /// Takes over where the training stands at the first process.
    pub(crate) fn take_state(&mut self) -> Result<(), TrainError> {
        let told = self.session.world.broadcast(Vec::new())?;
        let checkpoint = Checkpoint::of_bytes(&told).expect("invariant: the first process wrote it");
        self.take(checkpoint, Path::new("rank 0"))
    }

    /// Lets strategies begin to keep notes of the students in a phase that begins.
    fn begin_notes(&mut self) {
        let learning_rate = self.current().train.learning_rate;
        for trainee in &mut self.trainees {
            trainee.begin_notes(&self.experiment.strategies, learning_rate);
        }
    }

    fn report_phase(&mut self) {
        let others: Vec<(&str, &Plan)> =
            self.trainees[1..].iter().map(|trainee| (trainee.spec.name.as_str(), &trainee.plan)).collect();
        self.session.observer.phase(&PhaseReport {
            number: self.phase + 1,
            n_phases: self.experiment.phases.len(),
            phase: &self.experiment.phases[self.phase],
            others: &others,
        });
    }

    fn step(&mut self, batch: Batch) -> Result<(), TrainError> {
        let started = Instant::now();
        let step = self.progress.step;
        let Self { experiment, timeline, phase, device, trainees, session, data, .. } = self;
        let this = Step {
            experiment,
            timeline,
            phase: *phase,
            step,
            device,
            world: &session.world,
            n_images: data.train.config().batch_size,
            is_stopped: session.stop.load(Ordering::Relaxed),
        };
        let sync_norms = experiment.phases[*phase].train.sync_norms && !session.world.is_alone();
        let sum = sync_norms.then(|| {
            let world = session.world.clone();
            // Nobody goes on from a sum that is none: the exchange that follows says that a process is gone.
            SumOverRanks::new(move |values| {
                let n = values.len();
                world.start_sum(values, Wire::Fp32).wait().unwrap_or_else(|_| vec![f32::NAN; n])
            })
        });
        let Stepped { losses, tally, is_stopped, quantized_share, times, measures } =
            with_norms_over_ranks(sum, || this.run(trainees, batch))?;
        self.is_stopped_together |= is_stopped;
        self.clock.spend(times);
        self.progress.measures = measures;
        let loss = losses[0].as_ref().map_or(f64::NAN, |values| values[TOTAL]);
        let n_images = tally.n_images;
        self.count(tally, losses, quantized_share);
        let seconds = started.elapsed().as_secs_f64();
        self.clock.step_seconds += seconds;
        self.clock.n_images += n_images;
        self.progress.step_seconds += seconds;
        self.progress.n_images += n_images;
        self.session.observer.step(&StepReport {
            epoch: step / self.timeline.steps_per_epoch + 1,
            epochs: self.experiment.epochs(),
            step: self.progress.step,
            steps: self.steps(),
            loss,
            train: self.progress.train.scores(),
            images_per_second: self.clock.images_per_second(),
            eta_seconds: self.clock.eta_seconds(self.progress.step, self.steps()),
        });
        Ok(())
    }

    /// Counts a step that is done.
    fn count(
        &mut self,
        tally: Tally,
        losses: Vec<Option<BTreeMap<String, f64>>>,
        quantized_share: Option<f64>,
    ) {
        let progress = &mut self.progress;
        if progress.step.is_multiple_of(self.timeline.steps_per_epoch) {
            progress.train = Tally::default();
            progress.losses.clear();
            progress.quantized_sum = None;
        }
        progress.train += tally;
        for (trainee, parts) in self.trainees.iter().zip(losses) {
            let Some(parts) = parts else { continue };
            let sums = progress.losses.entry(trainee.spec.name.clone()).or_default();
            for (name, value) in parts {
                *sums.entry(name).or_default() += value * tally.n_images as f64;
            }
        }
        if let Some(share) = quantized_share {
            *progress.quantized_sum.get_or_insert(0.0) += share;
        }
        progress.step += 1;
    }

    fn non_finite(&self, found: NotFinite) -> TrainError {
        found.after(self.progress.step, &self.experiment, &self.timeline)
    }

    /// Evaluates and records the epoch that ended with the last step, unless it is stopped meanwhile.
    fn finish_epoch(&mut self, run: Option<&RunDir>) -> Result<(), TrainError> {
        self.expect_same_state()?;
        let train = self.current().train.clone();
        let steps_per_epoch = self.timeline.steps_per_epoch;
        let phase_step = self.progress.step - self.timeline.start(self.phase);
        let phase_epoch = phase_step / steps_per_epoch;
        let evaluated = phase_epoch.is_multiple_of(train.eval_every) || phase_epoch == train.epochs;
        if evaluated {
            let before = (self.trainees.clone(), self.progress.clone());
            let started = Instant::now();
            let is_whole = self.evaluate(train.norm_reestimation_batches)?;
            self.spend_on_evaluation(started);
            if !is_whole {
                (self.trainees, self.progress) = before;
                return Ok(());
            }
            self.watch_learned();
        }
        self.progress.pending = None;
        let Some(run) = run else {
            self.is_new_best = false;
            return Ok(());
        };
        let n_images = self.progress.train.n_images as f64;
        let means = |sums: &BTreeMap<String, f64>| {
            sums.iter().map(|(name, sum)| (name.clone(), sum / n_images)).collect()
        };
        let losses: BTreeMap<String, BTreeMap<String, f64>> =
            self.progress.losses.iter().map(|(name, sums)| (name.clone(), means(sums))).collect();
        let others = self.trainees[1..].iter().map(|trainee| {
            let name = trainee.spec.name.clone();
            let train_loss = losses.get(&name).map(|parts| parts[TOTAL]);
            let of = |scores: &BTreeMap<String, Scores>| scores.get(&name).copied().filter(|_| evaluated);
            let (validation, test) = (of(&self.progress.validations), of(&self.progress.tests));
            (name, NetworkMetrics { train_loss, validation, test })
        });
        let metrics = EpochMetrics {
            epoch: self.progress.step / steps_per_epoch,
            step: self.progress.step,
            phase: self.current().name.clone(),
            learning_rate: learning_rate(&train, steps_per_epoch, phase_step - 1),
            train: self.progress.train.scores(),
            networks: others.collect(),
            losses,
            validation: self.progress.validation.filter(|_| evaluated),
            test: self.progress.test.filter(|_| evaluated),
            quantized_fraction: self.progress.quantized_sum.map(|sum| sum / steps_per_epoch as f64),
            measures: self.progress.measures.clone(),
            quantizers: watched(&self.trainees[0].valid()),
        };
        let parts = Some(self.clock.take_parts());
        let timing = EpochTiming {
            epoch: metrics.epoch,
            seconds: self.clock.seconds(),
            images_per_second: self.clock.images_per_second(),
            waiting_fraction: self.clock.waiting_fraction(),
            parts,
        };
        let saving = Instant::now();
        self.progress.metrics_bytes = run.append_metrics(&to_json(&metrics), self.progress.metrics_bytes)?;
        run.append_timing(&to_json(&timing))?;
        self.spend_on_saving(saving);
        self.session.observer.epoch(&metrics, &timing);
        let is_new_best = std::mem::take(&mut self.is_new_best);
        if self.checkpoint_is_due(true) || is_new_best {
            self.save_checkpoint(Some(run))?;
        }
        Ok(())
    }

    /// Scores all networks, after estimating BatchNorm's statistics anew over `n_batches` batches of this epoch: on the
    /// validation images where there are some, and else, or after the last step, on the test images. Returns whether it came to
    /// an end: after a stop, what it leaves is of no use.
    fn evaluate(&mut self, n_batches: usize) -> Result<bool, TrainError> {
        let epoch = (self.progress.step - 1) / self.timeline.steps_per_epoch;
        let has_validation = self.data.validation.is_some();
        let is_tested = !has_validation || self.progress.step == self.timeline.steps();
        let splits: Vec<Split> = [(has_validation, Split::Validation), (is_tested, Split::Test)]
            .into_iter()
            .filter_map(|(is_scored, split)| is_scored.then_some(split))
            .collect();
        (self.progress.validation, self.progress.test) = (None, None);
        self.progress.validations.clear();
        self.progress.tests.clear();
        if n_batches > 0 && self.session.world.is_root() {
            let stop = self.session.stop;
            for trainee in self.trainees.iter_mut().filter(|trainee| trainee.spec.is_trained) {
                let batches = self.data.batches(epoch, n_batches);
                let batches = batches.take_while(|_| !stop.load(Ordering::Relaxed));
                trainee.reestimate_norms(batches.map(|batch| Ok(tensor(&mut batch?, &self.device))))?;
            }
        }
        if n_batches > 0 {
            self.share_networks()?;
        }
        for i in 0..self.trainees.len() {
            for split in splits.iter().copied() {
                if !self.score(i, split)? {
                    return Ok(false);
                }
            }
        }
        // The last epoch is one that is scored on the test images.
        if !is_tested && self.has_waited_in_vain(epoch + 1) {
            for i in 0..self.trainees.len() {
                if !self.score(i, Split::Test)? {
                    return Ok(false);
                }
            }
        }
        // Only the last phase has the precision asked for.
        let chosen_by = self.progress.chosen_by().filter(|_| self.phase == self.experiment.last_phase());
        if let Some((_, scores)) = chosen_by {
            self.is_new_best = self.progress.best_top1.is_none_or(|best| scores.top1 > best);
            if self.is_new_best {
                self.progress.best_top1 = Some(scores.top1);
            }
        }
        self.progress.test_step = Some(self.progress.step);
        self.progress.test_device = Some(self.session.device_name.clone());
        self.progress.test_origin = Some(self.session.origin.clone());
        Ok(true)
    }

    /// Scores a network on the images of `split`. Returns whether it came to an end.
    fn score(&mut self, i: usize, split: Split) -> Result<bool, TrainError> {
        let is_test = split == Split::Test;
        let loader = match (&self.data.validation, is_test) {
            (Some(validation), false) => validation,
            _ => &self.data.test,
        };
        let trainee = &self.trainees[i];
        let name = trainee.spec.name.clone();
        let scores = match self.frozen_scores[usize::from(is_test)].get(&name).copied() {
            Some(scores) => scores,
            None => {
                let network = trainee.evaluated_network();
                let Session { device, stop, world, .. } = &self.session;
                let scores = evaluate(&network, loader, device, stop, world)?;
                let Some(scores) = scores else { return Ok(false) };
                if !scores.loss.is_finite() {
                    let loss = match is_test {
                        true => Divergence::TestLoss(scores.loss),
                        false => Divergence::ValidationLoss(scores.loss),
                    };
                    let place = state::first_non_finite(&network);
                    return Err(self.non_finite(NotFinite { what: loss, network: i, place }));
                }
                scores
            }
        };
        if !trainee.spec.is_trained {
            self.frozen_scores[usize::from(is_test)].insert(name.clone(), scores);
        }
        let progress = &mut self.progress;
        match (i, is_test) {
            (0, false) => progress.validation = Some(scores),
            (0, true) => progress.test = Some(scores),
            (_, false) => drop(progress.validations.insert(name, scores)),
            (_, true) => drop(progress.tests.insert(name, scores)),
        }
        Ok(true)
    }

    /// Whether the training ends with this epoch, as none was better for so long as the recipe waits. Only the last phase has the
    /// precision asked for.
    fn has_waited_in_vain(&mut self, epoch: u64) -> bool {
        let Some(early) = self.experiment.recipe.early_stopping else { return false };
        let (true, Some(scores)) = (self.phase == self.experiment.last_phase(), self.progress.validation)
        else {
            return false;
        };
        let best = match self.progress.unsurpassed {
            Some(best) if scores.top1 <= best.top1 + early.min_gain => best,
            _ => EpochTop1 { epoch, top1: scores.top1 },
        };
        self.progress.unsurpassed = Some(best);
        let is_over = epoch - best.epoch >= early.patience;
        if is_over {
            let epochs = self.experiment.epochs();
            self.progress.stopped_early = Some(StoppedEarly { epoch, epochs, best });
        }
        is_over
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

    /// Warns of learned parameters of quantizers that have not moved since the phase began, or that are held at their floor.
    fn watch_learned(&mut self) {
        /// Parameters that are told one by one.
        const FEW: usize = 4;

        let is_trained = self.current().train.quantizers.learning_rate_scale > 0.0;
        let weights_are_held = self.experiment.strategies.iter().any(|strategy| strategy.sets_weight_rate());
        let (mut warnings, mut unmoved) = (Vec::new(), Vec::new());
        for (parameter, Learned { mean, is_at_floor, is_of_weights, .. }) in self.learned() {
            let is_trained = is_trained && !(is_of_weights && weights_are_held);
            if is_at_floor {
                warnings.push(format!(
                    "{parameter} is held at its floor: the quantizer has collapsed; lower train.quantizers.weight_decay or \
                     train.quantizers.learning_rate_scale"
                ));
            } else if is_trained && self.progress.learned.get(&parameter) == Some(&mean) {
                unmoved.push(parameter);
            }
        }
        let why = "since the phase began: nothing that passes through its layer reaches it, or its learning rate is too small";
        match unmoved.as_slice() {
            [first, rest @ ..] if rest.len() >= FEW => warnings
                .push(format!("{first} has not moved {why}; nor have further parameters of quantizers")),
            few => warnings.extend(few.iter().map(|parameter| format!("{parameter} has not moved {why}"))),
        }
        warnings.into_iter().for_each(|warning| self.warn(WarningKind::Training, warning));
    }

    fn checkpoint_is_due(&self, epoch_done: bool) -> bool {
        let step = self.progress.step;
        // The last of a phase, the last phase included: the next phase begins from there when it is stopped early.
        if step == self.timeline.start(self.phase + 1) || self.progress.stopped_early.is_some() {
            return true;
        }
        let recipe = &self.experiment.recipe.checkpoint;
        let epoch = step / self.timeline.steps_per_epoch;
        let by_step = recipe.every_steps.is_some_and(|every| step.is_multiple_of(every));
        let seconds = 60.0 * recipe.every_minutes;
        let by_time = seconds > 0.0 && self.saved_at.elapsed().as_secs_f64() >= seconds;
        by_step || by_time || epoch_done && epoch.is_multiple_of(recipe.every_epochs)
    }

    /// Saves a checkpoint. A state that is not finite, from which nothing could go on, ends the training instead.
    fn save_checkpoint(&mut self, run: Option<&RunDir>) -> Result<(), TrainError> {
        // Any other process has the same state, and writes nothing.
        let Some(run) = run else { return Ok(()) };
        let (checkpoints, started) = (run.checkpoints(), Instant::now());
        self.progress.seconds = self.clock.seconds();
        self.progress.records = run.records(&mut self.starts, self.progress.metrics_bytes)?;
        let checkpoint = self.checkpoint();
        let networks = std::iter::once(&checkpoint.deployed).chain(&checkpoint.others);
        for (network, state) in networks.enumerate() {
            if let Some(place) = state.first_non_finite() {
                let what = Divergence::State;
                return Err(self.non_finite(NotFinite { what, network, place: Some(place) }));
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
        let last_phase = self.experiment.last_phase();
        if let Err(error) = checkpoints.prune(self.experiment.recipe.checkpoint.keep_last, last_phase) {
            self.warn_of_housekeeping(&error);
        }
        self.spend_on_saving(started);
        Ok(())
    }

    fn spend_on_evaluation(&mut self, since: Instant) {
        let evaluation = since.elapsed().as_secs_f64();
        self.clock.spend(TimeParts { evaluation, ..TimeParts::default() });
    }

    fn spend_on_saving(&mut self, since: Instant) {
        let saving = since.elapsed().as_secs_f64();
        self.clock.spend(TimeParts { saving, ..TimeParts::default() });
    }

    /// Tells where the time of this process went.
    fn report_times(&mut self) {
        self.session.observer.times(&self.clock.parts, self.clock.seconds_of_process());
    }

    /// Says once that an old checkpoint stays; it is tried again with every new one.
    fn warn_of_housekeeping(&mut self, error: &CheckpointError) {
        if !std::mem::replace(&mut self.has_warned_of_housekeeping, true) {
            let message =
                format!("{error}; the training goes on, and it is tried again after each checkpoint");
            self.warn(WarningKind::Storage, message);
        }
    }

    pub(crate) fn finish(mut self, run: &RunDir) -> Result<Outcome, TrainError> {
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
        let (best, warnings) = run.checkpoints().best_intact(self.experiment.last_phase());
        for warning in warnings {
            self.warn(WarningKind::Storage, warning);
        }
        let Session { origin, device_name, .. } = self.session;
        // Those of the last evaluation: this process may have found nothing left to do but the result.
        let origin = self.progress.test_origin.clone().unwrap_or(origin);
        let device = self.progress.test_device.clone().unwrap_or(device_name);
        let processes = run.processes()?;
        let is_alike = |process: &RunProcess| {
            origin.difference_on(&device, &process.origin, &process.device).is_none()
                && processes.iter().all(|other| difference_of_ranks(&other.ranks, &process.ranks).is_none())
        };
        let same_origin = processes.iter().all(is_alike);
        let result = RunResult {
            recipe: self.experiment.recipe.name.clone(),
            top1: test.top1,
            top5: test.top5,
            loss: test.loss,
            validation: self.progress.validation,
            best: best.map(|Scored { name, top1, images }| BestCheckpoint { checkpoint: name, top1, images }),
            epochs: self.progress.step / self.timeline.steps_per_epoch,
            stopped_early: self.progress.stopped_early,
            seconds: self.progress.seconds,
            images_per_second: self.progress.images_per_second(),
            device,
            seed: self.experiment.recipe.seed,
            networks: self.progress.tests.clone(),
            // A figure of the published images says nothing of others.
            reference: self.experiment.recipe.reference.clone().filter(|_| self.data.are_published),
            warnings: self.warnings.messages(),
            started: run.info()?.started,
            classes: self.data.classes.clone(),
            data: Some(self.data.info()),
            origin: Some(origin),
            same_origin: Some(same_origin),
            run_dir: run.path().into(),
        };
        run.write(RESULT, to_json(&result).as_bytes())?;
        Ok(Outcome::Complete(Box::new(result)))
    }
}

/// How the part of a training that is at hand has ended.
enum End {
    Complete,
    Interrupted,
}

/// In what the processes of a training differ from those `then` so that its bits may differ, in words.
fn difference_of_ranks(now: &Option<Ranks>, then: &Option<Ranks>) -> Option<String> {
    let counted = |ranks: &Option<Ranks>| ranks.as_ref().map_or(1, |ranks| ranks.n);
    let wire = |ranks: &Option<Ranks>| ranks.as_ref().map_or(Wire::Fp32, |ranks| ranks.wire);
    let places = |ranks: &Option<Ranks>| -> Vec<Vec<usize>> {
        ranks.iter().flat_map(|ranks| ranks.hosts.iter().map(|host| host.ranks.clone())).collect()
    };
    let in_words = |n: usize| if n == 1 { "1 process".into() } else { format!("{n} processes") };
    match (counted(then), counted(now)) {
        (then, now) if then != now => Some(format!("{} then, {} now", in_words(then), in_words(now))),
        _ if wire(then) != wire(now) => {
            Some(format!("gradients sent in {} then, in {} now", wire(then).name(), wire(now).name()))
        }
        // Those of a machine add up first.
        _ if places(then) != places(now) => {
            Some("the processes are divided over machines in another way".into())
        }
        _ => None,
    }
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("invariant: metrics are plain data")
}
