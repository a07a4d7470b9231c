//! Transition-rate schedule: not a learning rate is scheduled, but how many weights get another code in a step. Lee et al.,
//! "Transition Rate Scheduling for Quantization-Aware Training", ICCV 2025, arXiv 2404.19248.

use burn::tensor::Tensor;
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::strategy::{Moment, Strategy};
use crate::weights::{LayerWeights, Measure, Notes, UpdatedLayer, falling, n_changed};

/// Trains the quantized weights of students by a rate that keeps their transition rate at a target.
///
/// # Equation
/// ```text
/// k  = share of the codes that changed in the step         over all quantized weights of the network (ours)
/// K  = 0.99 K + 0.01 k                                     in the phase's first step K = k (ours)
/// U  = max(0, U + eta (R - K))                             the learning rate of the weights in the next step
/// R  = lambda sqrt(bits) (1 + cos(pi t / N)) / 2           the cosine is ours; of bits the mean over the weights
/// ```
/// `U` begins with the learning rate of the phase (ours). It takes the place of the scheduled one for the latent weights alone; learned
/// steps and the like of the weights' quantizers are not trained.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TransitionRate {
    /// `lambda`.
    pub target: f64,
    /// `eta`.
    pub gain: f64,
}

/// Share of `K` that stays, of the paper.
const KEPT: f64 = 0.99;

const K: &str = "transition_rate";
const U: &str = "weight_learning_rate";

impl TransitionRate {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "transition_rate",
        title: "transition-rate schedule",
        changes: "the learning rate of quantized weights",
        section: "strategy.transition_rate",
        file: file!(),
        keys: &[
            Key {
                name: "target",
                default: "0.005",
                range: "above 0, up to 1",
                effect: "share of the weights that get another code in a step, at the start, for each square root of a bit (lambda)",
            },
            Key {
                name: "gain",
                default: "0.05",
                range: "above 0",
                effect: "what a step changes of the weights' learning rate, for each unit of distance from the target (eta)",
            },
        ],
    };

    /// `R` in a step, where the weights have this mean of the square roots of their bits.
    pub fn target_at(&self, moment: &Moment, sqrt_bits: f64) -> f64 {
        self.target * sqrt_bits * falling(moment.phase_step, moment.phase_steps)
    }

    /// `K` and `U` after a step in which the share `k` of the codes changed, and `R` was `target`.
    fn next(&self, [rate, u]: [f64; 2], k: f64, target: f64, is_first: bool) -> [f64; 2] {
        let rate = if is_first { k } else { KEPT * rate + (1.0 - KEPT) * k };
        [rate, (u + self.gain * (target - rate)).max(0.0)]
    }
}

impl Strategy for TransitionRate {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn reads_weights(&self) -> bool {
        true
    }

    fn sets_weight_rate(&self) -> bool {
        true
    }

    fn begin(&self, learning_rate: f64, _: &[LayerWeights]) -> Notes {
        let numbers = [(K, 0.0), (U, learning_rate as f32)].map(|(name, number)| (name.to_string(), number));
        Notes { numbers: numbers.into(), ..Notes::default() }
    }

    fn weight_rate(&self, _: &Moment, notes: &Notes) -> Option<f64> {
        notes.numbers.get(U).copied().map(f64::from)
    }

    /// Reads the number of codes that changed from the device.
    fn update(&self, moment: &Moment, layers: &mut [UpdatedLayer], notes: &mut Notes) -> Vec<Measure> {
        let changed = layers.iter().map(|layer| n_changed(layer.before.clone(), layer.after.clone()));
        let Some(changed) = changed.reduce(|sum, n| sum + n) else { return Vec::new() };
        let device = changed.device();
        let (mut n_weights, mut sqrt_bits) = (0.0, 0.0);
        for UpdatedLayer { layer, after, .. } in layers.iter() {
            let n = after.shape().num_elements() as f64;
            n_weights += n;
            sqrt_bits += n * f64::from(layer.quantizer.bits().get()).sqrt();
        }
        let k = f64::from(changed.into_scalar::<f32>()) / n_weights;
        let target = self.target_at(moment, sqrt_bits / n_weights);
        let before = [K, U].map(|name| notes.numbers.get(name).copied().map_or(0.0, f64::from));
        let after = self.next(before, k, target, moment.phase_step == 0);
        for (name, number) in [K, U].into_iter().zip(after) {
            notes.numbers.insert(name.into(), number as f32);
        }
        let measure =
            |name, value: f64| Measure { name, value: Tensor::from_floats([value as f32], &device) };
        vec![measure(K, after[0]), measure("transition_target", target), measure(U, after[1])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_distance_from_the_target() {
        let strategy = TransitionRate { target: 0.01, gain: 0.5 };
        let close = |got: [f64; 2], expected: [f64; 2]| {
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{got:?} {expected:?}");
        };
        // Too few change: it grows by half of 0.02 - 0.004.
        let first = strategy.next([0.0, 0.1], 0.004, 0.02, true);
        close(first, [0.004, 0.108]);
        // K = 0.99 * 0.004 + 0.01 * 0.504 = 0.009.
        let second = strategy.next(first, 0.504, 0.02, false);
        close(second, [0.009, 0.1135]);
        // Never below zero.
        close(strategy.next([0.5, 0.1], 0.5, 0.0, false), [0.5, 0.0]);
    }

    #[test]
    fn the_target_falls_to_nothing() {
        let strategy = TransitionRate { target: 0.01, gain: 0.5 };
        let at = |phase_step| {
            strategy.target_at(&Moment { seed: 0, step: 7, phase_step, phase_steps: 100 }, 2f64.sqrt())
        };
        assert!((at(0) - 0.01 * 2f64.sqrt()).abs() < 1e-12);
        assert!((at(50) - 0.005 * 2f64.sqrt()).abs() < 1e-12);
        assert!(at(99) < 1e-5 && at(99) > 0.0);
    }
}
