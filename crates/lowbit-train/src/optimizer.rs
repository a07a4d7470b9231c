//! The optimizer of one network: burn's optimizers, and our own descent, with a group of their own for the quantizers' parameters, and
//! clipping by the norm of all gradients together.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use burn::tensor::{Gradients, Tensor};

use lowbit_kernels::{Sgd, sgd_together};
use lowbit_quantizers::is_quantizer_state;

use crate::recipe::{OptimizerRecipe, QuantizerGroup, TrainRecipe};
use lowbit_strategies::loss::sum_of_squares;

/// Updates the parameters of one network.
#[derive(Clone)]
pub struct Optimizer {
    inner: ModuleOptimizer,
    gradient_clip: Option<f64>,
    norm: Option<GradientNorm>,
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
        let inner = build(recipe, quantizer_group(module));
        Self { inner, gradient_clip: recipe.gradient_clip, norm: None }
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

fn build(recipe: &TrainRecipe, quantizers: ParamGroup) -> ModuleOptimizer {
    let QuantizerGroup { learning_rate_scale: scale, weight_decay: group_decay } = recipe.quantizers;
    match recipe.optimizer {
        OptimizerRecipe::Sgd { momentum, nesterov } => {
            let sgd = |weight_decay: f64| Sgd {
                momentum: (momentum > 0.0).then_some(momentum as f32),
                is_nesterov: nesterov,
                weight_decay: (weight_decay > 0.0).then_some(weight_decay as f32),
            };
            ModuleOptimizer::from(sgd(recipe.weight_decay)).with_group(
                quantizers,
                Scaled { optimizer: sgd(group_decay), scale },
                None,
            )
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
            ModuleOptimizer::from(adam(recipe.weight_decay)).with_group(
                quantizers,
                Scaled { optimizer: adam(group_decay), scale },
                None,
            )
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
            ModuleOptimizer::from(adamw(recipe.weight_decay)).with_group(
                quantizers,
                Scaled { optimizer: adamw(group_decay), scale },
                None,
            )
        }
    }
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

fn decay(penalty: f64) -> Option<WeightDecayConfig> {
    (penalty > 0.0).then(|| WeightDecayConfig::new(penalty as f32))
}

/// The learned parameters of the quantizers, by id.
fn quantizer_group<M: Module>(module: &M) -> ParamGroup {
    #[derive(Default)]
    struct Collect {
        path: Vec<String>,
        ids: Vec<ParamId>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if is_quantizer_state(&self.path.join(".")) {
                self.ids.push(param.id);
            }
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    ParamGroup::from_ids(collect.ids)
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
