//! Writing what must survive a power cut, on file systems that lack a part of what that needs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::open_regular;

/// "No locks available": a network file system without its lock service.
const ENOLCK: i32 = if cfg!(any(target_os = "linux", target_os = "android")) { 37 } else { 77 };
/// Linux's own "not supported" between parts of the kernel, which some file systems let out.
const ENOTSUPP: i32 = 524;
const EPERM: i32 = 1;
const EIO: i32 = 5;
const EBADF: i32 = 9;
const EACCES: i32 = 13;
const EINVAL: i32 = 22;

/// Waits before each further try to write: a full disk or a server that is away may be back by then.
const WAITS: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];

/// Writes a file and syncs it to the disk.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = open_regular(path, OpenOptions::new().write(true).create(true).truncate(true))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Appends a line to the file at `path`, which is made if it is not there, and syncs it. One that was cut short before stays,
/// for itself.
pub(crate) fn append_line(path: &Path, line: &str) -> io::Result<()> {
    let mut file = open_regular(path, OpenOptions::new().create(true).read(true).append(true))?;
    let is_new = file.metadata()?.len() == 0;
    let mut last = *b"\n";
    if !is_new {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    let line_break = if last == *b"\n" { "" } else { "\n" };
    file.write_all(format!("{line_break}{line}\n").as_bytes())?;
    file.sync_all()?;
    if is_new { sync_parent(path) } else { Ok(()) }
}

/// Syncs the names in a directory to the disk, where the file system can: a file or directory in it survives a power cut
/// only then. [`probe`] says where it cannot. On Windows a directory is no file that could be synced.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    match sync_open_directory(path) {
        Err(error) if is_unsupported_sync(&error) => Ok(()),
        result => result,
    }
}

#[cfg(unix)]
fn sync_open_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(not(unix))]
fn sync_open_directory(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Whether an error of a directory's sync only says that there is no such thing.
fn is_unsupported_sync(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|code| [EPERM, EBADF, EACCES, EINVAL, ENOTSUPP].contains(&code))
}

/// Whether an error of a lock only says that the file system has none.
pub(crate) fn is_unsupported_lock(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || error.raw_os_error().is_some_and(|code| [EINVAL, ENOLCK, ENOTSUPP].contains(&code))
}

/// Makes `path` and those of its parents that are missing, and syncs the directories that got a new name.
pub(crate) fn create_directories(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    match (fs::create_dir(path), path.parent()) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            create_directories(parent)?;
            match fs::create_dir(path) {
                // Another process has made it meanwhile.
                Err(_) if path.is_dir() => return Ok(()),
                result => result?,
            }
        }
        (Err(_), _) if path.is_dir() => return Ok(()),
        (result, _) => result?,
    }
    sync_parent(path)
}

/// Syncs the directory that `path` is in.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

/// Name of the directory by which a file system is tried.
pub(crate) const PROBE: &str = ".probe";
/// The same before it is renamed.
pub(crate) const NEW_PROBE: &str = ".probe.tmp";

