//! Every layer: output and gradients, with and without quantizers, whole and in part.

use burn::module::{Module, Param, RunningState};
use burn::tensor::Tensor;
use lowbit_core::{Granularity, Precision};
use lowbit_kernels::{Activation, batch_norm, batch_norm_fixed};
use lowbit_quantizers::{LayerQuantization, Method, QuantConv2dConfig, QuantLinearConfig, Selection};
use lowbit_tests::composed::Grid;
use lowbit_tests::{Backend, Tolerance, gradients, normal, rng, tensor, values};

use crate::{Case, Device, Outcome};

/// Sums of up to 400 products, in another order on each backend.
const SUM: Tolerance = Tolerance { relative: 2e-6, absolute: 1e-6 };

/// Gradients of quantizers' parameters are sums of everything, whose parts nearly cancel.
const GRADIENT: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-5 };

const BATCH: usize = 3;

/// A layer and the size of its input, without the batch.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Conv { channels: [usize; 2], kernel: usize, stride: usize, groups: usize, size: [usize; 2] },
    Linear { features: [usize; 2] },
    Norm { channels: usize, size: [usize; 2], after: After },
}

const fn conv(channels: [usize; 2], [kernel, stride, groups]: [usize; 3], size: [usize; 2]) -> Kind {
    Kind::Conv { channels, kernel, stride, groups, size }
}

/// What follows a normalization.
#[derive(Clone, Copy, Debug)]
enum After {
    Identity,
    Relu,
    DoReFa,
    Lsq,
    Pact,
}

impl After {
    fn activation(self, device: &Device) -> Activation {
        let learned = |value: f32, grid: Grid| grid.activation(vec![tensor(&[value], [1], device)]);
        match self {
            Self::Identity => Activation::Identity,
            Self::Relu => Activation::Relu,
            Self::DoReFa => Grid::Unit { n: 3.0 }.activation(Vec::new()),
            Self::Lsq => learned(0.37, Grid::Step { q_min: 0.0, q_max: 7.0 }),
            Self::Pact => learned(1.7, Grid::Clip { n: 3.0 }),
        }
    }
}

/// Sizes that no vector length divides, and some that all do.
const WEIGHTED: [Kind; 13] = [
    conv([3, 5], [3, 1, 1], [7, 9]),
    conv([16, 16], [3, 1, 1], [8, 8]),
    conv([4, 6], [3, 2, 1], [9, 7]),
    conv([5, 3], [1, 1, 1], [6, 5]),
    conv([4, 8], [1, 2, 1], [8, 8]),
    conv([6, 4], [3, 1, 2], [5, 6]),
    conv([8, 8], [3, 1, 8], [7, 6]),
    conv([3, 4], [5, 1, 1], [9, 7]),
    conv([3, 5], [2, 2, 1], [7, 8]),
    conv([4, 8], [4, 1, 1], [6, 9]),
    conv([3, 8], [7, 2, 1], [15, 13]),
    conv([3, 4], [11, 4, 1], [23, 27]),
    Kind::Linear { features: [13, 7] },
];

const NORMS: [Kind; 8] = [
    Kind::Norm { channels: 5, size: [7, 3], after: After::Identity },
    Kind::Norm { channels: 5, size: [7, 3], after: After::Relu },
    Kind::Norm { channels: 16, size: [8, 8], after: After::Relu },
    Kind::Norm { channels: 2, size: [1, 1], after: After::Identity },
    Kind::Norm { channels: 5, size: [7, 3], after: After::DoReFa },
    Kind::Norm { channels: 16, size: [8, 8], after: After::DoReFa },
    Kind::Norm { channels: 5, size: [7, 3], after: After::Lsq },
    Kind::Norm { channels: 5, size: [7, 3], after: After::Pact },
];

/// How the operands are quantized: method, bits of weights and input, and whether each output channel has a scale.
const QUANTIZED: [(Method, u32, u32, Granularity); 8] = [
    (Method::DoReFa, 1, 1, Granularity::PerTensor),
    (Method::DoReFa, 2, 2, Granularity::PerTensor),
    (Method::DoReFa, 8, 4, Granularity::PerTensor),
    (Method::Pact, 3, 2, Granularity::PerTensor),
    (Method::Lsq, 2, 2, Granularity::PerTensor),
    (Method::Lsq, 4, 3, Granularity::PerChannel),
    (Method::MinMax, 2, 2, Granularity::PerTensor),
    (Method::MinMax, 8, 8, Granularity::PerChannel),
];

/// Which part of a layer is quantized.
#[derive(Clone, Copy, Debug)]
enum Part {
    All,
    None,
    EveryOther,
}

const PARTS: [Part; 3] = [Part::All, Part::None, Part::EveryOther];

#[derive(Clone, Debug)]
pub struct LayerCase {
    kind: Kind,
    quantization: LayerQuantization,
    part: Part,
}

pub fn cases() -> Vec<LayerCase> {
    let full = LayerQuantization::FULL_PRECISION;
    let plain = WEIGHTED.iter().chain(&NORMS);
    let mut cases: Vec<LayerCase> =
        plain.map(|&kind| LayerCase { kind, quantization: full, part: Part::All }).collect();
    for (method, weight, act, weight_granularity) in QUANTIZED {
        let bits = |bits| Precision::bits(bits).expect("invariant: 1 to 8 bits");
        let base = LayerQuantization::new(method, bits(weight), bits(act));
        let quantization = LayerQuantization { weight_granularity, ..base };
        for kind in WEIGHTED {
            cases.push(LayerCase { kind, quantization, part: Part::All });
        }
        for part in PARTS.into_iter().skip(1) {
            cases.push(LayerCase { kind: WEIGHTED[2], quantization, part });
        }
    }
    cases
}

