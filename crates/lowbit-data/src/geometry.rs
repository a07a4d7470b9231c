//! Images of any size become images of the network's.

use fast_image_resize::images::{Image as Target, TypedCroppedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use rand::{Rng, RngExt};

use crate::{DataError, Dimensions, Image, ImageShape, Picture};

/// Draws of a crop before the center is taken.
const N_TRIES: usize = 10;

/// The longest side of a network's input.
const MAX_SIZE: usize = 8192;

/// How images of any size become square ones of one size, as in torchvision's reference.
///
/// Without a random crop (`Resize` and `CenterCrop`), the shorter side is resized to `resize` pixels, then a square of `size` is
/// taken from the middle; only what is seen of it is computed. With one ([`RandomResizedCrop`]), the crop is resized.
/// Resizing is Pillow's bilinear filter, which reads as many pixels as become one.
///
/// | Name | Default | Range | Unit |
/// |---|---|---|---|
/// | `channels` | | 1, 3 | grey by ITU-R BT.601, or red, green and blue |
/// | `size` | | 1..=8192 | pixels a side |
/// | `resize` | | `size`..=8192 | pixels of the shorter side |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Channels of the result.
    pub channels: usize,
    /// Side of the result.
    pub size: usize,
    /// Shorter side of the image of which the result is the middle.
    pub resize: usize,
}

impl Geometry {
    /// The shape of the result.
    pub fn shape(self) -> ImageShape {
        ImageShape { channels: self.channels, height: self.size, width: self.size }
    }

    pub(crate) fn check(self) -> Result<(), DataError> {
        let is_defined = matches!(self.channels, 1 | 3)
            && (1..=MAX_SIZE).contains(&self.size)
            && (self.size..=MAX_SIZE).contains(&self.resize);
        match is_defined {
            true => Ok(()),
            false => Err(DataError::Geometry { geometry: self, max: MAX_SIZE }),
        }
    }

    /// The part of `picture` that is asked for, or else its middle, in this size.
    ///
    /// # Panics
    /// If the picture has no pixel, other than 1 or 3 channels or not as many values as it says, or if the part is not in it.
    pub fn apply(self, picture: Picture, crop: Option<CropBox>) -> Image<'static> {
        let is_picture = matches!(picture.channels, 1 | 3) && picture.dimensions.n_pixels() > 0;
        assert!(is_picture, "a picture of {}", picture.shape());
        // The resizing of one kind of pixels alone is compiled: grey is resized as a color.
        let picture = picture.with_channels(3);
        let (part, seen) = match crop {
            // Pixels beside a part have no influence.
            Some(part) => (part, None),
            None => {
                let Dimensions { width, height } = picture.dimensions;
                (CropBox { left: 0, top: 0, width, height }, Some(self.middle(picture.dimensions)))
            }
        };
        let side = self.size as u32;
        let dimensions = Dimensions { width: side, height: side };
        let pixels = resized(&picture, part, seen, dimensions);
        Picture { dimensions, channels: 3, pixels }.with_channels(self.channels).into_image()
    }

    /// Left, top, width and height of what is seen after the shorter side has become `resize` and the middle is taken.
    fn middle(self, Dimensions { width, height }: Dimensions) -> [f64; 4] {
        let shorter = width.min(height);
        let along = |side: u32| {
            // Whole pixels, as torchvision counts them.
            let resized = (self.resize as f64 * f64::from(side) / f64::from(shorter)).floor();
            let first = ((resized - self.size as f64) / 2.0).round_ties_even();
            let scale = f64::from(side) / resized;
            let length = (self.size as f64 * scale).min(f64::from(side));
            [(first * scale).min(f64::from(side) - length), length]
        };
        let ([left, width], [top, height]) = (along(width), along(height));
        [left, top, width, height]
    }
}

