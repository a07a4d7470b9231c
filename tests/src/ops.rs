//! The single operations that are timed, beside a peer by `cargo xtask bench ops` and alone by `cargo bench`: which they
//! are, of what sizes, how much work each one is, and how to run it.

use std::fmt;
use std::hint::black_box;

use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};
use lowbit_cpu::limits;
use lowbit_kernels::{
    Activation, ActivationKind, AnyFormula, Compute, KernelBackend, MaxGradient, Quantized, Scheme,
    batch_norm, conv2d, dorefa_weights,
};
use lowbit_quantizers::methods::dorefa::Squashed;
use serde::{Deserialize, Serialize};

use crate::composed::Grid;
use crate::tensor;

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Convolution without bias.
    Conv2d,
    /// The same of operands quantized to 2 bits by DoReFa, summed up as integers.
    Conv2dCodes,
    /// Normalization by the statistics of the batch, which it computes.
    BatchNorm,
    /// The same and ReLU.
    BatchNormRelu,
    /// The same and the activation quantizer of DoReFa.
    BatchNormDorefa,
    /// The same and the activation quantizer of LSQ.
    BatchNormLsq,
    /// Activations on the grid of DoReFa.
    DorefaActivations,
    /// Activations on the grid of LSQ.
    LsqActivations,
    /// Activations on the grid of PACT.
    PactActivations,
    /// Activations on the affine grid of min-max, at 8 bits, whose range is known.
    MinmaxActivations,
    /// Weights on the grid of DoReFa.
    DorefaWeights,
    /// Weights on the grids of LSQ, one for each output channel.
    LsqWeights,
    /// Weights of 1 bit by DoReFa, whose scale is known.
    BinaryWeights,
    /// What the processor can compute: multiplications and additions without memory. Its shape is their number.
    MultiplyAdd,
    /// What the memory can do. Its shape is the number of values.
    Copy,
}

/// Which part of the training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pass {
    /// The result.
    Forward,
    /// The gradient of a convolution's input.
    InputGradient,
    /// The gradient of a convolution's weights.
    WeightGradient,
    /// All gradients.
    Backward,
}

/// The weights of a convolution, padded to keep the size at stride 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Groups that the channels are split into.
    pub groups: usize,
}

/// An operation of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// What is computed.
    pub op: Op,
    /// Which part of it.
    pub pass: Pass,
    /// `[batch, channels, height, width]` of the input, or the shape of the weights that are quantized.
    pub shape: [usize; 4],
    /// The weights of a convolution.
    pub filters: Option<Filters>,
}

/// How much a case has to do at least.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Additions and multiplications, those with the zeros around an image included.
    Flops(f64),
    /// Bytes read and written. Operands that have to be read a second time, because the first one makes sums of them,
    /// count twice.
    Bytes(f64),
}

/// Batch, channels in and out, height and width, size of the kernel, stride, groups.
type Convolution = [usize; 7];

/// The convolutions of PreResNet-20 at batch 128; the first one is of the image.
const PRERESNET20: [Convolution; 8] = [
    [128, 3, 16, 32, 3, 1, 1],
    [128, 16, 16, 32, 3, 1, 1],
    [128, 16, 32, 32, 3, 2, 1],
    [128, 16, 32, 32, 1, 2, 1],
    [128, 32, 32, 16, 3, 1, 1],
    [128, 32, 64, 16, 3, 2, 1],
    [128, 32, 64, 16, 1, 2, 1],
    [128, 64, 64, 8, 3, 1, 1],
];

/// Those of ResNet-18 at batch 16; the first one is of the image.
const RESNET18: [Convolution; 11] = [
    [16, 3, 64, 224, 7, 2, 1],
    [16, 64, 64, 56, 3, 1, 1],
    [16, 64, 128, 56, 3, 2, 1],
    [16, 64, 128, 56, 1, 2, 1],
    [16, 128, 128, 28, 3, 1, 1],
    [16, 128, 256, 28, 3, 2, 1],
    [16, 128, 256, 28, 1, 2, 1],
    [16, 256, 256, 14, 3, 1, 1],
    [16, 256, 512, 14, 3, 2, 1],
    [16, 256, 512, 14, 1, 2, 1],
    [16, 512, 512, 7, 3, 1, 1],
];

