//! ILSVRC-2012 as it is published: folders or a tar of tars for training, and validation images whose classes a file says.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::archive::{Archive, Found, Member, is_archive, within};
use super::index::{Container, ImageIndex, MAX_IMAGE_FILE};
use super::scan::{BROKEN, Kind, NOT_TEXT, count_other, is_hidden, is_image, kind_of, modified, too_long};
use crate::DataError;
use crate::error::{Action, FolderProblem};

/// Classes that are published.
pub(crate) const N_CLASSES: usize = 1000;
/// Training images that are published.
pub(crate) const N_TRAIN: usize = 1_281_167;
/// Validation images that are published.
pub(crate) const N_VALIDATION: usize = 50_000;

/// The archives by their published names.
const TRAIN_TAR: &str = "ILSVRC2012_img_train.tar";
const VAL_TAR: &str = "ILSVRC2012_img_val.tar";

/// Where the folders are, below the one that is given: there, or as in the archive of Kaggle.
const BASES: [&str; 2] = ["", "ILSVRC/Data/CLS-LOC"];

/// Files that say the classes of the validation images, by their usual names.
pub(super) const LABELS: [&str; 4] =
    ["LOC_val_solution.csv", "imagenet_2012_validation_synset_labels.txt", "val_synsets.txt", "val.txt"];

/// The longest of these that is read: 50,000 lines are less than 4 MiB.
const MAX_LABELS: u64 = 64 << 20;

/// Where a part is.
pub(super) enum Place {
    /// Class folders.
    Folders(PathBuf),
    /// Images without folders, and the file that says their classes.
    Flat(PathBuf, PathBuf),
    /// A tar of tars.
    TarOfTars(PathBuf),
    /// A tar of images, and the file that says their classes.
    Tar(PathBuf, PathBuf),
}

impl Place {
    /// What its index is of.
    pub(super) fn path(&self) -> &Path {
        match self {
            Place::Folders(path) | Place::Flat(path, _) | Place::TarOfTars(path) | Place::Tar(path, _) => {
                path
            }
        }
    }

    /// What its index has for its root.
    pub(super) fn root(&self) -> &Path {
        match self {
            Place::Folders(path) | Place::Flat(path, _) => path,
            Place::TarOfTars(path) | Place::Tar(path, _) => path.parent().unwrap_or(path),
        }
    }

    /// Finds its images; `classes` are those of the training images, which are not known yet for these themselves.
    pub(super) fn scan(&self, classes: &[String]) -> Result<ImageIndex, DataError> {
        match self {
            Place::Folders(path) => super::scan::scan(path),
            Place::Flat(path, labels) => scan_flat(path, &Labels::read(labels)?, classes),
            Place::TarOfTars(path) => scan_tar_of_tars(path),
            Place::Tar(path, labels) => scan_tar(path, &Labels::read(labels)?, classes),
        }
    }
}

/// Where the training and the validation images are.
pub(super) fn find(root: &Path) -> Result<[Place; 2], DataError> {
    let below = |name: &str| BASES.map(|base| root.join(base).join(name));
    let folder = |name: &str| below(name).into_iter().find(|path| super::has_folders(path));
    let archive = |name: &str| Some(root.join(name)).filter(|path| path.is_file());
    let missing = |what, expected| {
        Err(DataError::Folder {
            path: root.to_owned(),
            problem: FolderProblem::NoImageNet { what, expected },
        })
    };
    let train = match (folder("train"), archive(TRAIN_TAR)) {
        (Some(path), _) => Place::Folders(path),
        (None, Some(path)) => Place::TarOfTars(path),
        (None, None) => return missing("training", "train/nXXXXXXXX/*.JPEG or ILSVRC2012_img_train.tar"),
    };
    if let Some(path) = folder("val") {
        return Ok([train, Place::Folders(path)]);
    }
    let flat = below("val").into_iter().find(|path| path.is_dir());
    let labels = || {
        let places = BASES.iter().flat_map(|base| [root.join(base), root.join(base).join("val")]);
        let mut files = places.flat_map(|place| LABELS.map(|name| place.join(name)));
        match files.find(|path| path.is_file()) {
            Some(path) => Ok(path),
            None => Err(DataError::Folder {
                path: root.to_owned(),
                problem: FolderProblem::NoLabels { expected: &LABELS },
            }),
        }
    };
    let val = match (flat, archive(VAL_TAR)) {
        (Some(path), _) => Place::Flat(path, labels()?),
        (None, Some(path)) => Place::Tar(path, labels()?),
        (None, None) => {
            return missing("validation", "val/nXXXXXXXX/*.JPEG, val/*.JPEG or ILSVRC2012_img_val.tar");
        }
    };
    Ok([train, val])
}

