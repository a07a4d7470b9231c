//! How a training begins, and how it goes on.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, Checkpoints, sha256};
use crate::data::Data;
use crate::error::TrainError;
use crate::experiment::fingerprints;
use crate::fit::Fit;
use crate::origin::Origin;
use crate::progress::Progress;
use crate::recipe::{DatasetChoice, Recipe};
use crate::run_dir::{NewRun, RunDir, RunInfo, RunRecipe, absolute, expect_text, with_absolute_paths};
use crate::session::{Outcome, Session};
use crate::set_aside;
use crate::strategy::{Fingerprint, StrategyDifference};
use crate::world::World;

/// The checkpoint that a training goes on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResumeFrom<'a> {
    /// The newest. If it is damaged, that is an error.
    #[default]
    Newest,
    /// The newest that can be gone on from: intact, of the run's recipe and of its networks. Those after it are set aside.
    NewestIntact,
    /// The one of this name. What came after it is set aside.
    Named(&'a str),
}

/// Trains `recipe` in the new run directory `out`.
///
/// # Errors
/// [`TrainError`]; a run directory is left behind only if the training had begun.
pub fn train<'a>(
    recipe: &Recipe,
    out: impl Into<NewRun<'a>>,
    session: Session<'_>,
) -> Result<Outcome, TrainError> {
    let (world, out) = (session.world.clone(), out.into());
    lead(&world, |told| begin(recipe, out, session, told))
}

/// Does the part of the first process; another one trains along by [`follow`]. If there is nothing to train, they are told so.
fn lead(
    world: &World,
    work: impl FnOnce(&mut bool) -> Result<Outcome, TrainError>,
) -> Result<Outcome, TrainError> {
    assert!(world.is_root(), "the other processes follow");
    let mut told = false;
    let outcome = work(&mut told);
    if !told && !world.is_alone() {
        world.broadcast(to_json(&Order::Nothing))?;
    }
    outcome
}

/// What the first process tells the others of the training.
#[derive(Serialize, Deserialize)]
enum Order {
    /// There is nothing to train.
    Nothing,
    Train(Box<RunOrder>),
}

/// What is trained.
#[derive(Serialize, Deserialize)]
struct RunOrder {
    /// The resolved recipe.
    recipe: String,
    recipe_sha256: String,
    /// Where the run looks for its data sets first.
    data_dir: Option<PathBuf>,
    /// The strategies, of which those of a caller's own have to be given to all processes.
    strategies: Vec<Fingerprint>,
    /// Build and instruction sets of the first process.
    origin: Origin,
}

fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("invariant: an order is plain data")
}

/// Trains along with a process that has called [`train()`] or [`resume`], in which the run is, and where all is told. The session is of
/// the same kind of device and the same images; what it says of names and origin is compared.
///
/// # Errors
/// [`TrainError`] if the processes differ, or the training fails here.
pub fn follow(session: Session<'_>) -> Result<(), TrainError> {
    let world = session.world.clone();
    let order = serde_json::from_slice(&world.broadcast(Vec::new())?);
    let order = match order.expect("invariant: the first process wrote it") {
        Order::Nothing => return Ok(()),
        Order::Train(order) => order,
    };
    let recipe = Recipe::parse(&order.recipe, "the recipe of rank 0", &[])?;
    let images = session.images.with_run_dir(order.data_dir.as_deref());
    // A stop is agreed on by all, once the steps have begun: who left here alone would be waited for.
    let data = Data::read(&recipe, &images, &AtomicBool::new(false))?;
    let run_recipe = RunRecipe { recipe, sha256: order.recipe_sha256 };
    let mut fit = Fit::new(run_recipe, data, session)?;
    fit.expect_same_ranks()?;
    StrategyDifference::between(&order.strategies, &fit.experiment.fingerprints())
        .map_or(Ok(()), |difference| Err(TrainError::OtherStrategies { difference: Box::new(difference) }))?;
    fit.take_state()?;
    fit.run_along()
}

/// Tells the other processes what is trained, and where it stands.
fn tell(fit: &mut Fit<'_>, data_dir: Option<PathBuf>, told: &mut bool) -> Result<(), TrainError> {
    *told = true;
    let world = fit.session.world.clone();
    if world.is_alone() {
        return Ok(());
    }
    let order = RunOrder {
        recipe: fit.experiment.recipe.to_toml(),
        recipe_sha256: fit.recipe_sha256.clone(),
        data_dir,
        strategies: fit.experiment.fingerprints(),
        origin: fit.session.origin.clone(),
    };
    world.broadcast(to_json(&Order::Train(Box::new(order))))?;
    fit.expect_same_ranks()?;
    fit.share_state()
}

