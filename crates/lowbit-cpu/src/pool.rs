//! Pooling by the maximum, of values or codes of a batch, and its gradient.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use crate::instructions::multiversion;
use crate::output::{Slot, collect};
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

/// The largest values of windows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pooled {
    /// The values.
    pub values: Vec<f32>,
    /// The place of each in its window, counted row by row: all that the gradient needs of the input.
    pub places: Vec<u8>,
}

impl Pool {
    /// Side of the largest windows whose places are told: each is a byte.
    pub const MAX_KERNEL_WITH_PLACES: usize = 16;

    /// The largest value of each window of each plane, into `out`; padding never wins, `NaN` always. Of the channels that fall, if any are
    /// named, the smallest.
    ///
    /// # Panics
    /// If the sizes do not fit each other, or the values are no whole number of planes.
    pub fn max(&self, x: &[f32], falls: &[bool], out: &mut Vec<f32>) {
        let falls = |plane: usize| !falls.is_empty() && falls[plane % falls.len()];
        self.pool(x, out, |index, plane, out| {
            VALUES.with_borrow_mut(|lines| match falls(index) {
                false => largest_values(self, plane, lines, out),
                true => smallest_values(self, plane, lines, out),
            });
        });
    }

    /// The largest codes of each window, into `out`. Codes have the order of their levels.
    ///
    /// # Panics
    /// As [`max`](Self::max).
    pub fn max_codes(&self, x: &[[u8; WORD]], out: &mut Vec<[u8; WORD]>) {
        self.pool(x, out, |_, plane, out| {
            CODES.with_borrow_mut(|lines| largest_codes(self, plane, lines, out));
        });
    }

    /// The largest value of each window and its place: the first of equal ones, the last `NaN` where there is one, as PyTorch has it.
    ///
    /// # Panics
    /// As [`max`](Self::max), and if the windows are larger than [`MAX_KERNEL_WITH_PLACES`](Self::MAX_KERNEL_WITH_PLACES).
    pub fn max_with_places(&self, x: &[f32]) -> Pooled {
        assert!(self.kernel <= Self::MAX_KERNEL_WITH_PLACES, "a place in a window is a byte");
        let [plane, out_plane] = self.planes(x.len(), self.size);
        let n = x.len() / plane * out_plane;
        let mut pooled = Pooled { values: vec![0.0; n], places: vec![0; n] };
        let outputs =
            pooled.values.par_chunks_exact_mut(out_plane).zip(pooled.places.par_chunks_exact_mut(out_plane));
        let planes = outputs.zip(x.par_chunks_exact(plane)).with_min_len(task_items(plane));
        planes.for_each(|((values, places), x)| {
            PLACED.with_borrow_mut(|lines| largest_with_places(self, x, lines, values, places));
        });
        pooled
    }

    /// The gradient of the input from the [`places`](Pooled::places) and the gradient of the values. Where windows overlap, that of a value
    /// is summed up in the order of the windows.
    ///
    /// # Panics
    /// If the lengths differ, or are no whole number of planes.
    pub fn gradient(&self, places: &[u8], g: &[f32]) -> Vec<f32> {
        assert_eq!(places.len(), g.len(), "length of the gradient");
        let [plane, out_plane] = self.planes(g.len(), self.out_size);
        let n = g.len() / out_plane * plane;
        let write = |dx: &mut [Slot]| {
            let inputs = places.par_chunks_exact(out_plane).zip(g.par_chunks_exact(out_plane));
            let planes = dx.par_chunks_exact_mut(plane).zip(inputs).with_min_len(task_items(plane));
            planes.for_each(|(dx, (places, g))| {
                SUMS.with_borrow_mut(|sums| gradient_plane(self, places, g, sums, dx));
            });
        };
        // SAFETY: there is a plane of the output for each of the input, of which every row is written.
        unsafe { collect(n, write) }
    }

    /// Values of a plane of the input and of the output, if `len` are a whole number of planes of this size.
    fn planes(&self, len: usize, size: [usize; 2]) -> [usize; 2] {
        assert!(len.is_multiple_of(size[0] * size[1]), "number of values");
        [self.size[0] * self.size[1], self.out_size[0] * self.out_size[1]]
    }

