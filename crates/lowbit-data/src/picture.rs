//! Images of any size, as they are decoded and resized.

use std::fmt;

use crate::{Image, ImageShape};

/// Columns and rows of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Number of columns.
    pub width: u32,
    /// Number of rows.
    pub height: u32,
}

impl Dimensions {
    /// Number of pixels.
    pub fn n_pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

impl fmt::Display for Dimensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

/// An image with the channels of a pixel side by side, as image files are decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Its size.
    pub dimensions: Dimensions,
    /// Channels of a pixel: 3 (red, green and blue) or 1 (grey).
    pub channels: usize,
    /// Its values, row-major `[height, width, channel]`.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// Its shape.
    pub fn shape(&self) -> ImageShape {
        let Dimensions { width, height } = self.dimensions;
        ImageShape { channels: self.channels, height: height as usize, width: width as usize }
    }

    /// The same with each channel in a plane of its own, `[channel, height, width]`, as a [`Source`](crate::Source) gives it.
    pub fn into_image(self) -> Image<'static> {
        let shape = self.shape();
        let mut pixels = vec![0; self.pixels.len()];
        match self.channels {
            3 => {
                let (red, rest) = pixels.split_at_mut(shape.height * shape.width);
                let (green, blue) = rest.split_at_mut(shape.height * shape.width);
                let pixels = self.pixels.as_chunks::<3>().0;
                for (((pixel, red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
                    [*red, *green, *blue] = *pixel;
                }
            }
            1 => pixels = self.pixels,
            channels => {
                for (idx, value) in self.pixels.into_iter().enumerate() {
                    pixels[idx % channels * shape.height * shape.width + idx / channels] = value;
                }
            }
        }
        Image { shape, pixels: pixels.into() }
    }

    /// As a PNG file.
    ///
    /// # Panics
    /// If it has other than 1 or 3 channels, or not as many values as its size.
    pub fn to_png(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.dimensions.width, self.dimensions.height);
        encoder.set_color(match self.channels {
            1 => png::ColorType::Grayscale,
            3 => png::ColorType::Rgb,
            n => panic!("{n} channels are no picture"),
        });
        let write = |encoder: png::Encoder<'_, &mut Vec<u8>>| {
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&self.pixels)?;
            writer.finish()
        };
        write(encoder)
            .expect("invariant: memory takes what is written, and the values are as many as the size says");
        bytes
    }

    /// From planes. `None` for more pixels in a row or column than are counted.
    pub(crate) fn from_image(image: Image<'_>) -> Option<Self> {
        let ImageShape { channels, height, width } = image.shape;
        let dimensions = Dimensions { width: width.try_into().ok()?, height: height.try_into().ok()? };
        let plane = height * width;
        let pixels = match channels {
            1 => image.pixels.into_owned(),
            _ => (0..plane)
                .flat_map(|pixel| (0..channels).map(move |channel| channel * plane + pixel))
                .map(|idx| image.pixels[idx])
                .collect(),
        };
        Some(Picture { dimensions, channels, pixels })
    }

    /// The same in grey, or grey in three equal channels.
    pub fn with_channels(self, channels: usize) -> Self {
        let pixels = match (self.channels, channels) {
            (3, 1) => self.pixels.as_chunks::<3>().0.iter().map(|&pixel| luma(pixel)).collect(),
            (1, 3) => self.pixels.iter().flat_map(|&value| [value; 3]).collect(),
            _ => return self,
        };
        Picture { channels, pixels, ..self }
    }
}

/// Grey of a color, by the weights of ITU-R BT.601 in 16 bits, rounded, as Pillow's mode "L".
pub(crate) fn luma([red, green, blue]: [u8; 3]) -> u8 {
    let sum = 19_595 * u32::from(red) + 38_470 * u32::from(green) + 7_471 * u32::from(blue);
    ((sum + (1 << 15)) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_come_back() {
        for channels in [1, 2, 3] {
            let pixels: Vec<u8> = (0..6 * channels as u8).collect();
            let picture = Picture { dimensions: Dimensions { width: 3, height: 2 }, channels, pixels };
            let image = picture.clone().into_image();
            assert_eq!(image.shape, ImageShape { channels, height: 2, width: 3 });
            assert_eq!(image.pixels[6 * (channels - 1) + 1], (2 * channels - 1) as u8);
            assert_eq!(Picture::from_image(image), Some(picture));
        }
    }

    #[test]
    fn grey_is_weighted() {
        let dimensions = Dimensions { width: 3, height: 1 };
        let picture = Picture { dimensions, channels: 3, pixels: vec![255, 0, 0, 0, 255, 0, 7, 7, 7] };
        let grey = picture.with_channels(1);
        assert_eq!(grey.pixels, [76, 150, 7]);
        assert_eq!(grey.with_channels(3).pixels, [76, 76, 76, 150, 150, 150, 7, 7, 7]);
    }
}
