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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, Tensor};
    use lowbit_core::{Precision, Purpose, stream};

    use crate::{LayerMut, LayerQuantization, Method, QuantConv2d, QuantConv2dConfig};

    fn quantizations() -> [LayerQuantization; 2] {
        [2, 4].map(|bits| {
            let bits = Precision::bits(bits).unwrap();
            LayerQuantization::new(Method::DoReFa, bits, bits)
        })
    }

    fn conv(quantization: LayerQuantization, device: &Device) -> QuantConv2d {
        let mut rng = stream(0, Purpose::InitialWeights, 0, 0);
        QuantConv2dConfig::new([3, 4], 3).with_quantization(quantization).init(device, &mut rng).unwrap()
    }

    fn mixed(shares: [f32; 2], device: &Device) -> (QuantConv2d, [Tensor<1>; 2]) {
        let mut conv = conv(LayerQuantization::FULL_PRECISION, device);
        let shares = shares.map(|share| {
            let share = Tensor::<1>::from_floats([share], device);
            if device.is_autodiff() { share.require_grad() } else { share }
        });
        LayerMut::Conv(&mut conv).mix(&quantizations()).unwrap();
        let both = shares.iter().cloned().enumerate().collect();
        LayerMut::Conv(&mut conv).mixture().unwrap().set_shares(both);
        (conv, shares)
    }

    fn input(device: &Device) -> Tensor<4> {
        Tensor::random([2, 3, 5, 5], Distribution::Uniform(0.0, 1.0), device)
    }

    #[test]
    fn one_share_alone_is_the_layer_at_these_bits() {
        let device = Device::default();
        let x = input(&device);
        for (place, quantization) in quantizations().into_iter().enumerate() {
            let mut shares = [0.0; 2];
            shares[place] = 1.0;
            let got = mixed(shares, &device).0.forward(x.clone()).into_data();
            let expected = conv(quantization, &device).forward(x.clone()).into_data();
            got.assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-5));
        }
    }

    #[test]
    fn shares_have_the_gradient_of_finite_differences() {
        let device = Device::default();
        let x = input(&device);
        let loss = |shares: [f32; 2]| -> f64 {
            let output = mixed(shares, &device).0.forward(x.clone());
            f64::from((output.clone() * output).mean().into_scalar::<f32>())
        };
        let autodiff = device.clone().autodiff();
        let (conv, leaves) = mixed([0.75, 0.25], &autodiff);
        let output = conv.forward(Tensor::from_inner(x.clone()));
        let gradients = (output.clone() * output).mean().backward();
        for (place, leaf) in leaves.iter().enumerate() {
            let at = |by: f32| {
                let mut shares = [0.75, 0.25];
                shares[place] += by;
                loss(shares)
            };
            let expected = (at(0.01) - at(-0.01)) / 0.02;
            let got = f64::from(leaf.grad(&gradients).unwrap().into_scalar::<f32>());
            assert!((got - expected).abs() < 1e-2 * expected.abs(), "{got} {expected}");
        }
    }
}
