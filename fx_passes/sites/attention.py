"""Attention: softmax(q kᵀ · scale + mask) v, fused or spelled out with matmuls."""

from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.keys import KeyMaker, path_of
from torchqx.fx_passes.sites.ops import RESHAPES, argument, constant, fake, is_cast, last_dim, op_name
from torchqx.fx_passes.sites.site import AttentionSite

_PRODUCTS = ("matmul", "bmm", "baddbmm")
_SHAPED = RESHAPES | {"expand", "permute", "transpose"}


def find_attentions(gm: GraphModule) -> list[AttentionSite]:
    """Every attention, in graph order."""
    keys, found = KeyMaker(), []
    for node in gm.graph.nodes:
        name = op_name(node)
        if name == "scaled_dot_product_attention":
            site = _fused(node)
        elif name == "softmax":
            site = _spelled_out(node)
        else:
            continue
        if site is not None:
            site.key = keys(path_of(node), "attention")
            site.nodes = sorted(set(site.nodes))
            found.append(site)
    return found


def _fused(node: Node) -> AttentionSite:
    q, k, v = argument(node, 0, "query"), argument(node, 1, "key"), argument(node, 2, "value")
    mask, given = argument(node, 3, "attn_mask"), argument(node, 6, "scale")
    scale = constant(given)
    if given is None:
        width = fake(q).shape[-1]
        scale = 1 / sqrt(width) if isinstance(width, int) else None
    return AttentionSite("", node, q, k, v, mask, scale, "sdpa", nodes=[node])


@dataclass
class _Scores:
    """What stands between q kᵀ and the softmax, read backwards from the softmax."""

    product: Node
    nodes: list[Node] = field(default_factory=list)
    terms: list[Node] = field(default_factory=list)
    scale: float | None = 1.0


def _spelled_out(softmax: Node) -> AttentionSite | None:
    if not last_dim(softmax, argument(softmax, 1, "dim")):
        return None
    scores = _scores(argument(softmax, 0, "input"))
    after = _weighted_sum(softmax)
    if scores is None or after is None:
        return None
    product = scores.product
    if op_name(product) == "baddbmm":
        q, k = argument(product, 1, "batch1"), argument(product, 2, "batch2")
        bias, beta = argument(product, 0, "input"), argument(product, 3, "beta", default=1)
        if beta != 0:
            scores.terms.append(bias)
        alpha = constant(argument(product, 4, "alpha", default=1))
        scores.scale = scores.scale * alpha if scores.scale is not None and alpha is not None else None
    else:
        q, k = argument(product, 0, "input", "self"), argument(product, 1, "other", "mat2")
    nodes = [product, *scores.nodes, softmax, *after]
    k_rows, transposed = _before_transpose(k)
    mask, *biases = scores.terms or [None]
    return AttentionSite(
        "", after[-1], q, k_rows, argument(after[-1], 1, "other", "mat2"), mask, scores.scale, "softmax",
        nodes=[*nodes, k] if not transposed else nodes, biases=biases[::-1], key_transposed=transposed,
    )  # fmt: skip


def _before_transpose(k: Node) -> tuple[Node, bool]:
    """k as [..., S, D]; where the product's operand was not made by a transpose, the operand [..., D, S] and True."""
    name = op_name(k)
    if name in ("transpose", "swapaxes") and {argument(k, 1, "dim0"), argument(k, 2, "dim1")} in (
        {-1, -2}, {fake(k).ndim - 1, fake(k).ndim - 2},
    ):  # fmt: skip
        return k.args[0], False
    if name == "mT" or (name in ("t", "T") and fake(k).ndim == 2):
        return k.args[0], False
    return k, True


def _scores(node: Any) -> _Scores | None:
    """Walk back from the softmax's input to q kᵀ through scales, masks, casts, and views."""
    if not isinstance(node, Node):
        return None
    name = op_name(node)
    if name in _PRODUCTS:
        return _Scores(node)
    if is_cast(node) or name in _SHAPED or name in ("dropout", "maximum", "max", "clamp", "softcap"):
        return _extend(_scores(node.args[0]), node)
    if name in ("mul", "div"):
        return _scaled(node, name)
    if name in ("add", "sub", "where", "masked_fill"):
        return _masked(node, name)
    if name == "tanh":
        return _extend(_nonlinear(_scores(node.args[0])), node)
    return None


def _extend(found: _Scores | None, node: Node, term: Any = None) -> _Scores | None:
    if found is not None:
        found.nodes.append(node)
        if isinstance(term, Node):
            found.terms.insert(0, term)
    return found


def _nonlinear(found: _Scores | None) -> _Scores | None:
    if found is not None:
        found.scale = None
    return found


def _scaled(node: Node, name: str) -> _Scores | None:
    first, second = node.args[0], node.args[1]
    found = _scores(first)
    factor = second
    if found is None and name == "mul":
        found, factor = _scores(second), first
    if found is None:
        return None
    number = constant(factor)
    if number is None or found.scale is None or found.terms:
        return _extend(_nonlinear(found), node)
    found.scale *= number if name == "mul" else 1 / number
    return _extend(found, node)


def _masked(node: Node, name: str) -> _Scores | None:
    if name == "where":
        condition, *choices = node.args
        for choice in choices:
            found = _scores(choice)
            if found is not None:
                return _extend(found, node, condition)
        return None
    if name == "masked_fill":
        return _extend(_scores(node.args[0]), node, argument(node, 1, "mask"))
    operands = list(node.args[:2])
    for i, operand in enumerate(operands[: 1 if name == "sub" else 2]):
        found = _scores(operand)
        if found is not None:
            return _extend(found, node, operands[1 - i])
    return None


def _weighted_sum(softmax: Node) -> list[Node] | None:
    """Nodes from the softmax to its product with v, which comes last."""
    passed: list[Node] = []
    node = softmax
    while True:
        following = [user for user in node.users if not _is_side_output(user)]
        if len(following) != 1:
            return None
        user = following[0]
        name = op_name(user)
        if name in ("matmul", "bmm"):
            return [*passed, user] if user.args[0] is node else None
        scaled = name in ("mul", "masked_fill", "where", "nan_to_num")
        if not (is_cast(user) or name in _SHAPED or name == "dropout" or scaled):
            return None
        passed.append(user)
        node = user


def _is_side_output(user: Node) -> bool:
    """Attention weights that are also returned, or averaged to be returned, are not part of the pattern."""
    if user.op == "output":
        return True
    return op_name(user) == "mean" and all(map(_is_side_output, user.users))
