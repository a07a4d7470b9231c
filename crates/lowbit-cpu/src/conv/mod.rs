//! Two-dimensional convolution and its gradients.
//!
//! All three are sums over planes, images with zeros around them (`planes`), whose places have floats or numbers of bf16 (`cell`),
//! in two loops over vectors (`kernel`) or the same on a matrix unit (`tiles`); `way` chooses. The forward pass is a sum over the
//! positions of a window, for many pixels at a time; the gradient of the input is the same of the output's gradient, by the parts
//! of the kernel that meet each of the stride's phases (`correlation`); the gradient of the weights is, for each position of a
//! window, a sum over pixels. Groups of very few channels have loops of their own in `direct`.

mod cell;
mod correlation;
mod direct;
mod forward;
mod input_gradient;
mod kernel;
mod operand;
mod planes;
mod shape;
pub(crate) mod source;
pub(crate) mod tables;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod way;
mod weight_gradient;

pub use forward::{forward, forward_into};
pub use input_gradient::input_gradient;
pub use operand::{Gradient, Input, Precision, Weights};
pub use shape::ConvShape;
pub use weight_gradient::weight_gradient;
