//! One file per method; each holds the weight and the activation quantizer of its paper.

pub mod apot;
pub mod dorefa;
pub mod dsq;
pub mod ewgs;
pub mod hwgq;
pub mod lq_nets;
pub mod lsq;
pub mod lsq_plus;
pub mod minmax;
pub mod n2uq;
pub mod pact;
pub mod qil;
pub mod tqt;
pub mod twn;
pub mod xnor;
