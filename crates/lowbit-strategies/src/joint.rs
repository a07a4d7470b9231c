//! Joint knowledge distillation ("guided training"): a full-precision network trains beside low-bit ones on the same
//! batches, and each learns from the labels and from the other. Zhuang et al. 2018 and 2021.

use burn::tensor::Tensor;
use serde::Serialize;

use crate::loss::{kl_divergence, mean_square};
use crate::strategy::{Loss, Outputs, Role, Strategy};

/// Name of the part of the loss that is the distance to the other networks.
const DISTILL: &str = "distill";

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
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Joint {
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

impl Joint {
    fn distance(&self, from: &Tensor<2>, to: &Tensor<2>) -> Tensor<1> {
        let constant = from.clone().detach();
        match self.distance {
            DistillLoss::Kl { temperature } => kl_divergence(constant, to.clone(), temperature),
            DistillLoss::LogitsMse => mean_square(constant - to.clone()),
        }
    }
}

impl Strategy for Joint {
    fn loss(&self, network: Role, outputs: &Outputs<'_>, loss: Loss) -> Loss {
        let Some(teacher) = outputs.teacher else { return loss };
        match network {
            Role::Student(j) => {
                let student = &outputs.students[j].features.logits;
                let distance = self.distance(&teacher.logits, student);
                loss.scaled(self.student_label_weight).plus(DISTILL, distance * self.student_distill_weight)
            }
            Role::Teacher if self.mode == JointMode::Mutual => {
                let distances = outputs
                    .students
                    .iter()
                    .map(|student| self.distance(&student.features.logits, &teacher.logits));
                let sum = distances.reduce(|sum, distance| sum + distance);
                let sum = sum.expect("invariant: there is a student");
                let share = self.teacher_distill_weight / outputs.students.len() as f64;
                loss.scaled(self.teacher_label_weight).plus(DISTILL, sum * share)
            }
            Role::Teacher => loss.scaled(self.teacher_label_weight),
        }
    }
}
