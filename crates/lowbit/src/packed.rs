//! Packed models: making one of a run, and scoring one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use lowbit_core::GridError;
use lowbit_export::ExportError;
use lowbit_export::onnx::{Opset, to_onnx, to_qonnx};
use lowbit_runtime::{Info, LayerCounts, Model, PackedError};
use lowbit_train::{Deployed, ImageSet, Images, Recipe, Scored, Scores, Subject, deployed, score};
use safetensors::tensor::{Dtype, TensorView};
use serde::Serialize;

use crate::cli::{EvalArgs, ExportArgs};
use crate::device::DeviceName;
use crate::exit_code::{self, Code, ModelError, UsageError};
use crate::export::{exists, write_new};
use crate::inspect::checkpoint_named;
use crate::output::{self, counted, percent_exact};
use crate::sizes::{self, LayerSize};

/// Ending of the files.
const ENDING: &str = "lowbit";

/// Most test images that a model is compared on.
const MOST_IMAGES: usize = 10_000;

/// Largest difference of a logit from that of the evaluation, as a part of the largest logit. On the same machine there is none.
const BOUND: f64 = 1e-5;

/// Names of what a file says of its origin.
const RECIPE: &str = "recipe";
const TEST_IMAGES: &str = "test_images";

#[derive(Serialize)]
struct Report<'a> {
    file: &'a Path,
    format: &'static str,
    run_dir: &'a Path,
    checkpoint: &'a str,
    network: &'a str,
    bytes: usize,
    /// Of the same network in full precision, in the same format.
    bytes_fp32: usize,
    verified: bool,
    #[serde(flatten)]
    verification: Option<Verification>,
    integer_layers: usize,
    float_layers: usize,
    /// Of a packed file, in the other format too.
    layers: Vec<LayerSize>,
}

/// What came of the comparison with the evaluation.
#[derive(Serialize)]
struct Verification {
    n_images: usize,
    max_logit_difference: f64,
    /// Images of which both say the same class.
    same_top1: usize,
    /// Scores of the model.
    top1: f64,
    loss: f64,
    #[serde(skip)]
    largest_logit: f64,
    /// Whether all logits of both are.
    #[serde(skip)]
    are_finite: bool,
}

impl Verification {
    fn is_passed(&self) -> bool {
        let is_close = self.max_logit_difference <= BOUND * self.largest_logit;
        self.are_finite && is_close && self.same_top1 == self.n_images
    }
}

/// What a model is written as.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    Packed,
    /// With the operators of this version.
    Onnx(Opset),
    Qonnx,
}

impl Form {
    /// Its name, and the ending of its files.
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::Packed => ["packed", ENDING],
            Self::Onnx(_) => ["onnx", "onnx"],
            // The tools of qonnx name what they write by replacing `.onnx`, and write over a file that is called otherwise.
            Self::Qonnx => ["qonnx", "qonnx.onnx"],
        }
    }
}

