//! Where images are, of which class, and how long: all that stays in memory of a folder of images.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};

use crate::error::Action;
use crate::read::open_regular;
use crate::source::label_len;
use crate::{DataError, Digest};

/// The longest file that is read as an image.
pub const MAX_IMAGE_FILE: u32 = 256 << 20;

/// Images whose contents are part of the digest: enough to tell another data set, few enough to be read at each start.
const N_SAMPLED: usize = 64;

/// Bytes of each of them.
const SAMPLED_BYTES: u64 = 1 << 20;

/// Files that are told by name of those that cannot be used; the others are counted.
const N_TOLD: usize = 100;

/// Images of one folder in a fixed order: by class, then by path, as torchvision's `ImageFolder` has them. It takes about
/// 20 bytes an image and the file names.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageIndex {
    /// The folder.
    pub(super) root: PathBuf,
    /// Names of the classes, in ascending order.
    pub(super) classes: Vec<String>,
    pub(super) containers: Vec<Container>,
    /// All file names, one after the other.
    pub(super) names: String,
    /// For each image, where its name ends.
    pub(super) ends: Vec<u32>,
    /// For each image, the directory or archive that it is in.
    pub(super) places: Vec<u32>,
    /// For each image, where it begins in its archive; empty if there are no archives.
    pub(super) offsets: Vec<u64>,
    /// For each image, its bytes.
    pub(super) lengths: Vec<u32>,
    /// For each image, its class.
    pub(super) labels: Vec<u16>,
    pub(super) skipped: Skipped,
    pub(super) unusable: Unusable,
    /// When it was made.
    pub(super) made: SystemTime,
}

/// A directory or archive with images, or what the names of their classes are from: the index is of what they were.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Container {
    /// Its path from the root, with `/`; empty for the root.
    pub(super) path: String,
    /// When something was added to it or removed from it.
    pub(super) modified: Option<SystemTime>,
    /// Bytes of a file; `None` for a directory.
    pub(super) archive: Option<u64>,
}

impl Container {
    pub(super) fn directory(path: String, modified: Option<SystemTime>) -> Self {
        Container { path, modified, archive: None }
    }

    /// Of the file `file`, whose path from the root is `path`.
    pub(super) fn file(path: String, file: &Path) -> Result<Self, DataError> {
        let metadata = std::fs::metadata(file).map_err(|error| DataError::io(file, Action::Read, error))?;
        Ok(Container { path, modified: metadata.modified().ok(), archive: Some(metadata.len()) })
    }
}

/// What was passed over, as it is no image by its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Files and directories whose name begins with a dot.
    pub hidden: u64,
    /// Other files, by the ending of their name in lower case; empty for none.
    pub others: BTreeMap<String, u64>,
    /// Links to directories whose images are there already.
    pub links: u64,
    /// Pipes, sockets and devices.
    pub special: u64,
}

impl Skipped {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.hidden + self.others.values().sum::<u64>() + self.links + self.special
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |n: u64, one: &str, many: &str| {
            (n > 0).then(|| format!("{n} {}", if n == 1 { one } else { many }))
        };
        let others = self.others.iter().map(|(ending, n)| match ending.as_str() {
            "" => format!("{n} without an ending"),
            ending => format!("{n} .{ending}"),
        });
        let rest = [
            named(self.hidden, "hidden", "hidden"),
            named(
                self.links,
                "link to a directory that is there already",
                "links to directories that are there already",
            ),
            named(self.special, "pipe or device", "pipes or devices"),
        ];
        let all: Vec<String> = others.chain(rest.into_iter().flatten()).collect();
        f.write_str(&all.join(", "))
    }
}

/// Files that are images by their name, but cannot be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unusable {
    /// Their number.
    pub n: u64,
    /// The first of them: path and reason, each in one line.
    pub first: Vec<(String, String)>,
}

