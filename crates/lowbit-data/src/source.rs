//! Where samples come from: what the built-in data sets are, and what images of your own can be.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{DataError, ImageShape, Normalization, Picture};

/// Labeled images that are read one by one, in any order, by several threads at once.
///
/// A training asks for [`info`](Self::info) and [`digest`](Self::digest) at its beginning, and for each image once an
/// epoch. The same index must give the same sample for as long as the source lives, and wherever the digest is the same:
/// order and augmentation go by the index.
///
/// ```
/// use std::sync::Arc;
///
/// use lowbit_data::{Image, ImageShape, Loader, LoaderConfig, Normalization, SampleError, Source, SourceInfo};
///
/// /// Bright and dark squares.
/// #[derive(Debug)]
/// struct Squares;
///
/// const SHAPE: ImageShape = ImageShape { channels: 1, height: 6, width: 5 };
///
/// impl Source for Squares {
///     fn info(&self) -> SourceInfo {
///         SourceInfo {
///             name: "squares".into(),
///             n_samples: 64,
///             n_classes: 2,
///             shape: Some(SHAPE),
///             max_value: 255,
///             normalization: None,
///         }
///     }
///
///     fn label(&self, sample_idx: usize) -> u16 {
///         (sample_idx % 2) as u16
///     }
///
///     fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
///         let pixel = if sample_idx % 2 == 1 { 200 } else { 20 };
///         Ok(Image { shape: SHAPE, pixels: vec![pixel; SHAPE.n_values()].into() })
///     }
/// }
///
/// let normalization = Normalization::measure(&Squares)?;
/// assert_eq!(normalization.mean, [110.0 / 255.0]);
/// let loader = Loader::new(Arc::new(Squares), LoaderConfig::training(16, 7, normalization))?;
/// assert_eq!(loader.epoch(0, 0).next().unwrap()?.shape, [16, 1, 6, 5]);
/// # Ok::<(), lowbit_data::DataError>(())
/// ```
pub trait Source: fmt::Debug + Send + Sync {
    /// What is known of the samples before any of them is read.
    fn info(&self) -> SourceInfo;

    /// The class of a sample, below [`SourceInfo::n_classes`].
    ///
    /// # Panics
    /// If there is no sample of that index; it is not asked for.
    fn label(&self, sample_idx: usize) -> u16;

    /// The image of a sample. What is in memory is lent; what is decoded is given away.
    ///
    /// # Errors
    /// Whatever keeps it from being read, in one line that names the file. It ends the training.
    ///
    /// # Panics
    /// If there is no sample of that index; it is not asked for.
    fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError>;

    /// The image of a sample as a [`Loader`](crate::Loader) takes it that brings all images to one size.
    ///
    /// Unless this is overridden, it is [`image`](Self::image) in another order. A source that decodes image files gives what
    /// [`decode`](crate::decode()) makes here, and [`Picture::into_image`] of it there.
    ///
    /// # Errors
    /// As [`image`](Self::image).
    fn picture(&self, sample_idx: usize) -> Result<Picture, SampleError> {
        let image = self.image(sample_idx)?;
        let Image { shape, pixels } = &image;
        if pixels.len() != shape.n_values() {
            return Err(Box::new(SampleFailure::Length { shape: *shape, got: pixels.len() }));
        }
        let shape = image.shape;
        Picture::from_image(image).ok_or_else(|| format!("its image is {shape}, which is too large").into())
    }

    /// Names of the classes, one for each label, if they have any: they are written down in the run.
    fn class_names(&self) -> Option<&[String]> {
        None
    }

    /// What tells its samples from others: a run is resumed only with an equal one.
    ///
    /// Unless this is overridden, it is the CRC-32 of all labels, then all pixels, in order (of labels as one byte where
    /// there are at most 256 classes, as two, the lower first, where there are more), for which every image is read once.
    ///
    /// # Errors
    /// If an image cannot be read.
    fn digest(&self) -> Result<Digest, DataError> {
        let info = self.info();
        let mut hasher = crc32fast::Hasher::new();
        for sample_idx in 0..info.n_samples {
            let label = self.label(sample_idx).to_le_bytes();
            hasher.update(&label[..label_len(info.n_classes)]);
        }
        for sample_idx in 0..info.n_samples {
            hasher.update(&info.read(self, sample_idx)?.pixels);
        }
        Ok(Digest::crc32(hasher.finalize()))
    }

    /// Looks for mistakes before the first batch: a [`Loader`](crate::Loader) begins with this. Labels are its own to check.
    ///
    /// Unless this is overridden, the pixels of images that are lent from memory are compared with
    /// [`SourceInfo::max_value`] here, once; those of images that are given away, whenever they come.
    ///
    /// # Errors
    /// Any [`DataError`].
    fn check(&self) -> Result<(), DataError> {
        let info = self.info();
        let is_lent = |sample_idx: &usize| {
            matches!(self.image(*sample_idx), Ok(Image { pixels: Cow::Borrowed(_), .. }))
        };
        let lent =
            (0..info.n_samples).take_while(|sample_idx| info.max_value < u8::MAX && is_lent(sample_idx));
        for sample_idx in lent {
            let image = info.read(self, sample_idx)?;
            info.pixel_flaw(&image.pixels).map_or(Ok(()), |failure| Err(info.error(sample_idx, failure)))?;
        }
        Ok(())
    }
}

