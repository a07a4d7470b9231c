//! What networks are made of: shapes of their feature maps, quantized layers, initial weights. That backends agree on what
//! they compute is in `parity`.

use burn::tensor::{Device, Tensor};
use lowbit_core::{Granularity, Precision};
use lowbit_models::{Family, InputShape, Model, ModelConfig, ModelError};
use lowbit_quantizers::{LayerQuantization, Method, QuantizationPolicy, QuantizedNetwork};
use lowbit_tests::{Backend, backends, default_device, gradients, normal, rng, tensor, values};

const N_CLASSES: usize = 5;
const BATCH: usize = 3;

/// A network of any family with few channels.
fn tiny(family: Family) -> ModelConfig {
    match family {
        Family::VggSmall => ModelConfig::vgg_small().with_width(1.0 / 16.0),
        family => ModelConfig::new(family, 8).with_width(0.25),
    }
}

const FAMILIES: [Family; 3] = [Family::ResNet, Family::PreResNet, Family::VggSmall];

fn build(config: &ModelConfig, input: InputShape, policy: &QuantizationPolicy, device: &Device) -> Model {
    config.init(input, N_CLASSES, policy, 7, device).expect("the network is defined")
}

fn images(input: InputShape, device: &Device) -> Tensor<4> {
    let InputShape { channels, height, width } = input;
    let pixels = normal(BATCH * channels * height * width, 0.0, 1.0, &mut rng(3));
    tensor(&pixels, [BATCH, channels, height, width], device)
}

fn input(channels: usize, height: usize, width: usize) -> InputShape {
    InputShape { channels, height, width }
}

/// Sizes of the feature maps: strides round up, pools round down.
#[test]
fn feature_maps_have_the_documented_shapes() {
    let policy = QuantizationPolicy::full_precision();
    let device = default_device();
    for (family, input, expected) in [
        (Family::ResNet, input(2, 9, 7), [[BATCH, 4, 9, 7], [BATCH, 8, 5, 4], [BATCH, 16, 3, 2]]),
        (Family::PreResNet, input(3, 32, 32), [[BATCH, 4, 32, 32], [BATCH, 8, 16, 16], [BATCH, 16, 8, 8]]),
        (Family::PreResNet, input(1, 1, 1), [[BATCH, 4, 1, 1], [BATCH, 8, 1, 1], [BATCH, 16, 1, 1]]),
        (Family::VggSmall, input(2, 9, 11), [[BATCH, 8, 4, 5], [BATCH, 16, 2, 2], [BATCH, 32, 1, 1]]),
    ] {
        let network = build(&tiny(family), input, &policy, &device).network;
        let taps = network.forward_features(images(input, &device)).taps;
        assert_eq!(taps.iter().map(Tensor::dims).collect::<Vec<_>>(), expected, "{family}");
        assert_eq!(network.tap_names().len(), taps.len());
    }
    let too_small = tiny(Family::VggSmall).init(input(2, 9, 7), N_CLASSES, &policy, 0, &device);
    assert_eq!(too_small.unwrap_err(), ModelError::InputTooSmall { height: 9, width: 7 });
}

/// A plan is made of the networks that can be built, and of no other.
#[test]
fn networks_of_nothing_are_refused() {
    let policy = QuantizationPolicy::full_precision();
    let refused = |config: &ModelConfig, input: InputShape, n_classes: usize| {
        let plan = config.plan(input, n_classes, &policy).map(|_| ()).unwrap_err();
        let init = config.init(input, n_classes, &policy, 0, &default_device()).map(|_| ()).unwrap_err();
        assert_eq!(plan, init);
        plan
    };
    for family in [Family::ResNet, Family::PreResNet, Family::VggSmall] {
        for (input, n_classes) in
            [(input(0, 9, 9), 2), (input(3, 0, 9), 2), (input(3, 9, 0), 2), (input(3, 9, 9), 0)]
        {
            let error = refused(&tiny(family), input, n_classes);
            assert_eq!(error, ModelError::Empty { n_classes, input });
        }
    }
    let message = refused(&tiny(Family::ResNet), input(3, 0, 9), 2).to_string();
    assert_eq!(
        message,
        "a network needs at least 1 class, channel and pixel, got 2 classes and images of 3x0x9 (channels, height, width)"
    );
    let deep = |depth| ModelConfig::new(Family::ResNet, depth).plan(input(3, 8, 8), 2, &policy).is_ok();
    assert_eq!([9_998, 10_004, usize::MAX - 3].map(deep), [true, false, false]);
}

/// Every method at every bit width of both operands: builds, runs, and gives every parameter a gradient.
#[test]
fn quantized_networks_run() {
    let device = default_device().autodiff();
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
            let what = format!("{method} W{bits}A{bits}");
            check_quantized(&what, quantization, FAMILIES[bits as usize % 3], &device);
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
    let Model { mut network, plan } = build(&tiny(family), input, &policy, device);
    let quantized = plan.layers.iter().filter(|layer| layer.method == Some(quantization.method)).count();
    assert_eq!(
        quantized,
        plan.layers.len() - 2,
        "{what}: all layers but the first and the last are quantized"
    );
    let images = images(input, device);
    network.calibrate(|_| true, |network| drop(network.forward(images.clone())));
    let logits = network.forward(images);
    assert_eq!(logits.dims(), [BATCH, N_CLASSES]);
    let gradients = gradients(&network, &logits.square().sum().backward());
    for (path, gradient) in &gradients {
        let gradient = gradient.as_ref().unwrap_or_else(|| panic!("{what}: {path} has no gradient"));
        assert!(gradient.iter().all(|value| value.is_finite()), "{what}: gradient of {path}");
    }
    let learned =
        gradients.iter().filter(|(path, _)| path.ends_with("step_size") || path.ends_with("clip_value"));
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
