//! `cargo xtask bench ops`: times single operations, ours and a peer's, in turns, beside what the machine can do.

use std::io::Write;
use std::process::Command;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::origin::Origin;
use super::without::Without;
use super::{Contestant, machine, median, peer_script, sorted, virtual_environment};
use crate::output::print;
use crate::workspace;

/// What `cargo xtask bench ops` is asked for.
#[derive(Args)]
pub struct OpsArgs {
    /// Another implementation beside ours: PyTorch, in both of its layouts
    #[arg(long, value_enum)]
    peer: Option<Peer>,

    /// Python that has the peer [default: a virtual environment in target/peers, made if it is missing]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<String>,

    /// Threads of each contestant [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Rounds; each contestant runs an operation for a few hundredths of a second in each
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Only operations whose line of the table has this text, as in "conv2d 16x64" or "weight gradient"
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,

    #[command(flatten)]
    without: Without,

    /// End with one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Another implementation.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Peer {
    Torch,
}

/// Seconds that a contestant is to spend on an operation in a round.
const ROUND: f64 = 0.03;

/// Layouts of the peer's tensors, which the same operation may prefer either of.
const LAYOUTS: [&str; 2] = ["contiguous", "channels_last"];

/// An operation as our program lists it.
#[derive(Deserialize)]
struct Listed {
    name: String,
    pass: String,
    work: Work,
    /// What the contestants are sent.
    case: Value,
    /// `None` of what is itself a limit of the machine.
    limit: Option<Limit>,
}

/// The same kind of work as fast as the machine does it.
#[derive(Deserialize)]
struct Limit {
    work: Work,
    case: Value,
}

/// How much there is to do.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Work {
    Flops(f64),
    Bytes(f64),
}

impl Work {
    fn amount(self) -> f64 {
        match self {
            Self::Flops(amount) | Self::Bytes(amount) => amount,
        }
    }
}

/// What an operation took.
#[derive(Serialize)]
struct Entry {
    name: String,
    pass: String,
    /// Median over the rounds.
    milliseconds: f64,
    gflops_per_second: Option<f64>,
    gigabytes_per_second: Option<f64>,
    /// Of the machine's speed at this kind of work: the median of the rounds' ratios.
    share_of_limit: Option<f64>,
    peers: Vec<PeerEntry>,
}

/// What a peer took for the same.
#[derive(Serialize)]
struct PeerEntry {
    name: String,
    milliseconds: f64,
    /// How many times as fast ours is: the median of the rounds' ratios.
    ratio: f64,
    /// Smallest and largest round.
    range: [f64; 2],
}

#[derive(Serialize)]
struct Report {
    origin: Origin,
    machine: String,
    threads: usize,
    rounds: u32,
    /// Instruction sets that were left out.
    without: Vec<String>,
    entries: Vec<Entry>,
}

pub fn run(args: &OpsArgs) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let program = workspace::build("ops", &["-p", "lowbit-tests", "--example", "ops"])?;
    let start = || {
        let mut command = Command::new(&program);
        command.env("RAYON_NUM_THREADS", threads.to_string());
        args.without.tell(&mut command);
        Contestant::start("lowbit".into(), "", command)
    };
    let mut ours = start()?;
    // A second process, so that ours keeps its operands.
    let mut limits = start()?;
    let mut peers = Vec::new();
    if let Some(Peer::Torch) = args.peer {
        let python = match &args.python {
            Some(python) => python.clone(),
            None => virtual_environment()?,
        };
        for layout in LAYOUTS {
            let mut command = Command::new(&python);
            command.arg(peer_script("ops.py")).args([&threads.to_string(), layout]);
            args.without.tell(&mut command);
            peers.push(Contestant::start("torch".into(), layout, command)?);
        }
    }
    let list = request(&mut ours, "list")?;
    let list: Vec<Listed> = serde_json::from_str(&list).context("failed to read the list of operations")?;
    let is_chosen = |listed: &Listed| match &args.filter {
        Some(text) => listed.limit.is_none() || format!("{}, {}", listed.name, listed.pass).contains(text),
        None => true,
    };
    let chosen: Vec<Listed> = list.into_iter().filter(is_chosen).collect();
    if chosen.iter().all(|listed| listed.limit.is_none()) {
        bail!("no operation has the text {:?}", args.filter.as_deref().unwrap_or_default());
    }
    let mut entries = Vec::new();
    for (idx, listed) in chosen.iter().enumerate() {
        eprintln!("{}/{}: {}, {}", idx + 1, chosen.len(), listed.name, listed.pass);
        entries.push(time(listed, args.rounds, &mut ours, &mut limits, &mut peers)?);
    }
    for Contestant { mut process, requests, .. } in peers.into_iter().chain([ours, limits]) {
        drop(requests);
        process.wait()?;
    }
    let report = Report {
        origin: Origin::here(),
        machine: machine(),
        threads,
        rounds: args.rounds,
        without: args.without.names(),
        entries,
    };
    show(&report);
    if args.json {
        print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

fn request(contestant: &mut Contestant, request: &str) -> anyhow::Result<String> {
    writeln!(contestant.requests, "{request}")?;
    contestant.requests.flush()?;
    contestant.answer()
}

/// Seconds of the middle one of so many repetitions.
fn seconds_of(contestant: &mut Contestant, case: &Value, repetitions: u32) -> anyhow::Result<f64> {
    let answer = request(contestant, &json!({ "case": case, "repetitions": repetitions }).to_string())?;
    answer.parse().with_context(|| format!("{} answered {answer:?}", contestant.label()))
}

/// A contestant, what it computes, how often in a round, and the seconds of each time by round.
struct Turn<'a> {
    contestant: &'a mut Contestant,
    case: &'a Value,
    repetitions: u32,
    times: Vec<f64>,
}

