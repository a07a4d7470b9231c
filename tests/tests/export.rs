//! Exported networks, in the packed file and run by the runtime, beside their evaluation: every method, family and bit width.

use burn::tensor::{Device, Tensor};
use lowbit_models::{
    Family, Granularity, InputShape, LayerOverride, LayerQuantization, Layout, Method, ModelConfig, Network,
    Precision, QuantizationPolicy,
};
use lowbit_quantizers::{Operand, QuantizedNetwork};
use lowbit_runtime::{Info, Model, PackedNetwork};
use lowbit_tests::{default_device, normal, rng, tensor, values};

const IMAGES: usize = 3;

/// A network whose normalizations have statistics, some factors below zero, and whose quantizers have seen images.
fn network(
    config: &ModelConfig,
    policy: &QuantizationPolicy,
    input: InputShape,
    device: &Device,
) -> (Network, Vec<f32>) {
    let mut network = config.init(input, 10, policy, 1, device).expect("the network is defined").network;
    let n = IMAGES * input.channels * input.height * input.width;
    let pixels = normal(n, 0.1, 1.0, &mut rng(5));
    for (i, (_, norm)) in network.norms_mut().enumerate() {
        let n = norm.gamma.val().dims()[0];
        let vector = |mean, deviation, seed: usize| {
            Tensor::<1>::from_floats(
                &normal(n, mean, deviation, &mut rng(seed as u64 + 100 * i as u64))[..],
                device,
            )
        };
        norm.gamma = burn::module::Param::from_tensor(vector(0.6, 0.6, 1));
        norm.beta = burn::module::Param::from_tensor(vector(0.2, 0.3, 2));
        norm.running_mean.update(vector(0.0, 0.3, 3));
        norm.running_var.update(vector(0.0, 1.0, 4).abs() + 0.2);
    }
    let images = images(&pixels, input, device);
    network.calibrate(|_| true, |network| drop(network.forward(images.clone())));
    (network, pixels)
}

fn images(pixels: &[f32], input: InputShape, device: &Device) -> Tensor<4> {
    tensor(pixels, [IMAGES, input.channels, input.height, input.width], device)
}

