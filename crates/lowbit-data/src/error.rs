//! What can go wrong with data sets.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::{DatasetName, FileKind, Geometry, SampleFailure, Split};

/// Advice for a file that may have been fetched, or made by the user.
const FETCH_OR_MAKE: &str = "fetch or make the file once more";

/// Why a data set could not be located, read, fetched or served.
///
/// Every message is one line that completes "failed to ..." and names the file, what was expected, what was found and
/// what to do about it. The operating system's reason for a failed file operation is the
/// [`source`](std::error::Error::source).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A name that is no data set of the catalog.
    #[error("find a data set called {got:?}; there are {}", Listed(DatasetName::ALL))]
    UnknownName {
        /// The name asked for.
        got: String,
    },

    /// Coarse labels were asked of a data set that has none.
    #[error("read coarse labels of {name}: only cifar100 has them; ask for fine labels")]
    NoCoarseLabels {
        /// The data set.
        name: DatasetName,
    },

    /// The data directory given by the user does not exist.
    #[error("find the data directory {}: it does not exist; create it or give another", .path.display())]
    DataDirMissing {
        /// The directory.
        path: PathBuf,
    },

    /// There is no home directory to keep data in.
    #[error("find a place for data: neither XDG_DATA_HOME nor a home directory is set")]
    NoDataHome,

    /// No location holds the files of a data set.
    #[error(
        "find {name}{}: no {} in {}; put {} into {}, or run `lowbit data fetch {name}`{}",
        split.map_or(String::new(), |split| format!(" ({split})")), Listed(wanted), Listed(&displayed(searched)),
        if wanted.len() == 1 { "it" } else { "them" }, put_into.display(), debian_hint(*name)
    )]
    NotFound {
        /// The data set.
        name: DatasetName,
        /// The part asked for, if the parts have files of their own and one was asked for.
        split: Option<Split>,
        /// The directories searched, in order.
        searched: Vec<PathBuf>,
        /// The files looked for.
        wanted: Vec<String>,
        /// Where the files would be found next time.
        put_into: PathBuf,
    },

    /// A directory holds some files of a data set but lacks another.
    #[error("find {expected} in {}, which holds other files of {name}; put it there, or run `lowbit data fetch {name}`",
        .dir.display())]
    MissingFile {
        /// The data set.
        name: DatasetName,
        /// The directory.
        dir: PathBuf,
        /// The name of the file that is missing.
        expected: String,
    },

    /// The operating system denies access to a file or directory.
    #[error("{action} {}: permission denied; check its owner and mode (ls -l)", .path.display())]
    Permission {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        action: Action,
        /// The operating system's error.
        source: io::Error,
    },

    /// Any other failure of a file operation; the reason is the source.
    #[error("{action} {}", .path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        action: Action,
        /// The operating system's error.
        source: io::Error,
    },

    /// Not a regular file: a directory, FIFO or device.
    #[error("read {}: it is {kind}, not a regular file; put a file in its place, or give another directory", .path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },

    /// A file that is something else than its name says.
    #[error("read {}: it {} {kind}, not {expected}{}", .path.display(), if *.within_gzip { "holds, compressed with gzip,"
        } else { "is" }, remedy_of(*.kind))]
    WrongKind {
        /// The file.
        path: PathBuf,
        /// What its name says.
        expected: &'static str,
        /// What it looks like.
        kind: FileKind,
        /// Whether that is the kind of its decompressed content.
        within_gzip: bool,
    },

    /// A file ends within its header.
    #[error("read {}: it ends after {got} of the {expected} bytes of its header; {FETCH_OR_MAKE}", .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes of the header.
        expected: u64,
        /// Bytes found, after decompression.
        got: u64,
    },

    /// An IDX file whose header has another number than its data.
    #[error("read {}: its header says {said} {what}, but it holds {held}; {}", .path.display(), if *.is_cut {
        "it is cut short, remove it and fetch it again" } else { "correct the header or the data" })]
    CountInHeader {
        /// The file.
        path: PathBuf,
        /// `"images"` or `"labels"`.
        what: &'static str,
        /// The number in the header.
        said: u64,
        /// What follows the header.
        held: Held,
        /// Whether the header is that of a published file, of which some is missing.
        is_cut: bool,
    },

    /// An IDX file whose header promises more than is read.
    #[error("read {}: its header says {said} {what}, more than the {limit} that are read of a file; correct the header, or \
        take fewer", .path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// `"images"` or `"labels"`.
        what: &'static str,
        /// The number in the header.
        said: u64,
        /// The largest number.
        limit: usize,
    },

    /// A file of CIFAR of another length than the published one.
    #[error("read {}: expected {n_images} images of {record_len} bytes, {} bytes in all, got {}{got}; files of {name} \
        have the published length", .path.display(), n_images * record_len, if *.at_least { "at least " } else { "" })]
    WrongLength {
        /// The file, or the archive with the name of its member.
        path: PathBuf,
        /// The data set.
        name: DatasetName,
        /// Images expected.
        n_images: usize,
        /// Bytes of an image and its labels.
        record_len: usize,
        /// Bytes found, after decompression.
        got: u64,
        /// Whether there may be more.
        at_least: bool,
    },

    /// The published files of another data set.
    #[error("read {}: this is the published file of {found} ({split}), not of {name}; take data.dataset=\"{found}\", or give \
        the directory of {name}", .path.display())]
    OtherDataset {
        /// The file.
        path: PathBuf,
        /// The data set asked for.
        name: DatasetName,
        /// The data set that it is of.
        found: DatasetName,
        /// The part that it is of.
        split: Split,
    },

    /// A file that does not start as an IDX file of the expected kind.
    #[error("read {}: expected an IDX file starting with {expected:#010x}, got {got:#010x}; check that it is the file its \
        name says", .path.display())]
    WrongMagic {
        /// The file.
        path: PathBuf,
        /// The magic number expected.
        expected: u32,
        /// The magic number found.
        got: u32,
    },

    /// An IDX file of images of another size.
    #[error("read {}: expected images of {}x{} pixels, got {}x{}; {name} is read in its \
        own size only", .path.display(), .expected[0], .expected[1], .got[0], .got[1])]
    WrongImageSize {
        /// The file.
        path: PathBuf,
        /// The data set.
        name: DatasetName,
        /// Height and width expected.
        expected: [u32; 2],
        /// Height and width found.
        got: [u32; 2],
    },

    /// A label that is no class.
    #[error("read {}: record {record} has label {label}, expected 0 to {}; the file is damaged or of another data set",
        .path.display(), n_classes - 1)]
    LabelOutOfRange {
        /// The file.
        path: PathBuf,
        /// Index of the record in the file, from 0.
        record: usize,
        /// The label found.
        label: u8,
        /// Number of classes.
        n_classes: usize,
    },

    /// Image and label file are not of the same data.
    #[error("read {}: {n_images} images, but {} has {n_labels} labels; take both files from one source",
        .images.display(), .labels.display())]
    CountMismatch {
        /// The image file.
        images: PathBuf,
        /// Number of images.
        n_images: usize,
        /// The label file.
        labels: PathBuf,
        /// Number of labels.
        n_labels: usize,
    },

    /// Compressed data that cannot be decompressed.
    #[error("decompress {}: the gzip data is cut short or damaged; {FETCH_OR_MAKE}", .path.display())]
    CorruptGzip {
        /// The file.
        path: PathBuf,
        /// The decoder's error.
        source: io::Error,
    },

    /// An archive that is damaged, or unlike the published one.
    #[error("read {}: the tar archive is cut short or damaged: {reason}; {FETCH_OR_MAKE}", .path.display())]
    CorruptTar {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// An archive without a file that belongs into it.
    #[error("read {}: the archive has no {member}{}; expected the binary version of {name}", .path.display(),
        names_found(found))]
    MissingMember {
        /// The archive.
        path: PathBuf,
        /// The data set.
        name: DatasetName,
        /// The missing file.
        member: String,
        /// The first few names in it.
        found: Vec<String>,
    },

    /// A file whose checksum is not that of the published file.
    #[error("check {}: expected {kind} {expected}, got {got}; {}", .path.display(), remedy(*.removed))]
    ChecksumMismatch {
        /// The file.
        path: PathBuf,
        /// The checksum's kind.
        kind: ChecksumKind,
        /// The published checksum, in hexadecimal.
        expected: String,
        /// The checksum of the file, in hexadecimal.
        got: String,
        /// Whether the file was a download and has been removed, so that the next try starts afresh.
        removed: bool,
    },

    /// A download that failed.
    #[error(
        "download {url} ({failure}); run the command again{}, or put {} by hand into {}{}",
        resuming(*kept), Listed(files), dir.display(), debian_hint(*name)
    )]
    Fetch {
        /// The data set.
        name: DatasetName,
        /// The address.
        url: String,
        /// What happened.
        failure: FetchFailure,
        /// Bytes that are kept of this file, from which the next try goes on.
        kept: u64,
        /// The files that are still missing.
        files: Vec<String>,
        /// The directory they belong into.
        dir: PathBuf,
    },

    /// Another process is downloading the same file.
    #[error("download to {}: another process is writing this file; wait for it or end it", .path.display())]
    FetchInProgress {
        /// The partial file.
        path: PathBuf,
    },

    /// A data set whose parts do not fit each other.
    #[error("assemble {name}: expected {expected} pixel values for {n_labels} labels, got {got}")]
    Inconsistent {
        /// The data set.
        name: String,
        /// Number of labels.
        n_labels: usize,
        /// Number of pixel values expected.
        expected: usize,
        /// Number of pixel values found.
        got: usize,
    },

    /// A pixel or label beyond the largest of its data set.
    #[error("assemble {name}: {what} {got} at index {idx} is larger than the largest allowed, {max}")]
    ValueOutOfRange {
        /// The data set.
        name: String,
        /// `"pixel"` or `"label"`.
        what: &'static str,
        /// Index of the value.
        idx: usize,
        /// The value.
        got: u16,
        /// The largest value allowed.
        max: usize,
    },

    /// A folder of images that is none, or not what it has to be.
    #[error("use the images in {}: {problem}", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: FolderProblem,
    },

    /// An image file that was written over since its folder was indexed.
    #[error("read {}: it has {got} bytes, but the index says {expected}; bring the index up to date with `lowbit data index DIR` of \
        the folder that was given", .path.display())]
    ImageChanged {
        /// The file.
        path: PathBuf,
        /// Bytes by the index.
        expected: u64,
        /// Bytes found.
        got: u64,
    },

    /// More samples were asked for than there are.
    #[error(
        "take the first {asked} images of {name}: there are {available}; ask for fewer, or give a directory with more"
    )]
    TooFewSamples {
        /// The data set.
        name: String,
        /// Samples asked for.
        asked: usize,
        /// Samples there are.
        available: usize,
    },

    /// A sample that cannot be served.
    #[error("read sample {sample} of {name}: {failure}")]
    Sample {
        /// The source.
        name: String,
        /// Index of the sample.
        sample: usize,
        /// What is wrong.
        #[source]
        failure: SampleFailure,
    },

    /// Images of several sizes, of which none is made.
    #[error("serve {name}: its images differ in shape; say to which size they are brought (data.size)")]
    SeveralShapes {
        /// The source.
        name: String,
    },

    /// More samples than are counted.
    #[error("serve {name}: it has {n_samples} samples, more than {}", u32::MAX)]
    TooManySamples {
        /// The source.
        name: String,
        /// Its samples.
        n_samples: usize,
    },

    /// A data set without a sample.
    #[error("serve {name}: it has no samples")]
    Empty {
        /// The data set.
        name: String,
    },

    /// A batch size of zero.
    #[error("serve batches of 0 images: the batch size must be at least 1")]
    ZeroBatchSize,

    /// Incomplete batches are dropped and no batch is complete.
    #[error(
        "serve batches of {batch_size} images: {name} has only {n_samples}, and incomplete batches are dropped; take smaller \
         batches (data.batch_size)"
    )]
    BatchTooLarge {
        /// The data set.
        name: String,
        /// Images per batch.
        batch_size: usize,
        /// Samples there are.
        n_samples: usize,
    },

    /// A size that images cannot be brought to.
    #[error("bring images to {0}x{0} in {1} channels by way of a shorter side of {2}: expected 1 or 3 channels, and 1 <= \
        size <= shorter side <= {max}", .geometry.size, .geometry.channels, .geometry.resize)]
    Geometry {
        /// What was asked for.
        geometry: Geometry,
        /// The longest side.
        max: usize,
    },

    /// A random crop that is resized, where no size is given.
    #[error("crop images of {name} at random: say to which size the crops are brought (data.size)")]
    CropWithoutSize {
        /// The source.
        name: String,
    },

    /// Bounds of an augmentation that cannot be drawn between.
    #[error("augment images: {key} is from {} to {}, expected two numbers above 0 in order, up to {max}", .got[0], .got[1])]
    AugmentRange {
        /// The setting.
        key: &'static str,
        /// The bounds.
        got: [f64; 2],
        /// The largest number.
        max: f64,
    },

    /// A strength of an augmentation that is not defined.
    #[error("augment images: {key} is {got}, expected 0 to {max}")]
    AugmentValue {
        /// The setting.
        key: &'static str,
        /// Its value.
        got: f64,
        /// The largest number.
        max: f64,
    },

    /// Colors are to be changed where there are none.
    #[error("augment images: saturation, hue and lighting need 3 channels, these have {channels}")]
    NeedsColor {
        /// Channels of the images.
        channels: usize,
    },

    /// A normalization for another number of channels, or one that divides by zero.
    #[error(
        "normalize {channels}-channel images: need {channels} means and {channels} positive standard deviations, got \
        mean {mean:?} and std {std:?}"
    )]
    Normalization {
        /// Channels of the images.
        channels: usize,
        /// Mean per channel.
        mean: Vec<f32>,
        /// Standard deviation per channel.
        std: Vec<f32>,
    },
}

