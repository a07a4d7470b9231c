//! One file per method; each holds the weight and the activation quantizer of its paper.

pub mod apot;
pub mod dorefa;
pub mod ewgs;
pub mod lsq;
pub mod lsq_plus;
pub mod minmax;
pub mod pact;
pub mod tqt;
