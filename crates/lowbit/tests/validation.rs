//! Validation images: held back from training, and all that anything is chosen by.

mod common;

use std::fs;

use common::Sandbox;
use serde_json::Value;

const SETTINGS: &[&str] = &[
    "--set",
    "train.epochs=4",
    "--set",
    "data.batch_size=32",
    "--set",
    "data.validation=0.1",
    "--set",
    "checkpoint.every_steps=5",
    "--set",
    "strategy.joint={}",
];

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn trainings_are_followed_by_validation_images_and_end_with_the_test_images() {
    let sandbox = Sandbox::new();
    let train = [&["train", "digits-preresnet8-w2a2", "--out", "run"], SETTINGS].concat();
    let result = sandbox.json(&train);
    let info: Value = serde_json::from_slice(&fs::read(sandbox.path("run/run.json")).unwrap()).unwrap();
    let n = |part: &str| info["data"][part]["n_images"].as_u64().unwrap();
    // One in ten of each class, of which there are 134 to 148.
    assert_eq!((n("train"), n("validation"), n("test")), (1294, 144, 359));
    assert_eq!(result["data"], info["data"]);

    let metrics = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap();
    let epochs = lines(&metrics);
    for (i, epoch) in epochs.iter().enumerate() {
        let is_last = i == 3;
        assert!(epoch["validation"]["top1"].is_f64(), "{epoch}");
        assert_eq!(epoch["test"].is_object(), is_last, "{epoch}");
        let teacher = &epoch["networks"]["teacher"];
        assert!(teacher["validation"]["top1"].is_f64(), "{epoch}");
        assert_eq!(teacher["test"].is_object(), is_last, "{epoch}");
    }
    assert_eq!(result["top1"], epochs[3]["test"]["top1"]);
    assert_eq!(result["validation"], epochs[3]["validation"]);
    assert_ne!(result["validation"]["loss"], result["loss"]);
    let highest =
        epochs.iter().map(|epoch| epoch["validation"]["top1"].as_f64().unwrap()).fold(0.0, f64::max);
    assert_eq!(result["best"]["top1"].as_f64(), Some(highest));
    assert_eq!(result["best"]["images"], "validation");

    let eval = sandbox.json(&["eval", "run"]);
    assert_eq!((&eval["matches"], &eval["top1"]), (&Value::Bool(true), &result["top1"]));
    assert_eq!(eval["validation"], result["validation"]);
    let shown = sandbox.run(&["inspect", "run"]);
    let text = shown.stdout;
    assert!(text.contains("1294 training, 144 validation and 359 test images"), "{text}");
    assert!(text.contains("  (test images)\nvalidation  top-1 "), "{text}");
    assert!(text.contains(" (validation images), step-"), "{text}");

    // Killed in the middle, it ends in the same.
    let stopped = [&["train", "digits-preresnet8-w2a2", "--out", "killed"], SETTINGS].concat();
    let mut child = sandbox.command(&stopped).stderr(std::process::Stdio::null()).spawn().unwrap();
    while !sandbox.path("killed/checkpoints/step-00000050").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it was too fast to be killed");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let resumed = sandbox.json(&["train", "--resume", "killed"]);
    for key in ["top1", "top5", "loss", "validation", "networks"] {
        assert_eq!(resumed[key], result[key], "{key}");
    }
    assert_eq!(fs::read_to_string(sandbox.path("killed/metrics.jsonl")).unwrap(), metrics);
    let state = |run: &str| sandbox.json(&["inspect", run])["state_sha256"].clone();
    assert_eq!(state("killed"), state("run"));
}

#[test]
fn without_validation_images_what_is_chosen_says_so() {
    let sandbox = Sandbox::new();
    let result = sandbox.json(&[&["train", "--out", "run"], &common::TINY[..]].concat());
    assert_eq!(result["best"]["images"], "test");
    assert!(result["validation"].is_null());
    // No fraction holds nothing back.
    let none = ["train", "--out", "none", "--set", "data.validation=0"];
    let none = sandbox.json(&[&none, &common::TINY[..]].concat());
    assert_eq!((&none["loss"], &none["data"]), (&result["loss"], &result["data"]));
}

