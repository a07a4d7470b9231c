//! One step of all networks: what of them is quantized, what they make of a batch, their losses, and the update. Nothing here
//! reads or writes a file.

use std::collections::BTreeMap;
use std::time::Instant;

use burn::tensor::{Device, Tensor, Transaction};
use lowbit_core::{Precision, Purpose, stream};
use lowbit_data::Batch;
use lowbit_models::Features;
use lowbit_strategies::loss::{cross_entropy, target_probabilities};

use crate::data::tensor;
use crate::error::{Divergence, TrainError};
use crate::evaluation::mean_cross_entropy;
use crate::experiment::{Experiment, Timeline};
use crate::learner::{BatchGradients, GradientExchange, Trainee, UpdateSettings};
use crate::metrics::{Tally, TimeParts};
use crate::recipe::Recipe;
use crate::schedule::learning_rate;
use crate::state;
use crate::strategy::{
    Loss, Moment, Output, Outputs, Role, TOTAL, compose_loss, compose_perturbation, compose_selections,
};
use crate::world::{Sum, Wire, World};

/// A step of a training.
pub(crate) struct Step<'a> {
    pub(crate) experiment: &'a Experiment,
    pub(crate) timeline: &'a Timeline,
    /// Its phase.
    pub(crate) phase: usize,
    /// Its number, from 0.
    pub(crate) step: u64,
    /// The device of the networks, with autodiff.
    pub(crate) device: &'a Device,
    /// The processes that make it together, each with a part of the batch.
    pub(crate) world: &'a World,
    /// Images of the whole batch.
    pub(crate) n_images: usize,
    /// Whether this process is to stop, which all are told.
    pub(crate) is_stopped: bool,
}

/// What a step has computed.
pub(crate) struct Stepped {
    /// The parts of each network's loss and their `total`; `None` if it is not trained.
    pub(crate) losses: Vec<Option<BTreeMap<String, f64>>>,
    /// What the deployed network makes of all images.
    pub(crate) tally: Tally,
    /// Whether any process is to stop.
    pub(crate) is_stopped: bool,
    /// The share of the deployed network's layers that was quantized, if any strategy decided.
    pub(crate) quantized_share: Option<f64>,
    /// What it spent its time on.
    pub(crate) times: TimeParts,
    /// What strategies have measured of the deployed network.
    pub(crate) measures: BTreeMap<String, f64>,
}

