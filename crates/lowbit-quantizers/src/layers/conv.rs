//! Convolution with quantized weights and input.

use burn::module::{Module, Param};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor, TensorData};
use lowbit_kernels::{Activation, Compute, GradientQuantizer, Quantized, StepArithmetic, conv2d};
use rand::Rng;
use rand_distr::{Distribution, Normal};

use super::{perturbed, standardized};
use crate::{
    ActivationQuantizer, LayerQuantization, LayerRef, Mixture, QuantizerError, Selection, WeightQuantizer,
};

/// Configuration of a [`QuantConv2d`]. Kernels are square.
#[derive(Clone, Copy, Debug)]
pub struct QuantConv2dConfig {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel_size: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zeros at each side of the image.
    pub padding: usize,
    /// Groups that both channel counts are split into.
    pub groups: usize,
    /// Whether a constant is added to each output channel.
    pub bias: bool,
    /// Precision of weights and input.
    pub quantization: LayerQuantization,
}

impl QuantConv2dConfig {
    /// A full-precision convolution of stride 1 without groups and bias, padded by `kernel_size / 2`, which keeps the size of the
    /// image if the kernel is odd.
    pub fn new([in_channels, out_channels]: [usize; 2], kernel_size: usize) -> Self {
        let (stride, padding, groups, bias) = (1, kernel_size / 2, 1, false);
        let quantization = LayerQuantization::FULL_PRECISION;
        Self { in_channels, out_channels, kernel_size, stride, padding, groups, bias, quantization }
    }

    /// The same with another stride.
    pub fn with_stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same with another padding.
    pub fn with_padding(self, padding: usize) -> Self {
        Self { padding, ..self }
    }

    /// The same with a bias.
    pub fn with_bias(self) -> Self {
        Self { bias: true, ..self }
    }

    /// The same with the channels split into `groups`.
    pub fn with_groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// The same with quantized operands.
    pub fn with_quantization(self, quantization: LayerQuantization) -> Self {
        Self { quantization, ..self }
    }

    /// A layer with He-normal weights by fan-out (He et al. 2015), drawn on the host from `rng`. A bias begins as zeros.
    ///
    /// # Errors
    /// [`QuantizerError`] if the method does not define the precision asked for, if a number is zero, or `groups` does not divide
    /// both channel counts.
    pub fn init(&self, device: &Device, rng: &mut impl Rng) -> Result<QuantConv2d, QuantizerError> {
        let Self { in_channels, out_channels, kernel_size, stride, padding, groups, bias, quantization } =
            *self;
        for (what, n) in [
            ("in_channels of a convolution", in_channels),
            ("out_channels of a convolution", out_channels),
            ("kernel size of a convolution", kernel_size),
            ("stride of a convolution", stride),
            ("groups of a convolution", groups),
        ] {
            if n == 0 {
                return Err(QuantizerError::Zero { what });
            }
        }
        if !(in_channels.is_multiple_of(groups) && out_channels.is_multiple_of(groups)) {
            return Err(QuantizerError::Groups { groups, in_channels, out_channels });
        }
        let shape = [out_channels, in_channels / groups, kernel_size, kernel_size];
        let fan_out = out_channels / groups * kernel_size * kernel_size;
        let normal = Normal::new(0.0, (2.0 / fan_out as f32).sqrt()).expect("invariant: fan-out is positive");
        let values: Vec<f32> = normal.sample_iter(rng).take(shape.iter().product()).collect();
        let weight = Tensor::<4>::from_data(TensorData::new(values, shape), device);
        Ok(QuantConv2d {
            weight_quantizer: WeightQuantizer::new(
                &quantization,
                standardized(weight.clone(), quantization.standardizes_weights),
            )?,
            standardizes_weights: quantization.standardizes_weights,
            input_quantizer: ActivationQuantizer::new(&quantization, device)?,
            weight: Param::from_tensor(weight),
            bias: bias.then(|| Param::from_tensor(Tensor::zeros([out_channels], device))),
            selection: Selection::default(),
            mixture: None,
            compute: Compute::default(),
            gradient_quantizer: None,
            perturbation: None,
            stride,
            padding,
            groups,
        })
    }
}

/// A convolution that quantizes its weights and its input.
#[derive(Module, Debug)]
pub struct QuantConv2d {
    /// Latent weights, `[out_channels, in_channels / groups, kernel_size, kernel_size]`.
    pub weight: Param<Tensor<4>>,
    /// Bias, `[out_channels]`, in full precision.
    pub bias: Option<Param<Tensor<1>>>,
    /// Quantizer of the weights; `None` leaves them in full precision.
    pub weight_quantizer: Option<WeightQuantizer>,
    /// Quantizer of the input; `None` leaves it in full precision.
    pub input_quantizer: Option<ActivationQuantizer>,
    /// Whether the quantizer is given the weights of each output channel with mean 0 and variance 1; those of a layer without one stay
    /// as they are.
    #[module(skip)]
    pub standardizes_weights: bool,
    /// Which part is quantized; all of it unless a strategy says otherwise.
    #[module(skip)]
    pub selection: Selection,
    /// Quantizers of several bit widths in the place of the layer's own, while it is learned which it needs.
    #[module(skip)]
    pub mixture: Option<Mixture>,
    /// How products are computed in training steps; in single precision unless a training says otherwise.
    #[module(skip)]
    pub compute: Compute,
    /// What quantizes the gradient of the output in training steps in which the layer is quantized; `None` leaves it in full precision.
    #[module(skip)]
    pub gradient_quantizer: Option<GradientQuantizer>,
    /// What is added to the quantized weights, of their shape, in steps that look at the loss beside them.
    #[module(skip)]
    pub perturbation: Option<Tensor<4>>,
    stride: usize,
    padding: usize,
    groups: usize,
}

