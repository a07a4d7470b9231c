//! What memory a network takes in training, by its graph: it is known before anything is built.

use lowbit_core::graph::{Graph, NodeId, Op};
use lowbit_core::{BitWidth, Precision};
use lowbit_quantizers::{LayerQuantization, Operand, QuantizationPolicy};

use crate::program::{ConvStep, Program, Step};

/// Bytes of a number.
const FLOAT: u64 = 4;

/// Bytes of an index of a max pool that is not the kernels'.
const INDEX: u64 = 8;

/// As what the input of a convolution is kept for its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// As packed codes, where the input is quantized: on the CPU.
    Codes,
    /// As floats: on GPUs, and where only a part of a layer is quantized.
    Floats,
}

/// An estimate of the memory that a network takes, in bytes for an image of a batch unless it says otherwise.
///
/// It follows what each operation keeps for its gradient, and is about right, not exact: what lies between the operands of an
/// operation and its result is counted for the largest operation alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Kept from the forward pass to the backward pass.
    pub kept: u64,
    /// Taken beside that by the operation that takes most: its operands, its result and the gradients of both.
    pub working: u64,
    /// Taken at most in a forward pass that keeps nothing.
    pub forward: u64,
    /// The largest tensor.
    pub largest: u64,
    /// Weights, biases and parameters of BatchNorm of the whole network, a number.
    pub n_parameters: u64,
}

impl Footprint {
    /// The footprint of the network of `graph` at the precision that `policy` has for its layers.
    ///
    /// `inputs` says as what the inputs of convolutions are kept.
    pub fn new(graph: &Graph, policy: &QuantizationPolicy, inputs: Kept) -> Self {
        let program = Program::new(graph.clone());
        let mut tally = Tally { graph, policy, inputs, is_kept: vec![false; graph.nodes().len()], kept: 0 };
        let mut footprint = Self { n_parameters: n_parameters(graph), ..Self::default() };
        for step in &program.for_features {
            footprint.working = footprint.working.max(tally.keep(step));
        }
        footprint.kept = tally.kept;
        footprint.forward = forward(&program);
        let bytes = graph.entries().map(|(id, _)| values(graph, id) * FLOAT);
        footprint.largest = bytes.max().unwrap_or(0);
        footprint
    }
}

/// Values of the output of a node, for an image.
fn values(graph: &Graph, id: NodeId) -> u64 {
    let shape = graph.shape(id);
    shape.channels() as u64 * shape.places() as u64
}

fn n_parameters(graph: &Graph) -> u64 {
    let parameters = |op: Op| match op {
        Op::Conv(conv) => {
            let biases = if conv.bias { conv.out_channels } else { 0 };
            conv.weight_shape().iter().product::<usize>() + biases
        }
        Op::Linear(linear) => {
            let biases = if linear.bias { linear.out_features } else { 0 };
            linear.in_features * linear.out_features + biases
        }
        Op::Norm { channels } => 2 * channels,
        Op::Scale => 1,
        _ => 0,
    };
    graph.nodes().iter().map(|node| parameters(node.op) as u64).sum()
}

/// The most bytes of an image that are alive in a forward pass for the logits.
fn forward(program: &Program) -> u64 {
    let graph = &program.graph;
    let mut alive = values(graph, graph.input());
    let mut most = alive;
    for step in &program.for_logits {
        let (inputs, outputs) = step.ends();
        let made: u64 = outputs.iter().map(|id| values(graph, *id)).sum();
        // What a normalization makes for the convolutions after it.
        let between = match step {
            Step::Convs { input, .. } => values(graph, input.node),
            _ => 0,
        };
        most = most.max(alive + between + made);
        let read = inputs.iter().filter(|input| input.is_last);
        alive = alive + made - read.map(|input| values(graph, input.node)).sum::<u64>().min(alive);
    }
    most * FLOAT
}

/// What the operations so far keep.
struct Tally<'a> {
    graph: &'a Graph,
    policy: &'a QuantizationPolicy,
    inputs: Kept,
    /// Whether the output of each node is.
    is_kept: Vec<bool>,
    kept: u64,
}

