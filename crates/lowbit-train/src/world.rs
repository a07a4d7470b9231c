//! The processes that train together: who they are, and what they tell one another. How bytes get from one to another is the
//! affair of a [`Transport`], which the program brings.
//!
//! Nothing here depends on the order in which messages arrive, nor on how a library adds up: each process adds up its piece of the
//! values of all, in the order of their ranks, and hands the sum out. So all have the same bits, in every run. Where machines have several
//! processes each, those of a machine add up first, and what goes between machines is as much as if they had one.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

/// The processes that something is exchanged among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Among {
    /// All of them.
    All,
    /// Those of this machine.
    Machine,
    /// Those that have the same number on their machines as this one has on its.
    Machines,
}

/// Brings bytes from process to process. All processes call the same methods in the same order, with as many bytes.
pub trait Transport {
    /// The bytes that every process of a group sends to this one, by rank, each as many as `sent.len()` divided by their number: the
    /// `i`-th part of `sent` is for the `i`-th of them.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    fn all_to_all(&mut self, among: Among, sent: &[u8], received: &mut [u8]) -> Result<(), WorldError>;

    /// The bytes that every process of a group sends to all of it, by rank.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    fn all_gather(&mut self, among: Among, sent: &[u8], received: &mut [u8]) -> Result<(), WorldError>;

    /// The bytes of rank 0, at all others.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<(), WorldError>;
}

/// A process that trains along is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another process of this training is gone")]
pub struct WorldError;

/// Which of the processes this is, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of this process, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// The number of this process among those of its machine.
    pub local_rank: usize,
    /// How many there are on its machine.
    pub local_size: usize,
    /// Machines, if all have as many processes.
    pub n_machines: Option<usize>,
    /// Name of the machine of each process.
    pub hosts: Vec<String>,
    /// What brings their messages, as in "Open MPI v4.1.4".
    pub library: String,
}

/// How gradients are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// As they are.
    #[default]
    Fp32,
    /// Rounded to 16 bits, those that are sent and their sum; the addition itself is in single precision.
    Bf16,
}

impl Wire {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
        }
    }
}

/// The processes of a training, for the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ranks {
    /// How many there are.
    pub n: usize,
    /// The machines, each once, with how many processes were there.
    pub hosts: Vec<HostRanks>,
    /// What brought their messages.
    pub library: String,
    /// How gradients were sent.
    pub wire: Wire,
}

/// The processes of a training on one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRanks {
    /// Name of the machine.
    pub host: String,
    /// Processes on it.
    pub n: usize,
    /// Their numbers.
    pub ranks: Vec<usize>,
}

/// The processes of a training as one of them sees them. Clones are of the same process.
#[derive(Clone, Default)]
pub struct World {
    /// `None` if there is but one.
    inner: Option<Arc<Inner>>,
    wire: Wire,
}

/// What is done with the transport, one after the other, on a thread of its own.
type Job = Box<dyn FnOnce(&mut dyn Transport) + Send>;

struct Inner {
    place: Place,
    /// `None` when it ends.
    jobs: Mutex<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The thread ends what it was asked for, and lets go of the transport.
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

/// A sum that is being made.
#[must_use]
pub struct Sum(Coming<Vec<f32>>);

/// Something that another thread makes.
enum Coming<T> {
    There(T),
    Awaited(Receiver<Result<T, WorldError>>),
}

impl<T> Coming<T> {
    fn wait(self) -> Result<T, WorldError> {
        match self {
            Self::There(value) => Ok(value),
            Self::Awaited(receiver) => receiver.recv().unwrap_or(Err(WorldError)),
        }
    }
}

impl Sum {
    /// The sum, when it is there.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    pub fn wait(self) -> Result<Vec<f32>, WorldError> {
        self.0.wait()
    }
}

impl World {
    /// A process that trains alone.
    pub const ALONE: Self = Self { inner: None, wire: Wire::Fp32 };

