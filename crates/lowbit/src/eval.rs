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
    let name = match args.device.device {
        Some(name) => name,
        None => DeviceName::of_run(&run_device).or_else(|_| DeviceName::fastest())?,
    };
    let device = name.open()?;
    tracing::debug!(device = %name, run = %args.run.display(), "evaluating");
    let subject = Subject { checkpoint: args.checkpoint.as_deref(), network: args.network.as_deref() };
    let evaluation = lowbit_strategies::evaluate(&args.run, subject, &device, &args.data_dir.locations())?;
    let report = Report {
        // Scores on other images are not to be compared.
        matches: match evaluation.same_data {
            Some(false) => None,
            _ => evaluation.reported.map(|reported| reported == evaluation.scores),
        },
        evaluation: &evaluation,
        device: name.to_string(),
        run_dir: &args.run,
    };
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report))?,
    }
    // Other devices add in another order, which is no mistake.
    match report.matches {
        Some(false) if report.is_on_same_device() => Ok(Code::Verification),
        _ => Ok(Code::Success),
    }
}

impl Report<'_> {
    /// Whether the run evaluated on the device that this evaluation is on.
    fn is_on_same_device(&self) -> bool {
        self.evaluation.reported_on.as_ref() == Some(&self.device)
    }
}

fn describe(report: &Report<'_>) -> String {
    let Evaluation { checkpoint, network, phase, scores, reported, reported_on, same_data, .. } =
        report.evaluation;
    let verdict = match reported {
        _ if *same_data == Some(false) => "these are not the test images that the run was tested on".into(),
        None => "the run did not evaluate at this step".into(),
        Some(reported) if reported == scores => "exactly what the run reported".into(),
        Some(reported) if report.is_on_same_device() => {
            format!("DIFFERS from what the run reported on this device: {}", show(reported))
        }
        Some(reported) => {
            format!("the run reported on {}: {}", reported_on.as_deref().unwrap_or("?"), show(reported))
        }
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
