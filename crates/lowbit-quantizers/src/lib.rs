//! Quantizers and quantized layers for convolutional networks with weights and activations of 1 to 8 bits, for any
//! burn backend.
//!
//! Each method of the literature is one file of [`methods`], to be read beside its paper, and one line of the list in
//! `quantizer.rs`. The file has the method's [`Formula`], from a value to its code and back to the
//! gradients, and says where the formula's parameters come from. A quantizer answers three questions from it: `codes` (the
//! integers of a tensor), `fake_quantize` (their real values, with the method's gradient) and `grid` (which integers there are and
//! what each is worth).
//!
//! This crate knows no network, no data and no training schedule.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use lowbit_quantizers::{LayerQuantization, Method, Precision, Purpose, QuantConv2dConfig, stream};
//!
//! let device = Device::default();
//! let two_bits = Precision::bits(2)?;
//! let conv = QuantConv2dConfig::new([16, 32], 3)
//!     .with_quantization(LayerQuantization::new(Method::Lsq, two_bits, two_bits))
//!     .init(&device, &mut stream(0, Purpose::InitialWeights, 0, 0))?;
//! let output = conv.forward(Tensor::ones([1, 16, 8, 8], &device));
//! assert_eq!(output.dims(), [1, 32, 8, 8]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod calibration;
mod codes;
mod error;
mod layers;
pub mod methods;
mod parameter;
mod policy;
mod quantizer;

pub use calibration::Calibration;
pub use error::QuantizerError;
// What the signatures of this crate need, so that its users depend on it alone.
pub use layers::{
    LayerMut, LayerRef, Mixture, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantLinearConfig,
    QuantizedNetwork, Selection,
};
pub use lowbit_core::{
    BitWidth, BitWidthError, CodeRange, CodeSet, Compute, Granularity, GridError, IntegerGrid, LayerRole,
    Precision, Purpose, stream,
};
pub use lowbit_kernels::{
    Activation, AnyFormula, Formula, GradientQuantizer, Number, Quantized, Scheme, trains_in_bf16,
    trains_with_quantized_gradients,
};
pub use parameter::is_quantizer_state;
pub use policy::{LayerOverride, PrecisionFloor, QuantizationPolicy, pattern_matches};
pub use quantizer::{
    ActivationQuantizer, LayerQuantization, Learned, Method, Operand, Quantizer, QuantizesActivations,
    QuantizesWeights, WeightQuantizer,
};

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
