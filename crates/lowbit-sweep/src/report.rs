//! A table as JSON, Markdown and plots.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Outcome};
use crate::engine::Sweep;
use crate::origin::Identity;
use crate::plot;

/// Which row a row is compared with, seed by seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The first of its bits: rows are methods.
    SameBits,
    /// The first: rows are settings.
    First,
}

impl Compare {
    /// The head of the first column.
    fn column(self) -> &'static str {
        match self {
            Self::SameBits => "method",
            Self::First => "settings",
        }
    }
}

/// A figure of others.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Method and network.
    pub what: String,
    /// Bit widths of weights and activations, 32 in full precision.
    pub bits: [u32; 2],
    /// Top-1 accuracy in percent.
    pub top1: f64,
    /// Where it stands.
    pub source: String,
}

/// A table with what was reached.
#[derive(Debug, Serialize)]
pub struct Report {
    title: String,
    device: String,
    /// The build of all cells, and the instruction sets of their processors.
    lowbit: Identity,
    /// The machines that trained them.
    machines: Vec<String>,
    cells: Vec<Row>,
    published: Vec<Published>,
    /// Cells that failed, or whose outcome cannot be read.
    pub failed: Vec<Failure>,
    /// Why not all cells had their turn, if so.
    stopped: Option<&'static str>,
    #[serde(skip)]
    compare: Compare,
    /// Whether all rows held images back, by which they can be chosen.
    #[serde(skip)]
    has_validation: bool,
}

/// A cell that failed.
#[derive(Debug, Serialize)]
pub struct Failure {
    pub cell: String,
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cell {} failed: {}", self.cell, self.reason)
    }
}

/// One method at one precision, over its seeds.
#[derive(Debug, Serialize)]
pub struct Row {
    pub method: String,
    /// 32 in full precision.
    pub weight_bits: u32,
    /// 32 in full precision.
    pub act_bits: u32,
    /// Seeds that are complete.
    pub seeds: usize,
    /// Seeds that are not.
    pub missing: usize,
    /// Mean over the seeds of the fraction of test images classified correctly after the last epoch.
    pub top1_mean: Option<f64>,
    /// Sample standard deviation over the seeds, from two seeds on.
    pub top1_std: Option<f64>,
    /// Half of the 95 % interval of the mean by Student's t, from two seeds on.
    pub top1_interval: Option<f64>,
    /// The fraction of each seed.
    pub top1: BTreeMap<u64, f64>,
    /// Mean over the seeds of the fraction of validation images classified correctly after the last epoch, where there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_mean: Option<f64>,
    /// Half of its 95 % interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation_interval: Option<f64>,
    /// Epochs of all phases together: the most of any seed.
    pub epochs: Option<u64>,
    /// The least of any seed, where early stopping ended some before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs_least: Option<u64>,
    /// Mean time of a training, evaluation included.
    pub seconds: Option<f64>,
    /// Mean over the seeds of the test accuracy by epoch.
    #[serde(skip)]
    pub curve: Vec<(u64, f64)>,
}

impl Report {
    /// `failed` and `stopped` are how the training of the cells ended.
    pub fn collect(
        sweep: &Sweep,
        device: &str,
        lowbit: &Identity,
        mut failed: Vec<Failure>,
        stopped: Option<&'static str>,
    ) -> Self {
        let (mut rows, mut machines) = (Vec::new(), BTreeSet::new());
        for cells in sweep.cells.chunk_by(|a, b| a.recipe == b.recipe) {
            let mut outcomes = BTreeMap::new();
            for cell in cells.iter().filter(|cell| cell.is_complete()) {
                match cell.outcome() {
                    Ok(outcome) => {
                        machines.insert(outcome.result.origin.machine());
                        outcomes.insert(cell.seed, outcome);
                    }
                    Err(error) => {
                        let remedy = format!("move {} away to train it again", cell.run.display());
                        let failure = Failure { cell: cell.name(), reason: format!("{error:#}; {remedy}") };
                        eprintln!("{failure}");
                        failed.push(failure);
                    }
                }
            }
            rows.push(Row::new(&cells[0], cells.len(), &outcomes));
        }
        // A folder may have validation images that no recipe speaks of: the results tell.
        let mut ended = rows.iter().filter(|row| row.top1_mean.is_some()).peekable();
        let has_validation = ended.peek().is_some() && ended.all(|row| row.validation_mean.is_some());
        Self {
            title: sweep.title.clone(),
            device: device.into(),
            lowbit: lowbit.clone(),
            machines: machines.into_iter().collect(),
            cells: rows,
            published: sweep.published.clone(),
            failed,
            stopped,
            compare: sweep.compare,
            has_validation,
        }
    }

