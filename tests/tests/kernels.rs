//! The kernels of the CPU backends against the same operations made of burn's own, which other backends run, and against
//! functions of tensors with burn's own gradients: every operation with its gradients, whole networks, and steps of a training.
//!
//! Which of them runs is a switch of the whole process: every test holds a lock.

use std::sync::{Mutex, MutexGuard};

use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::activation::relu as burn_relu;
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor};
use lowbit_core::{BitWidth, Compute, Precision};
use lowbit_data::{DatasetName, LabelKind, Locations, Split, open};
use lowbit_kernels::testing::{Implementation, use_implementation};
use lowbit_kernels::{
    Activation, AnyFormula, GradientQuantizer, MaxGradient, MaxPool, Quantized, StepArithmetic, batch_norm,
    conv2d, dorefa_weights, max_pool2d, relu, relu_of_sum, value_range,
};
use lowbit_models::{Family, InputShape, ModelConfig, Network};
use lowbit_quantizers::methods::dorefa::Squashed;
use lowbit_quantizers::{
    ActivationQuantizer, LayerQuantization, Method, QuantConv2dConfig, QuantLinear, QuantLinearConfig,
    QuantizationPolicy, QuantizedNetwork, Selection,
};
use lowbit_strategies::loss::{cross_entropy, mean_square, target_probabilities};
use lowbit_tests::composed::{self, After, Grid};
use lowbit_tests::{
    Backend, Tolerance, assert_close, assert_close_f64, backends, default_device, excess, gradients, normal,
    rng, tensor, values,
};

/// Sums of up to some thousand products, added up in another order.
const SUMS: Tolerance = Tolerance { relative: 4e-6, absolute: 1e-6 };

const FP32: Compute = Compute::Fp32;

static SWITCH: Mutex<()> = Mutex::new(());

/// What computes the same in other ways.
const OTHERS: [Implementation; 1] = [Implementation::Reference];

/// `x` on the grid of DoReFa activations with `n` steps.
fn unit<const D: usize>(x: Tensor<D>, n: f32) -> Quantized<D> {
    Grid::Unit { n }.scheme(Vec::new()).quantize(x)
}

/// DoReFa weights on a grid of `n` steps, with their codes.
fn dorefa<const D: usize>(w: Tensor<D>, n: f32) -> Quantized<D> {
    dorefa_with(w, n, MaxGradient::Detached)
}

fn dorefa_with<const D: usize>(w: Tensor<D>, n: f32, max_gradient: MaxGradient) -> Quantized<D> {
    dorefa_weights(w, AnyFormula::new(Squashed { n }), -(n as i32)..=n as i32, max_gradient)
}

/// Holds the lock, and ends with the kernels chosen again.
struct Switch {
    _lock: MutexGuard<'static, ()>,
}

impl Switch {
    /// With the kernels.
    fn lock() -> Self {
        Self { _lock: SWITCH.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        use_implementation(Implementation::Kernels);
    }
}

/// Runs `case` with the kernels and with other implementations.
fn with_kernels_and<T, const N: usize>(
    others: [Implementation; N],
    case: impl Fn() -> T,
) -> (T, [(Implementation, T); N]) {
    let _switch = Switch::lock();
    let kernels = case();
    let others = others.map(|implementation| {
        use_implementation(implementation);
        (implementation, case())
    });
    (kernels, others)
}

/// The backends that have all kernels.
fn cpu_backends() -> impl Iterator<Item = Backend> {
    backends().into_iter().filter(|backend| ["flex", "ndarray"].contains(&backend.name))
}

/// What an operation yields for these inputs, and the gradients of all of them for a fixed gradient of the result.
fn differentiate<const D: usize>(
    inputs: &[(Vec<f32>, Vec<usize>)],
    device: &Device,
    operation: impl Fn(&[Tensor<1>]) -> Tensor<D>,
) -> Vec<Vec<f32>> {
    let device = device.clone().autodiff();
    let inputs: Vec<Tensor<1>> =
        inputs.iter().map(|(x, _)| tensor::<1>(x, [x.len()], &device).require_grad()).collect();
    let output = operation(&inputs);
    let n = output.shape().num_elements();
    let factors: Tensor<D> =
        tensor::<1>(&normal(n, 0.0, 1.0, &mut rng(99)), [n], &device).reshape(output.shape());
    let all = (output.clone() * factors).sum().backward();
    let gradients = inputs.iter().map(|input| values(input.grad(&all).expect("every input has a gradient")));
    std::iter::once(values(output)).chain(gradients).collect()
}

/// Compares an operation of tensors of these shapes, of normal values moved and scaled as given.
fn check<const D: usize>(what: &str, shapes: &[Drawn<'_>], operation: impl Fn(&[Tensor<1>]) -> Tensor<D>) {
    for backend in cpu_backends() {
        for seed in 0..3 {
            let mut rng = rng(seed);
            let inputs: Vec<(Vec<f32>, Vec<usize>)> = shapes
                .iter()
                .map(|(shape, mean, std)| {
                    (normal(shape.iter().product(), *mean, *std, &mut rng), shape.to_vec())
                })
                .collect();
            let case = || differentiate(&inputs, &backend.device, &operation);
            let (kernels, others) = with_kernels_and(OTHERS, case);
            for (implementation, other) in others {
                for (i, (got, expected)) in kernels.iter().zip(&other).enumerate() {
                    let part = if i == 0 { "result".into() } else { format!("gradient of input {}", i - 1) };
                    let case = format!("{what} on {}, seed {seed}", backend.name);
                    assert_close(&format!("{case}, {implementation:?}: {part}"), got, expected, SUMS);
                }
            }
        }
    }
}

struct Conv {
    input: [usize; 4],
    weight: [usize; 4],
    stride: usize,
    padding: usize,
    groups: usize,
}

const CONVS: [Conv; 14] = [
    Conv { input: [2, 3, 8, 8], weight: [16, 3, 3, 3], stride: 1, padding: 1, groups: 1 },
    Conv { input: [3, 16, 9, 7], weight: [20, 16, 3, 3], stride: 2, padding: 1, groups: 1 },
    Conv { input: [2, 5, 11, 11], weight: [7, 5, 5, 5], stride: 1, padding: 2, groups: 1 },
    Conv { input: [2, 8, 6, 6], weight: [12, 8, 1, 1], stride: 2, padding: 0, groups: 1 },
    Conv { input: [1, 3, 30, 30], weight: [8, 3, 7, 7], stride: 2, padding: 3, groups: 1 },
    Conv { input: [1, 3, 40, 40], weight: [6, 3, 11, 11], stride: 4, padding: 2, groups: 1 },
    Conv { input: [2, 6, 8, 8], weight: [6, 1, 3, 3], stride: 1, padding: 1, groups: 6 },
    Conv { input: [2, 6, 9, 7], weight: [6, 1, 3, 3], stride: 2, padding: 1, groups: 6 },
    Conv { input: [2, 6, 7, 7], weight: [12, 2, 5, 5], stride: 1, padding: 2, groups: 3 },
    Conv { input: [2, 8, 8, 8], weight: [16, 4, 3, 3], stride: 1, padding: 1, groups: 2 },
    Conv { input: [2, 3, 8, 9], weight: [5, 3, 2, 2], stride: 2, padding: 0, groups: 1 },
    Conv { input: [2, 6, 7, 8], weight: [18, 6, 4, 4], stride: 1, padding: 1, groups: 1 },
    Conv { input: [1, 1, 1, 1], weight: [1, 1, 1, 1], stride: 1, padding: 0, groups: 1 },
    Conv { input: [1, 2, 1, 1], weight: [3, 2, 3, 3], stride: 1, padding: 1, groups: 1 },
];

#[test]
fn convolutions_agree() {
    for Conv { input, weight, stride, padding, groups } in CONVS {
        let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], groups);
        for compute in Compute::ALL {
            check(
                &format!("conv {input:?} {weight:?} stride {stride} in {compute}"),
                &[(&input, 0.0, 1.0), (&weight, 0.0, 0.5)],
                |x| {
                    conv2d(
                        x[0].clone().reshape(input),
                        x[1].clone().reshape(weight),
                        options.clone(),
                        compute,
                    )
                },
            );
        }
    }
}

