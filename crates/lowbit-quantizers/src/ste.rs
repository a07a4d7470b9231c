//! Straight-through estimators: operations whose forward pass is a step function and whose backward pass is the
//! identity, Bengio et al. 2013 (arXiv 1308.3432).

use burn::tensor::Tensor;

/// Rounds to the nearest integer, ties to even; the gradient passes through unchanged.
///
/// `v + (round(v) - v)` is exact in floating point because `round(v)` and `v` are within a factor of two of each
/// other or one of them is zero (Sterbenz), so the result is an integer, bit for bit.
pub fn ste_round<const D: usize>(v: Tensor<D>) -> Tensor<D> {
    straight_through(v.clone().round(), v)
}

/// The sign as -1 or +1, with `ste_sign(0) = +1`; the gradient passes through unchanged.
pub fn ste_sign<const D: usize>(v: Tensor<D>) -> Tensor<D> {
    straight_through(sign(v.clone()), v)
}

/// The sign as -1 or +1, with `sign(0) = +1`. Its gradient is zero.
pub fn sign<const D: usize>(v: Tensor<D>) -> Tensor<D> {
    let negative = v.clone().lower_scalar(0.0);
    v.ones_like().mask_fill(negative, -1.0)
}

/// `value` in the forward pass, the gradient of `surrogate` in the backward pass.
///
/// Exact where `value - surrogate` is representable; see [`ste_round`].
pub(crate) fn straight_through<const D: usize>(value: Tensor<D>, surrogate: Tensor<D>) -> Tensor<D> {
    let residual = (value - surrogate.clone()).detach();
    surrogate + residual
}

/// A learned positive parameter of a quantizer, ready for the forward pass.
///
/// The forward value is `parameter` itself, but at least `floor`, so that a scale can never turn zero or negative
/// whatever the optimizer does. The backward pass multiplies the gradient by `grad_scale` and reaches the parameter
/// even below the floor, so that it can recover.
pub(crate) fn positive_parameter(parameter: Tensor<1>, floor: f32, grad_scale: f64) -> Tensor<1> {
    let value = parameter.clone().detach().clamp_min(floor);
    let scaled = parameter.mul_scalar(grad_scale);
    // Zero in the forward pass: x - x is exactly 0 for every finite x.
    let gradient_path = scaled.clone() - scaled.detach();
    value + gradient_path
}
