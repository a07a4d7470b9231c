//! The parameters of quantizers that a training watches.

use std::collections::BTreeMap;

use lowbit_models::Network;
use lowbit_quantizers::QuantizedNetwork;

/// A learned parameter of a quantizer.
pub(crate) struct Learned {
    pub(crate) path: String,
    pub(crate) name: &'static str,
    pub(crate) mean: f32,
    pub(crate) is_at_floor: bool,
}

/// The learned parameters of all quantizers, by layer.
pub(crate) fn learned_parameters(network: &Network) -> Vec<Learned> {
    let mut learned = Vec::new();
    for (path, layer) in network.layers() {
        let weight =
            layer.weight_quantizer().and_then(|quantizer| quantizer.watched().zip(quantizer.n_at_floor()));
        let input =
            layer.input_quantizer().and_then(|quantizer| quantizer.watched().zip(quantizer.n_at_floor()));
        for ((name, value), n_at_floor) in weight.into_iter().chain(input) {
            learned.push(Learned {
                path: path.into(),
                name,
                mean: value.mean().into_scalar::<f32>(),
                is_at_floor: n_at_floor.into_scalar::<i64>() > 0,
            });
        }
    }
    learned
}

/// Means of the learned and running parameters of all quantizers, by layer path and name.
pub(crate) fn watched(network: &Network) -> BTreeMap<String, f32> {
    let mut values = BTreeMap::new();
    for (path, layer) in network.layers() {
        let weight = layer.weight_quantizer().and_then(|quantizer| quantizer.watched());
        let input = layer.input_quantizer().and_then(|quantizer| quantizer.watched());
        for (name, value) in weight.into_iter().chain(input) {
            values.insert(format!("{path}.{name}"), value.mean().into_scalar::<f32>());
        }
    }
    values
}
