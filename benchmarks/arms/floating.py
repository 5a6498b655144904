"""Float baselines: the module compiled by Inductor with frozen weights, in float32 and in bfloat16."""

from collections.abc import Callable

import torch
import torch._inductor.config as inductor_config
from torch import Tensor, nn

from benchmarks.jobs import Job


def frozen(module: nn.Module, inputs: dict[str, Tensor]) -> Callable[[], Tensor]:
    """``module(**inputs)`` compiled with weights prepacked as constants, the fastest that Inductor has on a CPU."""
    inductor_config.freezing = True
    compiled = torch.compile(module)

    @torch.no_grad()
    def call() -> Tensor:
        return compiled(**inputs)

    return call


def fp32(job: Job) -> Callable[[], Tensor]:
    return frozen(job.module, job.inputs)


def bf16(job: Job) -> Callable[[], Tensor]:
    return frozen(job.module.to(torch.bfloat16), job.inputs)