impl Part {
    fn selection(self) -> Selection {
        match self {
            Self::All => Selection::All,
            Self::None => Selection::None,
            Self::EveryOther => Selection::ChannelGroups(vec![true, false]),
        }
    }
}

/// As after a ReLU: about half zeros, the rest up to 3 or so.
fn activations(n: usize) -> Vec<f32> {
    normal(n, 0.0, 1.0, &mut rng(5)).into_iter().map(|x| x.max(0.0)).collect()
}

/// Output of `forward`, and the gradients of the input and of all of `module`'s parameters.
fn outcome<const D: usize, M: Module>(
    module: &M,
    input: Tensor<D>,
    forward: impl FnOnce(&M, Tensor<D>) -> Tensor<D>,
) -> Outcome {
    let input = input.require_grad();
    let output = forward(module, input.clone());
    let shape = output.dims();
    let weights = normal(shape.iter().product(), 0.0, 1.0, &mut rng(6));
    let backward = (output.clone() * tensor(&weights, shape, &output.device())).sum().backward();
    let outcome = Outcome::default()
        .exact("shape", shape.map(|length| length as i64))
        .close("output", values(output), SUM)
        .close("gradient of the input", values(input.grad(&backward).expect("it has one")), GRADIENT);
    gradients(module, &backward).into_iter().fold(outcome, |outcome, (path, gradient)| {
        outcome.close(&path, gradient.expect("the parameter has a gradient"), GRADIENT)
    })
}

impl Case for LayerCase {
    fn run(&self, backend: &Backend) -> Outcome {
        let device = backend.device.clone().autodiff();
        match self.kind {
            Kind::Conv { channels, kernel, stride, groups, size } => {
                let config = QuantConv2dConfig::new(channels, kernel)
                    .with_stride(stride)
                    .with_groups(groups)
                    .with_quantization(self.quantization);
                let mut layer = config.init(&device, &mut rng(4)).expect("the layer is defined");
                let shape = [BATCH, channels[0], size[0], size[1]];
                let input = tensor(&activations(shape.iter().product()), shape, &device);
                if let Some(quantizer) = &mut layer.input_quantizer {
                    quantizer.start_calibration();
                    quantizer.observe(&input);
                    quantizer.finish_calibration();
                }
                layer.selection = self.part.selection();
                outcome(&layer, input, |layer, input| layer.forward(input))
            }
            Kind::Linear { features } => {
                let config = QuantLinearConfig::new(features[0], features[1]);
                let config = config.with_quantization(self.quantization);
                let mut layer = config.init(&device, &mut rng(4)).expect("the layer is defined");
                let shape = [BATCH, features[0]];
                let input = tensor(&activations(BATCH * features[0]), shape, &device);
                if let Some(quantizer) = &mut layer.input_quantizer {
                    quantizer.start_calibration();
                    quantizer.observe(&input);
                    quantizer.finish_calibration();
                }
                layer.selection = self.part.selection();
                outcome(&layer, input, |layer, input| layer.forward(input))
            }
            Kind::Norm { channels, size, after } => norm(backend, channels, size, after),
        }
    }
}

/// Scale and shift of a normalization.
#[derive(Module, Debug)]
struct Affine {
    gamma: Param<Tensor<1>>,
    beta: Param<Tensor<1>>,
    mean: RunningState<Tensor<1>>,
    variance: RunningState<Tensor<1>>,
}

impl Affine {
    fn new(channels: usize, device: &Device) -> Self {
        let vector = |mean, seed| tensor(&normal(channels, mean, 0.3, &mut rng(seed)), [channels], device);
        Self {
            gamma: Param::from_tensor(vector(1.0, 1)),
            beta: Param::from_tensor(vector(0.0, 2)),
            mean: RunningState::new(vector(0.2, 3)),
            variance: RunningState::new(vector(2.0, 4)),
        }
    }

    fn parameters(&self) -> [Tensor<1>; 2] {
        [self.gamma.val(), self.beta.val()]
    }
}

/// By the batch in training, by fixed statistics in evaluation.
fn norm(backend: &Backend, channels: usize, [height, width]: [usize; 2], after: After) -> Outcome {
    const EPSILON: f64 = 1e-5;
    let shape = [BATCH, channels, height, width];
    let x = normal(shape.iter().product(), 0.5, 2.0, &mut rng(7));
    let device = backend.device.clone().autodiff();
    let mut statistics = None;
    let outcome = outcome(&Affine::new(channels, &device), tensor(&x, shape, &device), |affine, x| {
        let result = batch_norm(x, affine.parameters(), EPSILON, after.activation(&device));
        statistics = Some([result.mean, result.variance]);
        result.output.into_values()
    });
    let [mean, variance] = statistics.expect("invariant: the forward pass ran");
    let affine = Affine::new(channels, &backend.device);
    let fixed = [affine.mean.value(), affine.variance.value()];
    let x = tensor(&x, shape, &backend.device);
    let evaluated =
        batch_norm_fixed(x, affine.parameters(), fixed, EPSILON, after.activation(&backend.device));
    outcome.close("mean", values(mean), SUM).close("variance", values(variance), SUM).close(
        "output in evaluation",
        values(evaluated.into_values()),
        SUM,
    )
}
