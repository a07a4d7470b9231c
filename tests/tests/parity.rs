//! The same cases on every backend: codes bit for bit, values and networks within a stated tolerance.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use lowbit_core::{BitWidth, Granularity, Precision};
use lowbit_models::{Family, InputShape, Model, ModelConfig, ModelError};
use lowbit_quantizers::{LayerQuantization, Method, QuantizationPolicy, QuantizedNetwork};
use lowbit_tests::{
    Backend, Spec, Tolerance, assert_close, backends, excess, gradients, integers, normal, rng, tensor,
    values,
};

/// Some ulp: a few operations, of which tanh is the least exact.
const QUANTIZED: Tolerance = Tolerance::relative(8.0 * f32::EPSILON as f64);

/// Convolutions and BatchNorm add in another order on each backend. The largest difference seen is a seventh of this.
const LOGITS: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-6 };

/// Gradients pass the layers once more, and are sums over all positions whose parts nearly cancel. The largest
/// difference seen is a twentieth of this.
const GRADIENTS: Tolerance = Tolerance { relative: 1e-4, absolute: 1e-5 };

const N_CLASSES: usize = 5;
const BATCH: usize = 3;

fn specs(channels: usize) -> Vec<Spec> {
    let per_channel = (0..channels).map(|channel| 0.05 + 0.07 * channel as f32).collect();
    vec![
        Spec::DoReFaWeights,
        Spec::DoReFaWeightsDetachedMax,
        Spec::DoReFaActivations,
        Spec::PactActivations { clip_value: 4.0 },
        Spec::PactActivations { clip_value: 2.7 },
        Spec::LsqWeights { step_size: vec![0.25], granularity: Granularity::PerTensor },
        Spec::LsqWeights { step_size: vec![0.11], granularity: Granularity::PerTensor },
        Spec::LsqWeights { step_size: per_channel, granularity: Granularity::PerChannel },
        Spec::LsqActivations { step_size: 0.25 },
        Spec::LsqActivations { step_size: 0.3 },
        Spec::MinMaxWeights { granularity: Granularity::PerTensor },
        Spec::MinMaxWeights { granularity: Granularity::PerChannel },
        Spec::MinMaxActivations { min: 0.0, max: 3.75 },
        Spec::MinMaxActivations { min: -0.9, max: 3.1 },
    ]
}

/// Ties and edges of the power-of-two grids among `specs`, zeros of both signs, tiny and large values, and random ones.
fn mixture(n: usize, seed: u64) -> Vec<f32> {
    let mut x: Vec<f32> = (-20..=20).map(|half| half as f32 * 0.125).collect();
    x.extend([0.0, -0.0, 1e-30, -1e-30, 1.0, 1.0f32.next_up(), 1.0f32.next_down(), 4.0, 4.0f32.next_up()]);
    let rest = n - x.len();
    x.extend(normal(rest, 0.0, 1.0, &mut rng(seed)));
    x
}

#[test]
fn quantizers_agree() {
    let shape = [4, 3, 5, 5];
    for spec in specs(shape[0]) {
        for bits in BitWidth::ALL {
            if matches!(spec, Spec::MinMaxWeights { .. }) && bits.get() == 1 {
                continue;
            }
            for seed in 0..3 {
                check_quantizer(&spec, bits, shape, seed);
            }
        }
    }
}

