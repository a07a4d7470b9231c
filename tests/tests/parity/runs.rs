//! Whole trainings on digits: some steps of every strategy, and checkpoints that move between backends.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use lowbit_data::Locations;
use lowbit_tests::{Backend, Tolerance};
use lowbit_train::{
    EpochMetrics, EpochTiming, Evaluation, Observer, Outcome as Ended, Recipe, ResumeFrom, Session,
    StepReport, Subject, World, evaluate, resume, train,
};

use crate::{Case, Outcome};

/// Three steps in every phase of a training; one of several phases has as many epochs.
const TINY: [&str; 8] = [
    "train.epochs=1",
    "data.train_limit=96",
    "data.test_limit=64",
    "data.batch_size=32",
    "train.norm_reestimation_batches=2",
    "train.calibration_batches=1",
    "train.warmup_epochs=0",
    "model.width=0.25",
];

/// A loss is a mean over a batch, of logits that differ by a few ulp. Every step starts from what the steps before made of
/// that, and a value that comes to lie on the other side of a tie changes by a whole code.
const LOSS: Tolerance = Tolerance { relative: 1e-4, absolute: 0.0 };

/// A recipe and what is changed of it beside [`TINY`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StrategyCase {
    recipe: &'static str,
    overrides: &'static [&'static str],
    seed: u64,
}

const fn strategy(recipe: &'static str, overrides: &'static [&'static str]) -> StrategyCase {
    StrategyCase { recipe, overrides, seed: 0 }
}

/// All methods of the embedded recipes, and what they leave out: hints, adapters, other units and quantizers.
pub const STRATEGIES: [StrategyCase; 16] = [
    strategy("digits-preresnet8-fp32", &[]),
    strategy("digits-preresnet8-w2a2", &[]),
    strategy("digits-preresnet8-w1a2", &[]),
    strategy("digits-preresnet8-w4a4", &["quantization.method=pact", "train.gradient_clip=1.0"]),
    strategy("digits-preresnet8-w2a2", &["quantization.method=lsq", "train.ema_decay=0.9"]),
    strategy("digits-preresnet8-w2a2", &["quantization.method=minmax", "train.label_smoothing=0.1"]),
    strategy("digits-preresnet8-w2a2", &["train.optimizer={kind='adamw'}", "train.learning_rate=1e-3"]),
    strategy("digits-preresnet8-w2a2-ts", &["train.epochs=2"]),
    strategy("digits-preresnet8-w2a2-pq", &["train.epochs=3", "quantization.method=lsq"]),
    strategy("digits-preresnet8-w2a2-sp", &[]),
    strategy(
        "digits-preresnet8-w2a2-sp",
        &["strategy.stochastic_precision.unit=channel-group", "quantization.method=lsq"],
    ),
    strategy("digits-preresnet8-w2a2-joint", &[]),
    strategy("digits-preresnet8-w2a2-sp-joint", &[]),
    strategy("digits-preresnet8-w2a2-ts-pq-joint", &["train.epochs=5"]),
    strategy("digits-preresnet8-w2a2-modern", &[]),
    strategy(
        "digits-preresnet8-w2a2-joint",
        &["strategy.joint.teacher={width=0.5}", "strategy.hint={weight=1.0, target='both'}"],
    ),
];

fn recipe(name: &str, overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = TINY.iter().chain(overrides).map(ToString::to_string).collect();
    Recipe::embedded(name, &overrides).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A run directory that does not exist, in a folder of the test that asks.
fn run_dir(test: &str, name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("parity").join(test).join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("the directory of an earlier test is removed");
    }
    path
}

/// Follows a run; stops it after a step.
struct Follow<'a> {
    losses: Vec<f32>,
    epochs: Vec<EpochMetrics>,
    stop: &'a AtomicBool,
    stop_after: Option<u64>,
}

impl<'a> Follow<'a> {
    fn new(stop: &'a AtomicBool, stop_after: Option<u64>) -> Self {
        Self { losses: Vec::new(), epochs: Vec::new(), stop, stop_after }
    }
}

