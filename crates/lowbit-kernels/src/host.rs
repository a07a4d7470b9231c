//! The operations on the backends whose tensors lie in host memory, by the kernels of [`lowbit_cpu`].

use std::ops::RangeInclusive;
use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, TensorData};
use lowbit_core::Compute;
use lowbit_cpu::bf16;
use lowbit_cpu::codes::Coded;
use lowbit_cpu::conv::{self, ConvShape, Gradient, Input, Precision, Weights};
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::gradient::{GradientCodes, GradientQuantizer};
use lowbit_cpu::integer::IntegerConv;
use lowbit_cpu::norm::{self, Activation, NormParameters, NormShape};
use lowbit_cpu::packed::PackedImages;
use lowbit_cpu::pool::{Pool, Pooled};
use lowbit_cpu::relu;
use lowbit_cpu::weights::{self, MaxGradient};

use crate::backend::{
    ActivationKind, CodeWorth, CodedTensor, ConvCompute, ConvOperands, ConvSizes, KeepCodes, KeptInput,
    KeptPlaces, KeptWeights, KernelBackend, MaxPool, WeightCodes,
};
use crate::choice::is_reference;
use crate::reference;
use crate::times::{Kind, timed};

/// A backend whose float tensors can be read as slices.
trait Host: Backend {
    /// A tensor whose elements lie one after the other.
    type Contiguous;

    fn contiguous(tensor: FloatTensor<Self>) -> Self::Contiguous;
    fn slice(tensor: &Self::Contiguous) -> &[f32];
    fn tensor(values: Vec<f32>, shape: &[usize]) -> FloatTensor<Self>;
    fn code_tensor(codes: Vec<u8>, shape: &[usize]) -> IntTensor<Self>;

    /// Whether nothing else has the values of a tensor, as far as the backend tells.
    fn is_own(_tensor: &FloatTensor<Self>) -> bool {
        false
    }

    /// The tensor after `change` of its values, which are those of a copy if anything else has them.
    fn changed(tensor: FloatTensor<Self>, change: impl FnOnce(&mut [f32])) -> FloatTensor<Self>;

    /// What `read` makes of the bytes of codes, of any layout.
    fn with_codes<T>(codes: &IntTensor<Self>, read: impl FnOnce(&[u8]) -> T) -> T;

    fn coded_tensor(Coded { values, codes }: Coded, shape: &[usize]) -> CodedTensor<Self> {
        let codes = codes.map(|codes| Self::code_tensor(codes, shape));
        CodedTensor::of((Self::tensor(values, shape), codes))
    }
}

/// Whether the kernels do an operation on `tensors`, which are all that it reads. They are for single precision.
fn is_served<const N: usize>(tensors: [&impl TensorMetadata; N]) -> bool {
    tensors.iter().all(|tensor| tensor.dtype() == DType::F32) && !is_reference()
}

/// The sizes of a convolution of operands of these shapes, if the kernels do such ones: without dilation, padded alike on both sides.
fn conv_shape(dims: [[usize; 4]; 2], options: &ConvOptions<2>) -> Option<ConvShape> {
    let [[batch, in_channels, height, width], [out_channels, _, kernel_height, kernel_width]] = dims;
    let shape = ConvShape {
        batch,
        in_channels,
        out_channels,
        size: [height, width],
        kernel: [kernel_height, kernel_width],
        stride: options.stride,
        padding: options.padding.map(|(before, _)| before),
        groups: options.groups,
    };
    let is_symmetric = options.padding.iter().all(|(before, after)| before == after);
    (is_symmetric && options.dilation == [1, 1]).then_some(shape)
}

/// A convolution in floats. Codes of weights are for training in bf16.
fn conv2d<B: Host>(
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    weight_codes: Option<WeightCodes<B>>,
    compute: ConvCompute,
    shape: &ConvShape,
) -> FloatTensor<B> {
    let [height, width] = shape.out_size();
    let dims = [shape.batch, shape.out_channels, height, width];
    let [rounds_input, rounds_weight] = compute.rounds();
    let is_bf16 = rounds_input && (rounds_weight || weight_codes.is_some());
    // Beside what has codes and is multiplied as it is, the other one is rounded first.
    let input = B::contiguous(round_if::<B>(rounds_input && !is_bf16, input));
    let weight = B::contiguous(round_if::<B>(rounds_weight && !is_bf16, weight));
    let weights = Weights::Values(B::slice(&weight));
    let values = match weight_codes.filter(|_| is_bf16) {
        Some(WeightCodes { codes, scales }) => B::with_codes(&codes, |codes| {
            let weight = Weights::Codes { codes, scales: &scales };
            conv::forward(shape, B::slice(&input), weight, Precision::Bf16)
        }),
        None if is_bf16 => conv::forward(shape, B::slice(&input), weights, Precision::Bf16),
        None => conv::forward(shape, B::slice(&input), weights, Precision::Single),
    };
    B::tensor(values, &dims)
}

