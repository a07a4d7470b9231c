//! A network as data: nodes, edges, paths, feature maps and shapes. The module that trains, the plan of its layers, importers
//! and an inference runtime are made from it.
//!
//! A graph is made by a [`GraphBuilder`] and is whole from then on: every input of a node comes before it, every shape fits, and
//! layers have paths of their own. What is read by serde is checked in the same way.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// The part a layer plays in its network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerRole {
    /// The first convolution, whose input is the image.
    First,
    /// Every layer without another role.
    Hidden,
    /// A 1x1 convolution beside a residual block.
    Shortcut,
    /// The classifier.
    Last,
}

/// Shape of a value, for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// `[channels, height, width]`.
    Map([usize; 3]),
    /// A vector of so many features.
    Features(usize),
}

impl Shape {
    /// Channels of a map, or features.
    pub fn channels(self) -> usize {
        match self {
            Self::Map([channels, ..]) => channels,
            Self::Features(features) => features,
        }
    }

    /// Places of a map; a vector has one.
    pub fn places(self) -> usize {
        match self {
            Self::Map([_, height, width]) => height * width,
            Self::Features(_) => 1,
        }
    }
}

/// A convolution with a square kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conv {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zeros at each side of the image.
    pub padding: usize,
    /// Groups that both channel counts are split into.
    pub groups: usize,
    /// Whether a constant is added to each output channel.
    pub bias: bool,
    /// The part it plays.
    pub role: LayerRole,
}

impl Conv {
    /// A convolution of stride 1 without groups and bias, padded by `kernel / 2`, which keeps the size of the image if the kernel is
    /// odd.
    pub fn new([in_channels, out_channels]: [usize; 2], kernel: usize, role: LayerRole) -> Self {
        Self {
            in_channels,
            out_channels,
            kernel,
            stride: 1,
            padding: kernel / 2,
            groups: 1,
            bias: false,
            role,
        }
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

    /// Shape of the weights, `[out_channels, in_channels / groups, kernel, kernel]`.
    pub fn weight_shape(&self) -> [usize; 4] {
        [self.out_channels, self.in_channels / self.groups, self.kernel, self.kernel]
    }
}

/// A linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Features of the input.
    pub in_features: usize,
    /// Features of the output.
    pub out_features: usize,
    /// Whether a constant is added to each output.
    pub bias: bool,
    /// The part it plays.
    pub role: LayerRole,
}

impl Linear {
    /// A linear layer with a bias.
    pub fn new([in_features, out_features]: [usize; 2], role: LayerRole) -> Self {
        Self { in_features, out_features, bias: true, role }
    }

    /// The same without a bias.
    pub fn without_bias(self) -> Self {
        Self { bias: false, ..self }
    }
}

/// What a node does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Op {
    /// The image, `[channels, height, width]`.
    Input([usize; 3]),
    /// A convolution of a map.
    Conv(Conv),
    /// A linear layer on a vector.
    Linear(Linear),
    /// BatchNorm of a map or a vector.
    Norm {
        /// Channels of the map, or features.
        channels: usize,
    },
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// A learned number times the value.
    Scale,
    /// Sum of two values of the same shape.
    Add,
    /// Maximum over windows of a map; padding never wins.
    MaxPool {
        /// Height and width of a window.
        kernel: usize,
        /// Stride in both directions.
        stride: usize,
        /// Padding at each side.
        padding: usize,
    },
    /// Mean of each channel of a map.
    GlobalAvgPool,
    /// A map as a vector, in the order of channels, rows, columns.
    Flatten,
}

/// The place of a node in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId(usize);

impl NodeId {
    /// Index in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Dotted path of its parameters ("layer2.0.conv1"); empty for what has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What it does.
    pub op: Op,
    /// What it does it to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<NodeId>,
}

/// A named feature map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// The node whose output it is.
    pub node: NodeId,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Graph {
    nodes: Vec<Node>,
    /// Of every node.
    shapes: Vec<Shape>,
    taps: Vec<Tap>,
    output: NodeId,
}

