//! The processes that a launcher of MPI has started together: whether there are some, who of them this is, and how all end together.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lowbit_train::World;

use crate::exit_code::{Code, UsageError};

/// The processes that this one has joined.
static JOINED: Mutex<Option<World>> = Mutex::new(None);

/// What launchers tell a process: Open MPI's own, MPICH's and those that start as it does, Slurm's.
const SIZES: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];
const LOCAL_SIZES: [&str; 3] = ["OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"];

/// How many processes were started together, as far as the launcher tells. One that Slurm has started without MPI is alone.
fn n_started() -> usize {
    let number = |name: &&str| std::env::var(name).ok()?.parse::<usize>().ok();
    let is_by_mpi = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "PMIX_RANK"]
        .iter()
        .any(|name| std::env::var_os(name).is_some());
    if is_by_mpi { SIZES.iter().find_map(number).unwrap_or(1) } else { 1 }
}

/// Refuses a command that is started several times at once, and would do the same in each.
///
/// # Errors
/// If there are several.
pub fn expect_alone() -> Result<(), UsageError> {
    match n_started() {
        1 => Ok(()),
        n => Err(UsageError(format!(
            "only lowbit train runs on several processes, and this is one of {n}: start it alone"
        ))),
    }
}

/// Joins the processes that were started together with this one, if there are some.
///
/// # Errors
/// If there are some, and this program cannot.
pub fn join() -> anyhow::Result<World> {
    let n = n_started();
    if n == 1 {
        return Ok(World::ALONE);
    }
    let world = by_mpi(n)?;
    *JOINED.lock().unwrap_or_else(PoisonError::into_inner) = Some(world.clone());
    Ok(world)
}

#[cfg(feature = "mpi")]
fn by_mpi(n: usize) -> anyhow::Result<World> {
    let world = crate::mpi::join().map_err(UsageError)?;
    if world.size() != n {
        // A launcher of another library: each process is alone.
        let library = world.place().map(|place| place.library.clone()).unwrap_or_default();
        let message = format!(
            "{n} processes were started together, but {library}, which this lowbit is built with, sees {}: start them by its own launcher",
            world.size()
        );
        return Err(UsageError(message).into());
    }
    Ok(world)
}

/// Each would train all of it, and into the same place.
#[cfg(not(feature = "mpi"))]
fn by_mpi(n: usize) -> anyhow::Result<World> {
    let message = format!(
        "this is one of {n} processes that were started together, and this lowbit is built without MPI: build it with --features mpi"
    );
    Err(UsageError(message).into())
}

/// What stands before an error of this process, if it is one of several. What all have noticed, the first says: the others let it.
pub fn before_error() -> String {
    const PATIENCE: Duration = Duration::from_secs(1);

    let world = JOINED.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match world {
        Some(world) if !world.is_root() => {
            std::thread::sleep(PATIENCE);
            format!("rank {}: ", world.name_of(world.rank()))
        }
        _ => String::new(),
    }
}

/// Ends this process together with the others: after a failure at once, all of them. Returns the code to end with.
pub fn end(code: Code) -> Code {
    let joined = JOINED.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(world) = joined else { return code };
    let is_failure = !matches!(code, Code::Success | Code::Interrupted);
    if is_failure {
        #[cfg(feature = "mpi")]
        crate::mpi::abort(&world, code.into());
    }
    // That the training was stopped is for the first to say: a launcher takes it for a failure, and ends the others.
    if world.is_root() || is_failure { code } else { Code::Success }
}

/// Gives each process of a machine its share of the cores, unless somebody has said how many threads there are to be.
///
/// To be called before any thread is started.
#[cfg(unix)]
#[expect(unsafe_code, reason = "the threads that compute are counted by whoever starts them, by a variable")]
pub fn share_cores() {
    const THREADS: &str = "RAYON_NUM_THREADS";

    let number = |name: &&str| std::env::var(name).ok()?.parse::<usize>().ok();
    let n_local = LOCAL_SIZES.iter().find_map(number).unwrap_or(1);
    if n_local < 2 || std::env::var_os(THREADS).is_some() {
        return;
    }
    let listed = |path: &str, before: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        n_in_list(text.lines().find_map(|line| line.strip_prefix(before))?)
    };
    let n_usable = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = Cores {
        usable: n_usable,
        allowed: listed("/proc/self/status", "Cpus_allowed_list:").unwrap_or(n_usable),
        online: listed("/sys/devices/system/cpu/online", "").unwrap_or(n_usable),
    };
    let n_threads = cores.share_of(n_local).to_string();
    // SAFETY: no other thread has been started that could read or write the environment meanwhile.
    unsafe {
        std::env::set_var(THREADS, n_threads);
    }
}

#[cfg(not(unix))]
pub fn share_cores() {}

/// The cores of a machine.
#[cfg_attr(not(unix), expect(dead_code, reason = "cores are shared on Unix only"))]
struct Cores {
    /// Those that a process can keep busy: allowed ones, less what limits containers have.
    usable: usize,
    /// Those that the launcher lets this process run on.
    allowed: usize,
    online: usize,
}

impl Cores {
    /// Threads of each of `n` processes. A launcher that binds processes may let some of them share cores, as those of a socket.
    #[cfg_attr(not(unix), expect(dead_code, reason = "cores are shared on Unix only"))]
    fn share_of(&self, n: usize) -> usize {
        let Self { usable, allowed, online } = *self;
        let share = if allowed < online { usable.min(online / n) } else { usable / n };
        share.max(1)
    }
}

/// Numbers in a list as in "0-3,8".
#[cfg_attr(not(unix), expect(dead_code, reason = "cores are shared on Unix only"))]
fn n_in_list(list: &str) -> Option<usize> {
    let n_in = |range: &str| -> Option<usize> {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (last + 1).checked_sub(first)
    };
    list.trim().split(',').map(n_in).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_shared() {
        let share = |usable, allowed, online, n| Cores { usable, allowed, online }.share_of(n);
        // Nobody binds: all see all cores, or all that a container may use.
        assert_eq!([share(16, 16, 16, 4), share(8, 64, 64, 4), share(2, 2, 2, 4)], [4, 2, 1]);
        // Bound to a core each; four to two sockets of 32; to half a core each.
        assert_eq!([share(1, 1, 16, 4), share(32, 32, 64, 4), share(1, 1, 2, 8)], [1, 16, 1]);
    }

    #[test]
    fn lists_of_cores_are_counted() {
        assert_eq!(
            ["0", "0-3", "0-3,8,10-11\n", "\t2-3"].map(n_in_list),
            [Some(1), Some(4), Some(7), Some(2)]
        );
        assert_eq!(["", "a", "3-"].map(n_in_list), [None; 3]);
    }
}
