//! Gradients of the operations on backends with autodiff.

use std::ops::RangeInclusive;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::ConvOptions;
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::weights::MaxGradient;

use crate::backend::{
    ActivationKind, CodeWorth, CodedTensor, ConvCompute, KeepCodes, KeptCodes, KeptPlaces, KernelBackend,
    MaxPool,
};
use crate::reference;

impl<B: KernelBackend + KeepCodes, C: CheckpointStrategy> KernelBackend for Autodiff<B, C> {
    fn lowbit_conv2d(
        input: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        options: ConvOptions<2>,
        compute: ConvCompute,
    ) -> FloatTensor<Self> {
        let forward = |input, weight| B::lowbit_conv2d(input, weight, options.clone(), compute);
        conv2d::<B, C>(input, weight, &options, compute, |_, _| None, forward)
    }

    fn lowbit_conv2d_codes(
        input: CodedTensor<Self>,
        weight: CodedTensor<Self>,
        input_unit: FloatTensor<Self>,
        weight_unit: FloatTensor<Self>,
        codes: CodeWorth,
        options: ConvOptions<2>,
        compute: ConvCompute,
    ) -> FloatTensor<Self> {
        let (input_unit, weight_unit) = (input_unit.into_primitive(), weight_unit.into_primitive());
        let [(input, input_codes), (weight, weight_codes)] = [input, weight].map(CodedTensor::split);
        let keep = |input: &_, weight: &_| {
            let input_codes = input_codes.as_ref()?;
            B::lowbit_keep_codes(input, weight, input_codes, &input_unit, codes, &options)
        };
        let forward = |input, weight| {
            let [input, weight] = [(input, input_codes.clone()), (weight, weight_codes)].map(CodedTensor::of);
            let units = (input_unit.clone(), weight_unit);
            B::lowbit_conv2d_codes(input, weight, units.0, units.1, codes, options.clone(), compute)
        };
        conv2d::<B, C>(input, weight, &options, compute, keep, forward)
    }

    fn lowbit_relu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        let prepared = Relu.prepare::<C>([x.node()]).compute_bound().stateful();
        let y = B::lowbit_relu(x.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(y.clone(), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn lowbit_relu_of_sum(one: FloatTensor<Self>, other: FloatTensor<Self>) -> FloatTensor<Self> {
        let prepared = Relu.prepare::<C>([one.node(), other.node()]).compute_bound().stateful();
        let y = B::lowbit_relu_of_sum(one.into_primitive(), other.into_primitive());
        match prepared {
            OpsKind::Tracked(prepared) => prepared.finish(y.clone(), y),
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        }
    }

    fn lowbit_max_pool2d(input: FloatTensor<Self>, options: MaxPool) -> FloatTensor<Self> {
        let prepared = match MaxPool2d.prepare::<C>([input.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared,
            OpsKind::UnTracked(prepared) => {
                return prepared.finish(B::lowbit_max_pool2d(input.into_primitive(), options));
            }
        };
        match B::lowbit_max_pool2d_kept(input.primitive(), options) {
            Some((values, kept)) => prepared.finish(kept, values),
            // With the gradient of the backend.
            None => reference::max_pool2d::<Self>(input, options),
        }
    }

    fn lowbit_batch_statistics(input: FloatTensor<Self>) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::lowbit_batch_statistics(input.into_primitive()))
    }

    fn lowbit_batch_norm(
        input: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        statistics: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        epsilon: f32,
        activation: ActivationKind,
    ) -> CodedTensor<Self> {
        let statistics = statistics.into_primitive();
        let nodes = [input.node(), gamma.node(), beta.node(), parameters.node()];
        let kind = activation.clone();
        let forward = |tensors: [FloatTensor<Self>; 4], statistics| {
            let [input, gamma, beta, parameters] = tensors.map(|tensor| tensor.into_primitive());
            B::lowbit_batch_norm(input, gamma, beta, statistics, parameters, epsilon, kind)
        };
        match BatchNorm.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = BatchNormState {
                    input: prepared.checkpoint(&input),
                    gamma: prepared.checkpoint(&gamma),
                    beta: prepared.checkpoint(&beta),
                    parameters: prepared.checkpoint(&parameters),
                    statistics: statistics.clone(),
                    epsilon,
                    activation,
                };
                let output = forward([input, gamma, beta, parameters], statistics);
                with_values(output, |values| prepared.finish(state, values))
            }
            OpsKind::UnTracked(prepared) => {
                let output = forward([input, gamma, beta, parameters], statistics);
                with_values(output, |values| prepared.finish(values))
            }
        }
    }

    fn lowbit_dorefa_weights(
        w: FloatTensor<Self>,
        formula: AnyFormula,
        codes: Option<RangeInclusive<i32>>,
        max_gradient: MaxGradient,
    ) -> CodedTensor<Self> {
        let prepared = DoReFaWeights.prepare::<C>([w.node()]).compute_bound().stateful();
        let output = B::lowbit_dorefa_weights(w.primitive().clone(), formula, codes, max_gradient);
        with_values(output, |y| match prepared {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&w), max_gradient);
                prepared.finish(state, y)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(y),
        })
    }

    fn lowbit_fake_quantize(
        x: FloatTensor<Self>,
        parameters: FloatTensor<Self>,
        formula: AnyFormula,
        codes: Option<RangeInclusive<i32>>,
    ) -> CodedTensor<Self> {
        match FakeQuantize.prepare::<C>([x.node(), parameters.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&x), prepared.checkpoint(&parameters), formula.clone());
                let output =
                    B::lowbit_fake_quantize(x.into_primitive(), parameters.into_primitive(), formula, codes);
                with_values(output, |values| prepared.finish(state, values))
            }
            OpsKind::UnTracked(prepared) => {
                let output =
                    B::lowbit_fake_quantize(x.into_primitive(), parameters.into_primitive(), formula, codes);
                with_values(output, |values| prepared.finish(values))
            }
        }
    }

    fn lowbit_tanh(w: FloatTensor<Self>) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::lowbit_tanh(w.into_primitive()))
    }

    fn lowbit_double_max(squashed: FloatTensor<Self>) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::lowbit_double_max(squashed.into_primitive()))
    }

    fn lowbit_quotient(x: FloatTensor<Self>, s: FloatTensor<Self>) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::lowbit_quotient(x.into_primitive(), s.into_primitive()))
    }

    fn lowbit_value_range(x: FloatTensor<Self>) -> FloatTensor<Self> {
        <Self as AutodiffBackend>::from_inner(B::lowbit_value_range(x.into_primitive()))
    }
}