impl Graph {
    /// The nodes; each comes after what it reads.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes with their places.
    pub fn entries(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(index, node)| (NodeId(index), node))
    }

    /// The node at `id`.
    ///
    /// # Panics
    /// If `id` is of another graph.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Shape of the output of the node at `id`, for one image.
    ///
    /// # Panics
    /// If `id` is of another graph.
    pub fn shape(&self, id: NodeId) -> Shape {
        self.shapes[id.0]
    }

    /// The named feature maps in forward order.
    pub fn taps(&self) -> &[Tap] {
        &self.taps
    }

    /// Shapes of the feature maps, `[channels, height, width]` each.
    pub fn tap_shapes(&self) -> Vec<[usize; 3]> {
        let shape = |tap: &Tap| match self.shape(tap.node) {
            Shape::Map(shape) => shape,
            Shape::Features(_) => unreachable!("invariant: feature maps are maps"),
        };
        self.taps.iter().map(shape).collect()
    }

    /// The image, which is the first node.
    pub fn input(&self) -> NodeId {
        NodeId(0)
    }

    /// The node whose output is the network's.
    pub fn output(&self) -> NodeId {
        self.output
    }

    /// The nodes that read the output of each, by index; one that reads it twice is there twice.
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (id, node) in self.entries() {
            node.inputs.iter().for_each(|input| readers[input.0].push(id));
        }
        readers
    }

    /// Whether the output of each node, by index, may be negative. The image counts as one that is not.
    pub fn may_be_negative(&self) -> Vec<bool> {
        let mut may_be: Vec<bool> = Vec::new();
        for node in &self.nodes {
            may_be.push(match node.op {
                Op::Input(_) | Op::Relu | Op::Relu6 => false,
                Op::Conv(_) | Op::Linear(_) | Op::Norm { .. } | Op::Scale => true,
                Op::Add | Op::MaxPool { .. } | Op::GlobalAvgPool | Op::Flatten => {
                    node.inputs.iter().any(|input| may_be[input.0])
                }
            });
        }
        may_be
    }

    /// The fewest values of a channel that a BatchNorm sees of one image; `None` without BatchNorm. In training it normalizes by
    /// as many times the batch: one value alone becomes zero, whatever it is.
    pub fn fewest_values_per_norm(&self) -> Option<usize> {
        let norms = self.entries().filter(|(_, node)| matches!(node.op, Op::Norm { .. }));
        norms.map(|(id, _)| self.shape(id).places()).min()
    }
}

/// A graph as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    nodes: Vec<Node>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    taps: Vec<Tap>,
    output: NodeId,
}

impl From<Graph> for Unchecked {
    fn from(graph: Graph) -> Self {
        let Graph { nodes, taps, output, .. } = graph;
        Self { nodes, taps, output }
    }
}

impl TryFrom<Unchecked> for Graph {
    type Error = GraphError;

    fn try_from(unchecked: Unchecked) -> Result<Self, GraphError> {
        let mut builder = GraphBuilder::default();
        for node in unchecked.nodes {
            builder.push(node)?;
        }
        for Tap { name, node } in unchecked.taps {
            builder.tap(name, node)?;
        }
        builder.finish(unchecked.output)
    }
}

/// A graph that is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// A size that may not be zero is.
    #[error("{node}: its {what} is 0, expected at least 1")]
    Zero {
        /// The node.
        node: String,
        /// The size.
        what: &'static str,
    },
    /// More values than a machine can count.
    #[error("{node}: it has more values than can be counted")]
    TooLarge {
        /// The node.
        node: String,
    },
    /// A window does not fit an image.
    #[error(
        "{node}: a window of {kernel}x{kernel} does not fit an image of {height}x{width} with {padding} around it"
    )]
    TooSmall {
        /// The node.
        node: String,
        /// Side of the window.
        kernel: usize,
        /// Height of the image.
        height: usize,
        /// Width of the image.
        width: usize,
        /// Padding at each side.
        padding: usize,
    },
    /// The padding is as large as the window, some of which would see nothing else.
    #[error("{node}: a padding of {padding} is not below the {kernel} of the window's side")]
    Padding {
        /// The node.
        node: String,
        /// Padding at each side.
        padding: usize,
        /// Side of the window.
        kernel: usize,
    },
    /// The groups do not divide the channels.
    #[error("{node}: {groups} groups do not divide {in_channels} and {out_channels} channels")]
    Groups {
        /// The node.
        node: String,
        /// The groups.
        groups: usize,
        /// Channels of the input.
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
    },
    /// An input has another shape than the node takes.
    #[error("{node}: its input has the shape {got:?}, expected {expected}")]
    Shape {
        /// The node.
        node: String,
        /// Shape of the input.
        got: Shape,
        /// What it takes.
        expected: String,
    },
    /// A second image.
    #[error("{node}: a network has one input, which is its first node")]
    SecondInput {
        /// The node.
        node: String,
    },
    /// A node reads what does not come before it.
    #[error("{node}: it reads node {got}, which does not come before it")]
    Order {
        /// The node.
        node: String,
        /// Index of the node that it reads.
        got: usize,
    },
    /// A node has another number of inputs.
    #[error("{node}: it has {got} inputs, expected {expected}")]
    Inputs {
        /// The node.
        node: String,
        /// Their number.
        got: usize,
        /// The number that its operation has.
        expected: usize,
    },
    /// A layer without a path, or another node with one.
    #[error("{node}: layers have a path, other nodes have none")]
    Path {
        /// The node.
        node: String,
    },
    /// Two layers of one path, or two feature maps of one name.
    #[error("{node}: there are two of this name")]
    Twice {
        /// The node or the feature map.
        node: String,
    },
    /// A feature map that is none.
    #[error("feature map {name:?} is no map of the network")]
    Tap {
        /// Its name.
        name: String,
    },
    /// The network has no output of features.
    #[error("the output of a network is a vector of one of its nodes")]
    Output,
}

