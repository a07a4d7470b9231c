//! Forward and gradients against the definition in double precision.

use super::*;
use crate::formula::samples::{Interval, Step};

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 * 2.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// A quantizer of the normalized values.
fn quantizers() -> [(AnyFormula, Vec<f32>, RangeInclusive<i32>); 3] {
    [
        (AnyFormula::new(Step { q_min: 0.0, q_max: 3.0 }), vec![0.31], 0..=3),
        (AnyFormula::new(Step { q_min: -8.0, q_max: 7.0 }), vec![0.11], -8..=7),
        (AnyFormula::new(Interval { n: 15.0 }), vec![0.7, -0.1], 0..=15),
    ]
}

/// What the activation does to the normalized value, in single precision as the kernels have it: result, gradient before it and
/// gradients of its parameters.
fn activated(activation: Activation<'_>, z: f32, g: f32) -> (f32, f32, Vec<f32>) {
    match activation {
        Activation::Identity => (z, g, Vec::new()),
        Activation::Relu => (z.max(0.0), if z > 0.0 { g } else { 0.0 }, Vec::new()),
        // Formulas have tests of their own.
        Activation::Formula(formula, p, _) => {
            let gradients = formula.gradients(&[z], p, &[g]);
            (formula.forward(&[z], p)[0], gradients.input[0], gradients.parameters)
        }
    }
}

fn check(shape: NormShape, activation: Activation<'_>, seed: u64, shift: f32) {
    let n = shape.len();
    let x: Vec<f32> = random(seed, n).into_iter().map(|x| x + shift).collect();
    let g = random(seed + 1, n);
    let (gamma, beta) = (random(seed + 2, shape.channels), random(seed + 3, shape.channels));
    let statistics = statistics(shape, &x);
    let epsilon = 1e-5;
    let parameters = NormParameters { gamma: &gamma, beta: &beta, statistics: &statistics, epsilon };
    let Coded { values: y, codes } = apply(shape, &x, parameters, activation);
    if let Activation::Formula(formula, p, Some(range)) = activation {
        // The values are those of the codes, to the last bit.
        let parts = formula.unit().map_or(1.0, |unit| p[unit]);
        for (y, code) in y.iter().zip(codes.expect("the values are numbers")) {
            let code = if *range.start() < 0 { i32::from(code as i8) } else { i32::from(code) };
            assert!(range.contains(&code), "{code}");
            assert_eq!(
                (code as f32 / formula.parts() * parts).to_bits(),
                (*y + 0.0).to_bits(),
                "{formula:?} {code}"
            );
        }
    }
    let got = gradients(shape, &x, &g, parameters, activation);
    let mut in_place = g.clone();
    let others = gradients_in_place(shape, &x, &mut in_place, parameters, activation);
    assert_eq!(in_place, got.input);
    assert!(others.input.is_empty());
    assert_eq!((others.gamma, others.beta), (got.gamma.clone(), got.beta.clone()));
    let mut of_parameters = vec![(0.0, 1.0); got.parameters.len()];
    for c in 0..shape.channels {
        let all: Vec<usize> = (0..shape.batch).flat_map(|b| shape.range(b, c)).collect();
        let count = all.len() as f64;
        let mean = all.iter().map(|&i| f64::from(x[i])).sum::<f64>() / count;
        let variance = all.iter().map(|&i| (f64::from(x[i]) - mean).powi(2)).sum::<f64>() / count;
        let deviation = (variance + 1e-5).sqrt();
        // The input itself has this error, and the deviation divides it.
        let rounding = f64::from(f32::EPSILON) * (1.0 + f64::from(shift)) / deviation;
        let close = |what: &str, got: f32, expected: f64, scale: f64| {
            let error = (f64::from(got) - expected).abs();
            let tolerance = (1e-5 + 8.0 * rounding) * scale;
            assert!(error <= tolerance, "{what} {shape:?} {activation:?} {seed}: {got} {expected}");
        };
        close("mean", statistics[c], mean, 1.0);
        close("variance", statistics[shape.channels + c], variance, 1.0);
        let factor = gamma[c] / (statistics[shape.channels + c] + epsilon).sqrt();
        let before = |i: usize| (x[i] - statistics[c]) * factor + beta[c];
        let normal = |i: usize| (f64::from(x[i]) - mean) / deviation;
        let passed = |i: usize| f64::from(activated(activation, before(i), g[i]).1);
        for &i in &all {
            close(
                "before",
                before(i),
                normal(i) * f64::from(gamma[c]) + f64::from(beta[c]),
                1.0 + normal(i).abs(),
            );
            let (value, _, of_p) = activated(activation, before(i), g[i]);
            assert!((y[i] - value).abs() <= 1e-6, "y {shape:?} {activation:?} {seed}: {} {value}", y[i]);
            assert_eq!(of_p.len(), of_parameters.len());
            for ((sum, size), of_p) in of_parameters.iter_mut().zip(of_p) {
                *sum += f64::from(of_p);
                *size += f64::from(of_p).abs();
            }
        }
        let dbeta: f64 = all.iter().map(|&i| passed(i)).sum();
        let dgamma: f64 = all.iter().map(|&i| passed(i) * normal(i)).sum();
        let size: f64 = all.iter().map(|&i| passed(i).abs() * (1.0 + normal(i).abs())).sum::<f64>() + 1.0;
        close("dbeta", got.beta[c], dbeta, size);
        close("dgamma", got.gamma[c], dgamma, size);
        for &i in &all {
            let dx =
                f64::from(gamma[c]) / deviation * (passed(i) - dbeta / count - normal(i) * dgamma / count);
            close("dx", got.input[i], dx, (1.0 + normal(i).powi(2)) / deviation);
        }
    }
    for (got, (sum, size)) in got.parameters.iter().zip(of_parameters) {
        assert!((f64::from(*got) - sum).abs() <= 1e-5 * size, "parameter: {got} {sum}");
    }
}

#[test]
fn equals_the_definition() {
    let quantizers = quantizers();
    let formulas = quantizers.iter().map(|(formula, p, codes)| Activation::Formula(formula, p, Some(codes)));
    let activations: Vec<_> = [Activation::Identity, Activation::Relu].into_iter().chain(formulas).collect();
    let shapes =
        [[1, 1, 2], [2, 3, 1], [3, 2, 17], [2, 5, 49], [4, 1, 64], [1, 2, 100], [3, 2, 3000], [130, 2, 49]];
    for (i, [batch, channels, plane]) in shapes.into_iter().enumerate() {
        let shape = NormShape { batch, channels, plane };
        for (j, &activation) in activations.iter().enumerate() {
            for seed in 0..4 {
                check(shape, activation, 1000 * i as u64 + 100 * j as u64 + 10 * seed, 0.0);
            }
            check(shape, activation, 20_000 + i as u64, 50.0);
        }
    }
}

#[test]
fn nothing_is_normalized_to_nothing() {
    for (batch, plane) in [(0, 3), (1, 0), (3, 0)] {
        let shape = NormShape { batch, channels: 2, plane };
        assert_eq!(statistics(shape, &[]), [0.0; 4]);
        let parameters =
            NormParameters { gamma: &[1.0; 2], beta: &[0.0; 2], statistics: &[0.0; 4], epsilon: 1e-5 };
        assert!(apply(shape, &[], parameters, Activation::Relu).values.is_empty());
        assert_eq!(gradients(shape, &[], &[], parameters, Activation::Relu).gamma, [0.0; 2]);
    }
}
