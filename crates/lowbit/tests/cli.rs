//! The command line: help, results, and every bad input with its message and exit code.
//!
//! The snapshots are in `tests/snapshots`; `INSTA_UPDATE=always cargo test -p lowbit --test cli` writes them anew.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{LOWBIT, Outcome, Sandbox, TINY, copy_dir};
use serde_json::Value;

/// What differs from run to run, from machine to machine, or with any change of the arithmetic.
const FILTERS: [(&str, &str); 10] = [
    (r"time        \d+:\d\d, (\d+ epochs?), \d+ images/s", "time        [TIME], $1, [SPEED] images/s"),
    (r"  \d+:\d\d\n", "  [TIME]\n"),
    (r"time    [a-z ]+ \d+%(, [a-z ]+ \d+%)*", "time    [SHARES]"),
    (r"sha256 [0-9a-f]{64}", "sha256 [SHA256]"),
    (r"burn \d+\.\d+\.\d+", "burn [VERSION]"),
    (r"on .*, \d+ threads?, \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "on [MACHINE], [STARTED]"),
    (r"lowbit \d+\.\d+\.\d+( \([^)]*\))?", "lowbit [VERSION]"),
    (r"(top-?[15]) +\d+(\.\d+)?%", "$1 [PERCENT]"),
    (r"loss \d+\.\d+", "loss [LOSS]"),
    (
        r"loss is \w+ at step \d+ \(epoch 1\); first not finite: [\w.]+",
        "loss is [LOSS]; first not finite: [PLACE]",
    ),
];

/// Compares what a command printed, and its exit code, with the snapshot `name`.
fn check(name: &str, sandbox: &Sandbox, args: &[&str]) -> Outcome {
    let outcome = sandbox.run(args);
    check_outcome(name, sandbox, &args.join(" "), &outcome);
    outcome
}

fn check_outcome(name: &str, sandbox: &Sandbox, args: &str, outcome: &Outcome) {
    let Outcome { code, stdout, stderr } = outcome;
    let code = code.map_or("none".into(), |code| code.to_string());
    let text = format!("$ lowbit {args}\nexit code {code}\n--- stdout\n{stdout}--- stderr\n{stderr}");
    insta::with_settings!({ filters => FILTERS, omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, sandbox.without_path(&text));
    });
}

