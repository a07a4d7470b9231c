//! `[strategy]`: what sets a training apart from a plain one. Each strategy that has a table has a file for it.

mod damping;
mod freezing;
mod hint;
mod joint;
mod progressive;
mod sharpness;
mod soft_weights;
mod stochastic;
mod transition_rate;

use lowbit_core::Precision;
use lowbit_core::graph::LayerRole;
use lowbit_models::{InputShape, ModelConfig};
use lowbit_quantizers::{Method, QuantizationPolicy};
use serde::Serialize;

pub use self::hint::HintRecipe;
use super::reader::{NumberRange, Section};
use super::{Quantized, Recipe, layers_or_roles, precision_name};
use crate::strategy::{
    Damping, Freezing, Hint, Joint, Progressive, Sharpness, SoftWeights, StochasticPrecision, Strategy,
    TransitionRate, TwoStage,
};

/// Above 0, up to 1.
const SHARE: NumberRange = NumberRange { max: 1.0, ..NumberRange::POSITIVE };

/// `[strategy]`: the strategies of a training, in the order in which they are composed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StrategyRecipe {
    /// Weights first, then activations too.
    pub two_stage: bool,
    /// Bit widths are lowered in steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progressive: Option<Progressive>,
    /// A random part is quantized in each step.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "stochastic::table")]
    pub stochastic_precision: Option<StochasticPrecision>,
    /// Weights are rounded more and more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_weights: Option<SoftWeights>,
    /// A full-precision network trains alongside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joint: Option<Joint>,
    /// Feature maps are drawn to the teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<HintRecipe>,
    /// Weights are drawn to their levels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damping: Option<Damping>,
    /// The learning rate of weights follows how many of them change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transition_rate: Option<TransitionRate>,
    /// Weights that oscillate are held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freezing: Option<Freezing>,
    /// Gradients are taken beside the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sharpness: Option<Sharpness>,
}

impl Recipe {
    /// The strategies, in the order in which they are composed.
    pub fn strategies(&self) -> Vec<Box<dyn Strategy>> {
        let StrategyRecipe {
            two_stage,
            progressive,
            stochastic_precision,
            soft_weights,
            joint,
            hint,
            damping,
            transition_rate,
            freezing,
            sharpness,
        } = &self.strategy;
        let mut strategies: Vec<Box<dyn Strategy>> = Vec::new();
        if let Some(progressive) = progressive {
            strategies.push(Box::new(progressive.clone()));
        }
        if *two_stage {
            strategies.push(Box::new(TwoStage));
        }
        if let Some(stochastic) = stochastic_precision {
            strategies.push(Box::new(stochastic.clone()));
        }
        if let Some(soft) = soft_weights {
            strategies.push(Box::new(*soft));
        }
        if let Some(joint) = joint {
            strategies.push(Box::new(joint.clone()));
        }
        if let Some(hint) = hint {
            let HintRecipe { weight, target, grid, maps, .. } = *hint;
            let taps = hint.taps_of(&self.model);
            strategies.push(Box::new(Hint { weight, target, grid, maps, taps }));
        }
        if let Some(damping) = damping {
            strategies.push(Box::new(*damping));
        }
        if let Some(rate) = transition_rate {
            strategies.push(Box::new(*rate));
        }
        if let Some(freezing) = freezing {
            strategies.push(Box::new(*freezing));
        }
        if let Some(sharpness) = sharpness {
            strategies.push(Box::new(*sharpness));
        }
        strategies
    }

    /// What is allowed, but known to be a bad idea.
    pub fn warnings(&self) -> Vec<String> {
        let without_gradient = self.without_gradient().map(|layer| {
            format!(
                "model.norm = false leaves {layer} and all before it without a gradient: dorefa's weights reach up to 1, and \
                 without BatchNorm their sums leave [0, 1], where alone its activations pass one: take model.norm = true or \
                 quantization.method = \"lsq\""
            )
        });
        let of_strategies = [joint::warning(self), hint::warning(self)].into_iter().flatten();
        of_strategies.chain(without_gradient).collect()
    }

    /// The last hidden layer with DoReFa's weights and input in a network without normalization.
    fn without_gradient(&self) -> Option<String> {
        if self.model.norm != Some(false) {
            return None;
        }
        let layers = self.model.layers().unwrap_or_default().into_iter().rev();
        let mut layers = layers.filter(|layer| layer.role == LayerRole::Hidden);
        let found = layers.find(|layer| {
            let quantization = self.quantization.policy.resolve(&layer.path, layer.role);
            quantization.weight_method == Method::DoReFa
                && quantization.act_method == Method::DoReFa
                && quantization.weight_bits != Precision::FullPrecision
                && quantization.act_bits != Precision::FullPrecision
        });
        found.map(|layer| layer.path)
    }
}

