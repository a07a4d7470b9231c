//! Checkpoints: a directory that appears whole or not at all, with checksums of all it holds.
//!
//! ```text
//! checkpoints/step-00000120/
//!     manifest.json        progress of the training, digest of its recipe
//!     model.safetensors    parameters, quantizer state, BatchNorm statistics, by path
//!     average.safetensors  the same for the moving average, if the recipe has one
//!     optimizer.burnpack   state of the optimizer
//!     notes.safetensors    what strategies keep of the network from step to step, if any does
//!     teacher.model.safetensors, ...   the same of each further network, by its name
//!     SHA256SUMS           of all of them, in the format of sha256sum
//! ```
//!
//! It is written under a temporary name, SHA256SUMS last, every file synced, and then renamed. Names with a dot before are
//! what a process that was killed left: `.step-N.tmp` was being written, `.step-N.old` removed, and `.step-N.replaced` is the
//! one that a newer of the same step takes the place of.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use burn::tensor::TensorData;
use lowbit_data::Split;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{remove_all, sync_directory, write_synced};
use crate::files::{MAX_TEXT, read_regular};
use crate::layout::{CHECKPOINTS, METRICS};
use crate::optimizer_file::OptimizerFile;
use crate::progress::Progress;
use crate::state::{NamedTensors, StateError};
use crate::strategy::{Phase, STUDENT};
use crate::text::{explain, one_line};

/// Version of the manifest, which since 3 has digests of the state and of the record.
const SCHEMA: u32 = 3;
const OLDEST_SCHEMA: u32 = 2;
const MANIFEST: &str = "manifest.json";
const MODEL: &str = "model.safetensors";
const AVERAGE: &str = "average.safetensors";
pub(crate) const OPTIMIZER: &str = "optimizer.burnpack";
const NOTES: &str = "notes.safetensors";
const SUMS: &str = "SHA256SUMS";

/// Prefix of the adapters' tensors in a checkpoint.
pub(crate) const ADAPTERS: &str = "adapters";

const TEMPORARY: &str = ".tmp";
const OLD: &str = ".old";
const REPLACED: &str = ".replaced";

/// How often a run that trains is read again before what was read is believed to be damaged.
const N_READS: usize = 100;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    schema: u32,
    recipe_sha256: String,
    /// As [`Checkpoint::digest`] makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state_sha256: Option<String>,
    progress: Progress,
}

impl Manifest {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let Version { schema } = serde_json::from_slice(bytes).map_err(|error| one_line(&error))?;
        if !(OLDEST_SCHEMA..=SCHEMA).contains(&schema) {
            return Err(format!("has schema {schema}, this lowbit reads {OLDEST_SCHEMA} to {SCHEMA}"));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| one_line(&error))?;
        if schema == SCHEMA {
            let no_digest = |of: &str| format!("has no digest of {of}, which schema {SCHEMA} has");
            manifest.state_sha256.as_ref().ok_or_else(|| no_digest("the state"))?;
            manifest.progress.records.get(METRICS).ok_or_else(|| no_digest(METRICS))?;
        }
        Ok(manifest)
    }
}

/// The contents of a checkpoint.
pub(crate) struct Checkpoint {
    /// SHA-256 of the resolved recipe that it was made by.
    pub(crate) recipe_sha256: String,
    /// Digest of the state as its manifest has it; `None` if an earlier lowbit wrote it, or it is yet to be written.
    pub(crate) state_sha256: Option<String>,
    pub(crate) progress: Progress,
    /// The network that the training is for.
    pub(crate) deployed: NetworkState,
    /// Networks that train alongside.
    pub(crate) others: Vec<NetworkState>,
}

/// All state of one network.
pub(crate) struct NetworkState {
    pub(crate) name: String,
    pub(crate) model: NamedTensors,
    pub(crate) average: Option<NamedTensors>,
    pub(crate) optimizer: Vec<u8>,
    /// What strategies keep of it from step to step.
    pub(crate) notes: NamedTensors,
}

impl NetworkState {
    fn files(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        let mut files = vec![(format!("{prefix}{MODEL}"), to_safetensors(&self.model))];
        let average = self.average.as_ref();
        files.extend(average.map(|average| (format!("{prefix}{AVERAGE}"), to_safetensors(average))));
        files.push((format!("{prefix}{OPTIMIZER}"), self.optimizer.clone()));
        if !self.notes.is_empty() {
            files.push((format!("{prefix}{NOTES}"), to_safetensors(&self.notes)));
        }
        files
    }
}

