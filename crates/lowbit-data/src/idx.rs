//! The IDX format of MNIST: a big-endian magic number, the sizes, then bytes.

use std::path::Path;

use crate::read::{expect_end, open_content, read_exactly, read_up_to};
use crate::{DataError, Dataset, DatasetName, cifar};

/// Unsigned bytes in three dimensions.
const IMAGES_MAGIC: u32 = 0x0000_0803;
/// Unsigned bytes in one dimension.
const LABELS_MAGIC: u32 = 0x0000_0801;

/// Reads a pair of image and label files.
pub(crate) fn read(name: DatasetName, images: &Path, labels: &Path) -> Result<Dataset, DataError> {
    let info = name.info();
    let shape = info.shape;
    let image_bytes = read_idx::<3>(images, IMAGES_MAGIC, |[_, height, width]| {
        let expected = [shape.height as u32, shape.width as u32];
        if [height, width] == expected {
            Ok(())
        } else {
            Err(DataError::WrongImageSize { path: images.to_owned(), expected, got: [height, width] })
        }
    })?;
    let label_bytes = read_idx::<1>(labels, LABELS_MAGIC, |_| Ok(()))?;
    let n_images = image_bytes.len() / shape.n_values();
    if n_images != label_bytes.len() {
        return Err(DataError::CountMismatch {
            images: images.to_owned(),
            n_images,
            labels: labels.to_owned(),
            n_labels: label_bytes.len(),
        });
    }
    cifar::check_labels(labels, &label_bytes, info.n_classes)?;
    Ok(Dataset {
        name: name.to_string(),
        shape,
        n_classes: info.n_classes,
        images: image_bytes,
        max_value: info.max_value,
        labels: label_bytes,
    })
}

/// Reads one file of `N` dimensions; `check` sees the sizes before anything else is read.
fn read_idx<const N: usize>(
    path: &Path,
    magic: u32,
    check: impl FnOnce([u32; N]) -> Result<(), DataError>,
) -> Result<Vec<u8>, DataError> {
    let mut content = open_content(path)?;
    let mut header = vec![0; 4 * (N + 1)];
    let n_read = read_up_to(&mut content, &mut header).map_err(|e| content.error(path, e))?;
    let truncated = |expected: u64, got: u64| DataError::Truncated { path: path.to_owned(), expected, got };
    let header_len = header.len() as u64;
    let field = |idx: usize| {
        let bytes = &header[4 * idx..4 * idx + 4];
        u32::from_be_bytes(bytes.try_into().expect("invariant: the slice has 4 bytes"))
    };
    if n_read < 4 {
        return Err(truncated(header_len, n_read as u64));
    }
    if field(0) != magic {
        return Err(DataError::WrongMagic { path: path.to_owned(), expected: magic, got: field(0) });
    }
    if n_read < header.len() {
        return Err(truncated(header_len, n_read as u64));
    }
    let sizes: [u32; N] = std::array::from_fn(|idx| field(idx + 1));
    check(sizes)?;
    let n_bytes = sizes.iter().map(|&size| u64::from(size)).product::<u64>();
    let total = header_len + n_bytes;
    let mut data = Vec::new();
    read_exactly(&mut content, path, n_bytes, &mut data).map_err(|error| match error {
        DataError::Truncated { got, .. } => truncated(total, header_len + got),
        other => other,
    })?;
    expect_end(&mut content, path, total)?;
    Ok(data)
}
