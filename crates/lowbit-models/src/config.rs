//! How a network is asked for, and what is known of it before it is built.

use std::fmt;

use burn::tensor::Device;
use lowbit_core::graph::{LayerRole, Op};
use lowbit_core::{Graph, GraphError};
use lowbit_quantizers::QuantizationPolicy;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Footprint, Kept, ModelError, Network, Plan};

/// A family of networks.
///
/// By serde it is its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// Residual network.
    ResNet,
    /// Pre-activation residual network.
    PreResNet,
    /// VGG-small; its depth is fixed.
    VggSmall,
    /// AlexNet; its depth is fixed.
    AlexNet,
    /// MobileNetV2; its depth is fixed.
    MobileNetV2,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::PreResNet, Self::ResNet, Self::VggSmall, Self::AlexNet, Self::MobileNetV2];

    /// Its name, as in recipes.
    pub fn name(self) -> &'static str {
        self.settings().name
    }
}

impl Serialize for Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Family {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let family = Self::ALL.into_iter().find(|family| family.name() == name);
        let names = || Self::ALL.map(Self::name).join(", ");
        family.ok_or_else(|| D::Error::custom(format!("no family {name:?}, expected one of {}", names())))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a network is arranged. Every layout takes images of any size that its pools and strides leave something of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// For small images. Residual networks (He et al. 2016, section 4.2) have a 3x3 stem and three stages of 16, 32 and 64
    /// channels, of depth 6n+2.
    #[default]
    Cifar,
    /// For images of 224x224 pixels. Residual networks (He et al. 2016, table 1) have a 7x7 stem, a 3x3 max pool of stride 2
    /// and four stages of 64, 128, 256 and 512 channels, of depth 18 or 34; at depth 50 and 101 the blocks are bottlenecks, of four
    /// times as many output channels. Layers have torchvision's names.
    ImageNet,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Layout::Cifar => "cifar",
            Layout::ImageNet => "imagenet",
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

impl InputShape {
    /// `[channels, height, width]`.
    pub fn dims(self) -> [usize; 3] {
        [self.channels, self.height, self.width]
    }
}

/// A network's architecture, apart from its input, classes and precision.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelConfig {
    /// Family.
    pub family: Family,
    /// Arrangement; the default for VGG-small, which has one only.
    pub layout: Layout,
    /// Number of weighted layers of a residual network: 8, 14, 20, 32, 44, 56, 110, or any other 6n+2 from 8 to 9998; in the
    /// ImageNet layout 18, 34, 50 or 101. Absent for other families.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<usize>,
    /// Multiplier of the number of channels.
    pub width: f64,
    /// Stride of the first convolution, one of [`Settings::stem_strides`](crate::Settings): 2 instead of 1 halves the size of
    /// every feature map.
    pub stem_stride: usize,
    /// Whether AlexNet has BatchNorm; absent is with. Absent for other families, which have it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<bool>,
    /// Whether a learned number, which begins with 0.01, multiplies the logits: the scalar layer in the code of Zhuang et al. 2018
    /// (arXiv 1711.00205).
    #[serde(skip_serializing_if = "is_off")]
    pub logit_scale: bool,
}

fn is_off(setting: &bool) -> bool {
    !setting
}

impl ModelConfig {
    /// A CIFAR-style residual network of `depth` layers at width 1.
    pub fn new(family: Family, depth: usize) -> Self {
        Self { depth: Some(depth), ..Self::of(family, Layout::Cifar) }
    }

    /// An ImageNet-style residual network of 18, 34, 50 or 101 layers at width 1.
    pub fn imagenet(family: Family, depth: usize) -> Self {
        Self { depth: Some(depth), ..Self::of(family, Layout::ImageNet) }
    }

    /// VGG-small at width 1.
    pub fn vgg_small() -> Self {
        Self::of(Family::VggSmall, Layout::default())
    }

    /// AlexNet with BatchNorm at width 1.
    pub fn alexnet(layout: Layout) -> Self {
        Self { norm: Some(true), ..Self::of(Family::AlexNet, layout) }
    }

    /// MobileNetV2 at width 1.
    pub fn mobilenet_v2(layout: Layout) -> Self {
        Self::of(Family::MobileNetV2, layout)
    }

    fn of(family: Family, layout: Layout) -> Self {
        let stem_stride = (family.settings().stem_strides)(layout)[0];
        Self { family, layout, depth: None, width: 1.0, stem_stride, norm: None, logit_scale: false }
    }

    /// The same with another number of channels.
    pub fn with_width(self, width: f64) -> Self {
        Self { width, ..self }
    }

    /// The same with a learned number that multiplies the logits.
    pub fn with_logit_scale(self) -> Self {
        Self { logit_scale: true, ..self }
    }

