//! The training loop: from images to loss to update to checkpoint, and back from a checkpoint to the very next step.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData, Transaction};
use lowbit_data::{Batch, Dataset, ImageShape, Loader, LoaderConfig, Locations, Normalization, Split};
use lowbit_models::{InputShape, Model, Network, Plan};
use lowbit_quantizers::QuantizedNetwork;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointError, Progress, optimizer_bytes, optimizer_record};
use crate::error::TrainError;
use crate::loss::{cross_entropy, target_probabilities};
use crate::metrics::{EpochMetrics, Scores, Tally};
use crate::optimizer::Optimizer;
use crate::recipe::{DataRecipe, Recipe};
use crate::run_dir::{RESULT, RunDir, RunInfo};
use crate::schedule::learning_rate;
use crate::state;

/// Images per evaluation batch. Fixed, so that every evaluation of a checkpoint adds in the same order.
const EVAL_BATCH_SIZE: usize = 256;

/// Threads that decode and augment images beside the training.
const LOADER_THREADS: usize = 1;

/// Where a training runs.
pub struct Session<'a> {
    /// Device of the network, without autodiff.
    pub device: Device,
    /// How the device was asked for, as in "flex" or "wgpu:0".
    pub device_name: String,
    /// Where data sets are looked for.
    pub locations: Locations,
    /// Set to end the training after the current step, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Told of everything that happens.
    pub observer: &'a mut dyn Observer,
}

/// Follows a training. Every method does nothing unless it is overridden.
pub trait Observer {
    /// The training is about to begin at `step`, or to go on there.
    fn started(&mut self, _run: &Path, _recipe: &Recipe, _plan: &Plan, _step: u64) {}
    /// A step is done.
    fn step(&mut self, _report: &StepReport) {}
    /// An epoch is done.
    fn epoch(&mut self, _metrics: &EpochMetrics, _timing: &EpochTiming) {}
    /// A checkpoint is complete.
    fn checkpoint(&mut self, _path: &Path) {}
}

/// Does nothing.
impl Observer for () {}

/// Where a training stands after a step.
#[derive(Clone, Copy, Debug)]
pub struct StepReport {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Epochs in all.
    pub epochs: u64,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Loss of the step's batch.
    pub loss: f64,
    /// Scores of the epoch so far.
    pub train: Scores,
    /// Training images per second of this process so far.
    pub images_per_second: f64,
    /// Seconds left, as far as known.
    pub eta_seconds: f64,
}

/// One line of `timing.jsonl`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct EpochTiming {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Seconds of training so far, evaluation included.
    pub seconds: f64,
    /// Training images per second of this process so far, evaluation excluded.
    pub images_per_second: f64,
}

/// How a training ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All epochs are done.
    Complete(RunResult),
    /// It was stopped and can be resumed.
    Interrupted {
        /// The run directory.
        run_dir: PathBuf,
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
    },
}

/// The result of a complete training; `result.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunResult {
    /// Name of the recipe.
    pub recipe: String,
    /// Fraction of test images classified correctly after the last epoch.
    pub top1: f64,
    /// Fraction of test images whose label is among the five highest scores, after the last epoch.
    pub top5: f64,
    /// Mean test loss after the last epoch.
    pub loss: f64,
    /// Highest `top1` of all checkpoints that are kept, and where it is.
    pub best: Option<BestCheckpoint>,
    /// Epochs.
    pub epochs: u64,
    /// Seconds of training, evaluation included, over all processes that took part.
    pub seconds: f64,
    /// Training images per second of the last process, evaluation excluded.
    pub images_per_second: f64,
    /// Device.
    pub device: String,
    /// Seed.
    pub seed: u64,
    /// The run directory.
    pub run_dir: PathBuf,
}

/// The best checkpoint that is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BestCheckpoint {
    /// Its name.
    pub checkpoint: String,
    /// Its accuracy on the test images.
    pub top1: f64,
}

/// Trains `recipe` in the new run directory `out`.
///
/// # Errors
/// [`TrainError`]; a run directory is left behind only if the training had begun.
pub fn train(recipe: &Recipe, out: &Path, session: Session<'_>) -> Result<Outcome, TrainError> {
    let data = Data::open(&recipe.data, recipe.seed, &session.locations)?;
    let model = build(recipe, &session.device.clone().autodiff())?;
    let info = RunInfo {
        schema: 1,
        lowbit: env!("CARGO_PKG_VERSION").into(),
        burn: "0.22.1".into(),
        device: session.device_name.clone(),
        n_threads: std::thread::available_parallelism().map_or(1, usize::from),
    };
    let run = RunDir::create(out, recipe, &model.plan, &info)?;
    Trainer::new(recipe, run, model, data, session)?.run()
}