impl QuantConv2d {
    /// What the quantizer of the weights is given: the latent weights, standardized if the layer does so.
    pub fn exact_weight(&self) -> Tensor<4> {
        standardized(self.weight.val(), self.standardizes_weights && self.weight_quantizer.is_some())
    }

    /// Convolves the quantized input with the quantized weights.
    ///
    /// # Shapes
    /// - input: `[batch, in_channels, height, width]`, after a ReLU if the input is quantized
    /// - output: `[batch, out_channels, (height + 2 padding - kernel_size) / stride + 1, ...]`; with the padding of
    ///   [`QuantConv2dConfig::new`], `ceil(height / stride)`
    pub fn forward(&self, input: Tensor<4>) -> Tensor<4> {
        match &self.mixture {
            Some(mixture) => self.forward_quantized(mixture.input(input)),
            None => self.forward_quantized(self.selection.input(&self.input_quantizer, input)),
        }
    }

    /// [`forward`](Self::forward) of several layers on the same input, which is quantized once if all do it alike.
    pub fn forward_all(layers: &[&Self], input: Tensor<4>) -> Vec<Tensor<4>> {
        match layers {
            [] => Vec::new(),
            [first, others @ ..]
                if !others.is_empty() && others.iter().all(|other| first.quantizes_input_like(other)) =>
            {
                let quantized = first.selection.input(&first.input_quantizer, input);
                Self::forward_all_quantized(layers, quantized)
            }
            _ => Self::on_each(layers, input, Self::forward),
        }
    }

    /// [`forward_quantized`](Self::forward_quantized) of each layer.
    pub fn forward_all_quantized(layers: &[&Self], input: Quantized<4>) -> Vec<Tensor<4>> {
        Self::on_each(layers, input, Self::forward_quantized)
    }

    /// `forward` of each layer on the same input, which the last one takes.
    fn on_each<T: Clone>(
        layers: &[&Self],
        input: T,
        forward: impl Fn(&Self, T) -> Tensor<4>,
    ) -> Vec<Tensor<4>> {
        let Some((last, others)) = layers.split_last() else { return Vec::new() };
        let mut outputs: Vec<_> = others.iter().map(|layer| forward(layer, input.clone())).collect();
        outputs.push(forward(last, input));
        outputs
    }

    /// Convolves an input that is quantized as this layer does it. That is not checked: any other input is convolved as it is,
    /// without being quantized.
    pub fn forward_quantized(&self, input: impl Into<Quantized<4>>) -> Tensor<4> {
        let weight = match &self.mixture {
            Some(mixture) => {
                mixture.weight(standardized(self.weight.val(), self.standardizes_weights)).into()
            }
            None => self.selection.weight(&self.weight_quantizer, self.exact_weight()),
        };
        let weight = perturbed(weight, &self.perturbation);
        let gradient = LayerRef::Conv(self).gradient_quantizer();
        let arithmetic = StepArithmetic { compute: self.compute, gradient };
        let options = ConvOptions::new([self.stride; 2], [self.padding; 2], [1; 2], self.groups);
        let output = conv2d(input, weight, options, arithmetic);
        match &self.bias {
            Some(bias) => {
                let channels = output.dims()[1];
                output + bias.val().reshape([1, channels, 1, 1])
            }
            None => output,
        }
    }

    /// The activation that, after a normalization, takes the place of a ReLU and of the layer's quantization of an input
    /// of shape `dims`, `[batch, in_channels, height, width]`: its result is for
    /// [`forward_quantized`](Self::forward_quantized). `None` if the quantizer has to see the ReLU's result.
    ///
    /// A ReLU blocks the gradient at exactly zero. LSQ's quantizer does so too; those of DoReFa and PACT pass it.
    pub fn input_activation(&self, dims: [usize; 4]) -> Option<Activation> {
        if self.mixture.is_some() {
            return None;
        }
        match (&self.input_quantizer, &self.selection) {
            (None, _) => Some(Activation::Relu),
            (Some(quantizer), selection) if selection.is_all_of_input() => quantizer.activation(&dims),
            (Some(_), _) => None,
        }
    }

    /// Whether the quantized input of this layer serves the other one as well.
    pub fn quantizes_input_like(&self, other: &Self) -> bool {
        if self.mixture.is_some() || other.mixture.is_some() {
            return false;
        }
        match (&self.input_quantizer, &other.input_quantizer) {
            (None, None) => true,
            (Some(one), Some(two)) => {
                let are_whole = self.selection.is_all_of_input() && other.selection.is_all_of_input();
                one.is_like(two) && (are_whole || self.selection == other.selection)
            }
            _ => false,
        }
    }
}
