//! What a person sees: how far a run is, what was changed, what is meant by words that are wrong, and all of it on narrow
//! terminals.

#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{LOWBIT, Outcome, Sandbox, TINY, copy_dir};

/// A temperature that is known to hurt: a warning that is known before the first step.
const HOT: [&str; 2] = ["--set", "strategy.joint={distance={kind='kl', temperature=4}}"];

/// The paths and contents of all files under `directory`, but the lock.
fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false if path.ends_with("lock") => {}
            false => found.push((path.display().to_string(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

fn sandbox_with_run(args: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    let args = [&["train", "-q", "--out", "run", "--device", "flex"], args, &TINY].concat();
    let outcome = sandbox.run(&[&args[..], &["--set", "train.epochs=2"]].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    sandbox
}

#[test]
fn a_complete_run_is_left_as_it_is() {
    let sandbox = sandbox_with_run(&[]);
    let before = files(&sandbox.path("run"));
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert_eq!(outcome.code, Some(0));
    assert_eq!(outcome.stderr, "already complete, nothing is left to train; its result:\n");
    assert!(outcome.stdout.starts_with("last epoch  top-1 "), "{}", outcome.stdout);
    let result = sandbox.json(&["train", "--resume", "run", "--or-previous"]);
    assert_eq!(result["status"], "complete");
    assert!(files(&sandbox.path("run")) == before, "a file was changed");
    // Without its result, it is made again.
    fs::remove_file(sandbox.path("run/result.json")).unwrap();
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert!(!outcome.stderr.contains("already complete"), "{}", outcome.stderr);
    assert!(sandbox.path("run/result.json").exists());
}

#[test]
fn inspect_begins_with_how_far_a_run_is() {
    let sandbox = sandbox_with_run(&[]);
    let shown = sandbox.run(&["inspect", "run"]).stdout;
    let lines: Vec<&str> = shown.lines().take(7).collect();
    let keys: Vec<&str> = lines.iter().map(|line| line[..12].trim_end()).collect();
    assert_eq!(keys, ["run", "status", "last epoch", "best", "time", "data", "seed"], "{shown}");
    assert_eq!(lines[1], "status      complete, 8 steps");
    assert_eq!(lines[5], "data        digits: 128 training and 64 test images");
    assert_eq!(lines[6], "seed        0");
    let json = sandbox.json(&["inspect", "run"]);
    assert_eq!((&json["steps"], &json["result"]["epochs"]), (&8.into(), &2.into()));

    // Killed in its first phase.
    let args =
        ["train", "-q", "digits-preresnet8-w2a2-pq", "--out", "it's", "--set", "checkpoint.every_steps=1"];
    let args = [&args[..], &TINY, &["--set", "train.epochs=3000"]].concat();
    let mut child = sandbox.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !sandbox.path("it's/checkpoints/step-00000003").exists() {
        assert!(Instant::now() < deadline, "no checkpoint comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let json = sandbox.json(&["inspect", "it's"]);
    let step = json["checkpoint"]["progress"]["step"].as_u64().unwrap();
    let n_phases = json["phases"].as_array().unwrap().len();
    let shown = sandbox.run(&["inspect", "it's"]).stdout;
    let expected = format!(
        "status      step {step} of 12000, phase 1 of {n_phases} (w32a32); resume with `lowbit train --resume 'it'\\''s'`"
    );
    assert_eq!(shown.lines().nth(1), Some(expected.as_str()), "{shown}");
}

#[test]
fn what_set_changes_is_said() {
    let sandbox = Sandbox::new();
    let changed = |args: &[&str]| {
        let outcome = sandbox.run(&[&["train"], args, &TINY].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stderr.lines().find(|line| line.starts_with("changed: ")).map(String::from)
    };
    let tiny =
        "changed: data.batch_size 64 -> 32, data.test_limit not set -> 64, data.train_limit not set -> 128";
    assert_eq!(changed(&[]), Some(format!("{tiny}, train.epochs 30 -> 1")));
    let method = ["--set", "quantization.method=lsq"];
    let expected = format!("{tiny}, quantization.method dorefa -> lsq, train.epochs 30 -> 1");
    assert_eq!(changed(&method), Some(expected));
    assert_eq!(changed(&["-q"]), None);
    let expected = format!("{tiny}, strategy.joint added, train.epochs 30 -> 1");
    assert_eq!(changed(&["--set", "strategy.joint={}"]), Some(expected));
    // Of a file of one's own, too; and what changes nothing is said to.
    let recipe = sandbox.run(&["recipes", "show", "digits-preresnet8-w2a2"]).stdout;
    let mut recipe =
        recipe.replace("epochs = 30", "epochs = 1").replace("batch_size = 64", "batch_size = 32");
    recipe = recipe.replace("[data]\n", "[data]\ntrain_limit = 128\ntest_limit = 64\n");
    fs::write(sandbox.path("mine.toml"), recipe).unwrap();
    assert_eq!(changed(&["mine.toml"]), Some("changed: nothing; the recipe has these values".into()));
    assert_eq!(changed(&["mine.toml", "--set", "seed=7"]), Some("changed: seed 0 -> 7".into()));
    let log = fs::read_to_string(sandbox.path("runs/digits-preresnet8-w2a2/log.txt")).unwrap();
    assert!(log.contains("changed: data.batch_size 64 -> 32"), "{log}");
}

#[test]
fn what_is_meant_is_said() {
    let sandbox = sandbox_with_run(&[]);
    fs::write(sandbox.path("mine.toml"), "").unwrap();
    fs::write(sandbox.path("file"), "").unwrap();
    fs::create_dir(sandbox.path("runs")).unwrap();
    copy_dir(&sandbox.path("run"), &sandbox.path("runs/other"));
    let cases: [(&[&str], &str); 24] = [
        (&["train", "--set", "train.epochs", "3"], "write --set train.epochs=3"),
        (&["eval", "other"], "did you mean runs/other?"),
        (&["train", "--resume", "other"], "did you mean runs/other?"),
        (&["train", "--data", "/data"], "`--data-dir DIR`"),
        (&["train", "--data", "mnist"], "`--set data.dataset=mnist`"),
        (&["train", "-o", "x"], "`--out DIR`"),
        (&["train", "mine"], "no recipe named \"mine\"; did you mean ./mine.toml?"),
        (&["inspect", "mine"], "did you mean ./mine.toml?"),
        (&["train", "file"], "did you mean ./file?"),
        (&["train", "run"], "`lowbit train --resume run`"),
        (&["recipes", "digits-preresnet8-w2a2"], "`lowbit recipes show digits-preresnet8-w2a2`"),
        (&["recipes", "ls"], "`lowbit recipes list`"),
        (&["data", "ls"], "`lowbit data list`"),
        (&["data", "cifar10"], "`lowbit data fetch cifar10`"),
        (&["digits-preresnet8-w2a2"], "`lowbit train digits-preresnet8-w2a2`"),
        (&["train", "--set", "quantization.method=LSQ"], "did you mean \"lsq\"?"),
        (&["train", "--set", "data.dataset=MNIST"], "did you mean \"mnist\"?"),
        (&["train", "digits-preresnet8-w9a2"], "bits are from 1 to 8"),
        (
            &["train", "digits-preresnet8-w2a3-ts"],
            "take \"digits-preresnet8-w2a2-ts\" with the settings quantization.weight_bits=2 and quantization.act_bits=3",
        ),
        (&["train", "--resume", "run", "--set", "init=run"], "`lowbit train RECIPE --set init=run`"),
        (&["eval", "run/checkpoints/step-00000004"], "`lowbit eval run --checkpoint step-00000004`"),
        (&["inspect", "run/checkpoints/step-00000004/"], "`lowbit inspect run --checkpoint step-00000004`"),
        (
            &["train", "--resume", "run/checkpoints/step-00000004"],
            "`lowbit train --resume run --checkpoint step-00000004`",
        ),
        (&["eval", "run/checkpoints"], "`lowbit eval run`"),
    ];
    for args in [
        &["train", "--resume", "run", "--or-resume"][..],
        &["train", "--resume", "run", "--checkpoint", "4", "--or-previous"],
        &["inspect", "run", "--network", "teacher"],
    ] {
        let outcome = sandbox.run(args);
        assert!(outcome.code == Some(2) && !outcome.stderr.contains("tip:"), "{args:?}: {}", outcome.stderr);
    }
    for (args, expected) in cases {
        let outcome = sandbox.run(args);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), ""), "{args:?}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{args:?}: {}", outcome.stderr);
        let is_bad_tip = outcome.stderr.contains("use '-- ") || outcome.stderr.contains("a similar");
        assert!(!is_bad_tip, "{args:?}: {}", outcome.stderr);
    }
}

#[test]
fn checkpoints_have_short_names() {
    let sandbox = sandbox_with_run(&[]);
    for name in ["4", "00004", "step-4", "step-00000004", "run/checkpoints/step-00000004"] {
        let evaluation = sandbox.json(&["eval", "run", "--checkpoint", name]);
        assert_eq!(evaluation["checkpoint"], "step-00000004", "{name}");
    }
    let outcome = sandbox.run(&["eval", "run", "--checkpoint", "638"]);
    assert_eq!(outcome.code, Some(4));
    assert!(outcome.stderr.contains("no checkpoint \"step-00000638\""), "{}", outcome.stderr);
}

/// What follows from a mistake is no mistake of its own.
#[test]
fn one_mistake_is_one_message() {
    let sandbox = Sandbox::new();
    let cases = [
        ("quantization.weight_bits=9", "quantization.weight_bits: "),
        ("quantization.act_bits=0", "quantization.act_bits: "),
        ("quantization.method=LSQ", "quantization.method: "),
        ("model.family=vgg", "model.family: "),
        ("data.dataset=CIFAR", "data.dataset: "),
        ("train.optimizer={kind='Adam', beta1=0.5}", "train.optimizer.kind: "),
        ("train.schedule={kind='step', milestones=[3], gamma=0.5}", "train.schedule.kind: "),
    ];
    let recipes: Vec<String> = ["", "-joint", "-modern", "-pq", "-sp", "-sp-joint", "-ts", "-ts-pq-joint"]
        .iter()
        .flat_map(|method| {
            ["digits-preresnet8", "cifar10-vgg-small"].map(|base| format!("{base}-w2a2{method}"))
        })
        .collect();
    for recipe in &recipes {
        for (setting, key) in cases {
            let outcome = sandbox.run(&["train", recipe, "--set", setting]);
            let expected = format!("error: recipe {recipe} has a mistake:\n  {key}");
            assert!(outcome.stderr.starts_with(&expected), "{recipe} {setting}: {}", outcome.stderr);
            assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(2), 2), "{}", outcome.stderr);
        }
    }
    // Two are two.
    let args = ["train", "--set", "quantization.weight_bits=9", "--set", "train.epochs=0"];
    assert!(sandbox.run(&args).stderr.contains(" has 2 mistakes:\n"));
}

#[test]
fn full_precision_is_called_fp32() {
    let sandbox = Sandbox::new();
    let shown = sandbox.run(&["inspect", "digits-preresnet8-fp32"]).stdout;
    assert!(shown.contains("recipe  digits-preresnet8-fp32 (preresnet-8, fp32)\n"), "{shown}");
    let args = [&["train", "digits-preresnet8-w2a2-joint", "--out", "run"][..], &TINY].concat();
    let outcome = sandbox.run(&args);
    assert!(outcome.stderr.contains("beside it  teacher fp32, "), "{}", outcome.stderr);
    assert!(!outcome.stderr.contains("W32A32"), "{}", outcome.stderr);
}

/// What a command shows on a terminal of so many columns, if there is the program that makes one.
fn on_terminal(sandbox: &Sandbox, columns: usize, command: &str) -> Option<String> {
    // The width of the terminal counts, whatever is exported.
    let script = format!("script -qec \"stty rows 24 cols {columns}; COLUMNS=200 $L {command}\" /dev/null");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(sandbox.path(".")).env("L", LOWBIT).env("TERM", "dumb");
    shell.env("NO_COLOR", "1").env_remove("COLUMNS").env("HOME", sandbox.path("home")).stdin(Stdio::null());
    let outcome = Outcome::of(&shell.output().unwrap());
    if outcome.code != Some(0) {
        let may_skip = std::env::var_os("LOWBIT_NO_SKIP").is_none_or(|value| value != "1");
        assert!(may_skip, "no terminal can be made: {}", outcome.stderr);
        println!("skipped: there is no program `script` or `stty` to make a terminal");
        return None;
    }
    Some(outcome.stdout)
}

#[test]
fn warnings_are_wrapped_on_a_terminal_only() {
    let sandbox = Sandbox::new();
    let message = "strategy.joint.distance.temperature is 4: from 2 on, distillation is known to hurt low-bit students; \
                   the paper uses 1";
    let args = [&["train", "-q", "--out", "run"][..], &HOT, &TINY].concat();
    let mut piped = sandbox.command(&args);
    let outcome = Outcome::of(&piped.env("COLUMNS", "50").output().unwrap());
    assert_eq!(outcome.stderr, format!("warning: {message}\n"));
    // Nor is anything else.
    let inspected = Outcome::of(&sandbox.command(&["inspect", "run"]).env("COLUMNS", "50").output().unwrap());
    assert_eq!(inspected.stdout, sandbox.run(&["inspect", "run"]).stdout);
    let command = format!("train -q {} --set \\\"{}\\\"", TINY.join(" "), HOT[1]);
    let Some(shown) = on_terminal(&sandbox, 50, &command) else { return };
    let lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
    let start = lines.iter().position(|line| line.starts_with("warning: ")).unwrap();
    let warning = &lines[start..start + 3];
    assert!(warning.iter().all(|line| line.len() <= 50), "{warning:?}");
    assert!(warning[1..].iter().all(|line| line.starts_with("         ")), "{warning:?}");
    let words: Vec<&str> = warning.iter().flat_map(|line| line.split_whitespace()).collect();
    assert_eq!(words.join(" "), format!("warning: {message}"));
}

#[test]
fn tables_fit_narrow_terminals() {
    let sandbox = sandbox_with_run(&[]);
    let commands: [&[&str]; 4] = [
        &["recipes"],
        &["inspect", "digits-preresnet8-w2a2-ts-pq-joint"],
        &["inspect", "run"],
        &["train", "--set", "seed=1"],
    ];
    // A digest, or the name of a recipe, is one word, which nothing breaks; it may have a key before it.
    let is_word = |line: &str| line.split_whitespace().count() <= 2 || line.contains(" sha256 ");
    for columns in [40, 50, 60, 79] {
        for args in commands {
            // The result of a training is for its reader, who may be a program.
            let command = match args[0] {
                "train" => format!("{} {} >/dev/null", args.join(" "), TINY.join(" ")),
                _ => args.join(" "),
            };
            let Some(shown) = on_terminal(&sandbox, columns, &command) else { return };
            for line in shown.lines().map(str::trim_end).filter(|line| !is_word(line)) {
                assert!(line.chars().count() <= columns, "{args:?} at {columns}: {line:?}\n{shown}");
            }
            let has_table =
                args[0] == "recipes" || shown.lines().any(|line| line.starts_with("stages.2.0.conv2 "));
            assert!(has_table, "{shown}");
        }
    }
    let Some(shown) = on_terminal(&sandbox, 45, "inspect digits-preresnet8-w2a2") else { return };
    let header = shown.lines().next().unwrap_or_default();
    assert_eq!(
        header.split_whitespace().collect::<Vec<_>>(),
        ["layer", "W", "A", "method", "packed"],
        "{shown}"
    );
    // Wherever there is room, and in a pipe, all of it is shown.
    let whole = sandbox.run(&["inspect", "digits-preresnet8-w2a2"]).stdout;
    assert!(whole.starts_with("layer               weights       params    W    A method "), "{whole}");
}
