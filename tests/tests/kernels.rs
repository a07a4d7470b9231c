//! The kernels of the CPU backends against the same operations made of burn's own, which other backends run: every
//! operation with its gradients, whole networks, and the loss curve of a training.
//!
//! Which of the two runs is a switch of the whole process: the tests hold a lock while they use it.

use std::sync::{Mutex, MutexGuard};

use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};
use lowbit_core::Precision;
use lowbit_data::{DatasetName, LabelKind, Locations, Split, open};
use lowbit_kernels::{
    Activation, CodeBounds, Grid, MaxGradient, Scale, batch_norm, conv2d, conv2d_codes, dorefa_weights,
    fake_quantize_learned, fake_quantize_unit, use_reference,
};
use lowbit_models::{Family, InputShape, ModelConfig};
use lowbit_quantizers::{LayerQuantization, Method, QuantConv2dConfig, QuantizationPolicy};
use lowbit_strategies::loss::{cross_entropy, target_probabilities};
use lowbit_tests::{
    Tolerance, assert_close, backends, default_device, gradients, normal, rng, tensor, values,
};

/// Sums of up to some thousand products, added up in another order.
const SUMS: Tolerance = Tolerance { relative: 4e-6, absolute: 1e-6 };

static SWITCH: Mutex<()> = Mutex::new(());

/// Runs `case` with the kernels and with the reference.
fn both<T>(case: impl Fn() -> T) -> [T; 2] {
    let _lock: MutexGuard<'_, ()> = SWITCH.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    [false, true].map(|is_reference| {
        use_reference(is_reference);
        let result = case();
        use_reference(false);
        result
    })
}

/// What an operation yields for these inputs, and the gradients of all of them for a fixed gradient of the result.
fn differentiate<const D: usize>(
    inputs: &[(Vec<f32>, Vec<usize>)],
    device: &Device,
    operation: impl Fn(&[Tensor<1>]) -> Tensor<D>,
) -> Vec<Vec<f32>> {
    let device = device.clone().autodiff();
    let inputs: Vec<Tensor<1>> =
        inputs.iter().map(|(x, _)| tensor::<1>(x, [x.len()], &device).require_grad()).collect();
    let output = operation(&inputs);
    let n = output.shape().num_elements();
    let factors: Tensor<D> =
        tensor::<1>(&normal(n, 0.0, 1.0, &mut rng(99)), [n], &device).reshape(output.shape());
    let all = (output.clone() * factors).sum().backward();
    let gradients = inputs.iter().map(|input| values(input.grad(&all).expect("every input has a gradient")));
    std::iter::once(values(output)).chain(gradients).collect()
}

/// Compares an operation of tensors of these shapes, of normal values moved and scaled as given.
fn check<const D: usize>(
    what: &str,
    shapes: &[(&[usize], f32, f32)],
    operation: impl Fn(&[Tensor<1>]) -> Tensor<D>,
) {
    for backend in backends().into_iter().filter(|backend| backend.name != "wgpu") {
        for seed in 0..3 {
            let mut rng = rng(seed);
            let inputs: Vec<(Vec<f32>, Vec<usize>)> = shapes
                .iter()
                .map(|(shape, mean, std)| {
                    (normal(shape.iter().product(), *mean, *std, &mut rng), shape.to_vec())
                })
                .collect();
            let [kernels, reference] = both(|| differentiate(&inputs, &backend.device, &operation));
            for (i, (got, expected)) in kernels.iter().zip(&reference).enumerate() {
                let part = if i == 0 { "result".into() } else { format!("gradient of input {}", i - 1) };
                assert_close(
                    &format!("{what} on {}, seed {seed}: {part}", backend.name),
                    got,
                    expected,
                    SUMS,
                );
            }
        }
    }
}

struct Conv {
    input: [usize; 4],
    weight: [usize; 4],
    stride: usize,
    padding: usize,
    groups: usize,
}

