//! The recipes that come with the program.
//!
//! `<base>-fp32` is a base, which is a TOML file: a network on a data set, with its settings. `<base>-w2a2` extends it by bit widths,
//! and `<base>-w2a2-<method>` that by the TOML file of a method.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use toml::{Table, Value};

use super::reader::did_you_mean;

/// The recipe that `lowbit train` trains without being given one.
pub const DEFAULT: &str = "digits-preresnet8-w2a2";

/// A recipe that comes with the program.
#[derive(Clone, Debug)]
pub struct EmbeddedRecipe {
    /// Name.
    pub name: String,
    /// TOML text; the comment at its head gives what it is, command, accuracy and time.
    pub text: String,
}

impl EmbeddedRecipe {
    /// First line of the comment at the head of the recipe.
    pub fn summary(&self) -> &str {
        summary(&self.text)
    }

    /// The comment at the head of the recipe.
    pub fn header(&self) -> String {
        let lines = self.text.lines().take_while(|line| line.starts_with('#'));
        lines.map(|line| format!("{line}\n")).collect()
    }
}

/// All of them, by base and then by bit widths and method.
pub fn embedded() -> &'static [EmbeddedRecipe] {
    static RECIPES: LazyLock<Vec<EmbeddedRecipe>> =
        LazyLock::new(|| BASES.iter().flat_map(of_base).collect());
    &RECIPES
}

/// `; did you mean "x"?` for the embedded recipe that is meant by `name`, or nothing if none is near: one that begins so, one
/// that has all its parts, or the one most like it.
pub(super) fn meant(name: &str) -> String {
    let names: Vec<&str> = embedded().iter().map(|recipe| recipe.name.as_str()).collect();
    let wanted = name.to_lowercase();
    let has_parts = |known: &&&str| {
        let mut parts = wanted.split('-').filter(|part| !part.is_empty()).peekable();
        parts.peek().is_some() && parts.all(|part| known.split('-').any(|known| known.starts_with(part)))
    };
    let shortest = |name: &&&str| name.len();
    let begins =
        names.iter().filter(|known| !wanted.is_empty() && known.starts_with(&wanted)).min_by_key(shortest);
    if let Some(bits) = other_bits(&wanted) {
        return bits;
    }
    match begins.or_else(|| names.iter().filter(has_parts).min_by_key(shortest)) {
        Some(name) => format!("; did you mean {name:?}?"),
        None => did_you_mean(name, &names),
    }
}

/// What to write for the name of a recipe but for bit widths that none comes with; 32 bits are full precision.
fn other_bits(name: &str) -> Option<String> {
    let bits_of = |part: &str| -> Option<[u32; 2]> {
        let (weight, act) = part.strip_prefix('w')?.split_once('a')?;
        Some([weight.parse().ok()?, act.parse().ok()?])
    };
    let (part, bits) = name.split('-').find_map(|part| Some((part, bits_of(part)?)))?;
    if BIT_WIDTHS.contains(&bits) {
        return None;
    }
    let known = name.replacen(part, "w2a2", 1);
    embedded().iter().find(|recipe| recipe.name == known)?;
    if bits == [32, 32] {
        let base = name.split(part).next().unwrap_or_default();
        let full = embedded().iter().find(|recipe| recipe.name == format!("{base}fp32"))?;
        return Some(format!("; did you mean {:?}?", full.name));
    }
    let [weight, act] = bits.map(|bits| if bits == 32 { "fp32".into() } else { bits.to_string() });
    match bits.iter().all(|bits| (1..=8).contains(bits) || *bits == 32) {
        true => Some(format!(
            "; take \"{known}\" with the settings quantization.weight_bits={weight} and quantization.act_bits={act};"
        )),
        false => Some(format!("; bits are from 1 to 8, as in \"{known}\";")),
    }
}

/// A part of embedded recipes.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Name, also of its file.
    pub name: &'static str,
    text: &'static str,
}

impl Part {
    /// What it is.
    pub fn summary(&self) -> &'static str {
        summary(self.text)
    }

    /// The comment at its head after the first line.
    fn settings(&self) -> String {
        let lines = self.text.lines().skip(1).take_while(|line| line.starts_with('#'));
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// Its text after that comment.
    fn body(&self) -> String {
        let lines = self.text.lines().skip_while(|line| line.starts_with('#'));
        lines.map(|line| format!("{line}\n")).collect()
    }
}

fn summary(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
}