/// What one code of an operand (0 the input, 1 the weights) is worth, for all or for each output channel.
fn scales(codes: CodeWorth, operand: usize, units: &[f32]) -> Vec<f32> {
    let parts = codes.parts[operand];
    match codes.have_unit[operand] {
        true => units.iter().map(|unit| unit / parts).collect(),
        false => vec![1.0 / parts],
    }
}

/// The kernel for these codes of weights; `None` if the sums are beyond 32 bits.
fn integer_conv<B: Host>(
    weight: &IntTensor<B>,
    unit: FloatTensor<B>,
    codes: CodeWorth,
    shape: &ConvShape,
) -> Option<IntegerConv> {
    let scales = scales(codes, 1, B::slice(&B::contiguous(unit)));
    let kernel = B::with_codes(weight, |weight| IntegerConv::new(*shape, weight, &scales, codes.bounds))?;
    Some(if codes.zero_point == 0 { kernel } else { kernel.with_zero_point(codes.zero_point) })
}

fn conv2d_codes<B: Host>(
    kernel: &IntegerConv,
    input: &IntTensor<B>,
    unit: FloatTensor<B>,
    codes: CodeWorth,
    shape: &ConvShape,
) -> FloatTensor<B> {
    let scale = scales(codes, 0, B::slice(&B::contiguous(unit)))[0];
    let [height, width] = shape.out_size();
    let dims = [shape.batch, shape.out_channels, height, width];
    B::tensor(B::with_codes(input, |input| kernel.forward(input, scale)), &dims)
}

/// The gradient of a convolution's result in its backward pass.
enum OutGradient<B: Host> {
    Values(B::Contiguous),
    Codes(GradientCodes),
}

impl<B: Host> OutGradient<B> {
    fn new(gradient: FloatTensor<B>, compute: ConvCompute) -> Self {
        let batch = gradient.shape()[0];
        let gradient = B::contiguous(gradient);
        match compute.gradient {
            Some(quantizer) => {
                Self::Codes(timed(Kind::Gradients, || quantizer.codes(B::slice(&gradient), batch)))
            }
            None => Self::Values(gradient),
        }
    }

    fn get(&self) -> Gradient<'_> {
        match self {
            Self::Values(values) => Gradient::Values(B::slice(values)),
            Self::Codes(codes) => Gradient::Codes(codes),
        }
    }

    /// Multiplies it with values, rounded as `compute` says. Values that `have_codes` are not.
    fn with_values<T>(
        &self,
        have_codes: bool,
        compute: ConvCompute,
        multiply: impl FnOnce(Gradient<'_>, Precision) -> T,
    ) -> T {
        match self {
            _ if !have_codes => multiply(self.get(), precision(compute)),
            Self::Values(values) if compute.rounds_gradient() => {
                multiply(Gradient::Values(&bf16::rounded(B::slice(values))), Precision::Single)
            }
            _ => multiply(self.get(), Precision::Single),
        }
    }
}

/// That in which codes are multiplied with the gradient.
fn precision(compute: ConvCompute) -> Precision {
    match compute.compute {
        Compute::Fp32 => Precision::Single,
        Compute::Bf16 => Precision::Bf16,
    }
}

fn conv2d_input_gradient<B: Host>(
    weight: KeptWeights<B>,
    gradient: &OutGradient<B>,
    compute: ConvCompute,
    shape: &ConvShape,
) -> FloatTensor<B> {
    let values = match weight {
        KeptWeights::Codes(WeightCodes { codes, scales }) => B::with_codes(&codes, |codes| {
            let weight = Weights::Codes { codes, scales: &scales };
            conv::input_gradient(shape, weight, gradient.get(), precision(compute))
        }),
        KeptWeights::Values(weight) => {
            let weight = B::contiguous(weight);
            let weight = Weights::Values(B::slice(&weight));
            gradient.with_values(compute.have_codes[1], compute, |gradient, precision| {
                conv::input_gradient(shape, weight, gradient, precision)
            })
        }
    };
    B::tensor(values, &[shape.batch, shape.in_channels, shape.size[0], shape.size[1]])
}

