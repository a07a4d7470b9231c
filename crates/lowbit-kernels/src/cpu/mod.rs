//! Kernels over slices in host memory, parallel over the batch. Results do not depend on the number of threads.

pub mod activation;
mod codes;
pub mod conv;
pub mod fake_quantize;
pub mod integer;
pub mod limits;
pub mod norm;
pub mod packed;
mod simd;
mod transpose;
pub mod weights;

use std::error::Error;
use std::io;

pub use simd::instruction_sets;

/// Values that a task passes over, at least: fewer take less time than waking a thread for them.
const TASK_LEN: usize = 1 << 15;

/// How many items of `len` values a task has, at least.
fn task_items(len: usize) -> usize {
    TASK_LEN.div_ceil(len.max(1))
}

/// Stack of the threads that compute: what a main thread has on Linux.
const STACK_SIZE: usize = 8 << 20;

/// Does `work` on one of the threads that the kernels run on. From any other thread, every operation wakes one of these and
/// waits for it, which takes longer than many an operation of a small network.
///
/// For a program's main thread, once: `work` must not wait for another thread that computes, which waits for this one if
/// there are no more.
///
/// # Errors
/// If the threads cannot be started, as where a limit of processes is reached.
pub fn on_compute_thread<R: Send>(work: impl FnOnce() -> R + Send) -> io::Result<R> {
    let started = rayon::ThreadPoolBuilder::new().stack_size(STACK_SIZE).build_global();
    // If the program has set up the threads itself, these are used.
    if let Err(error) = started
        && let Some(reason) = error.source()
    {
        return Err(io::Error::other(reason.to_string()));
    }
    Ok(rayon::scope(|_| work()))
}
