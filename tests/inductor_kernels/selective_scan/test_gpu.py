"""The selective scan on a GPU that is not there: the kernel against the formula in float64, and what it takes."""

import pytest
import torch

from tests.inductor_kernels.selective_scan.test_selective_scan import coded, operands
from tests.inductor_kernels.state_space.helpers import turn
from tests.inductor_kernels.state_space.interpreted import compare, compare_codes, one_kernel, run, spills
from torchqx.inductor_kernels.selective_scan import gpu, selective_scan_naive
from torchqx.testing import ARCHITECTURES

op = torch.ops.torchqx.selective_scan


@pytest.mark.parametrize(("batch", "channels", "steps", "states", "groups"), [
    (1, 16, 1, 8, None), (2, 63, 17, 16, None), (1, 100, 9, 17, None), (1, 5, 100, 64, None), (2, 60, 10, 16, 5),
    (1, 1, 8, 1, None), (1, 3, 7, 128, 1)])
def test_odd_sizes(batch, channels, steps, states, groups):
    given = operands(batch, channels, steps, states, groups)
    compare(gpu, op, selective_scan_naive, given)
    compare(gpu, op, selective_scan_naive, turn(given))


@pytest.mark.parametrize("left_out", ["D", "z", "delta_bias", "initial_state", "delta_softplus"])
def test_each_option_alone(left_out):
    given = operands(1, 20, 11, 16)
    given["delta"], given["delta_bias"] = given["delta"].abs() / 10, given["delta_bias"].abs() / 10
    del given[left_out]
    compare(gpu, op, selective_scan_naive, given)


@pytest.mark.parametrize("delta", [-1e4, -20.0, 19.9, 1e4])
def test_extreme_steps(delta):
    compare(gpu, op, selective_scan_naive, operands(1, 18, 10, 16) | {"delta_bias": torch.full((18,), delta)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    given = operands(2, 33, 10, 16, dtype=dtype)
    compare(gpu, op, selective_scan_naive, given)
    y, last = run(gpu, op, given | {"out_dtype": dtype})
    wanted, _ = selective_scan_naive(**given)
    assert (y.dtype, last.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(y.float(), wanted, rtol=0.004, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("groups", [None, 3])
def test_codes(groups, dtype):
    given = coded(steps=11, groups=groups, dtype=dtype)
    if groups is not None:
        given |= {"u_scale": torch.rand(6) * 0.02 + 0.01, "B_scale": torch.rand(3) * 0.02 + 0.01}
    compare(gpu, op, selective_scan_naive, given)
    out_scale = selective_scan_naive(**given)[0].abs().amax((0, 2)).unflatten(0, (4, 9)).amax(1) / 100
    compare_codes(gpu, op, selective_scan_naive, given | {"out_scale": out_scale, "out_dtype": dtype})


def test_one_kernel():
    given = operands(2, 20, 9, 16)
    given |= {name: given[name].mT.contiguous().mT for name in ("B", "C")}  # states are neighbours, as models give them
    one_kernel(op, selective_scan_naive, given)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(arch):
    assert spills(op, operands(2, 128, 64, 16), arch) == 0
    assert spills(op, coded(channels=128), arch) == 0
