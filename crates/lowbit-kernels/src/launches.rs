//! Which kernels a GPU is given, those of burn too, for tests and benchmarks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use burn_cubecl::cubecl;
use cubecl::future::block_on;
use cubecl::logging::{LaunchObservation, LaunchObserver, ProfileDuration, TimingMethod, TimingRequest};

/// Counts the kernels that this process launches while it lives, whatever the device and the thread. A launch of nothing is none.
#[derive(Debug)]
pub struct Launches {
    seen: Arc<Seen>,
    _observation: LaunchObservation,
}

/// What was launched since the last look.
#[derive(Debug, Default)]
pub struct Launched {
    /// How often each kernel was launched, by its name without the path.
    pub kernels: BTreeMap<String, u64>,
    /// The time that they took on the device together, if it was asked for.
    pub duration: Duration,
}

impl Launched {
    /// The number of launches.
    pub fn total(&self) -> u64 {
        self.kernels.values().sum()
    }
}

#[derive(Default)]
struct Seen {
    is_timed: bool,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    profiles: Mutex<Vec<ProfileDuration>>,
    resolved: Mutex<Duration>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seen").field("is_timed", &self.is_timed).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LaunchObserver for Seen {
    fn launched(&self, kernel: &'static str) {
        *lock(&self.counts).entry(kernel).or_default() += 1;
    }

    fn timing(&self) -> TimingRequest {
        if self.is_timed { TimingRequest::Deferred } else { TimingRequest::None }
    }

    fn profiled(&self, _: &'static str, profile: ProfileDuration) {
        lock(&self.profiles).push(profile);
    }

    fn timed(&self, _: &'static str, duration: Duration, _: TimingMethod) {
        *lock(&self.resolved) += duration;
    }
}

impl Launches {
    /// Counts from now on.
    pub fn count() -> Self {
        Self::observe(Seen::default())
    }

    /// Counts and times from now on, which takes the host longer.
    pub fn time() -> Self {
        Self::observe(Seen { is_timed: true, ..Seen::default() })
    }

    fn observe(seen: Seen) -> Self {
        let seen = Arc::new(seen);
        Self { _observation: LaunchObservation::new(seen.clone()), seen }
    }

    /// What was launched since the last call. Waits for what is timed.
    pub fn take(&self) -> Launched {
        let mut kernels = BTreeMap::new();
        for (name, n) in std::mem::take(&mut *lock(&self.seen.counts)) {
            *kernels.entry(short(name)).or_default() += n;
        }
        let profiles = std::mem::take(&mut *lock(&self.seen.profiles));
        // What the device did not time is left out.
        let ticks = profiles.into_iter().filter_map(|profile| block_on(profile.resolve()));
        let duration = ticks.map(|ticks| ticks.duration()).sum::<Duration>()
            + std::mem::take(&mut *lock(&self.seen.resolved));
        Launched { kernels, duration }
    }
}

/// The last name of a path, without what it is generic in.
fn short(name: &str) -> String {
    let path = name.split('<').next().unwrap_or(name);
    let mut parts = path.rsplit("::");
    let last = parts.next().unwrap_or(path);
    // A module of a kernel has one type, which says nothing.
    parts.next().map_or(last.into(), |module| format!("{module}::{last}"))
}
