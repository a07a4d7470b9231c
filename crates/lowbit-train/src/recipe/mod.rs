//! A recipe: everything that decides the outcome of a training, checked as a whole before anything runs.
//!
//! A recipe is one TOML file, or several that extend one another ([`RecipeSource`]). [`Recipe::parse`] reads it key by key and
//! reports all mistakes together; what it returns is valid, so no later code checks again. A recipe serializes to the TOML of its
//! resolved form, with every default written out, which reads back as the same recipe.

mod augment;
mod data;
mod embedded;
mod phases;
mod reader;
mod source;
mod strategy;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use globset::Glob;
use lowbit_core::{Granularity, Precision};
use lowbit_models::{Family, LayerPlan, Layout, ModelConfig, ModelError, NamedLayer, Plan};
use lowbit_quantizers::{
    LayerOverride, LayerQuantization, LayerRole, Method, Operand, PrecisionFloor, QuantizationPolicy,
    QuantizerError,
};
use serde::Serialize;
use serde::ser::SerializeStruct;
use toml::{Table, Value};

pub use lowbit_core::Compute;
pub use lowbit_strategies::{OptimizerRecipe, QuantizerGroup, ScheduleRecipe, TrainRecipe};

use data::read_data;
pub use data::{DataRecipe, DatasetChoice, FolderForm};
pub use embedded::{BASES, BIT_WIDTHS, DEFAULT, EmbeddedRecipe, METHODS, Part, embedded};
pub use phases::{PhaseRecipe, PhasesError};
pub use reader::Problem;
use reader::{NumberRange, Problems, Section};
pub use source::RecipeSource;
use strategy::RecipeSoFar;
pub use strategy::{HintRecipe, StrategyRecipe};

/// Version of the recipe format.
const SCHEMA: u64 = 1;

/// A checked recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    schema: u64,
    /// Name of the recipe, also of its run directories.
    pub name: String,
    /// Seed of everything random.
    pub seed: u64,
    /// What to compare the result with, shown beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Run directory or checkpoint whose weights the students begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// The images.
    pub data: DataRecipe,
    /// The network.
    pub model: ModelConfig,
    /// The precision of its layers.
    pub quantization: QuantizationRecipe,
    /// How it is trained; in a training of several phases, each of them.
    pub train: TrainRecipe,
    /// What sets it apart from plain training.
    pub strategy: StrategyRecipe,
    /// What some phases change of `train`, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, PhaseRecipe>,
    /// When the training ends before its epochs are over, if it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub early_stopping: Option<EarlyStoppingRecipe>,
    /// What is kept of the training.
    pub checkpoint: CheckpointRecipe,
}

/// `[quantization]`: the precision of every layer.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizationRecipe {
    /// Resolved policy.
    pub policy: QuantizationPolicy,
    /// Bits of the gradients of the outputs of layers that the policy quantizes, in the backward pass.
    pub grad_bits: Precision,
}

/// `[early_stopping]`: when a training ends before its epochs are over.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EarlyStoppingRecipe {
    /// Epochs of the last phase without a better accuracy on the validation images, after which the training ends.
    pub patience: u64,
    /// A better accuracy, from 0 to 1, is above the best by more than this.
    pub min_gain: f64,
}

/// Default of [`CheckpointRecipe::every_minutes`].
const EVERY_MINUTES: f64 = 10.0;

/// `[checkpoint]`: what is saved and kept.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CheckpointRecipe {
    /// Epochs between checkpoints.
    pub every_epochs: u64,
    /// Steps between further checkpoints inside an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<u64>,
    /// Minutes after which another checkpoint is saved, if none was; 0 for none by time. They change nothing else.
    pub every_minutes: f64,
    /// Newest checkpoints that are kept, besides the best.
    pub keep_last: usize,
}

/// A recipe that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// The text is not TOML.
    #[error("{origin} is not valid TOML: {message}")]
    Syntax {
        /// Where the text comes from.
        origin: String,
        /// What the parser says, with line and column.
        message: String,
    },
    /// The recipe has mistakes.
    #[error("{origin} has {}:{}", count(problems), list(problems))]
    Invalid {
        /// Where the recipe comes from.
        origin: String,
        /// All mistakes.
        problems: Vec<Problem>,
    },
    /// A file cannot be read.
    #[error("failed to read recipe {}: {message}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What hinders.
        message: String,
    },
    /// A recipe cannot extend what it names.
    #[error("{place}: extends: {message}")]
    Extends {
        /// The recipe and the line that names it.
        place: String,
        /// Why it cannot.
        message: String,
    },
    /// No recipe of this name.
    #[error(
        "no recipe named {name:?}{} `lowbit recipes` lists them, a path to your own ends in .toml",
        or_semicolon(embedded::meant(name))
    )]
    Unknown {
        /// The name.
        name: String,
    },
}

