#!/usr/bin/env python3
"""Writes weights/ and torchvision.json: files of weights as PyTorch writes them, and what torchvision's networks make of images.

    /tmp/goldenvenv/bin/pip install torch==2.15.0 torchvision==0.29.2 numpy==2.4.6
    /tmp/goldenvenv/bin/python tests/golden/generate_weights.py

`weights/` has one small ResNet-18 of random weights in every container, with the wrappings that training programs put around it. All of
its numbers are in bfloat16, so that every file has the same, whatever its type. weights/logits.json has what PyTorch computes with
them. PyTorch reads each file back before it counts; the TAR container, which PyTorch no longer writes, is written here by the form
that it reads.

`torchvision.json` has names, shapes and logits of torchvision's own networks of full width, with weights by the rule of
generate_imagenet.py. README.md describes the fields.
"""

import io
import pickle
import struct
import sys
import tarfile
import warnings
from pathlib import Path

from generate import HERE, write
from generate_imagenet import centered, double, nine_digits, value

import torch
import torchvision

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "xtask" / "peers"))
from networks import ImageNetResNet

WIDTH = 1 / 64
CLASSES = 5
IMAGES = (3, 1, 32, 32)


def small():
    """The state of a ResNet-18 of one channel at the stem, every number of which bfloat16 holds."""
    torch.manual_seed(15)
    network = ImageNetResNet(18, IMAGES[1], CLASSES, None, False, WIDTH)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(700)
            continue
        values = torch.randn(tensor.shape) * (tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.3)
        if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            values = values.abs() + 0.5
        tensor.copy_(values.bfloat16())
    return network


class Tar:
    """The container before PyTorch 0.1.10: `storages`, `tensors` and `pickle`, as torch.serialization._legacy_load reads them."""

    def __init__(self, state):
        self.storages, self.tensors, self.keys = io.BytesIO(), io.BytesIO(), {}
        for stream in (self.storages, self.tensors):
            pickle.dump(len(state), stream, protocol=2)
        for key, tensor in enumerate(state.values()):
            tensor = tensor.contiguous()
            kind = torch.LongStorage if tensor.dtype == torch.int64 else torch.FloatStorage
            pickle.dump((key, "cpu", kind), self.storages, protocol=2)
            self.storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
            pickle.dump((key, key, torch.FloatTensor), self.tensors, protocol=2)
            self.tensors.write(struct.pack("<ii", tensor.dim(), 0))
            for sizes in (tensor.shape, tensor.stride(), (0,)):
                self.tensors.write(struct.pack(f"<{len(sizes)}q", *sizes))
            self.keys[id(tensor)] = key
        pickle.dump([], self.storages, protocol=2)
        self.state = state

    def save(self, path):
        keys = self.keys

        class Pickler(pickle.Pickler):
            def persistent_id(self, value):
                return str(keys[id(value)]) if isinstance(value, torch.Tensor) else None

        saved = io.BytesIO()
        Pickler(saved, protocol=2).dump(self.state)
        sys_info = pickle.dumps({"protocol_version": 1000, "little_endian": True}, protocol=2)
        parts = {"sys_info": sys_info, "pickle": saved.getvalue()}
        parts |= {"tensors": self.tensors.getvalue(), "storages": self.storages.getvalue()}
        with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as tar:
            for name, content in parts.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def save_module(network, path):
    """Saves a module whole in the container before PyTorch 1.6, which has the source code of each class. Here it is none."""
    real, torch.serialization.get_source_lines_and_file = (
        torch.serialization.get_source_lines_and_file,
        lambda value, *_: (["no code\n"] * 1000, None, "networks.py"),
    )
    try:
        torch.save(network, path, _use_new_zipfile_serialization=False)
    finally:
        torch.serialization.get_source_lines_and_file = real


def files():
    network = small()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folder = HERE / "weights"
    # What a training program keeps: the weights under a key, as a parallel module calls them, an optimizer's state.
    momentum = {0: {"momentum_buffer": torch.ones(2, 3)}}
    checkpoint = {
        "epoch": 90,
        "arch": "resnet18",
        "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"state": momentum, "param_groups": [{"lr": 0.1, "params": [0]}]},
    }
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.float32]
    mixed = {
        f"_orig_mod.{name}": tensor.to(kinds[i % 4]) if tensor.is_floating_point() else tensor
        for i, (name, tensor) in enumerate(state.items())
    }
    torch.save(state, folder / "zip.pth")
    torch.save(checkpoint, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    Tar(state).save(folder / "tar.pth")
    torch.save({"model": mixed}, folder / "mixed.pth", _use_new_zipfile_serialization=False)
    save_module(network, folder / "module.pth")
    readers = {
        "zip.pth": lambda file: file,
        "legacy.pth": lambda file: {name.removeprefix("module."): t for name, t in file["state_dict"].items()},
        "tar.pth": lambda file: file,
        "mixed.pth": lambda file: {name.removeprefix("_orig_mod."): t for name, t in file["model"].items()},
        "module.pth": lambda module: module.state_dict(),
    }
    warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
    for name, read in readers.items():
        found = read(torch.load(folder / name, weights_only=False))
        assert found.keys() == state.keys(), name
        assert all(torch.equal(found[key].to(state[key].dtype), state[key]) for key in state), name
        print(f"weights/{name}: {(folder / name).stat().st_size} bytes")
    network = network.double().eval()
    with torch.no_grad():
        logits = network(double(centered(0, IMAGES)))
    write(
        "weights/logits.json",
        {"torch": torch.__version__, "images": list(IMAGES), "classes": CLASSES, "width": WIDTH, "logits": nine_digits(logits)},
    )


# Networks, and images for their logits.
TORCHVISION = {
    "resnet18": (1, 3, 64, 64),
    "resnet34": None,
    "resnet50": (1, 3, 64, 64),
    "resnet101": None,
    "alexnet": (1, 3, 224, 224),
    "mobilenet_v2": (1, 3, 64, 64),
}


def torchvisions():
    cases = []
    for name, images in TORCHVISION.items():
        network = getattr(torchvision.models, name)().double().eval()
        state = network.state_dict()
        tensors = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
        for idx, (key, tensor) in enumerate(tensors.items()):
            tensor.copy_(double(value(idx, key, tuple(tensor.shape))))
        case = {
            "name": name,
            "parameters": sum(p.numel() for p in network.parameters()),
            "tensors": [f"{key} {'x'.join(map(str, tensor.shape))}" for key, tensor in state.items()],
        }
        if images is not None:
            with torch.no_grad():
                logits = network(double(centered(2 * len(tensors), images)))
            case |= {"images": list(images), "logits": nine_digits(logits)[:20]}
            case["scale"] = nine_digits(logits.abs().max())[0]
        cases.append(case)
    write("torchvision.json", {"torch": torch.__version__, "torchvision": torchvision.__version__, "networks": cases})


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    files()
    torchvisions()
