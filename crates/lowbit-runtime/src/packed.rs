//! A trained network as data: its graph, the codes of its weights, and what its quantizers and normalizations learned.

use std::collections::BTreeMap;

use lowbit_core::graph::{Conv, Graph, Linear, Node, Op, Shape};
use lowbit_core::{CodeRange, IntegerGrid, PackedCodes};
use lowbit_cpu::norm::{Affine, NormParameters};
use serde::{Deserialize, Serialize};

use crate::PackedError;

/// Most values that the output of an operation may have, for one image: the largest of ResNet for images of 512x512 has a quarter.
pub const MAX_VALUES: usize = 1 << 24;

/// Largest shorter side that images are brought to.
const MAX_RESIZE: usize = 8192;

/// Largest side of a window.
const MAX_KERNEL: usize = 255;

/// A trained network: what a packed file holds, what exporters write, and what a [`Model`](crate::Model) runs.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedNetwork {
    /// Its operations.
    pub graph: Graph,
    /// Convolutions and linear layers by path.
    pub layers: BTreeMap<String, Layer>,
    /// Normalizations by path.
    pub norms: BTreeMap<String, Norm>,
    /// Learned factors by path.
    pub scales: BTreeMap<String, f32>,
    /// What its images are and what its outputs mean.
    pub info: Info,
}

/// A convolution or a linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// Weights, `[out_channels, in_channels / groups, kernel, kernel]` or `[out_features, in_features]`, in row-major order.
    pub weight: Weight,
    /// What is added to each output channel.
    pub bias: Option<Vec<f32>>,
    /// The quantizer of the input; `None` in full precision.
    pub input: Option<Quantizer>,
}

/// Weights of a layer.
#[derive(Clone, Debug, PartialEq)]
pub enum Weight {
    /// In single precision.
    Full(Vec<f32>),
    /// As codes of a grid, in its bits, with one unit or one for each output channel.
    Codes(IntegerGrid, PackedCodes),
}

/// The quantizer of a layer's input.
///
/// The level of a value is how many thresholds it has reached, and code number `level` of the grid is its code. Any method whose codes do not
/// fall while values rise is described exactly, with every rounding of its formula.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantizer {
    /// What its codes are worth.
    pub grid: IntegerGrid,
    /// The lowest value of every level but the first, ascending; infinite for a level that is never reached.
    pub thresholds: Vec<f32>,
}

impl Quantizer {
    /// The level of a value.
    pub fn level(&self, value: f32) -> usize {
        self.thresholds.partition_point(|threshold| *threshold <= value)
    }

    fn check(&self) -> Result<(), String> {
        let (n, expected) = (self.thresholds.len(), self.grid.n_levels() - 1);
        if n != expected {
            return Err(format!("its quantizer has {n} thresholds, expected {expected}"));
        }
        if !self.thresholds.is_sorted() || self.thresholds.iter().any(|threshold| threshold.is_nan()) {
            return Err("the thresholds of its quantizer do not ascend".into());
        }
        let CodeRange { q_min, q_max } = self.grid.range();
        if q_min < 0 || q_max > i32::from(u8::MAX) {
            return Err(format!(
                "its quantizer has codes from {q_min} to {q_max}, expected 0 to 255 at most"
            ));
        }
        match self.grid.units().len() {
            1 => Ok(()),
            n => Err(format!("its quantizer has {n} units, expected 1")),
        }
    }
}

/// A normalization with fixed statistics, for each channel: `(x - mean) * factor + offset`, in single precision and in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// Subtracted.
    pub mean: Vec<f32>,
    /// What the distance from the mean is multiplied by.
    pub factor: Vec<f32>,
    /// Added at last.
    pub offset: Vec<f32>,
}

/// A batch normalization as it is trained, for each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchNorm {
    /// Learned factors.
    pub gamma: Vec<f32>,
    /// Learned offsets.
    pub beta: Vec<f32>,
    /// Running means.
    pub mean: Vec<f32>,
    /// Running variances.
    pub variance: Vec<f32>,
    /// Added to the variance.
    pub epsilon: f32,
}

impl From<BatchNorm> for Norm {
    /// The factor is `gamma / sqrt(variance + epsilon)` with the roundings of the training's evaluation.
    ///
    /// # Panics
    /// If the lengths differ.
    fn from(BatchNorm { gamma, beta, mean, variance, epsilon }: BatchNorm) -> Self {
        let n = gamma.len();
        let lengths = [beta.len(), mean.len(), variance.len()];
        assert_eq!(lengths, [n; 3], "offsets, means and variances of {n} channels");
        let statistics = [&mean[..], &variance].concat();
        let parameters = NormParameters { gamma: &gamma, beta: &beta, statistics: &statistics, epsilon };
        let factor = (0..n).map(|channel| parameters.affine(channel).factor).collect();
        Self { mean, factor, offset: beta }
    }
}

