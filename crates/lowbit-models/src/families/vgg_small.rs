//! VGG-small: the CIFAR network of the binary and low-bit literature (as in LQ-Nets, Zhang et al. 2018).
//!
//! Three stages of two 3x3 convolutions with BatchNorm and ReLU, each stage ending in a 2x2 max pool, and one classifier:
//! 128-128-M-256-256-M-512-512-M-FC.

use lowbit_core::graph::{Conv, Graph, GraphBuilder, LayerRole, Linear};

use super::{Settings, finished, scaled};
use crate::{InputShape, Layout, ModelConfig, ModelError};

/// Channels of the three stages at width 1.
const STAGE_CHANNELS: [usize; 3] = [128, 256, 512];

/// Names of their outputs.
const STAGES: [&str; 3] = ["stages.0", "stages.1", "stages.2"];

pub(super) const SETTINGS: Settings = Settings {
    name: "vgg-small",
    layouts: &[Layout::Cifar],
    depths: None,
    may_drop_norm: false,
    stem_strides: |_| &[1],
    taps: |_| &STAGES,
    graph,
};

fn graph(config: &ModelConfig, input: InputShape, n_classes: usize) -> Result<Graph, ModelError> {
    let mut graph = GraphBuilder::default();
    let mut x = graph.input(input.dims())?;
    let mut in_channels = input.channels;
    for (stage, (name, channels)) in STAGES.iter().zip(STAGE_CHANNELS).enumerate() {
        let out_channels = scaled(channels, config.width);
        for i in 2 * stage..2 * stage + 2 {
            let role = if i == 0 { LayerRole::First } else { LayerRole::Hidden };
            x = graph.conv(format!("convs.{i}"), Conv::new([in_channels, out_channels], 3, role), x)?;
            x = graph.norm(format!("norms.{i}"), x)?;
            if i % 2 == 1 {
                // The maximum commutes with the ReLU, which has a quarter of the work after it.
                x = graph.max_pool([2, 2, 0], x)?;
            }
            x = graph.relu(x)?;
            in_channels = out_channels;
        }
        graph.tap(*name, x)?;
    }
    let x = graph.flatten(x)?;
    let n_features = graph.shape(x).channels();
    let logits = graph.linear("fc", Linear::new([n_features, n_classes], LayerRole::Last), x)?;
    finished(graph, config, logits)
}