impl Tally<'_> {
    /// Adds what `step` keeps. Returns the bytes that it takes beside.
    fn keep(&mut self, step: &Step) -> u64 {
        let of = |id: NodeId| values(self.graph, id) * FLOAT;
        let (inputs, outputs) = step.ends();
        let read: u64 = inputs.iter().map(|input| of(input.node)).sum();
        let made: u64 = outputs.iter().map(|id| of(*id)).sum();
        match step {
            Step::Convs { input, norm, convs } => {
                let between = of(input.node);
                self.keep_output(input.node, norm.is_some());
                self.keep_inputs(input.node, norm.is_some(), convs);
                read + between + made
            }
            Step::Norm { input, .. } | Step::Linear { input, .. } | Step::Scale { input, .. } => {
                self.keep_output(input.node, true);
                read + made
            }
            Step::ReluOfSum { output, .. } | Step::Plain { op: Op::Relu, output, .. } => {
                self.keep_output(*output, true);
                read + made
            }
            Step::Plain { inputs, op: Op::Relu6, .. } => {
                self.keep_output(inputs[0].node, true);
                read + made
            }
            Step::Plain { inputs, op: Op::MaxPool { .. }, output } => {
                let n_values = values(self.graph, *output);
                self.kept += match self.inputs {
                    // A place in each window is a byte.
                    Kept::Codes => n_values,
                    Kept::Floats => {
                        self.keep_output(inputs[0].node, true);
                        n_values * INDEX
                    }
                };
                read + made
            }
            Step::Plain { .. } => read + made,
        }
    }

    fn keep_output(&mut self, id: NodeId, is_kept: bool) {
        if is_kept && !std::mem::replace(&mut self.is_kept[id.index()], true) {
            self.kept += values(self.graph, id) * FLOAT;
        }
    }

    /// Adds what convolutions keep of their input, which is the output of `node`, or what a normalization makes of it.
    fn keep_inputs(&mut self, node: NodeId, is_normalized: bool, convs: &[ConvStep]) {
        let n_values = values(self.graph, node);
        let quantizations: Vec<LayerQuantization> =
            convs.iter().map(|conv| self.quantization(conv.output)).collect();
        // The input as it is before it is quantized: a quantizer that is not fused with the normalization keeps it, and so
        // does a convolution in full precision.
        let reads_floats = |q: &LayerQuantization| q.act_bits == Precision::FullPrecision;
        let is_fused =
            is_normalized && quantizations.len() == 1 && !quantizations[0].act_method.sees_every_batch();
        let needs_input = quantizations.iter().any(reads_floats) || !is_fused;
        match is_normalized {
            true if needs_input => self.kept += n_values * FLOAT,
            true => {}
            false => self.keep_output(node, true),
        }
        for (conv, quantization) in convs.iter().zip(&quantizations) {
            let is_grouped = matches!(self.graph.node(conv.output).op, Op::Conv(conv) if conv.groups > 1);
            self.kept += match quantization.act_bits {
                Precision::FullPrecision => 0,
                Precision::Bits(bits) if self.keeps_codes(quantization) && !is_grouped => {
                    n_values.div_ceil(codes_in_a_byte(bits))
                }
                Precision::Bits(_) => n_values * FLOAT,
            };
        }
    }

    fn quantization(&self, layer: NodeId) -> LayerQuantization {
        let node = self.graph.node(layer);
        match node.op {
            Op::Conv(conv) => self.policy.resolve(&node.path, conv.role),
            _ => LayerQuantization::FULL_PRECISION,
        }
    }

    fn keeps_codes(&self, quantization: &LayerQuantization) -> bool {
        let method = quantization.act_method;
        self.inputs == Kept::Codes && method.has_grid(Operand::Activations) && !method.has_zero_point()
    }
}

/// Codes that are packed into a byte.
fn codes_in_a_byte(bits: BitWidth) -> u64 {
    match bits.get() {
        1 => 8,
        2 => 4,
        3 | 4 => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use lowbit_core::GraphError;
    use lowbit_core::graph::{Conv, GraphBuilder, LayerRole, Linear};
    use lowbit_quantizers::Method;

    use super::*;

    fn graph() -> Result<Graph, GraphError> {
        let mut graph = GraphBuilder::default();
        let image = graph.input([3, 6, 5])?;
        let x = graph.conv("stem", Conv::new([3, 4], 3, LayerRole::First), image)?;
        let x = graph.norm("norm", x)?;
        let x = graph.relu(x)?;
        let x = graph.conv("hidden", Conv::new([4, 4], 3, LayerRole::Hidden), x)?;
        let x = graph.max_pool([2, 2, 0], x)?;
        let x = graph.relu(x)?;
        let x = graph.global_avg_pool(x)?;
        let x = graph.linear("fc", Linear::new([4, 10], LayerRole::Last), x)?;
        graph.finish(x)
    }

    fn policy(method: Method, bits: u32) -> QuantizationPolicy {
        let bits = Precision::bits(bits).unwrap();
        QuantizationPolicy::new(LayerQuantization::new(method, bits, bits))
    }

    #[test]
    fn what_is_kept_is_counted() {
        let graph = graph().unwrap();
        let footprint = |policy: &QuantizationPolicy, kept| Footprint::new(&graph, policy, kept);
        let two_bits = footprint(&policy(Method::DoReFa, 2), Kept::Codes);
        // The image, the input of the normalization, the places of the pool's maxima, the ReLU's output, the mean.
        let rest = 4 * (3 * 30 + 4 * 30 + 4 * 6 + 4) + 4 * 6;
        let expected = Footprint {
            // Four codes to a byte.
            kept: rest + 4 * 30 / 4,
            // Of the second convolution: its input as it is and as it is quantized, and its output.
            working: 4 * 3 * (4 * 30),
            forward: 4 * 3 * (4 * 30),
            largest: 4 * 4 * 30,
            n_parameters: 27 * 4 + 2 * 4 + 36 * 4 + 4 * 10 + 10,
        };
        assert_eq!(two_bits, expected);
        let floats = Footprint { kept: rest + 4 * 4 * 30, ..expected };
        // Burn's pool keeps its input and indices.
        let of_burn = Footprint { kept: floats.kept + 4 * 4 * 30 + (8 - 1) * 4 * 6, ..floats };
        assert_eq!(footprint(&policy(Method::DoReFa, 2), Kept::Floats), of_burn);
        assert_eq!(footprint(&QuantizationPolicy::full_precision(), Kept::Codes), floats);
        // A byte for each code, whatever the weights are; min-max sees what the ReLU makes.
        let bytes = Footprint { kept: rest + 4 * 30, ..expected };
        assert_eq!(footprint(&policy(Method::DoReFa, 8), Kept::Codes), bytes);
        let eight = Precision::bits(8).unwrap();
        let only_inputs = LayerQuantization::new(Method::DoReFa, Precision::FullPrecision, eight);
        assert_eq!(footprint(&QuantizationPolicy::new(only_inputs), Kept::Codes), bytes);
        let minmax = footprint(&policy(Method::MinMax, 2), Kept::Codes);
        assert_eq!(minmax, Footprint { kept: floats.kept + 4 * 4 * 30, ..floats });
    }
}