/// The same codes of values that `finish` has put into the graph. Codes have no gradient.
fn with_values<B: Backend, C: CheckpointStrategy>(
    output: CodedTensor<B>,
    finish: impl FnOnce(FloatTensor<B>) -> FloatTensor<Autodiff<B, C>>,
) -> CodedTensor<Autodiff<B, C>> {
    let (values, codes) = output.split();
    CodedTensor::of((finish(values), codes))
}

/// A node of a convolution whose forward pass is `forward`, of operands rounded as `compute` says if there is a gradient. What `keep` yields
/// is kept instead of the input.
fn conv2d<B: KernelBackend + KeepCodes, C: CheckpointStrategy>(
    input: FloatTensor<Autodiff<B, C>>,
    weight: FloatTensor<Autodiff<B, C>>,
    options: &ConvOptions<2>,
    compute: ConvCompute,
    keep: impl FnOnce(&FloatTensor<B>, &FloatTensor<B>) -> Option<KeptCodes>,
    forward: impl FnOnce(FloatTensor<B>, FloatTensor<B>) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match Conv2d.prepare::<C>([input.node(), weight.node()]).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let kept = match keep(input.primitive(), weight.primitive()) {
                Some(codes) => KeptInput::Codes(codes),
                None => KeptInput::Node(prepared.checkpoint(&input), options.clone()),
            };
            let state = (kept, prepared.checkpoint(&weight), compute);
            let [of_input, of_weight] = compute.rounds();
            let input = rounded_if::<B>(of_input, input.into_primitive());
            let weight = rounded_if::<B>(of_weight, weight.into_primitive());
            prepared.finish(state, forward(input, weight))
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish(forward(input.into_primitive(), weight.into_primitive()))
        }
    }
}

fn rounded_if<B: KeepCodes>(is_rounded: bool, values: FloatTensor<B>) -> FloatTensor<B> {
    if is_rounded { B::lowbit_round_to_bf16(values) } else { values }
}

#[derive(Debug)]
struct Conv2d;

/// Input of a convolution for its backward pass.
#[derive(Clone, Debug)]
enum KeptInput {
    Node(NodeId, ConvOptions<2>),
    Codes(KeptCodes),
}

