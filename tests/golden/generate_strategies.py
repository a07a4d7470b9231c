#!/usr/bin/env python3
"""Writes strategies.json: the PyTorch reference that the training strategies are compared with.

Written from the formulas of Zhuang et al. (1711.00205, 1908.04680) and this project's conventions, not from its code.
Inputs are float32; everything is computed in float64, so the tolerance of a comparison is that of the code under test
alone. Run it as generate.py, with the same versions; a second run writes the same bytes.

    /tmp/goldenvenv/bin/python tests/golden/generate_strategies.py

Conventions, all of them also in docs/methods/strategies.md:

- KL and cross entropy are means over the batch, logits MSE is a mean over all elements.
- Logits are flat in row-major order, [batch, classes]; maps [batch, channels, height, width].
- A gradient is null where a loss does not depend on a tensor, or only through a detached one.
- Rounding is ties to even; clip(nu, 0, 1) passes the gradient in [0, 1], edges included; the rounding passes it whole.
- Random maps are at least GUARD of a code step from a rounding boundary and from a clip edge. The exceptions are exact in
  float32: 0, 1, their neighbors, and 1/2, the only float whose (2^k - 1) multiple is a half for every k.
"""

import json
import os
import zlib
from fractions import Fraction
from pathlib import Path

# The kernels without AVX, so that the last bit of a sum does not depend on the machine. Read once, at import.
os.environ["ATEN_CPU_CAPABILITY"] = "default"

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).resolve().parent

BATCH, CLASSES = 3, 5
MAPS = (2, 3, 4, 4)
GUARD = 1e-3
BITS = (1, 2, 4, 8, "fp32")

# Zhuang et al., CIFAR-100: a_s, b_s, a_t, b_t.
CIFAR100 = {"student_label": 0.7, "student_distill": 0.7, "teacher_label": 1.0, "teacher_distill": 0.5}
# ImageNet halves the student's; the teacher's are this file's own, so that no two weights agree.
OTHER = {"student_label": 0.5, "student_distill": 0.3, "teacher_label": 0.9, "teacher_distill": 0.4}


class Random:
    """Numpy's frozen stream, seeded by the name of a case: cases do not depend on one another."""

    def __init__(self, name):
        self.state = np.random.RandomState(zlib.crc32(name.encode()))

    def normal(self, *shape, scale=1.0, mean=0.0):
        """Values of float32 in float64."""
        values = (self.state.randn(*shape) * scale + mean).astype(np.float32)
        return torch.tensor(values.astype(np.float64))

    def labels(self, n=BATCH, classes=CLASSES):
        return torch.tensor(self.state.randint(classes, size=n))

    def maps(self, edges):
        """Maps around [0, 1], those drawn again that a float32 could round otherwise; `edges` come first."""
        values = self.state.randn(*MAPS).astype(np.float32) * np.float32(0.6) + np.float32(0.4)
        while True:
            x = values.astype(np.float64)
            unsafe = (np.abs(x) < GUARD) | (np.abs(x - 1) < GUARD)
            for bits in BITS[:-1]:
                v = (2**bits - 1) * x
                unsafe |= np.abs(v - np.floor(v) - 0.5) < GUARD
            if not unsafe.any():
                break
            values[unsafe] = self.state.randn(unsafe.sum()).astype(np.float32) * np.float32(0.6) + np.float32(0.4)
        flat = values.reshape(-1)
        flat[: len(edges)] = edges
        return torch.tensor(flat.reshape(MAPS).astype(np.float64))


def below(value):
    return np.nextafter(np.float32(value), np.float32(-np.inf))


def above(value):
    return np.nextafter(np.float32(value), np.float32(np.inf))


# (2^k - 1) / 2 is a tie for every k: codes 0 of 0..1, 2 of 0..3, 8 of 0..15, 128 of 0..255. The neighbors of 1/2 are
# left out: float32 rounds their multiples to the tie.
# Beside zero not the nearest floats: a GPU may flush those to zero.
EDGES = np.array([0.0, -0.0, 1.0, 0.5, below(1), above(1), -1e-30, 1e-30, -0.3, 1.7, 0.5, 1.0], dtype=np.float32)


def leaf(tensor):
    return tensor.clone().requires_grad_()


