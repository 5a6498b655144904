"""Scan and convolution sites of state-space models: calls of our operators, whoever put them into the graph."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.keys import KeyMaker, Paths
from torchqx.fx_passes.sites.ops import op_name
from torchqx.fx_passes.sites.provenance import Provenance
from torchqx.fx_passes.sites.site import LinearOp, LinearSite, ScanSite, Unsupported
from torchqx.inductor_kernels import causal_conv1d as _conv  # noqa: F401  registers the operators
from torchqx.inductor_kernels import chunk_scan as _chunk_scan  # noqa: F401
from torchqx.inductor_kernels import selective_scan as _selective_scan  # noqa: F401
from torchqx.inductor_kernels import state_update as _state_update  # noqa: F401

SELECTIVE_SCAN = torch.ops.torchqx.selective_scan.default
CHUNK_SCAN = torch.ops.torchqx.chunk_scan.default
STATE_UPDATE = torch.ops.torchqx.state_update.default
CONV = torch.ops.torchqx.causal_conv1d.default
CONV_UPDATE = torch.ops.torchqx.causal_conv1d_update.default

_SCAN = {"x": "x", "dt": "dt", "B": "B", "C": "C", "z": "z"}
TENSORS = {SELECTIVE_SCAN: _SCAN | {"x": "u", "dt": "delta"}, CHUNK_SCAN: _SCAN, STATE_UPDATE: _SCAN,
           CONV: {"x": "x"}, CONV_UPDATE: {"x": "x"}}
CONSTANTS = {SELECTIVE_SCAN: {"A": "A", "D": "D", "bias": "delta_bias"}, CHUNK_SCAN: {"A": "A", "D": "D",
             "bias": "dt_bias"}, STATE_UPDATE: {"A": "A", "D": "D", "bias": "dt_bias"},
             CONV: {"weight": "weight"}, CONV_UPDATE: {"weight": "weight"}}  # fmt: skip
"""Role -> the operator's name for it."""
HAND_WRITTEN = "a scan by associative_scan, traced step by step; torchqx.selective_scan makes one operator of it"
_VIEWS = frozenset({"transpose", "getitem", "view", "reshape", "unsqueeze", "squeeze", "contiguous", "permute"})


def find_scans(gm: GraphModule, provenance: Provenance, paths: Paths,
               linears: Iterable[LinearOp]) -> tuple[list[ScanSite], list[Unsupported]]:
    """Every site, and the hand-written scans, one per module."""
    found: list[ScanSite] = []
    by_hand: dict[str, Unsupported] = {}
    keys, linears = KeyMaker(), list(linears)
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        if _by_hand(node) and (path := paths.of(node)) not in by_hand:
            by_hand[path] = Unsupported(keys(path, "unsupported"), node, HAND_WRITTEN, "scan")
        if node.target in TENSORS:
            path, given = paths.of(node), named_arguments(node)
            kind = "conv" if node.target in (CONV, CONV_UPDATE) else "scan"
            near = [op for op in linears if op.path == path or op.path.startswith(f"{path}.") or not path]
            found.append(ScanSite(
                keys(path, kind), node, kind, path,
                {role: given[n] for role, n in TENSORS[node.target].items() if isinstance(given[n], Node)},
                {role: given[n] for role, n in CONSTANTS[node.target].items() if provenance.is_derived(given[n])},
                near[0] if near else None))
    return found, list(by_hand.values())


def mark_readers(gm: GraphModule, scans: Iterable[ScanSite], linears: Iterable[LinearSite]) -> None:
    """Tell the linear sites that read a scan's result, through anything but another weighted matmul or scan."""
    made: dict[Node, ScanSite | None] = {site.node: site for site in scans if site.kind == "scan"}
    weighted = {op.node for site in linears for op in site.ops}
    for node in gm.graph.nodes:
        if node not in made:
            above = [made[n] for n in node.all_input_nodes if made.get(n) is not None]
            made[node] = above[0] if above and node not in weighted else None
    for site in linears:
        site.scan = made[site.x]


def named_arguments(node: Node) -> dict[str, Any]:
    """Every argument of an operator's call by its name, defaults included."""
    schema = node.target._schema.arguments
    given = {a.name: a.default_value for a in schema}
    return given | {a.name: value for a, value in zip(schema, node.args, strict=False)} | node.kwargs


def under_views(node: Node) -> Node:
    """What ``node`` shows the values of, all or some, in whatever order."""
    while op_name(node) in _VIEWS and isinstance(node.args[0], Node) and not _part_of_tuple(node):
        node = node.args[0]
    return node


def _part_of_tuple(node: Node) -> bool:
    return node.target is operator.getitem and not isinstance(node.args[0].meta.get("example_value"), torch.Tensor)


def _by_hand(node: Node) -> bool:
    """A step of ``associative_scan``: the operator itself, or what it is traced through to on a CPU."""
    name = getattr(node.target, "__name__", "")
    inside = name == "_vmap_increment_nesting" and "associative_scan" in (node.stack_trace or "")
    return name == "associative_scan" or inside
