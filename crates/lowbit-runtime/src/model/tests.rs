//! A small network, run and read from files of all kinds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use lowbit_core::graph::{Conv, GraphBuilder, LayerRole, Linear, Op, Shape};

use super::*;
use crate::packed::{Info, Layer, Norm, Weight, weight_shape};
use crate::samples;

fn image(n: usize) -> Vec<f32> {
    (0..n * 108).map(|i| (i * 37 % 101) as f32 / 25.0 - 2.0).collect()
}

/// The logits of one image by the definitions, in double precision but for what decides a code.
fn by_definition(network: &PackedNetwork, image: &[f32]) -> Vec<f64> {
    let mut values: Vec<Vec<f64>> = Vec::new();
    for node in network.graph.nodes() {
        let input = |i: usize| &values[node.inputs[i].index()];
        let shape = |i: usize| network.graph.shape(node.inputs[i]);
        values.push(match node.op {
            Op::Input(_) => image.iter().map(|x| f64::from(*x)).collect(),
            Op::Conv(conv) => {
                let Shape::Map([_, height, width]) = shape(0) else { unreachable!() };
                let sizes = [height, width, conv.stride, conv.padding, conv.groups];
                convolved(&network.layers[&node.path], &weight_shape(node), input(0), sizes)
            }
            Op::Linear(linear) => {
                let shape = [linear.out_features, linear.in_features, 1, 1];
                convolved(&network.layers[&node.path], &shape, input(0), [1, 1, 1, 0, 1])
            }
            Op::Norm { channels } => {
                let norm = &network.norms[&node.path];
                let plane = input(0).len() / channels;
                let normal = |(i, x): (usize, &f64)| {
                    let c = i / plane;
                    (x - f64::from(norm.mean[c])) * f64::from(norm.factor[c]) + f64::from(norm.offset[c])
                };
                input(0).iter().enumerate().map(normal).collect()
            }
            Op::Relu => input(0).iter().map(|x| x.max(0.0)).collect(),
            Op::Relu6 => input(0).iter().map(|x| x.clamp(0.0, 6.0)).collect(),
            Op::Scale => input(0).iter().map(|x| x * f64::from(network.scales[&node.path])).collect(),
            Op::Add => input(0).iter().zip(input(1)).map(|(a, b)| a + b).collect(),
            Op::Flatten => input(0).clone(),
            Op::GlobalAvgPool | Op::MaxPool { .. } => {
                let Shape::Map([channels, height, width]) = shape(0) else { unreachable!() };
                let (kernel, stride) = match node.op {
                    Op::MaxPool { kernel, stride, .. } => (kernel, stride),
                    _ => unreachable!("the network has none"),
                };
                let mut out = Vec::new();
                for c in 0..channels {
                    for y in (0..=height - kernel).step_by(stride) {
                        for x in (0..=width - kernel).step_by(stride) {
                            let window = (0..kernel * kernel)
                                .map(|i| input(0)[(c * height + y + i / kernel) * width + x + i % kernel]);
                            out.push(window.fold(f64::NEG_INFINITY, f64::max));
                        }
                    }
                }
                out
            }
        });
    }
    values[network.graph.output().index()].clone()
}

fn convolved(
    layer: &Layer,
    shape: &[usize],
    input: &[f64],
    [height, width, stride, padding, groups]: [usize; 5],
) -> Vec<f64> {
    let [out_channels, group_in, kernel, _] = [shape[0], shape[1], shape[2], shape[3]];
    let quantized: Vec<f64> = match &layer.input {
        None => input.to_vec(),
        Some(quantizer) => input
            .iter()
            .map(|x| {
                let code = quantizer.grid.code(quantizer.level(*x as f32) as u8).unwrap();
                f64::from(quantizer.grid.dequantize(code, 0))
            })
            .collect(),
    };
    let weights = layer.values();
    let size = |side: usize| (side + 2 * padding - kernel) / stride + 1;
    let mut out = Vec::new();
    for o in 0..out_channels {
        let first = o / (out_channels / groups) * group_in;
        for y in 0..size(height) {
            for x in 0..size(width) {
                let mut sum = layer.bias.as_ref().map_or(0.0, |bias| f64::from(bias[o]));
                for (i, weight) in
                    weights[o * group_in * kernel * kernel..][..group_in * kernel * kernel].iter().enumerate()
                {
                    let (c, dy, dx) = (first + i / (kernel * kernel), i / kernel % kernel, i % kernel);
                    let (row, column) = (y * stride + dy, x * stride + dx);
                    if (padding..padding + height).contains(&row)
                        && (padding..padding + width).contains(&column)
                    {
                        sum += f64::from(*weight)
                            * quantized[(c * height + row - padding) * width + column - padding];
                    }
                }
                out.push(sum);
            }
        }
    }
    out
}

