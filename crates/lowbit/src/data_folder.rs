//! `lowbit data index|show|verify|stats DIR`: images of one's own.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use lowbit_data::{
    DataError, FolderPart, Fractions, Geometry, ImageFolder, ImageIndex, ImageStats, LoaderConfig,
    Normalization, PackSettings, Packed, Source, Spread, contact_sheet, index_cache, one_line,
};
use lowbit_train::recipe::DataRecipe;
use lowbit_train::shell_quoted;
use serde::Serialize;

use crate::cli::LayoutArgs;
use crate::exit_code::{Code, UsageError};
use crate::output::{self, counted};
use crate::progress::{Progress, Screen};
use crate::recipes;
use crate::signals::stop_on_signals;

/// Classes that are listed; `--json` has all.
const N_LISTED: usize = 40;

/// Files that are listed.
const N_FILES: usize = 20;

/// Columns and rows of a contact sheet.
const SHEET: (usize, usize) = (8, 8);

/// Side of its images, where no recipe says it.
const SHEET_SIZE: usize = 96;

#[derive(Serialize)]
struct Report {
    dir: PathBuf,
    n_classes: usize,
    classes: Vec<Class>,
    parts: Vec<Part>,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Class {
    name: String,
    /// Images of each part, in the order of the parts.
    images: Vec<usize>,
}

#[derive(Serialize)]
struct Part {
    /// Its folder; "" if the images are not divided.
    name: &'static str,
    images: usize,
    classes: usize,
    bytes: u64,
    /// What was passed over, as it is no image by its name.
    skipped: u64,
    skipped_are: String,
    /// Files that are images by their name, but cannot be used.
    unusable: u64,
    unusable_are: Vec<File>,
    /// Where its index is kept.
    index_file: Option<PathBuf>,
    digest: String,
}

#[derive(Serialize)]
struct File {
    path: String,
    reason: String,
}

impl Report {
    fn new(folder: &ImageFolder) -> anyhow::Result<Self> {
        let part = |part: &FolderPart| {
            let index = &part.index;
            anyhow::Ok(Part {
                name: part.name,
                images: index.len(),
                classes: index.classes().len(),
                bytes: index.total_length(),
                skipped: index.skipped().total(),
                skipped_are: index.skipped().to_string(),
                unusable: index.unusable().n,
                unusable_are: files(&index.unusable().first),
                index_file: part.index_file.clone(),
                digest: index.digest()?.to_string(),
            })
        };
        // What it would be to train on: with fractions of what is not divided.
        let has_test = folder.parts().len() > 1;
        let fractions = Fractions { test: if has_test { 0.0 } else { 0.2 }, ..Fractions::default() };
        let warnings = match folder.images(&fractions) {
            Ok(images) => images.warnings.iter().map(ToString::to_string).collect(),
            Err(error) => vec![format!("a training fails to {error}")],
        };
        let counts: Vec<Vec<usize>> = folder.parts().iter().map(|part| part.index.counts()).collect();
        let of_name = |(part, counts): (&FolderPart, &Vec<usize>)| -> HashMap<String, usize> {
            part.index.classes().iter().cloned().zip(counts.iter().copied()).collect()
        };
        let by_name: Vec<HashMap<String, usize>> = folder.parts().iter().zip(&counts).map(of_name).collect();
        let class = |name: &String| {
            let images = by_name.iter().map(|counts| counts.get(name).copied().unwrap_or(0)).collect();
            Class { name: name.clone(), images }
        };
        Ok(Self {
            dir: folder.root().into(),
            n_classes: folder.classes().len(),
            classes: folder.classes().iter().map(class).collect(),
            parts: folder.parts().iter().map(part).collect::<Result<_, _>>()?,
            warnings,
        })
    }

    fn describe(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        writeln!(text, "{}: {}", self.dir.display(), classes(self.n_classes))?;
        for part in &self.parts {
            let name = if part.name.is_empty() { "all" } else { part.name };
            write!(text, "{name:<6} {} images, {:.1} MiB", part.images, part.bytes as f64 / 1_048_576.0)?;
            if part.skipped > 0 {
                write!(text, "; passed over: {}", part.skipped_are)?;
            }
            writeln!(text)?;
            for File { path, reason } in part.unusable_are.iter().take(N_FILES) {
                writeln!(text, "       UNUSABLE {path}: {reason}")?;
            }
            more(&mut text, part.unusable_are.len().min(N_FILES), part.unusable)?;
        }
        for warning in &self.warnings {
            writeln!(text, "warning: {warning}")?;
        }
        if self.parts.len() == 1 {
            writeln!(
                text,
                "the images are not divided: a recipe says which fraction are test images (data.test=0.2)"
            )?;
        }
        Ok(text)
    }

