"""Attention in every spelling, its numbers and terms, and the padding mask behind it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.fx_passes.sites import recompute
from tests.fx_passes.sites.small import sites_of

B, H, S, D = 2, 3, 5, 4
LOW = float("-inf")


def _inputs(count: int = 3) -> list[Tensor]:
    return [torch.randn(B, H, S, D) for _ in range(count)]


def _bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.reshape(B * H, S, D) for part in (q, k, v))
    scores = torch.baddbmm(q.new_ones(B * H, 1, S), q, k.transpose(1, 2), beta=1.0, alpha=0.3).view(B, H, S, S)
    weights = F.dropout(F.softmax(scores + q.new_ones(B, 1, S, S), dim=-1, dtype=torch.float32).to(q.dtype), 0.1, False)
    return torch.bmm(weights.view(B * H, S, S), v)


SPELLINGS: dict[str, tuple[Callable[..., Tensor], float, int]] = {
    "plain": (lambda q, k, v: (q @ k.mT).softmax(-1) @ v, 1.0, 0),
    "divided": (lambda q, k, v: torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / 2.0, dim=3) @ v, 0.5, 0),
    "scaled twice": (lambda q, k, v: (0.5 * (q @ k.transpose(2, 3) * 3.0)).softmax(-1).matmul(v), 1.5, 0),
    "two terms": (lambda q, k, v: ((q @ k.mT + v.new_ones(S, S)) + q.new_zeros(B, 1, S, S)).softmax(-1) @ v, 1.0, 2),
    "baddbmm": (_bmm, 0.3, 2),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling(spelling: str) -> None:
    code, scale, terms = SPELLINGS[spelling]
    sites, values = sites_of(code, *_inputs())
    (site,) = sites.attentions
    assert site.scale == pytest.approx(scale)
    assert site.spelling == "softmax"
    assert len(site.biases) + (site.mask is not None) == terms
    assert not site.key_transposed
    torch.testing.assert_close(recompute.attention(site, values), values[site.node])


def test_fused() -> None:
    sites, _ = sites_of(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *_inputs())
    (site,) = sites.attentions
    assert (site.spelling, site.scale, site.mask) == ("sdpa", pytest.approx(0.5), None)


def test_keys_that_come_transposed() -> None:
    sites, values = sites_of(lambda q, k, v: (q @ k.permute(0, 1, 3, 2)).softmax(-1) @ v, *_inputs())
    (site,) = sites.attentions
    assert site.key_transposed
    torch.testing.assert_close(recompute.attention(site, values), values[site.node])


def test_a_scale_after_a_mask_is_no_constant_scale() -> None:
    sites, _ = sites_of(lambda q, k, v: ((q @ k.mT + v.new_ones(S, S)) * 2).softmax(-1) @ v, *_inputs())
    assert sites.attentions[0].scale is None


@pytest.mark.parametrize(
    "code",
    [
        lambda q, k, v: (q @ k.mT).softmax(-2) @ v,
        lambda q, k, v: (q @ k.mT).sigmoid() @ v,
        lambda q, k, v: v.mT @ (q @ k.mT).softmax(-1),
        lambda q, k, v: (q * k).softmax(-1) @ v.mT,
        lambda q, k, v: (q @ k.mT).softmax(-1) * v.sum(),
    ],
)
def test_not_an_attention(code: Callable[..., Tensor]) -> None:
    assert not sites_of(code, *_inputs())[0].attentions


def _hidden(mask: Tensor) -> Tensor:
    return mask[:, None, None, :]


PADDINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], bool]] = {
    "kept where true": (lambda x, m: F.scaled_dot_product_attention(x, x, x, _hidden(m.bool())), False),
    "one minus": (lambda x, m: F.scaled_dot_product_attention(x, x, x, (1.0 - _hidden(m).float()) * -1e4), False),
    "equal to zero": (lambda x, m: ((x @ x.mT).masked_fill(_hidden(m) == 0, LOW)).softmax(-1) @ x, False),
    "filled": (lambda x, m: ((x @ x.mT).masked_fill(_hidden(m.bool()), LOW)).softmax(-1) @ x, True),
    "added": (
        lambda x, m: (x @ x.mT + torch.zeros(B, 1, 1, S).masked_fill(_hidden(m.bool()), LOW)).softmax(-1) @ x,
        True,
    ),
    "chosen": (lambda x, m: (x @ x.mT + torch.where(_hidden(m.bool()), 0.0, LOW)).softmax(-1) @ x, False),
}


@pytest.mark.parametrize("case", PADDINGS)
def test_padding_mask_and_its_meaning(case: str) -> None:
    code, marks_padding = PADDINGS[case]
    sites, _ = sites_of(code, torch.randn(B, H, S, D), torch.ones(B, S, dtype=torch.long))
    assert sites.padding_mask is not None
    assert "inputs_1" in sites.padding_mask.name
    assert sites.padding_mask_marks_padding == marks_padding


def test_a_mask_over_pairs_of_tokens_is_no_padding_mask() -> None:
    def code(x: Tensor, m: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, m[None, None])

    assert sites_of(code, torch.randn(B, H, S, D), torch.zeros(S, S))[0].padding_mask is None
