//! What makes low bits fast on a CPU: quantized operands are convolved as integers, codes are kept for the backward pass, and
//! a normalization quantizes what it yields. Each of these falls back to something slower that yields the same values, so
//! that no comparison of values sees it. Here it is counted which kernels run.

use std::sync::{Mutex, PoisonError};

use burn::module::Param;
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{CodeSet, Granularity, Precision};
use lowbit_kernels::testing::take_times;
use lowbit_kernels::{Activation, batch_norm};
use lowbit_models::{Family, InputShape, Layout, ModelConfig, Network, grids};
use lowbit_quantizers::{
    LayerQuantization, Method, Operand, QuantConv2d, QuantConv2dConfig, QuantizationPolicy, QuantizedNetwork,
};
use lowbit_tests::{Backend, Tolerance, assert_close, backends, normal, rng, skip, tensor, values};

/// Counts are the process's: the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The methods of the paper and LSQ.
const METHODS: [Method; 3] = [Method::DoReFa, Method::Pact, Method::Lsq];

const OPERANDS: [Operand; 2] = [Operand::Weights, Operand::Activations];

/// The largest magnitude of the codes of a method's quantizer.
fn largest_code(codes: &CodeSet) -> i32 {
    match codes {
        CodeSet::Uniform { q_min, q_max, .. } => q_min.abs().max(q_max.abs()),
        CodeSet::Table(codes) => codes.iter().map(|code| code.abs()).max().unwrap_or(0),
    }
}

/// Whether codes that are at most so large are multiplied as integers by this processor: weights are signed bytes, activations unsigned
/// ones. AVX2 and NEON sum up products in 16 bits, which pays from four steps on, of two channels each; NEON takes signed bytes only.
fn are_multiplied(weight: i32, activation: i32) -> bool {
    let are_bytes = weight <= 127 && activation <= 255;
    #[cfg(target_arch = "x86_64")]
    return are_bytes
        && (lowbit_cpu::instruction_sets().contains(&"avx512vnni") || 4 * 2 * weight * activation <= 32_767);
    #[cfg(target_arch = "aarch64")]
    return are_bytes
        && (lowbit_cpu::instruction_sets().contains(&"dotprod")
            || activation <= 127 && 4 * 2 * weight * activation <= 32_767);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return are_bytes;
}

