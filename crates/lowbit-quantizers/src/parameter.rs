//! What the learned parameters of all methods have in common.

use burn::tensor::Tensor;

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
