//! From the graph of a network to the steps that run it.
//!
//! A layer's sums are of integers if its weights and its input are codes. Its result becomes codes at once, by thresholds of the sums, if
//! nothing but a quantizer reads it, through operations that do not fall where their input rises, or do not rise: normalization,
//! ReLU, pooling by the maximum. The thresholds are found by trying the operations themselves, with every rounding that they have.

use lowbit_core::graph::{Graph, Node, NodeId, Op, Shape};
use lowbit_core::{from_order_key, order_key};
use lowbit_cpu::conv::ConvShape;
use lowbit_cpu::integer::{CodeBounds, IntegerConv, Levels};
use lowbit_cpu::norm::Affine;
use lowbit_cpu::pool::Pool;
use lowbit_cpu::sum::{Clamp, ValueLevels};

use crate::PackedError;
use crate::packed::{Layer, PackedNetwork, Quantizer, Weight};

/// Most thresholds of a network: those of 8 bits and 16,384 channels. What would have more is computed one operation after the other,
/// as a file of a few bytes could ask for any number.
const MOST_THRESHOLDS: usize = 1 << 22;

/// Most functions between a node and a quantizer: each is tried some thirty times for each threshold.
const MOST_FUNCTIONS: usize = 8;

/// Most values that the buffers of a model hold, for one image: half a GiB.
pub const MOST_VALUES: usize = 1 << 27;

/// Most bytes of weights as the kernels have them.
pub const MOST_WEIGHT_BYTES: usize = 1 << 30;

/// A buffer of more than so many times what is needed is left to others.
const FAR_LARGER: usize = 8;

/// The place of a value while a network runs.
pub type Place = usize;

/// One operation on a batch. It reads values and codes that earlier ones have written.
#[derive(Debug)]
pub struct Step {
    /// What it does.
    pub kind: Kind,
    /// What it does it to.
    pub inputs: Vec<Place>,
    /// Where the values of the result go, if any are asked for.
    pub values: Option<Place>,
    /// Where the codes of the result go, if any are asked for.
    pub codes: Option<Place>,
    /// How many the result has for an image.
    pub len: usize,
    /// Index of the node in the graph.
    pub node: usize,
    /// What is not read any more afterwards.
    pub last_reads: Vec<Place>,
}

impl Step {
    /// The normalization of values of so many channels and pixels, if the step is that alone, and where the values are. The step must not run
    /// afterwards.
    fn take_norm(&mut self, channels: usize, plane: usize) -> Option<(Vec<Affine>, Place)> {
        match &mut self.kind {
            Kind::Sum(sum) if sum.clamp == Clamp::None && sum.levels.is_none() && sum.affines.len() == 1 => {
                let is_alike = (sum.channels, sum.plane) == (channels, plane);
                Some((sum.affines[0].take_if(|_| is_alike)?, self.inputs[0]))
            }
            _ => None,
        }
    }
}

/// What a step does.
#[derive(Debug)]
pub enum Kind {
    /// Values to the clamped sum of their normalizations, and to its codes.
    Sum(Sum),
    /// Codes to the values that they are worth.
    Dequantize { values: Box<[f32; 256]>, channels: usize, plane: usize },
    /// Codes to values, by sums of integers.
    ConvCodes { kernel: Box<IntegerConv>, worths: Vec<f32>, bias: Option<Vec<f32>> },
    /// Codes to codes, by sums of integers and their thresholds.
    ConvLevels { kernel: Box<IntegerConv>, levels: Levels },
    /// Values to values.
    Conv { shape: ConvShape, weight: Vec<f32>, bias: Option<Vec<f32>> },
    /// Values times a number.
    Scale(f32),
    /// Values to values, or codes to codes. Of the channels that fall, if any are named, the smallest is taken.
    MaxPool { pool: Pool, falls: Vec<bool> },
    /// Codes of a map as those of a vector.
    Flatten { channels: usize, plane: usize },
    /// Mean of each plane.
    Means { plane: usize },
}

/// What each value of the summands becomes.
#[derive(Debug)]
pub struct Sum {
    pub channels: usize,
    pub plane: usize,
    /// For each summand, the normalization of each channel, if it is normalized.
    pub affines: Vec<Option<Vec<Affine>>>,
    pub clamp: Clamp,
    pub levels: Option<ValueLevels>,
}

