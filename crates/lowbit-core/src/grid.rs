//! The integer codes of a quantized tensor and their real values.
//!
//! Every quantizer has one system of integers, its *codes*: what a kernel multiplies and an export writes. An [`IntegerGrid`]
//! says which integers these are and what each is worth. [`PackedCodes`] stores a tensor of them in the bits
//! of the grid.

use serde::{Deserialize, Serialize};

use crate::bits::{BitWidth, CodeRange, Granularity};
use crate::packed::{PackedCodes, PackedCodesError};

/// Largest magnitude of a code and of a zero point: differences of two are exact in single precision.
const MAX_CODE: i32 = 1 << 15;

/// Largest number of parts of a unit: a power of two beyond all that are used, exact in single precision.
const MAX_PARTS: u32 = 1 << 15;

/// The integers that a grid has, ascending.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum CodeSet {
    /// `q_min, q_min + stride, ..., q_max`.
    Uniform {
        /// Smallest code.
        q_min: i32,
        /// Largest code.
        q_max: i32,
        /// Distance of two neighbors: 1, or 2 for odd integers alone.
        stride: u32,
    },
    /// These codes, which need not be at equal distances.
    Table(Vec<i32>),
}

impl From<CodeRange> for CodeSet {
    /// All integers of the range.
    fn from(CodeRange { q_min, q_max }: CodeRange) -> Self {
        Self::Uniform { q_min, q_max, stride: 1 }
    }
}

impl CodeSet {
    /// The odd integers `-n, -n + 2, ..., n` for `n = 2^bits - 1`: `2^bits` codes without zero, symmetric to it.
    pub fn odd(bits: BitWidth) -> Self {
        let CodeRange { q_max: n, .. } = bits.unsigned_range();
        Self::Uniform { q_min: -n, q_max: n, stride: 2 }
    }

    fn range(&self) -> Option<CodeRange> {
        match self {
            Self::Uniform { q_min, q_max, .. } => Some(CodeRange { q_min: *q_min, q_max: *q_max }),
            Self::Table(codes) => Some(CodeRange { q_min: *codes.first()?, q_max: *codes.last()? }),
        }
    }

    /// Checks what all other methods take for granted.
    fn check(&self) -> Result<(), GridError> {
        let CodeRange { q_min, q_max } = self.range().ok_or(GridError::Levels { got: 0 })?;
        let codes = match self {
            Self::Uniform { .. } => &[q_min, q_max],
            Self::Table(codes) => codes.as_slice(),
        };
        if let Some(&got) = codes.iter().find(|code| code.unsigned_abs() > MAX_CODE.unsigned_abs()) {
            return Err(GridError::Code { got });
        }
        let unsorted = codes.windows(2).find(|pair| match self {
            Self::Uniform { .. } => pair[0] > pair[1],
            Self::Table(_) => pair[0] >= pair[1],
        });
        if let Some(pair) = unsorted {
            return Err(GridError::Order { before: pair[0], after: pair[1] });
        }
        if let Self::Uniform { stride, .. } = *self
            && (stride == 0 || !q_max.abs_diff(q_min).is_multiple_of(stride))
        {
            return Err(GridError::Stride { stride, q_min, q_max });
        }
        match self.n_levels() {
            2..=256 => Ok(()),
            got => Err(GridError::Levels { got }),
        }
    }

    fn n_levels(&self) -> usize {
        match self {
            Self::Uniform { q_min, q_max, stride } => (q_max.abs_diff(*q_min) / stride) as usize + 1,
            Self::Table(codes) => codes.len(),
        }
    }

    fn code(&self, index: u8) -> Option<i32> {
        match self {
            Self::Uniform { q_min, q_max, stride } => {
                let code = q_min + i32::from(index) * i32::try_from(*stride).ok()?;
                (code <= *q_max).then_some(code)
            }
            Self::Table(codes) => codes.get(usize::from(index)).copied(),
        }
    }

    fn index(&self, code: i32) -> Option<u8> {
        let index = match self {
            Self::Uniform { q_min, q_max, stride } => {
                let is_inside = (*q_min..=*q_max).contains(&code);
                let distance = code.abs_diff(*q_min);
                (is_inside && distance.is_multiple_of(*stride)).then_some((distance / stride) as usize)?
            }
            Self::Table(codes) => codes.binary_search(&code).ok()?,
        };
        u8::try_from(index).ok()
    }
}

