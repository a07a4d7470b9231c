//! A table as JSON, Markdown and plots.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::cell::{Cell, Outcome};
use crate::engine::Sweep;
use crate::origin::{Identity, Machine};
use crate::plot::{self, Figure};
use crate::statistics::{deviation, holm, interval, mean, p_value};

/// Which row a row is compared with, seed by seed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compare {
    /// The first of its bits: rows are methods.
    SameBits,
    /// The first: rows are settings.
    First,
    /// These pairs: rows are methods.
    Pairs(Vec<Pair>),
}

/// A comparison that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// Bit widths of weights and activations; the comparisons of the same ones are a family, whose p values are corrected together.
    pub bits: [u32; 2],
    /// The method that is asked about, at these bits.
    pub of: String,
    /// What it is compared with, at these bits or in full precision.
    pub with: String,
}

impl Compare {
    /// The head of the first column.
    fn column(&self) -> &'static str {
        match self {
            Self::SameBits | Self::Pairs(_) => "method",
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
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    title: String,
    device: String,
    /// The build of all cells, and the instruction sets of their processors.
    lowbit: Identity,
    /// The machines that trained them.
    machines: Vec<Machine>,
    cells: Vec<Row>,
    /// Differences between rows, paired by seed.
    comparisons: Vec<Comparison>,
    published: Vec<Published>,
    /// Cells that failed, or whose outcome cannot be read.
    pub failed: Vec<Failure>,
    /// Why not all cells had their turn, if so.
    stopped: Option<String>,
    compare: Compare,
}

/// What one row reaches above another.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    pub weight_bits: u32,
    pub act_bits: u32,
    pub of: String,
    pub with: String,
    /// Seeds that both rows have.
    pub seeds: usize,
    /// Mean over these seeds of the difference of test accuracies, as a fraction.
    pub difference: Option<f64>,
    /// Half of its 95 % interval by Student's t, from two seeds on.
    pub interval: Option<f64>,
    /// Two-sided p value of Student's t test of it, from two seeds on, if neither row lacks one.
    pub p: Option<f64>,
    /// The same corrected for the comparisons of its family, by Holm's method.
    pub p_holm: Option<f64>,
}

