"""A graph as Inductor lowers it for a GPU that is not there: to be counted, compiled, and run by the interpreter."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from sympy import Expr
from torch import SymInt, Tensor
from torch._subclasses.fake_tensor import FakeTensor

from torchqx.errors import UnsupportedError
from torchqx.testing.interpreter import run_program
from torchqx.testing.offline import compile_generated
from torchqx.testing.resources import Resources
from torchqx.testing.workers import COMPILER
from torchqx.testing.wrapper import GeneratedKernel, WrapperText

Grid = tuple[int, int, int]


@dataclass
class GpuProgram:
    """One lowered graph.

    Attributes:
        arch: the architecture it was lowered for; "gfx942" gives other code than "sm_90".
        code: the whole generated program.
        text: its kernels, launches and calls.
        operations: ATen operations that compute something, views aside: launches, if nothing were fused.
        grids: blocks of each launch, in order; None where they depend on sizes known at run time.
        interpreted: whether ``run`` computes; otherwise it gives zeros, at once.
        entry: runs the graph with its flat inputs; set by who lowers it.
    """

    arch: str
    code: str
    text: WrapperText
    operations: int
    grids: list[Grid | None]
    inputs: list[Any] = field(repr=False)
    outputs: list[Any] = field(repr=False)
    interpreted: bool = True
    entry: Callable[..., Any] | None = field(default=None, repr=False)
    _compiled: dict[bool, Future] = field(default_factory=dict, repr=False)

    @property
    def kernels(self) -> tuple[GeneratedKernel, ...]:
        return self.text.kernels

    @property
    def launched(self) -> list[str]:
        """Kinds of the launches, in order: "template", "pointwise", ..."""
        return [launch.kernel.kind for launch in self.text.launches]

    @property
    def kernel_count(self) -> int:
        """Launches of Triton kernels; what libraries do is in :attr:`extern_calls`."""
        return len(self.text.launches)

    @property
    def extern_calls(self) -> tuple[str, ...]:
        return self.text.extern_calls

    def start_compiling(self, every: bool = False) -> None:
        """Have the compiling process begin; :meth:`compile` waits for it."""
        if every not in self._compiled:
            self._compiled[every] = compile_generated(self.kernels, self.arch, every)

    def compile(self, every: bool = False) -> dict[str, list[Resources]]:
        """Kernel name -> what it takes of the GPU, in its first configuration, or in ``every`` one.

        Raises:
            UnsupportedError: the compiler ended its process.
        """
        self.start_compiling(every)
        reports = COMPILER.result(self._compiled[every])
        return {kernel.name: report for kernel, report in zip(self.kernels, reports, strict=True)}

    def run(self, *inputs: Any) -> Any:
        """The result for CPU tensors: the generated program, its kernels interpreted."""
        assert self.entry is not None
        with torch.no_grad():
            return self.entry(*inputs)

    def call(self, arguments: Sequence[Tensor | int]) -> list[Any]:
        """What Inductor calls: fake tensors, with which it is tried out, give fake results."""
        arguments = list(arguments)
        if any(isinstance(a, FakeTensor) for a in arguments):
            return list(self.outputs)
        if any(isinstance(a, Tensor) and a.device.type != "cpu" for a in arguments):
            raise UnsupportedError("an argument on a device", where="GpuProgram",
                                   remedy="give CPU tensors: the program runs in the interpreter.")
        if not self.interpreted:
            sizes = {s.node.expr: a for s, a in zip(self.inputs, arguments, strict=True) if isinstance(s, SymInt)}
            return [_zeros(o, sizes) for o in self.outputs]
        return run_program(self.code, arguments)


def _zeros(fake: Any, sizes: Mapping[Expr, int]) -> Any:
    """What ``fake`` stands for where its symbols are ``sizes``; all numbers of a tensor are 0."""
    def known(size: int | SymInt) -> int:
        return int(size.node.expr.xreplace(sizes)) if isinstance(size, SymInt) else size

    return torch.zeros([known(s) for s in fake.shape], dtype=fake.dtype) if isinstance(fake, Tensor) else known(fake)
