//! What a run wrote is never lost: whatever is missing, damaged or asked for, whatever the file system cannot do, and
//! whenever it is stopped.
#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Outcome, Sandbox, TINY, copy_dir};
use serde_json::Value;

fn train<'a>(args: &[&'a str]) -> Vec<&'a str> {
    [&["train", "-q"], &TINY[..], args].concat()
}

/// A sandbox with a complete run of three epochs of four steps, of which all checkpoints are kept, under the name `run`.
fn sandbox_with_run() -> Sandbox {
    let sandbox = Sandbox::new();
    let args = ["--out", "run", "--set", "train.epochs=3", "--set", "checkpoint.keep_last=9"];
    let outcome = sandbox.run(&train(&args));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    sandbox
}

/// All files of a directory by their path in it, but the lock and the log.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        match path.is_dir() {
            true => {
                let inner = self::files(&path).into_iter();
                files.extend(inner.map(|(path, bytes)| (name.join(path), bytes)));
            }
            false if ["lock", "log.txt", "live.json"].contains(&name.to_str().unwrap()) => {}
            false => drop(files.insert(name, fs::read(&path).unwrap())),
        }
    }
    files
}

fn state(sandbox: &Sandbox, run: &str) -> (Value, String) {
    let metrics = fs::read_to_string(sandbox.path(run).join("metrics.jsonl")).unwrap();
    (sandbox.json(&["inspect", run])["state_sha256"].clone(), metrics)
}

