//! `lowbit sensitivity`: what the bits of each layer cost, and a recipe with other bits for each.

use std::fmt::Write;
use std::path::Path;

use lowbit_core::{BitWidth, Precision};
use lowbit_quantizers::{Method, Operand};
use lowbit_train::{
    Budget, BudgetError, ChosenBy, Cost, Images, LayerSensitivity, MixedPlan, Recipe, RunDir, SearchOptions,
    Sensitivity, SensitivityOptions, Subject, shell_quoted,
};
use serde::Serialize;

use crate::cli::{BudgetOf, SearchBy, SensitivityArgs};
use crate::device::DeviceName;
use crate::exit_code::{self, Code, UsageError};
use crate::export::{exists, write_new};
use crate::inspect::{checkpoint_named, expect_no_checkpoint};
use crate::output::{self, percent};
use crate::progress::Screen;

/// What a budget is tried with where no bits are named.
const DEFAULT_BITS: [u32; 5] = [2, 3, 4, 6, 8];

/// Steps of a choice by gradient, unless told.
const STEPS: usize = 200;

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    sensitivity: Option<&'a Sensitivity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'a MixedPlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Path>,
    device: String,
    run_dir: &'a Path,
}

pub fn run(args: &SensitivityArgs, screen: &Screen) -> anyhow::Result<Code> {
    expect_no_checkpoint(&args.run, "sensitivity")?;
    if let Some(out) = args.out.as_deref().filter(|out| out.exists()) {
        return Err(exists(out).into());
    }
    if args.steps.is_some() && args.by != SearchBy::Gradient {
        return Err(UsageError("--steps is for a choice by gradient: add --by gradient".into()).into());
    }
    if args.method.is_some() && args.bits.is_empty() && args.budget.is_none() {
        return Err(UsageError("--method is that of other bits: add --bits or --budget".into()).into());
    }
    let run_device = RunDir::open(&args.run)?.info()?.device;
    let name = match args.device.device {
        Some(name) => name,
        None => DeviceName::of_run(&run_device).or_else(|_| DeviceName::fastest())?,
    };
    let device = name.open()?;
    let checkpoint = args.checkpoint.as_deref().map(|name| checkpoint_named(&args.run, name)).transpose()?;
    let subject = Subject { checkpoint: checkpoint.as_deref(), network: args.network.as_deref() };
    let mut bits = match (args.bits.is_empty(), args.budget) {
        (true, Some(_)) => default_bits(&RunDir::open(&args.run)?.recipe()?, args.method),
        _ => args.bits.clone(),
    };
    bits.sort();
    bits.dedup();
    let options = SensitivityOptions { n_images: args.images, bits, method: args.method };
    let images = Images::from(args.data_dir.locations());
    let mut progress = screen.progress("{wide_msg} {bar:12} {pos}/{len}  ETA {eta}");
    let mut show = |what: &str, done: usize, total: usize| {
        progress.position(done as u64, total as u64);
        progress.update(|| format!("{what}: {done} of {total}"));
    };
    let cost = match args.of {
        BudgetOf::BitOps => Cost::BitOperations,
        BudgetOf::Bytes => Cost::Bytes,
    };
    let (sensitivity, plan) = match (args.budget, args.by) {
        (Some(budget), SearchBy::Gradient) => {
            let search = SearchOptions { steps: args.steps.unwrap_or(STEPS), cost, budget };
            let show = |done, total| show("learning bits, step", done, total);
            let plan =
                lowbit_train::learned_plan(&args.run, subject, &device, &images, &options, search, show);
            (None, Some(plan.map_err(|error| of_budget(error, args))?))
        }
        (budget, _) => {
            let show = |done, total| show("scoring the network, pass", done, total);
            let sensitivity = lowbit_train::sensitivity(&args.run, subject, &device, &images, &options, show)
                .map_err(|error| exit_code::with_previous(error, "sensitivity", &args.run))?;
            let plan = budget.map(|budget| sensitivity.mixed_plan(cost, budget)).transpose();
            (Some(sensitivity), plan.map_err(|error| of_budget(error, args))?)
        }
    };
    drop(progress);
    let is_quantized =
        sensitivity.as_ref().is_some_and(|of| of.layers.iter().any(|layer| layer.top1_only.is_some()));
    if plan.is_some() && is_quantized {
        tracing::warn!(
            "the run was trained at its own bits, and other bits are tried without training: more of them may look worse than they are; a \
             run in full precision is the better start"
        );
    }
    if let (Some(plan), Some(out)) = (&plan, &args.out) {
        let text = plan.recipe.to_toml();
        // What is written trains: it is read as any recipe is.
        Recipe::parse(&text, &out.display().to_string(), &[])?;
        write_new(out, text.as_bytes())?;
    }
    let report = Report {
        sensitivity: sensitivity.as_ref(),
        plan: plan.as_ref(),
        file: args.out.as_deref(),
        device: name.to_string(),
        run_dir: &args.run,
    };
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report)?)?,
    }
    Ok(Code::Success)
}

