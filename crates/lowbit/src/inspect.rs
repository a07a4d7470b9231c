//! `lowbit inspect`: what a run holds, or what a recipe would train.

use std::fmt::Write;
use std::path::Path;

use lowbit_models::{Layout, Plan};
use lowbit_train::recipe::{Compute, DatasetChoice};
use lowbit_train::strategy::{About, Phase};
use lowbit_train::{
    CheckpointInspection, Images, Inspection, Origin, Pending, Recipe, RecipeError, RunData, RunDir,
    RunProcess, SetAside, shell_quoted,
};
use serde::Serialize;

use crate::cli::InspectArgs;
use crate::exit_code::{self, Code, UsageError};
use crate::output::{self, counted, percent_exact};
use crate::recipes;
use crate::train::{describe_ranks, describe_result};

/// Stands for the checkpoint with the highest accuracy.
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
        true => {
            expect_no_checkpoint(path, "inspect")?;
            inspect_run(path, args)?
        }
        false => inspect_recipe(args)?,
    }
    Ok(Code::Success)
}

fn inspect_run(path: &Path, args: &InspectArgs) -> anyhow::Result<()> {
    if !args.set.set.is_empty() {
        return Err(UsageError("--set changes a recipe; a run is what it is".into()).into());
    }
    let checkpoint = args.checkpoint.as_deref().map(|name| checkpoint_named(path, name)).transpose()?;
    let inspection = lowbit_train::inspect(path, checkpoint.as_deref())
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
        steps: _,
        result,
        obstacle: _,
        checkpoints,
        best,
        warnings,
        set_aside,
        checkpoint,
    } = inspection;
    let columns = output::stdout_columns();
    let entry = |key: &str, text: &str| output::wrapped(&format!("{key:<11} "), text, columns);
    let mut text = String::new();
    writeln!(text, "{}", entry("run", &path.display().to_string()))?;
    writeln!(text, "{}", entry("status", &describe_status(path, inspection)))?;
    match (result, checkpoint) {
        (Some(result), _) => {
            for line in describe_result(result).lines() {
                // The text of a reference may have lines of its own.
                let (key, value) = line.split_at_checked(12).unwrap_or(("", line));
                writeln!(text, "{}", output::wrapped(key, value, columns))?;
            }
        }
        (None, Some(checkpoint)) if Some(&checkpoint.name) == checkpoints.last() => {
            if let Some(evaluated) = describe_evaluation(checkpoint) {
                writeln!(text, "{}", entry("so far", &evaluated))?;
            }
        }
        _ => {}
    }
    let images = |data: &RunData| {
        let n_validation = data.validation.as_ref().map_or(0, |images| images.n_images);
        format!(": {}", output::images(data.train.n_images, n_validation, data.test.n_images))
    };
    let images = info.data.as_ref().map(images).unwrap_or_default();
    writeln!(text, "{}", entry("data", &format!("{}{images}", recipe.data.dataset)))?;
    writeln!(text, "{}", entry("seed", &recipe.seed.to_string()))?;
    writeln!(text, "\n{}\n", output::plan_in(&plan.to_string(), columns))?;
    writeln!(text, "{}", entry("recipe", &describe_recipe(recipe)))?;
    if let Some(compute) = describe_compute(recipe) {
        writeln!(text, "{}", entry("compute", &compute))?;
    }
    // With those of a library's caller. What an earlier lowbit did not write down is in the recipe.
    let of_recipe = recipe.strategies();
    let names: Vec<&str> = match &info.strategies {
        Some(strategies) => strategies.iter().map(|strategy| strategy.name.as_str()).collect(),
        None => of_recipe.iter().map(|strategy| strategy.name()).collect(),
    };
    let unnamed = info.unnamed_strategies.iter().map(String::as_str);
    let strategies = describe_strategies(names.into_iter().chain(unnamed));
    if let Some(strategies) = strategies {
        writeln!(text, "{}", entry("strategy", &strategies))?;
    }
    for (i, phase) in phases.iter().enumerate().filter(|_| phases.len() > 1) {
        writeln!(text, "{}", entry(if i == 0 { "phases" } else { "" }, &describe_phase(phase)))?;
    }
    let made_by = format!("{}, burn {}, device {}", info.origin.build(), info.origin.burn, info.device);
    writeln!(text, "{}", entry("made by", &made_by))?;
    writeln!(text, "{}", entry("", &describe_machine(&info.origin, info.started.as_deref())))?;
    let batch = recipe.data.batch_size;
    let first_ranks = processes.first().and_then(|process| process.ranks.as_ref());
    if let Some(ranks) = first_ranks {
        writeln!(text, "{}", entry("", &describe_ranks(ranks, batch)))?;
    }
    let mut before = (&info.origin, info.device.as_str(), first_ranks);
    for process in processes {
        // Only what is not as before.
        let RunProcess { step, device, origin, started, ranks } = process;
        let other_origin = origin.difference_on(device, before.0, before.1).is_some();
        if other_origin || ranks.as_ref() != before.2 {
            let went_on = format!("{}, device {device}", origin.build());
            writeln!(text, "{}", entry(&format!("from step {step}"), &went_on))?;
            writeln!(text, "{}", entry("", &describe_machine(origin, Some(started))))?;
            let of_ranks = ranks.as_ref().map_or("1 process".into(), |ranks| describe_ranks(ranks, batch));
            if ranks.as_ref() != before.2 {
                writeln!(text, "{}", entry("", &of_ranks))?;
            }
        }
        before = (origin, device.as_str(), ranks.as_ref());
    }
    for (i, warning) in warnings.iter().enumerate() {
        let message = format!("{} (step {})", warning.message, warning.step);
        writeln!(text, "{}", entry(if i == 0 { "warnings" } else { "" }, &message))?;
    }
    let is_best = |name: &String| if Some(name) == best.as_ref() { " (best)" } else { "" };
    let names: Vec<String> = checkpoints.iter().map(|name| format!("{name}{}", is_best(name))).collect();
    for (i, name) in names.iter().enumerate() {
        writeln!(text, "{:<11} {name}", if i == 0 { "checkpoints" } else { "" })?;
    }
    for SetAside { path, checkpoints } in set_aside {
        let checkpoints =
            if checkpoints.is_empty() { "no checkpoint".into() } else { checkpoints.join(", ") };
        writeln!(text, "{}", entry("set aside", &format!("{} ({checkpoints})", path.display())))?;
    }
    let Some(checkpoint) = checkpoint else {
        writeln!(text, "checkpoints none{}", if result.is_some() { "" } else { " yet" })?;
        return Ok(text);
    };
    writeln!(text, "\n{}", checkpoint.name)?;
    let pending = match checkpoint.progress.pending {
        None => "",
        Some(Pending::Calibration) => "; stopped while its quantizers were calibrated",
        Some(Pending::Evaluation) => "; stopped while it was evaluated",
    };
    writeln!(text, "{}", entry("progress", &format!("{} steps done{pending}", checkpoint.progress.step)))?;
    if let Some(evaluated) = describe_evaluation(checkpoint) {
        writeln!(text, "{}", entry("evaluated", &evaluated))?;
    }
    writeln!(text, "state       sha256 {}", checkpoint.state_sha256)?;
    Ok(text)
}

