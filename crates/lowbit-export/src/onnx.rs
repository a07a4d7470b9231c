//! ONNX, as ONNX Runtime computes it in integers: weights as integers of few bits, activations between QuantizeLinear and
//! DequantizeLinear.
//!
//! Normalizations are folded into the convolution before them where nothing else reads it. The numbers are those of the network but for
//! roundings of single precision: a value close to a threshold may get another code than in its evaluation.

mod proto;

use lowbit_core::graph::{Graph, Node, NodeId, Op, Shape};
use lowbit_core::{IntegerGrid, PackedCodes};
use lowbit_runtime::{Layer, Norm, PackedNetwork, Quantizer, Weight};
use prost::Message;

use proto::{Attribute, DataType, Entry, GraphProto, ModelProto, NodeProto, OperatorSet, Tensor, ValueInfo};

/// Which version of ONNX's operators a file is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opset {
    /// 13, of 2020: weights in 8 bits each.
    V13,
    /// 21, of 2024: weights in 4 bits where their codes lie from -8 to 7, else in 8.
    V21,
    /// 25, of 2025: weights in 2 bits where their codes lie from -2 to 1, else as 21.
    #[default]
    V25,
}

impl Opset {
    /// Its number, and that of the format's version.
    fn versions(self) -> [i64; 2] {
        match self {
            Self::V13 => [13, 7],
            Self::V21 => [21, 10],
            Self::V25 => [25, 13],
        }
    }
}

/// Why a network has no form in ONNX.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OnnxError {
    /// The codes of an input are not at equal distances.
    #[error(
        "layer {path:?}: the levels of its input are not at equal distances, which QuantizeLinear has no form for: export it as packed"
    )]
    Levels {
        /// Path of the layer.
        path: String,
    },
}

/// The network as the bytes of an ONNX file.
///
/// Its input is `image`, `[batch, channels, height, width]`, its output `logits`, `[batch, outputs]`. Class names, normalization and
/// resizing are in the metadata.
///
/// # Errors
/// [`OnnxError`] if a quantizer has no form in ONNX.
pub fn to_onnx(network: &PackedNetwork, opset: Opset) -> Result<Vec<u8>, OnnxError> {
    let mut writer = Writer { network, opset, graph: GraphProto::default(), codes: Vec::new() };
    writer.write()?;
    let [version, ir_version] = opset.versions();
    let info = &network.info;
    let list = |numbers: &[f32]| numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
    let metadata = [
        ("name", info.name.clone()),
        ("classes", info.classes.join("\n")),
        ("mean", list(&info.mean)),
        ("std", list(&info.std)),
        ("resize", info.resize.map(|resize| resize.to_string()).unwrap_or_default()),
    ];
    let model = ModelProto {
        ir_version,
        producer_name: "lowbit".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(writer.graph),
        opset_import: vec![OperatorSet { domain: String::new(), version }],
        metadata_props: metadata
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| Entry { key: key.into(), value })
            .collect(),
    };
    Ok(model.encode_to_vec())
}

struct Writer<'a> {
    network: &'a PackedNetwork,
    opset: Opset,
    graph: GraphProto,
    /// Values on a grid: the node, the quantizer and the name.
    codes: Vec<(NodeId, &'a Quantizer, String)>,
}

/// What a normalization does to each channel: `factor x + offset`.
struct Affine {
    factor: Vec<f32>,
    offset: Vec<f32>,
}

impl Affine {
    fn of(norm: &Norm) -> Self {
        let channels = norm.offset.iter().zip(&norm.mean).zip(&norm.factor);
        let offset = channels.map(|((offset, mean), factor)| offset - mean * factor).collect();
        Self { factor: norm.factor.clone(), offset }
    }
}

impl<'a> Writer<'a> {
    fn write(&mut self) -> Result<(), OnnxError> {
        let graph = &self.network.graph;
        let readers = graph.readers();
        self.graph.name = "network".into();
        // The normalizations that are part of the layer before them.
        let mut folded: Vec<Option<NodeId>> = vec![None; graph.nodes().len()];
        for (id, node) in graph.entries() {
            let reader = match readers[id.index()].as_slice() {
                [reader] if id != graph.output() => *reader,
                _ => continue,
            };
            let is_norm = matches!(graph.node(reader).op, Op::Norm { .. });
            if matches!(node.op, Op::Conv(_) | Op::Linear(_)) && is_norm {
                folded[id.index()] = Some(reader);
            }
        }
        for (id, node) in graph.entries() {
            if folded.contains(&Some(id)) {
                continue;
            }
            match node.op {
                Op::Input(_) => {}
                Op::Conv(_) | Op::Linear(_) => self.layer(id, node, folded[id.index()])?,
                _ => self.plain(id, node),
            }
        }
        let [channels, height, width] = self.network.input_shape();
        self.graph.input.push(ValueInfo::floats("image", &[channels, height, width]));
        self.graph.output.push(ValueInfo::floats("logits", &[self.network.n_outputs()]));
        Ok(())
    }

