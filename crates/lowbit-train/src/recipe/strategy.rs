//! `[strategy]` and `[phases]`: what sets a training apart from a plain one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use lowbit_core::Precision;
use lowbit_core::graph::LayerRole;
use lowbit_models::{Family, InputShape, ModelConfig};
use lowbit_quantizers::{Method, QuantizationPolicy};
use serde::{Serialize, Serializer};

use super::reader::{NumberRange, Section};
use super::{Quantized, Recipe, ScheduleRecipe, TrainRecipe, precision_name, read_network, read_schedule};
use crate::strategy::{
    DistillLoss, Hint, HintTarget, Joint, JointLosses, JointMode, JointStudent, JointTeacher, OptimizerState,
    Phase, Probability, Progressive, QuantizerState, Selector, StochasticPrecision, Strategy, StrategyError,
    TeacherSchedule, TwoStage, Unit, compose_phases, phase_name,
};

/// Temperature from which distillation is known to hurt low-bit students.
const HOT: f64 = 2.0;

/// Weight of the labels in a teacher's loss unless it is said otherwise, Zhuang et al. 2021.
const TEACHER_LABEL_WEIGHT: f64 = 1.0;

/// `[strategy]`: the strategies of a training, in the order in which they are composed.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StrategyRecipe {
    /// Weights first, then activations too.
    pub two_stage: bool,
    /// Bit widths are lowered in steps.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "progressive_table")]
    pub progressive: Option<Progressive>,
    /// A random part is quantized in each step.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "stochastic_table")]
    pub stochastic_precision: Option<StochasticPrecision>,
    /// A full-precision network trains alongside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub joint: Option<Joint>,
    /// Feature maps are drawn to the teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<HintRecipe>,
}

/// `[strategy.hint]`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HintRecipe {
    /// Weight of the distance in the loss.
    pub weight: f64,
    /// Which losses it is added to.
    pub target: HintTarget,
    /// Names of the student's feature maps, as in `ModelConfig::tap_names`.
    pub taps: Vec<&'static str>,
}

impl HintRecipe {
    /// Indices of its feature maps among those of `model`.
    fn taps_of(&self, model: &ModelConfig) -> Vec<usize> {
        let index = |name: &&str| model.tap_names().iter().position(|known| known == name);
        self.taps.iter().filter_map(index).collect()
    }
}

/// `[phases.NAME]`: what a phase changes of `[train]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PhaseRecipe {
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<ScheduleRecipe>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_epochs: Option<f64>,
    optimizer_state: OptimizerState,
    quantizer_state: QuantizerState,
}

impl PhaseRecipe {
    /// Changes all settings but the epochs, to which those of `phase` are scaled already.
    fn apply(&self, phase: &mut Phase) {
        let Self { learning_rate, weight_decay, schedule, warmup_epochs, .. } = self.clone();
        let train = &mut phase.train;
        train.learning_rate = learning_rate.unwrap_or(train.learning_rate);
        train.weight_decay = weight_decay.unwrap_or(train.weight_decay);
        train.schedule = schedule.unwrap_or_else(|| train.schedule.clone());
        train.warmup_epochs = warmup_epochs.unwrap_or(train.warmup_epochs);
        phase.optimizer_state = self.optimizer_state;
        phase.quantizer_state = self.quantizer_state;
    }
}

impl Recipe {
    /// The strategies, in the order in which they are composed.
    pub fn strategies(&self) -> Vec<Box<dyn Strategy>> {
        let StrategyRecipe { two_stage, progressive, stochastic_precision, joint, hint } = &self.strategy;
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
        if let Some(joint) = joint {
            strategies.push(Box::new(joint.clone()));
        }
        if let Some(hint) = hint {
            let HintRecipe { weight, target, .. } = *hint;
            strategies.push(Box::new(Hint { weight, target, taps: hint.taps_of(&self.model) }));
        }
        strategies
    }

    /// The phases of the training with the recipe's own strategies.
    pub fn phases(&self) -> Vec<Phase> {
        self.phases_with(&self.strategies())
            .expect("invariant: the phases of a recipe are checked when it is read")
    }

