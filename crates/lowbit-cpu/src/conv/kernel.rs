//! The two loops of all convolutions in single precision: sums for many pixels, and sums over many pixels. They are written once,
//! over vectors of any length.

#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Avx512};

/// Results of a pixel that are computed together: the length of a row of a panel.
pub const ROWS: usize = 8;

/// Pixels by which operands and results are longer than what is asked for: no tile reaches further.
pub const BEYOND: usize = 32;

/// Rows of [`dots`].
pub const DOTS: usize = 4;

/// A vector of floats, in a register.
trait Lanes: Copy {
    const LEN: usize;

    fn splat(value: f32) -> Self;

    /// # Safety
    /// There are [`Self::LEN`] values to read.
    unsafe fn load(from: *const f32) -> Self;

    /// # Safety
    /// There is room for [`Self::LEN`] values.
    unsafe fn store(self, to: *mut f32);

    /// `self * factor + summand`
    fn multiply_add(self, factor: Self, summand: Self) -> Self;

    /// The sum of the values of each vector.
    fn sums(vectors: [Self; DOTS]) -> [f32; DOTS];
}

/// A vector that the compiler makes of an array, for processors whose vectors have no type here.
impl<const N: usize> Lanes for [f32; N] {
    const LEN: usize = N;

    #[inline(always)]
    fn splat(value: f32) -> Self {
        [value; N]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as the caller promises.
        unsafe { to.cast::<Self>().write_unaligned(self) };
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, summand: Self) -> Self {
        let mut result = summand;
        for i in 0..N {
            result[i] = if cfg!(target_arch = "aarch64") {
                self[i].mul_add(factor[i], summand[i])
            } else {
                self[i] * factor[i] + summand[i]
            };
        }
        result
    }

    #[inline(always)]
    fn sums(vectors: [Self; DOTS]) -> [f32; DOTS] {
        let mut sums = [0.0; DOTS];
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = vector.iter().sum();
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Dots, Lanes, Products, all_dots, all_products};

    /// # Safety
    /// As [`all_products`], and the processor has the instructions.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn avx512_products(operands: Products<'_>, out: &mut [f32], stride: usize) {
        // SAFETY: as the caller promises.
        unsafe { all_products::<__m512, 8, 2>(operands, out, stride) }
    }

    /// # Safety
    /// As [`all_products`], and the processor has the instructions.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2_products(operands: Products<'_>, out: &mut [f32], stride: usize) {
        // SAFETY: as the caller promises.
        unsafe { all_products::<__m256, 4, 2>(operands, out, stride) }
    }

    /// # Safety
    /// As [`all_dots`], and the processor has the instructions.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn avx512_dots(operands: Dots<'_>, out: &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe { all_dots::<__m512, 6>(operands, out) }
    }

    /// # Safety
    /// As [`all_dots`], and the processor has the instructions.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2_dots(operands: Dots<'_>, out: &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe { all_dots::<__m256, 3>(operands, out) }
    }

    /// Only functions with AVX2 and fused multiplication use it.
    impl Lanes for __m256 {
        const LEN: usize = 8;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: the processor has the instructions.
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as the caller promises.
            unsafe { _mm256_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as the caller promises.
            unsafe { _mm256_storeu_ps(to, self) };
        }

        #[inline(always)]
        fn multiply_add(self, factor: Self, summand: Self) -> Self {
            // SAFETY: the processor has the instructions.
            unsafe { _mm256_fmadd_ps(self, factor, summand) }
        }

        #[inline(always)]
        fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
            // SAFETY: the processor has the instructions.
            let halves = unsafe { _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d)) };
            let mut sums = [0.0; 4];
            // SAFETY: as above, and there is room for four values.
            unsafe {
                let all = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
                _mm_storeu_ps(sums.as_mut_ptr(), all);
            }
            sums
        }
    }

    /// Only functions with AVX-512 use it.
    impl Lanes for __m512 {
        const LEN: usize = 16;

        #[inline(always)]
        fn splat(value: f32) -> Self {
            // SAFETY: the processor has the instructions.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as the caller promises.
            unsafe { _mm512_loadu_ps(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as the caller promises.
            unsafe { _mm512_storeu_ps(to, self) };
        }

        #[inline(always)]
        fn multiply_add(self, factor: Self, summand: Self) -> Self {
            // SAFETY: the processor has the instructions.
            unsafe { _mm512_fmadd_ps(self, factor, summand) }
        }

        #[inline(always)]
        fn sums([a, b, c, d]: [Self; 4]) -> [f32; 4] {
            // SAFETY: the processor has the instructions, and there is room for four values.
            unsafe {
                // Two halves of each, then two quarters, one after the other.
                let ab = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b01_00_01_00>(a, b),
                    _mm512_shuffle_f32x4::<0b11_10_11_10>(a, b),
                );
                let cd = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b01_00_01_00>(c, d),
                    _mm512_shuffle_f32x4::<0b11_10_11_10>(c, d),
                );
                let quarters = _mm512_add_ps(
                    _mm512_shuffle_f32x4::<0b10_00_10_00>(ab, cd),
                    _mm512_shuffle_f32x4::<0b11_01_11_01>(ab, cd),
                );
                // Within each quarter.
                let pairs = _mm512_add_ps(quarters, _mm512_shuffle_ps::<0b01_00_11_10>(quarters, quarters));
                let all = _mm512_add_ps(pairs, _mm512_shuffle_ps::<0b10_11_00_01>(pairs, pairs));
                let places = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
                let mut sums = [0.0; 4];
                _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(_mm512_permutexvar_ps(places, all)));
                sums
            }
        }
    }
}