/// Makes a graph in forward order, and checks every node.
#[derive(Clone, Debug, Default)]
pub struct GraphBuilder {
    nodes: Vec<Node>,
    shapes: Vec<Shape>,
    taps: Vec<Tap>,
    paths: HashSet<String>,
    tap_names: HashSet<String>,
}

impl GraphBuilder {
    /// Adds the image, the first node of every graph.
    ///
    /// # Errors
    /// [`GraphError`] if it has no pixels, or there is one already.
    pub fn input(&mut self, shape: [usize; 3]) -> Result<NodeId, GraphError> {
        self.push(Node { path: String::new(), op: Op::Input(shape), inputs: Vec::new() })
    }

    /// Adds a convolution.
    ///
    /// # Errors
    /// [`GraphError`] if it does not fit its input.
    pub fn conv(&mut self, path: impl Into<String>, conv: Conv, input: NodeId) -> Result<NodeId, GraphError> {
        self.push(Node { path: path.into(), op: Op::Conv(conv), inputs: vec![input] })
    }

    /// Adds a linear layer.
    ///
    /// # Errors
    /// [`GraphError`] if it does not fit its input.
    pub fn linear(
        &mut self,
        path: impl Into<String>,
        linear: Linear,
        input: NodeId,
    ) -> Result<NodeId, GraphError> {
        self.push(Node { path: path.into(), op: Op::Linear(linear), inputs: vec![input] })
    }

    /// Adds a BatchNorm of its input's channels.
    ///
    /// # Errors
    /// [`GraphError`] if there is no such input.
    pub fn norm(&mut self, path: impl Into<String>, input: NodeId) -> Result<NodeId, GraphError> {
        let channels = self.shapes.get(input.0).map_or(0, |shape| shape.channels());
        self.push(Node { path: path.into(), op: Op::Norm { channels }, inputs: vec![input] })
    }

    /// Adds a ReLU.
    ///
    /// # Errors
    /// [`GraphError`] if there is no such input.
    pub fn relu(&mut self, input: NodeId) -> Result<NodeId, GraphError> {
        self.push(Node { path: String::new(), op: Op::Relu, inputs: vec![input] })
    }

    /// Adds a ReLU that ends at 6.
    ///
    /// # Errors
    /// [`GraphError`] if there is no such input.
    pub fn relu6(&mut self, input: NodeId) -> Result<NodeId, GraphError> {
        self.push(Node { path: String::new(), op: Op::Relu6, inputs: vec![input] })
    }

    /// Adds a learned number that its input is multiplied by.
    ///
    /// # Errors
    /// [`GraphError`] if there is no such input.
    pub fn scale(&mut self, path: impl Into<String>, input: NodeId) -> Result<NodeId, GraphError> {
        self.push(Node { path: path.into(), op: Op::Scale, inputs: vec![input] })
    }

    /// Adds the sum of two values.
    ///
    /// # Errors
    /// [`GraphError`] if they have different shapes.
    pub fn add(&mut self, inputs: [NodeId; 2]) -> Result<NodeId, GraphError> {
        self.push(Node { path: String::new(), op: Op::Add, inputs: inputs.to_vec() })
    }

    /// Adds a max pool.
    ///
    /// # Errors
    /// [`GraphError`] if the window does not fit its input.
    pub fn max_pool(
        &mut self,
        [kernel, stride, padding]: [usize; 3],
        input: NodeId,
    ) -> Result<NodeId, GraphError> {
        self.push(Node {
            path: String::new(),
            op: Op::MaxPool { kernel, stride, padding },
            inputs: vec![input],
        })
    }

