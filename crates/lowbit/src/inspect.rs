//! `lowbit inspect`: what a run holds, or what a recipe would train.

use std::fmt::Write;
use std::path::Path;

use lowbit_models::Plan;
use lowbit_strategies::{Inspection, Recipe};
use serde::Serialize;

use crate::cli::InspectArgs;
use crate::device::DeviceName;
use crate::exit_code::{Code, UsageError};
use crate::output::{self, percent_exact};
use crate::recipes;

#[derive(Serialize)]
struct RunReport<'a> {
    run_dir: &'a Path,
    /// Digest over all state of the checkpoint.
    state_sha256: Option<&'a str>,
    #[serde(flatten)]
    inspection: &'a Inspection,
}

#[derive(Serialize)]
struct RecipeReport {
    recipe: Recipe,
    plan: Plan,
}

pub fn run(args: &InspectArgs) -> anyhow::Result<Code> {
    let path = Path::new(&args.target);
    let is_recipe_file = args.target.ends_with(".toml");
    match path.is_dir() || (recipes::is_path(&args.target) && !is_recipe_file) {
        true => inspect_run(path, args)?,
        false => inspect_recipe(args)?,
    }
    Ok(Code::Success)
}

fn inspect_run(path: &Path, args: &InspectArgs) -> anyhow::Result<()> {
    if !args.set.set.is_empty() {
        return Err(UsageError("--set changes a recipe; a run is what it is".into()).into());
    }
    let inspection = lowbit_strategies::inspect(path, args.checkpoint.as_deref())?;
    if args.json.json {
        let state_sha256 = inspection.checkpoint.as_ref().map(|checkpoint| checkpoint.state_sha256.as_str());
        return output::print_json(&RunReport { run_dir: path, state_sha256, inspection: &inspection });
    }
    output::print(&describe_run(path, &inspection)?)
}

fn describe_run(path: &Path, inspection: &Inspection) -> Result<String, std::fmt::Error> {
    let Inspection { recipe, info, plan, checkpoints, best, checkpoint } = inspection;
    let mut text = format!("{plan}\n\n");
    writeln!(text, "run         {}", path.display())?;
    writeln!(text, "recipe      {}", describe_recipe(recipe))?;
    writeln!(text, "made by     lowbit {}, burn {}, device {}", info.lowbit, info.burn, info.device)?;
    let is_best = |name: &String| if Some(name) == best.as_ref() { " (best)" } else { "" };
    let names: Vec<String> = checkpoints.iter().map(|name| format!("{name}{}", is_best(name))).collect();
    for (i, name) in names.iter().enumerate() {
        writeln!(text, "{:<11} {name}", if i == 0 { "checkpoints" } else { "" })?;
    }
    let Some(checkpoint) = checkpoint else {
        writeln!(text, "checkpoints none yet")?;
        return Ok(text);
    };
    writeln!(text, "\n{}", checkpoint.name)?;
    writeln!(text, "progress    {} steps done", checkpoint.progress.step)?;
    if let (Some(test), Some(step)) = (checkpoint.progress.test, checkpoint.progress.test_step) {
        let (top1, top5) = (percent_exact(test.top1), percent_exact(test.top5));
        writeln!(text, "evaluated   top-1 {top1}  top-5 {top5}  loss {:.4}  (after step {step})", test.loss)?;
    }
    writeln!(text, "state       sha256 {}", checkpoint.state_sha256)?;
    Ok(text)
}

fn inspect_recipe(args: &InspectArgs) -> anyhow::Result<()> {
    if args.checkpoint.is_some() {
        return Err(UsageError("--checkpoint names one of a run, but this is a recipe".into()).into());
    }
    let recipe = recipes::load(&args.target, &args.set.set)?;
    let device = DeviceName::fastest()?.open()?;
    let plan = lowbit_strategies::plan(&recipe, &device)?;
    match args.json.json {
        true => output::print_json(&RecipeReport { recipe, plan }),
        false => output::print(&format!("{plan}\n\nrecipe  {}", describe_recipe(&recipe))),
    }
}

/// A recipe in a line.
pub fn describe_recipe(recipe: &Recipe) -> String {
    let depth = recipe.model.depth.map(|depth| format!("-{depth}")).unwrap_or_default();
    let precision = match recipe.quantization.summary().as_str() {
        "W32A32" => "full precision".into(),
        summary => format!("{summary} {}", recipe.quantization.policy.base.method),
    };
    format!("{} ({}{depth}, {precision})", recipe.name, recipe.model.family)
}
