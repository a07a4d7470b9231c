//! Numbers for people.

pub use lowbit_models::{shown_bytes as bytes, shown_count as count};

/// A fraction in percent with two decimals.
pub fn percent(fraction: f64) -> String {
    format!("{:.2}%", 100.0 * fraction)
}

/// Seconds as a clock shows them: 0:42, 12:05, 1:02:42.
pub fn clock(seconds: f64) -> String {
    // Saturates, and makes zero of what is not a number.
    let seconds = seconds.round_ties_even() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

/// A number in three digits.
pub(crate) fn short(value: f32) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.1e}"),
        size => {
            let decimals = (2.0 - size.log10().floor()).clamp(0.0, 4.0) as usize;
            format!("{value:.decimals$}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let numbers = [0.0, 1.0, -0.12345, 12.34, 123.4, 1234.5, 1e-5, 3e6, f32::NAN];
        let expected = ["0", "1.00", "-0.123", "12.3", "123", "1234", "1.0e-5", "3.0e6", "NaN"];
        assert_eq!(numbers.map(short), expected);
    }

    #[test]
    fn clock_shows_hours_when_there_are_some() {
        assert_eq!([0.4, 42.0, 725.0, 3762.0].map(clock), ["0:00", "0:42", "12:05", "1:02:42"]);
    }
}
