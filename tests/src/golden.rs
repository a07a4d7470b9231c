//! The golden files, as described in `golden/README.md`.

use std::collections::BTreeMap;

use lowbit_core::{BitWidth, Granularity};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Reads `golden/{name}.json`.
///
/// # Panics
/// If the file is missing or does not have the fields of `T`.
pub fn load<T: DeserializeOwned>(name: &str) -> T {
    let path = format!("{}/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The cases of one quantization method.
#[derive(Debug, Deserialize)]
pub struct QuantizerFile {
    /// The method.
    pub method: lowbit_quantizers::Method,
    /// Its cases.
    pub cases: Vec<QuantizerCase>,
}

/// Weights or activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operand {
    /// Weights.
    Weights,
    /// Activations.
    Activations,
}

/// Variants of a method.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The maximum of DoReFa weights is a constant of the backward pass.
    pub detached_max: bool,
    /// Several DoReFa weights attain the maximum.
    pub tied_max: bool,
}

/// The parameters of a min-max grid.
#[derive(Debug, Deserialize)]
pub struct QParams {
    /// One scale, or one per channel.
    pub scale: Vec<f32>,
    /// As many zero points.
    pub zero_point: Vec<i32>,
}

/// One quantizer on one tensor.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizerCase {
    /// Unique in the file.
    pub name: String,
    /// What is quantized.
    pub operand: Operand,
    /// Bit width.
    pub bits: u32,
    /// Granularity.
    pub granularity: Granularity,
    /// Shape of all tensors.
    pub shape: Vec<usize>,
    /// Variants.
    pub options: Options,
    /// Learned parameters, or the range of min-max activations.
    pub params: BTreeMap<String, Vec<f32>>,
    /// Expected grid, of min-max only.
    pub qparams: Option<QParams>,
    /// Input.
    pub x: Vec<f32>,
    /// Expected codes as the paper counts them; see [`codes`](Self::codes).
    pub codes: Vec<i32>,
    /// Expected real values.
    pub y: Vec<f32>,
    /// Gradient given to the backward pass.
    pub grad_y: Vec<f32>,
    /// Expected gradient of the input.
    pub grad_x: Vec<f32>,
    /// The gradient of the input that passes straight through, where the paper's own is another: of XNOR's weights.
    pub grad_x_identity: Option<Vec<f32>>,
    /// The basis of LQ-Nets after a step of its moving average.
    pub updated_basis: Option<Vec<f32>>,
    /// Expected gradients of the learned parameters.
    pub grad_params: BTreeMap<String, Vec<f32>>,
}

impl QuantizerCase {
    /// The bit width.
    ///
    /// # Panics
    /// If it is none.
    pub fn bit_width(&self) -> BitWidth {
        BitWidth::new(self.bits).expect("invariant: golden files hold bit widths")
    }

    /// The expected codes in the integers of lowbit: `2 c - n` for the level `c` of DoReFa weights, `y = (2 c - n) / n`.
    pub fn codes(&self, method: lowbit_quantizers::Method) -> Vec<i32> {
        use lowbit_quantizers::Method;
        let n = self.bit_width().unsigned_range().q_max;
        match (method, self.operand) {
            (Method::DoReFa | Method::Pact, Operand::Weights) => {
                self.codes.iter().map(|c| 2 * c - n).collect()
            }
            _ => self.codes.clone(),
        }
    }
}

/// `training.json`.
#[derive(Debug, Deserialize)]
pub struct Training {
    /// Optimizers.
    pub optimizers: Vec<OptimizerCase>,
    /// Cross entropy.
    pub cross_entropy: Vec<CrossEntropyCase>,
    /// Batch normalization in training.
    pub batch_norm: BatchNormCase,
    /// Clipping by the norm of all gradients.
    pub gradient_clipping: Vec<ClippingCase>,
}

/// Some steps of an optimizer on one tensor.
#[derive(Debug, Deserialize)]
pub struct OptimizerCase {
    /// Unique in the file.
    pub name: String,
    /// PyTorch's options.
    pub options: OptimizerOptions,
    /// Parameter before the first step.
    pub initial: Vec<f32>,
    /// Gradient of each step.
    pub grads: Vec<Vec<f32>>,
    /// Parameter after each step.
    pub params_after_step: Vec<Vec<f32>>,
}

