//! How many pixels are decoded at a time.

use std::sync::{Condvar, Mutex, PoisonError};

/// Those of all threads: up to some 800 MiB while they are decoded.
pub(super) static ALL: Budget = Budget::new(1 << 27);

/// Pixels that may be decoded at a time.
pub(super) struct Budget {
    most: u64,
    in_flight: Mutex<u64>,
    changed: Condvar,
}

/// Pixels that are being decoded, until this is dropped.
pub(super) struct Turn<'a> {
    of: &'a Budget,
    n_pixels: u64,
}

impl Budget {
    const fn new(most: u64) -> Self {
        Budget { most, in_flight: Mutex::new(0), changed: Condvar::new() }
    }

    /// Waits until the images that are decoded have few enough pixels for `n_pixels` more. One image alone may have any number.
    pub(super) fn wait(&self, n_pixels: u64) -> Turn<'_> {
        let in_flight = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = |in_flight: &mut u64| *in_flight > 0 && *in_flight + n_pixels > self.most;
        let mut in_flight =
            self.changed.wait_while(in_flight, is_full).unwrap_or_else(PoisonError::into_inner);
        *in_flight += n_pixels;
        Turn { of: self, n_pixels }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.of.in_flight.lock().unwrap_or_else(PoisonError::into_inner) -= self.n_pixels;
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn no_more_pixels_at_a_time_than_the_budget() {
        let budget = Budget::new(100);
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let work = |n_pixels| {
            let _turn = budget.wait(n_pixels);
            most.fetch_max(now.fetch_add(n_pixels, Ordering::SeqCst) + n_pixels, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(2));
            now.fetch_sub(n_pixels, Ordering::SeqCst);
        };
        std::thread::scope(|scope| {
            for thread in 0..8 {
                scope.spawn(move || (0..10).for_each(|_| work(20 + thread)));
            }
        });
        let most = most.into_inner();
        assert!((40..=100).contains(&most), "{most}");
    }

    /// It would wait for ever.
    #[test]
    fn an_image_beyond_the_budget_is_decoded_alone() {
        let budget = Budget::new(100);
        drop(budget.wait(1000));
        assert_eq!(*budget.in_flight.lock().unwrap(), 0);
    }
}
