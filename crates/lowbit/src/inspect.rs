//! `lowbit inspect`: what a run holds, or what a recipe would train.

use std::fmt::Write;
use std::path::Path;

use lowbit_models::{Layout, Plan};
use lowbit_strategies::strategy::Phase;
use lowbit_strategies::{Inspection, Origin, Pending, Recipe, RecipeError, RunProcess, SetAside};
use serde::Serialize;

use crate::cli::InspectArgs;
use crate::exit_code::{self, Code, UsageError};
use crate::output::{self, counted, percent_exact};
use crate::recipes;

/// Stands for the checkpoint with the highest test accuracy.
const BEST: &str = "best";

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
    phases: Vec<Phase>,
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
    let checkpoint = args.checkpoint.as_deref().map(|name| checkpoint_named(path, name)).transpose()?;
    let inspection = lowbit_strategies::inspect(path, checkpoint.as_deref())
        .map_err(|error| exit_code::with_previous(error, "inspect", path))?;
    if args.json.json {
        let state_sha256 = inspection.checkpoint.as_ref().map(|checkpoint| checkpoint.state_sha256.as_str());
        return output::print_json(&RunReport { run_dir: path, state_sha256, inspection: &inspection });
    }
    output::print(&describe_run(path, &inspection)?)
}

fn describe_run(path: &Path, inspection: &Inspection) -> Result<String, std::fmt::Error> {
    let Inspection {
        recipe,
        info,
        processes,
        plan,
        phases,
        checkpoints,
        best,
        warnings,
        set_aside,
        checkpoint,
    } = inspection;
    let mut text = format!("{plan}\n\n");
    writeln!(text, "run         {}", path.display())?;
    writeln!(text, "recipe      {}", describe_recipe(recipe))?;
    if let Some(strategies) = describe_strategies(recipe) {
        writeln!(text, "strategy    {strategies}")?;
    }
    for (i, phase) in phases.iter().enumerate().filter(|_| phases.len() > 1) {
        let key = if i == 0 { "phases" } else { "" };
        writeln!(text, "{key:<11} {}", describe_phase(phase))?;
    }
    writeln!(text, "made by     {}, burn {}, device {}", info.origin.build(), info.origin.burn, info.device)?;
    writeln!(text, "{:<11} {}", "", describe_machine(&info.origin, info.started.as_deref()))?;
    let mut before = (&info.origin, info.device.as_str());
    for process in processes {
        // Only what is not as before.
        if process.origin.difference_on(&process.device, before.0, before.1).is_some() {
            let RunProcess { step, device, origin, started } = process;
            writeln!(text, "from step {step:<2} {}, device {device}", origin.build())?;
            writeln!(text, "{:<11} {}", "", describe_machine(origin, Some(started)))?;
        }
        before = (&process.origin, process.device.as_str());
    }
    for (i, warning) in warnings.iter().enumerate() {
        let key = if i == 0 { "warnings" } else { "" };
        writeln!(text, "{key:<11} {} (step {})", warning.message, warning.step)?;
    }
    let is_best = |name: &String| if Some(name) == best.as_ref() { " (best)" } else { "" };
    let names: Vec<String> = checkpoints.iter().map(|name| format!("{name}{}", is_best(name))).collect();
    for (i, name) in names.iter().enumerate() {
        writeln!(text, "{:<11} {name}", if i == 0 { "checkpoints" } else { "" })?;
    }
    for SetAside { path, checkpoints } in set_aside {
        let checkpoints =
            if checkpoints.is_empty() { "no checkpoint".into() } else { checkpoints.join(", ") };
        writeln!(text, "set aside   {} ({checkpoints})", path.display())?;
    }
    let Some(checkpoint) = checkpoint else {
        writeln!(text, "checkpoints none yet")?;
        return Ok(text);
    };
    writeln!(text, "\n{}", checkpoint.name)?;
    let pending = match checkpoint.progress.pending {
        None => "",
        Some(Pending::Calibration) => "; stopped while its quantizers were calibrated",
        Some(Pending::Evaluation) => "; stopped while it was evaluated",
    };
    writeln!(text, "progress    {} steps done{pending}", checkpoint.progress.step)?;
    if let (Some(test), Some(step)) = (checkpoint.progress.test, checkpoint.progress.test_step) {
        let (top1, top5) = (percent_exact(test.top1), percent_exact(test.top5));
        writeln!(text, "evaluated   top-1 {top1}  top-5 {top5}  loss {:.4}  (after step {step})", test.loss)?;
    }
    writeln!(text, "state       sha256 {}", checkpoint.state_sha256)?;
    Ok(text)
}

