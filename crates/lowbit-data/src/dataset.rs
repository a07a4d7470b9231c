//! A data set in memory, and how its pixels become numbers.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::catalog::{identify, published_contents};
use crate::source::label_len;
use crate::{
    DataError, DatasetName, Digest, Image, LabelKind, Locations, SampleError, SampleFailure, Source,
    SourceInfo, Split, cifar, digits, idx, locate,
};

/// The shape of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ImageShape {
    /// Number of color channels.
    pub channels: usize,
    /// Number of rows.
    pub height: usize,
    /// Number of columns.
    pub width: usize,
}

impl ImageShape {
    /// Number of values of one image.
    pub fn n_values(self) -> usize {
        self.channels * self.height * self.width
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// Labeled images in memory, of 8 bits per value, all of one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Name for messages: that of the catalog, or any other for data made by the caller.
    pub name: String,
    /// Shape of each image.
    pub shape: ImageShape,
    /// Number of classes.
    pub n_classes: usize,
    /// Pixels, row-major `[sample, channel, height, width]`, each in `0..=max_value`.
    pub images: Vec<u8>,
    /// The pixel value that stands for 1.0: 16 for digits, 255 for the others.
    pub max_value: u8,
    /// One class index per image, each below `n_classes`.
    pub labels: Vec<u16>,
}

impl Dataset {
    /// Checks that the parts fit each other. [`Loader::new`](crate::Loader::new) calls this.
    ///
    /// # Errors
    /// [`DataError::Inconsistent`] if there are not as many images as labels,
    /// [`DataError::ValueOutOfRange`] for a pixel above `max_value` or a label that is no class.
    pub fn validate(&self) -> Result<(), DataError> {
        let expected = self.labels.len() * self.shape.n_values();
        if self.images.len() != expected {
            return Err(DataError::Inconsistent {
                name: self.name.clone(),
                n_labels: self.labels.len(),
                expected,
                got: self.images.len(),
            });
        }
        if let Some(idx) = self.images.iter().position(|&pixel| pixel > self.max_value) {
            return Err(DataError::ValueOutOfRange {
                name: self.name.clone(),
                what: "pixel",
                idx,
                got: self.images[idx].into(),
                max: self.max_value.into(),
            });
        }
        check_labels(&self.name, self.n_classes, self.labels.iter().copied())
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// CRC-32 of the labels and the pixels, by which another data set is noticed at once. It does not withstand a forger.
    pub fn crc32(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        // In pieces: a copy of all labels as bytes is not needed.
        for labels in self.labels.chunks(1 << 12) {
            let bytes: Vec<u8> = labels
                .iter()
                .flat_map(|label| label.to_le_bytes().into_iter().take(label_len(self.n_classes)))
                .collect();
            hasher.update(&bytes);
        }
        hasher.update(&self.images);
        hasher.finalize()
    }

    /// The pixels of one image, `[channel, height, width]`.
    ///
    /// # Panics
    /// If there is no image of that index.
    pub fn pixels(&self, sample_idx: usize) -> &[u8] {
        let n_values = self.shape.n_values();
        &self.images[sample_idx * n_values..(sample_idx + 1) * n_values]
    }

    /// The first `n_samples` samples alone.
    ///
    /// # Errors
    /// [`DataError::TooFewSamples`] if there are not that many.
    ///
    /// ```
    /// use lowbit_data::{DatasetName, LabelKind, Locations, Split, open};
    ///
    /// let digits = open(DatasetName::Digits, Split::Train, LabelKind::Fine, &Locations::default_with(None))?;
    /// assert_eq!(digits.dataset.head(100)?.len(), 100);
    /// # Ok::<(), lowbit_data::DataError>(())
    /// ```
    pub fn head(mut self, n_samples: usize) -> Result<Self, DataError> {
        if n_samples > self.len() {
            return Err(DataError::TooFewSamples {
                name: self.name.clone(),
                asked: n_samples,
                available: self.len(),
            });
        }
        self.labels.truncate(n_samples);
        self.images.truncate(n_samples * self.shape.n_values());
        self.labels.shrink_to_fit();
        self.images.shrink_to_fit();
        Ok(self)
    }
}

impl Source for Dataset {
    fn info(&self) -> SourceInfo {
        let Dataset { name, shape, n_classes, max_value, .. } = self;
        SourceInfo {
            name: name.clone(),
            n_samples: self.len(),
            n_classes: *n_classes,
            shape: Some(*shape),
            max_value: *max_value,
            normalization: None,
        }
    }

    fn label(&self, sample_idx: usize) -> u16 {
        self.labels[sample_idx]
    }

    fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
        Ok(Image { shape: self.shape, pixels: self.pixels(sample_idx).into() })
    }

    fn digest(&self) -> Result<Digest, DataError> {
        Ok(Digest::crc32(self.crc32()))
    }

    fn check(&self) -> Result<(), DataError> {
        self.validate()
    }
}

/// Refuses a label that is no class of `name`.
pub(crate) fn check_labels(
    name: &str,
    n_classes: usize,
    mut labels: impl Iterator<Item = u16>,
) -> Result<(), DataError> {
    let mut got = 0;
    let is_beyond = |label: u16| {
        got = label;
        usize::from(label) >= n_classes
    };
    match labels.position(is_beyond) {
        Some(idx) => Err(DataError::ValueOutOfRange {
            name: name.into(),
            what: "label",
            idx,
            got,
            max: n_classes.saturating_sub(1),
        }),
        None => Ok(()),
    }
}

/// One part of a data set as it was read, before it is known where it comes from.
pub(crate) struct Parts {
    pub dataset: Dataset,
    /// The files it was read from, each with the SHA-256 of its content where it may be a published one.
    pub contents: Vec<(PathBuf, Option<String>)>,
}

/// One part of a data set, and where it comes from.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The images.
    pub dataset: Dataset,
    /// Which data set.
    pub name: DatasetName,
    /// Which part.
    pub split: Split,
    /// The directory or archive it was read from; `None` if it is built in.
    pub place: Option<PathBuf>,
    /// The part of the data set that the files are, as published; `None` for any other files.
    pub published: Option<Split>,
    /// Number of images in the files.
    pub n_in_files: usize,
    /// CRC-32 of labels and pixels in the files, as by [`Dataset::crc32`].
    pub crc32_of_files: u32,
}

impl Opened {
    /// The first `n_samples` images alone.
    ///
    /// # Errors
    /// [`DataError::TooFewSamples`] if there are not that many.
    pub fn head(self, n_samples: usize) -> Result<Self, DataError> {
        Ok(Self { dataset: self.dataset.head(n_samples)?, ..self })
    }
}

/// Reads one part of a data set into memory. Published data sets have no validation images of their own: those are among the
/// training images, which are read for them.
///
/// [`DatasetName::Digits`] is built in and needs no file. The other data sets are looked for in `locations`, in their
/// order. A CIFAR file must hold exactly the published number of records; IDX files declare their own number, so that
/// data of one's own can be read under the name of MNIST: [`warnings`](crate::warnings()) then says so.
///
/// # Errors
/// Any [`DataError`] of locating and reading: [`DataError::NotFound`] lists the places searched,
/// [`DataError::OtherDataset`] tells that the files are those of another data set.
pub fn open(
    name: DatasetName,
    split: Split,
    labels: LabelKind,
    locations: &Locations,
) -> Result<Opened, DataError> {
    if labels == LabelKind::Coarse && name != DatasetName::Cifar100 {
        return Err(DataError::NoCoarseLabels { name });
    }
    let split = if split == Split::Test { Split::Test } else { Split::Train };
    let found = locate::find(name, split, locations)?;
    let place = found.place().map(Path::to_owned);
    let (Parts { dataset, .. }, published) = match found {
        locate::Found::BuiltIn => (Parts { dataset: digits::read(split), contents: Vec::new() }, Some(split)),
        locate::Found::Idx { images, labels } => identified(name, idx::read(name, split, images, labels)?)?,
        locate::Found::CifarFiles(files) => {
            identified(name, cifar::read_files(name, split, labels, &files)?)?
        }
        locate::Found::CifarArchive(archive) => {
            identified(name, cifar::read_archive(name, split, labels, &archive)?)?
        }
    };
    let (n_in_files, crc32_of_files) = (dataset.len(), dataset.crc32());
    Ok(Opened { dataset, name, split, place, published, n_in_files, crc32_of_files })
}

/// Tells which part of the published data set was read. The files of another one are refused.
fn identified(name: DatasetName, parts: Parts) -> Result<(Parts, Option<Split>), DataError> {
    let sums: Vec<Option<&str>> = parts.contents.iter().map(|(_, sum)| sum.as_deref()).collect();
    for ((path, _), sum) in parts.contents.iter().zip(&sums) {
        if let Some((found, split)) = sum.and_then(identify).filter(|&(found, _)| found != name) {
            return Err(DataError::OtherDataset { path: path.clone(), name, found, split });
        }
    }
    let is_part =
        |split: &Split| published_contents(name, *split).into_iter().map(Some).eq(sums.iter().copied());
    let published = Split::ALL.iter().copied().find(is_part);
    Ok((parts, published))
}