    /// Adds the mean over height and width.
    ///
    /// # Errors
    /// [`GraphError`] if the input is no map.
    pub fn global_avg_pool(&mut self, input: NodeId) -> Result<NodeId, GraphError> {
        self.push(Node { path: String::new(), op: Op::GlobalAvgPool, inputs: vec![input] })
    }

    /// Adds a map as a vector.
    ///
    /// # Errors
    /// [`GraphError`] if the input is no map.
    pub fn flatten(&mut self, input: NodeId) -> Result<NodeId, GraphError> {
        self.push(Node { path: String::new(), op: Op::Flatten, inputs: vec![input] })
    }

    /// Names a feature map.
    ///
    /// # Errors
    /// [`GraphError`] if it is no map or the name is taken.
    pub fn tap(&mut self, name: impl Into<String>, node: NodeId) -> Result<(), GraphError> {
        let name = name.into();
        match self.shapes.get(node.0) {
            Some(Shape::Map(_)) if !self.tap_names.insert(name.clone()) => {
                Err(GraphError::Twice { node: name })
            }
            Some(Shape::Map(_)) => {
                self.taps.push(Tap { name, node });
                Ok(())
            }
            _ => Err(GraphError::Tap { name }),
        }
    }

    /// Shape of the output of a node.
    ///
    /// # Panics
    /// If it is of another graph.
    pub fn shape(&self, id: NodeId) -> Shape {
        self.shapes[id.0]
    }

    /// The graph, whose output is that of a node.
    ///
    /// # Errors
    /// [`GraphError`] if that is no vector.
    pub fn finish(self, output: NodeId) -> Result<Graph, GraphError> {
        match self.shapes.get(output.0) {
            Some(Shape::Features(_)) => {
                Ok(Graph { nodes: self.nodes, shapes: self.shapes, taps: self.taps, output })
            }
            _ => Err(GraphError::Output),
        }
    }

    fn push(&mut self, node: Node) -> Result<NodeId, GraphError> {
        let shape = self.check(&node)?;
        if !node.path.is_empty() && !self.paths.insert(node.path.clone()) {
            return Err(GraphError::Twice { node: self.name(&node) });
        }
        self.nodes.push(node);
        self.shapes.push(shape);
        Ok(NodeId(self.nodes.len() - 1))
    }

    /// What a message calls `node`, which is about to be added.
    fn name(&self, node: &Node) -> String {
        match node.path.as_str() {
            "" => format!("node {} ({:?})", self.nodes.len(), node.op),
            path => path.into(),
        }
    }