/// Other kernels: of 5x5, AlexNet's first one, and one for each channel.
const OTHERS: [Convolution; 3] =
    [[16, 96, 256, 27, 5, 1, 1], [16, 3, 64, 224, 11, 4, 1], [16, 128, 128, 28, 3, 1, 128]];

const NORMS: [Op; 4] = [Op::BatchNorm, Op::BatchNormRelu, Op::BatchNormDorefa, Op::BatchNormLsq];
const NORM_SHAPES: [[usize; 4]; 3] = [[128, 16, 32, 32], [128, 64, 8, 8], [16, 64, 112, 112]];

const ACTIVATIONS: [Op; 4] =
    [Op::DorefaActivations, Op::LsqActivations, Op::PactActivations, Op::MinmaxActivations];
const ACTIVATION_SHAPES: [[usize; 4]; 2] = [[128, 16, 32, 32], [16, 64, 56, 56]];

const WEIGHTS: [Op; 3] = [Op::DorefaWeights, Op::LsqWeights, Op::BinaryWeights];
const WEIGHT_SHAPES: [[usize; 4]; 2] = [[64, 64, 3, 3], [512, 512, 3, 3]];

/// What the machine can do at most: a copy the size of an operand, and one far larger than a cache.
const LIMITS: [Case; 3] =
    [limit(Op::MultiplyAdd, 1 << 16), limit(Op::Copy, 1 << 21), limit(Op::Copy, 1 << 24)];

/// Steps of the grids of activations, and their range: 2 bits.
const STEPS: f32 = 3.0;
const ACTIVATION_GRID: Grid = Grid::Step { q_min: 0.0, q_max: STEPS };
const WEIGHT_GRID: Grid = Grid::Step { q_min: -2.0, q_max: 1.0 };

/// Learned parameters: steps of activations and of weights, clip value.
const STEP_SIZE: f32 = 0.3;
const WEIGHT_STEP_SIZE: f32 = 0.5;
const CLIP_VALUE: f32 = 0.8;

/// Scale, zero point and steps of the affine grid, which spans -0.9 to 0.9.
const AFFINE: [f32; 3] = [1.8 / 255.0, 128.0, 255.0];

const EPSILON: f32 = 1e-5;

/// All cases, the limits of the machine first.
pub fn cases() -> Vec<Case> {
    let of = |ops: &[Op], shapes: &[[usize; 4]], passes: &[Pass]| {
        let mut cases = Vec::new();
        for &shape in shapes {
            for &op in ops {
                cases.extend(passes.iter().map(|&pass| Case { op, pass, shape, filters: None }));
            }
        }
        cases
    };
    let mut cases = LIMITS.to_vec();
    for convolution in PRERESNET20.iter().chain(&RESNET18).chain(&OTHERS) {
        cases.push(convolution_case(Op::Conv2d, Pass::Forward, *convolution));
        // An image needs no gradient.
        if convolution[1] > 3 {
            cases.push(convolution_case(Op::Conv2d, Pass::InputGradient, *convolution));
        }
        cases.push(convolution_case(Op::Conv2d, Pass::WeightGradient, *convolution));
    }
    let quantized = PRERESNET20.iter().skip(1).chain(RESNET18.iter().skip(1));
    cases.extend(quantized.map(|convolution| convolution_case(Op::Conv2dCodes, Pass::Forward, *convolution)));
    let passes = [Pass::Forward, Pass::Backward];
    cases.extend(of(&NORMS, &NORM_SHAPES, &passes));
    cases.extend(of(&ACTIVATIONS, &ACTIVATION_SHAPES, &passes));
    cases.extend(of(&WEIGHTS, &WEIGHT_SHAPES, &passes));
    cases
}

