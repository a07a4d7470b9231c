//! What a network does with images: what its quantizers keep and lose, and what it takes for what.

use burn::tensor::{Device, Int, Tensor, TensorData};
use lowbit_core::{CodeSet, IntegerGrid};
use lowbit_data::{Dimensions, Normalization, Picture};
use lowbit_models::Network;
use lowbit_quantizers::{ActivationQuantizer, LayerRef, QuantizedNetwork, WeightQuantizer};
use lowbit_train::{
    Batch, ChosenBy, Images, SensitivityOptions, Subject, Tally, TestImages, deployed, sensitivity,
};
use serde::Serialize;

use crate::run::{RunReport, Sensitivity};

/// The most images that activations are looked at on: a few suffice for their shares, and all of them are held at a time.
const MAX_ACTIVATION_IMAGES: usize = 64;

/// The most values of one layer that are looked at, unless a single image has more.
const MAX_VALUES: usize = 1 << 24;

/// Bars of a histogram.
const N_BINS: usize = 48;

/// Mistakes that are shown.
const N_MISTAKES: usize = 24;

/// The longest side of a picture of a mistake, in pixels.
const MAX_SIDE: usize = 96;

/// Counts of values between two ends, in bins of equal width.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// Lower end of the first bin.
    pub low: f32,
    /// Upper end of the last bin.
    pub high: f32,
    /// Values in each bin.
    pub counts: Vec<u64>,
    /// Values that are not finite, which are in none.
    pub n_not_finite: u64,
}

impl Histogram {
    /// The histogram of `values` from the lowest to the highest.
    pub fn of(values: &[f32], n_bins: usize) -> Self {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let (low, high) =
            (finite().fold(f32::INFINITY, f32::min), finite().fold(f32::NEG_INFINITY, f32::max));
        let mut counts = vec![0; n_bins];
        let mut n_finite = 0;
        for value in finite() {
            let place = (f64::from(value) - f64::from(low)) / (f64::from(high) - f64::from(low));
            // All values may be equal.
            let bin = if place.is_finite() { (place * n_bins as f64) as usize } else { 0 };
            counts[bin.min(n_bins - 1)] += 1;
            n_finite += 1;
        }
        let [low, high] = [low, high].map(|end| if end.is_finite() { end } else { 0.0 });
        Self { low, high, counts, n_not_finite: values.len() as u64 - n_finite }
    }
}

/// How often a code is used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CodeShare {
    /// The integer.
    pub code: i32,
    /// What it is worth; `None` where that differs from channel to channel.
    pub value: Option<f32>,
    /// Share of the values that have it.
    pub share: f64,
}

/// What quantization makes of a layer's weights or of its input.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operand {
    /// Values that were looked at.
    pub n_values: usize,
    /// The values as they are in full precision.
    pub histogram: Histogram,
    /// What is lost; `None` in full precision.
    pub quantized: Option<QuantizedOperand>,
}

/// What quantization keeps and loses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizedOperand {
    /// Its bits.
    pub bits: u32,
    /// Signal to quantization noise in decibels, after the factor that fits best: `10 log10(|x|^2 / min_a |x - a q|^2)`. Some methods have their
    /// codes on another scale than the values, which the normalization after the layer takes out. `None` if nothing is lost, or all is zero.
    pub sqnr_db: Option<f64>,
    /// Share of the values that are cut off at an end of the codes; zeros that are the end are none. `None` with 1 bit, where every value is
    /// at an end, and of methods whose codes are no grid.
    pub clipped: Option<f64>,
    /// Share of the codes that no value has.
    pub unused_codes: f64,
    /// How often each code is used.
    pub codes: Vec<CodeShare>,
}

/// What a network takes for what.
#[derive(Clone, Debug, Serialize)]
pub struct ImageReport {
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// Its phase, as in "w2a2".
    pub phase: String,
    /// Test images.
    pub n_images: u64,
    /// Of these, images that the inputs of layers are of.
    pub n_activation_images: usize,
    /// Fraction of the images whose label has the highest score.
    pub top1: f64,
    /// Images of each class (row) that were taken for each class (column).
    pub confusion: Vec<Vec<u64>>,
    /// Images whose scores are no numbers: they are taken for nothing, and in no column.
    pub n_undecided: u64,
    /// The classes, in the order of the rows.
    pub classes: Vec<ClassReport>,
    /// The wrong answers with the highest probability, the worst first.
    pub mistakes: Vec<Mistake>,
}

