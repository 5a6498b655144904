"""Mamba2's scan on a GPU that is not there: the Triton kernel against the formula in float64, and what it takes."""

import pytest
import torch

from tests.inductor_kernels.chunk_scan.test_chunk_scan import SCALES, coded, operands, with_output
from tests.inductor_kernels.state_space.helpers import turn
from tests.inductor_kernels.state_space.interpreted import compare, compare_codes, one_kernel, run, spills
from torchqx.inductor_kernels.chunk_scan import chunk_scan_naive, gpu
from torchqx.testing import ARCHITECTURES

op = torch.ops.torchqx.chunk_scan


@pytest.mark.parametrize(("batch", "steps", "heads", "width", "groups", "states"), [
    (1, 1, 2, 16, 1, 8), (2, 63, 6, 33, 2, 17), (1, 100, 3, 63, 3, 16), (1, 1000, 1, 16, 1, 64), (1, 65, 8, 8, 4, 128),
    (2, 32, 1, 1, 1, 1), (1, 33, 2, 100, 1, 256)])
def test_odd_sizes(batch, steps, heads, width, groups, states):
    given = operands(batch, steps, heads, width, groups, states)
    compare(gpu, op, chunk_scan_naive, given)
    compare(gpu, op, chunk_scan_naive, turn(given))


@pytest.mark.parametrize("left_out", ["D", "z", "dt_bias", "initial_states", "dt_softplus"])
def test_each_option_alone(left_out):
    given = operands(1, 35, 3, 20, 1, 16)
    given["dt"], given["dt_bias"] = given["dt"].abs() / 10, given["dt_bias"].abs() / 10
    del given[left_out]
    compare(gpu, op, chunk_scan_naive, given)


def test_skip_connection_per_row_and_limits_of_dt():
    given = operands(1, 35, 3, 20, 1, 16) | {"D": torch.randn(3, 20)}
    compare(gpu, op, chunk_scan_naive, given | {"dt_min": 0.05, "dt_max": 0.3})
    compare(gpu, op, chunk_scan_naive, given | {"dt_min": 0.0, "dt_max": float("inf")})


@pytest.mark.parametrize("dt", [-1e4, -20.0, 5.0, 1e4])
def test_extreme_steps(dt):
    compare(gpu, op, chunk_scan_naive, operands(1, 40, 3, 18, 1, 16) | {"dt_bias": torch.full((3,), dt)})


def test_decays_that_change_abruptly():
    """Steps of all sizes next to each other: the differences of the running exponents keep their digits."""
    given = operands(1, 200, 4, 18, 1, 16)
    given["dt"] = torch.rand(1, 200, 4).pow(8) * 40 - 3
    compare(gpu, op, chunk_scan_naive, given)
    given["dt"][:, ::5] = 1e4
    compare(gpu, op, chunk_scan_naive, given)


def test_growing_states():
    compare(gpu, op, chunk_scan_naive, operands(1, 40, 3, 18, 1, 16) | {"A": torch.rand(3)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    given = operands(1, 40, 3, 18, 1, 16, dtype)
    compare(gpu, op, chunk_scan_naive, given)
    y, last = run(gpu, op, given | {"out_dtype": dtype})
    wanted, _ = chunk_scan_naive(**given)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y.float(), wanted, rtol=0.004, atol=1e-3)


@pytest.mark.parametrize(("scales", "width"), SCALES)
def test_codes(scales, width):
    dtype = torch.int8 if scales % 3 else torch.uint8
    given = coded(dtype, scales, width, steps=20)
    compare(gpu, op, chunk_scan_naive, given)
    compare_codes(gpu, op, chunk_scan_naive, with_output(turn(given), dtype))


def test_one_kernel():
    one_kernel(op, chunk_scan_naive, operands(2, 35, 4, 20, 2, 16))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(arch):
    assert spills(op, operands(1, 64, 4, 64, 1, 128), arch) == 0
    assert spills(op, coded(), arch) == 0
    assert spills(op, with_output(coded(scales=8 * 64, width=64), torch.int8), arch) == 0


@pytest.mark.parametrize("states", [16, 256])
def test_nothing_spills_with_other_states(states):
    assert spills(op, operands(1, 64, 4, 64, 1, states), "sm_80") == 0