impl<'a> Turn<'a> {
    /// Has it computed once, which finds memory cold, then as often as fits a round.
    fn new(contestant: &'a mut Contestant, case: &'a Value) -> anyhow::Result<Self> {
        seconds_of(contestant, case, 1)?;
        let once = seconds_of(contestant, case, 1)?;
        let repetitions = (ROUND / once).ceil().clamp(1.0, 10_000.0) as u32;
        Ok(Self { contestant, case, repetitions, times: Vec::new() })
    }

    fn take(&mut self) -> anyhow::Result<()> {
        self.times.push(seconds_of(self.contestant, self.case, self.repetitions)?);
        Ok(())
    }

    fn median(&self) -> f64 {
        median(sorted(self.times.clone()))
    }

    /// How many times as long it took as another one, by round, sorted.
    fn ratios(&self, other: &Self) -> Vec<f64> {
        sorted(self.times.iter().zip(&other.times).map(|(this, other)| this / other).collect())
    }
}

/// Times one operation.
fn time(
    listed: &Listed,
    rounds: u32,
    ours: &mut Contestant,
    limits: &mut Contestant,
    peers: &mut [Contestant],
) -> anyhow::Result<Entry> {
    let mut turns = vec![Turn::new(ours, &listed.case)?];
    if let Some(limit) = &listed.limit {
        turns.push(Turn::new(limits, &limit.case)?);
        for peer in peers {
            turns.push(Turn::new(peer, &listed.case)?);
        }
    }
    for _ in 0..rounds {
        turns.iter_mut().try_for_each(Turn::take)?;
    }
    let ours = &turns[0];
    let seconds = ours.median();
    let speed = listed.work.amount() / seconds / 1e9;
    let (gflops_per_second, gigabytes_per_second) = match listed.work {
        Work::Flops(_) => (Some(speed), None),
        Work::Bytes(_) => (None, Some(speed)),
    };
    let share_of_limit = listed.limit.as_ref().map(|limit| {
        let more_work = listed.work.amount() / limit.work.amount();
        more_work * median(turns[1].ratios(ours))
    });
    let peers = turns.iter().skip(2).map(|turn| {
        let ratios = turn.ratios(ours);
        PeerEntry {
            name: turn.contestant.label(),
            milliseconds: turn.median() * 1e3,
            range: [ratios[0], ratios[ratios.len() - 1]],
            ratio: median(ratios),
        }
    });
    Ok(Entry {
        name: listed.name.clone(),
        pass: listed.pass.clone(),
        milliseconds: seconds * 1e3,
        gflops_per_second,
        gigabytes_per_second,
        share_of_limit,
        peers: peers.collect(),
    })
}

fn show(report: &Report) {
    eprintln!(
        "\r{}, {} threads each, {} rounds; milliseconds\n",
        report.machine, report.threads, report.rounds
    );
    let with_peers = report.entries.iter().any(|entry| !entry.peers.is_empty());
    eprint!("{:<44} {:<15} {:>8}", "", "", "lowbit");
    if with_peers {
        eprint!(" {:>8} {:>10} {:>6} {:>14}", "torch", "torch nhwc", "ratio", "range");
    }
    eprintln!(" {:>12} {:>6}", "speed", "limit");
    for entry in &report.entries {
        eprint!("{:<44} {:<15} {:>8.3}", entry.name, entry.pass, entry.milliseconds);
        match entry.peers.as_slice() {
            [contiguous, channels_last] => {
                // To the peer's better layout.
                let better = if contiguous.ratio < channels_last.ratio { contiguous } else { channels_last };
                let PeerEntry { ratio, range: [low, high], .. } = better;
                let [contiguous, channels_last] = [contiguous, channels_last].map(|peer| peer.milliseconds);
                let range = format!("{low:.2} to {high:.2}");
                eprint!(" {contiguous:>8.3} {channels_last:>10.3} {ratio:>6.2} {range:>14}");
            }
            _ if with_peers => eprint!(" {:>8} {:>10} {:>6} {:>14}", "", "", "", ""),
            _ => {}
        }
        let speed = match (entry.gflops_per_second, entry.gigabytes_per_second) {
            (Some(flops), _) => format!("{flops:.0} GFLOP/s"),
            (None, bytes) => format!("{:.1} GB/s", bytes.unwrap_or(0.0)),
        };
        let share = entry.share_of_limit.map_or_else(String::new, |share| format!("{:.0} %", share * 100.0));
        eprintln!(" {speed:>12} {share:>6}");
    }
    eprintln!();
    if with_peers {
        eprintln!("ratio: how many times as fast as the better of the peer's two layouts");
    }
    eprintln!("limit: share of the speed of multiply-add in registers, or of a copy of as many values");
}
