"""One step, in place: against the formula in float64, the whole scans, and transformers' functions."""

import pytest
import torch
from transformers.models.mamba2.modeling_mamba2 import mamba2_selective_state_update

from tests.inductor_kernels.state_space.helpers import assert_as_exact, codes, double, poison
from torchqx.inductor_kernels import chunk_scan as _chunk_scan  # noqa: F401  registers the operator
from torchqx.inductor_kernels import selective_scan as _selective_scan  # noqa: F401
from torchqx.inductor_kernels.state_update import state_update_naive

op = torch.ops.torchqx.state_update


def mamba(batch, channels, states):
    return {"state": torch.randn(batch, channels, states), "x": torch.randn(batch, channels),
            "dt": torch.randn(batch, channels) - 2, "A": -torch.rand(channels, states) * states,
            "B": torch.randn(batch, states), "C": torch.randn(batch, states), "D": torch.randn(channels),
            "z": torch.randn(batch, channels), "dt_bias": torch.randn(channels), "dt_softplus": True}


def mamba2(batch, heads, width, groups, states):
    """As transformers gives them: what belongs to a head is expanded."""
    return {"state": torch.randn(batch, heads, width, states), "x": torch.randn(batch, heads, width),
            "dt": (torch.randn(batch, heads, 1) - 2).expand(-1, -1, width),
            "A": (-torch.rand(heads, 1, 1) * 16).expand(-1, width, states), "B": torch.randn(batch, groups, states),
            "C": torch.randn(batch, groups, states), "D": torch.randn(heads, 1).expand(-1, width),
            "z": torch.randn(batch, heads, width), "dt_bias": torch.randn(heads, 1).expand(-1, width),
            "dt_softplus": True}


def compare(given):
    exact_given, plain_given = double(given), given | {"state": given["state"].clone()}
    exact, plain = state_update_naive(**exact_given, out_dtype=torch.float64), state_update_naive(**plain_given)
    poison(given["x"].shape)
    assert_as_exact(op(**given), plain, exact)
    assert_as_exact(given["state"], plain_given["state"], exact_given["state"])


@pytest.mark.parametrize(("batch", "channels", "states"), [
    (1, 16, 16), (2, 63, 17), (3, 100, 8), (1, 1, 1), (1, 1000, 64), (2, 33, 128)])
def test_mamba(batch, channels, states):
    compare(mamba(batch, channels, states))


@pytest.mark.parametrize(("batch", "heads", "width", "groups", "states"), [
    (1, 4, 64, 1, 128), (2, 6, 33, 2, 17), (1, 3, 63, 3, 16), (2, 1, 5, 1, 100)])
def test_mamba2(batch, heads, width, groups, states):
    compare(mamba2(batch, heads, width, groups, states))
    given = mamba2(batch, heads, width, groups, states)
    compare(given | {"A": -torch.rand(heads, width, states)})  # a decay per element


@pytest.mark.parametrize("left_out", ["D", "z", "dt_bias", "dt_softplus"])
def test_each_option_alone(left_out):
    given = mamba(1, 20, 16)
    del given[left_out]
    compare(given)


@pytest.mark.parametrize("dt", [-1e4, -20.0, 20.1, 1e4])
def test_extreme_steps(dt):
    compare(mamba(1, 20, 16) | {"dt_bias": torch.full((20,), dt)})
    compare(mamba2(1, 2, 20, 1, 16) | {"dt_bias": torch.full((2, 20), dt)})


def test_bfloat16_state_and_operands():
    given = mamba(2, 33, 20)
    given = {name: t.bfloat16() if isinstance(t, torch.Tensor) else t for name, t in given.items()}
    exact = double(given)
    expected = state_update_naive(**exact, out_dtype=torch.float64)
    y = op(**given, out_dtype=torch.bfloat16)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=0.004, atol=1e-4)
    torch.testing.assert_close(given["state"].double(), exact["state"], rtol=0.004, atol=1e-5)


def test_strides_do_not_matter():
    given = mamba(2, 35, 17)
    again = given | {"state": given["state"].clone()}
    expected = op(**given)
    sliced = {name: torch.stack([t, t], -1)[..., 0] if isinstance(t, torch.Tensor) and name != "state" else t
              for name, t in again.items()}
    assert torch.equal(op(**sliced), expected)
    assert torch.equal(again["state"], given["state"])


