//! QIL, Jung et al. 2019 (arXiv 1808.05779): an interval of magnitudes, learned as its center and its distance to either end. What lies
//! below it is pruned, what lies above it is clipped.

use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity, GridError, IntegerGrid};
use lowbit_kernels::{AnyFormula, Formula, Number, Rectified, Scheme};

use super::ewgs::Interval;
use super::lsq::gradient_factor;
use crate::calibration::Calibration;
use crate::codes::{read, reduce};
use crate::parameter::{constant, positive_parameter, recorded_bits, replace, scaled_parameter};
use crate::quantizer::{
    Learned, Quantizer, QuantizesActivations, QuantizesWeights, code_range, integer_grid,
};

/// The distance is never shorter.
const MIN_DISTANCE: f32 = 1e-4;

/// The exponent is never smaller.
const MIN_EXPONENT: f32 = 1e-2;

/// Magnitudes below this part of the interval are at its lower end: the logarithm of zero has no gradient.
const SMALLEST: f32 = 1e-30;

/// `round(q v)` of a transformed weight `v` in [-1, 1]. The gradient passes everywhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transformed {
    /// The largest code, `2^(bits-1) - 1`.
    pub q: f32,
}

impl Formula<0> for Transformed {
    #[inline(always)]
    fn position<N: Number>(self, v: N, []: [N; 0]) -> N {
        v * N::from(self.q)
    }

    fn unit(self) -> Option<usize> {
        None
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.q
    }

    #[inline(always)]
    fn gradient<N: Number>(self, _: N, []: [N; 0], _: N, g: N) -> (N, [N; 0]) {
        (g, [])
    }
}

/// QIL weights of 2 to 8 bits. Codes are `-q..=q` with `q = 2^(bits-1) - 1`.
///
/// # Equation
/// ```text
/// u = clip((|w| - (c - d)) / (2 d), 0, 1)     Jung19: alpha = 0.5 / d, beta = -0.5 c / d + 0.5
/// v = sign(w) u^gamma                         the transformer
/// code = round(q v),  y = code / q            the discretizer; ties to even
/// ```
/// The rounding is passed straight through, everything else is differentiated as written, for the center `c`, the distance `d` and `gamma` as
/// well, whose gradients are multiplied by LSQ's `1 / sqrt(N q)` (decision of this project, as for EWGS). The interval begins as all magnitudes,
/// `c = d = max|w| / 2`, and gamma as 1.
#[derive(Module, Debug)]
pub struct QilWeights {
    /// The center `c`, `[1]`.
    pub interval_center: Param<Tensor<1>>,
    /// The distance `d`, `[1]`.
    pub interval_distance: Param<Tensor<1>>,
    /// The exponent, `[1]`.
    pub interval_exponent: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
}

impl Quantizer for QilWeights {
    const STATE: &'static [&'static str] = &["interval_center", "interval_distance", "interval_exponent"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        let q_max = self.bits.signed_range().q_max;
        CodeSet::Uniform { q_min: -q_max, q_max, stride: 1 }
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![
            Learned { name: "interval_center", parameter: &self.interval_center, floor: None },
            Learned {
                name: "interval_distance",
                parameter: &self.interval_distance,
                floor: Some(MIN_DISTANCE),
            },
            Learned {
                name: "interval_exponent",
                parameter: &self.interval_exponent,
                floor: Some(MIN_EXPONENT),
            },
        ]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.interval_center, &mut self.interval_distance, &mut self.interval_exponent]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![
            ("weight_interval_distance", constant(self.interval_distance.val()).clamp_min(MIN_DISTANCE)),
            ("weight_interval_center", constant(self.interval_center.val())),
            ("weight_exponent", constant(self.interval_exponent.val()).clamp_min(MIN_EXPONENT)),
        ]
    }
}

impl QuantizesWeights for QilWeights {
    const BITS: RangeInclusive<u32> = 2..=8;

    fn new<const D: usize>(bits: BitWidth, _: Granularity, w: Tensor<D>) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "qil has weights of 2 bits or more, not {bits}");
        let recorded_bits = recorded_bits(bits, &w.device());
        let interval_exponent = Param::from_tensor(Tensor::ones([1], &w.device()));
        // Tensors of their own: the gradients of clones are one.
        let half = half_of_largest(w);
        let parameters = [half.clone(), half].map(|half| Param::from_tensor(constant(half)));
        let [interval_center, interval_distance] = parameters;
        Self { interval_center, interval_distance, interval_exponent, recorded_bits, bits }
    }

    fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        let half = half_of_largest(w);
        self.interval_center = self.interval_center.clone().map(|old| replace(old, half.clone()));
        self.interval_distance = self.interval_distance.clone().map(|old| replace(old, half));
        self.interval_exponent =
            self.interval_exponent.clone().map(|old| replace(old.clone(), old.ones_like()));
    }

    fn transform<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        let range = self.bits.signed_range();
        let factor = gradient_factor(range, w.shape().num_elements());
        let [lower, width] = interval(&self.interval_center, &self.interval_distance, factor);
        let gamma = positive_parameter(self.interval_exponent.val(), MIN_EXPONENT, factor);
        let wide = |parameter: Tensor<1>| -> Tensor<D> { parameter.reshape([1; D]) };
        let u = ((w.clone().abs() - wide(lower)) / wide(width)).clamp(0.0, 1.0);
        let is_pruned = u.clone().lower_scalar(SMALLEST);
        let v = (u.clamp_min(SMALLEST).log() * wide(gamma)).exp().mask_fill(is_pruned, 0.0);
        v * constant(w).sign()
    }

    fn scheme<const D: usize>(&self, _: &Tensor<D>) -> Scheme {
        let formula = AnyFormula::new(Transformed { q: self.bits.signed_range().q_max as f32 });
        Scheme::new(formula, Vec::new(), code_range(&self.code_set()))
    }

    fn grid<const D: usize>(&self, w: Tensor<D>) -> Result<IntegerGrid, GridError> {
        // The formula has no parameters, but what it takes is made with these.
        let learned = self.learned().into_iter().flat_map(|learned| read(learned.parameter.val()));
        match learned.into_iter().find(|number| !number.is_finite()) {
            Some(got) => Err(GridError::Parameter { got }),
            None => integer_grid(&self.scheme(&w), self.code_set()),
        }
    }
}

