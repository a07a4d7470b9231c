//! Residual network, He et al. 2016 (arXiv 1512.03385): in the CIFAR layout, section 4.2, of depth 6n+2, in the ImageNet
//! layout, table 1, of depth 18, 34 or 50.
//!
//! BatchNorm follows each convolution, that of a shortcut too; a ReLU follows each but the last of a block, and the sum. The
//! shortcuts are 1x1 projections with BatchNorm (option B of the paper), as in the networks of Zhuang et al.; the CIFAR
//! networks of He et al. have parameter-free shortcuts (option A).

use lowbit_core::graph::{Graph, GraphBuilder, GraphError, NodeId};

use super::residual::{self, Block, Parts};
use crate::{InputShape, ModelConfig, ModelError};

const PARTS: Parts = Parts {
    after_stem: |graph, names, x| {
        let x = graph.norm(names.stem_norm, x)?;
        graph.relu(x)
    },
    block,
    before_pool: |_, _, x| Ok(x),
};

pub(super) fn graph(config: &ModelConfig, input: InputShape, n_classes: usize) -> Result<Graph, ModelError> {
    residual::graph(config, input, n_classes, &PARTS)
}

fn block(graph: &mut GraphBuilder, block: &Block, x: NodeId) -> Result<NodeId, GraphError> {
    let mut hidden = x;
    for (i, conv) in block.convs.iter().enumerate() {
        if i > 0 {
            hidden = graph.relu(hidden)?;
        }
        hidden = graph.conv(block.conv(i), *conv, hidden)?;
        hidden = graph.norm(block.norm(i), hidden)?;
    }
    let residual = match block.shortcut {
        Some(conv) => {
            let residual = graph.conv(block.shortcut_path(), conv, x)?;
            graph.norm(block.shortcut_norm(), residual)?
        }
        None => x,
    };
    let sum = graph.add([hidden, residual])?;
    graph.relu(sum)
}
