"""Arms and a workload that take no time to build, for worker processes to import; they need none of the libraries."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pause:
    """A workload whose call waits."""

    name: str = "pause"
    milliseconds: float = 2.0

    def load(self) -> float:
        return self.milliseconds


def paused(milliseconds: float) -> Callable[[], Tensor]:
    """Waits as often as the torchqx in use says: its ``SLOWNESS``."""
    return waits(milliseconds * importlib.import_module("torchqx").SLOWNESS)


def waits(milliseconds: float) -> Callable[[], Tensor]:
    def call() -> Tensor:
        time.sleep(1e-3 * milliseconds)
        return torch.tensor([1.0, milliseconds])

    return call


def broken(milliseconds: float) -> Callable[[], Tensor]:
    """An arm whose build fails."""
    raise RuntimeError(f"no kernel for {milliseconds}\nand more")
