//! Codes of images as the kernels of integers read them: four channels of a pixel are a word.
//!
//! # Layout
//! `[image, ceil(channels / 4), plane]` words of four bytes each, the channels `4 i` to `4 i + 3` of a pixel. The bytes of channels that there
//! are not, in the last word, are any codes within the bounds: weights for them are zero.

/// Channels in a word.
pub const WORD: usize = 4;

/// Codes of images, `[image, channels, plane]`, as words, into `words`.
///
/// # Panics
/// If the codes are not as many.
pub fn join(codes: &[u8], n_images: usize, channels: usize, plane: usize, words: &mut Vec<[u8; WORD]>) {
    assert_eq!(codes.len(), n_images * channels * plane, "number of codes");
    words.clear();
    for image in codes.chunks_exact((channels * plane).max(1)) {
        for planes in image.chunks(WORD * plane) {
            words.extend((0..plane).map(|pixel| {
                std::array::from_fn(|channel| {
                    planes.get(channel * plane + pixel).copied().unwrap_or_default()
                })
            }));
        }
    }
}

/// The codes in words, `[image, channels, plane]`, into `codes`.
///
/// # Panics
/// If the words are not as many.
pub fn split(words: &[[u8; WORD]], n_images: usize, channels: usize, plane: usize, codes: &mut Vec<u8>) {
    assert_eq!(words.len(), n_images * channels.div_ceil(WORD) * plane, "number of words");
    codes.clear();
    for image in words.chunks_exact((channels.div_ceil(WORD) * plane).max(1)) {
        for channel in 0..channels {
            let plane = &image[channel / WORD * plane..][..plane];
            codes.extend(plane.iter().map(|word| word[channel % WORD]));
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
                let (mut words, mut back) = (vec![[9; WORD]], vec![9]);
                join(&codes, 3, channels, plane, &mut words);
                split(&words, 3, channels, plane, &mut back);
                assert_eq!(words.len(), 3 * channels.div_ceil(4) * plane);
                assert_eq!(back, codes);
            }
        }
    }
}
