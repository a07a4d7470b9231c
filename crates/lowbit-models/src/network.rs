//! The burn module of a graph.

use std::fmt;
use std::sync::Arc;

use burn::module::{
    Content, Devices, DisplaySettings, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper,
    ModuleVisitor, Param,
};
use burn::nn::{BatchNorm, BatchNormConfig};
use burn::tensor::{Device, Tensor};
use lowbit_core::graph::{Conv, Graph, Linear, Node, NodeId, Op};
use lowbit_core::{BitWidth, Compute, Purpose, stream};
use lowbit_kernels::{Activation, MaxPool, channel_means, evaluates_exactly, max_pool2d, relu, relu_of_sum};
use lowbit_quantizers::{
    ActivationQuantizer, GradientQuantizer, LayerMut, LayerRef, QuantConv2d, QuantConv2dConfig, QuantLinear,
    QuantLinearConfig, QuantizationPolicy, QuantizedNetwork,
};
use rand::Rng;

use crate::norm::{norm_relu_convs, norm_then};
use crate::program::{Operand, Program, Step};
use crate::{ModelError, Plan};

/// What a forward pass yields.
#[derive(Clone, Debug)]
pub struct Features {
    /// Class scores, `[batch, n_classes]`.
    pub logits: Tensor<2>,
    /// The feature maps, `[batch, channels, height, width]`, in the order of [`Network::tap_names`].
    pub taps: Vec<Tensor<4>>,
}

/// Is shown a layer's path and its input.
type Observe<'a> = &'a mut dyn FnMut(&str, &Tensor<4>);

/// The layers of a [`Graph`], and what they do.
///
/// As a burn module it has the paths of its graph: the weights of the node "stages.0.1.conv1" are "stages.0.1.conv1.weight",
/// whether they are visited, recorded or grouped by an optimizer. Clones share the graph.
#[derive(Clone, Debug)]
pub struct Network {
    program: Arc<Program>,
    /// In the order of [`Program::layers`].
    layers: Vec<Layer>,
}

/// A layer with parameters.
#[derive(Clone, Debug)]
enum Layer {
    Conv(QuantConv2d),
    Linear(QuantLinear),
    Norm(BatchNorm),
    Scale(Scale),
}

/// A learned number that a value is multiplied by.
#[derive(Module, Debug)]
struct Scale {
    /// That number, `[1]`.
    scale: Param<Tensor<1>>,
}

impl Scale {
    /// What a scale of the logits begins with in the code of Zhuang et al. 2018.
    const START: f32 = 0.01;

    fn new(device: &Device) -> Self {
        Self { scale: Param::from_tensor(Tensor::from_floats([Self::START], device)) }
    }
}

impl Layer {
    /// The layer at `node`, if it has parameters. Convolutions and linear layers draw their weights from `rng`.
    fn new(
        node: &Node,
        policy: &QuantizationPolicy,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Result<Option<Self>, ModelError> {
        let layer = match node.op {
            Op::Conv(Conv { in_channels, out_channels, kernel, stride, padding, groups, bias, role }) => {
                let quantization = policy.resolve(&node.path, role);
                let config = QuantConv2dConfig {
                    in_channels,
                    out_channels,
                    kernel_size: kernel,
                    stride,
                    padding,
                    groups,
                    bias,
                    quantization,
                };
                config.init(device, rng).map(Self::Conv)
            }
            Op::Linear(Linear { in_features, out_features, bias, role }) => {
                let quantization = policy.resolve(&node.path, role);
                let config = QuantLinearConfig { in_features, out_features, bias, quantization };
                config.init(device, rng).map(Self::Linear)
            }
            Op::Norm { channels } => Ok(Self::Norm(BatchNormConfig::new(channels).init(device))),
            Op::Scale => Ok(Self::Scale(Scale::new(device))),
            _ => return Ok(None),
        };
        layer.map(Some).map_err(|source| ModelError::Quantizer { layer: node.path.clone(), source })
    }
}

impl Network {
    /// The network of `graph`, each layer at the precision that `policy` has for it, with weights drawn from `seed`: they do not
    /// depend on the policy, so that networks of different precision start equal.
    ///
    /// # Errors
    /// [`ModelError`] if a layer cannot be quantized as asked, or a pattern of the policy matches no layer.
    pub fn new(
        graph: Graph,
        policy: &QuantizationPolicy,
        seed: u64,
        device: &Device,
    ) -> Result<Self, ModelError> {
        // What has no plan is no network: there the policy is checked, before anything takes memory.
        Plan::new(&graph, policy)?;
        let mut rng = stream(seed, Purpose::InitialWeights, 0, 0);
        let layers = graph.nodes().iter().map(|node| Layer::new(node, policy, &mut rng, device));
        let layers = layers.filter_map(Result::transpose).collect::<Result<_, _>>()?;
        Ok(Self { program: Arc::new(Program::new(graph)), layers })
    }

