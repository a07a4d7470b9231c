//! A network in training: its weights, its optimizer, its moving average, and how it goes from one phase to the next.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Gradients, Tensor, TensorData, Transaction};
use lowbit_core::{BitWidth, Precision, Purpose, stream};
use lowbit_data::DataError;
use lowbit_models::{Features, Network, Plan};
use lowbit_quantizers::{
    LayerMut, LayerQuantization, LayerRef, QuantConv2d, QuantConv2dConfig, QuantizedNetwork, QuantizerError,
    Selection,
};

use crate::checkpoint::{ADAPTERS, CheckpointError, NetworkState, OPTIMIZER};
use crate::error::TrainError;
use crate::experiment::Experiment;
use crate::image_set::RunData;
use crate::initial::{Initial, layer_quantizers};
use crate::networks::PlacedSpec;
use crate::optimizer::{GradientNorm, Optimizer};
use crate::optimizer_file::{MayLack, OptimizerFile, optimizer_bytes};
use crate::progress::{Pending, Progress};
use crate::recipe::Recipe;
use crate::state::{self, NamedTensors, StateError};
use crate::strategy::{
    Init, LayerWeights, Loss, LossPart, Measure, Moment, NetworkSpec, Notes, OptimizerState, Output, Phase,
    QuantizedLayer, QuantizerState, Role, STUDENT, Strategy, UpdatedLayer, compose_weight_rate,
};
use crate::weights::{InitialWeights, NewClassifier};
use crate::world::{Sum, World, WorldError};

/// A network with what is trained along with it.
#[derive(Module, Debug)]
pub(crate) struct Learner {
    pub(crate) network: Network,
    /// 1x1 convolutions that bring a feature map to the teacher's channels.
    adapters: Vec<Option<QuantConv2d>>,
}

impl PlacedSpec {
    /// Name of the file with its optimizer's state in a checkpoint.
    fn optimizer_file(&self) -> String {
        match self.name.as_str() {
            STUDENT => OPTIMIZER.into(),
            name => format!("{name}.{OPTIMIZER}"),
        }
    }

    /// The network at the precision of `phase`, with its initial weights.
    fn build(&self, recipe: &Recipe, phase: &Phase, device: &Device) -> Result<(Learner, Plan), TrainError> {
        let (input, n_classes) = (recipe.data.input_shape(), recipe.data.n_classes());
        let policy = self.policy(recipe, phase);
        let mut model = self.model.init(input, n_classes, &policy, self.seed, device)?;
        let compute = self.train(recipe, phase).compute;
        model.network.set_compute(compute);
        if self.taps_activations {
            model.network.tap_activations();
        }
        let adapter = |(tap, channels): (usize, &Option<[usize; 2]>)| {
            channels.map(|channels| {
                let mut rng = stream(self.seed, Purpose::InitialWeights, 1, tap as u64);
                let mut adapter = QuantConv2dConfig::new(channels, 1).init(device, &mut rng)?;
                adapter.compute = compute;
                Ok(adapter)
            })
        };
        let adapters: Result<Vec<Option<QuantConv2d>>, QuantizerError> =
            self.adapted_channels.iter().enumerate().map(adapter).map(Option::transpose).collect();
        let adapters = adapters.expect("invariant: full precision is never refused");
        Ok((state::with_stable_ids(Learner { network: model.network, adapters }), model.plan))
    }

    /// The network alone at the precision of `phase`.
    pub(crate) fn network(
        &self,
        recipe: &Recipe,
        phase: &Phase,
        device: &Device,
    ) -> Result<Network, TrainError> {
        self.build(recipe, phase, device).map(|(learner, _)| learner.network)
    }
}

/// The gradients of the parts of a batch that have been computed, added up.
pub(crate) type BatchGradients = GradientsAccumulator<Learner>;

/// Values that are read from the device and sent at once, at least: 16 MiB. Each time costs the ways of some messages.
const EXCHANGED_AT_ONCE: usize = 1 << 22;

/// Prefixes of the tensors that processes tell one another.
const OF_NETWORK: &str = "network.";
const OF_AVERAGE: &str = "average.";

/// Gradients that are added up over all processes.
pub(crate) struct GradientExchange(Vec<ExchangedPart>);

struct ExchangedPart {
    sum: Sum,
    shapes: Vec<(ParamId, Vec<usize>)>,
    device: Device,
}

impl GradientExchange {
    /// The sums, when they are there.
    ///
    /// # Errors
    /// [`WorldError`] if a process is gone.
    pub(crate) fn finish(self) -> Result<GradientsParams, WorldError> {
        fn register<const D: usize>(
            gradients: &mut GradientsParams,
            id: ParamId,
            tensor: Tensor<1>,
            dims: &[usize],
        ) {
            let dims: [usize; D] = dims.try_into().expect("invariant: it has so many dimensions");
            gradients.register(id, tensor.reshape(dims));
        }
        let mut gradients = GradientsParams::new();
        for ExchangedPart { sum, shapes, device } in self.0 {
            let values = sum.wait()?;
            let mut rest = values.as_slice();
            for (id, dims) in shapes {
                let (of_tensor, others) = rest.split_at(dims.iter().product());
                rest = others;
                let data = TensorData::new(of_tensor.to_vec(), [of_tensor.len()]);
                let tensor = Tensor::<1>::from_data(data, &device);
                match dims.len() {
                    1 => register::<1>(&mut gradients, id, tensor, &dims),
                    2 => register::<2>(&mut gradients, id, tensor, &dims),
                    3 => register::<3>(&mut gradients, id, tensor, &dims),
                    4 => register::<4>(&mut gradients, id, tensor, &dims),
                    n => unreachable!("no parameter has {n} dimensions"),
                }
            }
        }
        Ok(gradients)
    }
}

