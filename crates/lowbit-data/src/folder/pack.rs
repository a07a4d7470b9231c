//! Making shards of a folder of images: few large files instead of many small ones.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use serde::{Deserialize, Serialize};

use super::archive::CLASSES;
use super::{FolderPart, ImageFolder};
use crate::error::{Action, FolderProblem};
use crate::geometry::resize_shorter;
use crate::read::open_regular;
use crate::{DataError, DecodeLimits, FileKind, Picture, decode};

/// What was packed and how, so that a packing that was stopped goes on with the same.
const RECORD: &str = "pack.json";

/// How images are packed.
///
/// | Name | Default | Range | Unit |
/// |---|---|---|---|
/// | `resize` | none | 1..=4096 | pixels of the shorter side; smaller images stay as they are |
/// | `quality` | 95 | 1..=100 | of the JPEG files that are made by `resize` |
/// | `per_shard` | 4096 | 1.. | images |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackSettings {
    /// The shorter side that larger images are brought to, as JPEG; without it, files are packed as they are.
    pub resize: Option<u32>,
    /// Quality of the JPEG files that are made.
    pub quality: u8,
    /// Images of a shard.
    pub per_shard: usize,
}

impl Default for PackSettings {
    fn default() -> Self {
        PackSettings { resize: None, quality: 95, per_shard: 4096 }
    }
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Packed {
    /// Images in the shards.
    pub n_images: u64,
    /// Shards, those included that were there already.
    pub n_shards: u64,
    /// Shards that were there already.
    pub n_kept: u64,
}

/// What `pack.json` holds.
#[derive(PartialEq, Serialize, Deserialize)]
struct Record {
    settings: PackSettings,
    /// Digest of each part.
    source: Vec<String>,
    n_images: Vec<usize>,
}

/// Packs the images of `source` into tar archives in the folder `to`, in the layout of WebDataset: `0000017.jpg` and
/// `0000017.cls` for each, and the names of the classes in `classes.txt`. [`ImageFolder::open`] reads them.
///
/// A shard gets its name when it is whole. What was stopped goes on with the next shard when it is called again.
/// `progress` is told how many images are packed after each; it ends by `false`, and `None` is returned.
///
/// # Errors
/// If an image cannot be read, or, to be resized, decoded; if `to` holds something else, or cannot be written.
pub fn pack(
    source: &ImageFolder,
    to: &Path,
    settings: &PackSettings,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Option<Packed>, DataError> {
    source.expect_usable()?;
    fs::create_dir_all(to).map_err(|error| DataError::io(to, Action::Create, error))?;
    let digests = source.parts().iter().map(|part| part.index.digest().map(|digest| digest.to_string()));
    let record = Record {
        settings: *settings,
        source: digests.collect::<Result<_, _>>()?,
        n_images: source.parts().iter().map(|part| part.index.len()).collect(),
    };
    expect_own(to, &record)?;
    let classes: String = source.classes().iter().map(|class| format!("{class}\n")).collect();
    if source.classes().iter().any(|class| class.contains(['\n', '\r'])) {
        let class = classes.escape_debug().to_string();
        return Err(DataError::Folder {
            path: source.root().into(),
            problem: FolderProblem::ClassNames { class },
        });
    }
    write_whole(&to.join(CLASSES), classes.as_bytes())?;
    let mut packed = Packed::default();
    for part in source.parts() {
        let folder = to.join(if part.name.is_empty() { super::TRAIN } else { part.name });
        fs::create_dir_all(&folder).map_err(|error| DataError::io(&folder, Action::Create, error))?;
        let images = source.part_images(part)?;
        for start in (0..part.index.len()).step_by(settings.per_shard.max(1)) {
            let end = part.index.len().min(start + settings.per_shard.max(1));
            let path = folder.join(format!("shard-{:06}.tar", start / settings.per_shard.max(1)));
            packed.n_shards += 1;
            if path.exists() {
                packed.n_kept += 1;
            } else {
                let label = |image| crate::Source::label(&images, image);
                if !write_shard(&path, part, start..end, settings, label, |n| progress(packed.n_images + n))?
                {
                    return Ok(None);
                }
            }
            packed.n_images += (end - start) as u64;
            if !progress(packed.n_images) {
                return Ok(None);
            }
        }
    }
    Ok(Some(packed))
}

/// The longest `pack.json` that is read.
const MAX_RECORD: u64 = 64 << 20;

/// Images of each part that were to be packed into `root`, training images first; `None` if it is no folder that was packed.
pub(super) fn expected_images(root: &Path) -> Option<Vec<usize>> {
    let mut bytes = Vec::new();
    open_regular(&root.join(RECORD)).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice::<Record>(&bytes).ok().map(|record| record.n_images)
}

/// Refuses a folder with something else than the shards of the same images; writes down what is packed.
fn expect_own(to: &Path, record: &Record) -> Result<(), DataError> {
    let path = to.join(RECORD);
    let problem = |problem| Err(DataError::Folder { path: to.to_owned(), problem });
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice::<Record>(&bytes) {
            Ok(found) if found == *record => Ok(()),
            _ => problem(FolderProblem::OtherPack),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut entries = fs::read_dir(to).map_err(|error| DataError::io(to, Action::Read, error))?;
            // What a killed process began is no other file.
            let is_other = |entry: io::Result<fs::DirEntry>| {
                entry.is_ok_and(|entry| entry.path().extension().is_none_or(|ending| ending != "part"))
            };
            if entries.any(is_other) {
                return problem(FolderProblem::NotEmpty);
            }
            let bytes = serde_json::to_vec_pretty(record).expect("invariant: a record is plain data");
            write_whole(&path, &bytes)
        }
        Err(error) => Err(DataError::io(&path, Action::Read, error)),
    }
}

fn partial(path: &Path) -> PathBuf {
    path.with_extension("part")
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let partial = partial(path);
    fs::write(&partial, bytes).map_err(|error| DataError::io(&partial, Action::Write, error))?;
    fs::rename(&partial, path).map_err(|error| DataError::io(path, Action::Rename, error))
}

/// Writes one shard; whether it came to its end.
fn write_shard(
    path: &Path,
    part: &FolderPart,
    images: std::ops::Range<usize>,
    settings: &PackSettings,
    label: impl Fn(usize) -> u16,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<bool, DataError> {
    let partial = partial(path);
    let write_error = |error| DataError::io(&partial, Action::Write, error);
    let file = File::create(&partial).map_err(|error| DataError::io(&partial, Action::Create, error))?;
    let mut builder = tar::Builder::new(BufWriter::new(file));
    for (n, image) in images.clone().enumerate() {
        let (bytes, ending) = packed_bytes(part, image, settings)?;
        let mut append = |ending: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            // No time: equal images make equal shards.
            header.set_mtime(0);
            builder.append_data(&mut header, format!("{image:08}.{ending}"), bytes).map_err(write_error)
        };
        append(ending, &bytes)?;
        append("cls", label(image).to_string().as_bytes())?;
        if !progress(n as u64 + 1) {
            drop(fs::remove_file(&partial));
            return Ok(false);
        }
    }
    let file =
        builder.into_inner().and_then(|writer| writer.into_inner().map_err(io::IntoInnerError::into_error));
    file.and_then(|mut file| file.flush().and_then(|()| file.sync_all())).map_err(write_error)?;
    fs::rename(&partial, path).map_err(|error| DataError::io(path, Action::Rename, error))?;
    Ok(true)
}

/// The file of an image as it is packed, and the ending of its name.
fn packed_bytes(
    part: &FolderPart,
    image: usize,
    settings: &PackSettings,
) -> Result<(Vec<u8>, &'static str), DataError> {
    let bytes = part.index.read(image)?;
    let unreadable = |reason: String| {
        let first = super::index::one_line(&part.index.path(image));
        let problem = FolderProblem::Unusable { n: 1, first, reason };
        DataError::Folder { path: part.index.root().to_owned(), problem }
    };
    let is_png = bytes.starts_with(b"\x89PNG");
    let ending = if is_png { "png" } else { "jpg" };
    let Some(side) = settings.resize else {
        return match FileKind::of(&bytes[..bytes.len().min(512)]) {
            FileKind::Image => Ok((bytes, ending)),
            kind => Err(unreadable(format!("it is {kind}, not a JPEG or PNG image"))),
        };
    };
    let picture = decode(&bytes, &DecodeLimits::default()).map_err(|error| unreadable(error.to_string()))?;
    let size = picture.dimensions;
    if size.width.min(size.height) <= side {
        return Ok((bytes, ending));
    }
    let Picture { dimensions, channels: _, pixels } = resize_shorter(picture, side);
    let mut jpeg = Vec::new();
    let mut encoder = Encoder::new(&mut jpeg, settings.quality);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    let too_long = || unreadable(format!("it is {dimensions} when resized, which no JPEG can be"));
    let (Ok(width), Ok(height)) = (dimensions.width.try_into(), dimensions.height.try_into()) else {
        return Err(too_long());
    };
    encoder.encode(&pixels, width, height, ColorType::Rgb).map_err(|_| too_long())?;
    Ok((jpeg, "jpg"))
}
