#!/usr/bin/env python3
"""Writes the golden vectors beside this file: the PyTorch reference that the Rust code is compared with.

Written from the formulas of the papers only; README.md describes every field and every convention. Everything is
computed in float32. The closed-form gradients of the papers, evaluated in float64, check autograd's result of every
case before it is written.
"""

import functools
import json
import math
import os
import zlib
from pathlib import Path

# The kernels without AVX, so that the last bit of a sum does not depend on the machine. Read once, at import.
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import numpy as np
import torch

HERE = Path(__file__).resolve().parent

# Random values whose place on the code grid is nearer than this to a rounding boundary or a clip edge are drawn again:
# an ulp of difference in tanh or in a division then cannot change a code or a gradient mask.
GUARD = 1e-4

CONV = (6, 4, 3, 3)
LINEAR = (5, 7)
IMAGES = (2, 3, 4, 4)
FILTERS = (4, 3, 3, 3)


def ste_round(v):
    """Rounds, ties to even; the gradient passes."""
    return v + (torch.round(v) - v).detach()


def clamp(v, low, high):
    """Clamps; the gradient passes where low <= v <= high, edges included.

    torch.clamp has the same value, but its gradient at the edges is 1 in older and 0 in newer releases (2.15).
    """
    return torch.where((v >= low) & (v <= high), v, torch.clamp(v.detach(), low, high))


def open_clamp(v, low, high):
    """Clamps; the gradient passes where low < v < high, as in Esser20 Eq. 3 and 5."""
    return torch.where((v > low) & (v < high), v, torch.clamp(v.detach(), low, high))


def sign(v):
    """-1 or +1, with sign(0) = sign(-0) = +1; no gradient."""
    return torch.where(v < 0, -1.0, 1.0)


class ScaleGradient(torch.autograd.Function):
    """Exactly `value` forward; the gradient times `factor` backward.

    (s - s*g).detach() + s*g differs from s by an ulp for many s and g.
    """

    @staticmethod
    def forward(ctx, value, factor):
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


class Pact(torch.autograd.Function):
    """Choi18 Eq. 1 and 2 forward, Eq. 3 backward: the residual of the rounding does not contribute to dy/da."""

    @staticmethod
    def forward(ctx, x, clip_value, n):
        ctx.save_for_backward(x, clip_value)
        clipped = torch.minimum(torch.clamp(x, min=0.0), clip_value)
        return (torch.round((clipped / clip_value) * n) / n) * clip_value

    @staticmethod
    def backward(ctx, grad):
        x, clip_value = ctx.saved_tensors
        inside = (x >= 0) & (x < clip_value)
        above = x >= clip_value
        return grad * inside, (grad * above).sum().reshape(clip_value.shape), None


def per_channel(parameter, x):
    """Shape [1] or [channels] to something that broadcasts along axis 0 of x."""
    return parameter.reshape((-1,) + (1,) * (x.dim() - 1))


# The quantizers: each returns (codes, y).


def dorefa_weights_grid(w, bits, detached_max=False):
    n = 2**bits - 1
    t = torch.tanh(w)
    # amax: the gradient is shared evenly by all elements that attain the maximum.
    m = t.abs().flatten().amax()
    if m == 0:
        # The maximum gives way to the constant 1/2: z = t + 1/2, so that a dead layer has a gradient to recover by.
        return (t + 0.5) * n
    if detached_max:
        m = m.detach()
    return (t / (2 * m) + 0.5) * n


def dorefa_weights(w, bits, detached_max=False):
    if bits == 1:
        mean = w.abs().mean().detach()
        code = (w >= 0).float()
        # w - w is exactly zero: the value is untouched, the gradient is the identity.
        return code, ((2 * code - 1) * mean).detach() + (w - w.detach())
    n = 2**bits - 1
    v = dorefa_weights_grid(w, bits, detached_max)
    return torch.round(v), 2 * (ste_round(v) / n) - 1


def dorefa_activations(x, bits):
    n = 2**bits - 1
    v = clamp(x, 0.0, 1.0) * n
    return torch.round(v), ste_round(v) / n


def pact_activations(x, bits, clip_value):
    n = 2**bits - 1
    clipped = torch.minimum(torch.clamp(x, min=0.0), clip_value)
    return torch.round((clipped / clip_value) * n), Pact.apply(x, clip_value, n)


def lsq_range(operand, bits):
    if operand == "activations":
        return 0, 2**bits - 1
    if bits == 1:
        return -1, 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def lsq_gradient_scale(operand, bits, x, step_size):
    """1 / sqrt(N q_max), Esser20 section 2.2. N: weights per step, or features per sample."""
    groups = x.shape[0] if operand == "activations" else step_size.numel()
    return 1.0 / (x.numel() / groups * lsq_range(operand, bits)[1]) ** 0.5


def lsq(x, operand, bits, step_size):
    factor = lsq_gradient_scale(operand, bits, x, step_size)
    s = per_channel(ScaleGradient.apply(step_size, factor), x)
    v = open_clamp(x / s, *map(float, lsq_range(operand, bits)))
    if operand == "weights" and bits == 1:
        code = sign(x)
        straight = v + (code - v).detach()
        assert torch.equal(straight, code)
        return code, straight * s
    return torch.round(v), ste_round(v) * s


def minmax_scale(w, bits, granularity):
    rows = w.detach().abs().reshape(1 if granularity == "per-tensor" else w.shape[0], -1)
    m = rows.amax(dim=1)
    return torch.where(m == 0, 1.0, m / (2 ** (bits - 1) - 1))


def minmax_weights(w, bits, granularity):
    q_max = float(2 ** (bits - 1) - 1)
    scale = per_channel(minmax_scale(w, bits, granularity), w)
    v = w / scale
    # max|w| / scale can round to just above q_max. The clamp then acts on the code only: no weight is out of range, so
    # the gradient passes everywhere.
    code = torch.round(torch.clamp(v, -q_max, q_max)).detach()
    assert torch.equal(v + (code - v).detach(), code)
    return code, (v + (code - v).detach()) * scale


def minmax_grid(low, high, bits):
    n = 2**bits - 1
    low, high = torch.clamp(low, max=0.0), torch.clamp(high, min=0.0)
    scale = torch.where(high == low, 1.0, (high - low) / n)
    zero_point = torch.clamp(torch.round(-low / scale), 0, n)
    return scale, zero_point


def minmax_activations(x, bits, low, high):
    n = 2**bits - 1
    scale, zero_point = minmax_grid(low, high, bits)
    code = clamp(ste_round(x / scale) + zero_point, 0, n)
    return code.detach(), (code - zero_point) * scale


EWGS_DELTA = 1e-3


class Ewgs(torch.autograd.Function):
    """Lee21 Eq. 3 forward and Eq. 5 backward: rounds values of [0, 1] to multiples of 1 / n."""

    @staticmethod
    def forward(ctx, v, n):
        q = torch.round(v * n) / n
        ctx.save_for_backward(v, q)
        return q

    @staticmethod
    def backward(ctx, grad):
        v, q = ctx.saved_tensors
        return grad * (1 + EWGS_DELTA * torch.sign(grad) * (v - q)), None


def ewgs_factor(x, operand, bits):
    """LSQ's factor of the learned parameters' gradients, a decision of this project."""
    groups = x.shape[0] if operand == "activations" else 1
    return 1.0 / (np.prod(x.shape) / groups * (2**bits - 1)) ** 0.5


def ewgs(x, operand, bits, interval_lower, interval_upper, output_scale=None):
    n = 2**bits - 1
    factor = ewgs_factor(x, operand, bits)
    lower, upper = (ScaleGradient.apply(end, factor) for end in (interval_lower, interval_upper))
    v = clamp((x - lower) / (upper - lower), 0.0, 1.0)
    q = Ewgs.apply(v, n)
    if operand == "activations":
        return torch.round(v * n), q
    code = 2 * torch.round(v * n) - n
    # As the paper has it, but without the error of 2 q - 1 beside zero.
    straight = 2 * q - 1
    scale = ScaleGradient.apply(output_scale, factor)
    return code, (straight + (code / n - straight).detach()) * scale


def lsq_plus_activations(x, bits, step_size, step_offset):
    n = 2**bits - 1
    factor = 1.0 / (x.numel() / x.shape[0] * n) ** 0.5
    s, b = ScaleGradient.apply(step_size, factor), ScaleGradient.apply(step_offset, factor)
    place = (-b / s).detach()
    rounded = torch.clamp(torch.round(place), 0, n)
    # The offset is rounded to a multiple of the step, straight through: of the zero point in force, dz/ds = -z / s. One that lies
    # beyond the codes has no effect and no gradient.
    if place < -0.5 or place > n + 0.5:
        b = b.detach() + 0 * b
    path = -b / s.detach() - rounded / s.detach() * s
    zero_point = rounded + path - path.detach()
    code = clamp(ste_round(x / s) + zero_point, 0, n)
    return code.detach(), (code - zero_point) * s


def lsq_plus_weights(x, bits, step_size):
    return lsq(x, "weights", bits, step_size)


def tqt_range(operand, bits):
    return (0, 2**bits - 1) if operand == "activations" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def tqt_log2_steps(operand, bits):
    return bits if operand == "activations" else bits - 1


class Ceil(torch.autograd.Function):
    """Rounds up; the gradient passes."""

    @staticmethod
    def forward(ctx, t):
        return torch.ceil(t)

    @staticmethod
    def backward(ctx, grad):
        return grad


def tqt(x, operand, bits, log2_threshold):
    s = per_channel(torch.exp2(Ceil.apply(log2_threshold) - tqt_log2_steps(operand, bits)), x)
    code = clamp(ste_round(x / s), *map(float, tqt_range(operand, bits)))
    return code.detach(), code * s


def apot_levels(operand, bits):
    """Li20 Eq. 5: sums of one power of two of each row, as integers."""
    rows = {2: [(0, 4, 2, 1)], 3: [(0, 8, 4, 1), (0, 2)], 4: [(0, 32, 8, 2), (0, 16, 4, 1)]}
    magnitudes = [0]
    for row in rows[bits if operand == "activations" else bits - 1]:
        magnitudes = [a + b for a in magnitudes for b in row]
    magnitudes = sorted(magnitudes)
    signs = [-level for level in magnitudes[:0:-1]] if operand == "weights" else []
    return signs + magnitudes


class Apot(torch.autograd.Function):
    """Li20 Eq. 6 forward, Eq. 7 backward, of weights that are normalized."""

    @staticmethod
    def forward(ctx, x, clip_value, levels):
        low = -1.0 if levels[0] < 0 else 0.0
        v = x / clip_value
        place = torch.clamp(v, low, 1.0) * levels[-1]
        table = torch.tensor(levels, dtype=torch.float32)
        code = table[(place.unsqueeze(-1) - table).abs().argmin(dim=-1)]
        inside = (v >= low) & (v <= 1)
        ctx.save_for_backward(inside, torch.where(inside, code / levels[-1] - v, code / levels[-1]))
        return code, code / levels[-1] * clip_value

    @staticmethod
    def backward(ctx, _, grad):
        inside, slope = ctx.saved_tensors
        return grad * inside, (grad * slope).sum().reshape(1), None


def apot(x, operand, bits, clip_value):
    if operand == "weights":
        x = (x - x.detach().mean()) / x.detach().std()
    return Apot.apply(x, clip_value, apot_levels(operand, bits))


