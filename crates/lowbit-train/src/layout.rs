//! The files of a run directory, by name.
//!
//! ```text
//! recipe.toml     the resolved recipe
//! plan.json       the precision of every layer
//! run.json        who made it, device, data; written last, so that its presence marks a run directory
//! processes.jsonl one line for each process that trained here: who, from which step; only ever appended to
//! metrics.jsonl   one line an epoch
//! timing.jsonl    one line an epoch: seconds and images per second, which differ from machine to machine
//! warnings.jsonl  one line a warning; absent if there was none
//! checkpoints/    see the checkpoint module
//! log.txt         what was logged
//! result.json     the outcome, once the training is complete
//! set-aside/      what came after a checkpoint that the run went back to
//! lock            held while a process trains here, which writes its id there
//! ```

pub(crate) const RECIPE: &str = "recipe.toml";
pub(crate) const PLAN: &str = "plan.json";
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const TIMING: &str = "timing.jsonl";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
pub(crate) const LOCK: &str = "lock";
/// The outcome of a complete training.
pub(crate) const RESULT: &str = "result.json";
pub(crate) const RUN_INFO: &str = "run.json";
pub(crate) const PROCESSES: &str = "processes.jsonl";
pub(crate) const WARNINGS: &str = "warnings.jsonl";