#[test]
fn logits_are_those_of_the_definitions() {
    let network = samples::small();
    let model = Model::new(network.clone()).unwrap();
    let images = image(5);
    let logits = model.run(&images).unwrap();
    for n_threads in [1, 2, 5] {
        // Many images at a time, whatever the number of threads.
        let many = image(64);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let all = pool.install(|| model.run(&many).unwrap());
        assert_eq!(all[..20], logits);
        assert_eq!(all[252..], model.run(&many[63 * 108..]).unwrap());
    }
    for (image, logits) in images.chunks(108).zip(logits.chunks(4)) {
        for (got, expected) in logits.iter().zip(by_definition(&network, image)) {
            // In single precision; no value is close to a threshold.
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} {expected}");
        }
        assert_eq!(model.run(image).unwrap(), logits);
    }
    // Of unquantized layers sums are in floats.
    assert_eq!(model.layer_counts(), LayerCounts { integer: 5, fused: 3, float: 2 });
    let (timed, times) = model.run_timed(&images).unwrap();
    assert_eq!(timed, logits);
    assert_eq!(times.iter().filter(|time| time.operation == "integers to codes").count(), 3);
    assert_eq!(model.run(&images[1..]).unwrap_err(), ImagesError::Length { got: 539, expected: 108 });
    let mut broken = images.clone();
    broken[7] = f32::INFINITY;
    assert_eq!(model.run(&broken).unwrap_err(), ImagesError::NotFinite { place: 7, got: f32::INFINITY });
    assert!(model.run(&[]).unwrap().is_empty());
}

#[test]
fn what_is_written_is_read() {
    let network = samples::small();
    let bytes = network.to_bytes().unwrap();
    assert!(PackedNetwork::from_bytes(&bytes).unwrap() == network);
    assert_eq!(network.to_bytes().unwrap(), bytes);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.lowbit");
    std::fs::write(&path, &bytes).unwrap();
    let logits = Model::load(&path).unwrap().run(&image(1)).unwrap();
    assert_eq!(logits, Model::new(network).unwrap().run(&image(1)).unwrap());
    assert!(matches!(Model::load(folder.path()), Err(PackedError::OtherKind(_))));
    assert!(matches!(Model::load(folder.path().join("none")), Err(PackedError::Unreadable { .. })));
}

/// Every byte changed, and every length: an error, or another network that runs.
#[test]
fn no_bytes_panic() {
    let bytes = samples::small().to_bytes().unwrap();
    let images = image(1);
    let check = |bytes: &[u8], what: &str| {
        let run = || Model::from_bytes(bytes).ok().map(|model| model.run(&images).map(|logits| logits.len()));
        assert!(catch_unwind(AssertUnwindSafe(run)).is_ok(), "{what}");
    };
    for place in 0..bytes.len() {
        for change in [1, 0x80, 0x33] {
            let mut changed = bytes.clone();
            changed[place] ^= change;
            check(&changed, &format!("byte {place} changed by {change}"));
        }
    }
    for length in (0..bytes.len()).step_by(7) {
        check(&bytes[..length], &format!("{length} bytes"));
    }
}

/// What a file of a few bytes may ask for is bounded.
/// What has no layer; of a small graph, to be replaced.
fn without_layers() -> PackedNetwork {
    let mut graph = GraphBuilder::default();
    let x = graph.input([1, 1, 1]).unwrap();
    let x = graph.global_avg_pool(x).unwrap();
    PackedNetwork {
        graph: graph.finish(x).unwrap(),
        layers: Default::default(),
        norms: Default::default(),
        scales: Default::default(),
        info: Info::default(),
    }
}

/// A vector has the values of a map, but other channels: what is joined passes over the same ones.
#[test]
fn operations_on_both_sides_of_a_flattening_are_not_joined() {
    let mut graph = GraphBuilder::default();
    let x = graph.input([2, 3, 2]).unwrap();
    let x = graph.norm("map", x).unwrap();
    let x = graph.relu(x).unwrap();
    let x = graph.flatten(x).unwrap();
    let [a, b] = ["a", "b"].map(|path| {
        let layer = Linear::new([12, 3], LayerRole::Hidden).without_bias();
        graph.linear(path, layer, x).unwrap()
    });
    let y = graph.norm("vector", x).unwrap();
    let y = graph.relu(y).unwrap();
    let c = graph.linear("c", Linear::new([12, 3], LayerRole::Last).without_bias(), y).unwrap();
    let sum = graph.add([a, b]).unwrap();
    let sum = graph.add([sum, c]).unwrap();
    let small = samples::small();
    let mut layers = std::collections::BTreeMap::new();
    for (path, like) in [("a", "conv1"), ("b", "conv2"), ("c", "hidden")] {
        let input = small.layers[like].input.clone();
        let weight = Weight::Full((0..36).map(|i| (i * 7 % 11) as f32 / 5.0 - 1.0).collect());
        layers.insert(path.to_string(), Layer { weight, bias: None, input });
    }
    let norm = |n: usize| Norm {
        mean: (0..n).map(|i| i as f32 / 10.0).collect(),
        factor: (0..n).map(|i| if i % 3 == 0 { -0.8 } else { 1.3 }).collect(),
        offset: vec![0.1; n],
    };
    let norms = [("map".to_string(), norm(2)), ("vector".to_string(), norm(12))].into_iter().collect();
    let network = PackedNetwork { graph: graph.finish(sum).unwrap(), layers, norms, ..without_layers() };
    let model = Model::new(network.clone()).unwrap();
    let image: Vec<f32> = (0..12).map(|i| (i * 5 % 13) as f32 / 6.0 - 0.9).collect();
    for (got, expected) in model.run(&image).unwrap().iter().zip(by_definition(&network, &image)) {
        assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} {expected}");
    }
}

