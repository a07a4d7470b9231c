//! Transposition of small matrices.

#[cfg(all(test, target_arch = "x86_64"))]
use crate::instructions::Avx2;
#[cfg(test)]
use crate::instructions::Baseline;
use crate::instructions::Instructions;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let rows: [[f32; 8]; 8] = std::array::from_fn(|i| std::array::from_fn(|j| (8 * i + j) as f32));
        let expected: [[f32; 8]; 8] = std::array::from_fn(|i| std::array::from_fn(|j| (8 * j + i) as f32));
        assert_eq!(transpose8(Baseline, rows), expected);
        #[cfg(target_arch = "x86_64")]
        if let Some(proof) = Avx2::detect() {
            assert_eq!(transpose8(proof, rows), expected);
        }
    }
}