/// A checkpoint that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read or written.
    #[error("failed to {action} checkpoint file {}: {}", .path.display(), explain(source))]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The checkpoint is not what was written.
    #[error("{}{}", is_damaged(path, problem), offer(previous))]
    Damaged {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// Name of the newest intact checkpoint.
        previous: Option<String>,
    },
    /// The checkpoint belongs to another network.
    #[error("checkpoint {} is of another model: {source}", .path.display())]
    OtherModel {
        /// The checkpoint.
        path: PathBuf,
        /// The difference.
        source: StateError,
    },
    /// The state of an optimizer is not one that the optimizer of its network can have.
    #[error("checkpoint {}: {file} is not of this network and recipe: {problem}", .path.display())]
    OtherOptimizer {
        /// The checkpoint.
        path: PathBuf,
        /// The file of the optimizer's state.
        file: String,
        /// The difference.
        problem: String,
    },
    /// The checkpoint was made by another recipe.
    #[error(
        "checkpoint {} is of another recipe than that of its run: expected one of sha256 {expected}, got sha256 {got}",
        .path.display()
    )]
    OtherRecipe {
        /// The checkpoint.
        path: PathBuf,
        /// SHA-256 of the run's recipe.
        expected: String,
        /// SHA-256 of the recipe that the checkpoint was made by.
        got: String,
    },
    /// The checkpoint lacks a network that the recipe trains.
    #[error("checkpoint {} is of another recipe: it has no network {network:?}", .path.display())]
    NoNetwork {
        /// The checkpoint.
        path: PathBuf,
        /// The network.
        network: String,
    },
    /// The checkpoint was removed while it was read: its run trains, and has newer ones.
    #[error("checkpoint {} was removed while it was read: its run has newer ones now", .path.display())]
    Removed {
        /// The checkpoint.
        path: PathBuf,
    },
    /// There is no checkpoint.
    #[error("{} has no checkpoint yet", .path.display())]
    None {
        /// The run directory.
        path: PathBuf,
    },
    /// There is no checkpoint of this name.
    #[error("{} has no checkpoint {name:?}; it has {}", .path.display(), .names.join(", "))]
    Unknown {
        /// The run directory.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// The names there are.
        names: Vec<String>,
    },
}

impl CheckpointError {
    /// Whether it is about what a checkpoint holds: another of the same run may be gone on from. What cannot be read, or is not
    /// there, says nothing of it.
    pub fn is_of_content(&self) -> bool {
        match self {
            Self::Damaged { .. }
            | Self::OtherModel { .. }
            | Self::OtherOptimizer { .. }
            | Self::OtherRecipe { .. }
            | Self::NoNetwork { .. } => true,
            Self::Io { .. } | Self::Removed { .. } | Self::None { .. } | Self::Unknown { .. } => false,
        }
    }

    /// What is wrong, without what else there is to go on from.
    pub(crate) fn without_offer(&self) -> String {
        match self {
            Self::Damaged { path, problem, .. } => is_damaged(path, problem),
            other => other.to_string(),
        }
    }
}

fn is_damaged(path: &Path, problem: &str) -> String {
    format!("checkpoint {} is damaged: {problem}", path.display())
}

fn offer(previous: &Option<String>) -> String {
    match previous {
        Some(name) => format!("; the newest intact one is {name}"),
        None => "; no other is intact".into(),
    }
}

/// A checkpoint that was evaluated.
pub(crate) struct Scored {
    pub(crate) name: String,
    /// Its accuracy.
    pub(crate) top1: f64,
    /// The images that it is on.
    pub(crate) images: Split,
}

/// The `checkpoints` directory of a run.
pub(crate) struct Checkpoints {
    run: PathBuf,
    folder: PathBuf,
    max_bytes: MaxBytes,
}

/// Bytes that a file of tensors can have at most in the run in a directory, or why that is not known.
type MaxBytes = fn(&Path) -> Result<u64, String>;