    /// Writes `table.json`, `table.md`, `accuracy.svg` and `curves.svg`.
    pub fn write(&self, out: &Path) -> anyhow::Result<()> {
        let write = |name: &str, text: String| {
            let path = out.join(name);
            fs::write(&path, text).with_context(|| format!("failed to write {}", path.display()))
        };
        write("table.json", serde_json::to_string_pretty(self)?)?;
        write("table.md", self.markdown())?;
        write("accuracy.svg", plot::accuracy(&self.title, &self.cells)?)?;
        write("curves.svg", plot::curves(&self.title, &self.cells)?)
    }

    pub fn markdown(&self) -> String {
        let mut text = format!("## {} ({})\n\n", self.title, self.device);
        let has_full = self.cells.iter().any(|row| row.weight_bits == 32 && row.act_bits == 32);
        let first = match self.compare {
            Compare::SameBits => "first method of the same bits",
            Compare::First => "first row",
        };
        let _ = writeln!(
            text,
            "Test top-1 of the last epoch in %: mean over the seeds with its 95 % interval by Student's t. Differences from the {first} are \
             paired by seed.{}\n",
            if has_full { " `time / fp32` is that of a whole training, evaluations included." } else { "" }
        );
        let (validation, rule) = if self.has_validation { (" validation |", "---|") } else { ("", "") };
        let column = self.compare.column();
        let _ = writeln!(
            text,
            "| {column} | bits | seeds |{validation} top-1 | difference | epochs | seconds |{}\n\
             |---|---|---|{rule}---|---|---|---|{}",
            if has_full { " time / fp32 |" } else { "" },
            if has_full { "---|" } else { "" },
        );
        for row in &self.cells {
            let bits = precision([row.weight_bits, row.act_bits]);
            let missing =
                if row.missing > 0 { format!(" of {}", row.seeds + row.missing) } else { String::new() };
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
            let validation = match self.has_validation {
                true => format!(" {} |", shown(row.validation_mean, row.validation_interval)),
                false => String::new(),
            };
            let line = format!(
                "| {} | {bits} | {}{missing} |{validation} {} | {} | {} | {} |{}",
                row.method.replace('|', "\\|"),
                row.seeds,
                shown(row.top1_mean, row.top1_interval),
                self.against_first(row),
                match (row.epochs, row.epochs_least) {
                    (None, _) => "-".into(),
                    (Some(most), None) => most.to_string(),
                    (Some(most), Some(least)) => format!("{least} to {most}"),
                },
                number(row.seconds),
                if has_full { format!(" {} |", self.relative_time(row)) } else { String::new() },
            );
            text += &line;
            text.push('\n');
        }
        // Writing to a text cannot fail.
        if self.compare == Compare::First && !self.has_validation && self.cells.len() > 1 {
            text += "\nThese are test images, by which nothing may be chosen: to choose among these settings, hold images back with `--set \
                     data.validation=0.1`.\n";
        }
        let _ = writeln!(text, "\nMade by {}, on {}.", self.lowbit, self.machines.join("; "));
        if !self.published.is_empty() {
            text += "\nPublished, for comparison (not ours):\n\n| what | bits | top-1 | source |\n|---|---|---|---|\n";
            for Published { what, bits, top1, source } in &self.published {
                let _ = writeln!(text, "| {what} | {} | {top1} | {source} |", precision(*bits));
            }
        }
        if !self.failed.is_empty() {
            text += "\nFailed:\n\n";
            for Failure { cell, reason } in &self.failed {
                let _ = writeln!(text, "- {cell}: {reason}");
            }
        }
        text
    }

