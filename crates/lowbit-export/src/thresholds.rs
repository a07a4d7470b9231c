//! The thresholds between the codes of a quantizer, found by trying it.

use lowbit_core::{IntegerGrid, from_order_key, order_key};

/// Codes that no thresholds tell.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ThresholdError {
    /// A code that the grid does not have.
    #[error("the value {value} has the code {code}, which its grid does not have")]
    Code {
        /// The value.
        value: f32,
        /// Its code.
        code: i32,
    },
    /// Codes that fall where values rise.
    #[error("the codes fall where values rise, at {value}")]
    Falls {
        /// The value.
        value: f32,
    },
}

/// The lowest value of each level but the first: of a quantizer whose codes do not fall where values rise. Infinite for a level that no
/// finite value has, or that all have.
pub fn find(grid: &IntegerGrid, codes: impl Fn(&[f32]) -> Vec<i32>) -> Result<Vec<f32>, ThresholdError> {
    let levels = |values: &[f32]| -> Result<Vec<usize>, ThresholdError> {
        let level = |(code, value): (i32, &f32)| {
            grid.index(code).map(usize::from).ok_or(ThresholdError::Code { value: *value, code })
        };
        codes(values).into_iter().zip(values).map(level).collect()
    };
    let n = grid.n_levels() - 1;
    // The first number from `low` on whose value has the level; `end` if none has it.
    let mut low = vec![order_key(f32::MIN); n];
    let mut end = vec![order_key(f32::MAX) + 1; n];
    while low.iter().zip(&end).any(|(low, end)| low < end) {
        let middle: Vec<i64> = low.iter().zip(&end).map(|(low, end)| (low + end).div_euclid(2)).collect();
        let values: Vec<f32> =
            middle.iter().map(|&middle| from_order_key(middle.min(order_key(f32::MAX)))).collect();
        for (place, level) in levels(&values)?.into_iter().enumerate() {
            if low[place] < end[place] {
                match level > place {
                    true => end[place] = middle[place],
                    false => low[place] = middle[place] + 1,
                }
            }
        }
    }
    let thresholds: Vec<f32> = low
        .into_iter()
        .map(|low| match low {
            low if low == order_key(f32::MIN) => f32::NEG_INFINITY,
            low if low > order_key(f32::MAX) => f32::INFINITY,
            low => from_order_key(low),
        })
        .collect();
    check(&thresholds, levels)?;
    Ok(thresholds)
}

/// Compares the levels by thresholds with those of the quantizer, around each threshold and far and wide.
fn check(
    thresholds: &[f32],
    levels: impl Fn(&[f32]) -> Result<Vec<usize>, ThresholdError>,
) -> Result<(), ThresholdError> {
    let mut values = vec![0.0, f32::MIN, f32::MAX, f32::MIN_POSITIVE];
    for &threshold in thresholds.iter().filter(|threshold| threshold.is_finite()) {
        values.extend([threshold, threshold.next_down(), threshold.next_up()]);
    }
    let largest = thresholds.iter().copied().filter(|threshold| threshold.is_finite()).fold(1.0, f32::max);
    values.extend((-200..=1000).map(|i| i as f32 / 500.0 * largest));
    let falls = |(level, value): (usize, &f32)| {
        (thresholds.partition_point(|threshold| threshold <= value) != level).then_some(*value)
    };
    match levels(&values)?.into_iter().zip(&values).find_map(falls) {
        Some(value) => Err(ThresholdError::Falls { value }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use lowbit_core::{BitWidth, IntegerGrid};

    use super::*;

    #[test]
    fn thresholds_are_the_first_values_of_their_levels() {
        for bits in 1..=8 {
            let bits = BitWidth::new(bits).unwrap();
            let range = bits.unsigned_range();
            let grid = IntegerGrid::new(range, vec![0.37], 1).unwrap();
            let code = |x: f32| (x / 0.37).clamp(0.0, range.q_max as f32).round_ties_even() as i32;
            let found = find(&grid, |values| values.iter().map(|x| code(*x)).collect()).unwrap();
            for (level, threshold) in found.iter().enumerate() {
                assert_eq!(code(*threshold), level as i32 + 1);
                assert_eq!(code(threshold.next_down()), level as i32);
            }
        }
    }

    #[test]
    fn levels_that_no_value_has_are_infinite() {
        let grid = IntegerGrid::new(BitWidth::new(2).unwrap().unsigned_range(), vec![1.0], 1).unwrap();
        let found = find(&grid, |values| values.iter().map(|x| if *x < 1.5 { 1 } else { 2 }).collect());
        assert_eq!(found.unwrap(), [f32::NEG_INFINITY, 1.5, f32::INFINITY]);
    }

    #[test]
    fn codes_that_fall_are_told() {
        let grid = IntegerGrid::new(BitWidth::new(1).unwrap().unsigned_range(), vec![1.0], 1).unwrap();
        let error = find(&grid, |values| values.iter().map(|x| i32::from(*x < 0.5)).collect()).unwrap_err();
        assert!(matches!(error, ThresholdError::Falls { .. }), "{error}");
        let error = find(&grid, |values| vec![2; values.len()]).unwrap_err();
        assert!(matches!(error, ThresholdError::Code { code: 2, .. }), "{error}");
    }
}