/// The bits that a budget is tried with, as far as the method has them.
fn default_bits(recipe: &Recipe, method: Option<Method>) -> Vec<BitWidth> {
    let base = recipe.quantization.policy.base;
    let allowed = [
        method.unwrap_or(base.weight_method).bits(Operand::Weights),
        method.unwrap_or(base.act_method).bits(Operand::Activations),
    ];
    // Those of one or two bits alone have a bit width that is not in the list.
    let lowest = allowed.iter().map(|range| *range.start()).max().unwrap_or(1);
    let bits = DEFAULT_BITS.into_iter().filter(|bits| allowed.iter().all(|range| range.contains(bits)));
    let mut bits: Vec<u32> = bits.collect();
    if bits.is_empty() {
        bits.push(lowest);
    }
    bits.into_iter().map(|bits| BitWidth::new(bits).expect("invariant: 1 to 8")).collect()
}

/// The error of a choice of bits, with the option that it is about.
fn of_budget(error: BudgetError, args: &SensitivityArgs) -> anyhow::Error {
    match error {
        BudgetError::Train(error) => exit_code::with_previous(error, "sensitivity", &args.run),
        error => UsageError(format!("--budget: {error}")).into(),
    }
}

/// Reads a budget: `w3a3`, or a number with or without a unit: `250k`, `1.5M`, `2G`.
pub fn parse_budget(text: &str) -> Result<Budget, String> {
    let wrong = || "expected bits as in w3a3, or a number as in 40000, 250k, 1.5M or 2G".to_string();
    let lower = text.to_ascii_lowercase();
    if let Some((weights, inputs)) = lower.strip_prefix('w').and_then(|rest| rest.split_once('a')) {
        let bits = |text: &str| text.parse().ok().and_then(|bits| Precision::bits(bits).ok());
        return match (bits(weights), bits(inputs)) {
            (Some(weights), Some(inputs)) => Ok(Budget::Uniform(weights, inputs)),
            _ => Err(wrong()),
        };
    }
    let (number, factor) = match lower.char_indices().next_back() {
        Some((at, 'k')) => (&lower[..at], 1e3),
        Some((at, 'm')) => (&lower[..at], 1e6),
        Some((at, 'g')) => (&lower[..at], 1e9),
        Some((at, 't')) => (&lower[..at], 1e12),
        _ => (lower.as_str(), 1.0),
    };
    let amount = number.parse::<f64>().ok().map(|number| number * factor);
    match amount.filter(|amount| (1.0..1e18).contains(amount)) {
        Some(amount) => Ok(Budget::Amount(amount as u64)),
        None => Err(wrong()),
    }
}

