//! Layers whose weights and input activations are quantized.

mod conv;
mod linear;
mod mixture;
mod selection;

pub use conv::{QuantConv2d, QuantConv2dConfig};
pub use linear::{QuantLinear, QuantLinearConfig};
pub use mixture::Mixture;
pub use selection::Selection;

use burn::tensor::Tensor;

use lowbit_core::Granularity;
use lowbit_kernels::{GradientQuantizer, Quantized};

use crate::codes::reduce;
use crate::parameter::constant;
use crate::{ActivationQuantizer, LayerQuantization, QuantizerError, WeightQuantizer};

/// A quantized layer of a network, borrowed for inspection.
#[derive(Clone, Copy, Debug)]
pub enum LayerRef<'a> {
    /// A convolution.
    Conv(&'a QuantConv2d),
    /// A linear layer.
    Linear(&'a QuantLinear),
}

impl<'a> LayerRef<'a> {
    /// The quantizer of the input activations, or `None` in full precision.
    pub fn input_quantizer(self) -> Option<&'a ActivationQuantizer> {
        match self {
            Self::Conv(layer) => layer.input_quantizer.as_ref(),
            Self::Linear(layer) => layer.input_quantizer.as_ref(),
        }
    }

    /// The quantizer of the weights, or `None` in full precision.
    pub fn weight_quantizer(self) -> Option<&'a WeightQuantizer> {
        match self {
            Self::Conv(layer) => layer.weight_quantizer.as_ref(),
            Self::Linear(layer) => layer.weight_quantizer.as_ref(),
        }
    }

    /// Whether any operand is quantized.
    pub fn is_quantized(self) -> bool {
        self.weight_quantizer().is_some() || self.input_quantizer().is_some()
    }

    /// What quantizes the gradient of the output, if the layer has any and if some of it is quantized now.
    pub fn gradient_quantizer(self) -> Option<GradientQuantizer> {
        let (quantizer, selection) = match self {
            Self::Conv(layer) => (layer.gradient_quantizer, &layer.selection),
            Self::Linear(layer) => (layer.gradient_quantizer, &layer.selection),
        };
        quantizer.filter(|_| self.is_quantized() && selection.is_any())
    }

    /// Error of quantizing the weights relative to their size, `sum|q - w| / sum|w|` with `w` before and `q` after the
    /// rounding, shape `[1]`, without gradient; `None` in full precision.
    pub fn weight_error(self) -> Option<Tensor<1>> {
        match self {
            Self::Conv(layer) => relative_error(&layer.weight_quantizer, layer.exact_weight()),
            Self::Linear(layer) => relative_error(&layer.weight_quantizer, layer.exact_weight()),
        }
    }

    /// What the quantizer of the weights is given, a row for each output channel or feature: the latent weights, standardized if the
    /// layer does so.
    pub fn exact_weights(self) -> Tensor<2> {
        match self {
            Self::Conv(layer) => layer.exact_weight().flatten(1, 3),
            Self::Linear(layer) => layer.exact_weight(),
        }
    }

    /// What is added to the quantized weights, in the form of [`exact_weights`](Self::exact_weights).
    pub fn perturbation(self) -> Option<Tensor<2>> {
        match self {
            Self::Conv(layer) => layer.perturbation.clone().map(|values| values.flatten(1, 3)),
            Self::Linear(layer) => layer.perturbation.clone(),
        }
    }

    /// Shape of the weights: `[out_channels, in_channels / groups, kernel height, kernel width]` or
    /// `[out_features, in_features]`.
    pub fn weight_shape(self) -> Vec<usize> {
        match self {
            Self::Conv(layer) => layer.weight.val().dims().to_vec(),
            Self::Linear(layer) => layer.weight.val().dims().to_vec(),
        }
    }
}

