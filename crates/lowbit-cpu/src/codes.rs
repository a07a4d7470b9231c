//! Codes as they lie in memory: integers of 8 bits.

use std::ops::RangeInclusive;

/// Values of a grid, and their codes.
#[derive(Clone, Debug, PartialEq)]
pub struct Coded {
    /// The real values.
    pub values: Vec<f32>,
    /// Their codes, negative ones in two's complement. `None` if the codes of the grid are no integers of 8 bits, or if one of the values
    /// has none, as `NaN`.
    pub codes: Option<Vec<u8>>,
}

/// The bounds of codes that are integers of 8 bits: all from 0 to 255, or all from -128 to 127.
pub(crate) fn byte_bounds(range: &RangeInclusive<i32>) -> Option<[f32; 2]> {
    let (least, largest) = (*range.start(), *range.end());
    let fits = |low: i32, high: i32| low <= least && largest <= high;
    (fits(0, 255) || fits(-128, 127)).then_some([least as f32, largest as f32])
}

/// 1.5 * 2^23: the lowest bits of a sum with it are those of an integer, in two's complement.
const INTEGERS: f32 = 12_582_912.0;

/// The integer nearest to a number up to 2^22, of two that are equally near the even one, in operations of every processor.
#[inline(always)]
pub(crate) fn nearest_integer(number: f32) -> f32 {
    (number + INTEGERS) - INTEGERS
}

/// Whether a number up to 2^22 is an integer.
#[inline(always)]
pub(crate) fn is_integer(number: f32) -> bool {
    nearest_integer(number) == number
}

/// The byte of a code from -128 to 255, of a number between the byte of the nearest one. Nothing is undefined for others.
#[inline(always)]
pub(crate) fn byte(code: f32) -> u8 {
    (code + INTEGERS).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_twos_complement() {
        for code in -128..=255 {
            assert_eq!(byte(code as f32), code as u8, "{code}");
        }
    }

    #[test]
    fn numbers_between_have_the_nearest_integer() {
        for number in [-1.5, -0.5, -0.2, 0.0, 0.49, 0.5, 0.51, 1.5, 2.5, 254.49, 254.5] {
            let expected = f32::round_ties_even(number);
            assert_eq!(nearest_integer(number), expected, "{number}");
            assert_eq!(byte(number), expected as i32 as u8, "{number}");
        }
        assert!(nearest_integer(f32::NAN).is_nan());
    }

    #[test]
    fn integers_are_told() {
        for code in -128..=255 {
            let code = code as f32;
            assert!(is_integer(code) && !is_integer(code + 0.5) && !is_integer(code + 0.01), "{code}");
        }
        assert!(!is_integer(f32::NAN));
    }

    #[test]
    fn some_ranges_are_of_bytes() {
        assert_eq!(byte_bounds(&(0..=255)), Some([0.0, 255.0]));
        assert_eq!(byte_bounds(&(-128..=127)), Some([-128.0, 127.0]));
        for range in [0..=256, -129..=0, -1..=128, -255..=255] {
            assert_eq!(byte_bounds(&range), None, "{range:?}");
        }
    }
}
