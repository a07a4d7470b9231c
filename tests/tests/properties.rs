//! What every quantizer must satisfy, whatever its input and its learned parameter. The seeds are fixed: a failure
//! repeats, and a run takes the same cases as the one before.

use std::fmt::Debug;

use lowbit_core::{BitWidth, Granularity};
use lowbit_tests::{Spec, bits, default_device, integers, tensor, values};
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

/// A quantizer and an input.
#[derive(Clone, Debug)]
struct Problem {
    spec: Spec,
    bits: BitWidth,
    /// `[rows, columns]`.
    shape: [usize; 2],
    x: Vec<f32>,
}

/// What a quantizer makes of an input.
struct Output {
    codes: Vec<i32>,
    y: Vec<f32>,
    /// One per element.
    scale: Vec<f32>,
    dequantized: Vec<f32>,
}

impl Problem {
    fn run(&self) -> Output {
        self.run_on(&self.x)
    }

    fn run_on(&self, x: &[f32]) -> Output {
        let device = default_device();
        let quantizer = self.spec.build(self.bits, &device);
        let x = tensor(x, self.shape, &device);
        let codes = integers(quantizer.codes(x.clone()));
        let grid = quantizer.grid(x.clone());
        let per_channel = self.x.len() / grid.units().len();
        Output {
            scale: (0..self.x.len()).map(|idx| grid.scale(idx / per_channel)).collect(),
            dequantized: grid.dequantize_all(&codes),
            codes,
            y: values(quantizer.fake_quantize(x)),
        }
    }

    fn range(&self) -> (i32, i32) {
        let range = self.spec.code_range(self.bits);
        (range.q_min, range.q_max)
    }
}

fn granularity() -> impl Strategy<Value = Granularity> {
    prop_oneof![Just(Granularity::PerTensor), Just(Granularity::PerChannel)]
}

fn positive() -> impl Strategy<Value = f32> {
    prop_oneof![
        // Ordinary ones, and powers of two, on which ties are exact.
        1e-3f32..10.0,
        (-8i32..4).prop_map(|exponent| 2f32.powi(exponent)),
    ]
}

/// Any quantizer for a tensor of `rows` rows, with ordinary parameters.
fn spec(rows: usize) -> impl Strategy<Value = Spec> {
    prop_oneof![
        1 => Just(Spec::DoReFaWeights),
        1 => Just(Spec::DoReFaActivations),
        1 => positive().prop_map(|clip_value| Spec::PactActivations { clip_value }),
        1 => lsq_weights(rows),
        1 => positive().prop_map(|step_size| Spec::LsqActivations { step_size }),
        1 => granularity().prop_map(|granularity| Spec::MinMaxWeights { granularity }),
        1 => (prop_oneof![Just(0.0f32), -3.0f32..0.0], positive())
            .prop_map(|(min, max)| Spec::MinMaxActivations { min, max }),
        6 => learned(rows),
    ]
}

/// Every method without a variant of its own.
fn learned(rows: usize) -> impl Strategy<Value = Spec> {
    // Codes that are names of levels have no order and no scale.
    let specs = Spec::learned(rows).into_iter().filter(Spec::has_grid).collect::<Vec<_>>();
    prop::sample::select(specs)
}

fn lsq_weights(rows: usize) -> impl Strategy<Value = Spec> {
    (granularity(), prop::collection::vec(positive(), rows)).prop_map(|(granularity, mut step_size)| {
        if granularity == Granularity::PerTensor {
            step_size.truncate(1);
        }
        Spec::LsqWeights { step_size, granularity }
    })
}

/// Values of every kind: ordinary, on ties and edges of a grid of step `unit`, zeros, tiny and huge.
fn value(unit: f32) -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => -4.0f32..4.0,
        2 => (-300i32..300).prop_map(move |half| half as f32 * 0.5 * unit),
        1 => Just(0.0f32),
        1 => Just(-0.0f32),
        1 => prop_oneof![Just(1e-30f32), Just(-1e-30f32), Just(1e30f32), Just(-1e30f32), Just(1e6f32), Just(-1e6f32)],
    ]
}

fn unit(spec: &Spec, bits: BitWidth) -> f32 {
    let n = (bits.levels() - 1) as f32;
    match spec {
        Spec::PactActivations { clip_value } => clip_value / n,
        Spec::LsqWeights { step_size, .. } => step_size[0],
        Spec::LsqActivations { step_size } => *step_size,
        Spec::MinMaxActivations { min, max } => (max - min) / n,
        Spec::Learned { .. } => 0.25,
        _ => 1.0 / n,
    }
}

