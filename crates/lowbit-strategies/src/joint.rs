//! Joint knowledge distillation ("guided training"): a full-precision network trains beside low-bit ones on the same
//! batches, and each learns from the labels and from the other. Zhuang et al. 2018 and 2021.

use std::path::PathBuf;

use burn::tensor::{Int, Tensor, TensorData};
use lowbit_core::Precision;
use lowbit_models::ModelConfig;
use lowbit_quantizers::QuantizationPolicy;
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::loss::{kl_divergence, mean_square};
use crate::network::{Init, NetworkSpec, Output, Outputs, Role, STUDENT};
use crate::strategy::{Loss, Strategy};

/// Name of the part of the loss that is the distance to the other networks.
const DISTILL: &str = "distill";

/// Name of the full-precision network.
pub const TEACHER: &str = "teacher";

/// Adds a teacher and students to the training, and to their losses.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Joint {
    /// The losses.
    #[serde(flatten)]
    pub losses: JointLosses,
    /// The full-precision network.
    pub teacher: JointTeacher,
    /// Students beside the one that is deployed.
    pub students: Vec<JointStudent>,
}

/// The full-precision network of a joint training.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JointTeacher {
    /// Its architecture.
    #[serde(flatten)]
    pub model: ModelConfig,
    /// Its learning rate as a multiple of the students'.
    pub learning_rate_scale: f64,
    /// Which schedule it trains by.
    pub schedule: TeacherSchedule,
    /// Run directory or checkpoint that it begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
}

/// A further student of a joint training: like the deployed network, but for its bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct JointStudent {
    /// Precision of its weights.
    pub weight_bits: Precision,
    /// Precision of its input activations.
    pub act_bits: Precision,
}

impl JointStudent {
    /// Its precision, where that of the deployed network is `policy`.
    pub fn policy(self, policy: &QuantizationPolicy) -> QuantizationPolicy {
        let mut policy = policy.clone();
        policy.base.weight_bits = self.weight_bits;
        policy.base.act_bits = self.act_bits;
        policy
    }
}

/// Mixes the loss with the distance to the other networks' logits.
///
/// # Equation
/// With `F` the teacher, `L_j` one of `N` students, and `D(a, b)` the distance of `b` from the constant `a`:
/// ```text
/// loss(L_j) = a_s CE(L_j(x), y) + b_s D(F(x), L_j(x))
/// loss(F)   = a_t CE(F(x), y)   + b_t (1/N) sum_j D(L_j(x), F(x))
/// D(a, b)   = T^2 KL( softmax(a/T) || softmax(b/T) )      or      mean (a - b)^2
/// ```
/// All outputs are those before any update; the students are updated first, each network by an optimizer of its own.
///
/// With the target [`MinLogit`](JointTarget::MinLogit), all learn from one target in place of each other's logits: with `z_m` those of
/// network `m`, of which the label's is `z_m[y]`, the class scores `min_m (z_m - z_m[y])`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct JointLosses {
    /// `D`.
    pub distance: DistillLoss,
    /// `a_s`.
    pub student_label_weight: f64,
    /// `b_s`.
    pub student_distill_weight: f64,
    /// `a_t`.
    pub teacher_label_weight: f64,
    /// `b_t`.
    pub teacher_distill_weight: f64,
    /// Who learns from whom.
    pub mode: JointMode,
    /// What networks learn from in each other.
    #[serde(skip_serializing_if = "JointTarget::is_default")]
    pub target: JointTarget,
}

/// What networks learn from in each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JointTarget {
    /// Students from the teacher's logits, and it from each of theirs.
    #[default]
    Logits,
    /// All of them from the smallest distances to the label's logit that any of them has, class by class: arXiv 2210.16103.
    MinLogit,
}

impl JointTarget {
    /// A lowbit that had no choice wrote nothing of it.
    fn is_default(&self) -> bool {
        *self == Self::Logits
    }
}

/// Distance of a network's logits from another's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum DistillLoss {
    /// Kullback-Leibler divergence of the class probabilities.
    Kl {
        /// `T`; both sides' logits are divided by it.
        temperature: f64,
    },
    /// Mean square of the difference.
    LogitsMse,
}