def straight_through(value, path):
    """Exactly `value` forward, as path - path is zero; the gradient of `path` backward."""
    return value.detach() + (path - path.detach())


def groups(w, granularity):
    """One row for each scale."""
    return w.reshape(1 if granularity == "per-tensor" else w.shape[0], -1)


def mean_magnitude(w, granularity):
    return per_channel(groups(w.detach(), granularity).abs().mean(dim=1), w)


@functools.cache
def hwgq_step(bits):
    """Cai17 for a half normal x > 0 with the levels s, 2 s, ..., n s: the best step for the codes, the codes of that step, and so on."""
    density = lambda x: math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    below = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))
    n, step = 2**bits - 1, 0.5
    for _ in range(10000):
        ends = [0.0] + [(i + 0.5) * step for i in range(1, n)] + [math.inf]
        first = [density(a) - (0.0 if b == math.inf else density(b)) for a, b in zip(ends, ends[1:])]
        mass = [below(b) - below(a) for a, b in zip(ends, ends[1:])]
        step = sum(i * m for i, m in enumerate(first, 1)) / sum(i * i * m for i, m in enumerate(mass, 1))
    return np.float32(step)


def hwgq_activations(x, bits):
    n, step = 2**bits - 1, torch.tensor(hwgq_step(bits))
    code = torch.where(x <= 0, 0.0, torch.clamp(torch.round(x / step), 1, n)).detach()
    inside = (x > 0) & (x <= n * step)
    return code, straight_through(code * step, torch.where(inside, x, 0.0))


def xnor_weights(w, granularity):
    """Rastegari16. Its gradient takes the mean magnitude as a function of the own weight alone."""
    size = groups(w, granularity).shape[1]
    mean = mean_magnitude(w, granularity)
    code = torch.where(w >= 0, 1.0, -1.0)
    # The magnitude is code * w, so that its derivative at 0 is one as well.
    own = mean + (code * w - (code * w).detach()) / size
    path = straight_through(code, clamp(w, -1.0, 1.0)) * own
    return code, straight_through(code * mean, path)


def xnor_activations(x, bits):
    if bits > 1:
        return dorefa_activations(x, bits)
    code = (x > 0).float()
    return code, straight_through(code, torch.where((x > 0) & (x <= 1), x, 0.0))


def twn_threshold(w, granularity):
    return 0.7 * mean_magnitude(w, granularity)


def twn_weights(w, granularity):
    kept = w.abs() > twn_threshold(w, granularity)
    code = torch.where(kept, torch.sign(w), 0.0).detach()
    rows, kept = groups(w.detach().abs(), granularity), groups(kept, granularity)
    count = kept.sum(dim=1)
    scale = torch.where(count == 0, 1.0, (rows * kept).sum(dim=1) / torch.clamp(count, min=1))
    return code, straight_through(code * per_channel(scale, w), w)


def n2uq_weight_scale(w, bits, granularity):
    scale = mean_magnitude(w, granularity) * ((2**bits - 1) / 2 ** (bits - 1))
    return torch.where(scale == 0, 1.0, scale)


def n2uq_weights(w, bits, granularity):
    n = 2**bits - 1
    scale = n2uq_weight_scale(w, bits, granularity)
    v = w / scale
    code = (2 * torch.round((torch.clamp(v, -1, 1) + 1) * (n / 2)) - n).detach()
    return code, straight_through(code / n * scale, torch.where(v.abs() <= 1, w, 0.0))


def n2uq_activations(x, bits, interval_start, interval_widths, output_scale):
    """Liu22: steps up in the middle of each interval, the gradient of a ramp along it."""
    n = 2**bits - 1
    factor = ewgs_factor(x, "activations", bits)
    start = ScaleGradient.apply(interval_start, factor)
    widths = ScaleGradient.apply(interval_widths, factor)
    scale = ScaleGradient.apply(output_scale, factor)
    code, path = torch.zeros_like(x), torch.zeros_like(x)
    for width in widths:
        end = start + width
        code = code + (x >= start + width / 2).float()
        inside = (x >= start) & (x < end)
        path = path + torch.where(inside, (x - start) / width, (x >= end).float())
        start = end
    return code.detach(), straight_through(code, path) / n * scale


def qil_factor(x, operand, bits):
    if operand == "activations":
        return ewgs_factor(x, operand, bits)
    return 1.0 / (np.prod(x.shape) * (2 ** (bits - 1) - 1)) ** 0.5


def qil(x, operand, bits, interval_center, interval_distance, interval_exponent=None):
    """Jung19; activations have no sign and the exponent 1."""
    factor = qil_factor(x, operand, bits)
    center, distance = (ScaleGradient.apply(value, factor) for value in (interval_center, interval_distance))
    if operand == "activations":
        n = 2**bits - 1
        u = clamp((x - center + distance) / (2 * distance), 0.0, 1.0)
        code = torch.round(n * u).detach()
        return code, straight_through(code / n, u)
    q_max = 2 ** (bits - 1) - 1
    place = (x.abs() - center + distance) / (2 * distance)
    # Zero is no base for an exponent below 1: what is pruned takes no part.
    u = torch.where(place > 0, clamp(place, 0.0, 1.0), 1.0)
    v = torch.where(place > 0, torch.sign(x.detach()) * u ** ScaleGradient.apply(interval_exponent, factor), 0.0)
    code = torch.round(v * q_max).detach()
    return code, straight_through(code / q_max, v)


def dsq(x, operand, bits, clip_value, staircase_alpha):
    """Gong19, and the soft curve's gradient."""
    n = 2**bits - 1
    factor = ewgs_factor(x, operand, bits)
    upper, alpha = ScaleGradient.apply(clip_value, factor), ScaleGradient.apply(staircase_alpha, factor)
    lower = -upper if operand == "weights" else torch.zeros(1)
    step = (upper - lower) / n
    kappa, s = torch.log(2 / alpha - 1), 1 / (1 - alpha)
    place = (x - lower) / step
    v = torch.clamp(place, 0, n).detach()
    i = torch.clamp(torch.floor(v), max=n - 1)
    phi = s * torch.tanh(kappa * (place - i - 0.5))
    soft = lower + step * (i + (phi + 1) / 2)
    path = torch.where(x < lower, lower, torch.where(x > upper, upper, soft))
    code = 2 * torch.round(v) - n if operand == "weights" else torch.round(v)
    return code, straight_through(code / n * upper, path)


def lq_nets_bits(operand, count):
    """Row c: the factors b_i of code c."""
    low = -1.0 if operand == "weights" else 0.0
    return torch.tensor([[1.0 if code >> i & 1 else low for i in range(count)] for code in range(2**count)])


def lq_nets(x, operand, bits, basis, granularity):
    """Zhang18: the levels in order, thresholds in the middle, each of which belongs to the level below."""
    basis = basis.reshape(bits, -1)
    factors = lq_nets_bits(operand, bits)
    codes, values = [], []
    for channel, row in enumerate(groups(x.detach(), granularity)):
        levels, order = torch.sort(sum(factors[:, i] * basis[i, channel] for i in range(bits)))
        at = torch.searchsorted((levels[1:] + levels[:-1]) / 2, row)
        codes.append(order[at])
        values.append(levels[at])
    codes, values = (torch.stack(rows).reshape(x.shape) for rows in (codes, values))
    inside = torch.ones_like(x, dtype=torch.bool)
    if operand == "activations":
        inside = (x >= 0) & (x <= basis.sum())
    return codes, straight_through(values, torch.where(inside, x, 0.0))


def lq_nets_update(x, operand, bits, basis, granularity, codes):
    """The closed form of the basis for given codes, and a moving average of it; in float64."""
    basis = f32(basis).astype(np.float64).reshape(bits, -1)
    factors = lq_nets_bits(operand, bits).double().numpy()
    rows = 1 if granularity == "per-tensor" else x.shape[0]
    updated = []
    for channel, (row, code) in enumerate(zip(x.astype(np.float64).reshape(rows, -1), np.reshape(codes, (rows, -1)))):
        b = factors[code].T
        best = np.linalg.solve(b @ b.T / row.size + 1e-4 * np.eye(bits), b @ row / row.size)
        updated.append(0.9 * basis[:, channel] + 0.1 * best)
    return f32(np.stack(updated, axis=1).flatten())


# Closed-form gradients in float64: (x, grad_y, parameters) -> (grad_x, {parameter: gradient}).


def closed_dorefa_weights(bits, detached_max):
    def gradient(w, grad_y):
        if bits == 1:
            return grad_y, {}
        t = np.tanh(w)
        m = np.abs(t).max()
        if m == 0:
            return 2 * grad_y * (1 - t**2), {}
        grad_t = grad_y / m
        if not detached_max:
            tied = np.abs(np.tanh(w.astype(np.float32))) == np.abs(np.tanh(w.astype(np.float32))).max()
            grad_t = grad_t - tied * np.sign(t) * (grad_y * t).sum() / m**2 / tied.sum()
        return grad_t * (1 - t**2), {}

    return gradient


def closed_lsq(operand, bits, factor):
    q_min, q_max = lsq_range(operand, bits)

    def gradient(x, grad_y, step_size):
        s = step_size.reshape((-1,) + (1,) * (x.ndim - 1))
        v = x / s
        inside = (v > q_min) & (v < q_max)
        code = np.where(x < 0, -1, 1) if operand == "weights" and bits == 1 else np.rint(np.clip(v, q_min, q_max))
        d_step = grad_y * np.where(inside, code - v, code)
        d_step = d_step.reshape(len(step_size), -1).sum(axis=1) if len(step_size) > 1 else d_step.sum()
        return grad_y * inside, {"step_size": np.atleast_1d(d_step) * factor}

    return gradient


def closed_pact(x, grad_y, clip_value):
    above = x >= clip_value
    return grad_y * ((x >= 0) & ~above), {"clip_value": np.atleast_1d((grad_y * above).sum())}


def closed_minmax_activations(bits):
    def gradient(x, grad_y, **bounds):
        low, high = min(bounds["min"][0], 0.0), max(bounds["max"][0], 0.0)
        n = 2**bits - 1
        scale = (high - low) / n if high > low else 1.0
        code = np.rint(x / scale) + np.clip(np.rint(-low / scale), 0, n)
        return grad_y * ((code >= 0) & (code <= n)), {}

    return gradient


def closed_ewgs(operand, bits):
    n = 2**bits - 1

    def gradient(x, grad_y, interval_lower, interval_upper, output_scale=None):
        lower, upper = interval_lower, interval_upper
        width = upper - lower
        v = (x - lower) / width
        inside = (v >= 0) & (v <= 1)
        q = np.rint(np.clip(v, 0, 1) * n) / n
        g = grad_y * (1.0 if output_scale is None else 2 * output_scale)
        by_v = inside * g * (1 + EWGS_DELTA * np.sign(g) * (np.clip(v, 0, 1) - q))
        grads = {"interval_lower": (by_v * (v - 1) / width).sum(), "interval_upper": -(by_v * v / width).sum()}
        if output_scale is not None:
            grads["output_scale"] = (grad_y * (2 * q - 1)).sum()
        factor = ewgs_factor(x, operand, bits)
        return by_v / width, {key: np.atleast_1d(grad) * factor for key, grad in grads.items()}

    return gradient