/// Of `part` of a picture what is `seen` (left, top, width and height in it; all unless it is said), in `size`.
fn resized(picture: &Picture, part: CropBox, seen: Option<[f64; 4]>, size: Dimensions) -> Vec<u8> {
    let Dimensions { width, height } = picture.dimensions;
    let whole = TypedImageRef::<U8x3>::from_buffer(width, height, &picture.pixels);
    let whole = whole.expect("a picture has as many values as it says");
    let part = TypedCroppedImage::new(whole, part.left, part.top, part.width, part.height);
    let part = part.expect("the part is in the picture");
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    let options = match seen {
        Some([left, top, width, height]) => options.crop(left, top, width, height),
        None => options,
    };
    let mut target = Target::new(size.width, size.height, PixelType::U8x3);
    let mut view = target.typed_image_mut::<U8x3>().expect("invariant: it was made of this type");
    Resizer::new().resize_typed(&part, &mut view, &options).expect("invariant: what is seen is in the part");
    target.into_vec()
}

/// `picture` with its shorter side brought to `side`, as torchvision's `Resize` does it.
///
/// # Panics
/// If the picture has no pixel, other than 3 channels or not as many values as it says.
pub(crate) fn resize_shorter(picture: Picture, side: u32) -> Picture {
    let Dimensions { width, height } = picture.dimensions;
    let shorter = u64::from(width.min(height));
    // Whole pixels, as torchvision counts them.
    let along = |length: u32| (u64::from(side) * u64::from(length) / shorter).max(1) as u32;
    let dimensions = Dimensions { width: along(width), height: along(height) };
    let whole = CropBox { left: 0, top: 0, width, height };
    let pixels = resized(&picture, whole, None, dimensions);
    Picture { dimensions, channels: 3, pixels }
}

/// A part of an image, in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Number of columns, at least 1.
    pub width: u32,
    /// Number of rows, at least 1.
    pub height: u32,
}

/// A random part of the image, of random area and ratio of width to height, as torchvision's `RandomResizedCrop`.
///
/// Area (as a part of the image's) and logarithm of the ratio are drawn evenly; sides are rounded to even. If the sides of ten
/// draws do not fit, the largest part of the middle is taken whose ratio is allowed.
///
/// | Name | Default | Range | Unit |
/// |---|---|---|---|
/// | `scale` | 0.08, 1 | above 0, up to 1 | part of the image's area |
/// | `ratio` | 3/4, 4/3 | above 0 | width / height |
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    /// Smallest and largest area.
    pub scale: [f64; 2],
    /// Smallest and largest ratio.
    pub ratio: [f64; 2],
}