/// Who learns from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum JointMode {
    /// Students from the teacher, and it from them.
    Mutual,
    /// Students from the teacher, which learns from the labels alone.
    StudentOnly,
    /// Students from a teacher that is trained already and stays as it is.
    Frozen,
}

/// Which schedule a teacher trains by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherSchedule {
    /// That of `[train]` over all phases: a teacher has no phases, so its learning rate and its optimizer's state go on where
    /// those of the students begin anew.
    #[default]
    WholeTraining,
    /// That of the phases, with an optimizer that begins anew with each.
    PerPhase,
}

impl JointLosses {
    fn distance(&self, from: &Tensor<2>, to: &Tensor<2>) -> Tensor<1> {
        let constant = from.clone().detach();
        match self.distance {
            DistillLoss::Kl { temperature } => kl_divergence(constant, to.clone(), temperature),
            DistillLoss::LogitsMse => mean_square(constant - to.clone()),
        }
    }
}

impl Joint {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "joint",
        title: "joint distillation",
        changes: "networks, losses",
        section: "strategy.joint",
        file: file!(),
        keys: &[
            Key {
                name: "mode",
                default: "`mutual`",
                range: "`mutual`, `student-only`, `frozen`",
                effect: "both learn from each other; only the student from the teacher; the teacher is not trained",
            },
            Key {
                name: "distance",
                default: "KL",
                range: r#"`{ kind = "kl", temperature = 1.0 }`, `{ kind = "logits-mse" }`"#,
                effect: "between their outputs",
            },
            Key {
                name: "target",
                default: "`logits`",
                range: "`logits`, `min-logit`",
                effect: "what they learn from: each other's outputs, or one target of all, the smallest distances to the label's logit that any network has; `min-logit` with KL alone, not with `mode = \"frozen\"`",
            },
            Key {
                name: "student_label_weight",
                default: "0.7",
                range: "from 0",
                effect: "of the labels in the student's loss (a_s)",
            },
            Key {
                name: "student_distill_weight",
                default: "0.7",
                range: "from 0",
                effect: "of the distance in the student's loss (b_s); not 0 if the labels' weight is",
            },
            Key {
                name: "teacher_label_weight",
                default: "1",
                range: "from 0",
                effect: r#"of the labels in the teacher's loss (a_t), unless `mode = "frozen"`"#,
            },
            Key {
                name: "teacher_distill_weight",
                default: "0.5, else 0",
                range: "from 0",
                effect: r#"of the distance in the teacher's loss (b_t), with `mode = "mutual"`"#,
            },
            Key {
                name: "teacher",
                default: "as the student",
                range: "a table of the keys of `[model]`",
                effect: "its architecture; the student's `depth` if its layout has it, the student's `stem_stride` between residual networks of one layout",
            },
            Key {
                name: "teacher.learning_rate_scale",
                default: "1",
                range: "above 0",
                effect: r#"its learning rate as a multiple, unless `mode = "frozen"`"#,
            },
            Key {
                name: "teacher.schedule",
                default: "`whole-training`",
                range: "`whole-training`, `per-phase`",
                effect: "its learning rate and its optimizer's state go through all phases as through one; or begin anew with each, as the students'",
            },
            Key {
                name: "teacher.init",
                default: "none",
                range: "path",
                effect: r#"as `init`: run directory or checkpoint that it begins with: in full precision, or with a teacher, which is then taken; required with `mode = "frozen"`; kept as an absolute path"#,
            },
            Key {
                name: "[[students]]",
                default: "none",
                range: "`weight_bits`, `act_bits`",
                effect: "further students, of other bits and otherwise like the first",
            },
        ],
    };
}

