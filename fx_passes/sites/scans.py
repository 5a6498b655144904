"""Scan and convolution sites of state-space models: calls of our operators, whoever put them into the graph."""

import operator
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.keys import KeyMaker, path_of
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
HOST_FUNCTIONS = {"mamba_selective_scan": "scan", "mamba_selective_state_update": "scan", "mamba2_chunk_scan": "scan",
                  "mamba2_selective_state_update": "scan", "causal_conv1d_fn": "conv", "causal_conv1d_update": "conv"}
"""transformers' functions that torchqx has operators for -> the kind of site."""
TRACED = "{} was traced step by step: its parameters, activation, device or packing are not what the operator takes"
_INSIDE_HOST = re.compile(rf", in ({'|'.join(HOST_FUNCTIONS)})$", re.MULTILINE)
_VIEWS = frozenset({"transpose", "getitem", "view", "reshape", "unsqueeze", "squeeze", "contiguous", "permute"})


def find_scans(gm: GraphModule, provenance: Provenance,
               linears: Iterable[LinearOp]) -> tuple[list[ScanSite], list[Unsupported]]:
    """Every site; and, one per module, the scans written by hand and the functions that were traced step by step."""
    found: list[ScanSite] = []
    told: dict[tuple[str, str], Unsupported] = {}
    keys, linears = KeyMaker(), list(linears)
    for node in gm.graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        for reason, kind in _step_by_step(node):
            if (path := path_of(node), reason) not in told:
                told[path, reason] = Unsupported(keys(path, "unsupported"), node, reason, kind)
        if node.target in TENSORS:
            path, given = path_of(node), named_arguments(node)
            kind = "conv" if node.target in (CONV, CONV_UPDATE) else "scan"
            near = [op for op in linears if _inside(op.path, path)]
            found.append(ScanSite(
                keys(path, kind), node, kind, path,
                {role: given[n] for role, n in TENSORS[node.target].items() if isinstance(given[n], Node)},
                {role: given[n] for role, n in CONSTANTS[node.target].items() if provenance.is_derived(given[n])},
                near[0] if near else None))
    return found, list(told.values())


def mark_readers(gm: GraphModule, scans: Iterable[ScanSite], linears: Iterable[LinearSite]) -> None:
    """Tell the linear sites that read a scan's result, through anything but another weighted matmul or scan, and those
    that are in a layer with one; and the scans whose x linear sites read too."""
    made: dict[Node, ScanSite | None] = {site.node: site for site in scans if site.kind == "scan"}
    weighted = {op.node for site in linears for op in site.ops}
    for node in gm.graph.nodes:
        if node not in made:
            above = [made[n] for n in node.all_input_nodes if made.get(n) is not None]
            made[node] = above[0] if above and node not in weighted else None
    layers = {site.path for site in scans if site.kind == "scan"}
    for site in linears:
        site.scan = made[site.x]
        site.state_space = any(_inside(op.path, layer) for op in site.ops for layer in layers)
    for scan in scans:
        if scan.kind == "scan":
            source = under_views(scan.tensors["x"])
            scan.x_readers = [site for site in linears if under_views(site.x) is source]


def named_arguments(node: Node) -> dict[str, Any]:
    """Every argument of an operator's call by its name, defaults included."""
    schema = node.target._schema.arguments
    given = {a.name: a.default_value for a in schema}
    return given | {a.name: value for a, value in zip(schema, node.args, strict=False)} | node.kwargs


def _inside(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.") or not module


def under_views(node: Node) -> Node:
    """What ``node`` shows the values of, all or some, in whatever order."""
    while op_name(node) in _VIEWS and isinstance(node.args[0], Node) and not _part_of_tuple(node):
        node = node.args[0]
    return node


def _part_of_tuple(node: Node) -> bool:
    return node.target is operator.getitem and not isinstance(node.args[0].meta.get("example_value"), torch.Tensor)


def _step_by_step(node: Node) -> Iterator[tuple[str, str]]:
    """Why ``node`` is part of a scan or convolution that is no operator, and which of the two it is."""
    name, trace = getattr(node.target, "__name__", ""), node.stack_trace or ""
    if name == "associative_scan" or (name == "_vmap_increment_nesting" and "associative_scan" in trace):
        yield HAND_WRITTEN, "scan"  # the operator itself, or what it is traced through to on a CPU
    host = _INSIDE_HOST.search(trace)
    if host is not None:
        yield TRACED.format(host[1]), HOST_FUNCTIONS[host[1]]
