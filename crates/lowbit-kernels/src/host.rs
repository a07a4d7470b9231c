//! The operations on the backends whose tensors lie in host memory, by the kernels of [`lowbit_cpu`].

use std::ops::RangeInclusive;
use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, TensorData};
use lowbit_cpu::bf16;
use lowbit_cpu::codes::Coded;
use lowbit_cpu::conv::{self, ConvShape};
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::integer::IntegerConv;
use lowbit_cpu::norm::{self, Activation, NormParameters, NormShape};
use lowbit_cpu::packed::PackedImages;
use lowbit_cpu::pool::{Pool, Pooled};
use lowbit_cpu::relu;
use lowbit_cpu::weights::{self, MaxGradient};

use crate::backend::{
    ActivationKind, CodeWorth, CodedTensor, ConvCompute, KeepCodes, KeptCodes, KeptPlaces, KernelBackend,
    MaxPool,
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

/// The sizes of a convolution, if a kernel is to do it: without dilation, padded alike on both sides.
fn conv_shape<T: TensorMetadata>(input: &T, weight: &T, options: &ConvOptions<2>) -> Option<ConvShape> {
    let [batch, in_channels, height, width] = input.shape().dims();
    let [out_channels, _, kernel_height, kernel_width] = weight.shape().dims();
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
    (is_served([input, weight]) && is_symmetric && options.dilation == [1, 1]).then_some(shape)
}

fn conv2d<B: Host>(input: FloatTensor<B>, weight: FloatTensor<B>, shape: &ConvShape) -> FloatTensor<B> {
    let (input, weight) = (B::contiguous(input), B::contiguous(weight));
    let [height, width] = shape.out_size();
    let dims = [shape.batch, shape.out_channels, height, width];
    B::tensor(conv::forward(shape, B::slice(&input), B::slice(&weight)), &dims)
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

fn conv2d_input_gradient<B: Host>(
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    shape: &ConvShape,
) -> FloatTensor<B> {
    let (weight, gradient) = (B::contiguous(weight), B::contiguous(gradient));
    let dims = [shape.batch, shape.in_channels, shape.size[0], shape.size[1]];
    B::tensor(conv::input_gradient(shape, B::slice(&weight), B::slice(&gradient)), &dims)
}

fn conv2d_weight_gradient<B: Host>(
    input: FloatTensor<B>,
    gradient: FloatTensor<B>,
    shape: &ConvShape,
) -> FloatTensor<B> {
    let (input, gradient) = (B::contiguous(input), B::contiguous(gradient));
    let dims = [shape.out_channels, shape.in_channels / shape.groups, shape.kernel[0], shape.kernel[1]];
    B::tensor(conv::weight_gradient(shape, B::slice(&input), B::slice(&gradient)), &dims)
}

fn keep_codes<B: Host>(
    input: &FloatTensor<B>,
    weight: &FloatTensor<B>,
    input_codes: &IntTensor<B>,
    input_unit: &FloatTensor<B>,
    codes: CodeWorth,
    options: &ConvOptions<2>,
) -> Option<KeptCodes> {
    let shape = conv_shape(input, weight, options)?;
    if shape.groups > 1 {
        return None;
    }
    let scale = scales(codes, 0, B::slice(&B::contiguous(input_unit.clone())))[0];
    let image_len = shape.in_channels * shape.size[0] * shape.size[1];
    let pack = |codes_: &[u8]| PackedImages::pack(codes_, image_len, scale, codes.bounds.activation);
    Some(KeptCodes { input: B::with_codes(input_codes, pack), shape })
}

fn weight_gradient_of_codes<B: Host>(kept: &KeptCodes, gradient: FloatTensor<B>) -> FloatTensor<B> {
    let (shape, gradient) = (&kept.shape, B::contiguous(gradient));
    let dims = [shape.out_channels, shape.in_channels, shape.kernel[0], shape.kernel[1]];
    B::tensor(conv::weight_gradient_of_codes(shape, &kept.input, B::slice(&gradient)), &dims)
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

fn round_to_bf16<B: Host>(values: FloatTensor<B>) -> FloatTensor<B> {
    let dims = values.shape();
    B::tensor(bf16::rounded(B::slice(&B::contiguous(values))), dims.as_slice())
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
            fn lowbit_keep_codes(
                input: &FloatTensor<Self>,
                weight: &FloatTensor<Self>,
                input_codes: &IntTensor<Self>,
                input_unit: &FloatTensor<Self>,
                codes: CodeWorth,
                options: &ConvOptions<2>,
            ) -> Option<KeptCodes> {
                timed(Kind::KeepCodes, || {
                    keep_codes::<Self>(input, weight, input_codes, input_unit, codes, options)
                })
            }

            fn lowbit_gradients_of_codes(
                kept: &KeptCodes,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                [input_wanted, weight_wanted]: [bool; 2],
            ) -> [Option<FloatTensor<Self>>; 2] {
                let of_input = input_wanted.then(|| {
                    timed(Kind::ConvInputGradient, || {
                        conv2d_input_gradient::<Self>(weight, gradient.clone(), &kept.shape)
                    })
                });
                let of_weight = weight_wanted.then(|| {
                    timed(Kind::ConvWeightGradientOfCodes, || {
                        weight_gradient_of_codes::<Self>(kept, gradient)
                    })
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

            // What the reference multiplies is rounded by the same function: burn's backends have none in common.
            fn lowbit_round_to_bf16(values: FloatTensor<Self>) -> FloatTensor<Self> {
                timed(Kind::Rounding, || round_to_bf16::<Self>(values))
            }
        }

        impl KernelBackend for $backend {
            fn lowbit_conv2d(
                input: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                options: ConvOptions<2>,
                _compute: ConvCompute,
            ) -> FloatTensor<Self> {
                match conv_shape(&input, &weight, &options) {
                    Some(shape) => timed(Kind::ConvForward, || conv2d::<Self>(input, weight, &shape)),
                    None => reference::conv2d::<Self>(input, weight, options),
                }
            }

            fn lowbit_conv2d_codes(
                input: CodedTensor<Self>,
                weight: CodedTensor<Self>,
                input_unit: FloatTensor<Self>,
                weight_unit: FloatTensor<Self>,
                codes: CodeWorth,
                options: ConvOptions<2>,
                compute: ConvCompute,
            ) -> FloatTensor<Self> {
                let [(input, input_codes), (weight, weight_codes)] = [input, weight].map(CodedTensor::split);
                let serves = if codes.is_exact { IntegerConv::serves } else { IntegerConv::pays };
                let shape = conv_shape(&input, &weight, &options).filter(|shape| serves(shape, codes.bounds));
                if let (Some(shape), Some(input_codes), Some(weight_codes)) =
                    (shape, input_codes, weight_codes)
                {
                    let kernel = timed(Kind::PackedWeights, || {
                        integer_conv::<Self>(&weight_codes, weight_unit, codes, &shape)
                    });
                    if let Some(kernel) = kernel {
                        // The values are not needed any more.
                        drop((input, weight));
                        return timed(Kind::ConvCodes, || {
                            conv2d_codes::<Self>(&kernel, &input_codes, input_unit, codes, &shape)
                        });
                    }
                }
                Self::lowbit_conv2d(input, weight, options, compute)
            }

            fn lowbit_conv2d_input_gradient(
                input: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                options: ConvOptions<2>,
            ) -> FloatTensor<Self> {
                match conv_shape(&input, &weight, &options).filter(|_| is_served([&gradient])) {
                    Some(shape) => timed(Kind::ConvInputGradient, || {
                        conv2d_input_gradient::<Self>(weight, gradient, &shape)
                    }),
                    None => reference::conv2d_input_gradient::<Self>(input, weight, gradient, options),
                }
            }

            fn lowbit_conv2d_weight_gradient(
                input: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                options: ConvOptions<2>,
            ) -> FloatTensor<Self> {
                match conv_shape(&input, &weight, &options).filter(|_| is_served([&gradient])) {
                    Some(shape) => timed(Kind::ConvWeightGradient, || {
                        conv2d_weight_gradient::<Self>(input, gradient, &shape)
                    }),
                    None => reference::conv2d_weight_gradient::<Self>(input, weight, gradient, options),
                }
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