fn check_quantizer(spec: &Spec, bits: BitWidth, shape: [usize; 4], seed: u64) {
    let x = mixture(shape.iter().product(), seed);
    let grad_y = normal(x.len(), 0.0, 1.0, &mut rng(seed + 1000));
    let run = |device: &Device| {
        let device = device.clone().autodiff();
        let quantizer = spec.build(bits, &device);
        let x = tensor(&x, shape, &device).require_grad();
        let y = quantizer.fake_quantize(x.clone());
        let gradients = (y.clone() * tensor(&grad_y, shape, &device)).sum().backward();
        let parameter = quantizer.learned().map(|(_, parameter)| parameter.grad(&gradients));
        let parameter = parameter.map(|gradient| values(gradient.expect("the parameter has a gradient")));
        let codes = integers(quantizer.codes(x.clone()));
        (codes, values(y), values(x.grad(&gradients).expect("the input has a gradient")), parameter)
    };
    let backends = backends();
    let (codes, y, grad_x, parameter) = run(&backends[0].device);
    for backend in &backends[1..] {
        let what = format!("{spec:?} at {bits} bits, seed {seed}, on {}", backend.name);
        let (other_codes, other_y, other_grad_x, other_parameter) = run(&backend.device);
        assert_eq!(other_codes, codes, "{what}: codes");
        assert_close(&format!("{what}: values"), &other_y, &y, QUANTIZED);
        assert_close(&format!("{what}: gradient"), &other_grad_x, &grad_x, Tolerance::relative(4e-6));
        let [parameter, other] =
            [&parameter, &other_parameter].map(|gradient| gradient.clone().unwrap_or_default());
        assert_close(
            &format!("{what}: parameter"),
            &other,
            &parameter,
            Tolerance { relative: 1e-5, absolute: 1e-5 },
        );
    }
}

/// A network of any family with few channels.
fn tiny(family: Family) -> ModelConfig {
    match family {
        Family::VggSmall => ModelConfig::vgg_small().with_width(1.0 / 16.0),
        family => ModelConfig::new(family, 8).with_width(0.25),
    }
}

const FAMILIES: [Family; 3] = [Family::ResNet, Family::PreResNet, Family::VggSmall];

/// A step of training: logits, feature maps' shapes and the gradients of the sum of the squared logits.
struct Step {
    logits: Vec<f32>,
    taps: Vec<[usize; 4]>,
    gradients: Vec<(String, Option<Vec<f32>>)>,
    /// The logits of an evaluation after the step's forward pass.
    evaluated: Vec<f32>,
}

fn build(config: &ModelConfig, input: InputShape, policy: &QuantizationPolicy, device: &Device) -> Model {
    config.init(input, N_CLASSES, policy, 7, device).expect("the network is defined")
}

fn images(input: InputShape, device: &Device, factor: f32) -> Tensor<4> {
    let InputShape { channels, height, width } = input;
    let mut pixels = normal(BATCH * channels * height * width, 0.0, 1.0, &mut rng(3));
    pixels.iter_mut().for_each(|pixel| *pixel *= factor);
    tensor(&pixels, [BATCH, channels, height, width], device)
}

fn step(
    config: &ModelConfig,
    input: InputShape,
    policy: &QuantizationPolicy,
    device: &Device,
    nudge: f32,
) -> Step {
    let train = device.clone().autodiff();
    let mut network = build(config, input, policy, &train).network;
    let x = images(input, &train, nudge);
    network.calibrate(|_| true, |network| drop(network.forward(x.clone())));
    let features = network.forward_features(x);
    assert_eq!(features.logits.dims(), [BATCH, N_CLASSES]);
    let backward = features.logits.clone().square().sum().backward();
    Step {
        logits: values(features.logits),
        taps: features.taps.iter().map(Tensor::dims).collect(),
        gradients: gradients(&network, &backward),
        evaluated: values(network.valid().forward(images(input, device, nudge))),
    }
}

/// Finite logits, and for every parameter a finite gradient.
fn check_finite(what: &str, step: &Step) {
    assert!(step.logits.iter().all(|logit| logit.is_finite()), "{what}: logits {:?}", step.logits);
    assert!(step.evaluated.iter().all(|logit| logit.is_finite()), "{what}: evaluated {:?}", step.evaluated);
    for (path, gradient) in &step.gradients {
        let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{what}: {path} has no gradient"));
        assert!(gradient.iter().all(|value| value.is_finite()), "{what}: gradient of {path}");
    }
}

