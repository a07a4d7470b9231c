//! Exit codes: what they mean, and which error ends with which.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lowbit_data::{DataError, FolderProblem, SampleFailure};
use lowbit_train::weights::WeightsError;
use lowbit_train::{CheckpointError, RecipeError, TrainError, shell_quoted};

use crate::device::DeviceError;

/// The table of exit codes that `lowbit --help` ends with.
pub const HELP: &str = "\
Exit codes:
  0    success
  1    any other failure, such as an output that cannot be written
  2    command line, device or recipe is not valid
  3    data missing, damaged, not to be fetched, or other than that of the run
  4    run, checkpoint, weights or model missing, damaged, in use or not writable
  5    the training diverged: its loss is not a finite number
  6    verification failed: a score or checksum differs from the one on record
  130  interrupted: saved and resumable, or aborted by a second Ctrl-C";

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    Success = 0,
    Other = 1,
    Usage = 2,
    Data = 3,
    Run = 4,
    Diverged = 5,
    Verification = 6,
    Interrupted = 130,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        ExitCode::from(code as u8)
    }
}

impl From<Code> for i32 {
    fn from(code: Code) -> Self {
        code as i32
    }
}

/// A mistake in the command line that clap cannot see.
#[derive(Debug)]
pub struct UsageError(pub String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// A packed model that cannot be read or used.
#[derive(Debug, thiserror::Error)]
#[error("model {}: {problem}", path.display())]
pub struct ModelError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

/// An image that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("image {}: {problem}", path.display())]
pub struct ImageError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub problem: String,
}

/// The code that a command which failed with `error` ends with.
pub fn of(error: &anyhow::Error) -> Code {
    if let Some(error) = error.downcast_ref::<TrainError>() {
        return of_train(error);
    }
    if let Some(error) = error.downcast_ref::<DataError>() {
        return of_data(error);
    }
    if error.is::<ModelError>() {
        return Code::Run;
    }
    if error.is::<ImageError>() {
        return Code::Data;
    }
    let is_usage = error.is::<UsageError>() || error.is::<DeviceError>() || error.is::<RecipeError>();
    if is_usage { Code::Usage } else { Code::Other }
}

fn of_train(error: &TrainError) -> Code {
    match error {
        TrainError::Recipe(_)
        | TrainError::Phases(_)
        | TrainError::Strategy(_)
        | TrainError::Model(_)
        | TrainError::QuantizedTeacher { .. }
        | TrainError::UnknownNetwork { .. }
        | TrainError::OtherRecipe { .. }
        | TrainError::NothingQuantized { .. }
        | TrainError::NoValidation
        | TrainError::NoImages
        | TrainError::NoFolder
        | TrainError::NamedImages { .. }
        | TrainError::Compute { .. }
        | TrainError::GradBits { .. }
        | TrainError::TooManyRanks { .. }
        | TrainError::OneImageEach { .. }
        | TrainError::OtherProgramOfRanks { .. }
        | TrainError::NotText { .. } => Code::Usage,
        TrainError::Init { source, .. } | TrainError::Unsaved { source, .. } => of_train(source),
        TrainError::Data(error) => of_data(error),
        TrainError::OtherData { .. }
        | TrainError::OtherImagesOfRanks { .. }
        | TrainError::OtherSteps { .. }
        | TrainError::OtherImages { .. }
        | TrainError::NoNormalization { .. } => Code::Data,
        TrainError::Checkpoint(_)
        | TrainError::Weights { .. }
        | TrainError::OtherWeights { .. }
        | TrainError::RunExists { .. }
        | TrainError::NotEmpty { .. }
        | TrainError::NotARun { .. }
        | TrainError::DamagedFile { .. }
        | TrainError::DamagedRecipe { .. }
        | TrainError::EarlierMeaning { .. }
        | TrainError::OtherStrategies { .. }
        | TrainError::UnnamedStrategy { .. }
        | TrainError::RunLocked { .. }
        | TrainError::NoPhase { .. }
        | TrainError::NoCheckpointLeft { .. }
        | TrainError::FileSystem { .. }
        | TrainError::ProbeLeft { .. }
        | TrainError::NotWritable { .. }
        | TrainError::NoneUsable { .. }
        | TrainError::Io { .. } => Code::Run,
        TrainError::NonFinite { .. } => Code::Diverged,
        TrainError::RanksDiffer { .. } => Code::Verification,
        TrainError::World(_) => Code::Other,
        TrainError::Stopped => Code::Interrupted,
    }
}

