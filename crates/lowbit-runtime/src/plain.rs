//! Operations without parameters, on values or codes of a batch.

/// Sizes of a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    /// Height and width of the input, and of the output.
    pub size: [usize; 2],
    pub out_size: [usize; 2],
}

impl Pool {
    /// The largest of each window of each plane; padding never wins.
    pub fn max<T: Copy>(&self, x: &[T], larger: impl Fn(T, T) -> T + Copy) -> Vec<T> {
        let [height, width] = self.size;
        let [out_height, out_width] = self.out_size;
        let planes = x.chunks_exact(height * width);
        let mut out = Vec::with_capacity(planes.len() * out_height * out_width);
        let mut row = Vec::with_capacity(width);
        for plane in planes {
            for y in 0..out_height {
                // The largest of each column, then of the columns of a window.
                let rows = self.window(y, height);
                row.clear();
                row.extend_from_slice(&plane[rows.start * width..][..width]);
                for y in rows.skip(1) {
                    let next = &plane[y * width..][..width];
                    row.iter_mut().zip(next).for_each(|(largest, value)| *largest = larger(*largest, *value));
                }
                out.extend((0..out_width).map(|x| {
                    let columns = &row[self.window(x, width)];
                    columns[1..].iter().fold(columns[0], |largest, value| larger(largest, *value))
                }));
            }
        }
        out
    }

    /// The part of a window that is in the image.
    fn window(&self, at: usize, size: usize) -> std::ops::Range<usize> {
        let start = at * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel).saturating_sub(self.padding).min(size)
    }
}