/// Operands of [`products`].
#[derive(Clone, Copy)]
pub struct Products<'a> {
    /// What is read at every step of a pixel.
    pub image: &'a [f32],
    /// How far from a pixel its values are.
    pub steps: &'a [u32],
    /// [`ROWS`] factors for each step.
    pub panel: &'a [f32],
    /// Pixels, the first of which is the image's first value.
    pub n: usize,
    /// Whether the sums are added to.
    pub adds: bool,
}

/// Operands of [`dots`].
#[derive(Clone, Copy)]
pub struct Dots<'a> {
    /// What is read at every step.
    pub image: &'a [f32],
    /// How far from a pixel the values of a sum are.
    pub steps: &'a [u32],
    /// Up to [`DOTS`] rows of factors, each of `n` values and then zeros.
    pub rows: &'a [f32],
    /// Values from row to row.
    pub stride: usize,
    /// How many rows.
    pub n_rows: usize,
    /// Pixels, the first of which is the image's first value.
    pub n: usize,
}

/// The sums of `R` rows and `N` vectors of pixels.
///
/// # Safety
/// As [`all_products`], for the pixels that `image` and `out` point at; `panel` begins at the first of `R` factors.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "loops over registers, which are numbered alike")]
unsafe fn tile_of_products<V: Lanes, const R: usize, const N: usize>(
    image: *const f32,
    steps: &[u32],
    panel: *const f32,
    out: *mut f32,
    stride: usize,
    adds: bool,
) {
    let mut sums = [[V::splat(0.0); N]; R];
    if adds {
        for r in 0..R {
            for n in 0..N {
                // SAFETY: the sums are there, as the caller promises.
                sums[r][n] = unsafe { V::load(out.add(r * stride + n * V::LEN)) };
            }
        }
    }
    let mut factors = panel;
    for &step in steps {
        let mut x = [V::splat(0.0); N];
        for n in 0..N {
            // SAFETY: the pixel plus the step is in the image, as the caller promises.
            x[n] = unsafe { V::load(image.add(step as usize + n * V::LEN)) };
        }
        for r in 0..R {
            // SAFETY: the panel has a row for each step.
            let factor = V::splat(unsafe { *factors.add(r) });
            for n in 0..N {
                sums[r][n] = x[n].multiply_add(factor, sums[r][n]);
            }
        }
        // Behind the last row it is not read.
        factors = factors.wrapping_add(ROWS);
    }
    for r in 0..R {
        for n in 0..N {
            // SAFETY: there is room for the sums, as the caller promises.
            unsafe { sums[r][n].store(out.add(r * stride + n * V::LEN)) };
        }
    }
}

/// [`products`] by tiles of `R` rows and `N` vectors.
///
/// # Safety
/// `image`, `panel` and `out` are as long as [`products`] checks.
#[inline(always)]
unsafe fn all_products<V: Lanes, const R: usize, const N: usize>(
    operands: Products<'_>,
    out: &mut [f32],
    stride: usize,
) {
    let Products { image, steps, panel, n, adds } = operands;
    for first in (0..n).step_by(N * V::LEN) {
        for row in (0..ROWS).step_by(R) {
            // SAFETY: tiles begin before `n` and are not longer than `BEYOND`: pixels plus steps are in the image, and there is
            // room for the sums. Rows are among those of the panel.
            unsafe {
                let (image, panel) = (image.as_ptr().add(first), panel.as_ptr().add(row));
                let out = out.as_mut_ptr().add(row * stride + first);
                tile_of_products::<V, R, N>(image, steps, panel, out, stride, adds);
            }
        }
    }
}