fn begin(
    recipe: &Recipe,
    out: NewRun<'_>,
    session: Session<'_>,
    told: &mut bool,
) -> Result<Outcome, TrainError> {
    expect_text(out.path())?;
    out.expect_free()?;
    let recipe = with_absolute_paths(&session.images.complete(recipe)?)?;
    let data_dir = session.images.data_dir().map(absolute).transpose()?;
    data_dir.as_deref().map_or(Ok(()), expect_text)?;
    let data = Data::read(&recipe, &session.images, session.stop)?;
    let run_recipe = RunRecipe { recipe: recipe.clone(), sha256: sha256(recipe.to_toml().as_bytes()) };
    let mut fit = Fit::new(run_recipe, data, session)?;
    fit.build(0)?;
    let initial_weights = fit.load_initial_weights()?;
    let is_of_files = matches!(recipe.data.dataset, DatasetChoice::Folder { .. });
    if is_of_files && !recipe.data.skip_unreadable {
        let Session { observer, stop, .. } = &mut fit.session;
        fit.data.read_evaluated(|n_read, n_images| {
            observer.reading(n_read, n_images);
            !stop.load(Ordering::Relaxed)
        })?;
    }
    let Fit { experiment, session: Session { origin, device_name, .. }, .. } = &fit;
    let info = RunInfo {
        data_dir,
        initial_weights,
        classes: fit.data.classes.clone(),
        skipped: fit.data.skipped.clone(),
        n_parameters: experiment.n_parameters()?,
        ..RunInfo::new(origin.clone(), device_name.clone(), fit.data.info(), experiment.fingerprints())
    };
    if fit.is_stopped() {
        return Err(TrainError::Stopped);
    }
    let run = RunDir::create(out, &recipe, &experiment.plan()?, &info)?;
    tell(&mut fit, info.data_dir, told)?;
    fit.run(run)
}

/// Goes on with the training in the run directory `path`. Nothing that the run wrote is lost: what came after the
/// checkpoint is set aside in the run before anything is cut.
///
/// # Errors
/// [`TrainError`] if the directory holds no run, its checkpoint is damaged or gone, or the training fails.
pub fn resume(path: &Path, from: ResumeFrom<'_>, session: Session<'_>) -> Result<Outcome, TrainError> {
    let world = session.world.clone();
    lead(&world, |told| go_on(path, from, session, told))
}

fn go_on(
    path: &Path,
    from: ResumeFrom<'_>,
    session: Session<'_>,
    told: &mut bool,
) -> Result<Outcome, TrainError> {
    let mut run = RunDir::open_for_training(path)?;
    let checkpoints = run.checkpoints();
    checkpoints.recover()?;
    let recipe = run.recipe_with_digest()?;
    let info = run.info()?;
    info.expect_same_meaning(&recipe.recipe, path)?;
    let [of_recipe, own] = [&recipe.recipe.strategies(), &session.strategies].map(|all| fingerprints(all));
    info.expect_strategies(&of_recipe, &own)?;
    let mut candidates = Candidates::new(&checkpoints, from)?;
    let mut loaded = candidates.load_next(path, &recipe.sha256)?;
    if loaded.is_none() {
        run.expect_nothing_recorded()?;
    }
    let images = session.images.with_run_dir(info.data_dir.as_deref());
    let data = Data::read(&recipe.recipe, &images, session.stop)?;
    if let Some(expected) = info.data {
        data.expect(expected)?;
    }
    let mut fit = Fit::new(recipe, data, session)?;
    let name = loop {
        let Some((name, checkpoint)) = loaded else { break None };
        match fit.restore(&mut run, &name, checkpoint) {
            Ok(()) => break Some(name),
            Err(error) => candidates.pass_over(name, error)?,
        }
        loaded = candidates.load_next(path, &fit.recipe_sha256)?;
    };
    if name.is_none() {
        // It was killed before its first checkpoint.
        fit.build(0)?;
        let found = fit.load_initial_weights()?;
        RunInfo::expect_weights(&info.initial_weights, &found)?;
    }
    let is_newest = candidates.passed.is_empty() && !matches!(from, ResumeFrom::Named(_));
    let Progress { metrics_bytes, .. } = fit.progress;
    if is_newest && fit.is_done() && run.is_left_complete(metrics_bytes, fit.experiment.epochs())? {
        // Nothing is written of a process that has nothing to do, but what a kill has left is tidied up.
        for warning in run.take_warnings() {
            fit.session.observer.warning(&warning);
        }
        for warning in &fit.data.warnings {
            fit.session.observer.warning(&warning.to_string());
        }
        let tidied = [
            set_aside::remove_leftovers(path).err().map(|error| error.to_string()),
            checkpoints.remove_leftovers().err().map(|error| error.to_string()),
        ];
        for error in tidied.iter().flatten() {
            fit.session.observer.warning(error);
        }
        return fit.finish(&run);
    }
    // All is known to fit: from here on, the disk is changed.
    run.probe()?;
    if let Err(error) = set_aside::remove_leftovers(path) {
        run.warn(error.to_string());
    }
    if let Some(name) = name {
        for (passed, error) in candidates.passed {
            let problem = match error {
                TrainError::Checkpoint(error) => error.without_offer(),
                other => format!("checkpoint {passed} cannot be gone on from: {other}"),
            };
            run.warn(format!("{problem}; the run goes on from {name}"));
        }
        fit.go_back(&run, name)?;
    }
    if let Err(error) = checkpoints.remove_leftovers() {
        run.warn(error.to_string());
    }
    tell(&mut fit, info.data_dir, told)?;
    fit.run(run)
}

