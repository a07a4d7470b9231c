//! Many trainings that answer one question: cells of settings and seeds, each trained in a run directory of its own by the `lowbit`
//! program, in order or several at a time. What is complete is never trained again, what was stopped is resumed, and cells of
//! another build, device, recipe or kind of processor are refused: one report does not mix them.
//!
//! `lowbit sweep` makes the cells of a recipe and lists of settings, `cargo xtask reproduce` of a fixed table. Both are programs for
//! people: what fails here fails with a message, and nobody tells the errors apart.
//!
//! | file | what it is |
//! |---|---|
//! | `cell` | one training, and the `lowbit` process that does it |
//! | `engine` | all cells, in order: trained, or timed |
//! | `plan` | what decides the outcome of all cells, stored beside them |
//! | `report`, `plot` | what was reached, as JSON, Markdown and figures |
//! | `statistics` | means, intervals, tests |
//! | `origin` | who made a cell |
//!
//! It trains nothing itself, and knows nothing of a recipe but what `lowbit inspect --json` says.
//!
//! ```
//! use lowbit_sweep::interval;
//!
//! // Half of the 95 % interval of a mean of three, by Student's t.
//! assert!((interval(&[0.97, 0.98, 0.99]).unwrap() - 0.0248).abs() < 1e-4);
//! assert_eq!(interval(&[0.97]), None);
//! ```

mod cell;
mod engine;
mod origin;
mod plan;
mod plot;
mod report;
mod statistics;

pub use cell::{Cell, Images, Lowbit};
pub use engine::{ImagesOf, Options, Signals, Sweep, Wish, parse_duration, run};
pub use plan::Refused;
pub use report::{Compare, MIXED_BITS, Pair, Published, Report};
pub use statistics::interval;
