//! Normalization, sum, ReLU and the codes of the result, in one pass over memory.

use rayon::prelude::*;

use crate::instructions::multiversion;
use crate::norm::{Affine, NormShape};
use crate::output::{Slot, collect_into};
use crate::task_items;
use crate::words::WORD;

/// Values of a channel that are computed together: in the nearest cache.
const CHUNK: usize = 256;

/// Thresholds up to which all are compared with.
const FEW: usize = 15;

/// The levels of values in single precision, for each channel: how many thresholds the value has reached, or, in a channel that counts
/// downwards, the value with the other sign.
#[derive(Clone, Debug)]
pub struct ValueLevels {
    n_channels: usize,
    /// Of all channels, or of each.
    channels: Vec<Thresholds>,
    /// The code of each level; `None` if that is its number.
    codes: Option<Vec<u8>>,
}

/// Those of a channel.
#[derive(Clone, Debug)]
struct Thresholds {
    /// -1 if the channel counts downwards, else 1.
    sign: f32,
    /// Ascending. If there are more than [`FEW`], minus infinity comes before them, and `NaN`, which nothing reaches, after them.
    thresholds: Vec<f32>,
    guess: Option<Guess>,
}

/// A formula for the level of a value that is wrong by at most one, where thresholds are about as far from each other.
#[derive(Clone, Copy, Debug)]
struct Guess {
    low: f32,
    inverse: f32,
    n: i32,
}

impl Guess {
    /// Of more than one threshold. `None` if it would be wrong by more.
    fn new(thresholds: &[f32]) -> Option<Self> {
        let (low, high) = (thresholds[0], thresholds[thresholds.len() - 1]);
        let inverse = (thresholds.len() - 1) as f32 / (high - low);
        let guess = Self { low, inverse, n: thresholds.len() as i32 };
        let level = |value: f32| thresholds.partition_point(|threshold| *threshold <= value) as i32;
        // Both rise with the value: they are furthest apart where the level rises, and just before.
        let is_near = |value: f32| (guess.level(value) - level(value)).abs() <= 1;
        let is_good =
            thresholds.iter().all(|&threshold| is_near(threshold) && is_near(threshold.next_down()));
        (inverse.is_finite() && is_good).then_some(guess)
    }

    #[inline(always)]
    fn level(self, value: f32) -> i32 {
        (((value - self.low) * self.inverse + 1.0) as i32).clamp(0, self.n)
    }
}

impl Thresholds {
    fn new(is_downwards: bool, mut thresholds: Vec<f32>) -> Self {
        let mut guess = None;
        if thresholds.len() > FEW {
            guess = Guess::new(&thresholds);
            thresholds.insert(0, f32::NEG_INFINITY);
            thresholds.push(f32::NAN);
        }
        Self { sign: if is_downwards { -1.0 } else { 1.0 }, thresholds, guess }
    }
}

impl ValueLevels {
    /// For each of `n_channels` channels, or for all, whether it counts downwards, and its thresholds, ascending. `codes` has the code of
    /// each level.
    ///
    /// # Panics
    /// If there is not one element for all channels or one for each, if a channel has not one threshold fewer than there are codes, or
    /// they do not ascend, or there are more than 256 codes.
    pub fn new(n_channels: usize, channels: &[(bool, Vec<f32>)], codes: Vec<u8>) -> Self {
        assert!(
            channels.len() == 1 || channels.len() == n_channels,
            "thresholds for all channels or for each"
        );
        assert!((1..=256).contains(&codes.len()), "{} levels of codes with 8 bits", codes.len());
        for (_, thresholds) in channels {
            assert_eq!(thresholds.len(), codes.len() - 1, "thresholds of a channel");
            assert!(thresholds.is_sorted(), "thresholds ascend");
        }
        let of_channel = |(is_downwards, thresholds): &(bool, Vec<f32>)| {
            Thresholds::new(*is_downwards, thresholds.clone())
        };
        let are_numbers = codes.iter().enumerate().all(|(level, code)| usize::from(*code) == level);
        let codes = (!are_numbers).then_some(codes);
        Self { n_channels, channels: channels.iter().map(of_channel).collect(), codes }
    }
}

