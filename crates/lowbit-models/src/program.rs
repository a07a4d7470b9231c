//! What a network does in a forward pass, in order: made once from its graph. Here it is recognized what runs as one operation:
//! a normalization, the ReLU after it and the quantization of what the convolutions after that read; and convolutions
//! of one input, which those of them that quantize it alike share.

use lowbit_core::Graph;
use lowbit_core::graph::{NodeId, Op};

/// The steps of a forward pass.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) graph: Graph,
    /// The nodes with parameters, in forward order: the layers of the module.
    pub(crate) layers: Vec<NodeId>,
    /// The nodes whose outputs are the feature maps.
    pub(crate) taps: Vec<NodeId>,
    /// The steps that make the output. What leads to feature maps alone is left out.
    pub(crate) for_logits: Vec<Step>,
    /// The steps that make the output and the feature maps.
    pub(crate) for_features: Vec<Step>,
}

/// A value that a step reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    /// The node whose output it is.
    pub(crate) node: NodeId,
    /// Whether nothing reads it later.
    pub(crate) is_last: bool,
}

/// A convolution of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConvStep {
    /// Index in [`Program::layers`].
    pub(crate) layer: usize,
    /// The node whose output it makes.
    pub(crate) output: NodeId,
}

/// An operation on the outputs of nodes. Layers are indices in [`Program::layers`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Convolutions, after a normalization and a ReLU if there is one.
    Convs { input: Operand, norm: Option<usize>, convs: Vec<ConvStep> },
    /// A normalization, with the ReLU after it if there is one.
    Norm { input: Operand, layer: usize, is_relu: bool, output: NodeId },
    /// A linear layer.
    Linear { input: Operand, layer: usize, output: NodeId },
    /// A learned factor.
    Scale { input: Operand, layer: usize, output: NodeId },
    /// The sum of two values and the ReLU after it.
    ReluOfSum { inputs: [Operand; 2], output: NodeId },
    /// An operation without parameters.
    Plain { inputs: Vec<Operand>, op: Op, output: NodeId },
}

impl Step {
    fn operands_mut(&mut self) -> &mut [Operand] {
        match self {
            Self::Convs { input, .. }
            | Self::Norm { input, .. }
            | Self::Linear { input, .. }
            | Self::Scale { input, .. } => std::slice::from_mut(input),
            Self::ReluOfSum { inputs, .. } => inputs,
            Self::Plain { inputs, .. } => inputs,
        }
    }

    /// What it reads, and the nodes whose outputs it makes.
    pub(crate) fn ends(&self) -> (Vec<Operand>, Vec<NodeId>) {
        match self {
            Self::Convs { input, convs, .. } => {
                (vec![*input], convs.iter().map(|conv| conv.output).collect())
            }
            Self::Norm { input, output, .. }
            | Self::Linear { input, output, .. }
            | Self::Scale { input, output, .. } => (vec![*input], vec![*output]),
            Self::ReluOfSum { inputs, output } => (inputs.to_vec(), vec![*output]),
            Self::Plain { inputs, output, .. } => (inputs.clone(), vec![*output]),
        }
    }

    /// Leaves out the outputs that `keep` does not want; whether any is left.
    fn retain(&mut self, keep: impl Fn(NodeId) -> bool) -> bool {
        match self {
            Self::Convs { convs, .. } => {
                convs.retain(|conv| keep(conv.output));
                !convs.is_empty()
            }
            Self::Norm { output, .. }
            | Self::Linear { output, .. }
            | Self::Scale { output, .. }
            | Self::ReluOfSum { output, .. }
            | Self::Plain { output, .. } => keep(*output),
        }
    }
}

impl Program {
    pub(crate) fn new(graph: Graph) -> Self {
        let taps = graph.taps().iter().map(|tap| tap.node).collect();
        Self::with_taps(graph, taps)
    }

    /// The same whose feature maps are the outputs of the nodes `taps`, in the order of those of the graph.
    pub(crate) fn with_taps(graph: Graph, taps: Vec<NodeId>) -> Self {
        let layers: Vec<NodeId> = graph
            .entries()
            .filter(|(_, node)| matches!(node.op, Op::Conv(_) | Op::Linear(_) | Op::Norm { .. } | Op::Scale))
            .map(|(id, _)| id)
            .collect();
        // What is fused does not depend on whether feature maps are asked for: the logits have the same bits.
        let steps = steps(&graph, &layers, &taps);
        let n_nodes = graph.nodes().len();
        let all = taps.iter().copied().chain([graph.output()]);
        let for_features = steps_for(steps.clone(), n_nodes, all);
        let for_logits = steps_for(steps, n_nodes, [graph.output()]);
        Self { graph, layers, taps, for_logits, for_features }
    }

