//! Gradients of the operations on backends with autodiff.

use std::ops::RangeInclusive;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::autodiff::{Autodiff, NodeId};
use burn::backend::tensor::FloatTensor;
use burn::backend::{AutodiffBackend, Backend, TensorMetadata};
use burn::tensor::ops::ConvOptions;
use lowbit_core::Compute;
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::gradient::GradientQuantizer;
use lowbit_cpu::packed::PackedImages;
use lowbit_cpu::weights::MaxGradient;

use crate::backend::{
    ActivationKind, CodeWorth, CodedTensor, ConvCompute, ConvOperands, KeepCodes, KeptInput, KeptWeights,
    KernelBackend, WeightCodes,
};

impl<B: KeepCodes, C: CheckpointStrategy> KernelBackend for Autodiff<B, C> {
    fn lowbit_conv2d(
        input: CodedTensor<Self>,
        weight: CodedTensor<Self>,
        input_unit: FloatTensor<Self>,
        weight_unit: FloatTensor<Self>,
        codes: CodeWorth,
        options: ConvOptions<2>,
        compute: ConvCompute,
    ) -> FloatTensor<Self> {
        let units = [input_unit, weight_unit].map(|unit| unit.into_primitive());
        let [(input, input_codes), (weight, weight_codes)] = [input, weight].map(CodedTensor::split);
        let keep_input = || B::lowbit_keep_input(input_codes.as_ref()?, &units[0], codes);
        let keep_weights = || B::lowbit_keep_weights(weight_codes.as_ref()?, &units[1], codes);
        let forward = |input: FloatTensor<Self>, weight: FloatTensor<Self>, compute| {
            let [input_unit, weight_unit] = units.clone();
            B::lowbit_conv2d(
                CodedTensor::of((input.into_primitive(), input_codes.clone())),
                CodedTensor::of((weight.into_primitive(), weight_codes.clone())),
                input_unit,
                weight_unit,
                codes,
                options.clone(),
                compute,
            )
        };
        match Conv2d.prepare::<C>([input.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                assert!(
                    compute.compute == Compute::Fp32 || B::TRAINS_IN_BF16,
                    "convolutions are trained in bf16 on CPUs alone: compute in fp32 here"
                );
                let state = ConvState {
                    input: match keep_input() {
                        Some(codes) => Kept::Codes(codes),
                        None => Kept::Node(prepared.checkpoint(&input)),
                    },
                    weight: match keep_weights() {
                        Some(codes) => Kept::Codes(codes),
                        None => Kept::Node(prepared.checkpoint(&weight)),
                    },
                    dims: [&input, &weight].map(|tensor| tensor.primitive().shape().dims()),
                    options: options.clone(),
                    compute,
                };
                prepared.finish(state, forward(input, weight, compute))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(forward(input, weight, ConvCompute::default())),
        }
    }

    fn lowbit_with_quantized_gradient(
        x: FloatTensor<Self>,
        quantizer: GradientQuantizer,
    ) -> FloatTensor<Self> {
        match QuantizedGradient.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(quantizer, x.into_primitive()),
            OpsKind::UnTracked(prepared) => prepared.finish(x.into_primitive()),
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
        let node = w.node();
        let squashed = B::lowbit_tanh(w.into_primitive());
        let double_max = B::lowbit_double_max(squashed.clone());
        let output = B::lowbit_fake_quantize(squashed.clone(), double_max, formula, codes);
        with_values(output, |y| match DoReFaWeights.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((squashed, max_gradient), y),
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

#[derive(Debug)]
struct Conv2d;

/// An operand of a convolution for its backward pass.
#[derive(Clone, Debug)]
enum Kept<T> {
    Node(NodeId),
    Codes(T),
}

#[derive(Clone, Debug)]
struct ConvState<B: Backend> {
    input: Kept<PackedImages>,
    weight: Kept<WeightCodes<B>>,
    dims: [[usize; 4]; 2],
    options: ConvOptions<2>,
    compute: ConvCompute,
}

impl<B: KeepCodes> Backward<B, 2> for Conv2d {
    type State = ConvState<B>;

    fn backward(self, ops: Ops<Self::State, 2>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let gradient = gradients.consume::<B>(&ops.node);
        let wanted = [0, 1].map(|i| ops.parents[i].is_some());
        let ConvState { input, weight, dims, options, compute } = ops.state;
        let input = match input {
            Kept::Codes(codes) => KeptInput::Codes(codes),
            Kept::Node(node) => KeptInput::Values(checkpointer.retrieve_node_output(node)),
        };
        let weight = match weight {
            Kept::Codes(codes) => KeptWeights::Codes(codes),
            Kept::Node(node) => KeptWeights::Values(checkpointer.retrieve_node_output(node)),
        };
        let operands = ConvOperands { input, weight, dims, options, compute };
        let results = B::lowbit_conv2d_gradients(operands, gradient, wanted);
        for (node, gradient) in ops.parents.into_iter().zip(results) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                gradients.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct QuantizedGradient;

impl<B: KeepCodes> Backward<B, 1> for QuantizedGradient {
    type State = GradientQuantizer;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let gradient = gradients.consume::<B>(&ops.node);
        if let Some(node) = node {
            gradients.register::<B>(node.id, B::lowbit_quantized_gradient(gradient, ops.state));
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
    type State = (FloatTensor<B>, MaxGradient);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let gradient = gradients.consume::<B>(&ops.node);
        let (squashed, max_gradient) = ops.state;
        if let Some(node) = node {
            let gradient = B::lowbit_dorefa_gradient(squashed, gradient, max_gradient);
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