/// Factors of the images that move them by about an ulp and by some.
const NUDGES: [f32; 5] = [1.0, 1.0 + f32::EPSILON, 1.0 - f32::EPSILON, 1.0 + 1e-6, 1.0 - 1e-6];

/// Compares every backend with the first.
///
/// A network is smooth in pieces only: where a value lies on the kink of a ReLU or ties in a max pool, the gradients
/// jump, and which side a backend is on is up to the order of its sums. Its gradients must therefore be those of the
/// first backend for the same images or for images next to them. Logits have no jumps.
fn check_network(config: &ModelConfig, input: InputShape, policy: &QuantizationPolicy) {
    let backends = backends();
    let reference = |nudge| step(config, input, policy, &backends[0].device, nudge);
    let expected = reference(1.0);
    let what = format!("{config:?} for {input:?}");
    check_finite(&what, &expected);
    for Backend { name, device } in &backends[1..] {
        let what = format!("{what} on {name}");
        let got = step(config, input, policy, device, 1.0);
        check_finite(&what, &got);
        assert_close(&format!("{what}: logits"), &got.logits, &expected.logits, LOGITS);
        assert_close(&format!("{what}: evaluated logits"), &got.evaluated, &expected.evaluated, LOGITS);
        assert_eq!(got.taps, expected.taps, "{what}");
        let mismatches: Option<Vec<String>> =
            NUDGES.into_iter().map(|nudge| gradient_mismatch(&got, &reference(nudge))).collect();
        assert!(mismatches.is_none(), "{what}: gradients differ: {mismatches:?}");
    }
}

/// The first parameter whose gradient differs by more than the tolerance.
fn gradient_mismatch(got: &Step, expected: &Step) -> Option<String> {
    got.gradients.iter().zip(&expected.gradients).find_map(|((path, got), (_, expected))| {
        let [got, expected] = [got, expected].map(|gradient| gradient.as_deref().unwrap_or_default());
        let excess = excess(got, expected, GRADIENTS);
        (excess > 1.0).then(|| format!("{path} by {excess:.1} times the tolerance"))
    })
}

fn input(channels: usize, height: usize, width: usize) -> InputShape {
    InputShape { channels, height, width }
}

/// In full precision, and with quantized weights. With quantized activations two backends differ by whole code steps
/// wherever a sum comes to lie on the other side of a tie, so that only the finite is asked of them, below.
#[test]
fn networks_agree() {
    let two = Precision::bits(2).unwrap();
    let weights_only = LayerQuantization::new(Method::DoReFa, two, Precision::FullPrecision);
    for family in FAMILIES {
        let odd = if family == Family::VggSmall { input(2, 9, 11) } else { input(2, 9, 7) };
        for input in [input(1, 8, 8), input(1, 28, 28), input(3, 32, 32), odd] {
            check_network(&tiny(family), input, &QuantizationPolicy::full_precision());
            check_network(&tiny(family), input, &QuantizationPolicy::new(weights_only));
        }
    }
}

/// Sizes of the feature maps: strides round up, pools round down.
#[test]
fn feature_maps_have_the_documented_shapes() {
    let policy = QuantizationPolicy::full_precision();
    let device = backends().swap_remove(0).device;
    for (family, input, expected) in [
        (Family::ResNet, input(2, 9, 7), [[BATCH, 4, 9, 7], [BATCH, 8, 5, 4], [BATCH, 16, 3, 2]]),
        (Family::PreResNet, input(3, 32, 32), [[BATCH, 4, 32, 32], [BATCH, 8, 16, 16], [BATCH, 16, 8, 8]]),
        (Family::PreResNet, input(1, 1, 1), [[BATCH, 4, 1, 1], [BATCH, 8, 1, 1], [BATCH, 16, 1, 1]]),
        (Family::VggSmall, input(2, 9, 11), [[BATCH, 8, 4, 5], [BATCH, 16, 2, 2], [BATCH, 32, 1, 1]]),
    ] {
        let network = build(&tiny(family), input, &policy, &device).network;
        let taps = network.forward_features(images(input, &device, 1.0)).taps;
        assert_eq!(taps.iter().map(Tensor::dims).collect::<Vec<_>>(), expected, "{family}");
        assert_eq!(network.tap_names().len(), taps.len());
    }
    let too_small = tiny(Family::VggSmall).init(input(2, 9, 7), N_CLASSES, &policy, 0, &device);
    assert_eq!(too_small.unwrap_err(), ModelError::InputTooSmall { height: 9, width: 7 });
}

