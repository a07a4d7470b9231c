//! The result of a command on stdout.

use std::io::{self, Write};

use serde::Serialize;

/// Prints `text` and a line break. A reader that has left, such as `head`, has what it wanted.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    written(writeln!(stdout, "{}", escaped(text.trim_end())).and_then(|()| stdout.flush()))
}

/// How a result was written to stdout. A reader that has left is no failure.
pub fn written(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(error).context("failed to write the result"))
        }
        _ => Ok(()),
    }
}

/// Prints `value` as one line of JSON.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&json(value)?)
}

/// `value` as JSON, in which a terminal finds no control characters either: JSON allows some, as DEL.
fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let escaped = |c: char| match c {
        c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    };
    Ok(serde_json::to_string(value)?.chars().map(escaped).collect())
}

/// `text` with control characters, which names of files may have, written out: a terminal would obey them. Line breaks and
/// tabs stay.
pub fn escaped(text: &str) -> String {
    let escaped = |c: char| match c {
        c if c.is_control() && c != '\n' && c != '\t' => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// A fraction in percent with two decimals, for results.
pub fn percent_exact(fraction: f64) -> String {
    format!("{:.2}%", 100.0 * fraction)
}

/// A fraction in percent, at most five characters wide, for progress.
pub fn percent(fraction: f64) -> String {
    match format!("{:.1}%", 100.0 * fraction) {
        full if full == "100.0%" => "100%".into(),
        other => other,
    }
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

/// A number of things.
pub fn counted(n: u64, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        assert_eq!(escaped("no \t\u{1b}[31mé\r\n\u{9b}1m"), "no \t\\u{1b}[31mé\\r\n\\u{9b}1m");
    }

    #[test]
    fn json_stays_json() {
        let text = "\u{1b}[31m\u{7f}\u{9b}é\n\"";
        let written = json(&text).unwrap();
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        assert!(!written.contains(char::is_control), "{written:?}");
    }

    #[test]
    fn percentages_are_narrow() {
        assert_eq!([0.0, 0.8713, 0.9999, 1.0].map(percent), ["0.0%", "87.1%", "100%", "100%"]);
    }

    #[test]
    fn clock_shows_hours_when_there_are_some() {
        assert_eq!([0.4, 42.0, 725.0, 3762.0].map(clock), ["0:00", "0:42", "12:05", "1:02:42"]);
    }
}
