//! A formula written down as a list of operations, for devices that these kernels are not compiled for.

use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

use crate::formula::Number;

/// One operation. Numbers are places of earlier operations in the [`Program`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The value.
    Input,
    /// The gradient of the result.
    Gradient,
    /// The parameter of this number.
    Parameter(usize),
    /// The constant of these bits.
    Constant(u32),
    /// Sum.
    Add([usize; 2]),
    /// Difference.
    Subtract([usize; 2]),
    /// Product.
    Multiply([usize; 2]),
    /// Quotient: the float nearest to the exact one.
    Divide([usize; 2]),
    /// The nearest integer, ties to even.
    Round(usize),
    /// The third if the first is lower than the second, else the fourth.
    IfLower([usize; 4]),
    /// The third if the first is at most the second, else the fourth.
    IfAtMost([usize; 4]),
}

impl Op {
    /// The places that the operation reads.
    fn reads(&mut self) -> &mut [usize] {
        match self {
            Self::Input | Self::Gradient | Self::Parameter(_) | Self::Constant(_) => &mut [],
            Self::Round(place) => std::slice::from_mut(place),
            Self::Add(places) | Self::Subtract(places) | Self::Multiply(places) | Self::Divide(places) => {
                places
            }
            Self::IfLower(places) | Self::IfAtMost(places) => places,
        }
    }
}

/// A list of operations for one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Program {
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// The places of the results.
    pub outputs: Vec<usize>,
}

thread_local! {
    /// What is being written down.
    static OPS: RefCell<Vec<Op>> = const { RefCell::new(Vec::new()) };
}

impl Program {
    /// What `f` does with a value, parameters and a gradient.
    pub(crate) fn trace<const P: usize, const R: usize>(
        f: impl FnOnce(Symbol, [Symbol; P], Symbol) -> [Symbol; R],
    ) -> Self {
        Self::trace_all(|x, p, g| f(x, p, g).to_vec())
    }

    /// What `f` does with them to the gradients of the value and of the parameters.
    pub(crate) fn trace_gradient<const P: usize>(
        f: impl FnOnce(Symbol, [Symbol; P], Symbol) -> (Symbol, [Symbol; P]),
    ) -> Self {
        Self::trace_all(|x, p, g| {
            let (x, p) = f(x, p, g);
            [&[x][..], &p].concat()
        })
    }

    fn trace_all<const P: usize>(f: impl FnOnce(Symbol, [Symbol; P], Symbol) -> Vec<Symbol>) -> Self {
        // A formula may use another one.
        let outer = OPS.take();
        let (x, g) = (Symbol::of(Op::Input), Symbol::of(Op::Gradient));
        let p = std::array::from_fn(|i| Symbol::of(Op::Parameter(i)));
        let outputs = f(x, p, g).into_iter().map(|Symbol(place)| place).collect();
        Self { ops: OPS.replace(outer), outputs }.without_dead()
    }

    /// The same with the first result alone.
    pub fn only_first(mut self) -> Self {
        self.outputs.truncate(1);
        self.without_dead()
    }

    /// The same without operations that no result needs.
    fn without_dead(mut self) -> Self {
        let mut is_read = vec![false; self.ops.len()];
        self.outputs.iter().for_each(|&place| is_read[place] = true);
        for place in (0..self.ops.len()).rev() {
            if is_read[place] {
                self.ops[place].reads().iter().for_each(|&read| is_read[read] = true);
            }
        }
        let mut new_place = 0;
        let new_places: Vec<usize> = is_read
            .iter()
            .map(|&is_read| {
                let place = new_place;
                new_place += usize::from(is_read);
                place
            })
            .collect();
        let mut kept = is_read.iter();
        self.ops.retain(|_| *kept.next().expect("invariant: one flag for each operation"));
        let places = self.ops.iter_mut().flat_map(Op::reads).chain(&mut self.outputs);
        places.for_each(|place| *place = new_places[*place]);
        self
    }
}

/// A number that is written down instead of computed. It belongs to the formula that the thread is writing down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol(usize);

impl Symbol {
    /// The result of an operation; of an equal one, if there was one.
    fn of(op: Op) -> Self {
        OPS.with_borrow_mut(|ops| match ops.iter().position(|other| *other == op) {
            Some(place) => Self(place),
            None => {
                ops.push(op);
                Self(ops.len() - 1)
            }
        })
    }

    fn is(self, constant: f32) -> bool {
        OPS.with_borrow(|ops| ops[self.0] == Op::Constant(constant.to_bits()))
    }
}