fn conv2d_weight_gradient<B: Host>(
    input: KeptInput<B>,
    gradient: &OutGradient<B>,
    compute: ConvCompute,
    shape: &ConvShape,
) -> FloatTensor<B> {
    let values = match input {
        KeptInput::Codes(codes) => {
            conv::weight_gradient(shape, Input::Codes(&codes), gradient.get(), precision(compute))
        }
        KeptInput::Values(input) => {
            let input = B::contiguous(input);
            let input = Input::Values(B::slice(&input));
            gradient.with_values(compute.have_codes[0], compute, |gradient, precision| {
                conv::weight_gradient(shape, input, gradient, precision)
            })
        }
    };
    let dims = [shape.out_channels, shape.in_channels / shape.groups, shape.kernel[0], shape.kernel[1]];
    B::tensor(values, &dims)
}

fn keep_input<B: Host>(codes: &IntTensor<B>, unit: &FloatTensor<B>, worth: CodeWorth) -> PackedImages {
    let [_, channels, height, width] = codes.shape().dims();
    let scale = scales(worth, 0, B::slice(&B::contiguous(unit.clone())))[0];
    B::with_codes(codes, |codes| {
        PackedImages::pack(codes, channels * height * width, scale, worth.bounds.activation)
    })
}

fn keep_weights<B: Host>(codes: &IntTensor<B>, unit: &FloatTensor<B>, worth: CodeWorth) -> WeightCodes<B> {
    WeightCodes { codes: codes.clone(), scales: scales(worth, 1, B::slice(&B::contiguous(unit.clone()))) }
}

/// The sizes of a pooling, if a kernel is to do it.
fn pool_shape(input: &impl TensorMetadata, MaxPool { kernel, stride, padding }: MaxPool) -> Option<Pool> {
    let [_, _, height, width] = input.shape().dims();
    let size = [height, width];
    let has_windows = size.iter().all(|&side| side > 0 && side + 2 * padding >= kernel);
    let is_served = is_served([input]) && has_windows && padding < kernel;
    let out_size = size.map(|side| (side + 2 * padding).saturating_sub(kernel) / stride + 1);
    (is_served && kernel <= Pool::MAX_KERNEL_WITH_PLACES).then_some(Pool {
        kernel,
        stride,
        padding,
        size,
        out_size,
    })
}

/// The shape of a pooled tensor.
fn pooled_dims(input: &impl TensorMetadata, [height, width]: [usize; 2]) -> [usize; 4] {
    let [batch, channels, _, _] = input.shape().dims();
    [batch, channels, height, width]
}

fn max_pool2d<B: Host>(input: FloatTensor<B>, pool: &Pool) -> FloatTensor<B> {
    let (dims, mut values) = (pooled_dims(&input, pool.out_size), Vec::new());
    pool.max(B::slice(&B::contiguous(input)), &[], &mut values);
    B::tensor(values, &dims)
}

fn max_pool2d_kept<B: Host>(input: FloatTensor<B>, pool: Pool) -> (FloatTensor<B>, KeptPlaces) {
    let dims = pooled_dims(&input, pool.out_size);
    let Pooled { values, places } = pool.max_with_places(B::slice(&B::contiguous(input)));
    (B::tensor(values, &dims), KeptPlaces { places: Arc::new(places), pool })
}

fn max_pool2d_gradient<B: Host>(
    KeptPlaces { places, pool }: &KeptPlaces,
    gradient: FloatTensor<B>,
) -> FloatTensor<B> {
    let dims = pooled_dims(&gradient, pool.size);
    B::tensor(pool.gradient(places, B::slice(&B::contiguous(gradient))), &dims)
}

/// Operands of gradients in single precision, without codes.
fn values_in_single_precision<B: Host>(
    input: FloatTensor<B>,
    weight: FloatTensor<B>,
    options: ConvOptions<2>,
) -> ConvOperands<B> {
    let dims = [&input, &weight].map(|tensor| tensor.shape().dims());
    let (input, weight) = (KeptInput::Values(input), KeptWeights::Values(weight));
    ConvOperands { input, weight, dims, options, compute: ConvCompute::default() }
}

/// Values rounded to bf16, if they are to be.
fn round_if<B: Host>(is_rounded: bool, values: FloatTensor<B>) -> FloatTensor<B> {
    let dims = values.shape();
    match is_rounded {
        true => B::tensor(bf16::rounded(B::slice(&B::contiguous(values))), dims.as_slice()),
        false => values,
    }
}

