//! Kernels over slices in host memory, parallel over the batch. Results do not depend on the number of threads.

pub mod activation;
pub mod conv;
pub mod fake_quantize;
pub mod integer;
pub mod limits;
pub mod norm;
mod simd;
mod transpose;
pub mod weights;
