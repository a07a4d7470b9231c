//! The gradient of a convolution's weights as products of matrices that are never made: of the gradient's pixels and of the windows
//! of the images around them.
//!
//! burn computes it, unless it may try out kernels first, as a convolution whose filters are as large as the images: one
//! thread for each weight, which adds up all pixels of all images. Here each cube has a tile of the weights and a share of the
//! pixels, and a second launch adds up the shares, always in the same order.

use burn::backend::TensorMetadata;
use burn::tensor::ops::ConvOptions;
use burn_cubecl::cubecl;
use burn_cubecl::ops::permute_nhwc_to_nchw;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::ir::ElemType;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::linear::{LinearView, LinearViewMut};

use super::layout::channels_last;
use super::sum::THREADS;
use super::{elem_type, empty};

/// Weights of a tile along each of its sides that a thread has.
const SIDE: usize = 4;

/// Pixels that are in a cube's memory at a time.
const STEP: usize = 8;

/// Pixels of a share, unless there are fewer or more shares than this.
const PIXELS_OF_SHARE: usize = 256;
const MOST_SHARES: usize = 128;

/// Cubes that fill a GPU.
const CUBES: usize = 512;

/// Products of a share of the pixels: `[shares, out channels, kernel height x kernel width x channels]`.
#[cube(launch, address_type = "dynamic")]
fn products_of_shares<F: Float>(
    images: LinearView<'_, F>,
    gradient: LinearView<'_, F>,
    mut products: LinearViewMut<'_, F>,
    pixels: usize,
    pixels_of_share: usize,
    channels: usize,
    height: usize,
    width: usize,
    out_channels: usize,
    out_height: usize,
    out_width: usize,
    kernel_height: usize,
    kernel_width: usize,
    stride_y: usize,
    stride_x: usize,
    padding_y: usize,
    padding_x: usize,
    #[comptime] tile_out: usize,
    #[comptime] tile_in: usize,
    #[define(F)] _dtype: ElemType,
) {
    let unit = UNIT_POS as usize;
    let n_in = kernel_height * kernel_width * channels;
    let first_in = CUBE_POS_X as usize * tile_in;
    let first_out = CUBE_POS_Y as usize * tile_out;
    let share = CUBE_POS_Z as usize;
    let end = clamp_max((share + 1) * pixels_of_share, pixels);
    let units_in = comptime!(tile_in / SIDE);
    let units_out = comptime!(tile_out / SIDE);
    let (unit_in, unit_out) = (unit % units_in, unit / units_in);
    // A thread brings values of one place of the window and one channel.
    let place = first_in + unit % tile_in;
    let (channel, rest) = (place % channels, place / channels);
    let (window_x, window_y) = (rest % kernel_width, rest / kernel_width);

    let mut outer = Shared::<[F]>::new_slice(comptime!(STEP * tile_out));
    let mut inner = Shared::<[F]>::new_slice(comptime!(STEP * tile_in));
    let mut sums = Array::<F>::new(comptime!(SIDE * SIDE));
    #[unroll]
    for i in 0..comptime!(SIDE * SIDE) {
        sums[i] = F::new(0.0);
    }
    let mut first = share * pixels_of_share;
    while first < end {
        #[unroll]
        for i in 0..comptime!((STEP * tile_out).div_ceil(THREADS)) {
            let slot = unit + i * THREADS;
            if slot < comptime!(STEP * tile_out) {
                let (pixel, out) = (first + slot / tile_out, first_out + slot % tile_out);
                let mut value = F::new(0.0);
                if pixel < end && out < out_channels {
                    value = gradient.read(pixel * out_channels + out);
                }
                outer[slot] = value;
            }
        }
        #[unroll]
        for i in 0..comptime!(STEP * tile_in / THREADS) {
            let slot = unit + i * THREADS;
            let pixel = first + slot / tile_in;
            let (x, rest) = (pixel % out_width, pixel / out_width);
            let (y, image) = (rest % out_height, rest / out_height);
            let (y, x) = (y * stride_y + window_y, x * stride_x + window_x);
            let is_in_height = y >= padding_y && y < padding_y + height;
            let is_in_width = x >= padding_x && x < padding_x + width;
            let mut value = F::new(0.0);
            if pixel < end && place < n_in && is_in_height && is_in_width {
                value = images
                    .read(((image * height + y - padding_y) * width + x - padding_x) * channels + channel);
            }
            inner[slot] = value;
        }
        sync_cube();
        #[unroll]
        for pixel in 0..STEP {
            #[unroll]
            for i in 0..SIDE {
                let factor = outer[pixel * tile_out + unit_out + i * units_out];
                #[unroll]
                for j in 0..SIDE {
                    sums[i * SIDE + j] += factor * inner[pixel * tile_in + unit_in + j * units_in];
                }
            }
        }
        sync_cube();
        first += STEP;
    }
    #[unroll]
    for i in 0..SIDE {
        let out = first_out + unit_out + i * units_out;
        #[unroll]
        for j in 0..SIDE {
            let place = first_in + unit_in + j * units_in;
            if out < out_channels && place < n_in {
                products.write((share * out_channels + out) * n_in + place, sums[i * SIDE + j]);
            }
        }
    }
}

