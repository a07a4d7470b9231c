//! `lowbit train`: runs a training and follows it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use burn::tensor::Device;
use lowbit_train::recipe::{DEFAULT, Difference, lowest_precision};
use lowbit_train::{
    CheckpointError, EpochMetrics, EpochTiming, Images, Kept, MemoryEstimate, NewRun, Observer, Outcome,
    PhaseReport, Ranks, Recipe, ResumeFrom, RunDir, RunResult, Scores, Session, StartReport, StepReport,
    StoppedEarly, TimeParts, TrainError, Wire, World, follow, shell_quoted,
};
use serde::{Deserialize, Serialize};

use crate::cli::TrainArgs;
use crate::device::{DeviceName, gpu_limits};
use crate::exit_code::{Code, UsageError};
use crate::inspect::{
    checkpoint_named, describe_compute, describe_phase, describe_recipe, describe_strategies_of,
    expect_no_checkpoint,
};
use crate::live::{LiveFile, Status as LiveStatus};
use crate::logging::{LogFile, SHOWN};
use crate::memory;
use crate::output::{self, clock, counted, percent, percent_exact};
use crate::progress::{Progress, Screen};
use crate::recipes;
use crate::signals::{stop_on_signals, stop_on_user_signal};
use crate::tensorboard::{Board, FOLDER};