/// Why a sample of a caller's own source cannot be read.
pub type SampleError = Box<dyn std::error::Error + Send + Sync>;

/// What is known of a [`Source`] before any of its samples is read.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceInfo {
    /// Name for messages and for the record of a run, in one line.
    pub name: String,
    /// Number of samples.
    pub n_samples: usize,
    /// Number of classes; labels are below it.
    pub n_classes: usize,
    /// The shape of every image; `None` where it differs from image to image, which a [`Loader`](crate::Loader) serves in one
    /// size, by a [`Geometry`](crate::Geometry).
    pub shape: Option<ImageShape>,
    /// The largest pixel value, which stands for 1.0: 255 unless the images are special.
    pub max_value: u8,
    /// How pixels become network inputs, unless the recipe says it.
    pub normalization: Option<Normalization>,
}

impl SourceInfo {
    /// Reads one image of `source`, whose info this is, and checks it.
    pub(crate) fn read<'a, S: Source + ?Sized>(
        &self,
        source: &'a S,
        sample_idx: usize,
    ) -> Result<Image<'a>, DataError> {
        let image =
            source.image(sample_idx).map_err(|error| self.error(sample_idx, SampleFailure::Source(error)))?;
        match self.flaw(&image) {
            Some(failure) => Err(self.error(sample_idx, failure)),
            None => Ok(image),
        }
    }

    /// Reads one image of `source`, whose info this is, of any size but with pixels and colors, and checks it.
    pub(crate) fn read_picture<S: Source + ?Sized>(
        &self,
        source: &S,
        sample_idx: usize,
    ) -> Result<Picture, DataError> {
        let picture = source
            .picture(sample_idx)
            .map_err(|error| self.error(sample_idx, SampleFailure::Source(error)))?;
        let shape = picture.shape();
        let failure = if let Some(expected) = self.shape.filter(|expected| *expected != shape) {
            Some(SampleFailure::Shape { expected, got: shape })
        } else if picture.pixels.len() != shape.n_values() {
            Some(SampleFailure::Length { shape, got: picture.pixels.len() })
        } else if !matches!(shape.channels, 1 | 3) || shape.n_values() == 0 {
            Some(SampleFailure::NoPicture { shape })
        } else if self.max_value < u8::MAX {
            self.pixel_flaw(&picture.pixels)
        } else {
            None
        };
        failure.map_or(Ok(picture), |failure| Err(self.error(sample_idx, failure)))
    }

    fn error(&self, sample: usize, failure: SampleFailure) -> DataError {
        DataError::Sample { name: self.name.clone(), sample, failure }
    }

    /// What is wrong with an image, apart from the pixels of one that is lent, which were checked.
    fn flaw(&self, Image { shape, pixels }: &Image<'_>) -> Option<SampleFailure> {
        if let Some(expected) = self.shape.filter(|expected| expected != shape) {
            return Some(SampleFailure::Shape { expected, got: *shape });
        }
        if pixels.len() != shape.n_values() {
            return Some(SampleFailure::Length { shape: *shape, got: pixels.len() });
        }
        match pixels {
            Cow::Owned(pixels) if self.max_value < u8::MAX => self.pixel_flaw(pixels),
            _ => None,
        }
    }

    fn pixel_flaw(&self, pixels: &[u8]) -> Option<SampleFailure> {
        let got = pixels.iter().copied().max().filter(|largest| *largest > self.max_value)?;
        Some(SampleFailure::Pixel { got, max: self.max_value })
    }
}

/// One image as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// Its shape.
    pub shape: ImageShape,
    /// Its pixels, row-major `[channel, height, width]`.
    pub pixels: Cow<'a, [u8]>,
}

/// What tells the samples of a [`Source`] from others. It does not withstand a forger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Digest {
    /// CRC-32 of labels and pixels, in hexadecimal.
    #[serde(rename = "crc32")]
    Crc32(String),
    /// Whatever the source makes for itself, in one line: of its index, say.
    #[serde(rename = "digest")]
    Other(String),
}

