//! Image files: which they are is told by their first bytes, and their pixels come as torchvision's loader gives them.

mod jpeg;
mod png;
mod turn;

use turn::Turn;

use crate::{Dimensions, FileKind, Picture};

/// The longest side that is decoded: as long as a JPEG can be.
const MAX_SIDE: u32 = 65_535;

/// What an image file may ask of memory.
///
/// A header of a few bytes can promise any number of pixels, so this is compared before any memory is taken. While one image
/// is decoded, it takes up to 6 bytes for each of its pixels, a progressive JPEG up to 12. However many threads decode, the images
/// that are decoded at a time have 2<sup>27</sup> pixels together at most.
///
/// | Name | Default | Range | Unit |
/// |---|---|---|---|
/// | `max_pixels` | 89,478,485 | 1.. | pixels; the default is a quarter of a GiB of RGB, at which Pillow warns |
///
/// No side is longer than 65,535 pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeLimits {
    /// The most pixels of one image.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        DecodeLimits { max_pixels: 89_478_485 }
    }
}

impl DecodeLimits {
    /// Checks what a header says, and waits until so many pixels may be decoded.
    fn admit(self, dimensions: Dimensions) -> Result<Turn<'static>, DecodeError> {
        let Dimensions { width, height } = dimensions;
        if width == 0 || height == 0 {
            return Err(DecodeError::NoPixels { dimensions });
        }
        if width.max(height) > MAX_SIDE || dimensions.n_pixels() > self.max_pixels {
            return Err(DecodeError::TooLarge { dimensions, max_pixels: self.max_pixels });
        }
        Ok(turn::ALL.wait(dimensions.n_pixels()))
    }
}

/// Why the bytes of a file are no image, in words that go on after the file's name and a colon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It is something else.
    #[error("it is {kind}, not a JPEG or PNG image")]
    NotAnImage {
        /// What it looks like.
        kind: FileKind,
    },
    /// Its header has a side of 0.
    #[error("its header says {dimensions} pixels; an image has at least one")]
    NoPixels {
        /// What its header says.
        dimensions: Dimensions,
    },
    /// More pixels than are decoded.
    #[error(
        "its header says {dimensions} pixels, more than {max_pixels} or than {MAX_SIDE} a side; make it smaller"
    )]
    TooLarge {
        /// What its header says.
        dimensions: Dimensions,
        /// The most that are decoded.
        max_pixels: u64,
    },
    /// It ends early.
    #[error("the {format} is cut short")]
    CutShort {
        /// `"JPEG"` or `"PNG"`.
        format: &'static str,
    },
    /// It cannot be decoded.
    #[error("the {format} is damaged or of a kind that is not read: {reason}")]
    Damaged {
        /// `"JPEG"` or `"PNG"`.
        format: &'static str,
        /// What the decoder says, in one line.
        reason: String,
    },
}

impl DecodeError {
    fn damaged(format: &'static str, reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string();
        // What a decoder quotes may be any byte of the file.
        let reason = reason.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        DecodeError::Damaged { format, reason }
    }
}

/// Which decoder reads a file.
enum Format {
    Jpeg,
    Png,
}

impl Format {
    fn of(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.starts_with(b"\xff\xd8\xff") {
            Ok(Format::Jpeg)
        } else if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            Ok(Format::Png)
        } else if bytes.is_empty() {
            Err(DecodeError::Empty)
        } else {
            Err(DecodeError::NotAnImage { kind: FileKind::of(bytes) })
        }
    }
}

/// Decodes the bytes of a JPEG or PNG file, whatever its name says, into red, green and blue.
///
/// The pixels are those of torchvision's `default_loader`, Pillow's `convert("RGB")`:
///
/// - Grey becomes three equal channels. The inks of a CMYK or YCCK JPEG are taken as Adobe writes them, inverted.
/// - Transparency is dropped, not composed with a background.
/// - Of 16 bits the upper 8 are taken, but grey of 16 bits is cut off at 255, so that what is not dark becomes white.
/// - The orientation that a camera notes in EXIF is ignored, and so are color profiles and gamma.
/// - Of an animation, the first image.
///
/// A PNG is decoded exactly; a JPEG differs from libjpeg-turbo, which Pillow uses, by a few levels, as the standard allows.
///
/// # Errors
/// Any [`DecodeError`]. A file that ends early is one. (Pillow reads some damaged PNG files that are refused here: without their end
/// mark, with a wrong checksum, with too few rows.)
///
/// ```
/// use lowbit_data::{DecodeError, DecodeLimits, decode};
///
/// assert_eq!(decode(b"", &DecodeLimits::default()), Err(DecodeError::Empty));
/// let error = decode(b"GIF89a", &DecodeLimits::default()).unwrap_err();
/// assert_eq!(error.to_string(), "it is a GIF image, not a JPEG or PNG image");
/// ```
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Picture, DecodeError> {
    match Format::of(bytes)? {
        Format::Jpeg => jpeg::decode(bytes, *limits),
        Format::Png => png::decode(bytes, *limits),
    }
}

