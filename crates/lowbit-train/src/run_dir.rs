//! The directory of one run: what was asked for, what ran, what came out. `layout` says what is in it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lowbit_models::Plan;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Checkpoints, sha256};
use crate::disk::{
    self, Probe, append_line, create_directories, is_unsupported_lock, may_pass, remove_all, sync_directory,
    sync_parent, with_retries, write_synced,
};
use crate::error::{IoContext, TrainError};
use crate::experiment::Experiment;
use crate::files::{
    MAX_RECORD, MAX_TEXT, is_other_file, open_regular, read_regular, read_regular_text, regular_length,
};
use crate::image_set::{RunData, SkippedImages};
use crate::layout::{
    CHECKPOINTS, LOCK, METRICS, PLAN, PROCESSES, RECIPE, RESULT, RUN_INFO, TIMING, WARNINGS,
};
use crate::metrics::{EpochMetrics, EpochTiming};
use crate::origin::{Origin, RunProcess, utc_now};
use crate::progress::{Progress, Record};
use crate::recipe::{Difference, Recipe, StrategyRecipe};
use crate::result::RunResult;
use crate::strategy::{Fingerprint, StrategyDifference};
use crate::text::{explain, one_line};
use crate::warning::{self, Warning};
use crate::weights::InitialWeights;

/// Version of the format of `run.json`.
const SCHEMA: u32 = 3;

// A message is recorded once in a run: it must not depend on how the run was named.
const NO_SYNC: &str = "the file system of this run cannot sync directories: after a power cut, the newest checkpoint may be \
                       missing";
const NO_LOCK: &str =
    "the file system of this run has no locks: make sure that no two processes train in this run";

/// Where a new run is made.
#[derive(Clone, Copy, Debug)]
pub enum NewRun<'a> {
    /// In this directory, which must hold nothing.
    At(&'a Path),
    /// In this directory, or, if there is something of its name, in the first of `NAME-2`, `NAME-3`, ... of which there is
    /// nothing: trainings that begin together get directories of their own.
    Numbered(&'a Path),
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for NewRun<'a> {
    fn from(path: &'a P) -> Self {
        Self::At(path.as_ref())
    }
}

impl<'a> NewRun<'a> {
    /// The directory as it was asked for.
    pub(crate) fn path(self) -> &'a Path {
        match self {
            Self::At(path) | Self::Numbered(path) => path,
        }
    }

    /// Refuses a directory that is used already, before anything takes time.
    pub(crate) fn expect_free(self) -> Result<(), TrainError> {
        match self {
            Self::At(path) if path.is_dir() => expect_unused(path, BeforeLock::Yes),
            Self::At(_) | Self::Numbered(_) => Ok(()),
        }
    }

    /// Makes the directory. Returns it and whether it is new.
    fn claim(self) -> Result<(PathBuf, bool), TrainError> {
        let path = self.path();
        if let Some(parent) = path.parent() {
            create_directories(parent).context("create directory", parent)?;
        }
        for candidate in std::iter::once(path.to_path_buf()).chain((2..).map(|n: u64| numbered(path, n))) {
            match fs::create_dir(&candidate) {
                Ok(()) => return Ok((candidate, true)),
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).context("create run directory", candidate);
                }
                Err(_) if matches!(self, Self::At(_)) => return Ok((candidate, false)),
                Err(_) => {}
            }
        }
        unreachable!("there are more numbers than directories")
    }
}

/// `path` with a number after its name.
fn numbered(path: &Path, n: u64) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(format!("-{n}"));
    text.into()
}

/// Where and by what a run was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Version of the run directory's format.
    pub schema: u32,
    /// The program and the machine that made it.
    pub origin: Origin,
    /// When it was made, in UTC; absent if an earlier lowbit made the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<String>,
    /// The device as it was asked for, as in "flex".
    pub device: String,
    /// Where data sets were looked for first, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// The images; absent if an earlier lowbit made the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<RunData>,
    /// Names of the classes, one for each label, if they have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// Images that were passed over, as they cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<SkippedImages>,
    /// The strategies, those of the recipe first, then the caller's own; absent if an earlier lowbit made the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategies: Option<Vec<Fingerprint>>,
    /// Strategies of the caller's own as an earlier lowbit wrote them, without a name by which they are known again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unnamed_strategies: Vec<String>,
    /// Parameters of its largest network; absent if an earlier lowbit made the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_parameters: Option<usize>,
    /// The files of weights that networks began with, if another program wrote them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub initial_weights: Vec<InitialWeights>,
}

