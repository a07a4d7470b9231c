//! EWGS, Lee et al. 2021 (arXiv 2104.00903): learned intervals, and a gradient that is scaled for each value by how far the
//! rounding moved it.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Formula, Number, Rectified, Scheme, value_range};

use super::lsq::gradient_factor;
use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, n_at_floor, positive_parameter, recorded_bits, replace, scaled_parameter};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// The scaling factor `delta` of the gradient: the fixed value that the paper starts from (section 4.2; it can follow the Hessian's
/// trace, which is not done here).
const DELTA: f32 = 1e-3;

/// An interval is never narrower, a scale never smaller.
const MIN_WIDTH: f32 = 1e-4;

/// The element-wise gradient scaling: `g (1 + delta sign(g) (position - code) / n)`, Lee21 Eq. 5, of a gradient by values that are
/// normalized to `[0, 1]`.
#[inline(always)]
fn scaled<N: Number>(g: N, distance: N, delta: f32) -> N {
    let sign = g.if_lower(N::from(0.0), N::from(-1.0), N::from(1.0));
    g * (N::from(1.0) + N::from(delta) * sign * distance)
}

/// `round(n clip((x - l) / w, 0, 1))` for the interval of lower end `l` and width `w`: Lee21 Eq. 1 to 3.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
    /// The scaling factor of the gradient; 0 for one that is straight through the rounding.
    pub delta: f32,
}

impl Formula<2> for Interval {
    #[inline(always)]
    fn position<N: Number>(self, x: N, [low, width]: [N; 2]) -> N {
        ((x - low) / width).clip(N::from(0.0), N::from(1.0)) * N::from(self.n)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        None
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.n
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, [low, width]: [N; 2], code: N, g: N) -> (N, [N; 2]) {
        let (zero, one) = (N::from(0.0), N::from(1.0));
        let v = (x - low) / width;
        let distance = (self.position(x, [low, width]) - code) / N::from(self.n);
        let by_v = v.if_within(zero, one, scaled(g, distance, self.delta)) / width;
        (by_v, [-by_v, -(by_v * v.if_within(zero, one, v))])
    }
}

/// The same for weights: codes are the odd integers from `-n` to `n`, worth `a / n`; `a` is the paper's scale of the layer's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignedInterval {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl SignedInterval {
    #[inline(always)]
    fn unsigned(self) -> Interval {
        Interval { n: self.n, delta: DELTA }
    }
}

impl Formula<3> for SignedInterval {
    #[inline(always)]
    fn position<N: Number>(self, w: N, [low, width, _]: [N; 3]) -> N {
        self.unsigned().position(w, [low, width]) * N::from(2.0) - N::from(self.n)
    }

    #[inline(always)]
    fn code<N: Number>(self, w: N, [low, width, _]: [N; 3]) -> N {
        self.unsigned().code(w, [low, width]) * N::from(2.0) - N::from(self.n)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        Some(2)
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.n
    }

    #[inline(always)]
    fn gradient<N: Number>(self, w: N, [low, width, scale]: [N; 3], code: N, g: N) -> (N, [N; 3]) {
        let (two, n) = (N::from(2.0), N::from(self.n));
        let unsigned_code = (code + n) / two;
        let (of_w, [of_low, of_width]) =
            self.unsigned().gradient(w, [low, width], unsigned_code, g * scale * two);
        (of_w, [of_low, of_width, g * (code / n)])
    }
}

/// EWGS weights. Codes are the odd integers `-n, -n + 2, ..., n` with `n = 2^bits - 1`.
///
/// # Equation
/// ```text
/// v = clip((w - l) / (u - l), 0, 1)           Lee21 Eq. 1
/// c = 2 round(n v) - n                        Eq. 2 and 3, ties to even
/// y = c / n a                                 a is the output's scale of section 3.1
/// dv = g (1 + delta sign(g) (v - round(n v) / n))        Eq. 5, g the gradient by the rounded value
/// ```
/// The gradient passes where `0 <= (w - l) / (u - l) <= 1`; those of `l`, `u` and `a` are the chain rule's times LSQ's factor
/// `1 / sqrt(N n)` (decision of this project: as they are, ends leave the weights behind; the authors' code has an optimizer of its own for
/// them, with a hundredth of the weights' rate). The interval begins at three
/// standard deviations on both sides of zero, as in the authors' code, and the scale at its upper end (decision of this project: the
/// weights keep their size).
#[derive(Module, Debug)]
pub struct EwgsWeights {
    /// The lower end `l`, `[1]`.
    pub interval_lower: Param<Tensor<1>>,
    /// The upper end `u`, `[1]`.
    pub interval_upper: Param<Tensor<1>>,
    /// The scale `a`, `[1]`.
    pub output_scale: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
}

