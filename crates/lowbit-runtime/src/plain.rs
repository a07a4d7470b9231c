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
    pub fn max<T: Copy + PartialOrd>(&self, x: &[T]) -> Vec<T> {
        let [height, width] = self.size;
        let [out_height, out_width] = self.out_size;
        let planes = x.chunks_exact(height * width);
        let mut out = Vec::with_capacity(planes.len() * out_height * out_width);
        for plane in planes {
            for y in 0..out_height {
                let rows = self.window(y, height);
                for x in 0..out_width {
                    let columns = self.window(x, width);
                    let values = rows.clone().flat_map(|y| &plane[y * width..][columns.clone()]);
                    let largest = values.copied().reduce(|a, b| if b > a { b } else { a });
                    out.push(largest.expect("invariant: a padding is smaller than the window"));
                }
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
