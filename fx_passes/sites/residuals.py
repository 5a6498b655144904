"""Residual streams: additions of a value and a branch computed from it through a weighted op."""

from collections.abc import Collection, Iterable, Mapping

from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.flow import Flow
from torchqx.fx_passes.sites.keys import KeyMaker, common_path, path_of
from torchqx.fx_passes.sites.ops import fake, is_cast, op_name, same_rows, same_shape
from torchqx.fx_passes.sites.provenance import Provenance
from torchqx.fx_passes.sites.site import NormSite, ResidualSite


def find_residuals(
    gm: GraphModule,
    flow: Flow,
    provenance: Provenance,
    norms: Iterable[NormSite],
    inside_attention: Collection[Node],
) -> list[ResidualSite]:
    """Streams in graph order. A stream goes on through a norm of it (post-norm models), and ends where anything else
    replaces it. Additions of masks and biases ``inside_attention`` are none."""
    normalised = {norm.node: norm.x for norm in norms}
    stream_of: dict[Node, Node] = {}
    members: dict[Node, list[Node]] = {}
    for node in gm.graph.nodes:
        stream = None if node in inside_attention else _stream_operand(node, flow, stream_of, provenance)
        if stream is None:
            continue
        stream_of[node] = stream
        earlier = _earlier_add(stream, stream_of, normalised)
        adds = members[earlier] if earlier is not None else []
        adds.append(node)
        members[node] = adds
    keys = KeyMaker()
    streams = {id(adds): adds for adds in members.values()}.values()
    return [ResidualSite(keys(common_path(map(path_of, adds)), "residual"), adds) for adds in streams]


def _stream_operand(node: Node, flow: Flow, stream_of: Mapping[Node, Node], provenance: Provenance) -> Node | None:
    """The operand that the other one was computed from, if ``node`` adds a branch to a stream."""
    if op_name(node) != "add" or len(node.args) != 2:
        return None
    a, b = node.args
    if not (isinstance(a, Node) and isinstance(b, Node)) or not same_shape(a, b):
        return None
    value = fake(node)
    if value is None or value.ndim < 2 or not value.is_floating_point():
        return None
    if provenance.is_derived(a) or provenance.is_derived(b):
        return None
    for stream, branch in ((a, b), (b, a)):
        if any(flow.reaches_weighted(origin, branch) for origin in _origins(stream, stream_of)):
            return stream
    return None


def _origins(stream: Node, stream_of: Mapping[Node, Node]) -> list[Node]:
    """The stream's value now and before the additions just made to it (parallel branches read an earlier one)."""
    node: Node | None = stream
    found = []
    while node is not None:
        found.append(node)
        bare = _bare(node)
        if bare is not node:
            found.append(bare)
        node = stream_of.get(bare)
    return found


def _bare(node: Node) -> Node:
    while True:
        seen = same_rows(node)
        if not is_cast(seen):
            return seen
        node = seen.args[0]


def _earlier_add(stream: Node, stream_of: Mapping[Node, Node], norms: Mapping[Node, Node]) -> Node | None:
    """The addition of the same stream that ``stream`` shows, looking through norms, casts, and views."""
    node = _bare(stream)
    while node not in stream_of:
        before = norms.get(node)
        if before is None:
            return None
        node = _bare(before)
    return node
