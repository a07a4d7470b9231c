//! What is quantized, together with how.

use std::ops::RangeInclusive;

use burn::backend::Dispatch;
use burn::tensor::{Int, IntDType, Tensor};
use lowbit_cpu::formula::{AnyFormula, Mode};

use crate::backend::{CodedTensor, KernelBackend};
use crate::choice::{demand_extension, evaluates_exactly};

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

    /// The codes that are asked for beside the values of `x`; `None` if nothing would multiply them. That is so where no integers stand for
    /// the levels, and in training where code zero is not worth zero.
    pub(crate) fn wanted_codes<const D: usize>(&self, x: &Tensor<D>) -> Option<RangeInclusive<i32>> {
        let is_multiplied = self.formula.zero().is_none() || evaluates_exactly(&x.device());
        (self.formula.is_grid() && is_multiplied).then(|| self.codes.clone())
    }

    /// What an operation has made by this scheme.
    pub(crate) fn made<const D: usize>(&self, output: CodedTensor<Dispatch>) -> Quantized<D> {
        let [unit, zero] = [self.formula.unit(), self.formula.zero()];
        let of = |place: Option<usize>| place.map(|place| &self.parameters[place]);
        quantized(output, [of(unit), of(zero)], self.formula.parts(), self.codes.clone())
    }

    /// The real values of the codes of `x`, of its shape, with the gradients of the formula.
    ///
    /// # Panics
    /// If the first axis of `x` is not as long as a parameter that is not one number.
    pub fn quantize<const D: usize>(&self, x: Tensor<D>) -> Quantized<D> {
        self.made(self.run(x, Mode::Values))
    }

    /// [`quantize`](Self::quantize) without rounding: `x` clipped to the range of the codes, as the formula does it.
    ///
    /// # Panics
    /// As [`quantize`](Self::quantize).
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        Tensor::from_dispatch(self.run(x, Mode::Unrounded).values())
    }

    /// The codes of `x`, of its shape. `NaN` has the code of 0.
    ///
    /// # Panics
    /// As [`quantize`](Self::quantize).
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        let parameters = self.parameters.iter().cloned().map(constant).collect();
        let x = zero_if_nan(constant(x));
        // Also if a parameter is `NaN`, of which backends make different integers, or none.
        let codes = Self { parameters, ..self.clone() }.run(x, Mode::Codes).values();
        zero_if_nan(Tensor::<D>::from_dispatch(codes)).int()
    }

    fn run<const D: usize>(&self, x: Tensor<D>, mode: Mode) -> CodedTensor<Dispatch> {
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
        let codes = self.wanted_codes(&x).filter(|_| mode == Mode::Values);
        Dispatch::lowbit_fake_quantize(x.into_dispatch(), parameters, formula, codes)
    }
}

/// What an operation has made: codes in a range, each worth `unit / parts`, but for the zero point.
pub(crate) fn quantized<const D: usize>(
    output: CodedTensor<Dispatch>,
    [unit, zero]: [Option<&Tensor<1>>; 2],
    parts: f32,
    range: RangeInclusive<i32>,
) -> Quantized<D> {
    match output {
        CodedTensor::Values(values) => Tensor::from_dispatch(values).into(),
        CodedTensor::Codes(values, codes) => Quantized {
            values: Tensor::from_dispatch(values),
            codes: Some(Codes {
                bytes: Tensor::from_dispatch(codes),
                unit: unit.cloned().map(constant),
                zero: zero.cloned().map(constant),
                parts,
                range,
            }),
        },
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

/// Values, and the codes that they are made of where an operation has made codes, too.
#[derive(Clone, Debug)]
pub struct Quantized<const D: usize> {
    values: Tensor<D>,
    pub(crate) codes: Option<Codes<D>>,
}

impl<const D: usize> Quantized<D> {
    /// The real values.
    pub fn values(&self) -> &Tensor<D> {
        &self.values
    }

    /// The real values alone.
    pub fn into_values(self) -> Tensor<D> {
        self.values
    }

    /// The codes, if they came with the values: on a CPU, of at most 8 bits with their sign, and if none of the values is `NaN`; on a
    /// device with autodiff only where code zero is worth zero.
    pub fn codes(&self) -> Option<&Codes<D>> {
        self.codes.as_ref()
    }

    pub(crate) fn split(self) -> (Tensor<D>, Option<Codes<D>>) {
        (self.values, self.codes)
    }
}

/// Codes, and what they are worth: `(code - zero) / parts * unit`.
#[derive(Clone, Debug)]
pub struct Codes<const D: usize> {
    /// As bytes, those of negative codes in two's complement.
    pub(crate) bytes: Tensor<D, Int>,
    pub(crate) unit: Option<Tensor<1>>,
    pub(crate) zero: Option<Tensor<1>>,
    pub(crate) parts: f32,
    pub(crate) range: RangeInclusive<i32>,
}

impl<const D: usize> Codes<D> {
    /// The codes as integers of 32 bits.
    pub fn integers(&self) -> Tensor<D, Int> {
        let codes = self.bytes.clone().cast(IntDType::I32);
        match *self.range.start() < 0 {
            true => codes.clone().mask_where(codes.clone().greater_elem(i8::MAX), codes - 256),
            false => codes,
        }
    }

    /// Smallest and largest code.
    pub fn range(&self) -> RangeInclusive<i32> {
        self.range.clone()
    }

    /// What [`parts`](Self::parts) codes are worth, `[1]` or one for each slice along the first axis; `None` for 1.
    pub fn unit(&self) -> Option<&Tensor<1>> {
        self.unit.as_ref()
    }

    /// What the unit is divided into.
    pub fn parts(&self) -> f32 {
        self.parts
    }

    /// The code that is worth zero, read from its device; `None` if that is no code of 8 bits without sign.
    pub(crate) fn zero_point(&self) -> Option<u8> {
        let Some(zero) = &self.zero else { return Some(0) };
        let zero = zero.clone().into_data().iter::<f32>().next()?;
        (zero.fract() == 0.0 && (0.0..=255.0).contains(&zero)).then_some(zero as u8)
    }

    /// The same codes, and the largest, if they can be those of a convolution's input: none is negative, and all have one unit.
    pub(crate) fn of_an_input(self) -> Option<(Self, u8)> {
        let has_one_unit = self.unit.as_ref().is_none_or(|unit| unit.dims() == [1]);
        let is_unsigned = *self.range.start() >= 0;
        let largest = u8::try_from(*self.range.end()).ok().filter(|_| is_unsigned && has_one_unit)?;
        Some((self, largest))
    }

    /// The same codes, if they can be those of a convolution's weights: zero is worth zero, and all are signed bytes.
    pub(crate) fn of_weights(self) -> Option<Self> {
        let fit = *self.range.start() >= i32::from(i8::MIN) && *self.range.end() <= i32::from(i8::MAX);
        (self.zero.is_none() && fit).then_some(self)
    }

    /// The largest magnitude.
    pub(crate) fn magnitude(&self) -> u8 {
        let largest = self.range.start().unsigned_abs().max(self.range.end().unsigned_abs());
        u8::try_from(largest).expect("invariant: codes that come as bytes have no larger magnitude than 255")
    }
}

impl<const D: usize> From<Tensor<D>> for Quantized<D> {
    /// Any values.
    fn from(values: Tensor<D>) -> Self {
        Self { values, codes: None }
    }
}
