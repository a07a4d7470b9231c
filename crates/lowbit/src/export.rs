//! `lowbit export`: the network of a run as a packed model, or its weights for other programs.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use lowbit_export::onnx::Opset;
use lowbit_models::{Family, Layout, ModelConfig};
use lowbit_train::weights::{ExportedWeights, to_safetensors};
use lowbit_train::{RunDir, Subject};
use serde::Serialize;

use crate::cli::{ExportArgs, ExportFormat};
use crate::device::DeviceName;
use crate::exit_code::{self, Code, UsageError};
use crate::inspect::{checkpoint_named, expect_no_checkpoint};
use crate::output::{self, counted};
use crate::packed::{self, Form};

#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    format: &'static str,
    run_dir: &'a Path,
    checkpoint: String,
    network: &'a str,
    n_tensors: usize,
    n_bytes: usize,
    /// Tensors of quantizers that the file does not have.
    n_left_out: usize,
}

pub fn run(args: &ExportArgs) -> anyhow::Result<Code> {
    expect_no_checkpoint(&args.run, "export")?;
    let named = args.out.as_deref().map_or(ExportFormat::Packed, format_named);
    match args.format.unwrap_or(named) {
        ExportFormat::Packed => packed::export(args, Form::Packed),
        ExportFormat::Onnx => packed::export(args, Form::Onnx(opset(&args.opset))),
        ExportFormat::Qonnx => packed::export(args, Form::Qonnx),
        ExportFormat::Safetensors => safetensors(args),
    }
}

/// The format that the ending of a file's name says.
fn format_named(path: &Path) -> ExportFormat {
    match path.extension().and_then(OsStr::to_str) {
        Some("safetensors") => ExportFormat::Safetensors,
        Some("onnx") if path.with_extension("").extension() == Some(OsStr::new("qonnx")) => {
            ExportFormat::Qonnx
        }
        Some("onnx") => ExportFormat::Onnx,
        Some("qonnx") => ExportFormat::Qonnx,
        _ => ExportFormat::Packed,
    }
}

/// The version of ONNX's operators of this number.
fn opset(number: &str) -> Opset {
    match number {
        "13" => Opset::V13,
        "21" => Opset::V21,
        _ => Opset::V25,
    }
}

fn safetensors(args: &ExportArgs) -> anyhow::Result<Code> {
    for (option, is_given) in
        [("--no-verify", args.no_verify), ("--data-dir", args.data_dir.data_dir.is_some())]
    {
        if is_given {
            return Err(UsageError(format!(
                "{option} is for models, the weights in safetensors are not run"
            ))
            .into());
        }
    }
    let run = RunDir::open(&args.run)?;
    let recipe = run.recipe()?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.safetensors", recipe.name)));
    if out.exists() {
        return Err(exists(&out).into());
    }
    let checkpoint = match args.checkpoint.as_deref() {
        Some(name) => Some(checkpoint_named(&args.run, name)?),
        None => None,
    };
    let subject = Subject { checkpoint: checkpoint.as_deref(), network: args.network.as_deref() };
    let device = DeviceName::fastest()?.open()?;
    let network = lowbit_train::load_network(&args.run, subject, &device)
        .map_err(|error| exit_code::with_previous(error, "export", &args.run))?;
    let ExportedWeights { bytes, n_tensors, n_left_out } = to_safetensors(&network);
    write_new(&out, &bytes)?;
    if n_left_out > 0 {
        tracing::warn!(
            "the file has the weights in full precision, not the quantizers of the run ({}): what reads it computes with other numbers \
             than the run did",
            recipe.quantization.summary()
        );
    }
    if !is_torchvision(&recipe.model) {
        tracing::warn!(
            "torchvision has no such network ({} in layout {}, width {}, stride {} of the first layer): one of its own that takes the file \
             computes something else",
            recipe.model.family,
            recipe.model.layout,
            recipe.model.width,
            recipe.model.stem_stride
        );
    }
    let report = Report {
        file: &out,
        format: "safetensors",
        run_dir: &args.run,
        checkpoint: checkpoint.unwrap_or_else(|| "newest".into()),
        network: args.network.as_deref().unwrap_or("student"),
        n_tensors,
        n_bytes: bytes.len(),
        n_left_out,
    };
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&format!(
            "{}: {} in full precision, {} bytes",
            out.display(),
            counted(n_tensors as u64, "tensor"),
            bytes.len()
        ))?,
    }
    Ok(Code::Success)
}

/// Whether torchvision has this network.
fn is_torchvision(model: &ModelConfig) -> bool {
    let is_family = match model.family {
        Family::ResNet | Family::MobileNetV2 => true,
        Family::AlexNet => model.norm == Some(false),
        _ => false,
    };
    let stride = (model.family.settings().stem_strides)(Layout::ImageNet)[0];
    is_family && model.layout == Layout::ImageNet && model.width == 1.0 && model.stem_stride == stride
}

pub fn exists(path: &Path) -> UsageError {
    UsageError(format!("{} exists and is never overwritten: choose another with --out", path.display()))
}

/// Writes a file that is not there yet; none is left behind if that fails.
pub fn write_new(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = match OpenOptions::new().write(true).create_new(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists(path).into()),
        file => file.with_context(|| format!("failed to create {}", path.display()))?,
    };
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    written.with_context(|| format!("failed to write {}", path.display())).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })
}
