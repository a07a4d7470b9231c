//! The recipes that come with the program.
//!
//! Each is put together from a base (a network on a data set, with its settings), bit widths and a method:
//! `<base>-fp32`, `<base>-w2a2`, `<base>-w2a2-<method>`. A base and a method are a TOML file each; where both have a
//! key, the method's counts.

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
            "; take \"{known}\" with --set quantization.weight_bits={weight} --set quantization.act_bits={act};"
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
    "cifar100-preresnet20",
    "cifar100-resnet20",
    "cifar100-resnet56",
    "cifar100-vgg-small",
    "digits-preresnet8",
    "fashion-mnist-preresnet8",
);

/// Methods beside direct training.
pub const METHODS: &[Part] =
    parts!("methods": "joint", "joint-mse", "modern", "pq", "sp", "sp-joint", "ts", "ts-pq", "ts-pq-joint");

/// Bit widths of weights and activations.
pub const BIT_WIDTHS: [[u32; 2]; 4] = [[4, 4], [3, 3], [2, 2], [1, 2]];

/// What was measured, by name of the recipe.
const MEASURED: &str = include_str!("../../recipes/measured.toml");

fn of_base(base: &Part) -> Vec<EmbeddedRecipe> {
    let measured: BTreeMap<String, String> =
        toml::from_str(MEASURED).expect("invariant: the file is a table of texts");
    let mut recipes = vec![compose(base, None, None, &measured)];
    for bits in BIT_WIDTHS {
        recipes.push(compose(base, Some(bits), None, &measured));
        let methods = METHODS.iter();
        recipes.extend(methods.map(|method| compose(base, Some(bits), Some(method), &measured)));
    }
    recipes
}

/// The recipe of `base` at `bits`, or in full precision, by `method`, or directly.
fn compose(
    base: &Part,
    bits: Option<[u32; 2]>,
    method: Option<&Part>,
    measured: &BTreeMap<String, String>,
) -> EmbeddedRecipe {
    let precision = bits.map_or("fp32".into(), |[weight, act]| format!("w{weight}a{act}"));
    let suffix = method.map(|method| format!("-{}", method.name)).unwrap_or_default();
    let name = format!("{}-{precision}{suffix}", base.name);
    let mut table = part_table(base);
    let quantization = section(&mut table, "quantization");
    for (operand, key) in ["weight_bits", "act_bits"].into_iter().enumerate() {
        let value = bits.map_or("fp32".into(), |bits| Value::Integer(bits[operand].into()));
        quantization.insert(key.into(), value);
    }
    if let Some(method) = method {
        merge(&mut table, part_table(method));
    }
    if let (Some("modern"), Some([weight_bits, _])) = (method.map(|method| method.name), bits) {
        halve_decay_below_4_bits(section(&mut table, "train"), weight_bits);
    }
    table.insert("name".into(), Value::String(name.clone()));
    if let (Some(_), Some(accuracy)) = (bits, measured.get(&format!("{}-fp32", base.name))) {
        let accuracy = accuracy.split(',').next().unwrap_or(accuracy);
        let reference = format!("full precision: {accuracy} (docs/results.md)");
        table.insert("reference".into(), Value::String(reference));
    }
    let what = match (bits, method) {
        (None, _) => "full precision",
        (Some(_), None) => "trained directly",
        (Some(_), Some(method)) => method.summary(),
    };
    let bits = bits.map_or(String::new(), |[weight, act]| format!(", W{weight}A{act}"));
    let settings: String = base
        .text
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('#'))
        .fold(String::new(), |text, line| format!("{text}{line}\n"));
    let accuracy = measured.get(&name).map_or("not yet measured", String::as_str);
    let header = format!(
        "# {}{bits}, {what}\n{settings}# lowbit train {name}\n# Accuracy and time: {accuracy}.\n",
        base.summary()
    );
    EmbeddedRecipe { text: format!("{header}{}", show(table)), name }
}

fn part_table(part: &Part) -> Table {
    part.text.parse().expect("invariant: embedded files are TOML")
}

fn section<'a>(table: &'a mut Table, key: &str) -> &'a mut Table {
    let section = table.entry(key).or_insert_with(|| Value::Table(Table::new()));
    section.as_table_mut().expect("invariant: sections of embedded files are tables")
}

/// Puts the keys of `changes` into `table`, whole but for its sections.
fn merge(table: &mut Table, changes: Table) {
    for (key, value) in changes {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(section)), Value::Table(changes)) => section.extend(changes),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

/// Low-bit weights are regularized by their precision: each bit below 4 halves the weight decay.
fn halve_decay_below_4_bits(train: &mut Table, weight_bits: u32) {
    if let Some(Value::Float(decay)) = train.get_mut("weight_decay") {
        *decay *= 0.5f64.powi(4 - weight_bits.min(4) as i32);
    }
}

/// TOML text with the keys of the top level first and the sections in the order in which they are explained.
fn show(mut table: Table) -> String {
    let order = ["data", "model", "quantization", "train", "strategy", "checkpoint"];
    let sections: Vec<Table> = order
        .iter()
        .filter_map(|key| table.remove(*key).map(|section| Table::from_iter([((*key).to_string(), section)])))
        .collect();
    let texts = std::iter::once(&table).chain(&sections);
    let texts: Vec<String> =
        texts.map(|table| toml::to_string(table).expect("invariant: a table of values serializes")).collect();
    texts.join("\n")
}
