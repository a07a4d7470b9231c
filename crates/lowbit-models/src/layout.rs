//! The arrangement of a residual network: its stem, stages and blocks, and how their layers are called.

use std::fmt;

use lowbit_quantizers::{LayerRole, QuantConv2dConfig};
use serde::{Deserialize, Serialize};

use crate::builder::scaled;
use crate::plan::NetworkShapes;
use crate::{Family, InputShape, ModelConfig, ModelError};

/// No network is deeper: one layer more costs memory before anything can be refused.
const MAX_DEPTH: usize = 10_000;

/// How a residual network is arranged. Every layout takes images of any size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// For small images (He et al. 2016, section 4.2): a 3x3 stem and three stages of 16, 32 and 64 channels, of depth
    /// 6n+2.
    #[default]
    Cifar,
    /// For images of 224x224 pixels (He et al. 2016, table 1): a 7x7 stem, a 3x3 max pool of stride 2 and four stages
    /// of 64, 128, 256 and 512 channels, of depth 18 or 34; at depth 50 the blocks are bottlenecks, of four times as
    /// many output channels. Layers have torchvision's names.
    ImageNet,
}

impl Layout {
    /// The depths of its networks, for messages.
    pub fn depths(self) -> &'static str {
        match self {
            Self::Cifar => "6n+2 up to 9998: 8, 14, 20, 32, 44, 56 or 110",
            Self::ImageNet => "18, 34 or 50",
        }
    }

    /// Whether it has a network of `depth` weighted layers (the shortcuts do not count).
    pub fn has_depth(self, depth: usize) -> bool {
        self.blocks(depth).is_some()
    }

    /// Stride of the first convolution unless it is said otherwise.
    pub fn default_stem_stride(self) -> usize {
        match self {
            Self::Cifar => 1,
            Self::ImageNet => 2,
        }
    }

    /// Paths of the stages.
    pub fn stage_names(self) -> &'static [&'static str] {
        match self {
            Self::Cifar => &["stages.0", "stages.1", "stages.2"],
            Self::ImageNet => &["layer1", "layer2", "layer3", "layer4"],
        }
    }

    fn stem_name(self) -> &'static str {
        match self {
            Self::Cifar => "stem",
            Self::ImageNet => "conv1",
        }
    }

    fn shortcut_name(self) -> &'static str {
        match self {
            Self::Cifar => "shortcut",
            Self::ImageNet => "downsample.0",
        }
    }

    /// The kind of the blocks and their number in every stage.
    fn blocks(self, depth: usize) -> Option<(BlockKind, Vec<usize>)> {
        match (self, depth) {
            (Self::Cifar, 8..=MAX_DEPTH) if (depth - 2).is_multiple_of(6) => {
                Some((BlockKind::Basic, vec![(depth - 2) / 6; 3]))
            }
            (Self::ImageNet, 18) => Some((BlockKind::Basic, vec![2, 2, 2, 2])),
            (Self::ImageNet, 34) => Some((BlockKind::Basic, vec![3, 4, 6, 3])),
            (Self::ImageNet, 50) => Some((BlockKind::Bottleneck, vec![3, 4, 6, 3])),
            _ => None,
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Layout::Cifar => "cifar",
            Layout::ImageNet => "imagenet",
        })
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

impl BlockKind {
    /// Output channels as a multiple of those of the 3x3 convolutions.
    fn expansion(self) -> usize {
        match self {
            Self::Basic => 1,
            Self::Bottleneck => 4,
        }
    }
}

/// A residual network of some layout, depth and width: each stage has twice the channels of the one before, and all but
/// the first begin with stride 2.
pub(crate) struct ResidualLayout {
    layout: Layout,
    /// Family of the network.
    pub(crate) family: Family,
    pub(crate) stem_channels: usize,
    stem_stride: usize,
    block_kind: BlockKind,
    /// Number of blocks in every stage.
    blocks: Vec<usize>,
}

/// Where one residual block stands.
#[derive(Clone, Copy)]
pub(crate) struct BlockSpec {
    pub(crate) in_channels: usize,
    /// Channels between the 1x1 convolutions of a bottleneck.
    bottleneck_channels: Option<usize>,
    pub(crate) out_channels: usize,
    pub(crate) stride: usize,
    /// Height and width of the input.
    pub(crate) size: [usize; 2],
}

impl BlockSpec {
    /// Height and width of the output.
    pub(crate) fn out_size(&self) -> [usize; 2] {
        self.size.map(|side| side.div_ceil(self.stride))
    }

    /// Whether the input can be added to the output as it is.
    pub(crate) fn keeps_shape(&self) -> bool {
        self.in_channels == self.out_channels && self.stride == 1
    }

    /// The convolutions in forward order, each with the height and width of its input. The stride is that of the first
    /// 3x3 convolution: in a bottleneck of the paper it is that of the first 1x1, which throws away three quarters of
    /// the input; torchvision's networks have it here.
    pub(crate) fn convs(&self) -> Vec<(QuantConv2dConfig, [usize; 2])> {
        let Self { in_channels, bottleneck_channels, out_channels, stride, size } = *self;
        match bottleneck_channels {
            None => vec![
                (QuantConv2dConfig::new([in_channels, out_channels], 3).with_stride(stride), size),
                (QuantConv2dConfig::new([out_channels, out_channels], 3), self.out_size()),
            ],
            Some(middle) => vec![
                (QuantConv2dConfig::new([in_channels, middle], 1), size),
                (QuantConv2dConfig::new([middle, middle], 3).with_stride(stride), size),
                (QuantConv2dConfig::new([middle, out_channels], 1), self.out_size()),
            ],
        }
    }