impl Kind {
    /// Its name for people.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sum(sum) => match (sum.affines.as_slice(), sum.clamp) {
                ([_, _, ..], _) => "sum",
                ([Some(_)], _) => "normalization",
                (_, Clamp::Relu | Clamp::Relu6) => "ReLU",
                (_, Clamp::None) => "values to codes",
            },
            Self::Dequantize { .. } => "codes to values",
            Self::ConvCodes { .. } => "integers to values",
            Self::ConvLevels { .. } => "integers to codes",
            Self::Conv { .. } => "floats",
            Self::Scale(_) => "scale",
            Self::MaxPool { .. } => "maximum",
            Self::Flatten { .. } => "vector",
            Self::Means { .. } => "mean",
        }
    }
}

/// Steps of a network, and how many places they have.
#[derive(Debug)]
pub struct Program {
    pub steps: Vec<Step>,
    pub n_places: usize,
    /// Where the image comes, and where the output is.
    pub input: Place,
    pub output: Place,
    /// For each place, which buffer of its kind it has: of values, or of codes. Places that are not read at the same time share one.
    pub buffers: Vec<usize>,
    /// How many buffers there are, of values and of codes.
    pub n_buffers: [usize; 2],
    /// What they hold together for an image, at most.
    n_values: usize,
}

impl Program {
    /// # Errors
    /// [`PackedError::TooLarge`] if its values or weights take more memory than any network's.
    pub fn new(network: &PackedNetwork) -> Result<Self, PackedError> {
        let graph = &network.graph;
        let output = graph.output().index();
        let bytes =
            graph.nodes().iter().map(|node| panel_bytes(network, node)).fold(0, usize::saturating_add);
        if bytes > MOST_WEIGHT_BYTES {
            let problem = format!("its weights take {bytes} bytes, expected at most {MOST_WEIGHT_BYTES}");
            return Err(PackedError::TooLarge { node: output, problem });
        }
        let program = Lowering::new(network).run();
        let image = graph.shape(graph.input());
        let n_values = program.n_values.saturating_add(image.channels() * image.places());
        if n_values > MOST_VALUES {
            let problem = format!("{n_values} values are held at a time, expected at most {MOST_VALUES}");
            return Err(PackedError::TooLarge { node: output, problem });
        }
        Ok(program)
    }
}

/// Bytes of a layer's weights as a kernel has them, at most: 16 output channels and 4 channels of the input together, a byte for each code or
/// four for each number.
fn panel_bytes(network: &PackedNetwork, node: &Node) -> usize {
    let [out_channels, group_in, taps] = match &node.op {
        Op::Conv(conv) => [conv.out_channels, conv.in_channels / conv.groups, conv.kernel * conv.kernel],
        Op::Linear(linear) => [linear.out_features, linear.in_features, 1],
        _ => return 0,
    };
    let are_codes = code_bounds(network.layer(node), &conv_shape(&network.graph, node)).is_some();
    [out_channels.next_multiple_of(16), group_in.next_multiple_of(4), taps, if are_codes { 1 } else { 4 }]
        .iter()
        .fold(1, |n: usize, m| n.saturating_mul(*m))
}

/// The bounds of a layer's codes, if its sums are of integers.
fn code_bounds(layer: &Layer, shape: &ConvShape) -> Option<CodeBounds> {
    let (Weight::Codes(grid, _), Some(Quantizer { grid: input, .. })) = (&layer.weight, &layer.input) else {
        return None;
    };
    let (range, input_range) = (grid.range(), input.range());
    let fits =
        grid.zero_point() == 0 && range.q_min >= i32::from(i8::MIN) && range.q_max <= i32::from(i8::MAX);
    if !fits {
        return None;
    }
    let weight = range.q_min.unsigned_abs().max(range.q_max.unsigned_abs());
    let bounds = CodeBounds { activation: input_range.q_max as u8, weight: weight as u8 };
    IntegerConv::serves(shape, bounds).then_some(bounds)
}

/// The kernel of a layer whose weights and input are codes, and what a code of its input is worth.
fn integer_conv(layer: &Layer, shape: &ConvShape) -> Option<(IntegerConv, f32)> {
    let bounds = code_bounds(layer, shape)?;
    let (Weight::Codes(grid, codes), Some(Quantizer { grid: input, .. })) = (&layer.weight, &layer.input)
    else {
        return None;
    };
    let bytes = grid.unpack_bytes(codes)?;
    let scales: Vec<f32> = (0..grid.units().len()).map(|channel| grid.scale(channel)).collect();
    let kernel = IntegerConv::new(*shape, &bytes, &scales, bounds)?;
    // A zero point lies between the codes.
    Some((kernel.with_zero_point(input.zero_point() as u8), input.scale(0)))
}

