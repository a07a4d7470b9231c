//! `cargo xtask bench`: times training steps beside each other, backends and a peer, in one run.
//!
//! All contestants take turns, so that what else the machine does falls on all alike; medians over the rounds are shown.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::output::print;
use crate::workspace;
use origin::Origin;

pub mod backends;
pub mod loader;
pub mod ops;
mod origin;
pub mod runtime;

/// What `cargo xtask bench step` is asked for.
#[derive(Args)]
pub struct StepArgs {
    /// Network and input
    #[arg(long, value_enum, default_value_t = Workload::Preresnet20)]
    network: Workload,

    /// Precisions, fp32 or as w2a2
    #[arg(long, value_delimiter = ',', default_value = "fp32,w4a4,w2a2")]
    bits: Vec<String>,

    /// Backends
    #[arg(long, value_delimiter = ',', default_value = "flex")]
    device: Vec<String>,

    /// Another implementation beside ours: PyTorch, in full precision and at the same bits
    #[arg(long, value_enum)]
    peer: Option<Peer>,

    /// Where the peer runs [default: on the GPU if only wgpu is timed, else on the processor]
    #[arg(long, value_enum, requires = "peer")]
    peer_device: Option<PeerDevice>,

    /// Python that has the peer [default: a virtual environment in target/peers, made if it is missing]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<String>,

    /// Rounds; each contestant runs a few steps in each
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Steps of a contestant in a round
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,

    /// Threads of each contestant [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// End with one JSON object on stdout
    #[arg(long)]
    json: bool,
}

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
}

impl Workload {
    fn name(self) -> &'static str {
        match self {
            Self::Preresnet20 => "preresnet20",
            Self::Preresnet8Digits => "preresnet8-digits",
            Self::Resnet18 => "resnet18",
            Self::Preresnet18 => "preresnet18",
        }
    }

    fn batch(self) -> u32 {
        match self {
            Self::Preresnet20 => 128,
            Self::Preresnet8Digits => 64,
            Self::Resnet18 | Self::Preresnet18 => 16,
        }
    }
}

/// Another implementation.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Peer {
    Torch,
}

/// Where another implementation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PeerDevice {
    Cpu,
    Cuda,
}

impl PeerDevice {
    /// That of `asked_for`, or the one that `devices` of ours compare with.
    fn choose(asked_for: Option<Self>, devices: &[String]) -> Self {
        let is_gpu = !devices.is_empty() && devices.iter().all(|device| device == "wgpu");
        asked_for.unwrap_or(if is_gpu { Self::Cuda } else { Self::Cpu })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
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
    /// Mean seconds in a step by kind of operation, where the contestant tells.
    seconds_by_kind: serde_json::Map<String, serde_json::Value>,
}

/// The speed of one contestant as a multiple of another's: the median of the rounds' ratios.
#[derive(Debug, Serialize)]
struct Ratio {
    of: String,
    to: String,
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    origin: Origin,
    network: &'static str,
    machine: String,
    threads: usize,
    rounds: u32,
    entries: Vec<Entry>,
    ratios: Vec<Ratio>,
}

pub fn step(args: &StepArgs) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let mut contestants = Vec::new();
    for device in &args.device {
        let program = build(device)?;
        for bits in &args.bits {
            let mut command = Command::new(&program);
            command.args([args.network.name(), bits, device]).env("RAYON_NUM_THREADS", threads.to_string());
            contestants.push(Contestant::start(format!("lowbit {device}"), bits, command)?);
        }
    }
    if let Some(Peer::Torch) = args.peer {
        let python = match &args.python {
            Some(python) => python.clone(),
            None => virtual_environment()?,
        };
        let device = PeerDevice::choose(args.peer_device, &args.device).name();
        for bits in &args.bits {
            let mut command = Command::new(&python);
            command.arg(peer_script("step.py")).args([
                args.network.name(),
                bits,
                &threads.to_string(),
                device,
            ]);
            contestants.push(Contestant::start("torch".into(), bits, command)?);
        }
    }
    // The first steps find memory and instructions cold.
    for contestant in &mut contestants {
        contestant.run(1)?;
    }
    for round in 0..args.rounds {
        eprintln!("round {}/{}", round + 1, args.rounds);
        for contestant in &mut contestants {
            let seconds = contestant.run(args.steps)?;
            let images = f64::from(args.steps * args.network.batch());
            contestant.rates.push(images / seconds);
        }
    }
    let report = Report {
        origin: Origin::here(),
        network: args.network.name(),
        machine: machine(),
        threads,
        rounds: args.rounds,
        ratios: ratios(&contestants),
        entries: contestants.into_iter().map(Contestant::finish).collect::<anyhow::Result<_>>()?,
    };
    show(&report);
    if args.json {
        print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
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
        process.wait()?;
        // Ours tell more after it; see `backends`.
        let peak = line.split_whitespace().next().unwrap_or_default();
        let peak_bytes = peak.parse().with_context(|| format!("{name} answered {line:?}"))?;
        let sorted = sorted(rates);
        let range = [sorted[0], sorted[sorted.len() - 1]];
        let seconds_by_kind = match kinds.trim() {
            "" => serde_json::Map::new(),
            kinds => serde_json::from_str(kinds).with_context(|| format!("{name} answered {kinds:?}"))?,
        };
        let images_per_second = median(sorted);
        Ok((Entry { name, bits, images_per_second, range, peak_bytes, seconds_by_kind }, line))
    }
}

