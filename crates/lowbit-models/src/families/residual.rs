//! What ResNet and PreResNet share: stem, stages and blocks of both layouts, and how their layers are called.

use lowbit_core::graph::{Conv, Graph, GraphBuilder, GraphError, LayerRole, Linear, NodeId};

use super::{Depths, Settings, finished, scaled};
use crate::{InputShape, Layout, ModelConfig, ModelError};

/// No network is deeper: one layer more costs memory before anything can be refused.
const MAX_DEPTH: usize = 10_000;

/// Of the family called `name`.
pub(super) const fn settings(
    name: &'static str,
    graph: fn(&ModelConfig, InputShape, usize) -> Result<Graph, ModelError>,
) -> Settings {
    Settings {
        name,
        layouts: &[Layout::Cifar, Layout::ImageNet],
        depths: Some(Depths { has: |layout, depth| blocks(layout, depth).is_some(), list: depths }),
        may_drop_norm: false,
        stem_strides: |layout| match layout {
            Layout::Cifar => &[1, 2],
            Layout::ImageNet => &[2, 1],
        },
        taps: |layout| Names::of(layout).stages,
        graph,
    }
}

/// Paths of the layers of a layout.
pub(super) struct Names {
    stem: &'static str,
    pub(super) stem_norm: &'static str,
    stages: &'static [&'static str],
    conv: &'static str,
    norm: &'static str,
    shortcut: &'static str,
    shortcut_norm: &'static str,
    /// BatchNorm before the classifier.
    pub(super) last_norm: &'static str,
}

const CIFAR: Names = Names {
    stem: "stem",
    stem_norm: "norm",
    stages: &["stages.0", "stages.1", "stages.2"],
    conv: "conv",
    norm: "norm",
    shortcut: "shortcut",
    shortcut_norm: "shortcut_norm",
    last_norm: "norm",
};

/// Torchvision's.
const IMAGENET: Names = Names {
    stem: "conv1",
    stem_norm: "bn1",
    stages: &["layer1", "layer2", "layer3", "layer4"],
    conv: "conv",
    norm: "bn",
    shortcut: "downsample.0",
    shortcut_norm: "downsample.1",
    last_norm: "norm",
};

impl Names {
    fn of(layout: Layout) -> &'static Self {
        match layout {
            Layout::Cifar => &CIFAR,
            Layout::ImageNet => &IMAGENET,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum BlockKind {
    /// Two 3x3 convolutions.
    Basic,
    /// A 3x3 convolution between two of 1x1, the last of which has four times as many channels (He et al. 2016,
    /// section 4.1).
    Bottleneck,
}

/// The depths of a layout, for messages.
fn depths(layout: Layout) -> &'static str {
    match layout {
        Layout::Cifar => "6n+2 up to 9998: 8, 14, 20, 32, 44, 56 or 110",
        Layout::ImageNet => "18, 34, 50 or 101",
    }
}

/// The kind of the blocks and their number in every stage of a network of `depth` weighted layers (the shortcuts do not count).
fn blocks(layout: Layout, depth: usize) -> Option<(BlockKind, Vec<usize>)> {
    match (layout, depth) {
        (Layout::Cifar, 8..=MAX_DEPTH) if (depth - 2).is_multiple_of(6) => {
            Some((BlockKind::Basic, vec![(depth - 2) / 6; 3]))
        }
        (Layout::ImageNet, 18) => Some((BlockKind::Basic, vec![2, 2, 2, 2])),
        (Layout::ImageNet, 34) => Some((BlockKind::Basic, vec![3, 4, 6, 3])),
        (Layout::ImageNet, 50) => Some((BlockKind::Bottleneck, vec![3, 4, 6, 3])),
        (Layout::ImageNet, 101) => Some((BlockKind::Bottleneck, vec![3, 4, 23, 3])),
        _ => None,
    }
}

/// One residual block.
pub(super) struct Block {
    path: String,
    names: &'static Names,
    /// The convolutions in forward order. The stride is that of the first 3x3 one: in a bottleneck of the paper it is that
    /// of the first 1x1, which throws away three quarters of the input; torchvision's networks have it here.
    pub(super) convs: Vec<Conv>,
    /// The 1x1 convolution of the input, where the shape changes.
    pub(super) shortcut: Option<Conv>,
}

impl Block {
    fn new(
        path: String,
        names: &'static Names,
        kind: BlockKind,
        [input, middle]: [usize; 2],
        stride: usize,
    ) -> Self {
        let conv = |channels, kernel| Conv::new(channels, kernel, LayerRole::Hidden);
        let (output, convs) = match kind {
            BlockKind::Basic => {
                (middle, vec![conv([input, middle], 3).with_stride(stride), conv([middle, middle], 3)])
            }
            BlockKind::Bottleneck => (
                4 * middle,
                vec![
                    conv([input, middle], 1),
                    conv([middle, middle], 3).with_stride(stride),
                    conv([middle, 4 * middle], 1),
                ],
            ),
        };
        let shortcut = Conv::new([input, output], 1, LayerRole::Shortcut).with_stride(stride);
        Self { path, names, convs, shortcut: (input != output || stride != 1).then_some(shortcut) }
    }