/// Sizes of a layer, for one image. A linear layer is a convolution of images of one pixel.
fn conv_shape(graph: &Graph, node: &Node) -> ConvShape {
    match (&node.op, node.inputs.first().map(|input| graph.shape(*input))) {
        (Op::Conv(conv), Some(Shape::Map([_, height, width]))) => ConvShape {
            batch: 1,
            in_channels: conv.in_channels,
            out_channels: conv.out_channels,
            size: [height, width],
            kernel: [conv.kernel; 2],
            stride: [conv.stride; 2],
            padding: [conv.padding; 2],
            groups: conv.groups,
        },
        (Op::Linear(linear), _) => ConvShape {
            batch: 1,
            in_channels: linear.in_features,
            out_channels: linear.out_features,
            size: [1; 2],
            kernel: [1; 2],
            stride: [1; 2],
            padding: [0; 2],
            groups: 1,
        },
        _ => unreachable!("invariant: the node is a layer of a graph that is checked"),
    }
}

/// A function of one value that rises, or falls, for each channel.
enum Pointwise {
    Norm(Vec<Affine>),
    Clamp(Clamp),
}

impl Pointwise {
    fn apply(&self, channel: usize, x: f32) -> f32 {
        match self {
            Self::Norm(affines) => affines[channel].apply(x),
            Self::Clamp(clamp) => clamp.apply(x),
        }
    }

    /// Whether it falls where its input rises.
    fn falls(&self, channel: usize) -> bool {
        matches!(self, Self::Norm(affines) if affines[channel].factor < 0.0)
    }
}

/// What lies between a node, which may be a layer with sums of integers, and the quantizer that alone reads it.
struct Chain {
    /// The node.
    base: NodeId,
    /// Functions of one value, in order.
    functions: Vec<Pointwise>,
    /// Poolings by the maximum, in order: of values, and so of their codes.
    pools: Vec<Pool>,
    /// Channels and pixels of the map that becomes a vector at last, if one does.
    flattened: Option<[usize; 2]>,
    /// The nodes of both, which have no values of their own.
    nodes: Vec<NodeId>,
}

impl Chain {
    /// Nothing lies between the node and the quantizer.
    fn at(base: NodeId) -> Self {
        Self { base, functions: Vec::new(), pools: Vec::new(), flattened: None, nodes: Vec::new() }
    }

    fn has_norm(&self) -> bool {
        self.functions.iter().any(|function| matches!(function, Pointwise::Norm(_)))
    }
}

/// A chain, the node whose values its codes are of, and the quantizer.
struct CodesOf<'a> {
    chain: Chain,
    last: NodeId,
    quantizer: &'a Quantizer,
}

struct Lowering<'a> {
    network: &'a PackedNetwork,
    /// The nodes that the output needs, by index.
    is_needed: Vec<bool>,
    /// The needed readers of each node.
    readers: Vec<Vec<NodeId>>,
    steps: Vec<Step>,
    n_places: usize,
    /// The place of each node's values, by index.
    values: Vec<Option<Place>>,
    /// Codes of values: the node, the quantizer and the place.
    codes: Vec<(NodeId, &'a Quantizer, Place)>,
    /// Thresholds that there may still be.
    n_thresholds: usize,
}

impl<'a> Lowering<'a> {
    fn new(network: &'a PackedNetwork) -> Self {
        let graph = &network.graph;
        let mut is_needed = vec![false; graph.nodes().len()];
        is_needed[graph.output().index()] = true;
        is_needed[graph.input().index()] = true;
        for (index, node) in graph.nodes().iter().enumerate().rev() {
            if is_needed[index] {
                node.inputs.iter().for_each(|input| is_needed[input.index()] = true);
            }
        }
        let mut readers = graph.readers();
        readers.iter_mut().for_each(|readers| readers.retain(|reader| is_needed[reader.index()]));
        let values = vec![None; graph.nodes().len()];
        let (steps, codes) = (Vec::new(), Vec::new());
        Self { network, is_needed, readers, steps, n_places: 0, values, codes, n_thresholds: MOST_THRESHOLDS }
    }