/// The options of `torch.optim`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerOptions {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Momentum of SGD.
    pub momentum: Option<f64>,
    /// Dampening of SGD.
    pub dampening: Option<f64>,
    /// Nesterov's form of momentum.
    pub nesterov: Option<bool>,
    /// Decays of Adam's moments.
    pub betas: Option<[f64; 2]>,
    /// Adam's epsilon.
    pub eps: Option<f64>,
}

/// One cross entropy.
#[derive(Debug, Deserialize)]
pub struct CrossEntropyCase {
    /// Unique in the file.
    pub name: String,
    /// Label smoothing.
    pub label_smoothing: f64,
    /// Shape of the logits.
    pub shape: [usize; 2],
    /// Logits.
    pub logits: Vec<f32>,
    /// Labels.
    pub targets: Vec<i64>,
    /// Expected loss.
    pub loss: f32,
    /// Expected gradient of the logits.
    pub grad_logits: Vec<f32>,
}

/// One forward and backward pass of `BatchNorm2d` in training mode.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct BatchNormCase {
    pub shape: [usize; 4],
    pub eps: f64,
    pub momentum: f64,
    pub weight: Vec<f32>,
    pub bias: Vec<f32>,
    pub running_mean_before: Vec<f32>,
    pub running_var_before: Vec<f32>,
    pub running_mean_after: Vec<f32>,
    pub running_var_after: Vec<f32>,
    pub x: Vec<f32>,
    pub y: Vec<f32>,
    pub grad_y: Vec<f32>,
    pub grad_x: Vec<f32>,
    pub grad_weight: Vec<f32>,
    pub grad_bias: Vec<f32>,
}

/// Clipping of two gradients by their common norm.
#[derive(Debug, Deserialize)]
pub struct ClippingCase {
    /// Unique in the file.
    pub name: String,
    /// Largest norm allowed.
    pub max_norm: f64,
    /// Shapes of the gradients.
    pub shapes: Vec<Vec<usize>>,
    /// Gradients.
    pub grads: Vec<Vec<f32>>,
    /// Gradients after clipping.
    pub clipped: Vec<Vec<f32>>,
}

/// `torch_resnet.json`.
#[derive(Debug, Deserialize)]
pub struct ResNetFile {
    /// Networks.
    pub models: Vec<ResNetCase>,
}

/// How a residual block that changes the shape adds its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shortcut {
    /// Through a 1x1 convolution.
    Projection,
    /// Padded with zeros.
    ZeroPad,
}

/// Trainable parameters of one network.
#[derive(Debug, Deserialize)]
pub struct ResNetCase {
    /// Family.
    pub architecture: lowbit_models::Family,
    /// Kind of shortcut.
    pub shortcut: Shortcut,
    /// Number of weighted layers.
    pub depth: usize,
    /// Number of classes.
    pub classes: usize,
    /// In convolutions.
    pub conv: usize,
    /// In BatchNorm.
    pub batch_norm: usize,
    /// In the classifier.
    pub linear: usize,
    /// In all.
    pub parameters: usize,
}

/// `imagenet.json`.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct ImageNetFile {
    pub counts: Vec<ImageNetCount>,
    pub width: f64,
    pub images: [usize; 4],
    pub classes: usize,
    pub cases: Vec<ImageNetCase>,
}

/// Parameters of one network of width 1 for 1000 classes.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct ImageNetCount {
    pub family: lowbit_models::Family,
    pub depth: usize,
    pub parameters: usize,
}

/// One network with weights that are made by rule.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct ImageNetCase {
    pub family: lowbit_models::Family,
    pub depth: usize,
    pub evaluated: Vec<f64>,
    pub logits: Vec<f64>,
    pub tensors: Vec<ImageNetTensor>,
}

/// `alexnet.json`.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct AlexNetFile {
    pub width: f64,
    pub cases: Vec<AlexNetCase>,
}

/// One form of AlexNet with weights that are made by rule.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct AlexNetCase {
    pub layout: lowbit_models::Layout,
    pub norm: bool,
    pub images: [usize; 4],
    #[serde(flatten)]
    pub network: ImageNetCase,
}

/// One of its tensors; those without gradient are running statistics.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct ImageNetTensor {
    pub name: String,
    pub shape: String,
    pub gradient_norm: Option<f64>,
    pub gradient_dot: Option<f64>,
}

