//! `live.json` of a run: where its training stands, for who watches it. It decides nothing, and that it cannot be written matters to
//! nobody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use lowbit_train::{Origin, StepReport, read_regular};
use serde::{Deserialize, Serialize};

use crate::load::{Load, Meter};

/// The file in a run directory.
const FILE: &str = "live.json";

/// Time between two times that it is written.
const INTERVAL: Duration = Duration::from_secs(1);

/// Bytes that it has at most.
const MAX_BYTES: u64 = 1 << 16;

/// Where a training stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Live {
    pub status: Status,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The process that trains, and its machine.
    pub process: u32,
    #[serde(default)]
    pub host: Option<String>,
    pub phase: String,
    pub epoch: u64,
    pub epochs: u64,
    pub step: u64,
    pub steps: u64,
    /// Of the epoch so far; null if it is not finite.
    pub loss: Option<f64>,
    pub top1: Option<f64>,
    pub images_per_second: f64,
    pub eta_seconds: f64,
    /// What the process uses of its machine, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
}

/// How a training is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    #[default]
    Training,
    Complete,
    /// It was asked to stop, and can go on.
    Stopped,
    Failed,
}

/// The file, where the training that this process runs writes it.
#[derive(Default)]
pub struct LiveFile {
    /// Once the training has begun.
    run: Option<PathBuf>,
    live: Live,
    meter: Meter,
    written: Option<Instant>,
}

impl LiveFile {
    /// The training in `run` begins, or goes on, after `step` steps.
    pub fn begin(&mut self, run: &Path, origin: &Origin, epochs: u64, step: u64) {
        self.run = Some(run.into());
        let (process, host) = (std::process::id(), origin.host.clone());
        self.live = Live { process, host, epochs, step, ..Live::default() };
        self.write();
    }

    pub fn phase(&mut self, name: &str) {
        self.live.phase = name.into();
    }

    pub fn step(&mut self, report: &StepReport) {
        if self.written.is_some_and(|written| written.elapsed() < INTERVAL) {
            return;
        }
        let StepReport { epoch, epochs, step, steps, train, images_per_second, eta_seconds, .. } = *report;
        let live = &mut self.live;
        (live.epoch, live.epochs, live.step, live.steps) = (epoch, epochs, step, steps);
        (live.loss, live.top1) = (Some(train.loss).filter(|loss| loss.is_finite()), Some(train.top1));
        (live.images_per_second, live.eta_seconds) = (images_per_second, eta_seconds);
        self.write();
    }

    /// The training has ended.
    pub fn end(&mut self, status: Status, message: Option<String>) {
        (self.live.status, self.live.message) = (status, message);
        self.write();
    }

    fn write(&mut self) {
        let Some(run) = &self.run else { return };
        self.written = Some(Instant::now());
        self.live.load = self.meter.read();
        let text =
            serde_json::to_string(&self.live).expect("invariant: where a training stands is plain data");
        let temporary = run.join(format!(".{FILE}.tmp"));
        let write = || -> io::Result<()> {
            fs::write(&temporary, text)?;
            fs::rename(&temporary, run.join(FILE))
        };
        // Who watches sees less.
        let _ = write();
    }
}

/// Where the training in `run` stood when it wrote it last, and how long ago that is; `None` if it never did.
pub fn read(run: &Path) -> Option<(Live, Duration)> {
    let path = run.join(FILE);
    let live = serde_json::from_slice(&read_regular(&path, MAX_BYTES).ok()?).ok()?;
    let written = fs::metadata(&path).and_then(|metadata| metadata.modified()).ok()?;
    Some((live, SystemTime::now().duration_since(written).unwrap_or_default()))
}

/// Whether there is a process of this number on this machine, where that can be told.
pub fn is_alive(process: u32) -> Option<bool> {
    let processes = Path::new("/proc");
    processes.join("self").exists().then(|| processes.join(process.to_string()).exists())
}
