//! What a quantizer computes for one value, written once: for the kernels here, for a backend's own operations and for GPUs.
//!
//! A [`Formula`] is generic over the kind of [`Number`]. With `f32` the compiler makes a kernel of it, alone and fused to a
//! normalization; with [`Symbol`](crate::program::Symbol) it writes itself down as a [`Program`], which other devices run. An
//! [`AnyFormula`] hides which formula it is.

use std::fmt::{self, Debug};
use std::ops::{Add, Div, Mul, Neg, RangeInclusive, Sub};
use std::sync::Arc;

use crate::activation::{Codes, Pointwise, Rounded, Unrounded};
use crate::codes::{Coded, byte_bounds};
use crate::norm::{Incoming, NormGradients, NormParameters, NormShape};
use crate::program::Program;
use crate::{fake_quantize, norm};

/// A number in single precision, or what stands for one.
pub trait Number:
    Copy
    + From<f32>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// The nearest integer, ties to even.
    fn round(self) -> Self;

    /// `then` if `self < other`, else `otherwise`: also if one of them is `NaN`.
    fn if_lower(self, other: Self, then: Self, otherwise: Self) -> Self;

    /// `then` if `self <= other`, else `otherwise`: also if one of them is `NaN`.
    fn if_at_most(self, other: Self, then: Self, otherwise: Self) -> Self;

    /// The number, or the bound that it lies beyond; `NaN` stays.
    #[inline(always)]
    fn clip(self, low: Self, high: Self) -> Self {
        let x = self.if_lower(low, low, self);
        high.if_lower(x, high, x)
    }

    /// `then` if `low < self < high`, else zero.
    #[inline(always)]
    fn if_between(self, low: Self, high: Self, then: Self) -> Self {
        let zero = Self::from(0.0);
        low.if_lower(self, self.if_lower(high, then, zero), zero)
    }

    /// `then` if `low <= self <= high`, else zero.
    #[inline(always)]
    fn if_within(self, low: Self, high: Self, then: Self) -> Self {
        let zero = Self::from(0.0);
        low.if_at_most(self, self.if_at_most(high, then, zero), zero)
    }

    /// -1 or 1; 1 at zero. `NaN` stays.
    #[inline(always)]
    fn sign_or_one(self) -> Self {
        let sign = self.if_lower(Self::from(0.0), Self::from(-1.0), Self::from(1.0));
        self.if_at_most(self, sign, self)
    }
}

impl Number for f32 {
    #[inline(always)]
    fn round(self) -> Self {
        self.round_ties_even()
    }
    #[inline(always)]
    fn if_lower(self, other: Self, then: Self, otherwise: Self) -> Self {
        if self < other { then } else { otherwise }
    }
    #[inline(always)]
    fn if_at_most(self, other: Self, then: Self, otherwise: Self) -> Self {
        if self <= other { then } else { otherwise }
    }
}

/// The formula of a quantizer with `P` parameters, each one number for a tensor or one for each slice along its first axis.
///
/// # Equation
/// ```text
/// y = (code - zero) / parts * unit         in single precision, in this order
/// ```
/// which is how an integer grid says what its codes are worth. Whatever the code, the operations are done one by one as they
/// are written, so that all devices agree on it. `NaN` is to stay `NaN`, with no gradient where the formula compares.
///
/// Its functions are the innermost loops of the kernels: mark them `#[inline(always)]`, or they are called for each value, without vector
/// instructions.
pub trait Formula<const P: usize>: Copy + Debug + PartialEq + Send + Sync + 'static {
    /// Where `x` lies among the codes if nothing is rounded: clipped to their range.
    fn position<N: Number>(self, x: N, p: [N; P]) -> N;

    /// The code of `x`, an integer.
    #[inline(always)]
    fn code<N: Number>(self, x: N, p: [N; P]) -> N {
        self.position(x, p).round()
    }

    /// Which parameter says what `parts` codes are worth; without one they are worth 1.
    fn unit(self) -> Option<usize>;

    /// Which parameter is the code that is worth zero; without one it is code 0.
    #[inline(always)]
    fn zero(self) -> Option<usize> {
        None
    }

    /// What the unit is divided into.
    #[inline(always)]
    fn parts(self) -> f32 {
        1.0
    }

    /// Whether codes are worth what the equation above says. If not, they are names of levels, which no integer grid holds and no
    /// kernel of integers multiplies.
    fn is_grid(self) -> bool {
        true
    }

    /// What a code is worth, or a position.
    #[inline(always)]
    fn value<N: Number>(self, code: N, p: [N; P]) -> N {
        let distance = match self.zero() {
            Some(zero) => code - p[zero],
            None => code,
        };
        let parts = distance / N::from(self.parts());
        match self.unit() {
            Some(unit) => parts * p[unit],
            None => parts,
        }
    }

    /// The value if nothing is rounded.
    #[inline(always)]
    fn unrounded<N: Number>(self, x: N, p: [N; P]) -> N {
        self.value(self.position(x, p), p)
    }

    /// The gradients of `x` and of the parameters from the gradient `g` of `y`. `code` is the code of `x`, or its position in a
    /// forward pass that rounds nothing: where the gradient passes may be the same in both.
    fn gradient<N: Number>(self, x: N, p: [N; P], code: N, g: N) -> (N, [N; P]);
}

