"""The C++ kernel against the float64 formula, and against torch's own error."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchqx.inductor_kernels.attention import attention_naive, is_supported, load

CPU = torch.device("cpu")
DTYPES = [dtype for dtype in (torch.float32, torch.bfloat16) if is_supported(CPU, dtype)]
pytestmark = pytest.mark.skipif(not DTYPES, reason="no AVX512 or no C++ compiler")
op = torch.ops.torchqx.attention.default
FLOAT = (None, None, 0, 255)
LOW = float("-inf")


@pytest.fixture(scope="module", autouse=True)
def kernel() -> None:
    load()


def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False,
        scale: float | None = None, out: tuple = FLOAT) -> Tensor:
    return op(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale, causal, *out)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)


def errors(y: Tensor, exact: Tensor) -> tuple[float, float]:
    """Relative in the Frobenius norm, and the largest."""
    difference = y.double() - exact
    return float(difference.norm() / exact.norm()), float(difference.abs().max())


def check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> None:
    """As exact as torch is, up to a factor 2 and, in float32, a few units in the last place."""
    exact = attention_naive(q, k, v, mask, q.shape[-1] ** -0.5, causal)
    y = run(q, k, v, mask, causal)
    assert y.shape == q.shape
    assert y.dtype == q.dtype
    last = torch.finfo(q.dtype).eps * float(exact.abs().max())
    for own, torchs in zip(errors(y, exact), errors(sdpa(q, k, v, mask, causal), exact), strict=True):
        assert own <= 2 * torchs + 2 * last


SHAPES = [(1, 1, 1, 1, 1, 8), (1, 2, 2, 5, 7, 16), (2, 4, 2, 63, 100, 32), (1, 9, 3, 100, 100, 64),
          (1, 2, 1, 3, 1000, 80), (1, 2, 2, 63, 515, 96), (2, 3, 1, 70, 65, 128), (1, 2, 2, 6, 129, 256),
          (1, 2, 1, 1, 1029, 64), (1, 1, 1, 140, 1030, 40)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_sizes(operands, poisoned, shape, dtype, causal) -> None:
    q, k, v = operands(*shape, dtype)
    poisoned(q)
    check(q, k, v, causal=causal)


def masks(batch: int, heads: int, rows: int, keys: int) -> dict[str, Tensor]:
    keep = torch.rand(batch, heads, rows, keys) > 0.4
    keep[..., 0] = True
    padding = torch.zeros(batch, 1, 1, keys).masked_fill(~keep[:, :1, :1], torch.finfo(torch.float32).min)
    return {
        "bool": keep, "bool of keys": keep[:, :1, :1], "bool, expanded": keep[:1, :1].expand(batch, heads, -1, -1),
        "float of heads": torch.randn(1, heads, rows, keys),
        "float, hidden": torch.zeros(keep.shape).masked_fill(~keep, LOW),
        "float, lowest number": padding, "rows not dense": keep.transpose(-1, -2).contiguous().transpose(-1, -2),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", masks(1, 1, 1, 1))
def test_masks(operands, kind, dtype) -> None:
    q, k, v = operands(2, 4, 2, 63, 100, 32, dtype)
    mask = masks(2, 4, 63, 100)[kind]
    check(q, k, v, mask if mask.dtype == torch.bool else mask.to(dtype))


def test_a_float32_mask_on_bfloat16(operands) -> None:
    if torch.bfloat16 not in DTYPES:
        pytest.skip("no bfloat16 products")
    q, k, v = operands(1, 2, 2, 20, 33, 32, torch.bfloat16)
    mask = torch.randn(1, 1, 20, 33)
    assert errors(run(q, k, v, mask), attention_naive(q, k, v, mask, 32**-0.5))[0] < 0.004


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_see_nothing_are_zero_and_the_lowest_number_hides_nothing_alone(operands, dtype) -> None:
    """As torch has it: hidden everywhere gives 0; the lowest number everywhere is no more than a constant."""
    q, k, v = operands(1, 2, 2, 10, 600, 16, dtype)
    keep = torch.ones(1, 1, 10, 600, dtype=torch.bool)
    keep[:, :, 3] = False
    keep[:, :, 4, :520] = False  # a whole block of keys
    for mask in (keep, torch.zeros(keep.shape).masked_fill(~keep, LOW).to(dtype)):
        y = run(q, k, v, mask)
        assert y[:, :, 3].eq(0).all()
        check(q, k, v, mask)
    lowest = torch.zeros(keep.shape, dtype=dtype).masked_fill(~keep, torch.finfo(dtype).min)
    check(q, k, v, lowest)
    assert run(q, k, v, lowest)[:, :, 3].ne(0).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_and_special_values(operands, dtype) -> None:
    q, k, v = operands(1, 2, 2, 12, 40, 32, dtype)
    check(q * 30, k * 30, v)
    k[0, 0, 5] = float("nan")
    y = run(q, k, v)
    assert y[0, 0].isnan().all()
    assert y[0, 1].isfinite().all()


def test_scale(operands) -> None:
    q, k, v = operands(1, 2, 2, 12, 40, 32)
    torch.testing.assert_close(run(q, k, v, scale=0.7).double(), attention_naive(q, k, v, None, 0.7),
                               rtol=1e-5, atol=1e-5)


def test_exponential_over_its_whole_range() -> None:
    """Two keys, the second with value 1: the result is the logistic function of the difference of their scores."""
    points = torch.linspace(-100, 20, 4000)
    q = torch.zeros(1, 1, 4000, 8)
    q[..., 0] = points
    k, v = torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8)
    k[0, 0, 1, 0] = v[0, 0, 1] = 1
    y = run(q, k, v, scale=1.0)[0, 0, :, 0]
    exact = points.double().sigmoid()
    above = exact > 1e-37  # below, float32 has fewer digits
    bound = 3e-7 + 1e-7 * points.abs()  # the second part: float32 rounds the exponent, whose size is the score's
    assert ((y - exact).abs() / exact - bound)[above].max() < 0
    assert (y - exact)[~above].abs().max() < 1e-37


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("one", [True, False])
def test_codes(operands, dtype, one) -> None:
    q, k, v = operands(2, 6, 3, 31, 31, 40, dtype)
    out = (torch.rand(1 if one else 240) * 100 + 100, torch.rand(1 if one else 240) * 100, 3, 200)
    codes = run(q, k, v, causal=True, out=out)
    assert (codes.dtype, codes.shape) == (torch.uint8, q.shape)
    exact = attention_naive(q, k, v, None, 40**-0.5, True, *out)
    assert (codes.min(), codes.max()) == (3, 200)
    largest = float(attention_naive(q, k, v, None, 40**-0.5, True).abs().max())
    tolerance = 200 * largest * (1e-5 if dtype == torch.float32 else 0.008)
    assert (codes - exact).abs().max() <= 0.5 + tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_result_lies_row_by_row(operands, dtype) -> None:
    q, k, v = operands(2, 4, 2, 9, 9, 16, dtype)
    for y in (run(q, k, v), run(q, k, v, out=(torch.ones(1), torch.ones(1), 0, 255))):
        assert y.stride() == (9 * 4 * 16, 16, 4 * 16, 1)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 2), kv_heads=st.integers(1, 3), group=st.integers(1, 4), rows=st.integers(1, 80),
       keys=st.integers(1, 150), width=st.integers(1, 12), causal=st.booleans(), seed=st.integers(0, 99))
def test_any_shape(batch, kv_heads, group, rows, keys, width, causal, seed) -> None:
    torch.manual_seed(seed)
    q = torch.randn(batch, kv_heads * group, rows, 8 * width)
    k, v = (torch.randn(batch, kv_heads, keys, 8 * width) for _ in range(2))
    torch.testing.assert_close(run(q, k, v, causal=causal).double(),
                               attention_naive(q, k, v, None, (8 * width) ** -0.5, causal), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_result_for_any_number_of_threads_and_rows(operands, dtype) -> None:
    q, k, v = operands(2, 4, 2, 300, 300, 32, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run(q, k, v, causal=True)
        torch.set_num_threads(3)
        assert torch.equal(run(q, k, v, causal=True), expected)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(run(q[:, :, :7], k, v, causal=True), expected[:, :, :7])


def test_strided_and_empty(operands) -> None:
    q, k, v = operands(1, 2, 2, 12, 40, 32)
    expected = run(q, k, v)
    apart = torch.stack([k, k], -1)[..., 0]
    assert apart.stride(-1) == 2
    assert torch.equal(run(q, apart, v), expected)
    assert torch.equal(run(q[:, :, ::2], k, v), expected[:, :, ::2])
    assert run(q[:, :, :0], k, v).shape == (1, 2, 0, 32)
    assert run(q, k[:, :, :0], v[:, :, :0]).eq(0).all()


def test_wrong_operands_are_refused(operands) -> None:
    q, k, v = operands(1, 4, 4, 12, 40, 32)
    with pytest.raises(RuntimeError, match="do not share"):
        run(q, k[:, :3], v[:, :3])
    with pytest.raises(RuntimeError, match="do not fit"):
        run(q, k, v[:, :, :5])
    with pytest.raises(RuntimeError, match="one dtype"):
        run(q, k, v.bfloat16())
    with pytest.raises(RuntimeError, match="multiple of 8"):
        run(q[..., :20], k[..., :20], v[..., :20])
    with pytest.raises(RuntimeError, match="mask does not fit"):
        run(q, k, v, torch.ones(1, 1, 12, 1, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="positive"):
        run(q, k, v, scale=0.0)
    with pytest.raises(RuntimeError, match="out_mul"):
        run(q, k, v, out=(torch.ones(5), torch.ones(5), 0, 255))
