//! What partly quantized layers compute with, and its gradients, by hand from the formulas in `docs/methods`. Everywhere
//! the loss is the sum of all elements.

use burn::module::Param;
use burn::tensor::{Gradients, TensorData};
use lowbit_core::{BitWidth, Granularity, Precision};

use super::*;
use crate::methods::dorefa::{DoReFaActivations, DoReFaWeights};
use crate::methods::lsq::{LsqActivations, LsqWeights};
use crate::methods::minmax::{MinMaxActivations, MinMaxWeights};
use crate::methods::pact::PactActivations;
use crate::{LayerQuantization, Method, Operand};

fn device() -> Device {
    Device::default().autodiff()
}

fn bits(bits: u32) -> BitWidth {
    BitWidth::new(bits).unwrap()
}

fn matrix(values: &[f32], shape: [usize; 2]) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), &device())
}

fn parameter(value: f32, device: &Device) -> Param<Tensor<1>> {
    Param::from_tensor(Tensor::from_floats([value], device))
}

fn pact(bits: BitWidth, clip_value: f32, device: &Device) -> ActivationQuantizer {
    let mut quantizer = PactActivations::new(bits, device);
    quantizer.clip_value = parameter(clip_value, device);
    ActivationQuantizer::Pact(quantizer)
}

fn lsq(bits: BitWidth, step_size: f32, device: &Device) -> ActivationQuantizer {
    let mut quantizer = LsqActivations::new(bits, device);
    quantizer.step_size = parameter(step_size, device);
    ActivationQuantizer::Lsq(quantizer)
}

fn lsq_weights(bits: BitWidth, step_size: f32, device: &Device) -> WeightQuantizer {
    let mut quantizer = LsqWeights::new(bits, Granularity::PerTensor, Tensor::<1>::ones([1], device));
    quantizer.step_size = parameter(step_size, device);
    WeightQuantizer::Lsq(quantizer)
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    let close = |(got, expected): (&f32, &f32)| (got - expected).abs() <= 2e-6 * (1.0 + expected.abs());
    assert!(
        got.len() == expected.len() && got.iter().zip(expected).all(close),
        "{what}: {got:?}, not {expected:?}"
    );
}

/// Everything, nothing, and the first of two groups of channels.
fn selections() -> [Selection; 3] {
    [Selection::All, Selection::None, Selection::ChannelGroups(vec![true, false])]
}

/// Two samples of four channels, the last two as the first two.
const INPUT: [f32; 8] = [0.4, 1.2, 0.4, 1.2, -0.3, 0.9, -0.3, 0.9];

/// What becomes of [`INPUT`].
struct InputCase {
    name: &'static str,
    quantizer: fn() -> ActivationQuantizer,
    /// Of 0.4, 1.2, -0.3 and 0.9.
    rounded: [f32; 4],
    unrounded: [f32; 4],
    gradient: [f32; 4],
    /// Gradient of the learned parameter with everything, nothing and the first group quantized.
    parameter_gradients: Option<[f32; 3]>,
}

const INPUT_CASES: [InputCase; 4] = [
    InputCase {
        name: "dorefa, 2 bits",
        quantizer: || ActivationQuantizer::DoReFa(DoReFaActivations::new(bits(2), &device())),
        rounded: [1.0 / 3.0, 1.0, 0.0, 1.0],
        unrounded: [0.4, 1.0, 0.0, 0.9],
        gradient: [1.0, 0.0, 0.0, 1.0],
        parameter_gradients: None,
    },
    InputCase {
        name: "pact, 2 bits, clip value 0.8",
        quantizer: || pact(bits(2), 0.8, &device()),
        // 0.4 is 1.5 steps, which goes to the even code.
        rounded: [1.6 / 3.0, 0.8, 0.0, 0.8],
        unrounded: [0.4, 0.8, 0.0, 0.8],
        gradient: [1.0, 0.0, 0.0, 0.0],
        // One for each value from the clip value on.
        parameter_gradients: Some([4.0; 3]),
    },
    InputCase {
        name: "lsq, 2 bits, step size 0.25",
        quantizer: || lsq(bits(2), 0.25, &device()),
        rounded: [0.5, 0.75, 0.0, 0.75],
        unrounded: [0.4, 0.75, 0.0, 0.75],
        gradient: [1.0, 0.0, 0.0, 0.0],
        // 3 for each of the four values above the range, round(1.6) - 1.6 for each 0.4 that is rounded; over sqrt(4 * 3).
        parameter_gradients: Some([12.8 / 3.464_101_6, 12.0 / 3.464_101_6, 12.4 / 3.464_101_6]),
    },
    InputCase {
        // The batch moves the running range from [-0.3, 0.6] to [-0.3, 0.66]: scale 0.32, zero point 1.
        name: "min-max, 2 bits",
        quantizer: || {
            ActivationQuantizer::MinMax(MinMaxActivations::with_range(bits(2), -0.3, 0.6, &device()))
        },
        rounded: [0.32, 0.64, -0.32, 0.64],
        unrounded: [0.4, 0.64, -0.3, 0.64],
        gradient: [1.0, 0.0, 1.0, 0.0],
        parameter_gradients: None,
    },
];

