"""Every check fails on a program that is broken in just its way."""

import torch
from torch import Tensor

from tests.gpu.blocks import Block, blocks
from tests.gpu.checks import (
    no_integer_matmul,
    not_fused,
    relative_error,
    spilling,
    wrong_launches,
    wrong_numbers,
)
from tests.torchqx.testing import kernels
from torchqx.testing import compile_offline, lower_for_gpu


def _block(name: str) -> Block:
    (found,) = (block for block in blocks() if block.name == name)
    return found


def test_an_extra_kernel_is_found() -> None:
    block = _block("int8 linear, bias, gelu, residual, requantize")

    def unfused(*inputs: Tensor) -> Tensor:
        return block.fn(*inputs).float().softmax(-1)  # needs whole rows, which no tile holds

    program = lower_for_gpu(unfused, block.inputs)
    assert program.kernel_count > len(block.launches)
    assert wrong_launches(program, block.launches)


def test_a_call_of_a_library_is_found() -> None:
    block = _block("int8 linear")
    program = lower_for_gpu(lambda x, q, *_: torch._int_mm(x[:32, :96].contiguous(), q[:, :96].T), block.inputs,
                            options={})
    assert wrong_launches(program, block.launches)
    assert not_fused(program, block.fused)


def test_a_wrong_zero_point_is_found() -> None:
    block = _block("int8 linear, bias")
    x, q, scale, sums, x_scale, zero, bias = block.inputs
    program = lower_for_gpu(block.fn, block.inputs)
    assert not wrong_numbers(program.run(*block.inputs), block.fn(*block.inputs), block.tolerance)
    off_by_one = program.run(x, q, scale, sums, x_scale, zero + 1, bias)
    assert wrong_numbers(off_by_one, block.fn(*block.inputs), block.tolerance)


def test_memory_that_nobody_wrote_is_found() -> None:
    result = torch.tensor([1.0, torch.nan])
    assert relative_error(result, torch.tensor([1.0, 2.0])) == torch.inf


def test_a_spill_is_found() -> None:
    report = compile_offline(kernels.greedy, {"x_ptr": "*fp32", "out_ptr": "*fp32"}, {"n": 32}, num_warps=1, maxnreg=32)
    assert spilling({"greedy": [report]})
    assert no_integer_matmul({"greedy": [report]})
