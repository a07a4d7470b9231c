//! `[strategy.hint]`.

use lowbit_models::{Family, ModelConfig};
use serde::Serialize;

use super::{RecipeSoFar, StrategyRecipe};
use crate::recipe::Recipe;
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::{HintTarget, JointMode};

/// `[strategy.hint]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HintRecipe {
    /// Weight of the distance in the loss.
    pub weight: f64,
    /// Which losses it is added to.
    pub target: HintTarget,
    /// Names of the student's feature maps, as in `ModelConfig::tap_names`.
    pub taps: Vec<&'static str>,
}

impl HintRecipe {
    /// Indices of its feature maps among those of `model`.
    pub(super) fn taps_of(&self, model: &ModelConfig) -> Vec<usize> {
        let index = |name: &&str| model.tap_names().iter().position(|known| known == name);
        self.taps.iter().filter_map(index).collect()
    }
}

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> HintRecipe {
    let targets = [("student", HintTarget::Student), ("both", HintTarget::Both)];
    let names = recipe.model.tap_names();
    let known: Vec<(&str, &'static str)> = names.iter().map(|&name| (name, name)).collect();
    let hint = HintRecipe {
        weight: section.required_number("weight", &NumberRange::POSITIVE),
        target: section.optional_choice("target", &targets).unwrap_or(HintTarget::Student),
        taps: section.optional_choices("taps", &known).unwrap_or_else(|| names.to_vec()),
    };
    section.finish();
    hint
}

pub(super) fn check(section: &Section<'_>, strategy: &StrategyRecipe, recipe: &RecipeSoFar<'_>) {
    let Some(hint) = &strategy.hint else { return };
    let Some(joint) = &strategy.joint else {
        section.problem("hint", "draws feature maps to a teacher's: it needs [strategy.joint]");
        return;
    };
    if joint.losses.mode == JointMode::Frozen && hint.target == HintTarget::Both {
        section.problem("hint", "target = \"both\" trains the teacher, but it is frozen");
    }
    let shapes = |model: &ModelConfig| model.tap_shapes(recipe.input).ok();
    if let (Some(student), Some(teacher)) = (shapes(recipe.model), shapes(&joint.teacher.model)) {
        for (tap, name) in hint.taps_of(recipe.model).into_iter().zip(&hint.taps) {
            let [_, height, width] = student[tap];
            let Some([_, teacher_height, teacher_width]) = teacher.get(tap) else {
                section.problem(
                    "hint",
                    format!(
                        "map {name} of the student has no counterpart, the teacher has {} maps: leave it out of taps, or \
                         change the teacher",
                        teacher.len()
                    ),
                );
                continue;
            };
            if [height, width] != [*teacher_height, *teacher_width] {
                section.problem(
                    "hint",
                    format!(
                        "map {name} of the student has {height}x{width} positions, the teacher's {teacher_height}x\
                         {teacher_width}: leave it out of taps, or change the teacher"
                    ),
                );
            }
        }
    }
}

/// What is allowed, but known to be a bad idea.
pub(super) fn warning(recipe: &Recipe) -> Option<String> {
    recipe.strategy.hint.as_ref()?;
    let teacher = &recipe.strategy.joint.as_ref()?.teacher.model;
    let networks = [("the student", &recipe.model), ("the teacher", teacher)];
    let (whose, _) = networks.into_iter().find(|(_, model)| model.family == Family::PreResNet)?;
    Some(format!(
        "strategy.hint compares feature maps in [0, 1], but those of {whose}, a preresnet, are sums of blocks without \
         normalization or ReLU, half of them negative: take model.family = \"resnet\", or leave hints out"
    ))
}
