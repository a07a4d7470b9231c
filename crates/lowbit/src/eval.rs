//! `lowbit eval`: scores a checkpoint again.

use std::path::Path;

use lowbit_strategies::{Evaluation, RunDir, Scores, Subject};
use serde::Serialize;

use crate::cli::EvalArgs;
use crate::device::DeviceName;
use crate::exit_code::Code;
use crate::output::{self, percent_exact};

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    evaluation: &'a Evaluation,
    /// Whether the scores are those that the run reported, if it did.
    matches: Option<bool>,
    device: String,
    run_dir: &'a Path,
}

pub fn run(args: &EvalArgs) -> anyhow::Result<Code> {
    let run_device = RunDir::open(&args.run)?.info()?.device;
    let name = args.device.device.map_or_else(|| DeviceName::of_run(&run_device), Ok)?;
    let device = name.open()?;
    tracing::debug!(device = %name, run = %args.run.display(), "evaluating");
    let subject = Subject { checkpoint: args.checkpoint.as_deref(), network: args.network.as_deref() };
    let evaluation = lowbit_strategies::evaluate(&args.run, subject, &device, &args.data_dir.locations())?;
    let report = Report {
        matches: evaluation.reported.map(|reported| reported == evaluation.scores),
        evaluation: &evaluation,
        device: name.to_string(),
        run_dir: &args.run,
    };
    let is_device_of_run = report.device == run_device;
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report, &run_device))?,
    }
    // Other devices add in another order, which is no mistake.
    match report.matches {
        Some(false) if is_device_of_run => Ok(Code::Verification),
        _ => Ok(Code::Success),
    }
}

fn describe(report: &Report<'_>, run_device: &str) -> String {
    let Evaluation { checkpoint, network, phase, scores, reported, .. } = report.evaluation;
    let verdict = match reported {
        None => "the run did not evaluate at this step".into(),
        Some(reported) if reported == scores => "exactly what the run reported".into(),
        Some(reported) if report.device == run_device => {
            format!("DIFFERS from what the run reported on this device: {}", show(reported))
        }
        Some(reported) => format!("the run reported on {run_device}: {}", show(reported)),
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
