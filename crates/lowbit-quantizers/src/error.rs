//! Errors of quantizer configuration.

use lowbit_core::{Granularity, Precision};

use crate::{Method, Operand};

/// A quantizer that was asked for something its method does not define.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantizerError {
    /// The method has no grid of this bit width for this operand.
    #[error("{method} cannot quantize {operand} to {got} bits: it takes {allowed}, or \"fp32\"")]
    Bits {
        /// The method.
        method: Method,
        /// Weights or activations.
        operand: Operand,
        /// The precision asked for.
        got: Precision,
        /// The bit widths that the method takes.
        allowed: &'static str,
    },
    /// The method has no such granularity for this operand.
    #[error("{method} quantizes {operand} {allowed} only, got {got}")]
    Granularity {
        /// The method.
        method: Method,
        /// Weights or activations.
        operand: Operand,
        /// The granularity asked for.
        got: Granularity,
        /// The one granularity that the method takes.
        allowed: Granularity,
    },
}
