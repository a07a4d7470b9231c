//! `cargo xtask ranks`: trainings of two processes by MPI, as a user starts them, against one process; and one of two that is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::output::print;
use crate::workspace;

/// What `cargo xtask ranks` is asked for.
#[derive(Args)]
pub struct RanksArgs {
    /// What starts the processes: that of the library that the program is built with
    #[arg(long, default_value = "mpirun")]
    launcher: String,

    /// A program with the features mpi and flex, instead of one that is built now
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// Small trainings in which no image knows of another.
const NO_NORM: [&str; 6] = [
    "model={family=\"alexnet\", norm=false, width=0.125}",
    "train.learning_rate=0.01",
    "data.train_limit=128",
    "data.test_limit=300",
    "data.batch_size=32",
    "checkpoint.every_steps=3",
];

/// What is trained: networks beside one another, phases, random parts and noise.
const CASES: [(&str, &[&str]); 2] = [
    (
        "stages",
        &[
            "train.epochs=5",
            "quantization.method=\"lsq\"",
            "strategy.joint={teacher={width=0.25}, students=[{weight_bits=4, act_bits=4}]}",
            "strategy.two_stage=true",
            "strategy.progressive={ladder=[\"fp32\", 4]}",
        ],
    ),
    (
        "stochastic",
        &[
            "train.epochs=2",
            "strategy.joint={}",
            "strategy.stochastic_precision={selector=\"roulette\", unit=\"layer\"}",
            "quantization.grad_bits=4",
        ],
    ),
];

/// A training that takes some seconds, with BatchNorm, running ranges and a moving average.
const LONGER: [&str; 6] = [
    "train.epochs=12",
    "train.ema_decay=0.9",
    "data.train_limit=256",
    "data.test_limit=64",
    "checkpoint.every_steps=3",
    "quantization.first={method=\"minmax\", weight_bits=8, act_bits=8}",
];

/// Time after which a process of the training is killed, one after the other; those after the last are left alone.
const KILLED_AFTER: [Duration; 5] = [
    Duration::from_millis(700),
    Duration::from_millis(1500),
    Duration::from_millis(1130),
    Duration::from_millis(910),
    Duration::from_millis(1310),
];

/// Within this time after one is killed, all have ended.
const ALL_END: Duration = Duration::from_secs(10);

pub fn run(args: &RanksArgs) -> anyhow::Result<()> {
    let program = match &args.program {
        Some(program) => program.canonicalize().context("failed to find the program")?,
        None => build()?,
    };
    check(&program, &args.launcher)
}

/// Builds the program with the whole workspace's features, so that burn is not compiled once more.
fn build() -> anyhow::Result<PathBuf> {
    workspace::build("lowbit", &["--workspace", "--bin", "lowbit", "--features", "lowbit/mpi"])
}

/// Trains with `program` on two processes that `launcher` starts.
fn check(program: &Path, launcher: &str) -> anyhow::Result<()> {
    crate::find(launcher, "apt-get install openmpi-bin libopenmpi-dev libclang-dev")?;
    let started = Instant::now();
    let folder = tempfile::tempdir()?;
    let trial = Trial { program, launcher, folder: folder.path() };
    for (name, options) in CASES {
        let own = [&NO_NORM[..], options].concat();
        let (alone, together) = (format!("{name}-alone"), format!("{name}-together"));
        trial
            .ends_well(&mut trial.train(1, &alone, &[&own[..], &["train.accumulate=2"]].concat()), &alone)?;
        trial.ends_well(&mut trial.train(2, &together, &own), &together)?;
        let [expected, got] = [trial.state(&alone)?, trial.state(&together)?];
        ensure!(
            got == expected,
            "{name}: two processes end with state {got}, one in two parts with {expected}"
        );
        print(&format!("== {name}: two processes end as one in two parts, to the last bit"))?;
    }
    trial.ends_well(&mut trial.train(2, "whole", &LONGER), "whole")?;
    let n_killed = trial.killed_again_and_again("killed")?;
    let [expected, got] = [trial.state("whole")?, trial.state("killed")?];
    ensure!(got == expected, "killed {n_killed} times, it ends with state {got} instead of {expected}");
    print(&format!(
        "== killed {n_killed} times, two processes end as those that were left alone, to the last bit"
    ))?;
    print(&format!("== ranks: {:.0} s", started.elapsed().as_secs_f64()))
}

struct Trial<'a> {
    program: &'a Path,
    launcher: &'a str,
    folder: &'a Path,
}

