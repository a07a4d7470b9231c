//! Sums and maxima within a cube, sums always in the same order.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// Threads of a cube: as many as WebGPU promises.
pub(super) const THREADS: usize = 256;

/// The sum of the values of all threads whose number modulo `lanes`, a power of two, is that of this one. All threads of a cube of
/// [`THREADS`] have to come here.
#[cube]
pub(super) fn sum_of_lane<F: Float, N: Size>(value: Vector<F, N>, #[comptime] lanes: usize) -> Vector<F, N> {
    let unit = UNIT_POS as usize;
    let mut values = Shared::<[Vector<F, N>]>::new_slice(THREADS);
    values[unit] = value;
    sync_cube();
    let n_halvings = comptime!((THREADS / lanes).ilog2());
    #[unroll]
    for i in 0..n_halvings {
        let half = comptime!(THREADS >> (i + 1));
        if unit < half {
            let other = values[unit + half];
            values[unit] += other;
        }
        sync_cube();
    }
    let sum = values[unit % lanes];
    // Others may be given the same memory.
    sync_cube();
    sum
}

/// The largest of the values of the threads of a cube. All threads have to come here.
#[cube]
pub(super) fn largest_of_cube<F: Float>(value: F) -> F {
    let unit = UNIT_POS as usize;
    let mut values = Shared::<[F]>::new_slice(THREADS);
    values[unit] = value;
    sync_cube();
    #[unroll]
    for i in 0..comptime!(THREADS.ilog2()) {
        let half = comptime!(THREADS >> (i + 1));
        if unit < half {
            let other = values[unit + half];
            if other > values[unit] {
                values[unit] = other;
            }
        }
        sync_cube();
    }
    let largest = values[0];
    // Others may be given the same memory.
    sync_cube();
    largest
}
