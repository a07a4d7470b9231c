//! Images in tar archives, read in place.
//!
//! An archive is looked through once, header by header; what is in it is never unpacked. Nothing that a header says is believed: an
//! image lies within its file, names are short, and links, sparse files and names that lead elsewhere are none.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::index::{Container, ImageIndex, MAX_IMAGE_FILE};
use super::scan::{count_other, is_image, modified, too_long};
use crate::DataError;
use crate::FileKind;
use crate::error::{Action, FolderProblem};
use crate::read::{open_regular, read_up_to};

/// The longest name or extended header that is read.
const MAX_EXTENSION: u64 = 64 << 10;

/// A regular file in an archive.
pub(super) struct Member {
    pub(super) name: String,
    /// Where its content begins, in the outermost archive.
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// What an archive has.
pub(super) enum Found {
    File(Member),
    /// Something that is no image, whatever its name, and why.
    Odd(String, &'static str),
}

/// A part of a file, from `start` on.
struct Section<'a> {
    file: &'a File,
    start: u64,
    length: u64,
    at: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at);
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let mut file = self.file;
        file.seek(SeekFrom::Start(self.start + self.at))?;
        let n = file.read(&mut buffer[..wanted])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Section<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.length.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// An archive that is looked through.
pub(super) struct Archive<'a> {
    path: &'a Path,
    file: File,
    length: u64,
}

