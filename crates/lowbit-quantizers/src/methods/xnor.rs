//! XNOR-Net and BWN, Rastegari et al. 2016 (arXiv 1603.05279): signs times the mean magnitude of a filter.
//!
//! Weights with full-precision activations are the paper's Binary-Weight-Network, with activations of 1 bit its XNOR-Net.

use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme};

use super::dorefa::{Sign, Unit};
use crate::codes::reduce;
use crate::parameter::{constant, recorded_bits};
use crate::quantizer::{Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// 1 for what is positive, else 0. The gradient passes where `0 < x <= 1`, as that of the paper's sign does on this side of zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IsPositive;

impl Formula<0> for IsPositive {
    #[inline(always)]
    fn position<N: Number>(self, x: N, []: [N; 0]) -> N {
        x.clip(N::from(0.0), N::from(1.0))
    }

    #[inline(always)]
    fn code<N: Number>(self, x: N, []: [N; 0]) -> N {
        let (zero, one) = (N::from(0.0), N::from(1.0));
        // `NaN`, which is on no side of zero, stays.
        x.if_at_most(zero, zero, zero.if_lower(x, one, x))
    }

    fn unit(self) -> Option<usize> {
        None
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, []: [N; 0], _: N, g: N) -> (N, [N; 0]) {
        let (zero, one) = (N::from(0.0), N::from(1.0));
        (zero.if_lower(x, x.if_at_most(one, g, zero), zero), [])
    }
}

/// Weights of 1 bit by their filter's mean magnitude.
///
/// # Equation
/// ```text
/// c = sign(w)                                 sign(0) = 1, also of -0
/// y = c a,  a = mean|w|                       Rastegari16, over the filter of an output channel
/// dy/dw = 1                                   straight through the sign
/// ```
/// The mean is a constant of the backward pass. The paper's own gradient, `1 / N + a` where `|w| <= 1`, is smaller by about the mean, for
/// which a learning rate would have to make up (decision of this project, not compared by training: left out, as in DoReFa-Net).
#[derive(Module, Debug)]
pub struct XnorWeights {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    granularity: Granularity,
}

impl Quantizer for XnorWeights {
    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        CodeSet::odd(self.bits)
    }
}

impl QuantizesWeights for XnorWeights {
    const BITS: RangeInclusive<u32> = 1..=1;
    const PER_CHANNEL: bool = true;
    const GRANULARITY: Granularity = Granularity::PerChannel;

    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "xnor has weights of 1 bit, not {bits}");
        Self { recorded_bits: recorded_bits(bits, &w.device()), bits, granularity }
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let mean = mean_magnitude(w.clone(), self.granularity);
        Scheme::new(AnyFormula::new(Sign), vec![mean], code_range(&self.code_set()))
    }

    /// The weights as they are, whose mean magnitude is kept.
    fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        w
    }
}

/// Mean magnitude of the weights, `[1]` or of each filter, without gradient; 1 without weights.
pub(super) fn mean_magnitude<const D: usize>(w: Tensor<D>, granularity: Granularity) -> Tensor<1> {
    if w.shape().num_elements() == 0 {
        return Tensor::ones([1], &w.device());
    }
    reduce(constant(w).abs(), granularity, |rows| rows.mean_dim(1))
}

/// Activations of XNOR-Net after a ReLU. Codes are unsigned, `0..=2^bits - 1`.
///
/// # Equation
/// ```text
/// c = 1 where x > 0, else 0                   1 bit
/// c = round(n clip(x, 0, 1))                  2 bits and more, Rastegari16; ties to even, n = 2^bits - 1
/// y = c / n
/// ```
/// The gradient is clipped to `|x| <= 1`, and a ReLU blocks that of negative values.
///
/// The paper's 1 bit is a sign, of values that no ReLU has cut: `2c - 1` (decision of this project: behind a ReLU, `c`. The products of
/// all weights with the constant are a constant of each output channel, which the next normalization subtracts, but for the padding).
/// The scales of activations, `K` in the paper, are left out (decision of this project).
#[derive(Module, Debug)]
pub struct XnorActivations {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
}

impl Quantizer for XnorActivations {
    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }
}

impl QuantizesActivations for XnorActivations {
    fn new(bits: BitWidth, device: &Device) -> Self {
        Self { recorded_bits: recorded_bits(bits, device), bits }
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        let formula = match self.bits.get() {
            1 => AnyFormula::new(IsPositive),
            _ => AnyFormula::new(Unit { n: (self.bits.levels() - 1) as f32 }),
        };
        Scheme::new(formula, Vec::new(), code_range(&self.code_set()))
    }
}
