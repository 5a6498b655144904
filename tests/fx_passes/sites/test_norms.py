"""Norms in every spelling, and what only looks like one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.fx_passes.sites import recompute
from tests.fx_passes.sites.small import sites_of

K, EPS = 63, 1e-5


def _inverse(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)


def _in_float(x: Tensor, w: Tensor) -> Tensor:
    """Weight after the cast back, on the left."""
    y = x.to(torch.float32)
    return w * (y * _inverse(y)).to(x.dtype)


def _cast_last(x: Tensor, w: Tensor) -> Tensor:
    """Weight in float32 with an offset; the result cast back."""
    y = x.float()
    return (y * _inverse(y) * (1.0 + w.float())).type_as(x)


SPELLINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float]] = {
    "weight after the cast": (_in_float, 0.0),
    "cast last, offset weight": (_cast_last, 1.0),
    "statistics in float only": (lambda x, w: w * (x * _inverse(x.to(torch.float32))).to(x.dtype), 0.0),
    "weight on the right": (lambda x, w: x * _inverse(x) * w, 0.0),
    "eps first": (lambda x, w: x * torch.rsqrt(EPS + (x * x).mean(dim=-1, keepdim=True)) * w, 0.0),
    "divided by a root": (lambda x, w: x / torch.sqrt(x.square().mean(1, keepdim=True) + EPS) * w, 0.0),
    "power of -0.5": (lambda x, w: x * (torch.mean(x**2, -1, keepdim=True) + EPS) ** -0.5 * w, 0.0),
    "one over a root": (lambda x, w: w * ((1 / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt()) * x), 0.0),
    "rms_norm": (lambda x, w: F.rms_norm(x, (K,), w, EPS), 0.0),
    "layer_norm": (lambda x, w: F.layer_norm(x, (K,), w, None, EPS), 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling(spelling: str, dtype: torch.dtype) -> None:
    code, offset = SPELLINGS[spelling]
    sites, values = sites_of(lambda x, w: code(x, w.to(x.dtype)).exp(), torch.randn(4, K, dtype=dtype), weights=[(K,)])
    fused = spelling in ("rms_norm", "layer_norm")
    if fused and dtype is not torch.float32:
        assert [entry.reason for entry in sites.unsupported] == [
            "a norm whose weight or bias is computed in the graph"
        ]
        return
    (site,) = sites.norms
    assert (site.style, site.weight_offset) == ("layer" if spelling == "layer_norm" else "rms", offset)
    assert site.eps == EPS
    assert site.weight is not None
    assert site.nodes == sorted(set(site.nodes))
    assert site.x not in site.nodes
    assert values[site.node].dtype == (torch.float32 if fused else dtype)
    tolerance = {"rtol": 0.02, "atol": 0.02} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(recompute.norm(site, values), values[site.node], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_eps_that_rms_norm_chooses(dtype: torch.dtype) -> None:
    sites, values = sites_of(lambda x: F.rms_norm(x, (K,)).exp(), torch.randn(4, K, dtype=dtype) * 1e-3)
    (site,) = sites.norms
    torch.testing.assert_close(recompute.norm(site, values), values[site.node], rtol=0.01, atol=0.01)


def test_no_weight() -> None:
    sites, values = sites_of(lambda x: (x * _inverse(x)).exp() + x, torch.randn(4, K))
    (site,) = sites.norms
    assert site.weight is None
    torch.testing.assert_close(recompute.norm(site, values), values[site.node])


@pytest.mark.parametrize(
    "code",
    [
        lambda x, w: x * torch.rsqrt(x.pow(2).mean(0, keepdim=True) + EPS) * w,
        lambda x, w: x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + EPS) * w,
        lambda x, w: x.exp() * _inverse(x) * w,
        lambda x, w: x / _inverse(x) * w,
        lambda x, w: F.normalize(x, dim=-1) * w,
    ],
)
def test_not_a_norm(code: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert not sites_of(code, torch.randn(4, K), weights=[(K,)])[0].norms


def test_two_dimensions_are_refused() -> None:
    sites, _ = sites_of(lambda x: F.layer_norm(x, (4, K)), torch.randn(2, 4, K))
    assert not sites.norms
    assert ["2 dimensions" in entry.reason for entry in sites.unsupported] == [True]
