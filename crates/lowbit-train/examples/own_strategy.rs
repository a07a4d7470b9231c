//! Trains a 2-bit network with a strategy of your own: its stages are quantized one after the other, from the output to
//! the input. `docs/methods/strategies.md` explains it.

use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use lowbit_data::Locations;
use lowbit_quantizers::Selection;
use lowbit_train::strategy::{Moment, QuantizedLayer, Settings, Strategy};
use lowbit_train::{EpochMetrics, EpochTiming, Observer, Recipe, Session, World, train};

// What follows up to "end" is quoted in docs/methods/strategies.md.
/// Quantizes the network stage by stage over a phase, from the output to the input: of `n` stages, the last one from
/// the start, the last two after `1/n` of the steps, and all of them in the last `1/n`.
#[derive(Debug)]
pub struct BackToFront;

impl Strategy for BackToFront {
    fn name(&self) -> &str {
        "back-to-front"
    }

    fn settings(&self) -> Settings {
        Settings::none()
    }

    fn select(&self, moment: &Moment, layers: &[QuantizedLayer]) -> Option<Vec<Selection>> {
        let mut stages: Vec<&str> = layers.iter().map(|layer| stage(&layer.path)).collect();
        stages.dedup();
        let n_stages = stages.len() as u64;
        let n_quantized = 1 + moment.phase_step * n_stages / moment.phase_steps;
        // A phase in full precision has no quantized layers, and so no stages.
        let waiting = &stages[..n_stages.saturating_sub(n_quantized) as usize];
        let selection = |layer: &QuantizedLayer| match waiting.contains(&stage(&layer.path)) {
            true => Selection::None,
            false => Selection::All,
        };
        Some(layers.iter().map(selection).collect())
    }
}

/// "stages.1" of "stages.1.0.conv2"; a layer outside of the stages is one by itself.
fn stage(path: &str) -> &str {
    let dots = path.match_indices('.').map(|(i, _)| i);
    let second = dots.filter(|_| path.starts_with("stages.")).nth(1);
    second.map_or(path, |end| &path[..end])
}
// end

struct Print;

impl Observer for Print {
    fn epoch(&mut self, metrics: &EpochMetrics, _: &EpochTiming) {
        let quantized = 100.0 * metrics.quantized_fraction.unwrap_or(1.0);
        let top1 = 100.0 * metrics.test.map_or(f64::NAN, |test| test.top1);
        println!(
            "epoch {}: {quantized:.0} % of the layers quantized in training, test top-1 with all of them quantized \
             {top1:.1} %",
            metrics.epoch
        );
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let recipe = Recipe::embedded("digits-preresnet8-w2a2", &["train.epochs=6".into()])?;
    let out = std::env::temp_dir().join(format!("lowbit-own-strategy-{}", std::process::id()));
    let stop = AtomicBool::new(false);
    let session = Session {
        device: Device::default(),
        device_name: "default".into(),
        origin: lowbit_train::Origin::here(),
        images: Locations::default_with(None).into(),
        stop: &stop,
        observer: &mut Print,
        world: World::ALONE,
        strategies: vec![Box::new(BackToFront)],
    };
    train(&recipe, &out, session)?;
    std::fs::remove_dir_all(out)?;
    Ok(())
}
