//! What the construction of every network shares: layers named by their path, drawn from one stream of weights.

use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor};
use lowbit_core::{Purpose, stream};
use lowbit_quantizers::{
    LayerRole, QuantConv2d, QuantConv2dConfig, QuantLinear, QuantLinearConfig, QuantizationPolicy,
};
use rand::Rng;

use crate::{InputShape, LayerRef, ModelError, Plan};

/// Builds layers in forward order; the order decides which initial weights a layer draws. Keeps the plan of what it
/// has built.
pub(crate) struct Builder<'a, R> {
    policy: &'a QuantizationPolicy,
    device: &'a Device,
    rng: R,
    plan: Plan,
}

/// A builder whose weights are a function of `seed` alone: they do not depend on the policy, so that networks of
/// different precision start equal.
pub(crate) fn builder<'a>(
    policy: &'a QuantizationPolicy,
    device: &'a Device,
    seed: u64,
) -> Builder<'a, impl Rng> {
    Builder { policy, device, rng: stream(seed, Purpose::InitialWeights, 0, 0), plan: Plan::default() }
}

impl<R: Rng> Builder<'_, R> {
    /// A convolution of an input of `size` (height and width).
    pub(crate) fn conv(
        &mut self,
        path: &str,
        role: LayerRole,
        config: QuantConv2dConfig,
        size: [usize; 2],
    ) -> Result<QuantConv2d, ModelError> {
        let quantization = self.policy.resolve(path, role);
        let conv = config
            .with_quantization(quantization)
            .init(self.device, &mut self.rng)
            .map_err(|source| ModelError::Quantizer { layer: path.into(), source })?;
        let n_positions = size.map(|side| side.div_ceil(config.stride)).iter().product();
        self.plan.push_layer(path, role, &conv.weight.val().dims(), 0, n_positions, quantization);
        Ok(conv)
    }

    pub(crate) fn linear(
        &mut self,
        path: &str,
        in_features: usize,
        out_features: usize,
    ) -> Result<QuantLinear, ModelError> {
        let quantization = self.policy.resolve(path, LayerRole::Last);
        let linear = QuantLinearConfig::new(in_features, out_features)
            .with_quantization(quantization)
            .init(self.device, &mut self.rng)
            .map_err(|source| ModelError::Quantizer { layer: path.into(), source })?;
        self.plan.push_layer(
            path,
            LayerRole::Last,
            &[out_features, in_features],
            out_features,
            1,
            quantization,
        );
        Ok(linear)
    }

    pub(crate) fn norm(&mut self, channels: usize) -> BatchNorm {
        self.plan.n_norm_parameters += 2 * channels;
        BatchNormConfig::new(channels).init(self.device)
    }

    pub(crate) fn finish(self) -> Plan {
        self.plan
    }
}

/// Mean over height and width. Shapes `[batch, channels, height, width]` to `[batch, channels]`.
pub(crate) fn global_average_pool(x: Tensor<4>) -> Tensor<2> {
    let [batch, channels, height, width] = x.dims();
    x.reshape([batch, channels, height * width]).mean_dim(2).reshape([batch, channels])
}

/// The stem and the three stages of a CIFAR-style residual network (He et al. 2016, section 4.2): 16, 32 and 64 channels times the
/// width, the last two beginning with stride 2.
pub(crate) struct ResidualLayout {
    pub(crate) stem_channels: usize,
    stem_stride: usize,
    blocks_per_stage: usize,
}

/// Where one residual block stands.
#[derive(Clone, Copy)]
pub(crate) struct BlockSpec {
    pub(crate) in_channels: usize,
    pub(crate) out_channels: usize,
    pub(crate) stride: usize,
    /// Height and width of the input.
    pub(crate) size: [usize; 2],
}

impl BlockSpec {
    /// Height and width of the output.
    pub(crate) fn out_size(&self) -> [usize; 2] {
        self.size.map(|side| side.div_ceil(self.stride))
    }

    /// Whether the input can be added to the output as it is.
    pub(crate) fn keeps_shape(&self) -> bool {
        self.in_channels == self.out_channels && self.stride == 1
    }
}

impl ResidualLayout {
    pub(crate) fn new(depth: usize, width: f64, stem_stride: usize) -> Result<Self, ModelError> {
        if depth < 8 || !(depth - 2).is_multiple_of(6) {
            return Err(ModelError::Depth { got: depth });
        }
        Ok(Self { stem_channels: scaled(16, width), stem_stride, blocks_per_stage: (depth - 2) / 6 })
    }

    /// The first convolution.
    pub(crate) fn stem(&self, in_channels: usize) -> QuantConv2dConfig {
        QuantConv2dConfig::new([in_channels, self.stem_channels], 3).with_stride(self.stem_stride)
    }

    /// The layers of a network of this layout.
    pub(crate) fn layers(&self) -> Vec<LayerRef> {
        let block = |path: &str, spec: BlockSpec| {
            let convs =
                ["conv1", "conv2"].map(|conv| LayerRef::new(format!("{path}.{conv}"), LayerRole::Hidden));
            let shortcut = LayerRef::new(format!("{path}.shortcut"), LayerRole::Shortcut);
            Ok(convs.into_iter().chain((!spec.keeps_shape()).then_some(shortcut)).collect::<Vec<_>>())
        };
        // Which layers there are does not depend on the size of the images.
        let input = InputShape { channels: 1, height: 1, width: 1 };
        let stages = self.stages(input, block).expect("invariant: making a list does not fail");
        let blocks = stages.into_iter().flatten().flatten();
        let (stem, fc) = (LayerRef::new("stem", LayerRole::First), LayerRef::new("fc", LayerRole::Last));
        std::iter::once(stem).chain(blocks).chain([fc]).collect()
    }

    /// Shapes of the stages' outputs.
    pub(crate) fn tap_shapes(&self, input: InputShape) -> Vec<[usize; 3]> {
        let shape = |stage: usize| {
            let [height, width] =
                [input.height, input.width].map(|side| side.div_ceil(self.stem_stride).div_ceil(1 << stage));
            [self.stem_channels << stage, height, width]
        };
        (0..3).map(shape).collect()
    }

    pub(crate) fn final_channels(&self) -> usize {
        4 * self.stem_channels
    }

    /// The blocks of every stage with their paths, built in order by `build`.
    pub(crate) fn stages<B>(
        &self,
        input: InputShape,
        mut build: impl FnMut(&str, BlockSpec) -> Result<B, ModelError>,
    ) -> Result<Vec<Vec<B>>, ModelError> {
        let mut in_channels = self.stem_channels;
        let mut size = [input.height, input.width].map(|side| side.div_ceil(self.stem_stride));
        (0..3)
            .map(|stage| {
                let out_channels = self.stem_channels << stage;
                (0..self.blocks_per_stage)
                    .map(|block| {
                        let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                        let spec = BlockSpec { in_channels, out_channels, stride, size };
                        in_channels = out_channels;
                        size = spec.out_size();
                        build(&format!("stages.{stage}.{block}"), spec)
                    })
                    .collect()
            })
            .collect()
    }
}

/// `channels * width`, at least 1.
pub(crate) fn scaled(channels: usize, width: f64) -> usize {
    ((channels as f64 * width).round_ties_even() as usize).max(1)
}
