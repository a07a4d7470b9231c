//! `lowbit predict`: what a packed model sees in images.

use std::path::Path;

use lowbit_data::{DecodeLimits, Dimensions, Geometry, Image, MAX_IMAGE_FILE, decode};
use lowbit_runtime::Model;
use lowbit_train::read_regular;
use serde::Serialize;

use crate::cli::PredictArgs;
use crate::exit_code::{Code, ImageError, ModelError};
use crate::output;
use crate::packed;

/// Classes that are shown.
const SHOWN: usize = 5;

#[derive(Serialize)]
struct Report<'a> {
    model: &'a Path,
    images: Vec<Prediction<'a>>,
}

#[derive(Serialize)]
struct Prediction<'a> {
    file: &'a Path,
    classes: Vec<Class<'a>>,
}

#[derive(Serialize)]
struct Class<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    probability: f64,
    logit: f32,
}

pub fn run(args: &PredictArgs) -> anyhow::Result<Code> {
    let model = packed::load(&args.model)?;
    let images = args.images.iter().map(|file| {
        let logits = model.run(&pixels(&model, &args.model, file)?);
        let no_number = |problem: String| ModelError { path: args.model.clone(), problem };
        let logits =
            logits.map_err(|error| no_number(format!("its normalization makes no numbers: {error}")))?;
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(no_number("its logits are not finite".into()).into());
        }
        Ok(Prediction { file, classes: classes(&logits, &model.network().info.classes) })
    });
    let report = Report { model: &args.model, images: images.collect::<anyhow::Result<_>>()? };
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report))?,
    }
    Ok(Code::Success)
}

/// The normalized pixels of an image file in the size of the model, as those of the test images of its training.
fn pixels(model: &Model, model_path: &Path, file: &Path) -> anyhow::Result<Vec<f32>> {
    let wrong = |problem: String| ImageError { path: file.into(), problem };
    let unreadable = |error: std::io::Error| wrong(format!("it cannot be read: {error}"));
    let bytes = read_regular(file, MAX_IMAGE_FILE.into()).map_err(unreadable)?;
    let picture = decode(&bytes, &DecodeLimits::default()).map_err(|error| wrong(error.to_string()))?;
    let [channels, height, width] = model.input_shape();
    let info = &model.network().info;
    if !matches!(channels, 1 | 3) {
        let problem = format!("its images have {channels} channels, an image file has 1 or 3");
        return Err(ModelError { path: model_path.into(), problem }.into());
    }
    let Dimensions { width: own_width, height: own_height } = picture.dimensions;
    let image: Image<'_> = match height == width {
        true => Geometry { channels, size: height, resize: info.resize.unwrap_or(height).max(height) }
            .apply(picture, None),
        false if [own_height as usize, own_width as usize] == [height, width] => {
            picture.with_channels(channels).into_image()
        }
        false => {
            let problem =
                format!("it is {own_width}x{own_height}, the model is for images of {width}x{height}");
            return Err(wrong(problem).into());
        }
    };
    let of = |numbers: &[f32], channel: usize, otherwise| numbers.get(channel).copied().unwrap_or(otherwise);
    let normalized = image.pixels.iter().enumerate().map(|(place, pixel)| {
        let channel = place / (height * width);
        (f32::from(*pixel) / 255.0 - of(&info.mean, channel, 0.0)) / of(&info.std, channel, 1.0)
    });
    Ok(normalized.collect())
}

/// The classes of the highest probabilities, by the softmax of the logits.
fn classes<'a>(logits: &[f32], names: &'a [String]) -> Vec<Class<'a>> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight = |logit: f32| f64::from(logit - largest).exp();
    let sum: f64 = logits.iter().map(|logit| weight(*logit)).sum();
    let mut classes: Vec<Class<'_>> = logits
        .iter()
        .enumerate()
        .map(|(index, &logit)| Class {
            index,
            name: names.get(index).map(String::as_str),
            probability: weight(logit) / sum,
            logit,
        })
        .collect();
    classes.sort_by(|a, b| b.logit.total_cmp(&a.logit));
    classes.truncate(SHOWN);
    classes
}

fn describe(report: &Report<'_>) -> String {
    let class = |class: &Class<'_>| {
        let name = class.name.map_or_else(|| format!("class {}", class.index), str::to_string);
        format!("  {:>6.2}%  {name}", 100.0 * class.probability)
    };
    let image = |prediction: &Prediction<'_>| {
        let lines: Vec<String> = prediction.classes.iter().map(class).collect();
        format!("{}\n{}", prediction.file.display(), lines.join("\n"))
    };
    report.images.iter().map(image).collect::<Vec<_>>().join("\n\n")
}
