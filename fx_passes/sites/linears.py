"""Linear sites: weighted matmuls that read one activation, together."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch.fx import GraphModule, Node

from torchqx.fx_passes.sites.contractions import Contraction, Refusal, read_contraction
from torchqx.fx_passes.sites.keys import KeyMaker, common_path, path_of
from torchqx.fx_passes.sites.ops import same_rows
from torchqx.fx_passes.sites.provenance import Provenance
from torchqx.fx_passes.sites.site import Form, LinearOp, LinearSite, Unsupported


@dataclass
class LinearSearch:
    """Weighted matmuls of a graph, in graph order, and those that are not handled."""

    ops: list[LinearOp] = field(default_factory=list)
    unsupported: list[Unsupported] = field(default_factory=list)


def find_linear_ops(gm: GraphModule, provenance: Provenance, taken: Iterable[Node]) -> LinearSearch:
    """Every weighted matmul; ``taken`` are matmuls that belong to an attention."""
    search, keys, skipped = LinearSearch(), KeyMaker(), set(taken)
    for node in gm.graph.nodes:
        if node in skipped:
            continue
        found = read_contraction(node, provenance)
        if isinstance(found, Contraction):
            path = path_of(node, found.weight)
            search.ops.append(
                LinearOp(
                    found.node, found.x, found.weight, found.bias, found.form, found.layout,
                    path, keys(path, "linear"), found.offsets,
                )
            )  # fmt: skip
        elif isinstance(found, Refusal):
            path = path_of(node, found.weight)
            search.unsupported.append(Unsupported(keys(path, "unsupported"), node, found.reason, "linear"))
    return search


def group_by_activation(ops: list[LinearOp]) -> list[LinearSite]:
    """One site per activation; only ops that read rows of it directly share one, others stand alone."""
    groups: dict[tuple[Node, LinearOp | None], list[LinearOp]] = {}
    for op in ops:
        alone = op.form is not Form.LINEAR
        groups.setdefault((op.x if alone else same_rows(op.x), op if alone else None), []).append(op)
    keys = KeyMaker()
    shared_path = {group: common_path(op.path for op in members) for group, members in groups.items()}
    return [LinearSite(keys(shared_path[group], "linear"), group[0], members) for group, members in groups.items()]
