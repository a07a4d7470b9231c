//! Low-bit training: recipes, the training loop, checkpoints and metrics.
//!
//! A [`Recipe`] decides everything about a training. [`train`] runs one in a new run directory, [`resume`] goes on with
//! a run that was stopped or killed and ends as if it had not been, [`evaluate`] scores a checkpoint, [`inspect()`] shows
//! what a run holds. The device is the caller's: no backend is named here.
//!
//! ```
//! use lowbit_train::Recipe;
//!
//! let recipe = Recipe::embedded("digits-preresnet8-w2a2", &["train.epochs=3".into()])?;
//! assert_eq!(recipe.train.epochs, 3);
//!
//! let error = Recipe::embedded("digits-preresnet8-w2a2", &["quantization.weight_bits=9".into()]).unwrap_err();
//! assert!(error.to_string().contains("quantization.weight_bits: expected a bit width from 1 to 8"));
//! # Ok::<(), lowbit_train::RecipeError>(())
//! ```

mod checkpoint;
mod data;
mod disk;
mod error;
mod files;
#[doc(hidden)]
pub mod fuzzing;
mod inspect;
mod learner;
mod memory;
mod metrics;
#[doc(hidden)]
pub mod optimizer;
mod optimizer_file;
mod origin;
pub mod recipe;
mod run_dir;
mod schedule;
mod set_aside;
mod state;
mod trainer;
mod warning;

// What a session and a strategy of one's own need, so that such a program depends on this crate alone.
pub use lowbit_data::{Digest, Image, ImageShape, Locations, Normalization, SampleError, Source, SourceInfo};
pub use lowbit_models::Kept;
pub use lowbit_quantizers::Selection;
pub use lowbit_strategies as strategy;

pub use checkpoint::{CheckpointError, Pending, Progress, Record};
pub use data::Images;
pub use error::{Divergence, TrainError, escaped, is_unseen, shell_quoted};
pub use files::{MAX_TEXT, open_regular, read_regular, read_regular_text};
pub use inspect::{
    CheckpointInspection, Evaluation, Inspection, Subject, best_checkpoint, evaluate, inspect,
};
pub use memory::MemoryEstimate;
pub use metrics::{EpochMetrics, NetworkMetrics, Scores, Tally};
pub use origin::{Origin, RunProcess, utc_now};
pub use recipe::{Recipe, RecipeError};
pub use run_dir::{ImageSet, NewRun, RunData, RunDir, RunInfo};
pub use schedule::learning_rate;
pub use set_aside::SetAside;
pub use state::StateError;
pub use trainer::{
    BestCheckpoint, EpochTiming, Observer, Outcome, PhaseReport, ResumeFrom, RunResult, Session, StartReport,
    StepReport, plan, resume, train,
};
pub use warning::{Warning, WarningKind};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
