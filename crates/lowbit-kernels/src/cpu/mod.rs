//! Kernels over slices in host memory, parallel over the batch. Results do not depend on the number of threads.

pub mod conv;
pub mod fake_quantize;
pub mod norm;
mod simd;