/// Goes on with the training in the run directory `path`, from its newest checkpoint or the one named.
///
/// # Errors
/// [`TrainError`] if the directory holds no run, its checkpoint is damaged, or the training fails.
pub fn resume(path: &Path, checkpoint: Option<&str>, session: Session<'_>) -> Result<Outcome, TrainError> {
    let run = RunDir::open_for_training(path)?;
    let recipe = run.recipe()?;
    let chosen = run.checkpoints().choose(checkpoint)?;
    let loaded = chosen.as_deref().map(|name| run.checkpoints().load(name)).transpose()?;
    let data = Data::open(&recipe.data, recipe.seed, &session.locations)?;
    let model = build(&recipe, &session.device.clone().autodiff())?;
    let mut trainer = Trainer::new(&recipe, run, model, data, session)?;
    match (chosen, loaded) {
        (Some(name), Some(loaded)) => trainer.restore(&name, loaded)?,
        _ => trainer.run.truncate_metrics(0)?,
    }
    trainer.run()
}

/// The network of a recipe with its initial weights.
pub(crate) fn build(recipe: &Recipe, device: &Device) -> Result<Model, TrainError> {
    let ImageShape { channels, height, width } = recipe.data.dataset.info().shape;
    let input = InputShape { channels, height, width };
    let n_classes = recipe.data.n_classes();
    let model = recipe.model.init(input, n_classes, &recipe.quantization.policy, recipe.seed, device)?;
    Ok(Model { network: state::with_stable_ids(model.network), ..model })
}

/// The training and test images of a recipe.
struct Data {
    train: Loader,
    test: Loader,
    n_classes: usize,
}

impl Data {
    fn open(recipe: &DataRecipe, seed: u64, locations: &Locations) -> Result<Self, TrainError> {
        let train = open_split(recipe, Split::Train, recipe.train_limit, locations)?;
        let n_classes = train.n_classes;
        let config = LoaderConfig {
            augmentation: recipe.augment,
            n_threads: LOADER_THREADS,
            ..LoaderConfig::training(recipe.batch_size, seed, Normalization::of(recipe.dataset))
        };
        let train = Loader::new(Arc::new(train), config)?;
        Ok(Self { train, test: test_loader(recipe, locations)?, n_classes })
    }
}

fn open_split(
    recipe: &DataRecipe,
    split: Split,
    limit: Option<usize>,
    locations: &Locations,
) -> Result<Dataset, TrainError> {
    let dataset = lowbit_data::open(recipe.dataset, split, recipe.labels, locations)?;
    Ok(match limit {
        Some(limit) => dataset.head(limit)?,
        None => dataset,
    })
}

/// The test images of a recipe, in order.
pub(crate) fn test_loader(recipe: &DataRecipe, locations: &Locations) -> Result<Loader, TrainError> {
    let test = open_split(recipe, Split::Test, recipe.test_limit, locations)?;
    let config = LoaderConfig {
        n_threads: LOADER_THREADS,
        ..LoaderConfig::evaluation(EVAL_BATCH_SIZE, Normalization::of(recipe.dataset))
    };
    Ok(Loader::new(Arc::new(test), config)?)
}

/// Images of a batch on `device`, `[batch, channels, height, width]`.
fn images(batch: &mut Batch, device: &Device) -> Tensor<4> {
    Tensor::from_data(TensorData::new(std::mem::take(&mut batch.images), batch.shape), device)
}

struct Trainer<'a> {
    recipe: Recipe,
    run: RunDir,
    session: Session<'a>,
    /// The session's device with autodiff.
    device: Device,
    data: Data,
    plan: Plan,
    /// The network in training.
    network: Network,
    /// Moving average of the network, without autodiff.
    average: Option<Network>,
    optimizer: Optimizer,
    progress: Progress,
    last_checkpoint: Option<PathBuf>,
    clock: Clock,
}

/// Time of this process.
struct Clock {
    started: Instant,
    /// Seconds of earlier processes.
    earlier_seconds: f64,
    first_step: u64,
    /// Seconds spent in steps.
    step_seconds: f64,
    n_images: u64,
}

impl Clock {
    fn new(first_step: u64, earlier_seconds: f64) -> Self {
        Self { started: Instant::now(), earlier_seconds, first_step, step_seconds: 0.0, n_images: 0 }
    }

