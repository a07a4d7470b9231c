//! A strategy outside of lowbit: a second teacher, which trains in full precision beside the student, and whose class
//! probabilities the student learns from too. `cargo run -- RUN_DIRECTORY` trains a 2-bit network on digits with two
//! teachers, or goes on with such a training.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use lowbit_models::{Family, ModelConfig};
use lowbit_train::strategy::loss::kl_divergence;
use lowbit_train::strategy::{Loss, NetworkSpec, Output, Outputs, Role, Settings, Strategy};
use lowbit_train::{
    EpochMetrics, EpochTiming, Locations, Observer, Origin, Outcome, Recipe, ResumeFrom, Session, World,
    resume, train,
};
use serde::Serialize;

/// Name of the network, also of its files in a checkpoint.
const NAME: &str = "second-teacher";

/// Adds a teacher of another architecture. It learns from the labels alone.
#[derive(Clone, Debug, Serialize)]
pub struct SecondTeacher {
    /// Its architecture.
    pub model: ModelConfig,
    /// Weight of the divergence of the student's probabilities from its own.
    pub weight: f64,
}

impl Strategy for SecondTeacher {
    fn name(&self) -> &str {
        NAME
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn networks(&self, mut networks: Vec<NetworkSpec>) -> Vec<NetworkSpec> {
        networks.push(NetworkSpec::teacher(NAME, self.model.clone()));
        networks
    }

    fn loss(&self, network: &Output, outputs: &Outputs<'_>, loss: Loss) -> Loss {
        match (network.role, outputs.named(NAME)) {
            (Role::Student, Some(teacher)) => {
                let (target, logits) = (&teacher.features.logits, &network.features.logits);
                let divergence = kl_divergence(target.clone().detach(), logits.clone(), 1.0);
                loss.plus("second_teacher", divergence * self.weight)
            }
            _ => loss,
        }
    }
}

struct Print;

impl Observer for Print {
    fn epoch(&mut self, metrics: &EpochMetrics, _: &EpochTiming) {
        let top1 = 100.0 * metrics.test.map_or(f64::NAN, |test| test.top1);
        println!("epoch {}: test top-1 {top1:.1} %, losses {:?}", metrics.epoch, metrics.losses);
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
        images: Locations::default_with(None).into(),
        stop: &stop,
        observer: &mut Print,
        world: World::ALONE,
        strategies: vec![Box::new(SecondTeacher { model: ModelConfig::new(Family::ResNet, 8), weight: 0.5 })],
    };
    let outcome = match run.join("run.json").exists() {
        true => resume(run, ResumeFrom::Newest, session)?,
        false => {
            let recipe = Recipe::embedded("digits-preresnet8-w2a2-joint", &["train.epochs=6".into()])?;
            train(&recipe, run, session)?
        }
    };
    if let Outcome::Complete(result) = outcome {
        println!("{:.1} % of the test images", 100.0 * result.top1);
    }
    Ok(())
}
