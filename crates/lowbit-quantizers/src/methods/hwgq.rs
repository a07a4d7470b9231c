//! HWGQ, Cai et al. 2017 (arXiv 1702.00953): the half-wave Gaussian quantizer, with fixed steps for activations that are normalized
//! before they are cut at zero. Its weights are those of XNOR-Net.

use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme};

use crate::parameter::recorded_bits;
use crate::quantizer::{Quantizer, QuantizesActivations, code_range};

/// For 1 to 4 bits, the step with the least squared error for the positive half of a normal distribution of deviation 1: Cai17. A
/// test below finds them again; the paper's 2 bits have 0.538.
const STEPS: [f32; 4] = [0.797_884_6, 0.538_811_9, 0.321_728_92, 0.184_243_34];

/// 0 for what is not positive, else the nearest of the codes 1 to `n`: Cai17. The gradient passes where `0 < x <= n s`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HalfWave {
    /// The largest code, `2^bits - 1`.
    pub n: f32,
}

impl Formula<1> for HalfWave {
    #[inline(always)]
    fn position<N: Number>(self, x: N, [s]: [N; 1]) -> N {
        (x / s).clip(N::from(0.0), N::from(self.n))
    }

    #[inline(always)]
    fn code<N: Number>(self, x: N, [s]: [N; 1]) -> N {
        let code = (x / s).round().clip(N::from(1.0), N::from(self.n));
        x.if_at_most(N::from(0.0), N::from(0.0), code)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    /// The step is a constant: it has no gradient.
    #[inline(always)]
    fn gradient<N: Number>(self, x: N, [s]: [N; 1], _: N, g: N) -> (N, [N; 1]) {
        let zero = N::from(0.0);
        (zero.if_lower(x, x.if_at_most(N::from(self.n) * s, g, zero), zero), [zero])
    }
}

/// HWGQ activations of 1 to 4 bits. Codes are unsigned, `0..=2^bits - 1`.
///
/// # Equation
/// ```text
/// c = 0 where x <= 0, else clip(round(x / s), 1, n)       ties to even, n = 2^bits - 1; Cai17
/// y = c s                                                 s is fixed
/// dy/dx = 1 where 0 < x <= n s                            the clipped backward approximation
/// ```
/// There is nothing to learn and nothing to calibrate. The steps suit what a batch normalization makes before it scales and shifts.
#[derive(Module, Debug)]
pub struct HwgqActivations {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
}

impl Quantizer for HwgqActivations {
    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }
}

impl QuantizesActivations for HwgqActivations {
    const BITS: RangeInclusive<u32> = 1..=4;

    fn new(bits: BitWidth, device: &Device) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "hwgq has activations of 1 to 4 bits, not {bits}");
        Self { recorded_bits: recorded_bits(bits, device), bits }
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        let formula = AnyFormula::new(HalfWave { n: (self.bits.levels() - 1) as f32 });
        let step = STEPS[self.bits.get() as usize - 1];
        let step = Tensor::full([1], step, &self.recorded_bits.val().device());
        Scheme::new(formula, vec![step], code_range(&self.code_set()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_the_least_squared_error_for_a_half_normal_distribution() {
        let x: Vec<f64> = (0..60_000).map(|i| (f64::from(i) + 0.5) * 1e-4).collect();
        for (bits, step) in (1..).zip(STEPS) {
            let n = f64::from((1 << bits) - 1);
            let error = |step: f64| -> f64 {
                let squared = |x: f64| ((x / step).round_ties_even().clamp(1.0, n) * step - x).powi(2);
                x.iter().map(|&x| squared(x) * (-x * x / 2.0).exp()).sum()
            };
            let [least, below, above] = [1.0, 0.998, 1.002].map(|factor| error(f64::from(step) * factor));
            assert!(least < below && least < above, "{bits} bits: {below} {least} {above}");
        }
    }
}
