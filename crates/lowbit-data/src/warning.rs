//! What is doubtful about images that can be read.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use crate::folder::imagenet;
use crate::{DatasetName, Image, Opened, Source, Split};

/// Something about the images of a training that makes its result mean less than it seems to.
///
/// The message is one line.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DataWarning {
    /// The files are not the published ones: data of one's own under the name of a data set.
    NotPublished {
        /// The name.
        name: DatasetName,
        /// The part.
        split: Split,
        /// The directory or archive.
        place: PathBuf,
        /// Images in the files.
        n_images: usize,
        /// CRC-32 of their labels and pixels.
        crc32: u32,
        /// Images of the published files.
        n_published: usize,
    },
    /// The files are the published ones of the other part.
    OtherSplit {
        /// The name.
        name: DatasetName,
        /// The part asked for.
        split: Split,
        /// The part that the files are.
        found: Split,
        /// The directory or archive.
        place: PathBuf,
    },
    /// Training and test images are from different places, and not both as published.
    Places {
        /// The name.
        name: DatasetName,
        /// Where the training images are from.
        train: PathBuf,
        /// Where the test images are from.
        test: PathBuf,
    },
    /// Some classes have no image.
    MissingClasses {
        /// The part.
        split: Split,
        /// Images.
        n_images: usize,
        /// Classes of the data set.
        n_classes: usize,
        /// Those with an image, in ascending order.
        present: Vec<usize>,
    },
    /// Some classes of a folder of images have no image in a part.
    AbsentClasses {
        /// The part.
        split: Split,
        /// Classes of the training images.
        n_classes: usize,
        /// Names of those without an image.
        absent: Vec<String>,
    },
    /// Files of a folder of images are images of kinds that are not decoded.
    OtherKinds {
        /// The part of the folder, as in "val"; empty for one whole.
        part: &'static str,
        /// Files, by the ending of their name.
        files: Vec<(String, u64)>,
    },
    /// Images are beside the class folders, and so of no class.
    NoClass {
        /// The part of the folder, as in "val"; empty for one whole.
        part: &'static str,
        /// Images.
        n_images: u64,
    },
    /// Folders of images are beside `train` that are no parts.
    Beside {
        /// Their names.
        folders: Vec<String>,
    },
    /// The images of `imagenet` are not all that are published.
    PartOfImageNet {
        /// Classes.
        n_classes: usize,
        /// Training images.
        n_train: usize,
        /// Validation images.
        n_validation: usize,
    },
    /// A folder of images has one class.
    OneClass {
        /// Its name.
        class: String,
        /// Training images.
        n_images: usize,
    },
    /// Every pixel of every image has the same value.
    Blank {
        /// The part.
        split: Split,
        /// Images.
        n_images: usize,
        /// The value.
        value: u8,
    },
    /// All pixels are dark, as if on another scale.
    Dark {
        /// The part.
        split: Split,
        /// Images.
        n_images: usize,
        /// The largest pixel value.
        largest: u8,
        /// The value that stands for white.
        max_value: u8,
    },
    /// Most training images are there more than once.
    Copies {
        /// Training images.
        n_images: usize,
        /// Different ones among them.
        n_different: usize,
    },
    /// Test images that are also training images.
    SharedImages {
        /// Test images among the training images.
        n_shared: usize,
        /// Test images.
        n_test: usize,
    },
}