pub fn run(args: &TrainArgs, world: World, screen: &Screen, log: &LogFile) -> anyhow::Result<Code> {
    if args.exchange.is_some() && world.is_alone() {
        let message =
            "--exchange is for several processes, which mpirun starts, and this one is alone: leave it out";
        return Err(UsageError(message.into()).into());
    }
    let stop = stop_on_signals(screen)?;
    stop_on_user_signal(&stop, screen)?;
    if !world.is_root() {
        return along(args, world, &stop);
    }
    let limit = args.time_limit.map(|limit| TimeLimit::start(limit, &stop, screen));
    let reason = || match &limit {
        Some(limit) if limit.is_over() => "time-limit",
        _ => "signal",
    };
    let mut changed = None;
    let start = match &args.resume {
        Some(run) => {
            expect_no_checkpoint(run, "train --resume")?;
            Start::Resume(run)
        }
        None => {
            let name = args.recipe.as_deref().unwrap_or(DEFAULT);
            let mut set = args.set.set.clone();
            set.extend(args.skip_unreadable.then(|| "data.skip_unreadable=true".into()));
            let (recipe, changes) = recipes::load(name, &set)?;
            changed = changes.map(|changes| describe_changes(&changes));
            let recipe = Images::from(args.data_dir.locations()).complete(&recipe)?;
            match &args.out {
                Some(out) if args.or_resume && is_run(out) => {
                    RunDir::open(out)?.expect_recipe(&recipe)?;
                    Start::Resume(out)
                }
                _ => Start::New { recipe: Box::new(recipe) },
            }
        }
    };
    let name = match (args.device.device, &start) {
        (Some(name), _) => name,
        (None, Start::New { .. }) => DeviceName::fastest()?,
        // Elsewhere it would end in other bits, which is to be asked for.
        (None, Start::Resume(run)) => DeviceName::of_run(&RunDir::open(run)?.info()?.device)?,
    };
    let checkpoint = match (&start, args.checkpoint.as_deref()) {
        (Start::Resume(run), Some(name)) => Some(checkpoint_named(run, name)?),
        _ => None,
    };
    let place = Place { device: name.to_string(), wire: wire_of(args, &start)? };
    let (device, world) = place.take(name, world)?;
    let memory = memory_of(&start, checkpoint.as_deref(), &device, &world, args.ignore_memory)?;
    let mut follower = Follower {
        device: name.to_string(),
        memory,
        ranks: world.ranks(),
        screen,
        log,
        changed,
        epochs: 0,
        has_told_of_waiting: false,
        progress: None,
        set_aside: None,
        live: LiveFile::default(),
        board: if args.tensorboard { Projection::Wanted } else { Projection::Unwanted },
    };
    let session = Session {
        device,
        device_name: name.to_string(),
        origin: crate::origin::here(),
        images: args.data_dir.locations().into(),
        stop: &stop,
        observer: &mut follower,
        world,
        strategies: Vec::new(),
    };
    let result = match &start {
        Start::New { recipe } => match &args.out {
            Some(out) => lowbit_train::train(recipe, out, session),
            None => {
                lowbit_train::train(recipe, NewRun::Numbered(&Path::new("runs").join(&recipe.name)), session)
            }
        },
        Start::Resume(run) => {
            let from = match &checkpoint {
                Some(name) => ResumeFrom::Named(name),
                None if args.or_previous => ResumeFrom::NewestIntact,
                None => ResumeFrom::Newest,
            };
            lowbit_train::resume(run, from, session)
        }
    };
    // Otherwise nothing was left to train, and nothing was written.
    let has_trained = follower.progress.is_some();
    follower.live.end(
        match &result {
            Ok(Outcome::Complete(_)) => LiveStatus::Complete,
            Ok(Outcome::Interrupted { .. }) => LiveStatus::Stopped,
            Err(_) => LiveStatus::Failed,
        },
        result.as_ref().err().map(ToString::to_string),
    );
    drop(follower);
    // A run knows the place of its data, unless another was given to go on with.
    let data_dir = match (&start, &args.data_dir.data_dir) {
        (Start::Resume(run), Some(given)) if !is_data_dir_of(run, given) => {
            format!(" --data-dir {}", shell_quoted(given))
        }
        _ => String::new(),
    };
    let outcome = match result {
        // There is no run, or it is as it was.
        Err(TrainError::Stopped) => {
            screen.show("stopped before the training began; nothing was written");
            if args.json.json {
                let outcome = NotBegun { reason: reason() };
                output::print_json(&Status { status: "interrupted", outcome })?;
            }
            return Ok(Code::Interrupted);
        }
        result => result.map_err(|error| with_advice(error, &start))?,
    };
    match outcome {
        Outcome::Complete(result) => {
            tracing::info!(target: SHOWN, top1 = result.top1, top5 = result.top5, loss = result.loss, "complete");
            if !has_trained {
                screen.show("already complete, nothing is left to train; its result:");
            }
            match args.json.json {
                true => output::print_json(&Status { status: "complete", outcome: &result })?,
                false => output::print(&describe(&result, &data_dir, screen.is_quiet()))?,
            }
            Ok(Code::Success)
        }
        Outcome::Interrupted { run_dir, step, steps } => {
            tracing::info!(target: SHOWN, step, steps, "interrupted");
            let interrupted = Interrupted { reason: reason(), run_dir: &run_dir, step, steps };
            match args.json.json {
                true => output::print_json(&Status { status: "interrupted", outcome: interrupted })?,
                false => output::print(&format!(
                    "saved; continue with: lowbit train --resume {}{}{data_dir}",
                    shell_quoted(&run_dir),
                    match &start {
                        Start::Resume(run) if !is_device_of(run, name) => format!(" --device {name}"),
                        _ => String::new(),
                    },
                ))?,
            }
            Ok(Code::Interrupted)
        }
    }
}

/// Trains along with the process that has the run, shows it and writes it.
fn along(args: &TrainArgs, world: World, stop: &AtomicBool) -> anyhow::Result<Code> {
    let told = world.broadcast(Vec::new())?;
    let place: Place = serde_json::from_slice(&told).expect("invariant: the first process wrote it");
    let name: DeviceName = place.device.parse()?;
    let (device, world) = place.take(name, world)?;
    follow(Session {
        device,
        device_name: name.to_string(),
        origin: crate::origin::here(),
        images: args.data_dir.locations().into(),
        stop,
        observer: &mut (),
        world,
        strategies: Vec::new(),
    })?;
    Ok(Code::Success)
}

