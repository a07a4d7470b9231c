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

/// Five phases of two networks, hand-overs of learned steps in both ways, and what strategies keep of the weights in each.
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
    "strategy.damping={}",
    "strategy.transition_rate={}",
    "strategy.freezing={from=0.02, to=0.01, momentum=0.05}",
    "phases={w2a4={quantizer_state=\"rescaled\", optimizer_state=\"kept\"}}",
];

/// One phase with a random part quantized in each step, drawn by its error, and noise in the gradients, beside a teacher; batches in parts.
const ONE_STAGE: &[&str] = &[
    "train.epochs=4",
    "train.accumulate=3",
    "train.ema_decay=0.9",
    "data.batch_size=32",
    "data.train_limit=128",
    "data.test_limit=64",
    "checkpoint.every_steps=3",
    "strategy.stochastic_precision={selector=\"roulette\", unit=\"layer\"}",
    "strategy.joint={}",
    "quantization.grad_bits=4",
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

/// Ends long before its last epoch, by the validation images.
const EARLY: &[&str] = &[
    "train.epochs=60",
    "train.learning_rate=0.3",
    "data.batch_size=32",
    "data.validation=0.3",
    "data.train_limit=192",
    "data.test_limit=64",
    "checkpoint.every_steps=3",
    "early_stopping={patience=4}",
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

/// What is killed, how often.
struct Kills<'a> {
    recipe: &'a str,
    changes: &'a [&'a str],
    /// At least so many.
    n_min: u32,
    /// Whether one of them has to fall into the writing of a checkpoint.
    in_checkpoint: bool,
    /// Whether some trainings that are taken up again go back to an earlier checkpoint, and are killed meanwhile.
    goes_back: bool,
}

const KILLS: Kills<'_> = Kills {
    recipe: "digits-preresnet8-w2a2",
    changes: &[],
    n_min: 6,
    in_checkpoint: false,
    goes_back: false,
};

/// All that was set aside can be read.
fn expect_whole(sandbox: &Sandbox) {
    let list = sandbox.json(&["inspect", "killed"])["set_aside"].clone();
    for aside in list.as_array().unwrap() {
        let path = format!("killed/{}", aside["path"].as_str().unwrap());
        for checkpoint in aside["checkpoints"].as_array().unwrap() {
            sandbox.json(&["inspect", &path, "--checkpoint", checkpoint.as_str().unwrap()]);
        }
    }
}

#[test]
fn killed_and_resumed_equals_uninterrupted() {
    check(&Kills { changes: EVERY_STATE, n_min: 24, in_checkpoint: true, ..KILLS });
}

#[test]
fn killed_while_going_back() {
    check(&Kills { changes: ADAM, n_min: 20, goes_back: true, ..KILLS });
}

/// 200 kills of what comes with lowbit: direct, all stages, stochastic precision. Some ten minutes.
#[test]
#[ignore = "takes minutes: cargo test -p lowbit --test kill_resume -- --ignored --nocapture"]
fn two_hundred_kills() {
    let changes = [
        "train.epochs=8",
        "data.batch_size=32",
        "data.train_limit=128",
        "data.test_limit=64",
        "checkpoint.every_steps=3",
        "checkpoint.keep_last=4",
    ];
    for (method, n_min) in [("", 67), ("-ts-pq-joint", 67), ("-sp-joint", 66)] {
        let recipe = format!("digits-preresnet8-w2a2{method}");
        check(&Kills { recipe: &recipe, changes: &changes, n_min, in_checkpoint: false, goes_back: true });
    }
}

#[test]
fn two_stage_progressive_and_joint() {
    check(&Kills { changes: MULTI_STAGE, n_min: 20, ..KILLS });
}

#[test]
fn stochastic_precision_and_joint() {
    check(&Kills { changes: ONE_STAGE, n_min: 20, ..KILLS });
}

#[test]
fn adam_and_clip_values() {
    check(&Kills { changes: ADAM, ..KILLS });
}

