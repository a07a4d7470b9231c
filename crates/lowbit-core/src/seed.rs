//! Randomness as a pure function: every random number of a run comes from a generator that is rebuilt from
//! `(run seed, purpose, epoch, step)` where it is needed. Nothing draws from a shared generator, so a resumed run
//! needs no saved generator state and the number of threads cannot change a draw.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// What a stream of random numbers is for. Two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights of a network: in epoch 0 one stream for all its layers, which draw from it in forward order; in
    /// epoch 1 its adapters to a teacher, `step` being the index of the feature map.
    InitialWeights = 1,
    /// Order of the training samples; one draw per epoch.
    Shuffle = 2,
    /// Augmentation of one sample; `step` is the sample's index in the data set.
    Augment = 3,
    /// Which units are quantized in one iteration (stochastic precision).
    StochasticPrecision = 4,
    /// Which images are held back from training; `step` is the class.
    Split = 5,
    /// Noise of gradients of few bits: keys of the layers of a network in a step. `epoch` is the network's index.
    GradientNoise = 6,
}

/// The generator for one purpose at one point of a run.
///
/// The four numbers are the key of a ChaCha8 stream, so that streams of different points are independent.
///
/// ```
/// use lowbit_core::{Purpose, stream};
/// use rand::RngExt;
///
/// let draw = |step| stream(7, Purpose::Shuffle, 0, step).random::<u64>();
/// assert_eq!(draw(3), draw(3));
/// assert_ne!(draw(3), draw(4));
/// ```
pub fn stream(run_seed: u64, purpose: Purpose, epoch: u64, step: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (bytes, part) in key.chunks_exact_mut(8).zip([run_seed, purpose as u64, epoch, step]) {
        bytes.copy_from_slice(&part.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}
