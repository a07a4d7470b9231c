//! `cargo xtask bench step`: training steps, ours and those of peers, in turns.

use std::process::Command;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::origin::Origin;
use super::without::Without;
use super::{Contestant, Entry, Workload, build, machine, median, peer_script, sorted, virtual_environment};
use crate::output::print;

/// What `cargo xtask bench step` is asked for.
#[derive(Args)]
pub struct StepArgs {
    /// Network and input
    #[arg(long, value_enum, default_value_t = Workload::Preresnet20)]
    network: Workload,

    /// Images of a step [default: those of the network]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Option<u32>,

    /// Precisions, fp32 or as w2a2
    #[arg(long, value_delimiter = ',', default_value = "fp32,w4a4,w2a2")]
    bits: Vec<String>,

    /// Backends
    #[arg(long, value_delimiter = ',', default_value = "flex")]
    device: Vec<String>,

    /// Arithmetic of our convolutions: each is an entry of its own
    #[arg(long, value_enum, value_delimiter = ',', default_value = "fp32")]
    compute: Vec<Compute>,

    /// Bits of the gradients of our quantized layers, 1 to 8 or fp32: each is an entry of its own
    #[arg(long, value_parser = GradBits::parse, value_delimiter = ',', default_value = "fp32")]
    grad_bits: Vec<GradBits>,

    /// Other implementations beside ours: PyTorch, in full precision and at the same bits; Brevitas, at the same bits
    #[arg(long = "peer", value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,

    /// How PyTorch runs: each is an entry of its own
    #[arg(long, value_enum, value_delimiter = ',', requires = "peers", default_values_t = Way::ALL)]
    ways: Vec<Way>,

    /// Where the peer runs [default: on the GPU if only wgpu is timed, else on the processor]
    #[arg(long, value_enum, requires = "peers")]
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

    #[command(flatten)]
    without: Without,

    /// End with one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// The arithmetic of our convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Compute {
    Fp32,
    /// What is multiplied and has no codes is rounded to bf16
    Bf16,
}

impl Compute {
    /// What the program calls it.
    fn argument(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }
}

/// How many bits gradients have; `None` in full precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct GradBits(Option<u32>);

impl GradBits {
    fn parse(text: &str) -> Result<Self, String> {
        match (text, text.parse()) {
            ("fp32", _) => Ok(Self(None)),
            (_, Ok(bits @ 1..=8)) => Ok(Self(Some(bits))),
            _ => Err("expected 1 to 8, or fp32".into()),
        }
    }
}

/// What tells our entries on a device and with the same bits from each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ours {
    compute: Compute,
    grad_bits: GradBits,
}

impl Ours {
    /// The entries for layers of `bits`. Without quantized layers no gradient is quantized.
    fn entries(computes: &[Compute], grad_bits: &[GradBits], bits: &str) -> Vec<Self> {
        let of = |&compute| grad_bits.iter().map(move |&grad_bits| Self { compute, grad_bits });
        let is_there = |entry: &Self| bits != "fp32" || entry.grad_bits.0.is_none();
        computes.iter().flat_map(of).filter(is_there).collect()
    }

    /// The name of the entry on a device.
    fn name(self, device: &str) -> String {
        let compute = if self.compute == Compute::Bf16 { " bf16" } else { "" };
        let gradients = self.grad_bits.0.map_or(String::new(), |bits| format!(" g{bits}"));
        format!("lowbit {device}{compute}{gradients}")
    }

    /// What the program is told after the device.
    fn arguments(self) -> Vec<String> {
        let grad_bits = self.grad_bits.0.map(|bits| bits.to_string());
        [self.compute.argument().to_string()].into_iter().chain(grad_bits).collect()
    }
}

/// Another implementation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    Torch,
    /// The quantized layers that users of PyTorch train with; they run eagerly
    Brevitas,
}

/// How PyTorch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Way {
    /// One operation after the other
    Eager,
    /// The same with TF32 in what is multiplied on a GPU
    Tf32,
    /// `torch.compile`
    Compile,
    /// Autocast to bf16
    Bf16,
    /// Both
    Bf16Compile,
}

