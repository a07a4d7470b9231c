//! The graph of a file: what both dialects have in common.

use std::collections::BTreeMap;

use lowbit_core::graph::{Graph, Node, NodeId, Op, Shape};
use lowbit_runtime::{Norm, PackedNetwork, Quantizer};

use super::integers::{Opset, Steps};
use super::proto::{Attribute, DataType, Dimension, GraphProto, NodeProto, Tensor, ValueInfo};
use super::quant::cuts_negative;

/// How a file says that a value has few bits.
pub enum Dialect {
    /// By integers and operators of ONNX.
    Integers {
        /// Which operators there are.
        opset: Opset,
        /// How the thresholds of each layer's input lie, by path.
        steps: BTreeMap<String, Steps>,
    },
    /// By operators of QONNX.
    Quant,
}

pub struct Writer<'a> {
    pub network: &'a PackedNetwork,
    pub dialect: Dialect,
    pub graph: GraphProto,
    /// Of the output of each node, by index.
    readers: Vec<Vec<NodeId>>,
    /// Values on a grid: the node, the quantizer and the name.
    inputs: Vec<(NodeId, &'a Quantizer, String)>,
}

/// What a normalization does to each channel: `factor x + offset`.
pub struct Affine {
    pub factor: Vec<f32>,
    pub offset: Vec<f32>,
}

impl Affine {
    pub fn of(norm: &Norm) -> Self {
        let channels = norm.offset.iter().zip(&norm.mean).zip(&norm.factor);
        let offset = channels.map(|((offset, mean), factor)| offset - mean * factor).collect();
        Self { factor: norm.factor.clone(), offset }
    }
}

impl<'a> Writer<'a> {
    pub fn new(network: &'a PackedNetwork, dialect: Dialect) -> Self {
        let graph = GraphProto { name: "network".into(), ..GraphProto::default() };
        Self { network, dialect, graph, readers: network.graph.readers(), inputs: Vec::new() }
    }

    /// The whole graph.
    pub fn graph(mut self) -> GraphProto {
        let graph = &self.network.graph;
        let folded = match self.dialect {
            Dialect::Integers { .. } => folded(graph, &self.readers),
            Dialect::Quant => vec![None; graph.nodes().len()],
        };
        for (id, node) in graph.entries() {
            if folded.contains(&Some(id)) || self.is_part_of_quantizers(id) {
                continue;
            }
            match node.op {
                Op::Input(_) => {}
                Op::Conv(_) | Op::Linear(_) => self.layer(id, node, folded[id.index()]),
                _ => self.plain(id, node),
            }
            let written = folded[id.index()].unwrap_or(id);
            if !matches!(node.op, Op::Input(_)) && written != graph.output() {
                self.shaped(&self.name(written), &one_image(graph.shape(written)));
            }
        }
        self.graph.input.push(self.outer("image", graph.shape(graph.input())));
        self.graph.output.push(self.outer("logits", graph.shape(graph.output())));
        self.graph
    }

    /// Whether a node is a ReLU that nothing reads as it is: in QONNX, quantizers without a sign have one of their own.
    pub fn is_part_of_quantizers(&self, id: NodeId) -> bool {
        let graph = &self.network.graph;
        let is_cut = |reader: &NodeId| {
            let layer = self.network.layers.get(&graph.node(*reader).path);
            layer.and_then(|layer| layer.input.as_ref()).is_some_and(cuts_negative)
        };
        matches!(self.dialect, Dialect::Quant)
            && graph.node(id).op == Op::Relu
            && id != graph.output()
            && self.readers[id.index()].iter().all(is_cut)
    }

    /// What goes into the network or comes out of it.
    fn outer(&self, name: &str, shape: Shape) -> ValueInfo {
        let mut sides: Vec<Dimension> = one_image(shape).into_iter().map(Dimension::of).collect();
        if let Dialect::Integers { .. } = self.dialect {
            sides[0] = Dimension::named("batch");
        }
        ValueInfo::floats(name, sides)
    }