    /// Joins other processes by the transport that `join` opens, on the thread that it is then used on.
    ///
    /// # Errors
    /// That of `join`.
    ///
    /// # Panics
    /// If the system lets no thread start.
    pub fn join<T: Transport, E: Send + 'static>(
        join: impl FnOnce() -> Result<(Place, T), E> + Send + 'static,
    ) -> Result<Self, E> {
        let (jobs, asked) = mpsc::channel::<Job>();
        let (sender, joined) = mpsc::channel();
        let work = move || match join() {
            Ok((place, mut transport)) => {
                if sender.send(Ok(place)).is_ok() {
                    asked.into_iter().for_each(|job| job(&mut transport));
                }
            }
            Err(error) => drop(sender.send(Err(error))),
        };
        let thread = std::thread::Builder::new().name("ranks".into()).spawn(work);
        let thread = thread.expect("the thread that exchanges starts");
        let place = joined.recv().expect("invariant: the thread says how it went")?;
        let inner = Inner { place, jobs: Mutex::new(Some(jobs)), thread: Mutex::new(Some(thread)) };
        Ok(Self { inner: Some(Arc::new(inner)), wire: Wire::default() })
    }

    /// The same, with gradients sent as `wire` says.
    pub fn with_wire(self, wire: Wire) -> Self {
        Self { wire, ..self }
    }

    /// The place of this process among several.
    pub fn place(&self) -> Option<&Place> {
        self.inner.as_ref().map(|inner| &inner.place)
    }

    /// Whether there is but this process.
    pub fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.place().map_or(0, |place| place.rank)
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.place().map_or(1, |place| place.size)
    }

    /// The number of this process among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.place().map_or(0, |place| place.local_rank)
    }

    /// Whether this process is the one that writes and decides.
    pub fn is_root(&self) -> bool {
        self.rank() == 0
    }

    /// How gradients are sent.
    pub fn wire(&self) -> Wire {
        self.wire
    }

    /// What is recorded of several processes.
    pub fn ranks(&self) -> Option<Ranks> {
        let Place { size, hosts: of_ranks, library, .. } = self.place().filter(|place| place.size > 1)?;
        let mut hosts: Vec<HostRanks> = Vec::new();
        for (rank, host) in of_ranks.iter().enumerate() {
            match hosts.iter_mut().find(|known| known.host == *host) {
                Some(known) => {
                    known.n += 1;
                    known.ranks.push(rank);
                }
                None => hosts.push(HostRanks { host: host.clone(), n: 1, ranks: vec![rank] }),
            }
        }
        Some(Ranks { n: *size, hosts, library: library.clone(), wire: self.wire })
    }

    /// A rank in words: with its machine, if there are several machines.
    pub fn name_of(&self, rank: usize) -> String {
        let hosts = self.place().map_or(&[][..], |place| &place.hosts);
        match hosts.get(rank) {
            Some(host) if hosts.iter().any(|other| other != host) => format!("{rank} (on {host})"),
            _ => rank.to_string(),
        }
    }

    /// Has `job` done with the transport of several processes, after what was asked for before.
    fn ask<T: Send + 'static>(
        inner: &Inner,
        job: impl FnOnce(&mut dyn Transport) -> Result<T, WorldError> + Send + 'static,
    ) -> Coming<T> {
        let (sender, receiver) = mpsc::channel();
        let job: Job = Box::new(move |transport| {
            // Who asked may have gone on to an error of its own.
            let _ = sender.send(job(transport));
        });
        let jobs = inner.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // If the thread is gone, so is the receiver's other end.
        if let Some(jobs) = &*jobs {
            let _ = jobs.send(job);
        }
        Coming::Awaited(receiver)
    }

    /// Begins to add `values` up over all processes, which have as many: rank by rank, from 0 on, where there is one machine or one process
    /// on each; else first those of each machine, then those sums. All get the same bits. What else is computed meanwhile takes no time
    /// of it.
    pub fn start_sum(&self, values: Vec<f32>, wire: Wire) -> Sum {
        let Some(inner) = &self.inner else { return Sum(Coming::There(values)) };
        let Place { size, local_size, n_machines, .. } = inner.place;
        let rounds = match n_machines {
            Some(n_machines) if n_machines > 1 && local_size > 1 => {
                vec![(Among::Machine, local_size), (Among::Machines, n_machines)]
            }
            _ => vec![(Among::All, size)],
        };
        Sum(Self::ask(inner, move |transport| sum(transport, &rounds, values, wire)))
    }

    /// What each process has to say, by rank, if all say as many numbers.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    pub fn gather_numbers(&self, numbers: &[f64]) -> Result<Vec<Vec<f64>>, WorldError> {
        let Some(inner) = &self.inner else { return Ok(vec![numbers.to_vec()]) };
        let (size, sent) = (inner.place.size, numbers.to_vec());
        let gather = move |transport: &mut dyn Transport| {
            let n = sent.len();
            // A message of no bytes still waits for all.
            let mut all = vec![0.0; size * n.max(1)];
            let sent = if n == 0 { vec![0.0] } else { sent };
            transport.all_gather(
                Among::All,
                bytemuck::cast_slice(&sent),
                bytemuck::cast_slice_mut(&mut all),
            )?;
            Ok(all.chunks_exact(n.max(1)).map(|of_rank| of_rank[..n].to_vec()).collect())
        };
        Self::ask(inner, gather).wait()
    }

    /// What each process has to say, by rank.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    pub fn gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, WorldError> {
        let Some(inner) = &self.inner else { return Ok(vec![bytes.to_vec()]) };
        let (size, mut sent) = (inner.place.size, bytes.to_vec());
        let gather = move |transport: &mut dyn Transport| {
            let (mut lengths, length) = (vec![0u64; size], sent.len() as u64);
            let (length, all) = (bytemuck::bytes_of(&length), bytemuck::cast_slice_mut(&mut lengths));
            transport.all_gather(Among::All, length, all)?;
            let longest = lengths.iter().copied().max().unwrap_or(0).max(1) as usize;
            sent.resize(longest, 0);
            let mut all = vec![0; size * longest];
            transport.all_gather(Among::All, &sent, &mut all)?;
            let of_rank = |(bytes, length): (&[u8], &u64)| bytes[..*length as usize].to_vec();
            Ok(all.chunks_exact(longest).zip(&lengths).map(of_rank).collect())
        };
        Self::ask(inner, gather).wait()
    }

    /// What rank 0 has to say, at all; what others would say is of no account.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    pub fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, WorldError> {
        /// Bytes that are sent at once: libraries count in 31 bits.
        const AT_ONCE: usize = 1 << 30;

        let Some(inner) = &self.inner else { return Ok(bytes) };
        let mut bytes = bytes;
        let broadcast = move |transport: &mut dyn Transport| {
            let mut length = bytes.len() as u64;
            transport.broadcast(bytemuck::bytes_of_mut(&mut length))?;
            bytes.resize(length as usize, 0);
            bytes.chunks_mut(AT_ONCE).try_for_each(|chunk| transport.broadcast(chunk))?;
            Ok(bytes)
        };
        Self::ask(inner, broadcast).wait()
    }

    /// Waits for all processes.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    pub fn barrier(&self) -> Result<(), WorldError> {
        self.gather_numbers(&[]).map(drop)
    }

    /// Processes that are threads of this one, by rank: for tests, and to try what a division over processes does.
    pub fn threads(size: usize) -> Vec<World> {
        Self::threads_on(1, size)
    }

    /// The same, on so many machines, as they see it.
    pub fn threads_on(n_machines: usize, local_size: usize) -> Vec<World> {
        let size = n_machines * local_size;
        let group = |n: usize| {
            let said = Said { of_rank: vec![None; n], n_read: 0, is_over: false };
            Arc::new(Shared { state: Mutex::new(said), changed: Condvar::new() })
        };
        let all = group(size);
        let of_machines: Vec<_> = (0..n_machines).map(|_| group(local_size)).collect();
        let of_locals: Vec<_> = (0..local_size).map(|_| group(n_machines)).collect();
        let host = |rank: usize| match n_machines {
            1 => "here".into(),
            _ => format!("machine {}", rank / local_size),
        };
        let world = |rank: usize| {
            let (machine, local_rank) = (rank / local_size, rank % local_size);
            let place = Place {
                rank,
                size,
                local_rank,
                local_size,
                n_machines: Some(n_machines),
                hosts: (0..size).map(host).collect(),
                library: "threads".into(),
            };
            let groups = [
                (rank, Arc::clone(&all)),
                (local_rank, Arc::clone(&of_machines[machine])),
                (machine, Arc::clone(&of_locals[local_rank])),
            ];
            let joined = Self::join(move || Ok::<_, std::convert::Infallible>((place, Threads(groups))));
            joined.unwrap_or_else(|never| match never {})
        };
        (0..size).map(world).collect()
    }
}

