//! `[strategy.sharpness]`.

use super::RecipeSoFar;
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::Sharpness;

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> Sharpness {
    recipe.refuse_without_weights(&section, "takes gradients beside quantized weights");
    let sharpness = Sharpness { radius: section.number("radius", 0.4, &NumberRange::POSITIVE) };
    section.finish();
    sharpness
}