/// What a sum is of.
#[derive(Clone, Copy, Debug)]
pub struct Summand<'a> {
    /// `[batch, channels, plane]`
    pub values: &'a [f32],
    /// The normalization of each channel, if they are normalized first.
    pub affines: Option<&'a [Affine]>,
}

/// What the sum becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clamp {
    /// Itself.
    None,
    /// `max(x, 0)`, and `NaN` of `NaN`, as training has it.
    Relu,
    /// The nearest number from 0 to 6.
    Relu6,
}

impl Clamp {
    /// What a value becomes.
    #[inline(always)]
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::None => x,
            // Of a branch the compiler makes a store that depends on it, which takes far longer.
            Self::Relu => f32::from_bits(x.to_bits() & u32::from(x < 0.0).wrapping_sub(1)),
            Self::Relu6 => x.clamp(0.0, 6.0),
        }
    }
}

/// `clamp(sum of normalize(values))`, and its codes.
#[derive(Clone, Copy, Debug)]
pub struct Sum<'a> {
    /// That of all summands.
    pub shape: NormShape,
    /// One or more.
    pub summands: &'a [Summand<'a>],
    /// What follows the sum.
    pub clamp: Clamp,
    /// How the codes are told; not read if no codes are asked for.
    pub levels: Option<&'a ValueLevels>,
}

impl Sum<'_> {
    /// The values, `[batch, channels, plane]`, into `out`.
    ///
    /// # Panics
    /// If the length of a summand, a number of normalizations or of thresholds does not fit the shape.
    pub fn values(&self, out: &mut Vec<f32>) {
        // SAFETY: `run` writes all values.
        unsafe { collect_into(out, self.n_values(), |values| self.run(Some(values), None)) }
    }

    /// The codes of the values, as [`words`](crate::words), into `out`.
    ///
    /// # Panics
    /// As [`values`](Self::values), or without levels.
    pub fn codes(&self, out: &mut Vec<[u8; WORD]>) {
        // SAFETY: `run` writes all words.
        unsafe { collect_into(out, self.n_words(), |words| self.run(None, Some(words))) }
    }

    /// Both.
    ///
    /// # Panics
    /// As [`codes`](Self::codes).
    pub fn both(&self, values: &mut Vec<f32>, codes: &mut Vec<[u8; WORD]>) {
        let write = |values: &mut [Slot]| {
            // SAFETY: `run` writes all words.
            unsafe { collect_into(codes, self.n_words(), |words| self.run(Some(values), Some(words))) }
        };
        // SAFETY: `run` writes all values.
        unsafe { collect_into(values, self.n_values(), write) }
    }

    fn n_values(&self) -> usize {
        self.shape.batch * self.shape.channels * self.shape.plane
    }

    fn n_words(&self) -> usize {
        self.shape.batch * self.shape.channels.div_ceil(WORD) * self.shape.plane
    }

    /// Writes what is asked for.
    fn run(&self, values: Option<&mut [Slot]>, words: Option<&mut [Slot<[u8; WORD]>]>) {
        let NormShape { channels, plane, .. } = self.shape;
        assert!(!self.summands.is_empty(), "a sum of nothing");
        for Summand { values, affines } in self.summands {
            assert_eq!(values.len(), self.n_values(), "number of values");
            assert!(affines.is_none_or(|affines| affines.len() == channels), "a normalization per channel");
        }
        let levels = self.levels.filter(|_| words.is_some());
        assert!(words.is_none() || levels.is_some(), "codes without levels");
        assert!(levels.is_none_or(|levels| levels.n_channels == channels), "channels of the levels");
        if self.n_values() == 0 {
            return;
        }
        let n_words = channels.div_ceil(WORD);
        let tasks = task_items(WORD * plane);
        let image_tasks = task_items(channels * plane);
        match (values, words) {
            (Some(values), Some(words)) => {
                let images =
                    values.par_chunks_mut(channels * plane).zip(words.par_chunks_mut(n_words * plane));
                images.enumerate().with_min_len(image_tasks).for_each(|(image, (values, words))| {
                    let both =
                        values.par_chunks_mut(WORD * plane).zip(words.par_chunks_mut(plane)).enumerate();
                    both.with_min_len(tasks).for_each(|(word, (values, words))| {
                        write_word(self, image, word, Some(values), Some(words));
                    });
                });
            }
            (Some(values), None) => {
                let images = values.par_chunks_mut(channels * plane).enumerate().with_min_len(image_tasks);
                images.for_each(|(image, values)| {
                    let planes = values.par_chunks_mut(WORD * plane).enumerate().with_min_len(tasks);
                    planes.for_each(|(word, values)| write_word(self, image, word, Some(values), None));
                });
            }
            (None, Some(words)) => {
                let words = words.par_chunks_mut(plane).enumerate().with_min_len(tasks);
                words.for_each(|(i, words)| write_word(self, i / n_words, i % n_words, None, Some(words)));
            }
            (None, None) => {}
        }
    }
}