pub(super) fn read_strategy(section: Option<Section<'_>>, recipe: &RecipeSoFar<'_>) -> StrategyRecipe {
    let Some(section) = section else { return StrategyRecipe::default() };
    let strategy = StrategyRecipe {
        two_stage: section.boolean("two_stage", false),
        progressive: section
            .optional_section("progressive")
            .map(|section| progressive::read(section, recipe)),
        stochastic_precision: section
            .optional_section("stochastic_precision")
            .map(|section| stochastic::read(section, recipe)),
        soft_weights: section
            .optional_section("soft_weights")
            .map(|section| soft_weights::read(section, recipe)),
        joint: section.optional_section("joint").map(|section| joint::read(section, recipe)),
        hint: section.optional_section("hint").map(|section| hint::read(section, recipe)),
        damping: section.optional_section("damping").map(|section| damping::read(section, recipe)),
        transition_rate: section
            .optional_section("transition_rate")
            .map(|section| transition_rate::read(section, recipe)),
        freezing: section.optional_section("freezing").map(|section| freezing::read(section, recipe)),
        sharpness: section.optional_section("sharpness").map(|section| sharpness::read(section, recipe)),
    };
    if strategy.soft_weights.is_some() && strategy.stochastic_precision.is_some() {
        section.problem(
            "soft_weights",
            "and [strategy.stochastic_precision] both decide how weights are rounded in a step: take one of them",
        );
    }
    if strategy.two_stage && !recipe.has_mistakes {
        let quantized = recipe.quantized();
        let base = recipe.policy.base;
        if !quantized.weights || !quantized.activations {
            section.problem(
                "two_stage",
                "quantizes the weights first and then the activations, but there are not both to quantize: remove it, or \
                 lower the bits",
            );
        } else if [base.weight_bits, base.act_bits].contains(&Precision::FullPrecision) {
            section.problem("two_stage", recipe.goes_by_the_base());
        }
    }
    if !recipe.has_mistakes {
        hint::check(&section, &strategy, recipe);
    }
    section.finish();
    strategy
}

/// The rest of a recipe, as far as strategies depend on it.
pub(super) struct RecipeSoFar<'a> {
    pub(super) policy: &'a QuantizationPolicy,
    pub(super) model: &'a ModelConfig,
    pub(super) input: InputShape,
    /// Whether a mistake in it was reported: then it is not what was meant, and what does not fit it may be right.
    pub(super) has_mistakes: bool,
}

impl RecipeSoFar<'_> {
    /// The precision of the base.
    fn target(&self) -> String {
        precision_name(self.policy.base.weight_bits, self.policy.base.act_bits)
    }

    /// What is quantized in any layer, by whatever key.
    fn quantized(&self) -> Quantized {
        Quantized::of(self.policy, self.model)
    }

    /// Whether layers that no other key concerns are in full precision.
    fn has_full_precision_base(&self) -> bool {
        !self.policy.base.is_quantized()
    }

    /// What to say of a strategy that makes phases where the bits of the base do not give any.
    fn goes_by_the_base(&self) -> String {
        format!(
            "goes by quantization.weight_bits and act_bits, and has nothing to do at {}: lower these, and give \"fp32\" to \
             the layers that stay in full precision",
            self.target()
        )
    }

    /// Reports a strategy of quantized weights where there are none.
    fn refuse_without_weights(&self, section: &Section<'_>, what: &str) {
        if !self.has_mistakes && !self.quantized().weights {
            section.problem_here(format!(
                "{what}, but no weights are quantized: remove it, or lower weight_bits"
            ));
        }
    }

    /// Reports a strategy of methods that are `fit` for it where weights have another one, with what `message` makes of that one and
    /// the names of those.
    fn refuse_weight_methods(
        &self,
        section: &Section<'_>,
        fit: fn(Method) -> bool,
        message: impl Fn(Method, String) -> String,
    ) {
        if self.has_mistakes {
            return;
        }
        let layers = layers_or_roles(self.model).into_iter();
        let mut layers = layers.map(|layer| self.policy.resolve(&layer.path, layer.role));
        let unfit =
            layers.find(|layer| layer.weight_bits != Precision::FullPrecision && !fit(layer.weight_method));
        if let Some(layer) = unfit {
            let others = Method::ALL.iter().filter(|method| fit(**method));
            let others: Vec<String> = others.map(|method| format!("{:?}", method.name())).collect();
            section.problem_here(message(layer.weight_method, others.join(", ")));
        }
    }

    /// Reports a strategy that has nothing to quantize. Returns whether it did.
    fn refuse_full_precision(&self, section: &Section<'_>, what: &str) -> bool {
        let refused = !self.has_mistakes && self.quantized() == Quantized::NOTHING;
        if refused {
            section.problem_here(format!("{what}, but nothing is quantized: remove it, or lower the bits"));
        }
        refused
    }
}
