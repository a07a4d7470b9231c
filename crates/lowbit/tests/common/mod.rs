//! Running the binary in a directory of its own.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// The binary under test.
pub const LOWBIT: &str = env!("CARGO_BIN_EXE_lowbit");

/// A training on digits that takes a fraction of a second.
pub const TINY: [&str; 8] = [
    "--set",
    "train.epochs=1",
    "--set",
    "data.train_limit=128",
    "--set",
    "data.test_limit=64",
    "--set",
    "data.batch_size=32",
];

/// A directory to run in, without any data set.
pub struct Sandbox(TempDir);

impl Sandbox {
    pub fn new() -> Self {
        Self(TempDir::with_prefix("lowbit-test-").unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The binary with `args`, in this directory.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(LOWBIT);
        command.args(args).current_dir(self.0.path());
        command.env("HOME", self.path("home")).env_remove("XDG_DATA_HOME").env_remove("COLUMNS");
        command.env_remove("XDG_CACHE_HOME");
        command
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        Outcome::of(&self.command(args).output().unwrap())
    }

    /// Runs what must succeed, and returns the JSON on its stdout.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        self.json_of(args, 0)
    }

    /// Runs what must end with `code`, and returns the JSON on its stdout.
    pub fn json_of(&self, args: &[&str], code: i32) -> serde_json::Value {
        let outcome = self.run(&[args, &["--json"]].concat());
        assert_eq!(outcome.code, Some(code), "{args:?}: {}", outcome.stderr);
        serde_json::from_str(&outcome.stdout).unwrap()
    }

    /// `text` with the name of this directory replaced.
    pub fn without_path(&self, text: &str) -> String {
        text.replace(self.0.path().to_str().unwrap(), "[DIR]")
    }
}

/// How a command ended.
pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Outcome {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }
}

/// Copies a directory with all it holds.
pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Option of `kill` for the signal that asks a training to stop: SIGINT; SIGTERM where these tests have SIGINT ignored, as in a
/// shell's background job, since the programs that they start inherit that, and lowbit keeps it.
pub fn stop_signal() -> &'static str {
    const SIGINT: u64 = 1 << 1;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    if ignored.is_some_and(|mask| mask & SIGINT != 0) { "-TERM" } else { "-INT" }
}
