//! What a training asks of a GPU: one read and few launches a step, and no more memory after many steps than after a few.
//!
//! Reads are counted where they happen, in wgpu, which logs every buffer that is mapped for the host and every submission.
//! That log is the process's, so the tests here take turns.

use std::path::{Path, PathBuf};
#[cfg(feature = "wgpu")]
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::optim::Optimizer;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};
use lowbit_core::BitWidth;
use lowbit_data::Locations;
#[cfg(feature = "wgpu")]
use lowbit_kernels::testing::{Launched, Launches};
use lowbit_kernels::{
    Activation, Compute, MovedBatchNorm, RunningStatistics, Sgd, batch_norm_moving, conv2d, sgd_together,
};
use lowbit_strategies::loss::{cross_entropy, target_probabilities};
use lowbit_strategies::{Loss, Output, Outputs, Settings, Strategy};
use lowbit_tests::{Backend, Spec, Tolerance, assert_close, normal, rng, tensor, values};
#[cfg(feature = "wgpu")]
use lowbit_train::{Image, ImageShape, Normalization, SampleError, Source, SourceInfo};
use lowbit_train::{
    Images, Observer, Outcome, Recipe, ResumeFrom, Session, StepReport, World, resume, train,
};

/// Counts what wgpu logs.
struct Counter {
    /// Buffers that the host asked to read.
    buffers: AtomicU64,
    /// Times it asked, with however many buffers: each time it waits for the device.
    reads: AtomicU64,
    /// Whether nothing was submitted since the last buffer was asked for.
    is_reading: AtomicBool,
    submissions: AtomicU64,
}

static COUNTER: Counter = Counter {
    buffers: AtomicU64::new(0),
    reads: AtomicU64::new(0),
    is_reading: AtomicBool::new(false),
    submissions: AtomicU64::new(0),
};

impl log::Log for Counter {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("wgpu_core")
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        if message == "Queue::submit" {
            self.submissions.fetch_add(1, Ordering::SeqCst);
            self.is_reading.store(false, Ordering::SeqCst);
        } else if message.starts_with("Buffer::map_async") && message.contains("Read") {
            self.buffers.fetch_add(1, Ordering::SeqCst);
            // Buffers that are read together are mapped one after the other, after one submission.
            if !self.is_reading.swap(true, Ordering::SeqCst) {
                self.reads.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    fn flush(&self) {}
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Counts {
    reads: u64,
    buffers: u64,
}

impl Counter {
    fn counts(&self) -> Counts {
        Counts { reads: self.reads.load(Ordering::SeqCst), buffers: self.buffers.load(Ordering::SeqCst) }
    }
}

/// The device and the counter, for one test at a time; `None` without a GPU.
fn gpu() -> Option<(Backend, MutexGuard<'static, ()>)> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let backend = Backend::find_or_skip("wgpu")?;
    // An error means that an earlier test has set it.
    let _is_set = log::set_logger(&COUNTER);
    log::set_max_level(log::LevelFilter::Trace);
    Some((backend, turn))
}

/// A network of few channels on few images, one epoch.
const TINY: [&str; 6] = [
    "train.epochs=1",
    "data.train_limit=128",
    "data.test_limit=32",
    "data.batch_size=16",
    "train.norm_reestimation_batches=1",
    "model.width=0.25",
];

fn run(
    name: &str,
    device: &Device,
    overrides: &[&str],
    observer: &mut dyn Observer,
    strategies: Vec<Box<dyn Strategy>>,
) {
    let overrides: Vec<String> = TINY.iter().chain(overrides).map(ToString::to_string).collect();
    let recipe = Recipe::embedded(name, &overrides).unwrap_or_else(|error| panic!("{name}: {error}"));
    train_on(&recipe, device, Locations::default_with(None).into(), observer, strategies);
}

fn train_on(
    recipe: &Recipe,
    device: &Device,
    images: Images,
    observer: &mut dyn Observer,
    strategies: Vec<Box<dyn Strategy>>,
) {
    let path: PathBuf = Path::new(env!("CARGO_TARGET_TMPDIR")).join("device/counted");
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("the directory of an earlier run is removed");
    }
    let session = Session {
        device: device.clone(),
        device_name: "wgpu".into(),
        origin: lowbit_train::Origin::here(),
        images,
        stop: &AtomicBool::new(false),
        observer,
        world: World::ALONE,
        strategies,
    };
    let outcome = train(recipe, &path, session);
    assert!(matches!(outcome, Ok(Outcome::Complete(_))), "{}: {outcome:?}", recipe.name);
}

/// Ends a training after a step.
struct StopAt<'a> {
    step: u64,
    stop: &'a AtomicBool,
}

impl Observer for StopAt<'_> {
    fn step(&mut self, report: &StepReport) {
        self.stop.store(report.step == self.step, Ordering::SeqCst);
    }
}