/// Adds `values` up over all processes, in `rounds` of groups with their sizes, and hands the sum out.
fn sum(
    transport: &mut dyn Transport,
    rounds: &[(Among, usize)],
    mut values: Vec<f32>,
    wire: Wire,
) -> Result<Vec<f32>, WorldError> {
    let n = values.len();
    let n_pieces: usize = rounds.iter().map(|(_, size)| size).product();
    values.resize(n.div_ceil(n_pieces).max(1) * n_pieces, 0.0);
    // Of what a group has added up, each of it has a piece, which it adds up with the next group.
    for &(among, size) in rounds {
        let piece = values.len() / size;
        values = match wire {
            Wire::Fp32 => {
                let mut received = vec![0.0f32; values.len()];
                let (sent, all) = (bytemuck::cast_slice(&values), bytemuck::cast_slice_mut(&mut received));
                transport.all_to_all(among, sent, all)?;
                sum_of(received.chunks_exact(piece).map(|of_rank| of_rank.iter().copied()), piece)
            }
            Wire::Bf16 => {
                let sent: Vec<u16> = values.iter().map(|&value| to_bf16(value)).collect();
                let mut received = vec![0u16; sent.len()];
                let (sent, all) = (bytemuck::cast_slice(&sent), bytemuck::cast_slice_mut(&mut received));
                transport.all_to_all(among, sent, all)?;
                let rows = received.chunks_exact(piece);
                sum_of(rows.map(|of_rank| of_rank.iter().map(|&bits| from_bf16(bits))), piece)
            }
        };
    }
    for &(among, size) in rounds.iter().rev() {
        values = match wire {
            Wire::Fp32 => {
                let mut whole = vec![0.0f32; values.len() * size];
                transport.all_gather(
                    among,
                    bytemuck::cast_slice(&values),
                    bytemuck::cast_slice_mut(&mut whole),
                )?;
                whole
            }
            Wire::Bf16 => {
                let sent: Vec<u16> = values.iter().map(|&value| to_bf16(value)).collect();
                let mut whole = vec![0u16; sent.len() * size];
                transport.all_gather(
                    among,
                    bytemuck::cast_slice(&sent),
                    bytemuck::cast_slice_mut(&mut whole),
                )?;
                whole.into_iter().map(from_bf16).collect()
            }
        };
    }
    values.truncate(n);
    Ok(values)
}