impl Strategy for Joint {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn networks(&self, mut networks: Vec<NetworkSpec>) -> Vec<NetworkSpec> {
        let Some(deployed) = networks.first().cloned() else { return networks };
        for (number, student) in (2..).zip(&self.students) {
            let (name, policy) = (format!("{STUDENT}{number}"), student.policy(&deployed.policy));
            networks.push(NetworkSpec { name, policy, ..deployed.clone() });
        }
        let JointTeacher { model, learning_rate_scale, schedule, init } = self.teacher.clone();
        networks.push(NetworkSpec {
            init: init.map(|path| Init { path, key: "strategy.joint.teacher.init" }),
            learning_rate_scale,
            is_trained: self.losses.mode != JointMode::Frozen,
            trains_throughout: schedule == TeacherSchedule::WholeTraining,
            ..NetworkSpec::teacher(TEACHER, model)
        });
        networks
    }

    fn loss(&self, network: &Output, outputs: &Outputs<'_>, loss: Loss) -> Loss {
        match outputs.named(TEACHER) {
            Some(teacher) => self.losses.of(network, teacher, outputs, loss),
            None => loss,
        }
    }
}

/// `min_m (z_m - z_m[y])` over all networks, class by class, without gradient. Shape `[batch, n_classes]`.
fn min_logits(outputs: &Outputs<'_>) -> Tensor<2> {
    let distances = outputs.networks.iter().map(|output| {
        let logits = output.features.logits.clone().detach();
        let labels: Vec<i32> = outputs.labels.iter().map(|&label| label as i32).collect();
        let labels = TensorData::new(labels, [outputs.labels.len(), 1]);
        let labels = Tensor::<2, Int>::from_data(labels, &logits.device());
        logits.clone() - logits.gather(1, labels)
    });
    distances.reduce(Tensor::min_pair).expect("invariant: there is a network")
}

impl JointLosses {
    fn of(&self, network: &Output, teacher: &Output, outputs: &Outputs<'_>, loss: Loss) -> Loss {
        match network.role {
            Role::Student => {
                let distance = match self.target {
                    JointTarget::Logits => self.distance(&teacher.features.logits, &network.features.logits),
                    JointTarget::MinLogit => self.distance(&min_logits(outputs), &network.features.logits),
                };
                loss.scaled(self.student_label_weight).plus(DISTILL, distance * self.student_distill_weight)
            }
            // Another strategy's.
            Role::Teacher if network.name != TEACHER => loss,
            Role::Teacher if self.mode == JointMode::Mutual && self.target == JointTarget::MinLogit => {
                let distance = self.distance(&min_logits(outputs), &teacher.features.logits);
                loss.scaled(self.teacher_label_weight).plus(DISTILL, distance * self.teacher_distill_weight)
            }
            Role::Teacher if self.mode == JointMode::Mutual => {
                let students = || outputs.students().map(|student| &student.features.logits);
                let distances = students().map(|student| self.distance(student, &teacher.features.logits));
                let sum = distances.reduce(|sum, distance| sum + distance);
                let sum = sum.expect("invariant: there is a student");
                let share = self.teacher_distill_weight / students().count() as f64;
                loss.scaled(self.teacher_label_weight).plus(DISTILL, sum * share)
            }
            Role::Teacher => loss.scaled(self.teacher_label_weight),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use lowbit_models::Features;

    use super::*;

    /// Two images, labels 0 and 2; the smaller distance of either network, class by class.
    #[test]
    fn the_target_of_all_is_the_smallest_distance_to_the_label() {
        let device = Device::default();
        let output = |logits: [[f32; 3]; 2]| Output {
            name: "any".into(),
            role: Role::Student,
            features: Features { logits: Tensor::from_floats(logits, &device), taps: Vec::new() },
            adapts_to: None,
            adapted_taps: Vec::new(),
            act_bits: Precision::FullPrecision,
            tap_quantizers: Vec::new(),
        };
        let networks =
            [output([[3.0, 1.0, 2.0], [0.0, 1.0, 5.0]]), output([[1.0, 0.5, -2.0], [4.0, 0.0, 6.0]])];
        let target = min_logits(&Outputs { networks: &networks, labels: &[0, 2] });
        let values: Vec<f32> = target.into_data().iter::<f32>().collect();
        // Distances -2, -1 and -0.5, -3 of the first image; -5, -4 and -2, -6 of the second.
        assert_eq!(values, [0.0, -2.0, -3.0, -5.0, -6.0, 0.0]);
    }
}
