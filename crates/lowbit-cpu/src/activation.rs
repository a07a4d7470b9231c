//! Functions of one value that follow a normalization or stand alone: ReLU and the formulas of quantizers, with their gradients.

use crate::codes::{byte, is_integer};
use crate::formula::{Formula, Number};
use crate::output::Slot;

/// A function of one value and of `P` parameters.
pub(crate) trait Pointwise<const P: usize>: Copy + Send + Sync {
    /// The result.
    fn value<N: Number>(self, x: N, p: [N; P]) -> N;

    /// The gradients of `x` and of the parameters from that of the result.
    fn gradient<N: Number>(self, x: N, p: [N; P], g: N) -> (N, [N; P]);
}

/// `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Identity;

impl Pointwise<0> for Identity {
    #[inline(always)]
    fn value<N: Number>(self, x: N, []: [N; 0]) -> N {
        x
    }
    #[inline(always)]
    fn gradient<N: Number>(self, _: N, []: [N; 0], g: N) -> (N, [N; 0]) {
        (g, [])
    }
}

/// `max(x, 0)`; the gradient passes where `x > 0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Relu;

impl Pointwise<0> for Relu {
    #[inline(always)]
    fn value<N: Number>(self, x: N, []: [N; 0]) -> N {
        // A comparison, as `f32::max` would turn NaN into 0.
        x.if_lower(N::from(0.0), N::from(0.0), x)
    }
    #[inline(always)]
    fn gradient<N: Number>(self, x: N, []: [N; 0], g: N) -> (N, [N; 0]) {
        (N::from(0.0).if_lower(x, g, N::from(0.0)), [])
    }
}

/// The real values of the codes of a formula.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rounded<F>(pub(crate) F);

/// What yields codes, too.
pub(crate) trait Coding<const P: usize>: Pointwise<P> {
    /// The code of `x`.
    fn code(self, x: f32, p: [f32; P]) -> f32;

    /// The result for what has this code.
    fn value_of(self, code: f32, p: [f32; P]) -> f32;
}

impl<F: Formula<P>, const P: usize> Coding<P> for Rounded<F> {
    #[inline(always)]
    fn code(self, x: f32, p: [f32; P]) -> f32 {
        self.0.code(x, p)
    }
    #[inline(always)]
    fn value_of(self, code: f32, p: [f32; P]) -> f32 {
        self.0.value(code, p)
    }
}

/// Values that are coded together, as vectors: one by one they took about five times as long, by a profile.
const TOGETHER: usize = 32;

/// Writes the results for `before(x)` and their codes. Returns whether all are integers within the bounds.
#[inline(always)]
pub(crate) fn write_coded<A: Coding<P>, const P: usize>(
    activation: A,
    p: [f32; P],
    [least, largest]: [f32; 2],
    before: impl Fn(f32) -> f32,
    x: &[f32],
    y: &mut [Slot],
    codes: &mut [Slot<u8>],
) -> bool {
    // Also 0 for `NaN`.
    let is_code = |number: f32| {
        u32::from(number >= least) & u32::from(number <= largest) & u32::from(is_integer(number))
    };
    let ((blocks, x), (y_blocks, y), (code_blocks, codes)) =
        (x.as_chunks::<TOGETHER>(), y.as_chunks_mut::<TOGETHER>(), codes.as_chunks_mut::<TOGETHER>());
    let mut are_codes = [1; TOGETHER];
    for ((x, y), codes) in blocks.iter().zip(y_blocks).zip(code_blocks) {
        let mut numbers = [0.0; TOGETHER];
        for i in 0..TOGETHER {
            numbers[i] = activation.code(before(x[i]), p);
        }
        for i in 0..TOGETHER {
            are_codes[i] &= is_code(numbers[i]);
        }
        for i in 0..TOGETHER {
            y[i].write(activation.value_of(numbers[i], p));
        }
        for i in 0..TOGETHER {
            codes[i].write(byte(numbers[i]));
        }
    }
    for ((&x, y), code) in x.iter().zip(y).zip(codes) {
        let number = activation.code(before(x), p);
        are_codes[0] &= is_code(number);
        y.write(activation.value_of(number, p));
        code.write(byte(number));
    }
    are_codes == [1; TOGETHER]
}

impl<F: Formula<P>, const P: usize> Pointwise<P> for Rounded<F> {
    #[inline(always)]
    fn value<N: Number>(self, x: N, p: [N; P]) -> N {
        self.0.value(self.0.code(x, p), p)
    }
    #[inline(always)]
    fn gradient<N: Number>(self, x: N, p: [N; P], g: N) -> (N, [N; P]) {
        self.0.gradient(x, p, self.0.code(x, p), g)
    }
}

/// The same without rounding.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unrounded<F>(pub(crate) F);

impl<F: Formula<P>, const P: usize> Pointwise<P> for Unrounded<F> {
    #[inline(always)]
    fn value<N: Number>(self, x: N, p: [N; P]) -> N {
        self.0.unrounded(x, p)
    }
    #[inline(always)]
    fn gradient<N: Number>(self, x: N, p: [N; P], g: N) -> (N, [N; P]) {
        self.0.gradient(x, p, self.0.position(x, p), g)
    }
}

/// The codes of a formula, which have no gradient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<F>(pub(crate) F);

impl<F: Formula<P>, const P: usize> Pointwise<P> for Codes<F> {
    #[inline(always)]
    fn value<N: Number>(self, x: N, p: [N; P]) -> N {
        self.0.code(x, p)
    }
    #[inline(always)]
    fn gradient<N: Number>(self, _: N, _: [N; P], _: N) -> (N, [N; P]) {
        (N::from(0.0), [N::from(0.0); P])
    }
}
