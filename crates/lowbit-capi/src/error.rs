//! What a call can fail of.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::path::PathBuf;

use lowbit_runtime::{ImagesError, PackedError};

use crate::LowbitStatus;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pointer that must not be null.
    #[error("`{argument}` is null")]
    Null {
        /// Name of the argument.
        argument: &'static str,
    },
    /// A pointer that lies between the values of its type.
    #[error("`{argument}` is at {address:#x}, which is no multiple of {align} as its type asks for")]
    Misaligned {
        /// Name of the argument.
        argument: &'static str,
        /// The address.
        address: usize,
        /// What it must be a multiple of.
        align: usize,
    },
    /// A path in another encoding.
    #[error("`path` is not UTF-8: {}", path.display())]
    NotUtf8 {
        /// The path; what is not UTF-8 is replaced.
        path: PathBuf,
    },
    /// More than any memory holds.
    #[error("`{argument}` is {got}, more than there can be in memory")]
    TooMany {
        /// Name of the argument.
        argument: &'static str,
        /// Its value.
        got: usize,
    },
    /// Room for another number of logits.
    #[error("`n_logits` is {got}, expected {expected}: {n_outputs} for each of {n_images} images")]
    Logits {
        /// Logits that there is room for.
        got: usize,
        /// Logits that there are.
        expected: usize,
        /// Outputs of the model.
        n_outputs: usize,
        /// Images that were given.
        n_images: usize,
    },
    /// More threads than are started.
    #[error("`n_threads` is {got}, expected at most {most}")]
    TooManyThreads {
        /// Threads that are asked for.
        got: usize,
        /// The most that are started.
        most: usize,
    },
    /// Threads cannot be started.
    #[error("failed to start {n} threads: {source}")]
    Threads {
        /// How many.
        n: usize,
        /// Why.
        source: rayon::ThreadPoolBuildError,
    },
    /// A file cannot be read, or is no model.
    #[error("{}{source}", in_file(path, source))]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PackedError,
    },
    /// Bytes are no model.
    #[error("model of {n_bytes} bytes in memory: {source}")]
    Bytes {
        /// How many bytes.
        n_bytes: usize,
        /// Why.
        source: PackedError,
    },
    /// Images that a model cannot be run on.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// A bug.
    #[error("a bug of lowbit: {message}; please report it")]
    Panic {
        /// What the panic says.
        message: String,
    },
}

/// The beginning of a message, where it does not name the file itself.
fn in_file(path: &std::path::Path, source: &PackedError) -> String {
    match source {
        PackedError::Unreadable { .. } => String::new(),
        _ => format!("model {}: ", path.display()),
    }
}

impl Error {
    /// Of what is caught of a panic.
    pub fn panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        Self::Panic { message: text.unwrap_or("a panic without a message").into() }
    }

    /// What the caller gets.
    pub fn status(&self) -> LowbitStatus {
        match self {
            Self::Null { .. }
            | Self::Misaligned { .. }
            | Self::NotUtf8 { .. }
            | Self::TooMany { .. }
            | Self::Logits { .. }
            | Self::TooManyThreads { .. } => LowbitStatus::InvalidArgument,
            Self::File { source: PackedError::Unreadable { .. }, .. } => LowbitStatus::Unreadable,
            Self::File { .. } | Self::Bytes { .. } => LowbitStatus::InvalidModel,
            Self::Images(_) => LowbitStatus::InvalidImages,
            Self::Threads { .. } => LowbitStatus::NoThreads,
            Self::Panic { .. } => LowbitStatus::Internal,
        }
    }
}

thread_local! {
    /// The message of the last call on this thread that failed.
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps the message of an error for [`last`].
pub fn keep(error: &Error) {
    // A string of C ends at the first zero.
    let message = CString::new(error.to_string().replace('\0', "\\0"));
    let message = message.expect("invariant: its zeros are replaced");
    // A thread that ends may have no more place for it; its caller has the status.
    let _is_kept = LAST.try_with(|last| last.replace(message));
}

/// The message that was kept last on this thread, until the next one is.
pub fn last() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}
