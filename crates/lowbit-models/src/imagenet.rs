//! Residual networks for images of 224x224 pixels: ResNet, He et al. 2016 (arXiv 1512.03385), table 1, and PreResNet,
//! its pre-activation form, He et al. 2016b (arXiv 1603.05027).

use burn::module::Module;
use burn::nn::BatchNorm;
use burn::tensor::activation::relu;
use burn::tensor::module::max_pool2d;
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor};
use lowbit_kernels::Activation;
use lowbit_quantizers::{
    LayerMut, LayerRole, QuantConv2d, QuantLinear, QuantizationPolicy, QuantizedNetwork,
};
use rand::Rng;

use crate::builder::{Builder, builder, global_average_pool};
use crate::layout::{BlockSpec, ResidualLayout};
use crate::norm::{norm_relu_conv, norm_relu_convs, norm_then};
use crate::{Family, Features, InputShape, Layout, ModelError};

/// The network: 7x7 stem, 3x3 max pool of stride 2, four stages of [`ImageNetBlock`]s, average pool, classifier. ResNet
/// has BatchNorm and ReLU after the stem, PreResNet before the average pool.
///
/// The modules have torchvision's names, so that layers and parameters have its paths ("layer2.0.downsample.0"), except
/// that BatchNorm's `gamma` and `beta` are `weight` and `bias` there.
#[derive(Module, Debug)]
pub struct ImageNetResNet {
    conv1: QuantConv2d,
    bn1: Option<BatchNorm>,
    layer1: Vec<ImageNetBlock>,
    layer2: Vec<ImageNetBlock>,
    layer3: Vec<ImageNetBlock>,
    layer4: Vec<ImageNetBlock>,
    norm: Option<BatchNorm>,
    fc: QuantLinear,
}

/// Two or, in a bottleneck, three quantized convolutions and a shortcut, which is a 1x1 convolution where the shape
/// changes.
///
/// In ResNet a BatchNorm follows each convolution, that of the shortcut too, a ReLU each but the last, and the sum. In
/// PreResNet BatchNorm and ReLU precede each convolution, and the first ones that of the shortcut too.
#[derive(Module, Debug)]
pub struct ImageNetBlock {
    conv1: QuantConv2d,
    bn1: BatchNorm,
    conv2: QuantConv2d,
    bn2: BatchNorm,
    conv3: Option<QuantConv2d>,
    bn3: Option<BatchNorm>,
    downsample: Option<(QuantConv2d, Option<BatchNorm>)>,
    #[module(skip)]
    is_pre_activation: bool,
}

impl ImageNetResNet {
    pub(crate) fn new(
        layout: ResidualLayout,
        input: InputShape,
        n_classes: usize,
        policy: &QuantizationPolicy,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let mut build = builder(policy, device, seed);
        let is_pre_activation = layout.family == Family::PreResNet;
        let stem = layout.stem(input.channels);
        let conv1 = build.conv("conv1", LayerRole::First, stem)?;
        let bn1 = (!is_pre_activation).then(|| build.norm(layout.stem_channels));
        let stages = layout
            .stages(input, |path, spec| ImageNetBlock::new(&mut build, path, spec, is_pre_activation))?;
        let [layer1, layer2, layer3, layer4] =
            stages.try_into().expect("invariant: the layout has four stages");
        let norm = is_pre_activation.then(|| build.norm(layout.final_channels()));
        let fc = build.linear("fc", layout.final_channels(), n_classes)?;
        Ok(Self { conv1, bn1, layer1, layer2, layer3, layer4, norm, fc })
    }

    fn stages(&self) -> [&Vec<ImageNetBlock>; 4] {
        [&self.layer1, &self.layer2, &self.layer3, &self.layer4]
    }

    fn stages_mut(&mut self) -> [&mut Vec<ImageNetBlock>; 4] {
        [&mut self.layer1, &mut self.layer2, &mut self.layer3, &mut self.layer4]
    }

    /// Logits and the output of every stage.
    pub fn forward_features(&self, images: Tensor<4>) -> Features {
        let mut x = self.conv1.forward(images);
        if let Some(norm) = &self.bn1 {
            x = norm_then(norm, x, Activation::Relu);
        }
        x = max_pool2d(x, MaxPoolOptions::new([3, 3]).with_stride([2, 2]).with_padding([1, 1]));
        let mut taps = Vec::with_capacity(4);
        for stage in self.stages() {
            x = stage.iter().fold(x, |x, block| block.forward(x));
            taps.push(x.clone());
        }
        if let Some(norm) = &self.norm {
            x = norm_then(norm, x, Activation::Relu);
        }
        Features { logits: self.fc.forward(global_average_pool(x)), taps }
    }

