//! Switches and counts of the whole process, for this workspace's tests and benchmarks: no part of the interface. A program that
//! used them would change what every other part of it computes.

pub use crate::choice::{Implementation, use_implementation};
#[cfg(feature = "cube")]
pub use crate::launches::{Launched, Launches};
pub use crate::times::{KernelTime, take_times};