/// Fake-quantized operands, so that the sums are of integers in the kernel and of floats in the reference.
#[test]
fn convolutions_of_codes_agree() {
    for Conv { input, weight, stride, padding, groups } in CONVS {
        for (n_input, n_weight) in [(1.0f32, 1.0f32), (3.0, 3.0), (15.0, 15.0), (255.0, 127.0)] {
            let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], groups);
            let what =
                format!("conv {input:?} {weight:?} stride {stride} of codes up to {n_input}, {n_weight}");
            check(&what, &[(&input, 0.5, 0.5), (&weight, 0.0, 0.5)], |x| {
                let x_q = unit(x[0].clone().reshape(input), n_input);
                conv2d(x_q, dorefa(x[1].clone().reshape(weight), n_weight), options.clone(), FP32)
            });
        }
    }
}

/// The definition, in double precision: `padding` before and after the rows and the columns.
fn definition(
    (x, [batch, channels, height, width]): (&[f32], [usize; 4]),
    (w, [out, _, kernel_height, kernel_width]): (&[f32], [usize; 4]),
    stride: [usize; 2],
    padding: [(usize, usize); 2],
    dilation: [usize; 2],
) -> Vec<f64> {
    let size = |i: usize, size: usize, kernel: usize| {
        (size + padding[i].0 + padding[i].1 - dilation[i] * (kernel - 1) - 1) / stride[i] + 1
    };
    let (rows, columns) = (size(0, height, kernel_height), size(1, width, kernel_width));
    let mut y = Vec::new();
    for idx in 0..batch * out * rows * columns {
        let (image, channel) = (idx / (out * rows * columns), idx / (rows * columns) % out);
        let (row, column) = (idx / columns % rows, idx % columns);
        let mut sum = 0.0;
        for tap in 0..channels * kernel_height * kernel_width {
            let (c, i, j) = (
                tap / (kernel_height * kernel_width),
                tap / kernel_width % kernel_height,
                tap % kernel_width,
            );
            let row =
                (row * stride[0] + i * dilation[0]).checked_sub(padding[0].0).filter(|row| *row < height);
            let column = (column * stride[1] + j * dilation[1])
                .checked_sub(padding[1].0)
                .filter(|column| *column < width);
            if let (Some(row), Some(column)) = (row, column) {
                let x = x[((image * channels + c) * height + row) * width + column];
                sum += f64::from(x) * f64::from(w[channel * channels * kernel_height * kernel_width + tap]);
            }
        }
        y.push(sum);
    }
    y
}

/// The number nearest to `x` of those with 8 significant bits, by another way than that of the kernels.
fn bf16(x: f32) -> f32 {
    if x == 0.0 {
        return x;
    }
    let place = 2f64.powi(f64::from(x).abs().log2().floor() as i32 - 7);
    ((f64::from(x) / place).round_ties_even() * place) as f32
}

/// Result and gradients of a convolution in double precision: the passes may multiply other values of their operands.
fn three_passes(
    Conv { input, weight, stride, padding, groups }: &Conv,
    [x, w, g]: [&[f32]; 3],
) -> [Vec<f64>; 3] {
    let [[batch, channels, height, width], [out, group_in, kernel_height, kernel_width]] = [*input, *weight];
    let size = |size: usize, kernel: usize| (size + 2 * padding - kernel) / stride + 1;
    let (rows, columns) = (size(height, kernel_height), size(width, kernel_width));
    let mut y = vec![0.0; batch * out * rows * columns];
    let (mut of_x, mut of_w) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    for (place, y) in y.iter_mut().enumerate() {
        let (image, channel) = (place / (out * rows * columns), place / (rows * columns) % out);
        let (row, column) = (place / columns % rows, place % columns);
        let first = channel / (out / groups) * group_in;
        for tap in 0..group_in * kernel_height * kernel_width {
            let (c, i, j) = (
                tap / (kernel_height * kernel_width),
                tap / kernel_width % kernel_height,
                tap % kernel_width,
            );
            let row = (row * stride + i).checked_sub(*padding).filter(|row| *row < height);
            let column = (column * stride + j).checked_sub(*padding).filter(|column| *column < width);
            let (Some(row), Some(column)) = (row, column) else { continue };
            let x_place = ((image * channels + first + c) * height + row) * width + column;
            let w_place = channel * group_in * kernel_height * kernel_width + tap;
            let g = g.get(place).map_or(0.0, |g| f64::from(*g));
            *y += f64::from(x[x_place]) * f64::from(w[w_place]);
            of_x[x_place] += g * f64::from(w[w_place]);
            of_w[w_place] += g * f64::from(x[x_place]);
        }
    }
    [y, of_x, of_w]
}

/// In bf16, what has no codes is rounded before it is multiplied, in all three passes; what has some is exact, though its values have
/// more digits.
#[test]
fn convolutions_in_bf16_equal_the_definition() {
    let _switch = Switch::lock();
    for (i, conv) in CONVS.iter().enumerate() {
        let Conv { input, weight, stride, padding, groups } = *conv;
        for have_codes in [[false, false], [true, false], [false, true], [true, true]] {
            let mut rng = rng(i as u64);
            // Where a quantizer passes the gradient as it is.
            let mut draw = |shape: [usize; 4]| -> Vec<f32> {
                let values = normal(shape.iter().product(), 0.5, 0.2, &mut rng);
                values.into_iter().map(|x| x.clamp(0.01, 0.99)).collect()
            };
            let (x, w) = (draw(input), draw(weight));
            for Backend { name, device } in cpu_backends() {
                let device = device.autodiff();
                let what =
                    format!("conv {input:?} {weight:?} stride {stride}, codes {have_codes:?} on {name}");
                let x = tensor::<4>(&x, input, &device).require_grad();
                let w = tensor::<4>(&w, weight, &device).require_grad();
                let quantized = |x: Tensor<4>, i: usize| match have_codes[i] {
                    true => unit(x, [15.0, 7.0][i]),
                    false => x.into(),
                };
                let (x_q, w_q) = (quantized(x.clone(), 0), quantized(w.clone(), 1));
                assert_eq!([x_q.codes().is_some(), w_q.codes().is_some()], have_codes, "{what}");
                let multiplied = [&x_q, &w_q].map(|operand| values(operand.values().clone()));
                let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], groups);
                let y = conv2d(x_q, w_q, options, Compute::Bf16);
                let g = normal(y.shape().num_elements(), 0.0, 1.0, &mut lowbit_tests::rng(98));
                let all = (y.clone() * tensor::<4>(&g, y.dims(), &device)).sum().backward();
                let got = [values(y), values(x.grad(&all).unwrap()), values(w.grad(&all).unwrap())];
                let [x, w] = [0, 1].map(|i| {
                    let values = multiplied[i].iter();
                    values.map(|&x| if have_codes[i] { x } else { bf16(x) }).collect::<Vec<f32>>()
                });
                let g: Vec<f32> = g.into_iter().map(bf16).collect();
                let expected = three_passes(conv, [&x, &w, &g]);
                for (part, (got, expected)) in ["result", "gradient of the input", "gradient of the weights"]
                    .iter()
                    .zip(got.iter().zip(&expected))
                {
                    assert_close_f64(&format!("{what}: {part}"), got, expected, SUMS);
                }
            }
        }
    }
}

