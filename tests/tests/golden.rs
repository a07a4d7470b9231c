//! Every quantizer against the numbers of PyTorch in `golden/`, on every backend.

use burn::tensor::Tensor;
use lowbit_core::Granularity;
use lowbit_quantizers::Method;
use lowbit_tests::golden::{Operand, QuantizerCase, QuantizerFile, load};
use lowbit_tests::{Backend, Spec, Tolerance, assert_close, backends, integers, tensor, values};

/// Another order of the same few operations moves the largest values by some ulp, the small ones by as much.
const VALUE: Tolerance = Tolerance::relative(4.0 * f32::EPSILON as f64);

/// The vectors compute DoReFa weights as `2 (code / n) - 1`: near zero an ulp of 1 is left of the difference.
const DOREFA_WEIGHT: Tolerance = Tolerance { absolute: f32::EPSILON as f64, ..VALUE };

/// The gradient of DoReFa weights is a difference of products with a sum over all weights; the others are masks.
/// PyTorch's own float32 gradients are up to 3e-6 from their closed form.
const GRADIENT_OF_INPUT: Tolerance = Tolerance { relative: 4e-6, absolute: 1e-6 };

/// The slope of DSQ's staircase depends on the place within a step, of which single precision leaves fewer digits the more steps there
/// are: PyTorch's own gradients are up to 2.5e-5 from their closed form at 8 bits.
const GRADIENT_OF_STAIRCASE: Tolerance = Tolerance { relative: 1e-4, absolute: 1e-6 };

/// Normal equations in single precision, whose matrix has an eigenvalue of 1e-4 where digits are alike in all codes.
const BASIS: Tolerance = Tolerance { relative: 1e-3, absolute: 1e-4 };

/// What a method takes from another one: DoReFa's weights and activations, XNOR's weights.
const OF_OTHERS: [(Method, Operand); 3] =
    [(Method::Pact, Operand::Weights), (Method::Hwgq, Operand::Weights), (Method::Twn, Operand::Activations)];

/// Two long sums of opposite sign (inside and outside the clip range) that nearly cancel: PyTorch's own are up to 2e-5
/// from their closed form.
const GRADIENT_OF_PARAMETER: Tolerance = Tolerance { relative: 1e-4, absolute: 1e-6 };

#[test]
fn dorefa() {
    check("dorefa", 65);
}

#[test]
fn pact() {
    check("pact", 24);
}

#[test]
fn lsq() {
    check("lsq", 48);
}

#[test]
fn minmax() {
    check("minmax", 56);
}

#[test]
fn ewgs() {
    check("ewgs", 27);
}

#[test]
fn lsq_plus() {
    check("lsq-plus", 35);
}

#[test]
fn tqt() {
    check("tqt", 27);
}

#[test]
fn apot() {
    check("apot", 18);
}

#[test]
fn hwgq() {
    check("hwgq", 32);
}

#[test]
fn xnor() {
    check("xnor", 44);
}

#[test]
fn twn() {
    check("twn", 22);
}

#[test]
fn n2uq() {
    check("n2uq", 68);
}

#[test]
fn qil() {
    check("qil", 89);
}

#[test]
fn dsq() {
    check("dsq", 92);
}

/// LQ-Nets, by its formula: the basis of a quantizer is found from what it quantizes.
#[test]
fn lq_nets() {
    let QuantizerFile { cases, .. } = load("lq-nets");
    assert_eq!(cases.len(), 76);
    for backend in backends() {
        for case in &cases {
            let what = format!("lq-nets {} on {}", case.name, backend.name);
            match *case.shape.as_slice() {
                [a] => check_lq_nets(&what, case, &backend, [a]),
                [a, b] => check_lq_nets(&what, case, &backend, [a, b]),
                [a, b, c, d] => check_lq_nets(&what, case, &backend, [a, b, c, d]),
                _ => panic!("{what}: unexpected rank"),
            }
        }
    }
}

