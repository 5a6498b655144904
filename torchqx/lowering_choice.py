"""The cost model's say in one graph: which of its quantized matmuls run on integers, for the rows it is traced with."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import SymInt, Tensor
from torch.fx import Node
from torch.utils.weak import WeakIdKeyDictionary

from torchqx.cost_model import BYTES, Choice, Matmuls, choose
from torchqx.fx_passes.lower import OpStructure, is_simple
from torchqx.fx_passes.sites import Form, GraphSites, LinearOp
from torchqx.inductor_kernels.int8_linear.cpu import is_supported
from torchqx.machine_rates import machine_rates
from torchqx.quantizers import AffineQuantizer
from torchqx.storage import QuantizedWeight
from torchqx.watched import plain_part

Policy = Literal["auto", "int8", "float"]
POLICIES = ("auto", "int8", "float")
FLOAT = AffineQuantizer(granularity="none", dynamic=True)
SMALL_COPY = 1 << 16  # bytes of a float weight that may be kept beside its codes

_CHOICES: WeakIdKeyDictionary = WeakIdKeyDictionary()


def choices_for(weight: Tensor) -> dict[int, Choice]:
    """Rows -> what was chosen for the matmul with ``weight``, in the graphs that were compiled so far."""
    return _CHOICES.get(plain_part(weight)) or {}


def choose_lowerings(sites: GraphSites, structures: Mapping[Node, OpStructure], weights: Mapping[Node, Tensor],
                     policy: Policy) -> dict[Node, OpStructure]:
    """``structures`` as they are to be lowered: without those that run in float, and with float rows for those whose
    weight alone stays in integers.

    Rotated sites, experts, convolutions, and what does not run on a CPU stay in integers unless the policy is "float".

    Args:
        structures: of the quantized matmuls, by the op's node.
        weights: op's node -> the model's own parameter.
        policy: "auto" asks the cost model; "int8" and "float" decide for all.
    """
    if policy == "int8":
        return dict(structures)
    chosen = {} if policy == "float" else dict(structures)
    for ops in _groups(sites, structures) if policy == "auto" else ():
        matmuls = _matmuls(ops, structures[ops[0].node])
        if matmuls is None:
            continue
        stored = any(isinstance(weights[op.node], QuantizedWeight) for op in ops)
        copy = matmuls.k * sum(matmuls.columns) * BYTES[matmuls.dtype]
        choice = choose(machine_rates(), matmuls, keeps_float=not stored or copy <= SMALL_COPY)
        for op in ops:
            _CHOICES.setdefault(plain_part(weights[op.node]), {})[matmuls.rows] = choice
            if choice.lowering == "float":
                del chosen[op.node]
            elif choice.lowering == "weight only":
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


def _matmuls(ops: list[LinearOp], structure: OpStructure) -> Matmuls | None:
    """What the cost model asks of ``ops``; None where it has no say."""
    rotated = structure.rotation is not None or structure.norm or structure.output_rotation is not None
    dtype = str(ops[0].node.meta["example_value"].dtype).removeprefix("torch.")
    if (structure.device.type != "cpu" or rotated or ops[0].form is not Form.LINEAR or dtype not in BYTES
            or structure.activation.granularity == "none"):
        return None
    *leading, k = ops[0].x.meta["example_value"].shape
    rows = 1
    for size in leading:
        rows *= size.node.hint if isinstance(size, SymInt) else size
    columns = tuple(int(op.node.meta["example_value"].shape[-1]) for op in ops)
    kernel = "general" if not is_simple(structure) else "packed" if is_supported(structure.device) else "plain"
    sizes = [s for s in (structure.weight.group_size, structure.activation.group_size) if s is not None]
    return Matmuls(max(1, rows), int(k), columns, dtype, kernel, max((k // s for s in sizes), default=1),
                   structure.activation.dynamic)


def reported(parameters: Iterable[Any]) -> tuple[float | None, dict[str, str]]:
    """For a site's line in the report: the gain at the most rows, and rows -> what was chosen there."""
    found = {rows: choice for p in parameters if isinstance(p, torch.Tensor) for rows, choice in choices_for(p).items()}
    if not found:
        return None, {}
    return found[max(found)].gain, {str(rows): str(choice) for rows, choice in sorted(found.items())}
