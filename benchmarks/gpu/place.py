"""Where the benchmark runs: a CUDA device, or the CPU as a rehearsal of the same code without one."""

import platform
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from benchmarks.records import machine


@dataclass(frozen=True)
class Place:
    """A device, and whether sizes are tiny (``quick``).

    On the CPU nothing is lowered by Inductor: a rehearsal shows that the script runs, and compiling would take minutes.
    """

    device: torch.device
    quick: bool

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_cuda else platform.machine()

    def compiled(self, fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """``fn`` for the shapes of its first call. Others compile anew, and raise where Dynamo's limit is reached."""
        if not self.is_cuda:
            return torch.compile(fn, dynamic=False, fullgraph=True, backend="eager")
        return torch.compile(fn, dynamic=False, fullgraph=True, options=options)

    def by_torchqx(self, model: torch.nn.Module) -> Callable[..., Any]:
        """``model`` through the torchqx backend."""
        options = {} if self.is_cuda else {"lowering": "eager"}
        return torch.compile(model, dynamic=False, fullgraph=True, backend="torchqx", options=options)

    def moved(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same with its tensors on the device."""
        return tuple(v.to(self.device) if isinstance(v, Tensor) else v for v in values)

    def sets(self, size: int) -> int:
        """How many sets of operands of ``size`` bytes to go round, so that no call finds its own in the cache."""
        if not self.is_cuda:
            return 2
        cache = torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(1, min(64, -(-4 * cache // size)))

    def described(self) -> dict[str, Any]:
        """What a record says about where it was made: :func:`benchmarks.records.machine`, device and driver."""
        where = machine()
        where["versions"] |= {"triton": version("triton")}
        if self.is_cuda:
            where |= {"device": self.name, "driver": _driver(), "cuda": torch.version.cuda}
        return where


def _driver() -> str:
    """The driver's version, as nvidia-smi says it."""
    if shutil.which("nvidia-smi") is None:
        return "unknown (no nvidia-smi)"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.split()
    return lines[0] if lines else "unknown"
