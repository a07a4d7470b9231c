//! The operations on the backends whose tensors lie in host memory, by the kernels of [`crate::cpu`].

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, TensorData};

use crate::backend::{Activation, KernelBackend};
use crate::cpu::conv::{self, ConvShape};
use crate::cpu::fake_quantize::{self, Grid};
use crate::cpu::norm::{self, NormParameters, NormShape};

/// A backend whose float tensors can be read as slices.
trait Host: Backend {
    /// A tensor whose elements lie one after the other.
    type Contiguous;

    fn contiguous(tensor: FloatTensor<Self>) -> Self::Contiguous;
    fn slice(tensor: &Self::Contiguous) -> &[f32];
    fn tensor(values: Vec<f32>, shape: &[usize]) -> FloatTensor<Self>;
}

/// The sizes of a convolution, if the kernels do it: without dilation, padded alike on both sides.
fn conv_shape(input: [usize; 4], weight: [usize; 4], options: &ConvOptions<2>) -> Option<ConvShape> {
    let [batch, in_channels, height, width] = input;
    let [out_channels, _, kernel_height, kernel_width] = weight;
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
    (options.dilation == [1, 1] && is_symmetric && batch > 0).then_some(shape)
}

fn conv2d<B: Host>(input: FloatTensor<B>, weight: FloatTensor<B>, shape: &ConvShape) -> FloatTensor<B> {
    let (input, weight) = (B::contiguous(input), B::contiguous(weight));
    let [height, width] = shape.out_size();
    let dims = [shape.batch, shape.out_channels, height, width];
    let mut output = vec![0.0; dims.iter().product()];
    conv::forward(shape, B::slice(&input), B::slice(&weight), &mut output);
    B::tensor(output, &dims)
}

fn conv2d_input_gradient<B: Host>(
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    shape: &ConvShape,
) -> FloatTensor<B> {
    let (weight, gradient) = (B::contiguous(weight), B::contiguous(gradient));
    let dims = [shape.batch, shape.in_channels, shape.size[0], shape.size[1]];
    let mut result = vec![0.0; dims.iter().product()];
    conv::input_gradient(shape, B::slice(&weight), B::slice(&gradient), &mut result);
    B::tensor(result, &dims)
}

