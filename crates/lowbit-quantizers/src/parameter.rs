//! What the learned parameters of all methods have in common.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use lowbit_core::BitWidth;

use crate::Method;

/// Whether the state at the dotted `path` of a module is a quantizer's: what an optimizer treats apart from the weights, and
/// what a network at other bits may lack. Of a layer of this crate that is all below its quantizers; in a module of one's own it
/// is told by the name that a method has for it.
pub fn is_quantizer_state(path: &str) -> bool {
    let name = path.rsplit('.').next();
    path.split('.').any(|part| ["weight_quantizer", "input_quantizer"].contains(&part))
        || name.is_some_and(|name| {
            let mut names = Method::ALL.iter().flat_map(|method| method.state()).flatten();
            name == "recorded_bits" || names.any(|of_method| *of_method == name)
        })
}

/// A learned positive parameter of a quantizer, ready for the forward pass.
///
/// The forward value is `parameter` itself, but at least `floor`, so that a scale can never turn zero or negative
/// whatever the optimizer does. The backward pass multiplies the gradient by `grad_scale` and reaches the parameter
/// even below the floor, so that it can recover.
pub(crate) fn positive_parameter(parameter: Tensor<1>, floor: f32, grad_scale: f64) -> Tensor<1> {
    let value = constant(parameter.clone()).clamp_min(floor);
    let scaled = parameter.mul_scalar(grad_scale);
    // Zero in the forward pass: x - x is exactly 0 for every finite x.
    let gradient_path = scaled.clone() - constant(scaled);
    value + gradient_path
}

/// A learned parameter of either sign, ready for the forward pass, its gradient multiplied by `grad_scale`.
pub(crate) fn scaled_parameter(parameter: Tensor<1>, grad_scale: f64) -> Tensor<1> {
    let path = parameter.clone().mul_scalar(grad_scale);
    constant(parameter) + (path.clone() - constant(path))
}

/// The value of `tensor`, without gradient and without asking for one: burn's `detach` of a tensor that asks for a gradient, as a
/// parameter does, asks for it again.
pub(crate) fn constant<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.detach().set_require_grad(false)
}

/// The bit width as a part of a module's record: one element for each bit. burn compares shapes when it loads a record, so that
/// one of another bit width is an error.
pub(crate) fn recorded_bits(bits: BitWidth, device: &Device) -> Param<Tensor<1, Int>> {
    let n = bits.get() as usize;
    let init = move |device: &Device, _| {
        let data = TensorData::new(vec![n as i32; n], [n]);
        Tensor::from_data(data, (device, DType::I32))
    };
    Param::uninitialized(ParamId::new(), init, device.clone(), false, [n].into())
}

/// How many of the learned parameters are held at `floor`, `[1]`.
pub(crate) fn n_at_floor(parameter: Tensor<1>, floor: f32) -> Tensor<1, Int> {
    constant(parameter).lower_equal_scalar(floor).int().sum()
}

/// `new` in the place of `old`: on its device, with its gradient requirement.
pub(crate) fn replace(old: Tensor<1>, new: Tensor<1>) -> Tensor<1> {
    Tensor::from_data(new.into_data(), &old.device()).set_require_grad(old.is_require_grad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_of_quantizers_is_told_from_weights() {
        for path in [
            "stem.weight_quantizer.step_size",
            "fc.input_quantizer.running_max",
            "mine.clip_value",
            "step_size",
            "mine.recorded_bits",
            "mine.running_min",
            "mine.running_max",
            "mine.log2_threshold",
            "interval_upper",
        ] {
            assert!(is_quantizer_state(path), "{path}");
        }
        for path in [
            "stem.weight",
            "stages.0.0.norm1.gamma",
            "fc.bias",
            "step_size.weight",
            "norm.running_var",
            "prelu.alpha",
            "basis",
        ] {
            assert!(!is_quantizer_state(path), "{path}");
        }
    }
}
