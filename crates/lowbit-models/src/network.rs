//! The closed set of networks and how one is asked for.

use std::fmt;

use burn::module::Module;
use burn::nn::BatchNorm;
use burn::tensor::{Device, Tensor};
use lowbit_quantizers::{LayerMut, LayerRole, QuantizationPolicy, QuantizedNetwork, QuantizerError};
use serde::{Deserialize, Serialize};

use crate::layout::ResidualLayout;
use crate::plan::NetworkShapes;
use crate::{ImageNetResNet, Layout, Plan, PreResNet, ResNet, VggSmall};

/// A family of networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// Residual network.
    #[serde(rename = "resnet")]
    ResNet,
    /// Pre-activation residual network.
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
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Family.
    pub family: Family,
    /// Arrangement of a residual network; the default for VGG-small.
    pub layout: Layout,
    /// Number of weighted layers: 8, 14, 20, 32, 44, 56, 110, or any other 6n+2 from 8 to 9998; in the ImageNet layout 18,
    /// 34 or 50. Absent for VGG-small.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Multiplier of the number of channels.
    pub width: f64,
    /// Stride of a residual network's first convolution, 1 or 2: 2 halves the size of every feature map. 1 for VGG-small.
    pub stem_stride: usize,
}

impl ModelConfig {
    /// A CIFAR-style residual network of `depth` layers at width 1.
    pub fn new(family: Family, depth: usize) -> Self {
        Self::of(family, Layout::Cifar, Some(depth))
    }

    /// An ImageNet-style residual network of 18, 34 or 50 layers at width 1.
    pub fn imagenet(family: Family, depth: usize) -> Self {
        Self::of(family, Layout::ImageNet, Some(depth))
    }

    /// VGG-small at width 1.
    pub fn vgg_small() -> Self {
        Self::of(Family::VggSmall, Layout::default(), None)
    }

    fn of(family: Family, layout: Layout, depth: Option<usize>) -> Self {
        Self { family, layout, depth, width: 1.0, stem_stride: layout.default_stem_stride() }
    }

    /// The same with another number of channels.
    pub fn with_width(self, width: f64) -> Self {
        Self { width, ..self }
    }