impl Default for RandomResizedCrop {
    fn default() -> Self {
        RandomResizedCrop { scale: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

impl RandomResizedCrop {
    pub(crate) fn check(self) -> Result<(), DataError> {
        let is_usable = |[low, high]: [f64; 2], max: f64| low > 0.0 && low <= high && high <= max;
        for (key, got, max) in [("scale", self.scale, 1.0), ("ratio", self.ratio, 1e6)] {
            if !is_usable(got, max) {
                return Err(DataError::AugmentRange { key, got, max });
            }
        }
        Ok(())
    }

    /// Draws area, ratio, top and left of each try, in this order.
    pub(crate) fn draw(self, rng: &mut impl Rng, image: Dimensions) -> CropBox {
        let [low, high] = self.ratio.map(f64::ln);
        for _ in 0..N_TRIES {
            let area = image.n_pixels() as f64 * rng.random_range(self.scale[0]..=self.scale[1]);
            let ratio = rng.random_range(low..=high).exp();
            if let Some((width, height)) = sides(area, ratio, image) {
                let top = rng.random_range(0..=image.height - height);
                let left = rng.random_range(0..=image.width - width);
                return CropBox { left, top, width, height };
            }
        }
        self.middle(image)
    }

    fn middle(self, image: Dimensions) -> CropBox {
        let [low, high] = self.ratio;
        let ratio = f64::from(image.width) / f64::from(image.height);
        let whole = |side: f64, max: u32| (side.round_ties_even() as u32).clamp(1, max);
        let (width, height) = if ratio < low {
            (image.width, whole(f64::from(image.width) / low, image.height))
        } else if ratio > high {
            (whole(f64::from(image.height) * high, image.width), image.height)
        } else {
            (image.width, image.height)
        };
        CropBox { left: (image.width - width) / 2, top: (image.height - height) / 2, width, height }
    }
}

/// Width and height in whole pixels, if they are in the image.
fn sides(area: f64, ratio: f64, image: Dimensions) -> Option<(u32, u32)> {
    let (width, height) = ((area * ratio).sqrt().round_ties_even(), (area / ratio).sqrt().round_ties_even());
    let is_within = |side: f64, max: u32| side > 0.0 && side <= f64::from(max);
    (is_within(width, image.width) && is_within(height, image.height))
        .then_some((width as u32, height as u32))
}

#[cfg(test)]
mod tests {
    use lowbit_core::{Purpose, stream};

    use super::*;
    use crate::golden::{self, Golden};

    fn picture(file: &str) -> Picture {
        crate::decode(&golden::file(file), &crate::DecodeLimits::default()).unwrap()
    }

    /// Compares with what torchvision makes of Pillow's images; returns the largest and the mean difference.
    fn difference(
        geometry: Geometry,
        file: &str,
        crop: Option<CropBox>,
        expected: golden::Pixels,
    ) -> (u8, f64) {
        let got = Picture::from_image(geometry.apply(picture(file), crop)).unwrap();
        golden::difference(&got, &expected.picture())
    }

    #[test]
    fn crops_are_resized_as_by_torchvision() {
        for golden::Cropped { file, r#box, size, pixels } in golden::read().cropped {
            let geometry = Geometry { channels: 3, size, resize: size };
            let (max, mean) = difference(geometry, &file, Some(r#box.into()), pixels);
            assert!(max <= 1 && mean < 0.25, "{file} {:?}: max {max}, mean {mean}", r#box);
        }
    }

    #[test]
    fn the_middle_is_that_of_torchvision() {
        for golden::Middle { file, resize, size, pixels } in golden::read().middle {
            let (max, mean) = difference(Geometry { channels: 3, size, resize }, &file, None, pixels);
            assert!(max <= 1 && mean < 0.25, "{file} {resize} {size}: max {max}, mean {mean}");
        }
    }

    #[test]
    fn sides_are_rounded_as_by_torchvision() {
        let Golden { sides: cases, .. } = golden::read();
        for golden::Sides { image: [width, height], area, ratio, sides: expected } in cases {
            let got = sides(area, ratio, Dimensions { width, height });
            assert_eq!(got, expected.map(|[width, height]| (width, height)), "{area} {ratio}");
        }
        assert_eq!(
            sides(2.25, 9.0, Dimensions { width: 9, height: 9 }),
            None,
            "4.5 x 0.5: 4 x 0 by halves to even"
        );
    }

    #[test]
    fn what_no_draw_fits_is_the_middle() {
        let crop = RandomResizedCrop { scale: [0.9, 1.0], ..RandomResizedCrop::default() };
        for golden::Fallback { width, height, r#box } in golden::read().fallback {
            let mut rng = stream(1, Purpose::Augment, 0, 0);
            assert_eq!(crop.draw(&mut rng, Dimensions { width, height }), r#box.into(), "{width}x{height}");
        }
    }

    #[test]
    fn crops_are_in_their_image_and_of_their_area() {
        let crop = RandomResizedCrop::default();
        let mut rng = stream(1, Purpose::Augment, 0, 0);
        let image = Dimensions { width: 500, height: 375 };
        let mut sum = 0.0;
        for _ in 0..10_000 {
            let CropBox { left, top, width, height } = crop.draw(&mut rng, image);
            assert!(width > 0 && height > 0 && left + width <= 500 && top + height <= 375);
            let ratio = f64::from(width) / f64::from(height);
            assert!((0.74..1.35).contains(&ratio), "{width}x{height}");
            sum += f64::from(width * height) / image.n_pixels() as f64;
        }
        // By torchvision, in 20,000 draws: 0.4348, standard error 0.0015.
        assert!((sum / 10_000.0 - 0.4348).abs() < 0.01, "{sum}");
    }

    /// Fails when an update of rand changes what is drawn: then runs begun before cannot be resumed exactly.
    #[test]
    fn crops_are_pinned() {
        let crop = |image| RandomResizedCrop::default().draw(&mut stream(42, Purpose::Augment, 1, 7), image);
        let expected = CropBox { left: 287, top: 95, width: 186, height: 156 };
        assert_eq!(crop(Dimensions { width: 500, height: 375 }), expected);
    }
}
