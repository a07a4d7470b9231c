//! `[strategy.hint]`.

use lowbit_models::{Family, ModelConfig};
use serde::Serialize;

use super::{RecipeSoFar, StrategyRecipe};
use crate::recipe::Recipe;
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::{HintGrid, HintMaps, HintTarget, JointMode};

/// `[strategy.hint]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HintRecipe {
    /// Weight of the distance in the loss.
    pub weight: f64,
    /// Which losses it is added to.
    pub target: HintTarget,
    /// What the teacher's maps are quantized to.
    #[serde(skip_serializing_if = "is_default")]
    pub grid: HintGrid,
    /// Where maps are taken.
    #[serde(skip_serializing_if = "is_default")]
    pub maps: HintMaps,
    /// Names of the student's feature maps, as in `ModelConfig::tap_names`.
    pub taps: Vec<&'static str>,
}

/// Whether a setting is that of a lowbit that had no choice, which is not written down.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    let grids = [("unit", HintGrid::Unit), ("student", HintGrid::Student)];
    let maps = [("stage", HintMaps::Stage), ("activated", HintMaps::Activated)];
    let names = recipe.model.tap_names();
    let known: Vec<(&str, &'static str)> = names.iter().map(|&name| (name, name)).collect();
    let hint = HintRecipe {
        weight: section.required_number("weight", &NumberRange::POSITIVE),
        target: section.optional_choice("target", &targets).unwrap_or(HintTarget::Student),
        grid: section.optional_choice("grid", &grids).unwrap_or_default(),
        maps: section.optional_choice("maps", &maps).unwrap_or_default(),
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
    let families = [recipe.model.family, joint.teacher.model.family];
    if hint.maps == HintMaps::Activated && !families.contains(&Family::PreResNet) {
        section.problem(
            "hint.maps",
            "has no effect where no network is a preresnet: the maps of others are after an activation already; remove this key",
        );
    }
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
    let hint = recipe.strategy.hint.as_ref()?;
    if hint.maps == HintMaps::Activated {
        return None;
    }
    let teacher = &recipe.strategy.joint.as_ref()?.teacher.model;
    let networks = [("the student", &recipe.model), ("the teacher", teacher)];
    let (whose, _) = networks.into_iter().find(|(_, model)| model.family == Family::PreResNet)?;
    Some(format!(
        "strategy.hint compares feature maps in [0, 1], but those of {whose}, a preresnet, are sums of blocks without \
         normalization or ReLU, half of them negative: take strategy.hint.maps = \"activated\" or model.family = \"resnet\", or leave hints \
         out"
    ))
}
