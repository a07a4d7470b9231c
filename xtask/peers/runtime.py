#!/usr/bin/env python3
"""Runs a network by onnxruntime on request. Called by `cargo xtask bench runtime`.

    runtime.py MODEL.onnx fp32|int8 THREADS

MODEL.onnx is in full precision; int8 is what onnxruntime's own static quantization makes of it (weights for each channel, activations in 8
bits, QDQ), calibrated with random images. For every line on stdin so many images are run, one by one, and the seconds of all are answered;
at the end, the peak memory in bytes.
"""

import resource
import sys
import time

import numpy
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static


class Images(CalibrationDataReader):
    def __init__(self, shape):
        random = numpy.random.default_rng(0)
        self.images = iter([{"image": random.standard_normal(shape).astype("f4")} for _ in range(8)])

    def get_next(self):
        return next(self.images, None)


def main():
    path, kind, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    shape = [1] + session.get_inputs()[0].shape[1:]
    if kind == "int8":
        quantized = path + ".int8.onnx"
        quantize_static(
            path,
            quantized,
            Images(shape),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        session = onnxruntime.InferenceSession(quantized, options, providers=providers)
    image = {"image": numpy.random.default_rng(1).standard_normal(shape).astype("f4")}
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            session.run(["logits"], image)
        print(time.perf_counter() - start, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


if __name__ == "__main__":
    main()
