//! Two-stage optimization: weights first, then activations too. Zhuang et al. 2018 and 2021, "two-stage optimization".

use lowbit_core::Precision;
use lowbit_quantizers::PrecisionFloor;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::phase::Phase;
use crate::strategy::Strategy;

/// Lowers the bits of the weights first, and from there those of the activations, the weights training on.
///
/// Nested in a progressive training it divides every rung that lowers both: in the first stage of a rung, activations stay
/// as they were on the rung before, in full precision on the first. So no precision comes twice, and activations never get
/// bits back (decision of this project). A phase that lowers only one of the two is left whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwoStage;

impl TwoStage {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "two_stage",
        title: "two-stage",
        changes: "phases",
        section: "strategy",
        file: file!(),
        keys: &[Key {
            name: "two_stage",
            default: "false",
            range: "true, false",
            effect: "weights first, then activations too; both must be quantized",
        }],
    };
}

impl Strategy for TwoStage {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::none()
    }

    fn phases(&self, phases: Vec<Phase>) -> Vec<Phase> {
        let mut before =
            PrecisionFloor { weight_bits: Precision::FullPrecision, act_bits: Precision::FullPrecision };
        let mut stages = Vec::new();
        for phase in phases {
            let PrecisionFloor { weight_bits, act_bits } = phase.floor;
            if weight_bits != before.weight_bits && act_bits.stored_bits() < before.act_bits.stored_bits() {
                stages.push(phase.at(PrecisionFloor { weight_bits, act_bits: before.act_bits }));
            }
            before = phase.floor;
            stages.push(phase);
        }
        stages
    }
}
