//! `[strategy.stochastic_precision]`.

use serde::{Serialize, Serializer};

use super::RecipeSoFar;
use crate::recipe::reader::{NumberRange, Section};
use crate::strategy::{Probability, Selector, StochasticPrecision, Unit};

pub(super) fn read(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> StochasticPrecision {
    #[derive(Clone, Copy, PartialEq)]
    enum UnitName {
        Block,
        Layer,
        ChannelGroup,
        Weight,
    }
    recipe.refuse_full_precision(&section, "quantizes a random part in each step");
    let units = [
        ("block", UnitName::Block),
        ("layer", UnitName::Layer),
        ("channel-group", UnitName::ChannelGroup),
        ("weight", UnitName::Weight),
    ];
    let unit = section.optional_choice("unit", &units).unwrap_or(UnitName::Block);
    if unit != UnitName::ChannelGroup && section.has("groups") {
        section.problem("groups", "is the number of groups for unit = \"channel-group\": remove this key");
    }
    let groups = section.integer("groups", 4, 2..=1024) as usize;
    let selectors = [("bernoulli", Selector::Bernoulli), ("roulette", Selector::Roulette)];
    let stochastic = StochasticPrecision {
        unit: match unit {
            UnitName::Block => Unit::Block,
            UnitName::Layer => Unit::Layer,
            UnitName::ChannelGroup => Unit::ChannelGroup(groups),
            UnitName::Weight => Unit::Weight,
        },
        probability: read_probability(section.optional_section("probability")),
        final_share: section.number("final_share", 0.2, &NumberRange::FRACTION),
        selector: section.optional_choice("selector", &selectors).unwrap_or(Selector::Bernoulli),
    };
    if unit == UnitName::Weight {
        if !recipe.has_mistakes && !recipe.quantized().weights {
            section.problem("unit", "\"weight\" draws single quantized weights, and there are none");
        }
        if stochastic.selector == Selector::Roulette {
            section
                .problem("selector", "\"roulette\" draws layers or more: take unit = \"layer\" or \"block\"");
        }
    }
    if stochastic.selector == Selector::Roulette && !recipe.has_mistakes && !recipe.quantized().weights {
        section
            .problem("selector", "\"roulette\" weighs by the error of quantized weights, and there are none");
    }
    section.finish();
    stochastic
}

fn read_probability(section: Option<Section<'_>>) -> Probability {
    #[derive(Clone, Copy)]
    enum Kind {
        Linear,
        Cosine,
        Exponential,
        Logarithmic,
        Stepped,
    }
    let Some(section) = section else { return Probability::Linear { from: 0.0 } };
    let kinds = [
        ("linear", Kind::Linear),
        ("cosine", Kind::Cosine),
        ("exponential", Kind::Exponential),
        ("logarithmic", Kind::Logarithmic),
        ("stepped", Kind::Stepped),
    ];
    let kind = section.choice("kind", &kinds);
    if section.has_problems() {
        // Of which kind the other keys are is not known.
        return Probability::Linear { from: 0.0 };
    }
    let from = || section.number("from", 0.0, &NumberRange::FRACTION);
    let probability = match kind {
        Kind::Linear => Probability::Linear { from: from() },
        Kind::Cosine => Probability::Cosine { from: from() },
        Kind::Exponential => Probability::Exponential { from: from() },
        Kind::Logarithmic => Probability::Logarithmic { from: from() },
        Kind::Stepped => {
            let values = section.optional_numbers("values").unwrap_or_else(|| Probability::STAGES.to_vec());
            let in_range = values.iter().all(|value| (0.0..=1.0).contains(value));
            if values.is_empty() || !in_range || values.windows(2).any(|pair| pair[0] > pair[1]) {
                section.problem("values", format!("expected ascending numbers from 0 to 1, got {values:?}"));
            }
            Probability::Stepped { values }
        }
    };
    section.finish();
    probability
}

/// Writes the form that [`read`] reads.
pub(super) fn table<S: Serializer>(
    stochastic: &Option<StochasticPrecision>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Table<'a> {
        unit: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        groups: Option<usize>,
        final_share: f64,
        selector: Selector,
        probability: &'a Probability,
    }
    let table = stochastic.as_ref().map(|stochastic| {
        let StochasticPrecision { unit, probability, final_share, selector } = stochastic;
        let (unit, groups) = match *unit {
            Unit::Block => ("block", None),
            Unit::Layer => ("layer", None),
            Unit::ChannelGroup(groups) => ("channel-group", Some(groups)),
            Unit::Weight => ("weight", None),
        };
        Table { unit, groups, final_share: *final_share, selector: *selector, probability }
    });
    table.serialize(serializer)
}
