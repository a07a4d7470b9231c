#!/usr/bin/env python3
"""Writes imagenet.json and alexnet.json: logits and gradients of the ImageNet-style networks and of AlexNet in PyTorch, and
parameter counts.

The residual networks are those of xtask/peers/networks.py, AlexNet is here, in full precision and with few channels. Everything is computed in
float64 from values that float32 holds, so the tolerance of a comparison is that of the code under test alone, and
results are rounded to nine digits. Run it as generate.py, with the same versions; a second run writes the same bytes.

    /tmp/goldenvenv/bin/python tests/golden/generate_imagenet.py

Weights and images are too many to be written down; `value` makes them from their place, exactly in float32. README.md
describes the fields.
"""

import sys
from pathlib import Path

from generate import write

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "xtask" / "peers"))
from networks import ImageNetResNet

WIDTH = 1 / 16
IMAGES = (3, 3, 129, 128)
CLASSES = 5


def uniform(idx, shape):
    """Numbers from 0 to 1, a function of their index in tensor `idx`: cubes modulo a prime, which look random."""
    place = (np.arange(int(np.prod(shape)), dtype=np.int64) + 4099 * idx) % 65521
    return ((place * place % 65521 * place % 65521).astype(np.float32) / np.float32(65521)).reshape(shape)


def centered(idx, shape):
    return np.float32(2) * uniform(idx, shape) - np.float32(1)


def value(idx, name, shape):
    """Weights are centered and scaled by a power of two near sqrt(6 / fan-in); scales and variances are 0.5 to 1.5,
    biases and means -0.5 to 0.5."""
    if len(shape) > 1:
        scale = 1.0
        while scale * scale * np.prod(shape[1:]) > 6:
            scale /= 2
        return centered(idx, shape) * np.float32(scale)
    half = np.float32(0.5)
    return uniform(idx, shape) + (half if name.endswith(("weight", "running_var")) else -half)


def double(values):
    return torch.tensor(values.astype(np.float64))


def nine_digits(tensor):
    return [float(f"{x:.9g}") for x in tensor.flatten().tolist()]


class AlexNet(torch.nn.Module):
    """AlexNet as Krizhevsky 2014 (arXiv 1404.5997) has it, without dropout; layers at torchvision's places. With norms, what they follow
    has no bias (Zhuang et al. 2021)."""

    def __init__(self, layout, norm, images, classes, width):
        super().__init__()
        channels = [images[1]] + [int(c * width) for c in (64, 192, 384, 256, 256)]
        self.pool = (2, 2) if layout == "cifar" else (3, 2)
        kernels = (3, 3, 3, 3, 3) if layout == "cifar" else (11, 5, 3, 3, 3)
        self.features, self.classifier = torch.nn.Module(), torch.nn.Module()
        for i, (place, kernel) in enumerate(zip((0, 3, 6, 8, 10), kernels)):
            stride, padding = (4, 2) if kernel == 11 else (1, kernel // 2)
            conv = torch.nn.Conv2d(channels[i], channels[i + 1], kernel, stride, padding, bias=not norm)
            self.features.add_module(str(place), conv)
        hidden = int((1024 if layout == "cifar" else 4096) * width)
        self.norms = torch.nn.ModuleList([torch.nn.BatchNorm2d(c) for c in channels[1:]] if norm else [])
        if norm:
            self.norms.extend([torch.nn.BatchNorm1d(hidden), torch.nn.BatchNorm1d(hidden)])
        with torch.no_grad():
            self.eval()
            n_features = self.maps(torch.zeros(1, *images[1:])).numel()
        for place, size in zip((1, 4), (n_features, hidden)):
            self.classifier.add_module(str(place), torch.nn.Linear(size, hidden, bias=not norm))
        self.classifier.add_module("6", torch.nn.Linear(hidden, classes))

    def activated(self, i, x):
        return torch.relu(self.norms[i](x) if len(self.norms) else x)

    def maps(self, x):
        for i, conv in enumerate(self.features.children()):
            x = self.activated(i, conv(x))
            if i in (0, 1, 4):
                x = torch.nn.functional.max_pool2d(x, *self.pool)
        return x

    def forward(self, x):
        x = self.maps(x).flatten(1)
        first, second, last = self.classifier.children()
        return last(self.activated(6, second(self.activated(5, first(x)))))


def case(family, depth):
    return numbers(ImageNetResNet(depth, IMAGES[1], CLASSES, None, family == "preresnet", WIDTH), family, depth, IMAGES)


def alexnet(layout, norm, images):
    network = AlexNet(layout, norm, images, CLASSES, WIDTH)
    return {"layout": layout, "norm": norm, "images": list(images), **numbers(network, "alexnet", 0, images)}


def numbers(network, family, depth, images_shape):
    network = network.double()
    tensors = {name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    for idx, (name, tensor) in enumerate(tensors.items()):
        tensor.copy_(double(value(idx, name, tuple(tensor.shape))))
    images = double(centered(2 * len(tensors), images_shape))
    network.eval()
    with torch.no_grad():
        evaluated = network(images)
    network.train()
    logits = network(images)
    (logits * double(centered(2 * len(tensors) + 1, tuple(logits.shape)))).sum().backward()
    parameters = dict(network.named_parameters())
    entries = []
    for idx, (name, tensor) in enumerate(tensors.items()):
        entry = {"name": name, "shape": "x".join(map(str, tensor.shape))}
        if name in parameters:
            gradient = parameters[name].grad
            # Not the pattern of the weights: a gradient is orthogonal to weights that BatchNorm follows.
            pattern = double(centered(idx + len(tensors), tuple(gradient.shape)))
            entry["gradient_norm"], entry["gradient_dot"] = nine_digits(
                torch.stack([gradient.norm(), (gradient * pattern).sum()])
            )
        entries.append(entry)
    return {
        "family": family,
        "depth": depth,
        "evaluated": nine_digits(evaluated),
        "logits": nine_digits(logits.detach()),
        "tensors": entries,
    }


def count(family, depth):
    network = ImageNetResNet(depth, 3, 1000, None, family == "preresnet")
    return {"family": family, "depth": depth, "parameters": sum(p.numel() for p in network.parameters())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    families = ("resnet", "preresnet")
    counts = [count(family, depth) for family in families for depth in (18, 34, 50)]
    # torchvision's documentation.
    published = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032}
    for entry in counts:
        assert entry["family"] == "preresnet" or entry["parameters"] == published[entry["depth"]]
    write(
        "imagenet.json",
        {
            "torch": torch.__version__,
            "counts": counts,
            "width": WIDTH,
            "images": list(IMAGES),
            "classes": CLASSES,
            "cases": [case(family, depth) for family in families for depth in (18, 50)],
        },
    )
    # torchvision's documentation.
    assert sum(p.numel() for p in AlexNet("imagenet", False, (1, 3, 224, 224), 1000, 1).parameters()) == 61_100_840
    forms = [("cifar", True, (3, 3, 32, 32)), ("imagenet", True, (3, 3, 67, 63)), ("imagenet", False, (3, 3, 67, 63))]
    write("alexnet.json", {"torch": torch.__version__, "width": WIDTH, "cases": [alexnet(*form) for form in forms]})
