//! Pre-activation residual network, He et al. 2016b (arXiv 1603.05027), CIFAR layout of depth 6n+2.

use burn::module::Module;
use burn::nn::BatchNorm;
use burn::tensor::{Device, Tensor};
use lowbit_kernels::Activation;
use lowbit_quantizers::{
    LayerMut, LayerRole, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantizationPolicy, QuantizedNetwork,
};
use rand::Rng;

use crate::builder::{Builder, builder, global_average_pool};
use crate::layout::{BlockSpec, ResidualLayout};
use crate::norm::{norm_relu_conv, norm_relu_convs, norm_then};
use crate::{Features, InputShape, ModelError};

/// The network: 3x3 stem, three stages of [`PreActivationBlock`]s, BatchNorm, ReLU, average pool, classifier.
#[derive(Module, Debug)]
pub struct PreResNet {
    stem: QuantConv2d,
    stages: Vec<Vec<PreActivationBlock>>,
    norm: BatchNorm,
    fc: QuantLinear,
}

/// BN, ReLU, quantized conv, twice; where the shape changes, the shortcut is a 1x1 conv of the activated input.
#[derive(Module, Debug)]
pub struct PreActivationBlock {
    norm1: BatchNorm,
    conv1: QuantConv2d,
    norm2: BatchNorm,
    conv2: QuantConv2d,
    shortcut: Option<QuantConv2d>,
}

impl PreResNet {
    pub(crate) fn new(
        layout: ResidualLayout,
        input: InputShape,
        n_classes: usize,
        policy: &QuantizationPolicy,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut build = builder(policy, device, seed);
        let stem = layout.stem(input.channels);
        let network = Self {
            stem: build.conv("stem", LayerRole::First, stem)?,
            stages: layout.stages(input, |path, spec| PreActivationBlock::new(&mut build, path, spec))?,
            norm: build.norm(layout.final_channels()),
            fc: build.linear("fc", layout.final_channels(), n_classes)?,
        };
        Ok(network)
    }

    /// Logits and the output of every stage.
    pub fn forward_features(&self, images: Tensor<4>) -> Features {
        let mut x = self.stem.forward(images);
        let mut taps = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            x = stage.iter().fold(x, |x, block| block.forward(x));
            taps.push(x.clone());
        }
        let pooled = global_average_pool(norm_then(&self.norm, x, Activation::Relu));
        Features { logits: self.fc.forward(pooled), taps }
    }

    /// Calls `visit` with every BatchNorm layer.
    pub fn for_each_norm(&mut self, visit: &mut dyn FnMut(&mut BatchNorm)) {
        for block in self.stages.iter_mut().flatten() {
            visit(&mut block.norm1);
            visit(&mut block.norm2);
        }
        visit(&mut self.norm);
    }
}

impl PreActivationBlock {
    fn new<R: Rng>(build: &mut Builder<'_, R>, path: &str, spec: BlockSpec) -> Result<Self, ModelError> {
        let BlockSpec { in_channels, out_channels, stride, .. } = spec;
        let conv1 = QuantConv2dConfig::new([in_channels, out_channels], 3).with_stride(stride);
        let conv2 = QuantConv2dConfig::new([out_channels, out_channels], 3);
        let shortcut = QuantConv2dConfig::new([in_channels, out_channels], 1).with_stride(stride);
        Ok(Self {
            norm1: build.norm(in_channels),
            conv1: build.conv(&format!("{path}.conv1"), LayerRole::Hidden, conv1)?,
            norm2: build.norm(out_channels),
            conv2: build.conv(&format!("{path}.conv2"), LayerRole::Hidden, conv2)?,
            shortcut: match spec.keeps_shape() {
                true => None,
                false => Some(build.conv(&format!("{path}.shortcut"), LayerRole::Shortcut, shortcut)?),
            },
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (hidden, residual) = match &self.shortcut {
            Some(shortcut) => norm_relu_convs(&self.norm1, x, [&self.conv1, shortcut]).into(),
            None => (norm_relu_conv(&self.norm1, x.clone(), &self.conv1), x),
        };
        norm_relu_conv(&self.norm2, hidden, &self.conv2) + residual
    }
}

impl QuantizedNetwork for PreResNet {
    fn for_each_layer(&mut self, visit: &mut dyn FnMut(&str, LayerMut<'_>)) {
        visit("stem", LayerMut::Conv(&mut self.stem));
        for (i, stage) in self.stages.iter_mut().enumerate() {
            for (j, block) in stage.iter_mut().enumerate() {
                visit(&format!("stages.{i}.{j}.conv1"), LayerMut::Conv(&mut block.conv1));
                visit(&format!("stages.{i}.{j}.conv2"), LayerMut::Conv(&mut block.conv2));
                if let Some(shortcut) = &mut block.shortcut {
                    visit(&format!("stages.{i}.{j}.shortcut"), LayerMut::Conv(shortcut));
                }
            }
        }
        visit("fc", LayerMut::Linear(&mut self.fc));
    }
}
