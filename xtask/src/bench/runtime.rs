//! `cargo xtask bench runtime`: packed networks run one image after the other, beside onnxruntime, in turns.

use std::process::Command;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::origin::Origin;
use super::without::Without;
use super::{Contestant, Entry, machine, median, peer_script, sorted, virtual_environment};
use crate::output::print;
use crate::workspace;

/// What `cargo xtask bench runtime` is asked for.
#[derive(Args)]
pub struct RuntimeArgs {
    /// Network, with random weights
    #[arg(long, default_value = "resnet18", value_parser = ["resnet18", "resnet50", "preresnet20", "vgg-small"])]
    network: String,

    /// Precisions of ours, as w2a2
    #[arg(long, value_delimiter = ',', default_value = "w2a2,w4a4")]
    bits: Vec<String>,

    /// Another runtime beside ours: in full precision, and in 8 bits by its own quantization
    #[arg(long, value_enum)]
    peer: Option<Peer>,

    /// Threads of each contestant
    #[arg(long, default_value_t = 1, value_name = "N")]
    threads: usize,

    /// Rounds; each contestant runs a few images in each
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Images of a contestant in a round
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    images: u32,

    /// Python that has the peer [default: a virtual environment in target/peers, made if it is missing]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<String>,

    #[command(flatten)]
    without: Without,

    /// End with one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Another runtime.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Peer {
    Onnxruntime,
}

#[derive(Serialize)]
struct Report {
    origin: Origin,
    machine: String,
    network: String,
    threads: usize,
    rounds: u32,
    /// Instruction sets that were left out.
    without: Vec<String>,
    entries: Vec<Entry>,
    ratios: Vec<Ratio>,
}

/// The median of the rounds' ratios of images per second.
#[derive(Serialize)]
struct Ratio {
    of: String,
    to: String,
    ratio: f64,
}

pub fn run(args: &RuntimeArgs) -> anyhow::Result<()> {
    let make = workspace::build("random", &["-p", "lowbit-export", "--example", "random"])?;
    let ours = workspace::build("run", &["--release", "-p", "lowbit-runtime", "--example", "run"])?;
    let folder = tempfile::tempdir().context("failed to make a folder")?;
    let threads = args.threads.to_string();
    let mut contestants = Vec::new();
    let mut full_precision = None;
    for bits in &args.bits {
        let (weight, act) = bits
            .strip_prefix('w')
            .and_then(|bits| bits.split_once('a'))
            .with_context(|| format!("bits are written as w2a2, got {bits}"))?;
        let file = folder.path().join(bits);
        let made = Command::new(&make).args([&args.network, weight, act]).arg(&file).status();
        if !made.context("failed to make a network")?.success() {
            bail!("the network could not be made");
        }
        let mut command = Command::new(&ours);
        command.arg(&file).arg(&threads);
        args.without.tell(&mut command);
        contestants.push(Contestant::start("lowbit".into(), bits, command)?);
        full_precision = Some(file.with_extension("onnx"));
    }
    if let (Some(Peer::Onnxruntime), Some(file)) = (args.peer, full_precision) {
        let python = args.python.clone().map_or_else(virtual_environment, Ok)?;
        for kind in ["int8", "fp32"] {
            let mut command = Command::new(&python);
            command.arg(peer_script("runtime.py")).arg(&file).args([kind, &threads]);
            contestants.push(Contestant::start("onnxruntime".into(), kind, command)?);
        }
    }
    // The first images find memory cold, and a peer quantizes.
    for contestant in &mut contestants {
        contestant.run(args.images)?;
    }
    for round in 0..args.rounds {
        eprintln!("round {}/{}", round + 1, args.rounds);
        for contestant in &mut contestants {
            let seconds = contestant.run(args.images)?;
            contestant.rates.push(f64::from(args.images) / seconds);
        }
    }
    let mut ratios = Vec::new();
    for of in contestants.iter().filter(|contestant| contestant.name == "lowbit") {
        for to in contestants.iter().filter(|contestant| contestant.name != "lowbit") {
            let rounds = of.rates.iter().zip(&to.rates).map(|(of, to)| of / to);
            ratios.push(Ratio { of: of.label(), to: to.label(), ratio: median(sorted(rounds.collect())) });
        }
    }
    let report = Report {
        origin: Origin::here(),
        machine: machine(),
        network: args.network.clone(),
        threads: args.threads,
        rounds: args.rounds,
        without: args.without.names(),
        entries: contestants.into_iter().map(Contestant::finish).collect::<anyhow::Result<_>>()?,
        ratios,
    };
    show(&report);
    if args.json {
        print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

fn show(report: &Report) {
    eprintln!("\n{}, one image at a time, {} threads, {}\n", report.network, report.threads, report.machine);
    for Entry { name, bits, images_per_second, range: [low, high], peak_bytes, .. } in &report.entries {
        let milliseconds = |rate: f64| 1e3 / rate;
        eprintln!(
            "{name:<12} {bits:<5} {:>8.2} ms ({:.2} to {:.2}), {} MiB",
            milliseconds(*images_per_second),
            milliseconds(*high),
            milliseconds(*low),
            peak_bytes / (1 << 20)
        );
    }
    eprintln!();
    for Ratio { of, to, ratio } in &report.ratios {
        eprintln!("{of} is {ratio:.2} times as fast as {to}");
    }
}