fn of_data(error: &DataError) -> Code {
    match error {
        DataError::UnknownName { .. } | DataError::NoCoarseLabels { .. } | DataError::ZeroBatchSize => {
            Code::Usage
        }
        _ => Code::Data,
    }
}

/// The error of reading the run in `run`, with the `command` that reads an intact checkpoint, if there is one.
pub fn with_previous(error: TrainError, command: &str, run: &Path) -> anyhow::Error {
    match &error {
        TrainError::Checkpoint(CheckpointError::Damaged { previous: Some(name), .. }) => {
            let run = shell_quoted(run);
            let message = format!("{error}; read it with `lowbit {command} {run} --checkpoint {name}`");
            anyhow::Error::from(error).context(message)
        }
        _ => error.into(),
    }
}

/// The message for `error`, in one paragraph, with the options of this program that help.
pub fn message(error: &anyhow::Error) -> String {
    let train = error.downcast_ref::<TrainError>();
    let data = match train {
        Some(TrainError::Data(error)) => Some(error),
        _ => error.downcast_ref::<DataError>(),
    };
    match data {
        // Messages about data complete "failed to", and leave out the operating system's reason.
        Some(DataError::Io { source, .. }) => format!("failed to {error}: {source}"),
        Some(DataError::CorruptGzip { source, .. }) => format!("failed to {error} ({source})"),
        Some(data) => format!("failed to {error}{}", data_options(data)),
        // All other messages of ours are complete.
        None if of(error) != Code::Other => format!("{error}{}", train.map(options).unwrap_or_default()),
        None => format!("{error:#}"),
    }
}

/// What of the command line helps with an error of the library, which knows no options. It goes on where the message ends.
fn options(error: &TrainError) -> String {
    let give = "; give the directory of its data with --data-dir";
    match error {
        TrainError::RunExists { path } => format!(
            ": continue it with `lowbit train --resume {}`, or choose another with --out",
            shell_quoted(path)
        ),
        TrainError::NotEmpty { .. } => ": choose another with --out, or remove it".into(),
        TrainError::NotARun { exists: true, .. } => ", which `lowbit train --out` writes".into(),
        TrainError::NoFolder => " with --data-dir DIR".into(),
        TrainError::NothingQuantized { .. } => ", as in --bits 2,4,8".into(),
        TrainError::OtherData { .. } => format!("{give}, or train on these in a new run"),
        TrainError::OtherSteps { .. } => give.into(),
        TrainError::Weights { path, source: WeightsError::Misfit(_) } => {
            format!("; `lowbit import {}` lists what is in it", shell_quoted(path))
        }
        TrainError::Init { source, .. } => options(source),
        TrainError::Data(error) => data_options(error).into(),
        _ => String::new(),
    }
}

fn data_options(error: &DataError) -> &'static str {
    match error {
        DataError::DataDirMissing { .. } => " --data-dir",
        DataError::NoDataHome => "; give --data-dir",
        DataError::OtherDataset { .. } => " with --data-dir",
        DataError::Folder { problem: FolderProblem::Unusable { .. }, .. } => " with --skip-unreadable",
        DataError::Sample { failure: SampleFailure::Source(_), .. } => {
            "; repair or remove the file (`lowbit data verify DIR` names all such), or train with --skip-unreadable"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use lowbit_data::Action;

    use super::*;

    #[test]
    fn messages_have_their_reason_once() {
        let check = |error: anyhow::Error, expected: &str| assert_eq!(message(&error), expected);
        let path = PathBuf::from("/data/x.gz");
        let full = || io::Error::from_raw_os_error(28);
        let data = || DataError::Io { path: path.clone(), action: Action::Write, source: full() };
        let reason = "failed to write /data/x.gz: No space left on device (os error 28)";
        check(data().into(), reason);
        check(TrainError::Data(data()).into(), reason);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        check(
            DataError::Permission { path: path.clone(), action: Action::Read, source: denied }.into(),
            "failed to read /data/x.gz: permission denied; check its owner and mode (ls -l)",
        );
        check(
            TrainError::Io { action: "write", path, source: full() }.into(),
            "failed to write /data/x.gz: no space left on the disk",
        );
        let context = anyhow::Error::from(io::Error::other("reason")).context("failed to write the result");
        check(context, "failed to write the result: reason");
    }

    #[test]
    fn help_lists_every_code() {
        let codes = [
            Code::Success,
            Code::Other,
            Code::Usage,
            Code::Data,
            Code::Run,
            Code::Diverged,
            Code::Verification,
            Code::Interrupted,
        ];
        for code in codes {
            assert!(HELP.contains(&format!("\n  {:<5}", i32::from(code))), "{code:?}");
        }
    }
}
