//! What a network takes for what.

use lowbit_data::{Dimensions, Picture};

use crate::images::{ClassReport, ImageReport, Mistake};
use crate::markup::{Element, classed, data_uri, el};
use crate::run::RunReport;
use crate::units::percent;

/// Classes that a table of confusions has room for.
const MAX_TABLE: usize = 20;

/// Confusions that are listed.
const N_CONFUSIONS: usize = 15;

pub(super) fn section(run: &RunReport) -> Option<Element> {
    let images = run.images.as_ref()?;
    let about = format!(
        "All {} test images, by {} (phase {}): top-1 {}. Nothing was chosen by them here.",
        images.n_images,
        images.checkpoint,
        images.phase,
        percent(images.top1),
    );
    let undecided = (images.n_undecided > 0).then(|| {
        el("p").text(format!(
            "{} images have scores that are no numbers, and are in no column.",
            images.n_undecided
        ))
    });
    let element = el("div")
        .child(classed("p", "soft").text(about))
        .children(undecided)
        .child(el("h3").text("What was taken for what"))
        .child(match images.classes.len() {
            0..=MAX_TABLE => table(images),
            _ => heat(images),
        })
        .children(confusions(images))
        .child(el("h3").text("Accuracy of each class"))
        .child(classes(images));
    Some(element.children(mistakes(images)))
}

fn table(images: &ImageReport) -> Element {
    let names = || images.classes.iter().map(|class| &class.name);
    let head = el("tr")
        .child(el("th").text("is \\ taken for"))
        .children(names().map(|name| el("th").attr("title", name).text(name)));
    let row = |(label, counts): (usize, &Vec<u64>)| {
        let n = counts.iter().sum::<u64>().max(1) as f64;
        let cell = |(predicted, &count): (usize, &u64)| {
            let share = count as f64 / n;
            match (count, predicted == label) {
                (0, _) => classed("td", "same").text("·"),
                (_, true) => classed("td", "right").attr("style", format!("--v:{share:.3}")).text(count),
                // Few are seen, too.
                (_, false) => {
                    classed("td", "wrong").attr("style", format!("--v:{:.3}", share.sqrt())).text(count)
                }
            }
        };
        let name = &images.classes[label].name;
        el("tr").child(el("th").attr("title", name).text(name)).children(counts.iter().enumerate().map(cell))
    };
    let rows = images.confusion.iter().enumerate().map(row);
    let table =
        classed("table", "confusion").child(el("thead").child(head)).child(el("tbody").children(rows));
    classed("div", "scroll").child(table)
}

/// The same as a picture: a pixel for each pair of classes.
fn heat(images: &ImageReport) -> Element {
    let n = images.classes.len();
    let pixel = |row: &Vec<u64>, count: u64| {
        let share = count as f64 / row.iter().sum::<u64>().max(1) as f64;
        (255.0 * (1.0 - share.sqrt())).round_ties_even() as u8
    };
    let pixels = images.confusion.iter().flat_map(|row| row.iter().map(|&count| pixel(row, count)));
    let dimensions = Dimensions { width: n as u32, height: n as u32 };
    let picture = Picture { dimensions, channels: 1, pixels: pixels.collect() };
    let image = classed("img", "heat")
        .attr("src", data_uri("image/png", &picture.to_png()))
        .attr("alt", format!("matrix of {n} classes, the right ones on its diagonal"));
    let about = "A row for each class, a column for what it was taken for; darker is more often, by the root of the share.";
    el("div").child(classed("p", "soft").text(about)).child(image)
}

/// The pairs of classes that are taken for each other most often, where there are too many for a table.
fn confusions(images: &ImageReport) -> Option<Element> {
    if images.classes.len() <= MAX_TABLE {
        return None;
    }
    let rows = images.confusion.iter().enumerate();
    let pairs = rows
        .flat_map(|(label, row)| row.iter().enumerate().map(move |(predicted, &n)| (n, label, predicted)));
    let mut pairs: Vec<_> = pairs.filter(|(n, label, predicted)| label != predicted && *n > 0).collect();
    // Of equal numbers, those of the first classes.
    pairs.sort_by_key(|&(n, label, predicted)| (std::cmp::Reverse(n), label, predicted));
    let name = |class: usize| classed("td", "wrap left").text(&images.classes[class].name);
    let row = |&(n, label, predicted): &(u64, usize, usize)| {
        el("tr").child(name(label)).child(name(predicted)).child(el("td").text(n))
    };
    let head = [("class", "left"), ("taken for", "left"), ("images", "")];
    let head = el("tr").children(head.map(|(name, class)| classed("th", class).text(name)));
    let rows = pairs.iter().take(N_CONFUSIONS).map(row);
    let table = el("table").child(el("thead").child(head)).child(el("tbody").children(rows));
    Some(
        el("div").child(el("h3").text("Most frequent mistakes")).child(classed("div", "scroll").child(table)),
    )
}

fn classes(images: &ImageReport) -> Element {
    let line = |class: &ClassReport| {
        let top1 = class.top1.unwrap_or(0.0);
        let meter = classed("span", "meter").child(el("i").attr("style", format!("--v:{top1:.4}")));
        classed("div", "class")
            .child(el("span").attr("title", &class.name).text(&class.name))
            .child(meter)
            .child(el("span").text(class.top1.map_or_else(|| "-".into(), percent)))
            .child(classed("span", "soft").text(format!("of {}", class.n_images)))
    };
    // As wide as the longest name, up to what a phone has room for.
    let longest = images.classes.iter().map(|class| class.name.chars().count()).max().unwrap_or(0);
    let width = format!("--n:{}ch", (longest + 1).clamp(2, 14));
    let list = classed("div", "classes").attr("style", width).children(images.classes.iter().map(line));
    match images.classes.len() {
        0..=MAX_TABLE => list,
        n => el("details").child(el("summary").text(format!("Show all {n} classes"))).child(list),
    }
}

fn mistakes(images: &ImageReport) -> Option<Element> {
    let name = |class: usize| images.classes.get(class).map_or("?", |class| class.name.as_str());
    let figure = |mistake: &Mistake| {
        let Mistake { image, label, predicted, probability, png } = mistake;
        let text = format!("{} taken for {} ({})", name(*label), name(*predicted), percent(*probability));
        let picture =
            el("img").attr("src", data_uri("image/png", png)).attr("alt", format!("test image {image}"));
        el("figure").child(picture).child(
            el("figcaption").text(text).child(el("br")).child(el("small").text(format!("image {image}"))),
        )
    };
    if images.mistakes.is_empty() {
        return None;
    }
    let about = "The wrong answers that the network was surest of, as it sees the images; in brackets, its probability.";
    let pictures = classed("div", "mistakes").children(images.mistakes.iter().map(figure));
    Some(
        el("div")
            .child(el("h3").text("The worst mistakes"))
            .child(classed("p", "soft").text(about))
            .child(pictures),
    )
}
