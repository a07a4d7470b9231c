//! Random changes of training images.

use lowbit_core::{Purpose, stream};
use rand::RngExt;

use crate::{CropBox, DataError, Dimensions, ImageShape, Jitter, JitterDraw, RandomResizedCrop, lighting};

/// How training images are varied, in this order:
///
/// 1. a random part is resized to the network's input, where the loader has a [`Geometry`](crate::Geometry);
/// 2. its colors are jittered;
/// 3. the image is padded with black pixels on all four sides and cropped back to its size at a random position;
/// 4. it is mirrored left to right with probability 1/2;
/// 5. AlexNet's lighting: the principal components of ImageNet's colors, times normal draws, are added to all of its pixels.
///
/// The padding comes before the normalization, so a padded value is `(0 - mean) / std`, as in torchvision's
/// `RandomCrop(size, padding)` on the raw image.
///
/// | Name | Default | Range | Unit |
/// |---|---|---|---|
/// | `crop` | none | | |
/// | `pad` | 0 | 0.. | pixels on each side |
/// | `flip` | false | | |
/// | `jitter` | none | | |
/// | `lighting` | 0 | 0..=10 | deviation of the draws; 0.1 in AlexNet |
///
/// ```
/// use lowbit_data::{Augmentation, Dimensions};
///
/// let cifar = Augmentation { pad: 4, flip: true, ..Augmentation::default() };
/// let size = Dimensions { width: 32, height: 32 };
/// let draw = cifar.draw(7, 0, 123, size);
/// assert!(draw.top <= 8 && draw.left <= 8);
/// assert_eq!(draw, cifar.draw(7, 0, 123, size));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Augmentation {
    /// The random part that is resized, instead of the middle.
    pub crop: Option<RandomResizedCrop>,
    /// Black pixels added on each side before the random crop; 0 for no crop.
    pub pad: usize,
    /// Whether images are mirrored left to right with probability 1/2.
    pub flip: bool,
    /// Random colors.
    pub jitter: Option<Jitter>,
    /// Deviation of what AlexNet's lighting multiplies the principal components with; 0 for none.
    pub lighting: f32,
}

/// The variation of one image in one epoch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AugmentationDraw {
    /// The part that is resized.
    pub crop: Option<CropBox>,
    /// First row of the crop in the padded image, `0..=2*pad`.
    pub top: usize,
    /// First column of the crop in the padded image, `0..=2*pad`.
    pub left: usize,
    /// Whether the crop is mirrored.
    pub flip: bool,
    /// What becomes of its colors.
    pub jitter: Option<JitterDraw>,
    /// What is added to red, green and blue of all pixels, where the largest pixel value is 1.
    pub light: [f32; 3],
}

impl Augmentation {
    /// Whether `shape` can be varied so.
    pub(crate) fn check(&self, shape: ImageShape) -> Result<(), DataError> {
        self.crop.map_or(Ok(()), RandomResizedCrop::check)?;
        self.jitter.map_or(Ok(()), Jitter::check)?;
        const MAX_LIGHTING: f32 = 10.0;
        if !(0.0..=MAX_LIGHTING).contains(&self.lighting) {
            let (got, max) = (self.lighting.into(), MAX_LIGHTING.into());
            return Err(DataError::AugmentValue { key: "lighting", got, max });
        }
        let is_colored = |jitter: Jitter| jitter.saturation > 0.0 || jitter.hue > 0.0;
        if shape.channels != 3 && (self.lighting > 0.0 || self.jitter.is_some_and(is_colored)) {
            return Err(DataError::NeedsColor { channels: shape.channels });
        }
        Ok(())
    }

    /// The variation of one sample in one epoch, whose image has this size: a pure function of its arguments.
    ///
    /// `crop`, `top`, `left`, `flip`, `jitter` and `light` are drawn in this order, each only if it is used, from the stream
    /// `(run_seed, Augment, epoch, sample_idx)`.
    pub fn draw(&self, run_seed: u64, epoch: u64, sample_idx: usize, image: Dimensions) -> AugmentationDraw {
        let mut rng = stream(run_seed, Purpose::Augment, epoch, sample_idx as u64);
        let crop = self.crop.map(|crop| crop.draw(&mut rng, image));
        let (top, left) = match self.pad {
            0 => (0, 0),
            // u64 and not usize, so that 32-bit machines draw the same.
            pad => {
                let mut offset = || rng.random_range(0..=2 * pad as u64) as usize;
                (offset(), offset())
            }
        };
        let flip = self.flip && rng.random_bool(0.5);
        let jitter = self.jitter.map(|jitter| jitter.draw(&mut rng));
        let light = if self.lighting > 0.0 { lighting::draw(&mut rng, self.lighting) } else { [0.0; 3] };
        AugmentationDraw { crop, top, left, flip, jitter, light }
    }
}

/// Writes one image as network inputs: pads, crops and flips if `variation` is given, and looks up each pixel in its channel's
/// table.
pub(crate) fn render(
    image: &[u8],
    shape: ImageShape,
    tables: &[[f32; 256]],
    variation: Option<(usize, &AugmentationDraw)>,
    output: &mut [f32],
) {
    let ImageShape { height, width, .. } = shape;
    let plane = height * width;
    for ((pixels, table), output) in image.chunks_exact(plane).zip(tables).zip(output.chunks_exact_mut(plane))
    {
        let Some((pad, draw)) = variation else {
            look_up(pixels, table, output);
            continue;
        };
        let black = table[0];
        // Columns of the output that show the image, and the image's column seen in the first of them.
        let from = pad.saturating_sub(draw.left).min(width);
        let to = (width + pad).saturating_sub(draw.left).min(width);
        let source_from = draw.left.saturating_sub(pad);
        for (row, output) in output.chunks_exact_mut(width).enumerate() {
            let padded_row = row + draw.top;
            if from < to && (pad..pad + height).contains(&padded_row) {
                let start = (padded_row - pad) * width + source_from;
                output[..from].fill(black);
                look_up(&pixels[start..start + to - from], table, &mut output[from..to]);
                output[to..].fill(black);
            } else {
                output.fill(black);
            }
            if draw.flip {
                output.reverse();
            }
        }
    }
}

