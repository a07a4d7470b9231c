//! The data sets there are: their shapes, sizes, files and checksums.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cifar::Layout;
use crate::error::ChecksumKind;
use crate::{DataError, ImageShape};

/// The name of a data set, spelled in kebab case in configuration files and on the command line.
///
/// ```
/// use lowbit_data::DatasetName;
///
/// let name: DatasetName = "fashion-mnist".parse()?;
/// assert_eq!(name.info().n_classes, 10);
/// assert!("cifar".parse::<DatasetName>().is_err());
/// # Ok::<(), lowbit_data::DataError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DatasetName {
    /// 1,797 handwritten digits of 8x8 pixels, built into this crate.
    Digits,
    /// MNIST: 70,000 handwritten digits of 28x28 pixels.
    Mnist,
    /// Fashion-MNIST: 70,000 pieces of clothing, 28x28 gray.
    FashionMnist,
    /// CIFAR-10: 60,000 color photographs of 32x32 pixels in 10 classes.
    Cifar10,
    /// CIFAR-100: 60,000 color photographs of 32x32 pixels in 100 fine or 20 coarse classes.
    Cifar100,
}

impl DatasetName {
    /// All data sets.
    pub const ALL: &'static [DatasetName] = &[
        DatasetName::Digits,
        DatasetName::Mnist,
        DatasetName::FashionMnist,
        DatasetName::Cifar10,
        DatasetName::Cifar100,
    ];

    /// The catalog's entry.
    pub fn info(self) -> &'static DatasetInfo {
        match self {
            DatasetName::Digits => &DIGITS,
            DatasetName::Mnist => &MNIST,
            DatasetName::FashionMnist => &FASHION_MNIST,
            DatasetName::Cifar10 => &CIFAR10,
            DatasetName::Cifar100 => &CIFAR100,
        }
    }

    /// The name as it is spelled in configuration files.
    pub fn as_str(self) -> &'static str {
        match self {
            DatasetName::Digits => "digits",
            DatasetName::Mnist => "mnist",
            DatasetName::FashionMnist => "fashion-mnist",
            DatasetName::Cifar10 => "cifar10",
            DatasetName::Cifar100 => "cifar100",
        }
    }
}

impl fmt::Display for DatasetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DatasetName {
    type Err = DataError;

    fn from_str(text: &str) -> Result<Self, DataError> {
        DatasetName::ALL
            .iter()
            .copied()
            .find(|name| name.as_str() == text)
            .ok_or_else(|| DataError::UnknownName { got: text.into() })
    }
}

/// The part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Split {
    /// The training images.
    Train,
    /// Images by which something is chosen, a setting or a checkpoint. Published data sets have none of their own: theirs are
    /// training images that are held back.
    Validation,
    /// The test images.
    Test,
}

impl Split {
    /// The parts of a published data set.
    pub const ALL: &'static [Split] = &[Split::Train, Split::Test];
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        })
    }
}

/// Which of its labels a data set is read with; only CIFAR-100 has two kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LabelKind {
    /// The labels every data set has (CIFAR-100: 100 classes).
    #[default]
    Fine,
    /// The 20 superclasses of CIFAR-100.
    Coarse,
}

/// What is known of a data set before any file of it is read.
#[derive(Clone, Copy, Debug)]
pub struct DatasetInfo {
    /// Its name.
    pub name: DatasetName,
    /// One line for lists.
    pub title: &'static str,
    /// Shape of each image.
    pub shape: ImageShape,
    /// Largest pixel value.
    pub max_value: u8,
    /// Number of (fine) classes.
    pub n_classes: usize,
    /// Number of training images.
    pub n_train: usize,
    /// Number of test images.
    pub n_test: usize,
    /// The files to fetch; empty if the data set is built in.
    pub files: &'static [RemoteFile],
}

