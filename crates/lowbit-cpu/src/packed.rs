//! Images of small integers times a scale, 8, 4, 2 or 1 integers to a byte: what the gradient of a convolution's weights
//! needs of a quantized input, in 1/32 to 1/4 of the memory.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use crate::codes::{integer, low_byte};
use crate::instructions::multiversion;
use crate::task_items;

/// Images of codes.
#[derive(Clone, Debug)]
pub struct PackedImages {
    /// Image after image. Byte `j` of an image of `b` bytes holds the codes of the values `j`, `j + b`, `j + 2 b`, ...
    bytes: Vec<u8>,
    /// Values of an image.
    image_len: usize,
    /// Codes of a byte.
    per_byte: usize,
    scale: f32,
}

/// Bytes that are made together: their sums stay in the nearest cache.
const TOGETHER: usize = 1024;

impl PackedImages {
    /// Packs the codes `value / scale` of images of `image_len` values. `None` if one is no integer from 0 to `largest`, apart
    /// from roundings.
    ///
    /// # Panics
    /// If the images do not fill `values`.
    pub fn pack(values: &[f32], image_len: usize, scale: f32, largest: u8) -> Option<Self> {
        assert!(image_len > 0 && values.len().is_multiple_of(image_len), "images do not fill the values");
        let per_byte = match largest {
            0..=1 => 8,
            2..=3 => 4,
            4..=15 => 2,
            _ => 1,
        };
        let image_bytes = image_len.div_ceil(per_byte);
        let mut bytes = vec![0; values.len() / image_len * image_bytes];
        let fit = AtomicBool::new(true);
        let images = bytes.par_chunks_mut(image_bytes).zip(values.par_chunks(image_len));
        images.with_min_len(task_items(image_len)).for_each(|(bytes, image)| {
            for (part, bytes) in bytes.chunks_mut(TOGETHER).enumerate() {
                let mut sums = [0.0; TOGETHER];
                for (i, values) in image.chunks(image_bytes).enumerate() {
                    let values = &values[(part * TOGETHER).min(values.len())..];
                    let place = (1 << (8 / per_byte * i)) as f32;
                    if !add_codes(values, 1.0 / scale, f32::from(largest), place, &mut sums[..bytes.len()]) {
                        fit.store(false, Ordering::Relaxed);
                    }
                }
                to_bytes(&sums, bytes);
            }
        });
        fit.into_inner().then_some(Self { bytes, image_len, per_byte, scale })
    }

    /// Values of an image.
    pub fn image_len(&self) -> usize {
        self.image_len
    }

    /// Images.
    pub fn n_images(&self) -> usize {
        self.bytes.len() / self.image_bytes()
    }

    /// Writes the values of the images from number `first` on, as many as `out` has room for.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn unpack(&self, first: usize, out: &mut [f32]) {
        let (image_bytes, bits) = (self.image_bytes(), 8 / self.per_byte);
        let bytes = self.bytes[first * image_bytes..].chunks_exact(image_bytes);
        let images = out.chunks_exact_mut(self.image_len);
        assert!(images.len() <= bytes.len(), "there are not as many images");
        for (image, bytes) in images.zip(bytes) {
            for (i, values) in image.chunks_mut(image_bytes).enumerate() {
                split(bytes, bits * i, bits, self.scale, values);
            }
        }
    }

    fn image_bytes(&self) -> usize {
        self.image_len.div_ceil(self.per_byte)
    }
}

multiversion! {
    /// Adds the codes of `values`, as many as there are sums, times their place in a byte. Returns whether all are codes up to
    /// `largest`.
    fn add_codes(values: &[f32], inverse: f32, largest: f32, place: f32, sums: &mut [f32]) -> bool {
        let mut fit = 1;
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += integer(value * inverse, 0.0, largest, &mut fit) * place;
        }
        fit == 1
    }
}

multiversion! {
    /// The bytes of integers from 0 to 255.
    fn to_bytes(integers: &[f32], bytes: &mut [u8]) {
        for (byte, &integer) in bytes.iter_mut().zip(integers) {
            *byte = low_byte(integer);
        }
    }
}

multiversion! {
    /// Writes the values of the codes of `bits` bits that lie `shift` bits from the lowest.
    fn split(bytes: &[u8], shift: usize, bits: usize, scale: f32, values: &mut [f32]) {
        let mask = 255 >> (8 - bits);
        for (value, byte) in values.iter_mut().zip(bytes) {
            *value = f32::from((byte >> shift) & mask) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of bits, lengths that do not fill the last byte, images from any number on.
    #[test]
    fn what_is_packed_comes_back() {
        for largest in [1, 2, 3, 7, 15, 16, 255] {
            for image_len in [1, 2, 7, 8, 9, 33, 1024] {
                let scale = 1.0 / f32::from(largest);
                let code = |i: usize| (i * 7919 + i / 3) % (usize::from(largest) + 1);
                let values: Vec<f32> = (0..5 * image_len).map(|i| code(i) as f32 * scale).collect();
                let packed = PackedImages::pack(&values, image_len, scale, largest).expect("these are codes");
                assert_eq!((packed.n_images(), packed.image_len()), (5, image_len));
                let bits = if largest > 15 { 8 } else { usize::BITS - usize::from(largest).leading_zeros() };
                assert!(
                    packed.bytes.len() <= 5 * (image_len * bits.next_power_of_two() as usize).div_ceil(8)
                );
                for first in 0..5 {
                    for n in 0..=5 - first {
                        let mut out = vec![f32::NAN; n * image_len];
                        packed.unpack(first, &mut out);
                        assert_eq!(out, values[first * image_len..][..n * image_len]);
                    }
                }
            }
        }
    }

    #[test]
    fn values_that_are_no_codes_are_told() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 4.0, -1.0, 255.0, 1e30, 0.3, 2.98] {
            for place in [0, 8, 9, 10, 19] {
                let mut values = [1.0; 20];
                values[place] = bad;
                assert!(PackedImages::pack(&values, 10, 1.0, 3).is_none(), "{bad} at {place}");
            }
        }
        for scale in [0.0, -1.0, f32::NAN, f32::MIN_POSITIVE / 4.0] {
            assert!(PackedImages::pack(&[1.0; 20], 10, scale, 3).is_none(), "scale {scale}");
        }
    }
}
