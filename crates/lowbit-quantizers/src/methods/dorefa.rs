//! DoReFa-Net, Zhou et al. 2016 (arXiv 1606.06160): the base quantizer of Zhuang et al. 2021.
//!
//! Both grids are fixed: weights lie in [-1, 1] and activations in [0, 1], with `n = 2^bits - 1` steps. There is
//! nothing to learn and nothing to calibrate.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity, GridError, IntegerGrid};
pub use lowbit_kernels::MaxGradient;
use lowbit_kernels::{Activation, Grid, Scale, dorefa_weights, fake_quantize_learned, fake_quantize_unit};

use crate::codes::{is_negative, read, reduce, zero_if_nan};
use crate::parameter::{constant, recorded_bits};

/// DoReFa weights, Zhou16 Eq. 9 (2 to 8 bits) and Eq. 7 (1 bit). Codes are the odd integers `-n, -n + 2, ..., n` with
/// `n = 2^bits - 1`: the grid is symmetric and does not contain zero.
///
/// # Equation
/// ```text
/// z = tanh(w) / (2 max|tanh(w)|) + 1/2        the maximum over the whole tensor
/// c = 2 round(n z) - n                        ties to even, n = 2^bits - 1
/// y = c / n
/// ```
/// (The paper counts the levels from 0, `round(n z)`.)
/// The gradient is straight through the rounding only: the tanh, the division and the maximum are differentiated as
/// written. At 1 bit `c = sign(w)` and `y = c mean|w|` with `sign(0) = 1`, also of -0, and the gradient passes through unchanged.
#[derive(Module, Debug)]
pub struct DoReFaWeights {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    max_gradient: MaxGradient,
}

impl DoReFaWeights {
    /// A quantizer to `bits` bits that differentiates the maximum.
    pub fn new(bits: BitWidth, device: &Device) -> Self {
        Self { recorded_bits: recorded_bits(bits, device), bits, max_gradient: MaxGradient::default() }
    }

    /// The same quantizer with another gradient of the maximum.
    pub fn with_max_gradient(self, max_gradient: MaxGradient) -> Self {
        Self { max_gradient, ..self }
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    /// Odd codes in `-n..=n`, of `w`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, w: Tensor<D>) -> Tensor<D, Int> {
        match self.bits.get() {
            1 => is_negative(w) * -2 + 1,
            _ => {
                // From what the forward pass uses: another tanh might round to another code.
                let n = steps(self.bits);
                (dorefa_weights(zero_if_nan(w), n, self.max_gradient) * n).round().int()
            }
        }
    }

    /// The weights on the grid's real values, of `w`'s shape, with a straight-through gradient.
    pub fn fake_quantize<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        if self.bits.get() == 1 {
            let mean = mean_magnitude(constant(w.clone()));
            return fake_quantize_learned(w, mean, Grid::Sign { is_bounded: false });
        }
        dorefa_weights(w, steps(self.bits), self.max_gradient)
    }

    /// What the quantized weights are multiples of, and the largest multiple.
    pub(crate) fn scale<const D: usize>(&self, w: Tensor<D>) -> (Scale, u8) {
        match self.bits.get() {
            1 => (Scale::Learned { parameter: mean_magnitude(constant(w)), parts: 1.0 }, 1),
            _ => (Scale::Constant(1.0 / steps(self.bits)), largest_code(self.bits)),
        }
    }

    /// [`fake_quantize`](Self::fake_quantize) without the rounding: the weights in [-1, 1]. At 1 bit, where the mean is
    /// kept instead, the weights as they are.
    pub fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        match self.bits.get() {
            1 => w,
            _ => {
                let squashed = w.tanh();
                let mut max = squashed.clone().abs().max();
                if self.max_gradient == MaxGradient::Detached {
                    max = max.detach();
                }
                // All weights zero: as in the rounded grid, the maximum gives way to 1/2.
                let all_zero = max.clone().equal_scalar(0.0);
                let max: Tensor<D> = max.mask_fill(all_zero, 0.5).reshape([1; D]);
                // The quotient by a constant, and by a one whose gradient is that of the maximum: the derivative of a quotient has
                // the square of the divisor, which vanishes for the smallest weights.
                let size = max.clone().detach();
                (squashed / size.clone()) / (max / size)
            }
        }
    }

    /// The grid of the weights `w`. At 1 bit, and only there, it depends on them.
    ///
    /// # Errors
    /// [`GridError`] if their mean magnitude is not finite, at 1 bit.
    pub fn grid<const D: usize>(&self, w: Tensor<D>) -> Result<IntegerGrid, GridError> {
        let units = match self.bits.get() {
            1 => read(mean_magnitude(constant(w))),
            _ => vec![1.0],
        };
        IntegerGrid::new(CodeSet::odd(self.bits), units, largest_code(self.bits).into())
    }
}

fn mean_magnitude<const D: usize>(w: Tensor<D>) -> Tensor<1> {
    reduce(w.abs(), Granularity::PerTensor, |rows| rows.mean_dim(1))
}

/// DoReFa activations, Zhou16 Eq. 11 with the clip to [0, 1]. Codes are unsigned, `0..=2^bits - 1`.
///
/// # Equation
/// ```text
/// c = round(n clip(x, 0, 1))                  ties to even, n = 2^bits - 1
/// y = c / n
/// ```
/// The gradient is straight through the rounding and passes where `0 <= x <= 1` (clamp, then round).
#[derive(Module, Debug)]
pub struct DoReFaActivations {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
}

impl DoReFaActivations {
    /// A quantizer to `bits` bits.
    pub fn new(bits: BitWidth, device: &Device) -> Self {
        Self { recorded_bits: recorded_bits(bits, device), bits }
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    /// Codes in `0..=2^bits - 1`, of `x`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        (zero_if_nan(x).clamp(0.0, 1.0) * steps(self.bits)).round().int()
    }

    /// `x` on the grid's real values, of `x`'s shape, with a straight-through gradient.
    pub fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        fake_quantize_unit(x, steps(self.bits))
    }

    /// [`fake_quantize`](Self::fake_quantize) without the rounding: `clip(x, 0, 1)`.
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x.clamp(0.0, 1.0)
    }

    /// A ReLU and the quantizer in one.
    pub(crate) fn activation(&self) -> Activation {
        Activation::Unit { n: steps(self.bits) }
    }

    /// What the quantized values are multiples of, and the largest multiple.
    pub(crate) fn scale(&self) -> (Scale, u8) {
        (Scale::Constant(1.0 / steps(self.bits)), largest_code(self.bits))
    }

    /// The grid, which is always the same.
    pub fn grid(&self) -> IntegerGrid {
        let grid = IntegerGrid::new(self.bits.unsigned_range(), vec![1.0], largest_code(self.bits).into());
        grid.expect("invariant: its values lie between 0 and 1")
    }
}

/// `n = 2^bits - 1` as a code.
fn largest_code(bits: BitWidth) -> u8 {
    (bits.levels() - 1) as u8
}

/// `n = 2^bits - 1`.
fn steps(bits: BitWidth) -> f32 {
    (bits.levels() - 1) as f32
}
