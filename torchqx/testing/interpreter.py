"""Running Triton code on CPU tensors, in a process where Triton interprets instead of compiling."""

import importlib
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchqx.testing.packing import pack, unpack
from torchqx.testing.workers import INTERPRETER


def interpret(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> dict[str, Any]:
    """Run a hand-written ``@triton.jit`` kernel, a name of a module, on CPU tensors.

    Args:
        arguments: all of the kernel's, by name, constexprs too; tensors are copied.

    Returns:
        the arguments as the kernel leaves them: what it stored is in the tensors.
    """
    return unpack(INTERPRETER(_there, "run_kernel", kernel.fn.__module__, kernel.fn.__name__, grid, pack(arguments)))


def run_program(code: str, arguments: Sequence[Tensor | int]) -> list[Tensor]:
    """Run a program that Inductor generated for a GPU, kernels and launches, on CPU tensors; it may write them."""
    results, written = unpack(INTERPRETER(_there, "run_program", code, pack(list(arguments))))
    for i, value in written.items():
        arguments[i].copy_(value)
    return results


def _there(function: str, *args: Any) -> Any:
    # Importing the module changes torch and Triton for good, so the interpreting process alone may do it.
    return getattr(importlib.import_module("torchqx.testing.interpreted"), function)(*args)