/// A class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassReport {
    /// Its name, or its number.
    pub name: String,
    /// Its images.
    pub n_images: u64,
    /// Fraction of them that was taken for it; `None` if it has none.
    pub top1: Option<f64>,
}

/// An image that was taken for another class.
#[derive(Clone, Debug, Serialize)]
pub struct Mistake {
    /// Its place among the test images, from 0.
    pub image: usize,
    /// Its class.
    pub label: usize,
    /// The class that it was taken for.
    pub predicted: usize,
    /// The probability that the network gave that class.
    pub probability: f64,
    /// The image as the network sees it, as a PNG file.
    #[serde(skip)]
    pub png: Vec<u8>,
}

/// Whether images are looked at.
#[derive(Clone, Debug)]
pub enum Look {
    /// At the test images, which are looked for here, after where the run found them.
    AtImages(Images),
    /// At the weights alone.
    AtWeights,
}

/// The note of a report without images, where that was asked for.
pub const NO_IMAGE: &str = "no image was looked at, as was asked for";

impl RunReport {
    /// Adds the accuracy with each layer alone quantized, and with each alone left out, on at most `n_images` validation images or, without
    /// any, training images. What cannot be had is noted instead. `device` is without autodiff; `progress` is told how many of how many passes
    /// over the images are done.
    pub fn add_sensitivity(
        &mut self,
        device: &Device,
        images: &Images,
        n_images: usize,
        progress: impl FnMut(usize, usize),
    ) {
        let options = SensitivityOptions { n_images, bits: Vec::new(), method: None };
        let run = self.summary.run_dir.clone();
        let found = match sensitivity(&run, Subject::default(), device, images, &options, progress) {
            Ok(found) => found,
            Err(error) => return self.notes.push(format!("no sensitivity is measured: {error}")),
        };
        for layer in &found.layers {
            if let Some(report) = self.layers.iter_mut().find(|report| report.plan.path == layer.layer) {
                let (top1_only, top1_without) = (layer.top1_only, layer.top1_without);
                report.sensitivity = Some(Sensitivity { top1_only, top1_without });
            }
        }
        let which = match found.images {
            ChosenBy::Validation => "validation",
            ChosenBy::Training => "training",
        };
        self.sensitivity_images = Some(format!("{} {which} images", found.n_images));
    }

    /// Adds what the deployed network of the newest checkpoint shows: of its weights, and of the images that the run is tested on. What cannot be
    /// had is noted instead. `device` is without autodiff.
    pub fn add_network(&mut self, device: &Device, look: &Look) {
        let path = self.summary.run_dir.clone();
        let found = match deployed(&path, Subject::default(), device) {
            Ok(found) => found,
            Err(error) => return self.notes.push(format!("no checkpoint is looked at: {error}")),
        };
        for (path, layer) in found.network.layers() {
            if let Some(report) = self.layers.iter_mut().find(|layer| layer.plan.path == path) {
                report.weights = Some(weights(layer));
            }
        }
        let images = match look {
            Look::AtWeights => return self.notes.push(NO_IMAGE.into()),
            Look::AtImages(images) => images.with_run_dir(found.data_dir.as_deref()),
        };
        let test = match TestImages::open(&found.recipe.data, &images) {
            Ok(test) => test,
            Err(error) => return self.notes.push(format!("no image is looked at: {error}")),
        };
        if found.test.as_ref().is_some_and(|run| *run != test.set) {
            let note = "no image is looked at: those that were found are not those that the run is tested on";
            return self.notes.push(note.into());
        }
        let mut answers = Answers::new(found.recipe.data.n_classes());
        let mut n_activation_images = 0;
        for batch in test.batches() {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => return self.notes.push(format!("no image is looked at: {error}")),
            };
            if n_activation_images == 0 {
                n_activation_images = self.add_inputs(&found.network, &batch, device);
            }
            let images = TensorData::new(batch.images.clone(), batch.shape);
            let logits = found.network.forward(Tensor::from_data(images, device)).into_data();
            answers.add(&batch, &logits.iter::<f32>().collect::<Vec<f32>>());
        }
        self.images = Some(answers.report(ImageNames {
            checkpoint: found.checkpoint,
            phase: found.phase,
            classes: found.classes,
            normalization: found.normalization,
            n_activation_images,
        }));
    }

    /// Adds the inputs of the layers on the first images of a batch, and returns how many these are.
    fn add_inputs(&mut self, network: &Network, batch: &Batch, device: &Device) -> usize {
        let graph = network.graph();
        let largest = graph.entries().map(|(id, _)| {
            let shape = graph.shape(id);
            shape.channels() * shape.places()
        });
        let most = (MAX_VALUES / largest.max().unwrap_or(1).max(1)).clamp(1, MAX_ACTIVATION_IMAGES);
        let [n, channels, height, width] = batch.shape;
        let n = n.min(most);
        let values = batch.images[..n * channels * height * width].to_vec();
        let images = TensorData::new(values, [n, channels, height, width]);
        let layers: Vec<(&str, LayerRef<'_>)> = network.layers().collect();
        network.forward_observed(Tensor::from_data(images, device), |path, x| {
            let layer = layers.iter().find(|(of, _)| *of == path).map(|(_, layer)| *layer);
            let report = self.layers.iter_mut().find(|layer| layer.plan.path == path);
            if let (Some(layer), Some(report)) = (layer, report) {
                report.input = Some(input(layer.input_quantizer(), x.clone()));
            }
        });
        n
    }
}

