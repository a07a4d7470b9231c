//! Results of the kernels: memory that has no values until they are written.

use std::mem::MaybeUninit;

/// A value of a result, which can be written, but not read.
pub type Slot = MaybeUninit<f32>;

/// The `n` values that `write` writes. Zeros to begin with would cost as much as a normalization.
///
/// # Safety
/// `write` writes a number to each of the slots.
pub unsafe fn collect(n: usize, write: impl FnOnce(&mut [Slot])) -> Vec<f32> {
    let mut values = Vec::with_capacity(n);
    let slots = &mut values.spare_capacity_mut()[..n];
    // No test takes for a result what the memory held before.
    #[cfg(test)]
    slots.fill(Slot::new(f32::NAN));
    write(slots);
    // SAFETY: there is room for `n` values, and the caller promises that each is written.
    unsafe { values.set_len(n) };
    values
}
