//! Strategies: what sets the training of a low-bit network apart from plain training, one file each.
//!
//! A [`Strategy`] is data that answers three questions of the training loop, each with a default answer: into which
//! [phases](Strategy::phases) a training is divided, which part of each layer is quantized
//! [in a step](Strategy::select), and what the [loss](Strategy::loss) of each network is. The loop asks all strategies of
//! a training in turn, each starting from what the one before answered, so strategies compose; models and quantizers
//! know of none. This crate trains nothing: the loop is in `lowbit-train`.
//!
//! ```
//! use lowbit_quantizers::Selection;
//! use lowbit_strategies::{Moment, QuantizedLayer, Strategy};
//!
//! /// Quantizes nothing in the first half of a phase.
//! #[derive(Debug)]
//! struct Late;
//!
//! impl Strategy for Late {
//!     fn select(&self, moment: &Moment, layers: &[QuantizedLayer]) -> Option<Vec<Selection>> {
//!         let is_early = 2 * moment.phase_step < moment.phase_steps;
//!         is_early.then(|| vec![Selection::None; layers.len()])
//!     }
//! }
//!
//! let layers = [QuantizedLayer { path: "conv".into(), error: None }];
//! let at = |phase_step| Moment { seed: 0, step: phase_step, phase_step, phase_steps: 10 };
//! assert_eq!(Late.select(&at(0), &layers), Some(vec![Selection::None]));
//! assert_eq!(Late.select(&at(5), &layers), None);
//! ```

mod hint;
mod joint;
pub mod loss;
mod phase;
mod progressive;
mod settings;
mod stochastic;
mod strategy;
mod two_stage;

pub use hint::{Hint, HintTarget};
pub use joint::{DistillLoss, Joint, JointMode, TeacherSchedule};
pub use phase::{OptimizerState, Phase, QuantizerState, phase_name};
pub use progressive::Progressive;
pub use settings::{OptimizerRecipe, QuantizerGroup, ScheduleRecipe, TrainRecipe};
pub use stochastic::{Probability, Selector, StochasticPrecision, Unit};
pub use strategy::{
    Loss, LossPart, Moment, Outputs, QuantizedLayer, Role, Strategy, StudentOutput, TOTAL, compose_loss,
    compose_phases,
};
pub use two_stage::TwoStage;