/// What the version before wrote: the caller's own strategies alone, in another form.
#[derive(Deserialize)]
struct RunInfo2 {
    #[serde(default)]
    strategies: Vec<String>,
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

/// What earlier versions wrote: less of who made it.
#[derive(Deserialize)]
struct RunInfo1 {
    lowbit: String,
    burn: String,
    device: String,
    n_threads: usize,
    data_dir: Option<PathBuf>,
    data: Option<RunData>,
}

impl From<RunInfo1> for RunInfo {
    fn from(RunInfo1 { lowbit, burn, device, n_threads, data_dir, data }: RunInfo1) -> Self {
        let origin = Origin { lowbit, burn, n_threads, ..Origin::default() };
        Self {
            schema: 1,
            origin,
            started: None,
            device,
            data_dir,
            data,
            classes: None,
            skipped: None,
            strategies: None,
            unnamed_strategies: Vec::new(),
            n_parameters: None,
            initial_weights: Vec::new(),
        }
    }
}

impl RunInfo {
    /// Refuses files of weights that are not those that a run, which has no checkpoint yet, was to begin with.
    ///
    /// # Errors
    /// [`TrainError::OtherWeights`].
    pub(crate) fn expect_weights(run: &[InitialWeights], found: &[InitialWeights]) -> Result<(), TrainError> {
        for file in found {
            let then = run.iter().find(|run| run.network == file.network).map(|run| run.sha256.as_str());
            if then != Some(&file.sha256) {
                return Err(TrainError::OtherWeights {
                    path: file.path.clone(),
                    expected: then.unwrap_or("none").into(),
                    got: file.sha256.clone(),
                });
            }
        }
        Ok(())
    }

    /// Refuses a run of an earlier lowbit in whose `recipe` a setting means something else today.
    ///
    /// # Errors
    /// [`TrainError::EarlierMeaning`].
    pub(crate) fn expect_same_meaning(&self, recipe: &Recipe, path: &Path) -> Result<(), TrainError> {
        let StrategyRecipe { two_stage, progressive, joint, .. } = &recipe.strategy;
        let changed = [
            (recipe.train.ema_decay.is_some(), "train.ema_decay, which had no warm-up"),
            (
                *two_stage && progressive.is_some(),
                "strategy.two_stage with progressive, which had other phases",
            ),
            (
                joint.is_some() && recipe.phases().len() > 1,
                "strategy.joint.teacher, which began anew with each phase",
            ),
        ];
        match changed.into_iter().find(|(is_set, _)| self.schema == 1 && *is_set) {
            Some((_, setting)) => Err(TrainError::EarlierMeaning {
                path: path.into(),
                lowbit: self.origin.lowbit.clone(),
                setting,
            }),
            None => Ok(()),
        }
    }

    /// What is known of a run that is about to begin.
    pub(crate) fn new(origin: Origin, device: String, data: RunData, strategies: Vec<Fingerprint>) -> Self {
        Self {
            schema: SCHEMA,
            origin,
            started: Some(utc_now()),
            device,
            data_dir: None,
            data: Some(data),
            classes: None,
            skipped: None,
            strategies: Some(strategies),
            unnamed_strategies: Vec::new(),
            n_parameters: None,
            initial_weights: Vec::new(),
        }
    }

    /// Refuses to go on with other strategies than those `of_recipe` and the caller's `own`.
    ///
    /// Those of the recipe are compared by name alone: what they do follows from the recipe, whose digest is compared, while the
    /// form in which a lowbit writes down their settings is its own affair.
    pub(crate) fn expect_strategies(
        &self,
        of_recipe: &[Fingerprint],
        own: &[Fingerprint],
    ) -> Result<(), TrainError> {
        if let Some(strategy) = self.unnamed_strategies.first() {
            return Err(TrainError::UnnamedStrategy { strategy: strategy.clone() });
        }
        // An earlier lowbit did not write down those of the recipe.
        let difference = match &self.strategies {
            Some(run) => {
                let as_in_run = |(i, of): (usize, &Fingerprint)| {
                    run.get(i).filter(|run| run.name == of.name).unwrap_or(of).clone()
                };
                let of_recipe: Vec<Fingerprint> = of_recipe.iter().enumerate().map(as_in_run).collect();
                StrategyDifference::between(run, &[&of_recipe, own].concat())
            }
            None if self.schema == 1 => None,
            None => StrategyDifference::between(&[], own),
        };
        match difference {
            Some(difference) => Err(TrainError::OtherStrategies { difference: Box::new(difference) }),
            None => Ok(()),
        }
    }
}

/// The recipe of a run.
pub(crate) struct RunRecipe {
    pub(crate) recipe: Recipe,
    /// Digest of its resolved form as it was when the run was made, which a later lowbit may write in another way.
    pub(crate) sha256: String,
}

/// A run directory, open for training or reading.
pub struct RunDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: Option<File>,
    /// What is amiss with it, to be said when the training begins.
    warnings: Vec<String>,
}