/// Checksum of the network at the end of two epochs of eight steps; stopped after the step `stopped_at`, if
/// it is one of them, and resumed.
fn checksum(device: &Device, overrides: &[&str], name: &str, stopped_at: u64) -> String {
    let two_epochs = ["train.epochs=2", "checkpoint.every_epochs=2"];
    let overrides = TINY.iter().chain(&two_epochs).chain(overrides).map(ToString::to_string);
    let recipe =
        Recipe::embedded("digits-preresnet8-w2a2", &overrides.collect::<Vec<_>>()).expect("a recipe");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("device").join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).expect("the directory of an earlier run is removed");
    }
    let stop = AtomicBool::new(false);
    let go_on = |is_new: bool| {
        stop.store(false, Ordering::SeqCst);
        let session = Session {
            device: device.clone(),
            device_name: "wgpu".into(),
            origin: lowbit_train::Origin::here(),
            images: Locations::default_with(None).into(),
            stop: &stop,
            observer: &mut StopAt { step: stopped_at, stop: &stop },
            world: World::ALONE,
            strategies: Vec::new(),
        };
        let outcome = match is_new {
            true => train(&recipe, &path, session),
            false => resume(&path, ResumeFrom::Newest, session),
        };
        matches!(outcome.expect("a training"), Outcome::Complete(_))
    };
    let is_complete = go_on(true);
    assert_eq!(is_complete, stopped_at == 0);
    assert!(is_complete || go_on(false), "it goes on to the end");
    let sums = path.join("checkpoints/step-00000016/SHA256SUMS");
    let sums = std::fs::read_to_string(sums).expect("the last checkpoint has checksums");
    // Its optimizer's file names parameters by numbers of the process; what is in it shows in the steps after it.
    let of_network = sums.lines().find(|line| line.ends_with("model.safetensors"));
    of_network.expect("the network has one").to_string()
}

/// Sums are in a fixed order: the same run has the same bits on the same device, and so has one that was stopped and resumed.
#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn the_same_run_gives_the_same_bits() {
    let Some((backend, _turn)) = gpu() else { return };
    for overrides in [&[][..], &["quantization.method=lsq"]] {
        let sum = |name, stopped_at| checksum(&backend.device, overrides, name, stopped_at);
        let first = sum("first", 0);
        assert_eq!(sum("second", 0), first, "{overrides:?}: a second run");
        assert_eq!(sum("resumed", 11), first, "{overrides:?}: a resumed run");
    }
}

/// The counts of every step but the first, before which the network is calibrated.
#[derive(Default)]
struct Steps {
    before: Option<Counts>,
    steps: Vec<Counts>,
}

impl Observer for Steps {
    fn step(&mut self, _: &StepReport) {
        let now = COUNTER.counts();
        if let Some(before) = self.before.replace(now) {
            let (reads, buffers) = (now.reads - before.reads, now.buffers - before.buffers);
            self.steps.push(Counts { reads, buffers });
        }
    }
}

/// Recipes with the buffers that a step reads, of each part of a batch: the logits, of each network that is trained the parts of its loss and, if there
/// are several, their sum, and the norm of the gradients where they are clipped.
const READS: [(&str, &[&str], u64); 8] = [
    ("digits-preresnet8-fp32", &["train.gradient_clip=1.0"], 4),
    ("digits-preresnet8-w2a2", &["train.ema_decay=0.9"], 3),
    ("digits-preresnet8-w2a2", &["train.accumulate=2"], 6),
    ("digits-preresnet8-w2a2", &["quantization.method=lsq"], 3),
    ("digits-preresnet8-w2a2", &["quantization.method=pact", "train.optimizer={kind='adamw'}"], 3),
    ("digits-preresnet8-w2a2", &["quantization.method=minmax"], 3),
    ("digits-preresnet8-w2a2-sp", &[], 3),
    ("digits-preresnet8-w2a2-joint", &["strategy.hint={weight=1.0, target='both'}"], 9),
];