fn tiny_with(args: &[&'static str]) -> Vec<&'static str> {
    [&["train", "-q"], args, &TINY].concat()
}

/// A sandbox with a finished run of two epochs, and a checkpoint after each, under the name `run`.
fn sandbox_with_run() -> Sandbox {
    let sandbox = Sandbox::new();
    let args = tiny_with(&["--out", "run", "--device", "flex"]);
    let outcome = sandbox.run(&[args.as_slice(), &["--set", "train.epochs=2"]].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    sandbox
}

/// The newer of the two checkpoints of [`sandbox_with_run`].
const NEWEST: &str = "run/checkpoints/step-00000008";
/// The older one.
const PREVIOUS: &str = "step-00000004";

/// Inverts the lowest bit in the middle of a file.
fn flip_bit(path: &Path) {
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(middle)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

/// Changes the score of a checkpoint, but not the checksum of where it stands.
fn set_top1(sandbox: &Sandbox, checkpoint: &str, top1: f64) {
    let manifest = sandbox.path(checkpoint).join("manifest.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    content["progress"]["test"]["top1"] = top1.into();
    fs::write(&manifest, content.to_string()).unwrap();
}

/// Writes the checksums of a checkpoint anew; false if there is no program for it.
fn sum_up(sandbox: &Sandbox, checkpoint: &str) -> bool {
    let sums = Command::new("sh")
        .args(["-c", "sha256sum manifest.json model.safetensors optimizer.burnpack > SHA256SUMS"])
        .current_dir(sandbox.path(checkpoint))
        .status();
    sums.is_ok_and(|status| status.success())
}

fn cut_short(path: &Path) {
    let length = fs::metadata(path).unwrap().len();
    OpenOptions::new().write(true).open(path).unwrap().set_len(length / 2).unwrap();
}

#[test]
fn help() {
    let sandbox = Sandbox::new();
    let commands: [&[&str]; 24] = [
        &[],
        &["train"],
        &["eval"],
        &["sweep"],
        &["sensitivity"],
        &["inspect"],
        &["import"],
        &["export"],
        &["predict"],
        &["list"],
        &["compare"],
        &["report"],
        &["bench"],
        &["watch"],
        &["tensorboard"],
        &["devices"],
        &["recipes"],
        &["recipes", "list"],
        &["recipes", "show"],
        &["data"],
        &["data", "list"],
        &["data", "fetch"],
        &["data", "verify"],
        &["completions"],
    ];
    for command in commands {
        let name = [&["help"], command].concat().join("-");
        let outcome = check(&name, &sandbox, &[command, &["--help"]].concat());
        assert_eq!(outcome.code, Some(0));
        for line in outcome.stdout.lines() {
            assert!(line.chars().count() <= 80, "{name}: {line}");
        }
    }
}

#[test]
fn devices() {
    let sandbox = Sandbox::new();
    let report = sandbox.json(&["devices"]);
    let devices = report["devices"].as_array().unwrap();
    let flex = &devices[0];
    assert_eq!(
        (&flex["name"], &flex["kind"], &flex["default"]),
        (&"flex".into(), &"cpu".into(), &true.into())
    );
    // What a run would have on record.
    let origin = sandbox.json(&["--version"]);
    assert_eq!(flex["threads"], origin["n_threads"]);
    assert_eq!(flex["instruction_sets"], origin["instruction_sets"]);
    let shown = sandbox.run(&["devices"]).stdout;
    assert!(shown.starts_with("flex     CPU ") && shown.contains(" takes without --device\n"), "{shown}");
    let is_known = |name: &str| shown.lines().any(|line| line.starts_with(name));
    assert!(["flex", "ndarray", "wgpu"].iter().all(|name| is_known(name)), "{shown}");
    // Each can be trained on by its name, or would be in another build.
    for device in devices {
        let args = tiny_with(&["--device"]);
        let args = [&args[..3], &[device["name"].as_str().unwrap()], &args[3..]].concat();
        assert_eq!(sandbox.run(&args).code, Some(0), "{device}");
    }
    for name in report["not_compiled_in"].as_array().unwrap() {
        assert_eq!(sandbox.run(&["train", "--device", name.as_str().unwrap()]).code, Some(2));
    }
}

#[test]
fn bad_recipes() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("broken.toml"), "schema = 1\nname = \n").unwrap();
    fs::write(sandbox.path("empty.toml"), "").unwrap();
    let cases: [(&str, &[&str]); 15] = [
        ("unknown-key", &["--set", "train.learning_rte=0.1"]),
        ("wrong-type", &["--set", "train.epochs=many"]),
        ("bits-0", &["--set", "quantization.weight_bits=0"]),
        ("bits-9", &["--set", "quantization.act_bits=9"]),
        (
            "several-mistakes",
            &[
                "--set",
                "train.epochs=0",
                "--set",
                "train.lr=0.1",
                "--set",
                "quantization.weight_bits=9",
                "--set",
                "model.depth=9",
                "--set",
                "data.dataset=cifar-10",
            ],
        ),
        ("unknown-layer-pattern", &["--set", "quantization.layers=[{pattern=\"nope.*\", weight_bits=4}]"]),
        ("depth-of-another-layout", &["--set", "model.depth=18"]),
        ("bad-layer-pattern", &["--set", "quantization.layers=[{pattern=\"a[\", weight_bits=4}]"]),
        ("set-without-value", &["--set", "train.epochs", "--set", "=3", "--set", "train.lr=1"]),
        ("unknown-recipe", &["digits-preresnet8-w2a3"]),
        ("missing-recipe-file", &["recipes/mine.toml"]),
        ("broken-recipe-file", &["broken.toml"]),
        ("empty-recipe-file", &["empty.toml"]),
        ("batch-too-large", &["--set", "data.train_limit=32"]),
        ("more-images-than-there-are", &["--set", "data.train_limit=2000"]),
    ];
    for (name, args) in cases {
        let outcome = check(name, &sandbox, &[&["train"], args].concat());
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{name}");
    }
    assert!(!sandbox.path("runs").exists(), "a recipe that is not valid leaves no run directory");
}

#[test]
fn bad_command_lines() {
    let sandbox = sandbox_with_run();
    let cases: [(&str, &[&str]); 8] = [
        ("no-command", &[]),
        ("unknown-device", &["train", "--device", "tpu"]),
        ("device-index", &["train", "--device", "flex:1"]),
        ("resume-and-recipe", &["train", "--resume", "run", "digits-preresnet8-w2a2"]),
        ("checkpoint-without-resume", &["train", "--checkpoint", "step-00000004"]),
        ("inspect-run-with-set", &["inspect", "run", "--set", "seed=1"]),
        ("unknown-data-set", &["data", "verify", "cifar"]),
        ("quiet-and-verbose", &["recipes", "-qv"]),
    ];
    for (name, args) in cases {
        let outcome = check(name, &sandbox, args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{name}");
    }
}

#[test]
fn backend_that_is_not_compiled_in() {
    if cfg!(feature = "wgpu") {
        return println!("nothing to test: wgpu is compiled in");
    }
    let outcome = check("not-compiled-in", &Sandbox::new(), &["train", "--device", "wgpu"]);
    assert_eq!(outcome.code, Some(2));
}

#[test]
fn bad_run_directories() {
    let sandbox = sandbox_with_run();
    fs::create_dir(sandbox.path("other")).unwrap();
    fs::write(sandbox.path("other/file"), "").unwrap();
    copy_dir(&sandbox.path("run"), &sandbox.path("fresh"));
    fs::remove_dir_all(sandbox.path("fresh/checkpoints")).unwrap();
    copy_dir(&sandbox.path("run"), &sandbox.path("damaged"));
    fs::write(sandbox.path("damaged/run.json"), "{").unwrap();
    copy_dir(&sandbox.path("run"), &sandbox.path("in-use"));
    let lock = File::create(sandbox.path("in-use/lock")).unwrap();
    lock.try_lock().unwrap();
    let cases: [(&str, &[&str]); 11] = [
        ("run-exists", &["train", "--out", "run"]),
        ("directory-exists", &["train", "--out", "other"]),
        ("run-in-use", &["train", "--resume", "in-use"]),
        ("not-a-run-resume", &["train", "--resume", "other"]),
        ("not-a-run-eval", &["eval", "other"]),
        ("not-a-run-inspect", &["inspect", "other"]),
        ("missing-run", &["inspect", "runs/nothing"]),
        ("damaged-run", &["inspect", "damaged"]),
        ("no-checkpoint-eval", &["eval", "fresh"]),
        ("no-checkpoint-of-this-name", &["eval", "run", "--checkpoint", "step-00000003"]),
        ("no-checkpoint-resume", &["train", "--resume", "fresh", "--checkpoint", PREVIOUS]),
    ];
    for (name, args) in cases {
        let outcome = check(name, &sandbox, args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""), "{name}");
    }
    let outcome = check("no-checkpoint-inspect", &sandbox, &["inspect", "fresh"]);
    assert_eq!(outcome.code, Some(0));
}

#[test]
fn damaged_checkpoints() {
    type Damage<'a> = &'a dyn Fn(&Sandbox);
    let cases: [(&str, Damage<'_>); 5] = [
        ("checkpoint-cut-short", &|sandbox| cut_short(&sandbox.path(NEWEST).join("model.safetensors"))),
        ("checkpoint-flipped-bit", &|sandbox| flip_bit(&sandbox.path(NEWEST).join("model.safetensors"))),
        ("optimizer-flipped-bit", &|sandbox| flip_bit(&sandbox.path(NEWEST).join("optimizer.burnpack"))),
        ("manifest-flipped-bit", &|sandbox| flip_bit(&sandbox.path(NEWEST).join("manifest.json"))),
        ("checksums-missing", &|sandbox| fs::remove_file(sandbox.path(NEWEST).join("SHA256SUMS")).unwrap()),
    ];
    let sandbox = sandbox_with_run();
    fs::rename(sandbox.path("run"), sandbox.path("intact")).unwrap();
    let before: Value =
        serde_json::from_slice(&fs::read(sandbox.path("intact/result.json")).unwrap()).unwrap();
    for (name, damage) in cases {
        copy_dir(&sandbox.path("intact"), &sandbox.path("run"));
        damage(&sandbox);
        let outcome = check(name, &sandbox, &["eval", "run"]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""), "{name}");
        assert!(outcome.stderr.contains(PREVIOUS), "{name}: the intact checkpoint is offered");
        let advice = |command: &str| outcome.stderr.replace("lowbit eval", command);
        let resume =
            advice("lowbit train --resume").replace(&format!("--checkpoint {PREVIOUS}"), "--or-previous");
        let cases = [
            (&["inspect", "run"][..], advice("lowbit inspect")),
            (&["train", "--resume", "run"], resume.replace("read it", "go on from it")),
        ];
        for (args, expected) in cases {
            let same = sandbox.run(args);
            assert_eq!((same.code, same.stderr), (Some(4), expected), "{name}: {args:?}");
        }
        let evaluation = sandbox.json(&["eval", "run", "--checkpoint", PREVIOUS]);
        assert_eq!(evaluation["matches"], true, "{name}");
        // Going on from the intact one ends where the whole run ended.
        let result = sandbox.json(&["train", "--resume", "run", "--checkpoint", PREVIOUS]);
        assert_eq!((&result["top1"], &result["loss"]), (&before["top1"], &before["loss"]), "{name}");
        fs::remove_dir_all(sandbox.path("run")).unwrap();
    }
}

/// The name of the newest checkpoint is taken by something else.
#[test]
fn checkpoint_that_is_no_directory() {
    let sandbox = sandbox_with_run();
    for other in ["step-9", "step-+0000009", "step-000000009"] {
        fs::write(sandbox.path("run/checkpoints").join(other), "").unwrap();
    }
    assert_eq!(
        sandbox.json(&["eval", "run"])["checkpoint"],
        "step-00000008",
        "those are no names of checkpoints"
    );
    fs::write(sandbox.path("run/checkpoints/step-00000099"), "").unwrap();
    for args in [&["eval", "run"][..], &["inspect", "run"], &["train", "-q", "--resume", "run"]] {
        let outcome = sandbox.run(args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""), "{args:?}");
        let expected = "error: checkpoint run/checkpoints/step-00000099 is damaged: SHA256SUMS: not a directory; the \
                        newest intact one is step-00000008; ";
        assert!(outcome.stderr.starts_with(expected), "{args:?}: {}", outcome.stderr);
    }
    assert_eq!(sandbox.json(&["train", "--resume", "run", "--checkpoint", PREVIOUS])["status"], "complete");
    assert!(sandbox.path("run/set-aside/after-step-00000004/checkpoints/step-00000099").is_file());
}

/// What is damaged is the list of files, not a file.
#[test]
fn damaged_checksums() {
    let sandbox = Sandbox::new();
    let args = ["--out", "run", "--set", "train.ema_decay=0.9", "--set", "strategy.joint={}"];
    let args = [&tiny_with(&args)[..], &["--set", "train.epochs=2"]].concat();
    assert_eq!(sandbox.run(&args).code, Some(0));
    let sums = sandbox.path(NEWEST).join("SHA256SUMS");
    let intact = fs::read_to_string(&sums).unwrap();
    let without = |file: &str| {
        let kept = intact.lines().filter(|line| !line.ends_with(&format!("  {file}")));
        kept.map(|line| format!("{line}\n")).collect::<String>()
    };
    let cases = [
        (
            intact.replacen("  average.safetensors", "  averagd.safetensors", 1),
            "SHA256SUMS names \"averagd.safetensors\", which is not there",
        ),
        (
            intact.replace("  teacher.model.safetensors", "  teacher.modeh.safetensors"),
            "SHA256SUMS names \"teacher.modeh.safetensors\", which is not there",
        ),
        (
            intact.replacen("  average.safetensors", "  ../average.safetensors", 1),
            "SHA256SUMS names \"../average.safetensors\", which is not there",
        ),
        (intact.replacen('\n', "\x0b", 1), "SHA256SUMS names"),
        (intact.replacen("  ", "\"  ", 1), "line 1 of SHA256SUMS is no checksum of a file"),
        (intact.replacen("  ", " ", 1), "line 1 of SHA256SUMS is no checksum of a file"),
        (
            intact.replacen("  average.safetensors", "  model.safetensors", 1),
            "line 3 of SHA256SUMS is no checksum of a file",
        ),
        (without("average.safetensors"), "average.safetensors is not in SHA256SUMS"),
        (without("teacher.model.safetensors"), "teacher.model.safetensors is not in SHA256SUMS"),
        (String::new(), "is not in SHA256SUMS"),
    ];
    for (content, problem) in cases {
        assert_ne!(content, intact, "{problem}");
        fs::write(&sums, content).unwrap();
        for args in [&["eval", "run"][..], &["train", "-q", "--resume", "run"]] {
            let outcome = sandbox.run(args);
            assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""), "{problem}: {args:?}");
            assert!(outcome.stderr.contains(" is damaged: "), "{}", outcome.stderr);
            assert!(outcome.stderr.contains(problem), "{problem}: {}", outcome.stderr);
            assert!(outcome.stderr.contains(&format!("the newest intact one is {PREVIOUS}; ")), "{problem}");
        }
    }
    fs::write(&sums, intact).unwrap();
    fs::write(sandbox.path(NEWEST).join(".directory"), "of a file manager").unwrap();
    assert_eq!(sandbox.json(&["eval", "run"])["matches"], true);
}

