//! `[strategy.progressive]`.

use lowbit_core::Precision;

use super::RecipeSoFar;
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::Progressive;

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> Progressive {
    let ladder = section.optional_precisions("ladder").unwrap_or_else(Progressive::default_ladder);
    let refused = recipe.refuse_full_precision(&section, "lowers bit widths step by step");
    if !refused && !recipe.has_mistakes && recipe.has_full_precision_base() {
        section.problem_here(recipe.goes_by_the_base());
    }
    let descends = ladder.windows(2).all(|pair| pair[0].stored_bits() > pair[1].stored_bits());
    if !descends {
        section.problem("ladder", format!("expected descending bit widths, got {}", names(&ladder)));
    }
    let base = recipe.policy.base;
    let target = base.weight_bits.stored_bits().min(base.act_bits.stored_bits());
    let is_low = ladder.first().is_none_or(|first| first.stored_bits() <= target);
    if is_low && !recipe.has_mistakes && !recipe.has_full_precision_base() {
        section.problem("ladder", format!("has no rung above {}: got {}", recipe.target(), names(&ladder)));
    }
    let low_bit_rate_scale = section.number("low_bit_rate_scale", 1.0, &NumberRange::POSITIVE);
    section.finish();
    Progressive { ladder, low_bit_rate_scale }
}

fn names(ladder: &[Precision]) -> String {
    let names: Vec<String> = ladder.iter().map(ToString::to_string).collect();
    format!("[{}]", names.join(", "))
}
