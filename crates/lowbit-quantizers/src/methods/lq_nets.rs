//! LQ-Nets, Zhang et al. 2018 (arXiv 1807.10029): levels that are sums of learned basis values, one for each bit.
//!
//! The levels lie at any distances, so that no integers stand for them: products are those of floats, and no integer model can be exported.

use std::ops::RangeInclusive;

use burn::module::{Flag, Module, Param, RunningState};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity, GridError, IntegerGrid};
use lowbit_kernels::{AnyFormula, Formula, Number, Scheme};

use super::xnor::mean_magnitude;
use crate::calibration::Calibration;
use crate::codes::reduce;
use crate::parameter::{constant, recorded_bits};
use crate::quantizer::{Quantizer, QuantizesActivations, QuantizesWeights};

/// Share of the newest batch in the basis of activations, Zhang18.
const MOMENTUM: f64 = 0.1;

/// Alternations of codes and basis for weights (the paper has one in each step, and remembers the basis).
const ALTERNATIONS: usize = 3;

/// Added to the diagonal of the normal equations, whose entries are means: digits that are alike in all codes have no basis values of their own
/// (ours; single precision solves with this one).
const RIDGE: f32 = 1e-4;

/// The level `sum_i b_i v_i` nearest to `x`, of two as near the lower one: Zhang18. A code's binary digits say where `b_i = 1`, from
/// the first basis value on; elsewhere `b_i` is -1, or 0 without signs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Whether levels have either sign.
    pub is_signed: bool,
}

impl Nearest {
    /// The level of a code that is known when the kernel is compiled.
    #[inline(always)]
    fn level<N: Number, const K: usize>(self, code: usize, basis: [N; K]) -> N {
        let mut level = N::from(0.0);
        for (i, v) in basis.into_iter().enumerate() {
            match (code >> i & 1 == 1, self.is_signed) {
                (true, _) => level = level + v,
                (false, true) => level = level - v,
                (false, false) => {}
            }
        }
        level
    }

    #[inline(always)]
    fn ends<N: Number, const K: usize>(self, basis: [N; K]) -> [N; 2] {
        let (mut low, mut high) = (N::from(0.0), N::from(0.0));
        for v in basis {
            let magnitude = v.if_lower(N::from(0.0), -v, v);
            match self.is_signed {
                true => (low, high) = (low - magnitude, high + magnitude),
                false => {
                    (low, high) = (
                        low + v.if_lower(N::from(0.0), v, N::from(0.0)),
                        high + N::from(0.0).if_lower(v, v, N::from(0.0)),
                    )
                }
            }
        }
        [low, high]
    }
}

impl<const K: usize> Formula<K> for Nearest {
    /// Not rounded, a value is no code: it is clipped to the outermost levels.
    #[inline(always)]
    fn position<N: Number>(self, x: N, basis: [N; K]) -> N {
        let [low, high] = self.ends(basis);
        x.clip(low, high)
    }

    #[inline(always)]
    fn code<N: Number>(self, x: N, basis: [N; K]) -> N {
        let mut best = self.level(0, basis);
        let mut code = N::from(0.0);
        for other in 1..1 << K {
            let level = self.level(other, basis);
            // Of two levels the middle decides, which belongs to the lower one.
            let middle = (level + best) * N::from(0.5);
            let other = N::from(other as f32);
            let (is_above, is_below) = (middle.if_lower(x, other, code), x.if_at_most(middle, other, code));
            let (best_above, best_below) =
                (middle.if_lower(x, level, best), x.if_at_most(middle, level, best));
            code = best.if_lower(level, is_above, level.if_lower(best, is_below, code));
            best = best.if_lower(level, best_above, level.if_lower(best, best_below, best));
        }
        // `NaN`, which is not as large as itself, stays.
        x.if_at_most(x, code, x)
    }

    fn unit(self) -> Option<usize> {
        None
    }