/// Width and height by the header of a JPEG or PNG file. Its beginning is enough, if the header is in it, and no memory is
/// taken. Nothing says that the rest can be decoded.
///
/// # Errors
/// Any [`DecodeError`]; [`DecodeError::CutShort`] if the header is not in the bytes.
pub fn dimensions(bytes: &[u8]) -> Result<Dimensions, DecodeError> {
    match Format::of(bytes)? {
        Format::Jpeg => jpeg::dimensions(bytes),
        Format::Png => png::dimensions(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, difference, file};

    fn decoded(bytes: &[u8]) -> Result<Picture, String> {
        decode(bytes, &DecodeLimits::default()).map_err(|error| error.to_string())
    }

    fn error(bytes: &[u8]) -> String {
        decoded(bytes).unwrap_err()
    }

    #[test]
    fn files_of_every_kind_are_decoded_as_by_pillow() {
        for golden::Decoded { file: name, pixels } in golden::read().decoded {
            let bytes = file(&name);
            let got = decoded(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(dimensions(&bytes), Ok(got.dimensions), "{name}");
            let Some(pixels) = pixels else { continue };
            let (max, mean) = difference(&got, &pixels.picture());
            // JPEG leaves the rounding of the transform and the interpolation of colors to the decoder. libjpeg interpolates
            // none in images of up to 4 columns.
            let (max_allowed, mean_allowed) = match name.as_str() {
                "column.jpg" => (12, 4.0),
                name if name.ends_with(".jpg") => (4, 0.5),
                _ => (0, 0.0),
            };
            assert!(max <= max_allowed && mean <= mean_allowed, "{name}: max {max}, mean {mean}");
        }
    }

    #[test]
    fn what_is_long_is_decoded() {
        let picture = decoded(&file("wide.png")).unwrap();
        assert_eq!(picture.dimensions, Dimensions { width: 20_000, height: 1 });
        let expected: Vec<u8> = (0..20_000).flat_map(|column| [(column / 90) as u8; 3]).collect();
        assert_eq!(picture.pixels, expected);
    }

    /// Wherever it is cut, but for what follows the end.
    #[test]
    fn what_is_cut_short_is_an_error() {
        for name in ["baseline.jpg", "progressive.jpg", "cmyk.jpg", "grey-16.png", "color-6-8-interlaced.png"]
        {
            let bytes = file(name);
            let end = if name.ends_with(".png") { bytes.len() - 16 } else { bytes.len() };
            for length in 0..end {
                let error = error(&bytes[..length]);
                let is_told = error.ends_with(" is cut short") || length < 8 || error.contains("damaged");
                assert!(is_told && !error.contains('\n'), "{name} {length}: {error}");
            }
            let half = error(&bytes[..bytes.len() / 2]);
            assert!(half.ends_with("is cut short"), "{name}: {half}");
        }
        assert_eq!(error(b""), "it is empty");
        assert_eq!(dimensions(&file("baseline.jpg")[..30]), Err(DecodeError::CutShort { format: "JPEG" }));
    }

    #[test]
    fn what_is_no_image_is_told() {
        for (bytes, expected) in [
            (&b"GIF89a"[..], "it is a GIF image, not a JPEG or PNG image"),
            (b"RIFF\x10\0\0\0WEBPVP8 ", "it is a WebP image, not a JPEG or PNG image"),
            (b"BM\x10\0\0\0\0\0\0\0\x36", "it is a BMP image, not a JPEG or PNG image"),
            (b"II*\0", "it is a TIFF image, not a JPEG or PNG image"),
            (b"\0\0\0\x1cftypavif", "it is a HEIC or AVIF image, not a JPEG or PNG image"),
            (b"<html>", "it is a web page, not a JPEG or PNG image"),
            (b"\xff\xd8", "it is data of an unknown kind, not a JPEG or PNG image"),
        ] {
            assert_eq!(error(bytes), expected);
        }
    }

    /// A JPEG of that size, without a pixel.
    fn promising_jpeg(width: u16, height: u16) -> Vec<u8> {
        let mut bytes = file("baseline.jpg");
        let frame = bytes.windows(2).position(|mark| mark == b"\xff\xc0").unwrap();
        bytes[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
        bytes[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
        bytes
    }

    fn promising_png(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = file("grey-8.png");
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32fast::hash(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    /// Found by fuzzing: the decoder panics there.
    #[test]
    fn a_palette_that_ends_within_a_color_is_damage() {
        let bytes = file("palette-4.png");
        let chunk = |kind: &[u8; 4], content: &[u8]| {
            let body = [&kind[..], content].concat();
            let (length, crc) = (content.len() as u32, crc32fast::hash(&body));
            [&length.to_be_bytes()[..], &body, &crc.to_be_bytes()].concat()
        };
        let after = bytes.windows(4).position(|kind| kind == b"tRNS").unwrap() - 4;
        let bytes = [&bytes[..33], &chunk(b"PLTE", &[7; 49]), &bytes[after..]].concat();
        assert_eq!(
            error(&bytes),
            "the PNG is damaged or of a kind that is not read: its palette has 49 bytes, of which 3 are a color"
        );
    }

    #[test]
    fn headers_that_promise_too_much_are_refused() {
        for bytes in [promising_jpeg(65_535, 65_535), promising_png(65_535, 65_535)] {
            assert_eq!(
                error(&bytes),
                "its header says 65535x65535 pixels, more than 89478485 or than 65535 a side; make it smaller"
            );
            assert_eq!(dimensions(&bytes), Ok(Dimensions { width: 65_535, height: 65_535 }));
        }
        assert!(error(&promising_png(65_536, 1)).starts_with("its header says 65536x1 pixels, more than"));
        assert!(error(&promising_png(0x7fff_ffff, 0x7fff_ffff)).contains("more than"));
        assert_eq!(error(&promising_jpeg(5, 0)), "its header says 5x0 pixels; an image has at least one");
        let few = DecodeLimits { max_pixels: 29 * 35 - 1 };
        assert!(matches!(decode(&file("baseline.jpg"), &few), Err(DecodeError::TooLarge { .. })));
        assert!(decode(&file("baseline.jpg"), &DecodeLimits { max_pixels: 29 * 35 }).is_ok());
    }
}