/// Gradients `[batch, len]` of few bits by the definition of DoReFa-Net, in double precision, from the noise: with the first key
/// for which no value lies so close to the middle between two codes that single precision may round it to the other one.
fn dorefa_gradient(gradient: &[f32], len: usize, bits: u32) -> (GradientQuantizer, Vec<f32>) {
    let n = 2f64.powi(bits as i32) - 1.0;
    let with_key = |key: u64| {
        let quantizer = GradientQuantizer::new(bits, key);
        let sample = |(sample, g): (usize, &[f32])| {
            let m = g.iter().fold(0.0, |m: f64, g| m.max(f64::from(*g).abs()));
            let value = |(place, g): (usize, &f32)| {
                let noise = f64::from(quantizer.noise(sample, place));
                let position = n * (f64::from(*g) / (2.0 * m) + 0.5) + noise;
                let is_close = (position - position.floor() - 0.5).abs() < 5e-5;
                let code = position.round_ties_even().clamp(0.0, n);
                (!is_close).then_some((2.0 * m * (code / n - 0.5)) as f32)
            };
            g.iter().enumerate().map(value).collect::<Vec<_>>()
        };
        let values: Option<Vec<f32>> = gradient.chunks(len).enumerate().flat_map(sample).collect();
        Some((quantizer, values?))
    };
    (0..100).find_map(with_key).expect("a key with noise that leaves no value in the middle")
}

/// Gradients of few bits are quantized before they are multiplied: input and weights have the gradients that the quantized one gives,
/// whether operands have codes or not, also in bf16, which leaves all codes as they are.
#[test]
fn convolutions_multiply_quantized_gradients() {
    let _switch = Switch::lock();
    for (i, conv) in CONVS.iter().enumerate() {
        let Conv { input, weight, stride, padding, groups } = *conv;
        let size = |i: usize| (input[2 + i] + 2 * padding - weight[2 + i]) / stride + 1;
        let output = [input[0], weight[0], size(0), size(1)];
        let len = output[1..].iter().product();
        for (bits, compute, have_codes) in [
            (8, FP32, [false, false]),
            (2, FP32, [true, true]),
            (1, FP32, [true, false]),
            (6, Compute::Bf16, [true, true]),
            (4, Compute::Bf16, [false, true]),
        ] {
            let mut rng = rng(i as u64);
            let mut draw = |shape: [usize; 4]| -> Vec<f32> {
                let values = normal(shape.iter().product(), 0.5, 0.2, &mut rng);
                values.into_iter().map(|x| x.clamp(0.01, 0.99)).collect()
            };
            let (x, w) = (draw(input), draw(weight));
            let mut g = normal(output[0] * len, 0.0, 1.0, &mut lowbit_tests::rng(97));
            // Samples have their own scales.
            g[..len].iter_mut().for_each(|g| *g *= 5.0);
            let (quantizer, g_q) = dorefa_gradient(&g, len, bits);
            for implementation in [Implementation::Kernels, Implementation::Reference] {
                use_implementation(implementation);
                for Backend { name, device } in cpu_backends() {
                    let device = device.autodiff();
                    let what = format!(
                        "conv {input:?} {weight:?} stride {stride}, {bits} bits in {compute} on {name}, {implementation:?}"
                    );
                    let x = tensor::<4>(&x, input, &device).require_grad();
                    let w = tensor::<4>(&w, weight, &device).require_grad();
                    let quantized = |x: Tensor<4>, i: usize| match have_codes[i] {
                        true => unit(x, [15.0, 7.0][i]),
                        false => x.into(),
                    };
                    let (x_q, w_q) = (quantized(x.clone(), 0), quantized(w.clone(), 1));
                    let operands =
                        [&x_q, &w_q].map(|operand| (values(operand.values().clone()), operand.codes()));
                    let multiplied = operands.map(|(values, codes)| match (compute, codes) {
                        (Compute::Bf16, None) => values.into_iter().map(bf16).collect(),
                        _ => values,
                    });
                    let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], groups);
                    let convolved = |arithmetic: StepArithmetic| {
                        conv2d(x_q.clone(), w_q.clone(), options.clone(), arithmetic)
                    };
                    let y = convolved(StepArithmetic { compute, gradient: Some(quantizer) });
                    let result = values(y.clone());
                    assert_eq!(result, values(convolved(compute.into())), "{what}: the result is the same");
                    let all = (y * tensor::<4>(&g, output, &device)).sum().backward();
                    let gradients = [&x, &w].map(|operand| values(operand.grad(&all).unwrap()));
                    let [x, w] = &multiplied;
                    let [_, of_x, of_w] = three_passes(conv, [x, w, &g_q]);
                    assert_close_f64(&format!("{what}: gradient of the input"), &gradients[0], &of_x, SUMS);
                    assert_close_f64(&format!("{what}: gradient of the weights"), &gradients[1], &of_w, SUMS);
                }
            }
        }
    }
}

/// The same for linear layers: weights, input and bias, whose gradient is the sum of gradients in full precision.
#[test]
fn linear_layers_multiply_quantized_gradients() {
    let _switch = Switch::lock();
    const BATCH: usize = 7;
    let (x, g) = (normal(BATCH * 20, 0.5, 0.2, &mut rng(1)), normal(BATCH * 9, 0.0, 1.0, &mut rng(2)));
    let bits = |bits| Precision::bits(bits).unwrap();
    let fp32 = Precision::FullPrecision;
    let none = LayerQuantization::FULL_PRECISION;
    for (n, quantization) in [
        (8, LayerQuantization::new(Method::DoReFa, bits(2), bits(2))),
        (3, LayerQuantization::new(Method::DoReFa, fp32, bits(2))),
        (2, LayerQuantization::new(Method::DoReFa, bits(4), fp32)),
        (4, none),
    ] {
        let (quantizer, g_q) = dorefa_gradient(&g, 9, n);
        for Backend { name, device } in cpu_backends() {
            let device = device.autodiff();
            let what = format!("{quantization:?} on {name}");
            let config = QuantLinearConfig::new(20, 9).with_quantization(quantization);
            let mut layer = config.init(&device, &mut rng(3)).unwrap();
            let step = |layer: &QuantLinear, g: &[f32]| {
                let x = tensor::<2>(&x, [BATCH, 20], &device).require_grad();
                let y = layer.forward(x.clone());
                let all = (y.clone() * tensor::<2>(g, [BATCH, 9], &device)).sum().backward();
                let bias = layer.bias.as_ref().unwrap().val().grad(&all).unwrap();
                [
                    values(y),
                    values(x.grad(&all).unwrap()),
                    values(layer.weight.val().grad(&all).unwrap()),
                    values(bias),
                ]
            };
            let [of_g, of_g_q] = [&g, &g_q].map(|g| step(&layer, g));
            layer.gradient_quantizer = Some(quantizer);
            let got = step(&layer, &g);
            assert_eq!((&got[0], &got[3]), (&of_g[0], &of_g[3]), "{what}: result and gradient of the bias");
            let expected = if quantization == none { &of_g } else { &of_g_q };
            for (i, part) in [(1, "gradient of the input"), (2, "gradient of the weights")] {
                assert_close(&format!("{what}: {part}"), &got[i], &expected[i], SUMS);
                assert!(of_g[i] != of_g_q[i], "{what}: {part}");
            }
            // In a step that leaves it in full precision, its gradient is, too.
            for (selection, is_any) in [
                (Selection::None, false),
                (Selection::ChannelGroups(vec![false, false]), false),
                (Selection::ChannelGroups(vec![false, true]), quantization != none),
            ] {
                layer.selection = selection;
                let with = step(&layer, &g);
                layer.gradient_quantizer = None;
                assert_eq!(with == step(&layer, &g), !is_any, "{what}: {:?}", layer.selection);
                layer.gradient_quantizer = Some(quantizer);
            }
        }
    }
}