const CONVS: [Conv; 10] = [
    Conv { input: [2, 3, 8, 8], weight: [16, 3, 3, 3], stride: 1, padding: 1, groups: 1 },
    Conv { input: [3, 16, 9, 7], weight: [20, 16, 3, 3], stride: 2, padding: 1, groups: 1 },
    Conv { input: [2, 5, 11, 11], weight: [7, 5, 5, 5], stride: 1, padding: 2, groups: 1 },
    Conv { input: [2, 8, 6, 6], weight: [12, 8, 1, 1], stride: 2, padding: 0, groups: 1 },
    Conv { input: [1, 3, 30, 30], weight: [8, 3, 7, 7], stride: 2, padding: 3, groups: 1 },
    Conv { input: [1, 3, 40, 40], weight: [6, 3, 11, 11], stride: 4, padding: 2, groups: 1 },
    Conv { input: [2, 6, 8, 8], weight: [6, 1, 3, 3], stride: 1, padding: 1, groups: 6 },
    Conv { input: [2, 8, 8, 8], weight: [16, 4, 3, 3], stride: 1, padding: 1, groups: 2 },
    Conv { input: [1, 1, 1, 1], weight: [1, 1, 1, 1], stride: 1, padding: 0, groups: 1 },
    Conv { input: [1, 2, 1, 1], weight: [3, 2, 3, 3], stride: 1, padding: 1, groups: 1 },
];

#[test]
fn convolutions_agree() {
    for Conv { input, weight, stride, padding, groups } in CONVS {
        let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], groups);
        check(
            &format!("conv {input:?} {weight:?} stride {stride}"),
            &[(&input, 0.0, 1.0), (&weight, 0.0, 0.5)],
            |x| conv2d(x[0].clone().reshape(input), x[1].clone().reshape(weight), options.clone()),
        );
    }
}

/// Fake-quantized operands, so that the sums are of integers in the kernel and of floats in the reference.
#[test]
fn convolutions_of_codes_agree() {
    for Conv { input, weight, stride, padding, groups } in CONVS {
        for (n_input, n_weight) in [(1.0f32, 1.0f32), (3.0, 3.0), (15.0, 15.0), (255.0, 127.0)] {
            let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], groups);
            let bounds = CodeBounds { activation: n_input as u8, weight: n_weight as u8 };
            let what =
                format!("conv {input:?} {weight:?} stride {stride} of codes up to {n_input}, {n_weight}");
            check(&what, &[(&input, 0.5, 0.5), (&weight, 0.0, 0.5)], |x| {
                let x_q = fake_quantize_unit(x[0].clone().reshape(input), n_input);
                let w_q = dorefa_weights(x[1].clone().reshape(weight), n_weight, MaxGradient::Detached);
                let scales = [n_input, n_weight].map(|n| Scale::Constant(1.0 / n));
                conv2d_codes(x_q, w_q, scales, bounds, options.clone())
            });
        }
    }
}

/// One step for all values of the input, one for each output channel of the weights.
#[test]
fn convolutions_of_learned_codes_agree() {
    let (input, weight) = ([2, 5, 6, 6], [18, 5, 3, 3]);
    let (act, signed) = (Grid::Step { q_min: 0.0, q_max: 7.0 }, Grid::Step { q_min: -4.0, q_max: 3.0 });
    let device = default_device();
    let steps: Vec<f32> = (0..18).map(|channel| 0.1 + 0.02 * channel as f32).collect();
    let mut rng = rng(5);
    let x = tensor(&normal(360, 0.5, 0.7, &mut rng), input, &device);
    let w = tensor(&normal(810, 0.0, 0.4, &mut rng), weight, &device);
    let [kernels, reference] = both(|| {
        let (step, steps) = (tensor(&[0.17], [1], &device), tensor(&steps, [18], &device));
        let x_q = fake_quantize_learned(x.clone(), step.clone(), act);
        let w_q = fake_quantize_learned(w.clone(), steps.clone(), signed);
        let scales = [step, steps].map(|parameter| Scale::Learned { parameter, parts: 1.0 });
        let options = ConvOptions::new([1; 2], [1; 2], [1; 2], 1);
        values(conv2d_codes(x_q, w_q, scales, CodeBounds { activation: 7, weight: 4 }, options))
    });
    assert_close("learned codes", &kernels, &reference, SUMS);
}