/// Both gradients by the backend's own operations.
fn reference_gradients<B: Host + KernelBackend>(
    operands: ConvOperands<B>,
    gradient: FloatTensor<B>,
    wanted: [bool; 2],
) -> [Option<FloatTensor<B>>; 2] {
    let ConvOperands { input: KeptInput::Values(input), weight: KeptWeights::Values(weight), .. } = operands
    else {
        unreachable!("the reference has no codes")
    };
    let (options, [rounds_input, rounds_weight]) = (operands.options, operands.compute.rounds());
    let input = round_if::<B>(rounds_input, input);
    let weight = round_if::<B>(rounds_weight, weight);
    let gradient = match operands.compute.gradient {
        Some(quantizer) => quantized_gradient::<B>(gradient, quantizer),
        None => round_if::<B>(operands.compute.rounds_gradient(), gradient),
    };
    let of_input = wanted[0].then(|| {
        let (input, weight, gradient) = (input.clone(), weight.clone(), gradient.clone());
        reference::conv2d_input_gradient::<B>(input, weight, gradient, options.clone())
    });
    let of_weight =
        wanted[1].then(|| reference::conv2d_weight_gradient::<B>(input, weight, gradient, options));
    [of_input, of_weight]
}

fn quantized_gradient<B: Host>(gradient: FloatTensor<B>, quantizer: GradientQuantizer) -> FloatTensor<B> {
    let dims = gradient.shape();
    let dims = dims.as_slice();
    B::tensor(quantizer.quantized(B::slice(&B::contiguous(gradient)), dims[0]), dims)
}

fn norm_shape<B: Backend>(input: &FloatTensor<B>) -> NormShape {
    let [batch, channels, height, width] = input.shape().dims();
    NormShape { batch, channels, plane: height * width }
}

fn batch_statistics<B: Host>(input: FloatTensor<B>) -> FloatTensor<B> {
    let shape = norm_shape::<B>(&input);
    let statistics = norm::statistics(shape, B::slice(&B::contiguous(input)));
    B::tensor(statistics, &[2 * shape.channels])
}

fn activation<'a>(kind: &'a ActivationKind, parameters: &'a [f32]) -> Activation<'a> {
    match kind {
        ActivationKind::Identity => Activation::Identity,
        ActivationKind::Relu => Activation::Relu,
        ActivationKind::Formula(formula, codes) => {
            let parameters = if formula.n_parameters() == 0 { &[][..] } else { parameters };
            assert_eq!(formula.rows(parameters.len()), 1, "an activation has one number for each parameter");
            Activation::Formula(formula, parameters, codes.as_ref())
        }
    }
}

fn batch_norm<B: Host>(
    input: FloatTensor<B>,
    parameters: [FloatTensor<B>; 4],
    epsilon: f32,
    kind: ActivationKind,
) -> CodedTensor<B> {
    let (shape, dims) = (norm_shape::<B>(&input), input.shape());
    let input = B::contiguous(input);
    let [gamma, beta, statistics, parameter] = parameters.map(B::contiguous);
    let parameters = NormParameters {
        gamma: B::slice(&gamma),
        beta: B::slice(&beta),
        statistics: B::slice(&statistics),
        epsilon,
    };
    let activation = activation(&kind, B::slice(&parameter));
    B::coded_tensor(norm::apply(shape, B::slice(&input), parameters, activation), dims.as_slice())
}

fn batch_norm_gradients<B: Host>(
    input: FloatTensor<B>,
    parameters: [FloatTensor<B>; 4],
    gradient: FloatTensor<B>,
    epsilon: f32,
    kind: ActivationKind,
) -> [FloatTensor<B>; 4] {
    let (shape, dims) = (norm_shape::<B>(&input), input.shape());
    let input = B::contiguous(input);
    let [gamma, beta, statistics, parameter] = parameters.map(B::contiguous);
    let parameters = NormParameters {
        gamma: B::slice(&gamma),
        beta: B::slice(&beta),
        statistics: B::slice(&statistics),
        epsilon,
    };
    let activation = activation(&kind, B::slice(&parameter));
    let (mut gradients, of_input) = if B::is_own(&gradient) {
        let mut gradients = None;
        let of_input = B::changed(gradient, |gradient| {
            let of = norm::gradients_in_place(shape, B::slice(&input), gradient, parameters, activation);
            gradients = Some(of);
        });
        (gradients.expect("invariant: the tensor is changed"), of_input)
    } else {
        let gradient = B::contiguous(gradient);
        let mut gradients =
            norm::gradients(shape, B::slice(&input), B::slice(&gradient), parameters, activation);
        let of_input = B::tensor(std::mem::take(&mut gradients.input), dims.as_slice());
        (gradients, of_input)
    };
    let channels = [shape.channels];
    // The stand-in for parameters has a gradient of its shape.
    gradients.parameters.resize(B::slice(&parameter).len(), 0.0);
    let n_parameters = [gradients.parameters.len()];
    [
        of_input,
        B::tensor(gradients.gamma, &channels),
        B::tensor(gradients.beta, &channels),
        B::tensor(gradients.parameters, &n_parameters),
    ]
}