    #[inline(always)]
    fn value<N: Number>(self, code: N, basis: [N; K]) -> N {
        // Zero, or `NaN` of a basis that is not finite.
        let (mut rest, mut value) = (code, basis[0] * N::from(0.0));
        for i in (0..K).rev() {
            let place = N::from((1 << i) as f32);
            let absent = if self.is_signed { value - basis[i] } else { value };
            value = place.if_at_most(rest, value + basis[i], absent);
            rest = place.if_at_most(rest, rest - place, rest);
        }
        // `NaN` stays.
        code.if_at_most(code, value, code)
    }

    #[inline(always)]
    fn unrounded<N: Number>(self, x: N, basis: [N; K]) -> N {
        self.position(x, basis)
    }

    fn is_grid(self) -> bool {
        false
    }

    /// The basis is found by its closed form: it has no gradient.
    #[inline(always)]
    fn gradient<N: Number>(self, x: N, basis: [N; K], _: N, g: N) -> (N, [N; K]) {
        let [low, high] = self.ends(basis);
        let of_x = if self.is_signed { g } else { x.if_within(low, high, g) };
        (of_x, [N::from(0.0); K])
    }
}

/// The levels of a basis, one tensor for each bit, `[1]` or one number for each slice along the first axis of what is quantized.
///
/// # Panics
/// Unless there are 1 to 4 tensors.
pub fn scheme(basis: Vec<Tensor<1>>, is_signed: bool) -> Scheme {
    let last_code = (1 << basis.len()) - 1;
    let formula = match basis.len() {
        1 => AnyFormula::new::<1>(Nearest { is_signed }),
        2 => AnyFormula::new::<2>(Nearest { is_signed }),
        3 => AnyFormula::new::<3>(Nearest { is_signed }),
        4 => AnyFormula::new::<4>(Nearest { is_signed }),
        bits => panic!("lq-nets has 1 to 4 bits, not {bits}"),
    };
    Scheme::new(formula, basis, 0..=last_code)
}

/// `(B B' / N + eps I)^-1 (B x / N)` for each row of `N` values and the digits `B` of their codes, one tensor `[rows]` for each bit, by Cholesky's
/// decomposition.
fn solved_for(x: &Tensor<2>, digits: &[Tensor<2>]) -> Vec<Tensor<1>> {
    let n = x.dims()[1] as f32;
    // Sums in a fixed order, for any number of threads.
    let mean = |product: Tensor<2>| reduce(product, Granularity::PerChannel, |rows| rows.sum_dim(1)) / n;
    let bits = digits.len();
    let mut lower: Vec<Vec<Tensor<1>>> = Vec::with_capacity(bits);
    let mut solved: Vec<Tensor<1>> = Vec::with_capacity(bits);
    for i in 0..bits {
        let mut row: Vec<Tensor<1>> = Vec::with_capacity(i + 1);
        for j in 0..=i {
            let mut rest = mean(digits[i].clone() * digits[j].clone());
            for (a, b) in row.iter().zip(lower.get(j).unwrap_or(&row)) {
                rest = rest - a.clone() * b.clone();
            }
            row.push(match j == i {
                true => (rest + RIDGE).clamp_min(RIDGE).sqrt(),
                false => rest / lower[j][j].clone(),
            });
        }
        let mut rest = mean(digits[i].clone() * x.clone());
        for (a, y) in row.iter().zip(&solved) {
            rest = rest - a.clone() * y.clone();
        }
        solved.push(rest / row[i].clone());
        lower.push(row);
    }
    let mut basis: Vec<Tensor<1>> = Vec::with_capacity(bits);
    // Back substitution, from the last basis value to the first.
    for i in (0..bits).rev() {
        let mut rest = solved[i].clone();
        for (k, v) in basis.iter().enumerate() {
            rest = rest - lower[i + 1 + k][i].clone() * v.clone();
        }
        basis.insert(0, rest / lower[i][i].clone());
    }
    basis
}

