//! Every quantizer at every bit width: codes, values, gradients.

use lowbit_core::{BitWidth, Granularity};
use lowbit_quantizers::Operand;
use lowbit_tests::{Backend, Spec, Tolerance, default_device, integers, normal, rng, tensor, values};

use crate::{Case, Device, Outcome};

/// Some ulp: a few operations, of which tanh is the least exact.
const VALUE: Tolerance = Tolerance::relative(8.0 * f32::EPSILON as f64);

/// The gradient of DoReFa weights has a sum over all weights; the others are masks.
const GRADIENT: Tolerance = Tolerance::relative(4e-6);

/// A sum over all elements, added in another order on each backend, whose parts nearly cancel.
const PARAMETER: Tolerance = Tolerance { relative: 1e-5, absolute: 1e-5 };

const SHAPE: [usize; 4] = [4, 3, 5, 7];
const N: usize = SHAPE[0] * SHAPE[1] * SHAPE[2] * SHAPE[3];
const SEEDS: [u64; 2] = [0, 1];

/// A weight larger than all others: of several that share the maximum of tanh, one backend gives the maximum's gradient to
/// the first, another shares it out.
const LARGEST: f32 = 5.0;

/// What a quantizer is given.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Input {
    /// Zeros of both signs, tiny and large values, multiples of 1/8, neighbours of 1 and 4, and random values.
    Mixture { seed: u64 },
    /// All ties and edges of the quantizer's own grid, and the floats next to each.
    Edges,
}

#[derive(Clone, Debug)]
pub struct QuantizerCase {
    spec: Spec,
    bits: BitWidth,
    input: Input,
}

fn specs() -> Vec<Spec> {
    let per_channel = (0..SHAPE[0]).map(|channel| 0.05 + 0.07 * channel as f32).collect();
    vec![
        Spec::DoReFaWeights,
        Spec::DoReFaWeightsDetachedMax,
        Spec::DoReFaActivations,
        Spec::PactActivations { clip_value: 4.0 },
        Spec::PactActivations { clip_value: 2.7 },
        Spec::LsqWeights { step_size: vec![0.25], granularity: Granularity::PerTensor },
        Spec::LsqWeights { step_size: vec![0.11], granularity: Granularity::PerTensor },
        Spec::LsqWeights { step_size: per_channel, granularity: Granularity::PerChannel },
        Spec::LsqActivations { step_size: 0.25 },
        Spec::LsqActivations { step_size: 0.3 },
        Spec::MinMaxWeights { granularity: Granularity::PerTensor },
        Spec::MinMaxWeights { granularity: Granularity::PerChannel },
        Spec::MinMaxActivations { min: 0.0, max: 3.75 },
        Spec::MinMaxActivations { min: -0.9, max: 3.1 },
    ]
    .into_iter()
    .chain(Spec::learned(SHAPE[0]))
    .collect()
}

pub fn cases() -> Vec<QuantizerCase> {
    let inputs = || SEEDS.map(|seed| Input::Mixture { seed }).into_iter().chain([Input::Edges]);
    let mut cases = Vec::new();
    for spec in specs() {
        // Sums over a tensor, or logarithms, differ in the last digit, and a tie falls to either side.
        let is_normalized = matches!(
            &spec,
            Spec::Learned { method, operand: Operand::Weights, .. }
                if ["apot", "n2uq", "twn", "qil", "lq-nets"].contains(&method.name())
        );
        for bits in BitWidth::ALL.into_iter().filter(|bits| spec.bits().contains(&bits.get())) {
            let inputs = inputs().filter(|input| !is_normalized || *input != Input::Edges);
            cases.extend(inputs.map(|input| QuantizerCase { spec: spec.clone(), bits, input }));
        }
    }
    cases
}

impl QuantizerCase {
    fn input(&self) -> Vec<f32> {
        let mut x = match self.input {
            Input::Mixture { seed } => mixture(seed),
            Input::Edges => self.edges(),
        };
        if let Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax = self.spec {
            // Zero is a tie, and the tanh of wgpu is off by an ulp of 1 beside it.
            x.iter_mut().filter(|x| x.abs() < 1e-6).for_each(|x| *x = 0.0);
        }
        // A GPU may take subnormal numbers, the floats beside zero, for zero.
        x.iter_mut().filter(|x| x.is_subnormal()).for_each(|x| *x = 0.0);
        x
    }

