//! AlexNet: five convolutions and three linear layers, in the form of Krizhevsky 2014 (arXiv 1404.5997), which is
//! torchvision's.
//!
//! - With BatchNorm after every convolution and linear layer but the last, as in Zhuang et al. 2021: what it follows has no
//!   bias, whose place its shift takes. There is no dropout.
//! - Without BatchNorm it is torchvision's `alexnet`: layers and parameters have its paths, so that its weights fit. Its
//!   dropout, which does nothing in evaluation, is left out.
//!
//! In the ImageNet layout the first convolution is 11x11 with stride 4. Torchvision has an adaptive pool before the classifier,
//! which does nothing to images of 224x224; here the first linear layer takes what there is of images of another size.
//! The CIFAR layout is a decision of this project: 3x3 convolutions with the channels of the other, and pools of 2x2, so
//! that images of 32x32 leave 4x4 places, and linear layers of a quarter of the features.

use lowbit_core::graph::{Conv, Graph, GraphBuilder, GraphError, LayerRole, Linear, NodeId};

use super::{Settings, finished, scaled};
use crate::{InputShape, Layout, ModelConfig, ModelError};

/// Channels of the convolutions at width 1.
const CHANNELS: [usize; 5] = [64, 192, 384, 256, 256];

/// The convolutions that a pool follows, and the names of its outputs: torchvision's paths.
const POOLED: [usize; 3] = [0, 1, 4];
const TAPS: [&str; 3] = ["features.2", "features.5", "features.12"];

/// Places of the convolutions and linear layers in torchvision's modules, whose other places are those of ReLU, pool and
/// dropout.
const CONV_PLACES: [usize; 5] = [0, 3, 6, 8, 10];
const LINEAR_PLACES: [usize; 3] = [1, 4, 6];

pub(super) const SETTINGS: Settings = Settings {
    name: "alexnet",
    layouts: &[Layout::Cifar, Layout::ImageNet],
    depths: None,
    may_drop_norm: true,
    stem_strides: |layout| match layout {
        Layout::Cifar => &[1, 2],
        Layout::ImageNet => &[4],
    },
    taps: |_| &TAPS,
    graph,
};

fn graph(config: &ModelConfig, input: InputShape, n_classes: usize) -> Result<Graph, ModelError> {
    let ModelConfig { layout, width, stem_stride, norm, .. } = *config;
    let norm = norm.unwrap_or(true);
    let (pool, n_hidden) = match layout {
        Layout::Cifar => ([2, 2, 0], scaled(1024, width)),
        Layout::ImageNet => ([3, 2, 0], scaled(4096, width)),
    };
    let mut graph = GraphBuilder::default();
    let mut x = graph.input(input.dims())?;
    let mut in_channels = input.channels;
    for (i, (channels, place)) in CHANNELS.into_iter().zip(CONV_PLACES).enumerate() {
        let channels = [in_channels, scaled(channels, width)];
        let conv = match (layout, i) {
            (Layout::ImageNet, 0) => Conv::new(channels, 11, LayerRole::First).with_padding(2),
            (Layout::ImageNet, 1) => Conv::new(channels, 5, LayerRole::Hidden),
            (Layout::Cifar, 0) => Conv::new(channels, 3, LayerRole::First),
            _ => Conv::new(channels, 3, LayerRole::Hidden),
        };
        let conv = if i == 0 { conv.with_stride(stem_stride) } else { conv };
        let conv = if norm { conv } else { conv.with_bias() };
        x = graph.conv(format!("features.{place}"), conv, x)?;
        x = activate(&mut graph, norm.then(|| format!("norms.{i}")), x)?;
        if let Some(tap) = POOLED.iter().position(|&pooled| pooled == i) {
            x = graph.max_pool(pool, x)?;
            graph.tap(TAPS[tap], x)?;
        }
        in_channels = conv.out_channels;
    }
    x = graph.flatten(x)?;
    for (i, place) in LINEAR_PLACES.into_iter().enumerate() {
        let n_features = graph.shape(x).channels();
        let path = format!("classifier.{place}");
        if i == 2 {
            x = graph.linear(path, Linear::new([n_features, n_classes], LayerRole::Last), x)?;
            continue;
        }
        let linear = Linear::new([n_features, n_hidden], LayerRole::Hidden);
        x = graph.linear(path, if norm { linear.without_bias() } else { linear }, x)?;
        x = activate(&mut graph, norm.then(|| format!("norms.{}", CHANNELS.len() + i)), x)?;
    }
    finished(graph, config, x)
}

/// A ReLU, after a BatchNorm if there is a path for it.
fn activate(graph: &mut GraphBuilder, norm: Option<String>, x: NodeId) -> Result<NodeId, GraphError> {
    let x = match norm {
        Some(path) => graph.norm(path, x)?,
        None => x,
    };
    graph.relu(x)
}