impl RunDir {
    /// Makes the directory of a new run and writes what is known before it starts. If that fails, a directory that it made is
    /// removed again, but not its parents.
    pub(crate) fn create(
        new: NewRun<'_>,
        recipe: &Recipe,
        plan: &Plan,
        info: &RunInfo,
    ) -> Result<Self, TrainError> {
        let (path, is_new) = new.claim()?;
        if !is_new {
            expect_unused(&path, BeforeLock::Yes)?;
        }
        let mut run = Self::locked(path.clone()).inspect_err(|_| {
            if is_new {
                // It is empty, unless another process was faster.
                let _ = fs::remove_dir(&path);
            }
        })?;
        // Another process may have been here in the meantime.
        let unused = expect_unused(&run.path, BeforeLock::No);
        if let (true, Err(TrainError::Io { .. })) = (is_new, &unused) {
            let _ = fs::remove_file(run.path.join(LOCK));
            let _ = fs::remove_dir(&run.path);
        }
        unused?;
        run.fill(recipe, plan, info).inspect_err(|_| {
            if is_new {
                // The error says more than that this failed too.
                let _ = fs::remove_dir_all(&path);
            }
        })?;
        Ok(run)
    }

    fn fill(&mut self, recipe: &Recipe, plan: &Plan, info: &RunInfo) -> Result<(), TrainError> {
        self.probe()?;
        let plan = serde_json::to_string_pretty(plan).expect("invariant: a plan is plain data");
        let info = serde_json::to_string_pretty(info).expect("invariant: run info is plain data");
        self.write(RECIPE, recipe.to_toml().as_bytes())?;
        self.write(PLAN, plan.as_bytes())?;
        self.write(METRICS, b"")?;
        self.write(TIMING, b"")?;
        self.create_checkpoints()?;
        sync_parent(&self.path).context("write", &self.path)?;
        self.write(RUN_INFO, info.as_bytes())
    }

    /// Makes the directory of the checkpoints, if it is not there.
    fn create_checkpoints(&self) -> Result<(), TrainError> {
        let checkpoints = self.path.join(CHECKPOINTS);
        create_directories(&checkpoints).context("create", &checkpoints)
    }

    /// Tries whether the file system can do what checkpoints need.
    ///
    /// # Errors
    /// [`TrainError::FileSystem`] if it cannot, [`TrainError::ProbeLeft`] if what it was tried by stays.
    pub(crate) fn probe(&mut self) -> Result<(), TrainError> {
        let probe = match disk::probe(&self.path) {
            Err(source) if is_not_writable(&source) => {
                return Err(TrainError::NotWritable { path: self.path.clone(), source });
            }
            probe => probe.context("try the file system of", &self.path)?,
        };
        match probe {
            Probe::Complete => Ok(()),
            Probe::NoSync => {
                self.warn(NO_SYNC.into());
                Ok(())
            }
            Probe::Lacks { action, source } => {
                Err(TrainError::FileSystem { path: self.path.clone(), action, source })
            }
            Probe::NotRemoved { path, source } => Err(TrainError::ProbeLeft { path, source }),
        }
    }

    /// Keeps a warning for the beginning of the training.
    pub(crate) fn warn(&mut self, message: String) {
        self.warnings.push(message);
    }

