//! The index of a folder as a file, so that the next start need not look at every image: on a network's disk, a million
//! questions take minutes.
//!
//! It is kept in the user's cache, never beside the images, and is no record: whatever is wrong with it, the folder is
//! scanned again.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::index::{Container, ImageIndex, Skipped, Unusable};
use crate::read::open_regular;

const MAGIC: &[u8] = b"lowbit image index 4\n";

/// The largest index that is read.
const MAX_LEN: u64 = 2 << 30;

/// A file system may tell times this coarsely: a directory that was changed shortly before it was read may have been changed
/// once more since, at the same time.
const COARSENESS: Duration = Duration::from_secs(2);

/// Where indices are kept: `$XDG_CACHE_HOME/lowbit/index`, or `~/.cache/lowbit/index`; `None` if there is no home directory.
pub fn index_cache() -> Option<PathBuf> {
    cache_home(std::env::var_os("XDG_CACHE_HOME"), std::env::home_dir()).map(|home| home.join("lowbit/index"))
}

fn cache_home(xdg: Option<OsString>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The XDG base directory specification: a relative path is invalid and to be ignored.
    let xdg = xdg.map(PathBuf::from).filter(|path| path.is_absolute());
    xdg.or_else(|| home.filter(|path| !path.as_os_str().is_empty()).map(|home| home.join(".cache")))
}

/// As what a folder was indexed: what is beside it may say the classes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role {
    /// One that was given.
    Whole,
    /// A part of one that was given.
    Part,
    /// A part of ILSVRC-2012.
    ImageNet,
}

/// The file of the index of `root` in `cache`.
pub(super) fn file_of(cache: &Path, root: &Path, role: Role) -> PathBuf {
    let text = [format!("{role:?} ").as_bytes(), root.as_os_str().as_encoded_bytes()].concat();
    let name = format!("{:x}", Sha256::digest(text));
    cache.join(format!("{}.index", &name[..16]))
}

/// The index in `file`, if it is that of `root` as it is now.
pub(super) fn read(file: &Path, root: &Path) -> Option<ImageIndex> {
    let mut bytes = Vec::new();
    let opened = open_regular(file).ok()?;
    let length = opened.metadata().ok().map(|metadata| metadata.len()).filter(|length| *length <= MAX_LEN)?;
    opened.take(length).read_to_end(&mut bytes).ok()?;
    let (content, sum) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
        return None;
    }
    let index = decode(content.strip_prefix(MAGIC)?)?;
    // What could not be used may be usable now: a link may lead to something again.
    (index.root == root && index.unusable.n == 0 && is_current(&index)).then_some(index)
}

/// Whether no directory, archive or list of classes has changed since. That an image was written over is noticed when it is read.
fn is_current(index: &ImageIndex) -> bool {
    index.containers.iter().all(|Container { path, modified: then, archive: length }| {
        let is_settled = |then: SystemTime| then.checked_add(COARSENESS).is_some_and(|end| end < index.made);
        then.is_some_and(is_settled)
            && fs::metadata(index.root.join(path)).is_ok_and(|now| {
                now.modified().ok() == *then && length.is_none_or(|length| length == now.len())
            })
    })
}

/// Writes the index of a folder under a name of its own, then renames it.
///
/// # Errors
/// Any of the file system.
pub(super) fn write(file: &Path, index: &ImageIndex) -> std::io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    encode(index, &mut bytes);
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    let directory = file.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(directory)?;
    let partial = file.with_extension(format!("{}.part", std::process::id()));
    let written = File::create(&partial).and_then(|mut file| file.write_all(&bytes));
    written.and_then(|()| fs::rename(&partial, file)).inspect_err(|_| drop(fs::remove_file(&partial)))
}

fn put_number(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend(number.to_le_bytes());
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    put_number(bytes, text.len() as u64);
    bytes.extend(text.as_bytes());
}

fn put_time(bytes: &mut Vec<u8>, time: Option<SystemTime>) {
    let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    // A time that is not known is never that of a directory: the index is then made again.
    put_number(bytes, since.map_or(0, |since| since.as_secs()));
    put_number(bytes, since.map_or(0, |since| since.subsec_nanos().into()));
}

