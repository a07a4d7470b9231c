//! `[strategy.freezing]`.

use lowbit_quantizers::Method;

use super::{RecipeSoFar, SHARE};
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::Freezing;

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> Freezing {
    recipe.refuse_without_weights(&section, "freezes quantized weights that oscillate");
    recipe.refuse_weight_methods(&section, Method::holds_levels, |method, others| {
        format!(
            "holds a weight at the value of its code, which {method} may give another code: take weight_method = {others}"
        )
    });
    if !recipe.has_mistakes && recipe.policy.base.standardizes_weights {
        section.problem_here(
            "holds latent weights, which quantization.weight_standardization moves again: take one of them",
        );
    }
    let below_one = NumberRange { max: NumberRange::FRACTION.max, ..SHARE };
    let freezing = Freezing {
        from: section.number("from", 0.1, &SHARE),
        to: section.number("to", 0.02, &SHARE),
        momentum: section.number("momentum", 0.02, &below_one),
    };
    if freezing.to > freezing.from {
        section
            .problem("to", format!("expected at most from, which is {}, got {}", freezing.from, freezing.to));
    }
    section.finish();
    freezing
}
