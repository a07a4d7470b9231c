//! Residual network, He et al. 2016 (arXiv 1512.03385), CIFAR layout of depth 6n+2.

use burn::module::Module;
use burn::nn::BatchNorm;
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use lowbit_kernels::Activation;
use lowbit_quantizers::{
    LayerMut, LayerRole, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantizationPolicy, QuantizedNetwork,
};
use rand::Rng;

use crate::builder::{Builder, builder, global_average_pool};
use crate::layout::{BlockSpec, ResidualLayout};
use crate::norm::{norm_relu_conv, norm_then};
use crate::{Features, InputShape, ModelError};

/// The network: 3x3 stem with BatchNorm and ReLU, three stages of [`BasicBlock`]s, average pool, classifier.
///
/// The shortcuts are 1x1 projections with BatchNorm (option B of the paper), as in the networks of Zhuang et al.; the
/// CIFAR networks of He et al. have parameter-free shortcuts (option A).
#[derive(Module, Debug)]
pub struct ResNet {
    stem: QuantConv2d,
    norm: BatchNorm,
    stages: Vec<Vec<BasicBlock>>,
    fc: QuantLinear,
}

/// Quantized conv, BN, ReLU, quantized conv, BN; the sum with the shortcut passes a ReLU.
#[derive(Module, Debug)]
pub struct BasicBlock {
    conv1: QuantConv2d,
    norm1: BatchNorm,
    conv2: QuantConv2d,
    norm2: BatchNorm,
    shortcut: Option<QuantConv2d>,
    shortcut_norm: Option<BatchNorm>,
}

impl ResNet {
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
            norm: build.norm(layout.stem_channels),
            stages: layout.stages(input, |path, spec| BasicBlock::new(&mut build, path, spec))?,
            fc: build.linear("fc", layout.final_channels(), n_classes)?,
        };
        Ok(network)
    }

    /// Logits and the output of every stage.
    pub fn forward_features(&self, images: Tensor<4>) -> Features {
        let mut x = norm_then(&self.norm, self.stem.forward(images), Activation::Relu);
        let mut taps = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            x = stage.iter().fold(x, |x, block| block.forward(x));
            taps.push(x.clone());
        }
        Features { logits: self.fc.forward(global_average_pool(x)), taps }
    }

    /// Calls `visit` with every BatchNorm layer.
    pub fn for_each_norm(&mut self, visit: &mut dyn FnMut(&mut BatchNorm)) {
        visit(&mut self.norm);
        for block in self.stages.iter_mut().flatten() {
            visit(&mut block.norm1);
            visit(&mut block.norm2);
            block.shortcut_norm.iter_mut().for_each(&mut *visit);
        }
    }
}

impl BasicBlock {
    fn new<R: Rng>(build: &mut Builder<'_, R>, path: &str, spec: BlockSpec) -> Result<Self, ModelError> {
        let BlockSpec { in_channels, out_channels, stride, .. } = spec;
        let conv1 = QuantConv2dConfig::new([in_channels, out_channels], 3).with_stride(stride);
        let conv2 = QuantConv2dConfig::new([out_channels, out_channels], 3);
        let shortcut = QuantConv2dConfig::new([in_channels, out_channels], 1).with_stride(stride);
        Ok(Self {
            conv1: build.conv(&format!("{path}.conv1"), LayerRole::Hidden, conv1)?,
            norm1: build.norm(out_channels),
            conv2: build.conv(&format!("{path}.conv2"), LayerRole::Hidden, conv2)?,
            norm2: build.norm(out_channels),
            shortcut: match spec.keeps_shape() {
                true => None,
                false => Some(build.conv(&format!("{path}.shortcut"), LayerRole::Shortcut, shortcut)?),
            },
            shortcut_norm: (!spec.keeps_shape()).then(|| build.norm(out_channels)),
        })
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (hidden, residual) = match (&self.shortcut, &self.shortcut_norm) {
            (Some(shortcut), Some(norm)) => {
                let [hidden, residual] = QuantConv2d::forward_both([&self.conv1, shortcut], x);
                (hidden, norm_then(norm, residual, Activation::Identity))
            }
            _ => (self.conv1.forward(x.clone()), x),
        };
        let hidden = norm_relu_conv(&self.norm1, hidden, &self.conv2);
        relu(norm_then(&self.norm2, hidden, Activation::Identity) + residual)
    }
}

impl QuantizedNetwork for ResNet {
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