/// Mean and standard deviation per channel that map pixels to network inputs:
/// `(pixel / max_value - mean) / std`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalization {
    /// Mean per channel, in units where the largest pixel value is 1.
    pub mean: Vec<f32>,
    /// Standard deviation per channel, in the same units.
    pub std: Vec<f32>,
}

impl Normalization {
    /// The customary constants of a data set.
    ///
    /// | data set | origin |
    /// |---|---|
    /// | digits | the training part of this crate, rounded to 4 digits |
    /// | mnist | torchvision's and PyTorch's examples |
    /// | fashion-mnist | training images, rounded to 4 digits |
    /// | cifar10, cifar100 | training images, as in common CIFAR training code |
    #[expect(clippy::excessive_precision, reason = "the constants are written as others write them")]
    pub fn of(name: DatasetName) -> Self {
        let (mean, std): (&[f32], &[f32]) = match name {
            DatasetName::Digits => (&[0.3058], &[0.3764]),
            DatasetName::Mnist => (&[0.1307], &[0.3081]),
            DatasetName::FashionMnist => (&[0.2860], &[0.3530]),
            DatasetName::Cifar10 => {
                (&[0.491_399_68, 0.482_158_27, 0.446_531_24], &[0.247_032_33, 0.243_485_05, 0.261_587_68])
            }
            DatasetName::Cifar100 => {
                (&[0.507_058_82, 0.486_666_67, 0.440_784_31], &[0.267_450_98, 0.255_686_27, 0.276_078_43])
            }
        };
        Normalization { mean: mean.to_vec(), std: std.to_vec() }
    }