    /// What the network is made of.
    pub fn graph(&self) -> &Graph {
        &self.program.graph
    }

    /// Names of the feature maps in [`Features::taps`].
    pub fn tap_names(&self) -> Vec<&str> {
        self.graph().taps().iter().map(|tap| tap.name.as_str()).collect()
    }

    /// Path and layer, for every BatchNorm in forward order.
    pub fn norms(&self) -> impl Iterator<Item = (&str, &BatchNorm)> {
        self.parts().filter_map(|(path, layer)| match layer {
            Layer::Norm(norm) => Some((path, norm)),
            Layer::Conv(_) | Layer::Linear(_) | Layer::Scale(_) => None,
        })
    }

    /// The same for change.
    pub fn norms_mut(&mut self) -> impl Iterator<Item = (&str, &mut BatchNorm)> {
        self.parts_mut().filter_map(|(path, layer)| match layer {
            Layer::Norm(norm) => Some((path, norm)),
            Layer::Conv(_) | Layer::Linear(_) | Layer::Scale(_) => None,
        })
    }

    /// Path and factor, `[1]`, for every learned scale in forward order.
    pub fn scales(&self) -> impl Iterator<Item = (&str, Tensor<1>)> {
        self.parts().filter_map(|(path, layer)| match layer {
            Layer::Scale(scale) => Some((path, scale.scale.val())),
            Layer::Conv(_) | Layer::Linear(_) | Layer::Norm(_) => None,
        })
    }

    /// Sets how all convolutions compute their products in training steps from now on. An evaluation computes as ever.
    pub fn set_compute(&mut self, compute: Compute) {
        for layer in &mut self.layers {
            if let Layer::Conv(conv) = layer {
                conv.compute = compute;
            }
        }
    }

    /// Sets to how many bits the gradients of the outputs of quantized layers are rounded in training steps from now on, with noise by keys
    /// that every layer draws from `keys`, whether it is quantized or not. `None` leaves gradients in full precision. For noise of its own,
    /// each step needs other keys.
    pub fn quantize_gradients(&mut self, bits: Option<BitWidth>, keys: &mut impl Rng) {
        for (_, mut layer) in self.layers_mut() {
            let key = keys.next_u64();
            layer.quantize_gradient(bits.map(|bits| GradientQuantizer::new(bits.get(), key)));
        }
    }

    fn parts(&self) -> impl Iterator<Item = (&str, &Layer)> {
        self.layers.iter().enumerate().map(|(i, layer)| (self.program.path(i), layer))
    }

    fn parts_mut(&mut self) -> impl Iterator<Item = (&str, &mut Layer)> {
        let program = &self.program;
        self.layers.iter_mut().enumerate().map(|(i, layer)| (program.path(i), layer))
    }

    /// Class scores. Shapes `[batch, channels, height, width]` to `[batch, n_classes]`.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        self.run(&self.program.for_logits, images).get(self.graph().output()).features()
    }

    /// Class scores and feature maps of `images`, `[batch, channels, height, width]`.
    pub fn forward_features(&self, images: Tensor<4>) -> Features {
        let values = self.run(&self.program.for_features, images);
        let taps = self.program.taps.iter().map(|tap| values.get(*tap).map());
        Features { logits: values.get(self.graph().output()).features(), taps: taps.collect() }
    }

    /// [`forward`](Self::forward), while `observe` is shown the input of each convolution and linear layer by the layer's path, before it is
    /// quantized: `[batch, channels, height, width]`, of a linear layer `[batch, features, 1, 1]`.
    ///
    /// A normalization does not quantize for the layer after it here, so that a last digit may differ from that of `forward`.
    pub fn forward_observed(
        &self,
        images: Tensor<4>,
        mut observe: impl FnMut(&str, &Tensor<4>),
    ) -> Tensor<2> {
        let values = self.run_observed(&self.program.for_logits, images, Some(&mut observe));
        values.get(self.graph().output()).features()
    }

