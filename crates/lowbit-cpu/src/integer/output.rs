//! What becomes of sums: values, or the codes of the levels that they are at.

use crate::instructions::Instructions;
use crate::output::Slot;
use crate::tile::{BLOCK, store_transposed};
use crate::words::WORD;

/// What becomes of sums.
pub trait Output: Sync {
    /// What the results are made of.
    type Item: Send;

    /// Channels that one result has.
    const CHANNELS: usize;

    /// Writes what becomes of the sums of `P` pixels and a block of channels. `out` begins with the first of these channels; `targets`
    /// are the places of the pixels in a channel, the last sums may be of none.
    fn write<I: Instructions, const P: usize>(
        &self,
        instructions: I,
        block: usize,
        sums: &[[i32; BLOCK]; P],
        targets: &[u32],
        out: &mut [Slot<Self::Item>],
    );

    /// Writes what becomes of a row of sums of each of four channels, of which `first` is the first one. `out` begins with that channel;
    /// `place` is that of the first pixel in it. The last rows may be of no channel.
    fn write_rows<I: Instructions>(
        &self,
        instructions: I,
        first: usize,
        rows: [&[i32]; WORD],
        place: usize,
        out: &mut [Slot<Self::Item>],
    );
}

/// What the sums are worth.
pub struct Values<'a> {
    pub plane: usize,
    /// For each output channel.
    pub offsets: &'a [i32],
    /// For each output channel.
    pub scales: &'a [f32],
}

impl Output for Values<'_> {
    type Item = f32;
    const CHANNELS: usize = 1;

    #[inline(always)]
    fn write<I: Instructions, const P: usize>(
        &self,
        instructions: I,
        block: usize,
        sums: &[[i32; BLOCK]; P],
        targets: &[u32],
        out: &mut [Slot],
    ) {
        let (scales, n) = of_block(self.scales, block);
        let (offsets, _) = of_block(self.offsets, block);
        let mut values = [[0.0; BLOCK]; P];
        for (values, sums) in values.iter_mut().zip(sums) {
            for v in 0..BLOCK {
                values[v] = sums[v].wrapping_sub(offsets[v]) as f32 * scales[v];
            }
        }
        let start = targets[0] as usize;
        if targets.len() == P && targets[P - 1] as usize == start + P - 1 {
            return store_transposed(instructions, &values, &mut out[start..], self.plane, n);
        }
        for v in 0..n {
            for (values, &target) in values.iter().zip(targets) {
                out[v * self.plane + target as usize].write(values[v]);
            }
        }
    }

    #[inline(always)]
    fn write_rows<I: Instructions>(
        &self,
        _: I,
        first: usize,
        rows: [&[i32]; WORD],
        place: usize,
        out: &mut [Slot],
    ) {
        let channels = self.scales[first..].iter().zip(&self.offsets[first..]);
        for (c, (row, (scale, offset))) in rows.iter().zip(channels).enumerate() {
            let out = &mut out[c * self.plane + place..][..row.len()];
            for (out, sum) in out.iter_mut().zip(*row) {
                out.write(sum.wrapping_sub(*offset) as f32 * scale);
            }
        }
    }
}

/// The numbers of a block of channels, zeros where there are fewer channels, and how many channels there are.
#[inline(always)]
fn of_block<T: Copy + Default>(numbers: &[T], block: usize) -> ([T; BLOCK], usize) {
    let numbers = &numbers[block * BLOCK..];
    let n = numbers.len().min(BLOCK);
    let mut result = [T::default(); BLOCK];
    result[..n].copy_from_slice(&numbers[..n]);
    (result, n)
}

/// At which of the levels of a quantizer a sum is, for each output channel.
///
/// The level of a sum is how many thresholds of its channel it has reached; a channel may count downwards, as one whose normalization
/// has a negative factor: there it is how many thresholds the sum with the other sign has reached.
#[derive(Clone, Debug)]
pub struct Levels {
    n_channels: usize,
    /// Thresholds of a channel.
    n_thresholds: usize,
    /// For each block of channels, -1 where a channel counts downwards, else 1.
    signs: Vec<[i32; BLOCK]>,
    /// For each block of channels, its thresholds in ascending order.
    thresholds: Vec<[i32; BLOCK]>,
    /// The code of each level; `None` if that is its number.
    codes: Option<Vec<u8>>,
}