#[test]
fn normalizations_agree_with_every_activation() {
    let grids = [
        None,
        Some(Grid::Step { q_min: 0.0, q_max: 3.0 }),
        Some(Grid::Step { q_min: 0.0, q_max: 15.0 }),
        Some(Grid::Clip { n: 3.0 }),
    ];
    for shape in [[4, 3, 5, 5], [2, 17, 1, 3], [8, 1, 4, 4], [1, 2, 2, 1]] {
        let channels = [shape[1]];
        let parameters: [(&[usize], f32, f32); 3] =
            [(&shape, 0.3, 2.0), (&channels, 1.0, 0.2), (&channels, 0.0, 0.3)];
        for grid in grids {
            match grid {
                None => {
                    for activation in [Activation::Identity, Activation::Relu, Activation::Unit { n: 3.0 }] {
                        check(&format!("norm {shape:?} {activation:?}"), &parameters, |x| {
                            let affine = [x[1].clone(), x[2].clone()];
                            batch_norm(x[0].clone().reshape(shape), affine, 1e-5, activation.clone()).output
                        });
                    }
                }
                Some(grid) => {
                    let with_parameter = [&parameters[..], &[(&[1], 0.7, 0.05)]].concat();
                    check(&format!("norm {shape:?} {grid:?}"), &with_parameter, |x| {
                        let affine = [x[1].clone(), x[2].clone()];
                        let activation = Activation::Learned { parameter: x[3].clone(), grid };
                        batch_norm(x[0].clone().reshape(shape), affine, 1e-5, activation).output
                    });
                }
            }
        }
    }
}

#[test]
fn fake_quantizers_agree() {
    for shape in [[1, 1], [3, 7], [64, 33]] {
        for n in [1.0, 3.0, 255.0] {
            let flat: [(&[usize], f32, f32); 1] = [(&shape, 0.4, 0.6)];
            check(&format!("unit {shape:?} {n}"), &flat, |x| {
                fake_quantize_unit(x[0].clone().reshape(shape), n)
            });
            for max_gradient in [MaxGradient::Differentiated, MaxGradient::Detached] {
                check(&format!("dorefa {shape:?} {n} {max_gradient:?}"), &flat, |x| {
                    dorefa_weights(x[0].clone().reshape(shape), n, max_gradient)
                });
            }
        }
        let per_row: [(&[usize], f32, f32); 2] = [(&shape, 0.0, 1.0), (&shape[..1], 0.4, 0.05)];
        check(&format!("steps {shape:?}"), &per_row, |x| {
            let grid = Grid::Step { q_min: -2.0, q_max: 1.0 };
            fake_quantize_learned(x[0].clone().reshape(shape), x[1].clone(), grid)
        });
    }
}

/// Losses of a training on the digits: plain SGD with momentum, the same batches in the same order.
fn losses(method: Method, bits: Precision, device: &Device, n_steps: usize) -> Vec<f32> {
    let device = device.clone().autodiff();
    let policy = QuantizationPolicy::new(LayerQuantization::new(method, bits, bits));
    let input = InputShape { channels: 1, height: 8, width: 8 };
    let config = ModelConfig::new(Family::PreResNet, 8).with_width(0.5);
    let mut network = config.init(input, 10, &policy, 3, &device).expect("a network").network;
    let momentum = burn::optim::momentum::MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
    let mut optimizer = ModuleOptimizer::from(SgdConfig::new().with_momentum(Some(momentum)).build());
    let (images, labels) = digits_batches();
    let mut losses = Vec::new();
    for step in 0..n_steps {
        let first = step * 32 % (labels.len() - 32);
        let batch = tensor(&images[first * 64..(first + 32) * 64], [32, 1, 8, 8], &device);
        let targets = target_probabilities(&labels[first..first + 32], 10, 0.0, &device);
        let loss = cross_entropy(network.forward(batch), targets);
        losses.push(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &network);
        network = optimizer.step(0.02, network, gradients);
    }
    losses
}

