//! Pre-activation residual network, He et al. 2016b (arXiv 1603.05027), in the layouts of ResNet.
//!
//! BatchNorm and ReLU precede each convolution of a block, and the first ones that of a shortcut too; the stem has none, and
//! they come once more before the average pool.

use lowbit_core::graph::{GraphBuilder, GraphError, NodeId};

use super::Settings;
use super::residual::{self, Block, Parts};

pub(super) const SETTINGS: Settings = residual::settings("preresnet", |config, input, n_classes| {
    residual::graph(config, input, n_classes, &PARTS)
});

const PARTS: Parts = Parts {
    after_stem: |_, _, x| Ok(x),
    block,
    before_pool: |graph, names, x| {
        let x = graph.norm(names.last_norm, x)?;
        graph.relu(x)
    },
};

fn block(graph: &mut GraphBuilder, block: &Block, x: NodeId) -> Result<NodeId, GraphError> {
    let (mut hidden, mut activated) = (x, x);
    for (i, conv) in block.convs.iter().enumerate() {
        hidden = graph.norm(block.norm(i), hidden)?;
        hidden = graph.relu(hidden)?;
        if i == 0 {
            activated = hidden;
        }
        hidden = graph.conv(block.conv(i), *conv, hidden)?;
    }
    let residual = match block.shortcut {
        Some(conv) => graph.conv(block.shortcut_path(), conv, activated)?,
        None => x,
    };
    graph.add([hidden, residual])
}