/// No operation falls back to the host, and nothing but logits, the parts of the losses and their sums is read, all at once.
#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn a_step_reads_once() {
    let Some((backend, _turn)) = gpu() else { return };
    for (name, overrides, buffers) in READS {
        let mut steps = Steps::default();
        run(name, &backend.device, overrides, &mut steps, Vec::new());
        assert_eq!(steps.steps.len(), 7, "{name} {overrides:?}");
        for (step, counts) in steps.steps.iter().enumerate() {
            assert_eq!(*counts, Counts { reads: 1, buffers }, "{name} {overrides:?}, step {}", step + 2);
        }
    }
    assert!(COUNTER.submissions.load(Ordering::SeqCst) > 0, "wgpu logs nothing");
}

/// Reads the loss in every step.
#[derive(Debug)]
struct Curious;

impl Strategy for Curious {
    fn name(&self) -> &str {
        "curious"
    }

    fn settings(&self) -> Settings {
        Settings::none()
    }

    fn loss(&self, _: &Output, _: &Outputs<'_>, loss: Loss) -> Loss {
        let value: f32 = loss.total().into_scalar();
        assert!(value.is_finite());
        loss
    }
}

#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn a_read_more_is_counted() {
    let Some((backend, _turn)) = gpu() else { return };
    let mut steps = Steps::default();
    run("digits-preresnet8-w2a2", &backend.device, &[], &mut steps, vec![Box::new(Curious)]);
    assert!(steps.steps.iter().all(|counts| *counts == Counts { reads: 2, buffers: 4 }), "{:?}", steps.steps);
}

/// Images of noise, as large as those of CIFAR.
#[cfg(feature = "wgpu")]
#[derive(Debug)]
struct Noise(usize);

#[cfg(feature = "wgpu")]
impl Source for Noise {
    fn info(&self) -> SourceInfo {
        SourceInfo {
            name: "noise".into(),
            n_samples: self.0,
            n_classes: 2,
            shape: Some(ImageShape { channels: 3, height: 32, width: 32 }),
            max_value: 255,
            normalization: Some(Normalization { mean: vec![0.5; 3], std: vec![0.3; 3] }),
        }
    }

    fn label(&self, sample_idx: usize) -> u16 {
        (sample_idx % 2) as u16
    }

    fn image(&self, sample_idx: usize) -> Result<Image<'_>, SampleError> {
        let shape = ImageShape { channels: 3, height: 32, width: 32 };
        let pixel = |i: usize| ((i * 7919 + sample_idx * 104_729) % 251) as u8;
        Ok(Image { shape, pixels: (0..shape.n_values()).map(pixel).collect::<Vec<u8>>().into() })
    }
}

/// A step on CIFAR's images; the number of launches depends neither on the number of channels nor on that of the classes.
#[cfg(feature = "wgpu")]
const PRERESNET20_W2A2: &str = r#"
schema = 1
name = "launches"

[data]
dataset = "own"
shape = [3, 32, 32]
classes = 2
augment = { pad = 0, flip = false }

[model]
family = "preresnet"
depth = 20

[quantization]
method = "dorefa"
weight_bits = 2
act_bits = 2

[train]
epochs = 1
learning_rate = 0.01
norm_reestimation_batches = 0
"#;

/// Launches of a step, whatever the batch: 327 where the device has bindings for five tensors of the optimizer at a time.
#[cfg(feature = "wgpu")]
const MOST_LAUNCHES: u64 = 330;

/// What each step launched.
#[cfg(feature = "wgpu")]
struct LaunchedKernels {
    launches: Launches,
    steps: Vec<Launched>,
}

#[cfg(feature = "wgpu")]
impl Observer for LaunchedKernels {
    fn step(&mut self, _: &StepReport) {
        self.steps.push(self.launches.take());
    }
}

