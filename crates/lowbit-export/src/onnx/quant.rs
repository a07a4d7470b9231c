//! Weights and activations in QONNX 1.0: <https://github.com/fastmachinelearning/qonnx>, `docs/qonnx-custom-ops`.
//!
//! # Equation
//! ```text
//! Quant(x) = (round(clip(x / scale + zero_point, q_min, q_max)) - zero_point) scale       of two integers as near, the even one
//! MultiThreshold(x) = bias + how many thresholds x has reached
//! ```
//! The bounds follow from the number of bits, a sign, and whether the range is narrow, that is, symmetric to zero.

use lowbit_core::graph::{Node, NodeId, Op};
use lowbit_core::{CodeRange, IntegerGrid};
use lowbit_runtime::{Layer, Norm, Quantizer, Weight};

use super::proto::Attribute;
use super::writer::{Writer, one_image};
use crate::thresholds;

/// Of the operators `Quant` and `MultiThreshold`.
pub const DOMAIN: &str = "qonnx.custom_op.general";

/// Of a step, how far a threshold of `Quant` may be from that of the quantizer. The formulas of DoReFa and PACT, which are equal in exact
/// arithmetic, have theirs up to two numbers of single precision apart, at 8 bits 3e-5 of a step; others differ by no number.
const TOLERANCE: f64 = 1e-4;

impl Writer<'_> {
    /// The weights of a layer: codes as what they are worth, through a `Quant` that gives the same codes again.
    pub fn quant_weight(&mut self, path: &str, layer: &Layer, shape: &[usize]) -> String {
        let values = layer.values();
        let name = format!("{path}.weight");
        let Weight::Codes(grid, _) = &layer.weight else { return self.floats(name, shape, &values) };
        // A scale of all dimensions stays right when a reader transposes or reshapes the weights.
        let n_units = grid.units().len();
        let mut scale_shape = vec![1; shape.len()];
        scale_shape[0] = n_units;
        let scales: Vec<f32> = (0..n_units).map(|unit| scale(grid, unit)).collect();
        let start = format!("{path}.quant");
        let inputs = [
            self.floats(format!("{start}.values"), shape, &values),
            self.floats(format!("{start}.scale"), &scale_shape, &scales),
        ];
        self.quant(inputs, Bits::of_signed(difference(grid)), &start, &name);
        self.shaped(&name, shape);
        name
    }

    /// The values of a node on the grid of a quantizer.
    ///
    /// A ReLU of its own stands before each `Quant`: FINN takes both as one operation and removes them, also where something else reads the
    /// ReLU, and refuses a `Quant` without a sign after other operations. A `MultiThreshold` needs none. No code differs by that.
    pub fn quant_input(&mut self, id: NodeId, quantizer: &Quantizer, path: &str) -> String {
        let (grid, node) = (&quantizer.grid, self.network.graph.node(id));
        let shape = one_image(self.network.graph.shape(id));
        let (start, output) = (format!("{path}.input"), format!("{path}.input.values"));
        let input = match node.op {
            Op::Relu if self.is_part_of_quantizers(id) => self.name(node.inputs[0]),
            _ => self.name(id),
        };
        if let Some(bits) = Bits::of_unsigned(quantizer) {
            let positive = format!("{start}.positive");
            self.node("Relu", &[&input], &positive, Vec::new());
            self.shaped(&positive, &shape);
            let scale = self.floats(format!("{start}.scale"), &[], &[scale(grid, 0)]);
            self.quant([positive, scale], bits, &start, &output);
        } else {
            let range = difference(grid);
            let thresholds = repeated(quantizer);
            let name = self.floats(format!("{start}.thresholds"), &[1, thresholds.len()], &thresholds);
            let bits = Bits::of(range);
            let sign = if bits.is_signed { "" } else { "U" };
            let attributes = vec![
                Attribute::text("out_dtype", &format!("{sign}INT{}", bits.n)),
                Attribute::float("out_scale", 1.0),
                Attribute::float("out_bias", range.q_min as f32),
            ];
            // Integers come out, and their scale is a factor: so do compilers take it.
            let codes = format!("{start}.codes");
            self.node_of(DOMAIN, "MultiThreshold", &[&input, &name], &codes, attributes);
            self.shaped(&codes, &shape);
            let scale = self.floats(format!("{start}.scale"), &[], &[grid.scale(0)]);
            self.node("Mul", &[&codes, &scale], &output, Vec::new());
        }
        self.shaped(&output, &shape);
        output
    }

    /// A normalization as one operator: compilers know that channels are its first axis, also when they change the order of axes.
    /// Its variance is part of the factor already.
    pub fn batch_norm(&mut self, node: &Node, input: &str, output: &str) {
        let Norm { mean, factor, offset } = &self.network.norms[&node.path];
        let variance = vec![1.0; factor.len()];
        let mut inputs = vec![input.to_string()];
        for (name, numbers) in
            [("factor", factor), ("offset", offset), ("mean", mean), ("variance", &variance)]
        {
            inputs.push(self.floats(format!("{}.{name}", node.path), &[numbers.len()], numbers));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.node("BatchNormalization", &inputs, output, vec![Attribute::float("epsilon", 0.0)]);
    }

    /// `Quant` of values with a scale. Neither FINN nor hls4ml takes one whose zero point is not 0.
    fn quant(&mut self, [x, scale]: [String; 2], bits: Bits, start: &str, output: &str) {
        let zero_point = self.floats(format!("{start}.zero_point"), &[], &[0.0]);
        let n = self.floats(format!("{start}.bits"), &[], &[bits.n as f32]);
        let attributes = vec![
            Attribute::int("signed", bits.is_signed.into()),
            Attribute::int("narrow", bits.is_narrow.into()),
            Attribute::text("rounding_mode", "ROUND"),
        ];
        self.node_of(DOMAIN, "Quant", &[&x, &scale, &zero_point, &n], output, attributes);
    }
}