#[test]
fn inputs_are_rounded_where_it_is_said_and_clipped_everywhere() {
    for case in &INPUT_CASES {
        for (i, selection) in selections().into_iter().enumerate() {
            let what = format!("{}, {selection:?}", case.name);
            let quantizer = Some((case.quantizer)());
            let x = matrix(&INPUT, [2, 4]).require_grad();
            let y = selection.input(&quantizer, x.clone()).into_values();
            // In each sample, the first two values are of the first group.
            let of_group = [case.rounded, if i == 2 { case.unrounded } else { case.rounded }];
            let [first, second] = if i == 1 { [case.unrounded; 2] } else { of_group };
            let expected: Vec<f32> =
                [0, 2].into_iter().flat_map(|j| [first[j], first[j + 1], second[j], second[j + 1]]).collect();
            assert_close(&what, &values(y.clone()), &expected);
            let gradients = y.sum().backward();
            let [a, b, c, d] = case.gradient;
            let gradient = x.grad(&gradients).map(values).unwrap();
            assert_close(&format!("{what}: gradient"), &gradient, &[a, b, a, b, c, d, c, d]);
            let learned = match quantizer.as_ref().unwrap() {
                ActivationQuantizer::Pact(quantizer) => Some(&quantizer.clip_value),
                ActivationQuantizer::Lsq(quantizer) => Some(&quantizer.step_size),
                _ => None,
            };
            check_parameter(&what, learned, &gradients, case.parameter_gradients.map(|all| all[i]));
        }
    }
}

fn check_parameter(
    what: &str,
    learned: Option<&Param<Tensor<1>>>,
    gradients: &Gradients,
    expected: Option<f32>,
) {
    let got = learned.map(|parameter| values(parameter.val().grad(gradients).unwrap()));
    assert_close(
        &format!("{what}: gradient of the parameter"),
        &got.unwrap_or_default(),
        &Vec::from_iter(expected),
    );
}

/// The running range takes in a batch once, however much of it is quantized.
#[test]
fn a_running_range_moves_once_a_pass() {
    for selection in selections() {
        let quantizer = MinMaxActivations::with_range(bits(2), -0.3, 0.6, &device());
        let quantizer = Some(ActivationQuantizer::MinMax(quantizer));
        selection.input(&quantizer, matrix(&INPUT, [2, 4]));
        let Some(ActivationQuantizer::MinMax(quantizer)) = quantizer else { unreachable!() };
        assert_close(&format!("{selection:?}"), &values(quantizer.running_max.value_sync()), &[0.66]);
    }
}

/// Four output channels of two inputs.
const WEIGHT: [f32; 8] = [0.2, -0.5, 0.9, -0.1, 0.2, -0.5, 0.8, -0.1];

/// What becomes of [`WEIGHT`].
struct WeightCase {
    name: &'static str,
    quantizer: fn() -> WeightQuantizer,
    rounded: [f32; 8],
    unrounded: [f32; 8],
    gradient: [f32; 8],
    /// Gradient of the step size with everything, nothing and the first group quantized.
    parameter_gradients: Option<[f32; 3]>,
}