/// Whether the tensor at `path` follows the images that a process sees: a running statistic of BatchNorm, a range, or LQ-Nets' basis.
fn is_statistic(path: &str) -> bool {
    path.rsplit('.').next().is_some_and(|name| name.starts_with("running_") || name == "level_basis")
}

/// A network in training.
#[derive(Clone)]
pub(crate) struct Trainee {
    pub(crate) spec: PlacedSpec,
    pub(crate) plan: Plan,
    /// Precision of its activations.
    act_bits: Precision,
    learner: Learner,
    /// Moving average of the network, without autodiff.
    average: Option<Network>,
    optimizer: Optimizer,
    /// What strategies keep of it from step to step, by their names.
    notes: BTreeMap<String, Notes>,
}

/// What comes with the weights that a network begins with.
#[derive(Default)]
pub(crate) struct Loaded {
    /// Layers whose input's range is that of the run.
    pub(crate) calibrated: BTreeSet<String>,
    /// What is amiss with them.
    pub(crate) warnings: Vec<String>,
    /// The file that they are of, if no run wrote them.
    pub(crate) file: Option<InitialWeights>,
}

/// A step of one network.
pub(crate) struct Update {
    before: Learner,
    /// The norm of the gradients, if they are clipped.
    pub(crate) norm: Option<GradientNorm>,
    /// What strategies have measured.
    pub(crate) measures: Vec<Measure>,
}

/// What decides an update, besides the gradients.
#[derive(Clone, Copy)]
pub(crate) struct UpdateSettings<'a> {
    pub(crate) learning_rate: f64,
    pub(crate) ema_decay: Option<f64>,
    pub(crate) strategies: &'a [Box<dyn Strategy>],
    pub(crate) moment: &'a Moment,
}

impl Update {
    /// The network before the step, without autodiff.
    pub(crate) fn network_before(&self) -> Network {
        self.before.network.valid()
    }
}

impl Trainee {
    /// The network at the start of a training: with its initial weights, not calibrated.
    pub(crate) fn new(
        spec: PlacedSpec,
        recipe: &Recipe,
        phase: &Phase,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let (learner, plan) = spec.build(recipe, phase, device)?;
        let train = spec.train(recipe, phase);
        let optimizer = Optimizer::new(train, &learner);
        let average = train.ema_decay.map(|_| learner.network.valid());
        let act_bits = spec.act_bits(recipe, phase);
        Ok(Self { spec, plan, act_bits, learner, average, optimizer, notes: BTreeMap::new() })
    }

    /// Loads the weights that the recipe lets the training begin with, if any. Where a layer has the quantizer that it had in
    /// that run, its learned parameters and ranges stay, as between phases.
    pub(crate) fn load_initial_weights(
        &mut self,
        recipe: &Recipe,
        phase: &Phase,
        data: &RunData,
    ) -> Result<Loaded, TrainError> {
        let mut loaded = Loaded::default();
        let Some(init @ Init { path, key }) = &self.spec.init else { return Ok(loaded) };
        let load = || -> Result<(Network, Initial), TrainError> {
            let mut initial = Initial::load(init, &self.spec, &self.learner.network)?;
            let other_model = |source| CheckpointError::OtherModel { path: path.clone(), source };
            let tensors = std::mem::take(&mut initial.tensors);
            let network = self.learner.network.clone();
            Ok((state::load_weights(network, tensors).map_err(other_model)?, initial))
        };
        let (network, initial) =
            load().map_err(|source| TrainError::Init { key, source: Box::new(source) })?;
        self.learner.network = network;
        let mut quantizers = layer_quantizers(&self.spec.model, &self.spec.policy(recipe, phase));
        for (path, mut layer) in self.learner.network.layers_mut() {
            let (old, new) = (initial.quantizers.get(path), quantizers.remove(path));
            let is_kept = |same: fn(&LayerQuantization, &LayerQuantization) -> bool| {
                old.zip(new.as_ref()).is_some_and(|(old, new)| same(old, new))
            };
            let is_same_grid = |old: &LayerQuantization, new: &LayerQuantization| {
                old.weight_method == new.weight_method
                    && old.weight_bits == new.weight_bits
                    && old.weight_granularity == new.weight_granularity
                    && old.standardizes_weights == new.standardizes_weights
            };
            if !is_kept(is_same_grid) {
                layer.calibrate_weights();
            }
            if is_kept(|old, new| old.act_method == new.act_method && old.act_bits == new.act_bits) {
                loaded.calibrated.insert(path.into());
            }
        }
        if self.spec.role == Role::Teacher
            && let Some(other) = initial.other_data(&recipe.data, data)
        {
            loaded.warnings.push(format!("{key}: the teacher was trained on {other}"));
        }
        if let Some(InitialWeights { new_classifier: Some(new), path, .. }) = &initial.file {
            let NewClassifier { layer, file_classes, classes } = new;
            loaded.warnings.push(format!(
                "{key}: {} is for {file_classes} classes, this network for {classes}: all is taken but its classifier {layer}, which \
                 begins anew",
                path.display()
            ));
        }
        loaded.file = initial.file;
        Ok(loaded)
    }

