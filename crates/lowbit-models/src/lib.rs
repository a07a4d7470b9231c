//! Convolutional networks made of quantized layers: ResNet and PreResNet, CIFAR-style of depth 6n+2 and ImageNet-style
//! of depth 18, 34 and 50, and VGG-small, for images of any size and number of channels.
//!
//! A network is built from a [`ModelConfig`] and a [`QuantizationPolicy`],
//! knows nothing of training, and exposes its feature maps as named taps.
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

mod builder;
mod imagenet;
mod layout;
mod network;
mod norm;
mod plan;
mod preresnet;
mod resnet;
mod vgg;

// What it takes to ask for a network, so that a program that only builds one depends on this crate alone.
pub use imagenet::{ImageNetBlock, ImageNetResNet};
pub use layout::Layout;
pub use lowbit_quantizers::{
    BitWidth, Granularity, LayerOverride, LayerQuantization, Method, Precision, QuantizationPolicy,
    QuantizedNetwork,
};
pub use network::{Family, Features, InputShape, LayerRef, Model, ModelConfig, ModelError, Network};
pub use plan::{LayerPlan, Plan};
pub use preresnet::{PreActivationBlock, PreResNet};
pub use resnet::{BasicBlock, ResNet};
pub use vgg::VggSmall;

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
