//! A run as it is watched: what its directory says now.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use lowbit_models::Plan;
use lowbit_train::{RunDir, RunResult, TimeParts, TrainError, open_regular, shell_quoted};

use crate::history::{self, Epoch};
use crate::live::{self, Live, Status};
use crate::load::Load;
use crate::memory::approximate;
use crate::output::{clock, counted, percent, percent_exact};

/// A training on another machine that has written nothing for so long is taken for one that has ended.
const SILENT: Duration = Duration::from_secs(600);

/// A run as it stands.
pub struct Watched {
    /// The name of its directory.
    pub name: String,
    /// The path that it was asked for by.
    pub path: String,
    pub recipe: String,
    /// What it trains on, as for `--device`.
    pub device: String,
    /// Names and epochs of its phases.
    pub phases: Vec<(String, u64)>,
    pub plan: Plan,
    /// Steps of an epoch, if they are known.
    pub steps_per_epoch: Option<u64>,
    pub epochs: Vec<Epoch>,
    pub live: Option<Live>,
    pub state: State,
}

/// How the training of a run is.
#[derive(Clone, Debug)]
pub enum State {
    Training,
    /// It is not known to have ended, but has written nothing for so long.
    Silent(Duration),
    /// It ended before its time, and why, if that is known.
    Stopped(Option<String>),
    Finished(Box<RunResult>),
}

