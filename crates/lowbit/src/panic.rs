//! A panic, which no input is meant to bring about: one line that can be reported, and the exit code of other failures.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};

/// Prints panics in a line, with a backtrace if RUST_BACKTRACE asks for it.
pub fn report_in_a_line() {
    panic::set_hook(Box::new(|info| {
        let (file, line) =
            info.location().map_or(("unknown", 0), |location| (location.file(), location.line()));
        let text = describe(&message(info), file, line);
        let backtrace = Backtrace::capture();
        // Nobody is left to tell if stderr is closed.
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "{text}");
        if backtrace.status() == BacktraceStatus::Captured {
            let _ = write!(stderr, "{backtrace}");
        }
    }));
}

/// What `work` returns, or `None` if it panics.
pub fn caught<R>(work: impl FnOnce() -> R) -> Option<R> {
    // Nothing of what it used is used again.
    panic::catch_unwind(AssertUnwindSafe(work)).ok()
}

fn message(info: &PanicHookInfo<'_>) -> String {
    let text = info.payload_as_str().unwrap_or("no message");
    // Messages of assertions and of drivers have several lines.
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A panic in words. Drivers of GPUs fail by panics of the crates that call them, which is no bug of ours.
fn describe(message: &str, file: &str, line: u32) -> String {
    let is_of_gpu = ["wgpu", "cubecl", "burn-cubecl"].iter().any(|name| file.contains(name));
    match is_of_gpu {
        true => format!(
            "error: the GPU or its driver failed: {message} ({file}:{line}); try a smaller data.batch_size, or --device flex"
        ),
        false => format!(
            "error: this is a bug in lowbit, please report it with the command and this line: {message} ({file}:{line}, {})",
            crate::origin::here().build()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_are_told_in_a_line() {
        let text = describe("index out of bounds", "crates/lowbit/src/main.rs", 7);
        assert!(text.contains("this is a bug in lowbit"), "{text}");
        assert!(text.contains("index out of bounds (crates/lowbit/src/main.rs:7, lowbit "), "{text}");
        let text = describe("Buffer size 1 exceeds the limit", "/registry/wgpu-27.0.0/src/lib.rs", 1);
        assert!(
            text.starts_with("error: the GPU or its driver failed: Buffer size 1 exceeds the limit"),
            "{text}"
        );
    }

    #[test]
    fn a_panic_is_caught() {
        assert_eq!(caught(|| 3), Some(3));
        assert_eq!(caught(|| -> u8 { panic!("on purpose") }), None);
    }
}
