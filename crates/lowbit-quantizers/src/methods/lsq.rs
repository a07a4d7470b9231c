//! LSQ, Esser et al. 2020 (arXiv 1902.08153): the step size of the grid is learned.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeRange, CodeSet, Granularity, GridError, IntegerGrid};
use lowbit_kernels::{Activation, Grid, Scale, fake_quantize_learned};

use crate::calibration::Calibration;
use crate::codes::{codes_of, is_negative, per_channel, read, reduce, zero_if_nan};
use crate::parameter::{constant, n_at_floor, positive_parameter, recorded_bits, replace};

/// The step size never falls below this: the smallest weights that training produces are orders of magnitude larger.
const MIN_STEP_SIZE: f32 = 1e-7;

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

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    /// The granularity.
    pub fn granularity(&self) -> Granularity {
        self.granularity
    }

    /// Sets the step size from the weights `w`, as [`LsqWeights::new`] does.
    pub fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        let step_size = initial_step_size(w, self.granularity, weight_range(self.bits));
        self.step_size = self.step_size.clone().map(|old| replace(old, step_size));
    }

    /// The step sizes as the forward pass uses them, `[1]` or `[out_channels]`.
    fn steps<const D: usize>(&self, w: &Tensor<D>) -> Tensor<1> {
        let per_step = w.shape().num_elements() / self.step_size.val().dims()[0];
        learned_step(self.step_size.val(), weight_range(self.bits), per_step)
    }

    fn step<const D: usize>(&self, w: &Tensor<D>) -> Tensor<D> {
        per_channel(self.steps(w))
    }

    /// Codes in the signed range, of `w`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, w: Tensor<D>) -> Tensor<D, Int> {
        if self.bits.get() == 1 {
            return is_negative(w) * -2 + 1;
        }
        let steps = self.steps(&w);
        codes_of(self.on_grid(zero_if_nan(w), steps.clone()), steps)
    }

    /// The weights on the grid's real values, of `w`'s shape, with the gradients of Esser20.
    pub fn fake_quantize<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        let steps = self.steps(&w);
        self.on_grid(w, steps)
    }

    fn on_grid<const D: usize>(&self, w: Tensor<D>, steps: Tensor<1>) -> Tensor<D> {
        let grid = match self.bits.get() {
            1 => Grid::Sign { is_bounded: true },
            _ => step_grid(weight_range(self.bits)),
        };
        fake_quantize_learned(w, steps, grid)
    }

    /// [`fake_quantize`](Self::fake_quantize) without the rounding: the weights clipped to the range of the codes.
    pub fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        let step = self.step(&w);
        clip(w / step.clone(), weight_range(self.bits)) * step
    }

    /// Changes step sizes learned at `from` bits so that the distance between the outermost levels stays. (Their places cannot
    /// both: a grid of 4 bits has them at -8 and 7 steps, one of 2 bits at -2 and 1.)
    pub(crate) fn rescale(&mut self, from: BitWidth) {
        self.step_size = rescaled(&self.step_size, [from, self.bits].map(weight_range));
    }

    /// The step sizes in force, without gradient.
    pub(crate) fn step_in_force(&self) -> Tensor<1> {
        constant(self.step_size.val()).clamp_min(MIN_STEP_SIZE)
    }

    /// How many step sizes are held at their floor, `[1]`.
    pub(crate) fn n_at_floor(&self) -> Tensor<1, Int> {
        n_at_floor(self.step_size.val(), MIN_STEP_SIZE)
    }

    /// What the quantized weights are multiples of, and the largest magnitude of a multiple.
    pub(crate) fn scale(&self) -> (Scale, u8) {
        let parameter = self.step_in_force();
        (Scale::Learned { parameter, parts: 1.0 }, weight_range(self.bits).q_min.unsigned_abs() as u8)
    }

    /// The grid: its unit is the step size in force.
    ///
    /// # Errors
    /// [`GridError`] if a step size is not finite.
    pub fn grid(&self) -> Result<IntegerGrid, GridError> {
        let codes = match self.bits.get() {
            1 => CodeSet::odd(self.bits),
            _ => weight_range(self.bits).into(),
        };
        IntegerGrid::new(codes, read(self.step_in_force()), 1)
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
    pub(crate) calibration: Calibration,
}