/// QIL activations after a ReLU. Codes are unsigned, `0..=2^bits - 1`: those of [`QilWeights`] without a sign and with a gamma of 1, as
/// in the paper, and `n = 2^bits - 1` in the place of `q`.
///
/// A calibration sets the interval from 0 to `min(max(x), 3 sqrt(mean(x^2)))` (decision of this project); until then it is [0, 1].
#[derive(Module, Debug)]
pub struct QilActivations {
    /// The center `c`, `[1]`.
    pub interval_center: Param<Tensor<1>>,
    /// The distance `d`, `[1]`.
    pub interval_distance: Param<Tensor<1>>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl QilActivations {
    /// Half of the interval from 0 for the activations that are recorded so far; `None` without any.
    fn calibrated(&self) -> Option<Tensor<1>> {
        self.calibration.half_normal_end(1.0).map(|end| (end * 0.5).clamp_min(MIN_DISTANCE))
    }

    /// Lower end and width in force, `[1]` each, for samples of so many values.
    fn interval(&self, per_sample: usize) -> [Tensor<1>; 2] {
        match self.calibrated() {
            Some(half) => [half.zeros_like(), half * 2.0],
            None => {
                let factor = gradient_factor(self.bits.unsigned_range(), per_sample);
                interval(&self.interval_center, &self.interval_distance, factor)
            }
        }
    }

    fn formula(&self) -> Interval {
        Interval { n: (self.bits.levels() - 1) as f32, delta: 0.0 }
    }

    fn scheme_of(&self, dims: &[usize], formula: AnyFormula) -> Scheme {
        let interval = self.interval(dims[1..].iter().product()).to_vec();
        Scheme::new(formula, interval, code_range(&self.code_set()))
    }
}

impl Quantizer for QilActivations {
    const STATE: &'static [&'static str] = &["interval_center", "interval_distance"];

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn learned(&self) -> Vec<Learned<'_>> {
        vec![
            Learned { name: "interval_center", parameter: &self.interval_center, floor: None },
            Learned {
                name: "interval_distance",
                parameter: &self.interval_distance,
                floor: Some(MIN_DISTANCE),
            },
        ]
    }

    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        vec![&mut self.interval_center, &mut self.interval_distance]
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        let [lower, width] = self.interval(1).map(constant);
        let distance = width * 0.5;
        vec![("act_interval_distance", distance.clone()), ("act_interval_center", lower + distance)]
    }
}

impl QuantizesActivations for QilActivations {
    fn new(bits: BitWidth, device: &Device) -> Self {
        let [interval_center, interval_distance] =
            [(); 2].map(|()| Param::from_tensor(Tensor::full([1], 0.5, device)));
        let (recorded_bits, calibration) = (recorded_bits(bits, device), Calibration::default());
        Self { interval_center, interval_distance, recorded_bits, bits, calibration }
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
        self.calibration.record_half_normal(x);
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    fn finish_calibration(&mut self) {
        let half = self.calibrated();
        self.calibration.finish_mean();
        if let Some(half) = half {
            self.interval_center = self.interval_center.clone().map(|old| replace(old, half.clone()));
            self.interval_distance = self.interval_distance.clone().map(|old| replace(old, half));
        }
    }
}

/// Lower end and width of an interval in force, `[1]` each, with the gradients of its center and its distance times `factor`.
fn interval(center: &Param<Tensor<1>>, distance: &Param<Tensor<1>>, factor: f64) -> [Tensor<1>; 2] {
    let distance = positive_parameter(distance.val(), MIN_DISTANCE, factor);
    let center = scaled_parameter(center.val(), factor);
    [center - distance.clone(), distance * 2.0]
}

/// Half of the largest magnitude, `[1]`; 1/2 of weights that are all zero.
fn half_of_largest<const D: usize>(w: Tensor<D>) -> Tensor<1> {
    if w.shape().num_elements() == 0 {
        return Tensor::full([1], 0.5, &w.device());
    }
    let largest = reduce(constant(w).abs(), Granularity::PerTensor, |rows| rows.max_dim(1));
    let none = largest.clone().lower_scalar(2.0 * MIN_DISTANCE);
    largest.mask_fill(none, 1.0) * 0.5
}