impl Step<'_> {
    /// Makes the step with `batch`, the part of this process.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] if a loss or a norm of gradients is not finite; [`TrainError::Strategy`] if a strategy gives an answer
    /// that no step can go by; [`TrainError::World`] if another process is gone.
    pub(crate) fn run(&self, trainees: &mut [Trainee], batch: Batch) -> Result<Stepped, TrainError> {
        let train = &self.experiment.phases[self.phase].train;
        let (step, steps_per_epoch) = (self.step, self.timeline.steps_per_epoch);
        let (mut times, mut lap) = (TimeParts::default(), Lap::begin());
        let quantized_share = self.select(trainees)?;
        let Self { world, n_images, .. } = *self;
        let labels = batch.labels.clone();
        let mut parts = Vec::new();
        let mut gradients: Vec<BatchGradients> = trainees.iter().map(|_| BatchGradients::new()).collect();
        let mut exchanges: Vec<Option<GradientExchange>> = trainees.iter().map(|_| None).collect();
        let mut statistics = None;
        let division =
            Division { rank: world.rank(), n_ranks: world.size(), n_images, n_parts: train.accumulate };
        let own_parts = division.parts_of(batch);
        let n_parts = own_parts.len();
        for (i, (number, mut part)) in own_parts.into_iter().enumerate() {
            let is_last = i + 1 == n_parts;
            self.quantize_gradients(trainees, number);
            let n_classes = self.experiment.recipe.data.n_classes();
            let targets = target_probabilities(&part.labels, n_classes, train.label_smoothing, self.device);
            let share = part.labels.len() as f64 / n_images as f64;
            let looks_beside = self.experiment.strategies.iter().any(|strategy| strategy.looks_beside());
            if looks_beside {
                let students = trainees.iter_mut().filter(|trainee| trainee.spec.role == Role::Student);
                students.for_each(Trainee::watch_quantized);
            }
            let images = tensor(&mut part, self.device);
            let outputs: Vec<Output> =
                trainees.iter().map(|trainee| trainee.output(images.clone())).collect();
            let known = (targets, part.labels);
            let losses = self.losses(trainees, &outputs, &known);
            let logits = outputs[0].features.logits.clone();
            times.forward += lap.seconds();
            if is_last && !world.is_alone() {
                // They have moved for the last time, and come together while the gradients are computed.
                statistics = Some(self.start_statistics(trainees, labels.len()));
            }
            let beside = looks_beside.then_some(Beside { images, known, outputs });
            for (i, (loss, sum)) in losses.iter().zip(&mut gradients).enumerate() {
                let Some(loss) = loss else { continue };
                match beside.as_ref().filter(|_| trainees[i].spec.role == Role::Student) {
                    Some(beside) => self.add_gradients_beside(trainees, i, beside, &loss.total, (sum, share)),
                    None => trainees[i].add_gradients(sum, loss.total.clone(), share),
                }
                if is_last && !world.is_alone() {
                    // While the next network's gradients are computed.
                    exchanges[i] = Some(trainees[i].start_exchange(world, sum));
                }
            }
            if beside.is_some() {
                trainees.iter_mut().for_each(Trainee::unwatch_quantized);
            }
            parts.push(Part { share, losses, logits });
            times.backward += lap.seconds();
        }
        if let Some(statistics) = statistics {
            let mut values = statistics.wait()?.into_iter();
            let trained = trainees.iter_mut().filter(|trainee| trainee.spec.is_trained);
            trained.for_each(|trainee| trainee.set_statistics(&mut values));
        }
        let moment = self.moment();
        let phase_step = moment.phase_step;
        let mut updates = Vec::new();
        let exchange_time = |seconds: f64| if world.is_alone() { 0.0 } else { seconds };
        times.exchange += exchange_time(lap.seconds());
        for ((trainee, mut gradients), exchange) in trainees.iter_mut().zip(gradients).zip(exchanges) {
            times.update += lap.seconds();
            let gradients = match exchange {
                Some(exchange) => exchange.finish()?,
                None => gradients.grads(),
            };
            times.exchange += exchange_time(lap.seconds());
            let (train, step) = match trainee.spec.trains_throughout {
                true => (&self.experiment.whole, step),
                false => (train, phase_step),
            };
            let settings = UpdateSettings {
                learning_rate: learning_rate(train, steps_per_epoch, step),
                ema_decay: train.ema_decay_at(step),
                strategies: &self.experiment.strategies,
                moment: &moment,
            };
            let is_trained = trainee.spec.is_trained;
            updates.push(is_trained.then(|| trainee.update(&settings, gradients)));
            trainee.select(None);
        }
        times.update += lap.seconds();
        // The one read from the device in a step, unless a strategy has read something to decide.
        let norms = updates.iter().flatten().filter_map(|update| update.norm.as_ref());
        let scalars = parts.iter().flat_map(|part| part.losses.iter().flatten().flat_map(StepLoss::tensors));
        // Gradients are without autodiff, and a read is of one kind.
        let measures = updates[0].iter().flat_map(|update| &update.measures);
        let scalars = scalars.chain(norms.map(|norm| Tensor::from_inner(norm.norm.clone())));
        let scalars = scalars.chain(measures.map(|measure| Tensor::from_inner(measure.value.clone())));
        let read = parts.iter().map(|part| part.logits.clone());
        let read = read.fold(Transaction::default(), Transaction::register);
        let mut read = scalars.fold(read, Transaction::register).execute().into_iter();
        let mut logits = Vec::new();
        for _ in &parts {
            let of_part = read.next().expect("invariant: the logits were registered");
            logits.extend(of_part.iter::<f32>());
        }
        let mut next =
            || read.next().and_then(|value| value.iter::<f32>().next()).map_or(f64::NAN, f64::from);
        let mut values: Vec<Option<BTreeMap<String, f64>>> = vec![None; trainees.len()];
        for part in &parts {
            for (values, loss) in values.iter_mut().zip(&part.losses) {
                if let Some(loss) = loss {
                    let of_part = loss.values(&mut next);
                    let values = values.get_or_insert_default();
                    for (name, value) in of_part {
                        *values.entry(name).or_insert(0.0) += part.share * value;
                    }
                }
            }
        }
        times.reading += lap.seconds();
        let mut tally = Tally::default();
        tally.add(&logits, &labels, mean_cross_entropy(&logits, &labels));
        let is_stopped = self.tell(&mut values, &mut tally)?;
        times.exchange += exchange_time(lap.seconds());
        for (network, (values, update)) in values.iter().zip(&updates).enumerate() {
            let (Some(values), Some(update)) = (values, update) else { continue };
            let loss = values[TOTAL];
            if !loss.is_finite() {
                let place = state::first_non_finite(&update.network_before());
                let what = Divergence::Loss(loss);
                return Err(self.non_finite(NotFinite { what, network, place }));
            }
        }
        for (network, update) in updates.iter().enumerate() {
            let Some(norm) = update.as_ref().and_then(|update| update.norm.as_ref()) else { continue };
            let value = next();
            if !value.is_finite() {
                let place = norm.culprit().map(|path| format!("the gradient of {}", without_module(&path)));
                let what = Divergence::GradientNorm(value);
                return Err(self.non_finite(NotFinite { what, network, place }));
            }
        }
        times.reading += lap.seconds();
        let measures = updates[0].iter().flat_map(|update| &update.measures);
        let measures = measures.map(|measure| (measure.name.into(), next())).collect();
        Ok(Stepped { losses: values, tally, is_stopped, quantized_share, times, measures })
    }

    /// Begins to average the running statistics of all networks that are trained, which this process has moved by `n_own` images.
    fn start_statistics(&self, trainees: &[Trainee], n_own: usize) -> Sum {
        let share = n_own as f32 / self.n_images as f32;
        let trained = trainees.iter().filter(|trainee| trainee.spec.is_trained);
        let own = trained.flat_map(Trainee::statistics).map(|value| value * share).collect();
        // A small share of the step moves them: 16 bits would hold them where they are.
        self.world.start_sum(own, Wire::Fp32)
    }

    /// Adds up what all processes have found. Returns whether one of them is to stop.
    fn tell(
        &self,
        values: &mut [Option<BTreeMap<String, f64>>],
        tally: &mut Tally,
    ) -> Result<bool, TrainError> {
        if self.world.is_alone() {
            return Ok(self.is_stopped);
        }
        let Tally { n_images, n_top1, n_top5, loss_sum } = *tally;
        let mut own = vec![f64::from(u8::from(self.is_stopped))];
        own.extend([n_images, n_top1, n_top5].map(|n| n as f64));
        own.push(loss_sum);
        own.extend(values.iter().flatten().flat_map(BTreeMap::values));
        let all = self.world.gather_numbers(&own)?;
        let mut sums = (0..own.len()).map(|i| all.iter().map(|of_rank| of_rank[i]).sum::<f64>());
        let mut next = || sums.next().expect("invariant: all have told as many numbers");
        let is_stopped = next() > 0.0;
        *tally =
            Tally { n_images: next() as u64, n_top1: next() as u64, n_top5: next() as u64, loss_sum: next() };
        values.iter_mut().flatten().flat_map(BTreeMap::values_mut).for_each(|value| *value = next());
        Ok(is_stopped)
    }

    /// Where the training stands.
    fn moment(&self) -> Moment {
        let start = self.timeline.start(self.phase);
        Moment {
            seed: self.experiment.recipe.seed,
            step: self.step,
            phase_step: self.step - start,
            phase_steps: self.timeline.start(self.phase + 1) - start,
        }
    }

    /// Adds the gradients of student `index` where strategies have them taken: beside its quantized weights, by those of the `loss` of
    /// a first pass. The outputs of the other networks are those of that pass.
    fn add_gradients_beside(
        &self,
        trainees: &[Trainee],
        index: usize,
        Beside { images, known, outputs }: &Beside,
        loss: &Tensor<1>,
        (sum, share): (&mut BatchGradients, f64),
    ) {
        let gradients = trainees[index].gradients_by_quantized(loss);
        // A phase in full precision has no quantized weights; its pass is made again as it was.
        let perturbation = compose_perturbation(&self.experiment.strategies, &gradients).unwrap_or_default();
        let copy = trainees[index].beside(perturbation);
        let mut outputs: Vec<Output> = outputs.iter().map(detached).collect();
        outputs[index] = copy.output(images.clone());
        let loss = self.loss(&copy, index, &outputs, known).total();
        copy.add_gradients(sum, loss, share);
    }

    /// Lets the strategies decide which part of each student is quantized in this step. Returns the share of the deployed
    /// network's layers that is, if any strategy decided.
    fn select(&self, trainees: &mut [Trainee]) -> Result<Option<f64>, TrainError> {
        let moment = self.moment();
        let with_errors = self.experiment.strategies.iter().any(|strategy| strategy.needs_errors());
        let mut deployed_share = None;
        for (index, trainee) in trainees.iter_mut().enumerate() {
            if trainee.spec.role != Role::Student {
                continue;
            }
            let layers = trainee.quantized_layers(with_errors);
            let selections = compose_selections(&self.experiment.strategies, &moment, &layers)?;
            let is_decided = selections.is_some();
            let share = trainee.select(selections);
            if index == 0 && is_decided {
                deployed_share = Some(share);
            }
        }
        Ok(deployed_share)
    }

    /// Lets the gradients of the students' quantized layers be rounded, with noise of this step and part of its batch.
    fn quantize_gradients(&self, trainees: &mut [Trainee], part: usize) {
        let Recipe { seed, quantization, .. } = &self.experiment.recipe;
        let Precision::Bits(bits) = quantization.grad_bits else { return };
        let n_networks = trainees.len();
        for (index, trainee) in trainees.iter_mut().enumerate() {
            if trainee.spec.role == Role::Student {
                let of = part * n_networks + index;
                let mut keys = stream(*seed, Purpose::GradientNoise, of as u64, self.step);
                trainee.network_mut().quantize_gradients(Some(bits), &mut keys);
            }
        }
    }

    /// The loss of each network for a batch, `None` if it is not trained.
    fn losses(&self, trainees: &[Trainee], outputs: &[Output], known: &Known) -> Vec<Option<StepLoss>> {
        let of = |(i, trainee): (usize, &Trainee)| {
            trainee.spec.is_trained.then(|| StepLoss::of(self.loss(trainee, i, outputs, known)))
        };
        trainees.iter().enumerate().map(of).collect()
    }

    /// The loss of the network `trainee`, whose output is the one at `index`.
    fn loss(&self, trainee: &Trainee, index: usize, outputs: &[Output], (targets, known): &Known) -> Loss {
        let labels = match self.experiment.phases[self.phase].train.label_smoothing {
            0.0 => "labels",
            _ => "smoothed_labels",
        };
        let (output, strategies) = (&outputs[index], &self.experiment.strategies);
        let own = Loss::new(labels, cross_entropy(output.features.logits.clone(), targets.clone()));
        let composed = compose_loss(strategies, output, &Outputs { networks: outputs, labels: known }, own);
        trainee.penalize(strategies, &self.moment(), composed)
    }

    fn non_finite(&self, found: NotFinite) -> TrainError {
        found.after(self.step + 1, self.experiment, self.timeline)
    }
}

