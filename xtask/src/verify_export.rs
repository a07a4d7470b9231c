//! `cargo xtask verify-export`: networks of many methods, exported to ONNX and QONNX and computed by onnxruntime and qonnx, beside our
//! runtime.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::bench::{peer_script, virtual_environment};
use crate::output::print;
use crate::workspace;

/// What `cargo xtask verify-export` is asked for.
#[derive(Args)]
pub struct VerifyExportArgs {
    /// Epochs that each network is trained
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    epochs: u32,

    /// Verify the networks of this method alone
    #[arg(long, value_name = "NAME")]
    method: Option<String>,

    /// Python that has onnx, onnxruntime and qonnx [default: a virtual environment in target/peers, made if it is missing]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<String>,

    /// End with one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A network to train.
#[derive(Clone, Copy)]
struct Case {
    method: &'static str,
    weight_bits: &'static str,
    act_bits: &'static str,
    /// Version of ONNX's operators; `None` for a network that has no form in ONNX.
    opset: Option<&'static str>,
    /// Further settings, and what to call them.
    more: &'static [&'static str],
    note: &'static str,
}

const fn case(method: &'static str, bits: [&'static str; 2], opset: &'static str) -> Case {
    let [weight_bits, act_bits] = bits;
    Case { method, weight_bits, act_bits, opset: Some(opset), more: &[], note: "" }
}

/// First and last layer of 8 bits. The image is no result of a ReLU, as the input of most quantizers is to be.
const ENDS: [&str; 2] =
    ["quantization.first={weight_bits=8}", "quantization.last={weight_bits=8,act_bits=8}"];

const CASES: [Case; 32] = [
    case("dorefa", ["1", "1"], "25"),
    case("dorefa", ["2", "2"], "25"),
    case("dorefa", ["2", "2"], "13"),
    case("dorefa", ["3", "3"], "21"),
    case("dorefa", ["4", "4"], "21"),
    case("dorefa", ["8", "8"], "25"),
    case("pact", ["2", "2"], "25"),
    case("pact", ["4", "4"], "21"),
    case("lsq", ["1", "2"], "25"),
    case("lsq", ["2", "2"], "25"),
    case("lsq", ["4", "4"], "21"),
    case("lsq", ["8", "8"], "13"),
    case("lsq-plus", ["2", "2"], "25"),
    case("minmax", ["4", "4"], "21"),
    case("minmax", ["8", "8"], "25"),
    case("ewgs", ["2", "2"], "25"),
    case("tqt", ["3", "3"], "25"),
    case("lsq", ["2", "\"fp32\""], "25"),
    case("qil", ["3", "3"], "25"),
    case("dsq", ["2", "2"], "25"),
    Case { opset: None, ..case("n2uq", ["2", "2"], "") },
    Case { opset: None, ..case("hwgq", ["1", "2"], "") },
    case("xnor", ["1", "2"], "25"),
    case("xnor", ["1", "1"], "25"),
    case("hwgq", ["1", "1"], "25"),
    case("n2uq", ["1", "1"], "25"),
    case("twn", ["2", "2"], "25"),
    Case { opset: None, ..case("apot", ["4", "4"], "") },
    Case { opset: None, ..case("apot", ["2", "2"], "") },
    Case {
        more: &[ENDS[0], ENDS[1], "quantization.weight_granularity=\"per-channel\""],
        note: "per channel, first and last 8 bits",
        ..case("lsq", ["3", "3"], "25")
    },
    Case {
        more: &[ENDS[0], ENDS[1], "model.family=\"resnet\""],
        note: "ResNet, first and last 8 bits",
        ..case("lsq", ["1", "2"], "25")
    },
    Case {
        more: &["quantization.first={weight_bits=8,act_bits=8}"],
        note: "image of 8 bits with a zero point",
        ..case("minmax", ["4", "4"], "21")
    },
];

/// Fewest images, of a thousand, of which both say the same class: roundings in other places may change a code.
const FEWEST_SAME: usize = 990;

/// Logits beside ours.
#[derive(Deserialize, Serialize)]
struct Compared {
    same_top1: usize,
    max_difference: f64,
    median_difference: f64,
}

#[derive(Deserialize, Serialize)]
struct InOnnxRuntime {
    #[serde(flatten)]
    compared: Compared,
    /// Layers that it computes in integers.
    quantized_layers: usize,
}

#[derive(Deserialize, Serialize)]
struct InQonnx {
    #[serde(flatten)]
    compared: Compared,
    /// Operators of QONNX that qonnx-convert leaves.
    left_by_convert: usize,
    /// What onnxruntime makes of the converted network, if none is left.
    converted: Option<Compared>,
}

/// What the peer says.
#[derive(Deserialize, Serialize)]
struct Answer {
    n_images: usize,
    largest_logit: f64,
    /// `None` for a network that has no form in ONNX.
    onnxruntime: Option<InOnnxRuntime>,
    qonnx: InQonnx,
}

impl Answer {
    /// Everyone that says another class than we do too often, with the number of images.
    fn others(&self) -> impl Iterator<Item = (&'static str, usize)> {
        let known = [
            ("onnxruntime", self.onnxruntime.as_ref().map(|found| &found.compared)),
            ("qonnx", Some(&self.qonnx.compared)),
            ("onnxruntime after qonnx-convert", self.qonnx.converted.as_ref()),
        ];
        let n_images = self.n_images;
        let known = known.into_iter().filter_map(|(name, found)| Some((name, found?.same_top1)));
        known
            .filter(move |(_, same)| 1000 * same < FEWEST_SAME * n_images)
            .map(move |(name, same)| (name, n_images - same))
    }
}

