//! Images of one's own: a folder for each class.

mod archive;
pub(crate) mod imagenet;
mod index;
mod index_file;
mod pack;
mod scan;
mod sheet;
mod source;
mod stats;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use index::{ImageIndex, MAX_IMAGE_FILE, Skipped, Unusable, one_line};
pub use index_file::index_cache;
pub use pack::{PackSettings, Packed, pack};
pub use sheet::contact_sheet;
pub use source::{FolderImages, Unreadable};
pub use stats::{ImageStats, Spread};

use index::Container;
use index_file::Role;

use crate::error::{Action, FolderProblem};
use crate::{DataError, DataWarning, DecodeLimits, Fractions, Source, Split, decode, divide, subset};

/// Folders with at least as many images have their index kept as a file by itself.
const KEPT_FROM: usize = 10_000;

/// A folder of images as it is found, in one of these forms:
///
/// | form | |
/// |---|---|
/// | `train/<class>/*`, `val/<class>/*`, `test/<class>/*` | divided already; `val` may be called `valid` or `validation`, and it or `test` may be absent |
/// | `<class>/*` | one whole, to be divided by [`Fractions`] |
///
/// ```no_run
/// use lowbit_data::{Fractions, ImageFolder, Source};
///
/// let folder = ImageFolder::open("flowers".as_ref())?;
/// let images = folder.images(&Fractions { test: 0.2, ..Fractions::default() })?;
/// println!("{} training images of {} classes", images.train.info().n_samples, images.classes.len());
/// # Ok::<(), lowbit_data::DataError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ImageFolder {
    root: PathBuf,
    parts: Vec<FolderPart>,
    /// Doubts about what was found, before it is divided.
    doubts: Vec<DataWarning>,
}

/// A part of an [`ImageFolder`].
#[derive(Clone, Debug)]
pub struct FolderPart {
    /// Its folder, as in "val"; empty for one whole.
    pub name: &'static str,
    /// Its images.
    pub index: Arc<ImageIndex>,
    /// The file of its index, if it was read from there.
    pub index_file: Option<PathBuf>,
}

/// The images of an [`ImageFolder`], divided.
#[derive(Clone, Debug)]
pub struct FolderSplit {
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Those that are trained on.
    pub train: Arc<dyn Source>,
    /// Those by which something is chosen.
    pub validation: Option<Arc<dyn Source>>,
    /// Those that are scored at the end.
    pub test: Arc<dyn Source>,
    /// The folders that training, validation and test images are from, as in "val"; "" for one whole. Without validation images,
    /// the second says nothing.
    pub folders: [&'static str; 3],
    /// What is doubtful about them.
    pub warnings: Vec<DataWarning>,
}

const TRAIN: &str = "train";
const TEST: &str = "test";
const VALIDATION: [&str; 3] = ["val", "valid", "validation"];

impl ImageFolder {
    /// Finds the images in `root`. The index of a large folder is kept as a file in the user's cache ([`index_cache`]), by which
    /// the next start is fast.
    ///
    /// # Errors
    /// [`DataError`] if it is no folder of class folders, or cannot be read.
    pub fn open(root: &Path) -> Result<Self, DataError> {
        Self::open_with(root, index_cache().as_deref(), KEPT_FROM)
    }

    /// The same, scanned anew. The index is kept in `cache` whatever its size.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn scan(root: &Path, cache: Option<&Path>) -> Result<Self, DataError> {
        let mut folder = Self::open_with(root, None, 0)?;
        for part in &mut folder.parts {
            part.index_file = cache.and_then(|cache| kept(cache, part.name, &part.index));
        }
        Ok(folder)
    }