    /// Pools the planes, which are numbered.
    fn pool<T: Copy + Default + Send + Sync>(
        &self,
        x: &[T],
        out: &mut Vec<T>,
        pool: impl Fn(usize, &[T], &mut [T]) + Sync,
    ) {
        let [plane, out_plane] = self.planes(x.len(), self.size);
        out.resize(x.len() / plane * out_plane, T::default());
        let planes = out.par_chunks_exact_mut(out_plane).zip(x.par_chunks_exact(plane)).enumerate();
        planes.with_min_len(task_items(plane)).for_each(|(index, (out, x))| pool(index, x, out));
    }

    /// Hands each row of the output to `write`, with the places of its values: what `place` makes of their row in the image and their
    /// column in the window. `larger` chooses of two, of which the second is further right or below. `least` never wins.
    #[inline(always)]
    fn pool_plane<T: Copy + Default, P: Copy + Default>(
        &self,
        plane: &[T],
        lines: &mut Lines<T, P>,
        least: T,
        place: impl Fn(usize, usize) -> P + Copy,
        larger: impl Fn((T, P), (T, P)) -> (T, P) + Copy,
        mut write: impl FnMut(usize, &[T], &[P]),
    ) {
        let ([height, width], out_width) = (self.size, self.out_size[1]);
        let n_columns = self.columns();
        lines.columns.clear();
        lines.columns.resize(self.stride * n_columns, least);
        lines.rows.resize_with(self.kernel, Line::default);
        for line in lines.rows.iter_mut().chain(&mut lines.others) {
            line.values.resize(out_width, least);
            line.places.resize(out_width, P::default());
        }
        let Lines { columns, rows, others: [out, other] } = lines;
        let mut n_rows = 0;
        for y in 0..self.out_size[0] {
            let window = self.window(y, height);
            // The largest ones of the windows' parts in each row, which windows one above the other share.
            for row in n_rows.max(window.start)..window.end {
                self.split(&plane[row * width..][..width], columns, n_columns);
                let part = |x: usize| {
                    (&columns[x % self.stride * n_columns..][x / self.stride..][..out_width], place(row, x))
                };
                let line = &mut rows[row % self.kernel];
                match self.kernel {
                    1 => largest_of([part(0)], larger, line),
                    2 => largest_of([part(0), part(1)], larger, line),
                    _ => largest_of([part(0), part(1), part(2)], larger, line),
                }
                for x in 3..self.kernel {
                    let before = (&line.values[..], &line.places[..]);
                    let (values, place) = part(x);
                    largest_after(before, (values, place), larger, other);
                    std::mem::swap(line, other);
                }
            }
            n_rows = window.end;
            let line = |row: usize| {
                let line = &rows[row % self.kernel];
                (&line.values[..], &line.places[..])
            };
            match window.len() {
                1 => largest_row([line(window.start)], larger, out),
                2 => largest_row([line(window.start), line(window.start + 1)], larger, out),
                _ => largest_row([0, 1, 2].map(|i| line(window.start + i)), larger, out),
            }
            for row in window.skip(3) {
                largest_row([(&out.values[..], &out.places[..]), line(row)], larger, other);
                std::mem::swap(out, other);
            }
            write(y, &out.values, &out.places);
        }
    }

