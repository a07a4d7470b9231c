//! The vocabulary of low-bit networks, shared by every other crate: bit widths and precisions, integer code ranges,
//! scale granularity, grids of integers, packed codes, networks as graphs, and reproducible random streams.
//!
//! This crate knows neither burn nor any file: it can be used by an inference runtime as well as by training.
//!
//! ```
//! use lowbit_core::BitWidth;
//!
//! let two_bits = BitWidth::new(2)?;
//! assert_eq!(two_bits.levels(), 4);
//! assert_eq!(two_bits.signed_range().q_min, -2);
//! # Ok::<(), lowbit_core::BitWidthError>(())
//! ```

mod bits;
mod compute;
pub mod graph;
mod grid;
mod order;
mod packed;
mod seed;

pub use bits::{BitWidth, BitWidthError, CodeRange, Granularity, Precision};
pub use compute::{Compute, ComputeError};
pub use graph::{Graph, GraphBuilder, GraphError, LayerRole};
pub use grid::{CodeSet, GridError, IntegerGrid};
pub use order::{from_order_key, order_key};
pub use packed::{PackedCodes, PackedCodesError};
pub use seed::{Purpose, stream};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
