//! Gradients of few bits with noise, as DoReFa-Net defines them (Zhou et al. 2016, arXiv 1606.06160, section 2.4).
//!
//! Of the values `g` of a sample, the largest magnitude is `m`. With `N = 2^bits - 1` and noise `n`, uniform between -1/2 and 1/2,
//!
//! ```text
//! code  = clamp(round(N (g / (2 m) + 1/2) + n), 0, N)
//! value = m / N (2 code - N)
//! ```
//!
//! which is `g` on average over the noise. There is no code of zero: a gradient of zero becomes `m / N` or `-m / N`. It is so in the paper,
//! too.
//!
//! The noise is no state, but a function of a key, the sample and the place of a value in it.

use rayon::prelude::*;

use crate::codes::{byte, nearest_integer};
use crate::instructions::multiversion;
use crate::output::{Fill, Slot, collect};
use crate::task_items;

/// Values that one thread takes at a time.
const CHUNK: usize = 1 << 12;

/// Values that are computed together, as vectors.
const TOGETHER: usize = 32;

/// How gradients become codes: the number of bits, and the key of the noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientQuantizer {
    largest: u8,
    key: u64,
}

/// Codes of gradients, sample by sample.
#[derive(Clone, Debug, PartialEq)]
pub struct GradientCodes {
    /// From 0 to [`GradientQuantizer::largest`], one for each value. Those of a sample whose maximum is zero are 0; those of one whose
    /// maximum is not finite mean nothing.
    pub codes: Vec<u8>,
    /// The largest magnitude of each sample. `NaN` if any of its values is, and infinite if any is.
    pub maxima: Vec<f32>,
    /// `N`
    pub largest: u8,
}

impl GradientCodes {
    /// What `2 code - N` of each sample is worth: `m / N`.
    pub fn units(&self) -> Vec<f32> {
        self.maxima.iter().map(|maximum| maximum / f32::from(self.largest)).collect()
    }

    /// The values.
    pub fn values(&self) -> Vec<f32> {
        let largest = f32::from(self.largest);
        let samples = self.codes.chunks((self.codes.len() / self.maxima.len().max(1)).max(1));
        let values = samples.zip(self.units()).flat_map(|(codes, unit)| {
            codes.iter().map(move |code| unit * (2.0 * f32::from(*code) - largest))
        });
        values.collect()
    }
}

impl GradientQuantizer {
    /// Gradients of `bits` bits with the noise of `key`.
    ///
    /// # Panics
    /// If `bits` is not in 1..=8.
    pub fn new(bits: u32, key: u64) -> Self {
        assert!((1..=8).contains(&bits), "gradients have 1 to 8 bits, not {bits}");
        Self { largest: ((1u32 << bits) - 1) as u8, key }
    }

    /// The largest code, `N`.
    pub fn largest(&self) -> u8 {
        self.largest
    }

    /// The noise of the value at `place` of a sample, between -1/2 and 1/2. Beyond 2^32 places it repeats.
    pub fn noise(&self, sample: usize, place: usize) -> f32 {
        noise(sample_key(self.key, sample), place as u32)
    }

    /// `m / N` of a sample with this maximum: the value of a code is `unit (2 code - N)`.
    pub fn unit(&self, maximum: f32) -> f32 {
        maximum / f32::from(self.largest)
    }

    /// The codes of `gradient`, `[batch, ...]`.
    ///
    /// # Panics
    /// If the batch does not divide the number of values.
    pub fn codes(&self, gradient: &[f32], batch: usize) -> GradientCodes {
        let (codes, maxima) = self.each_sample(gradient, batch, write_codes);
        GradientCodes { codes, maxima, largest: self.largest }
    }

    /// The values of the codes of `gradient`, `[batch, ...]`. A sample of zeros stays so. No value of a sample is finite if one of them is
    /// not: what was infinite or `NaN` does not become a number that nobody sees.
    ///
    /// # Panics
    /// If the batch does not divide the number of values.
    pub fn quantized(&self, gradient: &[f32], batch: usize) -> Vec<f32> {
        self.each_sample(gradient, batch, write_values).0
    }