    /// Calls `visit` with every BatchNorm layer.
    pub fn for_each_norm(&mut self, visit: &mut dyn FnMut(&mut BatchNorm)) {
        self.bn1.iter_mut().for_each(&mut *visit);
        for block in self.stages_mut().into_iter().flatten() {
            visit(&mut block.bn1);
            visit(&mut block.bn2);
            block.bn3.iter_mut().for_each(&mut *visit);
            block.downsample.iter_mut().filter_map(|(_, norm)| norm.as_mut()).for_each(&mut *visit);
        }
        self.norm.iter_mut().for_each(visit);
    }
}

impl ImageNetBlock {
    fn new<R: Rng>(
        build: &mut Builder<'_, R>,
        path: &str,
        spec: BlockSpec,
        is_pre_activation: bool,
    ) -> Result<Self, ModelError> {
        let mut units = Vec::new();
        for (i, (config, _)) in spec.convs().into_iter().enumerate() {
            let conv = build.conv(&format!("{path}.conv{}", i + 1), LayerRole::Hidden, config)?;
            let channels = if is_pre_activation { config.in_channels } else { config.out_channels };
            units.push((conv, build.norm(channels)));
        }
        let downsample = match spec.shortcut() {
            Some(config) => {
                let path = format!("{path}.downsample.0");
                let conv = build.conv(&path, LayerRole::Shortcut, config)?;
                Some((conv, (!is_pre_activation).then(|| build.norm(spec.out_channels))))
            }
            None => None,
        };
        let mut units = units.into_iter();
        let mut next = || units.next().expect("invariant: a block has two convolutions");
        let ((conv1, bn1), (conv2, bn2)) = (next(), next());
        let (conv3, bn3) = units.next().unzip();
        Ok(Self { conv1, bn1, conv2, bn2, conv3, bn3, downsample, is_pre_activation })
    }

    /// The convolutions in forward order, each with the BatchNorm after or before it.
    fn units(&self) -> impl Iterator<Item = (&QuantConv2d, &BatchNorm)> {
        let third = self.conv3.as_ref().zip(self.bn3.as_ref());
        [(&self.conv1, &self.bn1), (&self.conv2, &self.bn2)].into_iter().chain(third)
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        match self.is_pre_activation {
            true => self.forward_pre_activation(x),
            false => self.forward_post_activation(x),
        }
    }

    fn forward_post_activation(&self, x: Tensor<4>) -> Tensor<4> {
        let (hidden, residual) = match &self.downsample {
            Some((conv, Some(norm))) => {
                let [hidden, residual] = QuantConv2d::forward_both([&self.conv1, conv], x);
                (hidden, norm_then(norm, residual, Activation::Identity))
            }
            _ => (self.conv1.forward(x.clone()), x),
        };
        let between = self.units().zip(self.units().skip(1)).map(|((_, norm), (conv, _))| (norm, conv));
        let hidden = between.fold(hidden, |hidden, (norm, conv)| norm_relu_conv(norm, hidden, conv));
        let (_, last) = self.units().last().expect("invariant: a block has two convolutions");
        relu(norm_then(last, hidden, Activation::Identity) + residual)
    }

    fn forward_pre_activation(&self, x: Tensor<4>) -> Tensor<4> {
        let (hidden, residual) = match &self.downsample {
            Some((shortcut, _)) => norm_relu_convs(&self.bn1, x, [&self.conv1, shortcut]).into(),
            None => (norm_relu_conv(&self.bn1, x.clone(), &self.conv1), x),
        };
        let rest = self.units().skip(1);
        rest.fold(hidden, |hidden, (conv, norm)| norm_relu_conv(norm, hidden, conv)) + residual
    }
}

impl QuantizedNetwork for ImageNetResNet {
    fn for_each_layer(&mut self, visit: &mut dyn FnMut(&str, LayerMut<'_>)) {
        visit("conv1", LayerMut::Conv(&mut self.conv1));
        for (stage, blocks) in Layout::ImageNet.stage_names().iter().zip(self.stages_mut()) {
            for (i, block) in blocks.iter_mut().enumerate() {
                visit(&format!("{stage}.{i}.conv1"), LayerMut::Conv(&mut block.conv1));
                visit(&format!("{stage}.{i}.conv2"), LayerMut::Conv(&mut block.conv2));
                if let Some(conv3) = &mut block.conv3 {
                    visit(&format!("{stage}.{i}.conv3"), LayerMut::Conv(conv3));
                }
                if let Some((conv, _)) = &mut block.downsample {
                    visit(&format!("{stage}.{i}.downsample.0"), LayerMut::Conv(conv));
                }
            }
        }
        visit("fc", LayerMut::Linear(&mut self.fc));
    }
}
