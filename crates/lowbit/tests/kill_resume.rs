//! A training that is killed at any moment, again and again, ends exactly as one that was left alone.

mod common;

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::Sandbox;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Kills after which the test gives up on hitting a checkpoint that is being written.
const MAX_KILLS: u32 = 400;

const SEED: u64 = 20_261_124;

/// Every kind of state there is: learned step sizes, running ranges, momentum, moving average, new BatchNorm
/// statistics; and more checkpoints than anyone would want.
const EVERY_STATE: &[&str] = &[
    "train.epochs=3",
    "train.ema_decay=0.9",
    "train.norm_reestimation_batches=3",
    "data.batch_size=32",
    "data.train_limit=256",
    "data.test_limit=128",
    "checkpoint.every_steps=3",
    "quantization.method=lsq",
    "quantization.first={method=\"minmax\", weight_bits=8, act_bits=8}",
    "quantization.last={method=\"minmax\", weight_bits=8, act_bits=8}",
    "quantization.shortcut={weight_bits=8, act_bits=8}",
    "train.gradient_clip=5",
];

/// Five phases of two networks, hand-overs of learned steps in both ways.
const MULTI_STAGE: &[&str] = &[
    "train.epochs=6",
    "data.batch_size=32",
    "data.train_limit=128",
    "data.test_limit=64",
    "checkpoint.every_steps=3",
    "quantization.method=lsq",
    "strategy.two_stage=true",
    "strategy.progressive={ladder=[\"fp32\", 4]}",
    "strategy.joint={teacher={width=1.5}, students=[{weight_bits=4, act_bits=4}]}",
    "strategy.hint={weight=0.1}",
    "phases={w2a4={quantizer_state=\"rescaled\", optimizer_state=\"kept\"}}",
];

/// One phase with a random part quantized in each step, drawn by its error, beside a teacher.
const ONE_STAGE: &[&str] = &[
    "train.epochs=4",
    "train.ema_decay=0.9",
    "data.batch_size=32",
    "data.train_limit=128",
    "data.test_limit=64",
    "checkpoint.every_steps=3",
    "strategy.stochastic_precision={selector=\"roulette\", unit=\"layer\"}",
    "strategy.joint={}",
];

/// Two moments of each parameter, of learned clip values too, which have a group of their own.
const ADAM: &[&str] = &[
    "train.epochs=3",
    "data.batch_size=32",
    "data.train_limit=128",
    "data.test_limit=64",
    "checkpoint.every_steps=3",
    "quantization.method=pact",
    "train.optimizer={kind=\"adam\"}",
    "train.quantizers={learning_rate_scale=0.5, weight_decay=0.001}",
];

const ADAMW: &[&str] = &[
    "train.epochs=3",
    "data.batch_size=32",
    "data.train_limit=128",
    "data.test_limit=64",
    "checkpoint.every_steps=3",
    "quantization.method=pact",
    "train.optimizer={kind=\"adamw\"}",
    "train.weight_decay=0.01",
    "strategy.two_stage=true",
    "phases={w2a32={optimizer_state=\"kept\"}}",
];

/// All that must not depend on kills.
#[derive(Debug, PartialEq)]
struct End {
    state_sha256: Value,
    metrics: String,
    result: [Value; 4],
}

fn end_of(sandbox: &Sandbox, run: &str) -> End {
    let directory = sandbox.path(run);
    let result: Value = serde_json::from_slice(&fs::read(directory.join("result.json")).unwrap()).unwrap();
    End {
        state_sha256: sandbox.json(&["inspect", run])["state_sha256"].clone(),
        metrics: fs::read_to_string(directory.join("metrics.jsonl")).unwrap(),
        result: ["top1", "top5", "loss", "best"].map(|key| result[key].clone()),
    }
}

#[test]
fn killed_and_resumed_equals_uninterrupted() {
    check(EVERY_STATE, 24, true);
}

#[test]
fn two_stage_progressive_and_joint() {
    check(MULTI_STAGE, 20, false);
}

#[test]
fn stochastic_precision_and_joint() {
    check(ONE_STAGE, 20, false);
}

#[test]
fn adam_and_clip_values() {
    check(ADAM, 6, false);
}

#[test]
fn adamw_in_two_stages() {
    check(ADAMW, 6, false);
}

/// Kills trainings of `recipe` at random moments until there were `n_kills`, and one of them fell into the writing of a
/// checkpoint if `wants_one_in_checkpoint`; each must end as an uninterrupted one.
fn check(recipe: &[&str], n_min_kills: u32, wants_one_in_checkpoint: bool) {
    let sandbox = Sandbox::new();
    let overrides: Vec<&str> = recipe.iter().flat_map(|change| ["--set", change]).collect();
    let train = |run: &'static str| [vec!["train", "--out", run, "--json"], overrides.clone()].concat();
    let started = Instant::now();
    let outcome = sandbox.run(&train("whole"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let duration = started.elapsed();
    let expected = end_of(&sandbox, "whole");
    assert!(expected.state_sha256.is_string());
    assert!(expected.metrics.lines().count() > 2);

    println!("seed {SEED}, uninterrupted {duration:.2?}");
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let (mut n_kills, mut n_in_checkpoint, mut n_before_run, mut n_runs) = (0, 0, 0, 0);
    let misses_checkpoints =
        |hits: u32, kills: u32| wants_one_in_checkpoint && hits == 0 && kills < MAX_KILLS;
    while n_kills < n_min_kills || misses_checkpoints(n_in_checkpoint, n_kills) {
        n_runs += 1;
        loop {
            let directory = sandbox.path("killed");
            let args = match directory.join("run.json").exists() {
                true => vec!["train", "--resume", "killed", "--json"],
                false => train("killed"),
            };
            let mut child = sandbox.command(&args);
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            // Every fourth one early, where the run directory is being made or taken up again.
            let span = if n_kills % 4 == 3 { Duration::from_millis(25) } else { duration };
            let delay = span.mul_f64(random.random::<f64>()).max(Duration::from_millis(1));
            std::thread::sleep(delay);
            let has_ended = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            if has_ended {
                assert_eq!(output.status.code(), Some(0), "{stderr}");
                break;
            }
            assert!(output.status.code().is_none() || output.status.success(), "{stderr}");
            n_kills += 1;
            let leftovers = fs::read_dir(directory.join("checkpoints")).into_iter().flatten();
            let is_hidden = |name: &str| name.starts_with('.');
            let n_hidden =
                leftovers.filter(|entry| is_hidden(&entry.as_ref().unwrap().file_name().to_string_lossy()));
            let in_checkpoint = n_hidden.count() > 0;
            n_in_checkpoint += u32::from(in_checkpoint);
            println!(
                "kill {n_kills} after {delay:.0?}{}",
                if in_checkpoint { ", in a checkpoint" } else { "" }
            );
            // What is there is no run yet: the next training uses the directory as it is.
            n_before_run += u32::from(!directory.join("run.json").exists());
        }
        assert_eq!(end_of(&sandbox, "killed"), expected, "run {n_runs}, seed {SEED}");
        fs::remove_dir_all(sandbox.path("killed")).unwrap();
    }
    let hit = n_in_checkpoint > 0 || !wants_one_in_checkpoint;
    assert!(hit, "none of {n_kills} kills fell into the writing of a checkpoint");
    println!(
        "{n_kills} kills in {n_runs} runs: {n_in_checkpoint} in a checkpoint, {n_before_run} before the run began; \
        {:.0?} in all",
        started.elapsed()
    );
}
