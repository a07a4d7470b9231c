//! LSQ, Esser et al. 2020 (arXiv 1902.08153): the step size of the grid is learned.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeRange, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme};

use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, positive_parameter, recorded_bits, replace};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// `round(clip(x / s, q_min, q_max)) s`, Esser20 Eq. 1 to 3 and 5.
///
/// With `v = x / s` the gradient passes where `q_min < v < q_max`. The derivative by `s` is `round(v) - v` there and the bound
/// elsewhere; the factor `1 / sqrt(N q_max)` is not part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Smallest code.
    pub q_min: f32,
    /// Largest code.
    pub q_max: f32,
}

impl Step {
    /// The formula with these codes.
    pub fn new(CodeRange { q_min, q_max }: CodeRange) -> Self {
        Self { q_min: q_min as f32, q_max: q_max as f32 }
    }
}

impl Formula<1> for Step {
    #[inline(always)]
    fn position<N: Number>(self, x: N, [s]: [N; 1]) -> N {
        (x / s).clip(N::from(self.q_min), N::from(self.q_max))
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(0)
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, [s]: [N; 1], code: N, g: N) -> (N, [N; 1]) {
        let (q_min, q_max) = (N::from(self.q_min), N::from(self.q_max));
        let v = x / s;
        (v.if_between(q_min, q_max, g), [g * (code - v.if_between(q_min, q_max, v))])
    }
}

/// `sign(w)` with `sign(0) = 1`, LSQ at 1 bit; gradients as of [`Step`] with the bounds -1 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sign;

impl Formula<1> for Sign {
    #[inline(always)]
    fn position<N: Number>(self, w: N, [s]: [N; 1]) -> N {
        (w / s).clip(N::from(-1.0), N::from(1.0))
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
    fn gradient<N: Number>(self, w: N, [s]: [N; 1], code: N, g: N) -> (N, [N; 1]) {
        let (low, high) = (N::from(-1.0), N::from(1.0));
        let v = w / s;
        (v.if_between(low, high, g), [g * (code - v.if_between(low, high, v))])
    }
}

/// The step size never falls below this: the smallest weights that training produces are orders of magnitude larger.
pub(super) const MIN_STEP_SIZE: f32 = 1e-7;

/// LSQ weights. Codes are signed, `-2^(bits-1)..=2^(bits-1) - 1`; at 1 bit they are -1 and +1.
///
/// # Equation
/// ```text
/// v = clip(w / s, q_min, q_max)               Esser20 Eq. 1 (the paper's Q_N is positive: q_min = -Q_N)
/// c = round(v)                                ties to even
/// y = c s                                     Eq. 2
/// dy/dw = 1 where q_min < w/s < q_max         Eq. 5
/// dy/ds = c - w/s there, q_min or q_max elsewhere, times g = 1 / sqrt(N q_max)       Eq. 3, section 2.2
/// ```
/// `N` is the number of weights that share the step. Exactly at an edge of the range the gradient is that of the outside, as in the
/// paper; implementations by `torch.clamp` differ there with the release. At 1 bit, which the paper does not define, `c = sign(w)` with
/// `q_max = 1` (decision of this project).
#[derive(Module, Debug)]
pub struct LsqWeights {
    /// The learned step size `s`, which is the scale. Shape `[1]`, or `[out_channels]` per channel.
    pub step_size: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    granularity: Granularity,
}

impl LsqWeights {
    /// A quantizer to `bits` bits with its step size set from the weights `w`: `2 mean|w| / sqrt(q_max)` (Esser20,
    /// section 2.1).
    pub fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        let recorded_bits = recorded_bits(bits, &w.device());
        let step_size = initial_step_size(w, granularity, weight_range(bits));
        Self { step_size: Param::from_tensor(step_size), recorded_bits, bits, granularity }
    }

    /// The granularity.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }
}

impl Quantizer for LsqWeights {
    const STATE: &'static [&'static str] = &["step_size"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        match self.bits.get() {
            1 => CodeSet::odd(self.bits),
            _ => weight_range(self.bits).into(),
        }
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![learned(&self.step_size)]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.step_size]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![("weight_step_size", in_force(&self.step_size))]
    }

    /// The distance between the outermost levels stays. (Their places cannot both: a grid of 4 bits has them at -8 and 7 steps, one
    /// of 2 bits at -2 and 1.)
    fn rescale(&mut self, from: BitWidth) {
        self.step_size = rescaled(&self.step_size, [from, self.bits].map(weight_range));
    }
}

impl QuantizesWeights for LsqWeights {
    const HOLDS_LEVELS: bool = true;
    const PER_CHANNEL: bool = true;

    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        Self::new(bits, granularity, w)
    }

    fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        let step_size = initial_step_size(w, self.granularity, weight_range(self.bits));
        self.step_size = self.step_size.clone().map(|old| replace(old, step_size));
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let range = weight_range(self.bits);
        let per_step = w.shape().num_elements() / self.step_size.val().dims()[0];
        let formula = match self.bits.get() {
            1 => AnyFormula::new(Sign),
            _ => AnyFormula::new(Step::new(range)),
        };
        let step_size = learned_step(self.step_size.val(), range, per_step);
        Scheme::new(formula, vec![step_size], code_range(&self.code_set()))
    }
}

