//! Two-dimensional convolution and its gradients.
//!
//! All three are the same computation: an image, padded by zeros, is read at a start (one for each value of the result)
//! plus a step (one for each summand), and multiplied by a panel that holds the values of up to 16 channels for each
//! step. The forward pass starts at pixels and steps over the kernel; the gradient of the input is a convolution of the
//! output's gradient, by the parts of the kernel that meet each of the stride's phases; the gradient of the weights
//! starts at positions of the kernel and steps over pixels. Groups of very few channels, which would leave the panel
//! empty, have loops of their own in `direct`.

mod direct;
mod forward;
mod input_gradient;
mod pass;
mod shape;
pub(crate) mod source;
pub(crate) mod tables;
#[cfg(test)]
mod tests;
mod weight_gradient;

pub use forward::{forward, forward_into};
pub use input_gradient::input_gradient;
pub use shape::ConvShape;
pub use weight_gradient::{weight_gradient, weight_gradient_of_codes};
