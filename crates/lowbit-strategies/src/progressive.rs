//! Progressive quantization: the bit width is lowered in steps. Zhuang et al. 2018 and 2021, "progressive quantization".

use lowbit_core::Precision;
use lowbit_quantizers::PrecisionFloor;
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::phase::Phase;
use crate::strategy::Strategy;

/// Trains at high bit widths first and lowers them rung by rung to those of the recipe, each rung starting from the one
/// before.
///
/// On a rung of `k` bits, weights have `max(k, target)` bits, and so have activations: a ladder cuts off where it passes
/// the target. Rungs that would repeat the one before are dropped.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progressive {
    /// The rungs above the target, descending. Full precision stands for the paper's 32 bits; its 16-bit rung is left
    /// out (decision of this project: at 16 bits rounding is below the noise of training).
    pub ladder: Vec<Precision>,
    /// Factor of the learning rate of phases whose weights or activations have 2 bits or fewer.
    #[serde(skip_serializing_if = "is_one")]
    pub low_bit_rate_scale: f64,
}

/// Whether low bits have no rate of their own, which is not written down: a recipe of an earlier lowbit says nothing of it.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(scale: &f64) -> bool {
    *scale == 1.0
}

/// From how many bits down weights and activations count as low.
const LOW_BITS: u32 = 2;

impl Progressive {
    /// Full precision, 8, 4 and 2 bits.
    pub fn default_ladder() -> Vec<Precision> {
        let bits = [8, 4, 2].map(|bits| Precision::bits(bits).expect("invariant: 2 to 8 are bit widths"));
        std::iter::once(Precision::FullPrecision).chain(bits).collect()
    }
}

impl Progressive {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "progressive",
        title: "progressive",
        changes: "phases",
        section: "strategy.progressive",
        file: file!(),
        keys: &[
            Key {
                name: "ladder",
                default: r#"`["fp32", 8, 4, 2]`"#,
                range: "descending bit widths",
                effect: "a phase for each one above those of the recipe, then one for these; [16 bits](methods/strategies.md#progressive-quantization) are not offered",
            },
            Key {
                name: "low_bit_rate_scale",
                default: "1",
                range: "above 0",
                effect: "factor of the learning rate of phases with weights or activations of 2 bits or fewer, unless `[phases.NAME]` sets theirs",
            },
        ],
    };
}

impl Strategy for Progressive {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn phases(&self, phases: Vec<Phase>) -> Vec<Phase> {
        let mut phases: Vec<Phase> = phases.into_iter().flat_map(|target| self.rungs(target)).collect();
        for phase in &mut phases {
            let PrecisionFloor { weight_bits, act_bits } = phase.floor;
            if weight_bits.stored_bits().min(act_bits.stored_bits()) <= LOW_BITS {
                phase.train.learning_rate *= self.low_bit_rate_scale;
            }
        }
        phases
    }
}

impl Progressive {
    fn rungs(&self, target: Phase) -> Vec<Phase> {
        let PrecisionFloor { weight_bits, act_bits } = target.floor;
        let mut rungs: Vec<Phase> = self
            .ladder
            .iter()
            .map(|&rung| {
                target.at(PrecisionFloor { weight_bits: weight_bits.max(rung), act_bits: act_bits.max(rung) })
            })
            .chain([target.clone()])
            .collect();
        rungs.dedup_by(|next, previous| next.floor == previous.floor);
        rungs
    }
}