impl Quantizer for EwgsWeights {
    const STATE: &'static [&'static str] = &["interval_lower", "interval_upper", "output_scale"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        CodeSet::odd(self.bits)
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![
            Learned { name: "interval_lower", parameter: &self.interval_lower, floor: None },
            Learned { name: "interval_upper", parameter: &self.interval_upper, floor: None },
            Learned { name: "output_scale", parameter: &self.output_scale, floor: Some(MIN_WIDTH) },
        ]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.interval_lower, &mut self.interval_upper, &mut self.output_scale]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![
            ("weight_interval_width", constant(width(&self.interval_lower, &self.interval_upper))),
            ("weight_interval_lower", constant(self.interval_lower.val())),
            ("weight_output_scale", constant(self.output_scale.val()).clamp_min(MIN_WIDTH)),
        ]
    }

    fn n_at_floor(&self) -> Option<Tensor<1, Int>> {
        let of_width = n_at_floor(self.interval_upper.val() - self.interval_lower.val(), MIN_WIDTH);
        Some(of_width + n_at_floor(self.output_scale.val(), MIN_WIDTH))
    }
}

impl QuantizesWeights for EwgsWeights {
    fn new<const D: usize>(bits: BitWidth, _: Granularity, w: Tensor<D>) -> Self {
        let recorded_bits = recorded_bits(bits, &w.device());
        let end = three_deviations(w);
        // Tensors of their own: the gradients of clones are one.
        let parameters = [end.clone().neg(), end.clone(), end].map(|end| Param::from_tensor(constant(end)));
        let [interval_lower, interval_upper, output_scale] = parameters;
        Self { interval_lower, interval_upper, output_scale, recorded_bits, bits }
    }

    fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        let end = three_deviations(w);
        self.interval_lower = self.interval_lower.clone().map(|old| replace(old, end.clone().neg()));
        self.interval_upper = self.interval_upper.clone().map(|old| replace(old, end.clone()));
        self.output_scale = self.output_scale.clone().map(|old| replace(old, end));
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let factor = gradient_factor(self.bits.unsigned_range(), w.shape().num_elements());
        let [lower, width] = interval(&self.interval_lower, &self.interval_upper, factor);
        let parameters = vec![lower, width, positive_parameter(self.output_scale.val(), MIN_WIDTH, factor)];
        let formula = AnyFormula::new(SignedInterval { n: (self.bits.levels() - 1) as f32 });
        Scheme::new(formula, parameters, code_range(&self.code_set()))
    }
}

/// EWGS activations. Codes are unsigned, `0..=2^bits - 1`, worth `c / n`: the equations are those of [`EwgsWeights`] with
/// `c = round(n v)` and without a scale, which the layer's weights have.
///
/// A calibration sets the interval from the smallest value, or 0 if that is smaller, to three standard deviations of the half normal
/// distribution, as in the authors' code; until then, and for values that are all zero, it is [0, 1].
#[derive(Module, Debug)]
pub struct EwgsActivations {
    /// The lower end `l`, `[1]`.
    pub interval_lower: Param<Tensor<1>>,
    /// The upper end `u`, `[1]`.
    pub interval_upper: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl EwgsActivations {
    fn formula(&self) -> Interval {
        Interval { n: (self.bits.levels() - 1) as f32, delta: DELTA }
    }

    fn scheme_of(&self, dims: &[usize], formula: AnyFormula) -> Scheme {
        let interval = self.interval(dims[1..].iter().product()).to_vec();
        Scheme::new(formula, interval, code_range(&self.code_set()))
    }

    /// Lower end and width in force, `[1]` each, for samples of so many values: during a calibration, those of what is recorded so far.
    fn interval(&self, per_sample: usize) -> [Tensor<1>; 2] {
        self.calibrated().unwrap_or_else(|| {
            let factor = gradient_factor(self.bits.unsigned_range(), per_sample);
            interval(&self.interval_lower, &self.interval_upper, factor)
        })
    }

    /// Lower end and width for the activations that are recorded so far; `None` without any.
    fn calibrated(&self) -> Option<[Tensor<1>; 2]> {
        // The standard deviation of a half normal distribution of deviation 1 is sqrt(1 - 2 / pi).
        const HALF_NORMAL: f64 = 0.602_810_274_989_087;
        let (moments, (low, _)) = (self.calibration.mean()?, self.calibration.range()?);
        let [mean, square] = [0, 1].map(|i| moments.clone().narrow(0, i, 1));
        let all_zero = square.clone().equal_scalar(0.0);
        let deviation = (square - mean.clone() * mean).clamp_min(0.0).sqrt();
        let width = (deviation * (3.0 / HALF_NORMAL) - low.clone()).clamp_min(MIN_WIDTH);
        Some([low, width.mask_fill(all_zero, 1.0)])
    }
}

impl Quantizer for EwgsActivations {
    const STATE: &'static [&'static str] = &["interval_lower", "interval_upper"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![
            Learned { name: "interval_lower", parameter: &self.interval_lower, floor: None },
            Learned { name: "interval_upper", parameter: &self.interval_upper, floor: None },
        ]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.interval_lower, &mut self.interval_upper]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        let [lower, width] = self.interval(1).map(constant);
        vec![("act_interval_width", width), ("act_interval_lower", lower)]
    }

    fn n_at_floor(&self) -> Option<Tensor<1, Int>> {
        Some(n_at_floor(self.interval_upper.val() - self.interval_lower.val(), MIN_WIDTH))
    }
}

