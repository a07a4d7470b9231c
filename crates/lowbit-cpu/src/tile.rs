//! The one microkernel of all convolutions in single precision. It has a tile for AVX-512 besides what the compiler makes of
//! its loops.

#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Avx512};
use crate::instructions::{Baseline, Instructions};
use crate::output::Slot;
use crate::transpose::transpose8;

/// Channels that are computed together.
pub const BLOCK: usize = 16;

/// Operands of [`run`].
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// What is read one value at a time.
    pub image: &'a [f32],
    /// Where in the image the sums start.
    pub starts: &'a [u32],
    /// How far from its start a sum reads its values.
    pub steps: &'a [u32],
    /// A row of `lanes` values for each step.
    pub panel: &'a [f32],
}

/// Where the sums of a tile go.
pub trait Sink {
    /// Takes the sums of the `starts` from number `first` on; `sums` may have more rows than there are starts.
    fn take<const P: usize, const L: usize>(
        &mut self,
        instructions: impl Instructions,
        first: usize,
        sums: &[[f32; L]; P],
    );
}

/// Sums of products of scalars of the image with rows of the panel:
///
/// `sums[p][v] = sum over k of image[starts[p] + steps[k]] * panel[k][v]`
///
/// A row of the panel has `L` values. The sum is taken in the order of `k`.
///
/// # Safety
/// `start + step < image.len()` for every start and step.
#[inline(always)]
unsafe fn tile<const P: usize, const L: usize, const FMA: bool>(
    operands: Operands<'_>,
    starts: &[u32; P],
) -> [[f32; L]; P] {
    let mut sums = [[0.0; L]; P];
    let windows = starts.map(|start| operands.image.as_ptr().wrapping_add(start as usize));
    let (rows, _) = operands.panel.as_chunks::<L>();
    for (&step, row) in operands.steps.iter().zip(rows) {
        for p in 0..P {
            // SAFETY: `start + step < image.len()`, which the caller promises.
            let x = unsafe { *windows[p].add(step as usize) };
            for v in 0..L {
                sums[p][v] = if FMA { x.mul_add(row[v], sums[p][v]) } else { x * row[v] + sums[p][v] };
            }
        }
    }
    sums
}

/// Computes [`tile`]s for all starts and hands them to `sink`.
///
/// # Safety
/// `start + step < image.len()` for every start and step.
#[inline(always)]
unsafe fn tiles<const P: usize, const L: usize, const FMA: bool>(
    instructions: impl Instructions,
    operands: Operands<'_>,
    sink: &mut impl Sink,
) {
    let starts = operands.starts;
    let last = starts.len() - 1;
    for first in (0..starts.len()).step_by(P) {
        let group: [u32; P] = std::array::from_fn(|p| starts[(first + p).min(last)]);
        // SAFETY: `start + step < image.len()`, which the caller promises.
        let sums = unsafe { tile::<P, L, FMA>(operands, &group) };
        sink.take::<P, L>(instructions, first, &sums);
    }
}

/// # Safety
/// `start + step < image.len()` for every start and step.
#[inline(always)]
unsafe fn by_lanes<const WIDE: usize, const NARROW: usize, const FMA: bool>(
    instructions: impl Instructions,
    operands: Operands<'_>,
    lanes: usize,
    sink: &mut impl Sink,
) {
    // SAFETY: `start + step < image.len()`, which the caller promises.
    unsafe {
        match lanes {
            BLOCK => tiles::<WIDE, BLOCK, FMA>(instructions, operands, sink),
            _ => tiles::<NARROW, { BLOCK / 2 }, FMA>(instructions, operands, sink),
        }
    }
}

/// # Safety
/// `start + step < image.len()` for every start and step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(proof: Avx2, operands: Operands<'_>, lanes: usize, sink: &mut impl Sink) {
    // SAFETY: `start + step < image.len()`, which the caller promises.
    unsafe { by_lanes::<6, 8, true>(proof, operands, lanes, sink) }
}