/// What the third step of a training on noise launches.
#[cfg(feature = "wgpu")]
fn launched(device: &Device, batch_size: usize, overrides: &[&str]) -> Launched {
    let batch_size_key = format!("data.batch_size={batch_size}");
    let overrides: Vec<String> =
        overrides.iter().copied().chain([batch_size_key.as_str()]).map(ToString::to_string).collect();
    let recipe = Recipe::parse(PRERESNET20_W2A2, "a test", &overrides).expect("a recipe");
    let images = Images::Own { train: Arc::new(Noise(3 * batch_size)), test: Arc::new(Noise(2)) };
    let mut observer = LaunchedKernels { launches: Launches::count(), steps: Vec::new() };
    train_on(&recipe, device, images, &mut observer, Vec::new());
    assert_eq!(observer.steps.len(), 3);
    observer.steps.swap_remove(2)
}

/// Every kernel of a step is counted, burn's too. A launch takes the host as long as a small kernel takes a GPU.
#[test]
#[cfg(feature = "wgpu")]
fn a_step_launches_few_kernels() {
    let Some((backend, _turn)) = gpu() else { return };
    let of = |batch_size, overrides: &[&str]| launched(&backend.device, batch_size, overrides);
    let [small, large] = [2, 4].map(|batch_size| of(batch_size, &[]));
    eprintln!("{} launches of a PreResNet-20 W2A2 step: {:#?}", small.total(), small.kernels);
    assert_eq!(small.kernels, large.kernels, "launches depend on the batch");
    assert!(small.total() <= MOST_LAUNCHES, "{} launches", small.total());
}

/// Memory in use and reserved on the device after each step, and of the process.
struct Memory<'a> {
    device: &'a Device,
    steps: Vec<[u64; 3]>,
}

impl Observer for Memory<'_> {
    fn step(&mut self, _: &StepReport) {
        let usage = self.device.memory_pool_usage().expect("the device says");
        self.steps.push([usage.bytes_in_use, usage.bytes_reserved, resident_bytes()]);
    }
}

/// Resident size of this process, 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The largest value of the last quarter of the steps less that of the second quarter: by then all kernels are compiled
/// and all buffers have been needed.
fn growth(steps: &[[u64; 3]]) -> [i64; 3] {
    let quarter = steps.len() / 4;
    let largest = |part: &[[u64; 3]], i: usize| part.iter().map(|usage| usage[i]).max().unwrap_or(0) as i64;
    [0, 1, 2].map(|i| largest(&steps[3 * quarter..], i) - largest(&steps[quarter..2 * quarter], i))
}

/// Memory over epochs of eight steps.
fn memory(device: &Device, epochs: usize, strategies: Vec<Box<dyn Strategy>>) -> Vec<[u64; 3]> {
    let mut memory = Memory { device, steps: Vec::new() };
    let keys = ["train.epochs", "train.eval_every", "checkpoint.every_epochs"];
    let overrides = keys.map(|key| format!("{key}={epochs}"));
    run("digits-preresnet8-w2a2", device, &overrides.each_ref().map(String::as_str), &mut memory, strategies);
    assert_eq!(memory.steps.len(), 8 * epochs);
    memory.steps
}

/// What is freed a moment later than it was at the other time. The logits of 20 steps are more than this.
const IN_FLIGHT: i64 = 4 << 10;

/// The process allocates in pages of the allocator's choice; 200 leaked batches of images alone would be more than this.
const NOISE: i64 = 8 << 20;

/// How often memory is watched for 200 steps: a leak grows every time, the arenas of a driver's threads do not.
const WATCHES: usize = 3;

#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn memory_does_not_grow() {
    let Some((backend, _turn)) = gpu() else { return };
    let mut growths = Vec::new();
    while growths.last().is_none_or(|&resident| resident > NOISE) {
        assert!(
            growths.len() < WATCHES,
            "{growths:?} bytes more resident in {WATCHES} trainings of 200 steps"
        );
        let steps = memory(&backend.device, 25, Vec::new());
        let [in_use, reserved, resident] = growth(&steps);
        eprintln!(
            "wgpu memory over 200 steps: at the end {:?}, growth {:?}",
            steps[199],
            [in_use, reserved, resident]
        );
        assert!(in_use <= IN_FLIGHT, "{in_use} bytes more in use");
        assert!(reserved <= 0, "{reserved} bytes more reserved");
        growths.push(resident);
    }
}

/// Keeps the logits of every step.
#[derive(Debug, Default)]
struct Leak(Mutex<Vec<Tensor<2>>>);

impl Strategy for Leak {
    fn name(&self) -> &str {
        "leak"
    }

    fn settings(&self) -> Settings {
        Settings::none()
    }

