//! What sets runs apart.

use std::collections::{BTreeMap, BTreeSet};

use lowbit_core::Precision;
use lowbit_models::Plan;
use lowbit_train::{Recipe, TrainError};
use serde::Serialize;
use toml::Value;

use crate::run::{Cost, RunReport};
use crate::statistics::Mean;
use crate::summary::{State, Summary};

/// What a recipe has where a key is absent.
const NOT_SET: &str = "not set";

/// Runs side by side. All lists of values have one for each run, in the order of `runs`.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The runs.
    pub runs: Vec<Compared>,
    /// The keys in which recipes differ, in alphabetical order. What a recipe is compared with (`reference`) is no
    /// setting, and left out.
    pub recipe: Vec<KeyValues>,
    /// The layers whose precision is not the same in all runs.
    pub layers: Vec<LayerBits>,
    /// Finished runs whose recipes are equal but for the seed, where there are several; of runs of the same seed, the first.
    pub groups: Vec<Group>,
}

/// A run of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// What it trains and what it scores.
    #[serde(flatten)]
    pub summary: Summary,
    /// What its network costs.
    pub cost: Cost,
}

/// A key of recipes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyValues {
    /// Path of the key, as in `train.learning_rate`.
    pub key: String,
    /// Its values in TOML, or "not set".
    pub values: Vec<String>,
}

/// The precision of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerBits {
    /// Path of the layer.
    pub path: String,
    /// Precision of weights and activations; `None` where a network has no such layer.
    pub bits: Vec<Option<[Precision; 2]>>,
}

/// Finished runs whose recipes are equal but for the seed.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// Their places in the list of runs.
    pub runs: Vec<usize>,
    /// Their accuracy on the test images after the last epoch.
    pub top1: Mean,
    /// Their test loss after the last epoch.
    pub loss: Mean,
    /// Their seconds of training.
    pub seconds: Mean,
}

impl Comparison {
    /// Compares what was read of runs.
    pub fn of(runs: &[RunReport]) -> Self {
        let recipes: Vec<&Recipe> = runs.iter().map(|run| &run.recipe).collect();
        let plans: Vec<&Plan> = runs.iter().map(|run| &run.plan).collect();
        Self {
            runs: runs
                .iter()
                .map(|run| Compared { summary: run.summary.clone(), cost: run.cost.clone() })
                .collect(),
            recipe: recipe_differences(&recipes),
            layers: layer_differences(&plans),
            groups: groups(runs),
        }
    }

    /// Reads runs and compares them.
    ///
    /// # Errors
    /// [`TrainError`] if one cannot be read.
    pub fn read(paths: &[impl AsRef<std::path::Path>]) -> Result<Self, TrainError> {
        let runs = paths.iter().map(|path| RunReport::read(path.as_ref()));
        Ok(Self::of(&runs.collect::<Result<Vec<_>, _>>()?))
    }
}

fn recipe_differences(recipes: &[&Recipe]) -> Vec<KeyValues> {
    let of_runs: Vec<BTreeMap<String, String>> = recipes.iter().map(|recipe| settings(recipe)).collect();
    let mut keys: BTreeSet<&String> = of_runs.iter().flat_map(BTreeMap::keys).collect();
    keys.retain(|key| *key != "reference");
    let values = |key: &String| {
        let value = |settings: &BTreeMap<String, String>| settings.get(key).cloned();
        let values = of_runs.iter().map(|settings| value(settings).unwrap_or_else(|| NOT_SET.into()));
        KeyValues { key: key.clone(), values: values.collect() }
    };
    let differs = |key: &KeyValues| key.values.iter().any(|value| *value != key.values[0]);
    keys.into_iter().map(values).filter(differs).collect()
}

/// The settings of a recipe, each under its whole key.
fn settings(recipe: &Recipe) -> BTreeMap<String, String> {
    let tree = Value::try_from(recipe).expect("invariant: a recipe is a tree of tables");
    let mut found = BTreeMap::new();
    collect("", &tree, &mut found);
    found
}

fn collect(key: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                collect(&key, value, found);
            }
        }
        value => {
            found.insert(key.into(), value.to_string());
        }
    }
}