    fn run(mut self) -> Program {
        let graph = &self.network.graph;
        // For each node, the chains from it to codes; and what runs with another node.
        let mut chains: Vec<Vec<CodesOf<'a>>> = graph.nodes().iter().map(|_| Vec::new()).collect();
        let mut is_done = vec![false; graph.nodes().len()];
        for (id, _) in graph.entries() {
            if let Some(quantizer) = self.quantizer_of(id) {
                let chain = self.chain(id, quantizer.thresholds.len());
                chain.nodes.iter().for_each(|node| is_done[node.index()] = true);
                chains[chain.base.index()].push(CodesOf { chain, last: id, quantizer });
            }
        }
        for (id, node) in graph.entries() {
            if self.is_needed[id.index()] && !is_done[id.index()] {
                let chains = std::mem::take(&mut chains[id.index()]);
                self.lower(id, node, chains);
            }
        }
        let place =
            |values: &[Option<Place>], node: NodeId| values[node.index()].expect("invariant: it has values");
        let (input, output) = (place(&self.values, graph.input()), place(&self.values, graph.output()));
        let (steps, n_places) = (self.steps, self.n_places);
        let mut program =
            Program { steps, n_places, input, output, buffers: Vec::new(), n_buffers: [0; 2], n_values: 0 };
        program.pool_first();
        program.join_sums();
        program.find_last_reads();
        program.plan_buffers();
        program
    }