/// What is wrong with a folder of images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FolderProblem {
    /// It is a file.
    #[error("it is no folder")]
    NotAFolder,
    /// A part without class folders.
    #[error(
        "its folder {part} has neither class folders nor tar archives: put the images of each class into a folder of its own, as in {part}/cat/1.jpg"
    )]
    NoClassesInPart {
        /// The folder.
        part: &'static str,
    },
    /// Folders that are parts by their names, but would be classes.
    #[error("its only folders, {}, would be the classes: parts are called train, val and test, and have a folder for each class, as in train/cat/1.jpg", .names.join(" and "))]
    PartsAsClasses {
        /// Their names.
        names: Vec<String>,
    },
    /// No folders in it.
    #[error("it has no class folders; expected train/<class>/*.jpg and val/<class>/*.jpg, or <class>/*.jpg")]
    NoClasses,
    /// Folders, but no images.
    #[error("no JPEG or PNG file is in its {}{}; expected <class>/*.jpg",
        if *.n_classes == 1 { "one folder".into() } else { format!("{n_classes} folders") },
        if .skipped.is_empty() { String::new() } else { format!("; there are other files: {skipped}") })]
    NoImages {
        /// Class folders.
        n_classes: usize,
        /// What else there is.
        skipped: String,
    },
    /// More classes than labels tell apart.
    #[error("it has {got} class folders, more than {limit}")]
    TooManyClasses {
        /// Class folders.
        got: usize,
        /// The most there can be.
        limit: usize,
    },
    /// Shards in another layout than that of WebDataset.
    #[error("{n} of its files have no partner: a shard has key.jpg and key.cls one after the other")]
    NotPaired {
        /// Files without a partner so far.
        n: usize,
    },
    /// A label in a shard that no name is for.
    #[error("a shard has class {label}, but its classes.txt has {n_names} names")]
    LabelBeyondNames {
        /// The label.
        label: u16,
        /// The names.
        n_names: usize,
    },
    /// Shards of other images, or packed in another way.
    #[error("its shards are of other images, or packed with other settings: pack into a new folder")]
    OtherPack,
    /// A packing that was stopped, or shards that are gone.
    #[error(
        "its shards have {got} images, but pack.json says {expected}: pack them again into this folder to complete it"
    )]
    PackedOtherwise {
        /// Images in the shards.
        got: usize,
        /// Images that were to be packed.
        expected: usize,
    },
    /// Another process packs there.
    #[error("another process packs into it: wait until that ends")]
    BeingPacked,
    /// Shards would be made among the images.
    #[error("it is in the folder of images that is packed, {}: pack into a folder beside it", .source_root.display())]
    PackedInside {
        /// The folder of images.
        source_root: PathBuf,
    },
    /// Something else is where shards are to be made.
    #[error("it has other files: pack into a new folder")]
    NotEmpty,
    /// A list of classes that names one twice, or not at all.
    #[error("its lines are to be the names of the classes, each once, but {class:?} is not")]
    ClassNames {
        /// The name.
        class: String,
    },
    /// A folder that is not ILSVRC-2012.
    #[error("it has no {what} images of ILSVRC-2012; expected {expected}")]
    NoImageNet {
        /// Which images.
        what: &'static str,
        /// Where they would be.
        expected: &'static str,
    },
    /// Validation images of ILSVRC-2012 without classes.
    #[error("its validation images are not in class folders, and no file says their classes; expected one of {}",
        .expected.join(", "))]
    NoLabels {
        /// Names of such files.
        expected: &'static [&'static str],
    },
    /// A line of the classes of validation images that has none.
    #[error(
        "line {line} says no class; expected nXXXXXXXX, or an image and nXXXXXXXX. (The numbers of the devkit are not read.)"
    )]
    NoClassInLine {
        /// The line, from 1.
        line: usize,
    },
    /// Another number of classes than of images.
    #[error("it has {n_lines} classes, but there are {n_images} validation images")]
    LabelCount {
        /// Lines with a class.
        n_lines: usize,
        /// Images.
        n_images: usize,
    },
    /// An image with a second class.
    #[error("line {line} says another class of an image than a line before it")]
    TwoLabels {
        /// The line, from 1.
        line: usize,
    },
    /// An image whose class is not said.
    #[error("it does not say the class of {image}")]
    NoLabelOf {
        /// The image.
        image: String,
    },
    /// Two folders for one part.
    #[error("it has both {first} and {second}; leave one of them")]
    TwoOfOne {
        /// One.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A part has a class that the training images do not have.
    #[error("{part} has {n_part} classes, train has {n_train}: {n_unknown} of {part} {} not in train, the first is {class:?}",
        if *.n_unknown == 1 { "is" } else { "are" })]
    UnknownClass {
        /// The part.
        part: &'static str,
        /// The first class that is unknown.
        class: String,
        /// Their number.
        n_unknown: usize,
        /// Classes of the part.
        n_part: usize,
        /// Classes of the training images.
        n_train: usize,
    },
    /// Files that are images by their name, but cannot be used.
    #[error("{n} {} cannot be used, the first is {first}: {reason}; repair or remove {}, or pass over {}", if *.n == 1 { "file" } else { "files" }, if *.n == 1 { "it" } else { "them" },
        if *.n == 1 { "it" } else { "them" })]
    Unusable {
        /// Their number.
        n: u64,
        /// The first.
        first: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing to score at the end.
    #[error(
        "it has no test images: say which fraction of the images they are, as in data.test=0.2, or put them into val"
    )]
    NoTestImages,
    /// A fraction of what is there already.
    #[error(
        "{key} takes a fraction of the training images, but {part} is there: remove the key, or the folder"
    )]
    Needless {
        /// The key of the recipe.
        key: &'static str,
        /// The folder.
        part: &'static str,
    },
    /// Too few images to be divided.
    #[error("no {what} images are left of {n_images}: take smaller fractions, or more images")]
    NothingLeft {
        /// Of which part.
        what: &'static str,
        /// All images.
        n_images: usize,
    },
}

