//! One cell of a table and the `lowbit` process that trains it.

use std::fs;
use std::io::ErrorKind;
#[cfg(unix)]
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::engine::Wish;
use crate::origin::{Identity, Origin};

/// Exit code of a training that was asked to stop and has saved.
const INTERRUPTED: i32 = 130;

/// Exit code of a command line, device or recipe that is not valid.
const USAGE: i32 = 2;

/// One training.
#[derive(Clone, Debug)]
pub struct Cell {
    /// What its row has in the first column.
    pub method: String,
    /// Bit widths of weights and activations, 32 in full precision; [`MIXED_BITS`](crate::MIXED_BITS) if layers have different ones.
    pub bits: [u32; 2],
    /// What its row is called.
    pub recipe: String,
    /// The recipe that it is trained by, with `set`.
    pub written: String,
    /// Its seed.
    pub seed: u64,
    /// Changed settings.
    pub set: Vec<String>,
    /// Settings that say which runs it begins with.
    pub init: Vec<String>,
    /// Its run directory.
    pub run: PathBuf,
}

/// What `result.json` says of a complete cell.
#[derive(Clone, Debug, Deserialize)]
pub struct CellResult {
    pub top1: f64,
    pub validation: Option<Validation>,
    pub epochs: u64,
    pub seconds: f64,
    /// Who did the last step.
    #[serde(default)]
    pub origin: Origin,
}

/// Its scores on the images that were held back.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Validation {
    pub top1: f64,
}

impl Cell {
    /// What messages call it.
    pub fn name(&self) -> String {
        format!("{}, seed {}", self.recipe, self.seed)
    }

    /// Whether it has a result.
    pub fn is_complete(&self) -> bool {
        self.run.join("result.json").is_file()
    }

    /// What it reached, of a complete cell.
    pub fn outcome(&self) -> anyhow::Result<Outcome> {
        let path = self.run.join("result.json");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let result = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(Outcome { result, curve: self.curve()?, state_sha256: self.state_sha256() })
    }

    /// Digest of the state that it ended with, if its last checkpoint is there.
    fn state_sha256(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Manifest {
            state_sha256: Option<String>,
        }
        let checkpoints = fs::read_dir(self.run.join("checkpoints")).ok()?.flatten();
        // Their names have the step in digits of the same number.
        let last = checkpoints
            .map(|entry| entry.path())
            .filter(|path| path.join("manifest.json").is_file())
            .max()?;
        let manifest: Manifest = serde_json::from_slice(&fs::read(last.join("manifest.json")).ok()?).ok()?;
        manifest.state_sha256
    }

    /// Fails if the cell was begun or completed by another build or on another kind of processor than `here`: with such
    /// a cell, a table would mix two kinds.
    pub fn expect_made_by(&self, here: &Identity) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Made {
            #[serde(default)]
            origin: Origin,
            same_origin: Option<bool>,
        }
        for file in ["run.json", "result.json"] {
            let text = match fs::read_to_string(self.run.join(file)) {
                Ok(text) => text,
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("failed to read {file} of cell {}", self.name()));
                }
            };
            // What is damaged is reported as such when it is read for the table.
            let Ok(Made { origin, same_origin }) = serde_json::from_str(&text) else { continue };
            let by = match same_origin {
                Some(false) => "several builds, devices or kinds of processors".into(),
                _ if origin.identity == *here => continue,
                _ => origin.identity.to_string(),
            };
            bail!(
                "cell {} was made by {by}, this is {here}: one table does not mix them; choose another --out, or move {} away to \
                 train it again",
                self.name(),
                self.run.display()
            );
        }
        Ok(())
    }

    fn add_settings(&self, command: &mut Command) {
        for change in &self.set {
            command.args(["--set", change]);
        }
    }

    /// Test accuracy by epoch.
    fn curve(&self) -> anyhow::Result<Vec<(u64, f64)>> {
        let path = self.run.join("metrics.jsonl");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        let mut curve = Vec::new();
        for line in text.lines() {
            let line: Value =
                serde_json::from_str(line).with_context(|| format!("{} is damaged", path.display()))?;
            if let (Some(epoch), Some(top1)) = (line["epoch"].as_u64(), line["test"]["top1"].as_f64()) {
                curve.push((epoch, top1));
            }
        }
        Ok(curve)
    }
}

/// What a complete cell reached.
pub struct Outcome {
    pub result: CellResult,
    /// Test accuracy by epoch.
    pub curve: Vec<(u64, f64)>,
    /// Digest of the state that it ended with.
    pub state_sha256: Option<String>,
}

/// Numbers of images in a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// Those that are trained on.
    pub train: u64,
    /// Those that are tested on.
    pub test: u64,
}