impl Trial<'_> {
    /// The program on `n` processes.
    fn command(&self, n: usize) -> Command {
        let mut command = match n {
            1 => Command::new(self.program),
            _ => {
                let mut command = Command::new(self.launcher);
                command.args(["-n", &n.to_string()]).arg(self.program);
                command
            }
        };
        // Open MPI as it is wanted here: by root, on fewer cores than there are processes.
        for name in ["ALLOW_RUN_AS_ROOT", "ALLOW_RUN_AS_ROOT_CONFIRM", "MCA_rmaps_base_oversubscribe"] {
            command.env(format!("OMPI_{name}"), "1");
        }
        command.current_dir(self.folder).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// A training on `n` processes in the new run `name`.
    fn train(&self, n: usize, name: &str, options: &[&str]) -> Command {
        let mut train = self.command(n);
        train.args([
            "train",
            "digits-preresnet8-w2a2",
            "--quiet",
            "--device",
            "flex",
            "--or-resume",
            "--out",
            name,
        ]);
        for option in options {
            train.args(["--set", option]);
        }
        train
    }

    /// Runs a training, whose errors are shown.
    fn ends_well(&self, command: &mut Command, name: &str) -> anyhow::Result<()> {
        let output = command.output().with_context(|| format!("failed to start {name}"))?;
        match output.status.success() {
            true => Ok(()),
            false => bail!("{name} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// Trains until it is done, and kills a process meanwhile. Returns how often.
    fn killed_again_and_again(&self, name: &str) -> anyhow::Result<usize> {
        let mut n_killed = 0;
        for (i, after) in KILLED_AFTER.into_iter().enumerate() {
            let child = self.train(2, name, &LONGER).stderr(Stdio::null()).spawn()?;
            n_killed += usize::from(kill_one(child, i % 2, after)?);
        }
        ensure!(n_killed > 1, "only {n_killed} of {} kills came while it trained", KILLED_AFTER.len());
        self.ends_well(&mut self.train(2, name, &LONGER), name)?;
        let processes = fs::read_to_string(self.folder.join(name).join("processes.jsonl"))?;
        let has_steps = |line: &str| {
            let process: Option<Value> = serde_json::from_str(line).ok();
            process.is_some_and(|process| process["step"].as_u64() > Some(0))
        };
        let n_resumed = processes.lines().filter(|line| has_steps(line)).count();
        ensure!(n_resumed > 0, "no kill came after a checkpoint: all processes began at step 0");
        Ok(n_killed)
    }

    /// Digest of the state of a run.
    fn state(&self, name: &str) -> anyhow::Result<String> {
        let output = Command::new(self.program)
            .current_dir(self.folder)
            .args(["inspect", name, "--json"])
            .output()
            .context("failed to run lowbit inspect")?;
        let inspection: Value =
            serde_json::from_slice(&output.stdout).context("lowbit inspect says no JSON")?;
        let state = inspection["checkpoint"]["state_sha256"].as_str();
        state.map(Into::into).with_context(|| format!("{name} has no checkpoint"))
    }
}

/// Kills the process of this rank after a time, and waits until all have ended. Returns whether it was still there.
fn kill_one(mut child: Child, rank: usize, after: Duration) -> anyhow::Result<bool> {
    thread::sleep(after);
    let victim = process_of(child.id(), rank)?;
    if let Some(victim) = victim {
        Command::new("kill").args(["-9", &victim.to_string()]).stderr(Stdio::null()).status()?;
    }
    let killed = Instant::now();
    while child.try_wait()?.is_none() {
        if victim.is_some() && killed.elapsed() > ALL_END {
            child.kill()?;
            bail!("{} s after rank {rank} was killed, the others still run", ALL_END.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(victim.is_some())
}

/// The process of this rank among those that `launcher` has started.
fn process_of(launcher: u32, rank: usize) -> anyhow::Result<Option<u32>> {
    let ranks = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].map(|name| format!("{name}={rank}"));
    let parent = |process: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name before may have anything in it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let is_of_launcher = |process: u32| {
        let mut ancestors = std::iter::successors(Some(process), |process| parent(*process));
        ancestors.any(|process| process == launcher)
    };
    let is_rank = |process: u32| {
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        let mut variables = environment.split(|&byte| byte == 0);
        variables.any(|variable| ranks.iter().any(|rank| rank.as_bytes() == variable))
    };
    let processes = fs::read_dir("/proc")?.flatten();
    let mut processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(processes.find(|&process| process != launcher && is_rank(process) && is_of_launcher(process)))
}