    /// The warnings that were kept, once.
    pub(crate) fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Opens the directory of an earlier run for reading.
    ///
    /// # Errors
    /// [`TrainError::NotARun`] if it is none.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        expect_text(path)?;
        let info = path.join(RUN_INFO);
        match regular_length(&info) {
            Ok(Some(_)) => Ok(Self { path: path.into(), _lock: None, warnings: Vec::new() }),
            Err(error) if error.kind() != io::ErrorKind::NotADirectory => Err(error).context("read", &info),
            Ok(None) | Err(_) => Err(TrainError::NotARun { path: path.into(), exists: path.exists() }),
        }
    }

    /// Opens the directory of an earlier run to train on in it.
    pub(crate) fn open_for_training(path: &Path) -> Result<Self, TrainError> {
        Self::open(path)?;
        let run = Self::locked(path.into())?;
        run.expect_regular_files()?;
        Ok(run)
    }

    /// Refuses a run in which something else has the name of a file, before the training that would fail by it.
    fn expect_regular_files(&self) -> Result<(), TrainError> {
        let files = [RECIPE, PLAN, METRICS, TIMING, WARNINGS, PROCESSES, RESULT, RUN_INFO];
        files.iter().try_for_each(|name| {
            let path = self.path.join(name);
            regular_length(&path).context("read", &path).map(drop)
        })
    }

    fn locked(path: PathBuf) -> Result<Self, TrainError> {
        let (lock, is_locked) = lock(&path)?;
        let warnings = if is_locked { Vec::new() } else { vec![NO_LOCK.into()] };
        Ok(Self { path, _lock: Some(lock), warnings })
    }

    /// Path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved recipe.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read.
    pub fn recipe(&self) -> Result<Recipe, TrainError> {
        Ok(self.recipe_with_digest()?.recipe)
    }

    /// Refuses a recipe other than the run's.
    ///
    /// # Errors
    /// [`TrainError::OtherRecipe`] with the first difference.
    pub fn expect_recipe(&self, recipe: &Recipe) -> Result<(), TrainError> {
        let (run, given) = (self.recipe()?, with_absolute_paths(recipe)?);
        match run.differences(&given).into_iter().next() {
            None => Ok(()),
            Some(Difference { key, values: [expected, given] }) => {
                Err(TrainError::OtherRecipe { path: self.path.clone(), key, expected, given })
            }
        }
    }

    pub(crate) fn recipe_with_digest(&self) -> Result<RunRecipe, TrainError> {
        let path = self.path.join(RECIPE);
        let text = read_regular_text(&path, MAX_TEXT).context("read", &path)?;
        let recipe = Recipe::parse(&text, &path.display().to_string(), &[]);
        let recipe = recipe.map_err(|source| TrainError::DamagedRecipe { source })?;
        Ok(RunRecipe { recipe, sha256: sha256(text.as_bytes()) })
    }

    /// The plan of the layers.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read.
    pub fn plan(&self) -> Result<Plan, TrainError> {
        self.read_json(PLAN)
    }

    /// Where and by what the run was made.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read.
    pub fn info(&self) -> Result<RunInfo, TrainError> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        match self.read_json::<Version>(RUN_INFO)?.schema {
            1 => self.read_json::<RunInfo1>(RUN_INFO).map(RunInfo::from),
            2 => self.info_of_schema_2(),
            SCHEMA => self.read_json(RUN_INFO),
            other => Err(TrainError::DamagedFile {
                path: self.path.join(RUN_INFO),
                message: format!("it has schema {other}, this lowbit reads 1 to {SCHEMA}"),
            }),
        }
    }

    fn info_of_schema_2(&self) -> Result<RunInfo, TrainError> {
        let RunInfo2 { strategies, rest } = self.read_json(RUN_INFO)?;
        let info = serde_json::from_value(rest.into()).map_err(|error| TrainError::DamagedFile {
            path: self.path.join(RUN_INFO),
            message: one_line(&error),
        })?;
        Ok(RunInfo { unnamed_strategies: strategies, ..info })
    }

    /// The processes that trained here, oldest first. Lines that say nothing are left out: a process was killed while it
    /// wrote one, or an earlier lowbit kept no such file.
    ///
    /// # Errors
    /// [`TrainError`] if the file is there and cannot be read.
    pub fn processes(&self) -> Result<Vec<RunProcess>, TrainError> {
        let path = self.path.join(PROCESSES);
        let bytes = match read_regular(&path, MAX_RECORD) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            bytes => bytes.context("read", &path)?,
        };
        Ok(bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// Appends a line to `processes.jsonl`.
    pub(crate) fn append_process(&self, process: &RunProcess) -> Result<(), TrainError> {
        let path = self.path.join(PROCESSES);
        let line = serde_json::to_string(process).expect("invariant: a process is plain data");
        append_line(&path, &line).context("write", &path)
    }

    /// The outcome, if the training is complete.
    ///
    /// # Errors
    /// [`TrainError::DamagedFile`], with what to do, if something else has its name; another [`TrainError`] if it is not
    /// there or cannot be read.
    pub fn result(&self) -> Result<RunResult, TrainError> {
        let damaged = |path, problem| TrainError::DamagedFile {
            path,
            message: format!("{problem}; move it away to have it made again"),
        };
        self.read_json(RESULT).map_err(|error| match error {
            TrainError::Io { path, source, .. } if is_other_file(&source) => damaged(path, explain(&source)),
            TrainError::DamagedFile { path, message } => damaged(path, message),
            other => other,
        })
    }

    /// What the epochs did, oldest first. The run may be in training: a last line without its end is not written yet, and is left out.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read, or has another line that is none.
    pub fn metrics(&self) -> Result<Vec<EpochMetrics>, TrainError> {
        self.read_lines(METRICS)
    }

    /// How long the epochs took, oldest first, as [`metrics`](Self::metrics); nothing if that is not there.
    ///
    /// # Errors
    /// The same.
    pub fn timing(&self) -> Result<Vec<EpochTiming>, TrainError> {
        match self.read_lines(TIMING) {
            Err(TrainError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            timing => timing,
        }
    }

    fn read_lines<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Vec<T>, TrainError> {
        let path = self.path.join(name);
        let bytes = read_regular(&path, MAX_RECORD).context("read", &path)?;
        // Whoever writes the last line may not be done.
        let is_begun = |line: &[u8]| !line.ends_with(b"\n") && line.starts_with(b"{");
        let lines = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| !is_begun(line));
        let read = |(i, line): (usize, &[u8])| {
            serde_json::from_slice(line).map_err(|error| TrainError::DamagedFile {
                path: path.clone(),
                message: format!("line {}: {}", i + 1, one_line(&error)),
            })
        };
        lines.enumerate().map(read).collect()
    }

    /// Whether a process trains here now, as far as the file system has locks.
    ///
    /// # Errors
    /// [`TrainError`] if the lock cannot be looked at.
    pub fn is_training(&self) -> Result<bool, TrainError> {
        let path = self.path.join(LOCK);
        let file = match open_regular(&path, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.context("read", &path)?,
        };
        // Held until the file is closed, which is at once: who begins to train waits so long.
        let state = state_of(file.try_lock_shared()).context("lock", &path)?;
        Ok(state == LockState::Taken)
    }

    /// Refuses to begin a run anew that has recorded something, or whose directory of checkpoints, which it has from the
    /// beginning, is gone, when there is no checkpoint to go on from.
    pub(crate) fn expect_nothing_recorded(&self) -> Result<(), TrainError> {
        let folder = self.path.join(CHECKPOINTS);
        let is_there = folder.try_exists().context("read", &folder)?;
        for name in [RESULT, METRICS, TIMING] {
            let path = self.path.join(name);
            if regular_length(&path).context("read", &path)?.is_some_and(|length| length > 0) {
                return Err(TrainError::NoCheckpointLeft { path: folder, is_there, record: path });
            }
        }
        if !is_there {
            return Err(TrainError::NoCheckpointLeft {
                path: folder,
                is_there,
                record: self.path.join(RUN_INFO),
            });
        }
        match self.processes()?.iter().any(|process| process.step > 0) {
            true => {
                let record = self.path.join(PROCESSES);
                Err(TrainError::NoCheckpointLeft { path: folder, is_there, record })
            }
            false => Ok(()),
        }
    }

    /// Whether it has an outcome, and nothing after the first `metrics_bytes` of its metrics and the times of its `epochs`:
    /// there is nothing to make and nothing to set aside.
    pub(crate) fn is_left_complete(&self, metrics_bytes: u64, epochs: u64) -> Result<bool, TrainError> {
        let length = |name| {
            let path = self.path.join(name);
            regular_length(&path).context("read", path)
        };
        Ok(length(RESULT)?.is_some()
            && length(METRICS)? == Some(metrics_bytes)
            && length(TIMING)?.unwrap_or(0) == self.timing_bytes(epochs)?)
    }

    /// Bytes of `timing.jsonl` that tell of the first `epochs` epochs: those before the first line of another, or that is none.
    pub(crate) fn timing_bytes(&self, epochs: u64) -> Result<u64, TrainError> {
        let path = self.path.join(TIMING);
        let text = match read_regular(&path, MAX_RECORD) {
            // What is not there is noticed when it is written.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            text => text.context("read", &path)?,
        };
        let is_kept = |line: &&[u8]| {
            let timing = serde_json::from_slice::<EpochTiming>(line);
            line.ends_with(b"\n") && timing.is_ok_and(|timing| timing.epoch <= epochs)
        };
        let kept = text.split_inclusive(|&byte| byte == b'\n').take_while(is_kept);
        Ok(kept.map(|line| line.len() as u64).sum())
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, TrainError> {
        let path = self.path.join(name);
        let text = read_regular_text(&path, MAX_TEXT).context("read", &path)?;
        serde_json::from_str(&text)
            .map_err(|error| TrainError::DamagedFile { path, message: error.to_string() })
    }

    /// What was wrong without ending the training.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read.
    pub fn warnings(&self) -> Result<Vec<Warning>, TrainError> {
        let path = self.path.join(WARNINGS);
        warning::read(&path).context("read", path)
    }

    pub(crate) fn checkpoints(&self) -> Checkpoints {
        Checkpoints::of_run(&self.path, max_bytes)
    }

    /// Writes a file whole: under a temporary name, then renamed.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let (path, temporary) = (self.path.join(name), self.path.join(format!(".{name}.tmp")));
        let write = || {
            // Whatever is there was left by a process that was killed.
            remove_all(&temporary)?;
            write_synced(&temporary, bytes)?;
            fs::rename(&temporary, &path)?;
            sync_directory(&self.path)
        };
        with_retries(write, may_pass, |_| ()).context("write", &path)
    }

    /// Appends a line to `metrics.jsonl`, which has `bytes` bytes, and returns its new length.
    pub(crate) fn append_metrics(&self, line: &str, bytes: u64) -> Result<u64, TrainError> {
        let path = self.path.join(METRICS);
        let got = fs::metadata(&path).context("read", &path)?.len();
        if got != bytes {
            let message = format!("it has {got} bytes, but had {bytes} after the last epoch");
            return Err(TrainError::DamagedFile { path, message });
        }
        self.append(METRICS, line)
    }

    /// Appends a line to `timing.jsonl`.
    pub(crate) fn append_timing(&self, line: &str) -> Result<(), TrainError> {
        self.append(TIMING, line).map(drop)
    }

    fn append(&self, name: &str, line: &str) -> Result<u64, TrainError> {
        let path = self.path.join(name);
        let append = || {
            // The metrics are there since the run was made: if not, the directory was moved, and no second one is begun.
            let mut file = open_regular(&path, OpenOptions::new().append(true).create(name != METRICS))?;
            let before = file.metadata()?.len();
            if before == 0 {
                sync_directory(&self.path)?;
            }
            let written = file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_all());
            if let Err(error) = written {
                // Half a line is none.
                file.set_len(before)?;
                return Err(error);
            }
            // Not as long as it is now: another may have cut it meanwhile.
            Ok(before + line.len() as u64 + 1)
        };
        with_retries(append, may_pass, |_| ()).context("write", &path)
    }

    /// Digests of the files that are only appended to, of which `metrics.jsonl` has `metrics_bytes` bytes: with fewer, a
    /// checkpoint would be one that nothing can go on from. Only what was appended since `starts` is read.
    pub(crate) fn records(
        &self,
        starts: &mut Starts,
        metrics_bytes: u64,
    ) -> Result<BTreeMap<String, Record>, TrainError> {
        let mut records = BTreeMap::new();
        for name in APPENDED {
            let path = self.path.join(name);
            match starts.record(name, &path, (name == METRICS).then_some(metrics_bytes)) {
                Ok(Some(record)) if name == METRICS && record.bytes < metrics_bytes => {
                    let got = record.bytes;
                    let message = format!("it has {got} bytes, but had {metrics_bytes} after the last epoch");
                    return Err(TrainError::DamagedFile { path, message });
                }
                Ok(Some(record)) => drop(records.insert(name.into(), record)),
                // It may not be begun yet.
                Ok(None) if name != METRICS => {}
                Ok(None) => return Err(io::Error::from(io::ErrorKind::NotFound)).context("read", path),
                // They decide nothing, and what cannot be read cannot be appended to either, which is warned of.
                Err(_) if [WARNINGS, PROCESSES].contains(&name) => {}
                Err(error) => return Err(error).context("read", path),
            }
        }
        Ok(records)
    }

    /// Refuses a run whose metrics or times do not begin with what they held when its checkpoint was made, at `progress`.
    /// Other files, and times that are missing or were cut short, decide nothing: what is wrong with them is returned.
    pub(crate) fn expect_records(&self, progress: &Progress) -> Result<Vec<String>, TrainError> {
        let mut warnings = Vec::new();
        for name in APPENDED {
            let record = progress.records.get(name);
            let bytes = match record {
                // The checkpoint of an earlier lowbit knows the length of the metrics alone.
                None if name != METRICS => continue,
                _ if name == METRICS => progress.metrics_bytes,
                record => record.map_or(0, |record| record.bytes),
            };
            let path = self.path.join(name);
            let mut start = Start::default();
            match start.extend(&path, bytes) {
                Err(error) if name != METRICS && error.kind() == io::ErrorKind::NotFound => {
                    warnings.push(format!("{name} is missing: a new one is begun with what is trained next"));
                    continue;
                }
                read => read.context("read", &path)?,
            }
            let is_short = start.bytes < bytes;
            let message = if is_short {
                let got = start.bytes;
                format!("it has {got} bytes, but the checkpoint was made when it had {bytes}")
            } else if record.is_some_and(|record| *record != start.record()) {
                format!("its first {bytes} bytes are not those that it had when the checkpoint was made")
            } else if name == METRICS && !start.ends_a_line {
                format!("its first {bytes} bytes, as many as when the checkpoint was made, end in a line")
            } else {
                continue;
            };
            let decides = name == METRICS || name == TIMING && !is_short;
            if decides {
                return Err(TrainError::DamagedFile { path, message });
            }
            warnings.push(format!("{name} was changed: {message}; it is kept as it is"));
        }
        Ok(warnings)
    }
}