fn tanh<B: Host>(w: FloatTensor<B>) -> FloatTensor<B> {
    let dims = w.shape();
    B::tensor(weights::squash(B::slice(&B::contiguous(w))), dims.as_slice())
}

fn double_max<B: Host>(squashed: FloatTensor<B>) -> FloatTensor<B> {
    let max = weights::squashed_max(B::slice(&B::contiguous(squashed)));
    B::tensor(vec![max.divisor()], &[1])
}

fn dorefa_gradient<B: Host>(
    squashed: FloatTensor<B>,
    gradient: FloatTensor<B>,
    max_gradient: MaxGradient,
) -> FloatTensor<B> {
    let dims = squashed.shape();
    let (squashed, gradient) = (B::contiguous(squashed), B::contiguous(gradient));
    let (squashed, gradient) = (B::slice(&squashed), B::slice(&gradient));
    let max = weights::squashed_max(squashed);
    B::tensor(weights::dorefa_gradient(squashed, max, max_gradient, gradient), dims.as_slice())
}

fn fake_quantize<B: Host>(
    x: FloatTensor<B>,
    parameters: FloatTensor<B>,
    formula: &AnyFormula,
    codes: Option<&RangeInclusive<i32>>,
) -> CodedTensor<B> {
    let dims = x.shape();
    let x = B::contiguous(x);
    let parameters = (formula.n_parameters() > 0).then(|| B::contiguous(parameters));
    let parameters = parameters.as_ref().map_or(&[][..], B::slice);
    let output = match codes {
        Some(_) => formula.coded(B::slice(&x), parameters, codes),
        None => Coded { values: formula.forward(B::slice(&x), parameters), codes: None },
    };
    B::coded_tensor(output, dims.as_slice())
}

fn fake_quantize_gradients<B: Host>(
    x: FloatTensor<B>,
    parameters: FloatTensor<B>,
    gradient: FloatTensor<B>,
    formula: &AnyFormula,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (dims, n_parameters) = (x.shape(), formula.n_parameters());
    let [x, gradient] = [x, gradient].map(B::contiguous);
    if n_parameters == 0 {
        let gradients = formula.gradients(B::slice(&x), &[], B::slice(&gradient));
        // Nobody asks for that of the parameters.
        return (B::tensor(gradients.input, dims.as_slice()), parameters);
    }
    let parameters = B::contiguous(parameters);
    let gradients = formula.gradients(B::slice(&x), B::slice(&parameters), B::slice(&gradient));
    let n_parameters = [gradients.parameters.len()];
    (B::tensor(gradients.input, dims.as_slice()), B::tensor(gradients.parameters, &n_parameters))
}

