"""Single operations of PyTorch on request, for `cargo xtask bench ops --peer torch`.

The protocol is that of tests/examples/ops.rs, without the list: a case and a number of repetitions as JSON on stdin, the
median seconds of these on stdout. Quantizers are tensor operations, as a training in PyTorch has them.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from networks import Round

# As in tests/src/ops.rs.
STEPS = 3
STEP_SIZE, WEIGHT_STEP_SIZE, CLIP_VALUE = 0.3, 0.5, 0.8
SCALE, ZERO_POINT, LEVELS = 1.8 / 255, 128, 255
EPSILON = 1e-5


class Pact(torch.autograd.Function):
    """Choi et al. 2018: the gradient of the clip value is that of the values above it."""

    @staticmethod
    def forward(ctx, x, clip_value):
        ctx.save_for_backward(x, clip_value)
        clipped = torch.minimum(x.clamp(min=0), clip_value)
        return (clipped * (STEPS / clip_value)).round() * (clip_value / STEPS)

    @staticmethod
    def backward(ctx, gradient):
        x, clip_value = ctx.saved_tensors
        above = x >= clip_value
        return gradient * ((x >= 0) & ~above), (gradient * above).sum().reshape(1)


def dorefa_activations(x):
    return Round.apply(x.clamp(0, 1) * STEPS) / STEPS


def dorefa_weights(w):
    t = w.tanh()
    z = t / (2 * t.abs().max()) + 0.5
    return 2 * Round.apply(z * STEPS) / STEPS - 1


def lsq(x, step_size, q_min, q_max):
    return Round.apply((x / step_size).clamp(q_min, q_max)) * step_size


def lsq_activations(x, step_size):
    return lsq(x, step_size, 0, STEPS)


def lsq_weights(w, step_size):
    return lsq(w, step_size, -2, 1)


def minmax_activations(x):
    return ((Round.apply(x / SCALE) + ZERO_POINT).clamp(0, LEVELS) - ZERO_POINT) * SCALE


class Sign(torch.autograd.Function):
    """Zhou et al. 2016, Eq. 7: minus or plus the scale, plus at zero; the gradient passes unchanged."""

    @staticmethod
    def forward(ctx, w):
        return torch.where(w < 0, -WEIGHT_STEP_SIZE, WEIGHT_STEP_SIZE)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def binary_weights(w):
    return Sign.apply(w)


def batch_norm(activation):
    def forward(x, gamma, beta, *parameters):
        return activation(F.batch_norm(x, None, None, gamma, beta, True, eps=EPSILON), *parameters)

    return forward


# Of each operation the function, and its learned parameters by the shape of the input.
ELEMENTWISE = {
    "dorefa_activations": (dorefa_activations, lambda shape: []),
    "lsq_activations": (lsq_activations, lambda shape: [torch.tensor([STEP_SIZE])]),
    "pact_activations": (Pact.apply, lambda shape: [torch.tensor([CLIP_VALUE])]),
    "minmax_activations": (minmax_activations, lambda shape: []),
    "dorefa_weights": (dorefa_weights, lambda shape: []),
    "binary_weights": (binary_weights, lambda shape: []),
    "lsq_weights": (lsq_weights, lambda shape: [torch.full((shape[0], 1, 1, 1), WEIGHT_STEP_SIZE)]),
}
NORMS = {
    "batch_norm": (lambda y: y, []),
    "batch_norm_relu": (F.relu, []),
    "batch_norm_dorefa": (dorefa_activations, []),
    "batch_norm_lsq": (lsq_activations, [STEP_SIZE]),
}


def operand(shape, layout):
    return (torch.rand(shape) * 2 - 1).to(memory_format=layout)


def convolution(case, layout):
    filters = case["filters"]
    kernel, stride, groups = filters["kernel"], [filters["stride"]] * 2, filters["groups"]
    padding = [kernel // 2] * 2
    x = operand(case["shape"], layout)
    weight = operand([filters["out_channels"], x.shape[1] // groups, kernel, kernel], layout)
    if case["op"] == "conv2d_codes":
        x, weight = dorefa_activations(x), dorefa_weights(weight)
    if case["pass"] == "forward":
        return lambda: F.conv2d(x, weight, None, stride, padding, groups=groups)
    gradient = operand(F.conv2d(x, weight, None, stride, padding, groups=groups).shape, layout)
    wanted = [case["pass"] == "input_gradient", case["pass"] == "weight_gradient", False]
    # What torch.nn.grad and autograd call.
    backward = torch.ops.aten.convolution_backward
    return lambda: backward(
        gradient, x, weight, None, stride, padding, [1, 1], False, [0, 0], groups, wanted
    )


def prepare(case, layout):
    """A function that computes the case once."""
    op, shape = case["op"], case["shape"]
    if op in ("conv2d", "conv2d_codes"):
        return convolution(case, layout)
    x = operand(shape, layout)
    if op in NORMS:
        activation, parameters = NORMS[op]
        function = batch_norm(activation)
        parameters = [torch.ones(shape[1]), torch.full((shape[1],), 0.5)] + [
            torch.tensor([value]) for value in parameters
        ]
    else:
        function, make = ELEMENTWISE[op]
        parameters = make(shape)
    if case["pass"] == "forward":
        return lambda: function(x, *parameters)
    gradient = operand(shape, layout)
    inputs = [tensor.requires_grad_() for tensor in [x, *parameters]]
    with torch.enable_grad():
        y = function(*inputs)
    return lambda: torch.autograd.grad(y, inputs, gradient, retain_graph=True)


def main():
    threads, layout = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[layout]
    case = function = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["case"] != case:
            function = None
            case = request["case"]
            function = prepare(case, layout)
        times = []
        for _ in range(request["repetitions"]):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        print(statistics.median(times), flush=True)


main()