    /// The mean difference from the first row of the same precision over the seeds that both have, with its 95 % interval.
    fn against_first(&self, row: &Row) -> String {
        let same = |other: &&Row| {
            let has_same_bits = [other.weight_bits, other.act_bits] == [row.weight_bits, row.act_bits];
            has_same_bits || self.compare == Compare::First
        };
        let first = self.cells.iter().find(same);
        let Some(first) = first.filter(|first| first.method != row.method) else { return "".into() };
        let of_seed = |(seed, top1): (&u64, &f64)| Some(100.0 * (top1 - first.top1.get(seed)?));
        let differences: Vec<f64> = row.top1.iter().filter_map(of_seed).collect();
        match (mean(&differences), interval(&differences)) {
            (None, _) => "-".into(),
            (Some(mean), None) => format!("{mean:+.2}"),
            (Some(mean), Some(half)) => format!("{mean:+.2} +- {half:.2}"),
        }
    }

    /// The time of a training beside that of the row in full precision.
    fn relative_time(&self, row: &Row) -> String {
        let full = self
            .cells
            .iter()
            .find(|other| [other.weight_bits, other.act_bits] == [32, 32])
            .and_then(|full| full.seconds);
        let ratio = |full: f64| Some(format!("{:.2}", row.seconds? / full));
        full.and_then(ratio).unwrap_or("-".into())
    }
}

impl Row {
    /// A row of cells like `cell`, of which `outcomes` are there.
    fn new(cell: &Cell, n_cells: usize, outcomes: &BTreeMap<u64, Outcome>) -> Self {
        let curves: Vec<_> = outcomes.values().map(|outcome| outcome.curve.clone()).collect();
        let top1: Vec<f64> = outcomes.values().map(|outcome| outcome.result.top1).collect();
        let epochs = || outcomes.values().map(|outcome| outcome.result.epochs);
        let validation: Vec<f64> = outcomes
            .values()
            .filter_map(|outcome| outcome.result.validation.map(|validation| validation.top1))
            .collect();
        let seconds: Vec<f64> = outcomes.values().map(|outcome| outcome.result.seconds).collect();
        Self {
            method: cell.method.clone(),
            weight_bits: cell.bits[0],
            act_bits: cell.bits[1],
            seeds: outcomes.len(),
            missing: n_cells - outcomes.len(),
            top1_mean: mean(&top1),
            top1_std: deviation(&top1),
            top1_interval: interval(&top1),
            top1: outcomes.iter().map(|(seed, outcome)| (*seed, outcome.result.top1)).collect(),
            validation_mean: mean(&validation),
            validation_interval: interval(&validation),
            epochs: epochs().max(),
            epochs_least: epochs().min().filter(|least| Some(*least) != epochs().max()),
            seconds: mean(&seconds),
            curve: mean_curve(&curves),
        }
    }
}

/// A mean and half of its interval, in %.
fn shown(mean: Option<f64>, interval: Option<f64>) -> String {
    match (mean, interval) {
        (None, _) => "not finished".into(),
        (Some(mean), None) => format!("{:.2}", 100.0 * mean),
        (Some(mean), Some(half)) => format!("{:.2} +- {:.2}", 100.0 * mean, 100.0 * half),
    }
}

/// Bits of a network whose layers have different ones.
pub const MIXED_BITS: [u32; 2] = [0, 0];

