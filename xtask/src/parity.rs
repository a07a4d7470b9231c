//! `cargo xtask parity`: the parity suite with wgpu compiled in, and a training on wgpu as a user starts it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::output::print;
use crate::{cargo, workspace};

/// What `cargo xtask parity` is asked for.
#[derive(Args, Default)]
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

/// With wgpu, burn's CPU backend is compiled once more. Optimized that takes minutes; what is tested here is small.
const LIGHT: [&str; 2] = ["--config", "profile.dev.package.burn-flex.opt-level=0"];

/// Test binaries, and which of their tests: what the default features' tests have not run.
const SUITES: [(&str, &[&str]); 2] = [("parity", &["wgpu::", ROUND_TRIPS]), ("device", &[])];

/// Groups of cases that wgpu must have run.
const GROUPS: [&str; 4] = ["quantizers", "layers", "models", "strategies"];

/// The tests that begin and end runs on different backends.
const ROUND_TRIPS: &str = "checkpoints_move";

/// Pairs of backends between which a run must have moved.
const N_ROUND_TRIPS: usize = 6;

/// Where the tests leave what they have done, below cargo's folder for them: runs that other builds' tests go on with, runs
/// that moved, and the number of cases that a group had.
const DONE: &str = "tmp/parity";

pub fn run(args: &ParityArgs) -> anyhow::Result<()> {
    if args.train_only {
        return train();
    }
    let done = workspace::target_dir()?.join(DONE);
    match fs::remove_dir_all(&done) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("failed to remove {}", done.display()));
        }
        _ => {}
    }
    test("parity", &[ROUND_TRIPS], &[], &[])?;
    for (suite, tests) in SUITES {
        test(suite, tests, &FEATURES, &[])?;
    }
    if args.slow {
        test("parity", &["slow"], &FEATURES, &["--ignored"])?;
    }
    test("parity", &[ROUND_TRIPS], &[], &[])?;
    let mut cases = Vec::new();
    for group in GROUPS {
        let path = done.join("cases").join(format!("wgpu-{group}"));
        let text = fs::read_to_string(&path).with_context(|| format!("wgpu ran no case of {group}"))?;
        let n_cases = n_cases(&text).with_context(|| format!("wgpu ran no case of {group}: {text:?}"))?;
        cases.push(format!("{n_cases} {group}"));
    }
    let n_round_trips = moved_runs(&done.join("round-trips"))?;
    if n_round_trips != N_ROUND_TRIPS {
        bail!("runs have moved between {n_round_trips} of {N_ROUND_TRIPS} pairs of backends");
    }
    print(&format!("== cases on wgpu: {}; runs moved between backends: {n_round_trips}", cases.join(", ")))?;
    train()
}

/// The number of cases that a test left, which is not 0.
fn n_cases(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|&n_cases| n_cases > 0)
}

/// Runs in `directory` that have ended.
fn moved_runs(directory: &Path) -> anyhow::Result<usize> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("failed to read {}", directory.display()))?;
    let mut n_runs = 0;
    for entry in entries {
        n_runs += usize::from(entry?.path().join("result.json").is_file());
    }
    Ok(n_runs)
}

/// Runs tests, of which none may be skipped.
fn test(suite: &str, tests: &[&str], features: &[&str], flags: &[&str]) -> anyhow::Result<()> {
    let mut command = match features {
        // With the other crates, whose build it shares.
        [] => cargo(&["test", "--locked", "--workspace"]),
        _ => {
            let mut command = cargo(&["test", "--locked", "-p", "lowbit-tests"]);
            command.args(LIGHT);
            command
        }
    };
    command.args(features).args(["--test", suite, "--", "--nocapture"]).args(flags).args(tests);
    command.env("LOWBIT_NO_SKIP", "1");
    crate::run(&format!("{suite} {}", features.last().unwrap_or(&"with the default features")), command)
}

/// A training of one epoch on wgpu.
fn train() -> anyhow::Result<()> {
    let out = workspace::target_dir()?.join(format!("wgpu-smoke-{}", std::process::id()));
    let mut train: Command = cargo(&["run", "--locked", "-p", "lowbit"]);
    train.args(LIGHT).args(FEATURES).args(["--", "train", "--device", "wgpu", "--out"]);
    train.arg(&out);
    for setting in ["train.epochs=1", "data.train_limit=256", "data.test_limit=64"] {
        train.args(["--set", setting]);
    }
    crate::run("training on wgpu", train)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_case_is_none() {
        assert_eq!(["12", "12\n", "0", "", "twelve"].map(n_cases), [Some(12), Some(12), None, None, None]);
    }
}
