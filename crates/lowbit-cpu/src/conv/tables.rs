//! The tables of a forward pass, for kernels that read other values than single precision.

use super::forward::{window_steps, windows};
use super::pass::targets;
use super::shape::ConvShape;
use super::source::Source;

/// Where the values of the images are, and which of them each output pixel takes.
#[derive(Clone, Debug)]
pub struct Tables {
    /// Images with zeros around them.
    pub source: Source,
    /// Where the window of each output pixel starts, image after image.
    pub starts: Vec<u32>,
    /// Where the pixel is in a channel of the output, image after image.
    pub targets: Vec<u32>,
    /// Positions of a window: every channel at every position of the kernel.
    pub steps: Vec<u32>,
    /// Images in the tables.
    pub images: usize,
}

impl Tables {
    /// Tables for as many images as have about `pixels` pixels of output, at least one.
    pub fn new(shape: &ConvShape, pixels: usize) -> Self {
        let source = Source::with_zeros(shape);
        let images = (pixels / shape.out_plane().max(1)).max(1);
        Self {
            starts: windows(shape, &source, shape.stride, images),
            targets: targets(shape.out_plane(), shape.out_image(), images),
            steps: window_steps(shape, &source),
            source,
            images,
        }
    }
}