/// The digits of codes, `{0, 1}` or `{-1, 1}`, in rows: one tensor for each bit.
fn digits(codes: Tensor<2>, bits: usize, is_signed: bool) -> Vec<Tensor<2>> {
    let mut rest = codes;
    let mut digits = Vec::with_capacity(bits);
    for i in (0..bits).rev() {
        let place = (1 << i) as f32;
        let digit = rest.clone().greater_equal_scalar(place).float();
        rest = rest - digit.clone() * place;
        digits.insert(0, if is_signed { digit * 2.0 - 1.0 } else { digit });
    }
    digits
}

/// The basis with the least squared error for the codes that `x` has with the basis of `scheme`, for the whole tensor or for each slice along
/// the first axis: one tensor for each bit, `[1]` or `[slices]`. Zhang18.
pub fn fitted<const D: usize>(
    x: &Tensor<D>,
    scheme: &Scheme,
    granularity: Granularity,
    is_signed: bool,
) -> Vec<Tensor<1>> {
    let n = match granularity {
        Granularity::PerTensor => 1,
        Granularity::PerChannel => x.dims()[0],
    };
    let rows = [n, x.shape().num_elements() / n];
    let codes = scheme.codes(x.clone()).float().reshape(rows);
    solved_for(&x.clone().reshape(rows), &digits(codes, scheme.parameters().len(), is_signed))
}

/// LQ-Nets weights of 1 to 4 bits. Codes are `0..=n` with `n = 2^bits - 1`; their digits name the level.
///
/// # Equation
/// ```text
/// y = sum_i b_i v_i,  b_i in {-1, 1}          the level nearest to w: Zhang18, v of each output channel
/// v = (B B')^-1 B w                           for the codes B of w
/// dy/dw = 1                                   straight through
/// ```
/// The basis is found anew for every forward pass: three alternations of codes and basis that begin with equal distances (decision of this
/// project: the paper has one alternation a step and remembers the basis as a moving average. Without memory, equal weights have equal codes
/// in training, in evaluation and after a resume).
#[derive(Module, Debug)]
pub struct LqNetsWeights {
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    granularity: Granularity,
}

impl Quantizer for LqNetsWeights {
    const HAS_GRID: bool = false;

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }
}

impl QuantizesWeights for LqNetsWeights {
    const HAS_EQUAL_STEPS: bool = false;
    const BITS: RangeInclusive<u32> = 1..=4;
    const PER_CHANNEL: bool = true;
    const GRANULARITY: Granularity = Granularity::PerChannel;

    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "lq-nets has weights of 1 to 4 bits, not {bits}");
        Self { recorded_bits: recorded_bits(bits, &w.device()), bits, granularity }
    }

    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme {
        let w = constant(w.clone());
        let half = self.bits.levels() as f32 / 2.0;
        let mean = mean_magnitude(w.clone(), self.granularity) / half;
        let mut basis: Vec<Tensor<1>> =
            (0..self.bits.get()).map(|i| mean.clone() * (1 << i) as f32).collect();
        if w.shape().num_elements() > 0 {
            for _ in 0..ALTERNATIONS {
                basis = fitted(&w, &scheme(basis, true), self.granularity, true);
            }
        }
        scheme(basis, true)
    }

    /// The weights as they are: the outermost levels are not far from the largest.
    fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        w
    }

    fn grid<const D: usize>(&self, _: Tensor<D>) -> Result<IntegerGrid, GridError> {
        Err(GridError::Uneven)
    }
}

/// LQ-Nets activations of 1 to 4 bits after a ReLU. Codes are `0..=n` with `n = 2^bits - 1`; their digits name the level.
///
/// # Equation
/// ```text
/// y = sum_i b_i v_i,  b_i in {0, 1}           the level nearest to x: Zhang18
/// v <- 0.9 v + 0.1 (B B')^-1 B x              for the codes B of each batch of a training
/// dy/dx = 1 between the outermost levels
/// ```
/// A calibration sets equal distances from 0 to `min(max(x), 3 sqrt(mean(x^2)))` (decision of this project); until then they end at 1.
#[derive(Module, Debug)]
pub struct LqNetsActivations {
    /// The basis `v`, `[bits]`.
    pub level_basis: RunningState<Tensor<1>>,
    /// Whether the basis follows the batches of a training.
    pub training: Param<Flag>,
    recorded_bits: Param<Tensor<1, Int>>,
    #[module(skip)]
    bits: BitWidth,
    #[module(skip)]
    calibration: Calibration,
}

