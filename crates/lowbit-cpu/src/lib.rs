//! CPU kernels of low-bit networks: functions of slices, forward and backward, parallel over the threads of rayon.
//!
//! Convolution in single precision, bf16 and codes, batch normalization with the activation that follows it, pooling, fake
//! quantization, packed codes. Results do not depend on the number of threads. The instructions are those of the processor that it runs on.
//!
//! What it does not do: no tensors, no burn, no gradients by itself, no state but the threads and their buffers.
//!
//! Sums of products of codes are exact:
//!
//! ```
//! use lowbit_cpu::conv::ConvShape;
//! use lowbit_cpu::integer::{CodeBounds, IntegerConv};
//!
//! let shape = ConvShape {
//!     batch: 1,
//!     in_channels: 1,
//!     out_channels: 1,
//!     size: [3, 3],
//!     kernel: [3, 3],
//!     stride: [1, 1],
//!     padding: [1, 1],
//!     groups: 1,
//! };
//! // Codes of 2 bits, one of the weights worth 0.5, one of the image 0.25.
//! let weight = [1, -1, 1, 0, 2, 0, -1, 1, -1].map(|code: i8| code as u8);
//! let image = [3, 0, 1, 2, 3, 0, 1, 1, 2];
//! let bounds = CodeBounds { activation: 3, weight: 2 };
//! let kernel = IntegerConv::new(shape, &weight, &[0.5], bounds).expect("no sum is beyond 32 bits");
//! let out = kernel.forward(&image, 0.25);
//! assert_eq!(out[4], 1.0);
//! ```

mod activation;
#[cfg(feature = "allocator")]
pub mod allocator;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod bf16;
pub mod codes;
pub mod conv;
pub mod fake_quantize;
pub mod formula;
pub mod gradient;
mod instructions;
pub mod integer;
#[doc(hidden)]
pub mod limits;
pub mod norm;
mod output;
pub mod packed;
pub mod pool;
pub mod program;
pub mod relu;
pub mod sum;
mod threads;
mod tile;
mod transpose;
pub mod weights;
pub mod words;

pub use instructions::{WITHOUT, instruction_sets, left_out, parse_left_out};
pub use threads::on_compute_thread;
use threads::task_items;

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
