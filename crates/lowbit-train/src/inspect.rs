//! Reading a run: what a checkpoint scores, and what it holds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use lowbit_data::{Batch, Loader, Locations, Normalization};
use lowbit_models::{ModelConfig, Network, Plan};
use lowbit_quantizers::QuantizationPolicy;
use serde::Serialize;

use crate::checkpoint::{Checkpoint, CheckpointError, evaluated_tensors};
use crate::data::{Images, Served, test_images};
use crate::error::TrainError;
use crate::evaluation::{evaluate as evaluate_network, mean_cross_entropy};
use crate::experiment::{Experiment, fingerprints};
use crate::image_set::{ImageSet, RunData};
use crate::metrics::{Scores, Tally};
use crate::origin::{Origin, RunProcess};
use crate::progress::Progress;
use crate::recipe::{DataRecipe, DatasetChoice, Recipe};
use crate::result::RunResult;
use crate::run_dir::{RunDir, RunInfo, RunRecipe};
use crate::set_aside::{self, SetAside};
use crate::state;
use crate::strategy::{Phase, STUDENT};
use crate::warning::Warning;
use crate::world::World;

/// What the evaluation of a checkpoint yields.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// Name of the recipe.
    pub recipe: String,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// The network.
    pub network: String,
    /// Phase of the checkpoint, as in "w2a2".
    pub phase: String,
    /// Steps done at the checkpoint.
    pub step: u64,
    /// Scores on the test images.
    #[serde(flatten)]
    pub scores: Scores,
    /// Scores that the run reported at this checkpoint, if it evaluated there.
    pub reported: Option<Scores>,
    /// Scores on the validation images that the run reported at this checkpoint, if it evaluated there and has some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    /// Device on which it did.
    pub reported_on: Option<String>,
    /// The program and the machine that did; absent if it was an earlier lowbit.
    pub reported_by: Option<Origin>,
    /// Names of the classes, if they have any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<String>>,
    /// The test images.
    pub data: ImageSet,
    /// Whether the test images are those of the run, if it knows them.
    pub same_data: Option<bool>,
    /// What is doubtful about the test images, if they are others than those of the run.
    pub warnings: Vec<String>,
}

/// What of a run is evaluated.
#[derive(Clone, Copy, Debug, Default)]
pub struct Subject<'a> {
    /// Name of the checkpoint; the newest if absent.
    pub checkpoint: Option<&'a str>,
    /// Name of the network, as in "teacher"; the deployed one if absent.
    pub network: Option<&'a str>,
}

/// Evaluates a checkpoint of the run in `path` on its test images. `device` is without autodiff.
///
/// # Errors
/// [`TrainError`] if the run, its checkpoint or its data cannot be read.
pub fn evaluate(
    path: &Path,
    subject: Subject<'_>,
    device: &Device,
    images: &Images,
) -> Result<Evaluation, TrainError> {
    let Loaded { recipe, info, name, network, wanted, phase, progress, .. } =
        Loaded::read(path, subject, device)?;
    let images = images.with_run_dir(info.data_dir.as_deref());
    let (Served { loader, set: data }, data_warnings) = test_images(&recipe.data, &images)?;
    let same_data = info.data.map(|run| run.test == data);
    let Progress { step, test, mut tests, test_step, test_device, test_origin, .. } = progress;
    let (validation, mut validations) = (progress.validation, progress.validations);
    let [reported, validation] = match wanted == STUDENT {
        true => [test, validation],
        false => [tests.remove(wanted), validations.remove(wanted)],
    }
    .map(|scores| scores.filter(|_| test_step == Some(step)));
    Ok(Evaluation {
        scores: evaluate_network(&network, &loader, device, &AtomicBool::new(false), &World::ALONE)?
            .expect("invariant: nobody stops it"),
        reported_on: test_device.filter(|_| reported.is_some()),
        reported_by: test_origin.filter(|_| reported.is_some()),
        reported,
        validation,
        classes: info.classes,
        data,
        // The run has those of its own images on record.
        warnings: match same_data {
            Some(true) => Vec::new(),
            _ => data_warnings.iter().map(ToString::to_string).collect(),
        },
        same_data,
        recipe: recipe.name,
        network: wanted.into(),
        phase,
        checkpoint: name,
        step,
    })
}

