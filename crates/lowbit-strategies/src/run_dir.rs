//! The directory of one run: what was asked for, what ran, what came out.
//!
//! ```text
//! recipe.toml     the resolved recipe
//! plan.json       the precision of every layer
//! run.json        who made it, device, data; written last, so that its presence marks a run directory
//! processes.jsonl one line for each process that trained here: who, from which step; only ever appended to
//! metrics.jsonl   one line an epoch
//! timing.jsonl    one line an epoch: seconds and images per second, which differ from machine to machine
//! warnings.jsonl  one line a warning; absent if there was none
//! checkpoints/    see the checkpoint module
//! log.txt         what was logged
//! result.json     the outcome, once the training is complete
//! lock            held while a process trains here
//! ```

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use lowbit_data::{Dataset, Locations};
use lowbit_models::Plan;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoints, sha256, write_synced};
use crate::error::{IoContext, TrainError};
use crate::origin::{Origin, RunProcess, utc_now};
use crate::recipe::Recipe;
use crate::trainer::{EpochTiming, RunResult};
use crate::warning::{self, WARNINGS, Warning};

const RECIPE: &str = "recipe.toml";
const PLAN: &str = "plan.json";
const METRICS: &str = "metrics.jsonl";
const TIMING: &str = "timing.jsonl";
const CHECKPOINTS: &str = "checkpoints";
const LOCK: &str = "lock";
/// The outcome of a complete training.
pub(crate) const RESULT: &str = "result.json";
const RUN_INFO: &str = "run.json";
const PROCESSES: &str = "processes.jsonl";

/// Version of the format of `run.json`.
const SCHEMA: u32 = 2;

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
        Self { schema: 1, origin, started: None, device, data_dir, data }
    }
}

/// The images of a run, as far as the recipe takes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunData {
    /// Those that it is trained on.
    pub train: ImageSet,
    /// Those that it is tested on.
    pub test: ImageSet,
}

/// By what a set of images is told from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSet {
    /// Images.
    pub n_images: usize,
    /// CRC-32 of labels and pixels, in hexadecimal.
    pub crc32: String,
}

impl ImageSet {
    pub(crate) fn of(dataset: &Dataset) -> Self {
        Self { n_images: dataset.len(), crc32: format!("{:08x}", dataset.crc32()) }
    }
}

impl fmt::Display for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with crc32 {}", self.n_images, self.crc32)
    }
}

impl RunInfo {
    /// What is known of a run that is about to begin.
    pub(crate) fn new(origin: Origin, device: String, data_dir: Option<PathBuf>, data: RunData) -> Self {
        Self { schema: SCHEMA, origin, started: Some(utc_now()), device, data_dir, data: Some(data) }
    }