/// What the images of a network are, and what its outputs mean.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Info {
    /// Name of the network, as a recipe has it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Names of the classes, in the order of the outputs; empty if they have none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// Mean of each channel of the pixels from 0 to 1 that is subtracted from it; empty for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mean: Vec<f32>,
    /// What the difference is divided by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub std: Vec<f32>,
    /// To how many pixels the shorter side of an image is brought before the center is cut out; `None` if that is the size of the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resize: Option<usize>,
    /// Where the network comes from: whatever the program that exports it says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origin: BTreeMap<String, String>,
}

impl PackedNetwork {
    /// The layer at `path`.
    pub(crate) fn layer(&self, node: &Node) -> &Layer {
        self.layers.get(&node.path).expect("invariant: a network that is checked has all layers of its graph")
    }

    /// The same network in single precision: weights are what their codes are worth, and inputs are not quantized. To compare with.
    pub fn in_full_precision(&self) -> Self {
        let mut network = self.clone();
        for layer in network.layers.values_mut() {
            layer.weight = Weight::Full(layer.values());
            layer.input = None;
        }
        network
    }

    /// Shape of one image, `[channels, height, width]`.
    pub fn input_shape(&self) -> [usize; 3] {
        match self.graph.node(self.graph.input()).op {
            Op::Input(shape) => shape,
            _ => unreachable!("invariant: the first node of a graph is its input"),
        }
    }

    /// Output channels of the layer at `path`; 0 if there is none.
    pub fn rows(&self, path: &str) -> usize {
        let node = self.graph.nodes().iter().find(|node| node.path == path);
        node.and_then(|node| weight_shape(node).first().copied()).unwrap_or_default()
    }

    /// Number of outputs.
    pub fn n_outputs(&self) -> usize {
        self.graph.shape(self.graph.output()).channels()
    }

    /// Checks that every operation has what it needs, in the right sizes, and that all numbers are finite.
    ///
    /// # Errors
    /// [`PackedError::Layer`] naming the first that has not.
    pub fn check(&self) -> Result<(), PackedError> {
        let (mut n_layers, mut n_norms, mut n_scales) = (0, 0, 0);
        for (id, node) in self.graph.entries() {
            let wrong = |problem: String| PackedError::Layer { path: node.path.clone(), problem };
            let n_values = self.graph.shape(id).channels().checked_mul(self.graph.shape(id).places());
            if n_values.is_none_or(|n| n > MAX_VALUES) {
                let shape = self.graph.shape(id);
                let node = id.index();
                return Err(PackedError::TooLarge { node, problem: format!("its output is {shape:?}") });
            }
            let too_large = |problem: String| PackedError::TooLarge { node: id.index(), problem };
            match node.op {
                Op::MaxPool { kernel, stride, .. } if kernel.max(stride) > MAX_KERNEL => {
                    return Err(too_large(format!(
                        "its window is {kernel}x{kernel} every {stride} values, expected at most {MAX_KERNEL}"
                    )));
                }
                Op::Conv(Conv { stride, .. }) if stride > MAX_KERNEL => {
                    return Err(too_large(format!("its stride is {stride}, expected at most {MAX_KERNEL}")));
                }
                Op::Conv(Conv { out_channels, kernel, padding, in_channels, .. }) => {
                    let [height, width] = match self.graph.shape(node.inputs[0]) {
                        Shape::Map([_, height, width]) => [height, width].map(|side| side + 2 * padding),
                        Shape::Features(_) => [1, 1],
                    };
                    let padded = [height, width].iter().try_fold(in_channels, |n, side| n.checked_mul(*side));
                    if kernel > MAX_KERNEL || padded.is_none_or(|n| n > MAX_VALUES) {
                        let problem = format!(
                            "a window of {kernel}x{kernel} over {in_channels}x{height}x{width} values"
                        );
                        return Err(too_large(problem));
                    }
                    n_layers += 1;
                    let layer =
                        self.layers.get(&node.path).ok_or_else(|| wrong("it has no weights".into()))?;
                    layer.check(weight_shape(node), out_channels).map_err(wrong)?;
                }
                Op::Linear(Linear { out_features, .. }) => {
                    n_layers += 1;
                    let layer =
                        self.layers.get(&node.path).ok_or_else(|| wrong("it has no weights".into()))?;
                    layer.check(weight_shape(node), out_features).map_err(wrong)?;
                }
                Op::Norm { channels } => {
                    n_norms += 1;
                    let norm =
                        self.norms.get(&node.path).ok_or_else(|| wrong("it has no statistics".into()))?;
                    norm.check(channels).map_err(wrong)?;
                }
                Op::Scale => {
                    n_scales += 1;
                    let scale = self.scales.get(&node.path);
                    if !scale.is_some_and(|scale| scale.is_finite()) {
                        return Err(wrong("it has no finite factor".into()));
                    }
                }
                _ => {}
            }
        }
        for (what, n, got) in [
            ("layers", n_layers, self.layers.len()),
            ("normalizations", n_norms, self.norms.len()),
            ("factors", n_scales, self.scales.len()),
        ] {
            if n != got {
                return Err(PackedError::Other(format!("it has {got} {what}, its graph {n}")));
            }
        }
        self.info.check(self.input_shape()[0], self.n_outputs())
    }
}

