//! What a model of one's own may rely on when it uses the quantizers and layers without the training loop.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use lowbit_models::{Family, InputShape, Layout, ModelConfig, QuantizationPolicy};
use lowbit_quantizers::methods::lsq::{LsqActivations, LsqWeights};
use lowbit_quantizers::methods::minmax::{MinMaxActivations, MinMaxWeights};
use lowbit_quantizers::methods::pact::PactActivations;
use lowbit_quantizers::{
    ActivationQuantizer, BitWidth, CodeRange, Granularity, GridError, LayerMut, LayerQuantization, LayerRef,
    Learned, Method, Operand, Precision, QuantConv2d, QuantConv2dConfig, QuantLinearConfig, QuantizedNetwork,
    QuantizesActivations, Selection, WeightQuantizer,
};
use lowbit_tests::{Spec, Tolerance, assert_close, backends, integers, normal, rng, tensor, values};

/// Of a device that divides in its own way.
const VALUE: Tolerance = Tolerance::relative(4.0 * f32::EPSILON as f64);

fn bits(bits: u32) -> BitWidth {
    BitWidth::new(bits).unwrap()
}

/// A network of one layer.
#[derive(Module, Debug)]
struct OneLayer {
    conv: QuantConv2d,
}

impl QuantizedNetwork for OneLayer {
    fn layers(&self) -> impl Iterator<Item = (&str, LayerRef<'_>)> {
        std::iter::once(("conv", LayerRef::Conv(&self.conv)))
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = (&str, LayerMut<'_>)> {
        std::iter::once(("conv", LayerMut::Conv(&mut self.conv)))
    }
}

/// `bits`, or the nearest that the method defines for the operand.
fn closest_bits(method: Method, operand: Operand, bits: u32) -> Precision {
    let defined = method.bits(operand);
    Precision::bits(bits.clamp(*defined.start(), *defined.end())).unwrap()
}

/// Both operands by a method, of `bits` bits or the nearest that it defines.
fn closest(method: Method, bits: u32) -> LayerQuantization {
    let [weight, act] =
        [Operand::Weights, Operand::Activations].map(|operand| closest_bits(method, operand, bits));
    LayerQuantization::new(method, weight, act)
}

fn one_layer(method: Method, bits: u32, device: &Device) -> OneLayer {
    let config = QuantConv2dConfig::new([1, 1], 1);
    let conv = config.with_quantization(closest(method, bits)).init(device, &mut rng(0));
    OneLayer { conv: conv.unwrap() }
}

/// `a = k mean(x^2) / mean(x)` over the batches, whatever share of the values is zero, and a 2048th below the largest of them
/// at most, so that this one is above the clip value on every backend.
#[test]
fn calibration_sets_the_clip_value_of_pact() {
    for backend in backends() {
        for device in [backend.device.clone(), backend.device.autodiff()] {
            let clip_value_after = |bits: u32, batches: &[&[f32]]| {
                let mut network = one_layer(Method::Pact, bits, &device);
                network.calibrate(
                    |_| true,
                    |network| {
                        for batch in batches {
                            network.conv.forward(tensor(batch, [1, 1, 1, batch.len()], &device));
                        }
                    },
                );
                let Some(ActivationQuantizer::Pact(pact)) = network.conv.input_quantizer else {
                    panic!("the input is quantized")
                };
                assert_eq!(pact.clip_value.val().is_require_grad(), device.is_autodiff());
                values(pact.clip_value.val())[0]
            };
            // mean(x) = 1, mean(x^2) = 2.375; negative values count as what a ReLU makes of them.
            let several: [&[&[f32]]; 3] = [
                &[&[0.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 4.0]],
                &[&[0.0, 0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 4.0, 0.0, -5.0, 0.0, 0.0]],
                &[&[0.5, 0.5, 0.5, 0.5], &[0.0, 1.0, 1.0, 4.0]],
            ];
            for batches in several {
                let got = clip_value_after(2, batches);
                assert!((got - 1.557 * 2.375).abs() < 1e-5, "{}: {batches:?}: {got}", backend.name);
                assert_eq!(clip_value_after(8, batches), 4.0 - 4.0 / 2048.0, "{}: {batches:?}", backend.name);
            }
            // Nothing to go by.
            assert_eq!(clip_value_after(2, &[&[0.0, 0.0]]), 8.0);
            assert_eq!(clip_value_after(2, &[]), 8.0);
        }
    }
}

/// The codes and the grid say all that `fake_quantize` does, to the last bit but the sign of zeros: of every method at every bit
/// width, in evaluation and in training. What a grid is stored in are the bits of the quantizer.
#[test]
fn a_grid_gives_every_code_the_value_of_fake_quantize() {
    let specs = [
        Spec::DoReFaWeights,
        Spec::DoReFaActivations,
        Spec::PactActivations { clip_value: 1.7 },
        Spec::LsqWeights { step_size: vec![0.013], granularity: Granularity::PerTensor },
        Spec::LsqWeights { step_size: vec![0.37, 0.0029, 1.9], granularity: Granularity::PerChannel },
        Spec::LsqActivations { step_size: 0.0131 },
        Spec::MinMaxWeights { granularity: Granularity::PerTensor },
        Spec::MinMaxWeights { granularity: Granularity::PerChannel },
        Spec::MinMaxActivations { min: 0.0, max: 2.3 },
        Spec::MinMaxActivations { min: -0.7, max: 2.3 },
    ];
    let shape = [3, 701];
    // In each row another range, with the values of all codes.
    let x: Vec<f32> =
        (0..3 * 701).map(|i| (i % 701 - 350) as f32 / 117.0 * [1.0, 0.31, 2.9][i as usize / 701]).collect();
    for backend in backends() {
        for device in [backend.device.clone(), backend.device.autodiff()] {
            for (spec, bits) in specs.iter().flat_map(|spec| BitWidth::ALL.map(|bits| (spec, bits))) {
                if matches!(spec, Spec::MinMaxWeights { .. }) && bits.get() == 1 {
                    continue;
                }
                let what = format!("{}: {spec:?}, {bits} bits", backend.name);
                let quantizer = spec.build(bits, &device);
                let x = tensor(&x, shape, &device);
                let (codes, grid) = (integers(quantizer.codes(x.clone())), quantizer.grid(x.clone()));
                let (y, dequantized) = (values(quantizer.fake_quantize(x)), grid.dequantize_all(&codes));
                match backend.name {
                    // Its divisions are not those of IEEE 754.
                    "wgpu" => assert_close(&what, &y, &dequantized, VALUE),
                    _ => assert!(y == dequantized, "{what}"),
                }
                assert_eq!((grid.bits(), grid.range()), (bits, spec.code_range(bits)), "{what}");
                let packed = grid.pack(&codes, &shape).unwrap();
                assert_eq!(packed.bytes().len(), 3 * (701 * bits.get() as usize).div_ceil(8), "{what}");
                assert_eq!(grid.unpack(&packed).unwrap(), codes, "{what}");
            }
        }
    }
}

/// Until the next batch is observed, a quantizer answers all questions for the same grid, however often it is asked.
#[test]
fn asking_a_quantizer_changes_nothing() {
    for backend in backends() {
        let device = backend.device.autodiff();
        let x = tensor(&[0.4, 1.2, -0.3, 0.9, 2.9, 0.0], [2, 3], &device);
        let quantizers = |is_recording: bool| {
            let mut quantizers = [
                ActivationQuantizer::Pact(PactActivations::new(bits(3), &device)),
                ActivationQuantizer::Lsq(LsqActivations::new(bits(3), &device)),
                ActivationQuantizer::MinMax(MinMaxActivations::new(bits(3), &device)),
            ];
            if is_recording {
                quantizers.iter_mut().for_each(ActivationQuantizer::start_calibration);
                quantizers.iter().for_each(|quantizer| quantizer.observe(&x));
            }
            quantizers
        };
        for is_recording in [false, true] {
            for mut quantizer in quantizers(is_recording) {
                let what = format!("{}: {quantizer:?}, recording: {is_recording}", backend.name);
                let grid = |quantizer: &ActivationQuantizer| quantizer.grid().unwrap();
                let before = grid(&quantizer);
                let codes = quantizer.codes(x.clone());
                quantizer.unrounded(x.clone());
                quantizer.watched();
                assert_eq!(integers(quantizer.codes(x.clone())), integers(codes.clone()), "{what}");
                assert_eq!(grid(&quantizer), before, "{what}");
                let dequantized = before.dequantize_all(&integers(codes));
                assert_close(&what, &values(quantizer.fake_quantize(x.clone())), &dequantized, VALUE);
                assert_eq!(grid(&quantizer), before, "{what}");
                // Nor does asking in between leave a trace in what a calibration yields.
                if is_recording {
                    quantizer.finish_calibration();
                    assert_eq!(grid(&quantizer), before, "{what}");
                }
            }
        }
    }
}

/// Running ranges follow the batches that are observed in training; not in evaluation, not when they are frozen.
#[test]
fn a_running_range_follows_what_is_observed_in_training() {
    for backend in backends() {
        let device = backend.device.clone().autodiff();
        let max = |quantizer: &MinMaxActivations| values(quantizer.running_max.value_sync())[0];
        let moved = |quantizer: MinMaxActivations, device: &Device| {
            let quantizer = ActivationQuantizer::MinMax(quantizer);
            let x = tensor(&[0.0, 2.0], [1, 2], device);
            quantizer.observe(&x);
            quantizer.fake_quantize(x);
            let ActivationQuantizer::MinMax(quantizer) = quantizer else { unreachable!() };
            max(&quantizer)
        };
        let new = |device: &Device| MinMaxActivations::new(bits(4), device);
        assert!((moved(new(&device), &device) - 1.1).abs() < 1e-6);
        assert_eq!(moved(new(&device).freeze(), &device), 1.0);
        assert_eq!(moved(new(&device).valid(), &backend.device), 1.0);
        assert_eq!(moved(new(&backend.device), &backend.device), 1.0);
    }
}

/// What is watched are the values in force.
#[test]
fn watched_parameters_are_those_in_force() {
    for backend in backends() {
        let device = backend.device.autodiff();
        let parameter = |value: f32| Param::from_tensor(Tensor::from_floats([value], &device));
        let mut pact = PactActivations::new(bits(2), &device);
        let mut lsq = LsqActivations::new(bits(2), &device);
        for (value, floored) in [(-1.0, 1), (0.5, 0)] {
            pact.clip_value = parameter(value);
            lsq.step_size = parameter(value);
            for (quantizer, floor) in [
                (ActivationQuantizer::Pact(pact.clone()), 1e-3),
                (ActivationQuantizer::Lsq(lsq.clone()), 1e-7),
            ] {
                let (_, watched) = quantizer.watched().swap_remove(0);
                assert_eq!(values(watched), [value.max(floor)]);
                assert_eq!(integers(quantizer.n_at_floor().unwrap()), [floored]);
            }
        }
    }
}

/// Every method, in both operands, and the layers around them, from tensors that ask for a gradient, as a parameter's value does:
/// each method of each, on a device with autodiff and on one without.
#[test]
fn quantizers_take_the_values_of_parameters() {
    for backend in backends() {
        for device in [backend.device.clone(), backend.device.autodiff()] {
            let weights = [0.2, -0.5, 0.9, -0.1, 0.3, -0.7, 0.8, 0.0];
            let weight = || Param::from_tensor(tensor(&weights, [2, 4], &device));
            for &method in Method::ALL {
                for granularity in [Granularity::PerTensor, Granularity::PerChannel] {
                    for n_bits in 1..=8 {
                        let what = format!("{}: {method}, {n_bits} bits, {granularity}", backend.name);
                        let bits = Precision::bits(n_bits).unwrap();
                        let quantization = LayerQuantization {
                            weight_granularity: granularity,
                            ..LayerQuantization::new(method, bits, bits)
                        };
                        if quantization.check().is_err() {
                            continue;
                        }
                        let parameter = weight();
                        let mut of_weights =
                            WeightQuantizer::new(&quantization, parameter.val()).unwrap().unwrap();
                        of_weights.calibrate(parameter.val());
                        of_weights.rescale(BitWidth::new(4).unwrap());
                        of_weights.watched();
                        of_weights.codes(parameter.val());
                        let has_grid = |operand| method.has_grid(operand);
                        assert_eq!(
                            of_weights.grid(parameter.val()).is_ok(),
                            has_grid(Operand::Weights),
                            "{what}"
                        );
                        let [y, exact] = [
                            of_weights.fake_quantize(parameter.val()),
                            of_weights.unrounded(parameter.val()),
                        ];
                        let mut of_input = ActivationQuantizer::new(&quantization, &device).unwrap().unwrap();
                        of_input.start_calibration();
                        of_input.observe(&parameter.val());
                        of_input.fake_quantize(parameter.val());
                        of_input.finish_calibration();
                        of_input.rescale(BitWidth::new(4).unwrap());
                        for _ in 0..2 {
                            of_input.observe(&parameter.val());
                        }
                        of_input.watched();
                        of_input.codes(parameter.val());
                        assert_eq!(of_input.grid().is_ok(), has_grid(Operand::Activations), "{what}");
                        let [z, clipped] =
                            [of_input.fake_quantize(parameter.val()), of_input.unrounded(parameter.val())];
                        assert!(values(z.clone()).iter().all(|value| value.is_finite()), "{what}");
                        if device.is_autodiff() {
                            for result in [y, exact, z, clipped] {
                                let gradients = result.sum().backward();
                                let gradient = parameter.val().grad(&gradients);
                                assert!(gradient.is_some(), "{what}: the parameter has a gradient");
                            }
                        }
                    }
                }
            }
            // By their own constructors too.
            let bits = BitWidth::new(2).unwrap();
            let lsq = LsqWeights::new(bits, Granularity::PerChannel, weight().val());
            assert_eq!(lsq.step_size.val().is_require_grad(), device.is_autodiff());
            // A layer on an input that asks for a gradient.
            for &method in Method::ALL {
                let image = Param::from_tensor(tensor(&weights, [1, 1, 2, 4], &device));
                let mut network = one_layer(method, 2, &device);
                network.calibrate(|_| true, |network| drop(network.conv.forward(image.val())));
                network.conv.forward(image.val());
                LayerRef::Conv(&network.conv).weight_error();
                if let Some(ActivationQuantizer::MinMax(quantizer)) = &network.conv.input_quantizer {
                    assert!(!quantizer.running_max.value_sync().is_require_grad());
                }
            }
        }
    }
}

/// `NaN` has the code of zero, of every method at every bit width, and no backend panics.
#[test]
fn nan_has_the_code_of_zero() {
    for backend in backends() {
        for device in [backend.device.clone(), backend.device.autodiff()] {
            for &method in Method::ALL {
                for n_bits in 1..=8 {
                    let what = format!("{}: {method}, {n_bits} bits", backend.name);
                    let bits = Precision::bits(n_bits).unwrap();
                    let quantization = LayerQuantization::new(method, bits, bits);
                    let input_only = LayerQuantization::new(method, Precision::FullPrecision, bits);
                    if input_only.check().is_err() {
                        continue;
                    }
                    let of_input = ActivationQuantizer::new(&input_only, &device).unwrap().unwrap();
                    let at = |value: f32| tensor(&[value, 0.7, -0.3], [1, 3], &device);
                    let [nan, zero] = [f32::NAN, 0.0].map(|value| integers(of_input.codes(at(value))));
                    assert_eq!(nan, zero, "{what}: activations");
                    if quantization.check().is_err() {
                        continue;
                    }
                    let of_weights = WeightQuantizer::new(&quantization, at(0.0)).unwrap().unwrap();
                    let [nan, zero] = [f32::NAN, 0.0].map(|value| integers(of_weights.codes(at(value))));
                    assert_eq!(nan, zero, "{what}: weights");
                }
            }
            // A learned parameter of NaN makes all values NaN.
            let mut lsq = LsqActivations::new(bits(2), &device);
            lsq.step_size = Param::from_tensor(tensor(&[f32::NAN], [1], &device));
            assert_eq!(integers(lsq.codes(tensor(&[0.5, 2.0], [2], &device))), [0, 0]);
            assert!(matches!(lsq.grid(), Err(GridError::Unit { channel: 0, got }) if got.is_nan()));
        }
    }
}

/// A record of another bit width, or of another method, is an error.
#[test]
fn bits_belong_to_the_record() {
    for backend in backends() {
        let device = &backend.device;
        let layer = |method, n_bits| {
            let config = QuantConv2dConfig::new([4, 4], 1).with_quantization(closest(method, n_bits));
            config.init(device, &mut rng(0)).unwrap()
        };
        for &method in Method::ALL {
            let few = 2;
            let record = || layer(method, few).into_record();
            assert!(layer(method, few).try_load_record(record()).is_ok(), "{method}");
            let bytes = record().into_bytes().unwrap();
            let read = burn::store::ModuleRecord::from_bytes(bytes).unwrap();
            let error = layer(method, 4).try_load_record(read).unwrap_err().to_string();
            let operands =
                [(Operand::Weights, "weight_quantizer"), (Operand::Activations, "input_quantizer")];
            // Some methods have one bit width.
            let has_others = |operand| closest_bits(method, operand, few) != closest_bits(method, operand, 4);
            for (_, operand) in operands.into_iter().filter(|(operand, _)| has_others(*operand)) {
                assert!(
                    error.contains(operand) && error.contains("recorded_bits: shape mismatch"),
                    "{error}"
                );
            }
            let full_precision = QuantConv2dConfig::new([4, 4], 1).init(device, &mut rng(1)).unwrap();
            assert!(full_precision.clone().try_load_record(record()).is_err());
            assert!(layer(method, few).try_load_record(full_precision.clone().into_record()).is_err());
            // The weights of a full-precision layer are taken on purpose.
            let partial = full_precision.clone().into_record().allow_partial(true);
            let loaded = layer(method, few).try_load_record(partial).unwrap();
            assert_eq!(values(loaded.weight.val()), values(full_precision.weight.val()));
        }
        assert!(layer(Method::DoReFa, 2).try_load_record(layer(Method::MinMax, 2).into_record()).is_err());
    }
}

/// What a caller's argument decides is an error, not a panic.
#[test]
fn impossible_layers_are_errors() {
    let device = &backends()[0].device;
    let new = |channels| QuantConv2dConfig::new(channels, 3);
    let conv = |config: QuantConv2dConfig| config.init(device, &mut rng(0)).unwrap_err().to_string();
    for (config, message) in [
        (new([4, 4]).with_stride(0), "stride of a convolution must be at least 1, got 0"),
        (new([4, 4]).with_groups(0), "groups of a convolution must be at least 1, got 0"),
        (new([0, 0]).with_groups(0), "in_channels of a convolution must be at least 1, got 0"),
        (new([4, 0]), "out_channels of a convolution must be at least 1, got 0"),
        (new([4, 6]).with_groups(4), "groups must divide both 4 input and 6 output channels, got 4"),
        (QuantConv2dConfig::new([4, 4], 0), "kernel size of a convolution must be at least 1, got 0"),
    ] {
        assert_eq!(conv(config), message);
    }
    for (config, message) in [
        (QuantLinearConfig::new(0, 3), "in_features of a linear layer must be at least 1, got 0"),
        (QuantLinearConfig::new(3, 0), "out_features of a linear layer must be at least 1, got 0"),
    ] {
        assert_eq!(config.init(device, &mut rng(0)).unwrap_err().to_string(), message);
    }
    assert!(MinMaxWeights::new(bits(1), Granularity::PerTensor, device).is_err());
}

/// A batch without images passes every quantized layer, forward and backward, and leaves no trace.
#[test]
fn an_empty_batch_is_no_error() {
    for backend in backends() {
        let device = backend.device.autodiff();
        for &method in Method::ALL {
            for selection in [
                Selection::All,
                Selection::None,
                Selection::ChannelGroups(vec![true, false]),
                Selection::ChannelGroups(vec![]),
            ] {
                let what = format!("{}: {method}, {selection:?}", backend.name);
                let mut network = one_layer(method, 2, &device);
                network.conv.selection = selection;
                let empty = || tensor(&[], [0, 1, 3, 2], &device);
                let watched = |network: &OneLayer| {
                    let quantizer = network.conv.input_quantizer.as_ref().unwrap();
                    quantizer.watched().into_iter().map(|(_, value)| values(value)).collect::<Vec<_>>()
                };
                let before = watched(&network);
                network.calibrate(|_| true, |network| drop(network.conv.forward(empty())));
                let output = network.conv.forward(empty());
                assert_eq!(output.dims(), [0, 1, 3, 2], "{what}");
                let gradients = output.sum().backward();
                if let Some(gradient) = network.conv.weight.val().grad(&gradients) {
                    assert!(values(gradient).iter().all(|value| *value == 0.0), "{what}");
                }
                assert_eq!(watched(&network), before, "{what}");
                let quantizer = network.conv.input_quantizer.as_ref().unwrap();
                assert!(integers(quantizer.codes(empty())).is_empty(), "{what}");
            }
        }
    }
}

/// A rescaled step spans as much as before: the distance between the outermost levels stays, of signed grids too.
#[test]
fn rescaling_keeps_the_span_of_the_levels() {
    let device = &backends()[0].device;
    for from in 1..=8 {
        for to in 1..=8 {
            let (from, to) = (bits(from), bits(to));
            let span = |quantizer: &WeightQuantizer| {
                let grid = quantizer.grid(tensor(&[1.0], [1], device)).unwrap();
                let CodeRange { q_min, q_max } = grid.range();
                grid.scale(0) * (q_max - q_min) as f32
            };
            let with_step = |bits, step: f32| {
                let mut lsq = LsqWeights::new(bits, Granularity::PerTensor, tensor(&[1.0], [1], device));
                lsq.step_size = Param::from_tensor(tensor(&[step], [1], device));
                WeightQuantizer::Lsq(lsq)
            };
            let (old, mut new) = (with_step(from, 0.3), with_step(to, 0.3));
            new.rescale(from);
            assert!((span(&old) - span(&new)).abs() < 1e-4, "{from} to {to}: {} {}", span(&old), span(&new));
            // The others that learn a step of the same grid.
            let plus = |bits| {
                let bits = Precision::Bits(bits);
                let quantization = LayerQuantization::new(Method::LsqPlus, bits, bits);
                let w = tensor(&[0.3, -0.2], [2], device);
                WeightQuantizer::new(&quantization, w).unwrap().unwrap()
            };
            let (old, mut new) = (plus(from), plus(to));
            *new.learned_mut()[0] = old.learned()[0].parameter.clone();
            new.rescale(from);
            assert!((span(&old) - span(&new)).abs() < 1e-4, "lsq-plus, {from} to {to}");
        }
    }
}

/// The parameters of a quantizer that was just made are tensors of their own: each has the gradient that it has in another tensor of
/// the same value. (burn adds up the gradients of clones.)
#[test]
fn fresh_parameters_have_gradients_of_their_own() {
    let device = backends().swap_remove(0).device.autodiff();
    // It asks for a gradient, so that there is one where nothing is learned.
    let x = || tensor::<2>(&normal(24, 0.2, 0.8, &mut rng(5)), [4, 6], &device).require_grad();
    let gradients = |learned: Vec<Learned<'_>>, y: Tensor<2>| {
        let all = (y * tensor(&normal(24, 0.0, 1.0, &mut rng(6)), [4, 6], &device)).sum().backward();
        let of = |learned: Learned<'_>| values(learned.parameter.val().grad(&all).expect(learned.name));
        learned.into_iter().map(of).collect::<Vec<_>>()
    };
    let renew = |parameters: Vec<&mut Param<Tensor<1>>>| {
        for parameter in parameters {
            let value = parameter.val();
            *parameter = Param::from_tensor(tensor(&values(value.clone()), value.dims(), &device));
        }
    };
    for &method in Method::ALL {
        let quantization = closest(method, 2);
        let mut of_weights = WeightQuantizer::new(&quantization, x()).unwrap().unwrap();
        let fresh = gradients(of_weights.learned(), of_weights.fake_quantize(x()));
        renew(of_weights.learned_mut());
        assert_eq!(
            fresh,
            gradients(of_weights.learned(), of_weights.fake_quantize(x())),
            "{method}: weights"
        );
        let mut of_input = ActivationQuantizer::new(&quantization, &device).unwrap().unwrap();
        let fresh = gradients(of_input.learned(), of_input.fake_quantize(x()));
        renew(of_input.learned_mut());
        assert_eq!(
            fresh,
            gradients(of_input.learned(), of_input.fake_quantize(x())),
            "{method}: activations"
        );
    }
}