#[test]
fn sizes_beyond_the_bounds_are_refused() {
    let bytes = samples::small().to_bytes().unwrap();
    let text = |from: &str, to: &str| {
        let header = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let changed = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap().replacen(from, to, 1);
        let changed = changed.trim_end();
        assert!(changed.contains(to), "{from}");
        [&(changed.len() as u64).to_le_bytes()[..], changed.as_bytes(), &bytes[8 + header..]].concat()
    };
    for (from, to, expected) in [
        (r#"\"input\":[3,6,6]"#, r#"\"input\":[3,7,6]"#, "its description: "),
        (
            r#"\"version\":2"#,
            r#"\"version\":1"#,
            "of version 1, this program reads version 2: export its run again",
        ),
        (r#""stem.weight""#, r#""stew.weight""#, "\"stem\": it has no tensor \"weight\""),
        ("one", "two\\\",\\\"more", "names for 5 classes, and 4 outputs"),
    ] {
        let error = PackedNetwork::from_bytes(&text(from, to)).unwrap_err();
        assert!(error.to_string().contains(expected), "{to}: {error}");
    }
    let mut network = samples::small();
    network.norms.get_mut("norm1").unwrap().factor[2] = f32::NAN;
    assert!(network.check().unwrap_err().to_string().contains("\"norm1\": one of its factors is not finite"));
    // Networks whose graphs are whole.
    let with = |input: [usize; 3], conv: Option<Conv>| {
        let mut graph = GraphBuilder::default();
        let mut x = graph.input(input).unwrap();
        if let Some(conv) = conv {
            x = graph.conv("conv", conv, x).unwrap();
        }
        let x = graph.global_avg_pool(x).unwrap();
        PackedNetwork { graph: graph.finish(x).unwrap(), ..network.clone() }.check().unwrap_err().to_string()
    };
    assert!(with([3, 60_000, 60_000], None).contains("its operation 0 is too large"));
    let wide = Conv::new([1, 1], 301, LayerRole::First).with_padding(0);
    assert!(with([1, 301, 301], Some(wide)).contains("its operation 1 is too large: a window of 301x301"));
    // Values that are all held until the end.
    let mut graph = GraphBuilder::default();
    let x = graph.input([1, 4096, 4096]).unwrap();
    let parts: Vec<_> = (0..20).map(|_| graph.relu(x).unwrap()).collect();
    let sum = parts.into_iter().reduce(|a, b| graph.add([a, b]).unwrap()).unwrap();
    let means = graph.global_avg_pool(sum).unwrap();
    let held = PackedNetwork { graph: graph.finish(means).unwrap(), ..without_layers() };
    let error = Model::new(held).unwrap_err().to_string();
    assert!(error.contains("values are held at a time, expected at most 134217728"), "{error}");
    // A large buffer for each of many small values, if any free one were taken.
    let mut graph = GraphBuilder::default();
    let x = graph.input([1, 2048, 2048]).unwrap();
    let parts: Vec<_> = (0..40)
        .map(|_| {
            let large = graph.relu(x).unwrap();
            let mean = graph.global_avg_pool(large).unwrap();
            graph.relu(mean).unwrap()
        })
        .collect();
    let sum = parts.into_iter().reduce(|a, b| graph.add([a, b]).unwrap()).unwrap();
    let small = PackedNetwork { graph: graph.finish(sum).unwrap(), ..without_layers() };
    assert!(Model::new(small).unwrap().run(&vec![0.5; 2048 * 2048]).unwrap() == [20.0]);
    let long = Conv::new([3, 1], 1, LayerRole::First).with_padding(0).with_stride(1 << 32);
    assert!(with([3, 6, 6], Some(long)).contains("its operation 1 is too large: its stride is 4294967296"));
    let padded = Conv::new([64, 1], 255, LayerRole::First).with_padding(254).with_stride(100);
    assert!(
        with([64, 300, 300], Some(padded))
            .contains("its operation 1 is too large: a window of 255x255 over 64x808x808")
    );
}