fn check_lq_nets<const D: usize>(what: &str, case: &QuantizerCase, backend: &Backend, shape: [usize; D]) {
    use lowbit_quantizers::methods::lq_nets;
    let is_signed = case.operand == Operand::Weights;
    // The first basis value of every channel, then the second of every channel.
    let basis = |device: &_| -> Vec<Tensor<1>> {
        let all = &case.params["basis"];
        let n = all.len() / case.bits as usize;
        all.chunks(n).map(|values| tensor(values, [n], device)).collect()
    };
    let x = tensor(&case.x, shape, &backend.device);
    let scheme = lq_nets::scheme(basis(&backend.device), is_signed);
    assert_eq!(integers(scheme.codes(x.clone())), case.codes, "{what}: codes");
    let y = values(scheme.quantize(x.clone()).into_values());
    assert_close(&format!("{what}: y"), &y, &case.y, VALUE);
    let expected = case.updated_basis.as_ref().expect("every case has it");
    let fitted = lq_nets::fitted(&x, &scheme, case.granularity, is_signed);
    let moved: Vec<f32> = (basis(&backend.device).into_iter().zip(fitted))
        .flat_map(|(old, new)| values(old * 0.9 + new * 0.1))
        .collect();
    assert_close(&format!("{what}: basis"), &moved, expected, BASIS);

    let device = backend.device.clone().autodiff();
    let x = tensor(&case.x, shape, &device).require_grad();
    let output = lq_nets::scheme(basis(&device), is_signed).quantize(x.clone()).into_values();
    let gradients = (output * tensor(&case.grad_y, shape, &device)).sum().backward();
    let grad_x = values(x.grad(&gradients).expect("the input has a gradient"));
    assert_close(&format!("{what}: gradient"), &grad_x, &case.grad_x, GRADIENT_OF_INPUT);
}

/// Each method has its vectors.
#[test]
fn no_method_is_left_out() {
    for method in Method::ALL {
        let QuantizerFile { method: of_file, cases } = load(method.name());
        assert_eq!(of_file, *method);
        for operand in [Operand::Weights, Operand::Activations] {
            let is_there = cases.iter().any(|case| case.operand == operand);
            assert_eq!(is_there, !OF_OTHERS.contains(&(*method, operand)), "{method} {operand:?}");
        }
    }
}

fn check(file: &str, n_cases: usize) {
    let QuantizerFile { method, cases } = load(file);
    assert_eq!(cases.len(), n_cases, "{file} is incomplete");
    for backend in backends() {
        for case in &cases {
            let what = format!("{file} {} on {}", case.name, backend.name);
            match *case.shape.as_slice() {
                [a] => check_case(&what, method, case, &backend, [a]),
                [a, b] => check_case(&what, method, case, &backend, [a, b]),
                [a, b, c, d] => check_case(&what, method, case, &backend, [a, b, c, d]),
                _ => panic!("{what}: unexpected rank"),
            }
        }
    }
}

fn spec(method: Method, case: &QuantizerCase) -> Spec {
    let parameter = |name: &str| case.params[name].clone();
    match (method, case.operand) {
        (Method::DoReFa, Operand::Weights) if case.options.detached_max => Spec::DoReFaWeightsDetachedMax,
        (Method::DoReFa | Method::Pact, Operand::Weights) => Spec::DoReFaWeights,
        (Method::DoReFa, Operand::Activations) => Spec::DoReFaActivations,
        (Method::Pact, Operand::Activations) => {
            Spec::PactActivations { clip_value: parameter("clip_value")[0] }
        }
        (Method::Lsq, Operand::Weights) => {
            Spec::LsqWeights { step_size: parameter("step_size"), granularity: case.granularity }
        }
        (Method::Lsq, Operand::Activations) => Spec::LsqActivations { step_size: parameter("step_size")[0] },
        (Method::MinMax, Operand::Weights) => Spec::MinMaxWeights { granularity: case.granularity },
        (Method::MinMax, Operand::Activations) => {
            Spec::MinMaxActivations { min: parameter("min")[0], max: parameter("max")[0] }
        }
        (method, operand) => Spec::Learned {
            method,
            operand: match operand {
                Operand::Weights => lowbit_quantizers::Operand::Weights,
                Operand::Activations => lowbit_quantizers::Operand::Activations,
            },
            granularity: case.granularity,
            parameters: case.params.clone(),
        },
    }
}

