//! The threads of a model.

use std::thread::{Builder, JoinHandle, available_parallelism};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::LOWBIT_MAX_THREADS;
use crate::error::Error;

/// Stack of a thread, in bytes: what the main thread of a program has on Linux, which the runtime is tested with.
const STACK_SIZE: usize = 8 << 20;

/// Threads that compute, until they are dropped.
#[derive(Debug)]
pub struct Threads {
    /// `None` once they are told to end.
    pool: Option<ThreadPool>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts `n` threads; with 0 as many as this process may run at a time.
    pub fn start(n: usize) -> Result<Self, Error> {
        if n > LOWBIT_MAX_THREADS {
            return Err(Error::TooManyThreads { got: n, most: LOWBIT_MAX_THREADS });
        }
        let n = match n {
            0 => available_parallelism().map_or(1, |n| n.get().min(LOWBIT_MAX_THREADS)),
            n => n,
        };
        let mut threads = Self { pool: None, handles: Vec::with_capacity(n) };
        let started = ThreadPoolBuilder::new().num_threads(n).spawn_handler(|thread| {
            let builder = Builder::new().name(format!("lowbit {}", thread.index())).stack_size(STACK_SIZE);
            threads.handles.push(builder.spawn(|| thread.run())?);
            Ok(())
        });
        threads.pool = Some(started.build().map_err(|source| Error::Threads { n, source })?);
        Ok(threads)
    }

    /// Does `work` on one of the threads, and what it shares out on all of them.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.as_ref().expect("invariant: they run until they are dropped").install(work)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.handles.len()
    }
}

impl Drop for Threads {
    /// Waits for the threads to end, so that none is left when a model is freed: a program may then fork, and leak checkers see none.
    fn drop(&mut self) {
        drop(self.pool.take());
        for handle in self.handles.drain(..) {
            // The pool catches what panics in its threads.
            let _has_ended = handle.join();
        }
    }
}
