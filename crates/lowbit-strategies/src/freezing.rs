//! Freezing of oscillating weights. Nagel et al., "Overcoming Oscillations in Quantization-Aware Training", ICML 2022,
//! arXiv 2203.11086.

use burn::tensor::{Bool, Tensor};
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::strategy::{Moment, Strategy};
use crate::weights::{LayerWeights, Measure, Notes, UpdatedLayer, falling, nearest_code, sum};

/// Holds a weight whose code flips back and forth too often.
///
/// # Equation
/// For each quantized weight, with its code `c` after the step, and `m = momentum`:
/// ```text
/// o = 1 where c changed against the direction of its change before, else 0
/// f = m o + (1 - m) f                                   how often it flips
/// C = m c + (1 - m) C                                   its mean code, which begins with its code
/// frozen from where f > threshold(t) on                 until the end of the phase (ours), at the code nearest to C
/// threshold(t) = to + (from - to) (1 + cos(pi t / N)) / 2      ours: in step t of the N steps of a phase
/// ```
/// A frozen weight is the value of its code, after every step anew: a learned step size goes on moving.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Freezing {
    /// Threshold at the start of a phase.
    pub from: f64,
    /// Threshold at the end of a phase.
    pub to: f64,
    /// `m`.
    pub momentum: f64,
}

/// From how many flips a step on a weight counts as one that oscillates, in metrics alone (ours).
const OSCILLATES: f64 = 0.01;

/// What is kept of every weight of a layer: how often it flips, its mean code, the direction in which its code changed last
/// (-1, 0 or 1), and 1 where it is frozen.
const KEPT: [&str; 4] = ["flips", "mean", "direction", "frozen"];

impl Freezing {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "freezing",
        title: "freezing",
        changes: "weights after an update",
        section: "strategy.freezing",
        file: file!(),
        keys: &[
            Key {
                name: "from",
                default: "0.1",
                range: "above 0, up to 1",
                effect: "flips a step, on average, from which on a weight is frozen, at the start of each phase",
            },
            Key {
                name: "to",
                default: "0.02",
                range: "above 0, up to `from`",
                effect: "the same at its end; it falls along half a cosine",
            },
            Key {
                name: "momentum",
                default: "0.02",
                range: "above 0, below 1",
                effect: "share of a step in these averages",
            },
        ],
    };

    /// The threshold in a step.
    pub fn threshold_at(&self, moment: &Moment) -> f64 {
        self.to + (self.from - self.to) * falling(moment.phase_step, moment.phase_steps)
    }
}

/// What is kept of the weights of a layer.
struct Kept {
    flips: Tensor<2>,
    mean: Tensor<2>,
    direction: Tensor<2>,
    frozen: Tensor<2, Bool>,
}

impl Freezing {
    /// What is kept after a step in which the codes `before` became those `after`. Nothing changes of a weight that is frozen.
    fn next(&self, kept: Kept, before: Tensor<2>, after: Tensor<2>, threshold: f64) -> Kept {
        let Kept { flips, mean, direction, frozen } = kept;
        let m = self.momentum;
        let moved = (after.clone() - before).sign();
        let has_moved = moved.clone().not_equal_elem(0.0);
        let is_flip = has_moved.clone().bool_and((moved.clone() * direction.clone()).lower_elem(0.0));
        let next_flips = is_flip.float() * m + flips.clone() * (1.0 - m);
        let next_mean = after * m + mean.clone() * (1.0 - m);
        let next_direction = direction.clone().mask_where(has_moved, moved);
        let still = |next: Tensor<2>, old: Tensor<2>| next.mask_where(frozen.clone(), old);
        let flips = still(next_flips, flips);
        Kept {
            mean: still(next_mean, mean),
            direction: still(next_direction, direction),
            frozen: frozen.clone().bool_or(flips.clone().greater_elem(threshold)),
            flips,
        }
    }
}

impl Strategy for Freezing {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn reads_weights(&self) -> bool {
        true
    }

    fn begin(&self, _: f64, layers: &[LayerWeights]) -> Notes {
        let mut notes = Notes::default();
        for layer in layers {
            let codes = layer.codes();
            let zeros = codes.zeros_like();
            let begins = [zeros.clone(), codes, zeros.clone(), zeros];
            for (name, tensor) in KEPT.into_iter().zip(begins) {
                notes.tensors.insert(format!("{}.{name}", layer.path), tensor);
            }
        }
        notes
    }