/// Of every contestant to the peer at the same bits and in full precision, and to its own full precision.
fn ratios(contestants: &[Contestant]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for of in contestants {
        for to in contestants {
            let same_bits = to.bits == of.bits;
            let is_peer = to.name == "torch" && of.name != "torch" && (same_bits || to.bits == "fp32");
            let own_full_precision = to.name == of.name && to.bits == "fp32" && !same_bits;
            if is_peer || own_full_precision {
                let rounds = of.rates.iter().zip(&to.rates).map(|(of, to)| of / to);
                let ratio = median(sorted(rounds.collect()));
                ratios.push(Ratio { of: of.label(), to: to.label(), ratio });
            }
        }
    }
    ratios
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

fn show(report: &Report) {
    eprintln!(
        "\n{}, {} threads each, {} rounds, {}\n",
        report.network, report.threads, report.rounds, report.machine
    );
    eprintln!("{:<16} {:<6} {:>9} {:>19} {:>9}", "", "bits", "images/s", "range", "peak MiB");
    for Entry { name, bits, images_per_second, range: [low, high], peak_bytes, .. } in &report.entries {
        let decimals = if *images_per_second < 100.0 { 1 } else { 0 };
        let range = format!("{low:.decimals$} to {high:.decimals$}");
        let mebibytes = peak_bytes / (1 << 20);
        eprintln!("{name:<16} {bits:<6} {images_per_second:>9.decimals$} {range:>19} {mebibytes:>9}");
    }
    eprintln!();
    for Ratio { of, to, ratio } in &report.ratios {
        eprintln!("{of} is {ratio:.2} times {to}");
    }
    for entry in report.entries.iter().filter(|entry| !entry.seconds_by_kind.is_empty()) {
        eprintln!("\nmilliseconds of a step, {} {}", entry.name, entry.bits);
        let seconds = || entry.seconds_by_kind.iter().filter_map(|(kind, s)| Some((kind, s.as_f64()?)));
        let all: f64 = seconds().map(|(_, seconds)| seconds).sum();
        for (kind, seconds) in seconds() {
            eprintln!("{kind:<36} {:>8.1} {:>5.1} %", seconds * 1e3, 100.0 * seconds / all);
        }
    }
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
    fn the_peer_runs_where_ours_do() {
        let choose = |asked_for, devices: &[&str]| {
            PeerDevice::choose(asked_for, &devices.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(choose(None, &["wgpu"]), PeerDevice::Cuda);
        assert_eq!(choose(None, &["flex"]), PeerDevice::Cpu);
        assert_eq!(choose(None, &["flex", "wgpu"]), PeerDevice::Cpu);
        assert_eq!(choose(Some(PeerDevice::Cpu), &["wgpu"]), PeerDevice::Cpu);
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