/// The network of a checkpoint of the run in `path`, as it is evaluated and deployed: the moving average, if there is one. `device`
/// is without autodiff. [`lowbit_models::grids`] has the grids of its layers.
///
/// # Errors
/// [`TrainError`] if the run or its checkpoint cannot be read.
pub fn load_network(path: &Path, subject: Subject<'_>, device: &Device) -> Result<Network, TrainError> {
    Ok(Loaded::read(path, subject, device)?.network)
}

/// A network of a run as it is deployed, and what another program needs to know of it.
#[derive(Debug)]
pub struct Deployed {
    /// The network, with the moving average of its parameters, if there is one.
    pub network: Network,
    /// The recipe of its run.
    pub recipe: Recipe,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// Name of the network.
    pub name: String,
    /// Phase of the checkpoint, as in "w2a2".
    pub phase: String,
    /// Names of the classes, if they have any.
    pub classes: Option<Vec<String>>,
    /// How pixels become its inputs.
    pub normalization: Normalization,
    /// Where the run looked for data sets first, if that was asked for.
    pub data_dir: Option<PathBuf>,
    /// Its test images, if the run knows them.
    pub test: Option<ImageSet>,
}

/// The network of a checkpoint of the run in `path` as it is deployed. `device` is without autodiff.
///
/// # Errors
/// [`TrainError`] if the run or its checkpoint cannot be read.
pub fn deployed(path: &Path, subject: Subject<'_>, device: &Device) -> Result<Deployed, TrainError> {
    let Loaded { recipe, info, name, network, wanted, phase, .. } = Loaded::read(path, subject, device)?;
    let normalization = Images::Named(Locations::default_with(None)).normalization(&recipe.data)?;
    Ok(Deployed {
        network,
        checkpoint: name,
        name: wanted.into(),
        phase,
        classes: info.classes,
        normalization,
        data_dir: info.data_dir,
        test: info.data.map(|data| data.test),
        recipe,
    })
}

/// What a function of images scores on the test images of a recipe, the first `most` of them, or a few more, as whole batches are taken;
/// how many these are, and what is doubtful about the images. `logits` has the normalized pixels of a batch, `[batch, channels,
/// height, width]`, and returns as many rows of class scores.
///
/// # Errors
/// [`TrainError`] if the images cannot be read, or whatever `logits` fails with.
pub fn score(
    recipe: &DataRecipe,
    images: &Images,
    most: usize,
    mut logits: impl FnMut(&[f32], [usize; 4]) -> Result<Vec<f32>, TrainError>,
) -> Result<Scored, TrainError> {
    let test = TestImages::open(recipe, images)?;
    let mut tally = Tally::default();
    for batch in test.batches() {
        let Batch { images, labels, shape, .. } = batch?;
        let logits = logits(&images, shape)?;
        tally.add(&logits, &labels, mean_cross_entropy(&logits, &labels));
        if tally.n_images as usize >= most {
            break;
        }
    }
    let TestImages { set, warnings, .. } = test;
    Ok(Scored { scores: tally.scores(), n_images: tally.n_images as usize, data: set, warnings })
}

/// The images that a run is tested on, in order.
pub struct TestImages {
    loader: Loader,
    /// By what they are told from others.
    pub set: ImageSet,
    /// What is doubtful about them.
    pub warnings: Vec<String>,
}

impl TestImages {
    /// The test images of `recipe`. A folder of images is looked at here, but no image is decoded for the network yet.
    ///
    /// # Errors
    /// [`TrainError`] if they cannot be had.
    pub fn open(recipe: &DataRecipe, images: &Images) -> Result<Self, TrainError> {
        let (Served { loader, set }, warnings) = test_images(recipe, images)?;
        let warnings = warnings.iter().map(ToString::to_string).collect();
        Ok(Self { loader, set, warnings })
    }

