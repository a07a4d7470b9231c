"""Training steps of PyTorch on request, for `cargo xtask bench step --peer torch`.

Written from the papers' formulas: the same PreResNet (He et al. 2016b), with plain or DoReFa-quantized (Zhou et al. 2016)
convolutions, channels_last. The protocol is that of tests/examples/step.rs: a number of steps on stdin, their seconds on
stdout; at the end of stdin the peak memory in bytes.
"""

import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Conv(nn.Conv2d):
    """A convolution with DoReFa weights and input; None leaves an operand as it is."""

    def __init__(self, *args, bits, **kwargs):
        super().__init__(*args, bias=False, **kwargs)
        self.bits = bits

    def forward(self, x):
        weight = self.weight
        if self.bits is not None:
            weight_n, act_n = (2**b - 1 for b in self.bits)
            t = weight.tanh()
            z = t / (2 * t.abs().max()) + 0.5
            weight = 2 * Round.apply(z * weight_n) / weight_n - 1
            x = Round.apply(x.clamp(0, 1) * act_n) / act_n
        return F.conv2d(x, weight, None, self.stride, self.padding)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, bits):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = Conv(inputs, outputs, 3, stride=stride, padding=1, bits=bits)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = Conv(outputs, outputs, 3, padding=1, bits=bits)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else Conv(inputs, outputs, 1, stride=stride, bits=bits)

    def forward(self, x):
        activated = F.relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.norm2(self.conv1(activated)))) + residual


class PreResNet(nn.Module):
    def __init__(self, depth, channels, n_classes, bits):
        super().__init__()
        self.stem = Conv(channels, 16, 3, padding=1, bits=None)
        blocks, inputs = [], 16
        for stage in range(3):
            for block in range((depth - 2) // 6):
                outputs = 16 << stage
                blocks.append(Block(inputs, outputs, 2 if stage and not block else 1, bits))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs, n_classes)

    def forward(self, x):
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def main():
    name, precision, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    bits = None if precision == "fp32" else tuple(int(b) for b in precision[1:].split("a"))
    depth, channels, side, batch, n_classes = {
        "preresnet20": (20, 3, 32, 128, 100),
        "preresnet8-digits": (8, 1, 8, 64, 10),
    }[name]
    network = PreResNet(depth, channels, n_classes, bits).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % n_classes
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            assert loss.item() == loss.item()
        print(time.perf_counter() - start, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


main()
