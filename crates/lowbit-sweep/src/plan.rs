//! What decides the outcome of all cells.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fmt, fs};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cell::Images;
use crate::origin::Identity;

const FILE: &str = "plan.json";

/// Version of the file's format.
const SCHEMA: u64 = 3;

/// What decides the outcome of all cells; stored beside them, so that no report mixes two kinds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub schema: u64,
    /// The build, and the instruction sets that it finds here.
    pub lowbit: Identity,
    /// SHA-256 of the program, where the build alone does not say what it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program_sha256: Option<String>,
    pub table: String,
    pub device: String,
    /// Absent where the runs alone know them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// Resolved settings by recipe.
    pub recipes: BTreeMap<String, Value>,
}

impl Plan {
    /// `inspected` is what `lowbit inspect` says of each recipe.
    pub fn new(
        lowbit: Identity,
        program_sha256: Option<String>,
        table: &str,
        device: &str,
        images: Option<Images>,
        inspected: &BTreeMap<String, Value>,
    ) -> Self {
        let resolved = |inspected: &Value| {
            let mut recipe = inspected["recipe"].clone();
            if let Some(recipe) = recipe.as_object_mut() {
                // Is shown beside the result, which it does not change.
                recipe.remove("reference");
            }
            recipe
        };
        let recipes = inspected.iter().map(|(name, inspected)| (name.clone(), resolved(inspected))).collect();
        Self {
            schema: SCHEMA,
            lowbit,
            program_sha256,
            table: table.into(),
            device: device.into(),
            images,
            recipes,
        }
    }

    /// Fails if cells in `out` were begun by another plan; returns this one with the recipes that they have besides.
    pub fn checked(self, out: &Path) -> anyhow::Result<Self> {
        let path = out.join(FILE);
        expect_own(out)?;
        if !has_cells(out)? {
            return Ok(self);
        }
        let text = match fs::read_to_string(&path) {
            Err(error) => return Err(error).with_context(|| format!("failed to read {}", path.display())),
            Ok(text) => text,
        };
        let damaged = |error: serde_json::Error| {
            let remedy = "move the directory away to begin anew, or choose another --out";
            Refused(format!("{} is damaged: {error}; {remedy}", path.display()))
        };
        let earlier: Value = serde_json::from_str(&text).map_err(damaged)?;
        let new = serde_json::to_value(&self).context("failed to write the plan")?;
        if let Some(Difference { what, earlier, new }) = difference(&earlier, &new, "") {
            let message = format!(
                "{} holds cells with another plan: {what} was {earlier} and is now {new}; choose another --out",
                out.display()
            );
            return Err(Refused(message).into());
        }
        let earlier: Self = serde_json::from_value(earlier).map_err(damaged)?;
        let mut recipes = earlier.recipes;
        recipes.extend(self.recipes);
        Ok(Self { recipes, ..self })
    }

    /// Writes it into `out`, which is made if it is not there.
    pub fn write(&self, out: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(out).with_context(|| format!("failed to create {}", out.display()))?;
        let path = out.join(FILE);
        let write = || fs::write(&path, serde_json::to_string_pretty(self)?).map_err(anyhow::Error::from);
        write().with_context(|| format!("failed to write {}", path.display()))
    }
}

/// A directory that a sweep must not write into, with what to do.
#[derive(Debug)]
pub struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// Refuses a directory that holds something else than a sweep: its files would be written over.
fn expect_own(out: &Path) -> anyhow::Result<()> {
    let refuse = |what: &str| Refused(format!("{} {what}: choose another --out", out.display()));
    let mut entries = match fs::read_dir(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(refuse("is no directory").into());
        }
        entries => entries.with_context(|| format!("failed to read {}", out.display()))?,
    };
    if out.join("run.json").exists() {
        return Err(refuse("is a run").into());
    }
    let is_empty = entries.next().is_none();
    let is_ours = || {
        let plan = fs::read(out.join(FILE)).ok()?;
        let plan: Value = serde_json::from_slice(&plan).ok()?;
        Some(plan.get("recipes")?.is_object() && plan.get("table")?.is_string())
    };
    match is_empty || out.join("cells").is_dir() || is_ours() == Some(true) {
        true => Ok(()),
        false => Err(refuse("is not empty and holds no sweep").into()),
    }
}

/// Whether a training was begun in `out`.
fn has_cells(out: &Path) -> anyhow::Result<bool> {
    let cells = out.join("cells");
    match fs::read_dir(&cells) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("failed to read {}", cells.display())),
        Ok(entries) => Ok(entries.flatten().any(|entry| entry.path().join("run.json").is_file())),
    }
}

/// A value that two plans differ in.
#[derive(Debug, PartialEq)]
struct Difference {
    what: String,
    earlier: String,
    new: String,
}

/// The first difference at the dotted key `at` or below. A recipe that only one of them has is none.
fn difference(earlier: &Value, new: &Value, at: &str) -> Option<Difference> {
    let (Value::Object(a), Value::Object(b)) = (earlier, new) else {
        let differs = || Difference { what: at.into(), earlier: shown(earlier), new: shown(new) };
        return (earlier != new).then(differs);
    };
    let keys = a.keys().chain(b.keys().filter(|key| !a.contains_key(*key)));
    keys.filter(|key| at != "recipes" || a.contains_key(*key) && b.contains_key(*key)).find_map(|key| {
        let below = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        difference(a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), &below)
    })
}

/// A value as a message shows it.
fn shown(value: &Value) -> String {
    if value.is_null() { "absent".into() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_found_in_what_both_have() {
        let earlier = json!({ "device": "flex", "recipes": { "a": { "train": { "epochs": 3 } }, "b": 1 } });
        let check = |new: Value, expected: Option<[&str; 3]>| {
            let expected = expected.map(|[what, earlier, new]| Difference {
                what: what.into(),
                earlier: earlier.into(),
                new: new.into(),
            });
            assert_eq!(difference(&earlier, &new, ""), expected);
        };
        check(earlier.clone(), None);
        check(json!({ "device": "flex", "recipes": { "a": { "train": { "epochs": 3 } }, "c": 1 } }), None);
        let changed = json!({ "device": "flex", "recipes": { "a": { "train": { "epochs": 4 } } } });
        check(changed, Some(["recipes.a.train.epochs", "3", "4"]));
        check(json!({ "device": "wgpu", "recipes": {} }), Some(["device", "\"flex\"", "\"wgpu\""]));
        let fewer = json!({ "device": "flex", "recipes": { "a": { "train": {} } } });
        check(fewer, Some(["recipes.a.train.epochs", "3", "absent"]));
    }
}
