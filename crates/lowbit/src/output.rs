//! The result of a command on stdout.

use std::io::{self, IsTerminal, Write};

pub use lowbit_report::units::{clock, percent as percent_exact};
use lowbit_train::{escaped, is_unseen};
use serde::Serialize;
use terminal_size::{Height, Width};

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

/// `value` as JSON, in which a terminal finds nothing to obey or to hide either: JSON allows DEL, for one.
pub fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let escaped = |c: char| match c {
        c if is_unseen(c) => {
            c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect()
        }
        c => c.to_string(),
    };
    Ok(serde_json::to_string(value)?.chars().map(escaped).collect())
}

/// Columns of the terminal on stdout; `None` in a pipe or a file, where lines are whole.
pub fn stdout_columns() -> Option<usize> {
    let stdout = io::stdout();
    stdout.is_terminal().then(|| columns(terminal_size::terminal_size_of(&stdout)))?
}

/// Columns of the terminal on stderr, as [`stdout_columns`].
pub fn stderr_columns() -> Option<usize> {
    let stderr = io::stderr();
    stderr.is_terminal().then(|| columns(terminal_size::terminal_size_of(&stderr)))?
}

/// Columns of a terminal of this size. COLUMNS counts only where the size is not known: a shell that exports it does not
/// change it with the window.
fn columns(terminal: Option<(Width, Height)>) -> Option<usize> {
    let exported = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    terminal.map(|(Width(columns), _)| columns.into()).or_else(exported).filter(|&columns| columns > 0)
}

/// `start` and `text`, broken at spaces into lines of at most `columns`, each under the first word of the text if there is
/// room for that.
pub fn wrapped(start: &str, text: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return format!("{start}{text}") };
    let length = |text: &str| text.chars().count();
    let indent = if length(start) * 5 <= columns * 2 { length(start) } else { 2 };
    let mut lines = String::from(start);
    let (mut column, mut is_first) = (length(start), true);
    for word in text.split(' ') {
        let needed = length(word) + usize::from(!is_first);
        if column + needed > columns && column > indent {
            lines.truncate(lines.trim_end_matches(' ').len());
            lines += &format!("\n{:indent$}{word}", "");
            column = indent + length(word);
        } else {
            lines += &format!("{}{word}", if is_first { "" } else { " " });
            column += needed;
        }
        is_first = false;
    }
    lines
}

/// The first of `lines` that fits in `columns`, or the last.
pub fn fitting(lines: impl IntoIterator<Item = String>, columns: Option<usize>) -> String {
    let mut shortest = String::new();
    for line in lines {
        shortest = line;
        if columns.is_none_or(|columns| shortest.chars().count() <= columns) {
            break;
        }
    }
    shortest
}

/// `table`, a plan of layers, without those of its columns that there is no room for, the least important first.
pub fn plan_in(table: &str, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return table.into() };
    let n_rows = table.lines().take_while(|line| !line.starts_with("packed ")).count();
    let mut rows: Vec<Vec<char>> = table.lines().take(n_rows).map(|line| line.chars().collect()).collect();
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    rows.iter_mut().for_each(|row| row.resize(width, ' '));
    let is_too_wide = |rows: &[Vec<char>]| rows.first().is_some_and(|row| row.len() > columns);
    if is_too_wide(&rows) {
        squeeze(&mut rows);
    }
    for name in ["weights", "bit-ops", "params", "method"] {
        if is_too_wide(&rows) {
            remove_column(&mut rows, name);
            squeeze(&mut rows);
        }
    }
    let rows: Vec<String> =
        rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_string()).collect();
    let rest = table.lines().skip(n_rows).map(|line| wrapped("", line, Some(columns)));
    rows.into_iter().chain(rest).collect::<Vec<_>>().join("\n")
}

/// Whether every row has a space at `place`, as between columns.
fn is_gap(rows: &[Vec<char>], place: usize) -> bool {
    rows.iter().all(|row| row.get(place).is_none_or(|&c| c == ' '))
}

