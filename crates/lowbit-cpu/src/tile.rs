//! Tiles of the kernels of codes: sums for some pixels and a block of channels.

use crate::instructions::Instructions;
use crate::output::Slot;
use crate::transpose::transpose8;

/// Channels that are computed together.
pub const BLOCK: usize = 16;

/// Writes `out[v * stride + p] = sums[p][v]` for the first `channels` values of every row.
///
/// # Panics
/// If a value is beyond the output.
#[inline(always)]
pub fn store_transposed<const P: usize, const L: usize>(
    instructions: impl Instructions,
    sums: &[[f32; L]; P],
    out: &mut [Slot],
    stride: usize,
    channels: usize,
) {
    let channels = channels.min(L);
    assert!(channels > 0 && (channels - 1) * stride + P <= out.len(), "the output is too short");
    for half in (0..channels).step_by(8) {
        for first in (0..P).step_by(8) {
            let rows: [[f32; 8]; 8] = std::array::from_fn(|p| {
                let row = &sums[(first + p).min(P - 1)];
                std::array::from_fn(|v| row[half + v])
            });
            let columns = transpose8(instructions, rows);
            let n = (P - first).min(8);
            for (v, column) in columns.iter().enumerate().take(channels - half) {
                let start = (half + v) * stride + first;
                // SAFETY: `start + n <= (channels - 1) * stride + P <= out.len()`, as `half + v < channels` and
                // `first + n <= P`.
                let target = unsafe { out.as_mut_ptr().add(start) };
                // SAFETY: as above, and `n <= 8`, the values of the column.
                unsafe { std::ptr::copy_nonoverlapping(column.as_ptr(), target.cast::<f32>(), n) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::Baseline;
    use crate::output::collect;

    /// Tiles of any size, of which not all channels are wanted.
    #[test]
    fn tiles_are_transposed() {
        fn check<const P: usize, const L: usize>() {
            let sums: [[f32; L]; P] = std::array::from_fn(|p| std::array::from_fn(|v| (p * L + v) as f32));
            for channels in [1, L / 2 + 1, L] {
                // SAFETY: for each of the channels, `P` values that lie `P` apart.
                let out = unsafe {
                    collect(P * channels, |out| store_transposed(Baseline, &sums, out, P, channels))
                };
                for (i, value) in out.iter().enumerate() {
                    assert_eq!(*value, sums[i % P][i / P]);
                }
            }
        }
        check::<1, 8>();
        check::<6, 16>();
        check::<8, 16>();
        check::<13, 8>();
    }
}