    fn loss(&self, network: &Output, _: &Outputs<'_>, loss: Loss) -> Loss {
        let logits = network.features.logits.clone().detach();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(logits);
        loss
    }
}

#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn a_leak_is_seen() {
    let Some((backend, _turn)) = gpu() else { return };
    let [in_use, ..] = growth(&memory(&backend.device, 5, vec![Box::new(Leak::default())]));
    assert!(in_use > IN_FLIGHT, "a leak of 40 tensors is not seen");
}

/// Batches so large that the weights' gradient is taken in shares of several images, the last of which has fewer, or in passes.
#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn weight_gradients_of_large_batches_are_those_of_the_cpu() {
    // A hundred thousand products are added up.
    const SUMS: Tolerance = Tolerance { relative: 1e-4, absolute: 1e-5 };
    let (Some((gpu, _turn)), Some(cpu)) = (gpu(), Backend::find_or_skip("flex")) else { return };
    for ([batch, channels, side], out_channels) in [([457, 64, 4], 64), ([115, 16, 32], 4)] {
        let input = [batch, channels, side, side];
        let output = [batch, out_channels, side, side];
        let weight = [out_channels, channels, 3, 3];
        let [x, w, g] = [(input, 1), (weight, 2), (output, 3)]
            .map(|(shape, seed)| normal(shape.iter().product(), 0.0, 1.0, &mut rng(seed)));
        let [got, expected] = [&gpu, &cpu].map(|backend| {
            let device = backend.device.clone().autodiff();
            let w = tensor::<4>(&w, weight, &device).require_grad();
            let options = ConvOptions::new([1; 2], [1; 2], [1; 2], 1);
            let y = conv2d(tensor(&x, input, &device), w.clone(), options, Compute::Fp32);
            let gradients = (y * tensor(&g, output, &device)).sum().backward();
            values(w.grad(&gradients).expect("the weights have a gradient"))
        });
        assert_close(&format!("weights' gradient, {batch} images"), &got, &expected, SUMS);
    }
}

/// Relative to the largest value: many values are added up, in another order.
const MANY: Tolerance = Tolerance { relative: 2e-5, absolute: 1e-7 };

/// Fails unless each of the results of `f` is the same on both devices.
fn check_both(what: &str, devices: [&Device; 2], f: impl Fn(&Device) -> Vec<Vec<f32>>) {
    let [got, expected] = devices.map(&f);
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_close(&format!("{what}, result {i}"), got, expected, MANY);
    }
}

/// More rows than one cube takes, more channels than one has threads for side by side, and channels that are no vectors.
#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn normalizations_of_large_maps_are_those_of_the_cpu() {
    let (Some((gpu, _turn)), Some(cpu)) = (gpu(), Backend::find_or_skip("flex")) else { return };
    for shape in [[5, 130, 37, 41], [2, 3, 200, 100], [600, 1, 30, 30]] {
        let n: usize = shape.iter().product();
        let [x, g] = [(3.0, 1), (0.0, 2)].map(|(mean, seed)| normal(n, mean, 1.0, &mut rng(seed)));
        let [gamma, beta] = [3, 4].map(|seed| normal(shape[1], 1.0, 0.3, &mut rng(seed)));
        check_both(&format!("normalization of {shape:?}"), [&gpu.device, &cpu.device], |device| {
            let device = device.clone().autodiff();
            let x = tensor::<4>(&x, shape, &device).require_grad();
            let [gamma, beta] = [&gamma, &beta].map(|p| tensor::<1>(p, [shape[1]], &device).require_grad());
            let running = RunningStatistics {
                mean: Tensor::zeros([shape[1]], &device),
                variance: Tensor::ones([shape[1]], &device),
            };
            let affine = [gamma.clone(), beta.clone()];
            let MovedBatchNorm { output, running } =
                batch_norm_moving(x.clone(), affine, running, 0.1, 1e-5, Activation::Identity);
            let y = output.into_values();
            let gradients = (y.clone() * tensor(&g, shape, &device)).sum().backward();
            let of = |p: &Tensor<1>| values(p.grad(&gradients).expect("it has a gradient"));
            let dx = values(x.grad(&gradients).expect("the input has a gradient"));
            vec![values(y), dx, of(&gamma), of(&beta), values(running.mean), values(running.variance)]
        });
    }
}

