//! Runs trained low-bit networks on CPUs.
//!
//! A [`PackedNetwork`] is a trained network as data: its graph, the codes of its weights, what its quantizers learned. It is read from a
//! packed file, which `lowbit export` writes, and nothing of a training is needed for it. A [`Model`] is that network made ready to run:
//! where weights and input of a layer are codes, sums are of integers, and a convolution, its normalization and the quantizer after
//! them are one comparison of a sum with thresholds. What is in full precision is computed by the kernels that training has for it.
//!
//! What it does not do: no training, no files of images, no other devices than CPUs.
//!
//! ```no_run
//! use lowbit_runtime::Model;
//!
//! let model = Model::load("digits.lowbit")?;
//! let [channels, height, width] = model.input_shape();
//! // One image, its pixels normalized: see `Info`.
//! let logits = model.run(&vec![0.0; channels * height * width])?;
//! assert_eq!(logits.len(), model.n_outputs());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod error;
mod file;
mod lower;
mod model;
mod packed;
#[doc(hidden)]
pub mod samples;

pub use error::{ImagesError, PackedError};
pub use file::LayerBytes;
pub use model::{LayerCounts, Model, OperationTime};
pub use packed::{BatchNorm, Info, Layer, MAX_VALUES, Norm, PackedNetwork, Quantizer, Weight};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