    /// Lets feature maps be what a normalization and its ReLU make of them, where these read them, from now on: in a PreResNet the
    /// inputs of the next stage. Those of networks that end their stages with a ReLU stay. Logits do not change.
    pub fn tap_activations(&mut self) {
        let taps = self.program.activated_taps();
        self.program = Arc::new(Program::with_taps(self.graph().clone(), taps));
    }

    /// What quantizes each feature map as the input of the first layer that reads it; `None` where that is in full precision, or another
    /// operation reads the map.
    pub fn tap_quantizers(&self) -> Vec<Option<&ActivationQuantizer>> {
        let quantizer = |tap: &NodeId| match &self.layers[self.program.reader(*tap)?] {
            Layer::Conv(conv) => conv.input_quantizer.as_ref(),
            Layer::Linear(linear) => linear.input_quantizer.as_ref(),
            Layer::Norm(_) | Layer::Scale(_) => None,
        };
        self.program.taps.iter().map(quantizer).collect()
    }

    /// The values that no step takes: those that the steps are for.
    fn run(&self, steps: &[Step], images: Tensor<4>) -> Values {
        self.run_observed(steps, images, None)
    }

    fn run_observed(&self, steps: &[Step], images: Tensor<4>, mut observe: Option<Observe<'_>>) -> Values {
        let mut values = Values(vec![None; self.graph().nodes().len()]);
        values.set(self.graph().input(), Value::Map(images));
        for step in steps {
            match step {
                Step::Convs { input, norm, convs } => {
                    let x = values.read(*input).map();
                    let layers: Vec<&QuantConv2d> = convs.iter().map(|conv| self.conv(conv.layer)).collect();
                    let outputs = match (norm, &mut observe) {
                        (Some(norm), None) => norm_relu_convs(self.norm(*norm), x, &layers),
                        (None, None) => QuantConv2d::forward_all(&layers, x),
                        (norm, Some(observe)) => {
                            let x = match norm {
                                Some(norm) => norm_then(self.norm(*norm), x, Activation::Relu).into_values(),
                                None => x,
                            };
                            convs.iter().for_each(|conv| observe(self.program.path(conv.layer), &x));
                            QuantConv2d::forward_all(&layers, x)
                        }
                    };
                    for (conv, output) in convs.iter().zip(outputs) {
                        values.set(conv.output, Value::Map(output));
                    }
                }
                Step::Norm { input, layer, is_relu, output } => {
                    let activation = if *is_relu { Activation::Relu } else { Activation::Identity };
                    let value = values.read(*input).normalized(self.norm(*layer), activation);
                    values.set(*output, value);
                }
                Step::Linear { input, layer, output } => {
                    let features = values.read(*input).features();
                    if let Some(observe) = &mut observe {
                        let [batch, n] = features.dims();
                        observe(self.program.path(*layer), &features.clone().reshape([batch, n, 1, 1]));
                    }
                    let value = self.linear(*layer).forward(features);
                    values.set(*output, Value::Features(value));
                }
                Step::Scale { input, layer, output } => {
                    let value = values.read(*input).scaled(self.scale(*layer));
                    values.set(*output, value);
                }
                Step::ReluOfSum { inputs, output } => {
                    let value = match inputs.map(|input| values.read(input)) {
                        [Value::Map(one), Value::Map(other)] => Value::Map(relu_of_sum(one, other)),
                        [one, other] => Value::Features(relu_of_sum(one.features(), other.features())),
                    };
                    values.set(*output, value);
                }
                Step::Plain { inputs, op, output } => {
                    let inputs = inputs.iter().map(|input| values.read(*input)).collect();
                    values.set(*output, plain(*op, inputs));
                }
            }
        }
        values
    }

    fn conv(&self, layer: usize) -> &QuantConv2d {
        match &self.layers[layer] {
            Layer::Conv(conv) => conv,
            _ => unreachable!("invariant: the step is of a convolution"),
        }
    }

    fn linear(&self, layer: usize) -> &QuantLinear {
        match &self.layers[layer] {
            Layer::Linear(linear) => linear,
            _ => unreachable!("invariant: the step is of a linear layer"),
        }
    }

    fn norm(&self, layer: usize) -> &BatchNorm {
        match &self.layers[layer] {
            Layer::Norm(norm) => norm,
            _ => unreachable!("invariant: the step is of a normalization"),
        }
    }
}

