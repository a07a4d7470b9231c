//! The two loops of all convolutions in floats: sums for many pixels, and sums over many pixels. They are written once, over vectors
//! of any length and of what is multiplied: floats, or numbers of bf16, of which two are multiplied where one float is.

use std::hint::black_box;

use super::cell::{Bf16, Bf16Pair, Cell, Rounded};
#[cfg(target_arch = "x86_64")]
use crate::instructions::{Avx2, Avx512, Avx512Bf16};

/// Most results of a pixel that are computed together.
pub const MOST_ROWS: usize = 16;

/// Results of a pixel that vectors compute together.
const ROWS: usize = 8;

/// Most steps that are equally far from each other.
pub const TOGETHER: usize = 16;

/// Pixels by which operands and results are longer than what is asked for: no tile reaches further.
pub const BEYOND: usize = 64;

/// Pixels that lie side by side wherever the others are.
pub const OCTET: usize = 8;

/// Most cells of a vector.
pub const MOST_LANES: usize = 32;

/// Rows of [`dots`].
pub const DOTS: usize = 4;

/// A vector of sums, in a register.
trait Sums: Copy {
    const LEN: usize;

    fn zero() -> Self;

    /// # Safety
    /// There are [`Self::LEN`] values to read.
    unsafe fn load(from: *const f32) -> Self;

    /// # Safety
    /// There is room for [`Self::LEN`] values.
    unsafe fn store(self, to: *mut f32);

    /// `self * factor + sums`
    fn times_plus(self, factor: f32, sums: Self) -> Self;

    /// The sum of the values of each vector.
    fn totals(vectors: [Self; DOTS]) -> [f32; DOTS];
}

/// A vector of cells, in a register.
trait Lanes: Copy {
    type Cell: Cell;
    type Sums: Sums;

    const LEN: usize;

    fn splat(cell: Self::Cell) -> Self;

    /// # Safety
    /// There are [`Self::LEN`] cells to read.
    unsafe fn load(from: *const Self::Cell) -> Self;

    /// A vector of two octets.
    ///
    /// # Safety
    /// There are [`OCTET`] cells to read of each.
    unsafe fn load_octets(_: [*const Self::Cell; 2]) -> Self {
        unreachable!("a vector of two octets has a function for it")
    }

    /// `sums + self * factor`, of cells of two numbers the sum of both products.
    fn multiply_add(self, factor: Self, sums: Self::Sums) -> Self::Sums;

    /// Adds `x[n] * factors[r]` to `sums[r][n]`.
    ///
    /// # Safety
    /// There are `R` factors to read.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "loops over registers, which are numbered alike")]
    unsafe fn add_products<const R: usize, const N: usize>(
        x: [Self; N],
        factors: *const Self::Cell,
        sums: &mut [[Self::Sums; N]; R],
    ) {
        for r in 0..R {
            // SAFETY: as the caller promises.
            let factor = Self::splat(unsafe { *factors.add(r) });
            for n in 0..N {
                sums[r][n] = x[n].multiply_add(factor, sums[r][n]);
            }
        }
    }
}

/// A vector that the compiler makes of an array, for processors whose vectors have no type here.
impl<const N: usize> Sums for [f32; N] {
    const LEN: usize = N;

    #[inline(always)]
    fn zero() -> Self {
        [0.0; N]
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
    fn times_plus(self, factor: f32, sums: Self) -> Self {
        self.multiply_add([factor; N], sums)
    }

    #[inline(always)]
    fn totals(vectors: [Self; DOTS]) -> [f32; DOTS] {
        let mut sums = [0.0; DOTS];
        for (sum, vector) in sums.iter_mut().zip(vectors) {
            *sum = vector.iter().sum();
        }
        sums
    }
}

impl<const N: usize> Lanes for [f32; N] {
    type Cell = f32;
    type Sums = Self;

    const LEN: usize = N;

    #[inline(always)]
    fn splat(cell: f32) -> Self {
        [cell; N]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as the caller promises.
        unsafe { <Self as Sums>::load(from) }
    }

    #[inline(always)]
    fn multiply_add(self, factor: Self, sums: Self) -> Self {
        let mut result = sums;
        for i in 0..N {
            result[i] = if cfg!(target_arch = "aarch64") {
                self[i].mul_add(factor[i], sums[i])
            } else {
                self[i] * factor[i] + sums[i]
            };
        }
        result
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use super::{Bf16, Bf16Pair, Dots, Lanes, Products, Sums, all_dots, all_products};

    /// # Safety
    /// As [`all_products`], and the processor has the instructions.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn avx512_products(operands: Products<'_, f32>, out: &mut [f32], stride: usize) {
        // SAFETY: as the caller promises.
        unsafe { all_products::<__m512, 8, 2>(operands, out, stride) }
    }

    /// # Safety
    /// As [`all_products`], and the processor has the instructions.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2_products(operands: Products<'_, f32>, out: &mut [f32], stride: usize) {
        // SAFETY: as the caller promises.
        unsafe { all_products::<__m256, 4, 3>(operands, out, stride) }
    }

