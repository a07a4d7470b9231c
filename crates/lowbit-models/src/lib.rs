//! Convolutional networks made of quantized layers: ResNet and PreResNet, CIFAR-style of depth 6n+2 and ImageNet-style
//! of depth 18, 34, 50 and 101, VGG-small and AlexNet, for images of any size and number of channels.
//!
//! A [`ModelConfig`] is made into a [`Graph`], and that into a [`Network`] at the precision of a
//! [`QuantizationPolicy`]. A network knows nothing of training, and exposes its feature maps as named taps. A graph of one's own
//! becomes a network, too: [`Network::new`].
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use lowbit_models::{Family, InputShape, LayerQuantization, Method, ModelConfig, Precision, QuantizationPolicy};
//!
//! let device = Device::default();
//! let two_bits = Precision::bits(2)?;
//! let policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, two_bits, two_bits));
//! let input = InputShape { channels: 3, height: 32, width: 32 };
//! let model = ModelConfig::new(Family::PreResNet, 20).init(input, 10, &policy, 0, &device)?;
//! assert_eq!(model.network.forward(Tensor::zeros([1, 3, 32, 32], &device)).dims(), [1, 10]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod error;
mod families;
mod footprint;
mod grids;
mod network;
mod norm;
mod plan;
mod program;

pub use config::{Family, InputShape, Layout, Model, ModelConfig, NamedLayer};
pub use error::ModelError;
pub use families::{Depths, Settings};
pub use footprint::{Footprint, Kept};
pub use grids::{LayerGrids, grids};
pub use lowbit_core::{Graph, GraphBuilder, GraphError, graph};
// What it takes to ask for a network, so that a program that only builds one depends on this crate alone.
pub use lowbit_quantizers::{
    BitWidth, Granularity, LayerOverride, LayerQuantization, Method, Precision, QuantizationPolicy,
    QuantizedNetwork,
};
pub use network::{Features, Network};
pub use norm::with_norms_over_ranks;
pub use plan::{LayerPlan, Plan, bytes as shown_bytes, si as shown_count};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
