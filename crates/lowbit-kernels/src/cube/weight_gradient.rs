//! The gradient of a convolution's weights as products of matrices.
//!
//! burn computes it, unless it may try out kernels first, as a convolution whose filters are as large as the images: one
//! thread for each weight, which adds up all pixels of all images. Here the windows of the images become columns, and shares
//! of the images, enough of them to fill a GPU, have a product each; these are added up at last, always in the same order.

use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::ops::ConvOptions;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, cubecl};
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::elem_type;

/// Values of the columns that exist at a time, and of the products, at most (64 and 16 million): memory is bounded for any batch.
const COLUMNS: usize = 1 << 26;
const PRODUCTS: usize = 1 << 24;

/// Writes the windows of images to columns `[shares, channels x kernel, images of a share x pixels]`, with zeros where a
/// window is outside of its image.
#[cube(launch, address_type = "dynamic")]
fn windows<F: Float>(
    images: LinearView<'_, F>,
    mut columns: LinearViewMut<'_, F>,
    first_image: usize,
    share: usize,
    channels: usize,
    height: usize,
    width: usize,
    out_height: usize,
    out_width: usize,
    kernel_height: usize,
    kernel_width: usize,
    stride_y: usize,
    stride_x: usize,
    padding_y: usize,
    padding_x: usize,
    #[define(F)] _dtype: ElemType,
) {
    if !columns.is_in_bounds(ABSOLUTE_POS) {
        terminate!();
    }
    let (x, rest) = (ABSOLUTE_POS % out_width, ABSOLUTE_POS / out_width);
    let (y, rest) = (rest % out_height, rest / out_height);
    let (image, rest) = (rest % share, rest / share);
    let (j, rest) = (rest % kernel_width, rest / kernel_width);
    let (i, rest) = (rest % kernel_height, rest / kernel_height);
    let (channel, rest) = (rest % channels, rest / channels);
    let image = first_image + rest * share + image;
    let (y, x) = (y * stride_y + i, x * stride_x + j);
    let is_inside = y >= padding_y && y < padding_y + height && x >= padding_x && x < padding_x + width;
    let mut value = F::new(0.0);
    if is_inside {
        value = images.read(((image * channels + channel) * height + y - padding_y) * width + x - padding_x);
    }
    columns.write(ABSOLUTE_POS, value);
}

/// The smallest number of images that divides the batch and leaves few enough products.
fn images_of_a_share(batch: usize, n_weights: usize) -> usize {
    let most_shares = (PRODUCTS / n_weights).max(1);
    (1..=batch).find(|share| batch.is_multiple_of(*share) && batch / share <= most_shares).unwrap_or(batch)
}

/// The gradient of the weights of a convolution without groups and dilation.
pub(super) fn weight_gradient(
    input: FloatTensor<CubeBackend>,
    weight: &FloatTensor<CubeBackend>,
    gradient: FloatTensor<CubeBackend>,
    options: &ConvOptions<2>,
) -> FloatTensor<CubeBackend> {
    let [batch, channels, height, width] = input.shape().dims();
    let [out_channels, _, kernel_height, kernel_width] = weight.shape().dims();
    let [_, _, out_height, out_width] = gradient.shape().dims();
    let (pixels, rows) = (out_height * out_width, channels * kernel_height * kernel_width);
    let share = images_of_a_share(batch, out_channels * rows);
    let input = into_contiguous(input);
    // To `[shares, out channels, images of a share x pixels]`.
    let shares = [batch / share, share, out_channels, pixels];
    let gradient = CubeBackend::float_swap_dims(CubeBackend::float_reshape(gradient, shares.into()), 1, 2);
    let shares = [batch / share, out_channels, share * pixels];
    let gradient = CubeBackend::float_reshape(gradient, shares.into());
    let together = (COLUMNS / (rows * share * pixels)).clamp(1, batch / share);
    let mut sum: Option<CubeTensor> = None;
    for first in (0..batch / share).step_by(together) {
        let n = together.min(batch / share - first);
        let columns = empty_device_contiguous_dtype(
            input.client.clone(),
            input.device.clone(),
            [n, rows, share * pixels].into(),
            input.dtype,
        );
        let n_values = n * rows * share * pixels;
        let dim = CubeDim::new(&input.client, n_values);
        windows::launch(
            &input.client,
            calculate_cube_count_elemwise(&input.client, n_values, dim),
            dim,
            columns.required_address_type().max(input.required_address_type()),
            input.clone().into_linear_view(),
            columns.clone().into_linear_view(),
            first * share,
            share,
            channels,
            height,
            width,
            out_height,
            out_width,
            kernel_height,
            kernel_width,
            options.stride[0],
            options.stride[1],
            options.padding[0].0,
            options.padding[1].0,
            elem_type(input.dtype),
        );
        let gradient = CubeBackend::float_slice(gradient.clone(), &[(first..first + n).into()]);
        let products = CubeBackend::float_matmul(gradient, CubeBackend::float_swap_dims(columns, 1, 2));
        let part = CubeBackend::float_sum_dim(products, 0);
        sum = Some(match sum {
            None => part,
            Some(sum) => CubeBackend::float_add(sum, part),
        });
    }
    let sum = sum.expect("invariant: there is an image");
    CubeBackend::float_reshape(sum, weight.shape())
}