    /// # Safety
    /// As [`all_dots`], and the processor has the instructions.
    #[target_feature(enable = "avx512f,avx2,fma")]
    pub unsafe fn avx512_dots(operands: Dots<'_, f32>, out: &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe { all_dots::<__m512, 6>(operands, out) }
    }

    /// # Safety
    /// As [`all_dots`], and the processor has the instructions.
    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn avx2_dots(operands: Dots<'_, f32>, out: &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe { all_dots::<__m256, 3>(operands, out) }
    }

    /// # Safety
    /// As [`all_products`], and the processor has the instructions.
    #[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
    pub unsafe fn bf16_products(operands: Products<'_, Bf16Pair>, out: &mut [f32], stride: usize) {
        // SAFETY: as the caller promises.
        unsafe { all_products::<Pairs, 8, 2>(operands, out, stride) }
    }

    /// # Safety
    /// As [`all_dots`], and the processor has the instructions.
    #[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
    pub unsafe fn bf16_dots(operands: Dots<'_, Bf16>, out: &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe { all_dots::<Numbers, 6>(operands, out) }
    }

    /// 16 pairs of numbers of bf16. Only functions with AVX-512 for these use it.
    #[derive(Clone, Copy)]
    pub struct Pairs(__m512bh);

    impl Lanes for Pairs {
        type Cell = Bf16Pair;
        type Sums = __m512;

        const LEN: usize = 16;

