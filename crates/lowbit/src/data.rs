//! `lowbit data`: which data sets there are, and getting and checking them.

use std::fmt::Write;
use std::path::PathBuf;

use lowbit_data::{
    DataError, DatasetInfo, DatasetName, FetchRequest, FileReport, FileStatus, Locations, PackSettings,
    SplitReport, VerifyReport, fetch, places_of, verify,
};
use serde::Serialize;

use crate::cli::{DataArgs, DataCommand, LayoutArgs, NameOrDir};
use crate::data_folder;
use crate::exit_code::{self, Code, UsageError};
use crate::output;
use crate::progress::Screen;

pub fn run(args: &DataArgs, screen: &Screen) -> anyhow::Result<Code> {
    let locations = Locations::default_with(args.data_dir.clone());
    let json = args.json.json;
    match &args.command {
        DataCommand::List => list(&locations, json, screen.is_quiet()),
        DataCommand::Fetch { name } => fetch_files(*name, &locations, json, screen),
        DataCommand::Verify { of: NameOrDir::Name(_), layout: LayoutArgs { imagenet: true } } => {
            Err(UsageError("--imagenet is for a folder, as in lowbit data verify DIR --imagenet".into())
                .into())
        }
        DataCommand::Verify { of: NameOrDir::Name(name), .. } => verify_files(*name, &locations, json),
        DataCommand::Verify { of: NameOrDir::Dir(dir), layout } => {
            data_folder::verify(dir, *layout, json, screen)
        }
        DataCommand::Index { dir, layout } => data_folder::index(dir, *layout, json),
        DataCommand::Show { dir, recipe, set, out, layout } => {
            data_folder::show(dir, *layout, recipe.as_deref(), &set.set, out.as_deref(), json)
        }
        DataCommand::Pack { from, to, resize, quality, per_shard, skip_unreadable, layout } => {
            let settings = PackSettings {
                resize: *resize,
                quality: *quality,
                per_shard: *per_shard as usize,
                skip_unreadable: *skip_unreadable,
            };
            data_folder::pack(&data_folder::open(from, *layout)?, to, &settings, json, screen)
        }
        DataCommand::Stats { dir, layout } => data_folder::stats(dir, *layout, json, screen),
    }
}

#[derive(Serialize)]
struct Entry {
    name: DatasetName,
    title: &'static str,
    /// Channels, height and width.
    shape: [usize; 3],
    n_classes: usize,
    n_train: usize,
    n_test: usize,
    built_in: bool,
    /// The first place searched that holds one of its files.
    found_in: Option<PathBuf>,
    /// What is doubtful about the places.
    warnings: Vec<String>,
}

fn list(locations: &Locations, json: bool, is_quiet: bool) -> anyhow::Result<Code> {
    if let Some(path) = locations.data_dir.as_ref().filter(|path| !path.exists()) {
        return Err(DataError::DataDirMissing { path: path.clone() }.into());
    }
    let entry = |name: DatasetName| {
        let DatasetInfo { title, shape, n_classes, n_train, n_test, files, .. } = *name.info();
        let shape = [shape.channels, shape.height, shape.width];
        let (found_in, warnings) = found_in(places_of(name, locations)?);
        let built_in = files.is_empty();
        Ok(Entry { name, title, shape, n_classes, n_train, n_test, built_in, found_in, warnings })
    };
    let entries: Vec<Entry> =
        DatasetName::ALL.iter().map(|&name| entry(name)).collect::<Result<_, DataError>>()?;
    match json {
        true => output::print_json(&entries)?,
        false => output::print(&table(&entries, is_quiet)?)?,
    }
    Ok(Code::Success)
}

/// The place of a data set by those of its training and test images, and what is doubtful about them.
fn found_in(places: [Option<PathBuf>; 2]) -> (Option<PathBuf>, Vec<String>) {
    let (place, warning) = match places {
        [Some(train), Some(test)] if train != test => {
            let warning = format!("its test images are in {}", test.display());
            (Some(train), Some(warning))
        }
        [Some(place), Some(_)] => (Some(place), None),
        [Some(place), None] => (Some(place), Some("it has no test images".into())),
        [None, Some(place)] => (Some(place), Some("it has no training images".into())),
        [None, None] => (None, None),
    };
    (place, warning.into_iter().collect())
}

