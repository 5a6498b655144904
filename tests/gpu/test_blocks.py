"""Each block: its kernels, what they fuse, what they compute, and what they take of three GPUs."""

import pytest
import torch

from tests.gpu.blocks import Block, blocks
from tests.gpu.checks import is_pinned, no_integer_matmul, not_fused, spilling, wrong_launches, wrong_numbers
from torchqx.testing import GpuProgram, lower_for_gpu

BLOCKS = {block.name: block for block in blocks()}
ELSEWHERE = ("sm_80", "gfx942")


@pytest.fixture(scope="module")
def programs() -> dict[str, GpuProgram]:
    """For sm_90; they compile in their own process while the tests run."""
    lowered = {name: lower_for_gpu(block.fn, block.inputs) for name, block in BLOCKS.items()}
    for program in lowered.values():
        program.start_compiling()
    return lowered


@pytest.fixture(params=BLOCKS)
def case(request: pytest.FixtureRequest, programs: dict[str, GpuProgram]) -> tuple[Block, GpuProgram]:
    return BLOCKS[request.param], programs[request.param]


@pytest.mark.skipif(not is_pinned(), reason="other versions fuse differently")
def test_kernels(case: tuple[Block, GpuProgram]) -> None:
    block, program = case
    assert not wrong_launches(program, block.launches)
    assert not not_fused(program, block.fused)


def test_numbers(case: tuple[Block, GpuProgram]) -> None:
    block, program = case
    assert not wrong_numbers(program.run(*block.inputs), block.fn(*block.inputs), block.tolerance)


def test_resources(case: tuple[Block, GpuProgram]) -> None:
    block, program = case
    reports = program.compile()
    assert not spilling(reports)
    assert "torchqx.int8_matmul" not in block.fused or not no_integer_matmul(reports)


@pytest.mark.parametrize("arch", ELSEWHERE)
@pytest.mark.parametrize("name", BLOCKS)
def test_other_architectures(name: str, arch: str) -> None:
    block = BLOCKS[name]
    program = lower_for_gpu(block.fn, block.inputs, arch)
    reports = program.compile()
    assert {r.arch for kernel in reports.values() for r in kernel} == {arch}
    assert not spilling(reports)
    if is_pinned():
        assert not wrong_launches(program, block.launches)


def test_launch_grids(programs: dict[str, GpuProgram]) -> None:
    """Rows of the norm each have a block; a template's tiles cover the result."""
    assert programs["norm, shift, scale, quantize"].grids[0] is not None
    (grid,) = programs["int8 linear"].grids
    assert grid is not None
    assert torch.tensor(grid).prod() >= 1
