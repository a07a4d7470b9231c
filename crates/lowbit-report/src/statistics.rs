//! Means over runs that differ in their seed alone.

use serde::Serialize;

/// The mean of a few values, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Half of its 95 % interval by Student's t; `None` of a single value.
    pub interval: Option<f64>,
    /// How many values it is of.
    pub n: usize,
}

impl Mean {
    /// The mean of `values`; `None` of none.
    pub fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        Some(Self { mean, interval: lowbit_sweep::interval(values), n })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_student() {
        assert_eq!(Mean::of(&[]), None);
        assert_eq!(Mean::of(&[0.5]), Some(Mean { mean: 0.5, interval: None, n: 1 }));
        // The deviation of two values is their difference by the root of 2; quantiles of tables have three decimals.
        let two = Mean::of(&[1.0, 3.0]).unwrap();
        assert!((two.interval.unwrap() - 12.706).abs() < 1e-3 && two.mean == 2.0, "{two:?}");
        // Deviation 1, 4.303 / sqrt(3).
        let three = Mean::of(&[1.0, 2.0, 3.0]).unwrap();
        assert!((three.interval.unwrap() - 4.303 / 3f64.sqrt()).abs() < 1e-3, "{three:?}");
    }
}
