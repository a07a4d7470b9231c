//! Tables of the places that a convolution reads and writes.

use super::shape::ConvShape;
use super::source::{Source, table_index};

/// The images that the forward pass and the gradient of the weights read, and the step between windows in them.
pub fn padded_input(shape: &ConvShape) -> (Source, [usize; 2]) {
    if shape.kernel == [1, 1] && shape.padding == [0, 0] && shape.stride != [1, 1] {
        return (Source::sampled(shape.group_in(), shape.size, shape.stride, shape.in_image()), [1, 1]);
    }
    (Source::with_zeros(shape), shape.stride)
}

/// Where the window of every output pixel starts, image after image.
pub fn windows(shape: &ConvShape, source: &Source, stride: [usize; 2], images: usize) -> Vec<u32> {
    let [height, width] = shape.out_size();
    let [stride_y, stride_x] = stride;
    let mut starts = Vec::with_capacity(images * height * width);
    for image in 0..images {
        for y in 0..height {
            starts.extend((0..width).map(|x| source.index(image, 0, y * stride_y, x * stride_x)));
        }
    }
    starts
}

/// Positions of a window: every channel at every position of the kernel, in the order of the weights.
pub fn window_steps(shape: &ConvShape, source: &Source) -> Vec<u32> {
    let [kernel_height, kernel_width] = shape.kernel;
    let mut steps = Vec::with_capacity(shape.group_in() * shape.taps());
    for channel in 0..shape.group_in() {
        for y in 0..kernel_height {
            steps.extend((0..kernel_width).map(|x| source.index(0, channel, y, x)));
        }
    }
    steps
}

/// The tables of a forward pass, for kernels that read other values than single precision: where the values of the images are,
/// and which of them each output pixel takes.
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

/// Places of a channel's pixels in the output, image after image.
pub fn targets(plane: usize, out_image: usize, images: usize) -> Vec<u32> {
    (0..images)
        .flat_map(|image| (0..plane).map(move |pixel| table_index(image * out_image + pixel)))
        .collect()
}
