//! Making shards of a folder of images: few large files instead of many small ones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use serde::{Deserialize, Serialize};

use super::archive::CLASSES;
use super::{FolderPart, ImageFolder};
use crate::error::{Action, FolderProblem};
use crate::geometry::resize_shorter;
use crate::read::{open_alone, open_regular};
use crate::{DataError, DecodeLimits, Dimensions, FileKind, Picture, decode};

/// What was packed and how, so that a packing that was stopped goes on with the same.
const RECORD: &str = "pack.json";

/// Locked by the process that packs. It stays: another process may have it open.
const LOCK: &str = "pack.lock";

/// How images are packed.
///
/// | Name | Default | Range | Unit |
/// |---|---|---|---|
/// | `resize` | none | 1..=4096 | pixels of the shorter side; smaller images stay as they are |
/// | `quality` | 95 | 1..=100 | of the JPEG files that are made by `resize` |
/// | `per_shard` | 4096 | 1.. | images |
/// | `skip_unreadable` | false | | |
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackSettings {
    /// The shorter side that larger images are brought to, as JPEG; without it, files are packed as they are.
    pub resize: Option<u32>,
    /// Quality of the JPEG files that are made.
    pub quality: u8,
    /// Images of a shard.
    pub per_shard: usize,
    /// Whether every image is decoded, and what cannot be is left out; else the first such file is an error, if it is noticed.
    // A packing that such a file ended goes on with it.
    #[serde(skip)]
    pub skip_unreadable: bool,
}

impl Default for PackSettings {
    fn default() -> Self {
        PackSettings { resize: None, quality: 95, per_shard: 4096, skip_unreadable: false }
    }
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Packed {
    /// Images in the shards.
    pub n_images: u64,
    /// Files that were left out, as they cannot be used or decoded: those that `pack.json` names, and more if there are
    /// many that cannot be used.
    pub n_skipped: u64,
    /// Shards, those included that were there already.
    pub n_shards: u64,
    /// Shards that were there already.
    pub n_kept: u64,
}

/// What `pack.json` holds.
#[derive(Serialize, Deserialize)]
struct Record {
    settings: PackSettings,
    /// Digest of each part.
    source: Vec<String>,
    /// Images of each part, those included that are left out.
    n_images: Vec<usize>,
    /// What is left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<Skipped>,
    /// The shards that were written, by their path.
    #[serde(default)]
    shards: BTreeMap<String, Shard>,
}

/// A shard as it was written.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Shard {
    bytes: u64,
    /// Whether its images were decoded, and are known to be readable.
    are_decoded: bool,
}

/// A file that is left out.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Skipped {
    /// Its part, from 0.
    part: usize,
    /// Its place among the images of the part; none if it could not be used from the start.
    image: Option<usize>,
    file: String,
    reason: String,
}

impl Record {
    /// Whether it is of the same images, packed in the same way.
    fn is_of(&self, other: &Self) -> bool {
        let settings = |record: &Self| PackSettings { skip_unreadable: false, ..record.settings };
        settings(self) == settings(other) && self.source == other.source && self.n_images == other.n_images
    }

    /// Whether the shard at `path` is whole, and nothing further is asked of it.
    fn has(&self, name: &str, path: &Path, settings: &PackSettings) -> bool {
        self.shards.get(name).is_some_and(|shard| {
            fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == shard.bytes)
                && (shard.are_decoded || !settings.skip_unreadable)
        })
    }

    /// Images of a part that are left out.
    fn n_skipped(&self, part: usize) -> usize {
        self.skipped.iter().filter(|skipped| skipped.part == part && skipped.image.is_some()).count()
    }

    fn write(&self, to: &Path) -> Result<(), DataError> {
        let bytes = serde_json::to_vec_pretty(self).expect("invariant: a record is plain data");
        write_whole(&to.join(RECORD), &bytes)
    }
}

/// Refuses a folder that would be one of the classes of `source` the next time.
fn expect_outside(source: &ImageFolder, to: &Path) -> Result<(), DataError> {
    let absolute = std::path::absolute(to).map_err(|error| DataError::io(to, Action::Read, error))?;
    // Of what is there already: a folder that does not exist has no one name.
    let found = absolute.ancestors().find_map(|path| fs::canonicalize(path).ok());
    let is_inside = |root: &Path| {
        let root = fs::canonicalize(root).unwrap_or_else(|_| root.into());
        found.as_ref().is_some_and(|path| path.starts_with(root))
    };
    match source.parts().iter().find(|part| is_inside(part.index.root())) {
        Some(part) => Err(DataError::Folder {
            path: to.into(),
            problem: FolderProblem::PackedInside { source_root: part.index.root().into() },
        }),
        None => Ok(()),
    }
}