    /// The quantizer by which alone the output of a node is read, if all its readers are layers with the same one.
    fn quantizer_of(&self, id: NodeId) -> Option<&'a Quantizer> {
        if id == self.network.graph.output() {
            return None;
        }
        let mut quantizers = self.readers[id.index()].iter().map(|reader| self.input_quantizer(*reader));
        let first = quantizers.next()??;
        quantizers.all(|other| other == Some(first)).then_some(first)
    }

    fn input_quantizer(&self, id: NodeId) -> Option<&'a Quantizer> {
        self.network.layers.get(&self.network.graph.node(id).path)?.input.as_ref()
    }

    /// What lies between `last`, which only one quantizer reads, and the node from which on nothing else reads any of it.
    fn chain(&self, last: NodeId, n_thresholds: usize) -> Chain {
        let graph = &self.network.graph;
        let mut chain = Chain::at(last);
        loop {
            let node = graph.node(chain.base);
            let is_long = chain.functions.len() == MOST_FUNCTIONS;
            if is_long || self.thresholds_of(chain.base, n_thresholds) > self.n_thresholds {
                break;
            }
            // The chain is walked from its end. Once a normalization was met, no pooling and no flattening may come before it: it
            // may fall, and then the code of a maximum is not the maximum of the codes; and its channels are features.
            let has_norm = chain.has_norm();
            match node.op {
                Op::Norm { .. } => chain.functions.push(Pointwise::Norm(self.affines(node))),
                Op::Relu => chain.functions.push(Pointwise::Clamp(Clamp::Relu)),
                Op::Relu6 => chain.functions.push(Pointwise::Clamp(Clamp::Relu6)),
                Op::MaxPool { .. } if !has_norm => chain.pools.push(pool(graph, node)),
                Op::Flatten if !has_norm => {
                    let shape = graph.shape(node.inputs[0]);
                    chain.flattened = Some([shape.channels(), shape.places()]);
                }
                _ => break,
            }
            let input = node.inputs[0];
            chain.nodes.push(chain.base);
            chain.base = input;
            if self.readers[input.index()].len() != 1 || input == graph.output() {
                break;
            }
        }
        chain.functions.reverse();
        chain.pools.reverse();
        chain
    }

    fn affines(&self, node: &Node) -> Vec<Affine> {
        self.network.norms[&node.path].affines()
    }

    fn place(&mut self) -> Place {
        self.n_places += 1;
        self.n_places - 1
    }

    /// Adds a step that has values.
    fn push(&mut self, node: NodeId, kind: Kind, inputs: Vec<Place>) -> Place {
        let place = self.place();
        self.push_step(node, kind, inputs, Some(place), None);
        place
    }

    /// Adds a step that has codes.
    fn push_codes(&mut self, node: NodeId, kind: Kind, inputs: Vec<Place>) -> Place {
        let place = self.place();
        self.push_step(node, kind, inputs, None, Some(place));
        place
    }

    fn push_step(
        &mut self,
        node: NodeId,
        kind: Kind,
        inputs: Vec<Place>,
        values: Option<Place>,
        codes: Option<Place>,
    ) {
        let shape = self.network.graph.shape(node);
        let len = shape.channels() * shape.places();
        let (node, last_reads) = (node.index(), Vec::new());
        self.steps.push(Step { kind, inputs, values, codes, len, node, last_reads });
    }

    /// The place of a node's values.
    fn values_of(&self, id: NodeId) -> Place {
        self.values[id.index()].expect("invariant: what is read as values has some")
    }

    /// The place of the codes of a node's values.
    fn codes_of(&mut self, id: NodeId, quantizer: &'a Quantizer) -> Place {
        let known = self.codes.iter().find(|(node, other, _)| *node == id && *other == quantizer);
        if let Some((.., place)) = known {
            return *place;
        }
        self.quantize(&Chain::at(id), id, quantizer)
    }

    /// Adds the steps from the values of a chain's base to the codes of its last node.
    fn quantize(&mut self, chain: &Chain, last: NodeId, quantizer: &'a Quantizer) -> Place {
        let shape = self.network.graph.shape(chain.base);
        if chain.has_norm() {
            self.n_thresholds =
                self.n_thresholds.saturating_sub(self.thresholds_of(chain.base, quantizer.thresholds.len()));
        }
        let levels = value_levels(shape.channels(), &chain.functions, quantizer);
        let kind = Kind::Sum(Sum {
            channels: shape.channels(),
            plane: shape.places(),
            affines: vec![None],
            clamp: Clamp::None,
            levels: Some(levels),
        });
        let place = self.push_codes(chain.base, kind, vec![self.values_of(chain.base)]);
        self.end_chain(chain, place, last, quantizer)
    }

    /// Adds the steps from the codes of a chain's base, after its functions, to those of its last node.
    fn end_chain(
        &mut self,
        chain: &Chain,
        mut place: Place,
        last: NodeId,
        quantizer: &'a Quantizer,
    ) -> Place {
        for &pool in &chain.pools {
            place = self.push_codes(last, Kind::MaxPool { pool, falls: Vec::new() }, vec![place]);
        }
        if let Some([channels, plane]) = chain.flattened.filter(|[_, plane]| *plane > 1) {
            place = self.push_codes(last, Kind::Flatten { channels, plane }, vec![place]);
        }
        self.codes.push((last, quantizer, place));
        place
    }

    /// Adds the steps of a node, and of the chains from it to codes.
    fn lower(&mut self, id: NodeId, node: &'a Node, mut chains: Vec<CodesOf<'a>>) {
        match node.op {
            Op::Conv(_) | Op::Linear(_) => self.lower_layer(id, node, &mut chains),
            _ => self.lower_plain(id, node),
        }
        for CodesOf { chain, last, quantizer } in chains {
            self.quantize(&chain, last, quantizer);
        }
    }

    /// How many thresholds a node has if each channel has so many.
    fn thresholds_of(&self, id: NodeId, n_thresholds: usize) -> usize {
        self.network.graph.shape(id).channels().saturating_mul(n_thresholds)
    }

    /// Whether the sums of a layer become the codes of a chain at once: nothing else reads them.
    fn is_fused(&self, CodesOf { chain, quantizer, .. }: &CodesOf<'_>) -> bool {
        if self.thresholds_of(chain.base, quantizer.thresholds.len()) > self.n_thresholds {
            return false;
        }
        let is_output = chain.base == self.network.graph.output();
        !is_output && (chain.nodes.is_empty() || self.readers[chain.base.index()].len() == 1)
    }

    /// Adds the steps of a node that is no layer.
    fn lower_plain(&mut self, id: NodeId, node: &'a Node) {
        let graph = &self.network.graph;
        let first = node.inputs.first().copied();
        let (channels, plane) = (graph.shape(id).channels(), graph.shape(id).places());
        let sum = |affines, clamp| Kind::Sum(Sum { channels, plane, affines, clamp, levels: None });
        let kind = match &node.op {
            Op::Input(_) => {
                self.values[id.index()] = Some(self.place());
                return;
            }
            Op::Conv(_) | Op::Linear(_) => unreachable!("invariant: layers are lowered elsewhere"),
            Op::Norm { .. } => sum(vec![Some(self.affines(node))], Clamp::None),
            Op::Relu => sum(vec![None], Clamp::Relu),
            Op::Relu6 => sum(vec![None], Clamp::Relu6),
            Op::Add => sum(node.inputs.iter().map(|_| None).collect(), Clamp::None),
            Op::Scale => Kind::Scale(self.network.scales[&node.path]),
            Op::MaxPool { .. } => Kind::MaxPool { pool: pool(graph, node), falls: Vec::new() },
            Op::GlobalAvgPool => {
                Kind::Means { plane: graph.shape(first.expect("invariant: a pool has an input")).places() }
            }
            Op::Flatten => {
                // The same values.
                self.values[id.index()] = Some(self.values_of(first.expect("invariant: it has an input")));
                return;
            }
        };
        let inputs = node.inputs.iter().map(|input| self.values_of(*input)).collect();
        self.values[id.index()] = Some(self.push(id, kind, inputs));
    }

    /// Adds the steps of a layer. A chain that they lead to the end of is taken.
    fn lower_layer(&mut self, id: NodeId, node: &'a Node, chains: &mut Vec<CodesOf<'a>>) {
        let network = self.network;
        let (layer, shape) = (network.layer(node), conv_shape(&network.graph, node));
        let (input, bias) = (node.inputs[0], layer.bias.clone());
        let codes = layer.input.as_ref().map(|quantizer| (self.codes_of(input, quantizer), quantizer));
        if let Some((kernel, scale)) = integer_conv(layer, &shape)
            && let Some((codes, _)) = codes
        {
            let kernel = Box::new(kernel);
            let is_fused = chains.last().is_some_and(|codes| self.is_fused(codes));
            let Some(CodesOf { chain, last, quantizer }) = chains.pop_if(|_| is_fused) else {
                let worths = kernel.worths(scale);
                self.values[id.index()] =
                    Some(self.push(id, Kind::ConvCodes { kernel, worths, bias }, vec![codes]));
                return;
            };
            self.n_thresholds -= self.thresholds_of(chain.base, quantizer.thresholds.len());
            let levels = levels(&kernel, scale, bias.as_deref(), &chain.functions, quantizer);
            let place = self.push_codes(id, Kind::ConvLevels { kernel, levels }, vec![codes]);
            self.end_chain(&chain, place, last, quantizer);
            return;
        }
        let values = match codes {
            None => self.values_of(input),
            Some((codes, Quantizer { grid, .. })) => {
                let mut values = Box::new([0.0; 256]);
                for code in (0..grid.n_levels()).filter_map(|level| grid.code(level as u8)) {
                    values[code as u8 as usize] = grid.dequantize(code, 0);
                }
                let shape = network.graph.shape(input);
                let kind = Kind::Dequantize { values, channels: shape.channels(), plane: shape.places() };
                self.push(id, kind, vec![codes])
            }
        };
        self.values[id.index()] =
            Some(self.push(id, Kind::Conv { shape, weight: layer.values(), bias }, vec![values]));
    }
}