    /// The nodes that a normalization and its ReLU make of the feature maps; a map that has none stays.
    pub(crate) fn activated_taps(&self) -> Vec<NodeId> {
        let readers = self.graph.readers();
        let op = |id: NodeId| self.graph.node(id).op;
        let activated = |tap: NodeId| {
            let mut norms = readers[tap.index()].iter().filter(|id| matches!(op(**id), Op::Norm { .. }));
            let mut relus = norms.next().into_iter().flat_map(|norm| &readers[norm.index()]);
            relus.find(|id| op(**id) == Op::Relu).copied()
        };
        self.graph.taps().iter().map(|tap| activated(tap.node).unwrap_or(tap.node)).collect()
    }

    /// The first layer, by its place, that convolves or multiplies the feature map at `tap`, if any does without another operation
    /// before it.
    pub(crate) fn reader(&self, tap: NodeId) -> Option<usize> {
        let is_layer = |id: &&NodeId| matches!(self.graph.node(**id).op, Op::Conv(_) | Op::Linear(_));
        let readers = self.graph.readers();
        let reader = readers[tap.index()].iter().find(is_layer)?;
        self.layers.binary_search(reader).ok()
    }

    /// Path of a layer.
    pub(crate) fn path(&self, layer: usize) -> &str {
        &self.graph.node(self.layers[layer]).path
    }
}

/// The `steps` that make the `wanted` outputs, and who reads a value last: nobody those that are wanted.
fn steps_for(steps: Vec<Step>, n_nodes: usize, wanted: impl IntoIterator<Item = NodeId>) -> Vec<Step> {
    let mut is_read = vec![false; n_nodes];
    wanted.into_iter().for_each(|node| is_read[node.index()] = true);
    let mut needed = Vec::new();
    // Backwards, the first to read a value is the last.
    for mut step in steps.into_iter().rev() {
        if step.retain(|output| is_read[output.index()]) {
            for operand in step.operands_mut().iter_mut().rev() {
                operand.is_last = !std::mem::replace(&mut is_read[operand.node.index()], true);
            }
            needed.push(step);
        }
    }
    needed.reverse();
    needed
}

fn steps(graph: &Graph, layers: &[NodeId], taps: &[NodeId]) -> Vec<Step> {
    let readers = graph.readers();
    let op = |id: NodeId| graph.node(id).op;
    let is_conv = |id: &NodeId| matches!(op(*id), Op::Conv(_));
    // A value that something outside the steps asks for has to be made.
    let is_seen = |id: NodeId| graph.output() == id || taps.contains(&id);
    let layer = |id: NodeId| layers.binary_search(&id).expect("invariant: it is a layer");
    let operand = |node: NodeId| Operand { node, is_last: false };
    let convs = |ids: &[NodeId]| ids.iter().map(|id| ConvStep { layer: layer(*id), output: *id }).collect();
    let mut is_done = vec![false; graph.nodes().len()];
    let mut steps = Vec::new();
    for (id, node) in graph.entries() {
        if std::mem::replace(&mut is_done[id.index()], true) {
            continue;
        }
        let after = &readers[id.index()];
        steps.push(match node.op {
            Op::Input(_) => continue,
            Op::Norm { .. } => {
                let (input, layer) = (operand(node.inputs[0]), layer(id));
                match after.as_slice() {
                    [relu] if op(*relu) == Op::Relu && !is_seen(id) => {
                        is_done[relu.index()] = true;
                        let after = &readers[relu.index()];
                        if !after.is_empty() && after.iter().all(is_conv) && !is_seen(*relu) {
                            after.iter().for_each(|conv| is_done[conv.index()] = true);
                            Step::Convs { input, norm: Some(layer), convs: convs(after) }
                        } else {
                            Step::Norm { input, layer, is_relu: true, output: *relu }
                        }
                    }
                    _ => Step::Norm { input, layer, is_relu: false, output: id },
                }
            }
            Op::Conv(_) => {
                let beside = readers[node.inputs[0].index()].iter().copied().filter(is_conv);
                let all: Vec<NodeId> = beside.collect();
                all.iter().for_each(|conv| is_done[conv.index()] = true);
                Step::Convs { input: operand(node.inputs[0]), norm: None, convs: convs(&all) }
            }
            Op::Linear(_) => Step::Linear { input: operand(node.inputs[0]), layer: layer(id), output: id },
            Op::Scale => Step::Scale { input: operand(node.inputs[0]), layer: layer(id), output: id },
            Op::Add if matches!(after.as_slice(), [relu] if op(*relu) == Op::Relu) && !is_seen(id) => {
                let relu = after[0];
                is_done[relu.index()] = true;
                Step::ReluOfSum { inputs: [operand(node.inputs[0]), operand(node.inputs[1])], output: relu }
            }
            op @ (Op::Relu | Op::Relu6 | Op::Add | Op::MaxPool { .. } | Op::GlobalAvgPool | Op::Flatten) => {
                let inputs = node.inputs.iter().copied().map(operand).collect();
                Step::Plain { inputs, op, output: id }
            }
        });
    }
    steps
}

