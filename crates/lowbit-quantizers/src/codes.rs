//! Reductions, codes and grids from the tensors of a quantizer.

use burn::tensor::{Int, Tensor};
use lowbit_kernels::reduce_in_parts;

use crate::parameter::constant;

/// The numbers of a tensor, read from its device.
pub(crate) fn read(tensor: Tensor<1>) -> Vec<f32> {
    constant(tensor).into_data().iter::<f32>().collect()
}

/// The integers that fake-quantized values are multiples of, of their shape: what was rounded once is not rounded to another
/// code, however a device divides. 0 for `NaN`, of which backends make different integers, or none.
pub(crate) fn codes_of<const D: usize>(values: Tensor<D>, scale: Tensor<1>) -> Tensor<D, Int> {
    zero_if_nan((values / per_channel(scale)).round()).int()
}

/// `x` with 0 in the place of `NaN`.
pub(crate) fn zero_if_nan<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let is_nan = x.clone().is_nan();
    x.mask_fill(is_nan, 0.0)
}

/// 1 where `x` is negative, else 0: also for -0 and `NaN`.
pub(crate) fn is_negative<const D: usize>(x: Tensor<D>) -> Tensor<D, Int> {
    x.lower_scalar(0.0).int()
}

/// Reshapes `[n]` to `[n, 1, ..., 1]`, so that it broadcasts along the first axis; `n` is 1 per tensor.
pub(crate) fn per_channel<const D: usize>(parameter: Tensor<1>) -> Tensor<D> {
    let mut shape = [1; D];
    shape[0] = parameter.dims()[0];
    parameter.reshape(shape)
}

/// Reduces to one value per slice along the first axis, shape `[n]`, with `reduce` over the other axes; or, for
/// `per_tensor`, to one value, shape `[1]`. Sums along an axis are taken in a fixed order; burn's sums of a whole tensor depend
/// on the threads when it is large.
pub(crate) fn reduce<const D: usize>(
    x: Tensor<D>,
    granularity: lowbit_core::Granularity,
    reduce: impl Fn(Tensor<2>) -> Tensor<2>,
) -> Tensor<1> {
    let n = match granularity {
        lowbit_core::Granularity::PerTensor => 1,
        lowbit_core::Granularity::PerChannel => x.dims()[0],
    };
    let elements = x.dims().iter().product::<usize>() / n;
    reduce_in_parts(x.reshape([n, elements]), &reduce)
}