/// A quantized layer of a network, borrowed for change.
#[derive(Debug)]
pub enum LayerMut<'a> {
    /// A convolution.
    Conv(&'a mut QuantConv2d),
    /// A linear layer.
    Linear(&'a mut QuantLinear),
}

impl LayerMut<'_> {
    /// The same layer for inspection.
    pub fn as_ref(&self) -> LayerRef<'_> {
        match self {
            Self::Conv(layer) => LayerRef::Conv(layer),
            Self::Linear(layer) => LayerRef::Linear(layer),
        }
    }

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

    /// Gives the layer new quantizers in place of those that it has. Learned parameters of the weights are set from the weights;
    /// ranges of the input are those of a new layer until it is calibrated.
    ///
    /// # Errors
    /// [`QuantizerError`] if the method does not define the precision; the layer is then as it was.
    pub fn requantize(&mut self, quantization: &LayerQuantization) -> Result<(), QuantizerError> {
        let weight_quantizer = match self {
            Self::Conv(layer) => WeightQuantizer::new(
                quantization,
                standardized(layer.weight.val(), quantization.standardizes_weights),
            )?,
            Self::Linear(layer) => WeightQuantizer::new(
                quantization,
                standardized(layer.weight.val(), quantization.standardizes_weights),
            )?,
        };
        let device = match self {
            Self::Conv(layer) => layer.weight.val().device(),
            Self::Linear(layer) => layer.weight.val().device(),
        };
        let input_quantizer = ActivationQuantizer::new(quantization, &device)?;
        match self {
            Self::Conv(layer) => {
                layer.standardizes_weights = quantization.standardizes_weights;
                layer.weight_quantizer = weight_quantizer;
                layer.input_quantizer = input_quantizer;
            }
            Self::Linear(layer) => {
                layer.standardizes_weights = quantization.standardizes_weights;
                layer.weight_quantizer = weight_quantizer;
                layer.input_quantizer = input_quantizer;
            }
        }
        Ok(())
    }

    /// Puts quantizers of several bit widths in the place of the layer's own, which stay. Each of `quantizations` quantizes both operands.
    ///
    /// # Errors
    /// [`QuantizerError`] if a method does not define what is asked for.
    ///
    /// # Panics
    /// If one of them leaves an operand in full precision.
    pub fn mix(&mut self, quantizations: &[LayerQuantization]) -> Result<(), QuantizerError> {
        match self {
            Self::Conv(layer) => {
                let weight = standardized(layer.weight.val(), layer.standardizes_weights);
                layer.mixture = Some(Mixture::new(quantizations, &weight)?);
            }
            Self::Linear(layer) => {
                let weight = standardized(layer.weight.val(), layer.standardizes_weights);
                layer.mixture = Some(Mixture::new(quantizations, &weight)?);
            }
        }
        Ok(())
    }

    /// The quantizers of several bit widths, if they are in the place of the layer's own.
    pub fn mixture(&mut self) -> Option<&mut Mixture> {
        match self {
            Self::Conv(layer) => layer.mixture.as_mut(),
            Self::Linear(layer) => layer.mixture.as_mut(),
        }
    }

    /// Sets what quantizes the gradient of the output from now on.
    pub fn quantize_gradient(&mut self, quantizer: Option<GradientQuantizer>) {
        match self {
            Self::Conv(layer) => layer.gradient_quantizer = quantizer,
            Self::Linear(layer) => layer.gradient_quantizer = quantizer,
        }
    }

    /// Takes other latent weights, a row for each output channel or feature.
    pub fn set_weights(&mut self, weights: Tensor<2>) {
        match self {
            Self::Conv(layer) => {
                layer.weight = layer.weight.clone().map(|old| instead(&old, weights.reshape(old.dims())));
            }
            Self::Linear(layer) => layer.weight = layer.weight.clone().map(|old| instead(&old, weights)),
        }
    }

    /// Sets what is added to the quantized weights from now on, in the form of [`LayerRef::exact_weights`].
    pub fn perturb(&mut self, values: Option<Tensor<2>>) {
        match self {
            Self::Conv(layer) => {
                let dims = layer.weight.val().dims();
                layer.perturbation = values.map(|values| values.reshape(dims));
            }
            Self::Linear(layer) => layer.perturbation = values,
        }
    }

    /// Sets the learned parameters of the weight quantizer from the current weights.
    pub fn calibrate_weights(&mut self) {
        match self {
            Self::Conv(layer) => {
                let weight = layer.exact_weight();
                layer.weight_quantizer.iter_mut().for_each(|quantizer| quantizer.calibrate(weight.clone()));
            }
            Self::Linear(layer) => {
                let weight = layer.exact_weight();
                layer.weight_quantizer.iter_mut().for_each(|quantizer| quantizer.calibrate(weight.clone()));
            }
        }
    }
}

/// A network made of quantized layers.
///
/// Paths are borrowed from the network: they are constants, or the network keeps them, in a field that is `#[module(skip)]`.
pub trait QuantizedNetwork {
    /// Path and layer, for every quantized layer in forward order.
    fn layers(&self) -> impl Iterator<Item = (&str, LayerRef<'_>)>;

    /// The same for change.
    fn layers_mut(&mut self) -> impl Iterator<Item = (&str, LayerMut<'_>)>;

    /// Runs `forward`, which is expected to pass data through this network, while the activation quantizers of the
    /// layers that `applies` to, by path, record what they see, and then sets their ranges from it.
    fn calibrate(&mut self, applies: impl Fn(&str) -> bool, forward: impl FnOnce(&Self)) {
        for (_, mut layer) in self.layers_mut().filter(|(path, _)| applies(path)) {
            layer.input_quantizer().into_iter().for_each(ActivationQuantizer::start_calibration);
            layer.mixture().into_iter().for_each(Mixture::start_calibration);
        }
        forward(self);
        for (_, mut layer) in self.layers_mut() {
            layer.input_quantizer().into_iter().for_each(ActivationQuantizer::finish_calibration);
            layer.mixture().into_iter().for_each(Mixture::finish_calibration);
        }
    }
}

/// Added to a variance, so that equal weights stay zero.
const EPSILON: f64 = 1e-10;

/// If that `applies`, the weights of each output channel or feature, their first dimension, with mean 0 and variance 1 (Qiao et al. 2019,
/// "Weight Standardization", arXiv 1903.10520); the gradient passes through both.
fn standardized<const D: usize>(weight: Tensor<D>, applies: bool) -> Tensor<D> {
    let dims = weight.dims();
    let n: usize = dims[1..].iter().product();
    if !applies || n == 0 {
        return weight;
    }
    let rows = weight.reshape([dims[0], n]);
    let centered = rows.clone() - rows.mean_dim(1);
    let variance = centered.clone().square().mean_dim(1);
    (centered / (variance + EPSILON).sqrt()).reshape(dims)
}

/// `new` in the place of `old`: with its gradient requirement.
fn instead<const D: usize>(old: &Tensor<D>, new: Tensor<D>) -> Tensor<D> {
    new.detach().set_require_grad(old.is_require_grad())
}

/// The quantized weights, and what is added to them, if anything is.
fn perturbed<const D: usize>(weight: Quantized<D>, perturbation: &Option<Tensor<D>>) -> Quantized<D> {
    match perturbation {
        Some(values) => (weight.into_values() + values.clone()).into(),
        None => weight,
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
