//! What a model of one's own may rely on when it uses the quantizers and layers without the training loop.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use lowbit_core::{BitWidth, Precision};
use lowbit_quantizers::methods::lsq::LsqActivations;
use lowbit_quantizers::methods::minmax::MinMaxActivations;
use lowbit_quantizers::methods::pact::PactActivations;
use lowbit_quantizers::{
    ActivationQuantizer, LayerMut, LayerQuantization, Method, QuantConv2d, QuantConv2dConfig,
    QuantizedNetwork,
};
use lowbit_tests::{backends, integers, rng, tensor, values};

fn bits(bits: u32) -> BitWidth {
    BitWidth::new(bits).unwrap()
}

/// A network of one layer.
#[derive(Module, Debug)]
struct OneLayer {
    conv: QuantConv2d,
}

impl QuantizedNetwork for OneLayer {
    fn for_each_layer(&mut self, visit: &mut dyn FnMut(&str, LayerMut<'_>)) {
        visit("conv", LayerMut::Conv(&mut self.conv));
    }
}

fn one_layer(method: Method, device: &Device) -> OneLayer {
    let bits = Precision::bits(2).unwrap();
    let config = QuantConv2dConfig::new([1, 1], 1);
    let conv = config.with_quantization(LayerQuantization::new(method, bits, bits)).init(device, &mut rng(0));
    OneLayer { conv: conv.unwrap() }
}

/// `a = k mean(x^2) / mean(x)` over the batches, whatever share of the values is zero.
#[test]
fn calibration_sets_the_clip_value_of_pact() {
    for backend in backends() {
        for device in [backend.device.clone(), backend.device.autodiff()] {
            let clip_value_after = |batches: &[&[f32]]| {
                let mut network = one_layer(Method::Pact, &device);
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
            // mean(x) = 1, mean(x^2) = 1.5; negative values count as what a ReLU makes of them.
            let several: [&[&[f32]]; 3] = [
                &[&[0.0, 1.0, 1.0, 2.0]],
                &[&[0.0, 1.0, 1.0, 2.0, 0.0, -3.0, 0.0, 0.0]],
                &[&[1.0, 1.0], &[0.0, 2.0]],
            ];
            for batches in several {
                let got = clip_value_after(batches);
                assert!((got - 1.557 * 1.5).abs() < 1e-5, "{}: {batches:?}: {got}", backend.name);
            }
            // Nothing to go by.
            assert_eq!(clip_value_after(&[&[0.0, 0.0]]), 8.0);
            assert_eq!(clip_value_after(&[]), 8.0);
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
                let scale = |quantizer: &ActivationQuantizer| values(quantizer.qparams(&device).scale);
                let before = scale(&quantizer);
                let codes = quantizer.codes(x.clone());
                quantizer.unrounded(x.clone());
                quantizer.watched();
                assert_eq!(integers(quantizer.codes(x.clone())), integers(codes.clone()), "{what}");
                assert_eq!(scale(&quantizer), before, "{what}");
                let dequantized = values(quantizer.qparams(&device).dequantize(codes));
                for (got, expected) in values(quantizer.fake_quantize(x.clone())).iter().zip(&dequantized) {
                    assert!((got - expected).abs() < 1e-6, "{what}: {got} {expected}");
                }
                assert_eq!(scale(&quantizer), before, "{what}");
                // Nor does asking in between leave a trace in what a calibration yields.
                if is_recording {
                    quantizer.finish_calibration();
                    assert_eq!(scale(&quantizer), before, "{what}");
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
        let parameter = |value: f32| burn::module::Param::from_tensor(Tensor::from_floats([value], &device));
        let mut pact = PactActivations::new(bits(2), &device);
        let mut lsq = LsqActivations::new(bits(2), &device);
        for (value, floored) in [(-1.0, 1), (0.5, 0)] {
            pact.clip_value = parameter(value);
            lsq.step_size = parameter(value);
            for (quantizer, floor) in [
                (ActivationQuantizer::Pact(pact.clone()), 1e-3),
                (ActivationQuantizer::Lsq(lsq.clone()), 1e-7),
            ] {
                let (_, watched) = quantizer.watched().unwrap();
                assert_eq!(values(watched), [value.max(floor)]);
                assert_eq!(integers(quantizer.n_at_floor().unwrap()), [floored]);
            }
        }
    }
}
