//! Operations without parameters, on values or codes of a batch.

use lowbit_cpu::words::WORD;
use rayon::prelude::*;

/// Values of a task, at least: fewer take less time than waking a thread for them.
const TASK_LEN: usize = 1 << 15;

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
    /// The largest value of each window of each plane; padding never wins. Of the channels that fall, if any are named, the smallest.
    pub fn max(&self, x: &[f32], falls: &[bool]) -> Vec<f32> {
        let (larger, smaller) = (|a, b| if b > a { b } else { a }, |a, b| if b < a { b } else { a });
        match falls.contains(&true) {
            false => self.pool(x, |_, plane, out| self.pool_plane(plane, larger, out)),
            true => self.pool(x, |index, plane, out| match falls[index % falls.len()] {
                false => self.pool_plane(plane, larger, out),
                true => self.pool_plane(plane, smaller, out),
            }),
        }
    }

    /// The largest codes of each window. Codes have the order of their levels.
    pub fn max_codes(&self, x: &[[u8; WORD]]) -> Vec<[u8; WORD]> {
        let larger = |a: [u8; WORD], b: [u8; WORD]| std::array::from_fn(|i| a[i].max(b[i]));
        self.pool(x, |_, plane, out| self.pool_plane(plane, larger, out))
    }

    /// Pools the planes, which are numbered.
    fn pool<T: Copy + Default + Send + Sync>(
        &self,
        x: &[T],
        pool: impl Fn(usize, &[T], &mut [T]) + Sync,
    ) -> Vec<T> {
        let (plane, out_plane) = (self.size[0] * self.size[1], self.out_size[0] * self.out_size[1]);
        let mut out = vec![T::default(); x.len() / plane * out_plane];
        let planes = out.par_chunks_exact_mut(out_plane).zip(x.par_chunks_exact(plane)).enumerate();
        planes.with_min_len(TASK_LEN.div_ceil(plane)).for_each(|(index, (out, x))| pool(index, x, out));
        out
    }

    fn pool_plane<T: Copy>(&self, plane: &[T], larger: impl Fn(T, T) -> T + Copy, out: &mut [T]) {
        let [height, width] = self.size;
        let (mut row, mut windows) = (Vec::with_capacity(width), Vec::with_capacity(width));
        for (y, out) in out.chunks_exact_mut(self.out_size[1]).enumerate() {
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
            for (x, out) in out.iter_mut().enumerate() {
                *out = match (x * self.stride).checked_sub(self.padding) {
                    Some(start) => windows[start],
                    // The first ones begin before the image.
                    None => {
                        let columns = &row[self.window(x, width)];
                        columns[1..].iter().fold(columns[0], |largest, value| larger(largest, *value))
                    }
                };
            }
        }
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
                let x: Vec<f32> = (0..2 * height * width).map(|i| (i * 7919 % 101) as f32 - 200.0).collect();
                let got = pool.max(&x, &[]);
                let mut expected = Vec::new();
                for plane in x.chunks(height * width) {
                    for place in 0..out_size[0] * out_size[1] {
                        let start = [place / out_size[1] * stride, place % out_size[1] * stride];
                        let values = plane.iter().enumerate().filter(|(i, _)| {
                            let is_in =
                                |at: usize, start: usize| (start..start + kernel).contains(&(at + padding));
                            is_in(i / width, start[0]) && is_in(i % width, start[1])
                        });
                        expected.push(values.map(|(_, value)| *value).max_by(f32::total_cmp).unwrap());
                    }
                }
                assert_eq!(got, expected, "{pool:?}");
                let negative: Vec<f32> = x.iter().map(|value| -value).collect();
                let smallest: Vec<f32> = pool.max(&negative, &[true]).iter().map(|value| -value).collect();
                assert_eq!(smallest, expected, "{pool:?}");
                let codes: Vec<[u8; WORD]> = x.iter().map(|value| [0, (value + 200.0) as u8, 0, 7]).collect();
                let codes: Vec<f32> =
                    pool.max_codes(&codes).iter().map(|word| f32::from(word[1]) - 200.0).collect();
                assert_eq!(codes, expected, "{pool:?}");
            }
        }
    }
}