/// What a recipe would take.
pub struct Estimate {
    pub epochs: u64,
    pub images_per_second: f64,
    pub duration: Duration,
}

/// The `lowbit` program on a device.
#[derive(Clone, Debug)]
pub struct Lowbit {
    /// The program.
    pub program: PathBuf,
    /// What it trains on, as for its `--device`.
    pub device: String,
    /// Where data is looked for, as for its `--data-dir`.
    pub data_dir: Option<PathBuf>,
}

impl Lowbit {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args);
        command
    }

    /// Whether a processor computes, of which the rate hardly depends on the size of a batch.
    fn is_cpu(&self) -> bool {
        matches!(self.device.as_str(), "flex" | "ndarray")
    }

    fn output(&self, mut command: Command) -> anyhow::Result<Output> {
        let what = || format!("failed to run {}", self.program.display());
        command.stdin(Stdio::null()).output().with_context(what)
    }

    /// The same; a wish to stop ends the command.
    fn output_unless(&self, mut command: Command, wish: impl Fn() -> Wish) -> anyhow::Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("failed to run {}", self.program.display()))?;
        let process = child.id();
        let waiting = std::thread::spawn(|| child.wait_with_output());
        let mut asked = Wish::GoOn;
        while !waiting.is_finished() {
            let wish = wish();
            if wish > asked {
                terminate(process);
                asked = wish;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        output.with_context(|| format!("failed to run {}", self.program.display()))
    }

    fn with_data_dir(&self, command: &mut Command) {
        if let Some(data_dir) = &self.data_dir {
            command.arg("--data-dir").arg(data_dir);
        }
    }

    /// The build, and the machine.
    pub fn origin(&self) -> anyhow::Result<Origin> {
        let output = self.output(self.command(&["--version", "--json"]))?;
        if !output.status.success() {
            bail!("{} --version: {}", self.program.display(), message(&output));
        }
        let what =
            || format!("{} --version --json says something else than who it is", self.program.display());
        serde_json::from_slice(&output.stdout).with_context(what)
    }

    /// SHA-256 of the program.
    pub fn sha256(&self) -> anyhow::Result<String> {
        // A name alone is that of a program on the search path, as where it is run.
        let path = std::env::var_os("PATH").filter(|_| self.program.components().count() == 1);
        let found = path.iter().flat_map(std::env::split_paths).map(|folder| folder.join(&self.program));
        let program = found.into_iter().find(|file| file.is_file()).unwrap_or_else(|| self.program.clone());
        let bytes = fs::read(&program).with_context(|| format!("failed to read {}", program.display()))?;
        Ok(format!("{:x}", Sha256::digest(bytes)))
    }

    /// Numbers of images of a data set; an error that says what to do if it is not there.
    pub fn images(&self, dataset: &str) -> anyhow::Result<Images> {
        #[derive(Deserialize)]
        struct Verified {
            ok: bool,
            splits: Vec<Split>,
        }
        #[derive(Deserialize)]
        struct Split {
            split: String,
            n_samples: Option<u64>,
            error: Option<String>,
        }
        let mut verify = self.command(&["data", "verify", dataset, "--json"]);
        self.with_data_dir(&mut verify);
        let output = self.output(verify)?;
        // Whatever is found, the report is on stdout.
        let Ok(Verified { ok, splits }) = serde_json::from_slice(&output.stdout) else {
            bail!("{}", message(&output));
        };
        if let Some(error) = splits.iter().find_map(|split| split.error.as_deref()) {
            bail!("{error}");
        }
        if !ok {
            eprintln!("warning: {dataset} is not as published; `lowbit data verify {dataset}` says in what");
        }
        let count = |name: &str| {
            let split = splits.iter().find(|split| split.split == name);
            split
                .and_then(|split| split.n_samples)
                .with_context(|| format!("{dataset} has no images: {name}"))
        };
        Ok(Images { train: count("train")?, test: count("test")? })
    }

    /// What `lowbit inspect` says of the recipe of `cell`: the resolved recipe and its phases.
    pub fn inspect(&self, cell: &Cell) -> anyhow::Result<Value> {
        let mut inspect = self.command(&["inspect", &cell.written, "--json"]);
        cell.add_settings(&mut inspect);
        self.with_data_dir(&mut inspect);
        let output = self.output(inspect)?;
        if !output.status.success() {
            bail!("{}", message(&output));
        }
        serde_json::from_slice(&output.stdout).context("failed to read what lowbit inspect --json says")
    }

    /// Fails if the device cannot be used, with what to do.
    pub fn check_device(&self, out: &Path) -> anyhow::Result<()> {
        // The device is opened before the run is looked for, which is not there.
        let run = out.join("no-such-run");
        let mut resume = self.command(&["train", "--quiet", "--device", &self.device, "--resume"]);
        resume.arg(run);
        let output = self.output(resume)?;
        match output.status.code() {
            Some(USAGE) => bail!("{}", message(&output)),
            _ => Ok(()),
        }
    }

    /// Trains a cell from where it is to its end, or until `wish` says otherwise. Returns whether it is complete.
    pub fn train(&self, cell: &Cell, n_threads: usize, wish: impl Fn() -> Wish) -> anyhow::Result<bool> {
        let mut command = self.command(&["train", &cell.written, "--or-resume", "--out"]);
        command.arg(&cell.run).args(["--set", &format!("seed={}", cell.seed)]);
        cell.add_settings(&mut command);
        for init in &cell.init {
            command.args(["--set", init]);
        }
        command.args(["--quiet", "--device", &self.device]).env("RAYON_NUM_THREADS", n_threads.to_string());
        self.with_data_dir(&mut command);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A signal to the process group of this program, as Ctrl-C sends it, would be the first of two: the second,
        // which is ours, would not let the cell save.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn().context("failed to run lowbit")?;
        let mut asked = Wish::GoOn;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            let wish = wish();
            if wish > asked {
                if !terminate(child.id()) {
                    // It has ended, or there is no other way: it goes on from its last checkpoint.
                    let _ = child.kill();
                }
                asked = wish;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        // Without a code, it was asked before it could save, and ended by the signal.
        let has_stopped = asked > Wish::GoOn && status.code().is_none_or(|code| code == INTERRUPTED);
        match status.success() {
            true => Ok(true),
            false if has_stopped => Ok(cell.is_complete()),
            false => bail!("lowbit ended with {status}; its log: {}", log(&cell.run)),
        }
    }

    /// Times the recipe of `cell`, of which `inspected` tells, over a few steps of every phase.
    pub fn estimate(
        &self,
        cell: &Cell,
        inspected: &Value,
        images: Images,
        wish: impl Fn() -> Wish,
    ) -> anyhow::Result<Estimate> {
        let workload = Workload::of(inspected, images)?;
        let run = std::env::temp_dir().join(format!("lowbit-timing-{}", std::process::id()));
        let mut command =
            self.command(&["train", &cell.written, "--json", "--quiet", "--device", &self.device]);
        command.arg("--out").arg(&run);
        cell.add_settings(&mut command);
        for change in short_settings(inspected, &workload, self.is_cpu()) {
            command.args(["--set", &change]);
        }
        self.with_data_dir(&mut command);
        let output = self.output_unless(command, wish)?;
        match fs::remove_dir_all(&run) {
            // It may have failed before it began a run.
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("failed to remove {}", run.display()));
            }
            _ => {}
        }
        if !output.status.success() {
            bail!("failed to time {}: {}", cell.recipe, message(&output));
        }
        let result: Value =
            serde_json::from_slice(&output.stdout).context("failed to read what lowbit train --json says")?;
        let images_per_second = result["images_per_second"].as_f64().context("a result has a rate")?;
        let duration = Duration::from_secs_f64(workload.images() / images_per_second);
        Ok(Estimate { epochs: workload.epochs, images_per_second, duration })
    }
}

