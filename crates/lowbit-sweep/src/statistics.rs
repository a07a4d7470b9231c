//! Means with their intervals, and what differences show.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Mean of `values`, of which there must be one.
pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Sample standard deviation, from two values on.
pub(crate) fn deviation(values: &[f64]) -> Option<f64> {
    let mean = mean(values).filter(|_| values.len() > 1)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// Half of the 95 % interval of the mean of `values`, by Student's t; `None` of fewer than two.
pub fn interval(values: &[f64]) -> Option<f64> {
    let deviation = deviation(values)?;
    let quantile = students_t(values.len() - 1)?.inverse_cdf(0.975);
    Some(quantile * deviation / (values.len() as f64).sqrt())
}

/// Two-sided p value of Student's t test that the mean of `values` is zero; `None` of fewer than two, and where they do not vary: of
/// accuracies that is a matter of the few images, not of certainty.
pub(crate) fn p_value(values: &[f64]) -> Option<f64> {
    let (mean, deviation) = (mean(values)?, deviation(values)?);
    let distribution = students_t(values.len() - 1)?;
    // Differences of fractions that are equal differ by a rounding.
    if deviation < 1e-12 {
        return None;
    }
    let t = mean.abs() / (deviation / (values.len() as f64).sqrt());
    Some(2.0 * distribution.sf(t))
}

fn students_t(degrees_of_freedom: usize) -> Option<StudentsT> {
    StudentsT::new(0.0, 1.0, degrees_of_freedom as f64).ok()
}

/// The p values of a family of tests, corrected by Holm's method (1979): at most `alpha` of families without any effect then have one
/// that is below `alpha`.
pub(crate) fn holm(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut corrected = vec![0.0; values.len()];
    let mut least: f64 = 0.0;
    for (rank, &index) in order.iter().enumerate() {
        least = least.max((values.len() - rank) as f64 * values[index]).min(1.0);
        corrected[index] = least;
    }
    corrected
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_have_their_intervals() {
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
        assert_eq!(deviation(&[1.0, 3.0]), Some(2.0f64.sqrt()));
        assert_eq!(
            (mean(&[]), deviation(&[1.0]), interval(&[1.0]), p_value(&[1.0])),
            (None, None, None, None)
        );
        // The table of Student's t has 12.706 for one degree of freedom and 2.776 for four; a thousandth is what it is rounded to.
        assert!((interval(&[1.0, 3.0]).unwrap() - 12.706).abs() < 1e-3);
        let five = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert!((interval(&five).unwrap() - 2.776 * 2.5f64.sqrt() / 5.0f64.sqrt()).abs() < 1e-3);
    }

    #[test]
    fn a_mean_as_far_from_zero_as_its_interval_has_p_of_5_percent() {
        for values in [vec![1.0, 2.0, 3.0, 4.0, 5.0], vec![0.3, -0.2, 1.0]] {
            let (mean, half) = (mean(&values).unwrap(), interval(&values).unwrap());
            let moved: Vec<f64> = values.iter().map(|value| value - mean - half).collect();
            assert!((p_value(&moved).unwrap() - 0.05).abs() < 1e-9);
        }
        assert_eq!([p_value(&[0.0, 0.0]), p_value(&[1.0, 1.0])], [None, None]);
        assert_eq!(p_value(&[0.92 - 0.91, 0.93 - 0.92]), None);
    }

    #[test]
    fn holm_multiplies_by_the_number_of_tests_that_are_left() {
        // Worked by hand: 3 x 0.01, 2 x 0.02, and 0.03 that may not be below the one before.
        let corrected = holm(&[0.03, 0.01, 0.02]);
        for (got, expected) in corrected.iter().zip([0.04, 0.03, 0.04]) {
            assert!((got - expected).abs() < 1e-12, "{corrected:?}");
        }
        assert_eq!(holm(&[0.9, 0.8]), [1.0, 1.0]);
    }
}
