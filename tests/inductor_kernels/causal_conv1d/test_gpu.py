"""The convolution on a GPU that is not there: the Triton kernel against the formula in float64, and what it takes."""

import pytest
import torch

from tests.inductor_kernels.causal_conv1d.test_causal_conv1d import operands
from tests.inductor_kernels.state_space.helpers import codes
from tests.inductor_kernels.state_space.interpreted import compare, compare_codes, lower, run, spills
from torchqx.inductor_kernels.causal_conv1d import causal_conv1d_naive, causal_conv1d_update_naive, gpu
from torchqx.testing import ARCHITECTURES

op, update = torch.ops.torchqx.causal_conv1d, torch.ops.torchqx.causal_conv1d_update


@pytest.mark.parametrize(("batch", "channels", "steps", "taps"), [
    (1, 16, 1, 4), (2, 63, 63, 4), (1, 100, 100, 3), (1, 5, 40, 1), (1, 3, 2, 20)])
def test_odd_sizes(batch, channels, steps, taps):
    given = operands(batch, channels, steps, taps)
    compare(gpu, op, causal_conv1d_naive, given | {"activation": "silu"})
    compare(gpu, op, causal_conv1d_naive, {"x": given["x"].contiguous(), "weight": given["weight"]})


@pytest.mark.parametrize("past", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("steps", [1, 2, 5, 37])
def test_states(past, steps):
    given, state = operands(2, 35, steps, 4), torch.randn(2, 35, past)
    compare(gpu, op, causal_conv1d_naive, given | {"initial_states": state})
    after = torch.cat([state, given["x"]], -1)[..., steps:]
    compare(gpu, update, causal_conv1d_update_naive, given | {"state": state, "activation": "silu"})
    assert torch.equal(state, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    given = {name: t.to(dtype) for name, t in operands(2, 35, 20, 4).items()} | {"activation": "silu"}
    compare(gpu, op, causal_conv1d_naive, given)
    y = run(gpu, op, given | {"out_dtype": dtype})
    assert y.dtype == dtype
    torch.testing.assert_close(y, causal_conv1d_naive(**given, out_dtype=dtype))


def coded(dtype, steps=40):
    return {"x": codes((2, 36, steps), dtype), "weight": codes((36, 4)), "bias": torch.randn(36),
            "x_scale": torch.rand(4) * 0.02 + 0.01, "weight_scale": torch.rand(36) * 0.02 + 0.01, "activation": "silu"}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_codes(dtype):
    given, state = coded(dtype), codes((2, 36, 3), dtype)
    compare(gpu, op, causal_conv1d_naive, given | {"initial_states": state})
    out = {"out_scale": torch.tensor([0.07, 0.1]), "out_dtype": dtype}
    compare_codes(gpu, op, causal_conv1d_naive, given | {"initial_states": state} | out)
    given = coded(dtype, 2)
    after = torch.cat([state, given["x"]], -1)[..., 2:]
    compare_codes(gpu, update, causal_conv1d_update_naive, given | {"state": state} | out)
    assert torch.equal(state, after)


def test_one_kernel_writes_the_state_in_place():
    given, state = operands(2, 35, 1, 4), torch.randn(2, 35, 4)
    after = torch.cat([state, given["x"]], -1)[..., 1:]
    wanted = causal_conv1d_naive(**given, initial_states=state)
    program, inputs = lower(update, given | {"state": state})
    assert program.launched == ["user_autotune"]
    assert not program.extern_calls
    torch.testing.assert_close(program.run(*inputs), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(state, after)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(arch):
    given = operands(2, 128, 64, 4) | {"activation": "silu"}
    assert spills(op, given | {"initial_states": torch.randn(2, 128, 3)}, arch) == 0
    assert spills(update, coded(torch.int8, 1) | {"state": codes((2, 36, 4))}, arch) == 0