impl Levels {
    /// For each channel whether it counts downwards, and its thresholds, ascending. [`i32::MAX`] is never reached. `codes` has the code of
    /// each level.
    ///
    /// # Panics
    /// If a channel has not one threshold fewer than there are codes, they do not ascend, or there are more than 256 codes.
    pub fn new(channels: &[(bool, Vec<i32>)], codes: Vec<u8>) -> Self {
        assert!((1..=256).contains(&codes.len()), "{} levels of codes with 8 bits", codes.len());
        let (n_channels, n_thresholds) = (channels.len(), codes.len() - 1);
        let (mut signs, mut all) = (Vec::new(), Vec::new());
        for block in channels.chunks(BLOCK) {
            let mut of_block = vec![[i32::MAX; BLOCK]; n_thresholds];
            let mut signs_of_block = [1; BLOCK];
            for (v, (downwards, thresholds)) in block.iter().enumerate() {
                assert_eq!(thresholds.len(), n_thresholds, "thresholds of a channel");
                assert!(thresholds.is_sorted(), "thresholds ascend");
                signs_of_block[v] = if *downwards { -1 } else { 1 };
                of_block.iter_mut().zip(thresholds).for_each(|(row, &threshold)| row[v] = threshold);
            }
            signs.push(signs_of_block);
            all.append(&mut of_block);
        }
        let are_numbers = codes.iter().enumerate().all(|(level, code)| usize::from(*code) == level);
        Self { n_channels, n_thresholds, signs, thresholds: all, codes: (!are_numbers).then_some(codes) }
    }

    pub(super) fn n_channels(&self) -> usize {
        self.n_channels
    }
}

/// Thresholds up to which all are compared with; of more a half is left out each time.
const FEW: usize = 15;

/// How many thresholds each sum has reached, of at most [`FEW`].
#[inline(always)]
fn count_reached<I: Instructions>(sums: &[i32; BLOCK], rows: &[[i32; BLOCK]]) -> [u8; BLOCK] {
    #[cfg(target_arch = "x86_64")]
    if I::AVX2 {
        // SAFETY: the caller has a proof of instructions with AVX2 among them.
        return unsafe { count_reached_avx2(sums, rows) };
    }
    count_reached_plain(sums, rows)
}

/// Of loops that are inlined, the compiler makes no vector instructions.
#[inline(never)]
fn count_reached_plain(sums: &[i32; BLOCK], rows: &[[i32; BLOCK]]) -> [u8; BLOCK] {
    let mut levels = [0; BLOCK];
    for row in rows {
        for v in 0..BLOCK {
            levels[v] += i32::from(sums[v] >= row[v]);
        }
    }
    levels.map(|level| level as u8)
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn count_reached_avx2(sums: &[i32; BLOCK], rows: &[[i32; BLOCK]]) -> [u8; BLOCK] {
    use std::arch::x86_64::*;
    // SAFETY: both are 16 integers of 32 bits.
    let sums: [__m256i; 2] = unsafe { std::mem::transmute(*sums) };
    let mut levels = [_mm256_set1_epi32(rows.len() as i32); 2];
    for row in rows {
        // SAFETY: both are 16 integers of 32 bits.
        let row: [__m256i; 2] = unsafe { std::mem::transmute(*row) };
        for v in 0..2 {
            // -1 for a threshold that is not reached.
            levels[v] = _mm256_add_epi32(levels[v], _mm256_cmpgt_epi32(row[v], sums[v]));
        }
    }
    // Halves of registers are packed side by side: the quarters are put in order.
    let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(levels[0], levels[1]));
    let bytes = _mm_packus_epi16(_mm256_castsi256_si128(packed), _mm256_extracti128_si256::<1>(packed));
    // SAFETY: both are 16 bytes.
    unsafe { std::mem::transmute(bytes) }
}

/// The codes of the levels of sums.
pub struct Coded<'a> {
    pub plane: usize,
    /// For each output channel.
    pub offsets: &'a [i32],
    pub levels: &'a Levels,
}

