//! Linear layer with quantized weights and input.

use burn::module::{Module, Param};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use lowbit_kernels::{Compute, GradientQuantizer, conv2d, evaluates_exactly, with_quantized_gradient};
use rand::Rng;
use rand_distr::{Distribution, Uniform};

use super::{perturbed, standardized};
use crate::{
    ActivationQuantizer, LayerQuantization, LayerRef, Mixture, QuantizerError, Selection, WeightQuantizer,
};

/// Configuration of a [`QuantLinear`].
#[derive(Clone, Copy, Debug)]
pub struct QuantLinearConfig {
    /// Features of the input.
    pub in_features: usize,
    /// Features of the output.
    pub out_features: usize,
    /// Whether a constant is added to each output.
    pub bias: bool,
    /// Precision of weights and input.
    pub quantization: LayerQuantization,
}

impl QuantLinearConfig {
    /// A full-precision linear layer with a bias.
    pub fn new(in_features: usize, out_features: usize) -> Self {
        Self { in_features, out_features, bias: true, quantization: LayerQuantization::FULL_PRECISION }
    }

    /// The same without a bias.
    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }

    /// The same with quantized operands.
    pub fn with_quantization(self, quantization: LayerQuantization) -> Self {
        Self { quantization, ..self }
    }

    /// A layer with weights and bias uniform in `±1/sqrt(in_features)` (PyTorch's default), drawn on the host.
    ///
    /// # Errors
    /// [`QuantizerError`] if the method does not define the precision asked for, or there are no features.
    pub fn init(&self, device: &Device, rng: &mut impl Rng) -> Result<QuantLinear, QuantizerError> {
        let Self { in_features, out_features, bias, quantization } = *self;
        for (what, n) in
            [("in_features of a linear layer", in_features), ("out_features of a linear layer", out_features)]
        {
            if n == 0 {
                return Err(QuantizerError::Zero { what });
            }
        }
        let bound = 1.0 / (in_features as f32).sqrt();
        let uniform = Uniform::new(-bound, bound).expect("invariant: the bound is positive and finite");
        let mut draw = |n: usize| uniform.sample_iter(&mut *rng).take(n).collect::<Vec<f32>>();
        let weight = TensorData::new(draw(out_features * in_features), [out_features, in_features]);
        let bias = bias.then(|| TensorData::new(draw(out_features), [out_features]));
        let weight = Tensor::<2>::from_data(weight, device);
        Ok(QuantLinear {
            weight_quantizer: WeightQuantizer::new(
                &quantization,
                standardized(weight.clone(), quantization.standardizes_weights),
            )?,
            standardizes_weights: quantization.standardizes_weights,
            input_quantizer: ActivationQuantizer::new(&quantization, device)?,
            weight: Param::from_tensor(weight),
            bias: bias.map(|bias| Param::from_tensor(Tensor::from_data(bias, device))),
            selection: Selection::default(),
            mixture: None,
            gradient_quantizer: None,
            perturbation: None,
        })
    }
}

/// A linear layer that quantizes its weights and its input.
#[derive(Module, Debug)]
pub struct QuantLinear {
    /// Latent weights, `[out_features, in_features]`.
    pub weight: Param<Tensor<2>>,
    /// Bias, `[out_features]`, in full precision.
    pub bias: Option<Param<Tensor<1>>>,
    /// Quantizer of the weights; `None` leaves them in full precision.
    pub weight_quantizer: Option<WeightQuantizer>,
    /// Quantizer of the input; `None` leaves it in full precision.
    pub input_quantizer: Option<ActivationQuantizer>,
    /// Whether the quantizer is given the weights of each output feature with mean 0 and variance 1; those of a layer without one stay
    /// as they are.
    #[module(skip)]
    pub standardizes_weights: bool,
    /// Which part is quantized; all of it unless a strategy says otherwise.
    #[module(skip)]
    pub selection: Selection,
    /// Quantizers of several bit widths in the place of the layer's own, while it is learned which it needs.
    #[module(skip)]
    pub mixture: Option<Mixture>,
    /// What quantizes the gradient of the output in training steps in which the layer is quantized; `None` leaves it in full precision.
    #[module(skip)]
    pub gradient_quantizer: Option<GradientQuantizer>,
    /// What is added to the quantized weights, of their shape, in steps that look at the loss beside them.
    #[module(skip)]
    pub perturbation: Option<Tensor<2>>,
}

impl QuantLinear {
    /// What the quantizer of the weights is given: the latent weights, standardized if the layer does so.
    pub fn exact_weight(&self) -> Tensor<2> {
        standardized(self.weight.val(), self.standardizes_weights && self.weight_quantizer.is_some())
    }

    /// Multiplies the quantized input by the transposed quantized weights.
    ///
    /// # Shapes
    /// - input: `[batch, in_features]`, after a ReLU if the input is quantized
    /// - output: `[batch, out_features]`
    pub fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        if input.dims()[0] == 0 {
            // Not every backend has products of nothing: burn's ndarray divides by zero.
            return Tensor::zeros([0, self.weight.val().dims()[0]], &input.device());
        }
        let output = match (&self.mixture, evaluates_exactly(&input.device())) {
            (Some(mixture), _) => {
                let weight = standardized(self.weight.val(), self.standardizes_weights);
                mixture.input(input).matmul(mixture.weight(weight).transpose())
            }
            (None, true) => self.as_conv(input),
            (None, false) => {
                let input = self.selection.input(&self.input_quantizer, input).into_values();
                let weight = self.selection.weight(&self.weight_quantizer, self.exact_weight());
                let weight = perturbed(weight, &self.perturbation).into_values();
                let output = input.matmul(weight.transpose());
                match LayerRef::Linear(self).gradient_quantizer() {
                    Some(quantizer) => with_quantized_gradient(output, quantizer),
                    None => output,
                }
            }
        };
        match &self.bias {
            Some(bias) => output + bias.val().unsqueeze(),
            None => output,
        }
    }

    /// The product as a convolution of images of one pixel.
    fn as_conv(&self, input: Tensor<2>) -> Tensor<2> {
        let [batch, in_features] = input.dims();
        let weight = self.exact_weight();
        let out_features = weight.dims()[0];
        let input = self.selection.input(&self.input_quantizer, input.reshape([batch, in_features, 1, 1]));
        let weight = weight.reshape([out_features, in_features, 1, 1]);
        let weight = self.selection.weight(&self.weight_quantizer, weight);
        let beside =
            self.perturbation.clone().map(|values| values.reshape([out_features, in_features, 1, 1]));
        let weight = perturbed(weight, &beside);
        let options = ConvOptions::new([1; 2], [0; 2], [1; 2], 1);
        conv2d(input, weight, options, Compute::Fp32).reshape([batch, out_features])
    }
}
