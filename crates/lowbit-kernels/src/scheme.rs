//! What is quantized, together with how.

use std::ops::RangeInclusive;

use burn::backend::Dispatch;
use burn::tensor::{Int, Tensor};
use lowbit_cpu::formula::{AnyFormula, Mode};

use crate::backend::KernelBackend;
use crate::choice::demand_extension;

/// A quantizer as it is for one tensor: its formula, and the numbers that its parameters have.
#[derive(Clone, Debug)]
pub struct Scheme {
    formula: AnyFormula,
    parameters: Vec<Tensor<1>>,
    codes: RangeInclusive<i32>,
}

impl Scheme {
    /// `formula` with one tensor for each of its parameters, `[1]`, or `[n]` for `n` slices along the first axis. Its codes lie in
    /// the range `codes`.
    ///
    /// # Panics
    /// If there are more or fewer tensors than parameters.
    pub fn new(formula: AnyFormula, parameters: Vec<Tensor<1>>, codes: RangeInclusive<i32>) -> Self {
        assert_eq!(parameters.len(), formula.n_parameters(), "one tensor for each parameter of {formula:?}");
        Self { formula, parameters, codes }
    }

    /// The formula.
    pub fn formula(&self) -> &AnyFormula {
        &self.formula
    }

    /// The numbers of the parameters.
    pub fn parameters(&self) -> &[Tensor<1>] {
        &self.parameters
    }

    /// All parameters in one tensor, each as long as the longest; `None` if there are none.
    pub(crate) fn stacked(&self) -> Option<Tensor<1>> {
        let n = self.parameters.iter().map(|parameter| parameter.dims()[0]).max()?;
        match self.parameters.as_slice() {
            [parameter] => Some(parameter.clone()),
            parameters => Some(Tensor::cat(
                parameters.iter().map(|parameter| parameter.clone().expand([n])).collect(),
                0,
            )),
        }
    }

    /// What the values are multiples of; `None` if code zero is not worth zero.
    pub fn code_scale(&self) -> Option<CodeScale> {
        self.formula.zero().is_none().then(|| CodeScale {
            unit: self.formula.unit().map(|unit| constant(self.parameters[unit].clone())),
            parts: self.formula.parts(),
            range: self.codes.clone(),
        })
    }

    /// The real values of the codes of `x`, of its shape, with the gradients of the formula.
    ///
    /// # Panics
    /// If the first axis of `x` is not as long as a parameter that is not one number.
    pub fn quantize<const D: usize>(&self, x: Tensor<D>) -> Quantized<D> {
        Quantized { values: self.run(x, Mode::Values), codes: self.code_scale() }
    }

    /// Values that were made of these codes in another way, as [`dorefa_weights`](crate::dorefa_weights) does it.
    pub fn made<const D: usize>(&self, values: Tensor<D>) -> Quantized<D> {
        Quantized { values, codes: self.code_scale() }
    }

    /// [`quantize`](Self::quantize) without rounding: `x` clipped to the range of the codes, as the formula does it.
    ///
    /// # Panics
    /// As [`quantize`](Self::quantize).
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.run(x, Mode::Unrounded)
    }

    /// The codes of `x`, of its shape. `NaN` has the code of 0.
    ///
    /// # Panics
    /// As [`quantize`](Self::quantize).
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        let parameters = self.parameters.iter().cloned().map(constant).collect();
        let x = zero_if_nan(constant(x));
        // Also if a parameter is `NaN`, of which backends make different integers, or none.
        zero_if_nan(Self { parameters, ..self.clone() }.run(x, Mode::Codes)).int()
    }

    fn run<const D: usize>(&self, x: Tensor<D>, mode: Mode) -> Tensor<D> {
        demand_extension(&x);
        let formula = self.formula.with_mode(mode);
        let parameters = match self.stacked() {
            Some(parameters) => {
                let (rows, slices) = (formula.rows(parameters.dims()[0]), x.dims()[0]);
                assert!(rows == 1 || rows == slices, "parameters for {rows} slices of a tensor of {slices}");
                parameters.into_dispatch()
            }
            // An operation has a fixed number of tensors; any does where there are no parameters.
            None => constant(x.clone()).into_dispatch(),
        };
        Tensor::from_dispatch(Dispatch::lowbit_fake_quantize(x.into_dispatch(), parameters, formula))
    }
}

/// The value of `tensor`, without gradient and without asking for one.
pub(crate) fn constant<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    tensor.detach().set_require_grad(false)
}

fn zero_if_nan<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let is_nan = x.clone().is_nan();
    x.mask_fill(is_nan, 0.0)
}

/// What codes are worth: `code / parts * unit`.
#[derive(Clone, Debug)]
pub struct CodeScale {
    /// The unit, `[1]` or one for each slice along the first axis; 1 without one.
    pub(crate) unit: Option<Tensor<1>>,
    pub(crate) parts: f32,
    /// Smallest and largest code.
    pub(crate) range: RangeInclusive<i32>,
}

/// Values with what they are integer multiples of, if they are known to be.
#[derive(Clone, Debug)]
pub struct Quantized<const D: usize> {
    /// The real values.
    pub values: Tensor<D>,
    /// What they are made of. It is not checked against the values.
    pub(crate) codes: Option<CodeScale>,
}

impl<const D: usize> From<Tensor<D>> for Quantized<D> {
    /// Any values.
    fn from(values: Tensor<D>) -> Self {
        Self { values, codes: None }
    }
}