fn look_up(pixels: &[u8], table: &[f32; 256], output: &mut [f32]) {
    for (output, &pixel) in output.iter_mut().zip(pixels) {
        *output = table[usize::from(pixel)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNCHANGED: AugmentationDraw =
        AugmentationDraw { crop: None, top: 0, left: 0, flip: false, jitter: None, light: [0.0; 3] };

    const SIZE: Dimensions = Dimensions { width: 32, height: 32 };

    fn pad_and_flip(pad: usize, flip: bool) -> Augmentation {
        Augmentation { pad, flip, ..Augmentation::default() }
    }

    /// Pads, crops, flips and normalizes as it is said, step by step.
    fn reference(
        image: &[u8],
        shape: ImageShape,
        tables: &[[f32; 256]],
        pad: usize,
        draw: AugmentationDraw,
    ) -> Vec<f32> {
        let ImageShape { channels, height, width } = shape;
        let padded_width = width + 2 * pad;
        let mut result = Vec::new();
        for channel in 0..channels {
            let mut padded = vec![0u8; (height + 2 * pad) * padded_width];
            for row in 0..height {
                for column in 0..width {
                    padded[(row + pad) * padded_width + column + pad] =
                        image[(channel * height + row) * width + column];
                }
            }
            for row in 0..height {
                for column in 0..width {
                    let column = if draw.flip { width - 1 - column } else { column };
                    let pixel = padded[(row + draw.top) * padded_width + column + draw.left];
                    result.push(tables[channel][usize::from(pixel)]);
                }
            }
        }
        result
    }

    #[test]
    fn every_crop_is_that_of_the_padded_image() {
        let shape = ImageShape { channels: 2, height: 3, width: 4 };
        let image: Vec<u8> = (1..=24).collect();
        let tables: Vec<[f32; 256]> =
            vec![std::array::from_fn(|p| p as f32 - 0.5), std::array::from_fn(|p| -(p as f32))];
        // A pad beyond the image gives crops without a pixel of it.
        for pad in [0, 1, 2, 6] {
            for top in 0..=2 * pad {
                for left in 0..=2 * pad {
                    for flip in [false, true] {
                        let draw = AugmentationDraw { top, left, flip, ..UNCHANGED };
                        let mut output = vec![f32::NAN; 24];
                        render(&image, shape, &tables, Some((pad, &draw)), &mut output);
                        assert_eq!(
                            output,
                            reference(&image, shape, &tables, pad, draw),
                            "pad {pad} {draw:?}"
                        );
                    }
                }
            }
        }
        let mut output = vec![f32::NAN; 24];
        render(&image, shape, &tables, None, &mut output);
        assert_eq!(output, reference(&image, shape, &tables, 0, UNCHANGED));
    }

    #[test]
    fn draws_are_even() {
        let augmentation = pad_and_flip(1, true);
        let mut counts = [[[0u32; 3]; 3]; 2];
        for sample_idx in 0..18_000 {
            let draw = augmentation.draw(3, 5, sample_idx, SIZE);
            counts[usize::from(draw.flip)][draw.top][draw.left] += 1;
        }
        // 1,000 expected in each of 18 cells, standard deviation 31.
        for count in counts.as_flattened().as_flattened() {
            assert!((850..=1150).contains(count), "{counts:?}");
        }
    }

    #[test]
    fn draws_differ_between_epochs_samples_and_seeds() {
        let augmentation = pad_and_flip(1000, false);
        let draws =
            [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)].map(|(s, e, i)| augmentation.draw(s, e, i, SIZE));
        for (idx, draw) in draws.iter().enumerate() {
            assert!(!draws[..idx].contains(draw), "{draws:?}");
        }
    }

    /// Fails when an update of rand changes what is drawn: then runs begun before cannot be resumed exactly.
    #[test]
    fn draws_are_pinned() {
        let augmentation = pad_and_flip(4, true);
        let draws: Vec<_> = (0..6).map(|idx| augmentation.draw(42, 1, idx, SIZE)).collect();
        let draws: Vec<_> = draws.iter().map(|d| (d.top, d.left, d.flip)).collect();
        assert_eq!(
            draws,
            [(6, 0, false), (2, 4, true), (0, 1, true), (3, 3, false), (1, 0, true), (0, 5, false)]
        );
        let jitter = Some(Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 });
        let varied =
            Augmentation { crop: Some(RandomResizedCrop::default()), jitter, lighting: 0.1, ..augmentation };
        let AugmentationDraw { crop, jitter, light, .. } = varied.draw(42, 1, 0, SIZE);
        assert_eq!(
            [format!("{crop:?}"), format!("{jitter:?}"), format!("{light:?}")],
            [
                "Some(CropBox { left: 6, top: 1, width: 24, height: 31 })",
                "Some(JitterDraw { changes: [Brightness(0.6628752), Hue(4), Contrast(1.3888395), Saturation(1.0397327)] })",
                "[-0.023951855, -0.025438722, -0.02667202]",
            ]
        );
    }
}
