//! What lies at a place of a plane: a value of one channel, or of two, in the format that a loop multiplies.

use crate::bf16::{self, rest};
#[cfg(target_arch = "x86_64")]
use crate::instructions::Avx512Bf16;
use crate::instructions::multiversion;

/// What lies at a place of a plane.
///
/// # Safety
/// It has 2 or 4 bytes, any of which are a value.
pub unsafe trait Cell: Copy + Send + Sync + 'static {
    /// Channels whose values lie at one place: 1 or 2.
    const CHANNELS: usize;

    /// The values of the channels; the second one is not used if there is only one.
    fn of(first: f32, second: f32) -> Self;

    /// The same cells, if they are the values of one channel.
    fn of_values(_: &[f32]) -> Option<&[Self]> {
        None
    }
}

// SAFETY: any four bytes are a float.
unsafe impl Cell for f32 {
    const CHANNELS: usize = 1;

    #[inline(always)]
    fn of(first: f32, _: f32) -> Self {
        first
    }

    fn of_values(values: &[f32]) -> Option<&[Self]> {
        Some(values)
    }
}

/// A number of bf16 as a float, for processors that do not multiply bf16.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Rounded(f32);

// SAFETY: as above.
unsafe impl Cell for Rounded {
    const CHANNELS: usize = 1;

    #[inline(always)]
    fn of(first: f32, _: f32) -> Self {
        Self(bf16::round(first))
    }
}

impl Rounded {
    /// The same numbers as floats.
    pub fn floats(cells: &[Self]) -> &[f32] {
        // SAFETY: the one field of each is a float.
        unsafe { std::slice::from_raw_parts(cells.as_ptr().cast(), cells.len()) }
    }
}

/// A number of bf16: the upper half of a float's bits.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Bf16(pub u16);

// SAFETY: any two bytes are a number.
unsafe impl Cell for Bf16 {
    const CHANNELS: usize = 1;

    #[inline(always)]
    fn of(first: f32, _: f32) -> Self {
        Self((bf16::round(first).to_bits() >> 16) as u16)
    }
}

/// Two numbers of bf16, whose products are summed up together; the first one in the lower half.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Bf16Pair(pub u32);

// SAFETY: any four bytes are two numbers.
unsafe impl Cell for Bf16Pair {
    const CHANNELS: usize = 2;

    #[inline(always)]
    fn of(first: f32, second: f32) -> Self {
        Self(bf16::round(first).to_bits() >> 16 | bf16::round(second).to_bits())
    }
}

/// Writes the cells of values of one channel or two, each times a scale if there are some: of what is left of them behind so many terms
/// of bf16. The second channel has no values if there is none.
pub fn convert<C: Cell>(first: &[f32], second: &[f32], scales: Option<[f32; 2]>, term: usize, out: &mut [C]) {
    #[cfg(target_arch = "x86_64")]
    if Avx512Bf16::detect().is_some() {
        // SAFETY: the processor has the instructions.
        return unsafe { convert_avx512(first, second, scales, term, out) };
    }
    convert_narrow(first, second, scales, term, out);
}

/// Compiled for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bf16,avx512f,avx2,fma")]
fn convert_avx512<C: Cell>(
    first: &[f32],
    second: &[f32],
    scales: Option<[f32; 2]>,
    term: usize,
    out: &mut [C],
) {
    convert_body(first, second, scales, term, out);
}

multiversion! {
    fn convert_narrow<C: Cell>(
        first: &[f32],
        second: &[f32],
        scales: Option<[f32; 2]>,
        term: usize,
        out: &mut [C],
    ) {
        convert_body(first, second, scales, term, out);
    }
}

#[inline(always)]
fn convert_body<C: Cell>(
    first: &[f32],
    second: &[f32],
    scales: Option<[f32; 2]>,
    term: usize,
    out: &mut [C],
) {
    let [a, b] = scales.unwrap_or([1.0; 2]);
    let is_one = C::CHANNELS == 1 || second.is_empty();
    let both = first.iter().zip(second);
    match (is_one, term) {
        (true, 0) => out.iter_mut().zip(first).for_each(|(out, x)| *out = C::of(a * x, 0.0)),
        (true, _) => out.iter_mut().zip(first).for_each(|(out, x)| *out = C::of(rest(a * x, term), 0.0)),
        (false, 0) => out.iter_mut().zip(both).for_each(|(out, (x, y))| *out = C::of(a * x, b * y)),
        (false, _) => out
            .iter_mut()
            .zip(both)
            .for_each(|(out, (x, y))| *out = C::of(rest(a * x, term), rest(b * y, term))),
    }
}

/// A buffer of at least `len` cells in the memory of a vector that has served before; what they hold is not defined.
pub fn cells<C: Cell>(buffer: &mut Vec<f32>, len: usize) -> &mut [C] {
    let n_floats = (len * size_of::<C>()).div_ceil(size_of::<f32>());
    if buffer.len() < n_floats {
        buffer.resize(n_floats, 0.0);
    }
    // SAFETY: there are as many bytes, any of which are a cell; no cell has to be aligned more than a float.
    unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast(), len) }
}
