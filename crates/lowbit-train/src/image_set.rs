//! By what the images of a run are told from others.

use std::fmt;

use lowbit_data::Digest;
use serde::{Deserialize, Serialize};

/// The images of a run, as far as the recipe takes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunData {
    /// Those that it is trained on.
    pub train: ImageSet,
    /// Those that it is tested on.
    pub test: ImageSet,
}

/// By what a set of images is told from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSet {
    /// Name of their source, if the program gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The pixel value that stands for 1.0, if the program gave the source: it is no part of the digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_value: Option<u8>,
    /// Images.
    pub n_images: usize,
    /// What is told by their content: in `run.json`, `crc32` of labels and pixels, or a `digest` that their source makes.
    #[serde(flatten)]
    pub digest: Digest,
}

impl fmt::Display for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.n_images)?;
        if let Some(name) = &self.source {
            write!(f, " of {name:?}")?;
        }
        if let Some(max_value) = self.max_value {
            write!(f, " (white is {max_value})")?;
        }
        write!(f, " with {}", self.digest)
    }
}