/// What the first of several processes tells the others before they begin.
#[derive(Serialize, Deserialize)]
struct Place {
    /// The device as it was asked for.
    device: String,
    wire: Wire,
}

impl Place {
    /// Opens the device of this process, after the others are told.
    fn take(&self, name: DeviceName, world: World) -> anyhow::Result<(Device, World)> {
        let Some(place) = world.place().cloned() else { return Ok((name.open()?, world)) };
        if world.is_root() {
            world.broadcast(serde_json::to_vec(self)?)?;
        }
        let device = name.of_local_rank(place.local_rank, place.local_size).open()?;
        Ok((device, world.with_wire(self.wire)))
    }
}

/// How gradients are sent: as is asked for, or as in the run before.
fn wire_of(args: &TrainArgs, start: &Start<'_>) -> anyhow::Result<Wire> {
    Ok(match (args.exchange.as_deref(), start) {
        (Some("bf16"), _) => Wire::Bf16,
        (Some(_), _) | (None, Start::New { .. }) => Wire::Fp32,
        (None, Start::Resume(run)) => {
            let last = RunDir::open(run)?.processes()?.pop().and_then(|process| process.ranks);
            last.map_or(Wire::Fp32, |ranks| ranks.wire)
        }
    })
}

/// Stops a training when its time is over.
struct TimeLimit(Arc<AtomicBool>);

impl TimeLimit {
    fn start(limit: Duration, stop: &Arc<AtomicBool>, screen: &Screen) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let (stop, screen, over) = (stop.clone(), screen.clone(), is_over.clone());
        std::thread::spawn(move || {
            std::thread::sleep(limit);
            // Somebody asked before, who is told.
            if !stop.load(Ordering::Relaxed) {
                over.store(true, Ordering::Relaxed);
                stop.store(true, Ordering::Relaxed);
                screen.show(&format!(
                    "the time limit of {} is over: stopping",
                    humantime::format_duration(limit)
                ));
            }
        });
        Self(is_over)
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is trained.
enum Start<'a> {
    New { recipe: Box<Recipe> },
    Resume(&'a Path),
}

/// What a training that goes on from `checkpoint`, if one was named, takes of the memory, in words, or `None` where nothing is
/// left to train. One that cannot fit is an error, unless it `is_tried` all the same: it would end in the middle of its first step,
/// or be ended by the system without a word.
fn memory_of(
    start: &Start<'_>,
    checkpoint: Option<&str>,
    device: &Device,
    world: &World,
    is_tried: bool,
) -> anyhow::Result<Option<String>> {
    let limits = gpu_limits(device);
    let kept = if limits.is_some() { Kept::Floats } else { Kept::Codes };
    let mut estimate = match start {
        Start::New { recipe } => MemoryEstimate::new(recipe, kept)?,
        Start::Resume(path) => {
            let run = RunDir::open(path)?;
            // From an earlier checkpoint, a complete run is trained again.
            if checkpoint.is_none() && run.result().is_ok() {
                return Ok(None);
            }
            // What is wrong with its recipe is said where the run is resumed.
            let Ok(recipe) = run.recipe() else { return Ok(None) };
            MemoryEstimate::new(&recipe, kept)?
        }
    };
    // A process computes its part of a batch at once.
    estimate.accumulate *= world.size() as u64;
    let may_change = matches!(start, Start::New { .. });
    // The processes of a machine share its memory.
    let n_local = world.place().map_or(1, |place| place.local_size as u64);
    let room = memory::room().map(|room| room.shared_by(n_local));
    memory::expect_room(&estimate, limits, room, may_change, is_tried)?;
    Ok(Some(memory::describe(&estimate, limits.is_some())))
}

/// Whether `path` holds a run.
fn is_run(path: &Path) -> bool {
    !matches!(RunDir::open(path), Err(TrainError::NotARun { .. }))
}

/// The error of a run that cannot go on, with the command by which it can, if there is one.
fn with_advice(error: TrainError, start: &Start<'_>) -> anyhow::Error {
    let is_of_checkpoint = match &error {
        // It says what else is intact.
        TrainError::Checkpoint(CheckpointError::Damaged { .. }) => false,
        TrainError::Checkpoint(error) => error.is_of_content(),
        TrainError::NoPhase { .. } => true,
        _ => false,
    };
    match (&error, start) {
        (TrainError::Checkpoint(CheckpointError::Damaged { previous: Some(_), .. }), Start::Resume(run)) => {
            let message = format!(
                "{error}; go on from it with `lowbit train --resume {} --or-previous`",
                shell_quoted(run)
            );
            anyhow::Error::from(error).context(message)
        }
        (_, Start::Resume(run)) if is_of_checkpoint => {
            let message = format!(
                "{error}; go on from the newest that can be with `lowbit train --resume {} --or-previous`",
                shell_quoted(run)
            );
            anyhow::Error::from(error).context(message)
        }
        _ => error.into(),
    }
}

/// Whether the run in `run` looks for its data in `data_dir` first.
fn is_data_dir_of(run: &Path, data_dir: &Path) -> bool {
    let known = RunDir::open(run).and_then(|run| run.info()).ok().and_then(|info| info.data_dir);
    std::path::absolute(data_dir).ok() == known
}

/// Whether the run in `run` goes on on the device `name` by itself.
fn is_device_of(run: &Path, name: DeviceName) -> bool {
    RunDir::open(run).and_then(|run| run.info()).is_ok_and(|info| info.device == name.to_string())
}

#[derive(Serialize)]
struct Status<T> {
    status: &'static str,
    #[serde(flatten)]
    outcome: T,
}

#[derive(Serialize)]
struct NotBegun {
    reason: &'static str,
}

#[derive(Serialize)]
struct Interrupted<'a> {
    reason: &'static str,
    run_dir: &'a Path,
    step: u64,
    steps: u64,
}