    /// `locations`, and after the directory given there that of the run.
    pub(crate) fn locations(&self, locations: &Locations) -> Locations {
        Locations { run_data_dir: self.data_dir.clone(), ..locations.clone() }
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
}

impl RunDir {
    /// Makes the directory of a new run and writes what is known before it starts.
    pub(crate) fn create(
        path: &Path,
        recipe: &Recipe,
        plan: &Plan,
        info: &RunInfo,
    ) -> Result<Self, TrainError> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            fs::create_dir_all(parent).context("create directory", parent)?;
        }
        let is_new = match fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).context("create run directory", path),
        };
        if !is_new {
            expect_unused(path, BeforeLock::Yes)?;
        }
        let run = Self { path: path.into(), _lock: Some(lock(path)?) };
        // Another process may have been here in the meantime.
        expect_unused(path, BeforeLock::No)?;
        let plan = serde_json::to_string_pretty(plan).expect("invariant: a plan is plain data");
        let info = serde_json::to_string_pretty(info).expect("invariant: run info is plain data");
        run.write(RECIPE, recipe.to_toml().as_bytes())?;
        run.write(PLAN, plan.as_bytes())?;
        run.write(METRICS, b"")?;
        run.write(TIMING, b"")?;
        let checkpoints = run.path.join(CHECKPOINTS);
        match fs::create_dir(&checkpoints) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).context("create", &checkpoints);
            }
            _ => {}
        }
        run.write(RUN_INFO, info.as_bytes())?;
        Ok(run)
    }

    /// Opens the directory of an earlier run for reading.
    ///
    /// # Errors
    /// [`TrainError::NotARun`] if it is none.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        expect_text(path)?;
        let info = path.join(RUN_INFO);
        match fs::metadata(&info) {
            Ok(metadata) if metadata.is_file() => Ok(Self { path: path.into(), _lock: None }),
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(error).context("read", &info)
            }
            _ => Err(TrainError::NotARun { path: path.into(), exists: path.exists() }),
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
        Ok(self.recipe_with_digest()?.recipe)
    }

    pub(crate) fn recipe_with_digest(&self) -> Result<RunRecipe, TrainError> {
        let path = self.path.join(RECIPE);
        let text = fs::read_to_string(&path).context("read", &path)?;
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
            SCHEMA => self.read_json(RUN_INFO),
            other => Err(TrainError::DamagedFile {
                path: self.path.join(RUN_INFO),
                message: format!("it has schema {other}, this lowbit reads 1 to {SCHEMA}"),
            }),
        }
    }

    /// The processes that trained here, oldest first. Lines that say nothing are left out: a process was killed while it
    /// wrote one, or an earlier lowbit kept no such file.
    ///
    /// # Errors
    /// [`TrainError`] if the file is there and cannot be read.
    pub fn processes(&self) -> Result<Vec<RunProcess>, TrainError> {
        let path = self.path.join(PROCESSES);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            bytes => bytes.context("read", &path)?,
        };
        Ok(bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// Appends a line to `processes.jsonl`.
    pub(crate) fn append_process(&self, process: &RunProcess) -> Result<(), TrainError> {
        let path = self.path.join(PROCESSES);
        let line = serde_json::to_string(process).expect("invariant: a process is plain data");
        let append = || {
            // Runs of an earlier lowbit have none.
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
            let mut earlier = Vec::new();
            file.read_to_end(&mut earlier)?;
            // A line that was cut short stays, for itself.
            let line_break = if matches!(earlier.last(), None | Some(b'\n')) { "" } else { "\n" };
            file.write_all(format!("{line_break}{line}\n").as_bytes())?;
            file.sync_all()
        };
        append().context("write", &path)
    }

    /// The outcome, if the training is complete.
    ///
    /// # Errors
    /// [`TrainError`] if it cannot be read.
    pub fn result(&self) -> Result<RunResult, TrainError> {
        self.read_json(RESULT)
    }

    /// Removes the outcome of a training that goes on from an earlier step.
    pub(crate) fn remove_result(&self) -> Result<(), TrainError> {
        let path = self.path.join(RESULT);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("remove", path),
            _ => Ok(()),
        }
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, TrainError> {
        let path = self.path.join(name);
        let text = fs::read_to_string(&path).context("read", &path)?;
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
        self.append(TIMING, line).map(drop)
    }

    fn append(&self, name: &str, line: &str) -> Result<u64, TrainError> {
        let path = self.path.join(name);
        let append = || {
            // It is there since the run was made: if not, the directory was moved, and a second one is not to be begun.
            let mut file = OpenOptions::new().append(true).open(&path)?;
            file.write_all(format!("{line}\n").as_bytes())?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        append().context("write", &path)
    }

    /// Refuses a `metrics.jsonl` of fewer than `bytes` bytes.
    pub(crate) fn expect_metrics(&self, bytes: u64) -> Result<(), TrainError> {
        let path = self.path.join(METRICS);
        let length = fs::metadata(&path).context("read", &path)?.len();
        if length < bytes {
            let message = format!("it has {length} bytes, but the checkpoint was made when it had {bytes}");
            return Err(TrainError::DamagedFile { path, message });
        }
        Ok(())
    }

    /// Drops the lines of `metrics.jsonl` after its first `bytes` bytes: they belong to steps that are done again.
    pub(crate) fn truncate_metrics(&self, bytes: u64) -> Result<(), TrainError> {
        let path = self.path.join(METRICS);
        let truncate = || {
            let file = OpenOptions::new().write(true).open(&path)?;
            file.set_len(bytes)?;
            file.sync_all()
        };
        truncate().context("write", &path)
    }

    /// Drops the lines of `timing.jsonl` after the first `epochs` epochs: these are done again.
    pub(crate) fn truncate_timing(&self, epochs: u64) -> Result<(), TrainError> {
        let path = self.path.join(TIMING);
        let text = match fs::read_to_string(&path) {
            // What is not there is noticed when it is written.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            text => text.context("read", &path)?,
        };
        let is_kept = |line: &&str| {
            // Not those after a line that was cut short either.
            let timing = serde_json::from_str::<EpochTiming>(line);
            line.ends_with('\n') && timing.is_ok_and(|timing| timing.epoch <= epochs)
        };
        let kept: String = text.split_inclusive('\n').take_while(is_kept).collect();
        match kept.len() < text.len() {
            true => self.write(TIMING, kept.as_bytes()),
            false => Ok(()),
        }
    }
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
        [RECIPE, PLAN, METRICS, TIMING, RUN_INFO].contains(&name)
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

fn lock(path: &Path) -> Result<File, TrainError> {
    let file_path = path.join(LOCK);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&file_path);
    let file = file.context("write", &file_path)?;
    match is_free(file.try_lock()) {
        Ok(true) => Ok(file),
        Ok(false) => Err(TrainError::RunLocked { path: path.into() }),
        Err(source) => Err(source).context("lock", file_path),
    }
}

/// Whether nobody else holds the lock that was tried.
fn is_free(tried: Result<(), TryLockError>) -> io::Result<bool> {
    match tried {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        // A file system without locks: go on without.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_without_locks_is_no_obstacle() {
        let tried = |kind: io::ErrorKind| is_free(Err(TryLockError::Error(kind.into())));
        assert!(tried(io::ErrorKind::Unsupported).unwrap());
        assert!(tried(io::ErrorKind::PermissionDenied).is_err());
        assert!(is_free(Ok(())).unwrap());
        assert!(!is_free(Err(TryLockError::WouldBlock)).unwrap());
    }
}