    /// Mean and deviation of ImageNet's training images, as torchvision's models take them: customary for color photographs.
    pub fn imagenet() -> Self {
        Normalization { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] }
    }

    /// Mean and (population) standard deviation of all pixels of a source, per channel. Not a number for a source without
    /// samples.
    ///
    /// # Equation
    /// `std^2 = E[x^2] - E[x]^2`, from exact integer sums.
    ///
    /// # Errors
    /// If an image cannot be read, or has another number of channels than the first.
    pub fn measure(source: &dyn Source) -> Result<Self, DataError> {
        let info = source.info();
        let channels = info.shape.map(|shape| shape.channels);
        let mut sums = vec![[0u64; 2]; channels.unwrap_or(0)];
        let mut n_pixels = 0;
        for sample_idx in 0..info.n_samples {
            let Image { shape, pixels } = info.read(source, sample_idx)?;
            if sample_idx == 0 {
                sums.resize(shape.channels, [0; 2]);
            } else if shape.channels != sums.len() {
                let expected = ImageShape { channels: sums.len(), ..shape };
                let failure = SampleFailure::Shape { expected, got: shape };
                return Err(DataError::Sample { name: info.name, sample: sample_idx, failure });
            }
            let plane = shape.height * shape.width;
            n_pixels += plane as u64;
            for (channel, [sum, sum_of_squares]) in sums.iter_mut().enumerate() {
                for &pixel in &pixels[channel * plane..(channel + 1) * plane] {
                    *sum += u64::from(pixel);
                    *sum_of_squares += u64::from(pixel) * u64::from(pixel);
                }
            }
        }
        let n_pixels = n_pixels as f64;
        let max = f64::from(info.max_value);
        let mean: Vec<f64> = sums.iter().map(|&[sum, _]| sum as f64 / n_pixels).collect();
        let std = mean.iter().zip(&sums).map(|(m, &[_, sq])| (sq as f64 / n_pixels - m * m).sqrt());
        Ok(Normalization {
            std: std.map(|std| (std / max) as f32).collect(),
            mean: mean.iter().map(|mean| (mean / max) as f32).collect(),
        })
    }

    /// One table per channel from pixel value to network input.
    pub(crate) fn tables(&self, channels: usize, max_value: u8) -> Result<Vec<[f32; 256]>, DataError> {
        let usable = self.mean.len() == channels
            && self.std.len() == channels
            && self.mean.iter().all(|mean| mean.is_finite())
            && self.std.iter().all(|std| std.is_finite() && *std > 0.0);
        if !usable {
            return Err(DataError::Normalization {
                channels,
                mean: self.mean.clone(),
                std: self.std.clone(),
            });
        }
        // In f32 and in this order, as torchvision's ToTensor and Normalize compute it.
        let table = |(mean, std)| {
            std::array::from_fn(|pixel| (pixel as f32 / f32::from(max_value.max(1)) - mean) / std)
        };
        Ok(self.mean.iter().zip(&self.std).map(table).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Dataset {
        Dataset {
            name: "tiny".into(),
            shape: ImageShape { channels: 2, height: 1, width: 2 },
            n_classes: 2,
            images: vec![0, 10, 5, 5, 10, 0, 5, 5],
            max_value: 10,
            labels: vec![1, 0],
        }
    }

    #[test]
    fn measured_per_channel() {
        let normalization = Normalization::measure(&tiny()).unwrap();
        assert_eq!(normalization, Normalization { mean: vec![0.5, 0.5], std: vec![0.5, 0.0] });
    }

    #[test]
    fn table_is_the_formula() {
        let normalization = Normalization { mean: vec![0.5, 0.25], std: vec![0.5, 2.0] };
        let tables = normalization.tables(2, 10).unwrap();
        assert_eq!([tables[0][0], tables[0][5], tables[0][10]], [-1.0, 0.0, 1.0]);
        assert_eq!([tables[1][0], tables[1][10]], [-0.125, 0.375]);
    }

    #[test]
    fn unusable_normalizations_are_refused() {
        for (mean, std) in
            [(vec![0.5], vec![1.0]), (vec![0.5; 2], vec![1.0, 0.0]), (vec![f32::NAN; 2], vec![1.0; 2])]
        {
            let message = Normalization { mean, std }.tables(2, 10).unwrap_err().to_string();
            assert!(message.starts_with("normalize 2-channel images: need 2 means"), "{message}");
        }
        let unknown =
            serde_json::from_str::<Normalization>(r#"{"mean":[0],"std":[1],"var":[1]}"#).unwrap_err();
        assert!(unknown.to_string().contains("unknown field `var`"), "{unknown}");
    }

    #[test]
    fn parts_must_fit() {
        assert!(tiny().validate().is_ok());
        let check = |edit: fn(&mut Dataset), expected: &str| {
            let mut dataset = tiny();
            edit(&mut dataset);
            assert_eq!(dataset.validate().unwrap_err().to_string(), expected);
        };
        check(|d| d.images.truncate(7), "assemble tiny: expected 8 pixel values for 2 labels, got 7");
        check(
            |d| d.images[3] = 11,
            "assemble tiny: pixel 11 at index 3 is larger than the largest allowed, 10",
        );
        check(|d| d.labels[1] = 2, "assemble tiny: label 2 at index 1 is larger than the largest allowed, 1");
        check(|d| d.n_classes = 0, "assemble tiny: label 1 at index 0 is larger than the largest allowed, 0");
    }

    #[test]
    fn head_keeps_the_first() {
        let head = tiny().head(1).unwrap();
        assert_eq!((head.images.as_slice(), head.labels.as_slice()), (&[0, 10, 5, 5][..], &[1][..]));
        let message = tiny().head(3).unwrap_err().to_string();
        assert_eq!(
            message,
            "take the first 3 images of tiny: there are 2; ask for fewer, or give a directory with more"
        );
    }

    #[test]
    fn checksum_covers_labels_and_pixels() {
        let sum = tiny().crc32();
        assert_eq!(sum, tiny().crc32());
        let changes: [fn(&mut Dataset); 3] =
            [|d| d.labels[0] ^= 1, |d| d.images[3] ^= 1, |d| *d = d.clone().head(1).unwrap()];
        for (i, change) in changes.into_iter().enumerate() {
            let mut other = tiny();
            change(&mut other);
            assert_ne!(other.crc32(), sum, "{i}");
        }
    }

    /// Runs know their images by this: it stays as it was when labels had 8 bits.
    #[test]
    fn labels_have_one_byte_in_the_checksum_of_up_to_256_classes() {
        let crc32_of = |bytes: &[u8]| crc32fast::hash(bytes);
        assert_eq!(tiny().crc32(), crc32_of(&[1, 0, 0, 10, 5, 5, 10, 0, 5, 5]));
        let many = |n_classes| Dataset { n_classes, labels: vec![255, 1], ..tiny() };
        assert_eq!(many(256).crc32(), crc32_of(&[255, 1, 0, 10, 5, 5, 10, 0, 5, 5]));
        assert_eq!(many(257).crc32(), crc32_of(&[255, 0, 1, 0, 0, 10, 5, 5, 10, 0, 5, 5]));
    }

    #[test]
    fn coarse_labels_are_for_cifar100() {
        let error =
            open(DatasetName::Digits, Split::Train, LabelKind::Coarse, &Locations::default_with(None));
        assert_eq!(
            error.unwrap_err().to_string(),
            "read coarse labels of digits: only cifar100 has them; ask for fine labels"
        );
    }
}