/// What a training has to do.
#[derive(Debug, PartialEq)]
struct Workload {
    batch_size: u64,
    /// Images of an epoch.
    n_train: u64,
    /// Images of an evaluation.
    n_test: u64,
    /// Epochs of all phases.
    epochs: u64,
    /// Images of all forward passes besides the training steps.
    n_forward: u64,
}

impl Workload {
    fn of(inspected: &Value, images: Images) -> anyhow::Result<Self> {
        let data = &inspected["recipe"]["data"];
        let batch_size = data["batch_size"].as_u64().context("a recipe has a batch size")?;
        let limited = |n: u64, limit: &Value| limit.as_u64().map_or(n, |limit| limit.min(n));
        let n_train = limited(images.train, &data["train_limit"]);
        let n_test = limited(images.test, &data["test_limit"]);
        let mut n_forward = 0;
        for phase in phases(inspected)? {
            let number = |key: &str| phase["train"][key].as_u64();
            let n_evaluations = phase_epochs(phase)?.div_ceil(number("eval_every").unwrap_or(1).max(1));
            let n_reestimation = number("norm_reestimation_batches").unwrap_or(0) * batch_size;
            n_forward += n_evaluations * (n_test + n_reestimation.min(n_train));
        }
        let epochs = epochs(inspected)?;
        Ok(Self { batch_size, n_train, n_test, epochs, n_forward })
    }

    /// In images of training steps, of whose work a forward pass is a third.
    fn images(&self) -> f64 {
        (self.epochs * self.n_train) as f64 + self.n_forward as f64 / 3.0
    }
}