    /// The name of a node's values.
    fn name(&self, id: NodeId) -> String {
        match id {
            id if id == self.network.graph.output() => "logits".into(),
            id if id == self.network.graph.input() => "image".into(),
            id => format!("v{}", id.index()),
        }
    }

    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<Attribute>) {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.into()],
            name: format!("{op}:{output}"),
            op_type: op.into(),
            domain: String::new(),
            attribute: attributes,
        });
    }

    fn floats(&mut self, name: String, shape: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.graph.initializer.push(Tensor::new(&name, DataType::Float, shape, bytes));
        name
    }

    /// The values of a node on the grid of a quantizer: QuantizeLinear, Clip, DequantizeLinear.
    fn quantized(&mut self, id: NodeId, quantizer: &'a Quantizer, path: &str) -> Result<String, OnnxError> {
        let known = self.codes.iter().find(|(node, other, _)| *node == id && *other == quantizer);
        if let Some((.., name)) = known {
            return Ok(name.clone());
        }
        let Steps { distance, offset } =
            Steps::of(quantizer).ok_or_else(|| OnnxError::Levels { path: path.into() })?;
        let grid = &quantizer.grid;
        let (zero, last) = (grid.zero_point() as u8, grid.range().q_max as u8);
        let mut input = self.name(id);
        let start = format!("{path}.input");
        if offset != 0.0 {
            let offset = self.floats(format!("{start}.offset"), &[], &[offset]);
            let output = format!("{start}.moved");
            self.node("Sub", &[&input, &offset], &output, Vec::new());
            input = output;
        }
        let byte = |name: String, value: u8| Tensor::new(&name, DataType::Uint8, &[], vec![value]);
        let distance = self.floats(format!("{start}.distance"), &[], &[distance]);
        let scale = self.floats(format!("{start}.scale"), &[], &[grid.scale(0)]);
        let zero_point = format!("{start}.zero_point");
        self.graph.initializer.push(byte(zero_point.clone(), zero));
        let mut codes = format!("{start}.codes");
        self.node("QuantizeLinear", &[&input, &distance, &zero_point], &codes, Vec::new());
        if last < u8::MAX {
            let (least, largest) = (format!("{start}.least"), format!("{start}.largest"));
            self.graph.initializer.push(byte(least.clone(), 0));
            self.graph.initializer.push(byte(largest.clone(), last));
            let clipped = format!("{start}.clipped");
            self.node("Clip", &[&codes, &least, &largest], &clipped, Vec::new());
            codes = clipped;
        }
        let output = format!("{start}.values");
        self.node("DequantizeLinear", &[&codes, &scale, &zero_point], &output, Vec::new());
        self.codes.push((id, quantizer, output.clone()));
        Ok(output)
    }

    /// A convolution or a linear layer, with the normalization after it.
    fn layer(&mut self, id: NodeId, node: &Node, norm: Option<NodeId>) -> Result<(), OnnxError> {
        let (network, path) = (self.network, node.path.clone());
        let layer = &network.layers[&path];
        let input = match &layer.input {
            Some(quantizer) => self.quantized(node.inputs[0], quantizer, &path)?,
            None => self.name(node.inputs[0]),
        };
        let affine = norm.map(|norm| Affine::of(&network.norms[&network.graph.node(norm).path]));
        let (shape, attributes, op) = match &node.op {
            Op::Conv(conv) => {
                let side = |n: usize| n as i64;
                let attributes = vec![
                    Attribute::ints("kernel_shape", [side(conv.kernel); 2].to_vec()),
                    Attribute::ints("strides", [side(conv.stride); 2].to_vec()),
                    Attribute::ints("pads", [side(conv.padding); 4].to_vec()),
                    Attribute::int("group", side(conv.groups)),
                ];
                (conv.weight_shape().to_vec(), attributes, "Conv")
            }
            Op::Linear(linear) => {
                (vec![linear.out_features, linear.in_features], vec![Attribute::int("transB", 1)], "Gemm")
            }
            _ => unreachable!("invariant: the node is a layer"),
        };
        let weight = self.weight(&path, layer, &shape, affine.as_ref());
        let mut inputs = vec![input, weight];
        let bias = match (&layer.bias, &affine) {
            (None, None) => None,
            (Some(bias), None) => Some(bias.clone()),
            (None, Some(affine)) => Some(affine.offset.clone()),
            (Some(bias), Some(Affine { factor, offset })) => {
                Some(bias.iter().zip(factor).zip(offset).map(|((b, f), o)| b * f + o).collect())
            }
        };
        if let Some(bias) = bias {
            inputs.push(self.floats(format!("{path}.bias"), &[bias.len()], &bias));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let output = self.name(norm.unwrap_or(id));
        self.node(op, &inputs, &output, attributes);
        Ok(())
    }

    /// The weights of a layer times the factors of a normalization, in single precision: of codes dequantized.
    fn weight(&mut self, path: &str, layer: &Layer, shape: &[usize], affine: Option<&Affine>) -> String {
        let per_row = shape[1..].iter().product::<usize>();
        let factor = |row: usize| affine.map_or(1.0, |affine| affine.factor[row]);
        if let Weight::Codes(grid, codes) = &layer.weight
            && let Some(codes) = signed_bytes(grid, codes)
        {
            // Scales are positive: the sign of a factor goes to the codes.
            let codes: Vec<i16> = codes
                .iter()
                .enumerate()
                .map(|(i, code)| if factor(i / per_row) < 0.0 { -code } else { *code })
                .collect();
            let scales: Vec<f32> = (0..shape[0])
                .map(|row| grid.scale(if grid.units().len() == 1 { 0 } else { row }) * factor(row).abs())
                .map(|scale| if scale > 0.0 { scale } else { f32::MIN_POSITIVE })
                .collect();
            if codes.iter().all(|code| (-128..=127).contains(code)) {
                let is_alone = affine.is_none() && layer.bias.is_none();
                return self.integers(path, shape, &codes, &scales, !is_alone);
            }
        }
        let values: Vec<f32> =
            layer.values().iter().enumerate().map(|(i, value)| value * factor(i / per_row)).collect();
        self.floats(format!("{path}.weight"), shape, &values)
    }

    /// Integers in as few bits as the version has, cast to 8 bits and dequantized.
    ///
    /// QLinearConv rounds what is added to a sum to a multiple of what one of the sum is worth. With codes of few bits that is much: of a
    /// layer with biases the codes are multiplied by as much as 8 bits hold, and the scales divided.
    fn integers(
        &mut self,
        path: &str,
        shape: &[usize],
        codes: &[i16],
        scales: &[f32],
        has_bias: bool,
    ) -> String {
        let largest = codes.iter().map(|code| code.abs()).max().unwrap_or_default();
        let factor = if has_bias && largest > 0 { (i16::from(i8::MAX) / largest).max(1) } else { 1 };
        let scales: Vec<f32> = scales.iter().map(|scale| scale / f32::from(factor)).collect();
        let fits = |bits: u32| {
            codes.iter().all(|code| (-(1 << (bits - 1))..1 << (bits - 1)).contains(&i32::from(*code)))
        };
        let (data_type, bits) = match self.opset {
            Opset::V25 if fits(2) => (DataType::Int2, 2),
            Opset::V21 | Opset::V25 if fits(4) => (DataType::Int4, 4),
            _ => (DataType::Int8, 8),
        };
        let stored = if bits == 8 { factor } else { 1 };
        let codes: Vec<i16> = codes.iter().map(|code| code * stored).collect();
        let per_byte = 8 / bits;
        let mask = ((1u16 << bits) - 1) as u8;
        let bytes = codes.chunks(per_byte).map(|codes| {
            let place = |(i, code): (usize, &i16)| (*code as u8 & mask) << (bits * i);
            codes.iter().enumerate().map(place).fold(0, |byte, part| byte | part)
        });
        let mut name = format!("{path}.codes");
        self.graph.initializer.push(Tensor::new(&name, data_type, shape, bytes.collect()));
        if bits < 8 {
            let to = |data_type: DataType| vec![Attribute::int("to", data_type as i64)];
            if factor > 1 {
                let (wide, multiplied) = (format!("{path}.wide"), format!("{path}.multiplied"));
                self.node("Cast", &[&name], &wide, to(DataType::Int32));
                let factor_name = format!("{path}.factor");
                let bytes = i32::from(factor).to_le_bytes().to_vec();
                self.graph.initializer.push(Tensor::new(&factor_name, DataType::Int32, &[], bytes));
                self.node("Mul", &[&wide, &factor_name], &multiplied, Vec::new());
                name = multiplied;
            }
            let cast = format!("{path}.bytes");
            self.node("Cast", &[&name], &cast, to(DataType::Int8));
            name = cast;
        }
        let scales = self.floats(format!("{path}.scales"), &[shape[0]], &scales);
        let zeros = format!("{path}.zeros");
        self.graph.initializer.push(Tensor::new(&zeros, DataType::Int8, &[shape[0]], vec![0; shape[0]]));
        let output = format!("{path}.weight");
        self.node("DequantizeLinear", &[&name, &scales, &zeros], &output, vec![Attribute::int("axis", 0)]);
        output
    }

    /// An operation that is no layer.
    fn plain(&mut self, id: NodeId, node: &Node) {
        let network = self.network;
        let output = self.name(id);
        let inputs: Vec<String> = node.inputs.iter().map(|input| self.name(*input)).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        match node.op {
            Op::Norm { channels } => {
                let Affine { factor, offset } = Affine::of(&network.norms[&node.path]);
                let shape = channel_shape(&network.graph, id, channels);
                let factor = self.floats(format!("{}.factor", node.path), &shape, &factor);
                let offset = self.floats(format!("{}.offset", node.path), &shape, &offset);
                let scaled = format!("{output}.scaled");
                self.node("Mul", &[inputs[0], &factor], &scaled, Vec::new());
                self.node("Add", &[&scaled, &offset], &output, Vec::new());
            }
            Op::Relu => self.node("Relu", &inputs, &output, Vec::new()),
            Op::Relu6 => {
                let [least, largest] = [(0.0, "least"), (6.0, "largest")]
                    .map(|(bound, name)| self.floats(format!("{output}.{name}"), &[], &[bound]));
                self.node("Clip", &[inputs[0], &least, &largest], &output, Vec::new());
            }
            Op::Scale => {
                let scale = self.floats(format!("{}.scale", node.path), &[], &[network.scales[&node.path]]);
                self.node("Mul", &[inputs[0], &scale], &output, Vec::new());
            }
            Op::Add => self.node("Add", &inputs, &output, Vec::new()),
            Op::MaxPool { kernel, stride, padding } => {
                let attributes = vec![
                    Attribute::ints("kernel_shape", vec![kernel as i64; 2]),
                    Attribute::ints("strides", vec![stride as i64; 2]),
                    Attribute::ints("pads", vec![padding as i64; 4]),
                ];
                self.node("MaxPool", &inputs, &output, attributes);
            }
            Op::GlobalAvgPool => {
                let means = format!("{output}.means");
                self.node("GlobalAveragePool", &inputs, &means, Vec::new());
                self.node("Flatten", &[&means], &output, vec![Attribute::int("axis", 1)]);
            }
            Op::Flatten => self.node("Flatten", &inputs, &output, vec![Attribute::int("axis", 1)]),
            Op::Input(_) | Op::Conv(_) | Op::Linear(_) => {
                unreachable!("invariant: these are written elsewhere")
            }
        }
    }
}

