//! The layers of a network.

use lowbit_models::LayerPlan;
use lowbit_quantizers::Method;

use crate::chart::Bars;
use crate::images::{Histogram, Operand, QuantizedOperand};
use crate::markup::{Element, classed, el};
use crate::run::{LayerReport, RunReport};
use crate::units::{bytes, count, percent, short};

/// Layers that are shown without being asked for.
const N_OPEN: usize = 12;

/// What is shown of many layers only on demand.
pub(super) fn folded(n_layers: usize, content: Element) -> Element {
    match n_layers {
        0..=N_OPEN => content,
        n => el("details").child(el("summary").text(format!("Show all {n} layers"))).child(content),
    }
}

/// The columns of a table of what quantization loses of an operand.
fn loss_columns(operand: Option<&Operand>) -> [String; 3] {
    let quantized = operand.and_then(|operand| operand.quantized.as_ref());
    let dash = || "-".to_string();
    let Some(QuantizedOperand { sqnr_db, clipped, unused_codes, codes, .. }) = quantized else {
        return [dash(), dash(), dash()];
    };
    let n_unused = (unused_codes * codes.len() as f64).round_ties_even() as usize;
    [
        sqnr_db.map_or_else(dash, |db| format!("{db:.1}")),
        clipped.map_or_else(dash, percent),
        format!("{n_unused} of {}", codes.len()),
    ]
}

pub(super) fn table(run: &RunReport) -> Element {
    let has_sensitivity = run.layers.iter().any(|layer| layer.sensitivity.is_some());
    let has_weights = run.layers.iter().any(|layer| layer.weights.is_some());
    let has_inputs = run.layers.iter().any(|layer| layer.input.is_some());
    let groups = [("weights", has_weights), ("input", has_inputs)];
    let heads = ["layer", "W", "A", "method", "parameters", "packed", "bit-ops"];
    let left = |name: &str| {
        el("th").attr("rowspan", 2).attr("class", if name == "method" { "left" } else { "" }).text(name)
    };
    let mut first = el("tr").children(heads.map(left));
    let mut second = el("tr");
    if has_sensitivity {
        first = first.child(classed("th", "group").attr("colspan", 2).text("sensitivity: top-1"));
        second = second.children(["this alone", "all but this"].map(|name| el("th").text(name)));
    }
    for (name, _) in groups.into_iter().filter(|(_, has)| *has) {
        first = first.child(classed("th", "group").attr("colspan", 3).text(name));
        second = second.children(["SQNR, dB", "clipped", "unused"].map(|name| el("th").text(name)));
    }
    let row = |layer: &LayerReport| {
        let LayerPlan { path, weight_bits, act_bits, n_parameters, packed_bytes, bit_operations, .. } =
            &layer.plan;
        let cell = |text: String| el("td").text(text);
        let mut row = el("tr")
            .child(el("th").child(classed("span", "path").text(path)))
            .children([weight_bits.to_string(), act_bits.to_string()].map(cell))
            .child(classed("td", "left").text(method(&layer.plan)))
            .children([count(*n_parameters as u64), bytes(*packed_bytes), count(*bit_operations)].map(cell));
        if has_sensitivity {
            let numbers = layer.sensitivity.map(|of| [of.top1_only, of.top1_without]).unwrap_or_default();
            row = row.children(numbers.map(|top1| cell(top1.map_or_else(|| "-".into(), percent))));
        }
        if has_weights {
            row = row.children(loss_columns(layer.weights.as_ref()).map(cell));
        }
        if has_inputs {
            row = row.children(loss_columns(layer.input.as_ref()).map(cell));
        }
        row
    };
    let n_rest = 3 * groups.iter().filter(|(_, has)| *has).count() + 2 * usize::from(has_sensitivity);
    let cost = &run.cost;
    let total = el("tr")
        .child(el("th").text("all, with normalizations"))
        .children((0..3).map(|_| el("td")))
        .children(
            [count(cost.n_parameters as u64), bytes(cost.packed_bytes), count(cost.bit_operations)]
                .map(|text| el("td").text(text)),
        )
        .children((0..n_rest).map(|_| el("td")));
    let table = classed("table", "sticky")
        .child(el("thead").child(first).child(second))
        .child(el("tbody").children(run.layers.iter().map(row)))
        .child(el("tfoot").child(total));
    let about = "W and A are the bits of the weights and of the input of a layer at the end of the training.";
    let losses = has_weights.then(|| {
        let text = "SQNR is the signal to the noise of quantization, after the one factor that fits best; clipped is the share of values beyond \
                    the outermost codes; unused are the codes that no value has.";
        classed("p", "soft").text(text)
    });
    let sensitivity = run.sensitivity_images.as_ref().map(|images| {
        let text = format!(
            "Sensitivity is the accuracy on {images} with this layer alone quantized, and with all layers quantized but this one."
        );
        classed("p", "soft").text(text)
    });
    el("div")
        .child(classed("p", "soft").text(about))
        .children(losses)
        .children(sensitivity)
        .child(classed("div", "scroll").child(table))
}