/// The sum of rows of `n` values, from the first on.
fn sum_of(rows: impl Iterator<Item = impl Iterator<Item = f32>>, n: usize) -> Vec<f32> {
    // Not from zeros: of a first value -0 would be left.
    let mut rows = rows.into_iter();
    let mut sum: Vec<f32> = rows.next().map_or_else(|| vec![0.0; n], Iterator::collect);
    for row in rows {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sum
}

/// The nearest number of 16 bits, ties to even.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    match value.is_nan() {
        // Its payload may be in the bits that go.
        true => (bits >> 16) as u16 | 0x40,
        false => ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16,
    }
}

fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Threads that are processes to one another.
struct Shared {
    state: Mutex<Said>,
    changed: Condvar,
}

/// What the threads say in an exchange.
struct Said {
    of_rank: Vec<Option<Vec<u8>>>,
    /// Those that have looked at it.
    n_read: usize,
    /// Whether one of them has ended.
    is_over: bool,
}

/// The rank of a thread in each group, and what the group says: all, those of its machine, those of all machines with its number.
struct Threads([(usize, Arc<Shared>); 3]);

impl Threads {
    fn group(&self, among: Among) -> &(usize, Arc<Shared>) {
        match among {
            Among::All => &self.0[0],
            Among::Machine => &self.0[1],
            Among::Machines => &self.0[2],
        }
    }

