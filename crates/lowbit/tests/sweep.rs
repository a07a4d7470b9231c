//! One recipe with several values of some settings.

mod common;

use std::fs;
use std::io::ErrorKind;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use common::{Outcome, Sandbox};
use serde_json::Value;

/// A recipe that is trained in a moment.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let recipe = "schema = 1\nextends = \"digits-preresnet8-w2a2\"\nname = \"tiny\"\n[data]\ntrain_limit = 100\ntest_limit = 50\nbatch_size = 50\n[train]\nepochs = 1\nwarmup_epochs = 0.0\n";
    fs::write(sandbox.path("tiny.toml"), recipe).unwrap();
    sandbox
}

const SWEEP: [&str; 8] =
    ["sweep", "tiny.toml", "--set", "quantization.method=\"lsq\",\"pact\"", "--seeds", "2", "--out", "out"];

fn changed(path: &std::path::Path) -> std::time::SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn all_values_are_trained_once_with_every_seed_and_compared() {
    let sandbox = sandbox();
    let report = sandbox.json(&SWEEP);
    let rows = report["cells"].as_array().unwrap();
    let named: Vec<(&str, u64)> =
        rows.iter().map(|row| (row["method"].as_str().unwrap(), row["seeds"].as_u64().unwrap())).collect();
    assert_eq!(named, [("method=\"lsq\"", 2), ("method=\"pact\"", 2)]);
    // The rows are what the runs say.
    for (row, slug) in rows.iter().zip(["method=-lsq-", "method=-pact-"]) {
        let mut sum = 0.0;
        for seed in 0..2 {
            let run = format!("out/cells/{slug}-seed{seed}");
            let result: Value = serde_json::from_str(
                &fs::read_to_string(sandbox.path(&format!("{run}/result.json"))).unwrap(),
            )
            .unwrap();
            assert_eq!(result["top1"], row["top1"][seed.to_string()], "{run}");
            sum += result["top1"].as_f64().unwrap();
            let inspected = sandbox.json(&["inspect", &run]);
            assert_eq!(inspected["recipe"]["seed"], seed);
        }
        assert!((sum / 2.0 - row["top1_mean"].as_f64().unwrap()).abs() < 1e-12);
        assert!(row["top1_interval"].is_number());
    }
    let table = fs::read_to_string(sandbox.path("out/table.md")).unwrap();
    assert!(table.contains("| method=\"pact\" | W2A2 | 2 |"), "{table}");
    assert!(table.contains("by which nothing may be chosen"), "{table}");
    for figure in ["accuracy.svg", "curves.svg"] {
        assert!(fs::read_to_string(sandbox.path(&format!("out/{figure}"))).unwrap().contains("tiny"));
    }
    // Nothing is trained twice; what is new is added.
    let result = sandbox.path("out/cells/method=-lsq--seed0/result.json");
    let before = changed(&result);
    let mut more = SWEEP.to_vec();
    more[5] = "3";
    let report = sandbox.json(&more);
    assert_eq!(report["cells"][1]["seeds"], 3);
    assert_eq!(changed(&result), before);
    // Another recipe is not mixed with it.
    let text = fs::read_to_string(sandbox.path("tiny.toml")).unwrap().replace("epochs = 1", "epochs = 2");
    fs::write(sandbox.path("tiny.toml"), text).unwrap();
    let outcome = sandbox.run(&SWEEP);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("train.epochs was 1 and is now 2; choose another --out"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn rows_are_chosen_by_images_that_were_held_back() {
    let sandbox = sandbox();
    let report = sandbox.json(&[
        "sweep",
        "tiny.toml",
        "--set",
        "data.validation=0.3",
        "--set",
        "train.learning_rate=0.1,0.01",
        "--out",
        "out",
    ]);
    for row in report["cells"].as_array().unwrap() {
        assert!(row["validation_mean"].is_number(), "{row}");
    }
    let table = fs::read_to_string(sandbox.path("out/table.md")).unwrap();
    assert!(table.contains("| settings | bits | seeds | validation | top-1 |"), "{table}");
    assert!(!table.contains("nothing may be chosen"), "{table}");
}

#[test]
fn what_cannot_be_swept_is_said_before_anything_is_trained() {
    let sandbox = sandbox();
    for (set, expected) in [
        ("seed=1,2", "error: --set seed=1,2: the seeds are those of --seeds\n"),
        ("train.epochs=", "error: --set train.epochs=: a value is missing beside a comma\n"),
        ("train.epochs", "error: --set train.epochs: expected KEY=VALUE or KEY=VALUE,VALUE,...\n"),
        ("train.epochs=1,1", "error: --set train.epochs=1,1: a value is there twice\n"),
    ] {
        let outcome = sandbox.run(&["sweep", "tiny.toml", "--set", set, "--out", "out"]);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(2), expected));
    }
    // The second value is wrong.
    let outcome =
        sandbox.run(&["sweep", "tiny.toml", "--set", "quantization.weight_bits=2,9", "--out", "out"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("expected a bit width from 1 to 8"), "{}", outcome.stderr);
    assert_eq!(fs::metadata(sandbox.path("out")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
#[cfg(unix)]
fn a_sweep_that_was_stopped_goes_on_where_it_was() {
    let sandbox = sandbox();
    let args =
        ["sweep", "digits-preresnet8-w2a2", "--set", "quantization.method=\"lsq\",\"pact\"", "--out", "out"];
    let mut sweep = sandbox.command(&args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let first = sandbox.path("out/cells/method=-lsq--seed0/metrics.jsonl");
    let started = Instant::now();
    while !fs::metadata(&first).is_ok_and(|file| file.len() > 0) {
        assert!(started.elapsed() < Duration::from_secs(100), "no epoch ended");
        assert!(sweep.try_wait().unwrap().is_none(), "it ended too soon");
        thread::sleep(Duration::from_millis(20));
    }
    let status = std::process::Command::new("kill").arg(sweep.id().to_string()).status().unwrap();
    assert!(status.success());
    let outcome = Outcome::of(&sweep.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("stopped: the same command goes on with what is left"),
        "{}",
        outcome.stderr
    );
    let inspected = sandbox.json(&["inspect", "out/cells/method=-lsq--seed0"]);
    assert!(inspected["result"].is_null());
    let step = inspected["checkpoint"]["progress"]["step"].as_u64().unwrap();
    assert!(step > 0);
    let report = sandbox.json(&args);
    assert_eq!((&report["cells"][0]["seeds"], &report["cells"][1]["seeds"]), (&1.into(), &1.into()));
    let processes = fs::read_to_string(sandbox.path("out/cells/method=-lsq--seed0/processes.jsonl")).unwrap();
    assert_eq!(processes.lines().count(), 2);
}

/// Nothing that is there is written over.
#[test]
fn a_sweep_takes_no_directory_that_holds_something_else() {
    let sandbox = sandbox();
    let outcome = sandbox.run(&["train", "tiny.toml", "-q", "--out", "run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    fs::create_dir(sandbox.path("mine")).unwrap();
    fs::write(sandbox.path("mine/table.md"), "my notes").unwrap();
    let plan = fs::read(sandbox.path("run/plan.json")).unwrap();
    for (out, expected) in [
        ("run", "error: run is a run: choose another --out\n"),
        ("mine", "error: mine is not empty and holds no sweep: choose another --out\n"),
        ("tiny.toml", "error: tiny.toml is no directory: choose another --out\n"),
    ] {
        let outcome = sandbox.run(&["sweep", "tiny.toml", "--out", out]);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(2), expected));
    }
    assert_eq!(fs::read(sandbox.path("run/plan.json")).unwrap(), plan);
    assert_eq!(fs::read_to_string(sandbox.path("mine/table.md")).unwrap(), "my notes");
    // The same number in other digits.
    let outcome =
        sandbox.run(&["sweep", "tiny.toml", "--set", "train.learning_rate=0.1,0.10", "--out", "out"]);
    let expected = "error: learning_rate=0.1 and learning_rate=0.10 train the same\n";
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(2), expected));
}
