//! Weights that other programs wrote: PyTorch's checkpoints and safetensors.
//!
//! A [`WeightsFile`] lists the tensors of a file, [`Fit`] says which of them are a network's, by the names that torchvision has for
//! them.

mod container;
mod export;
mod load;
mod names;
mod pickles;

use std::fmt;
use std::io;
use std::path::PathBuf;

use lowbit_data::FileKind;
use serde::{Deserialize, Serialize};

use crate::text::{explain, one_line};

pub use container::{Container, TensorInfo, WeightsFile};
pub use export::{ExportedWeights, to_safetensors};
pub use load::load;
pub(crate) use load::tensors_for;
pub use names::{Fit, Fitting, Misfit, NewClassifier, Taken, fits, sizes};

/// Longest part of a message that comes from a file.
const LONGEST: usize = 200;

/// Names that a message lists of many.
const LISTED: usize = 4;

/// A file of weights that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// It cannot be read.
    #[error("it cannot be read: {}", explain(source))]
    Unreadable {
        /// Why.
        source: io::Error,
    },
    /// It is a module saved whole, of which a copy is read, and there is no place for the copy.
    #[error("it is a module saved whole, and a copy of it cannot be written to {}: {}; or save its weights alone, as torch.save(model.state_dict(), FILE) does", std::env::temp_dir().display(), explain(source))]
    Copy {
        /// Why.
        source: io::Error,
    },
    /// It is larger than any file of weights.
    #[error("it has {n_bytes} bytes, expected at most {most}")]
    TooLarge {
        /// Its bytes.
        n_bytes: u64,
        /// The most that are read.
        most: u64,
    },
    /// It is of another kind.
    #[error("it is {}, expected a checkpoint of PyTorch (.pth, .pt) or safetensors", kind(*_0))]
    OtherKind(FileKind),
    /// It is damaged, or more than a network's weights.
    #[error("it is damaged, or no file of weights: {problem}")]
    Damaged {
        /// What is wrong.
        problem: String,
    },
    /// It has no tensor.
    #[error("there is no tensor in it")]
    NoTensors,
    /// A tensor is not of real numbers.
    #[error("its tensor {} has type {dtype}, expected float32, float64, float16 or bfloat16", named(tensor))]
    Type {
        /// Name of the tensor.
        tensor: String,
        /// Its type.
        dtype: &'static str,
    },
    /// A tensor has a value that is not finite, or not in single precision.
    #[error("its tensor {} has a value that is not finite in single precision", named(tensor))]
    NotFinite {
        /// Name of the tensor.
        tensor: String,
    },
    /// It is for another number of classes, and the network is not trained.
    #[error(
        "it is for {file_classes} classes, this network for {classes}, and is not trained: its new classifier {layer} would stay as it was drawn; train the teacher along, or give one for these classes"
    )]
    Untrained {
        /// Path of the classifier.
        layer: String,
        /// Classes of the file.
        file_classes: usize,
        /// Classes of the network.
        classes: usize,
    },
    /// It is of another network.
    #[error("it is of another network: {_0}")]
    Misfit(Box<Misfit>),
}

impl WeightsError {
    fn damaged(problem: &(impl fmt::Display + ?Sized)) -> Self {
        Self::Damaged { problem: shortened(&one_line(&problem.to_string())) }
    }
}

/// The file that a network began with, as `run.json` has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitialWeights {
    /// Name of the network.
    pub network: String,
    /// The file.
    pub path: PathBuf,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// What holds its tensors.
    pub container: Container,
    /// Tensors that the network took.
    pub n_tensors: usize,
    /// The classifier that it did not take, as that of the file is for another number of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new_classifier: Option<NewClassifier>,
    /// Tensors of the file that are no part of the network, as an optimizer's.
    #[serde(default)]
    pub n_left_out: usize,
}

fn kind(kind: FileKind) -> String {
    match kind {
        FileKind::Unknown => "of a kind that is not known".into(),
        FileKind::Pickle => "a pickle without a place for tensors".into(),
        known => known.to_string(),
    }
}

/// A name of a file as a message has it.
fn named(name: &str) -> String {
    shortened(&one_line(&name))
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.into(),
    }
}

/// The first of `names`, and how many there are more.
fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let first: Vec<String> = names.iter().take(LISTED).map(|name| named(name.as_ref())).collect();
    match names.len().saturating_sub(LISTED) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// A shape as in "64x3x7x7".
pub(crate) fn dims(shape: &[usize]) -> String {
    match shape {
        [] => "a scalar".into(),
        _ => shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x"),
    }
}
