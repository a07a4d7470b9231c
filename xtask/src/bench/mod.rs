//! `cargo xtask bench`: times contestants beside each other, ours and peers, in one run.
//!
//! All contestants take turns, so that what else the machine does falls on all alike; medians over the rounds are shown.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::workspace;

pub mod backends;
pub mod card;
pub mod loader;
pub mod ops;
mod origin;
pub mod runtime;
pub mod step;
mod without;

/// A network and its input.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Workload {
    /// PreResNet-20, batch 128, 32x32x3
    Preresnet20,
    /// PreResNet-8, batch 64, 8x8x1
    #[value(name = "preresnet8-digits")]
    Preresnet8Digits,
    /// ResNet-18, batch 16, 224x224x3
    Resnet18,
    /// PreResNet-18, batch 16, 224x224x3
    Preresnet18,
    /// ResNet-50, batch 16, 224x224x3
    Resnet50,
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Self::Preresnet20 => "preresnet20",
            Self::Preresnet8Digits => "preresnet8-digits",
            Self::Resnet18 => "resnet18",
            Self::Preresnet18 => "preresnet18",
            Self::Resnet50 => "resnet50",
        }
    }

    fn batch(self) -> u32 {
        match self {
            Self::Preresnet20 => 128,
            Self::Preresnet8Digits => 64,
            Self::Resnet18 | Self::Preresnet18 | Self::Resnet50 => 16,
        }
    }
}

/// What a contestant reached.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    bits: String,
    /// Median over the rounds.
    images_per_second: f64,
    /// Smallest and largest round.
    range: [f64; 2],
    /// Largest resident size of its process in bytes, the program and its libraries included.
    peak_bytes: u64,
    /// Bytes that it reserved on a GPU: all of it at the end of ours, the most of PyTorch's.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_bytes: Option<u64>,
    /// Launches of a step on a GPU, where the contestant tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    launches: Option<u64>,
    /// Seconds of a step's kernels on a GPU, each timed, where the contestant tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_seconds: Option<f64>,
    /// Mean seconds in a step by kind of operation, where the contestant tells.
    seconds_by_kind: serde_json::Map<String, serde_json::Value>,
    /// The instruction sets that it uses, where it tells.
    instructions: String,
}

/// What ours tell of a step on a GPU.
#[derive(Default, Deserialize)]
struct OfGpu {
    launches: Option<u64>,
    kernel_seconds: Option<f64>,
}

/// What cargo is told to compile a backend in; the default features have the CPU backends.
fn features(device: &str) -> Vec<&str> {
    match device {
        "flex" | "ndarray" => Vec::new(),
        "wgpu" => crate::parity::FEATURES.to_vec(),
        other => vec!["--no-default-features", "--features", other],
    }
}

/// Builds the stepping program for a backend; returns its path.
fn build(device: &str) -> anyhow::Result<PathBuf> {
    let mut arguments = vec!["-p", "lowbit-tests", "--example", "step"];
    arguments.extend(features(device));
    let program = workspace::build("step", &arguments)?;
    // The next backend's build would replace it.
    let kept = program.with_file_name(format!("step-{device}{}", std::env::consts::EXE_SUFFIX));
    std::fs::copy(&program, &kept).context("failed to copy the stepping program")?;
    Ok(kept)
}

/// A script of the peer.
pub fn peer_script(name: &str) -> PathBuf {
    workspace::root().join("xtask/peers").join(name)
}

/// Makes a Python environment with the pinned peer, once; returns its Python.
pub fn virtual_environment() -> anyhow::Result<String> {
    let folder = workspace::target_dir()?.join("peers/torch");
    let python = folder.join("bin/python");
    let requirements = peer_script("requirements.txt");
    let (wanted, installed) = (std::fs::read_to_string(&requirements)?, folder.join("installed.txt"));
    if std::fs::read_to_string(&installed).ok().as_ref() != Some(&wanted) {
        eprintln!("installing the peer into {}", folder.display());
        let run = |program: &Path, args: &[&str]| -> anyhow::Result<()> {
            let status = Command::new(program).args(args).status();
            match status.with_context(|| format!("failed to run {}", program.display()))?.success() {
                true => Ok(()),
                false => bail!("{} {} failed", program.display(), args.join(" ")),
            }
        };
        run(Path::new("python3"), &["-m", "venv", &folder.display().to_string()])?;
        let file = requirements.display().to_string();
        if let Err(error) = run(&python, &["-m", "pip", "install", "--quiet", "-r", &file]) {
            // Half an environment would be taken for a whole one.
            std::fs::remove_dir_all(folder).context("failed to remove the environment")?;
            return Err(error);
        }
        std::fs::write(installed, wanted).context("failed to note what is installed")?;
    }
    Ok(python.display().to_string())
}

/// A process that runs steps on request.
struct Contestant {
    name: String,
    bits: String,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Images per second in each round.
    rates: Vec<f64>,
}