    /// The images in batches, as an evaluation has them. Each can be an error of its own.
    pub fn batches(&self) -> impl Iterator<Item = Result<Batch, TrainError>> {
        self.loader.epoch(0, 0).map(|batch| Ok(batch?))
    }
}

/// What [`score`] yields.
#[derive(Clone, Debug)]
pub struct Scored {
    /// The scores.
    pub scores: Scores,
    /// Images that they are of.
    pub n_images: usize,
    /// All test images.
    pub data: ImageSet,
    /// What is doubtful about them.
    pub warnings: Vec<String>,
}

/// A network of a run, and where it comes from.
pub(crate) struct Loaded<'a> {
    pub(crate) recipe: Recipe,
    pub(crate) info: RunInfo,
    /// Name of the checkpoint.
    pub(crate) name: String,
    pub(crate) network: Network,
    /// What it is.
    pub(crate) model: ModelConfig,
    /// The precision of its layers at the checkpoint.
    pub(crate) policy: QuantizationPolicy,
    /// Name of the network.
    pub(crate) wanted: &'a str,
    /// Name of the checkpoint's phase.
    pub(crate) phase: String,
    pub(crate) progress: Progress,
}

impl<'a> Loaded<'a> {
    pub(crate) fn read(path: &Path, subject: Subject<'a>, device: &Device) -> Result<Self, TrainError> {
        let run = RunDir::open(path)?;
        let RunRecipe { recipe, sha256 } = run.recipe_with_digest()?;
        let info = run.info()?;
        info.expect_same_meaning(&recipe, path)?;
        let (name, loaded) = load(&run, subject.checkpoint)?;
        let path = run.checkpoints().path(&name);
        loaded.expect_recipe(&sha256, &path)?;
        // Said after what the network says, who names the difference.
        let has_its_state = loaded.expect_state(&path);
        let experiment = Experiment::of_recipe(&recipe)?;
        let wanted = subject.network.unwrap_or(STUDENT);
        let no_network = || TrainError::UnknownNetwork {
            network: wanted.into(),
            known: experiment.networks.iter().map(|spec| spec.name.clone()).collect(),
        };
        let spec = experiment.networks.iter().find(|spec| spec.name == wanted).ok_or_else(no_network)?;
        let Checkpoint { progress, deployed, others, .. } = loaded;
        let phase = experiment.phase(progress.phase)?;
        let network = spec.network(&recipe, phase, device)?;
        let mut states = std::iter::once(deployed).chain(others);
        let state = states.find(|state| state.name == wanted);
        let state =
            state.ok_or_else(|| CheckpointError::NoNetwork { path: path.clone(), network: wanted.into() })?;
        let other_model = |source| CheckpointError::OtherModel { path, source };
        let network = evaluated_tensors(state, phase)
            .and_then(|tensors| state::load(network, tensors))
            .map_err(other_model)?;
        has_its_state?;
        let (policy, phase) = (spec.policy(&recipe, phase), phase.name.clone());
        let model = spec.model.clone();
        Ok(Self { recipe, info, name, network, model, policy, wanted, phase, progress })
    }
}

/// What a run directory holds.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// The resolved recipe.
    pub recipe: Recipe,
    /// Where and by what it was made.
    pub info: RunInfo,
    /// The processes that trained in it, oldest first.
    pub processes: Vec<RunProcess>,
    /// The precision of every layer at the end of the training.
    pub plan: Plan,
    /// The phases of the training.
    pub phases: Vec<Phase>,
    /// Steps of the whole training; absent if an earlier lowbit made the run, which did not write down its images.
    pub steps: Option<u64>,
    /// The outcome, if the training is complete.
    pub result: Option<RunResult>,
    /// What keeps a program without images and strategies of its own from going on with the training, and what to do; absent if
    /// nothing is known to.
    pub obstacle: Option<String>,
    /// Names of its checkpoints, oldest first.
    pub checkpoints: Vec<String>,
    /// Name of the checkpoint with the highest accuracy: on the validation images, if there are some, else on the test images.
    pub best: Option<String>,
    /// What was wrong without ending the training.
    pub warnings: Vec<Warning>,
    /// What came after a checkpoint that the run went back to.
    pub set_aside: Vec<SetAside>,
    /// The newest checkpoint, or the one that was named.
    pub checkpoint: Option<CheckpointInspection>,
}

