//! Packed models: reading, and running those that take no longer than a moment.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit_runtime::{Model, PackedNetwork};

/// Most products and values of a model that is run.
const MOST: usize = 1 << 22;

fuzz_target!(|bytes: &[u8]| {
    let Ok(network) = PackedNetwork::from_bytes(bytes) else { return };
    let again = network.to_bytes().expect("what was read can be written");
    assert!(PackedNetwork::from_bytes(&again).expect("what was written can be read") == network);
    let (mut n_values, mut work) = (0usize, 0usize);
    for (id, node) in network.graph.entries() {
        let shape = network.graph.shape(id);
        let values = shape.channels().saturating_mul(shape.places());
        let per_value = network.layers.get(&node.path).map_or(1, |layer| layer.n_weights() / shape.channels() + 1);
        n_values = n_values.saturating_add(values);
        work = work.saturating_add(values.saturating_mul(per_value));
    }
    let Ok(model) = Model::from_bytes(bytes) else { return };
    if n_values.max(work) > MOST {
        return;
    }
    let n: usize = model.input_shape().iter().product();
    let image: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
    assert_eq!(model.run(&image).expect("one image").len(), model.n_outputs());
});