/// What was attempted with a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reading a file or looking into a directory.
    Read,
    /// Writing a file.
    Write,
    /// Creating a file or directory.
    Create,
    /// Giving a file its final name.
    Rename,
    /// Removing a file.
    Remove,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Action::Read => "read",
            Action::Write => "write",
            Action::Create => "create",
            Action::Rename => "rename",
            Action::Remove => "remove",
        })
    }
}

/// What an IDX file holds behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whole images or labels.
    pub n: u64,
    /// Bytes behind the last whole one.
    pub rest: u64,
    /// Whether there may be more: it was not counted further.
    pub at_least: bool,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Held { n, rest, at_least } = self;
        write!(f, "{}{n}", if *at_least { "at least " } else { "" })?;
        match rest {
            0 => Ok(()),
            1 => write!(f, " and a byte more"),
            rest => write!(f, " and {rest} bytes more"),
        }
    }
}

/// The checksums in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChecksumKind {
    /// SHA-256 of the file as published.
    FileSha256,
    /// SHA-256 of the content after decompression.
    ContentSha256,
}

impl fmt::Display for ChecksumKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ChecksumKind::FileSha256 => "sha256",
            ChecksumKind::ContentSha256 => "sha256 of the content",
        })
    }
}

/// How a download failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchFailure {
    /// No connection, or none that lasted until the response.
    #[error("{0}")]
    Connection(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server answered with another status than 200 or 206.
    #[error("the server answered with status {0}")]
    Status(u16),
    /// The connection ended before the file did.
    #[error("the connection ended after {got} of {expected} bytes")]
    CutShort {
        /// Length of the file.
        expected: u64,
        /// Bytes received.
        got: u64,
    },
    /// The server sends something else under the name of the file.
    #[error("the server answered with {0}, not with the file")]
    NotTheFile(FileKind),
    /// The server announces another length than the published file has.
    #[error("the server announces {got} bytes, the file has {expected}")]
    WrongLength {
        /// Length of the file.
        expected: u64,
        /// Length announced.
        got: u64,
    },
    /// The server sends more than the file has.
    #[error("the server still sends after {limit} bytes, the file has {expected}")]
    TooLong {
        /// Length of the file.
        expected: u64,
        /// Where it was stopped.
        limit: u64,
    },
    /// The file begins otherwise than what is at hand of it.
    #[error(
        "what the server sends differs at byte {at} from the partial download: remove that if the server is right"
    )]
    OtherFile {
        /// First byte that differs.
        at: u64,
    },
}

