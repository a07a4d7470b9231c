//! Exports trained networks.
//!
//! [`pack`] makes a [`PackedNetwork`] of a network: what a runtime and the writers of other formats start from. Codes come from the
//! quantizers themselves, and so do the thresholds between the codes of activations, which are found by trying: no formula is written
//! a second time. [`onnx`] writes one for other runtimes and for compilers.
//!
//! What it does not do: no training, no reading of run directories.

pub mod onnx;
mod thresholds;

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{Granularity, GridError, PackedCodesError};
use lowbit_models::Network;
use lowbit_quantizers::{ActivationQuantizer, LayerRef, QuantizedNetwork, Selection, WeightQuantizer};
use lowbit_runtime::{BatchNorm, Info, Layer, Norm, PackedError, PackedNetwork, Quantizer, Weight};

pub use thresholds::ThresholdError;

/// Why a network is not exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A layer's weights or learned parameters are no grid.
    #[error("layer {path:?}: {source}")]
    Grid {
        /// Path of the layer.
        path: String,
        /// Why.
        source: GridError,
    },
    /// The codes of a quantizer cannot be told by thresholds.
    #[error("layer {path:?}: {source}")]
    Thresholds {
        /// Path of the layer.
        path: String,
        /// Why.
        source: ThresholdError,
    },
    /// Only a part of a layer is quantized.
    #[error("layer {path:?} is quantized in part: only a network that is quantized whole can be exported")]
    Selection {
        /// Path of the layer.
        path: String,
    },
    /// What came of it cannot be packed.
    #[error(transparent)]
    Packed(#[from] PackedError),
}

/// The network as data. It is to be on a CPU: there its codes are those of its evaluation.
///
/// # Errors
/// [`ExportError`] if weights, statistics or learned parameters are not finite, or a layer is quantized in part.
pub fn pack(network: &Network, info: Info) -> Result<PackedNetwork, ExportError> {
    let mut layers = BTreeMap::new();
    for (path, layer) in network.layers() {
        let (selection, layer) = match layer {
            LayerRef::Conv(conv) => {
                let bias = conv.bias.as_ref().map(|bias| floats(bias.val()));
                let weight = weight(path, conv.weight_quantizer.as_ref(), conv.exact_weight())?;
                let input = input(path, conv.input_quantizer.as_ref(), &conv.weight.val().device())?;
                (&conv.selection, Layer { weight, bias, input })
            }
            LayerRef::Linear(linear) => {
                let bias = linear.bias.as_ref().map(|bias| floats(bias.val()));
                let weight = weight(path, linear.weight_quantizer.as_ref(), linear.exact_weight())?;
                let input = input(path, linear.input_quantizer.as_ref(), &linear.weight.val().device())?;
                (&linear.selection, Layer { weight, bias, input })
            }
        };
        if *selection != Selection::All {
            return Err(ExportError::Selection { path: path.into() });
        }
        layers.insert(path.to_string(), layer);
    }
    let norms = network.norms().map(|(path, norm)| {
        let norm = BatchNorm {
            gamma: floats(norm.gamma.val()),
            beta: floats(norm.beta.val()),
            mean: floats(norm.running_mean.value()),
            variance: floats(norm.running_var.value()),
            epsilon: norm.epsilon as f32,
        };
        (path.to_string(), Norm::from(norm))
    });
    let scales = network.scales().map(|(path, scale)| (path.to_string(), floats(scale)[0]));
    let packed = PackedNetwork {
        graph: network.graph().clone(),
        layers,
        norms: norms.collect(),
        scales: scales.collect(),
        info,
    };
    packed.check()?;
    Ok(packed)
}

fn weight<const D: usize>(
    path: &str,
    quantizer: Option<&WeightQuantizer>,
    w: Tensor<D>,
) -> Result<Weight, ExportError> {
    let Some(quantizer) = quantizer else { return Ok(Weight::Full(floats(w))) };
    let grid = quantizer.grid(w.clone()).map_err(|source| ExportError::Grid { path: path.into(), source })?;
    let shape = w.dims();
    let codes = grid.pack(&integers(quantizer.codes(w)), &shape);
    let no_codes =
        |error: PackedCodesError| PackedError::Layer { path: path.into(), problem: error.to_string() };
    Ok(Weight::Codes(grid, codes.map_err(no_codes)?))
}

fn input(
    path: &str,
    quantizer: Option<&ActivationQuantizer>,
    device: &Device,
) -> Result<Option<Quantizer>, ExportError> {
    let Some(quantizer) = quantizer else { return Ok(None) };
    let grid = quantizer.grid().map_err(|source| ExportError::Grid { path: path.into(), source })?;
    debug_assert_eq!(grid.granularity(), Granularity::PerTensor);
    let thresholds = thresholds::find(&grid, |values| codes_of(quantizer, values, device))
        .map_err(|source| ExportError::Thresholds { path: path.into(), source })?;
    Ok(Some(Quantizer { grid, thresholds }))
}

/// The codes that the quantizer has for values.
fn codes_of(quantizer: &ActivationQuantizer, values: &[f32], device: &Device) -> Vec<i32> {
    let values = Tensor::<1>::from_floats(values, device).reshape([1, values.len(), 1, 1]);
    integers(quantizer.codes(values))
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i32> {
    tensor.into_data().iter::<i32>().collect()
}

/// The code of the README, compiled and run with the documentation's tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
