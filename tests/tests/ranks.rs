//! Trainings of several processes, here threads of one: what they make together is what one makes alone, to the last bit where that can
//! be; all have the same; they stop and go on together; and whatever differs among them ends the training.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Tensor;
use lowbit_strategies::{LayerWeights, Measure, Moment, Notes, Settings, Strategy, UpdatedLayer};
use lowbit_tests::default_device;
use lowbit_train::{
    Image, ImageShape, Images, Locations, Normalization, Observer, Origin, Outcome, Recipe, ResumeFrom,
    RunDir, RunResult, SampleError, Session, Source, SourceInfo, StepReport, TrainError, WarningKind, Wire,
    World, follow, inspect, resume, train,
};
use safetensors::SafeTensors;

/// Four steps an epoch, a fraction of a second each.
const TINY: [&str; 6] = [
    "train.epochs=2",
    "data.train_limit=128",
    "data.test_limit=300",
    "data.batch_size=32",
    "checkpoint.every_steps=3",
    "checkpoint.keep_last=10",
];

/// A network in which no image knows of another.
const NO_NORM: [&str; 3] = [
    "model={family='alexnet', norm=false, width=0.125}",
    "train.learning_rate=0.01",
    "train.gradient_clip=1.0",
];

fn recipe(overrides: &[&str]) -> Recipe {
    let overrides: Vec<String> = TINY.iter().chain(overrides).map(ToString::to_string).collect();
    Recipe::embedded("digits-preresnet8-w2a2", &overrides).unwrap_or_else(|error| panic!("{error}"))
}

/// A directory for the run `name`, which does not exist.
fn run_dir(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ranks").join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("the directory of an earlier test is removed");
    }
    path
}

fn digits() -> Images {
    Locations::default_with(None).into()
}

/// What a rank brings along.
struct Rank<'a> {
    world: World,
    images: Images,
    strategies: Vec<Box<dyn Strategy>>,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
}

impl<'a> Rank<'a> {
    fn session(self) -> Session<'a> {
        let Self { world, images, strategies, observer, stop } = self;
        let (device, origin) = (default_device(), Origin::here());
        Session { device, device_name: "default".into(), origin, images, stop, observer, world, strategies }
    }
}

