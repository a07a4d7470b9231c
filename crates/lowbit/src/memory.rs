//! Whether a training fits in the memory that there is: told before it begins.
//!
//! The estimate is one. Only what is too much by a clear factor is refused; what comes near to it is a warning.

use std::fmt;
use std::fs;
use std::path::Path;

use lowbit_train::MemoryEstimate;

/// A training is refused if this part of its estimate is more than there is. What fifteen trainings took was measured as 0.81 to
/// 1.42 times their estimates.
const SURE: f64 = 0.7;

/// Above this part of what there is, a training may not fit.
const TIGHT: f64 = 0.9;

/// Bytes of a number.
const FLOAT: u64 = 4;

/// What a GPU says of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuLimits {
    /// Bytes of the largest tensor that it can hold.
    pub largest_tensor: u64,
    /// Bytes in all, if its driver tells.
    pub total: Option<u64>,
}

/// The memory that a program can get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub bytes: u64,
    /// What sets the bound.
    pub bound: Bound,
}

impl Room {
    /// What each of `n` processes of a machine has of it.
    pub fn shared_by(self, n: u64) -> Self {
        match self.bound {
            Bound::AddressSpace => self,
            _ => Self { bytes: self.bytes / n.max(1), ..self },
        }
    }
}

/// What bounds the memory of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// The machine, with its swap.
    Machine,
    /// A limit of its control group, as in a container.
    Group,
    /// A limit of its address space.
    AddressSpace,
    /// A GPU.
    Gpu,
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = approximate(self.bytes);
        match self.bound {
            Bound::Machine => write!(f, "the machine has {bytes} free, swap included"),
            Bound::Group => write!(f, "the limit of the container or control group leaves {bytes}"),
            Bound::AddressSpace => write!(f, "the limit of this process leaves {bytes} (ulimit -v)"),
            Bound::Gpu => write!(f, "the GPU has {bytes}"),
        }
    }
}

/// What `estimate` comes to, in words.
pub fn describe(estimate: &MemoryEstimate, is_gpu: bool) -> String {
    let batch = estimate.batch_size;
    match is_gpu {
        true => format!("about {} on the GPU at its peak", approximate(estimate.device(batch))),
        false => format!("about {} at its peak", approximate(estimate.total(batch))),
    }
}

/// Refuses a training that cannot fit in the `room` of the host, if that is known, or within the `limits` of the GPU that it is
/// on; warns where it may not, or where it `is_tried` all the same. `may_change` says whether its batch size can still be another.
pub fn expect_room(
    estimate: &MemoryEstimate,
    limits: Option<GpuLimits>,
    room: Option<Room>,
    may_change: bool,
    is_tried: bool,
) -> anyhow::Result<()> {
    match fit(estimate, limits, room, may_change) {
        Fit::Fits => {}
        Fit::Tight(message) => tracing::warn!("{message}"),
        Fit::Exceeds(message) if is_tried => {
            tracing::warn!("{message}; it is tried all the same, by --ignore-memory");
        }
        Fit::Exceeds(message) => {
            return Err(anyhow::Error::msg(format!("{message}; --ignore-memory tries it all the same")));
        }
    }
    Ok(())
}

/// How a training fits.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    Fits,
    /// It may not.
    Tight(String),
    /// It does not.
    Exceeds(String),
}