    /// Calibrates the quantizers of the input and gets ready for the first step.
    pub(crate) fn begin(&mut self, is_new: impl Fn(&str) -> bool, calibrate: impl FnOnce(&Network)) {
        self.learner.network.calibrate(is_new, |network| calibrate(&detached(network)));
        self.restart_average();
    }

    /// Goes on to the precision and the settings of `phase`.
    pub(crate) fn enter(
        &mut self,
        recipe: &Recipe,
        phase: &Phase,
        device: &Device,
        calibrate: impl FnOnce(&Network),
    ) -> Result<(), TrainError> {
        if self.spec.trains_throughout {
            // It has no quantizers, and its optimizer and its average go on.
            return Ok(());
        }
        let old_bits = bit_widths(&self.learner.network);
        let (next, plan) = self.spec.build(recipe, phase, device)?;
        let tensors = state::tensors(&self.learner.valid());
        let mut learner = state::load_weights(next, tensors)
            .expect("invariant: a network differs between phases in its quantizers only");
        let mut to_calibrate = Vec::new();
        for (path, mut layer) in learner.network.layers_mut() {
            let rescales = phase.quantizer_state == QuantizerState::Rescaled;
            let (old_weight_bits, old_act_bits) = old_bits[path];
            let weight_bits = layer.weight_quantizer().map(|quantizer| quantizer.bits());
            match (old_weight_bits, layer.weight_quantizer()) {
                _ if old_weight_bits == weight_bits => {}
                (Some(old), Some(quantizer)) if rescales && quantizer.rescales() => quantizer.rescale(old),
                _ => layer.calibrate_weights(),
            }
            match (old_act_bits, layer.input_quantizer()) {
                (_, None) => {}
                (Some(old), Some(quantizer)) if old == quantizer.bits() => {}
                (Some(old), Some(quantizer)) if rescales && quantizer.rescales() => quantizer.rescale(old),
                _ => to_calibrate.push(path.to_string()),
            }
        }
        if !to_calibrate.is_empty() {
            let is_new = |path: &str| to_calibrate.iter().any(|new| new == path);
            learner.network.calibrate(is_new, |network| calibrate(&detached(network)));
        }
        let optimizer = Optimizer::new(&phase.train, &learner);
        self.optimizer = match phase.optimizer_state {
            OptimizerState::Fresh => optimizer,
            OptimizerState::Kept => {
                // Quantizers may be gone, or come with a scale per channel: their state goes with them.
                let kept = OptimizerFile::of(self.optimizer.inner());
                let kept = kept.retain_like(&OptimizerFile::of(&optimizer.after_a_step(&learner)));
                optimizer.with_record(kept.into_record())
            }
        };
        self.learner = learner;
        self.plan = plan;
        self.act_bits = self.spec.act_bits(recipe, phase);
        self.restart_average();
        Ok(())
    }

    /// Lets strategies begin to keep notes of a student, whose phase begins with this learning rate.
    pub(crate) fn begin_notes(&mut self, strategies: &[Box<dyn Strategy>], learning_rate: f64) {
        self.notes = self.fresh_notes(strategies, learning_rate);
    }

    fn fresh_notes(&self, strategies: &[Box<dyn Strategy>], learning_rate: f64) -> BTreeMap<String, Notes> {
        if self.spec.role != Role::Student || !strategies.iter().any(|strategy| strategy.reads_weights()) {
            return BTreeMap::new();
        }
        let layers = quantized_weights(&self.valid());
        let readers = strategies.iter().filter(|strategy| strategy.reads_weights());
        readers
            .map(|strategy| (strategy.name().to_string(), strategy.begin(learning_rate, &layers)))
            .collect()
    }

    /// What the quantized weights of a student add to its loss.
    pub(crate) fn penalize(&self, strategies: &[Box<dyn Strategy>], moment: &Moment, mut loss: Loss) -> Loss {
        let is_asked = self.spec.role == Role::Student && self.spec.is_trained;
        if is_asked && strategies.iter().any(|strategy| strategy.reads_weights()) {
            let layers = quantized_weights(&self.learner.network);
            let readers = strategies.iter().filter(|strategy| strategy.reads_weights());
            for LossPart { name, value } in readers.filter_map(|strategy| strategy.penalty(moment, &layers)) {
                loss = loss.plus(name, value);
            }
        }
        loss
    }

    fn restart_average(&mut self) {
        if self.average.is_some() {
            self.average = Some(self.learner.network.valid());
        }
    }

    /// The layers that have a quantizer, with the error of their weights if `with_errors`.
    pub(crate) fn quantized_layers(&self, with_errors: bool) -> Vec<QuantizedLayer> {
        let mut layers = Vec::new();
        let mut errors = Vec::new();
        for (path, layer) in self.learner.network.layers().filter(|(_, layer)| layer.is_quantized()) {
            // Quantizing all weights once more is worth it only for those who read the error.
            if with_errors && let Some(error) = layer.weight_error() {
                errors.push((layers.len(), error));
            }
            layers.push(QuantizedLayer { path: path.into(), error: None });
        }
        if !errors.is_empty() {
            let (indices, errors): (Vec<usize>, Vec<Tensor<1>>) = errors.into_iter().unzip();
            let errors = Tensor::cat(errors, 0).into_data();
            for (index, error) in indices.into_iter().zip(errors.iter::<f32>()) {
                layers[index].error = Some(f64::from(error));
            }
        }
        layers
    }