/// Tiles of [`BLOCK`] lanes, each a register. Of [`tile`]'s loops the compiler would make gathers of single values here.
///
/// # Safety
/// `start + step < image.len()` for every start and step.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn avx512(proof: Avx512, operands: Operands<'_>, sink: &mut impl Sink) {
    use std::arch::x86_64::*;
    // As many as have their windows in registers too.
    const P: usize = 8;
    let starts = operands.starts;
    let (rows, _) = operands.panel.as_chunks::<BLOCK>();
    for first in (0..starts.len()).step_by(P) {
        let start = |p: usize| starts[(first + p).min(starts.len() - 1)] as usize;
        let windows: [*const f32; P] =
            std::array::from_fn(|p| operands.image.as_ptr().wrapping_add(start(p)));
        let mut sums = [_mm512_setzero_ps(); P];
        for (&step, row) in operands.steps.iter().zip(rows) {
            // SAFETY: a row has the size of a register.
            let row = unsafe { _mm512_loadu_ps(row.as_ptr()) };
            for p in 0..P {
                // SAFETY: `start + step < image.len()`, which the caller promises.
                let x = _mm512_set1_ps(unsafe { *windows[p].add(step as usize) });
                sums[p] = _mm512_fmadd_ps(x, row, sums[p]);
            }
        }
        // SAFETY: a register has the size of a row.
        let sums: [[f32; BLOCK]; P] = unsafe { std::mem::transmute(sums) };
        sink.take(proof, first, &sums);
    }
}

/// [`tile`]s of all starts with the fastest instructions there are.
///
/// # Panics
/// If a start plus a step is beyond the image, or the panel has fewer rows than there are steps, or there are none.
pub fn run(operands: Operands<'_>, lanes: usize, sink: &mut impl Sink) {
    if operands.starts.is_empty() {
        return;
    }
    let reach = |indices: &[u32]| indices.iter().copied().max().expect("a sum has summands") as usize;
    let last = reach(operands.starts) + reach(operands.steps);
    assert!(last < operands.image.len(), "a tap is outside of the image");
    assert!(operands.panel.len() >= operands.steps.len() * lanes, "the panel is too short");
    #[cfg(target_arch = "x86_64")]
    if lanes == BLOCK
        && let Some(proof) = Avx512::detect()
    {
        // SAFETY: the processor has the instructions, and the bounds are checked above.
        return unsafe { avx512(proof, operands, sink) };
    }
    #[cfg(target_arch = "x86_64")]
    if let Some(proof) = Avx2::detect() {
        // SAFETY: as above.
        return unsafe { avx2(proof, operands, lanes, sink) };
    }
    // SAFETY: the bounds are checked above.
    unsafe {
        #[cfg(target_arch = "aarch64")]
        by_lanes::<6, 8, true>(Baseline, operands, lanes, sink);
        #[cfg(not(target_arch = "aarch64"))]
        by_lanes::<2, 4, false>(Baseline, operands, lanes, sink);
    }
}

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
    use crate::output::collect;

    /// Collects transposed results, as a store does.
    struct Collect {
        out: Vec<f32>,
        n: usize,
    }

    impl Sink for Collect {
        fn take<const P: usize, const L: usize>(
            &mut self,
            instructions: impl Instructions,
            first: usize,
            sums: &[[f32; L]; P],
        ) {
            // SAFETY: for each of `L` channels, `P` values that lie `P` apart.
            let rows = unsafe { collect(P * L, |rows| store_transposed(instructions, sums, rows, P, L)) };
            for v in 0..L {
                for p in 0..P.min(self.n - first) {
                    self.out[v * self.n + first + p] = rows[v * P + p];
                }
            }
        }
    }

    /// The tiles of this processor and of others, in whatever instructions there are: the same sums in the same order. Values
    /// are small integers, so that a fused multiplication does not round differently.
    #[test]
    fn tiles_of_all_sizes_are_the_same() {
        let image: Vec<f32> = (0..100).map(|i| (i * 37 % 11) as f32 - 5.0).collect();
        let steps: Vec<u32> = (0..23).map(|i| i * 3).collect();
        for lanes in [BLOCK / 2, BLOCK] {
            let panel: Vec<f32> = (0..23 * lanes).map(|i| (i * 29 % 13) as f32 - 6.0).collect();
            for n in [1, 5, 6, 8, 12, 13, 16, 29] {
                let starts: Vec<u32> = (0..n as u32).collect();
                let operands = Operands { image: &image, starts: &starts, steps: &steps, panel: &panel };
                let collect = || Collect { out: vec![f32::NAN; n * lanes], n };
                let mut results = [collect(), collect(), collect()];
                run(operands, lanes, &mut results[0]);
                // SAFETY: the image has 100 values; the largest start is 28 and the largest step 66.
                unsafe {
                    by_lanes::<2, 4, false>(Baseline, operands, lanes, &mut results[1]);
                    by_lanes::<6, 8, true>(Baseline, operands, lanes, &mut results[2]);
                }
                for (i, &got) in results[0].out.iter().enumerate() {
                    let (v, p) = (i / n, i % n);
                    let products =
                        steps.iter().enumerate().map(|(k, &s)| image[p + s as usize] * panel[k * lanes + v]);
                    assert_eq!(got, products.sum::<f32>());
                }
                assert!(results.iter().all(|result| result.out == results[0].out));
            }
        }
    }
}