    fn seconds(&self) -> f64 {
        self.earlier_seconds + self.started.elapsed().as_secs_f64()
    }

    fn images_per_second(&self) -> f64 {
        match self.n_images {
            0 => 0.0,
            n => n as f64 / self.step_seconds,
        }
    }

    fn eta_seconds(&self, step: u64, steps: u64) -> f64 {
        let done = step.saturating_sub(self.first_step).max(1);
        self.started.elapsed().as_secs_f64() / done as f64 * steps.saturating_sub(step) as f64
    }
}

impl<'a> Trainer<'a> {
    fn new(
        recipe: &Recipe,
        run: RunDir,
        model: Model,
        data: Data,
        session: Session<'a>,
    ) -> Result<Self, TrainError> {
        let optimizer = Optimizer::new(&recipe.train, &model.network);
        let average = recipe.train.ema_decay.map(|_| model.network.valid());
        Ok(Self {
            recipe: recipe.clone(),
            run,
            device: session.device.clone().autodiff(),
            session,
            data,
            plan: model.plan,
            network: model.network,
            average,
            optimizer,
            progress: Progress::default(),
            last_checkpoint: None,
            clock: Clock::new(0, 0.0),
        })
    }

    fn steps_per_epoch(&self) -> u64 {
        self.data.train.steps_per_epoch()
    }

    fn steps(&self) -> u64 {
        self.recipe.train.epochs * self.steps_per_epoch()
    }

    fn restore(&mut self, name: &str, checkpoint: Checkpoint) -> Result<(), TrainError> {
        let path = self.run.checkpoints().path(name);
        let other_model = |source| CheckpointError::OtherModel { path: path.clone(), source };
        let Checkpoint { progress, model, average, optimizer } = checkpoint;
        self.network = state::load(self.network.clone(), model).map_err(other_model)?;
        self.average = match (self.average.take(), average) {
            (Some(network), Some(average)) => Some(state::load(network, average).map_err(other_model)?),
            (network, _) => network,
        };
        let record = optimizer_record(&optimizer, &path)?;
        self.optimizer = Optimizer::new(&self.recipe.train, &self.network).with_record(record);
        self.run.checkpoints().abandon_after(progress.step)?;
        self.run.truncate_metrics(progress.metrics_bytes)?;
        self.clock = Clock::new(progress.step, progress.seconds);
        self.progress = progress;
        self.last_checkpoint = Some(path);
        Ok(())
    }

    fn run(mut self) -> Result<Outcome, TrainError> {
        self.session.observer.started(self.run.path(), &self.recipe, &self.plan, self.progress.step);
        if self.progress.step == 0 {
            self.calibrate();
        }
        self.clock.started = Instant::now();
        while self.progress.step < self.steps() {
            let (epoch, first) =
                (self.progress.step / self.steps_per_epoch(), self.progress.step % self.steps_per_epoch());
            let batches = self.data.train.epoch(epoch, first);
            for batch in batches {
                self.step(batch)?;
                let epoch_done = self.progress.step.is_multiple_of(self.steps_per_epoch());
                if epoch_done {
                    self.finish_epoch()?;
                }
                let stop = self.session.stop.load(Ordering::Relaxed);
                if self.checkpoint_is_due(epoch_done) || stop {
                    self.save_checkpoint()?;
                }
                if stop && self.progress.step < self.steps() {
                    return Ok(Outcome::Interrupted {
                        run_dir: self.run.path().into(),
                        step: self.progress.step,
                        steps: self.steps(),
                    });
                }
            }
        }
        self.finish()
    }

    /// Sets the ranges of the activation quantizers from the first training batches, BatchNorm normalizing by batch,
    /// as in the steps to come. Leaves no other trace in the network.
    fn calibrate(&mut self) {
        let (data, device) = (&self.data.train, &self.device);
        let n_batches = self.recipe.train.calibration_batches;
        self.network.calibrate(|network| {
            let probe = detached(network);
            for mut batch in data.epoch(0, 0).take(n_batches) {
                probe.forward(images(&mut batch, device));
            }
        });
        if let Some(average) = &mut self.average {
            *average = self.network.valid();
        }
    }

