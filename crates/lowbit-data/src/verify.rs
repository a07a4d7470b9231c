//! Comparing the files at hand with the published ones.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::catalog::{files_of, published_contents};
use crate::cifar::Layout;
use crate::error::{Action, ChecksumKind};
use crate::locate::{self, Found};
use crate::read::{Content, open_regular};
use crate::{
    DataError, DataWarning, DatasetName, LabelKind, Locations, Opened, RemoteFile, Split, digits, open,
    warnings,
};

/// The most content of a file that is looked at: no published file has as much, and a small one may decompress to any
/// length.
const MAX_CONTENT: u64 = 1 << 30;

/// What [`verify`] found.
#[derive(Debug)]
pub struct VerifyReport {
    /// The data set.
    pub name: DatasetName,
    /// Every file looked at, in the order of the catalog.
    pub files: Vec<FileReport>,
    /// For each part, the number of samples read from it or why it could not be read.
    pub splits: Vec<SplitReport>,
    /// What is doubtful about the images, if both parts could be read.
    pub warnings: Vec<DataWarning>,
}

impl VerifyReport {
    /// Whether every part can be read, and every file is the published one.
    pub fn is_ok(&self) -> bool {
        self.files.iter().all(|file| matches!(file.status, FileStatus::Ok { .. }))
            && self.splits.iter().all(|split| split.n_samples.is_ok())
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
/// ```
/// use lowbit_data::{DatasetName, Locations, verify};
///
/// assert!(verify(DatasetName::Digits, &Locations::default_with(None))?.is_ok());
/// # Ok::<(), lowbit_data::DataError>(())
/// ```
///
/// # Errors
/// [`DataError::NotFound`] if no location has any file of the data set, or the error of a given directory that is not
/// there. Findings about files that are there are in the report.
pub fn verify(name: DatasetName, locations: &Locations) -> Result<VerifyReport, DataError> {
    locate::check_data_dir(locations)?;
    let found = Split::ALL.iter().map(|&split| locate::find(name, split, locations)).collect::<Vec<_>>();
    if found.iter().all(|found| matches!(found, Err(DataError::NotFound { .. }))) {
        return Err(locate::not_found(name, None, locations));
    }
    let opened: Vec<Result<Opened, DataError>> =
        Split::ALL.iter().map(|&split| open(name, split, LabelKind::Fine, locations)).collect();
    let mut files: Vec<FileReport> = Vec::new();
    for ((&split, found), opened) in Split::ALL.iter().zip(found).zip(&opened) {
        let reports = match found {
            Ok(found) => report(name, split, found, opened),
            Err(DataError::MissingFile { dir, .. }) => partial(name, split, &dir),
            Err(DataError::NotFound { .. }) => missing(name, split),
            // Said of the part.
            Err(_) => Vec::new(),
        };
        for file in reports {
            if !files.iter().any(|known| known.path == file.path) {
                files.push(file);
            }
        }
    }
    let warnings = match opened.as_slice() {
        [Ok(train), Ok(test)] => warnings(Some(train), test),
        _ => Vec::new(),
    };
    let n_samples = opened.into_iter().map(|opened| opened.map(|opened| opened.n_in_files));
    let splits = Split::ALL.iter().zip(n_samples).map(|(&split, n_samples)| SplitReport { split, n_samples });
    Ok(VerifyReport { name, files, splits: splits.collect(), warnings })
}

fn report(
    name: DatasetName,
    split: Split,
    found: Found,
    opened: &Result<Opened, DataError>,
) -> Vec<FileReport> {
    match found {
        Found::BuiltIn => {
            let got = format!("{:x}", Sha256::digest(digits::BYTES));
            let status = compared(ChecksumKind::ContentSha256, digits::SHA256, got);
            vec![FileReport { path: "(built in)".into(), status }]
        }
        Found::CifarFiles(paths) => {
            let layout = Layout::of(name).expect("invariant: CIFAR files were located for a CIFAR data set");
            let sums = layout.files(split).iter().map(|member| member.sha256);
            paths.into_iter().zip(sums).map(|(path, sum)| checked_content(path, sum)).collect()
        }
        Found::CifarArchive(path) => {
            let file = &name.info().files[0];
            // An archive that was made anew has another checksum, but may hold the same.
            let is_published = opened.as_ref().is_ok_and(|opened| opened.published == Some(split));
            let status = match check_file(&path, file) {
                Ok(FileStatus::Differs { .. }) if is_published => {
                    FileStatus::Ok { kind: ChecksumKind::ContentSha256 }
                }
                status => status.unwrap_or_else(FileStatus::Unreadable),
            };
            vec![FileReport { path, status }]
        }
        Found::Idx { images, labels } => {
            let sums = files_of(name, split).iter().map(|file| file.sha256);
            [images, labels].into_iter().zip(sums).map(|(path, sum)| checked_content(path, sum)).collect()
        }
    }
}

fn missing(name: DatasetName, split: Split) -> Vec<FileReport> {
    let report = |file: &RemoteFile| FileReport { path: file.file_name.into(), status: FileStatus::Missing };
    files_of(name, split).iter().map(report).collect()
}

/// A directory that lacks some of the files of a part.
fn partial(name: DatasetName, split: Split, dir: &Path) -> Vec<FileReport> {
    let present = locate::present(name, split, dir).into_iter().zip(published_contents(name, split));
    let report = |(file, sum): (Result<PathBuf, String>, &str)| match file {
        Err(missing) => FileReport { path: missing.into(), status: FileStatus::Missing },
        Ok(path) => checked_content(path, sum),
    };
    present.map(report).collect()
}

fn checked_content(path: PathBuf, sha256: &str) -> FileReport {
    let status = content_sha256(&path).map(|got| compared(ChecksumKind::ContentSha256, sha256, got));
    FileReport { status: status.unwrap_or_else(FileStatus::Unreadable), path }
}

fn compared(kind: ChecksumKind, expected: &str, got: String) -> FileStatus {
    match got == expected {
        true => FileStatus::Ok { kind },
        false => FileStatus::Differs { kind, expected: expected.into(), got },
    }
}

/// Compares a file with the published one. The same content of an IDX file may be stored raw or compressed by another
/// program.
pub(crate) fn check_file(path: &Path, file: &RemoteFile) -> Result<FileStatus, DataError> {
    let got = match file.checksum {
        ChecksumKind::ContentSha256 => content_sha256(path)?,
        ChecksumKind::FileSha256 => {
            sha256(&mut open_regular(path)?).map_err(|e| DataError::io(path, Action::Read, e))?
        }
    };
    Ok(compared(file.checksum, file.sha256, got))
}

fn content_sha256(path: &Path) -> Result<String, DataError> {
    let (mut content, _) = Content::open(path)?;
    sha256(&mut (&mut content).take(MAX_CONTENT)).map_err(|e| content.error(path, e))
}

fn sha256(reader: &mut impl Read) -> io::Result<String> {
    let mut digest = Sha256::new();
    io::copy(reader, &mut digest)?;
    Ok(format!("{:x}", digest.finalize()))
}