/// The extension on a host backend. What the kernels do not do, the backend does itself.
macro_rules! host_backend {
    ($backend:ty) => {
        impl KeepCodes for $backend {
            const ROUNDS: bool = true;

            fn lowbit_keep_input(
                codes: &IntTensor<Self>,
                unit: &FloatTensor<Self>,
                worth: CodeWorth,
                conv: ConvSizes<'_>,
            ) -> Option<PackedImages> {
                conv_shape(conv.dims, conv.options)?;
                Some(timed(Kind::KeepCodes, || keep_input::<Self>(codes, unit, worth)))
            }

            fn lowbit_keep_weights(
                codes: &IntTensor<Self>,
                unit: &FloatTensor<Self>,
                worth: CodeWorth,
                conv: ConvSizes<'_>,
            ) -> Option<WeightCodes<Self>> {
                conv_shape(conv.dims, conv.options)?;
                Some(keep_weights::<Self>(codes, unit, worth))
            }

            fn lowbit_conv2d_gradients(
                operands: ConvOperands<Self>,
                gradient: FloatTensor<Self>,
                wanted: [bool; 2],
            ) -> [Option<FloatTensor<Self>>; 2] {
                let shape = conv_shape(operands.dims, &operands.options).filter(|_| is_served([&gradient]));
                let Some(shape) = shape else {
                    return reference_gradients::<Self>(operands, gradient, wanted);
                };
                let ConvOperands { input, weight, compute, .. } = operands;
                let gradient = OutGradient::<Self>::new(gradient, compute);
                let of_input = wanted[0].then(|| {
                    timed(Kind::ConvInputGradient, || {
                        conv2d_input_gradient::<Self>(weight, &gradient, compute, &shape)
                    })
                });
                let kind = match input {
                    KeptInput::Codes(_) => Kind::ConvWeightGradientOfCodes,
                    KeptInput::Values(_) => Kind::ConvWeightGradient,
                };
                let of_weight = wanted[1].then(|| {
                    timed(kind, || conv2d_weight_gradient::<Self>(input, &gradient, compute, &shape))
                });
                [of_input, of_weight]
            }

            fn lowbit_max_pool2d_kept(
                input: &FloatTensor<Self>,
                options: MaxPool,
            ) -> Option<(FloatTensor<Self>, KeptPlaces)> {
                let pool = pool_shape(input, options)?;
                Some(timed(Kind::Pool, || max_pool2d_kept::<Self>(input.clone(), pool)))
            }

            fn lowbit_max_pool2d_gradient(
                kept: &KeptPlaces,
                gradient: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                timed(Kind::Pool, || max_pool2d_gradient::<Self>(kept, gradient))
            }

            fn lowbit_quantized_gradient(
                gradient: FloatTensor<Self>,
                quantizer: GradientQuantizer,
            ) -> FloatTensor<Self> {
                timed(Kind::Gradients, || quantized_gradient::<Self>(gradient, quantizer))
            }
        }

        impl KernelBackend for $backend {
            fn lowbit_conv2d(
                input: CodedTensor<Self>,
                weight: CodedTensor<Self>,
                input_unit: FloatTensor<Self>,
                weight_unit: FloatTensor<Self>,
                codes: CodeWorth,
                options: ConvOptions<2>,
                compute: ConvCompute,
            ) -> FloatTensor<Self> {
                let [(input, input_codes), (weight, weight_codes)] = [input, weight].map(CodedTensor::split);
                let dims = [&input, &weight].map(|tensor| tensor.shape().dims());
                let shape = conv_shape(dims, &options).filter(|_| is_served([&input, &weight]));
                let Some(shape) = shape else {
                    let [rounds_input, rounds_weight] = compute.rounds();
                    let input = round_if::<Self>(rounds_input, input);
                    let weight = round_if::<Self>(rounds_weight, weight);
                    return reference::conv2d::<Self>(input, weight, options);
                };
                let serves = if codes.is_exact { IntegerConv::serves } else { IntegerConv::pays };
                if let (Some(input_codes), Some(weight_codes)) = (&input_codes, &weight_codes)
                    && serves(&shape, codes.bounds)
                {
                    let kernel = timed(Kind::PackedWeights, || {
                        integer_conv::<Self>(weight_codes, weight_unit.clone(), codes, &shape)
                    });
                    if let Some(kernel) = kernel {
                        // The values are not needed any more.
                        drop((input, weight));
                        return timed(Kind::ConvCodes, || {
                            conv2d_codes::<Self>(&kernel, input_codes, input_unit, codes, &shape)
                        });
                    }
                }
                let weight_codes = weight_codes.filter(|_| compute.compute == Compute::Bf16);
                let weight_codes =
                    weight_codes.map(|of_weight| keep_weights::<Self>(&of_weight, &weight_unit, codes));
                timed(Kind::ConvForward, || conv2d::<Self>(input, weight, weight_codes, compute, &shape))
            }

            fn lowbit_conv2d_input_gradient(
                input: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                options: ConvOptions<2>,
            ) -> FloatTensor<Self> {
                let operands = values_in_single_precision::<Self>(input, weight, options);
                let [of_input, _] = Self::lowbit_conv2d_gradients(operands, gradient, [true, false]);
                of_input.expect("invariant: it is wanted")
            }

            fn lowbit_conv2d_weight_gradient(
                input: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                options: ConvOptions<2>,
            ) -> FloatTensor<Self> {
                let operands = values_in_single_precision::<Self>(input, weight, options);
                let [_, of_weight] = Self::lowbit_conv2d_gradients(operands, gradient, [false, true]);
                of_weight.expect("invariant: it is wanted")
            }

            fn lowbit_relu(x: FloatTensor<Self>) -> FloatTensor<Self> {
                if !is_served([&x]) {
                    return reference::relu::<Self>(x);
                }
                timed(Kind::Relu, || Self::changed(x, relu::relu))
            }

            fn lowbit_relu_of_sum(one: FloatTensor<Self>, other: FloatTensor<Self>) -> FloatTensor<Self> {
                if !is_served([&one, &other]) || one.shape() != other.shape() {
                    return reference::relu_of_sum::<Self>(one, other);
                }
                timed(Kind::Relu, || {
                    let other = Self::contiguous(other);
                    Self::changed(one, |one| relu::relu_of_sum(one, Self::slice(&other)))
                })
            }

            fn lowbit_relu_gradient(
                output: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                if !is_served([&output, &gradient]) {
                    return reference::relu_gradient::<Self>(output, gradient);
                }
                timed(Kind::Relu, || {
                    let output = Self::contiguous(output);
                    Self::changed(gradient, |gradient| relu::gradient(Self::slice(&output), gradient))
                })
            }

            fn lowbit_max_pool2d(input: FloatTensor<Self>, options: MaxPool) -> FloatTensor<Self> {
                match pool_shape(&input, options) {
                    Some(pool) => timed(Kind::Pool, || max_pool2d::<Self>(input, &pool)),
                    None => reference::max_pool2d::<Self>(input, options),
                }
            }

            fn lowbit_batch_statistics(input: FloatTensor<Self>) -> FloatTensor<Self> {
                if !is_served([&input]) {
                    return reference::batch_statistics::<Self>(input);
                }
                timed(Kind::Norm, || batch_statistics::<Self>(input))
            }

            fn lowbit_batch_norm(
                input: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                statistics: FloatTensor<Self>,
                parameter: FloatTensor<Self>,
                epsilon: f32,
                activation: ActivationKind,
            ) -> CodedTensor<Self> {
                if !is_served([&input, &gamma, &beta, &statistics, &parameter]) {
                    return reference::batch_norm::<Self>(
                        input, gamma, beta, statistics, parameter, epsilon, activation,
                    );
                }
                timed(Kind::Norm, || {
                    batch_norm::<Self>(input, [gamma, beta, statistics, parameter], epsilon, activation)
                })
            }

            fn lowbit_batch_norm_gradients(
                input: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                statistics: FloatTensor<Self>,
                parameter: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                epsilon: f32,
                activation: ActivationKind,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                if !is_served([&input, &gamma, &beta, &statistics, &parameter, &gradient]) {
                    return reference::batch_norm_gradients::<Self>(
                        input, gamma, beta, statistics, parameter, gradient, epsilon, activation,
                    );
                }
                let parameters = [gamma, beta, statistics, parameter];
                timed(Kind::NormGradients, || {
                    batch_norm_gradients::<Self>(input, parameters, gradient, epsilon, activation)
                })
                .into()
            }

            fn lowbit_tanh(w: FloatTensor<Self>) -> FloatTensor<Self> {
                if !is_served([&w]) {
                    return reference::tanh::<Self>(w);
                }
                timed(Kind::Weights, || tanh::<Self>(w))
            }

            fn lowbit_double_max(squashed: FloatTensor<Self>) -> FloatTensor<Self> {
                if !is_served([&squashed]) {
                    return reference::double_max::<Self>(squashed);
                }
                timed(Kind::Weights, || double_max::<Self>(squashed))
            }

            fn lowbit_dorefa_gradient(
                squashed: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                max_gradient: MaxGradient,
            ) -> FloatTensor<Self> {
                if !is_served([&squashed, &gradient]) {
                    return reference::dorefa_gradient::<Self>(squashed, gradient, max_gradient);
                }
                timed(Kind::Weights, || dorefa_gradient::<Self>(squashed, gradient, max_gradient))
            }

            fn lowbit_fake_quantize(
                x: FloatTensor<Self>,
                parameters: FloatTensor<Self>,
                formula: AnyFormula,
                codes: Option<RangeInclusive<i32>>,
            ) -> CodedTensor<Self> {
                if !is_served([&x, &parameters]) {
                    return CodedTensor::Values(reference::fake_quantize::<Self>(x, parameters, &formula));
                }
                timed(Kind::Activations, || fake_quantize::<Self>(x, parameters, &formula, codes.as_ref()))
            }

            fn lowbit_fake_quantize_gradients(
                x: FloatTensor<Self>,
                parameters: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                formula: AnyFormula,
                wanted: bool,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                if !is_served([&x, &parameters, &gradient]) {
                    return reference::fake_quantize_gradients::<Self>(
                        x, parameters, gradient, &formula, wanted,
                    );
                }
                timed(Kind::Activations, || {
                    fake_quantize_gradients::<Self>(x, parameters, gradient, &formula)
                })
            }

            fn lowbit_value_range(x: FloatTensor<Self>) -> FloatTensor<Self> {
                if !is_served([&x]) {
                    return reference::value_range::<Self>(x);
                }
                timed(Kind::Activations, || {
                    Self::tensor(
                        lowbit_cpu::fake_quantize::range(Self::slice(&Self::contiguous(x))).into(),
                        &[2],
                    )
                })
            }
        }
    };
}