/// Whether all values below zero have the code of zero itself, so that a ReLU before it changes nothing.
pub fn cuts_negative(quantizer: &Quantizer) -> bool {
    quantizer.thresholds[0] > 0.0
}

/// The integers that `Quant` rounds to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bits {
    n: u32,
    is_signed: bool,
    /// Without the lowest one.
    is_narrow: bool,
}

impl Bits {
    /// The fewest with a sign that have all integers of a range, at least 2.
    ///
    /// Odd codes have one bit more than their method, as every second integer is none of theirs, and so have the weights of one bit: -1 and 1
    /// are a narrow range of 2 bits. A `Quant` of 1 bit gives -1 and 1 in qonnx, but -1 and 0 by its definition, as in hls4ml; and
    /// `BipolarQuant` is known neither to qonnx-convert nor, with a scale, to qonnx-inference-cost.
    fn of_signed(CodeRange { q_min, q_max }: CodeRange) -> Self {
        let fits = |n: &u32| q_max < 1 << (n - 1) && q_min >= -(1 << (n - 1));
        let n = (2..=30).find(fits).expect("invariant: codes and zero points are below 2^15");
        Self { n, is_signed: true, is_narrow: q_min > -(1 << (n - 1)) }
    }

    /// The fewest that have all integers of a range.
    fn of(range: CodeRange) -> Self {
        match range.q_min {
            0.. => Self { n: range.q_max.max(1).ilog2() + 1, is_signed: false, is_narrow: false },
            _ => Self::of_signed(range),
        }
    }

    /// Those of an input that `Quant` rounds as its quantizer does: codes from 0 to the last one of so many bits, the first of which is worth zero,
    /// and thresholds in the same places.
    fn of_unsigned(quantizer: &Quantizer) -> Option<Self> {
        let grid = &quantizer.grid;
        let CodeRange { q_min, q_max } = grid.range();
        if q_min != 0 || grid.zero_point() != 0 || !(q_max as u32 + 1).is_power_of_two() {
            return None;
        }
        // Of a grid that lacks one of these codes, none are found.
        let found = thresholds::find(grid, |values| values.iter().map(|value| round(grid, *value)).collect());
        let is_near = |(found, threshold): (&f32, &f32)| {
            let distance = (f64::from(*found) - f64::from(*threshold)).abs();
            distance <= TOLERANCE * f64::from(scale(grid, 0))
        };
        found.ok()?.iter().zip(&quantizer.thresholds).all(is_near).then(|| Self::of(grid.range()))
    }
}