/// A published file.
#[derive(Clone, Copy, Debug)]
pub struct RemoteFile {
    /// Its name.
    pub file_name: &'static str,
    /// The address of the folder it is in, without the final slash.
    pub base_url: &'static str,
    /// Its length in bytes.
    pub size: u64,
    /// What `sha256` is of: the content for IDX files, which are found in raw form and compressed by different programs.
    pub checksum: ChecksumKind,
    /// SHA-256 in hexadecimal.
    pub sha256: &'static str,
}

/// SHA-256 of what one part of a data set is read from, as published: the content of its IDX files, images first, or of
/// the `.bin` files of CIFAR, in order. Empty for data sets that are built in.
pub(crate) fn published_contents(name: DatasetName, split: Split) -> Vec<&'static str> {
    match Layout::of(name) {
        Some(layout) => layout.files(split).iter().map(|member| member.sha256).collect(),
        None => files_of(name, split).iter().map(|file| file.sha256).collect(),
    }
}

/// The published files that one part is read from; an archive has both parts.
pub(crate) fn files_of(name: DatasetName, split: Split) -> &'static [RemoteFile] {
    let files = name.info().files;
    match (Layout::of(name), split) {
        (Some(_), _) => files,
        (None, Split::Train | Split::Validation) => &files[..files.len() / 2],
        (None, Split::Test) => &files[files.len() / 2..],
    }
}

/// The published part that a content of this SHA-256 belongs to.
pub(crate) fn identify(sha256: &str) -> Option<(DatasetName, Split)> {
    let parts = DatasetName::ALL.iter().flat_map(|&name| Split::ALL.iter().map(move |&split| (name, split)));
    parts.into_iter().find(|&(name, split)| published_contents(name, split).contains(&sha256))
}

const DIGITS: DatasetInfo = DatasetInfo {
    name: DatasetName::Digits,
    title: "handwritten digits, 8x8 gray, built in",
    shape: ImageShape { channels: 1, height: 8, width: 8 },
    max_value: 16,
    n_classes: 10,
    n_train: 1438,
    n_test: 359,
    files: &[],
};

const MNIST_URL: &str = "https://ossci-datasets.s3.amazonaws.com/mnist";

