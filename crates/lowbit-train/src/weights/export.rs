//! The weights of a network for other programs.

use std::collections::{BTreeMap, HashMap};

use burn::tensor::TensorData;
use lowbit_models::Network;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use super::names::{expected, scales};
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
    // The factor of the logits becomes a part of the classifier, whose weights and biases it multiplies.
    let scales = scales(network.graph()).into_iter().filter_map(|path| tensors.remove(&path));
    let factor: f32 = scales.flat_map(|scale| scale.iter::<f32>().collect::<Vec<_>>()).product();
    let named: BTreeMap<String, TensorData> = expected(network.graph())
        .into_iter()
        .map(|expected| {
            let data = tensors.remove(&expected.path).expect("invariant: the graph is the network's");
            let is_scaled = expected.is_classifier && factor != 1.0;
            (expected.name, if is_scaled { times(&data, factor) } else { data })
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

fn times(data: &TensorData, factor: f32) -> TensorData {
    let values: Vec<f32> = data.iter::<f32>().map(|value| value * factor).collect();
    TensorData::new(values, data.shape().as_slice().to_vec())
}
