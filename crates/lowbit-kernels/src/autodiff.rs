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
use burn::tensor::{TensorData, read_sync};
use lowbit_core::Compute;
use lowbit_cpu::formula::AnyFormula;
use lowbit_cpu::gradient::GradientQuantizer;
use lowbit_cpu::packed::PackedImages;
use lowbit_cpu::weights::MaxGradient;

use crate::backend::{
    ActivationKind, CodeWorth, CodedTensor, ConvCompute, ConvOperands, ConvSizes, KeepCodes, KeptInput,
    KeptPlaces, KeptWeights, KernelBackend, MaxPool, SgdStep, SumOverRanks, WeightCodes,
};
use crate::reference;

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
        let dims = [&input, &weight].map(|tensor| tensor.primitive().shape().dims());
        let sizes = ConvSizes { dims, options: &options };
        let keep_input = || B::lowbit_keep_input(input_codes.as_ref()?, &units[0], codes, sizes);
        let keep_weights = || B::lowbit_keep_weights(weight_codes.as_ref()?, &units[1], codes, sizes);
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
                    compute.compute == Compute::Fp32 || B::ROUNDS,
                    "convolutions are trained in bf16 on CPUs alone: compute in fp32 here"
                );
                assert!(
                    compute.gradient.is_none() || B::ROUNDS,
                    "gradients are quantized on CPUs alone: leave them in fp32 here"
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
                    dims,
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

    fn lowbit_with_summed_gradient(x: FloatTensor<Self>, sum: SumOverRanks) -> FloatTensor<Self> {
        match SummedGradient.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(sum, x.into_primitive()),
            OpsKind::UnTracked(prepared) => prepared.finish(x.into_primitive()),
        }
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

    fn lowbit_moving_statistics(
        input: FloatTensor<Self>,
        mean: FloatTensor<Self>,
        variance: FloatTensor<Self>,
        momentum: f64,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [input, mean, variance] = [input, mean, variance].map(|tensor| tensor.into_primitive());
        let (statistics, mean, variance) = B::lowbit_moving_statistics(input, mean, variance, momentum);
        let from_inner = <Self as AutodiffBackend>::from_inner;
        (from_inner(statistics), from_inner(mean), from_inner(variance))
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

    fn lowbit_cross_entropy(logits: FloatTensor<Self>, targets: FloatTensor<Self>) -> FloatTensor<Self> {
        // The kernel has no gradient for the targets.
        let kept = match targets.is_tracked() {
            true => None,
            false => B::lowbit_cross_entropy_kept(logits.primitive(), targets.primitive()),
        };
        let Some((loss, gradient)) = kept else {
            return reference::cross_entropy::<Self>(logits, targets);
        };
        match CrossEntropy.prepare::<C>([logits.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(gradient, loss),
            OpsKind::UnTracked(prepared) => prepared.finish(loss),
        }
    }

    fn lowbit_sgd(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        velocity: FloatTensor<Self>,
        step: SgdStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [weight, gradient, velocity] = [weight, gradient, velocity].map(|tensor| tensor.into_primitive());
        let (weight, velocity) = B::lowbit_sgd(weight, gradient, velocity, step);
        let from_inner = <Self as AutodiffBackend>::from_inner;
        (from_inner(weight), from_inner(velocity))
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
struct CrossEntropy;

impl<B: KernelBackend> Backward<B, 1> for CrossEntropy {
    /// The gradient of the logits.
    type State = FloatTensor<B>;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let gradient = gradients.consume::<B>(&ops.node);
        if let Some(node) = node {
            let factor = B::float_reshape(gradient, [1, 1].into());
            gradients.register::<B>(node.id, B::float_mul(ops.state, factor));
        }
    }
}

#[derive(Debug)]
struct MaxPool2d;

impl<B: KeepCodes> Backward<B, 1> for MaxPool2d {
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
struct SummedGradient;

impl<B: KeepCodes> Backward<B, 1> for SummedGradient {
    type State = SumOverRanks;

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let [node] = ops.parents;
        let gradient = gradients.consume::<B>(&ops.node);
        // Whoever else trains has this in its graph too, and waits.
        let device = gradient.device();
        let shape = gradient.shape();
        let data = read_sync(B::float_into_data(gradient)).expect("invariant: a gradient can be read");
        let sum = TensorData::new(ops.state.of(data.iter::<f32>().collect()), shape);
        if let Some(node) = node {
            gradients.register::<B>(node.id, B::float_from_data(sum, &device));
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
    /// The weights, which are there anyway: their hyperbolic tangents, computed anew, would take as much memory again.
    type State = (NodeId, MaxGradient);

    fn backward(self, ops: Ops<Self::State, 1>, gradients: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [node] = ops.parents;
        let gradient = gradients.consume::<B>(&ops.node);
        let (w, max_gradient) = ops.state;
        let w: FloatTensor<B> = checkpointer.retrieve_node_output(w);
        if let Some(node) = node {
            let gradient = B::lowbit_dorefa_weights_gradient(w, gradient, max_gradient);
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
