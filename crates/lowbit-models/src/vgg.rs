//! VGG-small: the CIFAR network of the binary and low-bit literature (as in LQ-Nets, Zhang et al. 2018).

use burn::module::Module;
use burn::nn::BatchNorm;
use burn::tensor::activation::relu;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor};
use lowbit_kernels::Activation;
use lowbit_quantizers::{
    LayerMut, LayerRole, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantizationPolicy, QuantizedNetwork,
};

use crate::builder::{builder, scaled};
use crate::norm::norm_then;
use crate::plan::NetworkShapes;
use crate::{Features, InputShape, ModelError};

/// Channels of the three stages at width 1.
const STAGE_CHANNELS: [usize; 3] = [128, 256, 512];

/// Three stages of two 3x3 convolutions with BatchNorm and ReLU, each stage ending in a 2x2 max pool, and one
/// classifier: 128-128-M-256-256-M-512-512-M-FC.
#[derive(Module, Debug)]
pub struct VggSmall {
    convs: Vec<QuantConv2d>,
    norms: Vec<BatchNorm>,
    fc: QuantLinear,
}

/// Channels of the convolutions.
fn conv_channels(width: f64) -> impl Iterator<Item = usize> {
    STAGE_CHANNELS.into_iter().flat_map(move |channels| [scaled(channels, width); 2])
}

/// Features that the classifier sees: each stage halves the image.
fn n_features(width: f64, input: InputShape) -> usize {
    scaled(STAGE_CHANNELS[2], width) * (input.height / 8) * (input.width / 8)
}

impl VggSmall {
    pub(crate) fn new(
        width: f64,
        input: InputShape,
        n_classes: usize,
        policy: &QuantizationPolicy,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut build = builder(policy, device, seed);
        let mut in_channels = input.channels;
        let (mut convs, mut norms) = (Vec::new(), Vec::new());
        for out_channels in conv_channels(width) {
            let role = if convs.is_empty() { LayerRole::First } else { LayerRole::Hidden };
            let config = QuantConv2dConfig::new([in_channels, out_channels], 3);
            convs.push(build.conv(&format!("convs.{}", convs.len()), role, config)?);
            norms.push(build.norm(out_channels));
            in_channels = out_channels;
        }
        Ok(Self { convs, norms, fc: build.linear("fc", n_features(width, input), n_classes)? })
    }

    /// What a network is made of.
    pub(crate) fn shapes(width: f64, input: InputShape, n_classes: usize) -> NetworkShapes {
        let mut shapes = NetworkShapes::default();
        let mut in_channels = input.channels;
        for (i, out_channels) in conv_channels(width).enumerate() {
            let role = if i == 0 { LayerRole::First } else { LayerRole::Hidden };
            let config = QuantConv2dConfig::new([in_channels, out_channels], 3);
            let size = [input.height, input.width].map(|side| side >> (i / 2));
            shapes.push_conv(format!("convs.{i}"), role, config, size);
            shapes.push_norm(out_channels);
            in_channels = out_channels;
        }
        shapes.push_linear("fc", n_features(width, input), n_classes);
        shapes
    }

    pub(crate) fn tap_shapes(width: f64, input: InputShape) -> Vec<[usize; 3]> {
        let shape = |stage: usize| {
            [scaled(STAGE_CHANNELS[stage], width), input.height >> (stage + 1), input.width >> (stage + 1)]
        };
        (0..STAGE_CHANNELS.len()).map(shape).collect()
    }

    /// Logits and the output of every stage.
    pub fn forward_features(&self, images: Tensor<4>) -> Features {
        let mut x = images;
        let mut taps = Vec::with_capacity(STAGE_CHANNELS.len());
        for (i, (conv, norm)) in self.convs.iter().zip(&self.norms).enumerate() {
            x = norm_then(norm, conv.forward(x), Activation::Identity);
            if i % 2 == 1 {
                // The maximum commutes with the ReLU, which has a quarter of the work after it.
                x = max_pool2d(x, MaxPoolOptions::new([2, 2]));
            }
            x = relu(x);
            if i % 2 == 1 {
                taps.push(x.clone());
            }
        }
        Features { logits: self.fc.forward(x.flatten(1, 3)), taps }
    }

    /// Calls `visit` with every BatchNorm layer.
    pub fn for_each_norm(&mut self, visit: &mut dyn FnMut(&mut BatchNorm)) {
        self.norms.iter_mut().for_each(visit);
    }
}

impl QuantizedNetwork for VggSmall {
    fn for_each_layer(&mut self, visit: &mut dyn FnMut(&str, LayerMut<'_>)) {
        for (i, conv) in self.convs.iter_mut().enumerate() {
            visit(&format!("convs.{i}"), LayerMut::Conv(conv));
        }
        visit("fc", LayerMut::Linear(&mut self.fc));
    }
}