    /// Sets which part of each layer that has a quantizer is quantized; without `selections`, all of it. Returns the mean
    /// over these layers of the share of each that is.
    pub(crate) fn select(&mut self, selections: Option<Vec<Selection>>) -> f64 {
        let mut selections = selections.into_iter().flatten();
        let mut shares = Vec::new();
        for (_, mut layer) in self.learner.network.layers_mut() {
            if layer.as_ref().is_quantized() {
                let selection = selections.next().unwrap_or_default();
                shares.push(selection.share(layer.as_ref().weight_shape()[0]));
                layer.select(selection);
            }
        }
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    }

    /// The network in training, for change.
    pub(crate) fn network_mut(&mut self) -> &mut Network {
        &mut self.learner.network
    }

    /// What the network makes of a batch, `[batch, channels, height, width]`. A network that is not trained is asked as
    /// in evaluation, and its output has no gradient.
    fn forward(&self, images: Tensor<4>) -> Features {
        if self.spec.is_trained {
            return self.learner.network.forward_features(images);
        }
        let Features { logits, taps } = self.learner.network.valid().forward_features(images.inner());
        Features {
            logits: Tensor::from_inner(logits),
            taps: taps.into_iter().map(Tensor::from_inner).collect(),
        }
    }

    /// What the network makes of a batch, for strategies.
    pub(crate) fn output(&self, images: Tensor<4>) -> Output {
        let features = self.forward(images);
        let adapters = self.learner.adapters.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        let adapted_taps = features
            .taps
            .iter()
            .zip(adapters)
            .map(|(tap, adapter)| match adapter {
                Some(adapter) => adapter.forward(tap.clone()),
                None => tap.clone(),
            })
            .collect();
        let NetworkSpec { name, role, adapts_to, .. } = self.spec.spec.clone();
        let quantizers = self.learner.network.tap_quantizers();
        let tap_quantizers = quantizers.into_iter().map(Option::<&_>::cloned).collect();
        Output { name, role, features, adapts_to, adapted_taps, act_bits: self.act_bits, tap_quantizers }
    }

    /// Adds to `sum` the gradients of the `loss` of a part of a batch, which has this share of its images.
    pub(crate) fn add_gradients(&self, sum: &mut BatchGradients, loss: Tensor<1>, share: f64) {
        // A whole batch has its gradients as they are.
        let loss = if share < 1.0 { loss * share } else { loss };
        sum.accumulate(&self.learner, GradientsParams::from_grads(loss.backward(), &self.learner));
    }

    /// The gradients of a `loss` by the quantized weights of this network, layer by layer, after they were
    /// [watched](Self::watch_quantized).
    pub(crate) fn gradients_by_quantized(&self, loss: &Tensor<1>) -> Vec<Tensor<2>> {
        let gradients = loss.backward();
        // Of the tensors that were added, not of what a layer's rows are made of: only these keep a gradient.
        fn of<const D: usize>(added: &Option<Tensor<D>>, gradients: &Gradients) -> Option<Tensor<D>> {
            let added = added.as_ref()?;
            Some(added.grad(gradients).unwrap_or_else(|| added.clone().inner().zeros_like()))
        }
        let of_layer = |(_, layer): (&str, LayerRef<'_>)| match layer {
            LayerRef::Conv(conv) => of(&conv.perturbation, &gradients).map(|gradient| gradient.flatten(1, 3)),
            LayerRef::Linear(linear) => of(&linear.perturbation, &gradients),
        };
        self.learner.network.layers().filter_map(of_layer).collect()
    }

    /// Lets the next passes have gradients by the quantized weights.
    pub(crate) fn watch_quantized(&mut self) {
        fn zeros<const D: usize>(weight: &Param<Tensor<D>>) -> Tensor<D> {
            weight.val().inner().zeros_like()
        }
        for (_, layer) in self.learner.network.layers_mut() {
            match layer {
                LayerMut::Conv(conv) if conv.weight_quantizer.is_some() => {
                    conv.perturbation = Some(Tensor::from_inner(zeros(&conv.weight)).require_grad());
                }
                LayerMut::Linear(linear) if linear.weight_quantizer.is_some() => {
                    linear.perturbation = Some(Tensor::from_inner(zeros(&linear.weight)).require_grad());
                }
                LayerMut::Conv(_) | LayerMut::Linear(_) => {}
            }
        }
    }

    /// Lets the next passes be those of the quantized weights themselves.
    pub(crate) fn unwatch_quantized(&mut self) {
        self.learner.network.layers_mut().for_each(|(_, mut layer)| layer.perturb(None));
    }

    /// The same network with something added to its quantized weights, layer by layer. Its passes move no running statistics of
    /// this one.
    pub(crate) fn beside(&self, perturbation: Vec<Tensor<2>>) -> Self {
        let learner = self.learner.valid().train();
        let mut copy = Self { learner, ..self.clone() };
        let mut perturbation = perturbation.into_iter();
        for (_, mut layer) in copy.learner.network.layers_mut() {
            let added = layer.as_ref().weight_quantizer().and_then(|_| perturbation.next());
            layer.perturb(added.map(Tensor::from_inner));
        }
        copy
    }

