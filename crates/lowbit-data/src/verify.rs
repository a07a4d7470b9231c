//! Comparing the files at hand with the published ones.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use md5::Md5;
use sha2::digest::Output;
use sha2::{Digest, Sha256};

use crate::cifar::Layout;
use crate::error::{Action, ChecksumKind};
use crate::locate::{self, Found};
use crate::read::{Content, open_content};
use crate::{DataError, DatasetName, LabelKind, Locations, RemoteFile, Split, digits, open};

/// What [`verify`] found.
#[derive(Debug)]
pub struct VerifyReport {
    /// The data set.
    pub name: DatasetName,
    /// Every file looked at, in the order of the catalog.
    pub files: Vec<FileReport>,
    /// For each part, the number of samples read from it or why it could not be read.
    pub splits: Vec<SplitReport>,
}

impl VerifyReport {
    /// Whether every part can be read, has the published number of samples, and no checksum differs. Files without a
    /// published checksum count as good: [`VerifyReport::is_compared`] tells whether there are some.
    pub fn is_ok(&self) -> bool {
        let info = self.name.info();
        let file_ok =
            |file: &FileReport| matches!(file.status, FileStatus::Ok { .. } | FileStatus::NoChecksum);
        let split_ok = |split: &SplitReport| {
            let expected = if split.split == Split::Train { info.n_train } else { info.n_test };
            split.n_samples.as_ref().is_ok_and(|&n| n == expected)
        };
        self.files.iter().all(file_ok) && self.splits.iter().all(split_ok)
    }

    /// Whether every file could be compared with a checksum.
    pub fn is_compared(&self) -> bool {
        !self.files.iter().any(|file| matches!(file.status, FileStatus::NoChecksum))
    }
}

/// What [`verify`] found about one file.
#[derive(Debug)]
pub struct FileReport {
    /// The file: where it is, its bare name if it was not found, or `(built in)`.
    pub path: PathBuf,
    /// The finding.
    pub status: FileStatus,
}

/// The state of one file.
#[derive(Debug)]
#[non_exhaustive]
pub enum FileStatus {
    /// The published file, or one with the same content.
    Ok {
        /// The checksum that agrees.
        kind: ChecksumKind,
    },
    /// No checksum of this file is published; whether it can be read is told by the parts.
    NoChecksum,
    /// Not the published file.
    Differs {
        /// The checksum's kind.
        kind: ChecksumKind,
        /// The published checksum, in hexadecimal.
        expected: String,
        /// The checksum of the file, in hexadecimal.
        got: String,
    },
    /// Not in any location.
    Missing,
    /// There, but not readable.
    Unreadable(DataError),
}

/// What [`verify`] found about one part of a data set.
#[derive(Debug)]
pub struct SplitReport {
    /// The part.
    pub split: Split,
    /// Number of samples, or why the part cannot be read.
    pub n_samples: Result<usize, DataError>,
}

/// Checks the files that [`open`] would read, and reads them.
///
/// Findings about the files, also that they are missing, are in the report: this function does not fail.
///
/// ```
/// use lowbit_data::{DatasetName, Locations, verify};
///
/// assert!(verify(DatasetName::Digits, &Locations::default_with(None)).is_ok());
/// ```
pub fn verify(name: DatasetName, locations: &Locations) -> VerifyReport {
    let mut files: Vec<FileReport> = Vec::new();
    let mut splits = Vec::new();
    for &split in Split::ALL {
        let reports = match locate::find(name, split, locations) {
            Ok(found) => report(name, split, found),
            Err(DataError::MissingFile { dir, .. }) => partial(name, split, &dir),
            Err(_) => missing(name, split),
        };
        for file in reports {
            if !files.iter().any(|known| known.path == file.path) {
                files.push(file);
            }
        }
        let n_samples = open(name, split, LabelKind::Fine, locations).map(|dataset| dataset.len());
        splits.push(SplitReport { split, n_samples });
    }
    VerifyReport { name, files, splits }
}

