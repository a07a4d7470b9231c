//! A report as a page.

mod curves;
mod images;
mod layers;
mod several;

use lowbit_train::{Origin, Scores};

use crate::markup::{Element, classed, el};
use crate::report::Report;
use crate::run::RunReport;
use crate::summary::State;
use crate::units::{bytes, clock, count, percent};

const STYLE: &str = include_str!("style.css");

/// What a page begins with: by it, one is told from other files.
pub(crate) const START: &str = "<!doctype html><!--lowbit report-->";

pub(crate) fn of(report: &Report) -> String {
    let title = match report.runs.as_slice() {
        [run] => run.summary.name.clone(),
        runs => format!("{} runs", runs.len()),
    };
    let head = el("head")
        .child(el("meta").attr("charset", "utf-8"))
        .child(el("meta").attr("name", "viewport").attr("content", "width=device-width, initial-scale=1"))
        .child(el("title").text(format!("{title} - lowbit report")))
        .child(el("style").style(STYLE));
    let body = match report.runs.as_slice() {
        [run] => el("body").child(el("header").child(el("h1").text(&title))).children(one_run(run, "")),
        runs => el("body")
            .child(el("header").child(el("h1").text(&title)))
            .children(report.comparison.as_ref().map(|comparison| several::section(report, comparison)))
            .children(runs.iter().enumerate().map(|(i, run)| {
                let prefix = format!("run{}-", i + 1);
                // A link to what is in it opens it.
                let content = el("div").attr("id", format!("run{}", i + 1)).children(one_run(run, &prefix));
                el("details").child(el("summary").text(&run.summary.name)).child(content)
            })),
    };
    let made = format!("Made by lowbit {} at {}.", report.made_by, report.made);
    let body = body.child(el("footer").text(made));
    format!("{START}{}\n", el("html").attr("lang", "en").child(head).child(body))
}

/// All of a run. Its sections have ids that begin with `prefix`.
fn one_run(run: &RunReport, prefix: &str) -> Vec<Element> {
    let sections: Vec<(&str, &str, Option<Element>)> = vec![
        ("recipe", "Recipe", Some(recipe(run))),
        ("curves", "Curves", Some(curves::section(run))),
        ("layers", "Layers", Some(layers::table(run))),
        ("values", "Weights and activations", layers::values(run)),
        ("learned", "Learned steps and clips", curves::learned(run)),
        ("images", "Test images", images::section(run)),
        ("machine", "Machine and time", Some(machine(run))),
    ];
    let link = |(id, title, _): &(&str, &str, Option<Element>)| {
        el("a").attr("href", format!("#{prefix}{id}")).text(title)
    };
    let nav =
        classed("nav", "toc").children(sections.iter().filter(|(.., section)| section.is_some()).map(link));
    let mut elements = vec![subtitle(run), nav];
    elements.extend(notes("What is missing here", &run.notes));
    let warnings: Vec<String> =
        run.warnings.iter().map(|warning| format!("{} (step {})", warning.message, warning.step)).collect();
    elements.extend(notes("Warnings of the run", &warnings));
    elements.push(glance(run));
    for (id, title, section) in sections {
        if let Some(section) = section {
            let heading = el("h2").text(title);
            elements.push(el("section").attr("id", format!("{prefix}{id}")).child(heading).child(section));
        }
    }
    elements
}

fn notes(title: &str, notes: &[String]) -> Option<Element> {
    let list = || el("ul").children(notes.iter().map(|note| el("li").text(note)));
    (!notes.is_empty()).then(|| classed("div", "notes").child(el("b").text(title)).child(list()))
}

fn subtitle(run: &RunReport) -> Element {
    let summary = &run.summary;
    let state = match summary.state {
        State::Training => "in training now",
        State::Stopped => "stopped before its end",
        State::Finished => "finished",
        State::Damaged => "damaged",
    };
    let epochs = summary.epochs.map(|epochs| format!(" of {epochs}")).unwrap_or_default();
    let text = format!(
        "{} {} {}, seed {}: {state}, {}{epochs} epochs",
        summary.network.as_deref().unwrap_or("?"),
        summary.bits.as_deref().unwrap_or("?"),
        summary.method.as_deref().filter(|method| *method != "-").unwrap_or(""),
        summary.seed.unwrap_or_default(),
        summary.epochs_done,
    );
    classed("p", "soft").text(text.replace(" ,", ","))
}

fn fact(value: impl std::fmt::Display, what: &str) -> Element {
    classed("div", "fact").child(el("b").text(value)).child(el("span").text(what))
}