impl Contestant {
    fn start(name: String, bits: &str, mut command: Command) -> anyhow::Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to run {name}"))?;
        let requests = process.stdin.take().context("no stdin")?;
        let answers = BufReader::new(process.stdout.take().context("no stdout")?);
        Ok(Self { name, bits: bits.into(), process, requests, answers, rates: Vec::new() })
    }

    fn label(&self) -> String {
        format!("{} {}", self.name, self.bits)
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            bail!("{} ended with {}", self.label(), self.process.wait()?);
        }
        Ok(line.trim().into())
    }

    /// Seconds of so many steps.
    fn run(&mut self, steps: u32) -> anyhow::Result<f64> {
        writeln!(self.requests, "{steps}")?;
        self.requests.flush()?;
        let answer = self.answer()?;
        answer.parse().with_context(|| format!("{} answered {answer:?}", self.label()))
    }

    /// Runs a step; ends the process if the step takes longer than `limit`.
    fn try_step(&mut self, limit: Duration) -> anyhow::Result<()> {
        writeln!(self.requests, "1")?;
        self.requests.flush()?;
        let Self { process, answers, .. } = self;
        let (answered, waiting) = mpsc::channel::<()>();
        let mut line = String::new();
        let (n_bytes, is_late) = thread::scope(|scope| {
            let watch = scope.spawn(move || {
                let is_late = waiting.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
                if is_late {
                    // It may have ended by itself.
                    let _ = process.kill();
                }
                is_late
            });
            let n_bytes = answers.read_line(&mut line);
            drop(answered);
            (n_bytes, watch.join().expect("invariant: nothing in it panics"))
        });
        match n_bytes? {
            _ if is_late => {
                self.process.wait()?;
                bail!("a step takes more than {} s: --step-limit allows more", limit.as_secs_f64());
            }
            0 => bail!("{} ended with {}", self.label(), self.process.wait()?),
            _ => Ok(()),
        }
    }

    /// Ends the process, whatever it has to tell.
    fn end(self) -> anyhow::Result<()> {
        let Self { mut process, requests, .. } = self;
        drop(requests);
        process.wait()?;
        Ok(())
    }

    fn finish(self) -> anyhow::Result<Entry> {
        self.finish_with_line().map(|(entry, _)| entry)
    }

    /// The entry, and the line that the process ends with.
    fn finish_with_line(self) -> anyhow::Result<(Entry, String)> {
        let Self { name, bits, mut process, requests, mut answers, rates } = self;
        drop(requests);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        let mut kinds = String::new();
        answers.read_line(&mut kinds)?;
        let mut instructions = String::new();
        answers.read_line(&mut instructions)?;
        let mut of_gpu = String::new();
        answers.read_line(&mut of_gpu)?;
        process.wait()?;
        // On a GPU, what is reserved there and its name come after it; see `backends`.
        let mut words = line.split_whitespace();
        let peak = words.next().unwrap_or_default();
        let peak_bytes = peak.parse().with_context(|| format!("{name} answered {line:?}"))?;
        let device_bytes = words.next().and_then(|bytes| bytes.parse().ok());
        let OfGpu { launches, kernel_seconds } = match of_gpu.trim() {
            "" => OfGpu::default(),
            told => serde_json::from_str(told).with_context(|| format!("{name} answered {told:?}"))?,
        };
        let sorted = sorted(rates);
        let range = [sorted[0], sorted[sorted.len() - 1]];
        let seconds_by_kind = match kinds.trim() {
            "" => serde_json::Map::new(),
            kinds => serde_json::from_str(kinds).with_context(|| format!("{name} answered {kinds:?}"))?,
        };
        let images_per_second = median(sorted);
        let instructions = instructions.trim().into();
        let entry = Entry {
            name,
            bits,
            images_per_second,
            range,
            peak_bytes,
            device_bytes,
            launches,
            kernel_seconds,
            seconds_by_kind,
            instructions,
        };
        Ok((entry, line))
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The middle of sorted values.
fn median(sorted: Vec<f64>) -> f64 {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

/// The processor, where the system tells.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = line.map_or("unknown processor", |line| line.trim_start_matches([' ', '\t', ':']));
    format!("{name}, {} cores", std::thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contestant(script: &str) -> Contestant {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Contestant::start("ours".into(), "w2a2", command).unwrap()
    }

    #[test]
    fn what_a_gpu_did_is_in_the_entry() {
        let script = r#"while read n; do echo 0.5; done; echo 100 2000 card; echo; echo
            echo '{"launches": 7, "kernel_seconds": 0.25}'"#;
        let mut of_gpu = contestant(script);
        let seconds = of_gpu.run(1).unwrap();
        of_gpu.rates.push(seconds);
        let entry = of_gpu.finish().unwrap();
        assert_eq!((entry.peak_bytes, entry.device_bytes), (100, Some(2000)));
        assert_eq!((entry.launches, entry.kernel_seconds), (Some(7), Some(0.25)));

        let mut of_cpu = contestant("while read n; do echo 0.5; done; echo 100; echo; echo avx2");
        let seconds = of_cpu.run(1).unwrap();
        of_cpu.rates.push(seconds);
        let entry = serde_json::to_value(of_cpu.finish().unwrap()).unwrap();
        assert_eq!(entry["instructions"], "avx2");
        assert!(entry.get("launches").is_none() && entry.get("device_bytes").is_none(), "{entry}");
    }

    #[test]
    fn a_step_over_its_limit_is_cut_short() {
        let mut quick = contestant("while read n; do echo 0.5; done");
        quick.try_step(Duration::from_secs(60)).unwrap();
        assert_eq!(quick.run(1).unwrap(), 0.5);
        drop(quick.requests);
        quick.process.wait().unwrap();

        let mut slow = contestant("read n; exec sleep 60");
        let error = slow.try_step(Duration::from_millis(100)).unwrap_err().to_string();
        assert_eq!(error, "a step takes more than 0.1 s: --step-limit allows more");

        let mut broken = contestant("read n; exit 3");
        let error = broken.try_step(Duration::from_secs(60)).unwrap_err().to_string();
        assert!(error.contains("ours w2a2 ended with exit status: 3"), "{error}");
    }
}