/// `lowbit export --format packed`, `onnx` or `qonnx`.
pub fn export(args: &ExportArgs, form: Form) -> anyhow::Result<Code> {
    let [format, ending] = form.names();
    let checkpoint = args.checkpoint.as_deref().map(|name| checkpoint_named(&args.run, name)).transpose()?;
    let subject = Subject { checkpoint: checkpoint.as_deref(), network: args.network.as_deref() };
    let name = DeviceName::fastest()?;
    if !name.is_cpu() {
        return Err(UsageError(
            "this lowbit has no backend for the CPU, by which a packed model is made: build it with its \
                               features flex or ndarray"
                .into(),
        )
        .into());
    }
    let device = name.open()?;
    let deployed = deployed(&args.run, subject, &device)
        .map_err(|error| exit_code::with_previous(error, "export", &args.run))?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.{ending}", deployed.recipe.name)));
    if out.exists() {
        return Err(exists(&out).into());
    }
    // Before the images are run, which may take long.
    if let Some(folder) = out.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.is_dir()) {
        return Err(UsageError(format!(
            "{} is no directory: make it, or choose another with --out",
            folder.display()
        ))
        .into());
    }
    let no_model = |problem: String| ModelError { path: args.run.clone(), problem };
    let packed = lowbit_export::pack(&deployed.network, info(&deployed))
        .map_err(|error| no_model(format!("{error}{}", other_form(&error))))?;
    let bytes = packed.to_bytes().map_err(|error| no_model(error.to_string()))?;
    let bytes_fp32 =
        packed.in_full_precision().to_bytes().map_err(|error| no_model(error.to_string()))?.len();
    // What is run is what a reader of the file will run.
    let model = Model::from_bytes(&bytes).map_err(|error| no_model(error.to_string()))?;
    let layers = sizes::of(&packed).map_err(|error| no_model(error.to_string()))?;
    let verification = match args.no_verify {
        true => None,
        false => Some(verify(&model, &deployed, &device, &args.data_dir.locations().into())?),
    };
    if let Some(found) = &verification
        && !found.is_passed()
    {
        tracing::error!(
            "the packed model is not the network of the run: of {} its logits differ by up to {} (the largest is {}), {} have another \
             class{}; no file was written",
            counted(found.n_images as u64, "test image"),
            found.max_logit_difference,
            found.largest_logit,
            found.n_images - found.same_top1,
            if found.are_finite { "" } else { ", and some are not finite" }
        );
        return Ok(Code::Verification);
    }
    let bytes = match form {
        Form::Packed => bytes,
        Form::Onnx(opset) => to_onnx(&packed, opset).map_err(|error| UsageError(error.to_string()))?,
        Form::Qonnx => to_qonnx(&packed),
    };
    write_new(&out, &bytes)?;
    let LayerCounts { integer: integer_layers, float: float_layers, .. } = model.layer_counts();
    let report = Report {
        file: &out,
        format,
        run_dir: &args.run,
        checkpoint: &deployed.checkpoint,
        network: &deployed.name,
        bytes: bytes.len(),
        bytes_fp32,
        verified: verification.is_some(),
        verification,
        integer_layers,
        float_layers,
        layers,
    };
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report))?,
    }
    Ok(Code::Success)
}

/// What the file says beside the network.
fn info(deployed: &Deployed) -> Info {
    let Deployed { recipe, checkpoint, name, phase, classes, normalization, .. } = deployed;
    let test_images = deployed.test.as_ref().and_then(|set| serde_json::to_string(set).ok());
    let origin = [
        (TEST_IMAGES, test_images.unwrap_or_default()),
        (RECIPE, recipe.to_toml()),
        ("checkpoint", checkpoint.clone()),
        ("network", name.clone()),
        ("phase", phase.clone()),
        ("lowbit", crate::origin::here().build()),
    ];
    Info {
        name: recipe.name.clone(),
        classes: classes.clone().unwrap_or_default(),
        mean: normalization.mean.clone(),
        std: normalization.std.clone(),
        resize: recipe.data.geometry.map(|geometry| geometry.resize),
        origin: origin
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_string(), value))
            .collect::<BTreeMap<_, _>>(),
    }
}

