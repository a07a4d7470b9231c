//! `lowbit report`: a run, or several, as a page.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use anyhow::Context;
use lowbit_report::{Look, NO_IMAGE, Report};
use lowbit_train::RunDir;

use crate::cli::ReportArgs;
use crate::device::DeviceName;
use crate::exit_code::{Code, UsageError};
use crate::inspect::expect_no_checkpoint;
use crate::output::{self, counted};
use crate::progress::Screen;

/// Where a page is written unless it is said.
const PAGE: &str = "report.html";

/// The most images that the sensitivity of layers is measured on.
const N_SENSITIVITY: usize = 2000;

pub fn run(args: &ReportArgs, screen: &Screen) -> anyhow::Result<Code> {
    for run in &args.runs {
        expect_no_checkpoint(run, "report")?;
    }
    let out = match (&args.out, args.json) {
        (Some(out), _) => Some(out.as_path()),
        (None, true) => None,
        (None, false) => Some(Path::new(PAGE)),
    };
    // Before anything takes time.
    out.map_or(Ok(()), expect_replaceable)?;
    let mut report = Report::read(&args.runs)?;
    let look = match args.no_images {
        true => Look::AtWeights,
        false => Look::AtImages(args.data_dir.locations().into()),
    };
    let run_device = RunDir::open(&args.runs[0])?.info()?.device;
    let name = match args.device.device {
        Some(name) => name,
        None => DeviceName::of_run(&run_device).or_else(|_| DeviceName::fastest())?,
    };
    let device = name.open()?;
    report.add_networks(&device, &look);
    if args.sensitivity {
        let images = args.data_dir.locations().into();
        for run in &mut report.runs {
            let mut progress = screen.progress("{wide_msg} {bar:12} {pos}/{len}  ETA {eta}");
            run.add_sensitivity(&device, &images, N_SENSITIVITY, |done, total| {
                progress.position(done as u64, total as u64);
                progress.update(|| format!("scoring the network, pass: {done} of {total}"));
            });
        }
    }
    let Some(out) = out else {
        output::print_json(&report)?;
        return Ok(Code::Success);
    };
    let text = match args.json {
        true => format!("{}\n", output::json(&report)?),
        false => report.to_html(),
    };
    write(out, text.as_bytes()).with_context(|| format!("failed to write {}", out.display()))?;
    for run in &report.runs {
        // What was asked for is no surprise.
        for note in run.notes.iter().filter(|note| !args.no_images || *note != NO_IMAGE) {
            tracing::warn!("{}: {note}", run.summary.name);
        }
    }
    let runs = counted(report.runs.len() as u64, "run");
    output::print(&format!("{}: {runs}, {} KiB", out.display(), text.len().div_ceil(1024)))?;
    Ok(Code::Success)
}

/// Refuses to write over what is no report.
fn expect_replaceable(path: &Path) -> anyhow::Result<()> {
    let mut start = [0; 64];
    let read = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(metadata) if metadata.is_file() => File::open(path).and_then(|mut file| file.read(&mut start)),
        Ok(_) => Ok(0),
        Err(error) => Err(error),
    };
    let n = read.with_context(|| format!("failed to read {}", path.display()))?;
    match Report::is_one(&start[..n]) {
        true => Ok(()),
        false => {
            let message =
                format!("{} is there and is no report: choose another file with --out", path.display());
            Err(UsageError(message).into())
        }
    }
}

/// Writes a file whole, or not at all.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut temporary = path.file_name().unwrap_or_default().to_owned();
    temporary.push(".tmp");
    let temporary = path.with_file_name(temporary);
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| {
        // The error says more than that this failed too.
        let _ = fs::remove_file(&temporary);
    })
}
