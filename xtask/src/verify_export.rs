//! `cargo xtask verify-export`: networks of many methods, exported to ONNX and computed by onnxruntime, beside our runtime.

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

    /// Python that has onnx and onnxruntime [default: a virtual environment in target/peers, made if it is missing]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<String>,

    /// End with one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Methods, bits of weights and activations, and the version of ONNX's operators.
const CASES: [(&str, &str, &str, &str); 18] = [
    ("dorefa", "1", "1", "25"),
    ("dorefa", "2", "2", "25"),
    ("dorefa", "2", "2", "13"),
    ("dorefa", "3", "3", "21"),
    ("dorefa", "4", "4", "21"),
    ("dorefa", "8", "8", "25"),
    ("pact", "2", "2", "25"),
    ("pact", "4", "4", "21"),
    ("lsq", "1", "2", "25"),
    ("lsq", "2", "2", "25"),
    ("lsq", "4", "4", "21"),
    ("lsq", "8", "8", "13"),
    ("lsq-plus", "2", "2", "25"),
    ("minmax", "4", "4", "21"),
    ("minmax", "8", "8", "25"),
    ("ewgs", "2", "2", "25"),
    ("tqt", "3", "3", "25"),
    ("lsq", "2", "\"fp32\"", "25"),
];

/// Fewest images, of a thousand, of which both say the same class: roundings in other places may change a code.
const FEWEST_SAME: usize = 990;

#[derive(Deserialize)]
struct Compared {
    n_images: usize,
    same_top1: usize,
    max_difference: f64,
    median_difference: f64,
    largest_logit: f64,
    quantized_layers: usize,
}

#[derive(Serialize)]
struct Row {
    method: &'static str,
    weight_bits: &'static str,
    act_bits: &'static str,
    opset: &'static str,
    bytes: u64,
    n_images: usize,
    same_top1: usize,
    max_difference: f64,
    median_difference: f64,
    largest_logit: f64,
    /// Layers that onnxruntime computes in integers.
    quantized_layers: usize,
}

pub fn run(args: &VerifyExportArgs) -> anyhow::Result<()> {
    let python = args.python.clone().map_or_else(virtual_environment, Ok)?;
    let lowbit = workspace::build("lowbit", &["-p", "lowbit"])?;
    let folder = tempfile::tempdir().context("failed to make a folder")?;
    let mut rows = Vec::new();
    if !args.json {
        print(&format!(
            "{:<9} {:>3} {:>6} {:>5}  {:>7}  {:>9}  {:>9}  {:>9}  in integers",
            "method", "w", "a", "opset", "bytes", "same", "median", "largest"
        ))?;
    }
    for (method, weight_bits, act_bits, opset) in CASES {
        let case =
            folder.path().join(format!("{method}-{weight_bits}-{}-{opset}", act_bits.trim_matches('"')));
        std::fs::create_dir(&case).context("failed to make a folder")?;
        let run = |arguments: &[&str]| ours(&lowbit, &case, arguments);
        let settings = [
            format!("train.epochs={}", args.epochs),
            format!("quantization.method=\"{method}\""),
            format!("quantization.weight_bits={weight_bits}"),
            format!("quantization.act_bits={act_bits}"),
        ];
        let mut train = vec!["train", "-q", "--out", "run"];
        train.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        run(&train)?;
        run(&["export", "run", "--out", "m.lowbit"])?;
        run(&["export", "run", "--out", "m.onnx", "--opset", opset])?;
        run(&["eval", "m.lowbit", "--dump", "m.safetensors"])?;
        let output = Command::new(&python)
            .arg(peer_script("verify_export.py"))
            .args(["m.onnx", "m.safetensors"])
            .current_dir(&case)
            .output()
            .context("failed to run the peer")?;
        if !output.status.success() {
            bail!("{method} w{weight_bits}a{act_bits}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let Compared {
            n_images,
            same_top1,
            max_difference,
            median_difference,
            largest_logit,
            quantized_layers,
        } = serde_json::from_slice(&output.stdout).context("the peer's answer")?;
        let row = Row {
            method,
            weight_bits,
            act_bits: act_bits.trim_matches('"'),
            opset,
            bytes: std::fs::metadata(case.join("m.onnx"))?.len(),
            n_images,
            same_top1,
            max_difference,
            median_difference,
            largest_logit,
            quantized_layers,
        };
        if !args.json {
            print(&describe(&row))?;
        }
        rows.push(row);
    }
    if args.json {
        print(&serde_json::to_string(&rows)?)?;
    }
    let other = rows.iter().find(|row| 1000 * row.same_top1 < FEWEST_SAME * row.n_images);
    match other {
        None => Ok(()),
        Some(row) => bail!(
            "{} w{}a{}: onnxruntime says another class of {} of {} images",
            row.method,
            row.weight_bits,
            row.act_bits,
            row.n_images - row.same_top1,
            row.n_images
        ),
    }
}

fn describe(row: &Row) -> String {
    format!(
        "{:<9} {:>3} {:>6} {:>5}  {:>7}  {:>4}/{:<4}  {:>9.1e}  {:>9.1e}  {}",
        row.method,
        row.weight_bits,
        row.act_bits,
        row.opset,
        row.bytes,
        row.same_top1,
        row.n_images,
        row.median_difference,
        row.max_difference,
        row.quantized_layers
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
