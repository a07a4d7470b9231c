//! Image data sets for the training of low-bit networks: finding, fetching and reading them, and serving them in
//! batches that are augmented and normalized in background threads.
//!
//! The batches of a run depend on data set, seed, epoch and step only, bit for bit: not on the number of threads, the
//! prefetch depth, or whether a run was interrupted.
//!
//! Images come from a [`Source`]: a data set of the catalog, which is held in memory as a whole, an [`ImageFolder`], whose images
//! are decoded when they are asked for, or your own.
//!
//! Image files are decoded by [`decode()`], and images of any size brought to one by a [`Geometry`], as torchvision does it.
//!
//! This crate knows no tensor and no model: batches are host buffers.
//!
//! ```
//! use std::sync::Arc;
//!
//! use lowbit_data::{DatasetName, LabelKind, Loader, LoaderConfig, Locations, Normalization, Split, open};
//!
//! let name = DatasetName::Digits;
//! let dataset = open(name, Split::Train, LabelKind::Fine, &Locations::default_with(None))?.dataset;
//! let config = LoaderConfig::training(32, 7, Normalization::of(name));
//! let loader = Loader::new(Arc::new(dataset), config)?;
//!
//! let mut n_images = 0;
//! for batch in loader.epoch(0, 0) {
//!     let batch = batch?;
//!     assert_eq!(batch.shape, [32, 1, 8, 8]);
//!     n_images += batch.labels.len();
//! }
//! assert_eq!(n_images, 1438 / 32 * 32);
//! # Ok::<(), lowbit_data::DataError>(())
//! ```

mod augment;
mod catalog;
mod cifar;
mod dataset;
mod decode;
mod digits;
mod error;
mod fetch;
mod file_kind;
mod folder;
mod geometry;
#[cfg(test)]
mod golden;
mod idx;
mod jitter;
mod lighting;
mod loader;
mod locate;
mod picture;
mod prefetch;
mod read;
mod source;
mod split;
mod verify;
mod warning;

pub use augment::{Augmentation, AugmentationDraw};
pub use catalog::{DatasetInfo, DatasetName, LabelKind, RemoteFile, Split};
pub use dataset::{Dataset, ImageShape, Normalization, Opened, open};
pub use decode::{DecodeError, DecodeLimits, decode, dimensions};
pub use error::{Action, ChecksumKind, DataError, FetchFailure, FolderProblem, Held};
pub use fetch::{FetchRequest, Progress, fetch};
pub use file_kind::FileKind;
pub use folder::{
    FolderImages, FolderPart, FolderSplit, ImageFolder, ImageIndex, ImageStats, MAX_IMAGE_FILE, PackSettings,
    Packed, Skipped, Spread, Unreadable, Unusable, contact_sheet, index_cache, one_line, pack,
};
pub use geometry::{CropBox, Geometry, RandomResizedCrop};
pub use idx::MAX_IMAGES;
pub use jitter::{Jitter, JitterDraw};
pub use loader::{Batch, EpochIter, Loader, LoaderConfig, batches_ahead};
pub use locate::{Locations, places_of};
pub use picture::{Dimensions, Picture};
pub use source::{Digest, Image, SampleError, SampleFailure, Source, SourceInfo, head};
pub use split::{Divided, Fractions, divide, in_turn, subset};
pub use verify::{FileReport, FileStatus, SplitReport, VerifyReport, verify};
pub use warning::{DataWarning, source_warnings, warnings};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
