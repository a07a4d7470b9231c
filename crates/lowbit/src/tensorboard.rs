//! `lowbit tensorboard`, and `lowbit train --tensorboard`: what a run has recorded, as event files of TensorBoard.
//!
//! They are a projection of the run: `metrics.jsonl` decides which epochs there are. A run that goes on, or back, has them
//! written anew from there, in a new file that takes the place of the one before, so that nothing is in them twice. Only histograms of
//! weights whose checkpoints are gone are taken from the file before.

mod events;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use lowbit_train::{RunDir, TrainError, read_regular, shell_quoted};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;

use crate::cli::TensorboardArgs;
use crate::exit_code::{Code, UsageError};
use crate::history::{self, Epoch};
use crate::inspect::expect_no_checkpoint;
use crate::output::{self, counted};
use events::{Event, Value, events, record};

/// The directory of a run with its event files.
pub const FOLDER: &str = "tensorboard";

/// How the names of event files begin, by which TensorBoard knows them.
const START: &str = "events.out.tfevents.";

/// How the names of those of lowbit end: others are left alone.
const END: &str = ".lowbit";

/// Bytes that an event file, or the weights of a network, has at most.
const MAX_BYTES: u64 = 1 << 36;

#[derive(Serialize)]
struct Report<'a> {
    run_dir: &'a Path,
    out: &'a Path,
    file: &'a Path,
    epochs: usize,
    histograms: usize,
}

pub fn run(args: &TensorboardArgs) -> anyhow::Result<Code> {
    expect_no_checkpoint(&args.run, "tensorboard")?;
    let run = RunDir::open(&args.run)?;
    let out = match &args.out {
        None => run.path().join(FOLDER),
        Some(out) => {
            expect_no_run(out)?;
            // A directory of several runs has one for each, which TensorBoard shows by its name.
            out.join(std::path::absolute(run.path())?.file_name().unwrap_or_default())
        }
    };
    let board = Board::write(&run, &out)?;
    let Board { file, epochs, histograms, .. } = &board;
    if args.json.json {
        let (epochs, histograms) = (epochs.len(), histograms.len());
        output::print_json(&Report { run_dir: run.path(), out: &out, file, epochs, histograms })?;
        return Ok(Code::Success);
    }
    let weights = match histograms.keys().map(u64::to_string).collect::<Vec<_>>() {
        steps if steps.is_empty() => "no checkpoint has weights of the end of an epoch".into(),
        steps => format!("weights after the steps {}", steps.join(", ")),
    };
    output::print(&format!(
        "{}, {weights}\nfile  {}\nlook at it with: tensorboard --logdir {}",
        counted(epochs.len() as u64, "epoch"),
        file.display(),
        shell_quoted(args.out.as_deref().unwrap_or(&out))
    ))?;
    Ok(Code::Success)
}

/// Refuses a directory that is in a run: what is in there is the run's own.
fn expect_no_run(out: &Path) -> anyhow::Result<()> {
    let out = std::path::absolute(out)?;
    match out.ancestors().find(|folder| folder.join("run.json").is_file()) {
        None => Ok(()),
        Some(run) => {
            let message = format!("{} is in the run {}: choose another --out", out.display(), run.display());
            Err(UsageError(message).into())
        }
    }
}

/// The event file of a run, to which its epochs are added.
pub struct Board {
    run: RunDir,
    out: PathBuf,
    /// The file, which is there under its name.
    file: PathBuf,
    /// When the run was made, in seconds since 1970.
    started: f64,
    /// The moments that its epochs ended, by step.
    epochs: BTreeMap<u64, f64>,
    /// The weights after steps.
    histograms: BTreeMap<u64, Vec<Value>>,
}

