//! ONNX files of a network, in two dialects that differ in how they say that a value has few bits.
//!
//! [`to_onnx`] writes operators of ONNX alone, QuantizeLinear and DequantizeLinear, which ONNX Runtime computes in integers.
//! [`to_qonnx`] writes QONNX, the dialect of compilers for FPGAs such as FINN and hls4ml, with the operators `Quant` and
//! `MultiThreshold`, which have any number of bits.
//!
//! The input is `image`, normalized pixels, `[batch, channels, height, width]`; the output is `logits`, `[batch, outputs]`. Class names,
//! normalization and resizing are in the metadata. The numbers are those of the network but for roundings of single precision: a value
//! close to a threshold may get another code than in its evaluation.

#[cfg(test)]
mod evaluate;
mod integers;
mod proto;
mod quant;
mod writer;

use lowbit_runtime::{Info, PackedNetwork};
use prost::Message;

use proto::{Entry, GraphProto, ModelProto, OperatorSet};
use writer::{Dialect, Writer};

pub use integers::{OnnxError, Opset};

/// The network as the bytes of an ONNX file, for any number of images at a time.
///
/// Normalizations are folded into the convolution before them where nothing else reads it.
///
/// # Errors
/// [`OnnxError`] if a quantizer has no form in ONNX.
pub fn to_onnx(network: &PackedNetwork, opset: Opset) -> Result<Vec<u8>, OnnxError> {
    let steps = integers::steps(network)?;
    let graph = Writer::new(network, Dialect::Integers { opset, steps }).graph();
    let [version, ir_version] = opset.versions();
    Ok(model(&network.info, graph, ir_version, vec![operators("", version)]))
}

/// The network as the bytes of a QONNX file, for one image at a time.
///
/// Every code of a weight is that of the network, and every value has a shape. Normalizations stay operators: folded into weights, they
/// would give each channel a scale of its own and turn the signs of some.
pub fn to_qonnx(network: &PackedNetwork) -> Vec<u8> {
    let graph = Writer::new(network, Dialect::Quant).graph();
    let [version, ir_version] = Opset::V13.versions();
    // The operators of ONNX come first: qonnx takes the first entry for them.
    model(&network.info, graph, ir_version, vec![operators("", version), operators(quant::DOMAIN, 1)])
}

fn operators(domain: &str, version: i64) -> OperatorSet {
    OperatorSet { domain: domain.into(), version }
}

fn model(info: &Info, graph: GraphProto, ir_version: i64, opset_import: Vec<OperatorSet>) -> Vec<u8> {
    let list = |numbers: &[f32]| numbers.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
    let metadata = [
        ("name", info.name.clone()),
        ("classes", info.classes.join("\n")),
        ("mean", list(&info.mean)),
        ("std", list(&info.std)),
        ("resize", info.resize.map(|resize| resize.to_string()).unwrap_or_default()),
    ];
    let metadata = metadata.into_iter().filter(|(_, value)| !value.is_empty());
    let model = ModelProto {
        ir_version,
        producer_name: "lowbit".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph),
        opset_import,
        metadata_props: metadata.map(|(key, value)| Entry { key: key.into(), value }).collect(),
    };
    model.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use lowbit_runtime::samples;

    use super::*;

    pub fn decoded(bytes: &[u8]) -> ModelProto {
        ModelProto::decode(bytes).unwrap()
    }

    /// Every input is there before it is read, and every name is given once, in all dialects and versions.
    #[test]
    fn graphs_are_whole() {
        let network = samples::small();
        let of_onnx = [(Opset::V13, 13), (Opset::V21, 21), (Opset::V25, 25)]
            .map(|(opset, version)| (to_onnx(&network, opset).unwrap(), version));
        for (bytes, version) in of_onnx.into_iter().chain([(to_qonnx(&network), 13)]) {
            let model = decoded(&bytes);
            let domains: Vec<&str> = model.opset_import.iter().map(|import| import.domain.as_str()).collect();
            assert_eq!((domains[0], model.opset_import[0].version), ("", version));
            let graph = model.graph.unwrap();
            let mut names: HashSet<&str> = HashSet::from(["image"]);
            for tensor in &graph.initializer {
                assert!(names.insert(&tensor.name), "{} twice", tensor.name);
                let n: i64 = tensor.dims.iter().product();
                let bits = match tensor.data_type {
                    1 | 6 => 32,
                    2 | 3 => 8,
                    22 => 4,
                    26 => 2,
                    other => panic!("type {other}"),
                };
                assert_eq!(tensor.raw_data.len() as i64, (n * bits + 7) / 8, "{}", tensor.name);
            }
            for node in &graph.node {
                assert!(domains.contains(&node.domain.as_str()), "{} of {}", node.name, node.domain);
                for input in &node.input {
                    assert!(names.contains(input.as_str()), "{} reads {input}", node.name);
                }
                assert!(names.insert(&node.output[0]), "{} twice", node.output[0]);
            }
            assert!(names.contains("logits"));
        }
    }

    #[test]
    fn both_say_what_images_and_classes_are() {
        let network = samples::small();
        for bytes in [to_onnx(&network, Opset::V25).unwrap(), to_qonnx(&network)] {
            let entries = decoded(&bytes).metadata_props;
            let value =
                |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| entry.value.as_str());
            assert_eq!(value("name"), Some("small"));
            assert_eq!(value("classes"), Some("one\ntwo\nthree\nfour"));
            assert_eq!((value("mean"), value("std")), (Some("0.5,0.5,0.5"), Some("0.25,0.25,0.25")));
            assert_eq!(value("resize"), None);
        }
    }
}
