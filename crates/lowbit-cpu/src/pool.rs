//! Pooling by the maximum, of values or codes of a batch.

use std::cell::RefCell;

use rayon::prelude::*;

use crate::instructions::multiversion;
use crate::task_items;
use crate::words::WORD;

/// Sizes of a pooling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Side of a window.
    pub kernel: usize,
    /// Step between windows.
    pub stride: usize,
    /// Places around an image, of which none wins.
    pub padding: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// Height and width of the output.
    pub out_size: [usize; 2],
}

impl Pool {
    /// The largest value of each window of each plane, into `out`; padding never wins. Of the channels that fall, if any are named, the
    /// smallest.
    ///
    /// # Panics
    /// If the sizes do not fit each other, or the values are no whole number of planes.
    pub fn max(&self, x: &[f32], falls: &[bool], out: &mut Vec<f32>) {
        let falls = |plane: usize| !falls.is_empty() && falls[plane % falls.len()];
        self.pool(x, out, |index, plane, out| {
            VALUES.with_borrow_mut(|rows| match falls(index) {
                false => largest_values(self, plane, rows, out),
                true => smallest_values(self, plane, rows, out),
            });
        });
    }

    /// The largest codes of each window, into `out`. Codes have the order of their levels.
    ///
    /// # Panics
    /// As [`max`](Self::max).
    pub fn max_codes(&self, x: &[[u8; WORD]], out: &mut Vec<[u8; WORD]>) {
        self.pool(x, out, |_, plane, out| {
            CODES.with_borrow_mut(|rows| largest_codes(self, plane, rows, out));
        });
    }

    /// Pools the planes, which are numbered.
    fn pool<T: Copy + Default + Send + Sync>(
        &self,
        x: &[T],
        out: &mut Vec<T>,
        pool: impl Fn(usize, &[T], &mut [T]) + Sync,
    ) {
        let (plane, out_plane) = (self.size[0] * self.size[1], self.out_size[0] * self.out_size[1]);
        assert!(x.len().is_multiple_of(plane), "number of values");
        out.resize(x.len() / plane * out_plane, T::default());
        let planes = out.par_chunks_exact_mut(out_plane).zip(x.par_chunks_exact(plane)).enumerate();
        planes.with_min_len(task_items(plane)).for_each(|(index, (out, x))| pool(index, x, out));
    }

    #[inline(always)]
    fn pool_plane<T: Copy + Default>(
        &self,
        plane: &[T],
        larger: impl Fn(T, T) -> T + Copy,
        [row, windows, other]: &mut Rows<T>,
        out: &mut [T],
    ) {
        let [height, width] = self.size;
        for row in [&mut *row, windows, other] {
            row.resize(width, T::default());
        }
        for (y, out) in out.chunks_exact_mut(self.out_size[1]).enumerate() {
            // The largest of each column, then of the columns of a window. No row is changed in place: of that the compiler makes stores that
            // depend on the comparison, which take far longer.
            let rows = self.window(y, height);
            row.copy_from_slice(&plane[rows.start * width..][..width]);
            for y in rows.skip(1) {
                let next = row.iter().zip(&plane[y * width..][..width]);
                other
                    .iter_mut()
                    .zip(next)
                    .for_each(|(out, (largest, value))| *out = larger(*largest, *value));
                std::mem::swap(row, other);
            }
            // Of the windows that begin at each column: all of them side by side is faster than each by itself.
            windows.copy_from_slice(row);
            for shift in 1..self.kernel.min(width) {
                let next = windows.iter().zip(&row[shift..]);
                other
                    .iter_mut()
                    .zip(next)
                    .for_each(|(out, (largest, value))| *out = larger(*largest, *value));
                other[width - shift..].copy_from_slice(&windows[width - shift..]);
                std::mem::swap(windows, other);
            }
            // The first ones begin before the image.
            let n_before = self.padding.div_ceil(self.stride).min(out.len());
            for (x, out) in out.iter_mut().enumerate().take(n_before) {
                let columns = &row[self.window(x, width)];
                *out = columns[1..].iter().fold(columns[0], |largest, value| larger(largest, *value));
            }
            let windows = &windows[(n_before * self.stride).saturating_sub(self.padding).min(width)..];
            let out = &mut out[n_before..];
            match self.stride {
                // The common ones, so that the compiler can make vectors of them.
                1 => out.iter_mut().zip(windows).for_each(|(out, largest)| *out = *largest),
                2 => out.iter_mut().zip(windows.chunks(2)).for_each(|(out, pair)| *out = pair[0]),
                stride => {
                    out.iter_mut()
                        .zip(windows.iter().step_by(stride))
                        .for_each(|(out, largest)| *out = *largest);
                }
            }
        }
    }

    /// The part of a window that is in the image.
    fn window(&self, at: usize, size: usize) -> std::ops::Range<usize> {
        let start = at * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel).saturating_sub(self.padding).min(size)
    }
}

/// Rows of an image.
type Rows<T> = [Vec<T>; 3];

thread_local! {
    static VALUES: RefCell<Rows<f32>> = const { RefCell::new([const { Vec::new() }; 3]) };
    static CODES: RefCell<Rows<[u8; WORD]>> = const { RefCell::new([const { Vec::new() }; 3]) };
}

multiversion! {
    fn largest_values(pool: &Pool, plane: &[f32], rows: &mut Rows<f32>, out: &mut [f32]) {
        pool.pool_plane(plane, |a, b| if b > a { b } else { a }, rows, out);
    }
}

multiversion! {
    fn smallest_values(pool: &Pool, plane: &[f32], rows: &mut Rows<f32>, out: &mut [f32]) {
        pool.pool_plane(plane, |a, b| if b < a { b } else { a }, rows, out);
    }
}

multiversion! {
    fn largest_codes(pool: &Pool, plane: &[[u8; WORD]], rows: &mut Rows<[u8; WORD]>, out: &mut [[u8; WORD]]) {
        pool.pool_plane(plane, |a, b| [a[0].max(b[0]), a[1].max(b[1]), a[2].max(b[2]), a[3].max(b[3])], rows, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_pooled_by_their_definition() {
        for (kernel, stride, padding) in [(1, 1, 0), (2, 2, 0), (3, 2, 1), (3, 1, 2), (5, 3, 2), (5, 1, 2)] {
            for size in [[5, 7], [6, 5], [9, 8], [1, 1], [3, 1]] {
                if size[0].min(size[1]) + 2 * padding < kernel {
                    continue;
                }
                let out_size = size.map(|side| (side + 2 * padding - kernel) / stride + 1);
                let pool = Pool { kernel, stride, padding, size, out_size };
                let [height, width] = size;
                let x: Vec<f32> = (0..2 * height * width).map(|i| (i * 7919 % 101) as f32 - 200.0).collect();
                let max = |x: &[f32], falls: &[bool]| {
                    let mut out = vec![7.0; 3];
                    pool.max(x, falls, &mut out);
                    out
                };
                let got = max(&x, &[]);
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
                let smallest: Vec<f32> = max(&negative, &[true]).iter().map(|value| -value).collect();
                assert_eq!(smallest, expected, "{pool:?}");
                let codes: Vec<[u8; WORD]> = x.iter().map(|value| [0, (value + 200.0) as u8, 0, 7]).collect();
                let mut pooled = Vec::new();
                pool.max_codes(&codes, &mut pooled);
                let codes: Vec<f32> = pooled.iter().map(|word| f32::from(word[1]) - 200.0).collect();
                assert_eq!(codes, expected, "{pool:?}");
            }
        }
    }
}
