//! How the values of images lie in memory: burn's convolutions yield pixels with their channels side by side, behind tensors whose
//! second dimension is that of the channels. What reads them in another order has to copy them first, one launch each.

use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::{permute_nchw_to_nhwc, permute_nhwc_to_nchw};
use burn_cubecl::tensor::CubeTensor;

/// The order of a tensor's values in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// That of its dimensions.
    Rows,
    /// Of `[batch, channels, height, width]` the channels are innermost.
    ChannelsLast,
}

impl Layout {
    /// The one in which `x` can be read without a copy, if there is one.
    pub(super) fn of(x: &CubeTensor) -> Self {
        let is_images = x.shape().num_dims() == 4;
        match is_images && !x.is_contiguous() && permute_nchw_to_nhwc(x.clone()).is_contiguous() {
            true => Self::ChannelsLast,
            false => Self::Rows,
        }
    }

    /// `x` with its dimensions in this order, contiguous.
    pub(super) fn open(self, x: CubeTensor) -> CubeTensor {
        match self {
            Self::Rows => into_contiguous(x),
            Self::ChannelsLast => channels_last(x),
        }
    }

    /// What [`open`](Self::open) has made, with its dimensions in their own order again.
    pub(super) fn close(self, x: CubeTensor) -> CubeTensor {
        match self {
            Self::Rows => x,
            Self::ChannelsLast => permute_nhwc_to_nchw(x),
        }
    }
}

/// Images `[batch, channels, height, width]` as `[batch, height, width, channels]`, contiguous.
pub(super) fn channels_last(images: CubeTensor) -> CubeTensor {
    into_contiguous(permute_nchw_to_nhwc(images))
}
