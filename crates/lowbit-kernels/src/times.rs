//! How often the kernels ran and where their time went, by kind of operation. Two readings of the clock for each operation
//! cost nothing beside it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Kinds of operations that are timed apart.
#[cfg(any(feature = "flex", feature = "ndarray"))]
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    ConvForward,
    PackedWeights,
    ConvCodes,
    KeepCodes,
    ConvInputGradient,
    ConvWeightGradient,
    ConvWeightGradientOfCodes,
    Relu,
    Pool,
    Norm,
    NormGradients,
    Activations,
    Weights,
    Gradients,
}

const NAMES: [&str; 14] = [
    "convolution",
    "codes of weights packed for a convolution",
    "convolution of codes",
    "codes kept for the backward pass",
    "gradient of a convolution's input",
    "gradient of a convolution's weights",
    "gradient of a convolution's weights, from codes",
    "ReLU alone or of a sum, and its gradient",
    "max pooling and its gradient",
    "normalization",
    "gradient of a normalization",
    "fake quantization alone",
    "weights of DoReFa, but for their grid",
    "gradients quantized",
];

/// What the kernels of one kind did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelTime {
    /// The kind of operation. A normalization includes the activation fused to it.
    pub name: &'static str,
    /// How many there were.
    pub calls: u64,
    /// The time that they took together.
    pub duration: Duration,
}

static CALLS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];
static NANOSECONDS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// Runs `operation` and adds its time to those of its kind.
#[cfg(any(feature = "flex", feature = "ndarray"))]
pub(crate) fn timed<T>(kind: Kind, operation: impl FnOnce() -> T) -> T {
    let start = std::time::Instant::now();
    let result = operation();
    CALLS[kind as usize].fetch_add(1, Ordering::Relaxed);
    NANOSECONDS[kind as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

/// What the kernels of the CPU backends have done since the last call, by kind of operation, for profiles and for tests of which
/// kernels run. All threads of the process count together.
pub fn take_times() -> [KernelTime; NAMES.len()] {
    std::array::from_fn(|i| KernelTime {
        name: NAMES[i],
        calls: CALLS[i].swap(0, Ordering::Relaxed),
        duration: Duration::from_nanos(NANOSECONDS[i].swap(0, Ordering::Relaxed)),
    })
}