/// A gradient that is not finite stays so on its way through quantized layers, or no check would see it.
#[test]
fn gradients_that_are_not_finite_stay_so() {
    let _switch = Switch::lock();
    for Backend { name, device } in cpu_backends() {
        let device = device.autodiff();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut g = normal(2 * 4 * 25, 0.0, 1.0, &mut rng(1));
            g[7] = bad;
            let (x, w) =
                (normal(2 * 3 * 25, 0.0, 1.0, &mut rng(2)), normal(4 * 3 * 9, 0.0, 1.0, &mut rng(3)));
            let x = tensor::<4>(&x, [2, 3, 5, 5], &device).require_grad();
            let w = tensor::<4>(&w, [4, 3, 3, 3], &device).require_grad();
            let gradient = Some(GradientQuantizer::new(8, 1));
            let arithmetic = StepArithmetic { compute: FP32, gradient };
            let options = ConvOptions::new([1; 2], [1; 2], [1; 2], 1);
            let y = conv2d(x.clone(), w.clone(), options, arithmetic);
            let all = (y * tensor::<4>(&g, [2, 4, 5, 5], &device)).sum().backward();
            let [of_x, of_w] = [x.grad(&all).unwrap(), w.grad(&all).unwrap()].map(values);
            assert!(of_w.iter().all(|g| !g.is_finite()), "{bad} on {name}");
            let (first, second) = of_x.split_at(of_x.len() / 2);
            assert!(first.iter().all(|g| !g.is_finite()), "{bad} on {name}");
            assert!(second.iter().all(|g| g.is_finite()), "{bad} on {name}");
        }
    }
}

/// Which layers of a network have gradients of few bits, and which noise: every layer its own, and another one with other keys.
#[test]
fn quantized_layers_have_quantized_gradients_with_noise_of_their_own() {
    let input = InputShape { channels: 3, height: 16, width: 16 };
    let two = Precision::bits(2).unwrap();
    let policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, two, two));
    let network = ModelConfig::new(Family::PreResNet, 8).init(input, 5, &policy, 0, &default_device());
    let mut network = network.expect("a network").network;
    let quantizers = |network: &Network| -> Vec<Option<GradientQuantizer>> {
        network.layers().map(|(_, layer)| layer.gradient_quantizer()).collect()
    };
    assert!(quantizers(&network).iter().all(Option::is_none));
    network.quantize_gradients(Some(BitWidth::new(6).unwrap()), &mut rng(1));
    let first = quantizers(&network);
    // All but the stem and the classifier.
    let n = first.len();
    assert!(first[0].is_none() && first[n - 1].is_none());
    assert!(
        first[1..n - 1].iter().all(|quantizer| quantizer.is_some_and(|quantizer| quantizer.largest() == 63))
    );
    for (i, quantizer) in first.iter().enumerate().filter(|(_, quantizer)| quantizer.is_some()) {
        assert!(!first[..i].contains(quantizer), "layer {i}");
    }
    network.quantize_gradients(Some(BitWidth::new(6).unwrap()), &mut rng(2));
    let second = quantizers(&network);
    assert!(first[1..n - 1].iter().all(|quantizer| !second.contains(quantizer)));
    network.quantize_gradients(Some(BitWidth::new(6).unwrap()), &mut rng(1));
    assert_eq!(quantizers(&network), first);
    network.quantize_gradients(None, &mut rng(1));
    assert!(quantizers(&network).iter().all(Option::is_none));
}

/// What is evaluated is computed in single precision, whatever the arithmetic of a training: the runtime has the same bits.
#[test]
fn evaluations_are_in_single_precision() {
    let _switch = Switch::lock();
    let input = InputShape { channels: 3, height: 16, width: 16 };
    let policy = QuantizationPolicy::new(LayerQuantization::FULL_PRECISION);
    for Backend { name, device } in cpu_backends() {
        let device = device.autodiff();
        let images = tensor::<4>(&normal(2 * 768, 0.0, 1.0, &mut rng(1)), [2, 3, 16, 16], &device);
        let network = ModelConfig::new(Family::PreResNet, 8).init(input, 5, &policy, 0, &device);
        let fp32 = network.expect("a network").network;
        let mut bf16 = fp32.clone();
        bf16.set_compute(Compute::Bf16);
        let evaluated = |network: &Network| values(network.valid().forward(images.clone().inner()));
        assert_eq!(evaluated(&bf16), evaluated(&fp32), "{name}");
        let trained = |network: &Network| values(network.forward(images.clone()));
        assert_ne!(trained(&bf16), trained(&fp32), "{name}");
        // Nor is anything rounded that has no gradient on a device with autodiff.
        let untracked = |network: &Network| values(network.clone().no_grad().forward(images.clone()));
        assert_eq!(untracked(&bf16), untracked(&fp32), "{name}");
        // A step keeps the choice, as does what makes another device's network of it.
        let gradients = GradientsParams::from_grads(bf16.forward(images.clone()).sum().backward(), &bf16);
        let stepped = ModuleOptimizer::from(SgdConfig::new().build()).step(0.0, bf16, gradients);
        for network in [stepped.clone(), stepped.clone().fork(&device), stepped.valid().train()] {
            assert_eq!(trained(&network), trained(&stepped), "{name}");
            assert_ne!(trained(&network), trained(&fp32), "{name}");
        }
    }
}

/// Dilation, and padding that is not the same at both ends: what the kernels leave to burn's operations.
#[test]
fn convolutions_that_have_no_kernel_equal_the_definition() {
    let (input, weight) = ([2, 3, 9, 8], [5, 3, 3, 2]);
    for (stride, padding, dilation) in [
        ([1, 1], [(2, 2), (1, 1)], [2, 1]),
        ([2, 1], [(0, 0), (3, 3)], [2, 3]),
        ([1, 1], [(1, 0), (0, 2)], [1, 1]),
        ([2, 2], [(0, 2), (1, 0)], [2, 2]),
    ] {
        let mut options = ConvOptions::new(stride, [0; 2], dilation, 1);
        options.padding = padding;
        let what = format!("conv stride {stride:?} padding {padding:?} dilation {dilation:?}");
        check(&what, &[(&input, 0.0, 1.0), (&weight, 0.0, 0.5)], |x| {
            conv2d(x[0].clone().reshape(input), x[1].clone().reshape(weight), options.clone(), FP32)
        });
        let mut rng = rng(7);
        let [x, w] = [input, weight].map(|shape| normal(shape.iter().product(), 0.0, 1.0, &mut rng));
        let expected = definition((&x, input), (&w, weight), stride, padding, dilation);
        for Backend { name, device } in backends() {
            let y = conv2d(tensor(&x, input, &device), tensor(&w, weight, &device), options.clone(), FP32);
            assert_close_f64(&format!("{what} on {name}"), &values(y), &expected, SUMS);
        }
        // Of operands with codes, too, which no kernel reads.
        let _switch = Switch::lock();
        for Backend { name, device } in cpu_backends() {
            let device = device.autodiff();
            let gradients = |have_codes: bool| {
                let x = tensor::<4>(&x, input, &device).require_grad();
                let w = tensor::<4>(&w, weight, &device).require_grad();
                let (x_q, w_q) = (unit(x.clone(), 3.0), dorefa(w.clone(), 3.0));
                assert!(x_q.codes().is_some() && w_q.codes().is_some());
                let y = match have_codes {
                    true => conv2d(x_q, w_q, options.clone(), FP32),
                    false => conv2d(x_q.into_values(), w_q.into_values(), options.clone(), FP32),
                };
                let all = (y.clone() * y).sum().backward();
                [x.grad(&all).map(values), w.grad(&all).map(values)]
            };
            assert_eq!(gradients(true), gradients(false), "{what} of codes on {name}");
        }
    }
}

