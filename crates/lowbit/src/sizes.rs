//! What each layer takes of a packed file, beside full precision and 8 bits.

use lowbit_core::graph::Op;
use lowbit_runtime::{LayerBytes, PackedError, PackedNetwork, Weight};
use serde::Serialize;

/// Bytes of a layer, a normalization or a learned factor in a packed file.
#[derive(Serialize)]
pub struct LayerSize {
    path: String,
    /// `None` in full precision, and of what is no layer.
    weight_bits: Option<u32>,
    input_bits: Option<u32>,
    /// All of the next four.
    bytes: usize,
    bytes_weights: usize,
    /// What codes are worth, and thresholds of the input.
    bytes_scales: usize,
    bytes_biases: usize,
    bytes_norms: usize,
    /// In a packed file of the network in full precision.
    bytes_fp32: usize,
    /// In ONNX with weights of 8 bits.
    bytes_int8: usize,
    #[serde(skip)]
    is_layer: bool,
}

/// The sizes of a network, in the order of its graph.
pub fn of(network: &PackedNetwork) -> Result<Vec<LayerSize>, PackedError> {
    let full = network.in_full_precision().layer_bytes()?;
    let sizes = network.layer_bytes()?.into_iter().zip(full).map(|(bytes, full)| {
        let layer = network.layers.get(&bytes.path);
        let weight_bits = layer.and_then(|layer| match &layer.weight {
            Weight::Codes(grid, _) => Some(grid.bits().get()),
            Weight::Full(_) => None,
        });
        LayerSize {
            weight_bits,
            input_bits: layer.and_then(|layer| Some(layer.input.as_ref()?.grid.bits().get())),
            bytes: bytes.total(),
            bytes_weights: bytes.weights,
            bytes_scales: bytes.scales,
            bytes_biases: bytes.biases,
            bytes_norms: bytes.norms,
            bytes_fp32: full.total(),
            bytes_int8: in_8_bits(network, &bytes),
            is_layer: layer.is_some(),
            path: bytes.path,
        }
    });
    Ok(sizes.collect())
}

/// Bytes in ONNX with weights of 8 bits: a byte for each, a scale for each output channel, and a bias, which a normalization after the layer
/// is part of. Other normalizations are a factor and an offset for each channel.
fn in_8_bits(network: &PackedNetwork, bytes: &LayerBytes) -> usize {
    let graph = &network.graph;
    let readers = graph.readers();
    let Some((id, node)) = graph.entries().find(|(_, node)| node.path == bytes.path) else { return 0 };
    let is_layer = |op: &Op| matches!(op, Op::Conv(_) | Op::Linear(_));
    match node.op {
        Op::Conv(_) | Op::Linear(_) => {
            let has_norm = match readers[id.index()].as_slice() {
                [reader] if id != graph.output() => matches!(graph.node(*reader).op, Op::Norm { .. }),
                _ => false,
            };
            let numbers = 1 + usize::from(has_norm || bytes.biases > 0);
            network.layers[&node.path].n_weights() + 4 * numbers * network.rows(&node.path)
        }
        Op::Norm { channels } => {
            let input = node.inputs[0];
            let is_part = is_layer(&graph.node(input).op) && readers[input.index()].len() == 1;
            if is_part { 0 } else { 8 * channels }
        }
        Op::Scale => 4,
        _ => 0,
    }
}

/// A table of the layers, of normalizations and learned factors together, and of the rest of both files.
pub fn table(sizes: &[LayerSize], bytes: usize, bytes_fp32: usize) -> String {
    let columns = |size: &LayerSize| [size.bytes, size.bytes_fp32, size.bytes_int8];
    let total = |is_layer: bool| {
        let sizes = sizes.iter().filter(|size| size.is_layer == is_layer);
        sizes.map(columns).fold([0; 3], |sum, size| [0, 1, 2].map(|i| sum[i] + size[i]))
    };
    let (of_layers, others) = (total(true), total(false));
    let all = [bytes, bytes_fp32, of_layers[2] + others[2]];
    let rest = [0, 1, 2].map(|i| all[i] - of_layers[i] - others[i]);
    let bits = |bits: Option<u32>| bits.map_or_else(|| "fp32".into(), |bits| bits.to_string());
    let layers = sizes.iter().filter(|size| size.is_layer).map(|size| {
        let bits = format!("{}, {}", bits(size.weight_bits), bits(size.input_bits));
        (size.path.as_str(), bits, columns(size))
    });
    let ends = [("normalizations", others), ("description", rest), ("all", all)];
    let ends = ends.map(|(name, columns)| (name, String::new(), columns));
    let rows: Vec<_> = layers.chain(ends).collect();
    let width = rows.iter().map(|(path, ..)| path.len()).max().unwrap_or_default();
    let line = |path: &str, bits: &str, [packed, full, int8]: [String; 3]| {
        format!("{path:width$}  {bits:10}  {packed:>10}  {full:>14}  {int8:>10}")
    };
    let heading = line("bytes", "bits", ["packed", "full precision", "ONNX int8"].map(String::from));
    let lines = rows.iter().map(|(path, bits, columns)| line(path, bits, columns.map(|n| n.to_string())));
    std::iter::once(heading).chain(lines).collect::<Vec<_>>().join("\n")
}
