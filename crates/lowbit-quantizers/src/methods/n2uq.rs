//! N2UQ, Liu et al. 2022 (arXiv 2111.14826): activations are compared with learned thresholds, at unequal distances, and become codes that
//! are worth equal steps; weights are scaled so that their codes are used about equally often.

use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Rectified, Scheme};

use super::lsq::gradient_factor;
use super::xnor::mean_magnitude;
use crate::calibration::Calibration;
use crate::parameter::{constant, n_at_floor, positive_parameter, recorded_bits, replace, scaled_parameter};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// An interval is never narrower, Liu22; nor the output's scale smaller (ours).
const MIN_WIDTH: f32 = 1e-3;

/// `2 round(n (clip(w / s, -1, 1) + 1) / 2) - n`, worth `s / n` each: Liu22. The gradient passes where `|w / s| <= 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balanced {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl Formula<1> for Balanced {
    #[inline(always)]
    fn position<N: Number>(self, w: N, [s]: [N; 1]) -> N {
        (w / s).clip(N::from(-1.0), N::from(1.0)) * N::from(self.n)
    }

    #[inline(always)]
    fn code<N: Number>(self, w: N, [s]: [N; 1]) -> N {
        let v = (w / s).clip(N::from(-1.0), N::from(1.0));
        let level = ((v + N::from(1.0)) * N::from(self.n * 0.5)).round();
        level * N::from(2.0) - N::from(self.n)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.n
    }

    /// The scale is a constant: it has no gradient.
    #[inline(always)]
    fn gradient<N: Number>(self, w: N, [s]: [N; 1], _: N, g: N) -> (N, [N; 1]) {
        ((w / s).if_within(N::from(-1.0), N::from(1.0), g), [N::from(0.0)])
    }
}

/// How many of `n` thresholds `x` reaches. Its `P = n + 2` parameters are where the first interval starts, the widths of the `n` intervals,
/// each with a threshold in its middle, and what `n` codes are worth.
///
/// The gradients are those of the sum of ramps that the steps stand for, `sum_i clip((x - start_i) / a_i, 0, 1)`: the generalized
/// straight-through estimator of Liu22.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds;

impl<const P: usize> Formula<P> for Thresholds {
    #[inline(always)]
    fn position<N: Number>(self, x: N, p: [N; P]) -> N {
        let (mut start, mut ramps) = (p[0], N::from(0.0));
        for &width in &p[1..P - 1] {
            ramps = ramps + ((x - start) / width).clip(N::from(0.0), N::from(1.0));
            start = start + width;
        }
        ramps
    }

    #[inline(always)]
    fn code<N: Number>(self, x: N, p: [N; P]) -> N {
        let (zero, one) = (N::from(0.0), N::from(1.0));
        let (mut start, mut code) = (p[0], zero);
        for &width in &p[1..P - 1] {
            let threshold = start + width * N::from(0.5);
            code = code + threshold.if_at_most(x, one, zero);
            start = start + width;
        }
        // `NaN`, which is not as large as itself, stays.
        x.if_at_most(x, code, x)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(P - 1)
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        (P - 2) as f32
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, p: [N; P], code: N, g: N) -> (N, [N; P]) {
        let zero = N::from(0.0);
        let of_code = g * p[P - 1] / N::from((P - 2) as f32);
        let mut gradients = [zero; P];
        // By what lies inside each interval: `x` and, with the other sign, every width before it.
        let mut by_x = [zero; P];
        let mut start = p[0];
        for i in 1..P - 1 {
            let end = start + p[i];
            let inside = |then: N| start.if_at_most(x, x.if_lower(end, then, zero), zero);
            by_x[i] = inside(of_code / p[i]);
            gradients[i] = -inside(of_code / p[i] * ((x - start) / p[i]));
            start = end;
        }
        let mut after = zero;
        for i in (1..P - 1).rev() {
            gradients[i] = gradients[i] - after;
            after = after + by_x[i];
        }
        gradients[0] = -after;
        gradients[P - 1] = g * (code / N::from((P - 2) as f32));
        (after, gradients)
    }
}

/// Entropy-preserving weights. Codes are the odd integers `-n, -n + 2, ..., n` with `n = 2^bits - 1`.
///
/// # Equation
/// ```text
/// s = mean|w| n / 2^(bits-1)                          of each filter
/// c = 2 round(n (clip(w / s, -1, 1) + 1) / 2) - n     Liu22, ties to even
/// y = c / n s
/// dy/dw = 1 where |w / s| <= 1                        s is a constant of the backward pass
/// ```
/// Filters of zeros have the scale 1.
#[derive(Module, Debug)]
pub struct N2uqWeights {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    granularity: Granularity,
}

impl Quantizer for N2uqWeights {
    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        CodeSet::odd(self.bits)
    }
}

impl QuantizesWeights for N2uqWeights {
    const PER_CHANNEL: bool = true;
    const GRANULARITY: Granularity = Granularity::PerChannel;

    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        Self { recorded_bits: recorded_bits(bits, &w.device()), bits, granularity }
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let levels = self.bits.levels() as f32;
        let mean = mean_magnitude(w.clone(), self.granularity);
        let none = mean.clone().lower_scalar(f32::MIN_POSITIVE);
        let scale = (mean * (2.0 * (levels - 1.0) / levels)).mask_fill(none, 1.0);
        let formula = AnyFormula::new(Balanced { n: levels - 1.0 });
        Scheme::new(formula, vec![scale], code_range(&self.code_set()))
    }
}

