//! Where the time of the kernels goes, by kind of operation. Two readings of the clock for each operation cost nothing
//! beside it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Kinds of operations that are timed apart.
#[cfg(any(feature = "flex", feature = "ndarray"))]
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    ConvForward,
    ConvCodes,
    ConvInputGradient,
    ConvWeightGradient,
    Norm,
    NormGradients,
    Activations,
    Weights,
}

const NAMES: [&str; 8] = [
    "convolution",
    "convolution of codes",
    "gradient of a convolution's input",
    "gradient of a convolution's weights",
    "normalization",
    "gradient of a normalization",
    "fake quantization alone",
    "weights of DoReFa",
];

static NANOSECONDS: [AtomicU64; NAMES.len()] = [const { AtomicU64::new(0) }; NAMES.len()];

/// Runs `operation` and adds its time to those of its kind.
#[cfg(any(feature = "flex", feature = "ndarray"))]
pub(crate) fn timed<T>(kind: Kind, operation: impl FnOnce() -> T) -> T {
    let start = std::time::Instant::now();
    let result = operation();
    NANOSECONDS[kind as usize].fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

/// Time that the kernels of the CPU backends have taken since the last call, by kind of operation, for profiles. A
/// normalization includes the activation fused to it. All threads of the process count together.
pub fn take_times() -> [(&'static str, Duration); NAMES.len()] {
    std::array::from_fn(|i| (NAMES[i], Duration::from_nanos(NANOSECONDS[i].swap(0, Ordering::Relaxed))))
}