    /// Begins to add the gradients up over all processes, in parts that are sent while the next are read.
    pub(crate) fn start_exchange(&self, world: &World, gradients: &mut BatchGradients) -> GradientExchange {
        struct Collect<'a> {
            gradients: GradientsParams,
            world: &'a World,
            /// What is not sent yet, and of how many values.
            tensors: Vec<(ParamId, Tensor<1>, Vec<usize>)>,
            n_values: usize,
            begun: Vec<ExchangedPart>,
        }
        impl Collect<'_> {
            fn send(&mut self) {
                let tensors = std::mem::take(&mut self.tensors);
                let n_values = std::mem::take(&mut self.n_values);
                let Some((_, first, _)) = tensors.first() else { return };
                let device = first.device();
                let read = tensors.iter().map(|(_, tensor, _)| tensor.clone());
                let read = read.fold(Transaction::default(), Transaction::register).execute();
                let mut values = Vec::with_capacity(n_values);
                for data in read {
                    match data.as_slice::<f32>() {
                        Ok(of_tensor) => values.extend_from_slice(of_tensor),
                        // A backend may have another type.
                        Err(_) => values.extend(data.iter::<f32>()),
                    }
                }
                let sum = self.world.start_sum(values, self.world.wire());
                let shapes = tensors.into_iter().map(|(id, _, shape)| (id, shape)).collect();
                self.begun.push(ExchangedPart { sum, shapes, device });
            }
        }
        impl ModuleVisitor for Collect<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let Some(gradient) = self.gradients.remove::<D>(param.id) else { return };
                let shape = gradient.dims().to_vec();
                self.n_values += shape.iter().product::<usize>();
                self.tensors.push((param.id, gradient.flatten(0, D - 1), shape));
                if self.n_values >= EXCHANGED_AT_ONCE {
                    self.send();
                }
            }
        }
        let gradients = gradients.grads();
        let mut collect = Collect { gradients, world, tensors: Vec::new(), n_values: 0, begun: Vec::new() };
        self.learner.visit(&mut collect);
        collect.send();
        GradientExchange(collect.begun)
    }

    /// The running statistics of the network, which each process moves by its own images, as one row of values.
    pub(crate) fn statistics(&self) -> Vec<f32> {
        let tensors = state::tensors(&self.valid()).into_iter().filter(|(path, _)| is_statistic(path));
        tensors.flat_map(|(_, data)| data.iter::<f32>().collect::<Vec<_>>()).collect()
    }

    /// Takes the next of `values` for the running statistics.
    pub(crate) fn set_statistics(&mut self, values: &mut impl Iterator<Item = f32>) {
        let network = &self.learner.network;
        let mut tensors = state::tensors(&network.valid());
        tensors.retain(|path, _| is_statistic(path));
        for data in tensors.values_mut() {
            let shape = data.shape().as_slice().to_vec();
            let n = shape.iter().product();
            *data = TensorData::new(values.by_ref().take(n).collect::<Vec<f32>>(), shape);
        }
        // In place: they are shared with all copies.
        state::set_running(network.clone(), tensors);
    }

    /// Tensors of the network and of its moving average, for other processes.
    pub(crate) fn shared_tensors(&self) -> NamedTensors {
        let of = |prefix: &'static str, network: &Network| {
            state::tensors(network).into_iter().map(move |(path, data)| (format!("{prefix}{path}"), data))
        };
        let average = self.average.iter().flat_map(|average| of(OF_AVERAGE, average));
        of(OF_NETWORK, &self.valid()).chain(average).collect()
    }

    /// Takes over those of another process with the same network.
    ///
    /// # Errors
    /// [`StateError`] if the network is not the same.
    pub(crate) fn take_tensors(&mut self, tensors: &NamedTensors) -> Result<(), StateError> {
        let of = |prefix: &str| -> NamedTensors {
            let named = tensors.iter().filter_map(|(path, data)| Some((path.strip_prefix(prefix)?, data)));
            named.map(|(path, data)| (path.to_string(), data.clone())).collect()
        };
        // A fresh copy, as after an estimation of the statistics.
        self.learner.network = state::load(self.learner.network.valid().train(), of(OF_NETWORK))?;
        if let Some(average) = self.average.take() {
            self.average = Some(state::load(average, of(OF_AVERAGE))?);
        }
        Ok(())
    }

    /// One update from the gradients of a batch.
    pub(crate) fn update(&mut self, settings: &UpdateSettings<'_>, gradients: GradientsParams) -> Update {
        let UpdateSettings { learning_rate, ema_decay, strategies, moment } = *settings;
        let rate = learning_rate * self.spec.learning_rate_scale;
        let before = self.learner.clone();
        let weight_rate = compose_weight_rate(strategies, moment, &self.notes);
        self.optimizer.set_weight_rate(weight_rate.map(|rate| rate * self.spec.learning_rate_scale));
        self.learner = self.optimizer.step_by(rate, before.clone(), gradients);
        let measures = self.follow_weights(&before.network, strategies, moment);
        if let (Some(decay), Some(average)) = (ema_decay, self.average.take()) {
            self.average = Some(state::moving_average(average, &self.learner.network.valid(), decay));
        }
        Update { before, norm: self.optimizer.take_norm(), measures }
    }

    /// Lets strategies do what they do to the quantized weights after an update of the network `before`.
    fn follow_weights(
        &mut self,
        before: &Network,
        strategies: &[Box<dyn Strategy>],
        moment: &Moment,
    ) -> Vec<Measure> {
        if self.notes.is_empty() {
            return Vec::new();
        }
        let codes = |network: &Network| -> Vec<Tensor<2>> {
            quantized_weights(&network.valid()).iter().map(LayerWeights::codes).collect()
        };
        let codes_before = codes(before);
        let mut measures = Vec::new();
        for strategy in strategies.iter().filter(|strategy| strategy.reads_weights()) {
            let Some(mut notes) = self.notes.remove(strategy.name()) else { continue };
            let layers = quantized_weights(&self.valid());
            let updated = |(layer, before): (LayerWeights, &Tensor<2>)| {
                let after = layer.codes();
                UpdatedLayer { layer, before: before.clone(), after, instead: None }
            };
            let mut updated: Vec<UpdatedLayer> = layers.into_iter().zip(&codes_before).map(updated).collect();
            measures.extend(strategy.update(moment, &mut updated, &mut notes));
            self.notes.insert(strategy.name().into(), notes);
            let mut instead = updated.into_iter().map(|layer| layer.instead);
            let layers = self.learner.network.layers_mut();
            for (_, mut layer) in layers.filter(|(_, layer)| layer.as_ref().weight_quantizer().is_some()) {
                if let Some(weights) = instead.next().flatten() {
                    layer.set_weights(Tensor::from_inner(weights));
                }
            }
        }
        measures
    }

    /// The network in training, without autodiff.
    pub(crate) fn valid(&self) -> Network {
        self.learner.network.valid()
    }

    /// The network that is evaluated and deployed, without autodiff: the moving average, if there is one.
    pub(crate) fn evaluated_network(&self) -> Network {
        self.average.clone().unwrap_or_else(|| self.valid())
    }

    /// Replaces BatchNorm's running statistics by their mean over `batches` of training images, seen by the network as
    /// it is now.
    ///
    /// # Errors
    /// If there is none of the batches to be had; then all stays as it was.
    pub(crate) fn reestimate_norms(
        &mut self,
        batches: impl Iterator<Item = Result<Tensor<4>, DataError>>,
    ) -> Result<(), DataError> {
        let network = self.evaluated_network();
        let mut probe = detached(&network);
        for (i, images) in batches.enumerate() {
            // The mean of i + 1 values is the mean of the first i, moved by 1 / (i + 1) towards the last.
            probe.norms_mut().for_each(|(_, norm)| norm.momentum = 1.0 / (i + 1) as f64);
            probe.forward(images?);
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
            None => self.learner.network = load(self.learner.network.valid().train()),
        }
        Ok(())
    }

    /// All state, for a checkpoint.
    pub(crate) fn state(&self) -> NetworkState {
        let learner = self.learner.valid();
        let mut model = state::tensors(&learner.network);
        let adapters = state::tensors(&learner.adapters);
        model.extend(adapters.into_iter().map(|(path, tensor)| (format!("{ADAPTERS}.{path}"), tensor)));
        NetworkState {
            name: self.spec.name.clone(),
            model,
            average: self.average.as_ref().map(state::tensors),
            optimizer: optimizer_bytes(self.optimizer.inner()),
            notes: notes_tensors(&self.notes),
        }
    }

    /// Takes over the state of the checkpoint at `path`, made at `progress`.
    pub(crate) fn restore(
        &mut self,
        experiment: &Experiment,
        phase: &Phase,
        progress: &Progress,
        saved: NetworkState,
        path: &Path,
    ) -> Result<(), TrainError> {
        let recipe = &experiment.recipe;
        let other_model = |source| CheckpointError::OtherModel { path: path.into(), source };
        let NetworkState { model, average, optimizer, notes, .. } = saved;
        let tensors = model.into_iter().map(|(path, tensor)| match path.starts_with(ADAPTERS) {
            true => (path, tensor),
            false => (format!("network.{path}"), tensor),
        });
        self.learner = state::load(self.learner.clone(), tensors.collect()).map_err(other_model)?;
        self.average = match (self.average.take(), average) {
            (Some(network), Some(average)) => Some(state::load(network, average).map_err(other_model)?),
            (None, None) => None,
            (Some(_), None) => return Err(other_model(StateError::NoAverage).into()),
            (None, Some(_)) => return Err(other_model(StateError::ExtraAverage).into()),
        };
        let fresh = Optimizer::new(self.spec.train(recipe, phase), &self.learner);
        let has_stepped = progress.step > 0 && self.spec.is_trained;
        let expected = match has_stepped {
            true => OptimizerFile::of(&fresh.after_a_step(&self.learner)),
            false => OptimizerFile::of(fresh.inner()),
        };
        let may_lack = match progress.quantized_sum {
            Some(_) => MayLack::QuantizersToo,
            None => MayLack::Adapters,
        };
        let state = OptimizerFile::parse(&optimizer)
            .and_then(|state| state.expect_like(&expected, progress.step, may_lack).map(|()| state));
        let state = state.map_err(|problem| CheckpointError::OtherOptimizer {
            path: path.into(),
            file: self.spec.optimizer_file(),
            problem,
        })?;
        self.optimizer = fresh.with_record(state.into_record());
        // Before the first calibration there are none.
        let fresh = match progress.pending {
            Some(Pending::Calibration) => BTreeMap::new(),
            _ => self.fresh_notes(&experiment.strategies, phase.train.learning_rate),
        };
        self.notes = load_notes(fresh, notes).map_err(other_model)?;
        Ok(())
    }
}

