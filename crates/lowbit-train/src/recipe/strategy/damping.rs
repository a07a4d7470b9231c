//! `[strategy.damping]`.

use super::RecipeSoFar;
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::Damping;

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> Damping {
    recipe.refuse_without_weights(&section, "draws quantized weights to their levels");
    let damping = Damping { weight: section.number("weight", 1e-4, &NumberRange::POSITIVE) };
    section.finish();
    damping
}
