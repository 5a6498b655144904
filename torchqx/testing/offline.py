"""Compiling kernels for GPUs that are not there. In another process, since LLVM ends a process over some AMD errors."""

import importlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import triton
from triton.compiler import ASTSource

from torchqx.testing.autotuner import Autotuner
from torchqx.testing.devices import architecture
from torchqx.testing.fake_cuda import fake_cuda
from torchqx.testing.resources import Resources, resources
from torchqx.testing.workers import COMPILER
from torchqx.testing.wrapper import GeneratedKernel


def compile_offline(kernel: Any, signature: Mapping[str, str], constexprs: Mapping[str, Any] | None = None,
                    arch: str = "sm_90", divisible_by_16: Sequence[str] | None = None, **options: int) -> Resources:
    """Compile a hand-written ``@triton.jit`` kernel, a name of a module, for ``arch``.

    Args:
        signature: argument -> type, "*bf16" for a pointer, "i32"; those of ``constexprs`` may be left out.
        divisible_by_16: arguments known to be multiples of 16, as the JIT finds out at a launch; default all pointers.
        options: num_warps, num_stages, maxnreg.

    Raises:
        UnsupportedError: an unknown architecture, or the compiler ended its process.
    """
    architecture(arch)
    return COMPILER(_compile_named, kernel.fn.__module__, kernel.fn.__name__, dict(signature), dict(constexprs or {}),
                    arch, divisible_by_16, options)


def _compile_named(module: str, name: str, signature: dict[str, str], constexprs: dict[str, Any], arch: str,
                   divisible_by_16: Sequence[str] | None, options: dict[str, int]) -> Resources:
    kernel = getattr(importlib.import_module(module), name)
    names = kernel.arg_names
    kinds = {n: "constexpr" if n in constexprs else signature[n] for n in names}
    if divisible_by_16 is None:
        divisible_by_16 = [n for n in names if kinds[n].startswith("*")]
    source = ASTSource(fn=kernel, signature=kinds, constexprs={(names.index(n),): v for n, v in constexprs.items()},
                       attrs={(names.index(n),): [["tt.divisibility", 16]] for n in divisible_by_16})
    config = ", ".join(f"{n}: {v}" for n, v in (constexprs | options).items())
    return resources(triton.compile(source, target=architecture(arch).target, options=options), config)


def compile_generated(kernels: Sequence[GeneratedKernel], arch: str, every: bool = False) -> Future:
    """Start compiling Inductor's kernels; the future's result is one list of resources per kernel.

    Args:
        every: every configuration among which the kernel would be tuned, not the first alone.
    """
    return COMPILER.submit(_compile_loaded, list(kernels), arch, every)


def _compile_loaded(kernels: list[GeneratedKernel], arch: str, every: bool) -> list[list[Resources]]:
    with fake_cuda(arch):
        return [Autotuner(kernel).compile(every) for kernel in kernels]
