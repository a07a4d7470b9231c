#!/usr/bin/env python3
"""Compares exported networks, as onnxruntime computes them, with the runtime's logits. Called by `cargo xtask verify-export`.

    verify_export.py CASE.onnx CASE.safetensors [CASE.onnx CASE.safetensors ...]

CASE.safetensors has `images` and `logits`, as `lowbit eval MODEL --dump` writes them. Prints one line of JSON for each case.
"""

import json
import struct
import sys

import numpy
import onnx
import onnxruntime


def tensors(path):
    """The tensors of a safetensors file of float32."""
    content = open(path, "rb").read()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        values = numpy.frombuffer(content[8 + length + start : 8 + length + end], dtype="<f4")
        found[name] = values.reshape(entry["shape"])
    return found


def quantized_layers(model):
    """How many convolutions and linear layers onnxruntime computes in integers, after its optimizations."""
    names = {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
    return sum(node.op_type in names for node in model.graph.node)


def main():
    files = sys.argv[1:]
    for path, expected in zip(files[::2], files[1::2]):
        onnx.checker.check_model(onnx.load(path), full_check=True)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.optimized_model_filepath = path + ".optimized"
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        case = tensors(expected)
        logits = session.run(["logits"], {"image": case["images"]})[0]
        difference = numpy.abs(logits - case["logits"])
        same = int((logits.argmax(1) == case["logits"].argmax(1)).sum())
        report = {
            "onnx": path,
            "n_images": len(logits),
            "same_top1": same,
            "max_difference": float(difference.max()),
            "median_difference": float(numpy.median(difference)),
            "largest_logit": float(numpy.abs(case["logits"]).max()),
            "quantized_layers": quantized_layers(onnx.load(path + ".optimized")),
        }
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
