//! What must not depend on how an operation is computed: by kernels or by the reference.

use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use lowbit_core::{BitWidth, Granularity};
use lowbit_kernels::testing::{Implementation, use_implementation};
use lowbit_kernels::{Activation, batch_norm};
use lowbit_quantizers::methods::dorefa::DoReFaWeights;
use lowbit_quantizers::methods::lsq::{LsqActivations, LsqWeights};
use lowbit_quantizers::{QuantizesActivations, QuantizesWeights};
use lowbit_tests::{backends, integers, tensor, values};

/// The implementation is one for the process, so that one test at a time chooses it.
static CHOICE: Mutex<()> = Mutex::new(());

struct Kernels(#[expect(dead_code, reason = "held until the test ends")] MutexGuard<'static, ()>);

impl Drop for Kernels {
    fn drop(&mut self) {
        use_implementation(Implementation::Kernels);
    }
}

/// Runs `check` on every backend by every implementation.
fn check_all(check: impl Fn(&str, &Device)) {
    let _restored = Kernels(CHOICE.lock().unwrap_or_else(PoisonError::into_inner));
    for backend in backends() {
        for implementation in [Implementation::Kernels, Implementation::Reference] {
            use_implementation(implementation);
            check(&format!("{}, {implementation:?}", backend.name), &backend.device);
        }
    }
}

fn bits(bits: u32) -> BitWidth {
    BitWidth::new(bits).unwrap()
}

/// The sign of zero is +1, whatever the sign of the zero.
#[test]
fn one_bit_weights_of_zero_are_positive() {
    check_all(|what, device| {
        for device in [device.clone(), device.clone().autodiff()] {
            let w = tensor(&[0.0, -0.0, 0.5, -0.5], [4], &device);
            let dorefa = DoReFaWeights::new(bits(1), &device);
            assert_eq!(values(dorefa.fake_quantize(w.clone())), [0.25, 0.25, 0.25, -0.25], "{what}");
            assert_eq!(integers(dorefa.codes(w.clone())), [1, 1, 1, -1], "{what}");
            let mut lsq = LsqWeights::new(bits(1), Granularity::PerTensor, w.clone());
            lsq.step_size = Param::from_tensor(tensor(&[0.25], [1], &device));
            assert_eq!(values(lsq.fake_quantize(w.clone())), [0.25, 0.25, 0.25, -0.25], "{what}");
            assert_eq!(integers(lsq.codes(w)), [1, 1, 1, -1], "{what}");
        }
    });
}

/// Esser20, Eq. 3 and 5: exactly at an edge of the range, the gradient of the input is 0 and that of the step the bound. With
/// or without rounding.
#[test]
fn lsq_at_the_edges_of_the_range_is_outside() {
    check_all(|what, device| {
        let device = device.clone().autodiff();
        let step = |value: f32| Param::from_tensor(tensor(&[value], [1], &device));
        let check = |what: &str, y: Tensor<2>, x: Tensor<2>, step: Tensor<1>, of_x: f32, of_step: f32| {
            let gradients = y.sum().backward();
            assert_eq!(values(x.grad(&gradients).unwrap()), [of_x], "{what}");
            let got = values(step.grad(&gradients).unwrap())[0];
            assert!((got - of_step).abs() <= 1e-6, "{what}: {got}, not {of_step}");
        };
        let [low, high] = [-2.0f32, 1.0];
        for (code, of_x, of_step) in [(low, 0.0, low), (high, 0.0, high), (0.0, 1.0, 0.0)] {
            let x = || tensor(&[code * 0.5], [1, 1], &device).require_grad();
            let mut weights = LsqWeights::new(bits(2), Granularity::PerTensor, x());
            weights.step_size = step(0.5);
            let what = format!("{what}: weights at {code}");
            let input = x();
            let y = weights.fake_quantize(input.clone());
            check(&what, y, input, weights.step_size.val(), of_x, of_step);
            let input = x();
            check(&what, weights.unrounded(input.clone()), input, weights.step_size.val(), of_x, of_step);
        }
        let factor = 1.0 / 3f32.sqrt();
        for (code, of_x, of_step) in [(0.0, 0.0, 0.0), (3.0, 0.0, 3.0), (1.0, 1.0, 0.0)] {
            let mut activations = LsqActivations::new(bits(2), &device);
            activations.step_size = step(0.5);
            let what = format!("{what}: activations at {code}");
            for rounded in [true, false] {
                let x = tensor(&[code * 0.5], [1, 1], &device).require_grad();
                let y = match rounded {
                    true => activations.fake_quantize(x.clone()),
                    false => activations.unrounded(x.clone()),
                };
                check(&what, y, x, activations.step_size.val(), of_x, of_step * factor);
            }
        }
        // One bit of weights: -1 and 1.
        for (code, of_x, of_step) in [(-1.0, 0.0, -1.0), (1.0, 0.0, 1.0), (0.5, 1.0, 0.5)] {
            let x = tensor(&[code * 0.5], [1, 1], &device).require_grad();
            let mut weights = LsqWeights::new(bits(1), Granularity::PerTensor, x.clone());
            weights.step_size = step(0.5);
            let what = format!("{what}: one bit at {code}");
            let y = weights.fake_quantize(x.clone());
            check(&what, y, x, weights.step_size.val(), of_x, of_step);
        }
    });
}

/// The gradient of DoReFa weights has the square of their size in a denominator: it is finite, and the same, for the smallest that
/// training produces. Rounded or not.
#[test]
fn dorefa_weights_of_any_size_have_a_finite_gradient() {
    check_all(|what, device| {
        let device = device.clone().autodiff();
        for size in [1.0f32, 1e-12, 1e-24, 1e-30] {
            let w = || tensor(&[0.5 * size, -size, 0.25 * size], [1, 3], &device).require_grad();
            let factors = || tensor(&[1.0, 2.0, 3.0], [1, 3], &device);
            let quantizer = DoReFaWeights::new(bits(2), &device);
            let [rounded, exact] = [true, false].map(|is_rounded| {
                let w = w();
                let y = if is_rounded {
                    quantizer.fake_quantize(w.clone())
                } else {
                    quantizer.unrounded(w.clone())
                };
                values(w.grad(&(y * factors()).sum().backward()).unwrap())
            });
            // y = tanh(w) / max: 1 / max for each but the largest, which has what comes through the maximum.
            for gradient in [&rounded, &exact] {
                assert!(gradient.iter().all(|value| value.is_finite()), "{what}, {size}: {gradient:?}");
            }
            for (a, b) in rounded.iter().zip(&exact) {
                assert!(
                    (a - b).abs() <= 1e-5 * (2.0 / size).max(1.0),
                    "{what}, {size}: {rounded:?} {exact:?}"
                );
            }
        }
    });
}

/// All-zero weights: the same gradient with and without rounding.
#[test]
fn dorefa_weights_of_zero_have_one_gradient() {
    check_all(|what, device| {
        let device = device.clone().autodiff();
        let quantizer = DoReFaWeights::new(bits(2), &device);
        for is_rounded in [true, false] {
            let w = tensor(&[0.0, -0.0], [2], &device).require_grad();
            let y =
                if is_rounded { quantizer.fake_quantize(w.clone()) } else { quantizer.unrounded(w.clone()) };
            assert_eq!(values(w.grad(&y.sum().backward()).unwrap()), [2.0, 2.0], "{what}");
        }
    });
}

/// A normalization of nothing is nothing, and its parameters get no gradient that is not finite.
#[test]
fn the_norm_of_an_empty_batch_is_empty() {
    check_all(|what, device| {
        let device = device.clone().autodiff();
        let parameter = |value: f32| tensor(&[value, value], [2], &device).require_grad();
        let (gamma, beta) = (parameter(1.0), parameter(0.0));
        let x = tensor(&[], [0, 2, 3, 3], &device);
        let result = batch_norm(x, [gamma.clone(), beta.clone()], 1e-5, Activation::Relu);
        assert_eq!(result.output.values().dims(), [0, 2, 3, 3], "{what}");
        assert_eq!(values(Tensor::cat(vec![result.mean, result.variance], 0)), [0.0; 4], "{what}");
        let gradients = result.output.into_values().sum().backward();
        for parameter in [gamma, beta] {
            let gradient = parameter.grad(&gradients).map(values).unwrap_or_default();
            assert!(gradient.iter().all(|value| *value == 0.0), "{what}: {gradient:?}");
        }
    });
}
