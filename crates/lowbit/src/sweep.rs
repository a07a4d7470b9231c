//! `lowbit sweep`: one recipe with several values of some settings, over several seeds.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use lowbit_core::LayerRole;
use lowbit_sweep::{Cell, Compare, ImagesOf, Lowbit, MIXED_BITS, Options, Refused, Signals, Sweep};
use lowbit_train::Recipe;
use lowbit_train::recipe::DatasetChoice;

use crate::cli::SweepArgs;
use crate::device::DeviceName;
use crate::exit_code::{Code, UsageError};
use crate::{output, recipes, signals};

/// The most trainings of one sweep: more is a slip.
const MAX_CELLS: usize = 10_000;

pub fn run(args: &SweepArgs) -> anyhow::Result<Code> {
    let settings: Vec<Setting> = args.set.iter().map(|text| Setting::read(text)).collect::<Result<_, _>>()?;
    let combinations = combinations(&settings, args.seeds)?;
    let device = match args.device.device {
        Some(device) => device,
        None => DeviceName::fastest()?,
    };
    // The recipe is checked with all values before anything is trained.
    let mut all: Vec<Recipe> = Vec::new();
    let mut rows = Vec::new();
    for values in &combinations {
        let (checked, _) = recipes::load(&args.recipe, &values.set)?;
        let named = |recipe: &Recipe| {
            let mut recipe = recipe.clone();
            (recipe.name, recipe.reference) = (String::new(), None);
            recipe
        };
        if let Some(same) = all.iter().position(|other| named(other) == named(&checked)) {
            let message = format!("{} and {} train the same", combinations[same].label, values.label);
            return Err(UsageError(message).into());
        }
        rows.push((values, bits(&checked)?));
        all.push(checked);
    }
    let recipe = &all[0];
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("sweeps/{}", recipe.name)));
    let cell = |(values, bits): &(&Combination, [u32; 2]), seed: u64| Cell {
        method: values.label.clone(),
        bits: *bits,
        recipe: values.label.clone(),
        written: args.recipe.clone(),
        seed,
        set: values.set.clone(),
        init: Vec::new(),
        run: out.join("cells").join(format!("{}-seed{seed}", values.name)),
    };
    let cells = rows.iter().flat_map(|row| (0..args.seeds).map(move |seed| cell(row, seed))).collect();
    let images = match recipe.data.dataset {
        DatasetChoice::Named(name) => ImagesOf::Named(name.to_string()),
        DatasetChoice::Own { .. } | DatasetChoice::Folder { .. } => ImagesOf::Unknown,
    };
    let sweep = Sweep {
        title: recipe.name.clone(),
        name: format!("sweep of {}", recipe.name),
        cells,
        images,
        compare: Compare::First,
        published: Vec::new(),
    };
    let program = std::env::current_exe().context("failed to find this program")?;
    let lowbit = Lowbit { program, device: device.to_string(), data_dir: args.data_dir.data_dir.clone() };
    let signals = Arc::new(Signals::default());
    let seen = signals.clone();
    signals::handle(move || seen.count())?;
    let options = Options {
        out,
        budget: args.time_limit,
        dry_run: args.dry_run,
        parallel: args.parallel,
        json: args.json.json,
        print: output::print,
    };
    let ended = lowbit_sweep::run(&sweep, &lowbit, &options, &signals);
    let ended = ended.map_err(|error| match error.downcast_ref::<Refused>() {
        Some(refused) => UsageError(refused.to_string()).into(),
        None => error,
    });
    match ended? {
        true => Ok(Code::Success),
        false => Ok(Code::Interrupted),
    }
}

/// Bits of the weights and inputs of the quantized layers between the first and the last, 32 in full precision; [`MIXED_BITS`] if they
/// differ.
fn bits(recipe: &Recipe) -> anyhow::Result<[u32; 2]> {
    let plan = lowbit_train::plan(recipe)?;
    let inner =
        plan.layers.iter().filter(|layer| matches!(layer.role, LayerRole::Hidden | LayerRole::Shortcut));
    let quantized = inner.filter(|layer| layer.method.is_some());
    let bits: BTreeSet<[u32; 2]> =
        quantized.map(|layer| [layer.weight_bits, layer.act_bits].map(|bits| bits.stored_bits())).collect();
    let mut bits = bits.into_iter();
    Ok(match (bits.next(), bits.next()) {
        (None, _) => [32, 32],
        (Some(all), None) => all,
        (Some(_), Some(_)) => MIXED_BITS,
    })
}

/// A setting, and the values that it takes in turn.
#[derive(Debug, PartialEq, Eq)]
struct Setting {
    key: String,
    values: Vec<String>,
}

impl Setting {
    /// Reads `key=1,2,3`. A comma inside brackets or quotes separates nothing.
    fn read(text: &str) -> Result<Self, UsageError> {
        let wrong = |why: &str| UsageError(format!("--set {text}: {why}"));
        let (key, values) =
            text.split_once('=').ok_or_else(|| wrong("expected KEY=VALUE or KEY=VALUE,VALUE,..."))?;
        let key = key.trim();
        if key == "seed" {
            return Err(wrong("the seeds are those of --seeds"));
        }
        let values: Vec<String> = split(values).into_iter().map(|value| value.trim().to_string()).collect();
        if values.iter().any(String::is_empty) {
            return Err(wrong("a value is missing beside a comma"));
        }
        if values.iter().collect::<BTreeSet<_>>().len() < values.len() {
            return Err(wrong("a value is there twice"));
        }
        Ok(Self { key: key.into(), values })
    }
}