fn conv2d_weight_gradient<B: Host>(
    input: FloatTensor<B>,
    gradient: FloatTensor<B>,
    shape: &ConvShape,
) -> FloatTensor<B> {
    let (input, gradient) = (B::contiguous(input), B::contiguous(gradient));
    let dims = [shape.out_channels, shape.in_channels / shape.groups, shape.kernel[0], shape.kernel[1]];
    let mut result = vec![0.0; dims.iter().product()];
    conv::weight_gradient(shape, B::slice(&input), B::slice(&gradient), &mut result);
    B::tensor(result, &dims)
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

fn batch_norm<B: Host>(
    input: FloatTensor<B>,
    [gamma, beta, statistics]: [FloatTensor<B>; 3],
    epsilon: f32,
    activation: Activation,
) -> FloatTensor<B> {
    let (shape, dims) = (norm_shape::<B>(&input), input.shape());
    let input = B::contiguous(input);
    let [gamma, beta, statistics] = [gamma, beta, statistics].map(B::contiguous);
    let parameters = NormParameters {
        gamma: B::slice(&gamma),
        beta: B::slice(&beta),
        statistics: B::slice(&statistics),
        epsilon,
        activation: activation.kernel(),
    };
    let mut output = vec![0.0; dims.num_elements()];
    norm::apply(shape, B::slice(&input), parameters, &mut output);
    B::tensor(output, dims.as_slice())
}

fn batch_norm_gradients<B: Host>(
    input: FloatTensor<B>,
    [gamma, beta, statistics]: [FloatTensor<B>; 3],
    gradient: FloatTensor<B>,
    epsilon: f32,
    activation: Activation,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (shape, dims) = (norm_shape::<B>(&input), input.shape());
    let (input, gradient) = (B::contiguous(input), B::contiguous(gradient));
    let [gamma, beta, statistics] = [gamma, beta, statistics].map(B::contiguous);
    let parameters = NormParameters {
        gamma: B::slice(&gamma),
        beta: B::slice(&beta),
        statistics: B::slice(&statistics),
        epsilon,
        activation: activation.kernel(),
    };
    let mut result = vec![0.0; dims.num_elements()];
    let gradients = norm::gradients(shape, B::slice(&input), B::slice(&gradient), parameters, &mut result);
    let channels = [shape.channels];
    (
        B::tensor(result, dims.as_slice()),
        B::tensor(gradients.gamma, &channels),
        B::tensor(gradients.beta, &channels),
    )
}

fn fake_quantize_unit<B: Host>(x: FloatTensor<B>, n: f32) -> FloatTensor<B> {
    let dims = x.shape();
    let mut y = vec![0.0; dims.num_elements()];
    fake_quantize::unit(B::slice(&B::contiguous(x)), n, &mut y);
    B::tensor(y, dims.as_slice())
}

fn fake_quantize_unit_gradient<B: Host>(x: FloatTensor<B>, gradient: FloatTensor<B>) -> FloatTensor<B> {
    let dims = x.shape();
    let mut result = vec![0.0; dims.num_elements()];
    fake_quantize::unit_gradient(
        B::slice(&B::contiguous(x)),
        B::slice(&B::contiguous(gradient)),
        &mut result,
    );
    B::tensor(result, dims.as_slice())
}

fn fake_quantize_learned<B: Host>(
    x: FloatTensor<B>,
    parameter: FloatTensor<B>,
    grid: Grid,
) -> FloatTensor<B> {
    let dims = x.shape();
    let mut y = vec![0.0; dims.num_elements()];
    fake_quantize::learned(B::slice(&B::contiguous(x)), B::slice(&B::contiguous(parameter)), grid, &mut y);
    B::tensor(y, dims.as_slice())
}

fn fake_quantize_learned_gradients<B: Host>(
    x: FloatTensor<B>,
    parameter: FloatTensor<B>,
    gradient: FloatTensor<B>,
    grid: Grid,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dims = x.shape();
    let [x, parameter, gradient] = [x, parameter, gradient].map(B::contiguous);
    let mut result = vec![0.0; dims.num_elements()];
    let sums = fake_quantize::learned_gradient(
        B::slice(&x),
        B::slice(&parameter),
        grid,
        B::slice(&gradient),
        &mut result,
    );
    let n_parameters = [sums.len()];
    (B::tensor(result, dims.as_slice()), B::tensor(sums, &n_parameters))
}

/// The extension on a host backend. What the kernels do not do, the backend does itself.
macro_rules! host_backend {
    ($backend:ty) => {
        impl KernelBackend for $backend {
            fn lowbit_conv2d(
                input: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                options: ConvOptions<2>,
            ) -> FloatTensor<Self> {
                assert_eq!(input.dtype(), DType::F32, "kernels take f32");
                match conv_shape(input.shape().dims(), weight.shape().dims(), &options) {
                    Some(shape) => conv2d::<Self>(input, weight, &shape),
                    None => {
                        <Self as burn::backend::ops::ModuleOps<Self>>::conv2d(input, weight, None, options)
                    }
                }
            }

            fn lowbit_conv2d_input_gradient(
                input: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                options: ConvOptions<2>,
            ) -> FloatTensor<Self> {
                match conv_shape(input.shape().dims(), weight.shape().dims(), &options) {
                    Some(shape) => conv2d_input_gradient::<Self>(weight, gradient, &shape),
                    None => <Self as burn::backend::ops::ModuleOps<Self>>::conv2d_x_backward(
                        input, weight, gradient, options,
                    ),
                }
            }

            fn lowbit_conv2d_weight_gradient(
                input: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                options: ConvOptions<2>,
            ) -> FloatTensor<Self> {
                match conv_shape(input.shape().dims(), weight.shape().dims(), &options) {
                    Some(shape) => conv2d_weight_gradient::<Self>(input, gradient, &shape),
                    None => <Self as burn::backend::ops::ModuleOps<Self>>::conv2d_weight_backward(
                        input, weight, gradient, options,
                    ),
                }
            }

            fn lowbit_batch_statistics(input: FloatTensor<Self>) -> FloatTensor<Self> {
                batch_statistics::<Self>(input)
            }

            fn lowbit_batch_norm(
                input: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                statistics: FloatTensor<Self>,
                epsilon: f32,
                activation: Activation,
            ) -> FloatTensor<Self> {
                batch_norm::<Self>(input, [gamma, beta, statistics], epsilon, activation)
            }

            fn lowbit_batch_norm_gradients(
                input: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                beta: FloatTensor<Self>,
                statistics: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                epsilon: f32,
                activation: Activation,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                batch_norm_gradients::<Self>(input, [gamma, beta, statistics], gradient, epsilon, activation)
            }

            fn lowbit_fake_quantize_unit(x: FloatTensor<Self>, n: f32) -> FloatTensor<Self> {
                fake_quantize_unit::<Self>(x, n)
            }

            fn lowbit_fake_quantize_unit_gradient(
                x: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                fake_quantize_unit_gradient::<Self>(x, gradient)
            }

            fn lowbit_fake_quantize(
                x: FloatTensor<Self>,
                parameter: FloatTensor<Self>,
                grid: Grid,
            ) -> FloatTensor<Self> {
                fake_quantize_learned::<Self>(x, parameter, grid)
            }

            fn lowbit_fake_quantize_gradients(
                x: FloatTensor<Self>,
                parameter: FloatTensor<Self>,
                gradient: FloatTensor<Self>,
                grid: Grid,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                fake_quantize_learned_gradients::<Self>(x, parameter, gradient, grid)
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
    }

    host_backend!(NdArray);
}