/// The layers with quantized weights of a network, in forward order.
fn quantized_weights(network: &Network) -> Vec<LayerWeights> {
    let layers = network.layers().filter_map(|(path, layer)| {
        let quantizer = layer.weight_quantizer()?.clone();
        Some(LayerWeights { path: path.into(), quantizer, weights: layer.exact_weights() })
    });
    layers.collect()
}

/// Notes of strategies as named tensors, for a checkpoint.
fn notes_tensors(notes: &BTreeMap<String, Notes>) -> NamedTensors {
    let mut tensors = NamedTensors::new();
    for (strategy, Notes { numbers, tensors: of_layers }) in notes {
        let numbers = numbers.iter().map(|(name, &number)| (name, TensorData::new(vec![number], [1])));
        let of_layers = of_layers.iter().map(|(name, tensor)| (name, tensor.to_data()));
        tensors.extend(numbers.chain(of_layers).map(|(name, data)| (format!("{strategy}.{name}"), data)));
    }
    tensors
}

/// The notes that a checkpoint has where a phase begins with those that are `fresh`.
fn load_notes(
    fresh: BTreeMap<String, Notes>,
    mut saved: NamedTensors,
) -> Result<BTreeMap<String, Notes>, StateError> {
    let mut notes = BTreeMap::new();
    for (strategy, Notes { mut numbers, mut tensors }) in fresh {
        let mut take = |name: &str, expected: &[usize]| -> Result<TensorData, StateError> {
            let path = format!("{strategy}.{name}");
            let data = saved.remove(&path).ok_or(StateError::Missing { path: format!("notes.{path}") })?;
            let got = data.shape().as_slice().to_vec();
            match got == expected {
                true => Ok(data),
                false => {
                    Err(StateError::Shape { path: format!("notes.{path}"), got, expected: expected.into() })
                }
            }
        };
        for (name, number) in &mut numbers {
            *number = take(name, &[1])?.iter::<f32>().next().unwrap_or_default();
        }
        for (name, tensor) in &mut tensors {
            *tensor = Tensor::from_data(take(name, &tensor.dims())?, &tensor.device());
        }
        notes.insert(strategy, Notes { numbers, tensors });
    }
    match saved.into_keys().next() {
        Some(path) => Err(StateError::Unknown { path: format!("notes.{path}") }),
        None => Ok(notes),
    }
}