    fn out_channels(&self) -> usize {
        self.convs.last().map_or(0, |conv| conv.out_channels)
    }

    /// Path of convolution `i`, from 0.
    pub(super) fn conv(&self, i: usize) -> String {
        format!("{}.{}{}", self.path, self.names.conv, i + 1)
    }

    /// Path of the BatchNorm before or after convolution `i`, from 0.
    pub(super) fn norm(&self, i: usize) -> String {
        format!("{}.{}{}", self.path, self.names.norm, i + 1)
    }

    /// Path of the convolution beside the block.
    pub(super) fn shortcut_path(&self) -> String {
        format!("{}.{}", self.path, self.names.shortcut)
    }

    /// Path of the BatchNorm after it.
    pub(super) fn shortcut_norm(&self) -> String {
        format!("{}.{}", self.path, self.names.shortcut_norm)
    }
}

/// What a family puts around and into its blocks.
pub(super) struct Parts {
    pub(super) after_stem: fn(&mut GraphBuilder, &Names, NodeId) -> Result<NodeId, GraphError>,
    pub(super) block: fn(&mut GraphBuilder, &Block, NodeId) -> Result<NodeId, GraphError>,
    pub(super) before_pool: fn(&mut GraphBuilder, &Names, NodeId) -> Result<NodeId, GraphError>,
}

/// Stem, in the ImageNet layout a max pool, stages of blocks, each with twice the channels of the one before and all but
/// the first beginning with stride 2, average pool and classifier.
pub(super) fn graph(
    config: &ModelConfig,
    input: InputShape,
    n_classes: usize,
    parts: &Parts,
) -> Result<Graph, ModelError> {
    let ModelConfig { family, layout, depth, width, stem_stride, .. } = *config;
    let expected = depths(layout);
    let got = depth.ok_or(ModelError::NoDepth { family, expected })?;
    let (kind, n_blocks) = blocks(layout, got).ok_or(ModelError::Depth { layout, got, expected })?;
    let names = Names::of(layout);
    let (kernel, stem_channels) = match layout {
        Layout::Cifar => (3, scaled(16, width)),
        Layout::ImageNet => (7, scaled(64, width)),
    };
    let mut graph = GraphBuilder::default();
    let image = graph.input(input.dims())?;
    let stem = Conv::new([input.channels, stem_channels], kernel, LayerRole::First).with_stride(stem_stride);
    let mut x = graph.conv(names.stem, stem, image)?;
    x = (parts.after_stem)(&mut graph, names, x)?;
    if layout == Layout::ImageNet {
        x = graph.max_pool([3, 2, 1], x)?;
    }
    let mut channels = stem_channels;
    for (stage, (name, &n_blocks)) in names.stages.iter().zip(&n_blocks).enumerate() {
        for block in 0..n_blocks {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let block = Block::new(
                format!("{name}.{block}"),
                names,
                kind,
                [channels, stem_channels << stage],
                stride,
            );
            x = (parts.block)(&mut graph, &block, x)?;
            channels = block.out_channels();
        }
        graph.tap(*name, x)?;
    }
    x = (parts.before_pool)(&mut graph, names, x)?;
    let pooled = graph.global_avg_pool(x)?;
    let logits = graph.linear("fc", Linear::new([channels, n_classes], LayerRole::Last), pooled)?;
    finished(graph, config, logits)
}
