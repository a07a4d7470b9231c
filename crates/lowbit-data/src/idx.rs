//! The IDX format of MNIST: a big-endian magic number, the sizes, then bytes.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::dataset::Parts;
use crate::error::Held;
use crate::file_kind::FileKind;
use crate::read::{Content, read_up_to};
use crate::{DataError, Dataset, DatasetName, Split, cifar};

/// Unsigned bytes in three dimensions.
const IMAGES_MAGIC: u32 = 0x0000_0803;
/// Unsigned bytes in one dimension.
const LABELS_MAGIC: u32 = 0x0000_0801;

/// The most images that are read from one file. The largest set in this format, EMNIST, has 814,255; a header that
/// promises more is damaged or hostile, and would fill the memory.
pub const MAX_IMAGES: usize = 1_000_000;

/// Reads a pair of image and label files.
pub(crate) fn read(
    name: DatasetName,
    split: Split,
    images: PathBuf,
    labels: PathBuf,
) -> Result<Parts, DataError> {
    let info = name.info();
    let shape = info.shape;
    let image_file = read_idx::<3>(name, split, &images, IMAGES_MAGIC, |[_, height, width]| {
        let expected = [shape.height as u32, shape.width as u32];
        if [height, width] == expected {
            Ok(())
        } else {
            Err(DataError::WrongImageSize { path: images.clone(), name, expected, got: [height, width] })
        }
    })?;
    let label_file = read_idx::<1>(name, split, &labels, LABELS_MAGIC, |_| Ok(()))?;
    let n_images = image_file.data.len() / shape.n_values();
    if n_images != label_file.data.len() {
        let n_labels = label_file.data.len();
        return Err(DataError::CountMismatch { images, n_images, labels, n_labels });
    }
    cifar::check_labels(&labels, &label_file.data, info.n_classes)?;
    let dataset = Dataset {
        name: name.to_string(),
        shape,
        n_classes: info.n_classes,
        images: image_file.data,
        max_value: info.max_value,
        labels: label_file.data.into_iter().map(u16::from).collect(),
    };
    Ok(Parts { dataset, contents: vec![(images, image_file.sha256), (labels, label_file.sha256)] })
}

/// A file that has been read.
struct IdxFile {
    data: Vec<u8>,
    /// SHA-256 of header and data, if their number is that of a published file.
    sha256: Option<String>,
}

/// Reads one file of `N` dimensions; `check` sees the sizes before anything else is read.
fn read_idx<const N: usize>(
    name: DatasetName,
    split: Split,
    path: &Path,
    magic: u32,
    check: impl FnOnce([u32; N]) -> Result<(), DataError>,
) -> Result<IdxFile, DataError> {
    let expected = "an IDX file, raw or compressed with gzip";
    let (mut content, kind) = Content::open(path)?;
    let is_raw = content.len().is_some();
    let named_gzip = path.extension().is_some_and(|extension| extension == "gz");
    if is_raw && kind != FileKind::Idx && (kind.is_recognized() || named_gzip) {
        return Err(DataError::WrongKind { path: path.to_owned(), expected, kind, within_gzip: false });
    }
    let mut header = vec![0; 4 * (N + 1)];
    let n_read = read_up_to(&mut content, &mut header).map_err(|e| content.error(path, e))?;
    let within = FileKind::of(&header[..n_read]);
    if !is_raw && within != FileKind::Idx && within.is_recognized() {
        return Err(DataError::WrongKind {
            path: path.to_owned(),
            expected,
            kind: within,
            within_gzip: true,
        });
    }
    let header_len = header.len() as u64;
    let truncated = DataError::Truncated { path: path.to_owned(), expected: header_len, got: n_read as u64 };
    let field = |idx: usize| {
        let bytes = &header[4 * idx..4 * idx + 4];
        u32::from_be_bytes(bytes.try_into().expect("invariant: the slice has 4 bytes"))
    };
    if n_read < 4 {
        return Err(truncated);
    }
    if field(0) != magic {
        return Err(DataError::WrongMagic { path: path.to_owned(), expected: magic, got: field(0) });
    }
    if n_read < header.len() {
        return Err(truncated);
    }
    let sizes: [u32; N] = std::array::from_fn(|idx| field(idx + 1));
    check(sizes)?;

    let what = if N == 1 { "labels" } else { "images" };
    let said = u64::from(sizes[0]);
    let item_len = sizes[1..].iter().map(|&size| u64::from(size)).product::<u64>();
    let held = |n_bytes: u64, at_least| Held { n: n_bytes / item_len, rest: n_bytes % item_len, at_least };
    let count_in_header = |held: Held| {
        let info = name.info();
        let n_published = if split == Split::Train { info.n_train } else { info.n_test };
        let is_cut = said == n_published as u64 && held.n < said;
        DataError::CountInHeader { path: path.to_owned(), what, said, held, is_cut }
    };
    let n_bytes = said * item_len;
    if let Some(len) = content.len().map(|len| len.saturating_sub(header_len)).filter(|&len| len != n_bytes) {
        return Err(count_in_header(held(len, false)));
    }
    if said > MAX_IMAGES as u64 {
        return Err(DataError::TooMany { path: path.to_owned(), what, said, limit: MAX_IMAGES });
    }
    let mut data = Vec::new();
    let got = content.read_next(path, n_bytes, &mut data)?;
    if got < n_bytes {
        return Err(count_in_header(held(got, false)));
    }
    // What follows is counted, as far as any file is read.
    let limit = MAX_IMAGES as u64 * item_len;
    match content.count_rest(path, limit)? {
        0 => {}
        rest => return Err(count_in_header(held(n_bytes + rest, rest == limit))),
    }
    let sizes_published = DatasetName::ALL.iter().flat_map(|name| [name.info().n_train, name.info().n_test]);
    let sha256 = sizes_published.into_iter().any(|n| n as u64 == said).then(|| {
        let digest = Sha256::new().chain_update(&header).chain_update(&data);
        format!("{:x}", digest.finalize())
    });
    Ok(IdxFile { data, sha256 })
}
