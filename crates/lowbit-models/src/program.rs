//! What a network does in a forward pass, in order: made once from its graph. Here it is recognized what runs as one operation:
//! a normalization, the ReLU after it and the quantization of what the convolutions after that read; and convolutions
//! of one input, which is quantized once.

use lowbit_core::Graph;
use lowbit_core::graph::{NodeId, Op};

/// The steps of a forward pass.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) graph: Graph,
    /// The nodes with parameters, in forward order: the layers of the module.
    pub(crate) layers: Vec<NodeId>,
    pub(crate) steps: Vec<Step>,
}

/// A value that a step reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operand {
    /// Index of the node whose output it is.
    pub(crate) node: usize,
    /// Whether nothing reads it later.
    pub(crate) is_last: bool,
}

/// An operation on the outputs of nodes, by their indices. Layers are indices in [`Program::layers`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Convolutions, each with the node whose output it makes, after a normalization and a ReLU if there is one.
    Convs { input: Operand, norm: Option<usize>, convs: Vec<(usize, usize)> },
    /// A normalization, with the ReLU after it if there is one.
    Norm { input: Operand, layer: usize, is_relu: bool, output: usize },
    /// A linear layer.
    Linear { input: Operand, layer: usize, output: usize },
    /// An operation without parameters.
    Plain { inputs: Vec<Operand>, op: Op, output: usize },
}

impl Step {
    fn operands_mut(&mut self) -> &mut [Operand] {
        match self {
            Self::Convs { input, .. } | Self::Norm { input, .. } | Self::Linear { input, .. } => {
                std::slice::from_mut(input)
            }
            Self::Plain { inputs, .. } => inputs,
        }
    }
}

impl Program {
    pub(crate) fn new(graph: Graph) -> Self {
        let layers: Vec<NodeId> = graph
            .entries()
            .filter(|(_, node)| matches!(node.op, Op::Conv(_) | Op::Linear(_) | Op::Norm { .. }))
            .map(|(id, _)| id)
            .collect();
        let mut steps = steps(&graph, &layers);
        // Backwards, the first to read a value is the last.
        let mut is_read = vec![false; graph.nodes().len()];
        is_read[graph.output().index()] = true;
        for operand in steps.iter_mut().rev().flat_map(|step| step.operands_mut().iter_mut().rev()) {
            operand.is_last = !std::mem::replace(&mut is_read[operand.node], true);
        }
        Self { graph, layers, steps }
    }

    /// Path of a layer.
    pub(crate) fn path(&self, layer: usize) -> &str {
        &self.graph.node(self.layers[layer]).path
    }
}

fn steps(graph: &Graph, layers: &[NodeId]) -> Vec<Step> {
    let readers = graph.readers();
    let op = |id: NodeId| graph.node(id).op;
    let is_conv = |id: &NodeId| matches!(op(*id), Op::Conv(_));
    // A value that something outside the steps asks for has to be made.
    let is_seen = |id: NodeId| graph.output() == id || graph.taps().iter().any(|tap| tap.node == id);
    let layer = |id: NodeId| layers.binary_search(&id).expect("invariant: it is a layer");
    let operand = |id: NodeId| Operand { node: id.index(), is_last: false };
    let convs = |ids: &[NodeId]| ids.iter().map(|id| (layer(*id), id.index())).collect();
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
                            Step::Norm { input, layer, is_relu: true, output: relu.index() }
                        }
                    }
                    _ => Step::Norm { input, layer, is_relu: false, output: id.index() },
                }
            }
            Op::Conv(_) => {
                let beside = readers[node.inputs[0].index()].iter().copied().filter(is_conv);
                let all: Vec<NodeId> = beside.collect();
                all.iter().for_each(|conv| is_done[conv.index()] = true);
                Step::Convs { input: operand(node.inputs[0]), norm: None, convs: convs(&all) }
            }
            Op::Linear(_) => {
                Step::Linear { input: operand(node.inputs[0]), layer: layer(id), output: id.index() }
            }
            op @ (Op::Relu | Op::Add | Op::MaxPool { .. } | Op::GlobalAvgPool | Op::Flatten) => {
                let inputs = node.inputs.iter().copied().map(operand).collect();
                Step::Plain { inputs, op, output: id.index() }
            }
        });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Family, InputShape, Layout, ModelConfig};

    fn describe(config: &ModelConfig) -> Vec<String> {
        let input = InputShape { channels: 3, height: 64, width: 64 };
        let program = Program::new(config.graph(input, 10).unwrap());
        let path = |layer: usize| program.path(layer);
        let words = |step: &Step| match step {
            Step::Convs { norm, convs, .. } => {
                let convs: Vec<&str> = convs.iter().map(|(layer, _)| path(*layer)).collect();
                let norm = norm.map(|norm| format!("{}+relu+", path(norm))).unwrap_or_default();
                format!("{norm}{}", convs.join("|"))
            }
            Step::Norm { layer, is_relu, .. } => {
                format!("{}{}", path(*layer), if *is_relu { "+relu" } else { "" })
            }
            Step::Linear { layer, .. } => path(*layer).into(),
            Step::Plain { op, .. } => format!("{op:?}").split([' ', '{']).next().unwrap().to_lowercase(),
        };
        program.steps.iter().map(words).collect()
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
            "add",
            "relu",
        ];
        assert_eq!(resnet[..10], expected);
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

    /// Every value is read for the last time once, and the output never.
    #[test]
    fn values_are_dropped_after_their_last_use() {
        for config in [ModelConfig::new(Family::ResNet, 8), ModelConfig::new(Family::PreResNet, 8)] {
            let input = InputShape { channels: 3, height: 8, width: 8 };
            let mut program = Program::new(config.graph(input, 10).unwrap());
            let mut alive = vec![0];
            let mut most = 0;
            for step in &mut program.steps {
                for operand in step.operands_mut() {
                    assert!(alive.contains(&operand.node), "{config:?}: {step:?}", step = operand);
                    alive.retain(|node| !(operand.is_last && *node == operand.node));
                }
                match step {
                    Step::Convs { convs, .. } => alive.extend(convs.iter().map(|(_, output)| *output)),
                    Step::Norm { output, .. } | Step::Linear { output, .. } | Step::Plain { output, .. } => {
                        alive.push(*output);
                    }
                }
                most = most.max(alive.len());
            }
            assert_eq!(alive, [program.graph.output().index()], "{config:?}");
            assert_eq!(most, 2, "{config:?}");
        }
    }
}