    fn open_with(root: &Path, cache: Option<&Path>, kept_from: usize) -> Result<Self, DataError> {
        if !root.exists() {
            return Err(DataError::DataDirMissing { path: root.to_owned() });
        }
        let root = fs::canonicalize(root).map_err(|error| DataError::io(root, Action::Read, error))?;
        let metadata = fs::metadata(&root).map_err(|error| DataError::io(&root, Action::Read, error))?;
        let folder = |problem| DataError::Folder { path: root.clone(), problem };
        if !metadata.is_dir() {
            return Err(folder(FolderProblem::NotAFolder));
        }
        let mut present = Vec::new();
        for name in [TRAIN].into_iter().chain(VALIDATION).chain([TEST]) {
            let path = root.join(name);
            if path.is_symlink() && !path.exists() {
                let (first, reason) = (index::one_line(&path), scan::BROKEN.into());
                return Err(folder(FolderProblem::Unusable { n: 1, first, reason }));
            }
            if has_folders(&path) || !shards_in(&path)?.is_empty() {
                present.push(name);
            }
        }
        let has = |name: &&'static str| present.contains(name);
        let mut names = Vec::new();
        if has(&TRAIN) {
            // What is there, but of no class, would be passed over without a word.
            let is_filled = |part: &&&'static str| {
                !has(part) && fs::read_dir(root.join(part)).is_ok_and(|mut entries| entries.next().is_some())
            };
            // One that was not packed to its end is told below.
            if let Some(part) = VALIDATION.iter().chain(&[TEST]).find(is_filled)
                && pack::expected_images(&root).is_none()
            {
                return Err(folder(FolderProblem::NoClassesInPart { part }));
            }
            names.push(TRAIN);
            match VALIDATION.iter().copied().filter(has).collect::<Vec<_>>()[..] {
                [] => {}
                [name] => names.push(name),
                [first, second, ..] => return Err(folder(FolderProblem::TwoOfOne { first, second })),
            }
            names.extend(has(&TEST).then_some(TEST));
        } else {
            names.push("");
        }
        let part = |name: &'static str| {
            let path = if name.is_empty() { root.clone() } else { root.join(name) };
            let file = cache
                .map(|cache| index_file::file_of(cache, &path, role_of(name)))
                .filter(|file| file.exists());
            let known = file.as_ref().and_then(|file| index_file::read(file, &path));
            let (index, index_file) = match known {
                Some(index) => (index, file),
                None => {
                    let index = scan_part(&path, name)?;
                    let kept = cache
                        .filter(|_| index.len() >= kept_from)
                        .and_then(|cache| kept(cache, name, &index));
                    (index, kept)
                }
            };
            Ok(FolderPart { name, index: Arc::new(index), index_file })
        };
        let parts = names.into_iter().map(part).collect::<Result<Vec<_>, DataError>>()?;
        expect_all_packed(&root, &parts)?;
        parts.iter().try_for_each(|part| expect_images(&part.index))?;
        if let [FolderPart { name: "", index, .. }] = parts.as_slice()
            && index.classes().iter().all(|class| is_part_name(class))
        {
            return Err(folder(FolderProblem::PartsAsClasses { names: index.classes().to_vec() }));
        }
        let mut doubts = other_kinds(&parts);
        if parts[0].name == TRAIN {
            doubts.extend(beside(&root)?);
        }
        Ok(ImageFolder { root, parts, doubts })
    }

    /// Finds the images of ILSVRC-2012 in `root`, as they are published or unpacked: `train/nXXXXXXXX/*.JPEG` or
    /// `ILSVRC2012_img_train.tar`, a tar of tars that is read in place; and `val/nXXXXXXXX/*.JPEG`, or `val/*.JPEG` or
    /// `ILSVRC2012_img_val.tar` with a file that says the classes. The folders may be in `ILSVRC/Data/CLS-LOC`, as Kaggle's are.
    /// The index of the training images is kept as by [`open`](Self::open).
    ///
    /// # Errors
    /// [`DataError`] if something is missing, or cannot be read.
    pub fn open_imagenet(root: &Path) -> Result<Self, DataError> {
        Self::open_imagenet_with(root, index_cache().as_deref(), true)
    }

    /// The same, scanned anew. The indices are kept in `cache` whatever their size.
    ///
    /// # Errors
    /// As [`open_imagenet`](Self::open_imagenet).
    pub fn scan_imagenet(root: &Path, cache: Option<&Path>) -> Result<Self, DataError> {
        Self::open_imagenet_with(root, cache, false)
    }

    /// With an index that was kept, or with none.
    fn open_imagenet_with(root: &Path, cache: Option<&Path>, is_known: bool) -> Result<Self, DataError> {
        if !root.exists() {
            return Err(DataError::DataDirMissing { path: root.to_owned() });
        }
        let root = fs::canonicalize(root).map_err(|error| DataError::io(root, Action::Read, error))?;
        let [train, val] = imagenet::find(&root)?;
        let keep = |index: &ImageIndex, place: &imagenet::Place| {
            let cache = cache.filter(|_| !is_known || index.len() >= KEPT_FROM)?;
            let file = index_file::file_of(cache, place.path(), Role::ImageNet);
            index_file::write(&file, index).ok().map(|()| file)
        };
        let file =
            cache.filter(|_| is_known).map(|cache| index_file::file_of(cache, train.path(), Role::ImageNet));
        let known = file.and_then(|file| Some((index_file::read(&file, train.root())?, Some(file))));
        let (index, index_file) = match known {
            Some(known) => known,
            None => {
                let index = train.scan(&[])?;
                let kept = keep(&index, &train);
                (index, kept)
            }
        };
        expect_images(&index)?;
        let held = val.scan(index.classes())?;
        expect_images(&held)?;
        let val_file = if is_known { None } else { keep(&held, &val) };
        let train = FolderPart { name: TRAIN, index: Arc::new(index), index_file };
        let val = FolderPart { name: VALIDATION[0], index: Arc::new(held), index_file: val_file };
        let counts @ [n_classes, n_train, n_validation] =
            [train.index.classes().len(), train.index.len(), val.index.len()];
        let published = [imagenet::N_CLASSES, imagenet::N_TRAIN, imagenet::N_VALIDATION];
        let parts = vec![train, val];
        let mut doubts = other_kinds(&parts);
        if counts != published {
            doubts.push(DataWarning::PartOfImageNet { n_classes, n_train, n_validation });
        }
        Ok(ImageFolder { root, parts, doubts })
    }

    /// The folder, by its one name.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its parts: one if it is one whole, else the training images first.
    pub fn parts(&self) -> &[FolderPart] {
        &self.parts
    }

    /// Names of the classes: those of the training images.
    pub fn classes(&self) -> &[String] {
        self.parts[0].index.classes()
    }

    /// The images of a part as they are decoded.
    pub fn part_images(&self, part: &FolderPart) -> Result<FolderImages, DataError> {
        FolderImages::new(self.name_of(part), Arc::clone(&part.index), self.classes()).map_err(|classes| {
            let problem = FolderProblem::UnknownClass {
                part: part.name,
                class: classes.first().cloned().unwrap_or_default(),
                n_unknown: classes.len(),
                n_part: part.index.classes().len(),
                n_train: self.classes().len(),
            };
            DataError::Folder { path: self.root.clone(), problem }
        })
    }

    fn name_of(&self, part: &FolderPart) -> String {
        let name = self.root.file_name().unwrap_or(self.root.as_os_str());
        let name = index::one_line(Path::new(name));
        if part.name.is_empty() { name } else { format!("{name}/{}", part.name) }
    }

    /// Refuses a folder with files that are images by their name, but cannot be used.
    ///
    /// # Errors
    /// [`DataError::Folder`] with the first.
    pub fn expect_usable(&self) -> Result<(), DataError> {
        for FolderPart { index, .. } in &self.parts {
            let Unusable { n, first } = index.unusable();
            if let Some((path, reason)) = first.first() {
                let problem = FolderProblem::Unusable { n: *n, first: path.clone(), reason: reason.clone() };
                return Err(DataError::Folder { path: index.root().to_owned(), problem });
            }
        }
        Ok(())
    }

    /// All images that cannot be decoded: every one is read, on `n_threads` threads.
    ///
    /// # Errors
    /// If a file cannot be read, or has changed since it was indexed: it may be a good image. If a part has a class that the
    /// training images do not have.
    pub fn unreadable(&self, n_threads: usize) -> Result<Vec<Unreadable>, DataError> {
        let mut unreadable = Vec::new();
        for part in &self.parts {
            for (image, reason) in self.part_images(part)?.decode_all(n_threads, |_, _| true) {
                // The file is read once more: what fails to be read, now or only before, says nothing of the image in it.
                let bytes = part.index.read(image)?;
                if decode(&bytes, &DecodeLimits::default()).is_err() {
                    let path = part.index.name(image);
                    unreadable.push(Unreadable { part: part.name, image, path, reason });
                }
            }
        }
        Ok(unreadable)
    }

    /// The same folder without some of its images, which are named by part and index.
    #[must_use]
    pub fn without(mut self, images: &[Unreadable]) -> Self {
        for part in &mut self.parts {
            let of_part = images.iter().filter(|image| image.part == part.name).map(|image| image.image);
            let indices: HashSet<usize> = of_part.collect();
            if !indices.is_empty() {
                part.index = Arc::new(part.index.without(&indices));
            }
        }
        self
    }

    /// The images, divided. Where there are training and validation images, but no test images, the validation images are those
    /// that are scored at the end, as is customary for ImageNet; validation images are then taken from the training images.
    ///
    /// # Errors
    /// [`DataError::Folder`] if there is nothing to score at the end, a fraction is given of what is there already, or a part has
    /// a class that the training images do not have.
    pub fn images(&self, fractions: &Fractions) -> Result<FolderSplit, DataError> {
        let problem = |problem| DataError::Folder { path: self.root.clone(), problem };
        let find = |names: &[&str]| self.parts[1..].iter().find(|part| names.contains(&part.name));
        let (validation, test) = match (find(&VALIDATION), find(&[TEST])) {
            (Some(validation), None) => (None, Some(validation)),
            parts => parts,
        };
        if let Some(part) = test.filter(|_| fractions.test > 0.0) {
            return Err(problem(FolderProblem::Needless { key: "data.test", part: part.name }));
        }
        if let Some(part) = validation.filter(|_| fractions.validation > 0.0) {
            return Err(problem(FolderProblem::Needless { key: "data.validation", part: part.name }));
        }
        if test.is_none() && fractions.test == 0.0 {
            return Err(problem(FolderProblem::NoTestImages));
        }
        let (own_validation_name, own_test_name) =
            (validation.map(|part| part.name), test.map(|part| part.name));
        let mut warnings = self.doubts.clone();
        let whole: Arc<dyn Source> = Arc::new(self.part_images(&self.parts[0])?);
        let part = |part: &FolderPart| -> Result<Arc<dyn Source>, DataError> {
            Ok(Arc::new(self.part_images(part)?))
        };
        let own_validation = validation.map(part).transpose()?;
        let own_test = test.map(part).transpose()?;
        if let [class] = self.classes() {
            let n_images = self.parts[0].index.len();
            warnings.push(DataWarning::OneClass { class: class.clone(), n_images });
        }
        let labels: Vec<u16> = (0..whole.info().n_samples).map(|sample| whole.label(sample)).collect();
        let divided = divide(&labels, fractions);
        let (train, validation, test) = match (fractions.validation > 0.0, own_test) {
            (false, Some(test)) => (whole, own_validation, test),
            (is_divided, own_test) => {
                let of = |indices: Vec<u32>| subset(Arc::clone(&whole), indices);
                let test = own_test.unwrap_or_else(|| of(divided.test));
                let validation = if is_divided { Some(of(divided.validation)) } else { own_validation };
                (of(divided.train), validation, test)
            }
        };
        for (source, what) in
            [(Some(&train), "training"), (validation.as_ref(), "validation"), (Some(&test), "test")]
        {
            if source.is_some_and(|source| source.info().n_samples == 0) {
                return Err(problem(FolderProblem::NothingLeft { what, n_images: labels.len() }));
            }
        }
        for (source, split) in [
            (Some(&train), Split::Train),
            (validation.as_ref(), Split::Validation),
            (Some(&test), Split::Test),
        ] {
            let absent = source.map_or(Vec::new(), |source| absent_classes(&**source, self.classes()));
            if !absent.is_empty() {
                warnings.push(DataWarning::AbsentClasses { split, n_classes: self.classes().len(), absent });
            }
        }
        let of_train = self.parts[0].name;
        let folders = [of_train, own_validation_name.unwrap_or(of_train), own_test_name.unwrap_or(of_train)];
        Ok(FolderSplit { classes: self.classes().to_vec(), train, validation, test, folders, warnings })
    }
}

