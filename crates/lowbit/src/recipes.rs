//! `lowbit recipes`, and how a recipe is named on the command line.

use std::path::{Path, is_separator};

use lowbit_train::recipe::{BASES, BIT_WIDTHS, DEFAULT, Difference, EmbeddedRecipe, METHODS, embedded};
use lowbit_train::{MAX_TEXT, Recipe, RecipeError, RunDir, read_regular_text, shell_quoted};
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

/// The recipe named `name` on the command line, a name or a path, with `--set` overrides.
pub fn load(name: &str, overrides: &[String]) -> anyhow::Result<Recipe> {
    let recipe = match is_path(name) {
        true => read(name, overrides)?,
        false => match Recipe::embedded(name, overrides) {
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
            recipe => recipe?,
        },
    };
    let teacher = recipe.strategy.joint.as_ref().and_then(|joint| joint.teacher.init.as_ref());
    for (key, path) in [("init", recipe.init.as_ref()), ("strategy.joint.teacher.init", teacher)] {
        path.map_or(Ok(()), |path| expect_no_tilde(path))
            .map_err(|why| UsageError(format!("{key}: {why}")))?;
    }
    Ok(recipe)
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

/// What `overrides` have changed of the recipe named `name`, which is now `recipe`. `None` without any, and of a file that is
/// no recipe without them.
pub fn changed(name: &str, overrides: &[String], recipe: &Recipe) -> Option<Vec<Difference>> {
    let written = match (overrides, is_path(name)) {
        ([], _) => return None,
        (_, true) => {
            let text = read_regular_text(Path::new(name), MAX_TEXT).ok()?;
            Recipe::parse_file(&text, Path::new(name), &[]).ok()?
        }
        (_, false) => Recipe::embedded(name, &[]).ok()?,
    };
    let mut changes = written.differences(recipe);
    // That a reference is of another training follows, and is said where it matters.
    changes.retain(|change| change.key != "reference" || recipe.reference.is_some());
    Some(changes)
}

fn read(path: &str, overrides: &[String]) -> anyhow::Result<Recipe> {
    expect_no_tilde(Path::new(path)).map_err(UsageError)?;
    let text = read_regular_text(Path::new(path), MAX_TEXT).map_err(|error| {
        UsageError(format!("failed to read recipe {}: {error}", Path::new(path).display()))
    })?;
    let file = Path::new(path);
    let recipe = Recipe::parse_file(&text, file, overrides)?;
    let written = Recipe::parse_file(&text, file, &[]).ok().and_then(|recipe| recipe.reference);
    if recipe.reference.is_none() && written.is_some() {
        tracing::warn!("the reference of {path} is not shown: it is not of the training with these --set");
    }
    Ok(recipe)
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

fn show(name: &str, json: bool) -> anyhow::Result<()> {
    if is_path(name) {
        let text = "`lowbit recipes show` takes the name of a recipe that comes with lowbit; what is in a file of your own, and \
                    what it leaves to defaults, shows";
        return Err(
            UsageError(format!("{text} `lowbit inspect {} --json`", shell_quoted(Path::new(name)))).into()
        );
    }
    let known = embedded().iter().find(|recipe| recipe.name == name);
    let recipe = known.ok_or_else(|| RecipeError::Unknown { name: name.into() })?;
    match json {
        true => output::print_json(&Recipe::embedded(name, &[])?),
        false => output::print(&recipe.text),
    }
}