/// Sums over the shares.
#[cube(launch, address_type = "dynamic")]
fn sum_of_shares<F: Float>(
    products: LinearView<'_, F>,
    mut sums: LinearViewMut<'_, F>,
    n_shares: usize,
    n: usize,
    #[define(F)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= n {
        terminate!();
    }
    let mut sum = F::new(0.0);
    for share in 0..n_shares {
        sum += products.read(share * n + ABSOLUTE_POS);
    }
    sums.write(ABSOLUTE_POS, sum);
}

/// The gradient of the weights, of shape `[out_channels, channels, height, width]`, of a convolution without groups and dilation, of
/// images that are not none.
pub(super) fn weight_gradient(
    input: CubeTensor,
    weight: &CubeTensor,
    gradient: CubeTensor,
    options: &ConvOptions<2>,
) -> CubeTensor {
    let [batch, channels, height, width] = input.shape().dims();
    let [out_channels, _, kernel_height, kernel_width] = weight.shape().dims();
    let [_, _, out_height, out_width] = gradient.shape().dims();
    let (pixels, n_in) = (batch * out_height * out_width, channels * kernel_height * kernel_width);
    let tile_out = out_channels.next_power_of_two().clamp(16, 64);
    let tile_in = THREADS * SIDE * SIDE / tile_out;
    let tiles = [n_in.div_ceil(tile_in), out_channels.div_ceil(tile_out)];
    let most_shares = (CUBES / (tiles[0] * tiles[1])).clamp(1, MOST_SHARES);
    let n_shares = pixels.div_ceil(PIXELS_OF_SHARE).min(most_shares);
    let pixels_of_share = pixels.div_ceil(n_shares).next_multiple_of(STEP);
    let n_shares = pixels.div_ceil(pixels_of_share);
    let [images, gradient] = [input, gradient].map(channels_last);
    let products = empty(&images, [n_shares * out_channels * n_in]);
    let address = [&images, &gradient, &products].map(CubeTensor::required_address_type);
    products_of_shares::launch(
        &images.client,
        CubeCount::Static(tiles[0] as u32, tiles[1] as u32, n_shares as u32),
        CubeDim::new_1d(THREADS as u32),
        address.into_iter().max().unwrap_or_default(),
        images.clone().into_linear_view(),
        gradient.into_linear_view(),
        products.clone().into_linear_view(),
        pixels,
        pixels_of_share,
        channels,
        height,
        width,
        out_channels,
        out_height,
        out_width,
        kernel_height,
        kernel_width,
        options.stride[0],
        options.stride[1],
        options.padding[0].0,
        options.padding[1].0,
        tile_out,
        tile_in,
        elem_type(images.dtype),
    );
    let sums = empty(&images, [out_channels, kernel_height, kernel_width, channels]);
    let n = out_channels * n_in;
    let dim = CubeDim::new(&images.client, n);
    sum_of_shares::launch(
        &images.client,
        calculate_cube_count_elemwise(&images.client, n, dim),
        dim,
        products.required_address_type(),
        products.into_linear_view(),
        sums.clone().into_linear_view(),
        n_shares,
        n,
        elem_type(images.dtype),
    );
    permute_nhwc_to_nchw(sums)
}