/// The training digits, normalized, and their labels.
fn digits_batches() -> (Vec<f32>, Vec<i64>) {
    let locations = Locations::default_with(None);
    let data =
        open(DatasetName::Digits, Split::Train, LabelKind::Fine, &locations).expect("they are built in");
    let images = data.images.iter().map(|&pixel| (f32::from(pixel) / 16.0 - 0.3058) / 0.3764).collect();
    (images, data.labels.iter().map(|&label| i64::from(label)).collect())
}

fn mean(losses: &[f32]) -> f64 {
    losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64
}

/// In full precision the curves agree to rounding. At 2 bits a rounding that moves a value to another code moves it by a
/// third of its range, so the two trainings part after some steps, as those of two thread counts do in other programs:
/// they start alike and reach the same loss.
#[test]
fn loss_curves_of_200_steps_agree() {
    let device = default_device();
    let low = Precision::bits(2).expect("2 is a width");
    for (method, bits) in [
        (Method::DoReFa, Precision::FullPrecision),
        (Method::DoReFa, low),
        (Method::Pact, low),
        (Method::Lsq, low),
    ] {
        let [kernels, reference] = both(|| losses(method, bits, &device, 200));
        let largest_gap = |steps: std::ops::Range<usize>| {
            let pairs = kernels[steps.clone()].iter().zip(&reference[steps]);
            pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
        };
        let (start, all) = (largest_gap(0..2), largest_gap(0..200));
        let [end, expected] = [&kernels, &reference].map(|losses| mean(&losses[150..]));
        println!("{method} {bits}: gap {start:e} in 2 steps, {all:e} in 200; end {end} and {expected}");
        assert!(start <= 1e-5, "{method} {bits}: the first steps differ by {start:e}");
        assert!((end / expected - 1.0).abs() <= 0.3, "{method} {bits}: ends at {end}, not {expected}");
        if bits == Precision::FullPrecision {
            assert!(all <= 1e-5, "full precision differs by {all:e}");
        }
    }
}

/// Loss and gradients of networks with the kernels and without.
#[test]
fn networks_agree() {
    let device = default_device().autodiff();
    let input = InputShape { channels: 3, height: 16, width: 16 };
    let images = tensor::<4>(&normal(3 * 768, 0.0, 1.0, &mut rng(1)), [3, 3, 16, 16], &device);
    for family in [Family::ResNet, Family::PreResNet] {
        let policy = QuantizationPolicy::new(LayerQuantization::FULL_PRECISION);
        let network =
            ModelConfig::new(family, 8).init(input, 5, &policy, 0, &device).expect("a network").network;
        let [kernels, reference] = both(|| {
            let targets = target_probabilities(&[0, 1, 2], 5, 0.0, &device);
            let loss = cross_entropy(network.forward(images.clone()), targets);
            gradients(&network, &loss.backward())
        });
        for ((path, got), (_, expected)) in kernels.iter().zip(&reference) {
            let what = format!("{family}: gradient of {path}");
            let (got, expected) = (got.as_ref().expect("a gradient"), expected.as_ref().expect("a gradient"));
            assert_close(&what, got, expected, Tolerance { relative: 1e-4, absolute: 1e-6 });
        }
    }
}

/// A training must see that its values are no longer numbers: no operation makes a number of one.
#[test]
fn nan_stays_nan() {
    let _lock = SWITCH.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let is_nan = |what: &str, y: Tensor<4>| {
        assert!(values(y).iter().any(|value| value.is_nan()), "{what}");
    };
    for backend in backends() {
        let mut x = vec![0.5; 2 * 4 * 16];
        x[70] = f32::NAN;
        let x = tensor::<4>(&x, [2, 4, 4, 4], &backend.device);
        let w = tensor::<4>(&vec![1.0; 5 * 4 * 9], [5, 4, 3, 3], &backend.device);
        let bad_w = w.clone().mask_fill(w.clone().equal_scalar(1.0), f32::NAN);
        let options = || ConvOptions::new([1; 2], [1; 2], [1; 2], 1);
        let scales = || [Scale::Constant(0.5), Scale::Constant(1.0)];
        let bounds = CodeBounds { activation: 3, weight: 3 };
        let q = fake_quantize_unit(x.clone(), 3.0);
        is_nan("fake quantization", q.clone());
        is_nan("codes of the input", conv2d_codes(x.clone(), w.clone(), scales(), bounds, options()));
        let good = x.ones_like();
        is_nan("codes of the weights", conv2d_codes(good, bad_w.clone(), scales(), bounds, options()));
        is_nan("convolution", conv2d(x.clone(), w, options()));
        is_nan("weights", dorefa_weights(bad_w, 3.0, MaxGradient::Detached));
        let affine = [tensor(&[1.0; 4], [4], &backend.device), tensor(&[0.0; 4], [4], &backend.device)];
        is_nan("normalization", batch_norm(x, affine, 1e-5, Activation::Unit { n: 3.0 }).output);
    }
}

