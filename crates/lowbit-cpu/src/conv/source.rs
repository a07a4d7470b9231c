//! Images with zeros around them, and the buffers that hold them.

use std::cell::RefCell;

use super::shape::ConvShape;

/// Images a convolution reads: copied with zeros around them, or where they are if there are no zeros to add.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    channels: usize,
    /// Height and width of the input.
    input: [usize; 2],
    /// Every how many-th row and column of the input is taken.
    step: [usize; 2],
    /// Height and width of what is taken.
    size: [usize; 2],
    /// Zeros above and to the left.
    before: [usize; 2],
    /// Height and width with the zeros.
    padded: [usize; 2],
    /// Values from channel to channel.
    plane: usize,
    /// Values from image to image.
    image: usize,
    /// Values from image to image of the input.
    input_image: usize,
    in_place: bool,
}

/// Values after which the addresses of a nearest cache repeat: 4 KiB on all common processors. Channels at such a
/// distance (or a quarter of it) evict each other.
const CACHE_PERIOD: usize = 256;

impl Source {
    /// `channels` of images of `size`, with zeros `before` and up to the size `padded`. The images of the input lie
    /// `input_image` values apart.
    pub fn new(
        channels: usize,
        size: [usize; 2],
        before: [usize; 2],
        padded: [usize; 2],
        input_image: usize,
    ) -> Self {
        let len = padded[0] * padded[1];
        let repeats = len.is_multiple_of(CACHE_PERIOD);
        let in_place = before == [0, 0] && padded == size && !repeats;
        let plane = if repeats { len + 16 } else { len };
        let image = if in_place { input_image } else { channels * plane };
        Self {
            channels,
            input: size,
            step: [1, 1],
            size,
            before,
            padded,
            plane,
            image,
            input_image,
            in_place,
        }
    }

    /// The input of a convolution with its padding.
    pub fn with_zeros(shape: &ConvShape) -> Self {
        let out = shape.out_size();
        let padded = std::array::from_fn(|i| {
            let reached = (out[i] - 1) * shape.stride[i] + shape.kernel[i];
            reached.max(shape.size[i] + shape.padding[i])
        });
        Self::new(shape.group_in(), shape.size, shape.padding, padded, shape.in_image())
    }

    /// `channels` of images of size `input` without zeros, of which only every `step`-th row and column is taken: all
    /// that a kernel of one position reads.
    pub fn sampled(channels: usize, input: [usize; 2], step: [usize; 2], input_image: usize) -> Self {
        let size = std::array::from_fn(|i| input[i].div_ceil(step[i]));
        let source = Self::new(channels, size, [0, 0], size, input_image);
        Self { input, step, in_place: false, image: channels * source.plane, ..source }
    }

    /// Values from image to image.
    pub fn image_len(&self) -> usize {
        self.image
    }

    /// Values from row to row.
    pub fn row_len(&self) -> usize {
        self.padded[1]
    }

    /// Place of a value in the buffer.
    pub fn index(&self, image: usize, channel: usize, y: usize, x: usize) -> u32 {
        table_index(image * self.image + channel * self.plane + y * self.padded[1] + x)
    }

    /// `n` images, the first of which begins at the start of `input`.
    pub fn load<'a>(&self, input: &'a [f32], n: usize, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        if self.in_place {
            return input;
        }
        grow(buffer, n * self.image);
        let len = self.channels * self.input[0] * self.input[1];
        for (image, out) in input.chunks(self.input_image).zip(buffer.chunks_exact_mut(self.image)).take(n) {
            self.pad(&image[..len], out);
        }
        &buffer[..n * self.image]
    }

    fn pad(&self, image: &[f32], buffer: &mut [f32]) {
        let ([height, width], [top, left]) = (self.size, self.before);
        for (plane, out) in
            image.chunks_exact(self.input[0] * self.input[1]).zip(buffer.chunks_exact_mut(self.plane))
        {
            let (above, out) = out.split_at_mut(top * self.padded[1]);
            above.fill(0.0);
            let (inner, below) = out.split_at_mut(height * self.padded[1]);
            below.fill(0.0);
            let rows = plane.chunks_exact(self.input[1]).step_by(self.step[0]);
            for (row, out) in rows.zip(inner.chunks_exact_mut(self.padded[1])) {
                if self.step[1] > 1 {
                    out.iter_mut().zip(row.iter().step_by(self.step[1])).for_each(|(out, x)| *out = *x);
                    continue;
                }
                set_zero(&mut out[..left], 0.0);
                copy(row, &mut out[left..left + width]);
                set_zero(&mut out[left + width..], 0.0);
            }
        }
    }
}

/// An index of a table.
///
/// # Panics
/// If an image has more values than can be counted in 32 bits.
pub fn table_index(place: usize) -> u32 {
    u32::try_from(place).expect("an image has less than 2^32 values")
}

/// Zeros for a few values, for which a call would take longer.
#[inline(always)]
pub(super) fn set_zero<T: Copy>(out: &mut [T], zero: T) {
    if out.len() > 4 {
        return out.fill(zero);
    }
    for value in out {
        *value = zero;
    }
}

/// Copies a row in pieces of fixed length: rows are so short that a call would take longer.
#[inline(always)]
pub(super) fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    let ((widest, from), (widest_out, to)) = (from.as_chunks::<32>(), to.as_chunks_mut::<32>());
    for (from, to) in widest.iter().zip(widest_out) {
        *to = *from;
    }
    let ((wide, from), (wide_out, to)) = (from.as_chunks::<8>(), to.as_chunks_mut::<8>());
    for (from, to) in wide.iter().zip(wide_out) {
        *to = *from;
    }
    let ((narrow, from), (narrow_out, to)) = (from.as_chunks::<4>(), to.as_chunks_mut::<4>());
    if let ([from], [to]) = (narrow, narrow_out) {
        *to = *from;
    }
    let ((pair, from), (pair_out, to)) = (from.as_chunks::<2>(), to.as_chunks_mut::<2>());
    if let ([from], [to]) = (pair, pair_out) {
        *to = *from;
    }
    if let ([from], [to]) = (from, to) {
        *to = *from;
    }
}

/// Makes a buffer at least `len` long; what it holds is not defined.
pub fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
}

thread_local! {
    static SCRATCH: RefCell<[Vec<f32>; 3]> = const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// Calls `work` with buffers that this thread keeps for the next call. `work` must not wait for other tasks of rayon,
/// which might ask for the buffers too.
pub fn with_scratch<R>(work: impl FnOnce(&mut [Vec<f32>; 3]) -> R) -> R {
    SCRATCH.with_borrow_mut(work)
}