/// `out[row][pixel] = sum over k of panel[k][row] * image[pixel + steps[k]]`, in the order of `k`, or that added. Rows of the
/// result lie `stride` values apart; up to [`BEYOND`] values behind the pixels are written too, of which nothing is known.
///
/// # Panics
/// If an operand or the result is shorter than that.
pub fn products(operands: Products<'_>, out: &mut [f32], stride: usize) {
    let Products { image, steps, panel, n, .. } = operands;
    let reach = steps.iter().copied().max().unwrap_or(0) as usize;
    assert!(reach + n + BEYOND <= image.len(), "a step is outside of the image");
    assert!(steps.len() * ROWS <= panel.len(), "the panel is too short");
    assert!(n + BEYOND <= stride && ROWS * stride <= out.len(), "the result is too short");
    #[cfg(target_arch = "x86_64")]
    {
        if Avx512::detect().is_some() {
            // SAFETY: the processor has the instructions, and the lengths are checked above.
            return unsafe { x86::avx512_products(operands, out, stride) };
        }
        if Avx2::detect().is_some() {
            // SAFETY: as above.
            return unsafe { x86::avx2_products(operands, out, stride) };
        }
    }
    // SAFETY: the lengths are checked above.
    unsafe {
        #[cfg(target_arch = "aarch64")]
        all_products::<[f32; 4], 8, 3>(operands, out, stride);
        #[cfg(not(target_arch = "aarch64"))]
        all_products::<[f32; 4], 4, 2>(operands, out, stride);
    }
}

/// The sums of all rows and `B` steps over `n` pixels, in vectors.
///
/// # Safety
/// Pixels up to the next multiple of a vector plus steps are in the image, and rows have as many values.
#[inline(always)]
unsafe fn tile_of_dots<V: Lanes, const B: usize>(
    rows: [*const f32; DOTS],
    image: [*const f32; B],
    n: usize,
) -> [[V; B]; DOTS] {
    let mut sums = [[V::splat(0.0); B]; DOTS];
    for pixel in (0..n).step_by(V::LEN) {
        let mut x = [V::splat(0.0); B];
        for b in 0..B {
            // SAFETY: as the caller promises.
            x[b] = unsafe { V::load(image[b].add(pixel)) };
        }
        for a in 0..DOTS {
            // SAFETY: as the caller promises.
            let row = unsafe { V::load(rows[a].add(pixel)) };
            for b in 0..B {
                sums[a][b] = x[b].multiply_add(row, sums[a][b]);
            }
        }
    }
    sums
}

/// # Safety
/// As [`dots`] checks.
#[inline(always)]
unsafe fn all_dots<V: Lanes, const B: usize>(operands: Dots<'_>, out: &mut [f32]) {
    let Dots { image, steps, rows, stride, n_rows, n } = operands;
    let mut row_starts = [rows.as_ptr(); DOTS];
    for (a, start) in row_starts.iter_mut().enumerate() {
        *start = start.wrapping_add(a.min(n_rows - 1) * stride);
    }
    for (i, group) in steps.chunks(B).enumerate() {
        let mut starts = [image.as_ptr(); B];
        for (b, start) in starts.iter_mut().enumerate() {
            *start = start.wrapping_add(group[b.min(group.len() - 1)] as usize);
        }
        // SAFETY: as the caller promises, for rows and steps that are repeated too.
        let sums = unsafe { tile_of_dots::<V, B>(row_starts, starts, n) };
        for b in 0..group.len() {
            let all = V::sums([sums[0][b], sums[1][b], sums[2][b], sums[3][b]]);
            for (a, sum) in all.iter().enumerate().take(n_rows) {
                out[a * steps.len() + i * B + b] += sum;
            }
        }
    }
}