const fn limit(op: Op, n: usize) -> Case {
    Case { op, pass: Pass::Forward, shape: [1, 1, 1, n], filters: None }
}

fn convolution_case(op: Op, pass: Pass, convolution: Convolution) -> Case {
    let [batch, in_channels, out_channels, side, kernel, stride, groups] = convolution;
    let filters = Some(Filters { out_channels, kernel, stride, groups });
    Case { op, pass, shape: [batch, in_channels, side, side], filters }
}

impl Op {
    fn is_norm(self) -> bool {
        NORMS.contains(&self)
    }

    /// As the table shows it.
    fn name(self) -> &'static str {
        match self {
            Self::Conv2d => "conv2d",
            Self::Conv2dCodes => "conv2d w2a2",
            Self::BatchNorm => "batch_norm",
            Self::BatchNormRelu => "batch_norm, relu",
            Self::BatchNormDorefa => "batch_norm, dorefa",
            Self::BatchNormLsq => "batch_norm, lsq",
            Self::DorefaActivations => "dorefa activations",
            Self::LsqActivations => "lsq activations",
            Self::PactActivations => "pact activations",
            Self::MinmaxActivations => "minmax activations",
            Self::DorefaWeights => "dorefa weights",
            Self::LsqWeights => "lsq weights",
            Self::BinaryWeights => "binary weights",
            Self::MultiplyAdd => "multiply-add in registers",
            Self::Copy => "copy",
        }
    }
}

impl Pass {
    /// As the table shows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::InputGradient => "input gradient",
            Self::WeightGradient => "weight gradient",
            Self::Backward => "backward",
        }
    }
}

/// Operation and sizes, without the pass.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [batch, channels, height, width] = self.shape;
        match self.op {
            Op::MultiplyAdd => return write!(f, "{}", self.op.name()),
            Op::Copy => return write!(f, "{} of {} MiB", self.op.name(), (width * size_of::<f32>()) >> 20),
            _ => write!(f, "{} {batch}x{channels}x{height}x{width}", self.op.name())?,
        }
        let Some(Filters { out_channels, kernel, stride, groups }) = self.filters else { return Ok(()) };
        write!(f, ", {out_channels} of {kernel}x{kernel}")?;
        if stride != 1 {
            write!(f, " / {stride}")?;
        }
        if groups != 1 {
            write!(f, ", {groups} groups")?;
        }
        Ok(())
    }
}

impl Case {
    /// What does the same kind of work as fast as this machine can; for values in memory, a copy of as many. `None` of a
    /// limit itself.
    pub fn limit(&self) -> Option<Case> {
        match self.op {
            Op::MultiplyAdd | Op::Copy => None,
            Op::Conv2d | Op::Conv2dCodes => Some(LIMITS[0]),
            _ => Some(limit(Op::Copy, self.shape.iter().product())),
        }
    }

    /// How much there is to do.
    pub fn work(&self) -> Work {
        let n: usize = self.shape.iter().product();
        let is_of_sums = self.op.is_norm() || self.op == Op::DorefaWeights;
        // How many arrays are read or written.
        let n_arrays = match (self.op, self.pass) {
            (Op::Conv2d | Op::Conv2dCodes, _) => {
                let summands: usize = self.weight_shape()[1..].iter().product();
                return Work::Flops((2 * summands * self.out_shape().iter().product::<usize>()) as f64);
            }
            (Op::MultiplyAdd, _) => return Work::Flops((n * limits::ROUND) as f64),
            // The input and the result.
            (_, Pass::Forward) => 2 + usize::from(is_of_sums),
            // The input, the gradient and the result.
            _ => 3 + 2 * usize::from(is_of_sums),
        };
        Work::Bytes((n_arrays * n * size_of::<f32>()) as f64)
    }

    fn weight_shape(&self) -> [usize; 4] {
        let Filters { out_channels, kernel, groups, .. } = self.filters.expect("a convolution has filters");
        [out_channels, self.shape[1] / groups, kernel, kernel]
    }

