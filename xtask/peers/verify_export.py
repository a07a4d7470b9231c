#!/usr/bin/env python3
"""Compares an exported network, as onnxruntime and qonnx compute it, with the runtime's logits. Called by `cargo xtask verify-export`.

    verify_export.py CASE.safetensors CASE.qonnx.onnx [CASE.onnx]

CASE.safetensors has `images` and `logits`, as `lowbit eval MODEL --dump` writes them. Prints one JSON object.
"""

import json
import struct
import sys
import warnings

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


def compared(logits, case):
    """What is the same, and what differs."""
    difference = numpy.abs(logits - case["logits"])
    return {
        "same_top1": int((logits.argmax(1) == case["logits"].argmax(1)).sum()),
        "max_difference": float(difference.max()),
        "median_difference": float(numpy.median(difference)),
    }


def session(model):
    """A network in onnxruntime, with one thread, and where it leaves the network that it computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if isinstance(model, str):
        options.optimized_model_filepath = model + ".optimized"
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def quantized_layers(model):
    """How many convolutions and linear layers onnxruntime computes in integers, after its optimizations."""
    names = {"QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
    return sum(node.op_type in names for node in model.graph.node)


def in_onnxruntime(path, case):
    """An ONNX file in onnxruntime."""
    onnx.checker.check_model(onnx.load(path), full_check=True)
    logits = session(path).run(["logits"], {"image": case["images"]})[0]
    layers = quantized_layers(onnx.load(path + ".optimized"))
    return {**compared(logits, case), "quantized_layers": layers}


def in_qonnx(path, case):
    """A QONNX file in qonnx, as it is and after the steps of qonnx-cleanup, and what qonnx-convert and qonnx-inference-cost make of it."""
    # It warns of its own dependencies.
    warnings.filterwarnings("ignore")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
    from qonnx.util.cleanup import cleanup_model
    from qonnx.util.inference_cost import inference_cost

    onnx.checker.check_model(onnx.load(path), full_check=True)
    network = ModelWrapper(path)
    assert network.check_all_tensor_shapes_specified(), "a value has no shape"
    cleaned = cleanup_model(ModelWrapper(path))
    converted = cleanup_model(ModelWrapper(path)).transform(QuantToQCDQ())
    inference_cost(ModelWrapper(path))

    def computed(model):
        """The logits of all images at once: one after the other takes minutes."""
        model = model.transform(ChangeBatchSize(len(case["images"]))).transform(InferShapes())
        found = execute_onnx(model, {model.graph.input[0].name: case["images"]})
        return found[model.graph.output[0].name]

    logits = computed(network)
    alone = execute_onnx(network, {"image": case["images"][:1]})["logits"]
    assert alone.argmax() == logits[0].argmax(), "an image alone is of another class"
    assert numpy.array_equal(computed(cleaned), logits), "cleaned up, it computes something else"
    left = sum(node.domain == "qonnx.custom_op.general" for node in converted.graph.node)
    report = {**compared(logits, case), "left_by_convert": left}
    if left == 0:
        onnx.checker.check_model(converted.model, full_check=True)
        run = session(converted.model.SerializeToString()).run
        name = converted.graph.input[0].name
        by_onnxruntime = numpy.concatenate([run(None, {name: image[None]})[0] for image in case["images"]])
        report["converted"] = compared(by_onnxruntime, case)
    return report


def main():
    expected, qonnx, *others = sys.argv[1:]
    case = tensors(expected)
    report = {
        "n_images": len(case["logits"]),
        "largest_logit": float(numpy.abs(case["logits"]).max()),
        "qonnx": in_qonnx(qonnx, case),
        "onnxruntime": in_onnxruntime(others[0], case) if others else None,
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
