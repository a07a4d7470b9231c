//! Gradients of every quantizer against finite differences and, at the kinks, against the formulas of the papers.
//!
//! Finite differences cannot see through a rounding, so they are taken of the surrogate that the straight-through
//! estimator differentiates: with the residual `r = round(v) - v` frozen at the point, in double precision on the
//! host, written here from the formulas and not from the code under test.

use lowbit_core::{BitWidth, Granularity};
use lowbit_tests::{Spec, Tolerance, assert_close_f64, default_device, normal, rng, tensor, values};

/// Places on the code grid nearer than this to a tie, a clip edge or the sign's jump are drawn again: the residual
/// could differ between float and double, and the difference quotient must not cross a kink.
const GUARD: f64 = 1e-3;

/// Step of the central differences, relative to the differentiated value: a step size of LSQ then moves the places of
/// 8-bit codes, up to 400 of its units, by less than the guard.
const STEP: f64 = 1e-6;

/// Masks, and one product in double precision against float.
const GRADIENT_OF_INPUT: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-7 };

/// A sum over all elements in float, of residuals of which each is off by an ulp of the place on the code grid: 3e-5 for
/// the largest, times LSQ's factor of 0.02 for codes that large.
const GRADIENT_OF_PARAMETER: Tolerance = Tolerance { relative: 1e-4, absolute: 4e-6 };

const SEEDS: u64 = 10;

/// 6 channels or samples of 5 values.
const SHAPE: [usize; 2] = [6, 5];

const N: usize = SHAPE[0] * SHAPE[1];

fn bit_widths() -> impl Iterator<Item = BitWidth> {
    [1, 2, 3, 4, 8].into_iter().map(|bits| BitWidth::new(bits).unwrap())
}

/// The learned parameters of `spec`.
fn parameters(spec: &Spec) -> Vec<f64> {
    match spec {
        Spec::PactActivations { clip_value } => vec![f64::from(*clip_value)],
        Spec::LsqWeights { step_size, .. } => step_size.iter().map(|&s| f64::from(s)).collect(),
        Spec::LsqActivations { step_size } => vec![f64::from(*step_size)],
        _ => Vec::new(),
    }
}

/// Which of `n` parameters or scales element `idx` uses.
fn group(idx: usize, n: usize) -> usize {
    if n == 1 { 0 } else { idx / SHAPE[1] }
}

/// What the forward pass at one point fixes for the surrogate.
struct Frozen {
    /// `round(v) - v`, or `sign(v) - v`.
    residuals: Vec<f64>,
    /// The maximum of DoReFa weights, the scales of min-max weights.
    constants: Vec<f64>,
}

const ELSEWHERE: &str = "the gradients of this method are compared with closed forms by golden/generate.py";

/// The grid before rounding: `v` of each element.
fn grid(spec: &Spec, bits: BitWidth, x: &[f64], parameters: &[f64], frozen: Option<&Frozen>) -> Vec<f64> {
    let n = f64::from(bits.levels() - 1);
    let range = spec.code_range(bits);
    let (q_min, q_max) = (f64::from(range.q_min), f64::from(range.q_max));
    let elements = |f: &dyn Fn(usize, f64) -> f64| x.iter().enumerate().map(|(idx, &x)| f(idx, x)).collect();
    match spec {
        Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax if bits.get() == 1 => x.to_vec(),
        Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax => {
            let mut max = x.iter().fold(0.0f64, |max, x| max.max(x.tanh().abs()));
            if let (Spec::DoReFaWeightsDetachedMax, Some(frozen)) = (spec, frozen) {
                max = frozen.constants[0];
            }
            elements(&|_, x| (x.tanh() / (2.0 * max) + 0.5) * n)
        }
        Spec::DoReFaActivations => elements(&|_, x| x.clamp(0.0, 1.0) * n),
        Spec::PactActivations { .. } => elements(&|_, x| x.clamp(0.0, parameters[0])),
        Spec::LsqWeights { .. } | Spec::LsqActivations { .. } => {
            elements(&|idx, x| (x / parameters[group(idx, parameters.len())]).clamp(q_min, q_max))
        }
        Spec::MinMaxWeights { .. } => {
            let scales = scales(spec, bits, x, frozen);
            elements(&|idx, x| x / scales[group(idx, scales.len())])
        }
        Spec::MinMaxActivations { min, max } => {
            let scale = (f64::from(*max) - f64::from(*min)) / n;
            elements(&|_, x| x / scale)
        }
        Spec::Learned { .. } => unreachable!("{ELSEWHERE}"),
    }
}

