"""The cost model's say in one graph: which of its quantized matmuls run on integers, for the rows it is traced with."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Literal

from torch import Tensor
from torch.fx import Node

from torchqx.cost_model import BYTES, Choice, Matmuls, choose
from torchqx.fx_passes.lower import OpStructure, is_simple
from torchqx.fx_passes.sites import Form, GraphSites, LinearOp
from torchqx.fx_passes.sites.ops import traced_rows
from torchqx.inductor_kernels.int8_linear.cpu import is_supported
from torchqx.machine_rates import machine_rates
from torchqx.quantizers import AffineQuantizer
from torchqx.storage import QuantizedWeight

Policy = Literal["auto", "int8", "float"]
POLICIES = ("auto", "int8", "float")
FLOAT = AffineQuantizer(granularity="none", dynamic=True)
SMALL_COPY = 1 << 16  # bytes of a float weight that may be kept beside its codes

Note = Callable[[Tensor, int, Choice | None], None]


def choose_lowerings(sites: GraphSites, structures: Mapping[Node, OpStructure], weights: Mapping[Node, Tensor],
                     policy: Policy, note: Note) -> dict[Node, OpStructure]:
    """``structures`` as they are to be lowered: without those that run in float, and with float rows for those whose
    weight alone stays in integers.

    Rotated sites, experts, convolutions, and what does not run on a CPU stay in integers unless the policy is "float".

    Args:
        structures: of the quantized matmuls, by the op's node.
        weights: op's node -> the model's own parameter.
        policy: "auto" asks the cost model; "int8" and "float" decide for all.
        note: told of each weight, number of rows, and the cost model's choice, or None where it has no say.
    """
    chosen = {} if policy == "float" else dict(structures)
    for ops in _groups(sites, structures):
        rows = traced_rows(ops[0].x)
        if rows is None:
            continue
        rows = max(1, rows)
        choice = _choice(rows, ops, structures[ops[0].node], weights) if policy == "auto" else None
        for op in ops:
            note(weights[op.node], rows, choice)
            if choice is not None and choice.lowering == "float":
                del chosen[op.node]
            elif choice is not None and choice.lowering == "weight only":
                chosen[op.node] = replace(structures[op.node], activation=FLOAT)
    return chosen


def _groups(sites: GraphSites, structures: Mapping[Node, OpStructure]) -> Iterable[list[LinearOp]]:
    """The ops that read one quantized tensor."""
    for site in sites.linears:
        shared: dict[int, list[LinearOp]] = {}
        for op in site.ops:
            if op.node in structures:
                shared.setdefault(structures[op.node].sharing, []).append(op)
        yield from shared.values()


def _choice(rows: int, ops: list[LinearOp], structure: OpStructure, weights: Mapping[Node, Tensor]) -> Choice | None:
    """The cost model's for ``ops``; None where it has no say."""
    rotated = structure.rotation is not None or structure.norm or structure.output_rotation is not None
    dtype = str(ops[0].node.meta["example_value"].dtype).removeprefix("torch.")
    if (structure.device.type != "cpu" or rotated or ops[0].form is not Form.LINEAR or dtype not in BYTES
            or structure.activation.granularity == "none"):
        return None
    k = int(ops[0].x.meta["example_value"].shape[-1])
    columns = tuple(int(op.node.meta["example_value"].shape[-1]) for op in ops)
    kernel = "general" if not is_simple(structure) else "packed" if is_supported(structure.device) else "plain"
    sizes = [s for s in (structure.weight.group_size, structure.activation.group_size) if s is not None]
    matmuls = Matmuls(rows, k, columns, dtype, kernel, max((k // s for s in sizes), default=1),
                      structure.activation.dynamic,
                      structure.weight.group_size is not None or not structure.weight.symmetric)
    stored = any(isinstance(weights[op.node], QuantizedWeight) for op in ops)
    copy = k * sum(columns) * BYTES[dtype]
    return choose(machine_rates(), matmuls, keeps_float=not stored or copy <= SMALL_COPY)


def reported(choices: Iterable[Mapping[int, Choice]]) -> tuple[float | None, dict[str, str]]:
    """For a site's line in the report, from its weights' choices by rows: the smallest gain at the most rows, and
    rows -> what was chosen there, each way once."""
    found: dict[int, dict[Choice, None]] = {}
    for by_rows in choices:
        for rows, choice in by_rows.items():
            found.setdefault(rows, {})[choice] = None
    if not found:
        return None, {}
    gain = min(choice.gain for choice in found[max(found)])
    return gain, {str(rows): " / ".join(map(str, ways)) for rows, ways in sorted(found.items())}
