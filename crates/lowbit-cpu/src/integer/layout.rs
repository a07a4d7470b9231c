//! Where the words of images lie for a convolution.

use crate::conv::source::Source;

/// Images with what is worth zero around them. Their rows and columns are dealt out to as many parts as the stride has steps, if a
/// kernel reads parts of them.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Words in all.
    pub len: usize,
    /// Rows and columns before those of the image.
    pub padding: [usize; 2],
    /// Parts that rows and columns are dealt out to.
    pub stride: [usize; 2],
    /// How many of these are there: those that the kernel reads.
    pub parts: [usize; 2],
    /// Height and width of a part.
    pub size: [usize; 2],
    /// From part to part, from image to image, and from word to word.
    pub steps: [usize; 3],
}

/// A word of a pixel.
pub trait Word: Copy {
    fn word(self) -> u32;
}

impl Word for u32 {
    #[inline(always)]
    fn word(self) -> u32 {
        self
    }
}

impl Word for [u8; 4] {
    #[inline(always)]
    fn word(self) -> u32 {
        u32::from_le_bytes(self)
    }
}

impl Layout {
    /// Images one after the other, undivided, and so many words behind them.
    pub fn of(source: &Source, padding: [usize; 2], n_images: usize, behind: usize) -> Self {
        let index = |image, word, y| source.index(image, word, y, 0) as usize;
        Self {
            len: n_images * source.image_len() + behind,
            padding,
            stride: [1, 1],
            parts: [1, 1],
            size: [index(0, 1, 0) / source.row_len(), source.row_len()],
            steps: [0, source.image_len(), index(0, 1, 0)],
        }
    }

    /// Words of a row.
    pub fn row_len(&self) -> usize {
        self.size[1]
    }

    /// Where the first pixel of an image's word is; the others follow row by row. `None` if there are parts, or not all rows have a place.
    pub fn place(&self, image: usize, word: usize) -> Option<usize> {
        let [_, image_step, word_step] = self.steps;
        let place = image * image_step + word * word_step + self.padding[0] * self.size[1] + self.padding[1];
        (self.stride == [1, 1]).then_some(place)
    }

    /// Writes a word of all pixels of an image to its place.
    pub fn load(&self, pixels: &[impl Word], width: usize, image: usize, word: usize, words: &mut [u32]) {
        if let Some(place) = self.place(image, word) {
            let out = words[place..].chunks_mut(self.size[1]);
            for (row, out) in pixels.chunks_exact(width).zip(out) {
                out.iter_mut().zip(row).for_each(|(out, pixel)| *out = pixel.word());
            }
            return;
        }
        let ([stride_y, stride_x], [part_step, image_step, word_step]) = (self.stride, self.steps);
        let [top, left] = self.padding;
        for (y, row) in pixels.chunks_exact(width).enumerate() {
            let (part_y, y) = ((y + top) % stride_y, (y + top) / stride_y);
            if part_y >= self.parts[0] || y >= self.size[0] {
                continue;
            }
            for part_x in 0..self.parts[1] {
                // The first column of the part that is in the image, and where it goes.
                let first = (part_x + stride_x - left % stride_x) % stride_x;
                let x = ((first + left) / stride_x).min(self.size[1]);
                let part = (part_y * self.parts[1] + part_x) * part_step;
                let start = part + image * image_step + word * word_step + y * self.size[1];
                let out = &mut words[start..][x..self.size[1]];
                let row = row.get(first..).unwrap_or_default();
                // The common stride, so that the compiler can make vectors of it.
                let ((pairs, rest), is_two) = (row.as_chunks::<2>(), stride_x == 2);
                if is_two && out.len() >= pairs.len() {
                    out.iter_mut().zip(pairs).for_each(|(out, pair)| *out = pair[0].word());
                    out[pairs.len()..].iter_mut().zip(rest).for_each(|(out, pixel)| *out = pixel.word());
                    continue;
                }
                let row = row.iter().step_by(stride_x);
                out.iter_mut().zip(row).for_each(|(out, pixel)| *out = pixel.word());
            }
        }
    }
}