/// A run that is done but for its result gets one, whatever became of an earlier checkpoint.
#[test]
fn damaged_best_checkpoint() {
    let sandbox = sandbox_with_run();
    // Not believed: the checksum is not of this manifest.
    set_top1(&sandbox, "run/checkpoints/step-00000004", 1.0);
    assert_eq!(sandbox.json(&["inspect", "run"])["best"], "step-00000008");
    if !sum_up(&sandbox, "run/checkpoints/step-00000004") {
        return skip("no sha256sum here");
    }
    assert_eq!(sandbox.json(&["inspect", "run"])["best"], PREVIOUS);
    flip_bit(&sandbox.path("run/checkpoints/step-00000004/model.safetensors"));
    fs::remove_file(sandbox.path("run/result.json")).unwrap();
    let outcome = sandbox.run(&["train", "--resume", "run", "--json"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let result: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(result["best"]["checkpoint"], "step-00000008");
    assert_eq!(result["best"]["top1"], result["top1"]);
    let warning = "checkpoint run/checkpoints/step-00000004 is damaged: model.safetensors does not match its checksum in \
                   SHA256SUMS; the best checkpoint is looked for among the others";
    assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    assert!(sandbox.path("run/result.json").is_file());
}

#[test]
fn no_intact_checkpoint() {
    let sandbox = sandbox_with_run();
    flip_bit(&sandbox.path(NEWEST).join("model.safetensors"));
    flip_bit(&sandbox.path("run/checkpoints").join(PREVIOUS).join("model.safetensors"));
    assert_eq!(check("no-intact-checkpoint", &sandbox, &["eval", "run"]).code, Some(4));
}

/// A checkpoint whose tensors fit, but which another training made, is no state of this one.
#[test]
fn checkpoint_of_another_recipe() {
    let sandbox = sandbox_with_run();
    let recipe = fs::read_to_string(sandbox.path("run/recipe.toml")).unwrap();
    let changes: [&[&str]; 4] = [
        &["digits-preresnet8-fp32"],
        &["--set", "seed=1"],
        &["--set", "train.optimizer={kind=\"sgd\", momentum=0.5}"],
        &["--set", "train.learning_rate=0.01"],
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let other = format!("other-{i}");
        let args = [&["train", "-q", "--out", &other], change, &TINY].concat();
        assert_eq!(
            sandbox.run(&[&args[..], &["--set", "train.epochs=2"]].concat()).code,
            Some(0),
            "{change:?}"
        );
        fs::remove_dir_all(sandbox.path(NEWEST)).unwrap();
        copy_dir(&sandbox.path(&format!("{other}/checkpoints/step-00000008")), &sandbox.path(NEWEST));
        for args in [["eval", "run"].as_slice(), &["train", "-q", "--resume", "run"]] {
            let outcome = sandbox.run(args);
            assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""), "{change:?} {args:?}");
            let expected = format!("error: checkpoint {NEWEST} is of another recipe than that of its run");
            assert!(outcome.stderr.starts_with(&expected), "{}", outcome.stderr);
        }
    }
    fs::write(sandbox.path("other-1/recipe.toml"), recipe.replace("epochs = 2", "epochs = 3")).unwrap();
    assert_eq!(check("edited-recipe-eval", &sandbox, &["eval", "other-1"]).code, Some(4));
    fs::write(sandbox.path("other-1/recipe.toml"), recipe.replace("epochs = 2", "epochs = 0")).unwrap();
    assert_eq!(check("damaged-recipe", &sandbox, &["eval", "other-1"]).code, Some(4));
}

#[test]
fn checkpoint_without_or_with_moving_average() {
    let sandbox = sandbox_with_run();
    let args = tiny_with(&["--out", "averaged", "--set", "train.ema_decay=0.9"]);
    assert_eq!(sandbox.run(&args).code, Some(0));
    let checkpoint = sandbox.path("averaged/checkpoints/step-00000004");
    let sums = fs::read_to_string(checkpoint.join("SHA256SUMS")).unwrap();
    let without: String =
        sums.lines().filter(|line| !line.contains("average")).map(|line| format!("{line}\n")).collect();
    fs::write(checkpoint.join("SHA256SUMS"), without).unwrap();
    fs::remove_file(checkpoint.join("average.safetensors")).unwrap();
    let checkpoint = sandbox.path(NEWEST);
    let sums = fs::read_to_string(checkpoint.join("SHA256SUMS")).unwrap();
    let model = sums.lines().find(|line| line.ends_with("  model.safetensors")).unwrap();
    let average = model.replace("model.safetensors", "average.safetensors");
    fs::write(checkpoint.join("SHA256SUMS"), format!("{sums}{average}\n")).unwrap();
    fs::copy(checkpoint.join("model.safetensors"), checkpoint.join("average.safetensors")).unwrap();
    for (run, problem) in [("averaged", "it has no moving average"), ("run", "it has a moving average")] {
        for args in [["eval", run].as_slice(), &["train", "-q", "--resume", run]] {
            let outcome = sandbox.run(args);
            assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""), "{args:?}");
            assert!(outcome.stderr.contains(problem), "{}", outcome.stderr);
        }
    }
}

/// A process that is killed before the run begins leaves files that are no run yet: the next one uses the directory.
#[test]
fn directory_of_a_run_that_never_began() {
    let files = [
        "lock",
        ".recipe.toml.tmp",
        "recipe.toml",
        "plan.json",
        "metrics.jsonl",
        "timing.jsonl",
        ".run.json.tmp",
    ];
    for n_files in 1..=files.len() {
        let sandbox = Sandbox::new();
        fs::create_dir(sandbox.path("run")).unwrap();
        for file in &files[..n_files] {
            fs::write(sandbox.path("run").join(file), "").unwrap();
        }
        if n_files > 5 {
            fs::create_dir(sandbox.path("run/checkpoints")).unwrap();
        }
        fs::write(sandbox.path("run/notes.txt"), "mine").unwrap();
        let args = tiny_with(&["--out", "run"]);
        let outcome = sandbox.run(&args);
        assert_eq!(outcome.code, Some(4), "{n_files}: a file of the user's");
        assert!(outcome.stderr.contains("is not empty and holds no run"), "{}", outcome.stderr);
        fs::remove_file(sandbox.path("run/notes.txt")).unwrap();
        let lock = File::create(sandbox.path("run/lock")).unwrap();
        lock.try_lock().unwrap();
        let outcome = sandbox.run(&args);
        assert_eq!(outcome.code, Some(4), "{n_files}: another process is at it");
        assert!(outcome.stderr.contains("is in use by another"), "{}", outcome.stderr);
        drop(lock);
        let outcome = sandbox.run(&args);
        assert_eq!(outcome.code, Some(0), "{n_files}: {}", outcome.stderr);
        assert_eq!(sandbox.json(&["eval", "run"])["matches"], true);
    }
    // Without the lock, or with a checkpoint, it is something else.
    let sandbox = sandbox_with_run();
    fs::remove_file(sandbox.path("run/run.json")).unwrap();
    assert_eq!(sandbox.run(&tiny_with(&["--out", "run"])).code, Some(4));
    fs::create_dir(sandbox.path("unlocked")).unwrap();
    fs::write(sandbox.path("unlocked/recipe.toml"), "").unwrap();
    assert_eq!(sandbox.run(&tiny_with(&["--out", "unlocked"])).code, Some(4));
}

#[test]
fn leftovers_of_checkpoints_are_removed() {
    let sandbox = sandbox_with_run();
    let checkpoints = sandbox.path("run/checkpoints");
    for leftover in [".step-00000004.old", ".step-00000012.tmp"] {
        copy_dir(&sandbox.path(NEWEST), &checkpoints.join(leftover));
    }
    fs::create_dir(checkpoints.join(".mine")).unwrap();
    fs::remove_dir_all(sandbox.path(NEWEST)).unwrap();
    sandbox.json(&["train", "--resume", "run"]);
    let mut names: Vec<String> = fs::read_dir(checkpoints)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [".mine", "step-00000004", "step-00000008"]);
}

#[test]
fn metrics_that_lack_lines() {
    let sandbox = sandbox_with_run();
    cut_short(&sandbox.path("run/metrics.jsonl"));
    let before = fs::read(sandbox.path("run/metrics.jsonl")).unwrap();
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert_eq!(outcome.code, Some(4));
    assert!(outcome.stderr.starts_with("error: run/metrics.jsonl is damaged: it has "), "{}", outcome.stderr);
    assert_eq!(fs::read(sandbox.path("run/metrics.jsonl")).unwrap(), before);
}

#[test]
fn resumed_on_another_device() {
    if !cfg!(feature = "ndarray") {
        return skip("ndarray is not compiled in");
    }
    let sandbox = sandbox_with_run();
    fs::remove_dir_all(sandbox.path(NEWEST)).unwrap();
    let resumed = sandbox.json(&["train", "--resume", "run", "--device", "ndarray"]);
    assert_eq!(resumed["device"], "ndarray");
    // Whatever the scores are, this is no device to compare them on.
    assert_eq!(sandbox.json(&["eval", "run"])["reported_on"], "ndarray");
    let there = sandbox.json(&["eval", "run", "--device", "ndarray"]);
    assert_eq!((&there["matches"], &there["reported_on"]), (&true.into(), &"ndarray".into()));
    assert_eq!(sandbox.json(&["eval", "run", "--checkpoint", PREVIOUS])["reported_on"], "flex");
}

#[test]
fn run_of_a_backend_that_is_not_compiled_in() {
    let sandbox = sandbox_with_run();
    let info = fs::read_to_string(sandbox.path("run/run.json")).unwrap();
    let mut devices = vec![("tpu:7", "tpu")];
    if !cfg!(feature = "wgpu") {
        devices.push(("wgpu", "wgpu"));
    }
    for (device, feature) in devices {
        fs::write(sandbox.path("run/run.json"), info.replace("\"flex\"", &format!("{device:?}"))).unwrap();
        let outcome = sandbox.run(&["train", "--resume", "run"]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""));
        let expected = format!(
            "error: the run is on device {device:?}, but backend {feature:?} is not compiled in: build with --features \
             {feature}, or go on elsewhere with --device\n"
        );
        assert_eq!(outcome.stderr, expected);
        assert_eq!(sandbox.json(&["eval", "run"])["device"], "flex");
        assert_eq!(sandbox.json(&["train", "--resume", "run", "--device", "flex"])["status"], "complete");
    }
}

/// Processes that were started together are not to train the same thing side by side, for want of what joins them.
#[test]
fn several_processes_need_mpi() {
    let sandbox = Sandbox::new();
    if !cfg!(feature = "mpi") {
        for (name, n) in [("OMPI_COMM_WORLD_SIZE", "4"), ("PMI_SIZE", "2")] {
            let output = sandbox.command(&["train", "--out", "run"]).env(name, n).output().unwrap();
            let outcome = Outcome::of(&output);
            let expected = format!(
                "error: this is one of {n} processes that were started together, and this lowbit is built without MPI: build it with \
                 --features mpi\n"
            );
            assert_eq!((outcome.code, outcome.stderr), (Some(2), expected));
            assert!(!sandbox.path("run").exists());
        }
        let alone =
            sandbox.command(&[&["train", "--out", "run"], &TINY[..]].concat()).env("PMI_SIZE", "1").output();
        assert_eq!(Outcome::of(&alone.unwrap()).code, Some(0));
        assert_eq!(sandbox.json(&["inspect", "run"])["processes"][0]["ranks"], serde_json::Value::Null);
    }
    let outcome = sandbox.run(&["train", "--exchange", "bf16"]);
    let expected = "error: --exchange is for several processes, which mpirun starts, and this one is alone: leave it out\n";
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(2), expected));
}