impl QuantizesActivations for EwgsActivations {
    const TAKES_NEGATIVE: bool = true;

    fn new(bits: BitWidth, device: &Device) -> Self {
        let [interval_lower, interval_upper] =
            [0.0, 1.0].map(|end| Param::from_tensor(Tensor::full([1], end, device)));
        let (recorded_bits, calibration) = (recorded_bits(bits, device), Calibration::default());
        Self { interval_lower, interval_upper, recorded_bits, bits, calibration }
    }

    fn scheme(&self, dims: &[usize]) -> Scheme {
        self.scheme_of(dims, AnyFormula::new(Rectified::of_value(self.formula())))
    }

    fn scheme_of_relu(&self, dims: &[usize]) -> Scheme {
        self.scheme_of(dims, AnyFormula::new(Rectified::of_relu(self.formula())))
    }

    fn observes(&self) -> bool {
        self.calibration.is_recording()
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        if self.calibration.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone());
            let mean = |x: Tensor<D>| reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1));
            let range = value_range(x.clone());
            let [min, max] = [0, 1].map(|i| range.clone().narrow(0, i, 1));
            self.calibration.record_range(min, max);
            self.calibration.record_mean(Tensor::cat(vec![mean(x.clone()), mean(x.square())], 0));
        }
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    fn finish_calibration(&mut self) {
        let interval = self.calibrated();
        self.calibration.finish_mean();
        if let Some([low, width]) = interval {
            self.interval_lower = self.interval_lower.clone().map(|old| replace(old, low.clone()));
            self.interval_upper = self.interval_upper.clone().map(|old| replace(old, low + width));
        }
    }
}

/// Lower end and width of an interval in force, `[1]` each, with the gradients of its ends times `factor`.
fn interval(lower: &Param<Tensor<1>>, upper: &Param<Tensor<1>>, factor: f64) -> [Tensor<1>; 2] {
    let scaled = scaled_parameter(lower.val(), factor);
    [scaled, positive_parameter(upper.val() - lower.val(), MIN_WIDTH, factor)]
}

/// The width of an interval in force, `[1]`.
fn width(lower: &Param<Tensor<1>>, upper: &Param<Tensor<1>>) -> Tensor<1> {
    constant(upper.val() - lower.val()).clamp_min(MIN_WIDTH)
}

/// Three standard deviations of the weights; all-zero weights have 1.
pub(super) fn three_deviations<const D: usize>(w: Tensor<D>) -> Tensor<1> {
    if w.shape().num_elements() == 0 {
        return Tensor::ones([1], &w.device());
    }
    let w = constant(w);
    let mean = |x: Tensor<D>| reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1));
    let (center, square) = (mean(w.clone()), mean(w.square()));
    let deviation = (square - center.clone() * center).clamp_min(0.0).sqrt();
    let none = deviation.clone().lower_scalar(MIN_WIDTH / 3.0);
    (deviation * 3.0).mask_fill(none, 1.0)
}