impl Observer for Follow<'_> {
    fn step(&mut self, report: &StepReport) {
        self.losses.push(report.loss as f32);
        self.stop.store(self.stop_after == Some(report.step), Ordering::Relaxed);
    }

    fn epoch(&mut self, metrics: &EpochMetrics, _: &EpochTiming) {
        self.epochs.push(metrics.clone());
    }
}

fn session<'a>(backend: &Backend, follow: &'a mut Follow<'_>, stop: &'a AtomicBool) -> Session<'a> {
    Session {
        device: backend.device.clone(),
        device_name: backend.name.into(),
        origin: lowbit_train::Origin::here(),
        images: Locations::default_with(None).into(),
        stop,
        observer: follow,
        world: World::ALONE,
        strategies: Vec::new(),
    }
}

impl Case for StrategyCase {
    fn run(&self, backend: &Backend) -> Outcome {
        let base = Self { seed: 0, ..*self };
        let index = STRATEGIES.iter().position(|case| *case == base).expect("invariant: it is one of them");
        // The reference is computed in every runner: processes and threads must not share a directory.
        let thread = format!("{:?}", std::thread::current().id());
        let path = run_dir("strategies", &format!("{index}-{}-{thread}", backend.name));
        let stop = AtomicBool::new(false);
        let mut follow = Follow::new(&stop, None);
        let seed = format!("seed={}", self.seed);
        let recipe = recipe(self.recipe, &[self.overrides, &[seed.as_str()]].concat());
        let ended = train(&recipe, &path, session(backend, &mut follow, &stop));
        assert!(matches!(ended, Ok(Ended::Complete(_))), "{self:?} on {}: {ended:?}", backend.name);
        let phases = follow.epochs.iter().flat_map(|epoch| epoch.phase.bytes()).map(i64::from);
        let test = follow.epochs.iter().filter_map(|epoch| epoch.test).map(|scores| scores.loss as f32);
        let quantizers = follow.epochs.iter().flat_map(|epoch| epoch.quantizers.values().copied());
        let outcome = Outcome::default()
            .exact("phases", phases)
            .close("losses", follow.losses.clone(), LOSS)
            .close("test losses", test.collect(), LOSS)
            .close("quantizers", quantizers.collect(), LOSS);
        std::fs::remove_dir_all(&path).expect("the run is removed");
        outcome
    }

    fn other_draws(&self) -> Vec<Self> {
        match self.recipe.ends_with("fp32") {
            true => Vec::new(),
            false => [1, 2, 3, 4].map(|seed| Self { seed, ..*self }).to_vec(),
        }
    }
}

/// A training that three backends share: the first begins it, the second goes on from its checkpoint, all evaluate.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrip {
    pub recipe: &'static str,
    pub overrides: &'static [&'static str],
    pub train: &'static str,
    pub go_on: &'static str,
}

const fn round_trip(train: &'static str, go_on: &'static str, recipe: usize) -> RoundTrip {
    let (recipe, overrides) = MOVED[recipe];
    RoundTrip { recipe, overrides, train, go_on }
}

/// Enough steps to learn something from; all test images.
const LEARNING: [&str; 5] = [
    "train.epochs=2",
    "train.learning_rate=0.2",
    "data.train_limit=640",
    "data.test_limit=359",
    "model.width=0.5",
];

/// State of every kind: a moving average and learned step sizes; two networks with two optimizers and running ranges.
const MOVED: [(&str, &[&str]); 2] = [
    ("digits-preresnet8-w2a2", &["quantization.method=lsq", "train.ema_decay=0.5"]),
    ("digits-preresnet8-w4a4-joint", &["quantization.method=minmax"]),
];

/// Every backend hands over to and takes over from every other.
pub const ROUND_TRIPS: [RoundTrip; 6] = [
    round_trip("ndarray", "wgpu", 0),
    round_trip("wgpu", "flex", 0),
    round_trip("flex", "ndarray", 0),
    round_trip("flex", "wgpu", 1),
    round_trip("wgpu", "ndarray", 1),
    round_trip("ndarray", "flex", 1),
];

