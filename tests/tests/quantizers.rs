//! Parts of lowbit-quantizers on their own. They are tested here because a crate's own tests compile all of it a second time, and
//! these formulas take minutes.

use burn::tensor::{Device, Distribution, Tensor};
use globset::Glob;
use lowbit_quantizers::methods::{hwgq, pact};
use lowbit_quantizers::{
    BitWidth, Granularity, LayerMut, LayerOverride, LayerQuantization, LayerRole, Method, Precision,
    PrecisionFloor, Purpose, QuantConv2d, QuantConv2dConfig, QuantizationPolicy, is_quantizer_state, stream,
};

#[test]
fn state_of_quantizers_is_told_from_weights() {
    for path in [
        "stem.weight_quantizer.step_size",
        "fc.input_quantizer.running_max",
        "mine.clip_value",
        "step_size",
        "mine.recorded_bits",
        "mine.running_min",
        "mine.running_max",
        "mine.log2_threshold",
        "interval_upper",
    ] {
        assert!(is_quantizer_state(path), "{path}");
    }
    for path in [
        "stem.weight",
        "stages.0.0.norm1.gamma",
        "fc.bias",
        "step_size.weight",
        "norm.running_var",
        "prelu.alpha",
        "basis",
    ] {
        assert!(!is_quantizer_state(path), "{path}");
    }
}

fn bits(bits: u32) -> Precision {
    Precision::bits(bits).unwrap()
}

#[test]
fn roles_then_patterns_in_order() {
    let mut policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, bits(2), bits(2)));
    let weights = |n| LayerOverride { weight_bits: Some(bits(n)), ..LayerOverride::default() };
    policy.shortcut = weights(8);
    policy.patterns = vec![
        (Glob::new("stages.1.**").unwrap(), weights(4)),
        (Glob::new("stages.*.0.conv1").unwrap(), weights(3)),
    ];
    let resolved = |path, role| policy.resolve(path, role).weight_bits;
    assert_eq!(resolved("stem", LayerRole::First), Precision::FullPrecision);
    assert_eq!(resolved("stages.0.1.conv1", LayerRole::Hidden), bits(2));
    assert_eq!(resolved("stages.0.0.conv1", LayerRole::Hidden), bits(3));
    assert_eq!(resolved("stages.0.0.shortcut", LayerRole::Shortcut), bits(8));
    assert_eq!(resolved("stages.1.0.shortcut", LayerRole::Shortcut), bits(4));
    assert_eq!(resolved("stages.1.0.conv1", LayerRole::Hidden), bits(3));
    assert_eq!(resolved("stages.1.0.conv2", LayerRole::Hidden), bits(4));
    let raised =
        policy.with_floor(PrecisionFloor { weight_bits: bits(4), act_bits: Precision::FullPrecision });
    let resolved = |path, role| raised.resolve(path, role);
    assert_eq!(resolved("stages.0.0.conv1", LayerRole::Hidden).weight_bits, bits(4));
    assert_eq!(resolved("stages.0.0.shortcut", LayerRole::Shortcut).weight_bits, bits(8));
    assert_eq!(resolved("stages.0.0.shortcut", LayerRole::Shortcut).act_bits, Precision::FullPrecision);
    let paths = ["stem".to_string(), "stages.0.0.conv1".to_string()];
    assert_eq!(policy.unmatched_patterns(&paths), ["stages.1.**"]);
}

/// What is asked for at any level lasts through full precision on the way.
#[test]
fn granularity_survives_full_precision_in_between() {
    let quantization = LayerQuantization {
        weight_granularity: Granularity::PerChannel,
        ..LayerQuantization::new(Method::Lsq, bits(2), bits(2))
    };
    let mut policy = QuantizationPolicy::new(quantization);
    let change = |glob: &str, weight_bits| {
        let change = LayerOverride { weight_bits: Some(weight_bits), ..LayerOverride::default() };
        (Glob::new(glob).unwrap(), change)
    };
    let resolved = |policy: &QuantizationPolicy, path: &str, role| {
        let LayerQuantization { weight_bits, weight_granularity, .. } = policy.resolve(path, role);
        (weight_bits, weight_granularity)
    };
    // A role in full precision, then a pattern; a pattern in full precision, then another.
    policy.patterns = vec![
        change("stem", bits(8)),
        change("stages.**", Precision::FullPrecision),
        change("stages.1.**", bits(4)),
    ];
    assert_eq!(resolved(&policy, "stem", LayerRole::First), (bits(8), Granularity::PerChannel));
    assert_eq!(resolved(&policy, "stages.1.0.conv1", LayerRole::Hidden), (bits(4), Granularity::PerChannel));
    // Full precision in the end has no granularity.
    let full = (Precision::FullPrecision, Granularity::PerTensor);
    assert_eq!(resolved(&policy, "stages.0.0.conv1", LayerRole::Hidden), full);
    assert_eq!(resolved(&policy, "fc", LayerRole::Last), full);
    // A rung in full precision forgets nothing either.
    let floor = |weight_bits| PrecisionFloor { weight_bits, act_bits: bits(8) };
    let raised = policy.with_floor(floor(Precision::FullPrecision));
    assert_eq!(resolved(&raised, "stem", LayerRole::First), full);
    let lower = raised.with_floor(floor(bits(3)));
    assert_eq!(resolved(&lower, "stem", LayerRole::First), (bits(8), Granularity::PerChannel));
    // A base in full precision neither.
    policy.base.weight_bits = Precision::FullPrecision;
    assert_eq!(resolved(&policy, "stem", LayerRole::First), (bits(8), Granularity::PerChannel));
}