    /// The 1x1 convolution of the input, where the shape changes.
    pub(crate) fn shortcut(&self) -> Option<QuantConv2dConfig> {
        let conv = QuantConv2dConfig::new([self.in_channels, self.out_channels], 1).with_stride(self.stride);
        (!self.keeps_shape()).then_some(conv)
    }
}

impl ResidualLayout {
    pub(crate) fn new(config: &ModelConfig) -> Result<Self, ModelError> {
        let ModelConfig { family, layout, depth, width, stem_stride } = *config;
        let got = depth.ok_or(ModelError::NoDepth { family, layout })?;
        let (block_kind, blocks) = layout.blocks(got).ok_or(ModelError::Depth { layout, got })?;
        let stem_channels = match layout {
            Layout::Cifar => 16,
            Layout::ImageNet => 64,
        };
        Ok(Self {
            layout,
            family,
            stem_channels: scaled(stem_channels, width),
            stem_stride,
            block_kind,
            blocks,
        })
    }

    /// The first convolution.
    pub(crate) fn stem(&self, in_channels: usize) -> QuantConv2dConfig {
        let kernel_size = match self.layout {
            Layout::Cifar => 3,
            Layout::ImageNet => 7,
        };
        QuantConv2dConfig::new([in_channels, self.stem_channels], kernel_size).with_stride(self.stem_stride)
    }

    /// What a network of this layout is made of. In a pre-activation network a BatchNorm precedes each convolution and
    /// the pool, in the other one it follows each convolution, that of a shortcut too.
    pub(crate) fn shapes(&self, input: InputShape, n_classes: usize) -> NetworkShapes {
        let mut shapes = NetworkShapes::default();
        let is_pre_activation = self.family == Family::PreResNet;
        let stem = self.stem(input.channels);
        shapes.push_conv(self.layout.stem_name(), LayerRole::First, stem, [input.height, input.width]);
        if !is_pre_activation {
            shapes.push_norm(self.stem_channels);
        }
        let block = |path: &str, spec: BlockSpec| {
            for (i, (config, size)) in spec.convs().into_iter().enumerate() {
                shapes.push_conv(format!("{path}.conv{}", i + 1), LayerRole::Hidden, config, size);
                shapes.push_norm(if is_pre_activation { config.in_channels } else { config.out_channels });
            }
            if let Some(config) = spec.shortcut() {
                let path = format!("{path}.{}", self.layout.shortcut_name());
                shapes.push_conv(path, LayerRole::Shortcut, config, spec.size);
                if !is_pre_activation {
                    shapes.push_norm(config.out_channels);
                }
            }
            Ok(())
        };
        self.stages(input, block).expect("invariant: making a list does not fail");
        if is_pre_activation {
            shapes.push_norm(self.final_channels());
        }
        shapes.push_linear("fc", self.final_channels(), n_classes);
        shapes
    }

    /// Shapes of the stages' outputs.
    pub(crate) fn tap_shapes(&self, input: InputShape) -> Vec<[usize; 3]> {
        let shape = |stage: usize| {
            let [height, width] = self.stages_size(input).map(|side| side.div_ceil(1 << stage));
            [self.out_channels(stage), height, width]
        };
        (0..self.blocks.len()).map(shape).collect()
    }

    /// Height and width that the first stage sees.
    fn stages_size(&self, input: InputShape) -> [usize; 2] {
        let pool_stride = match self.layout {
            Layout::Cifar => 1,
            Layout::ImageNet => 2,
        };
        [input.height, input.width].map(|side| side.div_ceil(self.stem_stride).div_ceil(pool_stride))
    }

    /// Channels of a stage's output.
    fn out_channels(&self, stage: usize) -> usize {
        (self.stem_channels << stage) * self.block_kind.expansion()
    }

    pub(crate) fn final_channels(&self) -> usize {
        self.out_channels(self.blocks.len() - 1)
    }

    /// The blocks of every stage with their paths, built in order by `build`.
    pub(crate) fn stages<B>(
        &self,
        input: InputShape,
        mut build: impl FnMut(&str, BlockSpec) -> Result<B, ModelError>,
    ) -> Result<Vec<Vec<B>>, ModelError> {
        let mut in_channels = self.stem_channels;
        let mut size = self.stages_size(input);
        let stages = self.layout.stage_names().iter().zip(&self.blocks).enumerate();
        stages
            .map(|(stage, (name, &n_blocks))| {
                let out_channels = self.out_channels(stage);
                let bottleneck_channels =
                    (self.block_kind == BlockKind::Bottleneck).then_some(self.stem_channels << stage);
                (0..n_blocks)
                    .map(|block| {
                        let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                        let spec = BlockSpec { in_channels, bottleneck_channels, out_channels, stride, size };
                        in_channels = out_channels;
                        size = spec.out_size();
                        build(&format!("{name}.{block}"), spec)
                    })
                    .collect()
            })
            .collect()
    }
}
