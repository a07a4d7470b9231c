//! DoReFa-Net, Zhou et al. 2016 (arXiv 1606.06160): the base quantizer of Zhuang et al. 2021.
//!
//! Both grids are fixed: weights lie in [-1, 1] and activations in [0, 1], with `n = 2^bits - 1` steps. There is
//! nothing to learn and nothing to calibrate.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
pub use lowbit_kernels::MaxGradient;
use lowbit_kernels::{AnyFormula, Formula, Number, Quantized, Scheme, dorefa_weights, squashed};

use crate::codes::{reduce, zero_if_nan};
use crate::parameter::{constant, recorded_bits};
use crate::quantizer::{Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// `round(n clip(x, 0, 1))`, Zhou16 Eq. 11. The gradient passes where `0 <= x <= 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Unit {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl Formula<0> for Unit {
    #[inline(always)]
    fn position<N: Number>(self, x: N, []: [N; 0]) -> N {
        x.clip(N::from(0.0), N::from(1.0)) * N::from(self.n)
    }

    fn unit(self) -> Option<usize> {
        None
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.n
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, []: [N; 0], _: N, g: N) -> (N, [N; 0]) {
        (x.if_within(N::from(0.0), N::from(1.0), g), [])
    }
}

/// `sign(w)` with `sign(0) = 1`, also of -0; the unit is the mean magnitude. The gradient passes everywhere: Zhou16 Eq. 7.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sign;

impl Formula<1> for Sign {
    #[inline(always)]
    fn position<N: Number>(self, w: N, [mean]: [N; 1]) -> N {
        w / mean
    }

    #[inline(always)]
    fn code<N: Number>(self, w: N, _: [N; 1]) -> N {
        w.sign_or_one()
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn gradient<N: Number>(self, _: N, _: [N; 1], code: N, g: N) -> (N, [N; 1]) {
        (g, [g * code])
    }
}

/// `2 round(n (t / d + 1/2)) - n` of a weight's hyperbolic tangent `t` with `d` twice the largest magnitude of all, Zhou16 Eq. 9.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Squashed {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl Formula<1> for Squashed {
    #[inline(always)]
    fn position<N: Number>(self, t: N, [d]: [N; 1]) -> N {
        (t / d + N::from(0.5)) * N::from(self.n) * N::from(2.0) - N::from(self.n)
    }

    #[inline(always)]
    fn code<N: Number>(self, t: N, [d]: [N; 1]) -> N {
        ((t / d + N::from(0.5)) * N::from(self.n)).round() * N::from(2.0) - N::from(self.n)
    }

    fn unit(self) -> Option<usize> {
        None
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.n
    }

    /// Not by the square of `d`, which vanishes for the smallest weights.
    #[inline(always)]
    fn gradient<N: Number>(self, t: N, [d]: [N; 1], _: N, g: N) -> (N, [N; 1]) {
        let of_t = g * N::from(2.0) / d;
        (of_t, [-(of_t * (t / d))])
    }
}

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

    fn of_squashed(&self) -> AnyFormula {
        AnyFormula::new(Squashed { n: steps(self.bits) })
    }
}

impl Quantizer for DoReFaWeights {
    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        CodeSet::odd(self.bits)
    }
}

impl QuantizesWeights for DoReFaWeights {
    fn new<const D: usize>(bits: BitWidth, _: Granularity, w: Tensor<D>) -> Self {
        Self::new(bits, &w.device())
    }

    /// That of the weights at 1 bit, from 2 bits that of their hyperbolic tangents.
    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let codes = code_range(&self.code_set());
        match self.bits.get() {
            1 => Scheme::new(AnyFormula::new(Sign), vec![mean_magnitude(constant(w.clone()))], codes),
            _ => Scheme::new(self.of_squashed(), vec![squashed(w.clone()).1], codes),
        }
    }

    fn quantize<const D: usize>(&self, w: Tensor<D>) -> Quantized<D> {
        match self.bits.get() {
            1 => self.scheme(&w).quantize(w),
            _ => dorefa_weights(w, self.of_squashed(), code_range(&self.code_set()), self.max_gradient),
        }
    }

    fn codes<const D: usize>(&self, w: Tensor<D>) -> Tensor<D, Int> {
        let w = zero_if_nan(w);
        match self.bits.get() {
            1 => self.scheme(&w).codes(w),
            // By the tangent of the forward pass: another might round to another code.
            _ => self.scheme(&w).codes(squashed(w).0),
        }
    }

    /// The weights in [-1, 1]. At 1 bit, where the mean is kept instead, the weights as they are.
    fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
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
}

impl Quantizer for DoReFaActivations {
    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }
}

impl QuantizesActivations for DoReFaActivations {
    fn new(bits: BitWidth, device: &Device) -> Self {
        Self::new(bits, device)
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        let formula = AnyFormula::new(Unit { n: steps(self.bits) });
        Scheme::new(formula, Vec::new(), code_range(&self.code_set()))
    }
}

/// `n = 2^bits - 1`.
fn steps(bits: BitWidth) -> f32 {
    (bits.levels() - 1) as f32
}