impl LqNetsActivations {
    /// Equal distances up to `end`, `[1]`.
    fn even(&self, end: Tensor<1>) -> Tensor<1> {
        let n = (self.bits.levels() - 1) as f32;
        Tensor::cat((0..self.bits.get()).map(|i| end.clone() * ((1 << i) as f32 / n)).collect(), 0)
    }

    /// The basis in force, `[bits]`: during a calibration, that of what is recorded so far.
    fn in_force(&self) -> Tensor<1> {
        let calibrated = self.calibration.half_normal_end(1.0).map(|end| self.even(end));
        calibrated.unwrap_or_else(|| self.level_basis.value_sync())
    }
}

impl Quantizer for LqNetsActivations {
    const STATE: &'static [&'static str] = &["level_basis"];
    const HAS_GRID: bool = false;
    const RESCALES: bool = false;

    fn bits(&self) -> BitWidth {
        self.bits
    }

    fn code_set(&self) -> CodeSet {
        self.bits.unsigned_range().into()
    }

    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        vec![("act_basis", self.in_force())]
    }
}

impl QuantizesActivations for LqNetsActivations {
    const BITS: RangeInclusive<u32> = 1..=4;
    /// The basis may move with any batch.
    const SEES_EVERY_BATCH: bool = true;

    fn new(bits: BitWidth, device: &Device) -> Self {
        assert!(Self::BITS.contains(&bits.get()), "lq-nets has activations of 1 to 4 bits, not {bits}");
        let n = (bits.levels() - 1) as f32;
        let even: Vec<f32> = (0..bits.get()).map(|i| (1 << i) as f32 / n).collect();
        Self {
            level_basis: RunningState::new(Tensor::from_floats(even.as_slice(), device)),
            training: Param::from_bool(true),
            recorded_bits: recorded_bits(bits, device),
            bits,
            calibration: Calibration::default(),
        }
    }

    fn scheme(&self, _: &[usize]) -> Scheme {
        let basis = constant(self.in_force());
        let basis = (0..self.bits.get() as usize).map(|i| basis.clone().narrow(0, i, 1)).collect();
        scheme(basis, false)
    }

    fn observe<const D: usize>(&self, x: &Tensor<D>) {
        self.calibration.record_half_normal(x);
        let follows =
            x.device().is_autodiff() && self.training.is_enabled() && !self.calibration.is_recording();
        if !follows || x.shape().num_elements() == 0 {
            return;
        }
        let x = constant(x.clone());
        let (old, fitted) =
            (self.in_force(), fitted(&x, &self.scheme(&x.dims()), Granularity::PerTensor, false));
        let new = old.clone() * (1.0 - MOMENTUM) + Tensor::cat(fitted, 0) * MOMENTUM;
        // Of a batch with values that are not finite there is none: the training ends by its loss, not by this.
        let is_lost = new.clone().is_finite().bool_not();
        self.level_basis.update(new.mask_where(is_lost, old));
    }

    fn start_calibration(&mut self) {
        self.calibration.start();
    }

    fn finish_calibration(&mut self) {
        let basis = self.calibration.half_normal_end(1.0).map(|end| self.even(end));
        self.calibration.finish_mean();
        if let Some(basis) = basis {
            let device = self.level_basis.value().device();
            self.level_basis = RunningState::new(Tensor::from_data(basis.into_data(), &device));
        }
    }

    fn grid(&self) -> Result<IntegerGrid, GridError> {
        Err(GridError::Uneven)
    }
}