fn weights(layer: LayerRef<'_>) -> Operand {
    // As the quantizer has them: standardized, where the layer does so.
    match layer {
        LayerRef::Conv(conv) => of_weights(conv.weight_quantizer.as_ref(), conv.exact_weight()),
        LayerRef::Linear(linear) => of_weights(linear.weight_quantizer.as_ref(), linear.exact_weight()),
    }
}

fn of_weights<const D: usize>(quantizer: Option<&WeightQuantizer>, w: Tensor<D>) -> Operand {
    let exact = floats(w.clone());
    let quantized = quantizer.map(|quantizer| {
        Quantization {
            exact: &exact,
            quantized: floats(quantizer.fake_quantize(w.clone())),
            unrounded: floats(quantizer.unrounded(w.clone())),
            codes: integers(quantizer.codes(w.clone())),
            code_set: quantizer.code_set(),
            grid: quantizer.grid(w).ok(),
            bits: quantizer.bits().get(),
        }
        .report()
    });
    Operand { n_values: exact.len(), histogram: Histogram::of(&exact, N_BINS), quantized }
}

fn input(quantizer: Option<&ActivationQuantizer>, x: Tensor<4>) -> Operand {
    let exact = floats(x.clone());
    let quantized = quantizer.map(|quantizer| {
        Quantization {
            exact: &exact,
            quantized: floats(quantizer.fake_quantize(x.clone())),
            unrounded: floats(quantizer.unrounded(x.clone())),
            codes: integers(quantizer.codes(x)),
            code_set: quantizer.code_set(),
            grid: quantizer.grid().ok(),
            bits: quantizer.bits().get(),
        }
        .report()
    });
    Operand { n_values: exact.len(), histogram: Histogram::of(&exact, N_BINS), quantized }
}

/// Values and what a quantizer makes of them.
struct Quantization<'a> {
    exact: &'a [f32],
    quantized: Vec<f32>,
    /// Clipped as the method does it, and not rounded.
    unrounded: Vec<f32>,
    codes: Vec<i32>,
    code_set: CodeSet,
    /// What the codes are worth, if that is a grid.
    grid: Option<IntegerGrid>,
    bits: u32,
}

impl Quantization<'_> {
    fn report(&self) -> QuantizedOperand {
        let codes = self.code_shares();
        let n_unused = codes.iter().filter(|code| code.share == 0.0).count();
        QuantizedOperand {
            bits: self.bits,
            sqnr_db: sqnr_db(self.exact, &self.quantized),
            clipped: self.grid.as_ref().filter(|_| self.bits > 1).map(|grid| clipped(&self.unrounded, grid)),
            unused_codes: n_unused as f64 / codes.len().max(1) as f64,
            codes,
        }
    }

    fn code_shares(&self) -> Vec<CodeShare> {
        // What they are worth does not matter for which there are.
        let Ok(all) = IntegerGrid::new(self.code_set.clone(), vec![1.0], 1) else { return Vec::new() };
        let mut counts = vec![0u64; all.n_levels()];
        for code in &self.codes {
            if let Some(index) = all.index(*code) {
                counts[usize::from(index)] += 1;
            }
        }
        let value = |code| {
            self.grid.as_ref().filter(|grid| grid.units().len() == 1).map(|grid| grid.dequantize(code, 0))
        };
        let share = |(index, count): (usize, u64)| {
            let code = all.code(u8::try_from(index).ok()?)?;
            Some(CodeShare { code, value: value(code), share: count as f64 / self.codes.len().max(1) as f64 })
        };
        counts.into_iter().enumerate().filter_map(share).collect()
    }
}

