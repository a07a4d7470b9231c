"""Training steps of PyTorch on request, for `cargo xtask bench step --peer torch`.

The networks of networks.py, channels_last. The protocol is that of tests/examples/step.rs: a number of steps on stdin,
their seconds on stdout; at the end of stdin the peak memory in bytes.
"""

import resource
import sys
import time

import torch
import torch.nn.functional as F

from networks import ImageNetResNet, PreResNet


def main():
    name, precision, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    bits = None if precision == "fp32" else tuple(int(b) for b in precision[1:].split("a"))
    make, channels, side, batch, n_classes = {
        "preresnet20": (lambda *args: PreResNet(20, *args), 3, 32, 128, 100),
        "preresnet8-digits": (lambda *args: PreResNet(8, *args), 1, 8, 64, 10),
        "resnet18": (lambda *args: ImageNetResNet(18, *args, preact=False), 3, 224, 16, 1000),
        "preresnet18": (lambda *args: ImageNetResNet(18, *args, preact=True), 3, 224, 16, 1000),
    }[name]
    network = make(channels, n_classes, bits).to(memory_format=torch.channels_last)
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