/// How far a run is, and how it goes on, in a line.
fn describe_status(path: &Path, inspection: &Inspection) -> String {
    let Inspection { phases, steps, result, obstacle, checkpoints, .. } = inspection;
    // The newest is named after its step.
    let step = checkpoints.last().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
    if result.is_some() {
        return match step {
            Some(step) => format!("complete, {}", counted(step, "step")),
            None => "complete, but its checkpoints are gone".into(),
        };
    }
    let step = step.unwrap_or(0);
    let of = steps.map(|steps| format!(" of {steps}")).unwrap_or_default();
    let place = describe_place(phases, *steps, step);
    match obstacle {
        Some(obstacle) => format!("step {step}{of}{place}; {obstacle}"),
        None => {
            format!("step {step}{of}{place}; resume with `lowbit train --resume {}`", shell_quoted(path))
        }
    }
}

/// The phase of `step` in a training of several phases and, as far as known, `steps`.
fn describe_place(phases: &[Phase], steps: Option<u64>, step: u64) -> String {
    let epochs: u64 = phases.iter().map(|phase| phase.train.epochs).sum();
    let (Some(steps), true) = (steps, phases.len() > 1) else { return String::new() };
    let mut end = 0;
    let is_over = |phase: &&Phase| {
        end += phase.train.epochs * (steps / epochs.max(1));
        end < step
    };
    let phase = phases.iter().take_while(is_over).count();
    let name = phases.get(phase).map(|phase| format!(" ({})", phase.name)).unwrap_or_default();
    format!(", phase {} of {}{name}", phase + 1, phases.len())
}

