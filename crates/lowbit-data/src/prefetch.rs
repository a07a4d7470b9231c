//! Values made ahead in background threads and taken in order.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Yields `make(start)`, `make(start + 1)`, ... `make(end - 1)` in this order. Threads compute at most `window`
/// values ahead of the one taken next. A panic of `make` is resumed in the thread that takes values. Dropping it
/// stops the threads after the value each is at, and waits for them.
pub(crate) struct Prefetch<T> {
    shared: Arc<Shared<T>>,
    threads: Vec<JoinHandle<()>>,
    /// Makes the values in the calling thread if there are no others.
    make: Arc<Make<T>>,
}

type Make<T> = dyn Fn(u64) -> T + Send + Sync;

struct Shared<T> {
    state: Mutex<State<T>>,
    /// A value is ready, or a thread panicked.
    ready: Condvar,
    /// A value was taken, or the threads are to stop.
    taken: Condvar,
}

struct State<T> {
    next_made: u64,
    next_taken: u64,
    end: u64,
    window: u64,
    ready: BTreeMap<u64, T>,
    stop: bool,
    panic: Option<Box<dyn Any + Send>>,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // `make` runs without the lock, so that a panic leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.lock().stop = true;
        self.taken.notify_all();
    }
}

impl<T: Send + 'static> Prefetch<T> {
    /// Starts `n_threads` threads, or as many as the system lets start; with 0 the values are made when they are taken.
    pub(crate) fn new(
        steps: std::ops::Range<u64>,
        n_threads: usize,
        window: usize,
        make: impl Fn(u64) -> T + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                next_made: steps.start,
                next_taken: steps.start,
                end: steps.end,
                window: window.max(1) as u64,
                ready: BTreeMap::new(),
                stop: false,
                panic: None,
            }),
            ready: Condvar::new(),
            taken: Condvar::new(),
        });
        let make: Arc<Make<T>> = Arc::new(make);
        let n_values = usize::try_from(steps.end.saturating_sub(steps.start)).unwrap_or(usize::MAX);
        let spawn = |_| {
            let (shared, make) = (Arc::clone(&shared), Arc::clone(&make));
            // A limit of processes costs time, but no value.
            thread::Builder::new().name("lowbit-data".into()).spawn(move || work(&shared, &*make)).ok()
        };
        let threads = (0..n_threads.min(n_values)).map_while(spawn).collect();
        Prefetch { shared, threads, make }
    }

    /// Values not yet taken.
    pub(crate) fn remaining(&self) -> u64 {
        let state = self.shared.lock();
        state.end - state.next_taken
    }
}

fn work<T>(shared: &Shared<T>, make: &Make<T>) {
    let mut state = shared.lock();
    loop {
        if state.stop || state.next_made == state.end {
            return;
        }
        if state.next_made >= state.next_taken + state.window {
            state = shared.taken.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let step = state.next_made;
        state.next_made += 1;
        drop(state);
        let value = panic::catch_unwind(AssertUnwindSafe(|| make(step)));
        state = shared.lock();
        match value {
            Ok(value) => {
                state.ready.insert(step, value);
            }
            Err(payload) => {
                state.panic = Some(payload);
                state.stop = true;
                shared.taken.notify_all();
            }
        }
        shared.ready.notify_one();
    }
}

impl<T: Send + 'static> Iterator for Prefetch<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        let mut state = self.shared.lock();
        if state.next_taken == state.end {
            return None;
        }
        if self.threads.is_empty() {
            let step = state.next_taken;
            state.next_taken += 1;
            drop(state);
            return Some((self.make)(step));
        }
        loop {
            if let Some(payload) = state.panic.take() {
                // Nothing more comes, also for a caller that catches the panic.
                state.next_taken = state.end;
                drop(state);
                panic::resume_unwind(payload);
            }
            let step = state.next_taken;
            if let Some(value) = state.ready.remove(&step) {
                state.next_taken += 1;
                drop(state);
                self.shared.taken.notify_all();
                return Some(value);
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            // A thread ends with an error only by a panic, which `work` has caught.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn values_come_in_order() {
        for (n_threads, window) in [(0, 1), (1, 1), (2, 1), (2, 3), (8, 4), (3, 100)] {
            let slow_in_the_beginning = |step| {
                thread::sleep(Duration::from_micros(if step % 4 == 0 { 300 } else { 0 }));
                step * step
            };
            let values: Vec<u64> = Prefetch::new(5..40, n_threads, window, slow_in_the_beginning).collect();
            assert_eq!(values, (5..40).map(|step| step * step).collect::<Vec<_>>(), "{n_threads} {window}");
        }
        assert_eq!(Prefetch::new(3..3, 2, 2, |step| step).next(), None);
    }

    #[test]
    fn no_more_than_the_window_is_made_ahead() {
        let n_made = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&n_made);
        let mut values = Prefetch::new(0..1000, 4, 3, move |step| {
            counter.fetch_add(1, Ordering::SeqCst);
            step
        });
        for taken in 1..=20 {
            values.next();
            thread::sleep(Duration::from_millis(2));
            assert!(n_made.load(Ordering::SeqCst) <= taken + 3);
        }
    }

    #[test]
    fn dropping_stops_and_joins_the_threads() {
        let token = Arc::new(());
        let held = Arc::clone(&token);
        let mut values = Prefetch::new(0..u64::MAX, 4, 8, move |step| {
            let _held = &held;
            thread::sleep(Duration::from_millis(1));
            step
        });
        values.next();
        drop(values);
        assert_eq!(Arc::strong_count(&token), 1, "a thread still lives");
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for n_threads in [0, 1, 3] {
            let mut values = Prefetch::new(0..10, n_threads, 4, |step| {
                assert!(step != 2, "broken at step {step}");
                step
            });
            let payload =
                panic::catch_unwind(AssertUnwindSafe(|| while values.next().is_some() {})).unwrap_err();
            let message = payload.downcast_ref::<String>().unwrap();
            assert!(message.contains("broken at step 2"), "{message}");
            if n_threads > 0 {
                assert_eq!(values.next(), None);
            }
        }
    }
}
