//! Sizes of a convolution.

/// Sizes of a convolution without dilation.
///
/// # Shapes
/// - input: `[batch, in_channels, size[0], size[1]]`
/// - weight: `[out_channels, in_channels / groups, kernel[0], kernel[1]]`
/// - output: `[batch, out_channels, out_size()[0], out_size()[1]]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Zeros on each side.
    pub padding: [usize; 2],
    /// Groups of channels that are convolved each for itself; divides both numbers of channels.
    pub groups: usize,
}

impl ConvShape {
    /// Height and width of the output.
    ///
    /// # Panics
    /// If the kernel is larger than the padded input, the stride is 0, or the padding is more than can be counted.
    pub fn out_size(&self) -> [usize; 2] {
        std::array::from_fn(|i| {
            let padded = self.padding[i].checked_mul(2).and_then(|zeros| zeros.checked_add(self.size[i]));
            let padded = padded.expect("a padding of more than can be counted");
            let room =
                padded.checked_sub(self.kernel[i]).expect("the kernel is larger than the padded input");
            assert!(self.stride[i] > 0, "a stride of 0");
            room / self.stride[i] + 1
        })
    }

    /// Values of a channel of the input.
    pub(crate) fn in_plane(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Values of a channel of the output.
    pub(crate) fn out_plane(&self) -> usize {
        self.out_size().iter().product()
    }

    /// Positions of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Values of an image of the input.
    pub(crate) fn in_image(&self) -> usize {
        self.in_channels * self.in_plane()
    }

    /// Values of an image of the output.
    pub(crate) fn out_image(&self) -> usize {
        self.out_channels * self.out_plane()
    }

    /// Channels of the input in a group.
    pub(super) fn group_in(&self) -> usize {
        self.in_channels / self.groups
    }

    /// Channels of the output in a group.
    pub(super) fn group_out(&self) -> usize {
        self.out_channels / self.groups
    }

    /// Values of the weights of a group.
    pub(super) fn group_weight(&self) -> usize {
        self.group_out() * self.group_in() * self.taps()
    }

    /// The same convolution, with a stride of the kernel's size along an axis with one window: then no pixel beside the one
    /// result is computed.
    pub(super) fn with_plain_planes(&self) -> Self {
        let out = self.out_size();
        let stride = [0, 1].map(|i| match out[i] {
            1 => self.stride[i].max(self.kernel[i]),
            _ => self.stride[i],
        });
        Self { stride, ..*self }
    }

    /// Whether the groups are too small for panels of channels.
    pub(super) fn has_tiny_groups(&self) -> bool {
        self.groups > 1 && self.group_in().min(self.group_out()) < 4
    }

    /// Refuses what is no convolution. The kernels rely on it that no product of sizes wraps: of images with their padding, and
    /// with the places that windows begin at.
    ///
    /// # Panics
    /// If a size is 0 that has to be larger (all but the padding and the batch), the groups do not divide the channels, the kernel
    /// is larger than the padded input, or the values are more than can be counted.
    pub(crate) fn check_sizes(&self) {
        let Self { batch, in_channels, out_channels, size, kernel, stride, padding, groups } = *self;
        let is_positive = |sizes: [usize; 2]| sizes.iter().all(|&size| size > 0);
        assert!(in_channels > 0 && out_channels > 0, "a convolution without channels");
        assert!([size, kernel, stride].into_iter().all(is_positive), "a size, a kernel or a stride of 0");
        let divides = |channels: usize| groups > 0 && channels.is_multiple_of(groups);
        assert!(divides(in_channels) && divides(out_channels), "groups that do not divide the channels");
        let product = |factors: &[Option<usize>]| {
            factors.iter().try_fold(1usize, |product, factor| product.checked_mul((*factor)?))
        };
        // No row or column of any kernel is longer: a padded image, with a window on both sides, and a step to the next.
        let extent = |i: usize| {
            let parts = [size[i], padding[i], padding[i], kernel[i], kernel[i], stride[i]];
            parts.iter().try_fold(0usize, |sum, &part| sum.checked_add(part))
        };
        // What passes here passes for any part of it, of an empty batch too.
        let channels = Some(in_channels.max(out_channels));
        let images = product(&[Some(batch.max(1)), channels, extent(0), extent(1)]);
        let kernels = product(&[out_channels, in_channels, kernel[0], kernel[1]].map(Some));
        assert!(images.is_some() && kernels.is_some(), "more values than can be counted");
        self.out_size();
    }

    /// Compares the lengths of an input and of weights with the sizes.
    ///
    /// # Panics
    /// If they differ, or as [`Self::check_sizes`].
    pub(crate) fn check(&self, input: usize, weight: usize) {
        self.check_sizes();
        assert_eq!(input, self.batch * self.in_image(), "length of the input");
        assert_eq!(weight, self.groups * self.group_weight(), "length of the weight");
    }

    /// Compares the length of an output with the sizes.
    ///
    /// # Panics
    /// If they differ.
    pub(super) fn check_output(&self, output: usize) {
        assert_eq!(output, self.batch * self.out_image(), "length of the output");
    }
}