/// The levels of values that functions are applied to before the quantizer.
fn value_levels(n_channels: usize, functions: &[Pointwise], quantizer: &Quantizer) -> ValueLevels {
    let of_channel = |channel: usize| {
        let falls = functions.iter().filter(|function| function.falls(channel)).count() % 2 == 1;
        let level_value = |key: i64| {
            let value = from_order_key(key);
            let value = if falls { -value } else { value };
            functions.iter().fold(value, |value, function| function.apply(channel, value))
        };
        let mut low = order_key(f32::NEG_INFINITY);
        let end = order_key(f32::INFINITY) + 1;
        let thresholds = quantizer.thresholds.iter().map(|threshold| {
            low = first(low, end, |key| level_value(key) >= *threshold);
            // What no value reaches stands at infinity: an infinite value counts as one of the highest level.
            if low == end { f32::INFINITY } else { from_order_key(low) }
        });
        (falls, thresholds.collect::<Vec<f32>>())
    };
    // Without a normalization all channels are alike.
    let channels = match functions.iter().any(|function| matches!(function, Pointwise::Norm(_))) {
        true => (0..n_channels).map(of_channel).collect(),
        false => vec![of_channel(0)],
    };
    ValueLevels::new(n_channels, &channels, level_codes(quantizer))
}

