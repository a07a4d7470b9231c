//! Files that a user names or a run holds, opened without trust: regular files only, of a bounded size.
//!
//! A FIFO would be waited for, a device such as `/dev/zero` has no end, and a file may be longer than what it should hold.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

/// Largest recipe, plan or other text of a run.
pub const MAX_TEXT: u64 = 16 << 20;

/// Largest file of lines that a run appends to.
pub(crate) const MAX_RECORD: u64 = 1 << 30;

/// Reads the regular file at `path`, or one that a link there leads to, of at most `max_bytes`.
///
/// # Errors
/// The error of the system, or one that says what is there instead.
pub fn read_regular(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path, OpenOptions::new().read(true))?;
    let too_large = |n_bytes: u64| {
        let message = format!("it has {n_bytes} bytes or more, expected at most {max_bytes}");
        io::Error::new(io::ErrorKind::FileTooLarge, message)
    };
    let length = file.metadata()?.len();
    if length > max_bytes {
        return Err(too_large(length));
    }
    // It may grow meanwhile, and some file systems tell no length.
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        n_bytes if n_bytes > max_bytes => Err(too_large(n_bytes)),
        _ => Ok(bytes),
    }
}

/// The same of a text.
///
/// # Errors
/// The same, and if it is not UTF-8.
pub fn read_regular_text(path: &Path, max_bytes: u64) -> io::Result<String> {
    let text = String::from_utf8(read_regular(path, max_bytes)?);
    text.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not a text in UTF-8"))
}

/// Opens the file at `path`, which is regular or, if `options` say so, made.
///
/// # Errors
/// The error of the system, or one that says what is there instead.
pub fn open_regular(path: &Path, options: &OpenOptions) -> io::Result<File> {
    // Before it is opened: that alone may wait for ever.
    regular_length(path)?;
    let file = options.open(path)?;
    expect_regular(&file.metadata()?)?;
    Ok(file)
}

/// Bytes of the regular file at `path`, or of one that a link there leads to; `None` if there is nothing of this name.
///
/// # Errors
/// The error of the system, or one that says what is there instead.
pub(crate) fn regular_length(path: &Path) -> io::Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => expect_regular(&metadata).map(|()| Some(metadata.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::symlink_metadata(path) {
            // What would be made is a file somewhere else.
            Ok(_) => Err(not_regular("a link to nothing")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Whether an error of reading a file says that something else has its name, or that it holds something else.
pub(crate) fn is_other_file(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput, IsADirectory};
    matches!(error.kind(), FileTooLarge | InvalidData | InvalidInput | IsADirectory)
}

fn expect_regular(metadata: &Metadata) -> io::Result<()> {
    match metadata {
        metadata if metadata.is_file() => Ok(()),
        metadata if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        metadata => Err(not_regular(kind(metadata))),
    }
}

fn not_regular(kind: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, expected a regular file"))
}

#[cfg(unix)]
fn kind(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    match metadata.file_type() {
        kind if kind.is_fifo() => "a FIFO",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "no file",
    }
}

#[cfg(not(unix))]
fn kind(_: &Metadata) -> &'static str {
    "no file"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_bound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "abc").unwrap();
        assert_eq!(read_regular(&path, 3).unwrap(), b"abc");
        assert_eq!(read_regular_text(&path, 3).unwrap(), "abc");
        let refused = read_regular(&path, 2).unwrap_err();
        assert_eq!(refused.to_string(), "it has 3 bytes or more, expected at most 2");
        // No memory is taken for it.
        File::create(&path).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(read_regular(&path, MAX_TEXT).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, [0xff]).unwrap();
        assert!(read_regular_text(&path, 3).unwrap_err().to_string().contains("UTF-8"));
        assert_eq!(read_regular(folder.path(), 3).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        assert_eq!(read_regular(&path.join("x"), 3).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        assert_eq!(read_regular(&folder.path().join("x"), 3).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[cfg(unix)]
    #[test]
    fn only_regular_files_and_links_to_them() {
        use std::os::unix::fs::symlink;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "abc").unwrap();
        symlink(path("file"), path("link")).unwrap();
        symlink("/dev/zero", path("zero")).unwrap();
        symlink(path("nothing"), path("dangling")).unwrap();
        assert_eq!(read_regular(&path("link"), 9).unwrap(), b"abc");
        let made = std::process::Command::new("mkfifo").arg(path("fifo")).status().unwrap();
        assert!(made.success());
        let kinds =
            [("zero", "it is a device"), ("fifo", "it is a FIFO"), ("dangling", "it is a link to nothing")];
        for (name, expected) in kinds {
            let mut append = OpenOptions::new();
            append.append(true).create(true);
            for refused in
                [read_regular(&path(name), 9).map(drop), open_regular(&path(name), &append).map(drop)]
            {
                let message = refused.unwrap_err().to_string();
                assert_eq!(message, format!("{expected}, expected a regular file"));
            }
        }
        assert!(!path("nothing").exists(), "no file is made where a link leads to");
    }
}
