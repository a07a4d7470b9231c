//! Results of the kernels: memory that has no values until they are written.

use std::mem::MaybeUninit;

use crate::codes::Coded;

/// A value of a result, which can be written, but not read.
pub type Slot<T = f32> = MaybeUninit<T>;

/// What results are made of.
pub trait Fill: Copy {
    /// What tests fill memory with that is to be written: hardly a result.
    #[cfg_attr(not(test), expect(dead_code, reason = "of tests"))]
    const NONE: Self;
}

impl Fill for f32 {
    const NONE: Self = Self::NAN;
}

impl Fill for u8 {
    const NONE: Self = 0xa5;
}

impl Fill for [u8; 4] {
    const NONE: Self = [0xa5; 4];
}

/// The `n` values that `write` writes. Zeros to begin with would cost as much as a normalization.
///
/// # Safety
/// `write` writes a number to each of the slots.
pub unsafe fn collect<T: Fill>(n: usize, write: impl FnOnce(&mut [Slot<T>])) -> Vec<T> {
    let mut values = Vec::new();
    // SAFETY: as the caller promises.
    unsafe { collect_into(&mut values, n, write) };
    values
}

/// The same, in the memory of a vector that has served before.
///
/// # Safety
/// `write` writes a number to each of the slots.
pub unsafe fn collect_into<T: Fill>(values: &mut Vec<T>, n: usize, write: impl FnOnce(&mut [Slot<T>])) {
    values.clear();
    values.reserve(n);
    let slots = &mut values.spare_capacity_mut()[..n];
    // No test takes for a result what the memory held before.
    #[cfg(test)]
    slots.fill(Slot::new(T::NONE));
    write(slots);
    // SAFETY: there is room for `n` values, and the caller promises that each is written.
    unsafe { values.set_len(n) };
}

/// The `n` values that `write` writes, and their codes, if it says that they are codes.
///
/// # Safety
/// `write` writes a number to each of the slots, and a byte to each of those of the codes.
pub unsafe fn collect_coded(n: usize, write: impl FnOnce(&mut [Slot], &mut [Slot<u8>]) -> bool) -> Coded {
    let (mut codes, mut are_codes) = (Vec::with_capacity(n), false);
    let slots = &mut codes.spare_capacity_mut()[..n];
    #[cfg(test)]
    slots.fill(Slot::new(0xa5));
    // SAFETY: the caller promises that each value is written.
    let values = unsafe { collect(n, |values| are_codes = write(values, slots)) };
    // SAFETY: there is room for `n` codes, and the caller promises that each is written.
    unsafe { codes.set_len(n) };
    Coded { values, codes: are_codes.then_some(codes) }
}
