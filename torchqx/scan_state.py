"""One scan or convolution site of one model while it calibrates, and the scales that were found for it.

What is found is plain data in the site's record. It travels with a weighted matmul of the same module (its carrier),
so that the model's own parameters stay in float, eager mode stays as it is, and every checkpoint has it.
"""

from typing import Any

import torch
from torch import Tensor

from torchqx.fx_passes.sites import ScanSite
from torchqx.fx_passes.sites.scans import (
    CHUNK_SCAN,
    CONSTANTS,
    CONV,
    CONV_UPDATE,
    SELECTIVE_SCAN,
    STATE_UPDATE,
    TENSORS,
)
from torchqx.observers import MagnitudeObserver
from torchqx.plan import SiteRecord
from torchqx.quantizers import SMALLEST_SCALE
from torchqx.scan_constants import coded_constant
from torchqx.scan_recipe import LARGEST_CODE, ScanQuantization

SAMPLE_STEPS = 1024
SYMMETRIC = "s8 symmetric per tensor, static"
HEAD_DIMENSION = {"x": -2, "z": -2, "B": -2, "C": -2}
"""Where Mamba2's operands have their heads, or groups of states."""


class ScanState:
    """Statistics and solution of a site.

    Attributes:
        record: its line in the report; ``scales`` in it are what the backend runs on.
        weight_name: the carrier's parameter.
    """

    def __init__(self, site: ScanSite, weight_name: str, quantization: ScanQuantization) -> None:
        self.quantization, self.kind = quantization, site.kind
        self.record = SiteRecord(site.key, site.kind, "calibrating", weights=[weight_name])
        searched = [a for a in quantization.alphas if a is not None]
        self.observers = {role: MagnitudeObserver(searched if self._searched(role) else (), f"{site.key} {role}")
                          for role in sorted(site.tensors)}
        self.sample: tuple[Any, dict[str, Any]] | None = None

    def observe(self, site: ScanSite, given: dict[str, Any]) -> None:
        """Record one call of the operator, with its arguments by name."""
        target = site.node.target
        for role in site.tensors.keys() & self.observers.keys():
            self.observers[role](_channels_last(target, role, given[TENSORS[target][role]], self.quantization.grouped))
        if self.sample is None and target not in (STATE_UPDATE, CONV_UPDATE):
            self.sample = target, _excerpt(target, given)

    def _searched(self, role: str) -> bool:
        return role == "x" and self.kind == "scan"

    def solve(self) -> None:
        """Find the scales, and what they cost; does nothing once that is done.

        Raises:
            NoCalibrationDataError, NonFiniteError: as the observers find.
        """
        if self.record.status != "calibrating":
            return
        alphas = self.quantization.alphas if self.kind == "scan" else (None,)
        limits = {role: o.limits(alphas[0] if self._searched(role) else None) for role, o in self.observers.items()}
        if self.quantization.shared and {"B", "C"} <= limits.keys():
            limits["B"] = limits["C"] = torch.maximum(limits["B"], limits["C"])
        tried: dict[str, float] = {}
        best = limits
        for alpha in alphas:
            limits = {**limits, **({"x": self.observers["x"].limits(alpha)} if self.kind == "scan" else {})}
            error = self._error(limits)
            if not tried or error < min(tried.values()):
                best = limits
            tried["absmax" if alpha is None else f"percentile {alpha:g}"] = error
        self._fill(best, tried)
        self.release()

    def release(self) -> None:
        """Drop the statistics once the site is solved."""
        self.observers.clear()
        self.sample = None

    def share(self, role: str, limits: Tensor) -> None:
        """Give the solved tensor ``role`` another range, which it has in common with another site's."""
        self.record.scales[role] = _scales(limits)

    def solved(self, role: str) -> Tensor:
        """The largest magnitude that the tensor's codes reach, float32 [1] or one per group; solves if that was not
        done yet."""
        self.solve()
        return torch.tensor(self.record.scales[role]) * LARGEST_CODE

    def _error(self, limits: dict[str, Tensor]) -> float:
        """Relative error of the operator's result with operands and constants as their codes say."""
        if self.sample is None:
            return 0.0  # only single steps were seen: nothing to measure a sequence on
        target, given = self.sample
        coded = dict(given)
        for role, limit in limits.items():
            name = TENSORS[target][role]
            coded[name] = None if given[name] is None else _coded(target, role, given[name], limit)
        for role, name in CONSTANTS[target].items():
            if isinstance(given[name], Tensor):
                coded[name] = coded_constant(role, given[name])
        exact, found = (_result(target, arguments) for arguments in (given, coded))
        return float((found - exact).norm() / exact.norm().clamp(min=1e-30))

    def _fill(self, limits: dict[str, Tensor], tried: dict[str, float]) -> None:
        record, known = self.record, self.sample is not None
        record.status, record.activation = "quantized", SYMMETRIC
        record.weight, record.solver = SYMMETRIC.removesuffix(", static"), "percentile" if len(tried) > 1 else "range"
        record.scales = {role: _scales(limit) for role, limit in limits.items()}
        record.loss_on, record.error = ("scan result" if self.kind == "scan" else "convolution"), None
        record.errors = dict(tried) if known and len(tried) > 1 else {}
        if not known:
            return
        record.error = min(tried.values())
        target, given = self.sample
        for role, limit in limits.items():
            values = given[TENSORS[target][role]]
            if values is None:
                continue
            moved = _channels_last(target, role, values, limit.numel() > 1)
            record.clipped[role] = float((moved.abs() > limit * (1 + 1e-6)).float().mean())
            record.errors[role] = _relative(_coded(target, role, values, limit), values)
        for role, name in CONSTANTS[target].items():
            if isinstance(given[name], Tensor):
                record.errors[role] = _relative(coded_constant(role, given[name]), given[name])
        record.reason = "; ".join(f"{role}: scale {_span(record.scales[role])}, clips {clipped:.2%}, "
                                  f"error {record.errors[role]:.2%}" for role, clipped in record.clipped.items())


