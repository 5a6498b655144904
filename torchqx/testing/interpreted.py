"""The interpreting process: runs a generated program, or a hand-written kernel, on CPU tensors.

Imported there alone, where it changes torch for good: what a program asks of CUDA is given on the CPU.
"""

import contextlib
import importlib
import re
from typing import Any

import torch
from torch import Tensor
from torch._inductor import async_compile
from torch._inductor.runtime import triton_helpers

from torchqx.testing import interpreter_shim
from torchqx.testing.attention import register_on_cpu
from torchqx.testing.autotuner import Autotuner
from torchqx.testing.fake_cuda import private
from torchqx.testing.packing import pack, unpack
from torchqx.testing.wrapper import GeneratedKernel

interpreter_shim.install()
register_on_cpu()
_DEVICE = re.compile(r"(device=)?(?:'cuda:0'|device\(type='cuda', index=0\))")


def poisoned(size: Any, stride: Any, dtype: torch.dtype) -> Tensor:
    """Memory as a kernel finds it: NaN, or the largest integer, so that what nobody wrote shows."""
    poison = torch.nan if dtype.is_floating_point else dtype is torch.bool or torch.iinfo(dtype).max
    return torch.empty_strided(size, stride, dtype=dtype).fill_(poison)


class _Kernel:
    """In the place of a loaded kernel: a launch interprets."""

    def __init__(self, name: str, source: str) -> None:
        self.autotuner = Autotuner(GeneratedKernel(name, (), "", source))

    def run(self, *values: Any, stream: Any = None) -> None:
        self.autotuner.interpret(values)


def _stand_in() -> None:
    private(triton_helpers, "set_driver_to_gpu")
    triton_helpers.set_driver_to_gpu = lambda: None
    for name, replacement in {"triton": lambda _, name, source, *__, **___: _Kernel(name, source),
                              "wait": lambda *_: None}.items():
        private(async_compile.AsyncCompile, name)
        setattr(async_compile.AsyncCompile, name, replacement)
    torch._C._cuda_getCurrentRawStream = lambda _: 0
    private(torch._C._dynamo.guards, "_empty_strided_cuda")
    torch._C._dynamo.guards._empty_strided_cuda = poisoned
    torch.cuda._DeviceGuard = lambda _: contextlib.nullcontext()
    torch.cuda.set_device = lambda _: None


_stand_in()


def run_program(code: str, packed: bytes) -> bytes:
    """What the generated program's ``call`` returns for the packed arguments, and those that it writes, by position."""
    on_cpu = _DEVICE.sub(lambda m: f"{m[1] or ''}torch.device('cpu')", code)
    scope: dict[str, Any] = {"__name__": "generated", "__file__": "<generated>"}
    exec(compile(on_cpu, "<generated>", "exec"), scope)
    call = scope["call"] if "call" in scope else scope["Runner"](partitions=[]).call
    before, arguments = unpack(packed), unpack(packed)
    results = list(call(list(arguments)))
    written = {i: a for i, (a, b) in enumerate(zip(arguments, before, strict=True))
               if isinstance(a, Tensor) and not torch.equal(a, b)}
    return pack((results, written))


def run_kernel(module: str, name: str, grid: tuple[int, ...], packed: bytes) -> bytes:
    """The arguments of a hand-written kernel, by name, after it ran on them."""
    arguments = unpack(packed)
    getattr(importlib.import_module(module), name)[grid](**arguments)
    return pack(arguments)
