"""torchqx in the state-space speed table, between its int8 matmuls and scans in bfloat16."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import torchqx
from benchmarks.arms.mamba import ready, without_gradients
from benchmarks.mamba_work import StateSpaceJob


def bf16(job: StateSpaceJob) -> Callable[[], Tensor]:
    """torchqx's operators with nothing quantized."""
    options = {"recipe": torchqx.MinMaxConfig(include=[])}
    return without_gradients(torch.compile(ready(job, torch.bfloat16), backend="torchqx", options=options), job)


def quamba(job: StateSpaceJob, **fields: Any) -> Callable[[], Tensor]:
    """Quamba with the paper's percentile, the head in bfloat16 as there."""
    recipe = torchqx.QuambaConfig(alpha=0.9995, **fields)
    model = torchqx.quantize(ready(job, torch.bfloat16), recipe, job.calibration)
    return without_gradients(torch.compile(model, backend="torchqx"), job)


def quamba_and_head(job: StateSpaceJob) -> Callable[[], Tensor]:
    """The same with the head's weight in int8 too, which is a good part of what a step reads."""
    return quamba(job, quantize_head=True)