/// From this share of waiting on, it is said that the steps wait for images.
const MUCH_WAITING: f64 = 0.1;

/// Shorter trainings, in seconds, are not told of it.
const SHORT: f64 = 60.0;

/// Shows and logs what happens in a training.
struct Follower<'a> {
    device: String,
    /// What the training takes of its memory.
    memory: Option<String>,
    /// The processes, if there are several.
    ranks: Option<Ranks>,
    screen: &'a Screen,
    log: &'a LogFile,
    /// What --set changed of the recipe.
    changed: Option<String>,
    epochs: u64,
    progress: Option<Progress>,
    /// Where what came later than the checkpoint was put, until it is shown.
    set_aside: Option<PathBuf>,
    /// Whether it was said that the steps wait for images.
    has_told_of_waiting: bool,
    /// Where it stands, for who watches.
    live: LiveFile,
    /// The event file for TensorBoard.
    board: Projection,
}

/// The event file for TensorBoard.
enum Projection {
    /// It is written only where there is one.
    Unwanted,
    Wanted,
    Open(Box<Board>),
    /// It could not be written.
    Failed,
}

impl Projection {
    /// Writes what a run has recorded, if it is to be.
    fn open(&mut self, run: &Path) {
        let is_wanted = matches!(self, Self::Wanted) || run.join(FOLDER).is_dir();
        if is_wanted {
            let board = RunDir::open(run).and_then(|opened| Board::write(&opened, &run.join(FOLDER)));
            *self = board.map_or_else(Self::failed, |board| Self::Open(Box::new(board)));
        }
    }

    /// Writes more, if it is to be.
    fn add(&mut self, add: impl FnOnce(&mut Board) -> Result<(), TrainError>) {
        if let Self::Open(board) = self
            && let Err(error) = add(board)
        {
            *self = Self::failed(error);
        }
    }

    /// What is recorded can be written later: it ends no training.
    fn failed(error: TrainError) -> Self {
        tracing::warn!("{error}; no more is written for TensorBoard: `lowbit tensorboard` does it later");
        Self::Failed
    }
}