const THIRD: f32 = 1.0 / 3.0;

const WEIGHT_CASES: [WeightCase; 4] = [
    WeightCase {
        name: "dorefa, 2 bits",
        quantizer: || WeightQuantizer::DoReFa(DoReFaWeights::new(bits(2), &device())),
        rounded: [THIRD, -THIRD, 1.0, -THIRD, THIRD, -THIRD, 1.0, -THIRD],
        // tanh(w) / tanh(0.9), and its gradient, which reaches 0.9 as the maximum too.
        unrounded: [0.275549, -0.645147, 1.000000, -0.139143, 0.275549, -0.645147, 0.927040, -0.139143],
        gradient: [1.341681, 1.097934, 0.061479, 1.382199, 1.341681, 1.097934, 0.780479, 1.382199],
        parameter_gradients: None,
    },
    WeightCase {
        // The mean magnitude is 0.4125.
        name: "dorefa, 1 bit",
        quantizer: || WeightQuantizer::DoReFa(DoReFaWeights::new(bits(1), &device())),
        rounded: [0.4125, -0.4125, 0.4125, -0.4125, 0.4125, -0.4125, 0.4125, -0.4125],
        unrounded: WEIGHT,
        gradient: [1.0; 8],
        parameter_gradients: None,
    },
    WeightCase {
        name: "lsq, 2 bits, step size 0.3",
        quantizer: || lsq_weights(bits(2), 0.3, &device()),
        rounded: [0.3, -0.6, 0.3, 0.0, 0.3, -0.6, 0.3, 0.0],
        unrounded: [0.2, -0.5, 0.3, -0.1, 0.2, -0.5, 0.3, -0.1],
        gradient: [1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0],
        // 1 for each of 0.9 and 0.8, which are above the range; in each rounded half 1/3 - 1/3 + 1/3; over sqrt(8 * 1).
        parameter_gradients: Some([8.0 / 3.0 / 2.828_427, 2.0 / 2.828_427, 7.0 / 3.0 / 2.828_427]),
    },
    WeightCase {
        name: "min-max, 2 bits",
        quantizer: || {
            let quantizer = MinMaxWeights::new(bits(2), Granularity::PerTensor, &device());
            WeightQuantizer::MinMax(quantizer.unwrap())
        },
        rounded: [0.0, -0.9, 0.9, 0.0, 0.0, -0.9, 0.9, 0.0],
        unrounded: WEIGHT,
        gradient: [1.0; 8],
        parameter_gradients: None,
    },
];

#[test]
fn weights_are_rounded_where_it_is_said_and_clipped_everywhere() {
    for case in &WEIGHT_CASES {
        for (i, selection) in selections().into_iter().enumerate() {
            let what = format!("{}, {selection:?}", case.name);
            let quantizer = Some((case.quantizer)());
            let w = matrix(&WEIGHT, [4, 2]).require_grad();
            let y = selection.weight(&quantizer, w.clone()).into_values();
            let first = if i == 1 { case.unrounded } else { case.rounded };
            let second = if i == 0 { case.rounded } else { case.unrounded };
            assert_close(&what, &values(y.clone()), &[&first[..4], &second[4..]].concat());
            let gradients = y.sum().backward();
            let gradient = w.grad(&gradients).map(values).unwrap();
            assert_close(&format!("{what}: gradient"), &gradient, &case.gradient);
            let learned = match quantizer.as_ref().unwrap() {
                WeightQuantizer::Lsq(quantizer) => Some(&quantizer.step_size),
                _ => None,
            };
            check_parameter(&what, learned, &gradients, case.parameter_gradients.map(|all| all[i]));
        }
    }
}

