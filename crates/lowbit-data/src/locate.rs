//! Where data sets are looked for.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cifar::{Layout, Member};
use crate::error::Action;
use crate::read::{DIRECTORY, not_regular};
use crate::{DataError, DatasetName, Split};

/// Where Debian and Ubuntu packages such as `dataset-fashion-mnist` put data sets.
const SYSTEM: &str = "/usr/share/datasets";

/// The places where data sets are looked for, in this order:
///
/// 1. `data_dir/<name>`, then `data_dir` itself;
/// 2. `run_data_dir/<name>`, then `run_data_dir` itself;
/// 3. `data_home/<name>`;
/// 4. `system/<name>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locations {
    /// The directory given by the user, which must exist. For CIFAR it may also be the path of the archive.
    pub data_dir: Option<PathBuf>,
    /// The directory that was given when the run at hand was made; it may be gone.
    pub run_data_dir: Option<PathBuf>,
    /// Where fetched files are kept: `$XDG_DATA_HOME/lowbit`, or `~/.local/share/lowbit`. `None` if there is no home
    /// directory.
    pub data_home: Option<PathBuf>,
    /// Where the system's packages put data sets: `/usr/share/datasets`.
    pub system: PathBuf,
}

impl Locations {
    /// The usual places, with a directory given by the user (`--data-dir`) or not.
    pub fn default_with(data_dir: Option<PathBuf>) -> Self {
        let data_home = data_home(std::env::var_os("XDG_DATA_HOME"), std::env::home_dir());
        Locations { data_dir, run_data_dir: None, data_home, system: SYSTEM.into() }
    }

    /// The directory that fetched files are kept in.
    ///
    /// # Errors
    /// [`DataError::NoDataHome`] if there is none.
    pub fn require_data_home(&self) -> Result<&Path, DataError> {
        self.data_home.as_deref().ok_or(DataError::NoDataHome)
    }

    /// The directories searched for a data set, in order.
    pub fn directories(&self, name: DatasetName) -> Vec<PathBuf> {
        let name = name.as_str();
        let of_run = self.run_data_dir.iter().filter(|dir| Some(*dir) != self.data_dir.as_ref());
        let given = self.data_dir.iter().chain(of_run).flat_map(|dir| [dir.join(name), dir.clone()]);
        let kept = self.data_home.iter().map(|home| home.join(name));
        given.chain(kept).chain([self.system.join(name)]).collect()
    }
}

fn data_home(xdg_data_home: Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The XDG base directory specification: a relative path is invalid and to be ignored.
    let xdg = xdg_data_home.map(PathBuf::from).filter(|path| path.is_absolute());
    let home = home.filter(|path| !path.as_os_str().is_empty());
    xdg.or_else(|| home.map(|home| home.join(".local/share"))).map(|share| share.join("lowbit"))
}

/// Where one part of a data set has been found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// In this crate.
    BuiltIn,
    /// In a pair of IDX files.
    Idx { images: PathBuf, labels: PathBuf },
    /// In `.bin` files.
    CifarFiles(Vec<PathBuf>),
    /// In the archive.
    CifarArchive(PathBuf),
}

impl Found {
    /// The directory or archive.
    pub(crate) fn place(&self) -> Option<&Path> {
        match self {
            Found::BuiltIn => None,
            Found::Idx { images, .. } => images.parent(),
            Found::CifarFiles(files) => files.first().and_then(|file| file.parent()),
            Found::CifarArchive(archive) => Some(archive),
        }
    }
}

/// Looks for one part of a data set. The first place that has any of its files counts.
pub(crate) fn find(name: DatasetName, split: Split, locations: &Locations) -> Result<Found, DataError> {
    if name == DatasetName::Digits {
        return Ok(Found::BuiltIn);
    }
    check_data_dir(locations)?;
    for place in locations.directories(name) {
        if let Some(found) = find_in(name, split, &place)? {
            return Ok(found);
        }
    }
    Err(not_found(name, Some(split), locations))
}

