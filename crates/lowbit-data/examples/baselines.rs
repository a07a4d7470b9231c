//! What a folder of images is worth without any training: the share of the test images that are of the most frequent training
//! class, and that whose nearest training image (Euclidean distance of the normalized pixels) is of their class.
//!
//! ```sh
//! cargo run --release -p lowbit-data --example baselines -- DIR SIZE RESIZE TEST VALIDATION
//! ```
//!
//! Sizes and fractions are those of a recipe (`data.size`, `data.resize`, `data.test`, `data.validation`): the images are then
//! divided as its training divides them, by `data.split_seed = 0`, without those that cannot be read.

use std::error::Error;
use std::sync::Arc;

use lowbit_data::{Fractions, Geometry, ImageFolder, Loader, LoaderConfig, Normalization, Source};
use rayon::prelude::*;

/// Images as the network sees them, one after another, and their labels.
struct Images {
    pixels: Vec<f32>,
    labels: Vec<i64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, size, resize, test, validation] = args.as_slice() else {
        return Err("usage: baselines DIR SIZE RESIZE TEST VALIDATION".into());
    };
    let geometry = Geometry { channels: 3, size: size.parse()?, resize: resize.parse()? };
    let fractions =
        Fractions { test: test.parse()?, validation: validation.parse()?, ..Fractions::default() };
    let folder = ImageFolder::open(dir.as_ref())?;
    let unreadable = folder.unreadable(rayon::current_num_threads())?;
    let split = folder.without(&unreadable).images(&fractions)?;
    let (train, test) = (read(split.train, geometry)?, read(split.test, geometry)?);
    let n_values = geometry.shape().n_values();

    let mut of_class = vec![0; split.classes.len()];
    train.labels.iter().for_each(|&label| of_class[label as usize] += 1);
    let largest = (0..of_class.len()).max_by_key(|&class| of_class[class]).unwrap_or_default();
    let n_majority = test.labels.iter().filter(|&&label| label as usize == largest).count();

    let nearest = |image: &[f32]| {
        let distance = |other: &[f32]| image.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        let distances = train.pixels.chunks_exact(n_values).map(distance).zip(&train.labels);
        distances.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, label)| *label)
    };
    let tested = test.pixels.par_chunks_exact(n_values).zip(&test.labels);
    let n_nearest = tested.filter(|(image, label)| nearest(image) == Some(**label)).count();

    let (n_train, n_test) = (train.labels.len(), test.labels.len());
    let share = |n: usize| 100.0 * n as f64 / n_test as f64;
    println!("{n_train} training and {n_test} test images of {} classes", split.classes.len());
    println!("majority ({:?}):  {:.2} %", split.classes[largest], share(n_majority));
    println!("nearest neighbour: {:.2} %", share(n_nearest));
    Ok(())
}

fn read(source: Arc<dyn Source>, geometry: Geometry) -> Result<Images, Box<dyn Error>> {
    let config =
        LoaderConfig { geometry: Some(geometry), ..LoaderConfig::evaluation(64, Normalization::imagenet()) };
    let mut images = Images { pixels: Vec::new(), labels: Vec::new() };
    for batch in Loader::new(source, config)?.epoch(0, 0) {
        let batch = batch?;
        images.pixels.extend(batch.images);
        images.labels.extend(batch.labels);
    }
    Ok(images)
}
