"""The padding mask among the graph's inputs, found by following attention masks back to where they come from."""

from collections.abc import Iterable

from torch.fx import Node

from torchqx.fx_passes.sites.ops import fake, op_name, same_size
from torchqx.fx_passes.sites.provenance import Provenance
from torchqx.fx_passes.sites.site import AttentionSite, ScanSite

# Ops that carry a mask on, by whether they keep its meaning; sums over tokens (position ids) are not among them.
_CARRIES = frozenset({
    "to", "bool", "float", "int", "long", "type_as", "view", "reshape", "expand", "expand_as", "unsqueeze",
    "squeeze", "permute", "transpose", "contiguous", "clone", "getitem", "and", "or", "where", "mul", "add",
    "sub", "rsub", "not", "eq", "ne", "lt", "gt", "le", "ge", "masked_fill", "full_like", "zeros_like",
    "ones_like", "cat", "pad", "stack", "broadcast_to", "repeat", "flatten", "unflatten", "logical_or", "tril",
    "triu",
})

_SHOWS = frozenset({"to", "transpose", "permute", "getitem", "split", "view", "reshape", "unsqueeze", "squeeze",
                    "contiguous"})


def find_padding_mask(attentions: Iterable[AttentionSite], scans: Iterable[ScanSite],
                      provenance: Provenance) -> tuple[Node | None, bool]:
    """The graph input [B, S] that the masks are made of, and whether nonzero marks padding instead of a token.

    Where no attention has one, it is what a scan's input is multiplied by: [B, S, 1], zero for padding.
    """
    for site in attentions:
        seen: set[Node] = set()
        for mask in (site.mask, *site.biases):
            found = _search(mask, _lifted(mask), False, provenance, seen)
            if found is not None:
                return found[0], found[1] != (_masks_where_true(site, mask))
    for scan in scans:
        node = scan.tensors["x"]
        while isinstance(node, Node) and op_name(node) in _SHOWS:
            node = node.args[0]
        for factor in node.args if op_name(node) == "mul" else ():
            found = _search(factor, _lifted(factor), False, provenance, set())
            if found is not None:
                return found
    return None, False


def _masks_where_true(site: AttentionSite, mask: Node | None) -> bool:
    """masked_fill hides where its mask is true; every other use of a mask hides where it is false."""
    return any(op_name(node) == "masked_fill" and mask in node.args[1:2] for node in site.nodes)


def _search(
    node: Node | None, lifted: Node | None, inverted: bool, provenance: Provenance, seen: set[Node]
) -> tuple[Node, bool] | None:
    """Depth first from a mask to a placeholder [B, S]; ``lifted`` is the last value passed with a dimension more."""
    if not isinstance(node, Node) or node in seen or node in provenance.parameters:
        return None
    seen.add(node)
    value = fake(node)
    if node.op == "placeholder":
        return (node, inverted) if value is not None and value.ndim == 2 and _per_token(node, lifted) else None
    if op_name(node) not in _CARRIES:
        return None
    above = _lifted(node) or lifted
    for operand, flips in _operands(node):
        found = _search(operand, above, inverted != flips, provenance, seen)
        if found is not None:
            return found
    return None


def _lifted(node: Node | None) -> Node | None:
    value = fake(node)
    return node if value is not None and value.ndim > 2 else None


def _per_token(placeholder: Node, lifted: Node | None) -> bool:
    """Whether the mask's first dimension stays the batch: [B, S] becomes [B, 1, .., S], but [S, S] [1, .., S, S]. Or
    [B, S, 1], where it multiplies."""
    if lifted is None:
        return False
    first = fake(placeholder).shape[0]
    shape = fake(lifted).shape
    widened = shape[-1] if len(shape) == 3 else shape[1]
    return same_size(shape[0], first) and any(isinstance(size, int) and size == 1 for size in (shape[1], widened))


def _operands(node: Node) -> list[tuple[Node, bool]]:
    """Tensors that a mask op reads, and whether it turns the meaning round."""
    name, args = op_name(node), node.args
    if name in ("masked_fill", "where"):
        return _chosen(node, name)
    if name == "sub" and not isinstance(args[0], Node):
        return [(args[1], True)]
    if name == "rsub":
        return [(args[0], True)]
    if name == "not" or (name == "eq" and args[1] == 0) or (name == "ne" and args[1] == 1):
        return [(args[0], True)]
    if name == "lt" and isinstance(args[1], int | float):
        return [(args[0], True)]
    if name == "mul" and any(isinstance(factor, int | float) and factor < 0 for factor in args):
        return [(operand, True) for operand in args if isinstance(operand, Node)]
    return [(operand, False) for operand in node.all_input_nodes]


def _chosen(node: Node, name: str) -> list[tuple[Node, bool]]:
    """where(hide, -inf, keep), where(keep, 0, -inf), and x.masked_fill(hide, -inf)."""
    if name == "masked_fill":
        return [(node.args[1], _lowest(node.args[2])), (node.args[0], False)]
    condition, chosen, other = node.args
    return [(condition, _lowest(chosen)), (chosen, False), (other, False)]


def _lowest(value: object) -> bool:
    return isinstance(value, int | float) and value < 0
