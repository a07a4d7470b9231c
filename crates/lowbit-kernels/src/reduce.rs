//! Reductions of long rows in parts: a GPU has a thread for each result of burn's reductions, and would add up a million values by
//! one.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_or_init_device_settings};
use burn::tensor::Tensor;

/// Rows that are longer are reduced in equal parts of at most [`PART`] values. (Rows of a length that has no divisor which leaves
/// parts of [`SHORT`] stay whole.)
const LONG: usize = 1024;
const PART: usize = 256;
const SHORT: usize = 16;

/// Number of equal parts of a row of `n` values.
fn parts(n: usize) -> usize {
    match n {
        0..=LONG => 1,
        _ => (n.div_ceil(PART)..=n / SHORT).find(|parts| n.is_multiple_of(*parts)).unwrap_or(1),
    }
}

/// Reduces rows `[rows, n]` to `[rows]` by `reduce`, which takes the axis 1 to one value: a sum, a maximum or a mean, whose parts
/// are equal.
pub fn reduce_in_parts(rows: Tensor<2>, reduce: &impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<1> {
    let [n_rows, n] = rows.dims();
    match parts(n) {
        1 => reduce(rows).reshape([n_rows]),
        parts => {
            let reduced = reduce(rows.reshape([n_rows * parts, n / parts]));
            reduce_in_parts(reduced.reshape([n_rows, parts]), reduce)
        }
    }
}

/// [`reduce_in_parts`] of a backend's own tensors.
pub(crate) fn reduce_rows<B: Backend>(
    rows: FloatTensor<B>,
    reduce: fn(FloatTensor<B>, usize) -> FloatTensor<B>,
) -> FloatTensor<B> {
    let [n_rows, n] = rows.shape().dims();
    match parts(n) {
        1 => B::float_reshape(reduce(rows, 1), [n_rows].into()),
        parts => {
            let reduced = reduce(B::float_reshape(rows, [n_rows * parts, n / parts].into()), 1);
            reduce_rows::<B>(B::float_reshape(reduced, [n_rows, parts].into()), reduce)
        }
    }
}

/// Sums of the first `1 / n`-th of the values, of the second, and so on, `[n]`.
pub(crate) fn sum_of_each<B: Backend>(x: FloatTensor<B>, n: usize) -> FloatTensor<B> {
    let row = x.shape().num_elements() / n;
    reduce_rows::<B>(B::float_reshape(x, [n, row].into()), B::float_sum_dim)
}

/// The first place of the largest of the values `[n]`, `[1]`.
pub(crate) fn place_of_max<B: Backend>(x: FloatTensor<B>) -> IntTensor<B> {
    let int_dtype = get_or_init_device_settings::<B>(&x.device()).int_dtype;
    let n = x.shape().num_elements();
    let parts = parts(n);
    if parts == 1 {
        return B::float_argmax(x, 0, int_dtype);
    }
    let rows = B::float_reshape(x, [parts, n / parts].into());
    let largest = B::float_reshape(B::float_max_dim(rows.clone(), 1), [parts].into());
    let row = place_of_max::<B>(largest);
    let values = B::float_reshape(B::float_select(rows, 0, row.clone()), [n / parts].into());
    let within = B::float_argmax(values, 0, int_dtype);
    B::int_add(B::int_mul_scalar(row, ((n / parts) as i64).into()), within)
}