    /// The phases of the training with `strategies`, with the settings of `[train]` and `[phases]`.
    ///
    /// The epochs of `[train]` are those of the whole training: the last phase, which has the precision asked for, gets
    /// half of them and the others share the rest (decision of this project: methods are compared at equal cost).
    /// Milestones and warm-up shrink, or grow, with the epochs of the phase. A strategy that gives any phase epochs of its
    /// own decides those of all phases, with their milestones and warm-up. `[phases]` has the last word.
    ///
    /// # Errors
    /// [`PhasesError`] if two phases have the same name, one has no epoch, or there is none.
    pub fn phases_with(&self, strategies: &[Box<dyn Strategy>]) -> Result<Vec<Phase>, PhasesError> {
        let mut phases = self.composed_phases(strategies)?;
        let names: Vec<String> = phases.iter().map(|phase| phase.name.clone()).collect();
        let too_few = || PhasesError::TooFewEpochs { epochs: self.train.epochs, phases: names.clone() };
        let are_own = phases.iter().any(|phase| phase.train.epochs != self.train.epochs);
        let shares = divided_epochs(self.train.epochs, phases.len() as u64);
        for (i, phase) in phases.iter_mut().enumerate() {
            let change = self.phases.get(&phase.name);
            match change.and_then(|change| change.epochs) {
                Some(epochs) => resize(&mut phase.train, epochs),
                None if are_own && phase.train.epochs == 0 => {
                    return Err(PhasesError::NoEpochs { name: phase.name.clone() });
                }
                None if are_own => {}
                None => resize(&mut phase.train, shares.as_ref().ok_or_else(too_few)?[i]),
            }
            if let Some(change) = change {
                change.apply(phase);
            }
        }
        Ok(phases)
    }

    /// What to say of a strategy that gives phases epochs of its own, so that those of `[train]` have no effect.
    ///
    /// # Errors
    /// [`PhasesError`] if there can be no such phases.
    pub(crate) fn overruled_epochs(
        &self,
        strategies: &[Box<dyn Strategy>],
    ) -> Result<Option<String>, PhasesError> {
        for (i, strategy) in strategies.iter().enumerate() {
            let phases = self.composed_phases(&strategies[..=i])?;
            if phases.iter().any(|phase| phase.train.epochs != self.train.epochs) {
                let epochs = |phase: &Phase| format!("{} of {}", phase.train.epochs, phase.name);
                let epochs: Vec<String> = self.phases_with(strategies)?.iter().map(epochs).collect();
                return Ok(Some(format!(
                    "train.epochs={} has no effect: strategy {:?} gives its phases epochs of their own; they train {}",
                    self.train.epochs,
                    strategy.name(),
                    epochs.join(", "),
                )));
            }
        }
        Ok(None)
    }

    /// The settings of `[train]` for a training of `epochs`.
    pub(crate) fn train_over(&self, epochs: u64) -> TrainRecipe {
        let mut train = self.train.clone();
        resize(&mut train, epochs);
        train
    }

    /// The phases as `strategies` make them, each with the settings of `[train]`.
    fn composed_phases(&self, strategies: &[Box<dyn Strategy>]) -> Result<Vec<Phase>, StrategyError> {
        let floor = self.quantization.target();
        let single = Phase {
            name: phase_name(floor.weight_bits, floor.act_bits),
            floor,
            train: self.train.clone(),
            optimizer_state: OptimizerState::default(),
            quantizer_state: QuantizerState::default(),
        };
        compose_phases(strategies, single)
    }

    /// Epochs of all phases together.
    pub fn total_epochs(&self) -> u64 {
        self.phases().iter().map(|phase| phase.train.epochs).sum()
    }

    /// What is allowed, but known to be a bad idea.
    pub fn warnings(&self) -> Vec<String> {
        let joint = self.strategy.joint.as_ref();
        let temperature = joint.and_then(|joint| match joint.losses.distance {
            DistillLoss::Kl { temperature } => Some(temperature),
            DistillLoss::LogitsMse => None,
        });
        let hot = temperature.filter(|&temperature| temperature >= HOT).map(|temperature| {
            format!(
                "strategy.joint.distance.temperature is {temperature}: from {HOT} on, distillation is known to hurt \
                 low-bit students; the paper uses 1"
            )
        });
        let hint = self.strategy.hint.as_ref().zip(joint).and_then(|(_, joint)| {
            let networks = [("the student", &self.model), ("the teacher", &joint.teacher.model)];
            let unnormalized = networks.iter().find(|(_, model)| model.family == Family::PreResNet);
            unnormalized.map(|(whose, _)| {
                format!(
                    "strategy.hint compares feature maps in [0, 1], but those of {whose}, a preresnet, are sums of blocks \
                     without normalization or ReLU, half of them negative: take model.family = \"resnet\", or leave hints out"
                )
            })
        });
        let without_gradient = self.without_gradient().map(|layer| {
            format!(
                "model.norm = false leaves {layer} and all before it without a gradient: dorefa's weights reach up to 1, and \
                 without BatchNorm their sums leave [0, 1], where alone its activations pass one: take model.norm = true or \
                 quantization.method = \"lsq\""
            )
        });
        hot.into_iter().chain(hint).chain(without_gradient).collect()
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
            quantization.method == Method::DoReFa
                && quantization.weight_bits != Precision::FullPrecision
                && quantization.act_bits != Precision::FullPrecision
        });
        found.map(|layer| layer.path)
    }
}