/// A formula, of the values themselves or of what a ReLU leaves of them: one kernel is both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rectified<F> {
    formula: F,
    /// Lower values become this one, and their gradient does not pass: 0 of a ReLU, else the lowest number, below which there are none.
    low: f32,
}

impl<F> Rectified<F> {
    /// `formula` of `max(x, 0)`, where the gradient of `x` passes if `x > 0`.
    pub fn of_relu(formula: F) -> Self {
        Self { formula, low: 0.0 }
    }

    /// `formula` of `x`.
    pub fn of_value(formula: F) -> Self {
        Self { formula, low: f32::MIN }
    }

    /// `NaN` stays.
    #[inline(always)]
    fn rectified<N: Number>(&self, x: N) -> N {
        let low = N::from(self.low);
        x.if_lower(low, low, x)
    }
}

impl<F: Formula<P>, const P: usize> Formula<P> for Rectified<F> {
    #[inline(always)]
    fn position<N: Number>(self, x: N, p: [N; P]) -> N {
        self.formula.position(self.rectified(x), p)
    }

    #[inline(always)]
    fn code<N: Number>(self, x: N, p: [N; P]) -> N {
        self.formula.code(self.rectified(x), p)
    }

    #[inline(always)]
    fn unit(self) -> Option<usize> {
        self.formula.unit()
    }

    #[inline(always)]
    fn zero(self) -> Option<usize> {
        self.formula.zero()
    }

    #[inline(always)]
    fn parts(self) -> f32 {
        self.formula.parts()
    }

    fn is_grid(self) -> bool {
        self.formula.is_grid()
    }

    #[inline(always)]
    fn value<N: Number>(self, code: N, p: [N; P]) -> N {
        self.formula.value(code, p)
    }

    #[inline(always)]
    fn unrounded<N: Number>(self, x: N, p: [N; P]) -> N {
        self.formula.unrounded(self.rectified(x), p)
    }

    #[inline(always)]
    fn gradient<N: Number>(self, x: N, p: [N; P], code: N, g: N) -> (N, [N; P]) {
        let (of_x, of_parameters) = self.formula.gradient(self.rectified(x), p, code, g);
        (N::from(self.low).if_lower(x, of_x, N::from(0.0)), of_parameters)
    }
}

/// What a [`Formula`] yields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The real values of the codes.
    #[default]
    Values,
    /// The real values of the positions: nothing is rounded.
    Unrounded,
    /// The codes themselves, as numbers. They have no gradient.
    Codes,
}

/// Any formula. Copies share it.
#[derive(Clone)]
pub struct AnyFormula {
    formula: Arc<dyn Kernels>,
    mode: Mode,
}

impl Debug for AnyFormula {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {:?}", self.mode, self.formula)
    }
}

impl PartialEq for AnyFormula {
    fn eq(&self, other: &Self) -> bool {
        let of = |any: &Self| (any.n_parameters(), any.unit(), any.zero(), any.parts().to_bits(), any.mode);
        of(self) == of(other)
            && self.forward_program() == other.forward_program()
            && (self.mode == Mode::Codes || self.gradient_program() == other.gradient_program())
    }
}

impl AnyFormula {
    /// This formula, yielding values.
    pub fn new<const P: usize>(formula: impl Formula<P>) -> Self {
        Self { formula: Arc::new(Of::<_, P>(formula)), mode: Mode::Values }
    }

    /// The same formula, yielding something else.
    pub fn with_mode(&self, mode: Mode) -> Self {
        Self { formula: self.formula.clone(), mode }
    }

    /// How many parameters it has.
    pub fn n_parameters(&self) -> usize {
        self.formula.n_parameters()
    }

    /// Which parameter says what [`parts`](Self::parts) codes are worth; without one they are worth 1.
    pub fn unit(&self) -> Option<usize> {
        self.formula.unit()
    }

    /// Which parameter is the code that is worth zero; without one it is code 0.
    pub fn zero(&self) -> Option<usize> {
        self.formula.zero()
    }

    /// What the unit is divided into.
    pub fn parts(&self) -> f32 {
        self.formula.parts()
    }