    /// Shape of the output of `node`.
    fn check(&self, node: &Node) -> Result<Shape, GraphError> {
        let name = || self.name(node);
        let expected = match node.op {
            Op::Input(_) => 0,
            Op::Add => 2,
            _ => 1,
        };
        if node.inputs.len() != expected {
            return Err(GraphError::Inputs { node: name(), got: node.inputs.len(), expected });
        }
        if let Some(later) = node.inputs.iter().find(|input| input.0 >= self.nodes.len()) {
            return Err(GraphError::Order { node: name(), got: later.0 });
        }
        let is_layer = matches!(node.op, Op::Conv(_) | Op::Linear(_) | Op::Norm { .. } | Op::Scale);
        if is_layer == node.path.is_empty() {
            return Err(GraphError::Path { node: name() });
        }
        let input = |i: usize| self.shapes[node.inputs[i].0];
        let is_wrong = |expected: String| GraphError::Shape { node: name(), got: input(0), expected };
        let map = || match input(0) {
            Shape::Map(shape) => Ok(shape),
            Shape::Features(_) => Err(is_wrong("a map".into())),
        };
        let positive = |sizes: &[(&'static str, usize)]| match sizes.iter().find(|(_, size)| *size == 0) {
            Some(&(what, _)) => Err(GraphError::Zero { node: name(), what }),
            None => Ok(()),
        };
        let shape = match node.op {
            Op::Input(_) if !self.nodes.is_empty() => {
                return Err(GraphError::SecondInput { node: name() });
            }
            Op::Input(shape) => {
                let [channels, height, width] = shape;
                positive(&[("channels", channels), ("height", height), ("width", width)])?;
                Shape::Map(shape)
            }
            Op::Conv(conv) => {
                let Conv { in_channels, out_channels, kernel, stride, padding, groups, .. } = conv;
                positive(&[
                    ("in_channels", in_channels),
                    ("out_channels", out_channels),
                    ("kernel", kernel),
                    ("stride", stride),
                    ("groups", groups),
                ])?;
                let [channels, height, width] = map()?;
                if channels != in_channels {
                    return Err(is_wrong(format!("{in_channels} channels")));
                }
                if !(in_channels.is_multiple_of(groups) && out_channels.is_multiple_of(groups)) {
                    return Err(GraphError::Groups { node: name(), groups, in_channels, out_channels });
                }
                let [height, width] = windows(&name, [height, width], [kernel, stride, padding])?;
                countable(&name, &conv.weight_shape())?;
                Shape::Map([out_channels, height, width])
            }
            Op::Linear(Linear { in_features, out_features, .. }) => {
                positive(&[("in_features", in_features), ("out_features", out_features)])?;
                if input(0) != Shape::Features(in_features) {
                    return Err(is_wrong(format!("{in_features} features")));
                }
                countable(&name, &[in_features, out_features])?;
                Shape::Features(out_features)
            }
            Op::Norm { channels } => {
                positive(&[("channels", channels)])?;
                if input(0).channels() != channels {
                    return Err(is_wrong(format!("{channels} channels")));
                }
                input(0)
            }
            Op::Relu | Op::Relu6 | Op::Scale => input(0),
            Op::Add => {
                if input(0) != input(1) {
                    return Err(is_wrong(format!("that of the other, {:?}", input(1))));
                }
                input(0)
            }
            Op::MaxPool { kernel, stride, padding } => {
                positive(&[("kernel", kernel), ("stride", stride)])?;
                let [channels, height, width] = map()?;
                let [height, width] = windows(&name, [height, width], [kernel, stride, padding])?;
                Shape::Map([channels, height, width])
            }
            Op::GlobalAvgPool => Shape::Features(map()?[0]),
            Op::Flatten => Shape::Features(map()?.iter().product()),
        };
        match shape {
            Shape::Map(sides) => countable(&name, &sides)?,
            Shape::Features(_) => {}
        }
        Ok(shape)
    }
}

/// How many windows there are, by height and width.
fn windows(
    name: &impl Fn() -> String,
    [height, width]: [usize; 2],
    [kernel, stride, padding]: [usize; 3],
) -> Result<[usize; 2], GraphError> {
    if padding >= kernel {
        return Err(GraphError::Padding { node: name(), padding, kernel });
    }
    let n =
        |side: usize| Some((side.checked_add(padding.checked_mul(2)?)?.checked_sub(kernel)?) / stride + 1);
    match (n(height), n(width)) {
        (Some(height), Some(width)) => Ok([height, width]),
        _ => Err(GraphError::TooSmall { node: name(), kernel, height, width, padding }),
    }
}

/// Refuses a shape whose values cannot be counted.
fn countable(name: &impl Fn() -> String, sides: &[usize]) -> Result<(), GraphError> {
    let product = sides.iter().try_fold(1usize, |product, side| product.checked_mul(*side));
    product.map(|_| ()).ok_or_else(|| GraphError::TooLarge { node: name() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 3x3 convolution with BatchNorm and ReLU beside a 1x1 one, their sum, and a classifier.
    fn build() -> Result<Graph, GraphError> {
        let mut builder = GraphBuilder::default();
        let image = builder.input([3, 7, 5])?;
        let conv = Conv::new([3, 4], 3, LayerRole::First).with_stride(2);
        let hidden = builder.conv("conv", conv, image)?;
        let hidden = builder.norm("norm", hidden)?;
        let hidden = builder.relu(hidden)?;
        let beside = builder.conv("beside", Conv { kernel: 1, padding: 0, ..conv }, image)?;
        let sum = builder.add([hidden, beside])?;
        builder.tap("sum", sum)?;
        let pooled = builder.max_pool([3, 2, 1], sum)?;
        let flat = builder.flatten(pooled)?;
        let logits = builder.linear("fc", Linear::new([16, 10], LayerRole::Last), flat)?;
        builder.finish(logits)
    }

    #[test]
    fn shapes_are_inferred() {
        let graph = build().unwrap();
        let shapes: Vec<Shape> = graph.entries().map(|(id, _)| graph.shape(id)).collect();
        let map = Shape::Map([4, 4, 3]);
        let expected = [
            Shape::Map([3, 7, 5]),
            map,
            map,
            map,
            map,
            map,
            Shape::Map([4, 2, 2]),
            Shape::Features(16),
            Shape::Features(10),
        ];
        assert_eq!(shapes, expected);
        assert_eq!(graph.tap_shapes(), [[4, 4, 3]]);
        assert_eq!(graph.fewest_values_per_norm(), Some(12));
        let readers: Vec<Vec<usize>> =
            graph.readers().iter().map(|readers| readers.iter().map(|id| id.index()).collect()).collect();
        let expected: [&[usize]; 9] = [&[1, 4], &[2], &[3], &[5], &[5], &[6], &[7], &[8], &[]];
        assert_eq!(readers, expected);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let message = |make: &dyn Fn(&mut GraphBuilder, NodeId) -> Result<NodeId, GraphError>| {
            let mut builder = GraphBuilder::default();
            let image = builder.input([3, 4, 2]).unwrap();
            make(&mut builder, image).unwrap_err().to_string()
        };
        let conv = Conv::new([3, 4], 3, LayerRole::Hidden);
        assert_eq!(
            message(&|b, x| b.conv("a", Conv { in_channels: 2, ..conv }, x)),
            "a: its input has the shape Map([3, 4, 2]), expected 2 channels"
        );
        assert_eq!(
            message(&|b, x| b.conv("a", Conv { padding: 0, ..conv }, x)),
            "a: a window of 3x3 does not fit an image of 4x2 with 0 around it"
        );
        assert_eq!(
            message(&|b, x| b.max_pool([2, 2, 2], x)),
            "node 1 (MaxPool { kernel: 2, stride: 2, padding: 2 }): a padding of 2 is not below the 2 of the window's side"
        );
        assert_eq!(
            message(&|b, x| b.conv("a", Conv { stride: 0, ..conv }, x)),
            "a: its stride is 0, expected at least 1"
        );
        assert_eq!(
            message(&|b, x| b.conv("a", Conv { groups: 2, ..conv }, x)),
            "a: 2 groups do not divide 3 and 4 channels"
        );
        assert_eq!(
            message(&|b, x| b.linear("fc", Linear::new([24, 2], LayerRole::Last), x)),
            "fc: its input has the shape Map([3, 4, 2]), expected 24 features"
        );
        assert_eq!(
            message(&|b, x| b.norm("", x)),
            "node 1 (Norm { channels: 3 }): layers have a path, other nodes have none"
        );
        assert_eq!(
            message(&|b, x| {
                b.norm("norm", x)?;
                b.norm("norm", x)
            }),
            "norm: there are two of this name"
        );
        assert_eq!(
            message(&|b, x| {
                let half = b.max_pool([2, 2, 0], x)?;
                b.add([x, half])
            }),
            "node 2 (Add): its input has the shape Map([3, 4, 2]), expected that of the other, Map([3, 2, 1])"
        );
        assert_eq!(
            message(&|b, x| b.conv("a", Conv { out_channels: usize::MAX / 2, ..conv }, x)),
            "a: it has more values than can be counted"
        );
        assert_eq!(
            message(&|b, _| b.input([3, 4, 2])),
            "node 1 (Input([3, 4, 2])): a network has one input, which is its first node"
        );
        let image_only = |builder: &mut GraphBuilder| builder.input([1, 1, 1]).unwrap();
        let mut builder = GraphBuilder::default();
        let image = image_only(&mut builder);
        assert_eq!(builder.finish(image), Err(GraphError::Output));
    }

    /// What is read is checked as what is built.
    #[test]
    fn graphs_are_written_and_read() {
        let graph = build().unwrap();
        let text = serde_json::to_string(&graph).unwrap();
        assert_eq!(serde_json::from_str::<Graph>(&text).unwrap(), graph);
        let altered = text.replace(r#""in_features":16"#, r#""in_features":15"#);
        assert_ne!(altered, text);
        let error = serde_json::from_str::<Graph>(&altered).unwrap_err().to_string();
        assert!(
            error.starts_with("fc: its input has the shape Features(16), expected 15 features"),
            "{error}"
        );
        let altered = text.replace(r#""inputs":[6]"#, r#""inputs":[60]"#);
        assert_ne!(altered, text);
        let error = serde_json::from_str::<Graph>(&altered).unwrap_err().to_string();
        assert!(error.contains("it reads node 60, which does not come before it"), "{error}");
        let second = r#"{"nodes":[{"op":{"input":[3,7,5]}},{"op":{"input":[1,1,1]}}],"output":1}"#;
        let error = serde_json::from_str::<Graph>(second).unwrap_err().to_string();
        assert!(error.contains("a network has one input"), "{error}");
    }
}