fn scales(spec: &Spec, bits: BitWidth, x: &[f64], frozen: Option<&Frozen>) -> Vec<f64> {
    let Spec::MinMaxWeights { granularity } = spec else { return Vec::new() };
    if let Some(frozen) = frozen {
        return frozen.constants.clone();
    }
    let q_max = f64::from(spec.code_range(bits).q_max);
    let length = if *granularity == Granularity::PerTensor { x.len() } else { SHAPE[1] };
    x.chunks(length).map(|row| row.iter().fold(0.0f64, |max, x| max.max(x.abs())) / q_max).collect()
}

/// The real value of a place on the grid, as a function of the surrogate's `v + r`.
fn surrogate(spec: &Spec, bits: BitWidth, x: &[f64], parameters: &[f64], frozen: &Frozen) -> Vec<f64> {
    let n = f64::from(bits.levels() - 1);
    let v = grid(spec, bits, x, parameters, Some(frozen));
    let v = v.iter().zip(&frozen.residuals).map(|(v, r)| v + r);
    match spec {
        Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax if bits.get() == 1 => v.collect(),
        Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax => v.map(|v| 2.0 * v / n - 1.0).collect(),
        Spec::DoReFaActivations => v.map(|v| v / n).collect(),
        Spec::PactActivations { .. } => v.collect(),
        Spec::LsqWeights { .. } | Spec::LsqActivations { .. } => {
            v.enumerate().map(|(idx, v)| v * parameters[group(idx, parameters.len())]).collect()
        }
        Spec::MinMaxWeights { .. } => {
            v.enumerate().map(|(idx, v)| v * frozen.constants[group(idx, frozen.constants.len())]).collect()
        }
        Spec::MinMaxActivations { min, max } => {
            let scale = (f64::from(*max) - f64::from(*min)) / n;
            let zero_point = (-f64::from(*min) / scale).round_ties_even().clamp(0.0, n);
            // Round, then clamp: what is clamped is the rounded code, which a small step does not move. The codes 0 and
            // n are inside, and `v + r` may wander around them.
            let clamped = |code: f64| {
                if (-0.5..=n + 0.5).contains(&code) { code } else { code.clamp(0.0, n) }
            };
            v.map(|v| (clamped(v + zero_point) - zero_point) * scale).collect()
        }
        Spec::Learned { .. } => unreachable!("{ELSEWHERE}"),
    }
}

/// The residuals at the point. PACT's grid is in units of the input: its residual is that of the value.
fn freeze(spec: &Spec, bits: BitWidth, x: &[f64], parameters: &[f64]) -> Frozen {
    let n = f64::from(bits.levels() - 1);
    let v = grid(spec, bits, x, parameters, None);
    let max = x.iter().fold(0.0f64, |max, x| max.max(x.tanh().abs()));
    let mean = x.iter().map(|x| x.abs()).sum::<f64>() / x.len() as f64;
    let sign = |v: f64| if v < 0.0 { -1.0 } else { 1.0 };
    let round = |v: f64| match spec {
        Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax if bits.get() == 1 => sign(v) * mean,
        Spec::LsqWeights { .. } if bits.get() == 1 => sign(v),
        Spec::PactActivations { .. } => (v / parameters[0] * n).round_ties_even() / n * parameters[0],
        _ => v.round_ties_even(),
    };
    let constants = match spec {
        Spec::DoReFaWeightsDetachedMax => vec![max],
        _ => scales(spec, bits, x, None),
    };
    Frozen { residuals: v.iter().map(|&v| round(v) - v).collect(), constants }
}

/// Whether element `idx` is near a tie, an edge or the sign's jump.
fn is_near_a_kink(spec: &Spec, bits: BitWidth, x: &[f64], parameters: &[f64], idx: usize) -> bool {
    let n = f64::from(bits.levels() - 1);
    let range = spec.code_range(bits);
    let near = |v: f64, kink: f64| (v - kink).abs() < GUARD;
    // On the code grid without the clamp.
    let place = match spec {
        Spec::DoReFaActivations => x[idx] * n,
        Spec::PactActivations { .. } => x[idx] / parameters[0] * n,
        Spec::LsqWeights { .. } | Spec::LsqActivations { .. } => {
            x[idx] / parameters[group(idx, parameters.len())]
        }
        _ => grid(spec, bits, x, parameters, None)[idx],
    };
    let edges = match spec {
        // Its gradient has no edge. The other edges of min-max activations are ties.
        Spec::MinMaxWeights { .. } | Spec::MinMaxActivations { .. } | Spec::DoReFaWeights => Vec::new(),
        Spec::DoReFaWeightsDetachedMax => Vec::new(),
        _ => vec![f64::from(range.q_min), 0.0, f64::from(range.q_max)],
    };
    near(place - place.floor(), 0.5)
        || x[idx].abs() < GUARD
        || edges.into_iter().any(|edge| near(place, edge))
}

