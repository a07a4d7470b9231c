//! Files of a run and of a user that are not what they should be: altered, exchanged, endless, without an end, or no files.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Outcome, Sandbox, TINY, copy_dir};

const NEWEST: &str = "run/checkpoints/step-00000008";

/// Two epochs of four steps in `run`.
fn sandbox_with_run(settings: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    train(&sandbox, "run", settings);
    sandbox
}

fn train(sandbox: &Sandbox, out: &str, settings: &[&str]) {
    let mut args = vec!["train", "-q", "--out", out];
    args.extend(TINY);
    for setting in [&["train.epochs=2", "checkpoint.keep_last=9"], settings].concat() {
        args.extend(["--set", setting]);
    }
    let outcome = sandbox.run(&args);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

/// Makes the checksums of a checkpoint fit what it holds.
fn sum_up(sandbox: &Sandbox, checkpoint: &str) {
    let command = "sha256sum manifest.json *.safetensors *.burnpack > SHA256SUMS";
    let status = Command::new("sh").args(["-c", command]).current_dir(sandbox.path(checkpoint)).status();
    assert!(status.unwrap().success(), "sha256sum is needed");
}

/// All that training or reading writes in the run, by name.
fn contents(sandbox: &Sandbox) -> Vec<(String, Vec<u8>)> {
    let name = |file: &&str| (file.to_string(), fs::read(sandbox.path(&format!("run/{file}"))).unwrap());
    ["metrics.jsonl", "timing.jsonl", "result.json", "plan.json"].iter().map(name).collect()
}

/// Resuming is refused with exit code 4 in one line with all of `expected`, and changes nothing.
fn refuses(sandbox: &Sandbox, expected: &[&str]) {
    let before = contents(sandbox);
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    for part in expected {
        assert!(outcome.stderr.contains(part), "{:?} lacks {part:?}", outcome.stderr);
    }
    assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{}", outcome.stderr);
    assert!(contents(sandbox) == before, "something was changed");
    assert!(!sandbox.path("run/set-aside").exists());
}

fn replace(path: &Path, from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(path).unwrap();
    let place = bytes.windows(from.len()).position(|window| window == from).expect("it is there");
    bytes[place..place + to.len()].copy_from_slice(to);
    fs::write(path, bytes).unwrap();
}

#[test]
fn optimizer_of_another_run() {
    let sandbox = sandbox_with_run(&[]);
    train(&sandbox, "adam", &["train.optimizer={kind='adam'}"]);
    let file = format!("{NEWEST}/optimizer.burnpack");
    let original = fs::read(sandbox.path(&file)).unwrap();
    let adam = sandbox.path("adam/checkpoints/step-00000008/optimizer.burnpack");
    fs::copy(adam, sandbox.path(&file)).unwrap();
    sum_up(&sandbox, NEWEST);
    refuses(
        &sandbox,
        &[NEWEST, "optimizer.burnpack", "momentum.", "which the optimizer of this recipe does not keep"],
    );

    fs::write(sandbox.path(&file), &original).unwrap();
    replace(&sandbox.path(&file), b".momentum.velocity", b".momentum.velocitx");
    sum_up(&sandbox, NEWEST);
    refuses(&sandbox, &["optimizer.burnpack", "\"momentum.velocitx\" of network."]);

    // The values of the epoch before: all of it fits, but it is another state.
    let earlier = sandbox.path("run/checkpoints/step-00000004/optimizer.burnpack");
    fs::copy(earlier, sandbox.path(&file)).unwrap();
    sum_up(&sandbox, NEWEST);
    refuses(&sandbox, &[NEWEST, "its files are not those it was made with"]);
    for command in ["eval", "inspect"] {
        assert_eq!(sandbox.run(&[command, "run"]).code, Some(4), "{command}");
    }
}

#[test]
fn model_with_a_value_that_is_not_finite() {
    let sandbox = sandbox_with_run(&[]);
    let file = sandbox.path(&format!("{NEWEST}/model.safetensors"));
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, bytes).unwrap();
    sum_up(&sandbox, NEWEST);
    refuses(
        &sandbox,
        &["model.safetensors: tensor", "is not finite", "the newest intact one is step-00000004"],
    );
}