impl fmt::Display for DataWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataWarning::NotPublished { name, split, place, n_images, crc32, n_published } => write!(
                f,
                "the {} images in {} are not the published ones of {name}, but data of your own under its name: {n_images} \
                 with crc32 {crc32:08x}, published are {n_published}",
                of(*split),
                place.display(),
            ),
            DataWarning::OtherSplit { name, split, found, place } => write!(
                f,
                "the {} images in {} are the published {} images of {name}",
                of(*split),
                place.display(),
                of(*found),
            ),
            DataWarning::Places { name, train, test } => write!(
                f,
                "the training images of {name} are from {}, the test images from {}: are they of one data set?",
                train.display(),
                test.display(),
            ),
            DataWarning::MissingClasses { split, n_images, n_classes, present } => {
                let consequence = match split {
                    Split::Train => {
                        "the network cannot learn what is missing; take more images, or shuffle the files"
                    }
                    Split::Validation | Split::Test => {
                        "the accuracy says nothing about what is missing; take more images, or shuffle the files"
                    }
                };
                write!(f, "the {n_images} {} images are of ", of(*split))?;
                match present.as_slice() {
                    [class] => write!(f, "one class only, {class}, of {n_classes}: {consequence}"),
                    present => {
                        let missing: Vec<usize> =
                            (0..*n_classes).filter(|class| present.binary_search(class).is_err()).collect();
                        write!(
                            f,
                            "{} of {n_classes} classes, without {}: {consequence}",
                            present.len(),
                            Few(&missing)
                        )
                    }
                }
            }
            DataWarning::AbsentClasses { split, n_classes, absent } => {
                let (what, n) = (of(*split), absent.len());
                write!(f, "the {what} images are of {} of {n_classes} classes, without ", n_classes - n)?;
                for (i, class) in absent.iter().take(5).enumerate() {
                    write!(f, "{}{class:?}", if i == 0 { "" } else { ", " })?;
                }
                let more = if n > 5 { format!(" and {} more", n - 5) } else { String::new() };
                let consequence = match split {
                    Split::Train => "the network cannot learn what is missing",
                    Split::Validation | Split::Test => "the accuracy says nothing about what is missing",
                };
                write!(f, "{more}: {consequence}; put more images into their folders")
            }
            DataWarning::OtherKinds { part, files } => {
                let n: u64 = files.iter().map(|(_, n)| n).sum();
                let (files_are, them) = if n == 1 { ("file is", "it") } else { ("files are", "them") };
                let kinds: Vec<String> = files.iter().map(|(ending, n)| format!("{n} .{ending}")).collect();
                let place = if part.is_empty() { String::new() } else { format!("in {part}, ") };
                write!(
                    f,
                    "{place}{n} {files_are} passed over, as only JPEG and PNG are read: {}; convert {them} to use {them}",
                    kinds.join(", ")
                )
            }
            DataWarning::NoClass { part, n_images } => {
                let place = if part.is_empty() { String::new() } else { format!("in {part}, ") };
                let images_are = if *n_images == 1 { "image is" } else { "images are" };
                write!(
                    f,
                    "{place}{n_images} {images_are} beside the class folders and passed over: put each image into the folder of its class"
                )
            }
            DataWarning::Beside { folders } => {
                let shown: Vec<String> = folders.iter().take(5).map(|folder| format!("{folder:?}")).collect();
                let more = if folders.len() > 5 {
                    format!(" and {} more", folders.len() - 5)
                } else {
                    String::new()
                };
                write!(
                    f,
                    "images beside train are not read: {}{more}; a class is a folder in train, other parts are called val and test",
                    shown.join(", ")
                )
            }
            DataWarning::PartOfImageNet { n_classes, n_train, n_validation } => write!(
                f,
                "the images are not all of ILSVRC-2012: {n_classes} classes, {n_train} training and {n_validation} validation images; \
                 published are {}, {} and {}",
                imagenet::N_CLASSES,
                imagenet::N_TRAIN,
                imagenet::N_VALIDATION,
            ),
            DataWarning::OneClass { class, n_images: 1 } => write!(
                f,
                "there is one training image, of class {class:?}, so that any network is right: a folder a class is expected"
            ),
            DataWarning::OneClass { class, n_images } => write!(
                f,
                "all {n_images} images are of one class, {class:?}, so that any network is right: a folder a class is expected"
            ),
            DataWarning::Blank { split, n_images, value } => {
                write!(f, "every pixel of the {n_images} {} images is {value}", of(*split))
            }
            DataWarning::Dark { split, n_images, largest, max_value } => write!(
                f,
                "no pixel of the {n_images} {} images is above {largest}, where {max_value} is white: are they on \
                 another scale?",
                of(*split),
            ),
            DataWarning::Copies { n_images, n_different } => {
                write!(
                    f,
                    "only {n_different} of the {n_images} training images differ, the others are copies"
                )
            }
            DataWarning::SharedImages { n_shared, n_test } => write!(
                f,
                "{n_shared} of the {n_test} test images are also training images: the accuracy says little about new \
                 images"
            ),
        }
    }
}

fn of(split: Split) -> &'static str {
    match split {
        Split::Train => "training",
        Split::Validation => "validation",
        Split::Test => "test",
    }
}

/// The first few of a list.
struct Few<'a>(&'a [usize]);

impl fmt::Display for Few<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        let shown = if self.0.len() > SHOWN + 1 { &self.0[..SHOWN] } else { self.0 };
        for (idx, item) in shown.iter().enumerate() {
            write!(f, "{}{item}", if idx == 0 { "" } else { ", " })?;
        }
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// What is doubtful about the images of a training, or of an evaluation, which has no training images. The parts are to
/// be cut to the images used: all but their origin is judged by those.
///
/// ```
/// use lowbit_data::{DatasetName, LabelKind, Locations, Split, open, warnings};
///
/// let [train, test] = [Split::Train, Split::Test]
///     .map(|split| open(DatasetName::Digits, split, LabelKind::Fine, &Locations::default_with(None)));
/// let (train, test) = (train?, test?);
/// assert_eq!(warnings(Some(&train), &test), []);
/// let few = warnings(Some(&train.head(5)?), &test);
/// assert!(few[0].to_string().starts_with("the 5 training images are of 5 of 10 classes, without 4, 6, 7, 8, 9: "));
/// # Ok::<(), lowbit_data::DataError>(())
/// ```
pub fn warnings(train: Option<&Opened>, test: &Opened) -> Vec<DataWarning> {
    let mut warnings: Vec<DataWarning> = train.into_iter().chain([test]).flat_map(of_origin).collect();
    if let Some(train) = train {
        warnings.extend(of_places(train, test));
    }
    for part in train.into_iter().chain([test]) {
        warnings.extend(of_classes(part.split, &part.dataset));
        if part.published.is_none() {
            warnings.extend(
                at_hand(&part.dataset).and_then(|images| of_pixels(part.split, &images, &part.dataset)),
            );
        }
    }
    if let Some(train) =
        train.filter(|train| train.published != Some(train.split) || test.published != Some(test.split))
    {
        warnings.extend(of_copies(&train.dataset, &test.dataset));
    }
    warnings
}