def gradients(loss, tensors):
    """Of `loss` with respect to each of `tensors`; None where it does not depend on it."""
    return torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)


def kl(target, logits, temperature):
    """T^2 KL(softmax(target / T) || softmax(logits / T)), from the definition."""
    p = torch.softmax(target / temperature, dim=1)
    q = torch.softmax(logits / temperature, dim=1)
    divergence = (p * (p.log() - q.log())).sum(dim=1).mean() * temperature**2
    library = F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(target / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    assert torch.isclose(divergence, library * temperature**2, rtol=1e-12, atol=1e-14)
    return divergence


def mse(target, logits):
    return (target - logits).pow(2).mean()


def distance(kind):
    """D(a, b) of the networks' logits; `kind` is a temperature or "mse"."""
    return mse if kind == "mse" else lambda target, logits: kl(target, logits, kind)


def joint_losses(students, teacher, labels, weights, mode, kind):
    """The loss of every student, and of the teacher; None if it is frozen."""
    d = distance(kind)
    losses = [
        weights["student_label"] * F.cross_entropy(student, labels)
        + weights["student_distill"] * d(teacher.detach(), student)
        for student in students
    ]
    of_teacher = weights["teacher_label"] * F.cross_entropy(teacher, labels)
    if mode == "mutual":
        mean = sum(d(student.detach(), teacher) for student in students) / len(students)
        of_teacher = of_teacher + weights["teacher_distill"] * mean
    return losses, None if mode == "frozen" else of_teacher


def quantize(nu, bits):
    """Q_k(clip(nu, 0, 1)), straight through the rounding."""
    # Not torch.clamp, whose gradient at the edges depends on the release.
    inside = (nu >= 0) & (nu <= 1)
    clipped = torch.where(inside, nu, torch.clamp(nu.detach(), 0, 1))
    if bits == "fp32":
        return clipped
    n = 2**bits - 1
    v = clipped * n
    return (v + (torch.round(v) - v).detach()) / n


def hint(mu, nu, bits):
    return 0.5 * (mu - quantize(nu, bits)).pow(2).mean()


def hint_terms(mus, nus, bits, weight, target):
    """What hints add to the loss of every student, and of the teacher. `mus` by student and tap, `nus` by tap."""
    students = [
        weight * sum(hint(mu, nu.detach(), k) for mu, nu in zip(taps, nus, strict=True))
        for taps, k in zip(mus, bits, strict=True)
    ]
    teacher = None
    if target == "both":
        terms = [
            hint(mu.detach(), nu, k)
            for taps, k in zip(mus, bits, strict=True)
            for mu, nu in zip(taps, nus, strict=True)
        ]
        teacher = weight / len(mus) * sum(terms)
    return students, teacher


def distillation_cases():
    cases = []
    for kind in (1.0, 2.0, 4.0, "mse"):
        name = "mse" if kind == "mse" else f"kl_t{kind:.0f}"
        random = Random("distillation")
        student, teacher = (leaf(random.normal(BATCH, CLASSES, scale=2.0)) for _ in range(2))
        student.data[0] = teacher.data[0]
        case = {"name": name, "shape": [BATCH, CLASSES], "student": f32s(student), "teacher": f32s(teacher)}
        if kind != "mse":
            case["temperature"] = kind
        for side, target, logits in (("from_teacher", teacher, student), ("from_student", student, teacher)):
            loss = distance(kind)(target, logits)
            grad_target, grad_logits = gradients(loss, [target, logits])
            case[side] = {"loss": number(loss), "grad_target": f64s(grad_target), "grad_logits": f64s(grad_logits)}
            # Closed forms: T (q - p) / batch, and 2 (b - a) / elements.
            if kind == "mse":
                closed = 2 * (logits - target) / logits.numel()
            else:
                closed = torch.softmax(logits / kind, dim=1) - torch.softmax(target / kind, dim=1)
                closed = kind * closed / BATCH
            assert torch.allclose(grad_logits, closed, rtol=1e-10, atol=1e-14), name
        cases.append(case)
    return cases


def joint_cases():
    cases = []
    for n in (1, 2):
        for mode in ("mutual", "student-only", "frozen"):
            for kind, weights in ((1.0, CIFAR100), (1.0, OTHER), (4.0, OTHER), ("mse", OTHER)):
                label = "mse" if kind == "mse" else f"kl_t{kind:.0f}"
                which = "cifar100" if weights is CIFAR100 else "other"
                random = Random(f"joint/{n}")
                networks = [leaf(random.normal(BATCH, CLASSES, scale=1.5)) for _ in range(n + 1)]
                labels = random.labels()
                students, teacher = joint_losses(networks[:-1], networks[-1], labels, weights, mode, kind)
                losses = students + [teacher]
                case = {
                    "name": f"{mode}_{n}_{label}_{which}",
                    "mode": mode,
                    "weights": weights,
                    "shape": [BATCH, CLASSES],
                    "labels": labels.tolist(),
                    "logits": [f32s(logits) for logits in networks],
                    "losses": [None if loss is None else number(loss) for loss in losses],
                    "grads": [
                        None if loss is None else [f64s(grad) for grad in gradients(loss, networks)] for loss in losses
                    ],
                }
                if kind != "mse":
                    case["temperature"] = kind
                cases.append(case)
    return cases


def hint_cases():
    random = Random("hint")
    mu, nu = leaf(random.normal(*MAPS, scale=0.6, mean=0.4)), leaf(random.maps(EDGES))
    cases = []
    for bits in BITS:
        students, _ = hint_terms([[mu]], [nu], [bits], 0.8, "student")
        _, teacher = hint_terms([[mu]], [nu], [bits], 0.8, "both")
        (grad_mu, none), (also_none, grad_nu) = gradients(students[0], [mu, nu]), gradients(teacher, [mu, nu])
        assert none is None and also_none is None
        # Closed forms: weight (mu - q) / elements, and its negative inside [0, 1].
        closed = 0.8 * (mu - quantize(nu, bits)) / mu.numel()
        inside = (nu >= 0) & (nu <= 1)
        assert torch.allclose(grad_mu, closed, rtol=1e-12) and torch.allclose(grad_nu, -closed * inside, rtol=1e-12)
        n = None if bits == "fp32" else 2**bits - 1
        codes = None if n is None else torch.round(torch.clamp(nu, 0, 1) * n).flatten().long().tolist()
        if n is not None:
            assert codes[3] == {1: 0, 2: 2, 4: 8, 8: 128}[bits]
        cases.append(
            {
                "name": f"{bits}bit" if n else "fp32",
                "bits": bits,
                "codes": codes,
                "loss_student": number(students[0]),
                "loss_teacher": number(teacher),
                "grad_mu": f64s(grad_mu),
                "grad_nu": f64s(grad_nu),
            }
        )
    return {"shape": list(MAPS), "weight": 0.8, "mu": f32s(mu), "nu": f32s(nu), "cases": cases}


def composed_cases():
    """Joint losses, to which hints are added unscaled: two students of different bit widths, two of three taps."""
    shapes, used, bits, weight = [(3, 2, 4, 4), (3, 3, 2, 2), (3, 4, 2, 2)], [0, 2], [2, 4], 0.6
    random = Random("composed")
    networks = [leaf(random.normal(BATCH, CLASSES, scale=1.5)) for _ in range(3)]
    labels = random.labels()
    draw = lambda shape: leaf(random.normal(*shape, scale=0.6, mean=0.4))
    mus = [[draw(shape) for shape in shapes] for _ in range(2)]
    nus = [draw(shape) for shape in shapes]
    for nu in nus:
        for k in bits:
            v = (2**k - 1) * nu.detach()
            assert ((v - torch.floor(v) - 0.5).abs() > 1e-5).all(), "another seed: a float32 could round otherwise"
    cases = []
    for mode, target in (("mutual", "student"), ("mutual", "both"), ("student-only", "both"), ("frozen", "student")):
        students, teacher = joint_losses(networks[:-1], networks[-1], labels, CIFAR100, mode, 1.0)
        of_students, of_teacher = hint_terms(
            [[taps[tap] for tap in used] for taps in mus], [nus[tap] for tap in used], bits, weight, target
        )
        students = [loss + term for loss, term in zip(students, of_students, strict=True)]
        if of_teacher is not None:
            teacher = teacher + of_teacher
        losses = students + [teacher]
        tensors = networks + [mu for taps in mus for mu in taps] + nus
        grads = [None if loss is None else [f64s(grad) for grad in gradients(loss, tensors)] for loss in losses]
        cases.append(
            {
                "name": f"{mode}_hint_{target}",
                "mode": mode,
                "target": target,
                "losses": [None if loss is None else number(loss) for loss in losses],
                # In the order: logits of both students and the teacher, maps of both students, maps of the teacher.
                "grads": grads,
            }
        )
    return {
        "weights": CIFAR100,
        "temperature": 1.0,
        "hint_weight": weight,
        "taps": used,
        "bits": bits,
        "shape": [BATCH, CLASSES],
        "labels": labels.tolist(),
        "logits": [f32s(logits) for logits in networks],
        "map_shapes": [list(shape) for shape in shapes],
        "student_maps": [[f32s(mu) for mu in taps] for taps in mus],
        "teacher_maps": [f32s(nu) for nu in nus],
        "cases": cases,
    }


def probability(kind, u, start, values):
    """At progress u, a fraction; the stage of a stepped schedule is computed exactly."""
    if kind == "stepped":
        return values[int(u * len(values))]
    u = float(u)
    return {
        "linear": start + (1 - start) * u,
        "cosine": 1 - (1 - start) * (1 + np.cos(np.pi * u)) / 2,
        "exponential": 1 - (1 - start) * 0.01**u,
    }[kind]


def probability_cases():
    cases = []
    for kind, start, values in (
        ("linear", 0.0, None),
        ("linear", 0.3, None),
        ("cosine", 0.0, None),
        ("cosine", 0.25, None),
        ("exponential", 0.0, None),
        ("exponential", 0.5, None),
        ("stepped", None, [0.5, 0.75, 0.875, 1.0]),
        ("stepped", None, [0.1, 0.4, 0.9]),
    ):
        for share, n_steps, steps in (
            (Fraction(1, 5), 100, (0, 1, 19, 20, 39, 40, 59, 60, 79, 80, 81, 99)),
            (Fraction(1, 4), 16, (0, 3, 4, 8, 11, 12, 15)),
            (Fraction(0), 9, (0, 3, 6, 8)),
            (Fraction(1), 5, (0, 4)),
            # The part before the final share need not be whole: 2.5 steps, of which the third begins within.
            (Fraction(1, 2), 5, (0, 1, 2, 3, 4)),
        ):
            rising = n_steps * (1 - share)
            expected = [1.0 if step >= rising else probability(kind, step / rising, start, values) for step in steps]
            case = {"kind": kind, "final_share": float(share), "phase_steps": n_steps, "steps": list(steps)}
            case |= {"values": values} if values else {"from": start}
            cases.append(case | {"expected": [round_to(p) for p in expected]})
    return cases


def f32s(tensor):
    """Inputs: nine significant digits name every float32."""
    values = tensor.detach().flatten().tolist()
    texts = [float(f"{value:.9g}") for value in values]
    assert all(np.float32(text) == np.float32(value) == value for text, value in zip(texts, values, strict=True))
    return texts


def round_to(value):
    """Twelve significant digits are far below the tolerance of float32."""
    return float(f"{value:.12g}")


def number(tensor):
    assert tensor.dtype == torch.float64 and torch.isfinite(tensor)
    return round_to(tensor.item())


def f64s(tensor):
    if tensor is None:
        return None
    assert tensor.dtype == torch.float64 and torch.isfinite(tensor).all()
    return [round_to(value) for value in tensor.detach().flatten().tolist()]


def render(value, indent=""):
    inner = indent + "  "
    if isinstance(value, (dict, list)) and value:
        nested = value.values() if isinstance(value, dict) else value
        if any(isinstance(item, (dict, list)) for item in nested):
            if isinstance(value, dict):
                lines = [f"{inner}{json.dumps(key)}: {render(item, inner)}" for key, item in value.items()]
                return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
            return "[\n" + ",\n".join(inner + render(item, inner) for item in value) + f"\n{indent}]"
    return json.dumps(value)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    document = {
        "torch": torch.__version__,
        "distillation": distillation_cases(),
        "joint": joint_cases(),
        "hint": hint_cases(),
        "composed": composed_cases(),
        "probability": probability_cases(),
    }
    text = render(document) + "\n"
    assert json.loads(text) == document
    (HERE / "strategies.json").write_text(text)
    print(f"strategies.json: {len(text)} bytes")
