"""The state-space operators' Triton kernels without a GPU: launched on CPU tensors, or lowered with what calls them."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from tests.inductor_kernels.state_space.helpers import Operands, assert_as_exact, double
from torchqx.inductor_kernels.state_space.triton_launch import named
from torchqx.testing import GpuProgram, interpret, lower_for_gpu

OUTPUTS = ("y", "last")


def run(gpu: Any, op: Any, operands: Operands) -> Any:
    """What module ``gpu`` computes for ``op``, its launches interpreted; outputs are NaN, or 77, before."""
    def launch(kernel: Any, grid: tuple[int, ...], arguments: Operands, **_: int) -> None:
        for name in OUTPUTS:
            if name in arguments:
                arguments[name].fill_(torch.nan if arguments[name].is_floating_point() else 77)
        after = interpret(kernel, grid, **arguments)
        for name in (*OUTPUTS, "state"):
            if isinstance(arguments.get(name), Tensor):
                arguments[name].copy_(after[name])

    with mock.patch.object(gpu, "launch", launch):
        return getattr(gpu, op._qualified_op_name.split("::")[1])(named(op.default, (), operands))


def compare(gpu: Any, op: Any, naive: Callable[..., Any], operands: Operands) -> None:
    """Results, and a state that is written, are as near to the formula in float64 as the formula in float32 is."""
    exact, plain, state = double(operands), dict(operands), operands.get("state")
    if state is not None:
        exact["state"], plain["state"] = state.double(), state.clone()
    results = zip(*(r if isinstance(r, tuple) else (r,) for r in (
        run(gpu, op, operands), naive(**plain), naive(**exact, out_dtype=torch.float64))), strict=True)
    for result, usual, wanted in results:
        assert_as_exact(result, usual, wanted)
    if state is not None and state.numel() > 0:
        assert_as_exact(state, plain["state"], exact["state"])


def compare_codes(gpu: Any, op: Any, naive: Callable[..., Any], operands: Operands) -> None:
    """Codes are those of the formula, but for values next to the middle of two."""
    again = {name: v.clone() if name == "state" else v for name, v in operands.items()}
    found, wanted = (r[0] if isinstance(r, tuple) else r for r in (run(gpu, op, operands), naive(**again)))
    assert found.dtype == wanted.dtype == operands["out_dtype"]
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert (found != wanted).float().mean() < 0.02


def lower(op: Any, operands: Operands, arch: str = "sm_90") -> tuple[GpuProgram, list[Tensor]]:
    """The program of one call, and its inputs."""
    tensors = {name: v for name, v in operands.items() if isinstance(v, Tensor)}
    rest = {name: v for name, v in operands.items() if name not in tensors}
    return lower_for_gpu(lambda *given: op(**dict(zip(tensors, given, strict=True)), **rest), list(tensors.values()),
                         arch), list(tensors.values())


def one_kernel(op: Any, naive: Callable[..., Any], operands: Operands) -> None:
    """Lowered, a call is one launch of ours and nothing else; its results are the formula's."""
    program, inputs = lower(op, operands)
    assert program.launched == ["user_autotune"]
    assert not program.extern_calls
    for result, wanted in zip(program.run(*inputs), naive(**operands), strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-4)


def spills(op: Any, operands: Operands, arch: str) -> int:
    """Bytes per thread that the only Triton kernel of ours spills."""
    reports = lower(op, operands, arch)[0].compile()
    return max(r.spills for kernel in reports.values() for r in kernel)