impl LsqActivations {
    /// A quantizer to `bits` bits. Until it is calibrated its step size is `1 / q_max`, which spans [0, 1].
    pub fn new(bits: BitWidth, device: &Device) -> Self {
        let step_size = Tensor::full([1], 1.0 / bits.unsigned_range().q_max as f32, device);
        let (step_size, recorded_bits) = (Param::from_tensor(step_size), recorded_bits(bits, device));
        Self { step_size, recorded_bits, bits, calibration: Calibration::default() }
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    /// The step size that quantizes `x`, `[1]`: during a calibration, that of what is recorded so far.
    fn current_step<const D: usize>(&self, x: &Tensor<D>) -> Tensor<1> {
        let range = self.bits.unsigned_range();
        match self.calibration.mean() {
            Some(mean_abs) => step_from_mean(mean_abs, range),
            None => learned_step(self.step_size.val(), range, x.dims()[1..].iter().product()),
        }
    }

    /// Takes in a batch, in a calibration.
    pub(crate) fn observe<const D: usize>(&self, x: &Tensor<D>) {
        if self.calibration.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone()).abs();
            self.calibration.record_mean(reduce(x, Granularity::PerTensor, |rows| rows.mean_dim(1)));
        }
    }

    fn step<const D: usize>(&self, x: &Tensor<D>) -> Tensor<D> {
        per_channel(self.current_step(x))
    }

    /// Ends a calibration: sets the step size to `2 mean|x| / sqrt(q_max)` over what was recorded.
    pub(crate) fn finish_calibration(&mut self) {
        if let Some(mean_abs) = self.calibration.finish_mean() {
            let step_size = step_from_mean(mean_abs, self.bits.unsigned_range());
            self.step_size = self.step_size.clone().map(|old| replace(old, step_size));
        }
    }

    /// Codes in `0..=2^bits - 1`, of `x`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        let step = self.current_step(&x);
        codes_of(self.on_grid(zero_if_nan(x), step.clone()), step)
    }

    /// `x` on the grid's real values, of `x`'s shape, with the gradients of Esser20.
    pub fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let step = self.current_step(&x);
        self.on_grid(x, step)
    }

    fn on_grid<const D: usize>(&self, x: Tensor<D>, step: Tensor<1>) -> Tensor<D> {
        fake_quantize_learned(x, step, step_grid(self.bits.unsigned_range()))
    }

    /// [`fake_quantize`](Self::fake_quantize) without the rounding: `x` clipped to the range of the codes.
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let step = self.step(&x);
        clip(x / step.clone(), self.bits.unsigned_range()) * step
    }

    /// Changes a step size learned at `from` bits to span the same range.
    pub(crate) fn rescale(&mut self, from: BitWidth) {
        self.step_size = rescaled(&self.step_size, [from, self.bits].map(BitWidth::unsigned_range));
    }

    /// A ReLU and the quantizer in one, for values of shape `dims`; `None` during calibration, which sees the values.
    pub(crate) fn activation<const D: usize>(&self, dims: [usize; D]) -> Option<Activation> {
        let (range, per_sample) = (self.bits.unsigned_range(), dims[1..].iter().product());
        (!self.calibration.is_recording()).then(|| Activation::Learned {
            parameter: learned_step(self.step_size.val(), range, per_sample),
            grid: step_grid(range),
        })
    }

    /// The step size in force, `[1]`, without gradient.
    pub(crate) fn step_in_force(&self) -> Tensor<1> {
        match self.calibration.mean() {
            Some(mean_abs) => step_from_mean(mean_abs, self.bits.unsigned_range()),
            None => constant(self.step_size.val()).clamp_min(MIN_STEP_SIZE),
        }
    }

    /// How many step sizes are held at their floor, `[1]`.
    pub(crate) fn n_at_floor(&self) -> Tensor<1, Int> {
        n_at_floor(self.step_size.val(), MIN_STEP_SIZE)
    }

    /// What the quantized values are multiples of, and the largest multiple; `None` during calibration.
    pub(crate) fn scale(&self) -> Option<(Scale, u8)> {
        let parameter = self.step_in_force();
        let largest = self.bits.unsigned_range().q_max as u8;
        (!self.calibration.is_recording()).then_some((Scale::Learned { parameter, parts: 1.0 }, largest))
    }

    /// The grid: its unit is the step size in force.
    ///
    /// # Errors
    /// [`GridError`] if the step size is not finite.
    pub fn grid(&self) -> Result<IntegerGrid, GridError> {
        IntegerGrid::new(self.bits.unsigned_range(), read(self.step_in_force()), 1)
    }
}

/// Signed codes; at 1 bit -1 and +1.
fn weight_range(bits: BitWidth) -> CodeRange {
    match bits.get() {
        1 => CodeRange { q_min: -1, q_max: 1 },
        _ => bits.signed_range(),
    }
}

/// The formula of the kernels.
fn step_grid(range: CodeRange) -> Grid {
    Grid::Step { q_min: range.q_min as f32, q_max: range.q_max as f32 }
}

/// `clip(v, q_min, q_max)`, whose gradient passes where `q_min < v < q_max`.
fn clip<const D: usize>(v: Tensor<D>, range: CodeRange) -> Tensor<D> {
    let (q_min, q_max) = (range.q_min as f32, range.q_max as f32);
    let value = constant(v.clone());
    let inside = value.clone().greater_scalar(q_min).bool_and(value.clone().lower_scalar(q_max));
    value.clamp(q_min, q_max).mask_where(inside, v)
}

/// A step size of the first range for the second one, which spans as much.
fn rescaled(step_size: &Param<Tensor<1>>, ranges: [CodeRange; 2]) -> Param<Tensor<1>> {
    let [from, to] = ranges.map(|range| f64::from(range.q_max - range.q_min));
    step_size.clone().map(|old| replace(old.clone(), constant(old) * (from / to)))
}

/// The step with its gradient scaled by `1 / sqrt(N q_max)`, Esser20 section 2.2.
fn learned_step(parameter: Tensor<1>, range: CodeRange, elements: usize) -> Tensor<1> {
    let grad_scale = 1.0 / (elements as f64 * f64::from(range.q_max)).sqrt();
    positive_parameter(parameter, MIN_STEP_SIZE, grad_scale)
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