    /// What `write` writes for each sample, and the maxima.
    fn each_sample<T: Fill + Send + Sync>(
        &self,
        gradient: &[f32],
        batch: usize,
        write: fn(Sample, u32, &[f32], &mut [Slot<T>]),
    ) -> (Vec<T>, Vec<f32>) {
        let mut maxima = vec![0.0; batch];
        if gradient.is_empty() {
            return (Vec::new(), maxima);
        }
        assert!(
            batch > 0 && gradient.len().is_multiple_of(batch),
            "{} values are not those of {batch} samples",
            gradient.len()
        );
        let len = gradient.len() / batch;
        let write_sample = |index: usize, g: &[f32], maximum: &mut f32, slots: &mut [Slot<T>]| {
            *maximum = largest_magnitude(g);
            let sample = Sample {
                key: sample_key(self.key, index),
                maximum: *maximum,
                unit: self.unit(*maximum),
                largest: f32::from(self.largest),
            };
            let chunks = g.par_chunks(CHUNK).zip(slots.par_chunks_mut(CHUNK)).enumerate();
            chunks
                .with_min_len(task_items(CHUNK))
                .for_each(|(i, (g, slots))| write(sample, (i * CHUNK) as u32, g, slots));
        };
        let write_all = |slots: &mut [Slot<T>]| {
            let samples =
                gradient.par_chunks(len).zip(&mut maxima).zip(slots.par_chunks_mut(len)).enumerate();
            samples
                .with_min_len(task_items(len))
                .for_each(|(index, ((g, maximum), slots))| write_sample(index, g, maximum, slots));
        };
        // SAFETY: there is a value for each result, sample by sample and chunk by chunk, and `write` writes each.
        let results = unsafe { collect(gradient.len(), write_all) };
        (results, maxima)
    }
}

/// What the codes of a sample depend on, beside its values.
#[derive(Clone, Copy)]
struct Sample {
    key: [u32; 2],
    maximum: f32,
    unit: f32,
    largest: f32,
}

impl Sample {
    /// Where a value lies among the codes with its noise: the code is the integer nearest to it.
    #[inline(always)]
    fn position(self, g: f32, place: u32) -> f32 {
        let half = self.largest / 2.0;
        let position = g / self.maximum * half + (half + noise(self.key, place));
        // Comparisons, so that `NaN` stays.
        let position = if position < 0.0 { 0.0 } else { position };
        if position > self.largest { self.largest } else { position }
    }

    #[inline(always)]
    fn value(self, position: f32) -> f32 {
        self.unit * (2.0 * nearest_integer(position) - self.largest)
    }

    /// Writes what `result` makes of the positions of values, the first of which is at `place`.
    #[inline(always)]
    fn write<T: Copy>(self, place: u32, g: &[f32], slots: &mut [Slot<T>], result: impl Fn(f32) -> T) {
        let ((blocks, rest), (slot_blocks, rest_slots)) =
            (g.as_chunks::<TOGETHER>(), slots.as_chunks_mut::<TOGETHER>());
        let mut place = place;
        for (g, slots) in blocks.iter().zip(slot_blocks) {
            let mut positions = [0.0; TOGETHER];
            for i in 0..TOGETHER {
                positions[i] = self.position(g[i], place.wrapping_add(i as u32));
            }
            place = place.wrapping_add(TOGETHER as u32);
            for i in 0..TOGETHER {
                slots[i].write(result(positions[i]));
            }
        }
        for (i, (&g, slot)) in rest.iter().zip(rest_slots).enumerate() {
            slot.write(result(self.position(g, place.wrapping_add(i as u32))));
        }
    }
}

multiversion! {
    fn write_codes(sample: Sample, place: u32, g: &[f32], codes: &mut [Slot<u8>]) {
        if sample.maximum == 0.0 {
            codes.fill(Slot::new(0));
        } else {
            sample.write(place, g, codes, byte);
        }
    }
}

multiversion! {
    fn write_values(sample: Sample, place: u32, g: &[f32], values: &mut [Slot]) {
        if sample.maximum == 0.0 {
            values.fill(Slot::new(0.0));
        } else {
            sample.write(place, g, values, |position| sample.value(position));
        }
    }
}