/// The error for a data set, or one part of it, of which there is no file.
pub(crate) fn not_found(name: DatasetName, split: Option<Split>, locations: &Locations) -> DataError {
    let put_into = match (&locations.data_dir, &locations.data_home) {
        (Some(dir), _) | (None, Some(dir)) => dir.join(name.as_str()),
        (None, None) => locations.system.join(name.as_str()),
    };
    let wanted: Vec<String> = match (Layout::of(name), split) {
        (Some(layout), _) => vec![layout.archive.into()],
        (None, split) => {
            let splits = split.map_or(Split::ALL.to_vec(), |split| vec![split]);
            let stems = splits.into_iter().flat_map(idx_stems);
            stems.map(|(stem, kind)| format!("{stem}-{kind}-ubyte.gz")).collect()
        }
    };
    // An archive holds both parts.
    let split = split.filter(|_| Layout::of(name).is_none());
    DataError::NotFound { name, split, searched: locations.directories(name), wanted, put_into }
}

/// Refuses a directory given by the user that is not there, or is neither a directory nor a file.
pub(crate) fn check_data_dir(locations: &Locations) -> Result<(), DataError> {
    let Some(path) = &locations.data_dir else { return Ok(()) };
    match look(path)? {
        Look::Nothing => Err(DataError::DataDirMissing { path: path.clone() }),
        Look::Other(kind) if kind != DIRECTORY => Err(DataError::NotAFile { path: path.clone(), kind }),
        _ => Ok(()),
    }
}

/// Looks for one part of a data set in one place.
fn find_in(name: DatasetName, split: Split, place: &Path) -> Result<Option<Found>, DataError> {
    match Layout::of(name) {
        Some(layout) => find_cifar(name, layout, split, place),
        None => find_idx(name, split, place),
    }
}

