//! Errors of quantizer configuration.

use std::ops::RangeInclusive;

use lowbit_core::{Granularity, Precision};

use crate::{Method, Operand};

/// A quantizer that was asked for something its method does not define.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantizerError {
    /// The method has no grid of this bit width for this operand.
    #[error("{method} cannot quantize {operand} to {got} bits: it takes {}, or \"fp32\"", widths(allowed))]
    Bits {
        /// The method.
        method: Method,
        /// Weights or activations.
        operand: Operand,
        /// The precision asked for.
        got: Precision,
        /// The bit widths that the method takes.
        allowed: RangeInclusive<u32>,
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
    /// A layer without channels or features, or a convolution without kernel, stride or groups.
    #[error("{what} must be at least 1, got 0")]
    Zero {
        /// What is zero.
        what: &'static str,
    },
    /// Groups that do not divide the channels.
    #[error("groups must divide both {in_channels} input and {out_channels} output channels, got {groups}")]
    Groups {
        /// The groups asked for.
        groups: usize,
        /// Channels of the input.
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
    },
}

/// As in "2 to 8 bits" or "1 bit".
fn widths(allowed: &RangeInclusive<u32>) -> String {
    match (*allowed.start(), *allowed.end()) {
        (1, 1) => "1 bit".into(),
        (first, last) if first == last => format!("{first} bits"),
        (first, last) => format!("{first} to {last} bits"),
    }
}
