//! Bit widths and the integer ranges they span.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A precision is asked for in bits: 1 to 8 for a quantized tensor, or full precision (fp32, not quantized).
///
/// In configuration files it is an integer from 1 to 8, or the string `"fp32"`, for which 32 and `"none"` are read too.
///
/// ```
/// use lowbit_core::{BitWidth, Precision};
///
/// assert_eq!(Precision::bits(2).unwrap().to_string(), "2");
/// assert_eq!(Precision::FullPrecision.to_string(), "fp32");
/// assert!(BitWidth::new(9).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "PrecisionText", into = "PrecisionText")]
pub enum Precision {
    /// Quantized to this many bits.
    Bits(BitWidth),
    /// Not quantized: 32-bit floating point.
    FullPrecision,
}

impl Precision {
    /// A precision of `bits` bits.
    ///
    /// # Errors
    /// [`BitWidthError`] if `bits` is not in 1..=8.
    pub fn bits(bits: u32) -> Result<Self, BitWidthError> {
        BitWidth::new(bits).map(Precision::Bits)
    }

    /// The bit width, or `None` in full precision.
    pub fn bit_width(self) -> Option<BitWidth> {
        match self {
            Precision::Bits(bits) => Some(bits),
            Precision::FullPrecision => None,
        }
    }

    /// The higher of two precisions.
    pub fn max(self, other: Self) -> Self {
        if other.stored_bits() > self.stored_bits() { other } else { self }
    }

    /// Bits that one element occupies when stored: the bit width, or 32.
    pub fn stored_bits(self) -> u32 {
        self.bit_width().map_or(32, BitWidth::get)
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Precision::Bits(bits) => bits.fmt(f),
            Precision::FullPrecision => f.pad("fp32"),
        }
    }
}

/// A precision as it stands in a configuration file.
#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a bit width from 1 to 8, or \"fp32\"")]
enum PrecisionText {
    Bits(i64),
    Word(String),
}

impl TryFrom<PrecisionText> for Precision {
    type Error = BitWidthError;

    fn try_from(text: PrecisionText) -> Result<Self, BitWidthError> {
        match text {
            PrecisionText::Bits(32) => Ok(Precision::FullPrecision),
            PrecisionText::Bits(bits) => u32::try_from(bits)
                .map_err(|_| BitWidthError { got: bits.to_string() })
                .and_then(Precision::bits),
            PrecisionText::Word(word) if word == "fp32" || word == "none" => Ok(Precision::FullPrecision),
            PrecisionText::Word(word) => Err(BitWidthError { got: format!("{word:?}") }),
        }
    }
}

impl From<Precision> for PrecisionText {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Bits(bits) => PrecisionText::Bits(i64::from(bits.get())),
            Precision::FullPrecision => PrecisionText::Word("fp32".into()),
        }
    }
}

/// A bit width from 1 to 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BitWidth(u8);

impl BitWidth {
    /// All bit widths, ascending.
    pub const ALL: [BitWidth; 8] = [
        BitWidth(1),
        BitWidth(2),
        BitWidth(3),
        BitWidth(4),
        BitWidth(5),
        BitWidth(6),
        BitWidth(7),
        BitWidth(8),
    ];

    /// A bit width of `bits`.
    ///
    /// # Errors
    /// [`BitWidthError`] if `bits` is not in 1..=8.
    pub fn new(bits: u32) -> Result<Self, BitWidthError> {
        match u8::try_from(bits) {
            Ok(bits @ 1..=8) => Ok(BitWidth(bits)),
            _ => Err(BitWidthError { got: bits.to_string() }),
        }
    }

    /// The number of bits, 1 to 8.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }

    /// The number of levels, `2^bits`.
    pub fn levels(self) -> u32 {
        1 << self.0
    }

    /// The range of unsigned codes: `0..=2^bits - 1`.
    pub fn unsigned_range(self) -> CodeRange {
        CodeRange { q_min: 0, q_max: self.levels() as i32 - 1 }
    }

    /// The range of signed codes in two's complement: `-2^(bits-1)..=2^(bits-1) - 1`.
    pub fn signed_range(self) -> CodeRange {
        let half = self.levels() as i32 / 2;
        CodeRange { q_min: -half, q_max: half - 1 }
    }
}

impl fmt::Display for BitWidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// A number of bits that is no bit width.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a bit width is from 1 to 8, or \"fp32\" for full precision; got {got}")]
pub struct BitWidthError {
    got: String,
}

/// Inclusive bounds of the integer codes of a quantized tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeRange {
    /// Smallest code.
    pub q_min: i32,
    /// Largest code.
    pub q_max: i32,
}

impl CodeRange {
    /// Whether `code` lies within the bounds.
    pub fn contains(self, code: i32) -> bool {
        (self.q_min..=self.q_max).contains(&code)
    }
}

/// How many scales a tensor has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// One scale for the whole tensor.
    #[default]
    PerTensor,
    /// One scale for each slice along the first axis: the output channels of a weight tensor.
    PerChannel,
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Granularity::PerTensor => "per-tensor",
            Granularity::PerChannel => "per-channel",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_span_two_to_the_bits() {
        for bits in BitWidth::ALL {
            for range in [bits.unsigned_range(), bits.signed_range()] {
                assert_eq!((range.q_max - range.q_min + 1) as u32, bits.levels());
                assert!(range.contains(0) && range.contains(range.q_max) && !range.contains(range.q_max + 1));
            }
        }
        assert_eq!(BitWidth::new(3).unwrap().signed_range(), CodeRange { q_min: -4, q_max: 3 });
    }

    #[test]
    fn precisions_are_read_from_numbers_and_words() {
        let read = |text: PrecisionText| Precision::try_from(text).map_err(|error| error.to_string());
        let word = |word: &str| PrecisionText::Word(word.into());
        for text in [PrecisionText::Bits(32), word("fp32"), word("none")] {
            assert_eq!(read(text), Ok(Precision::FullPrecision));
        }
        assert_eq!(read(PrecisionText::Bits(8)), Ok(Precision::bits(8).unwrap()));
        for text in [PrecisionText::Bits(16), PrecisionText::Bits(-1), word("32"), word("full")] {
            assert!(read(text).is_err());
        }
    }

    #[test]
    fn only_one_to_eight_bits() {
        for bits in [0, 9, 32, 256, 258] {
            let message = BitWidth::new(bits).unwrap_err().to_string();
            assert!(message.ends_with(&format!("got {bits}")), "{message}");
        }
    }
}