/// The codes of a quantized tensor and their real values, for the whole tensor or for each slice along its first axis.
///
/// # Equation
/// ```text
/// value = (code - zero_point) / parts * unit         in single precision, in this order
/// ```
/// The unit is what a method learns or measures (a step size, a clip value, a mean), the parts are what its formula divides by
/// (`2^bits - 1`, or 1): one rounded scale in their place would lose the last bit. These are the operations of the quantizers, so
/// that the value of a code is the fake-quantized value to the last bit, but for the sign of a zero, which is positive here. (A
/// GPU that does not divide as IEEE 754 says is off by its own error.)
///
/// | quantizer | codes | zero point | unit | parts |
/// |---|---|---|---|---|
/// | DoReFa weights | the odd integers from -n to n | 0 | 1; mean magnitude at 1 bit | n |
/// | DoReFa activations | 0 to n | 0 | 1 | n |
/// | PACT activations | 0 to n | 0 | the clip value | n |
/// | LSQ weights | `-2^(bits-1)` to `2^(bits-1) - 1`; -1 and 1 at 1 bit | 0 | the step size | 1 |
/// | LSQ activations | 0 to n | 0 | the step size | 1 |
/// | min-max weights | `1 - 2^(bits-1)` to `2^(bits-1) - 1` | 0 | the scale | 1 |
/// | min-max activations | 0 to n | an integer from 0 to n | the scale | 1 |
/// | EWGS weights | the odd integers from -n to n | 0 | the scale | n |
/// | EWGS activations | 0 to n | 0 | 1 | n |
/// | LSQ+ weights, TQT weights | as LSQ | 0 | the step size | 1 |
/// | LSQ+ activations | 0 to n | an integer from 0 to n | the step size | 1 |
/// | TQT activations | 0 to n | 0 | the step size | 1 |
/// | APoT | a table | 0 | the clip value | the largest code |
/// | QIL weights | `1 - 2^(bits-1)` to `2^(bits-1) - 1` | 0 | 1 | `2^(bits-1) - 1` |
/// | QIL activations, XNOR-Net activations | 0 to n | 0 | 1 | n |
/// | DSQ weights, N2UQ weights | the odd integers from -n to n | 0 | the clip value; the scale | n |
/// | DSQ activations, N2UQ activations | 0 to n | 0 | the clip value; the output's scale | n |
/// | HWGQ activations | 0 to n | 0 | the step | 1 |
/// | XNOR-Net weights | -1 and 1 | 0 | the mean magnitude | 1 |
/// | TWN weights | -1, 0 and 1 | 0 | the scale | 1 |
///
/// with `n = 2^bits - 1`.
///
/// # Example
/// ```
/// use lowbit_core::{BitWidth, CodeSet, IntegerGrid};
///
/// let two_bits = BitWidth::new(2)?;
/// let grid = IntegerGrid::new(CodeSet::odd(two_bits), vec![1.0], 3)?;
/// let values = [-3, -1, 1, 3].map(|code| grid.dequantize(code, 0));
/// assert_eq!(values, [-1.0, -1.0 / 3.0, 1.0 / 3.0, 1.0]);
/// assert_eq!(grid.bits(), two_bits);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct IntegerGrid {
    codes: CodeSet,
    zero_point: i32,
    /// One, or one for each channel.
    units: Vec<f32>,
    parts: u32,
}

/// A grid as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    codes: CodeSet,
    zero_point: i32,
    units: Vec<f32>,
    parts: u32,
}

impl From<IntegerGrid> for Unchecked {
    fn from(IntegerGrid { codes, zero_point, units, parts }: IntegerGrid) -> Self {
        Self { codes, zero_point, units, parts }
    }
}

impl TryFrom<Unchecked> for IntegerGrid {
    type Error = GridError;

    fn try_from(Unchecked { codes, zero_point, units, parts }: Unchecked) -> Result<Self, GridError> {
        Self { codes, zero_point, units, parts }.checked()
    }
}

