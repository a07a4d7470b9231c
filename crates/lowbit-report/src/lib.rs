//! What runs of lowbit say, for people who look at them: as data, as comparisons, and as a page in HTML that loads nothing.
//!
//! A [`Report`] is of one run or of several. [`Report::read`] has what their files say; [`Report::add_networks`] adds what the network of the newest
//! checkpoint shows, of its weights and on the test images. It serializes to JSON, and [`Report::to_html`] is the page. [`RunList`] has a line
//! for every run below a directory, [`Comparison`] what sets runs apart.
//!
//! Files of runs are read by lowbit-train alone. Nothing is chosen by test images here, nothing is trained, and nothing is written.
//!
//! ```no_run
//! use burn::tensor::Device;
//! use lowbit_report::{Look, Report};
//! use lowbit_train::Locations;
//!
//! let mut report = Report::read(&["runs/digits-preresnet8-w2a2"])?;
//! let images = Locations::default_with(None).into();
//! report.add_networks(&Device::default(), &Look::AtImages(images));
//! std::fs::write("report.html", report.to_html())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod chart;
mod compare;
mod images;
mod list;
mod markup;
mod page;
mod report;
mod run;
mod statistics;
mod summary;
pub mod units;

pub use compare::{Compared, Comparison, Group, KeyValues, LayerBits};
pub use images::{
    ClassReport, CodeShare, Histogram, ImageReport, Look, Mistake, NO_IMAGE, Operand, QuantizedOperand,
};
pub use list::RunList;
pub use report::Report;
pub use run::{Cost, LayerReport, PhaseSpan, RunReport, Sensitivity};
pub use statistics::Mean;
pub use summary::{Best, State, Summary};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
