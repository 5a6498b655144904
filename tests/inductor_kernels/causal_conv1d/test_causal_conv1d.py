"""The causal convolution and its update: against torch's convolution in float64; states; gradients; codes."""

import pytest
import torch
import torch.nn.functional as F
from transformers.models.mamba.modeling_mamba import causal_conv1d_update

from tests.inductor_kernels.state_space.helpers import assert_as_exact, channels_last, codes, double, poison
from torchqx.errors import TrainingError
from torchqx.inductor_kernels.causal_conv1d import causal_conv1d_naive, causal_conv1d_update_naive

op, update = torch.ops.torchqx.causal_conv1d, torch.ops.torchqx.causal_conv1d_update
SIZES = [(1, 16, 1, 4), (2, 63, 63, 4), (1, 100, 1000, 3), (2, 33, 65, 5), (1, 17, 64, 2), (1, 5, 40, 1), (1, 3, 2, 70)]


def operands(batch, channels, steps, taps):
    return {"x": channels_last(batch, channels, steps), "weight": torch.randn(channels, taps),
            "bias": torch.randn(channels)}


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize(("batch", "channels", "steps", "taps"), SIZES)
def test_odd_sizes(batch, channels, steps, taps, activation):
    given = operands(batch, channels, steps, taps)
    exact = F.conv1d(given["x"].double(), given["weight"].double()[:, None], given["bias"].double(), padding=taps - 1,
                     groups=channels)[..., :steps]
    exact = F.silu(exact) if activation == "silu" else exact
    poison(given["x"].shape)
    for x in (given["x"], given["x"].contiguous(), torch.stack([given["x"], given["x"]], -1)[..., 0]):
        y = op(**given | {"x": x}, activation=activation)
        assert_as_exact(y, causal_conv1d_naive(**given, activation=activation), exact)
    without = op(given["x"], given["weight"])
    torch.testing.assert_close(without.double() + given["bias"].double()[:, None],
                               causal_conv1d_naive(**double(given), out_dtype=torch.float64), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("past", [0, 1, 2, 3, 4, 9])
@pytest.mark.parametrize("steps", [1, 2, 5, 130])
def test_states(past, steps):
    """Of a state, the last W - 1 inputs count; the update leaves the last inputs in it."""
    given, state = operands(2, 35, steps, 4), torch.randn(2, 35, past)
    known = torch.cat([torch.zeros(2, 35, 4), state, given["x"]], -1)
    exact = F.conv1d(known.double(), given["weight"].double()[:, None], given["bias"].double(), groups=35)[..., -steps:]
    y = op(**given, initial_states=state)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    after = torch.cat([state, given["x"]], -1)[..., steps:]
    assert torch.equal(update(state=state, **given), y)
    assert torch.equal(state, after)


def test_prefill_then_decode_equals_the_whole():
    given, cut = operands(2, 40, 20, 4), 11
    y = op(**given, activation="silu")
    state = F.pad(given["x"][..., :cut], (4, 0))[..., -4:].contiguous()
    for t in range(cut, 20):
        step = update(given["x"][..., t : t + 1], state, given["weight"], given["bias"], "silu")
        torch.testing.assert_close(step, y[..., t : t + 1])


def test_as_transformers_updates():
    given, state = operands(2, 40, 1, 4), torch.randn(2, 40, 4)
    again = state.clone()
    theirs = causal_conv1d_update(given["x"], again, given["weight"], given["bias"], "silu")
    torch.testing.assert_close(update(state=state, **given, activation="silu"), theirs)
    assert torch.equal(state, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    given = {name: t.to(dtype) for name, t in operands(2, 35, 50, 4).items()}
    y = op(**given, activation="silu", out_dtype=dtype)
    assert y.dtype == dtype
    exact = causal_conv1d_naive(**double(given), activation="silu", out_dtype=torch.float64)
    torch.testing.assert_close(op(**given, activation="silu").double(), exact, rtol=1e-5, atol=1e-5)
    assert torch.equal(y, op(**given, activation="silu").to(dtype))


def coded(dtype, steps):
    return {"x": codes((2, 36, steps), dtype), "weight": codes((36, 4)), "bias": torch.randn(36),
            "x_scale": torch.rand(1) * 0.02 + 0.01, "weight_scale": torch.rand(36) * 0.02 + 0.01}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("steps", [1, 70])
def test_codes(dtype, steps):
    given, state = coded(dtype, steps), codes((2, 36, 4), dtype)
    exact = causal_conv1d_naive(**double(given), initial_states=state, out_dtype=torch.float64)
    y = op(**given, initial_states=state)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    out = {"out_scale": torch.tensor([0.05]), "out_dtype": dtype, "activation": "silu"}
    again = state.clone()
    found, wanted = update(state=state, **given, **out), causal_conv1d_update_naive(state=again, **given, **out)
    assert found.dtype == dtype
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert (found != wanted).float().mean() < 0.01
    assert torch.equal(state, again)
    assert torch.equal(state[..., -1], given["x"][..., -1])


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("past", [None, 2, 5])
def test_gradients(activation, past):
    given = double(operands(2, 3, 6, 4))
    tensors = [*given.values(), *([] if past is None else [torch.randn(2, 3, past, dtype=torch.float64)])]
    tensors = [t.contiguous().requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: op(*t, activation=activation, out_dtype=torch.float64), tensors)


def test_codes_have_no_gradient():
    given = coded(torch.int8, 5)
    given["bias"].requires_grad_()
    with pytest.raises(TrainingError):
        op(**given)


def test_opcheck():
    given = operands(2, 6, 5, 4)
    torch.library.opcheck(op, (), given)
    torch.library.opcheck(op, (), {name: t.requires_grad_() for name, t in operands(2, 6, 5, 4).items()})
    torch.library.opcheck(update, (), given | {"state": torch.randn(2, 6, 4), "activation": "silu"})