    fn step(&mut self, mut batch: Batch) -> Result<(), TrainError> {
        let started = Instant::now();
        let train = &self.recipe.train;
        let n_images = batch.labels.len() as u64;
        let targets =
            target_probabilities(&batch.labels, self.data.n_classes, train.label_smoothing, &self.device);
        let logits = self.network.forward(images(&mut batch, &self.device));
        let loss = cross_entropy(logits.clone(), targets);
        // The one read from the device in a step.
        let [loss_data, logits] = Transaction::default()
            .register(loss.clone())
            .register(logits)
            .execute()
            .try_into()
            .expect("invariant: two tensors were registered");
        let loss_value = f64::from(loss_data.iter::<f32>().next().unwrap_or(f32::NAN));
        if !loss_value.is_finite() {
            return Err(self.non_finite(loss_value));
        }
        let rate = learning_rate(train, self.steps_per_epoch(), self.progress.step);
        self.network = self.optimizer.step(rate, self.network.clone(), loss.backward());
        if let (Some(decay), Some(average)) = (train.ema_decay, self.average.take()) {
            self.average = Some(state::moving_average(average, &self.network.valid(), decay));
        }
        let epoch = self.progress.step / self.steps_per_epoch();
        if self.progress.step.is_multiple_of(self.steps_per_epoch()) {
            self.progress.train = Tally::default();
        }
        self.progress.train.add(&logits.iter::<f32>().collect::<Vec<_>>(), &batch.labels, loss_value);
        self.progress.step += 1;
        self.clock.step_seconds += started.elapsed().as_secs_f64();
        self.clock.n_images += n_images;
        self.session.observer.step(&StepReport {
            epoch: epoch + 1,
            epochs: train.epochs,
            step: self.progress.step,
            steps: self.steps(),
            loss: loss_value,
            train: self.progress.train.scores(),
            images_per_second: self.clock.images_per_second(),
            eta_seconds: self.clock.eta_seconds(self.progress.step, self.steps()),
        });
        Ok(())
    }

    fn non_finite(&self, loss: f64) -> TrainError {
        TrainError::NonFinite {
            loss,
            step: self.progress.step + 1,
            epoch: self.progress.step / self.steps_per_epoch() + 1,
            place: state::first_non_finite(&self.network.valid()).unwrap_or_else(|| "the logits".into()),
            last_checkpoint: self.last_checkpoint.clone(),
        }
    }

    fn finish_epoch(&mut self) -> Result<(), TrainError> {
        let train = &self.recipe.train;
        let epoch = self.progress.step / self.steps_per_epoch();
        let evaluated = epoch.is_multiple_of(train.eval_every) || epoch == train.epochs;
        if evaluated {
            self.reestimate_norms();
            let test = evaluate(&self.evaluated_network(), &self.data.test, &self.session.device);
            self.progress.test = Some(test);
            self.progress.test_step = Some(self.progress.step);
        }
        let metrics = EpochMetrics {
            epoch,
            step: self.progress.step,
            learning_rate: learning_rate(&self.recipe.train, self.steps_per_epoch(), self.progress.step - 1),
            train: self.progress.train.scores(),
            test: self.progress.test.filter(|_| evaluated),
            quantizers: watched(&self.network),
        };
        let timing = EpochTiming {
            epoch,
            seconds: self.clock.seconds(),
            images_per_second: self.clock.images_per_second(),
        };
        self.progress.metrics_bytes = self.run.append_metrics(&to_json(&metrics))?;
        self.run.append_timing(&to_json(&timing))?;
        self.session.observer.epoch(&metrics, &timing);
        Ok(())
    }

    /// The network that is evaluated and deployed: the moving average, if there is one.
    fn evaluated_network(&self) -> Network {
        self.average.clone().unwrap_or_else(|| self.network.valid())
    }

    /// Replaces BatchNorm's running statistics by their mean over training batches of this epoch, seen by the network
    /// as it is now.
    fn reestimate_norms(&mut self) {
        let n_batches = self.recipe.train.norm_reestimation_batches;
        if n_batches == 0 {
            return;
        }
        let network = self.evaluated_network();
        let mut probe = detached(&network);
        let epoch = (self.progress.step - 1) / self.steps_per_epoch();
        for (i, mut batch) in self.data.train.epoch(epoch, 0).take(n_batches).enumerate() {
            // The mean of i + 1 values is the mean of the first i, moved by 1 / (i + 1) towards the last.
            probe.for_each_norm(&mut |norm| norm.momentum = 1.0 / (i + 1) as f64);
            probe.forward(images(&mut batch, &self.device));
        }
        let statistics = state::tensors(&probe.valid())
            .into_iter()
            .filter(|(path, _)| path.ends_with(".running_mean") || path.ends_with(".running_var"));
        let mut tensors = state::tensors(&network);
        tensors.extend(statistics);
        let load =
            |network| state::load(network, tensors).expect("invariant: the state is this network's own");
        match &mut self.average {
            Some(average) => *average = load(network),
            // A fresh copy: burn's running statistics would otherwise keep a pending update.
            None => self.network = load(self.network.valid().train()),
        }
    }