/// Time from one moment to the next.
struct Lap(Instant);

impl Lap {
    fn begin() -> Self {
        Self(Instant::now())
    }

    /// Seconds since it was asked last.
    fn seconds(&mut self) -> f64 {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.0, now)).as_secs_f64()
    }
}

/// A network that is not finite.
pub(crate) struct NotFinite {
    pub(crate) what: Divergence,
    /// Which of the networks.
    pub(crate) network: usize,
    /// The first tensor that is not; `None` if it shows in what the network makes of images.
    pub(crate) place: Option<String>,
}

impl NotFinite {
    /// The error that ends the training after so many steps.
    pub(crate) fn after(self, step: u64, experiment: &Experiment, timeline: &Timeline) -> TrainError {
        let Self { what, network, place } = self;
        let networks = &experiment.networks;
        let prefix = if networks.len() > 1 { format!("{} ", networks[network].name) } else { String::new() };
        TrainError::NonFinite {
            what,
            step,
            epoch: (step - 1) / timeline.steps_per_epoch + 1,
            place: format!("{prefix}{}", place.as_deref().unwrap_or("the logits")),
            last_checkpoint: None,
        }
    }
}

/// Target probabilities of images, `[batch, n_classes]`, and their labels.
type Known = (Tensor<2>, Vec<i64>);

