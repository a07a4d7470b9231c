//! Forward and gradients against the definition in double precision.

use super::super::activation::{ClipGrid, SignGrid, StepGrid, UnitGrid};
use super::*;

fn random(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 * 2.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// What the activation does to the normalized value, in single precision as the kernels have it: result, passing of the
/// gradient, derivative by the parameter.
fn activated(activation: Activation, z: f32) -> (f32, bool, f32) {
    match activation {
        Activation::Identity => (z, true, 0.0),
        Activation::Relu => (z.max(0.0), z > 0.0, 0.0),
        Activation::Unit(UnitGrid { n }) => {
            ((z.clamp(0.0, 1.0) * n).round_ties_even() / n, (0.0..=1.0).contains(&z), 0.0)
        }
        Activation::Step(StepGrid { step_size, q_min, q_max }) => {
            let v = z / step_size;
            let code = v.clamp(q_min, q_max).round_ties_even();
            let inside = v > q_min && v < q_max;
            (code * step_size, inside, if inside { code - v } else { code })
        }
        Activation::Clip(ClipGrid { clip_value, n }) => {
            let clipped = z.max(0.0).min(clip_value);
            let value = (clipped / clip_value * n).round_ties_even() / n * clip_value;
            (value, z >= 0.0 && z < clip_value, f32::from(z >= clip_value))
        }
        Activation::Sign(SignGrid { scale, is_bounded }) => {
            let (sign, v) = (if z < 0.0 { -1.0 } else { 1.0 }, z / scale);
            let inside = v.abs() < 1.0;
            (sign * scale, inside || !is_bounded, sign - if inside && is_bounded { v } else { 0.0 })
        }
    }
}

fn check(shape: NormShape, activation: Activation, seed: u64, shift: f32) {
    let n = shape.len();
    let x: Vec<f32> = random(seed, n).into_iter().map(|x| x + shift).collect();
    let g = random(seed + 1, n);
    let (gamma, beta) = (random(seed + 2, shape.channels), random(seed + 3, shape.channels));
    let statistics = statistics(shape, &x);
    let epsilon = 1e-5;
    let parameters =
        NormParameters { gamma: &gamma, beta: &beta, statistics: &statistics, epsilon, activation };
    let y = apply(shape, &x, parameters);
    let got = gradients(shape, &x, &g, parameters);
    let (mut dparameter, mut dparameter_size) = (0.0, 1.0);
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
        let passed = |i: usize| if activated(activation, before(i)).1 { f64::from(g[i]) } else { 0.0 };
        for &i in &all {
            close(
                "before",
                before(i),
                normal(i) * f64::from(gamma[c]) + f64::from(beta[c]),
                1.0 + normal(i).abs(),
            );
            let (value, _, slope) = activated(activation, before(i));
            assert!((y[i] - value).abs() <= 1e-6, "y {shape:?} {activation:?} {seed}: {} {value}", y[i]);
            if let Activation::Unit(UnitGrid { n }) = activation {
                assert_eq!((y[i] * n).round_ties_even() / n, y[i]);
            }
            if let Activation::Step(StepGrid { step_size, .. }) = activation {
                assert_eq!((y[i] / step_size).round_ties_even() * step_size, y[i]);
            }
            dparameter += f64::from(g[i]) * f64::from(slope);
            dparameter_size += (f64::from(g[i]) * f64::from(slope)).abs();
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
    assert!((f64::from(got.parameter) - dparameter).abs() <= 1e-5 * dparameter_size, "parameter");
}

#[test]
fn equals_the_definition() {
    let activations = [
        Activation::Identity,
        Activation::Relu,
        Activation::Unit(UnitGrid { n: 3.0 }),
        Activation::Step(StepGrid { step_size: 0.31, q_min: 0.0, q_max: 3.0 }),
        Activation::Clip(ClipGrid { clip_value: 0.7, n: 15.0 }),
        Activation::Sign(SignGrid { scale: 0.4, is_bounded: true }),
    ];
    let shapes =
        [[1, 1, 2], [2, 3, 1], [3, 2, 17], [2, 5, 49], [4, 1, 64], [1, 2, 100], [3, 2, 3000], [130, 2, 49]];
    for (i, [batch, channels, plane]) in shapes.into_iter().enumerate() {
        let shape = NormShape { batch, channels, plane };
        for (j, activation) in activations.into_iter().enumerate() {
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
        let parameters = NormParameters {
            gamma: &[1.0; 2],
            beta: &[0.0; 2],
            statistics: &[0.0; 4],
            epsilon: 1e-5,
            activation: Activation::Relu,
        };
        assert!(apply(shape, &[], parameters).is_empty());
        assert_eq!(gradients(shape, &[], &[], parameters).gamma, [0.0; 2]);
    }
}