impl<'a> Archive<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, DataError> {
        let file = open_regular(path)?;
        let length = file.metadata().map_err(|error| DataError::io(path, Action::Read, error))?.len();
        let mut start = [0; FileKind::START_LEN];
        let n =
            read_up_to(&mut &file, &mut start).map_err(|error| DataError::io(path, Action::Read, error))?;
        match FileKind::of(&start[..n]) {
            kind @ (FileKind::Gzip | FileKind::Zip | FileKind::Bzip2 | FileKind::Xz | FileKind::Zstd) => {
                Err(DataError::CorruptTar {
                    path: path.to_owned(),
                    reason: format!("it is {kind}, which is not read in place: unpack it"),
                })
            }
            _ => Ok(Archive { path, file, length }),
        }
    }

    /// Its place in an index, by its path below the root.
    pub(super) fn container(&self, path: String) -> Result<Container, DataError> {
        let metadata = self.file.metadata().map_err(|error| DataError::io(self.path, Action::Read, error))?;
        Ok(Container { path, modified: metadata.modified().ok(), archive: Some(self.length) })
    }

    /// Gives everything in it to `seen`.
    pub(super) fn members(&self, seen: impl FnMut(Found) -> Result<(), DataError>) -> Result<(), DataError> {
        self.members_within(0, self.length, seen)
    }

    /// The same of an archive that is itself a member.
    pub(super) fn members_within(
        &self,
        start: u64,
        length: u64,
        mut seen: impl FnMut(Found) -> Result<(), DataError>,
    ) -> Result<(), DataError> {
        let corrupt = |reason: String| DataError::CorruptTar {
            path: self.path.to_owned(),
            // The names in it may be anything.
            reason: reason.escape_debug().to_string(),
        };
        let damaged = |error: io::Error| corrupt(error.to_string());
        let section = Section { file: &self.file, start, length, at: 0 };
        let mut archive = tar::Archive::new(section);
        let mut long_name: Option<Vec<u8>> = None;
        let mut end = 0;
        for entry in archive.entries_with_seek().map_err(damaged)?.raw(true) {
            let mut entry = entry.map_err(damaged)?;
            let kind = entry.header().entry_type();
            let size = entry.size();
            if kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions() {
                let name = extension_of(&mut entry, size).map_err(damaged)?;
                if !kind.is_gnu_longlink() {
                    long_name = name.or(long_name);
                }
                continue;
            }
            let name = long_name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
            let offset = entry.raw_file_position();
            end = offset.saturating_add(size);
            if kind.is_dir() || kind.is_pax_global_extensions() {
                continue;
            }
            let escaped = || String::from_utf8_lossy(&name).escape_debug().to_string();
            if !kind.is_file() {
                let reason = match kind {
                    kind if kind.is_gnu_sparse() => "it is a sparse file",
                    kind if kind.is_symlink() || kind.is_hard_link() => "it is a link",
                    _ => "it is no regular file",
                };
                seen(Found::Odd(escaped(), reason))?;
                continue;
            }
            if end > length {
                return Err(corrupt(format!("{} ends after the archive", escaped())));
            }
            let Ok(name) = String::from_utf8(name.clone()) else {
                seen(Found::Odd(escaped(), "its name is no UTF-8"))?;
                continue;
            };
            let leads_elsewhere = name.starts_with('/') || name.split('/').any(|part| part == "..");
            if leads_elsewhere || name.chars().any(char::is_control) {
                seen(Found::Odd(escaped(), "its name leads out of the archive, or is none"))?;
                continue;
            }
            let name = name.trim_start_matches("./").to_owned();
            seen(Found::File(Member { name, offset: start + offset, length: size }))?;
        }
        // Of what comes after the last member, the padding and the end mark may be missing, but no content.
        if end > length {
            return Err(corrupt("it ends within a file".into()));
        }
        Ok(())
    }

    /// A small file in it, as text.
    fn text(&self, member: &Member) -> Result<String, DataError> {
        let mut bytes = Vec::new();
        let mut file = &self.file;
        let read = file
            .seek(SeekFrom::Start(member.offset))
            .and_then(|_| file.take(member.length).read_to_end(&mut bytes));
        read.map_err(|error| DataError::io(self.path, Action::Read, error))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// The name that an extension gives to the member after it, if it gives one.
fn extension_of(entry: &mut impl Read, size: u64) -> io::Result<Option<Vec<u8>>> {
    if size > MAX_EXTENSION {
        return Err(io::Error::other(format!("a name or header of {size} bytes")));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes)?;
    // The records of POSIX begin with their length in digits; GNU has the bare name.
    let mut records = tar::PaxExtensions::new(&bytes).peekable();
    if records.peek().is_some_and(Result::is_ok) {
        let path = records.filter_map(Result::ok).find(|record| record.key_bytes() == b"path");
        return Ok(path.map(|record| record.value_bytes().to_vec()));
    }
    Ok(Some(bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec()))
}

/// A name in an archive, for messages: one that begins with `/` is in it too.
pub(super) fn within(archive: &Path, name: &str) -> PathBuf {
    let mut path = archive.as_os_str().to_owned();
    path.push("/");
    path.push(name);
    path.into()
}

/// Whether `name` is that of an archive, by its ending.
pub(super) fn is_archive(name: &str) -> bool {
    name.len() > 4 && name.as_bytes()[name.len() - 4..].eq_ignore_ascii_case(b".tar")
}

/// Bytes of a label in a shard.
const MAX_LABEL: u64 = 32;

/// The name of the file with the names of the classes, one a line, beside shards.
pub(super) const CLASSES: &str = "classes.txt";

/// The images of the shards in `root`: tar archives in the layout of WebDataset, where `key.jpg` and `key.cls` follow one
/// another, the second with the number of the class. `classes` are the names, of what is in `list`; without them, classes are named by
/// their numbers.
pub(super) fn scan_shards(
    root: &Path,
    shards: &[String],
    classes: Option<Vec<String>>,
    list: Option<Container>,
) -> Result<ImageIndex, DataError> {
    let mut index = ImageIndex::new(root.to_owned(), Vec::new());
    index.containers.push(Container::directory(String::new(), modified(root)?));
    index.containers.extend(list);
    let mut largest = 0;
    for shard in shards {
        let path = root.join(shard);
        let archive = Archive::open(&path)?;
        let place = index.containers.len() as u32;
        index.containers.push(archive.container(shard.clone())?);
        // The samples of which one of two files has come.
        let mut open: BTreeMap<String, (Option<Member>, Option<u16>)> = BTreeMap::new();
        archive.members(|found| {
            let member = match found {
                Found::File(member) => member,
                Found::Odd(name, reason) => {
                    index.unusable.add(&within(&path, &name), reason);
                    return Ok(());
                }
            };
            let (key, ending) = key_of(&member.name);
            if ending == "cls" {
                // What is longer is not cut: its start may be another number.
                let text = match member.length <= MAX_LABEL {
                    true => archive.text(&member)?,
                    false => String::new(),
                };
                match text.trim().parse::<u16>() {
                    Ok(label) => match &mut open.entry(key.clone()).or_default().1 {
                        Some(_) => {
                            index.unusable.add(&within(&path, &member.name), "its image has a class already");
                        }
                        none => *none = Some(label),
                    },
                    Err(_) => index
                        .unusable
                        .add(&within(&path, &member.name), "it has no class number from 0 to 65535"),
                }
            } else if is_image(Path::new(&member.name)) {
                let sample = open.entry(key.clone()).or_default();
                match &sample.0 {
                    Some(first) => {
                        let first = first.name.escape_debug();
                        let reason = format!("its key is that of {first}: one image has one class (.cls)");
                        index.unusable.add(&within(&path, &member.name), reason);
                    }
                    None => sample.0 = Some(member),
                }
            } else {
                count_other(&mut index, Path::new(&member.name));
            }
            let is_whole = open.get(&key).is_some_and(|sample| sample.0.is_some() && sample.1.is_some());
            if !is_whole {
                return if open.len() > MAX_OPEN { Err(not_paired(&path)) } else { Ok(()) };
            }
            let Some((Some(member), Some(label))) = open.remove(&key) else { return Ok(()) };
            match u32::try_from(member.length) {
                Ok(length) if length <= MAX_IMAGE_FILE => {
                    largest = largest.max(label);
                    index.push(place, &member.name, length, label)?;
                    index.offsets.push(member.offset);
                }
                _ => index.unusable.add(&within(&path, &member.name), too_long(member.length)),
            }
            Ok(())
        })?;
        for (key, (member, _)) in open {
            let reason =
                if member.is_some() { "it has no class (.cls)" } else { "it has a class, but no image" };
            index.unusable.add(&within(&path, &key), reason);
        }
    }
    index.classes = named(root, classes, largest, index.is_empty())?;
    index.shrink();
    Ok(index)
}

/// Samples of which one of two files has come: in shards they follow one another, so that more are of another layout.
const MAX_OPEN: usize = 1000;

fn not_paired(path: &Path) -> DataError {
    DataError::Folder { path: path.to_owned(), problem: FolderProblem::NotPaired { n: MAX_OPEN } }
}

/// The key of a sample and the ending of a file's name, in lower case: as WebDataset has it, up to the first dot of the last part.
fn key_of(name: &str) -> (String, String) {
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[start..].find('.') {
        Some(dot) => (name[..start + dot].to_owned(), name[start + dot + 1..].to_ascii_lowercase()),
        None => (name.to_owned(), String::new()),
    }
}

/// The names of the classes of shards with labels up to `largest`.
fn named(
    root: &Path,
    classes: Option<Vec<String>>,
    largest: u16,
    is_empty: bool,
) -> Result<Vec<String>, DataError> {
    let n = if is_empty { 0 } else { usize::from(largest) + 1 };
    match classes {
        Some(classes) if classes.len() >= n => Ok(classes),
        Some(classes) => {
            let problem = FolderProblem::LabelBeyondNames { label: largest, n_names: classes.len() };
            Err(DataError::Folder { path: root.to_owned(), problem })
        }
        None => Ok((0..n).map(|class| class.to_string()).collect()),
    }
}

/// The most bytes of a list of classes.
const MAX_CLASSES_FILE: u64 = 16 << 20;

/// The names of classes in a file, one a line.
pub(super) fn read_classes(path: &Path) -> Result<Vec<String>, DataError> {
    let mut text = String::new();
    open_regular(path)?
        .take(MAX_CLASSES_FILE)
        .read_to_string(&mut text)
        .map_err(|error| DataError::io(path, Action::Read, error))?;
    // A byte order mark is no part of the first name.
    let text = text.trim_start_matches('\u{feff}');
    let classes: Vec<String> = text.lines().map(|line| line.trim_end_matches('\r').to_owned()).collect();
    let mut seen = std::collections::HashSet::new();
    if let Some(class) = classes.iter().find(|class| class.is_empty() || !seen.insert(*class)) {
        let problem = FolderProblem::ClassNames { class: class.escape_debug().to_string() };
        return Err(DataError::Folder { path: path.to_owned(), problem });
    }
    if classes.len() > super::scan::MAX_CLASSES {
        let problem = FolderProblem::TooManyClasses { got: classes.len(), limit: super::scan::MAX_CLASSES };
        return Err(DataError::Folder { path: path.to_owned(), problem });
    }
    Ok(classes)
}