fn method(layer: &LayerPlan) -> String {
    let methods: Vec<&str> = layer.method.into_iter().chain(layer.act_method).map(Method::name).collect();
    if methods.is_empty() { "-".into() } else { methods.join("+") }
}

/// Histograms of weights and inputs, a card for each layer; `None` where no checkpoint was looked at.
pub(super) fn values(run: &RunReport) -> Option<Element> {
    let shown: Vec<&LayerReport> = run.layers.iter().filter(|layer| layer.weights.is_some()).collect();
    if shown.is_empty() {
        return None;
    }
    let inputs = match &run.images {
        Some(images) => {
            format!(" Inputs are of {} of the {} test images.", images.n_activation_images, images.n_images)
        }
        None => String::new(),
    };
    let about = format!(
        "Left, values in full precision (the height is the root of the number, so that rare values are seen); right, the share of each code. \
         A line marks zero.{inputs}"
    );
    let cards = classed("div", "cards").children(shown.iter().map(|layer| card(layer)));
    Some(el("div").child(classed("p", "soft").text(about)).child(folded(shown.len(), cards)))
}

fn card(layer: &LayerReport) -> Element {
    let LayerPlan { path, weight_bits, act_bits, .. } = &layer.plan;
    let title = classed("div", "path").text(path);
    let mut card = classed("div", "card").child(title);
    let operands = [("weights", weight_bits, &layer.weights, "s0"), ("input", act_bits, &layer.input, "s1")];
    for (name, bits, operand, class) in operands {
        let Some(operand) = operand else { continue };
        let words = match operand.quantized.as_ref() {
            Some(quantized) if quantized.bits == 1 => format!("{name}, 1 bit"),
            Some(quantized) => format!("{name}, {} bits", quantized.bits),
            None if bits.bit_width().is_none() => format!("{name}, full precision"),
            // The checkpoint is of an earlier phase.
            None => format!("{name}, not quantized yet"),
        };
        let mut pair = classed("div", "pair")
            .child(el("small").text(&words))
            .child(el("small").text(if operand.quantized.is_some() { "codes" } else { "" }))
            .child(histogram(&operand.histogram, &format!("{path}: {words}"), class));
        if let Some(quantized) = &operand.quantized {
            pair = pair.child(codes(quantized, &format!("{path}: codes of {words}"), class));
        }
        card = card.child(pair);
    }
    card
}

fn histogram(histogram: &Histogram, label: &str, class: &str) -> Element {
    let Histogram { low, high, counts, n_not_finite } = histogram;
    let most = counts.iter().max().copied().unwrap_or(0).max(1) as f64;
    let zero = -low / (high - low);
    let not_finite = if *n_not_finite > 0 { format!(", {n_not_finite} not finite") } else { String::new() };
    Bars {
        label: format!("{label}, from {} to {}{not_finite}", short(*low), short(*high)),
        heights: counts.iter().map(|&count| (count as f64 / most).sqrt()).collect(),
        thickness: 1.0,
        ends: [short(*low), short(*high)],
        zero: (0.0..=1.0).contains(&zero).then_some(zero.into()),
        class,
    }
    .draw()
}

fn codes(quantized: &QuantizedOperand, label: &str, class: &str) -> Element {
    let codes = &quantized.codes;
    let most = codes.iter().map(|code| code.share).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let end =
        |code: Option<&crate::images::CodeShare>| code.map_or_else(String::new, |code| code.code.to_string());
    let shares: Vec<String> =
        codes.iter().map(|code| format!("{} {}", code.code, percent(code.share))).collect();
    let shares = if codes.len() <= 16 { format!(": {}", shares.join(", ")) } else { String::new() };
    let zero = codes.iter().position(|code| code.code == 0);
    Bars {
        label: format!("{label}{shares}"),
        heights: codes.iter().map(|code| code.share / most).collect(),
        thickness: if codes.len() > 32 { 1.0 } else { 0.75 },
        ends: [end(codes.first()), end(codes.last())],
        zero: zero
            .filter(|_| codes.first().is_some_and(|code| code.code < 0))
            .map(|place| (place as f64 + 0.5) / codes.len() as f64),
        class,
    }
    .draw()
}
