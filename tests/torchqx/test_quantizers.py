"""Codes, scales and zero points of the affine quantizer."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchqx.errors import ConfigError
from torchqx.quantizers import AffineQuantizer

quantizers = st.builds(
    lambda bits, symmetric, signed, kind: AffineQuantizer(bits, symmetric, kind[0], kind[1], signed=signed),
    st.integers(2, 8), st.booleans(), st.booleans(),
    st.sampled_from([("tensor", None), ("channel", None), ("token", None), ("group", 7)]))
data = st.tuples(st.integers(0, 2**31), st.sampled_from([1e-6, 1.0, 1e4]), st.sampled_from([-3.0, 0.0, 3.0]))


def tensor(seed: int, size: float, centre: float) -> torch.Tensor:
    return (torch.randn(5, 63, generator=torch.Generator().manual_seed(seed)) + centre) * size


@given(quantizers, data)
def test_error_is_at_most_half_a_step(q: AffineQuantizer, of: tuple) -> None:
    x = tensor(*of)
    scale, _ = q.parameters(*q.range_of(x))
    error = q.grouped(q.fake_quantize(x) - x).abs()
    # An affine range is moved by up to half a step so that zero has a code of its own.
    assert bool((error <= scale * (0.5001 if q.symmetric else 1.0001)).all())


@given(quantizers, data, st.floats(0.3, 1.0))
def test_clipping_narrows_the_range(q: AffineQuantizer, of: tuple, ratio: float) -> None:
    x = tensor(*of)
    clipped = replace(q, clip_ratio=ratio)
    whole, _ = q.parameters(*q.range_of(x))
    scale, zero_point = clipped.parameters(*clipped.range_of(x))
    torch.testing.assert_close(scale, (whole * ratio).clamp(min=1e-12))
    covered = clipped.dequantize(clipped.quantize(x, scale, zero_point), scale, zero_point)
    assert float(covered.abs().max()) <= float(x.abs().max()) * ratio + float(scale.max())
    with pytest.raises(ConfigError, match="clip_ratio"):
        replace(q, clip_ratio=ratio + 1)


@given(quantizers, data)
def test_codes_stay_in_range_and_zero_is_exact(q: AffineQuantizer, of: tuple) -> None:
    x = tensor(*of)
    x[:, ::9] = 0
    scale, zero_point = q.parameters(*q.range_of(x))
    codes = q.quantize(x, scale, zero_point)
    assert codes.dtype == q.dtype
    assert codes.shape == x.shape
    assert q.qmin <= int(codes.min())
    assert int(codes.max()) <= q.qmax
    assert not q.dequantize(codes, scale, zero_point)[:, ::9].any()
    torch.testing.assert_close(q.dequantize(codes, scale, zero_point), q.fake_quantize(x))


@given(quantizers, data)
def test_quantizing_twice_changes_nothing(q: AffineQuantizer, of: tuple) -> None:
    x = tensor(*of)
    low, high = q.range_of(x)
    once = q.fake_quantize(x, low, high)
    torch.testing.assert_close(q.fake_quantize(once, low, high), once)


@pytest.mark.parametrize(("bits", "symmetric", "signed", "span"), [
    (8, True, True, (-127, 127)), (8, False, True, (-128, 127)), (8, True, False, (1, 255)),
    (8, False, False, (0, 255)), (4, True, True, (-7, 7)), (4, False, False, (0, 15)), (2, False, True, (-2, 1)),
])
def test_ranges(bits: int, symmetric: bool, signed: bool, span: tuple[int, int]) -> None:
    q = AffineQuantizer(bits, symmetric, signed=signed)
    assert (q.qmin, q.qmax) == span


def test_a_range_that_leaves_out_zero_is_widened() -> None:
    scale, zero_point = AffineQuantizer().parameters(torch.tensor(2.0), torch.tensor(4.0))
    assert float(scale) == pytest.approx(4 / 255)
    assert int(zero_point) == 0


def test_constant_zero() -> None:
    q = AffineQuantizer(granularity="token")
    assert not q.fake_quantize(torch.zeros(3, 5)).any()


@pytest.mark.parametrize(("shape", "kind", "expected"), [
    ((5, 63), ("tensor", None), ()), ((5, 63), ("token", None), (5, 1)), ((2, 5, 63), ("token", None), (2, 5, 1)),
    ((5, 63), ("channel", None), (5, 1)), ((5, 63), ("group", 9), (5, 7, 1)),
])
def test_shapes_of_ranges(shape, kind, expected) -> None:
    q = AffineQuantizer(granularity=kind[0], group_size=kind[1])
    assert q.range_of(torch.randn(shape))[0].shape == expected


def test_none_changes_nothing() -> None:
    x = torch.randn(5, 63)
    assert AffineQuantizer(granularity="none", dynamic=True).fake_quantize(x) is x
    with pytest.raises(ConfigError, match="static range"):
        AffineQuantizer(granularity="none")


def test_groups_have_to_divide() -> None:
    with pytest.raises(ConfigError, match="divisor"):
        AffineQuantizer(granularity="group", group_size=8).range_of(torch.randn(5, 63))