/// Activations of 1 to 4 bits with learned thresholds. Codes are unsigned, `0..=n` with `n = 2^bits - 1`.
///
/// # Equation
/// ```text
/// T_i = b + a_1 + ... + a_(i-1) + a_i / 2             i = 1 to n; Liu22
/// c = how many T_i <= x
/// y = c / n o                                         equal steps, with a learned scale o
/// dy/dx = o / n / a_i in interval i, else 0
/// ```
/// The gradients of `b`, of the widths `a` and of `o` are those of the ramps, times LSQ's factor `1 / sqrt(N n)` (decision of this project, in
/// the place of a learning rate of a tenth). A calibration sets equal widths from 0 to `min(max(x), 3 sqrt(mean(x^2)))`, and `o` to
/// that end (ours).
#[derive(Module, Debug)]
pub struct N2uqActivations {
    /// Where the first interval starts, `b`, `[1]`.
    pub interval_start: Param<Tensor<1>>,
    /// The widths `a` of the intervals, `[2^bits - 1]`.
    pub interval_widths: Param<Tensor<1>>,
    /// What the largest code is worth, `o`, `[1]`.
    pub output_scale: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl N2uqActivations {
    fn n(&self) -> usize {
        self.bits.levels() as usize - 1
    }

    /// The end of the intervals for the activations that are recorded so far; `None` without any.
    fn calibrated(&self) -> Option<Tensor<1>> {
        let least = MIN_WIDTH * self.n() as f32;
        self.calibration.half_normal_end(1.0).map(|end| end.clamp_min(least))
    }

    /// The start, the widths and the scale in force, for samples of so many values.
    fn parameters(&self, per_sample: usize) -> [Tensor<1>; 3] {
        if let Some(end) = self.calibrated() {
            let width = end.clone() / self.n() as f32;
            return [end.zeros_like(), width.expand([self.n()]), end];
        }
        let factor = gradient_factor(self.bits.unsigned_range(), per_sample);
        let positive = |parameter: &Param<Tensor<1>>| positive_parameter(parameter.val(), MIN_WIDTH, factor);
        let start = scaled_parameter(self.interval_start.val(), factor);
        [start, positive(&self.interval_widths), positive(&self.output_scale)]
    }

    fn scheme_of(&self, dims: &[usize], formula: Rectified<Thresholds>) -> Scheme {
        let formula = match self.bits.get() {
            1 => AnyFormula::new::<3>(formula),
            2 => AnyFormula::new::<5>(formula),
            3 => AnyFormula::new::<9>(formula),
            _ => AnyFormula::new::<17>(formula),
        };
        let [start, widths, scale] = self.parameters(dims[1..].iter().product());
        let widths = (0..self.n()).map(|i| widths.clone().narrow(0, i, 1));
        let parameters = [start].into_iter().chain(widths).chain([scale]).collect();
        Scheme::new(formula, parameters, code_range(&self.code_set()))
    }
}

impl Quantizer for N2uqActivations {
    const STATE: &'static [&'static str] = &["interval_start", "interval_widths", "output_scale"];
    const RESCALES: bool = false;

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![
            Learned { name: "interval_start", parameter: &self.interval_start, floor: None },
            Learned { name: "interval_widths", parameter: &self.interval_widths, floor: Some(MIN_WIDTH) },
            Learned { name: "output_scale", parameter: &self.output_scale, floor: Some(MIN_WIDTH) },
        ]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.interval_start, &mut self.interval_widths, &mut self.output_scale]
    }

    /// Single intervals may be as narrow as they can: only a scale at its floor is a collapse.
    fn n_at_floor(&self) -> Option<Tensor<1, Int>> {
        Some(n_at_floor(self.output_scale.val(), MIN_WIDTH))
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        let [start, widths, scale] = self.parameters(1).map(constant);
        vec![("act_interval_width", widths), ("act_interval_start", start), ("act_output_scale", scale)]
    }
}

impl QuantizesActivations for N2uqActivations {
    const BITS: RangeInclusive<u32> = 1..=4;

    fn new(bits: BitWidth, device: &Device) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "n2uq has activations of 1 to 4 bits, not {bits}");
        let n = bits.levels() as usize - 1;
        let of = |n: usize, value: f32| Param::from_tensor(Tensor::full([n], value, device));
        let (interval_start, interval_widths) = (of(1, 0.0), of(n, 1.0 / n as f32));
        let (output_scale, recorded_bits) = (of(1, 1.0), recorded_bits(bits, device));
        let calibration = Calibration::default();
        Self { interval_start, interval_widths, output_scale, recorded_bits, bits, calibration }
    }

    fn scheme(&self, dims: &[usize]) -> Scheme {
        self.scheme_of(dims, Rectified::of_value(Thresholds))
    }

    fn scheme_of_relu(&self, dims: &[usize]) -> Scheme {
        self.scheme_of(dims, Rectified::of_relu(Thresholds))
    }

    fn observes(&self) -> bool {
        self.calibration.is_recording()
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        self.calibration.record_half_normal(x);
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    fn finish_calibration(&mut self) {
        let end = self.calibrated();
        self.calibration.finish_mean();
        if let Some(end) = end {
            let n = self.n();
            self.interval_start = self.interval_start.clone().map(|old| replace(old, end.zeros_like()));
            let width = (end.clone() / n as f32).expand([n]);
            self.interval_widths = self.interval_widths.clone().map(|old| replace(old, width));
            self.output_scale = self.output_scale.clone().map(|old| replace(old, end));
        }
    }
}