multiversion! {
    /// Computes up to four channels of an image.
    fn write_word(
        sum: &Sum<'_>, image: usize, word: usize, values: Option<&mut [Slot]>, words: Option<&mut [Slot<[u8; WORD]>]>,
    ) {
        let NormShape { channels, plane, .. } = sum.shape;
        let (mut values, mut words) = (values, words);
        let mut chunks = [[0.0f32; CHUNK]; WORD];
        let n_channels = (channels - WORD * word).min(WORD);
        for first in (0..plane).step_by(CHUNK) {
            let n = (plane - first).min(CHUNK);
            for (c, chunk) in chunks.iter_mut().enumerate().take(n_channels) {
                let (channel, chunk) = (WORD * word + c, &mut chunk[..n]);
                let at = (image * channels + channel) * plane + first;
                let part = |i: usize| {
                    let Summand { values, affines } = sum.summands[i];
                    (&values[at..at + n], affines.map(|affines| affines[channel]))
                };
                // The common ones in a single pass.
                match (part(0), (sum.summands.len() == 2).then(|| part(1))) {
                    ((x, Some(a)), Some((y, None))) => fill(chunk, x, y, sum.clamp, |x, y| a.apply(x) + y),
                    ((x, Some(a)), Some((y, Some(b)))) => {
                        fill(chunk, x, y, sum.clamp, |x, y| a.apply(x) + b.apply(y));
                    }
                    ((x, None), Some((y, None))) => fill(chunk, x, y, sum.clamp, |x, y| x + y),
                    ((x, None), Some((y, Some(b)))) => fill(chunk, x, y, sum.clamp, |x, y| x + b.apply(y)),
                    ((x, Some(a)), None) if sum.summands.len() == 1 => {
                        fill(chunk, x, x, sum.clamp, |x, _| a.apply(x));
                    }
                    ((x, None), None) if sum.summands.len() == 1 => fill(chunk, x, x, sum.clamp, |x, _| x),
                    _ => {
                        for i in 0..sum.summands.len() {
                            match part(i) {
                                (x, None) if i == 0 => chunk.copy_from_slice(x),
                                (x, None) => chunk.iter_mut().zip(x).for_each(|(y, x)| *y += x),
                                (x, Some(a)) if i == 0 => {
                                    chunk.iter_mut().zip(x).for_each(|(y, x)| *y = a.apply(*x));
                                }
                                (x, Some(a)) => chunk.iter_mut().zip(x).for_each(|(y, x)| *y += a.apply(*x)),
                            }
                        }
                        chunk.iter_mut().for_each(|y| *y = sum.clamp.apply(*y));
                    }
                }
                if let Some(values) = &mut values {
                    let out = &mut values[c * plane + first..][..n];
                    out.iter_mut().zip(chunk).for_each(|(out, y)| _ = out.write(*y));
                }
            }
            if let (Some(words), Some(levels)) = (&mut words, sum.levels) {
                write_codes(levels, WORD * word, &chunks, &mut words[first..first + n]);
            }
        }
    }
}

/// Fills a chunk with the clamped results for two operands.
#[inline(always)]
fn fill(chunk: &mut [f32], x: &[f32], y: &[f32], clamp: Clamp, f: impl Fn(f32, f32) -> f32) {
    let operands = chunk.iter_mut().zip(x.iter().zip(y));
    match clamp {
        Clamp::None => operands.for_each(|(out, (x, y))| *out = f(*x, *y)),
        Clamp::Relu => operands.for_each(|(out, (x, y))| *out = Clamp::Relu.apply(f(*x, *y))),
        Clamp::Relu6 => operands.for_each(|(out, (x, y))| *out = Clamp::Relu6.apply(f(*x, *y))),
    }
}

