"""A norm's weight, divided away by a reader that has absorbed it, or absorbed by a linear, goes out of the graph.

    before   n = norm(x, g, b)      n / g -> matmul      linear(n, W)                other(n)
    after    m = norm(x)            m + b/g -> matmul    linear(m, W diag(g), W b)   other(m · g + b)

The bare norm carries rotations; the one with a weight does not.
"""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch.fx import Graph, GraphModule, Node

from torchqx.fx_passes.in_place import changing_values
from torchqx.fx_passes.rotations.norms import (
    bare_layer_norm,
    bare_rms_norm,
    moved_bias,
    scaled_norm,
    weighted,
)
from torchqx.fx_passes.sites import NormSite
from torchqx.fx_passes.sites.norms import find_norms
from torchqx.fx_passes.sites.ops import RESHAPES, fake, is_identity, op_name, same_size
from torchqx.fx_passes.sites.provenance import Provenance, placeholder_parameters

_MOVES = RESHAPES | {"transpose", "permute", "getitem", "select", "narrow", "expand", "contiguous"}
Gains = Mapping[Node, tuple[Node, float]]


def take_out_norms(gm: GraphModule, gains: Gains, linears: Collection[Node] = (), always: bool = False) -> None:
    """Rewrite ``gm`` in place.

    Args:
        gains: divisor -> (a norm's weight, the offset added to it) whose sum it is known to equal; a norm's weight
            itself needs no entry.
        linears: float ones that absorb the weight of the norm whose result they read.
        always: split norms in two also where no reader takes their weight.
    """
    changing = changing_values(gm.graph.nodes)
    instead: dict[Node, Node] = {}  # one norm may read another's result
    norms, _ = find_norms(gm, Provenance(gm, placeholder_parameters(gm)))
    for site in norms:
        if site.node in changing:
            continue
        readers = _readers(site, gains, linears)
        if readers or always or (site.weight is None and site.bias is None):
            instead[site.node] = _take_out(gm.graph, site, instead.get(site.x, site.x), readers)
    gm.graph.lint()
    gm.recompile()


def _readers(site: NormSite, gains: Gains, linears: Collection[Node]) -> dict[Node, list[Node]]:
    """Divisions of the norm's result by its weight, and those of ``linears`` that read it -> the views between."""
    found: dict[Node, list[Node]] = {}
    queue: list[list[Node]] = [[site.node]]
    while queue:
        path = queue.pop()
        for user in path[-1].users:
            if user.args[:1] != (path[-1],):
                continue
            if user in linears or _divides(user, site, gains):
                found[user] = path[1:]
            elif _keeps_rows(user):
                queue.append([*path, user])
    return found


def _divides(node: Node, site: NormSite, gains: Gains) -> bool:
    if site.weight is None or op_name(node) != "div" or len(node.args) != 2 or not isinstance(node.args[1], Node):
        return False
    return gains.get(node.args[1], (node.args[1], 0.0)) == (site.weight, site.weight_offset)


def _keeps_rows(node: Node) -> bool:
    before, after = fake(node.args[0]), fake(node)
    if before is None or after is None or not (op_name(node) in _MOVES or is_identity(node)):
        return False
    if not after.ndim or not same_size(before.shape[-1], after.shape[-1]):
        return False
    return op_name(node) not in ("transpose", "permute", "select", "narrow", "getitem") or _last_stays(node)


def _last_stays(node: Node) -> bool:
    """Whether the last dimension is the last before: seen on the strides of a fake view."""
    before, after = fake(node.args[0]), fake(node)
    return before.stride(-1) == after.stride(-1) == 1 and before.untyped_storage()._cdata == \
        after.untyped_storage()._cdata


def _take_out(graph: Graph, site: NormSite, x: Node, readers: Mapping[Node, list[Node]]) -> Node:
    """Write the norm of ``x`` anew; returns what stands for its weighted result."""
    function = bare_rms_norm if site.style == "rms" else bare_layer_norm
    with graph.inserting_before(site.node):
        bare = graph.call_function(function, (x, site.eps, fake(site.node).dtype))
    bare.meta = dict(site.node.meta)
    ratio: dict[Node, Node] = {}
    moved: dict[Node, Node] = {site.node: bare}
    for reader, views in readers.items():
        value = bare
        for view in views:
            if view not in moved:
                with graph.inserting_after(view):
                    moved[view] = graph.node_copy(view, lambda n: moved.get(n, n))
            value = moved[view]
        if op_name(reader) != "div":
            reader.args = (value, *_absorbed(graph, site, reader))
            continue
        if site.bias is not None:
            divisor = reader.args[1]
            with graph.inserting_before(bare):
                ratio[divisor] = ratio.get(divisor) or graph.call_function(torch.div, (site.bias, divisor))
            ratio[divisor].meta = dict(site.bias.meta)
            with graph.inserting_before(reader):
                value = graph.call_function(torch.add, (value, ratio[divisor]))
            value.meta = dict(reader.args[0].meta)
        reader.replace_all_uses_with(value)
        graph.erase_node(reader)
    for view in reversed(list(moved)[1:]):
        if not view.users:
            graph.erase_node(view)
    value = bare
    if site.node.users:
        if site.weight is not None or site.bias is not None:
            with graph.inserting_after(bare):
                value = graph.call_function(scaled_norm, (bare, site.weight, site.bias, site.weight_offset))
            value.meta = dict(site.node.meta)
        site.node.replace_all_uses_with(value, delete_user_cb=lambda user: user is not value)
    for node in reversed(site.nodes):
        if not node.users:
            graph.erase_node(node)
    return value


def _absorbed(graph: Graph, site: NormSite, linear: Node) -> tuple[Node, Node | None]:
    """Weight and bias with which the linear reads the bare norm."""
    matrix, bias = linear.args[1], linear.args[2] if len(linear.args) > 2 else None
    with graph.inserting_before(linear):
        if site.bias is not None:
            shape = fake(matrix).detach()[:, 0] if bias is None else fake(bias)
            bias = graph.call_function(moved_bias, (matrix, site.bias, bias))
            bias.meta = {"example_value": shape}
        if site.weight is not None:
            inner, matrix = matrix, graph.call_function(weighted, (matrix, site.weight, site.weight_offset))
            matrix.meta = dict(inner.meta)
    return matrix, bias


def norm_before(x: Node, norms: Iterable[NormSite]) -> NormSite | None:
    """The norm whose weighted result ``x`` shows, through views that keep rows."""
    by_node = {norm.node: norm for norm in norms}
    while x not in by_node:
        if x.op not in ("call_function", "call_method") or not x.args or not _keeps_rows(x):
            return None
        x = x.args[0]
    return by_node[x] if by_node[x].weight is not None else None