fn quantizations() -> [LayerQuantization; 2] {
    [2, 4].map(|bits| {
        let bits = Precision::bits(bits).unwrap();
        LayerQuantization::new(Method::DoReFa, bits, bits)
    })
}

fn conv(quantization: LayerQuantization, device: &Device) -> QuantConv2d {
    let mut rng = stream(0, Purpose::InitialWeights, 0, 0);
    QuantConv2dConfig::new([3, 4], 3).with_quantization(quantization).init(device, &mut rng).unwrap()
}

fn mixed(shares: [f32; 2], device: &Device) -> (QuantConv2d, [Tensor<1>; 2]) {
    let mut conv = conv(LayerQuantization::FULL_PRECISION, device);
    let shares = shares.map(|share| {
        let share = Tensor::<1>::from_floats([share], device);
        if device.is_autodiff() { share.require_grad() } else { share }
    });
    LayerMut::Conv(&mut conv).mix(&quantizations()).unwrap();
    let both = shares.iter().cloned().enumerate().collect();
    LayerMut::Conv(&mut conv).mixture().unwrap().set_shares(both);
    (conv, shares)
}

fn input(device: &Device) -> Tensor<4> {
    Tensor::random([2, 3, 5, 5], Distribution::Uniform(0.0, 1.0), device)
}

#[test]
fn one_share_alone_is_the_layer_at_these_bits() {
    let device = Device::default();
    let x = input(&device);
    for (place, quantization) in quantizations().into_iter().enumerate() {
        let mut shares = [0.0; 2];
        shares[place] = 1.0;
        let got = mixed(shares, &device).0.forward(x.clone()).into_data();
        let expected = conv(quantization, &device).forward(x.clone()).into_data();
        got.assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-5));
    }
}

#[test]
fn shares_have_the_gradient_of_finite_differences() {
    let device = Device::default();
    let x = input(&device);
    let loss = |shares: [f32; 2]| -> f64 {
        let output = mixed(shares, &device).0.forward(x.clone());
        f64::from((output.clone() * output).mean().into_scalar::<f32>())
    };
    let autodiff = device.clone().autodiff();
    let (conv, leaves) = mixed([0.75, 0.25], &autodiff);
    let output = conv.forward(Tensor::from_inner(x.clone()));
    let gradients = (output.clone() * output).mean().backward();
    for (place, leaf) in leaves.iter().enumerate() {
        let at = |by: f32| {
            let mut shares = [0.75, 0.25];
            shares[place] += by;
            loss(shares)
        };
        let expected = (at(0.01) - at(-0.01)) / 0.02;
        let got = f64::from(leaf.grad(&gradients).unwrap().into_scalar::<f32>());
        assert!((got - expected).abs() < 1e-2 * expected.abs(), "{got} {expected}");
    }
}

#[test]
fn steps_have_the_least_squared_error_for_a_half_normal_distribution() {
    let x: Vec<f64> = (0..60_000).map(|i| (f64::from(i) + 0.5) * 1e-4).collect();
    for (bits, step) in (1..).zip(hwgq::STEPS) {
        let n = f64::from((1 << bits) - 1);
        let error = |step: f64| -> f64 {
            let squared = |x: f64| ((x / step).round_ties_even().clamp(1.0, n) * step - x).powi(2);
            x.iter().map(|&x| squared(x) * (-x * x / 2.0).exp()).sum()
        };
        let [least, below, above] = [1.0, 0.998, 1.002].map(|factor| error(f64::from(step) * factor));
        assert!(least < below && least < above, "{bits} bits: {below} {least} {above}");
    }
}

/// Quantiles of the positive half of a normal distribution, by the midpoint rule: values with their density.
fn half_normal() -> Vec<[f64; 2]> {
    let value = |i: i32| (f64::from(i) + 0.5) * 6.0 / 3000.0;
    (0..3000).map(value).map(|x| [x, (-x * x / 2.0).exp()]).collect()
}

fn mean(f: impl Fn(f64) -> f64) -> f64 {
    let values = half_normal();
    let weight: f64 = values.iter().map(|[_, density]| density).sum();
    values.iter().map(|[x, density]| f(*x) * density).sum::<f64>() / weight
}

#[test]
fn calibrated_clip_values_have_the_least_squared_error() {
    let ratio = mean(|x| x * x) / mean(|x| x);
    for bits in BitWidth::ALL {
        let n = f64::from(bits.levels() - 1);
        let error = |clip: f64| mean(|x| ((x.min(clip) / clip * n).round_ties_even() / n * clip - x).powi(2));
        let clip = pact::CLIP_PER_RATIO[bits.get() as usize - 1] * ratio;
        let [least, below, above] = [1.0, 0.97, 1.03].map(|factor| error(clip * factor));
        assert!(least < below && least < above, "{bits} bits: {below} {least} {above}");
    }
}
