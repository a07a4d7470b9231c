//! Every method learns: a small network overfits one batch of digits.

use burn::optim::momentum::MomentumConfig;
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::{Device, Tensor};
use lowbit_core::Precision;
use lowbit_data::{DatasetName, LabelKind, Locations, Normalization, Split, open};
use lowbit_models::{Family, InputShape, ModelConfig};
use lowbit_quantizers::{LayerQuantization, Method, Operand, QuantizationPolicy, QuantizedNetwork};
use lowbit_strategies::loss::{cross_entropy, target_probabilities};
use lowbit_tests::{default_device, tensor};

const N_IMAGES: usize = 32;
const N_STEPS: usize = 80;
const LEARNING_RATE: f64 = 0.05;

/// Images and target probabilities of the first digits.
fn batch(device: &Device) -> (Tensor<4>, Tensor<2>) {
    let name = DatasetName::Digits;
    let digits = open(name, Split::Train, LabelKind::Fine, &Locations::default_with(None))
        .expect("it is built in")
        .dataset;
    let digits = digits.head(N_IMAGES).expect("there are that many");
    let normalization = Normalization::of(name);
    let pixel = |&pixel: &u8| {
        (f32::from(pixel) / f32::from(digits.max_value) - normalization.mean[0]) / normalization.std[0]
    };
    let images: Vec<f32> = digits.images.iter().map(pixel).collect();
    let labels: Vec<i64> = digits.labels.iter().map(|&label| label.into()).collect();
    (
        tensor(&images, [N_IMAGES, 1, 8, 8], device),
        target_probabilities(&labels, digits.n_classes, 0.0, device),
    )
}

/// The loss must fall below half of where it starts, which takes 5 to 40 steps.
fn check(method: Method, weight_bits: Precision, act_bits: Precision) {
    let device = default_device().autodiff();
    let (images, targets) = batch(&device);
    let policy = QuantizationPolicy::new(LayerQuantization::new(method, weight_bits, act_bits));
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let config = ModelConfig::new(Family::PreResNet, 8).with_width(0.5);
    let mut network = config.init(input, 10, &policy, 1, &device).expect("the network is defined").network;
    network.calibrate(|_| true, |network| drop(network.forward(images.clone())));

    let momentum = MomentumConfig::new().with_momentum(0.9).with_dampening(0.0).with_nesterov(true);
    let mut optimizer = SgdConfig::new().with_momentum(Some(momentum)).init();
    let mut losses = Vec::with_capacity(N_STEPS);
    for _ in 0..N_STEPS {
        let loss = cross_entropy(network.forward(images.clone()), targets.clone());
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        losses.push(loss.into_scalar::<f32>());
        if losses[losses.len() - 1] < 0.5 * losses[0] {
            return;
        }
        network = optimizer.step(LEARNING_RATE, network, gradients);
    }
    panic!("{method} W{weight_bits}A{act_bits} does not learn: {losses:?}");
}

fn bits(bits: u32) -> Precision {
    Precision::bits(bits).unwrap()
}

/// The nearest bit widths that a method defines.
#[test]
fn every_method() {
    for &method in Method::ALL {
        for wanted in [2, 4] {
            let bits = |operand| {
                let defined = method.bits(operand);
                bits(wanted.clamp(*defined.start(), *defined.end()))
            };
            check(method, bits(Operand::Weights), bits(Operand::Activations));
        }
    }
}

#[test]
fn dorefa() {
    [(1, 2), (2, 2), (4, 4)].into_iter().for_each(|(w, a)| check(Method::DoReFa, bits(w), bits(a)));
}

#[test]
fn pact() {
    [(1, 2), (2, 2), (4, 4)].into_iter().for_each(|(w, a)| check(Method::Pact, bits(w), bits(a)));
}

#[test]
fn lsq() {
    [(1, 2), (2, 2), (4, 4)].into_iter().for_each(|(w, a)| check(Method::Lsq, bits(w), bits(a)));
}

/// Not W1: min-max weights of one bit have no level but zero.
#[test]
fn minmax() {
    [(2, 2), (4, 4)].into_iter().for_each(|(w, a)| check(Method::MinMax, bits(w), bits(a)));
}

#[test]
fn full_precision() {
    check(Method::DoReFa, Precision::FullPrecision, Precision::FullPrecision);
}
