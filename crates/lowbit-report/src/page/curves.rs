//! Values over epochs.

use std::collections::BTreeMap;

use lowbit_train::EpochMetrics;
use lowbit_train::strategy::TOTAL;

use crate::chart::{Band, LineChart, Series, Unit};
use crate::markup::{Element, classed, el};
use crate::run::RunReport;

/// A value of each epoch, as a line.
pub(super) fn series(
    name: impl Into<String>,
    metrics: &[EpochMetrics],
    value: impl Fn(&EpochMetrics) -> Option<f64>,
) -> Series {
    let point = |epoch: &EpochMetrics| Some((epoch.epoch as f64, value(epoch)?));
    Series { name: name.into(), points: metrics.iter().filter_map(point).collect() }
}

/// The phases, where there are several.
fn bands(run: &RunReport) -> Vec<Band> {
    let band = |phase: &crate::run::PhaseSpan| Band {
        name: phase.name.clone(),
        from: phase.first_epoch as f64,
        to: phase.last_epoch as f64,
    };
    if run.phases.len() > 1 { run.phases.iter().map(band).collect() } else { Vec::new() }
}

pub(super) fn section(run: &RunReport) -> Element {
    let metrics = run.metrics.as_slice();
    if metrics.is_empty() {
        return el("p").text("No epoch is done yet: there is nothing to draw.");
    }
    let draw = |title: String, unit: Unit, series: Vec<Series>| {
        LineChart { title, unit, series, bands: bands(run), shows_the_end: false }.draw()
    };
    let mut accuracy = vec![
        series("training", metrics, |epoch| Some(epoch.train.top1)),
        series("test", metrics, |epoch| Some(epoch.test?.top1)),
        series("validation", metrics, |epoch| Some(epoch.validation?.top1)),
    ];
    let mut names: Vec<&String> = metrics.iter().flat_map(|epoch| epoch.networks.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let of = |epoch: &EpochMetrics| Some(epoch.networks.get(name)?.test?.top1);
        accuracy.push(series(format!("test, {name}"), metrics, of));
    }
    let entropy = vec![
        series("training", metrics, |epoch| Some(epoch.train.loss)),
        series("test", metrics, |epoch| Some(epoch.test?.loss)),
        series("validation", metrics, |epoch| Some(epoch.validation?.loss)),
    ];
    let mut plots = vec![
        draw("top-1".into(), Unit::Percent, accuracy),
        draw("cross entropy of the labels".into(), Unit::Number, entropy),
    ];
    for (network, mut parts) in parts(metrics) {
        let mut title = format!("what the {network} is trained on");
        match parts.as_slice() {
            // The only part is the sum.
            [_, _] => parts.retain(|part| *part == TOTAL),
            _ => title += ", by part",
        }
        let lines = parts.into_iter().map(|part| {
            let of = |epoch: &EpochMetrics| epoch.losses.get(network)?.get(part).copied();
            series(if part == TOTAL && !title.ends_with("part") { &title } else { part }, metrics, of)
        });
        let lines = lines.collect();
        plots.push(draw(title, Unit::Number, lines));
    }
    let rate = series("learning rate", metrics, |epoch| Some(epoch.learning_rate));
    plots.push(draw("learning rate".into(), Unit::Number, vec![rate]));
    let share = series("share", metrics, |epoch| epoch.quantized_fraction);
    let title = "share of the layers that steps quantize (stochastic precision)";
    plots.push(draw(title.into(), Unit::Percent, vec![share]));
    let phases = run.phases.iter().map(|phase| match phase {
        phase if phase.first_epoch == phase.last_epoch => {
            format!("{} (epoch {})", phase.name, phase.first_epoch)
        }
        phase => format!("{} (epochs {} to {})", phase.name, phase.first_epoch, phase.last_epoch),
    });
    let phases = phases.collect::<Vec<_>>().join(", ");
    let shaded = if run.phases.len() > 1 { ", every other one shaded" } else { "" };
    let about =
        format!("Phases{shaded}: {phases}. Training values are of batches as they passed, augmented.");
    el("div")
        .child(classed("p", "soft").text(about))
        .child(classed("div", "plots").children(plots.into_iter().flatten()))
}

/// The parts of each network's loss.
fn parts(metrics: &[EpochMetrics]) -> BTreeMap<&str, Vec<&str>> {
    let mut networks: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (network, losses) in metrics.iter().flat_map(|epoch| &epoch.losses) {
        let parts = networks.entry(network).or_default();
        for part in losses.keys().map(String::as_str) {
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
    }
    networks
}

/// The parameters of quantizers over the epochs, a chart for each layer; `None` without any.
pub(super) fn learned(run: &RunReport) -> Option<Element> {
    let mut layers: BTreeMap<usize, (String, Vec<&str>)> = BTreeMap::new();
    let keys = run.metrics.iter().flat_map(|epoch| epoch.quantizers.keys().map(String::as_str));
    let keys: std::collections::BTreeSet<&str> = keys.collect();
    for key in keys {
        let path = key.rsplit_once('.').map_or(key, |(path, _)| path);
        let place = run.layers.iter().position(|layer| layer.plan.path == path).unwrap_or(usize::MAX);
        layers.entry(place).or_insert_with(|| (path.into(), Vec::new())).1.push(key);
    }
    if layers.is_empty() {
        return None;
    }
    let chart = |(path, keys): &(String, Vec<&str>)| {
        let line = |key: &&str| {
            let name = key.rsplit_once('.').map_or(*key, |(_, name)| name);
            series(name, &run.metrics, |epoch| Some(f64::from(*epoch.quantizers.get(*key)?)))
        };
        let series = keys.iter().map(line).collect();
        LineChart { title: path.clone(), unit: Unit::Number, series, bands: bands(run), shows_the_end: false }
            .draw()
    };
    let charts: Vec<Element> = layers.values().filter_map(chart).collect();
    let about = "Mean over a layer's parameters as they are in force after each epoch.";
    let grid = classed("div", "plots").children(charts);
    Some(el("div").child(classed("p", "soft").text(about)).child(super::layers::folded(layers.len(), grid)))
}
