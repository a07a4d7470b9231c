//! The families of networks: each is one file that says its settings and builds a graph. [`Family`] lists them.

mod alexnet;
mod mobilenet_v2;
mod preresnet;
mod residual;
mod resnet;
mod vgg_small;

use lowbit_core::graph::NodeId;
use lowbit_core::{Graph, GraphBuilder};

use crate::{Family, InputShape, Layout, ModelConfig, ModelError};

/// Which settings of a [`ModelConfig`] the networks of a family have.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Its name, as in recipes.
    pub name: &'static str,
    /// The layouts; a single one is no setting.
    pub layouts: &'static [Layout],
    /// The depths that are chosen from, if there are several.
    pub depths: Option<Depths>,
    /// Whether BatchNorm may be left out.
    pub may_drop_norm: bool,
    /// Strides of the first convolution in a layout, the default first; a single one is no setting.
    pub stem_strides: fn(Layout) -> &'static [usize],
    /// Names of the feature maps in a layout.
    pub(crate) taps: fn(Layout) -> &'static [&'static str],
    /// The network of a configuration that has only these settings.
    pub(crate) graph: fn(&ModelConfig, InputShape, usize) -> Result<Graph, ModelError>,
}

/// Numbers of weighted layers.
#[derive(Clone, Copy, Debug)]
pub struct Depths {
    /// Whether a layout has a network of so many.
    pub has: fn(Layout, usize) -> bool,
    /// Those of a layout, for messages.
    pub list: fn(Layout) -> &'static str,
}

impl Family {
    /// The settings that it has.
    pub fn settings(self) -> &'static Settings {
        match self {
            Self::ResNet => &resnet::SETTINGS,
            Self::PreResNet => &preresnet::SETTINGS,
            Self::VggSmall => &vgg_small::SETTINGS,
            Self::AlexNet => &alexnet::SETTINGS,
            Self::MobileNetV2 => &mobilenet_v2::SETTINGS,
        }
    }
}

/// `channels * width`, at least 1.
fn scaled(channels: usize, width: f64) -> usize {
    ((channels as f64 * width).round_ties_even() as usize).max(1)
}

/// The graph that ends with `logits`, after their learned factor if `config` has one.
fn finished(mut graph: GraphBuilder, config: &ModelConfig, logits: NodeId) -> Result<Graph, ModelError> {
    let logits = if config.logit_scale { graph.scale("logit_scale", logits)? } else { logits };
    Ok(graph.finish(logits)?)
}
