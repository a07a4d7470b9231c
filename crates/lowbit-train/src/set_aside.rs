//! Going back in a run: what came later is set aside, whole, before anything of it is cut.
//!
//! ```text
//! RUN/set-aside/after-step-00000004/
//!     recipe.toml, plan.json, run.json, processes.jsonl     of the run, so that the directory can be read as one
//!     metrics.jsonl, timing.jsonl, warnings.jsonl, result.json     as they were
//!     checkpoints/                         the later checkpoints, moved
//! ```
//!
//! The copies are complete and on the disk before the first checkpoint is moved, and those before the first line is cut. A
//! process that is killed in between leaves a run that goes on, and the next one that goes back finishes the work.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::disk::{create_directories, remove_all, sync_directory, write_synced};
use crate::error::{IoContext, TrainError};
use crate::files::{MAX_RECORD, open_regular, read_regular, regular_length};
use crate::layout::{CHECKPOINTS, METRICS, PLAN, PROCESSES, RECIPE, RESULT, RUN_INFO, TIMING, WARNINGS};

/// The directory in a run that holds what was set aside.
const SET_ASIDE: &str = "set-aside";

/// What the name of a directory ends with that is being filled.
const TEMPORARY: &str = ".tmp";

/// What the run directory says of itself; copied for readers.
const DESCRIPTION: [&str; 4] = [RECIPE, PLAN, RUN_INFO, PROCESSES];

/// What the training wrote.
const RECORD: [&str; 4] = [METRICS, TIMING, WARNINGS, RESULT];

/// What came after a step and was set aside when the run went back to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SetAside {
    /// Its directory in the run, as in "set-aside/after-step-00000004".
    pub path: PathBuf,
    /// Names of the checkpoints in it, oldest first.
    pub checkpoints: Vec<String>,
}

/// What a run keeps where it goes back to.
#[derive(Clone, Debug)]
pub(crate) struct GoingBack {
    /// Name of the checkpoint that it goes on from.
    pub(crate) name: String,
    /// Names of the later ones.
    pub(crate) later: Vec<String>,
    /// Bytes of `metrics.jsonl` that are kept.
    pub(crate) metrics_bytes: u64,
    /// Bytes of `timing.jsonl` that are kept.
    pub(crate) timing_bytes: u64,
    /// Whether the result is not that of the checkpoint.
    pub(crate) removes_result: bool,
}

/// A change of the disk.
#[derive(Clone, Debug)]
enum Action {
    Create(PathBuf),
    Copy { from: PathBuf, to: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove(PathBuf),
    Cut { path: PathBuf, bytes: u64 },
    Sync(PathBuf),
}

impl Action {
    fn perform(&self) -> Result<(), TrainError> {
        match self {
            Self::Create(path) => create_directories(path).context("create", path),
            Self::Copy { from, to } => {
                // Each error names its file.
                let bytes = read_regular(from, MAX_RECORD).context("read", from)?;
                write_synced(to, &bytes).context("write", to)
            }
            Self::Rename { from, to } => fs::rename(from, to).context("rename", from),
            Self::Remove(path) => fs::remove_file(path).context("remove", path),
            Self::Cut { path, bytes } => cut(path, *bytes).context("write", path),
            Self::Sync(path) => sync_directory(path).context("write", path),
        }
    }
}

fn cut(path: &Path, bytes: u64) -> io::Result<()> {
    let file = open_regular(path, OpenOptions::new().write(true))?;
    file.set_len(bytes)?;
    file.sync_all()
}

/// Sets aside what the run in `run` wrote after the checkpoint that it goes back to. Returns where that is; `None` if there
/// is nothing.
pub(crate) fn set_aside(run: &Path, back: &GoingBack) -> Result<Option<PathBuf>, TrainError> {
    let Some((path, actions)) = plan(run, back)? else { return Ok(None) };
    let performed = actions.iter().try_for_each(Action::perform);
    if performed.is_err() {
        // Copies that could not be completed are of no use; that they cannot be removed either changes nothing.
        let _ = remove_leftovers(run);
    }
    performed.map(|()| Some(path))
}

/// Removes copies that a process made which was killed before they were complete: what they are of is still in its place.
pub(crate) fn remove_leftovers(run: &Path) -> Result<(), TrainError> {
    let folder = run.join(SET_ASIDE);
    let mut left = names(&folder)?;
    left.retain(|name| name.starts_with(".after-") && name.ends_with(TEMPORARY));
    let mut result = Ok(());
    for path in left.iter().map(|name| folder.join(name)) {
        // One that cannot be removed keeps no other.
        result = result.and(remove_all(&path).context("remove", &path));
    }
    if !left.is_empty() {
        // Only an empty one goes.
        let _ = fs::remove_dir(&folder);
    }
    result
}

/// What was set aside in the run in `run`, oldest first.
pub(crate) fn list(run: &Path) -> Result<Vec<SetAside>, TrainError> {
    let folder = run.join(SET_ASIDE);
    let mut list = Vec::new();
    // What else is there is not ours.
    let is_ours = |name: &String| !name.starts_with('.') && folder.join(name).is_dir();
    for name in names(&folder)?.into_iter().filter(is_ours) {
        let mut checkpoints = names(&folder.join(&name).join(CHECKPOINTS))?;
        checkpoints.retain(|name| !name.starts_with('.'));
        list.push(SetAside { path: Path::new(SET_ASIDE).join(name), checkpoints });
    }
    Ok(list)
}

/// Names of all that is in a directory, in order; none if it is not there.
fn names(folder: &Path) -> Result<Vec<String>, TrainError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("read directory", folder)?,
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> =
        entries.map(name).collect::<io::Result<_>>().context("read directory", folder)?;
    names.sort();
    Ok(names)
}

