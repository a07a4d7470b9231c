"""The networks that ours are timed beside, written from the papers' formulas, with plain or DoReFa-quantized (Zhou et al.
2016) convolutions.

PreResNet of depth 6n+2 (He et al. 2016b), ResNet (He et al. 2016) and PreResNet of depth 18, 34 and 50. `bits` is a pair
of bit widths, of the weights and of the input, or None; the first and the last layer are never quantized.
"""

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
    """A convolution that keeps the size at stride 1, with DoReFa weights and input; None leaves both as they are."""

    def __init__(self, inputs, outputs, kernel, bits, stride=1):
        super().__init__(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
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


def brevitas_conv():
    """The same as Brevitas has it, with its usual quantizers: weights by their largest magnitude, which leaves -1, 0 and 1 of 2
    bits, the input by a scale that is learned after it has been set by the first batch."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloat

    class BrevitasConv(nn.Module):
        def __init__(self, inputs, outputs, kernel, bits, stride=1):
            super().__init__()
            self.in_channels, self.out_channels = inputs, outputs
            sizes = {"stride": stride, "padding": kernel // 2, "bias": False}
            self.input = None
            if bits is None:
                self.conv = nn.Conv2d(inputs, outputs, kernel, **sizes)
                return
            # By default it collects percentiles for 300 steps first, which would be all that is timed.
            self.input = qnn.QuantIdentity(
                act_quant=Uint8ActPerTensorFloat, bit_width=bits[1], collect_stats_steps=1
            )
            self.conv = qnn.QuantConv2d(
                inputs, outputs, kernel, weight_quant=Int8WeightPerTensorFloat, weight_bit_width=bits[0], **sizes
            )

        def forward(self, x):
            return self.conv(x if self.input is None else self.input(x))

    return BrevitasConv


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride, bits):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = Conv(inputs, outputs, 3, bits, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = Conv(outputs, outputs, 3, bits)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else Conv(inputs, outputs, 1, bits, stride)

    def forward(self, x):
        activated = F.relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(F.relu(self.norm2(self.conv1(activated)))) + residual


class PreResNet(nn.Module):
    def __init__(self, depth, channels, n_classes, bits):
        super().__init__()
        self.stem = Conv(channels, 16, 3, None)
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


class ImageNetBlock(nn.Module):
    """Two 3x3 convolutions, or a 3x3 one of `planes` channels with the stride between two of 1x1."""

    def __init__(self, inputs, planes, outputs, stride, bits, preact):
        super().__init__()
        if planes == outputs:
            convs = [Conv(inputs, outputs, 3, bits, stride), Conv(outputs, outputs, 3, bits)]
        else:
            convs = [
                Conv(inputs, planes, 1, bits),
                Conv(planes, planes, 3, bits, stride),
                Conv(planes, outputs, 1, bits),
            ]
        self.n_convs = len(convs)
        self.preact = preact
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(conv.in_channels if preact else conv.out_channels))
        self.downsample = None
        if inputs != outputs or stride != 1:
            norm = [] if preact else [nn.BatchNorm2d(outputs)]
            self.downsample = nn.Sequential(Conv(inputs, outputs, 1, bits, stride), *norm)

    def forward(self, x):
        units = [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.n_convs + 1)]
        residual = x
        if self.preact:
            for i, (conv, norm) in enumerate(units):
                x = F.relu(norm(x))
                if i == 0 and self.downsample is not None:
                    residual = self.downsample(x)
                x = conv(x)
            return x + residual
        if self.downsample is not None:
            residual = self.downsample(x)
        for i, (conv, norm) in enumerate(units, 1):
            x = norm(conv(x))
            x = F.relu(x + residual if i == self.n_convs else x)
        return x


class ImageNetResNet(nn.Module):
    """ResNet, or PreResNet if `preact`, of depth 18, 34 or 50; `width` multiplies the channels."""

    def __init__(self, depth, channels, n_classes, bits, preact, width=1.0):
        super().__init__()
        inputs = round(64 * width)
        self.conv1 = Conv(channels, inputs, 7, None, 2)
        self.bn1 = None if preact else nn.BatchNorm2d(inputs)
        stem = inputs
        for stage, n_blocks in enumerate([2, 2, 2, 2] if depth == 18 else [3, 4, 6, 3]):
            planes = stem << stage
            outputs = 4 * planes if depth == 50 else planes
            blocks = []
            for block in range(n_blocks):
                stride = 2 if stage and not block else 1
                blocks.append(ImageNetBlock(inputs, planes, outputs, stride, bits, preact))
                inputs = outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(inputs) if preact else None
        self.fc = nn.Linear(inputs, n_classes)

    def forward(self, x):
        x = self.conv1(x)
        if self.bn1 is not None:
            x = F.relu(self.bn1(x))
        x = F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        if self.norm is not None:
            x = F.relu(self.norm(x))
        return self.fc(x.mean((2, 3)))
