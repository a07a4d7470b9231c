//! The optimizer of one network: burn's optimizers, and our own descent, with groups of their own for the quantizers' parameters and for
//! the weights that are quantized, and clipping by the norm of all gradients together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use burn::tensor::{Gradients, Int, Tensor};

use lowbit_kernels::{Sgd, sgd_together};
use lowbit_quantizers::is_quantizer_state;

use crate::recipe::{OptimizerRecipe, TrainRecipe};
use lowbit_strategies::loss::sum_of_squares;

/// Updates the parameters of one network.
#[derive(Clone)]
pub struct Optimizer {
    inner: ModuleOptimizer,
    weight_rate: WeightRate,
    gradient_clip: Option<f64>,
    norm: Option<GradientNorm>,
}

/// The learning rate of quantized weights, where it is not that of all parameters: set before each step, and shared with the groups
/// that go by it.
#[derive(Clone, Debug)]
struct WeightRate(Arc<AtomicU64>);

impl WeightRate {
    /// That of all parameters.
    fn none() -> Self {
        Self(Arc::new(AtomicU64::new(f64::NAN.to_bits())))
    }

    fn set(&self, rate: Option<f64>) {
        self.0.store(rate.unwrap_or(f64::NAN).to_bits(), Ordering::Relaxed);
    }

    fn get(&self) -> Option<f64> {
        Some(f64::from_bits(self.0.load(Ordering::Relaxed))).filter(|rate| !rate.is_nan())
    }
}

/// The size of the gradients of a step, before they were scaled down.
#[derive(Clone)]
pub(crate) struct GradientNorm {
    /// L2 norm of all of them together, shape `[1]`.
    pub(crate) norm: Tensor<1>,
    /// Path of each parameter and the square of its gradient's norm, shape `[1]`, in forward order.
    squares: Vec<(String, Tensor<1>)>,
}

impl GradientNorm {
    /// Path of the parameter that makes the norm infinite or no number: the first whose own is, or the one with the largest.
    pub(crate) fn culprit(&self) -> Option<String> {
        let squares = self.squares.iter().map(|(path, square)| (path, square.clone().into_scalar::<f32>()));
        let squares: Vec<(&String, f32)> = squares.collect();
        let first = squares.iter().find(|(_, square)| !square.is_finite());
        let largest = || squares.iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
        first.or_else(largest).map(|(path, _)| (*path).clone())
    }
}

impl Optimizer {
    /// Of `module`, with the optimizer, weight decays and clipping of `recipe`.
    pub fn new<M: Module>(recipe: &TrainRecipe, module: &M) -> Self {
        let weight_rate = WeightRate::none();
        let inner = build(recipe, Groups::of(module), &weight_rate);
        Self { inner, weight_rate, gradient_clip: recipe.gradient_clip, norm: None }
    }

    /// Sets the learning rate of quantized weights in the next steps; `None` for that of all parameters. With one of their own, what
    /// their quantizers learn stays as it is.
    pub(crate) fn set_weight_rate(&self, rate: Option<f64>) {
        self.weight_rate.set(rate);
    }

    /// One update of `module` from the gradients of its loss.
    pub fn step<M: Module>(&mut self, learning_rate: f64, module: M, gradients: Gradients) -> M {
        let gradients = GradientsParams::from_grads(gradients, &module);
        self.step_by(learning_rate, module, gradients)
    }

    /// The same from the gradients of its parameters, of which several may have been added up.
    pub(crate) fn step_by<M: Module>(
        &mut self,
        learning_rate: f64,
        module: M,
        mut gradients: GradientsParams,
    ) -> M {
        if let Some(max_norm) = self.gradient_clip {
            let norm = GradientNorm::of(&gradients, &module);
            if let Some(norm) = &norm {
                gradients = clip_to(gradients, &module, norm, max_norm);
            }
            self.norm = norm;
        }
        sgd_together(|| self.inner.step(learning_rate, module, gradients))
    }

    /// The norm of the last step's gradients, if they are clipped. Scaling by one that is not finite makes them zero or no
    /// number, so it is to be looked at.
    pub(crate) fn take_norm(&mut self) -> Option<GradientNorm> {
        self.norm.take()
    }

    /// The optimizer's state, keyed by the stable parameter ids of its network.
    pub(crate) fn inner(&self) -> &ModuleOptimizer {
        &self.inner
    }

