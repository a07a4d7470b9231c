//! A panic, which no input is meant to bring about: one line that can be reported, and the exit code of other failures.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::{Mutex, PoisonError};

/// What becomes of panics in threads that work for a GPU.
enum OfGpu {
    /// They are printed.
    Printed,
    /// They are kept, the first of them in words.
    Kept(Option<String>),
    /// One was printed: those that follow come of it, in threads that waited for the first.
    Known,
}

static OF_GPU: Mutex<OfGpu> = Mutex::new(OfGpu::Printed);

/// Whether a panic in the code of `file` is one of a GPU or its driver, and to be printed.
fn is_printed(message: &str, file: &str) -> bool {
    if !is_of_gpu(message, file) {
        return true;
    }
    let mut of_gpu = OF_GPU.lock().unwrap_or_else(PoisonError::into_inner);
    match &mut *of_gpu {
        OfGpu::Printed => {
            *of_gpu = OfGpu::Known;
            true
        }
        OfGpu::Kept(first) => {
            first.get_or_insert_with(|| message.into());
            false
        }
        OfGpu::Known => false,
    }
}

/// What `work` on a GPU returns, or the message of the panic that it ends in, which is not printed.
#[cfg_attr(not(any(feature = "wgpu", test)), expect(dead_code, reason = "only wgpu opens GPUs"))]
pub fn kept<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    let set = |of_gpu| std::mem::replace(&mut *OF_GPU.lock().unwrap_or_else(PoisonError::into_inner), of_gpu);
    set(OfGpu::Kept(None));
    let result = caught(work);
    let message = match set(OfGpu::Printed) {
        OfGpu::Kept(Some(message)) => message,
        _ => "no message".into(),
    };
    result.ok_or(message)
}

/// Prints panics in a line, with a backtrace if RUST_BACKTRACE asks for it.
pub fn report_in_a_line() {
    panic::set_hook(Box::new(|info| {
        let (file, line) =
            info.location().map_or(("unknown", 0), |location| (location.file(), location.line()));
        let message = message(info);
        if !is_printed(&message, file) {
            return;
        }
        let text = describe(&message, file, line);
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

/// Whether a panic comes of a GPU: in the code that calls its driver, or in burn's where it reads what a GPU was to compute.
fn is_of_gpu(message: &str, file: &str) -> bool {
    let is_failed_read = file.contains("burn") && message.contains("buffer");
    is_failed_read || ["wgpu", "cubecl"].iter().any(|name| file.contains(name))
}

/// A message without the parts of burn's errors that say only that there is more to come.
fn without_frames(message: &str) -> &str {
    let message = message.split(" No backtrace available").next().unwrap_or(message);
    message.rsplit("Caused by: ").next().unwrap_or(message)
}

/// A panic in words. Drivers of GPUs fail by panics of the crates that call them, which is no bug of ours.
fn describe(message: &str, file: &str, line: u32) -> String {
    match is_of_gpu(message, file) {
        true => format!(
            "error: the GPU or its driver failed: {} ({file}:{line}); try a smaller data.batch_size, or --device flex",
            without_frames(message)
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
    fn a_gpu_without_memory_is_no_bug() {
        let message = "Error while reading data: An error happened during execution Caused by: An IO error happened Caused by: \
                       can't allocate buffer of size: 3288334336 No backtrace available";
        let text = describe(message, "/registry/burn-tensor-0.22.1/src/tensor/api/transaction.rs", 68);
        let expected = "error: the GPU or its driver failed: can't allocate buffer of size: 3288334336 (";
        assert!(text.starts_with(expected), "{text}");
    }

    #[test]
    fn a_gpu_that_fails_is_told_once() {
        let file = "/registry/cubecl-common-0.11.3/src/device/handle/channel.rs";
        assert_eq!(kept(|| is_printed("lost", file)), Ok(false));
        assert!(is_printed("lost", file));
        assert!(!is_printed("RecvError", file), "it follows from the first");
        assert!(is_printed("index out of bounds", "crates/lowbit/src/main.rs"));
    }

    #[test]
    fn a_panic_is_caught() {
        assert_eq!(caught(|| 3), Some(3));
        assert_eq!(caught(|| -> u8 { panic!("on purpose") }), None);
    }
}
