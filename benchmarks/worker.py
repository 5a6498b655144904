"""One arm of one workload in a process of its own: it builds once, then runs when its turn comes."""

import gc
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.arms import build
from benchmarks.workloads import Workload


@dataclass(frozen=True)
class Built:
    """What a worker reports once its arm has run twice: a float32 output, seconds to quantize and compile, peak MiB."""

    output: np.ndarray
    build_seconds: float
    build_peak_mib: float


@dataclass(frozen=True)
class Failed:
    """An arm that could not be built or run."""

    reason: str


def serve(connection: Connection, arm: str, workload: Workload, threads: int, cold: bool) -> None:
    """Build ``arm``, send ``Built`` or ``Failed``, then answer each count of calls with that many times in seconds.

    A count of 0 asks for the peak memory since the build, in MiB; None ends the worker. ``cold`` compiles into an
    empty Inductor cache, so that the build time is what a first user waits.
    """
    torch.set_num_threads(threads)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as cache:
        if cold:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        try:
            call, built = _built(arm, workload)
        except Exception as error:  # a toolchain may fail in any way: the table says so, and the other arms still run
            traceback.print_exc(limit=-3)
            connection.send(Failed(f"{type(error).__name__}: {error}".splitlines()[0]))
            return
        connection.send(built)
        gc.collect()
        reset_peak()
        while (count := connection.recv()) is not None:
            connection.send([_timed(call) for _ in range(count)] if count else peak_mib())


def _built(arm: str, workload: Workload) -> tuple[Callable[[], torch.Tensor], Built]:
    job = workload.load()
    reset_peak()
    started = time.perf_counter()
    call = build(arm, job)
    call()
    output = call()
    seconds = time.perf_counter() - started
    # numpy, because a tensor would travel through shared memory that this process must keep alive.
    return call, Built(output.float().numpy(), seconds, peak_mib())


def _timed(call: Callable[[], torch.Tensor]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def peak_mib() -> float:
    """The largest resident size since ``reset_peak``; unlike ru_maxrss it does not inherit the parent's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM: the memory column needs Linux")


def reset_peak() -> None:
    """Forget the peak so far (Linux: writing 5 to clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")