fn report(name: DatasetName, split: Split, found: Found) -> Vec<FileReport> {
    match found {
        Found::BuiltIn => {
            let got = format!("{:x}", Sha256::digest(digits::BYTES));
            let kind = ChecksumKind::ContentSha256;
            let status = if got == digits::SHA256 {
                FileStatus::Ok { kind }
            } else {
                FileStatus::Differs { kind, expected: digits::SHA256.into(), got }
            };
            vec![FileReport { path: "(built in)".into(), status }]
        }
        Found::CifarFiles(paths) => {
            let unchecked = |path| FileReport { path, status: FileStatus::NoChecksum };
            paths.into_iter().map(unchecked).collect()
        }
        Found::CifarArchive(path) => vec![checked(path, &name.info().files[0])],
        Found::Idx { images, labels } => {
            let published = files_of(name, split);
            [images, labels].into_iter().zip(published).map(|(path, file)| checked(path, file)).collect()
        }
    }
}

fn missing(name: DatasetName, split: Split) -> Vec<FileReport> {
    let report = |file: &RemoteFile| FileReport { path: file.file_name.into(), status: FileStatus::Missing };
    files_of(name, split).iter().map(report).collect()
}

/// A directory that lacks some of the files of a part.
fn partial(name: DatasetName, split: Split, dir: &Path) -> Vec<FileReport> {
    let present = locate::present(name, split, dir).into_iter().enumerate();
    let report = |(idx, file): (usize, Result<PathBuf, String>)| match (file, Layout::of(name)) {
        (Err(missing), _) => FileReport { path: missing.into(), status: FileStatus::Missing },
        (Ok(path), Some(_)) => FileReport { path, status: FileStatus::NoChecksum },
        (Ok(path), None) => checked(path, &files_of(name, split)[idx]),
    };
    present.map(report).collect()
}

/// The published files that one part is read from; an archive has both parts.
fn files_of(name: DatasetName, split: Split) -> &'static [RemoteFile] {
    let files = name.info().files;
    match (Layout::of(name), split) {
        (Some(_), _) => files,
        (None, Split::Train) => &files[..files.len() / 2],
        (None, Split::Test) => &files[files.len() / 2..],
    }
}

fn checked(path: PathBuf, file: &RemoteFile) -> FileReport {
    let status = check_file(&path, file).unwrap_or_else(FileStatus::Unreadable);
    FileReport { path, status }
}

/// Compares a file with the published one: by its MD5 and, if that differs, by the SHA-256 of its content, since the
/// same content may be stored raw or compressed by another program.
pub(crate) fn check_file(path: &Path, file: &RemoteFile) -> Result<FileStatus, DataError> {
    let io_error = |e| DataError::io(path, Action::Read, e);
    let md5 = digest::<Md5>(&mut File::open(path).map_err(io_error)?).map_err(io_error)?;
    if md5 == file.md5 {
        return Ok(FileStatus::Ok { kind: ChecksumKind::Md5 });
    }
    let differs = FileStatus::Differs { kind: ChecksumKind::Md5, expected: file.md5.into(), got: md5 };
    let Some(expected) = file.content_sha256 else { return Ok(differs) };
    let mut content = open_content(path)?;
    match digest::<Sha256>(&mut content) {
        Ok(got) if got == expected => Ok(FileStatus::Ok { kind: ChecksumKind::ContentSha256 }),
        Ok(got) if matches!(content, Content::Raw(_)) => {
            Ok(FileStatus::Differs { kind: ChecksumKind::ContentSha256, expected: expected.into(), got })
        }
        Ok(_) => Ok(differs),
        // Not decompressible: not the published file either.
        Err(e) => match content.error(path, e) {
            DataError::CorruptGzip { .. } => Ok(differs),
            other => Err(other),
        },
    }
}

fn digest<D: Digest>(reader: &mut impl Read) -> std::io::Result<String>
where
    Output<D>: fmt::LowerHex,
{
    let mut digest = D::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(format!("{:x}", digest.finalize())),
            Ok(n) => digest.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