/// Every method at every bit width of both operands, on every backend and family: builds, runs, and gives every
/// parameter a finite gradient.
#[test]
fn quantized_networks_run() {
    for Backend { name, device } in backends() {
        for method in [Method::DoReFa, Method::Pact, Method::Lsq, Method::MinMax] {
            for bits in 1..=8 {
                let precision = Precision::bits(bits).unwrap();
                let granularity = match method {
                    Method::Lsq | Method::MinMax if bits % 2 == 0 => Granularity::PerChannel,
                    _ => Granularity::PerTensor,
                };
                let quantization = LayerQuantization {
                    weight_granularity: granularity,
                    ..LayerQuantization::new(method, precision, precision)
                };
                let what = format!("{method} W{bits}A{bits} on {name}");
                check_quantized(&what, quantization, FAMILIES[bits as usize % 3], &device);
            }
        }
    }
}

fn check_quantized(what: &str, quantization: LayerQuantization, family: Family, device: &Device) {
    let policy = QuantizationPolicy::new(quantization);
    let input = input(1, 8, 8);
    if quantization.check().is_err() {
        let refused = tiny(family).init(input, N_CLASSES, &policy, 0, device);
        assert!(matches!(refused, Err(ModelError::Quantizer { .. })), "{what}");
        return;
    }
    let plan = build(&tiny(family), input, &policy, device).plan;
    let quantized = plan.layers.iter().filter(|layer| layer.method == Some(quantization.method)).count();
    assert_eq!(
        quantized,
        plan.layers.len() - 2,
        "{what}: all layers but the first and the last are quantized"
    );
    let step = step(&tiny(family), input, &policy, device, 1.0);
    check_finite(what, &step);
    let learned =
        step.gradients.iter().filter(|(path, _)| path.ends_with("step_size") || path.ends_with("clip_value"));
    let per_layer = match quantization.method {
        Method::DoReFa | Method::MinMax => 0,
        Method::Pact => 1,
        Method::Lsq => 2,
    };
    assert_eq!(learned.count(), per_layer * quantized, "{what}: learned parameters");
}

/// The initial weights are drawn on the host: every backend and every precision starts from the same.
#[test]
fn initial_weights_do_not_depend_on_backend_or_precision() {
    let two = Precision::bits(2).unwrap();
    let policies = [
        QuantizationPolicy::full_precision(),
        QuantizationPolicy::new(LayerQuantization::new(Method::Lsq, two, two)),
    ];
    for family in FAMILIES {
        let weights = |policy: &QuantizationPolicy, device: &Device| {
            let mut network = build(&tiny(family), input(1, 8, 8), policy, device).network;
            let mut weights = Vec::new();
            network.for_each_layer(&mut |_, layer| {
                weights.push(match layer {
                    lowbit_quantizers::LayerMut::Conv(conv) => values(conv.weight.val()),
                    lowbit_quantizers::LayerMut::Linear(linear) => values(linear.weight.val()),
                });
            });
            weights
        };
        let expected = weights(&policies[0], &backends()[0].device);
        for Backend { name, device } in backends() {
            for policy in &policies {
                assert_eq!(weights(policy, &device), expected, "{family} on {name}");
            }
        }
    }
}