/// A warning if folders of images are beside `train` that are no parts.
fn beside(root: &Path) -> Result<Option<DataWarning>, DataError> {
    /// Entries of a folder that are looked at: images among them are soon found.
    const N_LOOKED_AT: usize = 1000;
    let looked_at = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().take(N_LOOKED_AT);
    let is_image = |entry: &fs::DirEntry| scan::is_image(Path::new(&entry.file_name()));
    let has_images = |path: &Path| {
        looked_at(path)
            .any(|entry| is_image(&entry) || looked_at(&entry.path()).any(|entry| is_image(&entry)))
            || !shards_in(path).unwrap_or_default().is_empty()
    };
    let is_part = |name: &str| [TRAIN, TEST].iter().chain(&VALIDATION).any(|part| *part == name);
    let mut folders = Vec::new();
    for entry in fs::read_dir(root).map_err(|error| DataError::io(root, Action::Read, error))? {
        let entry = entry.map_err(|error| DataError::io(root, Action::Read, error))?;
        let name = entry.file_name();
        let is_archive = archive::is_archive(&name.to_string_lossy());
        if !scan::is_hidden(&name)
            && !is_part(&name.to_string_lossy())
            && (is_archive || has_images(&entry.path()))
        {
            folders.push(index::one_line(Path::new(&name)));
        }
    }
    folders.sort_unstable();
    Ok((!folders.is_empty()).then_some(DataWarning::Beside { folders }))
}

