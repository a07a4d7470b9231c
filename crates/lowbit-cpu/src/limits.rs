//! What this machine reaches at most, for benchmarks that say how far from it a kernel is.

use std::hint::black_box;

use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Avx512};

/// Sums that are computed side by side. A multiplication with addition takes 4 or 5 cycles and two begin in each: fewer
/// than 10 sums would wait for each other, more than 14 would not fit 16 registers.
const SUMS: usize = 12;

/// Values that one thread copies at a time.
const CHUNK: usize = 1 << 18;

/// Values of the widest vector there is; on narrower ones a round is several.
const WIDEST: usize = 16;

/// Floating-point operations of a round: two for each multiplication with addition.
pub const ROUND: usize = 2 * SUMS * WIDEST;

/// Multiplies and adds without reading or writing memory, `n` rounds of [`ROUND`] operations shared by all threads of the
/// pool.
pub fn multiply_add(n: usize) {
    rayon::broadcast(|thread| {
        let first = |idx: usize| n * idx / thread.num_threads();
        widest(first(thread.index() + 1) - first(thread.index()));
    });
}

/// Copies with all threads.
///
/// # Panics
/// If the lengths differ.
pub fn copy(from: &[f32], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "length of the copy");
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
}

fn widest(n: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2(n: usize) {
            registers::<8, true>(n);
        }
        /// By intrinsics: the compiler keeps no arrays of this length in registers.
        #[target_feature(enable = "avx512f")]
        fn avx512(n: usize) {
            use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps};
            let [factor, summand] = [0.5; 2].map(|value| black_box(_mm512_set1_ps(value)));
            let mut sums = black_box([_mm512_set1_ps(1.0); SUMS]);
            for _ in 0..n {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, factor, summand);
                }
            }
            black_box(sums);
        }
        if Avx512::detect().is_some() {
            // SAFETY: the processor has the instructions.
            return unsafe { avx512(n) };
        }
        if Avx2::detect().is_some() {
            // SAFETY: the processor has the instructions.
            return unsafe { avx2(n) };
        }
    }
    registers::<4, { cfg!(target_arch = "aarch64") }>(n);
}

#[inline(always)]
fn registers<const LANES: usize, const FMA: bool>(n: usize) {
    // The sums stay close to 1.
    let (factor, summand) = (black_box([0.5f32; LANES]), black_box([0.5f32; LANES]));
    let mut sums = black_box([[1.0f32; LANES]; SUMS]);
    for _ in 0..n * (WIDEST / LANES) {
        for sum in &mut sums {
            for lane in 0..LANES {
                let (x, y) = (factor[lane], summand[lane]);
                sum[lane] = if FMA { sum[lane].mul_add(x, y) } else { sum[lane] * x + y };
            }
        }
    }
    black_box(sums);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_copied() {
        let from: Vec<f32> = (0..CHUNK + 3).map(|i| i as f32).collect();
        let mut to = vec![0.0; from.len()];
        copy(&from, &mut to);
        assert_eq!(from, to);
    }
}