    fn out_shape(&self) -> [usize; 4] {
        let Filters { out_channels, stride, .. } = self.filters.expect("a convolution has filters");
        let [batch, _, height, width] = self.shape;
        [batch, out_channels, height.div_ceil(stride), width.div_ceil(stride)]
    }

    /// Makes the operands; every call of the result computes the case once.
    ///
    /// # Panics
    /// If the operation has no such pass.
    pub fn prepare(self, device: &Device) -> Box<dyn FnMut()> {
        match self.op {
            Op::Conv2d | Op::Conv2dCodes => self.prepare_convolution(device),
            Op::MultiplyAdd => {
                let n = self.shape.iter().product();
                Box::new(move || limits::multiply_add(n))
            }
            Op::Copy => {
                let from = vec![1.0; self.shape.iter().product()];
                let mut to = from.clone();
                Box::new(move || limits::copy(&from, black_box(&mut to)))
            }
            op if op.is_norm() => self.prepare_norm(device),
            _ => self.prepare_quantizer(device),
        }
    }

    fn prepare_convolution(self, device: &Device) -> Box<dyn FnMut()> {
        let Filters { kernel, stride, groups, .. } = self.filters.expect("a convolution has filters");
        let options = ConvOptions::new([stride; 2], [kernel / 2; 2], [1; 2], groups);
        let (input, weight) = (operand(self.shape, device), operand(self.weight_shape(), device));
        let gradient = operand(self.out_shape(), device);
        match (self.op, self.pass) {
            (Op::Conv2d, Pass::Forward) => Box::new(move || {
                black_box(conv2d(input.clone(), weight.clone(), options.clone(), Compute::Fp32));
            }),
            (Op::Conv2d, Pass::InputGradient) => Box::new(move || {
                let [input, weight, gradient] = [&input, &weight, &gradient].map(primitive);
                black_box(Dispatch::lowbit_conv2d_input_gradient(input, weight, gradient, options.clone()));
            }),
            (Op::Conv2d, Pass::WeightGradient) => Box::new(move || {
                let [input, weight, gradient] = [&input, &weight, &gradient].map(primitive);
                black_box(Dispatch::lowbit_conv2d_weight_gradient(input, weight, gradient, options.clone()));
            }),
            (Op::Conv2dCodes, Pass::Forward) => {
                let n = STEPS as i32;
                let formula = Grid::Unit { n: STEPS }.formula();
                let input = Scheme::new(formula, Vec::new(), 0..=n).quantize(input);
                let weight = dorefa(weight);
                Box::new(move || {
                    black_box(conv2d(input.clone(), weight.clone(), options.clone(), Compute::Fp32));
                })
            }
            (op, pass) => panic!("{op:?} has no pass {pass:?}"),
        }
    }

    fn prepare_norm(self, device: &Device) -> Box<dyn FnMut()> {
        let channels = self.shape[1];
        let (input, gradient) = (operand(self.shape, device), operand(self.shape, device));
        let [gamma, beta] = [1.0, 0.5].map(|value| tensor(&vec![value; channels], [channels], device));
        let parameter = tensor(&[STEP_SIZE], [1], device);
        match self.pass {
            Pass::Forward => {
                let activation = match self.op {
                    Op::BatchNorm => Activation::Identity,
                    Op::BatchNormRelu => Activation::Relu,
                    Op::BatchNormDorefa => Grid::Unit { n: STEPS }.activation(Vec::new()),
                    _ => ACTIVATION_GRID.activation(vec![parameter]),
                };
                Box::new(move || {
                    let parameters = [gamma.clone(), beta.clone()];
                    let epsilon = f64::from(EPSILON);
                    black_box(batch_norm(input.clone(), parameters, epsilon, activation.clone()).output);
                })
            }
            _ => {
                let activation = match self.op {
                    Op::BatchNorm => ActivationKind::Identity,
                    Op::BatchNormRelu => ActivationKind::Relu,
                    Op::BatchNormDorefa => ActivationKind::Formula(Grid::Unit { n: STEPS }.formula(), None),
                    _ => ActivationKind::Formula(ACTIVATION_GRID.formula(), None),
                };
                let statistics = Dispatch::lowbit_batch_statistics(primitive(&input));
                Box::new(move || {
                    black_box(Dispatch::lowbit_batch_norm_gradients(
                        primitive(&input),
                        primitive(&gamma),
                        primitive(&beta),
                        statistics.clone(),
                        primitive(&parameter),
                        primitive(&gradient),
                        EPSILON,
                        activation.clone(),
                    ));
                })
            }
        }
    }

