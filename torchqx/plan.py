"""What was decided for every site, as plain data: the words in which reports and checkpoints speak."""

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from torchqx.errors import CheckpointError

Status = Literal["quantized", "float", "skipped", "calibrating"]


@dataclass
class SiteRecord:
    """One site's decision.

    Attributes:
        key: site key: module path, kind, ordinal.
        kind: linear, embedding, attention, norm, residual, conv, ..., or rotation: of a graph where none could fold.
        status: quantized; float (over the error budget); skipped (not asked for, or not possible); calibrating.
        reason: why it is not quantized, why it stepped to a wider quantizer, or why its error may be wrong; empty when
            there is nothing to say.
        operations: keys of the weighted matmuls in the site.
        weights: names of their parameters as the traced module spells them.
        transforms: names of the transforms on the activation, in order, e.g. "hadamard 576 (seed 0)", "shift".
        outlier_ratio_before, outlier_ratio_after: the largest over the median channel maximum of the activation as it
            comes, and as it is quantized; channels that are always zero do not count.
        placement: where the transform acts: "in the quantizer" (its multiplier and addend hold it: no work of its
            own), "online" before it, "folded" (its rotation into what comes before), or "" without a transform.
        activation, weight: quantizers, e.g. "u8 tensor static", "s8 channel".
        solver: what solved it; loss: its relative loss (compared tensor named in ``loss_on``).
        error: relative output error per token of what was chosen; where that is a static range, each token's with the
            range that the others give; None where there was a single one.
        errors: the same for every quantizer that was tried.
        scales: of a state-space site's tensors by their role, one or one per equal part of its channels; clipped: the
            share of each tensor's calibration values that lies outside its range (``errors``: its own relative error).
        bytes_before, bytes_after: weight memory.
        macs: multiply-adds per token (experts: per routed row).
        expected_gain: by the cost model, the float matmul's time over the integers', at the most rows compiled for;
            the least where the weights' matmuls differ.
        choices: number of rows -> what the cost model chose for the graph compiled for them.
    """

    key: str
    kind: str
    status: Status
    reason: str = ""
    operations: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    transforms: list[str] = field(default_factory=list)
    placement: str = ""
    activation: str = ""
    weight: str = ""
    solver: str = ""
    loss_on: str = ""
    loss: float | None = None
    error: float | None = None
    errors: dict[str, float] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    macs: int = 0
    expected_gain: float | None = None
    choices: dict[str, str] = field(default_factory=dict)
    scales: dict[str, list[float]] = field(default_factory=dict)
    clipped: dict[str, float] = field(default_factory=dict)
    outlier_ratio_before: float | None = None
    outlier_ratio_after: float | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Raises CheckpointError for a field that is unknown or missing."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or not {"key", "kind", "status"} <= set(data) <= known:
            raise CheckpointError("a site record has missing or unknown fields", where=str(data)[:80],
                                  remedy="save the checkpoint again with this version of torchqx.")
        return cls(**data)


def records_to_json(records: list[SiteRecord]) -> str:
    """Records as compact JSON text."""
    return json.dumps([r.to_dict() for r in records], separators=(",", ":"))


def records_from_json(text: str) -> list[SiteRecord]:
    """The inverse of :func:`records_to_json`; raises CheckpointError for anything else."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError("the plan is not valid JSON", where=text[:60],
                              remedy="the checkpoint is damaged: save it again.") from error
    if not isinstance(data, list):
        raise CheckpointError("the plan is not a list of sites", where=text[:60], remedy="save the checkpoint again.")
    return [SiteRecord.from_dict(item) for item in data]