/// The code of each level. Those of a network that is checked are bytes.
fn level_codes(quantizer: &Quantizer) -> Vec<u8> {
    let grid = &quantizer.grid;
    (0..grid.n_levels()).filter_map(|level| grid.code(level as u8)).map(|code| code as u8).collect()
}

fn pool(graph: &Graph, node: &Node) -> Pool {
    let (Op::MaxPool { kernel, stride, padding }, Shape::Map([_, height, width])) =
        (&node.op, graph.shape(node.inputs[0]))
    else {
        unreachable!("invariant: a pool is of a map");
    };
    let out = |size: usize| (size + 2 * padding - kernel) / stride + 1;
    let (kernel, stride, padding) = (*kernel, *stride, *padding);
    Pool { kernel, stride, padding, size: [height, width], out_size: [out(height), out(width)] }
}

/// The thresholds of a kernel's sums, for each channel: the lowest sum whose value has each level of the quantizer.
fn levels(
    kernel: &IntegerConv,
    scale: f32,
    bias: Option<&[f32]>,
    functions: &[Pointwise],
    quantizer: &Quantizer,
) -> Levels {
    let largest = i64::from(kernel.largest_sum());
    let scales = kernel.worths(scale);
    let channels: Vec<(bool, Vec<i32>)> = scales
        .iter()
        .enumerate()
        .map(|(channel, scale)| {
            let falls = functions.iter().filter(|function| function.falls(channel)).count() % 2 == 1;
            let value = |sum: i64| {
                let sum = if falls { -sum } else { sum };
                let value = sum as i32 as f32 * scale;
                let value = bias.map_or(value, |bias| value + bias[channel]);
                functions.iter().fold(value, |value, function| function.apply(channel, value))
            };
            let mut low = -largest;
            let thresholds = quantizer.thresholds.iter().map(|threshold| {
                low = first(low, largest + 1, |sum| value(sum) >= *threshold);
                // Beyond all sums: never.
                if low > largest { i32::MAX } else { low as i32 }
            });
            (falls, thresholds.collect())
        })
        .collect();
    Levels::new(&channels, level_codes(quantizer))
}

/// The first number from `low` on, below `end`, from which on `holds` holds; `end` if it holds for none.
fn first(low: i64, end: i64, holds: impl Fn(i64) -> bool) -> i64 {
    let (mut low, mut end) = (low, end);
    while low < end {
        let middle = low + (end - low) / 2;
        if holds(middle) { end = middle } else { low = middle + 1 }
    }
    low
}

impl Program {
    /// How often each place is read; the output once more.
    fn n_reads(&self) -> Vec<usize> {
        let mut n_reads = vec![0; self.n_places];
        n_reads[self.output] = 1;
        self.steps.iter().flat_map(|step| &step.inputs).for_each(|&input| n_reads[input] += 1);
        n_reads
    }

    /// The step that writes each place, by the place.
    fn writers(&self) -> Vec<Option<usize>> {
        let mut writers = vec![None; self.n_places];
        for (index, step) in self.steps.iter().enumerate() {
            [step.values, step.codes].into_iter().flatten().for_each(|place| writers[place] = Some(index));
        }
        writers
    }

    /// Puts poolings by the maximum before normalizations and ReLUs, which then have fewer values. They rise with their input, or fall, with
    /// every rounding: the maximum of the results is the result of the maximum, or of the minimum.
    fn pool_first(&mut self) {
        let (n_reads, writers) = (self.n_reads(), self.writers());
        for mut at in 0..self.steps.len() {
            while let [input] = self.steps[at].inputs[..]
                && let Some(before) = writers[input].filter(|_| n_reads[input] == 1)
                && let Ok([earlier, later]) = self.steps.get_disjoint_mut([before, at])
                && let Kind::MaxPool { pool, falls } = &mut later.kind
                && let Kind::Sum(sum) = &mut earlier.kind
                && let ([affines], None) = (sum.affines.as_slice(), &sum.levels)
            {
                if let Some(affines) = affines {
                    falls.resize(affines.len(), false);
                    falls.iter_mut().zip(affines).for_each(|(falls, affine)| *falls ^= affine.factor < 0.0);
                }
                sum.plane = pool.out_size[0] * pool.out_size[1];
                std::mem::swap(&mut earlier.kind, &mut later.kind);
                std::mem::swap(&mut earlier.node, &mut later.node);
                earlier.len = later.len;
                at = before;
            }
        }
    }