impl Follower<'_> {
    fn show(&mut self, text: &str) {
        match &mut self.progress {
            Some(progress) => progress.show(text),
            None => self.screen.show(text),
        }
    }

    /// Shows a line with a key.
    fn show_entry(&self, key: &str, text: &str) {
        self.screen.show_wrapped(key, text);
    }
}

impl Observer for Follower<'_> {
    fn reading(&mut self, n_read: usize, n_images: usize) {
        let screen = self.screen;
        let progress = self.progress.get_or_insert_with(|| screen.progress("{wide_msg} {bar:12} ETA {eta}"));
        progress.position(n_read as u64, n_images as u64);
        progress.update(|| format!("{n_read} of {n_images} validation and test images read"));
    }

    fn started(&mut self, report: &StartReport<'_>) {
        let StartReport { run, recipe, plan, step, n_train, n_validation, n_test } = *report;
        self.log.open(run);
        // That of the images that were read.
        self.progress = None;
        self.epochs = recipe.total_epochs();
        let (epochs, batch) = (self.epochs, recipe.data.batch_size);
        tracing::info!(
            target: SHOWN,
            version = crate::origin::here().build(),
            recipe = recipe.name,
            seed = recipe.seed,
            dataset = %recipe.data.dataset,
            device = self.device,
            parameters = plan.n_parameters(),
            step,
            "{}",
            if step == 0 { "started" } else { "resumed" },
        );
        self.show(&format!("{}\n", output::plan_in(&plan.to_string(), output::stderr_columns())));
        let parameters = format!("{} parameters", plan.n_parameters());
        self.show_entry("recipe  ", &format!("{}, {parameters}", describe_recipe(recipe)));
        if let Some(changed) = &self.changed {
            tracing::info!(target: SHOWN, "changed: {changed}");
            self.show_entry("changed: ", changed);
        }
        if let Some(strategies) = describe_strategies_of(recipe) {
            self.show_entry("with    ", &strategies);
        }
        let images = format!("{}: {}", recipe.data.dataset, output::images(n_train, n_validation, n_test));
        self.show_entry("data    ", &images);
        let epochs = counted(epochs, "epoch");
        self.show_entry("plan    ", &format!("{epochs} in batches of {batch}, seed {}", recipe.seed));
        if let Some(compute) = describe_compute(recipe) {
            tracing::info!(target: SHOWN, "{compute}");
            self.show_entry("compute ", &compute);
        }
        self.show(&format!("device  {}", self.device));
        if let Some(ranks) = &self.ranks {
            let text = describe_ranks(ranks, batch);
            tracing::info!(target: SHOWN, "{text}");
            self.show_entry("ranks   ", &text);
        }
        if let Some(memory) = &self.memory {
            tracing::info!(target: SHOWN, "memory: {memory}");
            self.show_entry("memory  ", memory);
        }
        self.show(&format!("run     {}", run.display()));
        if step > 0 {
            self.show(&format!("resumed at step {step}"));
        }
        if let Some(path) = self.set_aside.take() {
            tracing::info!(target: SHOWN, path = %path.display(), "set aside");
            self.show(&format!("what came later is kept in {}", path.display()));
        }
        self.show("");
        self.board.open(run);
        self.live.begin(run, &crate::origin::here(), self.epochs, step);
        self.progress = Some(self.screen.progress("{wide_msg}"));
    }

    fn phase(&mut self, report: &PhaseReport<'_>) {
        let PhaseReport { number, n_phases, phase, others } = report;
        let others: Vec<String> = others
            .iter()
            .map(|(name, plan)| {
                format!("{name} {}, {} parameters", lowest_precision(plan), plan.n_parameters())
            })
            .collect();
        self.live.phase(&phase.name);
        tracing::info!(
            target: SHOWN,
            number,
            name = phase.name,
            epochs = phase.train.epochs,
            learning_rate = phase.train.learning_rate,
            others = others.join("; "),
            "phase",
        );
        if *n_phases > 1 {
            self.show(&format!("phase {number}/{n_phases}  {}", describe_phase(phase)));
        }
        for other in others {
            self.show(&format!("beside it  {other}"));
        }
    }

    fn step(&mut self, report: &StepReport) {
        if let Some(progress) = &mut self.progress {
            progress.update(|| output::fitting(step_lines(report), output::stderr_columns()));
        }
        self.live.step(report);
        tracing::trace!(step = report.step, loss = report.loss, "step");
    }

    fn epoch(&mut self, metrics: &EpochMetrics, timing: &EpochTiming) {
        tracing::info!(
            target: SHOWN,
            epoch = metrics.epoch,
            step = metrics.step,
            learning_rate = metrics.learning_rate,
            train_loss = metrics.train.loss,
            train_top1 = metrics.train.top1,
            validation_loss = metrics.validation.map(|validation| validation.loss),
            validation_top1 = metrics.validation.map(|validation| validation.top1),
            test_loss = metrics.test.map(|test| test.loss),
            test_top1 = metrics.test.map(|test| test.top1),
            seconds = timing.seconds,
            images_per_second = timing.images_per_second,
            waiting_fraction = timing.waiting_fraction,
            "epoch",
        );
        self.board.add(Board::catch_up);
        let line = output::fitting(epoch_lines(metrics, self.epochs, timing), output::stderr_columns());
        self.show(&line);
        if timing.waiting_fraction > MUCH_WAITING && timing.seconds > SHORT && !self.has_told_of_waiting {
            self.has_told_of_waiting = true;
            let percent = 100.0 * timing.waiting_fraction;
            self.show(&format!(
                "the steps wait {percent:.0}% of their time for images: more data.workers may help, or smaller images (lowbit data pack --resize)"
            ));
        }
        // The epoch's figures are not to stand under what comes next.
        if let Some(progress) = &mut self.progress {
            progress.clear();
        }
    }

    fn times(&mut self, parts: &TimeParts, seconds: f64) {
        if let Some(text) = describe_times(parts, seconds) {
            tracing::info!(target: SHOWN, seconds, "time: {text}");
            self.show_entry("time    ", &text);
        }
    }

    fn checkpoint(&mut self, path: &Path) {
        tracing::debug!(path = %path.display(), "checkpoint saved");
        self.board.add(|board| board.add_checkpoint(path));
    }

    fn set_aside(&mut self, path: &Path) {
        self.set_aside = Some(path.into());
    }

    fn warning(&mut self, message: &str) {
        tracing::warn!("{message}");
    }
}

