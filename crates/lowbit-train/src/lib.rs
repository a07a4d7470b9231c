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

mod calibration;
mod checkpoint;
mod clock;
mod data;
mod disk;
mod error;
mod evaluation;
mod experiment;
mod files;
mod fit;
#[doc(hidden)]
pub mod fuzzing;
mod image_set;
mod initial;
mod inspect;
mod layout;
mod learner;
mod memory;
mod metrics;
mod networks;
mod observer;
#[doc(hidden)]
pub mod optimizer;
mod optimizer_file;
mod origin;
mod progress;
pub mod recipe;
mod restore;
mod result;
mod run_dir;
mod schedule;
mod session;
mod set_aside;
mod state;
mod step;
mod text;
mod train;
mod warning;
mod watch;

// What a session and a strategy of one's own need, so that such a program depends on this crate alone.
pub use lowbit_data::{Digest, Image, ImageShape, Locations, Normalization, SampleError, Source, SourceInfo};
pub use lowbit_models::Kept;
pub use lowbit_quantizers::Selection;
pub use lowbit_strategies as strategy;

pub use checkpoint::CheckpointError;
pub use data::Images;
pub use error::{Divergence, TrainError};
pub use experiment::plan;
pub use files::{MAX_TEXT, open_regular, read_regular, read_regular_text};
pub use image_set::{ImageSet, RunData};
pub use inspect::{
    CheckpointInspection, Evaluation, Inspection, Subject, best_checkpoint, evaluate, inspect,
};
pub use memory::MemoryEstimate;
pub use metrics::{EpochMetrics, EpochTiming, NetworkMetrics, Scores, Tally};
pub use observer::{Observer, PhaseReport, StartReport, StepReport};
pub use origin::{Origin, RunProcess, utc_now};
pub use progress::{Pending, Progress, Record};
pub use recipe::{Recipe, RecipeError};
pub use result::{BestCheckpoint, RunResult};
pub use run_dir::{NewRun, RunDir, RunInfo};
pub use schedule::learning_rate;
pub use session::{Outcome, Session};
pub use set_aside::SetAside;
pub use state::StateError;
pub use text::{escaped, is_unseen, shell_quoted};
pub use train::{ResumeFrom, resume, train};
pub use warning::{Warning, WarningKind};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
