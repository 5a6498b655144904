"""The selective scan's kernel against its formula in float64; gradients; codes."""

import pytest
import torch

from tests.inductor_kernels.state_space.helpers import (
    assert_as_exact,
    channels_last,
    codes,
    double,
    poison,
    trainable,
    turn,
    with_threads,
)
from torchqx.errors import TrainingError
from torchqx.inductor_kernels.selective_scan import selective_scan_naive

op = torch.ops.torchqx.selective_scan


def operands(batch, channels, steps, states, groups=None, dtype=torch.float32):
    """As a Mamba block gives them: u and z with neighbouring channels, delta with neighbouring steps."""
    grouped = (batch, states, steps) if groups is None else (batch, groups, states, steps)
    floats = {
        "u": channels_last(batch, channels, steps), "delta": torch.randn(batch, channels, steps) - 2,
        "A": -torch.rand(channels, states) * states, "B": torch.randn(grouped), "C": torch.randn(grouped),
        "D": torch.randn(channels), "z": channels_last(batch, channels, steps), "delta_bias": torch.randn(channels),
        "initial_state": torch.randn(batch, channels, states),
    }
    return {name: t.to(dtype) for name, t in floats.items()} | {"delta_softplus": True}


def compare(given):
    poison(given["u"].shape, given["A"].shape)
    y, last = op(**given)
    exact, exact_last = selective_scan_naive(**double(given), out_dtype=torch.float64)
    plain, plain_last = selective_scan_naive(**given)
    assert_as_exact(y, plain, exact)
    assert_as_exact(last, plain_last, exact_last)


@pytest.mark.parametrize(("batch", "channels", "steps", "states", "groups"), [
    (1, 16, 1, 8, None), (2, 63, 63, 16, None), (1, 100, 100, 17, None), (1, 16, 1000, 64, None), (2, 63, 1, 128, 1),
    (1, 100, 33, 16, 5), (3, 63, 40, 8, 3), (1, 1, 32, 1, None), (1, 17, 65, 20, None)])
def test_odd_sizes(batch, channels, steps, states, groups):
    compare(operands(batch, channels, steps, states, groups))


@pytest.mark.parametrize("left_out", ["D", "z", "delta_bias", "initial_state", "delta_softplus"])
def test_each_option_alone(left_out):
    given = operands(1, 20, 35, 16)
    given["delta"], given["delta_bias"] = given["delta"].abs() / 10, given["delta_bias"].abs() / 10
    del given[left_out]
    compare(given)


def test_long_sequence():
    compare(operands(1, 16, 16384, 16))


@pytest.mark.parametrize("delta", [-1e4, -90.0, -20.0, 5.0, 19.9, 20.1, 90.0, 1e4])
def test_extreme_steps(delta):
    given = operands(1, 18, 40, 16) | {"delta_bias": torch.full((18,), delta)}
    compare(given)


def test_growing_states():
    compare(operands(1, 18, 40, 16) | {"A": torch.rand(18, 16) * 0.1})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    given = operands(2, 33, 50, 16, dtype=dtype)
    y, last = op(**given, out_dtype=dtype)
    exact, exact_last = selective_scan_naive(**double(given), out_dtype=torch.float64)
    assert y.dtype == dtype
    assert last.dtype == torch.float32
    assert torch.equal(y, op(**given)[0].to(dtype))
    torch.testing.assert_close(op(**given)[0].double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.double(), exact_last, rtol=1e-4, atol=1e-4)


def test_strides_do_not_matter():
    given = operands(2, 35, 70, 16, 5)
    expected = op(**given)
    sliced = {name: torch.stack([t, t], -1)[..., 0] if isinstance(t, torch.Tensor) else t for name, t in given.items()}
    for other in (turn(given), sliced):
        for result, wanted in zip(op(**other), expected, strict=True):
            assert torch.equal(result, wanted)


@pytest.mark.parametrize("threads", [2, 3])
def test_same_result_for_any_number_of_threads(threads):
    given = operands(3, 100, 64, 16)
    expected = with_threads(1, lambda: op(**given))
    assert all(torch.equal(a, b) for a, b in zip(with_threads(threads, lambda: op(**given)), expected, strict=True))