/// The parts between commas that are outside of brackets and quotes.
fn split(text: &str) -> Vec<&str> {
    let (mut depth, mut quote, mut start) = (0usize, None, 0);
    let mut parts = Vec::new();
    for (at, c) in text.char_indices() {
        match (c, quote) {
            (_, Some(open)) => quote = (c != open).then_some(open),
            ('"' | '\'', None) => quote = Some(c),
            ('[' | '{', None) => depth += 1,
            (']' | '}', None) => depth = depth.saturating_sub(1),
            (',', None) if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// One value for each setting.
#[derive(Debug, PartialEq, Eq)]
struct Combination {
    /// What a row is called: the settings that differ between rows.
    label: String,
    /// The same for a directory.
    name: String,
    /// All settings, as for `lowbit train --set`.
    set: Vec<String>,
}

/// All combinations of the values of `settings`, the last setting changing fastest.
fn combinations(settings: &[Setting], n_seeds: u64) -> Result<Vec<Combination>, UsageError> {
    let keys: BTreeSet<&str> = settings.iter().map(|setting| setting.key.as_str()).collect();
    if keys.len() < settings.len() {
        let message = "--set names a setting twice: give its values in one, as in --set train.epochs=10,20";
        return Err(UsageError(message.into()));
    }
    let n = settings.iter().try_fold(n_seeds as usize, |n, setting| n.checked_mul(setting.values.len()));
    if n.is_none_or(|n| n > MAX_CELLS) {
        return Err(UsageError(format!("these are more than {MAX_CELLS} trainings: sweep fewer values")));
    }
    let mut chosen: Vec<Vec<&str>> = vec![Vec::new()];
    for setting in settings {
        let mut longer = Vec::with_capacity(chosen.len() * setting.values.len());
        for before in &chosen {
            longer.extend(setting.values.iter().map(|value| [before.as_slice(), &[value.as_str()]].concat()));
        }
        chosen = longer;
    }
    let mut names = BTreeSet::new();
    let combination = |values: Vec<&str>| {
        let pairs: Vec<String> =
            settings.iter().zip(&values).map(|(setting, value)| format!("{}={value}", setting.key)).collect();
        let differing: Vec<String> = settings
            .iter()
            .zip(&values)
            .filter(|(setting, _)| setting.values.len() > 1)
            .map(|(setting, value)| format!("{}={value}", short_name(setting, settings)))
            .collect();
        let label = if differing.is_empty() { "the recipe".into() } else { differing.join(", ") };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "._=-".contains(c);
        let mut name: String = label.chars().map(|c| if is_plain(c) { c } else { '-' }).take(100).collect();
        // Values that differ in other characters alone.
        while !names.insert(name.clone()) {
            name.push('-');
        }
        Combination { label, name, set: pairs }
    };
    Ok(chosen.into_iter().map(combination).collect())
}

/// The last part of a key, where no other setting has the same.
fn short_name<'a>(setting: &'a Setting, all: &[Setting]) -> &'a str {
    let last = |key: &'a str| key.rsplit('.').next().unwrap_or(key);
    let short = last(&setting.key);
    let is_shared = all.iter().filter(|other| other.key.rsplit('.').next() == Some(short)).count() > 1;
    if is_shared { &setting.key } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(settings: &[&str]) -> Vec<String> {
        let settings: Vec<Setting> = settings.iter().map(|text| Setting::read(text).unwrap()).collect();
        combinations(&settings, 1).unwrap().into_iter().map(|combination| combination.label).collect()
    }

    #[test]
    fn all_values_are_combined() {
        assert_eq!(labels(&[]), ["the recipe"]);
        assert_eq!(labels(&["a=1"]), ["the recipe"]);
        assert_eq!(labels(&["x.a=1,2"]), ["a=1", "a=2"]);
        assert_eq!(labels(&["x.a=1,2", "y.a=3"]), ["x.a=1", "x.a=2"]);
        assert_eq!(labels(&["a=1,2", "b=x", "c=3,4"]), ["a=1, c=3", "a=1, c=4", "a=2, c=3", "a=2, c=4"]);
    }

    #[test]
    fn lists_and_texts_are_values() {
        let values = |text: &str| Setting::read(text).unwrap().values;
        assert_eq!(values("a=[1, 2],[3]"), ["[1, 2]", "[3]"]);
        assert_eq!(values("a=\"x,y\",z"), ["\"x,y\"", "z"]);
        assert_eq!(values("a={b=1,c=2}"), ["{b=1,c=2}"]);
        for wrong in ["a", "a=1,", "a=,1", "a=1,1", "seed=1,2"] {
            assert!(Setting::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_combination_has_a_directory() {
        let settings = [Setting { key: "a".into(), values: vec!["x/y".into(), "x y".into()] }];
        let names: Vec<String> =
            combinations(&settings, 1).unwrap().into_iter().map(|combination| combination.name).collect();
        assert_eq!(names, ["a=x-y", "a=x-y-"]);
        assert!(combinations(&settings, 5001).is_err());
    }
}
