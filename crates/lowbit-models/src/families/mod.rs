//! The families of networks: each is one file that builds a graph.

mod alexnet;
mod preresnet;
mod residual;
mod resnet;
mod vgg_small;

use lowbit_core::Graph;

use crate::{Family, InputShape, Layout, ModelConfig, ModelError};

/// Which settings of a [`ModelConfig`] the networks of a family have.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The layouts; a single one is no setting.
    pub layouts: &'static [Layout],
    /// Whether the depth is chosen.
    pub has_depth: bool,
    /// Whether BatchNorm may be left out.
    pub has_norm: bool,
    /// Strides of the first convolution in a layout, the default first; a single one is no setting.
    pub stem_strides: fn(Layout) -> &'static [usize],
    /// Names of the feature maps in a layout.
    pub(crate) taps: fn(Layout) -> &'static [&'static str],
    /// Smallest height and width of the images in a layout with a stride of the first convolution.
    pub least_side: fn(Layout, usize) -> usize,
}

impl Family {
    /// The settings that it has.
    pub fn settings(self) -> &'static Settings {
        match self {
            Self::ResNet | Self::PreResNet => &residual::SETTINGS,
            Self::VggSmall => &vgg_small::SETTINGS,
            Self::AlexNet => &alexnet::SETTINGS,
        }
    }
}

/// The network of `config`, whose settings are among those of its family.
pub(crate) fn graph(config: &ModelConfig, input: InputShape, n_classes: usize) -> Result<Graph, ModelError> {
    match config.family {
        Family::ResNet => resnet::graph(config, input, n_classes),
        Family::PreResNet => preresnet::graph(config, input, n_classes),
        Family::VggSmall => vgg_small::graph(config, input, n_classes),
        Family::AlexNet => alexnet::graph(config, input, n_classes),
    }
}

/// `channels * width`, at least 1.
fn scaled(channels: usize, width: f64) -> usize {
    ((channels as f64 * width).round_ties_even() as usize).max(1)
}
