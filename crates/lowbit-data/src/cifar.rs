//! The binary version of CIFAR-10 and CIFAR-100: records of one or two labels and 3,072 pixels.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::dataset::Parts;
use crate::file_kind::{FileKind, START_LEN};
use crate::read::{Content, expect_zeros, read_up_to};
use crate::{DataError, Dataset, DatasetName, LabelKind, Split};

/// What the published files of one of the two data sets look like.
pub(crate) struct Layout {
    /// The folder in the archive.
    pub folder: &'static str,
    /// The archive.
    pub archive: &'static str,
    train: &'static [Member],
    test: &'static [Member],
    /// Labels before the pixels of a record: CIFAR-100 has the coarse label first, then the fine one.
    n_labels: usize,
    records_per_train_file: usize,
}

/// A published `.bin` file.
pub(crate) struct Member {
    /// Its name.
    pub name: &'static str,
    /// SHA-256 in hexadecimal, as in torchvision-ruby, which compares the unpacked files with it.
    pub sha256: &'static str,
}

const fn member(name: &'static str, sha256: &'static str) -> Member {
    Member { name, sha256 }
}

const CIFAR10_TRAIN: &[Member] = &[
    member("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
    member("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
    member("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
    member("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
    member("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
];
const CIFAR10_TEST: &[Member] =
    &[member("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b")];
const CIFAR100_TRAIN: &[Member] =
    &[member("train.bin", "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29")];
const CIFAR100_TEST: &[Member] =
    &[member("test.bin", "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a")];

/// The most that is decompressed of an archive. The published ones have less than a fifth of it; what has more is
/// damaged or hostile.
const MAX_ARCHIVE: u64 = 1 << 30;
/// The longest extension of a header, which holds a long name, that is read into memory.
const MAX_EXTENSION: u64 = 1 << 16;

const TEST_RECORDS: usize = 10_000;
const COARSE_CLASSES: usize = 20;

impl Layout {
    /// The layout of a data set; `None` if it is not one of the two.
    pub(crate) fn of(name: DatasetName) -> Option<&'static Layout> {
        match name {
            DatasetName::Cifar10 => Some(&Layout {
                folder: "cifar-10-batches-bin",
                archive: "cifar-10-binary.tar.gz",
                train: CIFAR10_TRAIN,
                test: CIFAR10_TEST,
                n_labels: 1,
                records_per_train_file: 10_000,
            }),
            DatasetName::Cifar100 => Some(&Layout {
                folder: "cifar-100-binary",
                archive: "cifar-100-binary.tar.gz",
                train: CIFAR100_TRAIN,
                test: CIFAR100_TEST,
                n_labels: 2,
                records_per_train_file: 50_000,
            }),
            _ => None,
        }
    }

    /// The files of one part, in order.
    pub(crate) fn files(&self, split: Split) -> &'static [Member] {
        match split {
            Split::Train | Split::Validation => self.train,
            Split::Test => self.test,
        }
    }

    fn records_per_file(&self, split: Split) -> usize {
        match split {
            Split::Train | Split::Validation => self.records_per_train_file,
            Split::Test => TEST_RECORDS,
        }
    }
}

/// Collects the records of the files of one part.
struct Parser {
    name: DatasetName,
    layout: &'static Layout,
    split: Split,
    label_kind: LabelKind,
    images: Vec<u8>,
    labels: Vec<u16>,
    /// The files read, each with the SHA-256 of its content.
    contents: Vec<(PathBuf, Option<String>)>,
}

impl Parser {
    fn new(name: DatasetName, split: Split, label_kind: LabelKind) -> Self {
        let layout = Layout::of(name).expect("invariant: CIFAR files were located for a CIFAR data set");
        let n_samples = layout.records_per_file(split) * layout.files(split).len();
        let images = Vec::with_capacity(n_samples * name.info().shape.n_values());
        let labels = Vec::with_capacity(n_samples);
        Parser { name, layout, split, label_kind, images, labels, contents: Vec::new() }
    }

    fn record_len(&self) -> usize {
        self.layout.n_labels + self.name.info().shape.n_values()
    }

    fn file_len(&self) -> u64 {
        (self.record_len() * self.layout.records_per_file(self.split)) as u64
    }

    fn wrong_length(&self, path: &Path, got: u64, at_least: bool) -> DataError {
        DataError::WrongLength {
            path: path.to_owned(),
            name: self.name,
            n_images: self.layout.records_per_file(self.split),
            record_len: self.record_len(),
            got,
            at_least,
        }
    }

    /// Adds a file whose length has been checked.
    fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<(), DataError> {
        self.contents.push((path.to_owned(), Some(format!("{:x}", Sha256::digest(bytes)))));
        let fine_classes = self.name.info().n_classes;
        let label_idx = match self.label_kind {
            LabelKind::Fine => self.layout.n_labels - 1,
            LabelKind::Coarse => 0,
        };
        for (record_idx, record) in bytes.chunks_exact(self.record_len()).enumerate() {
            let (labels, pixels) = record.split_at(self.layout.n_labels);
            for (idx, &label) in labels.iter().enumerate() {
                let n_classes = if idx + 1 == self.layout.n_labels { fine_classes } else { COARSE_CLASSES };
                check_label(path, record_idx, label, n_classes)?;
            }
            self.labels.push(labels[label_idx].into());
            self.images.extend_from_slice(pixels);
        }
        Ok(())
    }

    fn finish(self) -> Parts {
        let info = self.name.info();
        let dataset = Dataset {
            name: self.name.to_string(),
            shape: info.shape,
            n_classes: match self.label_kind {
                LabelKind::Fine => info.n_classes,
                LabelKind::Coarse => COARSE_CLASSES,
            },
            images: self.images,
            max_value: info.max_value,
            labels: self.labels,
        };
        Parts { dataset, contents: self.contents }
    }
}

/// Reads the files of one part, given in order.
pub(crate) fn read_files(
    name: DatasetName,
    split: Split,
    labels: LabelKind,
    files: &[PathBuf],
) -> Result<Parts, DataError> {
    let mut parser = Parser::new(name, split, labels);
    let expected = parser.file_len();
    let mut bytes = Vec::new();
    for path in files {
        bytes.clear();
        let (mut content, kind) = Content::open(path)?;
        // A file of CIFAR may begin as IDX does: with a label and a dark pixel of 0.
        if kind.is_recognized() && !matches!(kind, FileKind::Gzip | FileKind::Idx) {
            let expected = "a .bin file of CIFAR";
            return Err(DataError::WrongKind { path: path.clone(), expected, kind, within_gzip: false });
        }
        if let Some(len) = content.len().filter(|&len| len != expected) {
            return Err(parser.wrong_length(path, len, false));
        }
        let got = content.read_next(path, expected, &mut bytes)?;
        let rest = if got < expected { 0 } else { content.count_rest(path, expected)? };
        if got + rest != expected {
            return Err(parser.wrong_length(path, got + rest, rest == expected));
        }
        parser.add(path, &bytes)?;
    }
    Ok(parser.finish())
}

/// Reads one part from the archive as published, or decompressed.
pub(crate) fn read_archive(
    name: DatasetName,
    split: Split,
    labels: LabelKind,
    path: &Path,
) -> Result<Parts, DataError> {
    let mut parser = Parser::new(name, split, labels);
    let wrong_kind = |kind, within_gzip| {
        let expected = "a tar archive, raw or compressed with gzip";
        DataError::WrongKind { path: path.to_owned(), expected, kind, within_gzip }
    };
    let (mut content, kind) = Content::open(path)?;
    let is_gzip = kind == FileKind::Gzip;
    if !is_gzip && kind != FileKind::Tar {
        return Err(wrong_kind(kind, false));
    }
    let mut start = vec![0; START_LEN];
    let n_read = read_up_to(&mut content, &mut start).map_err(|e| content.error(path, e))?;
    let within = FileKind::of(&start[..n_read]);
    if is_gzip && within.is_recognized() && within != FileKind::Tar {
        return Err(wrong_kind(within, true));
    }
    let reader = (&start[..n_read]).chain(&mut content);
    let mut failed = false;
    let mut members =
        Members { reader: Limited { reader, left: MAX_ARCHIVE, failed: &mut failed }, parser: &parser };
    let found = members.read(path);
    let found = found.map_err(|error| match error {
        MembersError::Data(error) => error,
        // An error below the archive is one of the file.
        MembersError::Io(error) if failed => content.error(path, error),
        MembersError::Io(error) => {
            // The names in it are those of the archive, which may hold anything.
            let reason = error.to_string().escape_debug().to_string();
            DataError::CorruptTar { path: path.to_owned(), reason }
        }
    })?;
    for (member, bytes) in parser.layout.files(split).iter().zip(found.members) {
        let bytes = bytes.ok_or_else(|| DataError::MissingMember {
            path: path.to_owned(),
            name,
            member: member.name.into(),
            found: found.names.clone(),
        })?;
        parser.add(&path.join(member.name), &bytes)?;
    }
    Ok(parser.finish())
}

/// What an archive held.
struct FoundMembers {
    /// The content of each file that was wanted.
    members: Vec<Option<Vec<u8>>>,
    /// The names of the first few other files, for a message.
    names: Vec<String>,
}

enum MembersError {
    Data(DataError),
    Io(io::Error),
}

impl From<io::Error> for MembersError {
    fn from(error: io::Error) -> Self {
        MembersError::Io(error)
    }
}

/// The members of an archive that one part is read from.
struct Members<'a, R> {
    reader: Limited<'a, R>,
    parser: &'a Parser,
}

impl<R: Read> Members<'_, R> {
    fn read(&mut self, path: &Path) -> Result<FoundMembers, MembersError> {
        let wanted = self.parser.layout.files(self.parser.split);
        let mut found = FoundMembers { members: wanted.iter().map(|_| None).collect(), names: Vec::new() };
        let mut archive = tar::Archive::new(&mut self.reader);
        let mut long_name = None;
        // Raw: the extensions of headers, which are otherwise read into memory whole, are members of their own.
        for entry in archive.entries()?.raw(true) {
            let mut entry = entry?;
            let kind = entry.header().entry_type();
            if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
                long_name = long_name_of(&mut entry)?.or(long_name);
                continue;
            }
            let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
            let file_name = name.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            if !kind.is_file() {
                continue;
            }
            let Some(idx) = wanted.iter().position(|wanted| file_name == wanted.name.as_bytes()) else {
                if found.names.len() < 3 {
                    found.names.push(String::from_utf8_lossy(file_name).escape_debug().to_string());
                }
                continue;
            };
            let (expected, got) = (self.parser.file_len(), entry.size());
            if got != expected {
                let member = path.join(wanted[idx].name);
                return Err(MembersError::Data(self.parser.wrong_length(&member, got, false)));
            }
            let mut bytes = Vec::with_capacity(expected as usize);
            entry.read_to_end(&mut bytes)?;
            if (bytes.len() as u64) < expected {
                return Err(MembersError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            found.members[idx] = Some(bytes);
        }
        // The end mark may be followed by zeros, up to a full block of the tape. With this the decoder also compares
        // its checksum.
        expect_zeros(&mut BufReader::new(archive.into_inner()))?;
        Ok(found)
    }
}

/// The name that an extension gives to the member after it, if it gives one.
fn long_name_of(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Option<Vec<u8>>> {
    if entry.size() > MAX_EXTENSION {
        return Err(io::Error::other(format!("a name or header of {} bytes", entry.size())));
    }
    let is_pax = entry.header().entry_type().is_pax_local_extensions();
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    if !is_pax {
        return Ok(Some(bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()));
    }
    let extensions = tar::PaxExtensions::new(&bytes).filter_map(Result::ok);
    let path = extensions.into_iter().find(|extension| extension.key_bytes() == b"path");
    Ok(path.map(|extension| extension.value_bytes().to_vec()))
}

/// A reader that ends with an error after so many bytes, and remembers whether the reader below it failed.
struct Limited<'a, R> {
    reader: R,
    left: u64,
    failed: &'a mut bool,
}

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self
            .reader
            .read(buffer)
            .inspect_err(|e| *self.failed = e.kind() != io::ErrorKind::Interrupted)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other(format!("more than {MAX_ARCHIVE} bytes when decompressed")))?;
        Ok(n)
    }
}

/// Checks the labels of a whole file.
pub(crate) fn check_labels(path: &Path, labels: &[u8], n_classes: usize) -> Result<(), DataError> {
    labels
        .iter()
        .enumerate()
        .try_for_each(|(record_idx, &label)| check_label(path, record_idx, label, n_classes))
}

fn check_label(path: &Path, record: usize, label: u8, n_classes: usize) -> Result<(), DataError> {
    if usize::from(label) < n_classes {
        Ok(())
    } else {
        Err(DataError::LabelOutOfRange { path: path.to_owned(), record, label, n_classes })
    }
}