def closed_lsq_plus(bits, factor):
    n = 2**bits - 1

    def gradient(x, grad_y, step_size, step_offset):
        s, b = step_size[0], step_offset[0]
        zero_point = np.clip(np.rint(-b / s), 0, n)
        free = np.rint(x / s) + zero_point
        inside = (free >= 0) & (free <= n)
        code = np.clip(free, 0, n)
        # Bhalgat20 Eq. 9 and 10: outside the range the derivative by the step is the bound.
        d_step = (grad_y * np.where(inside, code - zero_point - x / s, code)).sum()
        d_offset = (grad_y * ~inside).sum() * (-0.5 <= -b / s <= n + 0.5)
        grads = {"step_size": np.atleast_1d(d_step) * factor, "step_offset": np.atleast_1d(d_offset) * factor}
        return grad_y * inside, grads

    return gradient


def closed_tqt(operand, bits):
    q_min, q_max = tqt_range(operand, bits)

    def gradient(x, grad_y, log2_threshold):
        s = 2.0 ** (np.ceil(log2_threshold) - tqt_log2_steps(operand, bits))
        s = s.reshape((-1,) + (1,) * (x.ndim - 1))
        v = x / s
        inside = (np.rint(v) >= q_min) & (np.rint(v) <= q_max)
        code = np.clip(np.rint(v), q_min, q_max)
        d_t = grad_y * (code - inside * v) * s * np.log(2)
        d_t = d_t.reshape(len(log2_threshold), -1).sum(axis=1)
        return grad_y * inside, {"log2_threshold": d_t}

    return gradient


def closed_apot(operand, bits):
    def gradient(x, grad_y, clip_value):
        levels = np.array(apot_levels(operand, bits), dtype=np.float64)
        deviation = 1.0
        if operand == "weights":
            deviation = x.std(ddof=1)
            x = (x - x.mean()) / deviation
        v = x / clip_value
        inside = (v <= 1) & (v >= (-1 if operand == "weights" else 0))
        place = np.clip(v, -1 if operand == "weights" else 0, 1) * levels[-1]
        code = levels[np.abs(place[..., None] - levels).argmin(axis=-1)]
        grad = (grad_y * (code / levels[-1] - inside * v)).sum()
        return grad_y * inside / deviation, {"clip_value": np.atleast_1d(grad)}

    return gradient


def closed_hwgq(bits):
    top = float(np.float32(2**bits - 1) * hwgq_step(bits))
    return lambda x, grad_y: (grad_y * ((x > 0) & (x <= top)), {})


def closed_xnor_weights(granularity):
    def gradient(w, grad_y):
        rows = np.abs(w).reshape(1 if granularity == "per-tensor" else w.shape[0], -1)
        mean = rows.mean(axis=1).reshape((-1,) + (1,) * (w.ndim - 1))
        return grad_y * (1 / rows.shape[1] + mean * (np.abs(w) <= 1)), {}

    return gradient


def closed_xnor_activations(bits):
    return lambda x, grad_y: (grad_y * (((x > 0) if bits == 1 else (x >= 0)) & (x <= 1)), {})


def closed_n2uq_weights(bits, granularity):
    def gradient(w, grad_y):
        scale = n2uq_weight_scale(torch.tensor(w), bits, granularity).numpy()
        return grad_y * (np.abs(w / scale) <= 1), {}

    return gradient


def closed_n2uq_activations(bits):
    n = 2**bits - 1

    def gradient(x, grad_y, interval_start, interval_widths, output_scale):
        ends = interval_start[0] + np.concatenate([[0.0], np.cumsum(interval_widths)])
        # Zero: below the first interval, n + 1: above the last one.
        at = np.searchsorted(ends, x, side="right")
        inside = (at > 0) & (at <= n)
        active = np.clip(at - 1, 0, n - 1)
        width = interval_widths[active]
        by_path = grad_y * output_scale[0] / n * inside
        by_start = -by_path / width
        # A width moves its own ramp, and the start of every later one.
        by_width = [
            (-by_path * (x - ends[i]) / width**2)[active == i].sum() + by_start[active > i].sum() for i in range(n)
        ]
        code = (x[..., None] >= ends[:-1] + interval_widths / 2).sum(axis=-1)
        factor = ewgs_factor(x, "activations", bits)
        grads = {
            "interval_start": np.atleast_1d(by_start.sum()) * factor,
            "interval_widths": np.array(by_width) * factor,
            "output_scale": np.atleast_1d((grad_y * code / n).sum()) * factor,
        }
        return by_path / width, grads

    return gradient


def closed_qil(operand, bits):
    def gradient(x, grad_y, interval_center, interval_distance, interval_exponent=None):
        center, distance = interval_center[0], interval_distance[0]
        far = (np.abs(x) if operand == "weights" else x) - center
        u = (far + distance) / (2 * distance)
        inside = (u <= 1) & ((u > 0) if operand == "weights" else (u >= 0))
        base = np.where(inside, u, 1.0)
        gamma, sign = (interval_exponent[0], np.sign(x)) if operand == "weights" else (1.0, 1.0)
        by_u = grad_y * inside * sign * gamma * base ** (gamma - 1)
        grads = {
            "interval_center": -(by_u / (2 * distance)).sum(),
            "interval_distance": -(by_u * far / (2 * distance**2)).sum(),
        }
        if operand == "weights":
            grads["interval_exponent"] = (grad_y * inside * sign * base**gamma * np.log(base)).sum()
        factor = qil_factor(x, operand, bits)
        by_x = by_u * sign / (2 * distance)
        return by_x, {key: np.atleast_1d(grad) * factor for key, grad in grads.items()}

    return gradient


def closed_dsq(operand, bits):
    n = 2**bits - 1

    def gradient(x, grad_y, clip_value, staircase_alpha):
        upper, a = clip_value[0], staircase_alpha[0]
        lower = -upper if operand == "weights" else 0.0
        inside = (x >= lower) & (x <= upper)
        step = (upper - lower) / n
        v = np.clip((x - lower) / step, 0, n)
        i = np.minimum(np.floor(v), n - 1)
        t = v - i - 0.5
        kappa, s = np.log(2 / a - 1), 1 / (1 - a)
        curve = np.tanh(kappa * t)
        slope = s * kappa * (1 - curve**2) / 2
        # The curve is upper times a function of x / upper: Euler's relation gives the derivative by upper.
        soft = lower + step * (i + (s * curve + 1) / 2)
        by_upper = np.where(inside, (soft - x * slope) / upper, np.where(x > upper, 1.0, lower / upper))
        by_alpha = step / 2 * (s**2 * curve - s * (1 - curve**2) * t * 2 / (a * (2 - a)))
        factor = ewgs_factor(x, operand, bits)
        grads = {
            "clip_value": np.atleast_1d((grad_y * by_upper).sum()) * factor,
            "staircase_alpha": np.atleast_1d((grad_y * inside * by_alpha).sum()) * factor,
        }
        return grad_y * inside * slope, grads

    return gradient


def closed_lq_nets(operand):
    def gradient(x, grad_y, basis):
        inside = (x >= 0) & (x <= basis.sum()) if operand == "activations" else True
        return grad_y * inside, {}

    return gradient


class Method:
    """The cases of one file."""

    def __init__(self, name):
        self.name = name
        self.cases = []
        self.names = set()
        self.worst = {}

    def random(self, name):
        # RandomState's stream is frozen by numpy; the seed is the case's own name, so cases do not depend on another.
        return np.random.RandomState(zlib.crc32(f"{self.name}/{name}".encode()))

    def add(self, name, operand, bits, x, quantize, closed, *, params=None, learned=(), **extra):
        assert name not in self.names, name
        self.names.add(name)
        x = torch.tensor(x, dtype=torch.float32).requires_grad_()
        tensors = {
            key: torch.tensor(np.atleast_1d(value), dtype=torch.float32).requires_grad_(key in learned)
            for key, value in (params or {}).items()
        }
        # Multiples of 1/64: exact in every format, short in the file.
        grad_y = np.rint(self.random(name + "/grad_y").randn(*x.shape) * 64) / 64
        grad_y = torch.tensor(grad_y, dtype=torch.float32)
        codes, y = quantize(x, **tensors)
        y.backward(grad_y)
        grads = {key: tensors[key].grad for key in learned}
        self.check(closed, x, grad_y, tensors, x.grad, grads)
        granularity = extra.pop("granularity", "per-tensor")
        options = extra.pop("options", {})
        self.cases.append(
            {
                "name": name,
                "operand": operand,
                "bits": bits,
                "granularity": granularity,
                "shape": list(x.shape),
                "options": options,
                "params": {key: floats(value) for key, value in tensors.items()},
                **extra,
                "x": floats(x),
                "codes": [int(code) for code in codes.detach().flatten().tolist()],
                "y": floats(y),
                "grad_y": floats(grad_y),
                "grad_x": floats(x.grad),
                "grad_params": {key: floats(value) for key, value in grads.items()},
            }
        )

    def check(self, closed, x, grad_y, params, grad_x, grad_params):
        """Autograd against the closed form; the tolerance is relative to the sum that a gradient is made of."""
        f64 = lambda tensor: tensor.detach().double().numpy()
        want_x, want_params = closed(f64(x), f64(grad_y), **{key: f64(value) for key, value in params.items()})
        pairs = [("grad_x", f64(grad_x), want_x)]
        assert want_params.keys() == grad_params.keys()
        pairs += [(key, f64(grad_params[key]), want_params[key]) for key in want_params]
        for key, got, want in pairs:
            unit = max(np.abs(want).max(), 1e-2)
            error = np.abs(got - want).max() / unit
            assert error < 1e-4, (self.name, key, error)
            self.worst[key] = max(self.worst.get(key, 0.0), error)

    def draw(self, name, shape, sigma, grid, edges=(), mean=0.0):
        """Normal values, those drawn again whose `grid(x)` is within GUARD of a half or of one of `edges`."""
        random = self.random(name + "/x")
        x = (random.randn(*shape) * sigma + mean).astype(np.float32)
        while True:
            v = grid(torch.tensor(x)).double().numpy()
            unsafe = np.abs(v - np.floor(v) - 0.5) < GUARD
            for edge in edges:
                unsafe |= np.abs(v - edge) < GUARD
            if not unsafe.any():
                return x
            x[unsafe] = (random.randn(unsafe.sum()) * sigma + mean).astype(np.float32)

    def write(self):
        write(f"{self.name}.json", {"method": self.name, "torch": torch.__version__, "cases": self.cases})
        worst = ", ".join(f"{key} {error:.1e}" for key, error in self.worst.items())
        print(f"  {len(self.cases)} cases; largest difference from the closed forms: {worst}")


def f32(values):
    return np.array(values, dtype=np.float32)


def above(value):
    return np.nextafter(np.float32(value), np.float32(np.inf))


def below(value):
    return np.nextafter(np.float32(value), np.float32(-np.inf))


