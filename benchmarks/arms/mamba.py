"""The arms of the state-space speed table that run without torchqx."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.mamba_work import Run, StateSpaceJob

COMPILE_SECONDS = 600  # a loop over time steps may compile for longer than anyone waits


def eager(job: StateSpaceJob) -> Callable[[], Tensor]:
    """transformers as it is, float32."""
    return without_gradients(ready(job, torch.float32), job)


def compiled_bf16(job: StateSpaceJob) -> Callable[[], Tensor]:
    """transformers under torch.compile, bfloat16. Its first call raises TimeoutError where compiling takes too long."""
    call = without_gradients(torch.compile(ready(job, torch.bfloat16)), job)
    with _at_most(COMPILE_SECONDS):
        call()
    return call


def ready(job: StateSpaceJob, dtype: torch.dtype) -> Run:
    """The module in ``dtype``; where steps are timed, with what comes before them read."""
    module = job.module.to(dtype)
    if job.past is not None:
        module.read(job.past)
    return module


def without_gradients(module: Callable[..., Tensor], job: StateSpaceJob) -> Callable[[], Tensor]:
    """``module`` on the job's tokens."""
    @torch.no_grad()
    def call() -> Tensor:
        return module(**job.inputs)

    return call


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    late = False

    def stop(*_: Any) -> None:
        nonlocal late
        late = True
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    except Exception as error:  # the compiler wraps what is raised while it works
        if late:
            raise TimeoutError(f"not compiled after {seconds} s") from error
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