/// Signal to noise in decibels, after the factor of `quantized` that fits best.
fn sqnr_db(exact: &[f32], quantized: &[f32]) -> Option<f64> {
    let dot = |one: &[f32], other: &[f32]| -> f64 {
        one.iter().zip(other).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let (signal, levels, both) = (dot(exact, exact), dot(quantized, quantized), dot(exact, quantized));
    let factor = if levels > 0.0 { both / levels } else { 0.0 };
    let noise: f64 =
        exact.iter().zip(quantized).map(|(x, q)| (f64::from(*x) - factor * f64::from(*q)).powi(2)).sum();
    let db = 10.0 * (signal / noise).log10();
    db.is_finite().then_some(db)
}

/// Share of values that are at an end of a grid other than zero.
fn clipped(unrounded: &[f32], grid: &IntegerGrid) -> f64 {
    /// Of the operations that make the end of a grid in one place and a clipped value in another.
    const TOLERANCE: f32 = 1e-5;
    let range = grid.range();
    let n_channels = grid.units().len();
    let per_channel = (unrounded.len() / n_channels).max(1);
    let is_at_end = |(channel, value): (usize, &f32)| {
        [range.q_min, range.q_max].into_iter().any(|code| {
            let end = grid.dequantize(code, channel);
            end != 0.0 && (value - end) * end.signum() >= -TOLERANCE * end.abs()
        })
    };
    let channels =
        unrounded.iter().enumerate().map(|(i, value)| ((i / per_channel).min(n_channels - 1), value));
    channels.filter(|&place| is_at_end(place)).count() as f64 / unrounded.len().max(1) as f64
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i32> {
    tensor.into_data().iter::<i32>().collect()
}

/// What is known of images before they are looked at.
struct ImageNames {
    checkpoint: String,
    phase: String,
    classes: Option<Vec<String>>,
    normalization: Normalization,
    n_activation_images: usize,
}

/// The answers of a network so far.
struct Answers {
    confusion: Vec<Vec<u64>>,
    n_undecided: u64,
    tally: Tally,
    /// The worst so far, with their pixels.
    mistakes: Vec<(Mistake, Pixels)>,
}

struct Pixels {
    values: Vec<f32>,
    /// Channels, height and width.
    shape: [usize; 3],
}

impl Answers {
    fn new(n_classes: usize) -> Self {
        Self {
            confusion: vec![vec![0; n_classes]; n_classes],
            n_undecided: 0,
            tally: Tally::default(),
            mistakes: Vec::new(),
        }
    }

    fn add(&mut self, batch: &Batch, logits: &[f32]) {
        let [n, channels, height, width] = batch.shape;
        let n_classes = logits.len() / n.max(1);
        let n_before = self.tally.n_images as usize;
        // The loss is not shown.
        self.tally.add(logits, &batch.labels, 0.0);
        let rows = logits.chunks_exact(n_classes.max(1)).zip(&batch.labels).enumerate();
        for (i, (row, &label)) in rows {
            let Some((predicted, probability)) = answer(row) else {
                self.n_undecided += 1;
                continue;
            };
            let label = label as usize;
            self.confusion[label][predicted] += 1;
            let is_shown = self.mistakes.len() < N_MISTAKES
                || self.mistakes.last().is_some_and(|(last, _)| probability > last.probability);
            if predicted == label || !is_shown {
                continue;
            }
            let place = self.mistakes.partition_point(|(mistake, _)| mistake.probability >= probability);
            let n_values = channels * height * width;
            let values = batch.images[i * n_values..(i + 1) * n_values].to_vec();
            let mistake = Mistake { image: n_before + i, label, predicted, probability, png: Vec::new() };
            let pixels = Pixels { values, shape: [channels, height, width] };
            self.mistakes.insert(place, (mistake, pixels));
            self.mistakes.truncate(N_MISTAKES);
        }
    }

    fn report(self, names: ImageNames) -> ImageReport {
        let ImageNames { checkpoint, phase, classes, normalization, n_activation_images } = names;
        let class = |(i, row): (usize, &Vec<u64>)| {
            let n_images = row.iter().sum();
            let name = classes.as_ref().and_then(|classes| classes.get(i)).cloned();
            ClassReport {
                name: name.unwrap_or_else(|| i.to_string()),
                n_images,
                top1: (n_images > 0).then(|| row[i] as f64 / n_images as f64),
            }
        };
        let classes = self.confusion.iter().enumerate().map(class).collect();
        let mistakes = self.mistakes.into_iter();
        ImageReport {
            checkpoint,
            phase,
            n_images: self.tally.n_images,
            n_activation_images,
            top1: self.tally.scores().top1,
            n_undecided: self.n_undecided,
            classes,
            mistakes: mistakes
                .map(|(mistake, pixels)| Mistake { png: pixels.picture(&normalization).to_png(), ..mistake })
                .collect(),
            confusion: self.confusion,
        }
    }
}

/// The class of the highest score, the lower of equal ones, as accuracies count it, and its probability; `None` if a score is no number.
fn answer(scores: &[f32]) -> Option<(usize, f64)> {
    if scores.iter().any(|score| score.is_nan()) {
        return None;
    }
    let (mut best, mut highest) = (0, *scores.first()?);
    for (class, &score) in scores.iter().enumerate() {
        if score > highest {
            (best, highest) = (class, score);
        }
    }
    let sum: f64 = scores.iter().map(|score| f64::from(score - highest).exp()).sum();
    Some((best, 1.0 / sum))
}

impl Pixels {
    /// What the network sees, in the colors that it is of; smaller if it is large.
    fn picture(&self, normalization: &Normalization) -> Picture {
        let [channels, height, width] = self.shape;
        // Other numbers of channels have no colors: the first is shown in grey.
        let shown = if channels == 3 { 3 } else { 1 };
        let factor = height.max(width).div_ceil(MAX_SIDE).max(1);
        let (rows, columns) = ((height / factor).max(1), (width / factor).max(1));
        let mut pixels = Vec::with_capacity(rows * columns * shown);
        for place in 0..rows * columns * shown {
            let (row, column, channel) = (place / shown / columns, place / shown % columns, place % shown);
            let mut sum = 0.0;
            for y in row * factor..((row + 1) * factor).min(height) {
                for x in column * factor..((column + 1) * factor).min(width) {
                    sum += self.values[(channel * height + y) * width + x];
                }
            }
            let mean = sum / (factor.min(height) * factor.min(width)) as f32;
            let of = |numbers: &[f32], otherwise: f32| numbers.get(channel).copied().unwrap_or(otherwise);
            let value = mean * of(&normalization.std, 1.0) + of(&normalization.mean, 0.0);
            // What is no number becomes black.
            pixels.push((value * 255.0).round_ties_even().clamp(0.0, 255.0) as u8);
        }
        let dimensions = Dimensions { width: columns as u32, height: rows as u32 };
        Picture { dimensions, channels: shown, pixels }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uniform(q_min: i32, q_max: i32) -> CodeSet {
        CodeSet::Uniform { q_min, q_max, stride: 1 }
    }

    #[test]
    fn noise_is_what_no_factor_takes_out() {
        // The factor is (1 + 2) / 2 = 1.5, the noise 2 * 0.5^2, the signal 1 + 4.
        let db = sqnr_db(&[1.0, 2.0], &[1.0, 1.0]).unwrap();
        assert!((db - 10.0 * (5.0f64 / 0.5).log10()).abs() < 1e-12, "{db}");
        assert_eq!(sqnr_db(&[1.0, 2.0], &[10.0, 10.0]), Some(db));
        // Nothing is kept: the noise is the signal.
        assert_eq!(sqnr_db(&[1.0, 2.0], &[0.0, 0.0]), Some(0.0));
        assert_eq!(sqnr_db(&[1.0, 2.0], &[2.0, 4.0]), None);
        assert_eq!(sqnr_db(&[0.0], &[0.0]), None);
        assert_eq!(sqnr_db(&[f32::NAN], &[1.0]), None);
    }

    #[test]
    fn shares_are_counted() {
        let grid = IntegerGrid::new(uniform(-2, 1), vec![0.5], 1).unwrap();
        let quantization = Quantization {
            exact: &[-3.0, -1.0, 0.1, 0.4, 0.5, 9.0, 0.0, 0.0],
            quantized: vec![-1.0, -1.0, 0.0, 0.5, 0.5, 0.5, 0.0, 0.0],
            unrounded: vec![-1.0, -1.0, 0.1, 0.4, 0.5, 0.5, 0.0, 0.0],
            codes: vec![-2, -2, 0, 1, 1, 1, 0, 0],
            code_set: uniform(-2, 1),
            grid: Some(grid),
            bits: 2,
        };
        let report = quantization.report();
        // Both of -1 and both of 0.5.
        assert_eq!(report.clipped, Some(0.5));
        assert_eq!(report.unused_codes, 0.25);
        let codes: Vec<(i32, Option<f32>, f64)> =
            report.codes.iter().map(|code| (code.code, code.value, code.share)).collect();
        assert_eq!(
            codes,
            [(-2, Some(-1.0), 0.25), (-1, Some(-0.5), 0.0), (0, Some(0.0), 0.375), (1, Some(0.5), 0.375)]
        );
        assert_eq!(Quantization { bits: 1, ..quantization }.report().clipped, None);
    }

    #[test]
    fn an_end_that_is_zero_clips_nothing() {
        let grid = IntegerGrid::new(uniform(0, 3), vec![1.0], 3).unwrap();
        assert_eq!(clipped(&[0.0, 0.0, 0.5, 1.0], &grid), 0.25);
        // Each channel has its own end.
        let grid = IntegerGrid::new(uniform(0, 3), vec![1.0, 2.0], 3).unwrap();
        assert_eq!(clipped(&[0.0, 1.0, 1.0, 2.0], &grid), 0.5);
    }

    #[test]
    fn a_histogram_has_every_finite_value() {
        let values = [0.0, 0.1, 0.5, 0.99, 1.0, f32::NAN, f32::INFINITY];
        let histogram = Histogram::of(&values, 2);
        let expected = Histogram { low: 0.0, high: 1.0, counts: vec![2, 3], n_not_finite: 2 };
        assert_eq!(histogram, expected);
        assert_eq!(Histogram::of(&[2.0; 3], 4).counts, [3, 0, 0, 0]);
        assert_eq!(
            Histogram::of(&[], 1),
            Histogram { low: 0.0, high: 0.0, counts: vec![0], n_not_finite: 0 }
        );
    }

    #[test]
    fn answers_are_counted_as_accuracies_are() {
        let mut answers = Answers::new(3);
        let batch = Batch {
            images: vec![0.0, 0.5, 1.0, 0.25, 2.0],
            labels: vec![0, 1, 2, 2, 0],
            shape: [5, 1, 1, 1],
            step: 0,
        };
        let logits =
            [[2.0, 1.0, 0.0], [1.0, 1.0, 0.0], [3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [f32::NAN, 0.0, 0.0]];
        answers.add(&batch, logits.as_flattened());
        let report = answers.report(ImageNames {
            checkpoint: "step-00000001".into(),
            phase: "w2a2".into(),
            classes: Some(vec!["a".into(), "b".into(), "c".into()]),
            normalization: Normalization { mean: vec![0.0], std: vec![1.0] },
            n_activation_images: 0,
        });
        assert_eq!(report.confusion, [[1, 0, 0], [1, 0, 0], [1, 1, 0]]);
        assert_eq!((report.n_images, report.n_undecided, report.top1), (5, 1, 0.2));
        let classes: Vec<_> =
            report.classes.iter().map(|class| (class.name.as_str(), class.n_images, class.top1)).collect();
        assert_eq!(classes, [("a", 1, Some(1.0)), ("b", 1, Some(0.0)), ("c", 2, Some(0.0))]);
        // exp(3) / (exp(3) + 2), then exp(1) / (exp(1) + 2), then the tie.
        let worst: Vec<(usize, usize, usize)> =
            report.mistakes.iter().map(|mistake| (mistake.image, mistake.label, mistake.predicted)).collect();
        assert_eq!(worst, [(2, 2, 0), (3, 2, 1), (1, 1, 0)]);
        let probability = report.mistakes[0].probability;
        assert!((probability - 3f64.exp() / (3f64.exp() + 2.0)).abs() < 1e-12, "{probability}");
    }

    #[test]
    fn a_picture_is_what_the_network_sees() {
        let normalization = Normalization { mean: vec![0.5], std: vec![0.25] };
        let small = Pixels { values: vec![-2.0, 2.0, 0.0, f32::NAN], shape: [1, 2, 2] };
        assert_eq!(small.picture(&normalization).pixels, [0, 255, 128, 0]);
        let large = Pixels { values: vec![0.0; 3 * 200 * 100], shape: [3, 200, 100] };
        let picture = large.picture(&Normalization { mean: vec![1.0, 0.0, 0.0], std: vec![1.0; 3] });
        assert_eq!((picture.dimensions.width, picture.dimensions.height), (33, 66));
        assert_eq!(picture.pixels[..3], [255, 0, 0]);
    }
}