#[cfg(test)]
mod tests {
    use lowbit_core::GraphError;
    use lowbit_core::graph::{Conv, GraphBuilder, LayerRole, Linear};

    use super::*;
    use crate::{Family, InputShape, Layout, ModelConfig};

    /// A step in words.
    fn words(program: &Program, step: &Step) -> String {
        let path = |layer: usize| program.path(layer);
        match step {
            Step::Convs { norm, convs, .. } => {
                let convs: Vec<&str> = convs.iter().map(|conv| path(conv.layer)).collect();
                let norm = norm.map(|norm| format!("{}+relu+", path(norm))).unwrap_or_default();
                format!("{norm}{}", convs.join("|"))
            }
            Step::Norm { layer, is_relu, .. } => {
                format!("{}{}", path(*layer), if *is_relu { "+relu" } else { "" })
            }
            Step::Linear { layer, .. } | Step::Scale { layer, .. } => path(*layer).into(),
            Step::ReluOfSum { .. } => "add+relu".into(),
            Step::Plain { op, .. } => format!("{op:?}").split([' ', '{']).next().unwrap().to_lowercase(),
        }
    }

    fn describe(config: &ModelConfig) -> Vec<String> {
        let input = InputShape { channels: 3, height: 64, width: 64 };
        let program = Program::new(config.graph(input, 10).unwrap());
        program.for_logits.iter().map(|step| words(&program, step)).collect()
    }

    /// What runs as one operation, in every family.
    #[test]
    fn operations_are_fused() {
        let preresnet = describe(&ModelConfig::new(Family::PreResNet, 8));
        let expected = [
            "stem",
            "stages.0.0.norm1+relu+stages.0.0.conv1",
            "stages.0.0.norm2+relu+stages.0.0.conv2",
            "add",
            "stages.1.0.norm1+relu+stages.1.0.conv1|stages.1.0.shortcut",
        ];
        assert_eq!(preresnet[..5], expected);
        assert_eq!(preresnet[10..], ["norm+relu", "globalavgpool", "fc"]);
        let resnet = describe(&ModelConfig::imagenet(Family::ResNet, 50));
        let expected = [
            "conv1",
            "bn1+relu",
            "maxpool",
            "layer1.0.conv1|layer1.0.downsample.0",
            "layer1.0.bn1+relu+layer1.0.conv2",
            "layer1.0.bn2+relu+layer1.0.conv3",
            "layer1.0.bn3",
            "layer1.0.downsample.1",
            "add+relu",
        ];
        assert_eq!(resnet[..9], expected);
        let vgg = describe(&ModelConfig::vgg_small());
        let expected = ["convs.0", "norms.0+relu+convs.1", "norms.1", "maxpool", "relu", "convs.2"];
        assert_eq!(vgg[..6], expected);
        let alexnet = describe(&ModelConfig::alexnet(Layout::ImageNet));
        let expected =
            ["norms.2+relu+features.8", "norms.3+relu+features.10", "norms.4+relu", "maxpool", "flatten"];
        assert_eq!(alexnet[7..12], expected);
        assert_eq!(
            alexnet[12..],
            ["classifier.1", "norms.5+relu", "classifier.4", "norms.6+relu", "classifier.6"]
        );
    }

    /// What becomes of a map between "stem" and "last", of 4 channels.
    type Middle = fn(&mut GraphBuilder, NodeId) -> Result<NodeId, GraphError>;

    fn program(middle: Middle) -> Program {
        let build = || {
            let mut graph = GraphBuilder::default();
            let image = graph.input([3, 6, 5])?;
            let stem = graph.conv("stem", Conv::new([3, 4], 3, LayerRole::First), image)?;
            let x = middle(&mut graph, stem)?;
            let last = graph.conv("last", Conv::new([4, 4], 3, LayerRole::Hidden), x)?;
            let pooled = graph.global_avg_pool(last)?;
            let logits = graph.linear("fc", Linear::new([4, 10], LayerRole::Last), pooled)?;
            graph.finish(logits)
        };
        Program::new(build().unwrap())
    }

