//! `cargo xtask bench backends`: training steps of several networks on every backend, in one table.

use std::fmt;
use std::process::Command;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::origin::Origin;
use super::{Contestant, Entry, Workload, build, features, machine};
use crate::output::print;

/// The networks of the table. A further one is a line.
const NETWORKS: [Workload; 3] = [Workload::Preresnet8Digits, Workload::Preresnet20, Workload::Resnet18];

/// What `cargo xtask bench backends` is asked for.
#[derive(Args)]
pub struct BackendsArgs {
    /// Networks and their inputs [default: all of the table]
    #[arg(long, value_enum, value_delimiter = ',')]
    network: Vec<Workload>,

    /// Precisions, fp32 or as w2a2
    #[arg(long, value_delimiter = ',', default_value = "fp32,w2a2")]
    bits: Vec<String>,

    /// Backends
    #[arg(long, value_delimiter = ',', default_value = "flex,ndarray,wgpu")]
    device: Vec<String>,

    /// Rounds; each backend and precision runs a few steps in each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Steps in a round
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,

    /// Leave out, and say so, what takes longer for its first step, as a large network does on a software driver
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    step_limit: u64,

    /// End with one JSON object on stdout
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    memory_bytes: u64,
    system: String,
    rustc: String,
    /// As the GPU backend names it.
    gpu: Option<String>,
}

/// A line of the table.
#[derive(Debug, Serialize)]
struct Row {
    network: &'static str,
    batch: u32,
    device: String,
    bits: String,
    /// What cargo is told beside the defaults.
    features: String,
    /// Median over the rounds.
    seconds_per_step: f64,
    images_per_second: f64,
    /// Of images per second: smallest and largest round.
    range: [f64; 2],
    /// Largest resident size of the process.
    peak_bytes: u64,
    /// Reserved on the device at the end, if it has memory of its own to speak of.
    device_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Skipped {
    network: &'static str,
    device: String,
    bits: String,
    reason: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, device, bits, reason } = self;
        write!(f, "skipped: {network} {bits} on {device}: {reason}")
    }
}

#[derive(Debug, Serialize)]
struct Report {
    origin: Origin,
    machine: Machine,
    rounds: u32,
    steps: u32,
    rows: Vec<Row>,
    skipped: Vec<Skipped>,
}

pub fn run(args: &BackendsArgs) -> anyhow::Result<()> {
    let programs: Vec<_> =
        args.device.iter().map(|device| Ok((device, build(device)?))).collect::<anyhow::Result<_>>()?;
    let networks = if args.network.is_empty() { NETWORKS.to_vec() } else { args.network.clone() };
    let (mut rows, mut skipped, mut gpu) = (Vec::new(), Vec::new(), None);
    for network in networks {
        let mut contestants = Vec::new();
        let mut skip = |device: &str, bits: &str, error: &anyhow::Error| {
            let (device, bits) = (device.into(), bits.into());
            let skip = Skipped { network: network.name(), device, bits, reason: format!("{error:#}") };
            eprintln!("{skip}");
            skipped.push(skip);
        };
        for (device, program) in &programs {
            for bits in &args.bits {
                let mut command = Command::new(program);
                command.args([network.name(), bits, device]);
                // The first step finds memory and instructions cold, and kernels of a GPU not compiled.
                let started =
                    Contestant::start((*device).clone(), bits, command).and_then(|mut contestant| {
                        contestant.try_step(Duration::from_secs(args.step_limit))?;
                        Ok(contestant)
                    });
                match started {
                    Ok(contestant) => contestants.push(contestant),
                    Err(error) => skip(device, bits, &error),
                }
            }
        }
        for round in 0..args.rounds {
            eprintln!("{}: round {}/{}", network.name(), round + 1, args.rounds);
            // What breaks down takes no other's figures with it.
            contestants.retain_mut(|contestant| match contestant.run(args.steps) {
                Ok(seconds) => {
                    contestant.rates.push(f64::from(args.steps * network.batch()) / seconds);
                    true
                }
                Err(error) => {
                    skip(&contestant.name, &contestant.bits, &error);
                    false
                }
            });
        }
        for contestant in contestants {
            let (Entry { name, bits, images_per_second, range, peak_bytes, .. }, line) =
                contestant.finish_with_line()?;
            // After the peak: bytes on the device, and the device's name.
            let mut rest = line.trim().splitn(3, ' ').skip(1);
            let device_bytes = rest.next().and_then(|bytes| bytes.parse().ok());
            gpu = gpu.or(rest.next().map(String::from));
            rows.push(Row {
                network: network.name(),
                batch: network.batch(),
                features: features(&name).join(" "),
                device: name,
                bits,
                seconds_per_step: f64::from(network.batch()) / images_per_second,
                images_per_second,
                range,
                peak_bytes,
                device_bytes,
            });
        }
    }
    let machine = Machine {
        processor: machine(),
        memory_bytes: memory_bytes(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        rustc: rustc(),
        gpu,
    };
    let report =
        Report { origin: Origin::here(), machine, rounds: args.rounds, steps: args.steps, rows, skipped };
    show(&report);
    if args.json {
        print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

/// Memory of the machine, 0 where the system does not tell.
fn memory_bytes() -> u64 {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or("unknown rustc".into(), |output| String::from_utf8_lossy(&output.stdout).trim().into())
}

/// As a table that the documentation can take over.
fn show(report: &Report) {
    let Machine { processor, memory_bytes, system, rustc, gpu } = &report.machine;
    let gpu = gpu.as_deref().unwrap_or("no GPU");
    let memory = *memory_bytes as f64 / f64::from(1 << 30);
    eprintln!("\n{processor}, {memory:.0} GiB, {system}, {rustc}; GPU: {gpu}");
    eprintln!("medians of {} rounds of {} steps\n", report.rounds, report.steps);
    eprintln!(
        "| network, batch | device | bits | ms a step | images/s | range | peak memory, MiB | on the device, MiB | cargo |"
    );
    eprintln!("|---|---|---|---|---|---|---|---|---|");
    let mebibytes = |bytes: u64| bytes / (1 << 20);
    for row in &report.rows {
        let Row { network, batch, device, bits, features, images_per_second, range: [low, high], .. } = row;
        let on_device = row.device_bytes.map_or("".into(), |bytes| mebibytes(bytes).to_string());
        let features = if features.is_empty() { "default" } else { features };
        eprintln!(
            "| {network}, {batch} | {device} | {bits} | {:.0} | {images_per_second:.1} | {low:.1} to {high:.1} | {} | {on_device} | {features} |",
            row.seconds_per_step * 1e3,
            mebibytes(row.peak_bytes),
        );
    }
    for skip in &report.skipped {
        eprintln!("{skip}");
    }
}