/// What a checkpoint holds.
#[derive(Clone, Debug, Serialize)]
pub struct CheckpointInspection {
    /// Its name.
    pub name: String,
    /// Where the training stood.
    pub progress: Progress,
    /// Digest over all parameters, quantizer, optimizer and BatchNorm state.
    pub state_sha256: String,
}

/// Reads the run in `path` and verifies its checkpoint `checkpoint`, or its newest.
///
/// # Errors
/// [`TrainError`] if the run or the checkpoint cannot be read.
pub fn inspect(path: &Path, checkpoint: Option<&str>) -> Result<Inspection, TrainError> {
    let run = RunDir::open(path)?;
    // Before the checkpoint, which is read by it: its own trouble is not the checkpoint's.
    let recipe = run.recipe()?;
    let checkpoints = run.checkpoints();
    let inspection = match checkpoints.load(checkpoint)? {
        Some((name, loaded)) => {
            let state_sha256 = loaded.expect_state(&checkpoints.path(&name))?;
            Some(CheckpointInspection { name, progress: loaded.progress, state_sha256 })
        }
        None => None,
    };
    let experiment = Experiment::of_recipe(&recipe)?;
    let info = run.info()?;
    let (result, obstacle) = match run.result() {
        Ok(result) => (Some(result), None),
        // What else there is can be read nevertheless.
        Err(error @ TrainError::DamagedFile { .. }) => (None, Some(error.to_string())),
        Err(TrainError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            let unsaved = if inspection.is_none() { run.expect_nothing_recorded().err() } else { None };
            (None, unsaved.map(|error| error.to_string()).or_else(|| obstacle_to(&info, &recipe, path)))
        }
        Err(error) => return Err(error),
    };
    let epochs = experiment.epochs();
    let steps_per_epoch = |data: &RunData| (data.train.n_images / recipe.data.batch_size) as u64;
    Ok(Inspection {
        steps: info.data.as_ref().map(|data| epochs * steps_per_epoch(data)),
        result,
        recipe,
        info,
        processes: run.processes()?,
        plan: run.plan()?,
        checkpoints: checkpoints.names()?,
        best: checkpoints.best(experiment.last_phase())?,
        set_aside: set_aside::list(path)?,
        phases: experiment.phases,
        warnings: run.warnings()?,
        obstacle,
        checkpoint: inspection,
    })
}

/// Why only another program, or an earlier lowbit, goes on with the run in `path`, if that is so.
fn obstacle_to(info: &RunInfo, recipe: &Recipe, path: &Path) -> Option<String> {
    let of_recipe = fingerprints(&recipe.strategies());
    let refused =
        info.expect_same_meaning(recipe, path).and_then(|()| info.expect_strategies(&of_recipe, &[]));
    match (refused, recipe.data.dataset) {
        (Err(error), _) => Some(error.to_string()),
        (Ok(()), DatasetChoice::Own { .. }) => {
            Some("its images are those of a program: it goes on with the program that made it".into())
        }
        (Ok(()), DatasetChoice::Named(_) | DatasetChoice::Folder { .. }) => None,
    }
}

/// Name of the checkpoint with the highest accuracy among those of the last phase that are kept, in the run in `path`: on the
/// validation images, if there are some, else on the test images.
///
/// # Errors
/// [`TrainError`] if the run cannot be read.
pub fn best_checkpoint(path: &Path) -> Result<Option<String>, TrainError> {
    let run = RunDir::open(path)?;
    let recipe = run.recipe()?;
    Ok(run.checkpoints().best(Experiment::of_recipe(&recipe)?.last_phase())?)
}

fn load(run: &RunDir, checkpoint: Option<&str>) -> Result<(String, Checkpoint), TrainError> {
    let loaded = run.checkpoints().load(checkpoint)?;
    Ok(loaded.ok_or_else(|| CheckpointError::None { path: run.path().into() })?)
}
