//! `[data]`: the images and how they are served.

use std::fmt;

use lowbit_data::{Augmentation, DatasetName, Geometry, LabelKind, MAX_IMAGES, Normalization};
use lowbit_models::InputShape;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::augment::{AugmentTable, read_augment, read_geometry};
use super::reader::{NumberRange, Section};

/// Superclasses of CIFAR-100.
const N_COARSE_CLASSES: usize = 20;

/// How a recipe says that the program gives the images.
const OWN: &str = "own";

/// How a recipe says that the images are in a folder for each class.
const FOLDER: &str = "folder";

/// How it says that they are those of ILSVRC-2012.
const IMAGENET: &str = "imagenet";

/// Largest number of channels, rows or columns of an image.
const MAX_SIDE: u64 = 65_535;

/// What stands at `shape`.
const SHAPE: &str = "channels, height and width, each from 1 to 65535, as in [3, 32, 32]";

/// More threads than any machine has cores.
const MAX_WORKERS: u64 = 1024;

/// As many classes as a label of 16 bits tells apart.
const MAX_CLASSES: u64 = 1 << 16;

/// `[data]`: the images and how they are served.
#[derive(Clone, Debug, PartialEq)]
pub struct DataRecipe {
    /// Which images.
    pub dataset: DatasetChoice,
    /// Which labels of CIFAR-100.
    pub labels: LabelKind,
    /// Images per step.
    pub batch_size: usize,
    /// Use only the first so many training images.
    pub train_limit: Option<usize>,
    /// Evaluate on only the first so many test images.
    pub test_limit: Option<usize>,
    /// The size that images are brought to: `data.size`, `data.resize` and `data.channels`. `None` leaves them as they are.
    pub geometry: Option<Geometry>,
    /// Threads that decode and vary images, instead of as many as are sensible. No effect on results.
    pub workers: Option<usize>,
    /// Fraction of the training images of each class that is held back for validation, above 0 and below 1.
    pub validation: Option<f64>,
    /// Fraction of the images of each class of a folder that are test images, above 0 and below 1, where it has none of its own.
    pub test: Option<f64>,
    /// Which images are held back. It is not the seed of the training, so that trainings by several seeds share their images.
    pub split_seed: u64,
    /// Whether images of a folder that cannot be read are passed over: all are read before the training begins.
    pub skip_unreadable: bool,
    /// How pixels become network inputs, instead of what is customary for the data set or said by the program.
    pub normalization: Option<Normalization>,
    /// Random changes of the training images.
    pub augment: Option<Augmentation>,
}

/// Which images a recipe trains on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatasetChoice {
    /// Those of a data set.
    Named(DatasetName),
    /// Those that the program gives, of which the recipe says what decides the network.
    Own {
        /// Shape of an image: `data.shape`; that of the network's input where images are brought to `data.size`.
        shape: InputShape,
        /// Number of classes: `data.classes`.
        n_classes: usize,
    },
    /// Those of a folder, which is given where the training begins.
    Folder {
        /// How they are laid out.
        form: FolderForm,
        /// Number of classes: `data.classes`, or, once the folder is known, what it has.
        n_classes: Option<usize>,
    },
}

/// How images are laid out in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FolderForm {
    /// A folder for each class, or shards.
    Classes,
    /// ILSVRC-2012 as it is published.
    ImageNet,
}

impl DatasetChoice {
    /// The name as it is spelled in a recipe.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Named(name) => name.as_str(),
            Self::Own { .. } => OWN,
            Self::Folder { form: FolderForm::Classes, .. } => FOLDER,
            Self::Folder { form: FolderForm::ImageNet, .. } => IMAGENET,
        }
    }
}

impl fmt::Display for DatasetChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl DataRecipe {
    /// Shape of the images as the network takes them.
    pub fn input_shape(&self) -> InputShape {
        match (self.geometry, self.dataset) {
            (Some(Geometry { channels, size, .. }), _) => InputShape { channels, height: size, width: size },
            (None, DatasetChoice::Named(name)) => {
                let shape = name.info().shape;
                InputShape { channels: shape.channels, height: shape.height, width: shape.width }
            }
            (None, DatasetChoice::Own { shape, .. }) => shape,
            // One that is missing is told.
            (None, DatasetChoice::Folder { .. }) => InputShape { channels: 3, height: 1, width: 1 },
        }
    }

    /// Number of classes. Of a folder that is not known yet, it is a stand-in.
    pub fn n_classes(&self) -> usize {
        match (self.dataset, self.labels) {
            (DatasetChoice::Named(name), LabelKind::Fine) => name.info().n_classes,
            (DatasetChoice::Named(_), LabelKind::Coarse) => N_COARSE_CLASSES,
            (DatasetChoice::Own { n_classes, .. }, _) => n_classes,
            (DatasetChoice::Folder { n_classes, .. }, _) => n_classes.unwrap_or(2),
        }
    }
}