def dorefa():
    method = Method("dorefa")

    def weights(name, bits, x, **options):
        detached = options.get("detached_max", False)
        if bits > 1:
            t = np.abs(np.tanh(x.astype(np.float64)))
            tie = ((t.max() - t) < 1e-6).sum() > 1 and 0 < t.max() < 1
            assert tie == options.get("tied_max", False), name
            v = dorefa_weights_grid(torch.tensor(x), bits).double().numpy()
            # Zero and what vanishes beside 0.5 sit exactly on the tie n / 2, whatever the tanh.
            near = (np.abs(v - np.floor(v) - 0.5) < GUARD) & (np.abs(x) > 1e-20)
            assert not near.any(), name
        quantize = lambda w: dorefa_weights(w, bits, detached)
        closed = closed_dorefa_weights(bits, detached)
        method.add(name, "weights", bits, x, quantize, closed, options=options)

    def random_weights(name, bits, shape, **options):
        grid = lambda w: dorefa_weights_grid(w, bits)
        weights(name, bits, method.draw(name, shape, 0.4, grid), **options)

    for bits in (2, 4):
        random_weights(f"weights_{bits}bit_conv", bits, CONV)
    for bits in (2, 3, 4, 8):
        random_weights(f"weights_{bits}bit_linear", bits, LINEAR)
        random_weights(f"weights_{bits}bit_linear_detached_max", bits, LINEAR, detached_max=True)
        random_weights(f"weights_{bits}bit_vector", bits, (9,))
        weights(f"weights_{bits}bit_one_element", bits, f32([0.3]))
        weights(f"weights_{bits}bit_one_negative_element", bits, f32([-0.3]))
        weights(f"weights_{bits}bit_all_zero", bits, f32([[0.0, -0.0, 0.0], [0.0, 0.0, -0.0]]))
        special = [0.0, -0.0, 1e-30, -1e-30, 0.4, -0.7, 1.1, -0.05]
        weights(f"weights_{bits}bit_zero_and_tiny", bits, f32(special))
        # tanh saturates at exactly 1, where its derivative, and with it the gradient through the maximum, is 0.
        weights(f"weights_{bits}bit_saturated", bits, f32(special + [1e6]))
        weights(f"weights_{bits}bit_saturated_twice", bits, f32(special + [1e6, -1e6]))
    weights("weights_3bit_tied_max", 3, f32([0.8, -0.8, 0.15, -0.32, 0.5, 0.8]), tied_max=True)
    for name, shape in (("conv", CONV), ("linear", LINEAR)):
        x = (method.random(f"weights_1bit_{name}/x").randn(*shape) * 0.4).astype(np.float32)
        weights(f"weights_1bit_{name}", 1, x)
    weights("weights_1bit_one_element", 1, f32([-0.3]))
    weights("weights_1bit_all_zero", 1, f32([[0.0, -0.0, 0.0], [0.0, 0.0, -0.0]]))
    weights("weights_1bit_zero_tiny_large", 1, f32([0.0, -0.0, 1e-30, -1e-30, 0.4, -0.7, 1e6, -1e6]))

    def activations(name, bits, x):
        quantize = lambda x: dorefa_activations(x, bits)
        closed = lambda x, grad_y: (grad_y * ((x >= 0) & (x <= 1)), {})
        method.add(name, "activations", bits, x, quantize, closed)

    def random_activations(name, bits, shape):
        n = 2**bits - 1
        activations(name, bits, method.draw(name, shape, 0.5, lambda x: x * n, (0, n), mean=0.4))

    edges = [0.0, -0.0, 1.0, above(1), below(1), 1e-30, -1e-30, 0.5, -0.5, 1.5, -1.5, 2.5, 1e6, -1e6]
    for bits in range(1, 9):
        activations(f"activations_{bits}bit_edges", bits, f32(edges))
        random_activations(f"activations_{bits}bit_linear", bits, LINEAR)
    for bits in (1, 2, 4, 8):
        random_activations(f"activations_{bits}bit_images", bits, IMAGES)
    activations("activations_2bit_one_element", 2, f32([0.6]))
    method.write()


def pact():
    method = Method("pact")

    def activations(name, bits, clip_value, x):
        quantize = lambda x, clip_value: pact_activations(x, bits, clip_value)
        params = {"clip_value": clip_value}
        method.add(name, "activations", bits, x, quantize, closed_pact, params=params, learned=("clip_value",))

    def random(name, bits, clip_value, shape):
        n = 2**bits - 1
        a = float(np.float32(clip_value))
        x = method.draw(name, shape, 0.7 * a, lambda x: x / a * n, (0, n), mean=0.5 * a)
        activations(name, bits, clip_value, x)

    for bits in (1, 2, 3, 4, 8):
        for label, a in (("power_of_two", 4.0), ("any", 2.7)):
            a = np.float32(a)
            # The half of the clip value is the one exact tie: n is odd.
            edges = [0.0, -0.0, a, above(a), below(a), a / 2, -a / 2, a * 1.5, 1e-30, -1e-30, 1e6, -1e6]
            activations(f"{bits}bit_edges_{label}", bits, a, f32(edges))
        random(f"{bits}bit_linear", bits, 1.0, LINEAR)
        random(f"{bits}bit_images", bits, 2.7, IMAGES)
    random("4bit_initial_clip_value", 4, 8.0, LINEAR)
    activations("2bit_all_below_clip_value", 2, 8.0, f32([0.5, 1.0, -1.0, 6.0]))
    activations("2bit_all_above_clip_value", 2, 0.5, f32([0.5, 1.0, 0.75, 6.0]))
    activations("2bit_one_element", 2, 1.5, f32([0.9]))
    method.write()


def lsq_cases():
    method = Method("lsq")

    def case(name, operand, bits, step_size, x, granularity="per-tensor"):
        step_size = f32(np.atleast_1d(step_size))
        factor = lsq_gradient_scale(operand, bits, torch.tensor(x), torch.tensor(step_size))
        method.add(
            name,
            operand,
            bits,
            x,
            lambda x, step_size: lsq(x, operand, bits, step_size),
            closed_lsq(operand, bits, factor),
            params={"step_size": step_size},
            learned=("step_size",),
            granularity=granularity,
        )

    def random(name, operand, bits, step_size, shape, granularity="per-tensor"):
        q_min, q_max = lsq_range(operand, bits)
        s = per_channel(torch.tensor(f32(np.atleast_1d(step_size))), torch.empty(shape))
        # Wide enough that some values are clipped at either end; 8 bits too.
        sigma = float(s.mean()) * (q_max - q_min) * 0.4
        mean = sigma if operand == "activations" else 0.0
        # sign() of a 1-bit weight jumps at 0.
        edges = (q_min, 0, q_max)
        x = method.draw(name, shape, sigma, lambda x: x / s, edges, mean=mean)
        case(name, operand, bits, step_size, x, granularity)

    def edge_positions(operand, bits):
        """Places on the code grid: ties, the clip edges, just beyond them and half a step beyond."""
        q_min, q_max = lsq_range(operand, bits)
        ties = [0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5]
        ends = [q_min, below(q_min) if q_min else -1e-30, q_min - 0.25, q_min - 0.5, q_min + 0.5]
        ends += [q_max, above(q_max), below(q_max), q_max + 0.25, q_max + 0.5, q_max - 0.5]
        return f32(ties + ends + [1e-30, -1e-30, 1e6, -1e6])

    steps = {6: [0.11, 0.07, 0.23, 0.05, 0.13, 0.31], 5: [0.11, 0.07, 0.23, 0.05, 0.13]}
    for bits in (1, 2, 3, 4, 8):
        positions = edge_positions("weights", bits)
        case(f"weights_{bits}bit_edges", "weights", bits, 0.25, positions * np.float32(0.25))
        both = np.stack([positions * np.float32(0.25), positions * np.float32(2.0)])
        case(f"weights_{bits}bit_edges_per_channel", "weights", bits, [0.25, 2.0], both, "per-channel")
        random(f"weights_{bits}bit_linear", "weights", bits, 0.11, LINEAR)
        random(f"weights_{bits}bit_linear_per_channel", "weights", bits, steps[5], LINEAR, "per-channel")
        case(f"weights_{bits}bit_all_zero", "weights", bits, 0.1, f32([[0.0, -0.0, 0.0], [-0.0, 0.0, 0.0]]))

        positions = edge_positions("activations", bits)
        case(f"activations_{bits}bit_edges", "activations", bits, 0.25, positions * np.float32(0.25))
        random(f"activations_{bits}bit_linear", "activations", bits, 0.11, LINEAR)
        random(f"activations_{bits}bit_images", "activations", bits, 0.3, IMAGES)
    random("weights_2bit_conv", "weights", 2, 0.11, CONV)
    random("weights_3bit_conv_per_channel", "weights", 3, steps[6], CONV, "per-channel")
    random("weights_2bit_vector", "weights", 2, 0.11, (9,))
    random("weights_2bit_vector_per_channel", "weights", 2, steps[5], (5,), "per-channel")
    case("weights_2bit_one_element", "weights", 2, 0.5, f32([0.3]))
    case("weights_2bit_one_element_per_channel", "weights", 2, 0.5, f32([-0.3]), "per-channel")
    case("weights_1bit_one_element", "weights", 1, 0.5, f32([-0.3]))
    case("activations_2bit_one_element", "activations", 2, 0.5, f32([0.4]))
    method.write()


def ewgs_cases():
    method = Method("ewgs")

    def case(name, operand, bits, interval, x):
        params = dict(zip(("interval_lower", "interval_upper", "output_scale"), interval))
        quantize = lambda x, **params: ewgs(x, operand, bits, **params)
        closed = closed_ewgs(operand, bits)
        method.add(name, operand, bits, x, quantize, closed, params=params, learned=tuple(params))

    def random(name, operand, bits, interval, shape):
        n = 2**bits - 1
        low, width = np.float32(interval[0]), np.float32(interval[1]) - np.float32(interval[0])
        grid = lambda x: (x - low) / width * n
        x = method.draw(name, shape, 0.4 * float(width), grid, (0, n), mean=float(low + width / 2))
        case(name, operand, bits, interval, x)

    for bits in (1, 2, 3, 4, 8):
        n = 2**bits - 1
        # An interval of width 2: ends, what lies beyond them, and the middle of the first step.
        places = [-1.0, 1.0, 1.001, -1.001, -1.5, 1.5, 0.25, -0.25, 1e6, -1e6]
        case(f"weights_{bits}bit_edges", "weights", bits, (-1.0, 1.0, 0.75), f32(places))
        random(f"weights_{bits}bit_linear", "weights", bits, (-0.7, 0.9, 0.6), LINEAR)
        case(f"activations_{bits}bit_edges", "activations", bits, (0.0, 2.0), f32([x + 1 for x in places]))
        random(f"activations_{bits}bit_linear", "activations", bits, (0.1, 1.3), LINEAR)
        random(f"activations_{bits}bit_images", "activations", bits, (-0.2, 2.1), IMAGES)
    random("weights_2bit_conv", "weights", 2, (-0.5, 0.4, 0.3), CONV)
    case("weights_2bit_all_equal", "weights", 2, (-0.5, 0.5, 0.25), f32([[0.1, 0.1], [0.1, 0.1]]))
    method.write()