#[test]
fn metrics_of_the_same_length() {
    let sandbox = sandbox_with_run(&[]);
    let path = sandbox.path("run/metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("\"epoch\":1,", "\"epoch\":7,")).unwrap();
    refuses(
        &sandbox,
        &["run/metrics.jsonl is damaged", "are not those that it had when the checkpoint was made"],
    );
    let first = text.lines().next().unwrap();
    fs::write(&path, format!("{first}\n{text}")).unwrap();
    refuses(&sandbox, &["run/metrics.jsonl is damaged"]);
    fs::write(&path, &text).unwrap();
    let timing = sandbox.path("run/timing.jsonl");
    let times = fs::read_to_string(&timing).unwrap();
    fs::write(&timing, times.replacen("\"epoch\":1,", "\"epoch\":2,", 1)).unwrap();
    refuses(&sandbox, &["run/timing.jsonl is damaged"]);
}

#[test]
fn progress_that_contradicts_itself() {
    let sandbox = sandbox_with_run(&[]);
    let cases = [
        ("step-00000008", "/losses/student", serde_json::json!({}), "have no \"total\""),
        ("step-00000008", "/losses", serde_json::json!({"other": {"total": 1.0}}), "network \"other\""),
        ("step-00000008", "/pending", "calibration".into(), "no calibration can be pending after 8 steps"),
        ("step-00000008", "/test", serde_json::Value::Null, "its evaluation contradicts"),
        ("step-00000008", "/train/n_top1", u64::MAX.into(), "more images"),
        ("step-00000000", "/pending", "evaluation".into(), "no evaluation can be pending after 0 steps"),
        ("step-00000000", "/test_step", 0.into(), "its evaluation contradicts"),
    ];
    for (name, place, value, expected) in cases {
        let folder = format!("run/checkpoints/{name}");
        let path = sandbox.path(&format!("{folder}/manifest.json"));
        let text = fs::read_to_string(&path).unwrap();
        let mut manifest: serde_json::Value = serde_json::from_str(&text).unwrap();
        let (parent, key) = place.rsplit_once('/').unwrap();
        manifest["progress"].pointer_mut(parent).unwrap()[key] = value;
        fs::write(&path, manifest.to_string()).unwrap();
        sum_up(&sandbox, &folder);
        let before = contents(&sandbox);
        let outcome = sandbox.run(&["train", "--resume", "run", "--checkpoint", name]);
        assert_eq!(outcome.code, Some(4), "{place}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{place}: {}", outcome.stderr);
        assert!(contents(&sandbox) == before, "{place}: something was changed");
        fs::write(&path, text).unwrap();
        sum_up(&sandbox, &folder);
    }
}

#[test]
fn broken_end_of_the_times() {
    let sandbox = sandbox_with_run(&[]);
    let path = sandbox.path("run/timing.jsonl");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], b"\xff"].concat()).unwrap();
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("set aside") || outcome.stderr.contains("set-aside"),
        "{}",
        outcome.stderr
    );
    assert_eq!(fs::read(&path).unwrap(), whole);
}

#[test]
fn checkpoint_under_another_name() {
    let sandbox = sandbox_with_run(&[]);
    let (newest, other) = (sandbox.path(NEWEST), sandbox.path("run/checkpoints/step-00000099"));
    copy_dir(&sandbox.path("run/checkpoints/step-00000004"), &other);
    let expected = ["step-00000099", "name and manifest differ", "is of step-00000004"];
    refuses(&sandbox, &expected);
    assert_eq!(sandbox.run(&["eval", "run"]).code, Some(4));
    assert_eq!(sandbox.json(&["eval", "run", "--checkpoint", "step-00000008"])["step"], 8);
    fs::remove_dir_all(&other).unwrap();
    fs::rename(&newest, &other).unwrap();
    refuses(&sandbox, &["step-00000099", "name and manifest differ", "is of step-00000008"]);
}