/// What a checkpoint scored, if it was evaluated.
fn describe_evaluation(checkpoint: &CheckpointInspection) -> Option<String> {
    let progress = &checkpoint.progress;
    let (images, scores) = match (progress.test, progress.validation) {
        (Some(test), _) => ("", test),
        (None, Some(validation)) => ("validation images, ", validation),
        (None, None) => return None,
    };
    let (top1, top5, step) = (percent_exact(scores.top1), percent_exact(scores.top5), progress.test_step?);
    Some(format!("top-1 {top1}  top-5 {top5}  loss {:.4}  ({images}after step {step})", scores.loss))
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
    let (recipe, _) = recipes::load(&args.target, &args.set.set).map_err(|error| {
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
    // Without a place, a folder of images is no error as long as the recipe says how many classes it has.
    let recipe = match (args.data_dir.data_dir.is_some(), recipe.data.dataset) {
        (true, _) | (_, DatasetChoice::Folder { n_classes: None, .. }) => {
            Images::from(args.data_dir.locations()).complete(&recipe)?
        }
        _ => recipe,
    };
    let plan = lowbit_train::plan(&recipe)?;
    let phases = recipe.phases();
    if args.json.json {
        return output::print_json(&RecipeReport { recipe, plan, phases });
    }
    let columns = output::stdout_columns();
    let entry = |key: &str, text: &str| output::wrapped(&format!("{key:<8}"), text, columns);
    let mut text = format!("{}\n\n", output::plan_in(&plan.to_string(), columns));
    writeln!(text, "{}", entry("recipe", &describe_recipe(&recipe)))?;
    if let Some(strategies) = describe_strategies_of(&recipe) {
        writeln!(text, "{}", entry("with", &strategies))?;
    }
    if let Some(compute) = describe_compute(&recipe) {
        writeln!(text, "{}", entry("compute", &compute))?;
    }
    for (i, phase) in phases.iter().enumerate() {
        writeln!(text, "{}", entry(if i == 0 { "phases" } else { "" }, &describe_phase(phase)))?;
    }
    output::print(&text)
}

/// The name of the checkpoint that `name` stands for in the run in `path`: its own, or `best`.
pub fn checkpoint_named(path: &Path, name: &str) -> anyhow::Result<String> {
    if name != BEST {
        return Ok(full_name(path, name));
    }
    let best = lowbit_train::best_checkpoint(path)?;
    Ok(best.ok_or_else(|| {
        let text = format!(
            "{} has no best checkpoint: none that is kept was evaluated in its last phase",
            path.display()
        );
        UsageError(text)
    })?)
}

/// A checkpoint's name for what stands for it: its step alone, its step without zeros, or its path in the run.
fn full_name(run: &Path, name: &str) -> String {
    let name = match Path::new(name).strip_prefix(run.join("checkpoints")) {
        Ok(rest) => rest.to_string_lossy().into_owned(),
        Err(_) => name.into(),
    };
    let step = name.strip_prefix("step-").unwrap_or(&name);
    let is_number = !step.is_empty() && step.bytes().all(|byte| byte.is_ascii_digit());
    match step.parse::<u64>() {
        Ok(step) if is_number => format!("step-{step:08}"),
        _ => name,
    }
}

/// Refuses a checkpoint in place of its run, and says which `command` reads it. A run that is elsewhere is named.
pub fn expect_no_checkpoint(path: &Path, command: &str) -> Result<(), UsageError> {
    let is_run = |path: &Path| RunDir::open(path).is_ok();
    if is_run(path) {
        return Ok(());
    }
    let is_checkpoints = |path: &Path| path.file_name().is_some_and(|name| name == "checkpoints");
    let parent = path.parent().unwrap_or(Path::new(""));
    let in_runs = Path::new("runs").join(path);
    let meant = if !path.exists() && path.is_relative() && is_run(&in_runs) {
        Some(format!("is not there; did you mean {}?", shell_quoted(&in_runs)))
    } else if is_checkpoints(path) && is_run(parent) {
        Some(format!("is in a run: use `lowbit {command} {}`", shell_quoted(parent)))
    } else if let (true, Some(run), Some(name)) = (is_checkpoints(parent), parent.parent(), path.file_name())
        && is_run(run)
    {
        let (run, name) = (shell_quoted(run), name.to_string_lossy());
        Some(format!("is a checkpoint: use `lowbit {command} {run} --checkpoint {name}`"))
    } else {
        None
    };
    match meant {
        Some(meant) => Err(UsageError(format!("{} {meant}", path.display()))),
        None => Ok(()),
    }
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
    let (summary, base) = (recipe.quantization.summary(), &recipe.quantization.policy.base);
    let precision = match base.is_quantized() {
        true => {
            let methods: Vec<&str> = base.methods().into_iter().map(|method| method.name()).collect();
            format!("{summary} {}", methods.join("+"))
        }
        false => summary,
    };
    let layout = match recipe.model.layout {
        Layout::Cifar => "",
        Layout::ImageNet => ", imagenet layout",
    };
    let norm = if recipe.model.norm == Some(false) { ", without BatchNorm" } else { "" };
    format!("{} ({}{depth}{layout}{norm}, {precision})", recipe.name, recipe.model.family)
}

/// What a step computes in other arithmetic than single precision, if anything.
pub fn describe_compute(recipe: &Recipe) -> Option<String> {
    let convs = match recipe.train.compute {
        Compute::Fp32 => None,
        Compute::Bf16 => Some(
            "convolutions are trained in bf16: what they multiply is rounded to it, unless it is quantized"
                .into(),
        ),
    };
    let gradients = recipe.quantization.grad_bits.bit_width().map(|bits| {
        let bits = output::counted(bits.get().into(), "bit");
        format!("gradients of quantized layers have {bits}, with noise (DoReFa-Net)")
    });
    let parts: Vec<String> = convs.into_iter().chain(gradients).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The strategies of a training by their `names`, if it has any: in the words of those that come with lowbit.
fn describe_strategies<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let title = |name| About::of(name).map_or(name, |about| about.title);
    let titles: Vec<&str> = names.into_iter().map(title).collect();
    (!titles.is_empty()).then(|| titles.join(", "))
}

/// The same of a recipe.
pub fn describe_strategies_of(recipe: &Recipe) -> Option<String> {
    let strategies = recipe.strategies();
    describe_strategies(strategies.iter().map(|strategy| strategy.name()))
}