impl Output for Coded<'_> {
    type Item = [u8; WORD];
    const CHANNELS: usize = WORD;

    #[inline(always)]
    fn write<I: Instructions, const P: usize>(
        &self,
        _: I,
        block: usize,
        sums: &[[i32; BLOCK]; P],
        targets: &[u32],
        out: &mut [Slot<[u8; WORD]>],
    ) {
        let Levels { n_thresholds, signs, thresholds, codes, .. } = self.levels;
        let (offsets, n) = of_block(self.offsets, block);
        let (signs, rows) = (&signs[block], &thresholds[block * n_thresholds..][..*n_thresholds]);
        let mut bytes = [[0u8; BLOCK]; P];
        for (bytes, sums) in bytes.iter_mut().zip(sums) {
            let signed: [i32; BLOCK] = std::array::from_fn(|v| sums[v].wrapping_sub(offsets[v]) * signs[v]);
            *bytes = if *n_thresholds <= FEW {
                count_reached::<I>(&signed, rows)
            } else {
                std::array::from_fn(|v| rows.partition_point(|row| row[v] <= signed[v]) as u8)
            };
            if let Some(codes) = codes {
                bytes.iter_mut().for_each(|byte| *byte = codes[usize::from(*byte)]);
            }
        }
        for word in 0..n.div_ceil(WORD) {
            let plane = &mut out[word * self.plane..];
            for (bytes, &target) in bytes.iter().zip(targets) {
                plane[target as usize].write(bytes.as_chunks().0[word]);
            }
        }
    }

    #[inline(always)]
    fn write_rows<I: Instructions>(
        &self,
        _: I,
        first: usize,
        rows: [&[i32]; WORD],
        place: usize,
        out: &mut [Slot<[u8; WORD]>],
    ) {
        let out = &mut out[place..][..rows[0].len()];
        let channels: [Channel<'_>; WORD] = std::array::from_fn(|c| self.channel(first + c));
        #[cfg(target_arch = "x86_64")]
        if I::AVX2 && self.levels.n_thresholds <= FEW {
            // SAFETY: the caller has a proof of instructions with AVX2 among them.
            return unsafe { write_rows_avx2(rows, channels, self.levels, out) };
        }
        if self.levels.n_thresholds <= FEW {
            return write_rows_plain(rows, channels, self.levels, out);
        }
        for (c, (row, channel)) in rows.iter().zip(channels).enumerate() {
            let Channel { offset, sign, thresholds, place } = channel;
            for (out, sum) in out.iter_mut().zip(*row) {
                let sum = sum.wrapping_sub(offset) * sign;
                let level = thresholds.partition_point(|row| row[place] <= sum);
                let code = self.levels.codes.as_ref().map_or(level as u8, |codes| codes[level]);
                // SAFETY: of each word all bytes are written: each has its row.
                unsafe { out.as_mut_ptr().cast::<u8>().add(c).write(code) };
            }
        }
    }
}

/// What a channel's sums are compared with.
#[derive(Clone, Copy)]
struct Channel<'a> {
    offset: i32,
    sign: i32,
    /// Those of its block.
    thresholds: &'a [[i32; BLOCK]],
    /// Its place in the block.
    place: usize,
}

impl Coded<'_> {
    /// One of no thresholds that are reached where there is no such channel.
    #[inline(always)]
    fn channel(&self, channel: usize) -> Channel<'_> {
        let Levels { n_channels, n_thresholds, signs, thresholds, .. } = self.levels;
        let (block, place) = (channel / BLOCK, channel % BLOCK);
        let thresholds = &thresholds[block * n_thresholds..][..*n_thresholds];
        let offset = if channel < *n_channels { self.offsets[channel] } else { 0 };
        Channel { offset, sign: signs[block][place], thresholds, place }
    }
}

