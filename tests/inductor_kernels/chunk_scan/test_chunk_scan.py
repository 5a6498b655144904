"""Mamba2's scan: the kernel against its formula in float64 and transformers' chunked form; gradients; codes."""

import pytest
import torch
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

from tests.inductor_kernels.state_space.helpers import (
    assert_as_exact,
    codes,
    double,
    poison,
    trainable,
    turn,
    with_threads,
)
from torchqx.errors import ShapeError, TrainingError
from torchqx.inductor_kernels.chunk_scan import check, chunk_scan_naive

op = torch.ops.torchqx.chunk_scan


def operands(batch, steps, heads, width, groups, states, dtype=torch.float32):
    floats = {
        "x": torch.randn(batch, steps, heads, width), "dt": torch.randn(batch, steps, heads) - 2,
        "A": -torch.rand(heads) * 16, "B": torch.randn(batch, steps, groups, states),
        "C": torch.randn(batch, steps, groups, states), "D": torch.randn(heads),
        "z": torch.randn(batch, steps, heads, width), "dt_bias": torch.randn(heads),
        "initial_states": torch.randn(batch, heads, width, states),
    }
    return {name: t.to(dtype) for name, t in floats.items()} | {"dt_softplus": True}


def compare(given):
    poison(given["x"].shape)
    y, last = op(**given)
    exact, exact_last = chunk_scan_naive(**double(given), out_dtype=torch.float64)
    plain, plain_last = chunk_scan_naive(**given)
    assert_as_exact(y, plain, exact)
    assert_as_exact(last, plain_last, exact_last)


@pytest.mark.parametrize(("batch", "steps", "heads", "width", "groups", "states"), [
    (1, 1, 2, 16, 1, 8), (2, 63, 6, 33, 2, 17), (1, 100, 3, 63, 3, 16), (1, 1000, 2, 16, 1, 64), (1, 65, 20, 8, 4, 128),
    (2, 32, 1, 1, 1, 1), (1, 33, 17, 100, 1, 20)])
def test_odd_sizes(batch, steps, heads, width, groups, states):
    compare(operands(batch, steps, heads, width, groups, states))


@pytest.mark.parametrize("left_out", ["D", "z", "dt_bias", "initial_states", "dt_softplus"])
def test_each_option_alone(left_out):
    given = operands(1, 35, 3, 20, 1, 16)
    given["dt"], given["dt_bias"] = given["dt"].abs() / 10, given["dt_bias"].abs() / 10
    del given[left_out]
    compare(given)


def test_skip_connection_per_row_and_limits_of_dt():
    compare(operands(1, 35, 3, 20, 1, 16) | {"D": torch.randn(3, 20), "dt_min": 0.05, "dt_max": 0.3})


def test_long_sequence():
    compare(operands(1, 16384, 1, 16, 1, 8))


@pytest.mark.parametrize("dt", [-1e4, -90.0, -20.0, 0.0, 5.0, 20.1, 1e4])
def test_extreme_steps(dt):
    compare(operands(1, 40, 3, 18, 1, 16) | {"dt_bias": torch.full((3,), dt)})


def test_decays_that_change_abruptly():
    """Steps of all sizes next to each other: the running exponent starts anew in the middle of a block."""
    given = operands(1, 200, 4, 18, 1, 16)
    given["dt"] = torch.rand(1, 200, 4).pow(8) * 40 - 3
    compare(given)


def test_growing_states():
    compare(operands(1, 40, 3, 18, 1, 16) | {"A": torch.rand(3)})


