//! Errors of models.

use std::io;
use std::path::PathBuf;

use crate::file::VERSION;

/// A packed network that is none, or cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PackedError {
    /// The file cannot be read.
    #[error("model {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is larger than any model.
    #[error("it has {n_bytes} bytes, expected at most {most}")]
    TooManyBytes {
        /// Its bytes.
        n_bytes: u64,
        /// The most that are read.
        most: u64,
    },
    /// It is something else.
    #[error("it is {_0}, expected a packed model, as `lowbit export` writes it")]
    OtherKind(String),
    /// It has a version that this program does not know.
    #[error(
        "it is a packed model of version {got}, this program reads version {VERSION}: export its run again with this lowbit"
    )]
    Version {
        /// Its version.
        got: u32,
    },
    /// An operation does not have what it needs.
    #[error("its layer {path:?}: {problem}")]
    Layer {
        /// Path of the layer.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// An operation has more values than a machine is asked to hold.
    #[error("its operation {node} is too large: {problem}")]
    TooLarge {
        /// Index of the node in its graph.
        node: usize,
        /// What is too large.
        problem: String,
    },
    /// Something else is wrong with it.
    #[error("{_0}")]
    Other(String),
}

/// Images that a model cannot be run on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ImagesError {
    /// Another number of values.
    #[error("{got} values are no whole number of images of {expected} values each")]
    Length {
        /// Values that were given.
        got: usize,
        /// Values of an image.
        expected: usize,
    },
    /// A value that is not finite.
    #[error("the values of images are finite, got {got} (value {place})")]
    NotFinite {
        /// Its place.
        place: usize,
        /// The value.
        got: f32,
    },
}
