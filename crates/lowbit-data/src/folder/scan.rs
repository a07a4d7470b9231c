//! Looking for images in class folders.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::path::Path;

use super::index::{Container, ImageIndex, MAX_IMAGE_FILE};
use crate::DataError;
use crate::error::{Action, FolderProblem};
use crate::read::not_regular;

/// Endings of names of images, in lower case. What a file is decides its content.
pub(super) const ENDINGS: [&str; 5] = ["jpe", "jpeg", "jfif", "jpg", "png"];

/// Endings of names of images of other kinds, which are passed over.
pub(super) const OTHER_KINDS: [&str; 12] =
    ["avif", "bmp", "gif", "heic", "heif", "jp2", "jxl", "pgm", "ppm", "tif", "tiff", "webp"];

/// As many classes as a label of 16 bits tells apart.
pub(super) const MAX_CLASSES: usize = 1 << 16;

/// Kinds of other files that are counted apart.
const MAX_KINDS: usize = 16;

/// Finds the images of all class folders in `root`, as torchvision's `ImageFolder` does: classes and images in the order of
/// their names, folders in class folders too, links followed. Other than there, hidden files are passed over, and a
/// directory that several links lead to is read once a class.
pub(super) fn scan(root: &Path) -> Result<ImageIndex, DataError> {
    let mut index = ImageIndex::new(root.to_owned(), Vec::new());
    index.containers.push(Container::directory(String::new(), modified(root)?));
    let mut classes = BTreeSet::new();
    for entry in entries(root)? {
        let entry = entry.map_err(|error| DataError::io(root, Action::Read, error))?;
        let name = entry.file_name();
        if is_hidden(&name) {
            index.skipped.hidden += 1;
            continue;
        }
        match kind_of(&entry)? {
            Kind::Directory { .. } => match name.into_string() {
                Ok(name) => drop(classes.insert(name)),
                Err(_) => index.unusable.add(&entry.path(), NOT_TEXT),
            },
            Kind::File(_) => count_other(&mut index, Path::new(&name)),
            Kind::Broken => index.unusable.add(&entry.path(), BROKEN),
            Kind::Special => index.skipped.special += 1,
        }
    }
    if classes.len() > MAX_CLASSES {
        let problem = FolderProblem::TooManyClasses { got: classes.len(), limit: MAX_CLASSES };
        return Err(DataError::Folder { path: root.to_owned(), problem });
    }
    index.classes = classes.into_iter().collect();
    for label in 0..index.classes.len() {
        scan_class(&mut index, label as u16)?;
    }
    index.shrink();
    Ok(index)
}

pub(super) const NOT_TEXT: &str = "its name is no UTF-8: rename it";

pub(super) const BROKEN: &str = "it is a link that leads nowhere";

/// What is wrong with a file of `length` bytes, more than [`MAX_IMAGE_FILE`].
pub(super) fn too_long(length: u64) -> String {
    format!("it has {length} bytes, more than the {MAX_IMAGE_FILE} that are read of an image")
}

/// A file of a class: its directory, its name, its length.
type Found = (u32, String, u32);

fn scan_class(index: &mut ImageIndex, label: u16) -> Result<(), DataError> {
    let class = index.classes[usize::from(label)].clone();
    let mut found: Vec<Found> = Vec::new();
    let mut seen = HashSet::new();
    // A directory counts by its own path, if it has one in the class, and not by a link to it.
    let (mut directories, mut links) = (BTreeSet::from([class]), BTreeSet::new());
    while let Some(directory) = directories.pop_first().or_else(|| links.pop_first()) {
        let path = index.root.join(&directory);
        if !seen.insert(identity(&path)?) {
            index.skipped.links += 1;
            continue;
        }
        let place = index.containers.len() as u32;
        let modified = modified(&path)?;
        for entry in entries(&path)? {
            let entry = entry.map_err(|error| DataError::io(&path, Action::Read, error))?;
            let name = entry.file_name();
            if is_hidden(&name) {
                index.skipped.hidden += 1;
                continue;
            }
            let kind = kind_of(&entry)?;
            // A link without an ending may have led to a folder.
            let is_other = match kind {
                Kind::File(_) => !is_image(Path::new(&name)),
                Kind::Broken => !is_image(Path::new(&name)) && !ending(Path::new(&name)).is_empty(),
                Kind::Directory { .. } | Kind::Special => false,
            };
            if is_other {
                count_other(index, Path::new(&name));
                continue;
            }
            let Ok(name) = name.into_string() else {
                index.unusable.add(&entry.path(), NOT_TEXT);
                continue;
            };
            match kind {
                Kind::Directory { by_link } => {
                    let child = format!("{directory}/{name}");
                    if by_link {
                        links.insert(child)
                    } else {
                        directories.insert(child)
                    };
                }
                Kind::File(length) => match u32::try_from(length) {
                    Ok(length) if length <= MAX_IMAGE_FILE => found.push((place, name, length)),
                    _ => index.unusable.add(&entry.path(), too_long(length)),
                },
                Kind::Broken => index.unusable.add(&entry.path(), BROKEN),
                Kind::Special => index.skipped.special += 1,
            }
        }
        index.containers.push(Container::directory(directory, modified));
    }
    // As Python sorts them: directories as whole texts, then the names in each.
    let directory = |place: u32| &index.containers[place as usize].path;
    found.sort_unstable_by(|a, b| (directory(a.0), &a.1).cmp(&(directory(b.0), &b.1)));
    for (place, name, length) in found {
        index.push(place, &name, length, label)?;
    }
    Ok(())
}