#[test]
fn schemas_of_another_lowbit() {
    let sandbox = sandbox_with_run(&[]);
    let path = sandbox.path("run/run.json");
    let text = fs::read_to_string(&path).unwrap();
    let schema = text.find("\"schema\": ").unwrap() + 10;
    fs::write(&path, format!("{}99{}", &text[..schema], &text[schema + 1..])).unwrap();
    refuses(&sandbox, &["run/run.json", "schema 99"]);
    fs::write(&path, &text).unwrap();
    let manifest = sandbox.path(&format!("{NEWEST}/manifest.json"));
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"schema\": 3", "\"schema\": 4")).unwrap();
    sum_up(&sandbox, NEWEST);
    refuses(&sandbox, &["manifest.json: has schema 4, this lowbit reads 2 to 3"]);
    // No digests, no trust.
    let without: String =
        text.lines().filter(|line| !line.contains("state_sha256")).map(|l| l.to_owned() + "\n").collect();
    fs::write(&manifest, &without).unwrap();
    sum_up(&sandbox, NEWEST);
    refuses(&sandbox, &["manifest.json: has no digest of the state"]);
    // As an earlier lowbit made it.
    let mut earlier: serde_json::Value = serde_json::from_str(&text).unwrap();
    earlier["schema"] = 2.into();
    earlier.as_object_mut().unwrap().remove("state_sha256");
    earlier["progress"].as_object_mut().unwrap().remove("records");
    fs::write(&manifest, earlier.to_string()).unwrap();
    sum_up(&sandbox, NEWEST);
    let outcome = sandbox.run(&["train", "--resume", "run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    for file in ["plan.json", "result.json"] {
        let path = sandbox.path(&format!("run/{file}"));
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, "[]").unwrap();
        let outcome = sandbox.run(&["inspect", "run", "--checkpoint", "step-00000004"]);
        let expected = if file == "plan.json" { Some(4) } else { Some(0) };
        assert_eq!(outcome.code, expected, "{file}: {}", outcome.stderr);
        fs::write(&path, text).unwrap();
    }
}