/// A parameter that is not finite makes every value so: no grid says otherwise.
#[test]
fn a_grid_needs_finite_parameters() {
    let device = backends().swap_remove(0).device;
    let nan = |parameter: &mut Param<Tensor<1>>| {
        *parameter = Param::from_tensor(parameter.val().full_like(f32::NAN));
    };
    for &method in Method::ALL {
        let quantization = closest(method, 2);
        let w = || tensor::<2>(&[0.3, -0.2, 0.1, 0.6], [2, 2], &device);
        let new = || WeightQuantizer::new(&quantization, w()).unwrap().unwrap();
        for i in 0..new().learned().len() {
            let mut quantizer = new();
            nan(quantizer.learned_mut().swap_remove(i));
            // Thresholds of `NaN` have no step.
            assert!(quantizer.grid(w()).is_err(), "{method}: weights, parameter {i}");
        }
        let new = || ActivationQuantizer::new(&quantization, &device).unwrap().unwrap();
        for i in 0..new().learned().len() {
            let mut quantizer = new();
            nan(quantizer.learned_mut().swap_remove(i));
            assert!(quantizer.grid().is_err(), "{method}: activations, parameter {i}");
        }
    }
}

/// What a BatchNorm normalizes by is known before a network runs.
#[test]
fn the_fewest_values_of_a_channel_are_those_of_the_last_map() {
    for (config, side, expected) in [
        (ModelConfig::new(Family::ResNet, 8), 8, 4),
        (ModelConfig::new(Family::PreResNet, 8), 4, 1),
        (ModelConfig::imagenet(Family::ResNet, 18), 64, 4),
        (ModelConfig::imagenet(Family::PreResNet, 18), 32, 1),
        // Its last normalization comes before the pool.
        (ModelConfig::vgg_small(), 8, 4),
        // Behind linear layers there is one value.
        (ModelConfig::alexnet(Layout::Cifar), 32, 1),
    ] {
        let input = InputShape { channels: 1, height: side, width: side };
        let graph = config.graph(input, 10).unwrap();
        assert_eq!(graph.fewest_values_per_norm(), Some(expected), "{config:?}, {side}");
    }
    let plain = ModelConfig::alexnet(Layout::Cifar).without_norm();
    let input = InputShape { channels: 1, height: 32, width: 32 };
    assert_eq!(plain.graph(input, 10).unwrap().fewest_values_per_norm(), None);
}

/// An empty batch leaves the running statistics of a network alone.
#[test]
fn an_empty_batch_moves_no_running_statistics() {
    for backend in backends() {
        let device = backend.device.autodiff();
        let two_bits = Precision::bits(2).unwrap();
        let policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, two_bits, two_bits));
        let input = InputShape { channels: 1, height: 8, width: 8 };
        let config = ModelConfig::new(Family::PreResNet, 8).with_width(0.25);
        let network = config.init(input, 10, &policy, 0, &device).unwrap().network;
        let logits = network.forward(tensor(&[], [0, 1, 8, 8], &device));
        assert_eq!(logits.dims(), [0, 10], "{}", backend.name);
        for (path, norm) in network.norms() {
            let is_still = |running: Tensor<1>, value: f32| values(running).iter().all(|got| *got == value);
            assert!(is_still(norm.running_mean.value_sync(), 0.0), "{path}");
            assert!(is_still(norm.running_var.value_sync(), 1.0), "{path}");
        }
    }
}
