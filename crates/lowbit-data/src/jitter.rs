//! Random brightness, contrast, saturation and hue.

use rand::seq::SliceRandom;
use rand::{Rng, RngExt};

use crate::picture::luma;
use crate::{DataError, ImageShape};

/// How the colors of training images are varied, as torchvision's `ColorJitter` does it to images of Pillow: in random order, each by
/// a factor drawn evenly from `1 - x` (not below 0) to `1 + x`, hue by a turn from `-x` to `x`.
///
/// | Name | Default | Range | Unit |
/// |---|---|---|---|
/// | `brightness`, `contrast`, `saturation` | 0 | 0..=10 | change of the factor; 0 for none |
/// | `hue` | 0 | 0..=0.5 | full turns |
///
/// Grey images have neither saturation nor hue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Jitter {
    /// 0 is black.
    pub brightness: f64,
    /// 0 is the mean grey of the image.
    pub contrast: f64,
    /// 0 is grey.
    pub saturation: f64,
    /// Turn around the circle of colors.
    pub hue: f64,
}

/// What becomes of the colors of one image in one epoch, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JitterDraw {
    changes: [Change; 4],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    None,
    Brightness(f32),
    Contrast(f32),
    Saturation(f32),
    /// By so much of 255, which is a whole turn.
    Hue(i32),
}

impl Jitter {
    pub(crate) fn check(self) -> Result<(), DataError> {
        let Jitter { brightness, contrast, saturation, hue } = self;
        for (key, got, max) in [
            ("brightness", brightness, 10.0),
            ("contrast", contrast, 10.0),
            ("saturation", saturation, 10.0),
            ("hue", hue, 0.5),
        ] {
            if !(0.0..=max).contains(&got) {
                return Err(DataError::AugmentValue { key, got, max });
            }
        }
        Ok(())
    }

    /// Draws the order, then brightness, contrast, saturation and hue, each only if it is used.
    pub(crate) fn draw(self, rng: &mut impl Rng) -> JitterDraw {
        let mut order = [0, 1, 2, 3];
        order.shuffle(rng);
        let mut factor = |amount: f64, change: fn(f32) -> Change| match amount {
            0.0 => Change::None,
            amount => change(rng.random_range((1.0 - amount).max(0.0)..=1.0 + amount) as f32),
        };
        let changes = [
            factor(self.brightness, Change::Brightness),
            factor(self.contrast, Change::Contrast),
            factor(self.saturation, Change::Saturation),
            match self.hue {
                0.0 => Change::None,
                hue => Change::Hue((255.0 * rng.random_range(-hue..=hue)) as i32),
            },
        ];
        JitterDraw { changes: order.map(|idx| changes[idx]) }
    }
}

impl JitterDraw {
    /// Changes an image of `[channel, height, width]` whose largest value is `max`. Images of other than 3 channels keep
    /// saturation and hue.
    pub(crate) fn apply(self, pixels: &mut [u8], shape: ImageShape, max: u8) {
        for change in self.changes {
            let (plane, is_color) = (shape.height * shape.width, shape.channels == 3);
            match change {
                Change::Brightness(factor) => look_up(pixels, |value| blend(0, value, factor, max)),
                Change::Contrast(factor) => {
                    let mean = mean_grey(pixels, plane, is_color);
                    look_up(pixels, |value| blend(mean, value, factor, max));
                }
                Change::Saturation(factor) if is_color => for_each_color(pixels, plane, |color| {
                    let grey = luma(color);
                    color.map(|value| blend(grey, value, factor, max))
                }),
                Change::Hue(turn) if is_color => for_each_color(pixels, plane, |color| turned(color, turn)),
                Change::None | Change::Saturation(_) | Change::Hue(_) => {}
            }
        }
    }
}

/// From `from` at 0 through `to` at 1 and beyond, cut off, not rounded, as Pillow's `Image.blend`.
fn blend(from: u8, to: u8, factor: f32, max: u8) -> u8 {
    let blended = f32::from(from) + factor * (f32::from(to) - f32::from(from));
    // A cast ends at 0, and cuts off what is behind the point.
    (blended as u8).min(max)
}

fn look_up(pixels: &mut [u8], change: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| change(value as u8));
    for pixel in pixels {
        *pixel = table[usize::from(*pixel)];
    }
}

fn mean_grey(pixels: &[u8], plane: usize, is_color: bool) -> u8 {
    let sum: u64 = match is_color {
        true => {
            let (red, rest) = pixels.split_at(plane);
            let (green, blue) = rest.split_at(plane);
            let colors = red.iter().zip(green).zip(blue);
            colors.map(|((&red, &green), &blue)| u64::from(luma([red, green, blue]))).sum()
        }
        false => pixels.iter().map(|&value| u64::from(value)).sum(),
    };
    let n_values = if is_color { plane } else { pixels.len() };
    (sum as f64 / n_values as f64 + 0.5) as u8
}