/// A path that no JSON can hold is refused before anything is trained.
#[test]
fn paths_that_are_no_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let sandbox = sandbox_with_run();
    let path = OsStr::from_bytes(b"r\xff");
    let train = tiny_with(&[]);
    let cases: [(&[&str], &str); 4] =
        [(&train, "--out"), (&train, "--data-dir"), (&["train"], "--resume"), (&["eval"], "--")];
    for (args, option) in cases {
        if option == "--resume" {
            fs::rename(sandbox.path("run"), sandbox.path(".").join(path)).unwrap();
        }
        let outcome = Outcome::of(&sandbox.command(args).arg(option).arg(path).output().unwrap());
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{option}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("r\u{fffd} is not valid UTF-8"), "{option}: {}", outcome.stderr);
        assert!(!sandbox.path("runs").exists(), "{option}");
    }
}

fn epochs_of(sandbox: &Sandbox, file: &str) -> Vec<u64> {
    let lines = fs::read_to_string(sandbox.path(file)).unwrap();
    let epoch = |line: &str| serde_json::from_str::<Value>(line).unwrap()["epoch"].as_u64().unwrap();
    lines.lines().map(epoch).collect()
}

#[test]
fn result_and_times_after_going_on() {
    let sandbox = sandbox_with_run();
    let read =
        || -> Value { serde_json::from_slice(&fs::read(sandbox.path("run/result.json")).unwrap()).unwrap() };
    let whole = read();
    assert!(whole["images_per_second"].as_f64().unwrap() > 0.0);
    // Killed between the last checkpoint and the result.
    fs::remove_file(sandbox.path("run/result.json")).unwrap();
    sandbox.json(&["train", "--resume", "run"]);
    assert_eq!(read()["images_per_second"], whole["images_per_second"]);
    assert_eq!(read(), whole);
    // A result of something else is not replaced.
    let text = fs::read_to_string(sandbox.path("run/result.json")).unwrap();
    let other = text.replacen("\"loss\":", "\"loss\":1", 1);
    fs::write(sandbox.path("run/result.json"), &other).unwrap();
    assert_eq!(sandbox.run(&["train", "--resume", "run"]).code, Some(4));
    assert_eq!(fs::read_to_string(sandbox.path("run/result.json")).unwrap(), other);
    fs::write(sandbox.path("run/result.json"), text).unwrap();

    // An epoch again: its line in timing.jsonl takes the place of the first, also if that was cut short.
    assert_eq!(epochs_of(&sandbox, "run/timing.jsonl"), [1, 2]);
    let manifest = fs::read(sandbox.path("run/checkpoints").join(PREVIOUS).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let before = manifest["progress"]["seconds"].as_f64().unwrap();
    for cut in [false, true] {
        if cut {
            let file = OpenOptions::new().write(true).open(sandbox.path("run/timing.jsonl")).unwrap();
            file.set_len(file.metadata().unwrap().len() - 9).unwrap();
        }
        let again = sandbox.json(&["train", "--resume", "run", "--checkpoint", PREVIOUS]);
        assert_eq!(epochs_of(&sandbox, "run/timing.jsonl"), [1, 2]);
        assert_eq!(epochs_of(&sandbox, "run/metrics.jsonl"), [1, 2]);
        assert!(again["seconds"].as_f64().unwrap() > before, "{again}");
        let newest = sandbox.json(&["inspect", "run"]);
        assert_eq!(newest["checkpoint"]["progress"]["n_images"], 256);
        assert_eq!(newest["checkpoint"]["progress"]["seconds"], again["seconds"]);
    }
}

/// A run that goes on is not complete, though it once was.
#[test]
fn result_of_a_run_that_goes_on() {
    let sandbox = Sandbox::new();
    let args = ["--out", "run", "--set", "checkpoint.keep_last=100"];
    let args = [&tiny_with(&args)[..], &["--set", "train.epochs=30"]].concat();
    assert_eq!(sandbox.run(&args).code, Some(0));
    assert!(sandbox.path("run/result.json").exists());
    let mut command = sandbox.command(&["train", "--resume", "run", "--checkpoint", PREVIOUS]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&sandbox.path("run/set-aside/after-step-00000004/checkpoints/step-00000120"));
    wait_for(&sandbox.path("run/checkpoints/step-00000008"));
    assert!(works(&["kill", common::stop_signal(), &child.id().to_string()]));
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
    assert!(!sandbox.path("run/result.json").exists());
}

#[test]
fn moved_complete_run() {
    let sandbox = sandbox_with_run();
    fs::rename(sandbox.path("run"), sandbox.path("moved")).unwrap();
    assert_eq!(sandbox.json(&["train", "--resume", "moved"])["run_dir"], "moved");
}

/// The run that is printed is the run that can be gone on with, wherever its data lies and whatever it is called.
#[test]
fn printed_commands_work() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("my data")).unwrap();
    for (file, content) in idx_files() {
        fs::write(sandbox.path("my data").join(file), content).unwrap();
    }
    let data = ["--set", "data.dataset=mnist", "--data-dir", "my data"];
    let args = [&["train", "--out", "my runs/one"], &data[..], &TINY].concat();
    let args = [&args[..], &["--set", "train.epochs=1000"]].concat();
    let mut command = sandbox.command(&args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&sandbox.path("my runs/one/checkpoints/step-00000004"));
    assert!(works(&["kill", common::stop_signal(), &child.id().to_string()]));
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.stdout, "saved; continue with: lowbit train --resume 'my runs/one'\n");
    assert!(outcome.stderr.contains("data    mnist: 128 training and 64 test images"), "{}", outcome.stderr);
    let exists = sandbox.run(&["train", "--out", "my runs/one"]);
    assert!(exists.stderr.contains("`lowbit train --resume 'my runs/one'`"), "{}", exists.stderr);

    let shell = |line: &str| {
        let line = line.replace("lowbit ", "\"$0\" ");
        let mut command = Command::new("sh");
        command.args(["-c", &line, LOWBIT]).current_dir(sandbox.path("."));
        command.env("HOME", sandbox.path("home")).env_remove("XDG_DATA_HOME");
        Outcome::of(&command.output().unwrap())
    };
    let evaluation = shell("lowbit eval 'my runs/one'");
    assert_eq!(evaluation.code, Some(0), "{}", evaluation.stderr);
    // A directory that is given comes first.
    fs::rename(sandbox.path("my data"), sandbox.path("moved")).unwrap();
    assert_eq!(sandbox.run(&["eval", "my runs/one"]).code, Some(3));
    assert_eq!(sandbox.run(&["eval", "my runs/one", "--data-dir", "moved"]).code, Some(0));
    fs::rename(sandbox.path("moved"), sandbox.path("my data")).unwrap();
    // What is not as the run knows it is in the command.
    fs::rename(sandbox.path("my data"), sandbox.path("new data")).unwrap();
    let newest = || sandbox.json(&["inspect", "my runs/one"])["checkpoint"]["name"].clone();
    let before = newest();
    let device = if cfg!(feature = "ndarray") { "ndarray" } else { "flex" };
    let args = ["train", "--resume", "my runs/one", "--data-dir", "new data", "--device", device];
    let child = sandbox.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while newest() == before {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(works(&["kill", common::stop_signal(), &child.id().to_string()]));
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    let options = match device {
        "flex" => "--data-dir 'new data'".to_string(),
        other => format!("--device {other} --data-dir 'new data'"),
    };
    let expected = format!("saved; continue with: lowbit train --resume 'my runs/one' {options}\n");
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
    fs::rename(sandbox.path("new data"), sandbox.path("my data")).unwrap();

    let done = [&["train", "--out", "it's"], &data[..], &TINY].concat();
    let outcome = sandbox.run(&done);
    let printed = outcome.stdout.lines().filter_map(|line| line.find("lowbit ").map(|start| &line[start..]));
    let printed: Vec<&str> = printed.collect();
    assert_eq!(printed, [r"lowbit eval 'it'\''s'", r"lowbit inspect 'it'\''s'"]);
    for line in printed {
        assert_eq!(shell(line).code, Some(0), "{line}");
    }
    fs::rename(sandbox.path("my data"), sandbox.path("new data")).unwrap();
    let outcome = sandbox.run(&["train", "--resume", "it's", "--data-dir", "new data"]);
    let printed =
        outcome.stdout.lines().find_map(|line| line.find("lowbit eval").map(|start| &line[start..]));
    assert_eq!(printed, Some(r"lowbit eval 'it'\''s' --data-dir 'new data'"));
    assert_eq!(shell(printed.unwrap()).code, Some(0));
}