impl Checkpoints {
    pub(crate) fn of_run(run: &Path, max_bytes: MaxBytes) -> Self {
        Self { run: run.into(), folder: run.join(CHECKPOINTS), max_bytes }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Names of the complete checkpoints, oldest first.
    pub(crate) fn names(&self) -> Result<Vec<String>, CheckpointError> {
        let mut names = self.entries(&self.folder)?;
        names.retain(|name| step_of(name).is_some());
        names.sort_unstable_by_key(|name| step_of(name));
        Ok(names)
    }

    /// Names of all that is in the directory `folder`, if it is there.
    fn entries(&self, folder: &Path) -> Result<Vec<String>, CheckpointError> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(self.io("read", folder, source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| self.io("read", folder, source))?;
            names.extend(entry.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// The newest checkpoint's name, or `wanted` if it exists; `None` if nothing is wanted and there is none.
    pub(crate) fn choose(&self, wanted: Option<&str>) -> Result<Option<String>, CheckpointError> {
        let mut names = self.names()?;
        match wanted {
            None => Ok(names.pop()),
            Some(name) if names.iter().any(|known| known == name) => Ok(Some(name.into())),
            Some(name) => {
                let (path, name) = (self.run.clone(), name.into());
                match names.is_empty() {
                    true => Err(CheckpointError::None { path }),
                    false => Err(CheckpointError::Unknown { path, name, names }),
                }
            }
        }
    }

    /// Writes a checkpoint and returns its path. One of the same step, which was saved while something was pending there,
    /// is replaced.
    pub(crate) fn save(&self, checkpoint: &Checkpoint) -> Result<PathBuf, CheckpointError> {
        let name = name_of(checkpoint.progress.step);
        let (temporary, replaced) = (self.hidden(&name, TEMPORARY), self.hidden(&name, REPLACED));
        let path = self.path(&name);
        let save = || {
            self.write(&temporary, checkpoint)?;
            if path.is_dir() {
                self.remove(&replaced)?;
                fs::rename(&path, &replaced).map_err(|source| self.io("rename", &path, source))?;
            }
            fs::rename(&temporary, &path).map_err(|source| self.io("write", &path, source))?;
            sync_directory(&self.folder).map_err(|source| self.io("write", &self.folder, source))
        };
        let result = save();
        if result.is_err() {
            // What could not be completed is of no use; that it cannot be removed either changes nothing.
            let _ = remove_all(&temporary);
        }
        result.map(|()| path)
    }

    /// The name, as it is while something is done to it, of the checkpoint `name`.
    fn hidden(&self, name: &str, suffix: &str) -> PathBuf {
        self.folder.join(format!(".{name}{suffix}"))
    }

    fn write(&self, folder: &Path, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        self.remove(folder)?;
        // Not its parents: a run directory that was moved away is not to be begun a second time.
        fs::create_dir(folder).map_err(|source| self.io("create", folder, source))?;
        let manifest = Manifest {
            schema: SCHEMA,
            recipe_sha256: checkpoint.recipe_sha256.clone(),
            state_sha256: Some(checkpoint.digest(folder)?),
            progress: checkpoint.progress.clone(),
        };
        let manifest = serde_json::to_vec_pretty(&manifest).expect("invariant: a manifest is plain data");
        let mut files = vec![(MANIFEST.into(), manifest)];
        for (prefix, network) in checkpoint.networks() {
            files.extend(network.files(&prefix));
        }
        let sums: String = files.iter().map(|(name, bytes)| format!("{}  {name}\n", sha256(bytes))).collect();
        files.push((SUMS.into(), sums.into_bytes()));
        for (name, bytes) in &files {
            let path = folder.join(name);
            write_synced(&path, bytes).map_err(|source| self.io("write", &path, source))?;
        }
        sync_directory(folder).map_err(|source| self.io("write", folder, source))
    }

    /// Reads the newest checkpoint, or the one `wanted`, verified; `None` if there is none. The run may be in training: a
    /// checkpoint that is removed while it is read is not damaged, and the one that is then the newest is read.
    pub(crate) fn load(&self, wanted: Option<&str>) -> Result<Option<(String, Checkpoint)>, CheckpointError> {
        self.load_by(wanted, |name| self.read(name))
    }

    fn load_by(
        &self,
        wanted: Option<&str>,
        mut read: impl FnMut(&str) -> Result<Checkpoint, CheckpointError>,
    ) -> Result<Option<(String, Checkpoint)>, CheckpointError> {
        let mut chosen = None;
        for _ in 0..N_READS {
            let before = std::mem::replace(&mut chosen, self.choose(wanted)?);
            // Names that come and go while a directory is listed may not be in the list.
            let Some(name) = chosen.clone() else { continue };
            match read(&name) {
                Ok(checkpoint) => return Ok(Some((name, checkpoint))),
                // A link to nothing is something.
                Err(CheckpointError::Damaged { path, .. }) if fs::symlink_metadata(&path).is_err() => {
                    if wanted.is_some() {
                        return Err(CheckpointError::Removed { path });
                    }
                }
                // Read twice: the first time, another may have taken its place.
                Err(error @ CheckpointError::Damaged { .. }) if before.as_ref() == Some(&name) => {
                    return Err(self.with_previous(error, &name));
                }
                Err(CheckpointError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        match chosen {
            Some(name) => Err(CheckpointError::Removed { path: self.path(&name) }),
            None => Ok(None),
        }
    }

    /// The error of the checkpoint `name` that is damaged, with the newest one that is not.
    pub(crate) fn with_previous(&self, error: CheckpointError, name: &str) -> CheckpointError {
        match error {
            CheckpointError::Damaged { path, problem, .. } => {
                let others = self.names().unwrap_or_default().into_iter().rev();
                let mut others = others.filter(|other| other != name);
                let previous = others.find(|other| self.read_whole(other).is_ok());
                CheckpointError::Damaged { path, problem, previous }
            }
            other => other,
        }
    }

    /// Path of the newest checkpoint that can be read.
    pub(crate) fn last_intact(&self) -> Option<PathBuf> {
        let names = self.names().unwrap_or_default().into_iter().rev();
        names
            .map(|name| (self.path(&name), self.read_whole(&name)))
            .find(|(_, read)| read.is_ok())
            .map(|found| found.0)
    }

    fn read(&self, name: &str) -> Result<Checkpoint, CheckpointError> {
        let folder = self.path(name);
        let damaged = |problem: String| Self::damaged(&folder, problem);
        let sums = self.sums(&folder)?;
        let manifest = self.manifest(&folder, &sums)?;
        let max_bytes = (self.max_bytes)(&self.run).map_err(damaged)?;
        let read = |file: &str| self.read_verified(&folder, file, max_bytes, &sums);
        let tensors = |file: &str| -> Result<NamedTensors, CheckpointError> {
            from_safetensors(&read(file)?).map_err(|error| damaged(format!("{file}: {error}")))
        };
        let network = |prefix: &str, name: &str| -> Result<NetworkState, CheckpointError> {
            let average = format!("{prefix}{AVERAGE}");
            let notes = format!("{prefix}{NOTES}");
            Ok(NetworkState {
                name: name.into(),
                model: tensors(&format!("{prefix}{MODEL}"))?,
                average: match sums.get(&average).is_some() {
                    true => Some(tensors(&average)?),
                    false => None,
                },
                optimizer: read(&format!("{prefix}{OPTIMIZER}"))?,
                notes: match sums.get(&notes).is_some() {
                    true => tensors(&notes)?,
                    false => NamedTensors::new(),
                },
            })
        };
        let other_suffix = format!(".{MODEL}");
        let others = sums.names().filter_map(|file| file.strip_suffix(other_suffix.as_str()));
        Ok(Checkpoint {
            recipe_sha256: manifest.recipe_sha256,
            state_sha256: manifest.state_sha256,
            progress: manifest.progress,
            deployed: network("", STUDENT)?,
            others: others.map(|name| network(&format!("{name}."), name)).collect::<Result<_, _>>()?,
        })
    }

    /// The same, with the state that it was made with.
    pub(crate) fn read_whole(&self, name: &str) -> Result<Checkpoint, CheckpointError> {
        let checkpoint = self.read(name)?;
        checkpoint.expect_state(&self.path(name))?;
        Ok(checkpoint)
    }

    /// The checksums of the checkpoint in `folder`, by file: those of all its files but hidden ones, which are of
    /// programs that look at directories.
    fn sums(&self, folder: &Path) -> Result<Sums, CheckpointError> {
        let damaged = |problem: String| Self::damaged(folder, problem);
        let text = String::from_utf8(self.read_file(folder, SUMS, MAX_TEXT)?);
        let text = text.map_err(|_| damaged(format!("{SUMS} is not text")))?;
        let sums = Sums::parse(&text).map_err(damaged)?;
        let mut names = self.entries(folder)?;
        names.retain(|name| name != SUMS && !name.starts_with('.'));
        if let Some(name) = sums.names().find(|name| !names.iter().any(|known| known == name)) {
            return Err(damaged(format!("{SUMS} names {name:?}, which is not there")));
        }
        match names.iter().find(|name| sums.get(name).is_none()) {
            Some(name) => Err(damaged(format!("{} is not in {SUMS}", one_line(name)))),
            None => Ok(sums),
        }
    }

    fn manifest(&self, folder: &Path, sums: &Sums) -> Result<Manifest, CheckpointError> {
        let damaged = |problem: String| Self::damaged(folder, format!("{MANIFEST}: {problem}"));
        let manifest =
            Manifest::read(&self.read_verified(folder, MANIFEST, MAX_TEXT, sums)?).map_err(damaged)?;
        let expected = name_of(manifest.progress.step);
        match folder.file_name() == Some(expected.as_ref()) {
            true => Ok(manifest),
            false => {
                Err(Self::damaged(folder, format!("name and manifest differ: {MANIFEST} is of {expected}")))
            }
        }
    }

    fn read_verified(
        &self,
        folder: &Path,
        file: &str,
        max_bytes: u64,
        sums: &Sums,
    ) -> Result<Vec<u8>, CheckpointError> {
        let bytes = self.read_file(folder, file, max_bytes)?;
        match sums.get(file) == Some(sha256(&bytes).as_str()) {
            true => Ok(bytes),
            false => Err(Self::damaged(folder, format!("{file} does not match its checksum in {SUMS}"))),
        }
    }

    fn read_file(&self, folder: &Path, file: &str, max_bytes: u64) -> Result<Vec<u8>, CheckpointError> {
        use io::ErrorKind::{FileTooLarge, InvalidInput, IsADirectory, NotADirectory, NotFound};
        let path = folder.join(file);
        read_regular(&path, max_bytes).map_err(|error| match error.kind() {
            NotFound | NotADirectory | IsADirectory | InvalidInput | FileTooLarge => {
                Self::damaged(folder, format!("{}: {}", one_line(&file), explain(&error)))
            }
            _ => self.io("read", &path, error),
        })
    }

    pub(crate) fn damaged(folder: &Path, problem: String) -> CheckpointError {
        CheckpointError::Damaged { path: folder.into(), problem, previous: None }
    }

    /// Removes all but the newest `keep_last` checkpoints and the best one (the earliest of several).
    pub(crate) fn prune(&self, keep_last: usize, last_phase: usize) -> Result<(), CheckpointError> {
        let mut names = self.names()?;
        // What else has the name of one is not ours.
        names.retain(|name| self.path(name).is_dir());
        let best = self.best(last_phase)?;
        let n_old = names.len().saturating_sub(keep_last);
        let mut result = Ok(());
        for name in names[..n_old].iter().filter(|name| Some(*name) != best.as_ref()) {
            let path = self.path(name);
            // Renamed first, so that a checkpoint never looks complete while it is being removed.
            let renamed = fs::rename(&path, self.hidden(name, OLD));
            result = result.and(renamed.map_err(|source| self.io("remove", &path, source)));
        }
        result.and(self.remove_leftovers())
    }

    /// Puts back what a killed process was about to replace.
    pub(crate) fn recover(&self) -> Result<(), CheckpointError> {
        for name in self.entries(&self.folder)?.iter().filter_map(|entry| hidden_name(entry, REPLACED)) {
            let path = self.path(name);
            if !path.exists() {
                fs::rename(self.hidden(name, REPLACED), &path)
                    .map_err(|source| self.io("rename", &path, source))?;
            }
        }
        Ok(())
    }

    /// Removes what was being written, removed or replaced; one that cannot be removed keeps no other.
    pub(crate) fn remove_leftovers(&self) -> Result<(), CheckpointError> {
        let suffixes = [TEMPORARY, OLD, REPLACED];
        let is_leftover =
            |entry: &&String| suffixes.iter().any(|suffix| hidden_name(entry, suffix).is_some());
        let mut result = Ok(());
        for entry in self.entries(&self.folder)?.iter().filter(is_leftover) {
            result = result.and(self.remove(&self.path(entry)));
        }
        result
    }

    /// Removes what is there, if anything.
    fn remove(&self, path: &Path) -> Result<(), CheckpointError> {
        remove_all(path).map_err(|source| self.io("remove", path, source))
    }

    /// Name of the checkpoint with the highest accuracy, the earliest of several, among those of `last_phase`: only they have
    /// the precision asked for. The accuracy is that on the validation images, or, if there are none, on the test images.
    pub(crate) fn best(&self, last_phase: usize) -> Result<Option<String>, CheckpointError> {
        let mut best: Option<Scored> = None;
        for name in self.names()? {
            match self.score(&name, last_phase) {
                Ok(Some((images, top1))) if best.as_ref().is_none_or(|best| top1 > best.top1) => {
                    best = Some(Scored { name, top1, images });
                }
                // One that is damaged is not the best; an error that concerns the disk is not to be passed over.
                Ok(_) | Err(CheckpointError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(best.map(|best| best.name))
    }

    /// The best checkpoint of `last_phase` that can be read, and what is to be said of those that cannot.
    pub(crate) fn best_intact(&self, last_phase: usize) -> (Option<Scored>, Vec<String>) {
        let mut warnings = Vec::new();
        let mut warn = |error: CheckpointError| {
            let problem = error.without_offer();
            warnings.push(format!("{problem}; the best checkpoint is looked for among the others"));
        };
        let mut best: Option<Scored> = None;
        for name in self.names().map_err(&mut warn).unwrap_or_default() {
            let Some((images, top1)) = self.score(&name, last_phase).map_err(&mut warn).unwrap_or_default()
            else {
                continue;
            };
            if best.as_ref().is_none_or(|best| top1 > best.top1)
                && self.read_whole(&name).map_err(&mut warn).is_ok()
            {
                best = Some(Scored { name, top1, images });
            }
        }
        (best, warnings)
    }

    /// Accuracy of the checkpoint `name` and the images that it is on, if it was evaluated and is of `last_phase`.
    fn score(&self, name: &str, last_phase: usize) -> Result<Option<(Split, f64)>, CheckpointError> {
        let folder = self.path(name);
        let manifest = self.manifest(&folder, &self.sums(&folder)?)?;
        let progress = manifest.progress;
        let is_evaluated = progress.test_step == Some(progress.step) && progress.phase == last_phase;
        Ok(progress.chosen_by().filter(|_| is_evaluated).map(|(images, scores)| (images, scores.top1)))
    }

    /// Names of the checkpoints after `step`, oldest first.
    pub(crate) fn after(&self, step: u64) -> Result<Vec<String>, CheckpointError> {
        let mut names = self.names()?;
        names.retain(|name| step_of(name).is_some_and(|later| later > step));
        Ok(names)
    }

    fn io(&self, action: &'static str, path: &Path, source: io::Error) -> CheckpointError {
        CheckpointError::Io { action, path: path.into(), source }
    }
}

impl Checkpoint {
    /// Refuses a checkpoint, which lies in `path`, unless it was made by the recipe of this SHA-256.
    pub(crate) fn expect_recipe(&self, sha256: &str, path: &Path) -> Result<(), CheckpointError> {
        match self.recipe_sha256 == sha256 {
            true => Ok(()),
            false => Err(CheckpointError::OtherRecipe {
                path: path.into(),
                expected: sha256.into(),
                got: self.recipe_sha256.clone(),
            }),
        }
    }

    /// SHA-256 over the names, shapes and bits of all tensors and scalars: parameters, quantizer state, BatchNorm
    /// statistics, moving average and optimizer.
    fn digest(&self, path: &Path) -> Result<String, CheckpointError> {
        self.state_digest().map_err(|problem| Checkpoints::damaged(path, problem))
    }

    /// The same, or what is wrong with the state.
    pub(crate) fn state_digest(&self) -> Result<String, String> {
        let mut digest = Sha256::new();
        for (prefix, network) in self.networks() {
            let digested = network.digest(&prefix, &mut digest);
            digested.map_err(|problem| format!("{prefix}{OPTIMIZER}: {problem}"))?;
        }
        Ok(format!("{:x}", digest.finalize()))
    }

    /// All of it in a row, for other processes: progress and networks, each file after its name and length.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let manifest = Manifest {
            schema: SCHEMA,
            recipe_sha256: self.recipe_sha256.clone(),
            state_sha256: None,
            progress: self.progress.clone(),
        };
        let manifest = serde_json::to_vec(&manifest).expect("invariant: a manifest is plain data");
        let mut files = vec![(MANIFEST.to_string(), manifest)];
        for (prefix, network) in self.networks() {
            files.extend(network.files(&prefix));
        }
        let mut bytes = Vec::new();
        for (name, content) in files {
            bytes.extend(format!("{name} {}\n", content.len()).into_bytes());
            bytes.extend(content);
        }
        bytes
    }

    /// What [`to_bytes`](Self::to_bytes) has made.
    ///
    /// # Errors
    /// If it has not.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Result<Self, String> {
        let (mut files, mut names, mut rest) = (BTreeMap::new(), Vec::new(), bytes);
        while !rest.is_empty() {
            let end = rest.iter().position(|&byte| byte == b'\n').ok_or("a name has no end")?;
            let line = std::str::from_utf8(&rest[..end]).map_err(|error| error.to_string())?;
            let (name, length) = line.rsplit_once(' ').ok_or("a file has no length")?;
            let length: usize = length.parse().map_err(|_| "a length is none")?;
            let content = rest.get(end + 1..end + 1 + length).ok_or("a file is cut off")?;
            files.insert(name.to_string(), content);
            names.push(name.to_string());
            rest = &rest[end + 1 + length..];
        }
        let file = |name: &str| files.get(name).copied().ok_or_else(|| format!("{name} is missing"));
        let network = |prefix: &str, name: &str| -> Result<NetworkState, String> {
            let optional =
                |name: &str| files.get(&format!("{prefix}{name}")).map(|file| from_safetensors(file));
            Ok(NetworkState {
                name: name.into(),
                model: from_safetensors(file(&format!("{prefix}{MODEL}"))?)?,
                average: optional(AVERAGE).transpose()?,
                optimizer: file(&format!("{prefix}{OPTIMIZER}"))?.to_vec(),
                notes: optional(NOTES).transpose()?.unwrap_or_default(),
            })
        };
        let manifest: Manifest = serde_json::from_slice(file(MANIFEST)?).map_err(|error| one_line(&error))?;
        let other_suffix = format!(".{MODEL}");
        let others = names.iter().filter_map(|name| name.strip_suffix(other_suffix.as_str()));
        Ok(Self {
            recipe_sha256: manifest.recipe_sha256,
            state_sha256: None,
            progress: manifest.progress,
            deployed: network("", STUDENT)?,
            others: others.map(|name| network(&format!("{name}."), name)).collect::<Result<_, _>>()?,
        })
    }

    /// The digest of the state, unless the checkpoint, which lies in `path`, was made with another: checksums that fit are
    /// easily made for files that were altered or mixed up.
    pub(crate) fn expect_state(&self, path: &Path) -> Result<String, CheckpointError> {
        let got = self.digest(path)?;
        match &self.state_sha256 {
            Some(expected) if *expected != got => {
                let problem = format!(
                    "its files are not those it was made with: {MANIFEST} has a state of sha256 {}, they have {got}",
                    one_line(expected)
                );
                Err(Checkpoints::damaged(path, problem))
            }
            _ => Ok(got),
        }
    }

    /// All networks, each with the prefix of its files.
    fn networks(&self) -> impl Iterator<Item = (String, &NetworkState)> {
        let others = self.others.iter().map(|network| (format!("{}.", network.name), network));
        std::iter::once((String::new(), &self.deployed)).chain(others)
    }
}

impl NetworkState {
    fn digest(&self, prefix: &str, digest: &mut Sha256) -> Result<(), String> {
        let parts =
            [("model", Some(&self.model)), ("average", self.average.as_ref()), ("notes", Some(&self.notes))];
        for (part, tensors) in parts {
            for (path, data) in tensors.into_iter().flatten() {
                digest.update(format!("{prefix}{part}.{path} {:?}\n", data.shape().as_slice()));
                digest.update(data.as_bytes());
            }
        }
        let optimizer = OptimizerFile::parse(&self.optimizer)?;
        for (name, scalar) in optimizer.scalars() {
            digest.update(format!("{prefix}optimizer.{name} {scalar:?}\n"));
        }
        for (name, tensor) in optimizer.tensors() {
            digest.update(format!("{prefix}optimizer.{name} {:?}\n", tensor.shape()));
            digest.update(tensor.bytes());
        }
        Ok(())
    }

    /// Path of a tensor with a value that is not finite.
    pub(crate) fn first_non_finite(&self) -> Option<String> {
        let parts =
            [("", Some(&self.model)), ("average.", self.average.as_ref()), ("notes.", Some(&self.notes))];
        for (part, tensors) in parts {
            for (path, data) in tensors.into_iter().flatten() {
                if !data.iter::<f32>().all(f32::is_finite) {
                    return Some(format!("{part}{path}"));
                }
            }
        }
        let optimizer =
            OptimizerFile::parse(&self.optimizer).expect("invariant: it was serialized a moment ago");
        optimizer.first_non_finite().map(|name| format!("optimizer.{name}"))
    }
}

/// The name of the checkpoint after `step` steps.
fn name_of(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step in the name of a complete checkpoint.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name == name_of(step)).then_some(step)
}

/// The checkpoint whose hidden name with `suffix` is `entry`.
fn hidden_name<'a>(entry: &'a str, suffix: &str) -> Option<&'a str> {
    entry.strip_prefix('.')?.strip_suffix(suffix).filter(|name| step_of(name).is_some())
}

/// Names of files and their checksums, in the order in which they were written.
pub(crate) struct Sums(Vec<(String, String)>);

impl Sums {
    /// Reads the format of sha256sum.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let is_digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
        let mut sums = Self(Vec::new());
        for (i, line) in text.lines().enumerate() {
            let entry = line.split_once("  ").filter(|(sum, name)| {
                sum.len() == 64 && sum.chars().all(is_digit) && !name.is_empty() && sums.get(name).is_none()
            });
            let (sum, name) =
                entry.ok_or_else(|| format!("line {} of {SUMS} is no checksum of a file", i + 1))?;
            sums.0.push((name.into(), sum.into()));
        }
        Ok(sums)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn get(&self, file: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == file).map(|(_, sum)| sum.as_str())
    }
}

pub(crate) fn to_safetensors(tensors: &NamedTensors) -> Vec<u8> {
    let views = tensors.iter().map(|(path, data)| {
        let shape = data.shape().as_slice().to_vec();
        let view = TensorView::new(Dtype::F32, shape, data.as_bytes());
        (path, view.expect("invariant: the bytes of an f32 tensor fit its shape"))
    });
    safetensors::serialize(views, None).expect("invariant: tensors serialize to memory")
}

pub(crate) fn from_safetensors(bytes: &[u8]) -> Result<NamedTensors, String> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| one_line(&error))?;
    let tensor = |(path, view): (&str, TensorView<'_>)| {
        if view.dtype() != Dtype::F32 {
            return Err(format!("tensor {path:?} has type {:?}, expected F32", view.dtype()));
        }
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let values: Vec<f32> = values.collect();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok((path.to_string(), TensorData::new(values, view.shape().to_vec()))),
            false => Err(format!("tensor {path:?} has a value that is not finite")),
        }
    };
    tensors.iter().map(tensor).collect()
}

/// The SHA-256 of `bytes` in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The tensors of a trained network without those that only a training needs.
pub(crate) fn deployed_tensors(state: NetworkState) -> NamedTensors {
    let NetworkState { mut model, average, .. } = state;
    model.retain(|path, _| !path.starts_with(ADAPTERS));
    average.unwrap_or(model)
}

/// The same of a network trained as in `phase`, which says whether there is a moving average.
pub(crate) fn evaluated_tensors(state: NetworkState, phase: &Phase) -> Result<NamedTensors, StateError> {
    match (phase.train.ema_decay, &state.average) {
        (Some(_), None) => Err(StateError::NoAverage),
        (None, Some(_)) => Err(StateError::ExtraAverage),
        _ => Ok(deployed_tensors(state)),
    }
}
