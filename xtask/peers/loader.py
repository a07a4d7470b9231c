"""Training batches by torchvision's ImageFolder and PyTorch's DataLoader on request, for `cargo xtask bench loader`.

`loader.py make FOLDER N` makes N images of 500x375 pixels as JPEG files of quality 90, with the spectrum of photographs, in two classes.
`loader.py load FOLDER BATCH WORKERS` loads them. The protocol is that of crates/lowbit-data/examples/load.rs: a number of epochs on stdin,
their seconds on stdout; at the end of stdin the peak memory in bytes of this process and its largest worker, and the processor's seconds
of all.
"""

import resource
import sys
import time
from pathlib import Path


def make(folder, n_images):
    import numpy as np
    from PIL import Image

    height, width = 375, 500
    y, x = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    amplitude = 1 / np.maximum(np.hypot(y, x), 1 / width) ** 1.2
    for idx in range(n_images):
        rng = np.random.RandomState(idx)

        def field():
            field = np.fft.ifft2(np.fft.fft2(rng.randn(height, width)) * amplitude).real
            return (field - field.mean()) / field.std()

        light = field()
        image = np.stack([120 + 50 * light + 18 * field() for _ in range(3)], -1)
        image = np.clip(image + 4 * rng.randn(height, width, 1), 0, 255).astype(np.uint8)
        path = folder / "ab"[idx % 2] / f"{idx:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, "JPEG", quality=90)


def load(folder, batch_size, n_workers):
    import torch
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    torch.set_num_threads(1)
    steps = [
        transforms.RandomResizedCrop(224),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    loader = DataLoader(
        ImageFolder(folder, transforms.Compose(steps)),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
    )
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            for _ in loader:
                pass
        print(time.perf_counter() - start, flush=True)
    # The workers end, so that their times are known.
    del loader
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peak = sum(usage.ru_maxrss for usage in usages) * 1024
    print(f"{peak} {sum(usage.ru_utime + usage.ru_stime for usage in usages)}\n", flush=True)


def main():
    task, folder, *numbers = sys.argv[1:]
    {"make": make, "load": load}[task](Path(folder), *map(int, numbers))


if __name__ == "__main__":
    main()
