//! The quantized weights of a student, as strategies see them, and what strategies keep of them from step to step.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use lowbit_core::CodeSet;
use lowbit_quantizers::WeightQuantizer;

/// The weights of a layer with its quantizer.
#[derive(Clone, Debug)]
pub struct LayerWeights {
    /// Path of the layer in the network.
    pub path: String,
    /// What quantizes them.
    pub quantizer: WeightQuantizer,
    /// The latent weights, a row for each output channel.
    pub weights: Tensor<2>,
}

impl LayerWeights {
    /// Their codes.
    pub fn codes(&self) -> Tensor<2> {
        self.quantizer.codes(self.weights.clone()).float()
    }
}

/// The weights of a layer after an update by the optimizer, without gradient.
#[derive(Clone, Debug)]
pub struct UpdatedLayer {
    /// The layer as it is now.
    pub layer: LayerWeights,
    /// Codes before the update, a row for each output channel.
    pub before: Tensor<2>,
    /// Codes now, of the weights as the optimizer has left them.
    pub after: Tensor<2>,
    /// Latent weights that take the place of what the optimizer has made; `None` leaves that.
    pub instead: Option<Tensor<2>>,
}

/// What a strategy keeps of a network from one step to the next. A checkpoint holds it.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Numbers by name.
    pub numbers: BTreeMap<String, f32>,
    /// Tensors of a layer by name.
    pub tensors: BTreeMap<String, Tensor<2>>,
}

/// Something that a strategy has measured in a step: `metrics.jsonl` has it for the last step of each epoch.
#[derive(Clone, Debug)]
pub struct Measure {
    /// Its name there.
    pub name: &'static str,
    /// Its value, shape `[1]`.
    pub value: Tensor<1>,
}

/// The code of a set that is nearest to each of `values`; halfway between two, ties to even.
pub(crate) fn nearest_code(values: Tensor<2>, codes: &CodeSet) -> Tensor<2> {
    match codes {
        CodeSet::Uniform { q_min, q_max, stride } => {
            let (q_min, q_max, stride) = (f64::from(*q_min), f64::from(*q_max), f64::from(*stride));
            ((((values - q_min) / stride).round()) * stride + q_min).clamp(q_min, q_max)
        }
        CodeSet::Table(_) => {
            unreachable!("invariant: a method that holds levels has them at equal distances")
        }
    }
}

/// Number of elements that are not equal, shape `[1]`.
pub(crate) fn n_changed(before: Tensor<2>, after: Tensor<2>) -> Tensor<1> {
    sum(before.not_equal(after).float())
}

/// Sum of all elements, shape `[1]`, in a fixed order: burn's sum of a whole tensor depends on the threads when it is large.
pub(crate) fn sum(values: Tensor<2>) -> Tensor<1> {
    let n = values.shape().num_elements();
    values.reshape([1, n]).sum_dim(1).reshape([1])
}

/// The course of something from 1 to 0 along half a cosine, at `step` of `steps`.
pub(crate) fn falling(step: u64, steps: u64) -> f64 {
    let u = step as f64 / steps.max(1) as f64;
    0.5 * (1.0 + (std::f64::consts::PI * u).cos())
}