    /// Names of the feature maps: the paths of the stages, whose output they are.
    pub fn tap_names(&self) -> &'static [&'static str] {
        self.layout.stage_names()
    }

    /// Shapes of the feature maps of an `input`, `[channels, height, width]` each, in the order of
    /// [`ModelConfig::tap_names`].
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined.
    pub fn tap_shapes(&self, input: InputShape) -> Result<Vec<[usize; 3]>, ModelError> {
        match self.family {
            Family::VggSmall => Ok(VggSmall::tap_shapes(self.width, input)),
            _ => Ok(ResidualLayout::new(self)?.tap_shapes(input)),
        }
    }

    /// The layers of the network in forward order, as in its [`Plan`].
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined.
    pub fn layers(&self) -> Result<Vec<LayerRef>, ModelError> {
        // Which layers there are depends neither on the size of the images nor on the classes.
        let shapes = self.shapes(InputShape { channels: 1, height: 1, width: 1 }, 1)?;
        Ok(shapes.layers.into_iter().map(|layer| LayerRef { path: layer.path, role: layer.role }).collect())
    }

    fn shapes(&self, input: InputShape, n_classes: usize) -> Result<NetworkShapes, ModelError> {
        match self.family {
            Family::VggSmall => Ok(VggSmall::shapes(self.width, input, n_classes)),
            _ => Ok(ResidualLayout::new(self)?.shapes(input, n_classes)),
        }
    }

    /// The precision of every layer of the network, which takes neither a device nor memory for its weights.
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined, a layer cannot be quantized as asked, or a pattern of the
    /// policy matches no layer.
    pub fn plan(
        &self,
        input: InputShape,
        n_classes: usize,
        policy: &QuantizationPolicy,
    ) -> Result<Plan, ModelError> {
        self.check(input, n_classes)?;
        let plan = Plan::new(self.shapes(input, n_classes)?, policy)?;
        let layers: Vec<String> = plan.layers.iter().map(|layer| layer.path.clone()).collect();
        match policy.unmatched_patterns(&layers).first() {
            Some(pattern) => Err(ModelError::UnmatchedPattern { pattern: (*pattern).into(), layers }),
            None => Ok(plan),
        }
    }

    /// Refuses an architecture that is not defined.
    fn check(&self, input: InputShape, n_classes: usize) -> Result<(), ModelError> {
        let Self { family, layout, depth, width, stem_stride } = *self;
        if [n_classes, input.channels, input.height, input.width].contains(&0) {
            return Err(ModelError::Empty { n_classes, input });
        }
        if !(width.is_finite() && width > 0.0 && width <= 64.0) {
            return Err(ModelError::Width { got: width });
        }
        if !(1..=2).contains(&stem_stride) || (family == Family::VggSmall && stem_stride != 1) {
            return Err(ModelError::StemStride { got: stem_stride });
        }
        if family != Family::VggSmall {
            return Ok(());
        }
        let InputShape { height, width, .. } = input;
        match depth {
            Some(got) => Err(ModelError::FixedDepth { got }),
            None if layout != Layout::default() => Err(ModelError::FixedLayout { got: layout }),
            None if height < 8 || width < 8 => Err(ModelError::InputTooSmall { height, width }),
            None => Ok(()),
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
        let plan = self.plan(input, n_classes, policy)?;
        let network = match (self.family, self.layout) {
            (Family::VggSmall, _) => {
                Network::VggSmall(VggSmall::new(self.width, input, n_classes, policy, seed, device)?)
            }
            (Family::ResNet | Family::PreResNet, Layout::ImageNet) => {
                let layout = ResidualLayout::new(self)?;
                Network::ImageNet(ImageNetResNet::new(layout, input, n_classes, policy, seed, device)?)
            }
            (Family::ResNet, Layout::Cifar) => {
                let layout = ResidualLayout::new(self)?;
                Network::ResNet(ResNet::new(layout, input, n_classes, policy, seed, device)?)
            }
            (Family::PreResNet, Layout::Cifar) => {
                let layout = ResidualLayout::new(self)?;
                Network::PreResNet(PreResNet::new(layout, input, n_classes, policy, seed, device)?)
            }
        };
        Ok(Model { network, plan })
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
    /// A depth that the layout does not define.
    #[error("no depth {got} in the {layout} layout; it has {}", layout.depths())]
    Depth {
        /// The layout.
        layout: Layout,
        /// The depth asked for.
        got: usize,
    },
    /// A residual network without depth.
    #[error("{family} needs a depth of {}", layout.depths())]
    NoDepth {
        /// The family.
        family: Family,
        /// The layout.
        layout: Layout,
    },
    /// VGG-small with a depth.
    #[error("vgg-small has a fixed depth: remove depth = {got}")]
    FixedDepth {
        /// The depth asked for.
        got: usize,
    },
    /// VGG-small with the layout of another network.
    #[error("vgg-small has a fixed layout: remove layout = {:?}", got.to_string())]
    FixedLayout {
        /// The layout asked for.
        got: Layout,
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
    /// Images without pixels, or no class.
    #[error(
        "a network needs at least 1 class, channel and pixel, got {n_classes} classes and images of {}x{}x{} (channels, height, width)",
        input.channels, input.height, input.width
    )]
    Empty {
        /// The classes asked for.
        n_classes: usize,
        /// The images.
        input: InputShape,
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
#[expect(clippy::large_enum_variant, reason = "a program holds a few networks, whose tensors are elsewhere")]
pub enum Network {
    /// CIFAR-style residual network.
    ResNet(ResNet),
    /// CIFAR-style pre-activation residual network.
    PreResNet(PreResNet),
    /// ImageNet-style residual network of either kind.
    ImageNet(ImageNetResNet),
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
            Self::ImageNet(network) => network.forward_features(images),
            Self::VggSmall(network) => network.forward_features(images),
        }
    }

    /// Calls `visit` with every BatchNorm layer.
    pub fn for_each_norm(&mut self, visit: &mut dyn FnMut(&mut BatchNorm)) {
        match self {
            Self::ResNet(network) => network.for_each_norm(visit),
            Self::PreResNet(network) => network.for_each_norm(visit),
            Self::ImageNet(network) => network.for_each_norm(visit),
            Self::VggSmall(network) => network.for_each_norm(visit),
        }
    }

    /// Names of the feature maps in [`Features::taps`]: the output of every stage.
    pub fn tap_names(&self) -> &'static [&'static str] {
        match self {
            Self::ImageNet(_) => Layout::ImageNet.stage_names(),
            Self::ResNet(_) | Self::PreResNet(_) | Self::VggSmall(_) => Layout::Cifar.stage_names(),
        }
    }
}

impl QuantizedNetwork for Network {
    fn for_each_layer(&mut self, visit: &mut dyn FnMut(&str, LayerMut<'_>)) {
        match self {
            Self::ResNet(network) => network.for_each_layer(visit),
            Self::PreResNet(network) => network.for_each_layer(visit),
            Self::ImageNet(network) => network.for_each_layer(visit),
            Self::VggSmall(network) => network.for_each_layer(visit),
        }
    }
}
