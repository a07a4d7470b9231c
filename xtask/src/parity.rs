//! `cargo xtask parity`: the parity suite with wgpu compiled in, and a training on wgpu as a user starts it.

use std::collections::BTreeMap;
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

/// wgpu and the backend that it is compared with. ndarray would take minutes to compile once more; the runs that go on
/// from it are those that the tests with the default features have left.
pub const FEATURES: [&str; 3] = ["--no-default-features", "--features", "wgpu,flex"];

/// Test binaries, and which of their tests: what the default features' tests have not run.
const SUITES: [(&str, &[&str]); 2] = [("parity", &["wgpu::", "checkpoints_move"]), ("device", &[])];

/// Groups of cases that wgpu must have run.
const GROUPS: [&str; 4] = ["quantizers", "layers", "models", "strategies"];

pub fn run(args: &ParityArgs) -> anyhow::Result<()> {
    if args.train_only {
        return train();
    }
    let mut lines = Vec::new();
    for (suite, tests) in SUITES {
        lines.extend(test(suite, tests, &[])?);
    }
    if args.slow {
        lines.extend(test("parity", &["slow"], &["--ignored"])?);
    }
    let n_cases = counted(&lines)?;
    let groups = GROUPS.map(|group| n_cases.get(group).map_or("none".into(), u64::to_string));
    println!(
        "== cases on wgpu: {}",
        GROUPS.iter().zip(groups).map(|(group, n)| format!("{n} {group}")).collect::<Vec<_>>().join(", ")
    );
    train()
}

/// Runs tests with wgpu, in the same build as [`train`]; returns what they print.
fn test(suite: &str, tests: &[&str], flags: &[&str]) -> anyhow::Result<Vec<String>> {
    println!("== {suite}");
    let mut command = cargo(&["test", "-p", "lowbit-tests"]);
    command.args(FEATURES).args(["--test", suite, "--"]);
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
    if let Some(line) = lines.iter().find(|line| line.contains("wgpu skipped: ")) {
        bail!("{line}: install a Vulkan driver, e.g. Debian's mesa-vulkan-drivers for a software one");
    }
    let mut n_cases = BTreeMap::new();
    for line in lines {
        // "parity: wgpu, layers: 87 cases of 87 in ..."
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
                       parity: wgpu, layers: 87 cases of 87 in 1.0 s, 0 failed\n\
                       test wgpu::models ... ok\n\
                       parity: wgpu, models: 55 cases of 55 in 1.0 s, 0 failed\n\
                       parity: wgpu, strategies: 16 cases of 16 in 1.0 s, 0 failed\n";

    #[test]
    fn cases_are_counted() {
        let n_cases = counted(&lines(ALL)).unwrap();
        assert_eq!(n_cases.values().sum::<u64>(), 330 + 87 + 55 + 16);
    }

    #[test]
    fn a_skipped_backend_or_group_is_an_error() {
        let skipped = format!("{ALL}parity: wgpu skipped: no adapter\n");
        assert!(counted(&lines(&skipped)).unwrap_err().to_string().contains("no adapter"));
        for replacement in ["parity: wgpu, layers: 0 cases of 87", "parity: flex, layers: 87 cases of 87"] {
            let text = ALL.replace("parity: wgpu, layers: 87 cases of 87", replacement);
            assert!(counted(&lines(&text)).unwrap_err().to_string().contains("layers"), "{text}");
        }
    }
}
