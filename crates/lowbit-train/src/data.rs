//! The images of a training: found by the name in its recipe, or given by the program, and served in batches.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use lowbit_data::{
    Batch, DataError, DataWarning, ImageShape, Loader, LoaderConfig, Locations, Normalization, Opened,
    Source, Split,
};

use crate::error::{IoContext, TrainError};
use crate::image_set::{ImageSet, RunData};
use crate::recipe::{DataRecipe, DatasetChoice, Recipe};

/// Images per evaluation batch. Fixed, so that every evaluation of a checkpoint adds in the same order.
pub(crate) const EVAL_BATCH_SIZE: usize = 256;

/// Batches of so many bytes that are on the host at a time: those prepared ahead, one that is being prepared, and the one in
/// use.
pub(crate) fn n_prepared(batch_bytes: u64) -> u64 {
    let batch_bytes = usize::try_from(batch_bytes).unwrap_or(usize::MAX);
    lowbit_data::batches_ahead(LoaderConfig::DEFAULT_PREFETCH, batch_bytes) as u64 + 2
}

/// The most threads that decode images unless a recipe says how many.
const MAX_WORKERS: usize = 16;

/// Threads that decode and vary images beside the training: one where they are at hand in their size, as many as there are cores where
/// files are decoded and resized. A step waits for the slowest of its threads, but the work is the same: while it computes, at
/// most some batches are prepared.
fn workers(recipe: &DataRecipe) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
    recipe.workers.unwrap_or_else(|| if recipe.geometry.is_some() { cores() } else { 1 })
}

/// Where the images of a training are from.
#[derive(Clone, Debug)]
pub enum Images {
    /// The data set that the recipe names, which is looked for in these places.
    Named(Locations),
    /// The program's own, for recipes with `data.dataset = "own"`.
    Own {
        /// Those that are trained on.
        train: Arc<dyn Source>,
        /// Those that are tested on.
        test: Arc<dyn Source>,
    },
}

impl From<Locations> for Images {
    fn from(locations: Locations) -> Self {
        Images::Named(locations)
    }
}

impl Images {
    /// The directory that is searched first, if one was given.
    pub(crate) fn data_dir(&self) -> Option<&PathBuf> {
        match self {
            Images::Named(locations) => locations.data_dir.as_ref(),
            Images::Own { .. } => None,
        }
    }

    /// The same, and after the directory given there that of the run.
    pub(crate) fn with_run_dir(&self, run_data_dir: Option<&Path>) -> Self {
        match self {
            Images::Named(locations) => {
                Images::Named(Locations { run_data_dir: run_data_dir.map(Into::into), ..locations.clone() })
            }
            own => own.clone(),
        }
    }

    /// One part, as far as the recipe takes it.
    fn part(&self, recipe: &DataRecipe, split: Split) -> Result<Part, TrainError> {
        let limit = match split {
            Split::Train => recipe.train_limit,
            Split::Test => recipe.test_limit,
        };
        match (self, recipe.dataset) {
            (Images::Named(locations), DatasetChoice::Named(name)) => {
                let opened = lowbit_data::open(name, split, recipe.labels, locations)?;
                Ok(Part::Named(match limit {
                    Some(limit) => opened.head(limit)?,
                    None => opened,
                }))
            }
            (Images::Own { train, test }, DatasetChoice::Own { shape, n_classes }) => {
                let source = Arc::clone(if split == Split::Train { train } else { test });
                let expected =
                    ImageShape { channels: shape.channels, height: shape.height, width: shape.width };
                expect_own(&source, split, recipe.geometry.is_none().then_some(expected), n_classes)?;
                Ok(Part::Own(match limit {
                    Some(limit) => lowbit_data::head(source, limit)?,
                    None => source,
                }))
            }
            (Images::Named(_), DatasetChoice::Own { .. }) => Err(TrainError::NoImages),
            (Images::Own { .. }, DatasetChoice::Named(name)) => Err(TrainError::NamedImages { name }),
        }
    }

