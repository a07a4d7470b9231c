//! Images of a folder, decoded when they are asked for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use sha2::{Digest as _, Sha256};

use super::index::ImageIndex;
use crate::{
    DataError, DecodeLimits, Digest, Image, Normalization, Picture, SampleError, Source, SourceInfo, decode,
};

/// The images of one part of a folder, which are decoded when they are asked for.
#[derive(Debug)]
pub struct FolderImages {
    name: String,
    index: Arc<ImageIndex>,
    /// Names of all classes.
    classes: Vec<String>,
    /// For each class of the index, its place among all; `None` if they are the same.
    class_of: Option<Vec<u16>>,
    limits: DecodeLimits,
    digest: OnceLock<Digest>,
}

/// An image that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// The part of the folder, as in "val"; empty for one whole.
    pub part: &'static str,
    /// Its index in the part.
    pub image: usize,
    /// Its path below the part's folder.
    pub path: String,
    /// What is wrong, in one line.
    pub reason: String,
}

impl FolderImages {
    /// The images of `index`, whose classes are all among `classes`; else those that are not.
    pub(super) fn new(name: String, index: Arc<ImageIndex>, classes: &[String]) -> Result<Self, Vec<String>> {
        let known: HashMap<&String, u16> =
            classes.iter().enumerate().map(|(label, class)| (class, label as u16)).collect();
        let place = |class: &String| known.get(class).copied().ok_or_else(|| class.clone());
        let (places, unknown): (Vec<_>, Vec<_>) = index.classes().iter().map(place).partition(Result::is_ok);
        if !unknown.is_empty() {
            return Err(unknown.into_iter().filter_map(Result::err).collect());
        }
        let class_of = (index.classes() != classes).then(|| places.into_iter().flatten().collect());
        Ok(FolderImages {
            name,
            index,
            classes: classes.to_vec(),
            class_of,
            limits: DecodeLimits::default(),
            digest: OnceLock::new(),
        })
    }

    /// Where its images are.
    pub fn index(&self) -> &ImageIndex {
        &self.index
    }

    /// Decodes every image on `n_threads` threads, and gives it to `seen` with its index; those that cannot be decoded are
    /// returned, in order. Ends early once `seen` says so by `false`.
    pub fn decode_all(
        &self,
        n_threads: usize,
        seen: impl Fn(usize, Option<&Picture>) -> bool + Sync,
    ) -> Vec<(usize, String)> {
        let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || {
            loop {
                let image = next.fetch_add(1, Ordering::Relaxed);
                if image >= self.index.len() {
                    return;
                }
                let decoded = self.picture(image);
                let goes_on = seen(image, decoded.as_ref().ok());
                if let Err(error) = decoded {
                    let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                    failures.push((image, error.to_string()));
                }
                if !goes_on {
                    next.store(self.index.len(), Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..n_threads {
                // A limit of threads costs time alone.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let mut failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        failures.sort_unstable();
        failures
    }
}

impl Source for FolderImages {
    fn info(&self) -> SourceInfo {
        SourceInfo {
            name: self.name.clone(),
            n_samples: self.index.len(),
            n_classes: self.classes.len(),
            shape: None,
            max_value: u8::MAX,
            normalization: Some(Normalization::imagenet()),
        }
    }

    fn label(&self, sample_idx: usize) -> u16 {
        let label = self.index.label(sample_idx);
        self.class_of.as_ref().map_or(label, |class_of| class_of[usize::from(label)])
    }

    fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
        Ok(self.picture(sample_idx)?.into_image())
    }

    fn picture(&self, sample_idx: usize) -> Result<Picture, SampleError> {
        let in_words = |error: DataError| -> SampleError {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            format!("failed to {error}{}", source.unwrap_or_default()).into()
        };
        let bytes = self.index.read(sample_idx).map_err(in_words)?;
        let picture = decode(&bytes, &self.limits)
            .map_err(|error| format!("{}: {error}", super::index::one_line(&self.index.path(sample_idx))))?;
        Ok(picture)
    }

    fn class_names(&self) -> Option<&[String]> {
        Some(&self.classes)
    }

    fn digest(&self) -> Result<Digest, DataError> {
        if let Some(digest) = self.digest.get() {
            return Ok(digest.clone());
        }
        let mut digest = self.index.digest()?;
        if self.class_of.is_some() {
            // The index knows the names of its own classes; their labels follow from those of all.
            let mut hasher = Sha256::new();
            for text in std::iter::once(&digest.to_string()).chain(&self.classes) {
                hasher.update((text.len() as u64).to_le_bytes());
                hasher.update(text);
            }
            let digits: String = format!("{:x}", hasher.finalize()).chars().take(32).collect();
            digest = Digest::Other(format!("images {digits}"));
        }
        Ok(self.digest.get_or_init(|| digest).clone())
    }

    /// Nothing is decoded for this.
    fn check(&self) -> Result<(), DataError> {
        Ok(())
    }
}