/// What [`probe`] found.
pub(crate) enum Probe {
    /// All that a run needs.
    Complete,
    /// A directory cannot be synced.
    NoSync,
    /// Something that a run cannot do without.
    Lacks {
        /// What cannot be done, as in "rename a directory".
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// What the probe made cannot be removed.
    NotRemoved {
        /// That.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Tries in `directory` what a run needs of its file system.
pub(crate) fn probe(directory: &Path) -> io::Result<Probe> {
    let (old, new) = (directory.join(NEW_PROBE), directory.join(PROBE));
    let remove = |path: &PathBuf| match remove_all(path) {
        Err(source) => Some(Probe::NotRemoved { path: path.clone(), source }),
        Ok(()) => None,
    };
    if let Some(left) = [&old, &new].into_iter().find_map(remove) {
        return Ok(left);
    }
    fs::create_dir(&old)?;
    // Not an empty directory, which some can rename that cannot rename others.
    let (file, other) = (old.join("file"), old.join("other"));
    write_synced(&file, b"")?;
    write_synced(&other, b"")?;
    let tries = [
        ("rename a file", &file, &old.join("renamed")),
        ("put a file in the place of another", &old.join("renamed"), &other),
        ("rename a directory", &old, &new),
    ];
    for (action, from, to) in tries {
        if let Err(source) = fs::rename(from, to) {
            return Ok(remove(&old).unwrap_or(Probe::Lacks { action, source }));
        }
    }
    let synced = sync_open_directory(&new);
    if let Some(left) = remove(&new) {
        return Ok(left);
    }
    match synced {
        Ok(()) => Ok(Probe::Complete),
        Err(error) if is_unsupported_sync(&error) => Ok(Probe::NoSync),
        Err(error) => Err(error),
    }
}

/// Removes what is at `path`, if anything: a directory with all it holds. A link goes, not what it leads to.
pub(crate) fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether a write that failed with this error may succeed in a moment.
pub(crate) fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{
        QuotaExceeded, ResourceBusy, StaleNetworkFileHandle, StorageFull, TimedOut, WouldBlock,
    };
    let kinds = [QuotaExceeded, ResourceBusy, StaleNetworkFileHandle, StorageFull, TimedOut, WouldBlock];
    kinds.contains(&error.kind()) || cfg!(unix) && error.raw_os_error() == Some(EIO)
}

/// What `write` returns, after a few more tries while its error is one that `may_pass`. `told` hears of each that failed.
pub(crate) fn with_retries<T, E>(
    mut write: impl FnMut() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
    mut told: impl FnMut(&E),
) -> Result<T, E> {
    for wait in WAITS {
        match write() {
            Err(error) if may_pass(&error) => told(&error),
            result => return result,
        }
        std::thread::sleep(wait);
    }
    write()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn what_a_file_system_lacks_is_told_from_what_is_broken() {
        let raw = io::Error::from_raw_os_error;
        let lock: Vec<bool> =
            [ENOLCK, 524, EINVAL, EIO, 13].map(|code| is_unsupported_lock(&raw(code))).into();
        assert_eq!(lock, [true, true, true, false, false]);
        let sync: Vec<bool> =
            [EPERM, EACCES, EINVAL, EBADF, 524, EIO, 28].map(|code| is_unsupported_sync(&raw(code))).into();
        assert_eq!(sync, [true, true, true, true, true, false, false]);
        let passes: Vec<bool> = [28, EIO, EINVAL, 13].map(|code| may_pass(&raw(code))).into();
        assert_eq!(passes, [true, true, false, false]);
        let unsupported = io::Error::from(io::ErrorKind::Unsupported);
        assert!(is_unsupported_lock(&unsupported) && is_unsupported_sync(&unsupported));
    }

    /// A probe that was killed leaves what the next one takes away, whatever it is.
    #[test]
    fn a_probe_leaves_nothing() {
        let folder = TempDir::new().unwrap();
        fs::create_dir(folder.path().join(NEW_PROBE)).unwrap();
        fs::write(folder.path().join(NEW_PROBE).join("file"), "").unwrap();
        fs::write(folder.path().join(PROBE), "").unwrap();
        assert!(matches!(probe(folder.path()).unwrap(), Probe::Complete));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(probe(&folder.path().join("missing")).is_err());
    }

    #[test]
    fn lines_are_appended_after_one_that_was_cut_short() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("lines");
        append_line(&path, "a").unwrap();
        append_line(&path, "b").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\n");
        fs::write(&path, "a\nb").unwrap();
        append_line(&path, "c").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\nc\n");
    }

    #[test]
    fn directories_are_made_by_several_at_once() {
        let folder = TempDir::new().unwrap();
        for round in 0..50 {
            let path = folder.path().join(format!("{round}/b/c/d"));
            let start = std::sync::Barrier::new(4);
            let make = || {
                start.wait();
                create_directories(&path)
            };
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
                threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
            });
        }
    }

    #[test]
    fn a_write_is_tried_again_only_while_it_may_succeed() {
        let count = |codes: &[i32]| {
            let (mut tries, mut told) = (0, 0);
            let write = || {
                tries += 1;
                match codes.get(tries - 1) {
                    Some(&code) => Err(io::Error::from_raw_os_error(code)),
                    None => Ok(()),
                }
            };
            let is_ok = with_retries(write, may_pass, |_| told += 1).is_ok();
            (is_ok, tries, told)
        };
        assert_eq!(count(&[]), (true, 1, 0));
        assert_eq!(count(&[28]), (true, 2, 1));
        assert_eq!(count(&[EIO, 28, 28]), (false, 3, 2));
        assert_eq!(count(&[13]), (false, 1, 0));
    }
}