/// What a second pass over a part of a batch needs.
struct Beside {
    images: Tensor<4>,
    known: Known,
    /// What all networks made of it in the first pass.
    outputs: Vec<Output>,
}

/// The same values without gradient.
fn detached(output: &Output) -> Output {
    let mut output = output.clone();
    let Features { logits, taps } = output.features;
    let constant = |maps: Vec<Tensor<4>>| maps.into_iter().map(Tensor::detach).collect();
    output.features = Features { logits: logits.detach(), taps: constant(taps) };
    output.adapted_taps = constant(output.adapted_taps);
    output
}

/// What of a batch was computed at once.
struct Part {
    /// Of its images.
    share: f64,
    losses: Vec<Option<StepLoss>>,
    logits: Tensor<2>,
}

/// How a batch is divided: among processes, and by each in parts that it computes one after the other. The parts are those that one
/// process alone would make of it, whose numbers of images differ by one at most.
#[derive(Clone, Copy)]
struct Division {
    rank: usize,
    n_ranks: usize,
    /// Of the whole batch.
    n_images: usize,
    /// Of each process, at most.
    n_parts: usize,
}

impl Division {
    /// The parts that the images of this process are divided in, each with its number among those of all.
    fn parts_of(self, batch: Batch) -> Vec<(usize, Batch)> {
        let Self { rank, n_ranks, n_images, n_parts } = self;
        let n = (n_parts * n_ranks).min(n_images).max(1);
        let own = rank * n / n_ranks..(rank + 1) * n / n_ranks;
        if own.len() == 1 {
            return vec![(own.start, batch)];
        }
        let Batch { images, labels, shape: [_, channels, height, width], step } = batch;
        let (n_values, start) = (channels * height * width, own.start * n_images / n);
        let part = |i: usize| {
            let range = i * n_images / n - start..(i + 1) * n_images / n - start;
            let part = Batch {
                images: images[range.start * n_values..range.end * n_values].to_vec(),
                labels: labels[range.clone()].to_vec(),
                shape: [range.len(), channels, height, width],
                step,
            };
            (i, part)
        };
        own.map(part).collect()
    }
}