/// A hint that ends in a question mark, or has a semicolon, needs none after it.
fn or_semicolon(hint: String) -> String {
    if hint.is_empty() { ";".into() } else { hint }
}

fn count(problems: &[Problem]) -> String {
    match problems.len() {
        1 => "a mistake".into(),
        n => format!("{n} mistakes"),
    }
}

fn list(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

impl Recipe {
    /// Paths of the runs that networks begin with.
    pub(crate) fn init_paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let teacher = self.strategy.joint.as_mut().and_then(|joint| joint.teacher.init.as_mut());
        self.init.iter_mut().chain(teacher)
    }

    /// The embedded recipe `name`, with `overrides` of the form `key=value`.
    ///
    /// # Errors
    /// [`RecipeError`] if there is none, or the overrides make it invalid.
    pub fn embedded(name: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        RecipeSource::embedded(name)?.recipe(overrides)
    }

    /// Reads a recipe from its TOML `text`, which comes from `origin`, with `overrides` of the form `key=value`. That of a
    /// file is read by [`RecipeSource::file`], which knows what is relative to it.
    ///
    /// # Errors
    /// [`RecipeError`] with every mistake in the text and the overrides.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        RecipeSource::text(text, origin)?.recipe(overrides)
    }

    /// Whether its reference figure is one of this training: of the recipe as it was `written`, before overrides, and, where
    /// it is the figure of an embedded recipe, of that one.
    fn owns_reference(&self, text: &str, written: Table) -> bool {
        let Some(reference) = &self.reference else { return true };
        let written = read(written, &Problems::default());
        if written.reference.as_ref() == Some(reference) && !self.trains_like(&written) {
            return false;
        }
        let line = format!("reference = {}\n", Value::String(reference.clone()));
        let mut owners = embedded().iter().filter(|recipe| recipe.text.contains(&line)).peekable();
        owners.peek().is_none()
            || owners.any(|owner| {
                owner.text == text || self.trains_like(&read(owner.table(), &Problems::default()))
            })
    }

    /// Whether another recipe trains the same, whatever its name, its seed and what it keeps.
    fn trains_like(&self, other: &Self) -> bool {
        let Self { name, seed, reference, checkpoint, .. } = self.clone();
        *self == Self { name, seed, reference, checkpoint, ..other.clone() }
    }

    /// The keys in which this recipe differs from `other`, in alphabetical order.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let tree = |recipe: &Self| Value::try_from(recipe).expect("invariant: a recipe is a tree of tables");
        let mut differences = Vec::new();
        collect_differences("", Some(&tree(self)), Some(&tree(other)), &mut differences);
        differences
    }

    /// The resolved recipe as TOML, every default written out.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("invariant: a recipe is a tree of tables, numbers and texts")
    }
}

/// A key in which two recipes differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path of the key, as in `train.learning_rate`.
    pub key: String,
    /// Its values in TOML, or "not set".
    pub values: [String; 2],
}

/// Collects the places, from `key` on, in which two values differ.
fn collect_differences(key: &str, a: Option<&Value>, b: Option<&Value>, found: &mut Vec<Difference>) {
    if a == b {
        return;
    }
    if let (Some(Value::Table(a)), Some(Value::Table(b))) = (a, b) {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for name in keys {
            let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            collect_differences(&key, a.get(name), b.get(name), found);
        }
        return;
    }
    let show = |value: Option<&Value>| value.map_or("not set".into(), ToString::to_string);
    found.push(Difference { key: key.into(), values: [show(a), show(b)] });
}

fn read(table: Table, problems: &Problems) -> Recipe {
    let root = Section::root(table, problems);
    if root.required_integer("schema", 1..=u64::MAX) > SCHEMA {
        root.problem("schema", format!("this lowbit reads recipes of schema {SCHEMA}"));
    }
    let name = root.text("name");
    let name_is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    if root.has("name") && (name.is_empty() || name.starts_with('.') || !name_is_plain) {
        root.problem("name", format!("expected letters, digits, '-', '_' and '.', got {name:?}"));
    }
    let seed = root.integer("seed", 0, 0..=i64::MAX as u64);
    let reference = root.optional_text("reference");
    let init = root.optional_text("init").map(PathBuf::from);
    let data = read_data(root.section("data"));
    let model = read_network(root.section("model"), None);
    let quantization = read_quantization(root.section("quantization"), &model);
    let train = read_train(root.section("train"), &quantization, &model);
    // Of the data, only its images count here.
    let has_mistakes =
        problems.any_in(&["data.dataset", "data.shape", "data.classes", "model", "quantization"]);
    let so_far =
        RecipeSoFar { policy: &quantization.policy, model: &model, input: data.input_shape(), has_mistakes };
    let strategy = strategy::read_strategy(root.optional_section("strategy"), &so_far);
    if !has_mistakes {
        check_students(&root, &strategy, &quantization, &model);
    }
    let checkpoint = read_checkpoint(root.optional_section("checkpoint"));
    let early_stopping = read_early_stopping(root.optional_section("early_stopping"), &data);
    let phases = BTreeMap::new();
    let mut recipe = Recipe {
        schema: SCHEMA,
        name,
        seed,
        reference,
        init,
        data,
        model,
        quantization,
        train,
        strategy,
        phases,
        early_stopping,
        checkpoint,
    };
    if !has_mistakes {
        check_images(&root, &recipe);
    }
    if recipe.train.accumulate > recipe.data.batch_size {
        let (parts, images) = (recipe.train.accumulate, recipe.data.batch_size);
        let problem =
            format!("a batch of {images} images has no {parts} parts: take at most data.batch_size");
        root.problem("train.accumulate", problem);
    }
    phases::read_phases(&root, &mut recipe);
    if problems.is_empty() {
        check_rungs(&root, &recipe);
    }
    root.finish();
    recipe
}