/// A run goes on with its own images only; others can be scored.
#[test]
fn other_data() {
    let sandbox = Sandbox::new();
    let write = |directory: &str, change: &dyn Fn(&mut [IdxFile; 4])| {
        let mut files = idx_files();
        change(&mut files);
        fs::create_dir(sandbox.path(directory)).unwrap();
        for (file, content) in files {
            fs::write(sandbox.path(directory).join(file), content).unwrap();
        }
    };
    // The first `n` images of a pair of files.
    let shorten = |files: &mut [IdxFile], n: usize| {
        for (file, record, header) in [(0, 28 * 28, 16), (1, 1, 8)] {
            files[file].1[4..8].copy_from_slice(&(n as u32).to_be_bytes());
            files[file].1.truncate(header + n * record);
        }
    };
    write("data", &|_| {});
    write("fewer", &|files| shorten(&mut files[..2], 64));
    write("changed", &|files| files[0].1[5000] ^= 1);
    write("other-test", &|files| files[3].1[20] ^= 1);
    let args = ["train", "-q", "--out", "run", "--data-dir", "data", "--set", "data.dataset=mnist"];
    let args = [&args[..], &["--set", "data.batch_size=32", "--set", "train.epochs=2"]].concat();
    assert_eq!(sandbox.run(&args).code, Some(0));
    let files =
        || ["result.json", "metrics.jsonl"].map(|file| fs::read(sandbox.path("run").join(file)).unwrap());
    let before = files();
    for (data_dir, args) in [
        ("fewer", &["train", "--resume", "run"][..]),
        ("changed", &["train", "--resume", "run", "--checkpoint", PREVIOUS]),
        ("other-test", &["train", "--resume", "run"]),
    ] {
        let args = [args, &["--data-dir", data_dir]].concat();
        let outcome = check(&format!("other-data-{data_dir}"), &sandbox, &args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), ""), "{data_dir}");
    }
    assert_eq!(files(), before);
    assert_eq!(sandbox.json(&["inspect", "run"])["checkpoints"].as_array().unwrap().len(), 2);

    assert_eq!(sandbox.json(&["eval", "run", "--data-dir", "changed"])["same_data"], true);
    assert_eq!(
        check("eval-other-data", &sandbox, &["eval", "run", "--data-dir", "other-test"]).code,
        Some(0)
    );
    let evaluation = sandbox.json(&["eval", "run", "--data-dir", "other-test"]);
    assert_eq!((&evaluation["same_data"], &evaluation["matches"]), (&false.into(), &Value::Null));

    // An earlier lowbit did not write down what the images were: what does not fit is noticed nevertheless.
    let mut info: Value = serde_json::from_slice(&fs::read(sandbox.path("run/run.json")).unwrap()).unwrap();
    info.as_object_mut().unwrap().remove("data");
    fs::write(sandbox.path("run/run.json"), info.to_string()).unwrap();
    let outcome = check("other-data-unknown", &sandbox, &["train", "--resume", "run", "--data-dir", "fewer"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), ""));
    assert_eq!(
        sandbox.run(&["train", "--resume", "run", "--data-dir", "fewer", "--checkpoint", PREVIOUS]).code,
        Some(3)
    );
    assert_eq!(files(), before);
    assert_eq!(sandbox.json(&["train", "--resume", "run", "--checkpoint", PREVIOUS])["status"], "complete");
    assert_eq!(sandbox.json(&["eval", "run"])["same_data"], Value::Null);
}

#[test]
fn places_that_are_no_directory() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("file"), "").unwrap();
    std::os::unix::fs::symlink("nowhere", sandbox.path("link")).unwrap();
    for (out, message) in [
        ("file", "failed to open directory file: not a directory"),
        ("file/sub", "failed to create directory file: there is a file of this name"),
        ("file/sub/sub", "failed to create directory file/sub: not a directory"),
        ("link", "failed to open directory link: no such file or directory"),
    ] {
        let outcome = sandbox.run(&tiny_with(&["--out", out]));
        assert_eq!((outcome.code, outcome.stderr), (Some(4), format!("error: {message}\n")), "{out}");
    }
}

#[test]
fn files_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;

    let sandbox = sandbox_with_run();
    let mode = |path: &str, mode| {
        fs::set_permissions(sandbox.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(".", 0o755);
    fs::create_dir(sandbox.path("unreadable")).unwrap();
    let model = &format!("{NEWEST}/model.safetensors");
    let cases: [(&str, &[&str], String); 5] = [
        ("run", &["eval", "run"], "failed to read run/run.json: permission denied".into()),
        ("run/run.json", &["eval", "run"], "failed to read run/run.json: permission denied".into()),
        (model, &["eval", "run"], format!("failed to read checkpoint file {model}: permission denied")),
        (
            "run/checkpoints",
            &["eval", "run"],
            "failed to read checkpoint file run/checkpoints: permission denied".into(),
        ),
        (
            "unreadable",
            &["train", "--out", "unreadable"],
            "failed to open directory unreadable: permission denied".into(),
        ),
    ];
    for (path, args, message) in cases {
        let is_dir = sandbox.path(path).is_dir();
        mode(path, 0o000);
        let Some(mut command) = unprivileged(&sandbox, args) else {
            return skip("running as root, and setpriv cannot run the binary as nobody");
        };
        let outcome = Outcome::of(&command.output().unwrap());
        mode(path, if is_dir { 0o755 } else { 0o644 });
        assert_eq!((outcome.code, outcome.stderr), (Some(4), format!("error: {message}\n")), "{path}");
    }
    fs::create_dir(sandbox.path("data")).unwrap();
    for (file, content) in idx_files() {
        fs::write(sandbox.path("data").join(file), content).unwrap();
    }
    let args = tiny_with(&["--set", "data.dataset=mnist", "--data-dir", "data", "--out", "unreadable/run"]);
    for path in ["data/train-labels-idx1-ubyte", "data"] {
        mode(path, 0o000);
        let outcome = Outcome::of(&unprivileged(&sandbox, &args).unwrap().output().unwrap());
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), ""), "{path}");
        assert!(
            outcome.stderr.contains(": permission denied; check its owner and mode"),
            "{}",
            outcome.stderr
        );
    }
}

/// A run directory that is moved away is not begun again where it was.
#[test]
fn moved_while_training() {
    let sandbox = Sandbox::new();
    let args = [&["train", "-q", "--out", "run", "--set", "train.epochs=1000"], &TINY[2..]].concat();
    let child = sandbox.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&sandbox.path("run/checkpoints/step-00000004"));
    fs::rename(sandbox.path("run"), sandbox.path("moved")).unwrap();
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("no such file or directory"), "{}", outcome.stderr);
    assert!(!sandbox.path("run").exists());
    assert_eq!(sandbox.json(&["eval", "moved"])["matches"], true);
}

#[test]
fn missing_data() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("empty")).unwrap();
    let on = |dataset| tiny_with(&["--set", dataset, "--data-dir", "nowhere"]);
    let outcome = check("missing-data-dir", &sandbox, &on("data.dataset=mnist"));
    assert_eq!(outcome.code, Some(3));
    let args = tiny_with(&["--set", "data.dataset=cifar100", "--data-dir", "empty"]);
    let outcome = check("missing-data", &sandbox, &args);
    assert_eq!(outcome.code, Some(3));
    assert!(!sandbox.path("runs").exists(), "a training without data leaves no run directory");
}

/// The name and content of one IDX file.
type IdxFile = (&'static str, Vec<u8>);

/// MNIST of the sizes of [`TINY`].
fn idx_files() -> [IdxFile; 4] {
    let file = |magic: u32, sizes: &[u32], values: &dyn Fn(usize) -> u8| {
        let n_values: u32 = sizes.iter().product();
        let header =
            [&[magic], sizes].concat().iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        [header, (0..n_values as usize).map(values).collect()].concat()
    };
    let pixel = |i: usize| (i * 7 % 251) as u8;
    let label = |i: usize| (i % 10) as u8;
    [
        ("train-images-idx3-ubyte", file(0x803, &[128, 28, 28], &pixel)),
        ("train-labels-idx1-ubyte", file(0x801, &[128], &label)),
        ("t10k-images-idx3-ubyte", file(0x803, &[64, 28, 28], &pixel)),
        ("t10k-labels-idx1-ubyte", file(0x801, &[64], &label)),
    ]
}

/// The start of a gzip file: a stored block that promises more than there is.
const GZIP_START: [u8; 18] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0x00, 0xff, 0xff, 0x00, 0x00, 0, 0, 8];

#[test]
fn damaged_idx_files() {
    let gzip = |[_, rest @ ..]: [IdxFile; 4]| {
        let images = ("train-images-idx3-ubyte.gz", GZIP_START.into());
        [vec![images], rest.into()].concat()
    };
    let changed = |change: &dyn Fn(&mut [IdxFile; 4])| {
        let mut files = idx_files();
        change(&mut files);
        Vec::from(files)
    };
    let cases: [(&str, Vec<IdxFile>); 8] = [
        ("idx-cut-short", changed(&|files| files[0].1.truncate(50_000))),
        ("idx-header-cut-short", changed(&|files| files[0].1.truncate(7))),
        ("idx-too-long", changed(&|files| files[2].1.push(0))),
        ("idx-wrong-magic", changed(&|files| files[1].1[3] = 3)),
        ("idx-wrong-size", changed(&|files| files[0].1[11] = 27)),
        ("idx-label-out-of-range", changed(&|files| files[1].1[8 + 5] = 10)),
        ("idx-gzip-cut-short", gzip(idx_files())),
        ("idx-file-missing", changed(&|files| files[3].0 = "labels")),
    ];
    for (name, files) in cases {
        let sandbox = Sandbox::new();
        fs::create_dir(sandbox.path("data")).unwrap();
        for (file, content) in files {
            fs::write(sandbox.path("data").join(file), content).unwrap();
        }
        let args = tiny_with(&["--set", "data.dataset=mnist", "--data-dir", "data"]);
        let outcome = check(name, &sandbox, &args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), ""), "{name}");
    }
}

#[test]
fn intact_idx_files() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("data")).unwrap();
    for (file, content) in idx_files() {
        fs::write(sandbox.path("data").join(file), content).unwrap();
    }
    let result =
        sandbox.json(&tiny_with(&["--set", "data.dataset=mnist", "--data-dir", "data", "--out", "run"]));
    let evaluation = sandbox.json(&["eval", "run", "--data-dir", "data"]);
    assert_eq!(evaluation["loss"], result["loss"]);
    // Not the published files.
    let outcome = sandbox.run(&["data", "verify", "mnist", "--data-dir", "data"]);
    assert_eq!(outcome.code, Some(6));
    assert!(outcome.stdout.contains("differs"), "{}", outcome.stdout);
}

