//! The threads that compute.

use std::error::Error;
use std::io;

/// Values that a task passes over, at least: fewer take less time than waking a thread for them.
const TASK_LEN: usize = 1 << 15;

/// How many items of `len` values a task has, at least.
pub(crate) fn task_items(len: usize) -> usize {
    TASK_LEN.div_ceil(len.max(1))
}

/// Stack of the threads that compute: what a main thread has on Linux.
const STACK_SIZE: usize = 8 << 20;

/// Threads that can be asked for at most. Where there is no room for far more, a thread may start and then end the process, as
/// the standard library panics if it finds none for its signal handlers.
const MAX_THREADS: usize = 1024;

/// Does `work` on one of the threads that the kernels run on. From any other thread, every operation wakes one of these and
/// waits for it, which takes longer than many an operation of a small network.
///
/// For a program's main thread, once: `work` must not wait for another thread that computes, which waits for this one if
/// there are no more.
///
/// # Errors
/// If the threads cannot be started, as where a limit of processes is reached, or more than 1024 are asked for.
pub fn on_compute_thread<R: Send>(work: impl FnOnce() -> R + Send) -> io::Result<R> {
    let asked_for = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse::<usize>().ok());
    if let Some(n) = asked_for.filter(|&n| n > MAX_THREADS) {
        return Err(io::Error::other(format!("{n} threads are asked for, at most {MAX_THREADS} can be")));
    }
    let started = rayon::ThreadPoolBuilder::new().stack_size(STACK_SIZE).build_global();
    // If the program has set up the threads itself, these are used.
    if let Err(error) = started
        && let Some(reason) = error.source()
    {
        return Err(io::Error::other(reason.to_string()));
    }
    Ok(rayon::scope(|_| work()))
}