/// An architecture; what is absent is as in `like`, if there is one and its family and layout have it.
fn read_network(section: Section<'_>, like: Option<&ModelConfig>) -> ModelConfig {
    let families = Family::ALL.map(|family| (family.name(), family));
    let family = match like {
        Some(like) => section.optional_choice("family", &families).unwrap_or(like.family),
        None => section.choice("family", &families),
    };
    // What another family has may be what the one that is meant needs.
    let is_wrong = section.has("family") && section.has_problems();
    let is_known = !is_wrong && (like.is_none() || !section.any_in(&["model"]));
    let settings = family.settings();
    let none = |key: &str| section.problem(key, format!("{family} has none: remove this key"));
    let like_layout = like.map(|like| like.layout).filter(|layout| settings.layouts.contains(layout));
    let layouts = [("cifar", Layout::Cifar), ("imagenet", Layout::ImageNet)];
    let mut layout =
        section.optional_choice("layout", &layouts).or(like_layout).unwrap_or(settings.layouts[0]);
    if !settings.layouts.contains(&layout) {
        none("layout");
        layout = settings.layouts[0];
    }
    let has_depth = |layout, depth| settings.depths.is_some_and(|depths| (depths.has)(layout, depth));
    let like_depth = like.and_then(|like| like.depth).filter(|depth| has_depth(layout, *depth));
    let depth = section.optional_integer("depth", 1..=10_000).map(|depth| depth as usize).or(like_depth);
    let like_width = like.map_or(1.0, |like| like.width);
    let width =
        section.number("width", like_width, &NumberRange { min: 0.0, max: 64.0, min_included: false });
    let strides = (settings.stem_strides)(layout);
    // Residual networks of a layout have one stem; other families have each their own.
    let has_same_stem = |like: &ModelConfig| {
        let are_residual = like.family.settings().depths.is_some() && settings.depths.is_some();
        like.layout == layout && (like.family == family || are_residual)
    };
    let like_stride = like
        .filter(|like| has_same_stem(like))
        .map(|like| like.stem_stride)
        .filter(|stride| strides.contains(stride));
    let largest = strides.iter().copied().fold(2, usize::max) as u64;
    let stem_stride = section.integer("stem_stride", like_stride.unwrap_or(strides[0]) as u64, 1..=largest);
    let like_norm = like.filter(|like| like.family == family).and_then(|like| like.norm);
    let norm = match (section.optional_boolean("norm"), settings.may_drop_norm) {
        (norm, true) => norm.or(like_norm).or(Some(true)),
        (None, false) => None,
        (Some(_), false) => {
            if is_known {
                section.problem("norm", format!("{family} has BatchNorm: remove this key"));
            }
            None
        }
    };
    let logit_scale = section.boolean("logit_scale", like.is_some_and(|like| like.logit_scale));
    let model =
        ModelConfig { family, layout, depth, width, stem_stride: stem_stride as usize, norm, logit_scale };
    if is_known && !strides.contains(&model.stem_stride) {
        match strides {
            [_] => none("stem_stride"),
            _ => section.problem("stem_stride", format!("expected one of {strides:?}, got {stem_stride}")),
        }
    }
    match (settings.depths, model.depth) {
        _ if !is_known => {}
        (None, Some(_)) => section.problem("depth", format!("{family} has a fixed depth: remove this key")),
        (Some(depths), None) if !section.has("depth") => {
            section.problem("depth", format!("is missing; expected {}", (depths.list)(layout)));
        }
        (Some(depths), Some(depth)) if !(depths.has)(layout, depth) => {
            let other = layouts.iter().find(|(_, other)| (depths.has)(*other, depth));
            let hint = other.map_or(String::new(), |(name, _)| format!("; layout = {name:?} has it"));
            section.problem("depth", format!("expected {}, got {depth}{hint}", (depths.list)(layout)));
        }
        _ => {}
    }
    section.finish();
    model
}