fn sample(spec: &Spec, bits: BitWidth, parameters: &[f64], seed: u64) -> Vec<f32> {
    let mut rng = rng(seed);
    let scale = parameters.first().copied().unwrap_or(1.0) as f32;
    let range = spec.code_range(bits);
    // Some values beyond either edge of the grid.
    let (mean, std) = match spec {
        Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax | Spec::MinMaxWeights { .. } => (0.0, 0.5),
        Spec::DoReFaActivations => (0.5, 0.5),
        Spec::PactActivations { .. } => (0.5 * scale, 0.6 * scale),
        Spec::LsqWeights { .. } => (0.0, scale * range.q_max as f32),
        Spec::LsqActivations { .. } => (0.5 * scale * range.q_max as f32, 0.6 * scale * range.q_max as f32),
        Spec::MinMaxActivations { min, max } => (0.5 * (min + max), 0.6 * (max - min)),
        Spec::Learned { .. } => unreachable!("{ELSEWHERE}"),
    };
    let mut x = normal(N, mean, std, &mut rng);
    loop {
        let double: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let bad: Vec<usize> =
            (0..N).filter(|&idx| is_near_a_kink(spec, bits, &double, parameters, idx)).collect();
        if bad.is_empty() {
            return x;
        }
        for idx in bad {
            x[idx] = normal(1, mean, std, &mut rng)[0];
        }
    }
}

/// Compares the gradients at a random point with the central differences of the surrogate.
fn check(spec: &Spec, bits: BitWidth, seed: u64) {
    let what = format!("{spec:?} at {bits} bits, seed {seed}");
    let parameters = parameters(spec);
    let x = sample(spec, bits, &parameters, seed);
    let weights = normal(N, 0.0, 1.0, &mut rng(seed + 1_000_000));
    let (grad_x, grad_parameter) = gradients(spec, bits, &x, SHAPE, &weights);

    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let frozen = freeze(spec, bits, &x, &parameters);
    let loss = |x: &[f64], parameters: &[f64]| {
        let y = surrogate(spec, bits, x, parameters, &frozen);
        y.iter().zip(&weights).map(|(y, weight)| y * f64::from(*weight)).sum::<f64>()
    };
    let difference = |values: &[f64], idx: usize, loss: &dyn Fn(&[f64]) -> f64| {
        let h = STEP * values[idx].abs().max(0.01);
        let at = |offset: f64| {
            let mut moved = values.to_vec();
            moved[idx] += offset;
            loss(&moved)
        };
        (at(h) - at(-h)) / (2.0 * h)
    };
    let expected: Vec<f64> = (0..N).map(|idx| difference(&x, idx, &|x| loss(x, &parameters))).collect();
    assert_close_f64(&what, &grad_x, &expected, GRADIENT_OF_INPUT);
    let factor = gradient_factor(spec, bits, SHAPE);
    let expected: Vec<f64> =
        (0..parameters.len()).map(|idx| factor * difference(&parameters, idx, &|p| loss(&x, p))).collect();
    assert_close_f64(&format!("{what}: parameter"), &grad_parameter, &expected, GRADIENT_OF_PARAMETER);
}

/// `1 / sqrt(N q_max)` of LSQ, Esser20 section 2.2; N is the number of weights that share a step, or the number of
/// features of a sample.
fn gradient_factor(spec: &Spec, bits: BitWidth, shape: [usize; 2]) -> f64 {
    let q_max = f64::from(spec.code_range(bits).q_max);
    let n = match spec {
        Spec::LsqWeights { step_size, .. } => shape[0] * shape[1] / step_size.len(),
        Spec::LsqActivations { .. } => shape[1],
        _ => return 1.0,
    };
    1.0 / (n as f64 * q_max).sqrt()
}

/// Gradients of `x` and of the learned parameter for the gradient `grad_y` of the result.
fn gradients(
    spec: &Spec,
    bits: BitWidth,
    x: &[f32],
    shape: [usize; 2],
    grad_y: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let device = default_device().autodiff();
    let quantizer = spec.build(bits, &device);
    let x = tensor(x, shape, &device).require_grad();
    let loss = (quantizer.fake_quantize(x.clone()) * tensor(grad_y, shape, &device)).sum();
    let gradients = loss.backward();
    let of_parameters = quantizer.learned().into_iter().flat_map(|(name, parameter)| {
        values(parameter.grad(&gradients).unwrap_or_else(|| panic!("{name} has no gradient")))
    });
    (values(x.grad(&gradients).expect("the input has a gradient")), of_parameters.collect())
}