impl From<f32> for Symbol {
    fn from(constant: f32) -> Self {
        Self::of(Op::Constant(constant.to_bits()))
    }
}

impl Add for Symbol {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self::of(Op::Add([self.0, other.0]))
    }
}

impl Sub for Symbol {
    type Output = Self;

    /// Without what changes nothing, not even a sign.
    fn sub(self, other: Self) -> Self {
        if other.is(0.0) { self } else { Self::of(Op::Subtract([self.0, other.0])) }
    }
}

impl Mul for Symbol {
    type Output = Self;

    fn mul(self, other: Self) -> Self {
        if other.is(1.0) { self } else { Self::of(Op::Multiply([self.0, other.0])) }
    }
}

impl Div for Symbol {
    type Output = Self;

    fn div(self, other: Self) -> Self {
        if other.is(1.0) { self } else { Self::of(Op::Divide([self.0, other.0])) }
    }
}

impl Neg for Symbol {
    type Output = Self;

    fn neg(self) -> Self {
        Self::from(-0.0) - self
    }
}

impl Number for Symbol {
    fn round(self) -> Self {
        Self::of(Op::Round(self.0))
    }

    fn if_lower(self, other: Self, then: Self, otherwise: Self) -> Self {
        Self::of(Op::IfLower([self, other, then, otherwise].map(|symbol| symbol.0)))
    }

    fn if_at_most(self, other: Self, then: Self, otherwise: Self) -> Self {
        Self::of(Op::IfAtMost([self, other, then, otherwise].map(|symbol| symbol.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formula::samples::{Interval, Step};
    use crate::formula::{AnyFormula, Mode};

    const STEP: Step = Step { q_min: -1.0, q_max: 3.0 };

    /// The results of a program.
    fn run(program: &Program, x: f32, p: &[f32], g: f32) -> Vec<f32> {
        let mut values: Vec<f32> = Vec::new();
        for op in &program.ops {
            let at = |place: usize| values[place];
            values.push(match *op {
                Op::Input => x,
                Op::Gradient => g,
                Op::Parameter(i) => p[i],
                Op::Constant(bits) => f32::from_bits(bits),
                Op::Add([a, b]) => at(a) + at(b),
                Op::Subtract([a, b]) => at(a) - at(b),
                Op::Multiply([a, b]) => at(a) * at(b),
                Op::Divide([a, b]) => at(a) / at(b),
                Op::Round(a) => at(a).round_ties_even(),
                Op::IfLower([a, b, then, otherwise]) => at(if at(a) < at(b) { then } else { otherwise }),
                Op::IfAtMost([a, b, then, otherwise]) => at(if at(a) <= at(b) { then } else { otherwise }),
            });
        }
        program.outputs.iter().map(|&place| values[place]).collect()
    }

    #[test]
    fn programs_compute_what_the_kernels_do() {
        let x: Vec<f32> =
            (-40..80).map(|i| i as f32 * 0.05).chain([f32::INFINITY, f32::NEG_INFINITY, -0.0]).collect();
        let g: Vec<f32> = x.iter().map(|x| x.clamp(-1.0, 1.0) + 0.25).collect();
        let formulas =
            [(AnyFormula::new(STEP), &[0.7][..]), (AnyFormula::new(Interval { n: 7.0 }), &[1.3, 0.4])];
        for (formula, p) in formulas {
            for mode in [Mode::Values, Mode::Unrounded, Mode::Codes] {
                let formula = formula.with_mode(mode);
                let program = formula.forward_program();
                let expected: Vec<f32> = x.iter().map(|&x| run(&program, x, p, 0.0)[0]).collect();
                assert_eq!(formula.forward(&x, p), expected, "{formula:?}");
                if mode == Mode::Codes {
                    continue;
                }
                let program = formula.gradient_program();
                for (&x, &g) in x.iter().zip(&g) {
                    let got = formula.gradients(&[x], p, &[g]);
                    let got = [got.input, got.parameters].concat();
                    let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
                    let expected = run(&program, x, p, g);
                    assert!(got.iter().zip(&expected).all(same), "{formula:?} at {x}: {got:?} {expected:?}");
                }
            }
        }
    }

    #[test]
    fn what_no_result_needs_is_not_in_a_program() {
        let program = AnyFormula::new(STEP).forward_program();
        assert!(!program.ops.contains(&Op::Gradient), "{program:?}");
        assert_eq!(program.ops.iter().filter(|op| matches!(op, Op::Divide(_))).count(), 1, "{program:?}");
        assert_eq!(program, AnyFormula::new(STEP).forward_program());
    }
}
