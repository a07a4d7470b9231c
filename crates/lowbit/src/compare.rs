//! `lowbit compare`: runs side by side.

use lowbit_report::units::{bytes, count};
use lowbit_report::{Compared, Comparison, Group};

use crate::cli::CompareArgs;
use crate::exit_code::Code;
use crate::inspect::expect_no_checkpoint;
use crate::output::{self, clock, percent_exact};
use crate::table::{self, Column};

pub fn run(args: &CompareArgs) -> anyhow::Result<Code> {
    for run in &args.runs {
        expect_no_checkpoint(run, "compare")?;
    }
    let comparison = Comparison::read(&args.runs)?;
    match args.json.json {
        true => output::print_json(&comparison)?,
        false => output::print(&describe(&comparison))?,
    }
    Ok(Code::Success)
}

fn describe(comparison: &Comparison) -> String {
    let Comparison { runs, recipe, layers, groups } = comparison;
    let width = output::stdout_columns();
    // Directories are longer than what they are compared in.
    let legend = runs.iter().enumerate();
    let legend = legend.map(|(i, run)| {
        output::wrapped(&format!("{:<3} ", letters(i)), &run.summary.run_dir.display().to_string(), width)
    });
    let mut parts = vec![legend.collect::<Vec<_>>().join("\n")];
    parts.push(side_by_side("", &results(runs), runs.len(), width));
    if !groups.is_empty() {
        let lines = groups.iter().map(|group| output::wrapped("", &describe_group(group), width));
        parts.push(lines.collect::<Vec<_>>().join("\n"));
    }
    let rows: Vec<Vec<String>> =
        recipe.iter().map(|key| std::iter::once(&key.key).chain(&key.values).cloned().collect()).collect();
    parts.push(match rows.is_empty() {
        true => "the recipes are the same".into(),
        false => side_by_side("recipe", &rows, runs.len(), width),
    });
    let rows: Vec<Vec<String>> = layers
        .iter()
        .map(|layer| {
            let bits = layer.bits.iter().map(|bits| match bits {
                Some([weight, act]) => format!("{weight}, {act}"),
                None => "-".into(),
            });
            std::iter::once(layer.path.clone()).chain(bits).collect()
        })
        .collect();
    if !rows.is_empty() {
        parts.push(side_by_side("bits of layers", &rows, runs.len(), width));
    }
    parts.join("\n\n")
}

/// The name of the run at place `i`: A to Z, then A2 and so on.
fn letters(i: usize) -> String {
    let letter = char::from(b'A' + (i % 26) as u8);
    if i < 26 { letter.into() } else { format!("{letter}{}", i / 26 + 1) }
}

/// A row for each key, a column for each run; where there is no room for that, the values of a key below each other.
fn side_by_side(title: &str, rows: &[Vec<String>], n_runs: usize, width: Option<usize>) -> String {
    let columns: Vec<Column> = std::iter::once(Column::left(title, 0))
        .chain((0..n_runs).map(|i| Column::left(&letters(i), 0)))
        .collect();
    table::fitted(&columns, rows, width).unwrap_or_else(|| {
        let blocks = rows.iter().map(|row| {
            let values = row.iter().skip(1).enumerate();
            let values =
                values.map(|(i, value)| output::wrapped(&format!("  {:<3} ", letters(i)), value, width));
            let key = row.first().into_iter().cloned();
            key.chain(values).collect::<Vec<_>>().join("\n")
        });
        let title = (!title.is_empty()).then(|| title.to_string());
        title.into_iter().chain(blocks).collect::<Vec<_>>().join("\n")
    })
}

type Value = fn(&Compared) -> Option<String>;

fn results(runs: &[Compared]) -> Vec<Vec<String>> {
    let values: [(&str, Value); 17] = [
        ("network", |run| run.summary.network.clone()),
        ("bits", |run| run.summary.bits.clone()),
        ("method", |run| run.summary.method.clone()),
        ("strategies", |run| {
            let names = &run.summary.strategies;
            (!names.is_empty()).then(|| names.join(", "))
        }),
        ("seed", |run| run.summary.seed.map(|seed| seed.to_string())),
        ("state", |run| Some(run.summary.state.as_str().into())),
        ("epochs", |run| Some(format!("{}/{}", run.summary.epochs_done, run.summary.epochs?))),
        ("top-1", |run| Some(percent_exact(run.summary.test?.top1))),
        ("top-5", |run| Some(percent_exact(run.summary.test?.top5))),
        ("loss", |run| Some(format!("{:.4}", run.summary.test?.loss))),
        ("validation top-1", |run| Some(percent_exact(run.summary.validation?.top1))),
        ("best top-1", |run| {
            let best = run.summary.best?;
            Some(format!("{} ({})", percent_exact(best.top1), best.images))
        }),
        ("packed", |run| Some(bytes(run.cost.packed_bytes))),
        ("bit operations", |run| Some(count(run.cost.bit_operations))),
        ("parameters", |run| Some(count(run.cost.n_parameters as u64))),
        ("time", |run| run.summary.seconds.map(clock)),
        ("started", |run| run.summary.started.clone()),
    ];
    let row = |(name, value): (&str, Value)| {
        let values: Vec<Option<String>> = runs.iter().map(value).collect();
        // What no run has is not shown.
        values.iter().any(Option::is_some).then(|| {
            let values = values.into_iter().map(|value| value.unwrap_or_else(|| "-".into()));
            std::iter::once(name.to_string()).chain(values).collect()
        })
    };
    values.into_iter().filter_map(row).collect()
}

fn describe_group(group: &Group) -> String {
    let names: Vec<String> = group.runs.iter().map(|&i| letters(i)).collect();
    let interval =
        group.top1.interval.map(|interval| format!(" ± {}", percent_exact(interval))).unwrap_or_default();
    format!(
        "{} differ in their seed alone: top-1 {}{interval} (mean and 95 % interval of {})",
        names.join(", "),
        percent_exact(group.top1.mean),
        output::counted(group.runs.len() as u64, "seed")
    )
}