/// Where `seconds` of a training went, in percent; `None` if there were none.
pub fn describe_times(parts: &TimeParts, seconds: f64) -> Option<String> {
    let total = seconds.max(parts.sum());
    let other = [("other", total - parts.sum())];
    let shares = parts.named().into_iter().chain(other).filter_map(|(name, seconds)| {
        let percent = (100.0 * seconds / total).round_ties_even();
        let name = if name == "data" { "waiting for images" } else { name };
        (percent >= 1.0).then(|| format!("{name} {percent:.0}%"))
    });
    let shares: Vec<String> = shares.collect();
    (!shares.is_empty()).then(|| shares.join(", "))
}

/// The processes of a training with batches of `batch` images, in a line.
pub fn describe_ranks(ranks: &Ranks, batch: usize) -> String {
    let Ranks { n, hosts, library, wire } = ranks;
    let hosts = match hosts.as_slice() {
        [host] => host.host.clone(),
        hosts => {
            hosts.iter().map(|host| format!("{} ({})", host.host, host.n)).collect::<Vec<_>>().join(", ")
        }
    };
    let each = match batch % n {
        0 => format!("{}", batch / n),
        _ => format!("{} or {}", batch / n, batch / n + 1),
    };
    let wire = match wire {
        Wire::Fp32 => String::new(),
        Wire::Bf16 => ", gradients sent in bf16".into(),
    };
    format!("{n} processes on {hosts}, {each} images of a batch each, by {library}{wire}")
}

