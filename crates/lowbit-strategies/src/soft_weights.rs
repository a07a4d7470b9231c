//! Soft-to-hard weights: weights come to their levels over a training, all of them a little further in each step. Jin et al.,
//! "PARQ: Piecewise-Affine Regularized Quantization", ICML 2025, arXiv 2503.15748.

use lowbit_quantizers::Selection;
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::stochastic::progress;
use crate::strategy::{Moment, QuantizedLayer, Strategy};

/// Rounds weights by a line that becomes steeper until it is a stair.
///
/// # Equation
/// With `u` a weight before the rounding, and `c` the middle of the two levels around it:
/// ```text
/// w = clip(c + (u - c) rho, level below u, level above u)
/// 1 / rho = 1 - t / (N (1 - final_share))        ours: in step t of the N steps of a phase; then w is rounded
/// ```
/// The gradient is taken at `w` and passes to the weight as that of the method's rounding. Inputs are quantized from the first step
/// on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct SoftWeights {
    /// Share of the phase's steps at its end in which weights are rounded, so that BatchNorm's statistics are those of the
    /// deployed network (ours).
    pub final_share: f64,
}

impl SoftWeights {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "soft_weights",
        title: "soft-to-hard weights",
        changes: "how weights are rounded in a step",
        section: "strategy.soft_weights",
        file: file!(),
        keys: &[Key {
            name: "final_share",
            default: "0.2",
            range: "from 0, below 1",
            effect: "last share of the phase's steps, in which weights are rounded",
        }],
    };

    /// `1 / rho` in a step.
    pub fn inverse_slope(&self, moment: &Moment) -> f64 {
        1.0 - progress(moment, self.final_share).unwrap_or(1.0)
    }
}

impl Strategy for SoftWeights {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn select(&self, moment: &Moment, layers: &[QuantizedLayer]) -> Option<Vec<Selection>> {
        let selection = match self.inverse_slope(moment) {
            0.0 => Selection::All,
            inverse => Selection::SoftWeights { slope: 1.0 / inverse },
        };
        Some(vec![selection; layers.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_rounded_in_the_end() {
        let strategy = SoftWeights { final_share: 0.2 };
        let layers = [QuantizedLayer { path: "conv".into(), error: None }];
        let at = |phase_step| {
            let moment = Moment { seed: 0, step: phase_step, phase_step, phase_steps: 100 };
            strategy.select(&moment, &layers).unwrap().remove(0)
        };
        assert_eq!(at(0), Selection::SoftWeights { slope: 1.0 });
        assert_eq!(at(40), Selection::SoftWeights { slope: 2.0 });
        assert_eq!(at(60), Selection::SoftWeights { slope: 4.0 });
        assert_eq!([at(80), at(99)], [Selection::All, Selection::All]);
    }
}
