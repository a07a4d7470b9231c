//! The processes of a training by MPI, which carries bytes and no more: who adds up what is the affair of [`World`].

use std::process;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lowbit_train::{Among, Place, Transport, World, WorldError};
use mpi::environment::{Universe, library_version, processor_name};
use mpi::request::{LocalScope, Request, scope};
use mpi::topology::{Color, SimpleCommunicator};
use mpi::traits::{Communicator, CommunicatorCollectives, Root};
use mpi::{Threading, initialize_with_threading};

/// The exit code that all processes are to end with, once one has failed.
static ABORT: AtomicI32 = AtomicI32::new(0);

/// Bytes of a name that processes tell one another.
const NAME_BYTES: usize = 256;

/// Joins the processes that were started together.
///
/// # Errors
/// What is wrong with the library.
pub fn join() -> Result<World, String> {
    World::join(|| {
        // One thread calls it, the one that World starts.
        let (universe, provided) =
            initialize_with_threading(Threading::Funneled).ok_or("MPI is initialized already")?;
        if provided < Threading::Funneled {
            return Err("this MPI library is not for programs with threads".to_string());
        }
        let world = universe.world();
        let local = world.split_shared(world.rank());
        let (rank, size) = (world.rank() as usize, world.size() as usize);
        let (local_rank, local_size) = (local.rank() as usize, local.size() as usize);
        let machines = world.split_by_color_with_key(Color::with_value(local.rank()), world.rank());
        let machines = machines.ok_or("MPI makes no group of the machines")?;
        let n_machines = machines.size() as usize;
        let mut transport = Mpi { world, local, machines, _universe: universe };
        let mut sizes = vec![0; size];
        // This either works or ends the process, as what follows.
        let _ = transport.all_gather(Among::All, &[local_size.min(255) as u8], &mut sizes);
        let is_even = sizes.iter().all(|&of_other| usize::from(of_other) == local_size);
        let n_machines = is_even.then_some(n_machines);
        let (hosts, library) = (transport.hosts(size), library());
        let place = Place { rank, size, local_rank, local_size, n_machines, hosts, library };
        Ok((place, transport))
    })
}

/// Ends all processes with this exit code.
pub fn abort(world: &World, code: i32) {
    ABORT.store(code, Ordering::Relaxed);
    // The thread of the transport does it, in what it waits for now or before it does this: the others must not take it for what they
    // wait for.
    let _ = world.barrier();
    process::exit(code);
}

/// The library in a few words.
fn library() -> String {
    let version = library_version().unwrap_or_default();
    let first = version.lines().next().unwrap_or_default();
    // MPICH has a table: "MPICH Version:\t4.0.2".
    first.split(',').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

struct Mpi {
    world: SimpleCommunicator,
    /// Those of this machine.
    local: SimpleCommunicator,
    /// Those with the number of this one on all machines.
    machines: SimpleCommunicator,
    /// Dropped last, which ends MPI.
    _universe: Universe,
}

impl Mpi {
    /// Names of the machines of all processes.
    fn hosts(&mut self, size: usize) -> Vec<String> {
        let name = processor_name().unwrap_or_default();
        let mut own = [0; NAME_BYTES];
        let n = name.len().min(NAME_BYTES);
        own[..n].copy_from_slice(&name.as_bytes()[..n]);
        let mut all = vec![0; NAME_BYTES * size];
        let _ = self.all_gather(Among::All, &own, &mut all);
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_string();
        all.chunks_exact(NAME_BYTES).map(name).collect()
    }

    fn group(&self, among: Among) -> &SimpleCommunicator {
        match among {
            Among::All => &self.world,
            Among::Machine => &self.local,
            Among::Machines => &self.machines,
        }
    }

    /// Ends all processes if this one has failed.
    fn end_if_asked(&self) {
        let code = ABORT.load(Ordering::Relaxed);
        if code != 0 {
            self.world.abort(code);
        }
    }

    /// Waits for a message. Not in the library, which takes a whole core for it: what is short is waited for so, and whoever waits for
    /// longer, as for a calibration, looks now and then.
    fn wait<'a, D: ?Sized>(&self, mut request: Request<'a, D, &LocalScope<'a>>) {
        /// Time that a message may take before the core is let go.
        const SHORT: Duration = Duration::from_millis(20);
        const PAUSE: Duration = Duration::from_micros(200);

        let begun = Instant::now();
        loop {
            request = match request.test() {
                Ok(_) => return,
                Err(request) => request,
            };
            self.end_if_asked();
            match begun.elapsed() < SHORT {
                true => thread::yield_now(),
                false => thread::sleep(PAUSE),
            }
        }
    }
}

// An error of MPI ends all processes, as its standard has it unless a program asks otherwise.
impl Transport for Mpi {
    fn all_to_all(&mut self, among: Among, sent: &[u8], received: &mut [u8]) -> Result<(), WorldError> {
        self.end_if_asked();
        scope(|scope| self.wait(self.group(among).immediate_all_to_all_into(scope, sent, received)));
        Ok(())
    }

    fn all_gather(&mut self, among: Among, sent: &[u8], received: &mut [u8]) -> Result<(), WorldError> {
        self.end_if_asked();
        scope(|scope| self.wait(self.group(among).immediate_all_gather_into(scope, sent, received)));
        Ok(())
    }

    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<(), WorldError> {
        self.end_if_asked();
        let root = self.world.process_at_rank(0);
        scope(|scope| self.wait(root.immediate_broadcast_into(scope, bytes)));
        Ok(())
    }
}
