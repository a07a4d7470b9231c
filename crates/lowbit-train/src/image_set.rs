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
    /// Images.
    pub n_images: usize,
    /// What is told by their content: in `run.json`, `crc32` of labels and pixels, or a `digest` that their source makes.
    #[serde(flatten)]
    pub digest: Digest,
}

impl fmt::Display for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(name) => write!(f, "{} of {name:?} with {}", self.n_images, self.digest),
            None => write!(f, "{} with {}", self.n_images, self.digest),
        }
    }
}
