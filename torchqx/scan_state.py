"""One scan or convolution site of one model while it calibrates, and the scales that were found for it.

What is found is plain data in the site's record. It travels with a weighted matmul of the same module (its carrier),
so that the model's own parameters stay in float, eager mode stays as it is, and every checkpoint has it.
"""

from typing import Any

import torch
from torch import Tensor

from torchqx.fx_passes.observe import rows_mask
from torchqx.fx_passes.sites import ScanSite
from torchqx.fx_passes.sites.scans import (
    CHUNK_SCAN,
    CONSTANTS,
    CONV,
    SELECTIVE_SCAN,
    STATE_UPDATE,
    TENSORS,
)
from torchqx.observers import MagnitudeObserver, shared_limits
from torchqx.plan import SiteRecord, Status
from torchqx.scan_constants import coded_constant
from torchqx.scan_recipe import CODE, ScanQuantization, ScanScales

SAMPLE_STEPS = 1024
SYMMETRIC = "s8 symmetric per tensor, static"
IN_HEADS, IN_GROUPS = ("x", "z"), ("B", "C")
"""Mamba2's operands whose last two dimensions are heads and their channels, or groups and their states."""
TIME = {SELECTIVE_SCAN: -1, CHUNK_SCAN: 1, CONV: -1}
"""Where the operands of whole sequences have their steps."""


class ScanState:
    """Statistics and solution of a site.

    Attributes:
        record: its line in the report; ``scales`` in it are what the backend runs on.
        weight_name: the carrier's parameter.
    """

    def __init__(self, site: ScanSite, weight_name: str, quantization: ScanQuantization) -> None:
        self.quantization, self.kind = quantization, site.kind
        self.record = SiteRecord(site.key, site.kind, "calibrating", weights=[weight_name])
        self.roles = sorted(site.tensors)
        self.forget_activations()

    @property
    def calibrating(self) -> bool:
        return self.record.status == "calibrating"

    @property
    def in_float(self) -> bool:
        """Whether it was decided that the operator stays in float."""
        return self.record.status in ("float", "skipped")

    def stay_float(self, status: Status, reason: str) -> None:
        """Decide so, whatever was found before."""
        self.record = SiteRecord(self.record.key, self.kind, status, reason, weights=self.record.weights)
        self.release()

    def forget_activations(self) -> None:
        """Start the statistics again."""
        searched = [a for a in self.quantization.alphas if a is not None]
        self.observers = {
            role: MagnitudeObserver(searched if self._searched(role) else (), f"{self.record.key} {role}")
            for role in self.roles}
        self.sample: tuple[Any, dict[str, Any]] | None = None

    def observe(self, site: ScanSite, padding: Tensor | None, given: dict[str, Any]) -> None:
        """Record one call of the operator.

        Args:
            padding: [B, L], nonzero for real steps: the others do not count.
            given: the arguments by name.
        """
        target = site.node.target
        names = {role: TENSORS[target][role] for role in site.tensors.keys() & self.observers.keys()}
        real = None
        if target in TIME:
            x = given[TENSORS[target]["x"]]
            real = rows_mask(padding, torch.Size((x.shape[0], x.shape[TIME[target]], 1)))
        for role, name in names.items():
            values = given[name] if real is None else _steps(given[name], TIME[target], real)
            self.observers[role](_channels_last(target, role, values, self.quantization.scales))
        if target in TIME and (real is None or bool(real.any())):
            # Of the last call: the running quantiles start with the first one's, and fit that best.
            self.sample = target, _excerpt(target, given, real)

    def _searched(self, role: str) -> bool:
        return role == "x" and self.kind == "scan"

    def solve(self) -> None:
        """Find the scales, and what they cost; does nothing once that is done.

        Raises:
            NoCalibrationDataError, NonFiniteError: as the observers find.
        """
        if not self.calibrating:
            return
        alphas = self.quantization.alphas if self.kind == "scan" else (None,)
        limits = {role: self._limits(role, alphas[0]) for role in self.observers}
        if self.quantization.shared and {"B", "C"} <= limits.keys():
            limits["B"] = limits["C"] = torch.maximum(limits["B"], limits["C"])
        tried: dict[str, float] = {}
        best = limits
        for alpha in alphas:
            limits = {**limits, **({"x": self._limits("x", alpha)} if self.kind == "scan" else {})}
            error = self._error(limits)
            if not tried or error < min(tried.values()):
                best = limits
            tried["absmax" if alpha is None else f"percentile {alpha:g}"] = error
        self._fill(best, tried)
        self.release()

    def _limits(self, role: str, alpha: float | None) -> Tensor:
        """What the codes of tensor ``role`` shall reach, where ``alpha`` limits the scan's input."""
        limits = self.observers[role].limits(alpha if self._searched(role) else None)
        clustered = self.quantization.scales == "cluster" and role in IN_HEADS
        return shared_limits(limits, self.quantization.clusters) if clustered else limits

    def release(self) -> None:
        """Drop the statistics once the site is solved."""
        self.observers.clear()
        self.sample = None

    def share(self, role: str, limits: Tensor) -> None:
        """Give the solved tensor ``role`` another range, which it has in common with another site's."""
        self.record.scales[role] = _scales(limits)

    def solved(self, role: str) -> Tensor:
        """The largest magnitude that the tensor's codes reach, float32 [1] or one per scale; solves if that was not
        done yet."""
        self.solve()
        return torch.tensor(self.record.scales[role]) * CODE.qmax

    def _error(self, limits: dict[str, Tensor]) -> float:
        """Relative error of the operator's result with operands and constants as their codes say.

        A gate that comes later may silence the largest channel: without one inside, the error is the mean of the
        channels' own, of which none loses more than all.
        """
        if self.sample is None:
            return 0.0  # only single steps were seen: nothing to measure a sequence on
        target, given = self.sample
        exact, found = (_result(target, arguments) for arguments in (given, _all_coded(target, given, limits)))
        if self.kind == "conv" or given["z"] is not None:
            return _relative(found, exact)
        steps = TIME[target]
        lost, size = (found - exact).norm(dim=steps), exact.norm(dim=steps)
        return float((lost / size.clamp(min=1e-30)).clamp(max=1).mean())

    def run(self, target: Any, given: dict[str, Any]) -> Any:
        """The operator's value with operands and constants as their codes say, once the site is solved; that of the
        float operator if it stays so."""
        if self.in_float:
            return target(**given)
        limits = {role: self.solved(role) for role in self.record.scales}
        return target(**_all_coded(target, given, limits))

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
            moved = _channels_last(target, role, values, self.quantization.scales)
            record.clipped[role] = float((moved.abs() > limit * (1 + 1e-6)).float().mean())
            record.errors[role] = _relative(_coded(values, limit), values)
        for role, name in CONSTANTS[target].items():
            if isinstance(given[name], Tensor):
                record.errors[role] = _relative(coded_constant(role, given[name]), given[name])
        record.reason = "; ".join(f"{role}: scale {_span(record.scales[role])}, clips {clipped:.2%}, "
                                  f"error {record.errors[role]:.2%}" for role, clipped in record.clipped.items())