fn encode(index: &ImageIndex, bytes: &mut Vec<u8>) {
    put_text(bytes, &index.root.to_string_lossy());
    put_time(bytes, Some(index.made));
    put_number(bytes, index.classes.len() as u64);
    index.classes.iter().for_each(|class| put_text(bytes, class));
    put_number(bytes, index.containers.len() as u64);
    for Container { path, modified, archive } in &index.containers {
        put_text(bytes, path);
        put_time(bytes, *modified);
        put_number(bytes, archive.unwrap_or(u64::MAX));
    }
    put_number(bytes, index.len() as u64);
    for values in [&index.ends, &index.places, &index.lengths] {
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    }
    index.labels.iter().for_each(|label| bytes.extend(label.to_le_bytes()));
    put_number(bytes, index.offsets.len() as u64);
    index.offsets.iter().for_each(|offset| put_number(bytes, *offset));
    put_text(bytes, &index.names);
    let Skipped { hidden, others, links, special } = &index.skipped;
    [*hidden, *links, *special, others.len() as u64].into_iter().for_each(|n| put_number(bytes, n));
    for (ending, n) in others {
        put_text(bytes, ending);
        put_number(bytes, *n);
    }
    put_number(bytes, index.unusable.n);
    put_number(bytes, index.unusable.first.len() as u64);
    for (path, reason) in &index.unusable.first {
        put_text(bytes, path);
        put_text(bytes, reason);
    }
}