/// Packs the images of `source` into tar archives in the folder `to`, in the layout of WebDataset: `0000017.jpg` and
/// `0000017.cls` for each, and the names of the classes in `classes.txt`. [`ImageFolder::open`] reads them.
///
/// A shard gets its name when it is whole. What was stopped goes on with the next shard when it is called again.
/// `progress` is told how many images are done after each; it ends by `false`, and `None` is returned.
///
/// # Errors
/// If an image cannot be read, or, to be resized, decoded and is not to be left out; if `to` holds something else, or cannot be
/// written.
pub fn pack(
    source: &ImageFolder,
    to: &Path,
    settings: &PackSettings,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Option<Packed>, DataError> {
    let mut skipped = Vec::new();
    let mut n_unusable = 0;
    if settings.skip_unreadable {
        for (part, found) in source.parts().iter().enumerate() {
            let unusable = found.index.unusable();
            n_unusable += unusable.n;
            let told = unusable.first.iter().cloned();
            skipped.extend(told.map(|(file, reason)| Skipped { part, image: None, file, reason }));
        }
    } else {
        source.expect_usable()?;
    }
    expect_outside(source, to)?;
    if let Some(class) = source.classes().iter().find(|class| class.contains(['\n', '\r'])) {
        let class = class.escape_debug().to_string();
        return Err(DataError::Folder {
            path: source.root().into(),
            problem: FolderProblem::ClassNames { class },
        });
    }
    fs::create_dir_all(to).map_err(|error| DataError::io(to, Action::Create, error))?;
    let digests = source.parts().iter().map(|part| part.index.digest().map(|digest| digest.to_string()));
    let record = Record {
        settings: *settings,
        source: digests.collect::<Result<_, _>>()?,
        n_images: source.parts().iter().map(|part| part.index.len()).collect(),
        skipped,
        shards: BTreeMap::new(),
    };
    // Nothing is made in a folder with something else.
    begun(to, &record)?;
    let alone = open_alone(&to.join(LOCK))?;
    let _lock =
        alone.ok_or_else(|| DataError::Folder { path: to.into(), problem: FolderProblem::BeingPacked })?;
    let mut record = match begun(to, &record)? {
        Some(mut begun) => {
            begun.skipped.retain(|skipped| skipped.image.is_some());
            begun.skipped.extend(record.skipped);
            begun
        }
        None => {
            record.write(to)?;
            record
        }
    };
    let classes: String = source.classes().iter().map(|class| format!("{class}\n")).collect();
    write_whole(&to.join(CLASSES), classes.as_bytes())?;
    let mut packed = Packed { n_skipped: n_unusable, ..Packed::default() };
    let (mut n_done, per_shard) = (0, settings.per_shard.max(1));
    for (number, part) in source.parts().iter().enumerate() {
        let part_name = if part.name.is_empty() { super::TRAIN } else { part.name };
        let folder = to.join(part_name);
        fs::create_dir_all(&folder).map_err(|error| DataError::io(&folder, Action::Create, error))?;
        let images = source.part_images(part)?;
        for start in (0..part.index.len()).step_by(per_shard) {
            let shard = start..part.index.len().min(start + per_shard);
            let file_name = format!("shard-{:06}.tar", start / per_shard);
            let (path, name) = (folder.join(&file_name), format!("{part_name}/{file_name}"));
            packed.n_shards += 1;
            if record.has(&name, &path, settings) {
                packed.n_kept += 1;
            } else {
                let label = |image| crate::Source::label(&images, image);
                let written =
                    write_shard(&path, part, shard.clone(), settings, label, |n| progress(n_done + n))?;
                let Some(left_out) = written else { return Ok(None) };
                // Before the shard has its name: a shard that is there is counted rightly.
                let is_of_shard =
                    |of: &Skipped| of.part == number && of.image.is_some_and(|image| shard.contains(&image));
                record.skipped.retain(|skipped| !is_of_shard(skipped));
                record.skipped.extend(left_out.into_iter().map(|(image, reason)| Skipped {
                    part: number,
                    image: Some(image),
                    file: super::index::one_line(&part.index.path(image)),
                    reason,
                }));
                let partial = partial(&path);
                let metadata = fs::metadata(&partial);
                let bytes = metadata.map_err(|error| DataError::io(&partial, Action::Read, error))?.len();
                let are_decoded = settings.resize.is_some() || settings.skip_unreadable;
                record.shards.insert(name, Shard { bytes, are_decoded });
                record.write(to)?;
                rename(&partial, &path)?;
            }
            n_done += shard.len() as u64;
            if !progress(n_done) {
                return Ok(None);
            }
        }
        let n_skipped = record.n_skipped(number);
        packed.n_skipped += n_skipped as u64;
        packed.n_images += part.index.len().saturating_sub(n_skipped) as u64;
    }
    Ok(Some(packed))
}

/// The longest `pack.json` that is read.
const MAX_RECORD: u64 = 64 << 20;

/// Images of each part that were to be packed into `root`, training images first; `None` if it is no folder that was packed.
pub(super) fn expected_images(root: &Path) -> Option<Vec<usize>> {
    let mut bytes = Vec::new();
    open_regular(&root.join(RECORD)).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
    let record: Record = serde_json::from_slice(&bytes).ok()?;
    let is_left = |(part, n): (usize, &usize)| n.saturating_sub(record.n_skipped(part));
    Some(record.n_images.iter().enumerate().map(is_left).collect())
}

/// The record of what was begun in `to`, if something was. Refuses a folder with something else than shards of the images of
/// `record`.
fn begun(to: &Path, record: &Record) -> Result<Option<Record>, DataError> {
    let path = to.join(RECORD);
    let problem = |problem| Err(DataError::Folder { path: to.to_owned(), problem });
    match path.symlink_metadata() {
        Ok(_) => {
            let mut bytes = Vec::new();
            let read = open_regular(&path)?.take(MAX_RECORD).read_to_end(&mut bytes);
            read.map_err(|error| DataError::io(&path, Action::Read, error))?;
            match serde_json::from_slice::<Record>(&bytes) {
                Ok(found) if found.is_of(record) => Ok(Some(found)),
                _ => problem(FolderProblem::OtherPack),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut entries = fs::read_dir(to).map_err(|error| DataError::io(to, Action::Read, error))?;
            // What a killed process began is no other file.
            let is_other = |entry: io::Result<fs::DirEntry>| {
                entry.is_ok_and(|entry| {
                    entry.file_name() != LOCK
                        && entry.path().extension().is_none_or(|ending| ending != "part")
                })
            };
            if entries.any(is_other) {
                return problem(FolderProblem::NotEmpty);
            }
            Ok(None)
        }
        Err(error) => Err(DataError::io(&path, Action::Read, error)),
    }
}

fn partial(path: &Path) -> PathBuf {
    path.with_extension("part")
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let partial = partial(path);
    let written =
        File::create(&partial).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|error| DataError::io(&partial, Action::Write, error))?;
    rename(&partial, path)
}

fn rename(partial: &Path, path: &Path) -> Result<(), DataError> {
    fs::rename(partial, path).map_err(|error| DataError::io(path, Action::Rename, error))
}

/// Images by their place in a part, and why each is left out.
type LeftOut = Vec<(usize, String)>;

/// Writes one shard under its partial name, and says which images are not in it; `None` if it did not come to its end.
fn write_shard(
    path: &Path,
    part: &FolderPart,
    images: std::ops::Range<usize>,
    settings: &PackSettings,
    label: impl Fn(usize) -> u16,
    mut progress: impl FnMut(u64) -> bool,
) -> Result<Option<LeftOut>, DataError> {
    let mut left_out = Vec::new();
    let partial = partial(path);
    let write_error = |error| DataError::io(&partial, Action::Write, error);
    let file = File::create(&partial).map_err(|error| DataError::io(&partial, Action::Create, error))?;
    let mut builder = tar::Builder::new(BufWriter::new(file));
    for (n, image) in images.clone().enumerate() {
        let (bytes, ending) = match packed_bytes(part, image, settings)? {
            Ok(file) => file,
            Err(reason) if settings.skip_unreadable => {
                left_out.push((image, reason));
                continue;
            }
            Err(reason) => {
                let first = super::index::one_line(&part.index.path(image));
                let problem = FolderProblem::Unusable { n: 1, first, reason };
                return Err(DataError::Folder { path: part.index.root().to_owned(), problem });
            }
        };
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
            return Ok(None);
        }
    }
    let file =
        builder.into_inner().and_then(|writer| writer.into_inner().map_err(io::IntoInnerError::into_error));
    file.and_then(|file| file.sync_all()).map_err(write_error)?;
    Ok(Some(left_out))
}

