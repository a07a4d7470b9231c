//! The closed set of networks and how one is asked for.

use std::fmt;

use burn::module::Module;
use burn::nn::BatchNorm;
use burn::tensor::{Device, Tensor};
use lowbit_quantizers::{LayerMut, LayerRole, QuantizationPolicy, QuantizedNetwork, QuantizerError};
use serde::{Deserialize, Serialize};

use crate::builder::ResidualLayout;
use crate::{Plan, PreResNet, ResNet, VggSmall};

/// A family of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// CIFAR-style residual network of depth 6n+2.
    #[serde(rename = "resnet")]
    ResNet,
    /// CIFAR-style pre-activation residual network of depth 6n+2.
    #[serde(rename = "preresnet")]
    PreResNet,
    /// VGG-small; its depth is fixed.
    VggSmall,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Family::ResNet => "resnet",
            Family::PreResNet => "preresnet",
            Family::VggSmall => "vgg-small",
        })
    }
}

/// Size of the images that a network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputShape {
    /// Channels.
    pub channels: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

/// A network's architecture, apart from its input, classes and precision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Family.
    pub family: Family,
    /// Number of weighted layers: 8, 14, 20, 32, 44, 56, 110, or any other 6n+2 from 8. Absent for VGG-small.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Multiplier of the number of channels.
    #[serde(default = "one")]
    pub width: f64,
    /// Stride of a residual network's first convolution, 1 or 2: 2 halves the size of every feature map. 1 for VGG-small.
    #[serde(default = "stride_one")]
    pub stem_stride: usize,
}

fn one() -> f64 {
    1.0
}

fn stride_one() -> usize {
    1
}

impl ModelConfig {
    /// A residual network of `depth` layers at width 1.
    pub fn new(family: Family, depth: usize) -> Self {
        Self { family, depth: Some(depth), width: 1.0, stem_stride: 1 }
    }

    /// VGG-small at width 1.
    pub fn vgg_small() -> Self {
        Self { family: Family::VggSmall, depth: None, width: 1.0, stem_stride: 1 }
    }

    /// The same with another number of channels.
    pub fn with_width(self, width: f64) -> Self {
        Self { width, ..self }
    }

    /// Shapes of the feature maps of an `input`, `[channels, height, width]` each, in the order of
    /// [`Network::tap_names`].
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined.
    pub fn tap_shapes(&self, input: InputShape) -> Result<Vec<[usize; 3]>, ModelError> {
        match (self.family, self.depth) {
            (Family::VggSmall, _) => Ok(VggSmall::tap_shapes(self.width, input)),
            (family, None) => Err(ModelError::NoDepth { family }),
            (_, Some(depth)) => {
                Ok(ResidualLayout::new(depth, self.width, self.stem_stride)?.tap_shapes(input))
            }
        }
    }

    /// The layers of the network in forward order, as in its [`Plan`].
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined.
    pub fn layers(&self) -> Result<Vec<LayerRef>, ModelError> {
        match (self.family, self.depth) {
            (Family::VggSmall, _) => Ok(VggSmall::layers()),
            (family, None) => Err(ModelError::NoDepth { family }),
            (_, Some(depth)) => Ok(ResidualLayout::new(depth, self.width, self.stem_stride)?.layers()),
        }
    }

    /// A network with weights drawn from `seed`.
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined, a layer cannot be quantized as asked, or a pattern of the
    /// policy matches no layer.
    pub fn init(
        &self,
        input: InputShape,
        n_classes: usize,
        policy: &QuantizationPolicy,
        seed: u64,
        device: &Device,
    ) -> Result<Model, ModelError> {
        let width = self.width;
        if !(width.is_finite() && width > 0.0 && width <= 64.0) {
            return Err(ModelError::Width { got: width });
        }
        if !(1..=2).contains(&self.stem_stride) || (self.family == Family::VggSmall && self.stem_stride != 1)
        {
            return Err(ModelError::StemStride { got: self.stem_stride });
        }
        let (network, plan) = match (self.family, self.depth) {
            (Family::VggSmall, Some(got)) => return Err(ModelError::FixedDepth { got }),
            (Family::VggSmall, None) => VggSmall::new(width, input, n_classes, policy, seed, device)
                .map(|(network, plan)| (Network::VggSmall(network), plan))?,
            (family, None) => return Err(ModelError::NoDepth { family }),
            (Family::ResNet, Some(depth)) => {
                let layout = ResidualLayout::new(depth, width, self.stem_stride)?;
                ResNet::new(layout, input, n_classes, policy, seed, device)
                    .map(|(network, plan)| (Network::ResNet(network), plan))?
            }
            (Family::PreResNet, Some(depth)) => {
                let layout = ResidualLayout::new(depth, width, self.stem_stride)?;
                PreResNet::new(layout, input, n_classes, policy, seed, device)
                    .map(|(network, plan)| (Network::PreResNet(network), plan))?
            }
        };
        let layers: Vec<String> = plan.layers.iter().map(|layer| layer.path.clone()).collect();
        match policy.unmatched_patterns(&layers).first() {
            Some(pattern) => Err(ModelError::UnmatchedPattern { pattern: (*pattern).into(), layers }),
            None => Ok(Model { network, plan }),
        }
    }
}

