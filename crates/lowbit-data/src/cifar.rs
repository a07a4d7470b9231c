//! The binary version of CIFAR-10 and CIFAR-100: records of one or two labels and 3,072 pixels.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::Action;
use crate::read::{expect_end, gzip_error, open_content, read_exactly, read_up_to};
use crate::{DataError, Dataset, DatasetName, LabelKind, Split};

/// What the published files of one of the two data sets look like.
pub(crate) struct Layout {
    /// The folder in the archive.
    pub folder: &'static str,
    /// The archive.
    pub archive: &'static str,
    train: &'static [&'static str],
    test: &'static [&'static str],
    /// Labels before the pixels of a record: CIFAR-100 has the coarse label first, then the fine one.
    n_labels: usize,
    records_per_train_file: usize,
}

const TEST_RECORDS: usize = 10_000;
const COARSE_CLASSES: usize = 20;

impl Layout {
    /// The layout of a data set; `None` if it is not one of the two.
    pub(crate) fn of(name: DatasetName) -> Option<&'static Layout> {
        match name {
            DatasetName::Cifar10 => Some(&Layout {
                folder: "cifar-10-batches-bin",
                archive: "cifar-10-binary.tar.gz",
                train: &[
                    "data_batch_1.bin",
                    "data_batch_2.bin",
                    "data_batch_3.bin",
                    "data_batch_4.bin",
                    "data_batch_5.bin",
                ],
                test: &["test_batch.bin"],
                n_labels: 1,
                records_per_train_file: 10_000,
            }),
            DatasetName::Cifar100 => Some(&Layout {
                folder: "cifar-100-binary",
                archive: "cifar-100-binary.tar.gz",
                train: &["train.bin"],
                test: &["test.bin"],
                n_labels: 2,
                records_per_train_file: 50_000,
            }),
            _ => None,
        }
    }

    /// The files of one part, in order.
    pub(crate) fn files(&self, split: Split) -> &'static [&'static str] {
        match split {
            Split::Train => self.train,
            Split::Test => self.test,
        }
    }

    fn records_per_file(&self, split: Split) -> usize {
        match split {
            Split::Train => self.records_per_train_file,
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
    labels: Vec<u8>,
}

impl Parser {
    fn new(name: DatasetName, split: Split, label_kind: LabelKind) -> Self {
        let layout = Layout::of(name).expect("invariant: CIFAR files were located for a CIFAR data set");
        let n_samples = layout.records_per_file(split) * layout.files(split).len();
        let images = Vec::with_capacity(n_samples * name.info().shape.n_values());
        Parser { name, layout, split, label_kind, images, labels: Vec::with_capacity(n_samples) }
    }

    fn record_len(&self) -> usize {
        self.layout.n_labels + self.name.info().shape.n_values()
    }

    fn file_len(&self) -> u64 {
        (self.record_len() * self.layout.records_per_file(self.split)) as u64
    }

    /// Adds a file whose length has been checked.
    fn add(&mut self, path: &Path, bytes: &[u8]) -> Result<(), DataError> {
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
            self.labels.push(labels[label_idx]);
            self.images.extend_from_slice(pixels);
        }
        Ok(())
    }

    fn finish(self) -> Dataset {
        let info = self.name.info();
        Dataset {
            name: self.name.to_string(),
            shape: info.shape,
            n_classes: match self.label_kind {
                LabelKind::Fine => info.n_classes,
                LabelKind::Coarse => COARSE_CLASSES,
            },
            images: self.images,
            max_value: info.max_value,
            labels: self.labels,
        }
    }
}

/// Reads the files of one part, given in order.
pub(crate) fn read_files(
    name: DatasetName,
    split: Split,
    labels: LabelKind,
    files: &[PathBuf],
) -> Result<Dataset, DataError> {
    let mut parser = Parser::new(name, split, labels);
    let mut bytes = Vec::new();
    for path in files {
        bytes.clear();
        let mut content = open_content(path)?;
        read_exactly(&mut content, path, parser.file_len(), &mut bytes)?;
        expect_end(&mut content, path, parser.file_len())?;
        parser.add(path, &bytes)?;
    }
    Ok(parser.finish())
}

/// Reads one part from the archive as published.
pub(crate) fn read_archive(
    name: DatasetName,
    split: Split,
    labels: LabelKind,
    path: &Path,
) -> Result<Dataset, DataError> {
    let mut parser = Parser::new(name, split, labels);
    let members = parser.layout.files(split);
    let mut found: Vec<Option<Vec<u8>>> = vec![None; members.len()];

    let file = File::open(path).map_err(|e| DataError::io(path, Action::Read, e))?;
    let mut archive = tar::Archive::new(Counted { reader: MultiGzDecoder::new(file), n_read: 0 });
    let damaged = |e| gzip_error(path, e);
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let member = entry.path().map_err(damaged)?.file_name().map(ToOwned::to_owned);
        let Some(idx) = members.iter().position(|wanted| member.as_deref() == Some(wanted.as_ref())) else {
            continue;
        };
        let (expected, got) = (parser.file_len(), entry.size());
        let member_path = path.join(members[idx]);
        if got < expected {
            return Err(DataError::Truncated { path: member_path, expected, got });
        }
        if got > expected {
            return Err(DataError::TrailingBytes { path: member_path, expected });
        }
        let mut bytes = Vec::with_capacity(expected as usize);
        entry.read_to_end(&mut bytes).map_err(damaged)?;
        found[idx] = Some(bytes);
    }
    expect_zeros(archive.into_inner(), path)?;

    for (member, bytes) in members.iter().zip(found) {
        let bytes = bytes.ok_or_else(|| DataError::MissingMember {
            path: path.to_owned(),
            name,
            member: (*member).into(),
        })?;
        if (bytes.len() as u64) < parser.file_len() {
            return Err(DataError::Truncated {
                path: path.join(member),
                expected: parser.file_len(),
                got: bytes.len() as u64,
            });
        }
        parser.add(&path.join(member), &bytes)?;
    }
    Ok(parser.finish())
}

/// A reader that knows how much was read from it.
struct Counted<R> {
    reader: R,
    n_read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.n_read += n as u64;
        Ok(n)
    }
}

/// Reads what follows the end mark of an archive, which may be zeros up to a full block of the tape. With this the
/// decoder also compares its checksum.
fn expect_zeros(mut rest: Counted<impl Read>, path: &Path) -> Result<(), DataError> {
    let expected = rest.n_read;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match read_up_to(&mut rest, &mut buffer).map_err(|e| gzip_error(path, e))? {
            0 => return Ok(()),
            n if buffer[..n].iter().all(|&byte| byte == 0) => {}
            _ => return Err(DataError::TrailingBytes { path: path.to_owned(), expected }),
        }
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
