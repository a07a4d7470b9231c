//! Two-stage optimization: weights first, then activations too. Zhuang et al. 2018 and 2021, "two-stage optimization".

use lowbit_core::Precision;
use lowbit_quantizers::PrecisionFloor;

use super::{Phase, Strategy};

/// Trains with quantized weights and full-precision activations first, and from there with both quantized, the weights
/// training on.
///
/// Nested in a progressive training it divides every rung. A phase that quantizes only one of the two is left whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwoStage;

impl Strategy for TwoStage {
    fn phases(&self, phases: Vec<Phase>) -> Vec<Phase> {
        phases.into_iter().flat_map(stages).collect()
    }
}

fn stages(phase: Phase) -> Vec<Phase> {
    let PrecisionFloor { weight_bits, act_bits } = phase.floor;
    match (weight_bits, act_bits) {
        (Precision::Bits(_), Precision::Bits(_)) => {
            vec![phase.at(PrecisionFloor { weight_bits, act_bits: Precision::FullPrecision }), phase]
        }
        _ => vec![phase],
    }
}