/// Writes the codes of values of up to four channels, of which `first` is the first.
fn write_codes(
    levels: &ValueLevels,
    first: usize,
    values: &[[f32; CHUNK]; WORD],
    out: &mut [Slot<[u8; WORD]>],
) {
    let channel = |c: usize| match levels.channels.as_slice() {
        [all] => all,
        // Those after the last channel are any.
        each => &each[(first + c).min(each.len() - 1)],
    };
    let channels: [&Thresholds; WORD] = std::array::from_fn(channel);
    #[cfg(target_arch = "x86_64")]
    if channels.iter().all(|channel| channel.thresholds.len() <= FEW || channel.guess.is_some())
        && levels.codes.as_ref().is_none_or(|codes| codes.len() <= 16)
        && crate::instructions::Avx2::detect().is_some()
    {
        // SAFETY: the processor has the instructions.
        return unsafe { write_codes_avx2(channels, levels.codes.as_deref(), values, out) };
    }
    for (c, (Thresholds { sign, thresholds, guess }, values)) in channels.into_iter().zip(values).enumerate()
    {
        for (out, value) in out.iter_mut().zip(values) {
            let value = sign * value;
            let level = match guess {
                Some(guess) => {
                    let level = guess.level(value) as usize;
                    (level
                        + usize::from(value >= thresholds[level])
                        + usize::from(value >= thresholds[level + 1]))
                    .saturating_sub(1)
                }
                None if thresholds.len() > FEW => {
                    thresholds[1..thresholds.len() - 1].partition_point(|threshold| *threshold <= value)
                }
                None => thresholds.iter().map(|threshold| usize::from(value >= *threshold)).sum(),
            };
            let code = levels.codes.as_ref().map_or(level as u8, |codes| codes[level]);
            // SAFETY: a word has room for a byte of each of four channels.
            unsafe { out.as_mut_ptr().cast::<u8>().add(c).write(code) };
        }
    }
}

