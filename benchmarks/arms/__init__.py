"""The arms of the speed table: each turns a job into a compiled function of no arguments.

One module per toolchain, imported by the one worker process that runs it: importing a quantization library may register
Inductor passes, and no arm should be timed with another's passes in place.
"""

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor

ARMS = {
    "fp32": "benchmarks.arms.floating:fp32",
    "bf16": "benchmarks.arms.floating:bf16",
    "torchqx-fp32": "benchmarks.arms.ours:fp32",
    "torchqx-bf16": "benchmarks.arms.ours:bf16",
    "torchao-dynamic-fp32": "benchmarks.arms.ao:dynamic_fp32",
    "torchao-dynamic-bf16": "benchmarks.arms.ao:dynamic_bf16",
    "torchao-static-fp32": "benchmarks.arms.ao:static_fp32",
    "torchao-static-bf16": "benchmarks.arms.ao:static_bf16",
    "pt2e-fp32": "benchmarks.arms.pt2e:fp32",
    "pt2e-bf16": "benchmarks.arms.pt2e:bf16",
    "openvino-bf16": "benchmarks.arms.openvino:bf16",
    "openvino-int8": "benchmarks.arms.openvino:int8",
    "onnxruntime-int8": "benchmarks.arms.onnx:int8_dynamic",
}


def build(target: str, job: Any) -> Callable[[], Tensor]:
    """Quantize and compile ``job`` as ``target``, "module:function", does. The call that it gives compiles at first."""
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function)(job)