    fn describe_classes(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        let width = self
            .classes
            .iter()
            .take(N_LISTED)
            .map(|class| class.name.escape_debug().count())
            .max()
            .unwrap_or(5)
            .max(5);
        write!(text, "{:<width$}", "class")?;
        for part in &self.parts {
            write!(text, " {:>8}", if part.name.is_empty() { "images" } else { part.name })?;
        }
        for Class { name, images } in self.classes.iter().take(N_LISTED) {
            write!(text, "\n{:<width$}", name.escape_debug().to_string())?;
            for n in images {
                write!(text, " {n:>8}")?;
            }
        }
        writeln!(text)?;
        more(&mut text, self.classes.len().min(N_LISTED), self.classes.len() as u64)?;
        Ok(text)
    }
}

fn more(text: &mut String, shown: usize, all: u64) -> Result<(), std::fmt::Error> {
    match all.saturating_sub(shown as u64) {
        0 => Ok(()),
        n => writeln!(text, "... and {n} more"),
    }
}

fn classes(n: usize) -> String {
    if n == 1 { "1 class".into() } else { format!("{n} classes") }
}

/// An image that cannot be decoded, by its index, and why.
fn unreadable_file(index: &ImageIndex, (image, reason): (usize, String)) -> File {
    let path = one_line(&index.path(image));
    // What says why begins with the path, as elsewhere.
    let reason = reason.strip_prefix(&format!("{path}: ")).unwrap_or(&reason).to_owned();
    File { path, reason }
}

fn files(all: &[(String, String)]) -> Vec<File> {
    all.iter().map(|(path, reason)| File { path: path.clone(), reason: reason.clone() }).collect()
}

/// The folder, laid out as is said.
pub fn open(dir: &Path, layout: LayoutArgs) -> Result<ImageFolder, DataError> {
    if layout.imagenet { ImageFolder::open_imagenet(dir) } else { ImageFolder::open(dir) }
}

/// `lowbit data index DIR`.
pub fn index(dir: &Path, layout: LayoutArgs, json: bool) -> anyhow::Result<Code> {
    let folder = match layout.imagenet {
        true => ImageFolder::scan_imagenet(dir, index_cache().as_deref())?,
        false => ImageFolder::scan(dir, index_cache().as_deref())?,
    };
    let report = Report::new(&folder)?;
    if json {
        output::print_json(&report)?;
        return Ok(Code::Success);
    }
    let mut text = report.describe()?;
    for part in &report.parts {
        match &part.index_file {
            Some(file) => writeln!(text, "index in {}", file.display())?,
            None => writeln!(text, "no index is kept: there is no place for it, or it cannot be written")?,
        }
    }
    output::print(&text)?;
    Ok(Code::Success)
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    report: &'a Report,
    /// The contact sheet.
    sheet: Option<&'a Path>,
}

/// `lowbit data show DIR`: what is there, and a sheet of it.
pub fn show(
    dir: &Path,
    layout: LayoutArgs,
    recipe: Option<&str>,
    set: &[String],
    sheet: Option<&Path>,
    json: bool,
) -> anyhow::Result<Code> {
    // A sheet that was made before may be made again; a recipe is not to be written over.
    if let Some(path) = sheet.filter(|path| path.extension().is_none_or(|ending| ending != "png")) {
        let path = path.display();
        return Err(
            UsageError(format!("--out {path}: the sheet is a PNG file, as in --out sheet.png")).into()
        );
    }
    let folder = open(dir, layout)?;
    let report = Report::new(&folder)?;
    if let Some(path) = sheet {
        let images: Arc<dyn Source> = Arc::new(folder.part_images(&folder.parts()[0])?);
        let data = match recipe {
            Some(name) => Some(recipes::load(name, set)?.0),
            None => None,
        };
        let config = sheet_config(data.as_ref().map(|recipe| (&recipe.data, recipe.seed)));
        let png = contact_sheet(images, config, SHEET.0, SHEET.1)?.to_png();
        std::fs::write(path, png).map_err(|error| {
            anyhow::Error::from(error).context(format!("failed to write {}", path.display()))
        })?;
    }
    match json {
        true => output::print_json(&Shown { report: &report, sheet })?,
        false => {
            let mut text = report.describe()?;
            write!(text, "\n{}", report.describe_classes()?)?;
            if let Some(path) = sheet {
                writeln!(text, "\nimages of all classes in turn are in {}", path.display())?;
            }
            output::print(&text)?;
        }
    }
    Ok(Code::Success)
}

/// How the images of a sheet are served: as those that the recipe trains on, or their middle.
fn sheet_config(recipe: Option<(&DataRecipe, u64)>) -> LoaderConfig {
    let middle = Geometry { channels: 3, size: SHEET_SIZE, resize: SHEET_SIZE };
    let (geometry, augmentation, seed) = match recipe {
        Some((data, seed)) => (data.geometry.unwrap_or(middle), data.augment, seed),
        None => (middle, None, 0),
    };
    LoaderConfig {
        geometry: Some(geometry),
        augmentation,
        ..LoaderConfig::training(1, seed, Normalization::imagenet())
    }
}

fn n_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Shows how many images are read; it is told by several threads.
fn reading(screen: &Screen, n_images: usize) -> impl Fn() + Sync + use<> {
    let progress = std::sync::Mutex::new(screen.progress("{wide_msg} {bar:12} ETA {eta}"));
    let n_done = AtomicUsize::new(0);
    move || {
        let n = n_done.fetch_add(1, Ordering::Relaxed) + 1;
        // One thread shows for all.
        if n.is_multiple_of(64)
            && let Ok(mut progress) = progress.try_lock()
        {
            let progress: &mut Progress = &mut progress;
            progress.position(n as u64, n_images as u64);
            progress.update(|| format!("{n} of {n_images} images read"));
        }
    }
}

#[derive(Serialize)]
struct Verified {
    dir: PathBuf,
    ok: bool,
    images: usize,
    unreadable: u64,
    unreadable_are: Vec<File>,
    digests: Vec<String>,
}

/// `lowbit data verify DIR`: reads everything.
pub fn verify(dir: &Path, layout: LayoutArgs, json: bool, screen: &Screen) -> anyhow::Result<Code> {
    let folder = match layout.imagenet {
        true => ImageFolder::scan_imagenet(dir, None)?,
        false => ImageFolder::scan(dir, None)?,
    };
    let n_images = folder.parts().iter().map(|part| part.index.len()).sum();
    let count = reading(screen, n_images);
    let mut found = Vec::new();
    let mut n_unusable = 0;
    for part in folder.parts() {
        let index = &part.index;
        n_unusable += index.unusable().n - index.unusable().first.len() as u64;
        found.extend(files(&index.unusable().first));
        let failures = folder.part_images(part)?.decode_all(n_threads(), |_, _| {
            count();
            true
        });
        found.extend(failures.into_iter().map(|failure| unreadable_file(index, failure)));
    }
    drop(count);
    let unreadable = n_unusable + found.len() as u64;
    let digests = folder.parts().iter().map(|part| part.index.digest().map(|digest| digest.to_string()));
    let verified = Verified {
        dir: folder.root().into(),
        ok: unreadable == 0,
        images: n_images,
        unreadable,
        unreadable_are: found,
        digests: digests.collect::<Result<_, _>>().unwrap_or_default(),
    };
    if json {
        output::print_json(&verified)?;
    } else {
        let mut text = String::new();
        for File { path, reason } in &verified.unreadable_are {
            writeln!(text, "{path}: {reason}")?;
        }
        match verified.ok {
            true if n_images == 1 => write!(text, "its one image can be read")?,
            true => write!(text, "all {n_images} images can be read")?,
            false => write!(
                text,
                "\n{unreadable} of {} images CANNOT be read: repair or remove them, or train with --skip-unreadable",
                n_images as u64
                    + n_unusable
                    + folder.parts().iter().map(|part| part.index.unusable().first.len() as u64).sum::<u64>(),
            )?,
        }
        output::print(&text)?;
    }
    Ok(if verified.ok { Code::Success } else { Code::Verification })
}

#[derive(Serialize)]
struct Stats {
    dir: PathBuf,
    /// The folder of the images that are measured: the training images; "" if they are not divided.
    part: &'static str,
    n_classes: usize,
    images: usize,
    width: Sizes,
    height: Sizes,
    /// Bytes of a file.
    bytes: Sizes,
    normalization: Numbers,
    unreadable: usize,
    unreadable_are: Vec<File>,
}

#[derive(Serialize)]
struct Sizes {
    min: u32,
    median: u32,
    max: u32,
}

impl From<Spread> for Sizes {
    fn from(Spread { min, median, max }: Spread) -> Self {
        Self { min, median, max }
    }
}

#[derive(Serialize)]
struct Numbers {
    mean: [f64; 3],
    std: [f64; 3],
}

/// `lowbit data stats DIR`: sizes, mean and deviation.
pub fn stats(dir: &Path, layout: LayoutArgs, json: bool, screen: &Screen) -> anyhow::Result<Code> {
    let folder = open(dir, layout)?;
    let part = &folder.parts()[0];
    let images = folder.part_images(part)?;
    let count = reading(screen, part.index.len());
    let measured = ImageStats::measure(&images, n_threads(), |_| {
        count();
        true
    });
    drop(count);
    // To be pasted and read by people: four digits are more than any training notices.
    let rounded = |values: &[f32]| {
        let digits = |value: f32| (f64::from(value) * 1e4).round_ties_even() / 1e4;
        std::array::from_fn(|channel| values.get(channel).copied().map_or(0.0, digits))
    };
    let mut lengths: Vec<u32> = (0..part.index.len()).map(|image| part.index.length(image)).collect();
    lengths.sort_unstable();
    let at = |place: usize| lengths.get(place).copied().unwrap_or(0);
    let stats = Stats {
        dir: folder.root().into(),
        part: part.name,
        n_classes: folder.classes().len(),
        images: measured.n_images,
        width: measured.width.into(),
        height: measured.height.into(),
        bytes: Sizes {
            min: at(0),
            median: at(lengths.len().saturating_sub(1) / 2),
            max: at(lengths.len().saturating_sub(1)),
        },
        normalization: Numbers {
            mean: rounded(&measured.normalization.mean),
            std: rounded(&measured.normalization.std),
        },
        unreadable: measured.unreadable.len(),
        unreadable_are: measured
            .unreadable
            .into_iter()
            .map(|failure| unreadable_file(&part.index, failure))
            .collect(),
    };
    if json {
        output::print_json(&stats)?;
        return Ok(Code::Success);
    }
    let mut text = String::new();
    let which = if stats.part.is_empty() { "" } else { "training " };
    writeln!(
        text,
        "{}: {} {which}images of {}",
        stats.dir.display(),
        stats.images,
        classes(stats.n_classes)
    )?;
    for (name, Sizes { min, median, max }) in
        [("width", &stats.width), ("height", &stats.height), ("bytes", &stats.bytes)]
    {
        writeln!(text, "{name:<8} {min} to {max}, median {median}")?;
    }
    for File { path, reason } in stats.unreadable_are.iter().take(N_FILES) {
        writeln!(text, "UNREADABLE {path}: {reason}")?;
    }
    more(&mut text, stats.unreadable_are.len().min(N_FILES), stats.unreadable as u64)?;
    let Numbers { mean, std } = &stats.normalization;
    match std.iter().all(|std| *std > 0.0) {
        true => write!(text, "\n[data]\nnormalization = {{ mean = {mean:?}, std = {std:?} }}")?,
        false => write!(text, "\nno normalization is shown: a channel of the images has one value only")?,
    }
    output::print(&text)?;
    Ok(Code::Success)
}

#[derive(Serialize)]
struct PackReport<'a> {
    dir: &'a Path,
    /// "complete", or "interrupted".
    status: &'static str,
    #[serde(flatten)]
    packed: Option<Packed>,
}