    /// The scale of the first channel; that of DoReFa weights, whose grid is one of tanh, is as good as any.
    fn scale(&self) -> f32 {
        let n = (self.bits.levels() - 1) as f32;
        match &self.spec {
            Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax | Spec::DoReFaActivations => 1.0 / n,
            Spec::PactActivations { clip_value } => clip_value / n,
            Spec::LsqWeights { step_size, .. } => step_size[0],
            Spec::LsqActivations { step_size } => *step_size,
            // The largest weight, added below, makes this the scale.
            Spec::MinMaxWeights { .. } => 0.5,
            Spec::MinMaxActivations { min, max } => (max - min) / n,
            Spec::Learned { .. } if !self.spec.has_grid() => 0.25,
            Spec::Learned { .. } => {
                let device = default_device();
                let any = tensor::<2>(&[1.0; SHAPE[0]], [SHAPE[0], 1], &device);
                self.spec.build(self.bits, &device).grid(any).scale(0)
            }
        }
    }

    fn edges(&self) -> Vec<f32> {
        let (range, scale) = (self.spec.code_range(self.bits), self.scale());
        let mut x = Vec::with_capacity(N);
        if let Spec::MinMaxWeights { .. } = self.spec {
            x.push(range.q_max as f32 * scale);
        }
        // Of wide grids both ends and the middle: as many as fit.
        let halves = 2 * range.q_min - 3..=2 * range.q_max + 3;
        let every = (halves.clone().count() * 3 / (N - 8)).max(1);
        let ends = |half: &i32| *half <= 2 * range.q_min + 3 || *half >= 2 * range.q_max - 3;
        for half in halves.filter(|half| ends(half) || (*half as usize).is_multiple_of(2 * every + 1)) {
            let place = half as f32 * 0.5 * scale;
            x.extend([place, place.next_up(), place.next_down()]);
        }
        if let Spec::DoReFaWeights | Spec::DoReFaWeightsDetachedMax = self.spec {
            x.push(LARGEST);
        }
        if let Spec::MinMaxWeights { .. } = self.spec {
            // None beyond the largest, which would change the scale.
            let largest = x[0];
            x.retain(|value| value.abs() <= largest);
        }
        assert!(x.len() <= N, "{} places", x.len());
        x.resize(N, 0.0);
        x
    }
}

fn mixture(seed: u64) -> Vec<f32> {
    let mut x: Vec<f32> = (-20..=20).map(|half| half as f32 * 0.125).collect();
    x.extend([0.0, -0.0, 1e-30, -1e-30, 1.0, 1.0f32.next_up(), 1.0f32.next_down(), 4.0, 4.0f32.next_up()]);
    x.push(LARGEST);
    x.extend(normal(N - x.len(), 0.0, 1.0, &mut rng(seed)));
    x
}

impl Case for QuantizerCase {
    fn run(&self, backend: &Backend) -> Outcome {
        let (x, grad_y) = (self.input(), normal(N, 0.0, 1.0, &mut rng(1000)));
        let evaluate = self.spec.build(self.bits, &backend.device);
        let plain = tensor(&x, SHAPE, &backend.device);
        let device: Device = backend.device.clone().autodiff();
        let train = self.spec.build(self.bits, &device);
        let x = tensor(&x, SHAPE, &device).require_grad();
        let y = train.fake_quantize(x.clone());
        let gradients = (y.clone() * tensor(&grad_y, SHAPE, &device)).sum().backward();
        let grad_x = values(x.grad(&gradients).expect("the input has a gradient"));
        let outcome = Outcome::default()
            .exact("codes", integers(evaluate.codes(plain.clone())))
            .exact("codes in training", integers(train.codes(x)))
            .close("values", values(evaluate.fake_quantize(plain)), VALUE)
            .close("values in training", values(y), VALUE)
            .close("gradient", grad_x, GRADIENT);
        train.learned().into_iter().fold(outcome, |outcome, (name, parameter)| {
            let gradient = parameter.grad(&gradients).expect("the parameter has a gradient");
            outcome.close(name, values(gradient), PARAMETER)
        })
    }
}