/// Phases that no training can have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PhasesError {
    /// There are more phases than epochs.
    #[error("train.epochs={epochs} is too few for {} phases ({}): at least {}, or give [phases.NAME] epochs of their own, or drop a part of [strategy]", .phases.len(), .phases.join(", "), .phases.len())]
    TooFewEpochs {
        /// Epochs of the training.
        epochs: u64,
        /// Names of the phases.
        phases: Vec<String>,
    },
    /// A strategy makes phases that cannot be told apart, or none.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// A strategy gives a phase no epoch.
    #[error("the strategies give phase {name:?} no epoch")]
    NoEpochs {
        /// Its name.
        name: String,
    },
}

/// The epochs of each of `n_phases` phases of a training of `epochs`: half for the last, equal shares for the others, of
/// which each has at least one. `None` if there are more phases than epochs.
fn divided_epochs(epochs: u64, n_phases: u64) -> Option<Vec<u64>> {
    let n_early = n_phases - 1;
    let early = if n_early == 0 { 0 } else { (epochs / 2).max(n_early) };
    let last = epochs.checked_sub(early).filter(|&last| last > 0)?;
    let share = |phase: u64| early * (phase + 1) / n_early - early * phase / n_early;
    Some((0..n_early).map(share).chain([last]).collect())
}

/// Gives `train` other epochs; what it counts in epochs changes in proportion.
fn resize(train: &mut TrainRecipe, epochs: u64) {
    let scale = epochs as f64 / train.epochs as f64;
    train.epochs = epochs;
    train.warmup_epochs = (train.warmup_epochs * scale).min(epochs as f64);
    if let ScheduleRecipe::MultiStep { milestones, .. } = &mut train.schedule {
        for milestone in milestones.iter_mut() {
            *milestone = ((*milestone as f64 * scale).round_ties_even() as u64).max(1);
        }
        milestones.dedup();
    }
}

pub(super) fn read_strategy(section: Option<Section<'_>>, recipe: &RecipeSoFar<'_>) -> StrategyRecipe {
    let Some(section) = section else { return StrategyRecipe::default() };
    let strategy = StrategyRecipe {
        two_stage: section.boolean("two_stage", false),
        progressive: section.optional_section("progressive").map(|section| read_progressive(section, recipe)),
        stochastic_precision: section
            .optional_section("stochastic_precision")
            .map(|section| read_stochastic(section, recipe)),
        joint: section.optional_section("joint").map(|section| read_joint(section, recipe)),
        hint: section.optional_section("hint").map(|section| read_hint(section, recipe)),
    };
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
        check_hint(&section, &strategy, recipe);
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

    /// Reports a strategy that has nothing to quantize. Returns whether it did.
    fn refuse_full_precision(&self, section: &Section<'_>, what: &str) -> bool {
        let refused = !self.has_mistakes && self.quantized() == Quantized::NOTHING;
        if refused {
            section.problem_here(format!("{what}, but nothing is quantized: remove it, or lower the bits"));
        }
        refused
    }
}

