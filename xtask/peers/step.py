"""Training steps of PyTorch on request, for `cargo xtask bench step --peer torch,brevitas`.

    step.py NETWORK[:BATCH] BITS THREADS DEVICE WAY

The networks of networks.py, channels_last, on the processor or, with DEVICE `cuda`, on a GPU; products of matrices there in full
precision (no TF32). WAY is `eager`, `tf32` (eager, and TF32 for what is multiplied on a GPU), `compile` (torch.compile), `bf16`
(autocast), `bf16-compile` (both) or `brevitas` (its quantized layers, eager). The protocol is that of tests/examples/step.rs: a number of steps on stdin, their seconds on stdout; at the
end of stdin the peak memory in bytes, then a line of times by kind, which is empty here, then one of the instruction sets.
"""

import contextlib
import os
import re
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

import networks


def instructions():
    """What PyTorch's own loops and oneDNN's convolutions use on this processor; oneDNN tells it in its log only."""
    program = "import torch; torch.nn.functional.conv2d(torch.ones(16, 16, 32, 32), torch.ones(16, 16, 3, 3))"
    environment = {**os.environ, "ONEDNN_VERBOSE": "1"}
    log = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True).stdout
    isa = re.search(r"isa:(.*)", log)
    of_onednn = isa.group(1).strip() if isa else "unknown"
    return f"loops {torch.backends.cpu.get_cpu_capability()}, convolutions {of_onednn}"


def main():
    name, precision, threads, device, way = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    # PyTorch's convolutions take TF32 by default, which is not full precision.
    torch.backends.cudnn.allow_tf32 = way == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = way == "tf32"
    bits = None if precision == "fp32" else tuple(int(b) for b in precision[1:].split("a"))
    if way == "brevitas":
        networks.Conv = networks.brevitas_conv()
    resnet = networks.ImageNetResNet
    make, channels, side, batch, n_classes = {
        "preresnet20": (lambda *args: networks.PreResNet(20, *args), 3, 32, 128, 100),
        "preresnet8-digits": (lambda *args: networks.PreResNet(8, *args), 1, 8, 64, 10),
        "resnet18": (lambda *args: resnet(18, *args, preact=False), 3, 224, 16, 1000),
        "preresnet18": (lambda *args: resnet(18, *args, preact=True), 3, 224, 16, 1000),
        "resnet50": (lambda *args: resnet(50, *args, preact=False), 3, 224, 16, 1000),
    }[name.partition(":")[0]]
    batch = int(name.partition(":")[2] or batch)
    network = make(channels, n_classes, bits).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-4)
    images = torch.randn(batch, channels, side, side).to(device, memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % n_classes
    forward = torch.compile(network) if way.endswith("compile") else network

    def precision_of_step():
        return torch.autocast(device, torch.bfloat16) if way.startswith("bf16") else contextlib.nullcontext()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with precision_of_step():
            loss = F.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        # Reads the loss, as a training does: on a GPU this waits for the step's forward pass.
        assert loss.item() == loss.item()

    # Quantizers of Brevitas set their scales in the first steps.
    for _ in range(2 if way == "brevitas" else 0):
        step()
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    of_device = f" {torch.cuda.max_memory_reserved()} {torch.cuda.get_device_name()}" if device == "cuda" else ""
    print(f"{peak}{of_device}")
    print()
    print(instructions() if device == "cpu" else "", flush=True)


main()