/// The file of an image as it is packed, and the ending of its name; or why the image cannot be used.
type PackedFile = Result<(Vec<u8>, &'static str), String>;

fn packed_bytes(part: &FolderPart, image: usize, settings: &PackSettings) -> Result<PackedFile, DataError> {
    let bytes = part.index.read(image)?;
    let ending = if bytes.starts_with(b"\x89PNG") { "png" } else { "jpg" };
    if settings.resize.is_none() && !settings.skip_unreadable {
        return Ok(match FileKind::of(&bytes[..bytes.len().min(512)]) {
            FileKind::Image => Ok((bytes, ending)),
            kind => Err(format!("it is {kind}, not a JPEG or PNG image")),
        });
    }
    let picture = match decode(&bytes, &DecodeLimits::default()) {
        Ok(picture) => picture,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let size = picture.dimensions;
    let Some(side) = settings.resize.filter(|side| size.width.min(size.height) > *side) else {
        return Ok(Ok((bytes, ending)));
    };
    Ok(match to_jpeg(&resize_shorter(picture, side), settings.quality) {
        Some(jpeg) => Ok((jpeg, "jpg")),
        None => Err(format!("it is {size}, which no JPEG can be when it is resized")),
    })
}

/// None if it is too large.
fn to_jpeg(picture: &Picture, quality: u8) -> Option<Vec<u8>> {
    let Dimensions { width, height } = picture.dimensions;
    let mut jpeg = Vec::new();
    let mut encoder = Encoder::new(&mut jpeg, quality);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(&picture.pixels, width.try_into().ok()?, height.try_into().ok()?, ColorType::Rgb).ok()?;
    Some(jpeg)
}
