//! Writing what must survive a power cut, on file systems that lack a part of what that needs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
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
    /// All that checkpoints need.
    Complete,
    /// A directory cannot be synced.
    NoSync,
    /// A directory cannot be renamed.
    NoRename(io::Error),
}

/// Tries in `directory` what checkpoints need of its file system.
pub(crate) fn probe(directory: &Path) -> io::Result<Probe> {
    let (old, new) = (directory.join(NEW_PROBE), directory.join(PROBE));
    for path in [&old, &new] {
        remove_directory(path)?;
    }
    fs::create_dir(&old)?;
    // Not an empty one, which some can rename that cannot rename others.
    write_synced(&old.join("file"), b"")?;
    if let Err(error) = fs::rename(&old, &new) {
        remove_directory(&old)?;
        return Ok(Probe::NoRename(error));
    }
    let synced = sync_open_directory(&new);
    remove_directory(&new)?;
    match synced {
        Ok(()) => Ok(Probe::Complete),
        Err(error) if is_unsupported_sync(&error) => Ok(Probe::NoSync),
        Err(error) => Err(error),
    }
}

/// Removes a directory with all it holds, if it is there.
pub(crate) fn remove_directory(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
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

    /// A probe that was killed leaves directories that the next one takes away.
    #[test]
    fn a_probe_leaves_nothing() {
        let folder = TempDir::new().unwrap();
        for left in [NEW_PROBE, PROBE] {
            fs::create_dir(folder.path().join(left)).unwrap();
        }
        assert!(matches!(probe(folder.path()).unwrap(), Probe::Complete));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(probe(&folder.path().join("missing")).is_err());
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