/// Operands whose values lie in another order in memory, as after a transposition.
#[test]
fn operands_may_be_transposed() {
    let _switch = Switch::lock();
    let options = || ConvOptions::new([1; 2], [1; 2], [1; 2], 1);
    for Backend { name, device } in cpu_backends() {
        let mut rng = rng(8);
        let x =
            tensor::<4>(&normal(2 * 5 * 6 * 7, 0.5, 0.5, &mut rng), [2, 7, 6, 5], &device).swap_dims(1, 3);
        let w =
            tensor::<4>(&normal(4 * 5 * 9, 0.0, 0.5, &mut rng), [3, 5, 4, 3], &device).permute([2, 1, 0, 3]);
        // The same values in order.
        let ordered = |x: &Tensor<4>| tensor::<4>(&values(x.clone()), x.dims(), &device);
        let (x_ordered, w_ordered) = (ordered(&x), ordered(&w));
        let floats = [(&x, &w), (&x_ordered, &w_ordered)]
            .map(|(x, w)| values(conv2d(x.clone(), w.clone(), options(), FP32)));
        assert_eq!(floats[0], floats[1], "convolution on {name}");
        let codes = [(&x, &w), (&x_ordered, &w_ordered)]
            .map(|(x, w)| values(conv2d(unit(x.clone(), 3.0), dorefa(w.clone(), 3.0), options(), FP32)));
        assert_eq!(codes[0], codes[1], "convolution of codes on {name}");
        let affine = || [1.2, 0.1].map(|value| Tensor::full([5], value, &device));
        let norms = [x, x_ordered]
            .map(|x| values(batch_norm(x, affine(), 1e-5, Activation::Relu).output.into_values()));
        assert_eq!(norms[0], norms[1], "normalization on {name}");
    }
}

/// One step for all values of the input, one for each output channel of the weights.
#[test]
fn convolutions_of_learned_codes_agree() {
    let (input, weight) = ([2, 5, 6, 6], [18, 5, 3, 3]);
    let (act, signed) = (Grid::Step { q_min: 0.0, q_max: 7.0 }, Grid::Step { q_min: -4.0, q_max: 3.0 });
    let device = default_device();
    let steps: Vec<f32> = (0..18).map(|channel| 0.1 + 0.02 * channel as f32).collect();
    let mut rng = rng(5);
    let x = tensor(&normal(360, 0.5, 0.7, &mut rng), input, &device);
    let w = tensor(&normal(810, 0.0, 0.4, &mut rng), weight, &device);
    let (kernels, others) = with_kernels_and(OTHERS, || {
        let (step, steps) = (tensor(&[0.17], [1], &device), tensor(&steps, [18], &device));
        let x_q = act.scheme(vec![step]).quantize(x.clone());
        let w_q = signed.scheme(vec![steps]).quantize(w.clone());
        values(conv2d(x_q, w_q, ConvOptions::new([1; 2], [1; 2], [1; 2], 1), FP32))
    });
    for (implementation, other) in others {
        assert_close(&format!("learned codes, {implementation:?}"), &kernels, &other, SUMS);
    }
}

/// The shape of an input, and mean and deviation of its values.
type Drawn<'a> = (&'a [usize], f32, f32);

/// As [`check`], also against the same composed of functions of tensors.
fn check_composed<const D: usize>(
    what: &str,
    shapes: &[Drawn<'_>],
    operation: impl Fn(&[Tensor<1>]) -> Tensor<D>,
    composed: impl Fn(&[Tensor<1>]) -> Tensor<D>,
) {
    check(what, shapes, &operation);
    let _switch = Switch::lock();
    let device = default_device();
    for seed in 0..3 {
        let mut rng = rng(seed);
        let draw = |(shape, mean, std): &Drawn<'_>| {
            (normal(shape.iter().product(), *mean, *std, &mut rng), shape.to_vec())
        };
        let inputs: Vec<(Vec<f32>, Vec<usize>)> = shapes.iter().map(draw).collect();
        let [got, expected] =
            [differentiate(&inputs, &device, &operation), differentiate(&inputs, &device, &composed)];
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert_close(&format!("{what}, composed, seed {seed}: {i}"), got, expected, SUMS);
        }
    }
}

