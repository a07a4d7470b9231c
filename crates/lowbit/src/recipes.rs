//! `lowbit recipes`, and how a recipe is named on the command line.

use std::path::{Path, is_separator};

use lowbit_train::recipe::{
    BASES, BIT_WIDTHS, DEFAULT, Difference, EmbeddedRecipe, METHODS, RecipeSource, embedded,
};
use lowbit_train::{Recipe, RecipeError, RunDir, shell_quoted, with_absolute_paths};
use serde::Serialize;

use crate::cli::{RecipesArgs, RecipesCommand};
use crate::exit_code::{Code, UsageError};
use crate::hints::expect_no_tilde;
use crate::output;
use crate::progress::Screen;

pub fn run(args: &RecipesArgs, screen: &Screen) -> anyhow::Result<Code> {
    match &args.command {
        None | Some(RecipesCommand::List) => list(args.json.json, screen.is_quiet())?,
        Some(RecipesCommand::Show { name }) => show(name, args.json.json)?,
    }
    Ok(Code::Success)
}

/// The recipe named `name` on the command line, a name or a path, with `--set` overrides, and what these have changed: `None`
/// without any, and of a file that is no recipe without them.
pub fn load(name: &str, overrides: &[String]) -> anyhow::Result<(Recipe, Option<Vec<Difference>>)> {
    let source = match source(name) {
        // `--set key value`: the value was taken for the recipe.
        Err(RecipeError::Unknown { .. })
            if let Some(key) = overrides.iter().find(|set| !set.contains('=')) =>
        {
            let text = format!("--set {key:?} is not of the form key=value: write --set {key}={name}");
            return Err(UsageError(text).into());
        }
        Err(RecipeError::Unknown { .. }) if let Some(meant) = meant_path(name) => {
            return Err(UsageError(format!("no recipe named {name:?}; {meant}")).into());
        }
        source => source?,
    };
    let recipe = source.recipe(overrides)?;
    expect_no_tilde_in(&recipe)?;
    source.own_bits(overrides).iter().for_each(|change| tracing::warn!("{change}"));
    let written = if overrides.is_empty() { None } else { source.recipe(&[]).ok() };
    if let Some(written) = &written
        && is_path(name)
        && written.reference.is_some()
        && recipe.reference.is_none()
    {
        tracing::warn!("the reference of {name} is not shown: it is not of the training with these --set");
    }
    let changes = written.map(|written| {
        let mut changes = written.differences(&recipe);
        // That a reference is of another training follows, and is said where it matters.
        changes.retain(|change| change.key != "reference" || recipe.reference.is_some());
        changes
    });
    Ok((recipe, changes))
}

/// Refuses paths in `recipe` whose `~` no shell has replaced.
fn expect_no_tilde_in(recipe: &Recipe) -> Result<(), UsageError> {
    let teacher = recipe.strategy.joint.as_ref().and_then(|joint| joint.teacher.init.as_ref());
    for (key, path) in [("init", recipe.init.as_ref()), ("strategy.joint.teacher.init", teacher)] {
        path.map_or(Ok(()), |path| expect_no_tilde(path))
            .map_err(|why| UsageError(format!("{key}: {why}")))?;
    }
    Ok(())
}

/// The recipe named `name`, a name or a path, as it is written.
fn source(name: &str) -> Result<RecipeSource, RecipeError> {
    if !is_path(name) {
        return RecipeSource::embedded(name);
    }
    let path = Path::new(name);
    expect_no_tilde(path).map_err(|message| RecipeError::Unreadable { path: path.into(), message })?;
    RecipeSource::file(path)
}

/// What was meant by a name that is none of a recipe, but near a path.
fn meant_path(name: &str) -> Option<String> {
    let file = format!("{name}.toml");
    let is_run = |path: &Path| RunDir::open(path).is_ok();
    match Path::new(name) {
        path if is_run(path) => Some(format!(
            "{name} is a run: `lowbit train --resume {0}` goes on with it, `lowbit inspect {0}` shows it",
            shell_quoted(path)
        )),
        path if path.is_file() => Some(format!("did you mean ./{name}?")),
        _ if Path::new(&file).is_file() => Some(format!("did you mean ./{file}?")),
        _ => None,
    }
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

fn list(json: bool, is_quiet: bool) -> anyhow::Result<()> {
    if json {
        let entry = |recipe: &'static EmbeddedRecipe| Entry {
            name: &recipe.name,
            summary: recipe.summary(),
            default: recipe.name == DEFAULT,
        };
        return output::print_json(&embedded().iter().map(entry).collect::<Vec<_>>());
    }
    let columns = output::stdout_columns();
    let (one, all) = ("one of them: lowbit recipes show NAME", "all names: lowbit recipes --json");
    let next = output::fitting([format!("\n{one}      {all}"), format!("\n{one}\n{all}")], columns);
    output::print(&(overview(columns) + if is_quiet { "" } else { &next }))
}

/// What names are made of: there are too many to list.
fn overview(columns: Option<usize>) -> String {
    let entry = |name: &str, text: &str| match columns {
        Some(columns) if columns < 72 => {
            format!("  {name}\n{}\n", output::wrapped("      ", text, Some(columns)))
        }
        _ => output::wrapped(&format!("  {name:<26}"), text, columns) + "\n",
    };
    let wrapped = |start: &str, text: &str| output::wrapped(start, text, columns);
    let bits: Vec<String> = BIT_WIDTHS.iter().map(|[weight, act]| format!("w{weight}a{act}")).collect();
    let names = format!("BASE-fp32, BASE-BITS or BASE-BITS-METHOD, as in {DEFAULT} (the default)");
    let mut text = wrapped("", &names) + "\n\nBASE\n";
    for base in BASES {
        text += &entry(base.name, base.summary());
    }
    text += &format!(
        "\nBITS\n{}\n\nMETHOD\n{}",
        wrapped("  ", &bits.join(", ")),
        entry("none", "trained directly")
    );
    for method in METHODS {
        text += &entry(method.name, method.summary());
    }
    text
}

/// Prints the whole recipe, every default and path written out, below what it is and what it extends.
fn show(name: &str, json: bool) -> anyhow::Result<()> {
    let source = source(name)?;
    let recipe = source.recipe(&[])?;
    expect_no_tilde_in(&recipe)?;
    // What is printed may be read from anywhere.
    let recipe = with_absolute_paths(&recipe)?;
    if json {
        return output::print_json(&recipe);
    }
    let embedded = embedded().iter().find(|recipe| recipe.name == name);
    let header = embedded.map(EmbeddedRecipe::header).unwrap_or_default();
    let extends = match source.extends() {
        [] => String::new(),
        bases => format!("# Extends {}.\n", bases.join(", which extends ")),
    };
    output::print(&format!("{header}{extends}{}", recipe.to_toml()))
}