/// A layer of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRef {
    /// Its path.
    pub path: String,
    /// The part it plays.
    pub role: LayerRole,
}

impl LayerRef {
    pub(crate) fn new(path: impl Into<String>, role: LayerRole) -> Self {
        Self { path: path.into(), role }
    }
}

/// A network as it was built, with the plan of its layers.
#[derive(Clone, Debug)]
pub struct Model {
    /// The network.
    pub network: Network,
    /// What each of its layers is.
    pub plan: Plan,
}

/// A network that cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// A residual network has 6n+2 layers.
    #[error("depth {got} is not 6n+2 from 8 on: take 8, 14, 20, 32, 44, 56 or 110")]
    Depth {
        /// The depth asked for.
        got: usize,
    },
    /// A residual network without depth.
    #[error("{family} needs a depth: 8, 14, 20, 32, 44, 56 or 110")]
    NoDepth {
        /// The family.
        family: Family,
    },
    /// VGG-small with a depth.
    #[error("vgg-small has a fixed depth: remove depth = {got}")]
    FixedDepth {
        /// The depth asked for.
        got: usize,
    },
    /// A width that is no number of channels.
    #[error("width must be greater than 0 and at most 64, got {got}")]
    Width {
        /// The width asked for.
        got: f64,
    },
    /// A first stride that is not defined.
    #[error("stem_stride must be 1 or 2, and 1 for vgg-small, got {got}")]
    StemStride {
        /// The stride asked for.
        got: usize,
    },
    /// VGG-small halves its input three times.
    #[error("vgg-small needs images of at least 8x8 pixels, got {height}x{width}")]
    InputTooSmall {
        /// Height of the images.
        height: usize,
        /// Width of the images.
        width: usize,
    },
    /// A layer cannot be quantized as asked.
    #[error("layer {layer}: {source}")]
    Quantizer {
        /// Path of the layer.
        layer: String,
        /// What is wrong.
        source: QuantizerError,
    },
    /// A pattern of the policy that matches nothing.
    #[error("layer pattern {pattern:?} matches no layer; the layers are {}", layers.join(", "))]
    UnmatchedPattern {
        /// The pattern.
        pattern: String,
        /// Paths of all layers.
        layers: Vec<String>,
    },
}

/// What a forward pass yields.
#[derive(Clone, Debug)]
pub struct Features {
    /// Class scores, `[batch, n_classes]`.
    pub logits: Tensor<2>,
    /// Output of every stage, `[batch, channels, height, width]`, in the order of [`Network::tap_names`].
    pub taps: Vec<Tensor<4>>,
}

/// A network of any family.
#[derive(Module, Debug)]
pub enum Network {
    /// Residual network.
    ResNet(ResNet),
    /// Pre-activation residual network.
    PreResNet(PreResNet),
    /// VGG-small.
    VggSmall(VggSmall),
}

impl Network {
    /// Class scores. Shapes `[batch, channels, height, width]` to `[batch, n_classes]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.forward_features(images).logits
    }

    /// Class scores and feature maps of `images`, `[batch, channels, height, width]`.
    pub fn forward_features(&self, images: Tensor<4>) -> Features {
        match self {
            Self::ResNet(network) => network.forward_features(images),
            Self::PreResNet(network) => network.forward_features(images),
            Self::VggSmall(network) => network.forward_features(images),
        }
    }

    /// Calls `visit` with every BatchNorm layer.
    pub fn for_each_norm(&mut self, visit: &mut dyn FnMut(&mut BatchNorm)) {
        match self {
            Self::ResNet(network) => network.for_each_norm(visit),
            Self::PreResNet(network) => network.for_each_norm(visit),
            Self::VggSmall(network) => network.for_each_norm(visit),
        }
    }

    /// Names of the feature maps in [`Features::taps`]: the output of every stage.
    pub fn tap_names(&self) -> [&'static str; 3] {
        ["stages.0", "stages.1", "stages.2"]
    }
}

impl QuantizedNetwork for Network {
    fn for_each_layer(&mut self, visit: &mut dyn FnMut(&str, LayerMut<'_>)) {
        match self {
            Self::ResNet(network) => network.for_each_layer(visit),
            Self::PreResNet(network) => network.for_each_layer(visit),
            Self::VggSmall(network) => network.for_each_layer(visit),
        }
    }
}
