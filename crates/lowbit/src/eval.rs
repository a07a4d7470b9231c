//! `lowbit eval`: scores a checkpoint again.

use std::path::Path;

use lowbit_train::{Evaluation, Origin, RunDir, Scores, Subject, utc_now};
use serde::Serialize;

use crate::cli::EvalArgs;
use crate::device::DeviceName;
use crate::exit_code::{self, Code, UsageError};
use crate::inspect::{checkpoint_named, expect_no_checkpoint};
use crate::output::{self, percent_exact};
use crate::packed;

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    evaluation: &'a Evaluation,
    /// Whether the scores are those that the run reported, if it did.
    matches: Option<bool>,
    /// Why scores that differ may differ: another device, build or kind of processor than the run's. `None` if they may
    /// not.
    may_differ: Option<String>,
    device: String,
    run_dir: &'a Path,
    started: String,
    origin: Origin,
}

pub fn run(args: &EvalArgs) -> anyhow::Result<Code> {
    if args.run.is_file() {
        return packed::eval(args);
    }
    expect_no_checkpoint(&args.run, "eval")?;
    if args.dump.is_some() {
        let message = format!("--dump is for a packed model, {} is none", args.run.display());
        return Err(UsageError(message).into());
    }
    let run_device = RunDir::open(&args.run)?.info()?.device;
    let name = match args.device.device {
        Some(name) => name,
        None => DeviceName::of_run(&run_device).or_else(|_| DeviceName::fastest())?,
    };
    let (origin, started) = (crate::origin::here(), utc_now());
    let device = name.open()?;
    tracing::debug!(device = %name, run = %args.run.display(), "evaluating");
    let checkpoint = args.checkpoint.as_deref().map(|name| checkpoint_named(&args.run, name)).transpose()?;
    let subject = Subject { checkpoint: checkpoint.as_deref(), network: args.network.as_deref() };
    let evaluation = lowbit_train::evaluate(&args.run, subject, &device, &args.data_dir.locations().into())
        .map_err(|error| exit_code::with_previous(error, "eval", &args.run))?;
    for warning in &evaluation.warnings {
        tracing::warn!("{warning}");
    }
    let report = Report {
        // Scores on other images are not to be compared.
        matches: match evaluation.same_data {
            Some(false) => None,
            _ => evaluation.reported.map(|reported| reported == evaluation.scores),
        },
        may_differ: may_differ(&evaluation, name, &origin),
        evaluation: &evaluation,
        device: name.to_string(),
        run_dir: &args.run,
        started,
        origin,
    };
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report))?,
    }
    match (report.matches, &report.may_differ) {
        (Some(false), None) => Ok(Code::Verification),
        _ => Ok(Code::Success),
    }
}

/// Why scores on the device `name` may be others than those of the run, although nothing is wrong: other devices, builds and
/// processors add in another order. `None` if they must be equal.
fn may_differ(evaluation: &Evaluation, name: DeviceName, here: &Origin) -> Option<String> {
    let then = evaluation.reported_on.as_deref()?;
    let Some(by) = &evaluation.reported_by else {
        return Some("the run does not say which build and processor it was evaluated by".into());
    };
    let other_gpu = || {
        let [then, now] = [by, here].map(|origin| origin.host.as_deref().unwrap_or("unknown"));
        (!name.is_cpu() && then != now).then(|| format!("other machine: {then} then, {now} now"))
    };
    here.difference_on(&name.to_string(), by, then).or_else(other_gpu)
}

fn describe(report: &Report<'_>) -> String {
    let Evaluation {
        checkpoint, network, phase, scores, reported, validation, reported_on, same_data, ..
    } = report.evaluation;
    let verdict = match reported {
        _ if *same_data == Some(false) => "these are not the test images that the run was tested on".into(),
        None => match validation {
            Some(validation) => {
                format!("the run scored it on its validation images alone: {}", show(validation))
            }
            None => "the run did not evaluate at this step".into(),
        },
        Some(reported) if reported == scores => "exactly what the run reported".into(),
        Some(reported) => match &report.may_differ {
            None => format!(
                "DIFFERS from what the run reported with this build, on this kind of processor and this device: {}",
                show(reported)
            ),
            Some(why) => {
                let on = reported_on.as_deref().unwrap_or("?");
                format!("the run reported on {on}: {}\nit differs, as it may ({why})", show(reported))
            }
        },
    };
    format!(
        "{}\n{verdict}\n\ncheckpoint  {checkpoint} of {}\nnetwork     {network}, phase {phase}\ndevice      {}",
        show(scores),
        report.run_dir.display(),
        report.device,
    )
}

fn show(Scores { loss, top1, top5 }: &Scores) -> String {
    format!("top-1 {}  top-5 {}  loss {loss:.4}", percent_exact(*top1), percent_exact(*top5))
}