fn read_progressive(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> Progressive {
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

fn read_stochastic(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> StochasticPrecision {
    #[derive(Clone, Copy, PartialEq)]
    enum UnitName {
        Block,
        Layer,
        ChannelGroup,
    }
    recipe.refuse_full_precision(&section, "quantizes a random part in each step");
    let units =
        [("block", UnitName::Block), ("layer", UnitName::Layer), ("channel-group", UnitName::ChannelGroup)];
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
        },
        probability: read_probability(section.optional_section("probability")),
        final_share: section.number("final_share", 0.2, &NumberRange::FRACTION),
        selector: section.optional_choice("selector", &selectors).unwrap_or(Selector::Bernoulli),
    };
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
        Stepped,
    }
    let Some(section) = section else { return Probability::Linear { from: 0.0 } };
    let kinds = [
        ("linear", Kind::Linear),
        ("cosine", Kind::Cosine),
        ("exponential", Kind::Exponential),
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

fn read_joint(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> Joint {
    recipe.refuse_full_precision(&section, "trains a low-bit student beside a full-precision network");
    let modes = [
        ("mutual", JointMode::Mutual),
        ("student-only", JointMode::StudentOnly),
        ("frozen", JointMode::Frozen),
    ];
    let mode = section.optional_choice("mode", &modes).unwrap_or(JointMode::Mutual);
    let weight = |key: &str, default: f64| section.number(key, default, &NumberRange::NOT_NEGATIVE);
    // Zhuang et al. 2021, CIFAR-100.
    let losses = JointLosses {
        distance: read_distance(section.optional_section("distance")),
        student_label_weight: weight("student_label_weight", 0.7),
        student_distill_weight: weight("student_distill_weight", 0.7),
        teacher_label_weight: weight("teacher_label_weight", TEACHER_LABEL_WEIGHT),
        teacher_distill_weight: weight(
            "teacher_distill_weight",
            if mode == JointMode::Mutual { 0.5 } else { 0.0 },
        ),
        mode,
    };
    if mode != JointMode::Mutual && losses.teacher_distill_weight > 0.0 {
        section.problem("teacher_distill_weight", "has no effect unless mode = \"mutual\": remove this key");
    }
    // A resolved recipe has the default written out.
    if mode == JointMode::Frozen && losses.teacher_label_weight != TEACHER_LABEL_WEIGHT {
        section.problem("teacher_label_weight", "has no effect on a frozen teacher: remove this key");
    }
    if losses.student_label_weight == 0.0 && losses.student_distill_weight == 0.0 {
        section.problem_here(
            "student_label_weight and student_distill_weight are both 0: the student would learn from neither the labels \
             nor the teacher",
        );
    }
    let teacher = section.section("teacher");
    let init = teacher.optional_text("init").map(PathBuf::from);
    if mode == JointMode::Frozen && init.is_none() {
        teacher.problem("init", "is missing; a frozen teacher needs the run directory of a trained network");
    }
    let learning_rate_scale = teacher.number("learning_rate_scale", 1.0, &NumberRange::POSITIVE);
    if mode == JointMode::Frozen && learning_rate_scale != 1.0 {
        teacher.problem("learning_rate_scale", "has no effect on a frozen teacher: remove this key");
    }
    let schedules =
        [("whole-training", TeacherSchedule::WholeTraining), ("per-phase", TeacherSchedule::PerPhase)];
    let schedule = teacher.optional_choice("schedule", &schedules).unwrap_or_default();
    if mode == JointMode::Frozen && schedule != TeacherSchedule::default() {
        teacher.problem("schedule", "has no effect on a frozen teacher: remove this key");
    }
    let model = read_network(teacher, Some(recipe.model));
    let teacher = JointTeacher { model, learning_rate_scale, schedule, init };
    let students = section.sections("students").into_iter().map(|student| {
        let bits = JointStudent {
            weight_bits: student.precision("weight_bits"),
            act_bits: student.precision("act_bits"),
        };
        let policy = bits.policy(recipe.policy);
        let is_known = !recipe.has_mistakes && !student.has_problems();
        if is_known && Quantized::of(&policy, recipe.model) == Quantized::NOTHING {
            student.problem_here("has nothing quantized: the full-precision network is the teacher");
        }
        student.finish();
        bits
    });
    let joint = Joint { losses, teacher, students: students.collect() };
    section.finish();
    joint
}

fn read_distance(section: Option<Section<'_>>) -> DistillLoss {
    #[derive(Clone, Copy)]
    enum Kind {
        Kl,
        LogitsMse,
    }
    let Some(section) = section else { return DistillLoss::Kl { temperature: 1.0 } };
    let kind = section.choice("kind", &[("kl", Kind::Kl), ("logits-mse", Kind::LogitsMse)]);
    if section.has_problems() {
        return DistillLoss::Kl { temperature: 1.0 };
    }
    let distance = match kind {
        Kind::Kl => {
            DistillLoss::Kl { temperature: section.number("temperature", 1.0, &NumberRange::POSITIVE) }
        }
        Kind::LogitsMse => DistillLoss::LogitsMse,
    };
    section.finish();
    distance
}

fn read_hint(section: Section<'_>, recipe: &RecipeSoFar<'_>) -> HintRecipe {
    let targets = [("student", HintTarget::Student), ("both", HintTarget::Both)];
    let names = recipe.model.tap_names();
    let known: Vec<(&str, &'static str)> = names.iter().map(|&name| (name, name)).collect();
    let hint = HintRecipe {
        weight: section.required_number("weight", &NumberRange::POSITIVE),
        target: section.optional_choice("target", &targets).unwrap_or(HintTarget::Student),
        taps: section.optional_choices("taps", &known).unwrap_or_else(|| names.to_vec()),
    };
    section.finish();
    hint
}

fn check_hint(section: &Section<'_>, strategy: &StrategyRecipe, recipe: &RecipeSoFar<'_>) {
    let Some(hint) = &strategy.hint else { return };
    let Some(joint) = &strategy.joint else {
        section.problem("hint", "draws feature maps to a teacher's: it needs [strategy.joint]");
        return;
    };
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

/// `[phases]`, checked against the phases that there are.
pub(super) fn read_phases(root: &Section<'_>, recipe: &mut Recipe) {
    if let Some(section) = root.optional_section("phases") {
        read_changes(section, recipe);
    }
    // With mistakes in what makes them, the phases are not those that are meant.
    if !root.any_in(&MAKES_PHASES)
        && !root.any_in(&["train", "phases"])
        && let Err(error) = recipe.phases_with(&recipe.strategies())
    {
        root.problem("strategy", error.to_string());
    }
}

/// The keys that decide which phases there are, and their names.
const MAKES_PHASES: [&str; 4] = ["data.dataset", "model", "quantization", "strategy"];

fn read_changes(section: Section<'_>, recipe: &mut Recipe) {
    let has_mistakes = section.any_in(&MAKES_PHASES);
    // What is wrong with the phases themselves is said once all is read.
    let Ok(mut phases) = recipe.composed_phases(&recipe.strategies()) else { return };
    let n_phases = phases.len() as u64;
    // Where there are too few, the phases may have epochs of their own.
    let shares = divided_epochs(recipe.train.epochs, n_phases).unwrap_or_else(|| vec![1; phases.len()]);
    for (phase, share) in phases.iter_mut().zip(shares) {
        resize(&mut phase.train, share);
    }
    let names: Vec<String> = phases.iter().map(|phase| phase.name.clone()).collect();
    let mut changes = BTreeMap::new();
    for (name, table) in section.subsections() {
        match phases.iter().find(|phase| phase.name == name) {
            Some(phase) => {
                changes.insert(name, read_phase(table, phase.train.clone()));
            }
            // Of a precision that is not the one that is meant, the phases have other names.
            None if has_mistakes => drop(read_phase(table, recipe.train.clone())),
            None => section.problem(&name, format!("no such phase; the phases are {}", names.join(", "))),
        }
    }
    recipe.phases = changes;
    section.finish();
}

fn read_phase(section: Section<'_>, mut train: TrainRecipe) -> PhaseRecipe {
    let epochs = section.optional_integer("epochs", 1..=100_000);
    let n_epochs = epochs.unwrap_or(train.epochs);
    resize(&mut train, n_epochs);
    let schedule = section.optional_section("schedule").map(|schedule| read_schedule(Some(schedule)));
    let optimizer = [("fresh", OptimizerState::Fresh), ("kept", OptimizerState::Kept)];
    let quantizers = [("recalibrated", QuantizerState::Recalibrated), ("rescaled", QuantizerState::Rescaled)];
    let phase = PhaseRecipe {
        epochs,
        learning_rate: section.optional_number("learning_rate", &NumberRange::POSITIVE),
        weight_decay: section.optional_number("weight_decay", &NumberRange::NOT_NEGATIVE),
        warmup_epochs: section.optional_number("warmup_epochs", &NumberRange::NOT_NEGATIVE),
        optimizer_state: section.optional_choice("optimizer_state", &optimizer).unwrap_or_default(),
        quantizer_state: section.optional_choice("quantizer_state", &quantizers).unwrap_or_default(),
        schedule,
    };
    let warmup_epochs = phase.warmup_epochs.unwrap_or(train.warmup_epochs);
    if warmup_epochs > n_epochs as f64 {
        section.problem("warmup_epochs", format!("{warmup_epochs} is more than all {n_epochs} epochs"));
    }
    section.finish();
    phase
}

/// Writes the form that `read_progressive` reads.
fn progressive_table<S: Serializer>(
    progressive: &Option<Progressive>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let table = progressive.as_ref().map(|progressive| BTreeMap::from([("ladder", &progressive.ladder)]));
    table.serialize(serializer)
}

/// Writes the form that `read_stochastic` reads.
fn stochastic_table<S: Serializer>(
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
        };
        Table { unit, groups, final_share: *final_share, selector: *selector, probability }
    });
    table.serialize(serializer)
}