impl Board {
    /// Writes the event file of a run in the directory `out`, where it takes the place of those that lowbit wrote before.
    pub fn write(run: &RunDir, out: &Path) -> Result<Self, TrainError> {
        let run = RunDir::open(run.path())?;
        let recipe = run.recipe()?.to_toml();
        let plan = run.plan()?.to_string();
        let epochs = history::read(&run)?;
        fs::create_dir_all(out).map_err(|source| failed("create directory", out, source))?;
        let before = own_files(out)?;
        let mut histograms = BTreeMap::new();
        for file in &before {
            histograms.extend(histograms_of(file));
        }
        histograms.extend(histograms_of_checkpoints(run.path()));
        histograms.retain(|step, _| *step == 0 || epochs.iter().any(|epoch| epoch.step == *step));
        let started = run.info()?.started.and_then(|time| humantime::parse_rfc3339(&time).ok());
        let started = started.map_or(0.0, seconds_since_1970);
        let mut bytes: Vec<u8> = Event::begin(started).iter().flat_map(record).collect();
        let texts = vec![Value::text("recipe", &recipe), Value::text("plan", &plan)];
        bytes.extend(record(&Event::of(started, 0, texts)));
        let mut board = Self {
            run,
            out: out.into(),
            file: new_file(out, &before),
            started,
            epochs: BTreeMap::new(),
            histograms: BTreeMap::new(),
        };
        if let Some(values) = histograms.remove(&0) {
            bytes.extend(board.weights(0, values));
        }
        for epoch in &epochs {
            bytes.extend(board.scalars(epoch));
            if let Some(values) = histograms.remove(&epoch.step) {
                bytes.extend(board.weights(epoch.step, values));
            }
        }
        let temporary = out.join(".tfevents.lowbit.tmp");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &board.file)
        };
        write().map_err(|source| failed("write", &board.file, source))?;
        for file in before {
            fs::remove_file(&file).map_err(|source| failed("remove", &file, source))?;
        }
        Ok(board)
    }

    /// Adds what was recorded since.
    pub fn catch_up(&mut self) -> Result<(), TrainError> {
        if !self.file.exists() {
            // `lowbit tensorboard` has made another in its place.
            *self = Self::write(&self.run, &self.out)?;
            return Ok(());
        }
        for epoch in history::read(&self.run)? {
            if !self.epochs.contains_key(&epoch.step) {
                let bytes = self.scalars(&epoch);
                self.append(&bytes)?;
            }
        }
        Ok(())
    }

    /// Adds the weights of a checkpoint, if it is one of an epoch's end.
    pub fn add_checkpoint(&mut self, path: &Path) -> Result<(), TrainError> {
        let is_of_epoch = |step: &u64| *step == 0 || self.epochs.contains_key(step);
        let step = step_of(path).filter(|step| is_of_epoch(step) && !self.histograms.contains_key(step));
        let Some(step) = step else { return Ok(()) };
        let values = weights_of(path);
        if values.is_empty() {
            return Ok(());
        }
        let bytes = self.weights(step, values);
        self.append(&bytes)
    }

    fn append(&self, bytes: &[u8]) -> Result<(), TrainError> {
        let append = || OpenOptions::new().append(true).open(&self.file)?.write_all(bytes);
        append().map_err(|source| failed("write", &self.file, source))
    }

    /// The record of the numbers of an epoch.
    fn scalars(&mut self, epoch: &Epoch) -> Vec<u8> {
        let wall_time = self.started + epoch.seconds.unwrap_or_default();
        self.epochs.insert(epoch.step, wall_time);
        let values = epoch.values.iter().map(|(tag, value)| Value::scalar(tag, *value));
        let number = Value::scalar("epoch", epoch.epoch as f64);
        record(&Event::of(wall_time, epoch.step, values.chain([number]).collect()))
    }

    /// The record of the weights after `step` steps.
    fn weights(&mut self, step: u64, values: Vec<Value>) -> Vec<u8> {
        let wall_time = self.epochs.get(&step).copied().unwrap_or(self.started);
        self.histograms.insert(step, values.clone());
        record(&Event::of(wall_time, step, values))
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> TrainError {
    TrainError::Io { action, path: path.into(), source }
}

fn seconds_since_1970(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |duration| duration.as_secs_f64())
}

/// The event files in `folder` that lowbit wrote, oldest first.
fn own_files(folder: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.map_err(|source| failed("read directory", folder, source))?;
    let mut files: Vec<PathBuf> =
        entries.into_iter().map(|entry| entry.path()).filter(|path| number_of(path).is_some()).collect();
    files.sort();
    Ok(files)
}

/// The number in the name of an event file that lowbit wrote.
fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix(START)?.strip_suffix(END)?.parse().ok()
}

/// A file that TensorBoard reads after those `before`: its name has the time, and comes after theirs.
fn new_file(folder: &Path, before: &[PathBuf]) -> PathBuf {
    let now = seconds_since_1970(SystemTime::now()) as u64;
    let last = before.iter().filter_map(|path| number_of(path)).max();
    let number = last.map_or(now, |last| now.max(last + 1));
    folder.join(format!("{START}{number:010}{END}"))
}

/// The histograms in an event file, by step.
fn histograms_of(file: &Path) -> BTreeMap<u64, Vec<Value>> {
    // What cannot be read has none: the rest of it is made anew.
    let events = read_regular(file, MAX_BYTES).map(|bytes| events(&bytes)).unwrap_or_default();
    let histograms = events.into_iter().filter_map(|event| {
        let values: Vec<Value> =
            event.summary?.value.into_iter().filter(|value| value.histo.is_some()).collect();
        (!values.is_empty()).then_some((event.step as u64, values))
    });
    histograms.collect()
}

/// The histograms of the weights of all checkpoints of a run, by step.
fn histograms_of_checkpoints(run: &Path) -> BTreeMap<u64, Vec<Value>> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let histograms = entries.filter_map(|entry| {
        let values = weights_of(&entry.path());
        step_of(&entry.path()).filter(|_| !values.is_empty()).map(|step| (step, values))
    });
    histograms.collect()
}

/// The step of a checkpoint.
fn step_of(checkpoint: &Path) -> Option<u64> {
    checkpoint.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// The histograms of the weights of the deployed network in a checkpoint; none if it is gone meanwhile.
fn weights_of(checkpoint: &Path) -> Vec<Value> {
    let Ok(bytes) = read_regular(&checkpoint.join("model.safetensors"), MAX_BYTES) else { return Vec::new() };
    let Ok(tensors) = SafeTensors::deserialize(&bytes) else { return Vec::new() };
    let mut tensors = tensors.tensors();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let weights = tensors.iter().filter_map(|(path, tensor)| {
        let path = path.strip_suffix(".weight").filter(|_| tensor.dtype() == Dtype::F32)?;
        let values = tensor.data().as_chunks().0.iter().copied().map(f32::from_le_bytes);
        Value::histogram(&format!("weights/{path}"), values)
    });
    weights.collect()
}