/// Warnings of parts with images of other kinds, or of no class.
fn other_kinds(parts: &[FolderPart]) -> Vec<DataWarning> {
    let of_part = |part: &FolderPart| {
        let others = part.index.skipped().others.iter();
        let images = others.filter(|(ending, _)| scan::OTHER_KINDS.contains(&ending.as_str()));
        let files: Vec<(String, u64)> = images.map(|(ending, n)| (ending.clone(), *n)).collect();
        (!files.is_empty()).then_some(DataWarning::OtherKinds { part: part.name, files })
    };
    // Those in class folders are no others.
    let of_no_class = |part: &FolderPart| {
        let others = part.index.skipped().others.iter();
        let n_images: u64 =
            others.filter(|(ending, _)| scan::ENDINGS.contains(&ending.as_str())).map(|(_, n)| n).sum();
        (n_images > 0).then_some(DataWarning::NoClass { part: part.name, n_images })
    };
    parts.iter().flat_map(|part| of_part(part).into_iter().chain(of_no_class(part))).collect()
}

/// Whether a folder of this name is a part of a data set somewhere. (A class of vehicles may be called train, but not all classes.)
fn is_part_name(class: &str) -> bool {
    let names = ["train", "training", "val", "valid", "validation", "test", "testing"];
    names.iter().any(|name| name.eq_ignore_ascii_case(class))
}

