//! Reading files: regular ones only, raw or gzip, of a length known beforehand.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::Path;

use flate2::bufread::GzDecoder;

use crate::DataError;
use crate::error::Action;
use crate::file_kind::{FileKind, START_LEN};

/// Memory that is set aside for a file before any of its content has come.
const RESERVED: u64 = 64 << 20;

/// Opens a file for reading; a directory, FIFO or device is refused, and never waited for.
pub(crate) fn open_regular(path: &Path) -> Result<File, DataError> {
    let file = without_waiting(OpenOptions::new().read(true)).open(path);
    let file = file.map_err(|e| DataError::io(path, Action::Read, e))?;
    expect_regular(&file, path)?;
    Ok(file)
}

/// The same options, with which the opening of a FIFO does not wait for its other end.
#[cfg(unix)]
pub(crate) fn without_waiting(options: &mut OpenOptions) -> &mut OpenOptions {
    use std::os::unix::fs::OpenOptionsExt;
    options.custom_flags(libc::O_NONBLOCK)
}

/// The same options: only Unix has files whose opening waits.
#[cfg(not(unix))]
pub(crate) fn without_waiting(options: &mut OpenOptions) -> &mut OpenOptions {
    options
}

/// Opens a file for this process alone, and makes it if it is not there; the lock ends with the file or the process. `None` if
/// another process has it.
pub(crate) fn open_alone(path: &Path) -> Result<Option<File>, DataError> {
    let mut options = OpenOptions::new();
    let file = without_waiting(options.read(true).write(true).create(true).truncate(false)).open(path);
    let file = file.map_err(|e| DataError::io(path, Action::Create, e))?;
    expect_regular(&file, path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks: go on without.
        Err(TryLockError::Error(_)) => Ok(Some(file)),
    }
}

/// Refuses what is no regular file.
pub(crate) fn expect_regular(file: &File, path: &Path) -> Result<(), DataError> {
    let metadata = file.metadata().map_err(|e| DataError::io(path, Action::Read, e))?;
    match not_regular(&metadata) {
        Some(kind) => Err(DataError::NotAFile { path: path.to_owned(), kind }),
        None => Ok(()),
    }
}

/// What a directory is called in messages.
pub(crate) const DIRECTORY: &str = "a directory";

/// What something is that is no regular file.
pub(crate) fn not_regular(metadata: &fs::Metadata) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let file_type = metadata.file_type();
        if file_type.is_fifo() {
            return Some("a FIFO");
        }
        if file_type.is_char_device() || file_type.is_block_device() {
            return Some("a device");
        }
        if file_type.is_socket() {
            return Some("a socket");
        }
    }
    match metadata.is_dir() {
        true => Some(DIRECTORY),
        false => (!metadata.is_file()).then_some("something else"),
    }
}

/// The content of a file, decompressed if need be.
pub(crate) enum Content {
    /// As it is, with the length that the file has.
    Raw(File, u64),
    /// Compressed.
    Gzip(Box<GzipMembers<BufReader<File>>>),
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Content::Raw(file, _) => file.read(buffer),
            Content::Gzip(members) => members.read(buffer),
        }
    }
}

impl Content {
    /// Opens a file for reading its content, and says what the file is by its first bytes: some servers and browsers
    /// decompress a file and keep the name `.gz`, and some send a web page under any name.
    pub(crate) fn open(path: &Path) -> Result<(Self, FileKind), DataError> {
        let io_error = |e| DataError::io(path, Action::Read, e);
        let mut file = open_regular(path)?;
        let mut start = [0; START_LEN];
        let n_read = read_up_to(&mut file, &mut start).map_err(io_error)?;
        file.rewind().map_err(io_error)?;
        let kind = FileKind::of(&start[..n_read]);
        let content = match kind {
            FileKind::Gzip => Content::Gzip(Box::new(GzipMembers::new(BufReader::new(file)))),
            _ => {
                let len = file.metadata().map_err(io_error)?.len();
                Content::Raw(file, len)
            }
        };
        Ok((content, kind))
    }

    /// The length of the content, if it is known before it is read.
    pub(crate) fn len(&self) -> Option<u64> {
        match self {
            Content::Raw(_, len) => Some(*len),
            Content::Gzip(_) => None,
        }
    }

