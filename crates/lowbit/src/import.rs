//! `lowbit import`: what is in a file of weights, and what a training would take of it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use lowbit_models::{InputShape, ModelConfig};
use lowbit_train::recipe::DatasetChoice;
use lowbit_train::weights::{
    Container, Fit, Fitting, Misfit, NewClassifier, TensorInfo, WeightsError, WeightsFile, fits,
};
use lowbit_train::{TrainError, shell_quoted};
use serde::Serialize;

use crate::cli::ImportArgs;
use crate::exit_code::Code;
use crate::output::{self, counted};
use crate::recipes;

/// Most lines of tensors that are printed; JSON has all.
const MOST_LINES: usize = 400;

#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    container: Container,
    sha256: String,
    n_tensors: usize,
    /// Values of real numbers, those of running statistics included.
    n_values: usize,
    tensors: Vec<Tensor<'a>>,
    /// Networks that all of it fits.
    fits: Vec<Fitting>,
    /// The network whose tensors they become: the one that was asked for, or the first that fits.
    network: Option<Fitting>,
    new_classifier: Option<NewClassifier>,
    left_out: Vec<String>,
    /// How they are not those of the network; nothing is taken then, and the command fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    misfit: Option<&'a Misfit>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    #[serde(flatten)]
    info: &'a TensorInfo,
    /// Its path in the network; absent if nothing is made of it.
    becomes: Option<String>,
}

pub fn run(args: &ImportArgs) -> anyhow::Result<Code> {
    let report_error = |source: WeightsError| TrainError::Weights { path: args.file.clone(), source };
    let file = WeightsFile::open(&args.file).map_err(report_error)?;
    let fits = fits(&file);
    let network = match (&args.recipe, &args.model) {
        (Some(name), _) => {
            let (recipe, _) = recipes::load(name, &args.set)?;
            let input = recipe.data.input_shape();
            let classes = match recipe.data.dataset {
                // Known where the training begins: until then, those of the file.
                DatasetChoice::Folder { n_classes: None, .. } => of_model(&file, &recipe.model).classes,
                _ => recipe.data.n_classes(),
            };
            Some(Fitting { model: recipe.model, input, classes })
        }
        (None, Some(model)) => Some(of_model(&file, model)),
        (None, None) => fits.first().cloned(),
    };
    let nothing = Fit { taken: Vec::new(), new_classifier: None, left_out: Vec::new() };
    let (fit, misfit) = match &network {
        Some(Fitting { model, input, classes }) => {
            let graph = model.graph(*input, *classes).map_err(TrainError::Model)?;
            match Fit::new(&file, &graph) {
                Ok(fit) => (fit, None),
                Err(misfit) => (nothing, Some(misfit)),
            }
        }
        None => (nothing, None),
    };
    // What a training would stumble over is found here.
    for tensor in &fit.taken {
        file.read(&tensor.name).map_err(report_error)?;
    }
    let Fit { taken, new_classifier, left_out } = fit;
    let mut becomes: BTreeMap<&str, &str> =
        taken.iter().map(|taken| (taken.name.as_str(), taken.path.as_str())).collect();
    let mut tensors: Vec<Tensor<'_>> = taken
        .iter()
        .filter_map(|taken| file.tensors().get_key_value(&taken.name))
        .map(|(name, info)| Tensor { name, info, becomes: becomes.remove(name.as_str()).map(String::from) })
        .collect();
    let is_taken = |name: &String| taken.iter().any(|taken| taken.name == *name);
    let others = file.tensors().iter().filter(|(name, _)| !is_taken(name));
    tensors.extend(others.map(|(name, info)| Tensor { name, info, becomes: None }));
    let report = Report {
        file: &args.file,
        container: file.container(),
        sha256: file.sha256().map_err(report_error)?,
        n_tensors: tensors.len(),
        n_values: file.tensors().values().filter(|info| info.is_float()).map(TensorInfo::n_values).sum(),
        tensors,
        fits,
        network,
        new_classifier,
        left_out,
        misfit: misfit.as_deref(),
    };
    match args.json.json {
        true => output::print_json(&report)?,
        // The error says what is wrong; a table would say of all tensors that they are left out.
        false if misfit.is_some() => {}
        false => output::print(&describe(&report))?,
    }
    misfit.map_or(Ok(Code::Success), |misfit| Err(report_error(WeightsError::Misfit(misfit)).into()))
}

/// The `model` for the channels and classes of the file, as far as these show.
fn of_model(file: &WeightsFile, model: &ModelConfig) -> Fitting {
    let (channels, classes) = lowbit_train::weights::sizes(file, model).unwrap_or((3, 1000));
    Fitting { model: model.clone(), input: InputShape { channels, height: 224, width: 224 }, classes }
}

fn describe(report: &Report<'_>) -> String {
    let Report { file, container, sha256, n_tensors, n_values, tensors, fits, network, .. } = report;
    let mut text = format!(
        "file       {}\nholds      {}, {n_values} values\ncontainer  {}\nSHA-256    {sha256}\n",
        file.display(),
        counted(*n_tensors as u64, "tensor"),
        container.title(),
    );
    // Writing to memory does not fail.
    for fitting in fits {
        let _ = writeln!(text, "fits       {fitting}");
    }
    if fits.is_empty() {
        text += "fits       no network of lowbit\n";
    }
    if let Some(network) = network.as_ref().filter(|network| !fits.contains(network)) {
        let _ = writeln!(text, "shown for  {network}");
    }
    let name_width =
        tensors.iter().map(|tensor| tensor.name.escape_debug().count()).fold(6, usize::max).min(60);
    let _ = writeln!(text, "\n{:<name_width$} {:<14} {:<9} becomes", "tensor", "shape", "type");
    for Tensor { name, info, becomes } in tensors.iter().take(MOST_LINES) {
        let becomes = becomes.as_deref().unwrap_or(if network.is_some() { "left out" } else { "-" });
        // One line each, whatever a file has for names.
        let (name, shape, dtype) = (name.escape_debug().to_string(), info.shape_text(), info.dtype);
        let _ = writeln!(text, "{name:<name_width$} {shape:<14} {dtype:<9} {becomes}");
    }
    if tensors.len() > MOST_LINES {
        let _ = writeln!(text, "and {} more, which --json lists", tensors.len() - MOST_LINES);
    }
    if let Some(NewClassifier { layer, file_classes, classes }) = &report.new_classifier {
        let _ = writeln!(
            text,
            "\nThe file is for {file_classes} classes, the network for {classes}: its classifier {layer} begins anew."
        );
    }
    if network.is_some() {
        let _ = write!(text, "\nbegin with it: lowbit train RECIPE --set init={}", shell_quoted(file));
    }
    text.trim_end().into()
}
