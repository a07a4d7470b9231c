//! `lowbit list`: the runs below a directory.

use std::cmp::Ordering;

use lowbit_report::{RunList, Summary};

use crate::cli::{ListArgs, SortKey};
use crate::exit_code::Code;
use crate::output::{self, clock, percent_exact};
use crate::table::{self, Column};

pub fn run(args: &ListArgs) -> anyhow::Result<Code> {
    let mut list = RunList::read(&args.dir)?;
    sort(&mut list.runs, args.sort, args.reverse);
    for problem in &list.unread {
        tracing::warn!("{problem}");
    }
    match args.json.json {
        true => output::print_json(&list)?,
        false => output::print(&describe(&list))?,
    }
    Ok(Code::Success)
}

fn sort(runs: &mut [Summary], key: SortKey, reverse: bool) {
    runs.sort_by(|one, other| match key {
        SortKey::Name => ordered(Some(&one.name), Some(&other.name), Ord::cmp, reverse),
        SortKey::Network => ordered(one.network.as_ref(), other.network.as_ref(), Ord::cmp, reverse),
        SortKey::Bits => ordered(one.bits.as_ref(), other.bits.as_ref(), Ord::cmp, reverse),
        SortKey::Method => ordered(one.method.as_ref(), other.method.as_ref(), Ord::cmp, reverse),
        SortKey::Epochs => ordered(Some(&one.epochs_done), Some(&other.epochs_done), Ord::cmp, reverse),
        SortKey::State => ordered(Some(&one.state), Some(&other.state), Ord::cmp, reverse),
        SortKey::Top1 => {
            let top1 = |run: &Summary| Some(run.test?.top1);
            ordered(top1(one).as_ref(), top1(other).as_ref(), f64::total_cmp, reverse)
        }
        SortKey::Best => {
            let best = |run: &Summary| Some(run.best?.top1);
            ordered(best(one).as_ref(), best(other).as_ref(), f64::total_cmp, reverse)
        }
        SortKey::Seconds => ordered(one.seconds.as_ref(), other.seconds.as_ref(), f64::total_cmp, reverse),
        SortKey::Started => ordered(one.started.as_ref(), other.started.as_ref(), Ord::cmp, reverse),
    });
}

/// The order of two values; what is absent is last either way.
fn ordered<T>(
    one: Option<&T>,
    other: Option<&T>,
    compare: fn(&T, &T) -> Ordering,
    reverse: bool,
) -> Ordering {
    match (one, other) {
        (Some(one), Some(other)) if reverse => compare(other, one),
        (Some(one), Some(other)) => compare(one, other),
        (one, other) => other.is_some().cmp(&one.is_some()),
    }
}

fn describe(list: &RunList) -> String {
    if list.runs.is_empty() {
        return format!("no runs in {}", list.dir.display());
    }
    let columns = [
        Column::left("run", 0),
        Column::left("network", 2),
        Column::left("bits", 0),
        Column::left("method", 3),
        Column::right("epochs", 0),
        Column::left("state", 0),
        Column::right("top-1", 0),
        Column::right("best", 1),
        Column::right("time", 4),
        Column::left("started", 5),
    ];
    let rows: Vec<Vec<String>> = list.runs.iter().map(row).collect();
    let width = output::stdout_columns();
    let mut text = table::whole(&columns, &rows, width);
    for run in &list.runs {
        if let Some(problem) = &run.problem {
            // Of several lines, as that of a recipe has.
            let problem = problem.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            let name = format!("{}: ", table::in_a_line(&run.name));
            text += &format!("\n{}", output::wrapped(&name, &problem, width));
        }
    }
    text
}

fn row(run: &Summary) -> Vec<String> {
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let score = |score: Option<f64>| score.map_or_else(|| "-".into(), percent_exact);
    let epochs = run.epochs.map_or_else(|| "-".into(), |epochs| format!("{}/{epochs}", run.epochs_done));
    vec![
        run.name.clone(),
        text(&run.network),
        text(&run.bits),
        text(&run.method),
        epochs,
        run.state.as_str().into(),
        score(run.test.map(|test| test.top1)),
        score(run.best.map(|best| best.top1)),
        run.seconds.map_or_else(|| "-".into(), clock),
        text(&run.started),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_last_either_way() {
        let mut values = [Some(2), None, Some(3), Some(1)];
        for (reverse, expected) in
            [(false, [Some(1), Some(2), Some(3), None]), (true, [Some(3), Some(2), Some(1), None])]
        {
            values.sort_by(|one, other| ordered(one.as_ref(), other.as_ref(), Ord::cmp, reverse));
            assert_eq!(values, expected);
        }
    }
}