/// Runs the model and the network of the run on the test images.
fn verify(
    model: &Model,
    deployed: &Deployed,
    device: &burn::tensor::Device,
    images: &Images,
) -> anyhow::Result<Verification> {
    let images = images.with_run_dir(deployed.data_dir.as_deref());
    let (mut max_logit_difference, mut largest_logit, mut are_finite, mut same_top1) =
        (0.0f64, 0.0f64, true, 0);
    let Scored { scores: Scores { loss, top1, .. }, n_images, .. } =
        score(&deployed.recipe.data, &images, MOST_IMAGES, |pixels, shape| {
            let input = Tensor::<4>::from_data(TensorData::new(pixels.to_vec(), shape), device);
            let expected: Vec<f32> = deployed.network.forward(input).into_data().iter::<f32>().collect();
            let got = model.run(pixels).expect("invariant: a batch is of whole images");
            for (got, expected) in got.iter().zip(&expected) {
                let difference = f64::from(got - expected).abs();
                are_finite &= got.is_finite() && expected.is_finite();
                max_logit_difference = max_logit_difference.max(difference);
                largest_logit = largest_logit.max(f64::from(*expected).abs());
            }
            let rows = got.chunks(model.n_outputs()).zip(expected.chunks(model.n_outputs()));
            same_top1 += rows.filter(|(got, expected)| top(got) == top(expected)).count();
            Ok(got)
        })?;
    Ok(Verification { n_images, max_logit_difference, same_top1, top1, loss, largest_logit, are_finite })
}

/// The first of the highest.
fn top(logits: &[f32]) -> usize {
    let best = |best: usize, place: usize| if logits[place] > logits[best] { place } else { best };
    (0..logits.len()).fold(0, best)
}

fn describe(report: &Report<'_>) -> String {
    let smaller = report.bytes_fp32 as f64 / report.bytes as f64;
    let verdict = match &report.verification {
        None => "not verified".into(),
        Some(Verification { n_images, max_logit_difference, top1, .. }) => {
            let images = counted(*n_images as u64, "test image");
            let same = match *max_logit_difference == 0.0 {
                true => "to the last bit".into(),
                false => format!("to within {max_logit_difference:.1e}"),
            };
            format!("the logits of {images} are those of the run {same}: top-1 {}", percent_exact(*top1))
        }
    };
    let sizes = match report.format {
        "onnx" | "qonnx" => String::new(),
        _ => sizes::table(&report.layers, report.bytes, report.bytes_fp32) + "\n\n",
    };
    let (verified, next) = match report.format {
        "onnx" | "qonnx" => (
            "as packed ",
            "its input `image` is of normalized pixels, its output `logits`; the metadata has classes, mean and std".to_string(),
        ),
        _ => (
            "verified  ",
            format!("say what is in an image:  lowbit predict {} IMAGE.png", lowbit_train::shell_quoted(report.file)),
        ),
    };
    format!(
        "{}: {} bytes, 1/{smaller:.1} of full precision ({} bytes)\nlayers    {} by sums of integers, {} in floats\n{verified}{verdict}\n\n{sizes}{next}",
        report.file.display(),
        report.bytes,
        report.bytes_fp32,
        report.integer_layers,
        report.float_layers,
    )
}

/// Tensors as the bytes of a safetensors file.
fn floats<const N: usize>(tensors: [(&str, Vec<usize>, Vec<f32>); N]) -> anyhow::Result<Vec<u8>> {
    let bytes = tensors.map(|(name, shape, values)| {
        (name, shape, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
    });
    let views = bytes.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (*name, view.expect("invariant: a tensor has the bytes of its shape"))
    });
    Ok(safetensors::serialize(views, None)?)
}

/// Reads a packed file.
pub fn load(path: &Path) -> anyhow::Result<Model> {
    Model::load(path).map_err(|error| {
        let problem = match error {
            PackedError::Unreadable { source, .. } => format!("it cannot be read: {source}"),
            error => error.to_string().replace(['\n', '\r'], " "),
        };
        ModelError { path: path.into(), problem }.into()
    })
}

#[derive(Serialize)]
struct Evaluation<'a> {
    model: &'a Path,
    recipe: &'a str,
    n_images: usize,
    #[serde(flatten)]
    scores: Scores,
    /// Whether the images are those that its run was tested on, if the file says these.
    same_data: Option<bool>,
    integer_layers: usize,
    float_layers: usize,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    classes: &'a [String],
}

