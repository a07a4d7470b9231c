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

/// Values of the columns that exist at a time, and of the products: 64 MiB each, half of what WebGPU promises for a buffer.
const COLUMNS: usize = 1 << 24;
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

/// Whether the columns of one image are few enough.
pub(super) fn fits(input: &CubeTensor, weight: &CubeTensor, gradient: &CubeTensor) -> bool {
    let [_, channels, ..]: [usize; 4] = input.shape().dims();
    let [_, _, kernel_height, kernel_width] = weight.shape().dims();
    let [_, _, out_height, out_width] = gradient.shape().dims();
    channels * kernel_height * kernel_width * out_height * out_width <= COLUMNS
}

/// The gradient of the weights of a convolution without groups and dilation whose images [fit](fits).
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
    // Images of a share: as few as leave few enough products.
    let most = COLUMNS / (rows * pixels);
    let share = (batch * out_channels * rows).div_ceil(PRODUCTS).min(most).min(batch);
    let input = into_contiguous(input);
    let gradient = into_contiguous(gradient);
    let (mut sum, mut first): (Option<CubeTensor>, _) = (None, 0);
    while first < batch {
        // The last share may have fewer.
        let share = share.min(batch - first);
        let n = ((batch - first) / share).min(COLUMNS / (rows * share * pixels));
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
            first,
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
        // To `[shares, out channels, images of a share x pixels]`.
        let images = first..first + n * share;
        let part = CubeBackend::float_slice(gradient.clone(), &[images.into()]);
        let part = CubeBackend::float_reshape(part, [n, share, out_channels, pixels].into());
        let part = CubeBackend::float_swap_dims(part, 1, 2);
        let part = CubeBackend::float_reshape(part, [n, out_channels, share * pixels].into());
        let products = CubeBackend::float_matmul(part, CubeBackend::float_swap_dims(columns, 1, 2));
        let part = CubeBackend::float_sum_dim(products, 0);
        sum = Some(match sum {
            None => part,
            Some(sum) => CubeBackend::float_add(sum, part),
        });
        first += n * share;
    }
    let sum = sum.expect("invariant: there is an image");
    CubeBackend::float_reshape(sum, weight.shape())
}