/// The code that a `Quant` without a zero point has for a value, by its operations in single precision.
fn round(grid: &IntegerGrid, value: f32) -> i32 {
    let CodeRange { q_min, q_max } = grid.range();
    (value / scale(grid, 0)).clamp(q_min as f32, q_max as f32).round_ties_even() as i32
}

/// What a step between integers is worth: not zero, as `Quant` divides by it. Where it is zero, so are all values.
fn scale(grid: &IntegerGrid, channel: usize) -> f32 {
    grid.scale(channel).max(f32::MIN_POSITIVE)
}

/// The codes of a grid less that of zero.
fn difference(grid: &IntegerGrid) -> CodeRange {
    let (CodeRange { q_min, q_max }, zero) = (grid.range(), grid.zero_point());
    CodeRange { q_min: q_min - zero, q_max: q_max - zero }
}

/// The thresholds of a quantizer, each as often as there are integers between its code and the one before. Those that no value reaches, or all,
/// are the last finite numbers.
fn repeated(quantizer: &Quantizer) -> Vec<f32> {
    let codes: Vec<i32> = (0..=u8::MAX).map_while(|index| quantizer.grid.code(index)).collect();
    let steps = codes.windows(2).zip(&quantizer.thresholds);
    let of_step = |(codes, threshold): (&[i32], &f32)| {
        let n = (codes[1] - codes[0]) as usize;
        std::iter::repeat_n(threshold.clamp(f32::MIN, f32::MAX), n)
    };
    steps.flat_map(of_step).collect()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use lowbit_core::graph::{Conv, GraphBuilder, LayerRole};
    use lowbit_core::{BitWidth, CodeSet, order_key};
    use lowbit_models::{
        Family, InputShape, LayerQuantization, Layout, Method, ModelConfig, Precision, QuantizationPolicy,
    };
    use lowbit_quantizers::{Operand, QuantizedNetwork};
    use lowbit_runtime::{Info, Model, PackedNetwork, samples};

    use super::super::evaluate::{Values, evaluate};
    use super::super::proto::{GraphProto, NodeProto};
    use super::super::tests::decoded;
    use super::super::to_qonnx;
    use super::*;

    fn graph(network: &PackedNetwork) -> GraphProto {
        decoded(&to_qonnx(network)).graph.unwrap()
    }

    /// The node that gives a value.
    fn node<'a>(graph: &'a GraphProto, output: &str) -> &'a NodeProto {
        graph.node.iter().find(|node| node.output[0] == output).expect("a node gives it")
    }

    fn initializer<'a>(graph: &'a GraphProto, node: &NodeProto, input: usize) -> (&'a [i64], Vec<f32>) {
        let tensor = graph.initializer.iter().find(|tensor| tensor.name == node.input[input]).unwrap();
        (&tensor.dims, Values::of(tensor).numbers)
    }

    fn attribute(node: &NodeProto, name: &str) -> i64 {
        node.attribute.iter().find(|attribute| attribute.name == name).unwrap().i.unwrap()
    }

    /// A network of one input quantizer with this grid and these thresholds.
    fn with_input(grid: IntegerGrid, thresholds: Vec<f32>) -> PackedNetwork {
        let mut network = samples::small();
        network.layers.get_mut("conv1").unwrap().input = Some(Quantizer { grid, thresholds });
        network
    }

    fn is_same_network(network: &PackedNetwork) {
        let model = Model::new(network.clone()).unwrap();
        let graph = graph(network);
        for seed in 0..4 {
            let pixels: Vec<f32> =
                (0..108).map(|i| ((i * 7919 + seed * 131) % 401) as f32 / 100.0 - 2.0).collect();
            let expected = model.run(&pixels).unwrap();
            let logits = evaluate(&graph, pixels);
            let largest = expected.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
            for (got, expected) in logits.iter().zip(&expected) {
                assert!((got - expected).abs() <= 1e-5 * largest, "{logits:?} {expected:?}");
            }
        }
    }

    #[test]
    fn the_written_graph_computes_what_the_runtime_does() {
        is_same_network(&samples::small());
    }

    #[test]
    fn weights_have_the_bits_of_their_codes() {
        let graph = graph(&samples::small());
        for (path, bits, is_narrow, shape) in [
            ("conv1", 3.0, 1, &[1, 1, 1, 1][..]),
            ("conv2", 3.0, 0, &[6, 1, 1, 1]),
            ("side", 2.0, 1, &[1, 1, 1, 1]),
            ("hidden", 5.0, 1, &[1, 1]),
            ("fc", 8.0, 0, &[1, 1]),
        ] {
            let node = node(&graph, &format!("{path}.weight"));
            assert_eq!((node.op_type.as_str(), node.domain.as_str()), ("Quant", DOMAIN), "{path}");
            assert_eq!((attribute(node, "signed"), attribute(node, "narrow")), (1, is_narrow), "{path}");
            assert_eq!(initializer(&graph, node, 1).0, shape, "{path}");
            assert_eq!(initializer(&graph, node, 2), (&[][..], vec![0.0]), "{path}");
            assert_eq!(initializer(&graph, node, 3), (&[][..], vec![bits]), "{path}");
        }
        // In full precision.
        assert!(graph.initializer.iter().any(|tensor| tensor.name == "stem.weight"));
    }

    #[test]
    fn ranges_have_the_fewest_bits() {
        for (q_min, q_max, n, is_signed, is_narrow) in [
            (0, 1, 1, false, false),
            (0, 3, 2, false, false),
            (0, 48, 6, false, false),
            (0, 255, 8, false, false),
            (-1, 1, 2, true, true),
            (-2, 1, 2, true, false),
            (-3, 3, 3, true, true),
            (-128, 127, 8, true, false),
            (-127, 127, 8, true, true),
            (-255, 255, 9, true, true),
            (-1, 0, 2, true, true),
            (-4, 11, 5, true, true),
        ] {
            assert_eq!(
                Bits::of(CodeRange { q_min, q_max }),
                Bits { n, is_signed, is_narrow },
                "{q_min} {q_max}"
            );
        }
    }

    #[test]
    fn inputs_are_rounded_by_quant_where_it_has_their_thresholds() {
        let graph = graph(&samples::small());
        for (path, bits) in [("conv1", 2.0), ("depthwise", 2.0), ("hidden", 1.0), ("fc", 8.0)] {
            let node = node(&graph, &format!("{path}.input.values"));
            assert_eq!(node.op_type, "Quant", "{path}");
            assert_eq!((attribute(node, "signed"), attribute(node, "narrow")), (0, 0), "{path}");
            assert_eq!(initializer(&graph, node, 1), (&[][..], vec![0.3]), "{path}");
            assert_eq!(initializer(&graph, node, 2), (&[][..], vec![0.0]), "{path}");
            assert_eq!(initializer(&graph, node, 3).1, [bits], "{path}");
        }
    }

    /// Thresholds at other places, levels at other distances, a last code that is none of a whole number of bits, a zero point, a level that no
    /// value has.
    #[test]
    fn other_inputs_are_told_by_thresholds() {
        let grid = |codes: CodeSet| IntegerGrid::new(codes, vec![0.3], 1).unwrap();
        let two_bits = BitWidth::new(2).unwrap().unsigned_range();
        let uniform = |q_max, stride| CodeSet::Uniform { q_min: 0, q_max, stride };
        for (grid, thresholds, expected, range) in [
            (grid(two_bits.into()), vec![0.15, 0.5, 0.75], vec![0.15, 0.5, 0.75], ("UINT2", 0.0)),
            (
                grid(CodeSet::Table(vec![0, 1, 2, 4])),
                vec![0.15, 0.45, 0.9],
                vec![0.15, 0.45, 0.9, 0.9],
                ("UINT3", 0.0),
            ),
            (grid(uniform(2, 1)), vec![0.15, 0.45], vec![0.15, 0.45], ("UINT2", 0.0)),
            (grid(uniform(2, 2)), vec![0.3], vec![0.3, 0.3], ("UINT2", 0.0)),
            (grid(uniform(3, 3)), vec![0.45], vec![0.45; 3], ("UINT2", 0.0)),
            (
                grid(two_bits.into()).with_zero_point(1).unwrap(),
                vec![-0.15, 0.15, 0.45],
                vec![-0.15, 0.15, 0.45],
                ("INT3", -1.0),
            ),
            (
                grid(two_bits.into()).with_zero_point(2).unwrap(),
                vec![-0.2, 0.15, f32::INFINITY],
                vec![-0.2, 0.15, f32::MAX],
                ("INT2", -2.0),
            ),
        ] {
            let network = with_input(grid, thresholds);
            let graph = graph(&network);
            let node = node(&graph, "conv1.input.codes");
            assert_eq!((node.op_type.as_str(), node.domain.as_str()), ("MultiThreshold", DOMAIN));
            assert_eq!(initializer(&graph, node, 1), (&[1, expected.len() as i64][..], expected));
            let value = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name).unwrap();
            assert_eq!(
                (value("out_dtype").s.as_deref(), value("out_bias").f),
                (Some(range.0), Some(range.1))
            );
            assert_eq!(value("out_scale").f, Some(1.0));
            is_same_network(&network);
        }
    }

    /// FINN removes the ReLU before a `Quant` with it, and needs one.
    #[test]
    fn quantizers_without_a_sign_have_a_relu_of_their_own() {
        let network = samples::small();
        let graph = graph(&network);
        let before = |path: &str| node(&graph, &node(&graph, &format!("{path}.input.values")).input[0]);
        let reads = |node: &NodeProto| super::tests::node(&graph, &node.input[0]).op_type.clone();
        for (path, expected) in [
            ("conv1", ["Relu", "BatchNormalization"]),
            ("depthwise", ["Relu", "Add"]),
            ("hidden", ["Relu", "Flatten"]),
            ("fc", ["Relu", "Gemm"]),
        ] {
            let node = before(path);
            assert_eq!([&node.op_type, &reads(node)], expected, "{path}");
        }
        // With a zero point, values below zero have codes.
        assert_eq!(node(&graph, &node(&graph, "conv2.input.codes").input[0]).op_type, "Clip");
        assert_eq!(graph.node.iter().filter(|node| node.op_type == "Relu").count(), 4);
    }

    /// A ReLU that another layer reads as it is stays, and the quantizer's own comes after it.
    #[test]
    fn a_relu_with_other_readers_stays() {
        let mut network = branches();
        let graph = graph(&network);
        let own = node(&graph, "one.input.positive");
        assert_eq!(node(&graph, &own.input[0]).op_type, "Relu");
        is_same_network(&network);
        // Of two quantizers, each has its own, and that is all.
        let quantizer = Quantizer {
            thresholds: vec![0.1],
            grid: IntegerGrid::new(CodeSet::from(CodeRange { q_min: 0, q_max: 1 }), vec![0.2], 1).unwrap(),
        };
        network.layers.get_mut("two").unwrap().input = Some(quantizer);
        let graph = super::tests::graph(&network);
        let [one, two] = ["one", "two"].map(|path| node(&graph, &format!("{path}.input.positive")));
        assert_eq!((&one.input, node(&graph, &one.input[0]).op_type.as_str()), (&two.input, "Conv"));
        is_same_network(&network);
    }

    /// Two convolutions of one ReLU, the first with a quantizer.
    fn branches() -> PackedNetwork {
        let sample = samples::small();
        let of = |path: &str| sample.layers[path].clone();
        let mut graph = GraphBuilder::default();
        let image = graph.input([3, 6, 6]).unwrap();
        let stem = graph.conv("stem", Conv::new([3, 5], 3, LayerRole::First).with_bias(), image).unwrap();
        let x = graph.relu(stem).unwrap();
        let [one, two] =
            ["one", "two"].map(|path| graph.conv(path, Conv::new([5, 6], 3, LayerRole::Hidden), x).unwrap());
        let sum = graph.add([one, two]).unwrap();
        let mean = graph.global_avg_pool(sum).unwrap();
        let graph = graph.finish(mean).unwrap();
        let two = Layer { input: None, ..of("conv1") };
        let layers = [("stem", of("stem")), ("one", of("conv1")), ("two", two)];
        let layers = layers.map(|(path, layer)| (path.to_string(), layer)).into();
        PackedNetwork { graph, layers, norms: [].into(), scales: [].into(), info: Info::default() }
    }

    #[test]
    fn a_scale_of_zero_is_divided_by() {
        let mut network = samples::small();
        let Weight::Codes(grid, _) = &mut network.layers.get_mut("conv2").unwrap().weight else { panic!() };
        *grid = IntegerGrid::new(grid.codes().clone(), vec![0.0, 0.1, 0.1, 0.0, 0.2, 0.1], 1).unwrap();
        is_same_network(&network);
    }

    /// A network of untrained weights, whose quantizers have seen an image.
    fn packed(config: ModelConfig, method: Method, bits: [u32; 2], device: &Device) -> PackedNetwork {
        let [weight, act] = bits.map(|bits| Precision::bits(bits).unwrap());
        let policy = QuantizationPolicy::new(LayerQuantization::new(method, weight, act));
        let input = InputShape { channels: 1, height: 8, width: 8 };
        let mut network = config.init(input, 10, &policy, 1, device).unwrap().network;
        let image = Tensor::<1>::from_floats(&image()[..], device).reshape([1, 1, 8, 8]);
        network.calibrate(|_| true, |network| drop(network.forward(image.clone())));
        crate::pack(&network, Info::default()).unwrap()
    }

    fn image() -> Vec<f32> {
        (0..64).map(|i| (i * 7919 % 1021) as f32 / 255.0 - 2.0).collect()
    }

    /// Of 8 bits: where a rounding changes a code, a logit changes little.
    #[test]
    fn every_family_computes_what_the_runtime_does() {
        let device = Device::default();
        for config in [
            ModelConfig::new(Family::PreResNet, 8).with_width(0.25).with_logit_scale(),
            ModelConfig::new(Family::ResNet, 8).with_width(0.25),
            ModelConfig::vgg_small().with_width(0.0625),
            ModelConfig::alexnet(Layout::Cifar).with_width(0.0625).without_norm(),
            ModelConfig::mobilenet_v2(Layout::Cifar).with_width(0.25),
        ] {
            let packed = packed(config.clone(), Method::MinMax, [8, 8], &device);
            let logits = evaluate(&graph(&packed), image());
            let expected = Model::new(packed).unwrap().run(&image()).unwrap();
            let largest = expected.iter().fold(0.0f32, |largest, logit| largest.max(logit.abs()));
            assert!(largest > 0.0, "{}", config.family);
            for (got, expected) in logits.iter().zip(&expected) {
                assert!((got - expected).abs() <= 0.02 * largest, "{}: {got} {expected}", config.family);
            }
        }
    }

    /// Of the methods themselves: those whose formula is that of `Quant` have its thresholds to the last bit, those whose formula is equal in
    /// exact arithmetic to within two numbers.
    #[test]
    fn methods_have_the_thresholds_of_quant_or_their_own() {
        let device = Device::default();
        let has_grids = |method: &&Method| {
            [Operand::Weights, Operand::Activations].iter().all(|operand| method.has_grid(*operand))
        };
        let methods = Method::ALL.iter().filter(has_grids);
        for (&method, bits) in methods.flat_map(|method| [2, 4, 8].map(|bits| (method, bits))) {
            let [weights, inputs] =
                [Operand::Weights, Operand::Activations].map(|operand| method.bits(operand));
            if !inputs.contains(&bits) {
                continue;
            }
            let weight_bits = bits.clamp(*weights.start(), *weights.end());
            let config = ModelConfig::new(Family::PreResNet, 8).with_width(0.25);
            let packed = packed(config, method, [weight_bits, bits], &device);
            let farthest = match method {
                Method::Lsq | Method::LsqPlus | Method::Tqt | Method::MinMax => Some(0),
                Method::DoReFa | Method::Pact | Method::Dsq | Method::Xnor | Method::Twn => Some(2),
                // As calibrated, with equal intervals, of which each starts where the sum of those before ends.
                Method::N2uq => Some(16),
                _ => None,
            };
            for quantizer in packed.layers.values().filter_map(|layer| layer.input.as_ref()) {
                let grid = &quantizer.grid;
                assert_eq!(
                    Bits::of_unsigned(quantizer).is_some(),
                    farthest.is_some(),
                    "{method} of {bits} bits"
                );
                let Some(farthest) = farthest else { continue };
                let of_quant =
                    thresholds::find(grid, |values| values.iter().map(|x| round(grid, *x)).collect());
                for (a, b) in of_quant.unwrap().iter().zip(&quantizer.thresholds) {
                    let apart = (order_key(*a) - order_key(*b)).abs();
                    assert!(apart <= farthest, "{method} of {bits} bits: {a} {b}");
                }
            }
        }
    }
}
