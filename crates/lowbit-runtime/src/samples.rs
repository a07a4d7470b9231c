//! A small network with one of everything, for tests and fuzzing.

use std::collections::BTreeMap;

use lowbit_core::graph::{Conv, GraphBuilder, GraphError, LayerRole, Linear};
use lowbit_core::{BitWidth, CodeSet, IntegerGrid};

use crate::{BatchNorm, Info, Layer, Norm, PackedNetwork, Quantizer, Weight};

/// Numbers that are not all alike, from -1 to 1.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729) % 201) as f32 / 100.0 - 1.0).collect()
}

fn codes(grid: IntegerGrid, shape: &[usize], seed: usize) -> Weight {
    let n_levels = grid.n_levels();
    let code =
        |i: usize| grid.code(((i * 31 + seed * 7) % n_levels) as u8).expect("invariant: below the levels");
    let codes: Vec<i32> = (0..shape.iter().product()).map(code).collect();
    let packed = grid.pack(&codes, shape).expect("invariant: codes of the grid");
    Weight::Codes(grid, packed)
}

/// A quantizer of `bits` bits with steps of 0.3.
fn quantizer(bits: BitWidth, zero_point: i32) -> Quantizer {
    let grid = IntegerGrid::new(bits.unsigned_range(), vec![0.3], 1)
        .and_then(|grid| grid.with_zero_point(zero_point));
    let grid = grid.expect("invariant: a grid of these bits");
    let thresholds =
        (1..grid.n_levels()).map(|level| (level as f32 - zero_point as f32 - 0.5) * 0.3).collect();
    Quantizer { grid, thresholds }
}

/// Layers in full precision, with codes of one and of several units, odd ones and a table, a zero point, 1, 2, 3 and 8 bits; all
/// other operations.
///
/// # Panics
/// Never.
pub fn small() -> PackedNetwork {
    let [one, two, three, eight] = [1, 2, 3, 8].map(|bits| BitWidth::new(bits).expect("invariant: 1 to 8"));
    let graph = || -> Result<_, GraphError> {
        let mut graph = GraphBuilder::default();
        let image = graph.input([3, 6, 6])?;
        let stem = graph.conv("stem", Conv::new([3, 5], 3, LayerRole::First).with_bias(), image)?;
        let x = graph.norm("norm1", stem)?;
        let x = graph.relu(x)?;
        let one = graph.conv("conv1", Conv::new([5, 6], 3, LayerRole::Hidden), x)?;
        let x = graph.norm("norm2", one)?;
        let x = graph.max_pool([2, 2, 0], x)?;
        let x = graph.relu6(x)?;
        let two = graph.conv("conv2", Conv::new([6, 6], 3, LayerRole::Hidden), x)?;
        let side = graph.conv(
            "side",
            Conv::new([5, 6], 1, LayerRole::Shortcut).with_padding(0).with_stride(2),
            stem,
        )?;
        let sum = graph.add([two, side])?;
        let depthwise =
            graph.conv("depthwise", Conv { groups: 6, ..Conv::new([6, 6], 3, LayerRole::Hidden) }, sum)?;
        let flat = graph.flatten(depthwise)?;
        let hidden = graph.linear("hidden", Linear::new([54, 7], LayerRole::Hidden), flat)?;
        let x = graph.relu(hidden)?;
        let logits = graph.linear("fc", Linear::new([7, 4], LayerRole::Last).without_bias(), x)?;
        let logits = graph.scale("scale", logits)?;
        graph.finish(logits)
    };
    let grid =
        |codes: CodeSet, units, parts| IntegerGrid::new(codes, units, parts).expect("invariant: a grid");
    let layer = |weight, bias, input| Layer { weight, bias, input };
    let signed = |bits: BitWidth| CodeSet::from(bits.signed_range());
    let layers = [
        ("stem", layer(Weight::Full(numbers(135, 1)), Some(numbers(5, 2)), None)),
        (
            "conv1",
            layer(
                codes(grid(CodeSet::odd(two), vec![1.0], 3), &[6, 5, 3, 3], 3),
                None,
                Some(quantizer(two, 0)),
            ),
        ),
        (
            "conv2",
            layer(
                codes(grid(signed(three), vec![0.1; 6], 1), &[6, 6, 3, 3], 4),
                None,
                Some(quantizer(three, 2)),
            ),
        ),
        ("side", layer(codes(grid(CodeSet::odd(one), vec![0.4], 1), &[6, 5, 1, 1], 5), None, None)),
        (
            "depthwise",
            layer(codes(grid(signed(eight), vec![0.01], 1), &[6, 1, 3, 3], 6), None, Some(quantizer(two, 0))),
        ),
        (
            "hidden",
            layer(
                codes(grid(CodeSet::Table(vec![-8, -2, 0, 2, 8]), vec![0.5], 8), &[7, 54], 7),
                Some(numbers(7, 8)),
                Some(quantizer(one, 0)),
            ),
        ),
        ("fc", layer(codes(grid(signed(eight), vec![0.02], 1), &[4, 7], 9), None, Some(quantizer(eight, 0)))),
    ];
    let norm = |n: usize, seed: usize| BatchNorm {
        gamma: numbers(n, seed),
        beta: numbers(n, seed + 1),
        mean: numbers(n, seed + 2),
        variance: numbers(n, seed + 3).iter().map(|number| number.abs() + 0.1).collect(),
        epsilon: 1e-5,
    };
    PackedNetwork {
        graph: graph().expect("invariant: a network"),
        layers: layers.into_iter().map(|(path, layer)| (path.to_string(), layer)).collect(),
        norms: [("norm1", norm(5, 10)), ("norm2", norm(6, 20))]
            .map(|(path, norm)| (path.to_string(), Norm::from(norm)))
            .into_iter()
            .collect(),
        scales: BTreeMap::from([("scale".to_string(), 0.5)]),
        info: Info {
            name: "small".into(),
            classes: ["one", "two", "three", "four"].map(String::from).to_vec(),
            mean: vec![0.5; 3],
            std: vec![0.25; 3],
            ..Info::default()
        },
    }
}
