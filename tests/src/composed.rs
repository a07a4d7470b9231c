//! The operations once more as functions of tensors, with burn's own gradients: what the formulas and the kernels are compared
//! with. Nothing here uses them.
//!
//! A gradient that is not the derivative of the value is that of a term which adds an exact zero: `x - x`, one of the two
//! detached.

use burn::tensor::activation::relu;
use burn::tensor::{Bool, Tensor};
use lowbit_kernels::{Activation, AnyFormula, MaxGradient, Scheme};
use lowbit_quantizers::methods::{dorefa, lsq, minmax, pact};

/// A fake quantizer of activations or weights by its grid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Grid {
    /// `round(clip(x, 0, 1) n) / n`.
    Unit {
        /// Steps of the grid.
        n: f32,
    },
    /// `round(clip(x / s, q_min, q_max)) s`.
    Step {
        /// Smallest code.
        q_min: f32,
        /// Largest code.
        q_max: f32,
    },
    /// `round(clip(x, 0, a) / a n) / n a`.
    Clip {
        /// Steps of the grid.
        n: f32,
    },
    /// `sign(x) s`, whose gradient passes everywhere or where `|x / s| < 1`.
    Sign {
        /// Which of both.
        is_bounded: bool,
    },
    /// `(clip(round(x / s) + z, 0, n) - z) s`.
    Affine {
        /// Steps of the grid.
        n: f32,
    },
}

impl Grid {
    /// The formula of the quantizers with this grid.
    pub fn formula(self) -> AnyFormula {
        match self {
            Self::Unit { n } => AnyFormula::new(dorefa::Unit { n }),
            Self::Step { q_min, q_max } => AnyFormula::new(lsq::Step { q_min, q_max }),
            Self::Clip { n } => AnyFormula::new(pact::Clip { n }),
            Self::Sign { is_bounded: true } => AnyFormula::new(lsq::Sign),
            Self::Sign { is_bounded: false } => AnyFormula::new(dorefa::Sign),
            Self::Affine { n } => AnyFormula::new(minmax::Affine { n }),
        }
    }

    /// The formula with these parameters.
    pub fn scheme(self, parameters: Vec<Tensor<1>>) -> Scheme {
        let codes = match self {
            Self::Unit { n } | Self::Clip { n } | Self::Affine { n } => 0..=n as i32,
            Self::Step { q_min, q_max } => q_min as i32..=q_max as i32,
            Self::Sign { .. } => -1..=1,
        };
        Scheme::new(self.formula(), parameters, codes)
    }

    /// An activation with these parameters.
    pub fn activation(self, parameters: Vec<Tensor<1>>) -> Activation {
        Activation::Quantize(self.scheme(parameters))
    }

    /// What the formula yields, composed of functions of tensors.
    pub fn composed<const D: usize>(self, x: Tensor<D>, parameters: &[Tensor<1>]) -> Tensor<D> {
        match self {
            Self::Unit { n } => fake_quantize_unit(x, n),
            Self::Affine { n } => fake_quantize_affine(x, parameters[0].clone(), parameters[1].clone(), n),
            _ => fake_quantize_learned(x, parameters[0].clone(), self),
        }
    }
}

/// What follows a normalization, composed of functions of tensors.
#[derive(Clone, Copy, Debug)]
pub enum After {
    /// Nothing.
    Identity,
    /// `max(y, 0)`.
    Relu,
    /// A quantizer.
    Grid(Grid),
}

impl After {
    /// The activation that the kernels have.
    pub fn activation(self, parameters: Vec<Tensor<1>>) -> Activation {
        match self {
            Self::Identity => Activation::Identity,
            Self::Relu => Activation::Relu,
            Self::Grid(grid) => grid.activation(parameters),
        }
    }
}

/// Normalization by the statistics of the batch, and what follows.
pub fn batch_norm(
    input: Tensor<4>,
    affine: [Tensor<1>; 2],
    epsilon: f32,
    after: After,
    parameters: &[Tensor<1>],
) -> Tensor<4> {
    let statistics = batch_statistics(input.clone());
    let y = normalize(input, affine, statistics, epsilon);
    match after {
        After::Identity => y,
        After::Relu => relu(y),
        After::Grid(grid) => grid.composed(y, parameters),
    }
}

/// Normalization by means and variances, `[channels]`.
fn normalize(
    input: Tensor<4>,
    [gamma, beta]: [Tensor<1>; 2],
    [mean, variance]: [Tensor<1>; 2],
    epsilon: f32,
) -> Tensor<4> {
    let channels = input.dims()[1];
    let wide = |tensor: Tensor<1>| tensor.reshape([1, channels, 1, 1]);
    let factor = gamma / (variance + epsilon).sqrt();
    (input - wide(mean)) * wide(factor) + wide(beta)
}