    /// The part of a window that is in the image.
    fn window(&self, at: usize, size: usize) -> Range<usize> {
        let start = at * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel).saturating_sub(self.padding).min(size)
    }

    /// Columns of a row with its padding, of which each step of the windows has one.
    fn columns(&self) -> usize {
        let of_windows = self.out_size[1] + (self.kernel - 1) / self.stride;
        of_windows.max((self.padding + self.size[1]).div_ceil(self.stride))
    }

    /// Splits a row, with padding before it, into its columns modulo the stride, which lie `n_columns` apart: so that the values that
    /// windows side by side have at the same place lie side by side.
    #[inline(always)]
    fn split<T: Copy>(&self, row: &[T], columns: &mut [T], n_columns: usize) {
        for (first, columns) in columns.chunks_exact_mut(n_columns).enumerate() {
            let skipped = self.padding.saturating_sub(first).div_ceil(self.stride);
            let start = skipped * self.stride + first - self.padding;
            let (columns, row) = (&mut columns[skipped..], &row[start.min(row.len())..]);
            match self.stride {
                // The common ones, so that the compiler can make vectors of them.
                1 => columns.iter_mut().zip(row).for_each(|(column, x)| *column = *x),
                2 => {
                    let (pairs, last) = row.as_chunks::<2>();
                    columns.iter_mut().zip(pairs).for_each(|(column, pair)| *column = pair[0]);
                    if let ([x], Some(column)) = (last, columns.get_mut(pairs.len())) {
                        *column = *x;
                    }
                }
                stride => {
                    columns.iter_mut().zip(row.iter().step_by(stride)).for_each(|(column, x)| *column = *x)
                }
            }
        }
    }

    /// The reverse of [`split`](Self::split).
    #[inline(always)]
    fn join(&self, columns: &[f32], n_columns: usize, row: &mut [Slot]) {
        let part = |x: usize| {
            &columns[(x + self.padding) % self.stride * n_columns..][..n_columns]
                [(x + self.padding) / self.stride..]
        };
        match self.stride {
            2 => {
                let (first, second) = (part(0), part(1));
                let (pairs, last) = row.as_chunks_mut::<2>();
                for ((pair, first), second) in pairs.iter_mut().zip(first).zip(second) {
                    pair[0].write(*first);
                    pair[1].write(*second);
                }
                if let [slot] = last {
                    slot.write(first[pairs.len()]);
                }
            }
            stride => {
                for x in 0..stride.min(row.len()) {
                    let slots = row.iter_mut().skip(x).step_by(stride);
                    slots.zip(part(x)).for_each(|(slot, sum)| {
                        slot.write(*sum);
                    });
                }
            }
        }
    }
}

/// Values of a row, and where they come from.
#[derive(Default)]
struct Line<T, P> {
    values: Vec<T>,
    places: Vec<P>,
}

/// What a plane is pooled in.
#[derive(Default)]
struct Lines<T, P> {
    /// A row of the image, split.
    columns: Vec<T>,
    /// The largest ones of windows of one row, of as many rows as a window has.
    rows: Vec<Line<T, P>>,
    /// Of whole windows.
    others: [Line<T, P>; 2],
}

thread_local! {
    static VALUES: RefCell<Lines<f32, ()>> = RefCell::default();
    static PLACED: RefCell<Lines<f32, u32>> = RefCell::default();
    static CODES: RefCell<Lines<[u8; WORD], ()>> = RefCell::default();
    static SUMS: RefCell<Vec<f32>> = RefCell::default();
}

// No line is changed in place: of that the compiler makes stores that depend on the comparison, which take far longer.

/// The largest ones of some lines, each of one place.
#[inline(always)]
fn largest_of<T: Copy, P: Copy, const N: usize>(
    parts: [(&[T], P); N],
    larger: impl Fn((T, P), (T, P)) -> (T, P),
    out: &mut Line<T, P>,
) {
    let n = out.values.len();
    let parts = parts.map(|(values, place)| (&values[..n], place));
    for (x, (value, place)) in out.values.iter_mut().zip(&mut out.places).enumerate() {
        let mut largest = (parts[0].0[x], parts[0].1);
        for (values, place) in &parts[1..] {
            largest = larger(largest, (values[x], *place));
        }
        (*value, *place) = largest;
    }
}

/// The larger ones of a line and of one of one place.
#[inline(always)]
fn largest_after<T: Copy, P: Copy>(
    (values, places): (&[T], &[P]),
    (next, place): (&[T], P),
    larger: impl Fn((T, P), (T, P)) -> (T, P),
    out: &mut Line<T, P>,
) {
    let inputs = values.iter().zip(places).zip(next);
    for ((value, of_value), ((largest, of_largest), next)) in
        out.values.iter_mut().zip(&mut out.places).zip(inputs)
    {
        (*value, *of_value) = larger((*largest, *of_largest), (*next, place));
    }
}

