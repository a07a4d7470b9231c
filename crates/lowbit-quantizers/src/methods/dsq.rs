//! DSQ, Gong et al. 2019 (arXiv 1908.05033): rounding with the gradient of a soft staircase, made of hyperbolic tangents whose steepness is
//! learned.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme};

use super::ewgs::three_deviations;
use super::lsq::gradient_factor;
use crate::calibration::Calibration;
use crate::parameter::{constant, positive_parameter, recorded_bits, replace};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// The clip value never falls below this.
const MIN_CLIP_VALUE: f32 = 1e-3;

/// The characteristic `alpha` to begin with, Gong19: the gap between the soft staircase and the hard one. 0 is the hard one.
const INITIAL_ALPHA: f32 = 0.2;

/// Bounds of alpha in the forward pass: at 1/2 the staircase is a ramp, at 0 it has no gradient (the lower one is ours).
const ALPHA: [f32; 2] = [0.01, 0.49];

/// The hyperbolic tangent for `|z| <= 2.7`, beyond which [`ALPHA`] lets no argument go: Lambert's continued fraction, off by at most 1e-6.
#[inline(always)]
fn tanh<N: Number>(z: N) -> N {
    let s = z * z;
    let of = |[a, b, c, d]: [f32; 4]| ((N::from(d) * s + N::from(c)) * s + N::from(b)) * s + N::from(a);
    z * of([135_135.0, 17_325.0, 378.0, 1.0]) / of([135_135.0, 62_370.0, 3_150.0, 28.0])
}

/// A step of the soft staircase, `phi = s tanh(kappa t)` for `t` in [-1/2, 1/2], and its derivatives: `[phi, dt, dkappa, ds]`.
#[inline(always)]
fn soft_step<N: Number>(t: N, [kappa, s]: [N; 2]) -> [N; 4] {
    let th = tanh(kappa * t);
    let slope = s * (N::from(1.0) - th * th);
    [s * th, slope * kappa, slope * t, th]
}

/// `round(n clip(x / u, 0, 1))`, with the gradient of the soft staircase. Its parameters are the clip value `u`, and `kappa` and `s` of
/// Gong19.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Staircase {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl Staircase {
    /// For the place `v` in steps, clipped to the range: the step's number from 0, and [`soft_step`] there.
    #[inline(always)]
    fn step<N: Number>(self, v: N, parameters: [N; 2]) -> (N, [N; 4]) {
        let (half, one) = (N::from(0.5), N::from(1.0));
        // The largest integer that is not above `v`, but at most the last step's.
        let near = v.round();
        let floor = v.if_lower(near, near - one, near);
        let i = floor.clip(N::from(0.0), N::from(self.n - 1.0));
        (i, soft_step(v - i - half, parameters))
    }
}

impl Formula<3> for Staircase {
    #[inline(always)]
    fn position<N: Number>(self, x: N, [u, _, _]: [N; 3]) -> N {
        (x / u).clip(N::from(0.0), N::from(1.0)) * N::from(self.n)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.n
    }

    /// With `y = u / n (i + (phi(v - i - 1/2) + 1) / 2)` and `v = n x / u`.
    #[inline(always)]
    fn gradient<N: Number>(self, x: N, [u, kappa, s]: [N; 3], _: N, g: N) -> (N, [N; 3]) {
        let (zero, half, one, n) = (N::from(0.0), N::from(0.5), N::from(1.0), N::from(self.n));
        let place = x / u;
        let inside = |then: N| place.if_within(zero, one, then);
        let v = self.position(x, [u, kappa, s]);
        let (i, [phi, by_t, by_kappa, by_s]) = self.step(v, [kappa, s]);
        let of_x = half * by_t;
        let of_u = (i + (phi + one) * half - of_x * v) / n;
        let of_u = place.if_lower(zero, zero, one.if_lower(place, one, of_u));
        let half_step = half * u / n;
        // `NaN` has no gradient.
        let of_u = place.if_at_most(place, of_u, zero);
        (inside(g * of_x), [g * of_u, inside(g * half_step * by_kappa), inside(g * half_step * by_s)])
    }
}

/// The same for weights in `[-u, u]`: codes are the odd integers from `-n` to `n`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignedStaircase {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl SignedStaircase {
    /// The place in steps from the lower end, clipped to the range: exact where the step is a power of two.
    #[inline(always)]
    fn place<N: Number>(self, w: N, u: N) -> N {
        let step = N::from(2.0) * u / N::from(self.n);
        ((w + u) / step).clip(N::from(0.0), N::from(self.n))
    }
}