    /// How pixels become network inputs: as the recipe says, or else as is customary for the data set, or as the program says of
    /// its training images.
    pub(crate) fn normalization(&self, recipe: &DataRecipe) -> Result<Normalization, TrainError> {
        match (&recipe.normalization, self, recipe.dataset) {
            (Some(normalization), _, _) => Ok(normalization.clone()),
            (None, _, DatasetChoice::Named(name)) => Ok(Normalization::of(name)),
            (None, Images::Own { train, .. }, DatasetChoice::Own { .. }) => {
                let info = train.info();
                info.normalization.ok_or(TrainError::NoNormalization { name: info.name })
            }
            (None, Images::Named(_), DatasetChoice::Own { .. }) => Err(TrainError::NoImages),
        }
    }
}

/// Refuses a program's own images that are not what the recipe says of them; of their `shape` where they keep their size.
fn expect_own(
    source: &Arc<dyn Source>,
    split: Split,
    shape: Option<ImageShape>,
    n_classes: usize,
) -> Result<(), TrainError> {
    let info = source.info();
    let list = |shape: ImageShape| format!("{:?}", [shape.channels, shape.height, shape.width]);
    // Where the shapes differ from image to image, the loader says so.
    let other_shape = shape.zip(info.shape).filter(|(expected, got)| got != expected);
    let differs = match other_shape {
        Some((expected, got)) => Some(("data.shape", list(expected), list(got))),
        None => (info.n_classes != n_classes)
            .then(|| ("data.classes", n_classes.to_string(), info.n_classes.to_string())),
    };
    match differs {
        Some((key, expected, got)) => {
            Err(TrainError::OtherImages { split, name: info.name, key, expected, got })
        }
        None => Ok(()),
    }
}

/// One part of the images.
enum Part {
    Named(Opened),
    Own(Arc<dyn Source>),
}

impl Part {
    /// What is doubtful about the images of a training, or of an evaluation, which has no training images.
    fn warnings(train: Option<&Self>, test: &Self) -> Vec<DataWarning> {
        match (train, test) {
            (Some(Part::Named(train)), Part::Named(test)) => lowbit_data::warnings(Some(train), test),
            (_, Part::Named(test)) => lowbit_data::warnings(None, test),
            (Some(Part::Own(train)), Part::Own(test)) => {
                lowbit_data::source_warnings(Some(&**train), &**test)
            }
            (_, Part::Own(test)) => lowbit_data::source_warnings(None, &**test),
        }
    }

    /// With the one name of the place that it is from: a warning is recorded once in a run, however that was spelled.
    fn resolved(self) -> Result<Self, TrainError> {
        Ok(match self {
            Part::Named(opened) => {
                let place = opened.place.as_ref().map(resolved).transpose()?;
                Part::Named(Opened { place, ..opened })
            }
            own => own,
        })
    }

    /// Whether they are those that are published, in their own part.
    fn is_published(&self) -> bool {
        matches!(self, Part::Named(opened) if opened.published == Some(opened.split))
    }

    fn serve(self, config: LoaderConfig) -> Result<Served, TrainError> {
        let (source, own): (Arc<dyn Source>, _) = match self {
            Part::Named(opened) => (Arc::new(opened.dataset), None),
            Part::Own(source) => {
                let info = source.info();
                (source, Some(info))
            }
        };
        let loader = Loader::new(source, config)?;
        let (max_value, name) = own.map(|info| (info.max_value, info.name)).unzip();
        let (n_images, digest) = (loader.n_samples(), loader.source().digest()?);
        let set = ImageSet { source: name, max_value, n_images, digest };
        Ok(Served { loader, set })
    }
}

/// Images that are served in batches, and by what they are told from others.
pub(crate) struct Served {
    pub(crate) loader: Loader,
    pub(crate) set: ImageSet,
}

/// The training and test images of a recipe.
pub(crate) struct Data {
    pub(crate) train: Loader,
    pub(crate) test: Loader,
    /// Whether they are those that are published, each in its own part.
    pub(crate) are_published: bool,
    pub(crate) warnings: Vec<DataWarning>,
    info: RunData,
}

impl Data {
    /// The images of `recipe`; a stop is answered while a disk is slow.
    pub(crate) fn read(recipe: &Recipe, images: &Images, stop: &AtomicBool) -> Result<Self, TrainError> {
        let (data, seed, places) = (recipe.data.clone(), recipe.seed, images.clone());
        match unless_stopped(stop, move || Self::open(&data, seed, &places)) {
            Ok(data) => data.unwrap_or(Err(TrainError::Stopped)),
            // Without a thread, it is read here.
            Err(_) => Self::open(&recipe.data, recipe.seed, images),
        }
    }