/// The classes of the validation images.
struct Labels {
    path: PathBuf,
    /// By the name of the image without its ending; or, of a list without names, in their order.
    by_name: HashMap<String, String>,
    in_order: Vec<String>,
}

impl Labels {
    /// Reads one class a line (of the images in the order of their names), lines of an image and its class, or Kaggle's table.
    fn read(path: &Path) -> Result<Self, DataError> {
        let problem = |line: usize| DataError::Folder {
            path: path.to_owned(),
            problem: FolderProblem::NoClassInLine { line },
        };
        let mut bytes = Vec::new();
        let file = crate::read::open_regular(path)?;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_LABELS), &mut bytes)
            .map_err(|error| DataError::io(path, Action::Read, error))?;
        let text = String::from_utf8_lossy(&bytes);
        let is_synset = |word: &str| {
            word.len() == 9 && word.starts_with('n') && word[1..].bytes().all(|b| b.is_ascii_digit())
        };
        let mut labels = Labels { path: path.to_owned(), by_name: HashMap::new(), in_order: Vec::new() };
        // A byte order mark is no part of the first line.
        for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let words: Vec<&str> = line.split([',', ' ', '\t']).filter(|word| !word.is_empty()).collect();
            match words[..] {
                [] => {}
                ["ImageId", ..] if number == 0 => {}
                [class] if is_synset(class) => labels.in_order.push(class.into()),
                [image, class, ..] if is_synset(class) => {
                    let before = labels.by_name.insert(stem(image).to_owned(), class.into());
                    if before.is_some_and(|before| before != class) {
                        let problem = FolderProblem::TwoLabels { line: number + 1 };
                        return Err(DataError::Folder { path: path.to_owned(), problem });
                    }
                }
                _ => return Err(problem(number + 1)),
            }
        }
        match labels.by_name.is_empty() || labels.in_order.is_empty() {
            true => Ok(labels),
            false => Err(problem(1)),
        }
    }

    /// The labels of images, which come in the order of their names.
    fn of(&self, names: &[String], classes: &[String]) -> Result<Vec<u16>, DataError> {
        let problem = |problem| DataError::Folder { path: self.path.clone(), problem };
        if !self.in_order.is_empty() && self.in_order.len() != names.len() {
            let (n_lines, n_images) = (self.in_order.len(), names.len());
            return Err(problem(FolderProblem::LabelCount { n_lines, n_images }));
        }
        let label = |(number, name): (usize, &String)| {
            let class = self.in_order.get(number).or_else(|| self.by_name.get(stem(name)));
            let class = class.ok_or_else(|| {
                problem(FolderProblem::NoLabelOf { image: name.escape_debug().to_string() })
            })?;
            classes.binary_search(class).map(|label| label as u16).map_err(|_| {
                problem(FolderProblem::UnknownClass {
                    part: "val",
                    class: class.clone(),
                    n_unknown: 1,
                    n_part: self.n_classes(),
                    n_train: classes.len(),
                })
            })
        };
        names.iter().enumerate().map(label).collect()
    }

    fn n_classes(&self) -> usize {
        let all = self.in_order.iter().chain(self.by_name.values());
        all.collect::<std::collections::HashSet<_>>().len()
    }
}

/// The name of an image without folder and ending.
fn stem(name: &str) -> &str {
    let name = name.rsplit('/').next().unwrap_or(name);
    name.split('.').next().unwrap_or(name)
}

fn scan_flat(path: &Path, labels: &Labels, classes: &[String]) -> Result<ImageIndex, DataError> {
    let mut index = ImageIndex::new(path.to_owned(), classes.to_vec());
    index.containers.push(Container::directory(String::new(), modified(path)?));
    // With their lengths; `None` for what cannot be used.
    let mut found: Vec<(String, Option<u32>)> = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| DataError::io(path, Action::Read, error))? {
        let entry = entry.map_err(|error| DataError::io(path, Action::Read, error))?;
        let name = entry.file_name();
        if is_hidden(&name) {
            index.skipped.hidden += 1;
            continue;
        }
        let kind = kind_of(&entry)?;
        if !is_image(Path::new(&name)) {
            count_other(&mut index, Path::new(&name));
            continue;
        }
        let length = match kind {
            Kind::File(length) if length <= MAX_IMAGE_FILE.into() => Ok(length as u32),
            Kind::File(length) => Err(too_long(length)),
            Kind::Broken => Err(BROKEN.into()),
            Kind::Directory { .. } => {
                count_other(&mut index, Path::new(&name));
                continue;
            }
            Kind::Special => {
                index.skipped.special += 1;
                continue;
            }
        };
        let length = if name.to_str().is_some() { length } else { Err(NOT_TEXT.into()) };
        let length = length.map_err(|reason| index.unusable.add(&entry.path(), reason)).ok();
        // A list without names has a line for what cannot be used too.
        if length.is_some() || !labels.in_order.is_empty() {
            found.push((name.to_string_lossy().into_owned(), length));
        }
    }
    found.sort_unstable();
    let (names, lengths): (Vec<String>, Vec<Option<u32>>) = found.into_iter().unzip();
    for ((name, length), label) in names.iter().zip(lengths).zip(labels.of(&names, classes)?) {
        if let Some(length) = length {
            index.push(0, name, length, label)?;
        }
    }
    index.shrink();
    Ok(index)
}

