"""torchqx with its default recipe: calibrated in the open, int8 weights in the model, then the torchqx backend."""

from collections.abc import Callable

import torch
from torch import Tensor

import torchqx
from benchmarks.jobs import Job


def fp32(job: Job) -> Callable[[], Tensor]:
    return _quantized(job, torch.float32)


def bf16(job: Job) -> Callable[[], Tensor]:
    return _quantized(job, torch.bfloat16)


def _quantized(job: Job, dtype: torch.dtype) -> Callable[[], Tensor]:
    module = torchqx.quantize(job.module.to(dtype), torchqx.OutlierSuppressionPlusConfig(), job.calibration)
    compiled = torch.compile(module, backend="torchqx")

    @torch.no_grad()
    def call() -> Tensor:
        return compiled(**job.inputs)

    return call