/// The files of a run that are only appended to.
const APPENDED: [&str; 4] = [METRICS, TIMING, WARNINGS, PROCESSES];

/// What the files held that are only appended to, by name, when the last checkpoint was made.
#[derive(Default)]
pub(crate) struct Starts(BTreeMap<&'static str, Start>);

impl Starts {
    /// The digest of the file at `path`, or of its first `bytes` bytes; `None` if it is not there.
    fn record(&mut self, name: &'static str, path: &Path, bytes: Option<u64>) -> io::Result<Option<Record>> {
        let Some(length) = regular_length(path)? else {
            self.0.remove(name);
            return Ok(None);
        };
        let bytes = bytes.map_or(length, |bytes| bytes.min(length));
        let start = self.0.entry(name).or_default();
        if start.bytes > bytes {
            // It was cut, or begun anew.
            *start = Start::default();
        }
        start.extend(path, bytes)?;
        Ok(Some(start.record()))
    }
}

/// The start of a file, as far as it was read.
struct Start {
    bytes: u64,
    digest: Sha256,
    /// Whether it ends where a line does.
    ends_a_line: bool,
}

impl Default for Start {
    fn default() -> Self {
        Self { bytes: 0, digest: Sha256::new(), ends_a_line: true }
    }
}

impl Start {
    /// Reads on in the file at `path`, up to its first `bytes` bytes or its end, but no more than such a file can have.
    fn extend(&mut self, path: &Path, bytes: u64) -> io::Result<()> {
        let mut file = open_regular(path, OpenOptions::new().read(true))?;
        file.seek(SeekFrom::Start(self.bytes))?;
        let mut file = file.take(bytes.min(MAX_RECORD).saturating_sub(self.bytes));
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.digest.update(&buffer[..n]);
                    self.bytes += n as u64;
                    self.ends_a_line = buffer[n - 1] == b'\n';
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn record(&self) -> Record {
        Record { bytes: self.bytes, sha256: format!("{:x}", self.digest.clone().finalize()) }
    }
}

/// Bytes that a file of tensors can have at most. The plan of the networks needs no memory, however large they are.
fn max_bytes(run: &Path) -> Result<u64, String> {
    let unknown = |error: TrainError| format!("the networks of its run are not known: {error}");
    let run = RunDir::open(run).map_err(unknown)?;
    let recipe = run.recipe().map_err(unknown)?;
    let experiment = Experiment::of_recipe(&recipe).map_err(unknown)?;
    let n_of_recipe = experiment.n_parameters().map_err(unknown)?.unwrap_or_default();
    let n_strategies = experiment.strategies.len();
    let n_of_run = run.info().map_or(0, |info| n_of_own_strategies(&info, n_strategies));
    // Two moments of each parameter in an optimizer's file, and as many for adapters, statistics and quantizers.
    Ok((n_of_recipe.max(n_of_run) as u64).saturating_mul(4 * 4).saturating_add(64 << 20))
}

/// Parameters that a network of a caller's own strategies can have at most: about those of the largest vision models.
const MAX_OWN_PARAMETERS: usize = 1 << 32;

/// Parameters of a run's largest network, where strategies of a caller's own, which are not known here, may have added it; else
/// 0. No checksum covers what `run.json` says, so that it has a bound.
fn n_of_own_strategies(info: &RunInfo, n_of_recipe: usize) -> usize {
    let has_own = info.strategies.as_ref().is_some_and(|strategies| strategies.len() > n_of_recipe);
    if has_own { info.n_parameters.unwrap_or_default().min(MAX_OWN_PARAMETERS) } else { 0 }
}

#[derive(Clone, Copy, PartialEq)]
enum BeforeLock {
    Yes,
    No,
}

/// Refuses an existing directory for a new run unless it is empty or holds only what a process wrote that was killed
/// before the run began.
fn expect_unused(path: &Path, before_lock: BeforeLock) -> Result<(), TrainError> {
    let names = names(path)?;
    let is_ours = |name: &String| {
        let name = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")).unwrap_or(name);
        [RECIPE, PLAN, METRICS, TIMING, RUN_INFO, disk::PROBE, "probe"].contains(&name)
    };
    if names.iter().any(|name| name == RUN_INFO) {
        return Err(TrainError::RunExists { path: path.into() });
    }
    let has_lock = names.iter().any(|name| name == LOCK);
    let mut others = names.iter().filter(|name| *name != LOCK && !is_ours(name));
    let only_ours = match (others.next(), others.next()) {
        (None, _) => true,
        (Some(name), None) if name == CHECKPOINTS => {
            crate::run_dir::names(&path.join(CHECKPOINTS))?.is_empty()
        }
        _ => false,
    };
    match only_ours && (names.is_empty() || has_lock || before_lock == BeforeLock::No) {
        true => Ok(()),
        false => Err(TrainError::NotEmpty { path: path.into() }),
    }
}

/// `recipe` with absolute paths of the runs that its networks begin with, so that it means the same wherever it is read.
///
/// # Errors
/// [`TrainError`] if there is no current directory.
pub fn with_absolute_paths(recipe: &Recipe) -> Result<Recipe, TrainError> {
    let mut recipe = recipe.clone();
    for path in recipe.init_paths_mut() {
        let found = absolute(path)?;
        // A path that is no text stays as it is: the recipe could not hold it.
        *path = if found.to_str().is_some() { found } else { path.clone() };
    }
    Ok(recipe)
}

pub(crate) fn absolute(path: &PathBuf) -> Result<PathBuf, TrainError> {
    std::path::absolute(path).context("find", path)
}

/// Refuses a path that no file of a run directory can hold.
pub(crate) fn expect_text(path: &Path) -> Result<(), TrainError> {
    match path.to_str() {
        Some(_) => Ok(()),
        None => Err(TrainError::NotText { path: path.into() }),
    }
}

/// Names of what is in a directory.
fn names(path: &Path) -> Result<Vec<String>, TrainError> {
    let entries = fs::read_dir(path).context("open directory", path)?;
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().context("read directory", path)
}

/// Locks the run in `path` for this process. Returns the file that holds the lock, and whether there is one at all.
fn lock(path: &Path) -> Result<(File, bool), TrainError> {
    let file_path = path.join(LOCK);
    let file =
        open_regular(&file_path, OpenOptions::new().read(true).write(true).create(true).truncate(false));
    let mut file = match file {
        Err(source) if is_not_writable(&source) => {
            return Err(TrainError::NotWritable { path: file_path, source });
        }
        file => file.context("write", &file_path)?,
    };
    match state_of(try_lock(&file)) {
        Ok(LockState::Held) => {
            // It only helps to find the process: that it cannot be written is noticed elsewhere.
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            Ok((file, true))
        }
        Ok(LockState::Absent) => Ok((file, false)),
        Ok(LockState::Taken) => {
            let mut text = String::new();
            let _ = file.take(32).read_to_string(&mut text);
            Err(TrainError::RunLocked { path: path.into(), process: text.trim().parse().ok() })
        }
        Err(source) => Err(source).context("lock", file_path),
    }
}

/// Locks a file, unless another process has it for longer than it takes to look whether one trains.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    const N_TRIES: usize = 5;
    const INTERVAL: Duration = Duration::from_millis(20);
    for _ in 1..N_TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(INTERVAL),
            locked => return locked,
        }
    }
    file.try_lock()
}