fn table(entries: &[Entry], is_quiet: bool) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "{:<14} {:>8} {:>8} {:>7} {:>7}  found in", "name", "images", "classes", "train", "test")?;
    for entry in entries {
        let [channels, height, width] = entry.shape;
        let place = match &entry.found_in {
            _ if entry.built_in => "(built in)".into(),
            Some(place) if entry.warnings.is_empty() => place.display().to_string(),
            Some(place) => format!("{}; {}", place.display(), entry.warnings.join("; ")),
            None => "-".into(),
        };
        writeln!(
            text,
            "{:<14} {:>8} {:>8} {:>7} {:>7}  {place}",
            entry.name,
            format!("{channels}x{height}x{width}"),
            entry.n_classes,
            entry.n_train,
            entry.n_test,
        )?;
    }
    if !is_quiet && entries.iter().any(|entry| !entry.built_in && entry.found_in.is_none()) {
        write!(text, "\nfetch one with `lowbit data fetch NAME`")?;
    }
    Ok(text)
}

#[derive(Serialize)]
struct Fetched {
    name: DatasetName,
    files: Vec<PathBuf>,
}

fn fetch_files(
    name: DatasetName,
    locations: &Locations,
    json: bool,
    screen: &Screen,
) -> anyhow::Result<Code> {
    let home = match &locations.data_dir {
        Some(directory) => directory,
        None => locations.require_data_home()?,
    };
    let files = {
        let mut progress = screen.progress("{wide_msg} {bar:12} {bytes_per_sec:>11}  ETA {eta}");
        fetch(&FetchRequest::new(name, home), &mut |at| {
            progress.position(at.received, at.total);
            let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
            progress
                .update(|| format!("{}: {:.1} of {:.1} MiB", at.file_name, mib(at.received), mib(at.total)));
        })?
    };
    let text = match files.as_slice() {
        [] => format!("{name} is built in"),
        files => files.iter().map(|file| format!("{}\n", file.display())).collect(),
    };
    match json {
        true => output::print_json(&Fetched { name, files })?,
        false => output::print(&text)?,
    }
    Ok(Code::Success)
}

#[derive(Serialize)]
struct Verified {
    name: DatasetName,
    ok: bool,
    files: Vec<VerifiedFile>,
    splits: Vec<VerifiedSplit>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct VerifiedFile {
    path: PathBuf,
    status: &'static str,
    detail: Option<String>,
}

#[derive(Serialize)]
struct VerifiedSplit {
    split: String,
    n_samples: Option<usize>,
    error: Option<String>,
}

fn verify_files(name: DatasetName, locations: &Locations, json: bool) -> anyhow::Result<Code> {
    let report = verify(name, locations)?;
    let ok = report.is_ok();
    let VerifyReport { files, splits, warnings, .. } = report;
    let verified = Verified {
        name,
        ok,
        files: files.into_iter().map(verified_file).collect(),
        splits: splits.into_iter().map(verified_split).collect(),
        warnings: warnings.iter().map(ToString::to_string).collect(),
    };
    match json {
        true => output::print_json(&verified)?,
        false => output::print(&describe(&verified)?)?,
    }
    Ok(if ok { Code::Success } else { Code::Verification })
}

fn verified_file(FileReport { path, status }: FileReport) -> VerifiedFile {
    let (status, detail) = match status {
        FileStatus::Ok { kind } => ("ok", Some(format!("{kind} agrees"))),
        FileStatus::Differs { kind, expected, got } => {
            ("differs", Some(format!("{kind}: expected {expected}, got {got}")))
        }
        FileStatus::Missing => ("missing", None),
        FileStatus::Unreadable(error) => ("unreadable", Some(exit_code::message(&error.into()))),
        _ => ("unknown", None),
    };
    VerifiedFile { path, status, detail }
}

fn verified_split(SplitReport { split, n_samples }: SplitReport) -> VerifiedSplit {
    let (n_samples, error) = match n_samples {
        Ok(n) => (Some(n), None),
        Err(error) => (None, Some(exit_code::message(&error.into()))),
    };
    VerifiedSplit { split: split.to_string(), n_samples, error }
}

fn describe(Verified { name, ok, files, splits, warnings }: &Verified) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let mut said = Vec::new();
    for VerifiedFile { path, status, detail } in files {
        writeln!(text, "{status:<10} {}", path.display())?;
        if let Some(detail) = detail {
            writeln!(text, "{:<10} {detail}", "")?;
            said.push(detail);
        }
    }
    for VerifiedSplit { split, n_samples, error } in splits {
        match (n_samples, error) {
            (Some(n), _) => writeln!(text, "{split:<10} {n} images")?,
            // Said above: of the file, or of the other part, which is in the same archive.
            (None, Some(error)) if said.contains(&error) => writeln!(text, "{split:<10} cannot be read")?,
            (None, Some(error)) => {
                writeln!(text, "{split:<10} {error}")?;
                said.push(error);
            }
            (None, None) => {}
        }
    }
    for warning in warnings {
        writeln!(text, "{:<10} {warning}", "warning")?;
    }
    let verdict = if *ok { "complete and intact" } else { "NOT as published" };
    write!(text, "\n{name} is {verdict}")?;
    Ok(text)
}