impl IntegerGrid {
    /// A grid whose zero point is 0, with one unit for the tensor or one for each channel. A unit of 0 is allowed: all its
    /// values are 0, as for weights that are all zero.
    ///
    /// # Errors
    /// [`GridError`] if there are fewer than 2 codes or more than 256, if they do not ascend, if a stride does not lead to the last one,
    /// if 0 is not between the first and the last, or if a unit is negative, not finite, or so large that a value is not.
    pub fn new(codes: impl Into<CodeSet>, units: Vec<f32>, parts: u32) -> Result<Self, GridError> {
        Self { codes: codes.into(), zero_point: 0, units, parts }.checked()
    }

    /// The same codes with another integer as the code of real zero.
    ///
    /// # Errors
    /// [`GridError`] if it is not between the first code and the last, or a value is not finite.
    pub fn with_zero_point(self, zero_point: i32) -> Result<Self, GridError> {
        Self { zero_point, ..self }.checked()
    }

    fn checked(self) -> Result<Self, GridError> {
        self.codes.check()?;
        let range = self.range();
        if !range.contains(self.zero_point) {
            let CodeRange { q_min, q_max } = range;
            return Err(GridError::ZeroPoint { got: self.zero_point, q_min, q_max });
        }
        if !(1..=MAX_PARTS).contains(&self.parts) {
            return Err(GridError::Parts { got: self.parts });
        }
        if self.units.is_empty() {
            return Err(GridError::NoUnit);
        }
        for (channel, &got) in self.units.iter().enumerate() {
            // Also of what is no number.
            if !(got.is_finite() && got.is_sign_positive()) {
                return Err(GridError::Unit { channel, got });
            }
            let ends = [range.q_min, range.q_max].map(|code| self.dequantize(code, channel));
            if !ends.iter().all(|value| value.is_finite()) {
                return Err(GridError::Overflow { channel, unit: got });
            }
        }
        Ok(self)
    }

    /// The codes.
    pub fn codes(&self) -> &CodeSet {
        &self.codes
    }

    /// Smallest and largest code.
    pub fn range(&self) -> CodeRange {
        self.codes.range().expect("invariant: a grid has codes")
    }

    /// How many codes there are, 2 to 256.
    pub fn n_levels(&self) -> usize {
        self.codes.n_levels()
    }

    /// The bits that one code takes when stored by its index.
    pub fn bits(&self) -> BitWidth {
        let bits = (self.n_levels() - 1).ilog2() + 1;
        BitWidth::new(bits).expect("invariant: a grid has 2 to 256 levels")
    }

    /// The code of real zero. It lies between the first code and the last; where it is none itself, as of odd codes, no code is
    /// worth zero.
    pub fn zero_point(&self) -> i32 {
        self.zero_point
    }

    /// The units: one, or one for each channel.
    pub fn units(&self) -> &[f32] {
        &self.units
    }

    /// Into how many parts a unit is divided.
    pub fn parts(&self) -> u32 {
        self.parts
    }

    /// Whether there is one unit or one for each channel. A grid of one channel is one of the tensor.
    pub fn granularity(&self) -> Granularity {
        match self.units.len() {
            1 => Granularity::PerTensor,
            _ => Granularity::PerChannel,
        }
    }

    /// What one step between integers is worth, `unit / parts`, for display and for formats that have nothing else: rounded,
    /// where [`dequantize`](Self::dequantize) is exact.
    ///
    /// # Panics
    /// If there are units for channels, and `channel` is none of them.
    pub fn scale(&self, channel: usize) -> f32 {
        self.unit(channel) / self.parts as f32
    }

    /// The real value of `code` in `channel`; without units for channels, that is in any.
    ///
    /// # Panics
    /// If there are units for channels, and `channel` is none of them.
    pub fn dequantize(&self, code: i32, channel: usize) -> f32 {
        // Codes, zero points and their differences are exact in single precision.
        (code as f32 - self.zero_point as f32) / self.parts as f32 * self.unit(channel)
    }

    /// The real values of the codes of a whole tensor, in row-major order.
    ///
    /// # Panics
    /// If there are units for channels that do not divide the codes among them.
    pub fn dequantize_all(&self, codes: &[i32]) -> Vec<f32> {
        let n_channels = self.units.len();
        assert!(codes.len().is_multiple_of(n_channels), "{} codes for {n_channels} channels", codes.len());
        let per_channel = codes.len() / n_channels;
        codes.iter().enumerate().map(|(i, &code)| self.dequantize(code, i / per_channel)).collect()
    }