impl Network {
    fn scale(&self, layer: usize) -> &Scale {
        match &self.layers[layer] {
            Layer::Scale(scale) => scale,
            _ => unreachable!("invariant: the step is of a scale"),
        }
    }
}

/// The output of a node.
#[derive(Clone)]
enum Value {
    /// `[batch, channels, height, width]`.
    Map(Tensor<4>),
    /// `[batch, features]`.
    Features(Tensor<2>),
}

impl Value {
    fn map(self) -> Tensor<4> {
        match self {
            Self::Map(map) => map,
            Self::Features(_) => unreachable!("invariant: the shapes of the graph are checked"),
        }
    }

    fn features(self) -> Tensor<2> {
        match self {
            Self::Features(features) => features,
            Self::Map(_) => unreachable!("invariant: the shapes of the graph are checked"),
        }
    }

    fn scaled(self, Scale { scale }: &Scale) -> Self {
        match self {
            Self::Map(map) => Self::Map(map * scale.val().reshape([1, 1, 1, 1])),
            Self::Features(features) => Self::Features(features * scale.val().reshape([1, 1])),
        }
    }

    /// `activation(norm(self))`.
    fn normalized(self, norm: &BatchNorm, activation: Activation) -> Self {
        match self {
            Self::Map(map) => Self::Map(norm_then(norm, map, activation).into_values()),
            Self::Features(features) => {
                let [batch, channels] = features.dims();
                let map = norm_then(norm, features.reshape([batch, channels, 1, 1]), activation);
                Self::Features(map.into_values().reshape([batch, channels]))
            }
        }
    }
}

/// The outputs of nodes that are still to be read.
struct Values(Vec<Option<Value>>);

impl Values {
    fn set(&mut self, node: NodeId, value: Value) {
        self.0[node.index()] = Some(value);
    }

    /// A value for a step; the last one that reads it takes it.
    fn read(&mut self, Operand { node, is_last }: Operand) -> Value {
        if is_last { self.0[node.index()].take().expect(IS_MADE) } else { self.get(node) }
    }

    fn get(&self, node: NodeId) -> Value {
        self.0[node.index()].clone().expect(IS_MADE)
    }
}

const IS_MADE: &str = "invariant: a value is made before it is read and dropped after its last use";

/// An operation without parameters.
fn plain(op: Op, inputs: Vec<Value>) -> Value {
    let mut inputs = inputs.into_iter();
    let mut next = || inputs.next().expect("invariant: the numbers of inputs are checked");
    match op {
        Op::Relu => match next() {
            Value::Map(map) => Value::Map(relu(map)),
            Value::Features(features) => Value::Features(relu(features)),
        },
        Op::Relu6 => match next() {
            Value::Map(map) => Value::Map(map.clamp(0.0, 6.0)),
            Value::Features(features) => Value::Features(features.clamp(0.0, 6.0)),
        },
        Op::Add => match (next(), next()) {
            (Value::Map(one), Value::Map(other)) => Value::Map(one + other),
            (one, other) => Value::Features(one.features() + other.features()),
        },
        Op::MaxPool { kernel, stride, padding } => {
            Value::Map(max_pool2d(next().map(), MaxPool { kernel, stride, padding }))
        }
        Op::GlobalAvgPool => {
            let map = next().map();
            if evaluates_exactly(&map.device()) {
                return Value::Features(channel_means(map));
            }
            let [batch, channels, height, width] = map.dims();
            let mean = map.reshape([batch, channels, height * width]).mean_dim(2);
            Value::Features(mean.reshape([batch, channels]))
        }
        Op::Flatten => Value::Features(next().map().flatten(1, 3)),
        Op::Input(_) | Op::Conv(_) | Op::Linear(_) | Op::Norm { .. } | Op::Scale => {
            unreachable!("invariant: these are other steps")
        }
    }
}

