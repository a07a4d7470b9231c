//! Hints: a student's feature maps are drawn to the teacher's. Zhuang et al. 2018 and 2021, "guided training"; the
//! details are decisions of this project.

use burn::tensor::Tensor;
use lowbit_core::Precision;
use lowbit_quantizers::ActivationQuantizer;
use lowbit_quantizers::methods::dorefa::DoReFaActivations;
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::joint::TEACHER;
use crate::loss::mean_square;
use crate::network::{NetworkSpec, Output, Outputs, Role};
use crate::strategy::{Loss, Strategy};

/// Name of the part of the loss that is the distance of feature maps.
const HINT: &str = "hint";

/// Adds the distance of a student's feature maps from the teacher's.
///
/// # Equation
/// With `mu` a map of the student, brought to the teacher's channels by a 1x1 convolution where they differ, `nu` the map
/// of the teacher, and `k` the bit width of the student's activations:
/// ```text
/// R = 1/2 mean || mu - Q_k(clip(nu, 0, 1)) ||^2         Q_k(z) = round((2^k - 1) z) / (2^k - 1)
/// loss(L_j) += weight sum_taps R                        the teacher's map a constant
/// loss(F)   += weight (1/N) sum_j sum_taps R            the student's map a constant; straight through Q_k
/// ```
/// A student with full-precision activations gets the map clipped, but not rounded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hint {
    /// `weight`, lambda in the paper.
    pub weight: f64,
    /// Which losses it is added to.
    pub target: HintTarget,
    /// Which feature maps, by index.
    pub taps: Vec<usize>,
}

/// Whose loss a hint is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintTarget {
    /// The students'.
    Student,
    /// The students' and the teacher's.
    Both,
}

impl Hint {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "hint",
        title: "hints",
        changes: "networks (adapters), losses",
        section: "strategy.hint",
        file: file!(),
        keys: &[
            Key {
                name: "weight",
                default: "required",
                range: "above 0",
                effect: "of the distance in the loss (lambda)",
            },
            Key {
                name: "target",
                default: "`student`",
                range: "`student`, `both`",
                effect: "whose maps are moved; `both` not with a frozen teacher",
            },
            Key {
                name: "taps",
                default: "all",
                range: "`stages.0`, `stages.1`, `stages.2`; in the ImageNet layout `layer1` to `layer4`",
                effect: "which maps of the student, each the output of a stage; the teacher's must have the same height and width",
            },
        ],
    };
}

impl Strategy for Hint {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    /// The feature maps of students are adapted to the teacher's.
    fn networks(&self, mut networks: Vec<NetworkSpec>) -> Vec<NetworkSpec> {
        if networks.iter().any(|network| network.name == TEACHER) {
            let students = networks.iter_mut().filter(|network| network.role == Role::Student);
            students.for_each(|student| student.adapts_to = Some(TEACHER.into()));
        }
        networks
    }

    fn loss(&self, network: &Output, outputs: &Outputs<'_>, loss: Loss) -> Loss {
        let Some(teacher) = outputs.named(TEACHER) else { return loss };
        // Each tap's student map, teacher map and precision.
        let pairs = |student: &Output| -> Vec<(Tensor<4>, Tensor<4>, Precision)> {
            let maps = |&tap: &usize| {
                (student.adapted_taps[tap].clone(), teacher.features.taps[tap].clone(), student.act_bits)
            };
            self.taps.iter().map(maps).collect()
        };
        // A student that another strategy added may adapt to none, or to another network.
        let is_adapted = |student: &&Output| student.adapts_to.as_deref() == Some(TEACHER);
        match network.role {
            Role::Student if !is_adapted(&network) => loss,
            Role::Student => pairs(network).into_iter().fold(loss, |loss, (mu, nu, bits)| {
                loss.plus(HINT, half_mean_square(mu, quantized(nu.detach(), bits)) * self.weight)
            }),
            Role::Teacher if network.name == TEACHER && self.target == HintTarget::Both => {
                let n = outputs.students().filter(is_adapted).count();
                outputs.students().filter(is_adapted).flat_map(pairs).fold(loss, |loss, (mu, nu, bits)| {
                    let distance = half_mean_square(mu.detach(), quantized(nu, bits));
                    loss.plus(HINT, distance * (self.weight / n as f64))
                })
            }
            Role::Teacher => loss,
        }
    }
}

fn half_mean_square(mu: Tensor<4>, nu: Tensor<4>) -> Tensor<1> {
    mean_square(mu - nu) * 0.5
}

/// `Q_k(clip(nu, 0, 1))`, straight through the rounding.
fn quantized(nu: Tensor<4>, bits: Precision) -> Tensor<4> {
    match bits {
        Precision::FullPrecision => nu.clamp(0.0, 1.0),
        Precision::Bits(bits) => {
            ActivationQuantizer::DoReFa(DoReFaActivations::new(bits, &nu.device())).fake_quantize(nu)
        }
    }
}
