//! The weights of a network for other programs.

use std::collections::{BTreeMap, HashMap};

use lowbit_models::Network;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::names::expected;
use crate::state;

/// A network's weights as another program reads them.
pub struct ExportedWeights {
    /// A file of safetensors: weights, biases, and parameters and statistics of BatchNorm in single precision, by torchvision's names.
    pub bytes: Vec<u8>,
    /// Its tensors.
    pub n_tensors: usize,
    /// Tensors of quantizers, which it does not have.
    pub n_left_out: usize,
}

/// The weights of `network`, which is without autodiff. Equal ones make equal bytes.
pub fn to_safetensors(network: &Network) -> ExportedWeights {
    let mut tensors = state::tensors(network);
    let named: BTreeMap<String, _> = expected(network.graph())
        .into_iter()
        .map(|expected| {
            let data = tensors.remove(&expected.path).expect("invariant: the graph is the network's");
            (expected.name, data)
        })
        .collect();
    let views = named.iter().map(|(name, data)| {
        let view = TensorView::new(Dtype::F32, data.shape().as_slice().to_vec(), data.as_bytes());
        (name, view.expect("invariant: the bytes of an f32 tensor fit its shape"))
    });
    // By this, readers in Python know whose names they are. One note alone: several have no order.
    let notes = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(views, Some(notes)).expect("invariant: tensors serialize to memory");
    ExportedWeights { bytes, n_tensors: named.len(), n_left_out: tensors.len() }
}