#[test]
fn settings_that_hold_nothing_back_are_told() {
    let sandbox = Sandbox::new();
    let check = |setting: &str, expected: &str| {
        let outcome = sandbox.run(&["train", "--out", "run", "--set", setting]);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
    };
    check(
        "data.validation=1",
        "data.validation: expected a number from 0 and less than 1 (in 32 bits), got 1",
    );
    check(
        "data.split_seed=3",
        "data.split_seed: nothing is held back by it: remove this key, or set data.validation",
    );
}

/// What is trained until it stops is what is trained without, whether it is killed in between or not.
#[test]
fn a_training_stops_when_nothing_gets_better() {
    let sandbox = Sandbox::new();
    // So fast that it soon gets no better.
    let settings = [
        "--set",
        "data.validation=0.2",
        "--set",
        "train.learning_rate=0.5",
        "--set",
        "train.epochs=12",
        "--set",
        "strategy.joint={}",
    ];
    let early = ["--set", "early_stopping={patience=2}"];
    let base = ["train", "digits-preresnet8-w2a2", "--out"];
    let whole = sandbox.json(&[&base[..], &["whole"], &settings].concat());
    let result = sandbox.json(&[&base[..], &["early"], &settings, &early].concat());
    let read = |name: &str| fs::read_to_string(sandbox.path(name)).unwrap();
    let (all, until) = (lines(&read("whole/metrics.jsonl")), lines(&read("early/metrics.jsonl")));
    let stopped = &result["stopped_early"];
    let (last, best) = (stopped["epoch"].as_u64().unwrap(), stopped["best"]["epoch"].as_u64().unwrap());
    assert_eq!(whole["stopped_early"], Value::Null);
    assert_eq!((last, last - best, stopped["epochs"].as_u64()), (until.len() as u64, 2, Some(12)));
    assert!(last < 12, "it has to stop to test anything");
    // By hand: the first epoch that none of the next two surpasses.
    let top1 = |epoch: &Value| epoch["validation"]["top1"].as_f64().unwrap();
    let mut unsurpassed = 0;
    let end = (0..all.len()).find(|&i| {
        if top1(&all[i]) > top1(&all[unsurpassed]) {
            unsurpassed = i;
        }
        i - unsurpassed >= 2
    });
    assert_eq!((end.unwrap() as u64 + 1, unsurpassed as u64 + 1), (last, best));
    for (a, b) in all.iter().zip(&until) {
        assert_eq!((&a["train"], &a["validation"]), (&b["train"], &b["validation"]));
    }
    // The last epoch has test scores, of both networks, and is the result.
    let end = until.last().unwrap();
    assert_eq!((&result["top1"], &result["epochs"]), (&end["test"]["top1"], &Value::from(last)));
    assert_eq!(result["networks"]["teacher"]["top1"], end["networks"]["teacher"]["test"]["top1"]);
    assert!(result["networks"]["teacher"]["top1"].is_f64(), "{result}");
    assert_eq!(sandbox.json(&["eval", "early"])["matches"], true);
    let before = read("early/metrics.jsonl");
    let again = sandbox.run(&["train", "--resume", "early"]);
    assert!(again.stderr.starts_with("already complete"), "{}", again.stderr);
    assert_eq!(read("early/metrics.jsonl"), before);
    let line = format!(
        "stopped     early, after epoch {last} of 12: no better validation top-1 since epoch {best} ("
    );
    assert!(again.stdout.contains(&line), "{}", again.stdout);
    assert!(sandbox.run(&["inspect", "early"]).stdout.contains(&line));
    // From a checkpoint before, it stops there again.
    let state = sandbox.json(&["inspect", "early"])["state_sha256"].clone();
    let checkpoints = sandbox.json(&["inspect", "early"])["checkpoints"].clone();
    let first = checkpoints[0].as_str().unwrap();
    let resumed = sandbox.json(&["train", "--resume", "early", "--checkpoint", first]);
    assert_eq!(resumed["stopped_early"], *stopped);
    assert_eq!(sandbox.json(&["inspect", "early"])["state_sha256"], state);
    assert_eq!(read("early/metrics.jsonl"), before);
}

#[test]
fn early_stopping_needs_validation_images() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&["train", "--set", "early_stopping.patience=3"]);
    assert_eq!(outcome.code, Some(2));
    let expected = "error: recipe digits-preresnet8-w2a2 has a mistake:\n  early_stopping.patience: looks at the accuracy on \
                    validation images, and there are none: set data.validation, or remove this key\n";
    assert_eq!(outcome.stderr, expected);
}
