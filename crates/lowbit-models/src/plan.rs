//! The resolved precision of every layer, to be printed, stored and checked: what was asked for is what runs.

use std::fmt;

use lowbit_core::{Granularity, Precision};
use lowbit_quantizers::{LayerQuantization, LayerRole, Method, QuantConv2dConfig, QuantizationPolicy};
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// The layers of a network in forward order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Every convolution and linear layer.
    pub layers: Vec<LayerPlan>,
    /// Parameters of all BatchNorm layers, in full precision; export folds them into the layers.
    pub n_norm_parameters: usize,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerPlan {
    /// Path of the layer in its network.
    pub path: String,
    /// The part it plays.
    pub role: LayerRole,
    /// Shape of the weights: `[out_channels, in_channels / groups, kernel height, kernel width]` or
    /// `[out_features, in_features]`.
    pub shape: Vec<usize>,
    /// Number of weights and biases.
    pub n_parameters: usize,
    /// Precision of the weights.
    pub weight_bits: Precision,
    /// Precision of the input activations.
    pub act_bits: Precision,
    /// Quantization method, `None` if nothing is quantized.
    pub method: Option<Method>,
    /// Granularity of the weight scales.
    pub weight_granularity: Granularity,
    /// Multiply-accumulates for one image.
    pub macs: u64,
    /// Bit operations for one image: multiply-accumulates x weight bits x activation bits, full precision as 32.
    pub bit_operations: u64,
    /// Bytes of the packed weights (whole bytes), their scales and the biases (4 bytes each).
    pub packed_bytes: u64,
}

/// One layer, whatever its precision.
pub(crate) struct LayerShape {
    pub(crate) path: String,
    pub(crate) role: LayerRole,
    shape: Vec<usize>,
    n_biases: usize,
    /// Places of the output image that the weights are applied at.
    n_positions: usize,
}

/// What a network is made of, in forward order.
#[derive(Default)]
pub(crate) struct NetworkShapes {
    pub(crate) layers: Vec<LayerShape>,
    n_norm_parameters: usize,
}

impl NetworkShapes {
    /// A convolution of an input of `size` (height and width).
    pub(crate) fn push_conv(
        &mut self,
        path: impl Into<String>,
        role: LayerRole,
        config: QuantConv2dConfig,
        size: [usize; 2],
    ) {
        let QuantConv2dConfig { in_channels, out_channels, kernel_size, stride, groups, .. } = config;
        self.layers.push(LayerShape {
            path: path.into(),
            role,
            shape: vec![out_channels, in_channels / groups, kernel_size, kernel_size],
            n_biases: 0,
            n_positions: size.map(|side| side.div_ceil(stride)).iter().product(),
        });
    }

    /// The classifier.
    pub(crate) fn push_linear(&mut self, path: &str, in_features: usize, out_features: usize) {
        self.layers.push(LayerShape {
            path: path.into(),
            role: LayerRole::Last,
            shape: vec![out_features, in_features],
            n_biases: out_features,
            n_positions: 1,
        });
    }

    /// A BatchNorm.
    pub(crate) fn push_norm(&mut self, channels: usize) {
        self.n_norm_parameters += 2 * channels;
    }
}

impl Plan {
    /// The plan of layers of these `shapes`, quantized as `policy` says.
    pub(crate) fn new(shapes: NetworkShapes, policy: &QuantizationPolicy) -> Result<Self, ModelError> {
        let layer = |shape: LayerShape| {
            let quantization = policy.resolve(&shape.path, shape.role);
            match quantization.check() {
                Ok(()) => Ok(LayerPlan::new(shape, quantization)),
                Err(source) => Err(ModelError::Quantizer { layer: shape.path, source }),
            }
        };
        let layers = shapes.layers.into_iter().map(layer).collect::<Result<_, _>>()?;
        Ok(Self { layers, n_norm_parameters: shapes.n_norm_parameters })
    }

    /// All parameters, those of BatchNorm included.
    pub fn n_parameters(&self) -> usize {
        self.layers.iter().map(|layer| layer.n_parameters).sum::<usize>() + self.n_norm_parameters
    }