fn is_not_writable(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// Who has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LockState {
    /// This process.
    Held,
    /// Another.
    Taken,
    /// Nobody: the file system has no locks.
    Absent,
}

/// What came of trying to get a lock.
fn state_of(tried: Result<(), TryLockError>) -> io::Result<LockState> {
    match tried {
        Ok(()) => Ok(LockState::Held),
        Err(TryLockError::WouldBlock) => Ok(LockState::Taken),
        Err(TryLockError::Error(error)) if is_unsupported_lock(&error) => Ok(LockState::Absent),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_strategies_make_files_larger_and_not_without_bound() {
        let n_parameters = |n: usize, strategies: &str| {
            let info = RunInfo {
                schema: 3,
                origin: Origin::default(),
                started: None,
                device: "flex".into(),
                data_dir: None,
                data: None,
                classes: None,
                skipped: None,
                strategies: serde_json::from_str(strategies).expect("a list, or none"),
                unnamed_strategies: Vec::new(),
                n_parameters: Some(n),
                initial_weights: Vec::new(),
            };
            n_of_own_strategies(&info, 1)
        };
        let own = r#"[{"name":"joint","settings":{}},{"name":"own","settings":{}}]"#;
        assert_eq!(n_parameters(7, own), 7);
        assert_eq!(n_parameters(usize::MAX, own), MAX_OWN_PARAMETERS);
        assert_eq!(n_parameters(7, r#"[{"name":"joint","settings":{}}]"#), 0);
        assert_eq!(n_parameters(7, "null"), 0);
    }

    /// What a checkpoint costs does not grow with the run: only what was appended is read.
    #[test]
    fn what_was_read_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(TIMING);
        let mut starts = Starts::default();
        let mut record = || starts.record(TIMING, &path, None).unwrap();
        assert_eq!(record(), None);
        fs::write(&path, "one\n").unwrap();
        let expect = |text: &str| Some(Record { bytes: text.len() as u64, sha256: sha256(text.as_bytes()) });
        assert_eq!(record(), expect("one\n"));
        // The first line is another now, and the digest still has the old one: those bytes were not read again.
        fs::write(&path, "two\nthree\n").unwrap();
        assert_eq!(record(), expect("one\nthree\n"));
        assert_eq!(record(), expect("one\nthree\n"));
        fs::write(&path, "cut\n").unwrap();
        assert_eq!(record(), expect("cut\n"));
    }

    #[test]
    fn a_record_has_no_more_than_was_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(METRICS);
        fs::write(&path, "one\ntwo\n").unwrap();
        let mut starts = Starts::default();
        let mut sha256_of = |bytes| starts.record(METRICS, &path, Some(bytes)).unwrap().unwrap().sha256;
        assert_eq!(sha256_of(4), sha256(b"one\n"));
        assert_eq!(sha256_of(8), sha256(b"one\ntwo\n"));
        assert_eq!(sha256_of(9), sha256(b"one\ntwo\n"));
    }

    #[test]
    fn file_system_without_locks_is_no_obstacle() {
        let tried = |error: io::Error| state_of(Err(TryLockError::Error(error)));
        assert_eq!(tried(io::ErrorKind::Unsupported.into()).unwrap(), LockState::Absent);
        if cfg!(target_os = "linux") {
            assert_eq!(tried(io::Error::from_raw_os_error(37)).unwrap(), LockState::Absent);
        }
        assert!(tried(io::ErrorKind::PermissionDenied.into()).is_err());
        assert_eq!(state_of(Ok(())).unwrap(), LockState::Held);
        assert_eq!(state_of(Err(TryLockError::WouldBlock)).unwrap(), LockState::Taken);
    }
}