/// The outcome of a command that has to end by itself.
fn ends(sandbox: &Sandbox, args: &[&str]) -> Outcome {
    let mut command = sandbox.command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{args:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Outcome::of(&child.wait_with_output().unwrap())
}

#[cfg(unix)]
#[test]
fn no_regular_files() {
    use std::os::unix::fs::symlink;
    let sandbox = sandbox_with_run(&[]);
    let mkfifo = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    fs::write(sandbox.path("run/warnings.jsonl"), "").unwrap();
    // Each with the codes of `eval` and `inspect`: what does not need a file does not fail by it.
    for (file, codes) in [
        ("recipe.toml", [4, 4]),
        ("run.json", [4, 4]),
        ("plan.json", [0, 4]),
        ("metrics.jsonl", [0, 0]),
        ("timing.jsonl", [0, 0]),
        ("processes.jsonl", [0, 4]),
        ("warnings.jsonl", [0, 4]),
        ("result.json", [0, 0]),
        ("lock", [0, 0]),
        ("checkpoints/step-00000008/SHA256SUMS", [4, 4]),
        ("checkpoints/step-00000008/manifest.json", [4, 4]),
        ("checkpoints/step-00000008/model.safetensors", [4, 4]),
        ("checkpoints/step-00000008/optimizer.burnpack", [4, 4]),
    ] {
        let path = sandbox.path(&format!("run/{file}"));
        let aside = sandbox.path("aside");
        fs::rename(&path, &aside).unwrap();
        mkfifo(&path);
        let fifo = ends(&sandbox, &["train", "--resume", "run"]);
        if ["recipe.toml", "run.json"].contains(&file) {
            // It is the file that is named, not a checkpoint that was to be read by it.
            let Outcome { code, stderr, .. } = ends(&sandbox, &["inspect", "run"]);
            assert_eq!(code, Some(4), "{stderr}");
            assert!(stderr.contains(file) && !stderr.contains("step-"), "{stderr}");
        }
        let others = [&["eval", "run"][..], &["inspect", "run"]].map(|args| ends(&sandbox, args));
        fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        let zero = ends(&sandbox, &["train", "--resume", "run"]);
        fs::remove_file(&path).unwrap();
        symlink(sandbox.path("nothing"), &path).unwrap();
        let dangling = ends(&sandbox, &["train", "--resume", "run"]);
        fs::remove_file(&path).unwrap();
        assert!(!sandbox.path("nothing").exists(), "{file}");
        for outcome in [fifo, zero, dangling] {
            assert_eq!(outcome.code, Some(4), "{file}: {}", outcome.stderr);
            assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{file}: {}", outcome.stderr);
            let name = Path::new(file).file_name().unwrap().to_str().unwrap();
            assert!(outcome.stderr.contains(&format!("{name}: it is ")), "{file}: {}", outcome.stderr);
        }
        for (outcome, code) in others.iter().zip(codes) {
            assert_eq!(outcome.code, Some(code), "{file}: {}", outcome.stderr);
            let n_lines = outcome.stderr.trim_end().lines().count();
            assert_eq!(n_lines, usize::from(code != 0), "{file}: {}", outcome.stderr);
        }
        if file == "result.json" {
            let [_, inspected] = &others;
            let expected = "run/result.json is damaged: it is a FIFO, expected a regular file; move it away";
            assert!(inspected.stdout.contains(expected), "{}", inspected.stdout);
        }
        // A link to the file itself is the file.
        symlink(&aside, &path).unwrap();
        let outcome = ends(&sandbox, &["inspect", "run"]);
        assert_eq!(outcome.code, Some(0), "{file}: {}", outcome.stderr);
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    // A link to nothing in the place of a checkpoint was not removed meanwhile: it is damaged.
    symlink(sandbox.path("nothing"), sandbox.path("run/checkpoints/step-00000099")).unwrap();
    for args in [&["train", "--resume", "run"][..], &["eval", "run"], &["inspect", "run"]] {
        let Outcome { code, stderr, .. } = ends(&sandbox, args);
        assert_eq!(code, Some(4), "{stderr}");
        assert!(stderr.contains("step-00000099 is damaged"), "{stderr}");
    }
    fs::remove_file(sandbox.path("run/checkpoints/step-00000099")).unwrap();
    // Where only the log cannot be written, the training goes on, of which the result is left to make.
    fs::remove_file(sandbox.path("run/result.json")).unwrap();
    let path = sandbox.path("run/log.txt");
    fs::remove_file(&path).unwrap();
    mkfifo(&path);
    let outcome = ends(&sandbox, &["train", "--resume", "run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("it is a FIFO"), "{}", outcome.stderr);
    mkfifo(&sandbox.path("fifo.toml"));
    symlink("/dev/zero", sandbox.path("zero.toml")).unwrap();
    for (recipe, expected) in [("fifo.toml", "it is a FIFO"), ("zero.toml", "it is a device")] {
        let outcome = ends(&sandbox, &["inspect", recipe]);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
    }
}

/// Files of a terabyte that hold nothing.
#[test]
fn files_larger_than_what_they_could_hold() {
    let sandbox = sandbox_with_run(&[]);
    for (file, code) in
        [("recipe.toml", 4), ("plan.json", 0), ("checkpoints/step-00000008/model.safetensors", 4)]
    {
        let path = sandbox.path(&format!("run/{file}"));
        let bytes = fs::read(&path).unwrap();
        let sparse = fs::OpenOptions::new().write(true).open(&path).unwrap();
        if sparse.set_len(1 << 40).is_err() {
            return eprintln!("skipped: no sparse files here");
        }
        let outcome = ends(&sandbox, &["train", "--resume", "run"]);
        assert_eq!(outcome.code, Some(code), "{file}: {}", outcome.stderr);
        assert!(code == 0 || outcome.stderr.contains("expected at most"), "{}", outcome.stderr);
        fs::write(&path, bytes).unwrap();
    }
}

/// The plan of a network needs no memory for its weights.
#[cfg(target_os = "linux")]
#[test]
fn plan_of_a_large_network() {
    let sandbox = Sandbox::new();
    let recipe = sandbox.run(&["recipes", "show", "digits-preresnet8-w2a2"]).stdout;
    fs::write(sandbox.path("large.toml"), recipe).unwrap();
    let command = format!(
        "ulimit -v 4194304; exec {} inspect large.toml --set model.width=64 --set model.depth=110",
        common::LOWBIT
    );
    let output = Command::new("sh").args(["-c", &command]).current_dir(sandbox.path("")).output().unwrap();
    let outcome = Outcome::of(&output);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stdout.contains("stages.2.17.conv2"), "{}", outcome.stdout);
}

#[test]
fn control_characters_are_written_out() {
    let sandbox = sandbox_with_run(&[]);
    let file = sandbox.path(&format!("{NEWEST}/model.safetensors"));
    replace(&file, b"\"fc.bias\"", b"\"\\u001bs\"");
    sum_up(&sandbox, NEWEST);
    let outcome = sandbox.run(&["eval", "run"]);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    assert!(!outcome.stderr.trim_end().contains(char::is_control), "{:?}", outcome.stderr);
    let outcome = sandbox.run(&["train", "no\u{1b}[2Jsuch"]);
    assert!(outcome.stderr.contains("no\\u{1b}[2Jsuch"), "{:?}", outcome.stderr);
}
