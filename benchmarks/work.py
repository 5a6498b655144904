"""How many multiply-adds a workload takes: what the machine's limits are held against."""

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.jobs import Job


@dataclass(frozen=True)
class Work:
    """Multiply-adds of one call: ``weighted`` with a weight (int8 can take them), ``attention`` between activations."""

    weighted: int
    attention: int


@torch.no_grad()
def multiply_adds(job: Job) -> Work:
    """Count them in one eager call; the multiplications of elementwise operators are left out."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        job.module(**job.inputs)
    flops = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for op, count in flops.items() if "bmm" in op)
    return Work((sum(flops.values()) - attention) // 2, attention // 2)