/// So many weights that a thread has several, also when their largest is looked for.
#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn dorefa_weights_of_large_layers_are_those_of_the_cpu() {
    let (Some((gpu, _turn)), Some(cpu)) = (gpu(), Backend::find_or_skip("flex")) else { return };
    for shape in [[256, 256, 3, 3], [1, 3, 1, 1], [20, 30, 5, 1]] {
        let n: usize = shape.iter().product();
        let [w, g] = [1, 2].map(|seed| normal(n, 0.0, 0.5, &mut rng(seed)));
        for spec in [Spec::DoReFaWeights, Spec::DoReFaWeightsDetachedMax] {
            let result = |device: &Device| {
                let device = device.clone().autodiff();
                let quantizer = spec.build(BitWidth::new(2).expect("2 bits"), &device);
                let w = tensor::<4>(&w, shape, &device).require_grad();
                let y = quantizer.fake_quantize(w.clone());
                let gradients = (y.clone() * tensor(&g, shape, &device)).sum().backward();
                [values(y), values(w.grad(&gradients).expect("the weights have a gradient"))]
            };
            let ([got, got_gradient], [expected, gradient]) = (result(&gpu.device), result(&cpu.device));
            assert_close(&format!("gradient, {spec:?} of {shape:?}"), &got_gradient, &gradient, MANY);
            // Where tanh is an ulp off beside a tie, the next code is taken.
            let n_others = got.iter().zip(&expected).filter(|(a, b)| (*a - *b).abs() > 1e-6).count();
            assert!(n_others <= n / 100_000, "{n_others} of {n} codes differ, {spec:?}");
        }
    }
}

/// Every setting of the optimizer, of more tensors than one launch has.
#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn steps_of_the_optimizer_are_those_of_the_cpu() {
    let (Some((gpu, _turn)), Some(cpu)) = (gpu(), Backend::find_or_skip("flex")) else { return };
    let plain = Sgd { momentum: None, is_nesterov: false, weight_decay: None };
    let momentum = Sgd { momentum: Some(0.9), ..plain };
    let all = [plain, momentum, Sgd { is_nesterov: true, weight_decay: Some(1e-2), ..momentum }];
    for sgd in all {
        check_both(&format!("{sgd:?}"), [&gpu.device, &cpu.device], |device| {
            let of = |shape: [usize; 2], seed| -> Tensor<2> {
                let n = shape[0] * shape[1];
                tensor(&normal(n, 0.0, 1.0, &mut rng(seed)), shape, device)
            };
            let columns = |i: usize| 1 + 31 * i;
            let mut weights: Vec<_> = (0..30).map(|i| (of([3, columns(i)], 1), None)).collect();
            for n_step in 0..3 {
                weights = sgd_together(|| {
                    let step = |(i, (weight, state)): (usize, (Tensor<2>, _))| {
                        // Gradients need not lie in memory as the weights do.
                        let gradient = of([columns(i), 3], 2 + n_step).transpose();
                        sgd.step(0.1, weight, gradient, state)
                    };
                    weights.into_iter().enumerate().map(step).collect()
                });
            }
            weights.into_iter().map(|(weight, _)| values(weight)).collect()
        });
    }
}

/// More classes than a cube has threads.
#[test]
#[cfg_attr(not(feature = "wgpu"), ignore = "needs --features wgpu")]
fn losses_of_many_classes_are_those_of_the_cpu() {
    let (Some((gpu, _turn)), Some(cpu)) = (gpu(), Backend::find_or_skip("flex")) else { return };
    for [batch, classes] in [[3, 1000], [300, 7], [1, 1]] {
        let logits = normal(batch * classes, 2.0, 5.0, &mut rng(1));
        let labels: Vec<i64> = (0..batch).map(|i| (i * 7 % classes) as i64).collect();
        check_both(&format!("{classes} classes"), [&gpu.device, &cpu.device], |device| {
            let device = device.clone().autodiff();
            let targets = target_probabilities(&labels, classes, 0.1, &device);
            let logits = tensor::<2>(&logits, [batch, classes], &device).require_grad();
            let loss = cross_entropy(logits.clone(), targets);
            let gradients = (loss.clone() * 3.0).backward();
            vec![values(loss), values(logits.grad(&gradients).expect("the logits have a gradient"))]
        });
    }
}
