"""One arm in a process of its own: it builds the workloads it is sent, and runs when its turn comes."""

import gc
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from benchmarks.arms import build
from benchmarks.revision import use_source


class Loadable(Protocol):
    """A workload: its name, and what its arm builds a call from."""

    @property
    def name(self) -> str: ...

    def load(self) -> Any: ...


@dataclass(frozen=True)
class Arm:
    """What a worker runs.

    Attributes:
        target: "module:function"; the function turns a loaded workload into a call of no arguments.
        source: folder whose torchqx is used; None for the one that is installed.
        cache: Inductor's cache folder; None for the user's own, where an earlier run may have compiled already.
    """

    name: str
    target: str
    source: Path | None = None
    cache: Path | None = None


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


def serve(connection: Connection, arm: Arm, threads: int) -> None:
    """Answer until None comes: a workload with ``Built`` or ``Failed``, a count with as many calls' seconds.

    A count of 0 asks for the peak memory since the build, in MiB.
    """
    torch.set_num_threads(threads)
    if arm.cache is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(arm.cache)
    if arm.source is not None:
        use_source(arm.source)
    call: Callable[[], torch.Tensor] | None = None
    while (order := connection.recv()) is not None:
        if isinstance(order, int):
            assert call is not None
            connection.send([_timed(call) for _ in range(order)] if order else peak_mib())
            continue
        if call is not None:  # the workload before leaves neither its weights nor its compiled code
            call = None
            if "torch._dynamo" in sys.modules:
                torch._dynamo.reset()
            gc.collect()
        try:
            call, built = _built(arm, order)
            connection.send(built)
        except Exception as error:  # a toolchain may fail in any way: the table says so, and the other arms still run
            traceback.print_exc(limit=-3)
            connection.send(Failed(f"{type(error).__name__}: {error}".splitlines()[0]))
        gc.collect()
        reset_peak()


def _built(arm: Arm, workload: Loadable) -> tuple[Callable[[], torch.Tensor], Built]:
    job = workload.load()
    reset_peak()
    started = time.perf_counter()
    call = build(arm.target, job)
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