/// Writes the form that `read_data` reads.
impl Serialize for DataRecipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Numbers {
            mean: Vec<f64>,
            std: Vec<f64>,
        }
        // With the digits of the 32-bit number alone.
        let short = |values: &[f32]| -> Vec<f64> {
            let short = |value: &f32| value.to_string().parse().unwrap_or_else(|_| f64::from(*value));
            values.iter().map(short).collect()
        };
        let Self { dataset, labels, batch_size, train_limit, test_limit, validation, test, .. } = self;
        let Self { split_seed, skip_unreadable, geometry, workers, normalization, augment, .. } = self;
        let mut table = serializer.serialize_struct("data", 17)?;
        table.serialize_field("dataset", dataset.as_str())?;
        if let DatasetChoice::Own { shape, n_classes } = dataset {
            if geometry.is_none() {
                table.serialize_field("shape", &[shape.channels, shape.height, shape.width])?;
            }
            table.serialize_field("classes", n_classes)?;
        }
        if let DatasetChoice::Folder { n_classes: Some(n_classes), .. } = dataset {
            table.serialize_field("classes", n_classes)?;
        }
        if let Some(Geometry { channels, size, resize }) = geometry {
            table.serialize_field("size", size)?;
            table.serialize_field("resize", resize)?;
            table.serialize_field("channels", channels)?;
        }
        table.serialize_field("labels", labels)?;
        table.serialize_field("batch_size", batch_size)?;
        if let Some(limit) = train_limit {
            table.serialize_field("train_limit", limit)?;
        }
        if let Some(limit) = test_limit {
            table.serialize_field("test_limit", limit)?;
        }
        if let Some(workers) = workers {
            table.serialize_field("workers", workers)?;
        }
        if let Some(validation) = validation {
            table.serialize_field("validation", validation)?;
        }
        if let Some(test) = test {
            table.serialize_field("test", test)?;
        }
        if validation.or(*test).is_some() {
            table.serialize_field("split_seed", split_seed)?;
        }
        if *skip_unreadable {
            table.serialize_field("skip_unreadable", skip_unreadable)?;
        }
        if let Some(Normalization { mean, std }) = normalization {
            table.serialize_field("normalization", &Numbers { mean: short(mean), std: short(std) })?;
        }
        if let Some(augment) = augment {
            table.serialize_field("augment", &AugmentTable(augment))?;
        }
        table.end()
    }
}

