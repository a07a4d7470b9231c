//! Trains a 2-bit network on images of your own: any type that gives labeled images by index. `docs/data.md` explains
//! it. `cargo run -p lowbit-train --example own_images -- RUN_DIRECTORY` trains there, or goes on with such a training.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use lowbit_train::{
    EpochMetrics, EpochTiming, Image, ImageShape, Images, Normalization, Observer, Origin, Outcome, Recipe,
    ResumeFrom, SampleError, Session, Source, SourceInfo, World, resume, train,
};

// What follows up to "end" is quoted in docs/data.md.
/// Colored waves, made when they are asked for. The class decides their direction, length and color.
#[derive(Debug)]
pub struct Waves {
    /// Number of images.
    pub n_samples: usize,
    /// Number of classes.
    pub n_classes: usize,
    /// Other images for another number.
    pub seed: usize,
}

const SHAPE: ImageShape = ImageShape { channels: 3, height: 48, width: 40 };

impl Source for Waves {
    fn info(&self) -> SourceInfo {
        SourceInfo {
            name: format!("waves {}", self.seed),
            n_samples: self.n_samples,
            n_classes: self.n_classes,
            shape: Some(SHAPE),
            max_value: 255,
            normalization: Some(Normalization { mean: vec![0.5; 3], std: vec![0.3; 3] }),
        }
    }

    fn label(&self, sample_idx: usize) -> u16 {
        (sample_idx % self.n_classes) as u16
    }

    fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
        let class = (sample_idx % self.n_classes) as f32 / self.n_classes as f32;
        let start = (sample_idx / self.n_classes + self.seed) as f32;
        let mut pixels = Vec::with_capacity(SHAPE.n_values());
        for channel in 0..SHAPE.channels {
            for row in 0..SHAPE.height {
                for column in 0..SHAPE.width {
                    let along = row as f32 * class + column as f32 * (1.0 - class);
                    let wave = (along * (0.3 + class) + start + channel as f32 * class).sin();
                    pixels.push((127.5 * (1.0 + wave)) as u8);
                }
            }
        }
        Ok(Image { shape: SHAPE, pixels: pixels.into() })
    }
}

/// The images of a training, as many training images for each class as `n_per_class`, and one to test.
pub fn waves(n_classes: usize, n_per_class: usize) -> Images {
    Images::Own {
        train: Arc::new(Waves { n_samples: n_classes * n_per_class, n_classes, seed: 0 }),
        test: Arc::new(Waves { n_samples: n_classes, n_classes, seed: 1000 }),
    }
}

/// What the recipe says of them.
pub const RECIPE: &str = r#"
schema = 1
name = "waves"

[data]
dataset = "own"
shape = [3, 48, 40]
classes = 12
batch_size = 24
augment = { pad = 2, flip = false }

[model]
family = "preresnet"
depth = 8
width = 0.5

[quantization]
method = "lsq"
weight_bits = 2
act_bits = 2

[train]
epochs = 4
learning_rate = 0.05
"#;
// end

struct Print;

impl Observer for Print {
    fn epoch(&mut self, metrics: &EpochMetrics, _: &EpochTiming) {
        let top1 = 100.0 * metrics.test.map_or(f64::NAN, |test| test.top1);
        println!("epoch {}: test top-1 {top1:.1} %", metrics.epoch);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let run = std::env::args().nth(1).ok_or("give the directory of the run")?;
    let run = Path::new(&run);
    let stop = AtomicBool::new(false);
    let session = Session {
        device: Device::default(),
        device_name: "default".into(),
        origin: Origin::here(),
        images: waves(12, 20),
        stop: &stop,
        observer: &mut Print,
        world: World::ALONE,
        strategies: Vec::new(),
    };
    let outcome = match run.join("run.json").exists() {
        true => resume(run, ResumeFrom::Newest, session)?,
        false => train(&Recipe::parse(RECIPE, "the recipe of the waves", &[])?, run, session)?,
    };
    if let Outcome::Complete(result) = outcome {
        println!("{:.1} % of the test images", 100.0 * result.top1);
    }
    Ok(())
}