/// The shape of numbers for each channel, beside the values of a node.
fn channel_shape(graph: &Graph, id: NodeId, channels: usize) -> Vec<usize> {
    match graph.shape(id) {
        Shape::Map(_) => vec![1, channels, 1, 1],
        Shape::Features(_) => vec![1, channels],
    }
}

/// Codes that are integers of 8 bits with their sign, in one byte more.
fn signed_bytes(grid: &IntegerGrid, codes: &PackedCodes) -> Option<Vec<i16>> {
    let bytes = grid.unpack_bytes(codes).filter(|_| grid.zero_point() == 0)?;
    Some(bytes.into_iter().map(|byte| i16::from(byte as i8)).collect())
}

/// How the thresholds of a quantizer lie: `(code - zero point - 1/2) distance + offset`.
struct Steps {
    distance: f32,
    offset: f32,
}

impl Steps {
    /// `None` if they are not at equal distances, or the codes are not all integers from 0 on.
    fn of(quantizer: &Quantizer) -> Option<Self> {
        /// Of a distance, how far a threshold may be off.
        const TOLERANCE: f64 = 1e-3;
        let (grid, thresholds) = (&quantizer.grid, &quantizer.thresholds);
        let n = thresholds.len();
        let are_bytes = grid.range().q_min == 0 && grid.range().q_max as usize == n && n <= 255;
        if !are_bytes || thresholds.iter().any(|threshold| !threshold.is_finite()) {
            return None;
        }
        let zero = f64::from(grid.zero_point());
        let (first, last) = (f64::from(thresholds[0]), f64::from(thresholds[n - 1]));
        // Of one threshold, a grid that begins at zero has it.
        let distance = if n > 1 { (last - first) / (n - 1) as f64 } else { 2.0 * first };
        if distance <= 0.0 {
            return None;
        }
        let offset = first - (0.5 - zero) * distance;
        let is_even = thresholds.iter().enumerate().all(|(i, threshold)| {
            (f64::from(*threshold) - (first + i as f64 * distance)).abs() <= TOLERANCE * distance
        });
        // An offset that is a rounding is none.
        let offset = if offset.abs() <= TOLERANCE * distance { 0.0 } else { offset };
        is_even.then_some(Self { distance: distance as f32, offset: offset as f32 })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use lowbit_core::{BitWidth, CodeSet};
    use lowbit_runtime::samples;

    use super::*;

    fn model(network: &PackedNetwork, opset: Opset) -> ModelProto {
        ModelProto::decode(to_onnx(network, opset).unwrap().as_slice()).unwrap()
    }

    /// Every input is there before it is read, and every name is given once, in all versions.
    #[test]
    fn graphs_are_whole() {
        for (opset, version) in [(Opset::V13, 13), (Opset::V21, 21), (Opset::V25, 25)] {
            let model = model(&samples::small(), opset);
            assert_eq!(model.opset_import[0].version, version);
            let graph = model.graph.unwrap();
            let mut names: HashSet<&str> = HashSet::from(["image"]);
            for tensor in &graph.initializer {
                assert!(names.insert(&tensor.name), "{} twice", tensor.name);
                let n: i64 = tensor.dims.iter().product();
                let bits = match tensor.data_type {
                    1 | 6 => 32,
                    2 | 3 => 8,
                    22 => 4,
                    26 => 2,
                    other => panic!("type {other}"),
                };
                assert_eq!(tensor.raw_data.len() as i64, (n * bits + 7) / 8, "{}", tensor.name);
            }
            for node in &graph.node {
                for input in &node.input {
                    assert!(names.contains(input.as_str()), "{} reads {input}", node.name);
                }
                assert!(names.insert(&node.output[0]), "{} twice", node.output[0]);
            }
            assert!(names.contains("logits"));
        }
    }

    /// A normalization with a negative factor changes the signs of the codes of its channel, as scales are positive.
    #[test]
    fn normalizations_are_folded() {
        let network = samples::small();
        let graph = model(&network, Opset::V13).graph.unwrap();
        let tensor = |name: &str| graph.initializer.iter().find(|tensor| tensor.name == name).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            tensor(name).raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let Weight::Codes(grid, codes) = &network.layers["conv1"].weight else { panic!("it has codes") };
        let Affine { factor, offset } = Affine::of(&network.norms["norm2"]);
        assert!(factor.iter().any(|factor| *factor < 0.0) && factor.iter().any(|factor| *factor > 0.0));
        let (stored, scales) = (&tensor("conv1.codes").raw_data, floats("conv1.scales"));
        for (i, (code, stored)) in grid.unpack(codes).unwrap().iter().zip(stored).enumerate() {
            let channel = i / 45;
            let expected = grid.dequantize(*code, 0) * factor[channel];
            let got = f32::from(*stored as i8) * scales[channel];
            assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{got} {expected}");
        }
        assert_eq!(floats("conv1.bias"), offset);
    }

    #[test]
    fn levels_at_other_distances_are_refused() {
        let mut network = samples::small();
        let quantizer = network.layers.get_mut("conv1").unwrap().input.as_mut().unwrap();
        quantizer.thresholds[1] *= 1.1;
        let error = to_onnx(&network, Opset::V25).unwrap_err();
        assert_eq!(error, OnnxError::Levels { path: "conv1".into() });
        let two = BitWidth::new(2).unwrap();
        let odd = IntegerGrid::new(CodeSet::Uniform { q_min: 0, q_max: 6, stride: 2 }, vec![0.1], 1).unwrap();
        assert_eq!(odd.bits(), two);
        assert!(Steps::of(&Quantizer { grid: odd, thresholds: vec![0.1, 0.3, 0.5] }).is_none());
    }
}
