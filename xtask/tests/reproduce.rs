//! `cargo xtask reproduce` with a script in place of `lowbit`.

#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Rows of the table.
const N_RECIPES: usize = 21;

/// A directory of a test, and what the script in it is told.
struct Sandbox {
    path: PathBuf,
    variables: Vec<(&'static str, String)>,
}

/// What a command did.
struct Done {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Sandbox {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if path.exists() {
            fs::remove_dir_all(&path).unwrap();
        }
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("lowbit"), include_str!("lowbit-stub.sh")).unwrap();
        fs::set_permissions(path.join("lowbit"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { path, variables: Vec::new() }
    }

    /// What the script is told from now on.
    fn tell(&mut self, variables: &[(&'static str, &str)]) {
        self.variables = variables.iter().map(|&(name, value)| (name, value.into())).collect();
    }

    fn command(&self, args: &[&str]) -> Command {
        self.command_of("digits", args)
    }

    fn command_of(&self, table: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.current_dir(&self.path).args(["reproduce", table, "--out", "out", "--program", "./lowbit"]);
        if !args.contains(&"--seeds") {
            command.args(["--seeds", "1"]);
        }
        command.args(args);
        command.env("STUB_LOG", self.path.join("log")).envs(self.variables.clone());
        command.env("TMPDIR", &self.path).env_remove("RUST_BACKTRACE").env_remove("RUST_LIB_BACKTRACE");
        command
    }

    fn run(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// Starts a command as the leader of a process group, like a shell does.
    fn spawn(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The calls of the script so far that begin with `what`.
    fn calls(&self, what: &str) -> Vec<String> {
        let log = fs::read_to_string(self.path.join("log")).unwrap_or_default();
        log.lines().filter(|line| line.starts_with(what)).map(String::from).collect()
    }

    /// How often the training of a cell was begun or gone on with.
    fn n_begun(&self) -> usize {
        self.calls("train digits").len()
    }

    fn cell(&self, recipe: &str) -> PathBuf {
        self.path.join("out/cells").join(format!("digits-preresnet8-{recipe}-seed0"))
    }

    fn wait_for(&self, file: &Path) {
        let started = Instant::now();
        while !file.exists() {
            assert!(started.elapsed() < Duration::from_secs(30), "no {}", file.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Done {
    fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The error at the end, which is all there is after the progress.
    fn error(&self) -> &str {
        assert_eq!(self.code, Some(1), "{}", self.stderr);
        let (_, error) = self.stderr.split_once("Error: ").unwrap_or_else(|| panic!("{}", self.stderr));
        error.trim_end()
    }

    fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "{}", self.stdout);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

fn signal(name: &str, target: &str) {
    assert!(Command::new("kill").args(["-s", name, "--", target]).status().unwrap().success());
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn a_table_is_trained_once_and_reported() {
    let sandbox = Sandbox::new("whole");
    let report = sandbox.run(&["--json", "--parallel", "2"]).json();
    let of_report = [
        "title",
        "device",
        "lowbit",
        "machines",
        "cells",
        "comparisons",
        "published",
        "failed",
        "stopped",
        "compare",
    ];
    assert_eq!(keys(&report), of_report);
    assert_eq!((&report["failed"], &report["stopped"]), (&Value::Array(Vec::new()), &Value::Null));
    let rows = report["cells"].as_array().unwrap();
    let of_row = [
        "method",
        "weight_bits",
        "act_bits",
        "seeds",
        "missing",
        "top1_mean",
        "top1_std",
        "top1_interval",
        "top1",
        "state_sha256",
        "epochs",
        "seconds",
    ];
    assert_eq!((rows.len(), keys(&rows[0])), (N_RECIPES, of_row.to_vec()));
    assert!(rows.iter().all(|row| row["seeds"] == 1 && row["missing"] == 0 && row["top1_mean"] == 0.9));
    for file in ["table.json", "table.md", "accuracy.svg", "curves.svg", "plan.json"] {
        assert!(sandbox.path.join("out").join(file).is_file(), "{file}");
    }
    assert_eq!(sandbox.n_begun(), N_RECIPES);
    assert_eq!(sandbox.run(&["--json"]).json(), report);
    assert_eq!(sandbox.n_begun(), N_RECIPES);
    // A further seed is no other plan.
    assert_eq!(sandbox.run(&["--seeds", "2"]).code, Some(0));
    assert_eq!(sandbox.n_begun(), 2 * N_RECIPES);
}

#[test]
fn a_cell_that_fails_is_told_and_tried_again() {
    let mut sandbox = Sandbox::new("failing");
    sandbox.tell(&[("STUB_FAIL", "w2a2-ts-pq ")]);
    let done = sandbox.run(&["--json"]);
    let expected = "a cell failed: digits-preresnet8-w2a2-ts-pq, seed 0; the same command tries them again";
    assert_eq!(done.error(), expected);
    assert!(done.stderr.contains("error: the loss is not finite\n"), "{}", done.stderr);
    let report = done.json();
    assert_eq!(report["failed"][0]["cell"], "digits-preresnet8-w2a2-ts-pq, seed 0");
    assert_eq!(keys(&report["failed"][0]), ["cell", "reason"]);
    assert_eq!(sandbox.n_begun(), N_RECIPES);
    sandbox.tell(&[]);
    assert_eq!(sandbox.run(&[]).code, Some(0));
    assert_eq!(sandbox.n_begun(), N_RECIPES + 1);
}

#[test]
fn a_budget_saves_what_runs_and_the_next_command_goes_on() {
    let mut sandbox = Sandbox::new("budget");
    sandbox.tell(&[("STUB_SLOW", "fp32 ")]);
    let done = sandbox.run(&["--budget", "0.5s", "--json"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.ends_with("the budget is spent: the same command goes on with what is left\n"));
    assert_eq!(done.json()["stopped"], "the budget is spent");
    assert!(sandbox.cell("fp32").join("saved").is_file());
    assert_eq!(sandbox.n_begun(), 1);
    sandbox.tell(&[]);
    assert_eq!(sandbox.run(&[]).code, Some(0));
    assert_eq!(sandbox.calls("train digits-preresnet8-fp32 --or-resume ").len(), 2);
    assert_eq!(sandbox.n_begun(), N_RECIPES + 1);
}

#[test]
fn a_spent_budget_does_not_hide_failures() {
    let mut sandbox = Sandbox::new("budget-and-failure");
    sandbox.tell(&[("STUB_FAIL", "fp32 "), ("STUB_SLOW", "w4a4 ")]);
    let error = sandbox.run(&["--budget", "2s"]);
    let expected = "a cell failed: digits-preresnet8-fp32, seed 0; the budget is spent: the same command goes on with \
                    what is left";
    assert_eq!(error.error(), expected);
}

#[test]
fn a_signal_lets_the_cell_save() {
    // Ctrl-C goes to the whole group, as does what `timeout` sends; `kill` reaches this process only.
    for (name, to_group) in [("INT", true), ("TERM", true), ("TERM", false), ("INT", false)] {
        let mut sandbox = Sandbox::new(&format!("signal-{name}-{to_group}"));
        sandbox.tell(&[("STUB_SLOW", "fp32 ")]);
        let child = sandbox.spawn(&[]);
        sandbox.wait_for(&sandbox.cell("fp32").join("run.json"));
        signal(name, &format!("{}{}", if to_group { "-" } else { "" }, child.id()));
        let done = Done::of(child.wait_with_output().unwrap());
        assert_eq!(done.code, Some(0), "{}", done.stderr);
        assert!(
            done.stderr.ends_with("stopped: the same command goes on with what is left\n"),
            "{}",
            done.stderr
        );
        assert!(sandbox.cell("fp32").join("saved").is_file(), "{name}, {to_group}");
    }
}

#[test]
fn a_second_signal_aborts_the_cell() {
    let mut sandbox = Sandbox::new("second-signal");
    sandbox.tell(&[("STUB_SLOW", "fp32 "), ("STUB_SAVING", "400")]);
    let child = sandbox.spawn(&[]);
    sandbox.wait_for(&sandbox.cell("fp32").join("run.json"));
    let group = format!("-{}", child.id());
    signal("INT", &group);
    std::thread::sleep(Duration::from_millis(1200));
    signal("INT", &group);
    let done = Done::of(child.wait_with_output().unwrap());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(sandbox.cell("fp32").join("aborted").is_file());
}

#[test]
fn missing_data_says_where_to_put_it() {
    let mut sandbox = Sandbox::new("data");
    sandbox.tell(&[("STUB_DATA", "missing")]);
    assert_eq!(sandbox.run(&[]).error(), "failed to find digits: put it into data/digits");
    assert_eq!(sandbox.n_begun(), 0);
    assert!(!sandbox.path.join("out").exists());
    // What can be read is trained on.
    sandbox.tell(&[("STUB_DATA", "differs")]);
    let done = sandbox.run(&[]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stderr.contains("warning: digits is not as published"), "{}", done.stderr);
    assert_eq!(sandbox.n_begun(), N_RECIPES);
    sandbox.tell(&[]);
    let error = sandbox.run(&[]);
    assert_eq!(
        error.error(),
        "out holds cells with another plan: images.train was 1000 and is now 1438; choose another --out"
    );
}

#[test]
fn a_dry_run_tells_errors_of_the_program() {
    let mut sandbox = Sandbox::new("dry-run-errors");
    let done = sandbox.run(&["--dry-run", "--set", "train.epochz=1"]);
    assert_eq!(done.error(), "unknown key train.epochz");
    sandbox.tell(&[("STUB_FAIL", "fp32 ")]);
    let done = sandbox.run(&["--dry-run"]);
    assert_eq!(done.error(), "failed to time digits-preresnet8-fp32: the loss is not finite");
}

#[test]
fn a_dry_run_is_a_table_or_one_json_object() {
    let sandbox = Sandbox::new("dry-run");
    let done = sandbox.run(&["--dry-run", "--json", "--set", "train.warmup_epochs=2"]);
    let forecast = done.json();
    assert_eq!(keys(&forecast), ["title", "device", "recipes", "seconds_left"]);
    let recipes = forecast["recipes"].as_array().unwrap();
    let of_recipe = [
        "recipe",
        "method",
        "weight_bits",
        "act_bits",
        "seeds",
        "left",
        "epochs",
        "images_per_second",
        "seconds",
        "seconds_left",
    ];
    assert_eq!((recipes.len(), keys(&recipes[0])), (N_RECIPES, of_recipe.to_vec()));
    // 16 epochs with an evaluation each, at 1000 images/s.
    let seconds = 16.0 * (1438.0 + 359.0 / 3.0) / 1000.0;
    assert!((forecast["seconds_left"].as_f64().unwrap() - N_RECIPES as f64 * seconds).abs() < 1e-3);
    // The warm-up fits into the one epoch of the timing.
    let timings = sandbox.calls("train digits");
    let fits = |call: &String| call.find("warmup_epochs=2") < call.find("warmup_epochs=0");
    assert!(timings.len() == N_RECIPES && timings.iter().all(fits), "{timings:?}");
    assert!(!sandbox.path.join("out").exists());
    let names: Vec<_> =
        fs::read_dir(&sandbox.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains("timing")), "{names:?}");
    let text = sandbox.run(&["--dry-run"]).stdout;
    assert!(text.ends_with("what is left: 8:43 one after the other\n"), "{text}");
}

/// The table of ImageNet is timed with generated images where its own are not at hand, and by the published number of them.
#[test]
fn a_dry_run_needs_no_images() {
    let sandbox = Sandbox::new("dry-run-imagenet");
    let done = Done::of(sandbox.command_of("imagenet", &["--dry-run", "--json"]).output().unwrap());
    let forecast = done.json();
    assert_eq!(forecast["missing"], "give the folder of imagenet with --data-dir");
    let recipes = forecast["recipes"].as_array().unwrap();
    let timings = sandbox.calls("train imagenet");
    assert_eq!((recipes.len(), timings.len()), (17, 17));
    assert!(timings.iter().all(|call| call.contains("--data-dir ")), "{timings:?}");
    // 16 epochs with an evaluation each, at 1000 images/s.
    let seconds = 16.0 * (1_281_167.0 + 50_000.0 / 3.0) / 1000.0;
    assert!((recipes[0]["seconds"].as_f64().unwrap() - seconds).abs() < 1e-3, "{}", recipes[0]);
    let left: Vec<_> = fs::read_dir(&sandbox.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the generated images are removed: {left:?}");
    let trained = Done::of(sandbox.command_of("imagenet", &[]).output().unwrap());
    assert_eq!(trained.error(), "give the folder of imagenet with --data-dir");
}

#[test]
fn what_cannot_train_leaves_no_plan() {
    let sandbox = Sandbox::new("device");
    assert_eq!(sandbox.run(&["--device", "flex:0"]).error(), "no device is called \"flex:0\"");
    assert_eq!(sandbox.run(&["--set", "train.epochz=1"]).error(), "unknown key train.epochz");
    assert_eq!(sandbox.n_begun(), 0);
    // Nor does a plan of which no cell was begun bind the next one.
    fs::create_dir_all(sandbox.path.join("out")).unwrap();
    fs::write(
        sandbox.path.join("out/plan.json"),
        "{\"table\":\"digits\",\"device\":\"wgpu\",\"recipes\":{}}",
    )
    .unwrap();
    assert_eq!(sandbox.run(&[]).code, Some(0));
}

#[test]
fn cells_of_another_plan_are_not_mixed() {
    let mut sandbox = Sandbox::new("plans");
    assert_eq!(sandbox.run(&[]).code, Some(0));
    let refused = |sandbox: &Sandbox, what: &str| {
        let expected = format!("out holds cells with another plan: {what}; choose another --out");
        for args in [&[][..], &["--dry-run"]] {
            assert_eq!(sandbox.run(args).error(), expected);
        }
    };
    sandbox.tell(&[("STUB_EPOCHS", "20")]);
    refused(&sandbox, "recipes.digits-preresnet8-fp32.train.epochs was 16 and is now 20");
    sandbox.tell(&[("STUB_REVISION", "bbb-dirty")]);
    refused(&sandbox, "lowbit.revision was \"aaa\" and is now \"bbb-dirty\"");
    sandbox.tell(&[("STUB_INSTRUCTIONS", "avx512f")]);
    refused(&sandbox, "lowbit.instruction_sets was [\"avx2\"] and is now [\"avx512f\"]");
    sandbox.tell(&[]);
    let done = sandbox.run(&["--device", "ndarray"]);
    assert!(done.error().contains("device was \"flex\" and is now \"ndarray\""), "{}", done.stderr);
    // The format before this one had no resolved settings.
    fs::write(sandbox.path.join("out/plan.json"), r#"{"table":"digits","device":"flex","set":[]}"#).unwrap();
    assert!(sandbox.run(&[]).error().starts_with("out holds cells with another plan: "));
    assert_eq!(sandbox.n_begun(), N_RECIPES);
}

/// A cell that was moved here, or went on elsewhere, knows who made it.
#[test]
fn cells_of_another_build_are_not_mixed() {
    let sandbox = Sandbox::new("origins");
    assert_eq!(sandbox.run(&[]).code, Some(0));
    let path = sandbox.cell("w2a2").join("result.json");
    let text = fs::read_to_string(&path).unwrap();
    let refused = |text: String, by: &str| {
        fs::write(&path, text).unwrap();
        for args in [&[][..], &["--dry-run"]] {
            let done = sandbox.run(args);
            let error = done.error();
            assert!(error.starts_with("cell digits-preresnet8-w2a2, seed 0 was made by "), "{error}");
            assert!(
                error.contains(by) && error.contains("choose another --out, or move out/cells/"),
                "{error}"
            );
        }
    };
    refused(text.replace("\"aaa\"", "\"bbb\""), "(revision bbb; flex; ");
    refused(
        text.replace("\"avx2\"", "\"avx512f\""),
        "instructions avx512f, this is lowbit 0.1.0 (revision aaa; ",
    );
    refused(
        text.replace("\"same_origin\":true", "\"same_origin\":false"),
        "several builds, devices or kinds of processors",
    );
    fs::write(&path, &text).unwrap();
    let begun = sandbox.cell("w2a2-sp").join("run.json");
    fs::remove_file(sandbox.cell("w2a2-sp").join("result.json")).unwrap();
    fs::write(&begun, "{\"lowbit\":\"0.0.0\"}").unwrap();
    let n_begun = sandbox.n_begun();
    let done = sandbox.run(&[]);
    assert!(
        done.error().starts_with("cell digits-preresnet8-w2a2-sp, seed 0 was made by "),
        "{}",
        done.error()
    );
    assert_eq!(sandbox.n_begun(), n_begun, "nothing is trained");
}

/// Of a build whose revision does not say what it was made of, the program itself is compared.
#[test]
fn cells_of_other_changes_are_not_mixed() {
    for (revision, is_refused) in [("aaa-dirty", true), ("aaa", false)] {
        let mut sandbox = Sandbox::new(&format!("other-changes-{revision}"));
        sandbox.tell(&[("STUB_REVISION", revision)]);
        assert_eq!(sandbox.run(&[]).code, Some(0));
        assert_eq!(sandbox.run(&[]).code, Some(0), "the same program goes on");
        fs::write(sandbox.path.join("lowbit"), format!("{}\n# changed\n", include_str!("lowbit-stub.sh")))
            .unwrap();
        let done = sandbox.run(&["--seeds", "2"]);
        if is_refused {
            let error = done.error();
            assert!(error.contains("another plan: program_sha256 was "), "{error}");
        }
        assert_eq!(
            (done.code == Some(0), sandbox.n_begun()),
            (!is_refused, if is_refused { N_RECIPES } else { 2 * N_RECIPES })
        );
    }
}

#[test]
fn a_table_says_who_made_it() {
    let sandbox = Sandbox::new("made-by");
    let report = sandbox.run(&["--json"]).json();
    assert_eq!(report["lowbit"]["revision"], "aaa");
    let text = fs::read_to_string(sandbox.path.join("out/table.md")).unwrap();
    let line = "Made by lowbit 0.1.0 (revision aaa; flex; unknown; rustc unknown; burn 0.22.1), instructions avx2, on h (";
    assert!(text.contains(line), "{text}");
}

/// As `cargo xtask reproduce ... --dry-run | head -1` has it.
#[test]
fn a_reader_that_leaves_is_no_failure() {
    let sandbox = Sandbox::new("reader");
    let mut child = sandbox.spawn(&["--dry-run"]);
    drop(child.stdout.take());
    let done = Done::of(child.wait_with_output().unwrap());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
}

#[test]
fn a_dry_run_without_data_shows_what_it_would_train() {
    let mut sandbox = Sandbox::new("dry-without-data");
    sandbox.tell(&[("STUB_DATA", "missing")]);
    let done = sandbox.run(&["--dry-run"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.contains("\ndigits-preresnet8-w2a2-sp "), "{}", done.stdout);
    assert!(
        done.stdout
            .ends_with("not timed, as its data is missing: failed to find digits: put it into data/digits\n")
    );
    let forecast = sandbox.run(&["--dry-run", "--json"]).json();
    assert_eq!(forecast["missing"], "failed to find digits: put it into data/digits");
    assert_eq!(
        (&forecast["recipes"][0]["epochs"], &forecast["recipes"][0]["seconds"]),
        (&16.into(), &Value::Null)
    );
    assert!(sandbox.calls("train digits").is_empty());
}

#[test]
fn a_damaged_cell_is_reported_beside_the_others() {
    let sandbox = Sandbox::new("damaged");
    assert_eq!(sandbox.run(&[]).code, Some(0));
    for (recipe, file) in [("w2a2", "result.json"), ("w2a2-sp", "metrics.jsonl")] {
        fs::write(sandbox.cell(recipe).join(file), "{\"top1\":").unwrap();
    }
    let done = sandbox.run(&["--json"]);
    let expected = "2 cells failed: digits-preresnet8-w2a2, seed 0; digits-preresnet8-w2a2-sp, seed 0; ";
    assert!(done.error().starts_with(expected), "{}", done.error());
    let report = done.json();
    let count = |key: &str| {
        report["cells"].as_array().unwrap().iter().filter_map(|row| row[key].as_u64()).sum::<u64>()
    };
    assert_eq!((count("seeds"), count("missing")), (N_RECIPES as u64 - 2, 2));
    let reason = report["failed"][0]["reason"].as_str().unwrap();
    let run = "out/cells/digits-preresnet8-w2a2-seed0";
    assert!(reason.contains(&format!("{run}/result.json is damaged")), "{reason}");
    assert!(reason.ends_with(&format!("move {run} away to train it again")), "{reason}");
    fs::rename(sandbox.cell("w2a2"), sandbox.path.join("away")).unwrap();
    assert!(sandbox.run(&[]).error().starts_with("a cell failed: digits-preresnet8-w2a2-sp"));
    assert_eq!(sandbox.n_begun(), N_RECIPES + 1);
}

#[test]
fn a_cell_alone_is_one_of_the_table() {
    let sandbox = Sandbox::new("cell");
    let error = sandbox.run(&["--cell", "digits-preresnet8-w2a2-seed77"]);
    assert_eq!(
        error.error(),
        "no cell digits-preresnet8-w2a2-seed77: a cell is called digits-preresnet8-fp32-seed0, for example"
    );
    assert_eq!(sandbox.n_begun(), 0);
    // What the script trains has no state to compare.
    let done = sandbox.run(&["--cell", "digits-preresnet8-w2a2-sp-seed0"]);
    assert_eq!((done.code, sandbox.n_begun()), (Some(1), 1));
    assert!(
        done.error().ends_with("table.json has no end of digits-preresnet8-w2a2-sp, seed 0"),
        "{}",
        done.error()
    );
}