#[derive(Serialize)]
struct Row {
    method: &'static str,
    weight_bits: &'static str,
    act_bits: &'static str,
    opset: Option<&'static str>,
    note: &'static str,
    /// Of the ONNX file.
    bytes: Option<u64>,
    #[serde(flatten)]
    answer: Answer,
}

pub fn run(args: &VerifyExportArgs) -> anyhow::Result<()> {
    let python = args.python.clone().map_or_else(virtual_environment, Ok)?;
    let lowbit = workspace::build("lowbit", &["-p", "lowbit"])?;
    let folder = tempfile::tempdir().context("failed to make a folder")?;
    let mut rows = Vec::new();
    if !args.json {
        print(&format!(
            "{:<23} {:^45}   {:^39}\n{:<9} {:>3} {:>3} {:>5}  {:>7} {:>9} {:>8} {:>8} {:>7}  {:>8} {:>8} {:>8} {:>9}",
            "",
            "onnxruntime",
            "qonnx",
            "method",
            "w",
            "a",
            "opset",
            "bytes",
            "same",
            "median",
            "largest",
            "integer",
            "same",
            "median",
            "largest",
            "converted"
        ))?;
    }
    let is_asked_for = |case: &Case| args.method.as_ref().is_none_or(|method| method == case.method);
    let cases: Vec<Case> = CASES.into_iter().filter(is_asked_for).collect();
    if cases.is_empty() {
        bail!("no network of method {:?} is verified", args.method.as_deref().unwrap_or_default());
    }
    for (place, case) in cases.into_iter().enumerate() {
        let Case { method, weight_bits, act_bits, opset, note, .. } = case;
        let folder = folder.path().join(place.to_string());
        std::fs::create_dir(&folder).context("failed to make a folder")?;
        let answer = answer(&case, args.epochs, &python, &lowbit, &folder)
            .with_context(|| format!("{method} w{weight_bits}a{act_bits}"))?;
        let bytes = opset.map(|_| std::fs::metadata(folder.join("m.onnx"))).transpose()?;
        let row = Row {
            method,
            weight_bits,
            act_bits: act_bits.trim_matches('"'),
            opset,
            note,
            bytes: bytes.map(|file| file.len()),
            answer,
        };
        if !args.json {
            print(&describe(&row))?;
        }
        rows.push(row);
    }
    if args.json {
        print(&serde_json::to_string(&rows)?)?;
    }
    let other = rows.iter().find_map(|row| Some((row, row.answer.others().next()?)));
    match other {
        None => Ok(()),
        Some((row, (name, n))) => bail!(
            "{} w{}a{}: {name} says another class of {n} of {} images",
            row.method,
            row.weight_bits,
            row.act_bits,
            row.answer.n_images
        ),
    }
}

/// Trains a network in a folder, exports it and asks the peer.
fn answer(case: &Case, epochs: u32, python: &str, lowbit: &Path, folder: &Path) -> anyhow::Result<Answer> {
    let run = |arguments: &[&str]| ours(lowbit, folder, arguments);
    let Case { method, weight_bits, act_bits, opset, more, .. } = case;
    let settings = [
        format!("train.epochs={epochs}"),
        format!("quantization.method=\"{method}\""),
        format!("quantization.weight_bits={weight_bits}"),
        format!("quantization.act_bits={act_bits}"),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let mut train = vec!["train", "-q", "--out", "run"];
    train.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    run(&train)?;
    run(&["export", "run", "--out", "m.lowbit"])?;
    run(&["export", "run", "--out", "m.qonnx.onnx"])?;
    run(&["eval", "m.lowbit", "--dump", "m.safetensors"])?;
    let mut files = vec!["m.safetensors", "m.qonnx.onnx"];
    if let Some(opset) = opset {
        run(&["export", "run", "--out", "m.onnx", "--opset", opset])?;
        files.push("m.onnx");
    }
    let output = Command::new(python)
        .arg(peer_script("verify_export.py"))
        .args(files)
        .current_dir(folder)
        .output()
        .context("failed to run the peer")?;
    if !output.status.success() {
        bail!("the peer failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("the peer's answer")
}

fn describe(row: &Row) -> String {
    let n_images = row.answer.n_images;
    let compared = |Compared { same_top1, median_difference, max_difference }: &Compared| {
        format!("{same_top1:>4}/{n_images:<3} {median_difference:>8.1e} {max_difference:>8.1e}")
    };
    let by_onnxruntime = match &row.answer.onnxruntime {
        None => format!("{:>27} {:>7}", "no form in ONNX", ""),
        Some(found) => format!("{} {:>7}", compared(&found.compared), found.quantized_layers),
    };
    let InQonnx { compared: by_qonnx, left_by_convert, converted } = &row.answer.qonnx;
    let converted = match converted {
        Some(found) => format!("{:>4}/{n_images:<3}", found.same_top1),
        None => format!("{left_by_convert} left"),
    };
    format!(
        "{:<9} {:>3} {:>4} {:>4}  {:>7} {by_onnxruntime}  {} {converted:>9}  {}",
        row.method,
        row.weight_bits,
        row.act_bits,
        row.opset.unwrap_or("-"),
        row.bytes.map_or("-".into(), |bytes| bytes.to_string()),
        compared(by_qonnx),
        row.note
    )
}

/// Runs our program in a folder.
fn ours(lowbit: &Path, folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(lowbit).args(arguments).current_dir(folder).output();
    let output = output.context("failed to run lowbit")?;
    match output.status.success() {
        true => Ok(()),
        false => bail!("lowbit {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)),
    }
}
