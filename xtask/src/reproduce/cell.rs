//! One cell of a table and the `lowbit` process that trains it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::workspace;

/// One training.
#[derive(Clone, Debug)]
pub struct Cell {
    pub method: String,
    /// Bit widths of weights and activations, 32 in full precision.
    pub bits: [u32; 2],
    pub recipe: String,
    pub seed: u64,
    /// Changed settings.
    pub set: Vec<String>,
    /// Its run directory.
    pub run: PathBuf,
}

/// How far a cell is.
pub enum CellState {
    Absent,
    Begun,
    Complete,
}

/// What `result.json` says of a complete cell.
#[derive(Clone, Debug, Deserialize)]
pub struct CellResult {
    pub top1: f64,
    pub epochs: u64,
    pub seconds: f64,
}

impl Cell {
    pub fn name(&self) -> String {
        format!("{}, seed {}", self.recipe, self.seed)
    }

    pub fn state(&self) -> CellState {
        match (self.run.join("result.json").is_file(), self.run.join("run.json").is_file()) {
            (true, _) => CellState::Complete,
            (false, true) => CellState::Begun,
            (false, false) => CellState::Absent,
        }
    }

    pub fn result(&self) -> anyhow::Result<CellResult> {
        let path = self.run.join("result.json");
        let text = fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    fn add_settings(&self, command: &mut Command) {
        for change in &self.set {
            command.args(["--set", change]);
        }
    }

    /// Test accuracy by epoch.
    pub fn curve(&self) -> anyhow::Result<Vec<(u64, f64)>> {
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

/// What a recipe would take.
pub struct Estimate {
    pub epochs: u64,
    pub images_per_second: f64,
    pub duration: Duration,
}

/// Builds `lowbit`: with the CPU backends, as for all other commands, or with the one that `device` needs.
pub fn build(device: &str) -> anyhow::Result<PathBuf> {
    let mut arguments = vec!["-p", "lowbit"];
    let backend = device.split(':').next().unwrap_or(device);
    if !["flex", "ndarray"].contains(&backend) {
        arguments.extend(["--no-default-features", "--features", backend]);
    }
    workspace::build("lowbit", &arguments)
}

/// The `lowbit` program on a device.
pub struct Lowbit {
    pub program: PathBuf,
    pub device: String,
    pub data_dir: Option<PathBuf>,
}

impl Lowbit {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args);
        command
    }

    fn with_data_dir<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        match &self.data_dir {
            Some(data_dir) => command.arg("--data-dir").arg(data_dir),
            None => command,
        }
    }

    /// What to do if the data set is not there; `None` if it is.
    pub fn missing_data(&self, dataset: &str) -> anyhow::Result<Option<String>> {
        if self.info(dataset)?["built_in"] == true {
            return Ok(None);
        }
        let mut verify = self.command(&["data", "verify", dataset]);
        let output = self.with_data_dir(&mut verify).output().context("failed to run lowbit")?;
        let says = String::from_utf8_lossy(&output.stderr);
        Ok((!output.status.success()).then(|| says.trim().trim_start_matches("error: ").to_string()))
    }

    /// What `lowbit data list` says of a data set.
    fn info(&self, dataset: &str) -> anyhow::Result<Value> {
        let output = self.command(&["data", "list", "--json"]).output().context("failed to run lowbit")?;
        let list: Vec<Value> = serde_json::from_slice(&output.stdout).context("lowbit data list --json")?;
        let found = list.into_iter().find(|entry| entry["name"] == dataset);
        found.with_context(|| format!("lowbit knows no data set {dataset}"))
    }

    /// Trains a cell to its end, or until `stop` says so, from where it is.
    pub fn train(&self, cell: &Cell, n_threads: usize, stop: impl Fn() -> bool) -> anyhow::Result<CellState> {
        let mut command = match cell.state() {
            CellState::Complete => return Ok(CellState::Complete),
            CellState::Begun => {
                let mut command = self.command(&["train", "--resume"]);
                command.arg(&cell.run);
                command
            }
            CellState::Absent => {
                let mut command = self.command(&["train", &cell.recipe, "--out"]);
                command.arg(&cell.run).args(["--set", &format!("seed={}", cell.seed)]);
                cell.add_settings(&mut command);
                command
            }
        };
        command.args(["--quiet", "--device", &self.device]).env("RAYON_NUM_THREADS", n_threads.to_string());
        self.with_data_dir(&mut command).stdout(Stdio::null());
        let mut child = command.spawn().context("failed to run lowbit")?;
        let mut asked_to_stop = false;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if stop() && !asked_to_stop {
                terminate(&child)?;
                asked_to_stop = true;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        match (status.success(), asked_to_stop) {
            (true, _) => Ok(CellState::Complete),
            (false, true) => Ok(cell.state()),
            (false, false) => bail!("lowbit ended with {status}; its log: {}", log(&cell.run)),
        }
    }

    /// Times the recipe of `cell` over a few steps of every phase.
    pub fn estimate(&self, cell: &Cell, dataset: &str) -> anyhow::Result<Estimate> {
        let mut inspect = self.command(&["inspect", &cell.recipe, "--json"]);
        cell.add_settings(&mut inspect);
        let recipe: Value =
            serde_json::from_slice(&inspect.output()?.stdout).context("lowbit inspect --json")?;
        let phases = recipe["phases"].as_array().context("a recipe has phases")?;
        let epochs = phases.iter().filter_map(|phase| phase["train"]["epochs"].as_u64()).sum();
        let batch_size =
            recipe["recipe"]["data"]["batch_size"].as_u64().context("a recipe has a batch size")?;
        let info = self.info(dataset)?;
        let count = |key: &str| info[key].as_u64().context("a data set has images");
        let (n_train, n_test) = (count("n_train")?, count("n_test")?);
        let n_timed = (8 * batch_size).min(n_train);

        let run = std::env::temp_dir().join(format!("lowbit-timing-{}", std::process::id()));
        let mut command =
            self.command(&["train", &cell.recipe, "--json", "--quiet", "--device", &self.device]);
        command.arg("--out").arg(&run);
        cell.add_settings(&mut command);
        for change in ["train.epochs=1", "train.norm_reestimation_batches=0", "data.test_limit=64"] {
            command.args(["--set", change]);
        }
        command.args(["--set", &format!("data.train_limit={n_timed}")]);
        let output = self.with_data_dir(&mut command).output().context("failed to run lowbit")?;
        fs::remove_dir_all(&run).context("failed to remove the timing's run")?;
        let result: Value = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("timing {}: {}", cell.recipe, String::from_utf8_lossy(&output.stderr))
        })?;
        let images_per_second = result["images_per_second"].as_f64().context("a result has a rate")?;
        // An image of an evaluation costs a forward pass, a third of a step's work.
        let images = epochs as f64 * (n_train as f64 + n_test as f64 / 3.0);
        let duration = Duration::from_secs_f64(images / images_per_second);
        Ok(Estimate { epochs, images_per_second, duration })
    }
}

/// Asks a process to save and end.
fn terminate(child: &Child) -> anyhow::Result<()> {
    let status = Command::new("kill").arg(child.id().to_string()).status();
    status.context("failed to run kill").map(drop)
}

fn log(run: &Path) -> String {
    run.join("log.txt").display().to_string()
}