/// The largest magnitude: `NaN` if a value is, or else infinite if one is.
fn largest_magnitude(values: &[f32]) -> f32 {
    let bits = values.par_chunks(CHUNK).with_min_len(task_items(CHUNK)).map(largest_bits).max();
    f32::from_bits(bits.unwrap_or(0) as u32)
}

multiversion! {
    /// The largest of the values' bits without sign: in their order the infinite follow the finite, and `NaN` these.
    fn largest_bits(values: &[f32]) -> i32 {
        let magnitude = |x: f32| (x.to_bits() & 0x7fff_ffff) as i32;
        let mut largest = [0; TOGETHER];
        let (blocks, rest) = values.as_chunks::<TOGETHER>();
        for block in blocks {
            for i in 0..TOGETHER {
                largest[i] = largest[i].max(magnitude(block[i]));
            }
        }
        let of_rest = rest.iter().map(|&x| magnitude(x));
        largest.into_iter().chain(of_rest).fold(0, i32::max)
    }
}

/// The key of a sample's noise: the number of this index after the seed `key` in SplitMix64 (Steele, Lea and Flood 2014, "Fast
/// splittable pseudorandom number generators", figure 14), in halves.
fn sample_key(key: u64, sample: usize) -> [u32; 2] {
    let x = key.wrapping_add((sample as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let x = x ^ (x >> 31);
    [x as u32, (x >> 32) as u32]
}

/// Noise at a place: one of 2^24 numbers between -1/2 and 1/2 at equal distances, of either sign alike.
#[inline(always)]
fn noise(key: [u32; 2], place: u32) -> f32 {
    let number = (mixed(key, place) as i32) >> 8;
    (number as f32 + 0.5) * (1.0 / 16_777_216.0)
}

/// Random bits for a place. Shifts and factors are those of "triple32" by Chris Wellons (2018, in the public domain), which he found by
/// a search for little bias: a change of any one bit changes each bit of the result in about half of all cases. The second part of the
/// key comes between, or else two samples would have the same noise at places apart.
#[inline(always)]
fn mixed([first, second]: [u32; 2], place: u32) -> u32 {
    let x = place.wrapping_add(first);
    let x = (x ^ (x >> 17)).wrapping_mul(0xed5a_d4bb) ^ second;
    let x = (x ^ (x >> 11)).wrapping_mul(0xac4c_1b51);
    let x = (x ^ (x >> 15)).wrapping_mul(0x3184_8bab);
    x ^ (x >> 14)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that have nothing to do with the noise.
    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(state >> 8) / f64::from(1 << 24)
        };
        // The sum of uniform numbers is close to a normal one.
        (0..n).map(|_| ((0..6).map(|_| next()).sum::<f64>() - 3.0) as f32 * 0.01).collect()
    }

    fn noise_of(key: u64, sample: usize, n: usize) -> Vec<f64> {
        let quantizer = GradientQuantizer::new(8, key);
        (0..n).map(|place| f64::from(quantizer.noise(sample, place))).collect()
    }

    /// How many standard deviations a statistic of independent uniform numbers is from its mean: beyond 5 by chance in one test of a
    /// million.
    fn assert_usual(what: &str, deviations: f64) {
        assert!(deviations.abs() < 5.0, "{what}: {deviations} standard deviations");
    }

    /// The correlation of two sequences of noise, in standard deviations.
    fn correlation(a: &[f64], b: &[f64]) -> f64 {
        let products: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        // The variance of a product of two numbers of variance 1/12.
        products / (a.len() as f64).sqrt() * 12.0
    }

    #[test]
    fn noise_is_uniform() {
        const N: usize = 1 << 18;
        for (key, sample) in [(0, 0), (0, 1), (1, 0), (0x0123_4567_89ab_cdef, 3), (u64::MAX, 255)] {
            let what = format!("key {key:#x}, sample {sample}");
            let noise = noise_of(key, sample, N);
            assert!(noise.iter().all(|n| n.abs() < 0.5), "{what}");
            let n = N as f64;
            let mean = noise.iter().sum::<f64>() / n;
            assert_usual(&format!("{what}: mean"), mean * (12.0 * n).sqrt());
            // The fourth moment is 1/80.
            let variance = noise.iter().map(|x| x * x).sum::<f64>() / n;
            let deviation = ((1.0 / 80.0 - 1.0 / 144.0) / n).sqrt();
            assert_usual(&format!("{what}: variance"), (variance - 1.0 / 12.0) / deviation);
            for buckets in [2, 16, 255, 4096] {
                let mut counts = vec![0u32; buckets];
                noise.iter().for_each(|x| counts[((x + 0.5) * buckets as f64) as usize] += 1);
                let expected = n / buckets as f64;
                let chi_square: f64 =
                    counts.iter().map(|&count| (f64::from(count) - expected).powi(2) / expected).sum();
                let freedom = (buckets - 1) as f64;
                // Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is close to normal.
                let cube_root = (chi_square / freedom).cbrt();
                let deviations = (cube_root - 1.0 + 2.0 / (9.0 * freedom)) / (2.0 / (9.0 * freedom)).sqrt();
                assert_usual(&format!("{what}: {buckets} buckets"), deviations);
            }
            for lag in [1, 2, 3, 7, 8, 16, 32, 64, 196, 784, 1024, 3136, 4096, 65536] {
                assert_usual(&format!("{what}: lag {lag}"), correlation(&noise[..N - lag], &noise[lag..]));
            }
        }
    }

    /// Samples and keys that are near to each other have noise that is not, at the same places and at others.
    #[test]
    fn noises_of_other_keys_and_samples_are_independent() {
        const N: usize = 1 << 16;
        let of = |key, sample| noise_of(key, sample, N);
        let base = of(7, 0);
        let others = [(7, 1), (7, 2), (6, 0), (8, 0), (7 | 1 << 32, 0), (7 | 1 << 63, 0), (7 + (1 << 31), 5)];
        for (key, sample) in others {
            let other = of(key, sample);
            assert_usual(&format!("{key:#x}, {sample}"), correlation(&base, &other));
            for lag in [1, 8, 32, 1000] {
                assert_usual(&format!("{key:#x}, {sample}: lag {lag}"), correlation(&base[lag..], &other));
            }
        }
        // The same place of many samples, and of many keys.
        for of_index in [
            |i: usize| GradientQuantizer::new(8, 7).noise(i, 5),
            |i: usize| GradientQuantizer::new(8, i as u64).noise(0, 5),
        ] {
            let noise: Vec<f64> = (0..N).map(|i| f64::from(of_index(i))).collect();
            let mean = noise.iter().sum::<f64>() / N as f64;
            assert_usual("mean of one place", mean * (12.0 * N as f64).sqrt());
            assert_usual("lag 1 of one place", correlation(&noise[1..], &noise[..N - 1]));
        }
    }

    /// Where the first parts of two keys meet at places apart, the second parts tell their noise apart.
    #[test]
    fn noises_that_meet_in_the_first_part_of_a_key_are_independent() {
        const N: u32 = 1 << 16;
        let of = |key: [u32; 2], from: u32| -> Vec<f64> {
            (from..from + N).map(|place| f64::from(noise(key, place))).collect()
        };
        let base = of([1000, 77], 500);
        for second in [76, 78, 77 ^ 1 << 31, 0x9abc_def0] {
            let other = of([1500, second], 0);
            assert_usual(&format!("{second:#x}"), correlation(&base, &other));
            let differences: Vec<f64> = base.iter().zip(&other).map(|(a, b)| a - b).collect();
            let mean = differences.iter().sum::<f64>() / f64::from(N);
            // The difference of two uniform numbers has a variance of 1/6.
            let variance = differences.iter().map(|x| x * x).sum::<f64>() / f64::from(N);
            assert!(
                mean.abs() < 0.01 && (variance - 1.0 / 6.0).abs() < 0.01,
                "{second:#x}: {mean}, {variance}"
            );
        }
        assert_eq!(base, of([1500, 77], 0));
    }

    /// The definition in double precision, from the noise: code and distance of its position to where the next code begins.
    fn definition(g: f32, maximum: f32, largest: u8, noise: f32) -> (f64, f64) {
        let n = f64::from(largest);
        let position = n * (f64::from(g) / (2.0 * f64::from(maximum)) + 0.5) + f64::from(noise);
        let distance = 0.5 - (position - position.round_ties_even()).abs();
        (position.round_ties_even().clamp(0.0, n), distance)
    }

    #[test]
    fn codes_and_values_are_those_of_the_definition() {
        let mut near_ties = 0;
        let mut n_values = 0;
        for bits in 1..=8 {
            for (batch, len) in [(1, 1), (3, 31), (2, 32), (5, 33), (1, 10_000), (4, 70_001), (300, 3)] {
                let quantizer = GradientQuantizer::new(bits, u64::from(bits) << 40 | len as u64);
                let gradient = values(batch * len, len as u32);
                let GradientCodes { codes, maxima, .. } = quantizer.codes(&gradient, batch);
                let quantized = quantizer.quantized(&gradient, batch);
                assert_eq!([codes.len(), quantized.len(), maxima.len()], [batch * len, batch * len, batch]);
                let largest_of = |g: &[f32]| g.iter().fold(0f32, |m, g| m.max(g.abs()));
                let expected: Vec<f32> = gradient.chunks(len).map(largest_of).collect();
                assert_eq!(maxima, expected);
                for (i, (&code, &value)) in codes.iter().zip(&quantized).enumerate() {
                    let (sample, place) = (i / len, i % len);
                    let maximum = maxima[sample];
                    let noise = quantizer.noise(sample, place);
                    let (expected, distance) = definition(gradient[i], maximum, quantizer.largest(), noise);
                    n_values += 1;
                    if distance < 5e-5 {
                        near_ties += 1;
                        assert!((f64::from(code) - expected).abs() <= 1.0, "{bits} bits, {i}");
                    } else {
                        assert_eq!(f64::from(code), expected, "{bits} bits, {i}");
                    }
                    let n = f64::from(quantizer.largest());
                    let expected = f64::from(maximum) * (2.0 * f64::from(code) / n - 1.0);
                    let error = (f64::from(value) - expected).abs();
                    assert!(error <= 2e-7 * f64::from(maximum), "{bits} bits, {i}: {value}, not {expected}");
                }
            }
        }
        assert!(near_ties < n_values / 1000, "{near_ties} of {n_values}");
    }

    /// Over many keys, the mean of the values is the gradient.
    #[test]
    fn the_mean_over_the_noise_is_the_gradient() {
        const KEYS: u32 = 4000;
        let gradient = [1.0, -1.0, 0.0, 0.3, -0.7, 1e-3, 0.999, -0.5, 0.25, 0.5].map(|g| g * 3e-4);
        for bits in [1, 2, 3, 6, 8] {
            let mut sums = [0.0; 10];
            for key in 0..KEYS {
                let key = u64::from(key).wrapping_mul(0xd134_2543_de82_ef95);
                let quantized = GradientQuantizer::new(bits, key).quantized(&gradient, 1);
                sums.iter_mut().zip(quantized).for_each(|(sum, value)| *sum += f64::from(value));
            }
            let n = f64::from((1u32 << bits) - 1);
            for (g, sum) in gradient.into_iter().zip(sums) {
                let maximum = f64::from(gradient[0]);
                let position = n * (f64::from(g) / (2.0 * maximum) + 0.5);
                // Of two codes the upper one has the probability of the fraction.
                let fraction = position.fract();
                let deviation = 2.0 * maximum / n * (fraction * (1.0 - fraction) / f64::from(KEYS)).sqrt()
                    + maximum * 1e-6;
                let mean = sum / f64::from(KEYS);
                assert_usual(&format!("{bits} bits of {g}"), (mean - f64::from(g)) / deviation);
            }
        }
    }

    /// A sample's maximum is its own, and its codes are those of its values and its noise, whatever the others are.
    #[test]
    fn samples_do_not_depend_on_each_other() {
        const LEN: usize = 5000;
        let quantizer = GradientQuantizer::new(4, 99);
        let mut gradient = values(4 * LEN, 1);
        let before = quantizer.codes(&gradient, 4);
        gradient[..LEN].iter_mut().for_each(|g| *g *= 100.0);
        gradient[3 * LEN..].fill(f32::NAN);
        let after = quantizer.codes(&gradient, 4);
        assert_eq!(before.codes[LEN..3 * LEN], after.codes[LEN..3 * LEN]);
        assert_eq!(before.maxima[1..3], after.maxima[1..3]);
        assert!(after.maxima[0] > 50.0 * before.maxima[0]);
        // The same values at two positions of a batch have noise of their own, but codes that are equally often those around them.
        let twice = [&gradient[LEN..2 * LEN]; 2].concat();
        let GradientCodes { codes, maxima, .. } = quantizer.codes(&twice, 2);
        assert_eq!(maxima[0], maxima[1]);
        let (first, second) = codes.split_at(LEN);
        assert_ne!(first, second);
        assert!(first.iter().zip(second).all(|(a, b)| a.abs_diff(*b) <= 1));
        let difference: f64 = first.iter().zip(second).map(|(a, b)| f64::from(*a) - f64::from(*b)).sum();
        // Each has a variance of at most 1/4.
        assert_usual("difference of the codes", difference / (LEN as f64 / 2.0).sqrt());
    }

    #[test]
    fn the_number_of_threads_changes_nothing() {
        let gradient = values(3 * 100_003, 2);
        let quantizer = GradientQuantizer::new(8, 5);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            pool.install(|| (quantizer.codes(&gradient, 3), quantizer.quantized(&gradient, 3)))
        };
        assert_eq!(with(1), with(4));
    }

    #[test]
    fn samples_of_zeros_stay_zero() {
        for bits in [1, 8] {
            let quantizer = GradientQuantizer::new(bits, 3);
            let mut gradient = vec![0.0; 100];
            gradient[10] = -0.0;
            gradient[99] = 2.0;
            let quantized = quantizer.quantized(&gradient, 2);
            assert_eq!(quantized[..50], [0.0; 50]);
            // Not in a sample with other values: there is no code of zero.
            assert!(quantized[50..].iter().all(|value| *value != 0.0));
            let GradientCodes { codes, maxima, .. } = quantizer.codes(&gradient, 2);
            assert_eq!((&codes[..50], maxima), (&[0; 50][..], vec![0.0, 2.0]));
        }
    }

    #[test]
    fn what_is_not_finite_does_not_become_a_number() {
        for bits in [1, 2, 8] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for place in [0, 40, 69] {
                    let mut gradient = values(210, 4);
                    gradient[70 + place] = bad;
                    let quantizer = GradientQuantizer::new(bits, 11);
                    let quantized = quantizer.quantized(&gradient, 3);
                    let is_finite =
                        |sample: usize| quantized[70 * sample..][..70].iter().map(|g| g.is_finite());
                    assert!(is_finite(0).chain(is_finite(2)).all(|is| is), "{bad} at {place}");
                    assert!(!is_finite(1).any(|is| is), "{bad} at {place}");
                    let maxima = quantizer.codes(&gradient, 3).maxima;
                    assert_eq!(maxima[1].is_nan(), bad.is_nan());
                    assert!(!maxima[1].is_finite() && maxima[0].is_finite() && maxima[2].is_finite());
                }
            }
        }
    }

    /// Large and small numbers have codes, too.
    #[test]
    fn extreme_maxima_are_no_problem() {
        for maximum in [f32::MAX / 2.0, f32::MIN_POSITIVE, f32::from_bits(1)] {
            let gradient = [maximum, -maximum, 0.0, maximum];
            for bits in 1..=8 {
                let quantizer = GradientQuantizer::new(bits, 17);
                let GradientCodes { codes, maxima, .. } = quantizer.codes(&gradient, 1);
                let largest = quantizer.largest();
                assert_eq!((codes[0], codes[1], codes[3], maxima[0]), (largest, 0, largest, maximum));
                assert!(quantizer.quantized(&gradient, 1).iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn there_may_be_nothing() {
        let quantizer = GradientQuantizer::new(8, 0);
        assert_eq!(quantizer.quantized(&[], 0), []);
        assert_eq!(
            quantizer.codes(&[], 3),
            GradientCodes { codes: vec![], maxima: vec![0.0; 3], largest: quantizer.largest() }
        );
    }

    #[test]
    #[should_panic(expected = "7 values are not those of 2 samples")]
    fn samples_have_one_length() {
        GradientQuantizer::new(8, 0).quantized(&[1.0; 7], 2);
    }

    #[test]
    #[should_panic(expected = "gradients have 1 to 8 bits, not 9")]
    fn bits_are_of_a_byte() {
        GradientQuantizer::new(9, 0);
    }
}