/// Has rank 0 of `size` do `lead`, and the others follow, each with what `bring` gives it. Returns what rank 0 has of it, and the errors of
/// the others.
fn on_ranks<T: Send>(
    size: usize,
    wire: Wire,
    bring: impl Fn(usize) -> (Images, Vec<Box<dyn Strategy>>) + Sync,
    lead: impl FnOnce(Session<'_>) -> Result<T, TrainError> + Send,
) -> (Result<T, TrainError>, Vec<Result<(), TrainError>>) {
    let worlds = World::threads(size).into_iter().map(|world| world.with_wire(wire));
    on_worlds(worlds.collect(), bring, lead)
}

fn on_worlds<T: Send>(
    worlds: Vec<World>,
    bring: impl Fn(usize) -> (Images, Vec<Box<dyn Strategy>>) + Sync,
    lead: impl FnOnce(Session<'_>) -> Result<T, TrainError> + Send,
) -> (Result<T, TrainError>, Vec<Result<(), TrainError>>) {
    std::thread::scope(|scope| {
        let mut worlds = worlds.into_iter();
        let root = worlds.next().expect("invariant: there is a first");
        let bring = &bring;
        let along = |world: World| {
            scope.spawn(move || {
                let (images, strategies) = bring(world.rank());
                let (mut observer, stop) = ((), AtomicBool::new(false));
                let rank = Rank { world, images, strategies, observer: &mut observer, stop: &stop };
                follow(rank.session())
            })
        };
        let others: Vec<_> = worlds.map(along).collect();
        let (images, strategies) = bring(0);
        let (mut observer, stop) = ((), AtomicBool::new(false));
        let rank = Rank { world: root, images, strategies, observer: &mut observer, stop: &stop };
        let led = lead(rank.session());
        (led, others.into_iter().map(|thread| thread.join().expect("no rank panics")).collect())
    })
}

fn plain(_: usize) -> (Images, Vec<Box<dyn Strategy>>) {
    (digits(), Vec::new())
}

/// Trains on `size` ranks, or alone, and returns the result.
fn trained(name: &str, size: usize, recipe: &Recipe) -> (PathBuf, RunResult) {
    let out = run_dir(name);
    let (led, others) = on_ranks(size, Wire::Fp32, plain, |session| train(recipe, &out, session));
    others.into_iter().for_each(|other| other.unwrap_or_else(|error| panic!("{name}: {error}")));
    match led.unwrap_or_else(|error| panic!("{name}: {error}")) {
        Outcome::Complete(result) => (out, *result),
        other => panic!("{name}: {other:?}"),
    }
}

/// Digest of all state at the end of a run.
fn digest(run: &Path) -> String {
    inspect(run, None).expect("the run is read").checkpoint.expect("it has one").state_sha256
}

/// The parameters of a network after `step` steps.
fn parameters(run: &Path, step: u64) -> Vec<f32> {
    let bytes = std::fs::read(run.join(format!("checkpoints/step-{step:08}/model.safetensors"))).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = tensors.names();
    names.sort_unstable();
    let values = |name: &&str| tensors.tensor(name).unwrap().data().to_vec();
    let bytes: Vec<u8> = names.iter().flat_map(values).collect();
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
}

/// Ranks are parts of a batch that are computed elsewhere: they end as one process that computes as many parts one after the other, to
/// the last bit, whatever is trained and however images are left over.
#[test]
fn ranks_end_as_one_that_accumulates() {
    let joint = "strategy.joint={teacher={width=0.25}, students=[{weight_bits=4, act_bits=4}]}";
    let cases: [(&str, usize, usize, &[&str]); 5] = [
        ("plain", 2, 1, &[]),
        ("uneven", 3, 1, &["train.ema_decay=0.9", "quantization.method='lsq'"]),
        ("parts", 2, 2, &["data.batch_size=30", "data.validation=0.2", "train.optimizer={kind='adam'}"]),
        (
            "stages",
            2,
            1,
            &[
                joint,
                "strategy.two_stage=true",
                "strategy.progressive={ladder=['fp32', 4]}",
                "strategy.damping={}",
                "quantization.method='lsq'",
                "strategy.freezing={from=0.02, to=0.01, momentum=0.05}",
                "train.epochs=5",
                "phases={w2a4={quantizer_state='rescaled', optimizer_state='kept'}}",
            ],
        ),
        (
            "stochastic",
            2,
            1,
            &[
                "strategy.stochastic_precision={selector='roulette', unit='layer'}",
                "strategy.joint={}",
                "quantization.grad_bits=4",
                "strategy.sharpness={radius=0.05}",
            ],
        ),
    ];
    for (name, size, accumulate, options) in cases {
        let of = |parts: usize| {
            let parts = format!("train.accumulate={parts}");
            recipe(&[&NO_NORM[..], options, &[&parts]].concat())
        };
        // Parts of a rank are added up before those of the next: with several of both, the order of the additions is another.
        let is_exact = accumulate == 1 || size == 1;
        let (alone, expected) = trained(&format!("{name}-alone"), 1, &of(size * accumulate));
        let (together, got) = trained(&format!("{name}-together"), size, &of(accumulate));
        if is_exact {
            assert_eq!(digest(&together), digest(&alone), "{name}");
            assert_eq!((got.loss, got.top1), (expected.loss, expected.top1), "{name}");
        } else {
            assert_ne!(digest(&together), digest(&alone), "{name}: the comparison says nothing");
            assert_near(name, &parameters(&together, 3), &parameters(&alone, 3));
        }
    }
}

/// Largest difference, beside values of which the largest are about 1.
fn assert_near(name: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{name}");
    let far = got.iter().zip(expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max);
    assert!(far <= 1e-6, "{name}: {far}");
}

/// On machines of several processes each, the sums of the machines are added up: another order, the same for all.
#[test]
fn machines_of_several_ranks_have_the_same_bits() {
    let full = ["quantization.weight_bits='fp32'", "quantization.act_bits='fp32'"];
    let recipe = recipe(&[&NO_NORM[..], &full].concat());
    let (alone, _) = trained("machines-alone", 1, &recipe);
    let runs = ["machines", "machines-again"].map(|name| {
        let out = run_dir(name);
        let worlds = World::threads_on(2, 2);
        let (led, others) = on_worlds(worlds, plain, |session| train(&recipe, &out, session));
        others.into_iter().for_each(|other| other.unwrap());
        assert!(matches!(led, Ok(Outcome::Complete(_))), "{led:?}");
        out
    });
    assert_eq!(digest(&runs[0]), digest(&runs[1]));
    assert_near("machines", &parameters(&runs[0], 8), &parameters(&alone, 8));
    let ranks = RunDir::open(&runs[0]).unwrap().processes().unwrap()[0].ranks.clone().unwrap();
    let hosts: Vec<(&str, usize)> = ranks.hosts.iter().map(|host| (host.host.as_str(), host.n)).collect();
    assert_eq!(hosts, [("machine 0", 2), ("machine 1", 2)]);
}

/// Without quantizers, in which the last digit of a sum may turn a code, two ranks are one process with the whole batch.
#[test]
fn two_ranks_have_the_gradients_of_the_whole_batch() {
    let full = ["quantization.weight_bits='fp32'", "quantization.act_bits='fp32'"];
    let recipe = recipe(&[&NO_NORM[..], &full].concat());
    let (alone, _) = trained("whole-alone", 1, &recipe);
    let (together, _) = trained("whole-together", 2, &recipe);
    for step in [3, 6, 8] {
        assert_near("whole", &parameters(&together, step), &parameters(&alone, step));
    }
    assert_ne!(digest(&together), digest(&alone), "the comparison says nothing");
}

/// BatchNorm sees the images of a rank: the result is another than that of one process, and running statistics are averaged in each
/// step, so that all have the same; without it, the training would end with the first epoch. So are running ranges, and LQ-Nets' basis.
#[test]
fn ranks_with_batch_norm_have_the_same_state() {
    let recipe = recipe(&[
        "quantization.first={method='minmax', weight_bits=8, act_bits=8}",
        "quantization.last={method='lq-nets', weight_bits=2, act_bits=2}",
        "train.norm_reestimation_batches=2",
        "train.ema_decay=0.9",
        "strategy.joint={}",
    ]);
    let (first, result) = trained("norms", 2, &recipe);
    let (second, _) = trained("norms-again", 2, &recipe);
    assert_eq!(digest(&first), digest(&second), "two runs differ");
    let process = &RunDir::open(&first).unwrap().processes().unwrap()[0];
    let ranks = process.ranks.clone().expect("the processes are recorded");
    assert_eq!((ranks.n, ranks.library.as_str(), ranks.wire), (2, "threads", Wire::Fp32));
    assert_eq!(result.same_origin, Some(true));
    let (alone, _) = trained("norms-alone", 1, &recipe);
    assert_ne!(digest(&first), digest(&alone));
}

/// With synchronized statistics, three ranks are one process with the whole batch, BatchNorm and all: what differs is the order of sums.
/// Nothing is quantized here, so that no last digit of a sum turns a code.
#[test]
fn synchronized_norms_are_those_of_the_whole_batch() {
    let full =
        ["quantization.weight_bits='fp32'", "quantization.act_bits='fp32'", "train.learning_rate=0.01"];
    let own = |options: &[&str]| recipe(&[&full[..], options].concat());
    let (alone, expected) = trained("synchronized-alone", 1, &own(&["train.sync_norms=true"]));
    let (together, got) = trained("synchronized", 3, &own(&["train.sync_norms=true"]));
    let (local, _) = trained("not-synchronized", 3, &own(&[]));
    let far = |run: &Path, step| {
        let [got, expected] = [run, &alone].map(|run| parameters(run, step));
        got.iter().zip(&expected).map(|(got, expected)| (got - expected).abs()).fold(0.0, f32::max)
    };
    for step in [3, 6, 8] {
        let [synchronized, local] = [far(&together, step), far(&local, step)];
        assert!(synchronized <= 2e-5, "after {step} steps: {synchronized}");
        assert!(local > 1e-3, "after {step} steps, each by its own: {local}");
    }
    assert!((got.loss - expected.loss).abs() < 1e-4, "{} and {}", got.loss, expected.loss);
    // Quantized, with what follows BatchNorm, it trains.
    trained("synchronized-quantized", 2, &recipe(&["train.sync_norms=true", "quantization.method='lsq'"]));
}

/// Stops after so many steps.
struct StopAfter<'a> {
    step: u64,
    stop: &'a AtomicBool,
}

impl Observer for StopAfter<'_> {
    fn step(&mut self, report: &StepReport) {
        if report.step == self.step {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// All stop together, and go on to where they would have ended, also as many others or alone, which is recorded.
#[test]
fn ranks_stop_and_go_on_together() {
    let recipe = recipe(&["strategy.two_stage=true", "strategy.joint={}", "quantization.method='lsq'"]);
    let (whole, _) = trained("uninterrupted", 2, &recipe);
    for (name, step, size) in
        [("early", 1, 2), ("end-of-phase", 4, 2), ("late", 7, 2), ("alone", 5, 1), ("more", 5, 3)]
    {
        let out = run_dir(&format!("stopped-{name}"));
        let stop = AtomicBool::new(false);
        let (led, others) = on_ranks(2, Wire::Fp32, plain, |session| {
            let mut observer = StopAfter { step, stop: &stop };
            train(&recipe, &out, Session { observer: &mut observer, stop: &stop, ..session })
        });
        // In the middle of an epoch all are told with the next step.
        let expected = if step % 4 == 0 { step } else { step + 1 };
        let Ok(Outcome::Interrupted { step: at, .. }) = led else { panic!("{name}: {led:?}") };
        assert_eq!(at, expected, "{name}");
        others.into_iter().for_each(|other| other.unwrap());
        let (led, others) =
            on_ranks(size, Wire::Fp32, plain, |session| resume(&out, ResumeFrom::Newest, session));
        others.into_iter().for_each(|other| other.unwrap());
        let Outcome::Complete(result) = led.unwrap() else { panic!("{name} is not complete") };
        let run = RunDir::open(&out).unwrap();
        let warnings = run.warnings().unwrap();
        let told = warnings.iter().find(|warning| warning.kind == WarningKind::Provenance);
        match size {
            2 => {
                assert_eq!(digest(&out), digest(&whole), "{name}");
                assert_eq!((told, result.same_origin), (None, Some(true)), "{name}");
            }
            _ => {
                let told = told.expect("it is said that other bits may come").message.clone();
                assert!(told.contains("2 processes then"), "{told}");
                assert_eq!(result.same_origin, Some(false), "{name}");
            }
        }
        // Nothing is left to train: the others are told so.
        let (led, others) =
            on_ranks(size, Wire::Fp32, plain, |session| resume(&out, ResumeFrom::Newest, session));
        assert!(matches!(led, Ok(Outcome::Complete(_))), "{led:?}");
        others.into_iter().for_each(|other| other.unwrap());
    }
}

/// Gradients of 16 bits train, in all ranks alike; going on with those of 32 is recorded.
#[test]
fn gradients_can_be_sent_in_16_bits() {
    let recipe = recipe(&NO_NORM);
    let (exact, _) = trained("of-32-bits", 2, &recipe);
    let out = run_dir("of-16-bits");
    let (led, others) = on_ranks(2, Wire::Bf16, plain, |session| train(&recipe, &out, session));
    others.into_iter().for_each(|other| other.unwrap());
    assert!(matches!(led, Ok(Outcome::Complete(_))), "{led:?}");
    let [exact, rounded] = [&exact, &out].map(|run| parameters(run, 8));
    let far = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(far > 1e-7 && far < 1e-2, "{far}");
    let ranks = RunDir::open(&out).unwrap().processes().unwrap()[0].ranks.clone();
    assert_eq!(ranks.map(|ranks| ranks.wire), Some(Wire::Bf16));
}

/// Waves of random phase, of which one rank may have others.
#[derive(Debug)]
struct Waves(usize);

impl Source for Waves {
    fn info(&self) -> SourceInfo {
        SourceInfo {
            name: "waves".into(),
            shape: Some(ImageShape { channels: 1, height: 8, width: 8 }),
            n_classes: 10,
            n_samples: 128,
            max_value: 255,
            normalization: Some(Normalization { mean: vec![0.5], std: vec![0.5] }),
        }
    }
    fn label(&self, sample: usize) -> u16 {
        (sample % 10) as u16
    }
    fn image(&self, sample: usize) -> Result<Image<'_>, SampleError> {
        let pixels: Vec<u8> = (0..64).map(|i| (i * 37 + sample * self.0) as u8).collect();
        Ok(Image { shape: ImageShape { channels: 1, height: 8, width: 8 }, pixels: pixels.into() })
    }
}

/// A rank that has other images than the first is named, before anything is trained.
#[test]
fn ranks_with_other_images_are_refused() {
    let recipe =
        recipe(&["data.dataset='own'", "data.shape=[1, 8, 8]", "data.classes=10", "data.test_limit=64"]);
    let bring = |rank: usize| {
        let source = |seed| -> Arc<dyn Source> { Arc::new(Waves(seed)) };
        let train = source(if rank == 1 { 91 } else { 89 });
        (Images::Own { train, test: source(1) }, Vec::new())
    };
    let out = run_dir("other-images");
    let (led, others) = on_ranks(3, Wire::Fp32, bring, |session| train(&recipe, &out, session));
    let message = led.map(|_| ()).unwrap_err().to_string();
    assert!(message.starts_with("the images of rank 1 are not those of rank 0"), "{message}");
    assert!(others.iter().all(Result::is_err), "{others:?}");
}

/// More ranks than images of a batch.
#[test]
fn a_batch_has_images_for_all_ranks() {
    let check = |overrides: &[&str], size: usize, expected: &str| {
        let out = run_dir("too-many");
        let recipe = recipe(overrides);
        let (led, _) = on_ranks(size, Wire::Fp32, plain, |session| train(&recipe, &out, session));
        let message = led.map(|_| ()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!out.exists(), "nothing is begun");
    };
    check(
        &["data.batch_size=4", "train.accumulate=2"],
        3,
        "3 processes cannot share a batch of 4 images in 2 parts",
    );
    check(&["data.batch_size=4", "model.stem_stride=2"], 4, "1 image for each of 4 processes");
}

/// Moves a weight in each update, on one rank another way.
#[derive(Debug, Clone)]
struct Push(f32);

impl Strategy for Push {
    fn name(&self) -> &'static str {
        "push"
    }
    fn settings(&self) -> Settings {
        Settings::none()
    }
    fn reads_weights(&self) -> bool {
        true
    }
    fn begin(&self, _: f64, _: &[LayerWeights]) -> Notes {
        Notes::default()
    }
    fn update(&self, _: &Moment, layers: &mut [UpdatedLayer], _: &mut Notes) -> Vec<Measure> {
        let weights: Tensor<2> = layers[0].layer.weights.clone();
        layers[0].instead = Some(weights + self.0);
        Vec::new()
    }
}

/// What makes ranks differ ends the training with the epoch, and those that differ are named. A rank that ends takes the others along.
#[test]
fn ranks_that_differ_are_named() {
    let recipe = recipe(&["train.epochs=3"]);
    let bring = |rank: usize| -> (Images, Vec<Box<dyn Strategy>>) {
        (digits(), vec![Box::new(Push(if rank == 2 { 1e-6 } else { 0.0 }))])
    };
    let out = run_dir("differ");
    let (led, others) = on_ranks(3, Wire::Fp32, bring, |session| train(&recipe, &out, session));
    let message = led.map(|_| ()).unwrap_err().to_string();
    assert!(
        message.starts_with("after epoch 1 the parameters of rank 2 are not those of rank 0"),
        "{message}"
    );
    assert_eq!(others.len(), 2);
    assert!(others.iter().all(Result::is_err), "{others:?}");
    // What was saved before stays.
    assert!(inspect(&out, None).unwrap().checkpoint.is_some());
}
