//! By what the images of a run are told from others.

use std::fmt;

use lowbit_data::Digest;
use serde::{Deserialize, Serialize};

/// The images of a run, as far as the recipe takes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunData {
    /// Those that it is trained on.
    pub train: ImageSet,
    /// Those that are held back from training, by which something may be chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ImageSet>,
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
    /// The folder that they are from, as in "val", if they are those of a folder of images; "" if it is not divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// Images.
    pub n_images: usize,
    /// What is told by their content: in `run.json`, `crc32` of labels and pixels, or a `digest` that their source makes.
    #[serde(flatten)]
    pub digest: Digest,
}

/// Images that were passed over, as they cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedImages {
    /// Their number.
    pub n: u64,
    /// The first thousand of them, with the reason.
    pub files: Vec<String>,
}

impl fmt::Display for SkippedImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, first) = (self.n, self.files.first().map_or("", String::as_str));
        match n {
            1 => write!(f, "1 image cannot be read and is passed over: {first}"),
            n => write!(f, "{n} images cannot be read and are passed over, the first is {first}"),
        }
    }
}

impl fmt::Display for ImageSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.n_images)?;
        if let Some(folder) = self.folder.as_ref().filter(|folder| !folder.is_empty()) {
            write!(f, " in {folder}")?;
        }
        if let Some(name) = &self.source {
            write!(f, " of {name:?}")?;
        }
        if let Some(max_value) = self.max_value {
            write!(f, " (white is {max_value})")?;
        }
        write!(f, " with {}", self.digest)
    }
}