impl DataError {
    /// The error for a failed file operation.
    pub(crate) fn io(path: &Path, action: Action, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::PermissionDenied => DataError::Permission { path, action, source },
            _ => DataError::Io { path, action, source },
        }
    }
}

/// Shows `a, b, c`.
struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (idx, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if idx == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

fn displayed(paths: &[PathBuf]) -> Vec<std::path::Display<'_>> {
    paths.iter().map(|path| path.display()).collect()
}

fn remedy_of(kind: FileKind) -> &'static str {
    match kind {
        FileKind::WebPage | FileKind::Message => {
            "; remove it and fetch the file again, a server answered with it"
        }
        FileKind::LfsPointer => "; `git lfs pull` gets the file",
        FileKind::Zip | FileKind::Bzip2 | FileKind::Xz | FileKind::Zstd => "; unpack it first",
        FileKind::Gzip => "; it is compressed twice, decompress it once",
        _ => "; put the file that the name says in its place",
    }
}

/// The names are shown as they can be: an archive may hold any byte.
fn names_found(found: &[String]) -> String {
    match found {
        [] => String::new(),
        found => format!(", but {}", Listed(found)),
    }
}

fn debian_hint(name: DatasetName) -> &'static str {
    match name {
        DatasetName::FashionMnist => ", or on Debian and Ubuntu `apt-get install dataset-fashion-mnist`",
        _ => "",
    }
}

fn resuming(kept: u64) -> String {
    match kept {
        0 => String::new(),
        kept => format!(" to resume after the {kept} bytes that are kept"),
    }
}

fn remedy(removed: bool) -> &'static str {
    if removed {
        "the download has been removed, run the command again to start afresh"
    } else {
        "remove the file and fetch it again"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_access_has_its_own_message() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = DataError::io(Path::new("/data/x.gz"), Action::Read, denied);
        assert_eq!(error.to_string(), "read /data/x.gz: permission denied; check its owner and mode (ls -l)");
        assert!(std::error::Error::source(&error).is_some());

        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = DataError::io(Path::new("/data/x.gz"), Action::Write, full);
        assert_eq!(error.to_string(), "write /data/x.gz");
        assert!(std::error::Error::source(&error).is_some());
    }
}