/// A layer that takes the place of the ReLU before it computes what it computes after one, with the same gradients.
#[test]
fn fused_input_quantizers_agree_with_those_after_a_relu() {
    let device = default_device().autodiff();
    let shape = [3, 5, 6, 6];
    for method in [Method::DoReFa, Method::Pact, Method::Lsq] {
        for bits in [1, 2, 4, 8] {
            let precision = Precision::bits(bits).expect("1 to 8 bits");
            let quantization = LayerQuantization::new(method, precision, precision);
            let config = QuantConv2dConfig::new([5, 7], 3).with_quantization(quantization);
            let mut layer = config.init(&device, &mut rng(2)).expect("the layer is defined");
            let x = tensor::<4>(&normal(3 * 5 * 36, 0.3, 2.0, &mut rng(3)), shape, &device);
            let quantizer = layer.input_quantizer.as_mut().expect("the input is quantized");
            quantizer.start_calibration();
            quantizer.fake_quantize(x.clone().clamp_min(0.0));
            quantizer.finish_calibration();
            let affine = [(5, 1.0, 7), (5, 0.1, 8)].map(|(n, mean, seed)| {
                tensor::<1>(&normal(n, mean, 0.2, &mut rng(seed)), [n], &device).require_grad()
            });
            let x = x.require_grad();
            let run = |is_fused: bool| {
                let normalize = |activation| batch_norm(x.clone(), affine.clone(), 1e-5, activation).output;
                let y = match is_fused {
                    true => {
                        let activation = layer.input_activation(shape).expect("this method has one");
                        layer.forward_quantized(normalize(activation))
                    }
                    false => layer.forward(normalize(Activation::Relu)),
                };
                let all = (y.clone() * y.clone()).sum().backward();
                let mut results = vec![("output".to_string(), values(y))];
                results.push(("input".into(), values(x.grad(&all).expect("a gradient"))));
                results.extend(
                    affine.iter().map(|a| ("affine".into(), values(a.grad(&all).expect("a gradient")))),
                );
                let of_layer = gradients(&layer, &all).into_iter();
                results.extend(of_layer.map(|(path, gradient)| (path, gradient.expect("a gradient"))));
                results
            };
            for ((part, got), (_, expected)) in run(true).iter().zip(&run(false)) {
                let what = format!("{method} at {bits} bits: {part}");
                assert_close(&what, got, expected, Tolerance { relative: 1e-5, absolute: 1e-5 });
            }
        }
    }
}

/// Weights of zero at 1 bit have the mean zero as their scale.
#[test]
fn zero_weights_at_1_bit_convolve_to_zero() {
    let device = default_device();
    let bit = Precision::bits(1).expect("1 is a width");
    let config =
        QuantConv2dConfig::new([2, 3], 3).with_quantization(LayerQuantization::new(Method::DoReFa, bit, bit));
    let mut layer = config.init(&device, &mut rng(2)).expect("the layer is defined");
    layer.weight = layer.weight.map(|weight| weight.zeros_like());
    let x = tensor::<4>(&normal(2 * 25, 0.5, 1.0, &mut rng(3)), [1, 2, 5, 5], &device);
    assert!(values(layer.forward(x)).iter().all(|value| *value == 0.0));
}
