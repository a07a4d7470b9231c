//! Two bit widths of a layer at once, to learn which it needs.

use burn::tensor::Tensor;

use crate::{ActivationQuantizer, LayerQuantization, QuantizerError, WeightQuantizer};

/// Quantizers of several bit widths in the place of a layer's own. Weights and input are each a sum of what two of them make of it, by
/// shares that have a gradient: how the loss changes from one bit width to the next.
#[derive(Clone, Debug)]
pub struct Mixture {
    weights: Vec<WeightQuantizer>,
    inputs: Vec<ActivationQuantizer>,
    /// Which quantizers are summed up, and their shares, `[1]` each.
    shares: Vec<(usize, Tensor<1>)>,
}

impl Mixture {
    /// Quantizers for the weights `weight` as `quantizations` says, which all quantize both operands. Only the first is in use
    /// until [`set_shares`](Self::set_shares).
    ///
    /// # Errors
    /// [`QuantizerError`] if a method does not define what is asked for.
    ///
    /// # Panics
    /// If one of them leaves an operand in full precision.
    pub(super) fn new<const D: usize>(
        quantizations: &[LayerQuantization],
        weight: &Tensor<D>,
    ) -> Result<Self, QuantizerError> {
        let device = weight.device();
        let (mut weights, mut inputs) = (Vec::new(), Vec::new());
        for quantization in quantizations {
            weights.extend(WeightQuantizer::new(quantization, weight.clone())?);
            inputs.extend(ActivationQuantizer::new(quantization, &device)?);
        }
        assert_eq!([weights.len(), inputs.len()], [quantizations.len(); 2], "each quantizes both operands");
        Ok(Self { weights, inputs, shares: vec![(0, Tensor::ones([1], &device))] })
    }

    /// Sets which quantizers are summed up, by their places in the list, with their shares, `[1]` each.
    pub fn set_shares(&mut self, shares: Vec<(usize, Tensor<1>)>) {
        self.shares = shares;
    }

    pub(super) fn start_calibration(&mut self) {
        self.inputs.iter_mut().for_each(ActivationQuantizer::start_calibration);
    }

    pub(super) fn finish_calibration(&mut self) {
        self.inputs.iter_mut().for_each(ActivationQuantizer::finish_calibration);
    }

    /// The weights as the layer uses them.
    pub(super) fn weight<const D: usize>(&self, weight: Tensor<D>) -> Tensor<D> {
        self.sum(|place| self.weights[place].fake_quantize(weight.clone()))
    }

    /// The input as the layer uses it.
    pub(super) fn input<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.inputs.iter().for_each(|quantizer| quantizer.observe(&input));
        self.sum(|place| self.inputs[place].fake_quantize(input.clone()))
    }

    fn sum<const D: usize>(&self, quantized: impl Fn(usize) -> Tensor<D>) -> Tensor<D> {
        let terms =
            self.shares.iter().map(|(place, share)| quantized(*place) * share.clone().reshape([1; D]));
        terms.reduce(|a, b| a + b).expect("invariant: a share is set")
    }
}
