//! All runs below a directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use lowbit_train::{RunDir, TrainError};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use serde::Serialize;

use crate::summary::Summary;

/// How deep below a directory runs are looked for.
const MAX_DEPTH: usize = 16;

/// The runs below a directory.
#[derive(Clone, Debug, Serialize)]
pub struct RunList {
    /// The directory.
    pub dir: PathBuf,
    /// Its runs in the order of their names. One that cannot be read is there with what is wrong with it.
    pub runs: Vec<Summary>,
    /// Directories that could not be looked into, with the reason.
    pub unread: Vec<String>,
}

impl RunList {
    /// The runs in `dir`: itself, if it is one, or all below it. Links are not followed, and no run is looked for in a run.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the directory cannot be read.
    pub fn read(dir: &Path) -> Result<Self, TrainError> {
        if is_run(dir) {
            return Ok(Self {
                dir: dir.into(),
                runs: vec![Summary::read_or_damaged(dir)],
                unread: Vec::new(),
            });
        }
        let entries = fs::read_dir(dir).map_err(|source| TrainError::Io {
            action: "read",
            path: dir.into(),
            source,
        })?;
        let mut found = Found::default();
        found.add(dir, entries, 1);
        let summary = |path: &PathBuf| {
            let below = path.strip_prefix(dir).unwrap_or(path);
            Summary { name: below.display().to_string(), ..Summary::read_or_damaged(path) }
        };
        let mut runs: Vec<Summary> = found.runs.par_iter().map(summary).collect();
        runs.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self { dir: dir.into(), runs, unread: found.unread })
    }
}

/// What was found below a directory.
#[derive(Default)]
struct Found {
    runs: Vec<PathBuf>,
    unread: Vec<String>,
}

impl Found {
    fn add(&mut self, dir: &Path, entries: fs::ReadDir, depth: usize) {
        for entry in entries {
            let path = match entry.and_then(|entry| Ok((entry.path(), entry.file_type()?))) {
                Ok((path, kind)) if kind.is_dir() => path,
                Ok(_) => continue,
                Err(error) => {
                    self.unread(dir, &error);
                    continue;
                }
            };
            if is_run(&path) {
                self.runs.push(path);
                continue;
            }
            match fs::read_dir(&path) {
                Ok(entries) if depth < MAX_DEPTH => self.add(&path, entries, depth + 1),
                Ok(_) => {}
                Err(error) => self.unread(&path, &error),
            }
        }
    }

    fn unread(&mut self, path: &Path, error: &io::Error) {
        self.unread.push(format!("{}: {error}", path.display()));
    }
}

/// Whether there is a run, also one that cannot be read.
fn is_run(path: &Path) -> bool {
    !matches!(RunDir::open(path), Err(TrainError::NotARun { .. }))
}