        #[inline(always)]
        fn splat(Bf16Pair(pair): Bf16Pair) -> Self {
            // SAFETY: the processor has the instructions, and any bits are numbers.
            Self(unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair.cast_signed())) })
        }

        #[inline(always)]
        unsafe fn load(from: *const Bf16Pair) -> Self {
            // SAFETY: as the caller promises, and any bits are numbers.
            Self(unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) })
        }

        #[inline(always)]
        unsafe fn load_octets(from: [*const Bf16Pair; 2]) -> Self {
            // SAFETY: as the caller promises, and any bits are numbers.
            Self(unsafe {
                std::mem::transmute::<__m512, __m512bh>(__m512::load_octets(
                    from.map(<*const Bf16Pair>::cast),
                ))
            })
        }

        #[inline(always)]
        fn multiply_add(self, factor: Self, sums: __m512) -> __m512 {
            // SAFETY: the processor has the instructions.
            unsafe { _mm512_dpbf16_ps(sums, self.0, factor.0) }
        }
    }

    /// 32 numbers of bf16. Only functions with AVX-512 for these use it.
    #[derive(Clone, Copy)]
    pub struct Numbers(__m512bh);

    impl Lanes for Numbers {
        type Cell = Bf16;
        type Sums = __m512;

        const LEN: usize = 32;

        #[inline(always)]
        fn splat(Bf16(number): Bf16) -> Self {
            Pairs::splat(Bf16Pair(u32::from(number) * 0x1_0001)).into()
        }

        #[inline(always)]
        unsafe fn load(from: *const Bf16) -> Self {
            // SAFETY: as the caller promises: 32 numbers are 16 pairs.
            unsafe { Pairs::load(from.cast()).into() }
        }

        #[inline(always)]
        fn multiply_add(self, factor: Self, sums: __m512) -> __m512 {
            Pairs(self.0).multiply_add(Pairs(factor.0), sums)
        }
    }

    impl From<Pairs> for Numbers {
        #[inline(always)]
        fn from(pairs: Pairs) -> Self {
            Self(pairs.0)
        }
    }

    /// Only functions with AVX2 and fused multiplication use it.
    impl Lanes for __m256 {
        type Cell = f32;
        type Sums = Self;

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
        fn multiply_add(self, factor: Self, sums: Self) -> Self {
            // SAFETY: the processor has the instructions.
            unsafe { _mm256_fmadd_ps(self, factor, sums) }
        }

        #[inline(always)]
        unsafe fn add_products<const R: usize, const N: usize>(
            x: [Self; N],
            factors: *const f32,
            sums: &mut [[Self; N]; R],
        ) {
            let (x, sums) = (x.as_slice().try_into(), sums.as_flattened_mut().try_into());
            let (Ok(x), Ok(sums)) = (x, sums) else { unreachable!("tiles of AVX2 are 4 rows of 3 vectors") };
            // SAFETY: as the caller promises.
            unsafe { add_12_products(x, factors, sums) };
        }
    }

    /// Adds products of 3 vectors with 4 factors to 12 sums. With the vectors and a factor these are all registers that AVX2 has. The
    /// compiler reads the next factor too early for that, and keeps a sum in memory; with 8 sums, the other choice, the units wait for
    /// each other's results.
    ///
    /// # Safety
    /// There are 4 factors to read.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_12_products([x0, x1, x2]: &[__m256; 3], factors: *const f32, sums: &mut [__m256; 12]) {
        // SAFETY: the processor has the instructions, and there are 4 factors, as the caller promises.
        unsafe {
            asm!(
                "vbroadcastss {f}, dword ptr [{factors}]",
                "vfmadd231ps {a0}, {x0}, {f}",
                "vfmadd231ps {a1}, {x1}, {f}",
                "vfmadd231ps {a2}, {x2}, {f}",
                "vbroadcastss {f}, dword ptr [{factors} + 4]",
                "vfmadd231ps {b0}, {x0}, {f}",
                "vfmadd231ps {b1}, {x1}, {f}",
                "vfmadd231ps {b2}, {x2}, {f}",
                "vbroadcastss {f}, dword ptr [{factors} + 8]",
                "vfmadd231ps {c0}, {x0}, {f}",
                "vfmadd231ps {c1}, {x1}, {f}",
                "vfmadd231ps {c2}, {x2}, {f}",
                "vbroadcastss {f}, dword ptr [{factors} + 12]",
                "vfmadd231ps {d0}, {x0}, {f}",
                "vfmadd231ps {d1}, {x1}, {f}",
                "vfmadd231ps {d2}, {x2}, {f}",
                factors = in(reg) factors, f = out(ymm_reg) _,
                x0 = in(ymm_reg) *x0, x1 = in(ymm_reg) *x1, x2 = in(ymm_reg) *x2,
                a0 = inout(ymm_reg) sums[0], a1 = inout(ymm_reg) sums[1], a2 = inout(ymm_reg) sums[2],
                b0 = inout(ymm_reg) sums[3], b1 = inout(ymm_reg) sums[4], b2 = inout(ymm_reg) sums[5],
                c0 = inout(ymm_reg) sums[6], c1 = inout(ymm_reg) sums[7], c2 = inout(ymm_reg) sums[8],
                d0 = inout(ymm_reg) sums[9], d1 = inout(ymm_reg) sums[10], d2 = inout(ymm_reg) sums[11],
                options(pure, readonly, nostack),
            );
        }
    }

    /// As above.
    impl Sums for __m256 {
        const LEN: usize = 8;

        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: the processor has the instructions.
            unsafe { _mm256_setzero_ps() }
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
        fn times_plus(self, factor: f32, sums: Self) -> Self {
            self.multiply_add(Self::splat(factor), sums)
        }

        #[inline(always)]
        fn totals([a, b, c, d]: [Self; 4]) -> [f32; 4] {
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
        type Cell = f32;
        type Sums = Self;

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
        unsafe fn load_octets([first, second]: [*const f32; 2]) -> Self {
            // SAFETY: as the caller promises.
            unsafe {
                let [first, second] = [first, second].map(|from| _mm256_loadu_pd(from.cast()));
                _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castpd256_pd512(first), second))
            }
        }

        #[inline(always)]
        fn multiply_add(self, factor: Self, sums: Self) -> Self {
            // SAFETY: the processor has the instructions.
            unsafe { _mm512_fmadd_ps(self, factor, sums) }
        }
    }

    /// As above.
    impl Sums for __m512 {
        const LEN: usize = 16;

        #[inline(always)]
        fn zero() -> Self {
            // SAFETY: the processor has the instructions.
            unsafe { _mm512_setzero_ps() }
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
        fn times_plus(self, factor: f32, sums: Self) -> Self {
            self.multiply_add(Self::splat(factor), sums)
        }

        #[inline(always)]
        fn totals([a, b, c, d]: [Self; 4]) -> [f32; 4] {
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

/// What [`products`] multiplies.
pub trait Factor: Cell {
    /// Whether octets of pixels may be anywhere.
    const IN_OCTETS: bool;

    /// Results of a pixel that are computed together: factors of a step in a panel.
    const ROWS: usize = ROWS;

    /// The place of a factor in the part of a panel that `n` steps have which are equally far from each other: that of step `i` for `row`.
    #[inline(always)]
    fn place(row: usize, i: usize, _n: usize) -> usize {
        i * Self::ROWS + row
    }

    /// [`products`], of lengths that are checked.
    ///
    /// # Safety
    /// As [`all_products`].
    unsafe fn products(operands: Products<'_, Self>, out: &mut [f32], stride: usize);
}

/// What [`dots`] multiplies.
pub trait Summand: Cell {
    /// As of [`Factor`].
    const IN_OCTETS: bool;

    /// [`dots`], of lengths that are checked.
    ///
    /// # Safety
    /// As [`all_dots`].
    unsafe fn dots(operands: Dots<'_, Self>, out: &mut [f32]);
}

impl Factor for f32 {
    const IN_OCTETS: bool = true;

    unsafe fn products(operands: Products<'_, Self>, out: &mut [f32], stride: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            if Avx512::detect().is_some() {
                // SAFETY: the processor has the instructions, and the rest as the caller promises.
                return unsafe { x86::avx512_products(operands, out, stride) };
            }
            if Avx2::detect().is_some() {
                // SAFETY: as above.
                return unsafe { x86::avx2_products(operands, out, stride) };
            }
        }
        // SAFETY: as the caller promises.
        unsafe {
            #[cfg(target_arch = "aarch64")]
            all_products::<[f32; 4], 8, 3>(operands, out, stride);
            #[cfg(not(target_arch = "aarch64"))]
            all_products::<[f32; 4], 4, 2>(operands, out, stride);
        }
    }
}

impl Summand for f32 {
    const IN_OCTETS: bool = true;

    unsafe fn dots(operands: Dots<'_, Self>, out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            if Avx512::detect().is_some() {
                // SAFETY: the processor has the instructions, and the rest as the caller promises.
                return unsafe { x86::avx512_dots(operands, out) };
            }
            if Avx2::detect().is_some() {
                // SAFETY: as above.
                return unsafe { x86::avx2_dots(operands, out) };
            }
        }
        // SAFETY: as the caller promises.
        unsafe {
            #[cfg(target_arch = "aarch64")]
            all_dots::<[f32; 4], 6>(operands, out);
            #[cfg(not(target_arch = "aarch64"))]
            all_dots::<[f32; 4], 2>(operands, out);
        }
    }
}

impl Factor for Rounded {
    const IN_OCTETS: bool = true;

    unsafe fn products(
        Products { image, steps, together, panel, pixels, n, adds }: Products<'_, Self>,
        out: &mut [f32],
        stride: usize,
    ) {
        let [image, panel] = [image, panel].map(Self::floats);
        // SAFETY: as the caller promises.
        unsafe { f32::products(Products { image, steps, together, panel, pixels, n, adds }, out, stride) }
    }
}

impl Summand for Rounded {
    const IN_OCTETS: bool = true;

    unsafe fn dots(
        Dots { image, steps, rows, stride, n_rows, pixels, n, units }: Dots<'_, Self>,
        out: &mut [f32],
    ) {
        let [image, rows] = [image, rows].map(Self::floats);
        // SAFETY: as the caller promises.
        unsafe { f32::dots(Dots { image, steps, rows, stride, n_rows, pixels, n, units }, out) }
    }
}

/// Whether the processor multiplies bf16: [`Bf16`] and [`Bf16Pair`] are for such ones.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return Avx512Bf16::detect().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

impl Factor for Bf16Pair {
    const IN_OCTETS: bool = true;

    unsafe fn products(operands: Products<'_, Self>, out: &mut [f32], stride: usize) {
        assert!(multiplies_bf16(), "the processor does not multiply bf16");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, and the rest as the caller promises.
        unsafe {
            x86::bf16_products(operands, out, stride);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (operands, out, stride);
    }
}

impl Summand for Bf16 {
    const IN_OCTETS: bool = false;

    unsafe fn dots(operands: Dots<'_, Self>, out: &mut [f32]) {
        assert!(multiplies_bf16(), "the processor does not multiply bf16");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the instructions, and the rest as the caller promises.
        unsafe {
            x86::bf16_dots(operands, out);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (operands, out);
    }
}

/// Where pixels are in an image.
#[derive(Clone, Copy, Debug)]
pub enum Pixels<'a> {
    /// Side by side, from the image's first value on.
    SideBySide,
    /// Each [`OCTET`] of them at a place of its own. There are places for the pixels up to [`BEYOND`] behind the last one too.
    InOctets(&'a [u32]),
    /// The same, each second octet beside the one before.
    InPairs(&'a [u32]),
}

/// The width of rows of whole octets, each of which has a place of its own, if that takes less time than `all` pixels side by side, with
/// the zeros between rows and images: for `height` rows of `width` pixels.
pub fn width_in_octets([height, width]: [usize; 2], all: usize) -> Option<usize> {
    let width = width.next_multiple_of(OCTET);
    let n = height * width;
    #[cfg(target_arch = "x86_64")]
    let has_two = Avx512::detect().is_some() && !width.is_multiple_of(2 * OCTET);
    #[cfg(not(target_arch = "x86_64"))]
    let has_two = false;
    // For a vector of two octets, each of them is loaded.
    let pays = if has_two { n + n / 16 < all } else { n <= all };
    pays.then_some(width)
}

impl<'a> Pixels<'a> {
    /// Rows of a width, whose octets are at these places.
    pub fn of_rows(width: usize, octets: &'a [u32]) -> Self {
        match width.is_multiple_of(2 * OCTET) {
            true => Self::InPairs(octets),
            false => Self::InOctets(octets),
        }
    }
}

/// Where the pixels of vectors are.
trait Places: Copy {
    /// That of a vector from a pixel on: of its first octet, and of the next.
    ///
    /// # Safety
    /// There is a place for each pixel of the vector.
    unsafe fn of(self, pixel: usize) -> [usize; 2];

    /// The cells there, from an image's first one on.
    ///
    /// # Safety
    /// There are [`Lanes::LEN`] cells to read.
    unsafe fn load<V: Lanes>(image: *const V::Cell, place: [usize; 2]) -> V;
}

/// Pixels lie side by side.
#[derive(Clone, Copy)]
struct SideBySide;

impl Places for SideBySide {
    #[inline(always)]
    unsafe fn of(self, pixel: usize) -> [usize; 2] {
        [pixel; 2]
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(image: *const V::Cell, [place, _]: [usize; 2]) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::load(image.add(place)) }
    }
}

/// The place of each [`OCTET`] of pixels, from this one on, for vectors of two octets.
#[derive(Clone, Copy)]
struct InOctets(*const u32);

impl Places for InOctets {
    #[inline(always)]
    unsafe fn of(self, pixel: usize) -> [usize; 2] {
        // SAFETY: as the caller promises.
        unsafe {
            let octet = self.0.add(pixel / OCTET);
            [*octet as usize, *octet.add(1) as usize]
        }
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(image: *const V::Cell, [first, second]: [usize; 2]) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::load_octets([image.add(first), image.add(second)]) }
    }
}

/// The same, where a vector has one octet or two that lie side by side.
#[derive(Clone, Copy)]
struct InPairs(*const u32);

impl Places for InPairs {
    #[inline(always)]
    unsafe fn of(self, pixel: usize) -> [usize; 2] {
        // SAFETY: as the caller promises.
        [unsafe { *self.0.add(pixel / OCTET) } as usize + pixel % OCTET; 2]
    }

    #[inline(always)]
    unsafe fn load<V: Lanes>(image: *const V::Cell, [place, _]: [usize; 2]) -> V {
        // SAFETY: as the caller promises.
        unsafe { V::load(image.add(place)) }
    }
}

/// Operands of [`products`].
#[derive(Clone, Copy)]
pub struct Products<'a, C> {
    /// What is read at every step of a pixel.
    pub image: &'a [C],
    /// How far from a pixel its values are.
    pub steps: &'a [u32],
    /// So many steps, from the first on and behind them, are equally far from each other; at the end there may be fewer.
    pub together: usize,
    /// [`Factor::ROWS`] factors for each step, at [`Factor::place`].
    pub panel: &'a [C],
    /// Where the pixels are.
    pub pixels: Pixels<'a>,
    /// How many there are.
    pub n: usize,
    /// Whether the sums are added to.
    pub adds: bool,
}

/// Operands of [`dots`].
#[derive(Clone, Copy)]
pub struct Dots<'a, C> {
    /// What is read at every step.
    pub image: &'a [C],
    /// How far from a pixel the values of a sum are.
    pub steps: &'a [u32],
    /// Up to [`DOTS`] rows of factors, each of `n` values and then zeros.
    pub rows: &'a [C],
    /// Values from row to row.
    pub stride: usize,
    /// How many rows.
    pub n_rows: usize,
    /// Where the pixels are.
    pub pixels: Pixels<'a>,
    /// How many there are.
    pub n: usize,
    /// What the sums over so many pixels each are multiplied with, if with anything; the number is a multiple of [`MOST_LANES`].
    pub units: Option<(&'a [f32], usize)>,
}

/// The sums of `R` rows and `N` vectors of pixels, which are at these places.
///
/// # Safety
/// As [`all_products`], for the pixels that `places` and `out` point at; `panel` begins at the first of `R` factors.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "loops over registers, which are numbered alike")]
#[allow(clippy::too_many_arguments, reason = "inner loops take their buffers one by one")]
unsafe fn tile_of_products<P: Places, V: Lanes, const R: usize, const N: usize>(
    image: *const V::Cell,
    places: [[usize; 2]; N],
    steps: &[u32],
    panel: *const V::Cell,
    out: *mut f32,
    stride: usize,
    adds: bool,
) {
    let mut sums = [[V::Sums::zero(); N]; R];
    if adds {
        for r in 0..R {
            for n in 0..N {
                // SAFETY: the sums are there, as the caller promises.
                sums[r][n] = unsafe { V::Sums::load(out.add(r * stride + n * V::LEN)) };
            }
        }
    }
    let mut factors = panel;
    for &step in steps {
        // SAFETY: the pixel plus the step is in the image, as the caller promises.
        let image = unsafe { image.add(step as usize) };
        // SAFETY: as above.
        let mut x: [V; N] = [unsafe { P::load(image, places[0]) }; N];
        for n in 1..N {
            // SAFETY: as above.
            x[n] = unsafe { P::load(image, places[n]) };
        }
        // SAFETY: the panel has a row for each step.
        unsafe { V::add_products(x, factors, &mut sums) };
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
    operands: Products<'_, V::Cell>,
    out: &mut [f32],
    stride: usize,
) {
    // There is a sum for each cell of a vector.
    const { assert!(V::LEN == V::Sums::LEN) };
    // SAFETY: as the caller promises.
    unsafe {
        match operands.pixels {
            Pixels::InOctets(octets) if V::LEN > OCTET => {
                products_at::<_, V, R, N>(InOctets(octets.as_ptr()), operands, out, stride);
            }
            Pixels::InOctets(octets) | Pixels::InPairs(octets) => {
                products_at::<_, V, R, N>(InPairs(octets.as_ptr()), operands, out, stride);
            }
            Pixels::SideBySide => products_at::<_, V, R, N>(SideBySide, operands, out, stride),
        }
    }
}

/// # Safety
/// As [`all_products`], of pixels at these places.
#[inline(always)]
unsafe fn products_at<P: Places, V: Lanes, const R: usize, const N: usize>(
    at: P,
    operands: Products<'_, V::Cell>,
    out: &mut [f32],
    stride: usize,
) {
    let Products { image, steps, panel, n, adds, .. } = operands;
    for first in (0..n).step_by(N * V::LEN) {
        let mut places = [[0; 2]; N];
        for (n, place) in places.iter_mut().enumerate() {
            // SAFETY: tiles begin before `n` and are not longer than `BEYOND`, to which there are places.
            *place = unsafe { at.of(first + n * V::LEN) };
        }
        for row in (0..ROWS).step_by(R) {
            // SAFETY: as above, pixels plus steps are in the image, and there is room for the sums. Rows are among those of the panel.
            unsafe {
                let (image, panel) = (image.as_ptr(), panel.as_ptr().add(row));
                let out = out.as_mut_ptr().add(row * stride + first);
                tile_of_products::<P, V, R, N>(image, places, steps, panel, out, stride, adds);
            }
        }
    }
}

/// `out[row][pixel] = sum over k of factor[k][row] * image[pixel + steps[k]]`, or that added, in an order that depends on the
/// steps and the instructions alone. Rows of the
/// result lie `stride` values apart; up to [`BEYOND`] values behind the pixels are written too, of which nothing is known.
///
/// # Panics
/// If an operand or the result is shorter than that, or the processor does not multiply such cells.
pub fn products<C: Factor>(operands: Products<'_, C>, out: &mut [f32], stride: usize) {
    let Products { image, steps, panel, n, pixels, .. } = operands;
    assert!(C::IN_OCTETS || matches!(pixels, Pixels::SideBySide), "such cells are side by side");
    check_steps(image, steps, pixels, n);
    assert!(steps.len() * C::ROWS <= panel.len(), "the panel is too short");
    assert!(n + BEYOND <= stride && C::ROWS * stride <= out.len(), "the result is too short");
    // SAFETY: the lengths are checked above.
    unsafe { C::products(operands, out, stride) }
}

/// Panics if pixels, up to [`BEYOND`] behind them, have no place or plus a step are outside of the image.
fn check_steps<C>(image: &[C], steps: &[u32], pixels: Pixels<'_>, n: usize) {
    let reach = steps.iter().copied().max().unwrap_or(0) as usize;
    let end = match pixels {
        Pixels::InOctets(octets) | Pixels::InPairs(octets) => {
            let octets = octets.get(..(n + BEYOND).div_ceil(OCTET)).expect("pixels without a place");
            // Of a pair the place of the first one is read.
            octets.iter().copied().max().unwrap_or(0) as usize + 2 * OCTET
        }
        Pixels::SideBySide => n + BEYOND,
    };
    assert!(reach + end <= image.len(), "a step is outside of the image");
}

/// The sums of all rows and `B` steps over `n` pixels, in vectors.
///
/// # Safety
/// Pixels up to the next multiple of a vector have places, which plus steps are in the image, and rows have as many values.
#[inline(always)]
unsafe fn tile_of_dots<P: Places, V: Lanes, const B: usize>(
    pixels: P,
    rows: [*const V::Cell; DOTS],
    image: [*const V::Cell; B],
    n: usize,
) -> [[V::Sums; B]; DOTS] {
    let mut sums = [[V::Sums::zero(); B]; DOTS];
    for pixel in (0..n).step_by(V::LEN) {
        // SAFETY: as the caller promises.
        let place = unsafe { pixels.of(pixel) };
        // SAFETY: as the caller promises.
        let mut x: [V; B] = [unsafe { P::load(image[0], place) }; B];
        for b in 1..B {
            // SAFETY: as the caller promises.
            x[b] = unsafe { P::load(image[b], place) };
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
unsafe fn all_dots<V: Lanes, const B: usize>(operands: Dots<'_, V::Cell>, out: &mut [f32]) {
    // SAFETY: as the caller promises.
    unsafe {
        match operands.pixels {
            Pixels::InOctets(octets) if V::LEN > OCTET => {
                dots_at::<_, V, B>(InOctets(octets.as_ptr()), operands, out);
            }
            Pixels::InOctets(octets) | Pixels::InPairs(octets) => {
                dots_at::<_, V, B>(InPairs(octets.as_ptr()), operands, out);
            }
            Pixels::SideBySide => dots_at::<_, V, B>(SideBySide, operands, out),
        }
    }
}

/// # Safety
/// As [`dots`] checks, of pixels at these places.
#[inline(always)]
unsafe fn dots_at<P: Places, V: Lanes, const B: usize>(at: P, operands: Dots<'_, V::Cell>, out: &mut [f32]) {
    let Dots { image, steps, rows, stride, n_rows, n, units, .. } = operands;
    let mut row_starts = [rows.as_ptr(); DOTS];
    for (a, start) in row_starts.iter_mut().enumerate() {
        *start = start.wrapping_add(a.min(n_rows - 1) * stride);
    }
    for (i, group) in steps.chunks(B).enumerate() {
        let mut starts = [image.as_ptr(); B];
        for (b, start) in starts.iter_mut().enumerate() {
            *start = start.wrapping_add(group[b.min(group.len() - 1)] as usize);
        }
        let sums = match units {
            // SAFETY: as the caller promises, for rows and steps that are repeated too.
            None => unsafe { tile_of_dots::<P, V, B>(at, row_starts, starts, n) },
            Some((units, together)) => {
                let mut sums = [[V::Sums::zero(); B]; DOTS];
                // In memory: the registers are for the parts.
                let in_memory = black_box(&mut sums);
                for (i, first) in (0..n).step_by(together).enumerate() {
                    let part_of = |place: *const V::Cell| place.wrapping_add(first);
                    // SAFETY: as above: parts but the last are a multiple of a vector, which ends where the whole does.
                    let part = unsafe {
                        let (rows, starts) = (row_starts.map(part_of), starts.map(part_of));
                        tile_of_dots::<P, V, B>(at, rows, starts, together.min(n - first))
                    };
                    for a in 0..DOTS {
                        for b in 0..B {
                            in_memory[a][b] = part[a][b].times_plus(units[i], in_memory[a][b]);
                        }
                    }
                }
                sums
            }
        };
        // All of them: sums that were numbered when this runs would have to lie in memory.
        let mut totals = [[0.0; DOTS]; B];
        for b in 0..B {
            totals[b] = V::Sums::totals([sums[0][b], sums[1][b], sums[2][b], sums[3][b]]);
        }
        let (out, _) = out[i * B * DOTS..].as_chunks_mut::<DOTS>();
        for (out, totals) in out.iter_mut().zip(totals).take(group.len()) {
            for a in 0..DOTS {
                out[a] += totals[a];
            }
        }
    }
}

/// Adds `sum over pixels of rows[a][pixel] * image[pixel + steps[b]]` to `out[b][a]`, in an order that depends on the instructions.
/// Of each step there are [`DOTS`] sums; those of rows that are not there are not defined.
///
/// # Panics
/// If an operand or the result is too short: the image has to have [`BEYOND`] values behind the last one, and each row zeros up to
/// the next multiple of [`BEYOND`]. Or if the processor does not multiply such cells.
pub fn dots<C: Summand>(operands: Dots<'_, C>, out: &mut [f32]) {
    let Dots { image, steps, rows, stride, n_rows, n, pixels, units } = operands;
    assert!(C::IN_OCTETS || matches!(pixels, Pixels::SideBySide), "such cells are side by side");
    check_steps(image, steps, pixels, n);
    assert!((1..=DOTS).contains(&n_rows), "rows that are not computed together");
    assert!((n_rows - 1) * stride + n.next_multiple_of(BEYOND) <= rows.len(), "the rows are too short");
    assert!(DOTS * steps.len() <= out.len(), "the result is too short");
    if let Some((units, together)) = units {
        assert!(matches!(pixels, Pixels::SideBySide), "pixels of parts lie side by side");
        assert!(together > 0 && together.is_multiple_of(MOST_LANES), "parts of whole vectors");
        assert!(n.div_ceil(together) <= units.len(), "a unit of each part");
    }
    // SAFETY: the lengths are checked above.
    unsafe { C::dots(operands, out) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A loop over operands of one kind of cell.
    type OfProducts<C> = unsafe fn(Products<'_, C>, &mut [f32], usize);
    type OfDots<C> = unsafe fn(Dots<'_, C>, &mut [f32]);

    /// The loops over floats as this processor and others run them.
    fn of_floats() -> Vec<(&'static str, OfProducts<f32>, OfDots<f32>)> {
        let all: Vec<(&str, OfProducts<f32>, OfDots<f32>)> = vec![
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

    /// Small integers: every sum is exact, whatever its order and whether a product is rounded, and they are numbers of bf16.
    fn value(i: usize) -> f32 {
        (i * 37 % 11) as f32 - 5.0
    }

    /// A cell with its numbers: [`value`] of its place, and of another one.
    fn cell<C: Cell>(i: usize) -> (C, [f32; 2]) {
        let numbers = [value(i), if C::CHANNELS == 2 { value(2 * i + 1) } else { 0.0 }];
        (C::of(numbers[0], numbers[1]), numbers)
    }

    fn product([a, b]: [f32; 2], [c, d]: [f32; 2]) -> f32 {
        a * c + b * d
    }

    #[test]
    fn products_are_sums_of_products() {
        for (name, run, _) in of_floats() {
            check_products(name, run);
        }
        check_products("rounded", <Rounded as Factor>::products);
        if multiplies_bf16() {
            check_products("bf16", <Bf16Pair as Factor>::products);
        }
    }

    /// Ways for `n` pixels to lie in an image of cells: side by side and, if the loop takes that, octets and pairs of them with others
    /// between. Of each, the places of octets, whether these are pairs, and the places of all pixels.
    fn ways_to_lie(in_octets: bool, n: usize) -> Vec<(Option<Vec<u32>>, bool, Vec<usize>)> {
        let mut ways = vec![(None, false, (0..n).collect())];
        for is_paired in [false, true].into_iter().filter(|_| in_octets) {
            let place = |octet: usize| match is_paired {
                true => octet / 2 * 19 + octet % 2 * OCTET,
                false => octet * 5 % 7 * 9 + octet / 7 * 64,
            };
            let octets = (0..(n + BEYOND).div_ceil(OCTET)).map(|octet| place(octet) as u32).collect();
            let places = (0..n).map(|pixel| place(pixel / OCTET) + pixel % OCTET).collect();
            ways.push((Some(octets), is_paired, places));
        }
        ways
    }

    fn pixels(octets: Option<&Vec<u32>>, is_paired: bool) -> Pixels<'_> {
        match octets {
            Some(octets) if is_paired => Pixels::InPairs(octets),
            Some(octets) => Pixels::InOctets(octets),
            None => Pixels::SideBySide,
        }
    }

    /// Cells of an image in which pixels at these places plus steps up to `reach` may be read.
    fn image_len(octets: Option<&Vec<u32>>, n: usize, reach: usize) -> usize {
        let end = octets.map(|octets| *octets.iter().max().unwrap() as usize + 2 * OCTET);
        reach + end.unwrap_or(n + BEYOND)
    }

    /// Operands are as short as the checks allow, and have no values where none is to be used.
    fn check_products<C: Factor>(name: &str, run: OfProducts<C>) {
        for (n, (octets, is_paired, places)) in [1, 7, 8, 15, 16, 31, 32, 33, 65]
            .into_iter()
            .flat_map(|n| ways_to_lie(C::IN_OCTETS, n).into_iter().map(move |way| (n, way)))
        {
            for n_steps in [0, 1, 5, 9] {
                let steps: Vec<u32> = (0..n_steps).map(|k| k * 3 % 13).collect();
                let reach = steps.iter().max().map_or(0, |step| *step as usize);
                let none = (C::of(f32::NAN, f32::NAN), [f32::NAN; 2]);
                let last = places.iter().max().unwrap();
                let (image, numbers): (Vec<C>, Vec<[f32; 2]>) = (0..image_len(octets.as_ref(), n, reach))
                    .map(|i| if i <= reach + last { cell::<C>(i) } else { none })
                    .unzip();
                let (panel, factors): (Vec<C>, Vec<[f32; 2]>) =
                    (0..n_steps as usize * ROWS).map(|i| cell::<C>(i + 3)).unzip();
                let stride = n + BEYOND;
                let mut out = vec![f32::NAN; ROWS * stride];
                for (adds, times) in [(false, 1.0), (true, 2.0)] {
                    let operands = Products {
                        image: &image,
                        steps: &steps,
                        together: 1,
                        panel: &panel,
                        pixels: pixels(octets.as_ref(), is_paired),
                        n,
                        adds,
                    };
                    // SAFETY: the lengths are those that `products` asks for.
                    unsafe { run(operands, &mut out, stride) };
                    for (row, out) in out.chunks(stride).enumerate() {
                        for (pixel, out) in out[..n].iter().enumerate() {
                            let products = steps.iter().enumerate().map(|(k, step)| {
                                product(factors[k * ROWS + row], numbers[places[pixel] + *step as usize])
                            });
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

    #[test]
    fn dots_are_sums_over_pixels() {
        for (name, _, run) in of_floats() {
            check_dots(name, run);
        }
        check_dots("rounded", <Rounded as Summand>::dots);
        if multiplies_bf16() {
            check_dots("bf16", <Bf16 as Summand>::dots);
        }
    }

    fn check_dots<C: Summand>(name: &str, run: OfDots<C>) {
        for (n, (octets, is_paired, places)) in [1, 7, 8, 16, 31, 32, 33, 97]
            .into_iter()
            .flat_map(|n| ways_to_lie(C::IN_OCTETS, n).into_iter().map(move |way| (n, way)))
        {
            for n_steps in [1, 2, 5, 6, 7, 13] {
                for n_rows in 1..=DOTS {
                    let steps: Vec<u32> = (0..n_steps).map(|k| k * 5 % 17).collect();
                    let reach = *steps.iter().max().unwrap() as usize;
                    let (image, numbers): (Vec<C>, Vec<[f32; 2]>) =
                        (0..image_len(octets.as_ref(), n, reach)).map(cell::<C>).unzip();
                    let stride = n.next_multiple_of(BEYOND) + 3;
                    let len = (n_rows - 1) * stride + n.next_multiple_of(BEYOND);
                    let zero = (C::of(0.0, 0.0), [0.0; 2]);
                    let (rows, factors): (Vec<C>, Vec<[f32; 2]>) =
                        (0..len).map(|i| if i % stride < n { cell::<C>(i + 1) } else { zero }).unzip();
                    let mut out: Vec<f32> = (0..DOTS * steps.len()).map(value).collect();
                    let operands = Dots {
                        image: &image,
                        steps: &steps,
                        rows: &rows,
                        stride,
                        n_rows,
                        pixels: pixels(octets.as_ref(), is_paired),
                        n,
                        units: None,
                    };
                    // SAFETY: the lengths are those that `dots` asks for.
                    unsafe { run(operands, &mut out) };
                    for (i, out) in out.iter().enumerate() {
                        let (a, step) = (i % DOTS, steps[i / DOTS] as usize);
                        if a >= n_rows {
                            continue;
                        }
                        let products = (0..n)
                            .map(|pixel| product(factors[a * stride + pixel], numbers[places[pixel] + step]));
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