    fn unit(&self, channel: usize) -> f32 {
        match *self.units.as_slice() {
            [unit] => unit,
            ref units => units[channel],
        }
    }

    /// The code at `index`, counted from the smallest one; `None` if there are fewer.
    pub fn code(&self, index: u8) -> Option<i32> {
        self.codes.code(index)
    }

    /// The place of `code`, counted from the smallest one; `None` if it is no code of this grid.
    pub fn index(&self, code: i32) -> Option<u8> {
        self.codes.index(code)
    }

    /// The codes of a tensor of this shape, in row-major order, by their indices in [`bits`](Self::bits) bits each.
    ///
    /// # Errors
    /// [`PackedCodesError`] if a code is none of this grid, or if there are not as many as the shape has.
    pub fn pack(&self, codes: &[i32], shape: &[usize]) -> Result<PackedCodes, PackedCodesError> {
        let index = |(place, &code): (usize, &i32)| {
            self.index(code).ok_or(PackedCodesError::Code { place, got: i64::from(code) })
        };
        let indices = codes.iter().enumerate().map(index).collect::<Result<Vec<u8>, _>>()?;
        PackedCodes::pack(&indices, self.bits(), shape)
    }

    /// Checks that a packed tensor is one of codes of this grid.
    ///
    /// # Errors
    /// [`PackedCodesError`] if it has other bits than this grid, or an index beyond the last code.
    pub fn check_packed(&self, packed: &PackedCodes) -> Result<(), PackedCodesError> {
        if packed.bits() != self.bits() {
            return Err(PackedCodesError::Bits { got: packed.bits(), expected: self.bits() });
        }
        let n_levels = self.n_levels();
        // Every index of so many bits is one.
        if n_levels == self.bits().levels() as usize {
            return Ok(());
        }
        let indices = packed.unpack();
        match indices.iter().position(|index| usize::from(*index) >= n_levels) {
            Some(place) => Err(PackedCodesError::Code { place, got: i64::from(indices[place]) }),
            None => Ok(()),
        }
    }

    /// The codes of a tensor that was packed, in row-major order.
    ///
    /// # Errors
    /// As [`check_packed`](Self::check_packed).
    pub fn unpack(&self, packed: &PackedCodes) -> Result<Vec<i32>, PackedCodesError> {
        self.check_packed(packed)?;
        let codes: Vec<i32> = (0..=u8::MAX).map_while(|index| self.code(index)).collect();
        Ok(packed.unpack().into_iter().map(|index| codes[usize::from(index)]).collect())
    }

    /// The codes of a packed tensor of this grid as bytes in two's complement, as kernels multiply them, in row-major order; `None` if
    /// a code of the grid is beyond these. An index beyond the last code becomes any byte.
    pub fn unpack_bytes(&self, packed: &PackedCodes) -> Option<Vec<u8>> {
        let CodeRange { q_min, q_max } = self.range();
        if q_min < i32::from(i8::MIN) || q_max > i32::from(i8::MAX) {
            return None;
        }
        let mut bytes = packed.unpack();
        match &self.codes {
            CodeSet::Uniform { q_min, stride, .. } => {
                let (first, stride) = (*q_min as u8, *stride as u8);
                bytes.iter_mut().for_each(|byte| *byte = first.wrapping_add(stride.wrapping_mul(*byte)));
            }
            CodeSet::Table(codes) => {
                let mut table = [0; 256];
                table.iter_mut().zip(codes).for_each(|(byte, code)| *byte = *code as u8);
                bytes.iter_mut().for_each(|byte| *byte = table[usize::from(*byte)]);
            }
        }
        Some(bytes)
    }

    /// The real values of a packed tensor of this grid, in row-major order. An index beyond the last code is worth any value.
    ///
    /// # Panics
    /// If there are units for channels that are fewer than the rows of the tensor.
    pub fn unpack_values(&self, packed: &PackedCodes) -> Vec<f32> {
        // The operations of `dequantize`, with those before the unit once for each code.
        let mut of_codes = [0.0; 256];
        for (value, code) in of_codes.iter_mut().zip((0..=u8::MAX).map_while(|index| self.code(index))) {
            *value = (code as f32 - self.zero_point as f32) / self.parts as f32;
        }
        let indices = packed.unpack();
        let row = packed.shape().get(1..).unwrap_or_default().iter().product::<usize>().max(1);
        let mut values = Vec::with_capacity(indices.len());
        for (channel, indices) in indices.chunks(row).enumerate() {
            let unit = self.unit(channel);
            values.extend(indices.iter().map(|index| of_codes[usize::from(*index)] * unit));
        }
        values
    }
}