fn spawn(sandbox: &Sandbox, args: &[&str]) -> Child {
    sandbox.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: &str) {
    let status = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Waits until `is_there`.
fn wait_until(what: &str, is_there: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_there() {
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn checkpoint_names(sandbox: &Sandbox, run: &str) -> Vec<String> {
    let entries = fs::read_dir(sandbox.path(run).join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_without_checkpoints_is_left_as_it_is() {
    let sandbox = sandbox_with_run();
    fs::remove_dir_all(sandbox.path("run/checkpoints")).unwrap();
    for (is_there, problem) in [(false, "is missing"), (true, "has no checkpoint")] {
        if is_there {
            fs::create_dir(sandbox.path("run/checkpoints")).unwrap();
        }
        let before = files(&sandbox.path("run"));
        let shown = sandbox.run(&["inspect", "run"]).stdout;
        assert!(shown.contains("status      complete, but its checkpoints are gone\n"), "{shown}");
        for extra in [&[][..], &["--or-previous"]] {
            let outcome = sandbox.run(&[&["train", "--resume", "run"], extra].concat());
            assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""));
            let expected =
                format!("error: run/checkpoints {problem}, but the run has a record in run/result.json");
            assert!(outcome.stderr.starts_with(&expected), "{}", outcome.stderr);
            assert_eq!(outcome.stderr.lines().count(), 1);
        }
        assert_eq!(files(&sandbox.path("run")), before);
        assert_eq!(sandbox.path("run/checkpoints").exists(), is_there);
    }
    // Without its result, it is not said that it can be resumed.
    fs::rename(sandbox.path("run/result.json"), sandbox.path("result.json")).unwrap();
    let shown = sandbox.run(&["inspect", "run"]).stdout;
    let expected = "status      step 0 of 12; run/checkpoints has no checkpoint, but the run has a record in \
                    run/metrics.jsonl: put its checkpoints back to go on, or train in a new directory\n";
    assert!(shown.contains(expected), "{shown}");
    fs::rename(sandbox.path("result.json"), sandbox.path("run/result.json")).unwrap();
    // A run that recorded nothing begins again, unless it had a checkpoint.
    for file in ["result.json", "metrics.jsonl", "timing.jsonl"] {
        fs::write(sandbox.path("run").join(file), "").unwrap();
    }
    fs::remove_file(sandbox.path("run/result.json")).unwrap();
    fs::remove_dir(sandbox.path("run/checkpoints")).unwrap();
    let refuses = |expected: &str| {
        let outcome = sandbox.run(&["train", "--resume", "run"]);
        assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
    };
    refuses("run/checkpoints is missing, but the run has a record in run/run.json");
    fs::create_dir(sandbox.path("run/checkpoints")).unwrap();
    let processes = fs::read_to_string(sandbox.path("run/processes.jsonl")).unwrap();
    let later = processes.replacen("\"step\":0", "\"step\":3", 1);
    fs::write(sandbox.path("run/processes.jsonl"), later).unwrap();
    refuses("run/checkpoints has no checkpoint, but the run has a record in run/processes.jsonl");
    fs::write(sandbox.path("run/processes.jsonl"), processes).unwrap();
    assert_eq!(sandbox.json(&["train", "--resume", "run"])["status"], "complete");
}

/// What would be written without its beginning is not written: the checkpoints before stay good.
#[test]
fn metrics_that_vanish_end_the_training() {
    let sandbox = Sandbox::new();
    let changes = ["train.epochs=5000", "checkpoint.every_steps=1", "checkpoint.keep_last=2"];
    let changes: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
    for is_cut in [false, true] {
        let child = match is_cut {
            false => spawn(&sandbox, &train(&[&["--out", "run"], &changes[..]].concat())),
            true => spawn(&sandbox, &["train", "--resume", "run"]),
        };
        let metrics = sandbox.path("run/metrics.jsonl");
        let length = || fs::metadata(&metrics).map_or(0, |metrics| metrics.len());
        let before = length();
        wait_until("a line", || length() > before);
        match is_cut {
            false => fs::rename(&metrics, sandbox.path("kept")).unwrap(),
            true => fs::OpenOptions::new().write(true).open(&metrics).unwrap().set_len(5).unwrap(),
        }
        let outcome = Outcome::of(&child.wait_with_output().unwrap());
        assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("run/metrics.jsonl"), "{}", outcome.stderr);
        if !is_cut {
            fs::rename(sandbox.path("kept"), &metrics).unwrap();
        }
    }
}

/// Files that decide nothing are begun anew.
#[test]
fn files_that_decide_nothing_may_be_missing() {
    let sandbox = sandbox_with_run();
    let whole = state(&sandbox, "run");
    for name in ["timing.jsonl", "processes.jsonl"] {
        fs::remove_file(sandbox.path("run").join(name)).unwrap();
    }
    let outcome = sandbox.run(&["train", "--resume", "run", "--checkpoint", "step-00000008"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for name in ["timing.jsonl", "processes.jsonl"] {
        let expected = format!("{name} is missing: a new one is begun with what is trained next");
        assert!(outcome.stderr.contains(&expected), "{}", outcome.stderr);
        assert_eq!(fs::read_to_string(sandbox.path("run").join(name)).unwrap().lines().count(), 1);
    }
    assert_eq!(state(&sandbox, "run"), whole);
}

/// A stop after the change of the phase finds the state before it saved.
#[test]
fn the_end_of_a_phase_is_saved() {
    let sandbox = Sandbox::new();
    let changes = ["train.epochs=2", "strategy.two_stage=true", "checkpoint.every_epochs=9"];
    let changes: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
    let outcome = sandbox.run(&train(&[&["--out", "run"], &changes[..]].concat()));
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let metrics = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.iter().rfind(|line| line["phase"] == lines[0]["phase"]).unwrap();
    let name = format!("step-{:08}", last["step"].as_u64().unwrap());
    assert!(
        last["step"] != lines.last().unwrap()["step"] && checkpoint_names(&sandbox, "run").contains(&name)
    );
}

/// A result that says something else is no result of this run, and nobody's to overwrite.
#[test]
fn a_damaged_result_is_left_as_it_is() {
    let sandbox = sandbox_with_run();
    let path = sandbox.path("run/result.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut other: Value = serde_json::from_str(&text).unwrap();
    other["top1"] = 0.99.into();
    for damaged in [text[..text.len() / 2].to_string(), other.to_string()] {
        fs::write(&path, &damaged).unwrap();
        let outcome = sandbox.run(&["train", "--resume", "run"]);
        assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("run/result.json is damaged"), "{}", outcome.stderr);
        assert_eq!(fs::read_to_string(&path).unwrap(), damaged);
    }
    fs::write(&path, "[]").unwrap();
    let advice = "; move it away to have it made again";
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert!(outcome.stderr.trim_end().ends_with(advice), "{}", outcome.stderr);
    let shown = sandbox.run(&["inspect", "run"]).stdout;
    let status = shown.lines().nth(1).unwrap();
    assert!(status.starts_with("status      step 12 of 12; run/result.json is damaged: "), "{status}");
    assert!(status.ends_with(advice), "{status}");
    fs::remove_file(&path).unwrap();
    assert_eq!(sandbox.json(&["train", "--resume", "run"])["status"], "complete");
}

/// Nothing is written of a run that is complete, but what is wrong with it is said.
#[test]
fn a_complete_run_is_not_silent() {
    let sandbox = sandbox_with_run();
    let processes = sandbox.path("run/processes.jsonl");
    let text = fs::read_to_string(&processes).unwrap();
    fs::write(&processes, text.replacen("\"step\":0", "\"step\":3", 1)).unwrap();
    fs::remove_file(sandbox.path("run/timing.jsonl")).unwrap();
    let before = files(&sandbox.path("run"));
    let outcome = sandbox.run(&["train", "-q", "--resume", "run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for expected in ["processes.jsonl was changed: ", "timing.jsonl is missing: "] {
        assert!(outcome.stderr.contains(&format!("warning: {expected}")), "{}", outcome.stderr);
    }
    assert_eq!(files(&sandbox.path("run")), before);
    // Lines that came after the checkpoint are set aside as they are of any other.
    let metrics = sandbox.path("run/metrics.jsonl");
    let whole = fs::read_to_string(&metrics).unwrap();
    let longer = format!("{whole}{whole}");
    fs::write(&metrics, &longer).unwrap();
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let aside = "run/set-aside/after-step-00000012";
    assert!(outcome.stderr.contains(&format!("what came later is kept in {aside}\n")), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(sandbox.path(aside).join("metrics.jsonl")).unwrap(), longer);
    assert_eq!(fs::read_to_string(&metrics).unwrap(), whole);
}

#[test]
fn going_back_sets_aside_all_that_came_later() {
    let sandbox = sandbox_with_run();
    let before = files(&sandbox.path("run"));
    let whole = state(&sandbox, "run");
    // Nothing happens before all is known to fit.
    let args = ["train", "--resume", "run", "--checkpoint", "step-00000004", "--device", "wgpu:99"];
    assert_eq!(sandbox.run(&args).code, Some(2));
    assert_eq!(files(&sandbox.path("run")), before);
    let outcome = sandbox.run(&["train", "--resume", "run", "--checkpoint", "step-00000004"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let aside = "run/set-aside/after-step-00000004";
    assert!(
        outcome.stderr.contains(&format!("\nwhat came later is kept in {aside}\n")),
        "{}",
        outcome.stderr
    );
    let mut expected = before.clone();
    expected.retain(|path, _| {
        !path.starts_with("checkpoints/step-00000000") && !path.starts_with("checkpoints/step-00000004")
    });
    assert_eq!(files(&sandbox.path(aside)), expected);
    // It ends as before, and what was set aside can be read as a run.
    assert_eq!(state(&sandbox, "run"), whole);
    assert_eq!(sandbox.json(&["eval", aside])["matches"], true);
    let listed = &sandbox.json(&["inspect", "run"])["set_aside"];
    assert_eq!(listed[0]["path"], "set-aside/after-step-00000004");
    assert_eq!(listed[0]["checkpoints"], serde_json::json!(["step-00000008", "step-00000012"]));
    let text = sandbox.run(&["inspect", "run"]).stdout;
    assert!(
        text.contains("\nset aside   set-aside/after-step-00000004 (step-00000008, step-00000012)\n"),
        "{text}"
    );
    // Nothing came after the newest.
    sandbox.json(&["train", "--resume", "run"]);
    assert_eq!(sandbox.json(&["inspect", "run"])["set_aside"].as_array().unwrap().len(), 1);
}

/// Lines of epochs after the newest checkpoint are made again, and kept as they were.
#[test]
fn lines_that_are_made_again_are_kept() {
    let sandbox = sandbox_with_run();
    let before = files(&sandbox.path("run"));
    let whole = state(&sandbox, "run");
    fs::remove_dir_all(sandbox.path("run/checkpoints/step-00000012")).unwrap();
    fs::remove_dir_all(sandbox.path("run/checkpoints/step-00000008")).unwrap();
    // A line that was cut short, or is none, ends what is kept, and is no error.
    let mut timing = fs::OpenOptions::new().append(true).open(sandbox.path("run/timing.jsonl")).unwrap();
    timing.write_all(b"\xff").unwrap();
    sandbox.json(&["train", "--resume", "run"]);
    assert_eq!(state(&sandbox, "run"), whole);
    let aside = files(&sandbox.path("run/set-aside/after-step-00000004"));
    for name in ["metrics.jsonl", "result.json"] {
        assert_eq!(aside[Path::new(name)], before[Path::new(name)]);
    }
    let timing = Path::new("timing.jsonl");
    assert_eq!(aside[timing], [&before[timing][..], b"\xff"].concat());
    assert_eq!(fs::read_to_string(sandbox.path("run/timing.jsonl")).unwrap().lines().count(), 3);
}

#[test]
fn what_the_networks_began_with_is_read_once() {
    let sandbox = sandbox_with_run();
    let changes =
        ["init=run", "train.epochs=2", "train.calibration_batches=200", "checkpoint.every_epochs=9"];
    let args: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
    let args = |out| train(&[&args[..], &["--out", out]].concat());
    assert_eq!(sandbox.run(&args("whole")).code, Some(0));
    let child = spawn(&sandbox, &args("killed"));
    wait_until("the first checkpoint", || sandbox.path("killed/checkpoints/step-00000000").exists());
    signal(&child, "-KILL");
    child.wait_with_output().unwrap();
    assert_eq!(checkpoint_names(&sandbox, "killed"), ["step-00000000"]);
    let progress = &sandbox.json(&["inspect", "killed"])["checkpoint"]["progress"];
    assert_eq!(progress["pending"], "calibration", "they are saved before they are calibrated");
    fs::rename(sandbox.path("run"), sandbox.path("gone")).unwrap();
    sandbox.json(&["train", "--resume", "killed"]);
    assert_eq!(state(&sandbox, "killed"), state(&sandbox, "whole"));
}

#[test]
fn a_damaged_newest_checkpoint_is_named_with_the_way_on() {
    let sandbox = sandbox_with_run();
    let whole = state(&sandbox, "run");
    let newest = sandbox.path("run/checkpoints/step-00000012");
    fs::write(newest.join("model.safetensors"), "damaged").unwrap();
    let before = files(&sandbox.path("run"));
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert_eq!(outcome.code, Some(4));
    let advice = "the newest intact one is step-00000008; go on from it with `lowbit train --resume run --or-previous`\n";
    assert!(outcome.stderr.ends_with(advice), "{}", outcome.stderr);
    assert_eq!(files(&sandbox.path("run")), before);
    let outcome = sandbox.run(&["train", "-q", "--resume", "run", "--or-previous"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(state(&sandbox, "run"), whole);
    let aside = sandbox.path("run/set-aside/after-step-00000008/checkpoints/step-00000012");
    assert_eq!(fs::read(aside.join("model.safetensors")).unwrap(), b"damaged");
    let warnings = sandbox.json(&["inspect", "run"])["warnings"].to_string();
    assert!(warnings.contains("checkpoint run/checkpoints/step-00000012 is damaged"), "{warnings}");
    assert!(warnings.contains("; the run goes on from step-00000008"), "{warnings}");
    // With nothing to fall back on, the error stays.
    for name in checkpoint_names(&sandbox, "run") {
        fs::write(sandbox.path("run/checkpoints").join(name).join("manifest.json"), "").unwrap();
    }
    let outcome = sandbox.run(&["train", "-q", "--resume", "run", "--or-previous"]);
    assert_eq!(outcome.code, Some(4));
    assert!(outcome.stderr.contains("no checkpoint of run can be gone on from, of "), "{}", outcome.stderr);
    // No other is offered, and none is denied: each was tried.
    assert!(!outcome.stderr.contains("intact"), "{}", outcome.stderr);
}

/// Makes the checksums of a checkpoint fit what it holds.
fn sum_up(folder: &Path) {
    let command = "sha256sum manifest.json *.safetensors *.burnpack > SHA256SUMS";
    let status = Command::new("sh").args(["-c", command]).current_dir(folder).status();
    assert!(status.unwrap().success(), "sha256sum is needed");
}

/// Changes the manifest of a checkpoint.
fn edit_manifest(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let path = folder.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut manifest);
    fs::write(&path, manifest.to_string()).unwrap();
    sum_up(folder);
}

/// Whatever keeps a checkpoint from being gone on from, an earlier one is taken for it.
#[test]
fn checkpoints_that_nothing_can_go_on_from_are_passed_over() {
    let sandbox = sandbox_with_run();
    let whole = state(&sandbox, "run");
    for (out, change) in [("adam", "train.optimizer={kind='adam'}"), ("wide", "model.width=0.5")] {
        let args = ["--out", out, "--set", "train.epochs=3", "--set", "checkpoint.keep_last=9"];
        let outcome = sandbox.run(&train(&[&args[..], &["--set", change]].concat()));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }
    let folder = |run: &str, name: &str| sandbox.path(&format!("{run}/checkpoints/{name}"));
    let manifest = fs::read(folder("run", "step-00000012").join("manifest.json")).unwrap();
    let recipe: Value = serde_json::from_slice::<Value>(&manifest).unwrap()["recipe_sha256"].clone();
    let of_recipe =
        |folder: &Path| edit_manifest(folder, |manifest| manifest["recipe_sha256"] = recipe.clone());
    let phase = |folder: &Path| edit_manifest(folder, |manifest| manifest["progress"]["phase"] = 7.into());
    let as_it_is = |_: &Path| {};
    type Edit<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Edit<'_>, &str); 5] = [
        ("adam", &as_it_is, "step-00000012 is of another recipe"),
        ("adam", &of_recipe, "step-00000012: optimizer.burnpack is not of this network and recipe"),
        ("wide", &of_recipe, "step-00000012 is of another model"),
        ("run", &phase, "step-00000012 cannot be gone on from: the checkpoint is of phase 8"),
        ("run", &as_it_is, "step-00000012 cannot be gone on from: tried/metrics.jsonl is damaged"),
    ];
    for (source, edit, expected) in cases {
        copy_dir(&sandbox.path("run"), &sandbox.path("tried"));
        let newest = folder("tried", "step-00000012");
        fs::remove_dir_all(&newest).unwrap();
        copy_dir(&folder(source, "step-00000012"), &newest);
        edit(&newest);
        if expected.contains("metrics.jsonl") {
            // The record is that of an earlier checkpoint: it was cut.
            let metrics = fs::read_to_string(sandbox.path("tried/metrics.jsonl")).unwrap();
            let lines: Vec<&str> = metrics.lines().take(2).collect();
            fs::write(sandbox.path("tried/metrics.jsonl"), lines.join("\n") + "\n").unwrap();
        }
        let before = files(&sandbox.path("tried"));
        let outcome = sandbox.run(&["train", "-q", "--resume", "tried"]);
        assert_eq!(outcome.code, Some(4), "{expected}: {}", outcome.stderr);
        assert_eq!(files(&sandbox.path("tried")), before, "{expected}");
        // What is wrong with the record may be right for no checkpoint.
        let advice = "; go on from the newest that can be with `lowbit train --resume tried --or-previous`\n";
        let is_of_record = expected.contains("metrics.jsonl");
        assert_eq!(outcome.stderr.ends_with(advice), !is_of_record, "{expected}: {}", outcome.stderr);
        let outcome = sandbox.run(&["train", "-q", "--resume", "tried", "--or-previous"]);
        assert_eq!(outcome.code, Some(0), "{expected}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{expected}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains("; the run goes on from step-00000008\n"),
            "{expected}: {}",
            outcome.stderr
        );
        assert_eq!(state(&sandbox, "tried"), whole, "{expected}");
        let aside = sandbox.path("tried/set-aside/after-step-00000008/checkpoints/step-00000012");
        let kept = before.iter().filter(|(path, _)| path.starts_with("checkpoints/step-00000012"));
        assert_eq!(files(&aside).len(), kept.count(), "{expected}");
        fs::remove_dir_all(sandbox.path("tried")).unwrap();
    }
    // All of another recipe.
    fs::remove_dir_all(sandbox.path("run/checkpoints")).unwrap();
    copy_dir(&sandbox.path("adam/checkpoints"), &sandbox.path("run/checkpoints"));
    let before = files(&sandbox.path("run"));
    let outcome = sandbox.run(&["train", "-q", "--resume", "run", "--or-previous"]);
    let expected = "error: no checkpoint of run can be gone on from, of 4; the newest: checkpoint \
                    run/checkpoints/step-00000012 is of another recipe";
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with(expected), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert_eq!(files(&sandbox.path("run")), before);
}

/// What a process left that was killed while it set things aside.
#[test]
fn copies_that_were_not_completed_are_removed() {
    let sandbox = sandbox_with_run();
    let whole = state(&sandbox, "run");
    let left = sandbox.path("run/set-aside/.after-step-00000004.tmp");
    for args in [&[][..], &["--checkpoint", "step-00000004"]] {
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("metrics.jsonl"), "{").unwrap();
        let outcome = sandbox.run(&[&["train", "-q", "--resume", "run"], args].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert!(!left.exists(), "{args:?}");
        assert_eq!(state(&sandbox, "run"), whole);
    }
    let names: Vec<_> = fs::read_dir(sandbox.path("run/set-aside")).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn start_or_resume_is_one_command() {
    let sandbox = Sandbox::new();
    let args = |epochs| train(&["--out", "run", "--or-resume", "--set", epochs]);
    let child = spawn(&sandbox, &args("train.epochs=5000"));
    wait_until("a checkpoint", || sandbox.path("run/checkpoints/step-00000004").exists());
    signal(&child, "-TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    let before = files(&sandbox.path("run"));
    let outcome = sandbox.run(&args("train.epochs=3"));
    let expected = "error: the recipe is not that of the run in run: train.epochs is 3, in the run 5000\n";
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(2), expected));
    assert_eq!(files(&sandbox.path("run")), before);
    let child = spawn(&sandbox, &args("train.epochs=5000"));
    let step = || sandbox.json(&["inspect", "run"])["checkpoint"]["progress"]["step"].as_u64().unwrap();
    let first = step();
    wait_until("a later checkpoint", || step() > first);
    signal(&child, "-TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));

    assert_eq!(sandbox.run(&["train", "--or-resume"]).code, Some(2), "it needs --out");
    assert_eq!(
        sandbox.run(&["train", "--out", "other", "--or-previous"]).code,
        Some(2),
        "it is for resuming"
    );
}

#[test]
fn trainings_that_begin_together_get_directories_of_their_own() {
    let sandbox = Sandbox::new();
    let children: Vec<Child> = (0..4).map(|_| spawn(&sandbox, &train(&["--json"]))).collect();
    let mut runs: Vec<String> = Vec::new();
    for child in children {
        let outcome = Outcome::of(&child.wait_with_output().unwrap());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let result: Value = serde_json::from_str(&outcome.stdout).unwrap();
        runs.push(result["run_dir"].as_str().unwrap().into());
    }
    runs.sort();
    let name = "runs/digits-preresnet8-w2a2";
    assert_eq!(runs, [name.to_string(), format!("{name}-2"), format!("{name}-3"), format!("{name}-4")]);
    // One that was asked for is not replaced, and a start that fails leaves nothing.
    assert_eq!(sandbox.run(&train(&["--out", name])).code, Some(4));
    let outcome = sandbox.run(&train(&["--set", "data.dataset=mnist"]));
    assert_eq!(outcome.code, Some(3));
    assert_eq!(fs::read_dir(sandbox.path("runs")).unwrap().count(), 4);
}

/// A run that trains and prunes is never called damaged by those who read it.
#[test]
fn a_run_is_read_while_it_trains() {
    let sandbox = Sandbox::new();
    let often = ["checkpoint.every_steps=1", "checkpoint.keep_last=1", "train.epochs=5000"];
    let often: Vec<&str> = often.iter().flat_map(|change| ["--set", change]).collect();
    let child = spawn(&sandbox, &train(&[&["--out", "run"], &often[..]].concat()));
    wait_until("a checkpoint", || sandbox.path("run/checkpoints/step-00000001").exists());
    let init = train(&["--set", "init=run", "--out", "other"]);
    for i in 0..40 {
        let args = [&["eval", "run"][..], &["inspect", "run"], &init][i % 3];
        let outcome = sandbox.run(args);
        assert_eq!(outcome.code, Some(0), "{args:?}: {}", outcome.stderr);
        let _ = fs::remove_dir_all(sandbox.path("other"));
    }
    signal(&child, "-TERM");
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
}

#[test]
fn ignored_signals_stay_ignored() {
    let sandbox = Sandbox::new();
    let args = train(&["--out", "run", "--set", "train.epochs=5000"]).join(" ");
    let script = format!("trap '' HUP INT; exec \"$0\" {args}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, common::LOWBIT]).current_dir(sandbox.path("."));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("a checkpoint", || sandbox.path("run/checkpoints/step-00000004").exists());
    signal(&child, "-HUP");
    signal(&child, "-INT");
    let newest = checkpoint_names(&sandbox, "run");
    wait_until("a later checkpoint", || {
        checkpoint_names(&sandbox, "run")
            .iter()
            .any(|name| name.starts_with("step") && !newest.contains(name))
    });
    signal(&child, "-TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
}

/// What is stopped while it calibrates or evaluates goes on there, and ends as one that was left alone.
#[test]
fn a_stop_is_answered_in_calibration_and_evaluation() {
    let sandbox = Sandbox::new();
    // Calibrations and evaluations that take as long as an epoch.
    let changes = [
        "train.epochs=2",
        "data.train_limit=1024",
        "train.calibration_batches=32",
        "train.norm_reestimation_batches=32",
        "strategy.two_stage=true",
    ];
    let changes: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
    let args = |out: &'static str| [&["train", "-vv", "--out", out], &TINY[..], &changes[..]].concat();
    let whole = sandbox.run(&args("whole"));
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);

    let log = sandbox.path("stopped/log.txt");
    // What is logged just before, what is then pending, and after how many steps.
    let stops = [
        ("run: started", "calibration", 0),
        ("step step=32 ", "evaluation", 32),
        ("checkpoints/step-00000032", "none", 32),
        ("step step=64 ", "evaluation", 64),
    ];
    for (event, pending, step) in stops {
        let logged = fs::metadata(&log).map_or(0, |log| log.len() as usize);
        let child = match log.exists() {
            true => spawn(&sandbox, &["train", "-vv", "--resume", "stopped"]),
            false => spawn(&sandbox, &args("stopped")),
        };
        let is_logged =
            || fs::read_to_string(&log).is_ok_and(|log| log[logged.min(log.len())..].contains(event));
        wait_until(event, is_logged);
        signal(&child, "-TERM");
        let outcome = Outcome::of(&child.wait_with_output().unwrap());
        assert_eq!(outcome.code, Some(130), "{event}: {}", outcome.stderr);
        let progress = &sandbox.json(&["inspect", "stopped"])["checkpoint"]["progress"];
        let found = (progress["pending"].as_str().unwrap_or("none"), progress["step"].as_u64());
        assert_eq!(found, (pending, Some(step)), "{event}");
        let text = sandbox.run(&["inspect", "stopped"]).stdout;
        let said = ["its quantizers were calibrated", "it was evaluated"]
            .map(|what| text.contains(&format!(" steps done; stopped while {what}\n")));
        assert_eq!(said, ["calibration", "evaluation"].map(|what| what == pending), "{text}");
    }
    sandbox.json(&["train", "--resume", "stopped"]);
    assert_eq!(state(&sandbox, "stopped"), state(&sandbox, "whole"));
    assert!(!sandbox.path("stopped/set-aside").exists(), "nothing was made twice");
}

/// Checkpoints by time are further ones: they change neither the bits nor the record.
#[test]
fn checkpoints_by_time_change_nothing() {
    let sandbox = Sandbox::new();
    let keep = ["--set", "checkpoint.keep_last=100", "--set", "train.epochs=2"];
    for (run, minutes) in
        [("never", "checkpoint.every_minutes=0"), ("always", "checkpoint.every_minutes=1e-9")]
    {
        let outcome = sandbox.run(&train(&[&keep[..], &["--out", run, "--set", minutes]].concat()));
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    }
    assert_eq!(state(&sandbox, "never"), state(&sandbox, "always"));
    assert_eq!(checkpoint_names(&sandbox, "never").len(), 3);
    assert_eq!(checkpoint_names(&sandbox, "always").len(), 9);
}

/// A library that has calls of the system fail as some file systems do; `None` where there is no compiler for it.
fn shim(sandbox: &Sandbox) -> PathBuf {
    const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define REAL(f) ((__typeof__(&f))dlsym(RTLD_NEXT, #f))
static int error(const char *name) { const char *value = getenv(name); return value ? atoi(value) : 0; }
static int is_directory(const char *path) { struct stat s; return !stat(path, &s) && S_ISDIR(s.st_mode); }
int flock(int fd, int op) { int e = error("NO_LOCK"); if (e) { errno = e; return -1; } return REAL(flock)(fd, op); }
int fsync(int fd) {
    struct stat s;
    int e = error("NO_SYNC");
    if (e && !fstat(fd, &s) && S_ISDIR(s.st_mode)) { errno = e; return -1; }
    return REAL(fsync)(fd);
}
static int exists(const char *path) { struct stat s; return !stat(path, &s); }
int rename(const char *a, const char *b) {
    int e = error("NO_RENAME");
    if (e && is_directory(a)) { errno = e; return -1; }
    e = error("NO_RENAME_OF_FILES");
    if (e && !is_directory(a)) { errno = e; return -1; }
    e = error("NO_REPLACE");
    if (e && !is_directory(a) && exists(b)) { errno = e; return -1; }
    return REAL(rename)(a, b);
}
static int kept(const char *n) {
    int e = error("NO_REMOVE");
    if (e && strstr(n, ".old")) return e;
    e = error("NO_REMOVE_OF_PROBE");
    return e && strstr(n, ".probe") ? e : 0;
}
int unlinkat(int d, const char *n, int f) {
    int e = f & AT_REMOVEDIR ? kept(n) : 0;
    if (e) { errno = e; return -1; }
    return REAL(unlinkat)(d, n, f);
}
int rmdir(const char *n) {
    int e = kept(n);
    if (e) { errno = e; return -1; }
    return REAL(rmdir)(n);
}
/* What main sets first, once signals are held. */
void (*signal(int number, void (*handler)(int)))(int) {
    if (number == SIGXFSZ && getenv("SIGTERM_IN_MAIN")) kill(getpid(), SIGTERM);
    return REAL(signal)(number, handler);
}
int open64(const char *path, int flags, ...) {
    va_list arguments;
    va_start(arguments, flags);
    mode_t mode = va_arg(arguments, mode_t);
    va_end(arguments);
    int e = error("READ_ONLY");
    if (e && (flags & O_ACCMODE) != O_RDONLY && strstr(path, "run/")) { errno = e; return -1; }
    const char *signaled = getenv("SIGTERM_AT");
    if (signaled && strstr(path, signaled)) kill(getpid(), SIGTERM);
    return REAL(open64)(path, flags, mode);
}
"#;
    let source = sandbox.path("shim.c");
    let library = sandbox.path("shim.so");
    fs::write(&source, SOURCE).unwrap();
    let cc =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(cc.is_ok_and(|status| status.success()), "a C compiler is needed, as to build this");
    library
}

/// Runs a training on a file system that lacks what `gap` says.
fn with_gap(sandbox: &Sandbox, shim: &Path, gap: (&str, &str), args: &[&str]) -> Outcome {
    let mut command = sandbox.command(args);
    Outcome::of(&command.env("LD_PRELOAD", shim).env(gap.0, gap.1).output().unwrap())
}

#[cfg(target_os = "linux")]
#[test]
fn file_systems_with_gaps() {
    let sandbox = Sandbox::new();
    let shim = shim(&sandbox);
    let args = ["train", "--out", "run", "--set", "train.epochs=4", "--set", "checkpoint.keep_last=1"];
    let args = [&args[..], &TINY[2..]].concat();
    let whole = {
        let outcome = sandbox.run(&args);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        state(&sandbox, "run")
    };
    let no_lock = "has no locks: make sure that no two processes train in this run";
    let no_sync = "cannot sync directories";
    let no_remove = "failed to remove checkpoint file run/checkpoints/.step-00000000.old";
    let gaps = [
        (("NO_LOCK", "37"), no_lock),
        (("NO_LOCK", "38"), no_lock),
        (("NO_LOCK", "95"), no_lock),
        (("NO_LOCK", "524"), no_lock),
        (("NO_SYNC", "22"), no_sync),
        (("NO_SYNC", "9"), no_sync),
        (("NO_SYNC", "95"), no_sync),
        (("NO_REMOVE", "39"), no_remove),
        (("NO_REMOVE", "16"), no_remove),
    ];
    for (gap, warning) in gaps {
        fs::remove_dir_all(sandbox.path("run")).unwrap();
        let outcome = with_gap(&sandbox, &shim, gap, &args);
        assert_eq!(outcome.code, Some(0), "{gap:?}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.matches(warning).count(), 1, "{gap:?}: {}", outcome.stderr);
        assert_eq!(state(&sandbox, "run"), whole, "{gap:?}");
        let warnings = sandbox.json(&["inspect", "run"])["warnings"].to_string();
        assert!(warnings.contains(warning), "{gap:?}: {warnings}");
        // On resuming too; what could not be removed then is now.
        let outcome = with_gap(&sandbox, &shim, gap, &["train", "-q", "--resume", "run"]);
        assert_eq!(outcome.code, Some(0), "{gap:?}: {}", outcome.stderr);
        sandbox.json(&["train", "--resume", "run"]);
        assert!(checkpoint_names(&sandbox, "run").iter().all(|name| !name.starts_with('.')), "{gap:?}");
    }
    let rename = "the file system of DIR cannot rename a directory, which checkpoints need (";
    let file = "the file system of DIR cannot rename a file, which checkpoints need (";
    let replace =
        "the file system of DIR cannot put a file in the place of another, which checkpoints need (";
    let remove = "failed to remove DIR/.probe, by which the file system was tried (";
    let gaps = [
        ("NO_RENAME", "38", rename),
        ("NO_RENAME", "18", rename),
        ("NO_RENAME", "1", rename),
        ("NO_RENAME", "95", rename),
        ("NO_RENAME_OF_FILES", "38", file),
        ("NO_REPLACE", "17", replace),
        ("NO_REPLACE", "1", replace),
        ("NO_REMOVE_OF_PROBE", "39", remove),
    ];
    for (gap, error, expected) in gaps {
        let outcome = with_gap(&sandbox, &shim, (gap, error), &train(&["--out", "other"]));
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""), "{gap} {error}");
        let is_told = |outcome: &Outcome, run: &str| {
            let expected = format!("error: {}", expected.replace("DIR", run));
            assert!(outcome.stderr.starts_with(&expected), "{gap} {error}: {}", outcome.stderr);
            assert!(outcome.stderr.ends_with("train on another file system\n"), "{}", outcome.stderr);
            assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
        };
        is_told(&outcome, "other");
        match gap {
            "NO_REMOVE_OF_PROBE" => fs::remove_dir_all(sandbox.path("other")).unwrap(),
            _ => assert!(!sandbox.path("other").exists(), "{error}: nothing is left"),
        }
        // A run that was moved there is left as it is.
        let before = files(&sandbox.path("run"));
        let outcome = with_gap(
            &sandbox,
            &shim,
            (gap, error),
            &["train", "-q", "--resume", "run", "--checkpoint", &checkpoint_names(&sandbox, "run")[0]],
        );
        assert_eq!(outcome.code, Some(4), "{gap} {error}: {}", outcome.stderr);
        is_told(&outcome, "run");
        let _ = fs::remove_dir_all(sandbox.path("run/.probe"));
        assert_eq!(files(&sandbox.path("run")), before, "{gap} {error}");
    }
}

/// A run that cannot be written to is left as it is, with what to do.
#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_read_only() {
    let sandbox = sandbox_with_run();
    let shim = shim(&sandbox);
    let before = files(&sandbox.path("run"));
    for (error, reason) in [("30", "the file system is read-only"), ("13", "permission denied")] {
        for from in [&[][..], &["--checkpoint", "step-00000004"]] {
            let args = [&["train", "-q", "--resume", "run"], from].concat();
            let outcome = with_gap(&sandbox, &shim, ("READ_ONLY", error), &args);
            let expected = format!(
                "error: failed to write run/lock ({reason}): a run is trained where it can be written to; change its owner \
                 or mode, or copy it\n"
            );
            assert_eq!((outcome.code, outcome.stderr), (Some(4), expected));
        }
        for command in ["eval", "inspect"] {
            let outcome = with_gap(&sandbox, &shim, ("READ_ONLY", error), &[command, "run"]);
            assert_eq!(outcome.code, Some(0), "{command} {error}: {}", outcome.stderr);
        }
    }
    assert_eq!(files(&sandbox.path("run")), before);
    // Nor is a directory removed that the user made.
    fs::remove_dir_all(sandbox.path("run")).unwrap();
    fs::create_dir(sandbox.path("run")).unwrap();
    let outcome = with_gap(&sandbox, &shim, ("READ_ONLY", "13"), &train(&["--out", "run"]));
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    assert!(sandbox.path("run").exists());
}

/// A signal that comes before there is anything to stop is answered as any other.
#[cfg(target_os = "linux")]
#[test]
fn a_stop_is_answered_from_the_beginning() {
    let sandbox = Sandbox::new();
    let shim = shim(&sandbox);
    let recipe = sandbox.run(&["recipes", "show", "digits-preresnet8-w2a2"]).stdout;
    fs::write(sandbox.path("mine.toml"), recipe).unwrap();
    let args = ["train", "mine.toml", "--out", "run", "--set", "train.epochs=5000"];
    // Before it is known what the command is, and before the recipe is read.
    for moment in [("SIGTERM_IN_MAIN", "1"), ("SIGTERM_AT", "mine.toml")] {
        let outcome = with_gap(&sandbox, &shim, moment, &[&args, &TINY[2..]].concat());
        assert_eq!(outcome.code, Some(130), "{moment:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("stopped before the training began"), "{}", outcome.stderr);
        assert!(!sandbox.path("run").exists());
        // What is no training ends by it.
        let outcome = with_gap(&sandbox, &shim, moment, &["inspect", "mine.toml"]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (None, ""), "{moment:?}: {}", outcome.stderr);
    }
}

/// One that was being replaced by a newer of the same step when the process was killed is put back.
#[test]
fn a_checkpoint_that_was_being_replaced_is_put_back() {
    let sandbox = sandbox_with_run();
    let whole = state(&sandbox, "run");
    let checkpoints = sandbox.path("run/checkpoints");
    fs::rename(checkpoints.join("step-00000012"), checkpoints.join(".step-00000012.replaced")).unwrap();
    copy_dir(&checkpoints.join("step-00000008"), &checkpoints.join(".step-00000012.tmp"));
    copy_dir(&checkpoints.join("step-00000008"), &checkpoints.join(".step-00000008.replaced"));
    sandbox.json(&["train", "--resume", "run"]);
    let expected = ["step-00000000", "step-00000004", "step-00000008", "step-00000012"];
    assert_eq!(checkpoint_names(&sandbox, "run"), expected);
    assert_eq!(state(&sandbox, "run"), whole);
    assert!(!sandbox.path("run/set-aside").exists());
}