/// Names of the classes that `source` has no image of.
fn absent_classes(source: &dyn Source, classes: &[String]) -> Vec<String> {
    let mut has = vec![false; classes.len()];
    (0..source.info().n_samples).for_each(|sample| has[usize::from(source.label(sample))] = true);
    classes.iter().zip(has).filter(|(_, has)| !has).map(|(class, _)| class.clone()).collect()
}

/// As what the part of this name is indexed; empty for one whole.
fn role_of(part: &str) -> Role {
    if part.is_empty() { Role::Whole } else { Role::Part }
}

/// Writes the index of a part; a cache that cannot be written to is no error.
fn kept(cache: &Path, part: &str, index: &ImageIndex) -> Option<PathBuf> {
    let file = index_file::file_of(cache, index.root(), role_of(part));
    index_file::write(&file, index).ok().map(|()| file)
}

/// The images of a folder of class folders, or of shards; `part` is its name, empty for one whole.
fn scan_part(path: &Path, part: &str) -> Result<ImageIndex, DataError> {
    let shards = if has_folders(path) { Vec::new() } else { shards_in(path)? };
    if shards.is_empty() {
        return scan::scan(path);
    }
    // What is beside one whole is outside of what was given.
    let beside = (!part.is_empty()).then(|| format!("../{}", archive::CLASSES));
    let mut lists = [archive::CLASSES.to_owned()].into_iter().chain(beside);
    let (list, classes) = match lists.find(|list| path.join(list).is_file()) {
        Some(list) => {
            let file = path.join(&list);
            // Asked before it is read: a change in between is then noticed.
            let container = Container::file(list, &file)?;
            (Some(container), Some(archive::read_classes(&file)?))
        }
        // One may be made beside the part.
        None if !part.is_empty() => {
            (Some(Container::directory("..".into(), scan::modified(&path.join(".."))?)), None)
        }
        None => (None, None),
    };
    archive::scan_shards(path, &shards, classes, list)
}