impl Way {
    /// All that differ on a processor.
    const ALL: [Self; 4] = [Self::Eager, Self::Compile, Self::Bf16, Self::Bf16Compile];

    /// Whether it compiles the network before the first step.
    pub(super) fn compiles(self) -> bool {
        matches!(self, Self::Compile | Self::Bf16Compile)
    }

    /// The name of the entry.
    pub(super) fn entry(self) -> &'static str {
        match self {
            Self::Eager => "torch",
            Self::Tf32 => "torch tf32",
            Self::Compile => "torch compile",
            Self::Bf16 => "torch bf16",
            Self::Bf16Compile => "torch bf16 compile",
        }
    }

    /// What `step.py` calls it.
    pub(super) fn argument(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Tf32 => "tf32",
            Self::Compile => "compile",
            Self::Bf16 => "bf16",
            Self::Bf16Compile => "bf16-compile",
        }
    }
}

/// Where another implementation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PeerDevice {
    Cpu,
    Cuda,
}

impl PeerDevice {
    /// That of `asked_for`, or the one that `devices` of ours compare with.
    fn choose(asked_for: Option<Self>, devices: &[String]) -> Self {
        let is_gpu = !devices.is_empty() && devices.iter().all(|device| device == "wgpu");
        asked_for.unwrap_or(if is_gpu { Self::Cuda } else { Self::Cpu })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
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
    batch: u32,
    machine: String,
    threads: usize,
    rounds: u32,
    /// Instruction sets that were left out.
    without: Vec<String>,
    entries: Vec<Entry>,
    ratios: Vec<Ratio>,
}

pub fn run(args: &StepArgs) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let has_gradients = args.grad_bits.iter().any(|grad_bits| grad_bits.0.is_none());
    anyhow::ensure!(
        has_gradients || args.bits.iter().any(|bits| bits != "fp32"),
        "layers in fp32 have gradients in fp32: add --bits w2a2, or fp32 to --grad-bits"
    );
    let batch = args.batch.unwrap_or(args.network.batch());
    let network = format!("{}:{batch}", args.network.name());
    let mut contestants = Vec::new();
    for device in &args.device {
        let program = build(device)?;
        for bits in &args.bits {
            for ours in Ours::entries(&args.compute, &args.grad_bits, bits) {
                let mut command = Command::new(&program);
                command.args([&network, bits, device]).args(ours.arguments());
                command.env("RAYON_NUM_THREADS", threads.to_string());
                args.without.tell(&mut command);
                contestants.push(Contestant::start(ours.name(device), bits, command)?);
            }
        }
    }
    // What PyTorch compiles depends on the instruction sets, which its own cache does not tell apart.
    let compiled = tempfile::tempdir().context("failed to make a folder")?;
    if !args.peers.is_empty() {
        let python = args.python.clone().map_or_else(virtual_environment, Ok)?;
        let device = PeerDevice::choose(args.peer_device, &args.device).name();
        for bits in &args.bits {
            for (name, way) in peer_entries(&args.peers, &args.ways, bits) {
                let mut command = Command::new(&python);
                let threads = threads.to_string();
                command.arg(peer_script("step.py")).args([&network, bits, &threads, device, way]);
                args.without.tell(&mut command);
                command.env("TORCHINDUCTOR_CACHE_DIR", compiled.path().join(format!("{bits}-{way}")));
                contestants.push(Contestant::start(name.into(), bits, command)?);
            }
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
            let images = f64::from(args.steps * batch);
            contestant.rates.push(images / seconds);
        }
    }
    let report = Report {
        origin: Origin::here(),
        network: args.network.name(),
        batch,
        machine: machine(),
        threads,
        rounds: args.rounds,
        without: args.without.names(),
        ratios: ratios(&contestants),
        entries: contestants.into_iter().map(Contestant::finish).collect::<anyhow::Result<_>>()?,
    };
    show(&report);
    if args.json {
        print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

/// Names of the entries of peers at these bits, and what `step.py` calls them. Brevitas has no full precision of its own.
fn peer_entries(peers: &[Peer], ways: &[Way], bits: &str) -> Vec<(&'static str, &'static str)> {
    let mut entries = Vec::new();
    if peers.contains(&Peer::Torch) {
        entries.extend(ways.iter().map(|way| (way.entry(), way.argument())));
    }
    if peers.contains(&Peer::Brevitas) && bits != "fp32" {
        entries.push(("brevitas", "brevitas"));
    }
    entries
}

/// Of every contestant of ours to each peer at the same bits and in full precision, and of every contestant to its own full precision.
fn ratios(contestants: &[Contestant]) -> Vec<Ratio> {
    let mut ratios = Vec::new();
    for of in contestants {
        for to in contestants {
            let same_bits = to.bits == of.bits;
            let is_ours = |contestant: &Contestant| contestant.name.starts_with("lowbit");
            let is_peer = is_ours(of) && !is_ours(to) && (same_bits || to.bits == "fp32");
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

/// What each side says of its instruction sets, said once where several entries say the same.
fn instructions(entries: &[Entry]) -> Vec<(&str, &str)> {
    let mut said: Vec<(&str, &str)> = Vec::new();
    for Entry { name, instructions, .. } in entries {
        let side = name.split(' ').next().unwrap_or_default();
        if !instructions.is_empty() && !said.contains(&(side, instructions)) {
            said.push((side, instructions));
        }
    }
    said
}

fn show(report: &Report) {
    eprintln!(
        "\n{}, {} threads each, {} rounds, {}\n",
        report.network, report.threads, report.rounds, report.machine
    );
    eprintln!("{:<18} {:<6} {:>9} {:>19} {:>9}", "", "bits", "images/s", "range", "peak MiB");
    for Entry { name, bits, images_per_second, range: [low, high], peak_bytes, .. } in &report.entries {
        let decimals = if *images_per_second < 100.0 { 1 } else { 0 };
        let range = format!("{low:.decimals$} to {high:.decimals$}");
        let mebibytes = peak_bytes / (1 << 20);
        eprintln!("{name:<18} {bits:<6} {images_per_second:>9.decimals$} {range:>19} {mebibytes:>9}");
    }
    eprintln!();
    for (name, instructions) in instructions(&report.entries) {
        eprintln!("{name} computes by {instructions}");
    }
    eprintln!();
    for Entry { name, bits, launches, kernel_seconds, .. } in &report.entries {
        if let (Some(launches), Some(seconds)) = (launches, kernel_seconds) {
            eprintln!("{name} {bits}: {launches} launches a step, {:.2} ms of kernels", seconds * 1e3);
        }
    }
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
    fn each_arithmetic_of_ours_is_an_entry() {
        let grad_bits = ["fp32", "8"].map(|bits| GradBits::parse(bits).unwrap());
        let names = |bits| -> Vec<String> {
            let entries = Ours::entries(Compute::value_variants(), &grad_bits, bits);
            entries.into_iter().map(|ours| ours.name("flex")).collect()
        };
        let all = ["lowbit flex", "lowbit flex g8", "lowbit flex bf16", "lowbit flex bf16 g8"];
        assert_eq!(names("w2a2"), all);
        assert_eq!(names("fp32"), ["lowbit flex", "lowbit flex bf16"]);
        let ours = Ours { compute: Compute::Fp32, grad_bits: grad_bits[1] };
        assert_eq!(ours.arguments(), ["fp32", "8"]);
        assert!(["0", "9", "g8", ""].iter().all(|text| GradBits::parse(text).is_err()));
    }

    #[test]
    fn each_way_of_a_peer_is_an_entry() {
        let names = |peers: &[Peer], ways: &[Way], bits| -> Vec<&str> {
            peer_entries(peers, ways, bits).into_iter().map(|(name, _)| name).collect()
        };
        let all = ["torch", "torch compile", "torch bf16", "torch bf16 compile", "brevitas"];
        assert_eq!(names(&[Peer::Torch, Peer::Brevitas], &Way::ALL, "w2a2"), all);
        assert_eq!(names(&[Peer::Torch, Peer::Brevitas], &Way::ALL, "fp32"), all[..4]);
        assert_eq!(names(&[Peer::Brevitas], &Way::ALL, "w2a2"), ["brevitas"]);
        assert_eq!(names(&[Peer::Torch], &[Way::Bf16], "fp32"), ["torch bf16"]);
    }
}
