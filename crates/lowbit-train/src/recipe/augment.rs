//! `[data.augment]`: how training images are varied; and to which size images are brought.

use lowbit_data::{Augmentation, Geometry, Jitter, RandomResizedCrop};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::reader::{NumberRange, Section};

/// How a recipe says that a random part is resized.
const RANDOM_RESIZED: &str = "random-resized";

/// The longest side that images are brought to.
const MAX_SIZE: u64 = 8192;

/// Changes of brightness, contrast and saturation, and deviations of lighting.
const STRENGTH: NumberRange = NumberRange { min: 0.0, max: 10.0, min_included: true };
/// Turns of the hue.
const HALF_TURN: NumberRange = NumberRange { min: 0.0, max: 0.5, min_included: true };

/// The size that images are brought to by `size`, `resize` and `channels`, of which those of the images are `own_channels` where
/// they are known.
pub(super) fn read_geometry(section: &Section<'_>, own_channels: Option<usize>) -> Option<Geometry> {
    // One that is wrong is told; what depends on it is not told too.
    let is_given = section.has("size");
    let size = section.optional_integer("size", 1..=MAX_SIZE).map(|size| size as usize);
    // By the same part of the image as torchvision's 224 of 256.
    let default = size.map_or(1, |size| (size * 8).div_ceil(7).min(MAX_SIZE as usize));
    let resize = section.integer("resize", default as u64, size.unwrap_or(1) as u64..=MAX_SIZE) as usize;
    let channels = section.optional_integer("channels", 1..=3);
    if channels == Some(2) {
        section.problem("channels", "expected 1 (grey) or 3 (red, green and blue), got 2");
    }
    for key in ["resize", "channels"].into_iter().filter(|key| !is_given && section.has(key)) {
        section.problem(
            key,
            "images keep their size: remove this key, or set data.size to that of the network's input",
        );
    }
    let channels = channels.map_or(own_channels.unwrap_or(3), |channels| channels as usize);
    let size = size.or(is_given.then_some(MAX_SIZE as usize));
    size.map(|size| Geometry { channels, size, resize: resize.max(size) })
}

/// Reads `[data.augment]` for images that are brought to `geometry`, if to any. `max_pad` and `channels` are those of the network's input,
/// where it is known.
pub(super) fn read_augment(
    section: Section<'_>,
    geometry: Option<Geometry>,
    max_pad: Option<u64>,
    channels: Option<usize>,
) -> Augmentation {
    let crop = read_crop(&section);
    if crop.is_some() && geometry.is_none() {
        section.problem(
            "crop",
            "the size to which parts are resized is missing: set data.size to that of the network's input",
        );
    }
    let pad = section.integer("pad", 0, 0..=max_pad.unwrap_or(u64::MAX)) as usize;
    let flip = section.boolean("flip", false);
    let jitter = section.optional_section("jitter").map(|jitter| {
        let read = |key, range| jitter.number(key, 0.0, range);
        let of = Jitter {
            brightness: read("brightness", &STRENGTH),
            contrast: read("contrast", &STRENGTH),
            saturation: read("saturation", &STRENGTH),
            hue: read("hue", &HALF_TURN),
        };
        jitter.finish();
        of
    });
    let lighting = section.number("lighting", 0.0, &STRENGTH) as f32;
    let colors = [
        ("jitter.saturation", jitter.map_or(0.0, |jitter| jitter.saturation)),
        ("jitter.hue", jitter.map_or(0.0, |jitter| jitter.hue)),
        ("lighting", lighting.into()),
    ];
    for (key, _) in colors.into_iter().filter(|(_, strength)| *strength > 0.0 && channels == Some(1)) {
        section.problem(key, "grey images have no colors: remove this key");
    }
    section.finish();
    Augmentation { crop, pad, flip, jitter, lighting }
}

fn read_crop(section: &Section<'_>) -> Option<RandomResizedCrop> {
    let is_random = section.optional_choice("crop", &[(RANDOM_RESIZED, ())]).is_some();
    let default = RandomResizedCrop::default();
    let bounds = |key, max: f64, default: [f64; 2]| {
        let values = section.optional_numbers(key);
        if section.has(key) && !section.has("crop") {
            section.problem(
                key,
                format!("nothing is cropped: remove this key, or set data.augment.crop={RANDOM_RESIZED:?}"),
            );
        }
        match values.as_deref() {
            None => default,
            Some(&[low, high]) if 0.0 < low && low <= high && high <= max => [low, high],
            Some(values) => {
                section.problem(
                    key,
                    format!("expected the smallest and the largest, above 0 and up to {max}, got {values:?}"),
                );
                default
            }
        }
    };
    let (scale, ratio) = (bounds("scale", 1.0, default.scale), bounds("ratio", 100.0, default.ratio));
    is_random.then_some(RandomResizedCrop { scale, ratio })
}

/// The form that `read_augment` reads.
pub(super) struct AugmentTable<'a>(pub(super) &'a Augmentation);

impl Serialize for AugmentTable<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Augmentation { crop, pad, flip, jitter, lighting } = self.0;
        let mut table = serializer.serialize_struct("augment", 7)?;
        if let Some(RandomResizedCrop { scale, ratio }) = crop {
            table.serialize_field("crop", RANDOM_RESIZED)?;
            table.serialize_field("scale", scale)?;
            table.serialize_field("ratio", ratio)?;
        }
        table.serialize_field("pad", pad)?;
        table.serialize_field("flip", flip)?;
        if *lighting > 0.0 {
            // With the digits of the 32-bit number alone.
            let short = lighting.to_string().parse().unwrap_or_else(|_| f64::from(*lighting));
            table.serialize_field("lighting", &short)?;
        }
        if let Some(jitter) = jitter {
            table.serialize_field("jitter", &JitterTable(jitter))?;
        }
        table.end()
    }
}

struct JitterTable<'a>(&'a Jitter);

impl Serialize for JitterTable<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Jitter { brightness, contrast, saturation, hue } = self.0;
        let mut table = serializer.serialize_struct("jitter", 4)?;
        for (key, value) in
            [("brightness", brightness), ("contrast", contrast), ("saturation", saturation), ("hue", hue)]
        {
            table.serialize_field(key, value)?;
        }
        table.end()
    }
}
