//! What images are like: their sizes, mean and deviation.

use std::sync::{Mutex, PoisonError};

use super::FolderImages;
use crate::{Dimensions, Normalization};

/// What all images of a part are like, each in its own size.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageStats {
    /// Images that were decoded.
    pub n_images: usize,
    /// Columns.
    pub width: Spread,
    /// Rows.
    pub height: Spread,
    /// Mean and (population) deviation of all pixels of all images; every pixel counts alike.
    pub normalization: Normalization,
    /// Images that cannot be decoded, by index, and why.
    pub unreadable: Vec<(usize, String)>,
}

/// Smallest, middle and largest of some numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// The smallest.
    pub min: u32,
    /// The lower median.
    pub median: u32,
    /// The largest.
    pub max: u32,
}

impl Spread {
    fn of(mut numbers: Vec<u32>) -> Self {
        numbers.sort_unstable();
        let median = numbers.get(numbers.len().saturating_sub(1) / 2).copied().unwrap_or(0);
        let [min, max] = [numbers.first(), numbers.last()].map(|end| end.copied().unwrap_or(0));
        Spread { min, median, max }
    }
}

/// Sums over pixels, exact for 1.28 million images of 16 megapixels.
#[derive(Default)]
struct Sums {
    sizes: Vec<Dimensions>,
    n_pixels: u64,
    values: [u64; 3],
    squares: [u128; 3],
}

impl ImageStats {
    /// Decodes all images on `n_threads` threads. `progress` is told how many are done; it ends early once that says `false`.
    pub fn measure(images: &FolderImages, n_threads: usize, progress: impl Fn(usize) -> bool + Sync) -> Self {
        let sums = Mutex::new(Sums::default());
        let unreadable = images.decode_all(n_threads, |_, picture| {
            let Some(picture) = picture else { return true };
            let (mut values, mut squares) = ([0u64; 3], [0u64; 3]);
            for pixel in picture.pixels.as_chunks::<3>().0 {
                for (channel, &value) in pixel.iter().enumerate() {
                    values[channel] += u64::from(value);
                    squares[channel] += u64::from(value) * u64::from(value);
                }
            }
            let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
            sums.sizes.push(picture.dimensions);
            sums.n_pixels += picture.dimensions.n_pixels();
            for channel in 0..3 {
                sums.values[channel] += values[channel];
                sums.squares[channel] += u128::from(squares[channel]);
            }
            let n_done = sums.sizes.len();
            drop(sums);
            progress(n_done)
        });
        let Sums { sizes, n_pixels, values, squares } =
            sums.into_inner().unwrap_or_else(PoisonError::into_inner);
        let n_pixels = n_pixels.max(1) as f64;
        let white = f64::from(u8::MAX);
        let mean = values.map(|sum| sum as f64 / n_pixels);
        let deviation = |channel: usize| {
            let variance = squares[channel] as f64 / n_pixels - mean[channel] * mean[channel];
            (variance.max(0.0).sqrt() / white) as f32
        };
        ImageStats {
            n_images: sizes.len(),
            width: Spread::of(sizes.iter().map(|size| size.width).collect()),
            height: Spread::of(sizes.iter().map(|size| size.height).collect()),
            normalization: Normalization {
                std: (0..3).map(deviation).collect(),
                mean: mean.iter().map(|mean| (mean / white) as f32).collect(),
            },
            unreadable,
        }
    }
}
