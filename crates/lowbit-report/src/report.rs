//! One run, or several side by side.

use std::path::Path;

use burn::tensor::Device;
use lowbit_train::{TrainError, utc_now};
use serde::Serialize;

use crate::compare::Comparison;
use crate::images::Look;
use crate::page;
use crate::run::RunReport;

/// Version of the report as data.
const SCHEMA: u32 = 1;

/// What runs say. As JSON, it is what `lowbit report --json` writes.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    schema: u32,
    /// The runs.
    pub runs: Vec<RunReport>,
    /// What sets them apart, if there are several.
    pub comparison: Option<Comparison>,
    /// When the report was made, in UTC.
    pub made: String,
    /// The version of lowbit that made it.
    pub made_by: String,
}

impl Report {
    /// Reads the files of runs; no checkpoint is read, and no image.
    ///
    /// # Errors
    /// [`TrainError`] if a run cannot be read.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self, TrainError> {
        let runs = paths.iter().map(|path| RunReport::read(path.as_ref()));
        let mut runs = runs.collect::<Result<Vec<_>, _>>()?;
        name_apart(&mut runs);
        Ok(Self {
            schema: SCHEMA,
            comparison: (runs.len() > 1).then(|| Comparison::of(&runs)),
            runs,
            made: utc_now(),
            made_by: env!("CARGO_PKG_VERSION").into(),
        })
    }

    /// [`RunReport::add_network`] for all runs, on one device.
    pub fn add_networks(&mut self, device: &Device, look: &Look) {
        self.runs.iter_mut().for_each(|run| run.add_network(device, look));
    }

    /// The page: one file that loads nothing.
    pub fn to_html(&self) -> String {
        page::of(self)
    }

    /// Whether `bytes` are the beginning of a report: only such a file is replaced by a new one.
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(page::START.as_bytes()) || bytes.starts_with(b"{\"schema\":1,\"runs\":[")
    }
}

/// Names runs whose directories have the same name by their paths.
fn name_apart(runs: &mut [RunReport]) {
    let names: Vec<String> = runs.iter().map(|run| run.summary.name.clone()).collect();
    for run in runs {
        if names.iter().filter(|name| **name == run.summary.name).count() > 1 {
            run.summary.name = run.summary.run_dir.display().to_string();
        }
    }
}