impl Formula<3> for SignedStaircase {
    #[inline(always)]
    fn position<N: Number>(self, w: N, [u, _, _]: [N; 3]) -> N {
        self.place(w, u) * N::from(2.0) - N::from(self.n)
    }

    #[inline(always)]
    fn code<N: Number>(self, w: N, [u, _, _]: [N; 3]) -> N {
        self.place(w, u).round() * N::from(2.0) - N::from(self.n)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.n
    }

    /// With `y = -u + 2 u / n (i + (phi(v - i - 1/2) + 1) / 2)` and `v = n (w / u + 1) / 2`.
    #[inline(always)]
    fn gradient<N: Number>(self, w: N, [u, kappa, s]: [N; 3], _: N, g: N) -> (N, [N; 3]) {
        let (zero, half, one, n) = (N::from(0.0), N::from(0.5), N::from(1.0), N::from(self.n));
        let place = w / u;
        let inside = |then: N| place.if_within(-one, one, then);
        let v = self.place(w, u);
        let (i, [phi, by_t, by_kappa, by_s]) = Staircase { n: self.n }.step(v, [kappa, s]);
        let of_w = half * by_t;
        let of_u = (i + i + phi + one) / n - one - of_w * place;
        let of_u = place.if_lower(-one, -one, one.if_lower(place, one, of_u));
        let half_step = u / n;
        // `NaN` has no gradient.
        let of_u = place.if_at_most(place, of_u, zero);
        (inside(g * of_w), [g * of_u, inside(g * half_step * by_kappa), inside(g * half_step * by_s)])
    }
}

/// DSQ weights. Codes are the odd integers `-n, -n + 2, ..., n` with `n = 2^bits - 1`.
///
/// # Equation
/// ```text
/// v = n (clip(w / u, -1, 1) + 1) / 2          the place in steps of 2 u / n from -u
/// c = 2 round(v) - n,  y = c / n u            Gong19, ties to even
/// phi(t) = s tanh(kappa t)                    kappa = ln(2 / alpha - 1), s = 1 / (1 - alpha)
/// ```
/// The gradients are those of the soft staircase, `-u + 2 u / n (floor(v) + (phi(v - floor(v) - 1/2) + 1) / 2)`, by `w`, by the clip value
/// `u` and by `alpha`. Both are learned, with LSQ's factor `1 / sqrt(N n)` (decision of this project). The paper learns both ends of
/// the range; here the range of weights is symmetric, so that zero lies in the middle of an integer grid (ours). `u` begins at three
/// standard deviations (ours).
#[derive(Module, Debug)]
pub struct DsqWeights {
    /// The clip value `u`, `[1]`.
    pub clip_value: Param<Tensor<1>>,
    /// The gap `alpha` of the soft staircase, `[1]`.
    pub staircase_alpha: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
}

impl Quantizer for DsqWeights {
    const STATE: &'static [&'static str] = &["clip_value", "staircase_alpha"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        CodeSet::odd(self.bits)
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        learned(&self.clip_value, &self.staircase_alpha)
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.clip_value, &mut self.staircase_alpha]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        let clip_value = constant(self.clip_value.val()).clamp_min(MIN_CLIP_VALUE);
        vec![("weight_clip_value", clip_value), ("weight_alpha", alpha_in_force(&self.staircase_alpha))]
    }
}

impl QuantizesWeights for DsqWeights {
    fn new<const D: usize>(bits: BitWidth, _: Granularity, w: Tensor<D>) -> Self {
        let staircase_alpha = Param::from_tensor(Tensor::full([1], INITIAL_ALPHA, &w.device()));
        let recorded_bits = recorded_bits(bits, &w.device());
        Self { clip_value: Param::from_tensor(three_deviations(w)), staircase_alpha, recorded_bits, bits }
    }

    fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        let end = three_deviations(w);
        self.clip_value = self.clip_value.clone().map(|old| replace(old, end));
        self.staircase_alpha =
            self.staircase_alpha.clone().map(|old| replace(old.clone(), old.full_like(INITIAL_ALPHA)));
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let factor = gradient_factor(self.bits.unsigned_range(), w.shape().num_elements());
        let clip_value = positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, factor);
        let formula = AnyFormula::new(SignedStaircase { n: (self.bits.levels() - 1) as f32 });
        let [kappa, s] = steepness(&self.staircase_alpha, factor);
        Scheme::new(formula, vec![clip_value, kappa, s], code_range(&self.code_set()))
    }

    /// Without steps there is no staircase: the weights clipped to the range, with the gradients of that.
    fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        let factor = gradient_factor(self.bits.unsigned_range(), w.shape().num_elements());
        let end = positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, factor)
            .reshape([1; D])
            .expand(w.shape());
        w.max_pair(end.clone().neg()).min_pair(end)
    }
}

