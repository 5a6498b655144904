"""Layer norms and RMS norms: the fused functions, and the spelled-out RMS norm in all its orders and casts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.keys import KeyMaker, path_of
from torchqx.fx_passes.sites.ops import (
    argument,
    before_casts,
    before_identities,
    constant,
    fake,
    is_cast,
    last_dim,
    op_name,
)
from torchqx.fx_passes.sites.provenance import Provenance
from torchqx.fx_passes.sites.site import NormSite, Unsupported


def find_norms(gm: GraphModule, provenance: Provenance) -> tuple[list[NormSite], list[Unsupported]]:
    """Every norm over the last dimension, in graph order."""
    norms: list[NormSite] = []
    unsupported: list[Unsupported] = []
    keys, refused = KeyMaker(), KeyMaker()
    for node in gm.graph.nodes:
        name = op_name(node)
        if name in ("layer_norm", "rms_norm"):
            found = _fused(node, name, provenance)
        else:
            found = _spelled_out(node, provenance)
        if isinstance(found, NormSite):
            found.key = keys(path_of(node, found.weight), "norm")
            found.nodes = sorted(set(found.nodes))
            norms.append(found)
        elif isinstance(found, str):
            unsupported.append(Unsupported(refused(path_of(node), "unsupported"), node, found, "norm"))
    return norms, unsupported


def _fused(node: Node, name: str, provenance: Provenance) -> NormSite | str:
    """layer_norm(x, shape, weight, bias, eps) or rms_norm(x, shape, weight, eps)."""
    x, shape = argument(node, 0, "input"), argument(node, 1, "normalized_shape")
    weight = before_identities(argument(node, 2, "weight"))
    bias = before_identities(argument(node, 3, "bias")) if name == "layer_norm" else None
    eps = constant(argument(node, 4, "eps", default=1e-5) if name == "layer_norm" else argument(node, 3, "eps"))
    if not isinstance(shape, int) and len(shape) != 1:
        return f"a norm over {len(shape)} dimensions"
    if any(given is not None and given not in provenance.parameters for given in (weight, bias)):
        return "a norm whose weight or bias is computed in the graph"
    if eps is None:
        eps = default_eps(fake(x).dtype)
    style = "layer" if name == "layer_norm" else "rms"
    return NormSite("", node, x, weight, bias, eps, style, nodes=[node])


def default_eps(dtype: torch.dtype) -> float:
    """What ``rms_norm`` adds for rows of ``dtype`` where it is given none: it computes short ones in float32."""
    return torch.finfo(torch.promote_types(dtype, torch.float32)).eps


@dataclass
class _Root:
    """1 / sqrt(mean(x²) + eps), or its inverse: the nodes that make it."""

    x: Node
    eps: float
    nodes: list[Node]
    divides: bool


def _spelled_out(node: Node, provenance: Provenance) -> NormSite | None:
    """x · rsqrt(mean(x², -1) + eps) · (offset + weight), with casts anywhere between."""
    name = op_name(node)
    if name not in ("mul", "div") or len(node.args) != 2:
        return None
    first, second = node.args
    if name == "div":
        pairs = [(first, second)]
    else:
        pairs = [(first, second), (second, first)]
    for scaled, factor in pairs:
        root = _inverse_root(factor)
        if root is None or root.divides != (name == "div") or before_casts(scaled) is not before_casts(root.x):
            continue
        nodes = [node, *root.nodes, *_casts_between(scaled, before_casts(scaled))]
        return _with_weight(node, before_casts(scaled), root.eps, nodes, provenance)
    return None


def _inverse_root(factor: Any) -> _Root | None:
    """Match rsqrt(v), v ** -0.5, 1 / sqrt(v), or the divisor sqrt(v), with v = mean(x²) + eps."""
    casts = _casts_between(factor, before_casts(factor))
    node = before_casts(factor)
    name = op_name(node) if isinstance(node, Node) else ""
    divides = name == "sqrt" or (name == "pow" and argument(node, 1, "exponent") == 0.5)
    if name in ("div", "reciprocal"):
        under = _inverse_root(node.args[-1])
        if under is None or not under.divides or (name == "div" and node.args[0] != 1):
            return None
        return _Root(under.x, under.eps, [*casts, node, *under.nodes], divides=False)
    if not divides and not (name == "rsqrt" or (name == "pow" and argument(node, 1, "exponent") == -0.5)):
        return None
    shifted = node.args[0]
    if op_name(shifted) != "add" or len(shifted.args) != 2:
        return None
    mean, shift = shifted.args if fake(shifted.args[0]) is not None else reversed(shifted.args)
    eps = constant(shift)
    if eps is None or fake(mean) is None:
        return None
    square = _mean_of(mean)
    x = _squared(square) if square is not None else None
    if x is None:
        return None
    inner = [*_casts_between(x, before_casts(x))]
    return _Root(x, float(eps), [*casts, node, shifted, mean, square, *inner], divides)


def _mean_of(mean: Node) -> Node | None:
    if op_name(mean) != "mean" or argument(mean, 2, "keepdim", default=False) is not True:
        return None
    square = argument(mean, 0, "input")
    return square if last_dim(square, argument(mean, 1, "dim")) else None


def _squared(square: Node) -> Node | None:
    name = op_name(square)
    if name == "square" or (name == "pow" and argument(square, 1, "exponent") == 2):
        return square.args[0]
    if name == "mul" and square.args[0] is square.args[1]:
        return square.args[0]
    return None


def _with_weight(
    normalised: Node, x: Node, eps: float, nodes: list[Node], provenance: Provenance
) -> NormSite:
    """Follow the only user through casts to the multiplication with the weight, and to the cast after it."""
    last, weight, offset = normalised, None, 0.0
    passed: list[Node] = []
    while len(last.users) == 1:
        user = next(iter(last.users))
        if is_cast(user) and user.args[0] is last:
            passed.append(user)
        elif weight is None and op_name(user) == "mul" and len(user.args) == 2:
            other = user.args[1] if user.args[0] is last else user.args[0]
            weight, offset, made_by = _weight_of(other, provenance)
            if weight is None:
                break
            nodes += [*passed, user, *made_by]
            passed = []
            normalised = user
        else:
            break
        last = user
    back = _cast_back(normalised, passed, x)
    return NormSite("", back[-1] if back else normalised, x, weight, None, eps, "rms", offset, [*nodes, *back])


def _cast_back(normalised: Node, passed: list[Node], x: Node) -> list[Node]:
    """Of the casts after the norm, those up to the one that restores x's dtype; none where it never left it."""
    before = fake(x)
    dtypes = [value.dtype if (value := fake(node)) is not None else None for node in (normalised, *passed)]
    return passed[: dtypes.index(before.dtype)] if before is not None and before.dtype in dtypes else []


def _weight_of(factor: Any, provenance: Provenance) -> tuple[Node | None, float, list[Node]]:
    """The parameter in ``weight`` or ``offset + weight``, the offset, and the nodes between."""
    casts = _casts_between(factor, before_casts(factor))
    node = before_casts(factor)
    if node in provenance.parameters and fake(node) is not None and fake(node).ndim == 1:
        return node, 0.0, casts
    if isinstance(node, Node) and op_name(node) == "add" and len(node.args) == 2:
        constants = [number for value in node.args if (number := constant(value)) is not None]
        operands = [value for value in node.args if fake(value) is not None]
        if len(constants) == 1 and len(operands) == 1:
            weight, offset, inner = _weight_of(operands[0], provenance)
            return weight, offset + constants[0], [*casts, node, *inner] if weight is not None else []
    return None, 0.0, []


def _casts_between(node: Any, origin: Any) -> list[Node]:
    found = []
    while isinstance(node, Node) and node is not origin:
        found.append(node)
        node = node.args[0]
    return found
