"""The report: what was found in a model, what was done with it, and why not where it was not."""

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch.nn import Module

from torchqx.errors import NotPreparedError
from torchqx.full_names import linear_records, other_records, prefix, renamed, scan_records
from torchqx.lowering_choice import reported
from torchqx.plan import SiteRecord, records_from_json
from torchqx.session import SESSIONS
from torchqx.storage import QuantizedWeight
from torchqx.workflow import RECORDS, SESSION, unwrap

ORDER = ("linear", "embedding", "rotation", "scan", "conv", "attention", "norm", "residual")


@dataclass(frozen=True)
class Report:
    """One record per site; prints as a table.

    Attributes:
        model: class name of the model.
        sites: weighted matmuls first, in the order of the model's parameters.
    """

    model: str
    sites: list[SiteRecord]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: the model, :meth:`summary`, and every site's record."""
        return {"model": self.model, "summary": self.summary(), "sites": [s.to_dict() for s in self.sites]}

    def to_json(self, indent: int | None = None) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent)

    def summary(self) -> dict[str, Any]:
        """Counts by status for each kind, and the weight memory of linear sites before and after, in bytes."""
        counts = Counter((s.kind, s.status) for s in self.sites)
        return {
            "sites": {kind: {status: n for (k, status), n in sorted(counts.items()) if k == kind}
                      for kind in sorted({k for k, _ in counts})},
            "bytes_before": sum(s.bytes_before for s in self.sites),
            "bytes_after": sum(s.bytes_after for s in self.sites),
        }

    def __getitem__(self, key: str) -> SiteRecord:
        """The record of the site with this key. Raises KeyError for another."""
        found = [s for s in self.sites if s.key == key]
        if not found:
            raise KeyError(key)
        return found[0]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(title=f"{self.model}: sites", header_style="bold", row_styles=["", "dim"])
        for name, kind in (("site", "left"), ("status", "left"), ("transform", "left"), ("activation", "left"),
                           ("weight", "left"), ("outliers", "right"), ("error", "right"), ("KiB", "right"),
                           ("gain", "right"), ("reason", "left")):
            table.add_column(name, justify=kind, overflow="fold")
        for s in self.sites:
            memory = f"{s.bytes_before / 1024:.0f} → {s.bytes_after / 1024:.0f}" if s.bytes_before else ""
            transform = f"{'+'.join(s.transforms)} ({s.placement})" if s.transforms else ""
            error = "" if s.error is None else f"{s.error:.2%}"
            table.add_row(s.key, s.status, transform, s.activation, s.weight, _outliers(s), error, memory,
                          "" if s.expected_gain is None else f"{s.expected_gain:.1f}x", _reason(s))
        yield table

    def __str__(self) -> str:
        console = Console(width=200, no_color=True)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def _outliers(site: SiteRecord) -> str:
    ratios = [r for r in (site.outlier_ratio_before, site.outlier_ratio_after) if r is not None]
    return " → ".join(f"{r:.1f}" for r in ratios)


def _reason(site: SiteRecord) -> str:
    choices = [f"M={rows}: {choice}" for rows, choice in site.choices.items()]
    return "; ".join([site.reason, *choices] if site.reason else choices)


def explain(model: Module) -> Report:
    """Every site of ``model`` (or of the model inside ``torch.compile``'s wrapper) with its decision.

    Of a model that was quantized or compiled with one recipe after the other, those of the recipe whose graph was bound
    last.

    Raises:
        NotPreparedError: nothing has been traced yet and no weight is quantized.
    """
    model = unwrap(model)
    sessions = [model.__dict__[SESSION]] if SESSION in model.__dict__ else SESSIONS.of(model)
    records = _stored(model)
    if not sessions:
        records |= {r.key: r for r in model.__dict__.get(RECORDS, ())}
    for session in sessions:
        linear = linear_records(session, model)
        scans = [r for state, record in linear.items() for r in scan_records(state, record)]
        for record in [*linear.values(), *scans, *other_records(session, model)]:
            if record.key not in records:
                records[record.key] = record
    unfolded = {weight for r in records.values() if r.kind == "rotation" for weight in r.weights}
    for key, record in records.items():
        if record.placement == "folded" and not unfolded.isdisjoint(record.weights):
            records[key] = replace(record, placement="online")
    if not records:
        raise NotPreparedError("nothing is known of the model yet", where=type(model).__name__,
                               remedy="quantize it, or compile it with backend='torchqx' and call it once.")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    places = {n: i for i, n in enumerate(parameters)}

    def chosen(record: SiteRecord) -> SiteRecord:
        if record.kind != "linear":
            return record
        weights = [p for w in record.weights if (p := parameters.get(w)) is not None]
        gain, choices = reported([SESSIONS.choices_for(w) for w in weights])
        return replace(record, expected_gain=gain, choices=choices)

    def place(record: SiteRecord) -> tuple[int, int]:
        kind = ORDER.index(record.kind) if record.kind in ORDER else len(ORDER)
        return kind, min((places.get(w, len(places)) for w in record.weights), default=0)

    ordered = sorted(map(chosen, records.values()), key=place)
    return Report(type(model).__name__, ordered)


def _stored(model: Module) -> dict[str, SiteRecord]:
    """Records that travel with the weights."""
    found: list[SiteRecord] = []
    for name, parameter in model.named_parameters():
        if isinstance(parameter, QuantizedWeight):
            records = records_from_json(parameter.plan)
            # A linear converted on its own calls its weight "weight"; its record takes the place in the model.
            local = records[0].weights[0] if records and records[0].weights else name
            found += [renamed(r, prefix(local, name)) for r in records]
    return {r.key: r for r in found}
