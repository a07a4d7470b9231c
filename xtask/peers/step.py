"""Training steps of PyTorch on request, for `cargo xtask bench step --peer torch`.

The networks of networks.py, channels_last, on the processor or, with `cuda` as the last argument, on a GPU; there in eager
mode, with products of matrices in full precision (no TF32). The protocol is that of tests/examples/step.rs: a number of steps on stdin,
their seconds on stdout; at the end of stdin the peak memory in bytes.
"""

import resource
import sys
import time

import torch
import torch.nn.functional as F

from networks import ImageNetResNet, PreResNet


def main():
    name, precision, threads, device = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    # PyTorch's convolutions take TF32 by default, which is not full precision.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    bits = None if precision == "fp32" else tuple(int(b) for b in precision[1:].split("a"))
    make, channels, side, batch, n_classes = {
        "preresnet20": (lambda *args: PreResNet(20, *args), 3, 32, 128, 100),
        "preresnet8-digits": (lambda *args: PreResNet(8, *args), 1, 8, 64, 10),
        "resnet18": (lambda *args: ImageNetResNet(18, *args, preact=False), 3, 224, 16, 1000),
        "preresnet18": (lambda *args: ImageNetResNet(18, *args, preact=True), 3, 224, 16, 1000),
    }[name]
    network = make(channels, n_classes, bits).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = torch.randn(batch, channels, side, side).to(device, memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % n_classes
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            # Reads the loss, as a training does: on a GPU this waits for the step's forward pass.
            assert loss.item() == loss.item()
        if device == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    of_device = f" {torch.cuda.max_memory_reserved()} {torch.cuda.get_device_name()}" if device == "cuda" else ""
    print(f"{peak}{of_device}", flush=True)


main()