pub(super) fn read_data(section: Section<'_>) -> DataRecipe {
    let names = DatasetName::ALL.iter().map(|name| (name.as_str(), Kind::Named(*name)));
    let folder = |form| Kind::Folder(form);
    let others =
        [(FOLDER, folder(FolderForm::Classes)), (IMAGENET, folder(FolderForm::ImageNet)), (OWN, Kind::Own)];
    let kind = section.choice("dataset", &names.chain(others).collect::<Vec<_>>());
    let name = if let Kind::Named(name) = kind { Some(name) } else { None };
    // What does not fit another data set may fit the one that is meant.
    let is_known = !section.has_problems();
    let shape = read_shape(&section);
    let n_classes = section.optional_integer("classes", 1..=MAX_CLASSES);
    let geometry = read_geometry(&section, name.filter(|_| is_known).map(|name| name.info().shape.channels));
    let keys = [("shape", SHAPE), ("classes", "the number of classes")];
    let dataset = match kind {
        Kind::Named(name) => {
            for (key, _) in keys.iter().filter(|(key, _)| is_known && section.has(key)) {
                section.problem(key, format!("that of {name} is known: remove this key"));
            }
            DatasetChoice::Named(name)
        }
        Kind::Folder(form) => {
            if section.has("shape") {
                section.problem("shape", "images of a folder are brought to data.size: remove this key");
            }
            if !section.has("size") {
                section
                    .problem("size", "is missing; expected the side that images are brought to, as in 224");
            }
            DatasetChoice::Folder { form, n_classes: n_classes.map(|n| n as usize) }
        }
        Kind::Own => {
            let is_missing = |key: &str| !section.has(key) && (key != "shape" || !section.has("size"));
            for (key, expected) in keys.iter().filter(|(key, _)| is_missing(key)) {
                section.problem(key, format!("is missing; expected {expected}"));
            }
            if section.has("shape") && section.has("size") {
                section.problem("shape", "images are brought to data.size: remove this key");
            }
            let none = InputShape { channels: 1, height: 1, width: 1 };
            let resized = geometry.map(|Geometry { channels, size, .. }| InputShape {
                channels,
                height: size,
                width: size,
            });
            DatasetChoice::Own {
                shape: resized.or(shape).unwrap_or(none),
                n_classes: n_classes.unwrap_or(1) as usize,
            }
        }
    };
    let labels =
        section.optional_choice("labels", &[("fine", LabelKind::Fine), ("coarse", LabelKind::Coarse)]);
    if is_known && labels == Some(LabelKind::Coarse) && name != Some(DatasetName::Cifar100) {
        section.problem("labels", format!("only cifar100 has coarse labels, not {dataset}"));
    }
    // What is built in is known; of files, they themselves decide, and may be data of the user's own.
    let sizes = name.map(|name| name.info()).filter(|info| is_known && info.files.is_empty());
    let limit = |n: Option<usize>| 1..=n.unwrap_or(MAX_IMAGES) as u64;
    let is_folder = matches!(dataset, DatasetChoice::Folder { .. });
    let mut recipe = DataRecipe {
        dataset,
        labels: labels.unwrap_or(LabelKind::Fine),
        batch_size: section.integer("batch_size", 128, 1..=65_536) as usize,
        train_limit: section
            .optional_integer("train_limit", limit(sizes.map(|info| info.n_train)))
            .map(|n| n as usize),
        test_limit: section
            .optional_integer("test_limit", limit(sizes.map(|info| info.n_test)))
            .map(|n| n as usize),
        geometry,
        workers: section.optional_integer("workers", 0..=MAX_WORKERS).map(|n| n as usize),
        validation: read_fraction(&section, "validation"),
        test: read_fraction(&section, "test"),
        skip_unreadable: section.boolean("skip_unreadable", false),
        split_seed: section.integer("split_seed", 0, 0..=i64::MAX as u64),
        normalization: None,
        augment: None,
    };
    for key in
        ["test", "skip_unreadable"].into_iter().filter(|key| is_known && !is_folder && section.has(key))
    {
        section.problem(key, format!("is for data.dataset=\"{FOLDER}\" or \"{IMAGENET}\": remove this key"));
    }
    if section.has("split_seed") && recipe.validation.or(recipe.test).is_none() {
        section.problem("split_seed", "nothing is held back by it: remove this key, or set data.validation");
    }
    let InputShape { channels, height, width } = recipe.input_shape();
    recipe.normalization = section
        .optional_section("normalization")
        .and_then(|section| read_normalization(section, is_known.then_some(channels)));
    recipe.augment = section.optional_section("augment").map(|augment| {
        let side = height.min(width) as u64;
        // That of a folder's images is data.size; that it is missing is told above.
        let is_side_known = is_known && (geometry.is_some() || !is_folder);
        read_augment(augment, geometry, is_side_known.then_some(side), is_known.then_some(channels))
    });
    let n_train = recipe.train_limit.or(sizes.map(|info| info.n_train));
    if let Some(n_train) = n_train.filter(|&n| recipe.batch_size > n) {
        section.problem(
            "batch_size",
            format!("{} is more than the {n_train} training images", recipe.batch_size),
        );
    }
    section.finish();
    recipe
}

/// What a recipe may name as its images.
#[derive(Clone, Copy)]
enum Kind {
    Named(DatasetName),
    Folder(FolderForm),
    Own,
}

/// A fraction of images that is held back.
fn read_fraction(section: &Section<'_>, key: &str) -> Option<f64> {
    // 0 holds nothing back, as the absence of the key.
    section.optional_number(key, &NumberRange::FRACTION).filter(|fraction| *fraction > 0.0)
}

/// The shape of images that the program gives.
fn read_shape(section: &Section<'_>) -> Option<InputShape> {
    let sides = section.optional_integers("shape")?;
    match sides[..] {
        [channels, height, width] if sides.iter().all(|side| (1..=MAX_SIDE).contains(side)) => {
            let [channels, height, width] = [channels, height, width].map(|side| side as usize);
            Some(InputShape { channels, height, width })
        }
        _ => {
            section.problem("shape", format!("expected {SHAPE}, got {sides:?}"));
            None
        }
    }
}

/// Mean and deviation of each of the `channels`, where their number is known.
fn read_normalization(section: Section<'_>, channels: Option<usize>) -> Option<Normalization> {
    let read = |key: &str, is_usable: fn(f32) -> bool, what: &str| -> Vec<f32> {
        let values: Vec<f32> = section.numbers(key).into_iter().map(|value| value as f32).collect();
        let is_complete = channels.is_none_or(|channels| channels == values.len());
        if section.has(key) && !section.any_in(&[&format!("data.normalization.{key}")]) {
            if !is_complete {
                let n = channels.unwrap_or_default();
                section.problem(
                    key,
                    format!("expected {n} numbers, one for each channel, got {}", values.len()),
                );
            } else if !values.iter().all(|&value| is_usable(value)) {
                section.problem(key, format!("expected {what}, got {values:?}"));
            }
        }
        values
    };
    let mean = read("mean", f32::is_finite, "finite numbers");
    let std = read("std", |std| std.is_finite() && std > 0.0, "numbers greater than 0");
    section.finish();
    Some(Normalization { mean, std })
}
