//! Measures how many images per second the loader prepares: synthetic images of CIFAR's shape, padded by 4, cropped,
//! flipped and normalized, in batches of 128.
//!
//! ```sh
//! cargo run --release -p lowbit-data --example throughput
//! ```
//!
//! On 2 shared cores of an AMD EPYC: 280,000 images/s in one thread (as well with the workspace's dev profile),
//! 270,000 to 390,000 with 2 background threads. Training on a CPU takes less than 2,000.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use lowbit_data::{Augmentation, Dataset, DatasetName, ImageShape, Loader, LoaderConfig, Normalization};

fn main() -> Result<(), Box<dyn Error>> {
    let shape = ImageShape { channels: 3, height: 32, width: 32 };
    let n_samples = 50_000;
    let dataset = Arc::new(Dataset {
        name: "synthetic".into(),
        shape,
        n_classes: 100,
        images: (0..n_samples * shape.n_values()).map(|idx| (idx * 31 % 256) as u8).collect(),
        max_value: 255,
        labels: (0..n_samples).map(|idx| (idx % 100) as u16).collect(),
    });
    for n_threads in [0, 1, 2] {
        let config = LoaderConfig {
            augmentation: Some(Augmentation { pad: 4, flip: true, ..Augmentation::default() }),
            n_threads,
            ..LoaderConfig::training(128, 1, Normalization::of(DatasetName::Cifar100))
        };
        let loader = Loader::new(dataset.clone(), config)?;
        let n_epochs = 3;
        let start = Instant::now();
        let mut n_images = 0;
        for epoch in 0..n_epochs {
            for batch in loader.epoch(epoch, 0) {
                n_images += batch?.labels.len();
            }
        }
        let rate = n_images as f64 / start.elapsed().as_secs_f64();
        println!("{n_threads} background threads: {rate:.0} images/s");
    }
    Ok(())
}