macro_rules! parts {
    ($folder:literal: $($name:literal),* $(,)?) => {
        &[$(Part { name: $name, text: include_str!(concat!("../../recipes/", $folder, "/", $name, ".toml")) }),*]
    };
}

/// Networks on data sets.
pub const BASES: &[Part] = parts!("bases":
    "cifar10-alexnet-bn",
    "cifar10-preresnet20",
    "cifar10-resnet20",
    "cifar10-resnet56",
    "cifar10-vgg-small",
    "cifar100-mobilenetv2",
    "cifar100-preresnet20",
    "cifar100-resnet20",
    "cifar100-resnet56",
    "cifar100-vgg-small",
    "digits-preresnet8",
    "fashion-mnist-preresnet8",
    "imagenet-alexnet-bn",
    "imagenet-resnet18",
    "imagenet-resnet50",
);

/// Methods beside direct training.
pub const METHODS: &[Part] =
    parts!("methods": "joint", "joint-mse", "modern", "pq", "sp", "sp-joint", "ts", "ts-pq", "ts-pq-joint");

/// Methods as they are on ImageNet, where low-bit networks begin with trained weights.
const ON_IMAGENET: &[Part] = parts!("imagenet": "direct", "joint", "pq", "sp-joint", "ts-pq", "ts-pq-joint");

/// What stands for a method, or for direct training, in the recipes of `base`, if it is another than elsewhere.
fn on_imagenet(base: &Part, method: &str) -> Option<&'static Part> {
    ON_IMAGENET.iter().find(|part| part.name == method).filter(|_| base.name.starts_with("imagenet-"))
}

/// Bit widths of weights and activations.
pub const BIT_WIDTHS: [[u32; 2]; 4] = [[4, 4], [3, 3], [2, 2], [1, 2]];

/// What was measured, by name of the recipe.
const MEASURED: &str = include_str!("../../recipes/measured.toml");

fn of_base(base: &Part) -> Vec<EmbeddedRecipe> {
    let measured: BTreeMap<String, String> =
        toml::from_str(MEASURED).expect("invariant: the file is a table of texts");
    let recipe = |name: String, what: &str, text: String| {
        let accuracy = measured.get(&name).map_or("not yet measured", String::as_str);
        let title = format!("{}{what}\n{}", base.summary(), base.settings());
        let header = format!("# {title}# lowbit train {name}\n# Accuracy and time: {accuracy}.\n");
        EmbeddedRecipe { text: format!("{header}name = {name:?}\n{text}"), name }
    };
    let full = format!("{}-fp32", base.name);
    let accuracy = measured.get(&full).map(|accuracy| accuracy.split(',').next().unwrap_or(accuracy));
    let reference = accuracy.map_or(String::new(), |accuracy| {
        format!("reference = \"full precision: {accuracy} (docs/results.md)\"\n")
    });
    let extending = |name: &str| format!("schema = 1\nextends = {name:?}\n{reference}\n");
    let tuned = on_imagenet(base, "direct").map(Part::body).unwrap_or_default();
    let mut recipes = vec![recipe(full.clone(), ", full precision", base.body())];
    for [weight, act] in BIT_WIDTHS {
        let direct = format!("{}-w{weight}a{act}", base.name);
        let bits = format!("[quantization]\nweight_bits = {weight}\nact_bits = {act}\n");
        let what = format!(", W{weight}A{act}, ");
        recipes.push(recipe(
            direct.clone(),
            &format!("{what}trained directly"),
            extending(&full) + &bits + &tuned,
        ));
        for method in METHODS {
            let method = on_imagenet(base, method.name).unwrap_or(method);
            let decay = if method.name == "modern" { halved_decay(base, weight) } else { String::new() };
            recipes.push(recipe(
                format!("{direct}-{}", method.name),
                &(what.clone() + method.summary()),
                extending(&direct) + &method.body() + &decay,
            ));
        }
    }
    recipes
}

/// A line for the end of `[train]`. Low-bit weights are regularized by their precision: each bit below 4 halves the weight decay.
fn halved_decay(base: &Part, weight_bits: u32) -> String {
    let table: Table = base.text.parse().expect("invariant: embedded files are TOML");
    let decay = table.get("train").and_then(|train| train.get("weight_decay")).and_then(Value::as_float);
    decay.map_or(String::new(), |decay| {
        format!("weight_decay = {}\n", Value::Float(decay * 0.5f64.powi(4 - weight_bits.min(4) as i32)))
    })
}
