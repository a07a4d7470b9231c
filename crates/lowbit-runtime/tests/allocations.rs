//! After the first image a network of integers takes no new memory but for its logits.

use std::collections::BTreeMap;

use lowbit_core::graph::{Conv, GraphBuilder, GraphError, LayerRole, Linear};
use lowbit_core::{BitWidth, CodeSet, IntegerGrid};
use lowbit_runtime::{Info, Layer, Model, Norm, PackedNetwork, Quantizer, Weight};

fn weight(shape: &[usize], bits: u32) -> Weight {
    let bits = BitWidth::new(bits).expect("1 to 8");
    let grid = IntegerGrid::new(CodeSet::from(bits.signed_range()), vec![0.1], 1).expect("a grid");
    // Rather positive ones, so that ReLUs leave something.
    let level = |i: usize| grid.n_levels() - 1 - (i * i + i / 7) * 31 % 253 % grid.n_levels().div_ceil(2);
    let code = |i: usize| grid.code(level(i) as u8).expect("below the levels");
    let codes: Vec<i32> = (0..shape.iter().product()).map(code).collect();
    let packed = grid.pack(&codes, shape).expect("codes of the grid");
    Weight::Codes(grid, packed)
}

fn quantizer(bits: u32) -> Option<Quantizer> {
    let range = BitWidth::new(bits).expect("1 to 8").unsigned_range();
    let grid = IntegerGrid::new(range, vec![0.1], 1).expect("a grid");
    let thresholds = (1..grid.n_levels()).map(|level| (level as f32 - 0.5) * 0.1).collect();
    Some(Quantizer { grid, thresholds })
}

/// A stem of 8 bits, a residual block with a shortcut of stride 2, poolings and a classifier.
fn network() -> PackedNetwork {
    let graph = || -> Result<_, GraphError> {
        let mut graph = GraphBuilder::default();
        let image = graph.input([3, 16, 16])?;
        let x = graph.conv("stem", Conv::new([3, 16], 3, LayerRole::First), image)?;
        let x = graph.norm("norm1", x)?;
        let x = graph.relu(x)?;
        let x = graph.max_pool([2, 2, 0], x)?;
        let y = graph.conv("conv1", Conv::new([16, 16], 3, LayerRole::Hidden), x)?;
        let y = graph.norm("norm2", y)?;
        let y = graph.relu(y)?;
        let y = graph.conv("conv2", Conv::new([16, 24], 3, LayerRole::Hidden).with_stride(2), y)?;
        let side = Conv::new([16, 24], 1, LayerRole::Shortcut).with_padding(0).with_stride(2);
        let side = graph.conv("side", side, x)?;
        let x = graph.add([y, side])?;
        let x = graph.relu(x)?;
        let x = graph.global_avg_pool(x)?;
        let x = graph.linear("fc", Linear::new([24, 4], LayerRole::Last).without_bias(), x)?;
        graph.finish(x)
    };
    let layer =
        |shape: &[usize], bits, act| Layer { weight: weight(shape, bits), bias: None, input: quantizer(act) };
    let layers = BTreeMap::from([
        ("stem".into(), layer(&[16, 3, 3, 3], 8, 8)),
        ("conv1".into(), layer(&[16, 16, 3, 3], 2, 2)),
        ("conv2".into(), layer(&[24, 16, 3, 3], 2, 2)),
        ("side".into(), layer(&[24, 16, 1, 1], 2, 2)),
        ("fc".into(), layer(&[4, 24], 8, 8)),
    ]);
    let norm = |factor: f32| Norm {
        mean: vec![0.2; 16],
        factor: (0..16).map(|i| if i % 5 == 0 { factor } else { 0.6 }).collect(),
        offset: vec![0.1; 16],
    };
    let norms = BTreeMap::from([("norm1".into(), norm(-0.6)), ("norm2".into(), norm(-0.4))]);
    let graph = graph().expect("a network");
    PackedNetwork { graph, layers, norms, scales: BTreeMap::new(), info: Info::default() }
}

#[test]
fn an_image_needs_no_new_memory() {
    let model = Model::new(network()).expect("a network that can run");
    let counts = model.layer_counts();
    assert_eq!((counts.float, counts.fused), (0, 2), "all layers are of integers");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(|| {
        for batch in [1, 3] {
            let images: Vec<f32> = (0..batch * 768).map(|i| (i * 7919 % 255) as f32 / 100.0).collect();
            let first = model.run(&images).expect("images");
            let mut second = Vec::new();
            let counted = allocation_counter::measure(|| second = model.run(&images).expect("images"));
            let n = counted.count_total;
            assert_eq!(n, 1, "allocations of a batch of {batch}: one is of the logits");
            assert_eq!(first, second);
            assert!(first.iter().any(|logit| *logit != first[0]), "logits that differ");
        }
    });
}
