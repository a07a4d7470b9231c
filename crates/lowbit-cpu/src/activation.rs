//! Functions of one value that follow a normalization or stand alone: ReLU and fake quantizers, with their gradients.
//!
//! Each computes what its formula says operation by operation in single precision, so its codes are those of any other
//! implementation of it. `NaN` stays `NaN`, with no gradient where the formula compares.

/// A function of one value with at most one learned parameter.
pub(crate) trait Pointwise: Copy + Send + Sync {
    /// The result.
    fn value(self, x: f32) -> f32;

    /// Whether the gradient passes to `x`.
    fn passes(self, x: f32) -> bool;

    /// The derivative by the parameter.
    fn slope(self, x: f32) -> f32;
}

/// `x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Identity;

/// `max(x, 0)`; the gradient passes where `x > 0`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Relu;

/// `round(clip(x, 0, 1) n) / n`: activations of DoReFa, Zhou16 Eq. 11. The gradient passes where `0 <= x <= 1`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitGrid {
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

/// `round(clip(x / s, q_min, q_max)) s`: LSQ, Esser20 Eq. 1 to 3; without gradient of `s` also min-max.
///
/// With `v = x / s`, the gradient passes where `q_min < v < q_max`. The derivative by `s` is `round(v) - v` there and
/// the bound `q_min` or `q_max` elsewhere; the factor `1 / sqrt(N q_max)` is the caller's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepGrid {
    /// The scale, positive.
    pub step_size: f32,
    /// Smallest code.
    pub q_min: f32,
    /// Largest code.
    pub q_max: f32,
}

/// `round(clip(x, 0, a) / a n) / n a`: PACT, Choi18 Eq. 1 to 3. The gradient passes where `0 <= x < a`; the derivative by
/// `a` is 1 where `x >= a`, else 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipGrid {
    /// `a`, positive.
    pub clip_value: f32,
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

/// `sign(x) s` with `sign(0) = 1`: weights of one bit. See [`Grid::Sign`](crate::fake_quantize::Grid::Sign).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignGrid {
    /// The scale; at zero all results are.
    pub scale: f32,
    /// Whether the gradient passes only where `|x / s| < 1`.
    pub is_bounded: bool,
}

/// `(clip(round(x / s) + z, 0, n) - z) s`: min-max activations. The gradient passes where the code was not clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AffineGrid {
    /// The scale, positive.
    pub scale: f32,
    /// The code of zero, an integer.
    pub zero_point: f32,
    /// Steps of the grid, `2^bits - 1`.
    pub n: f32,
}

impl Pointwise for Identity {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn passes(self, _: f32) -> bool {
        true
    }
    #[inline(always)]
    fn slope(self, _: f32) -> f32 {
        0.0
    }
}

impl Pointwise for Relu {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        // A comparison, as `f32::max` would turn NaN into 0.
        if x < 0.0 { 0.0 } else { x }
    }
    #[inline(always)]
    fn passes(self, x: f32) -> bool {
        x > 0.0
    }
    #[inline(always)]
    fn slope(self, _: f32) -> f32 {
        0.0
    }
}

impl UnitGrid {
    #[inline(always)]
    fn code(self, x: f32) -> f32 {
        (x.clamp(0.0, 1.0) * self.n).round_ties_even()
    }
}

impl Pointwise for UnitGrid {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        self.code(x) / self.n
    }
    #[inline(always)]
    fn passes(self, x: f32) -> bool {
        (0.0..=1.0).contains(&x)
    }
    #[inline(always)]
    fn slope(self, _: f32) -> f32 {
        0.0
    }
}

impl StepGrid {
    #[inline(always)]
    fn code(self, x: f32) -> f32 {
        clip(x / self.step_size, self.q_min, self.q_max).round_ties_even()
    }
}

impl Pointwise for StepGrid {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        self.code(x) * self.step_size
    }
    #[inline(always)]
    fn passes(self, x: f32) -> bool {
        let v = x / self.step_size;
        (v > self.q_min) & (v < self.q_max)
    }
    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        self.code(x) - if self.passes(x) { x / self.step_size } else { 0.0 }
    }
}

impl ClipGrid {
    #[inline(always)]
    fn code(self, x: f32) -> f32 {
        (clip(x, 0.0, self.clip_value) / self.clip_value * self.n).round_ties_even()
    }
}

impl Pointwise for ClipGrid {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        self.code(x) / self.n * self.clip_value
    }
    #[inline(always)]
    fn passes(self, x: f32) -> bool {
        (x >= 0.0) & (x < self.clip_value)
    }
    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        if x >= self.clip_value { 1.0 } else { 0.0 }
    }
}

impl SignGrid {
    #[inline(always)]
    fn is_inside(self, x: f32) -> bool {
        (x / self.scale).abs() < 1.0
    }
}

impl Pointwise for SignGrid {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        let value = if x < 0.0 { -self.scale } else { self.scale };
        if x.is_nan() { x } else { value }
    }
    #[inline(always)]
    fn passes(self, x: f32) -> bool {
        !self.is_bounded | self.is_inside(x)
    }
    #[inline(always)]
    fn slope(self, x: f32) -> f32 {
        let sign = if x < 0.0 { -1.0 } else { 1.0 };
        sign - if self.is_bounded & self.is_inside(x) { x / self.scale } else { 0.0 }
    }
}

impl AffineGrid {
    /// The code before it is clipped.
    #[inline(always)]
    fn free_code(self, x: f32) -> f32 {
        (x / self.scale).round_ties_even() + self.zero_point
    }
}

impl Pointwise for AffineGrid {
    #[inline(always)]
    fn value(self, x: f32) -> f32 {
        (clip(self.free_code(x), 0.0, self.n) - self.zero_point) * self.scale
    }
    #[inline(always)]
    fn passes(self, x: f32) -> bool {
        let code = self.free_code(x);
        (code >= 0.0) & (code <= self.n)
    }
    #[inline(always)]
    fn slope(self, _: f32) -> f32 {
        0.0
    }
}

/// `x.clamp(min, max)` without its check of the bounds, which would stand in the way of vector instructions.
#[inline(always)]
fn clip(x: f32, min: f32, max: f32) -> f32 {
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}

/// Any of the activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// `x`.
    Identity,
    /// `max(x, 0)`; the gradient passes where `x > 0`.
    Relu,
    /// See [`UnitGrid`].
    Unit(UnitGrid),
    /// See [`StepGrid`].
    Step(StepGrid),
    /// See [`ClipGrid`].
    Clip(ClipGrid),
    /// See [`SignGrid`].
    Sign(SignGrid),
}

/// Evaluates an expression with a variable of the activation's own type.
macro_rules! with_activation {
    ($any:expr, $name:ident => $body:expr) => {
        match $any {
            $crate::activation::Activation::Identity => {
                let $name = $crate::activation::Identity;
                $body
            }
            $crate::activation::Activation::Relu => {
                let $name = $crate::activation::Relu;
                $body
            }
            $crate::activation::Activation::Unit($name) => $body,
            $crate::activation::Activation::Step($name) => $body,
            $crate::activation::Activation::Clip($name) => $body,
            $crate::activation::Activation::Sign($name) => $body,
        }
    };
}
pub(crate) use with_activation;