/// LSQ activations after a ReLU. Codes are unsigned, `0..=2^bits - 1`.
///
/// The equations are those of [`LsqWeights`] with `q_min = 0`, and `N` is the number of features of one sample. The
/// step size is set by a calibration batch; see [`crate::Calibration`].
#[derive(Module, Debug)]
pub struct LsqActivations {
    /// The learned step size `s`, which is the scale. Shape `[1]`.
    pub step_size: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl LsqActivations {
    /// A quantizer to `bits` bits. Until it is calibrated its step size is `1 / q_max`, which spans [0, 1].
    pub fn new(bits: BitWidth, device: &Device) -> Self {
        let step_size = Tensor::full([1], 1.0 / bits.unsigned_range().q_max as f32, device);
        let (step_size, recorded_bits) = (Param::from_tensor(step_size), recorded_bits(bits, device));
        Self { step_size, recorded_bits, bits, calibration: Calibration::default() }
    }
}

impl Quantizer for LsqActivations {
    const STATE: &'static [&'static str] = &["step_size"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![learned(&self.step_size)]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.step_size]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        let step_size = match self.calibration.mean() {
            Some(mean_abs) => step_from_mean(mean_abs, self.bits.unsigned_range()),
            None => in_force(&self.step_size),
        };
        vec![("act_step_size", step_size)]
    }

    fn rescale(&mut self, from: BitWidth) {
        self.step_size = rescaled(&self.step_size, [from, self.bits].map(BitWidth::unsigned_range));
    }
}

impl QuantizesActivations for LsqActivations {
    fn new(bits: BitWidth, device: &Device) -> Self {
        Self::new(bits, device)
    }

    /// During a calibration, with the step size of what is recorded so far.
    fn scheme(&self, dims: &[usize]) -> Scheme {
        let range = self.bits.unsigned_range();
        let step_size = match self.calibration.mean() {
            Some(mean_abs) => step_from_mean(mean_abs, range),
            None => learned_step(self.step_size.val(), range, dims[1..].iter().product()),
        };
        Scheme::new(AnyFormula::new(Step::new(range)), vec![step_size], code_range(&self.code_set()))
    }

    fn observes(&self) -> bool {
        self.calibration.is_recording()
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        if self.calibration.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone()).abs();
            self.calibration.record_mean(reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1)));
        }
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    /// Sets the step size to `2 mean|x| / sqrt(q_max)` over what was recorded.
    fn finish_calibration(&mut self) {
        if let Some(mean_abs) = self.calibration.finish_mean() {
            let step_size = step_from_mean(mean_abs, self.bits.unsigned_range());
            self.step_size = self.step_size.clone().map(|old| replace(old, step_size));
        }
    }
}

/// A step size as a learned parameter.
pub(super) fn learned(step_size: &Param<Tensor<1>>) -> Learned<'_> {
    Learned { name: "step_size", parameter: step_size, floor: Some(MIN_STEP_SIZE) }
}

/// The step sizes in force, without gradient.
pub(super) fn in_force(step_size: &Param<Tensor<1>>) -> Tensor<1> {
    constant(step_size.val()).clamp_min(MIN_STEP_SIZE)
}

/// Signed codes; at 1 bit -1 and +1.
pub(super) fn weight_range(bits: BitWidth) -> CodeRange {
    match bits.get() {
        1 => CodeRange { q_min: -1, q_max: 1 },
        _ => bits.signed_range(),
    }
}

/// A step size of the first range for the second one, which spans as much.
pub(super) fn rescaled(step_size: &Param<Tensor<1>>, ranges: [CodeRange; 2]) -> Param<Tensor<1>> {
    let [from, to] = ranges.map(|range| f64::from(range.q_max - range.q_min));
    step_size.clone().map(|old| replace(old.clone(), constant(old) * (from / to)))
}

/// The step with its gradient scaled by `1 / sqrt(N q_max)`, Esser20 section 2.2.
pub(super) fn learned_step(parameter: Tensor<1>, range: CodeRange, elements: usize) -> Tensor<1> {
    positive_parameter(parameter, MIN_STEP_SIZE, gradient_factor(range, elements))
}

/// `1 / sqrt(N q_max)`, Esser20 section 2.2.
pub(super) fn gradient_factor(range: CodeRange, elements: usize) -> f64 {
    1.0 / (elements as f64 * f64::from(range.q_max)).sqrt()
}

fn initial_step_size<const D: usize>(w: Tensor<D>, granularity: Granularity, range: CodeRange) -> Tensor<1> {
    if w.shape().num_elements() == 0 {
        return Tensor::ones([1], &w.device());
    }
    step_from_mean(reduce(constant(w).abs(), granularity, |rows| rows.mean_dim(1)), range)
}

/// `2 mean|x| / sqrt(q_max)`; all-zero data get a step of 1, as good as any other.
fn step_from_mean(mean_abs: Tensor<1>, range: CodeRange) -> Tensor<1> {
    let all_zero = mean_abs.clone().equal_scalar(0.0);
    (mean_abs * (2.0 / f64::from(range.q_max).sqrt())).mask_fill(all_zero, 1.0)
}