fn for_each_color(pixels: &mut [u8], plane: usize, change: impl Fn([u8; 3]) -> [u8; 3]) {
    let (red, rest) = pixels.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    for ((red, green), blue) in red.iter_mut().zip(green).zip(blue) {
        [*red, *green, *blue] = change([*red, *green, *blue]);
    }
}

/// A color whose hue, in 8 bits as Pillow's mode "HSV" has it, is turned.
fn turned(color: [u8; 3], turn: i32) -> [u8; 3] {
    let [red, green, blue] = color;
    let (max, min) = (red.max(green).max(blue), red.min(green).min(blue));
    if max == min {
        return color;
    }
    let range = f32::from(max - min);
    let [from_red, from_green, from_blue] = color.map(|value| f32::from(max - value) / range);
    // In sixths of a turn, from red. Numbers are as narrow as in Pillow, so that the same ones are cut off.
    let hue = if red == max {
        from_blue - from_green
    } else if green == max {
        (2.0 + f64::from(from_red) - f64::from(from_blue)) as f32
    } else {
        (4.0 + f64::from(from_green) - f64::from(from_red)) as f32
    };
    let hue = (f64::from(hue) / 6.0 + 1.0).fract() as f32;
    let hue = (255.0 * f64::from(hue)) as u8;
    let saturation = (255.0 * f64::from(range / f32::from(max))) as u8;
    // Back, with what was lost in 8 bits.
    let sixths = f64::from(hue.wrapping_add(turn as u8)) * 6.0 / 255.0;
    let (sixth, part) = (sixths.floor(), (sixths - sixths.floor()) as f32);
    let saturation = (f64::from(saturation) / 255.0) as f32;
    // Halves are rounded up.
    let value = |less: f64| (f64::from(max) * (1.0 - less) + 0.5) as u8;
    let lowest = value(saturation.into());
    let falling = value((saturation * part).into());
    let rising = value(f64::from(saturation) * (1.0 - f64::from(part)));
    match sixth as u8 % 6 {
        0 => [max, rising, lowest],
        1 => [falling, max, lowest],
        2 => [lowest, max, rising],
        3 => [lowest, falling, max],
        4 => [rising, lowest, max],
        _ => [max, lowest, falling],
    }
}

#[cfg(test)]
mod tests {
    use lowbit_core::{Purpose, stream};

    use super::*;
    use crate::Image;
    use crate::golden::{self, Golden};

    #[test]
    fn colors_are_those_of_pillow() {
        let Golden { colors, color_source, .. } = golden::read();
        for golden::Color { change, factor, pixels } in colors {
            let change = match change.as_str() {
                "brightness" => Change::Brightness(factor as f32),
                "contrast" => Change::Contrast(factor as f32),
                "saturation" => Change::Saturation(factor as f32),
                _ => Change::Hue((255.0 * factor) as i32),
            };
            let Image { shape, pixels: got } = color_source.picture().into_image();
            let mut got = got.into_owned();
            let changes = [Change::None, change, Change::None, Change::None];
            JitterDraw { changes }.apply(&mut got, shape, 255);
            assert_eq!(got, &*pixels.picture().into_image().pixels, "{change:?}");
        }
    }

    #[test]
    fn factors_are_between_their_bounds_in_every_order() {
        let jitter = Jitter { brightness: 0.4, contrast: 1.5, saturation: 0.0, hue: 0.5 };
        let mut firsts = [0; 3];
        for step in 0..1000 {
            let JitterDraw { changes } = jitter.draw(&mut stream(3, Purpose::Augment, 0, step));
            let used = changes.iter().filter(|change| **change != Change::None);
            for (place, change) in used.enumerate() {
                let kind = match *change {
                    Change::Brightness(factor) if (0.6..=1.4).contains(&factor) => 0,
                    Change::Contrast(factor) if (0.0..=2.5).contains(&factor) => 1,
                    Change::Hue(turn) if (-127..=127).contains(&turn) => 2,
                    other => panic!("{other:?}"),
                };
                firsts[kind] += usize::from(place == 0);
            }
        }
        assert!(firsts.iter().all(|first| (270..400).contains(first)), "{firsts:?}");
    }

    #[test]
    fn grey_stays_grey_and_within_its_range() {
        let shape = ImageShape { channels: 1, height: 1, width: 4 };
        let mut pixels = [0, 4, 10, 16];
        let changes =
            [Change::Saturation(0.0), Change::Hue(60), Change::Brightness(2.0), Change::Contrast(0.5)];
        JitterDraw { changes }.apply(&mut pixels, shape, 16);
        assert_eq!(pixels, [5, 9, 13, 13]);
    }
}