/// A quantizer from `specs` with an input that suits it.
fn problem_of<S: Strategy<Value = Spec>>(specs: impl Fn(usize) -> S) -> impl Strategy<Value = Problem> {
    (1usize..4, 1usize..9, 1u32..9)
        .prop_flat_map(move |(rows, columns, bits)| (specs(rows), Just([rows, columns]), Just(bits)))
        .prop_flat_map(|(spec, shape, bits)| {
            let allowed = spec.bits();
            let bits = BitWidth::new(bits.clamp(*allowed.start(), *allowed.end())).unwrap();
            let x = prop::collection::vec(value(unit(&spec, bits)), shape[0] * shape[1]);
            (Just(spec), Just(bits), Just(shape), x)
        })
        .prop_map(|(spec, bits, shape, x)| Problem { spec, bits, shape, x })
}

fn problem() -> impl Strategy<Value = Problem> {
    problem_of(spec)
}

/// Runs `property` on `cases` problems, always the same.
fn check<T: Debug>(strategy: impl Strategy<Value = T>, cases: u32, property: impl Fn(&T)) {
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(1908_04680),
        ..ProptestConfig::default()
    };
    let result = TestRunner::new(config).run(&strategy, |problem| {
        property(&problem);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

/// Enough that each quantizer gets about as many cases as it has bit widths and granularities.
const CASES: u32 = 512;

/// Off by at most `ulps` units in the last place of the largest value that took part.
fn assert_ulps(got: f32, expected: f32, largest: f32, ulps: f32, problem: &impl Debug) {
    let allowed = ulps * f32::EPSILON * largest.max(f32::MIN_POSITIVE);
    let error = (got - expected).abs();
    assert!(
        error <= allowed,
        "got {got:e}, expected {expected:e}, off by {error:e} > {allowed:e}: {problem:?}"
    );
}

#[test]
fn codes_are_within_bounds() {
    check(problem(), CASES, |problem| {
        let (q_min, q_max) = problem.range();
        for code in problem.run().codes {
            assert!((q_min..=q_max).contains(&code), "{code} of {problem:?}");
            assert!(!problem.spec.has_odd_codes(problem.bits) || code % 2 != 0, "{code} of {problem:?}");
        }
    });
}

/// To the last bit, but for the sign of zeros.
#[test]
fn fake_quantize_is_the_real_value_of_the_codes() {
    check(problem(), CASES, |problem| {
        let Output { y, dequantized, .. } = problem.run();
        assert_eq!(dequantized, y, "{problem:?}");
    });
}

/// Same code, same value: no quantizer tells two values with one code apart.
#[test]
fn equal_codes_have_equal_values() {
    check(problem(), CASES, |problem| {
        let Output { codes, y, scale, .. } = problem.run();
        for (i, code) in codes.iter().enumerate() {
            for (j, other) in codes.iter().enumerate().filter(|(j, _)| scale[*j] == scale[i]) {
                assert!(code != other || y[i] == y[j], "{i} and {j} of {problem:?}");
            }
        }
    });
}

/// Where the grid does not depend on the values, its own values stay. Those of DoReFa weights depend on the tensor, and
/// a tensor of DoReFa's values has another tanh.
#[test]
fn idempotent() {
    let is_fixed = |spec: &Spec| {
        // The values of an interval of EWGS are not its places.
        !matches!(spec, Spec::DoReFaWeights | Spec::MinMaxWeights { .. } | Spec::Learned { .. })
    };
    check(problem().prop_filter("fixed grid", move |problem| is_fixed(&problem.spec)), CASES, |problem| {
        let first = problem.run();
        let second = problem.run_on(&first.y);
        assert_eq!(first.codes, second.codes, "{problem:?}");
        assert_eq!(first.y, second.y, "{problem:?}");
    });
}

/// The largest weight decides min-max's scale, and it is on the grid up to rounding: the codes stay.
#[test]
fn idempotent_minmax_weights() {
    let specs = |_| granularity().prop_map(|granularity| Spec::MinMaxWeights { granularity });
    check(problem_of(specs), CASES, |problem| {
        let first = problem.run();
        let second = problem.run_on(&first.y);
        assert_eq!(first.codes, second.codes, "{problem:?}");
        for ((y, again), scale) in first.y.iter().zip(&second.y).zip(&first.scale) {
            let q_max = problem.range().1 as f32;
            assert_ulps(*again, *y, scale * q_max, 4.0, problem);
        }
    });
}

#[test]
fn monotone() {
    check(problem(), CASES, |problem| {
        let Output { codes, y, scale, .. } = problem.run();
        for i in 0..y.len() {
            for j in (0..y.len()).filter(|&j| problem.x[i] <= problem.x[j] && scale[i] == scale[j]) {
                // Two channels of equal scale share a grid too.
                assert!(codes[i] <= codes[j], "{i} and {j} of {problem:?}");
                assert!(y[i] <= y[j], "{i} and {j} of {problem:?}");
            }
        }
    });
}

/// Not for DoReFa weights, whose values are those of tanh(w), nor for signs.
#[test]
fn error_is_at_most_half_a_step_inside_the_range() {
    let applies = |problem: &Problem| match problem.spec {
        // Nor where a method transforms its values, or has levels at unequal distances.
        Spec::DoReFaWeights | Spec::Learned { .. } => false,
        Spec::LsqWeights { .. } => problem.bits.get() > 1,
        _ => true,
    };
    check(problem().prop_filter("applies", applies), CASES, |problem| {
        let Output { y, scale, .. } = problem.run();
        let (q_min, q_max) = problem.range();
        for ((x, y), scale) in problem.x.iter().zip(&y).zip(&scale) {
            // Of min-max activations, the codes are counted from the code of zero.
            let zero_point = match problem.spec {
                Spec::MinMaxActivations { min, .. } => {
                    (-min / scale).round_ties_even().clamp(0.0, q_max as f32)
                }
                _ => 0.0,
            };
            let (low, high) = ((q_min as f32 - zero_point) * scale, (q_max as f32 - zero_point) * scale);
            if (low..=high).contains(x) {
                let error = (x - y).abs();
                let slack = 2.0 * f32::EPSILON * low.abs().max(high.abs());
                assert!(error <= scale / 2.0 + slack, "{x} became {y} at scale {scale}: {problem:?}");
            }
        }
    });
}

/// Doubling is exact in floating point, so doubling input and step must double the result, bit for bit.
#[test]
fn lsq_scales_exactly() {
    let specs = |rows| {
        prop_oneof![lsq_weights(rows), positive().prop_map(|step_size| Spec::LsqActivations { step_size })]
    };
    check(problem_of(specs), CASES, |problem| {
        let doubled = Problem {
            spec: match problem.spec.clone() {
                Spec::LsqWeights { step_size, granularity } => {
                    Spec::LsqWeights { step_size: step_size.iter().map(|s| 2.0 * s).collect(), granularity }
                }
                Spec::LsqActivations { step_size } => Spec::LsqActivations { step_size: 2.0 * step_size },
                other => other,
            },
            x: problem.x.iter().map(|x| 2.0 * x).collect(),
            ..problem.clone()
        };
        let (once, twice) = (problem.run(), doubled.run());
        assert_eq!(once.codes, twice.codes, "{problem:?}");
        let expected: Vec<f32> = once.y.iter().map(|y| 2.0 * y).collect();
        assert_eq!(bits(&twice.y), bits(&expected), "{problem:?}");
    });
}

#[test]
fn per_channel_is_a_loop_of_per_tensor() {
    let specs = |rows| {
        prop_oneof![
            prop::collection::vec(positive(), rows)
                .prop_map(|step_size| Spec::LsqWeights { step_size, granularity: Granularity::PerChannel }),
            Just(Spec::MinMaxWeights { granularity: Granularity::PerChannel }),
        ]
    };
    check(problem_of(specs), CASES, |problem| {
        let whole = problem.run();
        let columns = problem.shape[1];
        for (row, x) in problem.x.chunks(columns).enumerate() {
            let spec = match &problem.spec {
                Spec::LsqWeights { step_size, .. } => {
                    Spec::LsqWeights { step_size: vec![step_size[row]], granularity: Granularity::PerTensor }
                }
                _ => Spec::MinMaxWeights { granularity: Granularity::PerTensor },
            };
            let part = Problem { spec, bits: problem.bits, shape: [1, columns], x: x.to_vec() }.run();
            let range = row * columns..(row + 1) * columns;
            assert_eq!(whole.codes[range.clone()], part.codes, "row {row} of {problem:?}");
            assert_eq!(bits(&whole.y[range.clone()]), bits(&part.y), "row {row} of {problem:?}");
            assert_eq!(bits(&whole.scale[range]), bits(&part.scale), "row {row} of {problem:?}");
        }
    });
}

/// A learned parameter that an optimizer has carried anywhere finite.
fn stray() -> impl Strategy<Value = f32> {
    prop_oneof![
        Just(0.0f32),
        Just(-0.0f32),
        Just(1e-7f32),
        Just(1e-30f32),
        Just(-1e-30f32),
        Just(f32::MIN_POSITIVE),
        Just(1e-45f32),
        Just(-1.0f32),
        Just(-1e6f32),
        Just(1e6f32),
        -1e-3f32..1e-3,
    ]
}

/// Whatever the learned parameter: a positive scale, finite values, finite gradients.
#[test]
fn stray_parameters_are_harmless() {
    let specs = |rows| {
        prop_oneof![
            (granularity(), prop::collection::vec(stray(), rows)).prop_map(|(granularity, mut step_size)| {
                if granularity == Granularity::PerTensor {
                    step_size.truncate(1);
                }
                Spec::LsqWeights { step_size, granularity }
            }),
            stray().prop_map(|step_size| Spec::LsqActivations { step_size }),
            stray().prop_map(|clip_value| Spec::PactActivations { clip_value }),
            (learned(rows), prop::collection::vec(stray(), 3)).prop_map(|(mut spec, strays)| {
                let Spec::Learned { parameters, .. } = &mut spec else { unreachable!() };
                for (parameter, stray) in parameters.values_mut().zip(strays) {
                    parameter.iter_mut().for_each(|number| *number = stray);
                }
                spec
            }),
        ]
    };
    check(problem_of(specs), CASES, |problem| {
        // Not beyond what float can divide by the smallest step: |x| / 1e-7^2 must be finite in the gradient.
        let x: Vec<f32> = problem.x.iter().map(|x| x.clamp(-1e20, 1e20)).collect();
        check_sound(&Problem { x, ..problem.clone() });
    });
}

/// Whatever the input: zeros, one element, tiny or huge.
#[test]
fn any_input_is_harmless() {
    let kinds = prop_oneof![
        Just(0.0f32),
        Just(-0.0f32),
        Just(1e-15f32),
        Just(-1e-15f32),
        Just(1e30f32),
        Just(-1e30f32),
        Just(0.5f32),
    ];
    let problems = (problem(), kinds, any::<bool>()).prop_map(|(problem, value, one_element)| {
        let shape = if one_element { [1, 1] } else { problem.shape };
        let spec = match problem.spec {
            Spec::LsqWeights { mut step_size, granularity } => {
                step_size.truncate(shape[0]);
                Spec::LsqWeights { step_size, granularity }
            }
            Spec::Learned { method, operand, granularity, mut parameters } => {
                parameters.values_mut().for_each(|parameter| parameter.truncate(shape[0]));
                Spec::Learned { method, operand, granularity, parameters }
            }
            spec => spec,
        };
        Problem { spec, x: vec![value; shape[0] * shape[1]], shape, bits: problem.bits }
    });
    check(problems, 2 * CASES, check_sound);
}

fn check_sound(problem: &Problem) {
    let Output { codes, y, scale, dequantized } = problem.run();
    let (q_min, q_max) = problem.range();
    // The magnitude that one bit of DoReFa gives all-zero weights is zero, and there is nothing to scale.
    let has_mean = match &problem.spec {
        Spec::DoReFaWeights => problem.bits.get() == 1,
        Spec::Learned { method, .. } => {
            ["xnor", "hwgq"].contains(&method.name()) && problem.spec.is_weights()
        }
        _ => false,
    };
    let may_be_zero = has_mean && problem.x.contains(&0.0);
    for (idx, scale) in scale.iter().enumerate() {
        assert!(scale.is_finite() && (*scale > 0.0 || may_be_zero), "scale {scale} of {problem:?}");
        assert!(y[idx].is_finite() && dequantized[idx].is_finite(), "{} of {problem:?}", y[idx]);
        assert!((q_min..=q_max).contains(&codes[idx]), "{} of {problem:?}", codes[idx]);
    }
    let device = default_device().autodiff();
    let quantizer = problem.spec.build(problem.bits, &device);
    let x = tensor(&problem.x, problem.shape, &device).require_grad();
    let gradients = quantizer.fake_quantize(x.clone()).sum().backward();
    let mut all = values(x.grad(&gradients).expect("the input has a gradient"));
    for (_, parameter) in quantizer.learned() {
        all.extend(values(parameter.grad(&gradients).expect("the parameter has a gradient")));
    }
    assert!(all.iter().all(|gradient| gradient.is_finite()), "gradients {all:?} of {problem:?}");
}

/// A running range that has shrunk for as long as it can, as behind a layer whose ReLU lets nothing through any more.
#[test]
fn vanishing_minmax_ranges_are_harmless() {
    for max in [1e-20f32, 1e-37, f32::MIN_POSITIVE, 1e-42, 1e-45] {
        for bits in BitWidth::ALL {
            for (min, x) in [(0.0, 0.0), (0.0, 1.0), (0.0, max), (-max, max)] {
                let spec = Spec::MinMaxActivations { min, max };
                check_sound(&Problem { spec, bits, shape: [1, 2], x: vec![x, 0.0] });
            }
            if bits.get() > 1 {
                let spec = Spec::MinMaxWeights { granularity: Granularity::PerTensor };
                check_sound(&Problem { spec, bits, shape: [1, 2], x: vec![max, 0.0] });
            }
        }
    }
}