/// What is to be done, in order, and where things go.
fn plan(run: &Path, back: &GoingBack) -> Result<Option<(PathBuf, Vec<Action>)>, TrainError> {
    let length = |name: &str| regular_length(&run.join(name)).context("read", run.join(name));
    let has_result = length(RESULT)?.is_some();
    let mut cuts = Vec::new();
    for (name, bytes) in [(METRICS, back.metrics_bytes), (TIMING, back.timing_bytes)] {
        if length(name)?.is_some_and(|length| length > bytes) {
            cuts.push(Action::Cut { path: run.join(name), bytes });
        }
    }
    if back.removes_result && has_result {
        // A result stands for the whole of the run: it goes before its lines do.
        cuts.splice(0..0, [Action::Remove(run.join(RESULT)), Action::Sync(run.into())]);
    }
    if cuts.is_empty() && back.later.is_empty() {
        return Ok(None);
    }
    let record: Vec<&str> = present(run, &RECORD)?;
    let folder = run.join(SET_ASIDE);
    let mut actions = Vec::new();
    let (aside, is_there) = place(run, &folder, back, &record)?;
    if !is_there {
        let temporary = temporary(&folder, back)?;
        actions.push(Action::Create(temporary.clone()));
        for name in present(run, &DESCRIPTION)?.into_iter().chain(record) {
            actions.push(Action::Copy { from: run.join(name), to: temporary.join(name) });
        }
        actions.push(Action::Sync(temporary.clone()));
        actions.push(Action::Rename { from: temporary, to: aside.clone() });
        actions.push(Action::Sync(folder));
    }
    if !back.later.is_empty() {
        let (from, to) = (run.join(CHECKPOINTS), aside.join(CHECKPOINTS));
        actions.push(Action::Create(to.clone()));
        // The newest last: a run that is taken up again before all are moved is as far as it was.
        for name in &back.later {
            actions.push(Action::Rename { from: from.join(name), to: to.join(name) });
        }
        actions.push(Action::Sync(to));
        actions.push(Action::Sync(from));
    }
    actions.append(&mut cuts);
    Ok(Some((aside, actions)))
}

/// A name for copies that are made: one that could not be removed is in nobody's way.
fn temporary(folder: &Path, back: &GoingBack) -> Result<PathBuf, TrainError> {
    let taken = names(folder)?;
    let first = format!(".after-{}{TEMPORARY}", back.name);
    let further = (2..).map(|n: u64| format!(".after-{}-{n}{TEMPORARY}", back.name));
    let name = std::iter::once(first).chain(further).find(|name| !taken.contains(name));
    Ok(folder.join(name.expect("invariant: there are more numbers than directories")))
}