fn check_all(spec: &Spec, from_bits: u32) {
    for bits in bit_widths().filter(|bits| bits.get() >= from_bits) {
        (0..SEEDS).for_each(|seed| check(spec, bits, seed));
    }
}

#[test]
fn dorefa_weights() {
    check_all(&Spec::DoReFaWeights, 1);
    check_all(&Spec::DoReFaWeightsDetachedMax, 1);
}

#[test]
fn dorefa_activations() {
    check_all(&Spec::DoReFaActivations, 1);
}

#[test]
fn pact_activations() {
    for clip_value in [0.3, 1.0, 2.7, 8.0] {
        check_all(&Spec::PactActivations { clip_value }, 1);
    }
}

#[test]
fn lsq_weights() {
    for step_size in [0.013, 0.5] {
        check_all(&Spec::LsqWeights { step_size: vec![step_size], granularity: Granularity::PerTensor }, 1);
    }
    let step_size = vec![0.11, 0.07, 0.23, 0.05, 0.13, 0.31];
    check_all(&Spec::LsqWeights { step_size, granularity: Granularity::PerChannel }, 1);
}

#[test]
fn lsq_activations() {
    for step_size in [0.013, 0.5] {
        check_all(&Spec::LsqActivations { step_size }, 1);
    }
}

#[test]
fn minmax_weights() {
    check_all(&Spec::MinMaxWeights { granularity: Granularity::PerTensor }, 2);
    check_all(&Spec::MinMaxWeights { granularity: Granularity::PerChannel }, 2);
}

#[test]
fn minmax_activations() {
    for (min, max) in [(0.0, 2.3), (-1.1, 3.0)] {
        check_all(&Spec::MinMaxActivations { min, max }, 1);
    }
}

/// An input at a kink with the gradient that the paper's formula gives there: of the input, and of the parameter
/// before LSQ's factor.
struct Kink {
    spec: Spec,
    bits: u32,
    x: f32,
    grad_x: f64,
    grad_parameter: Option<f64>,
}

fn check_kink(kink: &Kink) {
    let Kink { spec, bits, x, grad_x, grad_parameter } = kink;
    let bits = BitWidth::new(*bits).unwrap();
    let what = format!("{spec:?} at {bits} bits, x = {x:e}");
    let (got_x, got_parameter) = gradients(spec, bits, &[*x], [1, 1], &[1.0]);
    assert_close_f64(&what, &got_x, &[*grad_x], Tolerance::relative(1e-6));
    let factor = gradient_factor(spec, bits, [1, 1]);
    let expected: Vec<f64> = grad_parameter.iter().map(|gradient| gradient * factor).collect();
    assert_close_f64(&format!("{what}: parameter"), &got_parameter, &expected, Tolerance::relative(1e-6));
}

