//! Residual network, He et al. 2016 (arXiv 1512.03385): in the CIFAR layout, section 4.2, of depth 6n+2, in the ImageNet
//! layout, table 1, of depth 18, 34, 50 or 101.
//!
//! BatchNorm follows each convolution, that of a shortcut too; a ReLU follows each but the last of a block, and the sum. The
//! shortcuts are 1x1 projections with BatchNorm (option B of the paper), as in the networks of Zhuang et al.; the CIFAR
//! networks of He et al. have parameter-free shortcuts (option A).

use lowbit_core::graph::{GraphBuilder, GraphError, NodeId};

use super::Settings;
use super::residual::{self, Block, Parts};

pub(super) const SETTINGS: Settings = residual::settings("resnet", |config, input, n_classes| {
    residual::graph(config, input, n_classes, &PARTS)
});

const PARTS: Parts = Parts {
    after_stem: |graph, names, x| {
        let x = graph.norm(names.stem_norm, x)?;
        graph.relu(x)
    },
    block,
    before_pool: |_, _, x| Ok(x),
};

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