/// At every bit width, what is not rounded has the range of what is, and is within half a step of it.
#[test]
fn both_paths_have_the_same_range() {
    let device = Device::default();
    let x: Vec<f32> = (0..601).map(|i| (i as f32 - 200.0) / 100.0).collect();
    let x = Tensor::<1>::from_floats(x.as_slice(), &device);
    let extremes =
        |tensor: &Tensor<1>| values(Tensor::cat(vec![tensor.clone().min(), tensor.clone().max()], 0));
    let check = |what: String, rounded: Tensor<1>, exact: Tensor<1>, scale: f32| {
        assert_close(&what, &extremes(&exact), &extremes(&rounded));
        let furthest = values((rounded - exact).abs().max())[0];
        assert!(furthest <= scale * 0.5 + 1e-6, "{what}: {furthest} away");
    };
    for bits in BitWidth::ALL {
        for (name, quantizer) in [
            ("dorefa", ActivationQuantizer::DoReFa(DoReFaActivations::new(bits, &device))),
            ("pact", pact(bits, 1.7, &device)),
            ("lsq", lsq(bits, 0.01, &device)),
            ("min-max", ActivationQuantizer::MinMax(MinMaxActivations::with_range(bits, -0.5, 1.5, &device))),
        ] {
            let (rounded, exact) = (quantizer.fake_quantize(x.clone()), quantizer.unrounded(x.clone()));
            check(format!("{name} input, {bits} bits"), rounded, exact, quantizer.grid().unwrap().scale(0));
        }
        // The levels of 1 bit are two steps apart. The other methods do not clip weights: none lie outside of the range.
        if bits.get() > 1 {
            let quantizer = lsq_weights(bits, 0.01, &device);
            let (rounded, exact) = (quantizer.fake_quantize(x.clone()), quantizer.unrounded(x.clone()));
            check(
                format!("lsq weights, {bits} bits"),
                rounded,
                exact,
                quantizer.grid(x.clone()).unwrap().scale(0),
            );
        }
    }
}

#[test]
fn a_layer_that_is_in_full_precision_has_nothing_to_select() {
    for selection in selections() {
        assert_eq!(values(selection.input(&None, matrix(&INPUT, [2, 4])).into_values()), INPUT);
        assert_eq!(values(selection.weight(&None, matrix(&WEIGHT, [4, 2])).into_values()), WEIGHT);
    }
}

/// Channels count, not groups: of ten channels, four groups have 3, 2, 3 and 2; of two, only groups 0 and 2 have one.
#[test]
fn the_share_of_a_selection_is_of_its_channels() {
    let share = |groups: [bool; 4], channels| Selection::ChannelGroups(groups.to_vec()).share(channels);
    assert_eq!(share([true, false, true, false], 10), 0.6);
    assert_eq!(share([true, false, false, true], 2), 0.5);
    assert_eq!(share([false, true, false, true], 2), 0.0);
    assert_eq!((Selection::All.share(3), Selection::None.share(3)), (1.0, 0.0));
    assert_eq!(share([true; 4], 0), 0.0);
}

/// Without groups nothing is quantized.
#[test]
fn no_groups_select_nothing() {
    let none = Selection::ChannelGroups(Vec::new());
    assert_eq!(none.share(10), 0.0);
    let quantizer = Some(ActivationQuantizer::DoReFa(DoReFaActivations::new(bits(2), &device())));
    let of =
        |selection: &Selection| values(selection.input(&quantizer, matrix(&INPUT, [2, 4])).into_values());
    assert_eq!(of(&none), of(&Selection::None));
}