/// DSQ activations after a ReLU. Codes are unsigned, `0..=2^bits - 1`: the equations are those of [`DsqWeights`] for the range `[0, u]`.
///
/// A calibration sets `u = min(max(x), 3 sqrt(mean(x^2)))` (decision of this project); until then it is 1.
#[derive(Module, Debug)]
pub struct DsqActivations {
    /// The clip value `u`, `[1]`.
    pub clip_value: Param<Tensor<1>>,
    /// The gap `alpha` of the soft staircase, `[1]`.
    pub staircase_alpha: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl DsqActivations {
    /// The clip value for the activations that are recorded so far; `None` without any.
    fn calibrated(&self) -> Option<Tensor<1>> {
        self.calibration.half_normal_end(1.0).map(|end| end.clamp_min(MIN_CLIP_VALUE))
    }

    fn clip_in_force(&self, factor: f64) -> Tensor<1> {
        let learned = || positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, factor);
        self.calibrated().unwrap_or_else(learned)
    }
}

impl Quantizer for DsqActivations {
    const STATE: &'static [&'static str] = &["clip_value", "staircase_alpha"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        learned(&self.clip_value, &self.staircase_alpha)
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.clip_value, &mut self.staircase_alpha]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        let clip_value = constant(self.clip_in_force(1.0));
        vec![("clip_value", clip_value), ("act_alpha", alpha_in_force(&self.staircase_alpha))]
    }
}

impl QuantizesActivations for DsqActivations {
    fn new(bits: BitWidth, device: &Device) -> Self {
        let of = |value: f32| Param::from_tensor(Tensor::full([1], value, device));
        let (recorded_bits, calibration) = (recorded_bits(bits, device), Calibration::default());
        Self { clip_value: of(1.0), staircase_alpha: of(INITIAL_ALPHA), recorded_bits, bits, calibration }
    }

    fn scheme(&self, dims: &[usize]) -> Scheme {
        let factor = gradient_factor(self.bits.unsigned_range(), dims[1..].iter().product());
        let formula = AnyFormula::new(Staircase { n: (self.bits.levels() - 1) as f32 });
        let [kappa, s] = steepness(&self.staircase_alpha, factor);
        Scheme::new(formula, vec![self.clip_in_force(factor), kappa, s], code_range(&self.code_set()))
    }

    /// Without steps there is no staircase: the values clipped to the range, with the gradients of that.
    fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let factor = gradient_factor(self.bits.unsigned_range(), x.dims()[1..].iter().product());
        let end = self.clip_in_force(factor).reshape([1; D]).expand(x.shape());
        x.clamp_min(0.0).min_pair(end)
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
        let clip_value = self.calibrated();
        self.calibration.finish_mean();
        if let Some(clip_value) = clip_value {
            self.clip_value = self.clip_value.clone().map(|old| replace(old, clip_value));
            let begin = |old: Tensor<1>| replace(old.clone(), old.full_like(INITIAL_ALPHA));
            self.staircase_alpha = self.staircase_alpha.clone().map(begin);
        }
    }
}

fn learned<'a>(clip_value: &'a Param<Tensor<1>>, alpha: &'a Param<Tensor<1>>) -> Vec<Learned<'a>> {
    vec![
        Learned { name: "clip_value", parameter: clip_value, floor: Some(MIN_CLIP_VALUE) },
        Learned { name: "staircase_alpha", parameter: alpha, floor: None },
    ]
}

/// Alpha in force, without gradient.
fn alpha_in_force(alpha: &Param<Tensor<1>>) -> Tensor<1> {
    constant(alpha.val()).clamp(ALPHA[0], ALPHA[1])
}

/// `kappa` and `s` of an alpha, `[1]` each: Gong19. Its gradient is multiplied by `factor`, and reaches it beyond its bounds, too.
fn steepness(alpha: &Param<Tensor<1>>, factor: f64) -> [Tensor<1>; 2] {
    let path = alpha.val().mul_scalar(factor);
    let alpha = alpha_in_force(alpha) + (path.clone() - constant(path));
    let kappa = (alpha.clone().recip() * 2.0 - 1.0).log();
    [kappa, (alpha.neg() + 1.0).recip()]
}
