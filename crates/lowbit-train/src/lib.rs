//! Low-bit training: recipes, the training loop, checkpoints and metrics.
//!
//! A [`Recipe`] decides everything about a training. [`train()`] runs one in a new run directory, [`resume`] goes on with
//! a run that was stopped or killed and ends as if it had not been, [`evaluate`] scores a checkpoint, [`inspect()`] shows
//! what a run holds. The device is the caller's: no backend is named here.
//!
//! The files, in an order in which each uses only those before it:
//!
//! | files | what they know |
//! |---|---|
//! | `text`, `layout`, `files`, `disk` | messages, the names of a run's files, safe reading and writing |
//! | `world` | the processes that train together, and what they tell one another |
//! | `origin`, `image_set`, `metrics`, `clock`, `progress`, `result` | what is written down of a training |
//! | `recipe`, `schedule` | the checked settings |
//! | `state`, `watch`, `optimizer`, `optimizer_file` | tensors of a network by name, the optimizer, its state as bytes |
//! | `weights` | files of weights that other programs wrote |
//! | `checkpoint`, `error` | checkpoints as files; what can end a training |
//! | `observer`, `warning`, `data`, `session` | what a program gives and is told |
//! | `networks`, `experiment`, `memory` | what a recipe makes: networks, phases, the line of steps; none is built |
//! | `set_aside`, `run_dir` | the run on the disk |
//! | `initial`, `learner`, `calibration`, `evaluation`, `step` | networks in training, and one step of all of them |
//! | `fit`, `restore`, `train`, `inspect`, `fuzzing` | the loop; how it begins and goes on; reading a run |
//! | `sensitivity`, `bit_search` | what the bits of each layer cost; a choice of bits by that, or by gradient |
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

mod bit_search;
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
mod sensitivity;
mod session;
mod set_aside;
mod state;
mod step;
mod text;
mod train;
mod warning;
mod watch;
pub mod weights;
mod world;

// What a session and a strategy of one's own need, so that such a program depends on this crate alone.
pub use lowbit_data::{
    Batch, Digest, Image, ImageShape, Locations, Normalization, SampleError, Source, SourceInfo,
};
pub use lowbit_models::Kept;
pub use lowbit_quantizers::Selection;
pub use lowbit_strategies as strategy;

pub use bit_search::{SearchOptions, learned_plan};
pub use checkpoint::CheckpointError;
pub use data::{ChosenBy, Images};
pub use error::{Divergence, TrainError};
pub use experiment::plan;
pub use files::{MAX_TEXT, open_regular, read_regular, read_regular_text};
pub use image_set::{ImageSet, RunData, SkippedImages};
pub use inspect::{
    CheckpointInspection, Deployed, Evaluation, Inspection, Scored, Subject, TestImages, best_checkpoint,
    deployed, evaluate, inspect, load_network, score,
};
pub use memory::MemoryEstimate;
pub use metrics::{EpochMetrics, EpochTiming, NetworkMetrics, Scores, Tally, TimeParts};
pub use observer::{Observer, PhaseReport, StartReport, StepReport};
pub use origin::{Origin, RunProcess, utc_now};
pub use progress::{EpochTop1, Pending, Progress, Record, StoppedEarly};
pub use recipe::{Recipe, RecipeError};
pub use result::{BestCheckpoint, RunResult};
pub use run_dir::{NewRun, RunDir, RunInfo, with_absolute_paths};
pub use schedule::learning_rate;
pub use sensitivity::{
    Budget, BudgetError, Cost, LayerSensitivity, MixedPlan, Sensitivity, SensitivityOptions, Trial,
    sensitivity,
};
pub use session::{Outcome, Session};
pub use set_aside::SetAside;
pub use state::StateError;
pub use text::{escaped, is_unseen, shell_quoted};
pub use train::{ResumeFrom, follow, resume, train};
pub use warning::{Warning, WarningKind};
pub use world::{Among, HostRanks, Place, Ranks, Sum, Transport, Wire, World, WorldError};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// The files of a module, in a folder with more of them or alone.
    fn files_of(path: PathBuf) -> Vec<PathBuf> {
        match path.is_dir() {
            true => fs::read_dir(path).unwrap().flat_map(|entry| files_of(entry.unwrap().path())).collect(),
            false => vec![path.with_extension("rs")],
        }
    }

    /// Imports go one way: as the documentation lists the files.
    #[test]
    fn files_use_only_those_before_them() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let lib = fs::read_to_string(folder.join("lib.rs")).unwrap();
        let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | `")?.split(" | ").next());
        let listed = rows.flat_map(|row| row.split(", ").map(|name| name.trim_matches('`')));
        let places: BTreeMap<&str, usize> = listed.enumerate().map(|(i, name)| (name, i)).collect();
        let modules = lib.lines().filter_map(|line| {
            line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ")?.strip_suffix(';')
        });
        let modules: Vec<&str> = modules.collect();
        assert_eq!(modules.len(), places.len(), "{modules:?}");
        let mut n_uses = 0;
        for module in modules {
            for path in files_of(folder.join(module)).iter().filter(|path| !path.ends_with("tests.rs")) {
                let text = fs::read_to_string(path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                // Only the first name behind it would be looked at.
                assert!(!code.contains("crate::{"), "{}: one `use` for each module", path.display());
                let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
                for used in lines.flat_map(|line| line.split("crate::").skip(1)) {
                    let used =
                        used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                    // A name of another crate that is used as one of this.
                    if let Some(place) = places.get(used).filter(|_| used != module) {
                        n_uses += 1;
                        assert!(
                            *place < places[module],
                            "{} uses {used}, which comes after it",
                            path.display()
                        );
                    }
                }
            }
        }
        assert!(n_uses > 50, "{n_uses}");
    }
}