def lsq_plus_cases():
    method = Method("lsq-plus")

    def weights(name, bits, step_size, shape, granularity="per-tensor"):
        q_min, q_max = lsq_range("weights", bits)
        step_size = f32(np.atleast_1d(step_size))
        s = per_channel(torch.tensor(step_size), torch.empty(shape))
        sigma = float(s.mean()) * (q_max - q_min) * 0.4
        x = method.draw(name, shape, sigma, lambda x: x / s, (q_min, 0, q_max))
        factor = lsq_gradient_scale("weights", bits, torch.tensor(x), torch.tensor(step_size))
        method.add(
            name,
            "weights",
            bits,
            x,
            lambda x, step_size: lsq_plus_weights(x, bits, step_size),
            closed_lsq("weights", bits, factor),
            params={"step_size": step_size},
            learned=("step_size",),
            granularity=granularity,
        )

    def activations(name, bits, step_size, offset, x):
        n = 2**bits - 1
        params = {"step_size": step_size, "step_offset": offset}
        quantize = lambda x, **params: lsq_plus_activations(x, bits, **params)
        closed = closed_lsq_plus(bits, 1.0 / (x.size / x.shape[0] * n) ** 0.5)
        scale, zero_point = np.float32(step_size), int(np.clip(np.rint(-np.float32(offset) / np.float32(step_size)), 0, n))
        method.add(
            name,
            "activations",
            bits,
            x,
            quantize,
            closed,
            params=params,
            learned=("step_size", "step_offset"),
            qparams={"scale": [float(scale)], "zero_point": [zero_point]},
        )

    def random(name, bits, step_size, offset, shape):
        n = 2**bits - 1
        s = np.float32(step_size)
        middle = offset + 0.5 * n * step_size
        x = method.draw(name, shape, 0.5 * n * step_size, lambda x: x / s, mean=middle)
        activations(name, bits, step_size, offset, x)

    for bits in (1, 2, 3, 4, 8):
        weights(f"weights_{bits}bit_linear", bits, 0.11, LINEAR)
        weights(f"weights_{bits}bit_linear_per_channel", bits, [0.11, 0.07, 0.23, 0.05, 0.13], LINEAR, "per-channel")
        random(f"activations_{bits}bit_linear", bits, 0.11, -0.17, LINEAR)
        random(f"activations_{bits}bit_images", bits, 0.3, -0.3, IMAGES)
        random(f"activations_{bits}bit_without_offset", bits, 0.25, 0.0, LINEAR)
        # An offset above zero: the code of zero is the smallest one.
        random(f"activations_{bits}bit_positive_offset", bits, 0.25, 0.4, LINEAR)
        positions = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 1.5, 1e6, -1e6, 2.0**bits, -(2.0**bits)]
        activations(f"activations_{bits}bit_edges", bits, 0.25, -0.25, f32(positions) * np.float32(0.25))
    method.write()


def tqt_cases():
    method = Method("tqt")

    def case(name, operand, bits, log2_threshold, x, granularity="per-tensor"):
        method.add(
            name,
            operand,
            bits,
            x,
            lambda x, log2_threshold: tqt(x, operand, bits, log2_threshold),
            closed_tqt(operand, bits),
            params={"log2_threshold": f32(np.atleast_1d(log2_threshold))},
            learned=("log2_threshold",),
            granularity=granularity,
        )

    def random(name, operand, bits, log2_threshold, shape, granularity="per-tensor"):
        t = torch.tensor(f32(np.atleast_1d(log2_threshold)))
        s = per_channel(torch.exp2(torch.ceil(t) - tqt_log2_steps(operand, bits)), torch.empty(shape))
        q_min, q_max = tqt_range(operand, bits)
        sigma = float(s.mean()) * (q_max - q_min) * 0.4
        mean = sigma if operand == "activations" else 0.0
        x = method.draw(name, shape, sigma, lambda x: x / s, mean=mean)
        case(name, operand, bits, log2_threshold, x, granularity)

    thresholds = [0.3, -1.2, 1.0, -3.0, 0.0]
    for bits in (2, 3, 4, 8):
        random(f"weights_{bits}bit_linear", "weights", bits, -0.4, LINEAR)
        random(f"weights_{bits}bit_linear_per_channel", "weights", bits, thresholds, LINEAR, "per-channel")
        case(f"weights_{bits}bit_all_zero", "weights", bits, 0.0, f32([[0.0, -0.0], [-0.0, 0.0]]))
        # Steps are powers of two, so that ties are exact: the gradient passes where the rounded value is a code.
        q_min, q_max = tqt_range("weights", bits)
        places = [q_min, q_min - 0.25, q_min - 0.5, q_min - 0.75, q_max, q_max + 0.25, q_max + 0.5, q_max + 0.75]
        places += [0.0, -0.0, 0.5, -0.5, 1.5, 1e6, -1e6]
        case(f"weights_{bits}bit_edges", "weights", bits, 0.0, f32(places) * np.float32(2.0 ** (1 - bits)))
    for bits in (1, 2, 3, 4, 8):
        random(f"activations_{bits}bit_linear", "activations", bits, 1.5, LINEAR)
        random(f"activations_{bits}bit_images", "activations", bits, 0.0, IMAGES)
    random("weights_3bit_conv_per_channel", "weights", 3, thresholds + [0.7], CONV, "per-channel")
    method.write()


def apot_cases():
    method = Method("apot")

    def case(name, operand, bits, clip_value, x):
        quantize = lambda x, clip_value: apot(x, operand, bits, clip_value)
        closed = closed_apot(operand, bits)
        method.add(name, operand, bits, x, quantize, closed, params={"clip_value": clip_value}, learned=("clip_value",))

    def random(name, operand, bits, clip_value, shape):
        levels = np.array(apot_levels(operand, bits), dtype=np.float64)
        a = np.float32(clip_value)

        def grid(x):
            """Places between levels: the middle of two is a half, as the other grids have it."""
            if operand == "weights":
                x = (x - x.mean()) / x.std()
            return torch.tensor(np.interp((x / a * levels[-1]).double().numpy(), levels, np.arange(len(levels))))

        mean = 0.5 * clip_value if operand == "activations" else 0.1
        x = method.draw(name, shape, 0.5 * clip_value if operand == "activations" else 0.4, grid, mean=mean)
        case(name, operand, bits, clip_value, x)

    for bits in (3, 4, 5):
        random(f"weights_{bits}bit_linear", "weights", bits, 1.7, LINEAR)
        random(f"weights_{bits}bit_conv", "weights", bits, 3.0, CONV)
        random(f"weights_{bits}bit_vector", "weights", bits, 0.8, (9,))
    for bits in (2, 3, 4):
        levels = apot_levels("activations", bits)
        middles = [0.5 * (a + b) for a, b in zip(levels, levels[1:])]
        # A clip value of as many parts as the largest level: places are codes, and a tie goes to the lower one.
        places = levels + middles + [-0.0, -1.0, levels[-1] + 1.0, 1e6, -1e6, 1e-30]
        case(f"activations_{bits}bit_edges", "activations", bits, float(levels[-1]), f32(places))
        random(f"activations_{bits}bit_linear", "activations", bits, 1.3, LINEAR)
        random(f"activations_{bits}bit_images", "activations", bits, 2.7, IMAGES)
    method.write()


