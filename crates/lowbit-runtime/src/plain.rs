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
        let (mut row, mut windows) = (Vec::with_capacity(width), Vec::with_capacity(width));
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
                // Of the windows that begin at each column: all of them side by side is faster than each by itself.
                windows.clear();
                windows.extend_from_slice(&row);
                for shift in 1..self.kernel.min(width) {
                    let shifted = windows.iter_mut().zip(&row[shift..]);
                    shifted.for_each(|(largest, value)| *largest = larger(*largest, *value));
                }
                out.extend((0..out_width).map(|x| match (x * self.stride).checked_sub(self.padding) {
                    Some(start) => windows[start],
                    // The first ones begin before the image.
                    None => {
                        let columns = &row[self.window(x, width)];
                        columns[1..].iter().fold(columns[0], |largest, value| larger(largest, *value))
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_pooled_by_their_definition() {
        for (kernel, stride, padding) in [(1, 1, 0), (2, 2, 0), (3, 2, 1), (3, 1, 2), (5, 3, 2)] {
            for size in [[5, 7], [6, 5], [9, 8]] {
                let out_size = size.map(|side| (side + 2 * padding - kernel) / stride + 1);
                let pool = Pool { kernel, stride, padding, size, out_size };
                let [height, width] = size;
                let x: Vec<i32> = (0..2 * height * width).map(|i| (i * 7919 % 101) as i32 - 200).collect();
                let got = pool.max(&x, i32::max);
                let mut expected = Vec::new();
                for plane in x.chunks(height * width) {
                    for place in 0..out_size[0] * out_size[1] {
                        let start = [place / out_size[1] * stride, place % out_size[1] * stride];
                        let values = plane.iter().enumerate().filter(|(i, _)| {
                            let is_in =
                                |at: usize, start: usize| (start..start + kernel).contains(&(at + padding));
                            is_in(i / width, start[0]) && is_in(i % width, start[1])
                        });
                        expected.push(values.map(|(_, value)| *value).max().unwrap());
                    }
                }
                assert_eq!(got, expected, "{pool:?}");
            }
        }
    }
}