    /// Joins what passes over the same values: normalizations, their sum, ReLU and codes.
    fn join_sums(&mut self) {
        let (n_reads, mut writers) = (self.n_reads(), self.writers());
        let mut steps: Vec<Option<Step>> = std::mem::take(&mut self.steps).into_iter().map(Some).collect();
        for index in 0..steps.len() {
            let (earlier, rest) = steps.split_at_mut(index);
            let this = &mut rest[0];
            let Some(Step { kind: Kind::Sum(sum), inputs, values, codes, .. }) = this else { continue };
            // Normalizations of the summands, which nothing else reads.
            for (input, affines) in inputs.iter_mut().zip(&mut sum.affines) {
                if let (None, 1, Some(writer)) = (&affines, n_reads[*input], writers[*input])
                    && let Some((norm, of_norm)) =
                        earlier[writer].as_mut().and_then(|step| step.take_norm(sum.channels, sum.plane))
                {
                    (*affines, *input) = (Some(norm), of_norm);
                    earlier[writer] = None;
                }
            }
            // A sum whose ReLU or codes these are.
            if let ([None], [input]) = (sum.affines.as_slice(), &inputs[..])
                && let Some(writer) = writers[*input]
                && let Some(Step {
                    kind: Kind::Sum(before), values: before_values, codes: before_codes, ..
                }) = &mut earlier[writer]
                && before.levels.is_none()
                // A vector is the same values as a map, but not as many channels.
                && (before.channels, before.plane) == (sum.channels, sum.plane)
                && (sum.clamp == Clamp::None || before.clamp == Clamp::None && n_reads[*input] == 1)
            {
                if sum.clamp != Clamp::None {
                    before.clamp = sum.clamp;
                }
                if n_reads[*input] == 1 {
                    *before_values = *values;
                }
                *before_codes = *codes;
                before.levels = sum.levels.take();
                [*values, *codes].into_iter().flatten().for_each(|place| writers[place] = Some(writer));
                *this = None;
            }
        }
        self.steps = steps.into_iter().flatten().collect();
    }

    /// Says for each step what is not read after it.
    fn find_last_reads(&mut self) {
        let mut is_read = vec![false; self.n_places];
        is_read[self.output] = true;
        for step in self.steps.iter_mut().rev() {
            for &input in &step.inputs {
                if !std::mem::replace(&mut is_read[input], true) {
                    step.last_reads.push(input);
                }
            }
        }
    }

    /// Gives each place a buffer that no other needs at the time: the smallest that is large enough, but not far larger, or else the largest
    /// smaller one, which then grows.
    fn plan_buffers(&mut self) {
        self.buffers = vec![usize::MAX; self.n_places];
        let mut is_codes = vec![false; self.n_places];
        // Lengths of all buffers of a kind, and which are free.
        let (mut lens, mut free) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
        for step in &self.steps {
            for (kind, place) in [step.values, step.codes].into_iter().enumerate() {
                let Some(place) = place else { continue };
                let (lens, free): (&mut Vec<usize>, &mut Vec<usize>) = (&mut lens[kind], &mut free[kind]);
                free.sort_unstable_by_key(|&buffer| lens[buffer]);
                let n_smaller = free.partition_point(|&buffer| lens[buffer] < step.len);
                let fits = free.get(n_smaller).is_some_and(|&buffer| lens[buffer] / FAR_LARGER <= step.len);
                let buffer = match (fits, n_smaller) {
                    (true, at) => free.remove(at),
                    (false, 0) => lens.len(),
                    (false, n) => free.remove(n - 1),
                };
                match lens.get_mut(buffer) {
                    Some(len) => *len = step.len.max(*len),
                    None => lens.push(step.len),
                }
                self.buffers[place] = buffer;
                is_codes[place] = kind == 1;
            }
            // The image is the caller's.
            for &place in step.last_reads.iter().filter(|place| **place != self.input) {
                free[usize::from(is_codes[place])].push(self.buffers[place]);
            }
        }
        self.n_buffers = lens.each_ref().map(Vec::len);
        self.n_values = lens.iter().flatten().fold(0, |sum, len| sum.saturating_add(*len));
    }
}
