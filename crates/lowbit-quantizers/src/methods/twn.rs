//! TWN, Li et al. 2016 (arXiv 1605.04711): ternary weights, with a threshold and a scale from their magnitudes.

use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme};

use super::xnor::mean_magnitude;
use crate::codes::reduce;
use crate::parameter::{constant, recorded_bits};
use crate::quantizer::{Quantizer, QuantizesWeights, code_range};

/// The threshold in mean magnitudes, Li16.
const THRESHOLD: f64 = 0.7;

/// -1, 0 or 1: the sign where the magnitude is above a threshold `t`, worth `a` each. The gradient passes everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ternary;

impl Formula<2> for Ternary {
    #[inline(always)]
    fn position<N: Number>(self, w: N, [_, a]: [N; 2]) -> N {
        w / a
    }

    #[inline(always)]
    fn code<N: Number>(self, w: N, [t, _]: [N; 2]) -> N {
        let (zero, one) = (N::from(0.0), N::from(1.0));
        let code = t.if_lower(w, one, w.if_lower(-t, -one, zero));
        // `NaN`, which is not as large as itself, stays.
        w.if_at_most(w, code, w)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(1)
    }

    /// Threshold and scale are constants: they have no gradient.
    #[inline(always)]
    fn gradient<N: Number>(self, _: N, _: [N; 2], _: N, g: N) -> (N, [N; 2]) {
        (g, [N::from(0.0); 2])
    }
}

/// Ternary weights. Codes are -1, 0 and 1, which take 2 bits each when they are stored.
///
/// # Equation
/// ```text
/// t = 0.7 mean|w|                             Li16
/// c = sign(w) where |w| > t, else 0
/// y = c a,  a = mean of the |w| > t
/// dy/dw = 1                                   straight through; t and a are constants of the backward pass
/// ```
/// Means are over a layer, as in the paper, or over each filter. Where no magnitude is above the threshold, as of weights that are all zero,
/// `a` is 1.
#[derive(Module, Debug)]
pub struct TwnWeights {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    granularity: Granularity,
}

impl Quantizer for TwnWeights {
    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        CodeSet::Uniform { q_min: -1, q_max: 1, stride: 1 }
    }
}

impl QuantizesWeights for TwnWeights {
    const BITS: RangeInclusive<u32> = 2..=2;
    const PER_CHANNEL: bool = true;

    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "twn has weights of 2 bits, not {bits}");
        Self { recorded_bits: recorded_bits(bits, &w.device()), bits, granularity }
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let magnitudes = constant(w.clone()).abs();
        let threshold = mean_magnitude(w.clone(), self.granularity) * THRESHOLD;
        let scale = match w.shape().num_elements() {
            0 => Tensor::ones([1], &w.device()),
            _ => self.mean_above(magnitudes, threshold.clone()),
        };
        Scheme::new(AnyFormula::new(Ternary), vec![threshold, scale], code_range(&self.code_set()))
    }

    /// The weights as they are.
    fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        w
    }
}

impl TwnWeights {
    /// The mean of the magnitudes above their threshold, of the tensor or of each filter; 1 if there are none.
    fn mean_above<const D: usize>(&self, magnitudes: Tensor<D>, threshold: Tensor<1>) -> Tensor<1> {
        let mut dims = [1; D];
        dims[0] = threshold.dims()[0];
        let is_above = magnitudes.clone().greater(threshold.reshape(dims).expand(magnitudes.shape()));
        let sum = |values: Tensor<D>| reduce(values, self.granularity, |rows| rows.sum_dim(1));
        let n = sum(is_above.clone().float());
        let none = n.clone().equal_scalar(0.0);
        (sum(magnitudes.mask_fill(is_above.bool_not(), 0.0)) / n.mask_fill(none.clone(), 1.0))
            .mask_fill(none, 1.0)
    }
}