def _scales(limits: Tensor) -> list[float]:
    return CODE.parameters(-limits, limits)[0].tolist()


def _span(scales: list[float]) -> str:
    low, high = min(scales), max(scales)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g} ({len(set(scales))} scales)"


def _channels_last(target: Any, role: str, value: Tensor, scales: ScanScales) -> Tensor:
    """[..., K] with what shares one scale, or a channel that may be put into a cluster, in each of the K columns."""
    has_heads = target is CHUNK_SCAN or (target is STATE_UPDATE and value.dim() == 3)
    if scales == "tensor" or not has_heads or role not in IN_HEADS + IN_GROUPS:
        return value.reshape(-1, 1)
    return value.movedim(-2, -1) if scales == "head" or role in IN_GROUPS else value.flatten(-2)


def _coded(value: Tensor, limit: Tensor) -> Tensor:
    limit = (limit.view(value.shape[-2], -1) if limit.numel() > 1 else limit).to(value.device)
    return CODE.fake_quantize(value.float(), -limit, limit).to(value.dtype)


def _all_coded(target: Any, given: dict[str, Any], limits: dict[str, Tensor]) -> dict[str, Any]:
    coded = dict(given)
    for role, name in TENSORS[target].items():
        if role in limits and given[name] is not None:
            coded[name] = _coded(given[name], limits[role])
    for role, name in CONSTANTS[target].items():
        if isinstance(given[name], Tensor):
            coded[name] = coded_constant(role, given[name])
    return coded


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found - exact.float()).norm() / exact.float().norm().clamp(min=1e-30))


def _steps(value: Tensor, time: int, real: Tensor) -> Tensor:
    """The real steps of all rows, one after the other in one row."""
    return value.movedim(time, 1)[real][None].movedim(1, time)


def _excerpt(target: Any, given: dict[str, Any], real: Tensor | None) -> dict[str, Any]:
    """The first steps of one row of the batch, the one with the most real steps, in float32."""
    time, kept = TIME[target], {}
    row = 0 if real is None else int(real.sum(1).argmax())
    for name, value in given.items():
        if not isinstance(value, Tensor):
            kept[name] = value
        elif name in TENSORS[target].values():
            first = value[row : row + 1].float()
            first = first if real is None else _steps(first, time, real[row : row + 1])
            kept[name] = first.narrow(time, 0, min(SAMPLE_STEPS, first.shape[time])).clone()
        else:
            kept[name] = (value[row : row + 1] if name.startswith("initial_state") else value).float().clone()
    return kept | {"out_dtype": torch.float32}


def _result(target: Any, arguments: dict[str, Any]) -> Tensor:
    y = target(**arguments)
    return y if isinstance(y, Tensor) else y[0]