/// What is no grid of integers.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GridError {
    /// Too few or too many codes.
    #[error("a grid has 2 to 256 codes, got {got}")]
    Levels {
        /// How many.
        got: usize,
    },
    /// A code beyond 2^15.
    #[error("a code lies between -32768 and 32768, got {got}")]
    Code {
        /// The code.
        got: i32,
    },
    /// Codes that do not ascend.
    #[error("the codes of a grid ascend, got {after} after {before}")]
    Order {
        /// A code.
        before: i32,
        /// The one after it.
        after: i32,
    },
    /// A stride that does not lead from the first code to the last.
    #[error("no whole number of strides of {stride} leads from code {q_min} to {q_max}")]
    Stride {
        /// The stride.
        stride: u32,
        /// The first code.
        q_min: i32,
        /// The last one.
        q_max: i32,
    },
    /// A zero point beyond the codes.
    #[error("the zero point of a grid lies between its codes {q_min} and {q_max}, got {got}")]
    ZeroPoint {
        /// The zero point.
        got: i32,
        /// The first code.
        q_min: i32,
        /// The last one.
        q_max: i32,
    },
    /// Parts that a unit cannot be divided into.
    #[error("a unit is divided into 1 to 32768 parts, got {got}")]
    Parts {
        /// How many.
        got: u32,
    },
    /// Levels that are no multiples of a unit.
    #[error(
        "the levels are sums of learned values, which are no multiples of a unit: no integers stand for them"
    )]
    Uneven,
    /// No unit at all.
    #[error("a grid has a unit, or one for each channel, got none")]
    NoUnit,
    /// A unit that is negative or not finite.
    #[error("the unit of a grid is finite and not negative, got {got} (channel {channel})")]
    Unit {
        /// The channel, 0 of a whole tensor.
        channel: usize,
        /// The unit.
        got: f32,
    },
    /// A parameter of the quantizer, no part of the grid, that is not finite: no value is, then.
    #[error("the parameters of a quantizer are finite, got {got}")]
    Parameter {
        /// The parameter.
        got: f32,
    },
    /// A unit with which a code has no finite value.
    #[error("the values of a grid are finite, got a unit of {unit:e} (channel {channel})")]
    Overflow {
        /// The channel, 0 of a whole tensor.
        channel: usize,
        /// The unit.
        unit: f32,
    },
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uniform(q_min: i32, q_max: i32, stride: u32) -> CodeSet {
        CodeSet::Uniform { q_min, q_max, stride }
    }

    fn grid(codes: CodeSet) -> IntegerGrid {
        IntegerGrid::new(codes, vec![1.0], 1).unwrap()
    }

    #[test]
    fn what_is_no_grid_is_refused() {
        let of = |codes: CodeSet| IntegerGrid::new(codes, vec![1.0], 1).unwrap_err();
        assert_eq!(of(CodeSet::Table(vec![])), GridError::Levels { got: 0 });
        assert_eq!(of(CodeSet::Table(vec![0])), GridError::Levels { got: 1 });
        assert_eq!(of(CodeSet::Table((0..257).collect())), GridError::Levels { got: 257 });
        assert_eq!(of(CodeSet::Table(vec![0, 2, 1])), GridError::Order { before: 2, after: 1 });
        assert_eq!(of(CodeSet::Table(vec![0, 1, 1])), GridError::Order { before: 1, after: 1 });
        assert_eq!(of(CodeSet::Table(vec![0, 32769])), GridError::Code { got: 32769 });
        assert_eq!(of(uniform(0, 0, 1)), GridError::Levels { got: 1 });
        assert_eq!(of(uniform(0, 256, 1)), GridError::Levels { got: 257 });
        assert_eq!(of(uniform(1, 0, 1)), GridError::Order { before: 1, after: 0 });
        assert_eq!(of(uniform(i32::MIN, i32::MAX, 1)), GridError::Code { got: i32::MIN });
        for stride in [0, 2, 4] {
            assert_eq!(of(uniform(0, 3, stride)), GridError::Stride { stride, q_min: 0, q_max: 3 });
        }
        // Zero is the zero point unless another one is given.
        assert_eq!(of(uniform(1, 4, 1)), GridError::ZeroPoint { got: 0, q_min: 1, q_max: 4 });
        for got in [-3, 2] {
            let error = grid(uniform(-2, 1, 1)).with_zero_point(got).unwrap_err();
            assert_eq!(error, GridError::ZeroPoint { got, q_min: -2, q_max: 1 });
        }
        let with = |units: Vec<f32>, parts| IntegerGrid::new(uniform(0, 3, 1), units, parts).unwrap_err();
        assert_eq!(with(vec![], 1), GridError::NoUnit);
        assert_eq!(with(vec![1.0], 0), GridError::Parts { got: 0 });
        assert_eq!(with(vec![1.0], 32769), GridError::Parts { got: 32769 });
        for got in [-1.0, -0.0, f32::INFINITY] {
            assert_eq!(with(vec![1.0, got], 1), GridError::Unit { channel: 1, got });
        }
        assert!(matches!(with(vec![f32::NAN], 1), GridError::Unit { channel: 0, got } if got.is_nan()));
        assert_eq!(with(vec![2e38], 1), GridError::Overflow { channel: 0, unit: 2e38 });
        assert!(IntegerGrid::new(uniform(0, 3, 1), vec![2e38, 0.0], 3).is_ok());
    }

    #[test]
    fn a_grid_is_stored_in_as_few_bits_as_its_codes_need() {
        for bits in BitWidth::ALL {
            let n = bits.unsigned_range().q_max;
            for codes in [bits.unsigned_range().into(), bits.signed_range().into(), CodeSet::odd(bits)] {
                assert_eq!(grid(codes).bits(), bits);
            }
            if bits.get() > 1 {
                assert_eq!(grid(uniform(0, n - 1, 1)).bits(), bits, "one level less than 2^bits");
            }
        }
        assert_eq!(grid(CodeSet::Table(vec![-2, 0, 3, 4, 48])).bits().get(), 3);
    }

    /// The zero point is an integer; each channel has its unit; all in the stated order of operations.
    #[test]
    fn values_are_those_of_the_equation() {
        let (units, parts) = ([0.1f32, 3.7], 7);
        let affine = IntegerGrid::new(uniform(0, 7, 1), units.to_vec(), parts).unwrap();
        let affine = affine.with_zero_point(2).unwrap();
        assert_eq!((affine.zero_point(), affine.granularity()), (2, Granularity::PerChannel));
        for (channel, unit) in units.into_iter().enumerate() {
            for code in 0..8 {
                let expected = (code as f32 - 2.0) / 7.0 * unit;
                assert_eq!(affine.dequantize(code, channel).to_bits(), expected.to_bits());
            }
        }
        assert_eq!(affine.dequantize_all(&[2, 9, 2, 16]), [0.0, 0.1, 0.0, 2.0 * 3.7]);
        let table = IntegerGrid::new(CodeSet::Table(vec![0, 1, 2, 4]), vec![0.25], 1).unwrap();
        let values: Vec<f32> = (0..4).map(|i| table.dequantize(table.code(i).unwrap(), 9)).collect();
        assert_eq!((values, table.granularity()), (vec![0.0, 0.25, 0.5, 1.0], Granularity::PerTensor));
        assert!(table.dequantize_all(&[]).is_empty());
    }

    fn code_set() -> impl Strategy<Value = CodeSet> {
        prop_oneof![
            (-300i32..=0, 1u32..4, 1i32..=255).prop_map(|(q_min, stride, n)| {
                let n = n.max(-q_min / stride as i32 + 1).min(255);
                uniform(q_min, q_min + n * stride as i32, stride)
            }),
            prop::collection::btree_set(-500..500, 2..=256)
                .prop_map(|codes| CodeSet::Table(codes.into_iter().collect())),
        ]
        .prop_filter("zero is inside", |codes| codes.range().unwrap().contains(0))
    }

    fn any_grid() -> impl Strategy<Value = IntegerGrid> {
        let unit = prop_oneof![Just(0.0f32), (0u32..1 << 30).prop_map(f32::from_bits), 1e-9f32..1e9];
        (code_set(), prop::collection::vec(unit, 1..4), 1u32..=255)
            .prop_map(|(codes, units, parts)| IntegerGrid::new(codes, units, parts).unwrap())
    }

    proptest! {
        #[test]
        fn codes_and_indices_are_one_to_one(codes in code_set()) {
            let grid = grid(codes);
            let codes: Vec<i32> = (0..=255).map_while(|index| grid.code(index)).collect();
            prop_assert_eq!(codes.len(), grid.n_levels());
            prop_assert!(codes.is_sorted_by(|a, b| a < b));
            prop_assert_eq!([codes[0], codes[codes.len() - 1]], [grid.range().q_min, grid.range().q_max]);
            for code in -600..600 {
                let index = codes.binary_search(&code).ok().map(|index| index as u8);
                prop_assert_eq!(grid.index(code), index);
            }
            let packed = grid.pack(&codes, &[codes.len(), 1]).unwrap();
            prop_assert_eq!(grid.unpack(&packed).unwrap(), codes.clone());
            let bytes: Option<Vec<u8>> =
                codes.iter().map(|code| i8::try_from(*code).ok().map(|code| code as u8)).collect();
            prop_assert_eq!(grid.unpack_bytes(&packed), bytes);
        }

        #[test]
        fn packed_values_are_those_of_the_codes(grid in any_grid(), n in 1usize..9, row in 1usize..20) {
            let n_rows = if grid.units().len() == 1 { n } else { grid.units().len() };
            let code = |i: usize| grid.code((i * 7 % grid.n_levels()) as u8).unwrap();
            let codes: Vec<i32> = (0..n_rows * row).map(code).collect();
            let packed = grid.pack(&codes, &[n_rows, row]).unwrap();
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            prop_assert_eq!(bits(grid.unpack_values(&packed)), bits(grid.dequantize_all(&codes)));
        }

        #[test]
        fn what_is_stored_is_read(grid in any_grid(), zero in 0usize..256) {
            let zero_point = grid.code((zero % grid.n_levels()) as u8).unwrap();
            let grid = grid.with_zero_point(zero_point).unwrap();
            let text = serde_json::to_string(&grid).unwrap();
            prop_assert_eq!(serde_json::from_str::<IntegerGrid>(&text).unwrap(), grid);
        }
    }

    #[test]
    fn what_is_read_is_checked() {
        let text = r#"{"codes":{"uniform":{"q_min":-3,"q_max":3,"stride":2}},"zero_point":0,"units":[1.0],"parts":3}"#;
        let read: IntegerGrid = serde_json::from_str(text).unwrap();
        assert_eq!(read.codes(), &CodeSet::odd(BitWidth::new(2).unwrap()));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        for (from, to, message) in [
            ("\"stride\":2", "\"stride\":4", "no whole number of strides of 4 leads from code -3 to 3"),
            ("\"zero_point\":0", "\"zero_point\":4", "lies between its codes -3 and 3, got 4"),
            ("[1.0]", "[-1.0]", "finite and not negative, got -1 (channel 0)"),
            ("[1.0]", "[]", "got none"),
            ("\"parts\":3", "\"parts\":3,\"more\":1", "unknown field `more`"),
        ] {
            let error = serde_json::from_str::<IntegerGrid>(&text.replace(from, to)).unwrap_err();
            assert!(error.to_string().contains(message), "{error}");
        }
    }

    #[test]
    fn foreign_codes_are_not_packed_or_unpacked() {
        let [three, four] = [uniform(-1, 1, 1), uniform(-2, 1, 1)].map(grid);
        let error = three.pack(&[0, -2], &[1, 2]).unwrap_err();
        assert_eq!(error, PackedCodesError::Code { place: 1, got: -2 });
        let packed = four.pack(&[0, 1], &[1, 2]).unwrap();
        assert_eq!(three.unpack(&packed), Err(PackedCodesError::Code { place: 1, got: 3 }));
        let two = grid(uniform(0, 1, 1));
        let [one_bit, two_bits] = [1, 2].map(|bits| BitWidth::new(bits).unwrap());
        assert_eq!(two.unpack(&packed), Err(PackedCodesError::Bits { got: two_bits, expected: one_bit }));
        assert_eq!(two.check_packed(&packed), two.unpack(&packed).map(drop));
        assert!(four.check_packed(&packed).is_ok());
    }
}
