//! `cargo xtask bench loader`: images from a folder, decoded, cropped, resized and normalized, beside torchvision, in turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;
use serde::Serialize;

use super::origin::Origin;
use super::{Contestant, Entry, machine, median, peer_script, sorted, virtual_environment};
use crate::output::print;
use crate::workspace;

/// What `cargo xtask bench loader` is asked for.
#[derive(Args)]
pub struct LoaderArgs {
    /// Folder with a folder of images for each class [default: 512 JPEG files of 500x375 in target/peers, made if they are missing]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,

    /// Threads of ours, processes of the peer
    #[arg(long, default_value_t = 1, value_name = "N")]
    workers: usize,

    /// Images in a batch
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// Rounds; each contestant loads one epoch in each
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Python that has the peer [default: a virtual environment in target/peers, made if it is missing]
    #[arg(long, value_name = "PROGRAM")]
    python: Option<String>,

    /// End with one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Images that are made.
const N_IMAGES: usize = 512;

#[derive(Serialize)]
struct Report {
    origin: Origin,
    machine: String,
    workers: usize,
    batch: u32,
    rounds: u32,
    n_images: usize,
    entries: Vec<Loaded>,
    /// The speed of ours as a multiple of the peer's: the median of the rounds' ratios.
    ratio: f64,
}

/// What a contestant reached.
#[derive(Serialize)]
struct Loaded {
    #[serde(flatten)]
    entry: Entry,
    /// Of the processor, in all threads and processes, with the start of the program.
    processor_seconds_per_image: f64,
}

pub fn run(args: &LoaderArgs) -> anyhow::Result<()> {
    let python = args.python.clone().map_or_else(virtual_environment, Ok)?;
    let folder = args.images.clone().map_or_else(|| made_images(&python), Ok)?;
    // Whole batches alone are loaded.
    let n_images = count(&folder)? / args.batch as usize * args.batch as usize;
    if n_images == 0 {
        bail!("{} has fewer than {} images", folder.display(), args.batch);
    }
    let program = workspace::build("load", &["--release", "-p", "lowbit-data", "--example", "load"])?;
    let numbers = [args.batch.to_string(), args.workers.to_string()];
    let mut ours = Command::new(program);
    ours.arg(&folder).args(&numbers);
    let mut theirs = Command::new(&python);
    theirs.arg(peer_script("loader.py")).arg("load").arg(&folder).args(&numbers);
    let mut contestants = [("lowbit", ours), ("torchvision", theirs)]
        .into_iter()
        .map(|(name, command)| Contestant::start(name.into(), "fp32", command))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // The first epoch finds files, memory and workers cold.
    for contestant in &mut contestants {
        contestant.run(1)?;
    }
    for round in 0..args.rounds {
        eprintln!("round {}/{}", round + 1, args.rounds);
        for contestant in &mut contestants {
            let seconds = contestant.run(1)?;
            contestant.rates.push(n_images as f64 / seconds);
        }
    }
    let rounds = contestants[0].rates.iter().zip(&contestants[1].rates).map(|(ours, theirs)| ours / theirs);
    let ratio = median(sorted(rounds.collect()));
    let n_loaded = n_images as f64 * f64::from(args.rounds + 1);
    let entries = contestants.into_iter().map(|contestant| loaded(contestant, n_loaded));
    let report = Report {
        origin: Origin::here(),
        machine: machine(),
        workers: args.workers,
        batch: args.batch,
        rounds: args.rounds,
        n_images,
        entries: entries.collect::<anyhow::Result<_>>()?,
        ratio,
    };
    show(&report);
    if args.json {
        print(&serde_json::to_string(&report)?)?;
    }
    Ok(())
}

fn loaded(contestant: Contestant, n_loaded: f64) -> anyhow::Result<Loaded> {
    let (entry, line) = contestant.finish_with_line()?;
    let seconds = line.split_whitespace().nth(1).and_then(|seconds| seconds.parse::<f64>().ok());
    let seconds = seconds.with_context(|| format!("{} answered {line:?}", entry.name))?;
    Ok(Loaded { entry, processor_seconds_per_image: seconds / n_loaded })
}

/// The folder of images that are made once.
fn made_images(python: &str) -> anyhow::Result<PathBuf> {
    let folder = workspace::target_dir()?.join("peers/images");
    if !folder.is_dir() {
        eprintln!("making {N_IMAGES} images in {}", folder.display());
        let partial = folder.with_extension("part");
        let mut make = Command::new(python);
        make.arg(peer_script("loader.py")).arg("make").arg(&partial).arg(N_IMAGES.to_string());
        if !make.status().with_context(|| format!("failed to run {python}"))?.success() {
            bail!("the images could not be made");
        }
        fs::rename(&partial, &folder).context("failed to name the folder of images")?;
    }
    Ok(folder)
}

fn count(folder: &Path) -> anyhow::Result<usize> {
    let entries =
        |path: &Path| fs::read_dir(path).with_context(|| format!("failed to read {}", path.display()));
    let mut n_images = 0;
    for class in entries(folder)? {
        n_images += entries(&class?.path())?.count();
    }
    Ok(n_images)
}

fn show(report: &Report) {
    let Report { machine, workers, batch, rounds, n_images, .. } = report;
    eprintln!(
        "\n{n_images} images an epoch, batches of {batch}, {workers} workers each, {rounds} rounds, {machine}\n"
    );
    eprintln!("{:<12} {:>9} {:>19} {:>15} {:>9}", "", "images/s", "range", "ms of processor", "peak MiB");
    for Loaded { entry, processor_seconds_per_image } in &report.entries {
        let Entry { name, images_per_second, range: [low, high], peak_bytes, .. } = entry;
        let (range, mebibytes) = (format!("{low:.0} to {high:.0}"), peak_bytes / (1 << 20));
        let milliseconds = processor_seconds_per_image * 1e3;
        eprintln!("{name:<12} {images_per_second:>9.0} {range:>19} {milliseconds:>15.2} {mebibytes:>9}");
    }
    eprintln!("\nlowbit is {:.2} times torchvision", report.ratio);
}
