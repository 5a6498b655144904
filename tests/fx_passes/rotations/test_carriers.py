"""Every op that claims to carry a rotation is run on rotated operands; ops that must not claim it do not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from tests.capture import capture_one
from tests.fx_passes.sites.recompute import Values
from torchqx.fx_passes.rotations.carriers import Carried, Shape, carried
from torchqx.rotations import Hadamard

B, T, H, D = 2, 3, 4, 8
K = H * D

CARRIED: dict[str, Callable[[Tensor], Any]] = {
    "sums": lambda x: (x + x.flip(1)) - x[:1],
    "factors": lambda x: 2 * x / x.mean(-1, keepdim=True) * torch.tensor(3.0) - -x,
    "heads": lambda x: x.view(B, T, H, D).transpose(1, 2).contiguous().reshape(B * H, T, D).permute(1, 0, 2),
    "merged": lambda x: x.unflatten(-1, (H, D)).flatten(-2).unsqueeze(0).squeeze(0).view(-1, K),
    "parts": lambda x: torch.cat([part + 0 for part in x.chunk(2, -1)], -1).split(D, 2)[1],
    "narrowed": lambda x: x.narrow(-1, D, 2 * D).narrow(1, 1, 2),
    "indexed": lambda x: (x[:, -1], x[..., None, :, :], x[0], x[:, 1:, :], x.select(1, 0)),
    "repeated": lambda x: x[:1].expand(B, -1, -1).repeat(1, 2, 1).repeat_interleave(2, dim=1).roll(1, 1),
    "reduced": lambda x: (x.mean(1), x.sum(0, keepdim=True), torch.stack([x, x], 1), x.unbind(0)[1]),
    "mixed": lambda x: torch.softmax(x @ x.transpose(1, 2), -1) @ x,
    "looked up": lambda x: F.embedding(torch.arange(T), x[0]),
    "attended": lambda x: F.scaled_dot_product_attention(x, x, x.double().to(x.dtype)),
}
REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "nonlinear": lambda x: x.exp(),
    "product": lambda x: x * x.flip(1),
    "offset": lambda x: x + 1.0,
    "vector factor": lambda x: x * x[0, 0],
    "quotient": lambda x: 1 / x,
    "last dimension": lambda x: x.transpose(1, 2),
    "order": lambda x: x.permute(0, 2, 1),
    "reversed": lambda x: x.flip(-1),
    "unaligned": lambda x: x.narrow(-1, 1, D),
    "sliced": lambda x: x[..., 1:],
    "sliced whole blocks at an odd place": lambda x: x[..., 3 : 3 + D],
    "part": lambda x: x[:, :, :D],
    "mean of all": lambda x: x.mean(),
    "summed rows": lambda x: x.sum(-1, keepdim=True),
    "odd view": lambda x: x.reshape(B, T * 8, D // 2),
    "left": lambda x: x @ x[0].T,
    "masked": lambda x: x.masked_fill(x > 0, 1.0),
    "integers": lambda x: x.long() + 1,
}


def nodes_of(code: Callable[[Tensor], Any]) -> tuple[GraphModule, dict[Node, Any]]:
    gm, inputs = capture_one(code, torch.randn(B, T, K, dtype=torch.float64))
    return gm, Values(gm, inputs).of


def turned(value: Any, rotation: Hadamard) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(turned(v, rotation) for v in value)
    return rotation.apply(value)


def rerun(node: Node, claim: Carried, values: dict[Node, Any], rotation: Hadamard) -> Any:
    """The op on rotated operands."""
    def read(value: Any, slot: tuple[int, ...]) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(read(v, (*slot, i)) for i, v in enumerate(value))
        known = values[value] if isinstance(value, Node) else value
        return turned(known, rotation) if slot in (*claim.slots, *claim.paired) else known

    args = [read(value, (i,)) for i, value in enumerate(node.args)]
    if node.op == "call_method":
        return getattr(args[0], node.target)(*args[1:], **node.kwargs)
    return node.target(*args, **node.kwargs)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", CARRIED)
def test_carries(name: str, signed: bool) -> None:
    gm, values = nodes_of(CARRIED[name])
    shape, rotation = (Shape(K, K), Hadamard(K, 3)) if signed else (Shape(D, None), Hadamard(D))
    claims = {n: claim for n in gm.graph.nodes if (claim := carried(n, shape)) is not None}
    for node, claim in claims.items():
        torch.testing.assert_close(rerun(node, claim, values, rotation), turned(values[node], rotation))
    calls = [n for n in gm.graph.nodes if n.op.startswith("call") and shape.fits(n.meta["example_value"])]
    if not signed:
        assert set(claims) == set(calls)
    assert any(claim.paired for claim in claims.values()) == (name == "attended")


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_takes_rotated_rows_with_a_rotated_weight(bias: bool) -> None:
    gm, values = nodes_of(lambda x: F.linear(x.tanh(), x[0].cos(), x[0, :, 0] if bias else None))
    node = next(n for n in gm.graph.nodes if n.target is F.linear)
    for shape, rotation in ((Shape(K, K), Hadamard(K, 3)), (Shape(D, None), Hadamard(D))):
        claim = carried(node, shape)
        assert claim == Carried((), paired=((0,), (1,)))
        torch.testing.assert_close(rerun(node, claim, values, rotation), values[node])
    assert carried(node, Shape(12, None)) is None


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    gm, _ = nodes_of(REFUSED[name])
    for shape in (Shape(D, None), Shape(K, K)):
        (result,) = next(n for n in gm.graph.nodes if n.op == "output").args[0]
        assert carried(result, shape) is None


def test_in_place_ops_are_refused() -> None:
    gm, _ = nodes_of(lambda x: x.clone().mul_(2.0))
    assert all(carried(n, Shape(K, K)) is None for n in gm.graph.nodes if n.target == "mul_")
