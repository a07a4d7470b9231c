//! Reading files: raw or gzip, of a length known beforehand.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::DataError;
use crate::error::Action;

/// The content of a file, decompressed if need be: all members of a gzip file one after the other, as gzip does.
pub(crate) enum Content {
    Raw(File),
    Gzip(MultiGzDecoder<File>),
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Content::Raw(file) => file.read(buffer),
            Content::Gzip(decoder) => decoder.read(buffer),
        }
    }
}

/// Opens a file for reading its content.
///
/// What the file is, is seen from its first bytes: some servers and browsers decompress a file and keep the name
/// `.gz`. A file named `.gz` that starts neither as gzip nor as IDX is taken as damaged gzip.
pub(crate) fn open_content(path: &Path) -> Result<Content, DataError> {
    let open = || File::open(path).map_err(|e| DataError::io(path, Action::Read, e));
    let mut start = [0; 3];
    let n_read = read_up_to(&mut open()?, &mut start).map_err(|e| DataError::io(path, Action::Read, e))?;
    let named_gzip = path.extension().is_some_and(|extension| extension == "gz");
    let is_gzip = start[..n_read].starts_with(&[0x1f, 0x8b]);
    let is_idx = start[..n_read] == [0, 0, 8];
    Ok(if is_gzip || (named_gzip && !is_idx) {
        Content::Gzip(MultiGzDecoder::new(open()?))
    } else {
        Content::Raw(open()?)
    })
}

impl Content {
    /// Tells an error of the decoder from an error of the disk.
    pub(crate) fn error(&self, path: &Path, source: io::Error) -> DataError {
        match self {
            Content::Gzip(_) => gzip_error(path, source),
            Content::Raw(_) => DataError::io(path, Action::Read, source),
        }
    }
}

/// flate2 reports damaged data as `InvalidInput` or `InvalidData`, cut short data as `UnexpectedEof`; anything else
/// comes from the file below.
pub(crate) fn gzip_error(path: &Path, source: io::Error) -> DataError {
    match source.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            DataError::CorruptGzip { path: path.to_owned(), source }
        }
        _ => DataError::io(path, Action::Read, source),
    }
}

/// Reads the next `n_bytes` and appends them to `into`.
pub(crate) fn read_exactly(
    content: &mut Content,
    path: &Path,
    n_bytes: u64,
    into: &mut Vec<u8>,
) -> Result<(), DataError> {
    let before = into.len() as u64;
    // A damaged header may declare any length: memory is allocated as the bytes come, beyond this size.
    into.reserve(n_bytes.min(64 << 20) as usize);
    let read = content.by_ref().take(n_bytes).read_to_end(into);
    read.map_err(|e| content.error(path, e))?;
    let got = into.len() as u64 - before;
    if got < n_bytes {
        return Err(DataError::Truncated { path: path.to_owned(), expected: n_bytes, got });
    }
    Ok(())
}

/// Checks that the content ends here. With gzip this also makes the decoder compare the checksum.
pub(crate) fn expect_end(content: &mut Content, path: &Path, expected: u64) -> Result<(), DataError> {
    let mut byte = [0];
    match read_up_to(content, &mut byte) {
        Ok(0) => Ok(()),
        Ok(_) => Err(DataError::TrailingBytes { path: path.to_owned(), expected }),
        Err(source) => Err(content.error(path, source)),
    }
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