    /// Says `bytes` to a group, and has `read` look at what each says.
    fn exchange(
        &self,
        among: Among,
        bytes: &[u8],
        mut read: impl FnMut(usize, &[u8]),
    ) -> Result<(), WorldError> {
        let (own, shared) = self.group(among);
        let Shared { state, changed } = &**shared;
        let mut said = state.lock().unwrap_or_else(PoisonError::into_inner);
        // Of the exchange before, not all may have read.
        while said.of_rank[*own].is_some() && !said.is_over {
            said = changed.wait(said).unwrap_or_else(PoisonError::into_inner);
        }
        if said.of_rank[*own].is_some() {
            return Err(WorldError);
        }
        said.of_rank[*own] = Some(bytes.to_vec());
        changed.notify_all();
        while said.of_rank.iter().any(Option::is_none) && !said.is_over {
            said = changed.wait(said).unwrap_or_else(PoisonError::into_inner);
        }
        if said.of_rank.iter().any(Option::is_none) {
            return Err(WorldError);
        }
        said.of_rank.iter().flatten().enumerate().for_each(|(rank, bytes)| read(rank, bytes));
        said.n_read += 1;
        if said.n_read == said.of_rank.len() {
            said.n_read = 0;
            said.of_rank.iter_mut().for_each(|slot| *slot = None);
            changed.notify_all();
        }
        Ok(())
    }
}

impl Transport for Threads {
    fn all_to_all(&mut self, among: Among, sent: &[u8], received: &mut [u8]) -> Result<(), WorldError> {
        let (own, shared) = self.group(among);
        let size = shared.state.lock().unwrap_or_else(PoisonError::into_inner).of_rank.len();
        let (own, n) = (*own, received.len() / size);
        self.exchange(among, sent, |rank, bytes| {
            received[rank * n..][..n].copy_from_slice(&bytes[own * n..][..n])
        })
    }

    fn all_gather(&mut self, among: Among, sent: &[u8], received: &mut [u8]) -> Result<(), WorldError> {
        let n = sent.len();
        self.exchange(among, sent, |rank, bytes| received[rank * n..][..n].copy_from_slice(bytes))
    }

    fn broadcast(&mut self, bytes: &mut [u8]) -> Result<(), WorldError> {
        let sent = bytes.to_vec();
        self.exchange(Among::All, &sent, |rank, said| {
            if rank == 0 {
                bytes.copy_from_slice(said);
            }
        })
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for (_, shared) in &self.0 {
            shared.state.lock().unwrap_or_else(PoisonError::into_inner).is_over = true;
            shared.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each of `size` ranks has of `work`, by rank.
    fn on_ranks<T: Send>(size: usize, work: impl Fn(World) -> T + Sync) -> Vec<T> {
        on(World::threads(size), work)
    }

    fn on<T: Send>(worlds: Vec<World>, work: impl Fn(World) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let spawn = |world| scope.spawn(|| work(world));
            let threads: Vec<_> = worlds.into_iter().map(spawn).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    fn values(rank: usize, n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + rank * 101) % 97) as f32 * 0.1 - 4.0).collect()
    }