    /// Bytes of all packed layers and of BatchNorm's parameters.
    pub fn packed_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.packed_bytes).sum::<u64>() + 4 * self.n_norm_parameters as u64
    }

    /// The fewest values of a channel that a BatchNorm layer sees of one image: the places of the smallest feature map. In training
    /// it normalizes by as many times the batch: by one value alone, whatever it is becomes zero.
    pub fn fewest_values_per_channel(&self) -> u64 {
        let convs = self.layers.iter().filter(|layer| layer.shape.len() == 4);
        let places = convs.map(|conv| conv.macs / conv.shape.iter().product::<usize>().max(1) as u64);
        places.min().unwrap_or(1)
    }

    /// Multiply-accumulates for one image.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(|layer| layer.macs).sum()
    }

    /// Bit operations for one image.
    pub fn bit_operations(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bit_operations).sum()
    }
}

impl LayerPlan {
    fn new(layer: LayerShape, quantization: LayerQuantization) -> Self {
        let LayerShape { path, role, shape, n_biases, n_positions } = layer;
        let LayerQuantization { method, weight_bits, act_bits, weight_granularity } = quantization;
        let n_weights: usize = shape.iter().product();
        let macs = n_weights as u64 * n_positions as u64;
        let n_scales = match (weight_bits, weight_granularity) {
            (Precision::FullPrecision, _) => 0,
            (_, Granularity::PerTensor) => 1,
            (_, Granularity::PerChannel) => shape[0],
        };
        let weight_bytes = (n_weights as u64 * u64::from(weight_bits.stored_bits())).div_ceil(8);
        let quantized = weight_bits != Precision::FullPrecision || act_bits != Precision::FullPrecision;
        Self {
            path,
            role,
            shape,
            n_parameters: n_weights + n_biases,
            weight_bits,
            act_bits,
            method: quantized.then_some(method),
            weight_granularity,
            macs,
            bit_operations: macs * u64::from(weight_bits.stored_bits()) * u64::from(act_bits.stored_bits()),
            packed_bytes: weight_bytes + 4 * (n_scales + n_biases) as u64,
        }
    }
}

/// A table of 80 columns, more where a path or a shape is longer than usual.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape =
            |layer: &LayerPlan| layer.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x");
        let path_width = self.layers.iter().map(|layer| layer.path.len()).fold(19, usize::max);
        let shape_width = self.layers.iter().map(|layer| shape(layer).len()).fold(11, usize::max);
        writeln!(
            f,
            "{:<path_width$} {:<shape_width$} {:>8} {:>4} {:>4} {:<9} {:>9} {:>9}",
            "layer", "weights", "params", "W", "A", "method", "bit-ops", "packed"
        )?;
        for layer in &self.layers {
            let method = layer.method.map_or("-".into(), |method| method.to_string());
            let per_channel = if layer.weight_granularity == Granularity::PerChannel { "/ch" } else { "" };
            writeln!(
                f,
                "{:<path_width$} {:<shape_width$} {:>8} {:>4} {:>4} {:<9} {:>9} {:>9}",
                layer.path,
                shape(layer),
                layer.n_parameters,
                layer.weight_bits,
                layer.act_bits,
                method + per_channel,
                si(layer.bit_operations),
                bytes(layer.packed_bytes),
            )?;
        }
        let norms = 4 * self.n_norm_parameters as u64;
        let total_width = path_width + 1 + shape_width;
        writeln!(
            f,
            "{:<path_width$} {:<shape_width$} {:>8} {:>4} {:>4} {:<9} {:>9} {:>9}",
            "BatchNorm",
            "",
            self.n_norm_parameters,
            "fp32",
            "fp32",
            "-",
            "",
            bytes(norms)
        )?;
        writeln!(
            f,
            "{:<total_width$} {:>8} {:>4} {:>4} {:<9} {:>9} {:>9}",
            "total",
            self.n_parameters(),
            "",
            "",
            "",
            si(self.bit_operations()),
            bytes(self.packed_bytes()),
        )?;
        let ratio = 4.0 * self.n_parameters() as f64 / self.packed_bytes() as f64;
        write!(f, "packed {ratio:.1}x smaller than in full precision")
    }
}

fn si(n: u64) -> String {
    scaled(n as f64, 1000.0, &["", "k", "M", "G", "T", "P"])
}

fn bytes(n: u64) -> String {
    scaled(n as f64, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB"])
}

/// Three significant digits and the largest unit that leaves at least 1.
fn scaled(mut value: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v < 10.0 => 2,
        v if v < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{}", units[unit])
}