/// The largest ones of some lines.
#[inline(always)]
fn largest_row<T: Copy, P: Copy, const N: usize>(
    lines: [(&[T], &[P]); N],
    larger: impl Fn((T, P), (T, P)) -> (T, P),
    out: &mut Line<T, P>,
) {
    let n = out.values.len();
    let lines = lines.map(|(values, places)| (&values[..n], &places[..n]));
    for (x, (value, place)) in out.values.iter_mut().zip(&mut out.places).enumerate() {
        let mut largest = (lines[0].0[x], lines[0].1[x]);
        for (values, places) in &lines[1..] {
            largest = larger(largest, (values[x], places[x]));
        }
        (*value, *place) = largest;
    }
}

multiversion! {
    fn largest_values(pool: &Pool, plane: &[f32], lines: &mut Lines<f32, ()>, out: &mut [f32]) {
        let larger = |a: (f32, ()), b: (f32, ())| if b.0 > a.0 || b.0.is_nan() { b } else { a };
        let width = pool.out_size[1];
        pool.pool_plane(plane, lines, f32::NEG_INFINITY, |_, _| (), larger, |y, values, _| {
            out[y * width..][..width].copy_from_slice(values);
        });
    }
}

multiversion! {
    fn smallest_values(pool: &Pool, plane: &[f32], lines: &mut Lines<f32, ()>, out: &mut [f32]) {
        let smaller = |a: (f32, ()), b: (f32, ())| if b.0 < a.0 || b.0.is_nan() { b } else { a };
        let width = pool.out_size[1];
        pool.pool_plane(plane, lines, f32::INFINITY, |_, _| (), smaller, |y, values, _| {
            out[y * width..][..width].copy_from_slice(values);
        });
    }
}

multiversion! {
    fn largest_codes(pool: &Pool, plane: &[[u8; WORD]], lines: &mut Lines<[u8; WORD], ()>, out: &mut [[u8; WORD]]) {
        let larger = |(a, ()): ([u8; WORD], ()), (b, ()): ([u8; WORD], ())| {
            ([a[0].max(b[0]), a[1].max(b[1]), a[2].max(b[2]), a[3].max(b[3])], ())
        };
        let width = pool.out_size[1];
        pool.pool_plane(plane, lines, [0; WORD], |_, _| (), larger, |y, codes, _| {
            out[y * width..][..width].copy_from_slice(codes);
        });
    }
}

multiversion! {
    fn largest_with_places(
        pool: &Pool, plane: &[f32], lines: &mut Lines<f32, u32>, out: &mut [f32], out_places: &mut [u8],
    ) {
        // One by one, so that they become selections of lanes.
        let larger = |a: (f32, u32), b: (f32, u32)| {
            let is_larger = (b.0 > a.0) | b.0.is_nan();
            (if is_larger { b.0 } else { a.0 }, if is_larger { b.1 } else { a.1 })
        };
        let width = pool.out_size[1];
        // Counted from the first row of the padding.
        let place = |row: usize, x: usize| ((row + pool.padding) * pool.kernel + x) as u32;
        pool.pool_plane(plane, lines, f32::NEG_INFINITY, place, larger, |y, values, places| {
            out[y * width..][..width].copy_from_slice(values);
            let first = (y * pool.stride * pool.kernel) as u32;
            let out_places = &mut out_places[y * width..][..width];
            for (out, place) in out_places.iter_mut().zip(places) {
                *out = (*place - first) as u8;
            }
            // Padding is as large as what is infinitely small, and may come first.
            if values.contains(&f32::NEG_INFINITY) {
                let before = |at: usize| pool.padding.saturating_sub(at * pool.stride);
                for (x, (value, place)) in values.iter().zip(out_places).enumerate() {
                    if *value == f32::NEG_INFINITY {
                        *place = (before(y) * pool.kernel + before(x)) as u8;
                    }
                }
            }
        });
    }
}

