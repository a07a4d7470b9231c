//! Training batches from a folder of image files on request, for `cargo xtask bench loader`.
//!
//! Arguments are a folder with one folder for each class, the batch size and the number of threads. For every line on stdin so many
//! epochs are loaded (random resized crops of 224x224, flipped and normalized), and their seconds are answered; at the end of stdin, the
//! peak memory in bytes and the processor's seconds of all threads.

use std::error::Error;
use std::fs;
use std::io::{BufRead, Write, stdin, stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use lowbit_cpu::allocator::{Allocator, keep_memory};
use lowbit_data::{
    Augmentation, DecodeLimits, Geometry, Image, Loader, LoaderConfig, Normalization, Picture,
    RandomResizedCrop, SampleError, Source, SourceInfo, decode,
};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The files of a folder.
#[derive(Debug)]
struct Files {
    files: Vec<(PathBuf, u16)>,
    n_classes: usize,
}

impl Files {
    fn of(folder: &Path) -> Result<Self, Box<dyn Error>> {
        let sorted = |folder: &Path| -> Result<Vec<PathBuf>, Box<dyn Error>> {
            let mut paths: Vec<PathBuf> = fs::read_dir(folder)?
                .map(|entry| Ok(entry?.path()))
                .collect::<Result<_, std::io::Error>>()?;
            paths.sort();
            Ok(paths)
        };
        let classes = sorted(folder)?;
        let mut files = Vec::new();
        for (label, class) in classes.iter().enumerate() {
            files.extend(sorted(class)?.into_iter().map(|file| (file, label as u16)));
        }
        Ok(Files { files, n_classes: classes.len() })
    }
}

impl Source for Files {
    fn info(&self) -> SourceInfo {
        SourceInfo {
            name: "files".into(),
            n_samples: self.files.len(),
            n_classes: self.n_classes,
            shape: None,
            max_value: 255,
            normalization: None,
        }
    }

    fn label(&self, sample_idx: usize) -> u16 {
        self.files[sample_idx].1
    }

    fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
        Ok(self.picture(sample_idx)?.into_image())
    }

    fn picture(&self, sample_idx: usize) -> Result<Picture, SampleError> {
        Ok(decode(&fs::read(&self.files[sample_idx].0)?, &DecodeLimits::default())?)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    keep_memory();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, batch_size, n_threads] = arguments.as_slice() else {
        return Err("usage: load FOLDER BATCH THREADS".into());
    };
    let normalization = Normalization { mean: vec![0.485, 0.456, 0.406], std: vec![0.229, 0.224, 0.225] };
    let config = LoaderConfig {
        geometry: Some(Geometry { channels: 3, size: 224, resize: 256 }),
        augmentation: Some(Augmentation {
            crop: Some(RandomResizedCrop::default()),
            flip: true,
            ..Augmentation::default()
        }),
        n_threads: n_threads.parse()?,
        ..LoaderConfig::training(batch_size.parse()?, 0, normalization)
    };
    let loader = Loader::new(Arc::new(Files::of(Path::new(folder))?), config)?;
    let mut epoch = 0;
    for line in stdin().lock().lines() {
        let n_epochs: u64 = line?.trim().parse()?;
        let start = Instant::now();
        for _ in 0..n_epochs {
            for batch in loader.epoch(epoch, 0) {
                batch?;
            }
            epoch += 1;
        }
        println!("{}", start.elapsed().as_secs_f64());
        stdout().flush()?;
    }
    println!("{} {}\n", peak_memory(), processor_seconds());
    Ok(())
}

/// Largest resident size so far in bytes, 0 where the system does not tell.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Seconds of the processor so far, for the program and the system; 0 where the system does not tell.
fn processor_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15, in hundredths; the second is a name in brackets.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().skip(11);
    fields.take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / 100.0
}
