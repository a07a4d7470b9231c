//! The built-in handwritten digits.

use crate::{Dataset, DatasetName, Split};

/// 1,797 records of one label and 64 pixels; see `data/README.md` for their origin.
pub(crate) const BYTES: &[u8] = include_bytes!("../data/digits.bin");

/// SHA-256 of [`BYTES`].
pub(crate) const SHA256: &str = "d8121ca7764eccfaef1df6bc4589c6527c58fcbab0cb1b079e79f97f8cb8219a";

const RECORD: usize = 65;

/// Every fifth image is a test image. The split does not keep writers apart: test images may be by hands that also
/// wrote training images.
fn split_of(record_idx: usize) -> Split {
    if record_idx % 5 == 4 { Split::Test } else { Split::Train }
}

/// One part of the digits.
pub(crate) fn read(split: Split) -> Dataset {
    let info = DatasetName::Digits.info();
    let records = BYTES.chunks_exact(RECORD).enumerate().filter(|(idx, _)| split_of(*idx) == split);
    let (mut images, mut labels) = (Vec::new(), Vec::new());
    for (_, record) in records {
        labels.push(u16::from(record[0]));
        images.extend_from_slice(&record[1..]);
    }
    Dataset {
        name: DatasetName::Digits.to_string(),
        shape: info.shape,
        n_classes: info.n_classes,
        images,
        max_value: info.max_value,
        labels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Normalization;

    #[test]
    fn file_is_the_documented_one() {
        use sha2::Digest;
        let sum = format!("{:x}", sha2::Sha256::digest(BYTES));
        assert_eq!(sum, SHA256);
        assert_eq!(BYTES.len(), 1797 * RECORD);
        assert!(include_str!("../data/README.md").contains(SHA256));
    }

    #[test]
    fn split_is_fixed() {
        let (train, test) = (read(Split::Train), read(Split::Test));
        assert_eq!((train.len(), test.len()), (1438, 359));
        train.validate().unwrap();
        test.validate().unwrap();
        // scikit-learn's load_digits().target starts 0 1 2 3 4 5 6 7 8 9.
        assert_eq!(train.labels[..5], [0, 1, 2, 3, 5]);
        assert_eq!(test.labels[..2], [4, 9]);
        assert_eq!(train.pixels(0)[..8], [0, 0, 5, 13, 9, 1, 0, 0]);
        for class in 0..10 {
            assert!(test.labels.contains(&class));
        }
    }

    #[test]
    fn normalization_is_that_of_the_training_part() {
        let (measured, constant) =
            (Normalization::measure(&read(Split::Train)).unwrap(), Normalization::of(DatasetName::Digits));
        let round =
            |values: &[f32]| values.iter().map(|v| (v * 1e4).round_ties_even() / 1e4).collect::<Vec<_>>();
        assert_eq!(round(&measured.mean), constant.mean);
        assert_eq!(round(&measured.std), constant.std);
    }
}
