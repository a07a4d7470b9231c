//! Trains a 2-bit network on the embedded digits from a program of your own.

use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use lowbit_data::Locations;
use lowbit_train::{EpochMetrics, EpochTiming, Observer, Recipe, Session, World, train};

struct Print;

impl Observer for Print {
    fn epoch(&mut self, metrics: &EpochMetrics, timing: &EpochTiming) {
        let top1 = metrics.test.map_or(0.0, |test| 100.0 * test.top1);
        println!(
            "epoch {:>2}: test top-1 {top1:.1} %, {:.0} images/s",
            metrics.epoch, timing.images_per_second
        );
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let recipe = Recipe::embedded("digits-preresnet8-w2a2", &["train.epochs=5".into()])?;
    let out = tempfile::tempdir()?;
    let stop = AtomicBool::new(false);
    let session = Session {
        device: Device::default(),
        device_name: "default".into(),
        origin: lowbit_train::Origin::here(),
        images: Locations::default_with(None).into(),
        stop: &stop,
        observer: &mut Print,
        world: World::ALONE,
        strategies: Vec::new(),
    };
    println!("{:?}", train(&recipe, &out.path().join("run"), session)?);
    Ok(())
}