#[test]
fn kinks() {
    let mut kinks = Vec::new();
    let mut add = |spec: &Spec, bits, x: f32, grad_x, grad_parameter| {
        kinks.push(Kink { spec: spec.clone(), bits, x, grad_x, grad_parameter });
    };
    let (up, down) = (f32::next_up, f32::next_down);
    for bits in 1..=8 {
        let n = 2f32.powi(bits as i32) - 1.0;

        // The clip to [0, 1], edges included.
        for (x, inside) in [
            (0.0, 1.0),
            (-0.0, 1.0),
            (1.0, 1.0),
            (up(1.0), 0.0),
            (down(1.0), 1.0),
            (-1e-30, 0.0),
            (1e-30, 1.0),
            (0.5, 1.0),
            (1e6, 0.0),
            (-1e6, 0.0),
        ] {
            add(&Spec::DoReFaActivations, bits, x, inside, None);
        }

        // Choi18 Eq. 3: dy/dx = 1 on [0, a), dy/da = 1 on [a, infinity).
        for a in [0.5, 2.7] {
            let spec = Spec::PactActivations { clip_value: a };
            for (x, grad_x, grad_a) in [
                (0.0, 1.0, 0.0),
                (-0.0, 1.0, 0.0),
                (a, 0.0, 1.0),
                (down(a), 1.0, 0.0),
                (up(a), 0.0, 1.0),
                (-1e-30, 0.0, 0.0),
                (a / 2.0, 1.0, 0.0),
                (1e6, 0.0, 1.0),
                (-1e6, 0.0, 0.0),
            ] {
                add(&spec, bits, x, grad_x, Some(grad_a));
            }
        }

        // Esser20 Eq. 3 and 5, whose inequalities are strict. With a power of two as the step, the places on the grid are exact.
        let s = 0.25;
        let spec = Spec::LsqActivations { step_size: s };
        let top = f64::from(n);
        for (v, grad_x, grad_s) in [
            (0.0, 0.0, 0.0),
            (-0.0, 0.0, 0.0),
            (1e-30, 1.0, -f64::from(1e-30f32)),
            (-1e-30, 0.0, 0.0),
            (n, 0.0, top),
            (down(n), 1.0, top - f64::from(down(n))),
            (up(n), 0.0, top),
            (n + 0.5, 0.0, top),
            (-0.5, 0.0, 0.0),
            (0.5, 1.0, -0.5),
            (n - 0.5, 1.0, (top - 0.5).round_ties_even() - (top - 0.5)),
            (1e6, 0.0, top),
        ] {
            add(&spec, bits, v * s, grad_x, Some(grad_s));
        }
        let spec = Spec::LsqWeights { step_size: vec![s], granularity: Granularity::PerTensor };
        let range = spec.code_range(BitWidth::new(bits).unwrap());
        let (low, high) = (range.q_min as f32, range.q_max as f32);
        let (bottom, top) = (f64::from(low), f64::from(high));
        for (v, grad_x, grad_s) in [
            (low, 0.0, bottom),
            (up(low), 1.0, f64::from(low) - f64::from(up(low))),
            (down(low), 0.0, bottom),
            (high, 0.0, top),
            (down(high), 1.0, f64::from(high) - f64::from(down(high))),
            (up(high), 0.0, top),
            (low - 0.5, 0.0, bottom),
            (high + 0.5, 0.0, top),
            (1e6, 0.0, top),
            (-1e6, 0.0, bottom),
        ] {
            add(&spec, bits, v * s, grad_x, Some(grad_s));
        }
        // A tie rounds to the even code; at 1 bit the code is the sign, +1 at zero.
        let at_zero = if bits == 1 { 1.0 } else { 0.0 };
        let at_minus_half = if bits == 1 { -0.5 } else { 0.5 };
        add(&spec, bits, 0.0, 1.0, Some(at_zero));
        add(&spec, bits, -0.0, 1.0, Some(at_zero));
        add(&spec, bits, -0.5 * s, 1.0, Some(at_minus_half));

        // Round, then clamp: beyond the last code by half a step, the tie goes to an even code, in or out of the grid.
        let spec = Spec::MinMaxActivations { min: 0.0, max: n * s };
        let tie_is_inside = f64::from((n + 0.5).round_ties_even() <= n);
        for (v, grad_x) in [
            (0.0, 1.0),
            (-0.5, 1.0),
            (down(-0.5), 0.0),
            (n, 1.0),
            (n + 0.5, tie_is_inside),
            (down(n + 0.5), 1.0),
            (up(n + 0.5), 0.0),
            (1e6, 0.0),
            (-1e6, 0.0),
        ] {
            add(&spec, bits, v * s, grad_x, None);
        }

        // The only weight is the maximum: z = 1 or 0 whatever it is. With the maximum detached, 1 / max (1 - max^2).
        if bits > 1 {
            for w in [0.3f32, -0.3] {
                let t = f64::from(w).tanh().abs();
                add(&Spec::DoReFaWeightsDetachedMax, bits, w, (1.0 - t * t) / t, None);
                add(&Spec::MinMaxWeights { granularity: Granularity::PerTensor }, bits, w, 1.0, None);
            }
            // All weights zero: z = tanh(w) + 1/2, so that a dead layer can recover.
            add(&Spec::DoReFaWeights, bits, 0.0, 2.0, None);
            add(&Spec::MinMaxWeights { granularity: Granularity::PerTensor }, bits, 0.0, 1.0, None);
        } else {
            for w in [0.0, -0.0, 1e6, -0.3] {
                add(&Spec::DoReFaWeights, bits, w, 1.0, None);
            }
        }
    }
    assert!(kinks.len() > 400, "{}", kinks.len());
    kinks.iter().for_each(check_kink);
}

/// The gradient of the one weight of a tensor through its own maximum cancels.
#[test]
fn dorefa_maximum_has_no_gradient() {
    for bits in bit_widths().filter(|bits| bits.get() > 1) {
        let (gradient, _) = gradients(&Spec::DoReFaWeights, bits, &[0.3], [1, 1], &[1.0]);
        // Two terms of 1 / max = 3.4 cancel up to rounding.
        assert!(gradient[0].abs() < 4.0 * 3.4 * f32::EPSILON, "{bits} bits: {gradient:?}");
    }
}
