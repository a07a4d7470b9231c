//! The networks of a training, as data.

use std::path::PathBuf;

use burn::tensor::Tensor;
use lowbit_core::Precision;
use lowbit_models::{Features, ModelConfig};
use lowbit_quantizers::{ActivationQuantizer, QuantizationPolicy};

/// Name of the network that a training is for, which is deployed.
pub const STUDENT: &str = "student";

/// One network of a training.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSpec {
    /// Its name, by which strategies, files and metrics know it: lowercase letters, digits, '-' and '_'.
    pub name: String,
    /// What phases do to it.
    pub role: Role,
    /// Its architecture.
    pub model: ModelConfig,
    /// Its precision when the training ends.
    pub policy: QuantizationPolicy,
    /// What it begins with instead of random weights.
    pub init: Option<Init>,
    /// Its learning rate as a multiple of that of the phase.
    pub learning_rate_scale: f64,
    /// Whether it is trained, or only asked, as in evaluation.
    pub is_trained: bool,
    /// Whether it trains by one schedule through all phases. Only a teacher can.
    pub trains_throughout: bool,
    /// Name of the network to whose channels its feature maps are brought, by 1x1 convolutions that are trained along where
    /// the channels differ.
    pub adapts_to: Option<String>,
    /// Whether its feature maps are taken after the normalization and the ReLU that read them.
    pub taps_activations: bool,
}

/// What phases do to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It has the precision of the phase, and in a step the part that strategies select is quantized.
    Student,
    /// It has the precision of its policy in all phases.
    Teacher,
}

/// Weights that a network begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Init {
    /// Run directory or checkpoint that has them.
    pub path: PathBuf,
    /// The setting that names it, for messages: "strategy.joint.teacher.init".
    pub key: &'static str,
}

impl NetworkSpec {
    /// A network that is trained at the precision of each phase, in the end at that of `policy`.
    pub fn student(name: impl Into<String>, model: ModelConfig, policy: QuantizationPolicy) -> Self {
        Self {
            name: name.into(),
            role: Role::Student,
            model,
            policy,
            init: None,
            learning_rate_scale: 1.0,
            is_trained: true,
            trains_throughout: false,
            adapts_to: None,
            taps_activations: false,
        }
    }

    /// A network that is trained in full precision through all phases, from random weights.
    pub fn teacher(name: impl Into<String>, model: ModelConfig) -> Self {
        let student = Self::student(name, model, QuantizationPolicy::full_precision());
        Self { role: Role::Teacher, trains_throughout: true, ..student }
    }
}

/// What all networks make of one batch, before any of them is updated.
pub struct Outputs<'a> {
    /// Of each network, the deployed one first.
    pub networks: &'a [Output],
    /// The label of each image.
    pub labels: &'a [i64],
}

/// What a network makes of a batch.
#[derive(Clone, Debug)]
pub struct Output {
    /// Name of the network.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// Class scores and feature maps. Without a gradient if the network is not trained.
    pub features: Features,
    /// The network that it [adapts to](NetworkSpec::adapts_to).
    pub adapts_to: Option<String>,
    /// The feature maps in the number of channels of that network, `[batch, channels, height, width]`; the feature maps as they are
    /// without one.
    pub adapted_taps: Vec<Tensor<4>>,
    /// Precision of its activations in this phase.
    pub act_bits: Precision,
    /// What quantizes each of its feature maps where a layer reads it; `None` where that is in full precision, or no layer reads it.
    pub tap_quantizers: Vec<Option<ActivationQuantizer>>,
}

impl<'a> Outputs<'a> {
    /// Of the network `name`.
    pub fn named(&self, name: &str) -> Option<&'a Output> {
        self.networks.iter().find(|output| output.name == name)
    }

    /// Of the students, the deployed one first.
    pub fn students(&self) -> impl Iterator<Item = &'a Output> {
        self.networks.iter().filter(|output| output.role == Role::Student)
    }
}