/// `lowbit eval MODEL`.
pub fn eval(args: &EvalArgs) -> anyhow::Result<Code> {
    for (option, is_given) in [
        ("--checkpoint", args.checkpoint.is_some()),
        ("--network", args.network.is_some()),
        ("--device", args.device.device.is_some()),
    ] {
        if is_given {
            return Err(UsageError(format!(
                "{option} is for a run directory, {} is a file",
                args.run.display()
            ))
            .into());
        }
    }
    let model = load(&args.run)?;
    let info = &model.network().info;
    let no_recipe =
        || ModelError { path: args.run.clone(), problem: "it does not say which images it is for".into() };
    let text = info.origin.get(RECIPE).ok_or_else(no_recipe)?;
    let recipe =
        Recipe::parse(text, &format!("the recipe in {}", args.run.display()), &[]).map_err(|error| {
            let first =
                error.to_string().lines().next().unwrap_or_default().trim_end_matches(':').to_string();
            ModelError { path: args.run.clone(), problem: format!("its recipe is not usable: {first}") }
        })?;
    let normalization = Images::Named(args.data_dir.locations()).normalization(&recipe.data)?;
    if [&info.mean, &info.std] != [&normalization.mean, &normalization.std] {
        let problem = "it normalizes images by other numbers than its recipe does".into();
        return Err(ModelError { path: args.run.clone(), problem }.into());
    }
    let input = recipe.data.input_shape();
    if [input.channels, input.height, input.width] != model.input_shape() {
        let problem = "its recipe is for images of another size than its network".into();
        return Err(ModelError { path: args.run.clone(), problem }.into());
    }
    if recipe.data.n_classes() != model.n_outputs() {
        let problem = "its recipe is for another number of classes than its network".into();
        return Err(ModelError { path: args.run.clone(), problem }.into());
    }
    let images: Images = args.data_dir.locations().into();
    if let Some(dump) = args.dump.as_deref().filter(|dump| dump.exists()) {
        return Err(exists(dump).into());
    }
    let (mut all_pixels, mut all_logits) = (Vec::new(), Vec::new());
    let Scored { scores, n_images, data, warnings } =
        score(&recipe.data, &images, usize::MAX, |pixels, _| {
            let logits = model.run(pixels).expect("invariant: a batch is of whole images");
            if args.dump.is_some() {
                all_pixels.extend_from_slice(pixels);
                all_logits.extend_from_slice(&logits);
            }
            Ok(logits)
        })?;
    if let Some(dump) = &args.dump {
        let [channels, height, width] = model.input_shape();
        let images = ("images", vec![n_images, channels, height, width], all_pixels);
        write_new(dump, &floats([images, ("logits", vec![n_images, model.n_outputs()], all_logits)])?)?;
    }
    let known: Option<ImageSet> =
        info.origin.get(TEST_IMAGES).and_then(|text| serde_json::from_str(text).ok());
    let same_data = known.map(|known| known == data);
    if same_data != Some(true) {
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    }
    if same_data == Some(false) {
        tracing::warn!("these are not the test images that the run of this model was tested on");
    }
    let LayerCounts { integer: integer_layers, float: float_layers, .. } = model.layer_counts();
    let report = Evaluation {
        model: &args.run,
        recipe: &recipe.name,
        n_images,
        scores,
        same_data,
        integer_layers,
        float_layers,
        classes: &info.classes,
    };
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&format!(
            "top-1 {}  top-5 {}  loss {:.4}\n\nmodel   {} of recipe {}\nimages  {n_images}\nlayers  {integer_layers} by sums of integers, {float_layers} in floats",
            percent_exact(scores.top1),
            percent_exact(scores.top5),
            scores.loss,
            args.run.display(),
            recipe.name
        ))?,
    }
    Ok(Code::Success)
}

/// The form that takes a network which has no integers.
fn other_form(error: &ExportError) -> &'static str {
    match error {
        ExportError::Grid { source: GridError::Uneven, .. } => {
            "; --format safetensors writes the weights in full precision"
        }
        _ => "",
    }
}