/// Mean and biased variance of every channel, `[channels]` each; zeros without values.
fn batch_statistics(input: Tensor<4>) -> [Tensor<1>; 2] {
    let [batch, channels, height, width] = input.dims();
    if batch * height * width == 0 {
        return [(); 2].map(|()| Tensor::zeros([channels], &input.device()));
    }
    let rows: Tensor<2> = input.swap_dims(0, 1).reshape([channels, batch * height * width]);
    let mean = rows.clone().mean_dim(1);
    let variance = (rows - mean.clone()).square().mean_dim(1);
    [mean, variance].map(|tensor| tensor.reshape([channels]))
}

/// DoReFa weights of 2 bits and more.
pub fn dorefa_weights<const D: usize>(w: Tensor<D>, n: f32, max_gradient: MaxGradient) -> Tensor<D> {
    let squashed = w.tanh();
    let mut max = squashed.clone().abs().max();
    if max_gradient == MaxGradient::Detached {
        max = max.detach();
    }
    // All weights zero: every code is in the middle of the grid.
    let all_zero = max.clone().equal_scalar(0.0);
    let double_max: Tensor<D> = (max * 2.0).mask_fill(all_zero, 1.0).reshape([1; D]);
    // The quotient by a constant, and by a one whose gradient is that of the maximum: the derivative of a quotient has the square of
    // the divisor, which vanishes for the smallest weights.
    let size = double_max.clone().detach();
    let z = (squashed / size.clone()) / (double_max / size) + 0.5;
    let value = ((z.clone() * n).round() * 2.0 - n) / n;
    let straight = z * 2.0;
    value.detach() + (straight.clone() - straight.detach())
}

fn fake_quantize_unit<const D: usize>(x: Tensor<D>, n: f32) -> Tensor<D> {
    let clipped = x.clone().detach().clamp(0.0, 1.0);
    let outside = x.clone().detach().not_equal(clipped.clone());
    (clipped * n).round() / n + zero_with_gradient(x, outside)
}

fn fake_quantize_learned<const D: usize>(x: Tensor<D>, parameter: Tensor<1>, grid: Grid) -> Tensor<D> {
    let mut dims = [1; D];
    dims[0] = parameter.dims()[0];
    let parameter: Tensor<D> = parameter.reshape(dims);
    let (x_value, p) = (x.clone().detach(), parameter.clone().detach());
    let (value, outside, slope) = match grid {
        Grid::Step { q_min, q_max } => {
            let v = x_value / p.clone();
            let clipped = v.clone().clamp(q_min, q_max);
            let inside = v.clone().greater_scalar(q_min).bool_and(v.clone().lower_scalar(q_max));
            let outside = inside.bool_not();
            let slope = clipped.clone().round() - v.mask_fill(outside.clone(), 0.0);
            (clipped.round() * p, outside, slope)
        }
        Grid::Clip { n } => {
            let wide = p.clone().expand(x_value.shape());
            let above = x_value.clone().greater_equal(wide.clone());
            let clipped = x_value.clone().clamp_min(0.0).mask_where(above.clone(), wide);
            let rounded = (clipped / p.clone() * n).round() / n * p;
            let outside = above.clone().bool_or(x_value.clone().lower_scalar(0.0));
            (rounded, outside, x_value.zeros_like().mask_fill(above, 1.0))
        }
        Grid::Sign { is_bounded } => {
            let sign = x_value.ones_like().mask_fill(x_value.clone().lower_scalar(0.0), -1.0);
            let v = match is_bounded {
                true => x_value.clone() / p.clone(),
                false => x_value.zeros_like(),
            };
            let outside = v.clone().abs().lower_scalar(1.0).bool_not();
            let slope = sign.clone() - v.mask_fill(outside.clone(), 0.0);
            ((sign * p).mask_where(x_value.clone().is_nan(), x_value), outside, slope)
        }
        Grid::Unit { .. } | Grid::Affine { .. } => unreachable!("they have functions of their own"),
    };
    let by_parameter = (parameter.clone() - parameter.detach()) * slope;
    value + zero_with_gradient(x, outside) + by_parameter
}

/// Smallest and largest of the values and 0.
pub fn value_range<const D: usize>(x: Tensor<D>) -> Tensor<1> {
    Tensor::cat(vec![x.clone().min().clamp_max(0.0), x.max().clamp_min(0.0)], 0)
}

fn fake_quantize_affine<const D: usize>(
    x: Tensor<D>,
    scale: Tensor<1>,
    zero_point: Tensor<1>,
    n: f32,
) -> Tensor<D> {
    let [scale, zero_point] = [scale, zero_point].map(|parameter| parameter.detach().reshape([1; D]));
    let free = (x.clone().detach() / scale.clone()).round() + zero_point.clone();
    let code = free.clone().clamp(0.0, n);
    let outside = free.not_equal(code.clone());
    (code - zero_point) * scale + zero_with_gradient(x, outside)
}

/// Zeros with the gradient of `x`, but for the values that lie outside.
fn zero_with_gradient<const D: usize>(x: Tensor<D>, outside: Tensor<D, Bool>) -> Tensor<D> {
    (x.clone() - x.detach()).mask_fill(outside, 0.0)
}