    /// Tells an error of the decoder from an error of the disk.
    pub(crate) fn error(&self, path: &Path, source: io::Error) -> DataError {
        match self {
            Content::Gzip(_) => gzip_error(path, source),
            Content::Raw(..) => DataError::io(path, Action::Read, source),
        }
    }

    /// Reads the next `n_bytes`, or those there are if it is fewer, and appends them to `into`.
    pub(crate) fn read_next(
        &mut self,
        path: &Path,
        n_bytes: u64,
        into: &mut Vec<u8>,
    ) -> Result<u64, DataError> {
        let before = into.len() as u64;
        // A damaged header may promise any length: memory is set aside in full only when much of it has come.
        for part in [n_bytes.min(RESERVED), n_bytes.saturating_sub(RESERVED)] {
            into.reserve_exact(part as usize);
            let wanted = into.len() as u64 + part;
            self.by_ref().take(part).read_to_end(into).map_err(|e| self.error(path, e))?;
            if (into.len() as u64) < wanted {
                break;
            }
        }
        Ok(into.len() as u64 - before)
    }

    /// Counts the bytes that are left, up to `limit`. With gzip this also makes the decoder compare the checksum.
    pub(crate) fn count_rest(&mut self, path: &Path, limit: u64) -> Result<u64, DataError> {
        io::copy(&mut self.by_ref().take(limit), &mut io::sink()).map_err(|e| self.error(path, e))
    }
}

/// The members of a gzip file, decompressed one after the other.
///
/// As `gzip -t` has it, zeros may follow the last member, with which tapes and some tools fill a block.
pub(crate) struct GzipMembers<R> {
    /// The member at hand; `None` at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { member: Some(GzDecoder::new(reader)) }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        // Whatever fails before the next member leaves this one where it is: a read that was interrupted is tried again.
        while let Some(member) = self.member.as_mut() {
            let n_read = member.read(buffer)?;
            if n_read > 0 {
                return Ok(n_read);
            }
            let has_next = match member.get_mut().fill_buf()?.first() {
                Some(0x1f) => true,
                _ => {
                    expect_zeros(member.get_mut())?;
                    false
                }
            };
            let ended = self.member.take().filter(|_| has_next);
            self.member = ended.map(|member| GzDecoder::new(member.into_inner()));
        }
        Ok(0)
    }
}

/// Reads what is left, which must be zeros.
pub(crate) fn expect_zeros(rest: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = match rest.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            bytes => bytes?,
        };
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.iter().any(|&byte| byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something else follows"));
        }
        let n_bytes = bytes.len();
        rest.consume(n_bytes);
    }
}

/// flate2 reports damaged data as `InvalidInput` or `InvalidData`, cut short data as `UnexpectedEof`; anything else
/// comes from the file below.
pub(crate) fn gzip_error(path: &Path, source: io::Error) -> DataError {
    match is_damage(&source) {
        true => DataError::CorruptGzip { path: path.to_owned(), source },
        false => DataError::io(path, Action::Read, source),
    }
}

/// Whether an error is about the data, not about reading it.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
    )
}

/// Reads until the buffer is full or the content ends.
pub(crate) fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// Hands out a byte at a time, and is interrupted before each.
    struct Interrupted<'a> {
        bytes: &'a [u8],
        is_next: bool,
    }

    impl Read for Interrupted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.is_next = !self.is_next;
            match self.is_next {
                true => Err(io::ErrorKind::Interrupted.into()),
                false => self.bytes.by_ref().take(1).read(buffer),
            }
        }
    }

    #[test]
    fn an_interrupted_read_goes_on() {
        let mut bytes = Vec::new();
        for part in ["the first ", "and the second"] {
            let mut encoder = GzEncoder::new(&mut bytes, Compression::fast());
            encoder.write_all(part.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        bytes.extend([0; 9]);
        let reader = BufReader::with_capacity(1, Interrupted { bytes: &bytes, is_next: false });
        let mut content = String::new();
        GzipMembers::new(reader).read_to_string(&mut content).unwrap();
        assert_eq!(content, "the first and the second");
    }
}
