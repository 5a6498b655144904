"""Which masks are read before they are spread, and that none is where it is not the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional as F

from tests.architectures import ARCHITECTURES
from tests.capture import capture_one
from torchqx.fx_passes.masks import before_spread

B, S = 2, 5


def spread(code: Callable[[Tensor], Tensor], keys: Tensor) -> tuple[Node, Node]:
    """The mask that ``code`` makes of ``keys``, and what it is before it is spread, checked to say the same."""
    def attend(keys: Tensor, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, code(keys))

    gm, inputs = capture_one(attend, keys, torch.randn(B, 1, S, 8))
    attention = next(n for n in gm.graph.nodes if n.target is F.scaled_dot_product_attention)
    mask = attention.args[3] if len(attention.args) > 3 else attention.kwargs["attn_mask"]
    before = gm(*inputs)
    source = before_spread(mask, attention)
    mask.replace_all_uses_with(source)
    gm.recompile()
    torch.testing.assert_close(gm(*inputs), before, rtol=0, atol=0)
    return mask, source


def indices(code: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A condition on the queries' numbers, [1, 1, S, 1], joined to the keys."""
    return lambda keys: code(torch.arange(S)[None, None, :, None]) & keys


def written(keys: Tensor) -> Tensor:
    everywhere = torch.ones(1, 1, S, 1, dtype=torch.bool)
    everywhere[:, :, 2] = False
    return everywhere & keys


def written_itself(keys: Tensor) -> Tensor:
    mask = (torch.arange(S)[None, None, :, None] >= 0) & keys
    mask[..., :2] = False
    return mask


def joined_itself(keys: Tensor) -> Tensor:
    mask = (torch.arange(S)[None, None, :, None] >= 0) & keys
    mask.logical_and_(torch.ones(S, S, dtype=torch.bool).tril())
    return mask


def written_later(keys: Tensor) -> Tensor:
    keys = keys.clone()
    mask = (torch.arange(S)[None, None, :, None] >= 0) & keys
    keys[..., 1] = False
    return mask


KEYS = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], dtype=torch.bool)[:, None, None, :]


@pytest.mark.parametrize("code", [
    lambda keys: keys.expand(B, 1, S, S),
    indices(lambda q: q >= 0),
    indices(lambda q: q.new_ones((), dtype=torch.bool) & (q + 0 >= 0)),
    lambda keys: (keys & (torch.arange(S)[None, None, :, None] < 9)).expand(B, 1, S, S),
], ids=["expanded", "a condition", "two conditions", "behind and expanded"])
def test_read_before_it_is_spread(code: Callable[[Tensor], Tensor]) -> None:
    mask, source = spread(code, KEYS)
    assert tuple(mask.meta["example_value"].shape) == (B, 1, S, S)
    assert tuple(source.meta["example_value"].shape) == (B, 1, 1, S)


@pytest.mark.parametrize("code", [
    indices(lambda q: q >= 1),
    lambda keys: (torch.arange(S)[None, None, :, None] >= torch.arange(S)) & keys,
    indices(lambda q: torch.rand(q.shape) >= 0),
    written,
    written_itself,
    joined_itself,
    written_later,
    lambda keys: (torch.arange(S)[:, None] >= 0) & keys[0, 0, 0],
    lambda keys: keys | (torch.arange(S)[None, None, :, None] >= 0),
], ids=["not of the first", "causal", "random", "written", "written itself",
        "joined itself", "written later", "another rank of keys", "or"])
def test_stays(code: Callable[[Tensor], Tensor]) -> None:
    mask, source = spread(code, KEYS)
    assert source is mask


def test_a_real_encoder() -> None:
    """Padding hides the same keys from all queries."""
    architecture = ARCHITECTURES["bert"]
    gm, _ = capture_one(architecture.build().eval(), **architecture.inputs(2, 14))
    attentions = [n for n in gm.graph.nodes if n.target is F.scaled_dot_product_attention]
    masks = [before_spread(n.kwargs["attn_mask"], n) for n in attentions]
    assert len(attentions) > 1
    assert {tuple(m.meta["example_value"].shape) for m in masks} == {(2, 1, 1, 14)}