    fn open(recipe: &DataRecipe, seed: u64, images: &Images) -> Result<Self, TrainError> {
        let part = |split| images.part(recipe, split).and_then(Part::resolved);
        let (train, test) = (part(Split::Train)?, part(Split::Test)?);
        let normalization = images.normalization(recipe)?;
        let warnings = Part::warnings(Some(&train), &test);
        let are_published = [&train, &test].into_iter().all(Part::is_published);
        let config = LoaderConfig {
            geometry: recipe.geometry,
            augmentation: recipe.augment,
            n_threads: workers(recipe),
            ..LoaderConfig::training(recipe.batch_size, seed, normalization.clone())
        };
        let (train, test) = (train.serve(config)?, test.serve(test_config(recipe, normalization))?);
        Ok(Self {
            train: train.loader,
            test: test.loader,
            info: RunData { train: train.set, test: test.set },
            are_published,
            warnings,
        })
    }

    /// The first `n` training batches from the start of `epoch` on: those of the next epochs follow where it has fewer.
    pub(crate) fn batches(&self, epoch: u64, n: usize) -> impl Iterator<Item = Result<Batch, DataError>> {
        (epoch..).flat_map(|epoch| self.train.epoch(epoch, 0)).take(n)
    }

    pub(crate) fn info(&self) -> RunData {
        self.info.clone()
    }

    /// Refuses images that are not those of the run, with which it would end elsewhere.
    pub(crate) fn expect(&self, run: RunData) -> Result<(), TrainError> {
        let found = self.info();
        let splits = [(Split::Train, run.train, found.train), (Split::Test, run.test, found.test)];
        match splits.into_iter().find(|(_, expected, got)| expected != got) {
            Some((split, expected, got)) => {
                Err(TrainError::OtherData { split, expected: Box::new(expected), got: Box::new(got) })
            }
            None => Ok(()),
        }
    }
}

/// The test images of a recipe, in order, and what is doubtful about them.
pub(crate) fn test_images(
    recipe: &DataRecipe,
    images: &Images,
) -> Result<(Served, Vec<DataWarning>), TrainError> {
    let test = images.part(recipe, Split::Test)?;
    let warnings = Part::warnings(None, &test);
    Ok((test.serve(test_config(recipe, images.normalization(recipe)?))?, warnings))
}

fn test_config(recipe: &DataRecipe, normalization: Normalization) -> LoaderConfig {
    LoaderConfig {
        geometry: recipe.geometry,
        n_threads: workers(recipe),
        ..LoaderConfig::evaluation(EVAL_BATCH_SIZE, normalization)
    }
}

/// Images of a batch on `device`, `[batch, channels, height, width]`.
pub(crate) fn tensor(batch: &mut Batch, device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(std::mem::take(&mut batch.images), batch.shape), device)
}

/// The one name of the file at `path`, without links and `..`; an absolute one if there is none.
fn resolved(path: &PathBuf) -> Result<PathBuf, TrainError> {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).context("find", path)
}

/// What `read` returns, in a thread of its own; `None` after a stop. The thread is then left to itself.
///
/// # Errors
/// If there can be no further thread.
fn unless_stopped<T: Send + 'static>(
    stop: &AtomicBool,
    read: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    /// Time between two looks at `stop`.
    const INTERVAL: Duration = Duration::from_millis(50);

    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::Builder::new().name("read data".into()).spawn(move || {
        // Nobody listens any more after a stop.
        let _ = sender.send(read());
    })?;
    loop {
        match receiver.recv_timeout(INTERVAL) {
            Ok(value) => return Ok(Some(value)),
            Err(mpsc::RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => return Ok(None),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("the thread sends before it ends"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_does_not_wait_for_a_slow_disk() {
        let (slow, never) = mpsc::channel::<()>();
        let stop = AtomicBool::new(true);
        assert_eq!(unless_stopped(&stop, move || never.recv().is_ok()).unwrap(), None);
        drop(slow);
        assert_eq!(unless_stopped(&AtomicBool::new(false), || 7).unwrap(), Some(7));
    }
}