    /// Whether codes are worth multiples of a unit: see [`Formula::is_grid`].
    pub fn is_grid(&self) -> bool {
        self.formula.is_grid()
    }

    /// In how many rows of equal length a tensor lies that has `n_parameters` numbers as parameters.
    ///
    /// # Panics
    /// If they are not a whole number of parameters, at least one of each.
    pub fn rows(&self, n_parameters: usize) -> usize {
        match self.n_parameters() {
            0 => 1,
            n if n_parameters > 0 && n_parameters.is_multiple_of(n) => n_parameters / n,
            n => panic!("{n_parameters} numbers for {n} parameters"),
        }
    }

    /// The result for each of `x`, whose rows of equal length have parameters each: the first parameter of every row, then the second
    /// of every row, and so on.
    ///
    /// # Panics
    /// If the lengths do not fit each other.
    pub fn forward(&self, x: &[f32], parameters: &[f32]) -> Vec<f32> {
        self.formula.forward(self.mode, x, parameters)
    }

    /// The gradients of `x` and of the parameters from the gradient `g` of [`forward`](Self::forward)'s result.
    ///
    /// # Panics
    /// If the lengths do not fit each other, or for codes.
    pub fn gradients(&self, x: &[f32], parameters: &[f32], g: &[f32]) -> fake_quantize::Gradients {
        self.formula.gradients(self.mode, x, parameters, g)
    }

    /// The values of `x`, as [`forward`](Self::forward) has them, and their codes if these are to lie in a range.
    ///
    /// # Panics
    /// If the lengths do not fit each other, or unless the formula yields values.
    pub fn coded(&self, x: &[f32], parameters: &[f32], codes: Option<&RangeInclusive<i32>>) -> Coded {
        assert_eq!(self.mode, Mode::Values, "codes are those of values");
        self.formula.coded(x, parameters, codes.and_then(byte_bounds))
    }

    pub(crate) fn normalized(
        &self,
        shape: NormShape,
        x: &[f32],
        norm: NormParameters<'_>,
        p: &[f32],
        codes: Option<&RangeInclusive<i32>>,
    ) -> Coded {
        assert_eq!(self.mode, Mode::Values, "a normalization is followed by values");
        self.formula.normalized(shape, x, norm, p, codes.and_then(byte_bounds))
    }

    pub(crate) fn normalized_gradients(
        &self,
        shape: NormShape,
        x: &[f32],
        g: Incoming<'_>,
        norm: NormParameters<'_>,
        p: &[f32],
    ) -> NormGradients {
        self.formula.normalized_gradients(shape, x, g, norm, p)
    }

    /// The operations from a value and its parameters to the result.
    pub fn forward_program(&self) -> Program {
        self.formula.forward_program(self.mode)
    }

    /// The operations from a value, its parameters and the gradient of the result to their gradients: of the value first.
    ///
    /// # Panics
    /// For codes.
    pub fn gradient_program(&self) -> Program {
        self.formula.gradient_program(self.mode)
    }
}

/// A formula compiled into kernels.
trait Kernels: Debug + Send + Sync {
    fn n_parameters(&self) -> usize;
    fn unit(&self) -> Option<usize>;
    fn zero(&self) -> Option<usize>;
    fn parts(&self) -> f32;
    fn is_grid(&self) -> bool;
    fn forward(&self, mode: Mode, x: &[f32], parameters: &[f32]) -> Vec<f32>;
    fn gradients(&self, mode: Mode, x: &[f32], parameters: &[f32], g: &[f32]) -> fake_quantize::Gradients;
    fn coded(&self, x: &[f32], parameters: &[f32], bounds: Option<[f32; 2]>) -> Coded;
    fn normalized(
        &self,
        shape: NormShape,
        x: &[f32],
        norm: NormParameters<'_>,
        p: &[f32],
        bounds: Option<[f32; 2]>,
    ) -> Coded;
    fn normalized_gradients(
        &self,
        shape: NormShape,
        x: &[f32],
        g: Incoming<'_>,
        norm: NormParameters<'_>,
        p: &[f32],
    ) -> NormGradients;
    fn forward_program(&self, mode: Mode) -> Program;
    fn gradient_program(&self, mode: Mode) -> Program;
}

/// A formula that knows how many parameters it has.
struct Of<F, const P: usize>(F);

impl<F: Debug, const P: usize> Debug for Of<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<F: Formula<P>, const P: usize> Kernels for Of<F, P> {
    fn n_parameters(&self) -> usize {
        P
    }

    fn unit(&self) -> Option<usize> {
        self.0.unit()
    }

    fn zero(&self) -> Option<usize> {
        self.0.zero()
    }

    fn parts(&self) -> f32 {
        self.0.parts()
    }