/// The methods by their names.
fn methods() -> Vec<(&'static str, Method)> {
    Method::ALL.iter().map(|method| (method.name(), *method)).collect()
}

const GRANULARITIES: [(&str, Granularity); 2] =
    [("per-tensor", Granularity::PerTensor), ("per-channel", Granularity::PerChannel)];

fn read_quantization(section: Section<'_>, model: &ModelConfig) -> QuantizationRecipe {
    let method = section.choice("method", &methods());
    let weight_method = section.optional_choice("weight_method", &methods()).unwrap_or(method);
    let base = LayerQuantization {
        weight_method,
        act_method: section.optional_choice("act_method", &methods()).unwrap_or(method),
        weight_bits: section.precision("weight_bits"),
        act_bits: section.precision("act_bits"),
        weight_granularity: section
            .optional_choice("weight_granularity", &GRANULARITIES)
            .unwrap_or_else(|| weight_method.granularity()),
        standardizes_weights: section.boolean("weight_standardization", false),
    };
    let mut policy = QuantizationPolicy::new(base);
    if let Some(first) = section.optional_section("first") {
        policy.first = read_override(first, LayerOverride::FULL_PRECISION);
    }
    if let Some(last) = section.optional_section("last") {
        policy.last = read_override(last, LayerOverride::FULL_PRECISION);
    }
    if let Some(shortcut) = section.optional_section("shortcut") {
        policy.shortcut = read_override(shortcut, LayerOverride::default());
    }
    // Keys in the recipe of the patterns, one of which may not be valid.
    let mut keys = Vec::new();
    for (i, layer) in section.sections("layers").into_iter().enumerate() {
        let pattern = layer.text("pattern");
        match Glob::new(&pattern) {
            Ok(glob) => {
                policy.patterns.push((glob, read_override(layer, LayerOverride::default())));
                keys.push(format!("layers[{i}]"));
            }
            Err(error) => layer.problem("pattern", format!("is not a pattern: {error}")),
        }
    }
    check_policy(&section, &policy, &keys, model);
    let no_weights = !section.any_in(&["model", "quantization"]) && !Quantized::of(&policy, model).weights;
    if base.standardizes_weights && no_weights {
        let message =
            "standardizes quantized weights, but no weights are quantized: remove it, or lower weight_bits";
        section.problem("weight_standardization", message);
    }
    let grad_bits = section.optional_precision("grad_bits").unwrap_or(Precision::FullPrecision);
    let is_known = !section.any_in(&["model", "quantization"]);
    if is_known
        && grad_bits != Precision::FullPrecision
        && Quantized::of(&policy, model) == Quantized::NOTHING
    {
        let message = "rounds the gradients of quantized layers, but nothing is quantized: remove it, or lower the bits";
        section.problem("grad_bits", message);
    }
    section.finish();
    QuantizationRecipe { policy, grad_bits }
}

/// What a table changes of `defaults`.
fn read_override(section: Section<'_>, defaults: LayerOverride) -> LayerOverride {
    let change = LayerOverride {
        method: section.optional_choice("method", &methods()).or(defaults.method),
        weight_method: section.optional_choice("weight_method", &methods()).or(defaults.weight_method),
        act_method: section.optional_choice("act_method", &methods()).or(defaults.act_method),
        weight_bits: section.optional_precision("weight_bits").or(defaults.weight_bits),
        act_bits: section.optional_precision("act_bits").or(defaults.act_bits),
        weight_granularity: section
            .optional_choice("weight_granularity", &GRANULARITIES)
            .or(defaults.weight_granularity),
    };
    section.finish();
    change
}

/// The layers of `model`. Of a network that is not defined, roles are all that is known: those of another one.
fn layers_or_roles(model: &ModelConfig) -> Vec<NamedLayer> {
    let other = || ModelConfig::new(Family::ResNet, 8).layers().expect("invariant: ResNet-8 is defined");
    model.layers().unwrap_or_else(|_| other())
}

/// Which operands are quantized in any layer of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantized {
    pub(crate) weights: bool,
    pub(crate) activations: bool,
}

impl Quantized {
    /// A network in full precision.
    pub(crate) const NOTHING: Self = Self { weights: false, activations: false };

    /// What `policy` quantizes of `model`.
    pub(crate) fn of(policy: &QuantizationPolicy, model: &ModelConfig) -> Self {
        let resolve = |layer: &NamedLayer| policy.resolve(&layer.path, layer.role);
        layers_or_roles(model).iter().map(resolve).fold(Self::NOTHING, |quantized, layer| Self {
            weights: quantized.weights || layer.weight_bits != Precision::FullPrecision,
            activations: quantized.activations || layer.act_bits != Precision::FullPrecision,
        })
    }
}