/// The machine of a run in a line.
fn describe_machine(origin: &Origin, started: Option<&str>) -> String {
    let host = origin.host.as_deref().unwrap_or("unknown host");
    let processor = origin.processor.as_deref().unwrap_or("unknown processor");
    let n_threads = counted(origin.n_threads as u64, "thread");
    let started = started.map(|started| format!(", {started}")).unwrap_or_default();
    format!("on {host}, {processor}, {n_threads}{started}")
}

fn inspect_recipe(args: &InspectArgs) -> anyhow::Result<()> {
    let recipe = recipes::load(&args.target, &args.set.set).map_err(|error| {
        match error.downcast_ref::<RecipeError>() {
            Some(RecipeError::Unknown { name }) => {
                UsageError(format!("no run directory {name:?}, and {error}")).into()
            }
            _ => error,
        }
    })?;
    if args.checkpoint.is_some() {
        return Err(UsageError("--checkpoint names one of a run, but this is a recipe".into()).into());
    }
    let plan = lowbit_strategies::plan(&recipe)?;
    let phases = recipe.phases();
    if args.json.json {
        return output::print_json(&RecipeReport { recipe, plan, phases });
    }
    let mut text = format!("{plan}\n\nrecipe  {}\n", describe_recipe(&recipe));
    if let Some(strategies) = describe_strategies(&recipe) {
        writeln!(text, "with    {strategies}")?;
    }
    for (i, phase) in phases.iter().enumerate() {
        writeln!(text, "{}  {}", if i == 0 { "phases" } else { "      " }, describe_phase(phase))?;
    }
    output::print(&text)
}

/// The name of the checkpoint that `name` stands for in the run in `path`: its own, or `best`.
pub fn checkpoint_named(path: &Path, name: &str) -> anyhow::Result<String> {
    if name != BEST {
        return Ok(name.into());
    }
    let best = lowbit_strategies::best_checkpoint(path)?;
    Ok(best.ok_or_else(|| {
        let text = format!(
            "{} has no best checkpoint: none that is kept was evaluated in its last phase",
            path.display()
        );
        UsageError(text)
    })?)
}

/// A phase in a line.
pub fn describe_phase(phase: &Phase) -> String {
    let train = &phase.train;
    let epochs = if train.epochs == 1 { "epoch" } else { "epochs" };
    format!("{:<6} {} {epochs}, learning rate {}", phase.name, train.epochs, train.learning_rate)
}

/// A recipe in a line.
pub fn describe_recipe(recipe: &Recipe) -> String {
    let depth = recipe.model.depth.map(|depth| format!("-{depth}")).unwrap_or_default();
    let precision = match recipe.quantization.summary().as_str() {
        "W32A32" => "full precision".into(),
        summary => format!("{summary} {}", recipe.quantization.policy.base.method),
    };
    let layout = match recipe.model.layout {
        Layout::Cifar => "",
        Layout::ImageNet => ", imagenet layout",
    };
    format!("{} ({}{depth}{layout}, {precision})", recipe.name, recipe.model.family)
}

/// The strategies of a recipe, if it has any.
pub fn describe_strategies(recipe: &Recipe) -> Option<String> {
    let strategies = &recipe.strategy;
    let names = [
        (strategies.progressive.is_some(), "progressive"),
        (strategies.two_stage, "two-stage"),
        (strategies.stochastic_precision.is_some(), "stochastic precision"),
        (strategies.joint.is_some(), "joint distillation"),
        (strategies.hint.is_some(), "hints"),
    ];
    let names: Vec<&str> = names.iter().filter(|(used, _)| *used).map(|(_, name)| *name).collect();
    (!names.is_empty()).then(|| names.join(", "))
}