#[cfg(feature = "flex")]
mod flex {
    use burn::backend::Flex;

    use super::*;

    impl Host for Flex {
        type Contiguous = FloatTensor<Self>;

        fn contiguous(tensor: FloatTensor<Self>) -> FloatTensor<Self> {
            tensor.to_contiguous()
        }

        fn slice(tensor: &FloatTensor<Self>) -> &[f32] {
            tensor.as_slice().expect("invariant: the tensor is contiguous and of f32")
        }

        fn tensor(values: Vec<f32>, shape: &[usize]) -> FloatTensor<Self> {
            FloatTensor::<Self>::from_data(TensorData::new(values, shape.to_vec()))
        }

        fn is_own(tensor: &FloatTensor<Self>) -> bool {
            tensor.is_unique()
        }

        fn changed(tensor: FloatTensor<Self>, change: impl FnOnce(&mut [f32])) -> FloatTensor<Self> {
            // A handle less, so that values that nothing else has are not shared.
            let mut tensor = Self::contiguous(tensor);
            change(tensor.storage_mut());
            tensor
        }

        fn code_tensor(codes: Vec<u8>, shape: &[usize]) -> IntTensor<Self> {
            IntTensor::<Self>::from_data(TensorData::new(codes, shape.to_vec()))
        }

