//! Oscillation damping: weights are drawn to their levels. Nagel et al., "Overcoming Oscillations in Quantization-Aware
//! Training", ICML 2022, arXiv 2203.11086.

use burn::tensor::Tensor;
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::loss::sum_of_squares;
use crate::strategy::{LossPart, Moment, Strategy};
use crate::weights::{LayerWeights, falling};

/// Name of the part of the loss.
const DAMPING: &str = "damping";

/// Adds to a student's loss how far its weights are from their levels.
///
/// # Equation
/// ```text
/// loss += weight(t) sum (w_q - clip(w))^2             over all quantized weights, w_q a constant
/// weight(t) = weight (1 - cos(pi t / N)) / 2          ours: in step t of the N steps of a phase
/// ```
/// `clip(w)` is the weight as its method has it before the rounding: of DoReFa, its hyperbolic tangent over the largest (ours).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Damping {
    /// `lambda` at the end of a phase.
    pub weight: f64,
}

impl Damping {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "damping",
        title: "oscillation damping",
        changes: "losses",
        section: "strategy.damping",
        file: file!(),
        keys: &[Key {
            name: "weight",
            default: "0.0001",
            range: "above 0",
            effect: "of the squared distances of all weights from their levels in the loss (lambda), at the end of each phase: it rises from 0 along half a cosine",
        }],
    };

    /// Its weight in a step.
    pub fn weight_at(&self, moment: &Moment) -> f64 {
        self.weight * (1.0 - falling(moment.phase_step, moment.phase_steps))
    }
}

impl Strategy for Damping {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn reads_weights(&self) -> bool {
        true
    }

    fn penalty(&self, moment: &Moment, layers: &[LayerWeights]) -> Option<LossPart> {
        let sum = layers.iter().map(distance).reduce(|sum, distance| sum + distance)?;
        Some(LossPart { name: DAMPING, value: sum * self.weight_at(moment) })
    }
}

/// `sum (w_q - clip(w))^2` of a layer, shape `[1]`.
fn distance(layer: &LayerWeights) -> Tensor<1> {
    let LayerWeights { quantizer, weights, .. } = layer;
    let levels = quantizer.fake_quantize(weights.clone()).detach();
    sum_of_squares(levels - quantizer.unrounded(weights.clone()))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use lowbit_core::Precision;
    use lowbit_quantizers::{LayerQuantization, Method, WeightQuantizer};

    use super::*;

    /// LSQ of 2 bits with a step of 2 mean|w| = 1: -0.4, 0.4, 0.6 and 0.6 have the levels 0, 0, 1 and 1.
    #[test]
    fn weights_are_drawn_to_their_levels_by_hand() {
        let device = Device::default().autodiff();
        let weights = Tensor::<2>::from_floats([[-0.4, 0.4], [0.6, 0.6]], &device).require_grad();
        let bits = Precision::bits(2).unwrap();
        let quantization = LayerQuantization::new(Method::Lsq, bits, bits);
        let quantizer = WeightQuantizer::new(&quantization, weights.clone()).unwrap().unwrap();
        let layer = LayerWeights { path: "conv".into(), quantizer, weights: weights.clone() };
        let damping = Damping { weight: 0.5 };
        let moment = |phase_step| Moment { seed: 0, step: 0, phase_step, phase_steps: 4 };
        assert_eq!(damping.weight_at(&moment(0)), 0.0);
        let part = damping.penalty(&moment(2), &[layer]).unwrap();
        // Half of 0.5, times 4 * 0.16.
        let value = part.value.clone().into_scalar::<f32>();
        assert!((value - 0.25 * 0.64).abs() < 1e-6, "{value}");
        let gradient = weights.grad(&part.value.backward()).unwrap().into_data();
        let expected = [-0.8, 0.8, -0.8, -0.8].map(|slope| 0.25 * slope);
        for (got, expected) in gradient.iter::<f32>().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got}, expected {expected}");
        }
    }
}