/// Shape of a layer's weights.
pub(crate) fn weight_shape(node: &Node) -> Vec<usize> {
    match &node.op {
        Op::Conv(conv) => conv.weight_shape().to_vec(),
        Op::Linear(linear) => vec![linear.out_features, linear.in_features],
        _ => Vec::new(),
    }
}

impl Layer {
    fn check(&self, shape: Vec<usize>, n_outputs: usize) -> Result<(), String> {
        match &self.weight {
            Weight::Full(values) => check_numbers("weights", values, shape.iter().product())?,
            Weight::Codes(grid, codes) => {
                let n_units = grid.units().len();
                if n_units != 1 && n_units != n_outputs {
                    return Err(format!("its weights have {n_units} units, expected 1 or {n_outputs}"));
                }
                if codes.shape() != shape {
                    return Err(format!(
                        "its weights have the shape {:?}, expected {shape:?}",
                        codes.shape()
                    ));
                }
                grid.check_packed(codes).map_err(|error| format!("its weights: {error}"))?;
            }
        }
        if let Some(bias) = &self.bias {
            check_numbers("offsets", bias, n_outputs)?;
        }
        self.input.as_ref().map_or(Ok(()), Quantizer::check)
    }

    /// How many weights it has.
    pub fn n_weights(&self) -> usize {
        match &self.weight {
            Weight::Full(values) => values.len(),
            Weight::Codes(_, codes) => codes.shape().iter().product(),
        }
    }

    /// The weights in single precision.
    pub fn values(&self) -> Vec<f32> {
        match &self.weight {
            Weight::Full(values) => values.clone(),
            Weight::Codes(grid, codes) => grid.unpack_values(codes),
        }
    }
}

impl Norm {
    fn check(&self, channels: usize) -> Result<(), String> {
        let Self { mean, factor, offset } = self;
        for (what, numbers) in [("means", mean), ("factors", factor), ("offsets", offset)] {
            check_numbers(what, numbers, channels)?;
        }
        Ok(())
    }

    /// What it does to each channel.
    pub(crate) fn affines(&self) -> Vec<Affine> {
        let Self { mean, factor, offset } = self;
        let channels = mean.iter().zip(factor).zip(offset);
        channels.map(|((mean, factor), offset)| Affine::new(*mean, *factor, *offset)).collect()
    }
}

fn check_numbers(what: &str, numbers: &[f32], expected: usize) -> Result<(), String> {
    if numbers.len() != expected {
        return Err(format!("it has {} {what}, expected {expected}", numbers.len()));
    }
    match numbers.iter().all(|number| number.is_finite()) {
        true => Ok(()),
        false => Err(format!("one of its {what} is not finite")),
    }
}

impl Info {
    fn check(&self, channels: usize, n_outputs: usize) -> Result<(), PackedError> {
        let wrong = |problem: String| Err(PackedError::Other(problem));
        if !self.classes.is_empty() && self.classes.len() != n_outputs {
            return wrong(format!(
                "it has names for {} classes, and {n_outputs} outputs",
                self.classes.len()
            ));
        }
        for (what, numbers) in [("means", &self.mean), ("deviations", &self.std)] {
            if !numbers.is_empty()
                && let Err(problem) = check_numbers(what, numbers, channels)
            {
                return wrong(format!("of its images: {problem}"));
            }
        }
        if let Some(resize) = self.resize.filter(|resize| !(1..=MAX_RESIZE).contains(resize)) {
            return wrong(format!("its images are resized to {resize} pixels, expected 1 to {MAX_RESIZE}"));
        }
        match self.std.iter().all(|std| *std > 0.0) && self.mean.len() == self.std.len() {
            true => Ok(()),
            false => {
                wrong("the deviations of its images are not positive, or not as many as the means".into())
            }
        }
    }
}
