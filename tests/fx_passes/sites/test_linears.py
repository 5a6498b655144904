"""Weighted matmuls in every spelling, those that are refused, and what shares an activation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  registers the CPU's grouped matmul
from torch import Tensor, nn
from torch.nn import functional as F

from tests.fx_passes.sites import recompute
from tests.fx_passes.sites.small import only_op, sites_of
from torchqx.fx_passes.sites import Form
from torchqx.layouts import WeightLayout

K, N, T = 7, 5, 3
OFFSETS = torch.tensor([2, 2, 3], dtype=torch.int32)

SPELLINGS: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], Form, WeightLayout]] = {
    "linear": (lambda x, w: F.linear(x, w), (2, T, K), (N, K), Form.LINEAR, WeightLayout.OUT_IN),
    "linear of keywords": (lambda x, w: F.linear(input=x, weight=w), (T, K), (N, K), Form.LINEAR, WeightLayout.OUT_IN),
    "linear of a transpose": (lambda x, w: F.linear(x, w.t()), (T, K), (K, N), Form.LINEAR, WeightLayout.IN_OUT),
    "operator": (lambda x, w: x @ w, (2, T, K), (K, N), Form.LINEAR, WeightLayout.IN_OUT),
    "operator, transposed": (lambda x, w: x @ w.T, (T, K), (N, K), Form.LINEAR, WeightLayout.OUT_IN),
    "method, transposed": (lambda x, w: x.matmul(w.mT), (T, K), (N, K), Form.LINEAR, WeightLayout.OUT_IN),
    "mm": (lambda x, w: torch.mm(x, w.transpose(0, 1)), (T, K), (N, K), Form.LINEAR, WeightLayout.OUT_IN),
    "addmm": (lambda x, w: torch.addmm(x.new_ones(N), x, w), (T, K), (K, N), Form.LINEAR, WeightLayout.IN_OUT),
    "bmm": (lambda x, w: torch.bmm(x, w.expand(2, K, N)), (2, T, K), (K, N), Form.LINEAR, WeightLayout.IN_OUT),
    "baddbmm": (
        lambda x, w: torch.baddbmm(x.new_ones(2, T, N), x, w[None].expand(2, K, N)),
        *((2, T, K), (K, N), Form.LINEAR, WeightLayout.IN_OUT),
    ),
    "kernel of one": (lambda x, w: F.linear(x, w.squeeze(-1)), (T, K), (N, K, 1), Form.LINEAR, WeightLayout.CONV),
    "whole slice": (lambda x, w: F.linear(x, w[:, :]), (T, K), (N, K), Form.LINEAR, WeightLayout.OUT_IN),
    "cast": (lambda x, w: F.linear(x, w.double().float()), (T, K), (N, K), Form.LINEAR, WeightLayout.OUT_IN),
    "left": (lambda x, w: w @ x, (2, K, T), (N, K), Form.LEFT, WeightLayout.OUT_IN),
    "left, transposed": (lambda x, w: w.t().matmul(x), (2, K, T), (K, N), Form.LEFT, WeightLayout.IN_OUT),
    "left of a vector": (lambda x, w: torch.mv(w, x), (K,), (N, K), Form.LINEAR, WeightLayout.OUT_IN),
    "conv1d": (lambda x, w: F.conv1d(x, w), (2, K, T), (N, K, 1), Form.CONV, WeightLayout.CONV),
    "patches": (lambda x, w: F.conv2d(x, w, stride=2), (2, 3, 4, 6), (N, 3, 2, 2), Form.CONV, WeightLayout.CONV),
    "experts": (
        lambda x, w: torch.ops.transformers.grouped_mm_fallback(x, w.transpose(-2, -1), offs=OFFSETS),
        *((T, K), (3, N, K), Form.EXPERTS, WeightLayout.EXPERTS_OUT_IN),
    ),
    "experts, transposed": (
        lambda x, w: torch.ops.transformers.grouped_mm_fallback(x, w, offs=OFFSETS),
        *((T, K), (3, K, N), Form.EXPERTS, WeightLayout.EXPERTS_IN_OUT),
    ),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spelling(spelling: str) -> None:
    code, x, w, form, layout = SPELLINGS[spelling]
    sites, values = sites_of(code, torch.randn(x), weights=[w])
    op = only_op(sites)
    assert (op.form, op.layout) == (form, layout)
    torch.testing.assert_close(recompute.linear(op, values), values[op.node])


REFUSED: dict[str, tuple[Callable[..., Any], tuple[int, ...], tuple[int, ...], str]] = {
    "slice": (lambda x, w: F.linear(x, w[:3]), (T, K), (N, K), "slice"),
    "one of a stack": (lambda x, w: x @ w[1], (T, K), (2, K, N), "slice"),
    "chunk": (lambda x, w: F.linear(x, w.chunk(2)[0]), (T, K), (4, K), "slice"),
    "reshaped": (lambda x, w: x @ w.view(K, N), (T, K), (N, K), "reshaped"),
    "batch of matrices": (lambda x, w: torch.bmm(x, w), (2, T, K), (2, K, N), "batch of matrices"),
    "vector": (lambda x, w: x @ w, (T, K), (K,), "vector"),
    "scaled addmm": (lambda x, w: torch.addmm(x.new_ones(N), x, w, alpha=0.5), (T, K), (K, N), "alpha"),
    "both": (lambda x, w: (w @ w.t()) + x, (N, N), (N, K), "both operands"),
    "computed": (lambda x, w: F.linear(x, w / w.norm()), (T, K), (N, K), "computed in the graph"),
    "einsum": (lambda x, w: torch.einsum("tk,nk->tn", x, w), (T, K), (N, K), "einsum"),
    "depthwise": (lambda x, w: F.conv1d(x, w, groups=K), (2, K, 6), (K, 1, 3), "groups"),
    "overlapping": (lambda x, w: F.conv1d(x, w), (2, K, 6), (N, K, 3), "overlapping"),
    "padded": (lambda x, w: F.conv1d(x, w, stride=3, padding=3), (2, K, 6), (N, K, 3), "padding"),
    "partial patches": (lambda x, w: F.conv1d(x, w, stride=3), (2, K, 7), (N, K, 3), "whole patches"),
    "transposed convolution": (lambda x, w: F.conv_transpose1d(x, w), (2, K, 6), (K, N, 3), "transposed"),
    "mapped": (lambda x, w: torch.func.vmap(lambda part: F.linear(part, w))(x), (2, T, K), (N, K), "vmap"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case: str) -> None:
    code, x, w, reason = REFUSED[case]
    sites, _ = sites_of(code, torch.randn(x), weights=[w])
    assert not sites.linears
    (entry,) = sites.unsupported
    assert reason in entry.reason
    assert entry.kind == "linear"


@pytest.mark.parametrize(
    "code",
    [
        lambda x, w: x * w,
        lambda x, w: x + w[:T],
        lambda x, w: F.embedding(torch.arange(2), w).sum() + x,
        lambda x, w: torch.cat([x, w]),
        lambda x, w: x @ x.t(),
    ],
)
def test_other_uses_of_a_parameter_are_nothing(code: Callable[..., Any]) -> None:
    sites, _ = sites_of(code, torch.randn(T, K), weights=[(T, K)])
    assert not sites.linears
    assert not sites.unsupported


def test_a_buffer_is_no_weight() -> None:
    sites, _ = sites_of(lambda x, buffer: x @ buffer, torch.randn(T, K), torch.randn(K, N))
    assert not sites.linears


def test_one_activation_is_one_site() -> None:
    """Views that keep rows, dropout in eval, and ``* 1.0`` are looked through; a transpose is not."""

    def code(x: Tensor, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        x = x.relu()
        return F.linear(x, a), F.dropout(x.view(-1, K) * 1.0, 0.1, False) @ b, F.linear(x.transpose(0, 1), c)

    sites, _ = sites_of(code, torch.randn(2, T, K), weights=[(N, K), (K, N), (N, K)])
    assert [len(site.ops) for site in sites.linears] == [2, 1]
    assert [op.key for site in sites.linears for op in site.ops] == [f"weights:linear:{i}" for i in range(3)]


def test_forms_other_than_linear_stand_alone() -> None:
    sites, _ = sites_of(lambda x, a, b: (x @ a, b @ x), torch.randn(K, K), weights=[(K, N), (N, K)])
    assert [site.ops[0].form for site in sites.linears] == [Form.LINEAR, Form.LEFT]


def test_heads_are_what_nothing_weighted_follows() -> None:
    def code(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (x + F.linear(x, a)).relu() @ b

    sites, _ = sites_of(code, torch.randn(T, K), weights=[(K, K), (K, N)])
    assert [op.is_head for site in sites.linears for op in site.ops] == [False, True]
    assert [len(site.adds) for site in sites.residuals] == [1]


STORES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "item": lambda cache, y: cache.__setitem__(slice(None), y),
    "operator": lambda cache, y: cache.__iadd__(y),
    "method": lambda cache, y: cache.copy_(y),
    "through a view": lambda cache, y: cache.view(-1).copy_(y.view(-1)),
}


@pytest.mark.parametrize("name", STORES)
def test_what_is_stored_and_read_by_a_weighted_op_is_no_head(name: str) -> None:
    def code(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        cache = torch.zeros(T, K)
        STORES[name](cache, F.linear(x, a))
        return cache.relu() @ b, F.linear(x, a)

    sites, _ = sites_of(code, torch.randn(T, K), weights=[(K, K), (K, N)])
    heads = {op.key: op.is_head for site in sites.linears for op in site.ops}
    assert list(heads.values()).count(True) == 2
    assert not heads["weights:linear:0"]


def test_a_bitwise_operator_stores_nothing() -> None:
    def code(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        some = x > 0
        hidden = some & (F.linear(x, a) > 0)
        return hidden, F.linear(some.float(), b)

    sites, _ = sites_of(code, torch.randn(T, K), weights=[(K, K), (N, K)])
    assert all(op.is_head for site in sites.linears for op in site.ops)


def test_shared_weights_name_their_readers() -> None:
    def code(tokens: Tensor, w: Tensor) -> Tensor:
        return F.linear(F.embedding(tokens, w), w)

    sites, _ = sites_of(code, torch.arange(4), weights=[(N, K)])
    (readers,) = sites.shared_weights.values()
    assert len(readers) == 2
    assert readers[1] is sites.linears[0].ops[0].node


def test_site_key_is_the_deepest_common_module() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(K, N), nn.Linear(K, N)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) * self.b(x)

    outer = nn.ModuleDict({"pair": nn.ModuleList([Pair()])})
    sites, _ = sites_of(lambda x: outer["pair"][0](x), torch.randn(T, K))
    (site,) = sites.linears
    assert site.key == "pair.0:linear:0"
    assert [op.key for op in site.ops] == ["pair.0.a:linear:0", "pair.0.b:linear:0"]