/// Adds `sum over pixels of rows[a][pixel] * image[pixel + steps[b]]` to `out[a][b]`, in an order that depends on the instructions.
///
/// # Panics
/// If an operand or the result is too short: the image has to have [`BEYOND`] values behind the last one, and each row zeros up to
/// the next multiple of [`BEYOND`].
pub fn dots(operands: Dots<'_>, out: &mut [f32]) {
    let Dots { image, steps, rows, stride, n_rows, n } = operands;
    let reach = steps.iter().copied().max().unwrap_or(0) as usize;
    assert!(reach + n + BEYOND <= image.len(), "a step is outside of the image");
    assert!((1..=DOTS).contains(&n_rows), "rows that are not computed together");
    assert!((n_rows - 1) * stride + n.next_multiple_of(BEYOND) <= rows.len(), "the rows are too short");
    assert!(n_rows * steps.len() <= out.len(), "the result is too short");
    #[cfg(target_arch = "x86_64")]
    {
        if Avx512::detect().is_some() {
            // SAFETY: the processor has the instructions, and the lengths are checked above.
            return unsafe { x86::avx512_dots(operands, out) };
        }
        if Avx2::detect().is_some() {
            // SAFETY: as above.
            return unsafe { x86::avx2_dots(operands, out) };
        }
    }
    // SAFETY: the lengths are checked above.
    unsafe {
        #[cfg(target_arch = "aarch64")]
        all_dots::<[f32; 4], 6>(operands, out);
        #[cfg(not(target_arch = "aarch64"))]
        all_dots::<[f32; 4], 2>(operands, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type OfProducts = unsafe fn(Products<'_>, &mut [f32], usize);
    type OfDots = unsafe fn(Dots<'_>, &mut [f32]);

    /// The loops as this processor and others run them.
    fn all() -> Vec<(&'static str, OfProducts, OfDots)> {
        let all: Vec<(&str, OfProducts, OfDots)> = vec![
            ("baseline", all_products::<[f32; 4], 4, 2>, all_dots::<[f32; 4], 2>),
            ("neon", all_products::<[f32; 4], 8, 3>, all_dots::<[f32; 4], 6>),
        ];
        #[cfg(target_arch = "x86_64")]
        let all = {
            let mut all = all;
            if Avx2::detect().is_some() {
                all.push(("avx2", x86::avx2_products, x86::avx2_dots));
            }
            if Avx512::detect().is_some() {
                all.push(("avx512", x86::avx512_products, x86::avx512_dots));
            }
            all
        };
        all
    }

    /// Small integers: every sum is exact, whatever its order and whether a product is rounded.
    fn value(i: usize) -> f32 {
        (i * 37 % 11) as f32 - 5.0
    }

    /// Operands are as short as the checks allow, and have no values where none is to be used.
    #[test]
    fn products_are_sums_of_products() {
        for n in [1, 7, 8, 15, 16, 31, 32, 33, 65] {
            for n_steps in [0, 1, 5, 9] {
                let steps: Vec<u32> = (0..n_steps).map(|k| k * 3 % 13).collect();
                let reach = steps.iter().max().map_or(0, |step| *step as usize);
                let image: Vec<f32> = (0..reach + n + BEYOND)
                    .map(|i| if i < reach + n { value(i) } else { f32::NAN })
                    .collect();
                let panel: Vec<f32> = (0..n_steps as usize * ROWS).map(|i| value(i + 3)).collect();
                let stride = n + BEYOND;
                for (name, run, _) in all() {
                    let mut out = vec![f32::NAN; ROWS * stride];
                    for (adds, times) in [(false, 1.0), (true, 2.0)] {
                        let operands = Products { image: &image, steps: &steps, panel: &panel, n, adds };
                        // SAFETY: the lengths are those that `products` asks for.
                        unsafe { run(operands, &mut out, stride) };
                        for (row, out) in out.chunks(stride).enumerate() {
                            for (pixel, out) in out[..n].iter().enumerate() {
                                let products = steps
                                    .iter()
                                    .enumerate()
                                    .map(|(k, step)| panel[k * ROWS + row] * image[pixel + *step as usize]);
                                assert_eq!(
                                    *out,
                                    times * products.sum::<f32>(),
                                    "{name} {n} {n_steps} {row} {pixel}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn dots_are_sums_over_pixels() {
        for n in [1, 7, 8, 16, 31, 32, 33, 97] {
            for n_steps in [1, 2, 5, 6, 7, 13] {
                for n_rows in 1..=DOTS {
                    let steps: Vec<u32> = (0..n_steps).map(|k| k * 5 % 17).collect();
                    let reach = *steps.iter().max().unwrap() as usize;
                    let image: Vec<f32> = (0..reach + n + BEYOND).map(value).collect();
                    let stride = n.next_multiple_of(BEYOND) + 3;
                    let len = (n_rows - 1) * stride + n.next_multiple_of(BEYOND);
                    let rows: Vec<f32> =
                        (0..len).map(|i| if i % stride < n { value(i + 1) } else { 0.0 }).collect();
                    for (name, _, run) in all() {
                        let mut out: Vec<f32> = (0..n_rows * steps.len()).map(value).collect();
                        let operands = Dots { image: &image, steps: &steps, rows: &rows, stride, n_rows, n };
                        // SAFETY: the lengths are those that `dots` asks for.
                        unsafe { run(operands, &mut out) };
                        for (i, out) in out.iter().enumerate() {
                            let (a, step) = (i / steps.len(), steps[i % steps.len()] as usize);
                            let products = (0..n).map(|pixel| rows[a * stride + pixel] * image[pixel + step]);
                            assert_eq!(
                                *out,
                                value(i) + products.sum::<f32>(),
                                "{name} {n} {n_steps} {n_rows} {i}"
                            );
                        }
                    }
                }
            }
        }
    }
}