    /// The name of a node's values.
    pub fn name(&self, id: NodeId) -> String {
        match id {
            id if id == self.network.graph.output() => "logits".into(),
            id if id == self.network.graph.input() => "image".into(),
            id => format!("v{}", id.index()),
        }
    }

    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<Attribute>) {
        self.node_of("", op, inputs, output, attributes);
    }

    /// A node whose operator is of another domain than ONNX's own.
    pub fn node_of(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<Attribute>,
    ) {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(ToString::to_string).collect(),
            output: vec![output.into()],
            name: format!("{op}:{output}"),
            op_type: op.into(),
            domain: domain.into(),
            attribute: attributes,
        });
    }

    /// Says what shape a value has, where ONNX's own inference of shapes does not find it: it ends at an operator of another domain.
    pub fn shaped(&mut self, name: &str, shape: &[usize]) {
        if let Dialect::Quant = self.dialect {
            let sides = shape.iter().map(|side| Dimension::of(*side)).collect();
            self.graph.value_info.push(ValueInfo::floats(name, sides));
        }
    }

    pub fn tensor(&mut self, tensor: Tensor) -> String {
        let name = tensor.name.clone();
        self.graph.initializer.push(tensor);
        name
    }

    pub fn floats(&mut self, name: String, shape: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(Tensor::new(&name, DataType::Float, shape, bytes))
    }

    /// The values of a node on the grid of a quantizer, written once for all layers that have the same.
    fn quantized(&mut self, id: NodeId, quantizer: &'a Quantizer, path: &str) -> String {
        let known = self.inputs.iter().find(|(node, other, _)| *node == id && *other == quantizer);
        if let Some((.., name)) = known {
            return name.clone();
        }
        let output = match &self.dialect {
            Dialect::Integers { steps, .. } => {
                let steps = steps[path];
                self.integer_input(id, quantizer, steps, path)
            }
            Dialect::Quant => self.quant_input(id, quantizer, path),
        };
        self.inputs.push((id, quantizer, output.clone()));
        output
    }

    /// A convolution or a linear layer, with the normalization after it.
    fn layer(&mut self, id: NodeId, node: &Node, norm: Option<NodeId>) {
        let (network, path) = (self.network, node.path.clone());
        let layer = &network.layers[&path];
        let input = match &layer.input {
            Some(quantizer) => self.quantized(node.inputs[0], quantizer, &path),
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
                    // The default, which some readers ask for all the same.
                    Attribute::ints("dilations", vec![1; 2]),
                    Attribute::int("group", side(conv.groups)),
                ];
                (conv.weight_shape().to_vec(), attributes, "Conv")
            }
            Op::Linear(linear) => {
                (vec![linear.out_features, linear.in_features], vec![Attribute::int("transB", 1)], "Gemm")
            }
            _ => unreachable!("invariant: the node is a layer"),
        };
        let weight = match self.dialect {
            Dialect::Integers { opset, .. } => {
                self.integer_weight(opset, &path, layer, &shape, affine.as_ref())
            }
            Dialect::Quant => self.quant_weight(&path, layer, &shape),
        };
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
    }

    /// An operation that is no layer.
    fn plain(&mut self, id: NodeId, node: &Node) {
        let network = self.network;
        let output = self.name(id);
        let inputs: Vec<String> = node.inputs.iter().map(|input| self.name(*input)).collect();
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        match node.op {
            Op::Norm { channels } => match self.dialect {
                Dialect::Integers { .. } => {
                    let Affine { factor, offset } = Affine::of(&network.norms[&node.path]);
                    let shape = channel_shape(&network.graph, id, channels);
                    let factor = self.floats(format!("{}.factor", node.path), &shape, &factor);
                    let offset = self.floats(format!("{}.offset", node.path), &shape, &offset);
                    let scaled = format!("{output}.scaled");
                    self.node("Mul", &[inputs[0], &factor], &scaled, Vec::new());
                    self.node("Add", &[&scaled, &offset], &output, Vec::new());
                }
                Dialect::Quant => self.batch_norm(node, inputs[0], &output),
            },
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
                self.shaped(&means, &[1, network.graph.shape(id).channels(), 1, 1]);
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

/// The shape of a node's values, of one image.
pub fn one_image(shape: Shape) -> Vec<usize> {
    match shape {
        Shape::Map([channels, height, width]) => vec![1, channels, height, width],
        Shape::Features(features) => vec![1, features],
    }
}

/// The normalization after each layer, by index, that is part of it: those whose layer nothing else reads.
fn folded(graph: &Graph, readers: &[Vec<NodeId>]) -> Vec<Option<NodeId>> {
    let mut folded = vec![None; graph.nodes().len()];
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
    folded
}