fn present<'a>(run: &Path, names: &[&'a str]) -> Result<Vec<&'a str>, TrainError> {
    let mut present = Vec::new();
    for name in names {
        if run.join(name).try_exists().context("read", run.join(name))? {
            present.push(*name);
        }
    }
    Ok(present)
}

/// The directory that things go to, and whether it is there and has all of `record`: a process that was killed had begun.
fn place(
    run: &Path,
    folder: &Path,
    back: &GoingBack,
    record: &[&str],
) -> Result<(PathBuf, bool), TrainError> {
    let first = format!("after-{}", back.name);
    let further = (2..).map(|n: u64| format!("after-{}-{n}", back.name));
    for name in std::iter::once(first).chain(further) {
        let aside = folder.join(name);
        if !aside.try_exists().context("read", &aside)? {
            return Ok((aside, false));
        }
        let mut is_same = !back.later.iter().any(|name| aside.join(CHECKPOINTS).join(name).exists());
        for name in record {
            let (here, there) = (run.join(name), aside.join(name));
            // What is cut already is the beginning of what was copied.
            is_same &= there.exists()
                && read_regular(&there, MAX_RECORD)
                    .context("read", &there)?
                    .starts_with(&read_regular(&here, MAX_RECORD).context("read", &here)?);
        }
        if is_same {
            return Ok((aside, true));
        }
    }
    unreachable!("there are more numbers than directories")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tempfile::TempDir;

    use super::*;

    const KEPT: &str = "step-00000004";

    /// A complete run of three epochs of four steps.
    fn run() -> TempDir {
        let folder = TempDir::new().unwrap();
        for name in DESCRIPTION {
            fs::write(folder.path().join(name), name).unwrap();
        }
        for (name, text) in [(METRICS, "1\n2\n3\n"), (TIMING, "a\nb\nc\n"), (RESULT, "done")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        for step in ["step-00000004", "step-00000008", "step-00000012"] {
            fs::create_dir_all(folder.path().join(CHECKPOINTS).join(step)).unwrap();
            fs::write(folder.path().join(CHECKPOINTS).join(step).join("manifest.json"), step).unwrap();
        }
        folder
    }

    fn back(run: &Path) -> GoingBack {
        let mut later = names(&run.join(CHECKPOINTS)).unwrap();
        later.retain(|name| name.as_str() > KEPT);
        GoingBack { name: KEPT.into(), later, metrics_bytes: 2, timing_bytes: 2, removes_result: true }
    }

    /// Files of a directory by their path in it.
    fn files(folder: &Path) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for name in names(folder).unwrap() {
            let path = folder.join(&name);
            match path.is_dir() {
                true => files.extend(
                    self::files(&path).into_iter().map(|(inner, text)| (format!("{name}/{inner}"), text)),
                ),
                false => drop(files.insert(name, fs::read_to_string(&path).unwrap())),
            }
        }
        files
    }

    #[test]
    fn what_came_later_is_set_aside_whole() {
        let run = run();
        let before = files(run.path());
        let aside = set_aside(run.path(), &back(run.path())).unwrap().unwrap();
        assert_eq!(aside, run.path().join("set-aside/after-step-00000004"));
        let mut expected = before.clone();
        expected.remove("checkpoints/step-00000004/manifest.json");
        assert_eq!(files(&aside), expected);
        fs::remove_dir_all(run.path().join(SET_ASIDE)).unwrap();
        let kept =
            [(METRICS, "1\n"), (TIMING, "a\n")].map(|(name, text)| (name.to_string(), text.to_string()));
        let mut expected: BTreeMap<String, String> = before;
        expected.retain(|name, _| name.contains("step-00000004") || DESCRIPTION.contains(&name.as_str()));
        expected.extend(kept);
        assert_eq!(files(run.path()), expected);
        assert_eq!(set_aside(run.path(), &back(run.path())).unwrap(), None, "nothing is left to do");
    }

    /// After whatever action it is killed, nothing is lost, the record is as long as its newest checkpoint says, and the next
    /// try ends as one that was left alone.
    #[test]
    fn a_kill_at_any_moment_loses_nothing() {
        let whole = run();
        let before = files(whole.path());
        set_aside(whole.path(), &back(whole.path())).unwrap();
        let expected = files(whole.path());
        let n_actions = plan(run().path(), &back(run().path())).unwrap().unwrap().1.len();
        assert!(n_actions > 15, "{n_actions}");
        for n in 0..n_actions {
            let run = run();
            let (_, actions) = plan(run.path(), &back(run.path())).unwrap().unwrap();
            actions[..n].iter().for_each(|action| action.perform().unwrap());
            let between = files(run.path());
            for (name, text) in &before {
                let in_aside = format!("set-aside/after-step-00000004/{name}");
                let is_there = between.get(name) == Some(text) || between.get(&in_aside) == Some(text);
                assert!(is_there, "{name} is lost after {n} actions: {between:?}");
            }
            let newest = names(&run.path().join(CHECKPOINTS)).unwrap().pop().unwrap();
            if newest != KEPT {
                assert_eq!((&newest, &between[METRICS]), (&"step-00000012".into(), &before[METRICS]), "{n}");
            }
            remove_leftovers(run.path()).unwrap();
            set_aside(run.path(), &back(run.path())).unwrap();
            let after = files(run.path());
            if let Some(aside) = after.keys().find(|name| name.contains("after-step-00000004-2")) {
                panic!("a second copy after {n} actions: {aside}");
            }
            assert_eq!(after, expected, "{n}");
        }
    }

    /// What a killed process left is removed; what cannot be is in nobody's way.
    #[test]
    fn copies_that_were_not_completed_are_removed() {
        let run = run();
        let folder = run.path().join(SET_ASIDE);
        for name in [".after-step-00000004.tmp", ".after-step-00000008-2.tmp"] {
            fs::create_dir_all(folder.join(name)).unwrap();
            fs::write(folder.join(name).join(METRICS), "1\n").unwrap();
        }
        fs::write(folder.join("notes.txt"), "mine").unwrap();
        set_aside(run.path(), &back(run.path())).unwrap();
        remove_leftovers(run.path()).unwrap();
        assert_eq!(names(&folder).unwrap(), ["after-step-00000004", "notes.txt"]);
        assert_eq!(list(run.path()).unwrap().len(), 1);
        fs::remove_dir_all(&folder).unwrap();
        remove_leftovers(run.path()).unwrap();
    }

    /// The error is about the file that cannot be read, not about its copy, and comes before anything is changed.
    #[test]
    fn the_file_that_cannot_be_copied_is_named() {
        for name in [RESULT, METRICS, PLAN, RUN_INFO] {
            let run = run();
            fs::remove_file(run.path().join(name)).unwrap();
            fs::create_dir(run.path().join(name)).unwrap();
            let before = names(run.path()).unwrap();
            let later = names(&run.path().join(CHECKPOINTS)).unwrap();
            let error = set_aside(run.path(), &back(run.path())).unwrap_err().to_string();
            let expected = format!("failed to read {}: ", run.path().join(name).display());
            assert!(error.starts_with(&expected), "{error}");
            assert_eq!(names(&run.path().join(CHECKPOINTS)).unwrap(), later);
            assert_eq!(names(run.path()).unwrap(), before, "no half of a copy is left");
        }
    }

    /// What is set aside a second time, after the same step, does not take the place of the first.
    #[test]
    fn going_back_twice_keeps_both() {
        let run = run();
        set_aside(run.path(), &back(run.path())).unwrap();
        for (name, text) in [(METRICS, "1\n2\n"), (TIMING, "a\nB\n")] {
            fs::write(run.path().join(name), text).unwrap();
        }
        fs::create_dir(run.path().join(CHECKPOINTS).join("step-00000008")).unwrap();
        set_aside(run.path(), &back(run.path())).unwrap();
        let listed: Vec<_> = list(run.path()).unwrap();
        let expected = [("", vec!["step-00000008", "step-00000012"]), ("-2", vec!["step-00000008"])];
        for (got, (suffix, checkpoints)) in listed.iter().zip(&expected) {
            assert_eq!(got.path, Path::new(SET_ASIDE).join(format!("after-step-00000004{suffix}")));
            assert_eq!(&got.checkpoints, checkpoints);
        }
        assert_eq!(listed.len(), 2);
    }
}
