//! `lowbit watch` and what else helps to live with a training: the line of where its time went, and its time limit.

#![cfg(unix)]

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{LOWBIT, Outcome, Sandbox, TINY};
use serde_json::Value;

fn train(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    sandbox.run(&[&["train", "-q", "--out", "run"], &TINY[..], args].concat())
}

/// A training that takes its time, once it has recorded `n_epochs`.
fn long_training(sandbox: &Sandbox, n_epochs: usize) -> Child {
    let args = [&["train", "-q", "--out", "run"], &TINY[..], &["--set", "train.epochs=3000"]].concat();
    let mut command = sandbox.command(&args);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let n_lines =
        || fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap_or_default().lines().count();
    while n_lines() < n_epochs {
        assert!(Instant::now() < deadline, "no epoch comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn signal(child: &Child, signal: &str) {
    Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
}

#[test]
fn a_finished_run() {
    let sandbox = Sandbox::new();
    assert_eq!(train(&sandbox, &["--set", "train.epochs=2"]).code, Some(0));
    let outcome = sandbox.run(&["watch", "run", "--once"]);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    let keys: Vec<&str> = outcome.stdout.lines().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(keys, ["run", "state", "phases", "device", "last", "time"], "{}", outcome.stdout);
    assert!(outcome.stdout.contains("state    finished: top-1 "), "{}", outcome.stdout);
    assert!(outcome.stdout.contains(" after 2 epochs in 0:0"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("last     epoch 2/2  train loss "), "{}", outcome.stdout);
    // In a pipe: a line for each epoch, and how it ended.
    let outcome = sandbox.run(&["watch", "run"]);
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    assert_eq!((outcome.code, lines.len()), (Some(0), 3), "{}", outcome.stdout);
    assert!(lines[0].starts_with("epoch 1/2  train loss ") && lines[1].starts_with("epoch 2/2"));
    assert!(lines[2].starts_with("finished: "));
    // What is half written is not there yet.
    fs::remove_file(sandbox.path("run/result.json")).unwrap();
    let metrics = sandbox.path("run/metrics.jsonl");
    OpenOptions::new().append(true).open(metrics).unwrap().write_all(b"{\"epoch\":3,\"st").unwrap();
    let outcome = sandbox.run(&["watch", "run"]);
    assert_eq!((outcome.code, outcome.stdout.lines().count()), (Some(0), 3), "{}", outcome.stdout);
    let outcome = sandbox.run(&["watch", "nowhere"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(4), ""), "{}", outcome.stderr);
}

#[test]
fn a_training_is_followed_to_its_end() {
    let sandbox = Sandbox::new();
    let mut child = long_training(&sandbox, 2);
    let shown = sandbox.run(&["watch", "run", "--once"]).stdout;
    assert!(shown.contains("state    training, step "), "{shown}");
    assert!(shown.contains(" of 12000, ETA "), "{shown}");
    let watching = sandbox.command(&["watch", "run"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    signal(&child, "-TERM");
    child.wait().unwrap();
    let outcome = Outcome::of(&watching.wait_with_output().unwrap());
    assert_eq!(outcome.code, Some(0));
    let lines: Vec<&str> = outcome.stdout.lines().collect();
    let metrics = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap();
    assert_eq!(lines.len(), metrics.lines().count() + 1, "each epoch once, and the end");
    let end = lines.last().unwrap();
    assert!(end.starts_with("stopped at step "), "{end}");
    assert!(end.ends_with("; go on with: lowbit train --resume run"), "{end}");
    // Killed, it cannot say so itself.
    let mut command = sandbox.command(&["train", "-q", "--resume", "run"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let n_epochs = metrics.lines().count();
    while fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap().lines().count() <= n_epochs {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let shown = sandbox.run(&["watch", "run", "--once"]).stdout;
    assert!(shown.contains("state    stopped at step "), "{shown}");
    // Without the file that says so, as of a program of one's own, the lock has the process.
    fs::remove_file(sandbox.path("run/live.json")).unwrap();
    let shown = sandbox.run(&["watch", "run", "--once"]).stdout;
    assert!(shown.contains("state    stopped at step "), "{shown}");
}

#[test]
fn a_diverged_training_says_why() {
    let sandbox = Sandbox::new();
    let outcome = train(&sandbox, &["--set", "train.learning_rate=1e30", "--set", "train.epochs=9"]);
    assert_eq!(outcome.code, Some(5), "{}", outcome.stderr);
    let shown = sandbox.run(&["watch", "run", "--once"]).stdout;
    assert!(shown.contains("state    stopped at step ") && shown.contains(" is NaN at step "), "{shown}");
    let live: Value = serde_json::from_slice(&fs::read(sandbox.path("run/live.json")).unwrap()).unwrap();
    assert_eq!(live["status"], "failed");
}

/// A terminal is given back, after a key and after a signal: the main screen, its cursor, its mode.
#[test]
fn the_terminal_is_given_back() {
    let sandbox = Sandbox::new();
    assert_eq!(train(&sandbox, &[]).code, Some(0));
    let on_terminal = |keys: &str, command: &str| {
        let inner = format!("stty rows 24 cols 80; stty -g; {command}; echo code \\$?; stty -g");
        let script = format!("(sleep 2; printf '{keys}'; sleep 1) | script -qec \"{inner}\" /dev/null");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]).current_dir(sandbox.path(".")).env("L", LOWBIT).env("TERM", "xterm");
        let outcome = Outcome::of(&shell.env("HOME", sandbox.path("home")).output().unwrap());
        if outcome.code != Some(0) {
            let may_skip = std::env::var_os("LOWBIT_NO_SKIP").is_none_or(|value| value != "1");
            assert!(may_skip, "no terminal can be made: {}", outcome.stderr);
            println!("skipped: there is no program `script` or `stty` to make a terminal");
            return None;
        }
        Some(outcome.stdout)
    };
    let cases = [
        ("q", "$L watch run", "code 0"),
        ("\\033[C\\033[B\\033", "$L watch run", "code 0"),
        ("\\003", "$L watch run", "code 0"),
        ("", "timeout --foreground -s TERM 1 $L watch run", "code 124"),
    ];
    for (keys, command, code) in cases {
        let Some(shown) = on_terminal(keys, command) else { return };
        let entered = shown.find("\u{1b}[?1049h").unwrap_or_else(|| panic!("{keys:?}: {shown:?}"));
        let left = shown.rfind("\u{1b}[?1049l").unwrap_or_else(|| panic!("{keys:?}: {shown:?}"));
        assert!(entered < left && shown[entered..left].contains("top-1"), "{keys:?}: {shown:?}");
        assert!(shown.rfind("\u{1b}[?25h") > shown.rfind("\u{1b}[?25l"), "the cursor is hidden: {shown:?}");
        let lines: Vec<&str> = shown.lines().map(str::trim_end).collect();
        let modes: Vec<&&str> =
            lines.iter().filter(|line| line.contains(":") && !line.contains('\u{1b}')).collect();
        assert_eq!(modes.len(), 2, "{shown:?}");
        assert_eq!(modes[0], modes[1], "another mode");
        assert!(shown[left..].contains(code), "{keys:?}: {shown:?}");
    }
    // No screen where lines are all there is.
    let Some(shown) = on_terminal("", "TERM=dumb $L watch run") else { return };
    assert!(shown.contains("finished: top-1 ") && !shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn a_training_ends_when_its_time_is_over() {
    let sandbox = Sandbox::new();
    let long = ["--set", "train.epochs=3000"];
    let args = [&["train", "--out", "run", "--time-limit", "2s", "--json"], &TINY[..], &long].concat();
    let outcome = sandbox.run(&args);
    assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("the time limit of 2s is over: stopping\n"), "{}", outcome.stderr);
    let result: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!((&result["status"], &result["reason"]), (&"interrupted".into(), &"time-limit".into()));
    let step = result["step"].as_u64().unwrap();
    let inspected = sandbox.json(&["inspect", "run"]);
    assert_eq!(inspected["checkpoint"]["progress"]["step"], step);
    // The next time it goes on.
    let outcome = sandbox.run(&["train", "--resume", "run", "--time-limit", "1s"]);
    assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
    assert!(outcome.stderr.contains(&format!("resumed at step {step}\n")), "{}", outcome.stderr);
    assert_eq!(outcome.stdout, "saved; continue with: lowbit train --resume run\n");
    for (limit, message) in
        [("2", "45s, 90m or 1h30m"), ("soon", "45s, 90m or 1h30m"), ("10ms", "a second or more")]
    {
        let outcome = sandbox.run(&["train", "--time-limit", limit]);
        assert_eq!(outcome.code, Some(2), "{limit}");
        assert!(outcome.stderr.contains(message), "{}", outcome.stderr);
    }
}

#[test]
fn a_training_says_where_its_time_went() {
    let sandbox = Sandbox::new();
    let outcome =
        sandbox.run(&[&["train", "--out", "run"], &TINY[..], &["--set", "train.epochs=2"]].concat());
    let line = outcome.stderr.lines().find(|line| line.starts_with("time    ")).unwrap();
    assert!(line.contains("forward ") && line.contains("backward ") && line.contains('%'), "{line}");
    let timing = fs::read_to_string(sandbox.path("run/timing.jsonl")).unwrap();
    let mut seconds = 0.0;
    for line in timing.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let parts = line["parts"].as_object().unwrap();
        let names: Vec<&String> = parts.keys().collect();
        assert_eq!(names, ["data", "forward", "backward", "update", "reading", "evaluation", "saving"]);
        seconds += parts.values().map(|part| part.as_f64().unwrap()).sum::<f64>();
        let total = line["seconds"].as_f64().unwrap();
        // What is in no part is little: reports and the like.
        assert!(seconds <= total + 1e-6 && seconds > 0.5 * total, "{seconds} of {total}");
    }
}