/// The same of few thresholds, or of those that are guessed, for 8 values at a time.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn write_codes_avx2(
    channels: [&Thresholds; WORD],
    codes: Option<&[u8]>,
    values: &[[f32; CHUNK]; WORD],
    out: &mut [Slot<[u8; WORD]>],
) {
    use std::arch::x86_64::*;
    const LANES: usize = 8;
    let mut table = [0u8; 16];
    if let Some(codes) = codes {
        table[..codes.len()].copy_from_slice(codes);
    }
    // SAFETY: both are 16 bytes.
    let table = _mm256_broadcastsi128_si256(unsafe { std::mem::transmute::<[u8; 16], __m128i>(table) });
    for (i, out) in out.chunks_mut(LANES).enumerate() {
        let mut word = _mm256_setzero_si256();
        for (Thresholds { sign, thresholds, guess }, values) in channels.into_iter().zip(values).rev() {
            // SAFETY: a register is 8 numbers.
            let values: __m256 = unsafe { std::mem::transmute(values.as_chunks::<LANES>().0[i]) };
            let values = _mm256_mul_ps(values, _mm256_set1_ps(*sign));
            // -1 for a threshold that is reached.
            let reached = |threshold| _mm256_castps_si256(_mm256_cmp_ps::<_CMP_GE_OQ>(values, threshold));
            let mut level = _mm256_setzero_si256();
            if let Some(Guess { low, inverse, n }) = *guess {
                let steps =
                    _mm256_mul_ps(_mm256_sub_ps(values, _mm256_set1_ps(low)), _mm256_set1_ps(inverse));
                let guess = _mm256_add_ps(steps, _mm256_set1_ps(1.0));
                // `NaN` becomes 0 here.
                let guess = _mm256_max_ps(guess, _mm256_setzero_ps());
                let guess = _mm256_cvttps_epi32(_mm256_min_ps(guess, _mm256_set1_ps(n as f32)));
                let at = thresholds.as_ptr();
                // SAFETY: a guess is at most `n`, and there are two more thresholds than that.
                let near = unsafe {
                    [_mm256_i32gather_ps::<4>(at, guess), _mm256_i32gather_ps::<4>(at.add(1), guess)]
                };
                level = _mm256_sub_epi32(guess, _mm256_set1_epi32(1));
                level = _mm256_sub_epi32(level, reached(near[0]));
                level = _mm256_sub_epi32(level, reached(near[1]));
                level = _mm256_max_epi32(level, _mm256_setzero_si256());
            } else {
                for threshold in thresholds {
                    level = _mm256_sub_epi32(level, reached(_mm256_set1_ps(*threshold)));
                }
            }
            word = _mm256_or_si256(_mm256_slli_epi32::<8>(word), level);
        }
        if codes.is_some() {
            word = _mm256_shuffle_epi8(table, word);
        }
        // SAFETY: a register is 8 words.
        let words: [[u8; WORD]; LANES] = unsafe { std::mem::transmute(word) };
        match out.first_chunk_mut::<LANES>() {
            Some(out) => *out = words.map(Slot::new),
            None => out.iter_mut().zip(words).for_each(|(out, word)| _ = out.write(word)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::norm::NormParameters;
    use crate::words;

    fn split(words: &[[u8; WORD]], n_images: usize, channels: usize, plane: usize) -> Vec<u8> {
        let mut codes = Vec::new();
        words::split(words, n_images, channels, plane, &mut codes);
        codes
    }

    fn codes_of(levels: &ValueLevels, values: &[f32], plane: usize) -> Vec<[u8; WORD]> {
        let channels = levels.n_channels;
        let shape = NormShape { batch: values.len() / (channels * plane), channels, plane };
        let summands = &[Summand { values, affines: None }];
        let mut codes = Vec::new();
        Sum { shape, summands, clamp: Clamp::None, levels: Some(levels) }.codes(&mut codes);
        codes
    }

    fn values_of(sum: Sum<'_>) -> Vec<f32> {
        let mut values = vec![f32::NAN; 3];
        sum.values(&mut values);
        values
    }

    #[test]
    fn levels_are_the_thresholds_that_values_have_reached() {
        for n_thresholds in [1, 3, 15, 16, 255] {
            for plane in [1, 5, 700] {
                let channels: Vec<(bool, Vec<f32>)> = (0..6)
                    .map(|channel| {
                        let mut thresholds: Vec<f32> =
                            (0..n_thresholds).map(|i| (i * (channel + 3) % 17) as f32 - 8.0).collect();
                        thresholds.sort_by(f32::total_cmp);
                        thresholds[0] = if channel == 2 { f32::NEG_INFINITY } else { thresholds[0] };
                        (channel % 2 == 1, thresholds)
                    })
                    .collect();
                let codes: Vec<u8> = (0..=n_thresholds).map(|level| (level as u8).wrapping_mul(3)).collect();
                let values: Vec<f32> =
                    (0..2 * 6 * plane).map(|i| (i * 31 % 400) as f32 / 20.0 - 10.0).collect();
                let words = codes_of(&ValueLevels::new(6, &channels, codes.clone()), &values, plane);
                let got = split(&words, 2, 6, plane);
                for (i, (got, value)) in got.iter().zip(&values).enumerate() {
                    let (downwards, thresholds) = &channels[i / plane % 6];
                    let signed = if *downwards { -value } else { *value };
                    let level = thresholds.iter().filter(|threshold| signed >= **threshold).count();
                    assert_eq!(*got, codes[level], "{n_thresholds} thresholds, number {i}");
                }
                let shared = ValueLevels::new(6, &channels[1..2], codes.clone());
                let each = ValueLevels::new(6, &vec![channels[1].clone(); 6], codes.clone());
                assert_eq!(codes_of(&shared, &values, plane), codes_of(&each, &values, plane));
            }
        }
    }

    #[test]
    fn even_thresholds_are_guessed() {
        let even = |n: usize, step: f32| (0..n).map(|i| (i as f32 - 7.3) * step).collect::<Vec<f32>>();
        assert!(Guess::new(&even(255, 0.013)).is_some());
        assert!(Guess::new(&even(16, 1e-30)).is_some());
        let mut uneven = even(255, 0.013);
        uneven[254] = f32::INFINITY;
        assert!(Guess::new(&uneven).is_none());
        uneven[254] = 30.0;
        assert!(Guess::new(&uneven).is_none());
        assert!(Guess::new(&[1.0; 20]).is_none());
        // All values around thresholds, and the ends.
        let thresholds = even(255, 0.013);
        let levels = ValueLevels::new(1, &[(false, thresholds.clone())], (0..=255).collect());
        let near =
            thresholds.iter().flat_map(|t| [t.next_down().next_down(), t.next_down(), *t, t.next_up()]);
        let ends = [f32::NEG_INFINITY, f32::MIN, f32::MAX, f32::INFINITY, f32::NAN, 0.0];
        let values: Vec<f32> = near.chain(ends).collect();
        for (value, word) in values.iter().zip(codes_of(&levels, &values, values.len())) {
            let expected = thresholds.iter().filter(|threshold| value >= *threshold).count();
            assert_eq!(usize::from(word[0]), expected, "{value}");
        }
    }

    #[test]
    fn sums_are_those_of_the_operations_one_by_one() {
        let (batch, plane) = (2, 700);
        for channels in [1, 4, 6] {
            let shape = NormShape { batch, channels, plane };
            let numbers = |n: usize, seed: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * 7919 + seed) % 1013) as f32 / 100.0 - 5.0).collect()
            };
            let [x, y] = [1, 2].map(|seed| numbers(batch * channels * plane, seed));
            let (gamma, beta) = (numbers(channels, 3), numbers(channels, 4));
            let statistics: Vec<f32> = numbers(2 * channels, 5).iter().map(|x| x.abs()).collect();
            let parameters =
                NormParameters { gamma: &gamma, beta: &beta, statistics: &statistics, epsilon: 1e-5 };
            let affines: Vec<Affine> = (0..channels).map(|channel| parameters.affine(channel)).collect();
            let levels = ValueLevels::new(channels, &[(false, vec![0.5, 1.0, 2.5])], vec![0, 3, 1, 2]);
            for (with, others) in [(false, false), (true, false), (true, true), (false, true)] {
                for clamp in [Clamp::None, Clamp::Relu, Clamp::Relu6] {
                    let first = Summand { values: &x, affines: with.then_some(&affines) };
                    let second = Summand { values: &y, affines: None };
                    let summands = if others { vec![first, second] } else { vec![first] };
                    let three = Sum { shape, summands: &[first, second, first], clamp, levels: None };
                    let third =
                        |i: usize| if with { affines[i / plane % channels].apply(x[i]) } else { x[i] };
                    let of_three = (0..x.len()).map(|i| clamp.apply(third(i) + y[i] + third(i)));
                    assert!(values_of(three).into_iter().eq(of_three));
                    let second = Summand { values: &y, affines: others.then_some(&affines) };
                    let both = Sum { shape, summands: &[first, second], clamp, levels: None };
                    let other =
                        |i: usize| if others { affines[i / plane % channels].apply(y[i]) } else { y[i] };
                    assert!(
                        values_of(both)
                            .into_iter()
                            .eq((0..x.len()).map(|i| clamp.apply(third(i) + other(i))))
                    );
                    let sum = Sum { shape, summands: &summands, clamp, levels: Some(&levels) };
                    let expected: Vec<f32> = (0..x.len())
                        .map(|i| {
                            let affine = affines[i / plane % channels];
                            let value = if with { affine.apply(x[i]) } else { x[i] };
                            clamp.apply(if others { value + y[i] } else { value })
                        })
                        .collect();
                    let (mut values, mut words, mut alone) = (Vec::new(), Vec::new(), Vec::new());
                    sum.both(&mut values, &mut words);
                    sum.codes(&mut alone);
                    assert!(values == expected && values_of(sum) == expected);
                    let codes = split(&words, batch, channels, plane);
                    let level = |x: &f32| [0.5, 1.0, 2.5].iter().filter(|t| x >= t).count();
                    let expected: Vec<u8> = expected.iter().map(|x| [0, 3, 1, 2][level(x)]).collect();
                    assert!(codes == expected && split(&alone, batch, channels, plane) == expected);
                }
            }
        }
    }
}