/// The runtime's logits are those of the evaluation to the last bit, of one image as of several.
fn check(what: &str, network: &Network, pixels: &[f32], input: InputShape, device: &Device) -> Model {
    let evaluated: Vec<f32> = values(network.forward(images(pixels, input, device)));
    let packed =
        lowbit_export::pack(network, Info::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let bytes = packed.to_bytes().expect("it is packed");
    let read = PackedNetwork::from_bytes(&bytes).expect("it is read");
    assert!(read == packed, "{what}: what is written is read");
    assert_eq!(read.to_bytes().expect("it is packed"), bytes, "{what}: equal networks have equal bytes");
    let model = Model::new(read).expect("it is a model");
    let logits = model.run(pixels).expect("whole images");
    assert_eq!(logits, evaluated, "{what}");
    assert!(logits.iter().all(|logit| logit.is_finite()), "{what}");
    let one = model.run(&pixels[..pixels.len() / IMAGES]).expect("an image");
    assert_eq!(one, logits[..one.len()], "{what}: an image alone");
    model
}

fn policy(method: Method, granularity: Granularity, weight: Precision, act: Precision) -> QuantizationPolicy {
    let layer =
        LayerQuantization { weight_granularity: granularity, ..LayerQuantization::new(method, weight, act) };
    QuantizationPolicy::new(layer)
}

#[test]
fn the_runtime_computes_what_the_evaluation_does() {
    let device = default_device();
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let config = ModelConfig::new(Family::PreResNet, 8).with_width(0.5);
    let (mut n_integer, mut n_fused) = (0, 0);
    let has_grids = |method: &&Method| {
        [Operand::Weights, Operand::Activations].iter().all(|operand| method.has_grid(*operand))
    };
    for &method in Method::ALL.iter().filter(has_grids) {
        let bits = |operand| method.bits(operand);
        for weight in bits(Operand::Weights) {
            for act in bits(Operand::Activations) {
                for granularity in [Granularity::PerTensor, Granularity::PerChannel] {
                    if granularity == Granularity::PerChannel && !method.is_per_channel() {
                        continue;
                    }
                    let what = format!("{method} {granularity} w{weight}a{act}");
                    let [weight, act] = [weight, act].map(|bits| Precision::bits(bits).expect("1 to 8"));
                    let policy = policy(method, granularity, weight, act);
                    let (network, pixels) = network(&config, &policy, input, &device);
                    let model = check(&what, &network, &pixels, input, &device);
                    n_integer += model.layer_counts().integer;
                    n_fused += model.layer_counts().fused;
                }
            }
        }
    }
    assert!(n_integer > 500 && n_fused > 200, "{n_integer} layers of integers, {n_fused} fused");
}

/// The codes of standardized weights are those of what the quantizer is given, so that the runtime needs to know nothing of it; and they
/// are others.
#[test]
fn standardized_weights_are_exported() {
    let device = default_device();
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let config = ModelConfig::new(Family::PreResNet, 8).with_width(0.5);
    for method in [Method::DoReFa, Method::Lsq, Method::Xnor, Method::N2uq] {
        for bits in method.bits(Operand::Weights).take(2) {
            let bits = Precision::bits(bits).expect("1 to 8");
            let plain = LayerQuantization::new(method, bits, Precision::bits(2).expect("2 bits"));
            let plain = LayerQuantization { act_method: Method::Lsq, ..plain };
            let packed = [false, true].map(|standardizes_weights| {
                let policy = QuantizationPolicy::new(LayerQuantization { standardizes_weights, ..plain });
                let (network, pixels) = network(&config, &policy, input, &device);
                check(&format!("{method} {standardizes_weights}"), &network, &pixels, input, &device);
                let layers = network.layers().filter(|(_, layer)| layer.weight_quantizer().is_some());
                let moments = layers.map(|(path, layer)| {
                    let rows: Vec<f32> = layer.exact_weights().into_data().iter::<f32>().collect();
                    let n = layer.exact_weights().dims()[1];
                    let row = &rows[..n];
                    let mean = row.iter().sum::<f32>() / n as f32;
                    let variance = row.iter().map(|w| (w - mean).powi(2)).sum::<f32>() / n as f32;
                    (path.to_string(), mean, variance)
                });
                moments.collect::<Vec<_>>()
            });
            assert!(
                packed[1]
                    .iter()
                    .all(|(_, mean, variance)| mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4)
            );
            assert!(packed[0].iter().all(|(_, _, variance)| (variance - 1.0).abs() > 1e-2));
        }
    }
}

/// Every family, of the precisions that are trained: operands in full precision, the first and the last layer in 8 bits.
#[test]
fn every_family_is_exported() {
    let device = default_device();
    let [small, large] = [32, 64].map(|size| InputShape { channels: 3, height: size, width: size });
    let configs = [
        (ModelConfig::new(Family::PreResNet, 8).with_logit_scale(), small),
        (ModelConfig::new(Family::ResNet, 8), small),
        (ModelConfig::vgg_small().with_width(0.125), small),
        (ModelConfig::alexnet(Layout::Cifar).with_width(0.125), small),
        (ModelConfig::alexnet(Layout::Cifar).with_width(0.125).without_norm(), small),
        (ModelConfig::mobilenet_v2(Layout::Cifar).with_width(0.25), small),
        (ModelConfig::imagenet(Family::ResNet, 18).with_width(0.125), large),
        (ModelConfig::imagenet(Family::ResNet, 50).with_width(0.125), large),
        (ModelConfig::imagenet(Family::PreResNet, 18).with_width(0.125), large),
    ];
    let [eight_bits, full] = [Precision::bits(8).expect("8 bits"), Precision::FullPrecision];
    let eight = LayerOverride {
        weight_bits: Some(eight_bits),
        act_bits: Some(eight_bits),
        ..LayerOverride::default()
    };
    for (config, input) in configs {
        for method in [Method::DoReFa, Method::Lsq, Method::MinMax] {
            for [weight, act] in [[2, 2], [4, 4], [1, 1], [2, 32], [32, 3]] {
                if method == Method::MinMax && weight == 1 {
                    continue;
                }
                let what = format!("{} {method} w{weight}a{act}", config.family);
                let [weight, act] = [weight, act].map(|bits| Precision::bits(bits).unwrap_or(full));
                let mut policy = policy(method, Granularity::PerTensor, weight, act);
                // The image is no result of a ReLU, as the input of a quantizer is to be.
                policy.first = LayerOverride { act_bits: Some(full), ..eight };
                policy.last = eight;
                let (network, pixels) = network(&config, &policy, input, &device);
                check(&what, &network, &pixels, input, &device);
            }
        }
    }
}
