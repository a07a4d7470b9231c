//! Results on stdout.

use std::io::{self, ErrorKind, Write};

use anyhow::Context;

/// Prints a line. A reader that has left, such as `head`, has what it wanted.
pub fn print(line: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("failed to write the result"),
    }
}