fn fit(estimate: &MemoryEstimate, limits: Option<GpuLimits>, room: Option<Room>, may_change: bool) -> Fit {
    let gpu_room = limits.and_then(|limits| limits.total).map(|bytes| Room { bytes, bound: Bound::Gpu });
    // Where each part of the memory is, and what it takes with a batch.
    let on_host = |batch| if limits.is_some() { estimate.host(batch) } else { estimate.total(batch) };
    let share = |batch: u64, room: Option<Room>, bytes: &dyn Fn(u64) -> u64| {
        room.map_or(0.0, |room| bytes(batch) as f64 / room.bytes.max(1) as f64)
    };
    let host_share = |batch| share(batch, room, &on_host);
    let gpu_share = |batch| share(batch, gpu_room, &|batch| estimate.device(batch));
    let has_large_tensor =
        |batch| limits.is_some_and(|limits| estimate.largest(batch) > limits.largest_tensor.min(indexed()));
    let batch = estimate.batch_size;
    let change = || {
        let fits = |batch| host_share(batch).max(gpu_share(batch)) <= TIGHT && !has_large_tensor(batch);
        match estimate.fitting_batch(fits) {
            Some(size) if may_change => format!("take --set data.batch_size={size}"),
            _ if may_change => "take a smaller model".into(),
            _ => "go on where there is more".into(),
        }
    };
    if let Some(limits) = limits.filter(|_| has_large_tensor(batch)) {
        return Fit::Exceeds(format!(
            "out of memory: with batches of {batch} images the largest tensor takes {}, and the GPU has at most {} for one; {}",
            approximate(estimate.largest(batch)),
            approximate(limits.largest_tensor.min(indexed())),
            change()
        ));
    }
    let parts =
        [(room, host_share(batch), on_host(batch)), (gpu_room, gpu_share(batch), estimate.device(batch))];
    let (worst, share, bytes) = if parts[1].1 > parts[0].1 { parts[1] } else { parts[0] };
    let Some(worst) = worst.filter(|_| share > TIGHT) else { return Fit::Fits };
    let what = format!("batches of {batch} images take about {}", approximate(bytes));
    match share * SURE > 1.0 {
        true => Fit::Exceeds(format!("out of memory: {what}, but {worst}; {}", change())),
        false => Fit::Tight(format!("{what}, and {worst}: the training may run out of memory; {}", change())),
    }
}

/// Bytes of the largest tensor whose numbers an index of 32 bits reaches, as kernels on GPUs have it.
fn indexed() -> u64 {
    u64::from(u32::MAX) * FLOAT
}

/// The memory that this process can get, as far as the system tells: Linux does.
pub fn room() -> Option<Room> {
    room_in(Path::new("/"))
}

/// The same with the system's files under `root`.
fn room_in(root: &Path) -> Option<Room> {
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    let status = read("proc/self/status").unwrap_or_default();
    let resident = kib(&status, "VmRSS:").unwrap_or(0);
    let meminfo = read("proc/meminfo").unwrap_or_default();
    let swap = kib(&meminfo, "SwapFree:").unwrap_or(0);
    let machine = kib(&meminfo, "MemAvailable:").map(|available| {
        let free = available.saturating_add(swap);
        Room { bytes: free.saturating_add(resident), bound: Bound::Machine }
    });
    let address_space = read("proc/self/limits").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Max address space"))?;
        // A limit that is none is a word.
        let bytes = line.split_whitespace().next()?.parse().ok()?;
        Some(Room { bytes, bound: Bound::AddressSpace })
    });
    let group = read("proc/self/cgroup").and_then(|text| {
        let rooms = text.lines().flat_map(|line| group_rooms(line, swap, &read));
        let bytes = rooms.min()?.saturating_add(resident);
        Some(Room { bytes, bound: Bound::Group })
    });
    [machine, group, address_space].into_iter().flatten().min_by_key(|room| room.bytes)
}

/// What is left in the control group of a `line` of /proc/self/cgroup, and in each that it is in: of both versions. The machine has so
/// many bytes of `swap` free, of which a group of version 2 may have a limit of its own.
fn group_rooms(line: &str, swap: u64, read: &impl Fn(&str) -> Option<String>) -> Vec<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    // In version 2 there is one tree, and its line names no controllers.
    let (tree, limit, anonymous) = match controllers {
        "" => ("sys/fs/cgroup", "memory.max", "anon "),
        _ if controllers.split(',').any(|name| name == "memory") => {
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "total_rss ")
        }
        _ => return Vec::new(),
    };
    let room = |group: &Path| {
        let file = |name: &str| read(&format!("{tree}/{}", group.join(name).display()));
        let limit: u64 = file(limit)?.trim().parse().ok()?;
        // What files take is given back when it is needed.
        let stat = file("memory.stat").unwrap_or_default();
        let used = stat.lines().find_map(|line| line.strip_prefix(anonymous)?.trim().parse().ok());
        // Version 1 has a limit of both together, and no file of this name.
        let swap = file("memory.swap.max").map_or(0, |max| match max.trim().parse::<u64>() {
            Ok(max) => {
                let used = file("memory.swap.current").and_then(|used| used.trim().parse().ok()).unwrap_or(0);
                swap.min(max.saturating_sub(used))
            }
            // A limit that is none is a word.
            Err(_) => swap,
        });
        Some(limit.saturating_sub(used.unwrap_or(0)).saturating_add(swap))
    };
    Path::new(path.trim_start_matches('/')).ancestors().filter_map(room).collect()
}

