//! What a case yields on a backend, and how two of them are compared.

use lowbit_tests::{Tolerance, excess};

/// The results of a case, each with a name.
#[derive(Clone, Debug, Default)]
pub struct Outcome(Vec<(String, Quantity)>);

#[derive(Clone, Debug)]
enum Quantity {
    /// Integers: equal.
    Exact(Vec<i64>),
    /// Floats, within the tolerance of each other and finite.
    Close(Vec<f32>, Tolerance),
}

impl Outcome {
    /// Adds integers, or whatever must be equal bit for bit.
    pub fn exact<T: Into<i64>>(mut self, name: &str, values: impl IntoIterator<Item = T>) -> Self {
        self.0.push((name.into(), Quantity::Exact(values.into_iter().map(Into::into).collect())));
        self
    }

    /// Adds floats.
    pub fn close(mut self, name: &str, values: Vec<f32>, tolerance: Tolerance) -> Self {
        self.0.push((name.into(), Quantity::Close(values, tolerance)));
        self
    }

    /// The largest difference of floats as a share of what is allowed, at most 1.
    ///
    /// # Errors
    /// What differs by more than is allowed, or is not finite.
    pub fn compare(&self, reference: &Self) -> Result<f64, String> {
        let names = |outcome: &Self| outcome.0.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        if names(self) != names(reference) {
            return Err(format!("results {:?} instead of {:?}", names(self), names(reference)));
        }
        let mut largest = 0.0f64;
        for ((name, got), (_, expected)) in self.0.iter().zip(&reference.0) {
            let share = got.compare(expected).map_err(|difference| format!("{name}: {difference}"))?;
            largest = largest.max(share);
        }
        Ok(largest)
    }
}

impl Quantity {
    fn compare(&self, expected: &Self) -> Result<f64, String> {
        match (self, expected) {
            (Self::Exact(got), Self::Exact(expected)) => compare_exactly(got, expected),
            (Self::Close(got, tolerance), Self::Close(expected, _)) => {
                if got.len() != expected.len() {
                    return Err(format!("{} values instead of {}", got.len(), expected.len()));
                }
                if expected.iter().any(|value| !value.is_finite()) {
                    return Err("the reference is not finite".into());
                }
                let excess = excess(got, expected, *tolerance);
                match excess <= 1.0 {
                    true => Ok(excess),
                    false => Err(format!("off by {excess:.2} times what is allowed{}", worst(got, expected))),
                }
            }
            _ => Err("integers and floats are compared".into()),
        }
    }
}

/// Where two lists differ most.
fn worst(got: &[f32], expected: &[f32]) -> String {
    let distance = |idx: &usize| (got[*idx] - expected[*idx]).abs();
    let worst = (0..got.len()).max_by(|a, b| distance(a).total_cmp(&distance(b)));
    worst.map_or_else(String::new, |idx| {
        format!(", most at {idx} of {}: {} instead of {}", got.len(), got[idx], expected[idx])
    })
}

fn compare_exactly(got: &[i64], expected: &[i64]) -> Result<f64, String> {
    if got.len() != expected.len() {
        return Err(format!("{} values instead of {}", got.len(), expected.len()));
    }
    let differences: Vec<usize> = (0..got.len()).filter(|&idx| got[idx] != expected[idx]).collect();
    match differences.first() {
        None => Ok(0.0),
        Some(&first) => Err(format!(
            "{} of {} differ, the first at {first}: {} instead of {}",
            differences.len(),
            got.len(),
            got[first],
            expected[first]
        )),
    }
}

/// The comparison itself can fail.
#[test]
fn a_difference_is_found() {
    let tolerance = Tolerance { relative: 0.1, absolute: 0.0 };
    let outcome = |codes: [i32; 2], values: [f32; 2]| {
        Outcome::default().exact("codes", codes).close("values", values.to_vec(), tolerance)
    };
    let reference = outcome([1, 2], [1.0, -2.0]);
    // The largest value is 2: differences of 0.2 are allowed.
    assert_eq!(reference.compare(&reference), Ok(0.0));
    let share = outcome([1, 2], [1.1, -2.0]).compare(&reference).expect("half of what is allowed");
    assert!((share - 0.5).abs() < 1e-6, "{share}");
    for (differs, message) in [
        (outcome([1, 3], [1.0, -2.0]), "codes: 1 of 2 differ, the first at 1: 3 instead of 2"),
        (outcome([1, 2], [1.3, -2.0]), "values: off by 1.50 times"),
        (outcome([1, 2], [f32::NAN, -2.0]), "values: off by inf times"),
        (Outcome::default().exact("codes", [1, 2]), "results"),
    ] {
        let error = differs.compare(&reference).expect_err("it differs");
        assert!(error.starts_with(message), "{error}");
    }
    let infinite = outcome([1, 2], [f32::INFINITY, -2.0]);
    assert!(infinite.compare(&infinite).is_err(), "a result that is not finite is none");
}
