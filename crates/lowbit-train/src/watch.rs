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
    /// Whether it is of weights, and not of an input.
    pub(crate) is_of_weights: bool,
}

/// A learned parameter of each quantizer, by layer.
pub(crate) fn learned_parameters(network: &Network) -> Vec<Learned> {
    let mut learned = Vec::new();
    for (path, layer) in network.layers() {
        let weight = layer.weight_quantizer().filter(|quantizer| !quantizer.learned().is_empty());
        let input = layer.input_quantizer().filter(|quantizer| !quantizer.learned().is_empty());
        let weight = weight.map(|quantizer| (quantizer.watched(), quantizer.n_at_floor()));
        let input = input.map(|quantizer| (quantizer.watched(), quantizer.n_at_floor()));
        let (weight, input) = (weight.map(|of| (of, true)), input.map(|of| (of, false)));
        for ((watched, n_at_floor), is_of_weights) in weight.into_iter().chain(input) {
            let Some((name, value)) = watched.into_iter().next() else { continue };
            learned.push(Learned {
                path: path.into(),
                name,
                mean: value.mean().into_scalar::<f32>(),
                is_of_weights,
                is_at_floor: n_at_floor.is_some_and(|n| n.into_scalar::<i64>() > 0),
            });
        }
    }
    learned
}

/// Means of the learned and running parameters of all quantizers, by layer path and name.
pub(crate) fn watched(network: &Network) -> BTreeMap<String, f32> {
    let mut values = BTreeMap::new();
    for (path, layer) in network.layers() {
        let weight = layer.weight_quantizer().map(|quantizer| quantizer.watched());
        let input = layer.input_quantizer().map(|quantizer| quantizer.watched());
        for (name, value) in weight.into_iter().chain(input).flatten() {
            values.insert(format!("{path}.{name}"), value.mean().into_scalar::<f32>());
        }
    }
    values
}
