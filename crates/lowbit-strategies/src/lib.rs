//! Strategies: what sets the training of a low-bit network apart from plain training, one file each.
//!
//! A [`Strategy`] is data that answers questions of the training loop, each with a default answer: which
//! [networks](Strategy::networks) there are, into which [phases](Strategy::phases) a training is divided, which part of each
//! layer is quantized [in a step](Strategy::select), what the [loss](Strategy::loss) of each network is, and, for those who
//! [look at quantized weights](Strategy::reads_weights), how these are [updated](Strategy::update). The loop asks all
//! strategies of a training in turn, each starting from what the one before answered, so strategies compose; models and
//! quantizers know of none. This crate trains nothing: the loop is in `lowbit-train`.
//!
//! ```
//! use lowbit_quantizers::Selection;
//! use lowbit_strategies::{Moment, QuantizedLayer, Settings, Strategy};
//!
//! /// Quantizes nothing in the first half of a phase.
//! #[derive(Debug)]
//! struct Late;
//!
//! impl Strategy for Late {
//!     fn name(&self) -> &str {
//!         "late"
//!     }
//!
//!     fn settings(&self) -> Settings {
//!         Settings::none()
//!     }
//!
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

mod about;
mod compose;
mod damping;
mod fingerprint;
mod freezing;
mod hint;
mod joint;
pub mod loss;
mod network;
mod phase;
mod progressive;
mod settings;
mod sharpness;
mod soft_weights;
mod stochastic;
mod strategy;
mod transition_rate;
mod two_stage;
mod weights;

pub use about::{About, Key, STRATEGIES};
pub use compose::{
    StrategyError, StrategyProblem, compose_loss, compose_networks, compose_perturbation, compose_phases,
    compose_selections, compose_weight_rate,
};
pub use damping::Damping;
pub use fingerprint::{Fingerprint, Settings, StrategyDifference};
pub use freezing::Freezing;
pub use hint::{Hint, HintGrid, HintMaps, HintTarget};
pub use joint::{
    DistillLoss, Joint, JointLosses, JointMode, JointStudent, JointTarget, JointTeacher, TEACHER,
    TeacherSchedule,
};
pub use network::{Init, NetworkSpec, Output, Outputs, Role, STUDENT};
pub use phase::{OptimizerState, Phase, QuantizerState, phase_name};
pub use progressive::Progressive;
pub use settings::{OptimizerRecipe, QuantizerGroup, ScheduleRecipe, TrainRecipe};
pub use sharpness::Sharpness;
pub use soft_weights::SoftWeights;
pub use stochastic::{Probability, Selector, StochasticPrecision, Unit};
pub use strategy::{Loss, LossPart, Moment, QuantizedLayer, Strategy, TOTAL};
pub use transition_rate::TransitionRate;
pub use two_stage::TwoStage;
pub use weights::{LayerWeights, Measure, Notes, UpdatedLayer};