/// What came out, in a few numbers.
fn glance(run: &RunReport) -> Element {
    let summary = &run.summary;
    let mut facts = Vec::new();
    let when = if summary.state == State::Finished { "after the last epoch" } else { "so far" };
    match summary.test {
        Some(Scores { loss, top1, top5 }) => {
            facts.push(fact(percent(top1), &format!("test top-1 {when}")));
            facts.push(fact(percent(top5), &format!("test top-5 {when}")));
            facts.push(fact(format!("{loss:.4}"), &format!("test loss {when}")));
        }
        None => facts.push(fact("none yet", "test top-1")),
    }
    if let Some(Scores { top1, .. }) = summary.validation {
        facts.push(fact(percent(top1), &format!("validation top-1 {when}")));
    }
    for (name, scores) in &run.networks {
        facts.push(fact(percent(scores.top1), &format!("test top-1 of the {name}")));
    }
    if let Some(best) = summary.best {
        let what = format!("best top-1 of all, chosen by these {} images: no result", best.images);
        facts.push(fact(percent(best.top1), &what));
    }
    let cost = &run.cost;
    let ratio = cost.fp32_bytes as f64 / cost.packed_bytes.max(1) as f64;
    facts.push(fact(
        bytes(cost.packed_bytes),
        &format!("packed, {ratio:.1} times less than in full precision"),
    ));
    facts.push(fact(count(cost.bit_operations), "bit operations an image"));
    facts.push(fact(count(cost.n_parameters as u64), "parameters"));
    if let Some(seconds) = summary.seconds {
        facts.push(fact(clock(seconds), "time of training"));
    }
    let reference = run.reference.as_ref().map(|text| el("p").text(format!("To compare it with: {text}")));
    el("div").child(classed("div", "facts").children(facts)).children(reference)
}

/// A list of names and values.
fn keys(entries: impl IntoIterator<Item = (String, String)>) -> Element {
    let entries = entries.into_iter().flat_map(|(key, value)| [el("dt").text(key), el("dd").text(value)]);
    classed("dl", "keys").children(entries)
}

fn recipe(run: &RunReport) -> Element {
    let recipe = &run.recipe;
    let train = &recipe.train;
    let mut entries = vec![
        ("recipe".to_string(), recipe.name.clone()),
        ("network".into(), run.summary.network.clone().unwrap_or_default()),
        ("precision".into(), precision(run)),
    ];
    if let Some(data) = &run.info.data {
        let validation =
            data.validation.as_ref().map_or(String::new(), |set| format!("{} validation, ", set.n_images));
        let images =
            format!("{} training, {validation}{} test images", data.train.n_images, data.test.n_images);
        entries.push(("data".into(), format!("{}: {images}", recipe.data.dataset)));
    } else {
        entries.push(("data".into(), recipe.data.dataset.to_string()));
    }
    if !run.summary.strategies.is_empty() {
        entries.push(("strategies".into(), run.summary.strategies.join(", ")));
    }
    let phases = recipe.phases();
    let shown = phases.iter().map(|phase| format!("{} ({} epochs)", phase.name, phase.train.epochs));
    entries.push(("phases".into(), shown.collect::<Vec<_>>().join(", ")));
    entries.push(("learning rate".into(), train.learning_rate.to_string()));
    entries.push(("weight decay".into(), train.weight_decay.to_string()));
    entries.push(("batch size".into(), recipe.data.batch_size.to_string()));
    entries.push(("seed".into(), recipe.seed.to_string()));
    let whole =
        el("details").child(el("summary").text("All of the recipe")).child(el("pre").text(recipe.to_toml()));
    el("div").child(keys(entries)).child(whole)
}

fn precision(run: &RunReport) -> String {
    let summary = &run.summary;
    let bits = summary.bits.as_deref().unwrap_or("?");
    match summary.method.as_deref() {
        Some("-") | None => bits.into(),
        Some(method) => format!("{bits} by {method} in hidden layers"),
    }
}

fn machine(run: &RunReport) -> Element {
    let info = &run.info;
    let mut entries = Vec::new();
    let mut add =
        |key: &str, value: Option<String>| entries.extend(value.map(|value| (key.to_string(), value)));
    add("directory", Some(run.summary.run_dir.display().to_string()));
    add("begun", info.started.clone());
    add("time of training", run.summary.seconds.map(clock));
    if let Some(timing) = run.timing.last() {
        add("images per second", Some(format!("{:.0} in steps", timing.images_per_second)));
        add("waiting for images", Some(percent(timing.waiting_fraction)));
    }
    add("device", Some(info.device.clone()));
    let Origin { lowbit, revision, features, profile, target, rustc, burn, .. } = &info.origin;
    let revision = revision.as_ref().map(|revision| format!(" ({revision})")).unwrap_or_default();
    add("lowbit", Some(format!("{lowbit}{revision}")));
    add("burn", Some(burn.clone()));
    add("compiler", rustc.clone());
    let build: Vec<&str> = [profile, target].into_iter().flatten().map(String::as_str).collect();
    add("build", (!build.is_empty()).then(|| build.join(", ")));
    add("features", (!features.is_empty()).then(|| features.join(", ")));
    let Origin { host, system, processor, instruction_sets, n_threads, .. } = &info.origin;
    add("host", host.clone());
    add("system", system.clone());
    add("processor", processor.clone());
    add("instruction sets", (!instruction_sets.is_empty()).then(|| instruction_sets.join(", ")));
    add("threads", Some(n_threads.to_string()));
    let mut before = (&info.origin, info.device.as_str());
    for process in &run.processes {
        if let Some(difference) = process.origin.difference_on(&process.device, before.0, before.1) {
            add(&format!("from step {}", process.step), Some(difference));
        }
        before = (&process.origin, process.device.as_str());
    }
    keys(entries)
}
