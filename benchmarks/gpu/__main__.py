"""Verify torchqx on a GPU, then measure it against compiled bfloat16, torchao and the device's own limits.

    python -m benchmarks.gpu [--only verify|linear|norm|blocks ...] [--seconds 450]
    python -m benchmarks.gpu --device cpu --quick        # the same code on tiny sizes: does the script run?

The status is 1 where a verification fails or an arm that must run does not, and 2 where there is no CUDA device. What
needs torchao is absent, with the reason, where torchao cannot do it. docs/gpu.md says what the columns mean, and how to
run with a torch that is there already.
"""

import re
import time
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from benchmarks.gpu import (
    blocks,
    case,
    check,
    limits,
    linear,
    norm,
    scan,
    verify_layers,
    verify_linear,
    verify_rows,
    verify_scan,
)
from benchmarks.gpu.place import Place
from benchmarks.records import RECORDS, Sheet, report_sheets

VERIFY = "verify"
MEASURED = {"blocks": blocks.cases, "norm": norm.cases, "scan": scan.cases, "linear": linear.cases}
NO_DEVICE = ("torch {version} (CUDA {cuda}) finds no CUDA device. Run this where there is one, with a torch built for "
             "it, or rehearse it with --device cpu --quick.")


class Device(StrEnum):
    """Where to run."""

    CUDA = "cuda"
    CPU = "cpu"


class Part(StrEnum):
    """What to run."""

    VERIFY = VERIFY
    LINEAR = "linear"
    NORM = "norm"
    SCAN = "scan"
    BLOCKS = "blocks"


def main(
    device: Annotated[Device, typer.Option(help="cpu is a rehearsal: nothing there says how fast torchqx is.")] =
        Device.CUDA,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes.")] = False,
    only: Annotated[list[Part] | None, typer.Option(help="Parts to run; default all.")] = None,
    seconds: Annotated[float, typer.Option(help="No comparison is begun after so many seconds.")] = 450.0,
    records: Annotated[Path, typer.Option(help="Folder for the record.")] = RECORDS,
) -> None:
    """Verify every GPU path of torchqx, then measure it."""
    if device is Device.CUDA and not torch.cuda.is_available():
        typer.echo(NO_DEVICE.format(version=torch.__version__, cuda=torch.version.cuda), err=True)
        raise typer.Exit(2)
    torch.manual_seed(0)
    place, console, started = Place(_device(device), quick), Console(stderr=True), time.monotonic()
    parts = [part.value for part in only or list(Part)]
    verdicts = _verify(place, console) if VERIFY in parts else []
    wanted = [c for name, cases in MEASURED.items() if name in parts for c in cases(quick)]
    found = limits.measure(place) if wanted else None
    outcomes = []
    for c in wanted:
        if time.monotonic() - started > seconds:
            break
        outcomes.append(case.run(c, place))
        _say(console, started, f"{c.what} {c.size}", outcomes[-1].broken)
    sheets, data = [], {"quick": quick, "seconds": time.monotonic() - started}
    if verdicts:
        sheets.append(Sheet("Verified", check.HEADER, [v.row() for v in verdicts]))
        data["verified"] = [{"name": v.name, "error": v.error, "bound": v.bound, "problem": v.problem,
                             "passed": v.passed} for v in verdicts]
    if found is not None:
        sheets.append(Sheet(f"Measured; limits: {found.described()}", case.HEADER, [o.row(found) for o in outcomes]))
        data |= _measured(found, outcomes, wanted[len(outcomes):])
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    name = f"gpu-{re.sub(r'[^a-z0-9]+', '-', place.name.lower()).strip('-')}-{day}"
    report_sheets(name, f"torchqx on {place.name}", sheets, data, place.described(), records)
    _conclude(verdicts, outcomes, wanted[len(outcomes):])


def _device(device: Device) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if device is Device.CUDA else torch.device("cpu")


def _verify(place: Place, console: Console) -> list[check.Verdict]:
    verdicts = []
    started = time.monotonic()
    for part in (verify_linear, verify_rows, verify_scan, verify_layers):
        for c in part.checks(place):
            verdicts.append(check.judge(c))
            _say(console, started, c.name, "" if verdicts[-1].passed else verdicts[-1].row()[-1])
    return verdicts


def _say(console: Console, started: float, name: str, problem: str) -> None:
    console.print(f"{time.monotonic() - started:5.0f} s  {name}  {problem}".rstrip(), markup=False, highlight=False)


def _measured(found: limits.Limits, outcomes: list[case.Outcome], left: list[case.Case]) -> dict[str, Any]:
    return {"limits": found.as_json(), "results": [o.as_json(found) for o in outcomes],
            "not_measured": [f"{c.what} {c.size}" for c in left]}


def _conclude(verdicts: list[check.Verdict], outcomes: list[case.Outcome], left: list[case.Case]) -> None:
    """Say what was left out, and end with status 1 where something is wrong."""
    for o in outcomes:
        for arm, reason in o.failed.items():
            typer.echo(f"{o.case.what} {o.case.size}: no {arm}: {reason}", err=True)
    if left:
        typer.echo(f"time was up: {len(left)} comparisons were not begun (see --seconds)", err=True)
    wrong = [v.name for v in verdicts if not v.passed] + [f"{o.case.what} {o.case.size}" for o in outcomes if o.broken]
    if wrong:
        typer.echo(f"wrong: {'; '.join(wrong)}", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