/// The index of an archive: its root is the folder that it is in.
fn of_archive(path: &Path, archive: &Archive<'_>) -> Result<ImageIndex, DataError> {
    let mut index = ImageIndex::new(path.parent().unwrap_or(Path::new("")).to_owned(), Vec::new());
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    index.containers.push(archive.container(name)?);
    Ok(index)
}

fn scan_tar(path: &Path, labels: &Labels, classes: &[String]) -> Result<ImageIndex, DataError> {
    let archive = Archive::open(path)?;
    let mut index = of_archive(path, &archive)?;
    index.classes = classes.to_vec();
    let mut members = images_of(&archive, 0, None, &mut index, path)?;
    members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<String> = members.iter().map(|member| member.name.clone()).collect();
    for (member, label) in members.into_iter().zip(labels.of(&names, classes)?) {
        push(&mut index, path, &member, label)?;
    }
    index.shrink();
    Ok(index)
}

/// Appends an image of the archive at `path`, if it can be used.
fn push(index: &mut ImageIndex, path: &Path, member: &Member, label: u16) -> Result<(), DataError> {
    if member.length > MAX_IMAGE_FILE.into() {
        index.unusable.add(&within(path, &member.name), too_long(member.length));
        return Ok(());
    }
    index.push(0, &member.name, member.length as u32, label)?;
    index.offsets.push(member.offset);
    Ok(())
}

/// The images of an archive, or of a member of it, of any length.
fn images_of(
    archive: &Archive<'_>,
    start: u64,
    length: Option<u64>,
    index: &mut ImageIndex,
    path: &Path,
) -> Result<Vec<Member>, DataError> {
    let mut members = Vec::new();
    let seen = |found: Found| {
        match found {
            Found::File(member) if is_image(Path::new(&member.name)) => members.push(member),
            Found::File(member) => count_other(index, Path::new(&member.name)),
            Found::Odd(name, reason) => index.unusable.add(&within(path, &name), reason),
        }
        Ok(())
    };
    match length {
        Some(length) => archive.members_within(start, length, seen)?,
        None => archive.members(seen)?,
    }
    Ok(members)
}

fn scan_tar_of_tars(path: &Path) -> Result<ImageIndex, DataError> {
    let archive = Archive::open(path)?;
    let mut index = of_archive(path, &archive)?;
    let mut inner: Vec<Member> = Vec::new();
    archive.members(|found| {
        match found {
            Found::File(member) if is_archive(&member.name) => inner.push(member),
            Found::File(member) => count_other(&mut index, Path::new(&member.name)),
            Found::Odd(name, reason) => index.unusable.add(&within(path, &name), reason),
        }
        Ok(())
    })?;
    inner.sort_unstable_by(|a, b| (stem(&a.name), &a.name).cmp(&(stem(&b.name), &b.name)));
    inner.dedup_by(|second, first| {
        let is_same = stem(&second.name) == stem(&first.name);
        if is_same {
            let reason = format!("it is of the same class as {}", first.name);
            index.unusable.add(&within(path, &second.name), reason);
        }
        is_same
    });
    index.classes = inner.iter().map(|member| stem(&member.name).to_owned()).collect();
    if index.classes.len() > super::scan::MAX_CLASSES {
        let problem =
            FolderProblem::TooManyClasses { got: index.classes.len(), limit: super::scan::MAX_CLASSES };
        return Err(DataError::Folder { path: path.to_owned(), problem });
    }
    for (label, class) in inner.iter().enumerate() {
        let path = within(path, &class.name);
        let mut members = images_of(&archive, class.offset, Some(class.length), &mut index, &path)?;
        members.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for member in members {
            push(&mut index, &path, &member, label as u16)?;
        }
    }
    index.shrink();
    Ok(index)
}
