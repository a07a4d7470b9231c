//! `[strategy.soft_weights]`.

use lowbit_quantizers::Method;

use super::RecipeSoFar;
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::SoftWeights;

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> SoftWeights {
    recipe.refuse_without_weights(&section, "rounds quantized weights more and more");
    recipe.refuse_weight_methods(&section, Method::has_equal_steps, |method, others| {
        format!(
            "needs levels at equal distances, which those of {method} are not: take weight_method = {others}"
        )
    });
    let soft = SoftWeights { final_share: section.number("final_share", 0.2, &NumberRange::FRACTION) };
    section.finish();
    soft
}