fn check_case<const D: usize>(
    what: &str,
    method: Method,
    case: &QuantizerCase,
    backend: &Backend,
    shape: [usize; D],
) {
    let spec = spec(method, case);
    let evaluate = spec.build(case.bit_width(), &backend.device);
    let x = tensor(&case.x, shape, &backend.device);
    let codes = case.codes(method);
    assert_eq!(integers(evaluate.codes(x.clone())), codes, "{what}: codes");
    let y = values(evaluate.fake_quantize(x.clone()));
    let tolerance = match spec {
        Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax => DOREFA_WEIGHT,
        _ => VALUE,
    };
    assert_close(&format!("{what}: y"), &y, &case.y, tolerance);
    let grid = evaluate.grid(x);
    assert_close(&format!("{what}: values of the codes"), &grid.dequantize_all(&codes), &case.y, tolerance);
    if let Some(expected) = &case.qparams {
        assert_eq!(grid.parts(), 1, "{what}");
        assert_close(&format!("{what}: scale"), grid.units(), &expected.scale, VALUE);
        assert!(expected.zero_point.iter().all(|&code| code == grid.zero_point()), "{what}: zero point");
    }

    let device = backend.device.clone().autodiff();
    let train = spec.build(case.bit_width(), &device);
    let x = tensor(&case.x, shape, &device).require_grad();
    assert_eq!(integers(train.codes(x.clone())), codes, "{what}: codes in training");
    let output = train.fake_quantize(x.clone());
    assert_eq!(values(output.clone()), y, "{what}: training and evaluation differ");
    let gradients = (output * tensor(&case.grad_y, shape, &device)).sum().backward();
    let grad_x = values(x.grad(&gradients).expect("the input has a gradient"));
    check_gradient_of_input(what, method, case, &grad_x);
    let learned = train.learned();
    assert_eq!(learned.len(), case.grad_params.len(), "{what}: number of learned parameters");
    for (name, parameter) in learned {
        let gradient = values::<1>(parameter.grad(&gradients).expect("the parameter has a gradient"));
        assert_close(&format!("{what}: {name}"), &gradient, &case.grad_params[name], GRADIENT_OF_PARAMETER);
    }
}

fn check_gradient_of_input(what: &str, method: Method, case: &QuantizerCase, got: &[f32]) {
    let what = format!("{what}: gradient");
    if !case.options.tied_max {
        let expected = case.grad_x_identity.as_ref().unwrap_or(&case.grad_x);
        let tolerance = if method == Method::Dsq { GRADIENT_OF_STAIRCASE } else { GRADIENT_OF_INPUT };
        return assert_close(&what, got, expected, tolerance);
    }
    // The vectors share the maximum's gradient among the weights that attain it, a backend may give it to one of them:
    // what all must agree on is its total, signed as the weights are because it is that of |tanh(w)|.
    let largest = case.x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let split = |gradient: &[f32]| {
        let (tied, rest): (Vec<_>, Vec<_>) =
            case.x.iter().zip(gradient).partition(|(x, _)| x.abs() == largest);
        let total: f32 = tied.iter().map(|(x, gradient)| x.signum() * **gradient).sum();
        let mut parts: Vec<f32> = rest.iter().map(|(_, gradient)| **gradient).collect();
        parts.push(total);
        parts
    };
    assert_close(&what, &split(got), &split(&case.grad_x), GRADIENT_OF_INPUT);
}

/// The initial step sizes of LSQ: `2 mean|w| / sqrt(q_max)`, Esser20 section 2.1.
#[test]
fn lsq_initial_step_size() {
    use lowbit_core::BitWidth;
    use lowbit_quantizers::methods::lsq::LsqWeights;
    let w = [[1.0, -3.0], [0.5, 0.0], [0.0, 0.0]];
    let root = 3f32.sqrt();
    for Backend { name, device } in backends() {
        let step = |granularity| {
            let w = Tensor::<2>::from_floats(w, &device);
            values(LsqWeights::new(BitWidth::new(3).unwrap(), granularity, w).step_size.val())
        };
        let expected = [2.0 * 4.5 / 6.0 / root];
        assert_close(name, &step(Granularity::PerTensor), &expected, VALUE);
        // A channel of zeros gets a step of 1.
        let expected = [2.0 * 2.0 / root, 2.0 * 0.25 / root, 1.0];
        assert_close(name, &step(Granularity::PerChannel), &expected, VALUE);
    }
}