/// In the middle of the second epoch.
const MOVED_AFTER: u64 = 30;

impl RoundTrip {
    /// Where the first backend leaves the run, also for the tests of another build that lack it.
    fn handover(&self) -> PathBuf {
        let name = format!("{}-{}", self.train, self.recipe);
        Path::new(env!("CARGO_TARGET_TMPDIR")).join("parity/handover").join(name)
    }

    /// Trains on the first backend up to the middle of the second epoch.
    pub fn begin(&self, backend: &Backend) {
        let path = self.handover();
        if path.exists() {
            std::fs::remove_dir_all(&path).expect("the run of an earlier test is removed");
        }
        let recipe = recipe(self.recipe, &[&LEARNING, self.overrides].concat());
        let stop = AtomicBool::new(false);
        let mut follow = Follow::new(&stop, Some(MOVED_AFTER));
        let ended = train(&recipe, &path, session(backend, &mut follow, &stop));
        let is_stopped = matches!(ended, Ok(Ended::Interrupted { step: MOVED_AFTER, .. }));
        assert!(is_stopped, "{self:?}: {ended:?}");
    }

    /// Whether a run was left to go on with.
    pub fn is_begun(&self) -> bool {
        self.handover().is_dir()
    }

    /// What each of `backends` makes of the last checkpoint of the run that `to` has ended; `to` must find what it
    /// reported.
    pub fn evaluations(&self, to: &Backend, backends: &[Backend]) -> Vec<Evaluation> {
        let path = run_dir("round-trips", &format!("{}-{}-{}", self.train, to.name, self.recipe));
        copy(&self.handover(), &path);
        let stop = AtomicBool::new(false);
        let mut follow = Follow::new(&stop, None);
        let ended = resume(&path, ResumeFrom::Newest, session(to, &mut follow, &stop));
        assert!(matches!(ended, Ok(Ended::Complete(_))), "{self:?}: {ended:?}");
        let images = Locations::default_with(None).into();
        let evaluate = |backend: &Backend| {
            evaluate(&path, Subject::default(), &backend.device, &images).expect("the run is evaluated")
        };
        let own = evaluate(to);
        assert_eq!(Some(own.scores), own.reported, "{self:?}: evaluated in training and afterwards");
        backends.iter().map(evaluate).collect()
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the directory is made");
    for entry in std::fs::read_dir(from).expect("the run is there") {
        let entry = entry.expect("the entry is readable");
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("the file is copied")),
        }
    }
}

/// Seeds of [`accuracies`].
const SEEDS: [u64; 3] = [0, 1, 2];

/// The default recipe with all of its images, made to learn fast, as a software driver takes minutes: half the width, a larger
/// rate and few epochs.
const FAST: [&str; 3] = ["model.width=0.5", "train.learning_rate=0.2", "train.epochs=10"];

/// Accuracy on the test images after a whole training on `backend`, by seed.
pub fn accuracies(backend: &Backend) -> [f64; 3] {
    SEEDS.map(|seed| {
        let overrides: Vec<String> =
            FAST.map(String::from).into_iter().chain([format!("seed={seed}")]).collect();
        let recipe = Recipe::embedded("digits-preresnet8-w2a2", &overrides).expect("the recipe is valid");
        let path = run_dir("accuracy", &format!("{}-{seed}", backend.name));
        let stop = AtomicBool::new(false);
        let mut follow = Follow::new(&stop, None);
        let ended = train(&recipe, &path, session(backend, &mut follow, &stop));
        let Ok(Ended::Complete(result)) = ended else { panic!("seed {seed} on {}: {ended:?}", backend.name) };
        eprintln!(
            "parity: seed {seed} on {}: top-1 {:.4}, {:.0} images/s",
            backend.name, result.top1, result.images_per_second
        );
        result.top1
    })
}