/// A copy of `network` whose forward pass trains nothing: BatchNorm works as in training, but the copy shares no
/// running statistics with the original and records no gradients. Its quantizers are frozen, so that running ranges stay as
/// they are: statistics that are estimated belong to the grids that are deployed.
fn detached(network: &Network) -> Network {
    let mut copy = network.valid().train().no_grad();
    for (_, mut layer) in copy.layers_mut() {
        if let Some(quantizer) = layer.input_quantizer() {
            *quantizer = quantizer.clone().freeze();
        }
    }
    copy
}

type BitWidths = (Option<BitWidth>, Option<BitWidth>);

/// Bit widths of weights and input of every layer.
fn bit_widths(network: &Network) -> BTreeMap<String, BitWidths> {
    let layers = network.layers().map(|(path, layer)| {
        let weight_bits = layer.weight_quantizer().map(|quantizer| quantizer.bits());
        let act_bits = layer.input_quantizer().map(|quantizer| quantizer.bits());
        (path.to_string(), (weight_bits, act_bits))
    });
    layers.collect()
}

#[cfg(test)]
mod tests {
    use lowbit_core::Compute;

    use super::*;

    fn trainees(overrides: &[&str]) -> (Recipe, Vec<Phase>, Vec<Trainee>) {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        let recipe = Recipe::embedded("digits-preresnet8-w2a2", &overrides).unwrap();
        let phases = recipe.phases();
        let new = |spec| Trainee::new(spec, &recipe, &phases[0], &Device::default().autodiff()).unwrap();
        let trainees = Experiment::of_recipe(&recipe).unwrap().networks.into_iter().map(new).collect();
        (recipe, phases, trainees)
    }

