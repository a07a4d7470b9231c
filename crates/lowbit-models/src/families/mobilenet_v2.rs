//! MobileNetV2, Sandler et al. 2018 (arXiv 1801.04381), table 2, with the paths of torchvision's `mobilenet_v2`, so that its weights fit.
//!
//! A block widens its input six times by a 1x1 convolution, filters every channel on its own, and narrows again without an
//! activation: a linear bottleneck, added to its input where the shape stays. BatchNorm follows each convolution, ReLU6 each but the
//! last of a block. The dropout before the classifier, which does nothing in evaluation, is left out.
//!
//! What a bottleneck makes is not positive: a convolution that quantizes it needs a method with a zero point or an offset
//! ([`Graph::may_be_negative`]).
//!
//! The CIFAR layout is that of common reimplementations for 32x32 pixels: the stem and the second stage keep the size, so that 4x4
//! places are left. Its weights have the same shapes.

use lowbit_core::graph::{Conv, Graph, GraphBuilder, GraphError, LayerRole, Linear, NodeId};

use super::{Settings, finished};
use crate::{InputShape, Layout, ModelConfig, ModelError};

/// Expansion, channels, blocks and first stride of the stages.
const STAGES: [[usize; 4]; 7] = [
    [1, 16, 1, 1],
    [6, 24, 2, 2],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
];

/// Channels of the first and the last convolution.
const STEM: usize = 32;
const LAST: usize = 1280;

/// The last blocks before the size changes, and the last of all.
const TAPS: [&str; 4] = ["features.3", "features.6", "features.13", "features.17"];

pub(super) const SETTINGS: Settings = Settings {
    name: "mobilenetv2",
    layouts: &[Layout::Cifar, Layout::ImageNet],
    depths: None,
    may_drop_norm: false,
    stem_strides: |layout| match layout {
        Layout::Cifar => &[1, 2],
        Layout::ImageNet => &[2, 1],
    },
    taps: |_| &TAPS,
    graph,
};

/// `channels * width` to the nearest multiple of 8, but no less than nine tenths of it, as torchvision rounds.
fn scaled(channels: usize, width: f64) -> usize {
    let exact = channels as f64 * width;
    let nearest = ((exact + 4.0) as usize / 8 * 8).max(8);
    if (nearest as f64) < 0.9 * exact { nearest + 8 } else { nearest }
}

fn graph(config: &ModelConfig, input: InputShape, n_classes: usize) -> Result<Graph, ModelError> {
    let ModelConfig { layout, width, stem_stride, .. } = *config;
    let mut graph = GraphBuilder::default();
    let image = graph.input(input.dims())?;
    let mut channels = scaled(STEM, width);
    let stem = Conv::new([input.channels, channels], 3, LayerRole::First).with_stride(stem_stride);
    let mut x = unit(&mut graph, ["features.0.0", "features.0.1"], stem, image)?;
    x = graph.relu6(x)?;
    let mut place = 1;
    for (stage, [expansion, out_channels, n_blocks, stride]) in STAGES.into_iter().enumerate() {
        let out_channels = scaled(out_channels, width);
        for block in 0..n_blocks {
            let stride = match (layout, stage, block) {
                (Layout::Cifar, 1, _) => 1,
                (_, _, 0) => stride,
                _ => 1,
            };
            let path = format!("features.{place}");
            let shape = Block { path: &path, expansion, channels: [channels, out_channels], stride };
            x = shape.add(&mut graph, x)?;
            if TAPS.contains(&path.as_str()) {
                graph.tap(path, x)?;
            }
            channels = out_channels;
            place += 1;
        }
    }
    let last = Conv::new([channels, scaled(LAST, width.max(1.0))], 1, LayerRole::Hidden);
    x = unit(&mut graph, [&format!("features.{place}.0"), &format!("features.{place}.1")], last, x)?;
    x = graph.relu6(x)?;
    let pooled = graph.global_avg_pool(x)?;
    let linear = Linear::new([last.out_channels, n_classes], LayerRole::Last);
    let logits = graph.linear("classifier.1", linear, pooled)?;
    finished(graph, config, logits)
}

/// An inverted residual block.
struct Block<'a> {
    path: &'a str,
    expansion: usize,
    channels: [usize; 2],
    stride: usize,
}

impl Block<'_> {
    fn add(&self, graph: &mut GraphBuilder, input: NodeId) -> Result<NodeId, GraphError> {
        let Self { path, expansion, channels: [in_channels, out_channels], stride } = *self;
        let hidden = expansion * in_channels;
        let conv = |channels, kernel| Conv::new(channels, kernel, LayerRole::Hidden);
        let depthwise = Conv { groups: hidden, ..conv([hidden, hidden], 3).with_stride(stride) };
        // The first stage widens nothing.
        let mut units = if expansion == 1 { vec![] } else { vec![conv([in_channels, hidden], 1)] };
        units.push(depthwise);
        let mut x = input;
        for (i, conv) in units.iter().enumerate() {
            x = unit(graph, [&format!("{path}.conv.{i}.0"), &format!("{path}.conv.{i}.1")], *conv, x)?;
            x = graph.relu6(x)?;
        }
        let n = units.len();
        let narrow = conv([hidden, out_channels], 1);
        x = unit(graph, [&format!("{path}.conv.{n}"), &format!("{path}.conv.{}", n + 1)], narrow, x)?;
        if stride == 1 && in_channels == out_channels { graph.add([input, x]) } else { Ok(x) }
    }
}

/// A convolution and its BatchNorm.
fn unit(
    graph: &mut GraphBuilder,
    [path, norm]: [&str; 2],
    conv: Conv,
    x: NodeId,
) -> Result<NodeId, GraphError> {
    let x = graph.conv(path, conv, x)?;
    graph.norm(norm, x)
}