    /// A value that more than the next step asks for is not fused away.
    const SEEN: [(Middle, &[&str]); 5] = [
        // A normalization and the ReLU after it are feature maps.
        (
            |graph, x| {
                let x = graph.norm("norm", x)?;
                graph.tap("norm", x)?;
                graph.relu(x)
            },
            &["norm", "relu", "last"],
        ),
        (
            |graph, x| {
                let x = graph.norm("norm", x)?;
                let x = graph.relu(x)?;
                graph.tap("relu", x)?;
                Ok(x)
            },
            &["norm+relu", "last"],
        ),
        // They have two readers.
        (
            |graph, x| {
                let normalized = graph.norm("norm", x)?;
                let x = graph.relu(normalized)?;
                graph.add([x, normalized])
            },
            &["norm", "relu", "add", "last"],
        ),
        (
            |graph, x| {
                let x = graph.norm("norm", x)?;
                let x = graph.relu(x)?;
                let hidden = graph.conv("hidden", Conv::new([4, 4], 3, LayerRole::Hidden), x)?;
                graph.add([hidden, x])
            },
            &["norm+relu", "hidden", "add", "last"],
        ),
        // A normalization without ReLU.
        (|graph, x| graph.norm("norm", x), &["norm", "last"]),
    ];

    #[test]
    fn what_is_seen_is_not_fused() {
        for (middle, expected) in SEEN {
            let program = program(middle);
            let expected = [&["stem"], expected, &["globalavgpool", "fc"]].concat();
            for steps in [&program.for_logits, &program.for_features] {
                assert_eq!(steps.iter().map(|step| words(&program, step)).collect::<Vec<_>>(), expected);
            }
        }
    }

    /// Branches that lead to feature maps are run for these alone, others not at all.
    const BRANCHES: Middle = |graph, x| {
        let conv = |stride| Conv::new([4, 4], 3, LayerRole::Hidden).with_stride(stride);
        let side = graph.conv("side", conv(2), x)?;
        graph.tap("side", side)?;
        let nothing = graph.conv("nothing", conv(1), x)?;
        graph.relu(nothing)?;
        graph.conv("main", conv(1), x)
    };

    #[test]
    fn what_nothing_asks_for_is_not_run() {
        let program = program(BRANCHES);
        let words =
            |steps: &[Step]| -> Vec<String> { steps.iter().map(|step| words(&program, step)).collect() };
        assert_eq!(words(&program.for_logits), ["stem", "main", "last", "globalavgpool", "fc"]);
        assert_eq!(words(&program.for_features), ["stem", "side|main", "last", "globalavgpool", "fc"]);
    }

    /// The values that are left after `steps`, and the most that are held at a time.
    fn run(program: &Program, steps: &[Step], what: &str) -> (Vec<NodeId>, usize) {
        let mut alive = vec![program.graph.input()];
        let mut most = 0;
        for step in steps {
            for operand in step.clone().operands_mut() {
                assert!(alive.contains(&operand.node), "{what}: {operand:?} of {step:?}");
                alive.retain(|node| !(operand.is_last && *node == operand.node));
            }
            match step {
                Step::Convs { convs, .. } => alive.extend(convs.iter().map(|conv| conv.output)),
                Step::Norm { output, .. }
                | Step::Linear { output, .. }
                | Step::Scale { output, .. }
                | Step::ReluOfSum { output, .. }
                | Step::Plain { output, .. } => alive.push(*output),
            }
            most = most.max(alive.len());
        }
        alive.sort();
        (alive, most)
    }

    /// Every value is read for the last time once, and what is asked for never.
    #[test]
    fn values_are_dropped_after_their_last_use() {
        let input = InputShape { channels: 3, height: 8, width: 8 };
        for config in [ModelConfig::new(Family::ResNet, 8), ModelConfig::new(Family::PreResNet, 8)] {
            let program = Program::new(config.graph(input, 10).unwrap());
            let (_, most) = run(&program, &program.for_logits, "");
            assert_eq!(most, 2, "{config:?}");
        }
        let graphs = SEEN.iter().map(|(middle, _)| program(*middle)).chain([program(BRANCHES)]);
        let families = [
            ModelConfig::new(Family::ResNet, 8),
            ModelConfig::new(Family::PreResNet, 8),
            ModelConfig::vgg_small(),
            ModelConfig::alexnet(Layout::Cifar),
        ];
        let families = families.map(|config| Program::new(config.graph(input, 10).unwrap()));
        for program in graphs.chain(families) {
            let what = format!("{:?}", program.graph);
            assert_eq!(run(&program, &program.for_logits, &what).0, [program.graph.output()], "{what}");
            let mut wanted: Vec<NodeId> = program.graph.taps().iter().map(|tap| tap.node).collect();
            wanted.push(program.graph.output());
            assert_eq!(run(&program, &program.for_features, &what).0, wanted, "{what}");
        }
    }
}
