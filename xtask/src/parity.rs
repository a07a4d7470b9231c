//! `cargo xtask parity`: the parity suite with wgpu compiled in, and a training on wgpu as a user starts it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::Args;

use crate::{cargo, workspace};

/// What `cargo xtask parity` is asked for.
#[derive(Args)]
pub struct ParityArgs {
    /// Only the training on wgpu
    #[arg(long, conflicts_with = "slow")]
    train_only: bool,

    /// Also the tests that take long: a recipe trained on wgpu and on the CPU over three seeds
    #[arg(long)]
    slow: bool,
}

/// wgpu and the backend that it is compared with. ndarray would take minutes to compile once more: the runs that move between
/// the two are begun or ended by the tests with the default features.
pub const FEATURES: [&str; 3] = ["--no-default-features", "--features", "wgpu,flex"];

/// Test binaries, and which of their tests: what the default features' tests have not run.
const SUITES: [(&str, &[&str]); 2] = [("parity", &["wgpu::", ROUND_TRIPS]), ("device", &[])];

/// Groups of cases that wgpu must have run.
const GROUPS: [&str; 4] = ["quantizers", "layers", "models", "strategies"];

/// The tests that begin and end runs on different backends.
const ROUND_TRIPS: &str = "checkpoints_move";

/// Pairs of backends between which a run must have moved.
const N_ROUND_TRIPS: usize = 6;

/// Where the tests leave runs for each other.
const HANDOVER: &str = "parity/handover";

pub fn run(args: &ParityArgs) -> anyhow::Result<()> {
    if args.train_only {
        return train();
    }
    remove_handover()?;
    let mut lines = test("parity", &[ROUND_TRIPS], &[], &[])?;
    for (suite, tests) in SUITES {
        lines.extend(test(suite, tests, &FEATURES, &[])?);
    }
    if args.slow {
        lines.extend(test("parity", &["slow"], &FEATURES, &["--ignored"])?);
    }
    lines.extend(test("parity", &[ROUND_TRIPS], &[], &[])?);
    let n_cases = counted(&lines)?;
    let n_round_trips = round_trips(&lines)?;
    let groups = GROUPS.map(|group| n_cases.get(group).map_or("none".into(), u64::to_string));
    println!(
        "== cases on wgpu: {}; runs moved between backends: {n_round_trips}",
        GROUPS.iter().zip(groups).map(|(group, n)| format!("{n} {group}")).collect::<Vec<_>>().join(", ")
    );
    train()
}