/// The CPU backends, if this processor multiplies codes faster than floats.
fn fast_backends() -> Vec<Backend> {
    #[cfg(target_arch = "x86_64")]
    let is_fast = lowbit_cpu::instruction_sets().contains(&"avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let is_fast = cfg!(target_arch = "aarch64");
    if !is_fast {
        skip("fast paths: this processor has no instructions for products of codes");
        return Vec::new();
    }
    backends().into_iter().filter(|backend| ["flex", "ndarray"].contains(&backend.name)).collect()
}

/// How often each kind of kernel runs in `operation`.
struct Calls(Vec<(&'static str, u64)>);

impl Calls {
    fn of(operation: impl FnOnce()) -> Self {
        take_times();
        operation();
        Self(take_times().map(|kind| (kind.name, kind.calls)).to_vec())
    }

    fn n(&self, name: &str) -> u64 {
        let found = self.0.iter().find(|(kind, _)| *kind == name);
        found.unwrap_or_else(|| panic!("no kernels are called {name:?}")).1
    }

    fn assert(&self, what: &str, expected: &[(&str, u64)]) {
        for &(name, n_expected) in expected {
            assert_eq!(self.n(name), n_expected, "{what}: {name}, of {:?}", self.0);
        }
    }
}

const SHAPE: [usize; 4] = [2, 16, 9, 7];

fn layer(quantization: LayerQuantization, device: &Device) -> QuantConv2d {
    let config = QuantConv2dConfig::new([SHAPE[1], 24], 3).with_quantization(quantization);
    let mut layer = config.init(device, &mut rng(1)).expect("the layer is defined");
    if let Some(quantizer) = &mut layer.input_quantizer {
        quantizer.start_calibration();
        quantizer.observe(&input(device).clamp_min(0.0));
        quantizer.finish_calibration();
    }
    layer
}

fn input(device: &Device) -> Tensor<4> {
    tensor(&normal(SHAPE.iter().product(), 0.3, 1.0, &mut rng(2)), SHAPE, device)
}

/// `layer` after a normalization, as the networks run it.
fn forward(layer: &QuantConv2d, device: &Device) -> Tensor<4> {
    let affine = [1.0, 0.0].map(|value| Tensor::full([SHAPE[1]], value, device));
    match layer.input_activation(SHAPE) {
        Some(activation) => {
            layer.forward_quantized(batch_norm(input(device), affine, 1e-5, activation).output)
        }
        // Min-max has to see its input.
        None => layer.forward(batch_norm(input(device), affine, 1e-5, Activation::Relu).output.into_values()),
    }
}

/// Every pair of bit widths that a method defines, per tensor and per channel: the kernel of integers runs exactly where the codes fit,
/// and codes are kept for the backward pass. With any bound tightened by one, one of the pairs falls back: DoReFa's weights of 7 bits have
/// the code 127, activations of 8 bits the code 255.
#[test]
fn quantized_layers_convolve_codes() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut n_codes = 0;
    for Backend { name, device } in fast_backends() {
        let has_grids = |method: &&Method| OPERANDS.iter().all(|operand| method.has_grid(*operand));
        for &method in Method::ALL.iter().filter(has_grids) {
            let [weight_bits, act_bits] =
                [Operand::Weights, Operand::Activations].map(|operand| method.bits(operand));
            let granularities = [Granularity::PerTensor, Granularity::PerChannel];
            let granularities = &granularities[..1 + usize::from(method.is_per_channel())];
            for (granularity, weight, act) in granularities.iter().flat_map(|granularity| {
                let acts = act_bits.clone();
                weight_bits
                    .clone()
                    .flat_map(move |weight| acts.clone().map(move |act| (*granularity, weight, act)))
            }) {
                let [weight, act] = [weight, act].map(|bits| Precision::bits(bits).expect("1 to 8 bits"));
                let quantization = LayerQuantization {
                    weight_granularity: granularity,
                    ..LayerQuantization::new(method, weight, act)
                };
                let what = format!("{method} {granularity} w{weight}a{act} on {name}");
                let evaluated = layer(quantization, &device);
                let codes = evaluated.weight_quantizer.as_ref().expect("weights are quantized").code_set();
                let inputs = evaluated.input_quantizer.as_ref().expect("inputs are quantized").code_set();
                let largest = [largest_code(&codes), largest_code(&inputs)];
                assert_codes_travel(&evaluated, &what, &device);
                let calls = Calls::of(|| drop(forward(&evaluated, &device)));
                // Exact wherever that can be: with weights that are signed bytes, on any processor.
                let n = u64::from(largest[0] <= 128);
                calls.assert(&what, &[("convolution of codes", n), ("convolution", 1 - n)]);
                n_codes += n;

                let device = device.clone().autodiff();
                let trained = layer(quantization, &device);
                let calls = Calls::of(|| drop(forward(&trained, &device).sum().backward()));
                // Only where it is faster.
                let n = u64::from(!method.has_zero_point() && are_multiplied(largest[0], largest[1]));
                // Kept codes need no kernel of integers.
                let kept = u64::from(!method.has_zero_point());
                calls.assert(
                    &format!("training, {what}"),
                    &[
                        ("convolution of codes", n),
                        ("convolution", 1 - n),
                        ("gradient of a convolution's weights, from codes", kept),
                        ("gradient of a convolution's weights", 1 - kept),
                    ],
                );
            }
        }
    }
    if !fast_backends().is_empty() {
        assert!(n_codes > 100, "{n_codes} layers were convolved as integers");
    }
}

/// A normalization that quantizes takes the place of a ReLU, too: also of a quantizer that would tell values below zero apart, as one whose
/// learned range begins there.
#[test]
fn a_fused_activation_has_the_relu() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let mut n_ranges = 0;
    for Backend { name, device } in backends() {
        let device = device.autodiff();
        for &method in Method::ALL.iter().filter(|method| !method.sees_every_batch()) {
            let bits = method.bits(Operand::Activations).end().min(&4).to_owned();
            let act = Precision::bits(bits).expect("1 to 8 bits");
            let mut layer = layer(LayerQuantization::new(method, Precision::FullPrecision, act), &device);
            let quantizer = layer.input_quantizer.as_mut().expect("inputs are quantized");
            let names: Vec<&str> = quantizer.learned().iter().map(|learned| learned.name).collect();
            for (name, parameter) in names.into_iter().zip(quantizer.learned_mut()) {
                // Where the range begins.
                if ["interval_lower", "interval_start", "interval_center", "step_offset"].contains(&name) {
                    *parameter = Param::from_tensor(Tensor::full([1], -0.45, &device));
                    n_ranges += 1;
                }
            }
            let outputs = [true, false].map(|is_fused| {
                let x = input(&device).require_grad();
                let affine = || [1.0, 0.0].map(|value| Tensor::full([SHAPE[1]], value, &device));
                let activation = layer.input_activation(SHAPE).filter(|_| is_fused);
                let output = match activation {
                    Some(activation) => {
                        layer.forward_quantized(batch_norm(x.clone(), affine(), 1e-5, activation).output)
                    }
                    None => layer.forward(
                        batch_norm(x.clone(), affine(), 1e-5, Activation::Relu).output.into_values(),
                    ),
                };
                let gradients = output.clone().sum().backward();
                let quantizer = layer.input_quantizer.as_ref().expect("inputs are quantized");
                let learned = quantizer.learned();
                let mut all =
                    vec![values(output), values(x.grad(&gradients).expect("the input has a gradient"))];
                all.extend(learned.iter().map(|learned| {
                    values(learned.parameter.val().grad(&gradients).expect("the parameter has a gradient"))
                }));
                all
            });
            for (fused, apart) in outputs[0].iter().zip(&outputs[1]) {
                let what = format!("{method} on {name}");
                assert_close(&what, fused, apart, Tolerance { relative: 1e-4, absolute: 1e-5 });
            }
        }
    }
    assert!(n_ranges >= 4, "{n_ranges} ranges began below zero");
}

/// Values come with the codes that the quantizer says of them, where these are bytes.
fn assert_codes_travel(layer: &QuantConv2d, what: &str, device: &Device) {
    let of = |codes: Tensor<4, Int>| codes.into_data().iter::<i32>().collect::<Vec<_>>();
    let quantizer = layer.weight_quantizer.as_ref().expect("weights are quantized");
    let weight = layer.weight.val();
    let (quantized, asked) = (quantizer.quantize(weight.clone()), quantizer.codes(weight));
    let travelling = quantized.codes();
    // The code -128 of 8 bits is a byte, too.
    match largest_code(&quantizer.code_set()) <= 128 {
        true => {
            assert_eq!(of(travelling.expect("codes of weights").integers()), of(asked), "weights, {what}")
        }
        false => assert!(travelling.is_none(), "weights, {what}"),
    }
    let quantizer = layer.input_quantizer.as_ref().expect("inputs are quantized");
    let input = input(device).clamp_min(0.0);
    let (quantized, asked) = (quantizer.quantize(input.clone()), quantizer.codes(input));
    let travelling = quantized.codes();
    assert_eq!(of(travelling.expect("codes of inputs").integers()), of(asked), "inputs, {what}");
}

/// The counts can see a fallback: an input that is on no grid, and a layer in full precision.
#[test]
fn a_fallback_is_counted() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for Backend { name, device } in fast_backends() {
        let two = Precision::bits(2).expect("2 is a width");
        let quantized = layer(LayerQuantization::new(Method::DoReFa, two, two), &device);
        let calls = Calls::of(|| drop(quantized.forward_quantized(input(&device))));
        calls.assert(&format!("off the grid, on {name}"), &[("convolution", 1)]);
        // Weights in full precision: floats are multiplied, but the codes of the input are kept.
        let only_inputs = LayerQuantization::new(Method::DoReFa, Precision::FullPrecision, two);
        let autodiff = device.clone().autodiff();
        let only_inputs = layer(only_inputs, &autodiff);
        let calls = Calls::of(|| drop(forward(&only_inputs, &autodiff).sum().backward()));
        calls.assert(
            &format!("w32a2 on {name}"),
            &[("convolution", 1), ("gradient of a convolution's weights, from codes", 1)],
        );
        let plain = layer(LayerQuantization::FULL_PRECISION, &device);
        let calls = Calls::of(|| drop(forward(&plain, &device)));
        calls.assert(&format!("fp32 on {name}"), &[("convolution", 1), ("convolution of codes", 0)]);
    }
}