impl Watched {
    /// The run in `run` as it is now.
    pub fn read(run: &RunDir) -> Result<Self, TrainError> {
        let (recipe, info) = (run.recipe()?, run.info()?);
        let path = run.path();
        let name = std::path::absolute(path).ok();
        let name = name.as_deref().and_then(Path::file_name).unwrap_or(path.as_os_str());
        let live = live::read(path);
        let epochs = history::read(run)?;
        let this_host = crate::origin::here().host;
        let state = match (run.result(), &live) {
            (Ok(result), _) => State::Finished(Box::new(result)),
            (_, Some((live, _))) if live.status != Status::Training => State::Stopped(live.message.clone()),
            (_, Some((live, age))) => {
                let is_alive = if live.host == this_host { live::is_alive(live.process) } else { None };
                match is_alive {
                    Some(true) => State::Training,
                    Some(false) => State::Stopped(None),
                    None if *age < SILENT => State::Training,
                    None => State::Silent(*age),
                }
            }
            // A training by a program of one's own, or by an earlier lowbit.
            _ => {
                let last = run.processes()?.pop().map(|process| process.origin.host);
                let is_here = last.is_none_or(|host| host == this_host);
                let is_alive = locked_by(path).filter(|_| is_here).and_then(live::is_alive);
                if is_alive == Some(true) { State::Training } else { State::Stopped(None) }
            }
        };
        let steps_per_epoch = epochs.first().map(|first| first.step / first.epoch.max(1)).or_else(|| {
            info.data.as_ref().map(|data| (data.train.n_images / recipe.data.batch_size.max(1)) as u64)
        });
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            path: shell_quoted(path),
            phases: recipe.phases().into_iter().map(|phase| (phase.name, phase.train.epochs)).collect(),
            recipe: recipe.name,
            device: info.device,
            plan: run.plan()?,
            steps_per_epoch,
            epochs,
            live: live.map(|(live, _)| live),
            state,
        })
    }

    /// Epochs of the whole training.
    pub fn n_epochs(&self) -> u64 {
        self.phases.iter().map(|(_, epochs)| epochs).sum()
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        let recorded = self.epochs.last().map_or(0, |epoch| epoch.step);
        self.live.as_ref().map_or(recorded, |live| live.step.max(recorded))
    }

    /// Steps of the whole training, if they are known.
    pub fn steps(&self) -> Option<u64> {
        self.steps_per_epoch.map(|steps| steps * self.n_epochs())
    }

    /// The phase that is trained, from 0.
    pub fn phase(&self) -> usize {
        let done = self.epochs.last().map_or(0, |epoch| epoch.epoch);
        let mut end = 0;
        let ends = self.phases.iter().map(|(_, epochs)| {
            end += epochs;
            end
        });
        ends.take_while(|&end| end <= done).count().min(self.phases.len().saturating_sub(1))
    }

    /// Seconds that are left, as far as known.
    pub fn eta_seconds(&self) -> Option<f64> {
        if !matches!(self.state, State::Training) {
            return None;
        }
        let recorded = || {
            let last = self.epochs.last()?;
            let left = self.n_epochs().saturating_sub(last.epoch);
            Some(last.seconds? / last.epoch as f64 * left as f64)
        };
        self.live.as_ref().filter(|live| live.steps > 0).map(|live| live.eta_seconds).or_else(recorded)
    }

    /// The device, and what the training uses of its machine while it goes on, if that is known.
    pub fn load_text(&self) -> String {
        let load =
            self.live.as_ref().filter(|_| matches!(self.state, State::Training)).and_then(|live| live.load);
        match load {
            Some(Load { cores, memory_bytes }) => {
                format!("{}, {cores:.1} cores, {}", self.device, approximate(memory_bytes))
            }
            None => self.device.clone(),
        }
    }

    /// What the time of the epochs went to, if that is known.
    pub fn parts(&self) -> Option<TimeParts> {
        let parts = self.epochs.iter().filter_map(|epoch| epoch.parts);
        parts.reduce(|mut sum, parts| {
            sum += parts;
            sum
        })
    }

    /// Names of the networks that train alongside.
    pub fn others(&self) -> Vec<&str> {
        let Some(last) = self.epochs.last() else { return Vec::new() };
        let mut names: Vec<&str> =
            last.values.keys().filter_map(|key| key.strip_prefix("losses/")?.split('/').next()).collect();
        names.extend(last.values.keys().filter_map(|key| key.strip_prefix("top1/test/")));
        names.extend(last.values.keys().filter_map(|key| key.strip_prefix("top1/validation/")));
        names.sort_unstable();
        names.dedup();
        names.retain(|name| *name != "student");
        names
    }

    /// What is to be said of the state, in a line.
    pub fn state_text(&self) -> String {
        let step = || match self.steps() {
            Some(steps) => format!("step {} of {steps}", self.step()),
            None => format!("step {}", self.step()),
        };
        match &self.state {
            State::Training => match self.eta_seconds() {
                Some(eta) => format!("training, {}, ETA {}", step(), clock(eta)),
                None => format!("training, {}", step()),
            },
            State::Silent(age) => {
                format!("{}; it has written nothing for {}", step(), clock(age.as_secs_f64()))
            }
            State::Stopped(Some(message)) => format!("stopped at {}: {message}", step()),
            State::Stopped(None) => {
                format!("stopped at {}; go on with: lowbit train --resume {}", step(), self.path)
            }
            State::Finished(result) => format!(
                "finished: top-1 {} after {} in {}",
                percent_exact(result.top1),
                counted(result.epochs, "epoch"),
                clock(result.seconds)
            ),
        }
    }

    /// An epoch in a line.
    pub fn epoch_line(&self, epoch: &Epoch) -> String {
        let total = self.n_epochs();
        let width = total.to_string().len();
        let mut line = format!("epoch {:>width$}/{total}", epoch.epoch);
        if self.phases.len() > 1 {
            line += &format!("  {}", epoch.phase);
        }
        for (images, shown) in [("train", "train"), ("validation", "val"), ("test", "test")] {
            let score = |name: &str| epoch.values.get(&format!("{name}/{images}"));
            if let (Some(loss), Some(top1)) = (score("loss"), score("top1")) {
                line += &format!("  {shown} loss {} top1 {}", short(*loss), percent(*top1));
            }
        }
        if let Some(seconds) = epoch.seconds {
            line += &format!("  {}", clock(seconds));
        }
        line
    }
}

/// A number in few characters.
pub fn short(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "not finite".into(),
        0.0 => "0".into(),
        size if size < 1e-3 => format!("{value:.1e}"),
        size if size < 10.0 => format!("{value:.3}"),
        size if size < 1000.0 => format!("{value:.1}"),
        _ => format!("{value:.1e}"),
    }
}

/// The process that trained last in `run`.
fn locked_by(run: &Path) -> Option<u32> {
    let mut text = String::new();
    let file = open_regular(&run.join("lock"), std::fs::OpenOptions::new().read(true)).ok()?;
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