multiversion! {
    fn gradient_plane(pool: &Pool, places: &[u8], g: &[f32], sums: &mut Vec<f32>, dx: &mut [Slot]) {
        let ([_, width], [out_height, out_width]) = (pool.size, pool.out_size);
        let n_columns = pool.columns();
        for (row, dx) in dx.chunks_exact_mut(width).enumerate() {
            sums.clear();
            sums.resize(pool.stride * n_columns, 0.0);
            let below = row + pool.padding;
            let first = (below + 1).saturating_sub(pool.kernel).div_ceil(pool.stride);
            for y in first..out_height.min(below / pool.stride + 1) {
                let (places, g) = (&places[y * out_width..][..out_width], &g[y * out_width..][..out_width]);
                // Those of windows further left come first: of a column, their places are further right.
                for x in (0..pool.kernel).rev() {
                    let place = ((below - y * pool.stride) * pool.kernel + x) as u8;
                    let sums = &mut sums[x % pool.stride * n_columns..][x / pool.stride..][..out_width];
                    for ((sum, at), g) in sums.iter_mut().zip(places).zip(g) {
                        *sum += if *at == place { *g } else { 0.0 };
                    }
                }
            }
            pool.join(sums, n_columns, dx);
        }
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

    /// The place of the largest value by the definition, and its gradients one by one.
    fn by_definition(pool: &Pool, x: &[f32], g: &[f32]) -> (Pooled, Vec<f32>) {
        let Pool { kernel, stride, padding, size: [height, width], out_size: [out_height, out_width] } =
            *pool;
        let (mut pooled, mut dx) = (Pooled::default(), vec![0.0; x.len()]);
        for (i, g) in g.iter().enumerate() {
            let [plane, y, column] =
                [i / (out_height * out_width), i / out_width % out_height, i % out_width];
            let mut largest: Option<(f32, usize, usize)> = None;
            for place in 0..kernel * kernel {
                let at = [y * stride + place / kernel, column * stride + place % kernel];
                let [Some(row), Some(x_column)] = at.map(|at| at.checked_sub(padding)) else { continue };
                if row < height && x_column < width {
                    let index = (plane * height + row) * width + x_column;
                    if largest.is_none_or(|(value, ..)| x[index] > value || x[index].is_nan()) {
                        largest = Some((x[index], place, index));
                    }
                }
            }
            let (value, place, index) = largest.unwrap();
            pooled.values.push(value);
            pooled.places.push(place as u8);
            dx[index] += g;
        }
        (pooled, dx)
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Few values, so that many are equal, with both zeros, infinities and `NaN`.
    #[test]
    fn places_and_gradients_are_those_of_the_definition() {
        let few = [1.0, -1.0, 0.0, -0.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, 2.0];
        for (kernel, stride, padding) in [
            (1, 1, 0),
            (2, 2, 0),
            (2, 2, 1),
            (3, 2, 1),
            (3, 2, 2),
            (3, 1, 2),
            (5, 3, 2),
            (4, 1, 2),
            (2, 3, 1),
            (16, 5, 8),
        ] {
            for size in [[5, 7], [6, 5], [9, 40], [1, 1], [3, 1], [20, 17]] {
                if size.iter().any(|side| side + 2 * padding < kernel) {
                    continue;
                }
                let out_size = size.map(|side| (side + 2 * padding - kernel) / stride + 1);
                let pool = Pool { kernel, stride, padding, size, out_size };
                let n = 3 * size[0] * size[1];
                let draw = |i: usize| (i * 7919 + i * i * 31) >> 3;
                let n_out = 3 * out_size[0] * out_size[1];
                let g: Vec<f32> = (0..n_out).map(|i| (draw(i) % 1000) as f32 / 7.0 - 70.0).collect();
                for kinds in [2, 4, 5, 6, 8] {
                    let x: Vec<f32> = (0..n).map(|i| few[draw(i) % kinds]).collect();
                    let infinite = vec![f32::NEG_INFINITY; n];
                    for x in [x, infinite] {
                        let (expected, expected_dx) = by_definition(&pool, &x, &g);
                        let got = pool.max_with_places(&x);
                        assert_eq!(bits(&got.values), bits(&expected.values), "{pool:?} {kinds}");
                        assert_eq!(got.places, expected.places, "{pool:?} {kinds}");
                        assert_eq!(
                            bits(&pool.gradient(&got.places, &g)),
                            bits(&expected_dx),
                            "{pool:?} {kinds}"
                        );
                        let mut values = Vec::new();
                        pool.max(&x, &[], &mut values);
                        assert_eq!(bits(&values), bits(&expected.values), "{pool:?} {kinds}");
                    }
                }
            }
        }
    }
}
