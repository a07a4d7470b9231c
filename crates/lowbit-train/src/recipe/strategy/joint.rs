//! `[strategy.joint]`.

use std::path::PathBuf;

use super::RecipeSoFar;
use crate::recipe::reader::{NumberRange, Section};
use crate::recipe::{Quantized, Recipe, read_network};
use crate::strategy::{
    DistillLoss, Joint, JointLosses, JointMode, JointStudent, JointTarget, JointTeacher, TeacherSchedule,
};

/// Temperature from which distillation is known to hurt low-bit students.
const HOT: f64 = 2.0;

/// Weight of the labels in a teacher's loss unless it is said otherwise, Zhuang et al. 2021.
const TEACHER_LABEL_WEIGHT: f64 = 1.0;

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> Joint {
    recipe.refuse_full_precision(&section, "trains a low-bit student beside a full-precision network");
    let modes = [
        ("mutual", JointMode::Mutual),
        ("student-only", JointMode::StudentOnly),
        ("frozen", JointMode::Frozen),
    ];
    let mode = section.optional_choice("mode", &modes).unwrap_or(JointMode::Mutual);
    let targets = [("logits", JointTarget::Logits), ("min-logit", JointTarget::MinLogit)];
    let weight = |key: &str, default: f64| section.number(key, default, &NumberRange::NOT_NEGATIVE);
    // Zhuang et al. 2021, CIFAR-100.
    let losses = JointLosses {
        distance: read_distance(section.optional_section("distance")),
        student_label_weight: weight("student_label_weight", 0.7),
        student_distill_weight: weight("student_distill_weight", 0.7),
        teacher_label_weight: weight("teacher_label_weight", TEACHER_LABEL_WEIGHT),
        teacher_distill_weight: weight(
            "teacher_distill_weight",
            if mode == JointMode::Mutual { 0.5 } else { 0.0 },
        ),
        mode,
        target: section.optional_choice("target", &targets).unwrap_or_default(),
    };
    if losses.target == JointTarget::MinLogit {
        if losses.distance == DistillLoss::LogitsMse {
            section.problem(
                "target",
                "\"min-logit\" has no place for logits, only distances: take distance = { kind = \"kl\" }",
            );
        }
        if mode == JointMode::Frozen {
            section.problem(
                "target",
                "\"min-logit\" is of networks that learn from each other, but the teacher is frozen",
            );
        }
    }
    if mode != JointMode::Mutual && losses.teacher_distill_weight > 0.0 {
        section.problem("teacher_distill_weight", "has no effect unless mode = \"mutual\": remove this key");
    }
    // A resolved recipe has the default written out.
    if mode == JointMode::Frozen && losses.teacher_label_weight != TEACHER_LABEL_WEIGHT {
        section.problem("teacher_label_weight", "has no effect on a frozen teacher: remove this key");
    }
    if losses.student_label_weight == 0.0 && losses.student_distill_weight == 0.0 {
        section.problem_here(
            "student_label_weight and student_distill_weight are both 0: the student would learn from neither the labels \
             nor the teacher",
        );
    }
    let teacher = section.section("teacher");
    let init = teacher.optional_text("init").map(PathBuf::from);
    if mode == JointMode::Frozen && init.is_none() {
        teacher.problem("init", "is missing; a frozen teacher needs the run directory of a trained network");
    }
    let learning_rate_scale = teacher.number("learning_rate_scale", 1.0, &NumberRange::POSITIVE);
    if mode == JointMode::Frozen && learning_rate_scale != 1.0 {
        teacher.problem("learning_rate_scale", "has no effect on a frozen teacher: remove this key");
    }
    let schedules =
        [("whole-training", TeacherSchedule::WholeTraining), ("per-phase", TeacherSchedule::PerPhase)];
    let schedule = teacher.optional_choice("schedule", &schedules).unwrap_or_default();
    if mode == JointMode::Frozen && schedule != TeacherSchedule::default() {
        teacher.problem("schedule", "has no effect on a frozen teacher: remove this key");
    }
    let model = read_network(teacher, Some(recipe.model));
    let teacher = JointTeacher { model, learning_rate_scale, schedule, init };
    let students = section.sections("students").into_iter().map(|student| {
        let bits = JointStudent {
            weight_bits: student.precision("weight_bits"),
            act_bits: student.precision("act_bits"),
        };
        let policy = bits.policy(recipe.policy);
        let is_known = !recipe.has_mistakes && !student.has_problems();
        if is_known && Quantized::of(&policy, recipe.model) == Quantized::NOTHING {
            student.problem_here("has nothing quantized: the full-precision network is the teacher");
        }
        student.finish();
        bits
    });
    let joint = Joint { losses, teacher, students: students.collect() };
    section.finish();
    joint
}

fn read_distance(section: Option<Section<'_>>) -> DistillLoss {
    #[derive(Clone, Copy)]
    enum Kind {
        Kl,
        LogitsMse,
    }
    let Some(section) = section else { return DistillLoss::Kl { temperature: 1.0 } };
    let kind = section.choice("kind", &[("kl", Kind::Kl), ("logits-mse", Kind::LogitsMse)]);
    if section.has_problems() {
        return DistillLoss::Kl { temperature: 1.0 };
    }
    let distance = match kind {
        Kind::Kl => {
            DistillLoss::Kl { temperature: section.number("temperature", 1.0, &NumberRange::POSITIVE) }
        }
        Kind::LogitsMse => DistillLoss::LogitsMse,
    };
    section.finish();
    distance
}

/// What is allowed, but known to be a bad idea.
pub(super) fn warning(recipe: &Recipe) -> Option<String> {
    let DistillLoss::Kl { temperature } = recipe.strategy.joint.as_ref()?.losses.distance else {
        return None;
    };
    (temperature >= HOT).then(|| {
        format!(
            "strategy.joint.distance.temperature is {temperature}: from {HOT} on, distillation is known to hurt low-bit \
             students; the paper uses 1"
        )
    })
}