/// The loss of one network in a step.
struct StepLoss {
    loss: Loss,
    total: Tensor<1>,
}

impl StepLoss {
    fn of(loss: Loss) -> Self {
        Self { total: loss.total(), loss }
    }

    /// The parts, and their sum.
    fn tensors(&self) -> Vec<Tensor<1>> {
        let parts = self.loss.parts().iter().map(|part| part.value.clone());
        parts.chain([self.total.clone()]).collect()
    }

    /// The values of [`tensors`](Self::tensors), which `next` gives one after the other, by name.
    fn values(&self, next: &mut impl FnMut() -> f64) -> BTreeMap<String, f64> {
        let names = self.loss.parts().iter().map(|part| part.name).chain([TOTAL]);
        names.map(|name| (name.into(), next())).collect()
    }
}

/// A path in a network without the name of the network in what is trained.
fn without_module(path: &str) -> &str {
    path.strip_prefix("network.").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use lowbit_models::Network;
    use lowbit_quantizers::{GradientQuantizer, QuantizedNetwork};

    use super::*;

    /// A step with a batch of 6 images.
    fn at<'a>(experiment: &'a Experiment, timeline: &'a Timeline, step: u64, device: &'a Device) -> Step<'a> {
        const ALONE: &World = &World::ALONE;
        Step { experiment, timeline, phase: 0, step, device, world: ALONE, n_images: 6, is_stopped: false }
    }

    /// A batch is divided over processes as one alone divides it in parts.
    #[test]
    fn ranks_have_the_parts_that_one_process_makes() {
        let whole = |n: usize| Batch {
            images: (0..n).map(|i| i as f32).collect(),
            labels: (0..n as i64).collect(),
            shape: [n, 1, 1, 1],
            step: 3,
        };
        for (n_images, n_ranks, n_parts) in [(8, 2, 1), (7, 2, 2), (17, 3, 2), (5, 5, 1), (64, 4, 3)] {
            let alone = Division { rank: 0, n_ranks: 1, n_images, n_parts: n_ranks * n_parts };
            let expected = alone.parts_of(whole(n_images));
            assert_eq!(expected.len(), n_ranks * n_parts);
            let of_rank = |rank: usize| {
                let own = rank * n_images / n_ranks..(rank + 1) * n_images / n_ranks;
                let mut batch = whole(n_images);
                batch.images = batch.images[own.clone()].to_vec();
                batch.labels = batch.labels[own.clone()].to_vec();
                batch.shape[0] = own.len();
                Division { rank, n_ranks, n_images, n_parts }.parts_of(batch)
            };
            let together: Vec<(usize, Batch)> = (0..n_ranks).flat_map(of_rank).collect();
            assert_eq!(together, expected, "{n_images} images, {n_ranks} ranks, {n_parts} parts");
        }
    }

    /// A descent by the gradients of two halves together is the mean of the descents by each alone: BatchNorm sees each half.
    #[test]
    fn gradients_of_parts_are_added_up() {
        let device = Device::default().autodiff();
        let after = |batch: Batch, accumulate: usize| {
            let changes = [
                format!("train.accumulate={accumulate}"),
                "train.optimizer={kind='sgd', momentum=0.0, nesterov=false}".into(),
            ];
            let recipe = Recipe::embedded("digits-preresnet8-w2a2", &changes).unwrap();
            let experiment = Experiment::of_recipe(&recipe).unwrap();
            let timeline = experiment.timeline(4);
            let new = |spec| Trainee::new(spec, &recipe, &experiment.phases[0], &device).unwrap();
            let mut trainees: Vec<Trainee> = experiment.networks.iter().cloned().map(new).collect();
            let n_images = batch.labels.len();
            let step = at(&experiment, &timeline, 9, &device);
            let stepped = Step { n_images, ..step }.run(&mut trainees, batch).unwrap();
            let weights: Vec<f32> = state::tensors(&trainees[0].valid())
                .into_iter()
                .filter(|(path, _)| path.ends_with(".weight") || path.ends_with(".gamma"))
                .flat_map(|(_, values)| values.iter::<f32>().collect::<Vec<_>>())
                .collect();
            (weights, stepped)
        };
        let images: Vec<f32> = (0..7 * 64).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
        let batch = Batch { images, labels: (0..7).collect(), shape: [7, 1, 8, 8], step: 9 };
        let division = Division { rank: 0, n_ranks: 1, n_images: 7, n_parts: 2 };
        let parts: Vec<Batch> = division.parts_of(batch.clone()).into_iter().map(|(_, part)| part).collect();
        assert_eq!(parts.iter().map(|part| part.labels.len()).collect::<Vec<_>>(), [3, 4]);
        let (together, stepped) = after(batch, 2);
        let [(one, of_one), (other, of_other)] = [0, 1].map(|i| after(parts[i].clone(), 1));
        let total = |stepped: &Stepped| stepped.losses[0].as_ref().unwrap()[TOTAL];
        let mean = (3.0 * total(&of_one) + 4.0 * total(&of_other)) / 7.0;
        assert!((total(&stepped) - mean).abs() < 1e-6, "{} and {mean}", total(&stepped));
        let mut tallies = of_one.tally;
        tallies += of_other.tally;
        assert_eq!(stepped.tally.n_images, 7);
        assert_eq!((stepped.tally.n_top1, stepped.tally.n_top5), (tallies.n_top1, tallies.n_top5));
        assert!((stepped.tally.loss_sum - tallies.loss_sum).abs() < 1e-9);
        let mut largest = 0.0f32;
        for ((together, one), other) in together.iter().zip(&one).zip(&other) {
            let mean = (3.0 * one + 4.0 * other) / 7.0;
            assert!((together - mean).abs() < 1e-5, "{together} instead of {mean}");
            largest = largest.max((one - other).abs());
        }
        assert!(largest > 1e-3, "the halves have one gradient");
    }

    /// A step beside the weights is one of another loss: near them it is the step at them, further away it is not. It moves the running
    /// statistics once, and what is recorded is of the first pass. (Inputs are in full precision, so that no code of them turns on the
    /// last digit of a sum.)
    #[test]
    fn gradients_are_taken_beside_the_weights() {
        let device = Device::default().autodiff();
        let after = |option: &[&str]| {
            let own = ["quantization.method='lsq'", "quantization.act_bits='fp32'", "strategy.joint={}"];
            let changes = [&own[..], option].concat();
            let changes: Vec<String> = changes.into_iter().map(Into::into).collect();
            let recipe = Recipe::embedded("digits-preresnet8-w2a2", &changes).unwrap();
            let experiment = Experiment::of_recipe(&recipe).unwrap();
            let timeline = experiment.timeline(4);
            let new = |spec| Trainee::new(spec, &recipe, &experiment.phases[0], &device).unwrap();
            let mut trainees: Vec<Trainee> = experiment.networks.iter().cloned().map(new).collect();
            let step = at(&experiment, &timeline, 9, &device);
            let images: Vec<f32> = (0..6 * 64).map(|i| ((i * 37 % 101) as f32 / 50.0) - 1.0).collect();
            let batch = Batch { images, labels: (0..6).collect(), shape: [6, 1, 8, 8], step: 9 };
            let stepped = step.run(&mut trainees, batch).unwrap();
            assert!(trainees[0].valid().layers().all(|(_, layer)| layer.perturbation().is_none()));
            let networks = [0, 1].map(|i| state::tensors(&trainees[i].valid()));
            let of = |network: usize, name: &str| -> Vec<f32> {
                let tensors = networks[network].iter().filter(|(path, _)| path.ends_with(name));
                tensors.flat_map(|(_, values)| values.iter::<f32>().collect::<Vec<_>>()).collect()
            };
            let statistics = [of(0, "running_mean"), of(0, "running_var")].concat();
            (of(0, ".weight"), statistics, of(1, ".weight"), stepped.losses)
        };
        let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let (weights, statistics, teacher, losses) = after(&[]);
        let near = after(&["strategy.sharpness={radius=1e-7}"]);
        let far = after(&["strategy.sharpness={radius=2.0}"]);
        assert!(distance(&weights, &near.0) < 1e-4, "{}", distance(&weights, &near.0));
        assert!(distance(&weights, &far.0) > 1e-3, "{}", distance(&weights, &far.0));
        for other in [near, far] {
            assert!(distance(&statistics, &other.1) < 1e-5, "statistics of the first pass");
            assert!(distance(&teacher, &other.2) < 1e-5, "a teacher looks nowhere");
            let total = |losses: &[Option<BTreeMap<String, f64>>]| losses[0].as_ref().unwrap()[TOTAL];
            assert!((total(&losses) - total(&other.3)).abs() < 1e-4);
        }
    }

    /// The noise of a step: of the seed, the step, the network and the layer, and of nothing else.
    #[test]
    fn gradients_of_students_have_noise_of_their_own() {
        let device = Device::default().autodiff();
        let quantizers = |changes: &[&str], step: u64| -> Vec<Vec<Option<GradientQuantizer>>> {
            let joint = "strategy.joint={teacher={}, students=[{weight_bits=2, act_bits=2}]}";
            let changes = changes.iter().chain([&joint]).map(ToString::to_string).collect::<Vec<_>>();
            let recipe = Recipe::embedded("digits-preresnet8-w2a2", &changes).unwrap();
            let experiment = Experiment::of_recipe(&recipe).unwrap();
            let timeline = experiment.timeline(4);
            let phase = &experiment.phases[0];
            let new = |spec| Trainee::new(spec, &recipe, phase, &device).unwrap();
            let mut trainees: Vec<Trainee> = experiment.networks.iter().cloned().map(new).collect();
            let step = at(&experiment, &timeline, step, &device);
            step.quantize_gradients(&mut trainees, 0);
            let of_network = |network: &Network| -> Vec<_> {
                network.layers().map(|(_, layer)| layer.gradient_quantizer()).collect()
            };
            trainees.iter_mut().map(|trainee| of_network(trainee.network_mut())).collect()
        };
        let all = quantizers(&["quantization.grad_bits=8"], 5);
        assert_eq!(all, quantizers(&["quantization.grad_bits=8"], 5));
        let n = all[0].len();
        // Of students all layers but the first and the last; of the teacher none.
        let are_there =
            |network: &[Option<GradientQuantizer>]| network.iter().filter(|q| q.is_some()).count();
        let mut counts: Vec<usize> = all.iter().map(|network| are_there(network)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [0, n - 2, n - 2]);
        let others = [
            quantizers(&["quantization.grad_bits=8"], 6),
            quantizers(&["quantization.grad_bits=8", "seed=1"], 5),
        ];
        let mut seen: Vec<GradientQuantizer> = Vec::new();
        for quantizer in [all].into_iter().chain(others).flatten().flatten().flatten() {
            assert!(!seen.contains(&quantizer), "{quantizer:?} is there twice");
            seen.push(quantizer);
        }
        assert_eq!(seen.len(), 3 * 2 * (n - 2));
        assert!(quantizers(&[], 5).iter().flatten().all(Option::is_none));
    }
}