/// The names of the tar archives in a folder, in their order; none if there is no such folder.
fn shards_in(path: &Path) -> Result<Vec<String>, DataError> {
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let read_error = |error| DataError::io(path, Action::Read, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(read_error)? {
        let name = entry.map_err(read_error)?.file_name();
        let text = name.to_string_lossy();
        if text.starts_with('.') || !archive::is_archive(&text) {
            continue;
        }
        match name.to_str() {
            Some(name) => names.push(name.to_owned()),
            None => {
                let (first, reason) = (index::one_line(&path.join(&name)), scan::NOT_TEXT.into());
                let problem = FolderProblem::Unusable { n: 1, first, reason };
                return Err(DataError::Folder { path: path.to_owned(), problem });
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether there is a folder with folders in it.
fn has_folders(path: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(path) else { return false };
    entries.any(|entry| {
        entry.is_ok_and(|entry| {
            !entry.file_name().as_encoded_bytes().starts_with(b".") && entry.path().is_dir()
        })
    })
}

/// Refuses a folder whose packing was stopped, or that has lost a shard since.
fn expect_all_packed(root: &Path, parts: &[FolderPart]) -> Result<(), DataError> {
    let Some(expected) = pack::expected_images(root) else { return Ok(()) };
    let got: Vec<usize> = parts.iter().map(|part| part.index.len()).collect();
    if got == expected {
        return Ok(());
    }
    let sum = |counts: Vec<usize>| counts.into_iter().fold(0, usize::saturating_add);
    let problem = FolderProblem::PackedOtherwise { got: sum(got), expected: sum(expected) };
    Err(DataError::Folder { path: root.to_owned(), problem })
}

fn expect_images(index: &ImageIndex) -> Result<(), DataError> {
    let problem = match (index.classes().is_empty(), index.is_empty()) {
        (true, _) => FolderProblem::NoClasses,
        (false, true) => {
            let Unusable { n, first } = index.unusable();
            match first.first() {
                Some((path, reason)) => {
                    FolderProblem::Unusable { n: *n, first: path.clone(), reason: reason.clone() }
                }
                None => FolderProblem::NoImages {
                    n_classes: index.classes().len(),
                    skipped: index.skipped().to_string(),
                },
            }
        }
        (false, false) => return Ok(()),
    };
    Err(DataError::Folder { path: index.root().to_owned(), problem })
}