/// The checkpoints that a run may go on from, newest first.
struct Candidates<'a> {
    checkpoints: &'a Checkpoints,
    from: ResumeFrom<'a>,
    names: std::vec::IntoIter<String>,
    n: usize,
    /// Those that cannot be gone on from, by name, and what is wrong with them.
    passed: Vec<(String, TrainError)>,
}

impl<'a> Candidates<'a> {
    fn new(checkpoints: &'a Checkpoints, from: ResumeFrom<'a>) -> Result<Self, TrainError> {
        let names: Vec<String> = match from {
            ResumeFrom::Newest => checkpoints.choose(None)?.into_iter().collect(),
            ResumeFrom::NewestIntact => checkpoints.names()?.into_iter().rev().collect(),
            ResumeFrom::Named(name) => checkpoints.choose(Some(name))?.into_iter().collect(),
        };
        Ok(Self { checkpoints, from, n: names.len(), names: names.into_iter(), passed: Vec::new() })
    }

    /// The next one that can be read and is of the recipe with this digest; `None` if the run, in `path`, has none at all.
    fn load_next(
        &mut self,
        path: &Path,
        recipe_sha256: &str,
    ) -> Result<Option<(String, Checkpoint)>, TrainError> {
        while let Some(name) = self.names.next() {
            match self.load(&name, recipe_sha256) {
                Ok(checkpoint) => return Ok(Some((name, checkpoint))),
                Err(error) => self.pass_over(name, error)?,
            }
        }
        match std::mem::take(&mut self.passed).into_iter().next() {
            None => Ok(None),
            Some((_, newest)) => {
                let newest = Box::new(newest);
                Err(TrainError::NoneUsable { path: path.into(), n_checkpoints: self.n, newest })
            }
        }
    }

    fn load(&self, name: &str, recipe_sha256: &str) -> Result<Checkpoint, TrainError> {
        let loaded = match self.from {
            ResumeFrom::NewestIntact => Some((name.into(), self.checkpoints.read_whole(name)?)),
            ResumeFrom::Newest | ResumeFrom::Named(_) => self.checkpoints.load(Some(name))?,
        };
        let (_, checkpoint): (String, _) = loaded.expect("invariant: a checkpoint that is named is read");
        checkpoint.expect_recipe(recipe_sha256, &self.checkpoints.path(name))?;
        Ok(checkpoint)
    }

    /// Remembers what is wrong with a checkpoint, if another may be taken for it; other errors end the attempt.
    fn pass_over(&mut self, name: String, error: TrainError) -> Result<(), TrainError> {
        match is_of_one_checkpoint(&error) && self.from == ResumeFrom::NewestIntact {
            true => {
                self.passed.push((name, error));
                Ok(())
            }
            false => Err(error),
        }
    }
}

/// Whether what is wrong may be right with an earlier checkpoint. That a file cannot be read is no word on what it holds.
fn is_of_one_checkpoint(error: &TrainError) -> bool {
    match error {
        TrainError::Checkpoint(error) => error.is_of_content(),
        // A file that was only appended to may be what it was when an earlier checkpoint was made.
        TrainError::NoPhase { .. } | TrainError::DamagedFile { .. } => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use std::io;

    use super::*;
    use crate::checkpoint::CheckpointError;

    /// What cannot be read now may be read the next time: no checkpoint is given up for it.
    #[test]
    fn a_read_error_is_no_damage() {
        let path = PathBuf::from("run/checkpoints/step-00000008");
        let source = io::Error::from_raw_os_error(5);
        let unread = CheckpointError::Io { action: "read", path: path.clone(), source };
        assert!(!is_of_one_checkpoint(&unread.into()));
        let damaged = Checkpoints::damaged(&path, "manifest.json: no such file or directory".into());
        assert!(is_of_one_checkpoint(&damaged.into()));
        let no_network = CheckpointError::NoNetwork { path, network: "teacher".into() };
        assert!(is_of_one_checkpoint(&no_network.into()));
        assert!(is_of_one_checkpoint(&TrainError::NoPhase { phase: 3, n_phases: 2 }));
        assert!(!is_of_one_checkpoint(&TrainError::Stopped));
    }
}
