"""One step on a GPU that is not there: the Triton kernel against the formula in float64, in place, without spills."""

import pytest
import torch

from tests.inductor_kernels.state_space.interpreted import compare, compare_codes, lower, run, spills
from tests.inductor_kernels.state_update.test_state_update import SCALES, coded, mamba, mamba2
from torchqx.inductor_kernels.state_update import gpu, state_update_naive
from torchqx.testing import ARCHITECTURES

op = torch.ops.torchqx.state_update


@pytest.mark.parametrize(("batch", "channels", "states"), [(1, 1, 1), (2, 63, 17), (1, 1000, 16), (3, 33, 128)])
def test_mamba(batch, channels, states):
    compare(gpu, op, state_update_naive, mamba(batch, channels, states))


@pytest.mark.parametrize(("batch", "heads", "width", "groups", "states"), [
    (1, 4, 64, 1, 128), (2, 6, 33, 2, 17), (1, 3, 63, 3, 16)])
def test_mamba2(batch, heads, width, groups, states):
    given = mamba2(batch, heads, width, groups, states)
    compare(gpu, op, state_update_naive, given)
    compare(gpu, op, state_update_naive, given | {"A": -torch.rand(heads, width, states)})  # a decay per element


def test_an_empty_batch():
    assert run(gpu, op, mamba(0, 20, 16)).shape == (0, 20)


@pytest.mark.parametrize("left_out", ["D", "z", "dt_bias", "dt_softplus"])
def test_each_option_alone(left_out):
    given = mamba(1, 20, 16)
    del given[left_out]
    compare(gpu, op, state_update_naive, given)


@pytest.mark.parametrize("dt", [-1e4, -20.0, 20.1, 1e4])
def test_extreme_steps(dt):
    compare(gpu, op, state_update_naive, mamba(1, 20, 16) | {"dt_bias": torch.full((20,), dt)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_operands_and_strides(dtype):
    given = {name: torch.stack([t, t], -1)[..., 0].to(dtype) if isinstance(t, torch.Tensor) and name != "state" else t
             for name, t in mamba(2, 35, 17).items()}
    compare(gpu, op, state_update_naive, given)


def test_bfloat16_state():
    given = mamba(2, 33, 20)
    given["state"] = given["state"].bfloat16()
    again = given | {"state": given["state"].clone()}
    wanted = state_update_naive(**again)
    y = run(gpu, op, given | {"out_dtype": torch.bfloat16})
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), wanted, rtol=0.004, atol=1e-4)
    torch.testing.assert_close(given["state"], again["state"])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize(("rows", "scales"), SCALES)
def test_codes(dtype, rows, scales):
    given = coded(dtype, rows, scales)
    compare(gpu, op, state_update_naive, {n: v for n, v in given.items() if not n.startswith("out_")})
    compare_codes(gpu, op, state_update_naive, given)


def test_one_kernel_writes_the_state_in_place():
    given = mamba2(2, 4, 20, 2, 16)
    again = given | {"state": given["state"].clone()}
    program, inputs = lower(op, given)
    assert program.launched == ["user_autotune"]
    assert not program.extern_calls
    torch.testing.assert_close(program.run(*inputs), state_update_naive(**again), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given["state"], again["state"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(arch):
    assert spills(op, mamba2(2, 4, 64, 1, 128), arch) == 0
    assert spills(op, coded(torch.int8, (36,)), arch) == 0
    assert spills(op, coded(torch.int8, (8, 64), 8 * 64), arch) == 0