    fn prepare_quantizer(self, device: &Device) -> Box<dyn FnMut()> {
        let (x, gradient) = (operand(self.shape, device), operand(self.shape, device));
        // The parameters one after the other, each as long as the first.
        let grid = |grid: Grid, parameters: Vec<Vec<f32>>| {
            let (x, gradient) = (x.clone(), gradient.clone());
            let tensors: Vec<Tensor<1>> =
                parameters.iter().map(|values| tensor(values, [values.len()], device)).collect();
            match self.pass {
                Pass::Forward => {
                    let scheme = grid.scheme(tensors);
                    Box::new(move || {
                        black_box(scheme.quantize(x.clone()));
                    }) as Box<dyn FnMut()>
                }
                _ => {
                    let any = parameters.concat();
                    let any = if any.is_empty() { vec![0.0] } else { any };
                    let (parameters, formula) = (tensor::<1>(&any, [any.len()], device), grid.formula());
                    Box::new(move || {
                        black_box(Dispatch::lowbit_fake_quantize_gradients(
                            primitive(&x),
                            primitive(&parameters),
                            primitive(&gradient),
                            formula.clone(),
                            true,
                        ));
                    })
                }
            }
        };
        match (self.op, self.pass) {
            (Op::LsqActivations, _) => grid(ACTIVATION_GRID, vec![vec![STEP_SIZE]]),
            (Op::LsqWeights, _) => grid(WEIGHT_GRID, vec![vec![WEIGHT_STEP_SIZE; self.shape[0]]]),
            (Op::PactActivations, _) => grid(Grid::Clip { n: STEPS }, vec![vec![CLIP_VALUE]]),
            (Op::BinaryWeights, _) => grid(Grid::Sign { is_bounded: false }, vec![vec![WEIGHT_STEP_SIZE]]),
            (Op::MinmaxActivations, _) => {
                grid(Grid::Affine { n: AFFINE[2] }, vec![vec![AFFINE[0]], vec![AFFINE[1]]])
            }
            (Op::DorefaActivations, _) => grid(Grid::Unit { n: STEPS }, Vec::new()),
            (Op::DorefaWeights, Pass::Forward) => Box::new(move || {
                black_box(dorefa(x.clone()));
            }),
            (Op::DorefaWeights, _) => {
                let squashed = Dispatch::lowbit_tanh(primitive(&x));
                Box::new(move || {
                    let gradient = primitive(&gradient);
                    black_box(Dispatch::lowbit_dorefa_gradient(
                        squashed.clone(),
                        gradient,
                        MaxGradient::default(),
                    ));
                })
            }
            (op, _) => panic!("{op:?} is no quantizer"),
        }
    }
}

/// DoReFa weights.
fn dorefa(w: Tensor<4>) -> Quantized<4> {
    let n = STEPS as i32;
    dorefa_weights(w, AnyFormula::new(Squashed { n: STEPS }), -n..=n, MaxGradient::default())
}

/// Values from -1 to 1.
fn operand(shape: [usize; 4], device: &Device) -> Tensor<4> {
    let n: usize = shape.iter().product();
    // A prime step through a prime number of values.
    let values: Vec<f32> = (0..n).map(|i| (i * 7919 % 1009) as f32 / 504.0 - 1.0).collect();
    tensor(&values, shape, device)
}

fn primitive<const D: usize>(tensor: &Tensor<D>) -> FloatTensor<Dispatch> {
    tensor.clone().into_dispatch()
}