/// `lowbit data pack SRC DST`.
pub fn pack(
    folder: &ImageFolder,
    to: &Path,
    settings: &PackSettings,
    json: bool,
    screen: &Screen,
) -> anyhow::Result<Code> {
    let stop = stop_on_signals(screen)?;
    let n_images: usize = folder.parts().iter().map(|part| part.index.len()).sum();
    let mut progress = screen.progress("{wide_msg} {bar:12} ETA {eta}");
    let packed = lowbit_data::pack(folder, to, settings, |n| {
        progress.position(n, n_images as u64);
        progress.update(|| format!("{n} of {n_images} images packed"));
        !stop.load(Ordering::Relaxed)
    })?;
    drop(progress);
    let (code, status) = match packed {
        Some(_) => (Code::Success, "complete"),
        None => (Code::Interrupted, "interrupted"),
    };
    let text = match &packed {
        Some(Packed { n_images, n_skipped, n_shards, n_kept }) => {
            let kept =
                if *n_kept > 0 { format!(", {n_kept} of which were there already") } else { String::new() };
            let skipped = match n_skipped {
                0 => String::new(),
                n => format!("; {} left out, see pack.json", counted(*n, "unreadable file")),
            };
            format!(
                "{} in {}{kept}{skipped}; train on them with --data-dir {}",
                counted(*n_images, "image"),
                counted(*n_shards, "archive"),
                shell_quoted(to)
            )
        }
        None => "stopped; the same command goes on".into(),
    };
    match json {
        true => output::print_json(&PackReport { dir: to, status, packed })?,
        false => output::print(&text)?,
    }
    Ok(code)
}
