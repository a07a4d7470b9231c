//! Why a network cannot be built.

use lowbit_core::{GraphError, GridError};
use lowbit_quantizers::QuantizerError;

use crate::{Family, InputShape, Layout};

/// A network that cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// A depth that the layout does not define.
    #[error("no depth {got} in the {layout} layout; it has {expected}")]
    Depth {
        /// The layout.
        layout: Layout,
        /// The depth asked for.
        got: usize,
        /// Those of the layout.
        expected: &'static str,
    },
    /// A residual network without depth.
    #[error("{family} needs a depth of {expected}")]
    NoDepth {
        /// The family.
        family: Family,
        /// Those of the layout.
        expected: &'static str,
    },
    /// A depth where there is nothing to choose.
    #[error("{family} has a fixed depth: remove depth = {got}")]
    FixedDepth {
        /// The family.
        family: Family,
        /// The depth asked for.
        got: usize,
    },
    /// The layout of another network.
    #[error("{family} has a fixed layout: remove layout = {:?}", got.to_string())]
    FixedLayout {
        /// The family.
        family: Family,
        /// The layout asked for.
        got: Layout,
    },
    /// BatchNorm asked for or left out where there is nothing to choose.
    #[error("{family} has BatchNorm: remove norm = {got}")]
    FixedNorm {
        /// The family.
        family: Family,
        /// What was asked for.
        got: bool,
    },
    /// A width that is no number of channels.
    #[error("width must be greater than 0 and at most 64, got {got}")]
    Width {
        /// The width asked for.
        got: f64,
    },
    /// A first stride that is not defined.
    #[error("stem_stride of {family} in the {layout} layout must be one of {expected:?}, got {got}")]
    StemStride {
        /// The family.
        family: Family,
        /// The layout.
        layout: Layout,
        /// The strides that it has.
        expected: &'static [usize],
        /// The stride asked for.
        got: usize,
    },
    /// Images without pixels, or no class.
    #[error(
        "a network needs at least 1 class, channel and pixel, got {n_classes} classes and images of {}x{}x{} (channels, height, width)",
        input.channels, input.height, input.width
    )]
    Empty {
        /// The classes asked for.
        n_classes: usize,
        /// The images.
        input: InputShape,
    },
    /// The pools leave nothing of the images.
    #[error("{family} needs images of at least {least}x{least} pixels, got {height}x{width}")]
    InputTooSmall {
        /// The family.
        family: Family,
        /// Smallest height and width.
        least: usize,
        /// Height of the images.
        height: usize,
        /// Width of the images.
        width: usize,
    },
    /// The layers do not fit together.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A layer cannot be quantized as asked.
    #[error("layer {layer}: {source}")]
    Quantizer {
        /// Path of the layer.
        layer: String,
        /// What is wrong.
        source: QuantizerError,
    },
    /// A pattern of the policy that matches nothing.
    #[error("layer pattern {pattern:?} matches no layer; the layers are {}", layers.join(", "))]
    UnmatchedPattern {
        /// The pattern.
        pattern: String,
        /// Paths of all layers.
        layers: Vec<String>,
    },
    /// A layer whose weights, or the parameters of whose quantizers, make no grid.
    #[error("{path} has no grid of its {operand}: {source}")]
    Grid {
        /// Path of the layer.
        path: String,
        /// "weight" or "input".
        operand: &'static str,
        /// Why.
        source: GridError,
    },
}