    /// The same optimizer after a step of `module` whose gradients are zeros: which entries its state has.
    pub(crate) fn after_a_step<M: Module>(&self, module: &M) -> ModuleOptimizer {
        struct Zeros(GradientsParams);
        impl ModuleVisitor for Zeros {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let value = param.val();
                if value.is_require_grad() {
                    self.0.register(param.id, value.inner().zeros_like());
                }
            }
        }
        let mut zeros = Zeros(GradientsParams::new());
        module.visit(&mut zeros);
        let mut optimizer = self.inner.clone();
        optimizer.step(0.0, module.clone(), zeros.0);
        optimizer
    }

    /// The same optimizer in the state of a record.
    pub(crate) fn with_record(self, record: burn::optim::OptimizerRecord) -> Self {
        Self { inner: self.inner.load_record(record), ..self }
    }
}

fn build(recipe: &TrainRecipe, groups: Groups, weight_rate: &WeightRate) -> ModuleOptimizer {
    let group_decay = recipe.quantizers.weight_decay;
    match recipe.optimizer {
        OptimizerRecipe::Sgd { momentum, nesterov } => {
            let sgd = |weight_decay: f64| Sgd {
                momentum: (momentum > 0.0).then_some(momentum as f32),
                is_nesterov: nesterov,
                weight_decay: (weight_decay > 0.0).then_some(weight_decay as f32),
            };
            grouped(recipe, sgd(recipe.weight_decay), sgd(group_decay), groups, weight_rate)
        }
        OptimizerRecipe::Adam { beta1, beta2, epsilon } => {
            let adam = |weight_decay: f64| {
                AdamConfig::new()
                    .with_beta_1(beta1 as f32)
                    .with_beta_2(beta2 as f32)
                    .with_epsilon(epsilon as f32)
                    .with_weight_decay(decay(weight_decay))
                    .build()
            };
            grouped(recipe, adam(recipe.weight_decay), adam(group_decay), groups, weight_rate)
        }
        OptimizerRecipe::AdamW { beta1, beta2, epsilon } => {
            let adamw = |weight_decay: f64| {
                AdamWConfig::new()
                    .with_beta_1(beta1 as f32)
                    .with_beta_2(beta2 as f32)
                    .with_epsilon(epsilon as f32)
                    .with_weight_decay(weight_decay as f32)
                    .build()
            };
            grouped(recipe, adamw(recipe.weight_decay), adamw(group_decay), groups, weight_rate)
        }
    }
}

/// `all` for all parameters but those of quantizers, which have `quantizers`.
fn grouped<O: burn::optim::Optimizer>(
    recipe: &TrainRecipe,
    all: O,
    quantizers: O,
    groups: Groups,
    weight_rate: &WeightRate,
) -> ModuleOptimizer {
    let scaled = Scaled { optimizer: quantizers, scale: recipe.quantizers.learning_rate_scale };
    let held = Rated { optimizer: scaled.clone(), weight_rate: weight_rate.clone(), is_held: true };
    let weights = Rated { optimizer: all.clone(), weight_rate: weight_rate.clone(), is_held: false };
    ModuleOptimizer::from(all)
        .with_group(groups.quantizers, scaled, None)
        .with_group(groups.weight_quantizers, held, None)
        .with_group(groups.weights, weights, None)
}

/// An optimizer whose learning rate is a multiple of the others'.
#[derive(Clone)]
struct Scaled<O> {
    optimizer: O,
    scale: f64,
}

impl<O: burn::optim::Optimizer> burn::optim::Optimizer for Scaled<O> {
    type State<const D: usize> = O::State<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: f64,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        self.optimizer.step(learning_rate * self.scale, tensor, gradient, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        O::to_device(state, device)
    }
}

/// An optimizer of quantized weights, whose learning rate may be another than that of all parameters, or of what their quantizers learn,
/// which is then held.
#[derive(Clone)]
struct Rated<O> {
    optimizer: O,
    weight_rate: WeightRate,
    is_held: bool,
}

impl<O: burn::optim::Optimizer> burn::optim::Optimizer for Rated<O> {
    type State<const D: usize> = O::State<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: f64,
        tensor: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let learning_rate = match self.weight_rate.get() {
            Some(_) if self.is_held => 0.0,
            Some(rate) => rate,
            None => learning_rate,
        };
        self.optimizer.step(learning_rate, tensor, gradient, state)
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        O::to_device(state, device)
    }
}

