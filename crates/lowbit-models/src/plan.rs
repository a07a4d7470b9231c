//! The resolved precision of every layer, to be printed, stored and checked: what was asked for is what runs.

use std::fmt;

use lowbit_core::graph::{LayerRole, Linear, Node, Op, Shape};
use lowbit_core::{Granularity, Graph, Precision};
use lowbit_quantizers::{LayerQuantization, Method, QuantizationPolicy};
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// The layers of a network in forward order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Every convolution and linear layer.
    pub layers: Vec<LayerPlan>,
    /// Parameters of all BatchNorm layers, in full precision; export folds them into the layers.
    pub n_norm_parameters: usize,
    /// Learned factors, as that of the logits, in full precision.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_scales: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
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
    /// Quantization method of both operands, or of the weights if the input has another; `None` if nothing is quantized.
    pub method: Option<Method>,
    /// Quantization method of the input activations, if the weights have another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub act_method: Option<Method>,
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
struct LayerShape {
    path: String,
    role: LayerRole,
    shape: Vec<usize>,
    n_biases: usize,
    /// Places of the output that the weights are applied at.
    n_places: usize,
}

impl LayerShape {
    /// The layer at `node`, if it has weights to quantize.
    fn of(node: &Node, output: Shape) -> Option<Self> {
        let (role, shape, bias) = match node.op {
            Op::Conv(conv) => (conv.role, conv.weight_shape().to_vec(), conv.bias),
            Op::Linear(Linear { in_features, out_features, bias, role }) => {
                (role, vec![out_features, in_features], bias)
            }
            _ => return None,
        };
        let n_biases = if bias { output.channels() } else { 0 };
        Some(Self { path: node.path.clone(), role, shape, n_biases, n_places: output.places() })
    }
}

impl Plan {
    /// The plan of the layers of `graph`, quantized as `policy` says.
    ///
    /// # Errors
    /// [`ModelError`] if a layer cannot be quantized as asked, or a pattern of the policy matches no layer.
    pub fn new(graph: &Graph, policy: &QuantizationPolicy) -> Result<Self, ModelError> {
        let mut plan = Self::default();
        for (id, node) in graph.entries() {
            if let Op::Norm { channels } = node.op {
                plan.n_norm_parameters += 2 * channels;
            }
            if node.op == Op::Scale {
                plan.n_scales += 1;
            }
            let Some(shape) = LayerShape::of(node, graph.shape(id)) else { continue };
            let quantization = policy.resolve(&shape.path, shape.role);
            match quantization.check() {
                Ok(()) => plan.layers.push(LayerPlan::new(shape, quantization)),
                Err(source) => return Err(ModelError::Quantizer { layer: shape.path, source }),
            }
        }
        let layers: Vec<String> = plan.layers.iter().map(|layer| layer.path.clone()).collect();
        match policy.unmatched_patterns(&layers).first() {
            Some(pattern) => Err(ModelError::UnmatchedPattern { pattern: (*pattern).into(), layers }),
            None => Ok(plan),
        }
    }

    /// All parameters, those of BatchNorm included.
    pub fn n_parameters(&self) -> usize {
        let all = self.layers.iter().map(|layer| layer.n_parameters);
        all.chain([self.n_norm_parameters, self.n_scales]).fold(0, usize::saturating_add)
    }

    /// Bytes of all packed layers and of BatchNorm's parameters.
    pub fn packed_bytes(&self) -> u64 {
        let others = [self.n_norm_parameters, self.n_scales].map(float_bytes);
        self.layers.iter().map(|layer| layer.packed_bytes).chain(others).fold(0, u64::saturating_add)
    }

    /// Multiply-accumulates for one image.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(|layer| layer.macs).fold(0, u64::saturating_add)
    }

    /// Bit operations for one image.
    pub fn bit_operations(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bit_operations).fold(0, u64::saturating_add)
    }
}

/// Bytes of `n` numbers in full precision. (A plan that is read from a file may say any number.)
fn float_bytes(n: usize) -> u64 {
    (n as u64).saturating_mul(4)
}

impl LayerPlan {
    fn new(layer: LayerShape, quantization: LayerQuantization) -> Self {
        let LayerShape { path, role, shape, n_biases, n_places } = layer;
        let LayerQuantization { weight_bits, act_bits, weight_granularity, .. } = quantization;
        let methods = quantization.methods();
        let n_weights: usize = shape.iter().product();
        let macs = (n_weights as u64).saturating_mul(n_places as u64);
        let n_scales = match (weight_bits, weight_granularity) {
            (Precision::FullPrecision, _) => 0,
            (_, Granularity::PerTensor) => 1,
            (_, Granularity::PerChannel) => shape[0],
        };
        let weight_bytes = (n_weights as u64).saturating_mul(weight_bits.stored_bits().into()).div_ceil(8);
        Self {
            path,
            role,
            shape,
            n_parameters: n_weights + n_biases,
            weight_bits,
            act_bits,
            method: methods.first().copied(),
            act_method: methods.get(1).copied(),
            weight_granularity,
            macs,
            bit_operations: macs
                .saturating_mul(weight_bits.stored_bits().into())
                .saturating_mul(act_bits.stored_bits().into()),
            packed_bytes: weight_bytes.saturating_add(float_bytes(n_scales + n_biases)),
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
            let methods = layer.method.into_iter().chain(layer.act_method);
            let names: Vec<&str> = methods.map(Method::name).collect();
            let method = if names.is_empty() { "-".into() } else { names.join("+") };
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
            bytes(float_bytes(self.n_norm_parameters))
        )?;
        if self.n_scales > 0 {
            writeln!(
                f,
                "{:<path_width$} {:<shape_width$} {:>8} {:>4} {:>4} {:<9} {:>9} {:>9}",
                "scales",
                "",
                self.n_scales,
                "fp32",
                "fp32",
                "-",
                "",
                bytes(float_bytes(self.n_scales))
            )?;
        }
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

/// A number of things with three digits, as in "9.44M".
pub fn si(n: u64) -> String {
    scaled(n as f64, 1000.0, &["", "k", "M", "G", "T", "P"])
}

/// A number of bytes with three digits, as in "4.50 KiB".
pub fn bytes(n: u64) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by fuzzing: a sum was too large.
    #[test]
    fn a_plan_with_any_numbers_is_shown() {
        let plan = Plan { layers: Vec::new(), n_norm_parameters: 6_666_666_666_666_666_666, n_scales: 0 };
        assert!(plan.to_string().ends_with("x smaller than in full precision"));
        let network: Graph = {
            let config = crate::ModelConfig::new(crate::Family::PreResNet, 8);
            config.graph(crate::InputShape { channels: 1, height: 8, width: 8 }, 10).unwrap()
        };
        let full = LayerQuantization::new(Method::DoReFa, Precision::FullPrecision, Precision::FullPrecision);
        let mut plan = Plan::new(&network, &QuantizationPolicy::new(full)).unwrap();
        for layer in &mut plan.layers {
            (layer.n_parameters, layer.macs) = (usize::MAX, u64::MAX);
            (layer.bit_operations, layer.packed_bytes) = (u64::MAX, u64::MAX);
        }
        (plan.n_norm_parameters, plan.n_scales) = (usize::MAX, usize::MAX);
        assert!(plan.to_string().contains("packed 4.0x smaller"), "{plan}");
        assert_eq!((plan.macs(), plan.n_parameters()), (u64::MAX, usize::MAX));
    }
}
