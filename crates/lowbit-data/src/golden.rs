//! Image files, and what Pillow and torchvision make of them: `tests/golden/images`, for the tests.

use std::io::Read;
use std::path::PathBuf;

use serde::Deserialize;

use crate::{CropBox, Dimensions, Picture};

/// `images.json`, as described in `tests/golden/README.md`.
#[derive(Deserialize)]
pub struct Golden {
    pub decoded: Vec<Decoded>,
    pub cropped: Vec<Cropped>,
    pub middle: Vec<Middle>,
    pub fallback: Vec<Fallback>,
    pub sides: Vec<Sides>,
    pub color_source: Pixels,
    pub colors: Vec<Color>,
}

#[derive(Deserialize)]
pub struct Decoded {
    pub file: String,
    #[serde(flatten)]
    pub pixels: Option<Pixels>,
}

#[derive(Deserialize)]
pub struct Cropped {
    pub file: String,
    pub r#box: Part,
    pub size: usize,
    pub pixels: Pixels,
}

#[derive(Deserialize)]
pub struct Middle {
    pub file: String,
    pub resize: usize,
    pub size: usize,
    pub pixels: Pixels,
}

#[derive(Deserialize)]
pub struct Fallback {
    pub width: u32,
    pub height: u32,
    pub r#box: Part,
}

#[derive(Deserialize)]
pub struct Sides {
    pub image: [u32; 2],
    pub area: f64,
    pub ratio: f64,
    pub sides: Option<[u32; 2]>,
}

#[derive(Deserialize)]
pub struct Color {
    pub change: String,
    pub factor: f64,
    pub pixels: Pixels,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Part {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
}

impl From<Part> for CropBox {
    fn from(Part { left, top, width, height }: Part) -> Self {
        CropBox { left, top, width, height }
    }
}

/// Where the pixels of a picture begin in `expected.bin`.
#[derive(Clone, Copy, Deserialize)]
pub struct Pixels {
    width: u32,
    height: u32,
    at: usize,
}

impl Pixels {
    pub fn picture(self) -> Picture {
        let dimensions = Dimensions { width: self.width, height: self.height };
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(&*file("expected.bin")).read_to_end(&mut bytes).unwrap();
        let n_values = 3 * dimensions.n_pixels() as usize;
        Picture { dimensions, channels: 3, pixels: bytes[self.at..self.at + n_values].to_vec() }
    }
}

pub fn read() -> Golden {
    serde_json::from_slice(&file("images.json")).unwrap()
}

pub fn file(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/images");
    std::fs::read(folder.join(name)).unwrap()
}

/// The largest and the mean difference of two pictures of one size.
pub fn difference(got: &Picture, expected: &Picture) -> (u8, f64) {
    assert_eq!((got.dimensions, got.channels), (expected.dimensions, expected.channels));
    assert_eq!(got.pixels.len(), expected.pixels.len());
    let all = || got.pixels.iter().zip(&expected.pixels).map(|(got, expected)| got.abs_diff(*expected));
    let sum: u64 = all().map(u64::from).sum();
    (all().max().unwrap(), sum as f64 / got.pixels.len() as f64)
}