#[test]
fn normalizations_agree_with_every_activation() {
    let afters: [(After, &[Drawn<'_>]); 8] = [
        (After::Identity, &[]),
        (After::Relu, &[]),
        (After::Grid(Grid::Unit { n: 3.0 }), &[]),
        (After::Grid(Grid::Step { q_min: 0.0, q_max: 3.0 }), &[(&[1], 0.7, 0.05)]),
        (After::Grid(Grid::Step { q_min: 0.0, q_max: 15.0 }), &[(&[1], 0.7, 0.05)]),
        (After::Grid(Grid::Clip { n: 3.0 }), &[(&[1], 0.7, 0.05)]),
        (After::Grid(Grid::Sign { is_bounded: true }), &[(&[1], 0.7, 0.05)]),
        (After::Grid(Grid::Sign { is_bounded: false }), &[(&[1], 0.7, 0.05)]),
    ];
    for shape in [[4, 3, 5, 5], [2, 17, 1, 3], [8, 1, 4, 4], [1, 2, 2, 1]] {
        let channels = [shape[1]];
        let norm: [Drawn<'_>; 3] = [(&shape, 0.3, 2.0), (&channels, 1.0, 0.2), (&channels, 0.0, 0.3)];
        for (after, parameters) in afters {
            check_composed(
                &format!("norm {shape:?} {after:?}"),
                &[&norm, parameters].concat(),
                |x| {
                    let affine = [x[1].clone(), x[2].clone()];
                    let activation = after.activation(x[3..].to_vec());
                    batch_norm(x[0].clone().reshape(shape), affine, 1e-5, activation).output.into_values()
                },
                |x| {
                    let affine = [x[1].clone(), x[2].clone()];
                    composed::batch_norm(x[0].clone().reshape(shape), affine, 1e-5, after, &x[3..])
                },
            );
        }
    }
}

/// An operation of tensors, which are flat.
type Operation<'a> = &'a dyn Fn(&[Tensor<1>]) -> Tensor<4>;

/// The same bits as burn's, of which the sum takes the memory of its operand, if nothing else has it.
#[test]
fn relus_equal_those_of_burn() {
    for (shape, seed) in [([2, 3, 5, 7], 0), ([1, 1, 1, 1], 1), ([4, 8, 32, 33], 2)] {
        let n = shape.iter().product();
        let mut rng = rng(seed);
        let inputs = [(); 2].map(|()| (normal(n, 0.0, 1.0, &mut rng), vec![n]));
        for backend in cpu_backends() {
            // Operands that are leaves, results, and shared by another reader.
            let cases: [[Operation<'_>; 2]; 4] = [
                [&|x| relu(x[0].clone().reshape(shape)) + x[1].clone().reshape(shape), &|x| {
                    burn_relu(x[0].clone().reshape(shape)) + x[1].clone().reshape(shape)
                }],
                [&|x| relu_of_sum(x[0].clone(), x[1].clone()).reshape(shape), &|x| {
                    burn_relu(x[0].clone() + x[1].clone()).reshape(shape)
                }],
                [
                    &|x| {
                        let [one, other] = [0, 1].map(|i| x[i].clone().mul_scalar(0.5));
                        relu_of_sum(one.clone(), other.clone()).reshape(shape) * one.reshape(shape)
                    },
                    &|x| {
                        let [one, other] = [0, 1].map(|i| x[i].clone().mul_scalar(0.5));
                        burn_relu(one.clone() + other.clone()).reshape(shape) * one.reshape(shape)
                    },
                ],
                [
                    &|x| {
                        let one =
                            x[0].clone().reshape([shape[0], shape[1], shape[3], shape[2]]).swap_dims(2, 3);
                        relu(relu_of_sum(one.clone(), one)) + x[1].clone().reshape(shape)
                    },
                    &|x| {
                        let one =
                            x[0].clone().reshape([shape[0], shape[1], shape[3], shape[2]]).swap_dims(2, 3);
                        burn_relu(burn_relu(one.clone() + one)) + x[1].clone().reshape(shape)
                    },
                ],
            ];
            for (i, [operation, burns]) in cases.into_iter().enumerate() {
                let expected = differentiate(&inputs, &backend.device, burns);
                let (got, others) =
                    with_kernels_and(OTHERS, || differentiate(&inputs, &backend.device, operation));
                assert_eq!(got, expected, "{i}, {shape:?} on {}", backend.name);
                for (implementation, other) in others {
                    assert_eq!(other, expected, "{i}, {shape:?}, {implementation:?} on {}", backend.name);
                }
            }
        }
    }
}

const POOLS: [(MaxPool, [usize; 4]); 7] = [
    (MaxPool { kernel: 3, stride: 2, padding: 1 }, [2, 3, 8, 11]),
    (MaxPool { kernel: 2, stride: 2, padding: 0 }, [3, 2, 9, 6]),
    (MaxPool { kernel: 3, stride: 2, padding: 0 }, [1, 2, 7, 40]),
    (MaxPool { kernel: 3, stride: 1, padding: 1 }, [2, 1, 5, 1]),
    (MaxPool { kernel: 5, stride: 3, padding: 2 }, [1, 2, 13, 12]),
    (MaxPool { kernel: 1, stride: 1, padding: 0 }, [1, 1, 1, 1]),
    // No window of these has a place in a byte.
    (MaxPool { kernel: 17, stride: 3, padding: 8 }, [1, 2, 20, 9]),
];

/// The same bits as burn's, of values of which many are equal, and of the infinite ones.
#[test]
fn pools_equal_those_of_burn() {
    for (options, shape) in POOLS {
        let MaxPool { kernel, stride, padding } = options;
        let n = shape.iter().product();
        let few = |seed| normal(n, 0.0, 1.0, &mut rng(seed)).into_iter().map(|x| (x * 2.0).round_ties_even());
        let infinite = |x: f32| if x.abs() > 1.0 { x / 0.0 } else { x };
        for x in [few(0).collect(), few(1).map(infinite).collect(), vec![f32::NEG_INFINITY; n]] {
            let x: Vec<f32> = x;
            for backend in cpu_backends() {
                let case = |operation: &dyn Fn(Tensor<4>) -> Tensor<4>| {
                    differentiate(&[(x.clone(), vec![n])], &backend.device, |x| {
                        // What is pooled is no leaf, and lies otherwise in memory.
                        operation(
                            x[0].clone().reshape([shape[0], shape[1], shape[3], shape[2]]).swap_dims(2, 3),
                        )
                    })
                };
                let what = format!("{options:?} on {}", backend.name);
                let burns =
                    MaxPoolOptions::new([kernel; 2]).with_stride([stride; 2]).with_padding([padding; 2]);
                let expected = case(&|x| burn::tensor::module::max_pool2d(x, burns.clone()));
                let (got, others) = with_kernels_and(OTHERS, || case(&|x| max_pool2d(x, options)));
                let all = std::iter::once(&got).chain(others.iter().map(|(_, other)| other));
                for got in all {
                    assert_eq!(got[0], expected[0], "{what}");
                    // Where nothing is larger than the padding, ndarray has the gradient go nowhere.
                    if backend.name == "flex" || x.iter().all(|x| *x != f32::NEG_INFINITY) {
                        assert_eq!(got[1], expected[1], "{what}");
                    }
                }
                // Without a gradient nothing is kept.
                let x = tensor::<4>(&x, shape, &backend.device);
                let expected = values(burn::tensor::module::max_pool2d(x.clone(), burns));
                assert_eq!(values(max_pool2d(x, options)), expected, "{what}");
            }
        }
    }
}

#[test]
fn pools_pass_on_what_is_no_number() {
    let _switch = Switch::lock();
    for backend in cpu_backends() {
        for device in [backend.device.clone(), backend.device.autodiff()] {
            let x = tensor::<4>(&[1.0, f32::NAN, 2.0, 3.0, 1.0, 7.0], [1, 1, 2, 3], &device);
            let y = values(max_pool2d(x, MaxPool { kernel: 2, stride: 1, padding: 0 }));
            assert!(y.iter().all(|y| y.is_nan()), "{y:?} on {}", backend.name);
        }
    }
}

#[test]
fn fake_quantizers_agree() {
    for shape in [[1, 1], [3, 7], [64, 33]] {
        let flat: [Drawn<'_>; 1] = [(&shape, 0.4, 0.6)];
        for n in [1.0, 3.0, 255.0] {
            for max_gradient in [MaxGradient::Differentiated, MaxGradient::Detached] {
                check_composed(
                    &format!("dorefa {shape:?} {n} {max_gradient:?}"),
                    &flat,
                    |x| dorefa_with(x[0].clone().reshape(shape), n, max_gradient).into_values(),
                    |x| composed::dorefa_weights(x[0].clone().reshape(shape), n, max_gradient),
                );
            }
        }
        let per_row: [Drawn<'_>; 2] = [(&shape, 0.0, 1.0), (&shape[..1], 0.4, 0.05)];
        let grids: [(Grid, &[Drawn<'_>]); 7] = [
            (Grid::Unit { n: 1.0 }, &flat),
            (Grid::Unit { n: 3.0 }, &flat),
            (Grid::Unit { n: 255.0 }, &flat),
            (Grid::Step { q_min: -2.0, q_max: 1.0 }, &per_row),
            (Grid::Clip { n: 3.0 }, &per_row),
            (Grid::Sign { is_bounded: true }, &per_row),
            (Grid::Sign { is_bounded: false }, &per_row),
        ];
        for (grid, shapes) in grids {
            check_composed(
                &format!("{grid:?} {shape:?}"),
                shapes,
                |x| grid.scheme(x[1..].to_vec()).quantize(x[0].clone().reshape(shape)).into_values(),
                |x| grid.composed(x[0].clone().reshape(shape), &x[1..]),
            );
        }
        for (scale, zero_point, n) in [(0.1, 7.0, 15.0), (0.5, 0.0, 3.0), (1.3, 1.0, 1.0)] {
            let parameters = |x: &Tensor<1>| {
                [scale, zero_point].map(|value| Tensor::full([1], value, &x.device())).to_vec()
            };
            let grid = Grid::Affine { n };
            check_composed(
                &format!("affine {shape:?} {scale} {zero_point} {n}"),
                &[(&shape, 0.4, 1.0)],
                |x| grid.scheme(parameters(&x[0])).quantize(x[0].clone().reshape(shape)).into_values(),
                |x| grid.composed(x[0].clone().reshape(shape), &parameters(&x[0])),
            );
        }
    }
}

#[test]
fn ranges_are_equal() {
    for backend in cpu_backends() {
        for (n, mean) in [(1, 0.4), (1, -0.4), (21, 0.0), (70_000, 3.0), (70_000, 9.0)] {
            let x = tensor::<1>(&normal(n, mean, 1.0, &mut rng(4)), [n], &backend.device);
            let (kernels, others) = with_kernels_and(OTHERS, || values(value_range(x.clone())));
            let composed = values(composed::value_range(x));
            assert_eq!(kernels, composed, "{n} values around {mean}, composed");
            for (implementation, other) in others {
                assert_eq!(kernels, other, "{n} values around {mean}, {implementation:?}");
            }
        }
    }
}

/// The training digits, normalized, and their labels.
fn digits_batches() -> (Vec<f32>, Vec<i64>) {
    let locations = Locations::default_with(None);
    let data = open(DatasetName::Digits, Split::Train, LabelKind::Fine, &locations)
        .expect("they are built in")
        .dataset;
    let images = data.images.iter().map(|&pixel| (f32::from(pixel) / 16.0 - 0.3058) / 0.3764).collect();
    (images, data.labels.iter().map(|&label| i64::from(label)).collect())
}

/// The loss of `network` for images and the gradients of all its parameters.
type Step = (Vec<f32>, Vec<(String, Option<Vec<f32>>)>);

fn step_of(network: &Network, images: Tensor<4>, labels: &[i64], n_classes: usize) -> Step {
    let targets = target_probabilities(labels, n_classes, 0.0, &images.device());
    let loss = cross_entropy(network.forward(images), targets);
    (values(loss.clone()), gradients(network, &loss.backward()))
}

/// The largest relative difference of the losses, and of any parameter's gradient relative to its largest value.
fn distance((loss, gradients): &Step, (other_loss, others): &Step) -> f64 {
    let relative =
        |got: &[f32], expected: &[f32]| excess(got, expected, Tolerance { relative: 1.0, absolute: 1e-9 });
    assert_eq!(gradients.len(), others.len());
    let of_gradients = gradients.iter().zip(others).map(|((path, got), (_, expected))| {
        let [got, expected] = [got, expected]
            .map(|gradient| gradient.as_ref().unwrap_or_else(|| panic!("{path} has no gradient")));
        relative(got, expected)
    });
    of_gradients.fold(relative(loss, other_loss), f64::max)
}

/// A training with the kernels; every fifth of its steps is also taken by burn's operations, from the same state. Whole curves
/// could not be compared: what differs in the last digit parts in time, low bits at the first value that crosses a tie.
#[test]
fn steps_of_a_training_agree() {
    const N_STEPS: usize = 100;
    const EVERY: usize = 5;
    let _switch = Switch::lock();
    let device = default_device().autodiff();
    let (images, labels) = digits_batches();
    let two = Precision::bits(2).expect("2 is a width");
    // The parts of the gradient of a clip value or step size nearly cancel.
    for (method, bits, allowed) in [
        (Method::DoReFa, Precision::FullPrecision, 1e-5),
        (Method::DoReFa, two, 1e-5),
        (Method::Pact, two, 1e-3),
        (Method::Lsq, two, 2e-3),
    ] {
        let policy = QuantizationPolicy::new(LayerQuantization::new(method, bits, bits));
        let input = InputShape { channels: 1, height: 8, width: 8 };
        let config = ModelConfig::new(Family::PreResNet, 8).with_width(0.5);
        let mut network = config.init(input, 10, &policy, 3, &device).expect("a network").network;
        let momentum = burn::optim::momentum::MomentumConfig::new().with_momentum(0.9).with_dampening(0.0);
        let mut optimizer = ModuleOptimizer::from(SgdConfig::new().with_momentum(Some(momentum)).build());
        let batch = |step: usize| {
            let first = step * 32 % (labels.len() - 32);
            let pixels = &images[first * 64..(first + 32) * 64];
            (tensor::<4>(pixels, [32, 1, 8, 8], &device), &labels[first..first + 32])
        };
        network.calibrate(|_| true, |network| drop(network.forward(batch(0).0)));
        let mut distances = Vec::new();
        for step in 0..N_STEPS {
            let (images, labels) = batch(step);
            if step % EVERY == 0 {
                let kernels = step_of(&network, images.clone(), labels, 10);
                use_implementation(Implementation::Reference);
                distances.push(distance(&kernels, &step_of(&network, images.clone(), labels, 10)));
                use_implementation(Implementation::Kernels);
            }
            let targets = target_probabilities(labels, 10, 0.0, &device);
            let loss = cross_entropy(network.forward(images), targets);
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            network = optimizer.step(0.02, network, gradients);
        }
        println!("{method} {bits}: {distances:?}");
        let n_apart = distances.iter().filter(|distance| **distance > allowed).count();
        // In a step, which ones depends on the processor, a value crosses a tie of its quantizer or the zero of a ReLU. A wrong kernel
        // parts all of them.
        assert!(n_apart <= 4, "{method} {bits}: {n_apart} steps differ: {distances:?}");
    }
}

/// Loss and gradients of networks with the kernels and without.
#[test]
fn networks_agree() {
    let device = default_device().autodiff();
    let input = InputShape { channels: 3, height: 16, width: 16 };
    let images = tensor::<4>(&normal(3 * 768, 0.0, 1.0, &mut rng(1)), [3, 3, 16, 16], &device);
    for family in [Family::ResNet, Family::PreResNet] {
        let policy = QuantizationPolicy::new(LayerQuantization::FULL_PRECISION);
        let network =
            ModelConfig::new(family, 8).init(input, 5, &policy, 0, &device).expect("a network").network;
        let (kernels, others) = with_kernels_and(OTHERS, || step_of(&network, images.clone(), &[0, 1, 2], 5));
        for (implementation, other) in others {
            let distance = distance(&kernels, &other);
            assert!(distance <= 1e-4, "{family}, {implementation:?}: {distance:e}");
        }
    }
}

/// A training must see that its values are no longer numbers: no operation makes a number of one. (The compiler of a GPU may
/// assume that there are none.)
#[test]
fn nan_stays_nan() {
    let _switch = Switch::lock();
    let is_nan = |what: &str, y: Tensor<4>| {
        assert!(values(y).iter().any(|value| value.is_nan()), "{what}");
    };
    for backend in cpu_backends() {
        let mut x = vec![0.5; 2 * 4 * 16];
        x[70] = f32::NAN;
        let x = tensor::<4>(&x, [2, 4, 4, 4], &backend.device);
        let w = tensor::<4>(&vec![1.0; 5 * 4 * 9], [5, 4, 3, 3], &backend.device);
        let bad_w = w.clone().mask_fill(w.clone().equal_scalar(1.0), f32::NAN);
        let options = || ConvOptions::new([1; 2], [1; 2], [1; 2], 1);
        let one = || tensor::<1>(&[1.0], [1], &backend.device);
        let [half, whole] =
            [0.5, 1.0].map(|step| Grid::Step { q_min: 0.0, q_max: 3.0 }.scheme(vec![one() * step]));
        is_nan("fake quantization", unit(x.clone(), 3.0).into_values());
        is_nan(
            "codes of the input",
            conv2d(half.quantize(x.clone()), whole.quantize(w.clone()), options(), FP32),
        );
        let good = half.quantize(x.ones_like());
        is_nan("codes of the weights", conv2d(good, whole.quantize(bad_w.clone()), options(), FP32));
        is_nan("convolution", conv2d(x.clone(), w, options(), FP32));
        is_nan("weights", dorefa(bad_w.clone(), 3.0).into_values());
        for is_bounded in [true, false] {
            is_nan(
                "signs",
                Grid::Sign { is_bounded }.scheme(vec![one()]).quantize(bad_w.clone()).into_values(),
            );
        }
        assert!(values(value_range(x.clone())).iter().all(|bound| bound.is_nan()), "range");
        let on_affine = Grid::Affine { n: 3.0 }.scheme(vec![one(), one()]).quantize(x.clone());
        is_nan("affine grid", on_affine.into_values());
        let affine = [tensor(&[1.0; 4], [4], &backend.device), tensor(&[0.0; 4], [4], &backend.device)];
        let activation = Grid::Unit { n: 3.0 }.activation(Vec::new());
        is_nan("normalization", batch_norm(x, affine, 1e-5, activation).output.into_values());
    }
}

/// A layer that takes the place of the ReLU before it computes what it computes after one, with the same gradients.
#[test]
fn fused_input_quantizers_agree_with_those_after_a_relu() {
    let _switch = Switch::lock();
    let device = default_device().autodiff();
    let shape = [3, 5, 6, 6];
    for method in [Method::DoReFa, Method::Pact, Method::Lsq] {
        for bits in [1, 2, 4, 8] {
            let precision = Precision::bits(bits).expect("1 to 8 bits");
            let quantization = LayerQuantization::new(method, precision, precision);
            let config = QuantConv2dConfig::new([5, 7], 3).with_quantization(quantization);
            let mut layer = config.init(&device, &mut rng(2)).expect("the layer is defined");
            let x = tensor::<4>(&normal(3 * 5 * 36, 0.3, 2.0, &mut rng(3)), shape, &device);
            let quantizer = layer.input_quantizer.as_mut().expect("the input is quantized");
            quantizer.start_calibration();
            quantizer.observe(&x.clone().clamp_min(0.0));
            quantizer.finish_calibration();
            let affine = [(5, 1.0, 7), (5, 0.1, 8)].map(|(n, mean, seed)| {
                tensor::<1>(&normal(n, mean, 0.2, &mut rng(seed)), [n], &device).require_grad()
            });
            let x = x.require_grad();
            let run = |is_fused: bool| {
                let normalize = |activation| batch_norm(x.clone(), affine.clone(), 1e-5, activation).output;
                let y = match is_fused {
                    true => {
                        let activation = layer.input_activation(shape).expect("this method has one");
                        layer.forward_quantized(normalize(activation))
                    }
                    false => layer.forward(normalize(Activation::Relu).into_values()),
                };
                let all = (y.clone() * y.clone()).sum().backward();
                let mut results = vec![("output".to_string(), values(y))];
                results.push(("input".into(), values(x.grad(&all).expect("a gradient"))));
                results.extend(
                    affine.iter().map(|a| ("affine".into(), values(a.grad(&all).expect("a gradient")))),
                );
                let of_layer = gradients(&layer, &all).into_iter();
                results.extend(of_layer.map(|(path, gradient)| (path, gradient.expect("a gradient"))));
                results
            };
            for ((part, got), (_, expected)) in run(true).iter().zip(&run(false)) {
                let what = format!("{method} at {bits} bits: {part}");
                assert_close(&what, got, expected, Tolerance { relative: 1e-5, absolute: 1e-5 });
            }
        }
    }
}

/// Weights of zero at 1 bit have the mean zero as their scale.
#[test]
fn zero_weights_at_1_bit_convolve_to_zero() {
    let _switch = Switch::lock();
    let device = default_device();
    let bit = Precision::bits(1).expect("1 is a width");
    let config =
        QuantConv2dConfig::new([2, 3], 3).with_quantization(LayerQuantization::new(Method::DoReFa, bit, bit));
    let mut layer = config.init(&device, &mut rng(2)).expect("the layer is defined");
    layer.weight = layer.weight.map(|weight| weight.zeros_like());
    let x = tensor::<4>(&normal(2 * 25, 0.5, 1.0, &mut rng(3)), [1, 2, 5, 5], &device);
    assert!(values(layer.forward(x)).iter().all(|value| *value == 0.0));
}

/// No images are no error: an empty output, and gradients of zero.
#[test]
fn empty_batches_have_gradients_of_zero() {
    let _switch = Switch::lock();
    for backend in cpu_backends() {
        let shapes = [(vec![], vec![0]), (normal(54, 0.0, 1.0, &mut rng(1)), vec![54])];
        let results = differentiate(&shapes, &backend.device, |x| {
            let options = ConvOptions::new([1; 2], [1; 2], [1; 2], 1);
            conv2d(x[0].clone().reshape([0, 2, 5, 4]), x[1].clone().reshape([3, 2, 3, 3]), options, FP32)
        });
        assert_eq!(results, [vec![], vec![], vec![0.0; 54]]);
    }
}

#[test]
#[should_panic(expected = "the kernel is larger than the padded input")]
fn a_kernel_larger_than_the_image_is_an_error() {
    let _switch = Switch::lock();
    let device = default_device();
    let (x, w) = (tensor(&[1.0; 2], [1, 2, 1, 1], &device), tensor(&[1.0; 18], [2, 1, 3, 3], &device));
    conv2d(x, w, ConvOptions::new([1; 2], [0; 2], [1; 2], 2), FP32);
}

#[test]
#[should_panic(expected = "parameters for 2 slices of a tensor of 4")]
fn parameters_for_several_slices_are_an_error() {
    let device = default_device();
    let (x, steps) = (tensor::<2>(&[1.0; 24], [4, 6], &device), tensor(&[0.1, 0.2], [2], &device));
    Grid::Step { q_min: 0.0, q_max: 3.0 }.scheme(vec![steps]).quantize(x);
}

/// The same on one thread, two and seven: losses, gradients and learned steps, bit for bit. The maps are large enough to be
/// divided.
#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let _switch = Switch::lock();
    const METHODS: [Method; 3] = [Method::Lsq, Method::DoReFa, Method::Pact];
    let low = Precision::bits(2).expect("2 is a width");
    let input = InputShape { channels: 3, height: 32, width: 32 };
    let n = 16;
    let images = normal(n * 3072, 0.0, 1.0, &mut rng(1));
    let labels: Vec<i64> = (0..n as i64).map(|i| i % 10).collect();
    // More values than burn sums up on one thread.
    let many = normal(5 << 20, 0.5, 1.0, &mut rng(2));
    for backend in cpu_backends() {
        let device = backend.device.clone().autodiff();
        // ndarray has the same kernels.
        let methods = if backend.name == "flex" { &METHODS[..] } else { &METHODS[..1] };
        for &method in methods {
            let run = || {
                let policy = QuantizationPolicy::new(LayerQuantization::new(method, low, low));
                let config = ModelConfig::new(Family::PreResNet, 8);
                let mut network = config.init(input, 10, &policy, 0, &device).expect("a network").network;
                let batch = tensor::<4>(&images, [n, 3, 32, 32], &device);
                network.calibrate(|_| true, |network| drop(network.forward(batch.clone())));
                let targets = target_probabilities(&labels, 10, 0.0, &device);
                let loss = cross_entropy(network.forward(batch), targets);
                let large = tensor::<2>(&many, [1 << 10, 5 << 10], &backend.device);
                let mut quantizer =
                    ActivationQuantizer::new(&LayerQuantization::new(method, low, low), &backend.device)
                        .expect("the methods define 2 bits")
                        .expect("the input is quantized");
                quantizer.start_calibration();
                quantizer.observe(&large);
                quantizer.finish_calibration();
                let grid = quantizer.grid().expect("a grid");
                let sums = [grid.units().to_vec(), values(mean_square(large)), values(loss.clone())];
                (sums, gradients(&network, &loss.backward()))
            };
            let results = [1, 2, 7].map(|n_threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
                pool.install(run)
            });
            assert!(results[0] == results[1] && results[0] == results[2], "{method} on {}", backend.name);
        }
    }
}