    fn checkpoint_is_due(&self, epoch_done: bool) -> bool {
        let step = self.progress.step;
        if step == self.steps() {
            return true;
        }
        let recipe = &self.recipe.checkpoint;
        let by_step = recipe.every_steps.is_some_and(|every| step.is_multiple_of(every));
        let by_epoch = epoch_done && (step / self.steps_per_epoch()).is_multiple_of(recipe.every_epochs);
        by_step || by_epoch
    }

    fn save_checkpoint(&mut self) -> Result<(), TrainError> {
        let checkpoints = self.run.checkpoints();
        self.progress.seconds = self.clock.seconds();
        let path = checkpoints.save(&Checkpoint {
            progress: self.progress.clone(),
            model: state::tensors(&self.network.valid()),
            average: self.average.as_ref().map(state::tensors),
            optimizer: optimizer_bytes(self.optimizer.inner()),
        })?;
        checkpoints.prune(self.recipe.checkpoint.keep_last)?;
        self.session.observer.checkpoint(&path);
        self.last_checkpoint = Some(path);
        Ok(())
    }

    fn finish(self) -> Result<Outcome, TrainError> {
        if self.clock.n_images == 0
            && let Ok(result) = self.run.result()
        {
            // Resumed when nothing was left to do: the result stands.
            return Ok(Outcome::Complete(result));
        }
        let checkpoints = self.run.checkpoints();
        let test = self.progress.test.expect("invariant: the last epoch is evaluated");
        let best = checkpoints.best()?.map(|checkpoint| {
            checkpoints.load(&checkpoint).map(|loaded| BestCheckpoint {
                checkpoint,
                top1: loaded.progress.test.map_or(0.0, |scores| scores.top1),
            })
        });
        let result = RunResult {
            recipe: self.recipe.name.clone(),
            top1: test.top1,
            top5: test.top5,
            loss: test.loss,
            best: best.transpose()?,
            epochs: self.recipe.train.epochs,
            seconds: self.progress.seconds,
            images_per_second: self.clock.images_per_second(),
            device: self.session.device_name.clone(),
            seed: self.recipe.seed,
            run_dir: self.run.path().into(),
        };
        self.run.write(RESULT, to_json(&result).as_bytes())?;
        Ok(Outcome::Complete(result))
    }
}

/// A copy of `network` whose forward pass trains nothing: BatchNorm works as in training, but the copy shares no
/// running statistics with the original and records no gradients.
fn detached(network: &Network) -> Network {
    network.valid().train().no_grad()
}

/// Scores of `network`, which is in validation mode, on all images of `loader`.
pub(crate) fn evaluate(network: &Network, loader: &Loader, device: &Device) -> Scores {
    let mut tally = Tally::default();
    for mut batch in loader.epoch(0, 0) {
        let logits = network.forward(images(&mut batch, device)).into_data();
        let logits: Vec<f32> = logits.iter::<f32>().collect();
        tally.add(&logits, &batch.labels, mean_cross_entropy(&logits, &batch.labels));
    }
    tally.scores()
}

/// Mean over the rows of `logits` of the cross entropy with `labels`, in double precision.
fn mean_cross_entropy(logits: &[f32], labels: &[i64]) -> f64 {
    let n_classes = logits.len() / labels.len();
    let losses = logits.chunks_exact(n_classes).zip(labels).map(|(row, &label)| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        sum.ln() - f64::from(row[label as usize] - max)
    });
    losses.sum::<f64>() / labels.len() as f64
}

/// Means of the learned and running parameters of all quantizers, by layer path and name.
fn watched(network: &Network) -> BTreeMap<String, f32> {
    let mut values = BTreeMap::new();
    network.valid().for_each_layer(&mut |path, mut layer| {
        let weight = layer.weight_quantizer().and_then(|quantizer| quantizer.watched());
        let input = layer.input_quantizer().and_then(|quantizer| quantizer.watched());
        for (name, value) in weight.into_iter().chain(input) {
            values.insert(format!("{path}.{name}"), value.mean().into_scalar::<f32>());
        }
    });
    values
}

fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("invariant: metrics are plain data")
}
