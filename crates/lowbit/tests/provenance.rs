//! Every number knows where it came from: build, machine, time and data, in the version, a run, its result and an evaluation.

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use common::{Outcome, Sandbox, TINY};
use serde_json::{Value, json};

/// A sandbox with a finished run of two epochs under the name `run`.
fn sandbox_with_run() -> Sandbox {
    let sandbox = Sandbox::new();
    let args =
        [&["train", "-q", "--out", "run", "--device", "flex"][..], &TINY, &["--set", "train.epochs=2"]]
            .concat();
    succeeds(&sandbox.run(&args));
    sandbox
}

fn succeeds(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.stdout, outcome.stderr);
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What the program says of itself.
fn version(sandbox: &Sandbox) -> Value {
    let outcome = sandbox.run(&["--version", "--json"]);
    succeeds(&outcome);
    serde_json::from_str(&outcome.stdout).unwrap()
}

/// Whether `text` is like 2026-11-26T13:14:43Z.
fn is_utc(text: &Value) -> bool {
    let text = text.as_str().unwrap_or_default();
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    shape == "9999-99-99T99:99:99Z"
}

const NEWEST: &str = "run/checkpoints/step-00000008";

/// Changes the manifest of a checkpoint, with its checksum.
fn change_manifest(sandbox: &Sandbox, checkpoint: &str, change: impl FnOnce(&mut Value)) {
    let folder = sandbox.path(checkpoint);
    let mut manifest = read_json(&folder.join("manifest.json"));
    change(&mut manifest["progress"]);
    fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
    let sums = Command::new("sh")
        .args(["-c", "sha256sum $(cut -c 67- SHA256SUMS) >new && mv new SHA256SUMS"])
        .current_dir(&folder)
        .status();
    assert!(sums.unwrap().success(), "sha256sum is needed");
}

#[test]
fn version_says_what_it_is_built_from() {
    let sandbox = Sandbox::new();
    let version = version(&sandbox);
    assert_eq!(version["lowbit"], env!("CARGO_PKG_VERSION"));
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let head = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(&root).output();
    let head = head.ok().filter(|_| root.join(".git").exists() && head_is_readable(&root));
    let revision = version["revision"].as_str();
    if let Some(head) = head {
        let head = String::from_utf8(head.stdout).unwrap();
        let revision = revision.expect("built in a repository");
        assert_eq!(revision.trim_end_matches("-dirty"), head.trim());
    }
    let features = version["features"].as_array().unwrap();
    assert!(features.iter().any(|feature| feature == "flex"), "{features:?}");
    for key in ["burn", "rustc", "target", "profile", "system"] {
        assert!(version[key].as_str().is_some_and(|text| !text.is_empty()), "{key} in {version}");
    }
    if cfg!(target_os = "linux") {
        assert!(version["host"].is_string(), "{version}");
    }
    if cfg!(target_arch = "x86_64") {
        let names = version["instruction_sets"].as_array().unwrap();
        assert_eq!(names.iter().any(|name| name == "avx2"), lowbit_cpu::instruction_sets().contains(&"avx2"));
    }

    let line = format!("lowbit {} ({})\n", env!("CARGO_PKG_VERSION"), revision.unwrap_or("revision unknown"));
    for args in [&["--version"][..], &["-V"], &["train", "-V"]] {
        assert_eq!(sandbox.run(args).stdout, line, "{args:?}");
    }
    for args in [&["--version", "--verbose"][..], &["-vV"], &["-Vv"], &["-v", "-V"]] {
        let long = sandbox.run(args).stdout;
        for key in ["lowbit", "revision", "features", "host", "processor", "instructions", "threads"] {
            assert!(long.lines().any(|line| line.starts_with(key)), "{args:?}: no {key} in\n{long}");
        }
    }
}

/// Instruction sets that are left out are not said to be used; a name that is none is an error before anything runs.
#[test]
fn instruction_sets_can_be_left_out() {
    let sandbox = Sandbox::new();
    let with = |names: &str, args: &[&str]| {
        Outcome::of(&sandbox.command(args).env(lowbit_cpu::WITHOUT, names).output().unwrap())
    };
    let version: serde_json::Value =
        serde_json::from_str(&with("avx512,i8mm", &["--version", "--json"]).stdout).unwrap();
    let names = version["instruction_sets"].as_array().unwrap();
    let is_out = |name: &str| name.starts_with("avx512") || name == "i8mm";
    assert!(!names.iter().any(|name| is_out(name.as_str().unwrap())), "{names:?}");
    if cfg!(target_arch = "x86_64") {
        assert_eq!(names.iter().any(|name| name == "avx2"), lowbit_cpu::instruction_sets().contains(&"avx2"));
    }

    let refused = with("avx1024", &["recipes"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.starts_with("error: LOWBIT_WITHOUT: \"avx1024\" is no instruction set"));
    assert_eq!(refused.stderr.lines().count(), 1);
}

fn head_is_readable(root: &Path) -> bool {
    let status = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root).output();
    status.is_ok_and(|output| output.status.success())
}

