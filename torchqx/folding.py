"""Rotations that cost nothing: planned when a model begins to calibrate, folded when its quantized graph is written."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.nn import Parameter

from torchqx.fx_passes import derived as d
from torchqx.fx_passes.derived import Derived
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.prove import TOLERANCE
from torchqx.fx_passes.quantize import QuantizedGraph
from torchqx.fx_passes.rotations.absorb import norm_before
from torchqx.fx_passes.rotations.explicit import RotationChoice
from torchqx.fx_passes.rotations.fold import copied, fold_rotations
from torchqx.fx_passes.rotations.offline import take_offline, weights_of
from torchqx.fx_passes.rotations.plan import plan_rotations, width_of
from torchqx.fx_passes.rotations.prove import difference
from torchqx.fx_passes.sites import GraphSites, LinearOp, LinearSite, NormSite
from torchqx.fx_passes.sites.keys import KeyMaker, common_path, path_of
from torchqx.plan import SiteRecord
from torchqx.site_state import SiteState
from torchqx.storage import QuantizedWeight
from torchqx.transforms import Rotation


def plan_states(gm: GraphModule, sites: GraphSites, states: Mapping[LinearSite, Sequence[SiteState]],
                values: Mapping[Node, Tensor], names: Mapping[Node, str], heads: bool = True) -> list[SiteRecord]:
    """Give the states that rotate, and have seen nothing yet, the rotations that fold best in this graph.

    Args:
        values: placeholder -> Parameter; names: placeholder -> its name in the traced module.
        heads: whether rotations per head may fold too.

    Returns the records of embeddings, and of other float parameters that no linear site reads, that are rotated too.
    """
    wanted = [site for site, members in states.items() if all(_open(state) for state in members)]
    if not wanted:
        return []
    rows = {width_of(op): state.rotation for site in wanted for op, state in zip(site.ops, states[site], strict=True)}
    plan = plan_rotations(gm, sites, wanted, rows.__getitem__, values, heads)
    for site in wanted:
        for state in dict.fromkeys(states[site]):
            _settle(state, {op.key: (op, plan.choices[op]) for op in site.ops}, values)
    linears = {op.node: state for site, members in states.items() for op, state in zip(site.ops, members, strict=True)}
    keys, records = KeyMaker(), []
    for found in plan.floats:
        value, untied = values[found.weight], "untied: " if found.weight in sites.shared_weights else ""
        words = f"{untied}rotated copy of {value.numel() * value.element_size() / 2**20:.3g} MiB"
        if found.reader in linears:
            record = linears[found.reader].record
            record.reason = f"{record.reason}; {words}"
        else:
            key = keys(path_of(found.reader, found.weight), "embedding")
            record = SiteRecord(key, "embedding", "skipped", f"kept in float; {words}", weights=[names[found.weight]])
            records.append(record)
        record.transforms, record.placement = Rotation(found.rotation, value.shape[-1]).names, "folded"
    return records


def _open(state: SiteState) -> bool:
    return state.calibrating and not state.calls and state.rotation is not None and not state.placement


def _settle(state: SiteState, found: Mapping[str, tuple[LinearOp, RotationChoice]],
            values: Mapping[Node, Tensor]) -> None:
    mine = {i: found[o.key] for i, o in enumerate(state.operations) if o.key in found}
    inputs = {(c.input, c.norm) for _, c in mine.values()}
    state.output_rotations = {i: c.output for i, (_, c) in mine.items() if c.output is not None}
    folded = len(inputs) == 1 and all(c.folded for _, c in mine.values())
    state.placement = "folded" if folded else "online"
    if folded:
        op, choice = next(iter(mine.values()))
        gain = None if choice.norm is None else _gain(choice.norm, values)
        state.rotate(choice.input, gain, width_of(op))
    else:
        reasons = sorted({c.reason for _, c in mine.values() if c.reason})
        state.unrotated = f"rotated online: {'; '.join(reasons)}" if reasons else ""


def _gain(norm: NormSite, values: Mapping[Node, Tensor]) -> Tensor:
    return values[norm.weight].detach().float() + norm.weight_offset


def absorbed_norms(sites: GraphSites, found: Mapping[Node, QuantizedWeight | None], values: Mapping[Node, Tensor]
                   ) -> dict[Node, NormSite]:
    """Placeholder of a weight that has absorbed a norm's weight -> that norm, where it still has the same weight."""
    norms: dict[Node, NormSite | None] = {}
    for op in (op for site in sites.linears for op in site.ops):
        stored = found[op.node]
        if stored is None or stored.norm is None:
            continue
        norm = norm_before(op.x, sites.norms)
        same = norm is not None and torch.equal(_gain(norm, values), stored.norm)
        before = norms.get(op.weight, norm)
        alike = same and before is not None and before.weight is norm.weight
        norms[op.weight] = norm if alike else None
    return {weight: norm for weight, norm in norms.items() if norm is not None}


def fold_quantized(graph: QuantizedGraph, absorbed: Mapping[Node, NormSite], inputs: Sequence[Any]) -> str:
    """Fold the rotations of a quantized graph, in place: into its weights, and as derived inputs into those that are
    float. Returns why not, where the proof fails: then it stays.

    Args:
        inputs: of the graph, from a real call.
    """
    gm = graph.module
    if not any(n.target is HADAMARD for n in gm.graph.nodes):
        return ""
    placeholders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    place = {item: n for item, n in zip(graph.inputs, placeholders, strict=True) if isinstance(item, Node)}
    gains = {n: (place[norm.weight], norm.weight_offset)
             for item, n in zip(graph.inputs, placeholders, strict=True)
             if isinstance(item, Derived) and item.build is d.norm and (norm := _common(item.weights, absorbed))}
    kept, copies = copied(gm)
    before = GraphModule(gm, kept)
    rewritten = fold_rotations(gm, gains, weights_of(graph))
    given = [i.clone() if isinstance(i, Tensor) and not isinstance(i, Parameter) else i for i in inputs]
    error = difference(before, gm, {b: a for a, b in copies.items()}, rewritten, given)
    if error <= TOLERANCE:
        take_offline(graph)
        return ""
    gm.graph = kept
    return f"folding its rotations would change it by {error:.1e} in float64"


def refusal(operations: Sequence[LinearOp], weights: Collection[str], reason: str) -> SiteRecord:
    """The report's line on a graph with these matmuls and parameters in which no rotation folds."""
    path = common_path(op.path for op in operations)
    return SiteRecord(f"{path}:rotation:0", "rotation", "skipped", f"rotated online: {reason}", weights=[*weights])


def _common(weights: Collection[Node], absorbed: Mapping[Node, NormSite]) -> NormSite | None:
    """The norm that all ``weights`` have absorbed."""
    norms = [absorbed.get(weight) for weight in weights]
    if any(norm is None or norm.weight is not norms[0].weight for norm in norms):
        return None
    return norms[0]
