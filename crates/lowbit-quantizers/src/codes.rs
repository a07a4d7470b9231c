//! Reductions, codes and grids from the tensors of a quantizer.

use burn::tensor::Tensor;
use lowbit_kernels::reduce_in_parts;

use crate::parameter::constant;

/// The numbers of a tensor, read from its device.
pub(crate) fn read(tensor: Tensor<1>) -> Vec<f32> {
    constant(tensor).into_data().iter::<f32>().collect()
}

/// `x` with 0 in the place of `NaN`.
pub(crate) fn zero_if_nan<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let is_nan = x.clone().is_nan();
    x.mask_fill(is_nan, 0.0)
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