#[test]
fn run_result_and_evaluation_know_their_origin() {
    let sandbox = Sandbox::new();
    let args = [&["train", "-q", "--out", "run"][..], &TINY].concat();
    let result = sandbox.json(&args);
    let version = version(&sandbox);
    let run = read_json(&sandbox.path("run/run.json"));
    assert_eq!(run["origin"], version);
    assert!(is_utc(&run["started"]), "{run}");
    assert_eq!(result["origin"], version);
    assert_eq!(result["same_origin"], true);
    assert_eq!(result["started"], run["started"]);
    assert_eq!(result["data"], run["data"]);
    assert!(run["data"]["test"]["crc32"].is_string(), "{run}");
    let process = read_json(&sandbox.path("run/processes.jsonl"));
    assert_eq!(
        (&process["origin"], &process["step"], &process["device"]),
        (&version, &json!(0), &json!("flex"))
    );

    let eval = sandbox.json(&["eval", "run"]);
    assert_eq!((&eval["origin"], &eval["reported_by"]), (&version, &version));
    assert_eq!((&eval["matches"], &eval["may_differ"]), (&json!(true), &Value::Null));
    assert_eq!(eval["data"], run["data"]["test"]);
    assert!(is_utc(&eval["started"]), "{eval}");
}

/// The record of an evaluation is altered: no second processor is at hand.
#[test]
fn eval_on_another_kind_of_processor_or_build_may_differ() {
    let sandbox = sandbox_with_run();
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        change_manifest(&sandbox, NEWEST, |progress| {
            progress["test"]["top1"] = 0.25.into();
            change(&mut progress["test_origin"]);
        });
        let outcome = sandbox.run(&["eval", "run"]);
        succeeds(&outcome);
        assert!(outcome.stdout.contains(expected), "{}", outcome.stdout);
        let report = sandbox.json(&["eval", "run"]);
        assert_eq!(report["matches"], false);
        assert!(report["may_differ"].is_string() && report["reported_by"].is_object(), "{report}");
    };
    let origin = version(&sandbox);
    check(
        &|by| by["instruction_sets"] = json!(["avx2", "fma"]),
        "it differs, as it may (other kind of processor: avx2 fma then, ",
    );
    check(
        &|by| {
            *by = origin.clone();
            by["revision"] = "0123456789ab".into();
        },
        "it differs, as it may (other build: lowbit 0.1.0 (0123456789ab) then, lowbit 0.1.0 (",
    );
    // What changes no bits is no excuse.
    change_manifest(&sandbox, NEWEST, |progress| {
        progress["test_origin"] = origin.clone();
        progress["test_origin"]["host"] = "elsewhere".into();
        progress["test_origin"]["n_threads"] = 99.into();
    });
    let outcome = sandbox.run(&["eval", "run"]);
    assert_eq!(outcome.code, Some(6), "{}", outcome.stdout);
    assert!(
        outcome.stdout.contains("DIFFERS from what the run reported with this build"),
        "{}",
        outcome.stdout
    );
}

/// Takes the digest of `processes.jsonl` out of a checkpoint, so that the file may be another.
fn forget_processes(sandbox: &Sandbox, checkpoint: &str) {
    change_manifest(sandbox, checkpoint, |progress| {
        progress["records"].as_object_mut().unwrap().remove("processes.jsonl");
    });
}