/// Epochs of all phases of a recipe.
pub fn epochs(inspected: &Value) -> anyhow::Result<u64> {
    phases(inspected)?.iter().map(phase_epochs).sum()
}

fn phases(inspected: &Value) -> anyhow::Result<&Vec<Value>> {
    inspected["phases"].as_array().context("a recipe has phases")
}

fn phase_epochs(phase: &Value) -> anyhow::Result<u64> {
    phase["train"]["epochs"].as_u64().context("a phase has epochs")
}

/// Settings that make a few steps of every phase of a training: smaller ones where large images would take a CPU minutes a step, and
/// more memory than it has.
fn short_settings(inspected: &Value, workload: &Workload, is_cpu: bool) -> Vec<String> {
    let fixed = ["train.warmup_epochs=0", "train.norm_reestimation_batches=0"];
    let mut settings: Vec<String> = fixed.map(String::from).into();
    // An epoch for each phase.
    settings.push(format!("train.epochs={}", inspected["phases"].as_array().map_or(1, Vec::len)));
    let is_large = inspected["recipe"]["data"]["size"].as_u64().is_some_and(|side| side >= 128);
    let is_slow = is_cpu && is_large;
    let (batch_size, n_batches) = if is_slow { (8, 2) } else { (workload.batch_size, 8) };
    settings.push(format!("data.batch_size={}", batch_size.min(workload.n_train)));
    settings.push(format!("data.train_limit={}", (n_batches * batch_size).min(workload.n_train)));
    settings.push(format!("data.test_limit={}", workload.n_test.min(if is_slow { 8 } else { 64 })));
    let phases = inspected["recipe"]["phases"].as_object();
    for name in phases.into_iter().flat_map(|phases| phases.keys()) {
        settings.extend([format!("phases.{name}.epochs=1"), format!("phases.{name}.warmup_epochs=0")]);
    }
    settings
}

/// What a command that failed says of it.
fn message(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    // Warnings may come first.
    let text = text.trim();
    let text = text.rsplit_once("\nerror: ").map_or(text, |(_, error)| error).trim_start_matches("error: ");
    let text = text.split("\n\nFor more information, try").next().unwrap_or_default();
    if text.is_empty() { format!("lowbit ended with {}", output.status) } else { text.into() }
}

/// Asks a process to save and end, and to end at once if it was asked before. Returns whether it could be asked.
fn terminate(process: u32) -> bool {
    let status = Command::new("kill").arg(process.to_string()).status();
    status.is_ok_and(|status| status.success())
}

fn log(run: &Path) -> String {
    run.join("log.txt").display().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn work_is_that_of_all_phases_within_the_limits() {
        let images = Images { train: 50_000, test: 10_000 };
        let mut inspected = json!({
            "recipe": { "data": { "batch_size": 100 }, "phases": { "w2a32": { "epochs": 4 } } },
            "phases": [
                { "train": { "epochs": 4, "eval_every": 1, "norm_reestimation_batches": 0 } },
                { "train": { "epochs": 10, "eval_every": 3, "norm_reestimation_batches": 20 } },
            ],
        });
        // Evaluations after the epochs 3, 6, 9 and 10 of the second phase.
        let n_forward = 4 * 10_000 + 4 * (10_000 + 20 * 100);
        let mut workload =
            Workload { batch_size: 100, n_train: 50_000, n_test: 10_000, epochs: 14, n_forward };
        assert_eq!(Workload::of(&inspected, images).unwrap(), workload);
        inspected["recipe"]["data"]["train_limit"] = 600.into();
        inspected["recipe"]["data"]["test_limit"] = 50.into();
        (workload.n_train, workload.n_test) = (600, 50);
        workload.n_forward = 4 * 50 + 4 * (50 + 600);
        assert_eq!(Workload::of(&inspected, images).unwrap(), workload);
        assert_eq!(workload.images(), 14.0 * 600.0 + 2800.0 / 3.0);
        let settings = short_settings(&inspected, &workload, true);
        for change in [
            "train.warmup_epochs=0",
            "data.train_limit=600",
            "data.test_limit=50",
            "phases.w2a32.epochs=1",
            "train.epochs=2",
        ] {
            assert!(settings.iter().any(|setting| setting == change), "{change} in {settings:?}");
        }
        inspected["recipe"]["data"]["size"] = 224.into();
        let limits = |is_cpu| short_settings(&inspected, &workload, is_cpu)[3..5].to_vec();
        assert_eq!(limits(true), ["data.batch_size=8", "data.train_limit=16"]);
        assert_eq!(limits(false), ["data.batch_size=100", "data.train_limit=600"]);
    }
}
