//! `lowbit recipes`, and how a recipe is named on the command line.

use std::fs;
use std::path::{Path, is_separator};

use lowbit_strategies::recipe::{DEFAULT, EMBEDDED};
use lowbit_strategies::{Recipe, RecipeError};
use serde::Serialize;

use crate::cli::{RecipesArgs, RecipesCommand};
use crate::exit_code::{Code, UsageError};
use crate::output;

pub fn run(args: &RecipesArgs) -> anyhow::Result<Code> {
    match &args.command {
        None | Some(RecipesCommand::List) => list(args.json.json)?,
        Some(RecipesCommand::Show { name }) => show(name, args.json.json)?,
    }
    Ok(Code::Success)
}

/// The recipe named `name` on the command line, a name or a path, with `--set` overrides.
pub fn load(name: &str, overrides: &[String]) -> anyhow::Result<Recipe> {
    if !is_path(name) {
        return Ok(Recipe::embedded(name, overrides)?);
    }
    let text = fs::read_to_string(name).map_err(|error| {
        UsageError(format!("failed to read recipe {}: {error}", Path::new(name).display()))
    })?;
    Ok(Recipe::parse(&text, name, overrides)?)
}

/// Whether `name` is a path rather than the name of an embedded recipe.
pub fn is_path(name: &str) -> bool {
    name.ends_with(".toml") || name.contains(is_separator)
}

#[derive(Serialize)]
struct Entry {
    name: &'static str,
    summary: &'static str,
    default: bool,
}

fn list(json: bool) -> anyhow::Result<()> {
    let entries: Vec<Entry> = EMBEDDED
        .iter()
        .map(|recipe| Entry { name: recipe.name, summary: recipe.summary(), default: recipe.name == DEFAULT })
        .collect();
    if json {
        return output::print_json(&entries);
    }
    let lines = entries.iter().map(|entry| format!("{}\n    {}\n", entry.name, entry.summary));
    output::print(&lines.collect::<String>())
}

fn show(name: &str, json: bool) -> anyhow::Result<()> {
    let known = EMBEDDED.iter().find(|recipe| recipe.name == name);
    let recipe = known.ok_or_else(|| RecipeError::Unknown { name: name.into() })?;
    match json {
        true => output::print_json(&Recipe::embedded(name, &[])?),
        false => output::print(recipe.text),
    }
}
