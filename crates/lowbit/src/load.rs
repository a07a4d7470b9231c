//! How much of a machine this process uses, by Linux's own figures; unknown on other systems.

use std::fs;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::memory::kib;

/// What a process uses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Cores that were busy with it, on average since the time before.
    pub cores: f64,
    /// Memory that it holds.
    pub memory_bytes: u64,
}

/// Tells the load since it was asked before.
#[derive(Default)]
pub struct Meter {
    before: Option<(Instant, f64)>,
}

impl Meter {
    /// The load since the last call; `None` of the first, and where it cannot be told.
    pub fn read(&mut self) -> Option<Load> {
        let seconds = cpu_seconds(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let memory_bytes = kib(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")?;
        let now = Instant::now();
        let (at, before) = self.before.replace((now, seconds))?;
        let elapsed = now.duration_since(at).as_secs_f64();
        (elapsed > 0.0).then(|| Load { cores: (seconds - before) / elapsed, memory_bytes })
    }
}

/// Processor time of a process, from its `stat` in `/proc`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    /// Of the units of time there.
    const PER_SECOND: f64 = 100.0;
    // Behind the name, which may have spaces: the state is the third field, times in user and system mode the 14th and 15th.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    Some((times.next()?.ok()? + times.next()?.ok()?) / PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_behind_any_name() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 10";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_busy_process_is_busy() {
        let mut meter = Meter::default();
        assert_eq!(meter.read(), None);
        let started = Instant::now();
        // Long beside the hundredths of seconds that are counted.
        while started.elapsed().as_secs_f64() < 0.3 {
            std::hint::black_box(started);
        }
        let load = meter.read().unwrap();
        assert!(load.cores > 0.05 && load.memory_bytes > 1 << 20, "{load:?}");
    }
}
