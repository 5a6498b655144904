"""What ``make bench-check`` runs of each revision: a kernel by its name, a model quantized with the default recipe."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.arms import ours
from benchmarks.jobs import Job
from benchmarks.kernels.case import OURS
from benchmarks.kernels.every import CASES
from benchmarks.workloads import Kernel


def run(job: Job | Kernel) -> Callable[[], Tensor]:
    """The call to time."""
    if isinstance(job, Job):
        return ours.bf16(job)
    torch.manual_seed(0)
    return torch.inference_mode()(CASES[job.name].arms()[OURS])
