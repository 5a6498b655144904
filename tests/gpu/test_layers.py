"""Whole layers through sites, rewrite and lowering: few kernels, the eager result, no spills."""

import pytest

from tests.gpu.checks import is_pinned, no_integer_matmul, spilling, wrong_launches, wrong_numbers
from tests.gpu.layers import LAYERS, Layer, LoweredLayer, lower_layer


@pytest.fixture(scope="module", params=LAYERS, ids=lambda layer: layer.name)
def case(request: pytest.FixtureRequest) -> tuple[Layer, LoweredLayer]:
    lowered = lower_layer(request.param)
    lowered.program.start_compiling()
    return request.param, lowered


@pytest.mark.skipif(not is_pinned(), reason="other versions fuse differently")
def test_kernels(case: tuple[Layer, LoweredLayer]) -> None:
    layer, lowered = case
    assert not wrong_launches(lowered.program, layer.launches, layer.extern)


def test_numbers(case: tuple[Layer, LoweredLayer]) -> None:
    layer, lowered = case
    assert not wrong_numbers(lowered.result, lowered.expected, layer.tolerance)


def test_no_sum_is_written(case: tuple[Layer, LoweredLayer]) -> None:
    """What leaves a matmul is scaled already: int32 holds zero points alone, one per row."""
    _, lowered = case
    matmuls = [k for k in lowered.program.kernels if "torchqx.int8_matmul" in k.origins]
    assert matmuls
    assert all("aten.mul" in k.origins for k in matmuls)
    made = [line for line in lowered.program.code.splitlines() if " = empty_strided_cuda(" in line]
    assert made
    assert not any("torch.int32" in line and ", 1), (1, 1), " not in line for line in made)


def test_resources(case: tuple[Layer, LoweredLayer]) -> None:
    _, lowered = case
    reports = lowered.program.compile()
    assert not spilling(reports)
    assert not no_integer_matmul(reports)


@pytest.mark.parametrize("arch", ["sm_80", "gfx942"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_other_architectures(layer: Layer, arch: str) -> None:
    program = lower_layer(layer, arch, False).program
    reports = program.compile()
    assert {r.arch for kernel in reports.values() for r in kernel} == {arch}
    assert not spilling(reports)