/// The bytes of a line as "VmRSS:  1024 kB".
pub fn kib(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Two digits or three, with their unit: the estimate has no more.
pub fn approximate(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64 / f64::from(1 << 20);
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = usize::from(value < 9.95 && unit > 0);
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use lowbit_train::{Kept, Recipe};
    use tempfile::TempDir;

    use super::*;

    /// The training of issue brush #500: VGG-small of four times the width.
    fn wide(batch_size: usize) -> MemoryEstimate {
        let overrides = ["model.width=4".to_string(), format!("data.batch_size={batch_size}")];
        let recipe = Recipe::embedded("cifar10-vgg-small-w2a2", &overrides).unwrap();
        MemoryEstimate::new(&recipe, Kept::Floats).unwrap()
    }

    const GIB: u64 = 1 << 30;

    /// Of a GPU of 80 GiB whose buffers have up to 4 GiB.
    const GPU: GpuLimits = GpuLimits { largest_tensor: 4 * GIB - 1, total: Some(80 * GIB) };

    fn on_host(bytes: u64) -> Option<Room> {
        Some(Room { bytes, bound: Bound::Machine })
    }

    #[test]
    fn a_tensor_that_no_buffer_holds_is_refused() {
        let message = |batch, limits| fit(&wide(batch), Some(limits), None, true);
        // 512 maps of 32x32 for each image: 2 MiB.
        assert_eq!(
            message(65_536, GPU),
            Fit::Exceeds(
                "out of memory: with batches of 65536 images the largest tensor takes 128 GiB, and the GPU has at most 4.0 GiB \
                 for one; take --set data.batch_size=1024"
                    .into()
            )
        );
        // However large a buffer may be, an index has 32 bits.
        let any = GpuLimits { largest_tensor: u64::MAX, total: None };
        assert!(matches!(message(8192, any), Fit::Exceeds(_)));
        assert_eq!(message(4096, any), Fit::Fits);
        assert!(matches!(message(2048, GPU), Fit::Exceeds(_)));
        // All that is known of this one is the size of its buffers.
        assert_eq!(message(1024, GpuLimits { total: None, ..GPU }), Fit::Fits);
        // Its evaluations, whose batches are not the recipe's, need larger ones.
        let Fit::Exceeds(message) = message(64, GpuLimits { largest_tensor: 128 << 20, total: None }) else {
            panic!("it fits")
        };
        assert!(message.ends_with("at most 128 MiB for one; take a smaller model"), "{message}");
    }

    #[test]
    fn what_a_gpu_cannot_hold_is_refused() {
        let estimate = wide(512);
        let of = |part: f64| {
            let total = (estimate.device(512) as f64 * part) as u64;
            fit(
                &estimate,
                Some(GpuLimits { largest_tensor: 4 * GIB, total: Some(total) }),
                on_host(GIB),
                true,
            )
        };
        assert_eq!(of(1.2), Fit::Fits);
        assert!(
            matches!(of(1.1), Fit::Tight(message) if message.contains("may run out of memory; take --set"))
        );
        assert!(matches!(of(0.72), Fit::Tight(_)));
        let Fit::Exceeds(message) = of(0.69) else { panic!("it fits") };
        assert!(message.starts_with("out of memory: batches of 512 images take about "), "{message}");
        assert!(message.contains(", but the GPU has "), "{message}");
        assert!(message.ends_with("; take --set data.batch_size=256"), "{message}");
    }

    #[test]
    fn what_a_host_cannot_hold_is_refused() {
        let estimate = wide(1024);
        let total = estimate.total(1024);
        assert_eq!(fit(&estimate, None, None, true), Fit::Fits);
        assert_eq!(fit(&estimate, None, on_host(2 * total), true), Fit::Fits);
        assert!(matches!(fit(&estimate, None, on_host(total), true), Fit::Tight(_)));
        let Fit::Exceeds(message) = fit(&estimate, None, on_host(total / 2), true) else { panic!("it fits") };
        assert!(message.contains(", but the machine has ") && message.ends_with("=256"), "{message}");
        // The batch of a run stays what it is.
        let Fit::Exceeds(message) = fit(&estimate, None, on_host(total / 2), false) else {
            panic!("it fits")
        };
        assert!(message.ends_with("; go on where there is more"), "{message}");
        let Fit::Exceeds(message) = fit(&estimate, None, on_host(1 << 20), true) else { panic!("it fits") };
        assert!(message.ends_with("; take a smaller model"), "{message}");
    }

    /// The room that is found in the system's files: `files` by path under the root.
    fn found(files: &[(&str, &str)]) -> Option<Room> {
        let root = TempDir::new().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        room_in(root.path())
    }

    #[test]
    fn the_smallest_bound_counts() {
        const KIB: u64 = 1024;
        let meminfo = (
            "proc/meminfo",
            "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:  4000 kB\nSwapFree:  500 kB\n",
        );
        let status = ("proc/self/status", "Name:\tlowbit\nVmRSS:\t    100 kB\n");
        let room = |bytes, bound| Some(Room { bytes, bound });
        assert_eq!(found(&[]), None);
        assert_eq!(found(&[("proc/meminfo", "MemAvailable: many\n")]), None);
        assert_eq!(found(&[meminfo, status]), room(4600 * KIB, Bound::Machine));
        let limits = |limit: &str| {
            format!("Limit  Soft Limit  Hard Limit  Units\nMax address space  {limit}  unlimited  bytes\n")
        };
        let unlimited = limits("unlimited");
        assert_eq!(
            found(&[meminfo, status, ("proc/self/limits", &unlimited)]),
            room(4600 * KIB, Bound::Machine)
        );
        let limited = limits("1024000");
        assert_eq!(
            found(&[meminfo, status, ("proc/self/limits", &limited)]),
            room(1_024_000, Bound::AddressSpace)
        );
        // Version 2: the limits of all groups that it is in.
        let group = [
            meminfo,
            status,
            ("proc/self/cgroup", "0::/user/job\n"),
            ("sys/fs/cgroup/user/memory.max", "2048000\n"),
            ("sys/fs/cgroup/user/memory.stat", "anon 1000000\nfile 999999\n"),
            ("sys/fs/cgroup/user/job/memory.max", "max\n"),
        ];
        assert_eq!(found(&group), room(1_048_000 + 100 * KIB, Bound::Group));
        // As much of the swap as the group may have, and there is.
        let swap = |max: &str| {
            let swap = [
                ("sys/fs/cgroup/user/memory.swap.max", max),
                ("sys/fs/cgroup/user/memory.swap.current", "2000\n"),
            ];
            found(&[&group[..], &swap].concat())
        };
        assert_eq!(swap("52000\n"), room(1_098_000 + 100 * KIB, Bound::Group));
        assert_eq!(swap("1000\n"), room(1_048_000 + 100 * KIB, Bound::Group));
        assert_eq!(swap("max\n"), room(1_048_000 + 600 * KIB, Bound::Group));
        // Version 1, in a container, where the group's own folder is the root.
        let group = [
            meminfo,
            ("proc/self/cgroup", "5:devices:/\n4:cpu,memory:/docker/abc\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "2048000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "rss 5\ntotal_rss 48000\n"),
        ];
        assert_eq!(found(&group), room(2_000_000, Bound::Group));
        let group = [
            meminfo,
            ("proc/self/cgroup", "4:memory:/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(found(&group), room(4500 * KIB, Bound::Machine));
    }

    #[test]
    fn sizes_have_two_or_three_digits() {
        for (bytes, expected) in [
            (0, "0 MiB"),
            (63 << 20, "63 MiB"),
            (1000 << 20, "1.0 GiB"),
            (3 * GIB / 2, "1.5 GiB"),
            (10 * GIB, "10 GiB"),
            (5000 * GIB, "4.9 TiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(approximate(bytes), expected);
        }
    }
}