    /// A hint goes by the bits of the recipe in the phase, not by those of some layer.
    #[test]
    fn the_bits_of_hints_are_those_of_the_base_in_the_phase() {
        let (recipe, phases, mut trainees) = trainees(&[
            "quantization.layers=[{pattern='stages.0.0.conv1', act_bits=8}]",
            "strategy.two_stage=true",
            "strategy.progressive={ladder=[4]}",
            "strategy.joint={students=[{weight_bits=3, act_bits=3}]}",
            "strategy.hint={weight=1.0}",
        ]);
        let names: Vec<&str> = phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["w4a32", "w4a4", "w2a4", "w2a2"]);
        let device = Device::default().autodiff();
        let mut seen = Vec::new();
        for (i, phase) in phases.iter().enumerate() {
            let bits = trainees[..2].iter_mut().map(|trainee| {
                if i > 0 {
                    trainee.enter(&recipe, phase, &device, |_| {}).unwrap();
                }
                let output = trainee.output(Tensor::zeros([2, 1, 8, 8], &device));
                output.act_bits.stored_bits()
            });
            seen.push(bits.collect::<Vec<_>>());
        }
        assert_eq!(seen, [[32, 32], [4, 4], [4, 4], [2, 3]]);
    }

    /// Every convolution computes as the recipe says, adapters and teachers too, whatever was built anew.
    #[test]
    fn all_convolutions_compute_as_the_recipe_says() {
        let computes = |trainee: &Trainee| -> Vec<Compute> {
            let of_network = trainee.learner.network.layers().filter_map(|(_, layer)| match layer {
                LayerRef::Conv(conv) => Some(conv.compute),
                LayerRef::Linear(_) => None,
            });
            let of_adapters = trainee.learner.adapters.iter().flatten().map(|conv| conv.compute);
            of_network.chain(of_adapters).collect()
        };
        for (name, compute) in [("fp32", Compute::Fp32), ("bf16", Compute::Bf16)] {
            let (recipe, phases, mut trainees) = trainees(&[
                &format!("train.compute={name}"),
                "strategy.two_stage=true",
                "strategy.joint={teacher={width=0.5}, students=[{weight_bits=3, act_bits=3}]}",
                "strategy.hint={weight=1.0}",
            ]);
            assert_eq!(trainees.len(), 3);
            assert!(trainees.iter().any(|trainee| trainee.learner.adapters.iter().any(Option::is_some)));
            let device = Device::default().autodiff();
            for trainee in &mut trainees {
                let n = computes(trainee).len();
                assert_eq!(computes(trainee), vec![compute; n]);
                trainee.enter(&recipe, &phases[1], &device, |_| {}).unwrap();
                assert_eq!(computes(trainee), vec![compute; n]);
                trainee.reestimate_norms([Ok(Tensor::ones([2, 1, 8, 8], &device))].into_iter()).unwrap();
                assert_eq!(computes(trainee), vec![compute; n]);
            }
        }
    }

    /// With more groups than channels, some groups have none.
    #[test]
    fn the_share_that_is_quantized_is_of_channels() {
        let (_, _, mut trainees) = trainees(&[]);
        let n = trainees[0].quantized_layers(false).len();
        // Of 32 groups, 16 channels have every second, 32 and 64 channels all.
        let groups: Vec<bool> = (0..32).map(|group| group % 2 == 1).collect();
        let share = trainees[0].select(Some(vec![Selection::ChannelGroups(groups); n]));
        assert_eq!((n, share), (8, (2.0 * 0.0 + 6.0 * 0.5) / 8.0));
        assert_eq!(trainees[0].select(None), 1.0);
    }

    /// The error of weights in full precision is not 0, it is none.
    #[test]
    fn weights_in_full_precision_have_no_error() {
        let (_, _, trainees) =
            trainees(&["quantization.layers=[{pattern='stages.0.0.conv1', weight_bits='fp32'}]"]);
        let layers = trainees[0].quantized_layers(true);
        assert_eq!((layers[0].path.as_str(), layers[0].error), ("stages.0.0.conv1", None));
        assert!(layers[1..].iter().all(|layer| layer.error.is_some_and(|error| error > 0.0)), "{layers:?}");
    }

    /// Running statistics of the first norm of a fresh network after a re-estimation over `batches`.
    fn estimate(batches: &[Tensor<4>]) -> [Vec<f32>; 2] {
        let recipe = Recipe::embedded("digits-preresnet8-w2a2", &[]).unwrap();
        let phase = &recipe.phases()[0];
        let spec = Experiment::of_recipe(&recipe).unwrap().networks.swap_remove(0);
        let mut trainee = Trainee::new(spec, &recipe, phase, &Device::default().autodiff()).unwrap();
        trainee.reestimate_norms(batches.iter().cloned().map(Ok)).unwrap();
        let tensors = state::tensors(&trainee.evaluated_network());
        ["running_mean", "running_var"]
            .map(|name| tensors[&format!("stages.0.0.norm1.{name}")].iter::<f32>().collect())
    }

    /// Over several batches, statistics are the mean of what each batch gives.
    #[test]
    fn reestimated_norms_are_means_over_batches() {
        let device = Device::default().autodiff();
        let batch = |factor: f32| {
            let pixels: Vec<f32> =
                (0..4 * 64).map(|i| ((i * 37 % 101) as f32 / 101.0 - 0.3) * factor).collect();
            Tensor::<4>::from_data(TensorData::new(pixels, [4, 1, 8, 8]), &device)
        };
        let (first, second) = (batch(1.0), batch(-3.0));
        let of_first = estimate(std::slice::from_ref(&first));
        let of_second = estimate(std::slice::from_ref(&second));
        let of_both = estimate(&[first, second]);
        for i in 0..2 {
            assert_ne!(of_first[i], of_second[i]);
            for ((a, b), got) in of_first[i].iter().zip(&of_second[i]).zip(&of_both[i]) {
                let expected = (a + b) / 2.0;
                assert!(
                    (got - expected).abs() <= 1e-6 * (1.0 + expected.abs()),
                    "{got}, expected {expected}"
                );
            }
        }
    }
}
