//! `[strategy.progressive]`.

use std::collections::BTreeMap;

use lowbit_core::Precision;
use serde::{Serialize, Serializer};

use super::RecipeSoFar;
use crate::recipe::reader::Section;
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
    section.finish();
    Progressive { ladder }
}

fn names(ladder: &[Precision]) -> String {
    let names: Vec<String> = ladder.iter().map(ToString::to_string).collect();
    format!("[{}]", names.join(", "))
}

/// Writes the form that [`read`] reads.
pub(super) fn table<S: Serializer>(
    progressive: &Option<Progressive>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let table = progressive.as_ref().map(|progressive| BTreeMap::from([("ladder", &progressive.ladder)]));
    table.serialize(serializer)
}