/// Between two levels by a line of the slope that is asked for, cut off at them; of every method that rounds to equal steps.
#[test]
fn soft_weights_lie_between_exact_and_rounded() {
    // Steps of 0.5 with codes from -2 to 1: outside of these levels, at and near one, and between two.
    let exact = [-1.4, -1.0, -0.95, -0.8, -0.3, -0.2, 0.05, 0.2, 0.45, 0.9];
    let clipped = [-1.0, -1.0, -0.95, -0.8, -0.3, -0.2, 0.05, 0.2, 0.45, 0.5];
    let rounded = [-1.0, -1.0, -1.0, -1.0, -0.5, 0.0, 0.0, 0.0, 0.5, 0.5];
    // From the middles -0.75, -0.25 and 0.25, twice as far.
    let twice = [-1.0, -1.0, -1.0, -0.85, -0.35, -0.15, 0.0, 0.15, 0.5, 0.5];
    let quantizer = lsq_weights(bits(2), 0.5, &device());
    for (slope, expected) in [(1.0, clipped), (2.0, twice), (1e9, rounded)] {
        let weights = matrix(&exact, [2, 5]).require_grad();
        let selection = Selection::SoftWeights { slope };
        let soft = selection.weight(&Some(quantizer.clone()), weights.clone()).into_values();
        assert_close(&format!("slope {slope}"), &values(soft.clone()), &expected);
        // The gradient is that of the rounding: it passes inside the range.
        let gradients = soft.sum().backward();
        let gradient = values(weights.grad(&gradients).unwrap());
        assert_close("gradient", &gradient, &[0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    }
    let weights = || matrix(&[-1.3, 0.7, -0.2, 0.45, 0.05, 1.1, -0.6, 0.3], [2, 4]);
    let mut n_methods = 0;
    for method in Method::ALL.iter().filter(|method| method.has_equal_steps()) {
        for n in method.bits(Operand::Weights) {
            let two = Precision::Bits(bits(n));
            let quantization = LayerQuantization::new(*method, two, Precision::FullPrecision);
            let quantizer = WeightQuantizer::new(&quantization, weights()).unwrap().unwrap();
            let soft = |slope| values(quantizer.soft(weights(), slope));
            let (exact, rounded) =
                (values(quantizer.unrounded(weights())), values(quantizer.fake_quantize(weights())));
            assert_close(&format!("{method} of {n} bits, steep"), &soft(1e9), &rounded);
            let between = |((soft, exact), rounded): ((&f32, &f32), &f32)| {
                let (low, high) = (exact.min(*rounded), exact.max(*rounded));
                (low - 1e-5..=high + 1e-5).contains(soft)
            };
            // Ternary weights go to the level that is not the nearest.
            if *method != Method::Twn {
                let soft = soft(1.5);
                assert!(
                    soft.iter().zip(&exact).zip(&rounded).all(between),
                    "{method} of {n}: {soft:?} {exact:?} {rounded:?}"
                );
            }
            n_methods += 1;
        }
    }
    assert!(n_methods > 40, "{n_methods}");
}

/// Each weight is the one of the rounding or the one before it, and as many as asked for are; another key draws others. Inputs are
/// quantized whole.
#[test]
fn single_weights_are_drawn() {
    let exact: Vec<f32> = (0..4000).map(|i| (i as f32 * 0.37).sin()).collect();
    let quantizer = Some(lsq_weights(bits(2), 0.5, &device()));
    let drawn = |key, probability| -> Vec<bool> {
        let selection = Selection::Weights { key, probability };
        let got = values(selection.weight(&quantizer, matrix(&exact, [4, 1000])).into_values());
        let rounded = values(Selection::All.weight(&quantizer, matrix(&exact, [4, 1000])).into_values());
        let unrounded = values(Selection::None.weight(&quantizer, matrix(&exact, [4, 1000])).into_values());
        let pairs = rounded.iter().zip(&unrounded);
        got.iter()
            .zip(pairs)
            .map(|(got, (rounded, unrounded))| {
                assert!(got == rounded || got == unrounded, "{got} is neither {rounded} nor {unrounded}");
                got == rounded && rounded != unrounded
            })
            .collect()
    };
    let all = drawn(3, 1.0);
    let n = |drawn: &[bool]| drawn.iter().filter(|is| **is).count() as f64;
    let quarter = drawn(3, 0.25);
    assert_eq!(quarter, drawn(3, 0.25), "pure");
    assert_ne!(quarter, drawn(4, 0.25));
    assert!((n(&quarter) / n(&all) - 0.25).abs() < 0.03, "{} of {}", n(&quarter), n(&all));
    assert_eq!(n(&drawn(3, 0.0)), 0.0);
    let input = |selection: Selection| {
        values(selection.input(&Some(lsq(bits(2), 0.25, &device())), matrix(&INPUT, [2, 4])).into_values())
    };
    assert_eq!(input(Selection::Weights { key: 3, probability: 0.0 }), input(Selection::All));
    assert_eq!(input(Selection::SoftWeights { slope: 1.0 }), input(Selection::All));
}