/// CIFAR-100 in its real size: records of two labels and 3,072 pixels, the first few varied, the others zero.
fn cifar100(sandbox: &Sandbox) {
    fs::create_dir_all(sandbox.path("data/cifar-100-binary")).unwrap();
    for (file, n_records) in [("train.bin", 50_000), ("test.bin", 10_000)] {
        let mut file = File::create(sandbox.path("data/cifar-100-binary").join(file)).unwrap();
        for record in 0..64_u32 {
            let pixel = |i: u32| ((record * 3072 + i).wrapping_mul(2_654_435_761) >> 24) as u8;
            let labels = [(record % 20) as u8, (record * 7 % 100) as u8];
            file.write_all(&[labels.to_vec(), (0..3072).map(pixel).collect()].concat()).unwrap();
        }
        file.set_len(n_records * 3074).unwrap();
    }
}

/// The recipe for CIFAR-100 on a few images, from unpacked files and from the archive.
#[test]
fn cifar100_recipe() {
    let sandbox = Sandbox::new();
    cifar100(&sandbox);
    let train = |out: &str, data_dir: &str| {
        let args = ["train", "cifar100-preresnet20-w2a2", "--out", out, "--data-dir", data_dir];
        let changes = [
            "train.epochs=1",
            "data.train_limit=32",
            "data.test_limit=16",
            "data.batch_size=16",
            "train.warmup_epochs=0",
        ];
        let changes = changes.iter().flat_map(|change| ["--set", change]).collect::<Vec<_>>();
        sandbox.json(&[&args[..], &changes].concat())
    };
    let result = train("run", "data");
    assert!(result["loss"].as_f64().unwrap() > 1.0, "{result}");
    assert_eq!(sandbox.json(&["eval", "run"])["matches"], true);
    let inspection = sandbox.json(&["inspect", "run"]);
    assert_eq!(inspection["plan"]["layers"].as_array().unwrap().last().unwrap()["shape"][0], 100);

    let archive = ["tar", "-C", "data", "-czf", "cifar-100-binary.tar.gz", "cifar-100-binary"];
    let packed = Command::new(archive[0]).args(&archive[1..]).current_dir(sandbox.path(".")).status();
    if !packed.is_ok_and(|status| status.success()) {
        return skip("no tar here");
    }
    fs::remove_dir_all(sandbox.path("data")).unwrap();
    let from_archive = train("packed", "cifar-100-binary.tar.gz");
    assert_eq!(from_archive["loss"], result["loss"]);
    assert_eq!(sandbox.json(&["inspect", "packed"])["state_sha256"], inspection["state_sha256"]);
    let places = sandbox.json(&["data", "list", "--data-dir", "cifar-100-binary.tar.gz"]);
    let places: Vec<&Value> = places.as_array().unwrap().iter().map(|entry| &entry["found_in"]).collect();
    assert_eq!((places[3], places[4]), (&Value::Null, &"cifar-100-binary.tar.gz".into()));
}

#[test]
fn cifar_files() {
    let sandbox = Sandbox::new();
    cifar100(&sandbox);
    let train = sandbox.path("data/cifar-100-binary/train.bin");
    assert_eq!(
        check("data-verify-unpacked", &sandbox, &["data", "verify", "cifar100", "--data-dir", "data"]).code,
        Some(6)
    );
    let args =
        tiny_with(&["--set", "data.dataset=cifar100", "--data-dir", "data", "--set", "data.train_limit=64"]);
    // Later overrides win, and these limits are low.
    let args = [args.as_slice(), &["--set", "data.train_limit=64", "--set", "data.test_limit=32"]].concat();
    let outcome = sandbox.run(&args);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);

    let length = fs::metadata(&train).unwrap().len();
    let set_length = |length| OpenOptions::new().write(true).open(&train).unwrap().set_len(length).unwrap();
    let check_fails = |name| assert_eq!(check(name, &sandbox, &args).code, Some(3), "{name}");
    set_length(length - 1);
    check_fails("cifar-cut-short");
    set_length(length + 3074);
    check_fails("cifar-too-long");
    set_length(length);
    let mut file = OpenOptions::new().write(true).open(&train).unwrap();
    file.seek(SeekFrom::Start(3 * 3074 + 1)).unwrap();
    file.write_all(&[100]).unwrap();
    check_fails("cifar-label-out-of-range");
    fs::remove_file(&train).unwrap();
    check_fails("cifar-file-missing");
    fs::remove_dir_all(sandbox.path("data/cifar-100-binary")).unwrap();
    fs::write(sandbox.path("data/cifar-100-binary.tar.gz"), GZIP_START).unwrap();
    check_fails("cifar-archive-cut-short");
}

#[test]
fn data_commands() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&["data", "list"]);
    assert_eq!(outcome.code, Some(0));
    assert!(outcome.stdout.contains("digits            1x8x8       10    1438     359  (built in)"));
    let names: Vec<Value> = sandbox
        .json(&["data", "list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["name"].clone())
        .collect();
    assert_eq!(names, ["digits", "mnist", "fashion-mnist", "cifar10", "cifar100"]);

    check("data-verify-digits", &sandbox, &["data", "verify", "digits"]);
    assert_eq!(sandbox.json(&["data", "verify", "digits"])["ok"], true);
    check("data-fetch-digits", &sandbox, &["data", "fetch", "digits"]);
    assert_eq!(sandbox.json(&["data", "fetch", "digits"])["files"], Value::Array(vec![]));

    fs::create_dir(sandbox.path("data")).unwrap();
    let outcome =
        check("data-verify-missing", &sandbox, &["data", "verify", "cifar10", "--data-dir", "data"]);
    assert_eq!(outcome.code, Some(3));
    let outcome = check("data-dir-missing", &sandbox, &["data", "list", "--data-dir", "nowhere"]);
    assert_eq!(outcome.code, Some(3));
}

#[test]
fn data_fetch_without_network() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(&["data", "fetch", "cifar10", "--data-dir", "data"]);
    // Nobody listens on the port for discarding.
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"] {
        command.env(variable, "http://127.0.0.1:9");
    }
    let outcome = Outcome::of(&command.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap());
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), ""), "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with("error: failed to download https://"), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("put cifar-10-binary.tar.gz by hand into data/cifar10"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn recipes() {
    let sandbox = Sandbox::new();
    check("recipes", &sandbox, &["recipes"]);
    assert_eq!(check("recipes-unknown", &sandbox, &["recipes", "show", "digits"]).code, Some(2));
    let outcome = sandbox.run(&["recipes", "show", "digits-preresnet8-w2a2"]);
    assert_eq!(outcome.code, Some(0));
    // What is shown is a recipe that can be changed and trained.
    fs::write(sandbox.path("mine.toml"), &outcome.stdout).unwrap();
    let embedded = sandbox.json(&["inspect", "digits-preresnet8-w2a2"]);
    assert_eq!(sandbox.json(&["inspect", "mine.toml"]), embedded);
    assert_eq!(sandbox.json(&["recipes", "show", "digits-preresnet8-w2a2"]), embedded["recipe"]);
    let defaults: Vec<Value> = sandbox.json(&["recipes"]).as_array().unwrap().clone();
    assert_eq!(defaults.iter().filter(|recipe| recipe["default"] == true).count(), 1);
}

#[test]
fn inspect_recipe() {
    let sandbox = Sandbox::new();
    let args = ["inspect", "digits-preresnet8-w2a2", "--set", "quantization.act_bits=4"];
    check("inspect-recipe", &sandbox, &args);
    assert_eq!(check("inspect-unknown", &sandbox, &["inspect", "nothing"]).code, Some(2));
    let named = sandbox.run(&["inspect", "nothing", "--checkpoint", PREVIOUS]);
    assert!(
        named.stderr.starts_with("error: no run directory \"nothing\", and no recipe"),
        "{}",
        named.stderr
    );
    for args in [["eval", "nothing"].as_slice(), &["train", "--resume", "nothing"]] {
        let outcome = sandbox.run(args);
        assert_eq!(outcome.code, Some(4));
        assert_eq!(outcome.stderr, "error: nothing is not a run directory: there is none of this name\n");
    }
}

#[test]
fn train_eval_inspect() {
    let sandbox = Sandbox::new();
    let outcome = check("train", &sandbox, &[&["train", "--out", "run"], &TINY[..]].concat());
    assert_eq!(outcome.code, Some(0));
    check("eval", &sandbox, &["eval", "run"]);
    check("inspect", &sandbox, &["inspect", "run"]);
    let log = fs::read_to_string(sandbox.path("run/log.txt")).unwrap();
    let events = ["started", "epoch", "complete"].map(|event| log.contains(&format!("run: {event}")));
    assert_eq!(events, [true; 3], "{log}");

    let outcome = sandbox.run(&[&["train", "--out", "again", "--json"], &TINY[..]].concat());
    assert_eq!(outcome.stdout.lines().count(), 1);
    let result: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(result["status"], "complete");
    assert_eq!(result["run_dir"], "again");
    assert_eq!(result["epochs"], 1);
    for key in ["top1", "top5"] {
        assert!((0.0..=1.0).contains(&result[key].as_f64().unwrap()), "{key}");
    }
    for key in ["loss", "seconds", "images_per_second"] {
        assert!(result[key].as_f64().unwrap() > 0.0, "{key}");
    }

    let evaluation = sandbox.json(&["eval", "run"]);
    for key in ["top1", "top5", "loss"] {
        assert_eq!(evaluation[key], result[key], "the same recipe, the same {key}");
        assert_eq!(evaluation["reported"][key], result[key]);
    }
    assert_eq!((&evaluation["matches"], &evaluation["step"]), (&true.into(), &4.into()));

    let [first, second] = ["run", "again"].map(|run| sandbox.json(&["inspect", run]));
    assert_eq!(first["state_sha256"].as_str().unwrap().len(), 64);
    assert_eq!(first["state_sha256"], second["state_sha256"]);
    assert_eq!(first["plan"]["layers"].as_array().unwrap().len(), 10);
}

