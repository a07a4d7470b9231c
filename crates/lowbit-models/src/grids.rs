//! The grids that the layers of a network compute on.

use lowbit_core::IntegerGrid;
use lowbit_quantizers::{LayerRef, QuantizedNetwork};
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// The grids of one layer as they are in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerGrids {
    /// Path of the layer in the network.
    pub path: String,
    /// The grid of its weights; `None` in full precision.
    pub weight: Option<IntegerGrid>,
    /// The grid of its input activations; `None` in full precision.
    pub input: Option<IntegerGrid>,
}

/// The grids of all quantized layers, in forward order: with the weights, what it takes to compute the network in integers.
/// Learned and measured numbers are read from the device, one layer after the other.
///
/// ```
/// use burn::tensor::Device;
/// use lowbit_models::{
///     Family, InputShape, LayerQuantization, Method, ModelConfig, Precision, QuantizationPolicy, grids,
/// };
///
/// let [weights, activations] = [Precision::bits(2)?, Precision::bits(4)?];
/// let policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, weights, activations));
/// let input = InputShape { channels: 1, height: 8, width: 8 };
/// let model = ModelConfig::new(Family::PreResNet, 8).init(input, 10, &policy, 0, &Device::default())?;
/// let grids = grids(&model.network)?;
/// let conv = grids.iter().find(|layer| layer.path == "stages.1.0.conv1").expect("it has this layer");
/// let bits = [&conv.weight, &conv.input].map(|grid| grid.as_ref().map(|grid| grid.bits().get()));
/// assert_eq!(bits, [Some(2), Some(4)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`ModelError::Grid`] if a layer has no grid, as its weights or its learned parameters are not finite.
pub fn grids(network: &impl QuantizedNetwork) -> Result<Vec<LayerGrids>, ModelError> {
    let grids = |(path, layer): (&str, LayerRef<'_>)| {
        let named = |operand| move |source| ModelError::Grid { path: path.into(), operand, source };
        let weight = layer.weight_quantizer().map(|quantizer| match layer {
            LayerRef::Conv(layer) => quantizer.grid(layer.exact_weight()),
            LayerRef::Linear(layer) => quantizer.grid(layer.exact_weight()),
        });
        let input = layer.input_quantizer().map(|quantizer| quantizer.grid());
        Ok(LayerGrids {
            path: path.into(),
            weight: weight.transpose().map_err(named("weight"))?,
            input: input.transpose().map_err(named("input"))?,
        })
    };
    network.layers().filter(|(_, layer)| layer.is_quantized()).map(grids).collect()
}