    /// The same without BatchNorm, which AlexNet has.
    pub fn without_norm(self) -> Self {
        Self { norm: Some(false), ..self }
    }

    /// The network as data: its layers, how they are connected, their paths, feature maps and shapes.
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined.
    pub fn graph(&self, input: InputShape, n_classes: usize) -> Result<Graph, ModelError> {
        self.check(input, n_classes)?;
        let is_too_small = |graph: &Result<Graph, ModelError>| {
            matches!(graph, Err(ModelError::Graph(GraphError::TooSmall { .. })))
        };
        let graph = (self.family.settings().graph)(self, input, n_classes);
        if !is_too_small(&graph) {
            return graph;
        }
        let square = |side| InputShape { height: side, width: side, ..input };
        let fits =
            |side: &usize| !is_too_small(&(self.family.settings().graph)(self, square(*side), n_classes));
        let least = (1..).find(fits).expect("invariant: a family takes images of some size");
        let InputShape { height, width, .. } = input;
        Err(ModelError::InputTooSmall { family: self.family, least, height, width })
    }

    /// The graph for images of some size that every network can take. Paths and roles depend neither on the images nor on the
    /// classes.
    fn any_graph(&self) -> Result<Graph, ModelError> {
        self.graph(InputShape { channels: 1, height: 224, width: 224 }, 1)
    }

    /// Names of the feature maps: the paths of the stages, whose output they are.
    pub fn tap_names(&self) -> &'static [&'static str] {
        (self.family.settings().taps)(self.layout)
    }

    /// Shapes of the feature maps of an `input`, `[channels, height, width]` each, in the order of
    /// [`ModelConfig::tap_names`].
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined.
    pub fn tap_shapes(&self, input: InputShape) -> Result<Vec<[usize; 3]>, ModelError> {
        Ok(self.graph(input, 1)?.tap_shapes())
    }

    /// The layers of the network in forward order, as in its [`Plan`].
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined.
    pub fn layers(&self) -> Result<Vec<NamedLayer>, ModelError> {
        let graph = self.any_graph()?;
        let may_be_negative = graph.may_be_negative();
        let layers = graph.nodes().iter().filter_map(|node| {
            let role = match node.op {
                Op::Conv(conv) => conv.role,
                Op::Linear(linear) => linear.role,
                _ => return None,
            };
            let reads_negative = node.inputs.iter().any(|input| may_be_negative[input.index()]);
            Some(NamedLayer { path: node.path.clone(), role, reads_negative })
        });
        Ok(layers.collect())
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
        Plan::new(&self.graph(input, n_classes)?, policy)
    }

    /// What memory the network takes in training, without building it; `inputs` says as what the inputs of convolutions are kept.
    ///
    /// # Errors
    /// [`ModelError`] if the architecture is not defined.
    pub fn footprint(
        &self,
        input: InputShape,
        n_classes: usize,
        policy: &QuantizationPolicy,
        inputs: Kept,
    ) -> Result<Footprint, ModelError> {
        Ok(Footprint::new(&self.graph(input, n_classes)?, policy, inputs))
    }

    /// Refuses what is not among the settings of the family.
    fn check(&self, input: InputShape, n_classes: usize) -> Result<(), ModelError> {
        let Self { family, layout, depth, width, stem_stride, norm, logit_scale: _ } = *self;
        let settings = family.settings();
        if input.dims().contains(&0) || n_classes == 0 {
            return Err(ModelError::Empty { n_classes, input });
        }
        if !(width.is_finite() && width > 0.0 && width <= 64.0) {
            return Err(ModelError::Width { got: width });
        }
        if let (Some(got), false) = (depth, settings.depths.is_some()) {
            return Err(ModelError::FixedDepth { family, got });
        }
        if !settings.layouts.contains(&layout) {
            return Err(ModelError::FixedLayout { family, got: layout });
        }
        let expected = (settings.stem_strides)(layout);
        if !expected.contains(&stem_stride) {
            return Err(ModelError::StemStride { family, layout, expected, got: stem_stride });
        }
        if let (Some(got), false) = (norm, settings.may_drop_norm) {
            return Err(ModelError::FixedNorm { family, got });
        }
        Ok(())
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
        let network = Network::new(self.graph(input, n_classes)?, policy, seed, device)?;
        let plan = Plan::new(network.graph(), policy)?;
        Ok(Model { network, plan })
    }
}

/// A layer of a network that is not built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedLayer {
    /// Its path.
    pub path: String,
    /// The part it plays.
    pub role: LayerRole,
    /// Whether its input may be negative, as that of a linear bottleneck. That of the first layer, the image, does not count.
    pub reads_negative: bool,
}

/// A network as it was built, with the plan of its layers.
#[derive(Clone, Debug)]
pub struct Model {
    /// The network.
    pub network: Network,
    /// What each of its layers is.
    pub plan: Plan,
}