/// Where the training and the test images of a data set are looked for first: the directory or archive that holds a file
/// of them, `None` if there is none or the data set is built in. Whether all files are there, and the right ones, is for
/// [`verify`](crate::verify()) to tell.
///
/// # Errors
/// [`DataError`] if a place cannot be looked into.
pub fn places_of(name: DatasetName, locations: &Locations) -> Result<[Option<PathBuf>; 2], DataError> {
    let place_of = |split| match find(name, split, locations) {
        Ok(found) => Ok(found.place().map(Path::to_owned)),
        Err(DataError::MissingFile { dir, .. }) => Ok(Some(dir)),
        Err(DataError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    Ok([place_of(Split::Train)?, place_of(Split::Test)?])
}

/// The parts of the names of the image and the label file.
fn idx_stems(split: Split) -> [(&'static str, &'static str); 2] {
    match split {
        Split::Train | Split::Validation => [("train-images", "idx3"), ("train-labels", "idx1")],
        Split::Test => [("t10k-images", "idx3"), ("t10k-labels", "idx1")],
    }
}

/// The file of one stem in a directory, under any of its names.
fn idx_file(dir: &Path, (stem, kind): (&str, &str)) -> Result<Option<PathBuf>, DataError> {
    // Some copies have a dot where the published name has a dash.
    let names = ["-", "."].map(|separator| format!("{stem}{separator}{kind}-ubyte"));
    first_file(names.into_iter().flat_map(|name| [dir.join(format!("{name}.gz")), dir.join(name)]))
}

/// The files of one part in a directory that may lack some of them: the path of each, or its name if it is missing.
pub(crate) fn present(name: DatasetName, split: Split, dir: &Path) -> Vec<Result<PathBuf, String>> {
    let cifar_file = |file: &Member| {
        Some(dir.join(file.name)).filter(|path| path.is_file()).ok_or_else(|| file.name.to_owned())
    };
    match Layout::of(name) {
        Some(layout) => layout.files(split).iter().map(cifar_file).collect(),
        None => idx_stems(split)
            .map(|(stem, kind)| match idx_file(dir, (stem, kind)) {
                Ok(Some(path)) => Ok(path),
                _ => Err(format!("{stem}-{kind}-ubyte.gz")),
            })
            .into(),
    }
}

fn find_idx(name: DatasetName, split: Split, dir: &Path) -> Result<Option<Found>, DataError> {
    let stems = idx_stems(split);
    let [images, labels] = stems.map(|stem| idx_file(dir, stem));
    let missing = |(stem, kind): (&str, &str)| DataError::MissingFile {
        name,
        dir: dir.to_owned(),
        expected: format!("{stem}-{kind}-ubyte.gz"),
    };
    match (images?, labels?) {
        (Some(images), Some(labels)) => Ok(Some(Found::Idx { images, labels })),
        (None, None) => Ok(None),
        (None, Some(_)) => Err(missing(stems[0])),
        (Some(_), None) => Err(missing(stems[1])),
    }
}

fn find_cifar(
    name: DatasetName,
    layout: &Layout,
    split: Split,
    place: &Path,
) -> Result<Option<Found>, DataError> {
    if matches!(look(place)?, Look::File) {
        // Under the name of the other archive it is the other one; under any name of its own it may be either.
        let is_other = DatasetName::ALL.iter().filter_map(|&other| Layout::of(other)).any(|other| {
            other.archive != layout.archive && place.file_name() == Some(other.archive.as_ref())
        });
        return Ok((!is_other).then(|| Found::CifarArchive(place.to_owned())));
    }
    let wanted = layout.files(split);
    for dir in [place.to_owned(), place.join(layout.folder)] {
        let files: Vec<PathBuf> = wanted.iter().map(|file| dir.join(file.name)).collect();
        let present = files.iter().map(|file| expect_file(file)).collect::<Result<Vec<bool>, _>>()?;
        match present.iter().position(|present| !present) {
            None => return Ok(Some(Found::CifarFiles(files))),
            Some(missing) if present.contains(&true) => {
                return Err(DataError::MissingFile { name, dir, expected: wanted[missing].name.into() });
            }
            Some(_) => {}
        }
    }
    Ok(first_file([place.join(layout.archive)])?.map(Found::CifarArchive))
}

/// The first candidate that is a file. If there is none, but something else has the name of one, it is an error: a
/// directory may have it beside the file, as some programs that unpack make one.
fn first_file(candidates: impl IntoIterator<Item = PathBuf>) -> Result<Option<PathBuf>, DataError> {
    let mut other = None;
    for path in candidates {
        match look(&path)? {
            Look::File => return Ok(Some(path)),
            Look::Other(kind) => other = other.or(Some(DataError::NotAFile { path, kind })),
            Look::Nothing => {}
        }
    }
    other.map_or(Ok(None), Err)
}

/// What is at a path. Unlike [`Path::is_file`], tells "not there" from "not allowed to look".
enum Look {
    File,
    Nothing,
    /// A directory, FIFO or device.
    Other(&'static str),
}

fn look(path: &Path) -> Result<Look, DataError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(not_regular(&metadata).map_or(Look::File, Look::Other)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Look::Nothing)
        }
        Err(e) => Err(DataError::io(path, Action::Read, e)),
    }
}

/// Whether there is a file; anything else of its name is an error.
pub(crate) fn expect_file(path: &Path) -> Result<bool, DataError> {
    Ok(first_file([path.to_owned()])?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_home_follows_xdg() {
        let check = |xdg: Option<&str>, home: Option<&str>, expected: Option<&str>| {
            assert_eq!(data_home(xdg.map(Into::into), home.map(Into::into)), expected.map(PathBuf::from));
        };
        check(Some("/xdg"), Some("/home/u"), Some("/xdg/lowbit"));
        check(None, Some("/home/u"), Some("/home/u/.local/share/lowbit"));
        check(Some("relative"), Some("/home/u"), Some("/home/u/.local/share/lowbit"));
        check(Some(""), Some("/home/u"), Some("/home/u/.local/share/lowbit"));
        check(None, Some(""), None);
        check(None, None, None);
    }

    #[test]
    fn order_of_search() {
        let locations = Locations {
            data_dir: Some("/given".into()),
            run_data_dir: Some("/of-run".into()),
            data_home: Some("/home/u/.local/share/lowbit".into()),
            system: SYSTEM.into(),
        };
        let expected = [
            "/given/fashion-mnist",
            "/given",
            "/of-run/fashion-mnist",
            "/of-run",
            "/home/u/.local/share/lowbit/fashion-mnist",
            "/usr/share/datasets/fashion-mnist",
        ];
        assert_eq!(locations.directories(DatasetName::FashionMnist), expected.map(PathBuf::from));
    }
}