/// Writes the codes of a row of pixels, of at most [`FEW`] thresholds.
fn write_rows_plain(
    rows: [&[i32]; WORD],
    channels: [Channel<'_>; WORD],
    levels: &Levels,
    out: &mut [Slot<[u8; WORD]>],
) {
    for (i, out) in out.chunks_mut(BLOCK).enumerate() {
        let mut codes = [[0; BLOCK]; WORD];
        for (codes, (row, channel)) in codes.iter_mut().zip(rows.iter().zip(channels)) {
            let row = &row[i * BLOCK..];
            let mut sums = [0; BLOCK];
            match row.first_chunk() {
                Some(row) => sums = *row,
                None => sums[..row.len()].copy_from_slice(row),
            }
            *codes = count_reached_by_row(&sums, channel);
            if let Some(all) = &levels.codes {
                codes.iter_mut().for_each(|code| *code = all[usize::from(*code)]);
            }
        }
        let [a, b, c, d] = &codes;
        for (out, (((a, b), c), d)) in out.iter_mut().zip(a.iter().zip(b).zip(c).zip(d)) {
            out.write([*a, *b, *c, *d]);
        }
    }
}

/// How many thresholds of a channel the sums of pixels have reached.
#[inline(never)]
fn count_reached_by_row(sums: &[i32; BLOCK], channel: Channel<'_>) -> [u8; BLOCK] {
    let mut signed = *sums;
    signed.iter_mut().for_each(|sum| *sum = sum.wrapping_sub(channel.offset) * channel.sign);
    let mut levels = [0; BLOCK];
    for row in channel.thresholds {
        let threshold = row[channel.place % BLOCK];
        for v in 0..BLOCK {
            levels[v] += i32::from(signed[v] >= threshold);
        }
    }
    levels.map(|level| level as u8)
}

/// The same by AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
fn write_rows_avx2(
    rows: [&[i32]; WORD],
    channels: [Channel<'_>; WORD],
    levels: &Levels,
    out: &mut [Slot<[u8; WORD]>],
) {
    use std::arch::x86_64::*;
    const LANES: usize = 8;
    let mut table = [0u8; 16];
    if let Some(codes) = &levels.codes {
        table[..codes.len()].copy_from_slice(codes);
    }
    // SAFETY: both are 16 bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { std::mem::transmute::<[u8; 16], __m128i>(table) });
    let n_thresholds = _mm256_set1_epi32(levels.n_thresholds as i32);
    // The codes of 8 pixels.
    let codes = |sums: [__m256i; WORD]| {
        let mut word = _mm256_setzero_si256();
        for c in (0..WORD).rev() {
            let Channel { offset, sign, thresholds, place } = channels[c];
            let sums = _mm256_sub_epi32(sums[c], _mm256_set1_epi32(offset));
            let sums = _mm256_sign_epi32(sums, _mm256_set1_epi32(sign));
            let mut level = n_thresholds;
            for row in thresholds {
                // -1 for a threshold that is not reached.
                let missed = _mm256_cmpgt_epi32(_mm256_set1_epi32(row[place]), sums);
                level = _mm256_add_epi32(level, missed);
            }
            word = _mm256_or_si256(_mm256_slli_epi32::<8>(word), level);
        }
        if levels.codes.is_some() { _mm256_shuffle_epi8(table, word) } else { word }
    };
    let parts = rows.map(|row| row.as_chunks::<LANES>());
    let (chunks, rest) = out.as_chunks_mut::<LANES>();
    for (i, out) in chunks.iter_mut().enumerate() {
        let mut sums = [_mm256_setzero_si256(); WORD];
        for (c, sums) in sums.iter_mut().enumerate() {
            // SAFETY: a register is 8 integers of 32 bits.
            *sums = unsafe { std::mem::transmute::<[i32; LANES], __m256i>(parts[c].0[i]) };
        }
        // SAFETY: 8 words are as large as a register.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), codes(sums)) };
    }
    if !rest.is_empty() {
        let mut sums = [[0; LANES]; WORD];
        sums.iter_mut().zip(parts).for_each(|(sums, (_, rest))| sums[..rest.len()].copy_from_slice(rest));
        // SAFETY: a register is 8 integers of 32 bits.
        let codes = codes(unsafe { std::mem::transmute::<[[i32; LANES]; WORD], [__m256i; WORD]>(sums) });
        // SAFETY: a register is 8 words.
        let codes: [[u8; WORD]; LANES] = unsafe { std::mem::transmute(codes) };
        rest.iter_mut().zip(codes).for_each(|(out, codes)| _ = out.write(codes));
    }
}