/// The same of a caller's own sources, of whose origin nothing is known. Images are looked at where a source lends them from
/// memory; none is decoded for this.
pub fn source_warnings(train: Option<&dyn Source>, test: &dyn Source) -> Vec<DataWarning> {
    let mut warnings = Vec::new();
    let parts = train.map(|train| (Split::Train, train)).into_iter().chain([(Split::Test, test)]);
    for (split, source) in parts {
        warnings.extend(of_classes(split, source));
        warnings.extend(at_hand(source).and_then(|images| of_pixels(split, &images, source)));
    }
    if let Some(train) = train {
        warnings.extend(of_copies(train, test));
    }
    warnings
}

/// The pixels of all images, where the source lends them; `None` where it has to make any.
fn at_hand(source: &dyn Source) -> Option<Vec<&[u8]>> {
    let pixels = |sample_idx| match source.image(sample_idx) {
        Ok(Image { pixels: Cow::Borrowed(pixels), .. }) => Some(pixels),
        // What cannot be read is the training's to tell.
        _ => None,
    };
    (0..source.info().n_samples).map(pixels).collect()
}

fn of_origin(part: &Opened) -> Option<DataWarning> {
    let place = part.place.clone()?;
    let info = part.name.info();
    match part.published {
        Some(found) if found == part.split => None,
        Some(found) => Some(DataWarning::OtherSplit { name: part.name, split: part.split, found, place }),
        None => Some(DataWarning::NotPublished {
            name: part.name,
            split: part.split,
            place,
            n_images: part.n_in_files,
            crc32: part.crc32_of_files,
            n_published: if part.split == Split::Train { info.n_train } else { info.n_test },
        }),
    }
}

fn of_places(train: &Opened, test: &Opened) -> Option<DataWarning> {
    let as_published = [train, test].iter().all(|part| part.published == Some(part.split));
    match (&train.place, &test.place) {
        (Some(from), Some(to)) if from != to && !as_published => {
            Some(DataWarning::Places { name: train.name, train: from.clone(), test: to.clone() })
        }
        _ => None,
    }
}

fn of_classes(split: Split, source: &dyn Source) -> Option<DataWarning> {
    let info = source.info();
    let (n_images, n_classes) = (info.n_samples, info.n_classes);
    let mut has_image = vec![false; n_classes];
    for label in (0..n_images).map(|sample_idx| source.label(sample_idx)) {
        if let Some(has_image) = has_image.get_mut(usize::from(label)) {
            *has_image = true;
        }
    }
    let present: Vec<usize> = (0..n_classes).filter(|&class| has_image[class]).collect();
    (n_images > 0 && present.len() < n_classes).then_some(DataWarning::MissingClasses {
        split,
        n_images,
        n_classes,
        present,
    })
}

fn of_pixels(split: Split, images: &[&[u8]], source: &dyn Source) -> Option<DataWarning> {
    let (n_images, max_value) = (images.len(), source.info().max_value);
    let smallest = images.iter().filter_map(|image| image.iter().min()).min().copied()?;
    let largest = images.iter().filter_map(|image| image.iter().max()).max().copied()?;
    match largest {
        value if smallest == largest => Some(DataWarning::Blank { split, n_images, value }),
        // An eighth of the range: values of 0 to 1, or of 0 to 16 as in digits.
        largest if largest <= max_value / 8 => {
            Some(DataWarning::Dark { split, n_images, largest, max_value })
        }
        _ => None,
    }
}

/// Published data sets have a few such images too: of CIFAR-100, one test image in ten has a near copy among the training
/// images (Barz and Denzler, "Do we train on test data?", 2020). Less than that is not worth a warning.
fn of_copies(train: &dyn Source, test: &dyn Source) -> Vec<DataWarning> {
    let is_alike = train.info().shape == test.info().shape;
    let images = at_hand(train).filter(|train| is_alike && !train.is_empty()).zip(at_hand(test));
    let Some((train, test)) = images.filter(|(_, test)| !test.is_empty()) else { return Vec::new() };
    let different: HashSet<&[u8]> = train.iter().copied().collect();
    // Blank images have a warning of their own.
    if different.len() == 1 {
        return Vec::new();
    }
    let n_shared = test.iter().filter(|image| different.contains(**image)).count();
    let mut warnings = Vec::new();
    if different.len() <= train.len() / 2 {
        warnings.push(DataWarning::Copies { n_images: train.len(), n_different: different.len() });
    }
    if n_shared * 10 > test.len() {
        warnings.push(DataWarning::SharedImages { n_shared, n_test: test.len() });
    }
    warnings
}