    fn update(&self, moment: &Moment, layers: &mut [UpdatedLayer], notes: &mut Notes) -> Vec<Measure> {
        let threshold = self.threshold_at(moment);
        let (mut n_frozen, mut n_oscillating, mut n_weights) = (Vec::new(), Vec::new(), 0);
        for updated in layers {
            let UpdatedLayer { layer: LayerWeights { path, quantizer, weights }, before, after, .. } =
                updated;
            let names = KEPT.map(|name| format!("{path}.{name}"));
            let of = |name: &String| notes.tensors.get(name).cloned().unwrap_or_else(|| after.zeros_like());
            let [flips, mean, direction, frozen] = names.each_ref().map(of);
            let kept = Kept { flips, mean, direction, frozen: frozen.greater_elem(0.5) };
            let Kept { flips, mean, direction, frozen } =
                self.next(kept, before.clone(), after.clone(), threshold);
            let codes = nearest_code(mean.clone(), &quantizer.code_set());
            let held = quantizer.held_at(codes, weights);
            updated.instead = Some(weights.clone().mask_where(frozen.clone(), held));
            let oscillates = frozen.clone().bool_not().bool_and(flips.clone().greater_elem(OSCILLATES));
            n_weights += flips.shape().num_elements();
            n_oscillating.push(sum(oscillates.float()));
            let frozen = frozen.float();
            n_frozen.push(sum(frozen.clone()));
            notes.tensors.extend(names.into_iter().zip([flips, mean, direction, frozen]));
        }
        let share = |name, counts: Vec<Tensor<1>>| {
            let sum = counts.into_iter().reduce(|sum, n| sum + n)?;
            Some(Measure { name, value: sum / n_weights as f64 })
        };
        [share("frozen", n_frozen), share("oscillating", n_oscillating)].into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn values(tensor: &Tensor<2>) -> Vec<f32> {
        tensor.to_data().iter::<f32>().collect()
    }

    /// One weight that goes to and fro in every step, one that goes one way, one that stays; half of a step counts.
    #[test]
    fn flips_are_counted_and_frozen_by_hand() {
        let device = Device::default();
        let row = |row: [f32; 3]| Tensor::<2>::from_floats([row], &device);
        let freezing = Freezing { from: 0.6, to: 0.6, momentum: 0.5 };
        let zeros = row([0.0; 3]);
        let mut kept = Kept {
            flips: zeros.clone(),
            mean: row([0.0, -2.0, 1.0]),
            direction: zeros.clone(),
            frozen: zeros.greater_elem(0.5),
        };
        let codes = [[0.0, -2.0, 1.0], [1.0, -1.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]];
        // The first change has no direction to go against.
        let flips = [0.0, 0.5, 0.75, 0.75];
        let means = [0.5, 0.25, 0.625, 0.625];
        for (i, step) in codes.windows(2).enumerate() {
            kept = freezing.next(kept, row(step[0]), row(step[1]), 0.6);
            assert_eq!(values(&kept.flips), [flips[i], 0.0, 0.0], "step {i}");
            assert_eq!(values(&kept.mean)[0], means[i], "step {i}: a frozen mean stays");
            assert_eq!(values(&kept.frozen.clone().float()), [f32::from(u8::from(i >= 2)), 0.0, 0.0]);
        }
        assert_eq!(values(&kept.direction), [1.0, 1.0, 0.0]);
        // -2, -1.5, -0.75, 0.125, 0.5625.
        assert_eq!(values(&kept.mean)[1..], [0.5625, 1.0]);
    }

    #[test]
    fn the_threshold_falls() {
        let freezing = Freezing { from: 0.1, to: 0.02, momentum: 0.02 };
        let at =
            |phase_step| freezing.threshold_at(&Moment { seed: 0, step: 0, phase_step, phase_steps: 100 });
        assert!((at(0) - 0.1).abs() < 1e-12 && (at(50) - 0.06).abs() < 1e-12 && at(99) < 0.0201);
    }
}