/// What is left to be read of a file, none of which is trusted.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// A number of things that take at least `size` bytes each, so that no memory is taken for more than are there.
    fn count(&mut self, size: usize) -> Option<usize> {
        let n = usize::try_from(self.number()?).ok()?;
        (n.checked_mul(size)? <= self.0.len()).then_some(n)
    }

    fn text(&mut self) -> Option<&'a str> {
        let n = self.count(1)?;
        std::str::from_utf8(self.bytes(n)?).ok()
    }

    fn time(&mut self) -> Option<SystemTime> {
        let (seconds, nanoseconds) = (self.number()?, u32::try_from(self.number()?).ok()?);
        UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds.min(999_999_999)))
    }

    fn numbers(&mut self, n: usize) -> Option<Vec<u32>> {
        let bytes = self.bytes(n.checked_mul(4)?)?;
        Some(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

fn decode(bytes: &[u8]) -> Option<ImageIndex> {
    let mut rest = Rest(bytes);
    let root = PathBuf::from(rest.text()?);
    let made = rest.time()?;
    let n_classes = rest.count(8)?;
    let classes = (0..n_classes).map(|_| rest.text().map(str::to_owned)).collect::<Option<Vec<_>>>()?;
    let n_containers = rest.count(32)?;
    let container = |_| {
        let path = rest.text()?.to_owned();
        let modified = Some(rest.time()?);
        Some(Container { path, modified, archive: Some(rest.number()?).filter(|length| *length != u64::MAX) })
    };
    let containers = (0..n_containers).map(container).collect::<Option<Vec<_>>>()?;
    let n = rest.count(14)?;
    let (ends, places, lengths) = (rest.numbers(n)?, rest.numbers(n)?, rest.numbers(n)?);
    let labels: Vec<u16> =
        rest.bytes(2 * n)?.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect();
    let n_offsets = rest.count(8)?;
    let offsets = (0..n_offsets).map(|_| rest.number()).collect::<Option<Vec<_>>>()?;
    let names = rest.text()?.to_owned();
    let (hidden, links, special) = (rest.number()?, rest.number()?, rest.number()?);
    let n_others = rest.count(16)?;
    let others =
        (0..n_others).map(|_| Some((rest.text()?.to_owned(), rest.number()?))).collect::<Option<_>>()?;
    let n_unusable = rest.number()?;
    let n_first = rest.count(16)?;
    let first = (0..n_first)
        .map(|_| Some((rest.text()?.to_owned(), rest.text()?.to_owned())))
        .collect::<Option<_>>()?;
    let is_sound = rest.0.is_empty()
        && ends.is_sorted()
        && ends.last().map_or(0, |end| *end as usize) == names.len()
        && ends.iter().all(|end| names.is_char_boundary(*end as usize))
        && places.iter().all(|place| (*place as usize) < containers.len())
        && (offsets.len() == n
            || offsets.is_empty() && containers.iter().all(|place| place.archive.is_none()))
        && labels.iter().all(|label| usize::from(*label) < classes.len());
    is_sound.then_some(ImageIndex {
        root,
        classes,
        containers,
        names,
        ends,
        places,
        offsets,
        lengths,
        labels,
        skipped: Skipped { hidden, others, links, special },
        unusable: Unusable { n: n_unusable, first },
        made,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::scan::scan;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in
            [("a/1.jpg", "x"), ("a/deep/2.PNG", "yy"), ("b/3.jpeg", "zzz"), ("b/notes.txt", "")]
        {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    /// An index that was made long after the folder.
    fn later(mut index: ImageIndex) -> ImageIndex {
        index.made += Duration::from_secs(10);
        index
    }

    #[test]
    fn what_is_written_is_read_while_nothing_has_changed() {
        let (dir, cache) = (folder(), tempfile::tempdir().unwrap());
        let file = file_of(&cache.path().join("new"), dir.path(), Role::Whole);
        let index = later(scan(dir.path()).unwrap());
        write(&file, &index).unwrap();
        assert_eq!(read(&file, dir.path()).unwrap(), index);
        assert_eq!(read(&file, cache.path()), None, "of another folder");

        // A moment ago may be now.
        write(&file, &scan(dir.path()).unwrap()).unwrap();
        assert_eq!(read(&file, dir.path()), None);

        write(&file, &index).unwrap();
        fs::write(dir.path().join("a/deep/4.jpg"), "more").unwrap();
        assert_eq!(read(&file, dir.path()), None, "a file was added in the depth");
    }

    /// The names of the classes are from a file that may be edited, or made later.
    #[test]
    fn other_names_of_classes_are_noticed() {
        let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (part, list) = (dir.path().join("train"), dir.path().join("classes.txt"));
        let file = file_of(cache.path(), &part, Role::Part);
        fs::create_dir(&part).unwrap();
        let mut shard = tar::Builder::new(File::create(part.join("a.tar")).unwrap());
        for (name, content) in [("1.png", "x"), ("1.cls", "1")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            shard.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        shard.into_inner().unwrap();
        let keep = || {
            let index = later(crate::folder::scan_part(&part, "train").unwrap());
            write(&file, &index).unwrap();
            assert_eq!(read(&file, &part), Some(index));
        };
        keep();
        std::thread::sleep(Duration::from_millis(20));
        fs::write(&list, "a\nb\n").unwrap();
        assert_eq!(read(&file, &part), None, "names were added");

        keep();
        let then = fs::metadata(&list).unwrap().modified().unwrap();
        let edit = |content: &str, modified: SystemTime| {
            fs::write(&list, content).unwrap();
            File::options().write(true).open(&list).unwrap().set_modified(modified).unwrap();
        };
        edit("c\nb\n", then + Duration::from_secs(1));
        assert_eq!(read(&file, &part), None, "names of the same length");
        edit("long\nb\n", then);
        assert_eq!(read(&file, &part), None, "names of the same time");
        edit("a\nb\n", then);
        assert!(read(&file, &part).is_some());
    }

    /// A damaged index is none, whatever it says.
    #[test]
    fn no_damage_is_believed() {
        let (dir, cache) = (folder(), tempfile::tempdir().unwrap());
        let file = file_of(cache.path(), dir.path(), Role::Whole);
        write(&file, &later(scan(dir.path()).unwrap())).unwrap();
        let whole = fs::read(&file).unwrap();
        let body = &whole[..whole.len() - 4];
        for at in (0..body.len()).step_by(3) {
            for value in [0xff, body[at] ^ 1] {
                let mut damaged = body.to_vec();
                damaged[at] = value;
                // With a sum that agrees, so that the content itself is looked at.
                let mut signed = damaged.clone();
                signed.extend(crc32fast::hash(&damaged).to_le_bytes());
                fs::write(&file, &signed).unwrap();
                if let Some(index) = read(&file, dir.path()) {
                    (0..index.len()).for_each(|image| drop((index.name(image), index.path(image))));
                }
                if damaged != body {
                    damaged.extend(&whole[body.len()..]);
                    fs::write(&file, &damaged).unwrap();
                    assert_eq!(read(&file, dir.path()), None, "byte {at}");
                }
            }
            fs::write(&file, &whole[..at]).unwrap();
            assert_eq!(read(&file, dir.path()), None, "cut at {at}");
        }
    }

    #[test]
    fn the_cache_follows_xdg() {
        let check = |xdg: Option<&str>, home: Option<&str>, expected: Option<&str>| {
            assert_eq!(cache_home(xdg.map(Into::into), home.map(Into::into)), expected.map(PathBuf::from));
        };
        check(Some("/xdg"), Some("/home/u"), Some("/xdg"));
        check(None, Some("/home/u"), Some("/home/u/.cache"));
        check(Some("relative"), Some("/home/u"), Some("/home/u/.cache"));
        check(None, Some(""), None);
    }
}
