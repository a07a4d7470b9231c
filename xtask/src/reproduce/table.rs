//! What a table consists of.

use std::path::Path;

use anyhow::Context;
use lowbit_sweep::{Cell, Compare, Images, Pair, Published};
use serde::Deserialize;

/// Names of the tables.
pub const NAMES: [&str; 8] = [
    "digits",
    "digits-quantizers",
    "digits-training",
    "fashion-mnist",
    "quantizers",
    "cifar10",
    "cifar100",
    "imagenet",
];

const TEXTS: [&str; 8] = [
    include_str!("../../tables/digits.toml"),
    include_str!("../../tables/digits-quantizers.toml"),
    include_str!("../../tables/digits-training.toml"),
    include_str!("../../tables/fashion-mnist.toml"),
    include_str!("../../tables/quantizers.toml"),
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
    /// Settings that the cells of methods with joint distillation change besides.
    #[serde(default)]
    pub set_joint: Vec<String>,
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
    /// Methods of training, as in names of recipes.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Methods of quantization, each trained directly, by the names that recipes have for them.
    #[serde(default)]
    pub quantizers: Vec<String>,
    /// Settings of a training, each by a name of its own.
    #[serde(default)]
    pub options: Vec<TrainingOption>,
    /// Pairs of methods that are compared; without any, each is compared with the first.
    #[serde(default)]
    pub comparisons: Vec<[String; 2]>,
}

/// Settings that make a row.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingOption {
    /// Name of the row.
    pub name: String,
    /// The method of training that it changes, as in names of recipes.
    #[serde(default = "direct")]
    pub recipe: String,
    /// What it changes, as with `--set`.
    pub set: Vec<String>,
}

fn direct() -> String {
    DIRECT.into()
}

impl Table {
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let index = NAMES.iter().position(|known| *known == name).context("no such table")?;
        toml::from_str(TEXTS[index]).with_context(|| format!("xtask/tables/{name}.toml"))
    }

    /// What is compared with what.
    pub fn compare(&self) -> Compare {
        let pairs = self.rows.iter().flat_map(|rows| {
            let pair =
                |[of, with]: &[String; 2]| Pair { bits: rows.bits, of: of.clone(), with: with.clone() };
            rows.comparisons.iter().map(pair)
        });
        let pairs: Vec<Pair> = pairs.collect();
        if pairs.is_empty() { Compare::SameBits } else { Compare::Pairs(pairs) }
    }

    /// Its cells with the seeds from 0 to `n_seeds`, trained in directories under `out`.
    pub fn cells(&self, n_seeds: u64, set: &[String], out: &Path) -> Vec<Cell> {
        let first = format!("{}-fp32", self.base);
        let mut rows = vec![Row::of(FULL_PRECISION, [32, 32], first.clone())];
        for Rows { bits, methods, quantizers, options, .. } in &self.rows {
            let [weight, act] = bits;
            let direct = format!("{}-w{weight}a{act}", self.base);
            let suffix = |method: &str| if method == DIRECT { String::new() } else { format!("-{method}") };
            rows.extend(
                methods.iter().map(|method| Row::of(method, *bits, format!("{direct}{}", suffix(method)))),
            );
            let changed = |name: &str, method: &str, set: Vec<String>| {
                let bits_of = [("weight_bits", weight), ("act_bits", act)];
                let bits_of = bits_of.map(|(key, bits)| format!("quantization.{key}={bits}"));
                Row {
                    // Not every precision has recipes of its own.
                    written: format!("{}-w2a2{}", self.base, suffix(method)),
                    set: set.into_iter().chain(bits_of).collect(),
                    ..Row::of(name, *bits, format!("{direct}-{name}"))
                }
            };
            let of_quantizer =
                |name: &String| changed(name, DIRECT, vec![format!("quantization.method={name:?}")]);
            rows.extend(quantizers.iter().map(of_quantizer));
            let of_option =
                |option: &TrainingOption| changed(&option.name, &option.recipe, option.set.clone());
            rows.extend(options.iter().map(of_option));
        }
        let run = |recipe: &str, seed: u64| out.join("cells").join(format!("{recipe}-seed{seed}"));
        let init = |method: &str, seed: u64| {
            let run = format!("{:?}", run(&first, seed).display().to_string());
            let teacher = method.contains("joint").then(|| format!("strategy.joint.teacher.init={run}"));
            let is_first = method == FULL_PRECISION || !self.pretrained;
            let student = std::iter::once(format!("init={run}"));
            if is_first { Vec::new() } else { student.chain(teacher).collect() }
        };
        rows.into_iter()
            .flat_map(|row| (0..n_seeds).map(move |seed| (row.clone(), seed)))
            .map(|(row, seed)| Cell {
                run: run(&row.name, seed),
                init: init(&row.method, seed),
                set: {
                    let joint: &[String] = if row.method.contains("joint") { &self.set_joint } else { &[] };
                    self.set.iter().chain(joint).chain(&row.set).chain(set).cloned().collect()
                },
                method: row.method,
                bits: row.bits,
                recipe: row.name,
                written: row.written,
                seed,
            })
            .collect()
    }
}

/// A row of a table.
#[derive(Clone, Debug)]
struct Row {
    method: String,
    bits: [u32; 2],
    /// What its runs are called.
    name: String,
    /// The recipe that it is made of.
    written: String,
    /// What it changes of that.
    set: Vec<String>,
}

impl Row {
    /// A recipe as it comes.
    fn of(method: &str, bits: [u32; 2], name: String) -> Self {
        Self { method: method.into(), bits, written: name.clone(), name, set: Vec::new() }
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
            let of_rows = |rows: &Rows| rows.methods.len() + rows.quantizers.len() + rows.options.len();
            let n_rows: usize = table.rows.iter().map(of_rows).sum();
            assert_eq!(cells.len(), 2 * (1 + n_rows), "{name}");
            assert_eq!(cells[0].method, FULL_PRECISION);
            assert!(cells[0].recipe.ends_with("-fp32"));
            assert!(cells.iter().all(|cell| cell.set.last().is_some_and(|last| last == "a=b")));
            let first = |rows: &Rows| {
                let option = || rows.options.first().map(|option| option.name.clone());
                rows.methods.first().or(rows.quantizers.first()).cloned().or_else(option)
            };
            let compared = |rows: &Rows| {
                first(rows).is_some_and(|first| [DIRECT, "dorefa", "lsq"].contains(&first.as_str()))
            };
            if let Compare::Pairs(pairs) = table.compare() {
                let is_row = |bits: [u32; 2], method: &str| {
                    let is_it = |cell: &Cell| cell.bits == bits && cell.method == method;
                    cells.iter().any(is_it)
                };
                let has_rows = |Pair { bits, of, with }: &Pair| {
                    is_row(*bits, of) && (is_row(*bits, with) || with == FULL_PRECISION)
                };
                assert!(pairs.iter().all(has_rows), "{name}: {pairs:?}");
            }
            assert!(table.rows.iter().all(compared), "the method that others are compared with comes first");
        }
    }
}