def test_non_finite_steps_stay_in_their_head():
    given = operands(1, 70, 3, 18, 1, 16)
    given["dt"][0, 40, 1] = float("nan")
    y, last = op(**given)
    assert y[:, 40:, 1].isnan().all()
    assert last[:, 1].isnan().all()
    assert not y[:, :40].isnan().any()
    assert not y[:, :, [0, 2]].isnan().any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(dtype):
    given = operands(2, 50, 4, 33, 2, 16, dtype=dtype)
    y = op(**given, out_dtype=dtype)[0]
    assert y.dtype == dtype
    assert torch.equal(y, op(**given)[0].to(dtype))
    exact, exact_last = chunk_scan_naive(**double(given), out_dtype=torch.float64)
    torch.testing.assert_close(op(**given)[0].double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(op(**given)[1].double(), exact_last, rtol=1e-4, atol=1e-4)


def test_as_transformers_computes_it():
    given = operands(2, 75, 4, 32, 2, 16) | {"dt_min": 0.001, "dt_max": 0.5}
    y, last = op(**given | {"z": None})
    names = ("dt", "A", "B", "C", "D", "dt_bias", "initial_states", "dt_softplus")
    theirs, their_last = mamba2_chunk_scan(given["x"], **{name: given[name] for name in names}, chunk_size=32,
                                           dt_limit=(0.001, 0.5), return_final_states=True)
    torch.testing.assert_close(y, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, their_last, rtol=1e-4, atol=1e-4)


def test_strides_do_not_matter():
    given = operands(2, 70, 4, 18, 2, 17)
    expected = op(**given)
    turned = turn(given)
    for result, wanted in zip(op(**turned), expected, strict=True):
        assert torch.equal(result, wanted)


@pytest.mark.parametrize("threads", [2, 3])
def test_same_result_for_any_number_of_threads(threads):
    given = operands(2, 64, 9, 64, 3, 32)
    expected = with_threads(1, lambda: op(**given))
    assert all(torch.equal(a, b) for a, b in zip(with_threads(threads, lambda: op(**given)), expected, strict=True))


def test_one_scan_or_two():
    given = operands(1, 90, 4, 20, 1, 16)
    y, last = op(**given)

    def part(begin, end, states):
        return op(**{name: t[:, begin:end] if name in ("x", "dt", "B", "C", "z") else t for name, t in given.items()}
                  | {"initial_states": states})

    first, states = part(0, 37, given["initial_states"])
    second, end = part(37, 90, states)
    torch.testing.assert_close(torch.cat([first, second], 1), y, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-5, atol=1e-5)


def coded(dtype=torch.int8, scales=4, width=20, steps=50):
    """``scales`` for x and z of eight heads, per group of states for B and C."""
    grouped, wide = (2, steps, 2, 16), (2, steps, 8, width)
    return {"x": codes(wide, dtype), "dt": codes((2, steps, 8), dtype), "A": codes((8,)),
            "B": codes(grouped, dtype), "C": codes(grouped, dtype), "D": codes((8,)), "z": codes(wide, dtype),
            "dt_bias": torch.randn(8) - 2, "dt_softplus": True,
            **{f"{name}_scale": torch.rand(scales) * 0.02 + 0.01 for name in ("x", "z")},
            **{f"{name}_scale": torch.rand(2) * 0.02 + 0.01 for name in ("B", "C")},
            **{f"{name}_scale": torch.rand(1) * 0.03 + 0.01 for name in ("dt", "A", "D")}}


def with_output(given, dtype):
    """The same, asking for codes by as many scales as x has."""
    spread = chunk_scan_naive(**given)[0].abs().amax((0, 1)).flatten().unflatten(0, (given["x_scale"].numel(), -1))
    return given | {"out_scale": spread.amax(1) / 100, "out_dtype": dtype}


SCALES = [(1, 20), (4, 20), (8, 63), (8 * 63, 63), (8 * 32, 32), (5, 20)]
"""Numbers of them and widths of a head: one, per two heads, per head, per channel, across the heads' ends."""


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize(("scales", "width"), SCALES)
def test_codes(dtype, scales, width):
    given = coded(dtype, scales, width)
    compare(given)
    compare(turn(given))
    given = with_output(given, dtype)
    y = op(**given)[0]
    wanted = chunk_scan_naive(**given)[0]
    assert y.dtype == dtype
    assert (y.int() - wanted.int()).abs().max() <= 1
    assert (y != wanted).float().mean() < 0.01


def test_a_scale_per_channel_is_that_of_its_head():
    per_head = coded(scales=8)
    spread = {f"{name}_scale": per_head[f"{name}_scale"].repeat_interleave(20) for name in ("x", "z")}
    assert all(torch.equal(a, b) for a, b in zip(op(**per_head), op(**per_head | spread), strict=True))


@pytest.mark.parametrize("name", ["x", "z", "out"])
def test_scales_that_divide_no_channels_are_refused(name):
    given = coded() | {"out_scale": torch.ones(1), "out_dtype": torch.int8, f"{name}_scale": torch.ones(3)}
    with pytest.raises(ShapeError, match="3 scales"):
        check(**given)
    with pytest.raises(RuntimeError, match="scale"):
        op(**given)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients(groups):
    given = double(operands(2, 4, 2, 3, groups, 3)) | {"dt_max": 0.5, "out_dtype": torch.float64}
    if groups == 2:
        given["D"] = torch.randn(2, 3, dtype=torch.float64)
    names = [name for name, t in given.items() if isinstance(t, torch.Tensor)]
    tensors = [given[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *t: op(**given | dict(zip(names, t, strict=True))), tensors)


def test_codes_have_no_gradient():
    given = coded()
    given["dt_bias"].requires_grad_()
    with pytest.raises(TrainingError):
        op(**given)


def test_opcheck():
    given = operands(1, 6, 2, 3, 1, 5)
    torch.library.opcheck(op, (), given)
    torch.library.opcheck(op, (), trainable(given))
    torch.library.opcheck(op, (), coded() | {"out_scale": torch.ones(1), "out_dtype": torch.uint8})
