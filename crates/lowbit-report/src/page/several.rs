//! Several runs side by side.

use crate::chart::{LineChart, Series, Unit};
use crate::compare::{Comparison, Group, KeyValues, LayerBits};
use crate::markup::{Element, classed, el};
use crate::page::curves::series;
use crate::report::Report;
use crate::run::RunReport;
use crate::statistics::Mean;
use crate::units::{bytes, clock, count, percent};

pub(super) fn section(report: &Report, comparison: &Comparison) -> Element {
    el("div")
        .child(el("h2").text("Side by side"))
        .child(results(report))
        .children(groups(report, &comparison.groups))
        .child(el("h2").text("Recipes"))
        .child(recipes(report, &comparison.recipe))
        .child(el("h2").text("Curves"))
        .child(curves(report))
        .children(layers(report, &comparison.layers))
        .child(el("h2").text("Each run"))
}

fn link(i: usize, run: &RunReport) -> Element {
    el("a").attr("href", format!("#run{}", i + 1)).text(&run.summary.name)
}

fn results(report: &Report) -> Element {
    let heads = [
        "run",
        "network",
        "bits",
        "method",
        "seed",
        "state",
        "epochs",
        "top-1",
        "top-5",
        "loss",
        "packed",
        "bit operations",
        "time",
    ];
    let row = |(i, run): (usize, &RunReport)| {
        let summary = &run.summary;
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        let score = |value: Option<f64>| value.map_or_else(|| "-".into(), percent);
        let epochs = match summary.epochs {
            Some(epochs) => format!("{}/{epochs}", summary.epochs_done),
            None => summary.epochs_done.to_string(),
        };
        let cells = [
            text(&summary.network),
            text(&summary.bits),
            text(&summary.method),
            summary.seed.map_or_else(|| "-".into(), |seed| seed.to_string()),
            summary.state.as_str().into(),
            epochs,
            score(summary.test.map(|test| test.top1)),
            score(summary.test.map(|test| test.top5)),
            summary.test.map_or_else(|| "-".into(), |test| format!("{:.4}", test.loss)),
            bytes(run.cost.packed_bytes),
            count(run.cost.bit_operations),
            summary.seconds.map_or_else(|| "-".into(), clock),
        ];
        el("tr").child(el("th").child(link(i, run))).children(cells.map(|cell| el("td").text(cell)))
    };
    let head = el("tr").children(heads.map(|name| el("th").text(name)));
    let table = classed("table", "sticky")
        .child(el("thead").child(head))
        .child(el("tbody").children(report.runs.iter().enumerate().map(row)));
    let about = "Scores are those on the test images after the last epoch, or so far.";
    el("div").child(classed("p", "soft").text(about)).child(classed("div", "scroll").child(table))
}

fn groups(report: &Report, groups: &[Group]) -> Option<Element> {
    if groups.is_empty() {
        return None;
    }
    let mean = |mean: &Mean, show: fn(f64) -> String| match mean.interval {
        Some(interval) => format!("{} ± {}", show(mean.mean), show(interval)),
        None => show(mean.mean),
    };
    let row = |group: &Group| {
        let names: Vec<&str> = group.runs.iter().map(|&i| report.runs[i].summary.name.as_str()).collect();
        let cells = [
            group.runs.len().to_string(),
            mean(&group.top1, percent),
            mean(&group.loss, |loss| format!("{loss:.4}")),
            clock(group.seconds.mean),
        ];
        el("tr")
            .child(classed("td", "wrap").text(names.join(", ")))
            .children(cells.map(|cell| el("td").text(cell)))
    };
    let heads = ["runs", "seeds", "top-1", "loss", "time, mean"];
    let head = el("tr").children(heads.map(|name| el("th").text(name)));
    let table =
        el("table").child(el("thead").child(head)).child(el("tbody").children(groups.iter().map(row)));
    let about = "Means over finished runs whose recipes are equal but for the seed, with the 95 % interval by Student's t.";
    Some(
        el("div")
            .child(el("h3").text("Over seeds"))
            .child(classed("p", "soft").text(about))
            .child(classed("div", "scroll").child(table)),
    )
}

fn recipes(report: &Report, differences: &[KeyValues]) -> Element {
    if differences.is_empty() {
        return el("p").text("All recipes are the same.");
    }
    let row = |KeyValues { key, values }: &KeyValues| {
        let cell = |value: &String| {
            let class = if *value == values[0] { "wrap left same" } else { "wrap left" };
            classed("td", class).text(value)
        };
        let first = values.first().map(|value| classed("td", "wrap left").text(value));
        el("tr")
            .child(el("th").child(classed("span", "path").text(key)))
            .children(first)
            .children(values.iter().skip(1).map(cell))
    };
    let name = |(i, run): (usize, &RunReport)| classed("th", "left").child(link(i, run));
    let head = el("tr").child(el("th").text("key")).children(report.runs.iter().enumerate().map(name));
    let table = classed("table", "sticky")
        .child(el("thead").child(head))
        .child(el("tbody").children(differences.iter().map(row)));
    let about = "The keys in which a recipe differs from the first; what is as in the first is grey.";
    el("div").child(classed("p", "soft").text(about)).child(classed("div", "scroll").child(table))
}

fn curves(report: &Report) -> Element {
    let of = |title: &str, unit: Unit, value: fn(&lowbit_train::EpochMetrics) -> Option<f64>| {
        let lines = report.runs.iter().map(|run| series(&run.summary.name, &run.metrics, value));
        let series: Vec<Series> = lines.collect();
        let shows_the_end = unit == Unit::Percent;
        LineChart { title: title.into(), unit, series, bands: Vec::new(), shows_the_end }.draw()
    };
    let plots = [
        of("test top-1", Unit::Percent, |epoch| Some(epoch.test?.top1)),
        of("validation top-1", Unit::Percent, |epoch| Some(epoch.validation?.top1)),
        of("training top-1", Unit::Percent, |epoch| Some(epoch.train.top1)),
        of("test loss", Unit::Number, |epoch| Some(epoch.test?.loss)),
        of("training loss of the labels", Unit::Number, |epoch| Some(epoch.train.loss)),
    ];
    let about = "Of accuracies, the lowest at the beginning may be below the picture.";
    el("div")
        .child(classed("p", "soft").text(about))
        .child(classed("div", "plots").children(plots.into_iter().flatten()))
}

fn layers(report: &Report, layers: &[LayerBits]) -> Option<Element> {
    if layers.is_empty() {
        return None;
    }
    let row = |LayerBits { path, bits }: &LayerBits| {
        let cell = |bits: &Option<[lowbit_core::Precision; 2]>| {
            let text = bits.map_or_else(|| "-".into(), |[weight, act]| format!("{weight}, {act}"));
            el("td").text(text)
        };
        el("tr").child(el("th").child(classed("span", "path").text(path))).children(bits.iter().map(cell))
    };
    let names = report.runs.iter().map(|run| el("th").text(&run.summary.name));
    let head = el("tr").child(el("th").text("layer")).children(names);
    let table = classed("table", "sticky")
        .child(el("thead").child(head))
        .child(el("tbody").children(layers.iter().map(row)));
    let table = super::layers::folded(layers.len(), classed("div", "scroll").child(table));
    let about = "Bits of weights and input of the layers that are not the same in all runs.";
    Some(
        el("div")
            .child(el("h2").text("Precision of layers"))
            .child(classed("p", "soft").text(about))
            .child(table),
    )
}