/// The best checkpoint is there to be found, even if it fell between those that are asked for.
#[test]
fn best_checkpoint_is_saved() {
    let sandbox = Sandbox::new();
    let args = ["train", "-q", "--out", "run", "--set", "checkpoint.every_epochs=100"];
    let result = sandbox.json(&[&args[..], &TINY[2..], &["--set", "train.epochs=6"]].concat());
    let metrics = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap();
    let metrics = metrics.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let top1: Vec<f64> = metrics.map(|epoch| epoch["test"]["top1"].as_f64().unwrap()).collect();
    let best = top1.iter().copied().fold(0.0, f64::max);
    let epoch = top1.iter().position(|&top1| top1 == best).unwrap() + 1;
    assert_eq!(result["best"]["top1"], best);
    assert_eq!(result["best"]["checkpoint"], format!("step-{:08}", 4 * epoch));
}

#[test]
fn reference_is_shown_beside_the_result() {
    let sandbox = Sandbox::new();
    let args = tiny_with(&["--out", "run", "--set", "reference=full precision: 99.1 % (docs/results.md)"]);
    let outcome = sandbox.run(&args);
    assert!(
        outcome.stdout.contains("\nreference   full precision: 99.1 % (docs/results.md)\n"),
        "{}",
        outcome.stdout
    );
    let recipe = fs::read_to_string(sandbox.path("run/recipe.toml")).unwrap();
    assert!(recipe.contains("reference = \"full precision: 99.1 % (docs/results.md)\""), "{recipe}");
}

#[test]
fn threads_that_are_asked_for_are_recorded() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(&tiny_with(&["--out", "run"]));
    assert!(command.env("RAYON_NUM_THREADS", "3").status().unwrap().success());
    assert_eq!(sandbox.json(&["inspect", "run"])["info"]["origin"]["n_threads"], 3);
}

/// The same bits whatever the number of threads, with tensors that are divided among them.
#[test]
fn threads_do_not_change_the_result() {
    let sandbox = Sandbox::new();
    let changes = [
        "train.epochs=1",
        "train.eval_every=1",
        "data.batch_size=128",
        "data.train_limit=384",
        "data.test_limit=128",
        "model.width=2",
    ];
    let changes: Vec<&str> = changes.iter().flat_map(|change| ["--set", change]).collect();
    for (i, special) in [
        &["--set", "quantization.method=dorefa"][..],
        &["--set", "quantization.method=lsq", "--set", "quantization.weight_granularity=per-channel"],
        &["--set", "quantization.method=pact", "--set", "train.optimizer={kind=\"adamw\"}"],
    ]
    .into_iter()
    .enumerate()
    {
        let states = ["1", "3"].map(|n_threads| {
            let out = format!("run-{i}-{n_threads}");
            let args = [&["train", "-q", "--out", &out, "--device", "flex"], &changes[..], special].concat();
            let mut command = sandbox.command(&args);
            let outcome = Outcome::of(&command.env("RAYON_NUM_THREADS", n_threads).output().unwrap());
            assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
            let metrics = fs::read_to_string(sandbox.path(&out).join("metrics.jsonl")).unwrap();
            (sandbox.json(&["inspect", &out])["state_sha256"].clone(), metrics)
        });
        assert!(states[0].0.is_string());
        assert_eq!(states[0], states[1], "{special:?}");
    }
}

#[test]
fn default_directories_are_numbered() {
    let sandbox = Sandbox::new();
    let run_dirs = [(); 2].map(|()| sandbox.json(&tiny_with(&[]))["run_dir"].clone());
    assert_eq!(run_dirs, ["runs/digits-preresnet8-w2a2", "runs/digits-preresnet8-w2a2-2"]);
}

#[test]
fn piped_output_is_plain() {
    let sandbox = Sandbox::new();
    let outcome = sandbox.run(&[&["train", "-v", "--set", "train.epochs=3"], &TINY[2..]].concat());
    assert_eq!(outcome.code, Some(0));
    let text = outcome.stdout + &outcome.stderr;
    assert!(!text.contains('\x1b') && !text.contains('\r'), "{text}");
    assert_eq!(text.lines().filter(|line| line.starts_with("epoch ")).count(), 3, "{text}");
    assert!(text.contains("DEBUG lowbit::train: checkpoint saved"), "{text}");
}

#[test]
fn quiet_means_quiet() {
    let outcome = Sandbox::new().run(&tiny_with(&[]));
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    assert!(outcome.stdout.starts_with("last epoch"));
}

#[test]
fn reader_that_leaves_early() {
    let sandbox = Sandbox::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = sandbox.command(&["recipes"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    let outcome = Outcome::of(&output);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

#[test]
fn eval_tells_when_scores_differ() {
    let sandbox = sandbox_with_run();
    set_top1(&sandbox, NEWEST, 0.984375);
    if !sum_up(&sandbox, NEWEST) {
        return skip("no sha256sum here");
    }
    assert_eq!(check("eval-differs", &sandbox, &["eval", "run"]).code, Some(6));
    if cfg!(feature = "ndarray") {
        assert_eq!(
            sandbox.run(&["eval", "run", "--device", "ndarray"]).code,
            Some(0),
            "another device may differ"
        );
    }
}

#[test]
fn devices_agree() {
    if !cfg!(feature = "ndarray") {
        return skip("ndarray is not compiled in");
    }
    let sandbox = sandbox_with_run();
    let [here, there] = ["flex", "ndarray"].map(|device| sandbox.json(&["eval", "run", "--device", device]));
    let difference = here["loss"].as_f64().unwrap() - there["loss"].as_f64().unwrap();
    assert!(difference.abs() < 1e-3, "{here} {there}");
    assert_eq!(there["device"], "ndarray");
}

#[test]
fn diverged() {
    let sandbox = Sandbox::new();
    let args =
        ["digits-preresnet8-fp32", "--set", "train.learning_rate=1e30", "--set", "train.warmup_epochs=0"];
    let args = [&tiny_with(&args)[..], &["--out", "run"]].concat();
    let outcome = check("diverged", &sandbox, &args);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(5), ""));
    let log = fs::read_to_string(sandbox.path("run/log.txt")).unwrap();
    assert!(log.contains("ERROR run: loss is"), "{log}");
    for method in ["dorefa", "lsq"] {
        let out = format!("run-{method}");
        let method = format!("quantization.method={method}");
        let args =
            ["digits-preresnet8-w2a2", "--out", &out, "--set", &method, "--set", "train.learning_rate=1e30"];
        let args = [&["train", "-q"], &args[..], &["--set", "train.warmup_epochs=0"], &TINY].concat();
        let outcome = sandbox.run(&args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(5), ""), "{}", outcome.stderr);
        assert!(outcome.stderr.starts_with("error: loss is "), "{}", outcome.stderr);
    }
}

/// The only step of a training is too large: its loss is finite, and so are the weights, but not what comes of them.
#[test]
fn diverged_in_the_last_step() {
    let sandbox = Sandbox::new();
    let args = [
        "train",
        "-q",
        "--out",
        "run",
        "--set",
        "train.epochs=1",
        "--set",
        "data.train_limit=64",
        "--set",
        "data.batch_size=64",
        "--set",
        "data.test_limit=64",
        "--set",
        "train.learning_rate=1e30",
        "--set",
        "train.warmup_epochs=0",
        "--set",
        "train.schedule={kind=\"constant\"}",
    ];
    let outcome = check("diverged-in-the-last-step", &sandbox, &args);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(5), ""));
    // Nothing is left that could not be read.
    assert!(!sandbox.path("run/result.json").exists());
    let inspection = sandbox.json(&["inspect", "run"]);
    assert_eq!(inspection["checkpoints"], serde_json::json!(["step-00000000"]));
    assert_eq!(fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap(), "");
}

/// Without an evaluation to notice it, no state that is not finite is saved.
#[test]
fn diverged_before_a_checkpoint() {
    let sandbox = Sandbox::new();
    let args = [
        "train",
        "-q",
        "--out",
        "run",
        "--set",
        "train.learning_rate=1e38",
        "--set",
        "train.warmup_epochs=0",
        "--set",
        "train.schedule={kind=\"constant\"}",
        "--set",
        "train.optimizer={kind=\"sgd\", momentum=0.0}",
        "--set",
        "checkpoint.every_steps=1",
        "--set",
        "train.weight_decay=1e10",
    ];
    let outcome = sandbox.run(&[&args[..], &TINY].concat());
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(5), ""), "{}", outcome.stderr);
    assert!(
        outcome.stderr.starts_with("error: the state is not finite at step 1 (epoch 1)"),
        "{}",
        outcome.stderr
    );
    assert!(
        outcome.stderr.contains("last good checkpoint: run/checkpoints/step-00000000;"),
        "{}",
        outcome.stderr
    );
    assert_eq!(sandbox.json(&["inspect", "run"])["checkpoints"], serde_json::json!(["step-00000000"]));
}

