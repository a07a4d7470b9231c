//! What maps the integer codes of a tensor to real values.

use burn::tensor::{Int, Tensor};
use lowbit_core::CodeRange;
use lowbit_kernels::reduce_in_parts;

/// The parameters of an integer grid: `value = scale * (code - zero_point)`.
#[derive(Clone, Debug)]
pub struct QParams {
    /// Real value of one code step. Positive, but zero for 1-bit DoReFa weights that are all zero. Shape `[1]`, or
    /// `[channels]` per output channel (the first axis).
    pub scale: Tensor<1>,
    /// The code of real zero, same shape as `scale`. An integer, except for DoReFa weights, whose grid does not contain
    /// zero: there it is the half-integer between the two codes around it.
    pub zero_point: Tensor<1>,
    /// Inclusive bounds of the codes.
    pub range: CodeRange,
}

impl QParams {
    /// Real values of `codes`, up to float rounding of the affine map. Shapes `[...]` to `[...]`.
    ///
    /// A quantizer's own `fake_quantize` evaluates the same grid in the order of its paper's formula and is what
    /// evaluation and export use bit for bit.
    pub fn dequantize<const D: usize>(&self, codes: Tensor<D, Int>) -> Tensor<D> {
        (codes.float() - per_channel::<D>(self.zero_point.clone())) * per_channel::<D>(self.scale.clone())
    }
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
