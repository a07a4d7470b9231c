//! LSQ+, Bhalgat et al. 2020 (arXiv 2004.09576): LSQ with a learned offset of the activations, for those that are not of one sign.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity};
use lowbit_kernels::{AnyFormula, Rectified, Scheme, value_range};

use super::lsq::{
    MIN_STEP_SIZE, Sign, Step, gradient_factor, in_force, learned, learned_step, rescaled, weight_range,
};
use super::minmax::Affine;
use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, recorded_bits, replace, scaled_parameter};
use crate::quantizer::{Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range};

/// LSQ+ weights: those of [`LsqWeights`](super::lsq::LsqWeights) (the paper finds an offset of no use for them) with another start.
///
/// # Equation
/// ```text
/// s = max(|mean - 3 sigma|, |mean + 3 sigma|) / 2^(bits-1)          Bhalgat20 section 3.2.1, `sigma` the standard deviation
/// ```
#[derive(Module, Debug)]
pub struct LsqPlusWeights {
    /// The learned step size `s`. Shape `[1]`, or `[out_channels]` per channel.
    pub step_size: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    granularity: Granularity,
}

impl Quantizer for LsqPlusWeights {
    const STATE: &'static [&'static str] = &["step_size"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        match self.bits.get() {
            1 => CodeSet::odd(self.bits),
            _ => self.bits.signed_range().into(),
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

    fn rescale(&mut self, from: BitWidth) {
        self.step_size = rescaled(&self.step_size, [from, self.bits].map(weight_range));
    }
}

impl QuantizesWeights for LsqPlusWeights {
    const HOLDS_LEVELS: bool = true;
    const PER_CHANNEL: bool = true;

    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        let recorded_bits = recorded_bits(bits, &w.device());
        let step_size = Param::from_tensor(initial_step_size(bits, granularity, w));
        Self { step_size, recorded_bits, bits, granularity }
    }

    fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        let step_size = initial_step_size(self.bits, self.granularity, w);
        self.step_size = self.step_size.clone().map(|old| replace(old, step_size));
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let per_step = w.shape().num_elements() / self.step_size.val().dims()[0];
        let step_size = learned_step(self.step_size.val(), weight_range(self.bits), per_step);
        let formula = match self.bits.get() {
            1 => AnyFormula::new(Sign),
            _ => AnyFormula::new(Step::new(self.bits.signed_range())),
        };
        Scheme::new(formula, vec![step_size], code_range(&self.code_set()))
    }
}

