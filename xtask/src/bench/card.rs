//! `cargo xtask bench card`: what is asked of a GPU, ours and PyTorch on the same card, in one run of a few minutes.
//!
//! A card is there for a short time, so the run has a limit, writes what it has after every contestant, and lists what it left out.
//! One contestant runs after the other, as their memory together does not fit on a card.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::origin::Origin;
use super::step::{PeerDevice, Way};
use super::{Contestant, Entry, Workload, machine, peer_script, virtual_environment};
use crate::output::print;
use crate::workspace;

/// What `cargo xtask bench card` is asked for.
#[derive(Args)]
pub struct CardArgs {
    /// Networks with their batches
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "preresnet20:128,preresnet20:1024,resnet18:64,resnet18:256,resnet50:64,resnet50:256"
    )]
    networks: Vec<Sized>,

    /// Precisions, fp32 or as w2a2
    #[arg(long, value_delimiter = ',', default_value = "fp32,w2a2")]
    bits: Vec<String>,

    /// How PyTorch runs: in full precision all but `compile`, with quantizers `eager` and `compile`
    #[arg(long, value_enum, value_delimiter = ',', default_value = "eager,tf32,compile,bf16-compile")]
    ways: Vec<Way>,

    /// Where PyTorch runs
    #[arg(long, value_enum, default_value = "cuda")]
    peer_device: PeerDevice,

    /// Python that has PyTorch [default: a virtual environment in target/peers, made if it is missing]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<String>,

    /// Our stepping program, built elsewhere [default: built now, optimized]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,

    /// Rounds of each contestant
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Seconds of a round, which has at least one step
    #[arg(long, default_value_t = 0.4)]
    round_seconds: f64,

    /// Seconds for all of it; what has not begun by then is left out
    #[arg(long, default_value_t = 540, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,

    /// Seconds for a contestant's first step
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u64).range(1..))]
    step_limit: u64,

    /// File for the results, as JSON, written after each contestant
    #[arg(long, value_name = "FILE", default_value = "card.json")]
    output: PathBuf,
}

/// How many networks PyTorch compiles at a time, before anything is timed.
const COMPILED_TOGETHER: usize = 6;

/// A network and the size of its batch, as in `preresnet20:1024`.
#[derive(Clone, Debug)]
struct Sized {
    network: Workload,
    batch: u32,
}

impl FromStr for Sized {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, batch) =
            text.split_once(':').ok_or("expected a network and a batch, as in preresnet20:128")?;
        let batch = batch.parse().ok().filter(|batch| *batch > 0).ok_or("expected a batch of at least 1")?;
        Ok(Self { network: Workload::from_str(name, false)?, batch })
    }
}

impl Sized {
    fn name(&self) -> String {
        format!("{}:{}", self.network.name(), self.batch)
    }
}

/// One that is to be timed.
struct Planned {
    name: &'static str,
    bits: String,
    /// How PyTorch runs, if it does.
    way: Option<Way>,
}

/// Ours, then PyTorch's, at each precision.
fn plan(bits: &[String], ways: &[Way]) -> Vec<Planned> {
    let mut planned = Vec::new();
    for bits in bits {
        planned.push(Planned { name: "lowbit wgpu", bits: bits.clone(), way: None });
        for way in ways {
            let is_asked_for = match bits.as_str() {
                "fp32" => *way != Way::Compile,
                _ => matches!(way, Way::Eager | Way::Compile),
            };
            if is_asked_for {
                planned.push(Planned { name: way.entry(), bits: bits.clone(), way: Some(*way) });
            }
        }
    }
    planned
}

/// What was measured of a network.
#[derive(Debug, Serialize)]
struct Measured {
    network: &'static str,
    batch: u32,
    entries: Vec<Entry>,
    ratios: Vec<Ratio>,
}

/// The speed of one of ours as a multiple of another's, by their medians.
#[derive(Debug, Serialize)]
struct Ratio {
    of: String,
    to: String,
    ratio: f64,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    network: String,
    entry: String,
    reason: String,
}

#[derive(Debug, Serialize)]
struct Report {
    origin: Origin,
    machine: String,
    /// As the driver of ours names it.
    gpu: Option<String>,
    rounds: u32,
    networks: Vec<Measured>,
    left_out: Vec<LeftOut>,
    seconds: f64,
}