    /// In the order of the ranks, at all of them, whatever is left over when the values are divided among them.
    #[test]
    fn a_sum_is_made_in_the_order_of_the_ranks() {
        for (size, n) in [(1, 5), (2, 1), (2, 7), (3, 7), (4, 4), (5, 0), (3, 1000)] {
            let sums =
                on_ranks(size, |world| world.start_sum(values(world.rank(), n), Wire::Fp32).wait().unwrap());
            let mut expected = values(0, n);
            for rank in 1..size {
                expected.iter_mut().zip(values(rank, n)).for_each(|(sum, value)| *sum += value);
            }
            for sum in sums {
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&sum), bits(&expected), "{size} ranks, {n} values");
            }
        }
    }

    /// Those of a machine first, then the machines; with one process each, in the order of the ranks.
    #[test]
    fn machines_add_up_before_they_tell_one_another() {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for (n_machines, n_local, n) in [(2, 2, 9), (3, 2, 1), (2, 3, 600), (4, 1, 10), (1, 4, 10)] {
            let sums = on(World::threads_on(n_machines, n_local), |world| {
                world.start_sum(values(world.rank(), n), Wire::Fp32).wait().unwrap()
            });
            let add = |mut sum: Vec<f32>, values: Vec<f32>| {
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                sum
            };
            let of_machine = |machine: usize| {
                let ranks = (0..n_local).map(|local| values(machine * n_local + local, n));
                ranks.reduce(add).unwrap()
            };
            let expected = match n_local == 1 || n_machines == 1 {
                true => (0..n_machines * n_local).map(|rank| values(rank, n)).reduce(add).unwrap(),
                false => (0..n_machines).map(of_machine).reduce(add).unwrap(),
            };
            for sum in &sums {
                assert_eq!(bits(sum), bits(&expected), "{n_machines} machines of {n_local}, {n} values");
            }
            let rounded = on(World::threads_on(n_machines, n_local), |world| {
                world.start_sum(values(world.rank(), n), Wire::Bf16).wait().unwrap()
            });
            assert!(rounded.iter().all(|sum| *sum == rounded[0]));
        }
    }

    #[test]
    fn sums_come_in_the_order_in_which_they_were_begun() {
        let sums = on_ranks(2, |world| {
            let begun: Vec<Sum> = (0..5).map(|i| world.start_sum(vec![i as f32; 3], Wire::Fp32)).collect();
            begun.into_iter().map(|sum| sum.wait().unwrap()[0]).collect::<Vec<_>>()
        });
        assert_eq!(sums, [[0.0, 2.0, 4.0, 6.0, 8.0], [0.0, 2.0, 4.0, 6.0, 8.0]]);
    }

    #[test]
    fn a_sum_of_16_bits_is_near_and_the_same_for_all() {
        let sums =
            on_ranks(3, |world| world.start_sum(values(world.rank(), 100), Wire::Bf16).wait().unwrap());
        assert!(sums.iter().all(|sum| *sum == sums[0]));
        let mut differs = false;
        for (i, &sum) in sums[0].iter().enumerate() {
            let exact: f32 = (0..3).map(|rank| values(rank, 100)[i]).sum();
            assert!((sum - exact).abs() <= 0.1, "{sum} instead of {exact}");
            differs |= sum != exact;
        }
        assert!(differs);
    }

    #[test]
    fn bf16_is_the_nearest_ties_to_even() {
        for (value, expected) in [
            (1.0, 1.0),
            (-0.0, -0.0),
            (1.0 + 1.0 / 256.0, 1.0),
            (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0),
            (1.0 + 1.1 / 256.0, 1.0 + 1.0 / 128.0),
            (f32::INFINITY, f32::INFINITY),
            (f32::MAX, f32::INFINITY),
        ] {
            assert_eq!(from_bf16(to_bf16(value)).to_bits(), f32::to_bits(expected), "{value}");
        }
        assert!(from_bf16(to_bf16(f32::from_bits(0x7f80_0001))).is_nan());
    }

    #[test]
    fn all_are_told_what_each_says() {
        let said = on_ranks(3, |world| {
            let rank = world.rank();
            let numbers = world.gather_numbers(&[rank as f64, 0.5]).unwrap();
            world.barrier().unwrap();
            let words = world.gather(&vec![b'a' + rank as u8; rank * 2]).unwrap();
            let told = world.broadcast(if rank == 0 { b"order".to_vec() } else { vec![1] }).unwrap();
            (numbers, words, told)
        });
        for (numbers, words, told) in said {
            assert_eq!(numbers, [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]);
            assert_eq!(words, [b"".to_vec(), b"bb".to_vec(), b"cccc".to_vec()]);
            assert_eq!(told, b"order");
        }
    }

    /// Whoever waits for one that has ended is told.
    #[test]
    fn a_rank_that_is_gone_is_noticed() {
        let results = on_ranks(3, |world| {
            world.barrier().unwrap();
            match world.rank() {
                1 => Ok(()),
                _ => world.barrier(),
            }
        });
        assert_eq!(results, [Err(WorldError), Ok(()), Err(WorldError)]);
    }

    #[test]
    fn alone_everything_is_as_it_is_said() {
        let world = World::ALONE;
        assert_eq!(world.start_sum(vec![1.5], Wire::Fp32).wait().unwrap(), [1.5]);
        assert_eq!(world.gather(b"a").unwrap(), [b"a"]);
        assert_eq!(world.broadcast(b"b".to_vec()).unwrap(), b"b");
        assert!(world.is_alone() && world.is_root() && world.ranks().is_none());
    }

    #[test]
    fn machines_are_counted_in_the_record() {
        let worlds = World::threads(2);
        let ranks = worlds[1].ranks().unwrap();
        assert_eq!(ranks.hosts, [HostRanks { host: "here".into(), n: 2, ranks: vec![0, 1] }]);
        assert_eq!((ranks.n, worlds[1].name_of(1)), (2, "1".into()));
    }
}