/// Whether `args` can be run.
fn works(args: &[&str]) -> bool {
    let status = Command::new(args[0]).args(&args[1..]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A command of a user to whom permissions apply, as they do not to root; `None` if there is no way.
fn unprivileged(sandbox: &Sandbox, args: &[&str]) -> Option<Command> {
    let probe = sandbox.path("probe");
    fs::write(&probe, "").unwrap();
    fs::set_permissions(&probe, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let is_root = File::open(&probe).is_ok();
    fs::remove_file(&probe).unwrap();
    if !is_root {
        return Some(sandbox.command(args));
    }
    let as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--", LOWBIT];
    works(&[&as_nobody[..], &["--version"]].concat()).then(|| {
        let mut command = Command::new(as_nobody[0]);
        command.args(&as_nobody[1..]).args(args).current_dir(sandbox.path("."));
        command
    })
}

/// Ends a test that cannot be made here; with LOWBIT_NO_SKIP=1, as in continuous integration, that is a failure.
fn skip(reason: &str) {
    assert!(
        std::env::var_os("LOWBIT_NO_SKIP").is_none_or(|value| value != "1"),
        "cannot be skipped: {reason}"
    );
    // Past the harness, which shows nothing of a test that passes.
    std::io::stderr().write_all(format!("skipped: {reason}\n").as_bytes()).unwrap();
}

#[test]
fn no_write_permission() {
    use std::os::unix::fs::PermissionsExt;

    let sandbox = Sandbox::new();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&sandbox.path("."), 0o755);
    fs::create_dir(sandbox.path("locked")).unwrap();
    mode(&sandbox.path("locked"), 0o555);
    let args = tiny_with(&["--out", "locked/run"]);
    let Some(mut command) = unprivileged(&sandbox, &args) else {
        return skip("running as root, and setpriv cannot run the binary as nobody");
    };
    let outcome = Outcome::of(&command.output().unwrap());
    check_outcome("no-write-permission", &sandbox, &args.join(" "), &outcome);
    assert_eq!(outcome.code, Some(4));
}

#[test]
fn disk_full_and_resume() {
    // In a mount namespace of its own, so that nothing is left behind whatever happens.
    let mount = "mount -t tmpfs -o size=1400k tmpfs disk";
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("disk")).unwrap();
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", script, LOWBIT]).current_dir(sandbox.path("."));
        command.output()
    };
    if !unshare(mount).is_ok_and(|output| output.status.success()) {
        return skip("mounting is not permitted here");
    }
    let args = [&tiny_with(&["--out", "disk/run"])[..], &["--set", "train.epochs=3"]].concat();
    let resume = "\"$0\" train --resume disk/run -q --json";
    let script = format!(
        "set -u; {mount}; \"$0\" {}; echo \"code $?\"; \"$0\" inspect disk/run --json > inspection.json; \
        mount -o remount,size=16m disk; {resume}; echo \"code $?\"",
        args.join(" "),
    );
    let outcome = Outcome::of(&unshare(&script).unwrap());
    assert!(outcome.stderr.contains("no space left on the disk"), "{}", outcome.stderr);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!((lines[0], lines[2]), ("code 4", "code 0"), "{}{}", outcome.stdout, outcome.stderr);
    let resumed: Value = serde_json::from_str(lines[1]).unwrap();
    let inspection: Value =
        serde_json::from_slice(&fs::read(sandbox.path("inspection.json")).unwrap()).unwrap();
    let step = inspection["checkpoint"]["progress"]["step"].as_u64().unwrap();
    assert!((4..12).contains(&step), "an earlier checkpoint is intact");
    let whole = sandbox.json(&[&tiny_with(&["--out", "whole"])[..], &["--set", "train.epochs=3"]].concat());
    assert_eq!((&resumed["top1"], &resumed["loss"]), (&whole["top1"], &whole["loss"]));
    let first = outcome.stderr.lines().next().unwrap_or_default().to_string();
    check_outcome(
        "disk-full",
        &sandbox,
        "train",
        &Outcome { code: Some(4), stdout: String::new(), stderr: format!("{first}\n") },
    );
}

/// Waits until `path` exists.
fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn interrupted_and_resumed_equals_uninterrupted() {
    let sandbox = Sandbox::new();
    let args = |run| [&tiny_with(&["--json", "--out", run])[..], &["--set", "train.epochs=8"]].concat();
    let whole = sandbox.run(&args("whole"));
    assert_eq!(whole.code, Some(0), "{}", whole.stderr);

    let mut command = sandbox.command(&args("stopped"));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&sandbox.path("stopped/checkpoints/step-00000004"));
    assert!(works(&["kill", common::stop_signal(), &child.id().to_string()]));
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{}{}", outcome.stdout, outcome.stderr);
    let interrupted: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&interrupted["status"], &interrupted["run_dir"]), (&"interrupted".into(), &"stopped".into()));
    assert_eq!(interrupted["steps"], 32);
    let step = interrupted["step"].as_u64().unwrap();
    assert!((4..32).contains(&step), "{step}");
    assert_eq!(sandbox.json(&["inspect", "stopped"])["checkpoint"]["progress"]["step"], step);

    let resumed = sandbox.json(&["train", "--resume", "stopped"]);
    assert_eq!(resumed["status"], "complete");
    let [expected, got] = ["whole", "stopped"].map(|run| {
        let metrics = fs::read_to_string(sandbox.path(run).join("metrics.jsonl")).unwrap();
        (sandbox.json(&["inspect", run])["state_sha256"].clone(), metrics)
    });
    assert_eq!(got, expected);
    let log = fs::read_to_string(sandbox.path("stopped/log.txt")).unwrap();
    assert!(log.contains("run: interrupted") && log.contains("run: resumed"), "{log}");
}

#[test]
fn interrupted_says_how_to_go_on() {
    let sandbox = Sandbox::new();
    let args = [&["train", "--out", "run", "--set", "train.epochs=1000"], &TINY[2..]].concat();
    let mut command = sandbox.command(&args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&sandbox.path("run/checkpoints/step-00000004"));
    // As `timeout` does, which signals the process and then its group.
    let id = child.id().to_string();
    assert!(works(&["sh", "-c", &format!("kill -TERM {id}; kill -TERM {id} 2>&-; true")]));
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130));
    assert_eq!(outcome.stdout, "saved; continue with: lowbit train --resume run\n");
    assert!(outcome.stderr.contains("\nstopping (press Ctrl-C again to abort)\n"));
}

/// A second wish to stop does not wait for the step.
#[test]
fn aborted_by_a_later_signal() {
    let sandbox = Sandbox::new();
    // Steps of seconds: the second signal comes while the first waits for one.
    let slow = ["--set", "model.width=16", "--set", "data.batch_size=512"];
    let args = [&["train", "digits-preresnet8-fp32", "--out", "run"], &slow[..]].concat();
    let child = sandbox.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The program listens before it makes the directory, and stops after its first step at the earliest.
    wait_for(&sandbox.path("run/run.json"));
    let signal = || assert!(works(&["kill", common::stop_signal(), &child.id().to_string()]));
    signal();
    // Within half a second it would be the same wish.
    std::thread::sleep(Duration::from_millis(800));
    signal();
    let outcome = Outcome::of(&child.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
    assert!(outcome.stderr.ends_with("aborted\n"), "{}", outcome.stderr);
}

#[test]
fn completions() {
    let sandbox = Sandbox::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let outcome = sandbox.run(&["completions", shell]);
        assert_eq!(outcome.code, Some(0));
        assert!(outcome.stdout.contains("data-dir"), "{shell}");
    }
    let bash = sandbox.run(&["completions", "bash"]).stdout;
    assert!(bash.contains("compgen -W \"flex ndarray wgpu\""), "{bash}");
    assert!(sandbox.run(&["completions", "zsh"]).stdout.contains(":DEVICE:(flex ndarray wgpu)"));
    assert!(sandbox.run(&["completions", "fish"]).stdout.contains("-l device"));
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let outcome = sandbox.run(&["completions", shell, "--dynamic"]);
        assert_eq!(outcome.code, Some(0));
        assert!(outcome.stdout.contains("LOWBIT_COMPLETE"), "{shell}");
    }
    fs::write(sandbox.path("lowbit.bash"), bash).unwrap();
    match works(&["bash", "-c", "true"]) {
        true => assert!(works(&["bash", "-n", sandbox.path("lowbit.bash").to_str().unwrap()])),
        false => skip("no bash here"),
    }
}

/// What the script of a shell asks for at a Tab.
#[test]
fn names_of_runs_are_completed() {
    let sandbox = sandbox_with_run();
    fs::create_dir_all(sandbox.path("runs")).unwrap();
    copy_dir(&sandbox.path("run"), &sandbox.path("runs/fashion"));
    fs::create_dir(sandbox.path("runs/empty")).unwrap();
    fs::write(sandbox.path("mine.toml"), "").unwrap();
    let complete = |words: &[&str]| {
        let mut command = sandbox.command(&[&["--", "lowbit"], words].concat());
        command.env("LOWBIT_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
        let outcome = Outcome::of(&command.output().unwrap());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{words:?}");
        outcome.stdout.lines().map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["watch", "ru"]), ["run", "runs/"]);
    assert_eq!(complete(&["watch", "runs/"]), ["runs/empty/", "runs/fashion"]);
    assert_eq!(complete(&["watch", "fa"]), ["runs/fashion"]);
    assert_eq!(complete(&["train", "--resume", "runs/f"]), ["runs/fashion"]);
    assert_eq!(complete(&["train", "digits-preresnet8-fp"]), ["digits-preresnet8-fp32"]);
    assert_eq!(complete(&["train", "mi"]), ["mine.toml"]);
    fs::write(sandbox.path("fashion.lowbit"), "").unwrap();
    assert_eq!(complete(&["eval", "fa"]), ["runs/fashion", "fashion.lowbit"]);
    assert_eq!(complete(&["inspect", "mi"]), ["mine.toml"]);
    assert_eq!(complete(&["train", "--device", "fl"]), ["flex"]);
    assert_eq!(complete(&["wat"]), ["watch"]);
}
