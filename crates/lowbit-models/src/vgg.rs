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
use crate::{Features, InputShape, LayerRef, ModelError, Plan};

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

impl VggSmall {
    pub(crate) fn new(
        width: f64,
        input: InputShape,
        n_classes: usize,
        policy: &QuantizationPolicy,
        seed: u64,
        device: &Device,
    ) -> Result<(Self, Plan), ModelError> {
        if input.height < 8 || input.width < 8 {
            return Err(ModelError::InputTooSmall { height: input.height, width: input.width });
        }
        let mut build = builder(policy, device, seed);
        let mut in_channels = input.channels;
        let (mut convs, mut norms) = (Vec::new(), Vec::new());
        let size = |i: usize| [input.height, input.width].map(|side| side >> (i / 2));
        for out_channels in STAGE_CHANNELS.into_iter().flat_map(|channels| [scaled(channels, width); 2]) {
            let role = if convs.is_empty() { LayerRole::First } else { LayerRole::Hidden };
            let config = QuantConv2dConfig::new([in_channels, out_channels], 3);
            convs.push(build.conv(&format!("convs.{}", convs.len()), role, config, size(convs.len()))?);
            norms.push(build.norm(out_channels));
            in_channels = out_channels;
        }
        let features = in_channels * (input.height / 8) * (input.width / 8);
        let network = Self { convs, norms, fc: build.linear("fc", features, n_classes)? };
        Ok((network, build.finish()))
    }

    pub(crate) fn layers() -> Vec<LayerRef> {
        let role = |i: usize| if i == 0 { LayerRole::First } else { LayerRole::Hidden };
        let convs = (0..2 * STAGE_CHANNELS.len()).map(|i| LayerRef::new(format!("convs.{i}"), role(i)));
        convs.chain([LayerRef::new("fc", LayerRole::Last)]).collect()
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
