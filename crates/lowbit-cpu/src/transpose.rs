//! Transposition of matrices into panels: rows of few channels become rows of few lanes.

#[cfg(target_arch = "x86_64")]
use crate::instructions::Avx2;
use crate::instructions::{Baseline, Instructions};

/// The transpose of an 8 by 8 matrix.
#[inline(always)]
pub fn transpose8<I: Instructions>(_: I, rows: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    if I::AVX2 {
        // SAFETY: the processor has the instructions.
        return unsafe { transpose8_avx(rows) };
    }
    std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i]))
}

/// Three levels of interleaving: pairs, quarters, halves. The compiler does not find these from the plain loop.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx")]
fn transpose8_avx(rows: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
    use std::arch::x86_64::*;
    // SAFETY: an array of 8 values and a register have the same size and any bits are valid.
    let r: [__m256; 8] = unsafe { std::mem::transmute(rows) };
    let mut pairs = r;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let mut quarters = pairs;
    for i in 0..2 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        quarters[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
        quarters[4 * i + 1] = _mm256_shuffle_ps::<0xEE>(a, c);
        quarters[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
        quarters[4 * i + 3] = _mm256_shuffle_ps::<0xEE>(b, d);
    }
    let mut halves = quarters;
    for i in 0..4 {
        halves[i] = _mm256_permute2f128_ps::<0x20>(quarters[i], quarters[i + 4]);
        halves[i + 4] = _mm256_permute2f128_ps::<0x31>(quarters[i], quarters[i + 4]);
    }
    // SAFETY: as above.
    unsafe { std::mem::transmute(halves) }
}

/// Blocks of 8 columns of up to 8 rows, then the columns that are left.
#[inline(always)]
fn to_panel_body(
    instructions: impl Instructions,
    rows: &[f32],
    stride: usize,
    n_rows: usize,
    columns: usize,
    lanes: usize,
    panel: &mut [f32],
) {
    for first in (0..lanes).step_by(8) {
        let present = n_rows.saturating_sub(first).min(8);
        for (block, out) in panel[..columns * lanes].chunks_mut(8 * lanes).enumerate() {
            let column = block * 8;
            let width = (columns - column).min(8);
            let mut square = [[0.0; 8]; 8];
            for (i, row) in square.iter_mut().enumerate().take(present) {
                let from = &rows[(first + i) * stride + column..][..width];
                match from.first_chunk::<8>() {
                    Some(all) => *row = *all,
                    None => row[..width].copy_from_slice(from),
                }
            }
            let square = transpose8(instructions, square);
            for (out, row) in out.chunks_exact_mut(lanes).zip(&square) {
                out[first..first + 8].copy_from_slice(row);
            }
        }
    }
}

/// `panel[column][row] = rows[row * stride + column]`, rows of `lanes` (a multiple of 8) with zeros from `n_rows` on.
///
/// # Panics
/// If a slice is too short.
pub fn to_panel(rows: &[f32], stride: usize, n_rows: usize, columns: usize, lanes: usize, panel: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        #[allow(clippy::too_many_arguments, reason = "inner loops take their buffers one by one")]
        fn avx2(
            proof: Avx2,
            rows: &[f32],
            stride: usize,
            n_rows: usize,
            columns: usize,
            lanes: usize,
            panel: &mut [f32],
        ) {
            to_panel_body(proof, rows, stride, n_rows, columns, lanes, panel);
        }
        if let Some(proof) = Avx2::detect() {
            // SAFETY: the processor has the instructions.
            return unsafe { avx2(proof, rows, stride, n_rows, columns, lanes, panel) };
        }
    }
    to_panel_body(Baseline, rows, stride, n_rows, columns, lanes, panel);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panel_is_the_transpose_with_zeros() {
        for lanes in [8, 16] {
            for n_rows in 1..=lanes {
                for columns in [1, 2, 7, 8, 9, 16, 21] {
                    let stride = columns + 3;
                    let rows: Vec<f32> = (0..n_rows * stride).map(|i| i as f32 + 1.0).collect();
                    let mut panel = vec![f32::NAN; columns * lanes];
                    to_panel(&rows, stride, n_rows, columns, lanes, &mut panel);
                    for column in 0..columns {
                        for row in 0..lanes {
                            let expected = if row < n_rows { rows[row * stride + column] } else { 0.0 };
                            assert_eq!(panel[column * lanes + row], expected);
                        }
                    }
                }
            }
        }
    }
}