/// Checks what every layer of `model` gets, and that every pattern matches one; `keys` are those of the patterns.
fn check_policy(section: &Section<'_>, policy: &QuantizationPolicy, keys: &[String], model: &ModelConfig) {
    let layers = layers_or_roles(model);
    // With a mistake in it, it is not what was meant.
    if !section.has_problems() {
        for layer in &layers {
            check_layer(section, policy, keys, layer);
        }
    }
    if model.layers().is_ok() && !section.any_in(&["model"]) {
        let paths: Vec<String> = layers.into_iter().map(|layer| layer.path).collect();
        let mut list = format!("; the layers are {}", paths.join(", "));
        for ((pattern, _), key) in policy.patterns.iter().zip(keys) {
            if !paths.iter().any(|path| lowbit_quantizers::pattern_matches(pattern, path)) {
                let message = format!("{:?} matches no layer{list}", pattern.glob());
                section.problem(&format!("{key}.pattern"), message);
                // Once is enough.
                list.clear();
            }
        }
    }
}

/// Checks what a layer gets, and reports a mistake at the key that completes it.
fn check_layer(section: &Section<'_>, policy: &QuantizationPolicy, keys: &[String], layer: &NamedLayer) {
    let all = LayerOverride {
        method: None,
        weight_method: Some(policy.base.weight_method),
        act_method: Some(policy.base.act_method),
        weight_bits: Some(policy.base.weight_bits),
        act_bits: Some(policy.base.act_bits),
        weight_granularity: Some(policy.base.weight_granularity),
    };
    // In the order in which they apply, each with the prefix of its keys.
    let mut changes = vec![(String::new(), all)];
    match layer.role {
        LayerRole::First => changes.push(("first.".into(), policy.first)),
        LayerRole::Last => changes.push(("last.".into(), policy.last)),
        LayerRole::Shortcut => changes.push(("shortcut.".into(), policy.shortcut)),
        LayerRole::Hidden => {}
    }
    for ((pattern, change), key) in policy.patterns.iter().zip(keys) {
        if lowbit_quantizers::pattern_matches(pattern, &layer.path) {
            changes.push((format!("{key}."), *change));
        }
    }
    // The last change that has to do with it, and there the key that is more to the point than the method, of which that of the operand
    // is more to the point than that of both.
    let report = |key: &str, operand: Operand, sets: fn(&LayerOverride) -> bool, message: String| {
        let own = |change: &LayerOverride| match operand {
            Operand::Weights => change.weight_method.is_some(),
            Operand::Activations => change.act_method.is_some(),
        };
        let has_method = |change: &LayerOverride| own(change) || change.method.is_some();
        let completes = changes.iter().rev().find(|(_, change)| sets(change) || has_method(change));
        let (prefix, change) = completes.expect("invariant: the base sets everything");
        let method = match operand {
            // The base has it from `method` unless it says so itself.
            _ if prefix.is_empty() || !own(change) => "method",
            Operand::Weights => "weight_method",
            Operand::Activations => "act_method",
        };
        section.problem_once(&format!("{prefix}{}", if sets(change) { key } else { method }), message);
    };
    let mut quantization = policy.resolve(&layer.path, layer.role);
    // Asked for by name, a granularity is checked in full precision too.
    let asked_for = changes[1..].iter().rev().find_map(|(_, change)| change.weight_granularity);
    quantization.weight_granularity = asked_for.unwrap_or(quantization.weight_granularity);
    match quantization.check() {
        Err(error @ QuantizerError::Bits { operand: Operand::Weights, .. }) => {
            report("weight_bits", Operand::Weights, |change| change.weight_bits.is_some(), error.to_string());
        }
        Err(error @ QuantizerError::Bits { operand: Operand::Activations, .. }) => {
            report("act_bits", Operand::Activations, |change| change.act_bits.is_some(), error.to_string());
        }
        Err(error @ QuantizerError::Granularity { .. }) => {
            let sets = |change: &LayerOverride| change.weight_granularity.is_some();
            report("weight_granularity", Operand::Weights, sets, error.to_string());
        }
        Err(error) => report("method", Operand::Weights, |change| change.method.is_some(), error.to_string()),
        Ok(()) => {}
    }
    let LayerQuantization { act_method, act_bits, .. } = quantization;
    let reads = match (layer.role, layer.reads_negative) {
        (LayerRole::First, _) => Some((format!("the normalized image at {}", layer.path), r#""minmax""#)),
        // One message for all of them.
        (_, true) => Some(("what linear bottlenecks make".into(), r#""lsq-plus", "ewgs" or "minmax""#)),
        (_, false) => None,
    };
    if let Some((what, methods)) = reads
        && act_bits != Precision::FullPrecision
        && !act_method.takes_negative()
    {
        let message = format!(
            "{act_method} quantizes what is not negative, and would cut off half of {what}: take act_method = {methods} for it, or \
             act_bits = \"fp32\""
        );
        report("act_bits", Operand::Activations, |change| change.act_bits.is_some(), message);
    }
}

/// Checks that the methods have the bits of every phase on the way down to those that are asked for.
fn check_rungs(root: &Section<'_>, recipe: &Recipe) {
    for phase in recipe.phases() {
        let policy = recipe.quantization.policy_at(phase.floor);
        for NamedLayer { path, role, .. } in recipe.model.layers().unwrap_or_default() {
            if let Err(error) = policy.resolve(&path, role).check() {
                let message = format!("phase {} at {path}: {error}", phase.name);
                return root.problem("strategy.progressive.ladder", message);
            }
        }
    }
}

/// Checks the layers of further students, which have the policy of the first with bit widths of their own.
fn check_students(
    root: &Section<'_>,
    strategy: &StrategyRecipe,
    quantization: &QuantizationRecipe,
    model: &ModelConfig,
) {
    let students = strategy.joint.iter().flat_map(|joint| &joint.students).enumerate();
    for (i, student) in students {
        let policy = student.policy(&quantization.policy);
        for NamedLayer { path, role, .. } in model.layers().unwrap_or_default() {
            let is_known = quantization.policy.resolve(&path, role).check().is_err();
            if let (false, Err(error)) = (is_known, policy.resolve(&path, role).check()) {
                root.problem_once(&format!("strategy.joint.students[{i}].weight_bits"), error.to_string());
            }
        }
    }
}

/// Whether any layer of `model` has a method whose paper decays the learned parameters with the weights, as PACT's clip values.
fn decays_parameters(quantization: &QuantizationRecipe, model: &ModelConfig) -> bool {
    let policy = &quantization.policy;
    layers_or_roles(model).iter().map(|layer| policy.resolve(&layer.path, layer.role)).any(|layer| {
        layer.weight_method.decays_parameters(Operand::Weights)
            || layer.act_method.decays_parameters(Operand::Activations)
    })
}

/// Checks that the images are large enough for every network, and that BatchNorm has two values a channel: of one, the deviation
/// is nothing.
fn check_images(root: &Section<'_>, recipe: &Recipe) {
    let teacher =
        recipe.strategy.joint.as_ref().map(|joint| ("strategy.joint.teacher", &joint.teacher.model));
    for (section, model) in std::iter::once(("model", &recipe.model)).chain(teacher) {
        match model.graph(recipe.data.input_shape(), recipe.data.n_classes()) {
            Err(error @ (ModelError::InputTooSmall { .. } | ModelError::Graph(_))) => {
                root.problem(&format!("{section}.family"), error.to_string());
            }
            // Reported by its key.
            Err(_) => {}
            Ok(graph)
                if recipe.data.batch_size / recipe.train.accumulate.max(1) == 1
                    && graph.fewest_values_per_norm() == Some(1) =>
            {
                let (key, least) = match recipe.train.accumulate {
                    1 => ("data.batch_size", "at least 2"),
                    _ => ("train.accumulate", "at most half of data.batch_size"),
                };
                root.problem_once(
                    key,
                    format!(
                        "1 image leaves BatchNorm of {} a single value a channel, where it is 1x1: take {least}",
                        model.family
                    ),
                );
            }
            Ok(_) => {}
        }
    }
}

fn read_train(section: Section<'_>, quantization: &QuantizationRecipe, model: &ModelConfig) -> TrainRecipe {
    let epochs = section.required_integer("epochs", 1..=100_000);
    let optimizer = read_optimizer(section.optional_section("optimizer"));
    let schedule = read_schedule(section.optional_section("schedule"));
    let weight_decay = section.number("weight_decay", 0.0, &NumberRange::NOT_NEGATIVE);
    let own_decay = if decays_parameters(quantization, model) { weight_decay } else { 0.0 };
    let quantizers = section.optional_section("quantizers").map_or(
        QuantizerGroup { learning_rate_scale: 1.0, weight_decay: own_decay },
        |group| {
            let learning_rate_scale = group.number("learning_rate_scale", 1.0, &NumberRange::NOT_NEGATIVE);
            let weight_decay = group.number("weight_decay", own_decay, &NumberRange::NOT_NEGATIVE);
            group.finish();
            QuantizerGroup { learning_rate_scale, weight_decay }
        },
    );
    let computes = Compute::ALL.map(|compute| (compute.name(), compute));
    let ema_decay = section.optional_number("ema_decay", &NumberRange::FRACTION);
    let ema_warmup = section.optional_boolean("ema_warmup");
    if ema_decay.is_none() && ema_warmup.is_some() {
        section.problem("ema_warmup", "has no effect without ema_decay: remove this key");
    }
    let train = TrainRecipe {
        epochs,
        learning_rate: section.required_number("learning_rate", &NumberRange::POSITIVE),
        learning_rate_batch: section.optional_integer("learning_rate_batch", 1..=1 << 24),
        optimizer,
        weight_decay,
        quantizers,
        schedule,
        warmup_epochs: section.number("warmup_epochs", 0.0, &NumberRange::NOT_NEGATIVE),
        gradient_clip: section.optional_number("gradient_clip", &NumberRange::POSITIVE),
        accumulate: section.integer("accumulate", 1, 1..=65_536) as usize,
        sync_norms: section.boolean("sync_norms", false),
        label_smoothing: section.number("label_smoothing", 0.0, &NumberRange::FRACTION),
        ema_decay,
        ema_warmup: ema_decay.map(|_| ema_warmup.unwrap_or(true)),
        norm_reestimation_batches: section.integer("norm_reestimation_batches", 0, 0..=100_000) as usize,
        calibration_batches: section.integer("calibration_batches", 1, 1..=10_000) as usize,
        eval_every: section.integer("eval_every", 1, 1..=100_000),
        compute: section.optional_choice("compute", &computes).unwrap_or_default(),
    };
    if epochs > 0 && train.warmup_epochs > epochs as f64 {
        section.problem("warmup_epochs", format!("{} is more than all {epochs} epochs", train.warmup_epochs));
    }
    section.finish();
    train
}

fn read_optimizer(section: Option<Section<'_>>) -> OptimizerRecipe {
    #[derive(Clone, Copy)]
    enum Kind {
        Sgd,
        Adam,
        AdamW,
    }
    let default = OptimizerRecipe::Sgd { momentum: 0.9, nesterov: true };
    let Some(section) = section else { return default };
    let kind = section.choice("kind", &[("sgd", Kind::Sgd), ("adam", Kind::Adam), ("adamw", Kind::AdamW)]);
    if section.has_problems() {
        // Of which kind the other keys are is not known.
        return default;
    }
    let betas = || {
        let beta1 = section.number("beta1", 0.9, &NumberRange::FRACTION);
        let beta2 = section.number("beta2", 0.999, &NumberRange::FRACTION);
        (beta1, beta2, section.number("epsilon", 1e-8, &NumberRange::POSITIVE))
    };
    let optimizer = match kind {
        Kind::Sgd => {
            let momentum = section.number("momentum", 0.9, &NumberRange::FRACTION);
            OptimizerRecipe::Sgd { momentum, nesterov: section.boolean("nesterov", momentum > 0.0) }
        }
        Kind::Adam => {
            let (beta1, beta2, epsilon) = betas();
            OptimizerRecipe::Adam { beta1, beta2, epsilon }
        }
        Kind::AdamW => {
            let (beta1, beta2, epsilon) = betas();
            OptimizerRecipe::AdamW { beta1, beta2, epsilon }
        }
    };
    if let OptimizerRecipe::Sgd { momentum: 0.0, nesterov: true } = optimizer {
        section.problem("nesterov", "needs a momentum greater than 0");
    }
    section.finish();
    optimizer
}

fn read_schedule(section: Option<Section<'_>>) -> ScheduleRecipe {
    #[derive(Clone, Copy)]
    enum Kind {
        Constant,
        Cosine,
        MultiStep,
    }
    let Some(section) = section else { return ScheduleRecipe::Constant };
    let kinds = [("constant", Kind::Constant), ("cosine", Kind::Cosine), ("multi-step", Kind::MultiStep)];
    let kind = section.choice("kind", &kinds);
    if section.has_problems() {
        return ScheduleRecipe::Constant;
    }
    let schedule = match kind {
        Kind::Constant => ScheduleRecipe::Constant,
        Kind::Cosine => ScheduleRecipe::Cosine,
        Kind::MultiStep => {
            let milestones = section.integers("milestones");
            let ascending = milestones.windows(2).all(|pair| pair[0] < pair[1]);
            // Milestones after the last epoch never come, so that a recipe can be tried with fewer epochs.
            if !ascending || milestones.contains(&0) {
                section
                    .problem("milestones", format!("expected ascending epochs from 1, got {milestones:?}"));
            }
            let gamma =
                section.number("gamma", 0.1, &NumberRange { min: 0.0, max: 1.0, min_included: false });
            ScheduleRecipe::MultiStep { milestones, gamma }
        }
    };
    section.finish();
    schedule
}

fn read_early_stopping(section: Option<Section<'_>>, data: &DataRecipe) -> Option<EarlyStoppingRecipe> {
    let section = section?;
    let early = EarlyStoppingRecipe {
        patience: section.required_integer("patience", 1..=100_000),
        min_gain: section.number("min_gain", 0.0, &NumberRange::FRACTION),
    };
    // A folder may have validation images of its own: that is known once it is read.
    if data.validation.is_none() && !matches!(data.dataset, DatasetChoice::Folder { .. }) {
        let message = "looks at the accuracy on validation images, and there are none: set data.validation, or remove this key";
        section.problem_once("patience", message.into());
    }
    section.finish();
    Some(early)
}

fn read_checkpoint(section: Option<Section<'_>>) -> CheckpointRecipe {
    let Some(section) = section else {
        return CheckpointRecipe {
            every_epochs: 1,
            every_steps: None,
            every_minutes: EVERY_MINUTES,
            keep_last: 2,
        };
    };
    let checkpoint = CheckpointRecipe {
        every_epochs: section.integer("every_epochs", 1, 1..=100_000),
        every_steps: section.optional_integer("every_steps", 1..=i64::MAX as u64),
        every_minutes: section.number("every_minutes", EVERY_MINUTES, &NumberRange::NOT_NEGATIVE),
        keep_last: section.integer("keep_last", 2, 1..=100_000) as usize,
    };
    section.finish();
    checkpoint
}

/// Writes the form that `read_quantization` reads.
impl Serialize for QuantizationRecipe {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Layer<'a> {
            pattern: &'a str,
            #[serde(flatten)]
            change: LayerOverride,
        }
        let QuantizationPolicy { base, first, last, shortcut, patterns, floor: _ } = &self.policy;
        let layers: Vec<Layer<'_>> =
            patterns.iter().map(|(glob, change)| Layer { pattern: glob.glob(), change: *change }).collect();
        let mut table = serializer.serialize_struct("quantization", 12)?;
        table.serialize_field("method", &base.weight_method)?;
        if base.act_method != base.weight_method {
            table.serialize_field("weight_method", &base.weight_method)?;
            table.serialize_field("act_method", &base.act_method)?;
        }
        table.serialize_field("weight_bits", &base.weight_bits)?;
        table.serialize_field("act_bits", &base.act_bits)?;
        table.serialize_field("grad_bits", &self.grad_bits)?;
        table.serialize_field("weight_granularity", &base.weight_granularity)?;
        // A recipe of an earlier lowbit says nothing of it.
        if base.standardizes_weights {
            table.serialize_field("weight_standardization", &true)?;
        }
        table.serialize_field("first", first)?;
        table.serialize_field("last", last)?;
        table.serialize_field("shortcut", shortcut)?;
        table.serialize_field("layers", &layers)?;
        table.end()
    }
}

impl QuantizationRecipe {
    /// The precision of layers without a role of their own.
    pub fn target(&self) -> PrecisionFloor {
        let LayerQuantization { weight_bits, act_bits, .. } = self.policy.base;
        PrecisionFloor { weight_bits, act_bits }
    }

    /// The policy while nothing goes below `floor`. An operand that has reached its target is held back nowhere, so that
    /// layers with fewer bits by a pattern of their own get them.
    pub(crate) fn policy_at(&self, floor: PrecisionFloor) -> QuantizationPolicy {
        self.policy.with_floor(self.held_floor(floor))
    }

    /// What of `floor` holds anything back.
    pub(crate) fn held_floor(&self, floor: PrecisionFloor) -> PrecisionFloor {
        let (target, none) = (self.target(), PrecisionFloor::NONE);
        let held = |floor, target, none| if floor == target { none } else { floor };
        PrecisionFloor {
            weight_bits: held(floor.weight_bits, target.weight_bits, none.weight_bits),
            act_bits: held(floor.act_bits, target.act_bits, none.act_bits),
        }
    }

    /// The precision of layers without a role of their own, as "W2A2".
    pub fn summary(&self) -> String {
        precision_name(self.policy.base.weight_bits, self.policy.base.act_bits)
    }
}

/// The precision of a layer or a network for people to read: "W2A2", "W2A32" where only the weights are quantized, and "fp32"
/// where nothing is.
fn precision_name(weight_bits: Precision, act_bits: Precision) -> String {
    match (weight_bits, act_bits) {
        (Precision::FullPrecision, Precision::FullPrecision) => Precision::FullPrecision.to_string(),
        _ => format!("W{}A{}", weight_bits.stored_bits(), act_bits.stored_bits()),
    }
}

/// The lowest precision of weights and of activations in a network, for people to read.
pub fn lowest_precision(plan: &Plan) -> String {
    let lowest = |bits: fn(&LayerPlan) -> Precision| {
        let bits = plan.layers.iter().map(bits).min_by_key(|bits| bits.stored_bits());
        bits.unwrap_or(Precision::FullPrecision)
    };
    precision_name(lowest(|layer| layer.weight_bits), lowest(|layer| layer.act_bits))
}

#[cfg(test)]
mod tests;