/// Leaves a single space between the columns of a table.
fn squeeze(rows: &mut [Vec<char>]) {
    let width = rows.first().map_or(0, Vec::len);
    let is_kept = |place: usize| !is_gap(rows, place) || place > 0 && !is_gap(rows, place - 1);
    let kept: Vec<usize> = (0..width).filter(|&place| is_kept(place)).collect();
    for row in rows {
        *row = kept.iter().map(|&place| row[place]).collect();
    }
}

/// Empties the column of a table with this `name` in its first row.
fn remove_column(rows: &mut [Vec<char>], name: &str) {
    let header: String = rows.first().map(|row| row.iter().collect()).unwrap_or_default();
    let Some(place) = header.find(name) else { return };
    let start = (0..place).rev().find(|&place| is_gap(rows, place)).unwrap_or(0);
    let end = (place..header.len()).find(|&place| is_gap(rows, place)).unwrap_or(header.len());
    rows.iter_mut().for_each(|row| row[start..end].fill(' '));
}

/// A fraction in percent, at most five characters wide, for progress.
pub fn percent(fraction: f64) -> String {
    match format!("{:.1}%", 100.0 * fraction) {
        full if full == "100.0%" => "100%".into(),
        other => other,
    }
}

/// The images of a training, in words.
pub fn images(n_train: usize, n_validation: usize, n_test: usize) -> String {
    match n_validation {
        0 => format!("{n_train} training and {n_test} test images"),
        n => format!("{n_train} training, {n} validation and {n_test} test images"),
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
    fn json_stays_json() {
        let text = "\u{1b}[31m\u{7f}\u{9b}é\n\"\u{202e}\u{e0041}";
        let written = json(&text).unwrap();
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        assert!(!written.contains(is_unseen), "{written:?}");
    }

    #[test]
    fn text_is_wrapped_at_words() {
        let text = "an old checkpoint cannot be removed";
        assert_eq!(wrapped("warning: ", text, None), format!("warning: {text}"));
        assert_eq!(wrapped("warning: ", text, Some(44)), format!("warning: {text}"));
        assert_eq!(
            wrapped("warning: ", text, Some(30)),
            "warning: an old checkpoint\n         cannot be removed"
        );
        // No room for an indent as deep as the first word.
        assert_eq!(
            wrapped("warning: ", text, Some(20)),
            "warning: an old\n  checkpoint cannot\n  be removed"
        );
        assert_eq!(wrapped("a: ", "unbreakable, it is", Some(9)), "a: unbreakable,\n   it is");
    }

    #[test]
    fn columns_that_have_no_room_are_left_out() {
        let table = "layer weights   params    W method  bit-ops    packed\n\
                     stem  16x1x3x3     144 fp32 -         9.44M     576 B\n\
                     fc    10x64         14    2 dorefa    655k   2.54 KiB\n\
                     total              158                          3 KiB\n\
                     packed 2x";
        assert_eq!(plan_in(table, None), table);
        assert_eq!(plan_in(table, Some(54)), table);
        let headers = |columns| -> Vec<String> {
            let narrow = plan_in(table, Some(columns));
            assert!(narrow.lines().all(|line| line.chars().count() <= columns), "{columns}: {narrow}");
            narrow.lines().next().unwrap_or_default().split_whitespace().map(String::from).collect()
        };
        assert_eq!(headers(50), ["layer", "weights", "params", "W", "method", "bit-ops", "packed"]);
        assert_eq!(headers(40), ["layer", "params", "W", "method", "packed"]);
        assert_eq!(headers(22), ["layer", "W", "packed"]);
        let narrowest = "layer    W   packed\n\
                         stem  fp32    576 B\n\
                         fc       2 2.54 KiB\n\
                         total         3 KiB\n\
                         packed 2x";
        assert_eq!(plan_in(table, Some(22)), narrowest);
    }

    #[test]
    fn percentages_are_narrow() {
        assert_eq!([0.0, 0.8713, 0.9999, 1.0].map(percent), ["0.0%", "87.1%", "100%", "100%"]);
    }
}