def test_prefill_then_decode_equals_the_whole_scan():
    u, delta, z = (torch.randn(2, 40, 30) for _ in range(3))
    b, c = torch.randn(2, 16, 30), torch.randn(2, 16, 30)
    shared = {"A": -torch.rand(40, 16) * 8, "D": torch.randn(40)}
    y, last = torch.ops.torchqx.selective_scan(u, delta, B=b, C=c, z=z, delta_softplus=True, **shared)
    _, state = torch.ops.torchqx.selective_scan(u[..., :20], delta[..., :20], B=b[..., :20], C=c[..., :20],
                                                delta_softplus=True, **shared)
    for t in range(20, 30):
        step = op(state, u[..., t], delta[..., t], B=b[..., t], C=c[..., t], z=z[..., t], dt_softplus=True, **shared)
        torch.testing.assert_close(step, y[..., t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_mamba2_prefill_then_decode_equals_the_whole_scan():
    x, dt, a = torch.randn(2, 30, 4, 20), torch.randn(2, 30, 4), -torch.rand(4) * 8
    b, c = torch.randn(2, 30, 2, 16), torch.randn(2, 30, 2, 16)
    y, last = torch.ops.torchqx.chunk_scan(x, dt, a, b, c, dt_softplus=True)
    _, state = torch.ops.torchqx.chunk_scan(x[:, :20], dt[:, :20], a, b[:, :20], c[:, :20], dt_softplus=True)
    for t in range(20, 30):
        step = op(state, x[:, t], dt[:, t, :, None].expand(-1, -1, 20), a[:, None, None].expand(-1, 20, 16), b[:, t],
                  c[:, t], dt_softplus=True)
        torch.testing.assert_close(step, y[:, t], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last, rtol=1e-5, atol=1e-5)


def test_as_transformers_computes_it():
    given = mamba2(2, 4, 20, 2, 16)
    again = given | {"state": given["state"].clone()}
    theirs = mamba2_selective_state_update(hidden_states=again.pop("x"), **again)
    torch.testing.assert_close(op(**given), theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(given["state"], again["state"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(threads):
    given = mamba2(4, 24, 64, 1, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        compare(given)
    finally:
        torch.set_num_threads(before)


def coded(dtype, rows, scales=4):
    """Codes for channels ``rows``: (D,), or (H, P) with two groups of states; ``scales`` for x, z and the output."""
    groups = (2,) if len(rows) == 2 else ()
    rate = codes((8, 1, 1)).expand(*rows, 17) if groups else codes((*rows, 17))
    return {"state": torch.randn(2, *rows, 17), **{name: codes((2, *rows), dtype) for name in ("x", "dt", "z")},
            "A": rate, "D": codes(rows), **{name: codes((2, *groups, 17), dtype) for name in ("B", "C")},
            "dt_softplus": True, "B_scale": torch.rand(groups or 1) * 0.02 + 0.01,
            **{f"{name}_scale": torch.rand(1) * 0.03 + 0.01 for name in ("dt", "A", "C", "D")},
            **{f"{name}_scale": torch.rand(scales) * 0.02 + 0.01 for name in ("x", "z")},
            "out_scale": torch.rand(scales) * 0.03 + 0.07, "out_dtype": dtype}


SCALES = [((36,), 4), ((36,), 36), ((8, 20), 4), ((8, 63), 8), ((8, 63), 8 * 63), ((8, 20), 5)]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize(("rows", "scales"), SCALES)
def test_codes(dtype, rows, scales):
    given = coded(dtype, rows, scales)
    compare({name: value for name, value in given.items() if not name.startswith("out_")})
    again = given | {"state": given["state"].clone()}
    found, wanted = op(**given), state_update_naive(**again)
    assert found.dtype == dtype
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert (found != wanted).float().mean() < 0.02


def test_opcheck():
    torch.library.opcheck(op, (), mamba(2, 6, 5))
    torch.library.opcheck(op, (), mamba2(2, 4, 6, 2, 5))