/// What all contestants are started with.
struct Setting<'a> {
    args: &'a CardArgs,
    program: PathBuf,
    python: String,
    /// Where PyTorch keeps what it compiles.
    compiled: PathBuf,
    end: Instant,
}

impl Setting<'_> {
    fn start(&self, network: &Sized, planned: &Planned) -> anyhow::Result<Contestant> {
        let Planned { name, bits, way } = planned;
        let threads = thread::available_parallelism().map_or(1, usize::from).to_string();
        let mut command = match way {
            None => Command::new(&self.program),
            Some(_) => Command::new(&self.python),
        };
        match way {
            None => command.args([&network.name(), bits, "wgpu"]).env("RAYON_NUM_THREADS", threads),
            Some(way) => command
                .arg(peer_script("step.py"))
                .args([&network.name(), bits, &threads, self.args.peer_device.name(), way.argument()])
                .env("TORCHINDUCTOR_CACHE_DIR", &self.compiled),
        };
        Contestant::start((*name).into(), bits, command)
    }

    /// Seconds that are left for a first step.
    fn left(&self) -> anyhow::Result<Duration> {
        let left = self.end.saturating_duration_since(Instant::now());
        // In whole seconds, which is how a message tells it.
        let left = left.as_secs().min(self.args.step_limit);
        anyhow::ensure!(left > 0, "--limit is over");
        Ok(Duration::from_secs(left))
    }

    /// The entry, and what its process ends with.
    fn measure(&self, network: &Sized, planned: &Planned) -> anyhow::Result<(Entry, String)> {
        let limit = self.left()?;
        let mut contestant = self.start(network, planned)?;
        contestant.try_step(limit)?;
        let seconds = contestant.run(1)?;
        let steps = ((self.args.round_seconds / seconds) as u32).max(1);
        for _ in 0..self.args.rounds {
            let seconds = contestant.run(steps)?;
            contestant.rates.push(f64::from(steps * network.batch) / seconds);
        }
        contestant.finish_with_line()
    }

    /// Lets PyTorch compile, several networks at a time, so that each has only to load it when it is timed.
    fn compile(&self, all: &[(&Sized, &Planned)]) {
        let is_compiled = |planned: &Planned| planned.way.is_some_and(Way::compiles);
        let all: Vec<_> = all.iter().filter(|(_, planned)| is_compiled(planned)).collect();
        for some in all.chunks(COMPILED_TOGETHER) {
            thread::scope(|scope| {
                for (network, planned) in some {
                    scope.spawn(move || {
                        eprintln!("PyTorch compiles {} {}", network.name(), planned.bits);
                        let compiled = self.left().and_then(|limit| {
                            let mut contestant = self.start(network, planned)?;
                            contestant.try_step(limit)?;
                            contestant.end()
                        });
                        if let Err(error) = compiled {
                            // It is tried again, and left out, when it is timed.
                            eprintln!("{} {}: {error:#}", network.name(), planned.name);
                        }
                    });
                }
            });
        }
    }
}

pub fn run(args: &CardArgs) -> anyhow::Result<()> {
    let program = args.program.clone().map_or_else(build, Ok)?;
    let needs_python = !args.ways.is_empty() && args.python.is_none();
    let python = if needs_python { virtual_environment()? } else { args.python.clone().unwrap_or_default() };
    let folder = tempfile::tempdir().context("failed to make a folder")?;
    // Building does not count: it may be done elsewhere.
    let started = Instant::now();
    let end = started + Duration::from_secs(args.limit);
    let setting = Setting { args, program, python, compiled: folder.path().into(), end };
    let planned = plan(&args.bits, &args.ways);
    let all: Vec<_> = args
        .networks
        .iter()
        .flat_map(|network| planned.iter().map(move |planned| (network, planned)))
        .collect();
    setting.compile(&all);
    let networks = args.networks.iter().map(|Sized { network, batch }| Measured {
        network: network.name(),
        batch: *batch,
        entries: Vec::new(),
        ratios: Vec::new(),
    });
    let mut report = Report {
        origin: Origin::here(),
        machine: machine(),
        gpu: None,
        rounds: args.rounds,
        networks: networks.collect(),
        left_out: Vec::new(),
        seconds: 0.0,
    };
    for (i, network) in args.networks.iter().enumerate() {
        for planned in &planned {
            eprintln!("{}: {} {}", network.name(), planned.name, planned.bits);
            let measured = &mut report.networks[i];
            match setting.measure(network, planned) {
                Ok((entry, line)) => {
                    if planned.way.is_none() {
                        report.gpu = line.trim().splitn(3, ' ').nth(2).map(String::from).or(report.gpu);
                    }
                    measured.entries.push(entry);
                    measured.ratios = ratios(&measured.entries);
                }
                Err(error) => report.left_out.push(LeftOut {
                    network: network.name(),
                    entry: format!("{} {}", planned.name, planned.bits),
                    reason: format!("{error:#}"),
                }),
            }
            report.seconds = started.elapsed().as_secs_f64();
            write(&args.output, &report)?;
        }
    }
    show(&report);
    print(&serde_json::to_string(&report)?)
}