fn network(family: Family, method: Method, device: &Device) -> (Network, Tensor<4>) {
    let two = Precision::bits(2).expect("2 is a width");
    let policy = QuantizationPolicy::new(LayerQuantization::new(method, two, two));
    let config = match family {
        Family::VggSmall => ModelConfig::vgg_small().with_width(0.125),
        Family::AlexNet => ModelConfig::alexnet(Layout::Cifar).with_width(0.125),
        family => ModelConfig::new(family, 8),
    };
    let input = InputShape { channels: 3, height: 32, width: 32 };
    let mut network = config.init(input, 10, &policy, 0, device).expect("the network is defined").network;
    let images = tensor(&normal(2 * 3072, 0.0, 1.0, &mut rng(3)), [2, 3, 32, 32], device);
    network.calibrate(|_| true, |network| drop(network.forward(images.clone())));
    (network, images)
}

/// Whole networks at 2 bits. The stem is in full precision, and in training shortcuts that skip most of their input are convolved as
/// floats. An evaluation convolves in linear layers, too, of which the last is in full precision.
#[test]
fn networks_convolve_codes() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    for Backend { name, device } in fast_backends() {
        for method in METHODS {
            for (family, n_codes, n_floats, n_evaluated) in [
                (Family::PreResNet, 6, 3, 8),
                (Family::ResNet, 6, 3, 8),
                (Family::VggSmall, 5, 1, 5),
                (Family::AlexNet, 4, 1, 6),
            ] {
                let what = format!("{family} by {method} on {name}");
                let (evaluated, images) = network(family, method, &device);
                let calls = Calls::of(|| drop(evaluated.forward(images)));
                calls.assert(&what, &[("convolution of codes", n_evaluated), ("convolution", 2)]);
                // Two blocks have two layers on one normalization, which quantizes for both only if they do it alike: not
                // with a clip value each. What comes after a pool is quantized by itself, and the input of a linear layer.
                let n_activations = match (family, method) {
                    (Family::PreResNet, Method::DoReFa) => Some(0),
                    (Family::PreResNet, Method::Pact | Method::Lsq) => Some(4),
                    (Family::VggSmall, _) => Some(2),
                    (Family::AlexNet, _) => Some(4),
                    _ => None,
                };
                let grids = grids(&evaluated).expect("the grids are defined");
                let n_weights = grids.iter().filter(|layer| layer.weight.is_some()).count() as u64;
                if let Some(n_activations) = n_activations {
                    calls.assert(&what, &[("fake quantization alone", n_activations + n_weights)]);
                }

                let (trained, images) = network(family, method, &device.clone().autodiff());
                let calls = Calls::of(|| drop(trained.forward(images).sum().backward()));
                let n_quantized = n_codes + n_floats - 1;
                calls.assert(
                    &format!("training, {what}"),
                    &[
                        ("convolution of codes", n_codes),
                        ("convolution", n_floats),
                        ("gradient of a convolution's weights, from codes", n_quantized),
                        ("gradient of a convolution's weights", 1),
                    ],
                );
            }
        }
    }
}

/// What a ReLU and a quantizer do after a normalization is done by it: of every method but min-max, whose range follows what it sees.
#[test]
fn normalizations_are_fused() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let device = backends().swap_remove(0).device;
    for &method in Method::ALL {
        for bits in method.bits(Operand::Activations) {
            let act = Precision::bits(bits).expect("1 to 8 bits");
            let layer = layer(LayerQuantization::new(method, Precision::FullPrecision, act), &device);
            let is_fused = matches!(layer.input_activation(SHAPE), Some(Activation::Quantize(_)));
            assert_eq!(is_fused, !method.sees_every_batch(), "{method} at {bits}");
        }
    }
}
