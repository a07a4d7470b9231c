//! What the learned parameters of all methods have in common.

use burn::tensor::{Int, Tensor};

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

/// How many of the learned parameters are held at `floor`, `[1]`.
pub(crate) fn n_at_floor(parameter: Tensor<1>, floor: f32) -> Tensor<1, Int> {
    parameter.detach().lower_equal_scalar(floor).int().sum()
}

/// `new` in the place of `old`: on its device, with its gradient requirement.
pub(crate) fn replace(old: Tensor<1>, new: Tensor<1>) -> Tensor<1> {
    Tensor::from_data(new.into_data(), &old.device()).set_require_grad(old.is_require_grad())
}