def _scales(limits: Tensor) -> list[float]:
    return (limits / LARGEST_CODE).clamp(min=SMALLEST_SCALE).tolist()


def _span(scales: list[float]) -> str:
    low, high = min(scales), max(scales)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g} ({len(scales)} groups)"


def _channels_last(target: Any, role: str, value: Tensor, grouped: bool) -> Tensor:
    """[..., K] with what shares one scale in each of the K columns."""
    has_heads = target is CHUNK_SCAN or (target is STATE_UPDATE and value.dim() == 3)
    heads = grouped and has_heads and role in HEAD_DIMENSION
    return value.movedim(HEAD_DIMENSION[role], -1) if heads else value.reshape(-1, 1)


def _coded(target: Any, role: str, value: Tensor, limit: Tensor) -> Tensor:
    scale = (limit / LARGEST_CODE).clamp(min=SMALLEST_SCALE)
    scale = scale[:, None] if scale.numel() > 1 else scale
    return (value.float() / scale).round().clamp(-LARGEST_CODE, LARGEST_CODE) * scale


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact.float()).norm() / exact.float().norm().clamp(min=1e-30))


def _excerpt(target: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The first row of the batch and its first steps, in float32."""
    time = {SELECTIVE_SCAN: -1, CHUNK_SCAN: 1, CONV: -1}[target]
    kept = {}
    for name, value in given.items():
        if not isinstance(value, Tensor):
            kept[name] = value
        elif name in TENSORS[target].values():
            first = value[:1].float()
            kept[name] = first.narrow(time, 0, min(SAMPLE_STEPS, first.shape[time])).clone()
        else:
            kept[name] = (value[:1] if name.startswith("initial_state") else value).float().clone()
    return kept | {"out_dtype": torch.float32}


def _result(target: Any, arguments: dict[str, Any]) -> Tensor:
    y = target(**arguments)
    return y if isinstance(y, Tensor) else y[0]