/// LSQ+ activations. Codes are unsigned, `0..=n` with `n = 2^bits - 1`.
///
/// # Equation
/// ```text
/// c = clip(round(x / s) + z, 0, n)            Bhalgat20 Eq. 7, z = clip(round(-b / s), 0, n) for the offset b
/// y = (c - z) s                               Eq. 8
/// dy/ds = c - z - x/s inside, c elsewhere     Eq. 9
/// dy/db = 0 inside, 1 elsewhere               Eq. 10; 0 where z is clipped
/// ```
/// both times LSQ's factor `1 / sqrt(N n)`. The paper adds the offset as it is; here it is rounded to a multiple of the step (decision
/// of this project), so that zero, with which images are padded, is a code, and the grid is that of an integer zero point. An offset beyond the codes
/// has no effect, and so no gradient.
///
/// A calibration sets `b` to the smallest value, or 0 if that is smaller, and `s` to LSQ's start for what lies above it, `2 mean(x - b) / sqrt(n)` (ours: the
/// paper searches for the least squared error). Until then the grid spans [0, 1].
#[derive(Module, Debug)]
pub struct LsqPlusActivations {
    /// The learned step size `s`, `[1]`.
    pub step_size: Param<Tensor<1>>,
    /// The learned offset `b`, `[1]`.
    pub step_offset: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl LsqPlusActivations {
    fn scheme_of(&self, dims: &[usize], formula: AnyFormula) -> Scheme {
        let (n, range) = (f64::from(self.steps()), self.bits.unsigned_range());
        let [step_size, offset] = self.calibrated().unwrap_or_else(|| {
            let per_sample: usize = dims[1..].iter().product();
            let offset = scaled_parameter(self.step_offset.val(), gradient_factor(range, per_sample));
            [learned_step(self.step_size.val(), range, per_sample), offset]
        });
        let (s, place) = (constant(step_size.clone()), constant(offset.clone().neg() / step_size.clone()));
        let zero_point = place.clone().round().clamp(0.0, n);
        // Straight through the rounding, of the zero point in force: dz/ds = -z/s, and dz/db = -1/s where z was not clipped.
        let is_clipped = place.clone().lower_scalar(-0.5).bool_or(place.greater_scalar(n + 0.5));
        let by_offset = s.clone().recip().neg().mask_fill(is_clipped, 0.0);
        let path = offset * by_offset + step_size.clone() * (zero_point.clone().neg() / s);
        let zero_point = zero_point + (path.clone() - constant(path));
        Scheme::new(formula, vec![step_size, zero_point], code_range(&self.code_set()))
    }

    fn steps(&self) -> i32 {
        self.bits.unsigned_range().q_max
    }

    /// Step size and offset for the activations that are recorded so far; `None` without any.
    fn calibrated(&self) -> Option<[Tensor<1>; 2]> {
        let (mean, (low, _)) = (self.calibration.mean()?, self.calibration.range()?);
        // Equal values lie above the smallest one by a rounding, or below.
        let above = (mean - low.clone()).clamp_min(0.0);
        let none = above.clone().equal_scalar(0.0);
        let step_size = above * (2.0 / f64::from(self.steps()).sqrt());
        let step_size = step_size.clamp_min(MIN_STEP_SIZE).mask_fill(none, 1.0);
        Some([step_size, low])
    }
}

impl Quantizer for LsqPlusActivations {
    const STATE: &'static [&'static str] = &["step_size", "step_offset"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![
            learned(&self.step_size),
            Learned { name: "step_offset", parameter: &self.step_offset, floor: None },
        ]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.step_size, &mut self.step_offset]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        let [step_size, offset] = match self.calibrated() {
            Some(calibrated) => calibrated,
            None => [in_force(&self.step_size), constant(self.step_offset.val())],
        };
        vec![("act_step_size", step_size), ("act_step_offset", offset)]
    }

    fn rescale(&mut self, from: BitWidth) {
        self.step_size = rescaled(&self.step_size, [from, self.bits].map(BitWidth::unsigned_range));
    }
}

impl QuantizesActivations for LsqPlusActivations {
    const TAKES_NEGATIVE: bool = true;
    const HAS_ZERO_POINT: bool = true;

    fn new(bits: BitWidth, device: &Device) -> Self {
        let step_size = Tensor::full([1], 1.0 / bits.unsigned_range().q_max as f32, device);
        let [step_size, step_offset] = [step_size, Tensor::zeros([1], device)].map(Param::from_tensor);
        Self {
            step_size,
            step_offset,
            recorded_bits: recorded_bits(bits, device),
            bits,
            calibration: Calibration::default(),
        }
    }

    fn scheme(&self, dims: &[usize]) -> Scheme {
        self.scheme_of(dims, AnyFormula::new(Rectified::of_value(Affine { n: self.steps() as f32 })))
    }

    fn scheme_of_relu(&self, dims: &[usize]) -> Scheme {
        self.scheme_of(dims, AnyFormula::new(Rectified::of_relu(Affine { n: self.steps() as f32 })))
    }

    fn observes(&self) -> bool {
        self.calibration.is_recording()
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        if self.calibration.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone());
            let range = value_range(x.clone());
            let [min, max] = [0, 1].map(|i| range.clone().narrow(0, i, 1));
            self.calibration.record_range(min, max);
            self.calibration.record_mean(reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1)));
        }
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    fn finish_calibration(&mut self) {
        let calibrated = self.calibrated();
        self.calibration.finish_mean();
        if let Some([step_size, offset]) = calibrated {
            self.step_size = self.step_size.clone().map(|old| replace(old, step_size));
            self.step_offset = self.step_offset.clone().map(|old| replace(old, offset));
        }
    }
}

fn initial_step_size<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Tensor<1> {
    if w.shape().num_elements() == 0 {
        return Tensor::ones([1], &w.device());
    }
    let w = constant(w);
    let mean = |x: Tensor<D>| reduce(x, granularity, |rows| rows.mean_dim(1));
    let (center, square) = (mean(w.clone()), mean(w.square()));
    let three_deviations = (square - center.clone() * center.clone()).clamp_min(0.0).sqrt() * 3.0;
    // The farther one of both ends.
    let end = center.abs() + three_deviations;
    let none = end.clone().equal_scalar(0.0);
    (end / f64::from(1 << (bits.get() - 1))).mask_fill(none, 1.0)
}