impl Digest {
    /// The one with this CRC-32.
    pub fn crc32(crc32: u32) -> Self {
        Digest::Crc32(format!("{crc32:08x}"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Digest::Crc32(digits) => write!(f, "crc32 {digits}"),
            Digest::Other(text) => write!(f, "digest {text}"),
        }
    }
}

/// Why one sample cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SampleFailure {
    /// It cannot be read.
    #[error("{0}")]
    Source(#[source] SampleError),
    /// Its image has another shape than the source says.
    #[error("its image is {got}, those of the source are {expected} (channels, height, width)")]
    Shape {
        /// The shape that all images have.
        expected: ImageShape,
        /// Its shape.
        got: ImageShape,
    },
    /// Its image has more or fewer pixel values than its shape.
    #[error("its image of {shape} has {got} pixel values, not {}", shape.n_values())]
    Length {
        /// Its shape.
        shape: ImageShape,
        /// Number of its pixel values.
        got: usize,
    },
    /// It cannot be resized.
    #[error("its image is {shape} (channels, height, width), expected 1 or 3 channels and at least a pixel")]
    NoPicture {
        /// Its shape.
        shape: ImageShape,
    },
    /// A pixel is above the largest value.
    #[error("its image has a pixel of {got}, larger than the largest allowed, {max}")]
    Pixel {
        /// The largest pixel of the image.
        got: u8,
        /// The largest value of the source.
        max: u8,
    },
}

/// The first `n_samples` samples of a source alone. Its digest stays that of the whole.
///
/// # Errors
/// [`DataError::TooFewSamples`] if there are not that many.
pub fn head(source: Arc<dyn Source>, n_samples: usize) -> Result<Arc<dyn Source>, DataError> {
    let SourceInfo { name, n_samples: available, .. } = source.info();
    match n_samples <= available {
        true => Ok(Arc::new(Head { source, n_samples })),
        false => Err(DataError::TooFewSamples { name, asked: n_samples, available }),
    }
}

#[derive(Debug)]
struct Head {
    source: Arc<dyn Source>,
    n_samples: usize,
}

impl Source for Head {
    fn info(&self) -> SourceInfo {
        SourceInfo { n_samples: self.n_samples, ..self.source.info() }
    }

    fn label(&self, sample_idx: usize) -> u16 {
        self.source.label(sample_idx)
    }

    fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
        self.source.image(sample_idx)
    }

    fn picture(&self, sample_idx: usize) -> Result<Picture, SampleError> {
        self.source.picture(sample_idx)
    }

    fn class_names(&self) -> Option<&[String]> {
        self.source.class_names()
    }

    fn digest(&self) -> Result<Digest, DataError> {
        self.source.digest()
    }

    fn check(&self) -> Result<(), DataError> {
        self.source.check()
    }
}

/// Bytes of a label in a digest.
pub(crate) fn label_len(n_classes: usize) -> usize {
    if n_classes <= 256 { 1 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DataWarning, Dataset, Split, source_warnings};

    fn dataset(images: &[u8], labels: &[u16]) -> Dataset {
        Dataset {
            name: "pixels".into(),
            shape: ImageShape { channels: 1, height: 1, width: 1 },
            n_classes: 400,
            images: images.to_vec(),
            max_value: 255,
            labels: labels.to_vec(),
        }
    }

    #[test]
    fn the_head_of_a_source_has_its_digest() {
        let source: Arc<dyn Source> = Arc::new(dataset(&[1, 2, 3], &[7, 8, 9]));
        let head_of = head(Arc::clone(&source), 2).unwrap();
        assert_eq!(head_of.info(), SourceInfo { n_samples: 2, ..source.info() });
        assert_eq!((head_of.label(1), &*head_of.image(1).unwrap().pixels), (8, &[2][..]));
        assert_eq!(head_of.digest().unwrap(), source.digest().unwrap());
        let message = head(source, 4).unwrap_err().to_string();
        assert!(message.starts_with("take the first 4 images of pixels: there are 3"), "{message}");
    }

    #[test]
    fn a_digest_is_of_the_bytes_that_it_says() {
        let expected = crc32fast::hash(&[7, 0, 44, 1, 5, 6]);
        assert_eq!(dataset(&[5, 6], &[7, 300]).digest().unwrap(), Digest::crc32(expected));
    }

    /// What is lent is compared; what would have to be decoded is judged by its labels alone.
    #[test]
    fn images_are_warned_of_where_they_are_at_hand() {
        #[derive(Debug)]
        struct GivenAway(Dataset);
        impl Source for GivenAway {
            fn info(&self) -> SourceInfo {
                self.0.info()
            }
            fn label(&self, sample_idx: usize) -> u16 {
                self.0.label(sample_idx)
            }
            fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
                let Image { shape, pixels } = self.0.image(sample_idx)?;
                Ok(Image { shape, pixels: pixels.into_owned().into() })
            }
        }
        let all: Vec<u16> = (0..400).collect();
        let train = dataset(&all.iter().map(|i| (i % 9) as u8).collect::<Vec<_>>(), &all);
        let test = dataset(&[3, 200], &[399, 0]);
        let missing = source_warnings(Some(&train), &test).into_iter().map(|warning| warning.to_string());
        let missing: Vec<String> = missing.collect();
        assert_eq!(
            missing,
            [
                "no pixel of the 400 training images is above 8, where 255 is white: are they on another scale?",
                "the 2 test images are of 2 of 400 classes, without 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 388 more: the accuracy \
                 says nothing about what is missing; take more images, or shuffle the files",
                "only 9 of the 400 training images differ, the others are copies",
                "1 of the 2 test images are also training images: the accuracy says little about new images",
            ]
        );
        let of_labels = source_warnings(Some(&GivenAway(train)), &GivenAway(test));
        assert!(
            matches!(of_labels[..], [DataWarning::MissingClasses { split: Split::Test, .. }]),
            "{of_labels:?}"
        );
    }
}
