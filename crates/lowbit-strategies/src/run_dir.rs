//! The directory of one run: what was asked for, what ran, what came out.
//!
//! ```text
//! recipe.toml     the resolved recipe
//! plan.json       the precision of every layer
//! run.json        versions, device, threads; written last, so that its presence marks a run directory
//! metrics.jsonl   one line an epoch
//! timing.jsonl    one line an epoch: seconds and images per second, which differ from machine to machine
//! checkpoints/    see the checkpoint module
//! log.txt         what was logged
//! result.json     the outcome, once the training is complete
//! lock            held while a process trains here
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lowbit_models::Plan;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoints, write_synced};
use crate::error::{IoContext, TrainError};
use crate::recipe::Recipe;
use crate::trainer::RunResult;

const METRICS: &str = "metrics.jsonl";
/// The outcome of a complete training.
pub(crate) const RESULT: &str = "result.json";
const RUN_INFO: &str = "run.json";

/// Where and by what a run was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Version of the run directory's format.
    pub schema: u32,
    /// Version of lowbit.
    pub lowbit: String,
    /// Version of burn.
    pub burn: String,
    /// The device as it was asked for, as in "flex".
    pub device: String,
    /// Threads of the CPU backends.
    pub n_threads: usize,
}

/// A run directory, open for training or reading.
pub struct RunDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: Option<File>,
}

impl RunDir {
    /// Makes the directory of a new run and writes what is known before it starts.
    pub(crate) fn create(
        path: &Path,
        recipe: &Recipe,
        plan: &Plan,
        info: &RunInfo,
    ) -> Result<Self, TrainError> {
        let is_empty = |path: &Path| fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        match fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).and_then(|()| fs::create_dir(path))
        {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !is_empty(path) => {
                return Err(match path.join(RUN_INFO).is_file() {
                    true => TrainError::RunExists { path: path.into() },
                    false => TrainError::NotEmpty { path: path.into() },
                });
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).context("create run directory", path);
            }
            _ => {}
        }
        let run = Self { path: path.into(), _lock: Some(lock(path)?) };
        let plan = serde_json::to_string_pretty(plan).expect("invariant: a plan is plain data");
        let info = serde_json::to_string_pretty(info).expect("invariant: run info is plain data");
        run.write("recipe.toml", recipe.to_toml().as_bytes())?;
        run.write("plan.json", plan.as_bytes())?;
        run.write(METRICS, b"")?;
        run.write("timing.jsonl", b"")?;
        let checkpoints = run.path.join("checkpoints");
        fs::create_dir(&checkpoints).context("create", &checkpoints)?;
        run.write(RUN_INFO, info.as_bytes())?;
        Ok(run)
    }

    /// Opens the directory of an earlier run for reading.
    ///
    /// # Errors
    /// [`TrainError::NotARun`] if it is none.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        match path.join(RUN_INFO).is_file() {
            true => Ok(Self { path: path.into(), _lock: None }),
            false => Err(TrainError::NotARun { path: path.into() }),
        }
    }

    /// Opens the directory of an earlier run to train on in it.
    pub(crate) fn open_for_training(path: &Path) -> Result<Self, TrainError> {
        let run = Self::open(path)?;
        let lock = lock(path)?;
        Ok(Self { _lock: Some(lock), ..run })
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
        let path = self.path.join("recipe.toml");
        let text = fs::read_to_string(&path).context("read", &path)?;
        Ok(Recipe::parse(&text, &path.display().to_string(), &[])?)
    }

    /// The plan of the layers.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read.
    pub fn plan(&self) -> Result<Plan, TrainError> {
        self.read_json("plan.json")
    }

    /// Where and by what the run was made.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read.
    pub fn info(&self) -> Result<RunInfo, TrainError> {
        self.read_json(RUN_INFO)
    }

    /// The outcome, if the training is complete.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read.
    pub fn result(&self) -> Result<RunResult, TrainError> {
        self.read_json(RESULT)
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, TrainError> {
        let path = self.path.join(name);
        let text = fs::read_to_string(&path).context("read", &path)?;
        serde_json::from_str(&text)
            .map_err(|error| TrainError::DamagedFile { path, message: error.to_string() })
    }

    pub(crate) fn checkpoints(&self) -> Checkpoints {
        Checkpoints::of_run(&self.path)
    }

    /// Writes a file whole: under a temporary name, then renamed.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrainError> {
        let (path, temporary) = (self.path.join(name), self.path.join(format!(".{name}.tmp")));
        write_synced(&temporary, bytes).and_then(|()| fs::rename(&temporary, &path)).context("write", path)
    }

    /// Appends a line to `metrics.jsonl` and returns its new length.
    pub(crate) fn append_metrics(&self, line: &str) -> Result<u64, TrainError> {
        self.append(METRICS, line)
    }

    /// Appends a line to `timing.jsonl`.
    pub(crate) fn append_timing(&self, line: &str) -> Result<(), TrainError> {
        self.append("timing.jsonl", line).map(drop)
    }

    fn append(&self, name: &str, line: &str) -> Result<u64, TrainError> {
        let path = self.path.join(name);
        let append = || {
            let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
            file.write_all(format!("{line}\n").as_bytes())?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        append().context("write", &path)
    }

    /// Drops the lines of `metrics.jsonl` after its first `bytes` bytes: they belong to steps that are done again.
    pub(crate) fn truncate_metrics(&self, bytes: u64) -> Result<(), TrainError> {
        let path = self.path.join(METRICS);
        let truncate = || {
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
            file.set_len(bytes)?;
            file.sync_all()
        };
        truncate().context("write", &path)
    }
}

fn lock(path: &Path) -> Result<File, TrainError> {
    let file_path = path.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&file_path);
    let file = file.context("write", &file_path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TrainError::RunLocked { path: path.into() }),
        Err(TryLockError::Error(source)) => Err(source).context("lock", file_path),
    }
}