/// Removes the runs that earlier tests have left, which may be those of other code.
fn remove_handover() -> anyhow::Result<()> {
    let path = crate::workspace::target_dir()?.join("tmp").join(HANDOVER);
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("failed to remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs tests; returns what they print.
fn test(suite: &str, tests: &[&str], features: &[&str], flags: &[&str]) -> anyhow::Result<Vec<String>> {
    println!("== {suite} {}", features.last().unwrap_or(&"with the default features"));
    let mut command = match features {
        // With the other crates, whose build it shares.
        [] => cargo(&["test", "--workspace"]),
        _ => cargo(&["test", "-p", "lowbit-tests"]),
    };
    command.args(features).args(["--test", suite, "--"]);
    // What the tests print is shown and kept.
    command.args(["--nocapture"]).args(flags).args(tests).stderr(Stdio::piped());
    let mut process = command.spawn().context("failed to run cargo")?;
    let stderr = process.stderr.take().context("no stderr")?;
    let mut lines = Vec::new();
    for line in BufReader::new(stderr).lines() {
        let line = line?;
        eprintln!("{line}");
        lines.push(line);
    }
    match process.wait()?.success() {
        true => Ok(lines),
        false => bail!("{suite} failed"),
    }
}

/// Cases that wgpu has run, by group.
fn counted(lines: &[String]) -> anyhow::Result<BTreeMap<String, u64>> {
    // Round trips are counted by themselves: the default features cannot do all.
    let is_skip = |line: &&String| line.contains("wgpu skipped: ") && !line.contains("round trip");
    if let Some(line) = lines.iter().find(is_skip) {
        bail!("{line}: install a Vulkan driver, e.g. Debian's mesa-vulkan-drivers for a software one");
    }
    let mut n_cases = BTreeMap::new();
    for line in lines {
        // "parity: wgpu, layers: 123 cases of 123 in ..."
        let Some((group, rest)) = line.strip_prefix("parity: wgpu, ").and_then(|rest| rest.split_once(": "))
        else {
            continue;
        };
        let n = rest
            .split(' ')
            .next()
            .and_then(|n| n.parse().ok())
            .with_context(|| format!("unexpected: {line}"))?;
        n_cases.insert(group.to_string(), n);
    }
    for group in GROUPS {
        if n_cases.get(group).is_none_or(|n| *n == 0) {
            bail!("wgpu ran no case of the group {group}");
        }
    }
    Ok(n_cases)
}

/// Pairs of backends between which a run has moved.
fn round_trips(lines: &[String]) -> anyhow::Result<usize> {
    // "parity: RECIPE on wgpu, then flex; top-1 on ..."
    let pairs: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("parity: ")?.split_once(" on ")?.1.split_once("; top-1 on "))
        .map(|(pair, _)| pair)
        .collect();
    match pairs.len() {
        N_ROUND_TRIPS => Ok(N_ROUND_TRIPS),
        n => bail!("runs have moved between {n} of {N_ROUND_TRIPS} pairs of backends: {pairs:?}"),
    }
}

/// A training of one epoch on wgpu.
fn train() -> anyhow::Result<()> {
    let out = workspace::target_dir()?.join(format!("wgpu-smoke-{}", std::process::id()));
    let mut train: Command = cargo(&["run", "-p", "lowbit"]);
    train.args(FEATURES).args(["--", "train", "--device", "wgpu", "--out"]);
    train.arg(&out);
    for setting in ["train.epochs=1", "data.train_limit=256", "data.test_limit=64"] {
        train.args(["--set", setting]);
    }
    crate::run("training on wgpu", train)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(String::from).collect()
    }

    const ALL: &str = "parity: wgpu, quantizers: 330 cases of 330 in 5.0 s, 0 failed\n\
                       parity: wgpu, layers: 123 cases of 123 in 1.0 s, 0 failed\n\
                       test wgpu::models ... ok\n\
                       parity: wgpu, models: 60 cases of 60 in 1.0 s, 0 failed\n\
                       parity: wgpu, strategies: 16 cases of 16 in 1.0 s, 0 failed\n";

    #[test]
    fn cases_are_counted() {
        let left = "parity: round trip ndarray to wgpu skipped: not compiled in\n";
        let n_cases = counted(&lines(&format!("{left}{ALL}"))).unwrap();
        assert_eq!(n_cases.values().sum::<u64>(), 330 + 123 + 60 + 16);
    }

    #[test]
    fn every_pair_of_backends_is_counted_once() {
        let pairs = ["ndarray, then wgpu", "wgpu, then flex", "flex, then ndarray", "flex, then wgpu"];
        let line = |pair: &str| format!("parity: digits on {pair}; top-1 on flex 0.9, wgpu 0.9\n");
        let mut text: String = pairs.into_iter().chain(pairs).map(line).collect();
        assert!(round_trips(&lines(&text)).unwrap_err().to_string().contains("4 of 6 pairs"));
        text += &["wgpu, then ndarray", "ndarray, then flex"].map(line).concat();
        assert_eq!(round_trips(&lines(&text)).unwrap(), 6);
    }

    #[test]
    fn a_skipped_backend_or_group_is_an_error() {
        let skipped = format!("{ALL}parity: wgpu skipped: no adapter\n");
        assert!(counted(&lines(&skipped)).unwrap_err().to_string().contains("no adapter"));
        for replacement in ["parity: wgpu, layers: 0 cases of 123", "parity: flex, layers: 123 cases of 123"]
        {
            let text = ALL.replace("parity: wgpu, layers: 123 cases of 123", replacement);
            assert!(counted(&lines(&text)).unwrap_err().to_string().contains("layers"), "{text}");
        }
    }
}