/// A cell that failed.
#[derive(Debug, Serialize, Deserialize)]
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
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    /// SHA-256 of the state of each seed after its last step, as `lowbit inspect RUN --json` says it.
    #[serde(default)]
    pub state_sha256: BTreeMap<u64, String>,
    /// Mean over the seeds of the fraction of validation images classified correctly after the last epoch, where there are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_mean: Option<f64>,
    /// Half of its 95 % interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_interval: Option<f64>,
    /// Epochs of all phases together: the most of any seed.
    pub epochs: Option<u64>,
    /// The least of any seed, where early stopping ended some before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
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
        Self {
            title: sweep.title.clone(),
            device: device.into(),
            lowbit: lowbit.clone(),
            machines: machines.into_iter().collect(),
            comparisons: comparisons(&rows, &sweep.compare),
            cells: rows,
            published: sweep.published.clone(),
            failed,
            stopped: stopped.map(String::from),
            compare: sweep.compare.clone(),
        }
    }

    /// Reads what [`write`](Self::write) wrote as `table.json`.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("failed to read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// The same without the names and systems of the machines, as it is published.
    pub fn published(self) -> Self {
        let without_name = |machine: Machine| Machine { host: None, system: None, ..machine };
        let machines: BTreeSet<Machine> = self.machines.into_iter().map(without_name).collect();
        Self { machines: machines.into_iter().collect(), ..self }
    }

    /// Digest of the state of a seed of a row after its last step, if it is complete.
    pub fn state_sha256(&self, bits: [u32; 2], method: &str, seed: u64) -> Option<&str> {
        let is_it = |row: &&Row| [row.weight_bits, row.act_bits] == bits && row.method == method;
        self.cells.iter().find(is_it)?.state_sha256.get(&seed).map(String::as_str)
    }

    /// Whether all rows held images back, by which they can be chosen. A folder may have validation images that no recipe speaks of:
    /// the results tell.
    fn has_validation(&self) -> bool {
        let mut ended = self.cells.iter().filter(|row| row.top1_mean.is_some()).peekable();
        ended.peek().is_some() && ended.all(|row| row.validation_mean.is_some())
    }

    /// Writes `table.json`, `table.md`, and the figures `accuracy`, `differences` and `curves` as SVG and PNG.
    pub fn write(&self, out: &Path) -> anyhow::Result<()> {
        let write = |name: &str, bytes: &[u8]| {
            let path = out.join(name);
            fs::write(&path, bytes).with_context(|| format!("failed to write {}", path.display()))
        };
        write("table.json", serde_json::to_string_pretty(self)?.as_bytes())?;
        write("table.md", self.markdown().as_bytes())?;
        let figures = [
            ("accuracy", plot::accuracy(&self.title, &self.cells)?),
            ("differences", plot::differences(&self.title, &self.comparisons)?),
            ("curves", plot::curves(&self.title, &self.cells)?),
        ];
        for (name, Figure { svg, png }) in figures {
            write(&format!("{name}.svg"), svg.as_bytes())?;
            write(&format!("{name}.png"), &png)?;
        }
        Ok(())
    }

    /// The table and its comparisons.
    pub fn markdown(&self) -> String {
        let mut text = format!("## {} ({})\n\n", self.title, self.device);
        let has_full = self.cells.iter().any(|row| row.weight_bits == 32 && row.act_bits == 32);
        let (differences, column_of_difference) = match self.compare {
            Compare::SameBits => {
                (" Differences from the first method of the same bits are paired by seed.", " difference |")
            }
            Compare::First => (" Differences from the first row are paired by seed.", " difference |"),
            Compare::Pairs(_) => ("", ""),
        };
        let rule_of_difference = if column_of_difference.is_empty() { "" } else { "---|" };
        let has_validation = self.has_validation();
        let _ = writeln!(
            text,
            "Test top-1 of the last epoch in %: mean over the seeds with its 95 % interval by Student's t.{differences}{}\n",
            if has_full { " `time / fp32` is that of a whole training, evaluations included." } else { "" }
        );
        let (validation, rule) = if has_validation { (" validation |", "---|") } else { ("", "") };
        let column = self.compare.column();
        let _ = writeln!(
            text,
            "| {column} | bits | seeds |{validation} top-1 |{column_of_difference} epochs | seconds |{}\n\
             |---|---|---|{rule}---|{rule_of_difference}---|---|{}",
            if has_full { " time / fp32 |" } else { "" },
            if has_full { "---|" } else { "" },
        );
        for row in &self.cells {
            let bits = precision([row.weight_bits, row.act_bits]);
            let missing =
                if row.missing > 0 { format!(" of {}", row.seeds + row.missing) } else { String::new() };
            let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.0}"));
            let validation = match has_validation {
                true => format!(" {} |", shown(row.validation_mean, row.validation_interval)),
                false => String::new(),
            };
            let line = format!(
                "| {} | {bits} | {}{missing} |{validation} {} |{} {} | {} |{}",
                row.method.replace('|', "\\|"),
                row.seeds,
                shown(row.top1_mean, row.top1_interval),
                match column_of_difference {
                    "" => String::new(),
                    _ => format!(" {} |", self.difference_of(row)),
                },
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
        if self.compare == Compare::First && !has_validation && self.cells.len() > 1 {
            text += "\nThese are test images, by which nothing may be chosen: to choose among these settings, hold images back with `--set \
                     data.validation=0.1`.\n";
        }
        text += &self.markdown_of_comparisons();
        let machines: Vec<String> = self.machines.iter().map(Machine::to_string).collect();
        let _ = writeln!(text, "\nMade by {}, on {}.", self.lowbit, machines.join("; "));
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

    /// The difference of a row from the first, with its 95 % interval.
    fn difference_of(&self, row: &Row) -> String {
        let is_of = |comparison: &&Comparison| {
            (&comparison.of, comparison.weight_bits, comparison.act_bits)
                == (&row.method, row.weight_bits, row.act_bits)
        };
        self.comparisons.iter().find(is_of).map_or(String::new(), Comparison::shown)
    }

    /// The comparisons that were asked for, with their tests.
    fn markdown_of_comparisons(&self) -> String {
        let Compare::Pairs(_) = self.compare else { return String::new() };
        let mut text = String::from(
            "\nDifferences of top-1 in points, paired by seed, with their 95 % intervals; p of Student's t test, two-sided, and corrected for \
             the comparisons of the same bits by Holm's method. A difference is shown if the corrected p is below 0.05.\n\n\
             | comparison | bits | seeds | difference | p | p (Holm) | shown |\n|---|---|---|---|---|---|---|\n",
        );
        let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
        for comparison in &self.comparisons {
            let Comparison { weight_bits, act_bits, of, with, seeds, p, p_holm, .. } = comparison;
            let is_shown = match p_holm {
                None => "-",
                Some(p) if *p < 0.05 => "yes",
                Some(_) => "no",
            };
            let _ = writeln!(
                text,
                "| {of} - {with} | {} | {seeds} | {} | {} | {} | {is_shown} |",
                precision([*weight_bits, *act_bits]),
                comparison.shown(),
                number(*p),
                number(*p_holm),
            );
        }
        text
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

impl Comparison {
    fn of(row: &Row, other: &Row) -> Self {
        let of_seed = |(seed, top1): (&u64, &f64)| Some(top1 - other.top1.get(seed)?);
        let differences: Vec<f64> = row.top1.iter().filter_map(of_seed).collect();
        Self {
            weight_bits: row.weight_bits,
            act_bits: row.act_bits,
            of: row.method.clone(),
            with: other.method.clone(),
            seeds: differences.len(),
            difference: mean(&differences),
            interval: interval(&differences),
            // Seeds that are missing may have diverged: what is left would be a choice.
            p: p_value(&differences).filter(|_| row.missing + other.missing == 0),
            p_holm: None,
        }
    }

    /// In points.
    fn shown(&self) -> String {
        match (self.difference, self.interval) {
            (None, _) => "-".into(),
            (Some(mean), None) => format!("{:+.2}", 100.0 * mean),
            (Some(mean), Some(half)) => format!("{:+.2} +- {:.2}", 100.0 * mean, 100.0 * half),
        }
    }
}

/// Compares rows as asked for. A pair of which a row is missing is left out.
fn comparisons(rows: &[Row], compare: &Compare) -> Vec<Comparison> {
    let bits = |row: &Row| [row.weight_bits, row.act_bits];
    let pairs: Vec<(&Row, &Row)> = match compare {
        Compare::First => rows.iter().skip(1).map(|row| (row, &rows[0])).collect(),
        Compare::SameBits => {
            let first = |row: &Row| rows.iter().find(|other| bits(other) == bits(row));
            let pairs = rows.iter().filter_map(|row| Some((row, first(row)?)));
            pairs.filter(|(row, first)| row.method != first.method).collect()
        }
        Compare::Pairs(pairs) => {
            let find = |wanted: &[u32; 2], method: &str| {
                rows.iter().find(|row| bits(row) == *wanted && row.method == method)
            };
            let pair = |Pair { bits, of, with }: &Pair| {
                Some((find(bits, of)?, find(bits, with).or_else(|| find(&[32, 32], with))?))
            };
            pairs.iter().filter_map(pair).collect()
        }
    };
    let mut all: Vec<Comparison> = pairs.into_iter().map(|(row, other)| Comparison::of(row, other)).collect();
    let is_one_family = *compare == Compare::First;
    let same_family = |a: &Comparison, b: &Comparison| {
        is_one_family || (a.weight_bits, a.act_bits) == (b.weight_bits, b.act_bits)
    };
    for family in all.chunk_by_mut(same_family) {
        // One that is not there yet counts too, as if it showed nothing.
        let corrected =
            holm(&family.iter().map(|comparison| comparison.p.unwrap_or(1.0)).collect::<Vec<f64>>());
        for (comparison, p) in family.iter_mut().zip(corrected) {
            comparison.p_holm = comparison.p.map(|_| p);
        }
    }
    all
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
            state_sha256: outcomes
                .iter()
                .filter_map(|(seed, outcome)| Some((*seed, outcome.state_sha256.clone()?)))
                .collect(),
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
            state_sha256: BTreeMap::new(),
            validation_mean: None,
            validation_interval: None,
            epochs: Some(10),
            epochs_least: None,
            seconds: Some(12.3),
            curve: Vec::new(),
        }
    }

    #[test]
    fn a_curve_has_the_epochs_of_all_seeds() {
        let curves = [vec![(1, 0.5), (2, 0.7)], vec![(1, 0.7), (2, 0.9), (3, 1.0)]];
        let expected = [(1, 0.6), (2, 0.8)];
        for (got, expected) in mean_curve(&curves).iter().zip(expected) {
            assert!(got.0 == expected.0 && (got.1 - expected.1).abs() < 1e-12);
        }
        assert_eq!(mean_curve(&curves).len(), 2);
    }

    fn report(cells: Vec<Row>, compare: Compare) -> Report {
        Report {
            title: "t".into(),
            device: "flex".into(),
            lowbit: Identity { lowbit: "0.1.0".into(), ..Identity::default() },
            machines: vec![Machine {
                host: Some("host".into()),
                processor: Some("processor".into()),
                ..Machine::default()
            }],
            comparisons: comparisons(&cells, &compare),
            cells,
            published: Vec::new(),
            failed: vec![Failure { cell: "ts, seed 1".into(), reason: "damaged".into() }],
            stopped: None,
            compare,
        }
    }

    #[test]
    fn pairs_that_were_asked_for_are_tested_by_families() {
        let full = Row { weight_bits: 32, act_bits: 32, ..row("full-precision", &[0.95, 0.95, 0.96]) };
        let rows = vec![full, row("direct", &[0.90, 0.91, 0.92]), row("ts", &[0.92, 0.93, 0.95])];
        let pair = |of: &str, with: &str| Pair { bits: [2, 2], of: of.into(), with: with.into() };
        let pairs = vec![pair("ts", "direct"), pair("direct", "full-precision"), pair("sp", "direct")];
        let report = report(rows, Compare::Pairs(pairs));
        // Differences of 2, 2 and 3 points: 7/3, deviation 1/sqrt(3), t = 7 with two degrees of freedom, of which p = 1 - 7/sqrt(51).
        let [ts, direct] = &report.comparisons[..] else { panic!("{:?}", report.comparisons) };
        let p = 1.0 - 7.0 / 51.0f64.sqrt();
        assert!(
            (ts.p.unwrap() - p).abs() < 1e-6 && (ts.difference.unwrap() - 0.07 / 3.0).abs() < 1e-9,
            "{ts:?}"
        );
        // -5, -4 and -4 points: t = 13, p = 1 - 13/sqrt(171).
        let smaller = 1.0 - 13.0 / 171.0f64.sqrt();
        assert!((direct.p.unwrap() - smaller).abs() < 1e-6, "{direct:?}");
        assert!((direct.p_holm.unwrap() - 2.0 * smaller).abs() < 1e-6, "{direct:?}");
        assert!((ts.p_holm.unwrap() - p).abs() < 1e-6, "{ts:?}");
        let line = format!("| ts - direct | W2A2 | 3 | +2.33 +- 1.43 | {p:.3} | {p:.3} | yes |\n");
        assert!(report.markdown().contains(&line), "{}", report.markdown());
        let again: Report = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(again.markdown(), report.markdown());
    }

    #[test]
    fn a_row_is_compared_with_the_first_seed_by_seed() {
        let report = report(vec![row("direct", &[0.90, 0.92]), row("sp", &[0.92, 0.93])], Compare::SameBits);
        // Two seeds that differ by 2 and 1 points: 1.5 with half an interval of 12.706 times 0.5.
        assert_eq!(report.difference_of(&report.cells[1]), "+1.50 +- 6.35");
        assert_eq!(report.difference_of(&report.cells[0]), "");
        let line = "| sp | W2A2 | 2 | 92.50 +- 6.35 | +1.50 +- 6.35 | 10 | 12 |\n";
        assert!(report.markdown().contains(line), "{}", report.markdown());
        let made_by = "\nMade by lowbit 0.1.0 (revision unknown; ; unknown; rustc unknown; burn ), instructions , on host (";
        assert!(report.markdown().contains(made_by), "{}", report.markdown());
        assert!(report.markdown().ends_with("\nFailed:\n\n- ts, seed 1: damaged\n"), "{}", report.markdown());
    }
}