/// `weights/logits.json`.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct SmallWeights {
    pub images: [usize; 4],
    pub classes: usize,
    pub width: f64,
    pub logits: Vec<f64>,
}

/// `torchvision.json`.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct TorchvisionFile {
    pub networks: Vec<TorchvisionNetwork>,
}

/// A network of torchvision.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/README.md")]
pub struct TorchvisionNetwork {
    pub name: String,
    pub parameters: usize,
    pub tensors: Vec<String>,
    pub images: Option<[usize; 4]>,
    #[serde(default)]
    pub logits: Vec<f64>,
    #[serde(default)]
    pub scale: f64,
}

/// `strategies.json`, as described in `golden/generate_strategies.py`. Expected values are in double precision.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct Strategies {
    pub distillation: Vec<DistillationCase>,
    pub joint: Vec<JointCase>,
    pub hint: HintCases,
    pub composed: ComposedCases,
    pub probability: Vec<ProbabilityCase>,
}

/// Expected gradients of a loss, one for each tensor; `None` where it does not depend on it.
pub type Grads = Vec<Option<Vec<f64>>>;

/// The distance of two networks' logits, in both directions.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct DistillationCase {
    pub name: String,
    /// Of the Kullback-Leibler divergence; absent for the mean square.
    pub temperature: Option<f64>,
    pub shape: [usize; 2],
    pub student: Vec<f32>,
    pub teacher: Vec<f32>,
    pub from_teacher: Distance,
    pub from_student: Distance,
}

/// A distance and its gradients.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct Distance {
    pub loss: f64,
    pub grad_target: Vec<f64>,
    pub grad_logits: Vec<f64>,
}

/// `a_s`, `b_s`, `a_t` and `b_t`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct JointWeights {
    pub student_label: f64,
    pub student_distill: f64,
    pub teacher_label: f64,
    pub teacher_distill: f64,
}

/// The losses of networks that learn from one another; the teacher is the last.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct JointCase {
    pub name: String,
    pub mode: String,
    pub weights: JointWeights,
    pub temperature: Option<f64>,
    pub shape: [usize; 2],
    pub labels: Vec<i64>,
    pub logits: Vec<Vec<f32>>,
    /// `None` for a teacher that is not trained.
    pub losses: Vec<Option<f64>>,
    /// Of each loss, for the logits of each network.
    pub grads: Vec<Option<Grads>>,
}

/// One pair of feature maps at several bit widths.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct HintCases {
    pub shape: [usize; 4],
    pub weight: f64,
    pub mu: Vec<f32>,
    pub nu: Vec<f32>,
    pub cases: Vec<HintCase>,
}

/// One bit width.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct HintCase {
    pub name: String,
    pub bits: lowbit_core::Precision,
    pub codes: Option<Vec<u32>>,
    pub loss_student: f64,
    pub loss_teacher: f64,
    pub grad_mu: Vec<f64>,
    pub grad_nu: Vec<f64>,
}

/// Joint losses with hints, of two students.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct ComposedCases {
    pub weights: JointWeights,
    pub temperature: f64,
    pub hint_weight: f64,
    pub taps: Vec<usize>,
    pub bits: Vec<lowbit_core::Precision>,
    pub shape: [usize; 2],
    pub labels: Vec<i64>,
    pub logits: Vec<Vec<f32>>,
    pub map_shapes: Vec<[usize; 4]>,
    pub student_maps: Vec<Vec<Vec<f32>>>,
    pub teacher_maps: Vec<Vec<f32>>,
    pub cases: Vec<ComposedCase>,
}

/// Who learns from whom.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct ComposedCase {
    pub name: String,
    pub mode: String,
    pub target: String,
    pub losses: Vec<Option<f64>>,
    /// Of each loss, for all logits, the maps of each student and the maps of the teacher.
    pub grads: Vec<Option<Grads>>,
}

/// Probabilities of being quantized at some steps of a phase.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are those of golden/generate_strategies.py")]
pub struct ProbabilityCase {
    pub kind: String,
    pub from: Option<f64>,
    pub values: Option<Vec<f64>>,
    pub final_share: f64,
    pub phase_steps: u64,
    pub steps: Vec<u64>,
    pub expected: Vec<f64>,
}
