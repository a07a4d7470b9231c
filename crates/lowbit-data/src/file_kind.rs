//! What a file is by its first bytes, for messages: under the name of a data set there is often something else.

use std::fmt;

/// First bytes that are looked at; the mark of a tar archive ends at byte 262.
pub(crate) const START_LEN: usize = 512;

/// What a file looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// Nothing in it.
    Empty,
    /// Compressed with gzip.
    Gzip,
    /// An IDX file of unsigned bytes.
    Idx,
    /// A tar archive, not compressed.
    Tar,
    /// A web page: a server's message in place of a file.
    WebPage,
    /// A message in JSON or XML.
    Message,
    /// A pointer of Git LFS in place of the file.
    LfsPointer,
    /// A zip archive.
    Zip,
    /// A tar archive or other file compressed with bzip2.
    Bzip2,
    /// Compressed with xz.
    Xz,
    /// Compressed with zstd.
    Zstd,
    /// A NumPy array.
    Numpy,
    /// A Python pickle, as in the Python version of CIFAR.
    Pickle,
    /// A PNG or JPEG image.
    Image,
    /// A GIF image.
    Gif,
    /// A WebP image.
    WebP,
    /// A BMP image.
    Bmp,
    /// A TIFF image.
    Tiff,
    /// A HEIC or AVIF image.
    Heif,
    /// None of these.
    Unknown,
}

impl FileKind {
    /// First bytes that it goes by.
    pub const START_LEN: usize = START_LEN;

    /// By the first [`FileKind::START_LEN`] bytes, or all if there are fewer.
    pub fn of(start: &[u8]) -> Self {
        let marks: [(&[u8], FileKind); 18] = [
            (b"\x1f\x8b", FileKind::Gzip),
            (b"\0\0\x08", FileKind::Idx),
            (b"PK\x03\x04", FileKind::Zip),
            (b"BZh", FileKind::Bzip2),
            (b"\xfd7zXZ\0", FileKind::Xz),
            (b"\x28\xb5\x2f\xfd", FileKind::Zstd),
            (b"\x93NUMPY", FileKind::Numpy),
            (b"\x80\x02}", FileKind::Pickle),
            (b"\x80\x03}", FileKind::Pickle),
            (b"\x80\x04\x95", FileKind::Pickle),
            (b"\x80\x05\x95", FileKind::Pickle),
            (b"\x89PNG", FileKind::Image),
            (b"\xff\xd8\xff", FileKind::Image),
            (b"GIF8", FileKind::Gif),
            (b"II*\0", FileKind::Tiff),
            (b"MM\0*", FileKind::Tiff),
            (b"version https://git-lfs", FileKind::LfsPointer),
            (b"<?xml", FileKind::Message),
        ];
        if start.is_empty() {
            return FileKind::Empty;
        }
        if let Some((_, kind)) = marks.iter().find(|(mark, _)| start.starts_with(mark)) {
            return *kind;
        }
        if start.get(257..262) == Some(b"ustar") {
            return FileKind::Tar;
        }
        match (start.get(4..8), start.get(8..12)) {
            (_, Some(b"WEBP")) if start.starts_with(b"RIFF") => return FileKind::WebP,
            (Some(b"ftyp"), Some(b"heic" | b"heix" | b"mif1" | b"msf1" | b"avif" | b"avis")) => {
                return FileKind::Heif;
            }
            // Two letters may begin anything; these fields are 0.
            (_, _) if start.starts_with(b"BM") && start.get(6..10) == Some(&[0; 4]) => return FileKind::Bmp,
            _ => {}
        }
        // Text may begin with a byte order mark and blank lines.
        let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
        let begins =
            |word: &str| text.get(..word.len()).is_some_and(|b| b.eq_ignore_ascii_case(word.as_bytes()));
        if ["<!doctype", "<html", "<head", "<body", "<title", "<!--", "<script"].into_iter().any(begins) {
            return FileKind::WebPage;
        }
        match begins("{\"") || begins("<?xml") {
            true => FileKind::Message,
            false => FileKind::Unknown,
        }
    }

    /// Whether a file of this kind is there in place of another, so that its name cannot be right.
    pub fn is_recognized(self) -> bool {
        self != FileKind::Unknown
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FileKind::Empty => "an empty file",
            FileKind::Gzip => "gzip data",
            FileKind::Idx => "an IDX file",
            FileKind::Tar => "a tar archive that is not compressed",
            FileKind::WebPage => "a web page",
            FileKind::Message => "a message of a server",
            FileKind::LfsPointer => "a pointer of Git LFS",
            FileKind::Zip => "a zip archive",
            FileKind::Bzip2 => "bzip2 data",
            FileKind::Xz => "xz data",
            FileKind::Zstd => "zstd data",
            FileKind::Numpy => "a NumPy file",
            FileKind::Pickle => "a Python pickle",
            FileKind::Image => "one image",
            FileKind::Gif => "a GIF image",
            FileKind::WebP => "a WebP image",
            FileKind::Bmp => "a BMP image",
            FileKind::Tiff => "a TIFF image",
            FileKind::Heif => "a HEIC or AVIF image",
            FileKind::Unknown => "data of an unknown kind",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_their_first_bytes() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], FileKind); 14] = [
            (b"", FileKind::Empty),
            (b"\x1f\x8b\x08", FileKind::Gzip),
            (b"\0\0\x08\x03", FileKind::Idx),
            (&tar, FileKind::Tar),
            (b"<html>not found</html>", FileKind::WebPage),
            (b"\xef\xbb\xbf\r\n <!DOCTYPE html>", FileKind::WebPage),
            (b"{\"error\": 404}", FileKind::Message),
            (b"<?xml version=\"1.0\"?><Error>", FileKind::Message),
            (b"PK\x03\x04\x14", FileKind::Zip),
            (b"version https://git-lfs.github.com/spec/v1", FileKind::LfsPointer),
            (b"\x80\x02}q\x01", FileKind::Pickle),
            (b"\x93NUMPY\x01", FileKind::Numpy),
            (b"\x06\x13\x8a\x8b", FileKind::Unknown),
            (b"\x1f", FileKind::Unknown),
        ];
        for (start, kind) in cases {
            assert_eq!(FileKind::of(start), kind, "{start:?}");
        }
    }
}
