//! The images of a training: found by the name in its recipe, or given by the program, and served in batches.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use burn::tensor::{Device, Tensor, TensorData};
use lowbit_data::{
    Batch, DataError, DataWarning, FolderSplit, Fractions, ImageFolder, ImageShape, Loader, LoaderConfig,
    Locations, Normalization, Opened, Source, Split,
};

use serde::Serialize;

use crate::error::{IoContext, TrainError};
use crate::image_set::{ImageSet, RunData, SkippedImages};
use crate::origin::n_threads;
use crate::recipe::{DataRecipe, DatasetChoice, FolderForm, Recipe};

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

/// Threads that decode and vary images beside the training: one where they are at hand in their size, as many as compute where
/// files are decoded and resized. A step waits for the slowest of its threads, but the work is the same: while it computes, at
/// most some batches are prepared.
fn workers(recipe: &DataRecipe) -> usize {
    recipe.workers.unwrap_or_else(|| if recipe.geometry.is_some() { n_threads().min(MAX_WORKERS) } else { 1 })
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
    pub fn with_run_dir(&self, run_data_dir: Option<&Path>) -> Self {
        match self {
            Images::Named(locations) => {
                Images::Named(Locations { run_data_dir: run_data_dir.map(Into::into), ..locations.clone() })
            }
            own => own.clone(),
        }
    }

    /// The images of `recipe`, as far as it takes them.
    fn found(&self, recipe: &DataRecipe, wanted: Wanted) -> Result<Found, TrainError> {
        match (self, recipe.dataset) {
            (Images::Named(locations), DatasetChoice::Named(name)) => {
                let opened = |split, limit: Option<usize>| {
                    let opened = lowbit_data::open(name, split, recipe.labels, locations)?;
                    let opened = match limit {
                        Some(limit) => opened.head(limit)?,
                        None => opened,
                    };
                    // What an evaluation warns of is recorded nowhere.
                    match wanted {
                        Wanted::All => with_resolved_place(opened),
                        Wanted::Test => Ok(opened),
                    }
                };
                let train = match wanted {
                    Wanted::All => Some(opened(Split::Train, recipe.train_limit)?),
                    Wanted::Test => None,
                };
                let test = opened(Split::Test, recipe.test_limit)?;
                let are_published =
                    train.iter().chain([&test]).all(|part| part.published == Some(part.split));
                let warnings = lowbit_data::warnings(train.as_ref(), &test);
                let source = |opened: Opened| -> Arc<dyn Source> { Arc::new(opened.dataset) };
                Ok(Found {
                    train: train.map(source),
                    validation: None,
                    test: source(test),
                    folders: [None; 3],
                    is_named: true,
                    are_published,
                    classes: None,
                    warnings,
                    skipped: None,
                })
            }
            (Images::Own { train, test }, DatasetChoice::Own { shape, n_classes }) => {
                let expected =
                    ImageShape { channels: shape.channels, height: shape.height, width: shape.width };
                let expected = recipe.geometry.is_none().then_some(expected);
                let limited = |source: &Arc<dyn Source>, split, limit| {
                    expect_own(source, split, expected, n_classes)?;
                    Ok::<_, TrainError>(match limit {
                        Some(limit) => lowbit_data::head(Arc::clone(source), limit)?,
                        None => Arc::clone(source),
                    })
                };
                let train = match wanted {
                    Wanted::All => Some(limited(train, Split::Train, recipe.train_limit)?),
                    Wanted::Test => None,
                };
                let test = limited(test, Split::Test, recipe.test_limit)?;
                Ok(Found {
                    warnings: lowbit_data::source_warnings(train.as_deref(), &*test),
                    classes: test.class_names().map(<[String]>::to_vec),
                    train,
                    validation: None,
                    test,
                    folders: [None; 3],
                    is_named: false,
                    are_published: false,
                    skipped: None,
                })
            }
            (Images::Named(locations), DatasetChoice::Folder { form, n_classes }) => {
                let folder = open_folder(locations, form)?;
                expect_classes(&folder, n_classes)?;
                let (folder, skipped) = match recipe.skip_unreadable {
                    true => without_unreadable(folder)?,
                    false => {
                        folder.expect_usable()?;
                        (folder, None)
                    }
                };
                let fractions = Fractions {
                    validation: recipe.validation.unwrap_or(0.0),
                    test: recipe.test.unwrap_or(0.0),
                    seed: recipe.split_seed,
                };
                let FolderSplit { classes, train, validation, test, warnings, folders } =
                    folder.images(&fractions)?;
                Ok(Found {
                    train: Some(limited_in_turn(train, recipe.train_limit)?),
                    validation,
                    test: limited_in_turn(test, recipe.test_limit)?,
                    folders: folders.map(Some),
                    is_named: false,
                    are_published: false,
                    classes: Some(classes),
                    warnings,
                    skipped,
                })
            }
            (Images::Named(_), DatasetChoice::Own { .. }) => Err(TrainError::NoImages),
            (Images::Own { .. }, DatasetChoice::Named(_) | DatasetChoice::Folder { .. }) => {
                Err(TrainError::NamedImages { name: recipe.dataset.as_str() })
            }
        }
    }

    /// The recipe with what its images say: the number of classes of a folder, and the normalization, which a source may say
    /// otherwise when the run goes on.
    ///
    /// # Errors
    /// [`TrainError`] if they cannot be found, or are not what the recipe says.
    pub fn complete(&self, recipe: &Recipe) -> Result<Recipe, TrainError> {
        let mut recipe = recipe.clone();
        if let (Images::Named(locations), DatasetChoice::Folder { form, n_classes }) =
            (self, recipe.data.dataset)
        {
            let folder = open_folder(locations, form)?;
            expect_classes(&folder, n_classes)?;
            recipe.data.dataset = DatasetChoice::Folder { form, n_classes: Some(folder.classes().len()) };
        }
        if !matches!(recipe.data.dataset, DatasetChoice::Named(_)) {
            recipe.data.normalization = Some(self.normalization(&recipe.data)?);
        }
        Ok(recipe)
    }

    /// How pixels become network inputs: as the recipe says, or else as is customary for the data set, or as the program says of
    /// its training images.
    ///
    /// # Errors
    /// [`TrainError`] if nobody says.
    pub fn normalization(&self, recipe: &DataRecipe) -> Result<Normalization, TrainError> {
        match (&recipe.normalization, self, recipe.dataset) {
            (Some(normalization), _, _) => Ok(normalization.clone()),
            (None, _, DatasetChoice::Named(name)) => {
                let Normalization { mean, std } = Normalization::of(name);
                match (mean.as_slice(), std.as_slice(), recipe.input_shape().channels) {
                    (_, _, channels) if channels == mean.len() => Ok(Normalization { mean, std }),
                    // Grey images as those of several channels: all are alike.
                    (&[mean], &[std], n) => Ok(Normalization { mean: vec![mean; n], std: vec![std; n] }),
                    _ => Err(TrainError::NoNormalization { name: recipe.dataset.to_string() }),
                }
            }
            (None, Images::Own { train, .. }, DatasetChoice::Own { .. }) => {
                let info = train.info();
                info.normalization.ok_or(TrainError::NoNormalization { name: info.name })
            }
            (None, _, DatasetChoice::Folder { .. }) => match recipe.input_shape().channels {
                3 => Ok(Normalization::imagenet()),
                _ => Err(TrainError::NoNormalization { name: recipe.dataset.to_string() }),
            },
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

/// The folder of images of one's own, which has no place of its own.
fn open_folder(locations: &Locations, form: FolderForm) -> Result<ImageFolder, TrainError> {
    let places = [&locations.data_dir, &locations.run_data_dir];
    let place = places.into_iter().flatten().next().ok_or(TrainError::NoFolder)?;
    Ok(match form {
        FolderForm::Classes => ImageFolder::open(place)?,
        FolderForm::ImageNet => ImageFolder::open_imagenet(place)?,
    })
}

/// Refuses a folder with another number of classes than the recipe says.
fn expect_classes(folder: &ImageFolder, n_classes: Option<usize>) -> Result<(), TrainError> {
    match n_classes.filter(|expected| *expected != folder.classes().len()) {
        Some(expected) => Err(TrainError::OtherImages {
            split: Split::Train,
            name: folder.root().display().to_string(),
            key: "data.classes",
            expected: expected.to_string(),
            got: folder.classes().len().to_string(),
        }),
        None => Ok(()),
    }
}

/// Reads all images, and leaves out those that cannot be decoded. A file that cannot be read, or has changed since it was indexed,
/// is an error.
fn without_unreadable(folder: ImageFolder) -> Result<(ImageFolder, Option<SkippedImages>), TrainError> {
    const N_TOLD: usize = 1000;
    let unreadable = folder.unreadable(n_threads())?;
    let unusable = folder.parts().iter().map(|part| part.index.unusable());
    let n = unreadable.len() as u64 + unusable.clone().map(|unusable| unusable.n).sum::<u64>();
    let of_names =
        unusable.flat_map(|unusable| &unusable.first).map(|(path, reason)| format!("{path}: {reason}"));
    let all = of_names.chain(unreadable.iter().map(|image| image.reason.clone()));
    let skipped = (n > 0).then(|| SkippedImages { n, files: all.take(N_TOLD).collect() });
    Ok((folder.without(&unreadable), skipped))
}

/// The first images alone, those of all classes in turn: a folder has them class by class.
fn limited_in_turn(source: Arc<dyn Source>, limit: Option<usize>) -> Result<Arc<dyn Source>, TrainError> {
    let Some(limit) = limit else { return Ok(source) };
    let info = source.info();
    if limit > info.n_samples {
        let error = DataError::TooFewSamples { name: info.name, asked: limit, available: info.n_samples };
        return Err(error.into());
    }
    let labels: Vec<u16> = (0..info.n_samples).map(|sample| source.label(sample)).collect();
    Ok(lowbit_data::subset(source, lowbit_data::in_turn(&labels, limit)))
}

/// Which images are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// All of them.
    All,
    /// The test images, and others only if those cannot be had without them.
    Test,
}

/// Images that something is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChosenBy {
    /// Those that were held back from the training.
    Validation,
    /// Those that it trained on: nothing was held back.
    Training,
}

/// Images as they were found.
struct Found {
    /// `None` if they are not wanted.
    train: Option<Arc<dyn Source>>,
    validation: Option<Arc<dyn Source>>,
    test: Arc<dyn Source>,
    /// The folders that training, validation and test images are from, if they are those of a folder; "" for all of it.
    folders: [Option<&'static str>; 3],
    /// Whether they are those of a data set that has a name.
    is_named: bool,
    /// Whether they are those that are published, each in its own part.
    are_published: bool,
    classes: Option<Vec<String>>,
    warnings: Vec<DataWarning>,
    skipped: Option<SkippedImages>,
}

impl Found {
    /// Holds some of the training images back for validation, if the recipe says so.
    fn divided(self, recipe: &DataRecipe) -> Self {
        if let DatasetChoice::Folder { .. } = recipe.dataset {
            return self;
        }
        let (Some(validation), Some(train)) = (recipe.validation, &self.train) else { return self };
        let labels: Vec<u16> = (0..train.info().n_samples).map(|sample| train.label(sample)).collect();
        let divided =
            lowbit_data::divide(&labels, &Fractions { validation, test: 0.0, seed: recipe.split_seed });
        let of = |indices| Some(lowbit_data::subset(Arc::clone(train), indices));
        // A published figure is of a training on all images.
        Found { validation: of(divided.validation), train: of(divided.train), are_published: false, ..self }
    }
}

/// An opened part with the one name of the place that it is from: a warning is recorded once in a run, however that was spelled.
fn with_resolved_place(opened: Opened) -> Result<Opened, TrainError> {
    let place = opened.place.as_ref().map(resolved).transpose()?;
    Ok(Opened { place, ..opened })
}

/// Images that are served in batches, and by what they are told from others.
pub(crate) struct Served {
    pub(crate) loader: Loader,
    pub(crate) set: ImageSet,
}

impl Served {
    fn new(
        source: Arc<dyn Source>,
        is_named: bool,
        folder: Option<&'static str>,
        config: LoaderConfig,
    ) -> Result<Self, TrainError> {
        let own = (!is_named && folder.is_none()).then(|| source.info());
        let loader = Loader::new(source, config)?;
        let (max_value, name) = own.map(|info| (info.max_value, info.name)).unzip();
        let (n_images, digest) = (loader.n_samples(), loader.source().digest()?);
        let set = ImageSet { source: name, max_value, folder: folder.map(Into::into), n_images, digest };
        Ok(Self { loader, set })
    }
}

/// The images of a recipe.
pub(crate) struct Data {
    pub(crate) train: Loader,
    /// Those that are held back, if any.
    pub(crate) validation: Option<Loader>,
    pub(crate) test: Loader,
    /// Whether they are those that are published, each in its own part.
    pub(crate) are_published: bool,
    /// Names of the classes, if they have any.
    pub(crate) classes: Option<Vec<String>>,
    pub(crate) warnings: Vec<DataWarning>,
    /// Images that were passed over.
    pub(crate) skipped: Option<SkippedImages>,
    info: RunData,
}

impl Data {
    /// The images of `recipe`; a stop is answered while a disk is slow.
    pub(crate) fn read(recipe: &Recipe, images: &Images, stop: &AtomicBool) -> Result<Self, TrainError> {
        let (data, seed, places) = (recipe.data.clone(), recipe.seed, images.clone());
        let read = match unless_stopped(stop, move || Self::open(&data, seed, &places)) {
            Ok(data) => data.unwrap_or(Err(TrainError::Stopped)),
            // Without a thread, it is read here.
            Err(_) => Self::open(&recipe.data, recipe.seed, images),
        }?;
        match recipe.early_stopping.is_some() && read.validation.is_none() {
            true => Err(TrainError::NoValidation),
            false => Ok(read),
        }
    }

    fn open(recipe: &DataRecipe, seed: u64, images: &Images) -> Result<Self, TrainError> {
        let found = images.found(recipe, Wanted::All)?.divided(recipe);
        let normalization = images.normalization(recipe)?;
        let config = LoaderConfig {
            geometry: recipe.geometry,
            augmentation: recipe.augment,
            n_threads: workers(recipe),
            ..LoaderConfig::training(recipe.batch_size, seed, normalization.clone())
        };
        let Found { folders, is_named, are_published, classes, warnings, skipped, .. } = found;
        let train = found.train.expect("invariant: all images are wanted");
        let train = Served::new(train, is_named, folders[0], config)?;
        let evaluated = |source, folder| {
            Served::new(source, is_named, folder, test_config(recipe, normalization.clone()))
        };
        let validation = found.validation.map(|source| evaluated(source, folders[1])).transpose()?;
        let test = evaluated(found.test, folders[2])?;
        let (validation, validation_set) = validation.map(|served| (served.loader, served.set)).unzip();
        Ok(Self {
            train: train.loader,
            validation,
            test: test.loader,
            info: RunData { train: train.set, validation: validation_set, test: test.set },
            are_published,
            classes,
            warnings,
            skipped,
        })
    }

    /// Reads all validation and test images once. A training that is done would end at the first that cannot be read, and its run
    /// would not fit the images once that is repaired. `seen` is told how many of how many were read, and ends it by `false`.
    pub(crate) fn read_evaluated(
        &self,
        mut seen: impl FnMut(usize, usize) -> bool,
    ) -> Result<(), TrainError> {
        let loaders = || self.validation.iter().chain([&self.test]);
        let n_images = loaders().map(Loader::n_samples).sum();
        let mut n_before = 0;
        for loader in loaders() {
            if !loader.read_all(|n_read| seen(n_before + n_read, n_images))? {
                return Err(TrainError::Stopped);
            }
            n_before += loader.n_samples();
        }
        Ok(())
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
        let splits = [
            (Split::Train, Some(run.train), Some(found.train)),
            (Split::Validation, run.validation, found.validation),
            (Split::Test, Some(run.test), Some(found.test)),
        ];
        for (split, expected, got) in splits {
            if expected != got {
                return Err(TrainError::OtherData {
                    split,
                    expected: Box::new(expected),
                    got: Box::new(got),
                });
            }
        }
        Ok(())
    }
}

/// The test images of a recipe, in order, and what is doubtful about them.
pub(crate) fn test_images(
    recipe: &DataRecipe,
    images: &Images,
) -> Result<(Served, Vec<DataWarning>), TrainError> {
    let Found { test, folders, is_named, warnings, .. } = images.found(recipe, Wanted::Test)?;
    let config = test_config(recipe, images.normalization(recipe)?);
    Ok((Served::new(test, is_named, folders[2], config)?, warnings))
}

/// Images of a recipe that something may be chosen by.
pub(crate) struct ChoosingImages {
    /// All of them once, in the order of their source.
    pub(crate) in_order: Loader,
    /// Batches of them, shuffled anew in each epoch: a folder has its images class by class.
    pub(crate) shuffled: Loader,
    pub(crate) chosen_by: ChosenBy,
}

/// Images that something may be chosen by, at most `most` of them, those of all classes in turn: validation images, or, without any,
/// training images as they are, without augmentation. Test images are never among them.
pub(crate) fn choosing_images(
    recipe: &DataRecipe,
    images: &Images,
    most: usize,
) -> Result<ChoosingImages, TrainError> {
    let Found { train, validation, .. } = images.found(recipe, Wanted::All)?.divided(recipe);
    let (source, chosen_by) = match validation {
        Some(validation) => (validation, ChosenBy::Validation),
        None => (train.expect("invariant: all images are wanted"), ChosenBy::Training),
    };
    let source = match most < source.info().n_samples {
        true => limited_in_turn(source, Some(most))?,
        false => source,
    };
    let in_order = test_config(recipe, images.normalization(recipe)?);
    let shuffled = LoaderConfig {
        batch_size: EVAL_BATCH_SIZE.min(source.info().n_samples.max(1)),
        seed: recipe.split_seed,
        shuffle: true,
        drop_last: true,
        ..in_order.clone()
    };
    Ok(ChoosingImages {
        in_order: Loader::new(Arc::clone(&source), in_order)?,
        shuffled: Loader::new(source, shuffled)?,
        chosen_by,
    })
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