fn layer_differences(plans: &[&Plan]) -> Vec<LayerBits> {
    let mut paths: Vec<&str> = Vec::new();
    for layer in plans.iter().flat_map(|plan| &plan.layers) {
        if !paths.contains(&layer.path.as_str()) {
            paths.push(&layer.path);
        }
    }
    let bits = |path: &str| {
        let of_plan = |plan: &&Plan| {
            let layer = plan.layers.iter().find(|layer| layer.path == path)?;
            Some([layer.weight_bits, layer.act_bits])
        };
        LayerBits { path: path.into(), bits: plans.iter().map(of_plan).collect() }
    };
    let differs = |layer: &LayerBits| layer.bits.iter().any(|bits| *bits != layer.bits[0]);
    paths.into_iter().map(bits).filter(differs).collect()
}

fn groups(runs: &[RunReport]) -> Vec<Group> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, run) in runs.iter().enumerate().filter(|(_, run)| run.summary.state == State::Finished) {
        // A copy of a run, or a second training of its seed, is no further draw.
        if groups.iter().flatten().any(|&other| runs[other].recipe == run.recipe) {
            continue;
        }
        let is_like = |group: &&mut Vec<usize>| {
            let differences = runs[group[0]].recipe.differences(&run.recipe);
            differences.iter().all(|difference| difference.key == "seed")
        };
        match groups.iter_mut().find(is_like) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    let group = |runs_of: Vec<usize>| {
        let mean = |value: fn(&Summary) -> Option<f64>| {
            let values: Option<Vec<f64>> = runs_of.iter().map(|&i| value(&runs[i].summary)).collect();
            Mean::of(&values?)
        };
        Some(Group {
            top1: mean(|run| Some(run.test?.top1))?,
            loss: mean(|run| Some(run.test?.loss))?,
            seconds: mean(|run| run.seconds)?,
            runs: runs_of,
        })
    };
    groups.into_iter().filter(|group| group.len() > 1).filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(overrides: &[&str]) -> Recipe {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::embedded("digits-preresnet8-w2a2", &overrides).unwrap()
    }

    #[test]
    fn recipes_are_compared_key_by_key() {
        let all = [
            recipe(&["strategy.joint={}"]),
            recipe(&["strategy.joint={}", "strategy.joint.distance={kind='kl', temperature=4}"]),
            recipe(&["seed=3"]),
        ];
        let differences = recipe_differences(&all.iter().collect::<Vec<_>>());
        let values = |key: &str| {
            let found = differences.iter().find(|difference| difference.key == key);
            found.unwrap_or_else(|| panic!("{key} in {differences:?}")).values.clone()
        };
        assert_eq!(values("seed"), ["0", "0", "3"]);
        // The third has no such section.
        assert_eq!(values("strategy.joint.distance.temperature"), ["1.0", "4.0", NOT_SET]);
        assert_eq!(values("strategy.joint.mode"), ["\"mutual\"", "\"mutual\"", NOT_SET]);
        assert!(differences.iter().all(|difference| difference.key != "train.epochs"), "{differences:?}");
        assert!(recipe_differences(&[&all[0]]).is_empty());
    }

    #[test]
    fn layers_are_compared_by_their_path() {
        let plan = |overrides: &[&str]| lowbit_train::plan(&recipe(overrides)).unwrap();
        let [two, four] = [plan(&[]), plan(&["quantization.act_bits=4"])];
        let bits = |bits: u32| Precision::bits(bits).unwrap();
        let differences = layer_differences(&[&two, &four]);
        let first = &differences[0];
        assert_eq!(first.path, "stages.0.0.conv1");
        assert_eq!(first.bits, [Some([bits(2), bits(2)]), Some([bits(2), bits(4)])]);
        // Both ends have full precision in both.
        assert!(differences.iter().all(|layer| layer.path.starts_with("stages.")), "{differences:?}");
        assert!(layer_differences(&[&two, &two]).is_empty());
        let smaller = plan(&["model.depth=14"]);
        assert!(layer_differences(&[&two, &smaller]).iter().any(|layer| layer.bits[0].is_none()));
    }
}