impl QuantizedNetwork for Network {
    fn layers(&self) -> impl Iterator<Item = (&str, LayerRef<'_>)> {
        self.parts().filter_map(|(path, layer)| match layer {
            Layer::Conv(conv) => Some((path, LayerRef::Conv(conv))),
            Layer::Linear(linear) => Some((path, LayerRef::Linear(linear))),
            Layer::Norm(_) | Layer::Scale(_) => None,
        })
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = (&str, LayerMut<'_>)> {
        self.parts_mut().filter_map(|(path, layer)| match layer {
            Layer::Conv(conv) => Some((path, LayerMut::Conv(conv))),
            Layer::Linear(linear) => Some((path, LayerMut::Linear(linear))),
            Layer::Norm(_) | Layer::Scale(_) => None,
        })
    }
}

/// What burn calls the module that holds the layers.
const CONTAINER: &str = "Struct:Network";

// By hand: a derived module has the names of fields, and this one those of its graph. A path of several parts is entered part by
// part, as if there were modules in modules.
impl Module for Network {
    fn collect_devices(&self, devices: Devices) -> Devices {
        self.layers.iter().fold(devices, |devices, layer| match layer {
            Layer::Conv(conv) => conv.collect_devices(devices),
            Layer::Linear(linear) => linear.collect_devices(devices),
            Layer::Norm(norm) => norm.collect_devices(devices),
            Layer::Scale(scale) => scale.collect_devices(devices),
        })
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        for (path, layer) in self.parts() {
            path.split('.').for_each(|part| visitor.enter_module(part, CONTAINER));
            match layer {
                Layer::Conv(conv) => conv.visit(visitor),
                Layer::Linear(linear) => linear.visit(visitor),
                Layer::Norm(norm) => norm.visit(visitor),
                Layer::Scale(scale) => scale.visit(visitor),
            }
            path.split('.').rev().for_each(|part| visitor.exit_module(part, CONTAINER));
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let Self { program, layers } = self;
        let map = |(i, layer)| {
            let path = program.path(i);
            path.split('.').for_each(|part| mapper.enter_module(part, CONTAINER));
            let layer = match layer {
                Layer::Conv(conv) => Layer::Conv(conv.map(mapper)),
                Layer::Linear(linear) => Layer::Linear(linear.map(mapper)),
                Layer::Norm(norm) => Layer::Norm(norm.map(mapper)),
                Layer::Scale(scale) => Layer::Scale(scale.map(mapper)),
            };
            path.split('.').rev().for_each(|part| mapper.exit_module(part, CONTAINER));
            layer
        };
        let layers = layers.into_iter().enumerate().map(map).collect();
        Self { program, layers }
    }

    fn to_device(self, device: &Device) -> Self {
        self.each(
            |layer| layer.to_device(device),
            |layer| layer.to_device(device),
            |layer| layer.to_device(device),
            |layer| layer.to_device(device),
        )
    }

    fn fork(self, device: &Device) -> Self {
        self.each(
            |layer| layer.fork(device),
            |layer| layer.fork(device),
            |layer| layer.fork(device),
            |layer| layer.fork(device),
        )
    }

    fn valid(&self) -> Self {
        self.clone().each(
            |layer| layer.valid(),
            |layer| layer.valid(),
            |layer| layer.valid(),
            |layer| layer.valid(),
        )
    }

    fn train(self) -> Self {
        self.each(Module::train, Module::train, Module::train, Module::train)
    }

    fn materialize(self) -> Self {
        self.each(Module::materialize, Module::materialize, Module::materialize, Module::materialize)
    }
}

impl Network {
    /// Every layer replaced by the function for its kind.
    fn each(
        self,
        conv: impl Fn(QuantConv2d) -> QuantConv2d,
        linear: impl Fn(QuantLinear) -> QuantLinear,
        norm: impl Fn(BatchNorm) -> BatchNorm,
        scale: impl Fn(Scale) -> Scale,
    ) -> Self {
        let layers = self.layers.into_iter().map(|layer| match layer {
            Layer::Conv(layer) => Layer::Conv(conv(layer)),
            Layer::Linear(layer) => Layer::Linear(linear(layer)),
            Layer::Norm(layer) => Layer::Norm(norm(layer)),
            Layer::Scale(layer) => Layer::Scale(scale(layer)),
        });
        Self { program: self.program, layers: layers.collect() }
    }
}

impl ModuleDisplayDefault for Network {
    fn content(&self, content: Content) -> Option<Content> {
        let content = content.set_top_level_type("Network");
        let add = |content: Content, (path, layer): (&str, &Layer)| match layer {
            Layer::Conv(conv) => content.add(path, conv),
            Layer::Linear(linear) => content.add(path, linear),
            Layer::Norm(norm) => content.add(path, norm),
            Layer::Scale(scale) => content.add(path, scale),
        };
        self.parts().fold(content, add).optional()
    }

    fn num_params(&self) -> usize {
        Module::num_params(self)
    }
}

impl ModuleDisplay for Network {}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ModuleDisplay::format(self, DisplaySettings::default()))
    }
}