/// Our stepping program, optimized: on a GPU a step waits for the host.
fn build() -> anyhow::Result<PathBuf> {
    let arguments = [&["-p", "lowbit-tests", "--example", "step", "--release"], &crate::parity::FEATURES[..]];
    workspace::build("step", &arguments.concat())
}

fn write(path: &Path, report: &Report) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}

/// Of ours to each peer at the same bits and in full precision, and to our own full precision.
fn ratios(entries: &[Entry]) -> Vec<Ratio> {
    let is_ours = |entry: &Entry| entry.name.starts_with("lowbit");
    let label = |entry: &Entry| format!("{} {}", entry.name, entry.bits);
    let mut ratios = Vec::new();
    for of in entries.iter().filter(|entry| is_ours(entry)) {
        for to in entries {
            let is_peer = !is_ours(to) && (to.bits == of.bits || to.bits == "fp32");
            let is_own_full_precision = is_ours(to) && to.bits == "fp32" && of.bits != "fp32";
            if is_peer || is_own_full_precision {
                let ratio = of.images_per_second / to.images_per_second;
                ratios.push(Ratio { of: label(of), to: label(to), ratio });
            }
        }
    }
    ratios
}

fn show(report: &Report) {
    let gpu = report.gpu.as_deref().unwrap_or("no GPU");
    eprintln!("\n{gpu}, {}, medians of {} rounds, {:.0} s\n", report.machine, report.rounds, report.seconds);
    eprintln!(
        "| network, batch | entry | bits | images/s | range | on the device, MiB | launches | kernels, ms |"
    );
    eprintln!("|---|---|---|---|---|---|---|---|");
    for Measured { network, batch, entries, .. } in &report.networks {
        for entry in entries {
            let Entry { name, bits, images_per_second, range: [low, high], .. } = entry;
            let number = |number: Option<u64>| number.map_or(String::new(), |number| number.to_string());
            let kernels =
                entry.kernel_seconds.map_or(String::new(), |seconds| format!("{:.2}", seconds * 1e3));
            eprintln!(
                "| {network}, {batch} | {name} | {bits} | {images_per_second:.0} | {low:.0} to {high:.0} | {} | {} | {kernels} |",
                number(entry.device_bytes.map(|bytes| bytes >> 20)),
                number(entry.launches),
            );
        }
    }
    eprintln!();
    for Measured { network, batch, ratios, .. } in &report.networks {
        for Ratio { of, to, ratio } in ratios {
            eprintln!("{network}, {batch}: {of} is {ratio:.2} times {to}");
        }
    }
    for LeftOut { network, entry, reason } in &report.left_out {
        eprintln!("left out: {network}: {entry}: {reason}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_a_batch() {
        let parse = |text: &str| text.parse::<Sized>().map(|sized| sized.name());
        assert_eq!(parse("resnet50:256").as_deref(), Ok("resnet50:256"));
        assert!(
            ["resnet50", "resnet50:0", "resnet51:2", "resnet50:x"].iter().all(|text| parse(text).is_err())
        );
    }

    #[test]
    fn each_precision_has_its_ways() {
        let bits = ["fp32", "w2a2"].map(String::from);
        let planned = plan(&bits, &[Way::Eager, Way::Tf32, Way::Compile, Way::Bf16Compile]);
        let names: Vec<String> = planned.iter().map(|p| format!("{} {}", p.name, p.bits)).collect();
        let expected = [
            "lowbit wgpu fp32",
            "torch fp32",
            "torch tf32 fp32",
            "torch bf16 compile fp32",
            "lowbit wgpu w2a2",
            "torch w2a2",
            "torch compile w2a2",
        ];
        assert_eq!(names, expected);
    }
}
