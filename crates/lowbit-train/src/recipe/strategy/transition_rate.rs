//! `[strategy.transition_rate]`.

use super::{RecipeSoFar, SHARE};
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::TransitionRate;

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> TransitionRate {
    recipe.refuse_without_weights(&section, "schedules how many quantized weights change");
    let rate = TransitionRate {
        target: section.number("target", 0.005, &SHARE),
        gain: section.number("gain", 0.05, &NumberRange::POSITIVE),
    };
    section.finish();
    rate
}