/// Address and size as in torchvision's `MNIST.resources`; the SHA-256 of the uncompressed files as widely listed, not
/// computed by us.
const MNIST: DatasetInfo = DatasetInfo {
    name: DatasetName::Mnist,
    title: "MNIST, handwritten digits, 28x28 gray",
    shape: ImageShape { channels: 1, height: 28, width: 28 },
    max_value: 255,
    n_classes: 10,
    n_train: 60_000,
    n_test: 10_000,
    files: &[
        RemoteFile {
            file_name: "train-images-idx3-ubyte.gz",
            base_url: MNIST_URL,
            size: 9_912_422,
            checksum: ChecksumKind::ContentSha256,
            sha256: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        },
        RemoteFile {
            file_name: "train-labels-idx1-ubyte.gz",
            base_url: MNIST_URL,
            size: 28_881,
            checksum: ChecksumKind::ContentSha256,
            sha256: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        },
        RemoteFile {
            file_name: "t10k-images-idx3-ubyte.gz",
            base_url: MNIST_URL,
            size: 1_648_877,
            checksum: ChecksumKind::ContentSha256,
            sha256: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        },
        RemoteFile {
            file_name: "t10k-labels-idx1-ubyte.gz",
            base_url: MNIST_URL,
            size: 4_542,
            checksum: ChecksumKind::ContentSha256,
            sha256: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ],
};

const FASHION_MNIST_URL: &str = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com";

/// Address and size as in the authors' README. The SHA-256 was computed from Debian's package `dataset-fashion-mnist`
/// 0.0~git20200523.55506a9-1, which compresses the same content again: it has the MD5 sums published for the
/// uncompressed files.
const FASHION_MNIST: DatasetInfo = DatasetInfo {
    name: DatasetName::FashionMnist,
    title: "Fashion-MNIST, clothing, 28x28 gray",
    shape: ImageShape { channels: 1, height: 28, width: 28 },
    max_value: 255,
    n_classes: 10,
    n_train: 60_000,
    n_test: 10_000,
    files: &[
        RemoteFile {
            file_name: "train-images-idx3-ubyte.gz",
            base_url: FASHION_MNIST_URL,
            size: 26_421_880,
            checksum: ChecksumKind::ContentSha256,
            sha256: "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        },
        RemoteFile {
            file_name: "train-labels-idx1-ubyte.gz",
            base_url: FASHION_MNIST_URL,
            size: 29_515,
            checksum: ChecksumKind::ContentSha256,
            sha256: "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        },
        RemoteFile {
            file_name: "t10k-images-idx3-ubyte.gz",
            base_url: FASHION_MNIST_URL,
            size: 4_422_102,
            checksum: ChecksumKind::ContentSha256,
            sha256: "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        },
        RemoteFile {
            file_name: "t10k-labels-idx1-ubyte.gz",
            base_url: FASHION_MNIST_URL,
            size: 5_148,
            checksum: ChecksumKind::ContentSha256,
            sha256: "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ],
};

const CIFAR_URL: &str = "https://www.cs.toronto.edu/~kriz";

/// Size and address as on <https://www.cs.toronto.edu/~kriz/cifar.html>; SHA-256 as in torchvision-ruby.
const CIFAR10: DatasetInfo = DatasetInfo {
    name: DatasetName::Cifar10,
    title: "CIFAR-10, photographs, 32x32 color",
    shape: ImageShape { channels: 3, height: 32, width: 32 },
    max_value: 255,
    n_classes: 10,
    n_train: 50_000,
    n_test: 10_000,
    files: &[RemoteFile {
        file_name: "cifar-10-binary.tar.gz",
        base_url: CIFAR_URL,
        size: 170_052_171,
        checksum: ChecksumKind::FileSha256,
        sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    }],
};

/// Size and address as on <https://www.cs.toronto.edu/~kriz/cifar.html>; SHA-256 as in torchvision-ruby.
const CIFAR100: DatasetInfo = DatasetInfo {
    name: DatasetName::Cifar100,
    title: "CIFAR-100, photographs, 32x32 color",
    shape: ImageShape { channels: 3, height: 32, width: 32 },
    max_value: 255,
    n_classes: 100,
    n_train: 50_000,
    n_test: 10_000,
    files: &[RemoteFile {
        file_name: "cifar-100-binary.tar.gz",
        base_url: CIFAR_URL,
        size: 168_513_733,
        checksum: ChecksumKind::FileSha256,
        sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    }],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelled_alike_everywhere() {
        for &name in DatasetName::ALL {
            assert_eq!(name.to_string().parse::<DatasetName>().unwrap(), name);
            assert_eq!(serde_json::to_string(&name).unwrap(), format!("\"{name}\""));
            assert_eq!(name.info().name, name);
        }
        let message = "Cifar10".parse::<DatasetName>().unwrap_err().to_string();
        assert_eq!(
            message,
            "find a data set called \"Cifar10\"; there are digits, mnist, fashion-mnist, cifar10, cifar100"
        );
    }

    #[test]
    fn checksums_are_well_formed() {
        let is_hex = |text: &str| text.len() == 64 && text.bytes().all(|b| b"0123456789abcdef".contains(&b));
        for file in DatasetName::ALL.iter().flat_map(|name| name.info().files) {
            assert!(!file.base_url.ends_with('/'), "{file:?}");
        }
        let parts =
            DatasetName::ALL.iter().flat_map(|&name| Split::ALL.iter().map(move |&split| (name, split)));
        for (name, split) in parts {
            for sum in published_contents(name, split) {
                assert!(is_hex(sum), "{sum}");
                assert_eq!(identify(sum), Some((name, split)), "no sum is there twice");
            }
        }
    }
}