/// What was changed of a recipe, in a line.
fn describe_changes(changes: &[Difference]) -> String {
    let show = |Difference { key, values: [before, after] }: &Difference| {
        // A table has all its defaults, which nobody has asked for.
        let is_new_table = before == "not set" && after.starts_with('{');
        match is_new_table {
            true => format!("{key} added"),
            false => format!("{key} {} -> {}", before.trim_matches('"'), after.trim_matches('"')),
        }
    };
    match changes.is_empty() {
        true => "nothing; the recipe has these values".into(),
        false => changes.iter().map(show).collect::<Vec<_>>().join(", "),
    }
}

/// The line that changes while an epoch runs: whole, and shorter ones for terminals that it does not fit in.
fn step_lines(report: &StepReport) -> [String; 3] {
    // Of the epoch: those of the whole run say little.
    let epoch_steps = report.steps / report.epochs.max(1);
    let step = report.step - (report.epoch - 1) * epoch_steps;
    let epoch = format!("epoch {}/{}  {step}/{epoch_steps}", report.epoch, report.epochs);
    let (loss, top1) = (short(report.train.loss), percent(report.train.top1));
    let (speed, eta) = (report.images_per_second, clock(report.eta_seconds));
    [
        format!("{epoch}  loss {loss}  top1 {top1}  {speed:.0} img/s  ETA {eta}"),
        format!("{epoch}  loss {loss}  ETA {eta}"),
        format!("{epoch}  ETA {eta}"),
    ]
}

/// The line that stays when an epoch is done: whole, and shorter ones.
fn epoch_lines(metrics: &EpochMetrics, epochs: u64, timing: &EpochTiming) -> [String; 3] {
    let width = epochs.to_string().len();
    let epoch = format!("epoch {:>width$}/{epochs}", metrics.epoch);
    let seconds = clock(timing.seconds);
    let top1 = |scores: Scores| format!("top1 {:>5}", percent(scores.top1));
    let show = |scores: Scores| format!("loss {} {}", short(scores.loss), top1(scores));
    // After the last epoch of a training with validation images there are both: the test images are what counts.
    let scored =
        metrics.test.map(|scores| ("test", scores)).or(metrics.validation.map(|scores| ("val", scores)));
    let test = |show: &dyn Fn(Scores) -> String| {
        scored.map(|(images, scores)| format!("  {images} {}", show(scores))).unwrap_or_default()
    };
    [
        format!("{epoch}  train {}{}  {seconds}", show(metrics.train), test(&show)),
        format!("{epoch}  train {}{}", top1(metrics.train), test(&top1)),
        match scored {
            Some(_) => format!("{epoch}{}", test(&top1)),
            None => format!("{epoch}  train {}", top1(metrics.train)),
        },
    ]
}

/// Four digits and a point of a loss, five characters unless it is enormous.
fn short(loss: f64) -> String {
    match loss {
        loss if loss < 10.0 => format!("{loss:.3}"),
        loss if loss < 100.0 => format!("{loss:.2}"),
        loss if loss < 1000.0 => format!("{loss:.1}"),
        loss => format!("{loss:.0e}"),
    }
}

/// A result in lines, with what to do next unless it `is_quiet`; `options` are those that a command on the run's data needs.
fn describe(result: &RunResult, options: &str, is_quiet: bool) -> String {
    let (run, quoted) = (result.run_dir.display(), shell_quoted(&result.run_dir));
    let next = format!(
        "\n\nscore a checkpoint again:  lowbit eval {quoted}{options}\nsee what it holds:         lowbit inspect {quoted}"
    );
    let next = if is_quiet { "" } else { next.as_str() };
    format!("{}run         {run}{next}", describe_result(result))
}