def minmax():
    method = Method("minmax")

    def weights(name, bits, x, granularity="per-tensor"):
        scale = minmax_scale(torch.tensor(x), bits, granularity)
        method.add(
            name,
            "weights",
            bits,
            x,
            lambda w: minmax_weights(w, bits, granularity),
            lambda w, grad_y: (grad_y, {}),
            granularity=granularity,
            qparams={"scale": floats(scale), "zero_point": [0] * scale.numel()},
        )

    def random_weights(name, bits, shape, granularity="per-tensor"):
        grid = lambda w: w / per_channel(minmax_scale(w, bits, granularity), w)
        weights(name, bits, method.draw(name, shape, 0.4, grid), granularity)

    for bits in (2, 3, 4, 8):
        q_max = 2 ** (bits - 1) - 1
        random_weights(f"weights_{bits}bit_linear", bits, LINEAR)
        random_weights(f"weights_{bits}bit_linear_per_channel", bits, LINEAR, "per-channel")
        # The largest weight makes the scale a power of two, so that the ties are exact.
        positions = [q_max, -q_max, 0.5, -0.5, 0.0, -0.0, 1e-30, -1e-30, below(q_max), q_max - 0.5, 0.5 - q_max]
        positions = f32(positions + ([1.5, -1.5, 2.5, -2.5] if q_max > 2 else []))
        weights(f"weights_{bits}bit_edges", bits, positions * np.float32(0.25))
        both = np.stack([positions * np.float32(0.25), positions * np.float32(2.0), np.zeros_like(positions)])
        weights(f"weights_{bits}bit_edges_per_channel", bits, both, "per-channel")
        weights(f"weights_{bits}bit_all_zero", bits, f32([[0.0, -0.0, 0.0], [-0.0, 0.0, 0.0]]))
        weights(f"weights_{bits}bit_one_element", bits, f32([-0.3]))
        weights(f"weights_{bits}bit_large_and_tiny", bits, f32([1e6, 1e-30, -1e-30, 3e5, -0.25, 0.0]))
        if bits > 3:
            # A maximum whose quotient by its own scale rounds to just above q_max, as one in eight does at 8 bits.
            candidates = f32([m / 100 for m in range(11, 1000)])
            m = candidates[(candidates / (candidates / np.float32(q_max))) > np.float32(q_max)][0]
            name = f"weights_{bits}bit_max_rounds_above_q_max"
            weights(name, bits, f32([m, -m, m / 5, -m / 11]))
    random_weights("weights_4bit_conv", 4, CONV)
    random_weights("weights_8bit_conv_per_channel", 8, CONV, "per-channel")
    random_weights("weights_3bit_vector", 3, (9,))
    random_weights("weights_3bit_vector_per_channel", 3, (5,), "per-channel")

    def grid(bits, low, high):
        return minmax_grid(torch.tensor(f32([low])), torch.tensor(f32([high])), bits)

    def activations(name, bits, low, high, x):
        scale, zero_point = grid(bits, low, high)
        method.add(
            name,
            "activations",
            bits,
            x,
            lambda x, **bounds: minmax_activations(x, bits, bounds["min"], bounds["max"]),
            closed_minmax_activations(bits),
            params={"min": low, "max": high},
            qparams={"scale": floats(scale), "zero_point": [int(zero_point)]},
        )

    def random_activations(name, bits, low, high, shape):
        scale, _ = grid(bits, low, high)
        position = float(-min(low, 0.0) / scale)
        assert abs(position - np.floor(position) - 0.5) > GUARD, name
        spread = 0.4 * (max(high, 0.0) - min(low, 0.0))
        x = method.draw(name, shape, spread, lambda x: x / scale, mean=(low + high) / 2)
        activations(name, bits, low, high, x)

    for bits in (1, 2, 3, 4, 8):
        n = 2**bits - 1
        random_activations(f"activations_{bits}bit_linear", bits, -1.0, 3.1, LINEAR)
        if bits in (2, 4, 8):
            random_activations(f"activations_{bits}bit_images_unsigned", bits, 0.0, 2.3, IMAGES)
        for label, scale, steps_below in (("", 0.25, n // 3), ("_zero_point_tie", 1.0, min(2.5, n / 2))):
            low, high = -steps_below * scale, (n - steps_below) * scale
            zero_point = int(grid(bits, low, high)[1])
            last, first = n - zero_point, -zero_point
            positions = [0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 1e-30, -1e-30, first, last]
            for half in (last + 0.5, first - 0.5):
                positions += [half, above(half), below(half)]
            positions += [last + 1, first - 1, low / scale, high / scale, 1e6, -1e6]
            x = f32(positions) * np.float32(scale)
            activations(f"activations_{bits}bit_edges{label}", bits, low, high, x)
    random_activations("activations_4bit_min_above_zero", 4, 0.5, 3.0, LINEAR)
    random_activations("activations_4bit_max_below_zero", 4, -3.0, -0.5, LINEAR)
    activations("activations_4bit_empty_range", 4, 0.0, 0.0, f32([0.0, 0.5, -0.5, 1.5, 2.5, 15.0, 15.5, 16.0]))
    activations("activations_8bit_one_element", 8, -1.0, 1.0, f32([0.3]))
    method.write()


def hwgq_cases():
    method = Method("hwgq")

    def case(name, bits, x):
        method.add(name, "activations", bits, x, lambda x: hwgq_activations(x, bits), closed_hwgq(bits))

    def random(name, bits, shape):
        n, step = 2**bits - 1, hwgq_step(bits)
        top = float(step) * n
        case(name, bits, method.draw(name, shape, 0.6 * top, lambda x: x / step, (0, n), mean=0.4 * top))

    for bits in (1, 2, 3, 4):
        n, step = 2**bits - 1, hwgq_step(bits)
        top = np.float32(n) * step
        # Half of the step is the one tie that division finds exactly.
        edges = [0.0, -0.0, 1e-30, -1e-30, step / 2, -step / 2, step / 2 * 1.001, step / 2 * 0.999, step]
        edges += [top, above(top), below(top), 1.01 * top, 1.5 * top, 2 * top, -top, 1e6, -1e6]
        case(f"activations_{bits}bit_edges", bits, f32(edges))
        case(f"activations_{bits}bit_all_zero", bits, f32([[0.0, -0.0, 0.0], [-0.0, 0.0, 0.0]]))
        case(f"activations_{bits}bit_all_negative", bits, f32([-0.3, -1.0, -2.5, -1e-3]))
        case(f"activations_{bits}bit_all_above", bits, f32([5.0, 3.5, 4.25, 100.0]))
        case(f"activations_{bits}bit_one_element", bits, f32([0.7]))
        random(f"activations_{bits}bit_linear", bits, LINEAR)
        random(f"activations_{bits}bit_images", bits, IMAGES)
        # As a normalized layer gives them.
        name = f"activations_{bits}bit_normal"
        case(name, bits, method.draw(name, IMAGES, 1.0, lambda x: x / step, (0, n)))
    method.write()


def xnor_cases():
    method = Method("xnor")

    def weights(name, x, granularity="per-tensor"):
        quantize = lambda w: xnor_weights(w, granularity)
        method.add(name, "weights", 1, x, quantize, closed_xnor_weights(granularity), granularity=granularity)
        method.cases[-1]["grad_x_identity"] = list(method.cases[-1]["grad_y"])

    edges = [0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0, above(1), below(-1), below(1), above(-1), 0.5, -2.0]
    both = np.stack([f32(edges), f32(edges) * np.float32(0.5), f32(edges) * np.float32(4.0), np.zeros(12, np.float32)])
    for granularity, label in (("per-tensor", ""), ("per-channel", "_per_channel")):
        weights(f"weights_edges{label}", both, granularity)
        for name, shape in (("linear", LINEAR), ("filters", FILTERS), ("vector", (9,))):
            for size, sigma in (("", 0.4), ("_wide", 1.3)):
                # The sign jumps at 0, the mask at 1.
                name_ = f"weights_{name}{size}{label}"
                weights(name_, method.draw(name_, shape, sigma, lambda w: w, (-1, 0, 1)), granularity)
        weights(f"weights_all_zero{label}", f32([[0.0, -0.0, 0.0], [-0.0, 0.0, 0.0]]), granularity)
        weights(f"weights_all_equal{label}", f32([[0.25, 0.25], [-0.25, -0.25]]), granularity)
        weights(f"weights_one_element{label}", f32([-0.3]), granularity)
        weights(f"weights_large_and_tiny{label}", f32([[1e6, -1e-30, 3e5], [1e-30, -0.25, 0.0]]), granularity)

    def activations(name, bits, x):
        quantize = lambda x: xnor_activations(x, bits)
        method.add(name, "activations", bits, x, quantize, closed_xnor_activations(bits))

    def random_activations(name, bits, shape):
        n = 2**bits - 1
        activations(name, bits, method.draw(name, shape, 0.5, lambda x: x * n, (0, n), mean=0.4))

    # The half is the one exact tie: n is odd.
    edges = [0.0, -0.0, 1.0, above(1), below(1), 1e-30, -1e-30, 0.5, -0.5, 1.5, -1.5, 2.5, 1e6, -1e6]
    for bits in range(1, 9):
        activations(f"activations_{bits}bit_edges", bits, f32(edges))
        random_activations(f"activations_{bits}bit_linear", bits, LINEAR)
    for bits in (1, 2, 4, 8):
        random_activations(f"activations_{bits}bit_images", bits, IMAGES)
    activations("activations_1bit_all_zero", 1, f32([[0.0, -0.0], [-0.0, 0.0]]))
    activations("activations_1bit_one_element", 1, f32([0.6]))
    method.write()


def twn_cases():
    method = Method("twn")

    def case(name, x, granularity):
        quantize = lambda w: twn_weights(w, granularity)
        method.add(name, "weights", 2, x, quantize, lambda w, grad_y: (grad_y, {}), granularity=granularity)

    for granularity, label in (("per-tensor", ""), ("per-channel", "_per_channel")):
        grid = lambda w: w / twn_threshold(w, granularity)
        for name, shape in (("linear", LINEAR), ("filters", FILTERS), ("conv", CONV), ("vector", (9,))):
            # One number per channel is its own mean, never near the threshold.
            name = f"weights_{name}{label}"
            case(name, method.draw(name, shape, 0.4, grid, (-1, 1)), granularity)
        name = f"weights_shifted{label}"
        case(name, method.draw(name, FILTERS, 0.1, grid, (-1, 1), mean=0.05), granularity)
        # A mean magnitude of 10 in every row, so that 7 is the threshold itself, which is excluded.
        rows = [[7, -7, 8, -6, 25, 0, -12, 15], [-7, 7, 6, -8, 13, 13, -13, 13], [70, 7, -1, 1, -1, 0, -0.0, 0]]
        case(f"weights_edges{label}", f32(rows), granularity)
        # Thresholds of 28 and 7/64.
        rows = [[28, -28, 32, -72], [7 / 64, -7 / 64, 8 / 64, -18 / 64], [0, -0.0, 0, 0]]
        case(f"weights_edges_of_rows{label}", f32(rows), granularity)
        case(f"weights_all_zero{label}", f32([[0.0, -0.0, 0.0], [-0.0, 0.0, 0.0]]), granularity)
        case(f"weights_all_equal{label}", f32([[0.25, 0.25], [-0.25, -0.25]]), granularity)
        case(f"weights_one_element{label}", f32([-0.3]), granularity)
        case(f"weights_large_and_tiny{label}", f32([[1e6, -1e-30, 3e5], [1e-30, -0.25, 0.0]]), granularity)
    method.write()


def n2uq_cases():
    method = Method("n2uq")

    def weights(name, bits, x, granularity="per-tensor"):
        quantize = lambda w: n2uq_weights(w, bits, granularity)
        closed = closed_n2uq_weights(bits, granularity)
        method.add(name, "weights", bits, x, quantize, closed, granularity=granularity)

    def random_weights(name, bits, shape, granularity="per-tensor"):
        n = 2**bits - 1
        grid = lambda w: (w / n2uq_weight_scale(w, bits, granularity) + 1) * (n / 2)
        weights(name, bits, method.draw(name, shape, 0.4, grid, (0, n)), granularity)

    for bits in range(1, 9):
        random_weights(f"weights_{bits}bit_linear", bits, LINEAR)
        random_weights(f"weights_{bits}bit_linear_per_channel", bits, LINEAR, "per-channel")
        # Of a mean magnitude of half of 2^bits the scale is n: the ends are exact, and 0 is a tie.
        n = 2**bits - 1
        edges = [n, -n, 0.0, -0.0, n + 2.0, -n - 2.0, n - 0.5, 0.5 - n, 1e-30, -1e-30]
        # The others bring the mean to what it is meant to be.
        edges = f32(edges + [n + 2.0, -n - 2.0, 0.25, -0.25, 0.25, 0.25])
        assert float(n2uq_weight_scale(torch.tensor(edges), bits, "per-tensor")) == n
        weights(f"weights_{bits}bit_edges", bits, edges)
        weights(f"weights_{bits}bit_all_zero", bits, f32([[0.0, -0.0, 0.0], [-0.0, 0.0, 0.0]]))
    # Equal magnitudes are on a tie at 2 bits and more, whatever they are: only 1 bit has a certain answer.
    weights("weights_1bit_one_element", 1, f32([-0.3]))
    for bits in (1, 2, 4):
        random_weights(f"weights_{bits}bit_filters", bits, FILTERS)
        random_weights(f"weights_{bits}bit_filters_per_channel", bits, FILTERS, "per-channel")
    weights("weights_1bit_all_equal", 1, f32([[0.25, 0.25], [-0.25, -0.25]]))
    weights("weights_2bit_zero_channel_per_channel", 2, f32([[0.5, -1.0, 0.3], [0.0, -0.0, 0.0]]), "per-channel")

    def activations(name, bits, start, widths, scale, x):
        params = {"interval_start": start, "interval_widths": widths, "output_scale": scale}
        method.add(
            name,
            "activations",
            bits,
            x,
            lambda x, **params: n2uq_activations(x, bits, **params),
            closed_n2uq_activations(bits),
            params=params,
            learned=tuple(params),
        )

    def random_activations(name, bits, start, widths, scale, shape):
        n = 2**bits - 1
        ends = np.float64(np.float32(start)) + np.concatenate([[0.0], np.cumsum(f32(widths).astype(np.float64))])
        # Places count intervals, so that the middle of one is a half and its ends are whole.
        outer = [ends[0] - 100 * widths[0], *ends, ends[-1] + 100 * widths[-1]]
        at = [-100, *range(n + 1), n + 100]
        grid = lambda x: torch.tensor(np.interp(x.double().numpy(), outer, at))
        span = ends[-1] - ends[0]
        x = method.draw(name, shape, 0.4 * span, grid, range(n + 1), mean=ends[0] + span / 2)
        activations(name, bits, start, widths, scale, x)

    for bits in (1, 2, 3, 4):
        n = 2**bits - 1
        uneven = [0.1 + 0.9 * (i * 7 % 10) / 10 for i in range(1, n + 1)]
        wide_to_narrow = [1.7 * 0.8**i for i in range(n)]
        random_activations(f"activations_{bits}bit_linear", bits, 0.0, [1.0 / n] * n, 1.0, LINEAR)
        random_activations(f"activations_{bits}bit_images_even", bits, 0.0, [0.4] * n, 0.4 * n, IMAGES)
        random_activations(f"activations_{bits}bit_images_uneven", bits, -0.2, uneven, 1.3, IMAGES)
        random_activations(f"activations_{bits}bit_linear_narrowing", bits, 0.35, wide_to_narrow, 0.7, LINEAR)
        # Every place is exact: starts, ends, thresholds and what is just below them.
        widths = [[0.5, 1.0, 0.25, 2.0][i % 4] for i in range(n)]
        ends = 0.25 + np.concatenate([[0.0], np.cumsum(widths)])
        middles = ends[:-1] + np.array(widths) / 2
        places = [*ends, *middles, *map(below, ends), *map(below, middles)]
        places += [0.0, -0.0, -1.0, 1e-30, ends[-1] + 1, 1e6, -1e6]
        activations(f"activations_{bits}bit_edges", bits, 0.25, widths, 0.75, f32(places))
        activations(f"activations_{bits}bit_all_zero", bits, 0.0, widths, 1.5, f32([[0.0, -0.0], [-0.0, 0.0]]))
    activations("activations_2bit_all_below", 2, 0.5, [0.5, 0.25, 1.0], 1.5, f32([0.1, -0.3, 0.45, -2.0]))
    activations("activations_2bit_all_above", 2, 0.5, [0.5, 0.25, 1.0], 1.5, f32([2.5, 3.0, 2.25, 1e3]))
    activations("activations_2bit_one_element", 2, 0.5, [0.5, 0.25, 1.0], 1.5, f32([1.1]))
    method.write()


def qil_cases():
    method = Method("qil")

    def case(name, operand, bits, params, x):
        params = dict(zip(("interval_center", "interval_distance", "interval_exponent"), params))
        quantize = lambda x, **params: qil(x, operand, bits, **params)
        method.add(name, operand, bits, x, quantize, closed_qil(operand, bits), params=params, learned=tuple(params))

    def random(name, operand, bits, params, shape):
        center, distance, gamma = (np.float32(value) for value in (*params, 1.0)[:3])
        steps = 2 ** (bits - 1) - 1 if operand == "weights" else 2**bits - 1

        def grid(x):
            u = ((x.abs() if operand == "weights" else x) - center + distance) / (2 * distance)
            v = torch.where(u > 0, torch.clamp(u, min=0) ** gamma, u) * steps
            # The slope has no bound where weights begin, and its rounding neither: a half is drawn again.
            return torch.where(u.abs() < 0.02, 0.5, v) if operand == "weights" else v

        if operand == "weights":
            x = method.draw(name, shape, 0.9 * float(center), grid, (steps,))
        else:
            x = method.draw(name, shape, 1.1 * float(distance), grid, (0, steps), mean=float(center))
        case(name, operand, bits, params, x)

    for bits in range(2, 9):
        random(f"weights_{bits}bit_linear", "weights", bits, (0.5, 0.3, 1.0), LINEAR)
        random(f"weights_{bits}bit_linear_gamma_0.7", "weights", bits, (0.6, 0.45, 0.7), LINEAR)
        random(f"weights_{bits}bit_linear_gamma_1.6", "weights", bits, (0.4, 0.25, 1.6), LINEAR)
        # Ends at 1/4 and 3/4: pruned there, clipped beyond, a tie in the middle, as q_max is odd.
        places = [0.25, 0.5, 0.75, above(0.75), below(0.75), below(0.25), 0.125, 1.0, 1e6, 1e-30, 0.0]
        places = f32(places + [-place for place in places])
        for gamma in (0.7, 1.0, 1.6):
            # With another exponent the middle is no tie, and safe.
            case(f"weights_{bits}bit_edges_gamma_{gamma}", "weights", bits, (0.5, 0.25, gamma), places)
        case(f"weights_{bits}bit_all_zero", "weights", bits, (0.5, 0.25, 1.0), f32([[0.0, -0.0], [-0.0, 0.0]]))
    for bits in (2, 3, 4):
        random(f"weights_{bits}bit_filters", "weights", bits, (0.3, 0.2, 0.7), FILTERS)
        random(f"weights_{bits}bit_filters_nothing_pruned", "weights", bits, (0.3, 0.5, 1.6), FILTERS)
    # An interval that begins below 0: the sign of 0 is 0.
    case("weights_3bit_zero_inside", "weights", 3, (0.25, 0.5, 1.0), f32([0.0, -0.0, 0.5, -0.5, 0.75, -0.75, 1.0]))
    case("weights_3bit_one_element", "weights", 3, (0.5, 0.25, 1.6), f32([-0.6]))
    case("weights_3bit_all_pruned", "weights", 3, (0.5, 0.25, 0.7), f32([0.1, -0.2, 0.05, -0.15]))
    case("weights_3bit_all_clipped", "weights", 3, (0.5, 0.25, 0.7), f32([1.1, -2.0, 0.95, -1.15]))

    for bits in range(1, 9):
        random(f"activations_{bits}bit_linear", "activations", bits, (0.6, 0.6), LINEAR)
        random(f"activations_{bits}bit_linear_shifted", "activations", bits, (1.3, 0.45), LINEAR)
        places = [0.25, 0.5, 0.75, above(0.75), below(0.75), above(0.25), 0.2499, 0.0, -0.0, 1.0, -0.5, 1e6, -1e6]
        case(f"activations_{bits}bit_edges", "activations", bits, (0.5, 0.25), f32(places))
    for bits in (1, 2, 4, 8):
        random(f"activations_{bits}bit_images", "activations", bits, (0.5, 0.7), IMAGES)
    case("activations_2bit_all_zero", "activations", 2, (0.5, 0.5), f32([[0.0, -0.0], [-0.0, 0.0]]))
    case("activations_2bit_one_element", "activations", 2, (0.5, 0.5), f32([0.6]))
    method.write()


def dsq_cases():
    method = Method("dsq")

    def case(name, operand, bits, clip_value, alpha, x):
        method.add(
            name,
            operand,
            bits,
            x,
            lambda x, **params: dsq(x, operand, bits, **params),
            closed_dsq(operand, bits),
            params={"clip_value": clip_value, "staircase_alpha": alpha},
            learned=("clip_value", "staircase_alpha"),
        )

    def random(name, operand, bits, clip_value, alpha, shape):
        n = 2**bits - 1
        u = np.float64(np.float32(clip_value))
        lower, step = (-u, 2 * u / n) if operand == "weights" else (0.0, u / n)
        grid = lambda x: (x.double() - lower) / step
        mean = 0.0 if operand == "weights" else 0.5 * u
        x = method.draw(name, shape, 0.6 * u if operand == "weights" else 0.4 * u, grid, range(n + 1), mean=mean)
        case(name, operand, bits, clip_value, alpha, x)

    for bits in range(1, 9):
        n = 2**bits - 1
        for alpha in (0.05, 0.2, 0.45):
            random(f"weights_{bits}bit_linear_alpha_{alpha}", "weights", bits, 0.7, alpha, LINEAR)
            random(f"activations_{bits}bit_linear_alpha_{alpha}", "activations", bits, 1.7, alpha, LINEAR)
        # Steps of a power of two: ends, ties, and whole places, where two pieces of the curve meet.
        whole = sorted({0, 1, n // 2, n - 1, n})
        ties = sorted({0.5, n / 2, n - 0.5} | ({1.5, n - 1.5} if n > 1 else set()))
        beyond = [-0.25, n + 0.25, -3.0, n + 3.0, 1e6, -1e6]
        places = f32([*whole, *ties, *beyond, 0.25, n - 0.25])
        # Weights have codes 2 place - n, and half of a step of a quarter is the value of one.
        case(f"weights_{bits}bit_edges", "weights", bits, n / 8, 0.2, (2 * places - n) * np.float32(0.125))
        x = np.append(places * np.float32(0.25), f32([-0.0, 1e-30, -1e-30]))
        case(f"activations_{bits}bit_edges", "activations", bits, n / 4, 0.2, x)
        x = f32([[0.0, -0.0], [-0.0, 0.0]])
        case(f"weights_{bits}bit_all_zero", "weights", bits, n / 8, 0.2, x)
        case(f"activations_{bits}bit_all_zero", "activations", bits, n / 4, 0.2, x)
    for bits, alpha in ((1, 0.3), (2, 0.2), (4, 0.1)):
        random(f"weights_{bits}bit_filters", "weights", bits, 0.45, alpha, FILTERS)
        random(f"activations_{bits}bit_images", "activations", bits, 2.3, alpha, IMAGES)
    for operand in ("weights", "activations"):
        case(f"{operand}_2bit_all_above", operand, 2, 0.5, 0.2, f32([0.6, 2.0, 0.75, 1.5]))
        case(f"{operand}_2bit_all_below", operand, 2, 0.5, 0.2, f32([-0.6, -2.0, -0.75, -1.5]))
        case(f"{operand}_2bit_one_element", operand, 2, 0.5, 0.2, f32([0.3]))
    method.write()


def lq_nets_cases():
    method = Method("lq-nets")

    def levels_of(operand, bits, basis):
        """The sorted levels of each channel, in float64."""
        factors = lq_nets_bits(operand, bits).double().numpy()
        return np.sort(factors @ f32(basis).astype(np.float64).reshape(bits, -1), axis=0).T

    def case(name, operand, bits, basis, x, granularity="per-tensor", ties=False):
        quantize = lambda x, basis: lq_nets(x, operand, bits, basis, granularity)
        params = {"basis": f32(basis).flatten()}
        method.add(name, operand, bits, x, quantize, closed_lq_nets(operand), params=params, granularity=granularity)
        added = method.cases[-1]
        # The level of a code is indeed the nearest.
        rows = 1 if granularity == "per-tensor" else x.shape[0]
        factors = lq_nets_bits(operand, bits).double().numpy()
        levels = factors @ f32(basis).astype(np.float64).reshape(bits, -1)
        grouped = x.astype(np.float64).reshape(rows, -1), np.reshape(added["codes"], (rows, -1))
        for channel, (row, codes) in enumerate(zip(*grouped)):
            distance = np.abs(row[:, None] - levels[:, channel])
            nearest = distance.min(axis=1)
            assert (distance[np.arange(len(row)), codes] == nearest).all(), name
            alone = (distance <= nearest[:, None] + 1e-6).sum(axis=1) == 1
            assert ties or alone.all(), name
        updated = lq_nets_update(x, operand, bits, basis, granularity, added["codes"])
        added["updated_basis"] = floats(torch.tensor(updated))

    def random(name, operand, bits, basis, shape, granularity="per-tensor"):
        basis = f32(basis).reshape(bits, -1)
        levels = levels_of(operand, bits, basis)
        n = 2**bits - 1
        assert np.diff(levels, axis=1).min() > 0.02, name

        def grid(x):
            """Places between levels; one step beyond the ends is as long as the one before."""
            rows = groups(x, granularity).double().numpy()
            places = []
            for row, level in zip(rows, levels):
                first, last = level[1] - level[0], level[-1] - level[-2]
                outer = [level[0] - 100 * first, *level, level[-1] + 100 * last]
                places.append(np.interp(row, outer, [-100, *range(n + 1), n + 100]))
            return torch.tensor(np.stack(places).reshape(x.shape))

        top = float(levels[:, -1].mean())
        edges = (0, n) if operand == "activations" else ()
        mean = 0.4 * top if operand == "activations" else 0.0
        x = method.draw(name, shape, 0.5 * top, grid, edges, mean=mean)
        case(name, operand, bits, basis, x, granularity)

    # Not sorted, and not of powers of two; no two sums are near each other.
    base = {1: [0.55], 2: [0.7, 0.33], 3: [0.9, 0.2, 0.47], 4: [0.21, 0.44, 0.83, 1.9]}
    other = {1: [1.3], 2: [0.25, 0.6], 3: [0.13, 0.3, 0.55], 4: [0.9, 0.11, 0.39, 0.2]}
    for bits in (1, 2, 3, 4):
        sizes = {LINEAR: [1.0, 0.7, 1.6, 0.5, 1.2], FILTERS: [0.8, 1.4, 0.6, 1.0]}
        for label, basis in (("", base[bits]), ("_other", other[bits])):
            random(f"weights_{bits}bit_linear{label}", "weights", bits, basis, LINEAR)
            random(f"weights_{bits}bit_filters{label}", "weights", bits, basis, FILTERS)
            for name, shape in (("linear", LINEAR), ("filters", FILTERS)):
                # A row for each number of the basis, a column for each channel, every third of which has another order.
                columns = [np.roll(basis, i // 2) * size for i, size in enumerate(sizes[shape])]
                name = f"weights_{bits}bit_{name}{label}_per_channel"
                random(name, "weights", bits, np.stack(columns, axis=1), shape, "per-channel")
            random(f"activations_{bits}bit_linear{label}", "activations", bits, basis, LINEAR)
            random(f"activations_{bits}bit_images{label}", "activations", bits, basis, IMAGES)
        # Powers of two: uniform levels, all exact.
        basis = [0.25 * 2**i for i in range(bits)]
        levels = levels_of("activations", bits, basis)[0]
        top = levels[-1]
        places = [*levels, -0.0, 1e-30, -1e-30, above(top), below(top), top + 1, -1.0, 1e6, -1e6]
        case(f"activations_{bits}bit_edges", "activations", bits, basis, f32(places))
        case(f"activations_{bits}bit_all_zero", "activations", bits, basis, f32([[0.0, -0.0], [-0.0, 0.0]]))
        middles = (levels[1:] + levels[:-1]) / 2
        ties = f32([*middles, *(middles + 1e-3), *(middles - 1e-3)])
        case(f"activations_{bits}bit_ties", "activations", bits, basis, ties, ties=True)
        levels = levels_of("weights", bits, basis)[0]
        top = levels[-1]
        case(f"weights_{bits}bit_edges", "weights", bits, basis, f32([*levels, top + 1, -top - 1, 1e3, -1e3]))
        middles = (levels[1:] + levels[:-1]) / 2
        ties = f32([*middles, *(middles + 1e-3), *(middles - 1e-3), -0.0])
        case(f"weights_{bits}bit_ties", "weights", bits, basis, ties, ties=True)
        case(f"weights_{bits}bit_ties_all_zero", "weights", bits, basis, f32([[0.0, -0.0], [-0.0, 0.0]]), ties=True)
        case(f"weights_{bits}bit_one_element", "weights", bits, basis, f32([-0.3]))
    method.write()


def training():
    random = np.random.RandomState(1908_04680 % 2**32)
    normal = lambda *shape: torch.tensor(random.randn(*shape).astype(np.float32))

    initial = normal(6)
    gradients = [normal(6) for _ in range(5)]
    sgd = dict(lr=0.1, momentum=0.9, dampening=0.0, weight_decay=1e-4)
    adam = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    optimizers = []
    for name, kind, options in (
        ("sgd_nesterov", torch.optim.SGD, dict(sgd, nesterov=True)),
        ("sgd_momentum", torch.optim.SGD, dict(sgd, nesterov=False)),
        ("adam", torch.optim.Adam, dict(adam, weight_decay=1e-2)),
        ("adam_no_decay", torch.optim.Adam, dict(adam, weight_decay=0.0)),
        ("adamw", torch.optim.AdamW, dict(adam, weight_decay=1e-2)),
    ):
        parameter = initial.clone().requires_grad_()
        optimizer = kind([parameter], foreach=False, **options)
        after = []
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
            after.append(floats(parameter))
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
        optimizers.append(
            {
                "name": name,
                "options": options,
                "initial": floats(initial),
                "grads": [floats(gradient) for gradient in gradients],
                "params_after_step": after,
            }
        )

    logits, targets = normal(4, 10) * 2, [3, 0, 9, 3]
    cross_entropy = []
    for name, smoothing in (("plain", 0.0), ("label_smoothing", 0.1)):
        leaf = logits.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(leaf, torch.tensor(targets), label_smoothing=smoothing)
        loss.backward()
        cross_entropy.append(
            {
                "name": name,
                "label_smoothing": smoothing,
                "shape": list(logits.shape),
                "logits": floats(logits),
                "targets": targets,
                "loss": floats(loss)[0],
                "grad_logits": floats(leaf.grad),
            }
        )

    norm = torch.nn.BatchNorm2d(4, eps=1e-5, momentum=0.1)
    with torch.no_grad():
        norm.weight.copy_(normal(4) * 0.3 + 1)
        norm.bias.copy_(normal(4) * 0.3)
        norm.running_mean.copy_(normal(4) * 0.2)
        norm.running_var.copy_(normal(4).abs() + 0.5)
    before = (floats(norm.running_mean), floats(norm.running_var))
    x = (normal(3, 4, 5, 5) * 1.5 + 0.5).requires_grad_()
    grad_y = torch.round(normal(3, 4, 5, 5) * 64) / 64
    norm.train()
    y = norm(x)
    y.backward(grad_y)
    batch_norm = {
        "shape": list(x.shape),
        "eps": 1e-5,
        "momentum": 0.1,
        "weight": floats(norm.weight),
        "bias": floats(norm.bias),
        "running_mean_before": before[0],
        "running_var_before": before[1],
        "running_mean_after": floats(norm.running_mean),
        "running_var_after": floats(norm.running_var),
        "x": floats(x),
        "y": floats(y),
        "grad_y": floats(grad_y),
        "grad_x": floats(x.grad),
        "grad_weight": floats(norm.weight.grad),
        "grad_bias": floats(norm.bias.grad),
    }

    clipping = []
    for name, scale in (("above", 1.0), ("below", 0.05), ("zero", 0.0)):
        before = [normal(3, 4) * scale, normal(5) * scale]
        parameters = [torch.zeros_like(gradient).requires_grad_() for gradient in before]
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient.clone()
        total = torch.nn.utils.clip_grad_norm_(parameters, max_norm=1.0, foreach=False)
        clipping.append(
            {
                "name": name,
                "max_norm": 1.0,
                "shapes": [list(gradient.shape) for gradient in before],
                "grads": [floats(gradient) for gradient in before],
                "total_norm": floats(total)[0],
                "clipped": [floats(parameter.grad) for parameter in parameters],
            }
        )

    write(
        "training.json",
        {
            "torch": torch.__version__,
            "optimizers": optimizers,
            "cross_entropy": cross_entropy,
            "batch_norm": batch_norm,
            "gradient_clipping": clipping,
        },
    )


def conv(in_channels, out_channels, kernel):
    return torch.nn.Conv2d(in_channels, out_channels, kernel, bias=False)


def resnet_layers(architecture, shortcut, depth, classes):
    """The layers with parameters; their order and the connections do not matter for a count."""
    preact = architecture == "preresnet"
    layers = [conv(3, 16, 3)] + ([] if preact else [torch.nn.BatchNorm2d(16)])
    in_channels = 16
    for width in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            layers += [conv(in_channels, width, 3), conv(width, width, 3)]
            layers += [torch.nn.BatchNorm2d(in_channels if preact else width), torch.nn.BatchNorm2d(width)]
            if in_channels != width and shortcut == "projection":
                layers += [conv(in_channels, width, 1)] + ([] if preact else [torch.nn.BatchNorm2d(width)])
            in_channels = width
    if preact:
        layers.append(torch.nn.BatchNorm2d(64))
    return layers + [torch.nn.Linear(64, classes)]


def resnet_formula(architecture, shortcut, depth, classes):
    """The same count by hand."""
    n = (depth - 2) // 6
    total = 3 * 9 * 16 + 64 * classes + classes
    total += sum(2 * n * 9 * width**2 for width in (16, 32, 64)) - 9 * (16 * 32 + 32 * 64)
    if architecture == "resnet":
        total += 2 * 16 + sum(2 * n * 2 * width for width in (16, 32, 64))
    else:
        # The first norm of stages 2 and 3 has the width of the stage before; one more norm before the pool.
        total += sum(2 * n * 2 * width for width in (16, 32, 64)) - 2 * (16 + 32) + 2 * 64
    if shortcut == "projection":
        total += 16 * 32 + 32 * 64
        if architecture == "resnet":
            total += 2 * (32 + 64)
    return total


def resnet_counts():
    models = []
    for architecture in ("resnet", "preresnet"):
        for shortcut in ("projection", "zero_pad"):
            for depth in (8, 14, 20, 32, 44, 56, 110):
                for classes in (10, 100):
                    layers = resnet_layers(architecture, shortcut, depth, classes)
                    count = lambda kind: sum(
                        p.numel() for layer in layers if isinstance(layer, kind) for p in layer.parameters()
                    )
                    total = count(torch.nn.Module)
                    assert total == resnet_formula(architecture, shortcut, depth, classes)
                    models.append(
                        {
                            "architecture": architecture,
                            "shortcut": shortcut,
                            "depth": depth,
                            "classes": classes,
                            "conv": count(torch.nn.Conv2d),
                            "batch_norm": count(torch.nn.BatchNorm2d),
                            "linear": count(torch.nn.Linear),
                            "parameters": total,
                        }
                    )
    # He16, table 6: millions of parameters on CIFAR-10, shortcut option A.
    published = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7"}
    for model in models:
        if (model["architecture"], model["shortcut"], model["classes"]) == ("resnet", "zero_pad", 10):
            text = published.get(model["depth"])
            if text:
                digits = len(text.split(".")[1])
                assert f"{model['parameters'] / 1e6:.{digits}f}" == text, model
    write("torch_resnet.json", {"torch": torch.__version__, "models": models})


def floats(tensor):
    values = tensor.detach().flatten()
    assert values.dtype == torch.float32 and torch.isfinite(values).all()
    return values.double().tolist()


def number(value):
    """Nine significant digits name every float32; a hyperparameter that is none is written as Python does."""
    if isinstance(value, (bool, str, int)):
        return json.dumps(value)
    text = f"{value:.9g}" if float(np.float32(value)) == value else repr(value)
    assert float(text) == value or np.float32(float(text)) == np.float32(value)
    return text if any(mark in text for mark in ".e") else text + ".0"


def render(value, indent=""):
    inner = indent + "  "
    if isinstance(value, dict):
        if all(not isinstance(item, (dict, list)) for item in value.values()):
            return "{" + ", ".join(f"{json.dumps(key)}: {number(item)}" for key, item in value.items()) + "}"
        lines = [f"{inner}{json.dumps(key)}: {render(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list):
        if all(not isinstance(item, (dict, list)) for item in value):
            return "[" + ", ".join(map(number, value)) + "]"
        return "[\n" + ",\n".join(inner + render(item, inner) for item in value) + f"\n{indent}]"
    return number(value)


def write(name, document):
    text = render(document) + "\n"
    json.loads(text)
    (HERE / name).write_text(text)
    print(f"{name}: {len(text)} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    dorefa()
    pact()
    lsq_cases()
    minmax()
    ewgs_cases()
    lsq_plus_cases()
    tqt_cases()
    apot_cases()
    hwgq_cases()
    xnor_cases()
    twn_cases()
    n2uq_cases()
    qil_cases()
    dsq_cases()
    lq_nets_cases()
    training()
    resnet_counts()