fn decay(penalty: f64) -> Option<WeightDecayConfig> {
    (penalty > 0.0).then(|| WeightDecayConfig::new(penalty as f32))
}

/// Parameters that are not trained as all others.
struct Groups {
    /// What quantizers of inputs learn, and those of a module of one's own.
    quantizers: ParamGroup,
    /// What quantizers of weights learn.
    weight_quantizers: ParamGroup,
    /// The weights that these quantize.
    weights: ParamGroup,
}

impl Groups {
    fn of<M: Module>(module: &M) -> Self {
        #[derive(Default)]
        struct Collect {
            path: Vec<String>,
            /// Layers whose weights have a quantizer.
            layers: Vec<String>,
            quantizers: Vec<ParamId>,
            weight_quantizers: Vec<ParamId>,
            /// Weights of any layer.
            weights: Vec<(String, ParamId)>,
        }
        impl Collect {
            fn visit(&mut self, id: ParamId) {
                let path = self.path.join(".");
                let layer = self.path.iter().position(|part| part == "weight_quantizer");
                if let Some(layer) = layer {
                    self.layers.push(self.path[..layer].join("."));
                }
                match (is_quantizer_state(&path), layer, self.path.split_last()) {
                    (true, Some(_), _) => self.weight_quantizers.push(id),
                    (true, None, _) => self.quantizers.push(id),
                    (false, _, Some((name, layer))) if name == "weight" => {
                        self.weights.push((layer.join("."), id));
                    }
                    (false, _, _) => {}
                }
            }
        }
        impl ModuleVisitor for Collect {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name.into());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                self.visit(param.id);
            }
            fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
                // A method that learns nothing still records its bits.
                if self.path.iter().any(|part| part == "weight_quantizer") {
                    self.visit(param.id);
                }
            }
        }
        let mut collect = Collect::default();
        module.visit(&mut collect);
        let Collect { layers, quantizers, weight_quantizers, weights, .. } = collect;
        let is_quantized = |(layer, _): &(String, ParamId)| layers.contains(layer);
        let weights = weights.into_iter().filter(is_quantized).map(|(_, id)| id).collect();
        let [quantizers, weight_quantizers, weights] =
            [quantizers, weight_quantizers, weights].map(ParamGroup::from_ids);
        Self { quantizers, weight_quantizers, weights }
    }
}

impl GradientNorm {
    fn of<M: Module>(gradients: &GradientsParams, module: &M) -> Option<Self> {
        struct Collect<'a> {
            gradients: &'a GradientsParams,
            path: Vec<Option<String>>,
            squares: Vec<(String, Tensor<1>)>,
        }
        impl ModuleVisitor for Collect<'_> {
            fn enter_module(&mut self, name: &str, container: &str) {
                // Variants of enums are no part of a path.
                self.path.push((!container.starts_with("Enum:")).then(|| name.into()));
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if let Some(gradient) = self.gradients.get::<D>(param.id) {
                    let path: Vec<&str> = self.path.iter().flatten().map(String::as_str).collect();
                    self.squares.push((path.join("."), sum_of_squares(gradient)));
                }
            }
        }
        let mut collect = Collect { gradients, path: Vec::new(), squares: Vec::new() };
        module.visit(&mut collect);
        let squares = collect.squares;
        let sum = squares.iter().map(|(_, square)| square.clone()).reduce(|sum, square| sum + square)?;
        Some(Self { norm: sum.sqrt(), squares })
    }
}

/// Scales all gradients by the same factor, so that their common L2 norm is at most `max_norm`.
fn clip_to<M: Module>(
    gradients: GradientsParams,
    module: &M,
    norm: &GradientNorm,
    max_norm: f64,
) -> GradientsParams {
    struct Scale {
        gradients: GradientsParams,
        factor: Tensor<1>,
    }
    impl ModuleMapper for Scale {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if let Some(gradient) = self.gradients.remove::<D>(param.id) {
                self.gradients.register(param.id, gradient * self.factor.clone().reshape([1; D]));
            }
            param
        }
    }
    // As PyTorch's clip_grad_norm_: the factor max / (norm + 1e-6), at most 1.
    let factor = (norm.norm.clone() + 1e-6).recip().mul_scalar(max_norm).clamp_max(1.0);
    let mut scale = Scale { gradients, factor };
    module.clone().map(&mut scale);
    scale.gradients
}
