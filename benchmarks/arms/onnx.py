"""ONNX Runtime: exported, quantized dynamically (int8 weights per channel, activations measured at run time)."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor

from benchmarks.jobs import Job


def int8_dynamic(job: Job) -> Callable[[], Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        torch.onnx.export(job.module, (), source, kwargs=job.inputs, dynamo=True, external_data=False, verbose=False)
        # The u8·s8 kernels of machines without AMX may saturate unless weights keep one bit free; VNNI ones do not.
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    inputs = {node.name: job.inputs[node.name].numpy() for node in session.get_inputs()}

    def call() -> Tensor:
        return torch.from_numpy(session.run(None, inputs)[0])

    return call
