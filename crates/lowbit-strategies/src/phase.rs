//! A phase: a stretch of a training at one precision and with settings of its own.

use lowbit_core::Precision;
use lowbit_quantizers::PrecisionFloor;
use serde::Serialize;

use crate::settings::TrainRecipe;

/// A stretch of a training. Each phase begins with the weights at which the one before ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Phase {
    /// Its precision, as in "w4a32"; unique in a training.
    pub name: String,
    /// Precision that no layer goes below in this phase.
    pub floor: PrecisionFloor,
    /// How it is trained. Epochs, milestones and warm-up count from its start.
    pub train: TrainRecipe,
    /// What becomes of the optimizer's state where it begins.
    pub optimizer_state: OptimizerState,
    /// What becomes of learned quantizer parameters where it begins.
    pub quantizer_state: QuantizerState,
}

/// What a phase begins with in its optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptimizerState {
    /// Nothing: momentum gathered at another precision points elsewhere.
    #[default]
    Fresh,
    /// The state of the phase before, for all parameters that both have.
    Kept,
}

/// What a phase does with the learned parameters of a quantizer whose bit width changes. Where the bit width stays, they
/// stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizerState {
    /// Sets them anew, from the weights and from calibration batches: the best range of a coarse grid is narrower than
    /// that of a fine one.
    #[default]
    Recalibrated,
    /// Rescales step sizes by the ratio of the largest codes, so that the range stays.
    Rescaled,
}

impl Phase {
    /// The same phase at another precision, and named after it.
    pub fn at(&self, floor: PrecisionFloor) -> Self {
        Self { name: phase_name(floor.weight_bits, floor.act_bits), floor, ..self.clone() }
    }
}

/// "w4a32" for 4-bit weights and full-precision activations.
pub fn phase_name(weight_bits: Precision, act_bits: Precision) -> String {
    format!("w{}a{}", weight_bits.stored_bits(), act_bits.stored_bits())
}