#[test]
fn stopped_early() {
    check(&Kills { changes: EARLY, ..KILLS });
}

#[test]
fn adamw_in_two_stages() {
    check(&Kills { changes: ADAMW, ..KILLS });
}

/// The names of the checkpoints of the run that is killed.
fn checkpoints(sandbox: &Sandbox) -> Vec<String> {
    let entries = fs::read_dir(sandbox.path("killed/checkpoints")).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// Kills trainings at random moments; each must end as an uninterrupted one.
fn check(kills: &Kills<'_>) {
    let Kills { recipe, changes, n_min: n_min_kills, in_checkpoint: wants_one_in_checkpoint, goes_back } =
        *kills;
    let sandbox = Sandbox::new();
    let overrides: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
    let train =
        |run: &'static str| [vec!["train", recipe, "--out", run, "--json"], overrides.clone()].concat();
    let started = Instant::now();
    let outcome = sandbox.run(&train("whole"));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    // The longest time until a kill: at first that of a whole training. It follows how busy the processor is, and it grows as long as
    // all are killed before they have got any further: else that could go on for ever.
    let mut longest = started.elapsed();
    println!("{recipe}: seed {SEED}, uninterrupted {longest:.2?}");
    let expected = end_of(&sandbox, "whole");
    assert!(expected.state_sha256.is_string());
    assert!(expected.metrics.lines().count() > 2);

    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let (mut n_kills, mut n_in_checkpoint, mut n_before_run, mut n_runs) = (0, 0, 0, 0);
    let mut n_going_back = 0;
    let misses_checkpoints =
        |hits: u32, kills: u32| wants_one_in_checkpoint && hits == 0 && kills < MAX_KILLS;
    while n_kills < n_min_kills || misses_checkpoints(n_in_checkpoint, n_kills) {
        n_runs += 1;
        loop {
            let directory = sandbox.path("killed");
            let known = checkpoints(&sandbox);
            let back = (goes_back && n_kills % 3 == 2 && known.len() > 1)
                .then(|| &known[(random.random::<f64>() * (known.len() - 1) as f64) as usize]);
            let mut args = match directory.join("run.json").exists() {
                true => vec!["train", "--resume", "killed", "--json"],
                false => train("killed"),
            };
            args.extend(back.iter().flat_map(|name| ["--checkpoint", name.as_str()]));
            let mut child = sandbox.command(&args);
            let mut child = child.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            // Every fourth one early, where the run directory is being made or taken up again.
            let span = match n_kills % 4 {
                _ if back.is_some() => Duration::from_millis(250),
                3 => Duration::from_millis(25),
                _ => longest,
            };
            let delay = span.mul_f64(random.random::<f64>()).max(Duration::from_millis(1));
            let spawned = Instant::now();
            let mut has_ended = false;
            while !has_ended && spawned.elapsed() < delay {
                std::thread::sleep(Duration::from_millis(5).min(delay));
                has_ended = child.try_wait().unwrap().is_some();
            }
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            if has_ended {
                assert_eq!(output.status.code(), Some(0), "{stderr}");
                longest = longest.mul_f64(0.9);
                break;
            }
            if span == longest && checkpoints(&sandbox) == known {
                longest = longest.mul_f64(1.2);
            }
            assert!(output.status.code().is_none() || output.status.success(), "{stderr}");
            n_kills += 1;
            n_going_back += u32::from(back.is_some());
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
        if goes_back {
            expect_whole(&sandbox);
        }
        fs::remove_dir_all(sandbox.path("killed")).unwrap();
    }
    assert!(!goes_back || n_going_back > 0, "none of {n_kills} kills fell into going back");
    let hit = n_in_checkpoint > 0 || !wants_one_in_checkpoint;
    assert!(hit, "none of {n_kills} kills fell into the writing of a checkpoint");
    println!(
        "{n_kills} kills in {n_runs} runs: {n_in_checkpoint} in a checkpoint, {n_before_run} before the run began, \
        {n_going_back} while going back; {:.0?} in all",
        started.elapsed()
    );
}