impl<B: KernelBackend + KeepCodes> Backward<B, 2> for Conv2d {
    type State = (KeptInput, NodeId, ConvCompute);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let wanted = [0, 1].map(|i| ops.parents[i].is_some());
        let (kept, weight, compute) = ops.state;
        let weight: FloatTensor<B> = checkpointer.retrieve_node_output(weight);
        let [rounds_input, rounds_weight] = compute.rounds();
        let gradient = rounded_if::<B>(compute.rounds_gradient(), gradient);
        // Each of the operands is multiplied for the gradient of the other one.
        let weight = rounded_if::<B>(rounds_weight && wanted[0], weight);
        let results = match kept {
            KeptInput::Codes(kept) => B::lowbit_gradients_of_codes(&kept, weight, gradient, wanted),
            KeptInput::Node(input, options) => {
                let input: FloatTensor<B> = checkpointer.retrieve_node_output(input);
                let input = rounded_if::<B>(rounds_input && wanted[1], input);
                let of_input = wanted[0].then(|| {
                    let (input, weight, gradient) = (input.clone(), weight.clone(), gradient.clone());
                    B::lowbit_conv2d_input_gradient(input, weight, gradient, options.clone())
                });
                let of_weight =
                    wanted[1].then(|| B::lowbit_conv2d_weight_gradient(input, weight, gradient, options));
                [of_input, of_weight]
            }
        };
        for (node, gradient) in ops.parents.into_iter().zip(results) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}

/// ReLU of one tensor or of the sum of several, whose gradient is that of each.
#[derive(Debug)]
struct Relu;

impl<B: KernelBackend, const N: usize> Backward<B, N> for Relu {
    /// The result, which the next operations keep too: burn's own keeps what it is made of.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let gradient = B::lowbit_relu_gradient(ops.state, gradient);
        for node in ops.parents.into_iter().flatten() {
            gradients.register::<B>(node.id, gradient.clone());
        }
    }
}

#[derive(Debug)]
struct MaxPool2d;

impl<B: KernelBackend + KeepCodes> Backward<B, 1> for MaxPool2d {
    type State = KeptPlaces;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let gradient = gradients.consume::<B>(&ops.node);
        if let Some(node) = node {
            gradients.register::<B>(node.id, B::lowbit_max_pool2d_gradient(&ops.state, gradient));
        }
    }
}

#[derive(Debug)]
struct BatchNorm;

#[derive(Clone, Debug)]
struct BatchNormState<B: Backend> {
    input: NodeId,
    gamma: NodeId,
    beta: NodeId,
    parameters: NodeId,
    statistics: FloatTensor<B>,
    epsilon: f32,
    activation: ActivationKind,
}

impl<B: KernelBackend> Backward<B, 4> for BatchNorm {
    type State = BatchNormState<B>;

    fn backward(self, ops: Ops<Self::State, 4>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let BatchNormState { input, gamma, beta, parameters, statistics, epsilon, activation } = ops.state;
        let (input, gamma, beta, parameters) = B::lowbit_batch_norm_gradients(
            checkpointer.retrieve_node_output(input),
            checkpointer.retrieve_node_output(gamma),
            checkpointer.retrieve_node_output(beta),
            statistics,
            checkpointer.retrieve_node_output(parameters),
            gradient,
            epsilon,
            activation,
        );
        for (node, gradient) in ops.parents.into_iter().zip([input, gamma, beta, parameters]) {
            if let Some(node) = node {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct DoReFaWeights;

impl<B: KernelBackend> Backward<B, 1> for DoReFaWeights {
    /// The weights, of which the module has the only copy: their hyperbolic tangents take less time than the memory they would need.
    type State = (NodeId, MaxGradient);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let gradient = gradients.consume::<B>(&ops.node);
        let (w, max_gradient) = ops.state;
        let w: FloatTensor<B> = checkpointer.retrieve_node_output(w);
        if let Some(node) = node {
            let gradient = B::lowbit_dorefa_gradient(B::lowbit_tanh(w), gradient, max_gradient);
            gradients.register::<B>(node.id, gradient);
        }
    }
}

#[derive(Debug)]
struct FakeQuantize;

impl<B: KernelBackend> Backward<B, 2> for FakeQuantize {
    type State = (NodeId, NodeId, AnyFormula);

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let (x, parameters, formula) = ops.state;
        let x: FloatTensor<B> = checkpointer.retrieve_node_output(x);
        let parameters: FloatTensor<B> = checkpointer.retrieve_node_output(parameters);
        let wanted = ops.parents[1].is_some();
        let (x, parameters) = B::lowbit_fake_quantize_gradients(x, parameters, gradient, formula, wanted);
        for (node, gradient) in ops.parents.into_iter().zip([x, parameters]) {
            if let Some(node) = node {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}
