//! Codes of images as the kernels of integers read them: four channels of a pixel are a word.
//!
//! # Layout
//! `[image, ceil(channels / 4), plane]` words of four bytes each, the channels `4 i` to `4 i + 3` of a pixel. The bytes of channels that there
//! are not, in the last word, are any: weights for them are zero.

use rayon::prelude::*;

use crate::instructions::multiversion;
use crate::task_items;

/// Channels in a word.
pub const WORD: usize = 4;

/// Codes of images, `[image, channels, plane]`, as words.
///
/// # Panics
/// If the codes are not as many.
pub fn join(codes: &[u8], n_images: usize, channels: usize, plane: usize) -> Vec<[u8; WORD]> {
    assert_eq!(codes.len(), n_images * channels * plane, "number of codes");
    let mut words = Vec::with_capacity(n_images * channels.div_ceil(WORD) * plane);
    for image in codes.chunks_exact((channels * plane).max(1)) {
        for planes in image.chunks(WORD * plane) {
            words.extend((0..plane).map(|pixel| {
                std::array::from_fn(|channel| {
                    planes.get(channel * plane + pixel).copied().unwrap_or_default()
                })
            }));
        }
    }
    words
}

/// The codes in words, `[image, channels, plane]`.
///
/// # Panics
/// If the words are not as many.
pub fn split(words: &[[u8; WORD]], n_images: usize, channels: usize, plane: usize) -> Vec<u8> {
    assert_eq!(words.len(), n_images * channels.div_ceil(WORD) * plane, "number of words");
    let mut codes = Vec::with_capacity(n_images * channels * plane);
    for image in words.chunks_exact((channels.div_ceil(WORD) * plane).max(1)) {
        for channel in 0..channels {
            let plane = &image[channel / WORD * plane..][..plane];
            codes.extend(plane.iter().map(|word| word[channel % WORD]));
        }
    }
    codes
}

/// The levels of values in single precision, for each channel: how many thresholds the value has reached, or, in a channel that counts
/// downwards, the value with the other sign.
#[derive(Clone, Debug)]
pub struct ValueLevels {
    n_channels: usize,
    /// -1 in a channel that counts downwards, else 1. One for all channels, or one for each.
    signs: Vec<f32>,
    /// Thresholds of a channel.
    n_thresholds: usize,
    /// Ascending, of all channels or of each.
    thresholds: Vec<f32>,
    codes: Vec<u8>,
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
        let n_thresholds = codes.len() - 1;
        for (_, thresholds) in channels {
            assert_eq!(thresholds.len(), n_thresholds, "thresholds of a channel");
            assert!(thresholds.is_sorted(), "thresholds ascend");
        }
        Self {
            n_channels,
            signs: channels.iter().map(|(downwards, _)| if *downwards { -1.0 } else { 1.0 }).collect(),
            n_thresholds,
            thresholds: channels.iter().flat_map(|(_, thresholds)| thresholds).copied().collect(),
            codes,
        }
    }

    /// The codes of the levels of values `[image, channels, plane]`, as words.
    ///
    /// # Panics
    /// If the values are no whole number of images.
    pub fn apply(&self, values: &[f32], plane: usize) -> Vec<[u8; WORD]> {
        let (channels, are_shared) = (self.n_channels, self.signs.len() == 1);
        assert!(values.len().is_multiple_of(channels * plane), "number of values");
        let n_images = values.len() / (channels * plane);
        let n_words = channels.div_ceil(WORD);
        let mut words = vec![[0; WORD]; n_images * n_words * plane];
        let planes = words.par_chunks_mut(plane).enumerate();
        planes.with_min_len(task_items(WORD * plane)).for_each(|(place, words)| {
            let (image, word) = (place / n_words, place % n_words);
            let first = WORD * word;
            for channel in first..(first + WORD).min(channels) {
                let values = &values[(image * channels + channel) * plane..][..plane];
                let of = if are_shared { 0 } else { channel };
                let thresholds = &self.thresholds[of * self.n_thresholds..][..self.n_thresholds];
                write_levels(values, self.signs[of], thresholds, channel % WORD, words);
            }
            let are_numbers = self.codes.iter().enumerate().all(|(level, code)| usize::from(*code) == level);
            if !are_numbers {
                let codes = |level: u8| self.codes.get(usize::from(level)).copied().unwrap_or_default();
                words.iter_mut().for_each(|word| *word = word.map(codes));
            }
        });
        words
    }
}

/// Thresholds up to which all are compared with; of more a half is left out each time.
const FEW: usize = 15;

/// Values of which the levels are in the nearest cache.
const CHUNK: usize = 512;

multiversion! {
    /// Writes the levels of a channel's values into the bytes `place` of the words.
    fn write_levels(values: &[f32], sign: f32, thresholds: &[f32], place: usize, words: &mut [[u8; WORD]]) {
        for (values, words) in values.chunks(CHUNK).zip(words.chunks_mut(CHUNK)) {
            let mut levels = [0u8; CHUNK];
            if thresholds.len() <= FEW {
                for threshold in thresholds {
                    for (level, value) in levels.iter_mut().zip(values) {
                        *level += u8::from(sign * value >= *threshold);
                    }
                }
            } else {
                for (level, value) in levels.iter_mut().zip(values) {
                    let signed = sign * value;
                    *level = thresholds.partition_point(|threshold| *threshold <= signed) as u8;
                }
            }
            for (word, level) in words.iter_mut().zip(levels) {
                word[place] = level;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_four_channels() {
        for channels in 1..=9 {
            for plane in [1, 2, 7] {
                let codes: Vec<u8> = (0..3 * channels * plane).map(|i| i as u8).collect();
                let words = join(&codes, 3, channels, plane);
                assert_eq!(words.len(), 3 * channels.div_ceil(4) * plane);
                assert_eq!(split(&words, 3, channels, plane), codes);
            }
        }
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
                let words = ValueLevels::new(6, &channels, codes.clone()).apply(&values, plane);
                let got = split(&words, 2, 6, plane);
                for (i, (got, value)) in got.iter().zip(&values).enumerate() {
                    let (downwards, thresholds) = &channels[i / plane % 6];
                    let signed = if *downwards { -value } else { *value };
                    let level = thresholds.iter().filter(|threshold| signed >= **threshold).count();
                    assert_eq!(*got, codes[level], "{n_thresholds} thresholds, number {i}");
                }
                let shared = ValueLevels::new(6, &channels[1..2], codes.clone()).apply(&values, plane);
                let each = ValueLevels::new(6, &vec![channels[1].clone(); 6], codes.clone());
                assert_eq!(shared, each.apply(&values, plane));
            }
        }
    }
}