    fn is_grid(&self) -> bool {
        self.0.is_grid()
    }

    fn forward(&self, mode: Mode, x: &[f32], parameters: &[f32]) -> Vec<f32> {
        match mode {
            Mode::Values => fake_quantize::forward(Rounded(self.0), x, parameters),
            Mode::Unrounded => fake_quantize::forward(Unrounded(self.0), x, parameters),
            Mode::Codes => fake_quantize::forward(Codes(self.0), x, parameters),
        }
    }

    fn gradients(&self, mode: Mode, x: &[f32], parameters: &[f32], g: &[f32]) -> fake_quantize::Gradients {
        match mode {
            Mode::Values => fake_quantize::gradients(Rounded(self.0), x, parameters, g),
            Mode::Unrounded => fake_quantize::gradients(Unrounded(self.0), x, parameters, g),
            Mode::Codes => panic!("codes have no gradient"),
        }
    }

    fn coded(&self, x: &[f32], parameters: &[f32], bounds: Option<[f32; 2]>) -> Coded {
        fake_quantize::coded(Rounded(self.0), x, parameters, bounds)
    }

    fn normalized(
        &self,
        shape: NormShape,
        x: &[f32],
        norm: NormParameters<'_>,
        p: &[f32],
        bounds: Option<[f32; 2]>,
    ) -> Coded {
        norm::coded_with(Rounded(self.0), parameters(p), shape, x, norm, bounds)
    }

    fn normalized_gradients(
        &self,
        shape: NormShape,
        x: &[f32],
        g: Incoming<'_>,
        norm: NormParameters<'_>,
        p: &[f32],
    ) -> NormGradients {
        norm::gradients_with(Rounded(self.0), parameters(p), shape, x, g, norm)
    }

    fn forward_program(&self, mode: Mode) -> Program {
        match mode {
            Mode::Values => Program::trace::<P, 1>(|x, p, _| [Rounded(self.0).value(x, p)]),
            Mode::Unrounded => Program::trace::<P, 1>(|x, p, _| [Unrounded(self.0).value(x, p)]),
            Mode::Codes => Program::trace::<P, 1>(|x, p, _| [Codes(self.0).value(x, p)]),
        }
    }

    fn gradient_program(&self, mode: Mode) -> Program {
        match mode {
            Mode::Values => Program::trace_gradient::<P>(|x, p, g| Rounded(self.0).gradient(x, p, g)),
            Mode::Unrounded => Program::trace_gradient::<P>(|x, p, g| Unrounded(self.0).gradient(x, p, g)),
            Mode::Codes => panic!("codes have no gradient"),
        }
    }
}

/// The parameters of one row.
fn parameters<const P: usize>(p: &[f32]) -> [f32; P] {
    <[f32; P]>::try_from(&p[..P.min(p.len())])
        .unwrap_or_else(|_| panic!("{} numbers for {P} parameters", p.len()))
}

/// Formulas for this crate's tests; those of quantizers belong to their methods.
#[cfg(test)]
pub(crate) mod samples {
    use super::*;

    /// `round(clip(x / s, q_min, q_max)) s` with the gradients of LSQ.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) struct Step {
        pub(crate) q_min: f32,
        pub(crate) q_max: f32,
    }

    impl Formula<1> for Step {
        fn position<N: Number>(self, x: N, [s]: [N; 1]) -> N {
            (x / s).clip(N::from(self.q_min), N::from(self.q_max))
        }

        fn unit(self) -> Option<usize> {
            Some(0)
        }

        fn gradient<N: Number>(self, x: N, [s]: [N; 1], code: N, g: N) -> (N, [N; 1]) {
            let (low, high) = (N::from(self.q_min), N::from(self.q_max));
            let v = x / s;
            (v.if_between(low, high, g), [g * (code - v.if_between(low, high, v))])
        }
    }

    /// `round(clip((x - b) / a, 0, 1) n) / n`: two parameters, parts, and gradients that do not pass as they are.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) struct Interval {
        pub(crate) n: f32,
    }

    impl Formula<2> for Interval {
        fn position<N: Number>(self, x: N, [a, b]: [N; 2]) -> N {
            ((x - b) / a).clip(N::from(0.0), N::from(1.0)) * N::from(self.n)
        }

        fn unit(self) -> Option<usize> {
            None
        }

        fn parts(self) -> f32 {
            self.n
        }

        fn gradient<N: Number>(self, x: N, [a, b]: [N; 2], _: N, g: N) -> (N, [N; 2]) {
            let v = (x - b) / a;
            let passed = v.if_within(N::from(0.0), N::from(1.0), g / a);
            (passed, [-(passed * v.if_within(N::from(0.0), N::from(1.0), v)), -passed])
        }
    }
}
