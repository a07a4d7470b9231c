//! What is wrong with a training without ending it: shown once in a process, and recorded once in the run directory.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk::append_line;
use crate::files::{MAX_TEXT, read_regular};
use crate::layout::WARNINGS;
use crate::observer::Observer;
use crate::text::explain;

/// A line of `warnings.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Steps done when it was noticed.
    pub step: u64,
    /// What it is about.
    pub kind: WarningKind,
    /// What is wrong, and what to do; a message is recorded once in a run.
    pub message: String,
}

/// What a [`Warning`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WarningKind {
    /// Settings that are allowed, but known to be a bad idea.
    Recipe,
    /// The images.
    Data,
    /// What the training does, as in a parameter that does not move.
    Training,
    /// The run directory and the file system below it.
    Storage,
    /// The program, the device or the machine that goes on with a run.
    Provenance,
    /// Something that a later lowbit knows.
    #[serde(other)]
    Other,
}

/// The warnings of a training.
#[derive(Default)]
pub(crate) struct Warnings {
    /// The file, once there is a run directory.
    path: Option<PathBuf>,
    /// Those of the file.
    recorded: Vec<Warning>,
    /// Those that wait for the run directory.
    waiting: Vec<Warning>,
    /// Messages that this process has shown.
    shown: BTreeSet<String>,
}

impl Warnings {
    /// Shows and records a warning, unless its message was shown or recorded before. A warning that cannot be recorded
    /// ends no training.
    pub(crate) fn add(&mut self, warning: Warning, observer: &mut dyn Observer) {
        let Some(path) = &self.path else {
            self.waiting.push(warning);
            return;
        };
        if !self.shown.insert(warning.message.clone()) {
            return;
        }
        observer.warning(&warning.message);
        if self.recorded.iter().any(|recorded| recorded.message == warning.message) {
            return;
        }
        let line = serde_json::to_string(&warning).expect("invariant: a warning is plain data");
        if let Err(error) = append_line(path, &line) {
            let message = format!("failed to write {}: {}", path.display(), explain(&error));
            if self.shown.insert(message.clone()) {
                observer.warning(&message);
            }
        }
        self.recorded.push(warning);
    }

    /// Goes on with the file of the run directory `run`, and records what has waited for it.
    pub(crate) fn attach(&mut self, run: &Path, observer: &mut dyn Observer) {
        let path = run.join(WARNINGS);
        match read(&path) {
            Ok(recorded) => self.recorded = recorded,
            Err(error) => {
                observer.warning(&format!("failed to read {}: {}", path.display(), explain(&error)))
            }
        }
        self.path = Some(path);
        for warning in std::mem::take(&mut self.waiting) {
            self.add(warning, observer);
        }
    }

    /// All messages of the run, in the order in which they came.
    pub(crate) fn messages(&self) -> Vec<String> {
        self.recorded.iter().map(|warning| warning.message.clone()).collect()
    }
}

/// The warnings in the file at `path`, which may be absent. A line that a kill has cut short, or that is none, is passed over:
/// what it warned of is noticed again.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Warning>> {
    match read_regular(path, MAX_TEXT) {
        Ok(bytes) => Ok(bytes
            .split(|&byte| byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[derive(Default)]
    struct Seen(Vec<String>);

    impl Observer for Seen {
        fn warning(&mut self, message: &str) {
            self.0.push(message.into());
        }
    }

    fn warning(step: u64, message: &str) -> Warning {
        Warning { step, kind: WarningKind::Data, message: message.into() }
    }

    #[test]
    fn a_message_is_shown_once_a_process_and_recorded_once_a_run() {
        let run = tempfile::tempdir().unwrap();
        let mut seen = Seen::default();
        let mut first = Warnings::default();
        first.add(warning(0, "a"), &mut seen);
        assert!(seen.0.is_empty(), "there is no run yet to record it in");
        first.attach(run.path(), &mut seen);
        first.add(warning(3, "b"), &mut seen);
        first.add(warning(4, "a"), &mut seen);
        assert_eq!(seen.0, ["a", "b"]);

        // A process that is killed while it appends.
        let path = run.path().join(WARNINGS);
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{whole}{{\"step\":9,\"ki")).unwrap();
        let mut seen = Seen::default();
        let mut second = Warnings::default();
        second.attach(run.path(), &mut seen);
        second.add(warning(4, "a"), &mut seen);
        second.add(warning(5, "c"), &mut seen);
        assert_eq!(seen.0, ["a", "c"]);
        assert_eq!(second.messages(), ["a", "b", "c"]);
        assert_eq!(read(&path).unwrap(), [warning(0, "a"), warning(3, "b"), warning(5, "c")]);
    }

    #[test]
    fn a_warning_that_cannot_be_recorded_is_still_shown() {
        let run = tempfile::tempdir().unwrap();
        let (mut seen, mut warnings) = (Seen::default(), Warnings::default());
        warnings.attach(&run.path().join("gone"), &mut seen);
        warnings.add(warning(0, "a"), &mut seen);
        warnings.add(warning(1, "b"), &mut seen);
        assert_eq!((seen.0.len(), seen.0[0].as_str(), seen.0[2].as_str()), (3, "a", "b"));
        assert!(seen.0[1].starts_with("failed to write"), "{:?}", seen.0);
    }
}