fn describe(report: &Report<'_>) -> Result<String, std::fmt::Error> {
    let Report { sensitivity, plan, file, run_dir, .. } = report;
    let mut text = sensitivity.map(describe_layers).transpose()?.unwrap_or_default();
    if let Some(plan) = plan {
        let unit = match plan.cost_of {
            Cost::BitOperations => "bit operations",
            Cost::Bytes => "bytes",
        };
        let gap = if text.is_empty() { "" } else { "\n" };
        writeln!(
            text,
            "{gap}bits within the budget of {} {unit}, of which {} are taken:",
            plan.budget, plan.cost
        )?;
        for (path, bits) in &plan.bits {
            writeln!(text, "{path:<19} W{bits}A{bits}")?;
        }
        match file {
            Some(file) => write!(
                text,
                "written to {}: train it with `lowbit train {} --set init={}`",
                file.display(),
                shell_quoted(file),
                shell_quoted(run_dir)
            )?,
            None => write!(text, "write the recipe with --out FILE.toml")?,
        }
    }
    Ok(text)
}

fn describe_layers(sensitivity: &Sensitivity) -> Result<String, std::fmt::Error> {
    let Sensitivity { recipe, checkpoint, network, phase, images, n_images, all, none, layers, .. } =
        sensitivity;
    let which = match images {
        ChosenBy::Validation => "validation images",
        ChosenBy::Training => "training images: the run holds none back for validation",
    };
    let mut text = format!("{recipe}, {network} of {checkpoint}, phase {phase}, on {n_images} {which}\n\n");
    let width = layers.iter().map(|layer| layer.layer.len()).fold(19, usize::max);
    let trials: Vec<Precision> = layers
        .iter()
        .find(|layer| !layer.trials.is_empty())
        .map(|layer| layer.trials.iter().map(|trial| trial.bits).collect())
        .unwrap_or_default();
    let is_any_quantized = layers.iter().any(|layer| layer.top1_only.is_some());
    write!(text, "{:<width$} {:>4} {:>4}", "layer", "W", "A")?;
    if is_any_quantized {
        write!(text, " {:>9} {:>11}", "only it", "all but it")?;
    }
    for bits in &trials {
        write!(text, " {:>8}", format!("at {bits}"))?;
    }
    writeln!(text)?;
    let shown = |top1: Option<f64>| top1.map_or("-".into(), percent);
    for LayerSensitivity { layer, weight_bits, act_bits, top1_only, top1_without, trials, .. } in layers {
        write!(text, "{layer:<width$} {weight_bits:>4} {act_bits:>4}")?;
        if is_any_quantized {
            write!(text, " {:>9} {:>11}", shown(*top1_only), shown(*top1_without))?;
        }
        for trial in trials {
            write!(text, " {:>8}", percent(trial.top1))?;
        }
        writeln!(text)?;
    }
    writeln!(text, "\nnothing quantized   top-1 {}  loss {:.4}", percent(none.top1), none.loss)?;
    if is_any_quantized {
        writeln!(text, "all as trained      top-1 {}  loss {:.4}", percent(all.top1), all.loss)?;
    }
    // By the loss, which tells more apart than the number of images that are right.
    let without = |layer: &LayerSensitivity| layer.loss_without;
    let worst = layers
        .iter()
        .filter_map(|layer| Some((layer, without(layer)?)))
        .min_by(|(_, a), (_, b)| a.total_cmp(b))
        .filter(|(_, loss)| *loss < all.loss);
    if let Some((layer, loss)) = worst {
        writeln!(
            text,
            "costs the most      {}: loss {:.4} without its rounding, {:.4} with it",
            layer.layer, loss, all.loss
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_bits_or_numbers() {
        let bits = |n| Precision::bits(n).unwrap();
        assert_eq!(parse_budget("w3a4"), Ok(Budget::Uniform(bits(3), bits(4))));
        assert_eq!(parse_budget("W2A8"), Ok(Budget::Uniform(bits(2), bits(8))));
        assert_eq!(parse_budget("40000"), Ok(Budget::Amount(40_000)));
        assert_eq!(parse_budget("1.5M"), Ok(Budget::Amount(1_500_000)));
        assert_eq!(parse_budget("2G"), Ok(Budget::Amount(2_000_000_000)));
        for wrong in ["", "w", "w3", "w0a3", "w3a9", "-5", "0", "nan", "1e30", "3x", "inf", "k"] {
            assert!(parse_budget(wrong).is_err(), "{wrong}");
        }
    }
}