        fn with_codes<T>(codes: &IntTensor<Self>, read: impl FnOnce(&[u8]) -> T) -> T {
            read(codes.to_contiguous().as_slice().expect("invariant: codes are contiguous, of u8"))
        }
    }

    host_backend!(Flex);
}

#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "burn has deprecated the backend, which this project keeps")]
mod ndarray {
    use ::ndarray::{ArcArray, IxDyn};
    use burn::backend::NdArray;

    use super::*;

    type NdArrayTensor = FloatTensor<NdArray>;

    impl Host for NdArray {
        type Contiguous = ArcArray<f32, IxDyn>;

        fn contiguous(tensor: FloatTensor<Self>) -> Self::Contiguous {
            let NdArrayTensor::F32(storage) = tensor else { panic!("kernels take f32") };
            let array = storage.into_shared();
            match array.is_standard_layout() {
                true => array,
                false => array.as_standard_layout().into_owned().into_shared(),
            }
        }

        fn slice(tensor: &Self::Contiguous) -> &[f32] {
            tensor.as_slice().expect("invariant: the array has the standard layout")
        }

        fn tensor(values: Vec<f32>, shape: &[usize]) -> FloatTensor<Self> {
            NdArrayTensor::from_data(TensorData::new(values, shape.to_vec()))
        }

        fn changed(tensor: FloatTensor<Self>, change: impl FnOnce(&mut [f32])) -> FloatTensor<Self> {
            let mut array = Self::contiguous(tensor);
            change(array.as_slice_mut().expect("invariant: the array has the standard layout"));
            array.into()
        }

        fn code_tensor(codes: Vec<u8>, shape: &[usize]) -> IntTensor<Self> {
            NdArrayTensor::from_data(TensorData::new(codes, shape.to_vec()))
        }

        fn with_codes<T>(codes: &IntTensor<Self>, read: impl FnOnce(&[u8]) -> T) -> T {
            let NdArrayTensor::U8(storage) = codes.clone() else { panic!("codes are of u8") };
            let array = storage.into_shared();
            read(array.as_standard_layout().as_slice().expect("invariant: the array has the standard layout"))
        }
    }

    host_backend!(NdArray);
}
