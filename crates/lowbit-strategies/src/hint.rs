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
/// A student with full-precision activations gets the map clipped, but not rounded. With the student's own grid, `Q_k(clip(.))` is the
/// quantizer of the layer that reads `mu`, and maps that none reads are compared as they are.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Hint {
    /// `weight`, lambda in the paper.
    pub weight: f64,
    /// Which losses it is added to.
    pub target: HintTarget,
    /// What the teacher's maps are quantized to.
    #[serde(skip_serializing_if = "is_default")]
    pub grid: HintGrid,
    /// Where maps are taken.
    #[serde(skip_serializing_if = "is_default")]
    pub maps: HintMaps,
    /// Which feature maps, by index.
    pub taps: Vec<usize>,
}

/// Whether a setting is that of a lowbit that had no choice, which is not written down.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What the teacher's maps are quantized to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintGrid {
    /// That of DoReFa's activations, from 0 to 1.
    #[default]
    Unit,
    /// That of the student's layer which reads its map.
    Student,
}

/// Where maps are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HintMaps {
    /// At the end of a stage.
    #[default]
    Stage,
    /// After the normalization and the ReLU that read it.
    Activated,
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
                name: "grid",
                default: "`unit`",
                range: "`unit`, `student`",
                effect: "what the teacher's maps are quantized to: from 0 to 1, or as the student's layer that reads the map does it (a map that none reads, or one in full precision, is compared as it is)",
            },
            Key {
                name: "maps",
                default: "`stage`",
                range: "`stage`, `activated`",
                effect: "where maps are taken: at the end of a stage, or, of a `preresnet`, after the normalization and ReLU that follow it",
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
            let is_meant =
                |network: &&mut NetworkSpec| network.role == Role::Student || network.name == TEACHER;
            if self.maps == HintMaps::Activated {
                networks.iter_mut().filter(is_meant).for_each(|network| network.taps_activations = true);
            }
        }
        networks
    }

    fn loss(&self, network: &Output, outputs: &Outputs<'_>, loss: Loss) -> Loss {
        let Some(teacher) = outputs.named(TEACHER) else { return loss };
        // Each tap's student map and teacher map, and what the latter is quantized to.
        let pairs = |student: &Output| -> Vec<(Tensor<4>, Tensor<4>, Grid)> {
            let maps = |&tap: &usize| {
                let grid = match self.grid {
                    HintGrid::Unit => Grid::Unit(student.act_bits),
                    HintGrid::Student => {
                        Grid::Of(student.tap_quantizers.get(tap).cloned().flatten().map(Box::new))
                    }
                };
                (student.adapted_taps[tap].clone(), teacher.features.taps[tap].clone(), grid)
            };
            self.taps.iter().map(maps).collect()
        };
        // A student that another strategy added may adapt to none, or to another network.
        let is_adapted = |student: &&Output| student.adapts_to.as_deref() == Some(TEACHER);
        match network.role {
            Role::Student if !is_adapted(&network) => loss,
            Role::Student => pairs(network).into_iter().fold(loss, |loss, (mu, nu, grid)| {
                // A learned step is not to come to the teacher's map.
                loss.plus(HINT, half_mean_square(mu, quantized(nu, grid).detach()) * self.weight)
            }),
            Role::Teacher if network.name == TEACHER && self.target == HintTarget::Both => {
                let n = outputs.students().filter(is_adapted).count();
                outputs.students().filter(is_adapted).flat_map(pairs).fold(loss, |loss, (mu, nu, grid)| {
                    let distance = half_mean_square(mu.detach(), quantized(nu, grid));
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

/// What a teacher's map is quantized to.
enum Grid {
    /// `Q_k(clip(nu, 0, 1))`.
    Unit(Precision),
    /// As a quantizer does it; without one, it stays as it is.
    Of(Option<Box<ActivationQuantizer>>),
}

/// The map on its grid, straight through the rounding.
fn quantized(nu: Tensor<4>, grid: Grid) -> Tensor<4> {
    match grid {
        Grid::Unit(Precision::FullPrecision) => nu.clamp(0.0, 1.0),
        Grid::Unit(Precision::Bits(bits)) => {
            ActivationQuantizer::DoReFa(DoReFaActivations::new(bits, &nu.device())).fake_quantize(nu)
        }
        Grid::Of(Some(quantizer)) => quantizer.fake_quantize(nu),
        Grid::Of(None) => nu,
    }
}
