//! What a table consists of.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use super::cell::{Cell, Images};

/// Names of the tables.
pub const NAMES: [&str; 5] = ["digits", "fashion-mnist", "cifar10", "cifar100", "imagenet"];

const TEXTS: [&str; 5] = [
    include_str!("../../tables/digits.toml"),
    include_str!("../../tables/fashion-mnist.toml"),
    include_str!("../../tables/cifar10.toml"),
    include_str!("../../tables/cifar100.toml"),
    include_str!("../../tables/imagenet.toml"),
];

/// Method of the row in full precision.
pub const FULL_PRECISION: &str = "full-precision";

/// Method of a recipe without one.
pub const DIRECT: &str = "direct";

/// A table, as its file in `xtask/tables` describes it. Full precision is a row of each.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Table {
    /// What it is about.
    pub title: String,
    /// Base of its recipes.
    pub base: String,
    /// Data set.
    pub dataset: String,
    /// What is trained beside full precision.
    pub rows: Vec<Rows>,
    /// Seeds of every cell.
    pub seeds: u64,
    /// Numbers of its images, where `lowbit data verify` does not count them.
    #[serde(default)]
    pub images: Option<Images>,
    /// Whether low-bit cells begin with the full-precision one of their seed.
    #[serde(default)]
    pub pretrained: bool,
    /// Settings that all cells change.
    pub set: Vec<String>,
    /// Figures of others, to compare with.
    #[serde(default)]
    pub published: Vec<Published>,
}

/// Rows of the same precision.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// Bit widths of weights and activations.
    pub bits: [u32; 2],
    /// Methods, as in names of recipes.
    pub methods: Vec<String>,
}

/// A figure of others.
#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Method and network.
    pub what: String,
    /// Bit widths of weights and activations, 32 in full precision.
    pub bits: [u32; 2],
    /// Top-1 accuracy in percent.
    pub top1: f64,
    /// Where it stands.
    pub source: String,
}

impl Table {
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let index = NAMES.iter().position(|known| *known == name).context("no such table")?;
        toml::from_str(TEXTS[index]).with_context(|| format!("xtask/tables/{name}.toml"))
    }

    /// Its cells with the seeds from 0 to `n_seeds`, trained in directories under `out`.
    pub fn cells(&self, n_seeds: u64, set: &[String], out: &Path) -> Vec<Cell> {
        let full_precision = (FULL_PRECISION.to_string(), [32, 32], format!("{}-fp32", self.base));
        let low_bit = self.rows.iter().flat_map(|Rows { bits, methods }| {
            let bits = *bits;
            methods.iter().map(move |method| {
                let [weight, act] = bits;
                let suffix = if method == DIRECT { String::new() } else { format!("-{method}") };
                (method.clone(), bits, format!("{}-w{weight}a{act}{suffix}", self.base))
            })
        });
        let rows: Vec<_> = std::iter::once(full_precision).chain(low_bit).collect();
        let run = |recipe: &str, seed: u64| out.join("cells").join(format!("{recipe}-seed{seed}"));
        let first = format!("{}-fp32", self.base);
        let init = |method: &str, seed: u64| {
            let run = format!("{:?}", run(&first, seed).display().to_string());
            let teacher = method.contains("joint").then(|| format!("strategy.joint.teacher.init={run}"));
            let is_first = method == FULL_PRECISION || !self.pretrained;
            let student = std::iter::once(format!("init={run}"));
            if is_first { Vec::new() } else { student.chain(teacher).collect() }
        };
        rows.into_iter()
            .flat_map(|(method, bits, recipe)| {
                (0..n_seeds).map(move |seed| (method.clone(), bits, recipe.clone(), seed))
            })
            .map(|(method, bits, recipe, seed)| Cell {
                run: run(&recipe, seed),
                init: init(&method, seed),
                set: self.set.iter().chain(set).cloned().collect(),
                method,
                bits,
                recipe,
                seed,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_well_formed() {
        for name in NAMES {
            let table = Table::named(name).unwrap();
            let cells = table.cells(2, &["a=b".into()], Path::new("out"));
            let n_rows: usize = table.rows.iter().map(|rows| rows.methods.len()).sum();
            assert_eq!(cells.len(), 2 * (1 + n_rows), "{name}");
            assert_eq!(cells[0].method, FULL_PRECISION);
            assert!(cells[0].recipe.ends_with("-fp32"));
            assert!(cells.iter().all(|cell| cell.set.last().is_some_and(|last| last == "a=b")));
            let compared = table.rows.iter().all(|rows| rows.methods[0] == DIRECT);
            assert!(compared, "the method that others are compared with comes first");
        }
    }
}