impl Unusable {
    pub(super) fn add(&mut self, path: &Path, reason: impl Into<String>) {
        self.n += 1;
        if self.first.len() < N_TOLD {
            self.first.push((one_line(path), reason.into()));
        }
    }
}

/// A path in one line: what is not text, or not seen, is written out.
pub fn one_line(path: &Path) -> String {
    let text = path.to_string_lossy();
    match text.chars().any(char::is_control) || matches!(text, std::borrow::Cow::Owned(_)) {
        // As Rust writes it, with each byte that is no text.
        true => format!("{path:?}").trim_matches('"').to_owned(),
        false => text.into_owned(),
    }
}

impl ImageIndex {
    pub(super) fn new(root: PathBuf, classes: Vec<String>) -> Self {
        ImageIndex {
            root,
            classes,
            containers: Vec::new(),
            names: String::new(),
            ends: Vec::new(),
            places: Vec::new(),
            offsets: Vec::new(),
            lengths: Vec::new(),
            labels: Vec::new(),
            skipped: Skipped::default(),
            unusable: Unusable::default(),
            made: SystemTime::now(),
        }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Names of the classes; labels are their indices.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// What was passed over.
    pub fn skipped(&self) -> &Skipped {
        &self.skipped
    }

    /// Files that look like images by their name, but cannot be used.
    pub fn unusable(&self) -> &Unusable {
        &self.unusable
    }

    /// The class of an image.
    ///
    /// # Panics
    /// If there is none of this index.
    pub fn label(&self, image: usize) -> u16 {
        self.labels[image]
    }

    /// Bytes of an image's file.
    ///
    /// # Panics
    /// If there is none of this index.
    pub fn length(&self, image: usize) -> u32 {
        self.lengths[image]
    }

    /// The path of an image below the folder, with `/`.
    ///
    /// # Panics
    /// If there is none of this index.
    pub fn name(&self, image: usize) -> String {
        match self.containers[self.places[image] as usize].path.as_str() {
            "" => self.file_name(image).to_owned(),
            path => format!("{path}/{}", self.file_name(image)),
        }
    }

    pub(super) fn file_name(&self, image: usize) -> &str {
        let start = if image == 0 { 0 } else { self.ends[image - 1] };
        &self.names[start as usize..self.ends[image] as usize]
    }

    /// The path of an image's file; of one in an archive, the path of the archive and its name there.
    ///
    /// # Panics
    /// If there is none of this index.
    pub fn path(&self, image: usize) -> PathBuf {
        self.root.join(&self.containers[self.places[image] as usize].path).join(self.file_name(image))
    }

    /// Appends an image.
    ///
    /// # Errors
    /// [`DataError::TooManySamples`] beyond what is counted.
    pub(super) fn push(&mut self, place: u32, name: &str, length: u32, label: u16) -> Result<(), DataError> {
        self.names.push_str(name);
        let (Ok(end), true) = (u32::try_from(self.names.len()), self.len() < u32::MAX as usize) else {
            let name = self.root.display().to_string();
            return Err(DataError::TooManySamples { name, n_samples: self.len() });
        };
        self.ends.push(end);
        self.places.push(place);
        self.lengths.push(length);
        self.labels.push(label);
        Ok(())
    }

    /// Gives back what was reserved and is not used.
    pub(super) fn shrink(&mut self) {
        for values in [&mut self.ends, &mut self.places, &mut self.lengths] {
            values.shrink_to_fit();
        }
        self.labels.shrink_to_fit();
        self.offsets.shrink_to_fit();
        self.names.shrink_to_fit();
    }

    /// The same index without some images.
    pub(super) fn without(&self, images: &std::collections::HashSet<usize>) -> Self {
        let mut index = ImageIndex {
            containers: self.containers.clone(),
            skipped: self.skipped.clone(),
            unusable: self.unusable.clone(),
            made: self.made,
            ..ImageIndex::new(self.root.clone(), self.classes.clone())
        };
        for image in (0..self.len()).filter(|image| !images.contains(image)) {
            let (place, length, label) = (self.places[image], self.lengths[image], self.labels[image]);
            index
                .push(place, self.file_name(image), length, label)
                .expect("invariant: it has fewer images than an index that is there");
            index.offsets.extend(self.offsets.get(image));
        }
        index
    }

    /// Images of each class.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for &label in &self.labels {
            counts[usize::from(label)] += 1;
        }
        counts
    }

    /// Bytes of all files.
    pub fn total_length(&self) -> u64 {
        self.lengths.iter().map(|&length| u64::from(length)).sum()
    }

    /// The content of an image's file.
    ///
    /// # Errors
    /// If it cannot be read, or has not the length that it had when the index was made.
    ///
    /// # Panics
    /// If there is no image of this index.
    pub fn read(&self, image: usize) -> Result<Vec<u8>, DataError> {
        let (mut file, length) = self.open(image)?;
        let mut bytes = Vec::with_capacity(length as usize);
        let path = || self.path(image);
        file.by_ref()
            .take(length)
            .read_to_end(&mut bytes)
            .map_err(|error| DataError::io(&path(), Action::Read, error))?;
        match bytes.len() as u64 == length {
            true => Ok(bytes),
            false => Err(self.changed(image, bytes.len() as u64)),
        }
    }

    /// Opens the file of an image where it begins, and says how long it is.
    fn open(&self, image: usize) -> Result<(File, u64), DataError> {
        let container = &self.containers[self.places[image] as usize];
        let (path, expected, offset) = match container.archive {
            None => (self.path(image), self.lengths[image].into(), 0),
            Some(length) => (self.root.join(&container.path), length, self.offsets[image]),
        };
        let mut file = open_regular(&path)?;
        let got = file.metadata().map_err(|error| DataError::io(&path, Action::Read, error))?.len();
        if got != expected {
            return Err(DataError::ImageChanged { path, expected, got });
        }
        if offset > 0 {
            file.seek(SeekFrom::Start(offset)).map_err(|error| DataError::io(&path, Action::Read, error))?;
        }
        Ok((file, self.lengths[image].into()))
    }

    fn changed(&self, image: usize, got: u64) -> DataError {
        let (path, expected) = (self.path(image), self.lengths[image].into());
        DataError::ImageChanged { path, expected, got }
    }

    /// What tells these images from others, wherever they are: SHA-256 of classes, relative paths, lengths and labels, and of
    /// the first mebibyte of 64 images spread over all.
    ///
    /// # Errors
    /// If one of those cannot be read.
    pub fn digest(&self) -> Result<Digest, DataError> {
        let mut hasher = Sha256::new();
        let text = |hasher: &mut Sha256, text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        hasher.update((self.classes.len() as u64).to_le_bytes());
        for class in &self.classes {
            text(&mut hasher, class);
        }
        let label_len = label_len(self.classes.len());
        for image in 0..self.len() {
            text(&mut hasher, &self.containers[self.places[image] as usize].path);
            text(&mut hasher, self.file_name(image));
            hasher.update(self.lengths[image].to_le_bytes());
            hasher.update(&self.labels[image].to_le_bytes()[..label_len]);
        }
        let n_sampled = self.len().min(N_SAMPLED);
        for sampled in 0..n_sampled {
            let image = (sampled as u64 * self.len() as u64 / n_sampled as u64) as usize;
            let (file, _) = self.open(image)?;
            let mut start = Vec::new();
            file.take(SAMPLED_BYTES)
                .read_to_end(&mut start)
                .map_err(|error| DataError::io(&self.path(image), Action::Read, error))?;
            hasher.update(start);
        }
        let digits: String = format!("{:x}", hasher.finalize()).chars().take(32).collect();
        Ok(Digest::Other(format!("images {digits}")))
    }
}