/// What a training has reached, in lines.
pub fn describe_result(result: &RunResult) -> String {
    let RunResult { top1, top5, loss, epochs, seconds, images_per_second, .. } = result;
    let reference = result.reference.as_ref().map(|text| format!("reference   {text}\n"));
    let best = result.best.as_ref().map(|best| {
        format!(
            "best        top-1 {} ({} images), {}\n",
            percent_exact(best.top1),
            best.images,
            best.checkpoint
        )
    });
    let stopped_early = result.stopped_early.as_ref().map(|StoppedEarly { epoch, epochs, best }| {
        format!(
            "stopped     early, after epoch {epoch} of {epochs}: no better validation top-1 since epoch {} ({})\n",
            best.epoch,
            percent_exact(best.top1)
        )
    });
    let validation = result.validation.as_ref().map(|Scores { loss, top1, top5 }| {
        format!(
            "validation  top-1 {}  top-5 {}  loss {loss:.4}\n",
            percent_exact(*top1),
            percent_exact(*top5)
        )
    });
    let networks: String = result
        .networks
        .iter()
        .map(|(name, scores)| format!("{name:<11} top-1 {}\n", percent_exact(scores.top1)))
        .collect();
    format!(
        "last epoch  top-1 {}  top-5 {}  loss {loss:.4}{}\n{}{}{}{networks}{}time        {}, {}, {images_per_second:.0} \
        images/s\n",
        percent_exact(*top1),
        percent_exact(*top5),
        if validation.is_some() { "  (test images)" } else { "" },
        stopped_early.unwrap_or_default(),
        validation.unwrap_or_default(),
        best.unwrap_or_default(),
        reference.unwrap_or_default(),
        clock(*seconds),
        counted(*epochs, "epoch"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const BAD: Scores = Scores { loss: 1e30, top1: 0.9994, top5: 1.0 };

    #[test]
    fn times_are_shares_of_all_time() {
        let parts =
            TimeParts { data: 1.0, forward: 4.0, backward: 8.0, saving: 0.01, ..TimeParts::default() };
        let expected = "waiting for images 5%, forward 20%, backward 40%, other 35%";
        assert_eq!(describe_times(&parts, 20.0).as_deref(), Some(expected));
        assert_eq!(describe_times(&TimeParts::default(), 0.0), None);
    }

    #[test]
    fn lines_fit_80_columns() {
        let report = StepReport {
            epoch: 200,
            epochs: 200,
            step: 78_000,
            steps: 78_000,
            loss: 1e30,
            train: BAD,
            images_per_second: 12_345.6,
            eta_seconds: 36_000.0,
        };
        let lines = step_lines(&report);
        assert_eq!(lines[0], "epoch 200/200  390/390  loss 1e30  top1 99.9%  12346 img/s  ETA 10:00:00");
        let fits =
            |lines: &[String]| lines.iter().zip([80, 60, 40]).all(|(line, columns)| line.len() <= columns);
        assert!(fits(&lines), "{lines:?}");
        let first = StepReport { epoch: 2, step: 391, ..report };
        assert!(step_lines(&first)[0].starts_with("epoch 2/200  1/390  "));
        let metrics = EpochMetrics {
            epoch: 200,
            step: 78_000,
            phase: "w2a2".into(),
            learning_rate: 0.1,
            train: BAD,
            losses: Default::default(),
            validation: None,
            test: Some(Scores { loss: 12.3456, ..BAD }),
            quantized_fraction: None,
            measures: Default::default(),
            networks: Default::default(),
            quantizers: Default::default(),
        };
        let timing = EpochTiming {
            epoch: 200,
            seconds: 36_000.0,
            images_per_second: 1.0,
            waiting_fraction: 0.0,
            parts: None,
        };
        let lines = epoch_lines(&metrics, 200, &timing);
        assert_eq!(
            lines[0],
            "epoch 200/200  train loss 1e30 top1 99.9%  test loss 12.35 top1 99.9%  10:00:00"
        );
        assert!(fits(&lines), "{lines:?}");
        // Of an epoch without an evaluation, the training is all there is.
        let untested = epoch_lines(&EpochMetrics { test: None, ..metrics }, 200, &timing);
        assert_eq!(untested[2], "epoch 200/200  train top1 99.9%");
    }
}
