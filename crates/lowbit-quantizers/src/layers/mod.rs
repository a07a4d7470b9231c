//! Layers whose weights and input activations are quantized.

mod conv;
mod linear;
mod selection;

pub use conv::{QuantConv2d, QuantConv2dConfig};
pub use linear::{QuantLinear, QuantLinearConfig};
pub use selection::Selection;

use burn::tensor::Tensor;

use lowbit_core::Granularity;

use crate::parameter::constant;
use crate::qparams::reduce;
use crate::{ActivationQuantizer, WeightQuantizer};

/// A quantized layer of a network, borrowed for inspection or change.
pub enum LayerMut<'a> {
    /// A convolution.
    Conv(&'a mut QuantConv2d),
    /// A linear layer.
    Linear(&'a mut QuantLinear),
}

impl LayerMut<'_> {
    /// The quantizer of the input activations, or `None` in full precision.
    pub fn input_quantizer(&mut self) -> Option<&mut ActivationQuantizer> {
        match self {
            Self::Conv(layer) => layer.input_quantizer.as_mut(),
            Self::Linear(layer) => layer.input_quantizer.as_mut(),
        }
    }

    /// The quantizer of the weights, or `None` in full precision.
    pub fn weight_quantizer(&mut self) -> Option<&mut WeightQuantizer> {
        match self {
            Self::Conv(layer) => layer.weight_quantizer.as_mut(),
            Self::Linear(layer) => layer.weight_quantizer.as_mut(),
        }
    }

    /// Sets which part of the layer is quantized from now on.
    pub fn select(&mut self, selection: Selection) {
        match self {
            Self::Conv(layer) => layer.selection = selection,
            Self::Linear(layer) => layer.selection = selection,
        }
    }

    /// Error of quantizing the weights relative to their size, `sum|q - w| / sum|w|` with `w` before and `q` after the
    /// rounding, shape `[1]`, without gradient; `None` in full precision.
    pub fn weight_error(&self) -> Option<Tensor<1>> {
        match self {
            Self::Conv(layer) => relative_error(&layer.weight_quantizer, layer.weight.val()),
            Self::Linear(layer) => relative_error(&layer.weight_quantizer, layer.weight.val()),
        }
    }

    /// Shape of the weights: `[out_channels, in_channels / groups, kernel height, kernel width]` or
    /// `[out_features, in_features]`.
    pub fn weight_shape(&self) -> Vec<usize> {
        match self {
            Self::Conv(layer) => layer.weight.val().dims().to_vec(),
            Self::Linear(layer) => layer.weight.val().dims().to_vec(),
        }
    }

    /// Number of biases, 0 without.
    pub fn n_biases(&self) -> usize {
        let bias = match self {
            Self::Conv(layer) => &layer.bias,
            Self::Linear(layer) => &layer.bias,
        };
        bias.as_ref().map_or(0, |bias| bias.val().dims()[0])
    }

    /// Sets the learned parameters of the weight quantizer from the current weights.
    pub fn calibrate_weights(&mut self) {
        match self {
            Self::Conv(layer) => {
                let weight = layer.weight.val();
                layer.weight_quantizer.iter_mut().for_each(|quantizer| quantizer.calibrate(weight.clone()));
            }
            Self::Linear(layer) => {
                let weight = layer.weight.val();
                layer.weight_quantizer.iter_mut().for_each(|quantizer| quantizer.calibrate(weight.clone()));
            }
        }
    }
}

/// A network made of quantized layers.
pub trait QuantizedNetwork {
    /// Calls `visit` with the path and the layer, for every quantized layer in forward order.
    fn for_each_layer(&mut self, visit: &mut dyn FnMut(&str, LayerMut<'_>));

    /// Runs `forward`, which is expected to pass data through this network, while the activation quantizers of the
    /// layers that `applies` to, by path, record what they see, and then sets their ranges from it.
    fn calibrate(&mut self, applies: impl Fn(&str) -> bool, forward: impl FnOnce(&Self))
    where
        Self: Sized,
    {
        self.for_each_layer(&mut |path, mut layer| {
            let quantizer = layer.input_quantizer().filter(|_| applies(path));
            quantizer.into_iter().for_each(ActivationQuantizer::start_calibration);
        });
        forward(self);
        self.for_each_layer(&mut |_, mut layer| {
            layer.input_quantizer().into_iter().for_each(ActivationQuantizer::finish_calibration);
        });
    }
}

fn relative_error<const D: usize>(
    quantizer: &Option<WeightQuantizer>,
    weight: Tensor<D>,
) -> Option<Tensor<1>> {
    let quantizer = quantizer.as_ref()?;
    let weight = constant(weight);
    let (rounded, exact) = (quantizer.fake_quantize(weight.clone()), quantizer.unrounded(weight));
    let sum = |values: Tensor<D>| reduce(values.abs(), Granularity::PerTensor, |rows| rows.sum_dim(1));
    Some(sum(rounded - exact.clone()) / sum(exact).clamp_min(f32::MIN_POSITIVE))
}