/// "W2A2", "fp32" for full precision, or "mixed".
pub fn precision(bits: [u32; 2]) -> String {
    match bits {
        [32, 32] => "fp32".into(),
        MIXED_BITS => "mixed".into(),
        [weight, act] => format!("W{weight}A{act}"),
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation.
fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// Half of the 95 % interval of the mean of `values`, by Student's t; `None` of fewer than two.
pub fn interval(values: &[f64]) -> Option<f64> {
    /// Two-sided quantiles for 1 degree of freedom, 2, and so on.
    const T: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
        2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
        2.045, 2.042,
    ];
    let deviation = deviation(values)?;
    // More degrees of freedom have smaller ones: these intervals are then a little too wide.
    let t = T[(values.len() - 2).min(T.len() - 1)];
    Some(t * deviation / (values.len() as f64).sqrt())
}

/// Mean over the curves at the epochs that all have.
fn mean_curve(curves: &[Vec<(u64, f64)>]) -> Vec<(u64, f64)> {
    let Some((first, others)) = curves.split_first() else { return Vec::new() };
    let at = |epoch: u64| {
        let values =
            others.iter().map(|curve| curve.iter().find(|point| point.0 == epoch).map(|point| point.1));
        values.collect::<Option<Vec<f64>>>()
    };
    let point = |&(epoch, value): &(u64, f64)| {
        let others = at(epoch)?;
        Some((epoch, (value + others.iter().sum::<f64>()) / (others.len() + 1) as f64))
    };
    first.iter().filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(method: &str, top1: &[f64]) -> Row {
        Row {
            method: method.into(),
            weight_bits: 2,
            act_bits: 2,
            seeds: top1.len(),
            missing: 0,
            top1_mean: mean(top1),
            top1_std: deviation(top1),
            top1_interval: interval(top1),
            top1: (0..).zip(top1.iter().copied()).collect(),
            validation_mean: None,
            validation_interval: None,
            epochs: Some(10),
            epochs_least: None,
            seconds: Some(12.3),
            curve: Vec::new(),
        }
    }

    #[test]
    fn statistics() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
        assert_eq!(deviation(&[1.0, 3.0]), Some(2.0f64.sqrt()));
        assert_eq!((mean(&[]), deviation(&[1.0]), interval(&[1.0])), (None, None, None));
        // 12.706 / sqrt(2) times the deviation of two values.
        assert!((interval(&[1.0, 3.0]).unwrap() - 12.706).abs() < 1e-9);
        let curves = [vec![(1, 0.5), (2, 0.7)], vec![(1, 0.7), (2, 0.9), (3, 1.0)]];
        let expected = [(1, 0.6), (2, 0.8)];
        for (got, expected) in mean_curve(&curves).iter().zip(expected) {
            assert!(got.0 == expected.0 && (got.1 - expected.1).abs() < 1e-12);
        }
        assert_eq!(mean_curve(&curves).len(), 2);
    }

    #[test]
    fn a_row_is_compared_with_the_first_seed_by_seed() {
        let report = Report {
            title: "t".into(),
            device: "flex".into(),
            lowbit: Identity { lowbit: "0.1.0".into(), ..Identity::default() },
            machines: vec!["host (processor, linux)".into()],
            cells: vec![row("direct", &[0.90, 0.92]), row("sp", &[0.92, 0.93])],
            published: Vec::new(),
            failed: vec![Failure { cell: "ts, seed 1".into(), reason: "damaged".into() }],
            stopped: None,
            compare: Compare::SameBits,
            has_validation: false,
        };
        // Two seeds that differ by 2 and 1 points: 1.5 with half an interval of 12.706 times 0.5.
        assert_eq!(report.against_first(&report.cells[1]), "+1.50 +- 6.35");
        assert_eq!(report.against_first(&report.cells[0]), "");
        let line = "| sp | W2A2 | 2 | 92.50 +- 6.35 | +1.50 +- 6.35 | 10 | 12 |\n";
        assert!(report.markdown().contains(line), "{}", report.markdown());
        let made_by = "\nMade by lowbit 0.1.0 (revision unknown; ; unknown; rustc unknown; burn ), instructions , on host (";
        assert!(report.markdown().contains(made_by), "{}", report.markdown());
        assert!(report.markdown().ends_with("\nFailed:\n\n- ts, seed 1: damaged\n"), "{}", report.markdown());
    }
}