/// What a name in a directory stands for, links followed.
pub(super) enum Kind {
    Directory {
        by_link: bool,
    },
    /// With its length in bytes, where it is an image by its name.
    File(u64),
    Broken,
    Special,
}

pub(super) fn kind_of(entry: &DirEntry) -> Result<Kind, DataError> {
    let path = || entry.path();
    let file_type = entry.file_type().map_err(|error| DataError::io(&path(), Action::Read, error))?;
    if file_type.is_dir() {
        return Ok(Kind::Directory { by_link: false });
    }
    // What is no image by its name is not asked for more: on a network's disk, each question takes time.
    if file_type.is_file() && !is_image(Path::new(&entry.file_name())) {
        return Ok(Kind::File(0));
    }
    let by_link = file_type.is_symlink();
    let metadata = match by_link {
        true => fs::metadata(path()),
        false => entry.metadata(),
    };
    match metadata {
        Ok(metadata) if metadata.is_dir() => Ok(Kind::Directory { by_link }),
        Ok(metadata) if not_regular(&metadata).is_some() => Ok(Kind::Special),
        Ok(metadata) => Ok(Kind::File(metadata.len())),
        // A link to itself is one that leads nowhere, as is one to what is gone.
        Err(error) if by_link && error.kind() != io::ErrorKind::PermissionDenied => Ok(Kind::Broken),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kind::Broken),
        Err(error) => Err(DataError::io(&path(), Action::Read, error)),
    }
}

fn entries(path: &Path) -> Result<fs::ReadDir, DataError> {
    fs::read_dir(path).map_err(|error| DataError::io(path, Action::Read, error))
}

/// When something was last added to a directory or removed from it, if the file system says so.
pub(super) fn modified(path: &Path) -> Result<Option<std::time::SystemTime>, DataError> {
    let metadata = fs::metadata(path).map_err(|error| DataError::io(path, Action::Read, error))?;
    Ok(metadata.modified().ok())
}

/// What tells a directory from all others.
#[cfg(unix)]
fn identity(path: &Path) -> Result<(u64, u64), DataError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(path).map_err(|error| DataError::io(path, Action::Read, error))?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> Result<std::path::PathBuf, DataError> {
    fs::canonicalize(path).map_err(|error| DataError::io(path, Action::Read, error))
}

pub(super) fn is_hidden(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".")
}

fn ending(name: &Path) -> String {
    name.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

pub(super) fn is_image(name: &Path) -> bool {
    ENDINGS.contains(&ending(name).as_str())
}

pub(super) fn count_other(index: &mut ImageIndex, name: &Path) {
    let others = &mut index.skipped.others;
    let ending = ending(name);
    let is_plain = ending.len() <= 8 && ending.bytes().all(|byte| byte.is_ascii_alphanumeric());
    // Names may be anything: what is told of them stays short.
    let is_told =
        others.len() < MAX_KINDS || others.contains_key(&ending) || OTHER_KINDS.contains(&ending.as_str());
    let key = match is_plain && is_told {
        true => ending,
        false => "*".into(),
    };
    *others.entry(key).or_default() += 1;
}