#[test]
fn resumed_by_another_build() {
    let sandbox = sandbox_with_run();
    let path = sandbox.path("run/processes.jsonl");
    let mut process = read_json(&path);
    process["origin"]["revision"] = "0123456789ab".into();
    // A line that was cut short, as by a power cut, is no obstacle.
    fs::write(&path, format!("{process}\n{{\"started\":")).unwrap();
    // As a checkpoint of that build would, it must fit the changed record.
    forget_processes(&sandbox, "run/checkpoints/step-00000004");
    let outcome = sandbox.run(&["train", "--resume", "run", "--checkpoint", "step-00000004"]);
    succeeds(&outcome);
    assert!(outcome.stderr.contains("its bits may differ"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("other build: lowbit 0.1.0 (0123456789ab) then, "), "{}", outcome.stderr);

    let result = read_json(&sandbox.path("run/result.json"));
    assert_eq!((&result["same_origin"], &result["origin"]), (&json!(false), &version(&sandbox)));
    let inspected = sandbox.json(&["inspect", "run"]);
    let steps: Vec<&Value> =
        inspected["processes"].as_array().unwrap().iter().map(|process| &process["step"]).collect();
    assert_eq!(steps, [0, 4]);
    assert!(sandbox.run(&["inspect", "run"]).stdout.contains("from step 4"), "{inspected}");
    // Going on by the same build is as before.
    let outcome = sandbox.run(&["train", "--resume", "run", "--checkpoint", "step-00000004"]);
    assert!(!outcome.stderr.contains("its bits may differ"), "{}", outcome.stderr);
}

#[test]
fn resumed_on_another_device_or_by_another_build_for_the_result() {
    let sandbox = sandbox_with_run();
    let path = sandbox.path("run/processes.jsonl");
    let mut process = read_json(&path);
    process["device"] = "ndarray".into();
    fs::write(&path, format!("{process}\n")).unwrap();
    let outcome = sandbox.run(&["train", "--resume", "run", "--checkpoint", "step-00000004"]);
    succeeds(&outcome);
    assert!(outcome.stderr.contains("other device: ndarray then, flex now"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("processes.jsonl was changed"), "{}", outcome.stderr);
    assert!(fs::read_to_string(&path).unwrap().starts_with(&process.to_string()), "it is kept");

    // The result is of who evaluated, not of who wrote it down.
    change_manifest(&sandbox, NEWEST, |progress| progress["test_origin"]["revision"] = "0123456789ab".into());
    fs::remove_file(sandbox.path("run/result.json")).unwrap();
    succeeds(&sandbox.run(&["train", "--resume", "run"]));
    assert_eq!(read_json(&sandbox.path("run/result.json"))["origin"]["revision"], "0123456789ab");
}

#[test]
fn run_of_an_earlier_version_is_read() {
    let sandbox = sandbox_with_run();
    let path = sandbox.path("run/run.json");
    let data = read_json(&path)["data"].clone();
    let earlier = json!({
        "schema": 1, "lowbit": "0.0.0", "burn": "0.22.1", "device": "flex", "n_threads": 2, "data": data,
    });
    fs::write(&path, earlier.to_string()).unwrap();
    fs::remove_file(sandbox.path("run/processes.jsonl")).unwrap();
    forget_processes(&sandbox, "run/checkpoints/step-00000004");
    change_manifest(&sandbox, NEWEST, |progress| {
        progress.as_object_mut().unwrap().remove("test_origin");
        progress["test"]["top1"] = 0.25.into();
    });
    let inspected = sandbox.run(&["inspect", "run"]);
    assert!(
        inspected.stdout.contains("made by     lowbit 0.0.0 (revision unknown), burn 0.22.1"),
        "{}",
        inspected.stdout
    );
    let outcome = sandbox.run(&["eval", "run"]);
    succeeds(&outcome);
    assert!(outcome.stdout.contains("does not say which build"), "{}", outcome.stdout);
    let outcome = sandbox.run(&["train", "--resume", "run", "--checkpoint", "step-00000004"]);
    succeeds(&outcome);
    assert!(
        outcome.stderr.contains("other build: lowbit 0.0.0 (revision unknown) then"),
        "{}",
        outcome.stderr
    );
}

/// Its recipe is not read with today's meaning.
#[test]
fn run_of_an_earlier_version_with_other_meaning_is_refused() {
    for (changes, setting) in [
        (&["train.ema_decay=0.5"][..], "train.ema_decay, which had no warm-up"),
        (
            &["strategy.joint={}", "strategy.two_stage=true", "train.epochs=2"],
            "strategy.joint.teacher, which began anew",
        ),
        (
            &["strategy.progressive={ladder=[4]}", "strategy.two_stage=true", "train.epochs=4"],
            "strategy.two_stage with progressive, which had other phases",
        ),
    ] {
        let sandbox = Sandbox::new();
        let sets = changes.iter().flat_map(|change| ["--set", change]).collect::<Vec<_>>();
        let args = [&["train", "-q", "--out", "run", "--device", "flex"][..], &TINY, &sets].concat();
        succeeds(&sandbox.run(&args));
        for args in [&["eval", "run"][..], &["train", "-q", "--resume", "run"]] {
            succeeds(&sandbox.run(args));
        }
        let earlier = json!({
            "schema": 1, "lowbit": "0.0.0", "burn": "0.22.1", "device": "flex", "n_threads": 2, "data": null,
        });
        fs::write(sandbox.path("run/run.json"), earlier.to_string()).unwrap();
        for args in [&["eval", "run"][..], &["train", "--resume", "run"]] {
            let outcome = sandbox.run(args);
            assert_eq!(outcome.code, Some(4), "{args:?}: {}", outcome.stderr);
            let expected = format!("the run in run is of lowbit 0.0.0, with {setting}");
            assert!(outcome.stderr.contains(&expected), "{args:?}: {}", outcome.stderr);
        }
    }
}

/// A run goes on with the strategies that it was made with only. Earlier versions wrote down their callers' own alone, by
/// their `Debug` text.
#[test]
fn run_of_other_strategies_is_refused() {
    let sandbox = sandbox_with_run();
    let path = sandbox.path("run/run.json");
    let info = read_json(&path);
    assert_eq!((&info["schema"], &info["strategies"]), (&json!(3), &json!([])));
    let resume = ["train", "--resume", "run", "--checkpoint", "step-00000004"];
    let with = |schema: u64, strategies: Value| {
        let mut info = info.clone();
        info["schema"] = schema.into();
        info["strategies"] = strategies;
        fs::write(&path, info.to_string()).unwrap();
        sandbox.run(&resume)
    };
    for (schema, strategies, message) in [
        (
            3,
            json!([{ "name": "second-teacher", "settings": { "weight": 0.5 } }]),
            "the run cannot go on: strategy \"second-teacher\", which it was made with, is missing",
        ),
        (
            2,
            json!(["BackToFront"]),
            "the run cannot go on: it has a strategy of its caller's own (BackToFront) without a name",
        ),
    ] {
        let outcome = with(schema, strategies);
        assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(message), "{}", outcome.stderr);
        // What is there is read nevertheless.
        succeeds(&sandbox.run(&["eval", "run"]));
        let shown = sandbox.run(&["inspect", "run"]).stdout;
        assert!(
            shown.contains("\nstrategy    second-teacher\n") || shown.contains("\nstrategy    BackToFront\n"),
            "{shown}"
        );
    }
    succeeds(&with(2, json!([])));
}

/// The settings of a recipe's own strategies follow from the recipe: a lowbit that writes them down in another form goes on.
#[test]
fn strategies_of_the_recipe_are_known_by_name() {
    let sandbox = Sandbox::new();
    let args = ["train", "-q", "digits-preresnet8-w2a2-joint", "--out", "run", "--device", "flex"];
    succeeds(&sandbox.run(&[&args[..], &TINY, &["--set", "train.epochs=2"]].concat()));
    let path = sandbox.path("run/run.json");
    let mut info = read_json(&path);
    assert_eq!(info["strategies"][0]["name"], "joint");
    assert!(sandbox.run(&["inspect", "run"]).stdout.contains("\nstrategy    joint distillation\n"));
    info["strategies"][0]["settings"] = json!({ "another form": 1 });
    fs::write(&path, info.to_string()).unwrap();
    let resume = ["train", "--resume", "run", "--checkpoint", "step-00000004"];
    succeeds(&sandbox.run(&resume));
    info["strategies"][0]["name"] = "hint".into();
    fs::write(&path, info.to_string()).unwrap();
    let outcome = sandbox.run(&resume);
    assert_eq!(outcome.code, Some(4));
    let message = "the run cannot go on: strategy \"hint\", which it was made with, is missing";
    assert!(outcome.stderr.contains(message), "{}", outcome.stderr);
}

#[test]
fn run_of_a_later_version_is_refused() {
    let sandbox = sandbox_with_run();
    let path = sandbox.path("run/run.json");
    let mut info = read_json(&path);
    info["schema"] = 99.into();
    fs::write(&path, info.to_string()).unwrap();
    for args in [&["eval", "run"][..], &["inspect", "run"], &["train", "--resume", "run"]] {
        let outcome = sandbox.run(args);
        assert_eq!(outcome.code, Some(4), "{args:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("schema 99, this lowbit reads 1 to 3"), "{}", outcome.stderr);
    }
}

/// The record of who trained is only ever appended to.
#[test]
fn processes_are_only_appended_to() {
    let sandbox = sandbox_with_run();
    let path = sandbox.path("run/processes.jsonl");
    let before = fs::read_to_string(&path).unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"cut").unwrap();
    succeeds(&sandbox.run(&["train", "-q", "--resume", "run", "--checkpoint", "step-00000004"]));
    let after = fs::read_to_string(&path).unwrap();
    assert!(after.starts_with(&format!("{before}{{\"cut\n")), "{after}");
    assert_eq!(after.lines().count(), 3);
    // Nothing is left to train: nobody did.
    succeeds(&sandbox.run(&["train", "-q", "--resume", "run"]));
    assert_eq!(fs::read_to_string(&path).unwrap(), after);
}
