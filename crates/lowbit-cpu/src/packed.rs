//! Images of codes, 8, 4, 2 or 1 to a byte: what the gradient of a convolution's weights needs of a quantized input, in 1/32 to
//! 1/4 of the memory.

use rayon::prelude::*;

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

impl PackedImages {
    /// Packs images of `image_len` codes, each worth `scale`. Of codes beyond `largest` the lowest bits are kept.
    ///
    /// # Panics
    /// If the images do not fill `codes`.
    pub fn pack(codes: &[u8], image_len: usize, scale: f32, largest: u8) -> Self {
        assert!(image_len > 0 && codes.len().is_multiple_of(image_len), "images do not fill the codes");
        let per_byte = match largest {
            0..=1 => 8,
            2..=3 => 4,
            4..=15 => 2,
            _ => 1,
        };
        let image_bytes = image_len.div_ceil(per_byte);
        let bits = 8 / per_byte;
        let mut bytes = vec![0; codes.len() / image_len * image_bytes];
        let images = bytes.par_chunks_mut(image_bytes).zip(codes.par_chunks(image_len));
        images.with_min_len(task_items(image_len)).for_each(|(bytes, image)| {
            for (i, codes) in image.chunks(image_bytes).enumerate() {
                join(codes, bits * i, 255 >> (8 - bits), bytes);
            }
        });
        Self { bytes, image_len, per_byte, scale }
    }

    /// Values of an image.
    pub fn image_len(&self) -> usize {
        self.image_len
    }

    /// Images.
    pub fn n_images(&self) -> usize {
        self.bytes.len() / self.image_bytes()
    }

    /// What a code is worth.
    pub fn scale(&self) -> f32 {
        self.scale
    }

    /// What the codes of all images are worth.
    pub fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.n_images() * self.image_len];
        let images = values.par_chunks_mut(self.image_len).enumerate();
        images.with_min_len(task_items(self.image_len)).for_each(|(image, values)| {
            self.unpack(image, 0, values);
            values.iter_mut().for_each(|value| *value *= self.scale);
        });
        values
    }

    /// Writes codes of an image, from number `first` of it on, as many as `out` has room for.
    ///
    /// # Panics
    /// If there is no such image, or it has not as many values.
    pub fn unpack(&self, image: usize, first: usize, mut out: &mut [f32]) {
        assert!(first + out.len() <= self.image_len, "values beyond the end of an image");
        let (image_bytes, bits) = (self.image_bytes(), 8 / self.per_byte);
        let bytes = &self.bytes[image * image_bytes..][..image_bytes];
        let mut first = first;
        while !out.is_empty() {
            // Values that follow each other are in bytes that do, until the image's bytes begin again.
            let (i, byte) = (first / image_bytes, first % image_bytes);
            let (values, rest) = out.split_at_mut(out.len().min(image_bytes - byte));
            split(&bytes[byte..], bits * i, bits, values);
            first += values.len();
            out = rest;
        }
    }

    fn image_bytes(&self) -> usize {
        self.image_len.div_ceil(self.per_byte)
    }
}

multiversion! {
    /// Writes the bits `mask` of the codes into bytes, `shift` bits from the lowest.
    fn join(codes: &[u8], shift: usize, mask: u8, bytes: &mut [u8]) {
        for (byte, &code) in bytes.iter_mut().zip(codes) {
            *byte |= (code & mask) << shift;
        }
    }
}

multiversion! {
    /// Writes the codes of `bits` bits that lie `shift` bits from the lowest.
    fn split(bytes: &[u8], shift: usize, bits: usize, codes: &mut [f32]) {
        let mask = 255 >> (8 - bits);
        for (code, byte) in codes.iter_mut().zip(bytes) {
            *code = f32::from((byte >> shift) & mask);
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
                let code = |i: usize| ((i * 7919 + i / 3) % (usize::from(largest) + 1)) as u8;
                let codes: Vec<u8> = (0..5 * image_len).map(code).collect();
                let values: Vec<f32> = codes.iter().map(|code| f32::from(*code) * scale).collect();
                let packed = PackedImages::pack(&codes, image_len, scale, largest);
                assert_eq!((packed.n_images(), packed.image_len(), packed.scale()), (5, image_len, scale));
                assert_eq!(packed.values(), values);
                let codes: Vec<f32> = codes.into_iter().map(f32::from).collect();
                let bits = if largest > 15 { 8 } else { usize::BITS - usize::from(largest).leading_zeros() };
                assert!(
                    packed.bytes.len() <= 5 * (image_len * bits.next_power_of_two() as usize).div_ceil(8)
                );
                for image in 0..5 {
                    for first in 0..image_len.min(40) {
                        for n in [0, 1, image_len / 2, image_len].map(|n| n.min(image_len - first)) {
                            let mut out = vec![f32::NAN; n];
                            packed.unpack(image, first, &mut out);
                            assert_eq!(out, codes[image * image_len + first..][..n]);
                        }
                    }
                }
            }
        }
    }
}