def test_one_scan_or_two():
    given = operands(1, 40, 90, 16)
    y, last = op(**given)
    cut = 37

    def part(begin, end, state):
        cuts = {name: given[name][..., begin:end] for name in ("u", "delta", "B", "C", "z")}
        return op(**given | cuts | {"initial_state": state})

    first, state = part(0, cut, given["initial_state"])
    second, end = part(cut, 90, state)
    torch.testing.assert_close(torch.cat([first, second], -1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-5)


def coded(batch=2, channels=36, steps=50, states=16, groups=None, dtype=torch.int8):
    grouped = (batch, states, steps) if groups is None else (batch, groups, states, steps)
    sequence = (batch, channels, steps)
    return {"u": codes(sequence, dtype), "delta": codes(sequence, dtype), "A": codes((channels, states)),
            "B": codes(grouped, dtype), "C": codes(grouped, dtype), "D": codes((channels,)),
            "z": codes(sequence, dtype), "delta_bias": torch.randn(channels) - 2, "delta_softplus": True,
            **{f"{name}_scale": torch.rand(1) * 0.03 + 0.01 for name in ("u", "delta", "A", "B", "C", "D", "z")}}


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("groups", [None, 3])
def test_codes(groups, dtype):
    given = coded(groups=groups, dtype=dtype)
    if groups is not None:
        given |= {"u_scale": torch.rand(6) * 0.02 + 0.01, "B_scale": torch.rand(3) * 0.02 + 0.01}
    compare(given)
    exact = selective_scan_naive(**double(given), out_dtype=torch.float64)[0]
    out_scale = exact.abs().amax((0, 2)).float().unflatten(0, (4, 9)).amax(1) / 100
    y = op(**given, out_scale=out_scale, out_dtype=dtype)[0]
    wanted = selective_scan_naive(**given, out_scale=out_scale, out_dtype=dtype)[0]
    assert y.dtype == dtype
    assert (y.int() - wanted.int()).abs().max() <= 1
    assert (y != wanted).float().mean() < 0.01
    clipped = op(**given, out_scale=out_scale / 4, out_dtype=dtype)[0].int() - (128 if dtype == torch.uint8 else 0)
    assert (clipped.min(), clipped.max()) == (-127, 127)


def test_some_operands_may_be_codes():
    given = operands(1, 33, 20, 16) | {"z": codes((1, 33, 20)), "z_scale": torch.tensor([0.02])}
    compare(given)


@pytest.mark.parametrize(("groups", "softplus"), [(None, True), (2, False)])
def test_gradients(groups, softplus):
    given = double(operands(2, 4, 5, 3, groups))
    given["delta"] = given["delta"].abs() if not softplus else given["delta"]
    names = [name for name, t in given.items() if isinstance(t, torch.Tensor)]
    tensors = [given[name].contiguous().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(
        lambda *t: op(**dict(zip(names, t, strict=True)), delta_softplus=softplus, out_dtype=torch.float64), tensors)


def test_gradients_in_float32_without_options():
    given = operands(1, 6, 7, 3)
    given = {name: given[name].detach().requires_grad_() for name in ("u", "delta", "A", "B", "C")}
    twin = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    op(**given, delta_softplus=True)[0].square().sum().backward()
    op(**twin, delta_softplus=True, out_dtype=torch.float64)[0].square().sum().backward()
    for name, t in given.items():
        torch.testing.assert_close(t.grad.double(), twin[name].grad, rtol=1e-4, atol=1e-5)


def test_codes_have_no_gradient():
    given = coded()
    given["delta_bias"].requires_grad_()
    with pytest.raises(TrainingError):
        op(**given)
    with torch.no_grad():
        op(**given)


def test_opcheck():
    given = operands(1, 6, 7, 3)
    torch.library.opcheck(op, (), given)
    torch.library.opcheck(op, (), trainable(given))
    torch.library.opcheck(op, (), coded() | {"out_scale": torch.ones(1), "out_dtype": torch.uint8})
